//! The traits of a sampler and of the run that it drives.

use std::any::Any;
use std::fmt::Debug;
use std::ops::ControlFlow;

use crate::{NoiseSource, Rung, Rungs, ladders::Conventions};

/// A sampler: a loop over the rungs that turns noise into a sample.
///
/// The rungs are the noise levels of the run, noisiest first. Only [`sample`](Self::sample) has no
/// default.
///
/// The value holds options only. The state of a run, such as the earlier steps of a multistep
/// method, lives in the call. One value therefore serves any number of runs and threads.
///
/// Samplers work in the variance-exploding scaling of k-diffusion: `x` is a clean sample plus
/// `sigma` times unit noise. They do so on a flow model too, unless [`Conventions::flow`] says
/// otherwise.
///
/// # Rules
/// - A sampler returns `Break` as soon as a call of [`Run`] does. A pipeline makes no more network
///   calls after that.
/// - Every slice that it passes to [`Run`] is as long as `x`. `sd-core` reports a sampler that
///   breaks this rule as an error.
/// - It should call [`Run::step`] once per step. Without these calls, a run has no progress and no
///   previews, and can be stopped only during a network call.
/// - [`calls`](Self::calls) and [`calls_per_step`](Self::calls_per_step) should be right. They are
///   not checked. Progress and prompt schedules depend on them.
///
/// A sampler must be [`PartialEq`], which usually means `#[derive(PartialEq)]`. Two values of
/// `dyn Sampler` are equal if they have the same type and are equal.
pub trait Sampler: SamplerEq + Debug + Send + Sync {
    /// Returns how the sampler wants its rungs made.
    ///
    /// Default: [`Conventions::default`].
    fn conventions(&self) -> Conventions {
        Conventions::default()
    }

    /// Returns how often a run on these rungs calls the model.
    ///
    /// Default: once per step.
    fn calls(&self, rungs: &Rungs) -> Calls {
        Calls::Exactly(rungs.steps())
    }

    /// Returns how often the sampler calls the model in most steps of a long run. WebUI resolves
    /// the steps of a prompt (`[a:b:10]`, `[a|b]`) by calls rather than steps if this is 2.
    ///
    /// Default: 1.
    fn calls_per_step(&self) -> usize {
        1
    }

    /// Returns where a run ends.
    ///
    /// Default: [`EndPoint::Last`].
    fn ends(&self) -> EndPoint {
        EndPoint::Last
    }

    /// Returns what else the sampler needs from its caller.
    ///
    /// Default: nothing.
    fn needs(&self) -> Needs {
        Needs::default()
    }

    /// Returns whether the sampler adds noise between its steps, with its options. Callers that
    /// extrapolate the model's output from earlier steps refuse such a sampler. A custom sampler
    /// that adds noise must return true, or its pictures suffer from such shortcuts.
    ///
    /// Default: false.
    fn adds_noise(&self) -> bool {
        false
    }

    /// Takes `x` from the first rung's sigma to the last sigma (usually 0), in place.
    ///
    /// `x` holds any number of values in any order. On entry it is unit noise times
    /// [`Rungs::initial_scale`]. The sampler breaks as soon as `run` does, and then leaves `x`
    /// unfinished.
    fn sample(&self, x: &mut [f32], rungs: &Rungs, run: &mut dyn Run) -> ControlFlow<()>;
}

/// Equality of samplers whose types are not known. Every type that is [`PartialEq`] has it.
///
/// To compare samplers, use `==` on `dyn Sampler`, as in `*a == *b` for an `Arc<dyn Sampler>`.
pub trait SamplerEq: Any {
    /// Returns whether `other` has the same type as this value and is equal to it.
    fn equals(&self, other: &dyn Any) -> bool;
}

impl<S: Any + PartialEq> SamplerEq for S {
    fn equals(&self, other: &dyn Any) -> bool {
        other.downcast_ref() == Some(self)
    }
}

impl PartialEq for dyn Sampler {
    fn eq(&self, other: &Self) -> bool {
        self.equals(other)
    }
}

/// What a sampler drives: the model, the noise and the observer of the run.
pub trait Run {
    /// Writes D(x; sigma), the model's guess of the clean sample in `x`, to `denoised`, which is as
    /// long as `x`.
    ///
    /// `Break` stops the run, for a failure or a cancellation. The implementer keeps the reason.
    fn denoise(&mut self, x: &[f32], at: Rung, denoised: &mut [f32]) -> ControlFlow<()>;

    /// Writes D(x; sigma) to `denoised`, and the same for an empty or negative prompt to
    /// `unconditional`.
    ///
    /// Default: both are the output of [`denoise`](Self::denoise), as in a run without guidance.
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

    /// Fills `out`, which is as long as `x`, with unit normal noise for the step from sigma `from`
    /// to sigma `to`.
    ///
    /// `to` is above `from` where a sampler goes back up. A source that keeps one path of noise for
    /// any number of steps, such as [`BrownianTree`](crate::noise::BrownianTree), needs the two
    /// sigmas. Other sources ignore them.
    fn noise(&mut self, from: f32, to: f32, out: &mut [f32]);

    /// Observes a finished step, and may change `x`. It is called once per step. `Break` stops the
    /// run.
    ///
    /// Default: continue.
    fn step(&mut self, step: Step<'_>) -> ControlFlow<()> {
        let _ = step;
        ControlFlow::Continue(())
    }
}

/// What a sampler needs besides a model and noise.
///
/// Default: nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Whether it needs the model's output without the prompt ([`Run::denoise_both`]), as the CFG++
    /// samplers do.
    pub unconditional: bool,
    /// Whether its noise should belong to one path from the first sigma to the last
    /// ([`NoiseSource::between`]), as for the samplers to which k-diffusion gives a Brownian tree.
    /// They run on any noise, but with other noise a different number of steps makes a different
    /// picture.
    pub brownian: bool,
    /// Whether `x` must be one picture rather than several. Some steps look at all values of `x`:
    /// [`ClipSample::Dynamic`](crate::schedule::ClipSample::Dynamic), and the choice of steps in
    /// [`DpmAdaptive`](crate::samplers::DpmAdaptive). With several pictures in `x`, they would
    /// influence each other.
    pub one_picture: bool,
}

/// How often a run calls the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Calls {
    /// Exactly this often.
    Exactly(usize),
    /// At most this often, for a sampler that chooses its own steps.
    AtMost(usize),
}

/// Where a run ends on a ladder whose last sigma is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndPoint {
    /// At the last sigma. If that is 0, the run ends at the model's guess of the clean sample in
    /// the last x.
    Last,
    /// At the cleanest noise level that the model was trained on: DDIM and PNDM if
    /// `set_alpha_to_one` is false.
    Cleanest,
    /// Where the sampler's own formula leads.
    Formula,
}

/// A finished step.
///
/// A sampler that visits the rungs makes it with [`Step::new`]. A sampler that visits its own
/// sigmas fills in the fields.
#[derive(Debug)]
pub struct Step<'a> {
    /// The index of the step in the run: 0 to `total` - 1.
    pub index: usize,
    /// The number of steps, usually the number of rungs.
    ///
    /// - [`Ddim`](crate::samplers::Ddim::stop_at_last_rung) and
    ///   [`Pndm`](crate::samplers::Pndm::stop_at_last_rung) make one step less if they stop at the
    ///   last rung.
    /// - [`Restart`](crate::samplers::Restart) also counts the steps that it repeats.
    /// - [`DpmFast`](crate::samplers::DpmFast) counts its own steps.
    /// - [`DpmAdaptive`](crate::samplers::DpmAdaptive) estimates the number anew at each step. Only
    ///   the value of the last step is certain.
    pub total: usize,
    /// The sigma that the step started from, usually a rung's.
    pub sigma: f32,
    /// The sigma that the step reached.
    pub next: f32,
    /// The sample after the step, at sigma `next`.
    pub x: &'a mut [f32],
    /// The model's guess of the clean sample at the start of the step, for a preview.
    pub denoised: &'a [f32],
}

impl<'a> Step<'a> {
    /// Returns the step from rung `index` to the next one, in a run with as many steps as rungs.
    ///
    /// If `index` is past the last rung, as for a sampler that makes more steps, both sigmas are
    /// the last sigma.
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
/// On entry, `x` is unit noise times [`Rungs::initial_scale`]. On return, it is the sample. To
/// watch or stop a run, implement [`Run`] and call [`Sampler::sample`]. The
/// [crate documentation](crate#run-a-sampler-on-a-closure) has an example.
pub fn sample(
    sampler: &dyn Sampler,
    x: &mut [f32],
    rungs: &Rungs,
    noise: &mut dyn NoiseSource,
    denoise: impl FnMut(&[f32], Rung, &mut [f32]),
) {
    // A run of closures never breaks, so there is nothing to report.
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
