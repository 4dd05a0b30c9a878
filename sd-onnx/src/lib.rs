//! Stable Diffusion on ONNX Runtime, straight from a model folder of safetensors: no Python at run time, no export.
//!
//! ```no_run
//! use sd_onnx::{Device, Request, schedulers::{DpmPlusPlus2M, Ladder}};
//!
//! let pipeline = sd_onnx::builder().device(Device::Cpu).clip_skip(2).load("stable-diffusion-v1-5")?;
//! let request = Request::new("a cute fox girl, watercolour").negative("blurry")
//!     .size(512, 512).steps(20).guidance(7.5).seed(42)
//!     .scheduler(DpmPlusPlus2M::default()).ladder(Ladder::karras());
//! pipeline.generate(&request)?.image().save("fox.png")?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What happens at [`Builder::load`]
//! The model's `config.json` files say how its networks are shaped. For each, an ONNX graph of about a megabyte is
//! written in memory, whose weights are *external data*: places in the user's own safetensors files, which ONNX Runtime
//! maps. Every weight's name, shape and type is checked against what the graph needs first.
//!
//! # ONNX Runtime
//! The library is loaded at run time, 1.23 or newer: from [`Builder::runtime`], else from `ORT_DYLIB_PATH`, else from
//! the cache folder. With the Cargo feature `fetch`, off by default, it is downloaded there when it is missing. A process
//! has one ONNX Runtime: the first start wins, and asking for another one is an error.

mod builder;
mod config;
mod device;
mod error;
mod folder;
mod graph;
mod hash;
mod models;
mod parts;
mod runtime;
mod session;
mod weights;

pub use builder::{Builder, builder};
pub use device::Device;
pub use error::Error;
pub use runtime::RuntimeError;
pub use sd_core::{
    Conditioning, Denoiser, Error as GenerateError, Event, Events, Generation, Guidance, Guide,
    Guided, ImageSize, Infotext, LatentCodec, LatentDistribution, LatentRgb, MAX_PIXELS,
    MAX_PROMPT_BYTES, Picture, Pipeline, Problem, Problems, Progress, Prompt, Request,
    SchedulerConfig, StepInfo, StopToken, Stopped, StreamEvent, Timings, Unfinished, files, guide,
    schedulers, slerp, text,
};
