use super::{Conventions, LadderError, Levels, above_zero, beta, in_range, ramp};
use crate::NoiseSchedule;

/// Rules that pick training timesteps, other than a [`Spacing`](crate::ladders::Spacing): the rules
/// of WebUI and ComfyUI, and of distilled models.
///
/// Between whole timesteps, sigma is interpolated linearly in its logarithm, as in k-diffusion. The
/// numbers below are for T = 1000 and N = 20. On a flow model, every timestep is larger by one,
/// because its timesteps begin at 1.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Timing {
    /// N even timesteps with both ends: 999, 946.42, … 0. This is k-diffusion's `get_sigmas(n)`,
    /// WebUI's Uniform and Normal, and ComfyUI's `normal`.
    Normal,
    /// N + 1 even timesteps with both ends, without the cleanest: 999, 949.05, … 49.95. This is
    /// WebUI's SGM Uniform and ComfyUI's `sgm_uniform`.
    SgmUniform,
    /// Every (T / N)-th trained sigma from the noisy end, with its timestep rounded up: 999, 949,
    /// … 49. This is WebUI's Simple and ComfyUI's `simple`.
    Simple,
    /// Every (T / N)-th timestep, with T / N rounded down, from timestep 1: 951, 901, … 1. This
    /// is WebUI's DDIM and ComfyUI's `ddim_uniform`.
    ///
    /// As in those programs, it has as many rungs as fit. If N does not divide T, that is usually
    /// more than N: 31 for N = 30, 46 for 44 and 56 for 54.
    DdimUniform,
    /// The whole timesteps nearest to the quantiles 1 - i / N of a Beta distribution:
    /// <https://arxiv.org/abs/2407.12173>, ComfyUI's `beta`.
    ///
    /// diffusers and WebUI apply the quantiles to sigmas instead:
    /// [`Shape::Beta`](crate::ladders::Shape::Beta). Equal timesteps are moved apart, so that there
    /// are N of them. ComfyUI has fewer then (on Stable Diffusion from N = 139).
    BetaTimesteps {
        /// `0.01..=50.0`. A value below 1 puts more rungs near the clean end. The paper uses 0.6.
        alpha: f64,
        /// `0.01..=50.0`. A value below 1 puts more rungs near the noisy end. The paper uses 0.6.
        beta: f64,
    },
    /// The noisiest N of the ten timesteps 999, 899, … 99 that SD-Turbo was distilled on:
    /// <https://arxiv.org/abs/2311.17042>, ComfyUI's SDTurboScheduler. At most 10 steps.
    Turbo,
    /// N of the timesteps that a consistency model was distilled on, as diffusers' `LCMScheduler`
    /// and `TCDScheduler` pick them: <https://arxiv.org/abs/2310.04378>. At most as many steps as
    /// there are such timesteps.
    Lcm {
        /// The number of those timesteps, at least 1, at even distances up to T - 1:
        /// `original_inference_steps` in diffusers. The named ladder has 50.
        original_steps: usize,
        /// The part of those timesteps to choose from, counted from the clean end, above 0 and at
        /// most 1. These classes of diffusers use it for image to image. The named ladder has 1.
        strength: f64,
    },
    /// N even timesteps from the noisiest to the cleanest timestep of [`Lcm`](Self::Lcm): 999,
    /// 947.42, … 19. This is WebUI's LCM.
    ///
    /// Sigma is interpolated linearly in its logarithm between two of those timesteps, and the
    /// model is given the nearer one.
    LcmEven {
        /// The number of those timesteps, at least 1. The named ladder has 50.
        original_steps: usize,
    },
}

impl Timing {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::SgmUniform => "sgm-uniform",
            Self::Simple => "simple",
            Self::DdimUniform => "ddim-uniform",
            Self::BetaTimesteps { .. } => "beta-timesteps",
            Self::Turbo => "turbo",
            Self::Lcm { .. } => "lcm",
            Self::LcmEven { .. } => "lcm-even",
        }
    }

    /// Returns the levels in float64, in the schedule's own scaling.
    pub(super) fn levels(
        self,
        schedule: &NoiseSchedule,
        steps: usize,
        conventions: &Conventions,
    ) -> Result<Levels, LadderError> {
        let (trained, whole) = (schedule.num_train_timesteps(), conventions.on_grid_only);
        let mut timesteps = self.places(trained, steps, whole)?;
        for timestep in &mut timesteps {
            *timestep += schedule.first_timestep();
        }
        Ok(match self.coarse(schedule) {
            Some(grid) if !whole => Levels::between(schedule, grid, timesteps),
            _ => {
                let interpolate = NoiseSchedule::interpolate_log;
                Levels::at(timesteps, schedule, conventions, interpolate)
            }
        })
    }

    /// Returns positions among the trained sigmas, 0 to T - 1, noisiest first. With `whole`, they
    /// have no fractions.
    fn places(self, trained: usize, steps: usize, whole: bool) -> Result<Vec<f64>, LadderError> {
        let last = (trained - 1) as f64;
        let part = |i: usize| i as f64 / steps as f64;
        let mut places: Vec<f64> = match self {
            Self::Normal => (0..steps).map(|i| last * (1.0 - ramp(i, steps))).collect(),
            Self::SgmUniform => (0..steps).map(|i| last * (1.0 - part(i))).collect(),
            Self::Simple => {
                let stride = trained as f64 / steps as f64;
                (0..steps)
                    .map(|i| last - (i as f64 * stride).floor())
                    .collect()
            }
            Self::DdimUniform => {
                let rising = (1..trained).step_by((trained / steps).max(1));
                let mut places: Vec<f64> = rising.map(|place| place as f64).collect();
                places.reverse();
                places
            }
            Self::BetaTimesteps { alpha, beta } => {
                in_range("alpha", alpha, BETA)?;
                in_range("beta", beta, BETA)?;
                (0..steps)
                    .map(|i| beta::quantile(1.0 - part(i), alpha, beta) * last)
                    .collect()
            }
            Self::Turbo => {
                let (kept, stride) = grid(10, 1.0, trained, steps)?;
                let points = (0..steps).map(|i| kept - i);
                points.map(|point| (point * stride - 1) as f64).collect()
            }
            Self::Lcm {
                original_steps,
                strength,
            } => {
                above_zero("strength", strength)?;
                in_range("strength", strength, [0.0, 1.0])?;
                let (kept, stride) = grid(original_steps, strength, trained, steps)?;
                let spread = kept as f64 / steps as f64;
                let points = (0..steps).map(|i| kept - (i as f64 * spread).floor() as usize);
                points.map(|point| (point * stride - 1) as f64).collect()
            }
            Self::LcmEven { original_steps } => {
                let (kept, stride) = grid(original_steps, 1.0, trained, 1)?;
                let (noisiest, way) = (kept * stride - 1, (kept - 1) * stride);
                (0..steps)
                    .map(|i| noisiest as f64 - ramp(i, steps) * way as f64)
                    .collect()
            }
        };
        if whole || matches!(self, Self::BetaTimesteps { .. }) {
            for place in &mut places {
                *place = place.round_ties_even();
            }
            set_apart(&mut places);
        }
        Ok(places)
    }

    /// Returns the grid that sigma is interpolated on, if that is not every timestep: its cleanest
    /// timestep, and the distance between its timesteps.
    fn coarse(self, schedule: &NoiseSchedule) -> Option<(f64, f64)> {
        let Self::LcmEven { original_steps } = self else {
            return None;
        };
        let stride = stride(original_steps, schedule.num_train_timesteps()) as f64;
        Some((stride - 1.0 + schedule.first_timestep(), stride))
    }
}

/// The range of a Beta distribution's parameters, which is ComfyUI's.
pub(super) const BETA: [f64; 2] = [0.01, 50.0];

/// Returns how many of `points` positions at even distances are in the part `strength` from the
/// clean end, and the distance.
///
/// The last position is the noisiest. Returns an error if there are fewer than `steps`.
fn grid(
    points: usize,
    strength: f64,
    trained: usize,
    steps: usize,
) -> Result<(usize, usize), LadderError> {
    if points == 0 {
        return Err(LadderError::Value {
            option: "original_steps",
            expected: "at least 1".to_owned(),
            found: 0.0,
        });
    }
    let stride = stride(points, trained);
    let kept = ((points as f64 * strength) as usize).min(trained / stride);
    if steps > kept {
        return Err(LadderError::Steps { steps, max: kept });
    }
    Ok((kept, stride))
}

fn stride(points: usize, trained: usize) -> usize {
    (trained / points).max(1)
}

/// Moves falling whole positions, all 0 or above, apart so that none occurs twice. Positions that
/// are already distinct stay where they are.
fn set_apart(places: &mut [f64]) {
    let count = places.len();
    for (i, place) in places.iter_mut().enumerate() {
        // Leave room for the positions that follow.
        *place = place.max((count - 1 - i) as f64);
    }
    for i in 1..count {
        places[i] = places[i].min(places[i - 1] - 1.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_places_move_apart() {
        let mut places = [9.0, 9.0, 9.0, 5.0, 0.0, 0.0];
        set_apart(&mut places);
        assert_eq!(places, [9.0, 8.0, 7.0, 5.0, 1.0, 0.0]);
        let mut apart = [9.0, 7.0, 1.0, 0.0];
        set_apart(&mut apart);
        assert_eq!(apart, [9.0, 7.0, 1.0, 0.0]);
    }
}
