use std::ops::ControlFlow;

use super::history::{History, adams_bashforth, last_sigmas};
use super::steps::noise_in;
use crate::{Conventions, Ends, Path, Run, Rungs, Sampler, Step};

/// Linear multistep (Adams-Bashforth on uneven rungs) on the probability-flow ODE of <https://arxiv.org/abs/2206.00364>; without a
/// paper of its own. Order 1 to 4, starting at 1 and rising by 1 a step; one model call a step; k-diffusion's `sample_lms` and
/// diffusers' `LMSDiscreteScheduler`.
///
/// The slopes (x - D) / sigma of the last steps, as a polynomial in sigma, integrated from sigma to sigma'. The step to sigma 0 is
/// no exception: where it goes is not the denoised sample but for the first order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lms {
    /// How many slopes are used, 1 (Euler) to 4, the default; outside of that the nearer end.
    pub order: usize,
}

impl Default for Lms {
    fn default() -> Self {
        Self { order: 4 }
    }
}

impl Sampler for Lms {
    fn conventions(&self) -> Conventions {
        Conventions {
            flow: Path::Flow,
            ..Conventions::default()
        }
    }

    fn ends(&self) -> Ends {
        match self.order {
            0 | 1 => Ends::Last,
            _ => Ends::Own,
        }
    }

    fn sample(&self, x: &mut [f32], rungs: &Rungs, run: &mut dyn Run) -> ControlFlow<()> {
        let most = self.order.clamp(1, 4);
        let (mut denoised, mut slopes) = (vec![0.0; x.len()], History::new(most, x.len()));
        for at in rungs.iter() {
            run.denoise(x, at, &mut denoised)?;
            noise_in(x, &denoised, at.sigma, slopes.push());
            let (sigma, order) = (f64::from(at.sigma), most.min(at.index + 1));
            let next = f64::from(rungs.sigmas()[at.index + 1]);
            let nodes = last_sigmas(rungs.sigmas(), at.index, order);
            let [_, older @ ..] = adams_bashforth(&nodes[..order], next);
            let weights = older.map(|weight| (next - sigma) * weight);
            slopes.step(x, &denoised, next / sigma, weights);
            run.step(Step::new(rungs, at.index, x, &denoised))?;
        }
        ControlFlow::Continue(())
    }
}
