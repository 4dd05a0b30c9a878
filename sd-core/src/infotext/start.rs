//! The start of a run in an infotext: everything but the picture.

use image::RgbImage;
use sd_schedulers::ladders::StrengthRule;
use serde::{Deserialize, Serialize};

use super::{
    Infotext, keys,
    programs::{comfyui, invokeai},
    request::SDNEXT,
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
pub(super) const NOTE: &str = "the run started from a picture, which has to be supplied";

/// The difference of every picture of which a run redrew only a part.
const MASK_NOTE: &str =
    "the run redrew only a part of the picture, and the mask has to be supplied";

/// The keys that WebUI writes only for masks.
const OF_MASKS: [&str; 4] = [
    keys::MASK_BLUR,
    keys::MASK_MODE,
    keys::MASKED_CONTENT,
    keys::INPAINT_AREA,
];

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
        let strength = self.get(keys::DENOISING_STRENGTH);
        // Other programs write a strength of 1 for pictures that started from noise.
        let is_noise = |strength: &&str| self.is_foreign() && strength.parse() == Ok(1.0_f32);
        if strength.filter(|it| !is_noise(it)).is_none() || self.has_second_pass() {
            return Vec::new();
        }
        let recorded = self.get(keys::SD_START).filter(|_| !self.is_foreign());
        match recorded.map(serde_json::from_str::<Recorded>) {
            Some(Ok(recorded)) if recorded.from.len() == 4 => {
                let shape = recorded.from;
                vec![format!(
                    "the run started from latents of shape {shape:?}, which have to be supplied"
                )]
            }
            Some(Ok(recorded)) if !recorded.mask => vec![NOTE.to_owned()],
            Some(Ok(_)) => vec![NOTE.to_owned(), MASK_NOTE.to_owned()],
            Some(Err(_)) => {
                let unread = format!(
                    "`{}` cannot be read, so its options have their defaults",
                    keys::SD_START
                );
                vec![NOTE.to_owned(), unread]
            }
            None if OF_MASKS.iter().any(|key| self.get(key).is_some()) => {
                vec![NOTE.to_owned(), MASK_NOTE.to_owned()]
            }
            None => vec![NOTE.to_owned()],
        }
    }

    /// Returns the start of the run that made the picture, joined with the picture that the run
    /// started from, and the mask if there was one. Returns `None` if the infotext does not name a
    /// strength, because the run started from noise, or if it names a second pass instead.
    ///
    /// A file of WebUI gets WebUI's [rule](Start::rule), and a file of ComfyUI gets ComfyUI's.
    /// Options that cannot be read have their defaults.
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
        let strength = self.get(keys::DENOISING_STRENGTH)?.parse().ok()?;
        if self.has_second_pass() {
            return None;
        }
        let mut start = Start::picture(picture).strength(strength);
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
                if let Some(multiplier) = multiplier.and_then(|it| it.parse().ok()) {
                    start = start.noise_multiplier(multiplier);
                }
            }
        }
        let blur = self.get(keys::MASK_BLUR).and_then(|blur| blur.parse().ok());
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
        mask.content = match self.get(keys::MASKED_CONTENT) {
            Some("fill") => MaskedContent::Fill,
            Some("latent noise") => MaskedContent::Noise,
            Some("latent nothing") => MaskedContent::Nothing,
            _ => MaskedContent::Original,
        };
        if self.get(keys::INPAINT_AREA) == Some(ONLY_MASKED) {
            let padding = self.get(keys::MASKED_AREA_PADDING);
            mask.only_masked = Some(padding.and_then(|it| it.parse().ok()).unwrap_or(0));
        }
        mask.rule(MaskRule::WebUi)
    }
}
