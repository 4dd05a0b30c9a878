//! Published models with their full shapes, and the evidence for prediction and schedule.

use super::*;

#[test]
fn published_models_are_recognised() {
    use Predicts::{Edm, EdmV, Epsilon, V};
    let (sd1, sd2, xl) = ("Stable Diffusion 1.x", "Stable Diffusion 2.x", "SDXL");
    let euler = "EulerDiscreteScheduler";
    for (name, title, class, predicts, scheduler, size) in [
        (
            "sd-1.5",
            sd1,
            "StableDiffusionPipeline",
            Epsilon,
            "PNDMScheduler",
            64,
        ),
        (
            "sd-1.5-inpainting",
            "Stable Diffusion 1.x, inpainting",
            "StableDiffusionInpaintPipeline",
            Epsilon,
            "DDIMScheduler",
            64,
        ),
        (
            "pix2pix",
            "Stable Diffusion 1.x, instruct-pix2pix",
            "StableDiffusionInstructPix2PixPipeline",
            Epsilon,
            "EulerAncestralDiscreteScheduler",
            64,
        ),
        (
            "sd-2.1-base",
            sd2,
            "StableDiffusionPipeline",
            Epsilon,
            "PNDMScheduler",
            64,
        ),
        (
            "sd-2.1",
            "Stable Diffusion 2.x, v-prediction",
            "StableDiffusionPipeline",
            V,
            "DDIMScheduler",
            96,
        ),
        (
            "sdxl-base",
            xl,
            "StableDiffusionXLPipeline",
            Epsilon,
            euler,
            128,
        ),
        (
            "sdxl-refiner",
            "SDXL refiner",
            "StableDiffusionXLImg2ImgPipeline",
            Epsilon,
            euler,
            128,
        ),
        (
            "ssd-1b",
            "SDXL, SSD-1B",
            "StableDiffusionXLPipeline",
            Epsilon,
            euler,
            128,
        ),
        (
            "vega",
            "SDXL, Segmind Vega",
            "StableDiffusionXLPipeline",
            Epsilon,
            euler,
            128,
        ),
        (
            "playground-2.5",
            "SDXL, Playground 2.5",
            "StableDiffusionXLPipeline",
            Edm,
            "EDMDPMSolverMultistepScheduler",
            128,
        ),
        (
            "cosxl",
            "SDXL, CosXL",
            "StableDiffusionXLPipeline",
            EdmV,
            "EDMEulerScheduler",
            128,
        ),
        (
            "noobai-v",
            "SDXL, v-prediction",
            "StableDiffusionXLPipeline",
            V,
            euler,
            128,
        ),
        (
            "sdxl-turbo",
            "SDXL, Turbo",
            "StableDiffusionXLPipeline",
            Epsilon,
            "EulerAncestralDiscreteScheduler",
            64,
        ),
    ] {
        let made = Made::published(name);
        let found = made.read().unwrap();
        assert_eq!(found.title(), title, "{name}");
        assert_eq!(found.class, class, "{name}");
        assert_eq!(
            found.predicts, predicts,
            "{name}: {}",
            found.predicts_because
        );
        assert_eq!(found.scheduler["_class_name"], scheduler, "{name}");
        assert_eq!(
            found.components["unet"].config["sample_size"], size,
            "{name}"
        );
        assert_eq!(
            (found.missing.len(), found.warnings.len()),
            (0, 0),
            "{name}"
        );
        assert!(
            found.components.values().all(|part| part.unused.is_empty()),
            "{name}"
        );
        assert_eq!(made.kind(), Kind::Model, "{name}");
    }
}

#[test]
fn the_published_configurations_are_found() {
    let found = Made::published("sd-1.5").read().unwrap();
    let unet = &found.components["unet"].config;
    assert_eq!(unet["attention_head_dim"], 8);
    assert_eq!(
        unet["block_out_channels"],
        serde_json::json!([320, 640, 1280, 1280])
    );
    let vae = &found.components["vae"].config;
    assert_eq!(
        (&vae["layers_per_block"], &vae["scaling_factor"]),
        (&2.into(), &0.18215.into())
    );
    let text = &found.components["text_encoder"].config;
    let of_text = ["num_attention_heads", "num_hidden_layers", "eos_token_id"].map(|k| &text[k]);
    assert_eq!(of_text, [12, 12, 49407]);

    let found = Made::published("sdxl-base").read().unwrap();
    let unet = &found.components["unet"].config;
    assert_eq!(
        unet["transformer_layers_per_block"],
        serde_json::json!([1, 2, 10])
    );
    assert_eq!(unet["attention_head_dim"], serde_json::json!([5, 10, 20]));
    assert_eq!(unet["cross_attention_dim"], 2048);
    assert_eq!(
        found.components["text_encoder_2"].config["num_attention_heads"],
        20
    );
    assert_eq!(
        found.pads,
        [("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")].into()
    );
    assert_eq!(found.components["vae"].config["scaling_factor"], 0.13025);

    let found = Made::published("ssd-1b").read().unwrap();
    let unet = &found.components["unet"].config;
    let reverse = serde_json::json!([[4, 4, 10], [2, 1, 1], 1]);
    assert_eq!(unet["reverse_transformer_layers_per_block"], reverse);
    assert_eq!(unet["mid_block_type"], "UNetMidBlock2D");
}

#[test]
fn evidence_counts_in_its_order_and_conflicts_are_told() {
    let mut made = Made::published("sd-2.1");
    let (because, warnings) = read_of(&made);
    assert!(
        because.contains("deviation 0.120") && because.contains("output_blocks.11.1"),
        "{because}"
    );
    assert_eq!(warnings, [""; 0]);
    // Each piece of evidence outranks all before it and contradicts the previous one.
    made.say("ss_v_parameterization", "False");
    expect(&made, Predicts::Epsilon, "`ss_v_parameterization` False", 1);
    made.say("modelspec.predict_key", "v");
    expect(&made, Predicts::V, "`modelspec.predict_key` v", 1);
    made.say("modelspec.prediction_type", "epsilon");
    expect(
        &made,
        Predicts::Epsilon,
        "`modelspec.prediction_type` epsilon",
        2,
    );
    made.yaml = Some("    parameterization: \"v\"\n".into());
    expect(&made, Predicts::V, "`parameterization` v", 2);
    made.yaml = Some("    parameterization: eps\n".into());
    made.tensor("v_pred", &[]);
    expect(&made, Predicts::V, "the tensor `v_pred`", 3);
    made.predicts = Some(Predicts::Epsilon);
    expect(&made, Predicts::Epsilon, "the caller says so", 3);
    let (_, warnings) = read_of(&made);
    let both = [
        "the caller says so (epsilon)",
        "`v_pred` (v-prediction): epsilon is used",
    ];
    assert!(
        both.iter().all(|part| warnings[0].contains(part)),
        "{warnings:?}"
    );
}

fn read_of(made: &Made) -> (String, Vec<String>) {
    let found = made.read().unwrap();
    (found.predicts_because, found.warnings)
}

fn expect(made: &Made, predicts: Predicts, because: &str, warnings: usize) {
    let found = made.read().unwrap();
    assert_eq!(found.predicts, predicts);
    assert!(
        found.predicts_because.contains(because),
        "{}",
        found.predicts_because
    );
    assert_eq!(found.warnings.len(), warnings, "{:?}", found.warnings);
    let is_v = found.predicts == Predicts::V;
    let expected = if is_v { "v_prediction" } else { "epsilon" };
    assert_eq!(found.scheduler["prediction_type"], expected);
}

#[test]
fn the_statistic_is_of_four_channels_of_stable_diffusion_2_only() {
    let first = "model.diffusion_model.input_blocks.0.0.weight";
    let mut made = Made::published("sd-2.1");
    made.shapes.insert(first.into(), vec![320, 9, 3, 3]);
    expect(
        &made,
        Predicts::Epsilon,
        "nothing in the file says otherwise",
        0,
    );
    // Stable Diffusion 1.5 has a tensor with the same name.
    let mut made = Made::published("sd-1.5");
    let name = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias";
    let values: Vec<f32> = (0..320)
        .map(|i| if i % 2 == 0 { -1.0 } else { 1.0 })
        .collect();
    made.tensor(name, &values);
    expect(
        &made,
        Predicts::Epsilon,
        "nothing in the file says otherwise",
        0,
    );
    // The threshold is ComfyUI's, for the population standard deviation.
    for (deviation, predicts) in [(0.0901, Predicts::V), (0.0899, Predicts::Epsilon)] {
        let mut made = Made::published("sd-2.1");
        made.values
            .get_mut(name)
            .unwrap()
            .iter_mut()
            .for_each(|v| *v *= deviation / 0.12);
        assert_eq!(made.read().unwrap().predicts, predicts, "{deviation}");
    }
}

#[test]
fn zero_terminal_snr_comes_with_steps_from_pure_noise() {
    let schedule = |made: &Made| made.read().unwrap().scheduler;
    let scheduler = schedule(&Made::published("noobai-v"));
    assert_eq!(scheduler["rescale_betas_zero_snr"], true);
    assert_eq!(scheduler["timestep_spacing"], "trailing");

    let mut made = Made::published("sdxl-base");
    made.tensor("v_pred", &[]);
    let scheduler = schedule(&made);
    assert!(!scheduler.contains_key("rescale_betas_zero_snr"));
    assert_eq!(scheduler["timestep_spacing"], "leading");
    made.say("ss_zero_terminal_snr", "True");
    assert_eq!(schedule(&made)["rescale_betas_zero_snr"], true);

    // Without v-prediction it is ignored, with a warning.
    let mut made = Made::published("sdxl-base");
    made.tensor("ztsnr", &[]);
    let found = made.read().unwrap();
    assert!(!found.scheduler.contains_key("rescale_betas_zero_snr"));
    assert!(
        found.warnings[0].contains("`ztsnr`"),
        "{:?}",
        found.warnings
    );
}

#[test]
fn the_values_of_marks_are_used() {
    let mut made = Made::published("cosxl");
    made.tensor("edm_vpred.sigma_max", &[500.0]);
    let found = made.read().unwrap();
    assert_eq!(found.scheduler["sigma_max"], 500.0);
    assert_eq!(found.scheduler["sigma_min"], 0.002);
    assert_eq!(found.cosxl_edit, None);

    let first = "model.diffusion_model.input_blocks.0.0.weight";
    made.shapes.insert(first.into(), vec![320, 8, 3, 3]);
    let found = made.read().unwrap();
    assert_eq!(found.cosxl_edit, Some(true));
    assert_eq!(found.class, "StableDiffusionXLInstructPix2PixPipeline");

    let mut made = Made::published("playground-2.5");
    made.tensor("edm_mean", &[1.0, 2.0, 3.0, 4.5]);
    let vae = made.read().unwrap().components["vae"].config.clone();
    assert_eq!(vae["latents_mean"], serde_json::json!([1.0, 2.0, 3.0, 4.5]));
    assert_eq!(vae["scaling_factor"], 0.5);

    for (model, tensor, values, message) in [
        (
            "cosxl",
            "edm_vpred.sigma_max",
            &[0.0][..],
            "one number above 0",
        ),
        ("cosxl", "edm_vpred.sigma_max", &[1.0, 2.0], "2 values"),
        (
            "cosxl",
            "edm_vpred.sigma_max",
            &[0.001],
            "more than the smallest sigma, 0.002",
        ),
        (
            "playground-2.5",
            "edm_std",
            &[1.0, 1.0, 0.0, 1.0],
            "numbers above 0",
        ),
        (
            "playground-2.5",
            "edm_mean",
            &[1.0, f32::NAN, 0.0, 1.0],
            "finite",
        ),
        (
            "playground-2.5",
            "edm_mean",
            &[1.0; 3],
            "4, one for each channel",
        ),
    ] {
        let mut made = Made::published(model);
        made.tensor(tensor, values);
        let error = made.read().unwrap_err().to_string();
        assert!(error.contains(message) && error.contains(tensor), "{error}");
    }
}

#[test]
fn a_yaml_and_a_header_say_more() {
    let mut made = Made::published("sd-1.5");
    made.yaml = Some("linear_start: 0.001\nlinear_end: 0.02\nscale_factor: 0.2\n".into());
    let found = made.read().unwrap();
    assert_eq!(found.scheduler["beta_start"], 0.001);
    assert_eq!(found.scheduler["beta_end"], 0.02);
    assert_eq!(found.components["vae"].config["scaling_factor"], 0.2);

    let mut made = Made::published("sdxl-base");
    made.say("modelspec.resolution", "1216x832");
    let size = |made: &Made| made.read().unwrap().components["unet"].config["sample_size"].clone();
    assert_eq!(size(&made), serde_json::json!([104, 152]));
    for useless in ["1216", "axb", "0x0", "99999999999999999999x64", "100x100"] {
        made.say("modelspec.resolution", useless);
        assert_eq!(size(&made), 128, "{useless}");
    }
    made.say("modelspec.prediction_type", "x0\u{1b}");
    let found = made.read().unwrap();
    assert!(
        found.warnings[0].contains(r"x0\u{1b}, an unknown value"),
        "{:?}",
        found.warnings
    );
}

#[test]
fn words_name_distilled_models() {
    let mut made = Made::published("sdxl-base");
    for (name, class, spacing) in [
        (
            "sdxl_lightning_4step_unet",
            "EulerDiscreteScheduler",
            "trailing",
        ),
        ("dreamturbo", "EulerDiscreteScheduler", "leading"),
        (
            "sd_xl_turbo_1.0_fp16",
            "EulerAncestralDiscreteScheduler",
            "trailing",
        ),
        ("x-DMD2", "LCMScheduler", "leading"),
    ] {
        made.name = name.into();
        let scheduler = made.read().unwrap().scheduler;
        assert_eq!(scheduler["_class_name"], class, "{name}");
        assert_eq!(scheduler["timestep_spacing"], spacing, "{name}");
    }
}
