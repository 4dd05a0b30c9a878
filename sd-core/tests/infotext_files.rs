//! Infotexts in files of other programs, against what sd-parsers reads.

// A failed `unwrap` is a failed test.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, env, fs, path::Path, time::Instant};

use sd_core::{
    Infotext, Prompt, RefinerShare, RefinerSwitch, Start, files,
    image::RgbImage,
    schedulers::{Ladder, ladders::StrengthRule, noise::NoiseKind},
    text::{Emphasis, Syntax},
};
use serde::Deserialize;

/// What `golden/infotext_folder.py` writes about a file.
#[derive(Deserialize)]
struct Read {
    error: Option<String>,
    generator: Option<String>,
    size: Option<String>,
    steps: Option<String>,
    #[serde(default)]
    samplers: Vec<Sampler>,
}

#[derive(Deserialize)]
struct Sampler {
    name: String,
    scheduler: Option<String>,
    steps: Option<String>,
    cfg_scale: Option<String>,
    seed: Option<String>,
    model: Option<String>,
    prompts: Vec<String>,
    negatives: Vec<String>,
}

fn golden(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/infotext-files");
    fs::read(folder.join(name)).unwrap()
}

fn read(name: &str) -> Infotext {
    let read = Infotext::from_bytes(&golden(name)).unwrap();
    read.unwrap_or_else(|| panic!("{name} has no infotext"))
}

/// Returns the prompt without the calls of LoRAs that were added at its end.
fn without_loras(prompt: &str) -> &str {
    prompt.split("<lora:").next().unwrap().trim()
}

/// Returns how the values of a file differ from what sd-parsers reads, and how many were compared.
fn compared(infotext: &Infotext, read: &Read) -> (usize, Vec<String>) {
    let (mut count, mut wrong) = (0, Vec::new());
    let mut compare = |what: &str, ours: Option<&str>, theirs: Option<&str>| {
        let Some(theirs) = theirs else { return };
        count += 1;
        let number = |text: &str| text.parse::<f64>().ok();
        let same =
            |ours: &str| ours == theirs || number(ours).is_some() && number(ours) == number(theirs);
        if !ours.is_some_and(same) {
            wrong.push(format!("{what}: here {ours:?}, in sd-parsers {theirs:?}"));
        }
    };
    // sd-parsers lists all samplers of a graph.
    let seed = infotext.get("Seed");
    let sampler = read.samplers.iter().find(|it| it.seed.as_deref() == seed);
    let Some(sampler) = sampler.or(read.samplers.first()) else {
        return (0, wrong);
    };
    let is_graph = read.generator.as_deref() == Some("ComfyUI");
    // A conditioning may join several texts, of which one is read here.
    let among = |ours: &str, all: &[String]| match is_graph {
        true => all
            .iter()
            .find(|it| *it == ours.trim())
            .or(all.first())
            .cloned(),
        false => (!all.is_empty()).then(|| all.join(", ")),
    };
    let prompt = without_loras(&infotext.prompt);
    compare(
        "prompt",
        Some(prompt),
        among(prompt, &sampler.prompts).as_deref(),
    );
    let negative = infotext.negative.trim();
    compare(
        "negative",
        Some(negative),
        among(negative, &sampler.negatives).as_deref(),
    );
    compare(
        "steps",
        infotext.get("Steps"),
        sampler.steps.as_deref().or(read.steps.as_deref()),
    );
    compare(
        "cfg",
        infotext.get("CFG scale"),
        sampler.cfg_scale.as_deref(),
    );
    compare("seed", seed, sampler.seed.as_deref());
    compare("size", infotext.get("Size"), read.size.as_deref());
    if matches!(read.generator.as_deref(), Some("AUTOMATIC1111" | "ComfyUI")) {
        let name = sampler.name.trim_start_matches("sample_");
        compare("sampler", infotext.get("Sampler"), Some(name));
        let scheduler = infotext.get("Scheduler").or(infotext.get("Schedule type"));
        compare("scheduler", scheduler, sampler.scheduler.as_deref());
    }
    if let Some(model) = &sampler.model {
        let stem = Path::new(model.rsplit(['/', '\\']).next().unwrap());
        let stem = match stem.extension().and_then(|it| it.to_str()) {
            Some("safetensors" | "ckpt") => stem.file_stem().unwrap().to_str().unwrap(),
            _ => model,
        };
        compare("model", infotext.get("Model"), Some(stem));
    }
    (count, wrong)
}

/// Reads all files of a folder that `infotext_folder.py` has read. Returns the disagreements.
fn compare_folder(folder: &Path) -> Vec<String> {
    let json = fs::read_to_string(folder.join("sd-parsers.json")).unwrap();
    let all: BTreeMap<String, Read> = serde_json::from_str(&json).unwrap();
    let mut disagreements = Vec::new();
    println!("file | read here | differences of the request | values that agree with sd-parsers");
    for (name, theirs) in &all {
        let ours = Infotext::read(folder.join(name));
        let (said, wrong) = match &ours {
            Ok(Some(infotext)) => {
                let differences = infotext.request().differences;
                let version = infotext.get("Version").unwrap_or("WebUI");
                let (count, wrong) = compared(infotext, theirs);
                let agree = count - wrong.len();
                let theirs = theirs
                    .error
                    .as_ref()
                    .map_or(String::new(), |it| format!(" ({it})"));
                let said = format!(
                    "{version} | {} | {agree} of {count}{theirs}",
                    differences.len()
                );
                (said, wrong)
            }
            Ok(None) if theirs.samplers.is_empty() => ("nothing | | nothing".to_owned(), vec![]),
            Ok(None) => (
                "nothing | | more".to_owned(),
                vec!["nothing is read".to_owned()],
            ),
            // Its JSON is named, and not read.
            Err(error) if theirs.generator.as_deref() == Some("Fooocus") => {
                (format!("{error} | | more"), vec![])
            }
            Err(error) if theirs.samplers.is_empty() => (format!("{error} | | nothing"), vec![]),
            Err(error) => (format!("{error} | | more"), vec![error.to_string()]),
        };
        println!("{name} | {said}");
        if env::var_os("SD_INFOTEXT_VERBOSE").is_some()
            && let Ok(Some(infotext)) = &ours
        {
            println!("    {infotext:?}");
            for difference in infotext.request().differences {
                println!("    - {difference}");
            }
        }
        disagreements.extend(wrong.into_iter().map(|wrong| format!("{name}: {wrong}")));
    }
    disagreements
}

#[test]
fn values_are_those_of_sd_parsers() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/infotext-files");
    // Behind ControlNetApplyAdvanced, sd-parsers lists the texts of both sides for either.
    assert_eq!(compare_folder(&folder), Vec::<String>::new());
}

/// Compares a folder of real pictures, which are not a part of this repository.
/// `golden/infotext_folder.py` says how to prepare it.
#[test]
fn values_of_a_folder_are_those_of_sd_parsers() {
    let Some(folder) = env::var_os("SD_INFOTEXT_FILES") else {
        eprintln!("SKIPPED: SD_INFOTEXT_FILES names no folder of pictures to compare");
        return;
    };
    let disagreements = compare_folder(Path::new(&folder));
    assert!(disagreements.is_empty(), "{disagreements:#?}");
}

const TEXT: &str = "a fox 狐 🦊, (red:1.2)\nNegative prompt: blurry\nSteps: 20, Sampler: Euler a, \
                    Schedule type: Karras, CFG scale: 6.5, Seed: 42, Size: 64x96";

#[test]
fn exif_and_hidden_texts_are_read() {
    let expected = Infotext::parse(TEXT).unwrap();
    let names = [
        "webui.jpg",
        "webui.webp",
        "little-endian.jpg",
        "mark.jpg",
        "big-in-little.webp",
        "utf8.webp",
        "exif.png",
        "stealth-rgb-compressed.png",
        "stealth-rgb-plain.png",
        "stealth-rgba-compressed.png",
        "stealth-rgba-plain.png",
    ];
    for name in names {
        assert_eq!(read(name), expected, "{name}");
    }
    let ascii = Infotext::parse(&TEXT.replace("狐 🦊", "fox")).unwrap();
    assert_eq!(read("ascii.jpg"), ascii);
}

#[test]
fn jpeg_and_webp_hold_what_piexif_writes_for_webui() {
    let infotext = Infotext::parse(TEXT).unwrap();
    let picture = RgbImage::from_fn(40, 24, |x, y| [x as u8 * 5, y as u8 * 9, 7].into());
    let jpeg = files::jpeg(&picture, 90, Some(&infotext)).unwrap();
    let webp = files::webp(&picture, Some(&infotext)).unwrap();
    // The field of piexif's file: its type, its length and its text.
    let theirs = golden("webui.jpg");
    let at = theirs.windows(8).position(|it| it == b"UNICODE\0").unwrap();
    let length = u32::from_be_bytes(theirs[at - 8..at - 4].try_into().unwrap()) as usize;
    let text = &theirs[at..at + length];
    for bytes in [&jpeg, &webp] {
        assert!(bytes.windows(length).any(|it| it == text));
        assert_eq!(Infotext::from_bytes(bytes).unwrap(), Some(infotext.clone()));
    }
    assert_eq!(image::load_from_memory(&webp).unwrap().to_rgb8(), picture);
    assert_eq!(
        image::load_from_memory(&jpeg)
            .unwrap()
            .to_rgb8()
            .dimensions(),
        (40, 24)
    );
    for bytes in [files::jpeg(&picture, 1, None), files::webp(&picture, None)] {
        assert_eq!(Infotext::from_bytes(&bytes.unwrap()).unwrap(), None);
    }
    for quality in [0, 101] {
        let error = files::jpeg(&picture, quality, None)
            .unwrap_err()
            .to_string();
        assert!(error.contains("expected 1 to 100"), "{error}");
    }
    assert!(files::jpeg(&RgbImage::new(0, 0), 90, None).is_err());
    assert!(files::webp(&RgbImage::new(0, 0), None).is_err());
}

#[test]
fn a_jpeg_holds_64_kilobytes_and_refuses_more() {
    let entries = ", Sampler: Euler, Seed: 1";
    let with = |length: usize| {
        // The comment has a code of 8 bytes behind 44 bytes of directories.
        let prompt = "x".repeat(length - "\nSteps: 1".len() - entries.len());
        Infotext::parse(&format!("{prompt}\nSteps: 1{entries}")).unwrap()
    };
    let picture = RgbImage::new(8, 8);
    let most = with((65_527 - 44 - 8) / 2);
    let jpeg = files::jpeg(&picture, 90, Some(&most)).unwrap();
    assert_eq!(Infotext::from_bytes(&jpeg).unwrap(), Some(most));
    let more = with((65_527 - 44 - 8) / 2 + 1);
    let error = files::jpeg(&picture, 90, Some(&more))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("65528 bytes") && error.contains("65527"),
        "{error}"
    );
    let webp = files::webp(&picture, Some(&more)).unwrap();
    assert_eq!(Infotext::from_bytes(&webp).unwrap(), Some(more));
}

#[test]
fn a_comment_of_a_camera_is_no_infotext() {
    let comment = |text: &str| {
        let infotext = Infotext {
            prompt: text.to_owned(),
            ..Infotext::default()
        };
        let jpeg = files::jpeg(&RgbImage::new(8, 8), 90, Some(&infotext)).unwrap();
        Infotext::from_bytes(&jpeg).unwrap()
    };
    assert_eq!(comment("Screenshot"), None);
    assert_eq!(comment(""), None);
}

fn differences(name: &str) -> Vec<String> {
    read(name).request().differences
}

#[test]
fn a_graph_of_comfyui_becomes_a_request() {
    for name in ["comfyui-plain.png", "comfyui.webp"] {
        let infotext = read(name);
        assert_eq!(
            infotext.prompt,
            "a (red:1.3) fox<lora:ink:0.6:0.8><lora:snow:0.5>"
        );
        assert_eq!(infotext.negative, "blurry");
        let again = infotext.request();
        let request = again.request;
        assert_eq!(
            request.prompt,
            Prompt::from("a (red:1.3) fox<lora:ink:0.6:0.8><lora:snow:0.5>")
        );
        assert_eq!(request.prompt_options.syntax, Syntax::WebUi);
        assert_eq!(request.prompt_options.emphasis, Emphasis::Interpolate);
        assert_eq!((request.step_count(), request.seed), (12, Some(u64::MAX)));
        assert_eq!(request.ladder, Some(Ladder::karras()));
        assert_eq!(request.noise, NoiseKind::Torch);
        assert_eq!(infotext.get("Size"), Some("64x96"));
        assert_eq!(infotext.get("Clip skip"), Some("2"));
        assert_eq!(infotext.get("Model"), Some("fox"));
        assert_eq!(
            again.differences,
            [
                "`<lora:ink:0.6:0.8>` calls a LoRA, which the pipeline must have",
                "`<lora:snow:0.5>` calls a LoRA, which the pipeline must have",
                "the picture is one of a batch of 4, whose noise ComfyUI draws at once, and the \
                 first one is drawn here",
            ]
        );
    }
}

#[test]
fn nodes_that_are_not_read_are_differences() {
    assert_eq!(
        differences("comfyui-second-pass.png"),
        [
            "ComfyUI's node 20 (LatentUpscale: height 192, upscale_method nearest-exact, width \
             128) is ignored",
            "ComfyUI sampled more than once, and node 21 (KSampler: cfg 6.5, denoise 0.5, \
             sampler_name dpmpp_2m, scheduler karras, seed 5, steps 8) is ignored",
        ]
    );
    assert_eq!(
        differences("comfyui-custom.png"),
        ["ComfyUI's node 13 (FreeU: b1 1.1, b2 1.2, s1 0.9, s2 0.2) is ignored"]
    );
    let custom = read("comfyui-custom.png");
    assert_eq!(custom.get("CFG scale"), Some("4.5"));
    assert_eq!(
        (custom.get("Seed"), custom.get("Steps")),
        (Some("9"), Some("9"))
    );
    assert_eq!(
        custom.request().request.ladder,
        Some(Ladder::beta_timesteps())
    );
    let picture = read("comfyui-picture.png");
    assert_eq!((&*picture.prompt, &*picture.negative), ("a fox", "blurry"));
    assert_eq!(picture.get("Seed"), Some("11"));
    assert_eq!(picture.get("CFG scale"), None);
    let again = picture.request().differences;
    for expected in [
        "`cfg` of node 3 (KSampler: ",
        "comes from node 41 (SomeonesNode: value 3.5), which cannot be read",
        "node 7 (ControlNetApplyAdvanced: end_percent 1.0, start_percent 0.0, strength 0.7)",
        "the run started from a picture, which has to be supplied",
        "`Size` is missing",
        "`CFG scale` is missing",
    ] {
        let found = again.iter().any(|it| it.contains(expected));
        assert!(found, "{expected}: {again:#?}");
    }
    let start = picture.start(RgbImage::new(64, 96), None);
    let (rule, strength) = start
        .map(|Start { rule, strength, .. }| (rule, strength))
        .unwrap();
    assert_eq!((rule, strength), (StrengthRule::ComfyUi, 0.6));
    let refiner = read("comfyui-refiner.png");
    assert_eq!(refiner.prompt, "a fox");
    let again = refiner.request();
    assert_eq!(again.request.prompt_2.as_deref(), Some("a forest"));
    assert_eq!(again.request.sizes.original, Some([128, 192]));
    assert_eq!(again.request.sizes.crop, [0, 8]);
    let switch = RefinerSwitch {
        at: 0.8,
        by: RefinerShare::Steps,
    };
    assert_eq!(again.request.refiner, Some(switch));
    assert_eq!(refiner.get("Refiner"), Some("refiner"));
    assert_eq!(again.differences, Vec::<String>::new());
}

#[test]
fn metadata_of_invokeai_becomes_a_request() {
    let infotext = read("invokeai-3.png");
    let again = infotext.request();
    let request = &again.request;
    assert_eq!(
        request.prompt,
        Prompt::from("a(fox:1.1)in(deep snow:1.2)<lora:ink:0.75>"),
        "{request:?}"
    );
    assert_eq!(request.prompt_2.as_deref(), Some("watercolour"));
    assert_eq!(request.ladder, Some(Ladder::karras()));
    assert_eq!(request.noise, NoiseKind::Torch);
    assert_eq!(infotext.get("Clip skip"), Some("2"));
    assert!(
        again
            .differences
            .iter()
            .any(|it| it.contains("`seamless_x: True` is ignored"))
    );
    for (name, version) in [
        ("invokeai-2.png", "InvokeAI 2.3.0"),
        ("invokeai-1.png", "InvokeAI"),
    ] {
        let infotext = read(name);
        assert_eq!(
            (&*infotext.prompt, &*infotext.negative),
            ("a fox", "blurry")
        );
        assert_eq!(infotext.get("Version"), Some(version));
        let request = infotext.request().request;
        assert_eq!((request.step_count(), request.seed), (50, Some(2980)));
        assert_eq!(request.prompt_options.syntax, Syntax::Compel);
    }
    let upscaled = "InvokeAI's option `-U 4 0.95` is ignored";
    assert!(
        differences("invokeai-1.png")
            .iter()
            .any(|it| it == upscaled)
    );
}

#[test]
fn metadata_of_novelai_becomes_a_request() {
    for name in ["novelai.png", "novelai-stealth.png"] {
        let infotext = read(name);
        assert_eq!(infotext.prompt, "{{a fox}}, [snow] (day)");
        let again = infotext.request();
        assert_eq!(
            again.request.prompt,
            Prompt::from("((a fox:1.05):1.05), (snow:0.952381) \\(day\\)")
        );
        assert_eq!(again.request.ladder, Some(Ladder::exponential()));
        assert_eq!(again.request.ensd, 31337);
        assert_eq!(infotext.get("Model hash"), Some("1d44365e"));
        let ignored = "NovelAI's `sm: True` is ignored";
        assert!(
            again.differences.iter().any(|it| it == ignored),
            "{:#?}",
            again.differences
        );
    }
}

/// What is written for another program's picture is read back as the same.
#[test]
fn the_text_of_another_programs_picture_comes_back() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/infotext-files");
    for file in fs::read_dir(folder).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        if name.ends_with("json") {
            continue;
        }
        let infotext = read(&name);
        let again = Infotext::parse(&infotext.to_string()).unwrap();
        assert_eq!(again.entries, infotext.entries, "{name}");
        let (a, b) = (infotext.request(), again.request());
        assert_eq!(a.differences, b.differences, "{name}");
        assert_eq!(a.request.prompt, b.request.prompt, "{name}");
    }
}

/// Damaged files must neither panic nor take long.
#[test]
fn damaged_files_are_read_or_refused() {
    let started = Instant::now();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/infotext-files");
    for file in fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|it| it == "json") {
            continue;
        }
        let bytes = fs::read(&path).unwrap();
        let good = Infotext::from_bytes(&bytes).unwrap();
        for length in 0..bytes.len() {
            if let Ok(Some(read)) = Infotext::from_bytes(&bytes[..length]) {
                assert_eq!(Some(read), good, "{path:?}: {length}");
            }
        }
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1 << (at % 8);
            if let Ok(Some(read)) = Infotext::from_bytes(&bad) {
                read.request();
            }
            bad[at] = 0xff;
            let _ = Infotext::from_bytes(&bad);
        }
    }
    let took = started.elapsed().as_secs();
    assert!(took < 120, "{took} s");
}

/// Returns a PNG with ComfyUI's graph.
fn with_graph(graph: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 1, 1);
    encoder
        .add_text_chunk("prompt".into(), graph.into())
        .unwrap();
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(&[0]).unwrap();
    drop(writer);
    bytes
}

#[test]
fn malicious_graphs_end() {
    // Nodes that depend on themselves and on each other.
    let sampler = |inputs: &str| {
        format!(
            r#"{{"1": {{"class_type": "KSampler", "inputs": {{"steps": 5, "cfg": 7, {inputs}}}}},
                "2": {{"class_type": "Reroute", "inputs": {{"": ["3", 0]}}}},
                "3": {{"class_type": "Reroute", "inputs": {{"": ["2", 0]}}}},
                "4": {{"class_type": "LoraLoader", "inputs": {{"model": ["4", 0], "lora_name": "a",
                       "strength_model": 1}}}},
                "5": {{"class_type": "PrimitiveInt", "inputs": {{"value": ["5", 0]}}}},
                "9": {{"class_type": "SaveImage", "inputs": {{"images": ["1", 0]}}}}}}"#
        )
    };
    for inputs in [
        r#""model": ["2", 0], "positive": ["2", 0], "latent_image": ["2", 0]"#,
        r#""model": ["4", 0], "positive": ["4", 1], "latent_image": ["4", 0]"#,
        r#""seed": ["5", 0], "latent_image": ["1", 0]"#,
        r#""seed": ["77", 0], "positive": [[], {}], "model": {"a": 1}"#,
    ] {
        let read = Infotext::from_bytes(&with_graph(&sampler(inputs)));
        if let Ok(Some(read)) = read {
            assert!(!read.request().differences.is_empty());
        }
    }
    // A chain as long as fits into 2 MiB.
    let mut graph = String::from(
        r#"{"0": {"class_type": "KSampler", "inputs": {"steps": 5, "model": ["1", 0]}}"#,
    );
    for i in 1..20_000 {
        let next = i + 1;
        graph +=
            &format!(r#","{i}": {{"class_type": "FreeU", "inputs": {{"model": ["{next}", 0]}}}}"#);
    }
    graph += "}";
    let started = Instant::now();
    let read = Infotext::from_bytes(&with_graph(&graph)).unwrap().unwrap();
    assert!(read.request().differences.len() <= 51);
    assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
    // As many samplers as fit.
    let mut graph = String::from(r#"{"0": {"class_type": "SaveImage", "inputs": {"a": ["1", 0]}}"#);
    for i in 1..16_000 {
        let next = i + 1;
        graph += &format!(
            r#","{i}": {{"class_type": "KSampler", "inputs": {{"latent_image": ["{next}", 0]}}}}"#
        );
    }
    graph += "}";
    let started = Instant::now();
    let _ = Infotext::from_bytes(&with_graph(&graph));
    assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
}

/// Returns the infotext of a graph, whose nodes are `class: inputs`, numbered from 1.
fn of_graph(nodes: &[(&str, &str)]) -> Infotext {
    let nodes = nodes.iter().enumerate().map(|(i, (class, inputs))| {
        let id = i + 1;
        format!(r#""{id}": {{"class_type": "{class}", "inputs": {{{inputs}}}}}"#)
    });
    let graph = nodes.collect::<Vec<_>>().join(", ");
    let read = Infotext::from_bytes(&with_graph(&format!("{{{graph}}}")));
    read.unwrap().unwrap()
}

fn not_read(infotext: &Infotext) -> Vec<&str> {
    let entries = infotext.entries.iter();
    let sentences = entries.filter(|(key, _)| key == "Not read");
    sentences.map(|(_, sentence)| &**sentence).collect()
}

/// Walks through long chains and cycles take linear time.
#[test]
fn long_walks_end_in_a_second() {
    const COUNT: usize = 8000;
    let long = "x".repeat(1 << 20);
    let sampler = r#""0": {"class_type": "KSampler", "inputs": {"steps": 5, "cfg": 7,
        "model": ["1", 0], "positive": ["1", 0], "negative": ["1", 0], "latent_image": ["1", 0]}}"#;
    let lora = |i: usize, to: usize| {
        format!(
            r#","{i}": {{"class_type": "LoraLoader", "inputs": {{"model": ["{to}", 0],
            "clip": ["{to}", 0], "conditioning": ["{to}", 0], "samples": ["{to}", 0],
            "strength_model": 1, "lora_name": "a"}}}}"#
        )
    };
    let reroute = |i: usize, to: usize| {
        format!(r#","{i}": {{"class_type": "Reroute", "inputs": {{"": ["{to}", 0]}}}}"#)
    };
    let chain = |piece: &dyn Fn(usize, usize) -> String, end: usize| -> String {
        let next = |i: usize| if i == COUNT { end } else { i + 1 };
        (1..=COUNT).map(|i| piece(i, next(i))).collect()
    };
    let mixed = |i: usize, to: usize| match i % 2 {
        1 => lora(i, to),
        _ => reroute(i, to),
    };
    // All LoRAs lead into one long chain of reroutes, one after the other.
    let into_chain = |i: usize, to: usize| match i {
        0..=2000 => lora(i, if to.is_multiple_of(2) { to } else { 2001 }),
        _ => reroute(i, to),
    };
    // The strengths of all LoRAs come through one long chain of values.
    let values = |i: usize, to: usize| match i {
        0..=3000 => {
            lora(i, to).replace("\"strength_model\": 1", "\"strength_model\": [\"3001\", 0]")
        }
        _ => format!(
            r#","{i}": {{"class_type": "PrimitiveInt", "inputs": {{"value": ["{to}", 0]}}}}"#
        ),
    };
    let text = format!(
        r#","{}": {{"class_type": "PrimitiveString", "inputs": {{"value": "{long}"}}}}"#,
        COUNT + 1
    );
    let shared = |i: usize, to: usize| {
        let name = format!(r#""lora_name": ["{}", 0]"#, COUNT + 1);
        match i {
            0..=3000 => lora(i, to).replace(r#""lora_name": "a""#, &name),
            _ => String::new(),
        }
    };
    let own = format!(
        r#","1": {{"class_type": "LoraLoader", "inputs": {{"model": ["1", 0], "clip": ["1", 0],
        "strength_model": "{long}", "lora_name": "a"}}}}"#
    );
    let mut graphs = vec![own];
    for end in [1, COUNT + 1] {
        graphs.push(chain(&lora, end));
        graphs.push(chain(&reroute, end));
        graphs.push(chain(&mixed, end));
        graphs.push(chain(&into_chain, end));
        graphs.push(chain(&values, end));
    }
    graphs.push(chain(&shared, 1) + &text);
    for (i, graph) in graphs.iter().enumerate() {
        let png = with_graph(&format!("{{{sampler}{graph}}}"));
        let started = Instant::now();
        let read = Infotext::from_bytes(&png);
        let took = started.elapsed();
        assert!(took.as_millis() < 1000, "graph {i}: {took:?}");
        assert!(read.unwrap().is_some(), "graph {i}");
    }
}

/// Returns EXIF data with ComfyUI's `Make`, and a `UserComment` if one is given.
fn exif_with(make: &[u8], comment: Option<&[u8]>) -> Vec<u8> {
    let entry = |tag: u16, kind: u16, count: usize, value: usize| {
        let numbers = [count as u32, value as u32].map(u32::to_be_bytes).concat();
        [[tag, kind].map(u16::to_be_bytes).concat(), numbers].concat()
    };
    let comment = comment.unwrap_or_default();
    // The first directory has 2 entries, and the second has 1.
    let (second, end) = (8 + 2 + 24 + 4, 8 + 2 + 24 + 4 + 2 + 12 + 4);
    [
        b"MM\0*\0\0\0\x08\0\x02".to_vec(),
        entry(0x010f, 2, make.len(), end),
        entry(0x8769, 4, 1, second),
        vec![0, 0, 0, 0, 0, 1],
        entry(0x9286, 7, comment.len(), end + make.len()),
        vec![0; 4],
        make.to_vec(),
        comment.to_vec(),
    ]
    .concat()
}

fn webp_with(exif: Vec<u8>) -> Vec<u8> {
    use image::{ExtendedColorType, ImageEncoder};
    let mut bytes = Vec::new();
    let mut encoder = image::codecs::webp::WebPEncoder::new_lossless(&mut bytes);
    encoder.set_exif_metadata(exif).unwrap();
    let encoded = encoder.write_image(&[0; 3], 1, 1, ExtendedColorType::Rgb8);
    encoded.unwrap();
    bytes
}

#[test]
fn other_exif_data_hides_nothing() {
    let graph = r#"prompt:{"1": {"class_type": "KSampler", "inputs": {"steps": 5, "cfg": 7}}}"#;
    let json = b"ASCII\0\0\0{\"camera\": 1}".as_slice();
    let with_header = [b"Exif\0\0", &exif_with(graph.as_bytes(), None)[..]].concat();
    for exif in [
        exif_with(graph.as_bytes(), None),
        exif_with(graph.as_bytes(), Some(json)),
        with_header,
    ] {
        let read = Infotext::from_bytes(&webp_with(exif)).unwrap().unwrap();
        assert_eq!(read.get("Steps"), Some("5"));
    }
    let bare = Infotext::from_bytes(&webp_with(b"no TIFF header".to_vec()));
    assert_eq!(bare.unwrap(), None);
    // A text hidden in the pixels.
    let expected = Infotext::parse(TEXT).unwrap();
    for exif in [b"no TIFF header".to_vec(), exif_with(b"", Some(json))] {
        let mut png = golden("stealth-rgb-plain.png");
        // The chunk follows the header, whose chunk has 25 bytes.
        let mut chunk = Vec::new();
        let name = png::chunk::ChunkType(*b"eXIf");
        let info = png::Info::with_size(1, 1);
        let mut writer = png::Encoder::with_info(&mut chunk, info)
            .unwrap()
            .write_header()
            .unwrap();
        writer.write_chunk(name, &exif).unwrap();
        drop(writer);
        let start = chunk.windows(4).position(|it| it == b"eXIf").unwrap() - 4;
        let length = exif.len() + 12;
        png.splice(33..33, chunk[start..start + length].iter().copied());
        let read = Infotext::from_bytes(&png).unwrap();
        assert_eq!(read, Some(expected.clone()));
    }
    // A graph that is too long.
    let long = format!("{graph}{}", " ".repeat(2 << 20));
    let error = Infotext::from_bytes(&webp_with(exif_with(long.as_bytes(), None)));
    assert!(error.unwrap_err().to_string().contains("longer than"));
}

#[test]
fn a_jpeg_of_few_ascii_characters_is_read_back() {
    let text = format!("{}\nSteps: 1, Sampler: Euler, Seed: 1", "一".repeat(400));
    let infotext = Infotext::parse(&text).unwrap();
    let jpeg = files::jpeg(&RgbImage::new(8, 8), 90, Some(&infotext)).unwrap();
    assert_eq!(Infotext::from_bytes(&jpeg).unwrap(), Some(infotext));
}

const SAMPLER: &str = r#""seed": 1, "steps": 20, "cfg": 7, "sampler_name": "euler",
    "scheduler": "normal", "model": ["2", 0], "positive": ["3", 0], "negative": ["4", 0],
    "latent_image": ["5", 0]"#;
const LOADER: (&str, &str) = (
    "CheckpointLoaderSimple",
    r#""ckpt_name": "fox.safetensors""#,
);
const EMPTY: (&str, &str) = (
    "EmptyLatentImage",
    r#""width": 64, "height": 96, "batch_size": 1"#,
);

#[test]
fn what_comfyui_reads_otherwise_is_said() {
    let text = |text: &str| format!(r#""clip": ["2", 1], "text": "{text}""#);
    let read = |denoise: &str, positive: &str, negative: (&str, &str)| {
        let sampler = format!(r#"{SAMPLER}, "denoise": {denoise}"#);
        of_graph(&[
            ("KSampler", &sampler),
            LOADER,
            ("CLIPTextEncode", &text(positive)),
            negative,
            EMPTY,
        ])
    };
    let blurry = text("blurry");
    let blurry = ("CLIPTextEncode", &*blurry);
    assert_eq!(not_read(&read("1", "a fox", blurry)), [""; 0]);
    // Only a part of the ladder, but from noise.
    let part = read("0.5", "a fox", blurry);
    assert_eq!(
        not_read(&part),
        [
            "ComfyUI's sampler ran only the last part of its ladder, with a denoise of 0.5 on empty \
             latents, but here the whole ladder is run"
        ]
    );
    assert_eq!(part.get("Denoising strength"), None);
    // Zeros instead of a negative prompt.
    let zeros = ("ConditioningZeroOut", r#""conditioning": ["3", 0]"#);
    let zeros = read("1", "a fox", zeros);
    assert_eq!((&*zeros.prompt, &*zeros.negative), ("a fox", ""));
    assert_eq!(
        not_read(&zeros),
        ["ComfyUI's negative prompt was an embedding of zeros, but here it is the empty text"]
    );
    // Words that only look like a LoRA.
    let words = read("1", "a <lora:x:1> fox", blurry);
    assert_eq!(words.prompt, "a  fox");
    assert_eq!(
        not_read(&words),
        [
            "ComfyUI reads `<lora:x:1>` in a prompt as words and not as LoRAs, and they are left out \
          here"
        ]
    );
}

#[test]
fn a_refiner_is_the_same_with_samplers_of_one_step() {
    let read = |sampler: &str, refiner: (&str, &str)| {
        let settings = SAMPLER.replace("\"seed\"", "\"noise_seed\"");
        let settings = settings.replace("euler", sampler);
        let first = format!(
            r#"{settings}, "add_noise": "enable", "start_at_step": 0, "end_at_step": 15,
            "return_with_leftover_noise": "enable""#
        );
        let second = settings
            .replace(r#""model": ["2", 0]"#, r#""model": ["7", 0]"#)
            .replace(r#""latent_image": ["5", 0]"#, r#""latent_image": ["1", 0]"#);
        let second = format!(
            r#"{second}, "add_noise": "disable", "start_at_step": 15, "end_at_step": 99,
            "return_with_leftover_noise": "disable""#
        );
        let text = ("CLIPTextEncode", r#""clip": ["2", 1], "text": "a""#);
        let second = ("KSamplerAdvanced", &*second);
        of_graph(&[
            ("KSamplerAdvanced", &first),
            LOADER,
            text,
            text,
            EMPTY,
            second,
            refiner,
        ])
    };
    for (sampler, is_same) in [
        ("euler", true),
        ("heun", true),
        ("ddim", true),
        ("dpmpp_2m", false),
        ("euler_ancestral", false),
    ] {
        let infotext = read(sampler, LOADER);
        assert_eq!(infotext.get("Refiner"), Some("fox"));
        let anew = format!(
            "ComfyUI started `{sampler}` anew for the refiner, without the earlier steps and with \
             its own noise, but here it goes on"
        );
        let expected = if is_same { vec![] } else { vec![&*anew] };
        assert_eq!(not_read(&infotext), expected, "{sampler}");
    }
    // A model that cannot be read is no refiner, so the first sampler ran only a part.
    let infotext = read("euler", ("SomeonesLoader", r#""name": "x""#));
    assert_eq!(infotext.get("Refiner"), None);
    let part = "ComfyUI's sampler ran the steps from 0 to 15 of 20, and all are run here";
    assert!(not_read(&infotext).contains(&part), "{infotext:?}");
}

/// Returns the infotext of a PNG with these texts.
fn with_texts(texts: &[(&str, &str)]) -> Infotext {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 1, 1);
    for (key, text) in texts {
        encoder
            .add_text_chunk((*key).into(), (*text).into())
            .unwrap();
    }
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(&[0]).unwrap();
    drop(writer);
    Infotext::from_bytes(&bytes).unwrap().unwrap()
}

#[test]
fn early_commands_of_invokeai_have_no_spaces() {
    let names = [
        "Steps",
        "Sampler",
        "CFG scale",
        "Seed",
        "Size",
        "Denoising strength",
    ];
    let expected = ["50", "lms", "7.5", "42", "512x256"].map(Some);
    for (command, strength, unread) in [
        ("-s50 -b1 -W512 -H256 -C7.5 -mk_lms -S42", None, vec![]),
        (
            "-s 50 -W 512 -H 256 -C 7.5 -A k_lms -S 42 -f0.5",
            Some("0.5"),
            vec![],
        ),
        (
            "-s50 -W512 -H256 -C7.5 -Ak_lms -S42 -n2 -G0.9 -ft gfpgan -U4 0.95 --seamless",
            None,
            vec!["-n 2", "-G 0.9", "-ft gfpgan", "-U 4 0.95", "-seamless"],
        ),
    ] {
        let infotext = with_texts(&[("Dream", &format!("\"a fox\" {command}"))]);
        assert_eq!(infotext.prompt, "a fox");
        let found = names.map(|name| infotext.get(name));
        assert_eq!(found[..5], expected, "{command}");
        assert_eq!(found[5], strength);
        let unread: Vec<_> = unread
            .iter()
            .map(|option| format!("InvokeAI's option `{option}` is ignored"))
            .collect();
        assert_eq!(not_read(&infotext), unread, "{command}");
    }
}

#[test]
fn options_of_novelai_have_their_own_usual_values() {
    let read = |prompt: &str, options: &str| {
        let comment = format!(
            r#"{{"prompt": "{prompt}", "steps": 5, "sampler": "k_euler", "scale": 7, "seed": 1,
            "uc": "", "request_type": "PromptGenerateRequest"{options}}}"#
        );
        with_texts(&[("Software", "NovelAI"), ("Comment", &comment)])
    };
    let usual = r#", "cfg_rescale": 0, "uncond_scale": 1.0, "noise": 0, "controlnet_strength": 1"#;
    assert_eq!(not_read(&read("a", usual)), [""; 0]);
    for option in [
        "cfg_rescale: 1",
        "uncond_scale: 0",
        "noise: 1",
        "controlnet_strength: 0",
    ] {
        let (key, value) = option.split_once(": ").unwrap();
        let infotext = read("a", &format!(r#", "{key}": {value}"#));
        assert_eq!(
            not_read(&infotext),
            [format!("NovelAI's `{option}` is ignored")]
        );
    }
    let operators =
        "`AND`, `BREAK`, `#`, `<` and `|` in a prompt may mean something else here than in NovelAI";
    for (prompt, is_said) in [
        ("a fox, BRAND new, {red}", false),
        ("a fox AND an owl", true),
        ("a BREAK b", true),
        ("#1", true),
        ("a <b>", true),
        ("a | b", true),
    ] {
        let differences = read(prompt, "").request().differences;
        let found = differences.iter().filter(|it| *it == operators).count();
        assert_eq!(found, usize::from(is_said), "{prompt}");
    }
}
