//! Infotexts: WebUI's rules, and round trips of everything that is written.

// A failed `unwrap` is a failed test.
#![allow(clippy::unwrap_used)]

mod common;

use std::{collections::BTreeMap, num::NonZeroUsize, ops::ControlFlow, sync::Arc};

use common::{Fakes, Model};
use ndarray::{Array2, Array3, Array4, ArrayView2};
use sd_core::{
    BoxError, ClassifierFree, Defaults, GenerateError, Guide, Infotext, InfotextError, Inputs,
    Pipeline, PipelineBuilder, Prompt, PromptOptions, RefinerShare, RefinerSwitch, Request,
    SchedulerConfig, SizeIds, Sizes,
    guidance::{Apg, GuidanceStep, Memory, Method},
    guide,
    schedulers::{
        Ladder, Run, Rungs, Sampler, Scheduler, from_comfyui,
        ladders::{AlignYourSteps, AlignedModel, Conventions, FirstX, Shape, Spacing},
        noise::{NoiseKind, Slerp, Variation},
        samplers::{
            Ddim, DpmPlusPlus2M, DpmPlusPlus2MSde, Euler, EulerAncestral, TABLE, WithConventions,
        },
    },
    text::{
        Chunking, Cleanup, Emphasis, Layer, PromptEncoder, Syntax, TextModel, TextShape,
        TextStates, TextualInversion, Tower,
    },
};

fn builder() -> PipelineBuilder {
    Fakes::new().builder().size(24, 16)
}

fn pipeline() -> Pipeline {
    builder().build().unwrap()
}

fn base() -> Request {
    common::base().steps(2)
}

fn parse(text: &str) -> Infotext {
    Infotext::parse(text).unwrap()
}

fn infotext(pipeline: &Pipeline, request: &Request) -> Infotext {
    pipeline.generate(request).unwrap().pictures[0].infotext()
}

/// Draws the picture, reads its infotext and draws it again. The latents must be identical, without
/// any differences.
fn assert_comes_back(pipeline: &Pipeline, other: &Pipeline, request: &Request) {
    let picture = pipeline.generate(request).unwrap().pictures.remove(0);
    let infotext = picture.infotext();
    let text = infotext.to_string();
    let read = parse(&text);
    assert_eq!(read.entries, infotext.entries, "{text:?}");
    let again = read.request();
    assert_eq!(again.differences, [""; 0], "{text:?}");
    assert_eq!(again.request.prompt, request.prompt, "{text:?}");
    assert_eq!(again.request.negative, request.negative, "{text:?}");
    assert_eq!(again.request.count, 1);
    // The other pipeline has other defaults.
    let remade = other.generate(&again.request).unwrap().pictures.remove(0);
    assert_eq!(remade.latents, picture.latents, "{text:?}");
    assert_eq!(remade.seed, picture.seed, "{text:?}");
}

#[derive(serde::Deserialize)]
struct Golden {
    parsed: Vec<Case>,
    quoted: Vec<(String, String)>,
}

#[derive(serde::Deserialize)]
struct Case {
    text: String,
    parsed: BTreeMap<String, String>,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("golden/infotext.json")).unwrap()
}

/// Returns an infotext as WebUI represents it: a dictionary in which a size is two values.
fn as_in_webui(infotext: &Infotext) -> BTreeMap<String, String> {
    let mut parsed = BTreeMap::new();
    // Python's `$` also matches before a line break at the end.
    let size = regex::Regex::new(r"^(\d+)x(\d+)\n?$").unwrap();
    for (key, value) in &infotext.entries {
        match size.captures(value) {
            Some(sides) => {
                parsed.insert(format!("{key}-1"), sides[1].to_owned());
                parsed.insert(format!("{key}-2"), sides[2].to_owned());
            }
            // WebUI ends a value at its first comma, even within JSON.
            None if key == "Hashes" => {
                let value = value.split(',').next().unwrap();
                parsed.insert(key.clone(), value.to_owned());
            }
            None => {
                parsed.insert(key.clone(), value.clone());
            }
        }
    }
    // The prompts are inserted last, because an entry may have one of these keys.
    parsed.insert("Prompt".to_owned(), infotext.prompt.clone());
    parsed.insert("Negative prompt".to_owned(), infotext.negative.clone());
    parsed
}

#[test]
fn texts_are_read_as_webui_reads_them() {
    let golden = golden();
    assert!(golden.parsed.len() >= 50);
    for Case { text, mut parsed } in golden.parsed {
        // WebUI adds a value for a missing clip skip.
        if !text.contains("Clip skip") {
            parsed.remove("Clip skip");
        }
        // WebUI loses this prompt, because it takes the line for entries.
        if text == "a fox, style: oil, mood: calm, light: soft" {
            assert_eq!(Infotext::parse(&text), Err(InfotextError::PromptNotFound));
            continue;
        }
        assert_eq!(as_in_webui(&parse(&text)), parsed, "{text:?}");
    }
}

#[test]
fn values_are_quoted_as_webui_quotes_them() {
    let golden = golden();
    assert!(golden.quoted.len() >= 15);
    for (value, quoted) in golden.quoted {
        let infotext = Infotext {
            entries: vec![("Model".to_owned(), value.clone())],
            ..Infotext::default()
        };
        let ours = infotext.to_string();
        if value.is_empty() {
            // WebUI writes nothing for an empty value, and drops the key when it reads that.
            assert_eq!(ours, "Model: \"\"");
        } else {
            assert_eq!(ours, format!("Model: {quoted}"));
        }
    }
}

#[test]
fn the_text_of_a_picture() {
    let model = || Ok("0123456789abcdef".repeat(4));
    let pipeline = builder().model("emoji, small", model).build().unwrap();
    assert_eq!(
        infotext(&pipeline, &base().clip_skip(2)).to_string(),
        format!(
            "a fox\nNegative prompt: blurry\nSteps: 2, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 7, \
             Size: 24x16, Model hash: 0123456789, Model: \"emoji, small\", Clip skip: 2, RNG: CPU, \
             SGM noise multiplier: True, Version: sd-onnx {}",
            env!("CARGO_PKG_VERSION")
        )
    );
    let unreadable = || Err(std::io::Error::other("gone"));
    let pipeline = builder().model("emoji", unreadable).build().unwrap();
    let infotext = infotext(&pipeline, &base());
    assert_eq!(infotext.get("Model hash"), None);
    assert_eq!(infotext.get("Model"), Some("emoji"));
}

#[derive(Debug)]
struct Half;

impl Guide for Half {
    fn merge(
        &self,
        conditional: &mut [f32],
        unconditional: &[f32],
        _: &GuidanceStep<'_>,
        _: &mut Memory,
    ) {
        guide(conditional, unconditional, 0.5);
    }
}

/// A sampler that is not this crate's.
#[derive(Debug, PartialEq)]
struct Renoise;

impl Sampler for Renoise {
    fn sample(&self, x: &mut [f32], rungs: &Rungs, run: &mut dyn Run) -> ControlFlow<()> {
        Euler::default().sample(x, rungs, run)
    }
}

fn half_ancestral() -> EulerAncestral {
    EulerAncestral {
        eta: 0.5,
        ..EulerAncestral::default()
    }
}

fn varied() -> Variation {
    Variation {
        seed: 3,
        strength: 0.2,
        slerp: Slerp::Columns,
    }
}

#[test]
fn each_setting_changes_its_key() {
    let pipeline = pipeline();
    let plain = infotext(&pipeline, &base());
    let rho = || Ladder::shaped(Shape::Karras { rho: 5.0 });
    let late = ClassifierFree {
        interval: [0.25, 1.0],
        ..ClassifierFree::from(3.0)
    };
    let ignoring = PromptOptions::default().emphasis(Emphasis::Ignore);
    let whole = Variation {
        slerp: Slerp::Whole,
        ..varied()
    };
    let embedding = || Array3::<f32>::zeros((1, 3, 4));
    let changed: [(Request, &str, Option<&str>); 39] = [
        (base().steps(3), "Steps", Some("3")),
        (base().scheduler(Euler::default()), "Sampler", Some("Euler")),
        (
            base().ladder(Ladder::linspace()),
            "Schedule type",
            Some("linspace"),
        ),
        (
            base().ladder(Ladder::leading()),
            "Schedule type",
            Some("leading"),
        ),
        (
            base().ladder(Ladder::trailing()),
            "Schedule type",
            Some("trailing"),
        ),
        (
            base().ladder(Ladder::normal()),
            "Schedule type",
            Some("Uniform"),
        ),
        (
            base().ladder(Ladder::sgm_uniform()),
            "Schedule type",
            Some("SGM Uniform"),
        ),
        (
            base().ladder(Ladder::kl_optimal()),
            "Schedule type",
            Some("kl-optimal"),
        ),
        (
            base().ladder(kl_optimal_of_webui()),
            "Schedule type",
            Some("KL Optimal"),
        ),
        (base().ladder(rho()), "Schedule type", None),
        (base().guidance(0.1), "CFG scale", Some("0.1")),
        (base().guidance(late), "CFG scale", Some("3")),
        (base().guidance(Half), "CFG scale", None),
        (base().seed(u64::MAX), "Seed", Some("18446744073709551615")),
        (base().size(16, 24), "Size", Some("16x24")),
        (base().variation(varied()), "Variation seed", Some("3")),
        (
            base().variation(varied()),
            "Variation seed strength",
            Some("0.2"),
        ),
        (base().seed_resize(24, 8), "Seed resize from", Some("24x8")),
        (base().clip_skip(3), "Clip skip", Some("3")),
        (base().ensd(31337), "ENSD", Some("31337")),
        (base().noise(NoiseKind::Philox), "RNG", Some("NV")),
        (base().noise(NoiseKind::Numpy), "RNG", None),
        (
            base().noise(NoiseKind::Cuda { threads: 512 }),
            "RNG",
            Some("GPU"),
        ),
        (
            base().scheduler(Euler::default()),
            "SGM noise multiplier",
            None,
        ),
        (
            base().ladder(rho()),
            "SD ladder",
            Some(r#"{"karras":{"rho":5.0}}"#),
        ),
        (
            base().ladder(Ladder::karras_over(Spacing::Leading)),
            "SD ladder",
            Some(r#"{"karras":{"rho":7.0,"over":"leading"}}"#),
        ),
        (
            base().scheduler(half_ancestral()),
            "SD sampler",
            Some(r#"{"euler-a":{"eta":0.5}}"#),
        ),
        (base().scheduler(half_ancestral()), "Sampler", None),
        (base().guidance(Half), "SD guidance", Some("Half")),
        (
            base().guidance(late),
            "SD guidance",
            Some(
                r#"{"scale":3.0,"rescale":0.0,"interval":[0.25,1.0],"method":"plain","threshold":null}"#,
            ),
        ),
        (base().noise(NoiseKind::Rand), "SD noise", Some("rand")),
        (
            base().noise(NoiseKind::Cuda { threads: 512 }),
            "SD noise",
            Some(r#"{"cuda":{"threads":512}}"#),
        ),
        (base().variation(whole), "SD slerp", Some("whole")),
        (
            base().prompt_options(ignoring),
            "SD prompt options",
            Some(
                r#"{"chunking":{"comma_reach":20,"max_chunks":null},"cleanup":"transformers","emphasis":"ignore","encode_empty":false,"same_length":false,"syntax":"webui"}"#,
            ),
        ),
        (
            base().prompt(embedding()),
            "SD prompt embedding",
            Some("1x3x4"),
        ),
        (
            base().negative(embedding()),
            "SD negative prompt embedding",
            Some("1x3x4"),
        ),
        (
            base().initial_noise(Array4::ones((1, 4, 2, 3))),
            "SD initial noise",
            Some("1x4x2x3"),
        ),
        (base().prompt(" a fox"), "SD prompt", Some(" a fox")),
        (
            base().negative("a \n b"),
            "SD negative prompt",
            Some("a \n b"),
        ),
    ];
    for (request, key, value) in changed {
        let infotext = infotext(&pipeline, &request);
        assert_eq!(infotext.get(key), value, "{key}");
        assert_ne!(plain.get(key), value, "{key}");
    }
    for plain in ["", "a\rb\n", "two\nlines", "a: b, c", "\"a\"", "狐"] {
        let infotext = infotext(&pipeline, &base().prompt(plain).negative(plain));
        assert_eq!(infotext.get("SD prompt"), None, "{plain:?}");
        assert_eq!(infotext.get("SD negative prompt"), None, "{plain:?}");
    }
    assert_eq!(infotext(&pipeline, &base().prompt("a cat")).prompt, "a cat");
    assert_eq!(infotext(&pipeline, &base().negative("a")).negative, "a");
    assert_eq!(plain.get("RNG"), Some("CPU"));
    assert_eq!(plain.get("Batch size"), None);
    let none = infotext(&pipeline, &base().variation(Variation::default()));
    assert_eq!(none, plain, "of strength 0");
    let varied = pipeline.generate(&base().variation(varied()).count(2));
    let infotext = varied.unwrap().pictures[1].infotext();
    let seeds = [infotext.get("Seed"), infotext.get("Variation seed")];
    assert_eq!(seeds, [Some("7"), Some("4")]);

    let pictures = builder().max_batch(2).build().unwrap();
    let pictures = pictures.generate(&base().count(3)).unwrap().pictures;
    let batches: Vec<_> = pictures
        .iter()
        .map(|picture| {
            let infotext = picture.infotext();
            let value = |key| infotext.get(key).map(str::to_owned);
            (
                value("Seed").unwrap(),
                value("Batch size"),
                value("Batch pos"),
            )
        })
        .collect();
    let of_two = |seed: &str, position: &str| {
        (
            seed.to_owned(),
            Some("2".to_owned()),
            Some(position.to_owned()),
        )
    };
    assert_eq!(
        batches,
        [of_two("7", "0"), of_two("8", "1"), ("9".into(), None, None)]
    );
    assert_eq!(
        pictures[1].infotext().request().differences,
        ["the picture was one of a batch of 2, and is the same alone except for rounding"]
    );
}

#[test]
fn every_setting_comes_back_to_the_bit() {
    let pipeline = pipeline();
    let defaults = Defaults::default()
        .steps(3)
        .guidance(1.0)
        .scheduler(EulerAncestral::default())
        .ladder(Ladder::trailing());
    let other = builder().size(512, 512).clip_skip(2).defaults(defaults);
    let other = other.build().unwrap();
    let mut ladders: Vec<_> = Ladder::NAMED
        .iter()
        .map(|(_, ladder)| ladder.clone())
        .collect();
    for over in [Spacing::Leading, Spacing::Linspace, Spacing::Trailing] {
        ladders.push(Ladder::karras_over(over));
    }
    for rho in [0.5, 1.0 / 3.0, 5.000_000_5, 16_777_216.0] {
        ladders.push(Ladder::shaped(Shape::Karras { rho }));
    }
    ladders.push(kl_optimal_of_webui());
    ladders.push(Ladder::AlignYourSteps(AlignYourSteps {
        model: AlignedModel::Sd15,
        three_digits: true,
        keep_last: true,
    }));
    ladders.push(Ladder::timesteps([900.0, 500.0, 20.0, 3.0]));
    let mut made = 0;
    for row in TABLE.iter() {
        for ladder in &ladders {
            for steps in [1, 4] {
                let request = base().scheduler(row).ladder(ladder.clone()).steps(steps);
                match pipeline.generate(&request) {
                    Ok(_) => assert_comes_back(&pipeline, &other, &request),
                    // Some samplers refuse some ladders, and some overflow with few steps.
                    Err(GenerateError::Request(_) | GenerateError::NotFinite { .. }) => continue,
                    Err(error) => panic!("{request:?}: {error}"),
                }
                made += 1;
            }
        }
    }
    assert!(made > 15 * TABLE.len(), "{made}");
    let conventions = Conventions {
        first_x: FirstX::VariancePreserving,
        drop_next_to_last: true,
        ..Conventions::default()
    };
    let (ddim, own) = (Ddim::default(), half_ancestral().conventions());
    let samplers: [Arc<dyn Sampler>; 5] = [
        Arc::new(half_ancestral()),
        Arc::new(ddim),
        Arc::new(Ddim { eta: 1.0, ..ddim }),
        WithConventions::wrap(
            Arc::new(half_ancestral()),
            Conventions {
                min_steps: 2,
                ..own
            },
        ),
        WithConventions::wrap(Arc::new(DpmPlusPlus2MSde::default()), conventions),
    ];
    for sampler in samplers {
        assert_comes_back(&pipeline, &other, &base().scheduler(sampler));
    }
    for guidance in [
        0.1,
        -3.0,
        0.0,
        1.0,
        f32::MIN_POSITIVE,
        16_777_217.0,
        7.000_000_5,
    ] {
        assert_comes_back(&pipeline, &other, &base().guidance(guidance));
    }
    let apg = Apg {
        eta: 0.1,
        norm_threshold: 0.3,
        ..Apg::default()
    };
    for interval in [[1.0 / 3.0, 0.9], [2.0 / 13.0, 14.0 / 15.0]] {
        let guidance = ClassifierFree {
            rescale: 0.7,
            interval,
            method: Method::Apg(apg),
            ..ClassifierFree::from(5.1)
        };
        assert_comes_back(&pipeline, &other, &base().guidance(guidance));
    }
    for options in [
        PromptOptions::default()
            .syntax(Syntax::Compel)
            .same_length(true),
        PromptOptions::default()
            .emphasis(Emphasis::KeepMean)
            .chunking(
                Chunking::default()
                    .comma_reach(3)
                    .max_chunks(NonZeroUsize::MIN),
            )
            .cleanup(Cleanup::Ftfy),
    ] {
        let request = base().prompt("(it’s:1.5) a++ fox, ".repeat(30));
        assert_comes_back(&pipeline, &other, &request.prompt_options(options));
    }
    let ancestral = || base().scheduler(EulerAncestral::default());
    for noise in [
        NoiseKind::Philox,
        NoiseKind::Cuda { threads: 512 },
        NoiseKind::Numpy,
        NoiseKind::Rand,
    ] {
        assert_comes_back(&pipeline, &other, &ancestral().noise(noise));
    }
    for slerp in [Slerp::Columns, Slerp::Whole] {
        for strength in [0.1, 1.0 / 3.0, 1.0] {
            let variation = Variation {
                seed: u64::MAX,
                strength,
                slerp,
            };
            let request = ancestral().variation(variation).seed_resize(8, 40);
            assert_comes_back(&pipeline, &other, &request.ensd(u64::MAX));
        }
    }
    assert_comes_back(&pipeline, &other, &ancestral().ensd(31337));
    for seed in [0, u64::from(u32::MAX) + 8, u64::MAX] {
        let request = base().seed(seed).scheduler(EulerAncestral::default());
        assert_comes_back(&pipeline, &other, &request);
    }
    for layer in 1..=3 {
        assert_comes_back(&pipeline, &other, &base().clip_skip(layer).size(8, 40));
    }
    // A custom sampler that equals the sampler of a row.
    assert_comes_back(&pipeline, &other, &base().scheduler(DpmPlusPlus2M));
    // A request that leaves most values open.
    let request = Request::new("a fox").steps(2);
    assert_comes_back(&pipeline, &other, &request.seed(3));
}

/// A text model of width 2, so that two of them are as wide as the fake denoiser, with or without a
/// pooled output.
struct Narrow {
    pooled: bool,
}

impl TextModel for Narrow {
    fn shape(&self) -> TextShape {
        let shape = TextShape::new(3, 2).vocab_size(49500);
        if self.pooled { shape.pooled(3) } else { shape }
    }
    fn run(&self, ids: ArrayView2<'_, i64>, layer: Layer) -> Result<TextStates, BoxError> {
        let skip = layer.skip.number() as f32;
        let states = Array3::from_shape_fn((1, 77, 2), |(_, token, i)| {
            (ids[[0, token]] as f32 * skip + i as f32).sin()
        });
        let mut states = TextStates::from(states);
        states.pooled = self.pooled.then(|| Array2::zeros((1, 3)));
        Ok(states)
    }
}

/// Returns the builder of a small SDXL: the fake denoiser with other inputs.
fn sdxl() -> PipelineBuilder {
    let tower = |pooled| {
        let tokenizer = Arc::new(common::tokenizer());
        let tower = Tower::new(tokenizer, Arc::new(Narrow { pooled })).unwrap();
        tower.layer(Layer::SDXL)
    };
    let prompts = PromptEncoder::from_towers(vec![tower(false), tower(true)]).unwrap();
    let fakes = Fakes::with(Model {
        inputs: Inputs::new(4, 4).pooled(3).sizes(SizeIds::Target),
        ..Model::default()
    });
    let config = SchedulerConfig::default();
    Pipeline::builder(prompts, fakes.model, fakes.codec, config).size(24, 16)
}

/// Returns a pipeline whose refiner is the fake denoiser.
fn refined(builder: PipelineBuilder) -> Pipeline {
    let fakes = Fakes::with(Model {
        inputs: Inputs::new(4, 4).sizes(SizeIds::Score),
        ..Model::default()
    });
    let prompts = common::prompts(&fakes.text);
    let refined = builder.refiner("xl, refiner", prompts, fakes.model);
    refined.build().unwrap()
}

#[test]
fn settings_of_sdxl_change_their_keys_and_come_back() {
    // The pipeline has a refiner, which takes the aesthetic scores.
    let pipeline = refined(sdxl());
    let other = refined(sdxl().size(512, 512).clip_skip(1));
    let plain = infotext(&pipeline, &base());
    let sizes = Sizes::default().original(1, 2).crop(3, 4);
    let negative = Sizes::default().original(5, 6).target(7, 8);
    for (request, key, value) in [
        (
            base().sizes(sizes),
            "SD sizes",
            r#"{"crop":[3,4],"original":[1,2],"target":null}"#,
        ),
        (
            base().negative_sizes(negative),
            "SD negative sizes",
            r#"{"crop":[0,0],"original":[5,6],"target":[7,8]}"#,
        ),
        (
            base().aesthetic_scores(7.5, 2.5),
            "SD aesthetic scores",
            "[7.5,2.5]",
        ),
        (
            base().aesthetic_scores(6.0, 0.1),
            "SD aesthetic scores",
            "[6.0,0.1]",
        ),
        (base().prompt_2("an owl, red"), "SD prompt 2", "an owl, red"),
        (base().prompt_2(""), "SD prompt 2", ""),
        (base().negative_2("\n"), "SD negative prompt 2", "\n"),
        (base().clip_skip(1), "Clip skip", "1"),
        (base().clip_skip(3), "Clip skip", "3"),
    ] {
        let found = infotext(&pipeline, &request);
        assert_eq!(found.get(key), Some(value), "{request:?}");
        assert_eq!(plain.get(key), None, "{key}");
        assert_comes_back(&pipeline, &other, &request);
        let again = parse(&found.to_string()).request().request;
        assert_eq!(
            (again.sizes, again.negative_sizes),
            (request.sizes, request.negative_sizes)
        );
        let scores = |it: &Request| [it.aesthetic_score, it.negative_aesthetic_score];
        assert_eq!(scores(&again), scores(&request));
        assert_eq!(
            (again.prompt_2, again.negative_2),
            (request.prompt_2, request.negative_2)
        );
    }
    // 2 is the model's own clip skip.
    assert_eq!(infotext(&pipeline, &base().clip_skip(2)), plain);
    assert_comes_back(&pipeline, &other, &base());
    for wrong in [
        "SD sizes: x",
        "SD negative sizes: 3",
        "SD aesthetic scores: [1]",
    ] {
        let text = format!("{plain}, {wrong}");
        let found = parse(&text).request().differences;
        let expected = format!("`{wrong}` cannot be used, so the default is used");
        assert_eq!(found, [expected]);
    }
}

#[test]
fn a_refiner_is_named_with_its_switch_and_comes_back() {
    let pipeline = refined(builder());
    let other = refined(builder().size(512, 512));
    let keys = [
        "Refiner",
        "Refiner switch at",
        "Refiner switch by sampling steps",
    ];
    let by_steps = RefinerSwitch {
        at: 0.5,
        by: RefinerShare::Steps,
    };
    for (request, values) in [
        (base(), [Some("xl, refiner"), Some("0.8"), None]),
        (
            base().refiner(0.3),
            [Some("xl, refiner"), Some("0.3"), None],
        ),
        (base().refiner(1.0), [Some("xl, refiner"), Some("1"), None]),
        (
            base().refiner(by_steps),
            [Some("xl, refiner"), Some("0.5"), Some("True")],
        ),
    ] {
        let found = infotext(&pipeline, &request);
        assert_eq!(keys.map(|key| found.get(key)), values);
        assert_comes_back(&pipeline, &other, &request);
        let again = parse(&found.to_string()).request().request;
        assert_eq!(again.refiner, Some(request.refiner.unwrap_or_default()));
    }
    let none = infotext(&self::pipeline(), &base());
    assert_eq!(keys.map(|key| none.get(key)), [None; 3]);
    assert_eq!(none.request().request.refiner, None);

    for (entries, at, difference) in [
        (
            "Refiner: a",
            0.8,
            "`Refiner switch at` is missing, so the default is used",
        ),
        (
            "Refiner: a, Refiner switch at: 1.5",
            0.8,
            "`Refiner switch at: 1.5` cannot be used, so the default is used",
        ),
        ("Refiner: a, Refiner switch at: 0.7", 0.7, ""),
    ] {
        let again = parse(&format!("{none}, {entries}")).request();
        assert_eq!(again.request.refiner, Some(at.into()), "{entries}");
        assert_eq!(again.differences.join(""), difference);
    }
}

#[test]
fn what_a_model_cannot_do_again_is_a_difference() {
    let text = |version: &str| {
        let entries =
            "Steps: 2, Sampler: Euler, Schedule type: Uniform, CFG scale: 7, Seed: 1, Size: 24x16";
        parse(&format!(
            "a fox\n{entries}, Clip skip: 2, RNG: CPU, Version: {version}"
        ))
    };
    let of_webui = text("v1.10.1");
    // WebUI applies clip skip to Stable Diffusion 1.x, whose text model is narrow.
    let narrow = pipeline().reproduction(&of_webui);
    assert_eq!(narrow.request.clip_skip, Some(2));
    assert_eq!(narrow.differences, [""; 0]);

    let wide = wide();
    let again = wide.reproduction(&of_webui);
    assert_eq!(again.request.clip_skip, Some(0));
    assert_eq!(
        again.differences,
        ["`Clip skip: 2` is not applied: WebUI ignores it for such models"]
    );
    // A clip skip that this crate or ComfyUI wrote was applied.
    for (version, differences) in [
        ("sd-onnx 0.1.0", &[][..]),
        (
            "ComfyUI",
            &["scheduler `Uniform` is unknown, so `normal` is used"],
        ),
    ] {
        let again = wide.reproduction(&text(version));
        assert_eq!(again.request.clip_skip, Some(2), "{version}");
        assert_eq!(again.differences, differences, "{version}");
    }

    let of_refined = infotext(&refined(builder()), &base().refiner(0.3));
    let again = pipeline().reproduction(&of_refined);
    assert_eq!(again.request.refiner, None);
    assert_eq!(
        again.differences,
        ["the refiner xl, refiner made the last steps, and this pipeline has none"]
    );
    pipeline().generate(&again.request).unwrap();
    let again = refined(builder()).reproduction(&of_refined);
    assert_eq!(again.request.refiner, Some(0.3.into()));
    assert_eq!(again.differences, [""; 0]);
}

/// A text model as wide as Stable Diffusion 2's.
struct Wide;

impl TextModel for Wide {
    fn shape(&self) -> TextShape {
        TextShape::new(3, 1024).vocab_size(49500)
    }
    fn run(&self, _: ArrayView2<'_, i64>, _: Layer) -> Result<TextStates, BoxError> {
        Ok(Array3::zeros((1, 77, 1024)).into())
    }
}

fn wide() -> Pipeline {
    let tokenizer = Arc::new(common::tokenizer());
    let prompts = PromptEncoder::new(tokenizer, Arc::new(Wide)).unwrap();
    let fakes = Fakes::with(Model {
        inputs: Inputs::new(4, 1024),
        ..Model::default()
    });
    let config = SchedulerConfig::default();
    let wide = Pipeline::builder(prompts, fakes.model, fakes.codec, config);
    wide.build().unwrap()
}

#[test]
fn pictures_of_webuis_samplers_come_back() {
    let pipeline = pipeline();
    let other = builder().clip_skip(2).build().unwrap();
    let names: Vec<_> = TABLE.iter().filter_map(|row| row.webui).collect();
    assert!(names.len() >= 20);
    let (mut made, mut refused) = (0, Vec::new());
    for name in names {
        for more in [
            "Schedule type: Automatic, RNG: NV",
            "Schedule type: KL Optimal, RNG: CPU, SGM noise multiplier: True, ENSD: 31337",
            "Variation seed: 3, Variation seed strength: 0.1, Seed resize from: 16x16, RNG: NV",
        ] {
            let text = format!(
                "a fox\nSteps: 5, Sampler: {name}, CFG scale: 7, Seed: 1, Size: 24x16, {more}, Version: v1.10.1"
            );
            let request = parse(&text).request().request;
            match pipeline.generate(&request) {
                Ok(_) => {
                    assert_comes_back(&pipeline, &other, &request);
                    made += 1;
                }
                Err(GenerateError::Request(_) | GenerateError::NotFinite { .. }) => {
                    refused.push(text)
                }
                Err(error) => panic!("{text}: {error}"),
            }
        }
    }
    assert!(made >= 57, "{made}, not {refused:#?}");
    let nonsense = "a\nSteps: 5, Sampler: Snake, SD ladder: nonsense, CFG scale: 7, Seed: 1, Size: 24x16, RNG: CPU, \
                    Version: sd-onnx 0.1.0";
    assert_eq!(
        parse(nonsense).request().differences,
        [
            "sampler `Snake` is unknown, so DPM++ 2M is used",
            "`SD ladder: nonsense` cannot be used, so the default is used"
        ]
    );
}

#[test]
fn samplers_of_comfyui_come_back_to_the_bit() {
    let pipeline = pipeline();
    let other = builder().defaults(Defaults::default().steps(3));
    let other = other.build().unwrap();
    let mut made = 0;
    for name in TABLE.iter().filter_map(|row| row.comfyui) {
        let preset = from_comfyui(name, "karras").unwrap();
        let request = base().scheduler(preset.sampler).ladder(preset.ladder);
        if pipeline.generate(&request.clone().steps(5)).is_ok() {
            assert_comes_back(&pipeline, &other, &request.steps(5));
            made += 1;
        }
    }
    assert!(made > 20, "{made}");
}

/// WebUI's variant of the ladder, which ends at the smallest sigma.
fn kl_optimal_of_webui() -> Ladder {
    Ladder::shaped(Shape::KlOptimal {
        ends_at_lowest: true,
    })
}

/// The prompts are made of everything that is difficult for the format.
#[test]
fn every_prompt_comes_back_to_the_byte() {
    let pipeline = pipeline();
    let pieces = [
        "Negative prompt:",
        "Negative prompt: bad",
        "negative prompt:",
        "Steps: 20, Sampler: Euler, CFG scale: 7",
        "Steps: 1",
        "\n",
        "\n\n",
        "\r",
        "\r\n",
        " ",
        "\t",
        "\0",
        "\u{1c}",
        "\u{1f}",
        "\u{85}",
        "\u{a0}",
        "\u{200b}",
        "\u{2028}",
        "\u{3000}",
        "\u{feff}",
        "\u{7f}",
        "a fox",
        "a",
        ",",
        ":",
        "\"",
        "\\",
        "\\n",
        "\\u0041",
        "é",
        "狐",
        "🦊",
        "(a:1.2)",
        "SD prompt: ",
        "512x512",
    ];
    let mut state = 1_u64;
    let mut random = |below: usize| {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 33) as usize % below
    };
    let mut text = |most: usize| -> String {
        let count = random(most + 1);
        (0..count).map(|_| pieces[random(pieces.len())]).collect()
    };
    let mut prompts: Vec<(String, String)> = (0..1500).map(|_| (text(6), text(4))).collect();
    for piece in pieces {
        prompts.push((piece.into(), String::new()));
        prompts.push((String::new(), piece.into()));
    }
    let request = base().steps(1).size(8, 8);
    let mut as_they_are = 0;
    for (prompt, negative) in &prompts {
        let request = request.clone().prompt(prompt).negative(negative);
        assert_comes_back(&pipeline, &pipeline, &request);
        let infotext = infotext(&pipeline, &request);
        assert!(!infotext.to_string().contains('\0'));
        let quoted = |key| infotext.get(key).is_some();
        as_they_are += usize::from(!quoted("SD prompt") && !quoted("SD negative prompt"));
    }
    assert!(as_they_are > 100, "{as_they_are}");
}

#[test]
fn values_of_ones_own_are_differences() {
    let pipeline = pipeline();
    let differences = |request: Request| {
        let again = parse(&infotext(&pipeline, &request).to_string()).request();
        (again.request, again.differences)
    };
    let (request, found) = differences(base().scheduler(Renoise));
    assert!(matches!(&request.scheduler, Some(Scheduler::Named(row)) if row.name == "dpmpp-2m"));
    assert_eq!(
        found,
        ["the sampler was `Renoise`, which is unknown, so DPM++ 2M is used"]
    );
    let (_, found) = differences(base().guidance(Half));
    assert_eq!(
        found,
        ["the guidance was `Half`, a custom one, so the default scale is used"]
    );
    let (_, found) = differences(base().prompt(Array3::<f32>::zeros((1, 3, 4))));
    assert_eq!(
        found,
        ["the prompt was an embedding of shape 1x3x4, which has to be supplied again"]
    );
    let (_, found) = differences(base().initial_noise(Array4::ones((1, 4, 2, 3))));
    assert_eq!(
        found,
        ["the initial noise, of shape 1x4x2x3, was supplied, and has to be supplied again"]
    );
}

#[test]
fn textual_inversions_are_named() {
    let mut tokenizer = common::tokenizer();
    let mut hashes = Vec::new();
    for name in ["by: Wumpus", "zqvx"] {
        let values = Array2::from_elem((1, 4), name.len() as f32);
        let inversion = TextualInversion::new(name, values).unwrap();
        let first = tokenizer.vocab_size() as u32;
        tokenizer.add_inversion(&inversion, first).unwrap();
        hashes.push(inversion.sha256()[..12].to_owned());
    }
    let fakes = Fakes::new();
    let encoder = PromptEncoder::new(Arc::new(tokenizer), fakes.text.clone()).unwrap();
    let (model, codec) = (fakes.model.clone(), fakes.codec.clone());
    let pipeline = Pipeline::builder(encoder, model, codec, SchedulerConfig::default());
    let pipeline = pipeline.size(24, 16).build().unwrap();
    let of = |request: Request| {
        let infotext = infotext(&pipeline, &request);
        infotext.get("TI hashes").map(str::to_owned)
    };
    let (wumpus, zqvx) = (&hashes[0], &hashes[1]);
    let negative = base().prompt("a fox").negative("zqvx");
    assert_eq!(of(negative.clone()), Some(format!("zqvx: {zqvx}")));
    // The negative prompt is not used here.
    assert_eq!(of(negative.guidance(1.0)), None);
    let later = base().prompt("[fox:zqvx:1] AND by: wumpus");
    let both = format!("zqvx: {zqvx}, by Wumpus: {wumpus}");
    assert_eq!(of(later.clone()), Some(both.clone()));
    let again = parse(&infotext(&pipeline, &later).to_string()).request();
    assert_eq!(again.differences.len(), 1);
    assert!(
        again.differences[0].contains(&both),
        "{:?}",
        again.differences
    );
}

#[test]
fn a_png_holds_it_as_latin_1_or_utf_8() {
    let pipeline = pipeline();
    for (prompt, chunk, other) in [
        ("un renard rusé, \"ÿ\"", "tEXt", "iTXt"),
        ("狐 🦊", "iTXt", "tEXt"),
        ("nul \0", "tEXt", "iTXt"),
        // In Latin-1 these would be the bytes of an é in UTF-8.
        ("Ã©", "iTXt", "tEXt"),
    ] {
        let request = base().prompt(prompt);
        let picture = pipeline.generate(&request).unwrap().pictures.remove(0);
        let bytes = picture.png().unwrap();
        let holds = |chunk: &str| {
            let pattern = [chunk.as_bytes(), b"parameters\0"].concat();
            bytes.windows(pattern.len()).any(|found| found == pattern)
        };
        assert!(holds(chunk) && !holds(other), "{prompt:?}");
        let read = Infotext::from_bytes(&bytes).unwrap().unwrap();
        assert_eq!(read, parse(&picture.infotext().to_string()));
        let again = read.request();
        assert_eq!(again.request.prompt, Prompt::from(prompt));
        assert!(again.differences.is_empty());
        assert_eq!(
            image::load_from_memory(&bytes).unwrap().to_rgb8(),
            picture.image
        );

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fox.png");
        picture.save_png(&path).unwrap();
        assert_eq!(Infotext::read(&path).unwrap().unwrap(), read);
    }
}

#[test]
fn pngs_of_pillow() {
    for (png, prompt) in [
        (&include_bytes!("golden/itxt.png")[..], "狐 🦊"),
        (include_bytes!("golden/ztxt.png"), "renard rusé"),
    ] {
        let infotext = Infotext::from_bytes(png).unwrap().unwrap();
        assert_eq!(infotext.prompt, prompt);
        assert_eq!(infotext.negative, "blurry");
        assert_eq!(infotext.get("Seed"), Some("42"));
    }
}

const KEYS: &str = "Steps: 5, Sampler: Euler, CFG scale: 7, Seed: 5, Size: 64x64, RNG: CPU";

/// Returns a PNG of one pixel, with these chunks before the pixel.
fn png_with(chunks: &[(&[u8; 4], Vec<u8>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let encoder = png::Encoder::new(&mut bytes, 1, 1);
    let mut writer = encoder.write_header().unwrap();
    for (kind, data) in chunks {
        let kind = png::chunk::ChunkType(**kind);
        writer.write_chunk(kind, data).unwrap();
    }
    writer.write_image_data(&[0]).unwrap();
    drop(writer);
    bytes
}

fn text_chunk(text: &[u8]) -> Vec<u8> {
    [b"parameters\0", text].concat()
}

#[test]
fn utf8_where_latin_1_should_be() {
    let png = include_bytes!("data/infotexts/d12-utf8-in-text.png");
    let infotext = Infotext::from_bytes(png).unwrap().unwrap();
    assert_eq!(infotext.prompt, "a fox テスト");
    assert_eq!(infotext.get("Seed"), Some("5"));
    for (bytes, prompt) in [
        (&b"un renard rus\xe9"[..], "un renard rusé"),
        ("un renard rusé".as_bytes(), "un renard rusé"),
        (b"\x80\xff", "\u{80}ÿ"),
    ] {
        let png = png_with(&[(b"tEXt", text_chunk(bytes))]);
        assert_eq!(Infotext::from_bytes(&png).unwrap().unwrap().prompt, prompt);
    }
}

/// Pillow, too, stores chunks of every kind in one dictionary.
#[test]
fn the_last_of_several_texts_counts() {
    let text = |prompt: &str| text_chunk(prompt.as_bytes());
    let international = |prompt: &str| text_chunk(format!("\0\0\0\0{prompt}").as_bytes());
    let cases = [
        ([(b"tEXt", text("one")), (b"tEXt", text("two"))], "two"),
        (
            [(b"iTXt", international("one")), (b"tEXt", text("two"))],
            "two",
        ),
        (
            [(b"tEXt", text("one")), (b"iTXt", international("two"))],
            "two",
        ),
        (
            [(b"tEXt", text("one")), (b"tEXt", b"other\0two".to_vec())],
            "one",
        ),
    ];
    for (chunks, prompt) in cases {
        let png = png_with(&chunks);
        assert_eq!(Infotext::from_bytes(&png).unwrap().unwrap().prompt, prompt);
    }
}

#[test]
fn what_other_programs_write_is_named() {
    let problem = |chunks: &[(&[u8; 4], Vec<u8>)]| {
        let error = Infotext::from_bytes(&png_with(chunks)).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
        error.to_string()
    };
    let fooocus = br#"{"adm_guidance": "(1.5, 0.8, 0.3)", "prompt": "a fox", "steps": 30, "version": "Fooocus v2.5.5"}"#;
    for (chunk, program) in [
        (text_chunk(fooocus), "Fooocus's JSON"),
        (
            text_chunk(br#"{"sui_image_params": {"prompt": "a fox"}}"#),
            "SwarmUI's JSON",
        ),
        (
            text_chunk(br#"{"3": {"inputs": {"cfg": NaN}, "class_type": "KSampler"}}"#),
            "ComfyUI's workflow",
        ),
        (
            text_chunk(b"{\n \"prompt\": \"a fox\"\n}"),
            "the JSON of another program",
        ),
        (b"workflow\0{\"nodes\": []}".to_vec(), "ComfyUI's workflow"),
        (b"invokeai_metadata\0{}".to_vec(), "InvokeAI's metadata"),
        (b"Software\0NovelAI".to_vec(), "NovelAI's metadata"),
    ] {
        let expected = format!("the text is {program}, which cannot be read");
        let found = problem(&[(b"tEXt", chunk)]);
        assert!(found.starts_with(&expected), "{found}");
    }
    // ComfyUI's nodes that save pictures write both chunks.
    let workflow = b"workflow\0{\"nodes\": []}".to_vec();
    let text = text_chunk(format!("a fox\n{KEYS}").as_bytes());
    let png = png_with(&[(b"tEXt", workflow), (b"tEXt", text)]);
    assert_eq!(Infotext::from_bytes(&png).unwrap().unwrap().prompt, "a fox");
    for prompt in ["{\"a fox\"|\"an owl\"}", "{}", "{a|b}"] {
        let infotext = parse(&format!("{prompt}\n{KEYS}, Hashes: {{\"model\": \"1\"}}"));
        assert_eq!(infotext.prompt, prompt);
        assert_eq!(infotext.get("Hashes"), Some("{\"model\": \"1\"}"));
    }
}

#[test]
fn damaged_chunks_and_long_texts_are_refused() {
    let problem = |png: &[u8]| Infotext::from_bytes(png).unwrap_err().to_string();
    let good = png_with(&[(b"tEXt", text_chunk(b"a fox"))]);
    let mut bad = good.clone();
    let at = bad.windows(5).position(|five| five == b"a fox").unwrap();
    bad[at] = b'A';
    assert!(problem(&bad).contains("checksum"), "{}", problem(&bad));
    for cut in 0..good.len() - 12 {
        assert!(Infotext::from_bytes(&good[..cut]).is_err(), "{cut}");
    }
    let cut_short = problem(&png_with(&[(b"iTXt", text_chunk(b"\0"))]));
    assert_eq!(cut_short, "the chunk of the infotext is cut short");
    let not_utf8 = problem(&png_with(&[(b"iTXt", text_chunk(b"\0\0\0\0\xff"))]));
    assert_eq!(not_utf8, "the infotext is not UTF-8");
    let long = text_chunk(&[b'x'; (2 << 20) + 1]);
    let too_long = InfotextError::TooLong.to_string();
    assert_eq!(problem(&png_with(&[(b"tEXt", long)])), too_long);
    assert_eq!(
        Infotext::parse(&"x".repeat((2 << 20) + 1)),
        Err(InfotextError::TooLong)
    );
    assert!(Infotext::parse(&"x".repeat(2 << 20)).is_ok());
    // The length points beyond the end of the file.
    let mut beyond = good.clone();
    let at = beyond.windows(4).position(|four| four == b"tEXt").unwrap();
    beyond[at - 4..at].copy_from_slice(&[0x7f, 0xff, 0xff, 0xff]);
    assert!(Infotext::from_bytes(&beyond).is_err());
}

#[cfg(target_os = "linux")]
#[test]
fn only_regular_files_are_opened() {
    for path in ["/dev/zero", "/dev/stdin", "/"] {
        assert!(Infotext::read(path).is_err(), "{path}");
    }
}

#[test]
fn files_without_one() {
    let mut png = std::io::Cursor::new(Vec::new());
    image::RgbImage::new(3, 2)
        .write_to(&mut png, image::ImageFormat::Png)
        .unwrap();
    let png = png.into_inner();
    assert_eq!(Infotext::from_bytes(&png).unwrap(), None);
    for cut in 0..png.len() - 12 {
        assert!(Infotext::from_bytes(&png[..cut]).is_err(), "{cut}");
    }
    assert!(Infotext::from_bytes(b"GIF89a").is_err());
    assert!(Infotext::read("no/such/file.png").is_err());
}

/// The picture has one pixel, and its compressed text is far longer when it is decompressed.
#[test]
fn a_text_that_unpacks_to_too_much_is_refused() {
    for utf8 in [false, true] {
        let mut png = Vec::new();
        let mut encoder = png::Encoder::new(&mut png, 1, 1);
        let text = "x".repeat((2 << 20) + 1);
        if utf8 {
            let mut chunk = png::text_metadata::ITXtChunk::new("parameters", text);
            chunk.compressed = true;
            let mut writer = encoder.write_header().unwrap();
            writer.write_text_chunk(&chunk).unwrap();
            writer.write_image_data(&[0]).unwrap();
        } else {
            encoder.add_ztxt_chunk("parameters".into(), text).unwrap();
            let mut writer = encoder.write_header().unwrap();
            writer.write_image_data(&[0]).unwrap();
        }
        assert!(png.len() < 100_000, "{} bytes", png.len());
        assert!(Infotext::from_bytes(&png).is_err());
    }
}
