//! Compares each family of models with diffusers 0.42.1, on random-weight models of two shapes or
//! more.
//!
//! `tests/golden/families.py` wrote the values. The README beside it describes them.

// In tests, a panic reports the failure.
#![allow(clippy::unwrap_used)]

#[path = "common/calls.rs"]
mod calls;
mod common;

use std::path::{Path, PathBuf};

use calls::{list, number, text, text_errors, unet_errors};
use common::{Golden, family, load, lora_runs, relative_error, write_family};
use ndarray::{Array2, Array4};
use safetensors::{Dtype, tensor::TensorView};
use sd_onnx::{
    LatentDistribution, Picture, Pipeline, PromptOptions, Request, Sizes, StopToken,
    schedulers::from_config,
    text::{EncodeOptions, Syntax, TextualInversion},
};
use sd_text::outside::chain;
use serde_json::Value;

/// The largest error of one network call. f32 sums are computed in another order.
const ONE_CALL: f64 = 1e-5;
/// The largest error of a run of a few steps. Guidance and the model itself amplify differences.
const WHOLE_RUN: f64 = 1e-4;

/// Lists the folders of `tests/golden/families`.
fn shapes() -> Vec<String> {
    let folders = std::fs::read_dir(family("")).unwrap();
    let mut names: Vec<String> = folders
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert!(names.len() >= 24, "{names:?}");
    names
}

fn cases(shape: &str) -> Value {
    let text = std::fs::read_to_string(family(shape).join("cases.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn golden(shape: &str) -> Golden {
    Golden::of_file(&family(shape).join("golden.safetensors"))
}

fn written(shape: &str, folder: &Path) -> PathBuf {
    let path = folder.join(shape);
    write_family(shape, &path);
    path
}

/// Prints a relative L2 error and checks that it is at most `limit`.
fn within(limit: f64, what: &str, error: f64) {
    println!("{what}: {error:.1e}");
    assert!(
        error <= limit,
        "{what}: relative L2 error {error:.2e}, expected at most {limit:.0e}"
    );
}

/// Runs a check on each shape that has cases of this kind.
fn with_each(kind: &str, check: impl Fn(&str, &Pipeline, &Golden, &Value)) {
    for shape in shapes() {
        let all = cases(&shape);
        if list(&all, kind).is_empty() {
            continue;
        }
        let folder = tempfile::tempdir().unwrap();
        let pipeline = load(&written(&shape, folder.path()));
        check(&shape, &pipeline, &golden(&shape), &all);
    }
}

#[test]
fn text_embeddings_and_pooled_outputs() {
    with_each("text", |shape, pipeline, golden, cases| {
        for (name, error) in text_errors(pipeline, golden, cases) {
            within(ONE_CALL, &format!("{shape} {name}"), error);
        }
    });
}

#[test]
fn one_unet_call() {
    with_each("unet", |shape, pipeline, golden, cases| {
        for (name, error) in unet_errors(pipeline, golden, cases) {
            within(ONE_CALL, &format!("{shape} {name}"), error);
        }
    });
}

fn array4((dims, values): (Vec<usize>, Vec<f32>)) -> Array4<f32> {
    Array4::from_shape_vec([dims[0], dims[1], dims[2], dims[3]], values).unwrap()
}

#[test]
fn autoencoders_of_other_classes() {
    let mut checked = 0;
    for shape in shapes() {
        let (cases, golden) = (cases(&shape), golden(&shape));
        if list(&cases, "vae_decode").is_empty() {
            continue;
        }
        let folder = tempfile::tempdir().unwrap();
        let folder = written(&shape, folder.path());
        let codec = sd_onnx::builder().load_codec(folder).unwrap();
        let stop = StopToken::new();
        for case in list(&cases, "vae_encode") {
            let name = text(case, "name");
            let image = array4(golden.tensor(&format!("{name}.image")));
            let found = codec.encode(image.view(), &stop).unwrap();
            let is_tiny = golden.find(&format!("{name}.latents")).is_some();
            let parts = match is_tiny {
                true => vec![("latents", &found.mean)],
                false => vec![("mean", &found.mean), ("logvar", &found.log_variance)],
            };
            // An autoencoder without a distribution has latents and no variance.
            assert_eq!(
                found.log_variance[[0, 0, 0, 0]] == f32::NEG_INFINITY,
                is_tiny
            );
            for (part, found) in parts {
                let (_, expected) = golden.tensor(&format!("{name}.{part}"));
                let error = relative_error(found, &expected);
                within(ONE_CALL, &format!("{shape} {name} {part}"), error);
            }
        }
        for case in list(&cases, "vae_decode") {
            let name = text(case, "name");
            // The golden latents are the autoencoder's own input; the pipeline's latents are
            // scaled.
            let factor = codec.factor();
            let image = Array4::zeros((1, 3, 8 * factor, 8 * factor));
            let scaling = codec.encode(image.view(), &stop).unwrap();
            let latents = LatentDistribution {
                mean: array4(golden.tensor(&format!("{name}.latents"))),
                ..scaling
            };
            let found = codec.decode(latents.mode().view(), &stop).unwrap();
            let (_, expected) = golden.tensor(&format!("{name}.image"));
            let error = relative_error(&found, &expected);
            within(ONE_CALL, &format!("{shape} {name}"), error);
            checked += 1;
        }
    }
    assert!(checked >= 4, "{checked} pictures");
}

#[test]
fn whole_runs() {
    with_each("runs", |shape, pipeline, golden, cases| {
        for case in list(cases, "runs") {
            let name = text(case, "name");
            let folder = tempfile::tempdir().unwrap();
            let refined = case["base"].as_str().map(|base| {
                let refiner = written(shape, folder.path());
                let base = written(base, folder.path());
                sd_onnx::builder().refiner(refiner).load(base).unwrap()
            });
            let picture = run(refined.as_ref().unwrap_or(pipeline), golden, case, shape);
            let (_, noise) = golden.tensor(text(case, "noise"));
            assert!(
                picture.initial_noise.iter().eq(&noise),
                "{shape} {name}: the initial noise differs"
            );
            let (_, latents) = golden.tensor(&format!("{name}.latents"));
            let error = relative_error(&picture.latents, &latents);
            within(WHOLE_RUN, &format!("{shape} {name}"), error);
            let (_, image) = golden.tensor(&format!("{name}.image"));
            let pixels = picture.pixels.iter().zip(&image);
            let far = pixels.filter(|(found, expected)| (*found - *expected).abs() > 2.0 / 255.0);
            let far = far.count() as f64 / image.len() as f64;
            assert!(
                far <= 0.001,
                "{shape} {name}: {far} of the image's values are off by more than 2/255"
            );
        }
    });
}

/// WebUI's arithmetic merged the LoRAs, and diffusers ran the models.
#[test]
fn whole_runs_with_loras() {
    for shape in ["sd2-v", "sdxl-base"] {
        let folder = tempfile::tempdir().unwrap();
        let model = written(shape, folder.path());
        for expected in lora_runs(&format!("families/{shape}")) {
            let mut builder = sd_onnx::builder();
            for (path, weight) in expected.loras {
                builder = builder.lora(path, weight);
            }
            let pipeline = builder.load(&model).unwrap();
            let all = cases(shape);
            let mut runs = list(&all, "runs").iter();
            let case = runs
                .find(|case| text(case, "name") == expected.run)
                .unwrap();
            let picture = run(&pipeline, &golden(shape), case, shape);
            let error = relative_error(&picture.latents, &expected.latents);
            within(WHOLE_RUN, &format!("{shape} with a LoRA"), error);
        }
    }
}

#[test]
fn a_refiner_of_another_prediction_or_other_latents_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let base = written("sdxl-base", folder.path());
    let refiner = written("refiner", folder.path());
    let load = || sd_onnx::builder().refiner(&refiner).load(&base);
    load().unwrap();
    for (file, key, value, part) in [
        (
            "scheduler/scheduler_config.json",
            "prediction_type",
            Value::from("v_prediction"),
            "`prediction_type` is V, expected Epsilon",
        ),
        (
            "vae/config.json",
            "scaling_factor",
            Value::from(0.5),
            "`scaling_factor` is [0.5, ",
        ),
    ] {
        let path = refiner.join(file);
        let before = std::fs::read_to_string(&path).unwrap();
        let mut config: Value = serde_json::from_str(&before).unwrap();
        config[key] = value;
        std::fs::write(&path, config.to_string()).unwrap();
        let error = chain(&load().map(drop).unwrap_err());
        assert!(error.contains(file) && error.contains(part), "{error}");
        std::fs::write(&path, before).unwrap();
    }
    // A component that the refiner's folder lacks is not compared.
    std::fs::remove_dir_all(refiner.join("scheduler")).unwrap();
    std::fs::remove_dir_all(refiner.join("vae")).unwrap();
    load().unwrap();
}

fn run(pipeline: &Pipeline, golden: &Golden, case: &Value, shape: &str) -> Picture {
    // The scheduler of the base makes the whole run, also when a refiner makes the last steps.
    let of = case["base"].as_str().unwrap_or(shape);
    let scheduler = std::fs::read_to_string(family(of).join("scheduler.json")).unwrap();
    let mut scheduler: Value = serde_json::from_str(&scheduler).unwrap();
    scheduler["_class_name"] = case["scheduler"].clone();
    for (key, value) in case["scheduler_changes"].as_object().unwrap() {
        scheduler[key] = value.clone();
    }
    let configured = from_config(&scheduler.to_string()).unwrap();
    let whole = |key: &str| case[key].as_u64().unwrap();
    let mut request = Request::new(text(case, "prompt"))
        .negative(text(case, "negative"))
        .size(whole("width") as u32, whole("height") as u32)
        .steps(whole("steps") as usize)
        .guidance(number(case, "guidance").unwrap() as f32)
        .seed(whole("seed"))
        .scheduler(configured.sampler)
        .ladder(configured.ladder)
        .prompt_options(
            PromptOptions::default()
                .syntax(Syntax::Plain)
                // The pipelines of diffusers need prompts of the same length.
                .same_length(true)
                // diffusers encodes a negative prompt that is given and empty. It uses zeros if
                // none is given.
                .encode_empty(case["negative"].is_string()),
        );
    request.prompt_2 = case["prompt_2"].as_str().map(str::to_owned);
    request.negative_2 = case["negative_2"].as_str().map(str::to_owned);
    let pair = |key: &str| {
        let values = case[key].as_array()?;
        Some([0, 1].map(|i| values[i].as_u64().unwrap() as u32))
    };
    let sizes = |prefix: &str| {
        let mut sizes = Sizes::default();
        sizes.original = pair(&format!("{prefix}original_size"));
        sizes.target = pair(&format!("{prefix}target_size"));
        sizes.crop = pair(&format!("{prefix}crop")).unwrap_or_default();
        sizes
    };
    request.sizes = sizes("");
    request.negative_sizes = Some(sizes("negative_")).filter(|&sizes| sizes != Sizes::default());
    if pipeline.denoiser().inputs().sizes.is_none() {
        assert_eq!(
            (request.sizes, request.negative_sizes),
            (Sizes::default(), None)
        );
    }
    if let Some(scale) = number(case, "image_guidance") {
        request = request.image_guidance(scale as f32);
    }
    if let Some(at) = number(case, "switch") {
        request = request.refiner(at as f32);
    }
    if let Some((dims, values)) = golden.find(&format!("{}.extra", text(case, "name"))) {
        let beside = Array4::from_shape_vec([dims[0], dims[1], dims[2], dims[3]], values);
        request = request.beside(beside.unwrap());
    }
    pipeline.generate(&request).unwrap().pictures.remove(0)
}

/// Reads the row of a token from a stored token embedding.
fn row(folder: &Path, encoder: &str, token: u32) -> Array2<f32> {
    let file = Golden::of_file(&folder.join(encoder).join("model.safetensors"));
    let names = ["", "text_model."].map(|it| format!("{it}embeddings.token_embedding.weight"));
    let (dims, values) = names.iter().find_map(|name| file.find(name)).unwrap();
    let start = token as usize * dims[1];
    let values = values[start..start + dims[1]].to_vec();
    Array2::from_shape_vec((1, dims[1]), values).unwrap()
}

/// Creates a textual inversion from a file with these tensors.
fn inversion(tensors: &[(&str, &Array2<f32>)]) -> TextualInversion {
    let stored: Vec<(&str, Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, rows)| {
            let bytes = rows.iter().flat_map(|value| value.to_le_bytes()).collect();
            (*name, rows.shape().to_vec(), bytes)
        })
        .collect();
    let views = stored.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap();
        (*name, view)
    });
    let bytes = safetensors::serialize(views, None).unwrap();
    TextualInversion::from_bytes("wumpus", &bytes).unwrap()
}

#[test]
fn textual_inversions_of_both_text_encoders() {
    // In the first shape, the end of a text is found as the largest id. The ids of inversions are
    // larger still.
    for shape in ["sdxl-base", "sdxl-ssd"] {
        let folder = tempfile::tempdir().unwrap();
        let folder = written(shape, folder.path());
        let plain = load(&folder);
        let encode = |pipeline: &Pipeline, text: &str| {
            let encoder = pipeline.prompt_encoder();
            encoder
                .encode_with(text, &EncodeOptions::default())
                .unwrap()
        };
        let word = encode(&plain, "q");
        assert_eq!(word.tokens.used, 3);
        let [first, second] = ["text_encoder", "text_encoder_2"]
            .map(|encoder| row(&folder, encoder, word.tokens.ids[1]));
        let both = inversion(&[("clip_l", &first), ("clip_g", &second)]);
        let pipeline = sd_onnx::builder().embedding(both).load(&folder).unwrap();
        let named = encode(&pipeline, "wumpus");
        assert_eq!(named.inversions.len(), 1);
        assert_eq!(named.embedding, word.embedding, "{shape}");
        assert_eq!(named.pooled, word.pooled, "{shape}");
        assert_ne!(word.pooled, encode(&plain, "z").pooled);
        // An inversion for the first text encoder alone does not fit.
        let half = inversion(&[("clip_l", &first)]);
        let error = sd_onnx::builder()
            .embedding(half)
            .load(&folder)
            .unwrap_err();
        let width = second.ncols().to_string();
        assert!(chain(&error).contains(&width), "{error}");
    }
}
