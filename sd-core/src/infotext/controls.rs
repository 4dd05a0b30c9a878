//! The controls of a run in an infotext: everything but the pictures.

use sd_text::outside::printable;
use serde::{Deserialize, Serialize};

use super::{Infotext, keys, request::finite};
use crate::{Control, ControlMode, ControlPicture, MAX_CONTROLS, Preprocessor, Resize};

/// The difference of every picture whose run was steered by pictures.
///
/// A program that supplies the pictures to [`Infotext::control`] can leave it out of
/// [`differences`](crate::Reproduction::differences).
pub const CONTROL_NOTE: &str = "pictures steered the run, which have to be supplied";

/// A control in the value of `SD controls`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Recorded {
    network: String,
    /// `[width, height]` of the picture, or the shape of values. Empty for the start.
    picture: Vec<usize>,
    weight: f32,
    start: f32,
    end: f32,
    mode: ControlMode,
    resize: Resize,
    preprocessor: Preprocessor,
}

impl Recorded {
    fn is_usable(&self) -> bool {
        let share = 0.0..=1.0;
        self.weight.is_finite()
            && share.contains(&self.start)
            && share.contains(&self.end)
            && self.start <= self.end
    }
}

/// sd-webui-controlnet's names of the modes. It has no name for the last one.
const MODES: [(&str, ControlMode); 4] = [
    ("Balanced", ControlMode::Balanced),
    ("My prompt is more important", ControlMode::Prompt),
    ("ControlNet is more important", ControlMode::Control),
    ("Guess", ControlMode::Guess),
];

/// sd-webui-controlnet's names of the ways to resize.
const RESIZES: [(&str, Resize); 3] = [
    ("Just Resize", Resize::Stretch),
    ("Crop and Resize", Resize::Crop),
    ("Resize and Fill", Resize::Fill),
];

/// Returns the entries of an infotext for controls.
pub(super) fn entries(controls: &[Control]) -> Vec<(String, String)> {
    let mut entries = Vec::new();
    for (i, control) in controls.iter().enumerate() {
        entries.push((format!("{} {i}", keys::CONTROL_NET), unit(control)));
    }
    if !controls.is_empty() {
        let all: Vec<_> = controls.iter().map(recorded).collect();
        let json = serde_json::to_string(&all).expect("names and finite numbers are JSON");
        entries.push((keys::SD_CONTROLS.to_owned(), json));
    }
    entries
}

fn recorded(control: &Control) -> Recorded {
    Recorded {
        network: control.network.clone(),
        picture: match &control.picture {
            ControlPicture::Pixels(pixels) => vec![pixels.dim().1, pixels.dim().0],
            ControlPicture::Values(values) => values.shape().to_vec(),
            ControlPicture::Start => Vec::new(),
        },
        weight: control.weight,
        start: control.start,
        end: control.end,
        mode: control.mode,
        resize: control.resize,
        preprocessor: control.preprocessor,
    }
}

/// Returns a control as sd-webui-controlnet writes a unit. It uses neither commas nor colons in
/// values.
fn unit(control: &Control) -> String {
    let name = control.network.replace([',', ':'], "_");
    let [low, high] = control.preprocessor.thresholds();
    let [low, high] = [low, high].map(|value| value.unwrap_or(-1.0));
    let mode = MODES.iter().find(|(_, mode)| *mode == control.mode);
    let resize = RESIZES.iter().find(|(_, it)| *it == control.resize);
    format!(
        "Module: {}, Model: {name}, Weight: {}, Resize Mode: {}, Processor Res: 512, Threshold A: \
         {low}, Threshold B: {high}, Guidance Start: {}, Guidance End: {}, Pixel Perfect: True, \
         Control Mode: {}",
        control.preprocessor.webui_name(),
        control.weight,
        resize.map_or("Just Resize", |(name, _)| name),
        control.start,
        control.end,
        mode.map_or("Balanced", |(name, _)| name),
    )
}

/// A key of a unit, and whether a value of it can be read.
type Check = (&'static str, fn(&str) -> bool);

/// A unit of sd-webui-controlnet, as far as it could be read.
struct Unit<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Unit<'a> {
    fn parse(text: &'a str) -> Self {
        let items = text
            .split(',')
            .filter_map(|item| item.trim().split_once(": "));
        Self(items.collect())
    }

    fn get(&self, key: &str) -> Option<&'a str> {
        self.0
            .iter()
            .find(|(known, _)| *known == key)
            .map(|(_, value)| *value)
    }

    fn number(&self, key: &str) -> Option<f32> {
        self.get(key).and_then(finite)
    }

    /// Returns the name of the network, without the hash behind it.
    fn model(&self) -> &'a str {
        let model = self.get("Model").unwrap_or_default();
        match model.rsplit_once(" [") {
            Some((name, _)) => name,
            None => model,
        }
    }

    fn preprocessor(&self) -> Option<Preprocessor> {
        let module = self.get("Module").unwrap_or("none");
        let found = Preprocessor::from_webui(module)?;
        let thresholds = ["Threshold A", "Threshold B"].map(|key| self.number(key));
        Some(found.with_thresholds(thresholds))
    }

    fn control(&self, picture: ControlPicture) -> Control {
        let mut control = Control::new(self.model(), picture);
        control.weight = self.number("Weight").unwrap_or(control.weight);
        let share = |key| self.number(key).filter(|share| (0.0..=1.0).contains(share));
        let start = share("Guidance Start").unwrap_or(control.start);
        let end = share("Guidance End").unwrap_or(control.end);
        if start <= end {
            control = control.during(start, end);
        }
        let named = |name: Option<&str>| MODES.iter().find(|(known, _)| Some(*known) == name);
        if let Some((_, mode)) = named(self.get("Control Mode")) {
            control.mode = *mode;
        }
        let resize = self.get("Resize Mode");
        if let Some((_, resize)) = RESIZES.iter().find(|(known, _)| Some(*known) == resize) {
            control.resize = *resize;
        }
        control.preprocessor = self.preprocessor().unwrap_or_default();
        control
    }

    /// Returns the differences of unit `i`.
    fn notes(&self, i: usize) -> Vec<String> {
        let mut notes = Vec::new();
        let key = format!("{} {i}", keys::CONTROL_NET);
        let is_share: fn(&str) -> bool =
            |value| finite(value).is_some_and(|it| (0.0..=1.0).contains(&it));
        let is_mode: fn(&str) -> bool = |value| MODES.iter().any(|(name, _)| *name == value);
        let is_resize: fn(&str) -> bool = |value| RESIZES.iter().any(|(name, _)| *name == value);
        let checks: [Check; 5] = [
            ("Weight", |value| finite(value).is_some()),
            ("Guidance Start", is_share),
            ("Guidance End", is_share),
            ("Control Mode", is_mode),
            ("Resize Mode", is_resize),
        ];
        for (name, is_read) in checks {
            if let Some(value) = self.get(name).filter(|value| !is_read(value)) {
                let value = printable(value);
                notes.push(format!(
                    "`{key}`: `{name}: {value}` cannot be used, so the default is used"
                ));
            }
        }
        let module = self.get("Module").unwrap_or("none");
        if self.preprocessor().is_none() {
            notes.push(format!(
                "`{key}`: the preprocessor `{}` is not a part of this crate, so the picture has to \
                 be the one that it makes",
                printable(module)
            ));
        } else if module != "none" && self.get("Pixel Perfect") != Some("True") {
            let resolution = self.get("Processor Res").unwrap_or("512");
            notes.push(format!(
                "`{key}`: the preprocessor worked at a resolution of {}, and works at the size of \
                 the picture here",
                printable(resolution)
            ));
        }
        notes
    }
}

impl Infotext {
    /// Returns the number of pictures that steered the run, at most [`MAX_CONTROLS`].
    pub fn control_count(&self) -> usize {
        match self.recorded_controls() {
            Some(recorded) => recorded.len().min(MAX_CONTROLS),
            None => self.units().count(),
        }
    }

    /// Returns control `index` of the run, counted from 0, joined with its picture. `None` if there
    /// is no such control.
    ///
    /// The network has the name that the file gives it, without a hash. Options that cannot be read
    /// have their defaults.
    ///
    /// ```
    /// use sd_core::{Infotext, image::RgbImage};
    ///
    /// let text = "a fox\nSteps: 20, Seed: 1, ControlNet 0: \"Module: none, \
    ///             Model: canny [d14c016b], \
    ///             Weight: 0.8, Guidance Start: 0, Guidance End: 0.5\"";
    /// let control = Infotext::parse(text)?.control(0, RgbImage::new(8, 8)).unwrap();
    /// assert_eq!((&*control.network, control.weight, control.end), ("canny", 0.8, 0.5));
    /// # Ok::<(), sd_core::InfotextError>(())
    /// ```
    pub fn control(&self, index: usize, picture: impl Into<ControlPicture>) -> Option<Control> {
        if index >= MAX_CONTROLS {
            return None;
        }
        let Some(recorded) = self.recorded_controls() else {
            let (_, unit) = self.units().nth(index)?;
            return Some(unit.control(picture.into()));
        };
        let of = recorded.into_iter().nth(index)?;
        let mut control = Control::new(of.network, picture);
        (control.weight, control.start, control.end) = (of.weight, of.start, of.end);
        (control.mode, control.resize) = (of.mode, of.resize);
        control.preprocessor = of.preprocessor;
        Some(control)
    }

    fn recorded_controls(&self) -> Option<Vec<Recorded>> {
        let recorded = self.get(keys::SD_CONTROLS).filter(|_| !self.is_foreign())?;
        let recorded: Vec<Recorded> = serde_json::from_str(recorded).ok()?;
        recorded.iter().all(Recorded::is_usable).then_some(recorded)
    }

    /// Returns the units of sd-webui-controlnet with their numbers, which may have gaps.
    fn units(&self) -> impl Iterator<Item = (usize, Unit<'_>)> {
        let unit = |i| {
            let value = self.get(&format!("{} {i}", keys::CONTROL_NET))?;
            Some((i, Unit::parse(value)))
        };
        (0..MAX_CONTROLS).filter_map(unit)
    }

    /// Returns the differences of a run that pictures steered.
    pub(super) fn control_notes(&self) -> Vec<String> {
        let is_recorded = !self.is_foreign() && self.get(keys::SD_CONTROLS).is_some();
        if self.control_count() == 0 && !is_recorded {
            return Vec::new();
        }
        let mut notes = vec![CONTROL_NOTE.to_owned()];
        if is_recorded && self.recorded_controls().is_none() {
            let key = keys::SD_CONTROLS;
            notes.push(format!(
                "`{key}` cannot be read, so options of controls may be missing"
            ));
        }
        if self.recorded_controls().is_none() {
            notes.extend(self.units().flat_map(|(i, unit)| unit.notes(i)));
        }
        notes
    }
}

/// Returns whether a key belongs to a control that is read.
pub(super) fn is_unit(key: &str) -> bool {
    let index = key
        .strip_prefix(keys::CONTROL_NET)
        .and_then(|rest| rest.strip_prefix(' '));
    let index = index.and_then(|index| Some((index, index.parse::<usize>().ok()?)));
    index.is_some_and(|(text, index)| index < MAX_CONTROLS && text == index.to_string())
}
