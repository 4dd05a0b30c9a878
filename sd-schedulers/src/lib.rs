//! Schedulers for Stable Diffusion: noise schedules, sigma ladders, samplers and seeded noise, on
//! plain `f32` slices.
//!
//! The crate rests on three independent ideas:
//! - A [`Ladder`] is a value that picks the noise levels of a run ([`Rungs`]) from the noise levels
//!   that the model was trained on ([`NoiseSchedule`]).
//! - A *denoiser* is a function from `(x, sigma)` to the model's guess of the clean sample.
//!   [`Prediction`] converts a model's output to that guess.
//! - A [`Sampler`] is a loop of about ten lines that reads like its paper. It works in the
//!   variance-exploding scaling of k-diffusion: `x` is a clean sample plus `sigma` times unit
//!   noise.
//!
//! Almost any sampler runs on any ladder, for any prediction and with any noise. For a combination
//! that cannot work, [`Ladder::rungs`] returns an error that says why. For example, the
//! DDIM of diffusers needs whole training timesteps, which a Karras ladder does not have.
//!
//! The modules:
//! - [`samplers`]: the samplers, the [table](samplers#the-table) of them, and the traits of a
//!   sampler and a run.
//! - [`ladders`]: the noise levels of a run, and how to run a part of them, for image to image or
//!   for two models in turn.
//! - [`schedule`]: the noise levels of a model, and what it predicts.
//! - [`noise`]: the generators of torch, WebUI, numpy and `rand`, variations of a seed, and
//!   Brownian paths.
//! - [`config`]: `scheduler_config.json` of diffusers.
//! - [`names`]: samplers and ladders by the names of WebUI and ComfyUI.
//!
//! Guidance belongs to the denoiser, so it is in the crate `sd-core`. The CFG++ samplers also need
//! the model's guess without the prompt, from [`Run::denoise_both`].
//!
//! # Run a sampler on a closure
//! ```
//! use std::sync::Arc;
//! use sd_schedulers::{
//!     Ladder, NoiseSchedule, NoiseSource, Sampler, SchedulerConfig, sample, noise::TorchRng,
//!     samplers::DpmPlusPlus2M,
//! };
//!
//! let schedule = Arc::new(NoiseSchedule::new(&SchedulerConfig::default())?);
//! let rungs = Ladder::karras().rungs(&schedule, 20, &DpmPlusPlus2M.conventions())?;
//! let mut noise = TorchRng::new(42);
//! let mut x = vec![0.0; 4 * 64 * 64];
//! noise.fill(&mut x);
//! x.iter_mut().for_each(|x| *x *= rungs.initial_scale());
//! sample(&DpmPlusPlus2M, &mut x, &rungs, &mut noise, |x, at, denoised| {
//!     // The exact denoiser for data with a unit normal distribution.
//!     denoised.iter_mut().zip(x).for_each(|(d, x)| *d = x / (1.0 + at.sigma * at.sigma));
//! });
//! let variance = x.iter().map(|x| x * x).sum::<f32>() / x.len() as f32;
//! assert!((variance - 1.0).abs() < 0.1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//! `x` holds any number of values in any order. To watch or stop a run, implement [`Run`] and call
//! [`Sampler::sample`] instead of [`sample`].
//!
//! The closure above computes the clean sample. A model usually predicts noise from a scaled input
//! instead. [`Prediction`] converts that, and also the output of v, flow and EDM models:
//! ```
//! # use sd_schedulers::{Prediction, Rung, ladders::NoisePath};
//! # fn unet(_: &[f32], _: f32) -> Vec<f32> { vec![0.5] }
//! # let at = Rung { index: 0, sigma: 1.0, timestep: 400.0, path: NoisePath::Exploding };
//! # let (x, mut denoised) = ([2.0_f32], [0.0_f32]);
//! let input: Vec<f32> = x.iter().map(|x| x * Prediction::Epsilon.input_scale(at)).collect();
//! denoised.copy_from_slice(&unet(&input, at.timestep));
//! Prediction::Epsilon.denoised(&mut denoised, &x, at);
//! # assert_eq!(denoised, [1.5]);
//! ```
//!
//! # Choose a sampler by name
//! A model's `scheduler_config.json` names the sampler that its author runs, and WebUI and ComfyUI
//! have names that people know. Each program counts, rounds and scales in its own way.
//! [`from_config`], [`from_webui`] and [`from_comfyui`] return a sampler and a ladder with that
//! program's options and [`Conventions`](ladders::Conventions).
//! [`by_name`] returns an entry of the [table](samplers#the-table), usually with the options of
//! diffusers.
//! ```
//! use sd_schedulers::{Ladder, by_name, from_config, from_webui};
//!
//! let published = r#"{
//!     "_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0",
//!     "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
//!     "num_train_timesteps": 1000, "set_alpha_to_one": false, "skip_prk_steps": true,
//!     "steps_offset": 1
//! }"#;
//! let configured = from_config(published)?;
//! assert_eq!(configured.row().map(|row| row.name), Some("plms"));
//! assert_eq!(configured.ladder, Ladder::leading());
//!
//! let preset = from_webui("DPM++ 2M Karras", None)?;
//! assert_eq!(preset.row.name, by_name("dpmpp_2m").unwrap().name);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Write your own sampler
//! ```
//! use std::ops::ControlFlow;
//! use sd_schedulers::{Run, Rungs, Sampler, Step};
//!
//! /// Steps to the denoised sample and adds fresh noise, like the multistep sampling of
//! /// consistency models.
//! #[derive(Debug, PartialEq)]
//! struct Renoise;
//!
//! impl Sampler for Renoise {
//!     fn sample(&self, x: &mut [f32], rungs: &Rungs, run: &mut dyn Run) -> ControlFlow<()> {
//!         let mut denoised = vec![0.0; x.len()];
//!         for at in rungs.iter() {
//!             run.denoise(x, at, &mut denoised)?;
//!             let sigma = rungs.sigmas()[at.index + 1];
//!             run.noise(at.sigma, sigma, x);
//!             x.iter_mut().zip(&denoised).for_each(|(x, d)| *x = d + sigma * *x);
//!             run.step(Step::new(rungs, at.index, x, &denoised))?;
//!         }
//!         ControlFlow::Continue(())
//!     }
//! }
//! # use std::sync::Arc;
//! # use sd_schedulers::{Ladder, NoiseSchedule, SchedulerConfig, sample, noise::TorchRng};
//! # let schedule = Arc::new(NoiseSchedule::new(&SchedulerConfig::default())?);
//! # let rungs = Ladder::karras().rungs(&schedule, 4, &Renoise.conventions())?;
//! # let mut x = vec![1.0; 32];
//! # sample(&Renoise, &mut x, &rungs, &mut TorchRng::new(0), |_, _, denoised| denoised.fill(0.25));
//! # assert_eq!(x, vec![0.25; 32]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//! [`Rungs::sigmas`] has one element more than there are rungs: the sigma that the run leads to,
//! usually 0. [`Run::noise`] overwrites the slice with unit noise. It does not add to it.
//!
//! The other methods of [`Sampler`] have defaults, and they are right for this sampler. It takes
//! its rungs as [`Conventions::default`](ladders::Conventions) makes them, calls the model once per
//! step ([`Calls`](samplers::Calls)), ends at the last sigma ([`EndPoint`](samplers::EndPoint)) and
//! needs only a model and noise ([`Needs`](samplers::Needs)). Compute coefficients in `f64`, and
//! allocate every buffer that is as long as `x` before the loop.

pub mod config;
pub mod ladders;
pub mod names;
pub mod noise;
mod printable;
pub mod samplers;
pub mod schedule;

pub use config::{SchedulerConfig, from_config};
pub use ladders::{Ladder, Rung, Rungs};
pub use names::{from_comfyui, from_webui};
pub use noise::NoiseSource;
pub use samplers::{Run, Sampler, Scheduler, Step, by_name, sample};
pub use schedule::{NoiseSchedule, Prediction};

// Compiles the example in the README with the other documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct ReadmeExample;
