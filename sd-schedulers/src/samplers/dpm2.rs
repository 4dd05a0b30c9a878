use std::ops::ControlFlow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::row::{CallFormula, ComfyUi, SamplerRow, WebUi};
use super::steps::{slide, slide_bent, two_calls_a_step};
use crate::{
    Ladder, Run, Rungs, Sampler, Step,
    ladders::{Conventions, TimestepRounding},
    samplers::{Calls, Churn},
};

/// DPM2: the midpoint rule with its midpoint in log sigma, after DPM-Solver-2 (algorithm 1 of
/// <https://arxiv.org/abs/2206.00927>). It is of second order and calls the model twice per step,
/// but once for a step to sigma 0.
///
/// Reference implementations: k-diffusion's `sample_dpm_2` and diffusers' `KDPM2DiscreteScheduler`.
///
/// An Euler step goes to sqrt(sigma sigma'). The step from sigma to sigma' then follows the slope
/// found there. DPM-Solver-2 itself would not go straight in sigma.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Dpm2 {
    /// The noise before each step, which diffusers does not have.
    ///
    /// Default: no noise.
    pub churn: Churn,
    /// How the model is given the timesteps of rungs. The timesteps of midpoints are never rounded.
    /// diffusers has [`TimestepRounding::KarrasRounded`].
    ///
    /// Default: [`TimestepRounding::Exactly`], as in k-diffusion.
    pub timestep_rounding: TimestepRounding,
    /// Whether the ladder is made with one more step and its cleanest rung is left out, as in WebUI
    /// and ComfyUI.
    ///
    /// Default: false.
    pub drop_next_to_last: bool,
}

pub(super) const ROW: SamplerRow = SamplerRow::new::<Dpm2>(
    "dpm2",
    "DPM2",
    "https://arxiv.org/abs/2206.00927",
    Ladder::karras(),
    |_| Box::new(Dpm2::default()),
)
.diffusers("KDPM2DiscreteScheduler")
.webui(WebUi::new(&["k_dpm_2"], Ladder::karras, || {
    Arc::new(Dpm2 {
        drop_next_to_last: true,
        ..Dpm2::default()
    })
}))
.comfyui(&[ComfyUi::new("dpm_2", || Arc::new(Dpm2::default())).drop_next_to_last()])
.order(2)
.calls(CallFormula::TwoNLess1);

impl Sampler for Dpm2 {
    fn conventions(&self) -> Conventions {
        Conventions {
            timestep_rounding: self.timestep_rounding,
            drop_next_to_last: self.drop_next_to_last,
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

    fn adds_noise(&self) -> bool {
        self.churn.adds_noise()
    }

    fn sample(&self, x: &mut [f32], rungs: &Rungs, run: &mut dyn Run) -> ControlFlow<()> {
        let (mut denoised, mut denoised_2) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        let mut noise = self.churn.buffer(x.len());
        for at in rungs.iter() {
            let at = self.churn.raise(x, at, rungs, &mut noise, run);
            run.denoise(x, at, &mut denoised)?;
            let sigma = f64::from(at.sigma);
            let next = f64::from(rungs.sigmas()[at.index + 1]);
            if next == 0.0 {
                x.copy_from_slice(&denoised);
            } else {
                let middle = rungs.at(at.index, (sigma * next).sqrt() as f32);
                let mid = f64::from(middle.sigma);
                slide(x, &denoised, mid / sigma);
                run.denoise(x, middle, &mut denoised_2)?;
                slide_bent(x, &denoised, next / mid, &denoised_2, (next - sigma) / mid);
            }
            run.step(Step::new(rungs, at.index, x, &denoised))?;
        }
        ControlFlow::Continue(())
    }
}
