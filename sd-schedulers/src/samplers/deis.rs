use std::ops::ControlFlow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::dpm_algorithm::DpmAlgorithm;
use super::dpm_solver::{conventions, order_at};
use super::history::{History, lagrange, last_sigmas, last_steps, newton};
use super::row::{ComfyUi, SamplerRow};
use super::steps::noise_in;
use crate::{
    Ladder, Run, Rungs, Sampler, Step,
    ladders::{Conventions, FinalSigma},
    samplers::{EndPoint, Needs},
    schedule::ClipSample,
};

/// DEIS in its Adams-Bashforth form: equation 15 of <https://arxiv.org/abs/2204.13902>. Its order
/// is the number of outputs that it uses, and it calls the model once per step.
///
/// Reference implementations: diffusers' `DEISMultistepScheduler`, and ComfyUI's `deis` with
/// [`DeisNodes::Time`], order 3 and [`FinalSigma::Zero`].
///
/// A step is x = x + ∫ noise(u) dsigma from sigma to sigma'. The noise is the polynomial in
/// u(sigma) through the noises (x - D) / sigma of the last steps.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Deis {
    /// The number of noises, `1..=3`: `solver_order` in diffusers. A value outside counts as the
    /// nearer end.
    ///
    /// Default: 2.
    pub order: usize,
    /// The variable of the polynomial.
    ///
    /// Default: [`DeisNodes::LogSigma`].
    pub nodes: DeisNodes,
    /// Whether the last two steps of a run with fewer than 15 steps are at most of orders 2 and 1.
    /// ComfyUI has false.
    ///
    /// Default: true.
    pub lower_order_final: bool,
    /// The sigma at which a run ends.
    ///
    /// Default: [`FinalSigma::SigmaMin`], which diffusers always has.
    pub end: FinalSigma,
    /// The clipping of the denoised sample, for models of pixels.
    ///
    /// Default: [`ClipSample::None`].
    pub clip: ClipSample,
}

/// The variable in which [`Deis`] treats the noise as a polynomial.
///
/// Default: [`DeisNodes::LogSigma`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeisNodes {
    /// The logarithm of sigma: `logrho` in diffusers.
    ///
    /// Order 2 equals [`DpmSolver`](crate::samplers::DpmSolver) with [`Noise`](DpmAlgorithm::Noise)
    /// and [`Heun`](crate::samplers::DpmForm::Heun). Order 3 equals the same with
    /// [`Exact`](crate::samplers::ThirdOrder::Exact).
    #[default]
    LogSigma,
    /// The time of the variance-preserving process whose betas rise linearly: "tAB" in the paper
    /// and `tab` in the diff-sampler code.
    ///
    /// Its constants are those with which table 1 of <https://arxiv.org/abs/2206.00364> fits it to
    /// sigmas from 0.002 to 80. A step to sigma 0 is of order 1.
    Time,
}

impl Default for Deis {
    fn default() -> Self {
        Self {
            order: 2,
            nodes: DeisNodes::LogSigma,
            lower_order_final: true,
            end: FinalSigma::SigmaMin,
            clip: ClipSample::None,
        }
    }
}

impl Deis {
    /// Returns ComfyUI's DEIS: the third order of the authors' code, whose nodes are in time.
    fn tab() -> Self {
        Self {
            order: 3,
            nodes: DeisNodes::Time,
            lower_order_final: false,
            end: FinalSigma::Zero,
            ..Self::default()
        }
    }
}

pub(super) const ROW: SamplerRow = SamplerRow::new::<Deis>(
    "deis",
    "DEIS",
    "https://arxiv.org/abs/2204.13902",
    Ladder::karras(),
    |config| {
        Box::new(Deis {
            clip: config.thresholding(),
            ..Deis::default()
        })
    },
)
.diffusers("DEISMultistepScheduler")
.order(2)
.ends("sigma_min");

pub(super) const TAB: SamplerRow = SamplerRow::new::<Deis>(
    "deis-tab",
    "DEIS (tab)",
    "https://arxiv.org/abs/2204.13902",
    Ladder::karras(),
    |config| {
        Box::new(Deis {
            clip: config.thresholding(),
            ..Deis::tab()
        })
    },
)
.comfyui(&[ComfyUi::new("deis", || Arc::new(Deis::tab()))])
.order(3);

impl Sampler for Deis {
    fn conventions(&self) -> Conventions {
        conventions(self.end)
    }

    fn ends(&self) -> EndPoint {
        match self.nodes {
            DeisNodes::LogSigma if self.order > 1 => EndPoint::Formula,
            _ => EndPoint::Last,
        }
    }

    fn needs(&self) -> Needs {
        self.clip.needs()
    }

    fn sample(&self, x: &mut [f32], rungs: &Rungs, run: &mut dyn Run) -> ControlFlow<()> {
        let most = self.order.clamp(1, 3);
        let (mut denoised, mut noises) = (vec![0.0; x.len()], History::new(most, x.len()));
        let mut scratch = self.clip.scratch(x.len());
        for at in rungs.iter() {
            run.denoise(x, at, &mut denoised)?;
            self.clip.apply(&mut denoised, &mut scratch);
            noise_in(x, &denoised, at.sigma, noises.push());
            let (sigmas, index) = (rungs.sigmas(), at.index);
            let (sigma, next) = (f64::from(at.sigma), f64::from(sigmas[index + 1]));
            if next == 0.0 && self.nodes == DeisNodes::Time {
                x.copy_from_slice(&denoised);
            } else if next < sigma {
                let order = order_at(most, rungs, index, self.lower_order_final);
                let weights = match self.nodes {
                    DeisNodes::LogSigma => {
                        let [_, line, square] = DpmAlgorithm::Noise.step(sigma, next).integrals;
                        newton(order, [line, square], last_steps(sigmas, index))
                    }
                    DeisNodes::Time => {
                        let nodes = last_sigmas(sigmas, index, order);
                        let [_, older @ ..] = over_time(&nodes[..order], next);
                        older
                    }
                };
                noises.step(x, &denoised, next / sigma, weights);
            }
            run.step(Step::new(rungs, index, x, &denoised))?;
        }
        ControlFlow::Continue(())
    }
}

/// Gauss' rule of three points, from 0 to 1.
const GAUSS: [(f64, f64); 3] = [
    (0.112_701_665_379_258_3, 5.0 / 18.0),
    (0.5, 4.0 / 9.0),
    (0.887_298_334_620_741_7, 5.0 / 18.0),
];

/// Returns the weights of the noises at the sigmas `nodes`, up to three with the newest first.
///
/// They are the integrals of the Lagrange polynomials in time over sigma, from the first node to
/// `to`.
fn over_time(nodes: &[f64], to: f64) -> [f64; 4] {
    const PIECES: usize = 16;
    let mut times = [0.0; 3];
    for (time, &node) in times.iter_mut().zip(nodes) {
        *time = time_of(node);
    }
    let times = &times[..nodes.len()];
    // The pieces have equal length in log sigma.
    let piece = (to / nodes[0]).ln() / PIECES as f64;
    let mut weights = [0.0; 4];
    for i in 0..PIECES {
        for (place, part) in GAUSS {
            let sigma = nodes[0] * (piece * (i as f64 + place)).exp();
            let time = time_of(sigma);
            for k in 0..times.len() {
                weights[k] += part * piece * sigma * lagrange(times, k, time);
            }
        }
    }
    weights
}

/// Returns the time t at which sigma² + 1 = exp(t² slope / 2 + t start). It is 1e-3 for sigma
/// 0.002 and 1 for sigma 80.
fn time_of(sigma: f64) -> f64 {
    let exponent = |sigma: f64| (sigma * sigma).ln_1p();
    let slope = 2.0 * (exponent(0.002) / 1e-3 - exponent(80.0)) / (1e-3 - 1.0);
    let start = exponent(80.0) - slope / 2.0;
    ((start * start + 2.0 * slope * exponent(sigma)).sqrt() - start) / slope
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_weights_of_known_values() {
        assert!((time_of(0.002) - 1e-3).abs() < 1e-12);
        assert!((time_of(80.0) - 1.0).abs() < 1e-12);
        // The integral of a constant noise is the distance in sigma, up to the pieces' error in
        // exp.
        for nodes in [&[14.0][..], &[14.0, 20.0], &[1.0, 3.0, 9.0]] {
            let sum: f64 = over_time(nodes, 0.03).iter().sum();
            assert!((sum - (0.03 - nodes[0])).abs() < 1e-7, "{nodes:?}: {sum}");
        }
    }
}
