//! The samplers, one per file, and the [table](TABLE) of them.
//!
//! # The table
//! These are the rows of [`TABLE`]. [`SamplerRow`] documents each column. N is the number of steps.
//! The column "noise" says whether the sampler adds noise. A dash means that the program has no
//! name for the sampler.
//!
//! The column "ends at" is for Stable Diffusion's configuration. With `set_alpha_to_one`, DDIM ends
//! at the denoised sample, and PNDM and PLMS end where their own formulas lead.
//!
//! On flow models, Euler, Heun and LCM do what the `FlowMatch…` classes of diffusers do. On EDM
//! models, Euler and DPM++ 2M do what its `EDM…` classes do.
//!
#![doc = include_str!("table.md")]
//!
//! # Add a sampler to this crate
//! A sampler is one file, and a row of golden values. The [crate documentation](crate) shows how to
//! write the `impl`.
//!
//! 1. `src/samplers/renoise.rs`: write the public, documented type with its options, its `impl`,
//!    and a constant `ROW`. The documentation begins with the paper, the order, the calls and the
//!    reference implementations. A row states only what differs from a first-order sampler that
//!    calls the model once per step, ends at the denoised sample ([`EndPoint::Last`] on a ladder
//!    that ends at 0) and adds no noise. It also has the sampler's names and options in WebUI and
//!    ComfyUI, if it has any. Code that several samplers share is in `steps.rs` and `history.rs`.
//! 2. `src/samplers/mod.rs`: add `mod` and `pub use`. `src/samplers/table.rs`: add the row. Tests
//!    compare each column with the sampler. The test `the_markdown_table_has_every_row` prints what
//!    belongs in `src/samplers/table.md`. Two tests in `src/names` count the names of WebUI and
//!    ComfyUI.
//! 3. The class in diffusers, if there is one: add its defaults to `src/config/class.rs` and the
//!    meaning of its keys to `src/config/configured/`.
//! 4. `tests/golden/reference/`: write the paper's formula in float64 Python, as a function of the
//!    model, x and the sigmas. In `tests/golden/suite.py`, add a line with the row's name that runs
//!    it, and k-diffusion's function where there is one. If the sampler has options, add a line for
//!    each of them, and the sampler with that option as JSON to `tests/golden/options.json`.
//!    `python make.py samplers` in `tests/golden` writes the golden files. It needs the packages
//!    that its first lines name, and k-diffusion's `sampling.py`, from the package or from
//!    `--k-diffusion FILE`.
//! 5. `tests/convergence.rs`: add the sampler's order to `paths()`, or to `deviations()` if the
//!    sampler adds noise. The tests in `tests/golden.rs` and `tests/convergence.rs` go over the
//!    whole table and fail for a row that they do not cover.

mod churn;
mod ddim;
mod ddpm;
mod deis;
mod dpm2;
mod dpm2_ancestral;
mod dpm_adaptive;
mod dpm_algorithm;
mod dpm_fast;
mod dpm_solver;
mod dpm_solver_singlestep;
mod dpm_stages;
mod dpmpp_2m;
mod dpmpp_2m_sde;
mod dpmpp_2s_ancestral;
mod dpmpp_3m_sde;
mod dpmpp_sde;
mod er_sde;
mod euler;
mod euler_ancestral;
mod euler_cfg_pp;
mod exponential_adams;
mod gradient_estimation;
mod heun;
mod history;
mod ipndm;
mod lcm;
mod lms;
mod pndm;
mod predictor_corrector;
mod res_multistep;
mod restart;
mod row;
mod run;
mod sa_solver;
mod scheduler;
mod steps;
mod table;
mod tcd;
#[cfg(test)]
mod tests;
mod unipc;
mod with_conventions;

pub use churn::Churn;
pub use ddim::{Ddim, DdimTarget};
pub use ddpm::{Ddpm, DdpmVariance};
pub use deis::{Deis, DeisNodes};
pub use dpm_adaptive::DpmAdaptive;
pub use dpm_algorithm::DpmAlgorithm;
pub use dpm_fast::DpmFast;
pub use dpm_solver::{DpmForm, DpmSolver, ThirdOrder};
pub use dpm_solver_singlestep::DpmSolverSinglestep;
pub use dpm2::Dpm2;
pub use dpm2_ancestral::Dpm2Ancestral;
pub use dpmpp_2m::DpmPlusPlus2M;
pub use dpmpp_2m_sde::{DpmPlusPlus2MSde, SdeSolver};
pub use dpmpp_2s_ancestral::DpmPlusPlus2SAncestral;
pub use dpmpp_3m_sde::DpmPlusPlus3MSde;
pub use dpmpp_sde::DpmPlusPlusSde;
pub use er_sde::{ErSde, ErSdeScale};
pub use euler::Euler;
pub use euler_ancestral::EulerAncestral;
pub use euler_cfg_pp::EulerCfgPp;
pub use gradient_estimation::GradientEstimation;
pub use heun::Heun;
pub use ipndm::{Ipndm, IpndmWeights};
pub use lcm::{Lcm, LcmBoundary};
pub use lms::Lms;
pub use pndm::{Pndm, PndmMean};
pub use res_multistep::ResMultistep;
pub use restart::{Restart, RestartSegment};
pub use row::{CallFormula, SamplerRow};
pub(crate) use row::{ComfyUi, WebUi};
pub use run::{Calls, EndPoint, Needs, Run, Sampler, SamplerEq, Step, sample};
pub use sa_solver::{SaOutput, SaSolver};
pub use scheduler::Scheduler;
pub use table::TABLE;
pub use tcd::Tcd;
pub use unipc::{UniPc, UniPcVariant};
pub use with_conventions::WithConventions;

use crate::SchedulerConfig;

/// Returns the row with this name, in upper or lower case.
///
/// The name is a [`name`](SamplerRow::name), or else WebUI's or ComfyUI's name. `ddim` and `deis`
/// therefore find this crate's samplers, although ComfyUI has other samplers of these names.
/// [`from_comfyui`](crate::from_comfyui) finds ComfyUI's.
///
/// ```
/// use sd_schedulers::by_name;
///
/// assert_eq!(by_name("DPM++ 2M").map(|row| row.name), Some("dpmpp-2m"));
/// assert_eq!(by_name("dpmpp_2m").map(|row| row.name), Some("dpmpp-2m"));
/// assert!(by_name("dpm").is_none());
/// ```
pub fn by_name(name: &str) -> Option<&'static SamplerRow> {
    let with = |own: fn(&SamplerRow) -> Option<&'static str>| {
        let same = |row: &&SamplerRow| own(row).is_some_and(|own| own.eq_ignore_ascii_case(name));
        TABLE.iter().find(same)
    };
    with(|row| Some(row.name))
        .or_else(|| with(|row| row.webui))
        .or_else(|| with(|row| row.comfyui))
}

/// Returns the row that builds exactly this sampler, with the same options, from a model's
/// configuration. Returns `None` for other samplers and other options.
pub fn row_of(sampler: &dyn Sampler, config: &SchedulerConfig) -> Option<&'static SamplerRow> {
    TABLE.iter().find(|row| *sampler == *(row.build)(config))
}
