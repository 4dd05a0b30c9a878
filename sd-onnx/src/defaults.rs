//! The default steps, guidance, sampler and ladder of a model, for requests that do not set them.
//!
//! A folder names its author's sampler in `scheduler_config.json`, but not the number of steps or
//! the guidance scale. Those follow from the pipeline class, the UNet's inputs, the scheduler and
//! the folder's name.

use sd_core::{
    Defaults, Inputs, SchedulerConfig,
    schedulers::{Ladder, Scheduler, by_name, from_config},
};

use crate::source::Source;

/// The steps and guidance scale of distilled models and a few others, by a word in the folder's
/// name. A number of steps in the name, such as 4 in `sdxl_lightning_4step`, has priority. With
/// guidance scale 1 the negative prompt is not used. The model cards give 0, which in diffusers
/// means the same.
///
/// The sources are the model cards: stabilityai/sdxl-turbo, ByteDance/SDXL-Lightning,
/// ByteDance/Hyper-SD, tianweiy/DMD2, IDKiro/sdxs-512-0.9 and
/// playgroundai/playground-v2.5-1024px-aesthetic.
const NAMED: [(&str, usize, f32); 6] = [
    ("turbo", 1, 1.0),
    ("lightning", 4, 1.0),
    ("hyper", 8, 1.0),
    ("dmd2", 4, 1.0),
    ("sdxs", 1, 1.0),
    ("playground", 20, 3.0),
];

/// The largest number in a name that is read as a number of steps.
const MOST_NAMED_STEPS: usize = 50;

/// The widest text embedding of Stable Diffusion 1.x.
const SD1_WIDTH: usize = 768;

/// Returns the defaults of a model. `scheduler` is the text of its `scheduler_config.json`, and
/// `config` holds the corrected values of that file. `skips` is the [corrected](crate::corrections)
/// value of `skip_prk_steps`.
pub(crate) fn of(
    model: &Source,
    inputs: &Inputs,
    scheduler: &str,
    config: &SchedulerConfig,
    skips: bool,
) -> Defaults {
    let (defaults, why) = chosen(
        model.class(),
        &model.name(),
        model.word(),
        inputs,
        scheduler,
    );
    let defaults = without_first_steps(&defaults, skips);
    let ladder = match &defaults.ladder {
        Some(ladder) => ladder.clone(),
        None => defaults.scheduler.default_ladder(config),
    };
    tracing::info!(
        steps = defaults.steps,
        guidance = defaults.guidance.scale(),
        scheduler = ?defaults.scheduler.sampler(config),
        ?ladder,
        "defaults of {why}"
    );
    defaults
}

/// Returns the defaults with PNDM's first steps left out if `skips`, the corrected value of
/// `skip_prk_steps`. Without that key, a file means PNDM.
pub(crate) fn without_first_steps(defaults: &Defaults, skips: bool) -> Defaults {
    let is_pndm = defaults.scheduler.to_string() == "pndm";
    match by_name("plms").filter(|_| skips && is_pndm) {
        Some(plms) => defaults.clone().scheduler(plms),
        None => defaults.clone(),
    }
}

/// Returns the defaults and a description of the kind of model. `word` names the kind that the
/// contents of a checkpoint file show.
fn chosen(
    class: &str,
    name: &str,
    word: Option<&str>,
    inputs: &Inputs,
    scheduler: &str,
) -> (Defaults, &'static str) {
    let configured = from_config(scheduler);
    let of_class = |class: &str| configured.as_ref().is_ok_and(|it| it.class == class);
    let is_lcm =
        inputs.guidance || class.starts_with("LatentConsistencyModel") || of_class("LCMScheduler");
    let is_turbo = of_class("EulerAncestralDiscreteScheduler")
        && configured
            .as_ref()
            .is_ok_and(|it| it.ladder == Ladder::trailing());
    let plain = Defaults::default();
    let (steps, guidance, why) = match named(name, word) {
        Some((word, steps, guidance)) => (steps_of_name(name).unwrap_or(steps), guidance, word),
        // The defaults of diffusers' LatentConsistencyModelPipeline. A model without a guidance
        // input has its guidance built in, so the scale is 1.
        None if is_lcm => {
            let scale = if inputs.guidance { 8.5 } else { 1.0 };
            let steps = steps_of_name(name).unwrap_or(4);
            (steps, scale, "a latent consistency model")
        }
        None if is_turbo => (1, 1.0, "a Turbo model, by its scheduler"),
        None if inputs.pooled.is_none()
            && inputs.extra_channels == 0
            && inputs.context <= SD1_WIDTH =>
        {
            return (plain, "Stable Diffusion 1.x");
        }
        // The defaults of diffusers' pipeline classes.
        None if inputs.pooled.is_some() && class != "StableDiffusionXLInpaintPipeline" => {
            (plain.steps, 5.0, "SDXL")
        }
        None => (plain.steps, 7.5, "Stable Diffusion"),
    };
    let defaults = plain.steps(steps).guidance(guidance);
    match configured {
        Ok(configured) => {
            let sampler = || configured.sampler.clone().into();
            let scheduler = configured.row().map_or_else(sampler, Scheduler::from);
            let defaults = defaults.scheduler(scheduler).ladder(configured.ladder);
            (defaults, why)
        }
        Err(error) => {
            tracing::warn!("the scheduler's configuration: {error}: using DPM++ 2M");
            (defaults, why)
        }
    }
}

/// Returns the row of [`NAMED`] whose word is `word`, or stands in the name of the model.
fn named(name: &str, word: Option<&str>) -> Option<(&'static str, usize, f32)> {
    let mut words = word
        .into_iter()
        .chain(name.split(|c: char| !c.is_ascii_alphanumeric()));
    words.find_map(|word| {
        NAMED
            .into_iter()
            .find(|(known, ..)| known.eq_ignore_ascii_case(word))
    })
}

/// Returns the number of steps in a name: 4 for `sdxl_lightning_4step_unet` and
/// `Hyper-SDXL-4steps`.
fn steps_of_name(name: &str) -> Option<usize> {
    let name = name.to_ascii_lowercase();
    let (before, _) = name.split_once("step")?;
    let before = before.trim_end_matches(['-', '_', ' ']);
    let digits = before.rsplit(|c: char| !c.is_ascii_digit()).next()?;
    let steps = digits.parse().ok()?;
    (1..=MOST_NAMED_STEPS).contains(&steps).then_some(steps)
}

#[cfg(test)]
// A failing `unwrap` fails the test.
#[allow(clippy::unwrap_used)]
mod tests {
    use sd_core::SizeIds;

    use super::*;

    const SD: &str = "StableDiffusionPipeline";
    const XL: &str = "StableDiffusionXLPipeline";
    const PNDM: &str = r#"{"_class_name": "PNDMScheduler", "skip_prk_steps": true}"#;
    const EULER: &str =
        r#"{"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"}"#;
    const TURBO: &str =
        r#"{"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"}"#;
    const LCM: &str = r#"{"_class_name": "LCMScheduler"}"#;

    fn sd1() -> Inputs {
        Inputs::new(4, 768)
    }

    fn sdxl() -> Inputs {
        Inputs::new(4, 2048).pooled(1280).sizes(SizeIds::Target)
    }

    /// Returns the steps, the guidance scale, the sampler and the ladder.
    fn found(
        class: &str,
        name: &str,
        inputs: Inputs,
        json: &str,
    ) -> (usize, f32, String, Option<Ladder>) {
        let (defaults, _) = chosen(class, name, None, &inputs, json);
        let scale = defaults.guidance.scale().unwrap();
        let scheduler = defaults.scheduler.to_string();
        (defaults.steps, scale, scheduler, defaults.ladder)
    }

    #[test]
    fn each_kind_of_model_has_its_defaults() {
        let leading = || Some(Ladder::leading());
        let trailing = || Some(Ladder::trailing());
        for (class, name, inputs, json, expected) in [
            (SD, "v1-5", sd1(), PNDM, (20, 7.5, "dpmpp-2m", None)),
            // A fine-tune with a word of the table inside a longer word of its name.
            (SD, "hyperreal", sd1(), PNDM, (20, 7.5, "dpmpp-2m", None)),
            (
                SD,
                "sd-2-1-base",
                Inputs::new(4, 1024),
                PNDM,
                (20, 7.5, "plms", leading()),
            ),
            (
                "StableDiffusionInpaintPipeline",
                "inpainting",
                sd1().extra_channels(5),
                PNDM,
                (20, 7.5, "plms", leading()),
            ),
            (
                XL,
                "sdxl-base",
                sdxl(),
                EULER,
                (20, 5.0, "euler", leading()),
            ),
            (
                "StableDiffusionXLInpaintPipeline",
                "x",
                sdxl().extra_channels(5),
                EULER,
                (20, 7.5, "euler", leading()),
            ),
            (SD, "sd-x", sd1(), TURBO, (1, 1.0, "euler-a", trailing())),
            (
                XL,
                "sdxl-turbo",
                sdxl(),
                TURBO,
                (1, 1.0, "euler-a", trailing()),
            ),
            (
                XL,
                "SDXL_Lightning",
                sdxl(),
                EULER,
                (4, 1.0, "euler", leading()),
            ),
            (
                XL,
                "sdxl_lightning_8step_unet",
                sdxl(),
                EULER,
                (8, 1.0, "euler", leading()),
            ),
            (
                XL,
                "Hyper-SDXL-2steps",
                sdxl(),
                EULER,
                (2, 1.0, "euler", leading()),
            ),
            (XL, "dmd2", sdxl(), EULER, (4, 1.0, "euler", leading())),
            (
                SD,
                "sdxs-512-0.9",
                sd1(),
                EULER,
                (1, 1.0, "euler", leading()),
            ),
            (
                XL,
                "playground-v2.5-1024px",
                sdxl(),
                EULER,
                (20, 3.0, "euler", leading()),
            ),
        ] {
            let (steps, scale, scheduler, ladder) = found(class, name, inputs, json);
            let found = (steps, scale, scheduler.as_str(), ladder);
            assert_eq!(found, expected, "{class} {name}");
        }
    }

    #[test]
    fn latent_consistency_models_take_few_steps() {
        for (class, inputs, json, guidance) in [
            (
                "LatentConsistencyModelPipeline",
                sd1().guidance(true),
                LCM,
                8.5,
            ),
            (XL, sdxl().guidance(true), LCM, 8.5),
            // A distilled model without a guidance input. Its guidance is built in.
            (SD, sd1(), LCM, 1.0),
        ] {
            let (steps, scale, scheduler, ladder) = found(class, "model", inputs, json);
            assert_eq!((steps, scale), (4, guidance), "{class}");
            assert_eq!(scheduler, "lcm");
            assert_eq!(ladder, Some(from_config(json).unwrap().ladder));
        }
    }

    #[test]
    fn the_first_steps_of_pndm_are_skipped_where_the_class_says_so() {
        let of = |json, skips| {
            let (defaults, _) = chosen("", "x", None, &sd1().extra_channels(5), json);
            without_first_steps(&defaults, skips).scheduler.to_string()
        };
        let pndm = r#"{"_class_name": "PNDMScheduler"}"#;
        assert_eq!(of(pndm, true), "plms");
        assert_eq!(of(pndm, false), "pndm");
        assert_eq!(of(EULER, true), "euler");
    }

    #[test]
    fn a_scheduler_that_is_not_known_leaves_the_usual_one() {
        let json = r#"{"_class_name": "MyScheduler"}"#;
        let (steps, scale, scheduler, ladder) = found(XL, "x", sdxl(), json);
        assert_eq!(
            (steps, scale, &*scheduler, ladder),
            (20, 5.0, "dpmpp-2m", None)
        );
    }

    #[test]
    fn names_say_steps() {
        for (name, steps) in [
            ("sdxl_lightning_4step_unet", Some(4)),
            ("Hyper-SDXL-8steps", Some(8)),
            ("dmd2-4-step", Some(4)),
            ("steps", None),
            ("v12step0", Some(12)),
            ("0step", None),
            ("99999999999999999999step", None),
            ("one-step", None),
        ] {
            assert_eq!(steps_of_name(name), steps, "{name}");
        }
    }
}
