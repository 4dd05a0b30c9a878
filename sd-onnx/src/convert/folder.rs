//! Writes a diffusers folder, as `save_pretrained` of diffusers 0.42.1 does.

use std::{borrow::Cow, collections::BTreeMap, fs, path::Path};

use sd_text::ClipTokenizer;
use serde_json::{Map, Value};

use super::{
    Steps, index,
    output::Output,
    parts::{Parts, Vision},
    tensors, tokenizers,
};
use crate::{
    ConvertError, Error,
    config::{Config, MOST_CONFIG},
    source::{PREPROCESSING, PREPROCESSOR, TokenizerFiles, TowerParts},
};

/// The metadata that transformers requires in a safetensors file.
fn metadata() -> BTreeMap<String, String> {
    [("format".to_owned(), "pt".to_owned())].into()
}

/// Writes the folder. Returns what the folder cannot store, one sentence each.
pub(super) fn write<'c>(
    parts: &Parts,
    output: &Output,
    mut steps: Steps<'c>,
) -> Result<(Steps<'c>, Vec<String>), ConvertError> {
    let mut lost = Vec::new();
    let root = output.place();
    output.folder(root)?;
    let mut networks = Vec::new();
    let vision = parts.vision.as_ref();
    let pipeline = parts.networks.iter();
    for network in pipeline.chain(vision.map(|vision| &vision.network)) {
        let is_text = network.component.starts_with("text_encoder");
        // Every version of transformers loads these names. From version 5 on, `CLIPTextModel` has
        // no such prefix itself and strips it from the file's names.
        let tensors = match is_text {
            true => network.whole_text(steps.conversion),
            false => network.whole(steps.conversion),
        };
        steps.expect(&tensors);
        networks.push((network, tensors));
    }
    for (network, mut tensors) in networks {
        let folder = root.join(network.component);
        output.folder(&folder)?;
        let config = pretty(&Value::Object(network.config.clone()));
        output.write(&folder.join("config.json"), config)?;
        let name = match network.component {
            "unet" | "vae" => "diffusion_pytorch_model.safetensors",
            _ => "model.safetensors",
        };
        let path = folder.join(name);
        tensors::safetensors(output, &path, &mut tensors, &metadata(), &mut steps)?;
    }
    if let Some(preprocessor) = vision.and_then(|vision| vision.preprocessor.as_ref()) {
        let folder = root.join(PREPROCESSING);
        output.folder(&folder)?;
        let text = pretty(&Value::Object(preprocessor.clone()));
        output.write(&folder.join(PREPROCESSOR), text)?;
    }
    common(parts, vision, output, &mut lost)?;
    Ok((steps, lost))
}

/// Writes the files beside the networks of a diffusers folder: scheduler, tokenizers, index. The
/// index names the vision model if the folder has it.
pub(super) fn common(
    parts: &Parts,
    vision: Option<&Vision>,
    output: &Output,
    lost: &mut Vec<String>,
) -> Result<(), ConvertError> {
    let root = output.place();
    let scheduler = root.join("scheduler");
    output.folder(&scheduler)?;
    output.write(
        &scheduler.join("scheduler_config.json"),
        scheduler_text(parts)?.as_bytes(),
    )?;
    for tower in parts.source.towers() {
        tokenizer(parts, tower, &root.join(tower.tokenizer), output, lost)?;
    }
    let index = index::of(parts, vision, lost)?;
    output.write(
        &root.join("model_index.json"),
        pretty(&Value::Object(index)),
    )?;
    Ok(())
}

/// Returns the text of `scheduler_config.json`. If the model has such a file and the caller changed
/// nothing in it, the text is the file's own.
fn scheduler_text(parts: &Parts) -> Result<Cow<'_, str>, ConvertError> {
    let (path, own) = parts.source.scheduler()?;
    // A checkpoint has no such file. Its text is generated, and the path is the checkpoint's.
    if path.ends_with("scheduler_config.json") && own == parts.scheduler {
        return Ok(Cow::Borrowed(&parts.scheduler));
    }
    let text = pretty(&Value::Object(parts.scheduler_values()?));
    // Reading and rewriting the JSON turned Python's `-Infinity` into null.
    let infinite = LEAST_LAMBDA.replace("null", "-Infinity");
    Ok(Cow::Owned(text.replace(LEAST_LAMBDA, &infinite)))
}

/// A key of the DPM-Solver classes. Its only value that is not a number is `-Infinity`.
const LEAST_LAMBDA: &str = "\"lambda_min_clipped\": null";

/// Writes a tokenizer's files, and checks that they are read as the same tokenizer. Adds the
/// differences that remain to `lost`.
fn tokenizer(
    parts: &Parts,
    tower: &TowerParts,
    folder: &Path,
    output: &Output,
    lost: &mut Vec<String>,
) -> Result<(), ConvertError> {
    output.folder(folder)?;
    match parts.source.tokenizer_files(*tower)? {
        TokenizerFiles::Made(files) => {
            for (name, text) in files {
                output.write(&folder.join(name), text)?;
            }
        }
        TokenizerFiles::Copied(files) => {
            for from in files {
                let name = from.file_name().unwrap_or_default();
                // The tokenizer's reader has already read this file and checked its length.
                let bytes = fs::read(&from).map_err(Error::io(&from))?;
                output.write(&folder.join(name), bytes)?;
            }
        }
    }
    let expected = parts.source.tokenizer(*tower)?;
    let differences = || {
        Ok::<_, Error>(tokenizers::differences(
            tower.tokenizer,
            [&expected, &ClipTokenizer::load(folder)?],
        ))
    };
    if let Some(words) = differences()? {
        lost.extend(words);
        return Ok(());
    }
    // The caller's tokenizer folder can name another padding token than the model's family uses.
    let pad = expected.token(expected.pad()).unwrap_or_default();
    for name in ["tokenizer_config.json", "special_tokens_map.json"] {
        let path = folder.join(name);
        let mut config = match path.is_file() {
            true => Config::open(&path, MOST_CONFIG)?,
            false => Config::of(&path, Map::new()),
        };
        config.set("pad_token", Value::String(pad.clone()));
        output.write(&path, pretty(&Value::Object(config.into_map())))?;
    }
    let Some(words) = differences()? else {
        return Err(parts.failed(format!(
            "the files of `{}` cannot represent the tokenizer",
            tower.tokenizer
        )));
    };
    lost.extend(words);
    Ok(())
}

/// Formats JSON as Python's libraries write it.
pub(super) fn pretty(value: &Value) -> String {
    let text = serde_json::to_string_pretty(value);
    text.expect("the keys of a JSON value are texts") + "\n"
}
