use std::ops::ControlFlow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::row::{ComfyUi, SamplerRow};
use crate::{
    Ladder, Run, Rungs, Sampler, Step,
    ladders::{Conventions, NoisePath},
};

/// RES multistep: the refined exponential solver of <https://arxiv.org/abs/2308.02157> for the
/// denoised sample. It is of second order from the outputs of two steps, starts at first order, and
/// calls the model once per step.
///
/// Reference implementations: NVIDIA's cosmos-predict1 (`order2_fn`), and ComfyUI's `res_multistep`
/// without noise.
///
/// With h = ln(sigma / sigma'), a step is
/// ```text
/// x = sigma' / sigma x + (1 - sigma' / sigma) D + (h + exp(-h) - 1) / h_last (D - D_last)
/// ```
/// The first step has no last term, and a step to sigma 0 ends at D.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResMultistep;

pub(super) const ROW: SamplerRow = SamplerRow::new::<ResMultistep>(
    "res-2m",
    "RES multistep",
    "https://arxiv.org/abs/2308.02157",
    Ladder::karras(),
    |_| Box::new(ResMultistep),
)
.comfyui(&[ComfyUi::new("res_multistep", || Arc::new(ResMultistep))])
.order(2);

impl Sampler for ResMultistep {
    fn conventions(&self) -> Conventions {
        Conventions {
            // cosmos-predict1 uses its function unchanged with the flow's own sigma, so h is
            // computed from that sigma.
            flow: NoisePath::Flow,
            ..Conventions::default()
        }
    }

    fn sample(&self, x: &mut [f32], rungs: &Rungs, run: &mut dyn Run) -> ControlFlow<()> {
        let (mut denoised, mut last) = (vec![0.0_f32; x.len()], vec![0.0_f32; x.len()]);
        let mut h_last = f64::INFINITY;
        for at in rungs.iter() {
            run.denoise(x, at, &mut denoised)?;
            let ratio = f64::from(rungs.sigmas()[at.index + 1]) / f64::from(at.sigma);
            let h = -ratio.ln();
            let bend = if ratio == 0.0 {
                0.0
            } else {
                ((h + (-h).exp_m1()) / h_last) as f32
            };
            let (keep, gain) = (ratio as f32, (1.0 - ratio) as f32);
            for ((x, denoised), last) in x.iter_mut().zip(&denoised).zip(&last) {
                *x = keep * *x + gain * denoised + bend * (denoised - last);
            }
            run.step(Step::new(rungs, at.index, x, &denoised))?;
            std::mem::swap(&mut denoised, &mut last);
            h_last = h;
        }
        ControlFlow::Continue(())
    }
}
