use serde::{Deserialize, Serialize};

use super::timing::BETA;
use super::{Conventions, LadderError, Spacing, above_zero, beta, in_range, ramp};
use crate::NoiseSchedule;

/// How the sigmas of a run fall from the largest to the smallest sigma of a [`Span`], both
/// included.
///
/// In the formulas, `r` goes from 0 at the first rung to 1 at the last, and `high` and `low` are
/// the ends of the span. A run of one step has only `high`. On a flow model, the sigmas are the
/// model's own, from 1 to 1 / T.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Shape {
    /// Even `rho`-th roots: equation 5 of <https://arxiv.org/abs/2206.00364>. This is k-diffusion's
    /// `get_sigmas_karras` and diffusers' `use_karras_sigmas`.
    Karras {
        /// Above 0. A larger value puts more rungs near the clean end. The paper uses 7.
        rho: f64,
    },
    /// Even logarithms. This is k-diffusion's `get_sigmas_exponential` and diffusers'
    /// `use_exponential_sigmas`.
    Exponential,
    /// The sigmas of [`Exponential`](Self::Exponential) with timesteps that are rounded like
    /// Karras' timesteps (see [`TimestepRounding`](crate::ladders::TimestepRounding)). This is
    /// diffusers' `use_lu_lambdas`, after <https://arxiv.org/abs/2211.01095>, where lambda is minus
    /// the logarithm of sigma.
    Lu,
    /// Logarithms that fall as `(1 - r)` to the power of `rho`. This is k-diffusion's
    /// `get_sigmas_polyexponential`.
    Polyexponential {
        /// Above 0. A larger value puts more rungs near the clean end. With 1, the shape is
        /// [`Exponential`](Self::Exponential).
        rho: f64,
    },
    /// `low + (high - low) q(1 - r)`, where q is the quantile function of a Beta distribution.
    ///
    /// This is how diffusers (`use_beta_sigmas`) and WebUI (Beta) read
    /// <https://arxiv.org/abs/2407.12173>. The paper applies the quantiles to timesteps:
    /// [`Timing::BetaTimesteps`](crate::ladders::Timing::BetaTimesteps).
    Beta {
        /// `0.01..=50.0`. A value below 1 puts more rungs near the clean end. The paper uses 0.6.
        alpha: f64,
        /// `0.01..=50.0`. A value below 1 puts more rungs near the noisy end. The paper uses 0.6.
        beta: f64,
    },
    /// Even arctangents: section 3 of <https://arxiv.org/abs/2404.14507>, the best ladder for
    /// Gaussian data. This is ComfyUI's `kl_optimal`.
    KlOptimal {
        /// Whether the run ends at `low` instead of 0, on N + 1 points, as WebUI's KL Optimal does.
        /// The named ladder has false.
        ends_at_lowest: bool,
    },
    /// Quantiles of a Laplace distribution of ln sigma, clamped to the span:
    /// <https://arxiv.org/abs/2407.03297>, ComfyUI's LaplaceScheduler.
    ///
    /// The paper's distribution is over ln SNR, which is -2 ln sigma. Its mu and b are therefore -2
    /// and 2 times the values here.
    ///
    /// Where several rungs are clamped to one sigma, they are spread on even logarithms up to the
    /// next rung, so that the sigmas keep falling. ComfyUI repeats the sigma instead (on Stable
    /// Diffusion from about N = 430). The shape does not support flow models, where half of the
    /// rungs would be clamped.
    Laplace {
        /// The center of the distribution. The named ladder has 0.
        mu: f64,
        /// The width of the distribution, above 0. The named ladder has 0.5.
        beta: f64,
    },
}

/// The range of sigmas that a [`Shape`] covers.
///
/// Default: every trained sigma, as in k-diffusion, WebUI, ComfyUI and diffusers' DPM++.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Span {
    /// Whether to use the range of sigmas that this spacing would visit, as diffusers' Euler and
    /// Heun do.
    ///
    /// Default: `None`.
    pub spacing: Option<Spacing>,
    /// The smallest sigma, above 0, in place of the range's own. It is diffusers' key `sigma_min`
    /// and WebUI's "sigma min" (0.1 in old versions).
    ///
    /// Default: `None`.
    pub sigma_min: Option<f64>,
    /// The largest sigma in place of the range's own. It is diffusers' key `sigma_max` and WebUI's
    /// "sigma max" (10 in old versions).
    ///
    /// Default: `None`.
    pub sigma_max: Option<f64>,
}

impl Span {
    /// Every trained sigma.
    pub const TRAINED: Self = Self {
        spacing: None,
        sigma_min: None,
        sigma_max: None,
    };

    /// Returns the range between two given sigmas, both above 0.
    pub const fn between(sigma_min: f64, sigma_max: f64) -> Self {
        Self {
            spacing: None,
            sigma_min: Some(sigma_min),
            sigma_max: Some(sigma_max),
        }
    }

    /// Returns `[low, high]`.
    pub(super) fn ends(
        self,
        schedule: &NoiseSchedule,
        steps: usize,
        conventions: &Conventions,
    ) -> [f64; 2] {
        let [low, high] = match self.spacing {
            None => [schedule.sigma_min().into(), schedule.sigma_max().into()],
            Some(spacing) => {
                let timesteps = spacing.timesteps(schedule, steps, conventions);
                [timesteps[steps - 1], timesteps[0]].map(|t| schedule.interpolate(t))
            }
        };
        [
            self.sigma_min.unwrap_or(low),
            self.sigma_max.unwrap_or(high),
        ]
    }
}

impl From<Spacing> for Span {
    fn from(spacing: Spacing) -> Self {
        Self {
            spacing: Some(spacing),
            ..Self::TRAINED
        }
    }
}

impl Shape {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Karras { .. } => "karras",
            Self::Exponential => "exponential",
            Self::Lu => "lu",
            Self::Polyexponential { .. } => "polyexponential",
            Self::Beta { .. } => "beta",
            Self::KlOptimal { .. } => "kl-optimal",
            Self::Laplace { .. } => "laplace",
        }
    }

    /// Returns the N sigmas, and the sigma at which the run ends if the shape determines it.
    pub(super) fn sigmas(
        self,
        steps: usize,
        [low, high]: [f64; 2],
    ) -> Result<(Vec<f64>, Option<f64>), LadderError> {
        let rises = low < high || (steps == 1 && low == high);
        if !(low > 0.0 && rises && high.is_finite()) {
            return Err(LadderError::Span {
                min: low,
                max: high,
            });
        }
        let each = |sigma: &dyn Fn(f64) -> f64| {
            let sigmas: Vec<f64> = (0..steps).map(|i| sigma(ramp(i, steps))).collect();
            Ok((sigmas, None))
        };
        match self {
            Self::Karras { rho } => {
                above_zero("rho", rho)?;
                each(&|r| karras(high, low, rho, r))
            }
            Self::Exponential | Self::Lu => {
                let (low, high) = (low.ln(), high.ln());
                each(&|r| (high + r * (low - high)).exp())
            }
            Self::Polyexponential { rho } => {
                above_zero("rho", rho)?;
                each(&|r| ((1.0 - r).powf(rho) * (high / low).ln() + low.ln()).exp())
            }
            Self::Beta { alpha, beta } => {
                in_range("alpha", alpha, BETA)?;
                in_range("beta", beta, BETA)?;
                each(&|r| low + beta::quantile(1.0 - r, alpha, beta) * (high - low))
            }
            Self::KlOptimal { ends_at_lowest } => {
                let points = steps + usize::from(ends_at_lowest);
                let (low, high) = (low.atan(), high.atan());
                let sigma = |i| ((1.0 - ramp(i, points)) * high + ramp(i, points) * low).tan();
                let end = ends_at_lowest.then(|| sigma(steps));
                Ok(((0..steps).map(sigma).collect(), end))
            }
            Self::Laplace { mu, beta } => {
                above_zero("beta", beta)?;
                in_range("mu", mu, [-100.0, 100.0])?;
                let sigma = |i| {
                    let place = 0.5 - ramp(i, steps);
                    let side = (1.0 - 2.0 * place.abs() + 1e-5).ln();
                    let log_sigma = if place == 0.0 {
                        mu
                    } else {
                        mu - beta * place.signum() * side
                    };
                    log_sigma.exp().clamp(low, high)
                };
                let mut sigmas: Vec<f64> = (0..steps).map(sigma).collect();
                spread_ends(&mut sigmas, low, high);
                Ok((sigmas, None))
            }
        }
    }
}

/// Returns the sigma at the fraction `r` of the way: equation 5 of
/// <https://arxiv.org/abs/2206.00364>.
pub(crate) fn karras(high: f64, low: f64, rho: f64, r: f64) -> f64 {
    let root = |sigma: f64| sigma.powf(1.0 / rho);
    (root(high) + r * (root(low) - root(high))).powf(rho)
}

/// Spreads sigmas that were clamped to `high` or `low`, so that the sigmas fall strictly. They go
/// on even logarithms between that end and the next sigma.
fn spread_ends(sigmas: &mut [f64], low: f64, high: f64) {
    let last = sigmas.len() - 1;
    let at_high = sigmas.iter().filter(|&&sigma| sigma >= high).count();
    let next = at_high.min(last);
    let target = if at_high > last { low } else { sigmas[next] };
    for i in 1..at_high {
        sigmas[i] = high * (target / high).powf(i as f64 / next as f64);
    }
    let above_low = sigmas.iter().filter(|&&sigma| sigma > low).count();
    if let Some(from) = above_low.checked_sub(1) {
        let above = sigmas[from];
        for i in above_low..last {
            let part = (i - from) as f64 / (last - from) as f64;
            sigmas[i] = above * (low / above).powf(part);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rungs_held_to_an_end_are_spread() {
        let mut sigmas = [16.0, 16.0, 4.0, 2.0, 1.0, 1.0, 1.0];
        spread_ends(&mut sigmas, 1.0, 16.0);
        assert_eq!(sigmas[..4], [16.0, 8.0, 4.0, 2.0]);
        assert!(sigmas.is_sorted_by(|a, b| a > b) && sigmas[6] == 1.0);
        let mut all = [8.0; 4];
        spread_ends(&mut all, 1.0, 8.0);
        assert!((all[1] - 4.0).abs() < 1e-12 && all.is_sorted_by(|a, b| a > b));
        let mut apart = [16.0, 4.0, 1.0];
        spread_ends(&mut apart, 1.0, 16.0);
        assert_eq!(apart, [16.0, 4.0, 1.0]);
    }
}
