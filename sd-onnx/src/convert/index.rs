//! Builds `model_index.json`, which names the classes of the pipeline and its parts in diffusers.

use sd_text::outside::printable;
use serde_json::{Map, Value, json};

use super::parts::{Parts, Vision};
use crate::{
    Error,
    checkpoint::Task,
    source::{IMAGE_ENCODER, PREPROCESSING},
};

/// The version of diffusers whose layout the folders follow.
const VERSION: &str = "0.42.1";

/// Parts of a pipeline that no checkpoint file has, by the prefix of the pipeline class. diffusers
/// expects every part of a class to be named, with nulls for an absent one.
const ABSENT: [(&str, &[&str]); 3] = [
    ("StableDiffusionXLInstructPix2Pix", &[]),
    ("StableDiffusionXL", &[PREPROCESSING, IMAGE_ENCODER]),
    ("", &[PREPROCESSING, IMAGE_ENCODER, "safety_checker"]),
];

/// Returns the `model_index.json` of the new model. Entries of the old index that do not name a
/// class are kept, such as `force_zeros_for_empty_prompt`.
pub(super) fn of(
    parts: &Parts,
    vision: Option<&Vision>,
    lost: &mut Vec<String>,
) -> Result<Map<String, Value>, Error> {
    let mut index = parts.source.index()?;
    let class = class(parts, lost);
    let beside = of_vision(vision);
    leave_out(&mut index, &beside, lost);
    let is_of_folder = index.contains_key("_class_name");
    index.retain(|key, value| !is_there(value) && !key.starts_with('_'));
    let mut set = |key: &str, value: Value| index.insert(key.to_owned(), value);
    set("_class_name", json!(class));
    set("_diffusers_version", json!(VERSION));
    let is_xl = class.starts_with("StableDiffusionXL");
    let absent = ABSENT.iter().find(|(start, _)| class.starts_with(start));
    for name in absent.map_or(&[][..], |(_, names)| names) {
        if !is_of_folder {
            set(name, json!([null, null]));
        }
    }
    if is_xl {
        let zeros = parts.source.zero_empty_negative();
        set("force_zeros_for_empty_prompt", json!(zeros));
        // The refiner has neither. For SDXL's base the real entries are set below.
        for name in ["text_encoder", "tokenizer"] {
            set(name, json!([null, null]));
        }
    } else {
        set("requires_safety_checker", json!(false));
    }
    for network in &parts.networks {
        let (library, class) = match network.component {
            "text_encoder" => ("transformers", "CLIPTextModel"),
            "text_encoder_2" => ("transformers", "CLIPTextModelWithProjection"),
            "vae" => {
                let class = network.config.get("_class_name").and_then(Value::as_str);
                ("diffusers", class.unwrap_or("AutoencoderKL"))
            }
            _ => ("diffusers", "UNet2DConditionModel"),
        };
        set(network.component, json!([library, class]));
    }
    for (name, value) in beside {
        set(name, value);
    }
    for tower in parts.source.towers() {
        set(tower.tokenizer, json!(["transformers", "CLIPTokenizer"]));
    }
    let scheduler = parts.scheduler_values()?;
    let class = scheduler.get("_class_name").and_then(Value::as_str);
    set(
        "scheduler",
        json!(["diffusers", class.unwrap_or("PNDMScheduler")]),
    );
    Ok(index)
}

/// Returns the entries of the vision model and of the preprocessing of its pictures.
fn of_vision(vision: Option<&Vision>) -> Vec<(&'static str, Value)> {
    let Some(vision) = vision else {
        return Vec::new();
    };
    let mut entries = vec![(
        IMAGE_ENCODER,
        json!(["transformers", "CLIPVisionModelWithProjection"]),
    )];
    if vision.preprocessor.is_some() {
        entries.push((PREPROCESSING, json!(["transformers", "CLIPImageProcessor"])));
    }
    entries
}

/// Returns the pipeline class, which replaces a custom one.
fn class<'a>(parts: &'a Parts, lost: &mut Vec<String>) -> &'a str {
    match parts.source.class() {
        "" => {
            let class = parts.family().class(Task::Draw, false);
            lost.push(format!(
                "the pipeline class is a custom one, whose code is not copied: {class} takes its \
                 place"
            ));
            class
        }
        class => class,
    }
}

/// Marks the parts of the pipeline that are not converted as absent.
fn leave_out(index: &mut Map<String, Value>, beside: &[(&str, Value)], lost: &mut Vec<String>) {
    let written = [
        "unet",
        "vae",
        "text_encoder",
        "text_encoder_2",
        "tokenizer",
        "tokenizer_2",
    ];
    let kept = |name: &String| {
        let is_beside = beside.iter().any(|(beside, _)| beside == name);
        written.contains(&name.as_str())
            || is_beside
            || name == "scheduler"
            || name.starts_with('_')
    };
    for (name, value) in index.iter_mut() {
        if is_there(value) && !kept(name) {
            let name = printable(name);
            lost.push(format!("`{name}` is not converted and is left out"));
            *value = json!([null, null]);
        }
    }
}

/// Returns whether the value of an index names a class, `[library, class]`.
fn is_there(value: &Value) -> bool {
    value
        .as_array()
        .is_some_and(|list| !list[..].contains(&Value::Null))
}
