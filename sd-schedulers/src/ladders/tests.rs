use super::*;
use crate::{NoiseSchedule, SchedulerConfig};

fn schedule(config: &SchedulerConfig) -> Arc<NoiseSchedule> {
    Arc::new(NoiseSchedule::new(config).unwrap())
}

fn written(ladder: &Ladder) -> String {
    serde_json::to_string(ladder).unwrap()
}

fn read(json: &str) -> Result<Ladder, String> {
    serde_json::from_str(json).map_err(|error| error.to_string())
}

#[test]
fn names_and_serde() {
    for (name, ladder) in Ladder::NAMED {
        assert_eq!(name.to_uppercase().parse::<Ladder>().as_ref(), Ok(ladder));
        assert_eq!((ladder.name(), ladder.kind()), (Some(*name), *name));
        assert_eq!(written(ladder), format!("\"{name}\""));
        assert_eq!(ladder.to_string().parse::<Ladder>().as_ref(), Ok(ladder));
        assert_eq!(read(&format!("{{\"{name}\": {{}}}}")).as_ref(), Ok(ladder));
    }
    let karras = |over| Ladder::Shaped {
        shape: Shape::Karras { rho: 7.0 },
        over,
    };
    let flow = Ladder::Flow(Flow {
        levels: FlowLevels::Ladder(Box::new(Ladder::sigmas([1.0, 0.5, 0.0]))),
        shift: Shift::Mu(0.5),
        terminal: Some(0.25),
    });
    let examples = [
        (Ladder::karras(), r#""karras""#),
        (
            Ladder::karras_over(Spacing::Leading),
            r#"{"karras":{"rho":7.0,"over":"leading"}}"#,
        ),
        (
            karras(Span::between(0.1, 10.0)),
            r#"{"karras":{"rho":7.0,"sigma_min":0.1,"sigma_max":10.0}}"#,
        ),
        (Ladder::shaped(Shape::Lu), r#"{"lu":{}}"#),
        (
            Ladder::Timed(Timing::LcmEven { original_steps: 25 }),
            r#"{"lcm-even":{"original_steps":25}}"#,
        ),
        (
            Ladder::sigmas([14.5, 2.0, 0.0]),
            r#"{"sigmas":[14.5,2.0,0.0]}"#,
        ),
        (
            Ladder::timesteps([999.0, 0.5]),
            r#"{"timesteps":[999.0,0.5]}"#,
        ),
        (
            flow,
            r#"{"flow":{"levels":{"ladder":{"sigmas":[1.0,0.5,0.0]}},"shift":{"mu":0.5},"terminal":0.25}}"#,
        ),
    ];
    for (ladder, json) in examples {
        assert_eq!(written(&ladder), json);
        assert_eq!(ladder.to_string(), json.trim_matches('"'));
        assert_eq!(read(json), Ok(ladder));
    }
    let rho = read(r#"{"karras": {"rho": 5, "over": null}}"#);
    assert_eq!(rho, Ok(Ladder::shaped(Shape::Karras { rho: 5.0 })));
    let wrong = [
        (
            r#""cosine""#,
            "expected leading, linspace, trailing, karras",
        ),
        ("5", "expected a ladder: its name"),
        ("{}", "expected a ladder: its name"),
        (
            r#"{"karras": {}, "x": 1}"#,
            "two ladders `karras` and `x`, expected one",
        ),
        (
            r#"{"karras": {"alpha": 1}}"#,
            "unknown option `alpha`, expected an option of the ladder: `karras` has rho, over, sigma_min, sigma_max",
        ),
        (
            r#"{"turbo": {"rho": 1}}"#,
            "unknown option `rho`, expected an option of the ladder: `turbo` has none",
        ),
        (
            r#"{"lu": {"rho": 1}}"#,
            "expected an option of the ladder: `lu` has over, sigma_min, sigma_max",
        ),
        (
            r#"{"flow": 3}"#,
            "expected an object of options: `flow` has levels, shift, terminal",
        ),
        (
            r#"{"karras": {"rho": 5, "rho": 6}}"#,
            "duplicate field `rho`",
        ),
        (r#"{"karras": {"rho": "x"}}"#, "expected f64"),
        (r#"{"cosine": {}}"#, "cosine"),
    ];
    for (json, expected) in wrong {
        let error = read(json).unwrap_err();
        assert!(error.contains(expected), "{json}: {error}");
    }
    let long = "\\u001b[2J\u{202e}".repeat(1 << 16);
    for json in [
        format!("\"{long}\""),
        format!("{{\"{long}\": {{}}}}"),
        format!("{{\"karras\": {{\"{long}\": 1}}}}"),
        format!("{{\"karras\": {{}}, \"{long}\": 1}}"),
    ] {
        let error = read(&json).unwrap_err();
        assert!(error.len() < 2000 && !error.contains(['\u{1b}', '\u{202e}']));
    }
}

#[test]
fn the_documented_rungs() {
    let schedule = schedule(&SchedulerConfig::default());
    let ends = |ladder: Ladder| {
        let rungs = ladder
            .rungs(&schedule, 20, &Conventions::default())
            .unwrap();
        let timesteps = rungs.timesteps();
        (timesteps[0], timesteps[1], timesteps[19])
    };
    assert_eq!(ends(Ladder::leading()), (951.0, 901.0, 1.0));
    assert_eq!(ends(Ladder::linspace()), (999.0, 946.4211, 0.0));
    assert_eq!(ends(Ladder::trailing()), (999.0, 949.0, 49.0));
    assert_eq!(ends(Ladder::normal()), (999.0, 946.4211, 0.0));
    assert_eq!(ends(Ladder::sgm_uniform()), (999.0, 949.05, 49.95));
    assert_eq!(ends(Ladder::simple()), (999.0, 949.0, 49.0));
    assert_eq!(ends(Ladder::ddim_uniform()), (951.0, 901.0, 1.0));
}

#[test]
fn rho_bends_the_ladder() {
    let schedule = schedule(&SchedulerConfig::default());
    let middle = |rho| {
        let ladder = Ladder::shaped(Shape::Karras { rho });
        let rungs = ladder.rungs(&schedule, 11, &Conventions::default());
        rungs.unwrap().sigmas()[5]
    };
    assert!(middle(1.0) > middle(3.0) && middle(3.0) > middle(7.0));
    assert!((middle(1.0) - (schedule.sigma_max() + schedule.sigma_min()) / 2.0).abs() < 1e-5);
}

#[test]
fn a_one_point_linspace_starts_at_the_noisy_end() {
    let schedule = schedule(&SchedulerConfig::default());
    let rungs = Ladder::linspace()
        .rungs(&schedule, 1, &Conventions::default())
        .unwrap();
    assert_eq!(rungs.timesteps(), [999.0]);
    assert_eq!(rungs.sigmas(), [schedule.sigma_max(), 0.0]);
}

/// Sigmas lie between the fifty timesteps, and the model is given one of the fifty.
#[test]
fn the_timesteps_of_lcm_at_even_distances() {
    let schedule = schedule(&SchedulerConfig::default());
    let rungs = |steps, conventions: Conventions| {
        let rungs = Ladder::lcm_even().rungs(&schedule, steps, &conventions);
        rungs.unwrap()
    };
    let trained = |timestep: usize| schedule.sigmas()[timestep];
    let close = |found: f32, expected: f32| (found / expected - 1.0).abs() < 1e-6;
    let all = rungs(50, Conventions::default());
    for (i, (&timestep, &sigma)) in all.timesteps().iter().zip(all.sigmas()).enumerate() {
        assert_eq!(timestep, 999.0 - 20.0 * i as f32);
        assert!(close(sigma, trained(timestep as usize)), "{timestep}");
    }
    let three = rungs(3, Conventions::default());
    // The sigma is half-way between timesteps 519 and 499.
    assert_eq!(three.timesteps(), [999.0, 499.0, 19.0]);
    let between = (trained(519) * trained(499)).sqrt();
    assert!(close(three.sigmas()[1], between));
    let on_grid = Conventions {
        on_grid_only: true,
        ..Conventions::default()
    };
    let three = rungs(3, on_grid);
    assert_eq!(three.timesteps(), [999.0, 509.0, 19.0]);
    assert_eq!(three.sigmas()[1], trained(509));
    assert_eq!(rungs(1, on_grid).timesteps(), [999.0]);
}

#[test]
fn wrong_requests_are_errors() {
    let schedule = schedule(&SchedulerConfig::default());
    let rungs = |ladder: Ladder, steps| ladder.rungs(&schedule, steps, &Conventions::default());
    for (ladder, steps, max) in [
        (Ladder::leading(), 0, 1000),
        (Ladder::leading(), 1001, 1000),
        (Ladder::turbo(), 11, 10),
        (Ladder::lcm(), 51, 50),
    ] {
        let expected = LadderError::Steps { steps, max };
        assert_eq!(rungs(ladder, steps), Err(expected));
    }
    let karras = |rho| Ladder::shaped(Shape::Karras { rho });
    let beta = |alpha| Ladder::shaped(Shape::Beta { alpha, beta: 0.6 });
    let lcm = |original_steps, strength| {
        Ladder::Timed(Timing::Lcm {
            original_steps,
            strength,
        })
    };
    for ladder in [
        karras(0.0),
        karras(-1.0),
        karras(f64::INFINITY),
        karras(f64::NAN),
        beta(0.0),
        beta(f64::NAN),
        Ladder::Gits { coefficient: 1.22 },
        Ladder::Gits { coefficient: 1.55 },
        lcm(50, 0.0),
        lcm(50, -0.5),
        lcm(50, 1.01),
        lcm(50, f64::NAN),
        lcm(0, 1.0),
        Ladder::Timed(Timing::LcmEven { original_steps: 0 }),
    ] {
        let error = rungs(ladder.clone(), 5);
        assert!(
            matches!(error, Err(LadderError::Value { .. })),
            "{ladder:?}: {error:?}"
        );
    }
    for rho in [1e-30, 1e30] {
        assert!(
            matches!(rungs(karras(rho), 5), Err(LadderError::Sigma { .. })),
            "{rho}"
        );
    }
    for (min, max) in [(10.0, 0.1), (0.0, 1.0), (1.0, f64::INFINITY)] {
        let ladder = Ladder::Shaped {
            shape: Shape::Exponential,
            over: Span::between(min, max),
        };
        assert_eq!(rungs(ladder, 5), Err(LadderError::Span { min, max }));
    }
    let sigmas = Ladder::sigmas([2.0, 1.0, 0.0]);
    assert_eq!(
        rungs(sigmas, 3),
        Err(LadderError::Given { steps: 3, given: 2 })
    );
    assert!(matches!(
        rungs(Ladder::sigmas([1.0, 2.0, 0.0]), 2),
        Err(LadderError::Sigma { index: 1, .. })
    ));
    assert!(matches!(
        rungs(Ladder::timesteps([1200.0, 1100.0]), 2),
        Err(LadderError::Timestep { index: 0, .. })
    ));
    let on_grid = Conventions {
        on_grid_only: true,
        ..Default::default()
    };
    for ladder in [
        Ladder::karras(),
        Ladder::timesteps([5.5, 4.0, 3.0, 2.0, 1.0]),
    ] {
        let rungs = ladder.rungs(&schedule, 5, &on_grid);
        assert_eq!(rungs, Err(LadderError::OffGrid));
    }
}
