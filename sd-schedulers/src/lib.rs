//! Schedulers for Stable Diffusion: noise schedules, sigma ladders, samplers and seeded noise, on plain `f32` slices.
//!
//! Three ideas that do not know each other:
//! - a [`Ladder`] is a value that picks the noise levels of a run ([`Rungs`]) from those the model was trained on
//!   ([`NoiseSchedule`]);
//! - a *denoiser* is a function from `(x, sigma)` to the model's guess of the clean sample; [`Prediction`] turns what a
//!   model puts out into it;
//! - a [`Sampler`] is a loop of about ten lines that reads like its paper, in the variance-exploding scaling of
//!   k-diffusion: `x` is a clean sample plus `sigma` times unit noise.
//!
//! # Run a sampler on a closure
//! ```
//! use std::sync::Arc;
//! use sd_schedulers::{DpmPlusPlus2M, Ladder, NoiseSchedule, NoiseSource, Sampler, SchedulerConfig, TorchRng, sample};
//!
//! let schedule = Arc::new(NoiseSchedule::new(&SchedulerConfig::default())?);
//! let rungs = Ladder::karras().rungs(&schedule, 20, &DpmPlusPlus2M.conventions())?;
//! let mut noise = TorchRng::new(42);
//! let mut x = vec![0.0; 4 * 64 * 64];
//! noise.fill(&mut x);
//! x.iter_mut().for_each(|x| *x *= rungs.initial_scale());
//! sample(&DpmPlusPlus2M, &mut x, &rungs, &mut noise, |x, at, denoised| {
//!     // Of data that is unit normal, the exact denoiser.
//!     denoised.iter_mut().zip(x).for_each(|(d, x)| *d = x / (1.0 + at.sigma * at.sigma));
//! });
//! let variance = x.iter().map(|x| x * x).sum::<f32>() / x.len() as f32;
//! assert!((variance - 1.0).abs() < 0.1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//! A model predicts noise (or v) from a scaled input instead:
//! ```
//! # use sd_schedulers::{Prediction, Rung};
//! # fn unet(_: &[f32], _: f32) -> Vec<f32> { vec![0.5] }
//! # let (x, at, mut denoised) = ([2.0_f32], Rung { index: 0, sigma: 1.0, timestep: 400.0 }, [0.0_f32]);
//! let input: Vec<f32> = x.iter().map(|x| x * Prediction::input_scale(at.sigma)).collect();
//! denoised.copy_from_slice(&unet(&input, at.timestep));
//! Prediction::Epsilon.denoised(&mut denoised, &x, at.sigma);
//! # assert_eq!(denoised, [1.5]);
//! ```
//!
//! # A sampler of one's own
//! ```
//! use std::ops::ControlFlow;
//! use sd_schedulers::{Run, Rungs, Sampler, Step};
//!
//! /// Goes to the denoised sample and adds fresh noise: the multistep sampling of consistency models.
//! #[derive(Debug)]
//! struct Renoise;
//!
//! impl Sampler for Renoise {
//!     fn sample(&self, x: &mut [f32], rungs: &Rungs, run: &mut dyn Run) -> ControlFlow<()> {
//!         let mut denoised = vec![0.0; x.len()];
//!         for at in rungs.iter() {
//!             run.denoise(x, at, &mut denoised)?;
//!             run.noise(x);
//!             let sigma = rungs.sigmas()[at.index + 1];
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
//!
//! # Samplers
//! [`TABLE`] as a table; "default ladder" is [`Row::default_ladder`].
//!
//! | name | title | order | default ladder | in diffusers | paper |
//! |---|---|---|---|---|---|
//! | `euler` | Euler | 1 | Karras | `EulerDiscreteScheduler` | <https://arxiv.org/abs/2206.00364> |
//! | `euler-a` | Euler a | 1 | Karras | `EulerAncestralDiscreteScheduler` | <https://arxiv.org/abs/2006.11239> |
//! | `heun` | Heun | 2 | Karras | `HeunDiscreteScheduler` | <https://arxiv.org/abs/2206.00364> |
//! | `ddim` | DDIM | 1 | leading | `DDIMScheduler` | <https://arxiv.org/abs/2010.02502> |
//! | `dpmpp-2m` | DPM++ 2M | 2 | Karras | `DPMSolverMultistepScheduler` | <https://arxiv.org/abs/2211.01095> |
//!
//! Schedules, ladders, whole trajectories and torch's noise are held to those of diffusers 0.42.1, numpy 2.4.6 and
//! torch 2.15.0 by tests/golden; the samplers' orders to an exact solution by tests/convergence.rs.

pub mod config;
mod ladder;
mod noise;
mod prediction;
mod run;
mod rungs;
mod samplers;
mod schedule;

pub use config::{BetaSchedule, ConfigError, SchedulerConfig};
pub use ladder::{Conventions, Counting, FirstX, Ladder, LadderError, Spacing};
pub use noise::{NoiseSource, RandNormal, TorchRng};
pub use prediction::Prediction;
pub use run::{Run, Sampler, Step, sample};
pub use rungs::{Rung, Rungs};
pub use samplers::{
    Ddim, DdimTarget, DpmPlusPlus2M, Euler, EulerAncestral, Heun, Row, Scheduler, TABLE,
    UnknownName, by_name, row_of, same,
};
pub use schedule::NoiseSchedule;
