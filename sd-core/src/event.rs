//! What an observer is told.

use std::time::Duration;

use image::RgbImage;
use ndarray::{ArrayView3, Axis};
use serde::Serialize;

use crate::{
    Error, Picture, StopToken,
    parts::Parts,
    picture::{seconds, to_rgb},
};

/// What has just happened in a [run](crate::Pipeline::run).
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A picture is a step further.
    Step(Progress<'a>),
    /// A picture is finished.
    Picture(Box<Picture>),
}

/// Where a run is, in numbers.
///
/// With serde it is an object of its fields, times in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct StepInfo {
    /// Which request of the call, from 0.
    pub request: usize,
    /// Which picture of the request, from 0.
    pub picture: usize,
    /// Its seed.
    pub seed: u64,
    /// Which step has just ended, from 0.
    pub index: usize,
    /// How many steps the picture takes. Mostly the steps of the request; some samplers make steps of their own, and one that chooses
    /// them on the way ([`DpmAdaptive`](sd_schedulers::DpmAdaptive)) says at each how many it expects.
    pub total: usize,
    /// Noise level that the step began at.
    pub sigma: f32,
    /// Noise level that it arrived at.
    pub next: f32,
    /// What the step took, of all pictures of a batch together, without observers.
    #[serde(serialize_with = "seconds")]
    pub took: Duration,
    /// Since the picture's first step began, observers and all.
    #[serde(serialize_with = "seconds")]
    pub elapsed: Duration,
}

/// Where a run is, after a step, and a look at it.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct Progress<'a> {
    /// The numbers.
    pub step: StepInfo,
    /// Noisy latents after the step, `[channels, h, w]`, at [`next`](StepInfo::next).
    pub latents: ArrayView3<'a, f32>,
    /// What the model took for the finished latents at this step, of the same shape.
    pub denoised: ArrayView3<'a, f32>,
    pub(crate) parts: &'a Parts,
    pub(crate) stop: &'a StopToken,
}

impl Progress<'_> {
    /// A small picture of [`denoised`](Self::denoised), a pixel for each latent: see [`LatentRgb`](crate::LatentRgb).
    /// [`files::png`](crate::files::png) makes a PNG of it.
    pub fn preview(&self) -> RgbImage {
        self.parts.latent_rgb.picture(self.denoised)
    }

    /// The picture that [`denoised`](Self::denoised) is, at full size: as much work as decoding the finished one.
    ///
    /// # Errors
    /// [`Error::Backend`] when the codec fails; [`Error::Stopped`] when the run's token is stopped meanwhile, which ends the
    /// run too.
    pub fn decode(&self) -> Result<RgbImage, Error> {
        let latents = self.denoised.insert_axis(Axis(0));
        match self.parts.pixels(latents, self.stop) {
            Ok(pixels) => Ok(to_rgb(pixels.index_axis(Axis(0), 0))),
            Err(_) if self.stop.is_stopped() => Err(Error::Stopped(Box::default())),
            Err(error) => Err(error),
        }
    }
}

impl std::fmt::Debug for Progress<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Progress")
            .field("step", &self.step)
            .finish_non_exhaustive()
    }
}
