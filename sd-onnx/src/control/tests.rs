//! Opens files and folders, and compares the networks of adapters with diffusers 0.42.1. The values
//! are in `tests/golden/adapters`, made by `adapters.py`.

// A failed `unwrap` fails the test.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::{Path, PathBuf},
};

use half::f16;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use sd_core::{StopToken, schedulers::NoiseSource};
use sd_schedulers::noise::TorchRng;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::files::{ControlFiles, name_of};
use crate::{
    Error,
    config::Config,
    engine::{Engine, Settings},
    graph::{Dialect, Model},
    models::{
        image_prompt::{self, EMBEDS, HIDDEN, ImagePromptConfig, TOKENS},
        t2i_adapter::{self, PICTURE, T2iAdapterConfig},
        unet::feature_name,
    },
    session::{Input, Session},
    weights::Weights,
};

/// The largest error of a network. f32 sums are computed in another order.
const LIMIT: f64 = 1e-5;

fn golden(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    root.join("tests/golden/adapters").join(name)
}

fn json_of(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// Returns the shape and the values of a golden tensor.
fn expected(name: &str) -> (Vec<usize>, Vec<f32>) {
    let bytes = fs::read(golden("golden.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let view = file.tensor(name).unwrap();
    let values = match view.dtype() {
        Dtype::U8 => view.data().iter().map(|&byte| f32::from(byte)).collect(),
        _ => {
            let values = view.data().chunks_exact(4);
            values
                .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
                .collect()
        }
    };
    (view.shape().to_vec(), values)
}

/// A tensor of a file: its name, shape and f16 values.
type Made = (String, Vec<usize>, Vec<u8>);

/// Makes the weights of a network, with today's names or the names of the published files.
fn weights_of(part: &str, names: &str) -> Vec<Made> {
    let recipes = &json_of(&golden("weights.json"))[part];
    let recipes = recipes.as_array().unwrap().iter();
    let made = recipes.map(|recipe| {
        let shape: Vec<usize> = serde_json::from_value(recipe["shape"].clone()).unwrap();
        let mut values = vec![0.0; shape.iter().product()];
        TorchRng::new(recipe["seed"].as_u64().unwrap()).fill(&mut values);
        let [scale, offset] = ["scale", "offset"].map(|key| recipe[key].as_f64().unwrap() as f32);
        let values = values
            .iter()
            .map(|value| f16::from_f32(offset + scale * value));
        let bytes = values.flat_map(f16::to_le_bytes).collect();
        (recipe[names].as_str().unwrap().to_owned(), shape, bytes)
    });
    made.collect()
}

fn write(path: &Path, tensors: &[Made]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (
            name,
            TensorView::new(Dtype::F16, shape.clone(), bytes).unwrap(),
        )
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// Returns the keys and values of an IP-Adapter, which its projection does not use.
fn keys() -> [Made; 2] {
    ["k", "v"].map(|kind| {
        let name = format!("ip_adapter.1.to_{kind}_ip.weight");
        (name, vec![16, 32], vec![0; 16 * 32 * 2])
    })
}

fn engine() -> Engine {
    let settings = Settings {
        threads: 1,
        ..Settings::default()
    };
    Engine::new(settings).unwrap()
}

fn session(model: &Model) -> Session {
    Session::new("test", model, &engine()).unwrap()
}

/// Checks the outputs of a network against golden tensors, by the names of both.
fn check(session: &Session, input: (&str, Input<'_>), outputs: &[(String, String)]) {
    let names: Vec<_> = outputs.iter().map(|(output, _)| output.as_str()).collect();
    let found = session
        .run_all(&[input], &StopToken::new(), &names)
        .unwrap();
    for (found, (_, name)) in found.iter().zip(outputs) {
        let (shape, values) = expected(name);
        // The golden features have a batch of 1 too.
        assert_eq!(found.shape(), shape, "{name}");
        let (mut difference, mut norm) = (0.0, 0.0);
        for (&found, &expected) in found.iter().zip(&values) {
            difference += f64::from(found - expected).powi(2);
            norm += f64::from(expected).powi(2);
        }
        assert!(norm > 0.0, "{name}");
        let error = (difference / norm).sqrt();
        println!("{name}: {error:.1e}");
        assert!(error <= LIMIT, "{name}: {error:.2e}");
    }
}

fn refused(path: &Path) -> String {
    ControlFiles::open(path, None).unwrap_err().to_string()
}

/// Returns the configuration and the graph of a T2I-Adapter.
fn adapter(path: &Path) -> (T2iAdapterConfig, Weights) {
    let ControlFiles::Adapter { config, weights } = ControlFiles::open(path, None).unwrap() else {
        panic!("a T2I-Adapter")
    };
    let config = T2iAdapterConfig::new(&config).unwrap();
    t2i_adapter::check(&config, &weights).unwrap();
    (config, weights)
}

#[test]
fn t2i_adapters_as_diffusers() {
    let folder = tempfile::tempdir().unwrap();
    // The forms of the graph on different providers, all of which ONNX Runtime's CPU provider runs.
    let plain = Dialect {
        plain_attention: true,
        f32_weights: true,
        ..Dialect::default()
    };
    // On x86 processors, convolutions over blocks of channels.
    let own = engine().dialect();
    for part in ["full", "xl", "light"] {
        for names in ["name", "stored"] {
            let path = folder.path().join(format!("{part}-{names}.safetensors"));
            write(&path, &weights_of(part, names));
            let (config, weights) = adapter(&path);
            for dialect in [Dialect::default(), plain, own] {
                let session = session(&t2i_adapter::graph(&config, &weights, dialect).unwrap());
                for index in 0..2 {
                    let (mut shape, mut picture) = expected(&format!("{part}.{index}.picture"));
                    shape.insert(0, 1);
                    picture.iter_mut().for_each(|value| *value /= 255.0);
                    let input = (PICTURE, Input::F32(&shape, &picture));
                    let features = (0..config.outputs().count()).map(|level| {
                        (
                            feature_name(level),
                            format!("{part}.{index}.feature.{level}"),
                        )
                    });
                    check(&session, input, &features.collect::<Vec<_>>());
                }
            }
        }
    }
}

#[test]
fn image_adapters_as_diffusers() {
    let folder = tempfile::tempdir().unwrap();
    let plain = Dialect {
        plain_attention: true,
        ..Dialect::default()
    };
    for (part, input, tokens, name) in [
        ("ip", EMBEDS, Some(4), "an IP-Adapter"),
        ("ip-plus", HIDDEN, Some(6), "an IP-Adapter Plus"),
        ("ip-full", HIDDEN, None, "an IP-Adapter Full Face"),
    ] {
        let path = folder.path().join(format!("{part}.safetensors"));
        write(&path, &[&weights_of(part, "name")[..], &keys()].concat());
        let mut files = vec![path];
        if part == "ip" {
            files.push(golden("ip.bin"));
        }
        for path in files {
            let ControlFiles::Image { weights, encoder } = ControlFiles::open(&path, None).unwrap()
            else {
                panic!("an IP-Adapter")
            };
            assert_eq!(encoder, None);
            assert_eq!(
                weights.shape("ip_adapter.1.to_k_ip.weight"),
                Some(&[16, 32][..])
            );
            let config = ImagePromptConfig::new(&path, &weights).unwrap();
            assert_eq!((config.tokens(), config.context), (tokens, 32));
            assert_eq!(config.takes_hidden(), input == HIDDEN);
            assert_eq!(config.name(), name);
            for dialect in [Dialect::default(), plain] {
                let graph = image_prompt::graph(&config, &weights, dialect).unwrap();
                let (shape, states) = expected(&format!("{part}.states"));
                let states = (input, Input::F32(&shape, &states));
                let outputs = [(TOKENS.to_owned(), format!("{part}.tokens"))];
                check(&session(&graph), states, &outputs);
            }
        }
    }
}

#[test]
fn an_image_adapter_needs_all_tensors_and_no_others() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mine.safetensors");
    let whole = [&weights_of("ip-plus", "name")[..], &keys()].concat();
    let without = |name: &str| {
        let rest = whole.iter().filter(|(found, ..)| found != name);
        rest.cloned().collect::<Vec<_>>()
    };
    for (name, error) in [
        (
            "image_proj.latents",
            "the projection of an IP-Adapter not found",
        ),
        (
            "image_proj.layers.2.1.3.weight",
            "tensor `image_proj.layers.2.1.3.weight` is missing, expected with shape [48, 192]",
        ),
        (
            "ip_adapter.1.to_k_ip.weight",
            "it has no keys for the UNet's attention",
        ),
    ] {
        write(&path, &without(name));
        let found = refused(&path);
        assert!(found.contains(error), "{found}");
    }
    for name in ["image_proj.more.weight", "other.weight"] {
        let more = (name.to_owned(), vec![1], vec![0; 2]);
        write(&path, &[&whole[..], &[more]].concat());
        let found = refused(&path);
        assert!(
            found.contains("the IP-Adapter has no place for 1 of its tensors"),
            "{found}"
        );
        assert!(found.contains(name), "{found}");
    }
    // A head has 64 channels.
    let mut odd = whole.clone();
    for (name, shape, bytes) in &mut odd {
        let rows = match name.rsplit('.').nth(1) {
            Some("to_q") => 100,
            _ => continue,
        };
        shape[0] = rows;
        bytes.truncate(2 * rows * shape[1]);
    }
    write(&path, &odd);
    let found = refused(&path);
    assert!(
        found.contains("has 100 rows, expected a multiple of 64"),
        "{found}"
    );
}

/// Writes the `config.json` of a vision model.
fn write_encoder(folder: &Path, config: Value) -> PathBuf {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    folder.to_path_buf()
}

#[test]
fn the_encoder_of_an_image_adapter_is_found_by_its_width() {
    let folder = tempfile::tempdir().unwrap();
    let root = std::path::absolute(folder.path()).unwrap();
    let [models, xl] = ["models", "sdxl_models"].map(|name| root.join(name));
    let save = |path: &Path, part| {
        write(path, &[&weights_of(part, "name")[..], &keys()].concat());
    };
    let encoder = |path: &Path| {
        let ControlFiles::Image { encoder, .. } = ControlFiles::open(path, None).unwrap() else {
            panic!("an IP-Adapter")
        };
        encoder
    };
    let [of_sd, of_xl] = [
        models.join("ip.safetensors"),
        xl.join("ip-vit-h.safetensors"),
    ];
    for path in [&of_sd, &of_xl] {
        save(path, "ip");
        assert_eq!(encoder(path), None);
    }
    let config = json!({"hidden_size": 99, "projection_dim": 24});
    let small = write_encoder(&models.join("image_encoder"), config);
    let config = json!({"hidden_size": 98, "projection_dim": 25});
    write_encoder(&xl.join("image_encoder"), config);
    for path in [&of_sd, &of_xl] {
        assert_eq!(encoder(path).as_ref(), Some(&small));
    }
    // A projection of hidden states needs their width. A whole CLIP model has two sections.
    let plus = xl.join("plus.safetensors");
    save(&plus, "ip-plus");
    assert_eq!(encoder(&plus), None);
    let section = json!({"hidden_size": 40, "projection_dim": 1});
    let config = json!({"vision_config": section, "projection_dim": 24});
    let whole = write_encoder(&root.join("image_encoder"), config);
    assert_eq!(encoder(&plus).as_ref(), Some(&whole));
    fs::remove_dir_all(&small).unwrap();
    assert_eq!(encoder(&of_xl).as_ref(), Some(&whole));
}

/// Writes a folder of diffusers with the weights of a T2I-Adapter.
fn diffusers_folder(folder: &Path, class: &str, file: &str) {
    let config = json!({
        "_class_name": class, "adapter_type": "full_adapter", "channels": [8, 12, 16, 16],
        "in_channels": 3, "downscale_factor": 8, "num_res_blocks": 2,
    });
    write_encoder(folder, config);
    write(&folder.join(file), &weights_of("full", "name"));
}

#[test]
fn folders_of_diffusers() {
    const FILE: &str = "diffusion_pytorch_model.safetensors";
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mine");
    diffusers_folder(&path, "T2IAdapter", FILE);
    let (config, _) = adapter(&path);
    let outputs: Vec<_> = config.outputs().map(|(channels, _)| channels).collect();
    assert_eq!(outputs, [8, 12, 16, 16]);
    // The file of such a folder is read with the folder's configuration.
    let beside = adapter(&path.join(FILE)).0;
    assert_eq!(beside, config);
    assert_eq!(
        [name_of(&path), name_of(&path.join(FILE))],
        ["mine", "mine"]
    );

    let variant = folder.path().join("variant");
    diffusers_folder(
        &variant,
        "T2IAdapter",
        "diffusion_pytorch_model.fp16.safetensors",
    );
    assert!(ControlFiles::open(&variant, Some("fp16")).is_ok());
    let error = ControlFiles::open(&variant, Some("bf16")).unwrap_err();
    assert!(
        error.to_string().contains("available variants: fp16"),
        "{error}"
    );

    let model = folder.path().join("model");
    diffusers_folder(&model.join("controlnet"), "ControlNetModel", FILE);
    let found = ControlFiles::open(&model, None).unwrap();
    assert!(matches!(found, ControlFiles::Net { .. }));

    for (class, what) in [
        ("ControlNetUnionModel", "SDXL's union ControlNet"),
        (
            "FluxControlNetModel",
            "a ControlNet of a diffusion transformer",
        ),
        (
            "SD3ControlNetModel",
            "a ControlNet of a diffusion transformer",
        ),
        ("ControlNetXSAdapter", "a ControlNet-XS"),
        (
            "UNet2DConditionModel",
            "`_class_name` is \"UNet2DConditionModel\", expected",
        ),
    ] {
        let path = folder.path().join(class);
        diffusers_folder(&path, class, FILE);
        let error = refused(&path);
        assert!(
            error.contains(what) && error.contains("config.json"),
            "{error}"
        );
    }
    let error = refused(folder.path());
    assert!(
        error.contains("a ControlNet or a T2I-Adapter not found"),
        "{error}"
    );
    let error = ControlFiles::open(&folder.path().join("none.safetensors"), None).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
}

#[test]
fn configurations_of_adapters_are_checked() {
    let config = |value: Value| {
        let map = value.as_object().unwrap().clone();
        T2iAdapterConfig::new(&Config::of("config.json".as_ref(), map))
    };
    assert!(config(json!({})).is_ok());
    for (value, key) in [
        (json!({"adapter_type": "style"}), "adapter_type"),
        (json!({"channels": []}), "channels"),
        (
            json!({"channels": [6], "adapter_type": "light_adapter"}),
            "channels",
        ),
        (
            json!({"channels": [8, 8, 8, 9], "adapter_type": "full_adapter_xl"}),
            "channels",
        ),
        (json!({"in_channels": 0}), "in_channels"),
        (json!({"downscale_factor": 1_000_000}), "downscale_factor"),
        (json!({"num_res_blocks": 1_000}), "num_res_blocks"),
    ] {
        let error = config(value).unwrap_err().to_string();
        assert!(error.contains(&format!("`{key}` is")), "{error}");
    }
}

#[test]
fn networks_are_called_as_their_files() {
    let folder: TempDir = tempfile::tempdir().unwrap();
    let inner = folder.path().join("control.v1");
    fs::create_dir(&inner).unwrap();
    assert_eq!(name_of(&inner), "control.v1");
    for (path, name) in [
        ("a/control_v11p_sd15_canny.pth", "control_v11p_sd15_canny"),
        ("a/ip-adapter_sd15.bin", "ip-adapter_sd15"),
        ("a/canny/diffusion_pytorch_model.fp16.safetensors", "canny"),
        (
            "h/models--org--canny/snapshots/0a1b/diffusion_pytorch_model.safetensors",
            "canny",
        ),
        ("a/model_of_mine.safetensors", "model_of_mine"),
        ("model.safetensors", "model"),
    ] {
        assert_eq!(name_of(path.as_ref()), name, "{path}");
    }
}
