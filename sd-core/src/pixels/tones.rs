//! Control pictures that need nothing but the colors of each pixel.
//!
//! Source: sd-webui-controlnet, `scripts/preprocessor/legacy/processor.py`, on OpenCV 5.0.0 and
//! numpy 2.4.6.

use image::{Rgb, RgbImage};

use super::color::Lab;

/// Draws a pixel white where each of its colors is above the threshold, and black elsewhere:
/// sd-webui-controlnet's "threshold", which uses 127.
///
/// A threshold of 255 makes every pixel black.
///
/// ```
/// use sd_core::{image::{Rgb, RgbImage}, pixels::threshold};
///
/// let pixels = vec![128, 128, 128, 255, 255, 127];
/// let picture = RgbImage::from_raw(2, 1, pixels).expect("two pixels");
/// assert_eq!(threshold(&picture, 127).into_raw(), [255, 255, 255, 0, 0, 0]);
/// ```
pub fn threshold(picture: &RgbImage, threshold: u8) -> RgbImage {
    mapped(picture, |colors| {
        let white = colors.iter().all(|&color| color > threshold);
        [if white { 255 } else { 0 }; 3]
    })
}

/// Inverts the colors of a picture: black lines on white become white lines on black, as the models
/// for lines and scribbles need them. sd-webui-controlnet calls it "invert".
pub fn invert(picture: &RgbImage) -> RgbImage {
    mapped(picture, |colors| colors.map(|color| 255 - color))
}

/// Returns the lightness of each pixel, L of CIELAB, as gray: sd-webui-controlnet's
/// "recolor_luminance".
///
/// `gamma` is an exponent, above 0 and finite. Above 1 it makes the picture darker. Other numbers
/// count as 1. sd-webui-controlnet uses 1.
///
/// sd-webui-controlnet exchanges red and blue by mistake. The bytes equal its bytes, so that pure
/// red is darker than pure blue. numpy's powers may differ in the last place, which can change a
/// byte by 1 if `gamma` is not 1.
pub fn luminance(picture: &RgbImage, gamma: f32) -> RgbImage {
    let lab = Lab::new();
    let curve = curve(gamma);
    mapped(picture, |[red, green, blue]| {
        let [lightness, ..] = lab.lab([blue, green, red]);
        [curve[usize::from(lightness)]; 3]
    })
}

/// Returns the largest color of each pixel, V of HSV, as gray: sd-webui-controlnet's
/// "recolor_intensity".
///
/// `gamma` is as in [`luminance`].
pub fn intensity(picture: &RgbImage, gamma: f32) -> RgbImage {
    let curve = curve(gamma);
    mapped(picture, |[red, green, blue]| {
        [curve[usize::from(red.max(green).max(blue))]; 3]
    })
}

fn mapped(picture: &RgbImage, new: impl Fn([u8; 3]) -> [u8; 3]) -> RgbImage {
    let mut picture = picture.clone();
    for Rgb(colors) in picture.pixels_mut() {
        *colors = new(*colors);
    }
    picture
}

/// Returns the new value of each value. Fractions are dropped, so that even a gamma of 1 makes some
/// values smaller by 1.
fn curve(gamma: f32) -> [u8; 256] {
    let gamma = if gamma > 0.0 && gamma.is_finite() {
        gamma
    } else {
        1.0
    };
    std::array::from_fn(|value| {
        let share = f64::from(value as f32 / 255.0);
        // A power in double precision is numpy's single precision after rounding.
        (share.powf(f64::from(gamma)) as f32 * 255.0) as u8
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pixels::golden;

    #[test]
    fn every_byte_is_the_extensions() {
        for case in golden::preprocessors("tones") {
            let picture = golden::control(&case);
            let parameter = golden::float(&case["parameter"]);
            let result = match case["name"].as_str() {
                Some("threshold") => threshold(&picture, parameter as u8),
                Some("invert") => invert(&picture),
                Some("luminance") => luminance(&picture, parameter),
                Some("intensity") => intensity(&picture, parameter),
                _ => panic!("no function of {case}"),
            };
            golden::check(&case, &result);
        }
    }

    #[test]
    fn odd_exponents_count_as_one() {
        for gamma in [f32::NAN, f32::INFINITY, 0.0, -1.0] {
            assert_eq!(curve(gamma), curve(1.0));
        }
        assert!(curve(f32::MAX)[254] == 0 && curve(f32::MIN_POSITIVE)[1] == 255);
    }
}
