//! From an infotext to the request that makes the picture again.

use std::{collections::HashSet, num::NonZeroUsize, str::FromStr, sync::LazyLock};

use regex::Regex;
use sd_schedulers::{Conventions, Counting, FirstX, Ladder, Row, SchedulerConfig, Spacing, TABLE};

use super::{
    Infotext, Reproduction,
    webui::{default_row, find, nearest, row_called, split},
};
use crate::{ImageSize, Request};

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
    let (sampler, ladder) = reading.sampler(request.steps);
    request = request.scheduler(sampler).ladder(ladder);
    if let Some(scale) = reading.guidance() {
        request = request.guidance(scale);
    }
    if let Some(seed) = reading.number("Seed") {
        request = request.seed(seed);
    }
    if let Some(size) = reading.value("Size", size) {
        request = request.size(size.width(), size.height());
    }
    if infotext.get("Clip skip").is_some()
        && let Some(layer) = reading.number::<NonZeroUsize>("Clip skip")
    {
        request = request.clip_skip(layer.get());
    }
    reading.noise(sampler);
    reading.syntax(&request);
    reading.others(sampler);
    Reproduction {
        request,
        differences: reading.differences,
    }
}

/// Keys that are read elsewhere, and those that say nothing of how the picture was made.
const KNOWN: [&str; 29] = [
    "Steps",
    "Sampler",
    "Schedule type",
    "CFG scale",
    "Seed",
    "Size",
    "Clip skip",
    "RNG",
    "SGM noise multiplier",
    "Batch size",
    "Batch pos",
    "SD ladder",
    "SD sampler",
    "SD guidance",
    "SD prompt",
    "SD prompt embedding",
    "SD negative prompt",
    "SD negative prompt embedding",
    "SD initial noise",
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

/// Prompt syntax of WebUI's that is no syntax here yet.
static SYNTAX: LazyLock<[(&str, Regex); 7]> = LazyLock::new(|| {
    [
        ("attention brackets", r"(?:^|[^\\])[(\[]"),
        (r"escaped brackets (`\(`)", r"\\[()\[\]]"),
        ("alternation (`[a|b]`)", r"\[[^\]]*\|"),
        ("prompt editing (`[a:b:0.5]`)", r"\[[^\]]*:"),
        ("`AND`", r"\bAND\b"),
        ("`BREAK`", r"\bBREAK\b"),
        ("extra networks (`<lora:…>`)", r"<\w+:"),
    ]
    .map(|(name, expression)| (name, expect(expression)))
});

/// CLIP's words, each one token or more.
static WORD: LazyLock<Regex> = LazyLock::new(|| expect(r"\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"));

fn expect(expression: &str) -> Regex {
    Regex::new(expression).expect("the expression is constant")
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

    fn sampler(&mut self, steps: usize) -> (&'static Row, Ladder) {
        let mut in_name = None;
        let row = if let Some(own) = self.infotext.get("SD sampler") {
            let row = row_of_type(own);
            let title = row.title;
            self.note(format!(
                "the sampler was `{own}`, with options of its own: {title} with the usual ones stands in"
            ));
            row
        } else if let Some(name) = self.value("Sampler", Some) {
            let (name, ladder) = split(name);
            in_name = ladder;
            row_called(name).unwrap_or_else(|| {
                let row = nearest(name);
                let title = row.title;
                self.note(format!("there is no sampler `{name}`: {title} stands in"));
                row
            })
        } else {
            default_row()
        };
        (row, self.ladder(row, in_name, steps))
    }

    fn ladder(&mut self, row: &Row, in_name: Option<&str>, steps: usize) -> Ladder {
        let conventions = (row.build)(&SchedulerConfig::default()).conventions();
        if let Some(json) = self.infotext.get("SD ladder") {
            return serde_json::from_str(json).unwrap_or_else(|_| {
                self.note(format!(
                    "`SD ladder: {json}` cannot be used, the default stands in"
                ));
                row.default_ladder
            });
        }
        if self.foreign && row.name == "ddim" {
            self.ddim(steps);
            return row.default_ladder;
        }
        let automatic = match row.name {
            "dpmpp-2m" => "Karras",
            _ => "Uniform",
        };
        let name = match in_name.or(self.infotext.get("Schedule type")) {
            Some("Automatic") => automatic,
            Some(name) => name,
            // Before 1.9 a ladder other than this one was in the sampler's name.
            None if self.foreign => "Uniform",
            None => {
                self.note("`Schedule type` is missing, the default stands in");
                return row.default_ladder;
            }
        };
        let ladder = match (find(name), name.parse()) {
            (Some(known), _) if known.there => known.ladder,
            (Some(known), _) => {
                let stands_in = known.ladder.name().unwrap_or_default();
                self.note(format!(
                    "there is no schedule type `{name}`: {stands_in} stands in"
                ));
                known.ladder
            }
            (None, Ok(ladder)) => ladder,
            (None, Err(_)) => {
                self.note(format!(
                    "there is no schedule type `{name}`: the default stands in"
                ));
                row.default_ladder
            }
        };
        if self.foreign {
            self.compare(row, &conventions, &ladder, steps);
        }
        ladder
    }

    /// What WebUI's k-diffusion samplers do otherwise on a ladder.
    fn compare(&mut self, row: &Row, conventions: &Conventions, ladder: &Ladder, steps: usize) {
        let title = row.title;
        let spacing = match *ladder {
            Ladder::Spaced(spacing) => Some(spacing),
            Ladder::Karras { over, .. } => over,
        };
        let ours_preserves =
            conventions.first_x == FirstX::VariancePreserving || spacing == Some(Spacing::Leading);
        match (self.infotext.get("SGM noise multiplier"), ours_preserves) {
            (Some("True"), false) => self.note(format!(
                "x began as noise times sqrt(sigma² + 1), with {title} on this ladder it is noise times sigma here"
            )),
            (None | Some("False"), true) => self.note(format!(
                "x began as noise times sigma, with {title} on this ladder it is noise times sqrt(sigma² + 1) here"
            )),
            _ => {}
        }
        match ladder {
            Ladder::Karras { .. } if conventions.rounded_karras_timesteps => self.note(format!(
                "the network was told the timesteps as they are, with {title} here they are rounded"
            )),
            Ladder::Spaced(Spacing::Linspace) if conventions.counting != Counting::N => {
                self.note(format!(
                    "the ladder went down to timestep 0, with {title} here it ends a step above and is rounded"
                ));
            }
            // Where the points are training timesteps (of 1000, in WebUI) nothing is interpolated.
            Ladder::Spaced(Spacing::Linspace) if steps > 1 && 999 % (steps - 1) != 0 => self.note(
                "sigmas between training timesteps were interpolated in their logarithm, here they are linearly",
            ),
            _ => {}
        }
    }

    fn ddim(&mut self, steps: usize) {
        // Points of `range(0, 1000, 1000 // steps)`.
        let points = 1000_usize.div_ceil((1000 / steps).max(1));
        if points != steps {
            self.note(format!(
                "DDIM visited {points} timesteps for {steps} steps in WebUI, here as many as steps"
            ));
        }
        let minor = |version: &str| {
            let minor = version.trim_start_matches('v').strip_prefix("1.")?;
            minor.split('.').next()?.parse::<u32>().ok()
        };
        if self.infotext.get("Version").and_then(minor) >= Some(6) {
            self.note("DDIM of WebUI 1.6 and later leaves out its last step, here it is taken");
        }
    }

    fn guidance(&mut self) -> Option<f32> {
        if let Some(own) = self.infotext.get("SD guidance") {
            self.note(format!(
                "the guidance was `{own}`, one's own: the default scale stands in"
            ));
            return None;
        }
        let finite = |value: &str| value.parse().ok().filter(|scale: &f32| scale.is_finite());
        let scale = self.value("CFG scale", finite)?;
        if self.foreign && scale < 1.0 {
            self.note("at a CFG scale below 1 the negative prompt was mixed in, here it is not");
        }
        Some(scale)
    }

    fn noise(&mut self, sampler: &Row) {
        match self.infotext.get("RNG") {
            Some("CPU") => {}
            None => self.note(
                "the noise was drawn on a GPU (no `RNG: CPU`), here it is that of torch's CPU generator",
            ),
            Some(rng) => self.note(format!(
                "the noise was drawn by `RNG: {rng}`, here it is that of torch's CPU generator"
            )),
        }
        if let Some(shape) = self.infotext.get("SD initial noise") {
            self.note(format!(
                "the initial noise of shape {shape} was given, and has to be again"
            ));
        }
        let ensd = self.infotext.get("ENSD").filter(|&delta| delta != "0");
        if let Some(delta) = ensd
            && draws_noise(sampler)
        {
            self.note(format!(
                "the noise of the steps had a seed of its own (`ENSD: {delta}`)"
            ));
        }
        if let Some(size) = self.infotext.get("Batch size").filter(|&size| size != "1") {
            self.note(format!(
                "the picture was one of a batch of {size}, alone it is the same but for rounding"
            ));
        }
    }

    /// Prompt syntax, and prompts too long for the window.
    fn syntax(&mut self, request: &Request) {
        if !self.foreign {
            return;
        }
        let infotext = self.infotext;
        let mut prompts = vec![("prompt", &infotext.prompt)];
        if request.guidance.uses_negative() {
            prompts.push(("negative prompt", &infotext.negative));
        }
        for (what, prompt) in prompts {
            let found: Vec<_> = SYNTAX
                .iter()
                .filter(|(_, expression)| expression.is_match(prompt))
                .map(|&(name, _)| name)
                .collect();
            if !found.is_empty() {
                let found = found.join(", ");
                self.note(format!(
                    "the {what} has syntax that is taken for plain text here: {found}"
                ));
            }
            // Two of CLIP's 77 are its own.
            if WORD.find_iter(prompt).count() > 75 {
                self.note(format!(
                    "the {what} is longer than the 75 tokens that are read here"
                ));
            }
        }
    }

    /// Everything else that has a key changes the picture, as far as anyone knows.
    fn others(&mut self, sampler: &Row) {
        let infotext = self.infotext;
        let mut named = HashSet::new();
        for (key, value) in &infotext.entries {
            let inert = match key.as_str() {
                "ENSD" => true,
                "Eta" => !draws_noise(sampler),
                key => KNOWN.contains(&key),
            };
            if !inert && named.insert(key) {
                self.note(format!("`{key}: {value}` is not followed"));
            }
        }
    }
}

/// Of the samplers there are, the one that draws noise on the way.
fn draws_noise(row: &Row) -> bool {
    row.name == "euler-a"
}

fn size(value: &str) -> Option<ImageSize> {
    let (width, height) = value.split_once('x')?;
    ImageSize::new(width.parse().ok()?, height.parse().ok()?).ok()
}

/// The row whose sampler is of the type that a `Debug` is of.
fn row_of_type(debug: &str) -> &'static Row {
    let name = |debug: &str| debug.split(' ').next().map(str::to_owned);
    let same = |row: &&Row| {
        let built = format!("{:?}", (row.build)(&SchedulerConfig::default()));
        name(&built) == name(debug)
    };
    TABLE.iter().find(same).unwrap_or_else(default_row)
}
