//! LoRAs and related adapters that a builder merges into a model.
//!
//! The unit tests of the crate compare the weights with the references, and `golden.rs` and
//! `families.rs` compare whole runs. These tests show that the changed weights reach the networks.

// In tests, a panic reports the failure.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Golden, Model, emoji, golden, golden_json, load, relative_error};
use ndarray::{Array3, Array4};
use sd_onnx::{Call, Infotext, Pipeline, Request, StopToken, text::ClipSkip};
use sd_text::outside::chain;
use serde_json::Value;

const BASE: &str = "four";

/// Returns the prompt's embedding, and the output of the UNet for a golden input.
fn outputs(pipeline: &Pipeline) -> [Vec<f32>; 2] {
    let golden = Golden::of_shape(BASE);
    let (shape, values) = golden.tensor("unet.context");
    let context = Array3::from_shape_vec([shape[0], shape[1], shape[2]], values).unwrap();
    let (shape, values) = golden.tensor("unet.0.sample");
    let shape = [shape[0], shape[1], shape[2], shape[3]];
    let sample = Array4::from_shape_vec(shape, values).unwrap();
    let mut output = Array4::zeros(sample.dim());
    let stop = StopToken::new();
    let call = Call::new(sample.view(), 500.0, context.view(), &stop);
    pipeline
        .denoiser()
        .predict(&call, output.view_mut())
        .unwrap();
    let encoder = pipeline.prompt_encoder();
    let encoded = encoder.encode("a fox", ClipSkip::new(1).unwrap()).unwrap();
    [
        encoded.embedding.iter().copied().collect(),
        output.into_raw_vec_and_offset().0,
    ]
}

#[test]
fn each_adapter_changes_the_networks_that_it_is_for_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    Model::of_shape(BASE).write(folder.path());
    let plain = outputs(&load(folder.path()));
    let cases = golden_json("lora", "cases.json");
    let mut seen = 0;
    for case in cases.as_array().unwrap() {
        if case["base"] != BASE {
            continue;
        }
        let name = case["name"].as_str().unwrap();
        let mut builder = sd_onnx::builder();
        for adapter in case["weights"][0]["adapters"].as_array().unwrap() {
            let file = golden("lora").join(adapter["file"].as_str().unwrap());
            builder = builder.lora(file, adapter["unet"].as_f64().unwrap() as f32);
        }
        let pipeline = builder.load(folder.path());
        let pipeline = pipeline.unwrap_or_else(|error| panic!("{name}: {}", chain(&error)));
        let tensors = case["tensors"].as_array().unwrap();
        let changes = |network: &str| {
            let is_of = |tensor: &Value| tensor["name"].as_str().unwrap().starts_with(network);
            tensors.iter().any(is_of)
        };
        let expected = [changes("text_encoder."), changes("unet.")];
        let found = outputs(&pipeline);
        for (i, network) in ["text encoder", "UNet"].iter().enumerate() {
            let error = relative_error(&found[i], &plain[i]);
            // The same weights give the same bits.
            if expected[i] {
                assert!(error > 1e-6, "{name}: the {network} changed by {error:.1e}");
            } else {
                assert_eq!(error, 0.0, "{name}: the {network} changed");
            }
        }
        seen += 1;
    }
    assert!(seen >= 30, "{seen} adapters");
}

#[test]
fn weight_0_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    Model::of_shape(BASE).write(folder.path());
    let plain = outputs(&load(folder.path()));
    let file = golden("lora").join("sd1-lora.safetensors");
    let with = sd_onnx::builder().lora(&file, 0.0).load(folder.path());
    assert_eq!(outputs(&with.unwrap()), plain);
}

#[test]
fn infotexts_report_the_loras_and_pipelines_compare_them() {
    let folder = tempfile::tempdir().unwrap();
    Model::of_shape(BASE).write(folder.path());
    let file = golden("lora").join("sd1-lora.safetensors");
    let load = |weight: Option<f32>| {
        let builder = sd_onnx::builder();
        let builder = match weight {
            None => builder,
            Some(weight) => builder.lora(&file, weight),
        };
        builder.load(folder.path()).unwrap()
    };
    let (plain, with) = (load(None), load(Some(0.7)));
    let request = Request::new("a fox").size(64, 64).steps(1).seed(1);
    let infotext = |pipeline: &Pipeline| -> Infotext {
        let picture = pipeline.generate(&request).unwrap().pictures.remove(0);
        Infotext::parse(&picture.infotext().to_string()).unwrap()
    };
    let (of_plain, of_with) = (infotext(&plain), infotext(&with));
    // The hash is WebUI's, as the golden script computed it.
    assert_eq!(of_with.get("Lora hashes"), Some("sd1-lora: 16a3481160fd"));
    assert_eq!(of_with.get("SD loras"), Some(r#"[["sd1-lora",0.7,0.7]]"#));
    assert_eq!(of_plain.get("SD loras"), None);
    assert!(with.reproduction(&of_with).differences.is_empty());
    assert!(plain.reproduction(&of_plain).differences.is_empty());
    for (pipeline, infotext, expected) in [
        (&plain, &of_with, "were merged into the model"),
        (
            &load(Some(0.8)),
            &of_with,
            "with which the picture was not made",
        ),
        (&with, &of_plain, "with which the picture was not made"),
    ] {
        let found = pipeline.reproduction(infotext).differences;
        assert!(found.iter().any(|it| it.contains(expected)), "{found:?}");
    }
}

/// The small model's own LoRA draws on white paper, whatever the prompt says.
#[test]
fn the_ink_lora_draws_on_white() {
    let ink = emoji().join("loras/ink.safetensors");
    let request = Request::new("a rocket on a blue background")
        .steps(10)
        .guidance(4.0)
        .seed(2);
    let corners = |weight: f32| {
        let pipeline = sd_onnx::builder().lora(&ink, weight).load(emoji()).unwrap();
        let generation = pipeline.generate(&request).unwrap();
        let image = generation.image();
        [(0, 0), (95, 0), (0, 95), (95, 95)].map(|(x, y)| image.get_pixel(x, y).0)
    };
    let is_white = |pixel: &[u8; 3]| pixel.iter().all(|&value| value > 200);
    let (without, with) = (corners(0.0), corners(1.0));
    assert!(!without.iter().any(is_white), "{without:?}");
    assert!(with.iter().all(is_white), "{with:?}");
}

#[test]
fn what_cannot_be_merged_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    Model::of_shape(BASE).write(folder.path());
    let refused = |file: &str, weight: f32| {
        let builder = sd_onnx::builder().lora(golden("lora").join(file), weight);
        chain(&builder.load(folder.path()).map(drop).unwrap_err())
    };
    let error = refused("sd1-lora.safetensors", f32::NAN);
    assert!(error.contains("expected a finite number"), "{error}");
    let error = refused("sdxl-lora.safetensors", 1.0);
    assert!(error.contains("SDXL"), "{error}");
    let error = refused("no-such-file.safetensors", 1.0);
    assert!(error.contains("no-such-file.safetensors"), "{error}");
}
