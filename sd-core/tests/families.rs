//! The inputs of models after Stable Diffusion 1.x: two text encoders, pooled outputs, sizes, a
//! refiner, guidance as an input and extra channels beside the latents. Also the defaults of a
//! pipeline.

// A failed `unwrap` is a failed test.
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    ops::ControlFlow::Continue,
    sync::{Arc, Mutex},
};

use common::{Codec, Fakes, latents, tokenizer};
use ndarray::{
    Array1, Array2, Array3, Array4, ArrayView2, ArrayViewMut4, Axis, Zip, array, concatenate, s,
};
use sd_core::{
    BoxError, BuildError, Call, ClassifierFree, Defaults, Denoiser, Event, GenerateError, Guide,
    Inputs, Pipeline, PipelineBuilder, PromptOptions, RefinerShare, RefinerSwitch, Request,
    SchedulerConfig, SizeIds, Sizes, StopToken,
    guidance::{Apg, GuidanceStep, Memory, Method},
    schedulers::{
        Ladder,
        samplers::{DpmPlusPlus2M, Euler, EulerAncestral, EulerCfgPp},
    },
    text::{
        ClipSkip, EncodeOptions, Layer, PromptEmbedding, PromptEncoder, TextModel, TextShape,
        TextStates, Tower,
    },
};

/// A text model whose states depend on every id, on the layer and on the final norm, and whose
/// pooled output depends on every id.
struct Text {
    width: usize,
    pooled: Option<usize>,
}

impl TextModel for Text {
    fn shape(&self) -> TextShape {
        let shape = TextShape::new(3, self.width).vocab_size(49500);
        match self.pooled {
            Some(width) => shape.pooled(width),
            None => shape,
        }
    }
    fn run(&self, ids: ArrayView2<'_, i64>, layer: Layer) -> Result<TextStates, BoxError> {
        let read = layer.skip.number() as f32 + if layer.final_norm { 0.5 } else { 0.0 };
        let hidden = Array3::from_shape_fn((1, 77, self.width), |(_, token, i)| {
            (ids[[0, token]] as f32 * read + (i * self.width) as f32).sin()
        });
        let mut states = TextStates::from(hidden);
        let sum: i64 = ids
            .iter()
            .zip(1..)
            .map(|(id, place)| id * place % 997)
            .sum();
        states.pooled = self
            .pooled
            .map(|width| Array2::from_shape_fn((1, width), |(_, i)| (sum as f32 + i as f32).sin()));
        Ok(states)
    }
}

/// Returns a tower of a small SDXL: the first of width 2, the second of width 3 with a pooled
/// output of width 6.
fn tower(index: usize) -> Tower {
    let text = match index {
        0 => Text {
            width: 2,
            pooled: None,
        },
        _ => Text {
            width: 3,
            pooled: Some(6),
        },
    };
    let tower = Tower::new(Arc::new(tokenizer()), Arc::new(text)).unwrap();
    tower.layer(Layer::SDXL)
}

/// Encodes a text with one tower alone.
fn alone(index: usize, text: &str, windows: usize) -> PromptEmbedding {
    let encoder = PromptEncoder::from_towers(vec![tower(index)]).unwrap();
    let options = EncodeOptions::default().clip_skip(None).min_chunks(windows);
    encoder.encode_with(text, &options).unwrap()
}

/// Encodes a text for each of the two towers, and joins the results.
fn both(texts: [&str; 2], windows: usize) -> Array3<f32> {
    let [first, second] = [0, 1].map(|index| alone(index, texts[index], windows).embedding);
    concatenate![Axis(2), first, second]
}

fn pooled(text: &str) -> Array2<f32> {
    alone(1, text, 1).pooled.unwrap().to_owned()
}

/// The inputs of a call.
#[derive(Debug, Clone, PartialEq)]
struct Seen {
    timestep: f32,
    context: Array3<f32>,
    pooled: Option<Array2<f32>>,
    sizes: Option<Array2<f32>>,
    guidance: Option<Array1<f32>>,
    beside: Option<Array4<f32>>,
}

/// A denoiser that records its calls. Its noise depends on the latents, the context and the extra
/// channels.
struct Spy {
    inputs: Inputs,
    seen: Mutex<Vec<Seen>>,
}

impl Spy {
    fn new(inputs: Inputs) -> Arc<Self> {
        let seen = Mutex::default();
        Arc::new(Self { inputs, seen })
    }

    /// Returns the calls since the last call of this method.
    fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }
}

impl Denoiser for Spy {
    fn inputs(&self) -> &Inputs {
        &self.inputs
    }
    fn predict(&self, call: &Call<'_>, mut output: ArrayViewMut4<'_, f32>) -> Result<(), BoxError> {
        let beside = call.beside.map_or(0.0, |beside| beside.mean().unwrap());
        let push = call.context.mean().unwrap() + beside;
        Zip::from(&mut output)
            .and(call.latents)
            .for_each(|output, x| *output = 0.5 * x.sin() + push);
        self.seen.lock().unwrap().push(Seen {
            timestep: call.timestep,
            context: call.context.to_owned(),
            pooled: call.pooled.map(|it| it.to_owned()),
            sizes: call.sizes.map(|it| it.to_owned()),
            guidance: call.guidance.map(|it| it.to_owned()),
            beside: call.beside.map(|it| it.to_owned()),
        });
        Ok(())
    }
}

fn sdxl() -> Inputs {
    Inputs::new(4, 5).pooled(6).sizes(SizeIds::Target)
}

fn prompts(towers: &[usize]) -> PromptEncoder {
    PromptEncoder::from_towers(towers.iter().map(|&index| tower(index)).collect()).unwrap()
}

fn builder(spy: &Arc<Spy>) -> PipelineBuilder {
    let towers: &[usize] = match spy.inputs.context {
        5 => &[0, 1],
        3 => &[1],
        _ => &[0],
    };
    let codec = Arc::new(Codec::new(4));
    let config = SchedulerConfig::default();
    Pipeline::builder(prompts(towers), spy.clone(), codec, config).size(64, 48)
}

/// Returns the calls for a request on a small SDXL.
fn seen(request: &Request) -> Vec<Seen> {
    let spy = Spy::new(sdxl());
    builder(&spy).build().unwrap().generate(request).unwrap();
    spy.seen()
}

fn base() -> Request {
    Request::new("a fox")
        .negative("blurry")
        .steps(2)
        .seed(7)
        .scheduler(Euler::default())
}

/// Returns the problems of a request.
fn problems(pipeline: &Pipeline, request: &Request) -> String {
    match pipeline.generate(request) {
        Err(GenerateError::Request(problems)) => problems.to_string(),
        Err(error) => panic!("{error}"),
        Ok(_) => String::new(),
    }
}

#[track_caller]
fn refused(pipeline: &Pipeline, request: &Request, part: &str) {
    let found = problems(pipeline, request);
    assert!(found.contains(part), "{found:?} does not contain {part:?}");
}

#[test]
fn towers_stand_side_by_side_with_the_pooled_output_of_the_first_window() {
    let seen_all = seen(&base());
    let [prompt, negative, ..] = &seen_all[..] else {
        panic!("{seen_all:?}")
    };
    assert_eq!(seen_all.len(), 4);
    assert_eq!(prompt.context, both(["a fox"; 2], 1));
    assert_eq!(prompt.pooled, Some(pooled("a fox")));
    assert_eq!(negative.context, both(["blurry"; 2], 1));
    assert_eq!(negative.pooled, Some(pooled("blurry")));

    // Two windows, the first of which holds 75 tokens.
    let long = "fox ".repeat(100);
    let prompt = &seen(&base().prompt(&long))[0];
    assert_eq!(prompt.context, both([&long; 2], 2));
    assert_eq!(prompt.pooled, Some(pooled(&"fox ".repeat(75))));
    assert_ne!(prompt.pooled, Some(pooled(&"fox ".repeat(25))));

    // Weights change the states, but not the pooled output.
    let weighted = &seen(&base().prompt("a (fox:1.5)"))[0];
    assert_eq!(weighted.pooled, Some(pooled("a fox")));
    assert_ne!(weighted.context, both(["a fox"; 2], 1));
}

#[test]
fn the_models_own_layer_is_2_and_a_clip_skip_is_for_all_towers() {
    let own = seen(&base());
    assert_eq!(own, seen(&base().clip_skip(0)));
    assert_eq!(own, seen(&base().clip_skip(2)));
    let other = &seen(&base().clip_skip(3))[0].context;
    let own = &own[0].context;
    for tower in [s![.., .., ..2], s![.., .., 2..]] {
        assert_ne!(own.slice(tower), other.slice(tower));
    }
    // The pooled output is always from the last layer.
    let skipped = &seen(&base().clip_skip(3))[0];
    assert_eq!(skipped.pooled, Some(pooled("a fox")));
}

#[test]
fn a_prompt_for_the_second_tower() {
    let request = base().prompt_2("an owl").negative_2("red");
    let all = seen(&request);
    assert_eq!(all[0].context, both(["a fox", "an owl"], 1));
    assert_eq!(all[0].pooled, Some(pooled("an owl")));
    assert_eq!(all[1].context, both(["blurry", "red"], 1));
    assert_eq!(all[1].pooled, Some(pooled("red")));
    // Both texts are padded to the length of the longer one.
    let long = "owl ".repeat(100);
    let all = seen(&base().prompt_2(&long));
    assert_eq!(all[0].context, both(["a fox", &long], 2));

    let spy = Spy::new(sdxl());
    let pipeline = builder(&spy).build().unwrap();
    let parts = |prompt: &str, second: &str| base().prompt(prompt).prompt_2(second);
    refused(
        &pipeline,
        &parts("a fox", "an owl AND a cat"),
        "prompt_2 is 2, expected as many parts between ANDs as `prompt`, 1",
    );
    assert_eq!(problems(&pipeline, &parts("a AND b", "c AND d")), "");
    let embedding = Array3::<f32>::zeros((1, 3, 5));
    let given = PromptEmbedding::from(embedding).with_pooled(Array2::zeros((1, 6)));
    refused(
        &pipeline,
        &base().prompt(given).prompt_2("an owl"),
        "prompt_2 is given, expected nothing beside an embedding",
    );
    refused(
        &Fakes::new().pipeline(),
        &base().negative_2("red"),
        "negative_2 is given, expected nothing, as this model has one text encoder",
    );
}

#[test]
fn an_embedding_brings_its_pooled_output() {
    let spy = Spy::new(sdxl());
    let pipeline = builder(&spy).build().unwrap();
    let states = Array3::from_elem((1, 3, 5), 0.5_f32);
    let with = |pooled| PromptEmbedding::from(states.clone()).with_pooled(pooled);
    let pooled = Array2::from_elem((1, 6), 0.25_f32);
    pipeline
        .generate(&base().prompt(with(pooled.clone())))
        .unwrap();
    let seen = &spy.seen()[0];
    assert_eq!((&seen.context, &seen.pooled), (&states, &Some(pooled)));
    let expected = "an embedding with a pooled output of shape (1, 6)";
    refused(&pipeline, &base().prompt(states.clone()), expected);
    let narrow = with(Array2::zeros((1, 5)));
    refused(&pipeline, &base().prompt(narrow), expected);
    let nan = with(Array2::from_elem((1, 6), f32::NAN));
    refused(&pipeline, &base().prompt(nan), "finite numbers");
}

#[test]
fn sizes_are_given_in_the_order_of_diffusers() {
    let sizes = |request: &Request| {
        let all = seen(request);
        [0, 1].map(|call| all[call].sizes.clone().unwrap())
    };
    let own = array![[48.0, 64.0, 0.0, 0.0, 48.0, 64.0]];
    assert_eq!(sizes(&base()), [own.clone(), own.clone()]);
    let all = Sizes::default().original(1, 2).crop(3, 4).target(5, 6);
    let given = array![[2.0, 1.0, 4.0, 3.0, 6.0, 5.0]];
    assert_eq!(sizes(&base().sizes(all)), [given.clone(), given.clone()]);

    // The negative prompt uses the sizes of the prompt unless it has both sizes.
    for negative in [
        Sizes::default().crop(8, 9),
        Sizes::default().original(7, 7).crop(8, 9),
        Sizes::default().target(7, 7).crop(8, 9),
    ] {
        let found = sizes(&base().sizes(all).negative_sizes(negative));
        assert_eq!(found, [given.clone(), given.clone()]);
    }
    let negative = Sizes::default().original(10, 11).crop(8, 9).target(12, 13);
    let other = array![[11.0, 10.0, 9.0, 8.0, 13.0, 12.0]];
    let found = sizes(&base().sizes(all).negative_sizes(negative));
    assert_eq!(found, [given, other.clone()]);
    assert_eq!(sizes(&base().negative_sizes(negative)), [own, other]);

    let without = Fakes::new().pipeline();
    let none = "expected nothing, as this model does not take sizes";
    refused(
        &without,
        &base().sizes(all),
        &format!("sizes is given, {none}"),
    );
    let request = base().negative_sizes(negative);
    refused(
        &without,
        &request,
        &format!("negative_sizes is given, {none}"),
    );
}

#[test]
fn the_refiners_sizes_end_in_a_score() {
    let spy = Spy::new(Inputs::new(4, 3).pooled(6).sizes(SizeIds::Score));
    let pipeline = builder(&spy).build().unwrap();
    let sizes = |request: &Request| {
        pipeline.generate(request).unwrap();
        let all = spy.seen();
        [0, 1].map(|call| all[call].sizes.clone().unwrap())
    };
    let row = |score| array![[48.0, 64.0, 0.0, 0.0, score]];
    assert_eq!(sizes(&base()), [row(6.0), row(2.5)]);
    let scored = base().aesthetic_scores(8.0, 1.0);
    assert_eq!(sizes(&scored), [row(8.0), row(1.0)]);
    let wrong = base().aesthetic_scores(f32::NAN, f32::INFINITY);
    refused(
        &pipeline,
        &wrong,
        "aesthetic_score is NaN, expected a finite number",
    );
    refused(&pipeline, &wrong, "negative_aesthetic_score is inf");
}

#[test]
fn an_empty_negative_prompt_is_zeros_where_the_model_wants_them() {
    let spy = Spy::new(sdxl());
    let zeroing = builder(&spy).zero_empty_negative(true).build().unwrap();
    let plain = builder(&spy).build().unwrap();
    let negative = |pipeline: &Pipeline, request: &Request| {
        pipeline.generate(request).unwrap();
        spy.seen().remove(1)
    };
    let zeros = negative(&zeroing, &base().negative(""));
    assert_eq!(zeros.context, Array3::<f32>::zeros((1, 77, 5)));
    assert_eq!(zeros.pooled, Some(Array2::zeros((1, 6))));

    let encoded = negative(&plain, &base().negative(""));
    assert_eq!(encoded.context, both([""; 2], 1));
    assert_eq!(encoded.pooled, Some(pooled("")));
    let encode = PromptOptions::default().encode_empty(true);
    let request = base().negative("").prompt_options(encode);
    assert_eq!(negative(&zeroing, &request), encoded);
    let blurry = negative(&zeroing, &base());
    assert_eq!(blurry.context, both(["blurry"; 2], 1));
    let second = negative(&zeroing, &base().negative("").negative_2("red"));
    assert_eq!(second.context, both(["", "red"], 1));
    // The prompt is never replaced by zeros.
    zeroing.generate(&base().prompt("").negative("")).unwrap();
    assert_eq!(spy.seen()[0].context, both([""; 2], 1));
}

/// A base model and a refiner, which record their calls separately.
struct Refined {
    base: Arc<Spy>,
    refiner: Arc<Spy>,
    pipeline: Pipeline,
}

impl Refined {
    fn new() -> Self {
        let base = Spy::new(sdxl());
        let refiner = Spy::new(Inputs::new(4, 3).pooled(6).sizes(SizeIds::Score));
        let pipeline = builder(&base)
            .refiner("refiner", prompts(&[1]), refiner.clone())
            .zero_empty_negative(true)
            .build()
            .unwrap();
        Self {
            base,
            refiner,
            pipeline,
        }
    }

    /// Returns the calls of the base model and of the refiner.
    fn seen(&self, request: &Request) -> [Vec<Seen>; 2] {
        self.pipeline.generate(request).unwrap();
        [self.base.seen(), self.refiner.seen()]
    }
}

/// Ten steps without a negative prompt, which are ten calls. The steps of a Karras ladder are not
/// evenly spaced in timesteps.
fn ten() -> Request {
    base().steps(10).guidance(1.0).ladder(Ladder::karras())
}

fn timesteps(seen: &[Seen]) -> Vec<f32> {
    seen.iter().map(|seen| seen.timestep).collect()
}

#[test]
fn the_refiner_takes_over_at_its_timestep_or_step() {
    let refined = Refined::new();
    let all = timesteps(&seen(&ten()));
    assert_eq!(all.len(), 10);
    let mut different = 0;
    for at in [0.0, 0.2, 0.5, 0.75, 0.8, 1.0] {
        let by_steps = RefinerSwitch {
            at,
            by: RefinerShare::Steps,
        };
        let below = all.iter().filter(|&&it| it < 1000.0 - 1000.0 * at).count();
        let last = 10 - (10.0 * at).ceil() as usize;
        different += usize::from(below != last);
        for (switch, expected) in [(RefinerSwitch::from(at), below), (by_steps, last)] {
            let [base, refiner] = refined.seen(&ten().refiner(switch));
            assert_eq!(refiner.len(), expected, "{switch:?}");
            let together = [timesteps(&base), timesteps(&refiner)].concat();
            assert_eq!(together, all, "{switch:?}");
        }
    }
    assert!(different > 0, "the two shares must differ");
    assert_eq!(refined.seen(&ten()), refined.seen(&ten().refiner(0.8)));
}

#[test]
fn sides_fit_the_patches_of_base_and_refiner() {
    let base_spy = Spy::new(sdxl().patch(2));
    let refiner = Inputs::new(4, 3).pooled(6).sizes(SizeIds::Score);
    let pipeline = builder(&base_spy)
        .refiner("refiner", prompts(&[1]), Spy::new(refiner.patch(4)))
        .build()
        .unwrap();
    let factor = pipeline.codec().factor() as u32;
    let of = |latents: u32| base().size(latents * factor, 8 * factor);
    pipeline.generate(&of(12)).unwrap();
    for (latents, patch) in [(10, 4), (9, 2)] {
        let expected = format!("latents of sides that are multiples of {patch}");
        refused(
            &pipeline,
            &of(latents),
            &format!("size is {latents}, expected {expected}"),
        );
    }
}

#[test]
fn the_refiner_has_its_own_texts_and_sizes() {
    let refined = Refined::new();
    let request = base().negative("").refiner(0.0).aesthetic_scores(7.0, 3.0);
    let [base, refiner] = refined.seen(&request);
    assert_eq!((base.len(), refiner.len()), (0, 4));
    assert_eq!(
        refiner[0].context,
        alone(1, "a fox", 1).embedding.to_owned()
    );
    assert_eq!(refiner[0].pooled, Some(pooled("a fox")));
    let row = |score| Some(array![[48.0, 64.0, 0.0, 0.0, score]]);
    assert_eq!(refiner[0].sizes, row(7.0));
    assert_eq!(refiner[1].sizes, row(3.0));
    // Only the base model uses zeros: the refiner encodes an empty negative prompt.
    assert_eq!(refiner[1].context, alone(1, "", 1).embedding.to_owned());
}

#[test]
fn schedules_of_prompts_go_on_under_the_refiner() {
    let refined = Refined::new();
    let half = RefinerSwitch {
        at: 0.5,
        by: RefinerShare::Steps,
    };
    let [base, refiner] = refined.seen(&ten().prompt("[fox:owl:7]").refiner(half));
    assert!(base.iter().all(|seen| seen.context == both(["fox"; 2], 1)));
    let [fox, owl] = ["fox", "owl"].map(|text| alone(1, text, 1).embedding.to_owned());
    let shown: Vec<_> = refiner.iter().map(|seen| &seen.context).collect();
    assert_eq!(shown, [&fox, &fox, &fox, &owl, &owl]);
}

#[test]
fn texts_of_other_lengths_under_the_refiner_are_not_in_one_batch() {
    let spy = Spy::new(sdxl());
    let refiner = Spy::new(Inputs::new(4, 3).pooled(6).sizes(SizeIds::Score));
    let long = "fox ".repeat(80);
    // The prompts have the same length for the base model, but not for the refiner, which reads
    // only the first text.
    let requests = [
        base().prompt(long.as_str()).prompt_2("fox"),
        base().prompt("fox").prompt_2(long.as_str()),
    ]
    .map(|request| request.negative("").refiner(0.5));
    let pipeline = |batch| {
        let builder = builder(&spy).refiner("r", prompts(&[1]), refiner.clone());
        builder.max_batch(batch).build().unwrap()
    };
    let of = |batch| {
        let made = pipeline(batch).generate_all(&requests).unwrap();
        let pictures = made.pictures.into_iter();
        pictures.map(|picture| picture.latents).collect::<Vec<_>>()
    };
    assert_eq!(of(2), of(1));
}

#[test]
fn sampler_and_guidance_remember_across_the_switch() {
    // The refiner is the base model itself, so the switch must not change the picture.
    let spy = Spy::new(sdxl());
    let plain = builder(&spy).build().unwrap();
    let refined = builder(&spy).refiner("itself", prompts(&[0, 1]), spy.clone());
    let refined = refined.build().unwrap();
    let apg = ClassifierFree {
        method: Method::Apg(Apg {
            momentum: -0.5,
            ..Apg::default()
        }),
        ..ClassifierFree::from(5.0)
    };
    let request = ten().scheduler(DpmPlusPlus2M).guidance(apg);
    let expected = latents(&plain, &request);
    assert_eq!(latents(&refined, &request.clone().refiner(0.5)), expected);
    let ancestral = request.scheduler(EulerAncestral::default());
    let expected = latents(&plain, &ancestral);
    assert_eq!(latents(&refined, &ancestral.refiner(0.3)), expected);
}

#[test]
fn refiners_that_do_not_fit_are_refused() {
    let spy = Spy::new(sdxl());
    let refused_parts = |towers: &[usize], inputs: Inputs, part: &str| {
        let refined = builder(&spy).refiner("r", prompts(towers), Spy::new(inputs));
        let Err(BuildError::Parts(found)) = refined.build() else {
            panic!("{part}")
        };
        assert!(found.contains(part), "{found}");
    };
    let of = |channels, context| Inputs::new(channels, context);
    refused_parts(&[1], of(4, 5), "the refiner attends to embeddings 5 wide");
    refused_parts(&[1], of(8, 3), "the refiner takes 8 latent channels");
    refused_parts(&[1], of(4, 3).extra_channels(5), "with 5 beside them");
    refused_parts(&[0], of(4, 2).pooled(6), "a pooled text embedding 6 wide");
    let with_scale = of(4, 3).guidance(true);
    refused_parts(&[1], with_scale, "only one of denoiser and refiner");

    let plain = builder(&spy).build().unwrap();
    let none = "refiner is given, expected nothing, as this pipeline has no refiner";
    refused(&plain, &base().refiner(0.5), none);
    let refined = Refined::new().pipeline;
    for at in [-0.1, 1.1, f32::NAN] {
        refused(&refined, &base().refiner(at), "expected a share of 0 to 1");
    }
}

/// A custom guidance, which has no scale.
#[derive(Debug)]
struct Own;

impl Guide for Own {
    fn merge(&self, _: &mut [f32], _: &[f32], _: &GuidanceStep<'_>, _: &mut Memory) {}
}

#[test]
fn guidance_as_an_input_costs_one_call_a_step() {
    let spy = Spy::new(Inputs::new(4, 2).guidance(true));
    let pipeline = builder(&spy).max_batch(2).build().unwrap();
    let made = pipeline.generate(&base().guidance(8.5)).unwrap();
    assert!(made.pictures[0].negative.is_none());
    let seen = spy.seen();
    assert_eq!(seen.len(), 2);
    assert!(seen.iter().all(|it| it.guidance == Some(array![8.5])));
    // Each picture of a batch has its own scale.
    let requests = [base().guidance(3.0), base().guidance(8.0).prompt("an owl")];
    pipeline.generate_all(&requests).unwrap();
    let seen = spy.seen();
    assert_eq!(seen.len(), 2);
    assert!(seen.iter().all(|it| it.guidance == Some(array![3.0, 8.0])));

    let more = "guidance is more than a scale, expected a scale and nothing else";
    refused(&pipeline, &base().guidance(Own), more);
    let rescaled = ClassifierFree {
        rescale: 0.7,
        ..ClassifierFree::from(8.5)
    };
    refused(&pipeline, &base().guidance(rescaled), more);
    // Values that this model does not take are refused.
    for (request, what) in [
        (base().aesthetic_scores(7.0, 2.5), "aesthetic_score is 7"),
        (
            base().aesthetic_scores(6.0, 1.0),
            "negative_aesthetic_score is 1",
        ),
        (base().image_guidance(2.0), "image_guidance is 2"),
    ] {
        refused(&pipeline, &request, what);
    }
    let both = base().scheduler(EulerCfgPp::default());
    refused(&pipeline, &both, "scheduler is one of CFG++");
}

#[test]
fn a_picture_beside_the_latents_is_checked_and_handed_on() {
    let spy = Spy::new(Inputs::new(4, 2).extra_channels(5));
    let pipeline = builder(&spy).build().unwrap();
    let beside = |count, channels, height, width| {
        Array4::from_shape_fn((count, channels, height, width), |(i, c, y, x)| {
            (i * 1000 + c * 100 + y * 10 + x) as f32 / 1000.0
        })
    };
    let request = base().count(2).guidance(1.0).steps(1);
    let handed = |picture: Array4<f32>| {
        let request = request.clone().beside(picture);
        pipeline.generate(&request).unwrap();
        let seen = spy.seen().into_iter();
        seen.map(|seen| seen.beside.unwrap()).collect::<Vec<_>>()
    };
    let one = beside(1, 5, 6, 8);
    assert_eq!(handed(one.clone()), [one.clone(), one.clone()]);
    let two = beside(2, 5, 6, 8);
    let [first, second] = [0, 1].map(|i| two.slice(s![i..i + 1, .., .., ..]).to_owned());
    assert_eq!(handed(two), [first, second]);

    refused(
        &pipeline,
        &request,
        "beside is none, expected 5 channels beside the latents",
    );
    for wrong in [
        beside(3, 5, 6, 8),
        beside(1, 4, 6, 8),
        beside(1, 5, 8, 6),
        beside(0, 5, 6, 8),
    ] {
        let expected = "expected one of shape (2, 5, 6, 8), or 1 as the first dimension";
        refused(&pipeline, &request.clone().beside(wrong), expected);
    }
    let mut nan = one.clone();
    nan[[0, 4, 5, 7]] = f32::NAN;
    let nan = request.clone().beside(nan);
    refused(&pipeline, &nan, "beside is NaN, expected finite numbers");
    refused(
        &Fakes::new().pipeline(),
        &base().beside(one),
        "beside is given, expected nothing, as this model takes no channels beside the latents",
    );
}

#[test]
fn image_guidance_makes_three_calls() {
    let spy = Spy::new(Inputs::new(4, 2).extra_channels(4));
    let pipeline = builder(&spy).build().unwrap();
    let picture = Array4::from_elem((1, 4, 6, 8), 0.3_f32);
    let request = base()
        .steps(1)
        .ladder(Ladder::sigmas([2.0, 0.0]))
        .beside(picture.clone());
    let first = latents(&pipeline, &request);
    let seen = spy.seen();
    let [prompt, negative, blank] = &seen[..] else {
        panic!("{} calls", seen.len())
    };
    let [fox, blurry] = ["a fox", "blurry"].map(|it| alone(0, it, 1).embedding.to_owned());
    assert_eq!(
        (&prompt.context, &prompt.beside),
        (&fox, &Some(picture.clone()))
    );
    assert_eq!(
        (&negative.context, &negative.beside),
        (&blurry, &Some(picture))
    );
    let zeros = Array4::zeros((1, 4, 6, 8));
    assert_eq!((&blank.context, &blank.beside), (&blurry, &Some(zeros)));

    // The one step goes from sigma 2 to 0. Each unit of the scale adds the effect of the picture on
    // the noise, 0.3.
    let scaled = latents(&pipeline, &request.clone().image_guidance(2.5));
    for (first, scaled) in first.iter().zip(&scaled) {
        assert!(
            (first - scaled - 2.0 * 0.3).abs() < 1e-4,
            "{first} {scaled}"
        );
    }
    spy.seen();
    // Without guidance by the prompt there is no guidance by the picture.
    latents(&pipeline, &request.clone().guidance(1.0));
    assert_eq!(spy.seen().len(), 1);
    let wrong = request.image_guidance(f32::NAN);
    refused(
        &pipeline,
        &wrong,
        "image_guidance is NaN, expected a finite number",
    );
}

#[test]
fn what_a_request_leaves_open_is_the_pipelines() {
    let fakes = Fakes::new();
    let defaults = Defaults::default()
        .steps(3)
        .guidance(1.0)
        .scheduler(EulerAncestral::default())
        .ladder(Ladder::trailing());
    let plain = fakes.pipeline();
    let distilled = fakes.build(fakes.builder().defaults(defaults));
    let open = || Request::new("a fox").negative("blurry").seed(7);
    let full = open()
        .steps(3)
        .guidance(1.0)
        .scheduler(EulerAncestral::default())
        .ladder(Ladder::trailing());
    let expected = latents(&plain, &full);
    fakes.calls();
    assert_eq!(latents(&distilled, &open()), expected);
    assert_eq!(fakes.calls(), 3, "no negative prompt at guidance 1");

    // Values of the request override the defaults.
    for (request, same) in [
        (open().steps(4), full.clone().steps(4)),
        (open().guidance(5.0), full.clone().guidance(5.0)),
        (
            open().ladder(Ladder::karras()),
            full.clone().ladder(Ladder::karras()),
        ),
        (
            open().ladder(Ladder::sigmas([9.0, 3.0, 1.0, 0.2, 0.0])),
            full.clone()
                .steps(4)
                .ladder(Ladder::sigmas([9.0, 3.0, 1.0, 0.2, 0.0])),
        ),
    ] {
        let found = latents(&distilled, &request);
        assert_eq!(found, latents(&plain, &same), "{request:?}");
        assert_ne!(found, expected, "{request:?}");
    }
    // Another sampler runs on its usual ladder, not on the default ladder.
    let dpm = full
        .clone()
        .scheduler(DpmPlusPlus2M)
        .ladder(Ladder::karras());
    let found = latents(&distilled, &open().scheduler(DpmPlusPlus2M));
    assert_eq!(found, latents(&plain, &dpm));

    let filled = distilled.with_defaults(open());
    assert_eq!(latents(&distilled, &filled), expected);
    assert_eq!(latents(&plain, &filled), expected);
    assert_eq!(filled.step_count(), 3);
    assert_eq!(filled.guidance.unwrap().scale(), Some(1.0));
    assert_eq!((filled.size, filled.clip_skip), (Some([64, 48]), Some(0)));
    let given = open().size(80, 48).clip_skip(2).seed(9);
    let given = distilled.with_defaults(given);
    assert_eq!((given.size, given.clip_skip), (Some([80, 48]), Some(2)));

    // Observers and infotexts report the values that were used.
    let mut total = 0;
    let run = distilled.run(&[open()], &StopToken::new(), |event| {
        match event {
            Event::Step(progress) => total = progress.step.total,
            Event::Picture(picture) => {
                let infotext = picture.infotext();
                for (key, value) in [
                    ("Steps", "3"),
                    ("Sampler", "Euler a"),
                    ("Schedule type", "trailing"),
                    ("CFG scale", "1"),
                ] {
                    assert_eq!(infotext.get(key), Some(value));
                }
            }
            _ => {}
        }
        Continue(())
    });
    run.unwrap();
    assert_eq!(total, 3);
}

#[test]
fn wrong_defaults_are_problems_of_the_request() {
    let fakes = Fakes::new();
    let defaults = Defaults::default().steps(0).guidance(f32::NAN);
    let pipeline = fakes.build(fakes.builder().defaults(defaults));
    let open = Request::new("a fox").seed(7);
    refused(&pipeline, &open, "steps is 0");
    refused(&pipeline, &open, "guidance");
    let set = open.steps(2).guidance(3.0);
    assert_eq!(problems(&pipeline, &set), "");
}

#[test]
fn a_default_sampler_without_a_name_comes_back() {
    let fakes = Fakes::new();
    let half = EulerAncestral {
        eta: 0.5,
        ..EulerAncestral::default()
    };
    let defaults = Defaults::default().scheduler(half);
    let pipeline = fakes.build(fakes.builder().defaults(defaults));
    let open = Request::new("a fox").steps(3).seed(7);
    for request in [
        open.clone(),
        open.clone().scheduler(half),
        pipeline.with_defaults(open),
    ] {
        let picture = pipeline.generate(&request).unwrap().pictures.remove(0);
        let infotext = picture.infotext();
        assert_eq!(infotext.get("SD sampler"), Some("model"));
        let again = pipeline.reproduction(&infotext);
        assert_eq!(again.differences, [""; 0]);
        assert_eq!(latents(&pipeline, &again.request), picture.latents);
    }
}

#[test]
fn a_plain_clip_skip_is_of_the_towers_layers() {
    let spy = Spy::new(sdxl());
    let pipeline = builder(&spy).build().unwrap();
    assert_eq!(pipeline.prompt_encoder().layers(), 3);
    let wrong = "clip_skip is 4, expected 1 to 3, the model's text layers, or 0";
    refused(&pipeline, &base().clip_skip(4), wrong);
    assert_eq!(ClipSkip::PENULTIMATE.number(), 2);
}
