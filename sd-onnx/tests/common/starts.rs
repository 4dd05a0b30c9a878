//! The runs that start from pictures, made by `tests/golden/pictures.py`.

#![allow(dead_code, clippy::unwrap_used)]

use std::{collections::HashMap, fs, path::Path};

use sd_onnx::{
    Mask, Pipeline, PromptOptions, Request, Start,
    image::{GrayImage, RgbImage},
    schedulers::from_config,
    text::Syntax,
};
use serde_json::Value;

use crate::common::{Golden, Model, golden, load, write_family};

/// Returns the lists of `cases.json`.
pub fn cases() -> Value {
    let cases = fs::read_to_string(golden("pictures").join("cases.json")).unwrap();
    // The default of `lambda_min_clipped`, which Python writes, is no JSON.
    serde_json::from_str(&cases.replace("-Infinity", "null")).unwrap()
}

/// Returns the tensors of the cases.
pub fn values() -> Golden {
    Golden::of_file(&golden("pictures").join("pictures.safetensors"))
}

/// Writes and loads the models of cases. Returns them by their names.
pub fn pipelines(cases: &[Value], folder: &Path) -> HashMap<String, Pipeline> {
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

/// Returns width, height and values of a golden picture or mask.
pub fn bytes((shape, values): (Vec<usize>, Vec<f32>)) -> (u32, u32, Vec<u8>) {
    let values = values.iter().map(|&value| value as u8).collect();
    (shape[1] as u32, shape[0] as u32, values)
}

/// Returns the request of a case.
pub fn request(case: &Value, values: &Golden) -> Request {
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
