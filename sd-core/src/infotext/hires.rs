//! The second pass in an infotext.

use sd_text::outside::printable;

use super::{
    Infotext, keys,
    request::{Reading, sides},
};
use crate::{Hires, HiresSize, Upscaler, plan::Second};

/// The keys by which a second pass is recognized in files of other programs.
const MARKS: [&str; 4] = [
    keys::HIRES_UPSCALE,
    keys::HIRES_RESIZE,
    keys::HIRES_UPSCALER,
    FIRST_PASS_SIZE,
];

/// The key of the first pass's size in WebUI's old hires fix, where `Size` is the size of the
/// finished picture.
pub(super) const FIRST_PASS_SIZE: &str = "First pass size";

impl Infotext {
    /// Returns whether the picture was made in two passes, so that its strength is the strength of
    /// the second one.
    pub(super) fn has_second_pass(&self) -> bool {
        match self.is_foreign() {
            true => MARKS.iter().any(|key| self.get(key).is_some()),
            false => self.get(keys::SD_HIRES).is_some(),
        }
    }
}

/// Returns the entries of a second pass. `sampler` is WebUI's name of its sampler, or its title,
/// and `schedule_type` the name of its ladder.
pub(super) fn entries(
    hires: &Hires,
    second: &Second,
    sampler: Option<&str>,
    schedule_type: Option<&str>,
) -> Vec<(&'static str, String)> {
    let mut entries = vec![(keys::DENOISING_STRENGTH, hires.strength.to_string())];
    match hires.size {
        HiresSize::Scale(scale) => entries.push((keys::HIRES_UPSCALE, scale.to_string())),
        HiresSize::Pixels([width, height]) => {
            entries.push((keys::HIRES_RESIZE, format!("{width}x{height}")));
        }
    }
    if let Some(steps) = hires.steps {
        entries.push((keys::HIRES_STEPS, steps.to_string()));
    }
    if let Some(name) = hires.upscaler.webui() {
        entries.push((keys::HIRES_UPSCALER, name.to_owned()));
    }
    if hires.scheduler.is_some() {
        let name = sampler.map(|name| (keys::HIRES_SAMPLER, name.to_owned()));
        entries.extend(name);
    }
    if hires.scheduler.is_some() || hires.ladder.is_some() {
        let name = schedule_type.map(|name| (keys::HIRES_SCHEDULE_TYPE, name.to_owned()));
        entries.extend(name);
    }
    if let Some(scale) = hires
        .guidance
        .as_ref()
        .and(second.planned.chosen.guidance.scale())
    {
        entries.push((keys::HIRES_CFG_SCALE, scale.to_string()));
    }
    for (key, prompt) in [
        (keys::HIRES_PROMPT, &hires.prompt),
        (keys::HIRES_NEGATIVE_PROMPT, &hires.negative),
    ] {
        if let Some(text) = prompt.as_ref().and_then(|prompt| prompt.as_text()) {
            entries.push((key, text.to_owned()));
        }
    }
    // An embedding would fill the file, and a custom sampler or guidance cannot be written.
    let has_text = |prompt: &Option<crate::Prompt>| {
        prompt
            .as_ref()
            .is_none_or(|prompt| prompt.as_text().is_some())
    };
    let json = match has_text(&hires.prompt) && has_text(&hires.negative) {
        true => serde_json::to_string(hires).ok(),
        false => None,
    };
    entries.push((keys::SD_HIRES, json.unwrap_or_else(|| UNWRITTEN.to_owned())));
    entries
}

/// The value of `SD hires` for a second pass that cannot be written.
const UNWRITTEN: &str = "custom";

/// Reads the second pass of a picture. `steps` is the number of steps of the first pass.
pub(super) fn read(reading: &mut Reading<'_>, steps: usize) -> Option<Hires> {
    let hires = read_options(reading, steps)?;
    if let Upscaler::Network(name) = &hires.upscaler {
        reading.note(network_note(name));
    }
    Some(hires)
}

fn read_options(reading: &mut Reading<'_>, steps: usize) -> Option<Hires> {
    let infotext = reading.infotext;
    if !infotext.has_second_pass() {
        return None;
    }
    if !infotext.is_foreign()
        && let Some(written) = infotext.get(keys::SD_HIRES)
    {
        match serde_json::from_str(written) {
            Ok(hires) => return Some(hires),
            Err(_) => reading.note(format!(
                "the second pass was `{}`, of which only WebUI's keys are read",
                printable(written)
            )),
        }
    }
    let mut hires = match size(reading) {
        Some([width, height]) => Hires::pixels(width, height),
        None => {
            let scale = reading.finite(keys::HIRES_UPSCALE);
            Hires::scale(scale.unwrap_or(DEFAULT_SCALE))
        }
    };
    if let Some(strength) = reading.finite(keys::DENOISING_STRENGTH) {
        hires.strength = strength;
    }
    hires.upscaler = upscaler(reading);
    if infotext.get(keys::HIRES_STEPS).is_some() {
        hires.steps = reading.number::<usize>(keys::HIRES_STEPS);
        // WebUI's number for as many steps as in the first pass.
        hires.steps = hires.steps.filter(|&steps| steps > 0);
    }
    if let Some(way) = reading.second_way(hires.steps.unwrap_or(steps)) {
        hires.scheduler = way.scheduler;
        hires.ladder = Some(way.ladder);
    }
    hires.guidance = reading.second_guidance();
    let text = |key| infotext.get(key).map(Into::into);
    hires.prompt = text(keys::HIRES_PROMPT);
    hires.negative = text(keys::HIRES_NEGATIVE_PROMPT);
    Some(hires)
}

/// WebUI's usual factor.
const DEFAULT_SCALE: f32 = 2.0;

/// Returns the size of the first pass, if WebUI's old hires fix made the picture. Follows
/// `restore_old_hires_fix_params` of WebUI's `modules/infotext_utils.py`.
pub(super) fn first_pass_size(infotext: &Infotext) -> Option<[u32; 2]> {
    if !infotext.is_foreign() {
        return None;
    }
    let first = infotext.get(FIRST_PASS_SIZE).and_then(sides)?;
    if !first.contains(&0) {
        return Some(first);
    }
    // As many pixels as 512x512 has, and sides that are rounded up to multiples of 64.
    let size = infotext.get(keys::SIZE).and_then(sides);
    let [width, height] = size
        .unwrap_or([512, 512])
        .map(|side| f64::from(side.max(1)));
    let scale = (512.0 * 512.0 / (width * height)).sqrt();
    Some([width, height].map(|side| (scale * side / 64.0).ceil() as u32 * 64))
}

/// Returns the size of the finished picture, if the infotext has one.
fn size(reading: &mut Reading<'_>) -> Option<[u32; 2]> {
    let infotext = reading.infotext;
    let key = match first_pass_size(infotext) {
        Some(_) => keys::SIZE,
        None => keys::HIRES_RESIZE,
    };
    let size = infotext.get(key).and_then(sides)?;
    // 0 stands for a side that keeps the shape, and two zeros for `Hires upscale`.
    let size = match size {
        [0, 0] => return None,
        [_, 0] | [0, _] => completed(infotext, size),
        size => size,
    };
    let size = reading.rounded(key, size)?;
    Some([size.width(), size.height()])
}

fn upscaler(reading: &mut Reading<'_>) -> Upscaler {
    let Some(name) = reading.infotext.get(keys::HIRES_UPSCALER) else {
        if first_pass_size(reading.infotext).is_some() {
            reading.note(
                "the infotext does not say how the picture was enlarged, so its latents are scaled",
            );
        }
        return Upscaler::default();
    };
    Upscaler::from_webui(name).unwrap_or_else(|| Upscaler::Network(name.to_owned()))
}

/// Adds differences for what was done with the finished picture.
pub(super) fn note_enlarged(reading: &mut Reading<'_>) {
    let value = |key| reading.infotext.get(key).map(printable);
    let tiles = value(keys::SD_UPSCALE_OVERLAP).or(value(keys::SD_UPSCALE_UPSCALER));
    let tiles = tiles.map(|_| "the picture was enlarged and redrawn in tiles".to_owned());
    let factor = value(keys::POSTPROCESS_UPSCALE_BY);
    let name = value(keys::POSTPROCESS_UPSCALER);
    let enlarged = (factor.is_some() || name.is_some()).then(|| {
        let by = name.map(|name| format!(" by `{name}`")).unwrap_or_default();
        let times = factor
            .map(|factor| format!(" {factor} times"))
            .unwrap_or_default();
        format!("the finished picture was enlarged{times}{by}")
    });
    for note in [tiles, enlarged].into_iter().flatten() {
        reading.note(note);
    }
}

/// Returns the difference for a network that enlarged the picture, if no pipeline is known.
pub(crate) fn network_note(name: &str) -> String {
    let name = printable(name);
    format!("the picture was enlarged by `{name}`, which the pipeline must have")
}

/// Returns a size with the side that is 0 replaced, so that it has the shape of the first pass.
fn completed(infotext: &Infotext, [width, height]: [u32; 2]) -> [u32; 2] {
    let first = infotext.get(keys::SIZE).and_then(sides);
    // The first pass is drawn in a size that is rounded down to multiples of 8.
    let first = first
        .unwrap_or([512, 512])
        .map(|side| (side / 8 * 8).max(8));
    let [own_width, own_height] = first;
    let scaled = |side: u32, to: u32, own: u32| {
        let side = u64::from(side) * u64::from(to) / u64::from(own);
        // WebUI rounds the latents down.
        u32::try_from(side / 8 * 8).unwrap_or(u32::MAX)
    };
    if height == 0 {
        [width, scaled(own_height, width, own_width)]
    } else {
        [scaled(own_width, height, own_height), height]
    }
}
