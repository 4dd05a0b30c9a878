//! Requests and pictures, tested on fakes without ONNX Runtime or weights.

// A failed `unwrap` is a failed test.
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    num::NonZeroUsize,
    ops::ControlFlow,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use common::{Codec, Fakes, Model, base, latents, prompts};
use ndarray::{Array3, Array4, Axis, s};
use sd_core::{
    BuildError, Event, GenerateError, Guide, ImageSize, LatentRgb, MAX_PROMPT_BYTES, Pipeline,
    Prompt, PromptOptions, Request, SchedulerConfig, Stage, StopToken,
    guidance::{GuidanceStep, Memory},
    guide,
    schedulers::{
        Ladder, NoiseSource, Scheduler,
        ladders::{Shape, Span},
        noise::{NoiseKind, Seeds, Slerp, TorchRng, Variation},
        samplers::{DpmAdaptive, DpmFast, DpmPlusPlus2M, DpmPlusPlusSde, Euler, EulerAncestral},
    },
    text::{Chunking, ClipSkip, PromptEmbedding},
};
use sd_text::outside::chain;

#[test]
fn each_setter_changes_the_picture() {
    let fakes = Fakes::new();
    let pipeline = fakes.pipeline();
    let plain = latents(&pipeline, &base());
    assert_eq!(
        plain,
        latents(&pipeline, &base()),
        "the same request draws the same picture"
    );
    let changed = [
        ("prompt", base().prompt("a cat")),
        ("negative", base().negative("sharp")),
        ("size", base().size(48, 64)),
        ("steps", base().steps(5)),
        ("guidance", base().guidance(7.0)),
        ("seed", base().seed(8)),
        ("noise", base().noise(NoiseKind::Philox)),
        ("variation", base().variation(varied(0.3))),
        ("seed_resize", base().seed_resize(32, 48)),
        ("clip_skip", base().clip_skip(2)),
        ("scheduler", base().scheduler(Euler::default())),
        ("ladder", base().ladder(Ladder::trailing())),
        (
            "initial_noise",
            base().initial_noise(Array4::ones((1, 4, 6, 8))),
        ),
    ];
    for (setter, request) in changed {
        assert_ne!(plain, latents(&pipeline, &request), "{setter}");
    }

    let build = |builder: sd_core::PipelineBuilder| builder.build().unwrap();
    assert_eq!(
        latents(&build(fakes.builder().clip_skip(2)), &base()),
        latents(&pipeline, &base().clip_skip(2))
    );
    let wide = build(fakes.builder().size(80, 48));
    assert_eq!(
        wide.generate(&base()).unwrap().image().dimensions(),
        (80, 48)
    );
    assert!(
        build(fakes.builder().max_pixels(64 * 48))
            .generate(&base().size(64, 56))
            .is_err()
    );
    let named = build(fakes.builder().model("tiny", || Ok("ab".repeat(32))));
    let hash = "ab".repeat(32);
    assert_eq!(named.model(), Some(("tiny", Some(&hash[..]))));
    assert_eq!(pipeline.model(), None);
}

#[test]
fn the_result_says_what_was_made() {
    let pipeline = Fakes::new().pipeline();
    let generation = pipeline.generate(&base()).unwrap();
    let picture = &generation.pictures[0];
    assert_eq!((picture.request, picture.index, picture.seed), (0, 0, 7));
    assert_eq!(picture.latents.dim(), (1, 4, 6, 8));
    assert_eq!(picture.initial_noise.dim(), (1, 4, 6, 8));
    assert_eq!(picture.pixels.dim(), (1, 3, 48, 64));
    assert_eq!(generation.image().dimensions(), (64, 48));
    assert!(picture.pixels.iter().all(|v| (-1.0..=1.0).contains(v)));
    let red = picture.pixels[[0, 0, 47, 63]];
    assert_eq!(
        picture.image.get_pixel(63, 47).0[0],
        ((red / 2.0 + 0.5) * 255.0).round_ties_even() as u8
    );
    assert_eq!(picture.prompt.embedding.dim(), (1, 77, 4));
    assert_eq!(picture.prompt.tokens.as_ref().unwrap().used, 4);
    let timings = &picture.timings;
    assert_eq!(timings.steps.len(), 4);
    assert!(!timings.encode.is_zero() && !timings.decode.is_zero());
    assert!(timings.total() > timings.encode + timings.decode);
}

#[test]
fn guidance_up_to_one_skips_the_unconditional_half() {
    let fakes = Fakes::new();
    let pipeline = fakes.pipeline();
    for (guidance, calls) in [(7.5, 8), (1.01, 8), (1.0, 4), (0.0, 4), (-3.0, 4)] {
        let generation = pipeline.generate(&base().guidance(guidance)).unwrap();
        assert_eq!(fakes.calls(), calls, "guidance {guidance}");
        assert_eq!(generation.pictures[0].negative.is_some(), calls == 8);
    }
    assert_eq!(
        latents(&pipeline, &base().guidance(1.0)),
        latents(&pipeline, &base().guidance(0.5).negative("unseen")),
        "neither the scale nor the negative prompt counts"
    );
}

/// A custom guidance by a scale, on from step `from`.
#[derive(Debug)]
struct Late {
    scale: f32,
    from: usize,
}

impl Guide for Late {
    fn needs_unconditional(&self, at: &GuidanceStep<'_>) -> bool {
        at.rung.index >= self.from
    }
    fn merge(
        &self,
        conditional: &mut [f32],
        unconditional: &[f32],
        at: &GuidanceStep<'_>,
        _: &mut Memory,
    ) {
        assert!(at.rung.index >= self.from);
        guide(conditional, unconditional, self.scale);
    }
}

#[test]
fn guidance_of_ones_own() {
    let fakes = Fakes::new();
    let pipeline = fakes.pipeline();
    let own = |from| latents(&pipeline, &base().guidance(Late { scale: 7.5, from }));
    assert_eq!(own(0), latents(&pipeline, &base()));
    fakes.calls();
    assert_ne!(own(3), own(0));
    assert_eq!(fakes.calls(), 5 + 8, "steps without guidance have one call");
    assert_eq!(own(4), latents(&pipeline, &base().guidance(1.0)));
}

#[test]
fn picture_i_of_many_is_the_one_with_the_seed_plus_i() {
    let pipeline = Fakes::new().pipeline();
    let request = base()
        .seed(u64::MAX)
        .count(3)
        .scheduler(EulerAncestral::default());
    let many = pipeline.generate(&request).unwrap().pictures;
    assert_eq!(
        many.iter().map(|picture| picture.seed).collect::<Vec<_>>(),
        [u64::MAX, 0, 1]
    );
    for picture in many {
        let alone = latents(&pipeline, &request.clone().seed(picture.seed).count(1));
        assert_eq!(picture.latents, alone, "seed {}", picture.seed);
    }
}

fn varied(strength: f32) -> Variation {
    Variation {
        seed: 3,
        strength,
        slerp: Slerp::Columns,
    }
}

#[test]
fn the_noise_is_that_of_the_seeds() {
    let pipeline = Fakes::new().pipeline();
    for (request, seeds) in [
        (base(), Seeds::default()),
        (
            base().noise(NoiseKind::Numpy),
            Seeds {
                kind: NoiseKind::Numpy,
                ..Seeds::default()
            },
        ),
        (
            base().variation(varied(0.3)),
            Seeds {
                variation: Some(varied(0.3)),
                ..Seeds::default()
            },
        ),
        (
            // The size in latents is rounded down.
            base().seed_resize(32, 51).ensd(9),
            Seeds {
                resize_from: Some([6, 4]),
                sampler_offset: 9,
                ..Seeds::default()
            },
        ),
    ] {
        let seeds = Seeds { seed: 7, ..seeds };
        let picture = pipeline.generate(&request).unwrap().pictures.remove(0);
        assert_eq!(picture.seeds(), seeds);
        let mut expected = vec![0.0; 192];
        seeds.first([4, 6, 8], &mut expected).unwrap();
        assert_eq!(picture.initial_noise.as_slice().unwrap(), expected);
    }
    let plain = latents(&pipeline, &base());
    assert_eq!(plain, latents(&pipeline, &base().variation(varied(0.0))));
    assert_eq!(plain, latents(&pipeline, &base().seed_resize(64, 48)));
    let whole = Variation {
        slerp: Slerp::Whole,
        ..varied(0.3)
    };
    assert_ne!(
        latents(&pipeline, &base().variation(whole)),
        latents(&pipeline, &base().variation(varied(0.3)))
    );
}

#[test]
fn ensd_changes_what_is_drawn_on_the_way_only() {
    let pipeline = Fakes::new().pipeline();
    assert_eq!(
        latents(&pipeline, &base()),
        latents(&pipeline, &base().ensd(31337)),
        "this sampler adds no noise"
    );
    let ancestral = base().scheduler(EulerAncestral::default());
    let draw = |ensd| {
        let request = ancestral.clone().ensd(ensd);
        pipeline.generate(&request).unwrap().pictures.remove(0)
    };
    assert_ne!(draw(0).latents, draw(1).latents);
    assert_eq!(draw(0).initial_noise, draw(1).initial_noise);
    // The sum wraps around at 2⁶⁴.
    let high = ancestral.clone().seed(u64::MAX).ensd(8);
    assert!(pipeline.generate(&high).is_ok());
}

#[test]
fn pictures_of_one_seed_vary_by_the_variations() {
    let pipeline = Fakes::new().pipeline();
    let request = base()
        .scheduler(EulerAncestral::default())
        .variation(varied(0.3))
        .ensd(5);
    let pictures = pipeline.generate(&request.clone().count(3)).unwrap();
    for (i, picture) in pictures.pictures.iter().enumerate() {
        assert_eq!(picture.seed, 7);
        let variation = picture.seeds().variation.unwrap();
        assert_eq!(variation.seed, 3 + i as u64);
        let alone = request.clone().variation(variation);
        assert_eq!(picture.latents, latents(&pipeline, &alone));
    }
}

#[test]
fn a_brownian_path_belongs_to_its_picture() {
    let fakes = Fakes::new();
    let alone = fakes.pipeline();
    let request = base().scheduler(DpmPlusPlusSde::default());
    let plain = latents(&alone, &request);
    assert_eq!(plain, latents(&alone, &request.clone().ensd(5)));
    assert_ne!(
        plain,
        latents(&alone, &request.clone().noise(NoiseKind::Philox))
    );
    let batch = fakes.build(fakes.builder().max_batch(3));
    for picture in batch.generate(&request.clone().count(3)).unwrap().pictures {
        let twin = request.clone().seed(picture.seed);
        assert_eq!(picture.latents, latents(&alone, &twin));
    }
    let far = Ladder::sigmas([2e7, 1.0, 0.0]);
    let error = alone.generate(&request.steps(2).ladder(far)).unwrap_err();
    let error = error.to_string();
    assert!(
        error.starts_with("ladder is sigmas with sigmas 1 to 20000000, expected"),
        "{error}"
    );
}

#[test]
fn samplers_may_make_steps_of_their_own() {
    let fakes = Fakes::new();
    let pipeline = fakes.pipeline();
    let steps_of = |pipeline: &Pipeline, request: Request| {
        let mut steps = Vec::new();
        let run = pipeline.run(&[request], &StopToken::new(), |event| {
            if let Event::Step(progress) = event {
                steps.push(progress.step);
            }
            ControlFlow::Continue(())
        });
        run.unwrap();
        steps
    };
    let fast = steps_of(&pipeline, base().steps(10).scheduler(DpmFast::default()));
    assert_eq!(fast.len(), 4);
    assert!(fast.iter().all(|step| step.total == 4));
    assert!(fast.windows(2).all(|pair| pair[0].next == pair[1].sigma));
    assert_eq!(steps_of(&pipeline, base())[3].next, 0.0);

    let adaptive = base().scheduler(DpmAdaptive::default());
    let steps = steps_of(&pipeline, adaptive.clone());
    assert_eq!(steps.last().unwrap().total, steps.len());
    // Pictures that shared their steps would influence each other.
    let batch = fakes.build(fakes.builder().max_batch(3));
    let requests = [adaptive.clone().count(2), adaptive.clone().prompt("a cat")];
    fakes.model.batch.store(0, Relaxed);
    for picture in batch.generate_all(&requests).unwrap().pictures {
        let alone = requests[picture.request]
            .clone()
            .count(1)
            .seed(picture.seed);
        assert_eq!(picture.latents, latents(&pipeline, &alone));
    }
    assert_eq!(fakes.model.batch.load(Relaxed), 1);
}

#[test]
fn a_seed_that_is_not_given_is_told_and_draws_the_same_again() {
    let pipeline = Fakes::new().pipeline();
    let request = Request::new("a fox").steps(2);
    let picture = pipeline.generate(&request).unwrap().pictures.remove(0);
    assert!(picture.seed < 1 << 32);
    assert_eq!(
        picture.latents,
        latents(&pipeline, &request.clone().seed(picture.seed))
    );
    assert_ne!(
        picture.latents,
        latents(&pipeline, &request),
        "two random seeds, equal once in four billion"
    );
}

#[test]
fn noise_that_is_given_stands_for_the_seeds() {
    let pipeline = Fakes::new().pipeline();
    let mut noise = Array4::zeros((2, 4, 6, 8));
    for (seed, mut picture) in [7, 8].into_iter().zip(noise.outer_iter_mut()) {
        TorchRng::new(seed).fill(picture.as_slice_mut().unwrap());
    }
    let request = base().seed(3).count(2).initial_noise(noise);
    let pictures = pipeline.generate(&request).unwrap().pictures;
    for (seed, picture) in [7, 8].into_iter().zip(&pictures) {
        assert_eq!(picture.latents, latents(&pipeline, &base().seed(seed)));
    }
    // The noise between steps comes from the seed, as if it had also made the initial noise.
    let own = base().scheduler(EulerAncestral::default());
    let picture = pipeline.generate(&own).unwrap().pictures.remove(0);
    let again = own.clone().initial_noise(picture.initial_noise);
    assert_eq!(latents(&pipeline, &again), picture.latents);
    let ancestral = |seed| {
        request
            .clone()
            .scheduler(EulerAncestral::default())
            .seed(seed)
    };
    assert_ne!(
        latents(&pipeline, &ancestral(3)),
        latents(&pipeline, &ancestral(4))
    );
}

#[test]
fn prompts_that_are_encoded_already() {
    let fakes = Fakes::new();
    let pipeline = fakes.pipeline();
    let encode = |text, layer| {
        let clip_skip = ClipSkip::new(layer).unwrap();
        pipeline.prompt_encoder().encode(text, clip_skip).unwrap()
    };
    let request = base()
        .prompt(encode("a fox", 2))
        .negative(encode("blurry", 2));
    fakes.text.calls.store(0, Relaxed);
    let pictures = pipeline.generate(&request).unwrap().pictures;
    assert_eq!(fakes.text.calls.load(Relaxed), 0);
    assert_eq!(
        pictures[0].latents,
        latents(&pipeline, &base().clip_skip(2))
    );
    assert!(pictures[0].prompt.tokens.is_none());
    let short = Array3::<f32>::ones((1, 5, 4));
    assert!(pipeline.generate(&base().prompt(short)).is_ok());
}

#[test]
fn requests_of_a_call_are_what_they_are_alone_and_share_their_texts() {
    let fakes = Fakes::new();
    let requests = [
        base(),
        base().seed(8).steps(6),
        base().prompt("a cat").guidance(3.0).count(3),
        base().size(48, 48).scheduler(EulerAncestral::default()),
        base().seed(9).guidance(1.0),
        base().negative("a fox"),
    ];
    for (batch, most) in [(1, 1), (2, 2), (8, 5)] {
        let pipeline = fakes.builder().max_batch(batch).build().unwrap();
        fakes.model.batch.store(0, Relaxed);
        fakes.text.calls.store(0, Relaxed);
        let pictures = pipeline.generate_all(&requests).unwrap().pictures;
        assert_eq!(fakes.text.calls.load(Relaxed), 3, "fox, blurry, cat");
        assert_eq!(fakes.model.batch.load(Relaxed), most, "batch {batch}");
        let order: Vec<_> = pictures.iter().map(|p| (p.request, p.index)).collect();
        assert_eq!(
            order,
            [
                (0, 0),
                (1, 0),
                (2, 0),
                (2, 1),
                (2, 2),
                (3, 0),
                (4, 0),
                (5, 0)
            ]
        );
        let alone = fakes.pipeline();
        for picture in pictures {
            let request = requests[picture.request]
                .clone()
                .seed(picture.seed)
                .count(1);
            let twin = alone.generate(&request).unwrap().pictures.remove(0);
            assert_eq!(picture.latents, twin.latents, "batch {batch}");
            assert_eq!(picture.image, twin.image);
        }
    }
}

#[test]
fn all_that_is_wrong_is_told_together_before_a_network_runs() {
    let fakes = Fakes::new();
    let pipeline = fakes.pipeline();
    let embedding = |shape| Array3::<f32>::zeros(shape);
    let ddim: Scheduler = "ddim".parse().unwrap();
    let cases = [
        (
            base().size(63, 64),
            "width is 63, expected a positive multiple of 8",
        ),
        (base().size(64, 0), "height is 0"),
        (
            base().size(8192, 8192),
            "size is 8192×8192, expected at most 16777216 pixels",
        ),
        (
            base().size(u32::MAX - 7, u32::MAX - 7),
            "size is 4294967288×4294967288",
        ),
        (base().steps(0), "steps is 0, expected 1 to 1000"),
        (base().steps(100_000), "steps is 100000, expected 1 to 1000"),
        (base().guidance(f32::NAN), "guidance is NaN"),
        (base().guidance(f32::INFINITY), "guidance is inf"),
        (base().count(0), "count is 0, expected 1 to 65536"),
        (base().count(usize::MAX), "count is 18446744073709551615"),
        (base().clip_skip(5), "clip_skip is 5, expected 1 to 3"),
        (base().clip_skip(4), "clip_skip is 4, expected 1 to 3"),
        (
            base().scheduler(ddim).ladder(Ladder::karras()),
            "ladder is karras, expected leading, linspace, trailing, beta-timesteps,",
        ),
        (
            base().ladder(Ladder::shaped(Shape::Karras { rho: -1.0 })),
            "ladder.karras.rho is -1, expected a finite number above 0",
        ),
        (
            base().ladder(Ladder::sigmas([2.0, 1.0, 0.0])),
            "steps is 4, expected 2, as many as the ladder has rungs",
        ),
        (
            base().noise(NoiseKind::Numpy).seed(1 << 32),
            "seed is 4294967296, expected 0 to 4294967295 for every picture, numpy's seeds",
        ),
        (
            base()
                .noise(NoiseKind::Numpy)
                .seed(u32::MAX.into())
                .count(2),
            "seed is 4294967296",
        ),
        (
            base().noise(NoiseKind::Numpy).ensd(u32::MAX.into()),
            "ensd is 4294967295, expected a number with which seed + ensd is at most 4294967295",
        ),
        (
            base().variation(varied(1.5)),
            "variation.strength is 1.5, expected 0 to 1",
        ),
        (
            base().seed_resize(64, 7),
            "seed_resize is 8×0 latents, expected 1 to 4096 latents each way",
        ),
        (
            base().prompt("x".repeat(MAX_PROMPT_BYTES + 1)),
            "prompt is 65537 bytes long, expected at most 65536 bytes",
        ),
        (
            base().negative("x".repeat(1 << 20)),
            "negative is 1048576 bytes long",
        ),
        (
            base().prompt(embedding((1, 77, 5))),
            "shape (1, 77, 5), expected one of shape (1, tokens, 4)",
        ),
        (base().negative(embedding((2, 77, 4))), "shape (2, 77, 4)"),
        (base().prompt(embedding((1, 0, 4))), "shape (1, 0, 4)"),
        (base().prompt(embedding((1, 7, 4)) / 0.0), "prompt is NaN"),
        (
            base().initial_noise(Array4::zeros((1, 4, 8, 6))),
            "initial_noise is an array of shape (1, 4, 8, 6), expected one of shape (1, 4, 6, 8)",
        ),
        (
            base().initial_noise(Array4::from_elem((1, 4, 6, 8), f32::INFINITY)),
            "initial_noise is inf",
        ),
    ];
    let all: Vec<_> = cases.iter().map(|(request, _)| request.clone()).collect();
    let GenerateError::Request(problems) = pipeline.generate_all(&all).unwrap_err() else {
        panic!("another error")
    };
    for (i, (request, expected)) in cases.iter().enumerate() {
        let error = pipeline.generate(request).unwrap_err().to_string();
        assert!(
            error.contains(expected),
            "{error:?} does not say {expected:?}"
        );
        let problem = problems.iter().find(|problem| problem.request == Some(i));
        assert_eq!(
            problem.unwrap().to_string(),
            format!("request {i}: {error}")
        );
    }
    assert_eq!(problems.iter().count(), cases.len());

    let error = pipeline
        .generate(
            &base()
                .size(63, 1)
                .steps(0)
                .guidance(f32::NAN)
                .clip_skip(9)
                .count(0),
        )
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "width is 63, expected a positive multiple of 8; height is 1, expected a positive multiple of 8; \
         guidance is NaN, expected a finite number; count is 0, expected 1 to 65536; steps is 0, expected 1 to 1000, the model's training timesteps; \
         clip_skip is 9, expected 1 to 3, the model's text layers, or 0 for the model's own"
    );
    let both = Ladder::shaped(Shape::Karras { rho: -1.0 });
    let error = pipeline
        .generate(&base().steps(0).ladder(both))
        .unwrap_err();
    let GenerateError::Request(problems) = error else {
        panic!("another error")
    };
    let fields: Vec<_> = problems.iter().map(|problem| &*problem.field).collect();
    assert_eq!(fields, ["ladder.karras.rho", "steps"]);
    let error = pipeline.generate_all(&[]).unwrap_err().to_string();
    assert_eq!(error, "requests is 0, expected at least 1");
    assert_eq!(fakes.calls() + fakes.text.calls.load(Relaxed), 0);
}

#[test]
fn unset_steps_follow_a_given_ladder() {
    let fakes = Fakes::new();
    let pipeline = fakes.pipeline();
    let request = Request::new("a fox").size(64, 48).seed(7);
    let steps = |request: &Request| {
        let made = pipeline.generate(request).unwrap();
        assert_eq!(made.pictures[0].timings.steps.len(), request.step_count());
        request.step_count()
    };
    assert_eq!(steps(&request), 20);
    assert_eq!(steps(&request.clone().ladder(Ladder::karras())), 20);
    let two = Ladder::sigmas([14.0, 1.0, 0.0]);
    assert_eq!(steps(&request.clone().ladder(two.clone())), 2);
    assert_eq!(
        steps(&request.clone().ladder(Ladder::sigmas([14.0, 1.0]))),
        1
    );
    let three = Ladder::timesteps([900.0, 500.0, 0.5]);
    assert_eq!(steps(&request.clone().ladder(three)), 3);
    assert_eq!(
        latents(&pipeline, &request.clone().ladder(two.clone())),
        latents(&pipeline, &request.clone().ladder(two).steps(2))
    );
    let json = r#"{"prompt": "a fox", "size": [64, 48], "ladder": {"sigmas": [9, 3, 1, 0]}}"#;
    let read = Request::from_json(json).unwrap();
    assert_eq!(steps(&read), 3);
    let json = serde_json::to_string(&read).unwrap();
    assert_eq!(Request::from_json(&json).unwrap().steps, None);

    let long: Vec<f32> = (0..1_000_001).map(|i| 1e6 - i as f32).collect();
    for (ladder, expected) in [
        (
            Ladder::sigmas(long),
            "ladder is sigmas with 1000000 rungs, expected 1 to 1000 rungs",
        ),
        (
            Ladder::sigmas([]),
            "ladder is sigmas with 0 rungs, expected 1 to 1000 rungs",
        ),
        (
            Ladder::timesteps([]),
            "ladder is timesteps with 0 rungs, expected 1 to 1000 rungs",
        ),
    ] {
        let error = pipeline.generate(&request.clone().ladder(ladder));
        assert_eq!(error.unwrap_err().to_string(), expected);
    }
}

#[test]
fn ladders_and_schedulers_that_do_not_fit_are_named() {
    let pipeline = Fakes::new().pipeline();
    let ddim = || base().scheduler("ddim".parse::<Scheduler>().unwrap());
    let span = |low, high| Ladder::Shaped {
        shape: Shape::Exponential,
        over: Span::between(low, high),
    };
    for (request, expected) in [
        (
            base().ladder(Ladder::sigmas([9.0, 10.0, 1.0, 0.5, 0.0])),
            "ladder.sigmas[1] is 10, expected finite sigmas, each below the one before it and the last at least 0",
        ),
        (
            base().ladder(Ladder::timesteps([900.0, 1e6, 2.0, 1.0])),
            "ladder.timesteps[1] is 1000000, expected timesteps from 0 to 999",
        ),
        (
            base().ladder(span(10.0, 1.0)),
            "ladder.exponential is from sigma 10 to 1, expected finite sigmas above 0, the smallest first",
        ),
        (
            base().ladder(Ladder::shaped(Shape::Karras { rho: 1e30 })),
            "ladder is karras with sigma ",
        ),
        (
            base().ladder(Ladder::flow()),
            "ladder is flow, expected a ladder for a diffusion model",
        ),
        (
            base().ladder(Ladder::turbo()).steps(11),
            "steps is 11, expected 1 to 10, the most with this scheduler and ladder",
        ),
        (
            ddim().ladder(Ladder::karras()),
            "ladder is karras, expected leading, linspace, trailing, beta-timesteps, normal, sgm-uniform, simple, \
             ddim-uniform, turbo, lcm, lcm-even: this scheduler needs whole training timesteps",
        ),
    ] {
        let error = pipeline.generate(&request).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
        assert!(error.matches("expected").count() == 1, "{error}");
    }
}

#[test]
fn nul_bytes_and_the_longest_prompt_are_read() {
    let pipeline = Fakes::new().pipeline();
    // A NUL is a token, as in transformers 5.
    let nul = pipeline.generate(&base().prompt("a\0fox\0")).unwrap();
    assert_eq!(nul.pictures[0].prompt.tokens.as_ref().unwrap().used, 6);
    let foxes = MAX_PROMPT_BYTES / 4;
    let long = base().prompt("fox ".repeat(foxes));
    let prompt = |request: &Request| {
        pipeline
            .generate(request)
            .unwrap()
            .pictures
            .remove(0)
            .prompt
    };
    let all = prompt(&long);
    assert_eq!(all.embedding.dim().1, 77 * foxes.div_ceil(75));
    assert_eq!(all.tokens.unwrap().cut, None);
    let options =
        PromptOptions::default().chunking(Chunking::default().max_chunks(NonZeroUsize::MIN));
    let first = prompt(&long.prompt_options(options));
    assert_eq!(first.embedding.dim().1, 77);
    assert_eq!(first.tokens.unwrap().cut.unwrap().tokens, foxes - 75);
}

#[test]
fn a_request_is_json_and_back() {
    let full = Request::new("a fox")
        .negative("blurry")
        .size(64, 48)
        .steps(7)
        .guidance(3.25)
        .seed(u64::MAX)
        .noise(NoiseKind::Cuda { threads: 1 << 16 })
        .variation(varied(0.25))
        .seed_resize(32, 48)
        .ensd(31337)
        .count(2)
        .clip_skip(2)
        .scheduler("euler-a".parse::<Scheduler>().unwrap())
        .ladder(Ladder::trailing())
        .initial_noise(Array4::zeros((2, 4, 6, 8)));
    let json = serde_json::to_string(&full).unwrap();
    let back: Request = serde_json::from_str(&json).unwrap();
    assert_eq!(serde_json::to_string(&back).unwrap(), json);
    let pipeline = Fakes::new().pipeline();
    assert_eq!(latents(&pipeline, &full), latents(&pipeline, &back));

    let short: Request = serde_json::from_str(r#"{"prompt": "a fox"}"#).unwrap();
    assert_eq!(
        serde_json::to_string(&short).unwrap(),
        serde_json::to_string(&Request::new("a fox")).unwrap(),
        "missing keys have their defaults"
    );
    let embedded = Request::new(Array3::from_elem((1, 2, 4), 0.5_f32));
    let back: Request = serde_json::from_str(&serde_json::to_string(&embedded).unwrap()).unwrap();
    assert!(
        matches!(back.prompt, Prompt::Embedding { embedding: e, pooled: None } if e.dim() == (1, 2, 4) && e[[0, 1, 3]] == 0.5)
    );

    for wrong in [
        "{}",
        r#"{"prompt": "a", "step": 3}"#,
        r#"{"prompt": "a", "scheduler": "x"}"#,
        r#"{"prompt": "a", "steps": -1}"#,
        r#"{"prompt": "a", "guidance": {"scales": 7}}"#,
        r#"{"prompt": "a", "noise": "mt"}"#,
        r#"{"prompt": "a", "variation": {"seed": 3}}"#,
    ] {
        assert!(serde_json::from_str::<Request>(wrong).is_err(), "{wrong}");
    }
    let half = base().scheduler(EulerAncestral {
        eta: 0.5,
        ..EulerAncestral::default()
    });
    let back: Request = serde_json::from_str(&serde_json::to_string(&half).unwrap()).unwrap();
    assert_eq!(latents(&pipeline, &half), latents(&pipeline, &back));
    let own = base().guidance(Late {
        scale: 1.0,
        from: 0,
    });
    assert!(serde_json::to_string(&own).is_err());
}

#[test]
fn a_network_that_fails_is_named_with_its_step() {
    let fakes = Fakes::with(Model {
        fails_at: 6,
        ..Model::default()
    });
    let pipeline = fakes.pipeline();
    let error = pipeline.generate(&base()).unwrap_err();
    assert!(!error.is_stopped());
    let GenerateError::Backend { stage, .. } = &error else {
        panic!("{error}")
    };
    let Stage::Denoiser { step, steps, .. } = stage else {
        panic!("{stage}")
    };
    assert_eq!((*step, *steps), (Some(3), Some(4)));
    let said = chain(&error);
    let stage = stage.to_string();
    assert!(stage.starts_with("the denoiser at step 3, timestep "));
    assert_eq!(said, format!("{stage} failed: out of memory"));
    assert!(
        pipeline.generate(&base()).is_ok(),
        "the pipeline works afterwards"
    );
}

/// A guidance whose prediction overflows.
#[derive(Debug)]
struct Overflow;

impl Guide for Overflow {
    fn merge(&self, conditional: &mut [f32], _: &[f32], _: &GuidanceStep<'_>, _: &mut Memory) {
        conditional.fill(f32::INFINITY);
    }
}

#[test]
fn a_picture_of_no_numbers_is_told_and_others_of_its_batch_are_finished() {
    let fakes = Fakes::new();
    let pipeline = fakes.build(fakes.builder().max_batch(3));
    let requests = [base(), base().guidance(Overflow), base().seed(8)];
    let mut finished = Vec::new();
    let result = pipeline.run(&requests, &StopToken::new(), |event| {
        if let Event::Picture(picture) = event {
            finished.push(picture.request);
        }
        ControlFlow::Continue(())
    });
    assert!(
        matches!(
            result,
            Err(GenerateError::NotFinite {
                request: 1,
                picture: 0,
                seed: 7
            })
        ),
        "{result:?}"
    );
    assert_eq!(finished, [0, 2]);
}

#[test]
fn parts_that_do_not_fit_are_refused() {
    let fakes = Fakes::new();
    let other_codec = |channels| {
        let codec = Arc::new(Codec::new(channels));
        Pipeline::builder(
            prompts(&fakes.text),
            fakes.model.clone(),
            codec,
            SchedulerConfig::default(),
        )
    };
    let error = other_codec(16).build().unwrap_err().to_string();
    assert!(
        error.contains("the denoiser has 4 latent channels, the codec 16"),
        "{error}"
    );
    for builder in [
        other_codec(4).size(60, 64),
        other_codec(4).clip_skip(9),
        other_codec(4).max_batch(0),
        other_codec(4).max_batch(1025),
        other_codec(4).max_pixels(512 * 511),
        other_codec(4).max_pixels(u64::MAX),
    ] {
        assert!(matches!(builder.build(), Err(BuildError::Settings(_))));
    }
}

#[test]
fn a_png_is_whole_or_not_there() {
    let pipeline = Fakes::new().pipeline();
    let picture = pipeline.generate(&base()).unwrap().pictures.remove(0);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fox.png");
    picture.save_new_png(&path).unwrap();
    assert_eq!(image::open(&path).unwrap().to_rgb8(), picture.image);
    assert_eq!(
        picture.save_new_png(&path).unwrap_err().kind(),
        std::io::ErrorKind::AlreadyExists
    );
    picture.save_png(&path).unwrap();
    assert!(
        picture
            .save_png(folder.path().join("no/such/folder.png"))
            .is_err()
    );
    assert_eq!(
        std::fs::read_dir(folder.path()).unwrap().count(),
        1,
        "no temporary file is left"
    );
}

#[test]
fn a_picture_goes_to_latents_and_back() {
    let pipeline = Fakes::new().pipeline();
    let picture = pipeline.generate(&base()).unwrap().pictures.remove(0);
    assert_eq!(
        pipeline.decode(picture.latents.view()).unwrap(),
        picture.image
    );
    let encoded = pipeline.encode_image(&picture.image).unwrap().mode();
    let difference =
        &encoded.slice(s![.., ..3, .., ..]) - &picture.latents.slice(s![.., ..3, .., ..]);
    // Values beyond white and black, and the fourth channel, are lost.
    assert!(difference.iter().filter(|d| d.abs() < 1.0).count() > difference.len() / 2);
    assert_eq!(pipeline.decode(encoded.view()).unwrap(), picture.image);

    for shape in [(2, 4, 6, 8), (1, 3, 6, 8), (1, 4, 0, 8)] {
        let error = pipeline.decode(Array4::zeros(shape).view()).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("expected one of shape (1, 4, h, w)"),
            "{error}"
        );
    }
    let small = Fakes::new().builder().max_pixels(64 * 48).build().unwrap();
    let error = small
        .decode(Array4::zeros((1, 4, 7, 8)).view())
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "latents is 3584 pixels, expected at most 3072"
    );
    let odd = image::RgbImage::new(64, 44);
    let error = pipeline.encode_image(&odd).unwrap_err().to_string();
    assert!(error.contains("height is 44"), "{error}");
}

#[test]
fn the_preview_of_a_linear_codec_is_what_it_decodes() {
    let fakes = Fakes::new();
    let pipeline = fakes.pipeline();
    let LatentRgb { weights, bias } = pipeline.latent_rgb();
    let expected = [
        ([0.1, 0.0, 0.0], weights[0]),
        ([0.0, 0.1, 0.0], weights[1]),
        ([0.0, 0.0, 0.1], weights[2]),
        ([0.02; 3], weights[3]),
        ([-0.05; 3], *bias),
    ];
    for (expected, found) in expected {
        for (e, f) in expected.into_iter().zip(found) {
            assert!((e - f).abs() < 1e-5, "{expected:?} {found:?}");
        }
    }
    let picture = pipeline.generate(&base()).unwrap().pictures.remove(0);
    let small = pipeline
        .latent_rgb()
        .picture(picture.latents.index_axis(Axis(0), 0));
    assert_eq!(small.dimensions(), (8, 6));
    for (x, y, pixel) in small.enumerate_pixels() {
        let full = picture.image.get_pixel(8 * x, 8 * y);
        for (a, b) in pixel.0.into_iter().zip(full.0) {
            assert!(a.abs_diff(b) <= 1, "{pixel:?} {full:?}");
        }
    }
    assert_eq!(
        fakes.decodes(),
        1,
        "the picture alone, as the previews were fitted when the pipeline was built"
    );
}

#[test]
fn what_the_plain_function_is_given_is_checked() {
    let pipeline = Fakes::new().pipeline();
    let zeros = |width| PromptEmbedding::from(Array3::zeros((1, 7, width)));
    let embedding = zeros(4);
    let size = ImageSize::new(64, 48).unwrap();
    let guided = |prompt: &PromptEmbedding| {
        pipeline
            .guided(size, prompt, None, 1.0)
            .map(|guided| guided.shape())
    };
    assert_eq!(guided(&embedding).unwrap(), [1, 4, 6, 8]);
    assert!(guided(&zeros(5)).is_err());
    let wrong = pipeline.guided(size, &embedding, None, f32::NAN);
    assert_eq!(
        wrong.unwrap_err().to_string(),
        "guidance is NaN, expected a finite number"
    );
    let large = ImageSize::new(8192, 8192).unwrap();
    assert!(pipeline.guided(large, &embedding, None, 1.0).is_err());
    let mut at_work = pipeline.guided(size, &embedding, None, 1.0).unwrap();
    let rung = Ladder::karras()
        .rungs(
            pipeline.schedule(),
            3,
            &sd_core::schedulers::Sampler::conventions(&DpmPlusPlus2M),
        )
        .unwrap()
        .rung(0);
    assert!(at_work.denoise(&[0.0; 192], rung, &mut [0.0; 191]).is_err());
    assert!(at_work.denoise(&[0.0; 192], rung, &mut [0.0; 192]).is_ok());
}
