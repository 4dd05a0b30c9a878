use std::ops::ControlFlow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::row::{ComfyUi, SamplerRow};
use super::steps::{add, ancestral_from, renoise};
use crate::{
    Ladder, Run, Rungs, Sampler, Step,
    ladders::{Conventions, FirstX},
    samplers::Needs,
};

/// CFG++ with Euler steps, plain or ancestral: algorithm 2 of <https://arxiv.org/abs/2406.08070>.
/// It calls the model once per step, with both outputs.
///
/// Reference implementations: the authors' `EulerCFGppSolver`, and ComfyUI's `euler_cfg_pp` and
/// `euler_ancestral_cfg_pp`.
///
/// A step goes to the guided sample D, and back up with the noise that the unconditional sample U
/// leaves: x = D + down / sigma (x - U) + up noise. If both samples are the same, it is
/// [`EulerAncestral`](crate::samplers::EulerAncestral), of first order. Otherwise the method has no
/// limit for short steps, because every step adds all of D - U however short it is.
///
/// The guidance scale of D is therefore a different one, in `0.0..=1.0`: a step equals an Euler
/// step with a guidance scale sigma / (sigma - sigma') times as large. The authors compare 0.6 with
/// the usual 7.5 at 50 steps.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EulerCfgPp {
    /// The share of the ancestral noise that is added, from 0 (none, as in the paper) to 1
    /// (`euler_ancestral_cfg_pp`). A value below 0 counts as 0.
    ///
    /// Default: 0.
    pub eta: f32,
    /// A factor for the noise. A value below 0 counts as 0.
    ///
    /// Default: 1.
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

pub(super) const ROW: SamplerRow = SamplerRow::new::<EulerCfgPp>(
    "euler-cfg-pp",
    "Euler CFG++",
    "https://arxiv.org/abs/2406.08070",
    Ladder::karras(),
    |_| Box::new(EulerCfgPp::default()),
)
.comfyui(&[ComfyUi::new("euler_cfg_pp", || {
    Arc::new(EulerCfgPp::default())
})])
.needs("unconditional output");

pub(super) const ANCESTRAL: SamplerRow = SamplerRow::new::<EulerCfgPp>(
    "euler-a-cfg-pp",
    "Euler ancestral CFG++",
    "https://arxiv.org/abs/2406.08070",
    Ladder::karras(),
    |_| {
        Box::new(EulerCfgPp {
            eta: 1.0,
            ..EulerCfgPp::default()
        })
    },
)
.comfyui(&[ComfyUi::new("euler_ancestral_cfg_pp", || {
    Arc::new(EulerCfgPp {
        eta: 1.0,
        ..EulerCfgPp::default()
    })
})])
.needs("unconditional output")
.stochastic();

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

    fn adds_noise(&self) -> bool {
        self.eta > 0.0 && self.s_noise != 0.0
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
