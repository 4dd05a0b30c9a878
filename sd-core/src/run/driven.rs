//! The run of a batch, which a sampler drives.

use std::{
    ops::ControlFlow,
    time::{Duration, Instant},
};

use ndarray::ArrayView3;
use sd_schedulers::{Run, Rung, Step, noise::Seeds, samplers::Calls};

use super::{Batch, Pass, begun::BoxNoise, blend::Blend};
use crate::{Event, GenerateError, Guided, NetworkCalls, Progress, Stage, StepInfo, plan::Planned};

/// The run of a batch, which a sampler drives.
pub(super) struct BatchRun<'a> {
    pub batch: &'a Batch<'a>,
    pub guided: Guided<'a>,
    /// Keeps the latents outside of masks.
    pub blend: Option<Blend<'a>>,
    /// The refiner, and the step at which it takes over.
    pub refiner: Option<(usize, Guided<'a>)>,
    pub seeds: &'a [Seeds],
    /// The noise source of each picture.
    pub noise: Vec<BoxNoise>,
    pub observer: &'a mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    /// The latents after the last finished step, which the error holds if the run stops within a
    /// step.
    pub finished: Vec<f32>,
    pub denoised: Vec<f32>,
    pub started: Instant,
    pub step_started: Instant,
    /// Whether the refiner has taken over.
    pub refined: bool,
    /// The time of each finished step.
    pub steps: Vec<Duration>,
    /// The network's calls in all finished steps.
    pub calls: NetworkCalls,
    /// The number of steps that the picture takes, as far as it is known.
    pub total: usize,
    pub error: Option<GenerateError>,
    /// Whether the observer ended the run.
    pub broke: bool,
}

impl BatchRun<'_> {
    /// Checks a length that the sampler passes in, because a custom sampler may pass anything.
    fn check(&mut self, what: &str, found: usize) -> ControlFlow<()> {
        let expected = self.finished.len();
        if found == expected {
            return ControlFlow::Continue(());
        }
        let problem = format!("{what} has {found} values, expected {expected}");
        self.error = Some(GenerateError::backend(Stage::Sampler)(problem.into()));
        ControlFlow::Break(())
    }

    fn call(
        &mut self,
        x: &[f32],
        at: Rung,
        denoised: &mut [f32],
        mut both: Option<&mut [f32]>,
    ) -> ControlFlow<()> {
        if self.batch.stop.is_stopped() || self.broke || self.error.is_some() {
            return ControlFlow::Break(());
        }
        if self
            .refiner
            .as_ref()
            .is_some_and(|(from, _)| at.index >= *from)
            && let Some((_, mut refiner)) = self.refiner.take()
        {
            tracing::debug!(timestep = at.timestep, "the refiner takes over");
            refiner.take_over(&mut self.guided);
            self.guided = refiner;
            self.refined = true;
        }
        let blend = self.blend.as_ref();
        let seen = blend.and_then(|blend| blend.seen(x, at.sigma));
        let input = seen.as_deref().unwrap_or(x);
        let done = self
            .guided
            .try_denoise(input, at, denoised, both.as_deref_mut());
        match done {
            Ok(()) => {
                if let Some(blend) = blend {
                    for denoised in [Some(denoised), both].into_iter().flatten() {
                        if seen.is_some() {
                            // The sampler gets the noise that the network found in what it saw.
                            let values = denoised.iter_mut().zip(x.iter().zip(input));
                            values.for_each(|(denoised, (x, input))| *denoised += x - input);
                        }
                        blend.denoised(denoised);
                    }
                }
                ControlFlow::Continue(())
            }
            Err(source) => {
                // An error that the interruption caused is not a failure.
                if !self.batch.stop.is_stopped() {
                    let stage = Stage::Denoiser {
                        refiner: self.refined,
                        step: Some(self.steps.len() + 1),
                        steps: Some(self.total),
                        timestep: at.timestep,
                    };
                    self.error = Some(GenerateError::Backend { stage, source });
                }
                ControlFlow::Break(())
            }
        }
    }

    /// Ends the run after the sampler has returned `outcome`. Returns the time of each step, the
    /// network's calls and the last denoised samples, or the error that ended the run early.
    pub fn end(
        mut self,
        outcome: ControlFlow<()>,
    ) -> Result<(Vec<Duration>, NetworkCalls, Vec<f32>), GenerateError> {
        // A custom sampler may have continued after a failure.
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        if self.broke || self.batch.stop.is_stopped() {
            return Err(self.stopped());
        }
        if outcome.is_break() {
            let problem = "the run ended although nothing had stopped it";
            return Err(GenerateError::backend(Stage::Sampler)(problem.into()));
        }
        Ok((self.steps, self.guided.made(), self.denoised))
    }

    fn stopped(&self) -> GenerateError {
        let denoised = (!self.steps.is_empty()).then_some(&self.denoised[..]);
        let Self {
            batch,
            steps,
            seeds,
            finished,
            ..
        } = self;
        let [_, channels, height, width] = batch.shape();
        let shape = (1, channels, height, width);
        let before = batch.earlier.map_or(0, |(_, steps)| steps);
        batch.stopped(before + steps.len(), 0, seeds, finished, denoised, shape)
    }
}

impl Run for BatchRun<'_> {
    fn denoise(&mut self, x: &[f32], at: Rung, denoised: &mut [f32]) -> ControlFlow<()> {
        self.call(x, at, denoised, None)
    }

    fn denoise_both(
        &mut self,
        x: &[f32],
        at: Rung,
        denoised: &mut [f32],
        unconditional: &mut [f32],
    ) -> ControlFlow<()> {
        self.call(x, at, denoised, Some(unconditional))
    }

    fn noise(&mut self, from: f32, to: f32, out: &mut [f32]) {
        if self.check("out", out.len()).is_break() {
            return out.fill(0.0);
        }
        // Each picture draws its own noise, as it would alone.
        let one = out.len() / self.noise.len();
        for (noise, out) in self.noise.iter_mut().zip(out.chunks_exact_mut(one)) {
            noise.between(from, to, out);
        }
    }

    fn step(&mut self, step: Step<'_>) -> ControlFlow<()> {
        let now = Instant::now();
        let took = now - self.step_started;
        let calls = self.guided.made().since(self.calls);
        self.calls = self.guided.made();
        self.check("x", step.x.len())?;
        self.check("denoised", step.denoised.len())?;
        self.steps.push(took);
        self.total = step.total;
        if let Some(blend) = &self.blend {
            blend.after_step(step.index, step.total, step.next, step.x);
        }
        self.finished.copy_from_slice(step.x);
        self.denoised.copy_from_slice(step.denoised);
        tracing::debug!(step = step.index, sigma = step.sigma, ?took, "step");
        let shape = self.guided.shape();
        for (i, &(request, picture)) in self.batch.pictures.iter().enumerate() {
            let progress = Progress {
                step: StepInfo {
                    request,
                    picture,
                    seed: self.seeds[i].seed,
                    second_pass: self.batch.pass == Pass::Second,
                    index: step.index,
                    total: step.total,
                    sigma: step.sigma,
                    next: step.next,
                    calls,
                    took,
                    elapsed: now - self.started,
                },
                latents: share(step.x, i, shape),
                denoised: share(step.denoised, i, shape),
                parts: self.batch.parts,
                stop: self.batch.stop,
            };
            if (self.observer)(Event::Step(progress)).is_break() {
                self.broke = true;
                return ControlFlow::Break(());
            }
        }
        self.step_started = Instant::now();
        ControlFlow::Continue(())
    }
}

/// Returns picture `i` of a batch `[batch, channels, h, w]`.
fn share(all: &[f32], i: usize, [_, channels, height, width]: [usize; 4]) -> ArrayView3<'_, f32> {
    let length = channels * height * width;
    let one = &all[i * length..(i + 1) * length];
    ArrayView3::from_shape((channels, height, width), one).expect("a picture has this many values")
}

/// Returns the capacity to reserve for the steps. Nearly every sampler makes at most one step per
/// call of the model.
pub(super) fn most_steps(plan: &Planned) -> usize {
    let (Calls::Exactly(calls) | Calls::AtMost(calls)) = plan.sampler.calls(&plan.rungs);
    calls.max(plan.rungs.steps()).min(1 << 14)
}
