//! Compares runs that start from pictures with diffusers 0.42.1: image to image, inpainting and
//! instruct-pix2pix, on random-weight models.
//!
//! `tests/golden/pictures.py` wrote the values. The README beside it describes them.

// In tests, a panic reports the failure.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/starts.rs"]
mod starts;

use std::{fs, path::Path};

use common::{Golden, Model, golden, load, relative_error};
use sd_onnx::{
    Mask, MaskRule, Pipeline, SchedulerConfig,
    image::GrayImage,
    ndarray::{Axis, concatenate},
    schedulers::by_name,
};
use serde_json::{Value, json};
use starts::{bytes, pipelines, request};

/// The largest error of a run. Guidance and the model itself amplify differences.
const WHOLE_RUN: f64 = 1e-4;

/// Returns a pipeline of the same networks with the scheduler configuration of a case, which
/// determines the spacing of the timesteps.
fn with_scheduler(pipeline: &Pipeline, case: &Value) -> Pipeline {
    let config = SchedulerConfig::from_json(&case["scheduler_config"].to_string()).unwrap();
    let (prompts, denoiser, codec) = (
        pipeline.prompt_encoder().clone(),
        pipeline.denoiser().clone(),
        pipeline.codec().clone(),
    );
    let builder = Pipeline::builder(prompts, denoiser, codec, config);
    builder.build().unwrap()
}

/// Returns why a case is not compared. diffusers does something there that this crate does not.
fn left_out(case: &Value) -> Option<&'static str> {
    let name = case["name"].as_str().unwrap();
    match name {
        _ if case["count"] != 1 && case["seeds"].is_null() => {
            Some("several pictures share a generator")
        }
        "inpaint.two-seeds" => Some("diffusers samples the latents once, for all pictures"),
        "img2img.pndm-0.6" => Some("PNDM gives the network timesteps that are not of its latents"),
        "inpaint.heun-0.6" | "inpaint.pndm-1" => Some("the latents are blended within a step"),
        "pix2pix.image-guidance-0.9" => Some("guidance by the prompt is off"),
        _ => None,
    }
}

#[test]
fn runs_are_those_of_diffusers() {
    let folder = tempfile::tempdir().unwrap();
    let cases = starts::cases();
    let cases = cases["cases"].as_array().unwrap();
    let values = starts::values();
    let pipelines = pipelines(cases, folder.path());
    let (mut seen, mut wrong) = (0, Vec::new());
    for case in cases {
        let name = case["name"].as_str().unwrap();
        if let Some(reason) = left_out(case) {
            println!("{name} is not compared: {reason}");
            continue;
        }
        let pipeline = with_scheduler(&pipelines[case["model"].as_str().unwrap()], case);
        let seeds = match case["seeds"].as_array() {
            Some(seeds) => seeds.clone(),
            None => vec![case["seed"].clone()],
        };
        let requests = seeds.into_iter().map(|seed| {
            let mut case = case.clone();
            case["seed"] = seed;
            request(&case, &values)
        });
        let pictures = match pipeline.generate_all(&requests.collect::<Vec<_>>()) {
            Ok(generated) => generated.pictures,
            Err(error) => {
                wrong.push(format!("{name}: {error}"));
                continue;
            }
        };
        if case["padding_mask_crop"].is_null() {
            let image = &pictures[0].image;
            let size = [image.width(), image.height()].map(u64::from);
            let expected = ["width", "height"].map(|side| case[side].as_u64().unwrap());
            assert_eq!(size, expected, "{name}");
        }
        let (_, expected) = values.tensor(&format!("{name}.latents"));
        let latents: Vec<_> = pictures.iter().map(|it| it.latents.view()).collect();
        let latents = concatenate(Axis(0), &latents).unwrap();
        let error = relative_error(&latents, &expected);
        println!("{name}: {error:.1e}");
        if error > WHOLE_RUN {
            wrong.push(format!(
                "{name}: {error:.2e}, expected at most {WHOLE_RUN:.0e}"
            ));
        }
        seen += 1;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(seen, 52);
}

/// Runs of the authors of differential diffusion. The pipeline for SDXL draws its noise twice and
/// uses the second, so it is not compared.
#[test]
fn gray_masks_are_those_of_differential_diffusion() {
    let folder = tempfile::tempdir().unwrap();
    let cases = fs::read_to_string(golden("differential").join("cases.json")).unwrap();
    let cases: Value = serde_json::from_str(&cases.replace("-Infinity", "null")).unwrap();
    let cases: Vec<_> = cases
        .as_array()
        .unwrap()
        .iter()
        .filter(|case| case["pipeline"] == "StableDiffusionDiffImg2ImgPipeline")
        .cloned()
        .collect();
    assert_eq!(cases.len(), 4);
    let values = Golden::of_file(&golden("differential").join("differential.safetensors"));
    let pipelines = pipelines(&cases, folder.path());
    for case in &cases {
        let name = case["name"].as_str().unwrap();
        let mut case = case.clone();
        case["mask"] = Value::Null;
        let mut request = request(&case, &values);
        let (width, height, kept) = bytes(values.tensor(case["map"].as_str().unwrap()));
        // A map of the authors says how much of the picture is kept.
        let redrawn = kept.into_iter().map(|value| 255 - value).collect();
        let mask = Mask::new(GrayImage::from_raw(width, height, redrawn).unwrap());
        let mask = mask.rule(MaskRule::Differential).keep_original(false);
        request.start = request.start.map(|start| start.mask(mask));
        let pipeline = with_scheduler(&pipelines[case["model"].as_str().unwrap()], &case);
        let picture = pipeline.generate(&request).unwrap().pictures.remove(0);
        let (_, latents) = values.tensor(&format!("{name}.latents"));
        let error = relative_error(&picture.latents, &latents);
        println!("{name}: {error:.1e}");
        assert!(error <= WHOLE_RUN, "{name}: {error:.2e}");
    }
}

/// Loads `four` with a DDIM configuration of 2022, in a folder of this pipeline class.
fn outdated(case: &Value, clips: bool, class: Option<&str>, folder: &Path) -> Pipeline {
    let mut scheduler = case["scheduler_config"].clone();
    scheduler["_class_name"] = "DDIMScheduler".into();
    scheduler["steps_offset"] = 0.into();
    scheduler["clip_sample"] = clips.into();
    let mut model = Model::of_shape("four");
    model.scheduler = scheduler.to_string();
    model.write(folder);
    if let Some(class) = class {
        let index = json!({ "_class_name": class }).to_string();
        fs::write(folder.join("model_index.json"), index).unwrap();
    }
    load(folder)
}

/// In diffusers, img2img corrects `steps_offset` and `clip_sample`, and inpainting corrects only
/// the first, whatever class the folder names. The sampler has the values of the model.
#[test]
fn the_task_decides_which_values_of_2022_are_corrected() {
    let (cases, values) = (starts::cases(), starts::values());
    let case = |name: &str| {
        let mut cases = cases["cases"].as_array().unwrap().iter();
        cases.find(|case| case["name"] == *name).unwrap()
    };
    let [drawn, redrawn] = ["img2img.ddim-0.6", "inpaint.ddim-1"].map(case);
    let relatives = [
        None,
        Some("StableDiffusionImg2ImgPipeline"),
        Some("StableDiffusionInpaintPipeline"),
    ];
    for class in relatives
        .into_iter()
        .chain([Some("StableDiffusionControlNetPipeline")])
    {
        let is_relative = relatives.contains(&class);
        for (case, clips, is_equal) in [
            (drawn, true, is_relative),
            (redrawn, false, is_relative),
            // The run that was recorded does not clip.
            (redrawn, true, false),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let pipeline = outdated(case, clips, class, folder.path());
            let request = request(case, &values).scheduler(by_name("ddim").unwrap());
            let picture = pipeline.generate(&request).unwrap().pictures.remove(0);
            let name = case["name"].as_str().unwrap();
            let (_, latents) = values.tensor(&format!("{name}.latents"));
            let error = relative_error(&picture.latents, &latents);
            println!("{class:?}, {name}, clips {clips}: {error:.1e}");
            match is_equal {
                true => assert!(error <= WHOLE_RUN, "{class:?}, {name}: {error:.2e}"),
                false => assert!(error > 0.01, "{class:?}, {name}: {error:.2e}"),
            }
        }
    }
}
