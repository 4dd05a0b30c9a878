use std::ops::ControlFlow;
use std::sync::Arc;

use multiversion::multiversion;

use serde::{Deserialize, Serialize};

use super::ddim::{DdimTarget, finish, relabel, sigma_at, steps, stride};
use super::history::{ADAMS_BASHFORTH, History};
use super::row::{CallFormula, SamplerRow, WebUi};
use super::steps::{add, scale, slid};
use crate::{
    Ladder, Prediction, Run, Rung, Rungs, Sampler, SchedulerConfig, Step,
    ladders::Conventions,
    samplers::{Calls, EndPoint},
};

/// PNDM: algorithm 2 of <https://arxiv.org/abs/2202.09778>, better known as PLMS with
/// [`skip_prk_steps`](Self::skip_prk_steps). It is of second order on ladders whose sigmas are not
/// evenly spaced, and makes N + 9 model calls.
///
/// PLMS makes N + 1 model calls, but 1 for a single step. Reference implementation: diffusers'
/// `PNDMScheduler`.
///
/// The first three steps are pseudo Runge-Kutta steps (equation 13) with four calls each. In PLMS,
/// the first step is an improved Euler step of two calls instead. The other steps are pseudo
/// Adams-Bashforth steps (equation 12). Each computes a mean of noises, which x follows as in DDIM:
/// x = x + (sigma' - sigma) mean (equation 11).
///
/// WebUI's "PLMS" is PLMS with [`stop_at_last_rung`](Self::stop_at_last_rung), on the timesteps of
/// its DDIM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pndm {
    /// Whether the sampler is PLMS, as in Stable Diffusion's configuration. PNDM (false) needs at
    /// least 4 steps.
    ///
    /// Default: false.
    pub skip_prk_steps: bool,
    /// Whether the last step ends at sigma 0. Otherwise it ends at the sigma of timestep 0, the
    /// cleanest of the training.
    ///
    /// Default: false.
    pub set_alpha_to_one: bool,
    /// The values whose mean is taken.
    ///
    /// Default: [`PndmMean::Epsilon`].
    pub mean: PndmMean,
    /// The noise level at which a step ends. diffusers has [`DdimTarget::Stride`].
    ///
    /// Default: [`DdimTarget::NextRung`].
    pub target: DdimTarget,
    /// Whether the run ends on the last rung, as in WebUI's PLMS: see
    /// [`Ddim`](crate::samplers::Ddim::stop_at_last_rung).
    ///
    /// Default: false.
    pub stop_at_last_rung: bool,
}

/// The values whose mean [`Pndm`] takes over several calls.
///
/// Default: [`PndmMean::Epsilon`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PndmMean {
    /// The noise (x - D) / sigma, as in the paper.
    #[default]
    Epsilon,
    /// The velocity, as diffusers does for models that predict it. The method is of first order
    /// then.
    V,
}

impl Pndm {
    /// Returns the sampler that diffusers' `PNDMScheduler` makes from a configuration: with
    /// [`DdimTarget::Stride`], the last step of the configuration, and the mean of what the model
    /// predicts.
    pub fn from_config(config: &SchedulerConfig) -> Self {
        Self {
            set_alpha_to_one: config.set_alpha_to_one,
            mean: match config.prediction {
                Prediction::V => PndmMean::V,
                _ => PndmMean::Epsilon,
            },
            target: DdimTarget::Stride,
            ..Self::default()
        }
    }
}

pub(super) const PNDM: SamplerRow = SamplerRow::new::<Pndm>(
    "pndm",
    "PNDM",
    "https://arxiv.org/abs/2202.09778",
    Ladder::leading(),
    |config| Box::new(Pndm::from_config(config)),
)
.diffusers("PNDMScheduler")
.order(2)
.calls(CallFormula::NPlus9)
.ends("alpha-bar 0")
.needs("integer timesteps");

pub(super) const PLMS: SamplerRow = SamplerRow::new::<Pndm>(
    "plms",
    "PLMS",
    "https://arxiv.org/abs/2202.09778",
    Ladder::leading(),
    |config| {
        Box::new(Pndm {
            skip_prk_steps: true,
            ..Pndm::from_config(config)
        })
    },
)
.diffusers("PNDMScheduler, skip_prk_steps true")
.webui(
    WebUi::new(&[], Ladder::ddim_uniform, || {
        Arc::new(Pndm {
            skip_prk_steps: true,
            stop_at_last_rung: true,
            ..Pndm::default()
        })
    })
    .on_its_own_ladder(),
)
.order(2)
.calls(CallFormula::NPlus1)
.ends("alpha-bar 0")
.needs("integer timesteps");

impl Sampler for Pndm {
    fn conventions(&self) -> Conventions {
        Conventions {
            min_steps: if self.skip_prk_steps { 1 } else { 4 },
            ..self.target.conventions()
        }
    }

    fn calls(&self, rungs: &Rungs) -> Calls {
        let steps = steps(rungs, self.stop_at_last_rung);
        let further = (0..steps).map(|index| self.further_calls(rungs, index));
        Calls::Exactly(steps + further.sum::<usize>())
    }

    fn ends(&self) -> EndPoint {
        if self.stop_at_last_rung || self.set_alpha_to_one {
            EndPoint::Formula
        } else {
            EndPoint::Cleanest
        }
    }

    fn sample(&self, x: &mut [f32], rungs: &Rungs, run: &mut dyn Run) -> ControlFlow<()> {
        let (mut denoised, mut outputs) = (vec![0.0; x.len()], History::new(4, x.len()));
        // The buffers of the first steps.
        let (mut guess, mut inner) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        let (mut output, mut mean) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        let total = steps(rungs, self.stop_at_last_rung);
        for at in rungs.iter().take(total) {
            run.denoise(x, at, &mut denoised)?;
            self.mean.output(x, &denoised, at.sigma, outputs.push());
            let target = self.target.sigma(rungs, at, self.set_alpha_to_one);
            let next = rungs.sigmas()[at.index + 1];
            let after = rungs
                .after(at.index)
                .filter(|_| self.further_calls(rungs, at.index) > 0);
            if let (Some(after), false) = (after, self.skip_prk_steps) {
                let (half, middle) = self.halfway(rungs, at, after);
                output.copy_from_slice(outputs.newest());
                mean.fill(0.0);
                add(&mut mean, 1.0 / 6.0, &output);
                // The sigma to which x goes along the newest output, the rung that it stands for
                // there, and the weight of the output there.
                let stages = [
                    (half, middle, 1.0 / 3.0),
                    (middle.sigma, middle, 1.0 / 3.0),
                    (after.sigma, after, 1.0 / 6.0),
                ];
                for (to, reached, weight) in stages {
                    let go = self.mean.transfer(at.sigma, to);
                    let go = self
                        .mean
                        .along(go, at.sigma, relabel(rungs, to, reached.sigma));
                    guess.copy_from_slice(x);
                    follow(&mut guess, go, &denoised, outputs.newest(), &output);
                    run.denoise(&guess, reached, &mut inner)?;
                    self.mean.output(&guess, &inner, reached.sigma, &mut output);
                    add(&mut mean, weight, &output);
                }
                let go = self.mean.transfer(at.sigma, after.sigma);
                let go = self.mean.along(go, at.sigma, 1.0);
                follow(x, go, &denoised, outputs.newest(), &mean);
            } else if let Some(after) = after {
                let ratio = f64::from(target) / f64::from(at.sigma);
                slid(x, &denoised, ratio, &mut guess);
                scale(&mut guess, relabel(rungs, target, after.sigma));
                run.denoise(&guess, after, &mut inner)?;
                self.mean.output(&guess, &inner, after.sigma, &mut output);
                mean.fill(0.0);
                add(&mut mean, 0.5, outputs.newest());
                add(&mut mean, 0.5, &output);
                // diffusers assumes that x is one stride above the next rung.
                let start = match self.target {
                    DdimTarget::NextRung => at.sigma,
                    DdimTarget::Stride => sigma_at(rungs, after.timestep + stride(rungs)),
                };
                let (keep, gain) = self.mean.transfer(start, after.sigma);
                let keep = keep * relabel(rungs, at.sigma, start);
                let go = self.mean.along((keep, gain), at.sigma, 1.0);
                follow(x, go, &denoised, outputs.newest(), &mean);
            } else {
                // The newest output alone would be a step of DDIM.
                let (_, gain) = self.mean.transfer(at.sigma, target);
                let [_, older @ ..] = ADAMS_BASHFORTH[at.index.min(3)].map(|weight| gain * weight);
                outputs.step(x, &denoised, f64::from(target) / f64::from(at.sigma), older);
                scale(x, relabel(rungs, target, next));
            }
            finish(x, rungs, at, total);
            run.step(Step {
                total,
                ..Step::new(rungs, at.index, x, &denoised)
            })?;
        }
        ControlFlow::Continue(())
    }
}

impl Pndm {
    /// Returns the number of further model calls of the step from rung `index`. It is 0 for the
    /// last step of a run.
    fn further_calls(&self, rungs: &Rungs, index: usize) -> usize {
        match (self.skip_prk_steps, index) {
            _ if rungs.after(index).is_none() => 0,
            (true, 0) => 1,
            (false, 0..3) => 3,
            _ => 0,
        }
    }

    /// Returns the middle between two rungs: the sigma at which a half step from the first rung
    /// ends, and the noise level at which the model is called then.
    ///
    /// In diffusers, the first is half a stride after `from`, and the second is half a stride
    /// before `to`.
    fn halfway(&self, rungs: &Rungs, from: Rung, to: Rung) -> (f32, Rung) {
        match self.target {
            DdimTarget::NextRung => {
                let sigma = (from.sigma * to.sigma).sqrt();
                (sigma, rungs.at(from.index, sigma))
            }
            DdimTarget::Stride => {
                let half = (stride(rungs) / 2.0).floor();
                let timestep = to.timestep + half;
                let middle = Rung {
                    sigma: sigma_at(rungs, timestep),
                    timestep,
                    ..from
                };
                (sigma_at(rungs, from.timestep - half), middle)
            }
        }
    }
}

impl PndmMean {
    /// Writes the values whose mean is taken.
    fn output(self, x: &[f32], denoised: &[f32], sigma: f32, output: &mut [f32]) {
        let variance = 1.0 + f64::from(sigma).powi(2);
        let (clean, scale) = match self {
            Self::Epsilon => (1.0, 1.0),
            Self::V => (variance as f32, variance.sqrt()),
        };
        let scale = (1.0 / (scale * f64::from(sigma))) as f32;
        output_f32(x, denoised, [scale, clean], output);
    }

    /// Returns the factors of x and of the mean on the way from one sigma to another: equation 11.
    fn transfer(self, from: f32, to: f32) -> (f64, f64) {
        let (sigma, way) = (f64::from(from), f64::from(to) - f64::from(from));
        match self {
            Self::Epsilon => (1.0, way),
            Self::V => {
                let variance = 1.0 + sigma * sigma;
                (1.0 + way * sigma / variance, way / variance.sqrt())
            }
        }
    }

    /// Returns the factors of x, of the denoised sample, and of the difference of the mean from the
    /// output for x.
    ///
    /// `keep` and `gain` are the factors of x and of the mean. The result includes the factor
    /// `relabel`. `sigma` is the sigma of x.
    fn along(self, (keep, gain): (f64, f64), sigma: f32, relabel: f64) -> [f64; 3] {
        let sigma = f64::from(sigma);
        let root = (1.0 + sigma * sigma).sqrt();
        // The output for x consists of these shares of x and of the denoised sample.
        let (of_x, of_denoised) = match self {
            Self::Epsilon => (1.0 / sigma, -1.0 / sigma),
            Self::V => (1.0 / (sigma * root), -root / sigma),
        };
        [keep + gain * of_x, gain * of_denoised, gain].map(|factor| relabel * factor)
    }
}

/// As in steps.rs, this loop is compiled for wide registers too.
#[multiversion(targets("x86_64+avx2"))]
fn output_f32(x: &[f32], denoised: &[f32], [scale, clean]: [f32; 2], output: &mut [f32]) {
    for ((output, x), denoised) in output.iter_mut().zip(x).zip(denoised) {
        *output = scale * (x - clean * denoised);
    }
}

/// Moves x along `mean` by the factors of [`PndmMean::along`]. `newest` is the output for x itself.
fn follow(x: &mut [f32], go: [f64; 3], denoised: &[f32], newest: &[f32], mean: &[f32]) {
    let [of_x, of_denoised, of_change] = go.map(|factor| factor as f32);
    let outputs = newest.iter().zip(mean);
    for ((x, denoised), (newest, mean)) in x.iter_mut().zip(denoised).zip(outputs) {
        *x = of_x * *x + of_denoised * denoised + of_change * (mean - newest);
    }
}
