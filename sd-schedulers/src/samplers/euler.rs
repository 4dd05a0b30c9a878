use std::ops::ControlFlow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::row::{ComfyUi, SamplerRow, WebUi};
use super::steps::slide;
use crate::{Ladder, Run, Rungs, Sampler, Step, ladders::Conventions, samplers::Churn};

/// Euler's method on the probability-flow ODE: algorithm 2 of <https://arxiv.org/abs/2206.00364>
/// without its second half. It is of first order and calls the model once per step.
///
/// Reference implementations: k-diffusion's `sample_euler`, diffusers' `EulerDiscreteScheduler` and
/// `EDMEulerScheduler` and, on a flow model, `FlowMatchEulerDiscreteScheduler`.
///
/// The ODE is dx/dsigma = (x - D(x; sigma)) / sigma.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Euler {
    /// The noise before each step.
    ///
    /// Default: no noise.
    pub churn: Churn,
}

pub(super) const ROW: SamplerRow = SamplerRow::new::<Euler>(
    "euler",
    "Euler",
    "https://arxiv.org/abs/2206.00364",
    Ladder::karras(),
    |_| Box::new(Euler::default()),
)
.diffusers("EulerDiscreteScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler")
.webui(WebUi::new(&["k_euler"], Ladder::normal, || {
    Arc::new(Euler::default())
}))
.comfyui(&[
    ComfyUi::new("euler", || Arc::new(Euler::default())),
    ComfyUi::new("ddim", || Arc::new(Euler::default())),
]);

impl Sampler for Euler {
    fn conventions(&self) -> Conventions {
        Conventions {
            flow: self.churn.path(),
            ..Conventions::default()
        }
    }

    fn adds_noise(&self) -> bool {
        self.churn.adds_noise()
    }

    fn sample(&self, x: &mut [f32], rungs: &Rungs, run: &mut dyn Run) -> ControlFlow<()> {
        let (mut denoised, mut noise) = (vec![0.0; x.len()], self.churn.buffer(x.len()));
        for at in rungs.iter() {
            let at = self.churn.raise(x, at, rungs, &mut noise, run);
            run.denoise(x, at, &mut denoised)?;
            let next = f64::from(rungs.sigmas()[at.index + 1]);
            slide(x, &denoised, next / f64::from(at.sigma));
            run.step(Step::new(rungs, at.index, x, &denoised))?;
        }
        ControlFlow::Continue(())
    }
}
