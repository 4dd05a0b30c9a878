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
/// All of it is in the variance-exploding scaling of k-diffusion: `x` is a clean sample plus `sigma` times unit noise.
/// `Debug` shows every option: two samplers of one type that print the same are taken for the same.
pub trait Sampler: Any + Debug + Send + Sync {
    /// How the sampler wants its rungs made. Default [`Conventions::default`].
    fn conventions(&self) -> Conventions {
        Conventions::default()
    }

    /// How often a run of `steps` steps calls the model. Default once a step.
    fn calls(&self, steps: usize) -> usize {
        steps
    }

    /// Takes `x` from the first rung's sigma to a clean sample, in place.
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

    /// Fills `out`, as long as `x`, with unit normal noise.
    fn noise(&mut self, out: &mut [f32]);

    /// Called after each finished step, once per rung. `Break` stops the run. Default: go on.
    fn step(&mut self, step: Step<'_>) -> ControlFlow<()> {
        let _ = step;
        ControlFlow::Continue(())
    }
}

/// A finished step.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Step<'a> {
    /// The rung that was left: 0 to `total` - 1.
    pub index: usize,
    /// The number of rungs.
    pub total: usize,
    /// The sigma of the rung that was left.
    pub sigma: f32,
    /// The sample after the step, at the next rung's sigma.
    pub x: &'a [f32],
    /// The model's guess of the clean sample at the rung that was left: what a preview shows.
    pub denoised: &'a [f32],
}

impl<'a> Step<'a> {
    /// The step that left rung `index`.
    ///
    /// # Panics
    /// If `index` is not below [`Rungs::steps`].
    pub fn new(rungs: &Rungs, index: usize, x: &'a [f32], denoised: &'a [f32]) -> Self {
        Self {
            index,
            total: rungs.steps(),
            sigma: rungs.rung(index).sigma,
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

    fn noise(&mut self, out: &mut [f32]) {
        self.noise.fill(out);
    }
}
