//! Shortcuts of a run, with fakes.

// A failed `unwrap` is a failed test.
#![allow(clippy::unwrap_used)]

mod common;

use std::{ops::ControlFlow, sync::atomic::Ordering::Relaxed};

use common::{Fakes, Model, base, latents};
use sd_core::{
    ClassifierFree, Event, GenerateError, Hires, Inputs, NetworkCalls, Pipeline, RefinerShare,
    RefinerSwitch, Request, Shortcuts, Start, StopToken, Tiles,
    schedulers::{SchedulerConfig, samplers::TABLE},
    shortcuts::{Deep, Forecast, Stability},
};

/// A request for 20 steps without noise between them.
fn steps(count: usize) -> Request {
    base().steps(count)
}

/// The network's calls in a request.
fn calls(pipeline: &Pipeline, request: &Request) -> NetworkCalls {
    let generation = pipeline.generate(request).unwrap();
    generation.pictures[0].timings.calls
}

fn refused(pipeline: &Pipeline, request: &Request) -> Vec<String> {
    match pipeline.generate(request) {
        Err(GenerateError::Request(problems)) => {
            problems.iter().map(|it| it.field.to_string()).collect()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn forecasts_save_calls() {
    let fakes = Fakes::new();
    let pipeline = fakes.pipeline();
    let plain = latents(&pipeline, &steps(20));
    assert_eq!(fakes.calls(), 40);
    let request = steps(20).shortcuts(Shortcuts::default().skip(Forecast::default()));
    let shorter = latents(&pipeline, &request);
    // 0 to 4, 6, 8, 11, 15 and 19.
    assert_eq!(fakes.calls(), 20);
    assert_ne!(shorter, plain);
    let far = (&shorter - &plain)
        .mapv(f32::abs)
        .fold(0.0, |a: f32, &b| a.max(b));
    let size = plain.mapv(f32::abs).fold(0.0, |a: f32, &b| a.max(b));
    assert!(far < 0.2 * size, "{far} of {size}");
}

#[test]
fn every_sampler_runs_or_refuses() {
    let mut inputs = Inputs::new(4, 4).deep_branches(2).token_merging(true);
    inputs.context = 4;
    let model = || Model {
        inputs: inputs.clone(),
        ..Model::default()
    };
    let mut running = Vec::new();
    for row in TABLE {
        let fakes = Fakes::with(model());
        let pipeline = fakes.pipeline();
        let request =
            steps(12).scheduler(row.name.parse::<sd_core::schedulers::Scheduler>().unwrap());
        let request = request.ladder(row.default_ladder.clone());
        let shortcuts = Shortcuts::default().skip(Forecast::default());
        match pipeline.generate(&request.clone().shortcuts(shortcuts)) {
            Ok(generation) => {
                let calls = generation.pictures[0].timings.calls;
                assert!(calls.forecast > 0, "{}", row.name);
                assert_eq!(calls.full, fakes.calls(), "{}", row.name);
                running.push(row.name);
                let sampler = (row.build)(&SchedulerConfig::default());
                assert!(!sampler.adds_noise(), "{}", row.name);
            }
            Err(GenerateError::Request(problems)) => {
                assert_eq!(fakes.calls(), 0, "{}", row.name);
                let known = problems.iter().all(|it| it.field == "shortcuts.skip");
                assert!(known, "{}: {problems}", row.name);
            }
            Err(error) => panic!("{}: {error}", row.name),
        }
        let deep = Shortcuts::default().skip(Deep::default());
        let deep = pipeline.generate(&request.shortcuts(deep));
        assert_eq!(
            deep.is_ok(),
            running.last() == Some(&row.name),
            "{}",
            row.name
        );
    }
    let of_odes = [
        "euler",
        "lms",
        "ddim",
        "ipndm",
        "ipndm-v",
        "deis",
        "deis-tab",
        "dpm-solver-1m",
        "dpm-solver-2m",
        "dpm-solver-3m",
        "dpm-solver-2s",
        "dpm-solver-3s",
        "dpmpp-2m",
        "dpmpp-3m",
        "dpmpp-2s",
        "dpmpp-3s",
        "dpm-fast",
        "unipc",
        "res-2m",
        "gradient-estimation",
        "euler-cfg-pp",
        "ddim-cfg-pp",
    ];
    assert_eq!(running, of_odes);
}

#[test]
fn events_count_the_calls() {
    let fakes = Fakes::new();
    let shortcuts = Shortcuts::default().skip(Forecast::default());
    let request = steps(8).shortcuts(shortcuts);
    let mut seen = Vec::new();
    let observe = |event: Event<'_>| {
        if let Event::Step(progress) = event {
            seen.push((progress.step.calls.full, progress.step.calls.forecast));
        }
        ControlFlow::Continue(())
    };
    let pipeline = fakes.pipeline();
    pipeline
        .run(&[request], &StopToken::new(), observe)
        .unwrap();
    let (full, forecast) = ((2, 0), (0, 2));
    assert_eq!(seen, [full, full, full, full, full, forecast, full, full]);
}

#[test]
fn what_the_network_cannot_do_is_refused() {
    let pipeline = Fakes::new().pipeline();
    let deep = Shortcuts::default().skip(Deep::default());
    assert_eq!(
        refused(&pipeline, &steps(4).shortcuts(deep)),
        ["shortcuts.skip.deep"]
    );
    let merged = Shortcuts::default().merge_tokens(0.5);
    assert_eq!(
        refused(&pipeline, &steps(4).shortcuts(merged)),
        ["shortcuts.merge_tokens"]
    );
    let model = Model {
        inputs: Inputs::new(4, 4).deep_branches(2),
        ..Model::default()
    };
    let pipeline = Fakes::with(model).pipeline();
    assert_eq!(calls(&pipeline, &steps(7).shortcuts(deep)).shallow, 2 * 4);
    let windows = steps(4)
        .size(96, 64)
        .tiles(Tiles::new(48, 64))
        .shortcuts(deep);
    assert_eq!(refused(&pipeline, &windows), ["shortcuts.skip.deep"]);
    let far = Shortcuts::default().skip(Deep {
        branch: 2,
        ..Deep::default()
    });
    assert_eq!(
        refused(&pipeline, &steps(4).shortcuts(far)),
        ["shortcuts.skip.deep.branch"]
    );
}

#[test]
fn both_prompts_share_a_call_where_that_is_faster() {
    let run = |batches: bool, shortcuts: Shortcuts| {
        let model = Model {
            inputs: Inputs::new(4, 4).batches_guidance(batches).deep_branches(1),
            ..Model::default()
        };
        let fakes = Fakes::with(model);
        let generation = fakes.pipeline().generate(&steps(9).shortcuts(shortcuts));
        let picture = generation.unwrap().pictures.remove(0);
        let batch = fakes.model.batch.load(Relaxed);
        (picture.latents, picture.timings.calls, fakes.calls(), batch)
    };
    for (shortcuts, computed) in [
        (Shortcuts::NONE, 9),
        (Shortcuts::default().skip(Forecast::default()), 7),
        (Shortcuts::default().skip(Deep::default()), 9),
    ] {
        let (apart, calls, made, batch) = run(false, shortcuts);
        assert_eq!((made, batch), (2 * computed, 1));
        let (together, same, made, batch) = run(true, shortcuts);
        assert_eq!((made, batch), (computed, 2));
        assert_eq!(calls, same);
        assert_eq!(together, apart);
    }
}

#[test]
fn features_of_an_earlier_batch_are_not_reused() {
    let model = Model {
        inputs: Inputs::new(4, 4).batches_guidance(true).deep_branches(1),
        ..Model::default()
    };
    let fakes = Fakes::with(model);
    let guidance = ClassifierFree {
        interval: [0.2, 0.8],
        ..7.5.into()
    };
    let shortcuts = Shortcuts::default().skip(Deep::default());
    let request = steps(20).guidance(guidance).shortcuts(shortcuts);
    let mut made = Vec::new();
    let observe = |event: Event<'_>| {
        if let Event::Step(progress) = event {
            let calls = progress.step.calls;
            made.push((calls.full, calls.shallow));
        }
        ControlFlow::Continue(())
    };
    let pipeline = fakes.pipeline();
    let requests = std::slice::from_ref(&request);
    pipeline.run(requests, &StopToken::new(), observe).unwrap();
    // The features of both prompts are kept together in steps with guidance, and the prompt alone
    // keeps its own in the others. A step without guidance must not reuse those of steps before.
    let total = |step: usize| made[step].0 + made[step].1;
    let changes: Vec<_> = (1..20)
        .filter(|&step| total(step) != total(step - 1))
        .collect();
    assert_eq!(changes.len(), 2, "{made:?}");
    for step in changes {
        assert_eq!(made[step].1, 0, "step {step}: {made:?}");
    }
}

#[test]
fn prompts_of_different_lengths_have_their_own_calls() {
    let model = Model {
        inputs: Inputs::new(4, 4).batches_guidance(true),
        ..Model::default()
    };
    let fakes = Fakes::with(model);
    let long = steps(3).prompt("a fox ".repeat(60)).negative("blurry");
    fakes.pipeline().generate(&long).unwrap();
    let batch = fakes.model.batch.load(Relaxed);
    assert_eq!((fakes.calls(), batch), (6, 1));
}

#[test]
fn a_new_prompt_starts_again() {
    let fakes = Fakes::new();
    let forecast = Forecast {
        warm_up: 2,
        window: 4.0,
        growth: 0.0,
        last: 0,
        ..Forecast::default()
    };
    let request = steps(12).shortcuts(Shortcuts::default().skip(forecast));
    let mut computed = Vec::new();
    let mut run = |request: &Request| {
        let observe = |event: Event<'_>| {
            if let Event::Step(progress) = event
                && progress.step.calls.full > 0
            {
                computed.push(progress.step.index);
            }
            ControlFlow::Continue(())
        };
        let requests = std::slice::from_ref(request);
        fakes
            .pipeline()
            .run(requests, &StopToken::new(), observe)
            .unwrap();
        std::mem::take(&mut computed)
    };
    assert_eq!(run(&request), [0, 1, 5, 9]);
    assert_eq!(
        run(&request.clone().prompt("a [fox:cat:0.25]")),
        [0, 1, 4, 5, 9]
    );
    assert_eq!(run(&request.prompt("a [fox|cat]")).len(), 12);
}

#[test]
fn adaptive_guidance_leaves_the_negative_prompt_out() {
    let fakes = Fakes::new();
    let pipeline = fakes.pipeline();
    let always = calls(
        &pipeline,
        &steps(6).shortcuts(Shortcuts::default().guidance(-1.0)),
    );
    // The first call has to compare both predictions.
    assert_eq!((always.full, always.left_out), (7, 5));
    let never = steps(6).shortcuts(Shortcuts::default().guidance(1.0));
    assert_eq!(
        (
            calls(&pipeline, &never).full,
            calls(&pipeline, &never).left_out
        ),
        (12, 0)
    );
    assert_eq!(latents(&pipeline, &never), latents(&pipeline, &steps(6)));
    let both = never.scheduler(
        "euler-cfg-pp"
            .parse::<sd_core::schedulers::Scheduler>()
            .unwrap(),
    );
    assert_eq!(refused(&pipeline, &both), ["shortcuts.guidance"]);
}

#[test]
fn stability_skips_whole_steps() {
    let fakes = Fakes::new();
    let pipeline = fakes.build(fakes.builder().max_batch(2));
    let stability = Stability {
        start: 0.0,
        ..Stability::default()
    };
    let request = steps(20)
        .shortcuts(Shortcuts::default().skip(stability))
        .count(2);
    let generation = pipeline.generate(&request).unwrap();
    // Each picture decides for itself.
    assert_eq!(fakes.model.batch.load(Relaxed), 1);
    for picture in &generation.pictures {
        let calls = picture.timings.calls;
        assert_eq!(calls.full + calls.forecast, 40);
        assert!(calls.forecast > 0 && calls.forecast % 2 == 0, "{calls:?}");
    }
    let both = request.scheduler(
        "euler-cfg-pp"
            .parse::<sd_core::schedulers::Scheduler>()
            .unwrap(),
    );
    assert_eq!(refused(&pipeline, &both), ["shortcuts.skip.stability"]);
}

#[test]
fn a_picture_is_reproduced_from_its_infotext() {
    let fakes = Fakes::new();
    let pipeline = fakes.pipeline();
    let forecast = Forecast {
        ridge: 0.3,
        window: 2.5,
        ..Forecast::default()
    };
    for shortcuts in [
        Shortcuts::FAST,
        Shortcuts::FASTER,
        Shortcuts::default().skip(forecast).guidance(0.999),
    ] {
        let request = steps(20).shortcuts(shortcuts);
        let picture = pipeline.generate(&request).unwrap().pictures.remove(0);
        let infotext = picture.infotext();
        let calls = picture.timings.calls;
        let expected = format!("{} of 40", calls.full);
        assert_eq!(infotext.get("SD network calls"), Some(&*expected));
        let reproduction = pipeline.reproduction(&infotext);
        assert_eq!(reproduction.request.shortcuts, shortcuts);
        assert!(
            reproduction.differences.is_empty(),
            "{:?}",
            reproduction.differences
        );
        assert_eq!(latents(&pipeline, &reproduction.request), picture.latents);
    }
}

#[test]
fn shortcuts_are_a_name_or_an_object() {
    let read = |json: &str| serde_json::from_str::<Shortcuts>(json).map_err(|it| it.to_string());
    assert_eq!(read("\"fast\""), Ok(Shortcuts::FAST));
    assert_eq!(read("{}"), Ok(Shortcuts::NONE));
    let written = serde_json::to_string(&Shortcuts::FASTER).unwrap();
    assert_eq!(read(&written), Ok(Shortcuts::FASTER));
    let object = r#"{"skip": {"deep": {"interval": 5}}, "merge_tokens": 0.5}"#;
    let deep = Deep {
        interval: 5,
        ..Deep::default()
    };
    let expected = Shortcuts::default().skip(deep).merge_tokens(0.5);
    assert_eq!(read(object), Ok(expected));
    assert!(read("\"slow\"").unwrap_err().contains("\"faster\""));
    assert!(
        read(r#"{"skip": {"forecast": {"lam": 1}}}"#)
            .unwrap_err()
            .contains("`lam`")
    );
}

#[test]
fn numbers_out_of_range_are_refused() {
    let pipeline = Fakes::new().pipeline();
    let forecast = |change: fn(&mut Forecast)| {
        let mut forecast = Forecast::default();
        change(&mut forecast);
        Shortcuts::default().skip(forecast)
    };
    for (shortcuts, field) in [
        (
            forecast(|it| it.warm_up = 0),
            "shortcuts.skip.forecast.warm_up",
        ),
        (
            forecast(|it| it.window = 0.5),
            "shortcuts.skip.forecast.window",
        ),
        (
            forecast(|it| it.growth = f32::NAN),
            "shortcuts.skip.forecast.growth",
        ),
        (
            forecast(|it| it.degree = 17),
            "shortcuts.skip.forecast.degree",
        ),
        (
            forecast(|it| it.ridge = 0.0),
            "shortcuts.skip.forecast.ridge",
        ),
        (forecast(|it| it.fit = 1.5), "shortcuts.skip.forecast.fit"),
        (Shortcuts::default().guidance(2.0), "shortcuts.guidance"),
        (
            Shortcuts::default().merge_tokens(0.8),
            "shortcuts.merge_tokens",
        ),
    ] {
        assert_eq!(refused(&pipeline, &steps(4).shortcuts(shortcuts)), [field]);
    }
}

/// Forecasts that compute the steps 0, 1, 4, 7, 10 of a long run.
fn sparse() -> Shortcuts {
    Shortcuts::default().skip(Forecast {
        warm_up: 2,
        window: 3.0,
        growth: 0.0,
        last: 0,
        ..Forecast::default()
    })
}

/// The indices of the steps, of both passes, in which the network computed anything.
fn computed(pipeline: &Pipeline, request: &Request) -> [Vec<usize>; 2] {
    let mut computed = [Vec::new(), Vec::new()];
    let observe = |event: Event<'_>| {
        if let Event::Step(progress) = event
            && progress.step.calls.full > 0
        {
            computed[usize::from(progress.step.second_pass)].push(progress.step.index);
        }
        ControlFlow::Continue(())
    };
    let requests = std::slice::from_ref(request);
    pipeline.run(requests, &StopToken::new(), observe).unwrap();
    computed
}

#[test]
fn windows_are_forecast_as_one_picture() {
    let fakes = Fakes::new();
    let pipeline = fakes.pipeline();
    let plain = steps(8).size(96, 64).shortcuts(sparse());
    let windows = plain.clone().tiles(Tiles::new(48, 64).overlap(0));
    let [plain, windows] = [plain, windows].map(|request| latents(&pipeline, &request));
    // The steps 0, 1, 4 and 7 of both prompts, once for the picture and once for each window.
    assert_eq!(fakes.calls(), 2 * 4 * (1 + 2));
    let far = (&windows - &plain)
        .mapv(f32::abs)
        .fold(0.0, |a: f32, &b| a.max(b));
    // Rounding of the averages.
    assert!(far < 1e-4, "{far}");
}

#[test]
fn pictures_share_a_batch_only_with_equal_shortcuts() {
    let batch = |other: Shortcuts| {
        let fakes = Fakes::new();
        let pipeline = fakes.build(fakes.builder().max_batch(2));
        let requests = [sparse(), other].map(|it| steps(8).shortcuts(it));
        pipeline.generate_all(&requests).unwrap();
        (fakes.calls(), fakes.model.batch.load(Relaxed))
    };
    assert_eq!(batch(sparse()), (2 * 4, 2));
    assert_eq!(batch(Shortcuts::NONE), (2 * 4 + 2 * 8, 1));
}

#[test]
fn a_second_pass_begins_with_computed_steps() {
    let fakes = Fakes::new();
    let pipeline = fakes.pipeline();
    let request = steps(8)
        .shortcuts(sparse())
        .hires(Hires::scale(2.0).strength(1.0));
    let every = [0, 1, 4, 7].to_vec();
    assert_eq!(computed(&pipeline, &request), [every.clone(), every]);
    let picture = pipeline.generate(&request).unwrap().pictures.remove(0);
    assert_eq!(picture.timings.calls.full, 2 * (4 + 4));
    let found = pipeline.reproduction(&picture.infotext());
    assert_eq!(latents(&pipeline, &found.request), picture.latents);
}

#[test]
fn a_start_counts_from_its_own_first_step() {
    let fakes = Fakes::new();
    let pipeline = fakes.pipeline();
    let start = Start::latents(ndarray::Array4::from_elem((1, 4, 6, 8), 0.3)).strength(0.5);
    let request = steps(16).shortcuts(sparse()).start(start);
    assert_eq!(computed(&pipeline, &request), [vec![0, 1, 4, 7], vec![]]);
}

#[test]
fn each_branch_has_its_own_forecasts() {
    let fakes = Fakes::new();
    let pipeline = fakes.pipeline();
    let request = steps(8).prompt("a fox AND a cat").shortcuts(sparse());
    let found = calls(&pipeline, &request);
    assert_eq!((found.full, found.forecast), (3 * 4, 3 * 4));
    // Equal branches have equal forecasts, so that half of each is the whole.
    let twice = steps(8)
        .prompt("a fox :0.5 AND a fox :0.5")
        .shortcuts(sparse());
    let once = steps(8).prompt("a fox :1 AND a fox :0").shortcuts(sparse());
    let [twice, once] = [twice, once].map(|request| latents(&pipeline, &request));
    let far = (&twice - &once)
        .mapv(f32::abs)
        .fold(0.0, |a: f32, &b| a.max(b));
    // Rounding of the sums, which the fake's sine may enlarge.
    assert!(far < 1e-3, "{far}");
}

#[test]
fn a_refiner_begins_with_computed_steps() {
    let (fakes, refiner) = (Fakes::new(), Fakes::new());
    let prompts = common::prompts(&refiner.text);
    let builder = fakes
        .builder()
        .refiner("fine", prompts, refiner.model.clone());
    let pipeline = fakes.build(builder);
    let by_steps = RefinerSwitch {
        at: 0.5,
        by: RefinerShare::Steps,
    };
    let request = steps(12).shortcuts(sparse()).refiner(by_steps);
    let found = computed(&pipeline, &request);
    assert_eq!(found, [vec![0, 1, 4, 6, 7, 10], vec![]]);
    assert_eq!((fakes.calls(), refiner.calls()), (2 * 3, 2 * 3));
}
