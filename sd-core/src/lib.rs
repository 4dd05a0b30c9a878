//! The Stable Diffusion pipeline, over any backend.
//!
//! A [`Pipeline`] ties four parts together: a [`PromptEncoder`](sd_text::PromptEncoder) reads the prompt, a [`Denoiser`]
//! predicts, a sampler of [`sd_schedulers`] steps from noise to latents, and a [`LatentCodec`] turns latents into a
//! picture. This crate knows no ONNX Runtime: `sd-onnx` implements the parts on it, tests implement them in ten lines.
//!
//! ```
//! use std::sync::Arc;
//! use ndarray::{Array3, Array4, ArrayView2, ArrayView3, ArrayView4, ArrayViewMut4};
//! use sd_core::{BoxError, Denoiser, LatentCodec, LatentDistribution, Pipeline, Request, SchedulerConfig, StopToken};
//! use sd_text::{ClipSkip, ClipTokenizer, PromptEncoder, TextModel};
//!
//! /// Reads every prompt as zeros.
//! struct Mute;
//! impl TextModel for Mute {
//!     fn layers(&self) -> usize { 12 }
//!     fn width(&self) -> usize { 8 }
//!     fn max_length(&self) -> usize { 77 }
//!     fn vocab_size(&self) -> usize { 49408 }
//!     fn hidden_states(&self, ids: ArrayView2<'_, i64>, _: ClipSkip) -> Result<Array3<f32>, BoxError> {
//!         Ok(Array3::zeros((ids.nrows(), ids.ncols(), 8)))
//!     }
//! }
//!
//! /// Predicts that everything it sees is noise.
//! struct AllNoise;
//! impl Denoiser for AllNoise {
//!     fn latent_channels(&self) -> usize { 4 }
//!     fn context_width(&self) -> usize { 8 }
//!     fn predict(
//!         &self,
//!         latents: ArrayView4<'_, f32>,
//!         _timestep: f32,
//!         _context: ArrayView3<'_, f32>,
//!         mut output: ArrayViewMut4<'_, f32>,
//!         _stop: &StopToken,
//!     ) -> Result<(), BoxError> {
//!         output.assign(&latents);
//!         Ok(())
//!     }
//! }
//!
//! /// Three of the four channels, eight pixels to a latent.
//! struct Blocks;
//! impl LatentCodec for Blocks {
//!     fn latent_channels(&self) -> usize { 4 }
//!     fn factor(&self) -> usize { 8 }
//!     fn decode(&self, latents: ArrayView4<'_, f32>, _stop: &StopToken) -> Result<Array4<f32>, BoxError> {
//!         let (n, _, h, w) = latents.dim();
//!         Ok(Array4::from_shape_fn((n, 3, 8 * h, 8 * w), |(n, c, y, x)| latents[[n, c, y / 8, x / 8]]))
//!     }
//!     fn encode(&self, _image: ArrayView4<'_, f32>) -> Result<LatentDistribution, BoxError> {
//!         Err("this codec only decodes".into())
//!     }
//! }
//!
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji/tokenizer");
//! let tokenizer = ClipTokenizer::load(folder)?;
//! let prompts = PromptEncoder::new(Arc::new(tokenizer), Arc::new(Mute))?;
//! let pipeline = Pipeline::builder(prompts, Arc::new(AllNoise), Arc::new(Blocks), SchedulerConfig::default()).build()?;
//!
//! let generation = pipeline.generate(&Request::new("a fox").size(64, 64).steps(4).seed(1))?;
//! assert_eq!(generation.image().dimensions(), (64, 64));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod backend;
mod error;
mod event;
mod events;
pub mod files;
pub mod guidance;
mod guided;
pub mod infotext;
mod interpolate;
mod json;
mod model_id;
mod picture;
mod pipeline;
mod plan;
mod preview;
mod prompts;
mod request;
mod run;
mod size;
mod stop;

pub use backend::{BoxError, Denoiser, LatentCodec, LatentDistribution};
pub use error::{Error, Problem, Problems, Stopped, Unfinished};
pub use event::{Event, Progress, StepInfo};
pub use events::{EventStream, Events, Update};
pub use guidance::{ClassifierFree, Guidance, Guide, guide};
pub use guided::Guided;
pub use image;
pub use infotext::{Infotext, InfotextError, Reproduction};
pub use interpolate::slerp;
pub use ndarray;
pub use picture::{Conditioning, Generation, Picture, Timings};
pub use pipeline::{MAX_PIXELS, Pipeline, PipelineBuilder};
pub use preview::LatentRgb;
pub use request::{
    MAX_BRANCHES, MAX_COUNT, MAX_PROMPT_BYTES, MAX_WINDOWS, Prompt, PromptOptions, Request,
};
pub use sd_schedulers::{self as schedulers, SchedulerConfig};
pub use sd_text::{self as text};
pub use size::ImageSize;
pub use stop::{OnStop, StopToken};
