use std::ops::ControlFlow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::row::{ComfyUi, SamplerRow};
use super::steps::{add, slide};
use crate::{
    Ladder, Run, Rungs, Sampler, Step,
    ladders::{Conventions, FirstX},
    samplers::{EndPoint, Needs},
    schedule::ClipSample,
};

/// DDPM: equations 6 and 7 (the posterior mean) and section 3.2 (the two variances) of
/// <https://arxiv.org/abs/2006.11239>. It is of first order, calls the model once per step and
/// always adds noise.
///
/// Reference implementation: diffusers' `DDPMScheduler`.
///
/// A step is x = D + (sigma' / sigma)² (x - D) + up noise. With the default variance, it is
/// [`EulerAncestral`](crate::samplers::EulerAncestral).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ddpm {
    /// The amount of noise that a step adds.
    ///
    /// Default: [`DdpmVariance::Small`].
    pub variance: DdpmVariance,
    /// The clipping of the denoised sample, for models of pixels.
    ///
    /// Default: [`ClipSample::None`].
    pub clip: ClipSample,
}

/// The noise that a step of [`Ddpm`] adds. The true variance lies between the two choices.
///
/// Default: [`DdpmVariance::Small`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DdpmVariance {
    /// The posterior variance for data that is a single point: up = sigma' sqrt(1 - sigma'² /
    /// sigma²). It is diffusers' `fixed_small` and `fixed_small_log`.
    #[default]
    Small,
    /// Beta, the variance for unit normal data: up = sqrt(sigma² - sigma'²) sqrt(1 + sigma'²) /
    /// sqrt(1 + sigma²). It is diffusers' `fixed_large`.
    ///
    /// The last step also adds noise to the denoised sample, unless it leaves timestep 0.
    Large,
}

pub(super) const ROW: SamplerRow = SamplerRow::new::<Ddpm>(
    "ddpm",
    "DDPM",
    "https://arxiv.org/abs/2006.11239",
    Ladder::leading(),
    |config| {
        Box::new(Ddpm {
            clip: config.clip,
            ..Ddpm::default()
        })
    },
)
.diffusers("DDPMScheduler")
.comfyui(&[ComfyUi::new("ddpm", || Arc::new(Ddpm::default()))])
.stochastic();

impl Sampler for Ddpm {
    fn conventions(&self) -> Conventions {
        Conventions {
            integer_timesteps: true,
            first_x: FirstX::VariancePreserving,
            ..Conventions::default()
        }
    }

    fn ends(&self) -> EndPoint {
        match self.variance {
            DdpmVariance::Small => EndPoint::Last,
            DdpmVariance::Large => EndPoint::Formula,
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
        for at in rungs.iter() {
            run.denoise(x, at, &mut denoised)?;
            self.clip.apply(&mut denoised, &mut scratch);
            let next = rungs.sigmas()[at.index + 1];
            let (sigma, to) = (f64::from(at.sigma), f64::from(next));
            let gap = (sigma * sigma - to * to).sqrt();
            let up = match self.variance {
                DdpmVariance::Small => gap * to / sigma,
                DdpmVariance::Large if next == 0.0 && at.timestep == 0.0 => 0.0,
                DdpmVariance::Large => gap * to.hypot(1.0) / sigma.hypot(1.0),
            };
            slide(x, &denoised, (to / sigma).powi(2));
            if up > 0.0 {
                run.noise(at.sigma, next, &mut noise);
                add(x, up, &noise);
            }
            run.step(Step::new(rungs, at.index, x, &denoised))?;
        }
        ControlFlow::Continue(())
    }
}
