use std::ops::ControlFlow;

use super::steps::{add, ancestral_from, slide, slide_bent};
use crate::{Calls, Conventions, Run, Rungs, Sampler, Step, Told};

/// DPM-Solver-2 with ancestral noise: algorithm 1 of <https://arxiv.org/abs/2206.00927> with r = 1/2, in the form of k-diffusion's
/// `sample_dpm_2_ancestral` and diffusers' `KDPM2AncestralDiscreteScheduler`. Second order, two model calls a step but one for the last.
///
/// Down to mid = sqrt(sigma · down), half way in log sigma; its slope then takes x from sigma to down, and noise up to the next rung. `down`
/// and the noise are those of [`EulerAncestral`](crate::EulerAncestral).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dpm2Ancestral {
    /// How much of the ancestral noise is added: 0 (none) to 1, the default. Below 0 is 0. So far above 1 that the next rung would be all
    /// noise, a step ends at the denoised sample without any, as in k-diffusion.
    pub eta: f32,
    /// What the noise is multiplied by, 0 or more (below 0 is 0). Default 1.
    pub s_noise: f32,
    /// Which timesteps the model is told at the rungs. Default [`Told::Exactly`], as k-diffusion; diffusers: [`Told::KarrasRounded`]. Those
    /// half way are exact in both.
    pub told: Told,
    /// Whether to make a ladder of one step more and leave out its cleanest rung: WebUI and ComfyUI. Default false.
    pub drop_next_to_last: bool,
}

impl Default for Dpm2Ancestral {
    fn default() -> Self {
        Self {
            eta: 1.0,
            s_noise: 1.0,
            told: Told::Exactly,
            drop_next_to_last: false,
        }
    }
}

impl Sampler for Dpm2Ancestral {
    fn conventions(&self) -> Conventions {
        Conventions {
            told: self.told,
            drop_next_to_last: self.drop_next_to_last,
            ..Conventions::default()
        }
    }

    fn calls(&self, rungs: &Rungs) -> Calls {
        let to_zero = rungs
            .iter()
            .filter(|at| ancestral_from(rungs, *at, self.eta).0 == 0.0);
        Calls::Exactly(2 * rungs.steps() - to_zero.count())
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
                // With an eta of 1 the middle is the next rung.
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
