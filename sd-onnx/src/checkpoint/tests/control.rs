//! ControlNets, T2I-Adapters and IP-Adapters. Their names are checked against
//! `tests/golden/control/names.json.gz` and `adapters/names.json.gz`, whose names were verified with
//! diffusers' own conversions.

use super::*;
use crate::{
    config::Config,
    graph::Dialect,
    models::{
        control_net::{self, ControlNetConfig},
        image_prompt::{self, ImagePromptConfig},
        t2i_adapter::{self, T2iAdapterConfig},
    },
    weights::{Place, Type, Weights},
};

/// The golden tables.
static NETS: LazyLock<Value> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut all = Map::new();
    for name in ["control", "adapters"] {
        let file = std::fs::File::open(folder.join(name).join("names.json.gz")).unwrap();
        let mut text = String::new();
        let mut file = flate2::read::GzDecoder::new(file);
        file.read_to_string(&mut text).unwrap();
        let tables: Map<String, Value> = serde_json::from_str(&text).unwrap();
        all.extend(tables);
    }
    all.into()
});

const NAMES: [&str; 5] = ["sd1", "sd2", "xl", "xl-mid", "xl-small"];

/// Returns the tensors of a network: the current name, the shape and the name in a file without a
/// prefix.
fn rows_of(net: &str) -> Vec<(String, Vec<usize>, String)> {
    let rows = NETS[net]["tensors"].as_array().unwrap().iter();
    rows.map(|row| {
        let [today, stored] = [0, 1].map(|at| row[at].as_str().unwrap());
        let stored = stored.strip_prefix("control_model.").unwrap_or(stored);
        (today.to_owned(), sizes(&row[2]), stored.to_owned())
    })
    .collect()
}

/// Returns the file of a ControlNet with latent diffusion's names.
fn made(net: &str, prefix: &str) -> Made {
    let shapes = rows_of(net)
        .into_iter()
        .map(|(_, shape, stored)| (format!("{prefix}{stored}"), shape));
    Made {
        shapes: shapes.collect(),
        ..Made::default()
    }
}

fn read_made(made: &Made) -> Result<ControlFile, String> {
    let found = made.with(read_control);
    found.map_err(|problem| problem.to_string())
}

fn one(names: &[&str]) -> Made {
    let names: Vec<_> = names.iter().map(|&name| (name, &[1][..])).collect();
    Made::of(&names)
}

#[test]
fn names_of_control_nets_are_those_that_diffusers_converts() {
    for net in NAMES {
        for prefix in ["", "control_model."] {
            let made = made(net, prefix);
            assert_eq!(made.kind(), Kind::ControlNet);
            let found = read_made(&made).unwrap();
            assert_eq!(found.kind, ControlKind::Net);
            assert_eq!(found.component.unused, [""; 0], "{net}");
            assert_eq!(found.warnings, [""; 0], "{net}");
            let mut expected: Vec<_> = rows_of(net)
                .into_iter()
                .map(|(name, _, stored)| Mapped {
                    name,
                    stored: format!("{prefix}{stored}"),
                    view: View::Whole,
                })
                .collect();
            expected.sort_by(|a, b| a.name.cmp(&b.name));
            assert_eq!(found.component.tensors, expected, "{net}");
        }
    }
}

#[test]
fn diffusers_names_are_kept() {
    for net in NAMES {
        let shapes = rows_of(net)
            .into_iter()
            .map(|(name, shape, _)| (name, shape));
        let today = Made {
            shapes: shapes.collect(),
            ..Made::default()
        };
        let found = read_made(&today).unwrap().component;
        assert_eq!(found.unused, [""; 0], "{net}");
        assert!(
            found
                .tensors
                .iter()
                .all(|tensor| tensor.name == tensor.stored),
            "{net}"
        );
        let expected = read_made(&made(net, "")).unwrap().component;
        assert_eq!(found.config, expected.config, "{net}");
    }
}

fn config(map: &Map<String, Value>) -> ControlNetConfig {
    let config = Config::of("config.json".as_ref(), map.clone());
    ControlNetConfig::new(&config).unwrap()
}

#[test]
fn shapes_make_the_networks_of_diffusers_configurations() {
    for net in NAMES {
        let found = config(&read_made(&made(net, "")).unwrap().component.config);
        let expected = config(NETS[net]["config"].as_object().unwrap());
        // Levels without attention can have any number of heads and of transformer layers.
        if !["xl-mid", "xl-small"].contains(&net) {
            assert_eq!(found, expected, "{net}");
        }
        let shapes = |config: &ControlNetConfig| config.unet.residual_shapes([64, 64]);
        assert_eq!(shapes(&found), shapes(&expected), "{net}");
        assert_eq!(found.unet.inputs, expected.unet.inputs, "{net}");
        let mut weights = Weights::empty("net.safetensors".as_ref());
        for (name, shape, _) in rows_of(net) {
            weights.place(&name, Type::F16, &shape, Place::Memory([].into()));
        }
        let write = |weights: &Weights| {
            control_net::embedding(&found, weights, Dialect::default())?;
            control_net::graph(&found, weights, Dialect::default()).map(drop)
        };
        let checked = weights.check(control_net::CLASS, |_| false, write);
        checked.unwrap_or_else(|error| panic!("{net}: {error}"));
    }
}

#[test]
fn a_file_with_the_whole_model_and_unknown_tensors() {
    let mut made = made("sd1", "control_model.");
    for name in [
        "model.diffusion_model.input_blocks.0.0.weight",
        "first_stage_model.encoder.conv_in.weight",
        "alphas_cumprod",
    ] {
        made.shapes.insert(name.to_owned(), vec![1]);
    }
    let found = read_made(&made).unwrap();
    assert_eq!(found.component.tensors.len(), rows_of("sd1").len());
    assert_eq!(
        found.warnings,
        [
            "2 tensors of the file do not belong to the ControlNet, and are ignored: \
             first_stage_model.encoder.conv_in.weight, \
             model.diffusion_model.input_blocks.0.0.weight"
        ]
    );
    for name in [
        "control_model.input_blocks.1.0.new.weight",
        "control_model.output_blocks.0.0.in_layers.0.weight",
        "control_model.out.0.weight",
        "control_model.input_hint_block.1.weight",
        "control_model.zero_convs.0.1.weight",
    ] {
        let mut made = made.clone();
        made.shapes.insert(name.to_owned(), vec![1]);
        let found = read_made(&made).unwrap();
        assert_eq!(found.component.unused, [name]);
    }
}

/// Writes a safetensors file with these shapes. Its numbers are zeros that take no space.
fn write_sparse(path: &Path, made: &Made) {
    let mut offset = 0;
    let mut header = Map::new();
    for (name, shape) in &made.shapes {
        let end = offset + 2 * shape.iter().product::<usize>();
        let entry = serde_json::json!({
            "dtype": "F16", "shape": shape, "data_offsets": [offset, end],
        });
        header.insert(name.clone(), entry);
        offset = end;
    }
    let header = Value::from(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.bytes());
    let length = bytes.len() + offset;
    std::fs::write(path, bytes).unwrap();
    let file = std::fs::OpenOptions::new().append(true).open(path).unwrap();
    file.set_len(length as u64).unwrap();
}

#[test]
fn published_files_are_inspected_as_they_are_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mine.safetensors");
    for (net, prefix, family) in [
        ("sd1", "control_model.", "Stable Diffusion 1.x"),
        ("sd2", "", "Stable Diffusion 2.x"),
        ("xl", "", "SDXL"),
        ("xl-small", "control_model.", "SDXL"),
    ] {
        let mut made = made(net, prefix);
        write_sparse(&path, &made);
        let found = crate::inspect(&path).unwrap();
        assert_eq!(found.problems, [""; 0], "{net}");
        assert_eq!(found.kind, "a ControlNet");
        let part = &found.parts[0];
        assert_eq!(
            (part.name.as_str(), part.tensors),
            ("controlnet", made.shapes.len())
        );
        let facts = found.control.unwrap();
        assert_eq!(facts.family.as_deref(), Some(family));
        assert_eq!((facts.channels, facts.tokens), (Some(3), None));
        // A tensor of another shape, and one that is missing.
        let conv = format!("{prefix}middle_block.0.in_layers.2.weight");
        for shape in [Some(vec![1280, 1280, 1, 1]), None] {
            made.shapes.remove(&conv);
            made.shapes.extend(shape.map(|shape| (conv.clone(), shape)));
            write_sparse(&path, &made);
            let found = crate::inspect(&path).unwrap();
            let [problem] = &found.problems[..] else {
                panic!("{:?}", found.problems)
            };
            let name = "mid_block.resnets.0.conv1.weight";
            assert!(
                problem.contains(&conv) || problem.contains(name),
                "{problem}"
            );
        }
    }
    write_sparse(&path, &made("light_adapter", ""));
    let found = crate::inspect(&path).unwrap();
    assert_eq!(
        (found.kind.as_str(), found.problems.len()),
        ("a T2I-Adapter", 0)
    );
}

#[test]
fn only_shuffle_averages_its_outputs() {
    let pools = |name: &str, yaml: Option<&str>, net: &str| {
        let made = Made {
            name: name.to_owned(),
            yaml: yaml.map(str::to_owned),
            ..made(net, "")
        };
        let config = read_made(&made).unwrap().component.config;
        config["global_pool_conditions"].as_bool().unwrap()
    };
    assert!(pools("control_v11e_sd15_shuffle", None, "sd1"));
    assert!(pools("Shuffle_fp16", None, "sd1"));
    assert!(!pools("shuffle", None, "xl"));
    assert!(!pools("control_v11p_sd15_canny", None, "sd1"));
    let yaml = |value: &str| format!("model:\n  params:\n    global_average_pooling: {value}\n");
    assert!(pools("mine", Some(&yaml("True")), "sd1"));
    assert!(!pools("shuffle", Some(&yaml("False")), "sd1"));
}

#[test]
fn broken_control_nets_are_named() {
    let mut without = made("sd1", "");
    without.shapes.remove("input_blocks.0.0.weight");
    let error = read_made(&without).unwrap_err();
    assert!(
        error.contains("the ControlNet: the first convolution, `conv_in`, is missing"),
        "{error}"
    );
    let mut uneven = made("sd1", "");
    uneven
        .shapes
        .retain(|name, _| !name.starts_with("input_blocks.1.1."));
    let error = read_made(&uneven).unwrap_err();
    assert!(
        error.contains("the ControlNet: only 1 of the 2 residual blocks of level 0"),
        "{error}"
    );
}

/// Returns a T2I-Adapter's file with its authors' names.
fn adapter(levels: usize, input: usize, channels: &[usize]) -> Made {
    let mut made = Made::default();
    let mut add = |name: &str, [output, input, side]: [usize; 3]| {
        let shapes = &mut made.shapes;
        shapes.insert(format!("{name}.weight"), vec![output, input, side, side]);
        shapes.insert(format!("{name}.bias"), vec![output]);
    };
    add("conv_in", [channels[0], input, 3]);
    for (level, &output) in channels.iter().enumerate().take(levels) {
        let before = channels[level.saturating_sub(1)];
        if before != output {
            add(&format!("body.{}.in_conv", 2 * level), [output, before, 1]);
        }
        for block in [2 * level, 2 * level + 1] {
            add(&format!("body.{block}.block1"), [output, output, 3]);
            add(&format!("body.{block}.block2"), [output, output, 1]);
        }
    }
    made
}

#[test]
fn names_of_adapters_are_those_that_diffusers_converts() {
    for kind in ["full_adapter", "light_adapter"] {
        let made = made(kind, "");
        assert_eq!(made.kind(), Kind::T2iAdapter);
        let found = read_made(&made).unwrap().component;
        assert_eq!(found.unused, [""; 0]);
        let mut expected: Vec<_> = rows_of(kind);
        expected.sort();
        let names = found.tensors.iter().map(|it| (&it.name, &it.stored));
        let expected = expected.iter().map(|(today, _, stored)| (today, stored));
        assert!(names.eq(expected), "{kind}");
        assert_eq!(Value::from(found.config), NETS[kind]["config"]);
    }
}

#[test]
fn adapters_are_recognised_by_their_shapes() {
    const FOUR: [usize; 4] = [320, 640, 1280, 1280];
    for (input, in_channels, factor, kind) in [
        (64, 1, 8, "full_adapter"),
        (192, 3, 8, "full_adapter"),
        (256, 1, 16, "full_adapter_xl"),
        (768, 3, 16, "full_adapter_xl"),
    ] {
        let made = adapter(4, input, &FOUR);
        assert_eq!(made.kind(), Kind::T2iAdapter);
        let found = read_made(&made).unwrap();
        assert_eq!(found.kind, ControlKind::Adapter);
        assert_eq!(found.component.unused, [""; 0]);
        let config = &found.component.config;
        assert_eq!(config["in_channels"], in_channels);
        assert_eq!(config["downscale_factor"], factor);
        assert_eq!(config["adapter_type"], kind);
        assert_eq!(config["num_res_blocks"], 2);
        assert_eq!(config["channels"], serde_json::json!(FOUR));
        let today = |stored: &str| {
            let mut tensors = found.component.tensors.iter();
            let found = tensors.find(|tensor| tensor.stored == stored).unwrap();
            found.name.clone()
        };
        assert_eq!(today("conv_in.bias"), "adapter.conv_in.bias");
        assert_eq!(today("body.4.in_conv.bias"), "adapter.body.2.in_conv.bias");
        assert_eq!(
            today("body.7.block2.weight"),
            "adapter.body.3.resnets.1.block2.weight"
        );
    }
    let error = read_made(&adapter(4, 100, &FOUR)).unwrap_err();
    assert!(
        error.contains("the T2I-Adapter: `adapter.conv_in.weight` takes 100 channels"),
        "{error}"
    );
    let mut more = adapter(4, 64, &FOUR);
    more.shapes.insert("body.1.skep.weight".into(), vec![1]);
    more.shapes.insert("body.1.in_conv.weight".into(), vec![1]);
    let found = read_made(&more).unwrap();
    assert_eq!(
        found.component.unused,
        ["body.1.in_conv.weight", "body.1.skep.weight"]
    );
}

#[test]
fn unsupported_files_are_refused_by_name() {
    const HINT: &str = "input_hint_block.0.weight";
    const KEYS: &str = "ip_adapter.1.to_k_ip.weight";
    for (names, what) in [
        (&["lora_controlnet"][..], "a Control-LoRA"),
        (
            &[HINT, "time_embed.0.up", "time_embed.0.down"],
            "a Control-LoRA",
        ),
        (
            &["lllite_unet_input_blocks_4_1_attn1_to_q.down.0.weight"],
            "a ControlNet-LLLite",
        ),
        (&[HINT, "difference"], "the difference between a ControlNet"),
        (
            &[
                "control_model.difference",
                "control_model.zero_convs.0.0.bias",
            ],
            "the difference between a ControlNet",
        ),
        (
            &[
                "control_add_embedding.linear_1.weight",
                "controlnet_cond_embedding.conv_in.weight",
                "task_embedding",
                "transformer_layes.0.ln_1.weight",
            ],
            "SDXL's union ControlNet",
        ),
        (
            &[
                "controlnet_blocks.0.weight",
                "transformer_blocks.0.attn.to_q.weight",
            ],
            "a ControlNet of a diffusion transformer",
        ),
        (
            &[HINT, "double_blocks.0.img_attn.qkv.weight"],
            "a ControlNet of a diffusion transformer",
        ),
        (
            &[
                "controlnet_cond_embedding.conv_in.weight",
                "down_blocks.0.motion_modules.0.temporal_transformer.norm.weight",
            ],
            "AnimateDiff's ControlNet",
        ),
        (
            &[KEYS, "image_proj.perceiver_resampler.proj_in.weight"],
            "an IP-Adapter for faces",
        ),
        (
            &[KEYS, "ip_adapter.0.to_q_lora.down.weight"],
            "an IP-Adapter for faces",
        ),
        (
            &[
                "style_embedding",
                "ln_post.weight",
                "transformer_layes.0.ln_1.weight",
            ],
            "T2I-Adapter's style adapter",
        ),
    ] {
        let made = one(names);
        for error in [
            read_made(&made).unwrap_err(),
            made.read().unwrap_err().to_string(),
        ] {
            assert!(error.starts_with(&format!("the file is {what}")), "{error}");
            assert!(error.contains(", which is not supported"), "{error}");
        }
    }
    // A face recogniser's embedding has 512 numbers.
    for name in ["image_proj.proj.0.weight", "image_proj.proj_in.weight"] {
        let made = Made::of(&[(KEYS, &[320, 768]), (name, &[1024, 512])]);
        let error = read_made(&made).unwrap_err();
        assert!(error.contains("an IP-Adapter for faces"), "{error}");
    }
}

#[test]
fn files_of_other_kinds_are_named() {
    for (made, what) in [
        (Made::family("lcm"), "a Stable Diffusion model"),
        (one(&["lora_unet_mid.lora_up.weight"]), "a LoRA"),
        (one(&["emb_params"]), "a textual inversion"),
        (
            one(&["vision_model.pre_layrnorm.bias"]),
            "CLIP's vision model",
        ),
        (one(&["body.0.rdb1.conv1.weight"]), "an upscaler"),
        (one(&["a"]), "nothing that is known"),
    ] {
        let error = read_made(&made).unwrap_err();
        assert!(error.starts_with(&format!("the file is {what}")), "{error}");
        assert!(
            error.contains("expected a ControlNet, a T2I-Adapter or an IP-Adapter"),
            "{error}"
        );
    }
    let error = read_made(&one(&["model.diffusion_model.joint_blocks.0.x"])).unwrap_err();
    assert!(error.contains("Stable Diffusion 3"), "{error}");
}

#[test]
fn image_adapters_keep_their_names() {
    let made = Made::of(&[
        ("image_proj.norm.weight", &[768]),
        ("image_proj.proj.weight", &[3072, 1024]),
        ("ip_adapter.1.to_k_ip.weight", &[320, 768]),
        ("ip_adapter.1.to_v_ip.weight", &[320, 768]),
    ]);
    assert_eq!(made.kind(), Kind::IpAdapter);
    let found = read_made(&made).unwrap();
    assert_eq!(found.kind, ControlKind::Image);
    let tensors = &found.component.tensors;
    assert!(tensors.iter().all(|tensor| tensor.name == tensor.stored));
    assert_eq!(tensors.len(), 4);
    let mut more = made.clone();
    more.shapes
        .insert("ip_adapter.1.to_q.weight".into(), vec![1]);
    let found = read_made(&more).unwrap();
    assert_eq!(found.component.unused, ["ip_adapter.1.to_q.weight"]);
    let mut less = made.clone();
    less.shapes.remove("ip_adapter.1.to_k_ip.weight");
    let error = read_made(&less).unwrap_err();
    assert!(error.contains("the IP-Adapter: it has no keys"), "{error}");
}

#[test]
fn nonsense_in_control_files_is_no_panic() {
    let image = Made::of(&[
        ("image_proj.latents", &[1, 4, 8]),
        ("image_proj.proj_in.weight", &[8, 8]),
        ("image_proj.proj_out.weight", &[8, 8]),
        ("image_proj.layers.0.0.to_q.weight", &[64, 8]),
        ("image_proj.layers.0.1.1.weight", &[8, 8]),
        ("ip_adapter.1.to_k_ip.weight", &[8, 8]),
    ]);
    let files = [
        made("xl-mid", "control_model."),
        made("xl-small", ""),
        made("full_adapter", ""),
        made("light_adapter", ""),
        image,
    ];
    for (file, step) in files.iter().zip([5, 5, 3, 7, 1]) {
        for name in file.shapes.keys().step_by(step) {
            for shape in [
                &[][..],
                &[0],
                &[0, usize::MAX],
                &[usize::MAX, 0, usize::MAX],
                &[0, usize::MAX, usize::MAX],
                &[1; 9],
            ] {
                let mut made = file.clone();
                made.shapes.insert(name.clone(), shape.to_vec());
                use_all(&made);
            }
            let mut made = file.clone();
            made.shapes.remove(name);
            use_all(&made);
        }
    }
    for name in [
        "control_model.",
        "input_hint_block..weight",
        "input_hint_block.18446744073709551615.weight",
        "input_blocks.18446744073709551615.0.op.weight",
        "zero_convs.0.0",
        "body.18446744073709551615.block1.weight",
        "image_proj.layers.18446744073709551615.0.to_q.weight",
        "ip_adapter..to_k_ip.weight",
    ] {
        for file in &files {
            let mut made = file.clone();
            made.shapes.insert(name.to_owned(), vec![4, 4, 3, 3]);
            use_all(&made);
        }
        drop(read_made(&one(&[name])));
    }
}

/// Reads a file and writes the graphs of its network. Whether this is an error depends on the file.
fn use_all(made: &Made) {
    let Ok(found) = read_made(made) else { return };
    let mut weights = Weights::empty("x.safetensors".as_ref());
    for tensor in &found.component.tensors {
        let shape = &made.shapes[&tensor.stored];
        weights.place(&tensor.name, Type::F16, shape, Place::Memory([].into()));
    }
    let config = Config::of("x.safetensors".as_ref(), found.component.config);
    match found.kind {
        ControlKind::Net => {
            if let Ok(config) = ControlNetConfig::new(&config) {
                drop(control_net::embedding(
                    &config,
                    &weights,
                    Dialect::default(),
                ));
                drop(control_net::graph(&config, &weights, Dialect::default()));
            }
        }
        ControlKind::Adapter => {
            if let Ok(config) = T2iAdapterConfig::new(&config) {
                drop(t2i_adapter::check(&config, &weights));
            }
        }
        ControlKind::Image => {
            if let Ok(config) = ImagePromptConfig::new("x.safetensors".as_ref(), &weights) {
                drop(image_prompt::check(&config, &weights));
            }
        }
    }
}
