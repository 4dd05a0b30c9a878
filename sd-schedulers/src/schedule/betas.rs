//! The betas of a diffusion process, computed in float32 as torch does for diffusers.

use std::f64::consts::PI;

use crate::SchedulerConfig;

/// How the betas rise over the training timesteps.
///
/// The names in backticks are the values of `beta_schedule` in diffusers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BetaSchedule {
    /// `linear`: evenly spaced betas, from <https://arxiv.org/abs/2006.11239>.
    Linear,
    /// `scaled_linear`: betas with evenly spaced square roots. Stable Diffusion uses this one.
    ScaledLinear,
    /// `sigmoid`: betas on a sigmoid from -6 to 6, from GeoDiff. Only `DDPMScheduler` has it.
    Sigmoid,
    /// `laplace`: betas from an alpha-bar whose log SNR has a Laplace distribution, capped at
    /// 0.999, from <https://arxiv.org/abs/2407.03297>. Only `DDPMScheduler` has it.
    Laplace,
    /// `exp`: betas from the alpha-bar `exp(-12 t)`, capped at 0.999. Only `HeunDiscreteScheduler`
    /// has it.
    Exponential,
    /// `squaredcos_cap_v2`: betas from a squared-cosine alpha-bar, capped at 0.999, from
    /// <https://arxiv.org/abs/2102.09672>.
    Cosine,
}

/// Returns the betas of a configuration, one per training timestep.
pub(crate) fn betas(config: &SchedulerConfig) -> Vec<f32> {
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
        (None, BetaSchedule::Sigmoid) => {
            let (start, end) = (beta_start as f32, beta_end as f32);
            linspace(-6.0, 6.0, num_train_timesteps)
                .map(|x| 1.0 / (1.0 + (-x).exp()) * (end - start) + start)
                .collect()
        }
        (None, BetaSchedule::Cosine) => betas_of(num_train_timesteps, |time| {
            ((time + 0.008) / 1.008 * PI / 2.0).cos().powi(2)
        }),
        (None, BetaSchedule::Laplace) => betas_of(num_train_timesteps, |time| {
            let log_snr =
                -0.5 * (0.5 - time).signum() * (1.0 - 2.0 * (0.5 - time).abs() + 1e-6).ln();
            let snr = log_snr.exp();
            (snr / (1.0 + snr)).sqrt()
        }),
        (None, BetaSchedule::Exponential) => {
            betas_of(num_train_timesteps, |time| (-12.0 * time).exp())
        }
    }
}

/// Returns the betas that give this alpha-bar, capped at 0.999. `alpha_bar` takes a time from 0
/// to 1.
fn betas_of(count: usize, alpha_bar: impl Fn(f64) -> f64) -> Vec<f32> {
    let at = |t: usize| alpha_bar(t as f64 / count as f64);
    (0..count)
        .map(|t| (1.0 - at(t + 1) / at(t)).min(0.999) as f32)
        .collect()
}

/// Returns the values of `torch.linspace` in float32. Torch counts from the nearer end and fuses
/// the product with the sum.
fn linspace(start: f64, end: f64, count: usize) -> impl Iterator<Item = f32> {
    let (start, end) = (start as f32, end as f32);
    let step = (end - start) / (count - 1) as f32;
    (0..count).map(move |i| match i < count / 2 {
        true => step.mul_add(i as f32, start),
        false => (-step).mul_add((count - 1 - i) as f32, end),
    })
}

/// Returns `torch.cumprod` of 1 - beta. The product runs in float64, and each element is rounded to
/// float32.
pub(crate) fn alpha_bars(betas: &[f32]) -> Vec<f32> {
    let products = betas.iter().scan(1.0_f64, |product, beta| {
        *product *= f64::from(1.0 - beta);
        Some(*product as f32)
    });
    products.collect()
}

/// Rescales the betas so that alpha-bar ends at 0: algorithm 1 of
/// <https://arxiv.org/abs/2305.08891>, which shifts and scales sqrt(alpha-bar).
pub(crate) fn rescale_zero_terminal_snr(betas: &mut [f32]) {
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
