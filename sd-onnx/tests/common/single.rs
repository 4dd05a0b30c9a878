//! Models as single files, and the folders of the same models, from
//! `tests/golden/single_files.json.gz`.
//!
//! A test file that uses this module must also have `mod common;`.

// Each test file uses only a part of this module. A missing fixture fails the test with a panic.
#![allow(dead_code, clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    io::Read,
    path::Path,
    sync::LazyLock,
};

use half::{bf16, f16};
use safetensors::{Dtype, tensor::TensorView};
use sd_onnx::schedulers::{NoiseSource, noise::TorchRng};
use serde_json::{Value, json};

use crate::common::{Tensor, Tensors, family, golden, plain_file, write_tensors};

/// The golden tables.
static TABLES: LazyLock<Value> = LazyLock::new(|| {
    let file = fs::File::open(golden("single_files.json.gz")).unwrap();
    let mut text = String::new();
    flate2::read::GzDecoder::new(file)
        .read_to_string(&mut text)
        .unwrap();
    serde_json::from_str(&text).unwrap()
});

/// Lists the families that have a UNet. Their models are small, with widths from which a checkpoint
/// file can be recognised.
pub fn families() -> Vec<&'static str> {
    let families = TABLES["families"].as_object().unwrap().iter();
    let whole = families.filter(|(_, table)| !table["configs"]["unet"].is_null());
    whole.map(|(name, _)| name.as_str()).collect()
}

/// Options for writing a single file.
pub struct Options {
    /// The type of all weights.
    pub dtype: Dtype,
    /// Whether tensors have diffusers' names, prefixed with the name of their component. Default:
    /// false.
    pub todays_names: bool,
    /// The components to leave out.
    pub without: Vec<&'static str>,
    /// Whether to add the tensors that published files have and no network uses. Default: true.
    pub extra: bool,
    /// Renames a tensor of the file. `None` leaves the tensor out.
    pub rename: fn(&str) -> Option<String>,
    /// Additional metadata for the header.
    pub metadata: Vec<(&'static str, &'static str)>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            dtype: Dtype::F32,
            todays_names: false,
            without: Vec::new(),
            extra: true,
            rename: |name| Some(name.to_owned()),
            metadata: Vec::new(),
        }
    }
}

/// Creates the weights of a family's components, by today's names. Each tensor is
/// `offset + scale · randn`, rounded to f16.
pub fn single_weights(name: &str) -> BTreeMap<String, Tensors> {
    let mut weights: BTreeMap<String, Tensors> = BTreeMap::new();
    for (seed, row) in rows(name).iter().enumerate() {
        let shape = sizes(&row[2]);
        let mut values = vec![0.0; shape.iter().product()];
        TorchRng::new(seed as u64 + 1).fill(&mut values);
        let [scale, offset] = [5, 6].map(|at| row[at].as_f64().unwrap() as f32);
        for value in &mut values {
            *value = f16::from_f32(offset + scale * *value).to_f32();
        }
        let component = weights.entry(text(&row[0]).to_owned()).or_default();
        component.insert(text(&row[1]).to_owned(), Tensor { shape, values });
    }
    weights
}

/// Writes a family as a diffusers folder in f32. `model_index.json` and the scheduler are the
/// golden ones of the family, so they can differ from what a single file implies.
pub fn write_single_folder(name: &str, folder: &Path) {
    for (component, tensors) in single_weights(name) {
        let to = folder.join(&component);
        fs::create_dir_all(&to).unwrap();
        let config = &TABLES["families"][name]["configs"][&component];
        fs::write(to.join("config.json"), config.to_string()).unwrap();
        write_tensors(&to.join(plain_file(&component)), &tensors, Dtype::F32);
    }
    let from = family(name);
    if from.join("model_index.json").exists() {
        fs::copy(
            from.join("model_index.json"),
            folder.join("model_index.json"),
        )
        .unwrap();
        fs::create_dir_all(folder.join("scheduler")).unwrap();
        let scheduler = folder.join("scheduler/scheduler_config.json");
        fs::copy(from.join("scheduler.json"), scheduler).unwrap();
    }
    for suffix in ["", "_2"] {
        let config = from.join(format!("tokenizer_config{suffix}.json"));
        if !config.exists() {
            continue;
        }
        let to = folder.join(format!("tokenizer{suffix}"));
        fs::create_dir_all(&to).unwrap();
        fs::copy(config, to.join("tokenizer_config.json")).unwrap();
        for file in ["vocab.json", "merges.txt"] {
            fs::copy(golden("tokenizer").join(file), to.join(file)).unwrap();
        }
    }
}

/// Writes a family as one safetensors file, with the weights of [`write_single_folder`].
pub fn write_single_file(name: &str, path: &Path, options: &Options) {
    let table = &TABLES["families"][name];
    let mut weights = single_weights(name);
    let mut file = Tensors::new();
    // The query, key and value of OpenCLIP's fused matrices, by the name of the matrix.
    let mut fused: HashMap<String, Vec<(String, Tensor)>> = HashMap::new();
    for row in rows(name) {
        let component = text(&row[0]);
        if options.without.contains(&component) {
            continue;
        }
        let today = text(&row[1]);
        let mut tensor = weights.get_mut(component).unwrap().remove(today).unwrap();
        let stored = text(&row[3]).to_owned();
        if options.todays_names {
            file.insert(format!("{component}.{today}"), tensor);
            continue;
        }
        match text(&row[4]) {
            view @ ("q" | "k" | "v") => {
                fused
                    .entry(stored)
                    .or_default()
                    .push((view.to_owned(), tensor));
                continue;
            }
            "transposed" => tensor = transposed(&tensor),
            "point" => tensor.shape.extend([1, 1]),
            _ => {}
        }
        file.insert(stored, tensor);
    }
    for (stored, mut parts) in fused {
        let place = |(view, _): &(String, Tensor)| "qkv".find(view.as_str());
        parts.sort_by_key(place);
        assert_eq!(parts.len(), 3, "{stored}");
        let mut shape = parts[0].1.shape.clone();
        shape[0] *= 3;
        let values = parts
            .into_iter()
            .flat_map(|(_, part)| part.values)
            .collect();
        file.insert(stored, Tensor { shape, values });
    }
    if options.extra && !options.todays_names {
        for (stored, shape) in table["extra"].as_object().unwrap() {
            let shape = sizes(shape);
            let values = vec![0.5; shape.iter().product()];
            file.insert(stored.clone(), Tensor { shape, values });
        }
    }
    let renamed = file.into_iter().filter_map(|(name, tensor)| {
        let name = (options.rename)(&name)?;
        Some((name, tensor))
    });
    let renamed: Tensors = renamed.collect();
    let marks = table["marks"].as_object().into_iter().flatten();
    let marks: Vec<(String, Vec<f32>)> = marks
        .map(|(name, values)| {
            (
                name.clone(),
                serde_json::from_value(values.clone()).unwrap(),
            )
        })
        .collect();
    let metadata = table["metadata"].as_object().into_iter().flatten();
    let mut metadata: HashMap<String, String> = metadata
        .map(|(key, value)| (key.clone(), text(value).to_owned()))
        .collect();
    let more = options.metadata.iter();
    metadata.extend(more.map(|(key, value)| (key.to_string(), value.to_string())));
    write(path, &renamed, &marks, metadata, options.dtype);
}

/// Writes weights in `dtype` and marker tensors in f32.
fn write(
    path: &Path,
    tensors: &Tensors,
    marks: &[(String, Vec<f32>)],
    metadata: HashMap<String, String>,
    dtype: Dtype,
) {
    let bytes = |values: &[f32], dtype| -> Vec<u8> {
        let values = values.iter();
        match dtype {
            Dtype::F32 => values.flat_map(|v| v.to_le_bytes()).collect(),
            Dtype::F16 => values
                .flat_map(|&v| f16::from_f32(v).to_le_bytes())
                .collect(),
            Dtype::BF16 => values
                .flat_map(|&v| bf16::from_f32(v).to_le_bytes())
                .collect(),
            other => panic!("no test writes {other:?}"),
        }
    };
    let weights = tensors.iter().map(|(name, tensor)| {
        let bytes = bytes(&tensor.values, dtype);
        (name.clone(), dtype, tensor.shape.clone(), bytes)
    });
    let marks = marks.iter().map(|(name, values)| {
        let bytes = bytes(values, Dtype::F32);
        (name.clone(), Dtype::F32, vec![values.len()], bytes)
    });
    let stored: Vec<_> = weights.chain(marks).collect();
    let views = stored.iter().map(|(name, dtype, shape, bytes)| {
        (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, Some(metadata), path).unwrap();
}

fn transposed(tensor: &Tensor) -> Tensor {
    let [rows, columns] = tensor.shape[..] else {
        panic!("expected a matrix, found {:?}", tensor.shape)
    };
    let at = |i: usize| tensor.values[i % rows * columns + i / rows];
    Tensor {
        shape: vec![columns, rows],
        values: (0..rows * columns).map(at).collect(),
    }
}

fn rows(name: &str) -> &'static Vec<Value> {
    let rows = TABLES["families"][name]["tensors"].as_array();
    rows.unwrap_or_else(|| panic!("no family {name}: {}", json!(families())))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn sizes(value: &Value) -> Vec<usize> {
    serde_json::from_value(value.clone()).unwrap()
}

/// A tensor of a ControlNet: today's name, the name in the authors' files, and the values.
pub type ControlTensor = (String, String, Tensor);

/// Returns a ControlNet for the UNet of a family: its configuration, and its tensors. They are the
/// first half of the UNet, and the layers that only a ControlNet has, which have random values.
pub fn control_net(name: &str) -> (Value, Vec<ControlTensor>) {
    let unet = &TABLES["families"][name]["configs"]["unet"];
    let mut config = unet.clone();
    config["_class_name"] = json!("ControlNetModel");
    config["conditioning_embedding_out_channels"] = json!([16, 32, 96, 256]);
    for key in ["up_block_types", "out_channels", "time_cond_proj_dim"] {
        config.as_object_mut().unwrap().remove(key);
    }
    let mut weights = single_weights(name);
    let mut tensors = Vec::new();
    for row in rows(name).iter().filter(|row| row[0] == "unet") {
        let today = text(&row[1]);
        let second_half = [
            "up_blocks.",
            "conv_norm_out.",
            "conv_out.",
            "time_embedding.cond_proj.",
        ];
        if second_half.iter().any(|start| today.starts_with(start)) {
            continue;
        }
        let mut tensor = weights.get_mut("unet").unwrap().remove(today).unwrap();
        if today == "add_embedding.linear_1.weight" {
            // Files of ControlNets do not contain the width of a size's sinusoids, so that it is
            // the one of SDXL.
            let of_sizes = 6 * unet["addition_time_embed_dim"].as_u64().unwrap() as usize;
            let width = tensor.shape[1] - of_sizes + 6 * 256;
            config["addition_time_embed_dim"] = json!(256);
            config["projection_class_embeddings_input_dim"] = json!(width);
            tensor.shape[1] = width;
            tensor.values = vec![0.0; tensor.shape[0] * width];
            TorchRng::new(999).fill(&mut tensor.values);
            tensor.values.iter_mut().for_each(|value| *value *= 0.03);
        }
        let stored = text(&row[3]).replace("model.diffusion_model.", "control_model.");
        tensors.push((today.to_owned(), stored, tensor));
    }
    let mut seed = 1000;
    let mut layer = |today: String, stored: String, [output, input, kernel]: [usize; 3]| {
        for (end, shape) in [
            ("weight", vec![output, input, kernel, kernel]),
            ("bias", vec![output]),
        ] {
            let mut values = vec![0.0; shape.iter().product()];
            seed += 1;
            TorchRng::new(seed).fill(&mut values);
            let scale = 1.0 / (input as f32 * (kernel * kernel) as f32).sqrt();
            values.iter_mut().for_each(|value| *value *= scale);
            let tensor = Tensor { shape, values };
            tensors.push((format!("{today}.{end}"), format!("{stored}.{end}"), tensor));
        }
    };
    let sides: Vec<_> = sizes(&unet["block_out_channels"]);
    let resnets = unet["layers_per_block"].as_u64().unwrap() as usize;
    let mut outputs = vec![sides[0]];
    for (i, &channels) in sides.iter().enumerate() {
        let halves = usize::from(i + 1 < sides.len());
        outputs.extend(vec![channels; resnets + halves]);
    }
    for (i, &channels) in outputs.iter().enumerate() {
        let stored = format!("control_model.zero_convs.{i}.0");
        layer(
            format!("controlnet_down_blocks.{i}"),
            stored,
            [channels, channels, 1],
        );
    }
    let last = sides[sides.len() - 1];
    let stored = "control_model.middle_block_out.0".to_owned();
    layer("controlnet_mid_block".to_owned(), stored, [last, last, 1]);
    let embedded = [
        ("conv_in", [16, 3]),
        ("blocks.0", [16, 16]),
        ("blocks.1", [32, 16]),
        ("blocks.2", [32, 32]),
        ("blocks.3", [96, 32]),
        ("blocks.4", [96, 96]),
        ("blocks.5", [256, 96]),
        ("conv_out", [sides[0], 256]),
    ];
    for (i, (today, [output, input])) in embedded.into_iter().enumerate() {
        let stored = format!("control_model.input_hint_block.{}", 2 * i);
        let today = format!("controlnet_cond_embedding.{today}");
        layer(today, stored, [output, input, 3]);
    }
    (config, tensors)
}
