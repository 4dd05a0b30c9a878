use serde::{Deserialize, Serialize};

use super::{Conventions, Ladder, LadderError, Levels, Shape, in_range};
use crate::NoiseSchedule;

/// The ladders of flow models: even sigmas from 1 down, shifted towards noise.
///
/// They are the ladders of diffusers' `FlowMatch…` classes and of `use_flow_sigmas`.
///
/// ```
/// use sd_schedulers::{Ladder, ladders::{Flow, FlowLevels, Shift}};
///
/// let ladder = Ladder::Flow(Flow {
///     levels: FlowLevels::Even,
///     shift: Shift::By(3.0),
///     ..Flow::default()
/// });
/// assert_eq!(ladder.to_string(), r#"{"flow":{"levels":"even","shift":{"by":3.0}}}"#);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Flow {
    /// The sigmas before the shift.
    ///
    /// Default: [`FlowLevels::ShiftedEnd`].
    pub levels: FlowLevels,
    /// The shift. Stable Diffusion 3's configuration has `Shift::By(3.0)`.
    ///
    /// Default: `Shift::By(1.0)`, which is no shift.
    pub shift: Shift,
    /// The sigma of the last rung, `0.0..=1.0`: `shift_terminal` in diffusers. The distances of the
    /// shifted sigmas from 1 are scaled to reach it. 0 changes nothing. Other values need at least
    /// two steps.
    ///
    /// Default: `None`.
    pub terminal: Option<f64>,
}

/// The sigmas of a [`Flow`] ladder before they are shifted. T is the number of training timesteps.
///
/// Default: [`FlowLevels::ShiftedEnd`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum FlowLevels {
    /// N even sigmas from 1 to the *shifted* 1 / T, whose shift is thus applied twice.
    ///
    /// diffusers' `FlowMatchEulerDiscreteScheduler` and `FlowMatchHeunDiscreteScheduler` use them
    /// without dynamic shift.
    #[default]
    ShiftedEnd,
    /// N even sigmas from 1 to 1 / T: `FlowMatchEulerDiscreteScheduler` with
    /// `use_dynamic_shifting`.
    Trained,
    /// The sigmas 1, 1 - 1 / N, … 1 / N, which the pipelines of FLUX pass to
    /// `FlowMatchEulerDiscreteScheduler`.
    Even,
    /// N even steps from 1 - 1 / T to 0: `use_flow_sigmas` of the DPM-Solver classes, DEIS and
    /// SA-Solver.
    Dpm,
    /// N + 1 even sigmas from 1 to 1 / T without the cleanest: `use_flow_sigmas` of UniPC. If the
    /// first sigma is 1 after the shift, it becomes 1 - 10⁻⁶.
    UniPc,
    /// A shape between two sigmas of the variance-exploding scaling, converted by
    /// `sigma / (1 + sigma)` and not shifted.
    ///
    /// diffusers' UniPC uses them with both `use_karras_sigmas` and `use_flow_sigmas`.
    Exploding {
        /// The shape.
        shape: Shape,
        /// The smallest sigma, above 0.
        sigma_min: f64,
        /// The largest sigma.
        sigma_max: f64,
    },
    /// The sigmas of another ladder, such as given sigmas, which diffusers shifts too, or ComfyUI's
    /// `simple` and `normal`.
    Ladder(Box<Ladder>),
}

/// How a [`Flow`] ladder is moved towards noise: `sigma → s sigma / (1 + (s - 1) sigma)`,
/// equation 23 of <https://arxiv.org/abs/2403.03206>.
///
/// Default: `Shift::By(1.0)`, which changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Shift {
    /// The factor s, above 0: the keys `shift` and `flow_shift` of diffusers. 1 changes nothing.
    By(f64),
    /// The logarithm of s: the argument `mu` of diffusers.
    Mu(f64),
    /// A factor that depends on the size of the picture.
    Resolution(ResolutionShift),
}

/// A shift that grows with the picture, because larger pictures hide more noise.
///
/// mu lies on a straight line over the number of tokens. This is diffusers' `use_dynamic_shifting`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ResolutionShift {
    /// The number of tokens of the picture, see [`tokens_of`](Self::tokens_of).
    ///
    /// Default: 4096, for 1024 × 1024 pixels.
    pub tokens: usize,
    /// The number of tokens at which mu is [`base_shift`](Self::base_shift): `base_image_seq_len`
    /// in diffusers.
    ///
    /// Default: 256.
    pub base_tokens: usize,
    /// mu at [`base_tokens`](Self::base_tokens).
    ///
    /// Default: 0.5.
    pub base_shift: f64,
    /// The number of tokens at which mu is [`max_shift`](Self::max_shift): `max_image_seq_len` in
    /// diffusers.
    ///
    /// Default: 4096.
    pub max_tokens: usize,
    /// mu at [`max_tokens`](Self::max_tokens).
    ///
    /// Default: 1.15.
    pub max_shift: f64,
    /// Whether the factor s is mu itself instead of e to the power of mu: `time_shift_type`
    /// `linear` in diffusers.
    ///
    /// Default: false.
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
    /// The named ladder, which is also the default.
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
            // This is diffusers' order of operations, because the timesteps are truncated
            // afterwards.
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
            FlowLevels::Ladder(ladder) => {
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
    /// Returns the shift for a change of the number of pixels or tokens, with the same visible
    /// noise: `s = sqrt(to / from)`, equation 23 of <https://arxiv.org/abs/2403.03206>.
    ///
    /// ```
    /// use sd_schedulers::ladders::Shift;
    ///
    /// assert_eq!(Shift::of_area(512 * 512, 1024 * 1024), Shift::By(2.0));
    /// ```
    pub fn of_area(from: usize, to: usize) -> Self {
        Self::By((to as f64 / from as f64).sqrt())
    }

    /// Returns the factor s.
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
    /// Returns the number of tokens of a picture for Stable Diffusion 3 and FLUX: one per 16 × 16
    /// pixels.
    pub fn tokens_of(width: usize, height: usize) -> usize {
        (width / 16) * (height / 16)
    }

    /// Returns mu at [`tokens`](Self::tokens).
    pub fn mu(&self) -> f64 {
        let slope =
            (self.max_shift - self.base_shift) / (self.max_tokens as f64 - self.base_tokens as f64);
        self.tokens as f64 * slope + (self.base_shift - slope * self.base_tokens as f64)
    }
}

/// Returns point `i` of numpy's `linspace(1, end, points)`.
fn on_line(i: usize, points: usize, end: f64) -> f64 {
    match i {
        0 => 1.0,
        _ if i + 1 == points => end,
        _ => 1.0 + i as f64 * ((end - 1.0) / (points - 1) as f64),
    }
}

/// Moves a sigma of a flow model towards noise.
pub(crate) fn shifted(sigma: f64, factor: f64) -> f64 {
    factor * sigma / (1.0 + (factor - 1.0) * sigma)
}

/// Scales `1 - sigma` so that the last sigma becomes `terminal`. A `terminal` of 0 changes nothing.
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
