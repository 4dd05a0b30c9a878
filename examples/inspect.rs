//! Identifies a model file or folder without loading it.
//!
//! ```sh
//! cargo run --release --example inspect -- examples/models/emoji
//! ```

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use sd_examples::{Failure, print, print_json};
use sd_onnx::{Adapter, ControlFacts, Hashes, Inspection, Part};
use sd_text::outside::printable;
use serde::Serialize;

/// Identifies a model file or folder without loading its weights.
///
/// It knows checkpoints, UNets, VAEs, text encoders, LoRAs, textual inversions, ControlNets,
/// T2I-Adapters, IP-Adapters and upscalers as safetensors, pickle or GGUF files, and model folders
/// of diffusers or of ONNX graphs.
///
/// The line "memory" shows the size of the weights in f32, the type used on the CPU. Working memory
/// comes on top.
///
/// A checkpoint can be loaded if no line "problem" and no line "missing" is shown. In a folder, the
/// files of the tokenizer and the scheduler and the inputs of ONNX graphs are not checked. The exit
/// code is 0 in any case.
#[derive(Parser)]
#[command(name = "inspect", version, verbatim_doc_comment)]
struct Arguments {
    /// File or folder
    path: PathBuf,
    /// Also print the hashes that WebUI and model sites show, which requires reading the whole file
    #[arg(long)]
    hash: bool,
    /// Print JSON: the fields of `sd_onnx::Inspection` and, with --hash, also `hashes`
    #[arg(long)]
    json: bool,
}

/// The object that `--json` prints.
#[derive(Serialize)]
struct Found<'a> {
    #[serde(flatten)]
    inspection: &'a Inspection,
    #[serde(skip_serializing_if = "Option::is_none")]
    hashes: Option<&'a Hashes>,
}

fn main() -> ExitCode {
    sd_examples::main(run)
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    let inspection = sd_onnx::inspect(&arguments.path).map_err(Failure::work)?;
    let hashes = arguments.hash.then(|| sd_onnx::hashes(&arguments.path));
    let hashes = hashes.transpose().map_err(Failure::work)?;
    if arguments.json {
        return print_json(&Found {
            inspection: &inspection,
            hashes: hashes.as_ref(),
        });
    }
    let lines = lines(&inspection, hashes.as_ref());
    lines
        .iter()
        .try_for_each(|line| print(format_args!("{line}")))
}

/// The largest number of metadata values that are shown.
const MOST_METADATA: usize = 40;
/// The length of the longest metadata value that is not cut off, in characters.
const LONGEST: usize = 100;

/// Returns the lines that describe a model.
fn lines(found: &Inspection, hashes: Option<&Hashes>) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = |name: &str, value: &str| lines.push(format!("{name:<14} {}", printable(value)));
    line("path", &found.path.display().to_string());
    line("kind", &found.kind);
    line("format", &found.format);
    if let (Some(prediction), Some(because)) = (&found.prediction, &found.prediction_because) {
        line("predicts", &format!("{prediction}, {because}"));
    }
    if let Some(class) = &found.class {
        line("class", class);
    }
    for part in &found.parts {
        line(&part.name, &sizes(part));
    }
    let facts = found.adapter.iter().flat_map(adapter);
    for (name, value) in facts.chain(found.control.iter().flat_map(control)) {
        line(name, &value);
    }
    if let Some(memory) = found.memory {
        line(
            "memory",
            &format!("{} of weights once loaded", gigabytes(memory)),
        );
    }
    for missing in &found.missing {
        line("missing", missing);
    }
    for problem in &found.problems {
        line("problem", problem);
    }
    for warning in &found.warnings {
        line("warning", warning);
    }
    if let Some(hashes) = hashes {
        line("sha256", &hashes.sha256);
        line(
            "hash",
            &format!("{} (of 2022: {})", hashes.auto_v2, hashes.auto_v1),
        );
        if let Some(data) = &hashes.data_sha256 {
            line("data sha256", data);
        }
    }
    for (key, value) in found.metadata.iter().take(MOST_METADATA) {
        let value = match value.char_indices().nth(LONGEST) {
            Some((end, _)) => format!("{}… ({} characters)", &value[..end], value.chars().count()),
            None => value.clone(),
        };
        line("metadata", &format!("{key}: {value}"));
    }
    if found.metadata.len() > MOST_METADATA {
        line(
            "metadata",
            &format!("and {} more", found.metadata.len() - MOST_METADATA),
        );
    }
    lines
}

/// Returns the size of a part: its tensors, parameters, bytes and types.
fn sizes(part: &Part) -> String {
    let types = part.types.iter();
    let types = types.map(|(name, count)| match part.types.len() {
        1 => name.clone(),
        _ => format!("{name} × {count}"),
    });
    format!(
        "{} tensors, {} parameters, {} of {}",
        part.tensors,
        part.parameters,
        gigabytes(part.bytes),
        types.collect::<Vec<_>>().join(", ")
    )
}

/// Returns a number of bytes in kB, MB or GB.
fn gigabytes(bytes: u64) -> String {
    match bytes as f64 {
        bytes if bytes >= 1e9 => format!("{:.2} GB", bytes / 1e9),
        bytes if bytes >= 1e6 => format!("{:.1} MB", bytes / 1e6),
        bytes => format!("{:.1} kB", bytes / 1e3),
    }
}

/// Returns the lines that describe a LoRA or a related adapter.
fn adapter(found: &Adapter) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    if let Some(family) = &found.family {
        lines.push(("for", family.clone()));
    }
    let rank = found.rank.map(|rank| format!(", rank {rank}"));
    let alpha = found.alpha.map(|alpha| format!(", alpha {alpha}"));
    let formats = found.formats.join(", ");
    let (rank, alpha) = (rank.unwrap_or_default(), alpha.unwrap_or_default());
    lines.push(("adapter", format!("{formats}{rank}{alpha}")));
    let layers = found.layers.iter();
    let layers: Vec<_> = layers
        .map(|(network, count)| format!("{count} in the {network}"))
        .collect();
    lines.push(("layers", layers.join(", ")));
    if !found.inversions.is_empty() {
        lines.push(("embeddings", found.inversions.join(", ")));
    }
    for (name, value) in [
        ("title", &found.title),
        ("base model", &found.base_model),
        ("trigger", &found.trigger_phrase),
    ] {
        lines.extend(value.clone().map(|value| (name, value)));
    }
    if !found.tags.is_empty() {
        let tags = found.tags.iter().take(MOST_TAGS);
        let tags: Vec<_> = tags
            .map(|(tag, count)| format!("{tag} ({count})"))
            .collect();
        lines.push(("tags", tags.join(", ")));
    }
    lines
}

/// Returns the lines that describe a ControlNet, a T2I-Adapter or an IP-Adapter.
fn control(found: &ControlFacts) -> Vec<(&'static str, String)> {
    let encoder = found.encoder.as_ref();
    let lines = [
        ("for", found.family.clone()),
        ("channels", found.channels.map(|count| count.to_string())),
        ("tokens", found.tokens.map(|count| count.to_string())),
        ("encoder", encoder.map(|path| path.display().to_string())),
    ];
    let lines = lines.into_iter();
    lines
        .filter_map(|(name, value)| Some((name, value?)))
        .collect()
}

/// The largest number of tags that are shown.
const MOST_TAGS: usize = 12;
