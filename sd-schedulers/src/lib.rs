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
//! So any sampler runs on any ladder, for any prediction and with any noise; what can't be is refused when the [rungs](Ladder::rungs) are
//! made, with the reason.
//!
//! | what | where |
//! |---|---|
//! | samplers | [the table](#samplers) at the end of this page, [`TABLE`] |
//! | noise levels of a run | the table of [`Ladder`]; parts of a run, for image to image and two models in turn: [`StrengthRule`], [`Rungs`] |
//! | noise levels of a model | [`SchedulerConfig`] and the [`NoiseSchedule`] of it: [betas](BetaSchedule), zero terminal SNR, flow matching, EDM |
//! | what a model puts out | [`Prediction`], [`Clip`] |
//! | noise | [`NoiseKind`]: torch's on a CPU and on CUDA, WebUI's, numpy's, `rand`'s; [`Seeds`]: variations, other sizes; [`BrownianTree`] |
//! | names of other programs | [`from_config`] (diffusers), [`from_webui`], [`from_comfyui`] |
//!
//! (Guidance belongs to the denoiser: it is in the crate `sd-core`.)
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
//! # use sd_schedulers::{Path, Prediction, Rung};
//! # fn unet(_: &[f32], _: f32) -> Vec<f32> { vec![0.5] }
//! # let (x, at, mut denoised) = ([2.0_f32], Rung { index: 0, sigma: 1.0, timestep: 400.0, path: Path::Exploding }, [0.0_f32]);
//! let input: Vec<f32> = x.iter().map(|x| x * Prediction::Epsilon.input_scale(at)).collect();
//! denoised.copy_from_slice(&unet(&input, at.timestep));
//! Prediction::Epsilon.denoised(&mut denoised, &x, at);
//! # assert_eq!(denoised, [1.5]);
//! ```
//!
//! # By name
//! A model's `scheduler_config.json` says which sampler its author runs, and WebUI and ComfyUI have names that people know. Each program
//! counts, rounds and scales in its own way: [`from_config`], [`from_webui`] and [`from_comfyui`] give a sampler and a ladder with that
//! program's options and [`Conventions`]; [`by_name`] gives a row of the table below, mostly with diffusers'.
//! ```
//! use sd_schedulers::{Ladder, by_name, from_config, from_webui};
//!
//! let published = r#"{
//!     "_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012, "beta_schedule": "scaled_linear",
//!     "beta_start": 0.00085, "num_train_timesteps": 1000, "set_alpha_to_one": false, "skip_prk_steps": true, "steps_offset": 1
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
//! The other methods of [`Sampler`] have defaults, which are right for this one: it wants its rungs as [`Conventions::default`] says, calls the
//! model once a step ([`Calls`]), ends at the last sigma ([`Ends`]) and needs nothing else ([`Needs`]).
//! Coefficients are best computed in `f64`, and everything that is as long as `x` is best allocated before the loop.
//!
//! To add one to this crate:
//! 1. `src/samplers/renoise.rs`: the value with its options, public and documented, and this `impl`. The first line of its documentation
//!    names the paper, the order, the calls and the reference implementation.
//! 2. `src/samplers/mod.rs` and `src/lib.rs`: `mod` and `pub use`. What several samplers share is in `steps.rs` and `history.rs` there.
//! 3. `src/samplers/table.rs`: a row of [`TABLE`]. It says only what differs from a sampler of first order that calls the model once a step,
//!    ends at the denoised sample and adds no noise; tests hold each of its columns to the sampler. The test
//!    `the_table_of_the_crate_documentation_is_this_one` prints the lines that belong below. The number of samplers is in `README.md` and
//!    `CHANGELOG.md` of the repository.
//! 4. A name that WebUI or ComfyUI has for it: `.webui()` or `.comfyui(…)` in the row, and a line of `SAMPLERS` in `src/names/webui.rs` or
//!    `src/names/comfyui.rs`, whose length is beside it. Tests there hold the two to each other; `the_flags_of_webui` has a line for each of
//!    WebUI's names, `every_name_is_known_or_refused` a list of those of ComfyUI's that are refused, which the new one leaves. A class of
//!    diffusers: its defaults in `src/config/class.rs`, what it makes of its keys in `src/config/configured/`. An option `eta`: a word in
//!    `with_eta` of `examples/schedulers.rs` beside this crate.
//! 5. `tests/golden/reference/`: the paper's formula in float64 Python, a function of the model, x and the sigmas. `tests/golden/suite.py`: a
//!    line with the row's name that runs it, and k-diffusion's function where there is one. If the sampler has options, a line for each of
//!    them, and in `option()` of `tests/golden.rs` what the line's name stands for. `python make.py samplers` in `tests/golden` writes the
//!    golden files; it needs the packages that its first lines name, and k-diffusion's `sampling.py`: the package's, or `--k-diffusion FILE`.
//! 6. `tests/convergence.rs`: its order, in `paths()` or with its noise in `deviations()`. Both suites go over the whole table and fail for
//!    a row without.
//!
//! # Samplers
//! [`TABLE`], which [`table_as_markdown`] prints; [`Row`] says what the columns are. N is the number of steps; "noise" is whether the sampler
//! adds any. Where samplers end is for Stable Diffusion's configuration; with `set_alpha_to_one` DDIM ends at the denoised sample, PNDM
//! and PLMS by their own formula. On flow models Euler and Heun are the flow-matching samplers, on EDM's models Euler and DPM++ 2M those of
//! EDM.
//!
//! | name | title | diffusers | WebUI | ComfyUI | order | calls | ends at | needs | noise | default ladder | paper |
//! |---|---|---|---|---|---|---|---|---|---|---|---|
//! | `euler` | Euler | EulerDiscreteScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler | Euler | `euler` | 1 | N | denoised | nothing | no | karras | <https://arxiv.org/abs/2206.00364> |
//! | `euler-a` | Euler a | EulerAncestralDiscreteScheduler | Euler a | `euler_ancestral` | 1 | N | denoised | nothing | yes | karras | <https://arxiv.org/abs/2006.11239> |
//! | `heun` | Heun | HeunDiscreteScheduler, FlowMatchHeunDiscreteScheduler | Heun | `heun` | 2 | 2N - 1 | denoised | nothing | no | karras | <https://arxiv.org/abs/2206.00364> |
//! | `dpm2` | DPM2 | KDPM2DiscreteScheduler | DPM2 | `dpm_2` | 2 | 2N - 1 | denoised | nothing | no | karras | <https://arxiv.org/abs/2206.00927> |
//! | `dpm2-a` | DPM2 a | KDPM2AncestralDiscreteScheduler | DPM2 a | `dpm_2_ancestral` | 2 | 2N - 1 | denoised | nothing | yes | karras | <https://arxiv.org/abs/2206.00927> |
//! | `lms` | LMS | LMSDiscreteScheduler | LMS | `lms` | 4 | N | own formula | nothing | no | karras | <https://arxiv.org/abs/2206.00364> |
//! | `ddim` | DDIM | DDIMScheduler | DDIM | – | 1 | N | alpha-bar 0 | integer timesteps | no | leading | <https://arxiv.org/abs/2010.02502> |
//! | `ddpm` | DDPM | DDPMScheduler | – | `ddpm` | 1 | N | denoised | nothing | yes | leading | <https://arxiv.org/abs/2006.11239> |
//! | `pndm` | PNDM | PNDMScheduler | – | – | 2 | N + 9 | alpha-bar 0 | integer timesteps | no | leading | <https://arxiv.org/abs/2202.09778> |
//! | `plms` | PLMS | PNDMScheduler, skip_prk_steps true | PLMS | – | 2 | N + 1 (1 for N = 1) | alpha-bar 0 | integer timesteps | no | leading | <https://arxiv.org/abs/2202.09778> |
//! | `ipndm` | iPNDM | – | – | `ipndm` | 2 | N | denoised | nothing | no | karras | <https://arxiv.org/abs/2204.13902> |
//! | `ipndm-v` | iPNDM, variable step | – | – | `ipndm_v` | 1 | N | denoised | nothing | no | karras | <https://arxiv.org/abs/2204.13902> |
//! | `deis` | DEIS | DEISMultistepScheduler | – | – | 2 | N | sigma_min | nothing | no | karras | <https://arxiv.org/abs/2204.13902> |
//! | `deis-tab` | DEIS (tab) | – | – | `deis` | 3 | N | denoised | nothing | no | karras | <https://arxiv.org/abs/2204.13902> |
//! | `dpm-solver-1m` | DPM-Solver 1M | DPMSolverMultistepScheduler, algorithm_type dpmsolver, solver_order 1 | – | – | 1 | N | sigma_min | nothing | no | karras | <https://arxiv.org/abs/2206.00927> |
//! | `dpm-solver-2m` | DPM-Solver 2M | DPMSolverMultistepScheduler, algorithm_type dpmsolver | – | – | 2 | N | sigma_min | nothing | no | karras | <https://arxiv.org/abs/2206.00927> |
//! | `dpm-solver-3m` | DPM-Solver 3M | DPMSolverMultistepScheduler, algorithm_type dpmsolver, solver_order 3 | – | – | 2 | N | sigma_min | nothing | no | karras | <https://arxiv.org/abs/2206.00927> |
//! | `dpm-solver-2s` | DPM-Solver 2S | DPMSolverSinglestepScheduler, algorithm_type dpmsolver | – | – | 2 | N | sigma_min | nothing | no | karras | <https://arxiv.org/abs/2206.00927> |
//! | `dpm-solver-3s` | DPM-Solver 3S | DPMSolverSinglestepScheduler, algorithm_type dpmsolver, solver_order 3 | – | – | 3 | N | sigma_min | nothing | no | karras | <https://arxiv.org/abs/2206.00927> |
//! | `dpmpp-2m` | DPM++ 2M | DPMSolverMultistepScheduler, EDMDPMSolverMultistepScheduler | DPM++ 2M | `dpmpp_2m` | 2 | N | denoised | nothing | no | karras | <https://arxiv.org/abs/2211.01095> |
//! | `dpmpp-3m` | DPM++ 3M | DPMSolverMultistepScheduler, solver_order 3 | – | – | 2 | N | denoised | nothing | no | karras | <https://arxiv.org/abs/2211.01095> |
//! | `dpmpp-2s` | DPM++ 2S | DPMSolverSinglestepScheduler | – | – | 2 | N | denoised | nothing | no | karras | <https://arxiv.org/abs/2211.01095> |
//! | `dpmpp-3s` | DPM++ 3S | DPMSolverSinglestepScheduler, solver_order 3 | – | – | 3 | N | denoised | nothing | no | karras | <https://arxiv.org/abs/2211.01095> |
//! | `dpmpp-2s-a` | DPM++ 2S a | – | DPM++ 2S a | `dpmpp_2s_ancestral` | 2 | 2N - 1 | denoised | nothing | yes | karras | <https://arxiv.org/abs/2211.01095> |
//! | `dpmpp-sde` | DPM++ SDE | DPMSolverSDEScheduler | DPM++ SDE | `dpmpp_sde` | 1 | 2N - 1 | denoised | nothing | yes | karras | <https://arxiv.org/abs/2211.01095> |
//! | `dpmpp-2m-sde` | DPM++ 2M SDE | DPMSolverMultistepScheduler, algorithm_type sde-dpmsolver++ | DPM++ 2M SDE | `dpmpp_2m_sde` | 1 | N | denoised | nothing | yes | exponential | <https://arxiv.org/abs/2211.01095> |
//! | `dpmpp-2m-sde-heun` | DPM++ 2M SDE Heun | DPMSolverMultistepScheduler, algorithm_type sde-dpmsolver++, solver_type heun | DPM++ 2M SDE Heun | `dpmpp_2m_sde_heun` | 1 | N | denoised | nothing | yes | exponential | <https://arxiv.org/abs/2211.01095> |
//! | `dpmpp-3m-sde` | DPM++ 3M SDE | – | DPM++ 3M SDE | `dpmpp_3m_sde` | 1 | N | denoised | nothing | yes | exponential | <https://arxiv.org/abs/2211.01095> |
//! | `dpm-fast` | DPM fast | – | DPM fast | `dpm_fast` | 3 | N | sigma_min | nothing | no | karras | <https://arxiv.org/abs/2206.00927> |
//! | `dpm-adaptive` | DPM adaptive | – | DPM adaptive | `dpm_adaptive` | 3 | at most 3000 | sigma_min | nothing | no | karras | <https://arxiv.org/abs/2206.00927> |
//! | `unipc` | UniPC | UniPCMultistepScheduler | UniPC | `uni_pc` | 3 | N | denoised | nothing | no | linspace | <https://arxiv.org/abs/2302.04867> |
//! | `sa-solver` | SA-Solver | SASolverScheduler | – | `sa_solver` | 1 | N | sigma_min | nothing | yes | trailing | <https://arxiv.org/abs/2309.05019> |
//! | `sa-solver-pece` | SA-Solver PECE | – | – | `sa_solver_pece` | 1 | 2N - 1 | denoised | nothing | yes | karras | <https://arxiv.org/abs/2309.05019> |
//! | `lcm` | LCM | LCMScheduler, FlowMatchLCMScheduler | LCM | `lcm` | 1 | N | own formula | nothing | yes | lcm | <https://arxiv.org/abs/2310.04378> |
//! | `tcd` | TCD | TCDScheduler | – | – | 1 | N | alpha-bar 0 | nothing | yes | lcm | <https://arxiv.org/abs/2402.19159> |
//! | `er-sde` | ER-SDE | – | – | `er_sde` | 1 | N | denoised | nothing | yes | karras | <https://arxiv.org/abs/2309.06169> |
//! | `res-2m` | RES multistep | – | – | `res_multistep` | 2 | N | denoised | nothing | no | karras | <https://arxiv.org/abs/2308.02157> |
//! | `gradient-estimation` | Gradient estimation | – | – | `gradient_estimation` | 1 | N | denoised | nothing | no | karras | <https://arxiv.org/abs/2306.04848> |
//! | `restart` | Restart | – | Restart | – | 2 | 2N - 1 | denoised | nothing | yes | karras | <https://arxiv.org/abs/2306.14878> |
//! | `euler-cfg-pp` | Euler CFG++ | – | – | `euler_cfg_pp` | 1 | N | denoised | unconditional output | no | karras | <https://arxiv.org/abs/2406.08070> |
//! | `euler-a-cfg-pp` | Euler ancestral CFG++ | – | – | `euler_ancestral_cfg_pp` | 1 | N | denoised | unconditional output | yes | karras | <https://arxiv.org/abs/2406.08070> |
//! | `ddim-cfg-pp` | DDIM CFG++ | – | DDIM CFG++ | – | 1 | N | alpha-bar 0 | unconditional output | no | leading | <https://arxiv.org/abs/2406.08070> |
//!
//! Schedules, ladders, whole trajectories and noise are held to those of diffusers 0.42.1, k-diffusion 0.1.1.post1, numpy 2.4.6, torch 2.15.0
//! and torchsde 0.2.6, and to the papers' formulas in float64, by tests/golden; the samplers' orders to an exact solution by
//! tests/convergence.rs; the columns of the table to what happens by tests/properties.rs.

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

pub use clip::Clip;
pub use config::{BetaSchedule, ConfigError, Configured, SchedulerConfig, from_config};
pub use ladder::{
    AlignYourSteps, AlignedModel, Conventions, Counting, End, FirstX, Flow, FlowLevels, Ladder,
    LadderError, LinearQuadratic, ResolutionShift, Shape, Shift, Spacing, Span, StrengthRule,
    Timing, Told, Vp,
};
pub use names::{Preset, UnknownName, from_comfyui, from_webui};
pub use noise::{
    BrownianTree, CARDS, NoiseError, NoiseKind, NoiseSource, NumpyRng, Philox, RandNormal, Seeds,
    Slerp, TorchRng, Variation, cuda_threads,
};
pub use prediction::Prediction;
pub use run::{Calls, Ends, Needs, Run, Sampler, Step, sample};
pub use rungs::{Path, Rung, Rungs};
pub use samplers::{
    CallFormula, Churn, Ddim, DdimTarget, Ddpm, DdpmVariance, Deis, DeisNodes, Dpm2, Dpm2Ancestral,
    DpmAdaptive, DpmAlgorithm, DpmFast, DpmForm, DpmPlusPlus2M, DpmPlusPlus2MSde,
    DpmPlusPlus2SAncestral, DpmPlusPlus3MSde, DpmPlusPlusSde, DpmSolver, DpmSolverSinglestep,
    ErSde, ErSdeScale, Euler, EulerAncestral, EulerCfgPp, GradientEstimation, Heun, Ipndm,
    IpndmWeights, Lcm, LcmBoundary, Lms, Pndm, PndmMean, ResMultistep, Restart, RestartSegment,
    Row, SaOutput, SaSolver, Scheduler, SdeSolver, TABLE, Tcd, ThirdOrder, UniPc, UniPcVariant,
    WithConventions, by_name, row_of, same, table_as_markdown,
};
pub use schedule::NoiseSchedule;
