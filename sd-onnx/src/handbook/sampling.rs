//! Samplers and noise levels: which to take, how to write them, and what other programs call them.
//!
//! [`schedulers`](crate::schedulers) has the table of all samplers, [`Ladder`](crate::schedulers::Ladder) that of the ladders. The example
//! `schedulers` lists both, runs any pair step by step on a model so simple that any other implementation can be compared, and draws them:
//! `cargo run --release --example schedulers -- --scheduler heun --ladder karras --plot heun.png`.
//!
//! # Which sampler
//!
//! | for | names | what to know |
//! |---|---|---|
//! | nearly everything | `dpmpp-2m`, the default; `unipc`, `res-2m` | one call a step, and done after 15 to 25 |
//! | the plainest formulas | `euler`, `heun`, `ddim` | Heun calls the model twice a step |
//! | fresh noise in each step | `euler-a`, `dpm2-a`, `dpmpp-2s-a` | another number of steps is another picture |
//! | noise along one path | `dpmpp-sde`, `dpmpp-2m-sde`, `dpmpp-3m-sde` | more steps make the same picture finer |
//! | models distilled to few steps | `lcm`, `tcd` | 1 to 8 steps on the ladder `lcm`, guidance 1 to 2 |
//! | guidance that does not burn | `euler-cfg-pp`, `euler-a-cfg-pp`, `ddim-cfg-pp` | their scale is 0 to 1 |
//! | steps by tolerance | `dpm-adaptive` | looks only at the ends of the ladder |
//! | what a paper compares with | all others | |
//!
//! A sampler is a value with its options, or a name, with which it gets the options that diffusers' class would take from the model's
//! configuration:
//!
//! ```
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji");
//! # let pipeline = sd_onnx::builder().load(folder)?;
//! use sd_onnx::{Request, schedulers::{EulerAncestral, Scheduler}};
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
//! A run visits as many noise levels as it has steps. Where they are close together the picture is worked on more: Karras' ladder, on which
//! most samplers are run, has many at the clean end, where details are made. Without one in the request a sampler has
//! [its usual one](crate::schedulers::Row::default_ladder). With serde a ladder is its name, or its name and options:
//!
//! ```
//! use std::sync::Arc;
//! use sd_onnx::schedulers::{Conventions, Ladder, LadderError, NoiseSchedule, SchedulerConfig};
//!
//! // Those of Stable Diffusion, no model needed.
//! let schedule = Arc::new(NoiseSchedule::new(&SchedulerConfig::default())?);
//! let sigmas = |ladder: &Ladder| -> Result<Vec<f32>, LadderError> {
//!     let rungs = ladder.rungs(&schedule, 4, &Conventions::default())?;
//!     Ok(rungs.sigmas().to_vec())
//! };
//! let karras = sigmas(&Ladder::karras())?;
//! assert_eq!(karras.len(), 5); // the last is 0
//! let straighter: Ladder = serde_json::from_str(r#"{"karras": {"rho": 3.0}}"#)?;
//! assert!(sigmas(&straighter)?[2] > karras[2]);
//! let own = Ladder::sigmas([14.6, 4.0, 1.0, 0.3, 0.0]);
//! assert_eq!(sigmas(&own)?, [14.6, 4.0, 1.0, 0.3, 0.0]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`Conventions`](crate::schedulers::Conventions) are how a sampler wants its noise levels counted, rounded and scaled, which reference
//! implementations do in different ways; each sampler brings its own. A sampler that can't run on a ladder, or a ladder that means
//! nothing to a model, is an error that says so, before anything is drawn.
//!
//! # What the model predicts
//! Noise, v or the clean sample: the model's configuration says it, and no sampler needs to know. Neither do they of flow models, whose noise
//! levels are on [another path](crate::schedulers::Path). The folders that are read so far hold none, but
//! [networks of one's own](super::pieces#networks-of-ones-own) can be such:
//!
//! ```
//! use std::sync::Arc;
//! use sd_onnx::schedulers::{Euler, Ladder, NoiseSchedule, Path, Prediction, Sampler, SchedulerConfig};
//!
//! let config = SchedulerConfig { prediction: Prediction::Flow, ..SchedulerConfig::default() };
//! let schedule = Arc::new(NoiseSchedule::new(&config)?);
//! let rungs = Ladder::flow_shifted(3.0).rungs(&schedule, 4, &Euler::default().conventions())?;
//! assert_eq!((rungs.path(), rungs.sigmas()[0]), (Path::Flow, 1.0));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Names of other programs
//! A picture from another program wants more than the sampler of that name: its options, its ladder and how it counts and scales.
//! [`from_config`](crate::schedulers::from_config) takes all of it from a `scheduler_config.json`, whose author's choice a request otherwise
//! leaves aside; [`from_webui`](crate::schedulers::from_webui) and [`from_comfyui`](crate::schedulers::from_comfyui) know the names of those
//! programs. The [noise](super::parameters#noise) is chosen apart.
//!
//! ```
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji");
//! # let pipeline = sd_onnx::builder().load(folder)?;
//! use sd_onnx::{Request, schedulers::{NoiseKind, from_comfyui, from_config, from_webui}};
//!
//! let fox = Request::new("a fox").steps(4).seed(1);
//! let published = from_config(&std::fs::read_to_string(format!("{folder}/scheduler/scheduler_config.json"))?)?;
//! assert_eq!(published.class, "DPMSolverMultistepScheduler");
//! let of_author = fox.clone().scheduler(published.sampler).ladder(published.ladder);
//!
//! let preset = from_webui("DPM++ 2M SDE Karras", None)?;
//! let of_webui = fox.clone().scheduler(preset.sampler).ladder(preset.ladder).noise(NoiseKind::Philox);
//!
//! let preset = from_comfyui("dpmpp_2m", "sgm_uniform")?;
//! let of_comfyui = fox.scheduler(preset.sampler).ladder(preset.ladder);
//!
//! let pictures = pipeline.generate_all(&[of_author, of_webui, of_comfyui])?.pictures;
//! assert_eq!(pictures[1].infotext().get("Sampler"), Some("DPM++ 2M SDE"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! WebUI adds its "ENSD" to the seed only under some samplers: [`Preset::ensd`](crate::schedulers::Preset::ensd) says under which, and
//! [`Request::ensd`](crate::Request::ensd) is where it goes. A whole picture of WebUI's, seed, noise and all, is read by
//! [`Infotext`](super::files#png-files).
