use std::ops::ControlFlow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::dpm_solver::conventions;
use super::row::{ComfyUi, SamplerRow, WebUi};
use crate::{
    Ladder, Run, Rungs, Sampler, Step,
    ladders::{Conventions, FinalSigma, TimestepRounding},
    samplers::WithConventions,
};

/// DPM-Solver++(2M): algorithm 2 of <https://arxiv.org/abs/2211.01095>. It is of second order from
/// the outputs of two steps, and calls the model once per step.
///
/// Reference implementations: k-diffusion's `sample_dpmpp_2m` and diffusers'
/// `DPMSolverMultistepScheduler`.
///
/// With lambda = -ln sigma, h the step in lambda, r = h_last / h and D' = D + (D - D_last) / 2r, a
/// step is x = sigma' / sigma x + (1 - sigma' / sigma) D'. The first step, and a step to sigma 0,
/// use D in place of D'.
///
/// A last step to a sigma above 0 stays at second order, as in k-diffusion. diffusers'
/// `lower_order_final` makes it first order in runs with fewer than 15 steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DpmPlusPlus2M;

pub(super) const ROW: SamplerRow = SamplerRow::new::<DpmPlusPlus2M>(
    "dpmpp-2m",
    "DPM++ 2M",
    "https://arxiv.org/abs/2211.01095",
    Ladder::karras(),
    |_| Box::new(DpmPlusPlus2M),
)
.diffusers("DPMSolverMultistepScheduler, EDMDPMSolverMultistepScheduler")
.webui(WebUi::new(&["k_dpmpp_2m"], Ladder::karras, || {
    WithConventions::wrap(Arc::new(DpmPlusPlus2M), Conventions::default())
}))
.comfyui(&[ComfyUi::new("dpmpp_2m", || Arc::new(DpmPlusPlus2M))])
.order(2);

impl Sampler for DpmPlusPlus2M {
    fn conventions(&self) -> Conventions {
        Conventions {
            timestep_rounding: TimestepRounding::Whole,
            ..conventions(FinalSigma::Zero)
        }
    }

    fn sample(&self, x: &mut [f32], rungs: &Rungs, run: &mut dyn Run) -> ControlFlow<()> {
        let (mut denoised, mut last) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        let mut h_last = f64::INFINITY;
        for at in rungs.iter() {
            run.denoise(x, at, &mut denoised)?;
            let ratio = f64::from(rungs.sigmas()[at.index + 1]) / f64::from(at.sigma);
            let h = -ratio.ln();
            let weight = if ratio == 0.0 {
                0.0
            } else {
                (h / (2.0 * h_last)) as f32
            };
            let (keep, gain) = (ratio as f32, (1.0 - ratio) as f32);
            for ((x, denoised), last) in x.iter_mut().zip(&denoised).zip(&last) {
                *x = keep * *x + gain * (denoised + weight * (denoised - last));
            }
            run.step(Step::new(rungs, at.index, x, &denoised))?;
            std::mem::swap(&mut denoised, &mut last);
            h_last = h;
        }
        ControlFlow::Continue(())
    }
}
