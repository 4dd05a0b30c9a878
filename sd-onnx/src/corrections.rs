//! The corrections that a pipeline class of diffusers 0.42.1 makes to a model's configuration.
//!
//! Models of 2022 were published with values that their pipelines have replaced since then. Without
//! the corrections, such a model makes a different picture than in diffusers. `model_index.json`
//! names the class. Users of diffusers load a folder with the class for their task instead, which
//! [`Corrections::for_task`] follows.

use sd_core::schedulers::{SchedulerConfig, schedule::ClipSample};

use crate::{Error, config::Config};

/// The class of a folder without a `model_index.json`.
pub(crate) const DEFAULT_CLASS: &str = "StableDiffusionPipeline";

/// The corrections of one pipeline class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Corrections {
    class: &'static str,
    /// `steps_offset` becomes 1.
    steps_offset: bool,
    /// `clip_sample` becomes false.
    clip_sample: bool,
    /// `skip_prk_steps`, an option of the PNDM sampler, becomes true. [`defaults`](crate::defaults)
    /// chooses the sampler.
    pub skip_prk_steps: bool,
    /// The `sample_size` of a UNet from before diffusers 0.9 becomes 64 if it is smaller.
    sample_size: bool,
}

/// What a request asks for. diffusers has a pipeline class for each task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Task {
    /// A whole picture, from noise or from another picture.
    Draw,
    /// A part of a picture, with a mask.
    Redraw,
}

/// The classes of Stable Diffusion 1.x and 2.x that load each other's folders. The request decides
/// which class applies. Text-to-image and image-to-image correct the same values.
const TEXT_TO_IMAGE: &str = DEFAULT_CLASS;
const IMAGE_TO_IMAGE: &str = "StableDiffusionImg2ImgPipeline";
const INPAINT: &str = "StableDiffusionInpaintPipeline";

/// The classes that correct something, from their `__init__` in diffusers: whether they correct
/// `steps_offset`, `clip_sample`, `skip_prk_steps` and `sample_size`. All others correct nothing,
/// for instance the classes of ControlNet, T2I-Adapter, SDXL, LCM and instruct-pix2pix.
#[rustfmt::skip]
const CLASSES: [Corrections; 19] = [
    of("AltDiffusionImg2ImgPipeline", [true, true, false, true]),
    of("AltDiffusionPipeline", [true, true, false, true]),
    of("CycleDiffusionPipeline", [true, false, false, true]),
    of("LEditsPPPipelineStableDiffusion", [true, true, false, true]),
    of("OnnxStableDiffusionImg2ImgPipeline", [true, true, false, false]),
    of("OnnxStableDiffusionInpaintPipeline", [true, true, false, false]),
    of("OnnxStableDiffusionPipeline", [true, true, false, false]),
    of("StableDiffusionDepth2ImgPipeline", [false, false, false, true]),
    of("StableDiffusionDiffEditPipeline", [true, false, true, true]),
    of("StableDiffusionImageVariationPipeline", [false, false, false, true]),
    of(IMAGE_TO_IMAGE, [true, true, false, true]),
    of(INPAINT, [true, false, true, true]),
    of("StableDiffusionInpaintPipelineLegacy", [true, true, false, true]),
    of("StableDiffusionOnnxPipeline", [true, true, false, false]),
    of("StableDiffusionPAGImg2ImgPipeline", [true, true, false, true]),
    of("StableDiffusionPAGInpaintPipeline", [true, true, false, true]),
    of("StableDiffusionPAGPipeline", [true, true, false, true]),
    of(TEXT_TO_IMAGE, [true, true, false, true]),
    of("StableDiffusionPipelineSafe", [true, true, false, true]),
];

const fn of(
    class: &'static str,
    [steps_offset, clip_sample, skip_prk_steps, sample_size]: [bool; 4],
) -> Corrections {
    Corrections {
        class,
        steps_offset,
        clip_sample,
        skip_prk_steps,
        sample_size,
    }
}

/// The only scheduler class of diffusion models without the key `steps_offset`.
const WITHOUT_OFFSET: &str = "DPMSolverSinglestepScheduler";
/// The smallest latent side of a UNet from before diffusers 0.9: 512 pixels.
const LEAST_SAMPLE_SIZE: usize = 64;

impl Corrections {
    /// Returns the corrections of the class with this name.
    pub fn of_class(name: &str) -> Self {
        let found = CLASSES.into_iter().find(|known| known.class == name);
        found.unwrap_or(of("", [false; 4]))
    }

    /// Returns the corrections for a task, by the class of the model's folder. A folder of a class
    /// that has no relative for the task keeps its own.
    pub fn for_task(class: &str, task: Task) -> Self {
        Self::of_class(match (class, task) {
            (TEXT_TO_IMAGE | IMAGE_TO_IMAGE | INPAINT, Task::Draw) => TEXT_TO_IMAGE,
            (TEXT_TO_IMAGE | IMAGE_TO_IMAGE | INPAINT, Task::Redraw) => INPAINT,
            _ => class,
        })
    }

    /// Corrects `config`, which was read from `file`. Returns a description of each change.
    pub fn scheduler(
        self,
        file: &Config,
        config: &mut SchedulerConfig,
    ) -> Result<Vec<String>, Error> {
        let mut changes = Vec::new();
        // If the file lacks the key, the class fills in its own default, 0.
        let has_offset = file.has("steps_offset")
            || file.text("_class_name", "PNDMScheduler")? != WITHOUT_OFFSET;
        if self.steps_offset && has_offset && config.steps_offset != 1 {
            config.steps_offset = 1;
            changes.push(self.change("steps_offset", &file.found("steps_offset"), "1"));
        }
        if self.clip_sample && matches!(config.clip, ClipSample::Range(_)) {
            config.clip = ClipSample::None;
            changes.push(self.change("clip_sample", &file.found("clip_sample"), "false"));
        }
        Ok(changes)
    }

    /// Corrects `size`, the height and width of the latents in the configuration `file` of a UNet.
    /// Returns a description of the change.
    pub fn sample_size(
        self,
        file: &Config,
        size: &mut [usize; 2],
    ) -> Result<Option<String>, Error> {
        let is_number = file.value("sample_size").is_some_and(|v| v.is_u64());
        let is_old = is_before_0_9(file.text("_diffusers_version", "")?);
        if !(self.sample_size && is_number && is_old && size[0] < LEAST_SAMPLE_SIZE) {
            return Ok(None);
        }
        *size = [LEAST_SAMPLE_SIZE; 2];
        Ok(Some(self.change(
            "sample_size",
            &file.found("sample_size"),
            &LEAST_SAMPLE_SIZE.to_string(),
        )))
    }

    fn change(self, key: &str, found: &str, now: &str) -> String {
        let class = self.class;
        format!("`{key}` is {found} and is read as {now}, as in diffusers' {class}")
    }
}

/// Returns whether a version of diffusers is older than 0.9.0. Anything after the first two
/// numbers, such as `.dev0`, is ignored. A version that cannot be read counts as newer.
fn is_before_0_9(version: &str) -> bool {
    let mut numbers = version.trim_start_matches('v').split('.');
    let mut number = || numbers.next()?.parse::<u64>().ok();
    matches!((number(), number()), (Some(0), Some(minor)) if minor < 9)
}

#[cfg(test)]
// A failing `unwrap` fails the test.
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use serde_json::Value;

    use super::*;

    /// The results of diffusers for many files, from `tests/golden/pipelines.py`.
    fn golden() -> Value {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pipelines.json");
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    fn file(json: &Value) -> Config {
        Config::parse(Path::new("config.json"), &json.to_string()).unwrap()
    }

    #[test]
    fn schedulers_are_corrected_as_in_diffusers() {
        let golden = golden();
        let cases = golden["schedulers"].as_array().unwrap();
        let (mut changed, mut unchanged) = (0, 0);
        for case in cases {
            let corrections = Corrections::of_class(case["pipeline"].as_str().unwrap());
            let file = file(&case["file"]);
            let mut config = SchedulerConfig::from_json(&case["file"].to_string()).unwrap();
            let changes = corrections.scheduler(&file, &mut config).unwrap();
            // If neither the class nor the file has a key, there is nothing to correct. It counts
            // as 0 or false here.
            let offset = case["steps_offset"].as_u64().unwrap_or(0);
            assert_eq!(config.steps_offset as u64, offset, "{case}");
            let clips = case["clip_sample"].as_bool().unwrap_or(false);
            assert_eq!(matches!(config.clip, ClipSample::Range(_)), clips, "{case}");
            assert_eq!(
                changes.len() as u64,
                case["changes"].as_u64().unwrap(),
                "{case}"
            );
            match changes.len() {
                0 => unchanged += 1,
                _ => changed += 1,
            }
        }
        assert!(changed >= 50 && unchanged >= 50, "{changed}, {unchanged}");
    }

    /// `tests/golden/pictures.py` built each class with outdated values.
    #[test]
    fn the_task_decides_between_the_classes_of_stable_diffusion() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pictures/cases.json");
        let text = std::fs::read_to_string(path).unwrap();
        let golden: Value = serde_json::from_str(&text.replace("-Infinity", "null")).unwrap();
        let relatives = [TEXT_TO_IMAGE, IMAGE_TO_IMAGE, INPAINT];
        let mut seen = [0, 0];
        for case in golden["corrections"].as_array().unwrap() {
            let class = case["pipeline"].as_str().unwrap();
            let mut json = case["before"].clone();
            json["_class_name"] = case["scheduler"].clone();
            let uses = match class {
                TEXT_TO_IMAGE | IMAGE_TO_IMAGE => relatives.map(|own| (own, Task::Draw)).to_vec(),
                INPAINT => relatives.map(|own| (own, Task::Redraw)).to_vec(),
                other => vec![(other, Task::Draw), (other, Task::Redraw)],
            };
            for (own, task) in uses {
                let corrections = Corrections::for_task(own, task);
                let mut config = SchedulerConfig::from_json(&json.to_string()).unwrap();
                corrections.scheduler(&file(&json), &mut config).unwrap();
                let after = &case["after"];
                let offset = after["steps_offset"].as_u64().unwrap();
                assert_eq!(config.steps_offset as u64, offset, "{own} {case}");
                if let Some(clips) = after["clip_sample"].as_bool() {
                    let found = matches!(config.clip, ClipSample::Range(_));
                    assert_eq!(found, clips, "{own} {case}");
                }
                if let Some(skips) = after["skip_prk_steps"].as_bool() {
                    let own_value = json["skip_prk_steps"] == true;
                    assert_eq!(
                        own_value || corrections.skip_prk_steps,
                        skips,
                        "{own} {case}"
                    );
                }
                seen[usize::from(task == Task::Redraw)] += 1;
            }
        }
        assert!(seen.iter().all(|&seen| seen >= 50), "{seen:?}");
    }

    #[test]
    fn small_sample_sizes_of_old_unets_become_64() {
        let golden = golden();
        let cases = golden["unets"].as_array().unwrap();
        assert!(cases.len() >= 40);
        for case in cases {
            let corrections = Corrections::of_class(case["pipeline"].as_str().unwrap());
            let sides = |value: &Value| match value.as_u64() {
                Some(side) => [side as usize; 2],
                None => [0, 1].map(|i| value[i].as_u64().unwrap() as usize),
            };
            let mut size = sides(&case["file"]["sample_size"]);
            let before = size;
            let change = corrections
                .sample_size(&file(&case["file"]), &mut size)
                .unwrap();
            assert_eq!(size, sides(&case["sample_size"]), "{case}");
            assert_eq!(change.is_some(), size != before, "{case}");
        }
    }

    #[test]
    fn a_change_says_what_was_there() {
        let file = file(&serde_json::json!({"_class_name": "DDIMScheduler", "steps_offset": 0}));
        let mut config = SchedulerConfig::default();
        (config.steps_offset, config.clip) = (0, ClipSample::Range(1.0));
        let changes = Corrections::of_class(DEFAULT_CLASS).scheduler(&file, &mut config);
        assert_eq!(
            changes.unwrap(),
            [
                "`steps_offset` is 0 and is read as 1, as in diffusers' StableDiffusionPipeline",
                "`clip_sample` is missing and is read as false, as in diffusers' StableDiffusionPipeline",
            ]
        );
    }
}
