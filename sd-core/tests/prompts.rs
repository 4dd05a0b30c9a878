//! The text inputs of the denoiser for a prompt, from call to call.

// A failed `unwrap` is a failed test.
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    num::NonZeroUsize,
    ops::ControlFlow::Continue,
    sync::{Arc, Mutex, atomic::Ordering::Relaxed},
};

use common::{Codec, Fakes, Text, base, latents, prompts, tokenizer};
use ndarray::{Array3, ArrayView2, ArrayView3, ArrayViewMut4};
use sd_core::{
    BoxError, Call, Denoiser, GenerateError, Inputs, MAX_BRANCHES, Pipeline, Prompt, PromptOptions,
    Request, SchedulerConfig, StopToken,
    schedulers::{
        Prediction, Scheduler, by_name, from_webui,
        samplers::{Euler, EulerCfgPp, Heun, Restart, RestartSegment, TABLE},
    },
    text::{
        Chunking, Cleanup, ClipSkip, Emphasis, EncodeOptions, Layer, PromptEncoder, Syntax,
        TextModel, TextShape, TextStates,
    },
};
use sd_text::outside::chain;

/// A denoiser that records its contexts. Its noise is the mean of the context.
struct Spy(Mutex<Vec<Array3<f32>>>, Inputs);

impl Default for Spy {
    fn default() -> Self {
        Self(Mutex::default(), Inputs::new(4, 4))
    }
}

fn predicted(context: ArrayView3<'_, f32>) -> f32 {
    context.sum() / context.len() as f32
}

impl Denoiser for Spy {
    fn inputs(&self) -> &Inputs {
        &self.1
    }
    fn predict(&self, call: &Call<'_>, mut output: ArrayViewMut4<'_, f32>) -> Result<(), BoxError> {
        assert_eq!(call.latents.dim(), output.dim());
        output.fill(predicted(call.context));
        self.0.lock().unwrap().push(call.context.to_owned());
        Ok(())
    }
}

struct Watched {
    text: Arc<Text>,
    spy: Arc<Spy>,
    pipeline: Pipeline,
    encoder: PromptEncoder,
}

impl Watched {
    fn new() -> Self {
        Self::of_model(SchedulerConfig::default())
    }

    fn of_model(config: SchedulerConfig) -> Self {
        let (text, spy) = (Arc::<Text>::default(), Arc::<Spy>::default());
        let codec = Arc::new(Codec::new(4));
        let pipeline = Pipeline::builder(prompts(&text), spy.clone(), codec, config)
            .size(64, 48)
            .build()
            .unwrap();
        Self {
            text,
            spy,
            pipeline,
            encoder: prompts(&Arc::default()),
        }
    }

    /// Returns the contexts of all calls.
    fn contexts(&self, request: &Request) -> Vec<Array3<f32>> {
        self.spy.0.lock().unwrap().clear();
        self.pipeline.generate(request).unwrap();
        std::mem::take(&mut self.spy.0.lock().unwrap())
    }

    fn of(&self, text: &str) -> Array3<f32> {
        let encoded = self.encoder.encode(text, ClipSkip::LAST).unwrap();
        encoded.embedding.to_owned()
    }

    fn of_all(&self, texts: &[(&str, usize)]) -> Vec<Array3<f32>> {
        let many = texts
            .iter()
            .flat_map(|&(text, calls)| std::iter::repeat_n(text, calls));
        many.map(|text| self.of(text)).collect()
    }
}

/// Returns a request that does not use the negative prompt.
fn alone(prompt: &str, steps: usize) -> Request {
    Request::new(prompt)
        .seed(1)
        .steps(steps)
        .guidance(1.0)
        .scheduler(Euler::default())
}

#[test]
fn the_text_changes_at_webuis_call() {
    let watched = Watched::new();
    let turning = alone("a [fox:owl:3]", 8);
    assert_eq!(
        watched.contexts(&turning),
        watched.of_all(&[("a fox", 4), ("a owl", 4)])
    );
    let half = alone("a [fox:owl:0.5]", 8);
    assert_eq!(
        watched.contexts(&half),
        watched.of_all(&[("a fox", 5), ("a owl", 3)])
    );
    // For a sampler with two calls per step, a schedule has twice as many steps: 8 of the 15 calls.
    let heun = half.clone().scheduler(Heun::default());
    assert_eq!(
        watched.contexts(&heun),
        watched.of_all(&[("a fox", 9), ("a owl", 6)])
    );
    let single = alone("[fox:owl:1]", 1).scheduler(Heun::default());
    assert_eq!(watched.contexts(&single), watched.of_all(&[("fox", 1)]));
    let turns = alone("[fox|owl]", 4);
    assert_eq!(
        watched.contexts(&turns),
        watched.of_all(&[("fox", 2), ("owl", 1), ("fox", 1)])
    );
    // Schedules also work in the negative prompt.
    let negative = alone("a fox", 2).guidance(2.0).negative("[red:blue:1.]");
    assert_eq!(
        watched.contexts(&negative),
        watched.of_all(&[("a fox", 1), ("red", 1), ("a fox", 1), ("red", 1)])
    );
    let negative = negative
        .negative("[red:blue:0.5] AND a <lora:b:1>")
        .steps(4);
    let [red, blue] =
        ["red AND a <lora:b:1>", "blue AND a <lora:b:1>"].map(|text| watched.of(text));
    let seen = watched.contexts(&negative);
    assert_eq!(
        [&seen[1], &seen[3], &seen[5], &seen[7]],
        [&red, &red, &red, &blue]
    );
}

/// The samplers that WebUI's `sd_samplers_kdiffusion.py` calls second-order.
const TWICE: [&str; 6] = [
    "Heun",
    "DPM2",
    "DPM2 a",
    "DPM++ SDE",
    "DPM++ 2S a",
    "Restart",
];

#[test]
fn schedules_are_twice_as_long_for_webuis_samplers_of_second_order() {
    let watched = Watched::new();
    let (fox, empty, mut seen) = (watched.of("fox"), watched.of(""), Vec::new());
    for name in TABLE.iter().filter_map(|row| row.webui) {
        let preset = from_webui(name, None).unwrap();
        for scheduler in [Scheduler::from(preset.row), preset.sampler.into()] {
            let request = alone("[fox:owl:0.5]", 10)
                .scheduler(scheduler)
                .ladder(preset.ladder.clone());
            let Ok(_) = watched.pipeline.generate(&request) else {
                continue;
            };
            let mut contexts = std::mem::take(&mut *watched.spy.0.lock().unwrap());
            contexts.retain(|context| *context != empty);
            let calls = contexts
                .iter()
                .take_while(|context| **context == fox)
                .count();
            let expected = if TWICE.contains(&name) { 11 } else { 6 };
            assert_eq!(calls, expected, "{name}");
            seen.push(name);
        }
        watched.spy.0.lock().unwrap().clear();
    }
    assert!(TWICE.iter().all(|name| seen.contains(name)));
    assert!(seen.len() >= 30, "{seen:?}");
}

/// Returns how many calls show the fox of `[fox:owl:0.5]`, and how many calls there are.
fn shown(watched: &Watched, scheduler: impl Into<Scheduler>, steps: usize) -> [usize; 2] {
    let request = alone("[fox:owl:0.5]", steps).scheduler(scheduler);
    let contexts = watched.contexts(&request);
    let [fox, owl] = ["fox", "owl"].map(|text| watched.of(text));
    let first = contexts.iter().take_while(|context| **context == fox);
    let first = first.count();
    let mut rest = contexts[first..].iter();
    assert!(
        rest.all(|context| *context == owl),
        "the first text comes again"
    );
    [first, contexts.len()]
}

#[test]
fn schedules_last_as_long_as_the_calls() {
    let watched = Watched::new();
    // For samplers that WebUI does not have: half of the calls, none of which is past the end.
    let named = |name| by_name(name).unwrap();
    assert_eq!(shown(&watched, named("pndm"), 10), [10, 19]);
    assert_eq!(shown(&watched, named("plms"), 10), [6, 11]);
    let segment = RestartSegment {
        low: 0.1,
        high: 2.0,
        steps: 9,
        times: 2,
    };
    let often = Restart {
        segments: Some(vec![segment]),
        ..Restart::default()
    };
    let [foxes, calls] = shown(&watched, often, 10);
    assert_eq!((foxes, calls > 40), (calls / 2 + 1, true), "{calls}");
    // WebUI's second-order samplers in a run of one step, whichever way they are built: the text
    // changes after step 1 of 2.
    for name in TWICE {
        let preset = from_webui(name, None).unwrap();
        assert_eq!(shown(&watched, preset.row, 1), [1, 1], "{name}");
        assert_eq!(shown(&watched, preset.sampler, 1), [1, 1], "{name}");
    }
    assert_eq!(shown(&watched, Euler::default(), 1), [0, 1]);
    // The same holds for every kind of model.
    let edm = Prediction::Edm {
        sigma_data: 0.5,
        v: false,
    };
    for prediction in [Prediction::V, Prediction::Flow, edm] {
        let config = SchedulerConfig {
            prediction,
            ..SchedulerConfig::default()
        };
        let watched = Watched::of_model(config);
        assert_eq!(
            shown(&watched, Heun::default(), 1),
            [1, 1],
            "{prediction:?}"
        );
        assert_eq!(
            shown(&watched, Heun::default(), 8),
            [9, 15],
            "{prediction:?}"
        );
    }
}

#[test]
fn each_text_is_encoded_once() {
    let watched = Watched::new();
    let encoded = || watched.text.calls.swap(0, Relaxed);
    encoded();
    let turns = alone("[fox|owl|cat]", 12).count(3);
    watched.pipeline.generate(&turns).unwrap();
    assert_eq!(encoded(), 3);
    // A second call encodes the texts again only for another layer.
    watched.pipeline.generate(&turns.clone().steps(5)).unwrap();
    assert_eq!(encoded(), 0);
    watched.pipeline.generate(&turns.clip_skip(2)).unwrap();
    assert_eq!(encoded(), 3);
    let ignoring = PromptOptions::default().emphasis(Emphasis::Ignore);
    let weighted = alone("(fox:1.5)", 1);
    watched.pipeline.generate(&weighted).unwrap();
    watched
        .pipeline
        .generate(&weighted.prompt_options(ignoring))
        .unwrap();
    assert_eq!(encoded(), 2);
}

/// The denoised sample of one step is linear in the noise `predicted`, so that the result can be
/// computed in advance.
#[test]
fn branches_are_weighed_against_the_negative_prompt() {
    let watched = Watched::new();
    let of = |text: &str| predicted(watched.of(text).view());
    let [fox, snow, red, blurry] = ["a fox ", " snow ", " red", "blurry"].map(of);
    let drawn = |prompt: &str, scale: f32| {
        let request = alone(prompt, 1).negative("blurry").guidance(scale);
        watched
            .pipeline
            .generate(&request)
            .unwrap()
            .pictures
            .remove(0)
            .latents
    };
    let plain = drawn("a fox ", 1.0);
    // How much the latents move for noise of 1.
    let other = drawn(" snow ", 1.0);
    let slope = (other[[0, 0, 0, 0]] - plain[[0, 0, 0, 0]]) / (snow - fox);
    assert!(slope.abs() > 1.0);
    let expected = |noise: f32| plain[[0, 0, 0, 0]] + slope * (noise - fox);
    for (prompt, merged) in [
        (
            "a fox AND snow :0.5",
            (fox - blurry) + 0.5 * (snow - blurry),
        ),
        (
            "a fox AND snow AND red:-0.25",
            (fox - blurry) + (snow - blurry) - 0.25 * (red - blurry),
        ),
        ("a fox :0.5", 0.5 * (fox - blurry)),
    ] {
        for scale in [7.5, 1.0] {
            let found = drawn(prompt, scale);
            let expected = expected(blurry + scale * merged);
            let error = (found[[0, 0, 0, 0]] - expected).abs();
            assert!(
                error < 1e-3 * expected.abs().max(1.0),
                "{prompt} {scale}: {error}"
            );
        }
    }
}

#[test]
fn a_branch_costs_a_call() {
    let watched = Watched::new();
    let calls =
        |prompt: &str, guidance| watched.contexts(&alone(prompt, 3).guidance(guidance)).len();
    assert_eq!(calls("a fox", 7.5), 6);
    assert_eq!(calls("a fox AND snow", 7.5), 9);
    assert_eq!(calls("a fox AND snow AND owl", 7.5), 12);
    // Several branches are combined with the negative prompt at every scale.
    assert_eq!(calls("a fox AND snow", 1.0), 9);
    assert_eq!(calls("a fox :0.9", 1.0), 6);
    assert_eq!(calls("a fox :1", 1.0), 3);
    let cfg_pp = alone("a fox AND snow", 3)
        .guidance(0.6)
        .scheduler(EulerCfgPp::default());
    assert_eq!(watched.contexts(&cfg_pp).len(), 9);

    let many = vec!["fox"; MAX_BRANCHES].join(" AND ");
    watched.pipeline.generate(&alone(&many, 1)).unwrap();
    let error = watched
        .pipeline
        .generate(&alone(&format!("{many} AND fox"), 1))
        .unwrap_err();
    assert!(matches!(error, GenerateError::Request(_)));
    assert_eq!(
        error.to_string(),
        "prompt is 65 parts between ANDs, expected at most 64"
    );
}

#[test]
fn what_is_too_much_is_refused() {
    let pipeline = Fakes::new().pipeline();
    let error = |prompt: &str, steps| {
        let request = alone(prompt, steps).negative("a:1");
        let made = pipeline.generate(&request).map(|_| ());
        made.unwrap_err().to_string()
    };
    assert_eq!(
        error(&"BREAK ".repeat(4100), 1),
        "prompt is 4100 or more windows of tokens, expected at most 4096"
    );
    let turns: Vec<_> = (0..20).map(|turn| turn.to_string()).collect();
    let texts = format!("{} [{}]", "BREAK ".repeat(300), turns.join("|"));
    assert_eq!(
        error(&texts, 30),
        "prompt is 301 or more windows of tokens in each of 20 texts, expected at most 4096"
    );
    // Every branch is padded to the longest one, even if branches share a text.
    let parts = format!("{}a{}", "BREAK ".repeat(80), " AND b".repeat(63));
    assert_eq!(
        error(&parts, 1),
        "prompt is 81 or more windows of tokens in each of 64 texts, expected at most 4096"
    );
    for weight in [
        format!("(a:1{})", "0".repeat(40)),
        format!("a AND b :1{}", "0".repeat(40)),
        format!("a :{}", "9".repeat(400)),
    ] {
        assert_eq!(
            error(&weight, 1),
            "prompt is a text with weight inf, expected finite weights"
        );
    }

    // Here one prompt is padded to the length of the other.
    let same = PromptOptions::default().same_length(true);
    let both = alone(&format!("[{}]", turns.join("|")), 30).negative("BREAK ".repeat(301));
    let both = both.guidance(2.0);
    assert!(pipeline.generate(&both).is_ok());
    let error = pipeline.generate(&both.prompt_options(same)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "prompt is 301 or more windows of tokens in each of 20 texts, expected at most 4096"
    );
    let long = alone("a", 1).negative("BREAK ".repeat(4096)).guidance(2.0);
    let drawn = pipeline.generate(&long.prompt_options(same)).unwrap();
    let conditioning = &drawn.pictures[0].prompt;
    assert_eq!(conditioning.embedding.dim().1, 4096 * 77);
    assert_eq!(conditioning.tokens.as_ref().unwrap().ids.len(), 4096 * 77);
    assert_eq!(conditioning.branches[0].at(0).weights.len(), 4096 * 77);
}

#[test]
fn the_prompt_that_could_not_be_encoded_is_named() {
    for (fails_at, named) in [
        (1, "encoding the prompt failed"),
        (2, "encoding the negative prompt failed"),
    ] {
        let text = Arc::new(Text {
            fails_at,
            ..Text::default()
        });
        let (model, codec) = (Arc::<Spy>::default(), Arc::new(Codec::new(4)));
        let pipeline = Pipeline::builder(prompts(&text), model, codec, SchedulerConfig::default());
        let request = alone("a fox", 1).guidance(2.0).size(64, 64);
        let error = pipeline.build().unwrap().generate(&request).unwrap_err();
        assert_eq!(chain(&error), format!("{named}: out of memory"));
    }
}

#[test]
fn each_prompt_keeps_its_length() {
    let watched = Watched::new();
    let long = "fox ".repeat(76);
    let lengths = |request: &Request| -> Vec<usize> {
        let contexts = watched.contexts(request);
        contexts.iter().map(|context| context.dim().1).collect()
    };
    let request = alone(&long, 1).guidance(2.0);
    assert_eq!(lengths(&request), [154, 77]);
    let same = PromptOptions::default().same_length(true);
    assert_eq!(lengths(&request.clone().prompt_options(same)), [154, 154]);
    let other_way = alone("fox", 1).negative(&long).guidance(2.0);
    assert_eq!(lengths(&other_way), [77, 154]);
    let same_again = watched.contexts(&other_way.prompt_options(same));
    let padded = EncodeOptions::default().min_chunks(2);
    let padded = watched.encoder.encode_with("fox", &padded).unwrap();
    assert_eq!(same_again[0], padded.embedding);

    // The branches of an `AND` are always padded, with their last vector.
    let parts = alone(&format!("fox AND {long}"), 1);
    assert_eq!(lengths(&parts), [154, 77, 154]);
    let contexts = watched.contexts(&parts);
    let short = watched.of("fox ");
    assert!((77..154).all(|token| contexts[0][[0, token, 2]] == short[[0, 76, 2]]));
    // Empty windows are appended after that, as in WebUI.
    let longer = "fox ".repeat(151);
    let parts = parts.negative(&longer).prompt_options(same);
    assert_eq!(lengths(&parts), [231, 231, 231]);
    let contexts = watched.contexts(&parts);
    let empty = watched.of("");
    for token in 0..77 {
        assert_eq!(contexts[0][[0, 77 + token, 2]], short[[0, 76, 2]]);
        assert_eq!(contexts[0][[0, 154 + token, 2]], empty[[0, token, 2]]);
    }
    // An embedding keeps its length.
    let given = Array3::from_elem((1, 80, 4), 0.5);
    let given = alone("", 1).prompt(Prompt::from(given)).guidance(2.0);
    assert_eq!(lengths(&given.clone().prompt_options(same)), [80, 154]);
    assert_eq!(lengths(&given), [80, 77]);
}

#[test]
fn options_are_followed() {
    let watched = Watched::new();
    let with = |prompt: &str, options: PromptOptions| {
        watched
            .contexts(&alone(prompt, 1).prompt_options(options))
            .remove(0)
    };
    let default = PromptOptions::default();
    let plain = default.syntax(Syntax::Plain);
    assert_eq!(with("a fox", default), with("a fox", plain));
    assert_ne!(with("a (fox:1.5)", default), with("a (fox:1.5)", plain));
    let comfy = default.syntax(Syntax::ComfyUi);
    let once = with("((fox:1.5):2)", comfy);
    assert_eq!(once, with("(fox:1.5)", default));
    let ftfy = default.cleanup(Cleanup::Ftfy);
    assert_eq!(with("it’s", ftfy), with("it's", default));
    assert_ne!(with("it’s", default), with("it's", default));
    let json = serde_json::to_string(&ftfy).unwrap();
    assert_eq!(serde_json::from_str::<PromptOptions>(&json).unwrap(), ftfy);
    assert_eq!(
        serde_json::from_str::<PromptOptions>("{}").unwrap(),
        default
    );
}

/// Pictures of a batch are the same as alone, even if their texts change at different calls.
#[test]
fn batches_of_prompts() {
    let fakes = Fakes::new();
    let single = fakes.pipeline();
    let batched = fakes.build(fakes.builder().max_batch(8));
    let long = "fox, ".repeat(50);
    let requests = [
        base().prompt("a [fox:owl:2] AND snow"),
        base()
            .prompt("a [cat|dog] AND (rain:1.2) :0.3")
            .negative("[red:blue:1]"),
        base().prompt("a fox"),
        base().prompt("a cat :0.8"),
        base().prompt(&long),
        base().prompt("[a:b:1]"),
    ];
    fakes.model.batch.swap(0, Relaxed);
    let pictures = batched.generate_all(&requests);
    let pictures = pictures.unwrap().pictures;
    // All requests except the ones with several branches and the long one.
    assert_eq!(fakes.model.batch.swap(0, Relaxed), 3);
    for (request, picture) in requests.iter().zip(&pictures) {
        assert_eq!(
            picture.latents,
            latents(&single, request),
            "{:?}",
            request.prompt
        );
    }
}

/// The number of tokens of a prompt is computed before it is encoded, because pictures of a batch
/// must have the same number.
#[test]
fn batches_of_prompts_of_all_lengths() {
    let fakes = Fakes::new();
    let single = fakes.pipeline();
    let batched = fakes.build(fakes.builder().max_batch(8));
    let long = "fox, ".repeat(50);
    let default = PromptOptions::default();
    let all_options = [
        default,
        default.same_length(true),
        default.chunking(Chunking::default().max_chunks(NonZeroUsize::MIN)),
        default
            .syntax(Syntax::Compel)
            .emphasis(Emphasis::Interpolate),
    ];
    let prompts = [
        "",
        "a fox",
        &long,
        "a BREAK fox",
        "[a|b BREAK c]",
        "[fox:owl BREAK:9] AND snow",
        "a AND b BREAK c",
        "(fox, snow)1.2",
    ];
    let mut requests = Vec::new();
    for options in all_options {
        for prompt in prompts {
            for negative in ["", &*long, "[red|blue BREAK green]"] {
                let request = base().prompt(prompt).negative(negative);
                requests.push(request.prompt_options(options));
            }
        }
    }
    for tokens in [77, 80, 154] {
        let given = Array3::from_elem((1, tokens, 4), 0.5);
        requests.push(base().prompt(Prompt::from(given.clone())));
        requests.push(base().negative(Prompt::from(given)));
    }
    fakes.model.batch.swap(0, Relaxed);
    let pictures = batched.generate_all(&requests).unwrap().pictures;
    assert_eq!(fakes.model.batch.swap(0, Relaxed), 8);
    for (request, picture) in requests.iter().zip(&pictures) {
        let (prompt, negative) = (&request.prompt, &request.negative);
        let alone = latents(&single, request);
        assert_eq!(picture.latents, alone, "{prompt:?} {negative:?}");
    }
}

/// A text model that stops the run at its second text.
struct Stopping(Text, StopToken);

impl TextModel for Stopping {
    fn shape(&self) -> TextShape {
        self.0.shape()
    }
    fn run(&self, ids: ArrayView2<'_, i64>, layer: Layer) -> Result<TextStates, BoxError> {
        if self.0.calls.load(Relaxed) == 1 {
            self.1.stop();
        }
        self.0.run(ids, layer)
    }
}

#[test]
fn a_stop_reaches_into_a_long_prompt() {
    let fakes = Fakes::new();
    let stop = StopToken::new();
    let text = Arc::new(Stopping(Text::default(), stop.clone()));
    let encoder = PromptEncoder::new(Arc::new(tokenizer()), text.clone()).unwrap();
    let config = SchedulerConfig::default();
    let pipeline = Pipeline::builder(encoder, fakes.model.clone(), fakes.codec.clone(), config)
        .size(64, 48)
        .build()
        .unwrap();
    let request = base().prompt("a BREAK b BREAK c BREAK d");
    let run = |stop| pipeline.run(std::slice::from_ref(&request), stop, |_| Continue(()));
    assert!(run(&stop).unwrap_err().is_stopped());
    assert_eq!(text.0.calls.load(Relaxed), 2);
    run(&StopToken::new()).unwrap();
}

#[test]
fn a_picture_says_how_its_prompt_was_read() {
    let pipeline = Fakes::new().pipeline();
    let request = base().prompt("(a|b) <hypernet:moss:0.5> AND c");
    let picture = pipeline.generate(&request).unwrap().pictures.remove(0);
    let text = picture.prompt.text.as_ref().unwrap();
    assert_eq!(text.networks()[0].arguments, ["moss", "0.5"]);
    assert_eq!(text.warnings().len(), 1);
    assert_eq!(text.warnings()[0].span, 2..3);
    assert_eq!(picture.prompt.branches.len(), 2);
    assert_eq!(
        picture.prompt.embedding,
        picture.prompt.branches[0].at(0).embedding
    );
}
