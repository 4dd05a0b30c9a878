use std::ops::ControlFlow;

use super::history::History;
use super::steps::noise_in;
use crate::{Conventions, Ends, Path, Run, Rungs, Sampler, Step};

/// Gradient estimation: Euler steps along a slope that is led away from the last one, equation 12 of
/// <https://arxiv.org/abs/2306.04848>. First order, one model call a step; the authors' smalldiffusion (`samples`) and
/// `GEScheduler`.
///
/// d = (x - D) / sigma; x + (sigma' - sigma) (gamma d + (1 - gamma) d_last), in the first step along d.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GradientEstimation {
    /// How far away, 1 (Euler) or more; default 2, that of `GEScheduler` and ComfyUI. At 1.5 on evenly spaced rungs it is Adams and
    /// Bashforth's method of second order.
    pub gamma: f32,
    /// Whether a step to sigma 0 goes to the denoised sample, the default and what ComfyUI does, or along its slope as smalldiffusion's.
    pub denoise_last: bool,
}

impl Default for GradientEstimation {
    fn default() -> Self {
        Self {
            gamma: 2.0,
            denoise_last: true,
        }
    }
}

impl Sampler for GradientEstimation {
    fn conventions(&self) -> Conventions {
        Conventions {
            flow: Path::Flow,
            ..Conventions::default()
        }
    }

    fn ends(&self) -> Ends {
        if self.denoise_last {
            Ends::Last
        } else {
            Ends::Own
        }
    }

    fn sample(&self, x: &mut [f32], rungs: &Rungs, run: &mut dyn Run) -> ControlFlow<()> {
        let (mut denoised, mut slopes) = (vec![0.0; x.len()], History::new(2, x.len()));
        for at in rungs.iter() {
            run.denoise(x, at, &mut denoised)?;
            noise_in(x, &denoised, at.sigma, slopes.push());
            let sigma = f64::from(at.sigma);
            let next = f64::from(rungs.sigmas()[at.index + 1]);
            let straight = at.index == 0 || (self.denoise_last && next == 0.0);
            // What the last slope counts for instead of this one.
            let part = match straight {
                true => 0.0,
                false => 1.0 - f64::from(self.gamma),
            };
            slopes.step(
                x,
                &denoised,
                next / sigma,
                [(next - sigma) * part, 0.0, 0.0],
            );
            run.step(Step::new(rungs, at.index, x, &denoised))?;
        }
        ControlFlow::Continue(())
    }
}
