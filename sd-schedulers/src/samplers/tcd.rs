use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use super::ddim::relabel;
use super::row::SamplerRow;
use super::steps::{add, slide};
use crate::{
    Ladder, Run, Rung, Rungs, Sampler, Step,
    ladders::{Conventions, FirstX, TimestepRounding},
    samplers::EndPoint,
};

/// Strategic stochastic sampling of trajectory consistency distillation: algorithm 4 of
/// <https://arxiv.org/abs/2402.19159>. It is for models that were distilled for it, is of first
/// order, and calls the model once per step.
///
/// Reference implementation: diffusers' `TCDScheduler`.
///
/// With t' the next rung's timestep and q the sigma at timestep floor((1 - gamma) t'), a step is
/// x = D + q / sigma (x - D), and noise of deviation sqrt(sigma'² - q²) leads up to the next
/// rung. After the last rung, q is the sigma of timestep 0, the cleanest of the training. An EDM
/// model is refused, because it has no such timesteps.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tcd {
    /// How far down each step goes before it comes up again, from 0 (to the next rung, which is
    /// [`Ddim`](crate::samplers::Ddim)) to 1 (to timestep 0): `eta` of diffusers' `step`. A value
    /// outside counts as the nearer end, and NaN counts as 0.
    ///
    /// Default: 0.3.
    pub gamma: f32,
}

impl Default for Tcd {
    fn default() -> Self {
        Self { gamma: 0.3 }
    }
}

impl Tcd {
    /// Returns the sigma that the step from a rung goes down to.
    fn target(&self, rungs: &Rungs, at: Rung) -> f64 {
        let (schedule, next) = (rungs.schedule(), rungs.sigmas()[at.index + 1]);
        match rungs.after(at.index) {
            Some(after) if self.gamma > 0.0 => {
                // Use float32 as torch does. Otherwise a product near a whole number could fall on
                // its other side.
                let timestep = ((1.0 - f64::from(self.gamma)) as f32 * after.timestep).floor();
                rungs.in_run(schedule.sigma_at(timestep)).min(next.into())
            }
            None if next == 0.0 => rungs.in_run(schedule.sigma_min()).min(at.sigma.into()),
            _ => next.into(),
        }
    }
}

pub(super) const ROW: SamplerRow = SamplerRow::new::<Tcd>(
    "tcd",
    "TCD",
    "https://arxiv.org/abs/2402.19159",
    Ladder::lcm(),
    |_| Box::new(Tcd::default()),
)
.diffusers("TCDScheduler")
.ends("alpha-bar 0")
.stochastic();

impl Sampler for Tcd {
    fn conventions(&self) -> Conventions {
        Conventions {
            integer_timesteps: true,
            timestep_rounding: TimestepRounding::WholeOnCosineToo,
            first_x: FirstX::VariancePreserving,
            training_timesteps: true,
            ..Conventions::default()
        }
    }

    fn ends(&self) -> EndPoint {
        EndPoint::Cleanest
    }

    fn adds_noise(&self) -> bool {
        self.gamma > 0.0
    }

    fn sample(&self, x: &mut [f32], rungs: &Rungs, run: &mut dyn Run) -> ControlFlow<()> {
        let (mut denoised, mut noise) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        for at in rungs.iter() {
            run.denoise(x, at, &mut denoised)?;
            let next = rungs.sigmas()[at.index + 1];
            let (to, target) = (f64::from(next), self.target(rungs, at));
            slide(x, &denoised, target / f64::from(at.sigma));
            if target < to {
                run.noise(at.sigma, next, &mut noise);
                add(x, (to * to - target * target).sqrt(), &noise);
            } else if target > to {
                // This is the end of the run, cleaner than any rung. From there to sigma 0, x keeps
                // its value in the scaling of the training.
                let keep = relabel(rungs, target, to) as f32;
                x.iter_mut().for_each(|x| *x *= keep);
            }
            run.step(Step::new(rungs, at.index, x, &denoised))?;
        }
        ControlFlow::Continue(())
    }
}
