//! Samplers, schedule types and noise, by the names of WebUI and its relatives.

use std::sync::Arc;

use sd_schedulers::{
    Ladder, Sampler, SchedulerConfig, by_name, from_comfyui, from_webui,
    ladders::{Conventions, FirstX},
    names::Preset,
    noise::NoiseKind,
    samplers::{SamplerRow, TABLE, WithConventions},
};

use crate::Defaults;

/// The values of `RNG` for the kinds of noise that WebUI has and that need no other options.
const NOISE: [(&str, NoiseKind); 2] = [("CPU", NoiseKind::Torch), ("NV", NoiseKind::Philox)];

/// Returns the ladder of a schedule type.
pub(super) fn ladder_called(name: &str) -> Option<Ladder> {
    // Euler accepts any ladder.
    let preset = from_webui("Euler", Some(name)).ok()?;
    Some(preset.ladder)
}

/// Returns ComfyUI's sampler and scheduler of these names. WebUI's relatives write the scheduler as
/// a title: `Linear Quadratic`.
pub(super) fn of_comfyui(sampler: &str, scheduler: &str) -> Option<Preset> {
    let preset = from_comfyui(sampler, scheduler);
    preset
        .or_else(|_| from_comfyui(sampler, &as_in_comfyui(scheduler)))
        .ok()
}

/// Splits a sampler of ComfyUI from the scheduler that nodes which save pictures append to it:
/// `euler_karras`, `euler karras`.
pub(super) fn split_comfyui(name: &str) -> Option<(&str, Option<&str>)> {
    let known = |sampler: &str, scheduler: &str| from_comfyui(sampler, scheduler).is_ok();
    if known(name, "normal") {
        return Some((name, None));
    }
    // No scheduler has more words.
    let mut gaps = name.rmatch_indices(['_', ' ']).map(|(at, _)| at).take(3);
    let at = gaps.find(|&at| known(&name[..at], &name[at + 1..]))?;
    Some((&name[..at], Some(&name[at + 1..])))
}

/// Returns a sampler that Forge and its relatives took from ComfyUI: `IPNDM_V`, `Euler a CFG++`.
/// Its first x is as in WebUI.
pub(super) fn from_forge(name: &str) -> Option<Preset> {
    let mut preset = from_comfyui(&as_in_comfyui(name), "normal").ok()?;
    preset.sampler = with_first_x(preset.sampler, FirstX::BySpacing);
    Some(preset)
}

/// Converts a name of WebUI's relatives to ComfyUI's spelling.
fn as_in_comfyui(name: &str) -> String {
    // All names of ComfyUI are shorter.
    let name: String = name.chars().take(64).collect();
    let name = name
        .to_lowercase()
        .replace([' ', '-'], "_")
        .replace("++", "_pp");
    name.replace("_a_", "_ancestral_")
}

/// Returns the row of a sampler by its name in SD.Next, by its title or by this crate's name.
pub(super) fn row_of_diffusers(name: &str) -> Option<&'static SamplerRow> {
    const OF_SDNEXT: [(&str, &str); 6] = [
        ("DPM SDE", "dpmpp-sde"),
        ("DPM++ 1S", "dpmpp-2s"),
        ("KDPM2", "dpm2"),
        ("KDPM2 a", "dpm2-a"),
        ("LMSD", "lms"),
        ("SA Solver", "sa-solver"),
    ];
    let known = OF_SDNEXT.into_iter().find(|(known, _)| *known == name);
    row_called(known.map_or(name, |(_, row)| row))
}

/// Returns the row of an SD.Next sampler by its name and its class in diffusers, which several rows
/// may share.
pub(super) fn row_of_class(name: &str, class: &str) -> Option<&'static SamplerRow> {
    let is_class = |part: &str| part.ends_with("Scheduler");
    let parts = |row: &SamplerRow| row.diffusers.unwrap_or_default().split(", ");
    let is_of = |row: &&SamplerRow| is_class(class) && parts(row).any(|part| part == class);
    let without_options = |row: &&SamplerRow| is_of(row) && parts(row).all(is_class);
    let named = row_of_diffusers(name).filter(is_of);
    named.or_else(|| TABLE.iter().find(without_options))
}

/// Returns WebUI's name of a sampler with its options and conventions.
pub(crate) fn name_of(sampler: &dyn Sampler) -> Option<&'static str> {
    let is = |name: &&str| {
        from_webui(name, None).is_ok_and(|preset| {
            *preset.sampler == *sampler || *with_sgm_noise(preset.sampler) == *sampler
        })
    };
    TABLE.iter().filter_map(|row| row.webui).find(is)
}

/// Scales the first x as with WebUI's option "SGM noise multiplier".
pub(super) fn with_sgm_noise(sampler: Arc<dyn Sampler>) -> Arc<dyn Sampler> {
    with_first_x(sampler, FirstX::VariancePreserving)
}

fn with_first_x(sampler: Arc<dyn Sampler>, first_x: FirstX) -> Arc<dyn Sampler> {
    let conventions = Conventions {
        first_x,
        ..sampler.conventions()
    };
    WithConventions::wrap(sampler, conventions)
}

/// Returns the name of the WebUI sampler that is nearest to an unknown one.
///
/// It is the sampler whose name the unknown name begins with (`DPM++ 2M Turbo`, `euler_beta57`).
/// If there is none, it is `Euler a` for a sampler that adds noise in each step, and `DPM++ 2M` for
/// any other.
pub(super) fn nearest(name: &str) -> &'static str {
    let gaps = name.rmatch_indices([' ', '_']).map(|(at, _)| at);
    // All known names are shorter.
    let begins = gaps.filter(|&at| at < 32).find_map(|at| {
        let name = &name[..at];
        let of_webui = from_webui(name, None).ok();
        let preset = of_webui.or_else(|| from_comfyui(name, "normal").ok())?;
        preset.row.webui
    });
    begins.unwrap_or_else(|| {
        if name.ends_with(" a") || name.contains("SDE") {
            "Euler a"
        } else {
            "DPM++ 2M"
        }
    })
}

/// Returns the noise for a value of `RNG`.
pub(super) fn noise_called(name: &str) -> Option<NoiseKind> {
    let (_, kind) = NOISE.into_iter().find(|(known, _)| *known == name)?;
    Some(kind)
}

/// Returns the value of `RNG`, if WebUI has this noise.
pub(super) fn rng_of(kind: NoiseKind) -> Option<&'static str> {
    if let NoiseKind::Cuda { .. } = kind {
        return Some("GPU");
    }
    let (name, _) = NOISE.into_iter().find(|(_, known)| *known == kind)?;
    Some(name)
}

/// Returns a row by its title or by this crate's name.
pub(super) fn row_called(name: &str) -> Option<&'static SamplerRow> {
    let title = |row: &&SamplerRow| row.title.eq_ignore_ascii_case(name);
    TABLE.iter().find(title).or_else(|| by_name(name))
}

/// Returns the row of the sampler that is used if no sampler is named.
pub(super) fn default_row() -> &'static SamplerRow {
    let named = Defaults::default()
        .scheduler
        .row(&SchedulerConfig::default());
    named.unwrap_or(&TABLE[0])
}
