//! The start of a run in an infotext: everything but the picture.

use image::RgbImage;
use sd_schedulers::ladders::StrengthRule;
use serde::{Deserialize, Serialize};

use super::{Infotext, keys};
use crate::{Mask, Posterior, Resize, Start, StartFrom};

/// The value of `SD start`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Recorded {
    /// `[width, height]` of the picture, or the shape of latents.
    from: Vec<usize>,
    rule: StrengthRule,
    posterior: Posterior,
    noise_multiplier: f32,
    resize: Resize,
    /// Whether there is a mask.
    mask: bool,
    keep_original: bool,
}

/// The difference of every picture whose run started from a picture.
pub(super) const NOTE: &str = "the run started from a picture, which has to be supplied";

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
            mask: mask.is_some(),
            keep_original: mask.is_none_or(|mask| mask.keep_original),
        }
    }

    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("names and finite numbers are JSON")
    }
}

impl Infotext {
    /// Returns the start of the run that made the picture, joined with the picture that the run
    /// started from, and the mask if there was one. Returns `None` if the infotext does not name a
    /// strength, because the run started from noise, or if it names a second pass instead.
    ///
    /// A file of WebUI gets WebUI's [rule](Start::rule). Options that cannot be read have their
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
        let strength = self.get(keys::DENOISING_STRENGTH)?.parse().ok()?;
        if self
            .entries
            .iter()
            .any(|(key, _)| key.starts_with("Hires "))
        {
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
                    keep_original,
                    ..
                } = recorded;
                start = start.rule(rule).posterior(posterior).resize(resize);
                start = start.noise_multiplier(noise_multiplier);
                start.mask = mask.map(|mask| mask.keep_original(keep_original));
            }
            _ => {
                if self.is_foreign() {
                    start = start.rule(StrengthRule::WebUi);
                }
                start.mask = mask;
            }
        }
        let blur = self.get(keys::MASK_BLUR).and_then(|blur| blur.parse().ok());
        if let (Some(mask), Some(blur)) = (&mut start.mask, blur) {
            mask.blur = blur;
        }
        Some(start)
    }
}
