//! Samplers and schedule types by WebUI's names.

use sd_schedulers::{Ladder, Row, SchedulerConfig, TABLE, by_name};

use crate::Request;

/// A schedule type of WebUI's.
pub(super) struct ScheduleType {
    /// Its label, in small letters and digits only.
    name: &'static str,
    /// That very ladder, or the nearest there is.
    pub ladder: Ladder,
    pub there: bool,
}

const fn schedule_type(name: &'static str, ladder: Ladder, there: bool) -> ScheduleType {
    ScheduleType {
        name,
        ladder,
        there,
    }
}

/// `modules/sd_schedulers.py` of WebUI 1.10.
const SCHEDULE_TYPES: [ScheduleType; 11] = [
    schedule_type("karras", Ladder::karras(), true),
    schedule_type("uniform", Ladder::linspace(), true),
    schedule_type("normal", Ladder::linspace(), true),
    schedule_type("simple", Ladder::trailing(), false),
    schedule_type("sgmuniform", Ladder::trailing(), false),
    schedule_type("ddim", Ladder::leading(), false),
    schedule_type("exponential", Ladder::karras(), false),
    schedule_type("polyexponential", Ladder::karras(), false),
    schedule_type("alignyoursteps", Ladder::karras(), false),
    schedule_type("kloptimal", Ladder::karras(), false),
    schedule_type("beta", Ladder::karras(), false),
];

/// The sampler's name, and the schedule type that old files have behind it: `LMS Karras`, `k_lms_ka`.
pub(super) fn split(name: &str) -> (&str, Option<&str>) {
    if let Some(name) = name.strip_suffix("_ka") {
        return (name, Some("Karras"));
    }
    // No schedule type has more words; the longest that is one counts.
    let spaces = name.rmatch_indices(' ').map(|(at, _)| at).take(4);
    match spaces.filter(|&at| find(&name[at + 1..]).is_some()).last() {
        Some(at) => (&name[..at], Some(&name[at + 1..])),
        None => (name, None),
    }
}

/// By label, name or alias: `SGM Uniform`, `sgm_uniform`, `SGMUniform`.
pub(super) fn find(name: &str) -> Option<&'static ScheduleType> {
    let plain: String = name
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .map(|c| c.to_ascii_lowercase())
        .collect();
    SCHEDULE_TYPES.iter().find(|known| known.name == plain)
}

/// By title, by WebUI's aliases, by our name.
pub(super) fn row_called(name: &str) -> Option<&'static Row> {
    let title = |row: &&Row| row.title.eq_ignore_ascii_case(name);
    let alias = match name.to_ascii_lowercase().as_str() {
        "k_euler" => "euler",
        "k_euler_a" | "k_euler_ancestral" => "euler-a",
        "k_heun" => "heun",
        "k_dpmpp_2m" => "dpmpp-2m",
        _ => name,
    };
    TABLE.iter().find(title).or_else(|| by_name(alias))
}

/// Something of the same kind: with fresh noise in each step, with two calls of the network in each, or neither.
pub(super) fn nearest(name: &str) -> &'static Row {
    let alike = if name.ends_with(" a") || name.contains("SDE") || name == "LCM" {
        "euler-a"
    } else if name.starts_with("DPM2") {
        "heun"
    } else {
        "dpmpp-2m"
    };
    by_name(alike).unwrap_or_else(default_row)
}

/// That of a request which names no sampler.
pub(super) fn default_row() -> &'static Row {
    let named = Request::new("").scheduler.row(&SchedulerConfig::default());
    named.unwrap_or(&TABLE[0])
}
