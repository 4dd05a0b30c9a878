//! Pillow's bicubic resampling of bytes, `Image.resize(size, BICUBIC)`, with the same result in
//! every byte.
//!
//! The kernel is Keys' cubic convolution with a = −0.5 (Keys 1981). When a picture becomes smaller,
//! the kernel is widened by the same factor, so that all pixels count. The picture is resampled
//! along the rows first, the result is rounded to bytes, and then along the columns. The weights
//! are whole numbers with 22 binary places. This follows `src/libImaging/Resample.c` of Pillow.
//!
//! The crate `image` has the same kernel, but it resamples the columns first and does not round in
//! between, so that its bytes differ by up to a few units.

use std::ops::Range;

use sd_core::image::RgbImage;

/// The binary places of a weight.
const PLACES: u32 = 22;

/// Half of the width of the kernel, in pixels.
const SUPPORT: f64 = 2.0;

/// The pixels that one pixel of the result is computed from.
struct Taps {
    /// The index of the first of these pixels.
    first: usize,
    /// Their weights, in units of 2⁻²².
    weights: Vec<i64>,
}

/// Resizes a picture to `size`, its width and height, and returns the bytes `[rows, columns, 3]` of
/// a window of the result. No side of the picture or of `size` is 0.
///
/// Only the window is computed, so that a long and narrow picture needs little memory.
pub(super) fn resized_window(
    picture: &RgbImage,
    size: [usize; 2],
    [columns, rows]: [Range<usize>; 2],
) -> Vec<u8> {
    let [width, height] = [picture.width() as usize, picture.height() as usize];
    let across = taps(width, size[0], columns);
    let down = taps(height, size[1], rows);
    // The rows of the picture that the window depends on.
    let first = down.iter().map(|taps| taps.first).min().unwrap_or(0);
    let end = down.iter().map(|taps| taps.first + taps.weights.len());
    let end = end.max().unwrap_or(0);

    let stride = across.len() * 3;
    let source = &picture.as_raw()[first * width * 3..end * width * 3];
    let mut narrow = Vec::with_capacity((end - first) * stride);
    for row in source.chunks_exact(width * 3) {
        for taps in &across {
            let pixels = &row[taps.first * 3..];
            narrow.extend((0..3).map(|channel| taps.sum(pixels[channel..].iter().step_by(3))));
        }
    }
    let mut window = Vec::with_capacity(down.len() * stride);
    for taps in &down {
        let rows = &narrow[(taps.first - first) * stride..];
        window.extend((0..stride).map(|column| taps.sum(rows[column..].iter().step_by(stride))));
    }
    window
}

impl Taps {
    /// Returns the weighted sum of the values, rounded to a byte.
    fn sum<'a>(&self, values: impl Iterator<Item = &'a u8>) -> u8 {
        let half = 1 << (PLACES - 1);
        let products = self.weights.iter().zip(values);
        let sum = products.fold(half, |sum, (weight, &value)| {
            sum + weight * i64::from(value)
        });
        (sum >> PLACES).clamp(0, 255) as u8
    }
}

/// Returns the taps of the pixels in `window`, for a line of `from` pixels that is resized to `to`
/// pixels.
fn taps(from: usize, to: usize, window: Range<usize>) -> Vec<Taps> {
    let scale = from as f64 / to as f64;
    let wider = scale.max(1.0);
    let support = SUPPORT * wider;
    let of_pixel = |pixel: usize| {
        let centre = (pixel as f64 + 0.5) * scale;
        // Both conversions drop the fraction. A negative number becomes 0.
        let first = (centre - support + 0.5) as usize;
        let end = ((centre + support + 0.5) as usize).min(from);
        let at = |place: usize| kernel((place as f64 - centre + 0.5) / wider);
        let weights: Vec<f64> = (first..end).map(at).collect();
        let sum: f64 = weights.iter().sum();
        let unit = f64::from(1 << PLACES);
        // `round` rounds halves away from zero, as Pillow does.
        let weights = weights
            .iter()
            .map(|weight| (weight / sum * unit).round() as i64);
        Taps {
            first,
            weights: weights.collect(),
        }
    };
    window.map(of_pixel).collect()
}

/// Returns the weight of a pixel at the distance `x` from the centre.
fn kernel(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < SUPPORT {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use sd_core::image::Rgb;

    use super::*;

    #[test]
    fn a_picture_of_the_same_size_keeps_its_bytes() {
        let picture = RgbImage::from_fn(7, 5, |x, y| Rgb([x as u8 * 36, y as u8 * 60, 128]));
        assert_eq!(
            resized_window(&picture, [7, 5], [0..7, 0..5]),
            *picture.as_raw()
        );
    }

    #[test]
    fn one_colour_stays_one_colour() {
        let picture = RgbImage::from_pixel(3, 40, Rgb([1, 128, 255]));
        let found = resized_window(&picture, [24, 320], [4..9, 100..103]);
        assert_eq!(found, [1, 128, 255].repeat(5 * 3));
    }

    /// The whole of the resized picture would have 15 GB.
    #[test]
    fn a_narrow_picture_costs_little() {
        let picture = RgbImage::from_fn(1, 100_000, |_, y| Rgb([(y % 256) as u8; 3]));
        let centre = (22_400_000 - 224) / 2;
        let found = resized_window(&picture, [224, 22_400_000], [0..224, centre..centre + 224]);
        assert_eq!(found.len(), 224 * 224 * 3);
    }
}
