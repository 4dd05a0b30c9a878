//! The infotext of a picture made here.

use sd_schedulers::{Conventions, Counting, Ladder};

use super::Infotext;
use crate::{Guidance, Picture, Prompt};

/// The infotext of a picture.
pub(crate) fn of(picture: &Picture) -> Infotext {
    let made = &picture.made;
    let planned = &*made.planned;
    let request = &planned.request;
    let mut entries: Vec<(String, String)> = Vec::new();
    let mut add = |key: &str, value: String| entries.push((key.to_owned(), value));

    add("Steps", request.steps.to_string());
    if let Some(row) = planned.row {
        add("Sampler", row.title.to_owned());
    }
    let schedule_type = schedule_type(&planned.ladder, &planned.sampler.conventions());
    if let Some(name) = schedule_type {
        add("Schedule type", name.to_owned());
    }
    if let Guidance::Scale(scale) = request.guidance {
        add("CFG scale", scale.to_string());
    }
    add("Seed", picture.seed.to_string());
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
    if planned.clip_skip.skipped() > 0 {
        add("Clip skip", planned.clip_skip.to_string());
    }
    add("RNG", "CPU".to_owned());
    if planned.rungs.initial_scale() > planned.rungs.sigmas()[0] {
        // sqrt(sigma² + 1), not sigma.
        add("SGM noise multiplier", "True".to_owned());
    }

    if schedule_type.is_none() {
        let ladder = serde_json::to_string(&planned.ladder);
        add(
            "SD ladder",
            ladder.expect("a ladder is two numbers or a name"),
        );
    }
    if planned.row.is_none() {
        add("SD sampler", format!("{:?}", planned.sampler));
    }
    if let Guidance::Own(guide) = &request.guidance {
        add("SD guidance", format!("{guide:?}"));
    }
    for (key, prompt) in [
        ("SD prompt embedding", &request.prompt),
        ("SD negative prompt embedding", &request.negative),
    ] {
        if let Prompt::Embedding(embedding) = prompt {
            add(key, shape(embedding.shape()));
        }
    }
    if let Some(noise) = &request.initial_noise {
        add("SD initial noise", shape(noise.shape()));
    }

    let mut infotext = Infotext {
        prompt: shown(&request.prompt),
        negative: shown(&request.negative),
        entries,
    };
    // What comes back is the judge of what the format can hold.
    let read = Infotext::parse(&infotext.to_string());
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

/// WebUI's label where the ladder as this sampler runs it is that one, else our name; none for a ladder without one.
fn schedule_type(ladder: &Ladder, conventions: &Conventions) -> Option<&'static str> {
    // k-diffusion's `get_sigmas`.
    let uniform = conventions.counting == Counting::N
        && !conventions.integer_timesteps
        && !conventions.on_grid_only;
    match ladder {
        ladder if *ladder == Ladder::karras() => Some("Karras"),
        ladder if *ladder == Ladder::linspace() && uniform => Some("Uniform"),
        ladder => ladder.name(),
    }
}

/// A prompt as it is shown: no text chunk of a PNG can hold a NUL.
fn shown(prompt: &Prompt) -> String {
    match prompt {
        Prompt::Text(text) => text.replace('\0', " "),
        Prompt::Embedding(_) => String::new(),
    }
}

/// `1x77x768`.
fn shape(shape: &[usize]) -> String {
    let sides: Vec<_> = shape.iter().map(usize::to_string).collect();
    sides.join("x")
}
