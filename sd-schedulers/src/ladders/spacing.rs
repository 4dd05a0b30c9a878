use serde::{Deserialize, Serialize};

use super::{Conventions, PointCount};
use crate::NoiseSchedule;

/// Which training timesteps the N rungs of a run have: table 2 of
/// <https://arxiv.org/abs/2305.08891>.
///
/// The numbers below are for T = 1000 and N = 20.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Spacing {
    /// Multiples of T / N from the clean end, plus the model's `steps_offset` (1 here): 951, 901,
    /// … 1. Stable Diffusion was published with this spacing.
    Leading,
    /// Even distances with both ends: 999, 946.42, … 0.
    Linspace,
    /// Multiples of T / N from the noisy end: 999, 949, … 49. For models with zero terminal SNR.
    Trailing,
}

impl Spacing {
    /// Returns the name in this crate's serde form and in diffusers' `timestep_spacing`.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Leading => "leading",
            Self::Linspace => "linspace",
            Self::Trailing => "trailing",
        }
    }

    /// Returns the timesteps in float64, as numpy computes them, noisiest first.
    pub(super) fn timesteps(
        self,
        schedule: &NoiseSchedule,
        steps: usize,
        conventions: &Conventions,
    ) -> Vec<f64> {
        let trained = schedule.num_train_timesteps();
        let extra = match conventions.counting {
            PointCount::N => 0,
            PointCount::NPlusOne => 1,
        };
        let last = (trained - 1) as f64;
        let formula = |i: usize| {
            // numpy computes from the clean end, so `place` counts from there.
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
                    // `np.arange` takes the difference of its first two values as its step.
                    let step = (trained - trained / steps as f64) - trained;
                    (trained + i as f64 * step).round_ties_even() - 1.0
                }
            }
        };
        (0..steps)
            .map(|i| formula(i).min(last - i as f64) + schedule.first_timestep())
            .collect()
    }
}
