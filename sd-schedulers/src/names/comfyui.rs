use super::{Preset, unknown};
use crate::samplers::ComfyUi;
use crate::{
    Ladder,
    ladders::{Conventions, FirstX, Timing},
    names::UnknownName,
    samplers::{SamplerRow, TABLE, WithConventions},
};

/// Returns the sampler and the ladder that ComfyUI 0.3.64 has under these names, such as `dpmpp_2m`
/// and `karras`, as its KSampler writes them.
///
/// ```
/// use sd_schedulers::{Ladder, from_comfyui};
///
/// let preset = from_comfyui("dpmpp_2m_sde_gpu", "sgm_uniform")?;
/// assert_eq!((preset.row.name, preset.ladder), ("dpmpp-2m-sde", Ladder::sgm_uniform()));
/// # Ok::<(), sd_schedulers::names::UnknownName>(())
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
    let Some((row, known)) = samplers().find(|(_, known)| known.name == sampler) else {
        let names = samplers().map(|(_, known)| known.name);
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
        drop_next_to_last: known.drop_next_to_last,
        ..Conventions::default()
    };
    Ok(Preset {
        row,
        sampler: WithConventions::wrap(sampler, conventions),
        ladder: ladder.clone(),
        ensd: false,
    })
}

/// Returns ComfyUI's samplers, each with its row.
fn samplers() -> impl Iterator<Item = (&'static SamplerRow, &'static ComfyUi)> {
    TABLE
        .iter()
        .flat_map(|row| row.of_comfyui.iter().map(move |known| (row, known)))
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
        assert_eq!(samplers().count() + refused.len(), 42);
        for name in refused {
            let error = from_comfyui(name, "normal").unwrap_err().to_string();
            assert!(error.contains("is no sampler of ComfyUI"), "{error}");
        }
        let without_next_to_last = ["dpm_2", "dpm_2_ancestral", "uni_pc", "uni_pc_bh2"];
        for (row, known) in samplers() {
            for (scheduler, ladder) in &LADDERS {
                let preset = from_comfyui(known.name, scheduler).unwrap();
                assert_eq!(preset.row.name, row.name);
                assert_eq!(preset.ladder, *ladder);
                let dropped = preset.sampler.conventions().drop_next_to_last;
                assert_eq!(dropped, without_next_to_last.contains(&known.name));
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
