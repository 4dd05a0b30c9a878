//! The whole loop on fakes: no ONNX Runtime, no weights.

// In a test it is the failure.
#![allow(clippy::unwrap_used)]

use std::{
    ops::ControlFlow,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use ndarray::{Array3, Array4, ArrayView2, ArrayView3, ArrayView4, ArrayViewMut4};
use sd_core::{
    BoxError, Denoiser, Error, LatentCodec, LatentDistribution, Pipeline, PipelineBuilder,
    Progress, Request, SchedulerConfig,
    schedulers::{Euler, EulerAncestral, Ladder},
    text::{ClipSkip, ClipTokenizer, PromptEncoder, TextModel},
};

/// Embeddings that depend on every id and on the clip skip.
struct Text;

impl TextModel for Text {
    fn layers(&self) -> usize {
        3
    }
    fn width(&self) -> usize {
        4
    }
    fn max_length(&self) -> usize {
        77
    }
    fn vocab_size(&self) -> usize {
        49408
    }
    fn hidden_states(
        &self,
        ids: ArrayView2<'_, i64>,
        clip_skip: ClipSkip,
    ) -> Result<Array3<f32>, BoxError> {
        let sum = ids.sum() as f32 * clip_skip.number() as f32;
        Ok(Array3::from_shape_fn((1, 77, 4), |(_, token, i)| {
            (sum + (token * 4 + i) as f32).sin()
        }))
    }
}

/// A prediction that depends on everything it is given, and a count of the calls.
#[derive(Default)]
struct Model {
    calls: AtomicUsize,
    /// The call that fails, from 1; 0 for none.
    fails_at: usize,
}

impl Denoiser for Model {
    fn latent_channels(&self) -> usize {
        4
    }
    fn context_width(&self) -> usize {
        4
    }
    fn predict(
        &self,
        latents: ArrayView4<'_, f32>,
        timestep: f32,
        context: ArrayView3<'_, f32>,
        mut output: ArrayViewMut4<'_, f32>,
    ) -> Result<(), BoxError> {
        assert_eq!(context.dim(), (1, 77, 4));
        if self.calls.fetch_add(1, Relaxed) + 1 == self.fails_at {
            return Err("out of memory".into());
        }
        let push = context.sum() / 10.0 + timestep / 1000.0;
        output.zip_mut_with(&latents, |o, x| *o = 0.8 * x + 0.3 * (x + push).sin());
        Ok(())
    }
}

/// The first three channels, eight pixels to a latent.
struct Codec {
    channels: usize,
}

impl LatentCodec for Codec {
    fn latent_channels(&self) -> usize {
        self.channels
    }
    fn factor(&self) -> usize {
        8
    }
    fn decode(&self, latents: ArrayView4<'_, f32>) -> Result<Array4<f32>, BoxError> {
        let (n, _, h, w) = latents.dim();
        Ok(Array4::from_shape_fn(
            (n, 3, 8 * h, 8 * w),
            |(n, c, y, x)| latents[[n, c, y / 8, x / 8]],
        ))
    }
    fn encode(&self, _: ArrayView4<'_, f32>) -> Result<LatentDistribution, BoxError> {
        unimplemented!("nothing here encodes")
    }
}

fn prompts() -> PromptEncoder {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models/emoji/tokenizer");
    PromptEncoder::new(
        Arc::new(ClipTokenizer::load(folder).unwrap()),
        Arc::new(Text),
    )
    .unwrap()
}

fn builder(model: &Arc<Model>) -> PipelineBuilder {
    Pipeline::builder(
        prompts(),
        model.clone(),
        Arc::new(Codec { channels: 4 }),
        SchedulerConfig::default(),
    )
}

fn pipeline() -> (Pipeline, Arc<Model>) {
    let model = Arc::new(Model::default());
    (builder(&model).size(64, 48).build().unwrap(), model)
}

fn base() -> Request {
    Request::new("a fox").negative("blurry").steps(4).seed(7)
}

fn latents(pipeline: &Pipeline, request: &Request) -> Array4<f32> {
    pipeline
        .generate(request)
        .unwrap()
        .pictures
        .remove(0)
        .latents
}

#[test]
fn each_setter_changes_the_picture() {
    let (pipeline, _) = pipeline();
    let plain = latents(&pipeline, &base());
    assert_eq!(
        plain,
        latents(&pipeline, &base()),
        "the same request draws the same"
    );
    let changed = [
        (
            "prompt",
            Request::new("a cat").negative("blurry").steps(4).seed(7),
        ),
        ("negative", base().negative("sharp")),
        ("size", base().size(48, 64)),
        ("steps", base().steps(5)),
        ("guidance", base().guidance(7.0)),
        ("seed", base().seed(8)),
        ("clip_skip", base().clip_skip(2)),
        ("scheduler", base().scheduler(Euler)),
        ("ladder", base().ladder(Ladder::trailing())),
    ];
    for (setter, request) in changed {
        assert_ne!(plain, latents(&pipeline, &request), "{setter}");
    }
    let model = Arc::new(Model::default());
    let clip_skip = builder(&model).size(64, 48).clip_skip(2).build().unwrap();
    assert_eq!(
        latents(&clip_skip, &base()),
        latents(&pipeline, &base().clip_skip(2))
    );
    assert_eq!(
        builder(&model)
            .build()
            .unwrap()
            .generate(&base())
            .unwrap()
            .image()
            .dimensions(),
        (512, 512)
    );
}

#[test]
fn the_result_says_what_was_made() {
    let (pipeline, _) = pipeline();
    let generation = pipeline.generate(&base()).unwrap();
    let picture = &generation.pictures[0];
    assert_eq!(picture.seed, 7);
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
    assert_eq!(generation.prompt.embedding.dim(), (1, 77, 4));
}

#[test]
fn guidance_up_to_one_skips_the_unconditional_half() {
    let (pipeline, model) = pipeline();
    for (guidance, calls) in [(7.5, 8), (1.01, 8), (1.0, 4), (0.0, 4), (-3.0, 4)] {
        model.calls.store(0, Relaxed);
        let generation = pipeline.generate(&base().guidance(guidance)).unwrap();
        assert_eq!(model.calls.load(Relaxed), calls, "guidance {guidance}");
        assert_eq!(generation.negative.is_some(), calls == 8);
    }
    assert_eq!(
        latents(&pipeline, &base().guidance(1.0)),
        latents(&pipeline, &base().guidance(0.5).negative("unseen")),
        "neither the scale nor the negative prompt counts"
    );
}

#[test]
fn picture_i_of_many_is_the_one_with_the_seed_plus_i() {
    let (pipeline, _) = pipeline();
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

#[test]
fn a_seed_that_is_not_given_is_told_and_draws_the_same_again() {
    let (pipeline, _) = pipeline();
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
fn an_observer_sees_every_step_and_may_stop() {
    let (pipeline, _) = pipeline();
    let mut seen = Vec::new();
    let request = base().count(2);
    let generation = pipeline
        .generate_watched(&request, &mut |p: Progress<'_>| {
            assert_eq!(
                (p.pictures, p.steps, p.latents.len(), p.denoised.len()),
                (2, 4, 192, 192)
            );
            seen.push((p.picture, p.step, p.sigma, p.latents.to_vec()));
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(
        seen.iter().map(|s| (s.0, s.1)).collect::<Vec<_>>(),
        (0..8).map(|i| (i / 4, i % 4)).collect::<Vec<_>>()
    );
    assert!(seen[..4].is_sorted_by(|a, b| a.2 > b.2), "sigmas fall");
    assert_eq!(
        seen[3].3,
        generation.pictures[0].latents.as_slice().unwrap()
    );

    for stop_after in 1..=4 {
        let mut steps = 0;
        let stopped = pipeline.generate_watched(&base(), &mut |_: Progress<'_>| {
            steps += 1;
            if steps == stop_after {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        let error = stopped.unwrap_err();
        assert!(
            error.is_stopped() && matches!(error, Error::Stopped { steps } if steps == stop_after),
            "{error}"
        );
    }
    assert_eq!(
        latents(&pipeline, &base()),
        generation.pictures[0].latents,
        "the pipeline works afterwards"
    );
}

#[test]
fn bad_requests_are_refused_before_a_network_runs() {
    let (pipeline, model) = pipeline();
    let cases = [
        (base().size(63, 64), "width is 63"),
        (base().size(64, 0), "height is 0"),
        (base().size(8192, 8192), "size is 8192×8192"),
        (base().steps(0), "steps: expected 1 to 1000, found 0"),
        (
            base().steps(100_000),
            "steps: expected 1 to 1000, found 100000",
        ),
        (base().guidance(f32::NAN), "guidance is NaN"),
        (base().guidance(f32::INFINITY), "guidance is inf"),
        (base().count(0), "count is 0"),
        (base().clip_skip(0), "clip skip is 0, expected 1 to 3"),
        (base().clip_skip(4), "clip skip is 4, expected 1 to 3"),
    ];
    for (request, expected) in cases {
        let error = pipeline.generate(&request).unwrap_err().to_string();
        assert!(
            error.contains(expected),
            "{error:?} does not say {expected:?}"
        );
    }
    assert_eq!(model.calls.load(Relaxed), 0);
}

#[test]
fn a_network_that_fails_is_named_with_its_step() {
    let model = Arc::new(Model {
        fails_at: 6,
        ..Model::default()
    });
    let pipeline = builder(&model).size(64, 48).build().unwrap();
    let error = pipeline.generate(&base()).unwrap_err();
    assert!(!error.is_stopped());
    let error = error.to_string();
    assert!(
        error.contains("step 3") && error.contains("out of memory"),
        "{error}"
    );
    assert!(
        pipeline.generate(&base()).is_ok(),
        "the pipeline works afterwards"
    );
}

#[test]
fn parts_that_do_not_fit_are_refused() {
    let build = |codec| {
        let model = Arc::new(Model::default());
        Pipeline::builder(
            prompts(),
            model,
            Arc::new(codec),
            SchedulerConfig::default(),
        )
    };
    let error = build(Codec { channels: 16 })
        .build()
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("the denoiser has 4 latent channels, the codec 16"),
        "{error}"
    );
    for builder in [
        build(Codec { channels: 4 }).size(60, 64),
        build(Codec { channels: 4 }).clip_skip(9),
    ] {
        assert!(matches!(builder.build(), Err(Error::Request { .. })));
    }
}

#[test]
fn a_png_is_whole_or_not_there() {
    let (pipeline, _) = pipeline();
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
