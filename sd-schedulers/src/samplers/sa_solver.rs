use std::ops::ControlFlow;

use super::dpm_solver::conventions;
use super::exponential_adams::{MOST, integrals};
use super::predictor_corrector::PredictorCorrector;
use super::steps::add;
use crate::{Calls, Clip, Conventions, End, Needs, Run, Rungs, Sampler, Step};

/// SA-Solver, a stochastic Adams method: algorithm 1 of <https://arxiv.org/abs/2309.05019>. Without noise of the greater of its two orders, from
/// the outputs of as many steps, with noise of first; one model call a step; diffusers' `SASolverScheduler`.
///
/// With lambda = -ln sigma, h the step in lambda, kappa = 1 + tau² and D(lambda) the polynomial through the outputs:
/// x = e^(-kappa h) x + kappa ∫ e^(kappa u) D(lambda' + u) du + sigma' sqrt(1 - e^(-2 tau² h)) noise, u from -h to 0.
/// Once the model has seen x on the next rung, its output joins the polynomial and x is corrected: the two differ only in the outputs'
/// weights. Where the `step` of a [`Run`] has put another value in the place of the predicted one, that stays.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SaSolver {
    /// How many outputs the prediction is made of: 1 to 4; outside of that the nearer end. Default 2.
    pub predictor_order: usize,
    /// How many the correction is made of, the newest included: 1 to 4, above it is 4; 0: no correction, which diffusers lacks. Default 2.
    pub corrector_order: usize,
    /// How stochastic it is: 0 (not at all) or more, finite; 1, the default, is the reverse SDE. Below 0 is 0.
    pub tau: f32,
    /// The first and the last timestep, both included, from which a step is stochastic; from others tau is 0. Default 200 and 800, by which no
    /// step is stochastic on an EDM model: its timesteps are ln(sigma) / 4.
    pub interval: [f32; 2],
    /// What the polynomial goes through. Default [`SaOutput::Denoised`].
    pub output: SaOutput,
    /// Whether orders fall to 1 towards the last step. Default true.
    pub lower_order_final: bool,
    /// Whether the model is called again on the corrected x, for the outputs to come: "PECE". Default false.
    pub evaluate_again: bool,
    /// Where a run ends. Default [`End::SigmaMin`]; ComfyUI: [`End::Zero`], at the denoised sample.
    pub end: End,
    /// What is done to the denoised sample, for models of pixels. Default nothing.
    pub clip: Clip,
}

/// What [`SaSolver`] interpolates: `algorithm_type` of diffusers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SaOutput {
    /// The denoised sample: `data_prediction`. Two outputs are weighed as in the authors' code (appendix D of the paper): the slope's weight is
    /// kappa h / 2, which is simpler and of the same order.
    #[default]
    Denoised,
    /// The noise (x - D) / sigma: `noise_prediction`,
    /// x = x - kappa sigma' ∫ e^(-u) noise(lambda' + u) du + tau sqrt(sigma² - sigma'²) noise.
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
            end: End::SigmaMin,
            clip: Clip::None,
        }
    }
}

impl SaSolver {
    /// How many outputs the prediction from rung `index` and its correction are made of; the latter have one that is newer.
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

    /// The weights of the outputs in a step of length `h`. `places`: where they are, newest first, in steps before the target.
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

    /// The weights of the outputs in the prediction from rung `index`, newest first, and what its correction adds to them, where the first
    /// is the weight of the output on the next rung. All but that of the output on the rung itself, from which the others differ.
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

impl Sampler for SaSolver {
    fn conventions(&self) -> Conventions {
        conventions(self.end)
    }

    fn calls(&self, rungs: &Rungs) -> Calls {
        let again = self.evaluate_again && self.corrector_order > 0;
        let corrections = if again { rungs.steps() - 1 } else { 0 };
        Calls::Exactly(rungs.steps() + corrections)
    }

    fn needs(&self) -> Needs {
        self.clip.needs()
    }

    fn sample(&self, x: &mut [f32], rungs: &Rungs, run: &mut dyn Run) -> ControlFlow<()> {
        let on_noise = self.output == SaOutput::Noise;
        let mut state = PredictorCorrector::new(on_noise, MOST, x.len());
        let (mut denoised, mut noise) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        let mut scratch = self.clip.scratch(x.len());
        // Of the last step.
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
                let [from, till] = self.interval;
                let tau = if at.timestep >= from && at.timestep <= till {
                    f64::from(self.tau).max(0.0)
                } else {
                    0.0
                };
                let (kappa, h) = (1.0 + tau * tau, (sigma / to).ln());
                // How much is left of x - D, what the outputs are multiplied by, and the deviation of the noise.
                let (ratio, scale, up) = if on_noise {
                    let variance = sigma * sigma - to * to;
                    (to / sigma, kappa * to, tau * variance.sqrt())
                } else {
                    let variance = -(-2.0 * tau * tau * h).exp_m1();
                    ((-kappa * h).exp(), 1.0, to * variance.sqrt())
                };
                if on_noise && tau > 0.0 {
                    // Off the line, too: as much as the fresh noise makes up for.
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
