//! Tests the corrections that diffusers' `StableDiffusionPipeline` makes to configurations of 2022,
//! on whole models. `src/corrections.rs` tests more cases without a model.

// In tests, a panic reports the failure.
#![allow(clippy::unwrap_used)]

mod common;

use std::{fs, path::Path};

use common::{Golden, Model, golden, load, relative_error, write_family};
use sd_onnx::{
    Mask, MaskRule, Pipeline, Request, Start,
    image::{GrayImage, RgbImage},
    schedulers::{Ladder, by_name},
};
use serde_json::{Value, json};

/// Returns the run that `tests/golden/pipelines.py` made with a DDIM file that lacks `clip_sample`
/// and `steps_offset`.
fn run() -> Value {
    let text = fs::read_to_string(golden("pipelines.json")).unwrap();
    serde_json::from_str::<Value>(&text).unwrap()["run"].take()
}

/// Writes and loads the model of the run. `class` is the pipeline class in its `model_index.json`,
/// which is left out for `None`.
fn outdated(run: &Value, class: Option<Value>, folder: &Path) -> Pipeline {
    let mut model = Model::of_shape(run["shape"].as_str().unwrap());
    model.scheduler = run["scheduler"].to_string();
    model.write(folder);
    if let Some(class) = class {
        let index = json!({ "_class_name": class }).to_string();
        fs::write(folder.join("model_index.json"), index).unwrap();
    }
    load(folder)
}

/// Draws the run and returns the error of its latents against diffusers.
fn error(run: &Value, pipeline: &Pipeline) -> f64 {
    let number = |key: &str| run[key].as_u64().unwrap();
    let request = Request::new(run["prompt"].as_str().unwrap())
        .negative(run["negative"].as_str().unwrap())
        .size(number("width") as u32, number("height") as u32)
        .steps(number("steps") as usize)
        .guidance(run["guidance"].as_f64().unwrap() as f32)
        .seed(number("seed"))
        .scheduler(by_name("ddim").unwrap())
        .ladder(Ladder::leading());
    let picture = pipeline.generate(&request).unwrap().pictures.remove(0);
    let (_, expected) = Golden::of_file(&golden("pipelines.safetensors")).tensor("latents");
    relative_error(&picture.latents, &expected)
}

#[test]
fn a_ddim_file_of_2022_draws_as_in_diffusers() {
    let run = run();
    for class in [None, Some(json!("StableDiffusionPipeline"))] {
        let folder = tempfile::tempdir().unwrap();
        let error = error(&run, &outdated(&run, class, folder.path()));
        println!("{error:.1e}");
        assert!(error <= 1e-4, "{error}");
    }
    // Other classes use the values of the file.
    for class in [
        json!("StableDiffusionControlNetPipeline"),
        json!(["mine", "Mine"]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        assert!(error(&run, &outdated(&run, Some(class), folder.path())) > 0.1);
    }
}

#[test]
fn an_old_unet_with_a_small_sample_size_draws_at_512() {
    let folder = tempfile::tempdir().unwrap();
    let mut model = Model::of_shape("four");
    let default_size = |model: &Model| {
        model.write(folder.path());
        let size = load(folder.path()).default_size();
        (size.width(), size.height())
    };
    let unet = |model: &mut Model, version: &str, size: Value| {
        let config = model.configs.get_mut("unet").unwrap();
        config["_diffusers_version"] = version.into();
        config["sample_size"] = size;
    };
    unet(&mut model, "0.6.0", json!(32));
    assert_eq!(default_size(&model), (512, 512));
    unet(&mut model, "0.9.0.dev0", json!(32));
    assert_eq!(default_size(&model), (256, 256));
    unet(&mut model, "0.6.0", json!([32, 40]));
    assert_eq!(default_size(&model), (320, 256));
}

/// The default sampler of a folder with PNDM. The file means PNDM with its first steps, and
/// diffusers' class for inpainting leaves them out.
#[test]
fn a_mask_leaves_out_the_first_steps_of_pndm() {
    let folder = tempfile::tempdir().unwrap();
    // A model with the word "turbo" in its name has the sampler of its file as its default.
    let model = folder.path().join("fox-turbo");
    write_family("sd2-base", &model);
    let path = model.join("scheduler/scheduler_config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    config["_class_name"] = "PNDMScheduler".into();
    config.as_object_mut().unwrap().remove("skip_prk_steps");
    fs::write(&path, config.to_string()).unwrap();
    let pipeline = load(&model);
    let mask = || Mask::new(GrayImage::new(64, 64));
    let start = || Start::picture(RgbImage::new(64, 64)).strength(0.5);
    let plain = Request::new("a fox").size(64, 64).steps(4);
    for (request, scheduler) in [
        (plain.clone(), "pndm"),
        (plain.clone().start(start()), "pndm"),
        (plain.clone().start(start().mask(mask())), "plms"),
        // WebUI has no such class.
        (
            plain.start(start().mask(mask().rule(MaskRule::WebUi))),
            "pndm",
        ),
    ] {
        let chosen = pipeline.with_defaults(request.clone()).scheduler.unwrap();
        assert_eq!(chosen.to_string(), scheduler);
        assert!(pipeline.generate(&request).is_ok(), "{scheduler}");
    }
}
