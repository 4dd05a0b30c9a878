use std::ops::ControlFlow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::row::{CallFormula, ComfyUi, SamplerRow, WebUi};
use super::steps::{slide, slide_bent, two_calls_a_step};
use crate::{
    Ladder, Run, Rung, Rungs, Sampler, Step,
    ladders::Conventions,
    samplers::{Calls, Churn, Needs},
    schedule::ClipSample,
};

/// Heun's method on the probability-flow ODE: algorithm 2 of <https://arxiv.org/abs/2206.00364>,
/// which is its algorithm 1 without churn. It is of second order and calls the model twice per
/// step, but once for a step to sigma 0.
///
/// Reference implementations: k-diffusion's `sample_heun`, diffusers' `HeunDiscreteScheduler` and,
/// on a flow model, `FlowMatchHeunDiscreteScheduler`.
///
/// After an Euler step to sigma', the model is called again there: x + (sigma' - sigma) (d + d') /
/// 2, where d and d' are the slopes (x - D) / sigma at the two ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Heun {
    /// The noise before each step, which diffusers does not have.
    ///
    /// Default: no noise.
    pub churn: Churn,
    /// The clipping of the denoised sample, for models of pixels: `clip_sample` in diffusers.
    ///
    /// Default: [`ClipSample::None`].
    pub clip: ClipSample,
}

pub(super) const ROW: SamplerRow = SamplerRow::new::<Heun>(
    "heun",
    "Heun",
    "https://arxiv.org/abs/2206.00364",
    Ladder::karras(),
    |config| {
        Box::new(Heun {
            clip: config.clip_range(),
            ..Heun::default()
        })
    },
)
.diffusers("HeunDiscreteScheduler, FlowMatchHeunDiscreteScheduler")
.webui(WebUi::new(&["k_heun"], Ladder::normal, || {
    Arc::new(Heun::default())
}))
.comfyui(&[ComfyUi::new("heun", || Arc::new(Heun::default()))])
.order(2)
.calls(CallFormula::TwoNLess1);

impl Sampler for Heun {
    fn conventions(&self) -> Conventions {
        Conventions {
            flow: self.churn.path(),
            ..Conventions::default()
        }
    }

    fn calls_per_step(&self) -> usize {
        2
    }

    fn calls(&self, rungs: &Rungs) -> Calls {
        two_calls_a_step(rungs)
    }

    fn needs(&self) -> Needs {
        self.clip.needs()
    }

    fn adds_noise(&self) -> bool {
        self.churn.adds_noise()
    }

    fn sample(&self, x: &mut [f32], rungs: &Rungs, run: &mut dyn Run) -> ControlFlow<()> {
        let mut step = HeunStep::new(self.clip, x.len());
        let mut noise = self.churn.buffer(x.len());
        for at in rungs.iter() {
            let at = self.churn.raise(x, at, rungs, &mut noise, run);
            let next = rungs.sigmas()[at.index + 1];
            let to = (next > 0.0).then(|| rungs.at(at.index, next));
            step.take(x, at, to, run)?;
            run.step(Step::new(rungs, at.index, x, &step.denoised))?;
        }
        ControlFlow::Continue(())
    }
}

/// The buffers of a step of Heun's method.
pub(super) struct HeunStep {
    clip: ClipSample,
    scratch: Vec<f32>,
    /// The denoised sample at the sigma that the last step started from.
    pub(super) denoised: Vec<f32>,
    denoised_2: Vec<f32>,
}

impl HeunStep {
    pub(super) fn new(clip: ClipSample, len: usize) -> Self {
        Self {
            clip,
            scratch: clip.scratch(len),
            denoised: vec![0.0; len],
            denoised_2: vec![0.0; len],
        }
    }

    /// Moves `x` from one noise level to another, or to sigma 0.
    pub(super) fn take(
        &mut self,
        x: &mut [f32],
        at: Rung,
        to: Option<Rung>,
        run: &mut dyn Run,
    ) -> ControlFlow<()> {
        run.denoise(x, at, &mut self.denoised)?;
        self.clip.apply(&mut self.denoised, &mut self.scratch);
        let Some(to) = to else {
            x.copy_from_slice(&self.denoised);
            return ControlFlow::Continue(());
        };
        let (sigma, next) = (f64::from(at.sigma), f64::from(to.sigma));
        slide(x, &self.denoised, next / sigma);
        run.denoise(x, to, &mut self.denoised_2)?;
        self.clip.apply(&mut self.denoised_2, &mut self.scratch);
        // Half of the way should have been along the other slope.
        let bend = (next - sigma) / (2.0 * next);
        slide_bent(x, &self.denoised, 1.0, &self.denoised_2, bend);
        ControlFlow::Continue(())
    }
}
