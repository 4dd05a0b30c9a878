//! Writing the infotext of a picture.

use std::sync::Arc;

use sd_schedulers::{Ladder, Scheduler, names::schedule_type_of, noise::Slerp};
use serde::Serialize;
use serde_json::Value;

use super::{
    Infotext, OF_MODEL, OF_WEBUI, controls, hires, keys,
    start::{ONLY_MASKED, Recorded},
    tiling,
    webui::{name_of, noise_called, rng_of},
};
use crate::{
    Guidance, MaskedContent, Picture, Prompt, PromptOptions, RefinerShare, Request, Shortcuts,
    Sizes, lora, plan::Planned,
};

/// Returns the infotext of a picture.
pub(crate) fn of(picture: &Picture) -> Infotext {
    let planned = &*picture.made.planned;
    let mut writing = Writing {
        picture,
        planned,
        request: &planned.request,
        of_webui: match planned.row {
            Some(_) => None,
            None => name_of(&*planned.sampler),
        },
        entries: Vec::new(),
    };
    writing.sampling();
    writing.model();
    writing.seeds();
    writing.refiner();
    writing.noise();
    writing.own_sampling();
    writing.own_noise();
    writing.sizes();
    writing.tiles();
    writing.shortcuts();
    writing.start();
    for (key, value) in controls::entries(&planned.request.controls) {
        writing.add(&key, value);
    }
    writing.hires();
    writing.prompts();
    writing.inversions();
    writing.arrays();
    writing.done()
}

/// The state of the conversion of a picture to an infotext.
struct Writing<'a> {
    picture: &'a Picture,
    planned: &'a Planned,
    request: &'a Request,
    /// WebUI's name of the sampler, if the sampler has WebUI's options and conventions.
    of_webui: Option<&'static str>,
    entries: Vec<(String, String)>,
}

impl Writing<'_> {
    fn add(&mut self, key: &str, value: impl Into<String>) {
        self.entries.push((key.to_owned(), value.into()));
    }

    fn sampling(&mut self) {
        let planned = self.planned;
        self.add(keys::STEPS, planned.chosen.steps.to_string());
        if let Some(name) = planned.row.map(|row| row.title).or(self.of_webui) {
            self.add(keys::SAMPLER, name);
        }
        if let Some(name) = schedule_type(&planned.chosen.ladder) {
            self.add(keys::SCHEDULE_TYPE, name);
        }
        if let Some(scale) = planned.chosen.guidance.scale() {
            self.add(keys::CFG_SCALE, scale.to_string());
        }
        self.add(keys::SEED, self.picture.made.seeds.seed.to_string());
        let (width, height) = (planned.size.width(), planned.size.height());
        self.add(keys::SIZE, format!("{width}x{height}"));
    }

    fn model(&mut self) {
        let made = &self.picture.made;
        if let Some(model) = &made.model {
            if let Some(hash) = model.hash() {
                self.add(keys::MODEL_HASH, hash.chars().take(10).collect::<String>());
            }
            self.add(keys::MODEL, &*model.name);
        }
        let mut hashes = lora::hashes(&made.loras);
        hashes.extend_from_slice(&made.called);
        if !hashes.is_empty() {
            self.add(keys::LORA_HASHES, hashes.join(", "));
        }
        if !made.loras.is_empty() {
            self.add(keys::SD_LORAS, lora::weights(&made.loras));
        }
        if let Some((key, value)) = tiling::entry(made.seamless) {
            self.add(key, value);
        }
        if let Some(decoder) = made.decoder {
            self.add(keys::SD_DECODER, decoder);
        }
        if let Some(precision) = made.precision {
            self.add(keys::SD_PRECISION, precision);
        }
        if made.batch_size > 1 {
            self.add(keys::BATCH_SIZE, made.batch_size.to_string());
            self.add(keys::BATCH_POS, made.batch_position.to_string());
        }
    }

    fn seeds(&mut self) {
        let variation = self.picture.made.seeds.variation;
        if let Some(variation) = variation.filter(|it| it.strength != 0.0) {
            self.add(keys::VARIATION_SEED, variation.seed.to_string());
            self.add(
                keys::VARIATION_SEED_STRENGTH,
                variation.strength.to_string(),
            );
        }
        if let Some([width, height]) = self.request.seed_resize {
            self.add(keys::SEED_RESIZE_FROM, format!("{width}x{height}"));
        }
        if let Some(clip_skip) = self.planned.reading.clip_skip
            && clip_skip != self.planned.own_clip_skip
        {
            self.add(keys::CLIP_SKIP, clip_skip.to_string());
        }
    }

    fn refiner(&mut self) {
        if let Some(name) = &self.picture.made.refiner {
            let refiner = self.request.refiner.unwrap_or_default();
            self.add(keys::REFINER, name.to_string());
            self.add(keys::REFINER_SWITCH_AT, refiner.at.to_string());
            if refiner.by == RefinerShare::Steps {
                self.add(keys::REFINER_SWITCH_BY_SAMPLING_STEPS, "True");
            }
        }
    }

    fn noise(&mut self) {
        let seeds = self.picture.made.seeds;
        if seeds.sampler_offset != 0 {
            self.add(keys::ENSD, seeds.sampler_offset.to_string());
        }
        if let Some(name) = rng_of(seeds.kind) {
            self.add(keys::RNG, name);
        }
        let rungs = &self.planned.rungs;
        if rungs.initial_scale() > rungs.sigmas()[0] {
            // The initial noise is scaled by sqrt(sigma² + 1) instead of sigma.
            self.add(keys::SGM_NOISE_MULTIPLIER, "True");
        }
    }

    /// Adds the ladder, the sampler and the guidance, if WebUI's keys do not describe them.
    fn own_sampling(&mut self) {
        let planned = self.planned;
        if schedule_type(&planned.chosen.ladder).is_none() {
            let ladder = serde_json::to_string(&planned.chosen.ladder);
            let ladder = ladder.expect("a ladder consists of names and numbers");
            self.add(keys::SD_LADDER, ladder);
        }
        if self.of_webui.is_some() {
            self.add(keys::SD_SAMPLER, OF_WEBUI);
        } else if planned.row.is_none() && planned.default_sampler {
            self.add(keys::SD_SAMPLER, OF_MODEL);
        } else if planned.row.is_none() {
            let sampler = serde_json::to_string(&Scheduler::Custom(Arc::clone(&planned.sampler)));
            // A sampler of another crate cannot be written.
            let sampler = sampler.unwrap_or_else(|_| format!("{:?}", planned.sampler));
            self.add(keys::SD_SAMPLER, sampler);
        }
        match &planned.chosen.guidance {
            Guidance::ClassifierFree(guidance) if guidance.is_plain() => {}
            Guidance::ClassifierFree(guidance) => {
                let guidance = serde_json::to_string(guidance);
                let guidance = guidance.expect("it consists of names and finite numbers");
                self.add(keys::SD_GUIDANCE, guidance);
            }
            Guidance::Custom(guide) => self.add(keys::SD_GUIDANCE, format!("{guide:?}")),
        }
    }

    /// Adds the noise and the variation, if WebUI's keys do not describe them.
    fn own_noise(&mut self) {
        let seeds = self.picture.made.seeds;
        if rng_of(seeds.kind).and_then(noise_called) != Some(seeds.kind) {
            self.add(keys::SD_NOISE, written(seeds.kind));
        }
        let variation = seeds.variation.filter(|it| it.strength != 0.0);
        if let Some(variation) = variation.filter(|it| it.slerp != Slerp::default()) {
            self.add(keys::SD_SLERP, written(variation.slerp));
        }
    }

    fn sizes(&mut self) {
        let (planned, request) = (self.planned, self.request);
        if planned.sizes.is_none() && planned.refiner_sizes.is_none() {
            return;
        }
        if request.sizes != Sizes::default() {
            self.add(keys::SD_SIZES, written(request.sizes));
        }
        if let Some(sizes) = request.negative_sizes {
            self.add(keys::SD_NEGATIVE_SIZES, written(sizes));
        }
        let scores = [request.aesthetic_score, request.negative_aesthetic_score];
        let plain = Request::new("");
        if scores != [plain.aesthetic_score, plain.negative_aesthetic_score] {
            // A `Value` would have the digits of an `f64`.
            let scores = serde_json::to_string(&scores);
            let scores = scores.expect("the plan has checked that they are finite");
            self.add(keys::SD_AESTHETIC_SCORES, scores);
        }
    }

    fn tiles(&mut self) {
        if let Some(tiles) = self.request.tiles {
            self.add(keys::SD_TILES, written(tiles));
        }
    }

    fn shortcuts(&mut self) {
        if self.request.shortcuts != Shortcuts::NONE {
            // A `Value` would have the digits of an `f64`.
            let shortcuts = serde_json::to_string(&self.request.shortcuts);
            let shortcuts = shortcuts.expect("the plan has checked that the numbers are finite");
            self.add(keys::SD_SHORTCUTS, shortcuts);
            let calls = self.picture.timings.calls;
            let made = calls.full + calls.shallow;
            let mut text = format!("{made} of {}", calls.total());
            if calls.shallow > 0 {
                text += &format!(", {} of them shallow", calls.shallow);
            }
            self.add(keys::SD_NETWORK_CALLS, text);
        }
    }

    fn start(&mut self) {
        if self.request.image_guidance != Request::new("").image_guidance {
            let scale = self.request.image_guidance.to_string();
            self.add(keys::IMAGE_CFG_SCALE, scale);
        }
        let Some(start) = &self.request.start else {
            return;
        };
        self.add(keys::DENOISING_STRENGTH, start.strength.to_string());
        if start.noise_multiplier != 1.0 {
            self.add(keys::NOISE_MULTIPLIER, start.noise_multiplier.to_string());
        }
        if let Some(mask) = &start.mask {
            self.add(keys::MASK_BLUR, mask.blur.to_string());
            let content = match mask.content {
                MaskedContent::Original => None,
                MaskedContent::Fill => Some("fill"),
                MaskedContent::Noise => Some("latent noise"),
                MaskedContent::Nothing => Some("latent nothing"),
            };
            if let Some(content) = content {
                self.add(keys::MASKED_CONTENT, content);
            }
            if let Some(padding) = mask.only_masked {
                self.add(keys::INPAINT_AREA, ONLY_MASKED);
                self.add(keys::MASKED_AREA_PADDING, padding.to_string());
            }
        }
        self.add(keys::SD_START, Recorded::of(start).json());
    }

    fn hires(&mut self) {
        let (Some(hires), Some(second)) = (&self.request.hires, &self.planned.second) else {
            return;
        };
        let planned = &second.planned;
        let sampler = match planned.row {
            Some(row) => Some(row.title),
            None => name_of(&*planned.sampler),
        };
        let schedule_type = schedule_type(&planned.chosen.ladder);
        for (key, value) in hires::entries(hires, second, sampler, schedule_type) {
            self.add(key, value);
        }
    }

    fn prompts(&mut self) {
        let request = self.request;
        for (key, text) in [
            (keys::SD_PROMPT_2, &request.prompt_2),
            (keys::SD_NEGATIVE_PROMPT_2, &request.negative_2),
        ] {
            if let Some(text) = text {
                self.add(key, &**text);
            }
        }
        if request.prompt_options != PromptOptions::default() {
            self.add(keys::SD_PROMPT_OPTIONS, written(request.prompt_options));
        }
    }

    fn inversions(&mut self) {
        let second = self.picture.made.second_prompts.as_ref();
        let prompts = [
            Some(&self.picture.prompt),
            self.picture.negative.as_ref(),
            second.map(|(prompt, _)| prompt),
            second.and_then(|(_, negative)| negative.as_ref()),
        ];
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
            self.add(keys::TI_HASHES, inversions.join(", "));
        }
    }

    /// Adds the shapes of the inputs that are arrays.
    fn arrays(&mut self) {
        let request = self.request;
        for (key, prompt) in [
            (keys::SD_PROMPT_EMBEDDING, &request.prompt),
            (keys::SD_NEGATIVE_PROMPT_EMBEDDING, &request.negative),
        ] {
            if let Prompt::Embedding { embedding, .. } = prompt {
                self.add(key, shape(embedding.shape()));
            }
        }
        if let Some(noise) = &request.initial_noise {
            self.add(keys::SD_INITIAL_NOISE, shape(noise.shape()));
        }
        if let Some(beside) = &request.beside {
            self.add(keys::SD_BESIDE, shape(beside.shape()));
        }
    }

    fn done(self) -> Infotext {
        let request = self.request;
        let mut infotext = Infotext {
            prompt: shown(&request.prompt),
            negative: shown(&request.negative),
            entries: self.entries,
        };
        // The text is read back, to find the prompts that the format cannot represent.
        let read = Infotext::parse(&infotext.to_string()).unwrap_or_default();
        for (key, prompt, read) in [
            (keys::SD_PROMPT, &request.prompt, read.prompt),
            (keys::SD_NEGATIVE_PROMPT, &request.negative, read.negative),
        ] {
            if let Prompt::Text(text) = prompt
                && *text != read
            {
                infotext.entries.push((key.to_owned(), text.clone()));
            }
        }
        let version = concat!("sd-onnx ", env!("CARGO_PKG_VERSION"));
        infotext
            .entries
            .push((keys::VERSION.into(), version.into()));
        infotext
    }
}

/// Returns WebUI's label of exactly this ladder, or else this crate's name. `None` if it has
/// neither.
fn schedule_type(ladder: &Ladder) -> Option<&'static str> {
    schedule_type_of(ladder).or_else(|| ladder.name())
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
