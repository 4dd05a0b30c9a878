//! Pillow's bicubic resampling of bytes, `Image.resize(size, BICUBIC)`, with the same result in
//! every byte.
//!
//! The kernel is Keys' cubic convolution with a = −0.5 (Keys 1981). When a picture becomes smaller,
//! the kernel is widened by the same factor, so that all pixels count. The weights are whole
//! numbers with 22 binary places.
//!
//! The picture is resampled along one axis, rounded to bytes, and then resampled along the other
//! axis. Pillow 13 begins with the rows, except for tall pictures that become smaller: see
//! [`columns_first`]. Pillow up to version 12 always begins with the rows, which changes such
//! pictures by a few units in a few bytes.
//!
//! The crate `image` has the same kernel, but it begins with the columns and does not round in
//! between, so its bytes differ.

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
    let old = [picture.width() as usize, picture.height() as usize];
    let across = taps(old[0], size[0], columns);
    let down = taps(old[1], size[1], rows);
    let (bytes, stride) = (picture.as_raw(), old[0] * 3);
    if columns_first(old, size) {
        let flat = along_columns(bytes, stride, &down, 0);
        return along_rows(&flat, stride, &across);
    }
    // Only the rows that the window depends on.
    let first = down.iter().map(|taps| taps.first).min().unwrap_or(0);
    let end = down.iter().map(|taps| taps.first + taps.weights.len());
    let end = end.max().unwrap_or(0);
    let narrow = along_rows(&bytes[first * stride..end * stride], stride, &across);
    along_columns(&narrow, across.len() * 3, &down, first)
}

/// Returns whether Pillow 13 resamples the columns of a picture before its rows. The sizes are a
/// width and a height.
///
/// It does so when the picture loses more than twice as many rows as columns. The rule was found by
/// comparing the bytes of both orders with Pillow 13.0.0 for many sizes.
fn columns_first(old: [usize; 2], new: [usize; 2]) -> bool {
    let [columns, rows] = [0, 1].map(|axis| old[axis] as i64 - new[axis] as i64);
    rows > 0 && rows > 2 * columns
}

/// Resamples each row of `bytes`, which has `stride` bytes.
fn along_rows(bytes: &[u8], stride: usize, taps: &[Taps]) -> Vec<u8> {
    let mut resized = Vec::with_capacity(bytes.len() / stride * taps.len() * 3);
    for row in bytes.chunks_exact(stride) {
        for taps in taps {
            let pixels = &row[taps.first * 3..];
            resized.extend((0..3).map(|channel| taps.sum(pixels[channel..].iter().step_by(3))));
        }
    }
    resized
}

/// Resamples each column of `bytes`, whose rows have `stride` bytes. Its first row is row `first`
/// of the picture.
fn along_columns(bytes: &[u8], stride: usize, taps: &[Taps], first: usize) -> Vec<u8> {
    let mut resized = Vec::with_capacity(taps.len() * stride);
    for taps in taps {
        let rows = &bytes[(taps.first - first) * stride..];
        resized.extend((0..stride).map(|byte| taps.sum(rows[byte..].iter().step_by(stride))));
    }
    resized
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

    /// The cases are from Pillow 13.0.0.
    #[test]
    fn the_order_is_pillows() {
        for (old, new, expected) in [
            ([33, 71], [28, 60], true),
            ([33, 48], [28, 40], false),
            ([40, 80], [20, 40], false),
            ([7, 70], [3, 30], true),
            ([80, 40], [70, 20], false),
            ([80, 40], [79, 10], true),
            ([10, 25], [20, 24], true),
            ([20, 60], [25, 61], false),
        ] {
            assert_eq!(columns_first(old, new), expected, "{old:?} to {new:?}");
        }
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
