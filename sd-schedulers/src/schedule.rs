//! The noise levels a model was trained on.

use std::f64::consts::PI;

use crate::{BetaSchedule, ConfigError, SchedulerConfig};

/// The noise levels of a model: alpha-bar and sigma of each training timestep.
///
/// In the variance-exploding scaling a noisy sample is the clean one plus `sigma` times unit noise, and
/// `sigma = sqrt((1 - alpha-bar) / alpha-bar)`. The arithmetic is that of torch's float32 in diffusers: alpha-bars are
/// equal bit for bit, sigmas within one unit in the last place, as torch takes its square roots from MKL, which does
/// not round all of them correctly.
#[derive(Clone, Debug, PartialEq)]
pub struct NoiseSchedule {
    alpha_bars: Vec<f32>,
    sigmas: Vec<f32>,
    log_sigmas: Vec<f32>,
    steps_offset: usize,
    beta_schedule: BetaSchedule,
    zero_terminal_snr: bool,
}

impl NoiseSchedule {
    /// The schedule of a configuration.
    ///
    /// With `rescale_betas_zero_snr` the last alpha-bar would be 0 and sigma infinite; it is 2⁻²⁴ (sigma 4096), as in
    /// diffusers' Euler and DPM-Solver classes. (diffusers' DDIM keeps the 0, and can then only run models that do not
    /// predict epsilon: see [`Conventions::on_grid_only`](crate::Conventions::on_grid_only).)
    ///
    /// # Errors
    /// What [`SchedulerConfig::validate`] says, and [`ConfigError::Sigmas`] when the betas are so small or so large
    /// that the sigmas, as float32, do not rise with every timestep or are infinite.
    pub fn new(config: &SchedulerConfig) -> Result<Self, ConfigError> {
        config.validate()?;
        let mut betas = betas(config);
        if config.rescale_betas_zero_snr {
            rescale_zero_terminal_snr(&mut betas);
        }
        let mut alpha_bars = alpha_bars(&betas);
        if config.rescale_betas_zero_snr {
            alpha_bars[config.num_train_timesteps - 1] = 2f32.powi(-24);
        }
        let sigmas: Vec<f32> = alpha_bars
            .iter()
            .map(|bar| ((1.0 - bar) / bar).sqrt())
            .collect();
        let mut previous = 0.0;
        for (timestep, &sigma) in sigmas.iter().enumerate() {
            if !(sigma > previous && sigma.is_finite()) {
                return Err(ConfigError::Sigmas { timestep, sigma });
            }
            previous = sigma;
        }
        let log_sigmas = sigmas
            .iter()
            .map(|&sigma| f64::from(sigma).ln() as f32)
            .collect();
        let SchedulerConfig {
            steps_offset,
            beta_schedule,
            rescale_betas_zero_snr: zero_terminal_snr,
            ..
        } = *config;
        Ok(Self {
            alpha_bars,
            sigmas,
            log_sigmas,
            steps_offset,
            beta_schedule,
            zero_terminal_snr,
        })
    }

    /// Alpha-bar (the running product of 1 - beta) of each training timestep: falls from nearly 1 to nearly 0.
    pub fn alpha_bars(&self) -> &[f32] {
        &self.alpha_bars
    }

    /// Sigma of each training timestep: finite, above 0, strictly rising.
    pub fn sigmas(&self) -> &[f32] {
        &self.sigmas
    }

    /// The number of training timesteps T.
    pub fn num_train_timesteps(&self) -> usize {
        self.sigmas.len()
    }

    /// Whether the last timestep stands for pure noise (`rescale_betas_zero_snr`).
    pub fn has_zero_terminal_snr(&self) -> bool {
        self.zero_terminal_snr
    }

    /// What the leading spacing adds to its timesteps.
    pub fn steps_offset(&self) -> usize {
        self.steps_offset
    }

    /// How the betas rise.
    pub fn beta_schedule(&self) -> BetaSchedule {
        self.beta_schedule
    }

    /// The smallest sigma, of timestep 0. Stable Diffusion: 0.0292.
    pub fn sigma_min(&self) -> f32 {
        self.sigmas[0]
    }

    /// The largest sigma, of timestep T - 1. Stable Diffusion: 14.61.
    pub fn sigma_max(&self) -> f32 {
        self.sigmas[self.sigmas.len() - 1]
    }

    /// Sigma at a timestep, interpolated linearly between whole ones; the end's beyond either end.
    pub fn sigma_at(&self, timestep: f32) -> f32 {
        self.interpolate(f64::from(timestep)) as f32
    }

    /// The timestep of a sigma, interpolated linearly in log sigma and not rounded: 0 to T - 1; an end's beyond it.
    /// k-diffusion's `sigma_to_t` and diffusers' `_sigma_to_t`.
    pub fn timestep_at(&self, sigma: f32) -> f32 {
        self.invert(f64::from(sigma)) as f32
    }

    /// [`sigma_at`](Self::sigma_at) in float64, as `np.interp` computes it.
    pub(crate) fn interpolate(&self, timestep: f64) -> f64 {
        let last = self.sigmas.len() - 1;
        let timestep = timestep.clamp(0.0, last as f64);
        let low = (timestep as usize).min(last - 1);
        let (from, to) = (f64::from(self.sigmas[low]), f64::from(self.sigmas[low + 1]));
        (to - from) * (timestep - low as f64) + from
    }

    /// [`timestep_at`](Self::timestep_at) in float64.
    pub(crate) fn invert(&self, sigma: f64) -> f64 {
        let log_sigma = sigma.max(1e-10).ln();
        let at_most = self
            .log_sigmas
            .partition_point(|&log| f64::from(log) <= log_sigma);
        let low = at_most.saturating_sub(1).min(self.log_sigmas.len() - 2);
        let (from, to) = (self.log_sigmas[low], self.log_sigmas[low + 1]);
        let weight = ((f64::from(from) - log_sigma) / f64::from(from - to)).clamp(0.0, 1.0);
        (1.0 - weight) * low as f64 + weight * (low + 1) as f64
    }
}

fn betas(config: &SchedulerConfig) -> Vec<f32> {
    let SchedulerConfig {
        beta_start,
        beta_end,
        num_train_timesteps,
        ..
    } = *config;
    match (&config.trained_betas, config.beta_schedule) {
        (Some(betas), _) => betas.clone(),
        (None, BetaSchedule::Linear) => {
            linspace(beta_start, beta_end, num_train_timesteps).collect()
        }
        (None, BetaSchedule::ScaledLinear) => {
            linspace(beta_start.sqrt(), beta_end.sqrt(), num_train_timesteps)
                .map(|root| root * root)
                .collect()
        }
        (None, BetaSchedule::Cosine) => {
            let bar = |t: usize| {
                ((t as f64 / num_train_timesteps as f64 + 0.008) / 1.008 * PI / 2.0)
                    .cos()
                    .powi(2)
            };
            (0..num_train_timesteps)
                .map(|t| (1.0 - bar(t + 1) / bar(t)).min(0.999) as f32)
                .collect()
        }
    }
}

/// `torch.linspace` in float32, which counts from whichever end is nearer and fuses the product with the sum.
fn linspace(start: f64, end: f64, count: usize) -> impl Iterator<Item = f32> {
    let (start, end) = (start as f32, end as f32);
    let step = (end - start) / (count - 1) as f32;
    (0..count).map(move |i| match i < count / 2 {
        true => step.mul_add(i as f32, start),
        false => (-step).mul_add((count - 1 - i) as f32, end),
    })
}

/// `torch.cumprod` of 1 - beta: the product runs in float64, each element is rounded to float32.
fn alpha_bars(betas: &[f32]) -> Vec<f32> {
    let products = betas.iter().scan(1.0_f64, |product, beta| {
        *product *= f64::from(1.0 - beta);
        Some(*product as f32)
    });
    products.collect()
}

/// Algorithm 1 of <https://arxiv.org/abs/2305.08891>: shift and scale sqrt(alpha-bar) so that it ends at 0.
fn rescale_zero_terminal_snr(betas: &mut [f32]) {
    let mut roots: Vec<f32> = alpha_bars(betas).iter().map(|bar| bar.sqrt()).collect();
    let (first, last) = (roots[0], roots[roots.len() - 1]);
    let scale = first / (first - last);
    for root in &mut roots {
        *root = (*root - last) * scale;
    }
    let mut previous = 1.0;
    for (beta, root) in betas.iter_mut().zip(roots) {
        let bar = root * root;
        *beta = 1.0 - bar / previous;
        previous = bar;
    }
}

#[cfg(test)]
mod tests {
    use safetensors::SafeTensors;
    use serde_json::Value;

    use super::*;

    fn floats(bits: &Value) -> Vec<f32> {
        bits.as_array()
            .unwrap()
            .iter()
            .map(|b| f32::from_bits(b.as_u64().unwrap() as u32))
            .collect()
    }

    /// Alpha-bars bit for bit, but for those that went through MKL's square root (1.2e-7 off where it rounds wrongly):
    /// zero-SNR subtracts such roots, which near the noisy end leaves an error of 1e-5; near the clean end sigma has
    /// 1 - alpha-bar of 0.001 in it, in which two units in the last place of alpha-bar are 1e-4. Other interpolated
    /// sigmas: the same float64 operations on square roots, so 1.2e-7. Timesteps back from sigmas go through two of
    /// numpy's float32 logs, which are off by up to 2.6e-7 where neighbouring ones are 3.1e-3 apart at the closest: 2e-4.
    #[test]
    fn equals_diffusers() {
        let golden: Value =
            serde_json::from_str(include_str!("../tests/golden/schedules.json")).unwrap();
        let tensors = include_bytes!("../tests/golden/schedules.safetensors");
        let tensors = SafeTensors::deserialize(tensors).unwrap();
        let cases = golden["schedules"].as_array().unwrap();
        assert_eq!(cases.len(), tensors.len());
        for case in cases {
            let name = case["name"].as_str().unwrap();
            let config = SchedulerConfig::from_json(&case["config"].to_string()).unwrap();
            let schedule = NoiseSchedule::new(&config).unwrap();
            let expected = tensors.tensor(name).unwrap();
            let expected: Vec<f32> = expected
                .data()
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
                .collect();
            assert_eq!(schedule.alpha_bars().len(), expected.len(), "{name}");
            let tolerance = if config.rescale_betas_zero_snr {
                1e-5
            } else {
                0.0
            };
            for (t, (found, expected)) in schedule.alpha_bars().iter().zip(&expected).enumerate() {
                let error = (found - expected).abs() / expected;
                assert!(
                    error <= tolerance,
                    "{name}: alpha-bar {t}: {found} is off by {error:e}"
                );
            }

            let (timesteps, sigmas) = (floats(&case["timesteps"]), floats(&case["sigmas"]));
            for (t, s) in timesteps.iter().zip(&sigmas) {
                let found = schedule.sigma_at(*t);
                let tolerance = if config.rescale_betas_zero_snr {
                    1e-4
                } else {
                    1.2e-7
                };
                assert!(
                    (found - s).abs() <= tolerance * s,
                    "{name}: sigma at {t}: {found} != {s}"
                );
            }
            for (s, t) in sigmas.iter().zip(floats(&case["back"])) {
                let found = schedule.timestep_at(*s);
                assert!(
                    (found - t).abs() < 2e-4,
                    "{name}: timestep at {s}: {found} != {t}"
                );
            }
        }
    }

    #[test]
    fn betas_without_a_usable_schedule_are_an_error() {
        let flat = SchedulerConfig {
            beta_start: 1e-12,
            beta_end: 1e-12,
            ..Default::default()
        };
        assert_eq!(
            NoiseSchedule::new(&flat),
            Err(ConfigError::Sigmas {
                timestep: 0,
                sigma: 0.0
            })
        );
        let steep = SchedulerConfig {
            beta_start: 0.9,
            beta_end: 0.9,
            ..Default::default()
        };
        assert!(matches!(
            NoiseSchedule::new(&steep),
            Err(ConfigError::Sigmas { .. })
        ));
        let wrong = SchedulerConfig {
            num_train_timesteps: 0,
            ..Default::default()
        };
        assert!(matches!(
            NoiseSchedule::new(&wrong),
            Err(ConfigError::Value {
                key: "num_train_timesteps",
                ..
            })
        ));
    }

    #[test]
    fn lookups_survive_what_is_no_number() {
        let schedule = NoiseSchedule::new(&SchedulerConfig::default()).unwrap();
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -1.0, 0.0, 1e30] {
            schedule.sigma_at(odd);
            schedule.timestep_at(odd);
        }
    }
}
