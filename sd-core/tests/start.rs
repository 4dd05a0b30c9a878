//! Runs that start from a picture or from latents, with fake networks.
//!
//! `sd-onnx/tests/pictures.rs` compares whole runs with diffusers.

// In tests, a panic reports the failure.
#![allow(clippy::unwrap_used)]

mod common;

use std::ops::ControlFlow;

use common::{Fakes, Model, base, latents};
use ndarray::Array4;
use sd_core::{
    ClassifierFree, GenerateError, Infotext, Inputs, Mask, Pipeline, Posterior, Request, Resize,
    Start, StopToken,
    image::{GrayImage, Luma, Rgb, RgbImage},
    schedulers::{ladders::StrengthRule, samplers::EulerAncestral},
};

fn picture(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        Rgb([
            (x * 3 % 256) as u8,
            (y * 5 % 256) as u8,
            ((x + y) % 256) as u8,
        ])
    })
}

fn start() -> Start {
    Start::picture(picture(64, 48))
}

fn mask(of: impl Fn(u32, u32) -> bool) -> Mask {
    Mask::new(GrayImage::from_fn(64, 48, |x, y| {
        Luma([if of(x, y) { 255 } else { 0 }])
    }))
}

fn image(pipeline: &Pipeline, request: &Request) -> RgbImage {
    pipeline.generate(request).unwrap().pictures.remove(0).image
}

#[test]
fn a_mask_of_nothing_returns_the_picture() {
    let pipeline = Fakes::new().pipeline();
    for strength in [0.5, 1.0] {
        let start = start().strength(strength).mask(mask(|_, _| false));
        assert_eq!(image(&pipeline, &base().start(start)), picture(64, 48));
    }
}

#[test]
fn a_mask_of_everything_at_full_strength_is_text_to_image() {
    let pipeline = Fakes::new().pipeline();
    let start = start().strength(1.0).posterior(Posterior::Mode);
    let start = start.mask(mask(|_, _| true));
    let request = base().scheduler(EulerAncestral::default()).size(64, 48);
    let [plain, masked] = [request.clone(), request.start(start)].map(|request| {
        let picture = pipeline.generate(&request).unwrap().pictures.remove(0);
        (picture.latents, picture.image)
    });
    assert!(plain == masked);
}

#[test]
fn pixels_outside_the_mask_stay_and_others_change() {
    let pipeline = Fakes::new().pipeline();
    let inside = |x: u32, y: u32| (16..48).contains(&x) && y < 24;
    let drawn = image(&pipeline, &base().start(start().mask(mask(inside))));
    let mut changed = 0;
    for (x, y, pixel) in drawn.enumerate_pixels() {
        let same = pixel == picture(64, 48).get_pixel(x, y);
        assert!(same || inside(x, y), "({x}, {y}) changed");
        changed += usize::from(!same);
    }
    assert!(changed > 500, "{changed} pixels changed");
    // A blur mixes the pixels near the edge.
    let blurred = start().mask(mask(inside).blur(3.0));
    let blurred = image(&pipeline, &base().start(blurred));
    assert_ne!(blurred.get_pixel(47, 23), drawn.get_pixel(47, 23));
    assert_eq!(blurred.get_pixel(0, 47), picture(64, 48).get_pixel(0, 47));
    // Without the original, the codec's version is shown.
    let decoded = start().mask(mask(inside).keep_original(false));
    let decoded = image(&pipeline, &base().start(decoded));
    assert_ne!(decoded.get_pixel(0, 47), picture(64, 48).get_pixel(0, 47));
}

#[test]
fn each_option_changes_the_picture() {
    let pipeline = Fakes::new().pipeline();
    let drawn = |start: Start| latents(&pipeline, &base().start(start));
    let small = || Start::picture(picture(80, 40));
    let draw_small = |start: Start| latents(&pipeline, &base().size(64, 48).start(start));
    let all = [
        drawn(start()),
        drawn(start().strength(0.5)),
        drawn(start().strength(1.0)),
        drawn(start().posterior(Posterior::Mode)),
        drawn(start().noise_multiplier(0.5)),
        drawn(start().rule(StrengthRule::ComfyUi)),
        drawn(start().mask(mask(|x, _| x < 32))),
        draw_small(small()),
        draw_small(small().resize(Resize::Crop)),
        draw_small(small().resize(Resize::Fill)),
        latents(&pipeline, &base()),
    ];
    for (i, one) in all.iter().enumerate() {
        for other in &all[..i] {
            assert!(one != other, "case {i}");
        }
    }
}

#[test]
fn the_strength_sets_the_number_of_calls() {
    let fakes = Fakes::new();
    let pipeline = fakes.pipeline();
    for (strength, rule, calls) in [
        (0.5, StrengthRule::Diffusers, 5),
        (0.5, StrengthRule::WebUi, 6),
        (0.5, StrengthRule::ComfyUi, 10),
        (1.0, StrengthRule::Diffusers, 10),
    ] {
        let start = start().strength(strength).rule(rule);
        pipeline
            .generate(&base().steps(10).guidance(1.0).start(start))
            .unwrap();
        assert_eq!(fakes.calls(), calls, "{strength} {rule:?}");
    }
}

#[test]
fn the_size_is_the_picture_s() {
    let pipeline = Fakes::new().pipeline();
    let size = |request: &Request| image(&pipeline, request).dimensions();
    assert_eq!(
        size(&base().start(Start::picture(picture(83, 49)))),
        (80, 48)
    );
    assert_eq!(size(&base().start(Start::picture(picture(3, 1)))), (8, 8));
    assert_eq!(size(&base().size(32, 32).start(start())), (32, 32));
    let latents = Start::latents(Array4::zeros((1, 4, 5, 3)));
    assert_eq!(size(&base().start(latents)), (24, 40));
    let filled = pipeline.with_defaults(base().start(Start::picture(picture(83, 49))));
    assert_eq!(filled.size, Some([80, 48]));
}

#[test]
fn latents_are_taken_as_they_are() {
    let pipeline = Fakes::new().pipeline();
    let drawn = pipeline.generate(&base()).unwrap().pictures.remove(0);
    // At a small strength the result is near the start.
    let again = Start::latents(drawn.latents.clone())
        .strength(0.25)
        .noise_multiplier(0.0);
    let again = latents(&pipeline, &base().start(again));
    assert_eq!(again.dim(), drawn.latents.dim());
    let other = latents(
        &pipeline,
        &base().start(Start::latents(drawn.latents * 2.0).strength(0.25)),
    );
    assert!(again != other);
}

#[test]
fn batches_are_the_same_as_single_pictures() {
    let fakes = Fakes::new();
    let batched = fakes.build(fakes.builder().max_batch(4));
    let single = fakes.pipeline();
    let request = base().start(start().mask(mask(|x, _| x < 32))).count(3);
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
fn an_inpainting_model_takes_mask_and_picture() {
    let model = |extra| Model {
        inputs: Inputs::new(4, 4).extra_channels(extra),
        ..Model::default()
    };
    let pipeline = Fakes::with(model(5)).pipeline();
    let drawn = |start: Start| latents(&pipeline, &base().start(start));
    let left = drawn(start().mask(mask(|x, _| x < 32)));
    assert!(left != drawn(start().mask(mask(|x, _| x < 16))));
    let error = pipeline
        .generate(&base().start(start()))
        .map(drop)
        .unwrap_err();
    assert!(error.to_string().contains("start.mask is none"), "{error}");
    let error = pipeline.generate(&base()).map(drop).unwrap_err();
    assert!(
        error.to_string().contains("or a picture as the start"),
        "{error}"
    );

    // An instruct-pix2pix model starts from noise, whatever the strength is.
    let pipeline = Fakes::with(model(4)).pipeline();
    let drawn = |start: Start| latents(&pipeline, &base().start(start));
    assert!(drawn(start()) == drawn(start().strength(0.1)));
    assert!(drawn(start()) != drawn(Start::picture(picture(72, 48)).resize(Resize::Crop)));
    for (wrong, expected) in [
        (
            start().mask(mask(|_, _| true)),
            "as this model redraws the whole picture",
        ),
        (
            Start::latents(Array4::zeros((1, 4, 6, 8))),
            "start.from is latents, expected a picture",
        ),
    ] {
        let error = pipeline
            .generate(&base().start(wrong))
            .map(drop)
            .unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
    // The guidance by the picture is recorded.
    let request = base().start(start()).image_guidance(1.2);
    let drawn = pipeline.generate(&request).unwrap().pictures.remove(0);
    let again = pipeline.reproduction(&drawn.infotext()).request;
    assert_eq!(again.image_guidance, 1.2);

    // A model with one more channel takes no picture that the pipeline can make.
    let pipeline = Fakes::with(model(1)).pipeline();
    let wrong = base().start(start().mask(mask(|_, _| true)));
    assert!(pipeline.generate(&wrong).is_err());
}

#[test]
fn wrong_starts_are_refused() {
    let pipeline = Fakes::new().pipeline();
    let small = Mask::new(GrayImage::new(8, 8));
    let mut long = Array4::zeros((1, 4, 6, 8));
    long[[0, 1, 2, 3]] = f32::NAN;
    for (start, expected) in [
        (
            start().strength(1.5),
            "start.strength is 1.5, expected 0 to 1",
        ),
        (start().strength(f32::NAN), "start.strength is NaN"),
        (
            start().strength(0.1),
            "a strength that leaves at least one of 4 steps",
        ),
        (
            start().noise_multiplier(-1.0),
            "start.noise_multiplier is -1",
        ),
        (
            start().mask(small),
            "start.mask is 8×8, expected the picture's size, 64×48",
        ),
        (
            start().mask(mask(|_, _| true).blur(-1.0)),
            "start.mask.blur is -1",
        ),
        (
            Start::picture(RgbImage::new(0, 4)),
            "one of shape (h, w, 3)",
        ),
        (
            Start::latents(Array4::zeros((1, 3, 6, 8))),
            "start.from is an array of shape (1, 3, 6, 8)",
        ),
        (Start::latents(long), "start.from is NaN"),
        (
            Start::latents(Array4::zeros((1, 4, 6, 8))).mask(mask(|_, _| true)),
            "a picture, because a mask belongs to pixels",
        ),
    ] {
        let error = pipeline
            .generate(&base().start(start))
            .map(drop)
            .unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}

/// A late part of a ladder still has its guidance interval, which is placed in the whole.
#[test]
fn guidance_intervals_are_of_the_whole_ladder() {
    let fakes = Fakes::new();
    let pipeline = fakes.pipeline();
    let guidance = ClassifierFree {
        interval: [0.5, 0.9],
        ..ClassifierFree::from(7.0)
    };
    let start = start().strength(0.2);
    let request = base().steps(10).guidance(guidance).start(start);
    pipeline.generate(&request).unwrap();
    // Two steps, and the negative prompt in the first.
    assert_eq!(fakes.calls(), 3);
}

/// The least blur that is a number, and pictures that differ in how their inputs are made.
#[test]
fn odd_masks_draw() {
    let fakes = Fakes::with(Model {
        inputs: Inputs::new(4, 4).extra_channels(5),
        ..Model::default()
    });
    let pipeline = fakes.build(fakes.builder().max_batch(4));
    let least = start().mask(mask(|x, _| x < 32).blur(f32::from_bits(1)));
    let request = base().start(least);
    let given = request.clone().beside(Array4::ones((1, 5, 6, 8)));
    let drawn = pipeline.generate_all(&[request, given]).unwrap();
    assert!(drawn.pictures[0].latents != drawn.pictures[1].latents);
}

#[test]
fn a_stop_ends_the_run_before_the_first_step() {
    let pipeline = Fakes::new().pipeline();
    let stop = StopToken::new();
    stop.stop();
    let result = pipeline.run(&[base().start(start())], &stop, |_| {
        ControlFlow::Continue(())
    });
    assert!(matches!(result, Err(GenerateError::Stopped(_))));
}

#[test]
fn infotexts_record_the_start() {
    let pipeline = Fakes::new().pipeline();
    let given = start()
        .strength(0.6)
        .rule(StrengthRule::WebUi)
        .posterior(Posterior::Mode);
    let given = given.mask(mask(|x, _| x < 32).blur(2.5));
    let request = base().start(given.clone());
    let drawn = pipeline.generate(&request).unwrap().pictures.remove(0);
    let infotext = Infotext::parse(&drawn.infotext().to_string()).unwrap();
    assert_eq!(infotext.get("Denoising strength"), Some("0.6"));
    assert_eq!(infotext.get("Mask blur"), Some("2.5"));
    let again = pipeline.reproduction(&infotext);
    let started = "the run started from a picture, which has to be supplied";
    let masked = "the run redrew only a part of the picture, and the mask has to be supplied";
    assert_eq!(again.differences, [started, masked]);
    let found = infotext.start(picture(64, 48), Some(mask(|x, _| x < 32)));
    assert_eq!(found, Some(given.clone()));
    let again = again.request.start(found.unwrap());
    assert_eq!(image(&pipeline, &again), drawn.image);
    // The request survives JSON, too.
    let json = serde_json::to_string(&request).unwrap();
    assert_eq!(Request::from_json(&json).unwrap().start, Some(given));
}
