//! Which noise levels a run visits.

use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{BetaSchedule, NoiseSchedule, Rungs, UnknownName};

/// Sigma of pure noise for the samplers that stay on the grid. diffusers' DDIM keeps an alpha-bar of 0 there, so a
/// sigma that is infinite; with this one x holds no more than 2⁻²⁰ of the sample.
const PURE_NOISE: f64 = (1 << 20) as f64;

/// A rule that picks the noise levels of a run from those the model was trained on.
///
/// With serde it is its [name](Self::NAMED), such as `"karras"`, or `{"karras": {"rho": 5.0, "over": "leading"}}`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub enum Ladder {
    /// Training timesteps at even distances.
    Spaced(Spacing),
    /// Sigmas whose `rho`-th roots are evenly spaced: equation 5 of <https://arxiv.org/abs/2206.00364>.
    Karras {
        /// The larger, the more rungs near the clean end; above 0. The paper's value is 7.
        rho: f32,
        /// `None` spans every trained sigma (k-diffusion, WebUI, diffusers' DPM++); `Some` spans the sigmas which that
        /// spacing would visit (diffusers' Euler and Heun).
        over: Option<Spacing>,
    },
}

/// Which training timesteps stand for a run of N: table 2 of <https://arxiv.org/abs/2305.08891>. For T = 1000, N = 20:
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Spacing {
    /// Multiples of T / N from the clean end, plus the model's `steps_offset` (1): 951, 901, … 1. What Stable Diffusion
    /// was published with.
    Leading,
    /// Both ends included: 999, 946.42, … 0.
    Linspace,
    /// Multiples of T / N from the noisy end: 999, 949, … 49. For models with zero terminal SNR.
    Trailing,
}

/// How a sampler counts and scales, where reference implementations of different samplers differ.
///
/// The default is diffusers' Euler: N points, nothing rounded, first x by the spacing, Karras allowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Conventions {
    /// How many points a spacing has.
    pub counting: Counting,
    /// Whether linspace's timesteps are rounded (half to even) to whole ones. Default false.
    pub integer_timesteps: bool,
    /// Whether the model is told whole timesteps on a Karras ladder: rounded half to even, or on a cosine schedule cut
    /// off after the point, as diffusers does. Sigmas are not touched. Default false.
    pub rounded_karras_timesteps: bool,
    /// What the first x is scaled by.
    pub first_x: FirstX,
    /// Whether the sampler can't leave the training timesteps, which Karras does. Such a sampler also begins a schedule
    /// of zero terminal SNR at pure noise (sigma 2²⁰), where others take alpha-bar 2⁻²⁴ (sigma 4096). Default false.
    pub on_grid_only: bool,
}

/// How many points a spacing has for N steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Counting {
    /// N: Euler, Heun, DDIM.
    #[default]
    N,
    /// N + 1 with the cleanest dropped, for leading and linspace: the DPM-Solver family.
    NPlusOne,
}

/// What unit noise is multiplied by to make the first x.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FirstX {
    /// `sqrt(sigma² + 1)` on the leading spacing and Karras over it, `sigma` on all others: diffusers' Euler and Heun.
    #[default]
    BySpacing,
    /// `sqrt(sigma² + 1)`, which is unit noise in the variance-preserving scaling: DDIM and DPM++.
    VariancePreserving,
}

/// A ladder that can't be made.
#[derive(Clone, Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum LadderError {
    /// No steps, or more than the model has training timesteps.
    #[error("steps: expected 1 to {max}, found {steps}")]
    Steps {
        /// The number asked for.
        steps: usize,
        /// The number of training timesteps.
        max: usize,
    },
    /// The sampler can only stand on training timesteps, and a Karras ladder leaves them.
    #[error(
        "the sampler can only stand on training timesteps: expected a spaced ladder, found Karras"
    )]
    OffGrid,
    /// Karras's rho is not a finite number above 0.
    #[error("rho: expected a finite number above 0, found {0}")]
    Rho(f32),
    /// A run needs one sigma per timestep and a last one of 0.
    #[error(
        "expected one timestep or more and one sigma more than timesteps, found {sigmas} sigmas and {timesteps} timesteps"
    )]
    Lengths {
        /// The number of sigmas.
        sigmas: usize,
        /// The number of timesteps.
        timesteps: usize,
    },
    /// A sigma does not fall below the one before it, is not finite, or the last is not 0.
    #[error(
        "sigma {index}: expected finite sigmas that fall strictly to a last one of 0, found {sigma}"
    )]
    Sigma {
        /// Its place.
        index: usize,
        /// The value found.
        sigma: f32,
    },
    /// A timestep is not a finite number from 0 to T - 1.
    #[error("timestep {index}: expected 0 to {max}, found {timestep}")]
    Timestep {
        /// Its place.
        index: usize,
        /// The value found.
        timestep: f32,
        /// T - 1.
        max: usize,
    },
    /// The scale of the first x is not a finite number above 0.
    #[error("initial scale: expected a finite number above 0, found {0}")]
    InitialScale(f32),
}

/// A ladder as serde has it.
#[derive(Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = r#"expected a ladder's name or {"karras": {"rho": …, "over": …}}"#
)]
enum Written {
    Name(String),
    Karras(WrittenLadder),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenLadder {
    karras: WrittenKarras,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenKarras {
    rho: f32,
    over: Option<Spacing>,
}

impl From<Ladder> for Written {
    fn from(ladder: Ladder) -> Self {
        match (ladder.name(), ladder) {
            (None, Ladder::Karras { rho, over }) => Self::Karras(WrittenLadder {
                karras: WrittenKarras { rho, over },
            }),
            (name, _) => Self::Name(name.expect("every spacing has a name").to_owned()),
        }
    }
}

impl TryFrom<Written> for Ladder {
    type Error = UnknownName;

    fn try_from(written: Written) -> Result<Self, UnknownName> {
        match written {
            Written::Name(name) => name.parse(),
            Written::Karras(WrittenLadder { karras }) => Ok(Self::Karras {
                rho: karras.rho,
                over: karras.over,
            }),
        }
    }
}

impl FromStr for Ladder {
    type Err = UnknownName;

    /// One of [`NAMED`](Ladder::NAMED), upper or lower case.
    fn from_str(name: &str) -> Result<Self, UnknownName> {
        let named = |(known, _): &&(&str, Self)| known.eq_ignore_ascii_case(name);
        match Self::NAMED.iter().find(named) {
            Some((_, ladder)) => Ok(*ladder),
            None => Err(UnknownName {
                what: "ladder",
                name: name.to_owned(),
                known: Self::NAMED.iter().map(|(known, _)| *known).collect(),
            }),
        }
    }
}

impl Ladder {
    /// The ladders that have a name, for a command line and for serde.
    pub const NAMED: [(&'static str, Self); 4] = [
        ("leading", Self::leading()),
        ("linspace", Self::linspace()),
        ("trailing", Self::trailing()),
        ("karras", Self::karras()),
    ];

    /// Its name, if it is one of [`NAMED`](Self::NAMED).
    pub fn name(&self) -> Option<&'static str> {
        let named = Self::NAMED.iter().find(|(_, ladder)| ladder == self);
        named.map(|(name, _)| *name)
    }

    /// [`Spacing::Leading`].
    pub const fn leading() -> Self {
        Self::Spaced(Spacing::Leading)
    }

    /// [`Spacing::Linspace`].
    pub const fn linspace() -> Self {
        Self::Spaced(Spacing::Linspace)
    }

    /// [`Spacing::Trailing`].
    pub const fn trailing() -> Self {
        Self::Spaced(Spacing::Trailing)
    }

    /// [`Karras`](Self::Karras) with rho 7 over every trained sigma.
    pub const fn karras() -> Self {
        Self::Karras {
            rho: 7.0,
            over: None,
        }
    }

    /// [`Karras`](Self::Karras) with rho 7 over the sigmas of a spacing.
    pub const fn karras_over(spacing: Spacing) -> Self {
        Self::Karras {
            rho: 7.0,
            over: Some(spacing),
        }
    }

    /// The noise levels of a run of `steps` steps.
    ///
    /// Equal to diffusers' wherever diffusers gives a ladder. Where its formulas would leave the trained range or
    /// repeat a timestep, timestep i is at most T - 1 - i, so every number of steps works. Two formulas are not
    /// followed: a one-point linspace starts at T - 1 (numpy's is 0, the clean end), and trailing has N points where
    /// rounding gives `np.arange` N + 1.
    ///
    /// # Errors
    /// [`LadderError::Steps`] for `steps` outside 1 to T, [`LadderError::OffGrid`] for Karras where
    /// `conventions.on_grid_only`, [`LadderError::Rho`], and [`LadderError::Sigma`] where sigmas are too close to each
    /// other for float32.
    pub fn rungs(
        &self,
        schedule: &Arc<NoiseSchedule>,
        steps: usize,
        conventions: &Conventions,
    ) -> Result<Rungs, LadderError> {
        let max = schedule.num_train_timesteps();
        if !(1..=max).contains(&steps) {
            return Err(LadderError::Steps { steps, max });
        }
        let (sigmas, timesteps, spacing) = match *self {
            Self::Spaced(spacing) => {
                let timesteps = spacing.timesteps(schedule, steps, conventions);
                let sigma = |&timestep: &f64| {
                    let at_the_end =
                        timestep == (max - 1) as f64 && schedule.has_zero_terminal_snr();
                    if conventions.on_grid_only && at_the_end {
                        PURE_NOISE
                    } else {
                        schedule.interpolate(timestep)
                    }
                };
                (
                    timesteps.iter().map(sigma).collect(),
                    timesteps,
                    Some(spacing),
                )
            }
            Self::Karras { .. } if conventions.on_grid_only => return Err(LadderError::OffGrid),
            Self::Karras { rho, .. } if !(rho > 0.0 && rho.is_finite()) => {
                return Err(LadderError::Rho(rho));
            }
            Self::Karras { rho, over } => {
                let sigmas = karras(over, rho.into(), schedule, steps, conventions);
                let whole = conventions.rounded_karras_timesteps;
                let timestep = |&sigma: &f64| match schedule.invert(sigma) {
                    timestep if !whole => timestep,
                    timestep if schedule.beta_schedule() == BetaSchedule::Cosine => {
                        timestep.trunc()
                    }
                    timestep => timestep.round_ties_even(),
                };
                let timesteps: Vec<f64> = sigmas.iter().map(timestep).collect();
                (sigmas, timesteps, over)
            }
        };
        let first = sigmas[0] as f32;
        let initial_scale = match (conventions.first_x, spacing) {
            (FirstX::VariancePreserving, _) | (_, Some(Spacing::Leading)) => {
                (first * first + 1.0).sqrt()
            }
            _ => first,
        };
        let sigmas = sigmas
            .iter()
            .map(|&sigma: &f64| sigma as f32)
            .chain([0.0])
            .collect();
        let timesteps = timesteps.iter().map(|&timestep| timestep as f32).collect();
        Rungs::new(schedule, sigmas, timesteps, initial_scale)
    }
}

impl Spacing {
    /// In float64, as numpy computes them, noisiest first.
    fn timesteps(
        self,
        schedule: &NoiseSchedule,
        steps: usize,
        conventions: &Conventions,
    ) -> Vec<f64> {
        let trained = schedule.num_train_timesteps();
        let extra = match conventions.counting {
            Counting::N => 0,
            Counting::NPlusOne => 1,
        };
        let last = (trained - 1) as f64;
        let formula = |i: usize| {
            // The point's place counted from the clean end, which numpy computes from.
            let place = steps + extra - 1 - i;
            match self {
                Self::Leading => {
                    (place * (trained / (steps + extra)).max(1) + schedule.steps_offset()) as f64
                }
                Self::Linspace => {
                    let intervals = steps + extra - 1;
                    let timestep = if place == intervals {
                        last
                    } else {
                        place as f64 * (last / intervals as f64)
                    };
                    if conventions.integer_timesteps {
                        timestep.round_ties_even()
                    } else {
                        timestep
                    }
                }
                Self::Trailing => {
                    let trained = trained as f64;
                    // np.arange takes the difference of its first two values for its step.
                    let step = (trained - trained / steps as f64) - trained;
                    (trained + i as f64 * step).round_ties_even() - 1.0
                }
            }
        };
        (0..steps)
            .map(|i| formula(i).min(last - i as f64))
            .collect()
    }
}

/// Equation 5 of <https://arxiv.org/abs/2206.00364>.
fn karras(
    over: Option<Spacing>,
    rho: f64,
    schedule: &NoiseSchedule,
    steps: usize,
    conventions: &Conventions,
) -> Vec<f64> {
    let (max, min) = match over {
        None => (schedule.sigma_max().into(), schedule.sigma_min().into()),
        Some(spacing) => {
            let timesteps = spacing.timesteps(schedule, steps, conventions);
            (
                schedule.interpolate(timesteps[0]),
                schedule.interpolate(timesteps[steps - 1]),
            )
        }
    };
    let root = |sigma: f64| sigma.powf(1.0 / rho);
    let ramp = |i: usize| {
        if i == 0 {
            0.0
        } else {
            i as f64 / (steps - 1) as f64
        }
    };
    (0..steps)
        .map(|i| (root(max) + ramp(i) * (root(min) - root(max))).powf(rho))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SchedulerConfig;

    fn schedule(config: &SchedulerConfig) -> Arc<NoiseSchedule> {
        Arc::new(NoiseSchedule::new(config).unwrap())
    }

    #[test]
    fn names_and_serde() {
        for (name, ladder) in Ladder::NAMED {
            assert_eq!(name.to_uppercase().parse(), Ok(ladder));
            assert_eq!(ladder.name(), Some(name));
        }
        let written = [
            (Ladder::karras(), r#""karras""#),
            (
                Ladder::karras_over(Spacing::Leading),
                r#"{"karras":{"rho":7.0,"over":"leading"}}"#,
            ),
        ];
        for (ladder, json) in written {
            assert_eq!(serde_json::to_string(&ladder).unwrap(), json);
            assert_eq!(serde_json::from_str::<Ladder>(json).unwrap(), ladder);
        }
        let error = serde_json::from_str::<Ladder>(r#""cosine""#).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("expected leading, linspace, trailing, karras")
        );
        for wrong in ["5", r#"{"karras":{"rho":7.0,"over":null},"x":1}"#] {
            let error = serde_json::from_str::<Ladder>(wrong).unwrap_err();
            assert!(error.to_string().contains("a ladder's name"), "{error}");
        }
    }

    #[test]
    fn the_documented_spacings() {
        let schedule = schedule(&SchedulerConfig::default());
        let conventions = Conventions::default();
        let ends = |spacing: Spacing| {
            let rungs = Ladder::Spaced(spacing)
                .rungs(&schedule, 20, &conventions)
                .unwrap();
            (
                rungs.timesteps()[0],
                rungs.timesteps()[1],
                rungs.timesteps()[19],
            )
        };
        assert_eq!(ends(Spacing::Leading), (951.0, 901.0, 1.0));
        assert_eq!(ends(Spacing::Linspace), (999.0, 946.4211, 0.0));
        assert_eq!(ends(Spacing::Trailing), (999.0, 949.0, 49.0));
    }

    #[test]
    fn rho_bends_the_ladder() {
        let schedule = schedule(&SchedulerConfig::default());
        let middle = |rho| {
            let rungs =
                Ladder::Karras { rho, over: None }.rungs(&schedule, 11, &Conventions::default());
            rungs.unwrap().sigmas()[5]
        };
        assert!(middle(1.0) > middle(3.0) && middle(3.0) > middle(7.0));
        assert!((middle(1.0) - (schedule.sigma_max() + schedule.sigma_min()) / 2.0).abs() < 1e-5);
    }

    #[test]
    fn a_one_point_linspace_starts_at_the_noisy_end() {
        let schedule = schedule(&SchedulerConfig::default());
        let rungs = Ladder::linspace()
            .rungs(&schedule, 1, &Conventions::default())
            .unwrap();
        assert_eq!(rungs.timesteps(), [999.0]);
        assert_eq!(rungs.sigmas(), [schedule.sigma_max(), 0.0]);
    }

    #[test]
    fn wrong_requests_are_errors() {
        let schedule = schedule(&SchedulerConfig::default());
        let rungs = |ladder: Ladder, steps| ladder.rungs(&schedule, steps, &Conventions::default());
        assert_eq!(
            rungs(Ladder::leading(), 0),
            Err(LadderError::Steps {
                steps: 0,
                max: 1000
            })
        );
        assert_eq!(
            rungs(Ladder::leading(), 1001),
            Err(LadderError::Steps {
                steps: 1001,
                max: 1000
            })
        );
        for rho in [0.0, -1.0, f32::INFINITY] {
            assert_eq!(
                rungs(Ladder::Karras { rho, over: None }, 5),
                Err(LadderError::Rho(rho))
            );
        }
        let nan = rungs(
            Ladder::Karras {
                rho: f32::NAN,
                over: None,
            },
            5,
        );
        assert!(matches!(nan, Err(LadderError::Rho(rho)) if rho.is_nan()));
        for rho in [1e-30, 1e30] {
            assert!(
                matches!(
                    rungs(Ladder::Karras { rho, over: None }, 5),
                    Err(LadderError::Sigma { .. })
                ),
                "{rho}"
            );
        }
        let on_grid = Conventions {
            on_grid_only: true,
            ..Default::default()
        };
        assert_eq!(
            Ladder::karras().rungs(&schedule, 5, &on_grid),
            Err(LadderError::OffGrid)
        );
    }
}
