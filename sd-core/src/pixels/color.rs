//! WebUI's "Apply color correction to img2img results to match original colors".
//!
//! Sources: WebUI 1.10, `modules/processing.py`, `setup_color_correction` and
//! `apply_color_correction`; scikit-image 0.26.0 (as 0.21, WebUI's),
//! `exposure/histogram_matching.py`; blendmodes 2022 (WebUI's), `blend.py`; OpenCV 5.0.0 (as 4.14),
//! `modules/imgproc/src/color_lab.cpp`.

mod lab;

use image::{Rgb, RgbImage};

pub(super) use self::lab::Lab;

/// Returns `picture` with the colors of `like`, which may have another size.
///
/// 1. Both pictures are converted to CIELAB. Each channel of `picture` gets the histogram of the
///    same channel of `like`.
/// 2. The result gets back the luminosity of `picture`, so that only colors change.
///
/// The bytes equal WebUI's with the packages above. blendmodes of 2022 drops fractions of
/// bytes in the second step. Later versions round them, which makes most bytes larger by one.
///
/// If one of the pictures has no pixels, `picture` is returned.
pub(crate) fn corrected(picture: &RgbImage, like: &RgbImage) -> RgbImage {
    if picture.is_empty() || like.is_empty() {
        return picture.clone();
    }
    let lab = Lab::new();
    let tables = matched(histograms(&lab, picture), histograms(&lab, like));
    let mut corrected = picture.clone();
    for Rgb(pixel) in corrected.pixels_mut() {
        let colors = lab.lab(*pixel);
        let matched = [0, 1, 2].map(|channel| tables[channel][usize::from(colors[channel])]);
        *pixel = with_luminosity(lab.rgb(matched), luminosity(fractions(*pixel)));
    }
    corrected
}

/// The number of pixels with each value, for each of the three channels.
type Histograms = [[u64; 256]; 3];

fn histograms(lab: &Lab, picture: &RgbImage) -> Histograms {
    let mut histograms = [[0; 256]; 3];
    for Rgb(pixel) in picture.pixels() {
        for (histogram, value) in histograms.iter_mut().zip(lab.lab(*pixel)) {
            histogram[usize::from(value)] += 1;
        }
    }
    histograms
}

/// Returns the new value for each value of each channel: `match_histograms` of scikit-image.
fn matched(own: Histograms, like: Histograms) -> [[u8; 256]; 3] {
    let mut tables = [[0; 256]; 3];
    for ((table, own), like) in tables.iter_mut().zip(own).zip(like) {
        // The shares of pixels up to each value that occurs.
        let values = shares(like).into_iter().enumerate().zip(like);
        let points = values.filter(|&(_, count)| count > 0);
        let points: Vec<_> = points
            .map(|((value, share), _)| (share, value as f64))
            .collect();
        for (new, share) in table.iter_mut().zip(shares(own)) {
            // Drops the fraction.
            *new = interpolated(&points, share) as u8;
        }
    }
    tables
}

/// Returns the share of pixels with at most each value.
fn shares(counts: [u64; 256]) -> [f64; 256] {
    let all: u64 = counts.iter().sum();
    let mut sum = 0;
    counts.map(|count| {
        sum += count;
        sum as f64 / all as f64
    })
}

/// Returns `numpy.interp`: the line through points (x, y) with growing x, at `x`. Beyond the points
/// it is flat.
fn interpolated(points: &[(f64, f64)], x: f64) -> f64 {
    let after = points.partition_point(|point| point.0 <= x);
    let (Some(&right), Some(&left)) = (points.get(after), points.get(after.wrapping_sub(1))) else {
        let nearest = if after == 0 {
            points.first()
        } else {
            points.last()
        };
        return nearest.map_or(0.0, |point| point.1);
    };
    (right.1 - left.1) / (right.0 - left.0) * (x - left.0) + left.1
}

fn fractions(pixel: [u8; 3]) -> [f64; 3] {
    pixel.map(|value| f64::from(value) / 255.0)
}

fn luminosity([red, green, blue]: [f64; 3]) -> f64 {
    red * 0.299 + green * 0.587 + blue * 0.114
}

/// Returns a pixel with another luminosity, `0.0..=1.0`. Colors out of range are moved towards
/// gray: blendmodes' `BlendType.LUMINOSITY`.
fn with_luminosity(pixel: [u8; 3], wanted: f64) -> [u8; 3] {
    let colors = fractions(pixel);
    let change = wanted - luminosity(colors);
    let mut colors = colors.map(|color| color + change);
    let gray = luminosity(colors);
    let least = colors.into_iter().fold(f64::INFINITY, f64::min);
    let most = colors.into_iter().fold(f64::NEG_INFINITY, f64::max);
    if least < 0.0 {
        colors = colors.map(|color| gray + (color - gray) * gray / (gray - least));
    }
    if most > 1.0 {
        colors = colors.map(|color| gray + (color - gray) * (1.0 - gray) / (most - gray));
    }
    // Drops the fraction.
    colors.map(|color| (color.clamp(0.0, 1.0) * 255.0) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pixels::golden;

    #[test]
    fn every_byte_is_webuis() {
        for case in golden::cases("color") {
            let picture = golden::picture(&case["kind"], &case["seed"], &case["size"]);
            let like = golden::picture(&case["like"], &case["like_seed"], &case["like_size"]);
            golden::check(&case, &corrected(&picture, &like));
        }
    }

    #[test]
    fn pictures_without_pixels_change_nothing() {
        let (empty, picture) = (
            RgbImage::new(0, 3),
            RgbImage::from_pixel(2, 1, Rgb([9, 8, 7])),
        );
        assert_eq!(corrected(&picture, &empty), picture);
        assert_eq!(corrected(&empty, &picture), empty);
    }
}
