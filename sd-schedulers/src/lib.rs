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
//! that cannot work, [`Ladder::rungs`] returns an error that says why.
//!
//! Where to look:
//! - Samplers: the [list](#samplers) at the end of this page, and [`TABLE`].
//! - The noise levels of a run: the table in the documentation of [`Ladder`]. [`StrengthRule`] and
//!   [`Rungs`] split a run, for image to image or for two models in turn.
//! - The noise levels of a model: [`SchedulerConfig`] and the [`NoiseSchedule`] made from it. They
//!   cover [betas](BetaSchedule), zero terminal SNR, flow matching and EDM.
//! - The output of a model: [`Prediction`] and [`ClipSample`].
//! - Noise: [`NoiseKind`] has the generators of torch (on a CPU and on CUDA), WebUI, numpy and
//!   `rand`. [`Seeds`] adds variations and other sizes. [`BrownianTree`] keeps one path of noise
//!   for any number of steps.
//! - The names that other programs use: [`from_config`] (diffusers), [`from_webui`] and
//!   [`from_comfyui`].
//!
//! Guidance belongs to the denoiser, so it is in the crate `sd-core`.
//!
//! # Run a sampler on a closure
//! ```
//! use std::sync::Arc;
//! use sd_schedulers::{
//!     DpmPlusPlus2M, Ladder, NoiseSchedule, NoiseSource, Sampler, SchedulerConfig, TorchRng,
//!     sample,
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
//! A model usually predicts noise (or v) from a scaled input instead:
//! ```
//! # use sd_schedulers::{NoisePath, Prediction, Rung};
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
//! program's options and [`Conventions`]. [`by_name`] returns an entry of the
//! [list below](#samplers), usually with the options of diffusers.
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
//! #[derive(Debug)]
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
//! # use sd_schedulers::{Ladder, NoiseSchedule, SchedulerConfig, TorchRng, sample};
//! # let schedule = Arc::new(NoiseSchedule::new(&SchedulerConfig::default())?);
//! # let rungs = Ladder::karras().rungs(&schedule, 4, &Renoise.conventions())?;
//! # let mut x = vec![1.0; 32];
//! # sample(&Renoise, &mut x, &rungs, &mut TorchRng::new(0), |_, _, denoised| denoised.fill(0.25));
//! # assert_eq!(x, vec![0.25; 32]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//! The other methods of [`Sampler`] have defaults, and they are right for this sampler. It takes
//! its rungs as [`Conventions::default`] makes them, calls the model once per step ([`Calls`]),
//! ends at the last sigma ([`EndPoint`]) and needs nothing else ([`Needs`]). Compute coefficients
//! in `f64`, and allocate every buffer that is as long as `x` before the loop.
//!
//! To add a sampler to this crate:
//! 1. `src/samplers/renoise.rs`: write the public, documented type with its options, and this
//!    `impl`. Its documentation begins with the paper, the order, the calls and the reference
//!    implementations.
//! 2. `src/samplers/mod.rs` and `src/lib.rs`: add `mod` and `pub use`. Code that several samplers
//!    share is in `steps.rs` and `history.rs`.
//! 3. `src/samplers/table.rs`: add a row to [`TABLE`]. A row states only what differs from a
//!    first-order sampler that calls the model once per step, ends at the denoised sample and adds
//!    no noise. Tests compare each column with the sampler. The test
//!    `the_markdown_table_has_every_row` prints what belongs in `src/samplers/table.md`. The number
//!    of samplers is in `README.md` and `CHANGELOG.md` of the repository.
//! 4. The name in WebUI or ComfyUI, if there is one: add `.webui()` or `.comfyui(…)` to the row,
//!    and a line to `SAMPLERS` in `src/names/webui.rs` or `src/names/comfyui.rs`, where the array's
//!    length must grow too. Tests there compare the row with the array. `the_flags_of_webui` needs
//!    a line for each name of WebUI. `every_name_is_known_or_refused` lists the names of ComfyUI
//!    that are refused; remove the new one from it.
//! 5. The class in diffusers, if there is one: add its defaults to `src/config/class.rs` and the
//!    meaning of its keys to `src/config/configured/`. If the sampler has an option `eta`, add its
//!    type to `with_eta` in `examples/schedulers.rs` next to this crate.
//! 6. `tests/golden/reference/`: write the paper's formula in float64 Python, as a function of the
//!    model, x and the sigmas. In `tests/golden/suite.py`, add a line with the row's name that runs
//!    it, and k-diffusion's function where there is one. If the sampler has options, add a line for
//!    each of them. For each of these lines, add to `option()` in `tests/golden.rs` the sampler
//!    with that option. `python make.py samplers` in `tests/golden` writes the golden files. It
//!    needs the packages that its first lines name, and k-diffusion's `sampling.py`, from the
//!    package or from `--k-diffusion FILE`.
//! 7. `tests/convergence.rs`: add the sampler's order to `paths()`, or to `deviations()` if the
//!    sampler adds noise. The tests in `tests/golden.rs` and `tests/convergence.rs` go over the
//!    whole table and fail for a row that they do not cover.
//!
//! # Samplers
//! These are the rows of [`TABLE`]. [`SamplerRow`] documents each column. N is the number of steps.
//! The column "noise" says whether the sampler adds noise. A dash means that the program has no
//! name for the sampler.
//!
//! The column "ends at" is for Stable Diffusion's configuration. With `set_alpha_to_one`, DDIM ends
//! at the denoised sample, and PNDM and PLMS end where their own formulas lead. On flow models,
//! Euler and Heun are the flow-matching samplers. On EDM models, Euler and DPM++ 2M are EDM's
//! samplers.
//!
#![doc = include_str!("samplers/table.md")]

mod betas;
mod clip;
pub mod config;
mod ladder;
mod names;
mod noise;
mod prediction;
mod printable;
mod run;
mod rungs;
mod samplers;
mod schedule;

pub use clip::ClipSample;
pub use config::{BetaSchedule, ConfigError, Configured, SchedulerConfig, from_config};
pub use ladder::{
    AlignYourSteps, AlignedModel, Conventions, FinalSigma, FirstX, Flow, FlowLevels, Ladder,
    LadderError, LinearQuadratic, PointCount, ResolutionShift, Shape, Shift, Spacing, Span,
    StrengthRule, TimestepRounding, Timing, Vp,
};
pub use names::{Preset, UnknownName, from_comfyui, from_webui};
pub use noise::{
    BrownianTree, CARDS, NoiseError, NoiseKind, NoiseSource, NumpyRng, Philox, RandNormal, Seeds,
    Slerp, TorchRng, Variation, cuda_threads,
};
pub use prediction::Prediction;
pub use run::{Calls, EndPoint, Needs, Run, Sampler, SamplerEq, Step, sample};
pub use rungs::{NoisePath, Rung, Rungs};
pub use samplers::{
    CallFormula, Churn, Ddim, DdimTarget, Ddpm, DdpmVariance, Deis, DeisNodes, Dpm2, Dpm2Ancestral,
    DpmAdaptive, DpmAlgorithm, DpmFast, DpmForm, DpmPlusPlus2M, DpmPlusPlus2MSde,
    DpmPlusPlus2SAncestral, DpmPlusPlus3MSde, DpmPlusPlusSde, DpmSolver, DpmSolverSinglestep,
    ErSde, ErSdeScale, Euler, EulerAncestral, EulerCfgPp, GradientEstimation, Heun, Ipndm,
    IpndmWeights, Lcm, LcmBoundary, Lms, Pndm, PndmMean, ResMultistep, Restart, RestartSegment,
    SaOutput, SaSolver, SamplerRow, Scheduler, SdeSolver, TABLE, Tcd, ThirdOrder, UniPc,
    UniPcVariant, WithConventions, by_name, row_of,
};
pub use schedule::NoiseSchedule;

// Compiles the example in the README with the other documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct ReadmeExample;
