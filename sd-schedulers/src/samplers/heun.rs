use std::ops::ControlFlow;

use super::clip;
use crate::{Run, Rungs, Sampler, Step};

/// Heun's method on the probability-flow ODE: algorithm 1 of <https://arxiv.org/abs/2206.00364>. Second order, two model
/// calls a step but one for the last; diffusers' `HeunDiscreteScheduler`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Heun {
    /// Clip the denoised sample to plus or minus this, for models of pixels. Default none.
    pub clip: Option<f32>,
}

impl Sampler for Heun {
    fn calls(&self, steps: usize) -> usize {
        2 * steps - steps.min(1)
    }

    fn sample(&self, x: &mut [f32], rungs: &Rungs, run: &mut dyn Run) -> ControlFlow<()> {
        let (mut denoised, mut denoised_2, mut x_2) =
            (vec![0.0; x.len()], vec![0.0; x.len()], vec![0.0; x.len()]);
        for at in rungs.iter() {
            run.denoise(x, at, &mut denoised)?;
            clip(&mut denoised, self.clip);
            let next = rungs.sigmas()[at.index + 1];
            for ((x_2, x), denoised) in x_2.iter_mut().zip(&*x).zip(&denoised) {
                *x_2 = x + (x - denoised) / at.sigma * (next - at.sigma);
            }
            if next == 0.0 {
                x.copy_from_slice(&x_2);
            } else {
                run.denoise(&x_2, rungs.rung(at.index + 1), &mut denoised_2)?;
                clip(&mut denoised_2, self.clip);
                for i in 0..x.len() {
                    let slope =
                        ((x[i] - denoised[i]) / at.sigma + (x_2[i] - denoised_2[i]) / next) / 2.0;
                    x[i] += slope * (next - at.sigma);
                }
            }
            run.step(Step::new(rungs, at.index, x, &denoised))?;
        }
        ControlFlow::Continue(())
    }
}
