//! LoRAs that prompts call.

// A failed `unwrap` is a failed test.
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    error::Error,
    io,
    ops::ControlFlow::Continue,
    sync::{Arc, LazyLock, Mutex, Weak},
};

use common::{Codec, base, latents, tokenizer};
use ndarray::{Array3, ArrayView2, ArrayViewMut4};
use sd_core::{
    BoxError, Call, Denoiser, GenerateError, Infotext, Inputs, LoraBlocks, LoraCall, LoraInfo,
    LoraLibrary, LoraNetworks, Pipeline, PipelineBuilder, PromptOptions, Request, SchedulerConfig,
    Stage, StopToken,
    schedulers::samplers::Heun,
    text::{
        ClipTokenizer, Layer, PromptEncoder, Syntax, TextModel, TextShape, TextStates, Tower,
        outside::chain,
    },
};
use serde_json::Value;

/// A text model whose embeddings grow with the weight of LoRAs.
struct Text(f32);

impl TextModel for Text {
    fn shape(&self) -> TextShape {
        TextShape::new(3, 4).vocab_size(49500)
    }
    fn run(&self, ids: ArrayView2<'_, i64>, _: Layer) -> Result<TextStates, BoxError> {
        let states = Array3::from_shape_fn((1, 77, 4), |(_, token, i)| {
            (ids[[0, token]] as f32 + i as f32).sin() * (1.0 + self.0)
        });
        Ok(states.into())
    }
}

fn encoder(towers: usize, weight: f32) -> PromptEncoder {
    static TOKENIZER: LazyLock<Arc<ClipTokenizer>> = LazyLock::new(|| Arc::new(tokenizer()));
    let tokenizer = &*TOKENIZER;
    let tower = || Tower::new(tokenizer.clone(), Arc::new(Text(weight))).unwrap();
    PromptEncoder::from_towers((0..towers).map(|_| tower()).collect()).unwrap()
}

/// The step and the weight of all LoRAs, for each call of the denoiser.
type Seen = Arc<Mutex<Vec<(usize, f32)>>>;

/// A denoiser whose output depends on the weight of LoRAs.
struct Net {
    inputs: Inputs,
    calls: Vec<LoraCall>,
    seen: Seen,
}

impl Denoiser for Net {
    fn inputs(&self) -> &Inputs {
        &self.inputs
    }
    fn predict(&self, call: &Call<'_>, mut output: ArrayViewMut4<'_, f32>) -> Result<(), BoxError> {
        let weight: f32 = self.calls.iter().map(|it| it.unet_at(call.step)).sum();
        self.seen.lock().unwrap().push((call.step, weight));
        let push = 0.1 * weight + call.context.mean().unwrap();
        output.zip_mut_with(&call.latents, |o, x| *o = 0.5 * x + push);
        Ok(())
    }
}

/// A library of LoRAs that records for which calls it was asked.
#[derive(Default)]
struct Library {
    loras: Vec<LoraInfo>,
    /// The hash of each LoRA. Empty if the file cannot be read.
    hashes: Vec<String>,
    towers: usize,
    asked: Mutex<Vec<Vec<LoraCall>>>,
    seen: Seen,
    /// The denoiser of the last answer.
    last: Mutex<Option<Weak<dyn Denoiser>>>,
    fails: bool,
    /// The width of the denoiser's context, and the number of towers, of a wrong answer.
    wrong: Option<(usize, usize)>,
}

impl LoraLibrary for Library {
    fn loras(&self) -> &[LoraInfo] {
        &self.loras
    }
    fn hash(&self, index: usize) -> io::Result<String> {
        let hash = &self.hashes[index];
        let there = (!hash.is_empty()).then(|| hash.clone());
        there.ok_or_else(|| io::Error::other("the file is gone"))
    }
    fn networks(&self, calls: &[LoraCall]) -> Result<LoraNetworks, BoxError> {
        let last = self.last.lock().unwrap().take();
        let alive = last.is_some_and(|last| last.upgrade().is_some());
        assert!(!alive, "the last networks are still in memory");
        self.asked.lock().unwrap().push(calls.to_vec());
        if self.fails {
            return Err("out of memory".into());
        }
        let (context, towers) = self.wrong.unwrap_or((4 * self.towers, self.towers));
        let denoiser: Arc<dyn Denoiser> = Arc::new(Net {
            inputs: Inputs::new(4, context),
            calls: calls.to_vec(),
            seen: self.seen.clone(),
        });
        *self.last.lock().unwrap() = Some(Arc::downgrade(&denoiser));
        Ok(LoraNetworks {
            prompts: encoder(towers, calls.iter().map(|it| it.text_encoder).sum()),
            denoiser,
        })
    }
}

impl Library {
    /// Creates a library of LoRAs with these names, aliases and hashes.
    fn of<'a>(loras: impl IntoIterator<Item = (&'a str, Option<&'a str>, &'a str)>) -> Self {
        let mut library = Self {
            towers: 1,
            ..Self::default()
        };
        for (name, alias, hash) in loras {
            let mut info = LoraInfo::new(name);
            info.alias = alias.map(str::to_owned);
            library.loras.push(info);
            library.hashes.push(hash.to_owned());
        }
        library
    }

    fn ink_and_sepia() -> Self {
        Self::of([
            ("ink", None, "AAAAAAAAAAAAAAAA"),
            ("sepia-v2", Some("sepia"), "bbbbbbbbbbbbbbbb"),
        ])
    }

    /// Returns the calls for which the library was asked since the last call of this method.
    fn asked(&self) -> Vec<Vec<LoraCall>> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    fn seen(&self) -> Vec<(usize, f32)> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }
}

fn builder(towers: usize) -> PipelineBuilder {
    let denoiser = Net {
        inputs: Inputs::new(4, 4 * towers),
        calls: Vec::new(),
        seen: Seen::default(),
    };
    let (codec, config) = (Arc::new(Codec::new(4)), SchedulerConfig::default());
    Pipeline::builder(encoder(towers, 0.0), Arc::new(denoiser), codec, config).size(64, 48)
}

fn pipeline(library: &Arc<Library>) -> Pipeline {
    let builder = builder(library.towers).lora_library(library.clone());
    builder.build().unwrap()
}

/// Returns the calls of a prompt in a run of `steps` steps, or the message of the error.
fn calls(library: &Arc<Library>, prompt: &str, steps: usize) -> Result<Vec<LoraCall>, String> {
    let request = base().prompt(prompt).steps(steps);
    match pipeline(library).generate(&request) {
        Ok(_) => Ok(library.asked().remove(0)),
        Err(error) => Err(error.to_string()),
    }
}

fn call(index: usize, text_encoder: f32, unet: &[f32]) -> LoraCall {
    LoraCall::new(index, text_encoder, unet.to_vec())
}

fn golden() -> Value {
    serde_json::from_str(include_str!("golden/prompt_loras.json")).unwrap()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap()
}

fn number(value: &Value) -> f32 {
    value.as_f64().unwrap() as f32
}

fn library_of(files: &Value) -> Arc<Library> {
    let text = Value::as_str;
    let files = list(files);
    Arc::new(Library::of(files.iter().map(|file| {
        let hash = text(&file[2]).unwrap();
        (text(&file[0]).unwrap(), text(&file[1]), hash)
    })))
}

#[test]
fn calls_are_webui_s() {
    let golden = golden();
    let (mut loaded, mut refused) = (0, 0);
    for case in list(&golden["calls"]) {
        let library = library_of(&case["files"]);
        let pipeline = pipeline(&library);
        for prompt in list(&case["prompts"]) {
            let (prompt, expected) = (prompt[0].as_str().unwrap(), &prompt[1]);
            let found = pipeline.generate(&base().prompt(prompt));
            let all = expected["loaded"].as_array();
            let twice = all.is_some_and(|all| {
                let mut indices: Vec<_> = all.iter().map(|it| it[0].as_u64()).collect();
                indices.sort_unstable();
                indices.windows(2).any(|pair| pair[0] == pair[1])
            });
            // WebUI draws without the LoRAs if it cannot read one, and without a missing one.
            if expected.is_null() || twice || !list(&expected["missing"]).is_empty() {
                assert!(matches!(found, Err(GenerateError::Request(_))), "{prompt}");
                refused += 1;
                continue;
            }
            let expected_calls: Vec<_> = all
                .unwrap()
                .iter()
                .map(|it| {
                    let index = it[0].as_u64().unwrap() as usize;
                    let mut call = call(index, number(&it[1]), &[number(&it[2])]);
                    call.rank = it[3].as_u64().map(|rank| rank as usize);
                    call
                })
                .collect();
            let infotext = found.expect(prompt).pictures[0].infotext();
            assert_eq!(library.asked(), [expected_calls], "{prompt}");
            assert_eq!(
                infotext.get("Lora hashes"),
                expected["hashes"].as_str(),
                "{prompt}"
            );
            loaded += 1;
        }
    }
    assert_eq!((loaded, refused), (52, 25));
}

#[test]
fn names_are_replaced_as_webui_replaces_them() {
    let golden = golden();
    let library = library_of(&list(&golden["calls"]).last().unwrap()["files"]);
    let pipeline = pipeline(&library);
    for case in list(&golden["pasted"]) {
        let [prompt, hashes, pasted] = [0, 1, 2].map(|i| case[i].as_str().unwrap());
        let infotext = infotext(prompt, &format!(", Lora hashes: \"{hashes}\""));
        let again = pipeline.reproduction(&infotext);
        // WebUI leaves a LoRA that it does not have in the prompt.
        let expected = pasted.replace("<lora:unknown:1>", "");
        assert_eq!(text_of(&again.request), expected, "{prompt}, {hashes}");
        let left_out = usize::from(expected != pasted);
        assert_eq!(again.differences.len(), left_out, "{prompt}, {hashes}");
    }
}

#[test]
fn schedules_are_loractl_s() {
    let golden = golden();
    let library = Arc::new(Library::of([("x", None, "")]));
    let mut refused = 0;
    for case in list(&golden["schedules"]) {
        let (prompt, steps) = prompt_of(case);
        let found = calls(&library, &prompt, steps);
        if case[2].is_null() {
            assert!(found.unwrap_err().contains("in `<lora:x"), "{prompt}");
            refused += 1;
            continue;
        }
        let [found] = &found.unwrap()[..] else {
            panic!("{prompt}: one LoRA")
        };
        let unet: Vec<_> = (0..steps).map(|step| found.unet_at(step)).collect();
        let expected: Vec<_> = list(&case[2][1]).iter().map(number).collect();
        assert_eq!(unet, expected, "{prompt}, {steps} steps");
        assert_eq!(found.text_encoder, number(&case[2][0]), "{prompt}");
        let constant = expected.iter().all(|weight| *weight == expected[0]);
        assert_eq!(found.unet.len(), if constant { 1 } else { steps });
    }
    assert_eq!(refused, 2);
}

#[test]
fn blocks_and_steps_are_the_script_s() {
    let golden = golden();
    let library = Arc::new(Library::of([("x", None, "")]));
    let mut refused = 0;
    for case in list(&golden["blocks"]) {
        let (prompt, steps) = prompt_of(case);
        let found = calls(&library, &prompt, steps);
        if case[2].is_null() {
            found.unwrap_err();
            refused += 1;
            continue;
        }
        let found = found.unwrap().remove(0);
        let unet: Vec<_> = (0..steps).map(|step| found.unet_at(step)).collect();
        let expected: Vec<_> = list(&case[2][1]).iter().map(number).collect();
        assert_eq!(unet, expected, "{prompt}, {steps} steps");
        assert_eq!(found.text_encoder, number(&case[2][0]), "{prompt}");
        let factors: Vec<_> = list(&case[2][2]).iter().map(number).collect();
        let expected = LoraBlocks(factors.try_into().unwrap());
        let found = found.blocks.unwrap_or(LoraBlocks([1.0; 26]));
        assert_eq!(found, expected, "{prompt}");
    }
    assert_eq!(refused, 3);
}

/// Returns the prompt of a case and the number of steps.
fn prompt_of(case: &Value) -> (String, usize) {
    let arguments: Vec<_> = list(&case[0])
        .iter()
        .map(|it| it.as_str().unwrap())
        .collect();
    let prompt = format!("a <lora:{}>", arguments.join(":"));
    (prompt, case[1].as_u64().unwrap() as usize)
}

#[test]
fn schedules_blocks_and_steps_combine() {
    let library = Arc::new(Library::ink_and_sepia());
    let prompt = "<lora:ink:1:0@0,1@1:8:lbw=OUTS:stop=3> <lora:sepia:te=0.5:unet=2>";
    let mut ink = call(0, 1.0, &[0.0, 0.0, 0.5, 0.0]);
    let mut blocks = [0.0; 26];
    blocks[0] = 1.0;
    blocks[21..].fill(1.0);
    (ink.rank, ink.blocks) = (Some(8), Some(LoraBlocks(blocks)));
    let sepia = call(1, 0.5, &[2.0]);
    assert_eq!(calls(&library, prompt, 4), Ok(vec![ink, sepia]));
    // A schedule of so many keys is no list of blocks.
    let keys: Vec<_> = (0..12).map(|i| format!("{i}@{i}")).collect();
    let found = calls(&library, &format!("<lora:ink:1:{}>", keys.join(",")), 4);
    assert_eq!(found, Ok(vec![call(0, 1.0, &[0.0, 0.0, 1.0, 2.0])]));
    // loractl divides by zero.
    let found = calls(&library, "<lora:ink:1:0@0,1@1>", 2);
    assert_eq!(found, Ok(vec![call(0, 1.0, &[0.0, 1.0])]));
    // All blocks at 1 are no change.
    let ones = ["1"; 26].join(",");
    let found = calls(&library, &format!("<lora:ink:lbw={ones}>"), 4);
    assert_eq!(found, Ok(vec![call(0, 1.0, &[1.0])]));
}

#[test]
fn calls_that_cannot_be_used_are_problems() {
    let mut library = Library::ink_and_sepia();
    library.loras[0].live = false;
    library.loras.push(LoraInfo::new("moss"));
    library.loras[2].problem = Some("it is for SDXL".into());
    library.hashes.push(String::new());
    let library = Arc::new(library);
    let number = "a finite number such as 0.8, or numbers at steps such as 0@0,1@0.5";
    let keys = "te, unet, dyn, lbw, start, stop or step before `=`";
    let blocks = "NONE, ALL, INS, IND, INALL, MIDD, OUTD, OUTS, OUTALL, ALL0.5, or 12, 17, 20 or \
                  26 finite numbers";
    let hr = "weights for a single pass, as a high-resolution pass is not supported";
    let merged = "one weight for all steps, because this LoRA is merged into the weights";
    let once = "each argument once";
    let rank = "a whole number of at least 1";
    let near = "the name of a LoRA, such as sepia, sepia-v2, ink";
    let thirteen = ["1"; 13].join(",");
    let (lbw, found_lbw) = (
        format!("sepia:lbw={thirteen}"),
        format!("lbw `{thirteen}` in "),
    );
    let cases = [
        ("sepia:x", "weight `x` in ", number),
        ("sepia:te=", "weight `` in ", number),
        ("sepia:1:unet=inf", "weight `inf` in ", number),
        ("sepia:1e39", "weight `1e39` in ", number),
        // loractl uses the first number and ignores the rest.
        ("sepia:1,0@0.5", "weight `1,0@0.5` in ", number),
        ("sepia:1@2@3", "weight `1@2@3` in ", number),
        // The value without a key is wrong, too.
        ("sepia:x:te=1", "weight `x` in ", number),
        ("sepia:1:1:0", "dyn `0` in ", rank),
        ("sepia:dyn=2.5", "dyn `2.5` in ", rank),
        (
            "sepia:1:1:1:1",
            "`1` in ",
            "a name and at most three values without `=`",
        ),
        ("te=1", "no name in ", "the name of a LoRA"),
        ("sepia:hr=1", "argument `hr` in ", hr),
        ("sepia:hrte=1", "argument `hrte` in ", hr),
        ("sepia:hrunet=1", "argument `hrunet` in ", hr),
        ("sepia:x=0.5", "argument `x` in ", keys),
        ("sepia:lbwe=ATTNDEEPON", "argument `lbwe` in ", keys),
        ("sepia:te=1:te=2", "a second `te` in ", once),
        ("sepia:lbw=OUTS:w=MIDD", "a second `w` in ", once),
        ("sepia:lbw=outs", "lbw `outs` in ", blocks),
        (
            "sepia:lbw=R,1,1,1,1,1,1,1,1,1,1,1",
            "lbw `R,1,1,1,1,1,1,1,1,1,1,1` in ",
            blocks,
        ),
        (&lbw, &found_lbw, blocks),
        (
            "sepia:1:OUTS:lbw=MIDD",
            "`OUTS` in ",
            "weights of blocks once",
        ),
        ("sepia:start=2.5", "start `2.5` in ", "a whole number"),
        ("sepia:stop=", "stop `` in ", "a whole number"),
        (
            "sepia:step=5",
            "step `5` in ",
            "two whole numbers such as 3-10",
        ),
        (
            "sepia:step=2--5",
            "step `2--5` in ",
            "two whole numbers such as 3-10",
        ),
        (
            "sepia:step=1-5:stop=3",
            "step `1-5` in ",
            "either step, or start and stop",
        ),
        ("sepai", "", near),
        ("moss", "", "a LoRA that fits the model, but it is for SDXL"),
        ("ink:0@0,1@1", "weights that change by step in ", merged),
        ("ink:stop=2", "weights that change by step in ", merged),
    ];
    for (arguments, found, expected) in cases {
        let text = format!("<lora:{arguments}>");
        let message = calls(&library, &format!("a fox {text}"), 4).unwrap_err();
        let expected = format!("prompt is a text with {found}`{text}`, expected {expected}");
        assert_eq!(message, expected);
    }
    // A merged LoRA may have weights that are the same in each step.
    let found = calls(&library, "<lora:ink:1@0,1@1:stop=9>", 4);
    assert_eq!(found, Ok(vec![call(0, 1.0, &[1.0])]));
    assert!(library.asked().is_empty(), "no network was asked for");
}

#[test]
fn a_lora_is_called_once() {
    let library = Arc::new(Library::ink_and_sepia());
    let message = calls(&library, "<lora:sepia:1> <lyco:sepia-v2:0.5>", 4).unwrap_err();
    assert_eq!(
        message,
        "prompt is a text with `<lyco:sepia-v2:0.5>`, expected each LoRA once, but \
         `<lora:sepia:1>` is the same LoRA"
    );
    // Both prompts count.
    let library = Arc::new(Library {
        towers: 2,
        ..Library::ink_and_sepia()
    });
    let pipeline = pipeline(&library);
    let request = base().prompt("a <lora:ink:1>");
    let twice = request.clone().prompt_2("b <lora:ink:1>");
    assert_eq!(
        pipeline.generate(&twice).unwrap_err().to_string(),
        "prompt_2 is a text with `<lora:ink:1>`, expected each LoRA once, but `<lora:ink:1>` is \
         the same LoRA"
    );
    let request = request.prompt_2("b <lora:sepia:0.5>");
    let picture = pipeline.generate(&request).unwrap().pictures.remove(0);
    let expected = [call(0, 1.0, &[1.0]), call(1, 0.5, &[0.5])];
    assert_eq!(library.asked(), [expected]);
    let again = pipeline.reproduction(&picture.infotext());
    assert_eq!(again.differences, [""; 0]);
    assert_eq!(latents(&pipeline, &again.request), picture.latents);
}

/// Each pass has its own LoRAs.
#[test]
fn both_passes_may_call_a_lora() {
    let pipeline = pipeline(&Arc::new(Library::ink_and_sepia()));
    let second = ", Denoising strength: 0.5, Hires upscale: 2, Hires prompt: an owl <lora:ink:0.5>";
    let again = pipeline.reproduction(&infotext("a <lora:ink:1>", second));
    assert_eq!(again.differences, [""; 0]);
    assert_eq!(text_of(&again.request), "a <lora:ink:1>");
    let prompt = again.request.hires.unwrap().prompt.unwrap();
    assert_eq!(prompt.as_text(), Some("an owl <lora:ink:0.5>"));
}

#[test]
fn a_pipeline_without_loras_refuses_calls() {
    let none = builder(1).build().unwrap();
    assert!(none.loras().is_empty());
    for text in ["<lora:ink:1>", "<lyco:ink>"] {
        let request = base().prompt(format!("a {text}"));
        let message = none.generate(&request).unwrap_err().to_string();
        let expected = format!(
            "prompt is a text with `{text}`, expected a pipeline with LoRAs (`Builder::loras`, `PipelineBuilder::lora_library`)"
        );
        assert_eq!(message, expected);
        // In a negative prompt, and in other languages, this is text.
        let negative = base().negative(format!("a {text}"));
        assert!(none.generate(&negative).is_ok());
        let options = PromptOptions::default().syntax(Syntax::ComfyUi);
        assert!(none.generate(&request.prompt_options(options)).is_ok());
    }
    assert!(none.generate(&base().prompt("<hypernet:a:1>")).is_ok());
    let empty = Arc::new(Library::of([]));
    assert_eq!(
        calls(&empty, "<lora:ink>", 4).unwrap_err(),
        "prompt is a text with `<lora:ink>`, expected no LoRA, as the library has none"
    );
    let many: String = (0..4000).map(|i| format!("<lora:x{i}>")).collect();
    let Err(GenerateError::Request(problems)) = none.generate(&base().prompt(many)) else {
        panic!("a request that cannot be drawn")
    };
    assert_eq!(problems.iter().count(), 8);
}

#[test]
fn loras_are_listed() {
    let library = Arc::new(Library::ink_and_sepia());
    assert_eq!(pipeline(&library).loras(), library.loras);
}

#[test]
fn weights_reach_the_text_encoder_and_the_denoiser() {
    let library = Arc::new(Library::ink_and_sepia());
    let pipeline = pipeline(&library);
    let prompt = |text: &str| {
        let request = base().prompt(format!("a fox {text}"));
        let picture = pipeline.generate(&request).unwrap().pictures.remove(0);
        (picture.prompt.embedding, picture.latents, library.seen())
    };
    let (plain, without, _) = prompt("");
    assert_eq!(latents(&builder(1).build().unwrap(), &base()), without);
    let (embedding, text_only, seen) = prompt("<lora:ink:te=1:unet=0>");
    assert_eq!(embedding, &plain * 2.0);
    assert!(text_only != without && seen.iter().all(|(_, weight)| *weight == 0.0));
    let (embedding, unet_only, _) = prompt("<lora:ink:te=0:unet=1>");
    assert_eq!(embedding, plain);
    assert!(unet_only != without && unet_only != text_only);
}

#[test]
fn each_step_has_its_weight() {
    let library = Arc::new(Library::ink_and_sepia());
    let pipeline = pipeline(&library);
    let request = base().prompt("<lora:ink:1:0@0,1@1>").guidance(1.0);
    latents(&pipeline, &request);
    let expected = [(0, 0.0), (1, 0.0), (2, 0.5), (3, 1.0)];
    assert_eq!(library.seen(), expected);
    // Both calls of a step have the weight of the step.
    latents(&pipeline, &request.scheduler(Heun::default()));
    let twice: Vec<_> = expected.iter().flat_map(|step| [*step; 2]).collect();
    assert_eq!(library.seen(), twice[..7]);
}

#[test]
fn loras_do_not_change_a_refiner() {
    let library = Arc::new(Library::ink_and_sepia());
    let seen = Seen::default();
    let refiner = Net {
        inputs: Inputs::new(4, 4),
        calls: Vec::new(),
        seen: seen.clone(),
    };
    let pipeline = builder(1)
        .lora_library(library.clone())
        .refiner("refiner", encoder(1, 0.0), Arc::new(refiner))
        .build()
        .unwrap();
    let of = |prompt: &str, at: f32| latents(&pipeline, &base().prompt(prompt).refiner(at));
    let (plain, called) = ("a fox ", "a fox <lora:ink:1>");
    assert_eq!(of(plain, 0.0), of(called, 0.0));
    assert!(library.seen().is_empty());
    assert!(
        seen.lock()
            .unwrap()
            .iter()
            .all(|(_, weight)| *weight == 0.0)
    );
    assert_ne!(
        of(plain, 0.5),
        of(called, 0.5),
        "the model draws the first steps"
    );
}

#[test]
fn pictures_with_equal_loras_share_batches_and_networks() {
    let library = Arc::new(Library::ink_and_sepia());
    let of = |most: usize| {
        let builder = builder(1).lora_library(library.clone());
        builder.max_batch(most).build().unwrap()
    };
    let (single, batched) = (of(1), of(4));
    let requests = [
        base().prompt("a <lora:ink:1>").count(2),
        base().prompt("b <lora:ink:1.0>").seed(3),
        base().prompt("c"),
        base().prompt("d <lora:ink:1:0.5>"),
        base().prompt("e <lora:ink>"),
    ];
    let alone = single.generate_all(&requests).unwrap();
    let ink = vec![call(0, 1.0, &[1.0])];
    let half = vec![call(0, 1.0, &[0.5])];
    let expected = [ink.clone(), vec![], half.clone(), ink.clone()];
    assert_eq!(library.asked(), expected);
    let together = batched.generate_all(&requests).unwrap();
    assert_eq!(library.asked(), [ink, vec![], half]);
    let batches: Vec<_> = together.pictures.iter().map(batch_size).collect();
    assert_eq!(batches, [4, 4, 4, 1, 1, 4]);
    for (alone, together) in alone.pictures.iter().zip(&together.pictures) {
        assert_eq!(alone.prompt.embedding, together.prompt.embedding);
    }
}

fn batch_size(picture: &sd_core::Picture) -> usize {
    let infotext = picture.infotext();
    infotext
        .get("Batch size")
        .map_or(1, |size| size.parse().unwrap())
}

#[test]
fn a_stopped_run_asks_for_no_networks() {
    let library = Arc::new(Library::ink_and_sepia());
    let stop = StopToken::new();
    stop.stop();
    let request = base().prompt("<lora:ink:1>");
    let ended = pipeline(&library).run(&[request], &stop, |_| Continue(()));
    assert!(ended.unwrap_err().is_stopped());
    assert!(library.asked().is_empty());
}

#[test]
fn errors_of_the_library_are_passed_on() {
    let fails = |library: Library| {
        let pipeline = pipeline(&Arc::new(library));
        let error = pipeline.generate(&base()).unwrap_err();
        let GenerateError::Backend { stage, .. } = &error else {
            panic!("{error}")
        };
        assert_eq!(*stage, Stage::Loras);
        assert_eq!(serde_json::to_string(stage).unwrap(), r#""loras""#);
        let error: &(dyn Error + 'static) = &error;
        chain(error)
    };
    let failing = Library {
        fails: true,
        ..Library::ink_and_sepia()
    };
    assert_eq!(fails(failing), "applying the LoRAs failed: out of memory");
    let wrong = |context, towers| Library {
        wrong: Some((context, towers)),
        ..Library::ink_and_sepia()
    };
    let start = "applying the LoRAs failed: ";
    let denoiser = fails(wrong(8, 1));
    assert!(denoiser.starts_with(&format!(
        "{start}a denoiser has Inputs {{ channels: 4, context: 8"
    )));
    assert!(denoiser.contains("expected Inputs { channels: 4, context: 4"));
    let text = fails(wrong(4, 2));
    assert!(
        text.starts_with(&format!("{start}text encoders have [TextShape")),
        "{text}"
    );
    assert!(text.contains("expected [TextShape"));
}

/// Prompts and infotexts may come from anyone.
#[test]
fn many_calls_are_read_fast() {
    let names: Vec<_> = (0..5000).map(|i| format!("lora {i}")).collect();
    let library = Library::of(names.iter().map(|name| (name.as_str(), None, "a")));
    let pipeline = pipeline(&Arc::new(library));
    let many = |piece: fn(usize) -> String| (0..40_000).map(piece).collect::<String>();
    let missing = many(|i| format!("<lora:x{i}:1>"));
    let hashes = many(|i| format!("x{i}: {i}, "));
    let keys: Vec<_> = (0..10_000).map(|i| format!("{}@{i}", i % 7)).collect();
    let started = std::time::Instant::now();
    for prompt in [&missing, &"<lora:lora 0:1>".repeat(40_000)] {
        let infotext = infotext(prompt, &format!(", Lora hashes: \"{hashes}\""));
        let again = pipeline.reproduction(&infotext);
        assert_eq!(again.differences.len(), 51);
        assert!(text_of(&again.request).len() < 20);
    }
    let steps = format!("Steps: {}", usize::MAX);
    let text = infotext("<lora:lora 1:0@0,1@9>", "").to_string();
    let infotext = Infotext::parse(&text.replace("Steps: 4", &steps)).unwrap();
    assert!(pipeline.reproduction(&infotext).differences.is_empty());
    for prompt in [
        &missing[..60_000],
        &"<lora:lora 0:1>".repeat(4000),
        &format!("<lora:lora 1:{}>", keys.join(",")),
        &names
            .iter()
            .map(|name| format!("<lora:{name}>"))
            .collect::<String>()[..60_000],
        &"<lora:".repeat(10_000),
    ] {
        let request = base().prompt(prompt).size(16, 16).steps(100);
        if let Err(error) = pipeline.generate(&request) {
            assert!(error.to_string().len() < 8000, "{error}");
        }
    }
    assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
}

fn infotext(prompt: &str, entries: &str) -> Infotext {
    let text = format!(
        "{prompt}\nSteps: 4, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x48, RNG: CPU{entries}"
    );
    Infotext::parse(&text).unwrap()
}

fn text_of(request: &Request) -> &str {
    match &request.prompt {
        sd_core::Prompt::Text(text) => text,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_infotext_names_the_loras_and_draws_them_again() {
    let library = Arc::new(Library::of([
        ("ink, fine", None, "AAAAAAAAAAAAAAAA"),
        ("sepia-v2", Some("sepia"), "bbbbbbbbbbbbbbbb"),
        ("gone", None, ""),
    ]));
    let plain = pipeline(&library);
    let merged = builder(1)
        .lora("moss", 0.5, || Ok("cccccccccccccccc".into()))
        .lora_library(library.clone())
        .build()
        .unwrap();
    let cases = [
        ("a", None, Some("moss: cccccccccccc")),
        (
            "a <lora:ink, fine:0.5> <lora:sepia:1:0@0,1@1> <lora:gone>",
            Some("ink fine: aaaaaaaaaaaa, sepia: bbbbbbbbbbbb"),
            Some("moss: cccccccccccc, ink fine: aaaaaaaaaaaa, sepia: bbbbbbbbbbbb"),
        ),
    ];
    for (prompt, of_plain, of_merged) in cases {
        for (pipeline, expected) in [(&plain, of_plain), (&merged, of_merged)] {
            let request = base().prompt(prompt);
            let picture = pipeline.generate(&request).unwrap().pictures.remove(0);
            let infotext = picture.infotext();
            assert_eq!(infotext.get("Lora hashes"), expected);
            let read = Infotext::parse(&infotext.to_string()).unwrap();
            let again = pipeline.reproduction(&read);
            assert_eq!(again.differences, [""; 0], "{read}");
            assert_eq!(text_of(&again.request), prompt);
            assert_eq!(latents(pipeline, &again.request), picture.latents);
        }
        // The merged LoRA is a difference on the other pipeline, and nothing else is.
        let request = base().prompt(prompt);
        let pictures = [&merged, &plain].map(|it| it.generate(&request).unwrap());
        let [with, without] = pictures.map(|it| it.pictures[0].infotext());
        let note = "the LoRAs `[[\"moss\",0.5,0.5]]` were merged into the model, and have to be \
                    loaded in this order";
        assert_eq!(plain.reproduction(&with).differences, [note]);
        let note = "this pipeline has the LoRAs `[[\"moss\",0.5,0.5]]`, with which the picture was \
                    not made";
        assert_eq!(merged.reproduction(&without).differences, [note]);
    }
}

#[test]
fn hashes_are_kept_without_the_library() {
    let library = Arc::new(Library::of([
        ("ab", None, "aaaaaaaaaaaaaaaa"),
        ("a,b", None, "bbbbbbbbbbbbbbbb"),
        ("ink", None, "cccccccccccccccc"),
    ]));
    let request = base().prompt("<lora:ab:1> <lora:ink:1> <lora:a,b:1>");
    let generation = pipeline(&library).generate(&request).unwrap();
    assert_eq!(Arc::strong_count(&library), 1, "a picture keeps no library");
    // These names are the same without commas, and WebUI keeps the last hash.
    let infotext = generation.pictures[0].infotext();
    let expected = "ab: bbbbbbbbbbbb, ink: cccccccccccc";
    assert_eq!(infotext.get("Lora hashes"), Some(expected));
}

#[test]
fn loras_of_an_infotext_are_found_by_name_and_hash() {
    let mut library = Library::ink_and_sepia();
    let mut moss = LoraInfo::new("moss");
    moss.problem = Some("it is for SDXL".into());
    let mut merged = LoraInfo::new("merged");
    merged.live = false;
    library.loras.extend([moss, merged, LoraInfo::new("gone")]);
    let hashes = ["cccccccccccccccc", "dddddddddddddddd", ""];
    library.hashes.extend(hashes.map(str::to_owned));
    let library = Arc::new(library);
    let pipeline = pipeline(&library);
    let cases = [
        ("<lora:ink:1>", "", "<lora:ink:1>", vec![]),
        ("<lora:ink:1>", "ink: AAAAAAAAAAAA", "<lora:ink:1>", vec![]),
        (
            "<lyco:x:te=1>",
            "x: bbbbbbbbbbbb",
            "<lyco:sepia:te=1>",
            vec![],
        ),
        (
            "<lora:te=1:x>",
            "x: aaaaaaaaaaaa",
            "<lora:te=1:ink>",
            vec![],
        ),
        (
            "<lora:ink:1>",
            "ink: 123456789abc",
            "<lora:ink:1>",
            vec!["the LoRA `ink` had the hash `123456789abc`, but here its hash is `aaaaaaaaaaaa`"],
        ),
        (
            "<lora:gone:1>",
            "gone: 123456789abc",
            "<lora:gone:1>",
            vec!["the LoRA `gone` had the hash `123456789abc`, but here its hash is `unknown`"],
        ),
        (
            "<lora:x:1>, b",
            "x: 123456789abc",
            ", b",
            vec![
                "the pipeline has no LoRA `x` with the hash `123456789abc`, so `<lora:x:1>` is \
                 left out",
            ],
        ),
        (
            "<lora:x:1> (<lora:ink:1>:1.2) <lora:y>",
            "",
            " (<lora:ink:1>:1.2) ",
            vec![
                "the pipeline has no LoRA `x`, so `<lora:x:1>` is left out",
                "the pipeline has no LoRA `y`, so `<lora:y>` is left out",
            ],
        ),
        (
            "a <lora:moss:1>",
            "",
            "a ",
            vec![
                "this pipeline needs a LoRA that fits the model, but it is for SDXL, so \
                 `<lora:moss:1>` is left out",
            ],
        ),
        (
            "a <lora:merged:1:stop=2>",
            "",
            "a ",
            vec![
                "weights that change by step cannot be used (expected one weight for all steps, \
                 because this LoRA is merged into the weights), so `<lora:merged:1:stop=2>` is \
                 left out",
            ],
        ),
        (
            "a <lora:ink:x>",
            "",
            "a ",
            vec![
                "weight `x` cannot be used (expected a finite number such as 0.8, or numbers at \
                 steps such as 0@0,1@0.5), so `<lora:ink:x>` is left out",
            ],
        ),
        (
            "<lora:ink:1><lora:x:1>",
            "x: aaaaaaaaaaaa",
            "<lora:ink:1>",
            vec!["each LoRA can be called once, so `<lora:x:1>` is left out"],
        ),
        (
            "a",
            "b: 123456789abc",
            "a",
            vec!["the LoRA `b: 123456789abc` was used, but the prompt does not call it"],
        ),
        (
            "<hypernet:a:1>",
            "",
            "<hypernet:a:1>",
            vec!["`<hypernet:a:1>` is not applied"],
        ),
    ];
    for (prompt, hashes, expected, differences) in cases {
        let entries = match hashes {
            "" => String::new(),
            hashes => format!(", Lora hashes: \"{hashes}\""),
        };
        let infotext = infotext(prompt, &entries);
        let again = pipeline.reproduction(&infotext);
        assert_eq!(again.differences, differences, "{prompt}");
        assert_eq!(text_of(&again.request), expected, "{prompt}");
        assert!(pipeline.generate(&again.request).is_ok(), "{prompt}");
    }
    // A pipeline without a library leaves everything out.
    let none = builder(1).build().unwrap();
    let again = none.reproduction(&infotext("a <lora:ink:1>", ""));
    assert_eq!(text_of(&again.request), "a ");
    let note = "the pipeline has no LoRA `ink`, so `<lora:ink:1>` is left out";
    assert_eq!(again.differences, [note]);
}
