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
            "the ControlNet: the first convolution, `conv_in`, is missing",
        ),
        (
            &[("lora_controlnet", &[1])],
            "a Control-LoRA",
            "which is not supported, because most of its layers are differences",
        ),
        (
            &[("ip_adapter.0.to_q_lora.down.weight", &[8, 8])],
            "an IP-Adapter for faces",
            "because it takes the embedding of a face recogniser",
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

/// Checks that the lines of a description contain `expected`, and that it has no problems.
fn shows(text: &str, expected: &[&str]) {
    for line in expected {
        assert!(text.lines().any(|found| found == *line), "{line}: {text}");
    }
    assert!(!text.contains("problem"), "{text}");
}

#[test]
fn adapters_that_guide_a_model() {
    let folder = tempfile::tempdir().unwrap();
    let mut tensors = vec![
        ("conv_in.weight".to_owned(), vec![8, 64, 3, 3]),
        ("conv_in.bias".to_owned(), vec![8]),
    ];
    for block in 0..8 {
        let block = format!("body.{block}");
        tensors.extend([
            (format!("{block}.block1.weight"), vec![8, 8, 3, 3]),
            (format!("{block}.block1.bias"), vec![8]),
            (format!("{block}.block2.weight"), vec![8, 8, 1, 1]),
            (format!("{block}.block2.bias"), vec![8]),
        ]);
    }
    let adapter = tensors.iter();
    let adapter: Vec<_> = adapter
        .map(|(name, shape)| (name.as_str(), &shape[..]))
        .collect();
    write(&folder.path().join("canny.safetensors"), &adapter);
    let (text, _) = INSPECT.succeed(folder.path(), &["canny.safetensors"]);
    shows(
        &text,
        &[
            "kind           a T2I-Adapter",
            "format         safetensors",
            "adapter        34 tensors, 9864 parameters, 19.7 kB of F16",
            "for            Stable Diffusion 1.x",
            "channels       1",
        ],
    );
    write(&folder.path().join("broken.safetensors"), &adapter[..33]);
    let (text, _) = INSPECT.succeed(folder.path(), &["broken.safetensors"]);
    assert!(text.contains("problem "), "{text}");

    let image: [(&str, &[usize]); 6] = [
        ("image_proj.proj.weight", &[64, 8]),
        ("image_proj.proj.bias", &[64]),
        ("image_proj.norm.weight", &[16]),
        ("image_proj.norm.bias", &[16]),
        ("ip_adapter.1.to_k_ip.weight", &[8, 768]),
        ("ip_adapter.1.to_v_ip.weight", &[8, 768]),
    ];
    write(&folder.path().join("ip.safetensors"), &image);
    let encoder = folder.path().join("image_encoder");
    fs::create_dir(&encoder).unwrap();
    fs::write(encoder.join("config.json"), r#"{"projection_dim": 8}"#).unwrap();
    let (json, _) = INSPECT.succeed(folder.path(), &["ip.safetensors", "--json"]);
    let found: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(found["kind"], "an IP-Adapter");
    assert_eq!(found["parts"][0]["name"], "ip_adapter");
    let control = &found["control"];
    assert_eq!(control["family"], "Stable Diffusion 1.x");
    assert_eq!(
        [&control["channels"], &control["tokens"]],
        [&Value::Null, &Value::from(4)]
    );
    assert!(
        control["encoder"]
            .as_str()
            .unwrap()
            .ends_with("image_encoder")
    );
    assert_eq!(found["problems"], serde_json::json!([]));

    // A folder of a class that is not supported.
    let union = folder.path().join("union");
    fs::create_dir(&union).unwrap();
    let config = r#"{"_class_name": "ControlNetUnionModel"}"#;
    fs::write(union.join("config.json"), config).unwrap();
    let (text, _) = INSPECT.succeed(folder.path(), &["union"]);
    assert!(
        text.contains("kind           a folder of ControlNetUnionModel\n"),
        "{text}"
    );
    assert!(
        text.contains("which also takes the kinds of its pictures"),
        "{text}"
    );

    // A ControlNet in a model folder is a part of it, and no problem of the model.
    let copied = folder.path().join("model");
    copy(Path::new(&model()), &copied);
    fs::create_dir(copied.join("controlnet")).unwrap();
    fs::write(copied.join("controlnet/config.json"), config).unwrap();
    let (text, _) = INSPECT.succeed(folder.path(), &["model"]);
    assert!(
        text.contains("warning        `controlnet` cannot be loaded: "),
        "{text}"
    );
    assert!(!text.contains("problem "), "{text}");
}

/// Copies a folder.
fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(fs::copy(entry.path(), to).unwrap()),
        }
    }
}
