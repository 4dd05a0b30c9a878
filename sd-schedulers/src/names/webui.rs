use super::{Preset, unknown};
use crate::samplers::WebUi;
use crate::{
    Ladder,
    ladders::{AlignYourSteps, AlignedModel, Shape},
    names::UnknownName,
    samplers::{SamplerRow, TABLE},
};

/// Returns the sampler and the ladder that Stable Diffusion WebUI 1.10.1 has under this name.
///
/// The name is a sampler's name (`DPM++ 2M`), a name followed by a schedule type as in old versions
/// (`DPM++ 2M Karras`), or an alias (`k_dpmpp_2m`).
///
/// ```
/// use sd_schedulers::{Ladder, from_webui};
///
/// let preset = from_webui("DPM++ 2M Karras", None)?;
/// assert_eq!((preset.row.name, preset.ladder), ("dpmpp-2m", Ladder::karras()));
/// let preset = from_webui("DPM++ 2M SDE", Some("Automatic"))?;
/// assert_eq!(preset.ladder, Ladder::exponential());
/// assert!(preset.sampler.needs().brownian);
/// # Ok::<(), sd_schedulers::names::UnknownName>(())
/// ```
///
/// `schedule_type` is the field of that name, such as `SGM Uniform`. A schedule type within the
/// name takes precedence. Without a schedule type, and with `Automatic`, the ladder is the
/// sampler's own. DDIM, DDIM CFG++, PLMS and UniPC always have their own ladder. DPM fast and DPM
/// adaptive use only the ends of a ladder.
///
/// The conventions are k-diffusion's: N rungs, fractional timesteps, and a first x of sigma times
/// noise. The samplers over timesteps start from unit noise in the variance-preserving scaling
/// instead. The next to last sigma is left out for DPM2, DPM2 a and DPM++ 3M SDE. Options that
/// WebUI has for all samplers, such as eta and s_churn, have WebUI's defaults, so DPM fast and DPM
/// adaptive add noise (eta 1).
///
/// There are three differences:
/// - With LCM, schedule types other than Automatic, Uniform and Normal cover all trained sigmas. In
///   WebUI, they cover the sigmas of LCM's 50 timesteps.
/// - Align Your Steps is the table for Stable Diffusion 1.5. WebUI uses another table for SDXL,
///   which [`AlignedModel`] has too.
/// - Samplers over timesteps have as many rungs as their
///   [ladder](crate::ladders::Timing::DdimUniform) has. UniPC has N rungs here.
///
/// # Errors
/// [`UnknownName`] for an unknown sampler, for which WebUI would use DPM++ 2M, and for an unknown
/// schedule type.
pub fn from_webui(name: &str, schedule_type: Option<&str>) -> Result<Preset, UnknownName> {
    let asked = match schedule_type {
        None => None,
        Some(label) => {
            let found = ScheduleType::find(label);
            Some(found.ok_or_else(|| {
                let labels = SCHEDULE_TYPES.iter().map(|known| known.labels[0]);
                unknown("schedule type of WebUI", label, labels)
            })?)
        }
    };
    let (plain, in_name) = split(name);
    let mut known = TABLE
        .iter()
        .filter_map(|row| Some((row, row.of_webui.as_ref()?)));
    let is_called = |(row, of_webui): &(&SamplerRow, &WebUi)| {
        let mut names = of_webui.aliases.iter().chain([&row.title]);
        names.any(|known| known.eq_ignore_ascii_case(plain))
    };
    let Some((row, of_webui)) = known.find(is_called) else {
        let names = TABLE.iter().filter_map(|row| row.webui);
        return Err(unknown("sampler of WebUI", name, names));
    };
    let own = (of_webui.ladder)();
    let ladder = match in_name.or(asked) {
        Some(schedule_type) if !of_webui.own_ladder => schedule_type.ladder.as_ref(),
        _ => None,
    };
    // Uniform and Normal cover the timesteps that a sampler knows, which are fifty for LCM.
    let of_lcm = own == Ladder::lcm_even();
    let ladder = ladder.filter(|&ladder| !(of_lcm && *ladder == Ladder::normal()));
    Ok(Preset {
        row,
        sampler: (of_webui.build)(),
        ladder: ladder.cloned().unwrap_or(own),
        ensd: of_webui.ensd,
    })
}

/// Splits a name as [`from_webui`] does: into the sampler's name, and the label of the schedule
/// type that follows it.
#[doc(hidden)] // Public for the other crates of this workspace.
pub fn split_webui(name: &str) -> (&str, Option<&'static str>) {
    let (name, schedule_type) = split(name);
    (name, schedule_type.map(|known| known.labels[0]))
}

/// Returns the label of the schedule type that is exactly this ladder.
#[doc(hidden)] // Public for the other crates of this workspace.
pub fn schedule_type_of(ladder: &Ladder) -> Option<&'static str> {
    let is = |known: &&ScheduleType| known.ladder.as_ref() == Some(ladder);
    SCHEDULE_TYPES.iter().find(is).map(|known| known.labels[0])
}

/// Splits a name into the sampler's name and the schedule type that follows it.
fn split(name: &str) -> (&str, Option<&'static ScheduleType>) {
    // Aliases from before WebUI 1.9.
    if let Some(shorter) = name.strip_suffix("_ka") {
        return (shorter, ScheduleType::find("Karras"));
    }
    let labels = SCHEDULE_TYPES
        .iter()
        .flat_map(|known| known.labels.iter().map(move |label| (*label, known)));
    let before = |label: &str| name.strip_suffix(label)?.strip_suffix(' ');
    let found = labels.filter_map(|(label, known)| Some((before(label)?, known)));
    // "SGM Uniform" must win over "Uniform".
    match found.min_by_key(|(shorter, _)| shorter.len()) {
        Some((shorter, known)) => (shorter, Some(known)),
        None => (name, None),
    }
}

/// A schedule type of WebUI.
struct ScheduleType {
    /// Its label, its name and its alias.
    labels: &'static [&'static str],
    /// The ladder, or `None` for the sampler's own.
    ladder: Option<Ladder>,
}

impl ScheduleType {
    fn find(label: &str) -> Option<&'static Self> {
        let same = |known: &&str| known.eq_ignore_ascii_case(label);
        SCHEDULE_TYPES
            .iter()
            .find(|known| known.labels.iter().any(same))
    }
}

const fn schedule_type(labels: &'static [&'static str], ladder: Option<Ladder>) -> ScheduleType {
    ScheduleType { labels, ladder }
}

const ALIGN_YOUR_STEPS: Ladder = Ladder::AlignYourSteps(AlignYourSteps {
    model: AlignedModel::Sd15,
    three_digits: true,
    keep_last: true,
});
const KL_OPTIMAL: Ladder = Ladder::shaped(Shape::KlOptimal {
    ends_at_lowest: true,
});

/// The schedule types in WebUI's order.
#[rustfmt::skip]
static SCHEDULE_TYPES: [ScheduleType; 12] = [
    schedule_type(&["Automatic", "automatic"], None),
    schedule_type(&["Uniform", "uniform"], Some(Ladder::normal())),
    schedule_type(&["Karras", "karras"], Some(Ladder::karras())),
    schedule_type(&["Exponential", "exponential"], Some(Ladder::exponential())),
    schedule_type(&["Polyexponential", "polyexponential"], Some(Ladder::polyexponential())),
    schedule_type(&["SGM Uniform", "sgm_uniform", "SGMUniform"], Some(Ladder::sgm_uniform())),
    schedule_type(&["KL Optimal", "kl_optimal"], Some(KL_OPTIMAL)),
    schedule_type(&["Align Your Steps", "align_your_steps"], Some(ALIGN_YOUR_STEPS)),
    schedule_type(&["Simple", "simple"], Some(Ladder::simple())),
    schedule_type(&["Normal", "normal"], Some(Ladder::normal())),
    schedule_type(&["DDIM", "ddim"], Some(Ladder::ddim_uniform())),
    schedule_type(&["Beta", "beta"], Some(Ladder::beta())),
];

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{NoiseSchedule, SchedulerConfig, samplers::Euler};

    #[test]
    fn every_name_of_the_table_reads_back_to_its_row() {
        for row in TABLE {
            let Some(name) = row.webui else { continue };
            let preset = from_webui(name, None).unwrap();
            assert_eq!(preset.row.name, row.name);
            assert_eq!(row.title, name);
            for label in SCHEDULE_TYPES.iter().flat_map(|known| known.labels) {
                let old = from_webui(&format!("{name} {label}"), Some("Normal")).unwrap();
                let new = from_webui(name, Some(label)).unwrap();
                assert_eq!(old.row.name, row.name, "{name} {label}");
                assert_eq!(old.ladder, new.ladder, "{name} {label}");
            }
        }
    }

    /// The facts of modules/sd_samplers_kdiffusion.py and modules/sd_schedulers.py: the ladder for
    /// Automatic, whether the next to last sigma is left out, whether the noise comes from a
    /// Brownian tree, and whether ENSD counts.
    #[test]
    fn the_flags_of_webui() {
        let facts = [
            ("DPM++ 2M", "karras", [false, false, false]),
            ("DPM++ SDE", "karras", [false, true, false]),
            ("DPM++ 2M SDE", "exponential", [false, true, false]),
            ("DPM++ 2M SDE Heun", "exponential", [false, true, false]),
            ("DPM++ 2S a", "karras", [false, false, true]),
            ("DPM++ 3M SDE", "exponential", [true, true, false]),
            ("Euler a", "normal", [false, false, true]),
            ("Euler", "normal", [false; 3]),
            ("LMS", "normal", [false; 3]),
            ("Heun", "normal", [false; 3]),
            ("DPM2", "karras", [true, false, false]),
            ("DPM2 a", "karras", [true, false, true]),
            ("DPM fast", "normal", [false, false, true]),
            ("DPM adaptive", "normal", [false, false, true]),
            ("Restart", "karras", [false; 3]),
            ("DDIM", "ddim-uniform", [false; 3]),
            ("DDIM CFG++", "ddim-uniform", [false; 3]),
            ("PLMS", "ddim-uniform", [false; 3]),
            ("UniPC", "sgm-uniform", [false; 3]),
            ("LCM", "lcm-even", [false; 3]),
        ];
        assert_eq!(
            facts.len(),
            TABLE.iter().filter_map(|row| row.webui).count()
        );
        for (name, automatic, flags) in facts {
            let preset = from_webui(name, Some("Automatic")).unwrap();
            assert_eq!(preset.ladder.name(), Some(automatic), "{name}");
            let found = [
                preset.sampler.conventions().drop_next_to_last,
                preset.sampler.needs().brownian,
                preset.ensd,
            ];
            assert_eq!(found, flags, "{name}");
        }
    }

    #[test]
    fn names_of_old_and_aliases() {
        for (name, row, ladder) in [
            ("DPM++ 2M Karras", "dpmpp-2m", "karras"),
            (
                "DPM++ 2M SDE Heun Exponential",
                "dpmpp-2m-sde-heun",
                "exponential",
            ),
            ("DPM2 a Karras", "dpm2-a", "karras"),
            ("LMS Karras", "lms", "karras"),
            ("Euler a SGMUniform", "euler-a", "sgm-uniform"),
            ("Euler a SGM Uniform", "euler-a", "sgm-uniform"),
            ("Euler karras", "euler", "karras"),
            ("k_dpmpp_2m", "dpmpp-2m", "karras"),
            ("k_dpmpp_sde_ka", "dpmpp-sde", "karras"),
            ("K_EULER_ANCESTRAL", "euler-a", "normal"),
            ("DDIM Karras", "ddim", "ddim-uniform"),
        ] {
            let preset = from_webui(name, None).unwrap();
            let found = (preset.row.name, preset.ladder.name());
            assert_eq!(found, (row, Some(ladder)), "{name}");
        }
    }

    #[test]
    fn the_conventions_are_k_diffusions() {
        let schedule = Arc::new(NoiseSchedule::new(&SchedulerConfig::default()).unwrap());
        let rungs = |name: &str| {
            let preset = from_webui(name, None).unwrap();
            let conventions = preset.sampler.conventions();
            preset.ladder.rungs(&schedule, 10, &conventions).unwrap()
        };
        let karras = rungs("DPM++ 2M");
        assert_eq!(karras.initial_scale(), karras.sigmas()[0]);
        let fractional = |timestep: &f32| timestep.fract() != 0.0;
        assert!(karras.timesteps().iter().any(fractional));
        assert_eq!(rungs("Euler").timesteps()[1], 888.0);
        let dropped = rungs("DPM2");
        assert_eq!(dropped.steps(), 10);
        assert!(dropped.sigmas()[9] > karras.sigmas()[9]);
        let unipc = rungs("UniPC");
        assert_eq!(unipc.sigmas()[10], schedule.sigma_min());
        let ddim = rungs("DDIM");
        assert_eq!((ddim.timesteps()[0], ddim.timesteps()[9]), (901.0, 1.0));
        let preserving = ddim.sigmas()[0].hypot(1.0);
        assert!((ddim.initial_scale() / preserving - 1.0).abs() < 1e-6);
        let lcm = rungs("LCM");
        assert_eq!((lcm.timesteps()[0], lcm.timesteps()[9]), (999.0, 19.0));
        assert_eq!(lcm.initial_scale(), lcm.sigmas()[0]);
        for (schedule_type, ladder) in [("Uniform", "lcm-even"), ("Karras", "karras")] {
            let preset = from_webui("LCM", Some(schedule_type)).unwrap();
            assert_eq!(preset.ladder.name(), Some(ladder));
        }
        let plain = from_webui("Euler", None).unwrap();
        assert!(plain.sampler.equals(&Euler::default()));
    }

    #[test]
    fn unknown_names_are_refused() {
        let error = from_webui("DPM++ 2N", None).unwrap_err().to_string();
        assert!(error.starts_with("\"DPM++ 2N\" is no sampler of WebUI, expected DPM++ 2M"));
        let error = from_webui("Euler", Some("Karas")).unwrap_err().to_string();
        assert!(error.starts_with("\"Karas\" is no schedule type of WebUI, expected Karras"));
        assert!(from_webui("", None).is_err() && from_webui(" Karras", None).is_err());
    }
}
