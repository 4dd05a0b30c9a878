//! Properties of every sampler of the table on every named ladder, with every kind of model.

#![allow(clippy::unwrap_used)] // Clippy exempts only functions with #[test].

mod toy;

use std::ops::ControlFlow;
use std::sync::Arc;

use sd_schedulers::{
    Ladder, NoiseSchedule, Prediction, Rungs, Sampler, SchedulerConfig, from_comfyui, from_webui,
    ladders::{Conventions, FinalSigma, LadderError, Spacing},
    noise::TorchRng,
    sample,
    samplers::{
        Calls, Ddim, Dpm2Ancestral, DpmAdaptive, DpmFast, DpmPlusPlusSde, EndPoint, ErSde, Euler,
        EulerAncestral, EulerCfgPp, Heun, Lcm, LcmBoundary, Restart, RestartSegment, SaSolver,
        SamplerRow, TABLE, Tcd,
    },
    schedule::ClipSample,
};
use toy::{Reached, Toy, distance, start};

const MODELS: [Prediction; 5] = [
    Prediction::Epsilon,
    Prediction::V,
    Prediction::Sample,
    Prediction::Flow,
    Prediction::Edm {
        sigma_data: 0.5,
        v: false,
    },
];

/// Restart's plan changes at 20 and 36.
const STEPS: [usize; 7] = [1, 2, 3, 7, 19, 20, 40];

fn config(prediction: Prediction) -> SchedulerConfig {
    SchedulerConfig {
        prediction,
        ..SchedulerConfig::default()
    }
}

fn schedule(prediction: Prediction) -> Arc<NoiseSchedule> {
    Arc::new(NoiseSchedule::new(&config(prediction)).unwrap())
}

/// Returns the reason for which a combination must be refused, as a part of the error text.
fn refused(
    row: &SamplerRow,
    ladder: &str,
    prediction: Prediction,
    steps: usize,
) -> Option<&'static str> {
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
    let of_stable_diffusion = ["align-your-steps", "align-your-steps-sdxl", "gits"];
    let on_grid_only = row.needs == "integer timesteps";
    let min_steps = if row.name == "pndm" { 4 } else { 1 };
    let model = match prediction {
        Prediction::Flow => ["align-your-steps-svd", "laplace", "vp"]
            .iter()
            .chain(&of_stable_diffusion)
            .any(|refused| *refused == ladder)
            .then_some("does not support a flow model"),
        Prediction::Edm { .. }
            if timesteps
                .iter()
                .chain(&of_stable_diffusion)
                .chain(&["flow"])
                .any(|refused| *refused == ladder) =>
        {
            Some("does not support an EDM model")
        }
        Prediction::Edm { .. } => ["lcm", "tcd"]
            .contains(&row.name)
            .then_some("with training timesteps does not support an EDM model"),
        _ => (ladder == "flow").then_some("does not support a diffusion model"),
    };
    let of_diffusion = !matches!(prediction, Prediction::Flow | Prediction::Edm { .. });
    if steps < min_steps {
        Some("expected at least 4")
    } else if model.is_some() {
        model
    } else if on_grid_only && !(of_diffusion && timesteps.contains(&ladder)) {
        Some("needs whole training timesteps")
    } else if ladder == "turbo" && steps > 10 {
        Some("expected 1 to 10")
    } else {
        None
    }
}

#[test]
fn every_combination_runs_as_the_table_says_or_is_refused_with_the_reason() {
    let mut runs = 0;
    for prediction in MODELS {
        let schedule = schedule(prediction);
        for row in TABLE {
            let sampler = (row.build)(&config(prediction));
            for (name, ladder) in Ladder::NAMED {
                for steps in STEPS {
                    let what = format!("{} on {name}, {prediction:?}, {steps} steps", row.name);
                    let rungs = ladder.rungs(&schedule, steps, &sampler.conventions());
                    match (rungs, refused(row, name, prediction, steps)) {
                        (Ok(rungs), None) => {
                            runs += 1;
                            runs_as_told(row, &*sampler, &rungs, prediction, &what);
                        }
                        (Err(error), Some(reason)) => {
                            let error = error.to_string();
                            assert!(error.contains(reason), "{what}: {error}, not {reason}");
                        }
                        (Ok(_), Some(reason)) => panic!("{what}: runs, expected {reason:?}"),
                        (Err(error), None) => panic!("{what}: {error}"),
                    }
                }
            }
        }
    }
    println!("{runs} runs");
    assert!(runs > 15_000);
}

/// Whether the sampler visits its own sigmas.
fn on_its_own(row: &SamplerRow) -> bool {
    ["dpm-fast", "dpm-adaptive"].contains(&row.name)
}

fn runs_as_told(
    row: &SamplerRow,
    sampler: &dyn Sampler,
    rungs: &Rungs,
    prediction: Prediction,
    what: &str,
) {
    let mut toy = Toy::new(prediction);
    let mut x = start(rungs.sigmas()[0]);
    assert!(sampler.sample(&mut x, rungs, &mut toy).is_continue());
    let steps = rungs.steps();

    // The table and the sampler must agree on the number of calls. Restart makes its own ladder,
    // and the table's column is for one with rungs on both sides of the restart.
    let (of_row, of_sampler) = (row.calls.at(steps), sampler.calls(rungs));
    let of_row = if row.name == "restart" {
        of_sampler
    } else {
        of_row
    };
    for calls in [of_row, of_sampler] {
        match calls {
            Calls::Exactly(calls) => assert_eq!(toy.calls(), calls, "{what}"),
            Calls::AtMost(calls) => assert!((1..=calls).contains(&toy.calls()), "{what}"),
        }
    }
    let both = if sampler.needs().unconditional {
        toy.calls()
    } else {
        0
    };
    assert_eq!(toy.pairs, both, "{what}");

    // All values are finite, and the reports match what happened.
    for step in &toy.steps {
        assert!(step.x.iter().all(|x| x.is_finite()), "{what}: {step:?}");
    }
    let last = toy.steps.last().unwrap();
    assert_eq!(last.x, x, "{what}");
    let indices = toy.steps.iter().map(|step| step.index);
    assert!(indices.eq(0..toy.steps.len()), "{what}");
    assert_eq!(last.total, toy.steps.len(), "{what}");
    if !on_its_own(row) && row.name != "restart" {
        assert_eq!(toy.steps.len(), steps, "{what}");
        for (step, sigmas) in toy.steps.iter().zip(rungs.sigmas().windows(2)) {
            assert_eq!([step.sigma, step.next], sigmas, "{what}");
            assert_eq!(step.total, steps, "{what}");
        }
    }

    // Noise is drawn only if the table says so, and only for a way down.
    assert!(toy.draws.is_empty() || row.stochastic, "{what}");
    for &[from, to] in &toy.draws {
        let raised = row.name == "restart";
        assert!(from.is_finite() && to >= 0.0, "{what}: {from} {to}");
        assert_eq!(from < to, raised, "{what}: {from} {to}");
        assert!(!sampler.needs().brownian || to > 0.0, "{what}: {from} {to}");
    }

    ends_as_told(row, sampler, rungs, &toy, what);
}

fn ends_as_told(row: &SamplerRow, sampler: &dyn Sampler, rungs: &Rungs, toy: &Toy, what: &str) {
    let last = toy.steps.last().unwrap();
    let end = rungs.sigmas()[rungs.steps()];
    if on_its_own(row) {
        // The end is the last rung, or the smallest sigma of the training if there is only one
        // rung.
        assert_eq!(row.ends, "sigma_min");
        let above_zero = |sigma: &&f32| **sigma > 0.0 && **sigma < rungs.sigmas()[0];
        if let Some(lowest) = rungs.sigmas()[1..].iter().rfind(above_zero) {
            assert!((last.next / lowest - 1.0).abs() < 1e-5, "{what}: {last:?}");
        }
        return;
    }
    assert_eq!(last.next, end, "{what}");
    let close = |expected: f32, found: f32| {
        let size = toy
            .denoised
            .iter()
            .fold(1e-3_f32, |size, d| size.max(d.abs()));
        (expected - found).abs() <= 1e-6 * size
    };
    match (sampler.ends(), row.ends) {
        (EndPoint::Last, "denoised") => {
            assert_eq!(end, 0.0, "{what}");
            for (x, denoised) in last.x.iter().zip(&toy.denoised) {
                assert!(close(*denoised, *x), "{what}: {x} != {denoised}");
            }
        }
        // Above sigma 0, there is noise left.
        (EndPoint::Last | EndPoint::Formula, "sigma_min") => assert!(end > 0.0, "{what}"),
        (EndPoint::Cleanest, "alpha-bar 0") => {
            assert_eq!(end, 0.0, "{what}");
            let moved = last.x.iter().zip(&toy.denoised);
            let moved = moved.filter(|(x, denoised)| !close(**denoised, **x));
            assert!(moved.count() > 0, "{what}: ends at the denoised sample");
        }
        (EndPoint::Formula, "own formula") => assert_eq!(end, 0.0, "{what}"),
        (ends, column) => panic!("{what}: ends {ends:?}, {column} in the table"),
    }
}

/// Covers every name of WebUI and ComfyUI, with and without a stop at the last rung.
#[test]
fn presets_report_as_many_steps_as_they_make() {
    let schedule = schedule(Prediction::Epsilon);
    let names = |of: fn(&SamplerRow) -> Option<&'static str>| TABLE.iter().filter_map(of);
    let webui = names(|row| row.webui).map(|name| from_webui(name, None));
    // These names of ComfyUI share a row with another name.
    let others = [
        "dpmpp_sde_gpu",
        "dpmpp_2m_sde_gpu",
        "dpmpp_2m_sde_heun_gpu",
        "dpmpp_3m_sde_gpu",
        "ddim",
        "uni_pc_bh2",
    ];
    let comfyui = names(|row| row.comfyui).chain(others);
    let comfyui = comfyui.map(|name| from_comfyui(name, "ddim_uniform"));
    for preset in webui.chain(comfyui) {
        let preset = preset.unwrap();
        for steps in [4, 7, 20, 40] {
            let what = format!("{:?}, {steps} steps", preset.sampler);
            let conventions = preset.sampler.conventions();
            let rungs = preset.ladder.rungs(&schedule, steps, &conventions).unwrap();
            for rungs in [rungs.clone(), rungs.ending_at(3).unwrap()] {
                let mut toy = Toy::new(Prediction::Epsilon);
                let mut x = start(rungs.sigmas()[0]);
                let end = preset.sampler.sample(&mut x, &rungs, &mut toy);
                assert!(end.is_continue(), "{what}");
                let made = toy.steps.len();
                assert_eq!(toy.steps[made - 1].total, made, "{what}");
                // A sampler that chooses its own steps cannot know the total beforehand.
                if matches!(preset.sampler.calls(&rungs), Calls::Exactly(_)) {
                    let told = |step: &Reached| step.total == made;
                    assert!(toy.steps.iter().all(told), "{what}");
                }
            }
        }
    }
}

/// The timesteps of an EDM model are not training timesteps.
#[test]
fn samplers_that_compute_with_timesteps_are_not_for_edm_models() {
    let schedule = schedule(MODELS[4]);
    let lcm = |boundary| -> Arc<dyn Sampler> {
        Arc::new(Lcm {
            boundary,
            ..Lcm::default()
        })
    };
    let presets = [
        from_webui("LCM", None).unwrap().sampler,
        from_comfyui("lcm", "karras").unwrap().sampler,
    ];
    let [webui, comfyui] = presets;
    for (sampler, refused) in [
        (lcm(LcmBoundary::Preserving), true),
        (lcm(LcmBoundary::Exploding), true),
        (lcm(LcmBoundary::None), false),
        (Arc::new(Tcd::default()), true),
        (webui, true),
        (comfyui, false),
    ] {
        let rungs = Ladder::karras().rungs(&schedule, 4, &sampler.conventions());
        assert_eq!(rungs.is_err(), refused, "{sampler:?}");
    }
}

/// A run ends at the stop, whenever that is, and nothing else is called. The toy model checks the
/// latter.
#[test]
fn a_stop_at_any_call_or_step_ends_the_run() {
    let schedule = schedule(Prediction::Epsilon);
    for row in TABLE {
        let sampler = (row.build)(&SchedulerConfig::default());
        for steps in [4, 7, 40] {
            let rungs = row
                .default_ladder
                .rungs(&schedule, steps, &sampler.conventions())
                .unwrap();
            let run = |stop_after| {
                let mut toy = Toy::new(Prediction::Epsilon);
                toy.stop_after = stop_after;
                let mut x = start(rungs.sigmas()[0]);
                (sampler.sample(&mut x, &rungs, &mut toy), toy)
            };
            let (end, whole) = run([usize::MAX; 2]);
            assert!(end.is_continue());
            for calls in 0..whole.calls() {
                let (end, toy) = run([calls, usize::MAX]);
                assert_eq!((end, toy.calls()), (ControlFlow::Break(()), calls));
                let before = &whole.steps[..toy.steps.len()];
                assert!(before.iter().zip(&toy.steps).all(|(a, b)| a.x == b.x));
            }
            for reports in 0..whole.steps.len() {
                let (end, toy) = run([usize::MAX, reports]);
                assert_eq!((end, toy.steps.len()), (ControlFlow::Break(()), reports));
            }
        }
    }
}

/// Covers other schedules and every possible number of steps: the ladder must fall, and the results
/// must be finite.
#[test]
fn every_number_of_steps_works() {
    let spacings = [Spacing::Leading, Spacing::Linspace, Spacing::Trailing];
    let mut ladders: Vec<Ladder> = spacings.map(Ladder::Spaced).to_vec();
    ladders.extend(spacings.map(Ladder::karras_over));
    ladders.push(Ladder::karras());
    for trained in [2, 3, 10, 99, 1000] {
        for zero_snr in [false, true] {
            let config = SchedulerConfig {
                num_train_timesteps: trained,
                rescale_betas_zero_snr: zero_snr,
                ..SchedulerConfig::default()
            };
            let schedule = Arc::new(NoiseSchedule::new(&config).unwrap());
            for row in TABLE {
                let sampler = (row.build)(&config);
                for ladder in ladders.iter().filter(|ladder| row.fits(ladder)) {
                    each_number_of_steps(&*sampler, ladder, &schedule, row.name);
                }
            }
        }
    }
}

fn each_number_of_steps(
    sampler: &dyn Sampler,
    ladder: &Ladder,
    schedule: &Arc<NoiseSchedule>,
    name: &str,
) {
    let trained = schedule.num_train_timesteps();
    let conventions = sampler.conventions();
    for steps in conventions.min_steps..=trained {
        // tests/ladders.rs makes the ladders in between. The shortest and the longest are the
        // special ones.
        if steps >= 30 && steps % 331 != 0 && steps + 3 <= trained {
            continue;
        }
        let what = format!("{name} {ladder:?} {steps} of {trained}");
        let rungs = ladder
            .rungs(schedule, steps, &conventions)
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        let (sigmas, last) = rungs.sigmas().split_at(steps);
        assert!(sigmas.is_sorted_by(|a, b| a > b), "{what}");
        match conventions.end {
            FinalSigma::Zero => assert_eq!(last, [0.0], "{what}"),
            FinalSigma::SigmaMin => {
                assert!(last[0] > 0.0 && last[0] <= sigmas[steps - 1], "{what}")
            }
        }
        assert!(rungs.timesteps().is_sorted_by(|a, b| a >= b), "{what}");
        let mut x = start(rungs.sigmas()[0]);
        let mut toy = Toy::new(Prediction::Epsilon);
        assert!(sampler.sample(&mut x, &rungs, &mut toy).is_continue());
        assert!(x.iter().all(|x| x.is_finite()), "{what}: {x:?}");
    }
}

/// A run that starts or ends in the middle of the ladder.
#[test]
fn parts_of_a_run_work() {
    let schedule = schedule(Prediction::Epsilon);
    for row in TABLE {
        let sampler = (row.build)(&SchedulerConfig::default());
        let rungs = row
            .default_ladder
            .rungs(&schedule, 20, &sampler.conventions())
            .unwrap();
        for (first, end) in [(0, 20), (0, 7), (7, 20), (19, 20), (5, 12)] {
            let part = rungs.clone().ending_at(end).unwrap();
            let part = part.starting_at(first).unwrap();
            let mut toy = Toy::new(Prediction::Epsilon);
            let mut x = start(part.sigmas()[0]);
            assert!(sampler.sample(&mut x, &part, &mut toy).is_continue());
            assert!(x.iter().all(|x| x.is_finite()), "{} {first}", row.name);
            match sampler.calls(&part) {
                Calls::Exactly(calls) => {
                    assert_eq!(toy.calls(), calls, "{} {first} {end}", row.name);
                }
                Calls::AtMost(calls) => assert!(toy.calls() <= calls),
            }
        }
    }
}

/// For samplers that use no earlier steps, a run in two parts must equal the whole run.
#[test]
fn two_parts_are_the_whole() {
    let schedule = schedule(Prediction::Epsilon);
    for name in ["euler", "heun", "dpm2", "ddim", "euler-cfg-pp"] {
        let row = TABLE.iter().find(|row| row.name == name).unwrap();
        let sampler = (row.build)(&SchedulerConfig::default());
        let rungs = row
            .default_ladder
            .rungs(&schedule, 20, &sampler.conventions())
            .unwrap();
        let run = |rungs: &Rungs, mut x: [f32; 8]| {
            let mut toy = Toy::new(Prediction::Epsilon);
            assert!(sampler.sample(&mut x, rungs, &mut toy).is_continue());
            x
        };
        let begin = start(rungs.sigmas()[0]);
        let whole = run(&rungs, begin);
        let half = run(&rungs.clone().ending_at(7).unwrap(), begin);
        let parts = run(&rungs.starting_at(7).unwrap(), half);
        assert!(distance(&parts, &whole) < 1e-6, "{name}");
    }
}

/// Options without meaning must not cause a panic or an endless run.
#[test]
fn odd_options_are_harmless() {
    let schedule = schedule(Prediction::Epsilon);
    let run = |sampler: &dyn Sampler| {
        let rungs = Ladder::leading()
            .rungs(&schedule, 6, &sampler.conventions())
            .unwrap();
        let mut x = [20.0, -7.0];
        let mut noise = TorchRng::new(0);
        sample(sampler, &mut x, &rungs, &mut noise, |x, at, denoised| {
            for (denoised, x) in denoised.iter_mut().zip(x) {
                *denoised = x / (1.0 + at.sigma * at.sigma);
            }
        });
        x
    };
    for odd in [f32::NAN, f32::INFINITY, -1.0, 0.0, 1e30] {
        for clip in [
            ClipSample::Range(odd),
            ClipSample::Dynamic {
                ratio: odd,
                max: odd,
            },
        ] {
            run(&Heun {
                clip,
                ..Heun::default()
            });
        }
        let churn = sd_schedulers::samplers::Churn {
            s_churn: odd,
            s_tmin: odd,
            s_tmax: odd,
            s_noise: odd,
        };
        run(&Euler { churn });
        run(&EulerAncestral {
            eta: odd,
            s_noise: odd,
            ..EulerAncestral::default()
        });
        run(&Dpm2Ancestral {
            eta: odd,
            ..Dpm2Ancestral::default()
        });
        run(&DpmPlusPlusSde {
            eta: odd,
            r: odd,
            ..DpmPlusPlusSde::default()
        });
        run(&Ddim {
            eta: odd,
            ..Ddim::default()
        });
        run(&Tcd { gamma: odd });
        run(&Lcm {
            timestep_scaling: odd,
            ..Lcm::default()
        });
        run(&EulerCfgPp {
            eta: odd,
            s_noise: odd,
        });
        run(&SaSolver {
            tau: odd,
            interval: [odd; 2],
            predictor_order: 0,
            corrector_order: usize::MAX,
            ..SaSolver::default()
        });
        run(&ErSde {
            order: usize::MAX,
            points: Some(0),
            min_variance: odd,
            s_noise: odd,
            ..ErSde::default()
        });
        run(&DpmFast {
            sigma_min: Some(odd),
            eta: odd,
            s_noise: odd,
        });
        run(&DpmAdaptive {
            order: 0,
            rtol: odd,
            atol: odd,
            h_init: odd,
            pcoeff: odd,
            icoeff: odd,
            dcoeff: odd,
            accept_safety: odd,
            max_calls: 100,
            sigma_min: Some(odd),
            eta: odd,
            s_noise: odd,
        });
        let segment = RestartSegment {
            low: odd,
            high: odd,
            steps: usize::MAX,
            times: 1,
        };
        run(&Restart {
            segments: Some(vec![segment]),
            snap: false,
            s_noise: odd,
        });
    }
    // Options with meaning must have an effect.
    let half = EulerAncestral {
        eta: 0.5,
        ..EulerAncestral::default()
    };
    assert_ne!(run(&half), run(&EulerAncestral::default()));
    let clipped = Heun {
        clip: ClipSample::Range(0.1),
        ..Heun::default()
    };
    assert_ne!(run(&clipped), run(&Heun::default()));
}

/// A rung with the same sigma as the one before it is an error, except at the end.
#[test]
fn steps_of_no_length_are_at_the_end_only() {
    let schedule = schedule(Prediction::Epsilon);
    let make = |sigmas: &[f32]| {
        let steps = sigmas.len() - 1;
        Ladder::sigmas(sigmas).rungs(&schedule, steps, &Conventions::default())
    };
    let middle = make(&[3.0, 2.0, 2.0, 1.0]);
    assert!(matches!(middle, Err(LadderError::Sigma { index: 2, .. })));
    let at_the_end = make(&[3.0, 2.0, 2.0]).unwrap();
    for row in TABLE.iter().filter(|row| row.needs != "integer timesteps") {
        let sampler = (row.build)(&SchedulerConfig::default());
        let mut toy = Toy::new(Prediction::Epsilon);
        let mut x = start(3.0);
        assert!(sampler.sample(&mut x, &at_the_end, &mut toy).is_continue());
        assert!(x.iter().all(|x| x.is_finite()), "{}: {x:?}", row.name);
    }
}
