//! Masks, outpainting and what happens to finished pictures, with fake networks.
//!
//! `sd-onnx/tests/webui_pictures.rs` and `pictures.rs` compare whole runs with the references.

// In tests, a panic reports the failure.
#![allow(clippy::unwrap_used)]

mod common;

use std::ops::ControlFlow;

use common::{Fakes, Model, base, latents};
use ndarray::Array4;
use sd_core::{
    Event, Inputs, Mask, MaskRule, MaskedContent, Picture, Pipeline, Posterior, Request, Resize,
    Sides, Start, StopToken,
    image::{GrayImage, Luma, Rgb, RgbImage},
    schedulers::{
        Scheduler, from_webui,
        ladders::StrengthRule,
        samplers::{Euler, EulerAncestral},
    },
};

const RULES: [MaskRule; 3] = [MaskRule::Diffusers, MaskRule::WebUi, MaskRule::Differential];

fn picture(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        Rgb([(x * 3) as u8, (y * 5) as u8, (x + y) as u8])
    })
}

fn start() -> Start {
    Start::picture(picture(64, 48)).posterior(Posterior::Mode)
}

fn mask(of: impl Fn(u32, u32) -> u8) -> Mask {
    Mask::new(GrayImage::from_fn(64, 48, |x, y| Luma([of(x, y)])))
}

fn left() -> Mask {
    mask(|x, _| if x < 32 { 255 } else { 0 })
}

fn drawn(pipeline: &Pipeline, start: Start) -> Picture {
    let request = base().scheduler(Euler::default()).start(start);
    pipeline.generate(&request).unwrap().pictures.remove(0)
}

#[test]
fn each_rule_keeps_the_pixels_outside() {
    let pipeline = Fakes::new().pipeline();
    for rule in RULES {
        for strength in [0.6, 1.0] {
            let nothing = start().strength(strength).mask(mask(|_, _| 0).rule(rule));
            assert_eq!(drawn(&pipeline, nothing).image, picture(64, 48), "{rule:?}");
            let half = start().strength(strength).mask(left().rule(rule));
            let half = drawn(&pipeline, half).image;
            let mut changed = 0;
            for (x, y, pixel) in half.enumerate_pixels() {
                let same = pixel == picture(64, 48).get_pixel(x, y);
                assert!(same || x < 32, "{rule:?}: ({x}, {y}) changed");
                changed += usize::from(!same);
            }
            assert!(changed > 500, "{rule:?}: {changed} pixels changed");
        }
    }
}

#[test]
fn each_rule_redraws_everything_under_a_mask_of_everything() {
    let pipeline = Fakes::new().pipeline();
    let plain = drawn(&pipeline, start().strength(0.6)).latents;
    for rule in RULES {
        let masked = start().strength(0.6).mask(mask(|_, _| 255).rule(rule));
        assert_eq!(drawn(&pipeline, masked).latents, plain, "{rule:?}");
    }
}

#[test]
fn each_option_changes_the_picture() {
    let pipeline = Fakes::new().pipeline();
    let of = |mask: Mask| drawn(&pipeline, start().mask(mask)).pixels;
    let webui = || left().rule(MaskRule::WebUi);
    let small = || mask(|x, y| if x < 16 && y < 12 { 255 } else { 0 });
    let all = [
        of(left()),
        of(left().blur(4.0)),
        of(left().keep_original(false)),
        of(left().content(MaskedContent::Fill)),
        of(left().content(MaskedContent::Noise)),
        of(left().content(MaskedContent::Nothing)),
        of(small().only_masked(4)),
        of(small().only_masked(12)),
        of(webui().blur(4.0)),
        of(webui().blur(4.0).content(MaskedContent::Fill)),
        of(webui().blur(4.0).content(MaskedContent::Noise)),
        of(mask(|x, _| 255 - 4 * x as u8).rule(MaskRule::Differential)),
        of(left().rule(MaskRule::Differential).blur(4.0)),
        drawn(&pipeline, start().color_correction(true)).pixels,
        drawn(&pipeline, start()).pixels,
    ];
    for (i, one) in all.iter().enumerate() {
        for other in &all[..i] {
            assert!(one != other, "case {i}");
        }
    }
}

/// The latents after each step of a run that redraws the left half, and the sigmas there.
fn steps(pipeline: &Pipeline, request: &Request) -> Vec<(f32, Array4<f32>)> {
    let mut steps = Vec::new();
    let result = pipeline.run(std::slice::from_ref(request), &StopToken::new(), |event| {
        if let Event::Step(progress) = event {
            let latents = progress.latents.to_owned().insert_axis(ndarray::Axis(0));
            steps.push((progress.step.next, latents));
        }
        ControlFlow::Continue(())
    });
    result.unwrap();
    steps
}

/// Returns the largest distance of the latents right of the middle from the original with noise.
/// The first column there is left out, because scaling mixes it with the other half.
fn distance(latents: &Array4<f32>, clean: &Array4<f32>, noise: &Array4<f32>, sigma: f32) -> f32 {
    let mut most = 0.0_f32;
    for ((n, c, y, x), value) in latents.indexed_iter() {
        if x >= 5 {
            let expected = clean[[n, c, y, x]] + sigma * noise[[n, c, y, x]];
            most = most.max((value - expected).abs());
        }
    }
    most
}

#[test]
fn latents_outside_the_mask_are_the_original_s() {
    let pipeline = Fakes::new().pipeline();
    let clean = pipeline.encode_image(&picture(64, 48)).unwrap().mode();
    let noise = latents_of_noise(&pipeline);
    let of = |mask: Mask, scheduler: Scheduler| {
        let start = start().strength(0.75).mask(mask);
        steps(&pipeline, &base().scheduler(scheduler).start(start))
    };
    // After each step, with the noise of that level.
    for rule in [MaskRule::Diffusers, MaskRule::WebUi] {
        let steps = of(left().rule(rule), Euler::default().into());
        assert_eq!(steps.len(), 3);
        for (sigma, latents) in steps {
            assert!(distance(&latents, &clean, &noise, sigma) < 1e-4, "{rule:?}");
        }
    }
    // A sampler that adds noise keeps the original only in the finished latents.
    for scheduler in [
        Scheduler::from(EulerAncestral::default()),
        from_webui("DDIM", None).unwrap().sampler.into(),
        from_webui("UniPC", None).unwrap().sampler.into(),
    ] {
        let start = start().mask(left().rule(MaskRule::WebUi));
        let request = base().scheduler(scheduler).start(start);
        let finished = latents(&pipeline, &request);
        assert!(distance(&finished, &clean, &noise, 0.0) < 1e-6);
    }
}

fn latents_of_noise(pipeline: &Pipeline) -> Array4<f32> {
    let pictures = pipeline.generate(&base()).unwrap().pictures;
    pictures[0].initial_noise.clone()
}

/// A place joins the run when the steps that are left fall to its value.
#[test]
fn gray_values_are_strengths() {
    let fakes = Fakes::new();
    let pipeline = fakes.pipeline();
    let clean = pipeline.encode_image(&picture(64, 48)).unwrap().mode();
    let noise = latents_of_noise(&pipeline);
    for (value, joins_after) in [
        (255, 0),
        (192, 0),
        (190, 1),
        (128, 1),
        (126, 2),
        (64, 2),
        (62, 3),
        (10, 3),
    ] {
        let values = mask(|x, _| if x < 32 { 255 } else { value });
        let start = start().strength(1.0);
        let start = start.mask(values.rule(MaskRule::Differential));
        let request = base().scheduler(Euler::default()).start(start);
        let steps = steps(&pipeline, &request);
        assert_eq!(steps.len(), 4);
        for (i, (sigma, latents)) in steps.iter().enumerate() {
            let is_original = distance(latents, &clean, &noise, *sigma) < 1e-4;
            assert_eq!(is_original, i < joins_after, "{value} after step {i}");
        }
    }
}

#[test]
fn only_the_masked_region_is_drawn() {
    let pipeline = Fakes::new().pipeline();
    let whole = picture(200, 120);
    let values = GrayImage::from_fn(200, 120, |x, y| {
        Luma([if (150..170).contains(&x) && (20..50).contains(&y) {
            255
        } else {
            0
        }])
    });
    for rule in RULES {
        let mask = Mask::new(values.clone()).rule(rule).only_masked(8);
        let start = Start::picture(whole.clone()).mask(mask);
        let request = base().start(start);
        // In the default size of the pipeline, 64 × 48.
        assert_eq!(pipeline.with_defaults(request.clone()).size, Some([64, 48]));
        let drawn = pipeline.generate(&request).unwrap().pictures.remove(0);
        assert_eq!(drawn.latents.dim(), (1, 4, 6, 8));
        assert_eq!(drawn.image.dimensions(), (200, 120));
        assert_eq!(drawn.pixels.dim(), (1, 3, 120, 200));
        let mut changed = 0;
        for (x, y, pixel) in drawn.image.enumerate_pixels() {
            let same = pixel == whole.get_pixel(x, y);
            assert!(same || values.get_pixel(x, y).0[0] > 0, "({x}, {y})");
            changed += usize::from(!same);
        }
        assert!(changed > 300, "{rule:?}: {changed}");
        // Nothing is redrawn under an empty mask.
        let empty = Mask::new(GrayImage::new(200, 120))
            .rule(rule)
            .only_masked(8);
        let start = Start::picture(whole.clone()).mask(empty);
        let drawn = pipeline.generate(&base().start(start)).unwrap();
        assert_eq!(drawn.pictures[0].image, whole, "{rule:?}");
    }
    // Odd shapes of pictures and masks.
    for [width, height] in [[1, 1], [1, 500], [500, 1], [7, 3]] {
        let values = GrayImage::from_fn(width, height, |x, y| Luma([255 * u8::from(x + y == 0)]));
        let mask = Mask::new(values).only_masked(u32::MAX).blur(3.0);
        let start = Start::picture(picture(width, height)).mask(mask);
        let drawn = pipeline.generate(&base().start(start)).unwrap();
        assert_eq!(drawn.pictures[0].image.dimensions(), (width, height));
    }
}

#[test]
fn pictures_grow_beyond_their_borders() {
    let pipeline = Fakes::new().pipeline();
    let sides = Sides {
        left: 16,
        bottom: 24,
        ..Sides::default()
    };
    let start = Start::outpaint(&picture(64, 48), sides, 0).unwrap();
    let image = drawn(&pipeline, start).image;
    assert_eq!(image.dimensions(), (80, 72));
    for (x, y, pixel) in picture(64, 48).enumerate_pixels() {
        assert_eq!(image.get_pixel(x + 16, y), pixel);
    }
    // The overlap is redrawn, and sides that do not grow have none.
    let start = Start::outpaint(&picture(64, 48), sides, 8).unwrap();
    let values = start.mask.unwrap().values;
    let columns = [0, 23, 24, 79].map(|x| values[[0, x]]);
    assert_eq!(columns, [255, 255, 0, 0]);
    let rows = [0, 39, 40, 71].map(|y| values[[y, 79]]);
    assert_eq!(rows, [0, 0, 255, 255]);
    let most = Sides {
        top: u32::MAX,
        right: u32::MAX,
        ..Sides::default()
    };
    assert!(Start::outpaint(&picture(8, 8), most, u32::MAX).is_err());
    assert!(Start::outpaint(&RgbImage::new(0, 3), sides, 0).is_err());
    let all = Start::outpaint(&picture(8, 8), sides, u32::MAX).unwrap();
    assert!(all.mask.unwrap().values.iter().all(|&value| value == 255));
}

#[test]
fn latents_are_scaled_instead_of_pixels() {
    let fakes = Fakes::new();
    let pipeline = fakes.pipeline();
    let of = |start: Start| {
        let request = base().size(64, 48).start(start);
        pipeline
            .generate(&request)
            .map(|mut it| it.pictures.remove(0))
    };
    let small = || Start::picture(picture(32, 40)).resize(Resize::Latent);
    let scaled = of(small()).unwrap();
    assert_eq!(scaled.image.dimensions(), (64, 48));
    assert!(scaled.latents != of(small().resize(Resize::Stretch)).unwrap().latents);
    for (wrong, expected) in [
        (
            Start::picture(picture(36, 40)).resize(Resize::Latent),
            "start.from is 36×40, expected sides that are multiples of 8",
        ),
        (
            start().resize(Resize::Latent).mask(left()),
            "start.resize is latent",
        ),
    ] {
        let error = of(wrong).map(drop).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn the_colors_of_the_start_return() {
    let pipeline = Fakes::new().pipeline();
    let mean = |image: &RgbImage| {
        let sum: u64 = image.pixels().map(|pixel| u64::from(pixel.0[0])).sum();
        sum as f64 / f64::from(image.width() * image.height())
    };
    let red = RgbImage::from_fn(64, 48, |x, _| Rgb([250 - x as u8, 30, 40]));
    let of = |correct: bool| {
        let start = Start::picture(red.clone()).strength(1.0);
        let start = start.rule(StrengthRule::ComfyUi).color_correction(correct);
        drawn(&pipeline, start).image
    };
    let [plain, corrected] = [false, true].map(|correct| mean(&of(correct)));
    let goal = mean(&red);
    assert!(
        (corrected - goal).abs() < (plain - goal).abs() / 2.0,
        "{plain} {corrected} {goal}"
    );
    // The original outside of a mask is not corrected.
    let start = start().mask(left()).color_correction(true);
    let image = drawn(&pipeline, start).image;
    assert_eq!(image.get_pixel(63, 47), picture(64, 48).get_pixel(63, 47));
    let start = Start::latents(Array4::zeros((1, 4, 6, 8))).color_correction(true);
    let error = pipeline
        .generate(&base().start(start))
        .map(drop)
        .unwrap_err();
    assert!(
        error.to_string().contains("start.color_correction is true"),
        "{error}"
    );
}

/// A region that a gray mask redraws is not mixed with the original again.
#[test]
fn gray_regions_are_mixed_once() {
    let pipeline = Fakes::new().pipeline();
    let gray = || mask(|_, _| 100).rule(MaskRule::Differential);
    let of = |mask: Mask| drawn(&pipeline, start().strength(1.0).mask(mask)).image;
    assert_eq!(of(gray()), of(gray().only_masked(8)));
}

/// Latents have the size of the run, also if the model divides them into patches.
#[test]
fn a_start_from_latents_has_their_size() {
    let model = Model {
        inputs: Inputs::new(4, 4).patch(2),
        ..Model::default()
    };
    let pipeline = Fakes::with(model).pipeline();
    let start = Start::latents(Array4::zeros((1, 4, 8, 6)));
    assert_eq!(drawn(&pipeline, start).image.dimensions(), (48, 64));
    let start = Start::picture(picture(71, 50));
    assert_eq!(drawn(&pipeline, start).image.dimensions(), (64, 48));
}

/// Runs with the same steps may still begin differently, or draw other noise.
#[test]
fn runs_of_different_rules_are_not_in_one_batch() {
    let fakes = Fakes::new();
    let batched = fakes.build(fakes.builder().max_batch(2));
    let single = fakes.pipeline();
    for sampler in ["DPM++ 2M SDE", "DDIM"] {
        let of = |rule: StrengthRule, strength: f32| {
            let preset = from_webui(sampler, None).unwrap();
            let request = base().steps(10).scheduler(preset.sampler);
            let start = start().rule(rule).strength(strength);
            request.ladder(preset.ladder).start(start)
        };
        let requests = [
            of(StrengthRule::Diffusers, 0.5),
            of(StrengthRule::WebUi, 0.4),
        ];
        let images = |pipeline: &Pipeline| -> Vec<Array4<f32>> {
            let pictures = pipeline.generate_all(&requests).unwrap().pictures;
            pictures.into_iter().map(|it| it.latents).collect()
        };
        assert_eq!(images(&batched), images(&single), "{sampler}");
    }
}

/// Pictures with masks of different rules are not drawn in one batch.
#[test]
fn batches_are_the_same_as_single_pictures() {
    let fakes = Fakes::new();
    let batched = fakes.build(fakes.builder().max_batch(8));
    let single = fakes.pipeline();
    let requests: Vec<_> = RULES
        .into_iter()
        .flat_map(|rule| {
            [MaskedContent::Original, MaskedContent::Noise].map(|content| {
                let mask = left().rule(rule).content(content);
                base().start(start().mask(mask)).count(2)
            })
        })
        .collect();
    let images = |pipeline: &Pipeline| -> Vec<Array4<f32>> {
        let pictures = pipeline.generate_all(&requests).unwrap().pictures;
        pictures.into_iter().map(|it| it.latents).collect()
    };
    assert_eq!(images(&batched), images(&single));
}

#[test]
fn inpainting_models_follow_webui_too() {
    let model = Model {
        inputs: Inputs::new(4, 4).extra_channels(5),
        ..Model::default()
    };
    let pipeline = Fakes::with(model).pipeline();
    let clean = pipeline.encode_image(&picture(64, 48)).unwrap().mode();
    let of = |rule| drawn(&pipeline, start().mask(left().rule(rule))).latents;
    let kept = of(MaskRule::WebUi);
    assert!(distance(&kept, &clean, &clean, 0.0) < 1e-6);
    assert!(distance(&of(MaskRule::Diffusers), &clean, &clean, 0.0) > 1e-2);
}

#[test]
fn wrong_masks_are_refused() {
    let pipeline = Fakes::new().pipeline();
    let wrong = left().only_masked(4).keep_original(false);
    let error = pipeline.generate(&base().start(start().mask(wrong)));
    let error = error.map(drop).unwrap_err().to_string();
    assert!(
        error.contains("start.mask.keep_original is false"),
        "{error}"
    );
    // The finished picture would have the size of the original.
    let fakes = Fakes::new();
    let limited = fakes.build(fakes.builder().max_pixels(64 * 48));
    let mask = Mask::new(GrayImage::new(128, 96)).only_masked(4);
    let large = Start::picture(picture(128, 96)).mask(mask);
    let error = limited.generate(&base().size(64, 48).start(large));
    let error = error.map(drop).unwrap_err().to_string();
    let expected = "start.from is 128×96, expected at most 3072 pixels";
    assert!(error.contains(expected), "{error}");
}
