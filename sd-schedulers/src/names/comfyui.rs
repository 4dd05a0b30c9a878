use std::sync::Arc;

use super::{Preset, unknown};
use crate::{
    Conventions, Ddpm, Deis, DeisNodes, Dpm2, Dpm2Ancestral, DpmAdaptive, DpmFast, DpmPlusPlus2M,
    DpmPlusPlus2MSde, DpmPlusPlus2SAncestral, DpmPlusPlus3MSde, DpmPlusPlusSde, ErSde, Euler,
    EulerAncestral, EulerCfgPp, FinalSigma, FirstX, GradientEstimation, Heun, Ipndm, IpndmWeights,
    Ladder, Lcm, LcmBoundary, Lms, NoisePath, ResMultistep, SaSolver, Sampler, SdeSolver, TABLE,
    Timing, UniPc, UniPcVariant, UnknownName, WithConventions,
};

/// Returns the sampler and the ladder that ComfyUI 0.3.64 has under these names, such as `dpmpp_2m`
/// and `karras`, as its KSampler writes them.
///
/// ```
/// use sd_schedulers::{Ladder, from_comfyui};
///
/// let preset = from_comfyui("dpmpp_2m_sde_gpu", "sgm_uniform")?;
/// assert_eq!((preset.row.name, preset.ladder), ("dpmpp-2m-sde", Ladder::sgm_uniform()));
/// # Ok::<(), sd_schedulers::UnknownName>(())
/// ```
///
/// `scheduler` may also be the name of a node that makes sigmas, such as `AlignYourStepsScheduler`
/// or `GITSScheduler`, which has its defaults then. A name that ends in `_gpu` is the same as
/// without it, because ComfyUI only makes the noise on another device. `ddim` is Euler, as in
/// ComfyUI.
///
/// The conventions are k-diffusion's, with N rungs. The first x is sqrt(sigma² + 1) times noise.
/// On `ddim_uniform`, which usually begins below the largest sigma, it is sigma times noise. The
/// next to last sigma is left out for `dpm_2`, `dpm_2_ancestral`, `uni_pc` and `uni_pc_bh2`.
///
/// There are two differences. On a diffusion model, ComfyUI rounds all timesteps to whole ones, and
/// this crate does not. ComfyUI's `uni_pc` goes to sigma 0.001, and this crate's goes to 0.
///
/// # Errors
/// [`UnknownName`] for an unknown name, and for the samplers that this crate lacks: `heunpp2`,
/// `res_multistep_ancestral`, `seeds_2`, `seeds_3`, and the `…_cfg_pp` samplers other than
/// Euler's two.
pub fn from_comfyui(sampler: &str, scheduler: &str) -> Result<Preset, UnknownName> {
    let ladder = LADDERS.iter().find(|(name, _)| *name == scheduler);
    let Some((_, ladder)) = ladder else {
        let names = LADDERS.iter().map(|(name, _)| *name);
        return Err(unknown("scheduler of ComfyUI", scheduler, names));
    };
    let known = SAMPLERS.iter().find(|known| known.name == sampler);
    let row_of = |known: &Known| TABLE.iter().find(|row| row.name == known.row);
    let Some((known, row)) = known.and_then(|known| Some((known, row_of(known)?))) else {
        let names = SAMPLERS.iter().map(|known| known.name);
        return Err(unknown("sampler of ComfyUI", sampler, names));
    };
    let sampler = (known.build)();
    let own = sampler.conventions();
    let conventions = Conventions {
        first_x: match ladder {
            Ladder::Timed(Timing::DdimUniform) => FirstX::BySpacing,
            _ => FirstX::VariancePreserving,
        },
        training_timesteps: own.training_timesteps,
        end: own.end,
        min_steps: own.min_steps,
        flow: own.flow,
        drop_next_to_last: DROP_NEXT_TO_LAST.contains(&known.name),
        ..Conventions::default()
    };
    Ok(Preset {
        row,
        sampler: WithConventions::wrap(sampler, conventions),
        ladder: ladder.clone(),
        ensd: false,
    })
}

/// The schedulers of the KSampler, and the nodes that make sigmas.
#[rustfmt::skip]
static LADDERS: [(&str, Ladder); 18] = [
    ("simple", Ladder::simple()),
    ("sgm_uniform", Ladder::sgm_uniform()),
    ("karras", Ladder::karras()),
    ("exponential", Ladder::exponential()),
    ("ddim_uniform", Ladder::ddim_uniform()),
    ("beta", Ladder::beta_timesteps()),
    ("normal", Ladder::normal()),
    ("linear_quadratic", Ladder::linear_quadratic()),
    ("kl_optimal", Ladder::kl_optimal()),
    ("AlignYourStepsScheduler", Ladder::align_your_steps()),
    ("GITSScheduler", Ladder::gits()),
    ("LaplaceScheduler", Ladder::laplace()),
    ("VPScheduler", Ladder::vp()),
    ("SDTurboScheduler", Ladder::turbo()),
    ("KarrasScheduler", Ladder::karras()),
    ("ExponentialScheduler", Ladder::exponential()),
    ("PolyexponentialScheduler", Ladder::polyexponential()),
    ("BetaSamplingScheduler", Ladder::beta_timesteps()),
];

const DROP_NEXT_TO_LAST: [&str; 4] = ["dpm_2", "dpm_2_ancestral", "uni_pc", "uni_pc_bh2"];

/// A sampler of ComfyUI.
struct Known {
    name: &'static str,
    /// The name of the sampler's row in [`TABLE`].
    row: &'static str,
    build: fn() -> Arc<dyn Sampler>,
}

const fn known(name: &'static str, row: &'static str, build: fn() -> Arc<dyn Sampler>) -> Known {
    Known { name, row, build }
}

#[rustfmt::skip]
static SAMPLERS: [Known; 33] = [
    known("euler", "euler", || Arc::new(Euler::default())),
    known("euler_cfg_pp", "euler-cfg-pp", || Arc::new(EulerCfgPp::default())),
    known("euler_ancestral", "euler-a", || {
        Arc::new(EulerAncestral { flow: NoisePath::Flow, ..EulerAncestral::default() })
    }),
    known("euler_ancestral_cfg_pp", "euler-a-cfg-pp", || {
        Arc::new(EulerCfgPp { eta: 1.0, ..EulerCfgPp::default() })
    }),
    known("heun", "heun", || Arc::new(Heun::default())),
    known("dpm_2", "dpm2", || Arc::new(Dpm2::default())),
    known("dpm_2_ancestral", "dpm2-a", || Arc::new(Dpm2Ancestral::default())),
    known("lms", "lms", || Arc::new(Lms::default())),
    known("dpm_fast", "dpm-fast", || Arc::new(DpmFast::default())),
    known("dpm_adaptive", "dpm-adaptive", || Arc::new(DpmAdaptive::default())),
    known("dpmpp_2s_ancestral", "dpmpp-2s-a", || Arc::new(DpmPlusPlus2SAncestral::default())),
    known("dpmpp_sde", "dpmpp-sde", || Arc::new(DpmPlusPlusSde::default())),
    known("dpmpp_sde_gpu", "dpmpp-sde", || Arc::new(DpmPlusPlusSde::default())),
    known("dpmpp_2m", "dpmpp-2m", || Arc::new(DpmPlusPlus2M)),
    known("dpmpp_2m_sde", "dpmpp-2m-sde", || Arc::new(DpmPlusPlus2MSde::default())),
    known("dpmpp_2m_sde_gpu", "dpmpp-2m-sde", || Arc::new(DpmPlusPlus2MSde::default())),
    known("dpmpp_2m_sde_heun", "dpmpp-2m-sde-heun", sde_heun),
    known("dpmpp_2m_sde_heun_gpu", "dpmpp-2m-sde-heun", sde_heun),
    known("dpmpp_3m_sde", "dpmpp-3m-sde", || Arc::new(DpmPlusPlus3MSde::default())),
    known("dpmpp_3m_sde_gpu", "dpmpp-3m-sde", || Arc::new(DpmPlusPlus3MSde::default())),
    known("ddpm", "ddpm", || Arc::new(Ddpm::default())),
    known("lcm", "lcm", || Arc::new(Lcm { boundary: LcmBoundary::None, ..Lcm::default() })),
    known("ipndm", "ipndm", || Arc::new(Ipndm::default())),
    known("ipndm_v", "ipndm-v", || {
        Arc::new(Ipndm { weights: IpndmWeights::VariablePublished, ..Ipndm::default() })
    }),
    known("deis", "deis-tab", || {
        Arc::new(Deis {
            order: 3,
            nodes: DeisNodes::Time,
            lower_order_final: false,
            end: FinalSigma::Zero,
            ..Deis::default()
        })
    }),
    known("res_multistep", "res-2m", || Arc::new(ResMultistep)),
    known("gradient_estimation", "gradient-estimation", || Arc::new(GradientEstimation::default())),
    known("er_sde", "er-sde", || Arc::new(ErSde { points: Some(200), ..ErSde::default() })),
    known("sa_solver", "sa-solver", || sa_solver(false)),
    known("sa_solver_pece", "sa-solver-pece", || sa_solver(true)),
    known("ddim", "euler", || Arc::new(Euler::default())),
    known("uni_pc", "unipc", || unipc(UniPcVariant::Bh1)),
    known("uni_pc_bh2", "unipc", || unipc(UniPcVariant::Bh2)),
];

fn sde_heun() -> Arc<dyn Sampler> {
    Arc::new(DpmPlusPlus2MSde {
        solver: SdeSolver::Heun,
        ..DpmPlusPlus2MSde::default()
    })
}

fn sa_solver(evaluate_again: bool) -> Arc<dyn Sampler> {
    Arc::new(SaSolver {
        predictor_order: 3,
        corrector_order: 4,
        evaluate_again,
        end: FinalSigma::Zero,
        ..SaSolver::default()
    })
}

fn unipc(variant: UniPcVariant) -> Arc<dyn Sampler> {
    Arc::new(UniPc {
        order: 3,
        variant,
        ..UniPc::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Covers the 42 names of `SAMPLER_NAMES`: each has a row or is refused.
    #[test]
    fn every_name_is_known_or_refused() {
        let refused = [
            "heunpp2",
            "dpmpp_2s_ancestral_cfg_pp",
            "dpmpp_2m_cfg_pp",
            "res_multistep_cfg_pp",
            "res_multistep_ancestral",
            "res_multistep_ancestral_cfg_pp",
            "gradient_estimation_cfg_pp",
            "seeds_2",
            "seeds_3",
        ];
        assert_eq!(SAMPLERS.len() + refused.len(), 42);
        for name in refused {
            let error = from_comfyui(name, "normal").unwrap_err().to_string();
            assert!(error.contains("is no sampler of ComfyUI"), "{error}");
        }
        for known in &SAMPLERS {
            for (scheduler, ladder) in &LADDERS {
                let preset = from_comfyui(known.name, scheduler).unwrap();
                assert_eq!(preset.row.name, known.row);
                assert_eq!(preset.ladder, *ladder);
                let dropped = preset.sampler.conventions().drop_next_to_last;
                assert_eq!(dropped, DROP_NEXT_TO_LAST.contains(&known.name));
            }
        }
        let error = from_comfyui("euler", "kl-optimal").unwrap_err().to_string();
        let expected = "\"kl-optimal\" is no scheduler of ComfyUI, expected kl_optimal";
        assert!(error.starts_with(expected), "{error}");
    }

    #[test]
    fn every_name_of_the_table_reads_back_to_its_row() {
        for row in TABLE {
            if let Some(name) = row.comfyui {
                let preset = from_comfyui(name, "karras").unwrap();
                assert_eq!(preset.row.name, row.name);
            }
        }
    }

    #[test]
    fn the_first_x_is_of_unit_variance_but_below_the_largest_sigma() {
        let first_x = |scheduler| {
            let preset = from_comfyui("euler", scheduler).unwrap();
            preset.sampler.conventions().first_x
        };
        assert_eq!(first_x("karras"), FirstX::VariancePreserving);
        assert_eq!(first_x("ddim_uniform"), FirstX::BySpacing);
    }
}
