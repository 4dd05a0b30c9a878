//! What a run starts from, if not from pure noise: a picture or latents.

mod encoded;
mod mask;
mod outpaint;
mod prepared;

use image::{ImageBuffer, Pixel, RgbImage};
use ndarray::{ArcArray, Array, Ix3, Ix4};
use sd_schedulers::ladders::StrengthRule;
use serde::{Deserialize, Serialize};

pub(crate) use self::{
    encoded::{Begin, Clean, EncodedMask, EncodedStart, StartBeside, encode},
    prepared::{Finish, Prepared, Region},
};
pub use self::{
    mask::{Mask, MaskRule, MaskedContent},
    outpaint::Sides,
};
use crate::{
    ImageSize, Problem,
    pixels::{Filter, resize, resize_window},
    size::unit,
};

/// A picture or latents that a run starts from (image to image), and how much of it is redrawn.
///
/// The run begins in the middle of the ladder, at a noise level that
/// [`strength`](Self::strength) sets, with the picture's latents plus noise of that level, sigma:
/// `latents + noise_multiplier · sigma · noise`.
///
/// An instruct-pix2pix model takes the picture beside the latents and begins with noise, so
/// [`strength`](Self::strength), [`rule`](Self::rule), [`posterior`](Self::posterior) and
/// [`noise_multiplier`](Self::noise_multiplier) have no effect with it.
///
/// Schedules in prompts, such as `[fox:owl:0.5]`, count the calls of the run against the steps of
/// the whole ladder. Positions in LoRA weights count the steps of the run.
///
/// ```
/// use sd_core::{Request, Start, image::RgbImage};
///
/// let sketch = RgbImage::new(512, 512);
/// let request = Request::new("a fox, watercolour").start(Start::picture(sketch).strength(0.6));
/// # assert_eq!(request.start.unwrap().strength, 0.6);
/// ```
///
/// With serde it is an object with a key for each field. Only `from` is required.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Start {
    /// The picture or the latents.
    pub from: StartFrom,
    /// How much is redrawn, `0.0..=1.0`: near 0 the picture hardly changes, and at 1 nearly nothing
    /// of it is left. 0.4 to 0.8 is useful. A strength that leaves no step is refused.
    ///
    /// Default: 0.75, as in WebUI. diffusers has 0.8.
    #[serde(default = "default_strength")]
    pub strength: f32,
    /// How the strength determines the first step.
    ///
    /// Default: [`StrengthRule::Diffusers`].
    #[serde(default)]
    pub rule: StrengthRule,
    /// Which latents of the picture are used. The autoencoder's encoder returns a distribution.
    ///
    /// Default: [`Posterior::Sample`].
    #[serde(default)]
    pub posterior: Posterior,
    /// The factor of the noise that is added to the latents, a finite number of at least 0. Below 1
    /// the result is smoother. WebUI calls it "Noise multiplier for img2img".
    ///
    /// Default: 1.
    #[serde(default = "default_multiplier")]
    pub noise_multiplier: f32,
    /// How a picture of another size or shape is fitted to the size of the request.
    ///
    /// Default: [`Resize::Stretch`].
    #[serde(default)]
    pub resize: Resize,
    /// Which part of the picture is redrawn (inpainting).
    ///
    /// Default: `None`, the whole picture.
    #[serde(default)]
    pub mask: Option<Mask>,
    /// Whether the finished picture gets the colors of the picture that it started from. Models
    /// change colors a little, which adds up if a picture is redrawn many times. WebUI calls it
    /// "Apply color correction to img2img results": the histograms of the picture in L\*a\*b\* are
    /// matched, and the lightness stays as drawn. It needs a start from a picture.
    ///
    /// Default: false.
    #[serde(default)]
    pub color_correction: bool,
}

/// The source of a [`Start`].
///
/// With serde it is `{"pixels": …}` or `{"latents": …}`, with an array of `ndarray`'s format.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum StartFrom {
    /// A picture, `[height, width, 3]`, red, green and blue.
    Pixels(ArcArray<u8, Ix3>),
    /// Latents in the scaling of [`Picture::latents`](crate::Picture::latents),
    /// `[1 or count, channels, height / factor, width / factor]`.
    Latents(ArcArray<f32, Ix4>),
}

/// Which latents of an encoded picture a run starts from.
///
/// With serde it is `"sample"` or `"mode"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Posterior {
    /// Latents that are drawn from the encoder's distribution with the first noise of the seed, as
    /// in diffusers. The seed therefore gives other initial noise than without a picture. A start
    /// from latents draws nothing.
    #[default]
    Sample,
    /// The most likely latents. The initial noise is the same as without a picture.
    Mode,
}

/// How a picture is fitted to another size.
///
/// With serde it is a name in lower case, such as `"crop"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Resize {
    /// The picture is scaled to the size, and its shape changes: WebUI's "Just resize".
    #[default]
    Stretch,
    /// The picture keeps its shape and covers the size. The parts outside the size are cut off:
    /// WebUI's "Crop and resize".
    Crop,
    /// The picture keeps its shape and lies within the size. The outermost rows or columns of
    /// pixels fill the rest: WebUI's "Resize and fill".
    Fill,
    /// The picture is encoded in its own size, and its most likely latents are scaled to the size,
    /// whatever the [`Posterior`] is: WebUI's "Just resize (latent upscale)". The sides of the
    /// picture must be multiples of 8 and of the model's factor. It cannot be used with a mask.
    Latent,
}

fn default_strength() -> f32 {
    0.75
}

fn default_multiplier() -> f32 {
    1.0
}

impl Start {
    /// Starts from a picture.
    pub fn picture(picture: RgbImage) -> Self {
        let shape = [picture.height() as usize, picture.width() as usize, 3];
        let pixels = Array::from_shape_vec(shape, picture.into_raw());
        let pixels = pixels.expect("a picture has three values for each pixel");
        Self::from(StartFrom::Pixels(pixels.into_shared()))
    }

    /// Starts from latents in the scaling of [`Picture::latents`](crate::Picture::latents).
    pub fn latents(latents: Array<f32, Ix4>) -> Self {
        Self::from(StartFrom::Latents(latents.into_shared()))
    }

    fn from(from: StartFrom) -> Self {
        Self {
            from,
            strength: default_strength(),
            rule: StrengthRule::default(),
            posterior: Posterior::default(),
            noise_multiplier: default_multiplier(),
            resize: Resize::default(),
            mask: None,
            color_correction: false,
        }
    }

    /// Sets [`strength`](Self::strength).
    pub fn strength(mut self, strength: f32) -> Self {
        self.strength = strength;
        self
    }

    /// Sets [`rule`](Self::rule).
    ///
    /// ```
    /// use sd_core::{Start, image::RgbImage, schedulers::ladders::StrengthRule};
    ///
    /// // As many steps as the request says, at any strength.
    /// let start = Start::picture(RgbImage::new(64, 64)).rule(StrengthRule::ComfyUi);
    /// ```
    pub fn rule(mut self, rule: StrengthRule) -> Self {
        self.rule = rule;
        self
    }

    /// Sets [`posterior`](Self::posterior).
    pub fn posterior(mut self, posterior: Posterior) -> Self {
        self.posterior = posterior;
        self
    }

    /// Sets [`noise_multiplier`](Self::noise_multiplier).
    pub fn noise_multiplier(mut self, factor: f32) -> Self {
        self.noise_multiplier = factor;
        self
    }

    /// Sets [`resize`](Self::resize).
    pub fn resize(mut self, resize: Resize) -> Self {
        self.resize = resize;
        self
    }

    /// Sets [`mask`](Self::mask).
    pub fn mask(mut self, mask: Mask) -> Self {
        self.mask = Some(mask);
        self
    }

    /// Sets [`color_correction`](Self::color_correction).
    pub fn color_correction(mut self, correct: bool) -> Self {
        self.color_correction = correct;
        self
    }

    /// Returns the picture. `None` if the run starts from latents, or from an array that is no
    /// picture.
    pub(crate) fn rgb(&self) -> Option<RgbImage> {
        let StartFrom::Pixels(pixels) = &self.from else {
            return None;
        };
        let (height, width, channels) = pixels.dim();
        let sides = u32::try_from(width).ok().zip(u32::try_from(height).ok());
        let (width, height) = sides.filter(|_| channels == 3)?;
        RgbImage::from_raw(width, height, pixels.iter().copied().collect())
    }

    /// Returns the size of the picture, rounded down to multiples of 8 and of the pixels of a patch
    /// of latents, but at least one such multiple. A latent has `factor` pixels on each side.
    /// Returns `None` if the size of the picture does not matter.
    pub(crate) fn default_size(&self, factor: usize, patch: usize) -> Option<[u32; 2]> {
        if self
            .mask
            .as_ref()
            .is_some_and(|mask| mask.only_masked.is_some())
        {
            return None;
        }
        let unit = unit(factor * patch);
        let side = |pixels: usize| {
            (pixels / unit * unit)
                .max(unit)
                .try_into()
                .unwrap_or(u32::MAX)
        };
        Some(match &self.from {
            StartFrom::Pixels(pixels) => {
                let (height, width, _) = pixels.dim();
                [side(width), side(height)]
            }
            StartFrom::Latents(latents) => {
                let (.., height, width) = latents.dim();
                let pixels = |side: usize| {
                    let pixels = side.saturating_mul(factor);
                    pixels.try_into().unwrap_or(u32::MAX)
                };
                [pixels(width), pixels(height)]
            }
        })
    }

    /// Returns whether the run begins with pure noise: inpainting at the full strength, by the
    /// rules of diffusers' inpainting pipelines.
    fn is_noise(&self) -> bool {
        let is_diffusers = matches!(
            self.rule,
            StrengthRule::Diffusers | StrengthRule::DiffusersFlow
        );
        let mask = self.mask.as_ref();
        let is_inpainting = mask.is_some_and(|mask| mask.rule == MaskRule::Diffusers);
        is_inpainting && self.strength >= 1.0 && is_diffusers
    }

    /// Returns everything that is wrong, apart from the strength's steps. `shape` is the expected
    /// shape of latents: count, channels, height and width. `is_edit` is whether the model is an
    /// instruct-pix2pix model.
    /// Returns the padding of the region around the mask, if only a region is drawn.
    pub(crate) fn only_masked(&self) -> Option<u32> {
        self.mask.as_ref()?.only_masked
    }

    pub(crate) fn problems(
        &self,
        shape: [usize; 4],
        size: ImageSize,
        is_edit: bool,
        max_pixels: u64,
    ) -> Vec<Problem> {
        let mut problems = Vec::new();
        if is_edit && self.mask.is_some() {
            let expected = "nothing, as this model redraws the whole picture";
            problems.push(Problem::new("start.mask", expected, "given"));
        }
        if is_edit && matches!(self.from, StartFrom::Latents(_)) {
            let expected = "a picture, which this model takes beside the latents";
            problems.push(Problem::new("start.from", expected, "latents"));
        }
        if !(0.0..=1.0).contains(&self.strength) {
            problems.push(Problem::new("start.strength", "0 to 1", self.strength));
        }
        if !(self.noise_multiplier.is_finite() && self.noise_multiplier >= 0.0) {
            let expected = "a finite number of at least 0";
            problems.push(Problem::new(
                "start.noise_multiplier",
                expected,
                self.noise_multiplier,
            ));
        }
        match &self.from {
            StartFrom::Pixels(pixels) => {
                let (height, width, channels) = pixels.dim();
                // These are encoded or finished in their own size.
                let mask = self.mask.as_ref();
                let in_own_size = self.resize == Resize::Latent
                    || mask.is_some_and(|mask| mask.only_masked.is_some());
                if channels != 3 || height == 0 || width == 0 {
                    let found = format!("an array of shape {:?}", pixels.dim());
                    problems.push(Problem::new("start.from", "one of shape (h, w, 3)", found));
                } else if in_own_size && width as u64 * height as u64 > max_pixels {
                    let expected = format!("at most {max_pixels} pixels");
                    let found = format!("{width}×{height}");
                    problems.push(Problem::new("start.from", expected, found));
                } else if self.resize == Resize::Latent {
                    problems.extend(latent_problem([width, height], shape, size, is_edit));
                }
            }
            StartFrom::Latents(latents) => {
                let [count, channels, height, width] = shape;
                let found = latents.dim();
                let expected = (count, channels, height, width);
                if found != expected && found != (1, channels, height, width) {
                    let expected =
                        format!("one of shape {expected:?}, or 1 as the first dimension");
                    let found = format!("an array of shape {found:?}");
                    problems.push(Problem::new("start.from", expected, found));
                } else if let Some(value) = latents.iter().find(|value| !value.is_finite()) {
                    problems.push(Problem::new("start.from", "finite numbers", value));
                }
            }
        }
        problems.extend(self.mask.iter().flat_map(|mask| mask.problems(self)));
        if self.color_correction && matches!(self.from, StartFrom::Latents(_)) {
            let expected = "false, because latents have no colors";
            problems.push(Problem::new("start.color_correction", expected, true));
        }
        problems
    }
}

impl Resize {
    /// Fits a picture to a size, with the bytes of diffusers' `VaeImageProcessor.resize` and of
    /// WebUI's `resize_image` on Pillow 13. Where these fail because the scaled picture would be
    /// thinner than a pixel, it has one pixel.
    pub(crate) fn to<P>(
        self,
        picture: &ImageBuffer<P, Vec<u8>>,
        [width, height]: [u32; 2],
    ) -> ImageBuffer<P, Vec<u8>>
    where
        P: Pixel<Subpixel = u8>,
    {
        let (own_width, own_height) = picture.dimensions();
        if (own_width, own_height) == (width, height) {
            return picture.clone();
        }
        // One side of the scaled picture, for the other side of the size.
        let scaled = |own: u32, to: u32, other: u32| {
            let side = u64::from(own) * u64::from(to) / u64::from(other.max(1));
            u32::try_from(side).unwrap_or(u32::MAX).max(1)
        };
        let by_height = || [scaled(own_width, height, own_height), height];
        let by_width = || [width, scaled(own_height, width, own_width)];
        let ratio = |width: u32, height: u32| f64::from(width) / f64::from(height);
        // Whether the size is wider, in proportion, than the picture.
        let is_wider = ratio(width, height) > ratio(own_width, own_height);
        match self {
            Self::Stretch | Self::Latent => resize(picture, width, height, Filter::Lanczos),
            Self::Crop => {
                let full = if is_wider { by_width() } else { by_height() };
                // The ratios are rounded.
                let full = [full[0].max(width), full[1].max(height)];
                let x = (full[0] / 2).saturating_sub(width / 2);
                let y = (full[1] / 2).saturating_sub(height / 2);
                resize_window(picture, full, [x, y, width, height], Filter::Lanczos)
            }
            Self::Fill => {
                let inside = if is_wider { by_height() } else { by_width() };
                let inside = resize(picture, inside[0], inside[1], Filter::Lanczos);
                placed(&inside, width, height)
            }
        }
    }
}

/// Returns a picture of this size with `picture`, which is not larger, in its middle. The outermost
/// pixels of `picture` continue to the border.
///
/// The references resize an empty edge of the picture with Pillow's bicubic filter, which is a
/// weighted sum of the two outermost pixels.
fn placed<P>(picture: &ImageBuffer<P, Vec<u8>>, width: u32, height: u32) -> ImageBuffer<P, Vec<u8>>
where
    P: Pixel<Subpixel = u8>,
{
    // Where the picture has the pixel of a place, and the pixel behind it if the place is outside.
    let place = |at: u32, own: u32, of: u32| {
        let start = of / 2 - own / 2;
        let last = own - 1;
        match at.checked_sub(start) {
            None => (0, Some(last.min(1))),
            Some(at) if at > last => (last, Some(last.saturating_sub(1))),
            Some(at) => (at, None),
        }
    };
    let (own_width, own_height) = picture.dimensions();
    ImageBuffer::from_fn(width, height, |x, y| {
        let (x, behind_x) = place(x, own_width, width);
        let (y, behind_y) = place(y, own_height, height);
        let pixel = *picture.get_pixel(x, y);
        // Only one of the sides is shorter.
        if behind_x.is_none() && behind_y.is_none() {
            return pixel;
        }
        let behind = picture.get_pixel(behind_x.unwrap_or(x), behind_y.unwrap_or(y));
        pixel.map2(behind, |edge, behind| {
            let sum = 9 * i32::from(edge) - i32::from(behind);
            ((sum + 4) >> 3).clamp(0, 255) as u8
        })
    })
}

/// Returns the problem of a picture that cannot be encoded in its own size.
fn latent_problem(
    [width, height]: [usize; 2],
    [.., latents, _]: [usize; 4],
    size: ImageSize,
    is_edit: bool,
) -> Option<Problem> {
    if is_edit {
        let expected = "another one, as this model takes the picture beside the latents";
        return Some(Problem::new("start.resize", expected, "latent"));
    }
    let found = format!("{width}×{height}");
    let factor = (size.height() as usize / latents.max(1)).max(1);
    let fits = |side: usize| side.is_multiple_of(factor) && side.is_multiple_of(8);
    let expected = "sides that are multiples of 8 and of the model's factor";
    (!fits(width) || !fits(height)).then(|| Problem::new("start.from", expected, found))
}

#[cfg(test)]
mod tests {
    use image::{GrayImage, Rgb};

    use super::*;
    use crate::pixels::golden;

    #[test]
    fn pictures_are_fitted_as_in_webui() {
        for case in golden::cases("fit") {
            let picture = golden::picture::<Rgb<u8>>(&case["kind"], &case["seed"], &case["from"]);
            let resize: Resize = serde_json::from_value(case["resize"].clone()).expect("a name");
            golden::check(&case, &resize.to(&picture, golden::pair(&case["to"])));
        }
    }

    #[test]
    fn long_pictures_have_the_size() {
        let sizes = [(1, 1), (1, 50_000), (50_000, 1), (0, 5), (5, 0)];
        for (width, height) in sizes {
            let picture = GrayImage::new(width, height);
            for resize in [Resize::Stretch, Resize::Crop, Resize::Fill, Resize::Latent] {
                for size in [[512, 512], [8, 1024], [7, 3]] {
                    let fitted = resize.to(&picture, size);
                    assert_eq!(
                        fitted.dimensions(),
                        size.into(),
                        "{resize:?}, {width}×{height}"
                    );
                }
            }
        }
    }
}
