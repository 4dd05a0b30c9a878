//! WebUI's masked content "fill": the masked part shows its surroundings, blurred.
//!
//! Source: WebUI 1.10, `modules/masking.py`, `fill`, on Pillow 13.0.0.

use image::{GrayImage, Luma, Rgb, RgbImage, Rgba, RgbaImage};

use super::{alpha, blur::pillow_gaussian};

/// The standard deviations of the blurs in pixels, and how often each blurred picture is laid over
/// the result.
const LAYERS: [(f32, usize); 6] = [
    (256.0, 1),
    (64.0, 1),
    (16.0, 2),
    (4.0, 4),
    (2.0, 2),
    (0.0, 1),
];

/// Fills the masked part of a picture with its surroundings, and returns the result.
///
/// The mask has the size of the picture and is 255 where the picture is filled. Other values count
/// in part. Where nothing is masked, the pixels keep their values. A mask of everything makes the
/// picture black. With a mask of another size the picture stays as it is.
pub(crate) fn fill(picture: &RgbImage, mask: &GrayImage) -> RgbImage {
    debug_assert_eq!(picture.dimensions(), mask.dimensions(), "the mask's size");
    if picture.dimensions() != mask.dimensions() {
        return picture.clone();
    }
    let (width, height) = picture.dimensions();
    // Transparent where it is masked, with premultiplied colors.
    let kept = RgbaImage::from_fn(width, height, |x, y| {
        let Luma([masked]) = *mask.get_pixel(x, y);
        let share = 255 - masked;
        let Rgb([red, green, blue]) = *picture.get_pixel(x, y);
        let [red, green, blue] = [red, green, blue].map(|color| alpha::scaled(color, share));
        Rgba([red, green, blue, share])
    });
    let mut filled = RgbaImage::new(width, height);
    for (radius, times) in LAYERS {
        let mut layer = pillow_gaussian(&kept, radius);
        alpha::straighten(&mut layer, 4);
        for _ in 0..times {
            for (below, above) in filled.pixels_mut().zip(layer.pixels()) {
                *below = Rgba(alpha::over(above.0, below.0));
            }
        }
    }
    let colors = filled
        .pixels()
        .map(|&Rgba([red, green, blue, _])| [red, green, blue]);
    let filled = RgbImage::from_raw(width, height, colors.flatten().collect());
    filled.expect("each pixel has three colors")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pixels::golden;

    #[test]
    fn every_byte_is_webuis() {
        for case in golden::cases("fill") {
            let (seed, size) = (&case["seed"], &case["size"]);
            let [width, height] = golden::pair(size);
            let mask = match case["mask"].as_str() {
                Some("disc") => golden::disc(9 + golden::number(seed), size),
                Some("empty") => GrayImage::new(width, height),
                Some("full") => GrayImage::from_pixel(width, height, Luma([255])),
                _ => golden::picture(&case["mask"], seed, size),
            };
            let picture = golden::picture(&case["kind"], seed, size);
            golden::check(&case, &fill(&picture, &mask));
        }
    }

    #[test]
    fn what_is_not_masked_stays() {
        let picture = RgbImage::from_fn(9, 7, |x, y| Rgb([x as u8 * 20, y as u8 * 30, 9]));
        assert_eq!(fill(&picture, &GrayImage::new(9, 7)), picture);
        for (width, height) in [(1, 10_000), (10_000, 1), (0, 0)] {
            let picture = RgbImage::from_pixel(width, height, Rgb([1, 2, 3]));
            assert_eq!(fill(&picture, &GrayImage::new(width, height)), picture);
        }
    }
}
