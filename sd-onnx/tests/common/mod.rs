//! Random-weight models for the tests, made from the recipes in `tests/golden`.

// Each test file uses only a part of this module. A missing fixture fails the test with a panic.
#![allow(dead_code, clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use sd_onnx::{
    LoraWeight, Pipeline,
    schedulers::{NoiseSource, noise::TorchRng},
};
use sd_text::outside::chain;
use serde_json::Value;

/// The shapes that have golden values. Each is a folder of `tests/golden`.
pub const SHAPES: [&str; 5] = ["two-sample", "four", "three-v", "three-hole", "four-last"];

/// A tensor of a component, in f32.
#[derive(Clone)]
pub struct Tensor {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

/// The tensors of a component, by name.
pub type Tensors = BTreeMap<String, Tensor>;

/// Returns the folder of the small trained model that ships with the examples.
pub fn emoji() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models/emoji")
}

/// Returns the folder of a shape's golden files. Tests of other packages include this file, too, so
/// the path starts from any package's folder.
pub fn golden(shape: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../sd-onnx/tests/golden")
        .join(shape)
}

/// Reads a JSON file from the golden folder of a shape.
pub fn golden_json(shape: &str, file: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(golden(shape).join(file)).unwrap()).unwrap()
}

/// A model with random weights, which tests write to disk in different layouts.
pub struct Model {
    /// The weights of `text_encoder`, `unet` and `vae`.
    pub weights: BTreeMap<&'static str, Tensors>,
    /// The `config.json` of the same three components.
    pub configs: BTreeMap<&'static str, Value>,
    /// The text of `scheduler_config.json`. It stays a text because Python writes `-Infinity` into
    /// some files, which is not valid JSON.
    pub scheduler: String,
}

impl Model {
    /// Creates the model of a shape. Each tensor is `offset + scale · randn(seed)`, rounded to
    /// f16.
    pub fn of_shape(shape: &str) -> Self {
        let recipe = golden_json(shape, "weights.json");
        let component = |name: &'static str| (name, replayed(&recipe[name]));
        let config = |name: &'static str| (name, golden_json(shape, &format!("{name}.json")));
        Self {
            weights: ["text_encoder", "unet", "vae"].map(component).into(),
            configs: ["text_encoder", "unet", "vae"].map(config).into(),
            scheduler: fs::read_to_string(golden(shape).join("scheduler.json")).unwrap(),
        }
    }

    /// Writes the model as diffusers writes a folder today, in f32.
    pub fn write(&self, folder: &Path) {
        self.write_without_weights(folder);
        for (component, tensors) in &self.weights {
            write_tensors(
                &folder.join(component).join(plain_file(component)),
                tensors,
                Dtype::F32,
            );
        }
    }

    /// Writes the configurations and the tokenizer.
    pub fn write_without_weights(&self, folder: &Path) {
        for (component, config) in &self.configs {
            fs::create_dir_all(folder.join(component)).unwrap();
            fs::write(
                folder.join(component).join("config.json"),
                serde_json::to_string_pretty(config).unwrap(),
            )
            .unwrap();
        }
        fs::create_dir_all(folder.join("scheduler")).unwrap();
        fs::write(
            folder.join("scheduler/scheduler_config.json"),
            &self.scheduler,
        )
        .unwrap();
        fs::create_dir_all(folder.join("tokenizer")).unwrap();
        for file in ["vocab.json", "merges.txt", "tokenizer_config.json"] {
            fs::copy(
                golden("tokenizer").join(file),
                folder.join("tokenizer").join(file),
            )
            .unwrap();
        }
    }
}

/// Creates the tensors of a component's recipe. Each is `offset + scale · randn(seed)`, rounded to
/// f16.
pub fn replayed(recipe: &Value) -> Tensors {
    let tensor = |tensor: &Value| {
        let dims: Vec<usize> = tensor["shape"]
            .as_array()
            .unwrap()
            .iter()
            .map(|d| d.as_u64().unwrap() as usize)
            .collect();
        let mut values = vec![0.0; dims.iter().product()];
        TorchRng::new(tensor["seed"].as_u64().unwrap()).fill(&mut values);
        let (scale, offset) = (
            tensor["scale"].as_f64().unwrap() as f32,
            tensor["offset"].as_f64().unwrap() as f32,
        );
        for value in &mut values {
            *value = f16::from_f32(offset + scale * *value).to_f32();
        }
        (
            tensor["name"].as_str().unwrap().to_owned(),
            Tensor {
                shape: dims,
                values,
            },
        )
    };
    recipe.as_array().unwrap().iter().map(tensor).collect()
}

/// Adds the tensors by which the windows of a DAT of `golden/upscalers` are recognised. Other
/// networks stay as they are.
pub fn add_windows(name: &str, tensors: &mut Tensors) {
    let cases = golden_json("upscalers", "cases.json");
    let mut cases = cases["networks"].as_array().unwrap().iter();
    let case = cases.find(|case| case["name"] == name).unwrap();
    let Some(window) = case["window"].as_array() else {
        return;
    };
    let [high, wide] = [0, 1].map(|side| window[side].as_i64().unwrap());
    let places = (1 - high..high).flat_map(|y| (1 - wide..wide).flat_map(move |x| [y, x]));
    let values: Vec<f32> = places.map(|place| place as f32).collect();
    let attention = "layers.0.blocks.0.attn.attns.0";
    let shape = vec![values.len() / 2, 2];
    tensors.insert(format!("{attention}.rpe_biases"), Tensor { shape, values });
    let length = (high * wide) as usize;
    let index = Tensor {
        shape: vec![length; 2],
        values: vec![0.0; length * length],
    };
    tensors.insert(format!("{attention}.relative_position_index"), index);
}

/// Returns the folder of a family's golden files.
pub fn family(shape: &str) -> PathBuf {
    golden("families").join(shape)
}

/// Writes the model of a family as a diffusers folder.
pub fn write_family(shape: &str, folder: &Path) {
    let from = |file: String| family(shape).join(file);
    fs::create_dir_all(folder).unwrap();
    if from("model_index.json".into()).exists() {
        fs::copy(
            from("model_index.json".into()),
            folder.join("model_index.json"),
        )
        .unwrap();
    }
    let recipe = fs::read_to_string(from("weights.json".into())).unwrap();
    let recipe: Value = serde_json::from_str(&recipe).unwrap();
    for component in ["text_encoder", "text_encoder_2", "unet", "vae", "scheduler"] {
        let config = from(format!("{component}.json"));
        if !config.exists() {
            continue;
        }
        let to = folder.join(component);
        fs::create_dir_all(&to).unwrap();
        if component == "scheduler" {
            fs::copy(config, to.join("scheduler_config.json")).unwrap();
            continue;
        }
        fs::copy(config, to.join("config.json")).unwrap();
        let tensors = replayed(&recipe[component]);
        write_tensors(&to.join(plain_file(component)), &tensors, Dtype::F32);
    }
    for (config, tokenizer) in [
        ("tokenizer_config.json", "tokenizer"),
        ("tokenizer_config_2.json", "tokenizer_2"),
    ] {
        if !from(config.into()).exists() {
            continue;
        }
        let to = folder.join(tokenizer);
        fs::create_dir_all(&to).unwrap();
        fs::copy(from(config.into()), to.join("tokenizer_config.json")).unwrap();
        for file in ["vocab.json", "merges.txt"] {
            fs::copy(golden("tokenizer").join(file), to.join(file)).unwrap();
        }
    }
}

/// Returns the name of a component's weight file.
pub fn plain_file(component: &str) -> &'static str {
    if component.starts_with("text_encoder") {
        "model.safetensors"
    } else {
        "diffusion_pytorch_model.safetensors"
    }
}

/// Writes tensors to a safetensors file. `dtype` is f32, f16 or bf16.
pub fn write_tensors(path: &Path, tensors: &Tensors, dtype: Dtype) {
    let stored: Vec<(&String, &Tensor, Vec<u8>)> = tensors
        .iter()
        .map(|(name, tensor)| {
            let values = tensor.values.iter();
            let bytes = match dtype {
                Dtype::F16 => values
                    .flat_map(|&v| f16::from_f32(v).to_le_bytes())
                    .collect(),
                Dtype::BF16 => values
                    .flat_map(|&v| bf16::from_f32(v).to_le_bytes())
                    .collect(),
                Dtype::F32 => values.flat_map(|v| v.to_le_bytes()).collect(),
                other => panic!("no test writes {other:?}"),
            };
            (name, tensor, bytes)
        })
        .collect();
    let views = stored.iter().map(|(name, tensor, bytes)| {
        (
            name,
            TensorView::new(dtype, tensor.shape.clone(), bytes).unwrap(),
        )
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// A safetensors file of golden values, read in f32.
pub struct Golden(Vec<u8>);

impl Golden {
    pub fn of_shape(shape: &str) -> Self {
        Self::of_file(&golden(shape).join("golden.safetensors"))
    }

    pub fn of_file(path: &Path) -> Self {
        Self(fs::read(path).unwrap())
    }

    /// Returns the shape and the values of a tensor. Panics if there is none.
    pub fn tensor(&self, name: &str) -> (Vec<usize>, Vec<f32>) {
        self.find(name)
            .unwrap_or_else(|| panic!("no golden {name}"))
    }

    /// Returns the shape and the values of a tensor, or `None` if there is none.
    pub fn find(&self, name: &str) -> Option<(Vec<usize>, Vec<f32>)> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let view = file.tensor(name).ok()?;
        let data = view.data();
        let values = match view.dtype() {
            Dtype::F32 => data
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
                .collect(),
            Dtype::F16 => data
                .chunks_exact(2)
                .map(|b| f16::from_le_bytes(b.try_into().unwrap()).to_f32())
                .collect(),
            Dtype::U8 => data.iter().map(|&byte| byte.into()).collect(),
            other => panic!("{name} is {other:?}"),
        };
        Some((view.shape().to_vec(), values))
    }
}

/// Loads a model with the default settings of the builder.
pub fn load(folder: &Path) -> Pipeline {
    sd_onnx::builder()
        .load(folder)
        .unwrap_or_else(|error| panic!("{}: {}", folder.display(), chain(&error)))
}

/// Returns the relative L2 error of `found` against `expected`.
pub fn relative_error<'a>(found: impl IntoIterator<Item = &'a f32>, expected: &[f32]) -> f64 {
    let (mut difference, mut norm, mut count) = (0.0, 0.0, 0);
    for (&f, &e) in found.into_iter().zip(expected) {
        difference += f64::from(f - e).powi(2);
        norm += f64::from(e).powi(2);
        count += 1;
    }
    assert_eq!(count, expected.len());
    assert!(norm > 0.0, "a golden of zeros proves nothing");
    (difference / norm).sqrt()
}

/// A run of a golden model with LoRAs.
pub struct LoraRun {
    /// The LoRAs, in the order in which they are merged.
    pub loras: Vec<(PathBuf, LoraWeight)>,
    /// The name of the run in the model's `cases.json`.
    pub run: String,
    /// The final latents.
    pub latents: Vec<f32>,
}

/// Returns the runs with LoRAs of a model, by its folder in `tests/golden`.
pub fn lora_runs(base: &str) -> Vec<LoraRun> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let number = |value: &Value| value.as_f64().unwrap() as f32;
    let expected = Golden::of_file(&golden("lora").join("expected.safetensors"));
    let cases = golden_json("lora", "cases.json");
    let mut runs = Vec::new();
    let of_base = |case: &&Value| case["base"] == base;
    for case in cases.as_array().unwrap().iter().filter(of_base) {
        for run in case["runs"].as_array().unwrap() {
            let mut weights = case["weights"].as_array().unwrap().iter();
            let used = weights.find(|used| used["label"] == run["label"]).unwrap();
            let adapters = used["adapters"].as_array().unwrap();
            let lora = |adapter: &Value| {
                let (unet, text_encoder) = (number(&adapter["unet"]), number(&adapter["te"]));
                let file = golden("lora").join(text(&adapter["file"]));
                (file, LoraWeight { text_encoder, unet })
            };
            let (values, label, name) = (
                text(&case["values"]),
                text(&run["label"]),
                text(&run["run"]),
            );
            let (_, latents) = expected.tensor(&format!("{values}/{label}/{name}.latents"));
            runs.push(LoraRun {
                loras: adapters.iter().map(lora).collect(),
                run: name,
                latents,
            });
        }
    }
    assert!(!runs.is_empty(), "{base} has no runs with LoRAs");
    runs
}
