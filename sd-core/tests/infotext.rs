//! Infotexts: WebUI's rules, and that what is written is read back as what it was written for.

// In a test it is the failure.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, path::Path, sync::Arc};

use ndarray::{Array3, Array4, ArrayView2, ArrayView3, ArrayView4, ArrayViewMut4};
use sd_core::{
    BoxError, Denoiser, Guide, Infotext, LatentCodec, LatentDistribution, Pipeline,
    PipelineBuilder, Prompt, Request, SchedulerConfig, StopToken, guide,
    schedulers::{DpmPlusPlus2M, Euler, EulerAncestral, Ladder, Rung, Scheduler, Spacing, TABLE},
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
        let skip = clip_skip.number() as f32;
        Ok(Array3::from_shape_fn((1, 77, 4), |(_, token, i)| {
            (ids[[0, token]] as f32 * skip + i as f32).sin()
        }))
    }
}

/// A prediction that depends on everything it is given.
struct Model;

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
        _: &StopToken,
    ) -> Result<(), BoxError> {
        for (i, mut picture) in output.outer_iter_mut().enumerate() {
            let context = context.index_axis(ndarray::Axis(0), i);
            let push = timestep / 1000.0
                + context
                    .indexed_iter()
                    .map(|((token, _), value)| value * (token + 1) as f32)
                    .sum::<f32>()
                    / 100.0;
            let latents = latents.index_axis(ndarray::Axis(0), i);
            picture.zip_mut_with(&latents, |o, x| *o = 0.8 * x + 0.3 * (x + push).sin());
        }
        Ok(())
    }
}

/// The first three channels, eight pixels to a latent.
struct Codec;

impl LatentCodec for Codec {
    fn latent_channels(&self) -> usize {
        4
    }
    fn factor(&self) -> usize {
        8
    }
    fn decode(&self, latents: ArrayView4<'_, f32>, _: &StopToken) -> Result<Array4<f32>, BoxError> {
        let (n, _, h, w) = latents.dim();
        let pixel = |(n, c, y, x): (usize, usize, usize, usize)| latents[[n, c, y / 8, x / 8]];
        Ok(Array4::from_shape_fn((n, 3, 8 * h, 8 * w), pixel))
    }
    fn encode(&self, _: ArrayView4<'_, f32>) -> Result<LatentDistribution, BoxError> {
        Err("nothing here encodes".into())
    }
}

fn builder() -> PipelineBuilder {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models/emoji/tokenizer");
    let tokenizer = Arc::new(ClipTokenizer::load(folder).unwrap());
    let prompts = PromptEncoder::new(tokenizer, Arc::new(Text)).unwrap();
    let config = SchedulerConfig::default();
    Pipeline::builder(prompts, Arc::new(Model), Arc::new(Codec), config).size(24, 16)
}

fn pipeline() -> Pipeline {
    builder().build().unwrap()
}

fn base() -> Request {
    Request::new("a fox").negative("blurry").steps(2).seed(7)
}

fn infotext(pipeline: &Pipeline, request: &Request) -> Infotext {
    pipeline.generate(request).unwrap().pictures[0].infotext()
}

/// Makes the picture, reads its text and makes it again: the same bits, and nothing to tell.
fn assert_comes_back(pipeline: &Pipeline, other: &Pipeline, request: &Request) {
    let picture = pipeline.generate(request).unwrap().pictures.remove(0);
    let infotext = picture.infotext();
    let text = infotext.to_string();
    let read = Infotext::parse(&text);
    assert_eq!(read.entries, infotext.entries, "{text:?}");
    let again = read.request();
    assert_eq!(again.differences, [""; 0], "{text:?}");
    assert_eq!(again.request.prompt, request.prompt, "{text:?}");
    assert_eq!(again.request.negative, request.negative, "{text:?}");
    assert_eq!(again.request.count, 1);
    // On a pipeline with other defaults.
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

/// As WebUI holds it: a dictionary, in which a size is two values.
fn as_in_webui(infotext: &Infotext) -> BTreeMap<String, String> {
    let mut parsed = BTreeMap::new();
    // Python's `$` stands before a line break at the end, too.
    let size = regex::Regex::new(r"^(\d+)x(\d+)\n?$").unwrap();
    for (key, value) in &infotext.entries {
        match size.captures(value) {
            Some(sides) => {
                parsed.insert(format!("{key}-1"), sides[1].to_owned());
                parsed.insert(format!("{key}-2"), sides[2].to_owned());
            }
            None => {
                parsed.insert(key.clone(), value.clone());
            }
        }
    }
    // Last: an entry may have one of these keys.
    parsed.insert("Prompt".to_owned(), infotext.prompt.clone());
    parsed.insert("Negative prompt".to_owned(), infotext.negative.clone());
    parsed
}

#[test]
fn texts_are_read_as_webui_reads_them() {
    let golden = golden();
    assert!(golden.parsed.len() >= 50);
    for Case { text, mut parsed } in golden.parsed {
        // What WebUI says of a missing clip skip.
        if !text.contains("Clip skip") {
            parsed.remove("Clip skip");
        }
        assert_eq!(as_in_webui(&Infotext::parse(&text)), parsed, "{text:?}");
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
            // WebUI writes nothing, and drops the key when it reads that.
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
    fn merge(&self, conditional: &mut [f32], unconditional: &[f32], _: Rung) {
        guide(conditional, unconditional, 0.5);
    }
}

#[test]
fn each_setting_changes_its_key() {
    let pipeline = pipeline();
    let plain = infotext(&pipeline, &base());
    let rho = Ladder::Karras {
        rho: 5.0,
        over: None,
    };
    let embedding = || Array3::<f32>::zeros((1, 3, 4));
    let changed: [(Request, &str, Option<&str>); 23] = [
        (base().steps(3), "Steps", Some("3")),
        (base().scheduler(Euler), "Sampler", Some("Euler")),
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
            base().scheduler(Euler).ladder(Ladder::linspace()),
            "Schedule type",
            Some("Uniform"),
        ),
        (base().ladder(rho), "Schedule type", None),
        (base().guidance(0.1), "CFG scale", Some("0.1")),
        (base().guidance(Half), "CFG scale", None),
        (base().seed(u64::MAX), "Seed", Some("18446744073709551615")),
        (base().size(16, 24), "Size", Some("16x24")),
        (base().clip_skip(3), "Clip skip", Some("3")),
        (base().scheduler(Euler), "SGM noise multiplier", None),
        (
            base().ladder(rho),
            "SD ladder",
            Some(r#"{"karras":{"rho":5.0,"over":null}}"#),
        ),
        (
            base().ladder(Ladder::karras_over(Spacing::Leading)),
            "SD ladder",
            Some(r#"{"karras":{"rho":7.0,"over":"leading"}}"#),
        ),
        (
            base().scheduler(EulerAncestral { eta: 0.5 }),
            "SD sampler",
            Some("EulerAncestral { eta: 0.5 }"),
        ),
        (
            base().scheduler(EulerAncestral { eta: 0.5 }),
            "Sampler",
            None,
        ),
        (base().guidance(Half), "SD guidance", Some("Half")),
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

    let pictures = builder().batch(2).build().unwrap();
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
        ["the picture was one of a batch of 2, alone it is the same but for rounding"]
    );
}

#[test]
fn every_setting_comes_back_to_the_bit() {
    let pipeline = pipeline();
    let other = builder().size(512, 512).clip_skip(2).build().unwrap();
    let mut ladders: Vec<_> = Ladder::NAMED.iter().map(|(_, ladder)| *ladder).collect();
    for over in [Spacing::Leading, Spacing::Linspace, Spacing::Trailing] {
        ladders.push(Ladder::karras_over(over));
    }
    for rho in [0.5, 1.0 / 3.0, 5.000_000_5, 16_777_216.0] {
        ladders.push(Ladder::Karras { rho, over: None });
    }
    let mut made = 0;
    for row in &TABLE {
        for ladder in ladders.iter().filter(|ladder| row.fits(ladder)) {
            for steps in [1, 4] {
                let request = base().scheduler(row).ladder(*ladder).steps(steps);
                assert_comes_back(&pipeline, &other, &request);
                made += 1;
            }
        }
    }
    assert_eq!(made, 2 * (4 * 11 + 3));
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
    for seed in [0, u64::from(u32::MAX) + 8, u64::MAX] {
        let request = base().seed(seed).scheduler(EulerAncestral::default());
        assert_comes_back(&pipeline, &other, &request);
    }
    for layer in 1..=3 {
        assert_comes_back(&pipeline, &other, &base().clip_skip(layer).size(8, 40));
    }
    // An own value that is what the row builds.
    assert_comes_back(&pipeline, &other, &base().scheduler(DpmPlusPlus2M));
    // What a request does not say.
    let request = Request::new("a fox").steps(2);
    assert_comes_back(&pipeline, &other, &request.seed(3));
}

/// Prompts of everything that the format has trouble with.
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
        let again = Infotext::parse(&infotext(&pipeline, &request).to_string()).request();
        (again.request, again.differences)
    };
    let (request, found) = differences(base().scheduler(EulerAncestral { eta: 0.5 }));
    assert_eq!(scheduler(&request), "euler-a");
    assert_eq!(
        found,
        [
            "the sampler was `EulerAncestral { eta: 0.5 }`, with options of its own: Euler a with the usual ones stands in"
        ]
    );
    let (_, found) = differences(base().guidance(Half));
    assert_eq!(
        found,
        ["the guidance was `Half`, one's own: the default scale stands in"]
    );
    let (_, found) = differences(base().prompt(Array3::<f32>::zeros((1, 3, 4))));
    assert_eq!(
        found,
        ["the prompt was an embedding of shape 1x3x4, which has to be given again"]
    );
    let (_, found) = differences(base().initial_noise(Array4::ones((1, 4, 2, 3))));
    assert_eq!(
        found,
        ["the initial noise of shape 1x4x2x3 was given, and has to be again"]
    );
}

fn scheduler(request: &Request) -> &'static str {
    match &request.scheduler {
        Scheduler::Named(row) => row.name,
        Scheduler::Own(sampler) => panic!("{sampler:?}"),
    }
}

/// The ladder and the differences that stem from `sampler` (with what follows it) in an otherwise plain file of WebUI.
fn read(sampler: &str) -> (&'static str, Ladder, Vec<String>) {
    let text = format!(
        "a fox\nSteps: 20, Sampler: {sampler}, CFG scale: 7, Seed: 1, Size: 64x64, RNG: CPU"
    );
    let again = Infotext::parse(&text).request();
    let ladder = again.request.ladder.unwrap();
    (scheduler(&again.request), ladder, again.differences)
}

const LOG_SIGMA: &str = "sigmas between training timesteps were interpolated in their logarithm, here they are linearly";
const FIRST_X: &str = "x began as noise times sigma, with DPM++ 2M on this ladder it is noise times sqrt(sigma² + 1) here";
const ROUNDED: &str =
    "the network was told the timesteps as they are, with DPM++ 2M here they are rounded";
const ENDS: &str =
    "the ladder went down to timestep 0, with DPM++ 2M here it ends a step above and is rounded";

#[test]
fn samplers_and_schedule_types_of_webui() {
    let (karras, linspace) = (Ladder::karras(), Ladder::linspace());
    let cases: [(&str, &str, Ladder, &[&str]); 21] = [
        ("Euler a, Schedule type: Karras", "euler-a", karras, &[]),
        ("Euler Karras", "euler", karras, &[]),
        ("Heun, Schedule type: karras", "heun", karras, &[]),
        ("k_euler_ancestral", "euler-a", linspace, &[LOG_SIGMA]),
        ("Euler", "euler", linspace, &[LOG_SIGMA]),
        (
            "Euler, Schedule type: Automatic",
            "euler",
            linspace,
            &[LOG_SIGMA],
        ),
        (
            "Euler, Schedule type: Normal",
            "euler",
            linspace,
            &[LOG_SIGMA],
        ),
        ("DPM++ 2M Karras", "dpmpp-2m", karras, &[FIRST_X, ROUNDED]),
        ("k_dpmpp_2m_ka", "dpmpp-2m", karras, &[FIRST_X, ROUNDED]),
        (
            "DPM++ 2M, Schedule type: Automatic",
            "dpmpp-2m",
            karras,
            &[FIRST_X, ROUNDED],
        ),
        (
            "DPM++ 2M, Schedule type: Karras, SGM noise multiplier: True",
            "dpmpp-2m",
            karras,
            &[ROUNDED],
        ),
        ("DPM++ 2M", "dpmpp-2m", linspace, &[FIRST_X, ENDS]),
        (
            "Euler, Schedule type: Karras, SGM noise multiplier: True",
            "euler",
            karras,
            &[
                "x began as noise times sqrt(sigma² + 1), with Euler on this ladder it is noise times sigma here",
            ],
        ),
        ("DDIM", "ddim", Ladder::leading(), &[]),
        (
            "DDIM, Schedule type: Karras, Version: v1.10.1",
            "ddim",
            Ladder::leading(),
            &["DDIM of WebUI 1.6 and later leaves out its last step, here it is taken"],
        ),
        ("DDIM, Version: v1.5.2", "ddim", Ladder::leading(), &[]),
        (
            "Euler, Schedule type: Align Your Steps",
            "euler",
            karras,
            &["there is no schedule type `Align Your Steps`: karras stands in"],
        ),
        (
            "Euler, Schedule type: SGM Uniform",
            "euler",
            Ladder::trailing(),
            &["there is no schedule type `SGM Uniform`: trailing stands in"],
        ),
        (
            "DPM++ 2M SDE Exponential",
            "euler-a",
            karras,
            &[
                "there is no sampler `DPM++ 2M SDE`: Euler a stands in",
                "there is no schedule type `Exponential`: karras stands in",
            ],
        ),
        (
            "DPM2 Karras",
            "heun",
            karras,
            &["there is no sampler `DPM2`: Heun stands in"],
        ),
        (
            "Euler, Schedule type: Sideways",
            "euler",
            karras,
            &["there is no schedule type `Sideways`: the default stands in"],
        ),
    ];
    for (text, row, ladder, differences) in cases {
        let read = read(text);
        assert_eq!((read.0, read.1), (row, ladder), "{text}");
        assert_eq!(read.2, differences, "{text}");
    }
    for row in &TABLE {
        assert_eq!(read(row.title).0, row.name);
    }
}

#[test]
fn what_webui_does_otherwise_depends_on_the_steps() {
    let differences = |sampler: &str, steps: usize| {
        let text = format!(
            "a\nSteps: {steps}, Sampler: {sampler}, CFG scale: 7, Seed: 1, Size: 64x64, RNG: CPU"
        );
        Infotext::parse(&text).request().differences
    };
    // 999 / 27 is whole: every point is a training timestep.
    assert_eq!(differences("Euler", 28), [""; 0]);
    assert_eq!(differences("Euler", 1), [""; 0]);
    assert_eq!(differences("Euler", 29), [LOG_SIGMA]);
    assert_eq!(differences("DDIM", 50), [""; 0]);
    assert_eq!(
        differences("DDIM", 30),
        ["DDIM visited 31 timesteps for 30 steps in WebUI, here as many as steps"]
    );
    assert_eq!(differences("DDIM", 5000).len(), 1);
}

/// A plain file of WebUI's, with changes to it.
fn differences(prompt: &str, entries: &str) -> Vec<String> {
    let text = format!(
        "{prompt}\nSteps: 20, Sampler: Euler a, Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 64x64, RNG: CPU{entries}"
    );
    Infotext::parse(&text).request().differences
}

#[test]
fn each_key_that_is_not_followed_is_named_once() {
    assert_eq!(differences("a fox", ""), [""; 0]);
    assert_eq!(
        differences(
            "a fox",
            ", Model: a, Model hash: 1, Version: v1.10.1, Batch size: 1"
        ),
        [""; 0]
    );
    for entry in [
        "Denoising strength: 0.7",
        "Hires upscale: 2",
        "Variation seed: 3",
        "Eta: 0.5",
        "Refiner: b",
        "Tiling: True",
        "ControlNet 0: x",
        "VAE: c",
        "Face restoration: GFPGAN",
        "Schedule rho: 5",
        "SD from the future: 1",
    ] {
        assert_eq!(
            differences("a fox", &format!(", {entry}, {entry}")),
            [format!("`{entry}` is not followed")]
        );
    }
    assert_eq!(
        differences("a fox", ", RNG: NV"),
        ["the noise was drawn by `RNG: NV`, here it is that of torch's CPU generator"]
    );
    assert_eq!(
        differences("a fox", ", ENSD: 31337"),
        ["the noise of the steps had a seed of its own (`ENSD: 31337`)"]
    );
    // Where nothing is drawn on the way it is nothing.
    assert_eq!(
        differences("a fox", ", ENSD: 31337, Eta: 0.5, Sampler: Euler"),
        [""; 0]
    );
    assert_eq!(
        differences("a fox", ", CFG scale: 0.5"),
        ["at a CFG scale below 1 the negative prompt was mixed in, here it is not"]
    );
}

#[test]
fn prompt_syntax_is_named_where_webui_reads_it() {
    let syntax = |what: &str, found: &str| {
        vec![format!(
            "the {what} has syntax that is taken for plain text here: {found}"
        )]
    };
    for (prompt, found) in [
        ("a (red:1.2) fox", "attention brackets"),
        ("[a] fox", "attention brackets"),
        (r"fox \(animal\)", r"escaped brackets (`\(`)"),
        ("a AND b", "`AND`"),
        ("a BREAK b", "`BREAK`"),
        ("a <lora:b:1>", "extra networks (`<lora:…>`)"),
        ("[a|b]", "attention brackets, alternation (`[a|b]`)"),
        (
            "[a:b:0.5]",
            "attention brackets, prompt editing (`[a:b:0.5]`)",
        ),
    ] {
        assert_eq!(differences(prompt, ""), syntax("prompt", found), "{prompt}");
        let negative = format!("a\nNegative prompt: {prompt}");
        assert_eq!(
            differences(&negative, ""),
            syntax("negative prompt", found),
            "{prompt}"
        );
        // Neither where the negative prompt is not looked at, nor in a file of ours.
        assert_eq!(differences(&negative, ", CFG scale: 1"), [""; 0]);
        assert_eq!(differences(prompt, ", Version: sd-onnx 0.1.0"), [""; 0]);
    }
    for plain in ["a fox, 2 > 1", "LAND BREAKFAST", "a < b", "C:\\fox"] {
        assert_eq!(differences(plain, ""), [""; 0]);
    }
    assert_eq!(differences(&"fox ".repeat(75), ""), [""; 0]);
    assert_eq!(
        differences(&"fox ".repeat(76), ""),
        ["the prompt is longer than the 75 tokens that are read here"]
    );
}

#[test]
fn values_that_cannot_be_used_and_values_that_are_not_there() {
    let again = Infotext::parse(
        "a\nSteps: x, Sampler: Euler, Schedule type: Karras, CFG scale: inf, Seed: -1, Size: 1, Clip skip: 0, RNG: CPU, \
         SD ladder: nonsense",
    )
    .request();
    let unusable = |entry: &str| format!("`{entry}` cannot be used, the default stands in");
    let expected = [
        "Steps: x",
        "SD ladder: nonsense",
        "CFG scale: inf",
        "Seed: -1",
        "Size: 1",
        "Clip skip: 0",
    ];
    assert_eq!(again.differences, expected.map(unusable));
    let Request {
        steps,
        seed,
        size,
        clip_skip,
        ..
    } = again.request;
    assert_eq!((steps, seed, size, clip_skip), (20, None, None, Some(1)));

    let again = Infotext::parse("").request();
    let missing = |key| format!("`{key}` is missing, the default stands in");
    let mut expected = ["Steps", "Sampler", "CFG scale", "Seed", "Size"]
        .map(missing)
        .to_vec();
    expected.push(
        "the noise was drawn on a GPU (no `RNG: CPU`), here it is that of torch's CPU generator"
            .to_owned(),
    );
    let found: Vec<_> = again
        .differences
        .into_iter()
        // Of the ladder that is taken for want of a sampler.
        .filter(|found| ![FIRST_X, ENDS].contains(&&**found))
        .collect();
    assert_eq!(found, expected);
    for size in ["0x0", "7x8", "8x", "x8", "8x8x8", "4294967296x8", "-8x8"] {
        let entries = format!(", Size: {size}");
        assert_eq!(
            differences("a", &entries),
            [unusable(&format!("Size: {size}"))],
            "{size}"
        );
    }
}

#[test]
fn a_png_holds_it_as_latin_1_or_utf_8() {
    let pipeline = pipeline();
    for (prompt, chunk, other) in [
        ("un renard rusé, \"ÿ\"", "tEXt", "iTXt"),
        ("狐 🦊", "iTXt", "tEXt"),
        ("nul \0", "tEXt", "iTXt"),
    ] {
        let request = base().prompt(prompt);
        let picture = pipeline.generate(&request).unwrap().pictures.remove(0);
        let bytes = picture.png().unwrap();
        let holds = |chunk: &str| {
            let pattern = [chunk.as_bytes(), b"parameters\0"].concat();
            bytes.windows(pattern.len()).any(|found| found == pattern)
        };
        assert!(holds(chunk) && !holds(other), "{prompt:?}");
        let read = Infotext::from_png(&bytes).unwrap().unwrap();
        assert_eq!(read, Infotext::parse(&picture.infotext().to_string()));
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
        assert_eq!(Infotext::read_png(&path).unwrap().unwrap(), read);
    }
}

#[test]
fn pngs_of_pillow() {
    for (png, prompt) in [
        (&include_bytes!("golden/itxt.png")[..], "狐 🦊"),
        (include_bytes!("golden/ztxt.png"), "renard rusé"),
    ] {
        let infotext = Infotext::from_png(png).unwrap().unwrap();
        assert_eq!(infotext.prompt, prompt);
        assert_eq!(infotext.negative, "blurry");
        assert_eq!(infotext.get("Seed"), Some("42"));
    }
}

#[test]
fn files_without_one() {
    let mut png = std::io::Cursor::new(Vec::new());
    image::RgbImage::new(3, 2)
        .write_to(&mut png, image::ImageFormat::Png)
        .unwrap();
    let png = png.into_inner();
    assert_eq!(Infotext::from_png(&png).unwrap(), None);
    for cut in 0..png.len() - 12 {
        assert!(Infotext::from_png(&png[..cut]).is_err(), "{cut}");
    }
    assert!(Infotext::from_png(b"GIF89a").is_err());
    assert!(Infotext::read_png("no/such/file.png").is_err());
}

/// A picture of one pixel, with a chunk that is many times as long when it is unpacked.
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
        assert!(Infotext::from_png(&png).is_err());
    }
}
