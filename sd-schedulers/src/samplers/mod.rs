//! The samplers, one per file, and the table of them.

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
pub use sa_solver::{SaOutput, SaSolver};
pub use scheduler::Scheduler;
pub use table::TABLE;
pub use tcd::Tcd;
pub use unipc::{UniPc, UniPcVariant};
pub use with_conventions::WithConventions;

use crate::{Sampler, SchedulerConfig};

/// Returns the row with this name, in upper or lower case.
///
/// The name is a [`name`](SamplerRow::name), or else WebUI's or ComfyUI's name. ComfyUI's `ddim`
/// and `deis` are therefore not found: this crate's samplers of these names take precedence, and
/// they are other samplers.
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
