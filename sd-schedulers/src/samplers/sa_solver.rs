use std::ops::ControlFlow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::dpm_solver::conventions;
use super::exponential_adams::{MOST, integrals};
use super::predictor_corrector::PredictorCorrector;
use super::row::{CallFormula, ComfyUi, SamplerRow};
use super::steps::add;
use crate::{
    Ladder, Run, Rungs, Sampler, Step,
    ladders::{Conventions, FinalSigma},
    samplers::{Calls, Needs},
    schedule::ClipSample,
};

/// SA-Solver, a stochastic Adams method: algorithm 1 of <https://arxiv.org/abs/2309.05019>. Without
/// noise, its order is the greater of its two orders; with noise, it is of first order. It calls
/// the model once per step.
///
/// The order is reached from the outputs of as many steps. Reference implementation: diffusers'
/// `SASolverScheduler`.
///
/// With lambda = -ln sigma, h the step in lambda, kappa = 1 + tau² and D(lambda) the polynomial
/// through the outputs, a step is
/// ```text
/// x = e^(-kappa h) x + kappa ∫ e^(kappa u) D(lambda' + u) du
///     + sigma' sqrt(1 - e^(-2 tau² h)) noise
/// ```
/// with u from -h to 0. Once the model has seen x on the next rung, its output joins the polynomial
/// and x is corrected. The prediction and the correction differ only in the weights of the outputs.
/// If the `step` of a [`Run`] replaces the predicted value, the replacement stays.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SaSolver {
    /// The number of outputs in the prediction, `1..=4`. A value outside counts as the nearer end.
    ///
    /// Default: 2.
    pub predictor_order: usize,
    /// The number of outputs in the correction, including the newest, `1..=4`. A value above 4
    /// counts as 4. 0 makes no correction, which diffusers does not allow.
    ///
    /// Default: 2.
    pub corrector_order: usize,
    /// How stochastic the sampler is, finite and 0 or more. 0 adds no noise, and 1 is the reverse
    /// SDE. A value below 0 counts as 0.
    ///
    /// Default: 1.
    pub tau: f32,
    /// The first and the last timestep, both included, from which a step is stochastic. From other
    /// timesteps, tau is 0.
    ///
    /// Default: `[200.0, 800.0]`.
    ///
    /// With the default, no step is stochastic on an EDM model, whose timesteps are ln(sigma) / 4.
    pub interval: [f32; 2],
    /// The values that the polynomial goes through.
    ///
    /// Default: [`SaOutput::Denoised`].
    pub output: SaOutput,
    /// Whether orders fall to 1 towards the last step.
    ///
    /// Default: true.
    pub lower_order_final: bool,
    /// Whether the model is called again on the corrected x, for the outputs of later steps:
    /// "PECE".
    ///
    /// Default: false.
    pub evaluate_again: bool,
    /// The sigma at which a run ends. ComfyUI has [`FinalSigma::Zero`], at the denoised sample.
    ///
    /// Default: [`FinalSigma::SigmaMin`].
    pub end: FinalSigma,
    /// The clipping of the denoised sample, for models of pixels.
    ///
    /// Default: [`ClipSample::None`].
    pub clip: ClipSample,
}

/// The values that [`SaSolver`] interpolates: `algorithm_type` of diffusers.
///
/// Default: [`SaOutput::Denoised`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SaOutput {
    /// The denoised sample: `data_prediction`.
    ///
    /// Two outputs are weighed as in the authors' code (appendix D of the paper): the weight of the
    /// slope is kappa h / 2, which is simpler and of the same order.
    #[default]
    Denoised,
    /// The noise (x - D) / sigma: `noise_prediction`. A step is x = x - kappa sigma' ∫ e^(-u)
    /// noise(lambda' + u) du + tau sqrt(sigma² - sigma'²) noise.
    Noise,
}

impl Default for SaSolver {
    fn default() -> Self {
        Self {
            predictor_order: 2,
            corrector_order: 2,
            tau: 1.0,
            interval: [200.0, 800.0],
            output: SaOutput::Denoised,
            lower_order_final: true,
            evaluate_again: false,
            end: FinalSigma::SigmaMin,
            clip: ClipSample::None,
        }
    }
}

impl SaSolver {
    /// Returns the number of outputs in the prediction from rung `index` and in its correction. The
    /// outputs of the correction include a newer one.
    fn orders(&self, rungs: &Rungs, index: usize) -> (usize, usize) {
        let left = if self.lower_order_final {
            rungs.steps_left(index)
        } else {
            MOST
        };
        let predictor = self.predictor_order.clamp(1, MOST);
        let corrector = self.corrector_order.min(MOST);
        (
            predictor.min(left).min(index + 1),
            corrector.min(left + 1).min(index + 2),
        )
    }

    /// Returns tau for a step from a timestep.
    fn tau_at(&self, timestep: f32) -> f64 {
        let [from, till] = self.interval;
        if timestep >= from && timestep <= till {
            f64::from(self.tau).max(0.0)
        } else {
            0.0
        }
    }

    /// Returns the weights of the outputs in a step of length `h`. `places` are the positions of
    /// the outputs, newest first, in steps before the target.
    fn weights(&self, kappa: f64, h: f64, places: &[f64]) -> [f64; MOST] {
        match (self.output, places) {
            (SaOutput::Denoised, &[newest, oldest]) => {
                let total = -(-kappa * h).exp_m1();
                let slope = 0.5 * kappa * h / (oldest - newest);
                if newest > 0.0 {
                    [total + slope, -slope, 0.0, 0.0]
                } else {
                    [slope, total - slope, 0.0, 0.0]
                }
            }
            (SaOutput::Denoised, _) => integrals(kappa * h, places),
            (SaOutput::Noise, _) => integrals(-h, places),
        }
    }

    /// Returns the weights of the outputs in the prediction from rung `index`, newest first, and
    /// the changes that its correction makes to them.
    ///
    /// The first change is the weight of the output on the next rung. The output on the rung itself
    /// is left out, because the others are differences from it.
    fn both_weights(&self, rungs: &Rungs, kappa: f64, index: usize) -> ([f64; 3], [f64; 4]) {
        let lambda = |index: usize| -f64::from(rungs.sigmas()[index]).ln();
        let h = lambda(index + 1) - lambda(index);
        let (predictor, corrector) = self.orders(rungs, index);
        let mut places = [0.0; MOST + 1];
        for (before, place) in places.iter_mut().enumerate().take(index + 2) {
            *place = (lambda(index + 1) - lambda(index + 1 - before)) / h;
        }
        let [_, second, third, fourth] = self.weights(kappa, h, &places[1..=predictor]);
        let mut correction = [0.0; MOST];
        if corrector > 0 {
            let [newest, _, of_second, of_third] = self.weights(kappa, h, &places[..corrector]);
            correction = [newest, of_second - second, of_third - third, -fourth];
        }
        ([second, third, fourth], correction)
    }
}

impl SaSolver {
    /// Returns whether the model is called again for a corrected sample.
    fn calls_again(&self) -> bool {
        self.evaluate_again && self.corrector_order > 0
    }

    /// Returns ComfyUI's `sa_solver_pece`.
    fn pece() -> Self {
        Self {
            predictor_order: 3,
            corrector_order: 4,
            evaluate_again: true,
            end: FinalSigma::Zero,
            ..Self::default()
        }
    }
}

pub(super) const ROW: SamplerRow = SamplerRow::new::<SaSolver>(
    "sa-solver",
    "SA-Solver",
    "https://arxiv.org/abs/2309.05019",
    Ladder::trailing(),
    |config| {
        Box::new(SaSolver {
            clip: config.thresholding(),
            ..SaSolver::default()
        })
    },
)
.diffusers("SASolverScheduler")
.comfyui(&[ComfyUi::new("sa_solver", || {
    Arc::new(SaSolver {
        evaluate_again: false,
        ..SaSolver::pece()
    })
})])
.ends("sigma_min")
.stochastic();

pub(super) const PECE: SamplerRow = SamplerRow::new::<SaSolver>(
    "sa-solver-pece",
    "SA-Solver PECE",
    "https://arxiv.org/abs/2309.05019",
    Ladder::karras(),
    |config| {
        Box::new(SaSolver {
            clip: config.thresholding(),
            ..SaSolver::pece()
        })
    },
)
.comfyui(&[ComfyUi::new(
    "sa_solver_pece",
    || Arc::new(SaSolver::pece()),
)])
.calls(CallFormula::TwoNLess1)
.stochastic();

impl Sampler for SaSolver {
    fn conventions(&self) -> Conventions {
        conventions(self.end)
    }

    fn calls_per_step(&self) -> usize {
        1 + usize::from(self.calls_again())
    }

    fn calls(&self, rungs: &Rungs) -> Calls {
        let corrections = if self.calls_again() {
            rungs.steps() - 1
        } else {
            0
        };
        Calls::Exactly(rungs.steps() + corrections)
    }

    fn needs(&self) -> Needs {
        self.clip.needs()
    }

    fn adds_noise(&self) -> bool {
        self.tau > 0.0
    }

    fn sample(&self, x: &mut [f32], rungs: &Rungs, run: &mut dyn Run) -> ControlFlow<()> {
        let on_noise = self.output == SaOutput::Noise;
        let mut state = PredictorCorrector::new(on_noise, MOST, x.len());
        let (mut denoised, mut noise) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        let mut scratch = self.clip.scratch(x.len());
        // The correction of the last step.
        let mut correction = None;
        for at in rungs.iter() {
            run.denoise(x, at, &mut denoised)?;
            self.clip.apply(&mut denoised, &mut scratch);
            state.correct(x, &denoised, at.sigma, correction);
            if correction.is_some() && self.evaluate_again {
                state.settle(x);
                run.denoise(x, at, &mut denoised)?;
                self.clip.apply(&mut denoised, &mut scratch);
            }

            let next = rungs.sigmas()[at.index + 1];
            let (sigma, to) = (f64::from(at.sigma), f64::from(next));
            if next == 0.0 {
                x.copy_from_slice(&denoised);
            } else if next < at.sigma {
                let tau = self.tau_at(at.timestep);
                let (kappa, h) = (1.0 + tau * tau, (sigma / to).ln());
                // The remaining share of x - D, the factor of the outputs, and the deviation of the
                // noise.
                let (ratio, scale, up) = if on_noise {
                    let variance = sigma * sigma - to * to;
                    (to / sigma, kappa * to, tau * variance.sqrt())
                } else {
                    let variance = -(-2.0 * tau * tau * h).exp_m1();
                    ((-kappa * h).exp(), 1.0, to * variance.sqrt())
                };
                if on_noise && tau > 0.0 {
                    // The step also leads off the line, by as much as the fresh noise makes up for.
                    let off = (tau * tau * (to - sigma) / sigma) as f32;
                    let values = state.bend.iter_mut().zip(&*x).zip(&denoised);
                    values.for_each(|((bend, x), denoised)| *bend += off * (x - denoised));
                }
                if up > 0.0 {
                    run.noise(at.sigma, next, &mut noise);
                    add(&mut state.bend, up, &noise);
                }
                let (prediction, change) = self.both_weights(rungs, kappa, at.index);
                let weights = prediction.map(|weight| scale * weight);
                state.predict(x, &denoised, at.sigma, ratio, weights);
                correction =
                    (self.corrector_order > 0).then(|| change.map(|weight| scale * weight));
            } else {
                state.settle(x);
            }
            run.step(Step::new(rungs, at.index, x, &denoised))?;
            std::mem::swap(&mut denoised, &mut state.last);
        }
        ControlFlow::Continue(())
    }
}
