use serde_json::Value;

use super::class::CLASSES;
use super::*;

#[test]
fn missing_keys_take_the_defaults_of_their_class_in_diffusers() {
    let golden: Value =
        serde_json::from_str(include_str!("../../tests/golden/defaults.json")).unwrap();
    let classes = golden["classes"].as_array().unwrap();
    let of_diffusion = |class: &&Class| matches!(class.kind, Kind::Diffusion | Kind::Inverse);
    assert_eq!(classes.len(), CLASSES.iter().filter(of_diffusion).count());
    for class in classes {
        let name = class["_class_name"].as_str().unwrap();
        let bare = SchedulerConfig::from_json(&format!(r#"{{"_class_name": "{name}"}}"#)).unwrap();
        let clips = class.get("clip_sample").is_some_and(|v| v == true);
        assert_eq!(
            bare.num_train_timesteps,
            class["num_train_timesteps"].as_u64().unwrap() as usize,
            "{name}"
        );
        assert_eq!(
            bare.beta_start,
            class["beta_start"].as_f64().unwrap(),
            "{name}"
        );
        assert_eq!(bare.beta_end, class["beta_end"].as_f64().unwrap(), "{name}");
        let betas = match class["beta_schedule"].as_str().unwrap() {
            "linear" => BetaSchedule::Linear,
            "scaled_linear" => BetaSchedule::ScaledLinear,
            other => panic!("{name}: {other}"),
        };
        assert_eq!(bare.beta_schedule, betas, "{name}");
        assert_eq!(class["prediction_type"], "epsilon", "{name}");
        assert_eq!(bare.prediction, Prediction::Epsilon, "{name}");
        assert_eq!(
            bare.steps_offset as u64,
            class.get("steps_offset").map_or(0, |v| v.as_u64().unwrap()),
            "{name}"
        );
        let clip = if clips {
            ClipSample::Range(1.0)
        } else {
            ClipSample::None
        };
        assert_eq!(bare.clip, clip, "{name}");
        assert_eq!(
            bare.set_alpha_to_one,
            class.get("set_alpha_to_one").is_none_or(|v| v == true),
            "{name}"
        );
        let zero_snr = class.get("rescale_betas_zero_snr");
        assert!(zero_snr.is_none_or(|v| v == false), "{name}");
        let known = Class::find(name).unwrap();
        if known.kind == Kind::Diffusion {
            assert_eq!(known.zero_snr, zero_snr.is_some(), "{name}");
        }
    }
}

#[test]
fn the_published_stable_diffusion_1_5_configuration_is_the_default() {
    let text = r#"{
        "_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012,
        "beta_schedule": "scaled_linear", "beta_start": 0.00085, "num_train_timesteps": 1000,
        "set_alpha_to_one": false, "skip_prk_steps": true, "steps_offset": 1, "trained_betas": null,
        "clip_sample": false
    }"#;
    assert_eq!(
        SchedulerConfig::from_json(text).unwrap(),
        SchedulerConfig::default()
    );
}

#[test]
fn every_key_changes_its_field() {
    let text = r#"{"_class_name": "EulerDiscreteScheduler", "num_train_timesteps": 2, "beta_start": 0.1,
        "beta_end": 0.2, "beta_schedule": "squaredcos_cap_v2", "trained_betas": [0.25, 0.5], "steps_offset": 1,
        "prediction_type": "v_prediction", "set_alpha_to_one": false, "clip_sample": true,
        "clip_sample_range": 2.5, "rescale_betas_zero_snr": true, "sigma_min": 0.5, "sigma_max": 9.0}"#;
    let expected = SchedulerConfig {
        num_train_timesteps: 2,
        beta_start: 0.1,
        beta_end: 0.2,
        beta_schedule: BetaSchedule::Cosine,
        trained_betas: Some(vec![0.25, 0.5]),
        steps_offset: 1,
        prediction: Prediction::V,
        set_alpha_to_one: false,
        clip: ClipSample::Range(2.5),
        sigma_range: EDM_RANGE,
        rescale_betas_zero_snr: true,
        ignored: Vec::new(),
    };
    assert_eq!(SchedulerConfig::from_json(text).unwrap(), expected);
}

#[test]
fn thresholding_wins_over_clipping() {
    let clip = |more: &str| {
        let text = format!(r#"{{"clip_sample": true, "thresholding": true{more}}}"#);
        SchedulerConfig::from_json(&text).unwrap().clip
    };
    let dynamic = |ratio, max| ClipSample::Dynamic { ratio, max };
    assert_eq!(clip(""), dynamic(0.995, 1.0));
    let more = r#", "dynamic_thresholding_ratio": 0.5, "sample_max_value": 2"#;
    assert_eq!(clip(more), dynamic(0.5, 2.0));
}

#[test]
fn classes_know_their_own_betas() {
    let read = |class: &str, betas: &str| {
        let text = format!(r#"{{"_class_name": "{class}", "beta_schedule": "{betas}"}}"#);
        SchedulerConfig::from_json(&text).map(|config| config.beta_schedule)
    };
    assert_eq!(read("DDPMScheduler", "sigmoid"), Ok(BetaSchedule::Sigmoid));
    assert_eq!(
        read("DDPMParallelScheduler", "laplace"),
        Ok(BetaSchedule::Laplace)
    );
    assert_eq!(
        read("HeunDiscreteScheduler", "exp"),
        Ok(BetaSchedule::Exponential)
    );
    for (class, betas) in [
        ("DDIMScheduler", "sigmoid"),
        ("HeunDiscreteScheduler", "laplace"),
        ("DDPMScheduler", "exp"),
    ] {
        assert!(read(class, betas).is_err(), "{class} {betas}");
    }
}

#[test]
fn null_is_missing() {
    let text = r#"{"_class_name": null, "beta_start": null, "clip_sample": null, "prediction_type": null}"#;
    assert_eq!(
        SchedulerConfig::from_json(text),
        SchedulerConfig::from_json("{}")
    );
}

#[test]
fn pythons_infinities_are_null() {
    let text = r#"{"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": -Infinity,
        "é\"NaN": [NaN, Infinity], "beta_end": NaN, "beta_schedule": "squaredcos_cap_v2"}"#;
    let config = SchedulerConfig::from_json(text).unwrap();
    assert_eq!(
        (config.beta_end, config.beta_schedule),
        (0.02, BetaSchedule::Cosine)
    );
}

#[test]
fn edm_models_say_what_they_predict() {
    for (keys, sigma_data, v) in [
        ("", 0.5, false),
        (
            r#", "sigma_data": 1.0, "prediction_type": "v_prediction""#,
            1.0,
            true,
        ),
    ] {
        let text = format!(r#"{{"_class_name": "EDMEulerScheduler"{keys}}}"#);
        let found = SchedulerConfig::from_json(&text).unwrap();
        assert_eq!(found.prediction, Prediction::Edm { sigma_data, v });
        assert_eq!(found, from_config(&text).unwrap().config);
    }
}

#[test]
fn errors_name_the_key_and_what_was_found() {
    let cases = [
        ("", "not a JSON object"),
        ("[]", "not a JSON object"),
        (
            r#"{"_class_name": "FlowMatchEulerDiscreteScheduler"}"#,
            "FlowMatchEulerDiscreteScheduler",
        ),
        (
            r#"{"_class_name": "IPNDMScheduler"}"#,
            "found `IPNDMScheduler` (its model",
        ),
        (
            r#"{"_class_name": "EulerScheduler"}"#,
            "found `EulerScheduler`",
        ),
        (
            r#"{"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": true}"#,
            "use_flow_sigmas",
        ),
        (
            r#"{"_class_name": 3}"#,
            "`_class_name`: expected a string, found 3",
        ),
        (
            r#"{"num_train_timesteps": 1}"#,
            "`num_train_timesteps`: expected 2 to 100000, found 1",
        ),
        (
            r#"{"num_train_timesteps": 1e3}"#,
            "`num_train_timesteps`: expected a non-negative integer, found 1000.0",
        ),
        (r#"{"num_train_timesteps": -4}"#, "found -4"),
        (
            r#"{"num_train_timesteps": 18446744073709551615}"#,
            "expected 2 to 100000",
        ),
        (
            r#"{"beta_start": "0.1"}"#,
            r#"`beta_start`: expected a number, found "0.1""#,
        ),
        (
            r#"{"beta_start": 0}"#,
            "`beta_start`: expected a number between 0 and 1, found 0",
        ),
        (
            r#"{"beta_end": 1.0}"#,
            "`beta_end`: expected a number between 0 and 1, found 1",
        ),
        (
            r#"{"beta_schedule": "sigmoid"}"#,
            "`beta_schedule`: expected `linear`, `scaled_linear`",
        ),
        (
            r#"{"prediction_type": "flow_prediction"}"#,
            r#"found "flow_prediction""#,
        ),
        (
            r#"{"steps_offset": 1000}"#,
            "`steps_offset`: expected less than 1000, found 1000",
        ),
        (
            r#"{"trained_betas": [0.1]}"#,
            "`trained_betas`: expected 1000 betas, found 1 betas",
        ),
        (
            r#"{"trained_betas": [0.1, "x"]}"#,
            "`trained_betas`: expected an array of numbers",
        ),
        (
            r#"{"num_train_timesteps": 2, "trained_betas": [0.1, 1.5]}"#,
            "found 1.5",
        ),
        (
            r#"{"clip_sample": 1}"#,
            "`clip_sample`: expected a boolean, found 1",
        ),
        (
            r#"{"clip_sample": true, "clip_sample_range": -1}"#,
            "`clip_sample_range`: expected a number above 0",
        ),
        (
            r#"{"thresholding": true, "dynamic_thresholding_ratio": 1.5}"#,
            "`dynamic_thresholding_ratio`: expected 0 to 1, found 1.5",
        ),
        (
            r#"{"set_alpha_to_one": "yes"}"#,
            "`set_alpha_to_one`: expected a boolean",
        ),
        (
            r#"{"rescale_betas_zero_snr": 0}"#,
            "`rescale_betas_zero_snr`: expected a boolean",
        ),
    ];
    let hostile = "\\u001b[2J\u{9d}\u{202e}".repeat(1 << 20);
    for text in [
        format!(r#"{{"_class_name": "{hostile}"}}"#),
        format!(r#"{{"beta_start": "{hostile}"}}"#),
        format!(r#"{{"trained_betas": ["{hostile}"]}}"#),
        format!(r#""{hostile}""#),
    ] {
        let message = SchedulerConfig::from_json(&text).unwrap_err().to_string();
        assert!(message.len() < 2000, "{}", message.len());
        let shown = |c: char| !c.is_control() && c != '\u{202e}';
        assert!(message.chars().all(shown), "{message}");
    }
    for (text, expected) in cases {
        let message = SchedulerConfig::from_json(text).unwrap_err().to_string();
        assert!(message.contains(expected), "{text}: {message}");
    }
}
