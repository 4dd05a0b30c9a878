//! The picture of a start and its mask, as the run and the finished picture need them.

use image::{GrayImage, ImageBuffer, Pixel, RgbImage, imageops};
use ndarray::{Array2, Array4, ArrayView2, Axis, Zip};

use super::{Mask, MaskRule, MaskedContent, Resize, Start, StartFrom};
use crate::{
    ImageSize,
    picture::{from_rgb, to_rgb},
    pixels::{
        Filter, LatentFilter,
        blur::{gaussian, pillow_gaussian},
        color, fill,
        latents::resize_latents,
        region, resize,
    },
};

/// The picture of a start and its mask, in the size in which the run draws.
pub(crate) struct Prepared {
    pub picture: RgbImage,
    /// The mask: 0 or 255, or gray values if its rule uses them.
    pub mask: Option<GrayImage>,
    /// The part of the original that is drawn, if it is only a part.
    pub region: Option<Region>,
    /// What happens to the finished picture.
    pub finish: Finish,
}

/// A part of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Region {
    /// `[x, y, width, height]`.
    area: [u32; 4],
    /// The width and height of the whole picture.
    of: [u32; 2],
}

impl Region {
    /// Cuts the same part out of another picture, which is first fitted to the size of the whole
    /// one, and fits it to the size in which the run draws.
    pub fn of<P>(
        self,
        picture: &ImageBuffer<P, Vec<u8>>,
        resize: Resize,
        to: [u32; 2],
    ) -> ImageBuffer<P, Vec<u8>>
    where
        P: Pixel<Subpixel = u8> + 'static,
    {
        let [x, y, width, height] = self.area;
        let whole = resize.to(picture, self.of);
        let part = imageops::crop_imm(&whole, x, y, width, height).to_image();
        Resize::Fill.to(&part, to)
    }
}

impl Prepared {
    /// Prepares the picture of a start. `None` if it starts from latents.
    pub fn new(start: &Start, size: ImageSize) -> Option<Self> {
        let StartFrom::Pixels(pixels) = &start.from else {
            return None;
        };
        let (height, width, _) = pixels.dim();
        let values = pixels.iter().copied().collect();
        let original = RgbImage::from_raw(width as u32, height as u32, values);
        let original = original.expect("the plan has checked the shape");
        let to = [size.width(), size.height()];
        let mut prepared = match &start.mask {
            // It is scaled after it has been encoded.
            None if start.resize == Resize::Latent => Self::plain(original),
            None => Self::plain(start.resize.to(&original, to)),
            Some(mask) => Self::masked(original, mask, start.resize, to),
        };
        if start.color_correction {
            prepared.finish.colors = Some(prepared.picture.clone());
        }
        Some(prepared)
    }

    fn plain(picture: RgbImage) -> Self {
        Self {
            picture,
            mask: None,
            region: None,
            finish: Finish::default(),
        }
    }

    fn masked(original: RgbImage, mask: &Mask, resize: Resize, to: [u32; 2]) -> Self {
        let whole = mask.image();
        let blurred = match mask.rule {
            _ if mask.blur == 0.0 => whole.clone(),
            MaskRule::WebUi => gaussian(&whole, mask.blur),
            MaskRule::Diffusers | MaskRule::Differential => pillow_gaussian(&whole, mask.blur),
        };
        // What the latents see of the mask.
        let acting = match mask.rule {
            MaskRule::Diffusers => &whole,
            MaskRule::WebUi | MaskRule::Differential => &blurred,
        };
        let region = mask.only_masked.map(|padding| {
            let all = [0, 0, original.width(), original.height()];
            region::region(acting, padding, to).unwrap_or(all)
        });
        let (mut picture, mut drawn) = match region {
            Some([x, y, width, height]) => {
                let picture = imageops::crop_imm(&original, x, y, width, height).to_image();
                let acting = imageops::crop_imm(acting, x, y, width, height).to_image();
                (Resize::Fill.to(&picture, to), Resize::Fill.to(&acting, to))
            }
            None => (resize.to(&original, to), resize.to(acting, to)),
        };
        if mask.rule == MaskRule::Diffusers {
            // diffusers' rounding.
            drawn
                .iter_mut()
                .for_each(|value| *value = if *value < 128 { 0 } else { 255 });
        }
        let of = [original.width(), original.height()];
        let mut finish = Finish::default();
        if mask.keep_original {
            finish.kept = Some(match region {
                Some(region) => Kept::Region {
                    mask: match mask.rule {
                        MaskRule::Diffusers | MaskRule::WebUi => blurred,
                        MaskRule::Differential => any(blurred),
                    },
                    original,
                    region,
                },
                None => Kept::Whole {
                    mask: share(mask, &drawn),
                    original: from_rgb(&picture),
                },
            });
        }
        if mask.content != MaskedContent::Original {
            picture = fill::fill(&picture, &drawn);
        }
        Self {
            picture,
            mask: Some(drawn),
            region: region.map(|area| Region { area, of }),
            finish,
        }
    }
}

/// Returns the shares, 0 to 255, of the drawn picture in the finished one. `drawn` is the mask in
/// the size of the picture.
fn share(mask: &Mask, drawn: &GrayImage) -> GrayImage {
    match mask.rule {
        MaskRule::Diffusers if mask.blur > 0.0 => pillow_gaussian(drawn, mask.blur),
        MaskRule::Diffusers => drawn.clone(),
        MaskRule::WebUi => {
            let mut doubled = drawn.clone();
            doubled
                .iter_mut()
                .for_each(|value| *value = value.saturating_mul(2));
            doubled
        }
        MaskRule::Differential => any(drawn.clone()),
    }
}

/// Returns 255 where a mask redraws anything, because that is not mixed again.
fn any(mut mask: GrayImage) -> GrayImage {
    mask.iter_mut()
        .for_each(|value| *value = if *value > 0 { 255 } else { 0 });
    mask
}

/// What happens to a finished picture.
#[derive(Debug, Default)]
pub(crate) struct Finish {
    /// The picture whose colors it gets.
    colors: Option<RgbImage>,
    kept: Option<Kept>,
}

/// The parts of the original that are kept. `mask` has the shares of the drawn picture.
#[derive(Debug)]
enum Kept {
    /// The picture was drawn as a whole, `[1, 3, h, w]`.
    Whole {
        original: Array4<f32>,
        mask: GrayImage,
    },
    /// A region was drawn: x, y, width and height in the original.
    Region {
        original: RgbImage,
        mask: GrayImage,
        region: [u32; 4],
    },
}

impl Finish {
    /// Finishes a decoded picture `[1, 3, h, w]`: corrects its colors, and puts back what is kept
    /// of the original. The result may have another size.
    pub fn apply(&self, mut pixels: Array4<f32>) -> Array4<f32> {
        pixels.mapv_inplace(|value| value.clamp(-1.0, 1.0));
        if let Some(like) = &self.colors {
            let drawn = to_rgb(pixels.index_axis(Axis(0), 0));
            pixels = from_rgb(&color::corrected(&drawn, like));
        }
        match &self.kept {
            None => pixels,
            Some(Kept::Whole { original, mask }) => {
                restore(&mut pixels, original, mask);
                pixels
            }
            Some(Kept::Region {
                original,
                mask,
                region: [x, y, width, height],
            }) => {
                let drawn = to_rgb(pixels.index_axis(Axis(0), 0));
                let drawn = Resize::Crop.to(&drawn, [*width, *height]);
                let mut whole = original.clone();
                imageops::replace(&mut whole, &drawn, i64::from(*x), i64::from(*y));
                let mut pixels = from_rgb(&whole);
                restore(&mut pixels, &from_rgb(original), mask);
                pixels
            }
        }
    }
}

/// Returns the mask in the size of the latents, `[h, w]`, as the run uses it: the share that is
/// redrawn.
pub(crate) fn latent_mask(
    mask: &GrayImage,
    rule: MaskRule,
    [height, width]: [usize; 2],
) -> Array2<f32> {
    let latents = |mask: GrayImage| {
        Array2::from_shape_fn((height, width), |(y, x)| {
            f32::from(mask.get_pixel(x as u32, y as u32).0[0]) / 255.0
        })
    };
    match rule {
        MaskRule::Diffusers => nearest(mask, [height, width]),
        MaskRule::WebUi => {
            let small = resize(mask, width as u32, height as u32, Filter::Bicubic);
            latents(small).mapv(f32::round)
        }
        MaskRule::Differential => {
            let shape = (1, 1, mask.height() as usize, mask.width() as usize);
            let values = mask.iter().map(|&value| f32::from(value) / 255.0).collect();
            let values = Array4::from_shape_vec(shape, values);
            let values = values.expect("a gray picture has a value for each pixel");
            let filter = LatentFilter::Bilinear;
            let small = resize_latents(values.view(), [height, width], filter);
            small
                .index_axis_move(Axis(0), 0)
                .index_axis_move(Axis(0), 0)
        }
    }
}

/// Returns the mask in the size of the latents, `[h, w]`, 0 or 1: the value of the pixel in the
/// upper left corner of each latent, which is nearest-neighbour scaling in torch.
pub(crate) fn nearest(mask: &GrayImage, [height, width]: [usize; 2]) -> Array2<f32> {
    let (wide, high) = (mask.width() as usize, mask.height() as usize);
    Array2::from_shape_fn((height, width), |(y, x)| {
        let pixel = mask.get_pixel((x * wide / width) as u32, (y * high / height) as u32);
        f32::from(u8::from(pixel.0[0] >= 128))
    })
}

/// Returns the pixels `[1, 3, h, w]` with the middle gray, 0, inside the mask.
pub(crate) fn outside(pixels: &Array4<f32>, mask: &GrayImage) -> Array4<f32> {
    let mut pixels = pixels.clone();
    for ((_, _, y, x), pixel) in pixels.indexed_iter_mut() {
        if mask.get_pixel(x as u32, y as u32).0[0] >= 128 {
            *pixel = 0.0;
        }
    }
    pixels
}

/// Replaces the pixels `[1, 3, h, w]` outside a mask by the pixels of the original. Where the mask
/// is gray, both are mixed.
fn restore(pixels: &mut Array4<f32>, original: &Array4<f32>, mask: &GrayImage) {
    let (wide, high) = (mask.width() as usize, mask.height() as usize);
    let shares = ArrayView2::from_shape((high, wide), mask.as_raw());
    let shares = shares.expect("a gray picture has a value for each pixel");
    for (mut channel, original) in pixels
        .index_axis_mut(Axis(0), 0)
        .outer_iter_mut()
        .zip(original.index_axis(Axis(0), 0).outer_iter())
    {
        Zip::from(&mut channel)
            .and(&original)
            .and(&shares)
            .for_each(|pixel, &original, &share| {
                // Without rounding where nothing is mixed.
                *pixel = match share {
                    0 => original,
                    255 => *pixel,
                    share => original + f32::from(share) / 255.0 * (*pixel - original),
                };
            });
    }
}
