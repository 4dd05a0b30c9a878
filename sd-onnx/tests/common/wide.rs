//! Models of each family with widths that one file can tell, from the tables in
//! `golden/single_files.json.gz`.

// A fixture that is not there fails the test.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, fs, io::Read, path::Path};

use flate2::read::GzDecoder;
use safetensors::Dtype;
use sd_onnx::schedulers::{NoiseSource, TorchRng};
use serde_json::Value;

use crate::common::{Tensor, Tensors, family, golden, plain_file, write_tensors};

/// The tables by family.
pub fn tables() -> Value {
    let mut text = String::new();
    let file = fs::File::open(golden("single_files.json.gz")).unwrap();
    GzDecoder::new(file).read_to_string(&mut text).unwrap();
    let mut tables: Value = serde_json::from_str(&text).unwrap();
    tables["families"].take()
}

/// The names that a published file has for the weights of a table, without duplicates.
pub fn stored_names(table: &Value) -> Vec<String> {
    let rows = table["tensors"].as_array().unwrap().iter();
    let mut names: Vec<_> = rows
        .map(|row| row[3].as_str().unwrap().to_owned())
        .collect();
    names.sort();
    names.dedup();
    names
}

/// Writes the model of a table as a diffusers folder.
pub fn write_wide(name: &str, table: &Value, folder: &Path) {
    let mut components: BTreeMap<&str, Tensors> = BTreeMap::new();
    for (seed, row) in table["tensors"].as_array().unwrap().iter().enumerate() {
        let shape: Vec<usize> = serde_json::from_value(row[2].clone()).unwrap();
        let mut values = vec![0.0; shape.iter().product()];
        TorchRng::new(seed as u64).fill(&mut values);
        let [scale, offset] = [5, 6].map(|at| row[at].as_f64().unwrap() as f32);
        values
            .iter_mut()
            .for_each(|value| *value = offset + scale * *value);
        let component = components.entry(row[0].as_str().unwrap()).or_default();
        let name = row[1].as_str().unwrap().to_owned();
        component.insert(name, Tensor { shape, values });
    }
    for (component, tensors) in components {
        let to = folder.join(component);
        fs::create_dir_all(&to).unwrap();
        let config = table["configs"][component].to_string();
        fs::write(to.join("config.json"), config).unwrap();
        write_tensors(&to.join(plain_file(component)), &tensors, Dtype::F32);
    }
    fs::create_dir_all(folder.join("scheduler")).unwrap();
    for (from, to) in [
        ("scheduler.json", "scheduler/scheduler_config.json"),
        ("model_index.json", "model_index.json"),
    ] {
        fs::copy(family(name).join(from), folder.join(to)).unwrap();
    }
    for (config, tokenizer) in [
        ("tokenizer_config.json", "tokenizer"),
        ("tokenizer_config_2.json", "tokenizer_2"),
    ] {
        let config = family(name).join(config);
        if !config.exists() {
            continue;
        }
        let to = folder.join(tokenizer);
        fs::create_dir_all(&to).unwrap();
        fs::copy(config, to.join("tokenizer_config.json")).unwrap();
        for file in ["vocab.json", "merges.txt"] {
            fs::copy(golden("tokenizer").join(file), to.join(file)).unwrap();
        }
    }
}
