use std::ops::ControlFlow;

use crate::{Run, Rungs, Sampler, Step};

/// Ancestral sampling with Euler steps: each step goes further down than the next rung and adds noise to come back up.
/// k-diffusion's `sample_euler_ancestral` and diffusers' `EulerAncestralDiscreteScheduler`, after the ancestral sampling
/// of <https://arxiv.org/abs/2006.11239>. First order, one model call a step.
///
/// No noise is drawn for the last step, which ends at sigma 0 (diffusers draws it and multiplies it by 0).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EulerAncestral {
    /// How much of the ancestral noise is added: 0 (none, which is [`Euler`](crate::Euler)) to 1, the default.
    pub eta: f32,
}

impl Default for EulerAncestral {
    fn default() -> Self {
        Self { eta: 1.0 }
    }
}

impl Sampler for EulerAncestral {
    fn sample(&self, x: &mut [f32], rungs: &Rungs, run: &mut dyn Run) -> ControlFlow<()> {
        let (mut denoised, mut noise) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        for at in rungs.iter() {
            run.denoise(x, at, &mut denoised)?;
            let (down, up) = ancestral(at.sigma, rungs.sigmas()[at.index + 1], self.eta);
            if up > 0.0 {
                run.noise(&mut noise);
            }
            for ((x, denoised), noise) in x.iter_mut().zip(&denoised).zip(&noise) {
                *x += (*x - denoised) / at.sigma * (down - at.sigma) + up * noise;
            }
            run.step(Step::new(rungs, at.index, x, &denoised))?;
        }
        ControlFlow::Continue(())
    }
}

/// Splits a step between two sigmas into the sigma to go down to and the noise to add: `down² + up² = to²`.
pub(super) fn ancestral(from: f32, to: f32, eta: f32) -> (f32, f32) {
    let posterior = to * ((from * from - to * to).max(0.0) / (from * from)).sqrt();
    let up = (eta * posterior).clamp(0.0, to);
    ((to * to - up * up).sqrt(), up)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_parts_make_up_the_next_sigma() {
        for (from, to) in [
            (14.6_f32, 10.0_f32),
            (1.0, 0.03),
            (0.03, 0.0),
            (4096.0, 80.0),
            (1.0, 1.0),
        ] {
            for eta in [0.0, 0.3, 1.0, 9.0] {
                let (down, up) = ancestral(from, to, eta);
                assert!(
                    (down.hypot(up) - to).abs() <= 1e-6 * to,
                    "{from} {to} {eta}: {down} {up}"
                );
            }
        }
        assert_eq!(ancestral(2.0, 1.0, 0.0), (1.0, 0.0));
        assert!(ancestral(2.0, 1.0, 1.0).1 > ancestral(2.0, 1.0, 0.5).1);
    }
}
