//! Writing the infotext of a picture.

use std::sync::Arc;

use sd_schedulers::{Ladder, Scheduler, noise::Slerp};
use serde::Serialize;
use serde_json::Value;

use super::{
    Infotext, OF_MODEL, OF_WEBUI,
    webui::{label_of, name_of, noise_called, rng_of},
};
use crate::{Guidance, Picture, Prompt, PromptOptions, RefinerShare, Request, Sizes};

/// Returns the infotext of a picture.
pub(crate) fn of(picture: &Picture) -> Infotext {
    let made = &picture.made;
    let (planned, seeds) = (&*made.planned, made.seeds);
    let request = &planned.request;
    let mut entries: Vec<(String, String)> = Vec::new();
    let mut add = |key: &str, value: String| entries.push((key.to_owned(), value));

    add("Steps", planned.chosen.steps.to_string());
    let of_webui = match planned.row {
        Some(_) => None,
        None => name_of(&*planned.sampler),
    };
    if let Some(name) = planned.row.map(|row| row.title).or(of_webui) {
        add("Sampler", name.to_owned());
    }
    let schedule_type = schedule_type(&planned.chosen.ladder);
    if let Some(name) = schedule_type {
        add("Schedule type", name.to_owned());
    }
    if let Some(scale) = planned.chosen.guidance.scale() {
        add("CFG scale", scale.to_string());
    }
    add("Seed", seeds.seed.to_string());
    let (width, height) = (planned.size.width(), planned.size.height());
    add("Size", format!("{width}x{height}"));
    if let Some(model) = &made.model {
        if let Some(hash) = model.hash() {
            add("Model hash", hash.chars().take(10).collect());
        }
        add("Model", model.name.clone());
    }
    if made.batch_size > 1 {
        add("Batch size", made.batch_size.to_string());
        add("Batch pos", made.batch_position.to_string());
    }
    let variation = seeds.variation.filter(|it| it.strength != 0.0);
    if let Some(variation) = variation {
        add("Variation seed", variation.seed.to_string());
        add("Variation seed strength", variation.strength.to_string());
    }
    if let Some([width, height]) = request.seed_resize {
        add("Seed resize from", format!("{width}x{height}"));
    }
    if let Some(clip_skip) = planned.reading.clip_skip
        && clip_skip != planned.own_clip_skip
    {
        add("Clip skip", clip_skip.to_string());
    }
    if let Some(name) = &made.refiner {
        let refiner = request.refiner.unwrap_or_default();
        add("Refiner", name.to_string());
        add("Refiner switch at", refiner.at.to_string());
        if refiner.by == RefinerShare::Steps {
            add("Refiner switch by sampling steps", "True".to_owned());
        }
    }
    if seeds.sampler_offset != 0 {
        add("ENSD", seeds.sampler_offset.to_string());
    }
    if let Some(name) = rng_of(seeds.kind) {
        add("RNG", name.to_owned());
    }
    if planned.rungs.initial_scale() > planned.rungs.sigmas()[0] {
        // The initial noise is scaled by sqrt(sigma² + 1) instead of sigma.
        add("SGM noise multiplier", "True".to_owned());
    }

    if schedule_type.is_none() {
        let ladder = serde_json::to_string(&planned.chosen.ladder);
        add(
            "SD ladder",
            ladder.expect("a ladder consists of names and numbers"),
        );
    }
    if of_webui.is_some() {
        add("SD sampler", OF_WEBUI.to_owned());
    } else if planned.row.is_none() && planned.default_sampler {
        add("SD sampler", OF_MODEL.to_owned());
    } else if planned.row.is_none() {
        let sampler = serde_json::to_string(&Scheduler::Custom(Arc::clone(&planned.sampler)));
        // A sampler of another crate cannot be written.
        let sampler = sampler.unwrap_or_else(|_| format!("{:?}", planned.sampler));
        add("SD sampler", sampler);
    }
    match &planned.chosen.guidance {
        Guidance::ClassifierFree(guidance) if guidance.is_plain() => {}
        Guidance::ClassifierFree(guidance) => {
            let guidance = serde_json::to_string(guidance);
            add(
                "SD guidance",
                guidance.expect("it consists of names and finite numbers"),
            );
        }
        Guidance::Custom(guide) => add("SD guidance", format!("{guide:?}")),
    }
    if rng_of(seeds.kind).and_then(noise_called) != Some(seeds.kind) {
        add("SD noise", written(seeds.kind));
    }
    if let Some(variation) = variation
        && variation.slerp != Slerp::default()
    {
        add("SD slerp", written(variation.slerp));
    }
    if planned.sizes.is_some() || planned.refiner_sizes.is_some() {
        if request.sizes != Sizes::default() {
            add("SD sizes", written(request.sizes));
        }
        if let Some(sizes) = request.negative_sizes {
            add("SD negative sizes", written(sizes));
        }
        let scores = [request.aesthetic_score, request.negative_aesthetic_score];
        let plain = Request::new("");
        if scores != [plain.aesthetic_score, plain.negative_aesthetic_score] {
            // A `Value` would have the digits of an `f64`.
            let scores = serde_json::to_string(&scores);
            add(
                "SD aesthetic scores",
                scores.expect("the plan has checked that they are finite"),
            );
        }
    }
    for (key, text) in [
        ("SD prompt 2", &request.prompt_2),
        ("SD negative prompt 2", &request.negative_2),
    ] {
        if let Some(text) = text {
            add(key, text.clone());
        }
    }
    if request.prompt_options != PromptOptions::default() {
        add("SD prompt options", written(request.prompt_options));
    }
    let prompts = [Some(&picture.prompt), picture.negative.as_ref()];
    let branches = prompts
        .into_iter()
        .flatten()
        .flat_map(|prompt| &prompt.branches);
    let entries_of = branches.flat_map(|branch| branch.entries());
    let mut inversions: Vec<String> = Vec::new();
    for named in entries_of.flat_map(|entry| &entry.embedding.inversions) {
        // WebUI drops these characters, too.
        let name = named.name.replace([':', ','], "");
        let hash: String = named.sha256.chars().take(12).collect();
        let named = format!("{name}: {hash}");
        if !inversions.contains(&named) {
            inversions.push(named);
        }
    }
    if !inversions.is_empty() {
        add("TI hashes", inversions.join(", "));
    }
    for (key, prompt) in [
        ("SD prompt embedding", &request.prompt),
        ("SD negative prompt embedding", &request.negative),
    ] {
        if let Prompt::Embedding { embedding, .. } = prompt {
            add(key, shape(embedding.shape()));
        }
    }
    if let Some(noise) = &request.initial_noise {
        add("SD initial noise", shape(noise.shape()));
    }
    if let Some(beside) = &request.beside {
        add("SD beside", shape(beside.shape()));
    }

    let mut infotext = Infotext {
        prompt: shown(&request.prompt),
        negative: shown(&request.negative),
        entries,
    };
    // The text is read back, to find the prompts that the format cannot represent.
    let read = Infotext::parse(&infotext.to_string()).unwrap_or_default();
    for (key, prompt, read) in [
        ("SD prompt", &request.prompt, read.prompt),
        ("SD negative prompt", &request.negative, read.negative),
    ] {
        if let Prompt::Text(text) = prompt
            && *text != read
        {
            infotext.entries.push((key.to_owned(), text.clone()));
        }
    }
    let version = concat!("sd-onnx ", env!("CARGO_PKG_VERSION"));
    infotext.entries.push(("Version".into(), version.into()));
    infotext
}

/// Returns WebUI's label of exactly this ladder, or else this crate's name. `None` if it has
/// neither.
fn schedule_type(ladder: &Ladder) -> Option<&'static str> {
    label_of(ladder).or_else(|| ladder.name())
}

/// Returns a value as JSON, but a string without its quotes.
fn written(value: impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(name)) => name,
        Ok(value) => value.to_string(),
        Err(error) => unreachable!("names and numbers are JSON: {error}"),
    }
}

/// Returns a prompt as the format shows it. A text chunk of a PNG cannot hold a NUL.
fn shown(prompt: &Prompt) -> String {
    match prompt {
        Prompt::Text(text) => text.replace('\0', " "),
        Prompt::Embedding { .. } => String::new(),
    }
}

/// Returns a shape in the form `1x77x768`.
fn shape(shape: &[usize]) -> String {
    let sides: Vec<_> = shape.iter().map(usize::to_string).collect();
    sides.join("x")
}
