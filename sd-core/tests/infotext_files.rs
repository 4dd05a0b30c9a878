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
