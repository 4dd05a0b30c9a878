//! Watching a run, and stopping it.

use std::ops::ControlFlow;

/// Where a run is, after a step.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Progress<'a> {
    /// Which picture of the request, from 0.
    pub picture: usize,
    /// How many pictures the request has.
    pub pictures: usize,
    /// Which step has just ended, from 0.
    pub step: usize,
    /// How many steps a picture takes.
    pub steps: usize,
    /// Noise level that the step began at.
    pub sigma: f32,
    /// Noisy latents after the step, `channels · h · w` values.
    pub latents: &'a [f32],
    /// What the model took for the finished latents at this step, as many values.
    pub denoised: &'a [f32],
}

/// Is told of every step, and may end the run. Any `FnMut(Progress) -> ControlFlow<()>` is one.
pub trait Observer {
    /// After each step; [`ControlFlow::Break`] ends the run with [`Error::Stopped`](crate::Error::Stopped).
    fn step(&mut self, progress: Progress<'_>) -> ControlFlow<()>;
}

impl<F: FnMut(Progress<'_>) -> ControlFlow<()>> Observer for F {
    fn step(&mut self, progress: Progress<'_>) -> ControlFlow<()> {
        self(progress)
    }
}
