//! The part of a picture that is redrawn.

use image::GrayImage;
use ndarray::{ArcArray, Array, Ix2};
use serde::{Deserialize, Serialize};

use super::{Resize, Start, StartFrom};
use crate::Problem;

/// The part of a picture that is redrawn.
///
/// ```
/// use sd_core::{Mask, Request, Start, image::{GrayImage, Luma, RgbImage}};
///
/// // Redraws the left half.
/// let mask = GrayImage::from_fn(512, 512, |x, _| Luma([if x < 256 { 255 } else { 0 }]));
/// let start = Start::picture(RgbImage::new(512, 512)).strength(1.0).mask(Mask::new(mask));
/// let request = Request::new("a fox").start(start);
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Mask {
    /// The mask, `[height, width]`, of the size of the picture: 255 where it is redrawn, and 0
    /// where it stays. [`rule`](Self::rule) determines what the values between them mean.
    pub values: ArcArray<u8, Ix2>,
    /// How the mask acts.
    ///
    /// Default: [`MaskRule::Diffusers`].
    #[serde(default)]
    pub rule: MaskRule,
    /// What the run finds inside the mask.
    ///
    /// Default: [`MaskedContent::Original`].
    #[serde(default)]
    pub content: MaskedContent,
    /// The standard deviation, in pixels, of a Gaussian blur of the mask's edge: a finite number,
    /// `0.0..=256.0`. It hides seams. [`rule`](Self::rule) determines what is blurred.
    ///
    /// Default: 0.
    #[serde(default)]
    pub blur: f32,
    /// The distance, in pixels, by which the drawn region extends beyond the mask. Only this region
    /// is drawn, in the [size](crate::Request::size) of the request. It is then scaled to its size
    /// in the picture and put back, so that the finished picture has the size of the original. A
    /// small face is drawn in detail in this way. WebUI calls it "Only masked", and diffusers
    /// `padding_mask_crop`.
    ///
    /// Without a size in the request, the region is drawn in the pipeline's
    /// [default size](crate::Pipeline::default_size), and fitted to it as by [`Resize::Fill`].
    /// [`keep_original`](Self::keep_original) must be true.
    ///
    /// Default: `None`. The whole picture is drawn.
    #[serde(default)]
    pub only_masked: Option<u32>,
    /// Whether the pixels outside the (blurred) mask are the original's. Otherwise they are what
    /// the autoencoder makes of the original.
    ///
    /// Default: true.
    #[serde(default = "yes")]
    pub keep_original: bool,
}

/// How a [`Mask`] acts.
///
/// With serde it is a name in lower case, such as `"webui"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum MaskRule {
    /// diffusers' inpainting pipelines: after each step, the latents outside the mask are replaced
    /// by the original's with noise of the next level. An inpainting model takes the original
    /// beside the latents instead. Values from 128 on count as 255, and others as 0. The blur acts
    /// only on the finished picture, and is Pillow's. This is the default.
    ///
    /// At a strength of 1, and with diffusers' [`StrengthRule`], the run starts from noise alone,
    /// without a noise multiplier.
    ///
    /// [`StrengthRule`]: sd_schedulers::ladders::StrengthRule
    #[default]
    Diffusers,
    /// WebUI: the mask is first blurred as in OpenCV. In each call of the network, the original
    /// replaces the result outside the mask, where values from 128 on count as inside. In the
    /// finished picture, gray values mix the drawing with the original. Without
    /// [`only_masked`](Mask::only_masked), they are doubled first, to at most 255.
    ///
    /// With WebUI's samplers "DDIM", "DDIM CFG++", "PLMS" and "UniPC", the original replaces what
    /// the network is given outside the mask, and not its result.
    WebUi,
    /// Differential diffusion, <https://arxiv.org/abs/2306.00950>: each value is a share of the
    /// strength. With a value `v`, a place is redrawn in the last `v / 255` of the steps that run:
    /// 64 means the last quarter. The blur acts on the mask itself, and is Pillow's.
    Differential,
}

/// What a run finds inside a [`Mask`].
///
/// With serde it is a name in lower case, such as `"fill"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum MaskedContent {
    /// The pixels of the picture. This is the default.
    #[default]
    Original,
    /// The blurred surroundings of the mask. Good for removing things.
    Fill,
    /// Latents of noise. Needs a strength near 1.
    Noise,
    /// Latents of 0. Needs a strength near 1.
    Nothing,
}

fn yes() -> bool {
    true
}

impl Mask {
    /// Creates a mask that redraws the white part of a picture of the same size, without a blur.
    pub fn new(mask: GrayImage) -> Self {
        let shape = [mask.height() as usize, mask.width() as usize];
        let values = Array::from_shape_vec(shape, mask.into_raw());
        let values = values.expect("a gray picture has a value for each pixel");
        Self {
            values: values.into_shared(),
            rule: MaskRule::default(),
            content: MaskedContent::default(),
            blur: 0.0,
            only_masked: None,
            keep_original: true,
        }
    }

    /// Creates a mask that redraws the transparent part of a picture, whose opacity is `alpha` (255
    /// is opaque).
    ///
    /// ```
    /// use sd_core::{Mask, image::{GrayImage, Luma}};
    ///
    /// let alpha = GrayImage::from_pixel(64, 64, Luma([0]));
    /// assert_eq!(Mask::from_alpha(&alpha).values[[0, 0]], 255);
    /// ```
    pub fn from_alpha(alpha: &GrayImage) -> Self {
        let mut mask = alpha.clone();
        mask.iter_mut()
            .for_each(|opacity| *opacity = 255 - *opacity);
        Self::new(mask)
    }

    /// Sets [`rule`](Self::rule).
    ///
    /// ```
    /// use sd_core::{
    ///     Mask, MaskRule, Posterior, Start,
    ///     image::{GrayImage, RgbImage}, schedulers::ladders::StrengthRule,
    /// };
    ///
    /// // As in WebUI.
    /// let mask = Mask::new(GrayImage::new(64, 64)).rule(MaskRule::WebUi).blur(4.0);
    /// let start = Start::picture(RgbImage::new(64, 64))
    ///     .rule(StrengthRule::WebUi)
    ///     .posterior(Posterior::Mode)
    ///     .mask(mask);
    /// ```
    pub fn rule(mut self, rule: MaskRule) -> Self {
        self.rule = rule;
        self
    }

    /// Sets [`content`](Self::content).
    pub fn content(mut self, content: MaskedContent) -> Self {
        self.content = content;
        self
    }

    /// Sets [`blur`](Self::blur).
    pub fn blur(mut self, pixels: f32) -> Self {
        self.blur = pixels;
        self
    }

    /// Sets [`only_masked`](Self::only_masked).
    pub fn only_masked(mut self, padding: u32) -> Self {
        self.only_masked = Some(padding);
        self
    }

    /// Sets [`keep_original`](Self::keep_original).
    pub fn keep_original(mut self, keep: bool) -> Self {
        self.keep_original = keep;
        self
    }

    pub(super) fn problems(&self, start: &Start) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut refuse = |what, expected: &str, found: &dyn std::fmt::Display| {
            problems.push(Problem::new(what, expected, found));
        };
        if !(0.0..=256.0).contains(&self.blur) {
            refuse("start.mask.blur", "0 to 256", &self.blur);
        }
        if self.only_masked.is_some() && !self.keep_original {
            let expected = "true, as the region is put back into the original";
            refuse("start.mask.keep_original", expected, &false);
        }
        if start.resize == Resize::Latent {
            let expected = "another one, as latents of another size do not fit a mask";
            refuse("start.resize", expected, &"latent");
        }
        let (height, width) = self.values.dim();
        match &start.from {
            StartFrom::Pixels(pixels) => {
                let (expected_height, expected_width, _) = pixels.dim();
                if (height, width) != (expected_height, expected_width) {
                    let expected =
                        format!("the picture's size, {expected_width}×{expected_height}");
                    refuse("start.mask", &expected, &format!("{width}×{height}"));
                }
            }
            StartFrom::Latents(_) => {
                let expected = "a picture, because a mask belongs to pixels";
                refuse("start.from", expected, &"latents");
            }
        }
        problems
    }

    /// Returns the mask as a picture.
    pub(super) fn image(&self) -> GrayImage {
        let (height, width) = self.values.dim();
        let values = self.values.iter().copied().collect();
        let mask = GrayImage::from_raw(width as u32, height as u32, values);
        mask.expect("an array has a value for each of its places")
    }
}
