//! From an infotext to the request that draws the picture again.

use std::{collections::HashSet, iter, num::NonZeroUsize, str::FromStr, sync::Arc};

use sd_schedulers::{
    Ladder, Sampler, Scheduler, SchedulerConfig, from_webui,
    names::split_webui,
    noise::{NoiseKind, Slerp, Variation},
    samplers::SamplerRow,
};
use sd_text::{
    Cleanup, Emphasis, PromptText, Segment, Side, Syntax,
    outside::printable,
    prompt::{NodeKind, When, attention},
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{
    Infotext, NOT_READ, OF_MODEL, OF_WEBUI, Reproduction,
    controls::is_unit,
    hires,
    keys::{self, KEYS},
    loras::{Calls, MOST_STEPS, hashes, merged},
    programs::{comfyui, invokeai, novelai},
    tiling, translated,
    webui::{
        default_row, from_forge, ladder_called, nearest, noise_called, of_comfyui, row_called,
        row_of_class, row_of_diffusers, split_comfyui, with_sgm_noise,
    },
};
use crate::{
    ClassifierFree, Guidance, ImageSize, Prompt, PromptOptions, RefinerShare, RefinerSwitch,
    Request,
    lora::{Callable, is_lora},
};

/// Implements [`Infotext::request`], and the part of
/// [`Pipeline::reproduction`](crate::Pipeline::reproduction) that needs the LoRAs of a pipeline.
/// `is_wide` is whether the text model is one for which WebUI ignores the clip skip.
pub(crate) fn reproduction(
    infotext: &Infotext,
    callable: Option<&Callable>,
    is_wide: bool,
) -> Reproduction {
    let mut reading = Reading {
        infotext,
        callable,
        foreign: infotext.is_foreign(),
        program: Program::of(infotext),
        differences: Vec::new(),
        unlisted: 0,
    };
    let prompt = reading.prompt(keys::SD_PROMPT, &infotext.prompt);
    let negative = reading.prompt(keys::SD_NEGATIVE_PROMPT, &infotext.negative);
    let mut request = Request::new(prompt).negative(negative).clip_skip(0);

    if let Some(steps) = reading.number::<NonZeroUsize>(keys::STEPS) {
        request = request.steps(steps.get());
    }
    let Way {
        scheduler,
        ladder,
        draws,
    } = reading.way(request.step_count());
    request = request.ladder(ladder);
    request.scheduler = scheduler;
    request.guidance = reading.guidance();
    if let Some(seed) = reading.number(keys::SEED) {
        request = request.seed(seed);
    }
    if let Some(size) = reading.size() {
        request = request.size(size.width(), size.height());
    }
    request.variation = reading.variation();
    if infotext.get(keys::SEED_RESIZE_FROM).is_some() {
        request.seed_resize = reading.value(keys::SEED_RESIZE_FROM, sides);
    }
    if infotext.get(keys::ENSD).is_some() {
        request.ensd = reading.value(keys::ENSD, offset).unwrap_or_default();
    }
    if infotext.get(keys::CLIP_SKIP).is_some()
        && let Some(layer) = reading.number::<NonZeroUsize>(keys::CLIP_SKIP)
    {
        request = request.clip_skip(layer.get());
        if is_wide && reading.foreign && reading.program == Program::WebUi {
            request = request.clip_skip(0);
            reading.note(format!(
                "`Clip skip: {layer}` is not applied: WebUI ignores it for such models"
            ));
        }
    }
    if infotext.get(keys::IMAGE_CFG_SCALE).is_some()
        && let Some(scale) = reading.finite(keys::IMAGE_CFG_SCALE)
    {
        request = request.image_guidance(scale);
    }
    reading.sizes(&mut request);
    if infotext.get(keys::SD_SHORTCUTS).is_some() {
        request.shortcuts = reading.value(keys::SD_SHORTCUTS, named).unwrap_or_default();
    }
    if infotext.get(keys::SD_TILES).is_some() {
        request.tiles = reading.value(keys::SD_TILES, named);
    }
    request.refiner = reading.refiner();
    request.prompt_2 = infotext.get(keys::SD_PROMPT_2).map(str::to_owned);
    request.negative_2 = infotext.get(keys::SD_NEGATIVE_PROMPT_2).map(str::to_owned);
    request.hires = hires::read(&mut reading, request.step_count());
    request.noise = reading.noise();
    request.prompt_options = reading.prompt_options();
    reading.in_webuis_syntax(&mut request);
    reading.made();
    reading.early_prompts(&request);
    reading.networks(&request);
    reading.called_loras(&mut request);
    reading.inversions();
    reading.loras();
    reading.tiling();
    reading.decoder();
    reading.start(&request);
    hires::note_enlarged(&mut reading);
    reading.others(draws);
    reading.done(request)
}

/// The largest number of differences that are listed. Only a malicious file has more.
const MOST_DIFFERENCES: usize = 50;

/// Keys of other programs that are read elsewhere or do not affect the picture.
const OF_OTHERS: [&str; 15] = [
    "Scheduler",
    "CFG Scale",
    "Variation strength",
    "Emphasis",
    "Pad conds",
    "User",
    "Created Date",
    "Template",
    "Negative Template",
    "Civitai resources",
    "Civitai metadata",
    "Hashes",
    // The size of the first pass in WebUI's old hires fix.
    hires::FIRST_PASS_SIZE,
    // Fooocus expands these to the prompts.
    "Raw prompt",
    "Raw negative prompt",
];

fn is_known(key: &str) -> bool {
    let ours = KEYS.iter().flat_map(|(_, keys)| *keys);
    ours.flat_map(|(names, _)| *names)
        .chain(&OF_OTHERS)
        .any(|known| *known == key)
}

/// The value of `App` for SD.Next, a relative of WebUI that runs diffusers.
pub(super) const SDNEXT: &str = "SD.Next";

/// How the latents are made from the noise.
pub(super) struct Way {
    /// The sampler, or `None` for the model's default.
    pub scheduler: Option<Scheduler>,
    pub ladder: Ladder,
    /// Whether the sampler adds noise between steps.
    draws: bool,
}

/// The program that made the picture, as far as it can be recognized.
#[derive(PartialEq)]
enum Program {
    /// WebUI, one of its relatives, or this crate.
    WebUi,
    ComfyUi,
    /// SD.Next, which runs diffusers.
    Diffusers,
    /// InvokeAI, which runs diffusers, and reads prompts with compel.
    InvokeAi,
    NovelAi,
}

impl Program {
    /// Returns the program that `Version` names. Others are recognized by their samplers.
    fn of(infotext: &Infotext) -> Self {
        match infotext.get(keys::VERSION).unwrap_or_default() {
            comfyui::VERSION => Self::ComfyUi,
            novelai::SOFTWARE => Self::NovelAi,
            version if version.starts_with(invokeai::VERSION) => Self::InvokeAi,
            _ => Self::WebUi,
        }
    }
}

/// The state of the conversion of an infotext to a request.
pub(super) struct Reading<'a> {
    pub(super) infotext: &'a Infotext,
    /// The LoRAs that prompts can call, if a pipeline is known.
    callable: Option<&'a Callable>,
    /// Whether another program than this crate wrote the infotext.
    foreign: bool,
    program: Program,
    differences: Vec<String>,
    /// The number of differences beyond those that are listed.
    unlisted: usize,
}

impl<'a> Reading<'a> {
    /// Adds a difference. Values of the infotext in it must be `printable`.
    pub(super) fn note(&mut self, difference: impl Into<String>) {
        if self.differences.len() < MOST_DIFFERENCES {
            self.differences.push(difference.into());
        } else {
            self.unlisted += 1;
        }
    }

    fn done(mut self, request: Request) -> Reproduction {
        if self.unlisted > 0 {
            let more = format!("and {} more differences", self.unlisted);
            self.differences.push(more);
        }
        Reproduction {
            request,
            differences: self.differences,
        }
    }

    /// Returns the value of a key, which other programs may spell differently.
    fn get(&self, key: &str) -> Option<&'a str> {
        let other = match key {
            keys::CFG_SCALE => "CFG Scale",
            keys::VARIATION_SEED_STRENGTH => "Variation strength",
            _ => key,
        };
        let value = self.infotext.get(key);
        value.or_else(|| self.infotext.get(other))
    }

    /// Returns a value as `read` converts it. If there is none, adds a difference.
    fn value<T>(&mut self, key: &str, read: impl FnOnce(&'a str) -> Option<T>) -> Option<T> {
        let found = self.get(key);
        let value = found.and_then(read);
        match found {
            Some(_) if value.is_some() => {}
            Some(found) => self.note(format!(
                "`{key}: {}` cannot be used, so the default is used",
                printable(found)
            )),
            None => self.note(format!("`{key}` is missing, so the default is used")),
        }
        value
    }

    pub(super) fn number<T: FromStr>(&mut self, key: &str) -> Option<T> {
        self.value(key, |value| value.parse().ok())
    }

    pub(super) fn finite(&mut self, key: &str) -> Option<f32> {
        self.value(key, finite)
    }

    fn prompt(&mut self, key: &str, shown: &'a str) -> &'a str {
        if let Some(shape) = self.get(&format!("{key} embedding")) {
            self.note(format!(
                "the {} was an embedding of shape {}, which has to be supplied again",
                key.trim_start_matches("SD "),
                printable(shape)
            ));
        }
        let prompt = self.get(key).unwrap_or(shown);
        if self.foreign && key == keys::SD_PROMPT && prompt.is_empty() {
            self.note("the infotext has no prompt, so an empty one is used");
        }
        prompt
    }

    /// Sets the size conditioning of an SDXL model.
    fn sizes(&mut self, request: &mut Request) {
        if self.get(keys::SD_SIZES).is_some() {
            request.sizes = self.value(keys::SD_SIZES, named).unwrap_or_default();
        }
        if self.get(keys::SD_NEGATIVE_SIZES).is_some() {
            request.negative_sizes = self.value(keys::SD_NEGATIVE_SIZES, named);
        }
        if self.get(keys::SD_AESTHETIC_SCORES).is_some()
            && let Some([score, negative]) =
                self.value(keys::SD_AESTHETIC_SCORES, named::<[f32; 2]>)
        {
            (request.aesthetic_score, request.negative_aesthetic_score) = (score, negative);
        }
    }

    /// Returns when the refiner took over, or `None` if there was no refiner.
    fn refiner(&mut self) -> Option<RefinerSwitch> {
        self.get(keys::REFINER)
            .or(self.get(keys::REFINER_SWITCH_AT))?;
        let share = |value: &str| value.parse().ok().filter(|at| (0.0..=1.0).contains(at));
        let at = self.value(keys::REFINER_SWITCH_AT, share);
        let at = at.unwrap_or(RefinerSwitch::default().at);
        let by = match self.get(keys::REFINER_SWITCH_BY_SAMPLING_STEPS) {
            Some("True") => RefinerShare::Steps,
            _ => RefinerShare::Timesteps,
        };
        Some(RefinerSwitch { at, by })
    }

    /// Returns the size of the picture, or of its first pass.
    fn size(&mut self) -> Option<ImageSize> {
        match hires::first_pass_size(self.infotext) {
            Some(size) => self.rounded(hires::FIRST_PASS_SIZE, size),
            None => {
                let size = self.value(keys::SIZE, sides)?;
                self.rounded(keys::SIZE, size)
            }
        }
    }

    /// Rounds the sides of a size down to multiples of 8, as WebUI does. `key` is the key of the
    /// size, for the differences.
    pub(super) fn rounded(&mut self, key: &str, [width, height]: [u32; 2]) -> Option<ImageSize> {
        let Ok(size) = ImageSize::new(width / 8 * 8, height / 8 * 8) else {
            self.note(format!(
                "`{key}: {width}x{height}` cannot be used, so the default is used"
            ));
            return None;
        };
        let name = match key {
            keys::SIZE => "the size".to_owned(),
            key => format!("`{key}`"),
        };
        if [width, height] != [size.width(), size.height()] {
            self.note(format!(
                "{name} was {width}x{height}, and is rounded down to {}x{}, as sides are multiples \
                 of 8",
                size.width(),
                size.height()
            ));
        }
        Some(size)
    }

    /// Returns the sampler and its ladder.
    fn way(&mut self, steps: usize) -> Way {
        if self.foreign {
            return self.way_of_others(steps);
        }
        let preset = match self.get(keys::SD_SAMPLER) {
            Some(OF_WEBUI) => self.get(keys::SAMPLER),
            _ => None,
        };
        if let Some(preset) = preset.and_then(|name| from_webui(name, None).ok()) {
            return Way {
                ladder: self.ladder(preset.row.default_ladder.clone()),
                scheduler: Some(self.first_x(preset.sampler).into()),
                draws: true,
            };
        }
        if self.get(keys::SD_SAMPLER) == Some(OF_MODEL) {
            return Way {
                scheduler: None,
                ladder: self.ladder(default_row().default_ladder.clone()),
                draws: true,
            };
        }
        let scheduler = match self.get(keys::SD_SAMPLER).filter(|own| *own != OF_WEBUI) {
            Some(own) => self.sampler_with_options(own),
            None => self.row().into(),
        };
        Way {
            ladder: self.ladder(scheduler.default_ladder(&SchedulerConfig::default())),
            scheduler: Some(scheduler),
            draws: true,
        }
    }

    fn sampler_with_options(&mut self, own: &str) -> Scheduler {
        if let Ok(scheduler) = serde_json::from_str(own) {
            return scheduler;
        }
        let row = default_row();
        self.note(format!(
            "the sampler was `{}`, which is unknown, so {} is used",
            printable(own),
            row.title
        ));
        row.into()
    }

    fn row(&mut self) -> &'static SamplerRow {
        let Some(name) = self.value(keys::SAMPLER, Some) else {
            return default_row();
        };
        row_called(name).unwrap_or_else(|| {
            let row = default_row();
            self.no_sampler(name, row.title);
            row
        })
    }

    fn ladder(&mut self, default: Ladder) -> Ladder {
        if let Some(json) = self.get(keys::SD_LADDER) {
            return serde_json::from_str(json).unwrap_or_else(|_| {
                self.note(format!(
                    "`SD ladder: {}` cannot be used, so the default is used",
                    printable(json)
                ));
                default
            });
        }
        let Some(name) = self.get(keys::SCHEDULE_TYPE) else {
            self.note("`Schedule type` is missing, so the default is used");
            return default;
        };
        self.ladder_called(name, default)
    }

    /// Returns the ladder of a schedule type of this crate.
    fn ladder_called(&mut self, name: &str, default: Ladder) -> Ladder {
        // This crate's names come first: some labels of WebUI resemble them, but mean another
        // ladder.
        let ours = name.parse::<Ladder>().ok();
        let ladder = ours.or_else(|| ladder_called(name));
        ladder.unwrap_or_else(|| {
            self.note(format!(
                "schedule type `{}` is unknown, so the default is used",
                printable(name)
            ));
            default
        })
    }

    /// Returns the sampler and the ladder for files of WebUI and its relatives, ComfyUI and
    /// SD.Next.
    fn way_of_others(&mut self, steps: usize) -> Way {
        let name = self
            .value(keys::SAMPLER, Some)
            .unwrap_or(default_row().title);
        let labels = [keys::SCHEDULE_TYPE, "Scheduler"].map(|key| self.get(key));
        if let Some(way) = self.way_of_comfyui(name, labels) {
            return way;
        }
        self.way_called(name, labels, steps)
    }

    /// Returns the sampler and the ladder of the second pass in a file of another program, if the
    /// second pass has its own sampler. If only the ladder is another, `scheduler` is `None`.
    pub(super) fn second_way(&mut self, steps: usize) -> Option<Way> {
        let other = |key, same| self.get(key).filter(|&value| value != same);
        let name = other(keys::HIRES_SAMPLER, "Use same sampler");
        let label = other(keys::HIRES_SCHEDULE_TYPE, "Use same scheduler");
        let Some(name) = name else {
            let ladder = match self.foreign {
                true => self.ladder_of_others(label?),
                false => Some(self.ladder_called(label?, Ladder::normal())),
            };
            return Some(Way {
                scheduler: None,
                ladder: ladder?,
                draws: false,
            });
        };
        if !self.foreign {
            let preset = match self.get(keys::SD_SAMPLER) {
                Some(OF_WEBUI) => from_webui(name, None).ok(),
                _ => None,
            };
            let (scheduler, usual): (Scheduler, _) = match (preset, row_called(name)) {
                (Some(preset), _) => (self.first_x(preset.sampler).into(), preset.ladder),
                (None, Some(row)) => (row.into(), row.default_ladder.clone()),
                (None, None) => {
                    self.no_sampler(name, "the first pass's");
                    return None;
                }
            };
            let ladder = label.map(|label| self.ladder_called(label, usual.clone()));
            return Some(Way {
                scheduler: Some(scheduler),
                ladder: ladder.unwrap_or(usual),
                draws: true,
            });
        }
        // WebUI writes the schedule type of the second pass only if it differs.
        let labels = match label {
            Some(_) => [label, None],
            None => [keys::SCHEDULE_TYPE, "Scheduler"].map(|key| self.get(key)),
        };
        if self.program == Program::ComfyUi
            && let Some(way) = self.way_of_comfyui(name, labels)
        {
            return Some(way);
        }
        if self.program == Program::Diffusers
            && let Some(row) = row_of_diffusers(name)
        {
            return Some(self.way_of_diffusers(name, row, label));
        }
        Some(self.way_called(name, labels, steps))
    }

    /// Returns the sampler of this name, with the ladder of the values of `Schedule type` and
    /// `Scheduler`.
    fn way_called(
        &mut self,
        name: &'a str,
        [schedule_type, scheduler]: [Option<&'a str>; 2],
        steps: usize,
    ) -> Way {
        // SD.Next writes the class name of diffusers.
        if let Some(row) = scheduler.and_then(|class| row_of_class(name, class)) {
            return self.way_of_diffusers(name, row, schedule_type);
        }
        let (name, in_name) = split_webui(name);
        // Before version 1.9, the sampler's name contained any ladder other than Uniform.
        let label = in_name.or(schedule_type).or(scheduler);
        let is_known = from_webui(name, None).is_ok();
        if !is_known {
            let of_sdnext = self.get("App") == Some(SDNEXT);
            if let Some(preset) = from_forge(name).filter(|_| !of_sdnext) {
                let ladder = label.and_then(|label| self.ladder_of_others(label));
                return Way {
                    ladder: ladder.unwrap_or(preset.ladder),
                    draws: preset.row.stochastic,
                    scheduler: Some(self.first_x(preset.sampler).into()),
                };
            }
            if let Some(row) = row_of_diffusers(name) {
                return self.way_of_diffusers(name, row, label);
            }
        }
        let of_sdnext = || self.get("Sampler sigma").filter(|&it| it != "default");
        let label = label.or_else(of_sdnext).unwrap_or("Uniform");
        let known = if is_known {
            name
        } else {
            let nearest = nearest(name);
            self.no_sampler(name, nearest);
            nearest
        };
        self.way_of_webui(known, label, steps)
    }

    fn no_sampler(&mut self, name: &str, instead: &str) {
        let name = printable(name);
        self.note(format!("sampler `{name}` is unknown, so {instead} is used"));
    }

    /// Returns the ladder of a schedule type of any program. If it is unknown, adds a difference.
    pub(super) fn ladder_of_others(&mut self, label: &str) -> Option<Ladder> {
        let of_comfyui = || Some(of_comfyui("euler", label)?.ladder);
        let ladder = ladder_called(label).or_else(of_comfyui);
        if ladder.is_none() {
            self.note(format!(
                "schedule type `{}` is unknown, so the usual one is used",
                printable(label)
            ));
        }
        ladder
    }

    /// Returns the sampler and the ladder if ComfyUI made the picture. Third-party nodes save
    /// ComfyUI's pictures with infotexts.
    fn way_of_comfyui(&mut self, name: &str, labels: [Option<&str>; 2]) -> Option<Way> {
        let [schedule_type, scheduler] = labels;
        let version = self.get(keys::VERSION).unwrap_or_default();
        let says_so = self.program == Program::ComfyUi;
        // WebUI also accepts the names of its samplers in lower case.
        let of_webui = schedule_type.is_some() || version.starts_with("v1.");
        if (of_webui || self.program != Program::WebUi) && !says_so {
            return None;
        }
        let in_webuis_words = || {
            let (name, behind) = split_webui(name);
            let row = from_webui(name, None).ok()?.row;
            Some((row.comfyui?, behind))
        };
        let in_its_own = split_comfyui(name);
        let found = in_its_own.or_else(|| says_so.then(in_webuis_words)?);
        let (sampler, behind) = found?;
        let scheduler = behind.or(schedule_type).or(scheduler);
        let preset = scheduler.and_then(|scheduler| of_comfyui(sampler, scheduler));
        if let Some(scheduler) = scheduler.filter(|_| preset.is_none()) {
            self.note(format!(
                "scheduler `{}` is unknown, so `normal` is used",
                printable(scheduler)
            ));
        }
        let preset = preset.or_else(|| of_comfyui(sampler, "normal"))?;
        if sampler.ends_with("_gpu") {
            self.note(format!(
                "{sampler} drew its noise on a GPU, but here it is drawn on the CPU"
            ));
        }
        self.program = Program::ComfyUi;
        Some(Way {
            scheduler: Some(preset.sampler.into()),
            ladder: preset.ladder,
            draws: preset.row.stochastic,
        })
    }

    /// Returns the sampler and the ladder for SD.Next, whose samplers are diffusers' samplers.
    fn way_of_diffusers(
        &mut self,
        name: &str,
        row: &'static SamplerRow,
        label: Option<&str>,
    ) -> Way {
        self.note(format!(
            "`{}` is a sampler of diffusers, so {} with its usual options is used",
            printable(name),
            row.title
        ));
        if self.program == Program::WebUi {
            self.program = Program::Diffusers;
        }
        let sigma = self.get("Sampler sigma").and_then(ladder_called);
        let spacing = || self.get("Sampler spacing")?.parse().ok();
        let ladder = sigma.or_else(spacing);
        let ladder = ladder.or_else(|| self.ladder_of_others(label?));
        // SD.Next uses linspace where this crate's default is a shaped ladder.
        let usual = || match &row.default_ladder {
            Ladder::Shaped { .. } => Ladder::linspace(),
            ladder => ladder.clone(),
        };
        Way {
            scheduler: Some(row.into()),
            ladder: ladder.unwrap_or_else(usual),
            draws: row.stochastic,
        }
    }

    /// Returns a sampler that WebUI knows, on a ladder that it may not know.
    fn way_of_webui(&mut self, known: &str, label: &str, steps: usize) -> Way {
        let preset = from_webui(known, Some(label)).or_else(|_| {
            let mut preset = from_webui(known, None)?;
            let other = Ladder::polyexponential();
            // Some samplers of WebUI always use their own ladder.
            let takes_any = from_webui(known, Some("Polyexponential"))?.ladder == other;
            if let Some(ladder) = self.ladder_of_others(label).filter(|_| takes_any) {
                preset.ladder = ladder;
            }
            Ok::<_, sd_schedulers::names::UnknownName>(preset)
        });
        let default = default_row();
        let Ok(preset) = preset else {
            return Way {
                scheduler: Some(default.into()),
                ladder: default.default_ladder.clone(),
                draws: true,
            };
        };
        // The number of points of `range(0, 1000, 1000 // steps)`.
        let points = 1000_usize.div_ceil((1000 / steps).max(1));
        match preset.row.name {
            // Early versions had another implementation, whose last step is the same as in
            // diffusers.
            "ddim" if self.early() => {
                if points != steps {
                    self.note(format!(
                        "DDIM visited {points} timesteps for {steps} steps, but here it visits {steps}"
                    ));
                }
                return Way {
                    scheduler: Some(preset.row.into()),
                    ladder: Ladder::leading(),
                    draws: false,
                };
            }
            "unipc" if points != steps => self.note(format!(
                "UniPC visited {points} timesteps for {steps} steps, but here it visits {steps}"
            )),
            "lcm" if preset.ladder != Ladder::lcm_even() => self.note(
                "LCM's schedule type covered the sigmas of 50 timesteps, but here it covers the sigmas of all",
            ),
            _ => {}
        }
        Way {
            ladder: preset.ladder,
            draws: preset.ensd || preset.sampler.needs().brownian,
            scheduler: Some(self.first_x(preset.sampler).into()),
        }
    }

    /// Returns whether a version before 1.6 made the picture. The first versions have no number.
    /// Forks have other numbers, but began later.
    fn early(&self) -> bool {
        self.get(keys::VERSION).is_none_or(|version| {
            let minor = version.trim_start_matches('v').strip_prefix("1.");
            let minor = minor.and_then(|rest| rest.split('.').next()?.parse::<u32>().ok());
            minor.is_some_and(|minor| minor < 6)
        })
    }

    /// Returns a sampler of WebUI that scales the initial noise as for this picture.
    pub(super) fn first_x(&self, sampler: Arc<dyn Sampler>) -> Arc<dyn Sampler> {
        match self.get(keys::SGM_NOISE_MULTIPLIER) {
            Some("True") => with_sgm_noise(sampler),
            _ => sampler,
        }
    }

    fn guidance(&mut self) -> Option<Guidance> {
        if let Some(own) = self.get(keys::SD_GUIDANCE) {
            if let Ok(guidance) = serde_json::from_str::<ClassifierFree>(own) {
                return Some(guidance.into());
            }
            self.note(format!(
                "the guidance was `{}`, a custom one, so the default scale is used",
                printable(own)
            ));
            return None;
        }
        let scale = self.finite(keys::CFG_SCALE)?;
        let name = self.get(keys::SAMPLER).unwrap_or_default();
        if self.foreign && scale < 1.0 && !is_cfg_pp(name) {
            self.note(BELOW_1);
        }
        Some(self.scale(scale, name).into())
    }

    /// Returns the guidance of the second pass, if it differs.
    pub(super) fn second_guidance(&mut self) -> Option<Guidance> {
        let first = self.get(keys::CFG_SCALE).and_then(finite);
        let own = match self.get(keys::HIRES_CFG_SCALE) {
            Some(_) => self.finite(keys::HIRES_CFG_SCALE),
            None => None,
        };
        let sampler = self.get(keys::SAMPLER).unwrap_or_default();
        let hires_sampler = self.get(keys::HIRES_SAMPLER);
        let second_sampler = hires_sampler.filter(|&it| it != "Use same sampler");
        let second_sampler = second_sampler.unwrap_or(sampler);
        let scale = own.or(first)?;
        // The difference is the same for both passes.
        let is_low = |scale: f32, sampler| scale < 1.0 && !is_cfg_pp(sampler);
        if self.foreign
            && is_low(scale, second_sampler)
            && !first.is_some_and(|first| is_low(first, sampler))
        {
            self.note(BELOW_1);
        }
        let second = self.scale(scale, second_sampler);
        let differs = first.map(|first| self.scale(first, sampler)) != Some(second);
        (own.is_some() || differs).then(|| second.into())
    }

    /// Converts the scale of a sampler in WebUI.
    fn scale(&self, scale: f32, sampler: &str) -> f32 {
        match self.foreign && is_cfg_pp(sampler) {
            // In WebUI this scale is 0 to 12.5.
            true => scale / 12.5,
            false => scale,
        }
    }

    fn variation(&mut self) -> Option<Variation> {
        let keys = [keys::VARIATION_SEED, keys::VARIATION_SEED_STRENGTH];
        if keys.iter().all(|key| self.get(key).is_none()) {
            return None;
        }
        let seed = self.number(keys[0]);
        let within = |value: &str| finite(value).filter(|strength| (0.0..=1.0).contains(strength));
        let strength = self.value(keys[1], within);
        let slerp = match self.get(keys::SD_SLERP) {
            Some(_) => self.value(keys::SD_SLERP, named::<Slerp>),
            None => Some(Slerp::Columns),
        };
        Some(Variation {
            seed: seed?,
            strength: strength?,
            slerp: slerp?,
        })
    }

    fn noise(&mut self) -> NoiseKind {
        if self.get(keys::SD_NOISE).is_some() {
            return self.value(keys::SD_NOISE, named).unwrap_or_default();
        }
        match self.get(keys::RNG) {
            None if self.program == Program::ComfyUi => NoiseKind::Torch,
            None | Some("GPU") => {
                self.note(
                    "the noise was drawn on a GPU that is not named, so the noise of `RNG: NV` is used: it is the same \
                     if the GPU has a thread for each value of the latents",
                );
                NoiseKind::Philox
            }
            Some(rng) => noise_called(rng).unwrap_or_else(|| {
                self.note(format!(
                    "the noise was drawn by `RNG: {}`, which is unknown, so torch's CPU generator is used",
                    printable(rng)
                ));
                NoiseKind::Torch
            }),
        }
    }

    /// Adds differences for inputs that the caller supplied, for the batch, and for SD.Next.
    fn made(&mut self) {
        if self.get("App") == Some(SDNEXT) {
            self.note("the picture was made by SD.Next, whose computations differ from WebUI's");
        }
        if let Some(shape) = self.get(keys::SD_INITIAL_NOISE) {
            self.note(format!(
                "the initial noise, of shape {}, was supplied, and has to be supplied again",
                printable(shape)
            ));
        }
        if let Some(shape) = self.get(keys::SD_BESIDE) {
            self.note(format!(
                "extra channels of shape {} beside the latents were supplied, and have to be supplied again",
                printable(shape)
            ));
        }
        if let Some(size) = self.get(keys::BATCH_SIZE).filter(|&size| size != "1") {
            self.note(format!(
                "the picture was one of a batch of {}, and is the same alone except for rounding",
                printable(size)
            ));
        }
    }

    /// Returns how the prompts are read.
    fn prompt_options(&mut self) -> PromptOptions {
        if !self.foreign {
            return match self.get(keys::SD_PROMPT_OPTIONS) {
                Some(_) => self
                    .value(keys::SD_PROMPT_OPTIONS, named)
                    .unwrap_or_default(),
                None => PromptOptions::default(),
            };
        }
        if let Some(syntax) = self.other_syntax() {
            let options = PromptOptions::default().syntax(syntax);
            return options.emphasis(Emphasis::Interpolate);
        }
        let emphasis = match self.get("Emphasis") {
            None | Some("Original") => Emphasis::KeepMean,
            Some("No norm") => Emphasis::Multiply,
            Some("Ignore") => Emphasis::Ignore,
            Some(other) => {
                self.not_followed("Emphasis", other);
                Emphasis::KeepMean
            }
        };
        let same_length = match self.get("Pad conds") {
            None => false,
            Some("True") => true,
            Some(other) => {
                self.not_followed("Pad conds", other);
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

    /// Returns the syntax of the prompts, if the program has another than WebUI's.
    fn other_syntax(&self) -> Option<Syntax> {
        match self.program {
            Program::ComfyUi => Some(Syntax::ComfyUi),
            Program::InvokeAi => Some(Syntax::Compel),
            Program::WebUi | Program::Diffusers | Program::NovelAi => None,
        }
    }

    /// Translates the prompts of other programs to WebUI's syntax, where that is needed: NovelAI's
    /// always, and others if they call LoRAs, which only WebUI's syntax has.
    fn in_webuis_syntax(&mut self, request: &mut Request) {
        let Prompt::Text(prompt) = &mut request.prompt else {
            return;
        };
        let mut texts = vec![prompt];
        if let Prompt::Text(negative) = &mut request.negative {
            texts.push(negative);
        }
        texts.extend(&mut request.prompt_2);
        texts.extend(&mut request.negative_2);
        if self.program == Program::NovelAi {
            let mut operators = false;
            for text in texts {
                if let Some(unread) = translated::has_weights_of_novelai(text) {
                    let unread = printable(unread);
                    self.note(format!("NovelAI's `{unread}` in a prompt is read as text"));
                }
                operators = operators || translated::has_operators(text);
                *text = translated::from_novelai(text);
            }
            if operators {
                self.note(
                    "`AND`, `BREAK`, `#`, `<` and `|` in a prompt may mean something else here than \
                     in NovelAI",
                );
            }
            return;
        }
        let Some(syntax) = self.other_syntax().filter(|_| self.foreign) else {
            return;
        };
        if syntax == Syntax::Compel {
            let mut segments = texts.iter().flat_map(|text| attention(text, syntax));
            let is_low = |it| matches!(it, Segment::Text { weight, .. } if weight < 1.0);
            if segments.any(is_low) {
                self.note(
                    "InvokeAI blends a weight below 1 with the prompt without these words, but \
                     here it moves towards the empty prompt",
                );
            }
        }
        let (rest, calls) = translated::without_loras(texts[0]);
        if calls.is_empty() {
            return;
        }
        let mut all = vec![rest];
        all.extend(texts[1..].iter().map(|text| (**text).clone()));
        let translated = all.iter().map(|text| translated::to_webui(text, syntax));
        match translated.collect::<Option<Vec<_>>>() {
            Some(mut translated) => {
                translated[0] += &calls.concat();
                for (text, translated) in texts.into_iter().zip(translated) {
                    *text = translated;
                }
                request.prompt_options.syntax = Syntax::WebUi;
            }
            None => {
                texts[0].clone_from(&all[0]);
                for call in calls {
                    self.note(format!(
                        "`{}` has to be merged into the model, as the prompt cannot be written in \
                         the syntax that calls LoRAs",
                        printable(call)
                    ));
                }
            }
        }
    }

    /// Adds differences for prompts that versions before 1.6 read differently. `backcompat` of
    /// WebUI's `modules/infotext_versions.py` lists the changes.
    fn early_prompts(&mut self, request: &Request) {
        if !self.foreign || !self.early() || self.program != Program::WebUi {
            return;
        }
        let syntax = request.prompt_options.syntax;
        let hires = request.hires.as_ref();
        let prompts = [
            (Some(&request.prompt), Side::Positive),
            (Some(&request.negative), Side::Negative),
            (hires.and_then(|it| it.prompt.as_ref()), Side::Positive),
            (hires.and_then(|it| it.negative.as_ref()), Side::Negative),
        ];
        let texts = prompts.map(|(prompt, side)| (text_of(prompt), side));
        for (text, side) in texts {
            let read = PromptText::parse(text, side, syntax);
            let nodes = read.tree().nodes();
            let all = nodes.flat_map(|node| iter::once(node).chain(node.descendants()));
            let mut other = all.filter(|node| {
                matches!(*node.kind(), NodeKind::Schedule { when } if match when {
                    When::Fraction(part) => part >= 1.0,
                    When::Step(step) => 0.0 < step && step < 1.0,
                })
            });
            // Nested nodes contain each other's text, so that printing all of them would take
            // quadratic time.
            for node in other.by_ref().take(MOST_DIFFERENCES) {
                self.note(format!(
                    "in `{}` WebUI took a number of 1 or more as a step, and a smaller one as a share of the steps, but \
                     here a number with a decimal point is a share, and one without is a step",
                    printable(node.text())
                ));
            }
            self.unlisted += other.count();
        }
        let sampler = split_webui(self.get(keys::SAMPLER).unwrap_or_default()).0;
        // A window has 75 tokens of at least one byte each.
        let long = texts
            .iter()
            .any(|(text, _)| text.len() > 75 || text.contains("BREAK"));
        if long && matches!(sampler, "DDIM" | "PLMS") {
            self.note(format!(
                "{sampler} cut the negative prompt to the prompt's length or repeated its last vector, but here each prompt keeps its length"
            ));
        }
    }

    /// Adds differences for the extra networks that the prompt names, except for LoRAs.
    fn networks(&mut self, request: &Request) {
        // A network that is not applied here was not applied to a picture of this crate either.
        if !self.foreign {
            return;
        }
        let syntax = request.prompt_options.syntax;
        let second = request.hires.as_ref().and_then(|it| it.prompt.as_ref());
        for prompt in [Some(&request.prompt), second] {
            let text = text_of(prompt);
            let read = PromptText::parse(text, Side::Positive, syntax);
            for network in read.networks().iter().filter(|it| !is_lora(it)) {
                let named = &text[network.span.clone()];
                self.note(format!("`{}` is not applied", printable(named)));
            }
        }
    }

    /// Adds differences for the LoRAs that the prompts call, and changes the prompts to the names
    /// that the pipeline has for them.
    fn called_loras(&mut self, request: &mut Request) {
        let merged = match self.get(keys::SD_LORAS) {
            Some(weights) if !self.foreign => merged(weights),
            _ => 0,
        };
        let all = self.get(keys::LORA_HASHES).unwrap_or_default();
        let mut calls = Calls {
            callable: self.callable,
            hashes: hashes(all).skip(merged).collect(),
            steps: request.step_count().min(MOST_STEPS),
            named: HashSet::new(),
            seen: HashSet::new(),
        };
        let syntax = request.prompt_options.syntax;
        let text = |prompt| match prompt {
            &mut Prompt::Text(ref mut text) => Some(text),
            Prompt::Embedding { .. } => None,
        };
        let first = text(&mut request.prompt);
        for text in first.into_iter().chain(&mut request.prompt_2) {
            *text = calls.follow(text, syntax, |difference| self.note(difference));
        }
        // The second pass has its own LoRAs.
        calls.seen.clear();
        let second = request.hires.as_mut().and_then(|it| it.prompt.as_mut());
        if let Some(text) = second.and_then(text) {
            *text = calls.follow(text, syntax, |difference| self.note(difference));
        }
        for other in calls.others() {
            let other = printable(other);
            self.note(format!(
                "the LoRA `{other}` was used, but the prompt does not call it"
            ));
        }
    }

    /// Adds a difference for LoRAs that were merged into the model.
    fn loras(&mut self) {
        if let Some(weights) = self.get(keys::SD_LORAS)
            && !self.foreign
        {
            self.note(loras_note(weights));
        }
    }

    /// Adds differences for a seamless picture. A pipeline is seamless or not when it is loaded.
    fn tiling(&mut self) {
        for (key, values) in [
            (keys::TILING, &["True", "False"][..]),
            (keys::SD_TILING, &["x", "y"]),
        ] {
            if self.get(key).is_some() {
                self.value(key, |value| values.contains(&value).then_some(()));
            }
        }
        if let Some(note) = tiling::note(self.infotext.seamless()) {
            self.note(note);
        }
    }

    /// Adds differences for a picture that was not exactly decoded by the model's autoencoder, or
    /// not computed in f32.
    fn decoder(&mut self) {
        if let Some(decoder) = self.get(keys::SD_DECODER)
            && !self.foreign
        {
            self.note(decoder_note(decoder));
        }
        if let Some(precision) = self.get(keys::SD_PRECISION)
            && !self.foreign
        {
            self.note(precision_note(precision));
        }
    }

    /// Adds differences for the picture that the run started from.
    fn start(&mut self, request: &Request) {
        let mut notes = self.infotext.start_notes();
        self.unipc(request, !notes.is_empty());
        notes.extend(self.infotext.control_notes());
        for note in notes {
            self.note(note);
        }
    }

    /// Adds a difference for WebUI's UniPC in a run that begins in the middle of a ladder.
    fn unipc(&mut self, request: &Request, begins_in_the_middle: bool) {
        let has = |key, value: Option<&str>| self.get(key).or(value) == Some("UniPC");
        let first = self.get(keys::SAMPLER);
        let in_second = request.hires.is_some() && has(keys::HIRES_SAMPLER, first);
        if self.foreign && (in_second || begins_in_the_middle && has(keys::SAMPLER, None)) {
            self.note("WebUI's UniPC has other noise levels in a run that starts from a picture");
        }
    }

    /// Adds a difference for textual inversions, which a pipeline must load.
    fn inversions(&mut self) {
        if let Some(named) = self.get(keys::TI_HASHES) {
            self.note(format!(
                "the prompts name textual inversions, which have to be loaded: `{}`",
                printable(named)
            ));
        }
    }

    fn not_followed(&mut self, key: &str, value: &str) {
        let entry = printable(format_args!("{key}: {value}"));
        self.note(format!("`{entry}` is ignored"));
    }

    /// Adds differences for all other keys, as any of them may affect the picture.
    fn others(&mut self, draws: bool) {
        let infotext = self.infotext;
        let mut named = HashSet::new();
        for (key, value) in &infotext.entries {
            if key == NOT_READ {
                self.note(printable(value));
                continue;
            }
            let inert = match (key.as_str(), value.as_str()) {
                ("Eta", _) => !draws,
                ("Denoise", value) => value.parse() == Ok(1.0_f32),
                ("Operations", "txt2img")
                | ("Parser", "a1111")
                | ("Pipeline", "StableDiffusionPipeline")
                | ("Sampler type", "epsilon") => true,
                ("Sampler sigma", _) => self.program != Program::ComfyUi,
                ("Sampler spacing", _) => self.program == Program::Diffusers,
                ("App", SDNEXT) => true,
                (key, _) => is_known(key) || is_unit(key),
            };
            if !inert && named.insert(key) {
                self.not_followed(key, value);
            }
        }
    }
}

/// Returns the difference for LoRAs of a picture of this crate. `weights` is the value of
/// `SD loras`.
pub(crate) fn loras_note(weights: &str) -> String {
    format!(
        "the LoRAs `{}` were merged into the model, and have to be loaded in this order",
        printable(weights)
    )
}

/// Returns the difference for a picture whose decoder was approximated. `decoder` is the value of
/// `SD decoder`.
pub(crate) fn decoder_note(decoder: &str) -> String {
    format!(
        "the picture was decoded with {}, which a pipeline does only if its codec is set so",
        printable(decoder)
    )
}

/// Returns the difference for a picture whose denoiser did not compute in f32. `precision` is the
/// value of `SD precision`.
pub(crate) fn precision_note(precision: &str) -> String {
    format!(
        "the denoiser computed in {}, and the model has to be loaded in this precision",
        printable(precision)
    )
}

/// The difference for a scale below 1.
const BELOW_1: &str =
    "at a CFG scale below 1 the negative prompt was mixed in, but here it is ignored";

/// Returns whether a sampler is WebUI's "DDIM CFG++".
fn is_cfg_pp(sampler: &str) -> bool {
    let preset = from_webui(split_webui(sampler).0, None);
    preset.is_ok_and(|preset| preset.row.name == "ddim-cfg-pp")
}

/// Returns the text of a prompt, which is empty for none and for an embedding.
fn text_of(prompt: Option<&Prompt>) -> &str {
    prompt.and_then(Prompt::as_text).unwrap_or_default()
}

/// Parses a number, but neither `nan` nor `inf`, which Rust reads as numbers.
pub(super) fn finite(value: &str) -> Option<f32> {
    value.parse().ok().filter(|number: &f32| number.is_finite())
}

/// Parses a width and a height, such as `512x768`.
pub(super) fn sides(value: &str) -> Option<[u32; 2]> {
    let (width, height) = value.split_once('x')?;
    Some([width.parse().ok()?, height.parse().ok()?])
}

/// Parses a seed offset. A negative offset wraps around.
fn offset(value: &str) -> Option<u64> {
    let below = || value.parse::<i64>().ok().map(|offset| offset as u64);
    value.parse().ok().or_else(below)
}

/// Parses a value that was written as JSON. A string has no quotes.
fn named<T: DeserializeOwned>(value: &str) -> Option<T> {
    let name = serde_json::from_value(Value::from(value));
    name.or_else(|_| serde_json::from_str(value)).ok()
}
