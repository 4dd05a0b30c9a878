//! From an infotext to the request that makes the picture again.

use std::{collections::HashSet, iter, num::NonZeroUsize, str::FromStr, sync::Arc};

use sd_schedulers::{
    Ladder, NoiseKind, Row, Sampler, Scheduler, SchedulerConfig, Slerp, TABLE, Variation,
    from_webui,
};
use sd_text::{
    Cleanup, Emphasis, PromptText, Side,
    prompt::{NodeKind, When},
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{
    Infotext, OF_WEBUI, Reproduction,
    webui::{default_row, ladder_called, nearest, noise_called, row_called, split, with_sgm_noise},
};
use crate::{ClassifierFree, Guidance, ImageSize, Prompt, PromptOptions, Request};

/// What [`Infotext::request`] does.
pub(super) fn reproduction(infotext: &Infotext) -> Reproduction {
    let ours = |version: &str| version.starts_with("sd-onnx ");
    let mut reading = Reading {
        infotext,
        foreign: !infotext.get("Version").is_some_and(ours),
        differences: Vec::new(),
    };
    let prompt = reading.prompt("SD prompt", &infotext.prompt);
    let negative = reading.prompt("SD negative prompt", &infotext.negative);
    let mut request = Request::new(prompt).negative(negative).clip_skip(1);

    if let Some(steps) = reading.number::<NonZeroUsize>("Steps") {
        request = request.steps(steps.get());
    }
    let Way {
        scheduler,
        ladder,
        draws,
    } = reading.way(request.step_count());
    request = request.scheduler(scheduler).ladder(ladder);
    if let Some(guidance) = reading.guidance() {
        request.guidance = guidance;
    }
    if let Some(seed) = reading.number("Seed") {
        request = request.seed(seed);
    }
    if let Some(size) = reading.value("Size", size) {
        request = request.size(size.width(), size.height());
    }
    request.variation = reading.variation();
    if infotext.get("Seed resize from").is_some() {
        request.seed_resize = reading.value("Seed resize from", sides);
    }
    if infotext.get("ENSD").is_some() {
        request.ensd = reading.value("ENSD", offset).unwrap_or_default();
    }
    if infotext.get("Clip skip").is_some()
        && let Some(layer) = reading.number::<NonZeroUsize>("Clip skip")
    {
        request = request.clip_skip(layer.get());
    }
    request.noise = reading.noise();
    request.prompt_options = reading.prompt_options();
    reading.made();
    reading.early_prompts(&request);
    reading.networks(&request);
    reading.inversions();
    reading.others(draws);
    Reproduction {
        request,
        differences: reading.differences,
    }
}

/// Keys that are read elsewhere, and those that say nothing of how the picture was made.
const KNOWN: [&str; 39] = [
    "Steps",
    "Sampler",
    "Schedule type",
    "CFG scale",
    "Seed",
    "Size",
    "Variation seed",
    "Variation seed strength",
    "Seed resize from",
    "Clip skip",
    "ENSD",
    "RNG",
    "SGM noise multiplier",
    "Batch size",
    "Batch pos",
    "SD ladder",
    "SD sampler",
    "SD guidance",
    "SD noise",
    "SD slerp",
    "SD prompt",
    "SD prompt embedding",
    "SD negative prompt",
    "SD negative prompt embedding",
    "SD initial noise",
    "SD prompt options",
    "Emphasis",
    "Pad conds",
    "TI hashes",
    "Version",
    "Model",
    "Model hash",
    "User",
    "Created Date",
    "Template",
    "Negative Template",
    "Civitai resources",
    "Civitai metadata",
    "Hashes",
];

/// How the latents were made of the noise.
struct Way {
    scheduler: Scheduler,
    ladder: Ladder,
    /// Whether the sampler draws noise.
    draws: bool,
}

/// An infotext on its way to a request.
struct Reading<'a> {
    infotext: &'a Infotext,
    /// Whether WebUI made the picture, or who knows what.
    foreign: bool,
    differences: Vec<String>,
}

impl<'a> Reading<'a> {
    fn note(&mut self, difference: impl Into<String>) {
        self.differences.push(difference.into());
    }

    /// What `read` makes of a value; else a difference.
    fn value<T>(&mut self, key: &str, read: impl FnOnce(&'a str) -> Option<T>) -> Option<T> {
        let found = self.infotext.get(key);
        let value = found.and_then(read);
        match found {
            Some(_) if value.is_some() => {}
            Some(found) => self.note(format!(
                "`{key}: {found}` cannot be used, the default stands in"
            )),
            None => self.note(format!("`{key}` is missing, the default stands in")),
        }
        value
    }

    fn number<T: FromStr>(&mut self, key: &str) -> Option<T> {
        self.value(key, |value| value.parse().ok())
    }

    fn prompt(&mut self, key: &str, shown: &'a str) -> &'a str {
        if let Some(shape) = self.infotext.get(&format!("{key} embedding")) {
            self.note(format!(
                "the {} was an embedding of shape {shape}, which has to be given again",
                key.trim_start_matches("SD ")
            ));
        }
        self.infotext.get(key).unwrap_or(shown)
    }

    /// The sampler and its ladder.
    fn way(&mut self, steps: usize) -> Way {
        if self.foreign {
            return self.way_of_webui(steps);
        }
        let preset = match self.infotext.get("SD sampler") {
            Some(OF_WEBUI) => self.infotext.get("Sampler"),
            _ => None,
        };
        if let Some(preset) = preset.and_then(|name| from_webui(name, None).ok()) {
            return Way {
                ladder: self.ladder(preset.row),
                scheduler: self.first_x(preset.sampler).into(),
                draws: true,
            };
        }
        let row = self.row();
        Way {
            scheduler: row.into(),
            ladder: self.ladder(row),
            draws: true,
        }
    }

    fn row(&mut self) -> &'static Row {
        if let Some(own) = self
            .infotext
            .get("SD sampler")
            .filter(|own| *own != OF_WEBUI)
        {
            let row = row_of_type(own);
            let title = row.title;
            self.note(format!(
                "the sampler was `{own}`, with options of its own: {title} with the usual ones stands in"
            ));
            return row;
        }
        let Some(name) = self.value("Sampler", Some) else {
            return default_row();
        };
        row_called(name).unwrap_or_else(|| {
            let row = default_row();
            let title = row.title;
            self.note(format!("there is no sampler `{name}`: {title} stands in"));
            row
        })
    }

    fn ladder(&mut self, row: &Row) -> Ladder {
        if let Some(json) = self.infotext.get("SD ladder") {
            return serde_json::from_str(json).unwrap_or_else(|_| {
                self.note(format!(
                    "`SD ladder: {json}` cannot be used, the default stands in"
                ));
                row.default_ladder.clone()
            });
        }
        let Some(name) = self.infotext.get("Schedule type") else {
            self.note("`Schedule type` is missing, the default stands in");
            return row.default_ladder.clone();
        };
        // Some of WebUI's labels are all but our names, and mean another ladder.
        let ours = name.parse::<Ladder>().ok();
        let ladder = ours.or_else(|| ladder_called(name));
        ladder.unwrap_or_else(|| {
            self.note(format!(
                "there is no schedule type `{name}`: the default stands in"
            ));
            row.default_ladder.clone()
        })
    }

    fn way_of_webui(&mut self, steps: usize) -> Way {
        let default = default_row();
        let name = self.value("Sampler", Some).unwrap_or(default.title);
        let (name, in_name) = split(name);
        // Before 1.9 a ladder other than this one was in the sampler's name.
        let schedule_type = in_name.or(self.infotext.get("Schedule type"));
        let schedule_type = schedule_type.unwrap_or("Uniform");
        let known = if from_webui(name, None).is_ok() {
            name
        } else {
            let nearest = nearest(name);
            self.note(format!("there is no sampler `{name}`: {nearest} stands in"));
            nearest
        };
        let preset = from_webui(known, Some(schedule_type)).or_else(|_| {
            self.note(format!(
                "there is no schedule type `{schedule_type}`: the sampler's own stands in"
            ));
            from_webui(known, None)
        });
        let Ok(preset) = preset else {
            return Way {
                scheduler: default.into(),
                ladder: default.default_ladder.clone(),
                draws: true,
            };
        };
        // Points of `range(0, 1000, 1000 // steps)`.
        let points = 1000_usize.div_ceil((1000 / steps).max(1));
        match preset.row.name {
            // Another implementation, which took the last step as diffusers does.
            "ddim" if self.early() => {
                if points != steps {
                    self.note(format!(
                        "DDIM visited {points} timesteps for {steps} steps, here as many as steps"
                    ));
                }
                return Way {
                    scheduler: preset.row.into(),
                    ladder: Ladder::leading(),
                    draws: false,
                };
            }
            "unipc" if points != steps => self.note(format!(
                "UniPC visited {points} timesteps for {steps} steps, here as many as steps"
            )),
            "lcm" if preset.ladder != Ladder::lcm_even() => self.note(
                "LCM's schedule type went over the sigmas of fifty timesteps, here over those of all",
            ),
            _ => {}
        }
        Way {
            ladder: preset.ladder,
            draws: preset.ensd || preset.sampler.needs().brownian,
            scheduler: self.first_x(preset.sampler).into(),
        }
    }

    /// Whether a version before 1.6 made it, the first of which have no number. Forks have others, which began later.
    fn early(&self) -> bool {
        self.infotext.get("Version").is_none_or(|version| {
            let minor = version.trim_start_matches('v').strip_prefix("1.");
            let minor = minor.and_then(|rest| rest.split('.').next()?.parse::<u32>().ok());
            minor.is_some_and(|minor| minor < 6)
        })
    }

    /// A sampler of WebUI's, beginning as the picture did.
    fn first_x(&self, sampler: Arc<dyn Sampler>) -> Arc<dyn Sampler> {
        match self.infotext.get("SGM noise multiplier") {
            Some("True") => with_sgm_noise(sampler),
            _ => sampler,
        }
    }

    fn guidance(&mut self) -> Option<Guidance> {
        if let Some(own) = self.infotext.get("SD guidance") {
            if let Ok(guidance) = serde_json::from_str::<ClassifierFree>(own) {
                return Some(guidance.into());
            }
            self.note(format!(
                "the guidance was `{own}`, one's own: the default scale stands in"
            ));
            return None;
        }
        let finite = |value: &str| value.parse().ok().filter(|scale: &f32| scale.is_finite());
        let scale = self.value("CFG scale", finite)?;
        let name = self.infotext.get("Sampler").unwrap_or_default();
        if self.foreign
            && from_webui(split(name).0, None).is_ok_and(|it| it.row.name == "ddim-cfg-pp")
        {
            // WebUI's is 0 to 12.5 there.
            return Some((scale / 12.5).into());
        }
        if self.foreign && scale < 1.0 {
            self.note("at a CFG scale below 1 the negative prompt was mixed in, here it is not");
        }
        Some(scale.into())
    }

    fn variation(&mut self) -> Option<Variation> {
        let keys = ["Variation seed", "Variation seed strength"];
        if keys.iter().all(|key| self.infotext.get(key).is_none()) {
            return None;
        }
        let seed = self.number(keys[0]);
        let within = |value: &str| {
            let strength: Option<f32> = value.parse().ok();
            strength.filter(|strength| (0.0..=1.0).contains(strength))
        };
        let strength = self.value(keys[1], within);
        let slerp = match self.infotext.get("SD slerp") {
            Some(_) => self.value("SD slerp", named::<Slerp>),
            None => Some(Slerp::Columns),
        };
        Some(Variation {
            seed: seed?,
            strength: strength?,
            slerp: slerp?,
        })
    }

    fn noise(&mut self) -> NoiseKind {
        if self.infotext.get("SD noise").is_some() {
            return self.value("SD noise", named).unwrap_or_default();
        }
        match self.infotext.get("RNG") {
            None | Some("GPU") => {
                self.note(
                    "the noise was drawn on a GPU that is not named, here it is that of `RNG: NV`: the same where the GPU has a \
                     thread for each of the latents' numbers",
                );
                NoiseKind::Philox
            }
            Some(rng) => noise_called(rng).unwrap_or_else(|| {
                self.note(format!(
                    "the noise was drawn by `RNG: {rng}`, here it is that of torch's CPU generator"
                ));
                NoiseKind::Torch
            }),
        }
    }

    /// What was given to the picture, or came from others beside it.
    fn made(&mut self) {
        if let Some(shape) = self.infotext.get("SD initial noise") {
            self.note(format!(
                "the initial noise of shape {shape} was given, and has to be again"
            ));
        }
        if let Some(size) = self.infotext.get("Batch size").filter(|&size| size != "1") {
            self.note(format!(
                "the picture was one of a batch of {size}, alone it is the same but for rounding"
            ));
        }
    }

    /// How the prompts were read.
    fn prompt_options(&mut self) -> PromptOptions {
        if !self.foreign {
            return match self.infotext.get("SD prompt options") {
                Some(_) => self.value("SD prompt options", named).unwrap_or_default(),
                None => PromptOptions::default(),
            };
        }
        let emphasis = match self.infotext.get("Emphasis") {
            None | Some("Original") => Emphasis::KeepMean,
            Some("No norm") => Emphasis::Multiply,
            Some("Ignore") => Emphasis::Ignore,
            Some(other) => {
                self.note(format!("`Emphasis: {other}` is not followed"));
                Emphasis::KeepMean
            }
        };
        let same_length = match self.infotext.get("Pad conds") {
            None => false,
            Some("True") => true,
            Some(other) => {
                self.note(format!("`Pad conds: {other}` is not followed"));
                false
            }
        };
        PromptOptions {
            emphasis,
            same_length,
            cleanup: Cleanup::Ftfy,
            ..PromptOptions::default()
        }
    }

    /// What versions before 1.6 made of prompts otherwise; `backcompat` of WebUI's `modules/infotext_versions.py` has the list.
    fn early_prompts(&mut self, request: &Request) {
        if !self.foreign || !self.early() {
            return;
        }
        let syntax = request.prompt_options.syntax;
        let prompts = [
            (&request.prompt, Side::Positive),
            (&request.negative, Side::Negative),
        ];
        let texts = prompts.map(|(prompt, side)| match prompt {
            Prompt::Text(text) => (text.as_str(), side),
            Prompt::Embedding(_) => ("", side),
        });
        for (text, side) in texts {
            let read = PromptText::parse(text, side, syntax);
            let nodes = read.tree().nodes();
            let all = nodes.flat_map(|node| iter::once(node).chain(node.descendants()));
            let other = all.filter(|node| {
                matches!(*node.kind(), NodeKind::Schedule { when } if match when {
                    When::Fraction(part) => part >= 1.0,
                    When::Step(step) => 0.0 < step && step < 1.0,
                })
            });
            for node in other {
                self.note(format!(
                    "in `{}` WebUI took numbers of 1 and more for steps, also with a point, and those below for parts of them, \
                     also without; here it is the point that says which",
                    node.text()
                ));
            }
        }
        let sampler = split(self.infotext.get("Sampler").unwrap_or_default()).0;
        // A window has 75 tokens, of a byte or more.
        let long = texts
            .iter()
            .any(|(text, _)| text.len() > 75 || text.contains("BREAK"));
        if long && matches!(sampler, "DDIM" | "PLMS") {
            self.note(format!(
                "{sampler} cut a negative prompt to the prompt's length, or repeated its last vector, here each keeps its own"
            ));
        }
    }

    /// What a prompt names that is not here.
    fn networks(&mut self, request: &Request) {
        // What is not applied here was not applied to a picture of ours.
        if !self.foreign {
            return;
        }
        let syntax = request.prompt_options.syntax;
        if let Prompt::Text(text) = &request.prompt {
            for network in PromptText::parse(text, Side::Positive, syntax).networks() {
                let named = &text[network.span.clone()];
                self.note(format!("`{named}` is not applied"));
            }
        }
    }

    /// What prompts may name that a pipeline has to be given.
    fn inversions(&mut self) {
        if let Some(named) = self.infotext.get("TI hashes") {
            self.note(format!(
                "the prompts name textual inversions, which have to be loaded: `{named}`"
            ));
        }
    }

    /// Everything else that has a key changes the picture, as far as anyone knows.
    fn others(&mut self, draws: bool) {
        let infotext = self.infotext;
        let mut named = HashSet::new();
        for (key, value) in &infotext.entries {
            let inert = match key.as_str() {
                "Eta" => !draws,
                key => KNOWN.contains(&key),
            };
            if !inert && named.insert(key) {
                self.note(format!("`{key}: {value}` is not followed"));
            }
        }
    }
}

fn size(value: &str) -> Option<ImageSize> {
    let [width, height] = sides(value)?;
    ImageSize::new(width, height).ok()
}

/// `512x768`.
fn sides(value: &str) -> Option<[u32; 2]> {
    let (width, height) = value.split_once('x')?;
    Some([width.parse().ok()?, height.parse().ok()?])
}

/// Of an offset below 0, too, which goes round.
fn offset(value: &str) -> Option<u64> {
    let below = || value.parse::<i64>().ok().map(|offset| offset as u64);
    value.parse().ok().or_else(below)
}

/// What is written as its JSON, a string without its quotes.
fn named<T: DeserializeOwned>(value: &str) -> Option<T> {
    let name = serde_json::from_value(Value::from(value));
    name.or_else(|_| serde_json::from_str(value)).ok()
}

/// The row whose sampler a `Debug` is of, with whatever conventions; else one of its type.
fn row_of_type(debug: &str) -> &'static Row {
    let unwrapped = |debug: &str| -> String {
        let inner = debug.strip_prefix("WithConventions { sampler: ");
        inner.unwrap_or(debug).to_owned()
    };
    let debug = unwrapped(debug);
    let built = |row: &Row| unwrapped(&format!("{:?}", (row.build)(&SchedulerConfig::default())));
    let sampler = |built: &str| match built.split_once(", conventions: ") {
        Some((sampler, _)) => sampler.to_owned(),
        None => built.to_owned(),
    };
    let name = |debug: &str| -> String {
        let part = |letter: char| letter.is_alphanumeric() || letter == '_';
        debug.chars().take_while(|&letter| part(letter)).collect()
    };
    let exactly = TABLE
        .iter()
        .find(|row| sampler(&built(row)) == sampler(&debug));
    let of_type = || TABLE.iter().find(|row| name(&built(row)) == name(&debug));
    exactly.or_else(of_type).unwrap_or_else(default_row)
}
