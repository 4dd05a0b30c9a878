//! The events of a run, as its observer receives them.

use std::time::Duration;

use image::RgbImage;
use ndarray::{ArrayView3, Axis};
use sd_text::outside::chain;
use serde::Serialize;

use crate::{
    GenerateError, Picture, StopToken,
    parts::Parts,
    picture::{seconds, to_rgb},
};

/// An event of a [run](crate::Pipeline::run).
#[derive(Debug, Clone)]
#[non_exhaustive]
#[allow(
    clippy::large_enum_variant,
    reason = "an event is passed on once in a step, and a box would allocate in each step"
)]
pub enum Event<'a> {
    /// A picture has completed a step.
    Step(Progress<'a>),
    /// A picture is finished.
    Picture(Box<Picture>),
}

/// The number of calls of the network in one or several steps, and of the calls that
/// [shortcuts](crate::Shortcuts) saved.
///
/// In each step, the prompt, each further branch of the prompt and the negative prompt count as one
/// call each, even if the network computes them together in a batch. All pictures of a batch
/// together, and all [windows](crate::Tiles) of a picture together, also count as one call.
///
/// With serde, the counts are an object with a key for each field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize)]
#[non_exhaustive]
pub struct NetworkCalls {
    /// The calls that computed the whole network.
    pub full: usize,
    /// The calls that reused [deep features](crate::shortcuts::Deep).
    pub shallow: usize,
    /// The skipped calls: outputs that were [forecast](crate::shortcuts::Forecast), or
    /// [used again](crate::shortcuts::Stability).
    pub forecast: usize,
    /// The calls for the negative prompt that
    /// [adaptive guidance](crate::Shortcuts::guidance) left out.
    pub left_out: usize,
}

impl NetworkCalls {
    /// Returns the number of calls that a run without shortcuts would have made: the sum of all
    /// fields.
    pub fn total(self) -> usize {
        self.full + self.shallow + self.forecast + self.left_out
    }

    /// Returns the calls since `earlier`.
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            full: self.full - earlier.full,
            shallow: self.shallow - earlier.shallow,
            forecast: self.forecast - earlier.forecast,
            left_out: self.left_out - earlier.left_out,
        }
    }

    /// Counts a call.
    pub(crate) fn count(&mut self, shallow: bool) {
        match shallow {
            true => self.shallow += 1,
            false => self.full += 1,
        }
    }
}

impl std::ops::Add for NetworkCalls {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            full: self.full + other.full,
            shallow: self.shallow + other.shallow,
            forecast: self.forecast + other.forecast,
            left_out: self.left_out + other.left_out,
        }
    }
}

/// The state of a run after a step, in numbers.
///
/// With serde it is an object with a key for each field. Times are in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct StepInfo {
    /// The index of the request in the call, from 0.
    pub request: usize,
    /// The index of the picture in its request, from 0.
    pub picture: usize,
    /// The seed of the picture.
    pub seed: u64,
    /// Whether the step belongs to the [second pass](crate::Hires) of the picture.
    pub second_pass: bool,
    /// The index, within its pass, of the step that has just ended, from 0.
    pub index: usize,
    /// The number of steps that the picture takes in this pass.
    ///
    /// Usually this is the number of steps of the request, or of
    /// [`Hires::steps`](crate::Hires::steps) in a second pass. A run with a [start](crate::Start)
    /// makes a part of them. Some samplers have their own number of steps. A sampler that chooses
    /// its steps as it goes ([`DpmAdaptive`](sd_schedulers::samplers::DpmAdaptive)) updates its
    /// estimate after each step.
    pub total: usize,
    /// The noise level at the start of the step.
    pub sigma: f32,
    /// The noise level at the end of the step.
    pub next: f32,
    /// The calls of the network in the step, which are the same for all pictures of the batch.
    pub calls: NetworkCalls,
    /// The time that the step took for all pictures of the batch together, without the observer.
    #[serde(serialize_with = "seconds")]
    pub took: Duration,
    /// The time since the first step of the picture's first pass began, including the observer.
    #[serde(serialize_with = "seconds")]
    pub elapsed: Duration,
}

/// The state of a run after a step.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct Progress<'a> {
    /// The state in numbers.
    pub step: StepInfo,
    /// The noisy latents after the step, `[channels, h, w]`, at the noise level
    /// [`next`](StepInfo::next).
    pub latents: ArrayView3<'a, f32>,
    /// The model's estimate of the finished latents at this step, `[channels, h, w]`.
    pub denoised: ArrayView3<'a, f32>,
    pub(crate) parts: &'a Parts,
    pub(crate) stop: &'a StopToken,
}

impl Progress<'_> {
    /// Returns a picture of [`denoised`](Self::denoised). [`files::png`](crate::files::png) encodes
    /// it as a PNG.
    ///
    /// The picture is small, with one pixel for each latent, as [`LatentRgb`](crate::LatentRgb)
    /// describes. If the pipeline has a
    /// [preview codec](crate::PipelineBuilder::preview_codec), the picture has full size. If that
    /// codec fails or the run is stopped meanwhile, the small picture is returned. A failure is
    /// logged as a `tracing` warning.
    pub fn preview(&self) -> RgbImage {
        let small = || self.parts.latent_rgb.picture(self.denoised);
        let Some(codec) = &self.parts.preview_codec else {
            return small();
        };
        let latents = self.denoised.insert_axis(Axis(0));
        match Parts::pixels_of(&**codec, latents, self.stop) {
            Ok(pixels) => to_rgb(pixels.index_axis(Axis(0), 0)),
            Err(error) => {
                if !self.stop.is_stopped() {
                    tracing::warn!("a preview could not be decoded: {}", chain(&error));
                }
                small()
            }
        }
    }

    /// Decodes [`denoised`](Self::denoised) to a picture of full size. This takes as long as
    /// decoding the finished picture.
    ///
    /// # Errors
    /// - [`GenerateError::Backend`] if the codec fails.
    /// - [`GenerateError::Stopped`] if the run's token is stopped meanwhile. The run then ends,
    ///   too.
    pub fn decode(&self) -> Result<RgbImage, GenerateError> {
        let latents = self.denoised.insert_axis(Axis(0));
        match self.parts.pixels(latents, self.stop) {
            Ok(pixels) => Ok(to_rgb(pixels.index_axis(Axis(0), 0))),
            Err(_) if self.stop.is_stopped() => Err(GenerateError::Stopped(Box::default())),
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
