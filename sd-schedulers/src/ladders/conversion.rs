//! The conversion of a ladder to the rungs of a run.

use std::sync::Arc;

use super::levels::Levels;
use super::{Conventions, FirstX, Ladder, LadderError, Shape, Spacing, TimestepRounding};
use crate::schedule::Kind;
use crate::{NoiseSchedule, Rungs, ladders::NoisePath, schedule::BetaSchedule};

impl Ladder {
    /// Makes the noise levels of a run of `steps` steps.
    ///
    /// On a flow model, they are in the scaling that `conventions` asks for. There are as many
    /// rungs as steps, except with [`Timing::DdimUniform`].
    ///
    /// The levels are equal to the reference's wherever the reference gives N rungs. Where a
    /// formula would leave the trained range or repeat a timestep, the timesteps are moved apart,
    /// so that every number of steps up to T works. Two formulas are not followed:
    /// - A linspace of one point starts at T - 1. numpy's starts at 0, the clean end.
    /// - Trailing always has N points. `np.arange` has N + 1 for some N because of rounding.
    ///
    /// # Errors
    /// - [`LadderError::Steps`] if `steps` is outside `1..=T`. [`Timing::Turbo`] and
    ///   [`Timing::Lcm`] allow fewer.
    /// - [`LadderError::TooFew`] if the sampler or the ladder needs more steps.
    /// - [`LadderError::Given`] if a ladder of given levels has another number of rungs.
    /// - [`LadderError::OffGrid`] if the sampler needs whole training timesteps and the ladder or
    ///   the model does not have them.
    /// - [`LadderError::Model`] if the ladder or the sampler does not support this kind of model.
    /// - [`LadderError::Value`] or [`LadderError::Span`] if an option is out of range.
    /// - [`LadderError::Sigma`] or [`LadderError::Timestep`] if a given level is wrong, or if two
    ///   sigmas are too close for float32.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use sd_schedulers::{Ladder, NoiseSchedule, SchedulerConfig, ladders::Conventions};
    ///
    /// let schedule = Arc::new(NoiseSchedule::new(&SchedulerConfig::default())?);
    /// let rungs = Ladder::trailing().rungs(&schedule, 4, &Conventions::default())?;
    /// assert_eq!(rungs.timesteps(), [999.0, 749.0, 499.0, 249.0]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// [`Timing::DdimUniform`]: crate::ladders::Timing::DdimUniform
    /// [`Timing::Turbo`]: crate::ladders::Timing::Turbo
    /// [`Timing::Lcm`]: crate::ladders::Timing::Lcm
    pub fn rungs(
        &self,
        schedule: &Arc<NoiseSchedule>,
        steps: usize,
        conventions: &Conventions,
    ) -> Result<Rungs, LadderError> {
        let one_more = conventions.drop_next_to_last && self.given_steps().is_none();
        let more = usize::from(one_more);
        let max = schedule.num_train_timesteps() - more;
        if !(1..=max).contains(&steps) {
            return Err(LadderError::Steps { steps, max });
        }
        if steps < conventions.min_steps {
            let min = conventions.min_steps;
            return Err(LadderError::TooFew { steps, min });
        }
        self.check(schedule, conventions)?;
        let levels =
            self.levels(schedule, steps + more, conventions)
                .map_err(|error| match error {
                    LadderError::Steps { max, .. } => LadderError::Steps {
                        steps,
                        max: max.saturating_sub(more),
                    },
                    other => other,
                })?;
        let end = levels.end(schedule, conventions.end);
        let Levels {
            mut sigmas,
            timesteps,
            ..
        } = levels;
        let inverted = || sigmas.iter().map(|&sigma| schedule.invert(sigma)).collect();
        let mut timesteps: Vec<f64> = timesteps.unwrap_or_else(inverted);
        for timestep in &mut timesteps {
            *timestep = self.rounded(schedule, conventions.timestep_rounding, *timestep);
        }
        if one_more && sigmas.len() > 1 {
            sigmas.pop();
            timesteps.pop();
        }
        sigmas.push(end);

        let initial_scale = self.initial_scale(schedule, conventions.first_x, sigmas[0] as f32);
        let rungs = Rungs::new(
            schedule,
            sigmas.iter().map(|&sigma| sigma as f32).collect(),
            timesteps.iter().map(|&timestep| timestep as f32).collect(),
            initial_scale,
        )?;
        Ok(match conventions.flow {
            NoisePath::Exploding => rungs.explode(&sigmas),
            NoisePath::Flow => rungs,
        })
    }

    /// Returns the timestep as the model is given it.
    fn rounded(&self, schedule: &NoiseSchedule, rounding: TimestepRounding, timestep: f64) -> f64 {
        if matches!(self, Self::Spaced(_) | Self::Timesteps(_)) || schedule.kind() == Kind::Edm {
            return timestep;
        }
        let shape = match self {
            Self::Shaped { shape, .. } => Some(*shape),
            _ => None,
        };
        let karras = matches!(shape, Some(Shape::Karras { .. }));
        let cut_off = match rounding {
            TimestepRounding::Exactly => return timestep,
            TimestepRounding::KarrasRounded if karras => false,
            TimestepRounding::KarrasRounded => return timestep,
            TimestepRounding::Whole | TimestepRounding::WholeOnCosineToo => match shape {
                _ if schedule.kind() == Kind::Flow => true,
                Some(Shape::Exponential | Shape::Beta { .. }) => true,
                Some(Shape::Karras { .. } | Shape::Lu) => {
                    rounding == TimestepRounding::Whole
                        && schedule.beta_schedule() == BetaSchedule::Cosine
                }
                _ => false,
            },
        };
        if cut_off {
            timestep.trunc()
        } else {
            timestep.round_ties_even()
        }
    }

    fn initial_scale(&self, schedule: &NoiseSchedule, first_x: FirstX, sigma: f32) -> f32 {
        let spacing = match self {
            Self::Spaced(spacing) => Some(*spacing),
            Self::Shaped { over, .. } => over.spacing,
            _ => None,
        };
        match (schedule.kind(), first_x, spacing) {
            (Kind::Flow, ..) => 1.0,
            (Kind::Edm, ..)
            | (_, FirstX::VariancePreserving, _)
            | (_, _, Some(Spacing::Leading)) => (sigma * sigma + 1.0).sqrt(),
            _ => sigma,
        }
    }
}
