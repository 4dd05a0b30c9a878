//! The layouts in which files come.

use super::*;

/// Returns a family's file with current names and these prefixes for the components.
fn in_todays_names(family: &str, prefixes: [(&str, &str); 4]) -> Made {
    let table = &TABLES["families"][family];
    let mut made = Made::default();
    for row in rows(table) {
        let (_, prefix) = prefixes
            .iter()
            .find(|(part, _)| *part == row.component)
            .unwrap();
        made.shapes
            .insert(format!("{prefix}{}", row.today), row.shape.clone());
    }
    made.mark(table);
    made
}

/// Returns the current names of each component's tensors.
fn names(checkpoint: &Checkpoint) -> BTreeMap<&'static str, Vec<&str>> {
    let components = checkpoint.components.iter();
    components
        .map(|(&part, component)| {
            let names = component.tensors.iter().map(|tensor| tensor.name.as_str());
            (part, names.collect())
        })
        .collect()
}

/// Checks that a file gives the same as the family's file, restricted to these components.
fn assert_same(made: &Made, family: &str, parts: &[&str]) -> Checkpoint {
    let found = made.read().unwrap();
    let expected = Made::family(family).read().unwrap();
    assert_eq!(found.components.keys().copied().collect::<Vec<_>>(), parts);
    for part in parts {
        assert_eq!(names(&found)[part], names(&expected)[part], "{part}");
        let [found, expected] = [&found, &expected].map(|c| &c.components[part]);
        if parts.contains(&"unet") || *part == "unet" {
            assert_eq!(found.config, expected.config, "{part}");
        }
        assert_eq!(found.unused, [""; 0], "{part}");
    }
    assert_eq!(found.warnings, [""; 0]);
    found
}

const FOLDERS: [(&str, &str); 4] = [
    ("unet", "unet."),
    ("vae", "vae."),
    ("text_encoder", "text_encoder."),
    ("text_encoder_2", "text_encoder_2."),
];

#[test]
fn diffusers_names_behind_its_folders() {
    for (family, parts) in [
        (
            "sdxl-base",
            &["text_encoder", "text_encoder_2", "unet", "vae"][..],
        ),
        ("inpaint", &["text_encoder", "unet", "vae"]),
        ("refiner", &["text_encoder_2", "unet", "vae"]),
        ("sd2-v", &["text_encoder", "unet", "vae"]),
    ] {
        let made = in_todays_names(family, FOLDERS);
        let found = assert_same(&made, family, parts);
        assert_eq!(found.family, Made::family(family).read().unwrap().family);
    }
}

#[test]
fn kohyas_file_with_diffusers_names_in_it() {
    // The UNet has latent diffusion's names, the other networks have diffusers'.
    let mut made = in_todays_names("lcm", FOLDERS).renamed(|name| {
        let rest = name
            .strip_prefix("vae.")
            .map(|rest| format!("first_stage_model.{rest}"));
        (!name.starts_with("unet.")).then(|| rest.unwrap_or(name.to_owned()))
    });
    let ldm = Made::family("lcm");
    made.shapes.extend(
        ldm.shapes
            .into_iter()
            .filter(|(n, _)| n.starts_with("model.")),
    );
    assert_same(&made, "lcm", &["text_encoder", "unet", "vae"]);
}

#[test]
fn text_encoders_without_text_model_and_with_prefixes_of_comfyui() {
    for (from, to) in [
        (".text_model.", "."),
        ("cond_stage_model.transformer.", "cond_stage_model."),
        (
            "cond_stage_model.transformer.",
            "conditioner.embedders.0.transformer.",
        ),
        (
            "cond_stage_model.transformer.",
            "text_encoders.clip_l.transformer.",
        ),
    ] {
        let made = Made::family("lcm").renamed(|name| Some(name.replace(from, to)));
        assert_same(&made, "lcm", &["text_encoder", "unet", "vae"]);
    }
    // SGM's first embedder can also be Stable Diffusion 2's text encoder.
    let made = Made::family("sd2-base").renamed(|name| {
        Some(name.replace("cond_stage_model.model.", "conditioner.embedders.0.model."))
    });
    let found = assert_same(&made, "sd2-base", &["text_encoder", "unet", "vae"]);
    assert_eq!(found.family, Some(Family::Sd2));
}

#[test]
fn a_unet_alone() {
    for family in ["sdxs", "inpaint", "bk-tiny"] {
        for prefix in ["model.diffusion_model.", "diffusion_model.", ""] {
            let made = Made::family(family).renamed(|name| {
                let rest = name.strip_prefix("model.diffusion_model.")?;
                Some(format!("{prefix}{rest}"))
            });
            let found = assert_same(&made, family, &["unet"]);
            assert_eq!(found.missing, ["vae", "text_encoder"]);
        }
        let bare = [
            ("unet", ""),
            ("vae", "vae."),
            ("text_encoder", "?"),
            ("text_encoder_2", "?"),
        ];
        let mut made = in_todays_names(family, bare);
        made.shapes
            .retain(|name, _| !name.starts_with("vae.") && !name.starts_with('?'));
        assert_same(&made, family, &["unet"]);
    }
    // Without text encoders, the widths distinguish SDXL from its refiner.
    for (name, family) in [("sdxl-base", Family::Xl), ("sdxl-refiner", Family::Refiner)] {
        let mut made = Made::published(name);
        made.shapes.retain(|name, _| name.starts_with("model."));
        let checkpoint = made.read().unwrap();
        assert_eq!(checkpoint.family, Some(family));
        assert_eq!(
            checkpoint.components["unet"].config["addition_time_embed_dim"],
            256
        );
    }
}

#[test]
fn an_autoencoder_alone() {
    for prefix in ["first_stage_model.", "vae.", ""] {
        let mut made = Made::family("sd2-v").renamed(|name| {
            let rest = name.strip_prefix("first_stage_model.")?;
            Some(format!("{prefix}{rest}"))
        });
        // Training leaves these tensors in such files.
        made.shapes.insert(format!("{prefix}loss.logvar"), vec![]);
        made.shapes.insert(
            format!("{prefix}loss.discriminator.main.0.weight"),
            vec![64, 3, 4, 4],
        );
        made.shapes.insert("model_ema.num_updates".into(), vec![]);
        let found = assert_same(&made, "sd2-v", &["vae"]);
        assert_eq!((found.family, found.class), (None, ""));
        assert!(
            !found.components["vae"]
                .config
                .contains_key("scaling_factor")
        );
        if prefix.is_empty() {
            assert_eq!(made.kind(), Kind::Vae);
        }
    }
    // diffusers' names before 0.18.
    let bare = [
        ("vae", ""),
        ("unet", "?"),
        ("text_encoder", "?"),
        ("text_encoder_2", "?"),
    ];
    let made = in_todays_names("sd2-v", bare).renamed(|name| {
        let older = [
            ("to_q", "query"),
            ("to_k", "key"),
            ("to_v", "value"),
            ("to_out.0", "proj_attn"),
        ];
        let older = older.iter().fold(name.to_owned(), |name, (today, older)| {
            name.replace(
                &format!("attentions.0.{today}"),
                &format!("attentions.0.{older}"),
            )
        });
        (!name.starts_with('?')).then_some(older)
    });
    assert_same(&made, "sd2-v", &["vae"]);
}

#[test]
fn taesd_in_halves() {
    let expected = Made::family("taesd").read().unwrap();
    for (half, count) in [("encoder", [1, 3, 3, 3]), ("decoder", [3, 3, 3, 1])] {
        let prefix = format!("taesd_{half}.");
        let made =
            Made::family("taesd").renamed(|name| name.strip_prefix(&prefix).map(str::to_owned));
        assert_eq!(made.kind(), Kind::Vae);
        let found = made.read().unwrap();
        let vae = &found.components["vae"];
        let of_half: Vec<_> = expected.components["vae"]
            .tensors
            .iter()
            .filter(|tensor| tensor.name.starts_with(half))
            .map(|tensor| tensor.name.as_str())
            .collect();
        let names: Vec<_> = vae
            .tensors
            .iter()
            .map(|tensor| tensor.name.as_str())
            .collect();
        assert_eq!(names, of_half);
        assert_eq!(vae.unused, [""; 0]);
        assert_eq!(
            vae.config[&format!("num_{half}_blocks")],
            serde_json::json!(count)
        );
    }
    // The same with diffusers' names.
    let made = Made::family("taesd").renamed(|name| {
        let (half, rest) = name.split_once('.').unwrap();
        let (layer, rest) = rest.split_once('.').unwrap();
        let layer: usize = layer.parse().unwrap();
        let half = half.strip_prefix("taesd_").unwrap();
        let layer = layer - usize::from(half == "decoder");
        Some(format!("{half}.layers.{layer}.{rest}"))
    });
    let found = made.read().unwrap();
    assert_eq!(
        found.components["vae"].config,
        expected.components["vae"].config
    );
}

#[test]
fn a_text_encoder_alone() {
    for (family, prefix, gelu) in [
        (
            "lcm",
            "cond_stage_model.transformer.text_model.",
            "quick_gelu",
        ),
        ("sdxl-base", "conditioner.embedders.1.model.", "gelu"),
    ] {
        let made =
            Made::family(family).renamed(|name| name.strip_prefix(prefix).map(str::to_owned));
        assert_eq!(made.kind(), Kind::TextEncoder);
        let found = made.read().unwrap();
        let text = &found.components["text_encoder"];
        assert_eq!(
            (text.unused.len(), &text.config["hidden_act"]),
            (0, &gelu.into())
        );
        assert!(text.tensors.len() > 40);
    }
}

#[test]
fn stable_diffusion_2_uses_all_layers_but_the_last() {
    let layers = |made: &Made| {
        let found = made.read().unwrap();
        let text = &found.components["text_encoder"];
        assert_eq!(text.unused, [""; 0]);
        assert!(
            text.tensors
                .iter()
                .all(|tensor| tensor.name != "text_projection.weight")
        );
        text.config["num_hidden_layers"].clone()
    };
    let mut made = Made::published("sd-2.1");
    assert_eq!(layers(&made), 23);
    // A file made from a diffusers folder has neither the last layer nor the projection.
    made.shapes
        .retain(|name, _| !name.contains("resblocks.23.") && !name.ends_with("text_projection"));
    assert_eq!(layers(&made), 23);
}

#[test]
fn convolutions_stored_as_linear_layers_and_the_reverse() {
    for (family, change) in [("inpaint", 2), ("sdxl-base", 4)] {
        let mut made = Made::family(family);
        let mut changed = Vec::new();
        for (name, shape) in &mut made.shapes {
            let is_point = name.starts_with("model.")
                && [".proj_in.weight", ".proj_out.weight"]
                    .iter()
                    .any(|end| name.ends_with(end));
            if is_point {
                let first = changed.is_empty();
                changed.push(name.clone());
                // The first projection decides for the whole network.
                if first {
                    continue;
                }
                shape.resize(change, 1);
            }
        }
        let found = made.read().unwrap();
        let linear = found.components["unet"].config["use_linear_projection"] == true;
        for tensor in &found.components["unet"].tensors {
            let stored = &made.shapes[&tensor.stored];
            let is_changed = changed[1..].contains(&tensor.stored);
            match &tensor.view {
                View::Reshaped(shape) => {
                    assert!(is_changed, "{}", tensor.stored);
                    assert_eq!(shape[..2], stored[..2]);
                    assert_eq!(shape.len(), if linear { 2 } else { 4 });
                }
                view => assert!(*view == View::Whole && !is_changed, "{}", tensor.stored),
            }
        }
        assert!(changed.len() > 4);
    }
}

#[test]
fn a_scale_without_a_weight_is_left_over() {
    let made = Made::family("sdxl-base");
    let module = "model.diffusion_model.input_blocks.3.1.proj_in";
    // Opening a file assigns the scales to their weights. Names that remain belong to no weight.
    for end in ["scale_weight", "weight_scale"] {
        let name = format!("{module}.{end}");
        let mut made = made.clone();
        made.shapes.insert(name.clone(), vec![]);
        assert_eq!(made.read().unwrap().components["unet"].unused, [name]);
    }
}
