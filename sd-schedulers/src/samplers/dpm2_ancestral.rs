use std::ops::ControlFlow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::row::{CallFormula, ComfyUi, SamplerRow, WebUi};
use super::steps::{add, ancestral_from, slide, slide_bent};
use crate::{
    Ladder, Run, Rungs, Sampler, Step,
    ladders::{Conventions, TimestepRounding},
    samplers::Calls,
};

/// DPM-Solver-2 with ancestral noise: algorithm 1 of <https://arxiv.org/abs/2206.00927> with r =
/// 1/2. It is of second order and calls the model twice per step, but once in the last.
///
/// Reference implementations: k-diffusion's `sample_dpm_2_ancestral` and diffusers'
/// `KDPM2AncestralDiscreteScheduler`, whose form it has.
///
/// A step goes down to mid = sqrt(sigma · down), which is half way in log sigma. The slope found
/// there takes x from sigma to down, and noise leads up to the next rung. `down` and the noise are
/// the ones of [`EulerAncestral`](crate::samplers::EulerAncestral).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Dpm2Ancestral {
    /// The share of the ancestral noise that is added, `0.0..=1.0`. 0 adds none, and a value below
    /// 0 counts as 0. If a value above 1 would make the next rung all noise, the step ends at the
    /// denoised sample without noise, as in k-diffusion.
    ///
    /// Default: 1.
    pub eta: f32,
    /// A factor for the noise. A value below 0 counts as 0.
    ///
    /// Default: 1.
    pub s_noise: f32,
    /// How the model is given the timesteps of rungs. The timesteps half way are exact in all
    /// programs. diffusers has [`TimestepRounding::KarrasRounded`].
    ///
    /// Default: [`TimestepRounding::Exactly`], as in k-diffusion.
    pub timestep_rounding: TimestepRounding,
    /// Whether the ladder is made with one more step and its cleanest rung is left out, as in WebUI
    /// and ComfyUI.
    ///
    /// Default: false.
    pub drop_next_to_last: bool,
}

impl Default for Dpm2Ancestral {
    fn default() -> Self {
        Self {
            eta: 1.0,
            s_noise: 1.0,
            timestep_rounding: TimestepRounding::Exactly,
            drop_next_to_last: false,
        }
    }
}

pub(super) const ROW: SamplerRow = SamplerRow::new::<Dpm2Ancestral>(
    "dpm2-a",
    "DPM2 a",
    "https://arxiv.org/abs/2206.00927",
    Ladder::karras(),
    |_| Box::new(Dpm2Ancestral::default()),
)
.diffusers("KDPM2AncestralDiscreteScheduler")
.webui(
    WebUi::new(&["k_dpm_2_a"], Ladder::karras, || {
        Arc::new(Dpm2Ancestral {
            drop_next_to_last: true,
            ..Dpm2Ancestral::default()
        })
    })
    .ensd(),
)
.comfyui(&[
    ComfyUi::new("dpm_2_ancestral", || Arc::new(Dpm2Ancestral::default())).drop_next_to_last(),
])
.order(2)
.calls(CallFormula::TwoNLess1)
.stochastic();

impl Sampler for Dpm2Ancestral {
    fn conventions(&self) -> Conventions {
        Conventions {
            timestep_rounding: self.timestep_rounding,
            drop_next_to_last: self.drop_next_to_last,
            ..Conventions::default()
        }
    }

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
        let (mut denoised, mut denoised_mid) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        let mut noise = vec![0.0; x.len()];
        let s_noise = f64::from(self.s_noise).max(0.0);
        for at in rungs.iter() {
            run.denoise(x, at, &mut denoised)?;
            let sigma = f64::from(at.sigma);
            let (down, up) = ancestral_from(rungs, at, self.eta);
            if down == 0.0 {
                x.copy_from_slice(&denoised);
            } else {
                // With an eta of 1, the middle is the next rung.
                let at_mid = rungs.between(at.index, (sigma * down).sqrt() as f32);
                let mid = f64::from(at_mid.sigma);
                slide(x, &denoised, mid / sigma);
                run.denoise(x, at_mid, &mut denoised_mid)?;
                slide_bent(
                    x,
                    &denoised,
                    down / mid,
                    &denoised_mid,
                    (down - sigma) / mid,
                );
                if s_noise * up > 0.0 {
                    run.noise(at.sigma, rungs.sigmas()[at.index + 1], &mut noise);
                    add(x, s_noise * up, &noise);
                }
            }
            run.step(Step::new(rungs, at.index, x, &denoised))?;
        }
        ControlFlow::Continue(())
    }
}
