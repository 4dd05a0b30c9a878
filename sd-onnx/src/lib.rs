//! Stable Diffusion on ONNX Runtime, directly from checkpoint files and model folders: no Python at
//! run time, no export step.
//!
//! ```no_run
//! use sd_onnx::{Device, Request, schedulers::{DpmPlusPlus2M, Ladder}};
//!
//! let pipeline = sd_onnx::builder()
//!     .device(Device::Cpu).clip_skip(2).load("stable-diffusion-v1-5")?;
//! let request = Request::new("a cute fox girl, watercolour").negative("blurry")
//!     .size(512, 512).steps(20).guidance(7.5).seed(42)
//!     .scheduler(DpmPlusPlus2M).ladder(Ladder::karras());
//! pipeline.generate(&request)?.pictures[0].save_png("fox.png")?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//! [`builder`] gets a model ready, a [`Request`] says what to draw, a [`Pipeline`] draws it.
//!
//! # Where to read on
//! - [`handbook::parameters`]: what steps, guidance, seed, size, clip skip and schedulers do, and
//!   what too much of them does.
//! - [`handbook::prompts`]: the prompt language, and texts of any length.
//! - [`handbook::sampling`]: which sampler, which noise levels, and what diffusers, WebUI and
//!   ComfyUI call them.
//! - [`handbook::programs`]: sharing a pipeline, many requests, watching, stopping, streaming.
//! - [`handbook::pieces`]: embeddings, noise, latents, samplers, guidance and networks of your
//!   own.
//! - [`handbook::families`]: SDXL, its refiner, LCM and other models.
//! - [`handbook::files`]: model files, what loads, converting, and what a PNG says about itself.
//! - [`handbook::devices`]: OpenVINO, bf16, and how much memory a model needs.
//! - [`inspect`] identifies a model file without loading it. [`Builder::convert`] writes a model in
//!   another form.
//! - [`handbook::where_it_goes`]: for changes to this project, which file each of them touches.
//! - [`schedulers`]: the samplers, ladders and sources of noise, each with its paper.
//!   [`guidance`]: how the prompt is followed. [`text`]: the prompt language, tokens and clip skip.
//! - [`TextEncoder`]: CLIP's embeddings of texts, for programs that want nothing else.
//!
//! # What happens at [`Builder::load`]
//! The shapes of the networks come from the `config.json` files of a folder, or from the tensors of
//! a checkpoint. For each network, an ONNX graph of about a megabyte is written in memory, whose
//! weights are *external data*: byte ranges of the user's own files (quantised GGUF weights are
//! decoded into memory), which ONNX Runtime maps. Every weight's name, shape and type is checked
//! against what the graph needs first.
//!
//! # ONNX Runtime
//! The library is loaded at run time, 1.23 or newer: from [`Builder::runtime`], else from
//! `ORT_DYLIB_PATH`, else from the cache folder. With the Cargo feature `fetch`, off by default, it
//! is downloaded there when it is missing. A process has one ONNX Runtime: the first start wins,
//! and asking for another one is an error.
//!
//! [`Device::OpenVino`] and its kin need OpenVINO's provider. If the library has it built in, as
//! that of the Python package `onnxruntime-openvino` does, it is used. Otherwise it is a plugin,
//! `libonnxruntime_providers_openvino_plugin.so` of the Python package `onnxruntime-ep-openvino`
//! with OpenVINO's libraries beside it: from the path in `ORT_OPENVINO_PLUGIN`, else from the cache
//! folder, else downloaded as above. OpenVINO's plugin lists only Intel's devices. On a processor
//! that is not Intel's, a process that starts with [`Device::OpenVino`] therefore looks for ONNX
//! Runtime 1.24.1 with OpenVINO built in, where it would look for 1.32.0; once 1.32.0 runs,
//! [`Device::OpenVino`] is [`RuntimeError::NoDevice`] there.
//!
//! A file in the cache folder whose SHA-256 is not the release's is never loaded: with `fetch` its
//! folder is downloaded again, else it is [`RuntimeError::Damaged`].
//!
//! # Nothing is sent anywhere
//! Microsoft's builds of ONNX Runtime collect telemetry by default. This crate turns it off: before
//! it loads the library it sets the environment variable `ORT_DISABLE_TELEMETRY` to 1, and
//! afterwards it calls `DisableTelemetryEvents`. So ONNX Runtime writes no device ID and no events,
//! and contacts no server. (On Windows only the call counts: there ONNX Runtime 1.32 hands its
//! events to the system's tracing and does not read the variable.)
//!
//! A variable that is already set keeps its value. A program whose other threads run C code that
//! reads the environment should set it itself, at the start of `main`: setting a variable while C
//! code reads one is a data race on Unix.

mod builder;
mod checkpoint;
mod config;
mod convert;
mod corrections;
mod defaults;
mod device;
mod engine;
mod error;
mod exported;
mod graph;
pub mod handbook;
mod hash;
mod inspect;
mod inversions;
mod models;
mod network;
mod parts;
mod precision;
mod provider;
mod runtime;
mod session;
mod source;
mod text_encoder;
mod weights;

pub use builder::{Builder, builder};
pub use convert::{Conversion, ConversionProgress, Converted, ModelForm, WeightType};
pub use device::{Device, ParseDeviceError};
pub use error::Error;
pub use inspect::{Hashes, Inspection, Part, hashes, inspect};
pub use precision::{ParsePrecisionError, Precision};
pub use runtime::RuntimeError;
pub use sd_core::{
    Call, ClassifierFree, Conditioning, Defaults, Denoiser, Error as GenerateError, Event,
    EventStream, Events, Generation, Guidance, Guide, Guided, ImageSize, Infotext, InfotextError,
    Inputs, LatentCodec, LatentDistribution, LatentRgb, MAX_BRANCHES, MAX_COUNT, MAX_PIXELS,
    MAX_PROMPT_BYTES, MAX_WINDOWS, NetworkReport, OnStop, Picture, Pipeline, PipelineBuilder,
    Problem, Problems, Progress, Prompt, PromptOptions, RefinerShare, RefinerSwitch, Reproduction,
    Request, SchedulerConfig, SizeIds, Sizes, StepInfo, StopToken, Stopped, Timings, Unfinished,
    Update, files, guidance, guide, image, infotext, ndarray, schedulers, slerp, text,
};
pub use text_encoder::{PooledEmbeddings, TextEmbeddings, TextEncoder, similarity};
