use std::ops::ControlFlow;

use super::history::{History, last_steps, newton};
use super::steps::add;
use crate::{Conventions, Needs, Run, Rungs, Sampler, Step};

/// DPM-Solver++(3M) SDE: k-diffusion's `sample_dpmpp_3m_sde`, the third-order formula of <https://arxiv.org/abs/2211.01095> for the SDE.
/// Second order without noise, first with it, from the outputs of three steps, also where the first ones are exact: its term C is half of what
/// would make it third order, as in [`ThirdOrder::Published`](crate::ThirdOrder::Published). One model call a step.
///
/// With h and k as in [`DpmPlusPlus2MSde`](crate::DpmPlusPlus2MSde), h_j and D_j those of j steps before, and
/// A = h / h_1 (D - D_1), B = h / h_2 (D_1 - D_2), C = (A - B) h / (h_1 + h_2), phi_2 = 1 - (1 - exp(-k)) / k, phi_3 = phi_2 / k - 1/2:
/// x = exp(-k) x + (1 - exp(-k)) D + phi_2 (A + C h_1 / h) - phi_3 C + sigma' sqrt(1 - exp(-2 eta h)) noise.
/// The second step is without C, the first without A too, and one to sigma 0 ends at D.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DpmPlusPlus3MSde {
    /// How much of the SDE's noise is added: 0 (none) to 1, the default. Below 0 is 0.
    pub eta: f32,
    /// What the noise is multiplied by, 0 or more (below 0 is 0). Default 1.
    pub s_noise: f32,
    /// Whether to make a ladder of one step more and leave out its cleanest rung: WebUI. Default false.
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
                // In the place of the integrals of u and u².
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
