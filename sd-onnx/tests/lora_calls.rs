//! LoRAs of a folder, which requests call by name.
//!
//! `lora.rs` shows that the LoRAs that a builder merges are right, and these tests compare with
//! them. `openvino.rs` does the same on OpenVINO.

// In tests, a panic reports the failure.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/lora_calls.rs"]
mod lora_calls;

use std::{fs, path::Path};

use common::{golden, load, relative_error};
use lora_calls::{
    ROUNDING, call, compare, compare_trained, difference, index, networks, of_pipeline, outputs,
    with, write,
};
use sd_core::LoraBlocks;
use sd_onnx::{Pipeline, Request};
use serde_json::Value;

#[test]
fn loras_as_inputs_equal_merged_ones() {
    let [merged, live] = compare(sd_onnx::builder, |_| true);
    assert!(merged >= 20 && live >= 20, "{merged} merged, {live} live");
}

#[test]
fn in_a_trained_model_they_differ_by_less() {
    compare_trained(sd_onnx::builder);
}

/// Returns the small Stable Diffusion 1 model with the golden adapters as its library.
fn four(folder: &Path) -> Pipeline {
    write("four", folder);
    sd_onnx::builder()
        .loras(golden("lora"))
        .load(folder)
        .unwrap()
}

#[test]
fn without_loras_a_pipeline_with_a_library_draws_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let library = four(folder.path());
    let error = difference(&of_pipeline(&library), &of_pipeline(&load(folder.path())));
    assert!(error < ROUNDING, "{error:.1e}");
}

#[test]
fn several_loras_are_added_up() {
    let folder = tempfile::tempdir().unwrap();
    let library = four(folder.path());
    let names = ["sd1-lora", "sd1-locon", "sd1-locon-mid"];
    let weights = [0.8, -0.3, 0.5];
    let calls: Vec<_> = names
        .iter()
        .zip(weights)
        .map(|(it, w)| call(&library, it, w))
        .collect();
    let merged = names
        .iter()
        .zip(weights)
        .fold(sd_onnx::builder(), |builder, (name, weight)| {
            builder.lora(golden("lora").join(format!("{name}.safetensors")), weight)
        });
    let expected = of_pipeline(&merged.load(folder.path()).unwrap());
    let error = difference(&with(&library, &calls), &expected);
    assert!(error < ROUNDING, "{error:.1e}");
}

#[test]
fn a_weight_changes_from_step_to_step() {
    let folder = tempfile::tempdir().unwrap();
    let library = four(folder.path());
    let mut changing = call(&library, "sd1-locon", 0.5);
    changing.unet = vec![0.2, 0.9];
    let changing = networks(&library, &[changing]);
    for (step, weight) in [(0, 0.2), (1, 0.9), (7, 0.9), (0, 0.2)] {
        let mut constant = call(&library, "sd1-locon", 0.5);
        constant.unet = vec![weight];
        let constant = networks(&library, &[constant]);
        let [found, expected] =
            [&changing, &constant].map(|it| outputs(&it.prompts, &*it.denoiser, step));
        assert_eq!(found, expected, "step {step}");
    }
}

/// Ranks and blocks are the same for a LoRA that is an input and for one that is merged, which it
/// is beside one that must be merged. That one has the weight 0.
#[test]
fn ranks_and_blocks_are_the_same_in_both_ways() {
    let folder = tempfile::tempdir().unwrap();
    let library = four(folder.path());
    let mut seen: Vec<[Vec<f32>; 2]> = vec![with(&library, &[call(&library, "sd1-lora", 1.0)])];
    let mut blocks = [0.0; 26];
    blocks[0] = 0.5;
    let mut some = blocks;
    some[1..14].fill(1.0);
    for (rank, blocks) in [
        (Some(1), None),
        (None, Some(LoraBlocks(blocks))),
        (None, Some(LoraBlocks(some))),
        (Some(1), Some(LoraBlocks([-1.0; 26]))),
    ] {
        let mut lora = call(&library, "sd1-lora", 1.0);
        (lora.rank, lora.blocks) = (rank, blocks);
        let live = with(&library, &[lora.clone()]);
        let merged = with(&library, &[lora, call(&library, "sd1-loha", 0.0)]);
        let error = difference(&live, &merged);
        assert!(error < ROUNDING, "{rank:?} {blocks:?}: {error:.1e}");
        for other in &seen {
            let change = difference(&live, other);
            assert!(change > 5.0 * ROUNDING, "{rank:?} {blocks:?}: {change:.1e}");
        }
        seen.push(live);
    }
}

/// A text encoder whose configuration leaves out its last layer, as for clip skip, has no use for
/// factors of that layer. Other layers are changed.
#[test]
fn layers_that_a_network_leaves_out_take_no_factors() {
    let folder = tempfile::tempdir().unwrap();
    write("four", folder.path());
    let path = folder.path().join("text_encoder/config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    let layers = config["num_hidden_layers"].as_u64().unwrap();
    config["num_hidden_layers"] = (layers - 1).into();
    fs::write(&path, config.to_string()).unwrap();
    let library = sd_onnx::builder().loras(golden("lora"));
    let library = library.load(folder.path()).unwrap();
    let plain = of_pipeline(&library);
    let changed = with(&library, &[call(&library, "sd1-lora", 1.0)]);
    for i in 0..2 {
        assert!(relative_error(&changed[i], &plain[i]) > 0.01, "network {i}");
    }
}

#[test]
fn weights_that_change_need_loras_that_are_inputs() {
    let folder = tempfile::tempdir().unwrap();
    let library = four(folder.path());
    let mut changing = call(&library, "sd1-lora", 1.0);
    changing.unet = vec![0.0, 1.0];
    let calls = [changing, call(&library, "sd1-loha", 1.0)];
    let error = library.lora_library().unwrap().networks(&calls).map(drop);
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("a weight that changes over the steps"),
        "{error}"
    );
    let request = Request::new("a fox <lora:sd1-lora:0@0,1@1> <lora:sd1-loha:1>").steps(2);
    let error = library
        .generate(&request)
        .map(drop)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("because `sd1-loha` beside it is merged"),
        "{error}"
    );
}

/// Sets that are kept are used again.
#[test]
fn merged_loras_are_drawn_again() {
    let folder = tempfile::tempdir().unwrap();
    write("four", folder.path());
    let library = sd_onnx::builder().kept_sizes(3).loras(golden("lora"));
    let library = library.load(folder.path()).unwrap();
    let draw = |name: &str| with(&library, &[call(&library, name, 1.0)]);
    let names = ["sd1-loha", "sd1-oft"];
    let [first, second] = names.map(draw);
    assert!(difference(&first, &second) > 1e-3);
    assert_eq!(names.map(draw), [first, second]);
}

/// Factors are read when a LoRA is called, from the places that the header gave at the load.
#[test]
fn a_file_that_changes_after_the_load_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let loras = folder.path().join("loras");
    fs::create_dir(&loras).unwrap();
    let file = loras.join("a.safetensors");
    fs::copy(golden("lora").join("sd1-lora.safetensors"), &file).unwrap();
    let model = folder.path().join("model");
    write("four", &model);
    let library = sd_onnx::builder().loras(&loras).load(&model).unwrap();
    fs::copy(golden("lora").join("sd1-locon.safetensors"), &file).unwrap();
    let calls = [call(&library, "a", 1.0)];
    let error = library.lora_library().unwrap().networks(&calls).map(drop);
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("has changed since the model was loaded"),
        "{error}"
    );
    fs::remove_file(&file).unwrap();
    assert!(library.lora_library().unwrap().networks(&calls).is_err());
    let error = sd_onnx::builder()
        .loras(model.join("unet/config.json"))
        .load(&model);
    let error = sd_text::outside::chain(&error.map(drop).unwrap_err()).to_string();
    assert!(
        error.contains("this is a file, expected a folder"),
        "{error}"
    );
}

#[test]
fn a_file_for_another_model_is_listed_with_its_problem() {
    let folder = tempfile::tempdir().unwrap();
    let library = four(folder.path());
    let other = &library.loras()[index(&library, "sdxl-lora")];
    let problem = other.problem.as_deref().unwrap();
    assert!(
        problem.contains("the adapter is for SDXL, but the model is"),
        "{problem}"
    );
    let own = &library.loras()[index(&library, "sd1-lora")];
    assert_eq!(
        (own.alias.as_deref(), own.live, &own.problem),
        (Some("fox style"), true, &None)
    );
    // Saved by peft, in a folder of this name.
    assert!(
        library.loras()[index(&library, "sd1-peft")]
            .problem
            .is_none()
    );
    assert!(!library.loras()[index(&library, "sd1-peft-dora")].live);
}
