//! Stable Diffusion on ONNX Runtime, directly from checkpoint files and model folders: no Python at
//! run time and no export step.
//!
//! ```no_run
//! use sd_onnx::{Device, Request, schedulers::{Ladder, samplers::DpmPlusPlus2M}};
//!
//! let pipeline = sd_onnx::builder()
//!     .device(Device::Cpu).clip_skip(2).load("stable-diffusion-v1-5")?;
//! let request = Request::new("a cute fox girl, watercolour").negative("blurry")
//!     .size(512, 512).steps(20).guidance(7.5).seed(42)
//!     .scheduler(DpmPlusPlus2M).ladder(Ladder::karras());
//! pipeline.generate(&request)?.pictures[0].save_png("fox.png")?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//! A [`Builder`] loads a model into a [`Pipeline`]. A [`Request`] describes the picture, and
//! [`Pipeline::generate`] generates it.
//!
//! # Where to read on
//! - [`handbook::parameters`]: what steps, guidance, seed, size, clip skip and schedulers do, and
//!   what happens at extreme values.
//! - [`handbook::prompts`]: the prompt language, and prompts of any length.
//! - [`handbook::sampling`]: which sampler and which noise levels to choose, and what diffusers,
//!   WebUI and ComfyUI call them.
//! - [`handbook::programs`]: sharing a pipeline, running many requests, progress, stopping and
//!   streaming.
//! - [`handbook::pictures`]: pictures as input, with and without a mask, outpainting, second passes
//!   and seamless pictures.
//! - [`handbook::pieces`]: custom embeddings, noise, latents, samplers, guidance and networks.
//! - [`handbook::families`]: SDXL, its refiner, LCM and other models.
//! - [`handbook::files`]: which model files load, how to use LoRAs, how to convert models, and
//!   what the metadata of a picture file contains.
//! - [`handbook::devices`]: OpenVINO, CUDA, bf16, and how much memory a model needs.
//! - [`handbook::contributing`]: for contributors, how to build, test and write golden files, and
//!   [`handbook::where_it_goes`]: which file to change for which purpose.
//! - [`inspect`] identifies a model file without loading it. [`Builder::convert`] writes a model in
//!   another form.
//! - [`schedulers`]: the samplers, ladders and noise sources, each with its paper. [`guidance`]:
//!   how closely a picture follows the prompt. [`text`]: the prompt language, tokens and clip skip.
//! - [`TextEncoder`]: CLIP embeddings of texts, without a pipeline. [`TextEncoder::load`] loads the
//!   text model, [`TextEncoder::encode_pooled`] returns one row for each text, and [`similarity`]
//!   compares two rows.
//! - [`ImageEncoder`]: CLIP embeddings of pictures, to compare with texts or with each other.
//!
//! # What happens at [`Builder::load`]
//! The shapes of the networks come from the `config.json` files of a folder, or from the tensors of
//! a checkpoint. For each network, the crate writes an ONNX graph of about a megabyte in memory.
//! The weights of this graph are *external data*: byte ranges of the user's own files, which ONNX
//! Runtime maps into memory. Quantised GGUF weights are decoded into memory instead. Before a
//! network is loaded, the name, shape and type of every weight are checked against the graph.
//!
//! # ONNX Runtime
//! This crate loads the ONNX Runtime library at run time, version 1.23 or newer. It uses the first
//! of these that is set or exists:
//!
//! 1. the path given to [`Builder::runtime`];
//! 2. the path in the environment variable `ORT_DYLIB_PATH`;
//! 3. the library in the cache folder, `sd-onnx` in the user's cache directory;
//! 4. a download into the cache folder, with the Cargo feature `fetch`. Default: off.
//!
//! A process can run only one ONNX Runtime library. The first one that starts is used until the
//! process ends, and asking for another one is an error.
//!
//! [`Device::OpenVino`], [`Device::OpenVinoGpu`] and [`Device::OpenVinoNpu`] need OpenVINO's
//! execution provider. If the ONNX Runtime library has it built in, like the library of the Python
//! package `onnxruntime-openvino`, that provider is used. Otherwise the provider is a plugin:
//! `libonnxruntime_providers_openvino_plugin.so` from the Python package `onnxruntime-ep-openvino`,
//! with OpenVINO's libraries in the same folder. The plugin is loaded from the path in
//! `ORT_OPENVINO_PLUGIN`, from the cache folder, or from a download as above.
//!
//! OpenVINO's plugin lists only Intel devices. On a processor from another maker, a process that
//! starts with [`Device::OpenVino`] therefore looks for ONNX Runtime 1.24.1 with OpenVINO built in,
//! instead of 1.32.0. The feature `fetch` downloads 1.24.1 on Linux only. Once such a process runs
//! 1.32.0, asking for [`Device::OpenVino`] fails with [`RuntimeError::NoDevice`].
//!
//! [`Device::Cuda`] needs ONNX Runtime's build with CUDA, version 1.31.1 in places 3 and 4, and
//! NVIDIA's libraries, which are never downloaded. The system's loader searches for them, after the
//! folders in the environment variable `ORT_CUDA_PATH`. The handbook lists [what to
//! install](handbook::devices#nvidia-gpus).
//!
//! A file in the cache folder is loaded only if it has the SHA-256 of its release. If it does not,
//! the result depends on the feature `fetch`: with it, the release is downloaded again; without it,
//! the error is [`RuntimeError::Damaged`].
//!
//! # Telemetry is off
//! Microsoft's builds of ONNX Runtime collect telemetry by default. This crate turns it off: before
//! it loads the library it sets the environment variable `ORT_DISABLE_TELEMETRY` to 1, and
//! afterwards it calls `DisableTelemetryEvents`. ONNX Runtime then writes no device ID and no
//! events, and contacts no server. On Windows only the call has an effect: there ONNX Runtime 1.32
//! passes its events to the system's event tracing and does not read the variable.
//!
//! If the variable is already set, it keeps its value. Setting an environment variable while C code
//! in another thread reads the environment is a data race on Unix. A program with such threads
//! should set the variable itself, at the start of `main`.

#[cfg(test)]
extern crate self as sd_onnx;

mod binding;
mod builder;
mod calibration;
mod checkpoint;
mod config;
mod contiguous;
mod control;
mod convert;
mod corrections;
mod defaults;
mod denoiser;
mod device;
mod engine;
mod error;
mod exported;
mod folder;
mod graph;
pub mod handbook;
mod hash;
mod image_encoder;
mod inspect;
mod inversions;
mod lora;
mod models;
mod network;
mod parts;
mod precision;
mod provider;
#[cfg(test)]
mod rehearsal;
mod runtime;
mod session;
mod source;
mod taesd;
mod text_encoder;
mod tiles;
mod upscaler;
mod weights;

pub use builder::{Builder, builder};
pub use control::control_name;
pub use convert::{Conversion, ConversionProgress, ConversionReport, ModelForm, WeightType};
pub use device::{Device, ParseDeviceError};
pub use error::{ConvertError, Error, RunError};
pub use image_encoder::{ImageEmbeddings, ImageEncoder, ImageEncoderError, ImageLayer};
pub use inspect::{Adapter, ControlFacts, Hashes, Inspection, Part, hashes, inspect};
pub use precision::{ParsePrecisionError, Precision};
pub use runtime::RuntimeError;
pub use sd_core::{
    BuildError, Call, ClassifierFree, Conditioning, Control, ControlCall, ControlInput,
    ControlInputs, ControlKind, ControlLayers, ControlMode, ControlPicture, DeepCall, DeepFeatures,
    Defaults, Denoiser, Event, EventStream, Events, GenerateError, Generation, Guidance, Guide,
    Guided, Hint, Hires, HiresSize, ImageSize, Infotext, InfotextError, Inputs, LatentCodec,
    LatentDistribution, LatentRgb, LoraBlocks, LoraCall, LoraInfo, LoraLibrary, LoraNetworks,
    LoraWeight, MAX_BRANCHES, MAX_CONTROLS, MAX_COUNT, MAX_PIXELS, MAX_PROMPT_BYTES, MAX_TILES,
    MAX_WINDOWS, Mask, MaskRule, MaskedContent, NetworkCalls, NetworkReport, OnStop, Picture,
    PictureUpscaler, Pipeline, PipelineBuilder, Posterior, Preprocessor, Problem, Problems,
    Progress, Prompt, PromptOptions, RefinerShare, RefinerSwitch, Reproduction, Request, Resize,
    SchedulerConfig, Seamless, Shortcuts, Sides, SizeIds, Sizes, Stage, Start, StartFrom, StepInfo,
    StopToken, Stopped, TileWeights, Tiles, Timings, Unfinished, Update, Upscaler, files, guidance,
    guide, image, infotext, ndarray, pixels, schedulers, shortcuts, slerp, text, upscale,
};
pub use taesd::TaesdUse;
pub use text_encoder::{PooledEmbeddings, TextEmbeddings, TextEncoder, similarity};
pub use tiles::{ParseVaeTilingError, VaeTiling};

// Compiles the example in the README with the other documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct ReadmeExample;
