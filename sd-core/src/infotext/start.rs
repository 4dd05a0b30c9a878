//! The start of a run in an infotext: everything but the picture.

use image::RgbImage;
use sd_schedulers::ladders::StrengthRule;
use sd_text::outside::printable;
use serde::{Deserialize, Serialize};

use super::{
    Infotext, keys,
    programs::{comfyui, invokeai},
    request::{SDNEXT, finite},
};
use crate::{Mask, MaskRule, MaskedContent, Posterior, Resize, Start, StartFrom};

/// The value of `SD start`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Recorded {
    /// `[width, height]` of the picture, or the shape of latents.
    from: Vec<usize>,
    rule: StrengthRule,
    posterior: Posterior,
    noise_multiplier: f32,
    resize: Resize,
    #[serde(default)]
    color_correction: bool,
    /// Whether there is a mask.
    mask: bool,
    keep_original: bool,
    #[serde(default)]
    mask_rule: MaskRule,
    #[serde(default)]
    content: MaskedContent,
    #[serde(default)]
    only_masked: Option<u32>,
}

/// The value of `Inpaint area` for [`Mask::only_masked`].
pub(super) const ONLY_MASKED: &str = "Only masked";

/// The value of `Mask mode` if the white part of the mask stays.
const NOT_MASKED: &str = "Inpaint not masked";

/// The difference of every picture whose run started from a picture.
///
/// A program that supplies the picture to [`Infotext::start`] can leave it out of
/// [`differences`](crate::Reproduction::differences).
pub const PICTURE_NOTE: &str = "the run started from a picture, which has to be supplied";

/// The difference of a picture that was redrawn only in part.
///
/// A program that supplies the mask to [`Infotext::start`] can leave it out of
/// [`differences`](crate::Reproduction::differences).
pub const MASK_NOTE: &str =
    "the run redrew only a part of the picture, and the mask has to be supplied";

/// The keys that WebUI writes only for masks.
const OF_MASKS: [&str; 4] = [
    keys::MASK_BLUR,
    keys::MASK_MODE,
    keys::MASKED_CONTENT,
    keys::INPAINT_AREA,
];

/// A key, and whether a value of it can be read.
type Check = (&'static str, fn(&str) -> bool);

impl Recorded {
    pub fn of(start: &Start) -> Self {
        let from = match &start.from {
            StartFrom::Pixels(pixels) => vec![pixels.dim().1, pixels.dim().0],
            StartFrom::Latents(latents) => latents.shape().to_vec(),
        };
        let mask = start.mask.as_ref();
        Self {
            from,
            rule: start.rule,
            posterior: start.posterior,
            noise_multiplier: start.noise_multiplier,
            resize: start.resize,
            color_correction: start.color_correction,
            mask: mask.is_some(),
            keep_original: mask.is_none_or(|mask| mask.keep_original),
            mask_rule: mask.map(|mask| mask.rule).unwrap_or_default(),
            content: mask.map(|mask| mask.content).unwrap_or_default(),
            only_masked: mask.and_then(|mask| mask.only_masked),
        }
    }

    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("names and finite numbers are JSON")
    }
}

impl Infotext {
    /// Returns how the program that wrote the infotext counts the steps of a strength.
    fn rule(&self) -> StrengthRule {
        match self.get(keys::VERSION).unwrap_or_default() {
            comfyui::VERSION => StrengthRule::ComfyUi,
            version if version.starts_with(invokeai::VERSION) => StrengthRule::Diffusers,
            _ if self.get("App") == Some(SDNEXT) => StrengthRule::Diffusers,
            _ => StrengthRule::WebUi,
        }
    }

    /// Returns the differences of a picture whose run started from another one.
    pub(super) fn start_notes(&self) -> Vec<String> {
        let has_mask = OF_MASKS.iter().any(|key| self.get(key).is_some());
        let of_webui = self
            .get(keys::VERSION)
            .unwrap_or_default()
            .starts_with("v1.");
        // Other programs than WebUI write a strength of 1 for pictures that started from noise.
        let may_be_noise = self.is_foreign() && !of_webui && !has_mask;
        let Some(strength) = self.get(keys::DENOISING_STRENGTH) else {
            return Vec::new();
        };
        let is_noise = may_be_noise && finite(strength) == Some(1.0);
        if is_noise || self.has_second_pass() {
            return Vec::new();
        }
        let mut notes = self.inputs();
        notes.extend(self.unreadable());
        notes
    }

    /// Returns a difference for each value of the start that cannot be read.
    fn unreadable(&self) -> impl Iterator<Item = String> {
        let of_all: [Check; 2] = [
            (keys::DENOISING_STRENGTH, |value| finite(value).is_some()),
            (keys::MASK_BLUR, |value| finite(value).is_some()),
        ];
        let of_others: [Check; 5] = [
            (keys::NOISE_MULTIPLIER, |value| finite(value).is_some()),
            (keys::MASKED_AREA_PADDING, |value| {
                value.parse::<u32>().is_ok()
            }),
            (keys::MASK_MODE, |value| {
                ["Inpaint masked", NOT_MASKED].contains(&value)
            }),
            (keys::MASKED_CONTENT, |value| {
                value == "original" || content_called(value).is_some()
            }),
            (keys::INPAINT_AREA, |value| {
                ["Whole picture", ONLY_MASKED].contains(&value)
            }),
        ];
        let of_others = of_others.into_iter().filter(|_| self.is_foreign());
        of_all
            .into_iter()
            .chain(of_others)
            .filter_map(|(key, is_read)| {
                let value = self.get(key).filter(|value| !is_read(value))?;
                Some(format!(
                    "`{key}: {}` cannot be used, so the default is used",
                    printable(value)
                ))
            })
    }

    /// Returns the differences for the picture and the mask.
    fn inputs(&self) -> Vec<String> {
        let recorded = self.get(keys::SD_START).filter(|_| !self.is_foreign());
        match recorded.map(serde_json::from_str::<Recorded>) {
            Some(Ok(recorded)) if recorded.from.len() == 4 => {
                let shape = recorded.from;
                vec![format!(
                    "the run started from latents of shape {shape:?}, which have to be supplied"
                )]
            }
            Some(Ok(recorded)) if !recorded.mask => vec![PICTURE_NOTE.to_owned()],
            Some(Ok(_)) => vec![PICTURE_NOTE.to_owned(), MASK_NOTE.to_owned()],
            Some(Err(_)) => {
                let unread = format!(
                    "`{}` cannot be read, so its options have their defaults",
                    keys::SD_START
                );
                vec![PICTURE_NOTE.to_owned(), unread]
            }
            None if OF_MASKS.iter().any(|key| self.get(key).is_some()) => {
                vec![PICTURE_NOTE.to_owned(), MASK_NOTE.to_owned()]
            }
            None => vec![PICTURE_NOTE.to_owned()],
        }
    }

    /// Returns the start of the run that made the picture, joined with the picture that the run
    /// started from, and the mask if there was one. Returns `None` if the infotext does not name a
    /// strength, because the run started from noise, or if it names a second pass instead.
    ///
    /// A file of WebUI gets WebUI's [rule](Start::rule), and a file of ComfyUI gets ComfyUI's.
    /// Files of InvokeAI and SD.Next get diffusers' rule. Options that cannot be read have their
    /// defaults.
    ///
    /// ```
    /// use sd_core::{Infotext, image::RgbImage};
    ///
    /// let text = "a fox\nSteps: 20, Sampler: Euler, Denoising strength: 0.4, Size: 64x64";
    /// let start = Infotext::parse(text)?.start(RgbImage::new(64, 64), None);
    /// assert_eq!(start.map(|start| start.strength), Some(0.4));
    /// # Ok::<(), sd_core::InfotextError>(())
    /// ```
    pub fn start(&self, picture: RgbImage, mask: Option<Mask>) -> Option<Start> {
        let strength = self.get(keys::DENOISING_STRENGTH)?;
        if self.has_second_pass() {
            return None;
        }
        let mut start = Start::picture(picture);
        if let Some(strength) = finite(strength) {
            start = start.strength(strength);
        }
        let recorded = self.get(keys::SD_START).filter(|_| !self.is_foreign());
        match recorded.map(serde_json::from_str::<Recorded>) {
            Some(Ok(recorded)) => {
                let Recorded {
                    rule,
                    posterior,
                    noise_multiplier,
                    resize,
                    color_correction,
                    keep_original,
                    mask_rule,
                    content,
                    only_masked,
                    ..
                } = recorded;
                start = start.rule(rule).posterior(posterior).resize(resize);
                start = start.noise_multiplier(noise_multiplier);
                start = start.color_correction(color_correction);
                start.mask = mask.map(|mask| {
                    let mask = mask.keep_original(keep_original).rule(mask_rule);
                    let mut mask = mask.content(content);
                    mask.only_masked = only_masked;
                    mask
                });
            }
            _ => {
                if self.is_foreign() {
                    // WebUI draws the sample of the latents from another generator, so that the
                    // initial noise is the seed's.
                    start = start.rule(self.rule()).posterior(Posterior::Mode);
                }
                start.mask = mask.map(|mask| self.webui_mask(mask));
                let multiplier = self.get(keys::NOISE_MULTIPLIER);
                if let Some(multiplier) = multiplier.and_then(finite) {
                    start = start.noise_multiplier(multiplier);
                }
            }
        }
        let blur = self.get(keys::MASK_BLUR).and_then(finite);
        if let (Some(mask), Some(blur)) = (&mut start.mask, blur) {
            mask.blur = blur;
        }
        Some(start)
    }

    /// Returns a mask with the options that WebUI writes.
    fn webui_mask(&self, mut mask: Mask) -> Mask {
        if !self.is_foreign() {
            return mask;
        }
        if self.get(keys::MASK_MODE) == Some(NOT_MASKED) {
            mask.values = mask.values.mapv(|value| 255 - value).into_shared();
        }
        let content = self.get(keys::MASKED_CONTENT).and_then(content_called);
        mask.content = content.unwrap_or(MaskedContent::Original);
        if self.get(keys::INPAINT_AREA) == Some(ONLY_MASKED) {
            let padding = self.get(keys::MASKED_AREA_PADDING);
            mask.only_masked = Some(padding.and_then(|it| it.parse().ok()).unwrap_or(0));
        }
        mask.rule(MaskRule::WebUi)
    }
}

/// Returns the content that is not the picture, by WebUI's name.
fn content_called(name: &str) -> Option<MaskedContent> {
    match name {
        "fill" => Some(MaskedContent::Fill),
        "latent noise" => Some(MaskedContent::Noise),
        "latent nothing" => Some(MaskedContent::Nothing),
        _ => None,
    }
}
