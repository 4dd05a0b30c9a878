use std::ops::ControlFlow;

use crate::{Run, Rungs, Sampler, Step};

/// Euler's method on the probability-flow ODE: algorithm 2 of <https://arxiv.org/abs/2206.00364> without churn and
/// without its second half. First order, one model call a step; diffusers' `EulerDiscreteScheduler`.
///
/// dx/dsigma = (x - D(x; sigma)) / sigma
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Euler;

impl Sampler for Euler {
    fn sample(&self, x: &mut [f32], rungs: &Rungs, run: &mut dyn Run) -> ControlFlow<()> {
        let mut denoised = vec![0.0; x.len()];
        for at in rungs.iter() {
            run.denoise(x, at, &mut denoised)?;
            let next = rungs.sigmas()[at.index + 1];
            for (x, denoised) in x.iter_mut().zip(&denoised) {
                *x += (*x - denoised) / at.sigma * (next - at.sigma);
            }
            run.step(Step::new(rungs, at.index, x, &denoised))?;
        }
        ControlFlow::Continue(())
    }
}
