//! Samplers and noise levels: which to choose, how to write them, their names in other programs.
//!
//! The page of [`samplers`](crate::schedulers::samplers#the-table) has the table of all samplers,
//! and the page of [`Ladder`](crate::schedulers::Ladder) has the table of all ladders. The example
//! `schedulers` lists both. It also runs a sampler on a ladder step by step and plots the result.
//! The model of this run is a simple formula, so that other implementations can be compared with
//! it:
//! `cargo run --release --example schedulers -- --scheduler heun --ladder karras --plot heun.png`.
//!
//! # Which sampler
//!
//! - **Almost everything:** `dpmpp-2m` (the default), `unipc`, `res-2m`. They call the model once a
//!   step and need 15 to 25 steps.
//! - **The simplest formulas:** `euler`, `heun`, `ddim`. Heun calls the model twice a step.
//! - **Fresh noise in each step:** `euler-a`, `dpm2-a`, `dpmpp-2s-a`. Another number of steps gives
//!   another picture.
//! - **Noise along one path:** `dpmpp-sde`, `dpmpp-2m-sde`, `dpmpp-3m-sde`. More steps refine the
//!   same picture.
//! - **Models distilled to few steps:** `lcm`, `tcd`, with 1 to 8 steps, the ladder `lcm` and a
//!   guidance scale of 1 to 2. For models that take the guidance scale as an input, the default
//!   scale is 8.5.
//! - **Guidance without burnt colours:** `euler-cfg-pp`, `euler-a-cfg-pp`, `ddim-cfg-pp`. The range
//!   of their guidance scale is `0.0..=1.0`.
//! - **Steps chosen by a tolerance:** `dpm-adaptive`. It uses only the two ends of the ladder.
//! - **Comparison with a paper:** all others.
//!
//! `dpmpp-2m` is the default of Stable Diffusion 1.x. [`Builder::load`](crate::Builder::load) lists
//! the defaults of other models.
//!
//! A request takes a sampler as a value with its options, or by its name. A named sampler gets the
//! options that the class of diffusers would read from the model's configuration:
//!
//! ```
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji");
//! # let pipeline = sd_onnx::builder().load(folder)?;
//! use sd_onnx::{Request, schedulers::{Scheduler, samplers::EulerAncestral}};
//!
//! let request = Request::new("a fox").steps(4).seed(1);
//! let named = request.clone().scheduler("euler-a".parse::<Scheduler>()?);
//! let calmer = request.scheduler(EulerAncestral { eta: 0.5, ..EulerAncestral::default() });
//! let pictures = pipeline.generate_all(&[named, calmer])?.pictures;
//! assert_ne!(pictures[0].image, pictures[1].image);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Ladders
//! Each step starts at one noise level of the ladder and ends at the next, so a ladder has one
//! level more than the run has steps. A level at which a step starts is called a *rung*. The last
//! level, at which the run ends, is usually 0. Where levels are close together,
//! the run takes more steps. Karras' ladder, which most samplers use by default, has many levels at
//! the clean end, where details form. A request without a ladder uses
//! [the default ladder](crate::schedulers::Scheduler::default_ladder) of its sampler, which is
//! usually Karras' ladder for a custom sampler. If the request names no sampler either, it uses the
//! default ladder of the [pipeline](crate::Pipeline::defaults).
//!
//! With serde, a ladder is its name, or its name with options:
//!
//! ```
//! use std::sync::Arc;
//! use sd_onnx::schedulers::{
//!     Ladder, NoiseSchedule, SchedulerConfig, ladders::{Conventions, LadderError},
//! };
//!
//! // The noise levels of Stable Diffusion. No model is needed.
//! let schedule = Arc::new(NoiseSchedule::new(&SchedulerConfig::default())?);
//! let sigmas = |ladder: &Ladder| -> Result<Vec<f32>, LadderError> {
//!     let rungs = ladder.rungs(&schedule, 4, &Conventions::default())?;
//!     Ok(rungs.sigmas().to_vec())
//! };
//! let karras = sigmas(&Ladder::karras())?;
//! assert_eq!(karras.len(), 5); // the last sigma is 0
//! let straighter: Ladder = serde_json::from_str(r#"{"karras": {"rho": 3.0}}"#)?;
//! assert!(sigmas(&straighter)?[2] > karras[2]);
//! let own = Ladder::sigmas([14.6, 4.0, 1.0, 0.3, 0.0]);
//! assert_eq!(sigmas(&own)?, [14.6, 4.0, 1.0, 0.3, 0.0]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`Conventions`](crate::schedulers::ladders::Conventions) describe how a sampler counts, rounds
//! and scales its noise levels. Reference implementations differ in this, and each sampler has the
//! conventions of its reference. If a sampler cannot run on a ladder, or a ladder has no meaning
//! for a model, the request fails with an error that gives the reason, before anything is drawn.
//!
//! # What the model predicts
//! A model predicts the noise, the clean sample, or v, which is a mix of both. Its configuration
//! says which, and a sampler does not depend on it. This is also true of flow models, whose noise
//! levels are on [another path](crate::schedulers::ladders::NoisePath). The library cannot load a
//! flow model from files yet, but [custom networks](super::pieces#custom-networks) can be flow
//! models:
//!
//! ```
//! use std::sync::Arc;
//! use sd_onnx::schedulers::{
//!     Ladder, NoiseSchedule, Prediction, Sampler, SchedulerConfig, ladders::NoisePath,
//!     samplers::Euler,
//! };
//!
//! let config = SchedulerConfig { prediction: Prediction::Flow, ..SchedulerConfig::default() };
//! let schedule = Arc::new(NoiseSchedule::new(&config)?);
//! let rungs = Ladder::flow_shifted(3.0).rungs(&schedule, 4, &Euler::default().conventions())?;
//! assert_eq!((rungs.path(), rungs.sigmas()[0]), (NoisePath::Flow, 1.0));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Names of other programs
//! To reproduce a picture of another program, it is not enough to use the sampler of the same name.
//! Its options, its ladder and its conventions must be the same, too. These functions return the
//! ladder, and the sampler with its options and conventions:
//!
//! - [`from_config`](crate::schedulers::from_config) reads a `scheduler_config.json` of diffusers;
//! - [`from_webui`](crate::schedulers::from_webui) and
//!   [`from_comfyui`](crate::schedulers::from_comfyui) take the names that WebUI and ComfyUI use:
//!   the name of the sampler, and the schedule type. For WebUI the schedule type may be `None`.
//!
//! The [noise](super::parameters#noise) is chosen separately.
//!
//! ```
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji");
//! # let pipeline = sd_onnx::builder().load(folder)?;
//! use sd_onnx::{Request, schedulers::{from_comfyui, from_config, from_webui, noise::NoiseKind}};
//!
//! let fox = Request::new("a fox").steps(4).seed(1);
//! let file = format!("{folder}/scheduler/scheduler_config.json");
//! let published = from_config(&std::fs::read_to_string(file)?)?;
//! assert_eq!(published.class, "DPMSolverMultistepScheduler");
//! let of_author = fox.clone().scheduler(published.sampler).ladder(published.ladder);
//!
//! let preset = from_webui("DPM++ 2M SDE Karras", None)?;
//! let of_webui = fox.clone().scheduler(preset.sampler).ladder(preset.ladder);
//! let of_webui = of_webui.noise(NoiseKind::Philox);
//!
//! let preset = from_comfyui("dpmpp_2m", "sgm_uniform")?;
//! let of_comfyui = fox.scheduler(preset.sampler).ladder(preset.ladder);
//!
//! let pictures = pipeline.generate_all(&[of_author, of_webui, of_comfyui])?.pictures;
//! assert_eq!(pictures[1].infotext().get("Sampler"), Some("DPM++ 2M SDE"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! WebUI has a setting "ENSD" (eta noise seed delta). For some samplers, WebUI adds it to the seed
//! of the noise that the sampler adds. [`Preset::ensd`](crate::schedulers::names::Preset::ensd)
//! says whether a sampler is one of them, and [`Request::ensd`](crate::Request::ensd) sets the
//! value. [`Infotext`](super::files#png-files) reads all settings of a WebUI picture from the file,
//! including its seed and its noise.
