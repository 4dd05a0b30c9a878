use std::ops::ControlFlow;

use super::steps::{add, ancestral_from, renoise};
use crate::{Conventions, FirstX, Needs, Run, Rungs, Sampler, Step};

/// CFG++ with Euler steps, plain or ancestral: algorithm 2 of <https://arxiv.org/abs/2406.08070>. One model call a step, with both
/// outputs; the authors' `EulerCFGppSolver`, ComfyUI's `euler_cfg_pp` and `euler_ancestral_cfg_pp`.
///
/// To the guided sample D, and back up with the noise that the unconditional one U leaves: x = D + down / sigma (x - U) + up noise.
/// Of first order where both are the same, in which case it is [`EulerAncestral`](crate::EulerAncestral); else without a limit, as
/// every step adds all of D - U however short it is.
///
/// So the guidance scale with which the run makes D is another one, 0 to 1: one step is an Euler step of a guidance
/// sigma / (sigma - sigma') times as large. The authors put 0.6 beside the usual 7.5 at 50 steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EulerCfgPp {
    /// How much of the ancestral noise is added: 0 (none, the default, the paper's) to 1 (`euler_ancestral_cfg_pp`). Below 0 it is
    /// taken for 0.
    pub eta: f32,
    /// What that noise is multiplied by. Default 1; below 0 it is taken for 0.
    pub s_noise: f32,
}

impl Default for EulerCfgPp {
    fn default() -> Self {
        Self {
            eta: 0.0,
            s_noise: 1.0,
        }
    }
}

impl Sampler for EulerCfgPp {
    fn conventions(&self) -> Conventions {
        Conventions {
            first_x: FirstX::VariancePreserving,
            ..Conventions::default()
        }
    }

    fn needs(&self) -> Needs {
        Needs {
            unconditional: true,
            ..Needs::default()
        }
    }

    fn sample(&self, x: &mut [f32], rungs: &Rungs, run: &mut dyn Run) -> ControlFlow<()> {
        let (mut denoised, mut unconditional) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        let drawn = if self.eta > 0.0 { x.len() } else { 0 };
        let mut noise = vec![0.0; drawn];
        for at in rungs.iter() {
            run.denoise_both(x, at, &mut denoised, &mut unconditional)?;
            let next = rungs.sigmas()[at.index + 1];
            let (down, up) = ancestral_from(rungs, at, self.eta);
            let ratio = down / f64::from(at.sigma);
            renoise(x, &unconditional, ratio, &denoised, 1.0);
            let factor = up * f64::from(self.s_noise);
            if factor > 0.0 {
                run.noise(at.sigma, next, &mut noise);
                add(x, factor, &noise);
            }
            run.step(Step::new(rungs, at.index, x, &denoised))?;
        }
        ControlFlow::Continue(())
    }
}
