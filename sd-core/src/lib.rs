//! The Stable Diffusion pipeline, independent of the library that runs the networks.
//!
//! A [`Pipeline`] combines four parts:
//!
//! - A [`PromptEncoder`](sd_text::PromptEncoder) turns the prompt into text embeddings.
//! - A [`Denoiser`] predicts the noise in noisy latents.
//! - A sampler of [`sd_schedulers`] goes from pure noise to finished latents, step by step.
//! - A [`LatentCodec`] decodes the latents to a picture.
//!
//! This crate does not depend on ONNX Runtime. `sd-onnx` implements the networks on ONNX Runtime,
//! and tests replace them with a few lines of Rust, as this example does:
//!
//! ```
//! use std::sync::Arc;
//! use ndarray::{Array3, Array4, ArrayView2, ArrayView4, ArrayViewMut4};
//! use sd_core::{
//!     BoxError, Call, Denoiser, Inputs, LatentCodec, LatentDistribution, Pipeline, Request,
//!     SchedulerConfig, StopToken,
//! };
//! use sd_text::{ClipTokenizer, Layer, PromptEncoder, TextModel, TextShape, TextStates};
//!
//! /// Encodes every prompt as zeros.
//! struct Mute;
//! impl TextModel for Mute {
//!     fn shape(&self) -> TextShape {
//!         TextShape::new(12, 8)
//!     }
//!     fn run(&self, ids: ArrayView2<'_, i64>, _: Layer) -> Result<TextStates, BoxError> {
//!         Ok(Array3::zeros((ids.nrows(), ids.ncols(), 8)).into())
//!     }
//! }
//!
//! /// Predicts that the latents are noise and nothing else.
//! struct AllNoise(Inputs);
//! impl Denoiser for AllNoise {
//!     fn inputs(&self) -> &Inputs {
//!         &self.0
//!     }
//!     fn predict(
//!         &self,
//!         call: &Call<'_>,
//!         mut output: ArrayViewMut4<'_, f32>,
//!     ) -> Result<(), BoxError> {
//!         output.assign(&call.latents);
//!         Ok(())
//!     }
//! }
//!
//! /// Shows three of the four channels, each latent as a block of 8 × 8 pixels.
//! struct Blocks;
//! impl LatentCodec for Blocks {
//!     fn latent_channels(&self) -> usize { 4 }
//!     fn factor(&self) -> usize { 8 }
//!     fn decode(
//!         &self,
//!         latents: ArrayView4<'_, f32>,
//!         _stop: &StopToken,
//!     ) -> Result<Array4<f32>, BoxError> {
//!         let (n, _, h, w) = latents.dim();
//!         Ok(Array4::from_shape_fn((n, 3, 8 * h, 8 * w), |(n, c, y, x)| {
//!             latents[[n, c, y / 8, x / 8]]
//!         }))
//!     }
//!     fn encode(
//!         &self,
//!         _image: ArrayView4<'_, f32>,
//!         _stop: &StopToken,
//!     ) -> Result<LatentDistribution, BoxError> {
//!         Err("this codec only decodes".into())
//!     }
//! }
//!
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji/tokenizer");
//! let tokenizer = ClipTokenizer::load(folder)?;
//! let prompts = PromptEncoder::new(Arc::new(tokenizer), Arc::new(Mute))?;
//! let pipeline = Pipeline::builder(
//!     prompts,
//!     Arc::new(AllNoise(Inputs::new(4, 8))),
//!     Arc::new(Blocks),
//!     SchedulerConfig::default(),
//! )
//! .build()?;
//!
//! let generation = pipeline.generate(&Request::new("a fox").size(64, 64).steps(4).seed(1))?;
//! assert_eq!(generation.image().dimensions(), (64, 64));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod backend;
mod conditioning;
mod control;
mod defaults;
mod error;
mod event;
mod events;
pub mod files;
pub mod guidance;
mod guided;
mod hires;
pub mod infotext;
mod interpolate;
mod json;
mod lora;
mod model_id;
mod parts;
mod picture;
mod pipeline;
pub mod pixels;
mod plan;
mod preview;
mod prompts;
mod request;
mod run;
mod seamless;
pub mod shortcuts;
mod size;
mod sizes;
mod start;
mod stop;
mod tiled;
pub mod upscale;

pub use backend::{
    BoxError, Call, DeepCall, DeepFeatures, Denoiser, Inputs, LatentCodec, LatentDistribution,
    NetworkReport, PictureUpscaler,
};
pub use conditioning::Conditioning;
pub use control::{
    Control, ControlCall, ControlInput, ControlInputs, ControlKind, ControlLayers, ControlMode,
    ControlPicture, Hint, MAX_CONTROLS, Preprocessor,
};
pub use defaults::Defaults;
pub use error::{BuildError, GenerateError, Problem, Problems, Stage, Stopped, Unfinished};
pub use event::{Event, NetworkCalls, Progress, StepInfo};
pub use events::{EventStream, Events, Update};
pub use guidance::{ClassifierFree, Guidance, Guide, guide};
pub use guided::Guided;
pub use hires::{Hires, HiresSize, Upscaler};
pub use image;
pub use infotext::{Infotext, InfotextError, Reproduction};
pub use interpolate::slerp;
pub use lora::{LoraBlocks, LoraCall, LoraInfo, LoraLibrary, LoraNetworks, LoraWeight};
pub use ndarray;
pub use picture::{Generation, Picture, Timings};
pub use pipeline::{MAX_PIXELS, Pipeline, PipelineBuilder};
pub use preview::LatentRgb;
pub use request::{
    MAX_BRANCHES, MAX_COUNT, MAX_PROMPT_BYTES, MAX_WINDOWS, Prompt, PromptOptions, RefinerShare,
    RefinerSwitch, Request,
};
pub use sd_schedulers::{self as schedulers, SchedulerConfig};
pub use sd_text::{self as text};
pub use seamless::Seamless;
pub use shortcuts::Shortcuts;
pub use size::ImageSize;
pub use sizes::{SizeIds, Sizes};
pub use start::{Mask, MaskRule, MaskedContent, Posterior, Resize, Sides, Start, StartFrom};
pub use stop::{OnStop, StopToken};
pub use tiled::{MAX_TILES, TileWeights, Tiles};

// Compiles the example in the README with the other documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct ReadmeExample;
