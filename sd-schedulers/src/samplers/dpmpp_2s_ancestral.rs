use std::ops::ControlFlow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::row::{CallFormula, ComfyUi, SamplerRow, WebUi};
use super::steps::{add, ancestral_from, slid, slide};
use crate::{Ladder, Run, Rungs, Sampler, Step, samplers::Calls};

/// DPM-Solver++(2S) with ancestral noise: algorithm 1 of <https://arxiv.org/abs/2211.01095> with
/// r = 1/2. It is of second order and calls the model twice per step, but once in the last.
///
/// Reference implementation: k-diffusion's `sample_dpmpp_2s_ancestral`.
///
/// A step goes down to mid = sqrt(sigma · down), which is half way in log sigma. The model's
/// output there is D in x = D + down / sigma (x - D). `down` and the noise are the same as in
/// [`EulerAncestral`](crate::samplers::EulerAncestral).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DpmPlusPlus2SAncestral {
    /// The share of the ancestral noise that is added, `0.0..=1.0`. 0 adds none, and a value below
    /// 0 counts as 0. Above 1, the noise is at most all of the next rung's noise.
    ///
    /// Default: 1.
    pub eta: f32,
    /// A factor for the noise. A value below 0 counts as 0.
    ///
    /// Default: 1.
    pub s_noise: f32,
}

impl Default for DpmPlusPlus2SAncestral {
    fn default() -> Self {
        Self {
            eta: 1.0,
            s_noise: 1.0,
        }
    }
}

pub(super) const ROW: SamplerRow = SamplerRow::new::<DpmPlusPlus2SAncestral>(
    "dpmpp-2s-a",
    "DPM++ 2S a",
    "https://arxiv.org/abs/2211.01095",
    Ladder::karras(),
    |_| Box::new(DpmPlusPlus2SAncestral::default()),
)
.webui(
    WebUi::new(&["k_dpmpp_2s_a"], Ladder::karras, || {
        Arc::new(DpmPlusPlus2SAncestral::default())
    })
    .ensd(),
)
.comfyui(&[ComfyUi::new("dpmpp_2s_ancestral", || {
    Arc::new(DpmPlusPlus2SAncestral::default())
})])
.order(2)
.calls(CallFormula::TwoNLess1)
.stochastic();

impl Sampler for DpmPlusPlus2SAncestral {
    fn calls_per_step(&self) -> usize {
        2
    }

    fn calls(&self, rungs: &Rungs) -> Calls {
        let to_zero = rungs
            .iter()
            .filter(|at| ancestral_from(rungs, *at, self.eta).0 == 0.0);
        Calls::Exactly(2 * rungs.steps() - to_zero.count())
    }

    fn adds_noise(&self) -> bool {
        self.eta > 0.0 && self.s_noise > 0.0
    }

    fn sample(&self, x: &mut [f32], rungs: &Rungs, run: &mut dyn Run) -> ControlFlow<()> {
        let (mut denoised, mut noise) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        let (mut x_mid, mut denoised_mid) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        let s_noise = f64::from(self.s_noise).max(0.0);
        for at in rungs.iter() {
            run.denoise(x, at, &mut denoised)?;
            let sigma = f64::from(at.sigma);
            let (down, up) = ancestral_from(rungs, at, self.eta);
            if down == 0.0 {
                x.copy_from_slice(&denoised);
            } else {
                let at_mid = rungs.at(at.index, (sigma * down).sqrt() as f32);
                slid(x, &denoised, f64::from(at_mid.sigma) / sigma, &mut x_mid);
                run.denoise(&x_mid, at_mid, &mut denoised_mid)?;
                slide(x, &denoised_mid, down / sigma);
            }
            if s_noise * up > 0.0 {
                run.noise(at.sigma, rungs.sigmas()[at.index + 1], &mut noise);
                add(x, s_noise * up, &noise);
            }
            run.step(Step::new(rungs, at.index, x, &denoised))?;
        }
        ControlFlow::Continue(())
    }
}
