//! Second passes in a larger size, with fake networks.
//!
//! `sd-onnx/tests/webui_pictures.rs` compares whole runs with WebUI.

// In tests, a panic reports the failure.
#![allow(clippy::unwrap_used)]

mod common;

use std::ops::ControlFlow;

use common::{Fakes, Model, base};
use ndarray::Array4;
use sd_core::{
    Event, GenerateError, Hires, Infotext, Inputs, Picture, Pipeline, Request, Start, StopToken,
    Upscaler,
    pixels::{Filter, LatentFilter},
    schedulers::{
        Ladder,
        ladders::StrengthRule,
        samplers::{DpmAdaptive, EulerAncestral},
    },
};

fn drawn(pipeline: &Pipeline, request: &Request) -> Picture {
    pipeline.generate(request).unwrap().pictures.remove(0)
}

fn twice() -> Hires {
    Hires::scale(2.0)
}

#[test]
fn the_second_pass_draws_in_the_new_size() {
    let fakes = Fakes::new();
    let pipeline = fakes.pipeline();
    for (hires, size) in [
        (twice(), (128, 96)),
        (Hires::scale(1.3), (80, 56)),
        (Hires::pixels(128, 96), (128, 96)),
        (Hires::pixels(64, 96), (64, 96)),
        (Hires::pixels(72, 48), (72, 48)),
    ] {
        let picture = drawn(&pipeline, &base().hires(hires.clone()));
        assert_eq!(picture.image.dimensions(), size, "{hires:?}");
        let (.., height, width) = picture.latents.dim();
        assert_eq!((8 * width as u32, 8 * height as u32), size);
        assert_eq!(picture.initial_noise.dim(), (1, 4, 6, 8));
    }
    // WebUI's second pass makes all steps.
    fakes.calls();
    let picture = drawn(&pipeline, &base().guidance(1.0).hires(twice()));
    assert_eq!((fakes.calls(), picture.timings.steps.len()), (4 + 4, 8));
    assert_eq!(
        fakes.decodes(),
        6,
        "no picture is decoded between the passes"
    );
}

#[test]
fn each_option_changes_the_picture() {
    let pipeline = Fakes::new().pipeline();
    let of = |hires: Hires| drawn(&pipeline, &base().hires(hires)).latents;
    let latent = |filter| twice().upscaler(Upscaler::Latent(filter));
    let all = [
        of(twice()),
        of(twice().strength(0.4)),
        of(twice().rule(StrengthRule::WebUi)),
        of(twice().steps(7)),
        of(twice().scheduler(EulerAncestral::default())),
        of(twice().ladder(Ladder::exponential())),
        of(twice().guidance(3.0)),
        of(twice().prompt("an owl")),
        of(twice().negative("dark")),
        of(latent(LatentFilter::Nearest)),
        of(latent(LatentFilter::Bicubic)),
        of(twice().upscaler(Upscaler::Pixels(Filter::Lanczos))),
        of(twice().upscaler(Upscaler::Pixels(Filter::Nearest))),
    ];
    for (i, one) in all.iter().enumerate() {
        for other in &all[..i] {
            assert!(one != other, "case {i}");
        }
    }
}

/// The second pass is an image to image run from the enlarged latents.
#[test]
fn the_second_pass_starts_from_the_enlarged_latents() {
    let pipeline = Fakes::new().pipeline();
    let first = drawn(&pipeline, &base());
    let nearest = Upscaler::Latent(LatentFilter::Nearest);
    let both = drawn(&pipeline, &base().hires(twice().upscaler(nearest)));
    let enlarged = Array4::from_shape_fn((1, 4, 12, 16), |(_, c, y, x)| {
        first.latents[[0, c, y / 2, x / 2]]
    });
    let start = Start::latents(enlarged)
        .strength(0.7)
        .rule(StrengthRule::WebUiExact);
    let alone = drawn(&pipeline, &base().start(start));
    assert_eq!(both.latents, alone.latents);
    assert_eq!(both.initial_noise, first.initial_noise);
    assert!(alone.initial_noise.dim() != first.initial_noise.dim());
}

/// The schedules of prompts count on, as in WebUI.
#[test]
fn schedules_in_prompts_count_on() {
    let pipeline = Fakes::new().pipeline();
    let of = |prompt: &str, second: Option<&str>| {
        let mut hires = twice();
        if let Some(second) = second {
            hires = hires.prompt(second);
        }
        drawn(&pipeline, &base().prompt(prompt).hires(hires)).latents
    };
    // The first pass sees the fox only, and the second pass the owl.
    let both = of("a fox", Some("an owl"));
    assert_eq!(of("[a fox:an owl:4]", Some("[a fox:an owl:4]")), both);
    assert_eq!(of("[a fox:an owl:1.0]", None), both);
    assert!(of("[a fox:an owl:1.5]", None) != both);
    assert_eq!(of("[a fox:an owl:2.0]", None), of("a fox", None));
}

#[test]
fn batches_are_the_same_as_single_pictures() {
    let fakes = Fakes::new();
    let batched = fakes.build(fakes.builder().max_batch(4));
    let single = fakes.pipeline();
    let request = base().hires(twice()).count(3);
    // A request without a second pass, and one with another, get batches of their own.
    let requests = [
        request.clone(),
        base(),
        base().hires(Hires::scale(1.5)),
        request,
    ];
    let images = |pipeline: &Pipeline| -> Vec<Array4<f32>> {
        let pictures = pipeline.generate_all(&requests).unwrap().pictures;
        let latents = pictures.into_iter().map(|picture| picture.latents);
        latents.collect()
    };
    assert_eq!(images(&batched), images(&single));
}

/// Steps that a ladder lists count as the steps of the first pass, whether the request has been
/// filled with defaults or not.
#[test]
fn the_second_pass_has_the_steps_of_the_first() {
    let pipeline = Fakes::new().pipeline();
    let given = || Ladder::sigmas([14.6, 5.0, 1.5, 0.4, 0.0]);
    let mut plain = base();
    plain.steps = None;
    for (request, steps) in [
        (
            plain
                .clone()
                .ladder(given())
                .hires(twice().ladder(Ladder::karras())),
            4 + 4,
        ),
        (
            plain
                .clone()
                .steps(6)
                .hires(twice().ladder(given()).rule(StrengthRule::WebUi)),
            6 + 3,
        ),
        (plain.hires(twice().steps(3)), 20 + 3),
    ] {
        let filled = pipeline.with_defaults(request.clone());
        for request in [request, filled] {
            assert_eq!(drawn(&pipeline, &request).timings.steps.len(), steps);
        }
    }
}

/// A sampler that lets pictures influence each other draws them one by one, in either pass.
#[test]
fn a_sampler_of_single_pictures_has_single_pictures() {
    let fakes = Fakes::new();
    let batched = fakes.build(fakes.builder().max_batch(4));
    let single = fakes.pipeline();
    let request = base()
        .hires(twice().scheduler(DpmAdaptive::default()))
        .count(2);
    let images = |pipeline: &Pipeline| -> Vec<Array4<f32>> {
        let pictures = pipeline.generate(&request).unwrap().pictures;
        pictures
            .into_iter()
            .map(|picture| picture.latents)
            .collect()
    };
    assert_eq!(images(&batched), images(&single));
}

#[test]
fn steps_tell_their_pass() {
    let pipeline = Fakes::new().pipeline();
    let mut steps = Vec::new();
    let request = base().hires(twice().steps(5).strength(1.0));
    let stop = StopToken::new();
    let result = pipeline.run(&[request], &stop, |event| {
        if let Event::Step(progress) = event {
            let step = progress.step;
            let (_, height, width) = progress.denoised.dim();
            steps.push((step.second_pass, step.index, step.total, [width, height]));
            assert_eq!(
                progress.preview().dimensions(),
                (width as u32, height as u32)
            );
        }
        ControlFlow::Continue(())
    });
    result.unwrap();
    let first = (0..4).map(|index| (false, index, 4, [8, 6]));
    let second = (0..5).map(|index| (true, index, 5, [16, 12]));
    assert_eq!(steps, first.chain(second).collect::<Vec<_>>());
}

#[test]
fn a_stop_in_the_second_pass_returns_its_latents() {
    let pipeline = Fakes::new().pipeline();
    for stop_at in [(false, 3), (true, 0), (true, 2)] {
        let stop = StopToken::new();
        let result = pipeline.run(&[base().hires(twice())], &stop, |event| {
            if let Event::Step(progress) = event
                && (progress.step.second_pass, progress.step.index) == stop_at
            {
                stop.stop();
            }
            ControlFlow::Continue(())
        });
        let Err(GenerateError::Stopped(stopped)) = result else {
            panic!("{stop_at:?}: not stopped");
        };
        let [picture] = &stopped.pictures[..] else {
            panic!("{stop_at:?}: no picture");
        };
        let sides = if stop_at.0 { (12, 16) } else { (6, 8) };
        assert_eq!((picture.latents.dim().2, picture.latents.dim().3), sides);
        let steps = stop_at.1 + 1 + if stop_at.0 { 4 } else { 0 };
        assert_eq!(stopped.steps, steps, "{stop_at:?}");
    }
}

#[test]
fn wrong_second_passes_are_refused() {
    let fakes = Fakes::new();
    let pipeline = fakes.build(fakes.builder().max_pixels(1 << 16));
    let start = Start::latents(Array4::zeros((1, 4, 6, 8)));
    for (request, expected) in [
        (
            base().hires(Hires::scale(0.5)),
            "hires.size.scale is 0.5, expected 1 to 16",
        ),
        (
            base().hires(Hires::scale(f32::NAN)),
            "hires.size.scale is NaN",
        ),
        (
            base().hires(Hires::pixels(32, 96)),
            "hires.size.pixels is 32×96, expected at least 64×48",
        ),
        (base().hires(Hires::pixels(68, 96)), "hires.size is 68"),
        (base().hires(Hires::scale(16.0)), "hires.size is 1024×768"),
        // The first pass is enlarged to 512×384 before it is cut.
        (
            base().hires(Hires::pixels(512, 48)),
            "hires.size is 512×384",
        ),
        (
            base().steps(5000).hires(twice().steps(6000)),
            "hires.steps is",
        ),
        (
            base().hires(twice().strength(f32::NAN)),
            "hires.strength is NaN, expected 0 to 1",
        ),
        (base().hires(Hires::pixels(u32::MAX, u32::MAX)), "hires."),
        (
            base().hires(twice().strength(1.5)),
            "hires.strength is 1.5, expected 0 to 1",
        ),
        (
            base().hires(twice().steps(5000)),
            "hires.steps is 7142, expected 1 to 1000",
        ),
        (
            base().hires(twice().prompt("[".repeat(1 << 17))),
            "hires.prompt is 131072 bytes long",
        ),
        (
            base().hires(twice()).start(start),
            "hires is given, expected nothing beside a start",
        ),
    ] {
        let error = pipeline.generate(&request).map(drop).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert!(error.to_string().len() < 400, "{error}");
    }
    // A problem of the first pass is reported once.
    let error = pipeline.generate(&base().steps(5000).hires(twice()));
    let Err(GenerateError::Request(problems)) = error else {
        panic!("not refused");
    };
    assert_eq!(problems.iter().count(), 1, "{problems}");
    let model = Model {
        inputs: Inputs::new(4, 4).extra_channels(5),
        ..Model::default()
    };
    let error = Fakes::with(model)
        .pipeline()
        .generate(&base().hires(twice()));
    let error = error.map(drop).unwrap_err().to_string();
    assert!(
        error.contains("takes channels beside the latents"),
        "{error}"
    );
}

#[test]
fn infotexts_record_the_second_pass() {
    let pipeline = Fakes::new().pipeline();
    let hires = Hires::scale(1.5)
        .strength(0.55)
        .steps(6)
        .upscaler(Upscaler::Latent(LatentFilter::BicubicAntialiased))
        .scheduler(EulerAncestral::default())
        .ladder(Ladder::exponential())
        .guidance(4.5)
        .prompt("an owl, \"wise\"")
        .negative("dark: very");
    let picture = drawn(&pipeline, &base().hires(hires));
    let text = picture.infotext().to_string();
    let infotext = Infotext::parse(&text).unwrap();
    for (key, value) in [
        ("Denoising strength", "0.55"),
        ("Hires upscale", "1.5"),
        ("Hires steps", "6"),
        ("Hires upscaler", "Latent (bicubic antialiased)"),
        ("Hires sampler", "Euler a"),
        ("Hires schedule type", "Exponential"),
        ("Hires CFG Scale", "4.5"),
        ("Hires prompt", "an owl, \"wise\""),
        ("Hires negative prompt", "dark: very"),
        ("Size", "64x48"),
    ] {
        assert_eq!(infotext.get(key), Some(value), "{text}");
    }
    let again = pipeline.reproduction(&infotext);
    assert_eq!(again.differences, Vec::<String>::new());
    assert_eq!(drawn(&pipeline, &again.request).latents, picture.latents);
    // The same from JSON.
    let request = base().hires(Hires::pixels(80, 48).prompt("an owl"));
    let json = serde_json::to_string(&request).unwrap();
    let read = Request::from_json(&json).unwrap();
    assert_eq!(
        drawn(&pipeline, &read).latents,
        drawn(&pipeline, &request).latents
    );
}
