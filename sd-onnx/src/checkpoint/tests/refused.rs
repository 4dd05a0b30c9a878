//! Files that are refused, and contents that are reported.

use super::*;

const UNET: &str = "model.diffusion_model.";

#[test]
fn files_that_are_no_models_are_told_by_name() {
    let one: &[usize] = &[1];
    for (names, kind, text) in [
        (
            &[("lora_unet_down_blocks_0.lora_up.weight", one)][..],
            Kind::Lora,
            "a LoRA",
        ),
        (
            &[("unet.up_blocks.0.attentions.0.lora_A.weight", one)],
            Kind::Lora,
            "a LoRA",
        ),
        (
            &[("lora_te_text_model.hada_w1_a", one)],
            Kind::Lora,
            "a LoRA",
        ),
        (
            &[("emb_params", &[4, 768])],
            Kind::TextualInversion,
            "a textual inversion",
        ),
        (
            &[("<fox>", &[768])],
            Kind::TextualInversion,
            "a textual inversion",
        ),
        (
            &[("clip_g", &[2, 1280]), ("clip_l", &[2, 768])],
            Kind::TextualInversion,
            "a textual inversion",
        ),
        (
            &[("control_model.time_embed.0.weight", one)],
            Kind::ControlNet,
            "a ControlNet",
        ),
        (
            &[
                ("controlnet_cond_embedding.conv_in.weight", one),
                ("conv_in.weight", one),
            ],
            Kind::ControlNet,
            "a ControlNet",
        ),
        (
            &[
                ("model.0.weight", one),
                ("model.1.sub.0.RDB1.conv1.0.weight", one),
            ],
            Kind::Upscaler,
            "an upscaler",
        ),
        (
            &[("body.0.rdb1.conv1.weight", one)],
            Kind::Upscaler,
            "an upscaler",
        ),
    ] {
        let made = Made::of(names);
        assert_eq!(made.kind(), kind);
        let error = made.read().unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    }
    for (name, what) in [
        (
            "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight",
            "Stable Diffusion 3",
        ),
        ("double_blocks.0.img_attn.norm.key_norm.scale", "Flux"),
        ("clip_txt_mapper.weight", "Stable Cascade"),
        (
            "down_blocks.0.motion_modules.0.temporal_transformer.norm.weight",
            "AnimateDiff",
        ),
        ("ip_adapter.1.to_k_ip.weight", "IP-Adapter"),
    ] {
        let error = Made::of(&[(name, one)]).read().unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    }
    let nothing = Made::of(&[("a", one), ("b\u{1b}", one)]);
    assert_eq!(nothing.kind(), Kind::Unknown);
    let error = nothing.read().unwrap_err().to_string();
    let expected = r"none of the 2 tensors belongs to a Stable Diffusion model: a, b\u{1b}";
    assert_eq!(error, expected);
}

#[test]
fn relatives_that_cannot_be_drawn_with_are_told_by_name() {
    let first = format!("{UNET}input_blocks.0.0.weight");
    for (model, tensor, shape, what) in [
        (
            "sd-2.1",
            first.as_str(),
            &[320, 5, 3, 3][..],
            "a depth-to-image model",
        ),
        ("sd-2.1", &first, &[320, 7, 3, 3], "the x4 upscaler"),
        (
            "sd-2.1",
            "model.diffusion_model.label_emb.0.0.weight",
            &[1280, 2048],
            "Stable unCLIP",
        ),
    ] {
        let mut made = Made::published(model);
        made.shapes.insert(tensor.to_owned(), shape.to_vec());
        let error = made.read().unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
        // The same without text encoders.
        made.shapes.retain(|name, _| name.starts_with(UNET));
        let error = made.read().unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    }
    let mut made = Made::published("sd-1.5");
    made.shapes.insert(first, vec![320, 6, 3, 3]);
    let error = made.read().unwrap_err().to_string();
    assert!(error.contains("takes 6 channels and returns 4"), "{error}");
}

#[test]
fn unknown_tensors_below_a_prefix_are_unused_and_elsewhere_one_warning() {
    let mut made = Made::family("sdxl-base");
    let unused = [
        (
            "unet",
            "model.diffusion_model.input_blocks.1.0.extra.weight",
        ),
        (
            "unet",
            "model.diffusion_model.input_blocks.99.0.in_layers.0.weight",
        ),
        (
            "unet",
            "model.diffusion_model.input_blocks.3.1.transformer_blocks.0.attn1.to_q.bias",
        ),
        ("vae", "first_stage_model.encoder.down.0.attn.0.q.weight"),
        (
            "text_encoder",
            "conditioner.embedders.0.transformer.text_model.extra",
        ),
        (
            "text_encoder_2",
            "conditioner.embedders.1.model.transformer.resblocks.0.ls_1.gamma",
        ),
    ];
    for (_, name) in unused {
        made.shapes.insert(name.to_owned(), vec![3]);
    }
    for name in [
        "optimizer.state.0.exp_avg",
        "lr_scheduler.step",
        "model_ema.a",
    ] {
        made.shapes.insert(name.to_owned(), vec![3]);
    }
    let found = made.read().unwrap();
    for (part, name) in unused {
        // A residual block after a gap becomes an additional block, which the graph refuses.
        let is_there = found.components[part]
            .unused
            .iter()
            .any(|unused| unused == name);
        let mapped = found.components[part]
            .tensors
            .iter()
            .any(|tensor| tensor.stored == name);
        assert!(is_there || mapped && name.contains(".99."), "{name}");
    }
    assert_eq!(
        found.warnings,
        [
            "2 tensors of the file belong to no network that is used, and are ignored: \
          lr_scheduler.step, optimizer.state.0.exp_avg"
        ]
    );
}

#[test]
fn a_tensor_under_two_names_is_an_error() {
    let mut made = Made::family("lcm");
    let older = "cond_stage_model.transformer.final_layer_norm.bias";
    made.shapes.insert(older.into(), vec![128]);
    let error = made.read().unwrap_err().to_string();
    let twice = [
        "is there twice, also as",
        older,
        "text_model.final_layer_norm.bias",
    ];
    assert!(twice.iter().all(|part| error.contains(part)), "{error}");
}

#[test]
fn shapes_that_cannot_be_are_errors() {
    let prefix = "model.diffusion_model.";
    let without = |family: &str, part: &str| {
        let mut made = Made::family(family);
        let before = made.shapes.len();
        made.shapes.retain(|name, _| !name.contains(part));
        assert!(made.shapes.len() < before, "{part}");
        made.read().unwrap_err().to_string()
    };
    for (part, message) in [
        ("output_blocks.0.0.", "has 1 residual blocks, expected 2"),
        ("input_blocks.0.0.", "`conv_in`, is missing"),
        (
            "output_blocks.1.1.",
            "are followed by a transformer, expected all or none",
        ),
        (
            "token_embedding",
            "the token embedding has shape [], expected a row",
        ),
    ] {
        let error = without("sdxl-base", part);
        assert!(error.contains(message), "{part}: {error}");
    }
    let mut made = Made::family("sdxl-base");
    for (name, shape) in &mut made.shapes {
        if name.starts_with(prefix) && shape.first() == Some(&192) {
            shape[0] = 200;
        }
    }
    let error = made.read().unwrap_err().to_string();
    assert!(error.contains("level 2 has 200 channels"), "{error}");
    let mut made = Made::family("sdxl-base");
    made.shapes
        .insert(format!("{prefix}label_emb.0.0.weight"), vec![256, 99]);
    let error = made.read().unwrap_err().to_string();
    assert!(
        error.contains("adds 99 numbers to the time, which are not the 96"),
        "{error}"
    );
}

#[test]
fn nonsense_in_any_shape_is_no_panic() {
    for family in [
        "sdxl-ssd",
        "sd2-v",
        "refiner",
        "taesd",
        "asymmetric",
        "sdxs",
        "kolors",
    ] {
        let whole = Made::family(family);
        // Each tensor takes a while, and the kinds of tensors repeat.
        for name in whole.shapes.keys().step_by(5) {
            for shape in [
                &[][..],
                &[0],
                &[0, usize::MAX],
                &[usize::MAX, 0, usize::MAX],
                &[1; 9],
            ] {
                let mut made = whole.clone();
                made.shapes.insert(name.clone(), shape.to_vec());
                // Whether this is an error depends on the tensor.
                drop(made.read());
            }
            let mut made = whole.clone();
            made.shapes.remove(name);
            drop(made.read());
        }
    }
    for name in [
        "decoder.up.18446744073709551615.block.0.conv1.weight",
        "decoder.layers.18446744073709551615.weight",
        "model.diffusion_model.input_blocks.18446744073709551615.0.op.weight",
        "model.diffusion_model.input_blocks.99999999999999999999.0.op.weight",
        "taesd_decoder.0.weight",
        "..",
        ".weight",
        "model.diffusion_model.",
    ] {
        for family in ["sdxl-ssd", "taesd", "asymmetric"] {
            let mut made = Made::family(family);
            made.shapes.insert(name.to_owned(), vec![4, 4, 3, 3]);
            drop(made.read());
            drop(Made::of(&[(name, &[4, 4])]).read());
        }
    }
}
