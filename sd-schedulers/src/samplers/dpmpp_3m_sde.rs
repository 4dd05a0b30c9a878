use std::ops::ControlFlow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::history::{History, last_steps, newton};
use super::row::{ComfyUi, SamplerRow, WebUi};
use super::steps::add;
use crate::{Ladder, Run, Rungs, Sampler, Step, ladders::Conventions, samplers::Needs};

/// DPM-Solver++(3M) SDE: the third-order formula of <https://arxiv.org/abs/2211.01095> for the SDE.
/// It is of second order without noise and of first order with it, from the outputs of three steps,
/// and calls the model once per step.
///
/// Reference implementation: k-diffusion's `sample_dpmpp_3m_sde`. The order is second even from
/// exact first steps, because its term C is half of what would make it third order, as in
/// [`ThirdOrder::Published`](crate::samplers::ThirdOrder::Published).
///
/// With h and k as in [`DpmPlusPlus2MSde`](crate::samplers::DpmPlusPlus2MSde), and with h_j and D_j
/// from j steps before, a step is
/// ```text
/// A = h / h_1 (D - D_1)
/// B = h / h_2 (D_1 - D_2)
/// C = (A - B) h / (h_1 + h_2)
/// phi_2 = 1 - (1 - exp(-k)) / k
/// phi_3 = phi_2 / k - 1/2
/// x = exp(-k) x + (1 - exp(-k)) D + phi_2 (A + C h_1 / h) - phi_3 C
///     + sigma' sqrt(1 - exp(-2 eta h)) noise
/// ```
/// The second step has no C, and the first has no A either. A step to sigma 0 ends at D.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DpmPlusPlus3MSde {
    /// The share of the SDE's noise that is added, `0.0..=1.0`. 0 adds none, and a value below 0
    /// counts as 0.
    ///
    /// Default: 1.
    pub eta: f32,
    /// A factor for the noise. A value below 0 counts as 0.
    ///
    /// Default: 1.
    pub s_noise: f32,
    /// Whether the ladder is made with one more step and its cleanest rung is left out, as in
    /// WebUI.
    ///
    /// Default: false.
    pub drop_next_to_last: bool,
}

impl Default for DpmPlusPlus3MSde {
    fn default() -> Self {
        Self {
            eta: 1.0,
            s_noise: 1.0,
            drop_next_to_last: false,
        }
    }
}

pub(super) const ROW: SamplerRow = SamplerRow::new::<DpmPlusPlus3MSde>(
    "dpmpp-3m-sde",
    "DPM++ 3M SDE",
    "https://arxiv.org/abs/2211.01095",
    Ladder::exponential(),
    |_| Box::new(DpmPlusPlus3MSde::default()),
)
.webui(WebUi::new(&["k_dpmpp_3m_sde"], Ladder::exponential, || {
    Arc::new(DpmPlusPlus3MSde {
        drop_next_to_last: true,
        ..DpmPlusPlus3MSde::default()
    })
}))
.comfyui(&[
    ComfyUi::new("dpmpp_3m_sde", || Arc::new(DpmPlusPlus3MSde::default())),
    ComfyUi::new("dpmpp_3m_sde_gpu", || Arc::new(DpmPlusPlus3MSde::default())),
])
.stochastic();

impl Sampler for DpmPlusPlus3MSde {
    fn conventions(&self) -> Conventions {
        Conventions {
            drop_next_to_last: self.drop_next_to_last,
            ..Conventions::default()
        }
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
        let (mut outputs, mut noise) = (History::new(3, x.len()), vec![0.0; x.len()]);
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
                let phi_2 = 1.0 - gain / k;
                let phi_3 = phi_2 / k - 0.5;
                // These stand in place of the integrals of u and u².
                let integrals = [phi_2 * h, -phi_3 * h * h];
                let order = 3.min(at.index + 1);
                let last = last_steps(rungs.sigmas(), at.index);
                outputs.step(x, denoised, (-k).exp(), newton(order, integrals, last));
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
