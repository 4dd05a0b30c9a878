//! What a sampler is, and what it drives.

use std::any::Any;
use std::fmt::Debug;
use std::ops::ControlFlow;

use crate::{Conventions, NoiseSource, Rung, Rungs};

/// A sampler: a loop over the rungs that turns noise into a sample.
///
/// The value holds options only. What a run remembers (earlier steps of a multistep method) lives in the call, so one
/// value serves any number of runs and threads.
///
/// All of it is in the variance-exploding scaling of k-diffusion: `x` is a clean sample plus `sigma` times unit noise. On a flow model
/// too, unless [`Conventions::flow`] says otherwise.
///
/// `Debug` shows every option: two samplers of one type that print the same are taken for the same ([`same`](crate::same)).
pub trait Sampler: Any + Debug + Send + Sync {
    /// How the sampler wants its rungs made. Default [`Conventions::default`].
    fn conventions(&self) -> Conventions {
        Conventions::default()
    }

    /// How often a run calls the model. Default once a step.
    fn calls(&self, rungs: &Rungs) -> Calls {
        Calls::Exactly(rungs.steps())
    }

    /// Where a run ends. Default [`Ends::Last`].
    fn ends(&self) -> Ends {
        Ends::Last
    }

    /// What else it needs of whoever drives it. Default nothing.
    fn needs(&self) -> Needs {
        Needs::default()
    }

    /// Takes `x` from the first rung's sigma to the last, mostly 0, in place.
    ///
    /// `x` is any number of values in any order, on entry unit noise times [`Rungs::initial_scale`]. Breaks as soon as
    /// `run` does, and leaves `x` half done.
    fn sample(&self, x: &mut [f32], rungs: &Rungs, run: &mut dyn Run) -> ControlFlow<()>;
}

/// What a sampler drives: the model, the noise and whoever watches.
pub trait Run {
    /// Writes D(x; sigma), the model's guess of the clean sample in `x`, to `denoised` (as long as `x`).
    ///
    /// `Break` stops the run, for a failure or a cancellation; the implementer keeps the reason.
    fn denoise(&mut self, x: &[f32], at: Rung, denoised: &mut [f32]) -> ControlFlow<()>;

    /// Writes D(x; sigma) to `denoised` and what it would be without the prompt, or for the negative one, to
    /// `unconditional`. Default: without guidance, both are the same.
    fn denoise_both(
        &mut self,
        x: &[f32],
        at: Rung,
        denoised: &mut [f32],
        unconditional: &mut [f32],
    ) -> ControlFlow<()> {
        self.denoise(x, at, denoised)?;
        unconditional.copy_from_slice(denoised);
        ControlFlow::Continue(())
    }

    /// Fills `out`, as long as `x`, with unit normal noise, that of the way from sigma `from` to `to` (up, where a sampler goes back): a
    /// source that keeps one path of noise for all numbers of steps ([`BrownianTree`](crate::BrownianTree)) needs to know; others don't.
    fn noise(&mut self, from: f32, to: f32, out: &mut [f32]);

    /// Called once per finished step, and may change `x`. `Break` stops the run. Default: go on.
    fn step(&mut self, step: Step<'_>) -> ControlFlow<()> {
        let _ = step;
        ControlFlow::Continue(())
    }
}

/// What a sampler needs besides a model and noise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// The model's output without the prompt ([`Run::denoise_both`]): the samplers of CFG++.
    pub unconditional: bool,
    /// Noise that belongs to one path from the first sigma to the last ([`NoiseSource::between`]): the samplers that k-diffusion gives a
    /// Brownian tree. They run on any noise, but then another number of steps makes another picture.
    pub brownian: bool,
    /// That `x` is one picture and not several at once: steps that look at all of it ([`Clip::Dynamic`](crate::Clip::Dynamic), the choice of
    /// steps in [`DpmAdaptive`](crate::DpmAdaptive)) would make pictures change one another.
    pub one_picture: bool,
}

/// How often a run calls the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Calls {
    /// This often.
    Exactly(usize),
    /// At most this often: a sampler that chooses its own steps.
    AtMost(usize),
}

/// Where a run ends on a ladder whose last sigma is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// At the last sigma: if that is 0, at the model's guess of the clean sample in the last x.
    Last,
    /// At the cleanest noise level that the model was trained on: DDIM and PNDM where `set_alpha_to_one` is false.
    Cleanest,
    /// Where its own formula says.
    Own,
}

/// A finished step. A sampler over the rungs has [`Step::new`] make it, one over sigmas of its own says all of it.
#[derive(Debug)]
pub struct Step<'a> {
    /// The place of the step in the run: 0 to `total` - 1.
    pub index: usize,
    /// The number of steps, which is mostly that of the rungs. One less, where [`Ddim`](crate::Ddim::stop_at_last_rung) and
    /// [`Pndm`](crate::Pndm::stop_at_last_rung) stop at the last rung. [`Restart`](crate::Restart) counts those that it makes again,
    /// [`DpmFast`](crate::DpmFast) its own. [`DpmAdaptive`](crate::DpmAdaptive) estimates it anew at each step: only that of the last is sure.
    pub total: usize,
    /// The sigma that was left, mostly a rung's.
    pub sigma: f32,
    /// The sigma that was reached.
    pub next: f32,
    /// The sample after the step, at `next`.
    pub x: &'a mut [f32],
    /// The model's guess of the clean sample at the sigma that was left: what a preview shows.
    pub denoised: &'a [f32],
}

impl<'a> Step<'a> {
    /// The step that left rung `index` for the next one, in a run of as many steps as there are
    /// rungs. A later step, of a sampler that makes more, stays at the last sigma.
    pub fn new(rungs: &Rungs, index: usize, x: &'a mut [f32], denoised: &'a [f32]) -> Self {
        let sigma = |index: usize| rungs.sigmas()[index.min(rungs.steps())];
        Self {
            index,
            total: rungs.steps().max(index.saturating_add(1)),
            sigma: sigma(index),
            next: sigma(index.saturating_add(1)),
            x,
            denoised,
        }
    }
}

/// Runs a sampler on a closure: `denoise(x, at, denoised)` writes D(x; sigma) to `denoised`.
///
/// `x` is unit noise times [`Rungs::initial_scale`] on entry and the sample on return. To watch or stop a run, implement
/// [`Run`] and call [`Sampler::sample`].
pub fn sample(
    sampler: &dyn Sampler,
    x: &mut [f32],
    rungs: &Rungs,
    noise: &mut dyn NoiseSource,
    denoise: impl FnMut(&[f32], Rung, &mut [f32]),
) {
    // A run of closures never breaks.
    let _ = sampler.sample(x, rungs, &mut Closure { noise, denoise });
}

struct Closure<'a, D> {
    noise: &'a mut dyn NoiseSource,
    denoise: D,
}

impl<D: FnMut(&[f32], Rung, &mut [f32])> Run for Closure<'_, D> {
    fn denoise(&mut self, x: &[f32], at: Rung, denoised: &mut [f32]) -> ControlFlow<()> {
        (self.denoise)(x, at, denoised);
        ControlFlow::Continue(())
    }

    fn noise(&mut self, from: f32, to: f32, out: &mut [f32]) {
        self.noise.between(from, to, out);
    }
}
