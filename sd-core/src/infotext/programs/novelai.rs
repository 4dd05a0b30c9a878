//! NovelAI's metadata: a JSON `Comment`, beside the texts `Description`, `Software` and `Source`.
//!
//! The mapping follows `read_info_from_image` in WebUI's `modules/images.py`, with the keys that
//! NovelAI added later. `Clip skip: 2` and `ENSD: 31337` are NovelAI's, and not in the file.

use sd_text::outside::printable;
use serde_json::{Map, Value};

use super::{Building, is_off, parsed, shown, written};
use crate::infotext::{Infotext, InfotextError, NOVELAI, keys};

/// The value of `Software`, and of `Version` in the infotext.
pub(in crate::infotext) const SOFTWARE: &str = "NovelAI";

/// Reads the JSON that is hidden in the pixels: all texts, or the `Comment` alone.
pub(in crate::infotext) fn json(text: &str) -> Result<Infotext, InfotextError> {
    let Some(Value::Object(all)) = parsed(text) else {
        return Err(InfotextError::OtherFormat(NOVELAI));
    };
    let get = |key| all.get(key).and_then(Value::as_str);
    match get("Comment") {
        Some(comment) => infotext(comment, get("Description"), get("Source"), None),
        None => of_comment(&all, get("Description"), get("Source"), None),
    }
}

/// Reads the texts of a file. `size` is the size of the picture, for comments without it.
pub(in crate::infotext) fn infotext(
    comment: &str,
    description: Option<&str>,
    source: Option<&str>,
    size: Option<[u32; 2]>,
) -> Result<Infotext, InfotextError> {
    match parsed(comment) {
        Some(Value::Object(comment)) => of_comment(&comment, description, source, size),
        _ => Err(InfotextError::OtherFormat(NOVELAI)),
    }
}

fn of_comment(
    comment: &Map<String, Value>,
    description: Option<&str>,
    source: Option<&str>,
    size: Option<[u32; 2]>,
) -> Result<Infotext, InfotextError> {
    let get = |key: &str| comment.get(key).and_then(written);
    if !comment.contains_key("steps") || !comment.contains_key("sampler") {
        return Err(InfotextError::OtherFormat(NOVELAI));
    }
    let mut building = Building {
        prompt: get("prompt")
            .or(description.map(str::to_owned))
            .unwrap_or_default(),
        negative: get("uc").unwrap_or_default(),
        ..Building::default()
    };
    building.prompt = building.prompt.trim().to_owned();
    let sampler = get("sampler").unwrap_or_default();
    building.entry(keys::STEPS, get("steps"));
    building.entry(keys::SAMPLER, Some(in_webui(&sampler)));
    building.entry(
        keys::SCHEDULE_TYPE,
        get("noise_schedule").as_deref().map(ladder),
    );
    building.entry(keys::CFG_SCALE, get("scale"));
    building.entry(keys::SEED, get("seed"));
    let of_comment = get("width").zip(get("height"));
    let of_file = size.map(|[width, height]| (width.to_string(), height.to_string()));
    let (width, height) = of_comment.or(of_file).unzip();
    building.size(width, height);
    if let Some(source) = source {
        // The name and a hash that is not that of a file: `Stable Diffusion 1D44365E`.
        let (name, hash) = source.rsplit_once(' ').unwrap_or((source, ""));
        let is_hash = hash.len() == 8 && hash.bytes().all(|it| it.is_ascii_hexdigit());
        building.entry(keys::MODEL_HASH, is_hash.then(|| hash.to_lowercase()));
        building.entry(keys::MODEL, Some(if is_hash { name } else { source }));
    }
    // The key is there for every picture, also for one from noise.
    match (get("request_type").as_deref(), get("strength")) {
        (Some("Img2ImgRequest"), strength) => building.entry(keys::DENOISING_STRENGTH, strength),
        (None, Some(strength)) => building.unread(format!(
            "NovelAI's `strength: {}` counts only if the run started from a picture, which the \
             file does not say",
            printable(strength)
        )),
        _ => {}
    }
    building.entry(keys::CLIP_SKIP, Some(2));
    building.entry(keys::ENSD, Some(31337));
    for (key, value) in comment {
        let is_known = KNOWN.contains(&key.as_str());
        let is_usual = match key.as_str() {
            // 1 is the usual value, and 0 is not off.
            "uncond_scale" | "controlnet_strength" => {
                value.is_null() || value.as_f64() == Some(1.0)
            }
            "n_samples" => value.as_u64() == Some(1),
            "request_type" => matches!(
                value.as_str(),
                Some("PromptGenerateRequest" | "Img2ImgRequest")
            ),
            _ => is_off(value),
        };
        if !is_known && !is_usual {
            building.unread(format!(
                "NovelAI's `{}: {}` is ignored",
                printable(key),
                shown(value)
            ));
        }
    }
    Ok(building.done(SOFTWARE))
}

/// Keys that are read, and keys that do not change the picture.
const KNOWN: [&str; 17] = [
    "prompt",
    "uc",
    "steps",
    "sampler",
    "noise_schedule",
    "scale",
    "seed",
    "width",
    "height",
    "strength",
    "signed_hash",
    "version",
    "params_version",
    "extra_noise_seed",
    "add_original_image",
    "legacy_v3_extend",
    "stream",
];

/// Returns WebUI's name of a sampler. WebUI knows most of NovelAI's names as aliases.
fn in_webui(sampler: &str) -> &str {
    match sampler {
        "k_euler_ancestral" => "Euler a",
        "k_dpmpp_2s_ancestral" => "DPM++ 2S a",
        "k_dpmpp_2m_sde" => "DPM++ 2M SDE",
        "k_dpmpp_sde" => "DPM++ SDE",
        "k_dpmpp_2m" => "DPM++ 2M",
        "k_dpm_2_ancestral" => "DPM2 a",
        "k_dpm_2" => "DPM2",
        "k_dpm_fast" => "DPM fast",
        "k_dpm_adaptive" => "DPM adaptive",
        "k_euler" => "Euler",
        "k_heun" => "Heun",
        "k_lms" => "LMS",
        "ddim" | "ddim_v3" => "DDIM",
        "plms" => "PLMS",
        other => other,
    }
}

/// Returns WebUI's name of a ladder.
fn ladder(schedule: &str) -> &str {
    match schedule {
        "native" => "Uniform",
        "karras" => "Karras",
        "exponential" => "Exponential",
        "polyexponential" => "Polyexponential",
        other => other,
    }
}

#[cfg(test)]
// A failed `unwrap` is a failed test.
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::infotext::NOT_READ;

    #[test]
    fn a_strength_counts_only_for_pictures_from_pictures() {
        let read = |request: &str| {
            let comment = r#""steps": 5, "sampler": "ddim", "strength": 0.7, "uc": """#;
            json(&format!("{{{comment}{request}}}")).unwrap()
        };
        let from_picture = read(r#", "request_type": "Img2ImgRequest""#);
        assert_eq!(from_picture.get(keys::DENOISING_STRENGTH), Some("0.7"));
        let from_noise = read(r#", "request_type": "PromptGenerateRequest""#);
        let unknown = read("");
        for infotext in [&from_noise, &unknown] {
            assert_eq!(infotext.get(keys::DENOISING_STRENGTH), None);
        }
        let is_said = |infotext: &Infotext| infotext.get(NOT_READ).is_some();
        assert_eq!([&from_noise, &unknown].map(is_said), [false, true]);
    }
}
