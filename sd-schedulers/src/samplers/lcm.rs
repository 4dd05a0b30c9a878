use std::ops::ControlFlow;

use super::steps::add;
use crate::{Clip, Conventions, Ends, FirstX, Needs, Path, Run, Rungs, Sampler, Step, Told};

/// The sampling of latent consistency models: algorithm 2 of <https://arxiv.org/abs/2310.04378>. For models distilled to it, in 1 to 8 steps;
/// one model call a step; diffusers' `LCMScheduler`.
///
/// x = c_out D + c_skip x + sigma' noise, where for the timestep t and `tau = t · timestep_scaling`: c_skip = 0.5² / (tau² + 0.5²),
/// c_out = tau / sqrt(tau² + 0.5²). The distillation was done on 50 timesteps: the ladder `lcm`. An EDM model has no such timesteps, and runs
/// with [`LcmBoundary::None`] only.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lcm {
    /// Which x c_skip multiplies. Default [`LcmBoundary::Preserving`].
    pub boundary: LcmBoundary,
    /// What timesteps are multiplied by for c_skip and c_out, above 0 and finite. Default 10. At 0 or below (NaN too) nothing of D is taken.
    pub timestep_scaling: f32,
    /// What is done to the denoised sample, for models of pixels. Default nothing.
    pub clip: Clip,
}

/// The boundary condition of [`Lcm`]: what makes the clean sample at timestep 0 its own denoised sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LcmBoundary {
    /// c_skip multiplies x in the variance-preserving scaling: diffusers, the paper.
    #[default]
    Preserving,
    /// c_skip multiplies x as it is: WebUI.
    Exploding,
    /// None, so x = D + sigma' noise, which needs no timestep: ComfyUI, and diffusers on flow models (`FlowMatchLCMScheduler`, or
    /// `stochastic_sampling` of `FlowMatchEulerDiscreteScheduler`). On those in their own scaling: x = (1 - sigma') D + sigma' noise.
    None,
}

impl Default for Lcm {
    fn default() -> Self {
        Self {
            boundary: LcmBoundary::Preserving,
            timestep_scaling: 10.0,
            clip: Clip::None,
        }
    }
}

impl Sampler for Lcm {
    fn conventions(&self) -> Conventions {
        Conventions {
            integer_timesteps: true,
            told: match self.boundary {
                LcmBoundary::None => Told::Exactly,
                LcmBoundary::Preserving | LcmBoundary::Exploding => Told::WholeOnCosineToo,
            },
            first_x: FirstX::VariancePreserving,
            training_timesteps: self.boundary != LcmBoundary::None,
            flow: match self.boundary {
                LcmBoundary::None => Path::Flow,
                LcmBoundary::Preserving | LcmBoundary::Exploding => Path::Exploding,
            },
            ..Conventions::default()
        }
    }

    fn ends(&self) -> Ends {
        match self.boundary {
            LcmBoundary::None => Ends::Last,
            LcmBoundary::Preserving | LcmBoundary::Exploding => Ends::Own,
        }
    }

    fn needs(&self) -> Needs {
        self.clip.needs()
    }

    fn sample(&self, x: &mut [f32], rungs: &Rungs, run: &mut dyn Run) -> ControlFlow<()> {
        let (mut denoised, mut noise) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        let mut scratch = self.clip.scratch(x.len());
        let scaling = f64::from(self.timestep_scaling).max(0.0);
        for at in rungs.iter() {
            run.denoise(x, at, &mut denoised)?;
            self.clip.apply(&mut denoised, &mut scratch);
            let tau = f64::from(at.timestep) * scaling;
            let (c_skip, c_out) = (0.25 / (tau * tau + 0.25), tau / tau.hypot(0.5));
            let (c_skip, c_out) = match self.boundary {
                LcmBoundary::Preserving => (c_skip / f64::from(at.sigma).hypot(1.0), c_out),
                LcmBoundary::Exploding => (c_skip, c_out),
                LcmBoundary::None => (0.0, 1.0),
            };
            let next = rungs.sigmas()[at.index + 1];
            // How much of the clean sample there is at the next sigma.
            let clean = match rungs.path() {
                Path::Exploding => 1.0,
                Path::Flow => 1.0 - f64::from(next),
            };
            let (c_skip, c_out) = ((clean * c_skip) as f32, (clean * c_out) as f32);
            for (x, denoised) in x.iter_mut().zip(&denoised) {
                *x = c_out * denoised + c_skip * *x;
            }
            if next > 0.0 {
                run.noise(at.sigma, next, &mut noise);
                add(x, next.into(), &noise);
            }
            run.step(Step::new(rungs, at.index, x, &denoised))?;
        }
        ControlFlow::Continue(())
    }
}
