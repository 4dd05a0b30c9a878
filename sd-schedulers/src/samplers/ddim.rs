use std::ops::ControlFlow;

use super::clip;
use super::euler_ancestral::ancestral;
use crate::{Conventions, FirstX, Run, Rung, Rungs, Sampler, SchedulerConfig, Step};

/// DDIM, equation 12 of <https://arxiv.org/abs/2010.02502>. First order, one model call a step; diffusers'
/// `DDIMScheduler` (see [`Target`](DdimTarget)).
///
/// In the variance-exploding scaling, with `q` the sigma the step ends at, equation 16's noise is that of
/// [`EulerAncestral`](crate::EulerAncestral), and x = D + sqrt(q² - up²) (x - D) / sigma + up noise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ddim {
    /// How much noise each step adds: 0 (none, the default) to 1 (that of DDPM).
    pub eta: f32,
    /// Whether the last step ends at sigma 0 (the default) or at that of timestep 0, the cleanest trained.
    pub set_alpha_to_one: bool,
    /// Clip the denoised sample to plus or minus this, for models of pixels; the noise is not derived anew from the
    /// clipped sample. Default none.
    pub clip: Option<f32>,
    /// Where a step ends. Default [`DdimTarget::NextRung`].
    pub target: DdimTarget,
}

/// The noise level at which a step of [`Ddim`] ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DdimTarget {
    /// That of the next rung, as in the paper.
    #[default]
    NextRung,
    /// That of `timestep - T / N` (whole division), as in diffusers. On leading spacing it is the next rung's; on
    /// linspace, or where N does not divide T, it is not, and x is passed on as if it were.
    Stride,
}

impl Default for Ddim {
    fn default() -> Self {
        Self {
            eta: 0.0,
            set_alpha_to_one: true,
            clip: None,
            target: DdimTarget::NextRung,
        }
    }
}

impl Ddim {
    /// What diffusers' `DDIMScheduler` makes of a configuration: strides, with the last step and the clipping that the
    /// configuration says.
    pub fn from_config(config: &SchedulerConfig) -> Self {
        let SchedulerConfig {
            set_alpha_to_one,
            clip_sample: clip,
            ..
        } = *config;
        Self {
            eta: 0.0,
            set_alpha_to_one,
            clip,
            target: DdimTarget::Stride,
        }
    }

    /// The sigma at which the step from a rung ends.
    fn target_sigma(&self, rungs: &Rungs, at: Rung) -> f32 {
        let (schedule, last) = (rungs.schedule(), at.index + 1 == rungs.steps());
        let stride = (schedule.num_train_timesteps() / rungs.steps()) as f32;
        match self.target {
            DdimTarget::NextRung if !last => rungs.sigmas()[at.index + 1],
            DdimTarget::Stride if at.timestep >= stride => schedule.sigma_at(at.timestep - stride),
            _ if self.set_alpha_to_one => 0.0,
            _ => schedule.sigma_min(),
        }
    }
}

impl Sampler for Ddim {
    fn conventions(&self) -> Conventions {
        Conventions {
            integer_timesteps: true,
            first_x: FirstX::VariancePreserving,
            on_grid_only: true,
            ..Default::default()
        }
    }

    fn sample(&self, x: &mut [f32], rungs: &Rungs, run: &mut dyn Run) -> ControlFlow<()> {
        let (mut denoised, mut noise) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        let mut direction = vec![0.0; x.len()];
        for at in rungs.iter() {
            run.denoise(x, at, &mut denoised)?;
            for ((direction, x), denoised) in direction.iter_mut().zip(&*x).zip(&denoised) {
                *direction = (x - denoised) / at.sigma;
            }
            clip(&mut denoised, self.clip);
            let target = self.target_sigma(rungs, at);
            let (down, up) = ancestral(at.sigma, target, self.eta);
            if up > 0.0 {
                run.noise(&mut noise);
            }
            // x is kept in the variance-preserving scaling from where the step ends to the next rung.
            let rescale = rungs.sigmas()[at.index + 1].hypot(1.0) / target.hypot(1.0);
            for i in 0..x.len() {
                x[i] = rescale * (denoised[i] + down * direction[i] + up * noise[i]);
            }
            run.step(Step::new(rungs, at.index, x, &denoised))?;
        }
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{Euler, Ladder, NoiseSchedule, Sampler, TorchRng, sample};

    fn run(sampler: &dyn Sampler, ladder: Ladder) -> Vec<f32> {
        let schedule = Arc::new(NoiseSchedule::new(&SchedulerConfig::default()).unwrap());
        let rungs = ladder
            .rungs(&schedule, 7, &Ddim::default().conventions())
            .unwrap();
        let mut x = vec![9.0, -3.0, 0.5];
        sample(
            sampler,
            &mut x,
            &rungs,
            &mut TorchRng::new(5),
            |x, at, denoised| {
                for (d, x) in denoised.iter_mut().zip(x) {
                    *d = (x / (1.0 + at.sigma)).sin() + 0.5;
                }
            },
        );
        x
    }

    /// Both are D + (x - D) sigma'/sigma: they differ by roundings only.
    #[test]
    fn without_noise_and_strides_it_is_euler() {
        for ladder in [Ladder::leading(), Ladder::linspace(), Ladder::trailing()] {
            for (ddim, euler) in run(&Ddim::default(), ladder)
                .iter()
                .zip(run(&Euler, ladder))
            {
                assert!((ddim - euler).abs() < 1e-5, "{ladder:?}: {ddim} != {euler}");
            }
        }
    }

    #[test]
    fn every_option_changes_the_outcome() {
        let default = run(&Ddim::default(), Ladder::linspace());
        let options = [
            Ddim {
                eta: 0.5,
                ..Default::default()
            },
            Ddim {
                set_alpha_to_one: false,
                ..Default::default()
            },
            Ddim {
                clip: Some(0.5),
                ..Default::default()
            },
            Ddim {
                target: DdimTarget::Stride,
                ..Default::default()
            },
        ];
        for option in options {
            assert_ne!(run(&option, Ladder::linspace()), default, "{option:?}");
        }
    }
}
