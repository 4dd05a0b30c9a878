//! Infotexts in files of other programs, against what sd-parsers reads.

// A failed `unwrap` is a failed test.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, env, fs, path::Path, time::Instant};

use sd_core::{
    Infotext, Prompt, Start, files,
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
        compare(
            "scheduler",
            infotext.get("Scheduler"),
            sampler.scheduler.as_deref(),
        );
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
    // sd-parsers takes the texts of both sides for either, as it does not look at the outputs of
    // ControlNetApplyAdvanced. The texts of this file differ, so ours are among them.
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
