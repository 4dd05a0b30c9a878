//! What a model was trained on: its noise levels, and the quantity that it predicts.
//!
//! A [`NoiseSchedule`] is made from a [`SchedulerConfig`]. It covers [betas](BetaSchedule), zero
//! terminal SNR, flow matching and EDM. [`Prediction`] converts a model's output to the denoised
//! sample, which [`ClipSample`] may clip.

mod betas;
mod clip;
mod prediction;
#[cfg(test)]
mod tests;

pub use betas::BetaSchedule;
pub use clip::ClipSample;
pub use prediction::Prediction;

use crate::{SchedulerConfig, config::ConfigError, ladders::NoisePath};
use betas::{alpha_bars, betas, rescale_zero_terminal_snr};

/// The noise levels of a model: alpha-bar and sigma of each training timestep.
///
/// The kind of schedule follows from what the model predicts. T is the number of training timesteps
/// ([`SchedulerConfig::num_train_timesteps`]).
/// - [`Epsilon`](Prediction::Epsilon), [`V`](Prediction::V) and [`Sample`](Prediction::Sample): the
///   betas of a diffusion process. `sigma = sqrt((1 - alpha-bar) / alpha-bar)`, and the timesteps
///   are 0 to T - 1.
/// - [`Flow`](Prediction::Flow): the straight path between sample and noise. Sigma goes from 1 / T
///   to 1, and the timestep is `sigma · T`.
/// - [`Edm`](Prediction::Edm): a range of sigmas from the configuration. The timestep is
///   `ln(sigma) / 4`. There are no training timesteps; T sigmas on a Karras ladder over the range
///   stand for them.
///
/// In the variance-exploding scaling, a noisy sample is the clean one plus `sigma` times unit
/// noise.
///
/// For a diffusion process, the arithmetic follows diffusers, which uses torch in float32.
/// Alpha-bars are equal bit for bit. Sigmas are equal within one unit in the last place, because
/// torch takes its square roots from MKL, which does not round all of them correctly.
#[derive(Clone, Debug, PartialEq)]
pub struct NoiseSchedule {
    kind: Kind,
    alpha_bars: Vec<f32>,
    sigmas: Vec<f32>,
    log_sigmas: Vec<f32>,
    steps_offset: usize,
    beta_schedule: BetaSchedule,
    zero_terminal_snr: bool,
}

/// How the sigmas and timesteps of a schedule are defined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// By the betas of a diffusion process.
    Trained,
    /// By the straight path.
    Flow,
    /// By a range of sigmas.
    Edm,
}

impl Kind {
    pub(crate) fn of(prediction: Prediction) -> Self {
        match prediction {
            Prediction::Epsilon | Prediction::V | Prediction::Sample => Self::Trained,
            Prediction::Flow => Self::Flow,
            Prediction::Edm { .. } => Self::Edm,
        }
    }
}

impl NoiseSchedule {
    /// Makes the schedule of a configuration.
    ///
    /// With `rescale_betas_zero_snr`, the last alpha-bar would be 0 and the last sigma infinite.
    /// The last alpha-bar is 2⁻²⁴ (sigma 4096) instead, as in diffusers' Euler and DPM-Solver
    /// classes. If the alpha-bar before it is no larger than 2⁻²⁴, the last one is a quarter
    /// of that. This happens with linear betas, where diffusers' sigmas fall at the end.
    ///
    /// diffusers' DDIM keeps the 0, so it cannot run models that predict epsilon: see
    /// [`Conventions::on_grid_only`](crate::ladders::Conventions::on_grid_only).
    ///
    /// # Errors
    /// - The errors of [`SchedulerConfig::validate`].
    /// - [`ConfigError::Sigmas`] if the betas, or the range of an EDM model, give sigmas that are
    ///   infinite as float32, or that do not rise with every timestep.
    pub fn new(config: &SchedulerConfig) -> Result<Self, ConfigError> {
        config.validate()?;
        match Kind::of(config.prediction) {
            Kind::Trained => Self::trained(config),
            Kind::Flow => Self::flow(config),
            Kind::Edm => Self::edm(config),
        }
    }

    fn trained(config: &SchedulerConfig) -> Result<Self, ConfigError> {
        let mut betas = betas(config);
        if config.rescale_betas_zero_snr {
            rescale_zero_terminal_snr(&mut betas);
        }
        let mut alpha_bars = alpha_bars(&betas);
        if config.rescale_betas_zero_snr {
            let last = config.num_train_timesteps - 1;
            let (before, lowest) = (alpha_bars[last - 1], 2f32.powi(-24));
            alpha_bars[last] = if before > lowest {
                lowest
            } else {
                before / 4.0
            };
        }
        let sigma = |bar: &f32| ((1.0 - bar) / bar).sqrt();
        let sigmas = alpha_bars.iter().map(sigma).collect();
        Self::of(Kind::Trained, config, sigmas, alpha_bars)
    }

    fn flow(config: &SchedulerConfig) -> Result<Self, ConfigError> {
        let trained = config.num_train_timesteps;
        let sigmas: Vec<f32> = (1..=trained)
            .map(|timestep| (timestep as f64 / trained as f64) as f32)
            .collect();
        // The share of the sample in the variance of x.
        let alpha_bar = |&sigma: &f32| {
            let (signal, noise) = ((1.0 - sigma) * (1.0 - sigma), sigma * sigma);
            signal / (signal + noise)
        };
        let alpha_bars = sigmas.iter().map(alpha_bar).collect();
        Self::of(Kind::Flow, config, sigmas, alpha_bars)
    }

    fn edm(config: &SchedulerConfig) -> Result<Self, ConfigError> {
        // Equation 5 of arXiv 2206.00364 with the paper's rho of 7.
        let [min, max] = config.sigma_range.map(|sigma| sigma.powf(1.0 / 7.0));
        let last = (config.num_train_timesteps - 1) as f64;
        let sigmas: Vec<f32> = (0..config.num_train_timesteps)
            .map(|place| (min + place as f64 / last * (max - min)).powi(7) as f32)
            .collect();
        let alpha_bars = sigmas.iter().map(|sigma| 1.0 / (1.0 + sigma * sigma));
        let alpha_bars = alpha_bars.collect();
        Self::of(Kind::Edm, config, sigmas, alpha_bars)
    }

    fn of(
        kind: Kind,
        config: &SchedulerConfig,
        sigmas: Vec<f32>,
        alpha_bars: Vec<f32>,
    ) -> Result<Self, ConfigError> {
        let mut previous = 0.0;
        for (timestep, &sigma) in sigmas.iter().enumerate() {
            if !(sigma > previous && sigma.is_finite()) {
                return Err(ConfigError::Sigmas { timestep, sigma });
            }
            previous = sigma;
        }
        Ok(Self {
            kind,
            log_sigmas: logarithms(&sigmas),
            alpha_bars,
            sigmas,
            steps_offset: config.steps_offset,
            beta_schedule: config.beta_schedule,
            zero_terminal_snr: kind == Kind::Trained && config.rescale_betas_zero_snr,
        })
    }

    /// Returns the scaling of the sigmas: [`NoisePath::Flow`] for a flow model, else
    /// [`NoisePath::Exploding`].
    pub fn path(&self) -> NoisePath {
        match self.kind {
            Kind::Flow => NoisePath::Flow,
            Kind::Trained | Kind::Edm => NoisePath::Exploding,
        }
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// Returns the alpha-bar of each training timestep.
    ///
    /// Alpha-bar is the share of the clean sample in the variance of the noisy one. It falls from
    /// nearly 1 to nearly 0, and to 0 on a flow model. For a diffusion model, it is the running
    /// product of 1 - beta.
    pub fn alpha_bars(&self) -> &[f32] {
        &self.alpha_bars
    }

    /// Returns the sigma of each training timestep: finite, above 0 and strictly rising.
    ///
    /// The first sigma belongs to timestep 0. On a flow model, it belongs to timestep 1.
    pub fn sigmas(&self) -> &[f32] {
        &self.sigmas
    }

    /// Returns the number of training timesteps, T.
    pub fn num_train_timesteps(&self) -> usize {
        self.sigmas.len()
    }

    /// Returns the smallest and the largest timestep that the model accepts.
    ///
    /// The range is 0 to T - 1 for a diffusion model and 0 to T for a flow model. An EDM model
    /// accepts every finite timestep.
    pub fn timestep_range(&self) -> [f32; 2] {
        let trained = self.num_train_timesteps() as f32;
        match self.kind {
            Kind::Trained => [0.0, trained - 1.0],
            Kind::Flow => [0.0, trained],
            Kind::Edm => [f32::MIN, f32::MAX],
        }
    }

    /// The timestep of the first of [`sigmas`](Self::sigmas). It converts a position in the list to
    /// a timestep.
    pub(crate) fn first_timestep(&self) -> f64 {
        match self.kind {
            Kind::Flow => 1.0,
            Kind::Trained | Kind::Edm => 0.0,
        }
    }

    /// Returns whether the last timestep stands for pure noise (`rescale_betas_zero_snr`).
    pub fn has_zero_terminal_snr(&self) -> bool {
        self.zero_terminal_snr
    }

    /// Returns the offset that the leading spacing adds to its timesteps.
    pub fn steps_offset(&self) -> usize {
        self.steps_offset
    }

    /// Returns how the betas rise.
    pub fn beta_schedule(&self) -> BetaSchedule {
        self.beta_schedule
    }

    /// Returns the smallest sigma of the training. It is 0.0292 for Stable Diffusion and 1 / T for
    /// a flow model.
    pub fn sigma_min(&self) -> f32 {
        self.sigmas[0]
    }

    /// Returns the largest sigma of the training. It is 14.61 for Stable Diffusion and 1 for a flow
    /// model.
    pub fn sigma_max(&self) -> f32 {
        self.sigmas[self.sigmas.len() - 1]
    }

    /// Returns sigma at a timestep, interpolated linearly between whole timesteps, like `np.interp`
    /// in diffusers.
    ///
    /// Beyond either end, it is the sigma of that end.
    pub fn sigma_at(&self, timestep: f32) -> f32 {
        self.interpolate(f64::from(timestep)) as f32
    }

    /// Returns sigma at a timestep, with its logarithm interpolated linearly between whole
    /// timesteps, like `t_to_sigma` in k-diffusion.
    ///
    /// Beyond either end, it is the sigma of that end. The result differs from
    /// [`sigma_at`](Self::sigma_at) only for diffusion models. The other models have formulas.
    pub fn log_linear_sigma_at(&self, timestep: f32) -> f32 {
        self.interpolate_log(f64::from(timestep)) as f32
    }

    /// Returns the timestep of a sigma, not rounded.
    ///
    /// For a diffusion model, the timestep is interpolated linearly in log sigma, like `sigma_to_t`
    /// in k-diffusion and `_sigma_to_t` in diffusers. It lies in `0..=T - 1`; beyond either end, it
    /// is the timestep of that end. For a flow or EDM model, it follows from the model's formula.
    pub fn timestep_at(&self, sigma: f32) -> f32 {
        self.invert(f64::from(sigma)) as f32
    }

    /// Computes [`sigma_at`](Self::sigma_at) in float64, as `np.interp` does.
    pub(crate) fn interpolate(&self, timestep: f64) -> f64 {
        match self.between(timestep) {
            Between::Known(sigma) => sigma,
            Between::Two { from, to, weight } => (to - from) * weight + from,
        }
    }

    /// Computes [`log_linear_sigma_at`](Self::log_linear_sigma_at) in float64.
    pub(crate) fn interpolate_log(&self, timestep: f64) -> f64 {
        match self.between(timestep) {
            Between::Known(sigma) => sigma,
            // At whole timesteps, a logarithm and its exponential would not return the exact sigma.
            Between::Two {
                from, weight: 0.0, ..
            } => from,
            Between::Two {
                to, weight: 1.0, ..
            } => to,
            Between::Two { from, to, weight } => ((to.ln() - from.ln()) * weight + from.ln()).exp(),
        }
    }

    fn between(&self, timestep: f64) -> Between {
        let trained = self.sigmas.len();
        match self.kind {
            Kind::Flow => {
                let trained = trained as f64;
                Between::Known(timestep.clamp(1.0, trained) / trained)
            }
            Kind::Edm => {
                let (min, max) = (self.sigma_min().into(), self.sigma_max().into());
                Between::Known((4.0 * timestep).exp().clamp(min, max))
            }
            Kind::Trained => {
                let timestep = timestep.clamp(0.0, (trained - 1) as f64);
                let low = (timestep as usize).min(trained - 2);
                Between::Two {
                    from: self.sigmas[low].into(),
                    to: self.sigmas[low + 1].into(),
                    weight: timestep - low as f64,
                }
            }
        }
    }

    /// Computes [`timestep_at`](Self::timestep_at) in float64.
    pub(crate) fn invert(&self, sigma: f64) -> f64 {
        match self.kind {
            Kind::Trained => {}
            Kind::Flow => return sigma.clamp(0.0, 1.0) * self.sigmas.len() as f64,
            Kind::Edm => return sigma.max(1e-10).ln() / 4.0,
        }
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

/// Where a timestep lies.
enum Between {
    /// On a formula, at this sigma.
    Known(f64),
    /// Between two trained sigmas, at the fraction `weight` of the way to the noisier one.
    Two { from: f64, to: f64, weight: f64 },
}

fn logarithms(sigmas: &[f32]) -> Vec<f32> {
    sigmas
        .iter()
        .map(|&sigma| f64::from(sigma).ln() as f32)
        .collect()
}
