//! Samplers, schedule types and noise by WebUI's names.

use std::sync::Arc;

use sd_schedulers::{
    Conventions, FirstX, Ladder, NoiseKind, Row, Sampler, SchedulerConfig, TABLE, WithConventions,
    by_name, from_webui, same,
};

use crate::Request;

/// The schedule types of WebUI 1.10 by label. Its Normal is Uniform by another name.
const SCHEDULE_TYPES: [&str; 10] = [
    "Uniform",
    "Karras",
    "Exponential",
    "Polyexponential",
    "SGM Uniform",
    "KL Optimal",
    "Align Your Steps",
    "Simple",
    "DDIM",
    "Beta",
];

/// What `RNG` says of the kinds of noise that WebUI has and one value tells.
const NOISE: [(&str, NoiseKind); 2] = [("CPU", NoiseKind::Torch), ("NV", NoiseKind::Philox)];

/// The sampler's name, and the schedule type that old files have behind it: `LMS Karras`, `k_lms_ka`.
pub(super) fn split(name: &str) -> (&str, Option<&str>) {
    if let Some(name) = name.strip_suffix("_ka") {
        return (name, Some("Karras"));
    }
    // No schedule type has more words; the longest that is one counts.
    let spaces = name.rmatch_indices(' ').map(|(at, _)| at).take(4);
    match spaces
        .filter(|&at| ladder_called(&name[at + 1..]).is_some())
        .last()
    {
        Some(at) => (&name[..at], Some(&name[at + 1..])),
        None => (name, None),
    }
}

/// The ladder of a schedule type.
pub(super) fn ladder_called(name: &str) -> Option<Ladder> {
    // A sampler that takes any.
    let preset = from_webui("Euler", Some(name)).ok()?;
    Some(preset.ladder)
}

/// The label of the schedule type that is this very ladder.
pub(super) fn label_of(ladder: &Ladder) -> Option<&'static str> {
    let is = |label: &&str| ladder_called(label).as_ref() == Some(ladder);
    SCHEDULE_TYPES.into_iter().find(is)
}

/// WebUI's name of a sampler with its options and conventions.
pub(super) fn name_of(sampler: &dyn Sampler) -> Option<&'static str> {
    let is = |name: &&str| {
        from_webui(name, None).is_ok_and(|preset| {
            same(&*preset.sampler, sampler) || same(&*with_sgm_noise(preset.sampler), sampler)
        })
    };
    TABLE.iter().filter_map(|row| row.webui).find(is)
}

/// As under WebUI's option "SGM noise multiplier".
pub(super) fn with_sgm_noise(sampler: Arc<dyn Sampler>) -> Arc<dyn Sampler> {
    let conventions = Conventions {
        first_x: FirstX::VariancePreserving,
        ..sampler.conventions()
    };
    WithConventions::wrap(sampler, conventions)
}

/// The name of a sampler of WebUI's that is of the same kind as one that is none: with fresh noise in each step, or without.
pub(super) fn nearest(name: &str) -> &'static str {
    if name.ends_with(" a") || name.contains("SDE") {
        "Euler a"
    } else {
        "DPM++ 2M"
    }
}

/// By the value of `RNG`.
pub(super) fn noise_called(name: &str) -> Option<NoiseKind> {
    let (_, kind) = NOISE.into_iter().find(|(known, _)| *known == name)?;
    Some(kind)
}

/// The value of `RNG`, if WebUI has this noise.
pub(super) fn rng_of(kind: NoiseKind) -> Option<&'static str> {
    if let NoiseKind::Cuda { .. } = kind {
        return Some("GPU");
    }
    let (name, _) = NOISE.into_iter().find(|(_, known)| *known == kind)?;
    Some(name)
}

/// By title, or by our name.
pub(super) fn row_called(name: &str) -> Option<&'static Row> {
    let title = |row: &&Row| row.title.eq_ignore_ascii_case(name);
    TABLE.iter().find(title).or_else(|| by_name(name))
}

/// That of a request which names no sampler.
pub(super) fn default_row() -> &'static Row {
    let named = Request::new("").scheduler.row(&SchedulerConfig::default());
    named.unwrap_or(&TABLE[0])
}
