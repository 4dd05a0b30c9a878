//! Every ladder against its formula in float64 from `tests/golden/ladders.py`, and the properties
//! that all ladders share.

#![allow(clippy::unwrap_used)] // Clippy exempts only functions with #[test].

use std::sync::Arc;

use sd_schedulers::{
    Ladder, NoiseSchedule, Prediction, Rungs, SchedulerConfig,
    ladders::{
        AlignYourSteps, AlignedModel, Conventions, FinalSigma, Flow, FlowLevels, LadderError,
        NoisePath, PointCount, ResolutionShift, Shape, Shift, Spacing, Span, StrengthRule,
        TimestepRounding, Vp,
    },
    schedule::BetaSchedule,
};
use serde_json::Value;

const EDM: Prediction = Prediction::Edm {
    sigma_data: 0.5,
    v: false,
};

fn schedule(prediction: Prediction) -> Arc<NoiseSchedule> {
    let config = SchedulerConfig {
        prediction,
        ..Default::default()
    };
    Arc::new(NoiseSchedule::new(&config).unwrap())
}

fn over(shape: Shape, sigma_min: f64, sigma_max: f64) -> Ladder {
    Ladder::Shaped {
        shape,
        over: Span::between(sigma_min, sigma_max),
    }
}

/// Returns the ladder and the conventions that a name of the golden file stands for.
fn named(name: &str) -> (Ladder, Conventions) {
    let plain = Conventions::default();
    let whole = Conventions {
        integer_timesteps: true,
        ..plain
    };
    let one_more = Conventions {
        counting: PointCount::NPlusOne,
        ..whole
    };
    let on_flow = Conventions {
        flow: NoisePath::Flow,
        ..plain
    };
    let karras = |rho| Shape::Karras { rho };
    let table = |model, three_digits| {
        Ladder::AlignYourSteps(AlignYourSteps {
            three_digits,
            keep_last: three_digits,
            ..AlignYourSteps::new(model)
        })
    };
    let flow = |levels, shift| {
        let terminal = None;
        Ladder::Flow(Flow {
            levels,
            shift,
            terminal,
        })
    };
    match name {
        "leading N" => (Ladder::leading(), plain),
        "linspace N" => (Ladder::linspace(), plain),
        "linspace N whole" => (Ladder::linspace(), whole),
        "trailing N" => (Ladder::trailing(), plain),
        "leading N+1" => (Ladder::leading(), one_more),
        "linspace N+1" => (Ladder::linspace(), one_more),
        "trailing N+1" => (Ladder::trailing(), one_more),
        "karras over leading" => (Ladder::karras_over(Spacing::Leading), plain),
        "karras over linspace" => (Ladder::karras_over(Spacing::Linspace), plain),
        "karras over trailing" => (Ladder::karras_over(Spacing::Trailing), plain),
        "karras rho 5" => (Ladder::shaped(karras(5.0)), plain),
        "karras webui old" => (over(karras(7.0), 0.1, 10.0), plain),
        "polyexponential rho 1" => (Ladder::polyexponential(), plain),
        "polyexponential rho 2" => {
            let shape = Shape::Polyexponential { rho: 2.0 };
            (Ladder::shaped(shape), plain)
        }
        "beta 0.5 0.7" => {
            let (alpha, beta) = (0.5, 0.7);
            (Ladder::shaped(Shape::Beta { alpha, beta }), plain)
        }
        "kl-optimal webui" => {
            let ends_at_lowest = true;
            (Ladder::shaped(Shape::KlOptimal { ends_at_lowest }), plain)
        }
        "gits 0.80" => (Ladder::Gits { coefficient: 0.8 }, plain),
        "align-your-steps sd15" => (table(AlignedModel::Sd15, false), plain),
        "align-your-steps sdxl" => (table(AlignedModel::Sdxl, false), plain),
        "align-your-steps svd" => (table(AlignedModel::Svd, false), plain),
        "align-your-steps webui sd15" => (table(AlignedModel::Sd15, true), plain),
        "align-your-steps webui sdxl" => (table(AlignedModel::Sdxl, true), plain),
        "linear-quadratic flow" => (Ladder::linear_quadratic(), on_flow),
        "flow N shift 1" => (Ladder::flow(), on_flow),
        "flow N shift 3" => (Ladder::flow_shifted(3.0), on_flow),
        "flow pipeline mu 0.9" => (flow(FlowLevels::Even, Shift::Mu(0.9)), on_flow),
        "flow dynamic mu 0.9" => (flow(FlowLevels::Trained, Shift::Mu(0.9)), on_flow),
        "flow dpm shift 3" => (flow(FlowLevels::Dpm, Shift::By(3.0)), on_flow),
        "flow unipc shift 3" => (flow(FlowLevels::UniPc, Shift::By(3.0)), on_flow),
        other => (other.parse().unwrap(), plain),
    }
}

/// The golden values come from alpha-bars in float64, and this crate's from diffusers' alpha-bars
/// in float32. The difference is 1.3e-5 of sigma at timestep 0, and at most 1e-3 of a timestep
/// anywhere. Sigmas that do not depend on the model are equal to one rounding.
#[test]
fn equal_their_formulas() {
    let golden: Value = serde_json::from_str(include_str!("golden/ladders.json")).unwrap();
    let mut worst = [0.0_f64; 3];
    for row in golden["ladders"].as_array().unwrap() {
        let name = row["ladder"].as_str().unwrap();
        let steps = usize::try_from(row["steps"].as_u64().unwrap()).unwrap();
        let (ladder, conventions) = named(name);
        // numpy's linspace of one point is the clean end, which this crate does not follow.
        if steps == 1 && name.contains("linspace") && conventions.counting == PointCount::N {
            continue;
        }
        let flow = conventions.flow == NoisePath::Flow;
        let prediction = match flow {
            true => Prediction::Flow,
            false => Prediction::Epsilon,
        };
        let own = flow
            || ["vp", "karras webui old"].contains(&name)
            || name.starts_with("align-your-steps");
        let rungs = ladder.rungs(&schedule(prediction), steps, &conventions);
        let rungs = rungs.unwrap_or_else(|error| panic!("{name} {steps}: {error}"));
        let numbers = |key: &str| -> Vec<f64> {
            let numbers = row[key].as_array().unwrap().iter();
            numbers.map(|number| number.as_f64().unwrap()).collect()
        };
        let (sigmas, timesteps) = (numbers("sigmas"), numbers("timesteps"));
        assert_eq!(rungs.sigmas().len(), sigmas.len(), "{name} {steps}");
        assert_eq!(rungs.timesteps().len(), timesteps.len(), "{name} {steps}");
        for (&found, expected) in rungs.sigmas().iter().zip(sigmas) {
            let error = (f64::from(found) - expected).abs();
            let tolerance = if own { 1e-7 } else { 2e-5 };
            assert!(
                error <= tolerance * expected,
                "{name} {steps}: sigma {found} != {expected}"
            );
            if expected > 0.0 {
                let worst = &mut worst[usize::from(own)];
                *worst = worst.max(error / expected);
            }
        }
        for (&found, expected) in rungs.timesteps().iter().zip(timesteps) {
            let error = (f64::from(found) - expected).abs();
            assert!(
                error <= 2e-3,
                "{name} {steps}: timestep {found} != {expected}"
            );
            worst[2] = worst[2].max(error);
        }
    }
    println!("worst errors of the model's sigmas, of others, of timesteps: {worst:?}");
}

/// Whether the ladder does not support this kind of model.
fn refused(name: &str, prediction: Prediction) -> bool {
    let timesteps = [
        "leading",
        "linspace",
        "trailing",
        "beta-timesteps",
        "normal",
        "sgm-uniform",
        "simple",
        "ddim-uniform",
        "turbo",
        "lcm",
        "lcm-even",
    ];
    let sd_sigmas = ["align-your-steps", "align-your-steps-sdxl", "gits"];
    match prediction {
        Prediction::Flow => {
            sd_sigmas.contains(&name) || ["align-your-steps-svd", "laplace", "vp"].contains(&name)
        }
        Prediction::Edm { .. } => {
            sd_sigmas.contains(&name) || timesteps.contains(&name) || name == "flow"
        }
        _ => name == "flow",
    }
}

#[test]
fn every_ladder_falls_on_every_model_or_is_refused() {
    for prediction in [Prediction::Epsilon, Prediction::Flow, EDM] {
        let schedule = schedule(prediction);
        for (name, ladder) in Ladder::NAMED {
            for flow in [NoisePath::Exploding, NoisePath::Flow] {
                let conventions = Conventions {
                    flow,
                    ..Default::default()
                };
                for steps in (1..=60).chain([99, 138, 139, 430, 999, 1000]) {
                    let what = format!("{name} {steps} {prediction:?} {flow:?}");
                    let rungs = ladder.rungs(&schedule, steps, &conventions);
                    if refused(name, prediction) {
                        assert!(matches!(rungs, Err(LadderError::Model { .. })), "{what}");
                        continue;
                    }
                    let most = match *name {
                        "turbo" => 10,
                        "lcm" => 50,
                        _ => 1000,
                    };
                    if steps > most {
                        let expected = LadderError::Steps { steps, max: most };
                        assert_eq!(rungs, Err(expected), "{what}");
                        continue;
                    }
                    let rungs = rungs.unwrap_or_else(|error| panic!("{what}: {error}"));
                    falls(&rungs, &what);
                    let expected = match *name {
                        "ddim-uniform" => 999_usize.div_ceil(1000 / steps),
                        _ => steps,
                    };
                    assert_eq!(rungs.steps(), expected, "{what}");
                    let on_flow = prediction == Prediction::Flow && flow == NoisePath::Flow;
                    assert_eq!(rungs.path() == NoisePath::Flow, on_flow, "{what}");
                }
            }
        }
    }
}

fn falls(rungs: &Rungs, what: &str) {
    assert!(rungs.sigmas().is_sorted_by(|a, b| a > b), "{what}");
    assert_eq!(rungs.sigmas().last(), Some(&0.0), "{what}");
    assert!(rungs.timesteps().is_sorted_by(|a, b| a >= b), "{what}");
}

/// For samplers that cannot leave the whole timesteps.
#[test]
fn ladders_on_the_grid_are_whole_and_distinct() {
    let config = SchedulerConfig {
        rescale_betas_zero_snr: true,
        ..Default::default()
    };
    let schedule = Arc::new(NoiseSchedule::new(&config).unwrap());
    let conventions = Conventions {
        integer_timesteps: true,
        on_grid_only: true,
        ..Default::default()
    };
    for (name, ladder) in Ladder::NAMED {
        for steps in [1, 2, 7, 10, 50, 499, 999, 1000] {
            let what = format!("{name} {steps}");
            match ladder.rungs(&schedule, steps, &conventions) {
                Ok(rungs) => {
                    assert!(ladder.on_grid(), "{what}");
                    falls(&rungs, &what);
                    let timesteps = rungs.timesteps();
                    assert!(timesteps.iter().all(|t| t.fract() == 0.0), "{what}");
                    assert!(timesteps.is_sorted_by(|a, b| a > b), "{what}");
                    // A last alpha-bar of 0 is pure noise.
                    let (top, sigma) = (timesteps[0], rungs.sigmas()[0]);
                    assert_eq!(top == 999.0, sigma == 1_048_576.0, "{what}");
                }
                Err(LadderError::Steps { .. }) => {
                    assert!(["turbo", "lcm"].contains(name), "{what}");
                }
                Err(LadderError::OffGrid) => assert!(!ladder.on_grid(), "{what}"),
                Err(error) => assert!(*name == "flow", "{what}: {error}"),
            }
        }
    }
}

#[test]
fn a_run_ends_where_the_sampler_or_the_ladder_says() {
    let ends = |ladder: &Ladder, prediction| {
        let conventions = Conventions {
            end: FinalSigma::SigmaMin,
            flow: NoisePath::Flow,
            ..Default::default()
        };
        let schedule = schedule(prediction);
        let rungs = ladder.rungs(&schedule, 5, &conventions).unwrap();
        let sigmas = rungs.sigmas();
        (sigmas[4], sigmas[5], schedule.sigma_min())
    };
    for ladder in [Ladder::trailing(), Ladder::sgm_uniform(), Ladder::simple()] {
        let (last, end, sigma_min) = ends(&ladder, Prediction::Epsilon);
        assert!(end == sigma_min && last > end, "{ladder:?}");
    }
    // This step has no length.
    for ladder in [
        Ladder::linspace(),
        Ladder::karras(),
        Ladder::linear_quadratic(),
    ] {
        let (last, end, _) = ends(&ladder, Prediction::Epsilon);
        assert_eq!(last, end, "{ladder:?}");
    }
    for ladder in [Ladder::trailing(), Ladder::flow(), Ladder::karras()] {
        let (last, end, _) = ends(&ladder, Prediction::Flow);
        assert_eq!(last, end, "{ladder:?}");
    }
    let (last, end, _) = ends(&Ladder::karras(), EDM);
    assert_eq!(last, end);
    let own = Ladder::sigmas([9.0, 5.0, 4.0, 3.0, 2.0, 1.0]);
    assert_eq!(ends(&own, Prediction::Epsilon).1, 1.0);
}

#[test]
fn the_cleanest_rung_is_left_out() {
    let schedule = schedule(Prediction::Epsilon);
    let less = Conventions {
        drop_next_to_last: true,
        ..Default::default()
    };
    for (name, ladder) in Ladder::NAMED {
        if ["flow", "ddim-uniform"].contains(name) {
            continue;
        }
        let found = ladder.rungs(&schedule, 5, &less).unwrap();
        let whole = ladder.rungs(&schedule, 6, &Conventions::default()).unwrap();
        assert_eq!(found.sigmas()[..5], whole.sigmas()[..5], "{name}");
        assert_eq!(found.sigmas()[5..], [0.0], "{name}");
        assert_eq!(found.timesteps(), &whole.timesteps()[..5], "{name}");
    }
    let steps = |ladder: Ladder, steps| ladder.rungs(&schedule, steps, &less).map(|r| r.steps());
    let max = |steps, max| Err(LadderError::Steps { steps, max });
    assert_eq!(steps(Ladder::leading(), 999), Ok(999));
    assert_eq!(steps(Ladder::leading(), 1000), max(1000, 999));
    assert_eq!(steps(Ladder::turbo(), 10), max(10, 9));
    assert_eq!(steps(Ladder::sigmas([2.0, 1.0, 0.0]), 2), Ok(2));
    // Given sigmas that are shifted keep their number of steps too.
    let flow = self::schedule(Prediction::Flow);
    for (given, levels) in [
        (2, Ladder::sigmas([1.0, 0.5, 0.0])),
        (3, Ladder::timesteps([1000.0, 500.0, 250.0])),
        (5, Ladder::simple()),
    ] {
        let ladder = Ladder::Flow(Flow {
            levels: FlowLevels::Ladder(Box::new(levels)),
            ..Flow::default()
        });
        let rungs = ladder.rungs(&flow, given, &less).unwrap();
        assert_eq!(rungs.steps(), given, "{ladder:?}");
        let whole = ladder.rungs(&flow, given, &Conventions::default());
        let dropped = given == 5;
        assert_eq!(rungs != whole.unwrap(), dropped, "{ladder:?}");
    }
}

#[test]
fn too_few_steps_are_refused() {
    let needs_four = Conventions {
        min_steps: 4,
        ..Default::default()
    };
    let rungs = Ladder::leading().rungs(&schedule(Prediction::Epsilon), 3, &needs_four);
    let error = rungs.unwrap_err();
    assert_eq!(error, LadderError::TooFew { steps: 3, min: 4 });
    assert_eq!(error.to_string(), "steps: expected at least 4, found 3");
}

/// The expected values are what diffusers' classes pass to the model.
#[test]
fn timesteps_are_told_as_the_sampler_says() {
    let told = |ladder: &Ladder, told, beta_schedule, prediction| {
        let config = SchedulerConfig {
            prediction,
            beta_schedule,
            ..Default::default()
        };
        let conventions = Conventions {
            timestep_rounding: told,
            ..Default::default()
        };
        let schedule = Arc::new(NoiseSchedule::new(&config).unwrap());
        let rungs = ladder.rungs(&schedule, 12, &conventions).unwrap();
        rungs.timesteps().to_vec()
    };
    /// Whether the second timesteps are the first ones after this kind of rounding. Timesteps just
    /// below a whole one are whole as float32.
    type Check = fn(&[f32], &[f32]) -> bool;
    let as_it_is: Check = |exact, found| exact == found;
    let rounded: Check = |exact, found| {
        let off = |(e, f): (&f32, &f32)| f.fract() == 0.0 && (e - f).abs() < 0.5001;
        let up = |(e, f): (&f32, &f32)| e - f < -0.01;
        exact.iter().zip(found).all(off) && exact.iter().zip(found).any(up)
    };
    let cut: Check = |exact, found| {
        let off = |(e, f): (&f32, &f32)| f.fract() == 0.0 && (-1e-3..1.0001).contains(&(e - f));
        let far = |(e, f): (&f32, &f32)| e - f > 0.51;
        exact.iter().zip(found).all(off) && exact.iter().zip(found).any(far)
    };
    let (karras, exponential) = (Ladder::karras(), Ladder::exponential());
    let (lu, kl) = (Ladder::shaped(Shape::Lu), Ladder::kl_optimal());
    let (sd, cosine) = (BetaSchedule::ScaledLinear, BetaSchedule::Cosine);
    let cases = [
        (&karras, TimestepRounding::KarrasRounded, sd, rounded),
        (&exponential, TimestepRounding::KarrasRounded, sd, as_it_is),
        (&lu, TimestepRounding::KarrasRounded, sd, as_it_is),
        (&karras, TimestepRounding::Whole, sd, rounded),
        (&lu, TimestepRounding::Whole, sd, rounded),
        (&exponential, TimestepRounding::Whole, sd, cut),
        (&Ladder::beta(), TimestepRounding::Whole, sd, cut),
        (&kl, TimestepRounding::Whole, sd, rounded),
        (&Ladder::normal(), TimestepRounding::Whole, sd, rounded),
        (&Ladder::linspace(), TimestepRounding::Whole, sd, as_it_is),
        (&karras, TimestepRounding::Whole, cosine, cut),
        (&lu, TimestepRounding::Whole, cosine, cut),
        (&karras, TimestepRounding::WholeOnCosineToo, cosine, rounded),
        (
            &exponential,
            TimestepRounding::WholeOnCosineToo,
            cosine,
            cut,
        ),
    ];
    for (ladder, how, betas, expected) in cases {
        let exact = told(
            ladder,
            TimestepRounding::Exactly,
            betas,
            Prediction::Epsilon,
        );
        let found = told(ladder, how, betas, Prediction::Epsilon);
        assert!(expected(&exact, &found), "{ladder:?} {how:?} {betas:?}");
    }
    for ladder in [&Ladder::flow_shifted(3.0), &karras] {
        let exact = told(ladder, TimestepRounding::Exactly, sd, Prediction::Flow);
        let found = told(ladder, TimestepRounding::Whole, sd, Prediction::Flow);
        assert!(cut(&exact, &found), "{ladder:?}");
    }
    let exact = told(&karras, TimestepRounding::Exactly, sd, EDM);
    assert_eq!(told(&karras, TimestepRounding::Whole, sd, EDM), exact);
}

#[test]
fn spans_replace_the_range() {
    let schedule = schedule(Prediction::Epsilon);
    let ends = |over| {
        let shape = Shape::Karras { rho: 7.0 };
        let rungs = Ladder::Shaped { shape, over }.rungs(&schedule, 8, &Conventions::default());
        let rungs = rungs.unwrap();
        [rungs.sigmas()[0], rungs.sigmas()[7], rungs.initial_scale()]
    };
    let close = |found: [f32; 3], expected: [f32; 3]| {
        let off = |(f, e): (&f32, &f32)| (f / e - 1.0).abs() < 1e-6;
        assert!(
            found.iter().zip(&expected).all(off),
            "{found:?} {expected:?}"
        );
    };
    let (low, high) = (schedule.sigma_min(), schedule.sigma_max());
    close(ends(Span::TRAINED), [high, low, high]);
    close(ends(Span::between(0.1, 10.0)), [10.0, 0.1, 10.0]);
    let (first, last) = (schedule.sigma_at(876.0), schedule.sigma_at(1.0));
    let leading = Span::from(Spacing::Leading);
    close(ends(leading), [first, last, first.hypot(1.0)]);
    let highest = Span {
        sigma_max: Some(20.0),
        ..leading
    };
    close(ends(highest), [20.0, last, 20.0_f32.hypot(1.0)]);
}

#[test]
fn one_s_own_sigmas_and_timesteps() {
    let schedule = schedule(Prediction::Epsilon);
    let plain = Conventions::default();
    let rungs = Ladder::sigmas([10.0, 3.0, 0.5, 0.0]).rungs(&schedule, 3, &plain);
    let rungs = rungs.unwrap();
    assert_eq!(rungs.sigmas(), [10.0, 3.0, 0.5, 0.0]);
    for (timestep, sigma) in rungs.timesteps().iter().zip([10.0, 3.0, 0.5]) {
        assert_eq!(*timestep, schedule.timestep_at(sigma));
    }
    let rungs = Ladder::timesteps([999.0, 500.5, 3.0]).rungs(&schedule, 3, &plain);
    let rungs = rungs.unwrap();
    assert_eq!(rungs.timesteps(), [999.0, 500.5, 3.0]);
    for (sigma, timestep) in rungs.sigmas().iter().zip([999.0, 500.5, 3.0]) {
        assert_eq!(*sigma, schedule.sigma_at(timestep));
    }
    let rungs = Ladder::timesteps([5.0, 5.0]).rungs(&schedule, 2, &plain);
    assert!(matches!(rungs, Err(LadderError::Sigma { index: 1, .. })));
}

/// The same run in both scalings.
#[test]
fn flow_ladders_explode() {
    let schedule = schedule(Prediction::Flow);
    let plain = Conventions::default();
    let on_flow = Conventions {
        flow: NoisePath::Flow,
        ..plain
    };
    for ladder in [
        Ladder::flow(),
        Ladder::flow_shifted(3.0),
        Ladder::trailing(),
    ] {
        let flow = ladder.rungs(&schedule, 10, &on_flow).unwrap();
        let exploding = ladder.rungs(&schedule, 10, &plain).unwrap();
        assert_eq!(flow.timesteps(), exploding.timesteps());
        assert_eq!((flow.sigmas()[0], flow.initial_scale()), (1.0, 1.0));
        // 1 - 1 / T stands for 1.
        assert!((exploding.sigmas()[0] - 999.0).abs() < 1e-3);
        assert!((exploding.initial_scale() - 1000.0).abs() < 1e-3);
        for (flow, exploding) in flow.sigmas().iter().zip(exploding.sigmas()).skip(1) {
            assert!((exploding / (1.0 + exploding) - flow).abs() < 1e-6);
        }
        assert_eq!(flow.exploding().timesteps(), exploding.timesteps());
    }
}

#[test]
fn every_flow_option_changes_the_ladder() {
    let schedule = schedule(Prediction::Flow);
    let on_flow = Conventions {
        flow: NoisePath::Flow,
        ..Default::default()
    };
    let sigmas = |flow: Flow, steps| {
        let rungs = Ladder::Flow(flow).rungs(&schedule, steps, &on_flow);
        rungs.map(|rungs| rungs.sigmas().to_vec())
    };
    let with = |levels| Flow {
        levels,
        shift: Shift::By(2.0),
        terminal: None,
    };
    let every = [
        FlowLevels::ShiftedEnd,
        FlowLevels::Trained,
        FlowLevels::Even,
        FlowLevels::Dpm,
        FlowLevels::UniPc,
        FlowLevels::Exploding {
            shape: Shape::Karras { rho: 7.0 },
            sigma_min: 0.03,
            sigma_max: 14.6,
        },
        FlowLevels::Ladder(Box::new(Ladder::karras())),
    ];
    for (i, levels) in every.iter().enumerate() {
        let found = sigmas(with(levels.clone()), 7).unwrap();
        let earlier = every[..i].iter();
        let mut earlier = earlier.map(|levels| sigmas(with(levels.clone()), 7).unwrap());
        assert!(earlier.all(|other| other != found), "{levels:?}");
        let shifted = Flow {
            shift: Shift::By(3.0),
            ..with(levels.clone())
        };
        let alike = matches!(levels, FlowLevels::Exploding { .. });
        assert_eq!(sigmas(shifted, 7).unwrap() == found, alike, "{levels:?}");
    }
    // Each given level is shifted, and the end is too.
    let given = FlowLevels::Ladder(Box::new(Ladder::sigmas([1.0, 0.5, 0.25])));
    let found = sigmas(with(given), 2).unwrap();
    assert!((found[1] - 2.0 / 3.0).abs() < 1e-7 && (found[2] - 0.4).abs() < 1e-7);

    let terminal = Flow {
        terminal: Some(0.1),
        ..with(FlowLevels::ShiftedEnd)
    };
    let found = sigmas(terminal.clone(), 7).unwrap();
    assert!(found[0] == 1.0 && (found[6] - 0.1).abs() < 1e-7 && found[7] == 0.0);
    let refused = LadderError::TooFew { steps: 1, min: 2 };
    assert_eq!(sigmas(terminal, 1), Err(refused));
    for shift in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let wrong = Flow {
            shift: Shift::By(shift),
            ..Flow::default()
        };
        assert!(matches!(sigmas(wrong, 5), Err(LadderError::Value { .. })));
    }
    let laplace = with(FlowLevels::Ladder(Box::new(Ladder::laplace())));
    assert!(matches!(sigmas(laplace, 5), Err(LadderError::Model { .. })));
}

#[test]
fn larger_pictures_are_shifted_further() {
    let schedule = schedule(Prediction::Flow);
    let middle = |width, height| {
        let ladder = Ladder::Flow(Flow {
            shift: Shift::Resolution(ResolutionShift::default()),
            ..Flow::default()
        });
        let rungs = ladder.for_size(width, height).rungs(
            &schedule,
            11,
            &Conventions {
                flow: NoisePath::Flow,
                ..Default::default()
            },
        );
        rungs.unwrap().sigmas()[5]
    };
    assert!(middle(256, 256) < middle(512, 512) && middle(512, 512) < middle(1024, 1024));
    assert_eq!(Ladder::karras().for_size(64, 64), Ladder::karras());
}

#[test]
fn vp_ignores_the_model_s_range() {
    let rungs = |vp| {
        let rungs = Ladder::Vp(vp).rungs(&schedule(EDM), 3, &Conventions::default());
        rungs.unwrap().sigmas().to_vec()
    };
    let default = rungs(Vp::default());
    assert!(default[0] > 152.0 && default[0] < 153.0);
    let options = [
        Vp {
            beta_d: 10.0,
            ..Vp::default()
        },
        Vp {
            beta_min: 0.2,
            ..Vp::default()
        },
        Vp {
            epsilon: 0.01,
            ..Vp::default()
        },
    ];
    assert!(options.into_iter().all(|vp| rungs(vp) != default));
}

/// A run with a strength is the end of the whole run.
#[test]
fn image_to_image_runs_the_last_rungs() {
    let schedule = schedule(Prediction::Epsilon);
    let plain = Conventions::default();
    for (rule, strength, kept) in [
        (StrengthRule::Diffusers, 0.35, 7),
        (StrengthRule::DiffusersFlow, 0.36, 8),
        (StrengthRule::WebUi, 0.35, 8),
        (StrengthRule::WebUiExact, 0.35, 20),
        (StrengthRule::ComfyUi, 0.35, 20),
    ] {
        let (steps, first) = rule.part(20, strength);
        let whole = Ladder::karras().rungs(&schedule, steps, &plain).unwrap();
        let part = whole.clone().starting_at(first).unwrap();
        assert_eq!(part.steps(), kept, "{rule:?}");
        assert_eq!(part.sigmas(), &whole.sigmas()[first..], "{rule:?}");
        assert_eq!(part.timesteps(), &whole.timesteps()[first..], "{rule:?}");
        assert_eq!(part.initial_scale(), whole.sigmas()[first], "{rule:?}");
    }
    let (steps, first) = StrengthRule::Diffusers.part(20, 0.01);
    let whole = Ladder::karras().rungs(&schedule, steps, &plain).unwrap();
    assert_eq!(
        whole.starting_at(first),
        Err(LadderError::Part {
            first: 20,
            end: 20,
            steps: 20
        })
    );
}

/// With diffusers' fraction 0.8, the base model runs 16 of 20 steps and the refiner runs 4, without
/// gap or overlap.
#[test]
fn base_and_refiner_share_a_run() {
    let schedule = schedule(Prediction::Epsilon);
    let whole = Ladder::leading().rungs(&schedule, 20, &Conventions::default());
    let whole = whole.unwrap();
    let base = whole.clone().denoising_end(0.8).unwrap();
    let refiner = whole.clone().denoising_start(0.8).unwrap();
    assert_eq!((base.steps(), refiner.steps()), (16, 4));
    assert_eq!(base.sigmas().last(), refiner.sigmas().first());
    assert_eq!(base.initial_scale(), whole.initial_scale());
    let edm = Ladder::karras().rungs(&self::schedule(EDM), 20, &Conventions::default());
    let edm = edm.unwrap().denoising_end(0.8);
    assert!(matches!(edm, Err(LadderError::Model { .. })));
}
