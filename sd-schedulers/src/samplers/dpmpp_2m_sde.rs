use std::ops::ControlFlow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::history::{History, last_steps, newton};
use super::row::{ComfyUi, SamplerRow, WebUi};
use super::steps::add;
use crate::{Ladder, Run, Rungs, Sampler, Step, samplers::Needs};

/// SDE-DPM-Solver++(2M): equation 18 of <https://arxiv.org/abs/2211.01095>, where eta is 1. It is
/// of second order without noise and of first order with it, from the outputs of two steps, and
/// calls the model once per step.
///
/// Reference implementation: k-diffusion's `sample_dpmpp_2m_sde`.
///
/// With lambda = -ln sigma, h the step in lambda, k = (1 + eta) h and e = exp(-k), a step is
/// ```text
/// x = e x + (1 - e) D + c h / h_last (D - D_last) + sigma' sqrt(1 - exp(-2 eta h)) noise
/// ```
/// where c depends on the [`solver`](Self::solver). The first step has no D_last, and a step to
/// sigma 0 ends at D.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DpmPlusPlus2MSde {
    /// The share of the SDE's noise that is added, `0.0..=1.0`. 0 adds none, which is
    /// [`DpmPlusPlus2M`](crate::samplers::DpmPlusPlus2M). A value below 0 counts as 0.
    ///
    /// Default: 1.
    pub eta: f32,
    /// A factor for the noise. A value below 0 counts as 0.
    ///
    /// Default: 1.
    pub s_noise: f32,
    /// How the change of D over the step is weighed.
    ///
    /// Default: [`SdeSolver::Midpoint`].
    pub solver: SdeSolver,
}

/// How [`DpmPlusPlus2MSde`] weighs the change of the denoised sample over a step: `solver_type` in
/// k-diffusion.
///
/// Default: [`SdeSolver::Midpoint`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SdeSolver {
    /// As if the whole change happened half way: c = (1 - e) / 2.
    #[default]
    Midpoint,
    /// By the exact integral of a straight line: c = 1 - (1 - e) / k.
    Heun,
}

impl Default for DpmPlusPlus2MSde {
    fn default() -> Self {
        Self {
            eta: 1.0,
            s_noise: 1.0,
            solver: SdeSolver::Midpoint,
        }
    }
}

pub(super) const ROW: SamplerRow = SamplerRow::new::<DpmPlusPlus2MSde>(
    "dpmpp-2m-sde",
    "DPM++ 2M SDE",
    "https://arxiv.org/abs/2211.01095",
    Ladder::exponential(),
    |_| Box::new(DpmPlusPlus2MSde::default()),
)
.diffusers("DPMSolverMultistepScheduler, algorithm_type sde-dpmsolver++")
.webui(WebUi::new(&["k_dpmpp_2m_sde"], Ladder::exponential, || {
    Arc::new(DpmPlusPlus2MSde::default())
}))
.comfyui(&[
    ComfyUi::new("dpmpp_2m_sde", || Arc::new(DpmPlusPlus2MSde::default())),
    ComfyUi::new("dpmpp_2m_sde_gpu", || Arc::new(DpmPlusPlus2MSde::default())),
])
.stochastic();

pub(super) const HEUN: SamplerRow = SamplerRow::new::<DpmPlusPlus2MSde>(
    "dpmpp-2m-sde-heun",
    "DPM++ 2M SDE Heun",
    "https://arxiv.org/abs/2211.01095",
    Ladder::exponential(),
    |_| {
        Box::new(DpmPlusPlus2MSde {
            solver: SdeSolver::Heun,
            ..DpmPlusPlus2MSde::default()
        })
    },
)
.diffusers("DPMSolverMultistepScheduler, algorithm_type sde-dpmsolver++, solver_type heun")
.webui(WebUi::new(
    &["k_dpmpp_2m_sde_heun"],
    Ladder::exponential,
    || {
        Arc::new(DpmPlusPlus2MSde {
            solver: SdeSolver::Heun,
            ..DpmPlusPlus2MSde::default()
        })
    },
))
.comfyui(&[
    ComfyUi::new("dpmpp_2m_sde_heun", || {
        Arc::new(DpmPlusPlus2MSde {
            solver: SdeSolver::Heun,
            ..DpmPlusPlus2MSde::default()
        })
    }),
    ComfyUi::new("dpmpp_2m_sde_heun_gpu", || {
        Arc::new(DpmPlusPlus2MSde {
            solver: SdeSolver::Heun,
            ..DpmPlusPlus2MSde::default()
        })
    }),
])
.stochastic();

impl Sampler for DpmPlusPlus2MSde {
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
        let (mut outputs, mut noise) = (History::new(2, x.len()), vec![0.0; x.len()]);
        let (eta, s_noise) = (
            f64::from(self.eta).max(0.0),
            f64::from(self.s_noise).max(0.0),
        );
        for at in rungs.iter() {
            run.denoise(x, at, outputs.push())?;
            let denoised = outputs.newest();
            let next = rungs.sigmas()[at.index + 1];
            let (sigma, to) = (f64::from(at.sigma), f64::from(next));
            let h = (sigma / to).ln();
            if next == 0.0 {
                x.copy_from_slice(denoised);
            } else if h > 0.0 {
                let k = (1.0 + eta) * h;
                let gain = -(-k).exp_m1();
                let c = match self.solver {
                    SdeSolver::Midpoint => gain / 2.0,
                    SdeSolver::Heun => 1.0 - gain / k,
                };
                let order = 2.min(at.index + 1);
                let last = last_steps(rungs.sigmas(), at.index);
                let weights = newton(order, [c * h, 0.0], last);
                outputs.step(x, denoised, (-k).exp(), weights);
                let up = s_noise * to * (-(-2.0 * eta * h).exp_m1()).sqrt();
                if up > 0.0 {
                    run.noise(at.sigma, next, &mut noise);
                    add(x, up, &noise);
                }
            }
            run.step(Step::new(rungs, at.index, x, outputs.newest()))?;
        }
        ControlFlow::Continue(())
    }
}
