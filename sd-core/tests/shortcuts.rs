//! Shortcuts of a run, with fakes.

// A failed `unwrap` is a failed test.
#![allow(clippy::unwrap_used)]

mod common;

use std::ops::ControlFlow;

use common::{Fakes, Model, base, latents};
use sd_core::{
    Event, GenerateError, Inputs, NetworkCalls, Pipeline, Request, Shortcuts, StopToken, Tiles,
    schedulers::{SchedulerConfig, samplers::TABLE},
    shortcuts::{Deep, Forecast},
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
    assert_eq!(running, ["?"]);
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
