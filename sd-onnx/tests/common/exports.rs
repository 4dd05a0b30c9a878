//! Folders of ONNX graphs as other tools export them, made by `tests/golden/exports.py`.

#![allow(dead_code, clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use flate2::read::GzDecoder;
use half::f16;
use serde_json::Value;

use crate::common::{Tensor, family, golden, golden_json, replayed};

/// Returns the family whose weights an export has.
pub fn family_of(name: &str) -> String {
    let record = golden_json("exports", &format!("{name}/weights.json"));
    record["family"].as_str().unwrap().to_owned()
}

/// Writes an export as the tool wrote it, byte for byte, with the tokenizers and the scheduler of
/// its family. Returns the folder.
pub fn write_export(name: &str, folder: &Path) -> PathBuf {
    let folder = folder.join(name);
    let stored = golden("exports").join(name);
    let record = golden_json("exports", &format!("{name}/weights.json"));
    let family = family(record["family"].as_str().unwrap());
    let recipe: Value =
        serde_json::from_str(&fs::read_to_string(family.join("weights.json")).unwrap()).unwrap();
    let tensors: BTreeMap<_, _> = recipe
        .as_object()
        .unwrap()
        .iter()
        .map(|(component, recipe)| (component.as_str(), replayed(recipe)))
        .collect();
    for entry in fs::read_dir(&stored).unwrap() {
        let path = entry.unwrap().path();
        let file = path.file_name().unwrap().to_str().unwrap();
        if file == "weights.json" {
            continue;
        }
        if file == "model_index.json" {
            fs::create_dir_all(&folder).unwrap();
            fs::copy(&path, folder.join(file)).unwrap();
            continue;
        }
        let (component, file) = file.split_once('.').unwrap();
        let to = folder.join(component);
        fs::create_dir_all(&to).unwrap();
        if file == "json" {
            fs::copy(&path, to.join("config.json")).unwrap();
            continue;
        }
        let mut bytes = Vec::new();
        let mut packed = GzDecoder::new(fs::File::open(&path).unwrap());
        packed.read_to_end(&mut bytes).unwrap();
        let file = file.strip_suffix(".gz").unwrap();
        let of = match component.starts_with("vae") {
            true => "vae",
            false => component,
        };
        for place in record["places"][component][file].as_array().unwrap() {
            let number = |index: usize| place[index].as_u64().unwrap() as usize;
            let (at, length) = (number(0), number(1));
            let tensor = &tensors[of][place[2].as_str().unwrap()];
            let values = encoded(tensor, length, place[3].as_bool().unwrap());
            bytes[at..at + length].copy_from_slice(&values);
        }
        fs::write(to.join(file), bytes).unwrap();
    }
    fs::create_dir_all(folder.join("scheduler")).unwrap();
    let scheduler = folder.join("scheduler/scheduler_config.json");
    fs::copy(family.join("scheduler.json"), scheduler).unwrap();
    for (config, tokenizer) in [
        ("tokenizer_config.json", "tokenizer"),
        ("tokenizer_config_2.json", "tokenizer_2"),
    ] {
        if family.join(config).exists() {
            let to = folder.join(tokenizer);
            fs::create_dir_all(&to).unwrap();
            fs::copy(family.join(config), to.join("tokenizer_config.json")).unwrap();
            for file in ["vocab.json", "merges.txt"] {
                fs::copy(golden("tokenizer").join(file), to.join(file)).unwrap();
            }
        }
    }
    folder
}

/// Encodes a tensor to `length` bytes. The length decides between f32 and f16.
fn encoded(tensor: &Tensor, length: usize, transposed: bool) -> Vec<u8> {
    let mut values = tensor.values.clone();
    if transposed {
        let [rows, columns] = tensor.shape[..] else {
            panic!("the tensor is not a matrix")
        };
        for row in 0..rows {
            for column in 0..columns {
                values[column * rows + row] = tensor.values[row * columns + column];
            }
        }
    }
    let bytes: Vec<u8> = match length == 4 * values.len() {
        true => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        false => {
            let halves = values.iter().map(|&v| f16::from_f32(v));
            halves.flat_map(f16::to_le_bytes).collect()
        }
    };
    assert_eq!(bytes.len(), length);
    bytes
}
