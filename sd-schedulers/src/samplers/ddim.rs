use std::ops::ControlFlow;

use super::steps::{add, ancestral, renoise};
use crate::{
    Calls, Clip, Conventions, Ends, FirstX, Needs, Path, Run, Rung, Rungs, Sampler,
    SchedulerConfig, Step,
};

/// DDIM, equation 12 of <https://arxiv.org/abs/2010.02502>. First order, one model call a step; diffusers' `DDIMScheduler` (see
/// [`Target`](DdimTarget)).
///
/// In the variance-exploding scaling, with `q` the sigma the step ends at, equation 16's noise is that of
/// [`EulerAncestral`](crate::EulerAncestral), and x = D + sqrt(q² - up²) (x - D) / sigma + up noise.
///
/// WebUI's "DDIM" is the one with [`stop_at_last_rung`](Self::stop_at_last_rung), on the timesteps 1, 1 + T div N, 1 + 2 (T div N), …; its
/// "DDIM CFG++" has [`cfg_pp`](Self::cfg_pp) besides.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ddim {
    /// How much noise each step adds: 0 (none, the default; below 0 too) to 1 (that of DDPM).
    pub eta: f32,
    /// Whether the last step ends at sigma 0 (the default) or at that of timestep 0, the cleanest trained.
    pub set_alpha_to_one: bool,
    /// What is done to the denoised sample, for models of pixels. Default nothing.
    pub clip: Clip,
    /// Whether x - D is that of the clipped D, too. Default false. diffusers' `use_clipped_model_output`. Beside [`cfg_pp`](Self::cfg_pp) it is
    /// without effect.
    pub use_clipped_model_output: bool,
    /// Where a step ends. Default [`DdimTarget::NextRung`].
    pub target: DdimTarget,
    /// Whether the run ends on the last rung, which takes a step and a call less than there are rungs (a single rung is left all the
    /// same). Default false; WebUI's DDIM: true.
    pub stop_at_last_rung: bool,
    /// Whether x - D is that of the D without the prompt: CFG++, algorithm 2 of <https://arxiv.org/abs/2406.08070>, for guidance scales
    /// from 0 to 1. Default false.
    pub cfg_pp: bool,
}

/// The noise level at which a step of [`Ddim`] or [`Pndm`](crate::Pndm) ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DdimTarget {
    /// That of the next rung, as in the paper. Any ladder will do.
    #[default]
    NextRung,
    /// That of `timestep - T / N` (whole division), as in diffusers. On leading spacing it is the next rung's; on
    /// linspace, or where N does not divide T, it is not, and x is passed on as if it were. For rungs on training timesteps.
    Stride,
}

impl Default for Ddim {
    fn default() -> Self {
        Self {
            eta: 0.0,
            set_alpha_to_one: true,
            clip: Clip::None,
            use_clipped_model_output: false,
            target: DdimTarget::NextRung,
            stop_at_last_rung: false,
            cfg_pp: false,
        }
    }
}

impl Ddim {
    /// What diffusers' `DDIMScheduler` makes of a configuration: strides, with the last step and the clipping that the
    /// configuration says.
    pub fn from_config(config: &SchedulerConfig) -> Self {
        Self {
            set_alpha_to_one: config.set_alpha_to_one,
            clip: config.clip,
            target: DdimTarget::Stride,
            ..Self::default()
        }
    }
}

impl Sampler for Ddim {
    fn conventions(&self) -> Conventions {
        self.target.conventions()
    }

    fn calls(&self, rungs: &Rungs) -> Calls {
        Calls::Exactly(steps(rungs, self.stop_at_last_rung))
    }

    fn ends(&self) -> Ends {
        match (self.stop_at_last_rung, self.set_alpha_to_one) {
            (true, _) => Ends::Own,
            (false, true) => Ends::Last,
            (false, false) => Ends::Cleanest,
        }
    }

    fn needs(&self) -> Needs {
        Needs {
            unconditional: self.cfg_pp,
            ..self.clip.needs()
        }
    }

    fn sample(&self, x: &mut [f32], rungs: &Rungs, run: &mut dyn Run) -> ControlFlow<()> {
        let eta = f64::from(self.eta).max(0.0);
        let mut denoised = vec![0.0; x.len()];
        let clips_after = self.clip != Clip::None && !self.use_clipped_model_output;
        let has_own_noise = self.cfg_pp || clips_after;
        // What the noise in x is on top of, where that is not the denoised sample.
        let mut clean = vec![0.0; if has_own_noise { x.len() } else { 0 }];
        let mut noise = vec![0.0; if eta > 0.0 { x.len() } else { 0 }];
        let mut scratch = self.clip.scratch(x.len());
        let total = steps(rungs, self.stop_at_last_rung);
        for at in rungs.iter().take(total) {
            if self.cfg_pp {
                run.denoise_both(x, at, &mut denoised, &mut clean)?;
            } else {
                run.denoise(x, at, &mut denoised)?;
                if clips_after {
                    clean.copy_from_slice(&denoised);
                }
            }
            self.clip.apply(&mut denoised, &mut scratch);
            let target = self.target.sigma(rungs, at, self.set_alpha_to_one);
            let (down, up) = ancestral(at.sigma.into(), target.into(), eta);
            let relabel = relabel(rungs, target, rungs.sigmas()[at.index + 1]);
            let slope = relabel * down / f64::from(at.sigma);
            let clean = if has_own_noise { &clean } else { &denoised };
            renoise(x, clean, slope, &denoised, relabel);
            if up > 0.0 {
                run.noise(at.sigma, target, &mut noise);
                add(x, relabel * up, &noise);
            }
            run.step(Step {
                total,
                ..Step::new(rungs, at.index, x, &denoised)
            })?;
        }
        ControlFlow::Continue(())
    }
}

impl DdimTarget {
    /// Those of a sampler whose steps end there.
    pub(super) fn conventions(self) -> Conventions {
        Conventions {
            integer_timesteps: true,
            first_x: FirstX::VariancePreserving,
            on_grid_only: self == Self::Stride,
            ..Conventions::default()
        }
    }

    /// The sigma at which the step from a rung ends.
    pub(super) fn sigma(self, rungs: &Rungs, at: Rung, set_alpha_to_one: bool) -> f32 {
        let next = rungs.sigmas()[at.index + 1];
        match self {
            Self::NextRung if next > 0.0 => next,
            Self::Stride if at.timestep >= stride(rungs) => {
                sigma_at(rungs, at.timestep - stride(rungs))
            }
            _ if set_alpha_to_one => 0.0,
            _ => (rungs.in_run(rungs.schedule().sigma_min()) as f32).min(at.sigma),
        }
    }
}

/// How far apart diffusers takes the timesteps to be.
pub(super) fn stride(rungs: &Rungs) -> f32 {
    (rungs.schedule().num_train_timesteps() / rungs.steps_of_whole()) as f32
}

/// How many steps a run takes that may end on its last rung: that of the whole run.
pub(super) fn steps(rungs: &Rungs, stop_at_last_rung: bool) -> usize {
    match rungs.steps() {
        steps @ 2.. if stop_at_last_rung && rungs.steps_left(steps - 1) == 1 => steps - 1,
        steps => steps,
    }
}

/// The sigma of a training timestep. That of the first rung is the rung's, which can be beyond all trained ones.
pub(super) fn sigma_at(rungs: &Rungs, timestep: f32) -> f32 {
    if timestep == rungs.timesteps()[0] {
        rungs.sigmas()[0]
    } else {
        rungs.in_run(rungs.schedule().sigma_at(timestep)) as f32
    }
}

/// What an x at one sigma is multiplied by to be taken, in the scaling that the model was trained in, for one at another.
pub(super) fn relabel(rungs: &Rungs, from: impl Into<f64>, to: impl Into<f64>) -> f64 {
    let scale = |sigma: f64| match (rungs.schedule().path(), rungs.path()) {
        (Path::Exploding, _) => sigma.hypot(1.0),
        (Path::Flow, Path::Exploding) => 1.0 + sigma,
        (Path::Flow, Path::Flow) => 1.0,
    };
    scale(to.into()) / scale(from.into())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{Ladder, NoiseSchedule, NoiseSource, TorchRng};

    /// A model that says something else without the prompt.
    struct Guided(TorchRng);

    impl Run for Guided {
        fn denoise(&mut self, x: &[f32], at: Rung, denoised: &mut [f32]) -> ControlFlow<()> {
            for (d, x) in denoised.iter_mut().zip(x) {
                *d = (x / (1.0 + at.sigma)).sin() + 0.5;
            }
            ControlFlow::Continue(())
        }

        fn denoise_both(
            &mut self,
            x: &[f32],
            at: Rung,
            denoised: &mut [f32],
            unconditional: &mut [f32],
        ) -> ControlFlow<()> {
            self.denoise(x, at, denoised)?;
            unconditional
                .iter_mut()
                .zip(x)
                .for_each(|(u, x)| *u = 0.1 * x);
            ControlFlow::Continue(())
        }

        fn noise(&mut self, from: f32, to: f32, out: &mut [f32]) {
            self.0.between(from, to, out);
        }
    }

    #[test]
    fn every_option_changes_the_outcome() {
        let schedule = Arc::new(NoiseSchedule::new(&SchedulerConfig::default()).unwrap());
        let run = |sampler: Ddim| {
            let rungs = Ladder::linspace()
                .rungs(&schedule, 7, &sampler.conventions())
                .unwrap();
            let mut x = vec![9.0, -3.0, 0.5];
            let noise = TorchRng::new(5);
            assert!(
                sampler
                    .sample(&mut x, &rungs, &mut Guided(noise))
                    .is_continue()
            );
            x
        };
        let default = Ddim::default();
        let clipped = Ddim {
            clip: Clip::Range(0.5),
            set_alpha_to_one: false,
            ..default
        };
        type Change = fn(&mut Ddim);
        let cases: [(Ddim, Change); 7] = [
            (default, |ddim| ddim.eta = 0.5),
            (default, |ddim| ddim.set_alpha_to_one = false),
            (default, |ddim| ddim.clip = Clip::Range(0.5)),
            (clipped, |ddim| ddim.use_clipped_model_output = true),
            (default, |ddim| ddim.target = DdimTarget::Stride),
            (default, |ddim| ddim.stop_at_last_rung = true),
            (default, |ddim| ddim.cfg_pp = true),
        ];
        for (from, change) in cases {
            let mut to = from;
            change(&mut to);
            assert_ne!(run(from), run(to), "{to:?}");
        }
        let both = |use_clipped_model_output| Ddim {
            use_clipped_model_output,
            cfg_pp: true,
            ..clipped
        };
        assert_eq!(run(both(true)), run(both(false)));
    }
}
