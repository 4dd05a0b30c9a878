//! InvokeAI's metadata: `invokeai_metadata` of versions 3 and later, `sd-metadata` of version 2,
//! and the command `Dream` of version 1.

use std::sync::LazyLock;

use regex::Regex;
use sd_text::outside::printable;
use serde_json::{Map, Value};

use super::{Building, is_off, lora, parsed, shown, written};
use crate::infotext::{INVOKEAI, Infotext, InfotextError, keys};

/// The start of the value of `Version`.
pub(in crate::infotext) const VERSION: &str = "InvokeAI";

const UNREADABLE: InfotextError = InfotextError::OtherFormat(INVOKEAI);

/// Reads `invokeai_metadata`.
pub(in crate::infotext) fn metadata(text: &str) -> Result<Infotext, InfotextError> {
    let Some(Value::Object(all)) = parsed(text) else {
        return Err(UNREADABLE);
    };
    if !all.contains_key("steps") || !all.contains_key("scheduler") {
        return Err(UNREADABLE);
    }
    let get = |key: &str| all.get(key).and_then(written);
    let mut building = Building {
        prompt: get("positive_prompt").unwrap_or_default(),
        negative: get("negative_prompt").unwrap_or_default(),
        ..Building::default()
    };
    let loras = all.get("loras").and_then(Value::as_array);
    for called in loras.into_iter().flatten() {
        let model = ["lora", "model"].iter().find_map(|key| called.get(key));
        let name = model.and_then(name);
        match (name, called.get("weight").and_then(Value::as_f64)) {
            (Some(name), Some(weight)) => building.prompt += &lora(&name, weight, weight),
            _ => building.unread(format!("InvokeAI's LoRA `{}` is ignored", shown(called))),
        }
    }
    building.entry(keys::STEPS, get("steps"));
    scheduler(&mut building, &get("scheduler").unwrap_or_default());
    building.entry(keys::CFG_SCALE, get("cfg_scale"));
    building.entry(keys::SEED, get("seed"));
    building.size(get("width"), get("height"));
    // The noise of the CPU is the default.
    let rng = match get("rand_device").as_deref() {
        None | Some("cpu") => "CPU",
        Some(_) => "GPU",
    };
    building.entry(keys::RNG, Some(rng));
    let model = all.get("model");
    let hash = model
        .and_then(|model| model.get("hash"))
        .and_then(Value::as_str);
    // Newer versions write `blake3:…`, which is not the hash of WebUI.
    building.entry(keys::MODEL_HASH, hash.filter(|hash| !hash.contains(':')));
    building.entry(keys::MODEL, model.and_then(name));
    building.entry("VAE", all.get("vae").and_then(name));
    let skipped = all
        .get("clip_skip")
        .and_then(Value::as_u64)
        .filter(|&it| it > 0);
    building.entry(
        keys::CLIP_SKIP,
        skipped.and_then(|skipped| skipped.checked_add(1)),
    );
    building.entry(keys::DENOISING_STRENGTH, get("strength"));
    for (key, style, prompt) in [
        (
            keys::SD_PROMPT_2,
            "positive_style_prompt",
            "positive_prompt",
        ),
        (
            keys::SD_NEGATIVE_PROMPT_2,
            "negative_style_prompt",
            "negative_prompt",
        ),
    ] {
        let style = get(style).filter(|style| Some(style) != get(prompt).as_ref());
        building.entry(key, style);
    }
    let text_to_image = |value: &Value| value.as_str().is_some_and(|it| it.ends_with("txt2img"));
    others(&mut building, &all, &KNOWN, |key, value| {
        key == "generation_mode" && text_to_image(value)
    });
    let version = get("app_version").unwrap_or_default();
    Ok(building.done(format!("{VERSION} {version}").trim_end()))
}

/// Reads `sd-metadata`.
pub(in crate::infotext) fn sd_metadata(text: &str) -> Result<Infotext, InfotextError> {
    let Some(Value::Object(all)) = parsed(text) else {
        return Err(UNREADABLE);
    };
    let Some(image) = all.get("image").and_then(Value::as_object) else {
        return Err(UNREADABLE);
    };
    let get = |key: &str| image.get(key).and_then(written);
    let mut building = Building::default();
    let prompts = match image.get("prompt") {
        Some(Value::Array(prompts)) => &prompts[..],
        Some(prompt) => std::slice::from_ref(prompt),
        None => return Err(UNREADABLE),
    };
    for (i, prompt) in prompts.iter().enumerate() {
        let text = prompt.get("prompt").unwrap_or(prompt);
        let text = text.as_str().unwrap_or_default();
        let weight = prompt.get("weight").and_then(Value::as_f64).unwrap_or(1.0);
        if i == 0 && weight == 1.0 {
            split(&mut building, text);
        } else {
            building.unread(format!(
                "InvokeAI's prompt `{}` with the weight {weight} is ignored",
                printable(text)
            ));
        }
    }
    building.entry(keys::STEPS, get("steps"));
    scheduler(&mut building, &get("sampler").unwrap_or_default());
    building.entry(keys::CFG_SCALE, get("cfg_scale"));
    building.entry(keys::SEED, get("seed"));
    building.size(get("width"), get("height"));
    let hash = all.get("model_hash").and_then(written);
    // WebUI writes ten digits.
    building.entry(
        keys::MODEL_HASH,
        hash.map(|hash| hash.chars().take(10).collect::<String>()),
    );
    building.entry(keys::MODEL, all.get("model_weights").and_then(written));
    building.entry(keys::DENOISING_STRENGTH, get("strength"));
    others(&mut building, image, &OF_IMAGE, |key, value| {
        key == "type" && value.as_str() == Some("txt2img")
    });
    let version = all.get("app_version").and_then(written).unwrap_or_default();
    Ok(building.done(format!("{VERSION} {version}").trim_end()))
}

/// Reads the command `Dream`: the prompt in quotes, and options of one or two letters.
pub(in crate::infotext) fn dream(command: &str) -> Result<Infotext, InfotextError> {
    let command = command.trim();
    let Some((prompt, options)) = command.strip_prefix('"').and_then(|it| it.split_once('"'))
    else {
        return Err(UNREADABLE);
    };
    let mut building = Building::default();
    split(&mut building, prompt);
    let (mut found, mut unread) = (Vec::new(), Vec::new());
    for option in OPTION.captures_iter(options) {
        // Each form has two groups.
        let form = [1, 3, 5].into_iter().find(|&i| option.get(i).is_some());
        let form = form.unwrap_or(1);
        let [key, value] = [form, form + 1].map(|i| option.get(i).map_or("", |it| it.as_str()));
        let value = value.trim();
        match key {
            "s" | "A" | "m" | "C" | "S" | "W" | "H" | "f" => found.push((key, value)),
            // The numbers of pictures.
            "b" | "n" if value == "1" => {}
            _ => unread.push(format!("-{key} {value}").trim_end().to_owned()),
        }
    }
    let get = |key| {
        found
            .iter()
            .rev()
            .find(|(found, _)| *found == key)
            .map(|(_, value)| *value)
    };
    building.entry(keys::STEPS, get("s"));
    scheduler(&mut building, get("A").or(get("m")).unwrap_or("k_lms"));
    building.entry(keys::CFG_SCALE, get("C"));
    building.entry(keys::SEED, get("S"));
    building.size(get("W"), get("H"));
    building.entry(keys::DENOISING_STRENGTH, get("f"));
    for option in unread {
        building.unread(format!(
            "InvokeAI's option `{}` is ignored",
            printable(option)
        ));
    }
    Ok(building.done(VERSION))
}

/// An option and its value. In the first versions, a value may follow its letter without a space:
/// `-s50`, `-mk_lms`.
static OPTION: LazyLock<Regex> = LazyLock::new(|| {
    let values = r"(?:[\s=]+[^\s-]\S*)*";
    let number = format!(r"-([A-Za-z])([0-9.]\S*{values})");
    let sampler = r"-([Am])([a-z]\S*)";
    let spaced = format!(r"-{{1,2}}([A-Za-z_]+)({values})");
    let expression = format!(r"(?:^|\s)(?:{number}|{sampler}|{spaced})");
    Regex::new(&expression).expect("the expression is constant")
});

/// Splits a prompt of version 1 or 2, whose negative prompts are in square brackets.
fn split(building: &mut Building, text: &str) {
    let (mut positive, mut negative) = (Vec::new(), Vec::new());
    let mut rest = text;
    while let Some((before, inside)) = rest.split_once('[') {
        let Some((inside, after)) = inside.split_once(']') else {
            break;
        };
        positive.push(before);
        negative.push(inside);
        rest = after;
    }
    positive.push(rest);
    let joined = |parts: Vec<&str>| {
        let parts = parts.into_iter().map(|part| part.trim_matches([' ', ',']));
        parts
            .filter(|part| !part.is_empty())
            .collect::<Vec<_>>()
            .join(", ")
    };
    (building.prompt, building.negative) = (joined(positive), joined(negative));
}

/// Adds the sampler by its class in diffusers, and the ladder, which InvokeAI's names contain.
fn scheduler(building: &mut Building, name: &str) {
    let plain = name.strip_prefix("k_").unwrap_or(name);
    let (plain, is_karras) = match plain.strip_suffix("_k") {
        Some(plain) => (plain, true),
        None => (plain, false),
    };
    let known = CLASSES.iter().find(|(known, ..)| *known == plain);
    let Some((_, ours, class)) = known else {
        building.entry(keys::SAMPLER, Some(name));
        return;
    };
    building.entry(keys::SAMPLER, Some(ours));
    building.entry("Scheduler", Some(class));
    building.entry(keys::SCHEDULE_TYPE, is_karras.then_some("Karras"));
}

/// InvokeAI's names of samplers, this crate's names, and the classes in diffusers. See
/// `invokeai/backend/stable_diffusion/schedulers/schedulers.py`.
const CLASSES: [(&str, &str, &str); 22] = [
    ("ddim", "ddim", "DDIMScheduler"),
    ("ddpm", "ddpm", "DDPMScheduler"),
    ("deis", "deis", "DEISMultistepScheduler"),
    ("lms", "lms", "LMSDiscreteScheduler"),
    ("pndm", "pndm", "PNDMScheduler"),
    ("plms", "pndm", "PNDMScheduler"),
    ("heun", "heun", "HeunDiscreteScheduler"),
    ("euler", "euler", "EulerDiscreteScheduler"),
    ("euler_a", "euler-a", "EulerAncestralDiscreteScheduler"),
    ("kdpm_2", "dpm2", "KDPM2DiscreteScheduler"),
    ("dpm_2", "dpm2", "KDPM2DiscreteScheduler"),
    ("kdpm_2_a", "dpm2-a", "KDPM2AncestralDiscreteScheduler"),
    ("dpm_2_a", "dpm2-a", "KDPM2AncestralDiscreteScheduler"),
    ("dpmpp_2s", "dpmpp-2s", "DPMSolverSinglestepScheduler"),
    ("dpmpp_2", "dpmpp-2m", "DPMSolverMultistepScheduler"),
    ("dpmpp_2m", "dpmpp-2m", "DPMSolverMultistepScheduler"),
    (
        "dpmpp_2m_sde",
        "dpmpp-2m-sde",
        "DPMSolverMultistepScheduler",
    ),
    ("dpmpp_3m", "dpmpp-3m", "DPMSolverMultistepScheduler"),
    ("dpmpp_sde", "dpmpp-sde", "DPMSolverSDEScheduler"),
    ("unipc", "unipc", "UniPCMultistepScheduler"),
    ("lcm", "lcm", "LCMScheduler"),
    ("tcd", "tcd", "TCDScheduler"),
];

/// Returns the name of a model, which is an object or a text.
fn name(model: &Value) -> Option<String> {
    let keys = ["name", "model_name"];
    let named = keys.iter().find_map(|key| model.get(key)).unwrap_or(model);
    written(named)
}

/// Adds what is not read: every key that is not in `known`, unless it is off or inert.
fn others(
    building: &mut Building,
    all: &Map<String, Value>,
    known: &[&str],
    is_inert: impl Fn(&str, &Value) -> bool,
) {
    for (key, value) in all {
        if !known.contains(&key.as_str()) && !is_off(value) && !is_inert(key, value) {
            let entry = format!("{}: {}", printable(key), shown(value));
            building.unread(format!("InvokeAI's `{entry}` is ignored"));
        }
    }
}

/// Keys of `invokeai_metadata` that are read, and keys that do not change the picture.
const KNOWN: [&str; 18] = [
    "positive_prompt",
    "negative_prompt",
    "positive_style_prompt",
    "negative_style_prompt",
    "loras",
    "steps",
    "scheduler",
    "cfg_scale",
    "seed",
    "width",
    "height",
    "rand_device",
    "model",
    "vae",
    "clip_skip",
    "strength",
    "app_version",
    "canvas_v2_metadata",
];

/// Keys of `image` in `sd-metadata` that are read.
const OF_IMAGE: [&str; 8] = [
    "prompt",
    "steps",
    "sampler",
    "cfg_scale",
    "seed",
    "width",
    "height",
    "strength",
];

#[cfg(test)]
// A failed `unwrap` is a failed test.
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn each_sampler_has_a_row_of_its_class() {
        for (name, ours, class) in CLASSES {
            let row = sd_schedulers::by_name(ours).unwrap_or_else(|| panic!("{name}: no {ours}"));
            let classes = row.diffusers.unwrap_or_default();
            assert!(
                classes.contains(class),
                "{name}: {ours} is {classes}, not {class}"
            );
        }
    }
}
