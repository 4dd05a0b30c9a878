//! Tests the helper that writes a model as one file: the file must have the numbers of the folder.

// In tests, a panic reports the failure.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/single.rs"]
mod single;

use std::fs;

use safetensors::{Dtype, SafeTensors};

use single::{Options, families, single_weights, write_single_file, write_single_folder};

/// Returns the shape and the values of a tensor in a file.
fn values(bytes: &[u8], name: &str) -> (Vec<usize>, Vec<f32>) {
    let file = SafeTensors::deserialize(bytes).unwrap();
    let view = file.tensor(name).unwrap();
    assert_eq!(view.dtype(), Dtype::F32);
    let values = view.data().chunks_exact(4);
    let values = values.map(|b| f32::from_le_bytes(b.try_into().unwrap()));
    (view.shape().to_vec(), values.collect())
}

#[test]
fn a_file_has_the_numbers_of_the_folder_under_its_own_names() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    write_single_file("refiner", &path, &Options::default());
    write_single_folder("refiner", folder.path());
    let file = fs::read(&path).unwrap();
    let text = fs::read(folder.path().join("text_encoder_2/model.safetensors")).unwrap();

    let (shape, whole) = values(
        &file,
        "conditioner.embedders.0.model.transformer.resblocks.1.attn.in_proj_weight",
    );
    assert_eq!(shape, [192, 64]);
    for (i, part) in ["q", "k", "v"].into_iter().enumerate() {
        let name = format!("encoder.layers.1.self_attn.{part}_proj.weight");
        let (shape, part) = values(&text, &name);
        assert_eq!(shape, [64, 64]);
        assert_eq!(part, whole[i * 4096..(i + 1) * 4096]);
    }
    let (shape, projection) = values(&file, "conditioner.embedders.0.model.text_projection");
    let (of_folder, expected) = values(&text, "text_projection.weight");
    assert_eq!((shape, of_folder), (vec![64, 96], vec![96, 64]));
    for row in 0..64 {
        for column in 0..96 {
            assert_eq!(projection[row * 96 + column], expected[column * 64 + row]);
        }
    }
    let weights = single_weights("refiner");
    let name = "model.diffusion_model.input_blocks.0.0.weight";
    assert_eq!(
        values(&file, name).1,
        weights["unet"]["conv_in.weight"].values
    );
    let (shape, _) = values(&file, "first_stage_model.decoder.mid.attn_1.q.weight");
    assert_eq!(shape[2..], [1, 1]);
}

#[test]
fn every_family_can_be_written() {
    assert!(families().len() >= 22, "{:?}", families());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let options = Options {
        dtype: Dtype::F16,
        without: vec!["vae"],
        metadata: vec![("ss_v_parameterization", "True")],
        ..Options::default()
    };
    write_single_file("bk-small", &path, &options);
    let file = fs::read(&path).unwrap();
    let (_, header) = SafeTensors::read_metadata(&file).unwrap();
    let metadata = header.metadata().as_ref().unwrap();
    assert_eq!(metadata["ss_v_parameterization"], "True");
    let tensors = header.tensors();
    assert!(
        !tensors
            .keys()
            .any(|name| name.starts_with("first_stage_model."))
    );
    assert!(tensors.keys().any(|name| name == "betas"));
    assert!(tensors.values().all(|info| info.dtype == Dtype::F16));
}
