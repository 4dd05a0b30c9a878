use std::ops::ControlFlow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::row::{CallFormula, ComfyUi, SamplerRow, WebUi};
use super::steps::{add, ancestral, slid, slide, two_calls_a_step};
use crate::{
    Ladder, Run, Rungs, Sampler, Step,
    samplers::{Calls, Needs},
};

/// DPM-Solver++ SDE, single step, after <https://arxiv.org/abs/2211.01095>. It is of second order
/// without noise and of first order with it, and calls the model twice per step, but once in the
/// last.
///
/// Reference implementations: k-diffusion's `sample_dpmpp_sde` and diffusers'
/// `DPMSolverSDEScheduler`.
///
/// An ancestral step to mid = sigma^(1-r) sigma'^r gives D2. A second step goes to sigma' with D +
/// (D2 - D) / 2r in place of D. Both start from the same x, each with its own noise. On a Brownian
/// path, the two overlap.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DpmPlusPlusSde {
    /// The share of the ancestral noise that is added, `0.0..=1.0`. 0 adds none, and a value below
    /// 0 counts as 0. Above 1, the noise is at most all of the noise at the sigma that the step
    /// goes to.
    ///
    /// Default: 1.
    pub eta: f32,
    /// A factor for the noise. A value below 0 counts as 0.
    ///
    /// Default: 1.
    pub s_noise: f32,
    /// The position of the second model call between the rung (0) and the next one (1), above 0 and
    /// at most 1. Any other value counts as 1/2.
    ///
    /// Default: 1/2.
    pub r: f32,
}

impl Default for DpmPlusPlusSde {
    fn default() -> Self {
        Self {
            eta: 1.0,
            s_noise: 1.0,
            r: 0.5,
        }
    }
}

pub(super) const ROW: SamplerRow = SamplerRow::new::<DpmPlusPlusSde>(
    "dpmpp-sde",
    "DPM++ SDE",
    "https://arxiv.org/abs/2211.01095",
    Ladder::karras(),
    |_| Box::new(DpmPlusPlusSde::default()),
)
.diffusers("DPMSolverSDEScheduler")
.webui(WebUi::new(&["k_dpmpp_sde"], Ladder::karras, || {
    Arc::new(DpmPlusPlusSde::default())
}))
.comfyui(&[
    ComfyUi::new("dpmpp_sde", || Arc::new(DpmPlusPlusSde::default())),
    ComfyUi::new("dpmpp_sde_gpu", || Arc::new(DpmPlusPlusSde::default())),
])
.calls(CallFormula::TwoNLess1)
.stochastic();

impl Sampler for DpmPlusPlusSde {
    fn calls_per_step(&self) -> usize {
        2
    }

    fn calls(&self, rungs: &Rungs) -> Calls {
        two_calls_a_step(rungs)
    }

    fn needs(&self) -> Needs {
        Needs {
            brownian: true,
            ..Needs::default()
        }
    }

    fn adds_noise(&self) -> bool {
        self.eta > 0.0 && self.s_noise > 0.0
    }

    fn sample(&self, x: &mut [f32], rungs: &Rungs, run: &mut dyn Run) -> ControlFlow<()> {
        let (mut denoised, mut noise) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        let (mut x_mid, mut denoised_mid) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        let (eta, s_noise) = (
            f64::from(self.eta).max(0.0),
            f64::from(self.s_noise).max(0.0),
        );
        let r = if self.r > 0.0 && self.r <= 1.0 {
            f64::from(self.r)
        } else {
            0.5
        };
        for at in rungs.iter() {
            run.denoise(x, at, &mut denoised)?;
            let next = rungs.sigmas()[at.index + 1];
            let (sigma, to) = (f64::from(at.sigma), f64::from(next));
            if next == 0.0 {
                x.copy_from_slice(&denoised);
            } else {
                let mid = (sigma.powf(1.0 - r) * to.powf(r)) as f32;
                let at_mid = rungs.at(at.index, mid.clamp(next, at.sigma));
                let (down, up) = ancestral(sigma, at_mid.sigma.into(), eta);
                slid(x, &denoised, down / sigma, &mut x_mid);
                if s_noise * up > 0.0 {
                    run.noise(at.sigma, at_mid.sigma, &mut noise);
                    add(&mut x_mid, s_noise * up, &noise);
                }
                run.denoise(&x_mid, at_mid, &mut denoised_mid)?;

                let weight = (0.5 / r) as f32;
                for (denoised_mid, denoised) in denoised_mid.iter_mut().zip(&denoised) {
                    *denoised_mid = denoised + weight * (*denoised_mid - denoised);
                }
                let (down, up) = ancestral(sigma, to, eta);
                slide(x, &denoised_mid, down / sigma);
                if s_noise * up > 0.0 {
                    run.noise(at.sigma, next, &mut noise);
                    add(x, s_noise * up, &noise);
                }
            }
            run.step(Step::new(rungs, at.index, x, &denoised))?;
        }
        ControlFlow::Continue(())
    }
}
