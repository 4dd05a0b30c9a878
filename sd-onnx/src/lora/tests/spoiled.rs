//! Adapters that are spoiled, each with an error that names the file, the tensor and the reason.

use std::fs;

use super::made::{Case, Made, TO_Q};
use crate::Error;

/// The tensors of a good LoRA.
fn good() -> Vec<(String, Made)> {
    vec![
        (format!("{TO_Q}.lora_up.weight"), Made::new(&[8, 2], 70)),
        (format!("{TO_Q}.lora_down.weight"), Made::new(&[2, 4], 71)),
        (format!("{TO_Q}.alpha"), Made::number(1.0)),
    ]
}

fn problem(case: &Case) -> String {
    let error = case.merged().expect_err("the adapter is spoiled");
    assert!(
        !matches!(error, Error::Onnx { .. }),
        "the error is about the file: {error}"
    );
    let error = error.to_string();
    assert!(error.contains("adapter.safetensors: "), "{error}");
    error
}

/// Checks the error of an adapter with these tensors.
fn refused(tensors: &[(String, Made)], parts: &[&str]) {
    let case = Case::new();
    let tensors: Vec<_> = tensors
        .iter()
        .map(|(name, made)| (name.as_str(), made.clone()))
        .collect();
    case.write(&tensors);
    let error = problem(&case);
    for part in parts {
        assert!(error.contains(part), "`{part}` is not in: {error}");
    }
}

/// Replaces, adds or removes a tensor of the good LoRA.
fn with(part: &str, made: Option<Made>) -> Vec<(String, Made)> {
    let mut tensors = good();
    let name = format!("{TO_Q}.{part}");
    tensors.retain(|(other, _)| *other != name);
    tensors.extend(made.map(|made| (name, made)));
    tensors
}

/// Returns a module with only these parts.
fn only(parts: &[(&str, &[usize])]) -> Vec<(String, Made)> {
    let parts = parts.iter().enumerate();
    let parts =
        parts.map(|(seed, (part, shape))| (format!("{TO_Q}.{part}"), Made::new(shape, 80 + seed)));
    parts.collect()
}

#[test]
fn the_good_lora_is_merged() {
    let case = Case::new();
    let good = good();
    let tensors: Vec<_> = good
        .iter()
        .map(|(name, made)| (name.as_str(), made.clone()))
        .collect();
    assert_eq!(case.write(&tensors).merged().unwrap().len(), 1);
}

#[test]
fn factors_that_do_not_fit_are_refused() {
    let up = "to_q.lora_up.weight`";
    let down = "to_q.lora_down.weight`";
    let weight = "`down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight`";
    refused(
        &with("lora_up.weight", None),
        &["lacks the tensor `lora_up.weight`", weight],
    );
    refused(
        &with("lora_down.weight", None),
        &["lacks the tensor `lora_down.weight`", weight],
    );
    let made = |shape: &[usize]| Some(Made::new(shape, 72));
    refused(
        &with("lora_up.weight", made(&[7, 2])),
        &[up, "has shape [7, 2], expected [8, 2]", weight],
    );
    refused(
        &with("lora_up.weight", made(&[8, 3])),
        &[down, "has shape [2, 4], expected [3, 4]"],
    );
    refused(
        &with("lora_down.weight", made(&[2, 5])),
        &[down, "has shape [2, 5], expected [2, 4]"],
    );
    refused(
        &with("lora_down.weight", made(&[2, 4, 3, 3])),
        &[down, "has shape [2, 4, 3, 3], expected [2, 4]"],
    );
    // Up and down exchanged.
    let mut exchanged = good();
    let shape = exchanged[0].1.clone();
    exchanged[0].1 = exchanged[1].1.clone();
    exchanged[1].1 = shape;
    refused(&exchanged, &[up, "has shape [2, 4], expected [8, 4]"]);
    // A rank of 0, and single numbers.
    refused(
        &with("lora_up.weight", made(&[8, 0])),
        &[up, "has shape [8, 0], expected a matrix"],
    );
    refused(
        &with("lora_down.weight", made(&[0, 4])),
        &[down, "has shape [0, 4]"],
    );
    refused(
        &with("lora_up.weight", made(&[])),
        &[up, "has shape [], expected a matrix"],
    );
    refused(
        &with("lora_mid.weight", made(&[2, 2, 3, 3])),
        &[
            "to_q.lora_mid.weight`",
            "has shape [2, 2, 3, 3], expected [2, 2]",
        ],
    );
    refused(
        &with("dora_scale", made(&[5, 1])),
        &[
            "to_q.dora_scale`",
            "has shape [5, 1], expected one number for each of 8 outputs",
        ],
    );
    refused(
        &with("bias", made(&[5])),
        &["to_q.bias`", "has shape [5], expected [8, 4]"],
    );
}

#[test]
fn other_formats_that_do_not_fit_are_refused() {
    refused(
        &only(&[
            ("hada_w1_a", &[8, 2]),
            ("hada_w1_b", &[2, 4]),
            ("hada_w2_a", &[8, 3]),
            ("hada_w2_b", &[2, 4]),
        ]),
        &["to_q.hada_w2_a`", "has shape [8, 3], expected [8, 2]"],
    );
    refused(
        &only(&[("hada_w1_a", &[8, 2]), ("hada_w1_b", &[2, 4])]),
        &["lacks the tensor `hada_w2_b`"],
    );
    refused(
        &only(&[("lokr_w1", &[3, 2]), ("lokr_w2", &[2, 2])]),
        &[
            "to_q.lokr_w1`",
            "has shape [3, 2], expected divisors of 8 outputs and 4 inputs",
        ],
    );
    refused(
        &only(&[("lokr_w1", &[2, 2]), ("lokr_w2", &[4, 3])]),
        &["to_q.lokr_w2`", "has shape [4, 3], expected [4, 2]"],
    );
    refused(
        &only(&[("lokr_w1", &[2, 2])]),
        &["lacks the tensor `lokr_w2_b`"],
    );
    refused(
        &only(&[("oft_blocks", &[3, 3, 3])]),
        &[
            "to_q.oft_blocks`",
            "has shape [3, 3, 3], expected blocks whose sides add up to 8 outputs",
        ],
    );
    refused(
        &only(&[("oft_blocks", &[2, 4, 3])]),
        &["to_q.oft_blocks`", "expected square blocks"],
    );
    refused(
        &only(&[("oft_blocks", &[40, 2, 4, 4])]),
        &[
            "to_q.oft_blocks`",
            "expected an even side, and stages that divide the outputs",
        ],
    );
    refused(
        &only(&[("weight", &[7]), ("on_input", &[])]),
        &[
            "to_q.weight`",
            "expected one number for each of 4 inputs or 8 outputs",
        ],
    );
    refused(
        &only(&[("diff", &[4, 8])]),
        &["to_q.diff`", "has shape [4, 8], expected [8, 4]"],
    );
    refused(
        &only(&[
            ("a1.weight", &[4, 2]),
            ("a2.weight", &[2, 4]),
            ("b1.weight", &[8, 2]),
            ("b2.weight", &[2, 5]),
        ]),
        &["to_q.b2.weight`", "has shape [2, 5], expected [2, 4]"],
    );
    let norm = "lora_unet_down_blocks_0_attentions_0_norm";
    refused(
        &[(format!("{norm}.w_norm"), Made::new(&[5], 73))],
        &["norm.w_norm`", "has shape [5], expected [4]"],
    );
    refused(
        &[(format!("{norm}.b_norm"), Made::new(&[5], 74))],
        &["norm.b_norm`", "has shape [5], expected [4]"],
    );
}

#[test]
fn values_that_cannot_be_used_are_refused() {
    for value in [f32::NAN, f32::INFINITY] {
        refused(
            &with("alpha", Some(Made::number(value))),
            &["to_q.alpha`", "expected a finite number"],
        );
        let mut down = Made::new(&[2, 4], 75);
        down.values[5] = value;
        refused(
            &with("lora_down.weight", Some(down)),
            &["to_q.lora_down.weight`", "contains NaN or infinity"],
        );
    }
    refused(
        &with("alpha", Some(Made::new(&[2], 76))),
        &["to_q.alpha`", "has 2 numbers, expected one"],
    );
    refused(
        &with("scale", Some(Made::number(f32::NAN))),
        &["to_q.scale`", "expected a finite number"],
    );
    // Alphas in the metadata.
    let case = Case::new();
    let module = "base_model.model.down_blocks.0.resnets.0.conv1";
    case.write(&[
        (
            &format!("{module}.lora_A.weight"),
            Made::new(&[1, 4, 3, 3], 77),
        ),
        (
            &format!("{module}.lora_B.weight"),
            Made::new(&[6, 1, 1, 1], 78),
        ),
    ]);
    let config = case.path().with_file_name("adapter_config.json");
    for (alpha, part) in [
        ("1e300", "has the scale 1e300, which is too large"),
        ("[", "JSON"),
    ] {
        fs::write(&config, format!("{{\"lora_alpha\": {alpha}}}")).unwrap();
        let error = case.merged().unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    let mut oft = only(&[("oft_blocks", &[2, 4, 4])]);
    oft.push((format!("{TO_Q}.alpha"), Made::number(-1.0)));
    refused(
        &oft,
        &["to_q.alpha`", "has the value -1, expected 0 or more"],
    );
}

#[test]
fn files_that_are_no_adapter_for_the_model_are_refused() {
    refused(
        &[(
            "lora_unet_double_blocks_0_img_mod_lin.lora_up.weight".into(),
            Made::new(&[2, 2], 1),
        )],
        &["an adapter for Flux or one of its relatives, which is not supported"],
    );
    refused(
        &[("decoder.conv_in.weight".into(), Made::new(&[2, 2, 3, 3], 1))],
        &[
            "the file is an autoencoder, expected a LoRA",
            "decoder.conv_in.weight",
        ],
    );
    refused(
        &[("x".into(), Made::new(&[2, 2], 1))],
        &["the file is no adapter that is known, expected a LoRA", "x"],
    );
    refused(&[], &["the file is no adapter that is known"]);
    refused(
        &[(
            "lora_unet_down_blocks_9_resnets_0_conv1.diff".into(),
            Made::new(&[2, 2], 1),
        )],
        &["none of the adapter's 1 modules is in the model: lora_unet_down_blocks_9"],
    );
    let to_k = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k";
    refused(
        &[
            (format!("{to_k}.lora_up.weight"), Made::new(&[4, 1], 1)),
            (format!("{to_k}.lora_down.weight"), Made::new(&[1, 2048], 1)),
        ],
        &["the adapter is for SDXL, but the model is Stable Diffusion 1.x"],
    );
}

#[test]
fn damaged_files_are_refused() {
    let case = Case::new();
    let good = good();
    let tensors: Vec<_> = good
        .iter()
        .map(|(name, made)| (name.as_str(), made.clone()))
        .collect();
    case.write(&tensors);
    let bytes = fs::read(case.path()).unwrap();
    // Cut anywhere, the file is refused, and nothing panics.
    for length in (0..bytes.len()).step_by(7) {
        fs::write(case.path(), &bytes[..length]).unwrap();
        assert!(case.merged().is_err(), "{length}");
    }
    // With any byte of the header changed, the file is refused or merged.
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    for place in 0..8 + header {
        let mut spoiled = bytes.clone();
        spoiled[place] ^= 0x11;
        fs::write(case.path(), spoiled).unwrap();
        let _ = case.merged();
    }
    // Shapes that overflow.
    let text = String::from_utf8_lossy(&bytes[8..8 + header]).into_owned();
    for shape in ["[8,18446744073709551615]", "[0,18446744073709551615,2]"] {
        let spoiled = text.replace("[8,2]", shape).into_bytes();
        let mut all = (spoiled.len() as u64).to_le_bytes().to_vec();
        all.extend(&spoiled);
        all.extend(&bytes[8 + header..]);
        fs::write(case.path(), all).unwrap();
        problem(&case);
    }
}
