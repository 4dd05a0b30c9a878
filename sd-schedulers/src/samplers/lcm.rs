use std::ops::ControlFlow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::row::{ComfyUi, SamplerRow, WebUi};
use super::steps::add;
use crate::{
    Ladder, Run, Rungs, Sampler, Step,
    ladders::{Conventions, FirstX, NoisePath, TimestepRounding},
    samplers::{EndPoint, Needs, WithConventions},
    schedule::ClipSample,
};

/// The sampling of latent consistency models: algorithm 2 of <https://arxiv.org/abs/2310.04378>. It
/// is for models that were distilled for it, runs in 1 to 8 steps, and calls the model once per
/// step.
///
/// Reference implementation: diffusers' `LCMScheduler`.
///
/// For the timestep t and `tau = t · timestep_scaling`, a step is
/// ```text
/// c_skip = 0.5² / (tau² + 0.5²)
/// c_out = tau / sqrt(tau² + 0.5²)
/// x = c_out D + c_skip x + sigma' noise
/// ```
///
/// The distillation uses 50 timesteps, which the ladder `lcm` has. An EDM model has no such
/// timesteps, and runs only with [`LcmBoundary::None`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Lcm {
    /// The x that c_skip multiplies.
    ///
    /// Default: [`LcmBoundary::Preserving`].
    pub boundary: LcmBoundary,
    /// The factor of timesteps in c_skip and c_out, finite and above 0. A value of 0 or below, or
    /// NaN, takes nothing from D.
    ///
    /// Default: 10.
    pub timestep_scaling: f32,
    /// The clipping of the denoised sample, for models of pixels.
    ///
    /// Default: [`ClipSample::None`].
    pub clip: ClipSample,
}

/// The boundary condition of [`Lcm`], which makes the clean sample at timestep 0 its own denoised
/// sample.
///
/// Default: [`LcmBoundary::Preserving`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LcmBoundary {
    /// c_skip multiplies x in the variance-preserving scaling, as in diffusers and in the paper.
    #[default]
    Preserving,
    /// c_skip multiplies x as it is, as in WebUI.
    Exploding,
    /// There is no boundary condition, so x = D + sigma' noise, which needs no timestep: ComfyUI,
    /// and diffusers on flow models (`FlowMatchLCMScheduler`, or `stochastic_sampling` of
    /// `FlowMatchEulerDiscreteScheduler`).
    ///
    /// On flow models, a step is in their own scaling: x = (1 - sigma') D + sigma' noise.
    None,
}

impl Default for Lcm {
    fn default() -> Self {
        Self {
            boundary: LcmBoundary::Preserving,
            timestep_scaling: 10.0,
            clip: ClipSample::None,
        }
    }
}

pub(super) const ROW: SamplerRow = SamplerRow::new::<Lcm>(
    "lcm",
    "LCM",
    "https://arxiv.org/abs/2310.04378",
    Ladder::lcm(),
    |config| {
        Box::new(Lcm {
            clip: config.clip,
            ..Lcm::default()
        })
    },
)
.diffusers("LCMScheduler, FlowMatchLCMScheduler")
.webui(WebUi::new(&["k_lcm"], Ladder::lcm_even, webui))
.comfyui(&[ComfyUi::new("lcm", || {
    Arc::new(Lcm {
        boundary: LcmBoundary::None,
        ..Lcm::default()
    })
})])
.ends("own formula")
.stochastic();

fn webui() -> Arc<dyn Sampler> {
    let lcm = Lcm {
        boundary: LcmBoundary::Exploding,
        ..Lcm::default()
    };
    let conventions = Conventions {
        timestep_rounding: TimestepRounding::WholeOnCosineToo,
        training_timesteps: true,
        ..Conventions::default()
    };
    WithConventions::wrap(Arc::new(lcm), conventions)
}

impl Sampler for Lcm {
    fn conventions(&self) -> Conventions {
        Conventions {
            integer_timesteps: true,
            timestep_rounding: match self.boundary {
                LcmBoundary::None => TimestepRounding::Exactly,
                LcmBoundary::Preserving | LcmBoundary::Exploding => {
                    TimestepRounding::WholeOnCosineToo
                }
            },
            first_x: FirstX::VariancePreserving,
            training_timesteps: self.boundary != LcmBoundary::None,
            flow: match self.boundary {
                LcmBoundary::None => NoisePath::Flow,
                LcmBoundary::Preserving | LcmBoundary::Exploding => NoisePath::Exploding,
            },
            ..Conventions::default()
        }
    }

    fn ends(&self) -> EndPoint {
        match self.boundary {
            LcmBoundary::None => EndPoint::Last,
            LcmBoundary::Preserving | LcmBoundary::Exploding => EndPoint::Formula,
        }
    }

    fn needs(&self) -> Needs {
        self.clip.needs()
    }

    fn adds_noise(&self) -> bool {
        true
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
            // The share of the clean sample at the next sigma.
            let clean = match rungs.path() {
                NoisePath::Exploding => 1.0,
                NoisePath::Flow => 1.0 - f64::from(next),
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
