use serde::{Deserialize, Serialize};

use super::{Conventions, Ladder, LadderError, Levels, Shape, in_range};
use crate::NoiseSchedule;

/// The ladders of flow models: even sigmas from 1 down, shifted towards noise. diffusers' `FlowMatch…` classes and `use_flow_sigmas`.
#[derive(Clone, Debug, PartialEq)]
pub struct Flow {
    /// The sigmas before the shift. Default [`FlowLevels::ShiftedEnd`].
    pub levels: FlowLevels,
    /// The shift. Default none: 1. Stable Diffusion 3's configuration says 3.
    pub shift: Shift,
    /// Scale what the shifted sigmas leave of 1 so that the last rung is this, between 0 and 1: `shift_terminal`. Needs two steps.
    /// Default none.
    pub terminal: Option<f64>,
}

/// The sigmas of a [`Flow`] ladder before they are shifted. T is the number of training timesteps.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum FlowLevels {
    /// N even ones from 1 to the *shifted* 1 / T, which is so shifted twice: diffusers' `FlowMatchEulerDiscreteScheduler` and
    /// `FlowMatchHeunDiscreteScheduler` without dynamic shift.
    #[default]
    ShiftedEnd,
    /// N even ones from 1 to 1 / T: `FlowMatchEulerDiscreteScheduler` with `use_dynamic_shifting`.
    Trained,
    /// 1, 1 - 1 / N, … 1 / N: what the pipelines of FLUX give to `FlowMatchEulerDiscreteScheduler`.
    Even,
    /// N even steps from 1 - 1 / T to 0: `use_flow_sigmas` of the DPM-Solver classes, DEIS and SA-Solver.
    Dpm,
    /// N + 1 even ones from 1 to 1 / T, less the cleanest; a first one of 1 becomes 1 - 10⁻⁶ after the shift: `use_flow_sigmas` of UniPC.
    UniPc,
    /// A shape between two sigmas of the variance-exploding scaling, as `sigma / (1 + sigma)` and not shifted: UniPC with `use_karras_sigmas`
    /// and `use_flow_sigmas`.
    Exploding {
        /// The shape.
        shape: Shape,
        /// The smallest sigma, above 0.
        sigma_min: f64,
        /// The largest sigma.
        sigma_max: f64,
    },
    /// Those of another ladder: sigmas of one's own, which diffusers shifts too, or ComfyUI's `simple` and `normal`.
    Of(Box<Ladder>),
}

/// How a [`Flow`] ladder is moved towards noise: `sigma → s sigma / (1 + (s - 1) sigma)`, equation 23 of <https://arxiv.org/abs/2403.03206>.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Shift {
    /// By this s, above 0: keys `shift` and `flow_shift`. 1 changes nothing.
    By(f64),
    /// By e to the power of this: diffusers' argument `mu`.
    Mu(f64),
    /// By a size of the picture.
    Resolution(ResolutionShift),
}

/// A shift that grows with the picture, as larger ones hide more noise: mu on a straight line over the number of tokens.
/// diffusers' `use_dynamic_shifting`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ResolutionShift {
    /// How many tokens the picture has, see [`tokens_of`](Self::tokens_of). Default 4096, 1024 × 1024.
    pub tokens: usize,
    /// A number of tokens with [`base_shift`](Self::base_shift): `base_image_seq_len`. Default 256.
    pub base_tokens: usize,
    /// Its mu. Default 0.5.
    pub base_shift: f64,
    /// Another number of tokens: `max_image_seq_len`. Default 4096.
    pub max_tokens: usize,
    /// Its mu. Default 1.15.
    pub max_shift: f64,
    /// Whether the shift is by mu instead of e to the power of mu: `time_shift_type` `linear`. Default false.
    pub linear: bool,
}

impl Default for Flow {
    fn default() -> Self {
        Self::NAMED
    }
}

impl Default for Shift {
    fn default() -> Self {
        Self::By(1.0)
    }
}

impl Default for ResolutionShift {
    fn default() -> Self {
        Self {
            tokens: 4096,
            base_tokens: 256,
            base_shift: 0.5,
            max_tokens: 4096,
            max_shift: 1.15,
            linear: false,
        }
    }
}

impl Flow {
    /// The default.
    pub(super) const NAMED: Self = Self {
        levels: FlowLevels::ShiftedEnd,
        shift: Shift::By(1.0),
        terminal: None,
    };

    pub(super) fn levels(
        &self,
        schedule: &NoiseSchedule,
        steps: usize,
        conventions: &Conventions,
    ) -> Result<Levels, LadderError> {
        let factor = self.shift.factor()?;
        let cleanest = 1.0 / schedule.num_train_timesteps() as f64;
        let line = |points, end| move |i| on_line(i, points, end);
        let mut end = None;
        let mut sigmas: Vec<f64> = match &self.levels {
            FlowLevels::ShiftedEnd => {
                let end = shifted(cleanest, factor);
                (0..steps).map(line(steps, end)).collect()
            }
            FlowLevels::Trained => (0..steps).map(line(steps, cleanest)).collect(),
            FlowLevels::Even => (0..steps).map(line(steps, 1.0 / steps as f64)).collect(),
            // In diffusers' order of operations, as the timesteps are cut off after the point.
            FlowLevels::Dpm => (0..steps)
                .map(|i| 1.0 - on_line(steps - i, steps + 1, cleanest))
                .collect(),
            FlowLevels::UniPc => (0..steps).map(line(steps + 1, cleanest)).collect(),
            FlowLevels::Exploding {
                shape,
                sigma_min,
                sigma_max,
            } => {
                let (sigmas, _) = shape.sigmas(steps, [*sigma_min, *sigma_max])?;
                sigmas.iter().map(|sigma| sigma / (1.0 + sigma)).collect()
            }
            FlowLevels::Of(ladder) => {
                ladder.check(schedule, conventions)?;
                let levels = ladder.levels(schedule, steps, conventions)?;
                end = levels.end.map(|end| shifted(end, factor));
                levels.sigmas
            }
        };
        if !matches!(self.levels, FlowLevels::Exploding { .. }) {
            for sigma in &mut sigmas {
                *sigma = shifted(*sigma, factor);
            }
        }
        if let Some(terminal) = self.terminal {
            in_range("terminal", terminal, [0.0, 1.0])?;
            stretch(&mut sigmas, terminal)?;
        }
        if self.levels == FlowLevels::UniPc && (sigmas[0] - 1.0).abs() < 1e-6 {
            sigmas[0] -= 1e-6;
        }
        Ok(Levels {
            end,
            ..Levels::of(sigmas)
        })
    }
}

impl Shift {
    /// The shift from one number of pixels or tokens to another, of the same noise to the eye: `s = sqrt(to / from)`, equation 23 of
    /// <https://arxiv.org/abs/2403.03206>.
    pub fn of_area(from: usize, to: usize) -> Self {
        Self::By((to as f64 / from as f64).sqrt())
    }

    /// The factor s.
    fn factor(self) -> Result<f64, LadderError> {
        let factor = match self {
            Self::By(factor) => factor,
            Self::Mu(mu) => mu.exp(),
            Self::Resolution(shift) if shift.linear => shift.mu(),
            Self::Resolution(shift) => shift.mu().exp(),
        };
        super::above_zero("shift", factor)?;
        Ok(factor)
    }
}

impl ResolutionShift {
    /// The number of tokens of a picture for Stable Diffusion 3 and FLUX: one for 16 × 16 pixels.
    pub fn tokens_of(width: usize, height: usize) -> usize {
        (width / 16) * (height / 16)
    }

    /// mu at [`tokens`](Self::tokens).
    pub fn mu(&self) -> f64 {
        let slope =
            (self.max_shift - self.base_shift) / (self.max_tokens as f64 - self.base_tokens as f64);
        self.tokens as f64 * slope + (self.base_shift - slope * self.base_tokens as f64)
    }
}

/// Point `i` of numpy's `linspace(1, end, points)`.
fn on_line(i: usize, points: usize, end: f64) -> f64 {
    match i {
        0 => 1.0,
        _ if i + 1 == points => end,
        _ => 1.0 + i as f64 * ((end - 1.0) / (points - 1) as f64),
    }
}

/// A sigma of a flow model, moved towards noise.
pub(crate) fn shifted(sigma: f64, factor: f64) -> f64 {
    factor * sigma / (1.0 + (factor - 1.0) * sigma)
}

/// Scales `1 - sigma` so that the last sigma is `terminal`, if that is not 0.
fn stretch(sigmas: &mut [f64], terminal: f64) -> Result<(), LadderError> {
    let steps = sigmas.len();
    if terminal == 0.0 {
        return Ok(());
    }
    if steps < 2 {
        return Err(LadderError::TooFew { steps, min: 2 });
    }
    let scale = (1.0 - terminal) / (1.0 - sigmas[steps - 1]);
    for sigma in sigmas {
        *sigma = 1.0 - (1.0 - *sigma) * scale;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mu_goes_through_both_of_its_points() {
        let mu = |tokens| {
            let shift = ResolutionShift {
                tokens,
                ..Default::default()
            };
            shift.mu()
        };
        assert!((mu(256) - 0.5).abs() < 1e-12 && (mu(4096) - 1.15).abs() < 1e-12);
        assert_eq!(ResolutionShift::tokens_of(1024, 512), 2048);
        assert_eq!(Shift::of_area(256 * 256, 1024 * 1024), Shift::By(4.0));
    }
}
