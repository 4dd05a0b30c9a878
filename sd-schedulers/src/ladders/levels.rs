//! The noise levels that a ladder has on a model.

use super::{AlignedModel, Conventions, FinalSigma, Ladder, LadderError, Shape, gits};
use crate::NoiseSchedule;
use crate::schedule::Kind;

/// The sigma that stands for pure noise in the samplers that stay on the grid.
///
/// diffusers' DDIM keeps an alpha-bar of 0 there, which is an infinite sigma. At this sigma, the
/// share of the sample in x is at most 2⁻²⁰.
const PURE_NOISE: f64 = (1 << 20) as f64;

impl Ladder {
    /// Checks that the ladder has a meaning for this kind of model and sampler.
    pub(super) fn check(
        &self,
        schedule: &NoiseSchedule,
        conventions: &Conventions,
    ) -> Result<(), LadderError> {
        let kind = schedule.kind();
        let model = match kind {
            Kind::Trained => "a diffusion",
            Kind::Flow => "a flow",
            Kind::Edm => "an EDM",
        };
        if !self.is_for(kind) {
            let ladder = self.kind();
            return Err(LadderError::Model { ladder, model });
        }
        if conventions.training_timesteps && kind == Kind::Edm {
            let ladder = "a sampler that computes with training timesteps";
            return Err(LadderError::Model { ladder, model });
        }
        if conventions.on_grid_only && !(self.on_grid() && kind == Kind::Trained) {
            return Err(LadderError::OffGrid);
        }
        Ok(())
    }

    /// Whether the ladder's numbers have a meaning for this kind of model.
    pub(crate) fn is_for(&self, kind: Kind) -> bool {
        match self {
            Self::Spaced(_) | Self::Timed(_) => kind != Kind::Edm,
            Self::Shaped { shape, over } => match kind {
                Kind::Trained => true,
                Kind::Flow => !matches!(shape, Shape::Laplace { .. }),
                Kind::Edm => over.spacing.is_none(),
            },
            Self::Vp(_) => kind != Kind::Flow,
            Self::AlignYourSteps(table) => match kind {
                Kind::Trained => true,
                Kind::Flow => false,
                Kind::Edm => table.model == AlignedModel::Svd,
            },
            Self::Gits { .. } => kind == Kind::Trained,
            Self::Flow(_) => kind == Kind::Flow,
            Self::LinearQuadratic(_) | Self::Sigmas(_) | Self::Timesteps(_) => true,
        }
    }

    /// Returns the levels in float64, in the schedule's own scaling.
    pub(super) fn levels(
        &self,
        schedule: &NoiseSchedule,
        steps: usize,
        conventions: &Conventions,
    ) -> Result<Levels, LadderError> {
        let given = |given: usize| match given == steps {
            true => Ok(()),
            false => Err(LadderError::Given { steps, given }),
        };
        Ok(match self {
            Self::Spaced(spacing) => {
                let timesteps = spacing.timesteps(schedule, steps, conventions);
                Levels::at(timesteps, schedule, conventions, NoiseSchedule::interpolate)
            }
            Self::Timed(timing) => timing.levels(schedule, steps, conventions)?,
            Self::Shaped { shape, over } => {
                let ends = over.ends(schedule, steps, conventions);
                let (sigmas, end) = shape.sigmas(steps, ends)?;
                Levels {
                    end,
                    ..Levels::of(sigmas)
                }
            }
            Self::Vp(vp) => Levels::of(vp.sigmas(steps)?),
            Self::LinearQuadratic(curve) => {
                let high = f64::from(schedule.sigma_max());
                let sigmas = curve.sigmas(steps)?;
                Levels::of(sigmas.iter().map(|sigma| sigma * high).collect())
            }
            Self::AlignYourSteps(table) => Levels::of(table.sigmas(steps)),
            Self::Gits { coefficient } => Levels::of(gits::sigmas(schedule, steps, *coefficient)?),
            Self::Flow(flow) => flow.levels(schedule, steps, conventions)?,
            Self::Sigmas(sigmas) => {
                given(sigmas.len().saturating_sub(1))?;
                let sigmas: Vec<f64> = sigmas.iter().map(|&sigma| sigma.into()).collect();
                Levels {
                    end: Some(sigmas[steps]),
                    ..Levels::of(sigmas[..steps].to_vec())
                }
            }
            Self::Timesteps(timesteps) => {
                given(timesteps.len())?;
                let [min, max] = schedule.timestep_range();
                for (index, &timestep) in timesteps.iter().enumerate() {
                    if !(timestep >= min && timestep <= max) {
                        return Err(LadderError::Timestep {
                            index,
                            timestep,
                            min,
                            max,
                        });
                    }
                }
                let timesteps = timesteps.iter().map(|&timestep| timestep.into());
                let timesteps = timesteps.collect();
                Levels::at(timesteps, schedule, conventions, NoiseSchedule::interpolate)
            }
        })
    }
}

/// The rungs of a run before rounding, noisiest first.
pub(super) struct Levels {
    pub(super) sigmas: Vec<f64>,
    /// The timesteps, if the ladder is made of timesteps.
    pub(super) timesteps: Option<Vec<f64>>,
    /// The sigma at which the run ends, if the ladder determines it.
    pub(super) end: Option<f64>,
}

impl Levels {
    pub(super) fn of(sigmas: Vec<f64>) -> Self {
        Self {
            sigmas,
            timesteps: None,
            end: None,
        }
    }

    /// Returns the sigma at which the run ends. The ladder's own end takes precedence over the
    /// sampler's choice, `wanted`.
    pub(super) fn end(&self, schedule: &NoiseSchedule, wanted: FinalSigma) -> f64 {
        match (self.end, wanted) {
            (Some(end), _) => end,
            (None, FinalSigma::Zero) => 0.0,
            (None, FinalSigma::SigmaMin)
                if self.timesteps.is_some() && schedule.kind() == Kind::Trained =>
            {
                schedule.sigma_min().into()
            }
            (None, FinalSigma::SigmaMin) => self.sigmas[self.sigmas.len() - 1],
        }
    }

    /// Returns levels at `timesteps`, whose sigmas `interpolate` returns.
    ///
    /// If the sampler stays on the grid and the last trained timestep is pure noise, its sigma is
    /// [`PURE_NOISE`].
    pub(super) fn at(
        timesteps: Vec<f64>,
        schedule: &NoiseSchedule,
        conventions: &Conventions,
        interpolate: fn(&NoiseSchedule, f64) -> f64,
    ) -> Self {
        let pure_noise = conventions.on_grid_only && schedule.has_zero_terminal_snr();
        let last = (schedule.num_train_timesteps() - 1) as f64;
        let sigma = |&timestep: &f64| {
            if pure_noise && timestep == last {
                PURE_NOISE
            } else {
                interpolate(schedule, timestep)
            }
        };
        Self {
            sigmas: timesteps.iter().map(sigma).collect(),
            timesteps: Some(timesteps),
            end: None,
        }
    }

    /// Returns levels at `timesteps` whose sigmas are interpolated between the timesteps of a grid,
    /// linearly in the logarithm.
    ///
    /// `grid` is the first timestep of the grid and the distance between its timesteps. The
    /// timestep of each level is the nearer of the two grid timesteps, or the cleaner one of two
    /// that are equally near.
    pub(super) fn between(
        schedule: &NoiseSchedule,
        grid: (f64, f64),
        mut timesteps: Vec<f64>,
    ) -> Self {
        let (first, distance) = grid;
        let log_sigma = |point: f64| schedule.interpolate_log(first + distance * point).ln();
        let mut sigmas = Vec::with_capacity(timesteps.len());
        for timestep in &mut timesteps {
            let point = (*timestep - first) / distance;
            let (low, weight) = (point.floor(), point.fract());
            let log = (1.0 - weight) * log_sigma(low) + weight * log_sigma(point.ceil());
            sigmas.push(log.exp());
            *timestep = first + distance * (point - 0.5).ceil();
        }
        Self {
            timesteps: Some(timesteps),
            ..Self::of(sigmas)
        }
    }
}
