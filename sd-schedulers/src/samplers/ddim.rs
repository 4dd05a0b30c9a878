use std::ops::ControlFlow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::row::{SamplerRow, WebUi};
use super::steps::{add, ancestral, renoise, scale};
use crate::{
    Ladder, Run, Rung, Rungs, Sampler, SchedulerConfig, Step,
    ladders::{Conventions, FirstX, NoisePath},
    samplers::{Calls, EndPoint, Needs},
    schedule::ClipSample,
};

/// DDIM: equation 12 of <https://arxiv.org/abs/2010.02502>. It is of first order and calls the
/// model once per step.
///
/// Reference implementation: diffusers' `DDIMScheduler` (see [`DdimTarget`]).
///
/// In the variance-exploding scaling, with `q` the sigma at which the step ends, a step is
/// ```text
/// x = D + sqrt(q² - up²) (x - D) / sigma + up noise
/// ```
/// where `up`, from equation 16, is the same as in
/// [`EulerAncestral`](crate::samplers::EulerAncestral).
///
/// WebUI's "DDIM" is DDIM with [`stop_at_last_rung`](Self::stop_at_last_rung), on the timesteps 1,
/// 1 + T div N, 1 + 2 (T div N), …. Its "DDIM CFG++" has [`cfg_pp`](Self::cfg_pp) too.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ddim {
    /// The amount of noise that each step adds, from 0 (none) to 1 (as much as DDPM). A value below
    /// 0 counts as 0.
    ///
    /// Default: 0.
    pub eta: f32,
    /// Whether the last step ends at sigma 0. Otherwise it ends at the sigma of timestep 0, the
    /// cleanest of the training.
    ///
    /// Default: true.
    pub set_alpha_to_one: bool,
    /// The clipping of the denoised sample, for models of pixels.
    ///
    /// Default: [`ClipSample::None`].
    pub clip: ClipSample,
    /// Whether x - D is computed from the clipped D too: `use_clipped_model_output` in diffusers.
    /// It has no effect with [`cfg_pp`](Self::cfg_pp).
    ///
    /// Default: false.
    pub use_clipped_model_output: bool,
    /// The noise level at which a step ends.
    ///
    /// Default: [`DdimTarget::NextRung`].
    pub target: DdimTarget,
    /// Whether the run ends on the last rung, so that it has one step and one call less than rungs,
    /// as in WebUI's DDIM. The finished x, which still has the noise of that rung, is in the
    /// variance-preserving scaling. A run with a single rung still makes its step.
    ///
    /// Default: false.
    pub stop_at_last_rung: bool,
    /// Whether x - D is computed from the D without the prompt: CFG++, algorithm 2 of
    /// <https://arxiv.org/abs/2406.08070>, for guidance scales in `0.0..=1.0`.
    ///
    /// Default: false.
    pub cfg_pp: bool,
}

/// The noise level at which a step of [`Ddim`] or [`Pndm`](crate::samplers::Pndm) ends.
///
/// Default: [`DdimTarget::NextRung`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DdimTarget {
    /// The noise level of the next rung, as in the paper. It allows any ladder.
    #[default]
    NextRung,
    /// The noise level of `timestep - T / N` (integer division), as in diffusers. It needs rungs on
    /// training timesteps.
    ///
    /// On the leading spacing, it is the next rung's level. On linspace, or where N does not divide
    /// T, it is not, and x is passed on as if it were.
    Stride,
}

impl Default for Ddim {
    fn default() -> Self {
        Self {
            eta: 0.0,
            set_alpha_to_one: true,
            clip: ClipSample::None,
            use_clipped_model_output: false,
            target: DdimTarget::NextRung,
            stop_at_last_rung: false,
            cfg_pp: false,
        }
    }
}

impl Ddim {
    /// Returns the sampler that diffusers' `DDIMScheduler` makes from a configuration: with
    /// [`DdimTarget::Stride`], and with the last step and the clipping of the configuration.
    pub fn from_config(config: &SchedulerConfig) -> Self {
        Self {
            set_alpha_to_one: config.set_alpha_to_one,
            clip: config.clip,
            target: DdimTarget::Stride,
            ..Self::default()
        }
    }
}

pub(super) const ROW: SamplerRow = SamplerRow::new::<Ddim>(
    "ddim",
    "DDIM",
    "https://arxiv.org/abs/2010.02502",
    Ladder::leading(),
    |config| Box::new(Ddim::from_config(config)),
)
.diffusers("DDIMScheduler")
.webui(
    WebUi::new(&[], Ladder::ddim_uniform, || {
        Arc::new(Ddim {
            stop_at_last_rung: true,
            ..Ddim::default()
        })
    })
    .on_its_own_ladder(),
)
.ends("alpha-bar 0")
.needs("integer timesteps");

pub(super) const CFG_PP: SamplerRow = SamplerRow::new::<Ddim>(
    "ddim-cfg-pp",
    "DDIM CFG++",
    "https://arxiv.org/abs/2406.08070",
    Ladder::leading(),
    |config| {
        Box::new(Ddim {
            cfg_pp: true,
            target: DdimTarget::NextRung,
            ..Ddim::from_config(config)
        })
    },
)
.webui(
    WebUi::new(&["ddim_cfgpp"], Ladder::ddim_uniform, || {
        Arc::new(Ddim {
            stop_at_last_rung: true,
            cfg_pp: true,
            ..Ddim::default()
        })
    })
    .on_its_own_ladder(),
)
.ends("alpha-bar 0")
.needs("unconditional output");

impl Sampler for Ddim {
    fn conventions(&self) -> Conventions {
        self.target.conventions()
    }

    fn calls(&self, rungs: &Rungs) -> Calls {
        Calls::Exactly(steps(rungs, self.stop_at_last_rung))
    }

    fn ends(&self) -> EndPoint {
        match (self.stop_at_last_rung, self.set_alpha_to_one) {
            (true, _) => EndPoint::Formula,
            (false, true) => EndPoint::Last,
            (false, false) => EndPoint::Cleanest,
        }
    }

    fn needs(&self) -> Needs {
        Needs {
            unconditional: self.cfg_pp,
            ..self.clip.needs()
        }
    }

    fn adds_noise(&self) -> bool {
        self.eta > 0.0
    }

    fn sample(&self, x: &mut [f32], rungs: &Rungs, run: &mut dyn Run) -> ControlFlow<()> {
        let eta = f64::from(self.eta).max(0.0);
        let mut denoised = vec![0.0; x.len()];
        let clips_after = self.clip != ClipSample::None && !self.use_clipped_model_output;
        let has_own_noise = self.cfg_pp || clips_after;
        // The sample that the noise in x is on top of, if that is not the denoised sample.
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
            finish(x, rungs, at, total);
            run.step(Step {
                total,
                ..Step::new(rungs, at.index, x, &denoised)
            })?;
        }
        ControlFlow::Continue(())
    }
}

impl DdimTarget {
    /// Returns the conventions of a sampler whose steps end there.
    pub(super) fn conventions(self) -> Conventions {
        Conventions {
            integer_timesteps: true,
            first_x: FirstX::VariancePreserving,
            on_grid_only: self == Self::Stride,
            ..Conventions::default()
        }
    }

    /// Returns the sigma at which the step from a rung ends.
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

/// Scales x after the last of `total` steps if the run ends above sigma 0. WebUI takes x in the
/// variance-preserving scaling as the finished sample.
pub(super) fn finish(x: &mut [f32], rungs: &Rungs, at: Rung, total: usize) {
    if at.index + 1 == total && total < rungs.steps() {
        scale(x, relabel(rungs, rungs.sigmas()[total], 0.0));
    }
}

/// Returns the distance that diffusers assumes between timesteps.
pub(super) fn stride(rungs: &Rungs) -> f32 {
    (rungs.schedule().num_train_timesteps() / rungs.steps_of_whole()) as f32
}

/// Returns the number of steps of a run that may end on its last rung, which is the last rung of
/// the whole run.
pub(super) fn steps(rungs: &Rungs, stop_at_last_rung: bool) -> usize {
    match rungs.steps() {
        steps @ 2.. if stop_at_last_rung && rungs.steps_left(steps - 1) == 1 => steps - 1,
        steps => steps,
    }
}

/// Returns the sigma of a training timestep. For the first rung's timestep, it is the sigma of that
/// rung, which can be above all trained sigmas.
pub(super) fn sigma_at(rungs: &Rungs, timestep: f32) -> f32 {
    if timestep == rungs.timesteps()[0] {
        rungs.sigmas()[0]
    } else {
        rungs.in_run(rungs.schedule().sigma_at(timestep)) as f32
    }
}

/// Returns the factor that turns an x at one sigma into an x at another, in the scaling that the
/// model was trained in.
pub(super) fn relabel(rungs: &Rungs, from: impl Into<f64>, to: impl Into<f64>) -> f64 {
    let scale = |sigma: f64| match (rungs.schedule().path(), rungs.path()) {
        (NoisePath::Exploding, _) => sigma.hypot(1.0),
        (NoisePath::Flow, NoisePath::Exploding) => 1.0 + sigma,
        (NoisePath::Flow, NoisePath::Flow) => 1.0,
    };
    scale(to.into()) / scale(from.into())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{Ladder, NoiseSchedule, NoiseSource, noise::TorchRng};

    /// A model whose output differs without the prompt.
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
            clip: ClipSample::Range(0.5),
            set_alpha_to_one: false,
            ..default
        };
        type Change = fn(&mut Ddim);
        let cases: [(Ddim, Change); 7] = [
            (default, |ddim| ddim.eta = 0.5),
            (default, |ddim| ddim.set_alpha_to_one = false),
            (default, |ddim| ddim.clip = ClipSample::Range(0.5)),
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
