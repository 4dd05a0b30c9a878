//! ControlNets, T2I-Adapters and IP-Adapters. The names of ControlNets are checked against
//! `tests/golden/adapters/names.json.gz`, whose names were verified with diffusers' own conversion.

use super::*;
use crate::{
    config::Config,
    graph::Dialect,
    models::control_net::{self, ControlNetConfig},
    weights::{Place, Type, Weights},
};

/// The golden tables.
static NETS: LazyLock<Value> = LazyLock::new(|| {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/adapters/names.json.gz");
    let mut text = String::new();
    let mut file = flate2::read::GzDecoder::new(std::fs::File::open(path).unwrap());
    file.read_to_string(&mut text).unwrap();
    serde_json::from_str(&text).unwrap()
});

const NAMES: [&str; 5] = ["sd1", "sd2", "xl", "xl-mid", "xl-small"];

/// Returns the tensors of a ControlNet: the current name, the shape and the name in a file.
fn rows_of(net: &str) -> Vec<(String, Vec<usize>, String)> {
    let rows = NETS[net]["tensors"].as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    rows.map(|row| (text(&row[0]), sizes(&row[1]), text(&row[2])))
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
