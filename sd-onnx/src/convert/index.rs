//! `model_index.json`: the pipeline class of diffusers, and the class of each of its parts.

use sd_text::outside::printable;
use serde_json::{Map, Value, json};

use super::parts::Parts;
use crate::{Error, checkpoint::Family};

/// The version of diffusers whose folders are written.
const VERSION: &str = "0.42.1";

/// Parts of a pipeline that are never converted, by the classes that have them. diffusers wants
/// each one named, with the empty class for one that is not there.
const ABSENT: [(&str, &[&str]); 2] = [
    (
        "StableDiffusionXL",
        &["feature_extractor", "image_encoder"],
    ),
    ("", &["feature_extractor", "image_encoder", "safety_checker"]),
];

/// What the index of a model says.
pub(super) fn of(parts: &Parts, lost: &mut Vec<String>) -> Result<Map<String, Value>, Error> {
    let class = match parts.source.class() {
        "" => {
            let class = by_family(parts.family());
            lost.push(format!(
                "the pipeline class is of the model's own, and its code is not copied: {class} \
                 takes its place"
            ));
            class
        }
        class => class,
    };
    let mut index = Map::new();
    let mut set = |key: &str, value: Value| index.insert(key.to_owned(), value);
    set("_class_name", json!(class));
    set("_diffusers_version", json!(VERSION));
    let absent = ABSENT.iter().find(|(start, _)| class.starts_with(start));
    for name in absent.map_or(&[][..], |(_, names)| names) {
        set(name, json!([null, null]));
    }
    if !class.starts_with("StableDiffusionXL") {
        set("requires_safety_checker", json!(false));
    } else {
        set(
            "force_zeros_for_empty_prompt",
            json!(parts.source.zero_empty_negative()),
        );
        // A part that only some pipelines of SDXL do without.
        for name in ["text_encoder", "tokenizer"] {
            set(name, json!([null, null]));
        }
    }
    if let Some(score) = parts.source.takes_score() {
        set("requires_aesthetics_score", json!(score));
    }
    if parts.source.is_cosxl_edit() {
        set("is_cosxl_edit", json!(true));
    }
    for network in &parts.networks {
        let named = |key| network.config.get(key).and_then(Value::as_str);
        let (library, class) = match network.component {
            "text_encoder" => ("transformers", "CLIPTextModel"),
            "text_encoder_2" => ("transformers", "CLIPTextModelWithProjection"),
            "vae" => ("diffusers", named("_class_name").unwrap_or("AutoencoderKL")),
            _ => ("diffusers", "UNet2DConditionModel"),
        };
        set(network.component, json!([library, class]));
    }
    for tower in parts.source.towers() {
        set(tower.tokenizer, json!(["transformers", "CLIPTokenizer"]));
    }
    let scheduler: Value = parts.scheduler_values()?;
    let class = scheduler["_class_name"].as_str().unwrap_or("PNDMScheduler");
    set("scheduler", json!(["diffusers", printable(class)]));
    for name in parts.source.other_components() {
        lost.push(format!(
            "`{}` is not converted, and the new model does without it",
            printable(name)
        ));
    }
    Ok(index)
}

/// diffusers' class for pictures from text.
fn by_family(family: Family) -> &'static str {
    match family {
        Family::Sd1 | Family::Sd2 => "StableDiffusionPipeline",
        Family::Xl => "StableDiffusionXLPipeline",
        Family::Refiner => "StableDiffusionXLImg2ImgPipeline",
    }
}
