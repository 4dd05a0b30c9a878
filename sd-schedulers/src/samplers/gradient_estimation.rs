use std::ops::ControlFlow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::history::History;
use super::row::{ComfyUi, SamplerRow};
use super::steps::noise_in;
use crate::{
    Ladder, Run, Rungs, Sampler, Step,
    ladders::{Conventions, NoisePath},
    samplers::EndPoint,
};

/// Gradient estimation: Euler steps along a slope that is moved away from the last one, equation 12
/// of <https://arxiv.org/abs/2306.04848>. It is of first order and calls the model once per step.
///
/// Reference implementations: the authors' smalldiffusion (`samples`) and `GEScheduler`.
///
/// With d = (x - D) / sigma, a step is x + (sigma' - sigma) (gamma d + (1 - gamma) d_last). The
/// first step goes along d.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GradientEstimation {
    /// How far the slope is moved away, 1 or more. 1 is Euler. With 1.5 on evenly spaced rungs, it
    /// is the second-order method of Adams and Bashforth.
    ///
    /// Default: 2, as in `GEScheduler` and ComfyUI.
    pub gamma: f32,
    /// Whether a step to sigma 0 goes to the denoised sample, as in ComfyUI. Otherwise it goes
    /// along its slope, as in smalldiffusion.
    ///
    /// Default: true.
    pub denoise_last: bool,
}

impl Default for GradientEstimation {
    fn default() -> Self {
        Self {
            gamma: 2.0,
            denoise_last: true,
        }
    }
}

pub(super) const ROW: SamplerRow = SamplerRow::new::<GradientEstimation>(
    "gradient-estimation",
    "Gradient estimation",
    "https://arxiv.org/abs/2306.04848",
    Ladder::karras(),
    |_| Box::new(GradientEstimation::default()),
)
.comfyui(&[ComfyUi::new("gradient_estimation", || {
    Arc::new(GradientEstimation::default())
})]);

impl Sampler for GradientEstimation {
    fn conventions(&self) -> Conventions {
        Conventions {
            flow: NoisePath::Flow,
            ..Conventions::default()
        }
    }

    fn ends(&self) -> EndPoint {
        if self.denoise_last {
            EndPoint::Last
        } else {
            EndPoint::Formula
        }
    }

    fn sample(&self, x: &mut [f32], rungs: &Rungs, run: &mut dyn Run) -> ControlFlow<()> {
        let (mut denoised, mut slopes) = (vec![0.0; x.len()], History::new(2, x.len()));
        for at in rungs.iter() {
            run.denoise(x, at, &mut denoised)?;
            noise_in(x, &denoised, at.sigma, slopes.push());
            let sigma = f64::from(at.sigma);
            let next = f64::from(rungs.sigmas()[at.index + 1]);
            let straight = at.index == 0 || (self.denoise_last && next == 0.0);
            // The weight of the last slope in place of this one.
            let part = match straight {
                true => 0.0,
                false => 1.0 - f64::from(self.gamma),
            };
            slopes.step(
                x,
                &denoised,
                next / sigma,
                [(next - sigma) * part, 0.0, 0.0],
            );
            run.step(Step::new(rungs, at.index, x, &denoised))?;
        }
        ControlFlow::Continue(())
    }
}
