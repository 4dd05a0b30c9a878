use super::super::class::CLASSES;
use super::ladders::{KARRAS, SHAPES};
use super::*;
use crate::{
    NoiseSchedule,
    ladders::{
        Conventions, FinalSigma, Flow, FlowLevels, ResolutionShift, Shape, Shift, Spacing, Span,
        TimestepRounding, Timing,
    },
    samplers::{
        Ddim, DdimTarget, Ddpm, DdpmVariance, Deis, Dpm2, DpmAlgorithm, DpmForm, DpmPlusPlus2M,
        DpmSolver, DpmSolverSinglestep, Euler, Heun, Lcm, LcmBoundary, Lms, Pndm, PndmMean,
        SaOutput, SaSolver, UniPc, UniPcVariant, WithConventions,
    },
    schedule::ClipSample,
};

fn read(class: &str, keys: &str) -> Result<Configured, ConfigError> {
    let comma = if keys.is_empty() { "" } else { ", " };
    from_config(&format!(r#"{{"_class_name": "{class}"{comma}{keys}}}"#))
}

fn runs(configured: &Configured, steps: usize) {
    let schedule = Arc::new(NoiseSchedule::new(&configured.config).unwrap());
    let conventions = configured.sampler.conventions();
    let rungs = configured.ladder.rungs(&schedule, steps, &conventions);
    assert!(rungs.is_ok(), "{configured:?}: {rungs:?}");
}

#[test]
fn every_class_has_its_own_sampler_and_ladder() {
    let expected = [
        ("DDIMParallelScheduler", "ddim", "leading"),
        ("DDIMScheduler", "ddim", "leading"),
        ("DDPMParallelScheduler", "ddpm", "leading"),
        ("DDPMScheduler", "ddpm", "leading"),
        ("DEISMultistepScheduler", "deis", "linspace"),
        ("DPMSolverMultistepScheduler", "dpmpp-2m", "linspace"),
        ("DPMSolverSDEScheduler", "dpmpp-sde", "linspace"),
        ("DPMSolverSinglestepScheduler", "dpmpp-2s", "linspace"),
        ("EDMDPMSolverMultistepScheduler", "dpmpp-2m", "karras"),
        ("EDMEulerScheduler", "euler", "karras"),
        ("EulerAncestralDiscreteScheduler", "euler-a", "linspace"),
        ("EulerDiscreteScheduler", "euler", "linspace"),
        ("FlowMatchEulerDiscreteScheduler", "euler", "flow"),
        ("FlowMatchHeunDiscreteScheduler", "heun", "flow"),
        // The row builds LCM for diffusion models.
        ("FlowMatchLCMScheduler", "", "flow"),
        ("HeunDiscreteScheduler", "heun", "linspace"),
        // The rows do not round the timesteps of Karras rungs.
        ("KDPM2AncestralDiscreteScheduler", "", "linspace"),
        ("KDPM2DiscreteScheduler", "", "linspace"),
        ("LCMScheduler", "lcm", "lcm"),
        ("LMSDiscreteScheduler", "lms", "linspace"),
        ("PNDMScheduler", "pndm", "leading"),
        ("SASolverScheduler", "sa-solver", "linspace"),
        ("TCDScheduler", "tcd", "lcm"),
        ("UniPCMultistepScheduler", "unipc", "linspace"),
    ];
    let mut seen = 0;
    for class in &CLASSES {
        let found = read(class.name, "");
        if class.kind == Kind::Inverse {
            let error = found.unwrap_err().to_string();
            assert!(error.contains("from picture to noise"), "{error}");
            continue;
        }
        let found = found.unwrap();
        let row = found.row().map_or("", |row| row.name);
        let expected = expected.iter().find(|(name, ..)| *name == class.name);
        assert_eq!(Some(&(found.class, row, found.ladder.kind())), expected);
        runs(&found, 20);
        seen += 1;
    }
    assert_eq!(seen, expected.len());
}

fn check(class: &str, keys: &str, sampler: &dyn Sampler, ladder: Ladder) {
    let found = read(class, keys).unwrap();
    assert!(*found.sampler == *sampler, "{keys}: {:?}", found.sampler);
    assert_eq!(found.ladder, ladder, "{keys}");
    runs(&found, 10);
}

#[test]
fn keys_of_the_grid_classes() {
    check(
        "PNDMScheduler",
        r#""skip_prk_steps": true, "set_alpha_to_one": true, "prediction_type": "v_prediction",
            "timestep_spacing": "trailing", "use_karras_sigmas": true"#,
        &Pndm {
            skip_prk_steps: true,
            set_alpha_to_one: true,
            mean: PndmMean::V,
            target: DdimTarget::Stride,
            ..Pndm::default()
        },
        Ladder::trailing(),
    );
    check(
        "DDIMScheduler",
        r#""set_alpha_to_one": false, "thresholding": true, "sample_max_value": 2"#,
        &Ddim {
            set_alpha_to_one: false,
            clip: ClipSample::Dynamic {
                ratio: 0.995,
                max: 2.0,
            },
            target: DdimTarget::Stride,
            ..Ddim::default()
        },
        Ladder::leading(),
    );
    check(
        "DDPMScheduler",
        r#""variance_type": "fixed_large", "clip_sample": false, "beta_schedule": "sigmoid""#,
        &Ddpm {
            variance: DdpmVariance::Large,
            clip: ClipSample::None,
        },
        Ladder::leading(),
    );
    check(
        "LCMScheduler",
        r#""original_inference_steps": 100, "timestep_scaling": 5, "timestep_spacing": "trailing""#,
        &Lcm {
            timestep_scaling: 5.0,
            ..Lcm::default()
        },
        Ladder::Timed(Timing::Lcm {
            original_steps: 100,
            strength: 1.0,
        }),
    );
}

#[test]
fn keys_of_the_classes_after_k_diffusion() {
    let over = |spacing, sigma_min| Span {
        spacing: Some(spacing),
        sigma_min,
        sigma_max: None,
    };
    let karras = |over| Ladder::Shaped {
        shape: KARRAS,
        over,
    };
    check(
        "EulerDiscreteScheduler",
        r#""timestep_spacing": "leading", "use_karras_sigmas": true, "sigma_min": 0.1"#,
        &Euler::default(),
        karras(over(Spacing::Leading, Some(0.1))),
    );
    let conventions = Conventions {
        end: FinalSigma::SigmaMin,
        ..Euler::default().conventions()
    };
    check(
        "EulerDiscreteScheduler",
        r#""final_sigmas_type": "sigma_min", "interpolation_type": "linear""#,
        &WithConventions {
            sampler: Arc::new(Euler::default()),
            conventions,
        },
        Ladder::linspace(),
    );
    let trained = NoiseSchedule::new(&read("EulerDiscreteScheduler", "").unwrap().config);
    let trained = trained.unwrap();
    check(
        "EulerDiscreteScheduler",
        r#""interpolation_type": "log_linear", "use_karras_sigmas": true, "sigma_min": 0.5"#,
        &Euler::default(),
        karras(Span {
            sigma_max: Some(trained.sigma_max().into()),
            ..over(Spacing::Linspace, Some(0.5))
        }),
    );
    check(
        "HeunDiscreteScheduler",
        r#""clip_sample": true, "clip_sample_range": 2.0, "thresholding": true"#,
        &Heun {
            clip: ClipSample::Range(2.0),
            ..Heun::default()
        },
        Ladder::linspace(),
    );
    check(
        "LMSDiscreteScheduler",
        r#""use_karras_sigmas": true, "sigma_min": 0.1"#,
        &Lms::default(),
        Ladder::karras_over(Spacing::Linspace),
    );
    check(
        "KDPM2DiscreteScheduler",
        r#""use_exponential_sigmas": true, "timestep_spacing": "trailing""#,
        &Dpm2 {
            timestep_rounding: TimestepRounding::KarrasRounded,
            ..Dpm2::default()
        },
        Ladder::Shaped {
            shape: Shape::Exponential,
            over: over(Spacing::Trailing, None),
        },
    );
}

#[test]
fn keys_of_the_dpm_solver_classes() {
    let multistep = "DPMSolverMultistepScheduler";
    check(
        multistep,
        r#""algorithm_type": "sde-dpmsolver++", "solver_type": "heun", "use_karras_sigmas": true,
            "use_lu_lambdas": true, "variance_type": "fixed_small", "clip_sample": true"#,
        &DpmSolver {
            algorithm: DpmAlgorithm::SdeDenoised,
            form: DpmForm::Heun,
            ..DpmSolver::default()
        },
        Ladder::karras(),
    );
    check(
        multistep,
        r#""algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min", "use_lu_lambdas": true,
            "use_exponential_sigmas": true, "lower_order_final": false, "lambda_min_clipped": 9"#,
        &DpmSolver {
            algorithm: DpmAlgorithm::Noise,
            lower_order_final: false,
            end: FinalSigma::SigmaMin,
            ..DpmSolver::default()
        },
        Ladder::shaped(Shape::Lu),
    );
    check(
        multistep,
        r#""solver_order": 3, "euler_at_final": true, "lambda_min_clipped": -5.1, "sigma_max": 9"#,
        &DpmSolver {
            order: 3,
            euler_at_final: true,
            ..DpmSolver::default()
        },
        Ladder::linspace(),
    );
    // Options without effect do not make another sampler.
    check(
        multistep,
        r#""lower_order_final": false, "euler_at_final": true, "solver_type": "logrho""#,
        &DpmPlusPlus2M,
        Ladder::linspace(),
    );
    check(
        "DPMSolverSinglestepScheduler",
        r#""solver_order": 3, "lower_order_final": true, "timestep_spacing": "leading",
            "sigma_min": 0.1, "sigma_max": 10, "use_beta_sigmas": true, "thresholding": true"#,
        &DpmSolverSinglestep {
            order: 3,
            lower_order_final: true,
            clip: ClipSample::Dynamic {
                ratio: 0.995,
                max: 1.0,
            },
            ..DpmSolverSinglestep::default()
        },
        Ladder::Shaped {
            shape: SHAPES[2].1,
            over: Span::between(0.1, 10.0),
        },
    );
    check(
        "DEISMultistepScheduler",
        r#""algorithm_type": "dpmsolver++", "solver_type": "bh2", "solver_order": 3"#,
        &Deis {
            order: 3,
            ..Deis::default()
        },
        Ladder::linspace(),
    );
    check(
        "UniPCMultistepScheduler",
        r#""solver_type": "bh1", "predict_x0": false, "disable_corrector": [0, 3], "solver_p": null,
            "final_sigmas_type": "sigma_min", "timestep_spacing": "trailing""#,
        &UniPc {
            variant: UniPcVariant::Bh1,
            predict_x0: false,
            uncorrected: 0b1001,
            end: FinalSigma::SigmaMin,
            ..UniPc::default()
        },
        Ladder::trailing(),
    );
    check(
        "SASolverScheduler",
        r#""algorithm_type": "noise_prediction", "predictor_order": 3, "use_exponential_sigmas": true"#,
        &SaSolver {
            predictor_order: 3,
            output: SaOutput::Noise,
            ..SaSolver::default()
        },
        Ladder::exponential(),
    );
}

#[test]
fn keys_of_flow_models() {
    let flow = |levels, shift, terminal| {
        Ladder::Flow(Flow {
            levels,
            shift,
            terminal,
        })
    };
    let (euler, unipc) = ("FlowMatchEulerDiscreteScheduler", "UniPCMultistepScheduler");
    let euler_run = Euler::default();
    check(
        euler,
        r#""shift": 3.0"#,
        &euler_run,
        Ladder::flow_shifted(3.0),
    );
    let resolution = ResolutionShift {
        base_shift: 0.25,
        max_tokens: 1000,
        linear: true,
        ..ResolutionShift::default()
    };
    check(
        euler,
        r#""use_dynamic_shifting": true, "time_shift_type": "linear", "base_shift": 0.25,
            "max_image_seq_len": 1000, "shift_terminal": 0.1, "shift": 3"#,
        &euler_run,
        flow(
            FlowLevels::Trained,
            Shift::Resolution(resolution),
            Some(0.1),
        ),
    );
    let shifted = |sigma: f64| 3.0 * sigma / (1.0 + (3.0 - 1.0) * sigma);
    check(
        euler,
        r#""shift": 3.0, "use_karras_sigmas": true"#,
        &euler_run,
        Ladder::Shaped {
            shape: KARRAS,
            over: Span::between(shifted(shifted(0.001)), 1.0),
        },
    );
    let lcm = Lcm {
        boundary: LcmBoundary::None,
        ..Lcm::default()
    };
    let even = Ladder::flow_shifted(1.0);
    check(euler, r#""stochastic_sampling": true"#, &lcm, even.clone());
    let upscale = r#""scale_factors": null, "upscale_mode": "bicubic""#;
    check("FlowMatchLCMScheduler", upscale, &lcm, even);

    let sigmas = r#""use_flow_sigmas": true, "prediction_type": "flow_prediction""#;
    check(
        "DPMSolverMultistepScheduler",
        &format!(r#"{sigmas}, "flow_shift": 5"#),
        &DpmPlusPlus2M,
        flow(FlowLevels::Dpm, Shift::By(5.0), None),
    );
    check(
        "DEISMultistepScheduler",
        &format!(r#"{sigmas}, "use_dynamic_shifting": true"#),
        &Deis::default(),
        flow(
            FlowLevels::Dpm,
            Shift::Resolution(ResolutionShift::default()),
            None,
        ),
    );
    check(
        unipc,
        &format!(r#"{sigmas}, "flow_shift": 5, "shift_terminal": 0.1"#),
        &UniPc::default(),
        flow(FlowLevels::UniPc, Shift::By(5.0), Some(0.1)),
    );
    let levels = FlowLevels::Exploding {
        shape: KARRAS,
        sigma_min: 0.1,
        sigma_max: 10.0,
    };
    check(
        unipc,
        &format!(r#"{sigmas}, "use_karras_sigmas": true, "sigma_min": 0.1, "sigma_max": 10"#),
        &UniPc::default(),
        flow(levels, Shift::By(1.0), None),
    );
}

#[test]
fn keys_of_edm_models() {
    let playground = r#""sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "sigma_schedule": "karras",
        "num_train_timesteps": 1000, "prediction_type": "epsilon", "rho": 7.0, "solver_order": 2,
        "algorithm_type": "dpmsolver++", "solver_type": "midpoint", "final_sigmas_type": "zero""#;
    let class = "EDMDPMSolverMultistepScheduler";
    check(class, playground, &DpmPlusPlus2M, Ladder::karras());
    let keys =
        r#""sigma_max": 120, "sigma_data": 1.0, "prediction_type": "v_prediction", "rho": 5"#;
    let found = read("EDMEulerScheduler", keys).unwrap();
    let prediction = Prediction::Edm {
        sigma_data: 1.0,
        v: true,
    };
    assert_eq!(found.config.prediction, prediction);
    assert_eq!(found.config.sigma_range, [0.002, 120.0]);
    assert_eq!(found.ladder, Ladder::shaped(Shape::Karras { rho: 5.0 }));
    check(
        class,
        r#""algorithm_type": "sde-dpmsolver++", "sigma_schedule": "exponential""#,
        &DpmSolver {
            algorithm: DpmAlgorithm::SdeDenoised,
            ..DpmSolver::default()
        },
        Ladder::exponential(),
    );
}

#[test]
fn a_schedule_is_rescaled_only_where_the_class_does_it() {
    let keys = r#""rescale_betas_zero_snr": true, "prediction_type": "v_prediction""#;
    let rescaled = |class| read(class, keys).unwrap().config.rescale_betas_zero_snr;
    assert!(rescaled("EulerDiscreteScheduler") && rescaled("DDPMScheduler"));
    assert!(!rescaled("LMSDiscreteScheduler") && !rescaled("DPMSolverSinglestepScheduler"));
    // They start at alpha-bar 0, as DDIM does.
    for class in ["DDPMScheduler", "LCMScheduler", "TCDScheduler"] {
        let found = read(class, keys).unwrap();
        assert!(found.sampler.conventions().on_grid_only, "{class}");
        runs(&found, 4);
    }
}

#[test]
fn keys_of_other_classes_and_private_ones_are_ignored() {
    let keys = r#""_diffusers_version": "0.42.1", "_use_default_values": ["eta"], "skip_prk_steps": true,
        "shift": 3, "variance_type": "learned", "solver_order": 9, "snr_shift_scale": 3.0"#;
    check(
        "EulerDiscreteScheduler",
        keys,
        &Euler::default(),
        Ladder::linspace(),
    );
    let seed = |class| {
        read(class, r#""noise_sampler_seed": 7"#)
            .unwrap()
            .noise_seed
    };
    assert_eq!(seed("DPMSolverSDEScheduler"), Some(7));
    assert_eq!(seed("EulerDiscreteScheduler"), None);
}

#[test]
fn keys_without_effect_are_listed() {
    let ignored = |class, keys: &str| {
        let found = read(class, keys).unwrap();
        let bare = read(class, "").unwrap();
        assert!((*found.sampler == *bare.sampler) && found.ladder == bare.ladder);
        let config = SchedulerConfig {
            ignored: Vec::new(),
            ..found.config.clone()
        };
        assert_eq!(config, bare.config, "{class} {keys}");
        found.config.ignored
    };
    let (ddim, flow) = ("DDIMScheduler", "FlowMatchEulerDiscreteScheduler");
    let old = r#""timestep_values": null, "tensor_format": "pt", "predict_epsilon": true,
        "force_zeros_for_empty_prompt": true, "use_karas_sigmas": true, "_private": 1, "skip_prk_steps": true"#;
    assert_eq!(
        ignored(ddim, old),
        [
            "force_zeros_for_empty_prompt",
            "predict_epsilon",
            "tensor_format",
            "timestep_values",
            "use_karas_sigmas"
        ]
    );
    for switch in [
        "use_karras_sigmas",
        "use_exponential_sigmas",
        "use_beta_sigmas",
        "use_flow_sigmas",
        "use_lu_lambdas",
    ] {
        assert_eq!(ignored(ddim, &format!(r#""{switch}": true"#)), [switch]);
        assert!(ignored(ddim, &format!(r#""{switch}": false"#)).is_empty());
        let text = format!(r#"{{"_class_name": "{ddim}", "{switch}": true}}"#);
        let config = SchedulerConfig::from_json(&text).unwrap();
        assert_eq!(config.ignored, [switch]);
    }
    assert!(
        read("EulerDiscreteScheduler", r#""use_karras_sigmas": true"#)
            .unwrap()
            .config
            .ignored
            .is_empty()
    );
    let betas = r#""trained_betas": [0.1], "beta_schedule": "x", "beta_start": 7"#;
    assert_eq!(ignored(flow, betas), ["trained_betas"]);
    assert_eq!(ignored("EDMEulerScheduler", betas), ["trained_betas"]);
}

/// Compares the field `shapes` of the classes with the ladders that the keys make.
#[test]
fn the_keys_of_shapes_count_in_the_classes_that_have_them() {
    for class in CLASSES.iter().filter(|class| class.kind != Kind::Inverse) {
        for (key, _) in SHAPES {
            let found = read(class.name, &format!(r#""{key}": true"#)).unwrap();
            let changed = found.ladder != read(class.name, "").unwrap().ladder;
            assert_eq!(changed, class.shapes, "{} {key}", class.name);
            assert_eq!(found.config.ignored.is_empty(), class.shapes);
        }
    }
}

#[test]
fn what_is_ignored_is_short_and_printable() {
    let mut keys: Vec<String> = (0..100_000).map(|i| format!(r#""k{i:06}": 0"#)).collect();
    keys.push(format!(r#""a{}": 0"#, r"\u001b[2J\u202e".repeat(100_000)));
    let ignored = read("DDIMScheduler", &keys.join(", "))
        .unwrap()
        .config
        .ignored;
    assert_eq!(ignored.len(), 9);
    assert!(ignored[0].starts_with(r"a\u{1b}[2J\u{202e}") && ignored[0].len() < 1000);
    assert_eq!(ignored[8], "99993 more");
}

#[test]
fn a_model_of_samples_is_not_taken_for_one_of_noise() {
    let ddpm = "DDPMScheduler";
    let error = read(ddpm, r#""predict_epsilon": false"#).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`predict_epsilon`: expected true, or `sample` as `prediction_type`, found false"
    );
    for (keys, prediction) in [
        (
            r#""predict_epsilon": false, "prediction_type": "sample""#,
            Prediction::Sample,
        ),
        (r#""predict_epsilon": true"#, Prediction::Epsilon),
        (r#""predict_epsilon": "no""#, Prediction::Epsilon),
    ] {
        let config = read(ddpm, keys).unwrap().config;
        assert_eq!(config.prediction, prediction);
        assert_eq!(config.ignored, ["predict_epsilon"]);
    }
}

#[test]
fn what_can_not_be_meant_is_refused_by_the_name_of_its_key() {
    let flow = r#""use_flow_sigmas": true, "prediction_type": "flow_prediction""#;
    let flow_and = |more: &str| format!("{flow}, {more}");
    let two_shapes = r#""use_karras_sigmas": true, "use_beta_sigmas": true"#;
    let zero_snr = r#""rescale_betas_zero_snr": true"#;
    let (ddim, euler) = ("DDIMScheduler", "EulerDiscreteScheduler");
    let (multi, unipc) = ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler");
    let (match_euler, sa) = ("FlowMatchEulerDiscreteScheduler", "SASolverScheduler");
    let single = "DPMSolverSinglestepScheduler";
    let cases: &[(&str, &str, &str)] = &[
        (euler, r#""timestep_spacing": "even""#, "timestep_spacing"),
        (
            euler,
            r#""prediction_type": "flow_prediction""#,
            "prediction_type",
        ),
        (euler, r#""beta_schedule": "laplace""#, "beta_schedule"),
        (euler, two_shapes, "use_beta_sigmas"),
        (
            euler,
            r#""interpolation_type": "log_linear""#,
            "interpolation_type",
        ),
        (
            euler,
            r#""timestep_type": "continuous", "prediction_type": "v_prediction""#,
            "timestep_type",
        ),
        (
            euler,
            r#""final_sigmas_type": "sigma_min", "use_karras_sigmas": true"#,
            "final_sigmas_type",
        ),
        (
            "PNDMScheduler",
            r#""prediction_type": "sample""#,
            "prediction_type",
        ),
        (
            "DDPMScheduler",
            r#""variance_type": "learned_range""#,
            "variance_type",
        ),
        (
            "DDPMScheduler",
            r#""variance_type": "fixed_large_log""#,
            "variance_type",
        ),
        (
            ddim,
            r#""rescale_betas_zero_snr": true, "timestep_spacing": "trailing""#,
            "rescale_betas_zero_snr",
        ),
        ("LCMScheduler", zero_snr, "rescale_betas_zero_snr"),
        (
            "TCDScheduler",
            r#""original_inference_steps": 0"#,
            "original_inference_steps",
        ),
        (
            multi,
            r#""algorithm_type": "dpmsolver""#,
            "final_sigmas_type",
        ),
        (multi, r#""algorithm_type": "deis""#, "final_sigmas_type"),
        (multi, r#""solver_order": 4"#, "solver_order"),
        (
            multi,
            r#""algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min", "solver_order": 3"#,
            "solver_order",
        ),
        (multi, r#""lambda_min_clipped": -2"#, "lambda_min_clipped"),
        (multi, r#""variance_type": "learned""#, "variance_type"),
        (multi, r#""use_flow_sigmas": true"#, "prediction_type"),
        (
            multi,
            r#""prediction_type": "flow_prediction""#,
            "use_flow_sigmas",
        ),
        (
            multi,
            &flow_and(r#""use_karras_sigmas": true"#),
            "use_karras_sigmas",
        ),
        (
            multi,
            &flow_and(r#""final_sigmas_type": "sigma_min""#),
            "final_sigmas_type",
        ),
        (
            multi,
            &flow_and(r#""algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min""#),
            "algorithm_type",
        ),
        (
            multi,
            &flow_and(r#""use_dynamic_shifting": true, "time_shift_type": "linear""#),
            "time_shift_type",
        ),
        (
            multi,
            r#""final_sigmas_type": "sigma_min", "sigma_min": 0.1, "use_karras_sigmas": true"#,
            "sigma_min",
        ),
        (
            single,
            r#""algorithm_type": "sde-dpmsolver""#,
            "algorithm_type",
        ),
        (
            single,
            r#""algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min", "thresholding": true"#,
            "thresholding",
        ),
        (
            "DEISMultistepScheduler",
            r#""algorithm_type": "sde-dpmsolver""#,
            "algorithm_type",
        ),
        (unipc, r#""predict_x0": false"#, "predict_x0"),
        (unipc, r#""solver_type": "bh1""#, "solver_type"),
        (unipc, r#""lower_order_final": false"#, "lower_order_final"),
        (unipc, r#""solver_p": {}"#, "solver_p"),
        (unipc, r#""disable_corrector": [127]"#, "disable_corrector"),
        (unipc, r#""shift_terminal": 0.1"#, "shift_terminal"),
        (
            unipc,
            &flow_and(r#""use_exponential_sigmas": true"#),
            "use_exponential_sigmas",
        ),
        (sa, r#""corrector_order": 0"#, "corrector_order"),
        (sa, r#""tau_func": "x""#, "tau_func"),
        (
            sa,
            &flow_and(r#""algorithm_type": "noise_prediction""#),
            "algorithm_type",
        ),
        (match_euler, r#""invert_sigmas": true"#, "invert_sigmas"),
        (
            match_euler,
            r#""use_dynamic_shifting": true, "use_karras_sigmas": true"#,
            "use_karras_sigmas",
        ),
        (
            match_euler,
            r#""use_dynamic_shifting": true, "time_shift_type": "square""#,
            "time_shift_type",
        ),
        (
            "FlowMatchLCMScheduler",
            r#""scale_factors": [1, 2]"#,
            "scale_factors",
        ),
        (
            "EDMEulerScheduler",
            r#""sigma_schedule": "linear""#,
            "sigma_schedule",
        ),
        (
            "EDMEulerScheduler",
            r#""prediction_type": "sample""#,
            "prediction_type",
        ),
        ("EDMEulerScheduler", r#""sigma_max": 0.001"#, "sigma_max"),
        ("IPNDMScheduler", "", "_class_name"),
    ];
    for (class, keys, key) in cases {
        let error = read(class, keys).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("`{key}`: ")),
            "{class} {keys}: {error}"
        );
    }
    let error = from_config("{}").unwrap_err().to_string();
    assert!(error.starts_with("`_class_name`: "), "{error}");
}
