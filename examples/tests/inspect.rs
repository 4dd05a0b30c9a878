//! Runs `inspect` as a user does, on the small model and on files that are not models.

// In a test, a panic is the failure.
#![allow(clippy::unwrap_used)]

mod common;

use std::{fs, path::Path};

use common::Example;
use safetensors::{Dtype, serialize_to_file, tensor::TensorView};
use sd_examples::shipped_model;
use serde_json::Value;

const INSPECT: Example = Example("inspect");
const CONVERT: Example = Example("convert");

/// Returns the path of the small model.
fn model() -> String {
    shipped_model().to_str().unwrap().to_owned()
}

/// Writes a safetensors file with f16 tensors of zeros.
fn write(path: &Path, tensors: &[(&str, &[usize])]) {
    let bytes = vec![0; 1 << 16];
    let views = tensors.iter().map(|(name, shape)| {
        let length = 2 * shape.iter().product::<usize>();
        let view = TensorView::new(Dtype::F16, shape.to_vec(), &bytes[..length]);
        (*name, view.unwrap())
    });
    let metadata = [("ss_network_dim".to_owned(), "4".to_owned())];
    serialize_to_file(views, Some(metadata.into()), path).unwrap();
}

#[test]
fn a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let (text, _) = INSPECT.succeed(folder.path(), &[&model()]);
    for line in [
        "kind           Stable Diffusion 1.x",
        "format         diffusers folder",
        "predicts       v_prediction, because scheduler_config.json says so",
        "unet           326 tensors, 6901828 parameters, 13.8 MB of F16",
        "memory         47.7 MB of weights once loaded",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}: {text}");
    }
    assert!(
        !text.contains("problem") && !text.contains("missing"),
        "{text}"
    );

    let (json, _) = INSPECT.succeed(folder.path(), &[&model(), "--json"]);
    let found: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(found["format"], "diffusers folder");
    assert_eq!(found["prediction"], "v_prediction");
    assert_eq!(found["class"], "StableDiffusionPipeline");
    assert_eq!(found["parts"][0]["name"], "unet");
    assert_eq!(found["parts"][0]["parameters"], 6_901_828);
    assert_eq!(found["parts"][0]["types"]["F16"], 326);
    assert_eq!(found["problems"], serde_json::json!([]));
    // Only a file has hashes.
    INSPECT.fail(folder.path(), &[&model(), "--hash"], 1, "emoji: ");
}

#[test]
fn a_folder_of_graphs() {
    let folder = tempfile::tempdir().unwrap();
    CONVERT.succeed(folder.path(), &[&model(), "graphs", "--to", "onnx"]);
    let (text, _) = INSPECT.succeed(folder.path(), &["graphs"]);
    assert!(text.contains("format         ONNX folder\n"), "{text}");
    for network in ["unet", "vae_decoder", "vae_encoder", "text_encoder"] {
        let line = text
            .lines()
            .find(|line| line.starts_with(&format!("{network} ")));
        assert!(
            line.is_some_and(|line| line.contains(" tensors, ")),
            "{network}: {text}"
        );
    }
    assert!(
        !text.contains("problem") && !text.contains("missing"),
        "{text}"
    );
}

/// Checks that each hash covers the bytes that its documentation names.
#[test]
fn hashes() {
    use sha2::{Digest, Sha256};
    let of = |bytes: &[u8]| -> String {
        let digest = Sha256::digest(bytes);
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lora.safetensors");
    write(
        &path,
        &[("lora_unet_mid_block.lora_down.weight", &[4, 320])],
    );
    let (json, _) = INSPECT.succeed(folder.path(), &["lora.safetensors", "--json", "--hash"]);
    let found: Value = serde_json::from_str(&json).unwrap();
    let bytes = fs::read(&path).unwrap();
    assert_eq!(found["hashes"]["sha256"], of(&bytes));
    assert_eq!(found["hashes"]["auto_v2"], of(&bytes)[..10]);
    assert_eq!(found["hashes"]["data_sha256"], of(&vec![0; 4 * 320 * 2]));
    // The file ends before the bytes that the hash of 2022 covers.
    assert_eq!(found["hashes"]["auto_v1"], of(&[])[..8]);
}

#[test]
fn files_that_are_no_model() {
    let folder = tempfile::tempdir().unwrap();
    for (tensors, what, problem) in [
        (
            &[("lora_unet_mid_block.lora_down.weight", &[4, 320][..])][..],
            "a LoRA",
            "the file is a LoRA, which changes a model",
        ),
        (
            &[("emb_params", &[2, 768])],
            "a textual inversion",
            "which adds words to a model",
        ),
        (
            &[("control_model.out.weight", &[8, 8])],
            "a ControlNet",
            "which guides a model",
        ),
        (
            &[("body.0.weight", &[8, 8])],
            "an upscaler of pictures",
            "not a model to draw with",
        ),
        (
            &[("a", &[8, 8])],
            "nothing that is known",
            "the file is nothing that is known",
        ),
    ] {
        let path = folder.path().join("x.safetensors");
        write(&path, tensors);
        let (text, _) = INSPECT.succeed(folder.path(), &["x.safetensors"]);
        assert!(text.contains(&format!("kind           {what}\n")), "{text}");
        assert!(text.contains(problem), "{text}");
        assert!(text.contains("metadata       ss_network_dim: 4"), "{text}");
    }
    INSPECT.fail(folder.path(), &["no-such-file"], 1, "no-such-file: ");
}
