//! Compares runs that start from pictures with diffusers 0.42.1: image to image, inpainting and
//! instruct-pix2pix, on random-weight models.
//!
//! `tests/golden/pictures.py` wrote the values. The README beside it describes them.

// In tests, a panic reports the failure.
#![allow(clippy::unwrap_used)]

mod common;

use std::{collections::HashMap, fs, path::Path};

use common::{Golden, Model, golden, load, relative_error, write_family};
use image::{GrayImage, RgbImage};
use sd_onnx::{
    Mask, MaskRule, Picture, Pipeline, PromptOptions, Request, SchedulerConfig, Start, image,
    schedulers::from_config, text::Syntax,
};
use serde_json::Value;

/// The largest error of a run. Guidance and the model itself amplify differences.
const WHOLE_RUN: f64 = 1e-4;

fn pipelines(cases: &[Value], folder: &Path) -> HashMap<String, Pipeline> {
    let mut pipelines = HashMap::new();
    for case in cases {
        let model = case["model"].as_str().unwrap();
        pipelines.entry(model.to_owned()).or_insert_with(|| {
            let folder = folder.join(model);
            match model.strip_prefix("families/") {
                Some(family) => write_family(family, &folder),
                None => Model::of_shape(model).write(&folder),
            }
            load(&folder)
        });
    }
    pipelines
}

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

fn bytes((shape, values): (Vec<usize>, Vec<f32>)) -> (u32, u32, Vec<u8>) {
    let values = values.iter().map(|&value| value as u8).collect();
    (shape[1] as u32, shape[0] as u32, values)
}

/// Returns the request of a case.
fn request(case: &Value, values: &Golden) -> Request {
    let text = |key: &str| case[key].as_str().unwrap();
    let whole = |key: &str| case[key].as_u64().unwrap();
    let mut scheduler = case["scheduler_config"].clone();
    scheduler["_class_name"] = case["scheduler"].clone();
    let configured = from_config(&scheduler.to_string()).unwrap();
    let (width, height, pixels) = bytes(values.tensor(text("picture")));
    let picture = RgbImage::from_raw(width, height, pixels).unwrap();
    let mut start = Start::picture(picture);
    if let Some(strength) = case["strength"].as_f64() {
        start = start.strength(strength as f32);
    }
    if let Some(mask) = case["mask"].as_str() {
        let (width, height, values) = bytes(values.tensor(mask));
        let mask = Mask::new(GrayImage::from_raw(width, height, values).unwrap());
        start = start.mask(match case["padding_mask_crop"].as_u64() {
            Some(padding) => mask.only_masked(padding as u32),
            None => mask.keep_original(false),
        });
    }
    let mut request = Request::new(text("prompt"))
        .negative(text("negative"))
        .steps(whole("steps") as usize)
        .guidance(case["guidance"].as_f64().unwrap() as f32)
        .seed(whole("seed"))
        .scheduler(configured.sampler)
        .ladder(configured.ladder)
        .start(start)
        .prompt_options(
            PromptOptions::default()
                .syntax(Syntax::Plain)
                .same_length(true)
                .encode_empty(true),
        );
    // Otherwise the picture's own size, rounded down to multiples of 8.
    if case["mask"].is_string() {
        request = request.size(whole("width") as u32, whole("height") as u32);
    }
    if let Some(scale) = case["image_guidance"].as_f64() {
        request = request.image_guidance(scale as f32);
    }
    request
}

/// Returns why a case is not compared. diffusers does something there that this crate does not.
fn left_out(case: &Value) -> Option<&'static str> {
    let name = case["name"].as_str().unwrap();
    match name {
        _ if case["count"] != 1 => Some("several pictures share a generator"),
        "img2img.pndm-0.6" => Some("PNDM gives the network timesteps that are not of its latents"),
        "inpaint.heun-0.6" | "inpaint.pndm-1" => Some("the latents are blended within a step"),
        "pix2pix.image-guidance-0.9" => Some("guidance by the prompt is off"),
        _ => None,
    }
}

#[test]
fn runs_are_those_of_diffusers() {
    let folder = tempfile::tempdir().unwrap();
    let cases = fs::read_to_string(golden("pictures").join("cases.json")).unwrap();
    // The default of `lambda_min_clipped`, which Python writes, is no JSON.
    let cases: Value = serde_json::from_str(&cases.replace("-Infinity", "null")).unwrap();
    let cases = cases["cases"].as_array().unwrap();
    let values = Golden::of_file(&golden("pictures").join("pictures.safetensors"));
    let pipelines = pipelines(cases, folder.path());
    let (mut seen, mut wrong) = (0, Vec::new());
    for case in cases {
        let name = case["name"].as_str().unwrap();
        if let Some(reason) = left_out(case) {
            println!("{name} is not compared: {reason}");
            continue;
        }
        let pipeline = with_scheduler(&pipelines[case["model"].as_str().unwrap()], case);
        let generated = pipeline.generate(&request(case, &values));
        let picture: Picture = match generated {
            Ok(mut generated) => generated.pictures.remove(0),
            Err(error) => {
                wrong.push(format!("{name}: {error}"));
                continue;
            }
        };
        if case["padding_mask_crop"].is_null() {
            let size = [picture.image.width(), picture.image.height()].map(u64::from);
            let expected = ["width", "height"].map(|side| case[side].as_u64().unwrap());
            assert_eq!(size, expected, "{name}");
        }
        let (_, latents) = values.tensor(&format!("{name}.latents"));
        let error = relative_error(&picture.latents, &latents);
        println!("{name}: {error:.1e}");
        if error > WHOLE_RUN {
            wrong.push(format!(
                "{name}: {error:.2e}, expected at most {WHOLE_RUN:.0e}"
            ));
        }
        seen += 1;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen >= 50, "{seen} runs");
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
