//! Pillow's `Image.resize` for 8-bit pictures, with the same result in every byte.
//!
//! Source: Pillow 13.0.0, `src/libImaging/Resample.c`; for [`Filter::Nearest`] `Geometry.c`; for
//! transparent pictures `Image.resize` in `src/PIL/Image.py`.
//!
//! A pixel of the result is a weighted sum of the pixels under a kernel. When a picture becomes
//! smaller, the kernel is widened by the same factor, so that all pixels count. The weights are
//! whole numbers with 22 binary places.
//!
//! The picture is resampled along one axis, rounded to bytes, and then resampled along the other
//! axis. Pillow 13 begins with the rows, except for tall pictures that become smaller: see
//! [`columns_first`]. Pillow up to version 12 always begins with the rows, which changes such
//! pictures by a few units in a few bytes.
//!
//! The crate `image` has the same kernels, but it begins with the columns and does not round in
//! between, so its bytes differ.

use std::{borrow::Cow, f64::consts::PI, ops::Range};

use image::{ImageBuffer, Pixel};
use serde::{Deserialize, Serialize};

use super::alpha;

/// A filter of [`resize`], by Pillow's name.
///
/// With serde it is a name in lower case, such as `"lanczos"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Filter {
    /// The nearest pixel, `NEAREST`.
    Nearest,
    /// The mean of the pixels that a pixel of the result covers, `BOX`.
    Box,
    /// A triangle of one pixel to each side, `BILINEAR`.
    Bilinear,
    /// Keys' cubic convolution with a = −0.5, two pixels to each side, `BICUBIC`.
    Bicubic,
    /// The windowed sinc function of three pixels to each side, `LANCZOS`.
    Lanczos,
}

/// Resizes a picture to a width and a height in pixels, as Pillow's `Image.resize`.
///
/// Pictures with two or four channels are taken for gray and colored pictures with alpha. Their
/// colors are weighted by alpha, except with [`Filter::Nearest`].
///
/// If the picture has no pixels, the result is black and transparent.
///
/// ```
/// use sd_core::{image::{Luma, GrayImage}, pixels::{Filter, resize}};
///
/// let edge = GrayImage::from_fn(4, 1, |x, _| Luma([if x < 2 { 0 } else { 255 }]));
/// // A sharp filter makes ripples beside the edge.
/// assert_eq!(resize(&edge, 8, 1, Filter::Lanczos).into_raw(), [10, 0, 0, 54, 201, 255, 255, 245]);
/// assert_eq!(resize(&edge, 8, 1, Filter::Nearest).into_raw(), [0, 0, 0, 0, 255, 255, 255, 255]);
/// ```
pub fn resize<P>(
    picture: &ImageBuffer<P, Vec<u8>>,
    width: u32,
    height: u32,
    filter: Filter,
) -> ImageBuffer<P, Vec<u8>>
where
    P: Pixel<Subpixel = u8>,
{
    resize_window(picture, [width, height], [0, 0, width, height], filter)
}

/// Resizes a picture to `full`, a width and a height in pixels, and returns a window of the result:
/// x, y, width and height. The parts of the window outside of the result are left out.
///
/// The bytes are the same as after [`resize`] and a crop. The memory does not depend on `full`:
/// besides some copies of the picture and of the window, it is up to 32 bytes for each row and each
/// column of the picture. A long and narrow picture can therefore be resized to cover a square.
///
/// ```
/// use sd_core::{image::GrayImage, pixels::{Filter, resize_window}};
///
/// // As a whole, the resized picture would have 4 GB.
/// let line = GrayImage::new(10_000, 1);
/// let middle = resize_window(&line, [6_400_000, 640], [3_199_680, 0, 640, 640], Filter::Lanczos);
/// assert_eq!(middle.dimensions(), (640, 640));
/// ```
pub fn resize_window<P>(
    picture: &ImageBuffer<P, Vec<u8>>,
    full: [u32; 2],
    [x, y, width, height]: [u32; 4],
    filter: Filter,
) -> ImageBuffer<P, Vec<u8>>
where
    P: Pixel<Subpixel = u8>,
{
    let inside = |start: u32, length: u32, of: u32| {
        let start = start.min(of);
        start..start.saturating_add(length).min(of)
    };
    let window = [inside(x, width, full[0]), inside(y, height, full[1])];
    let (width, height) = (window[0].len() as u32, window[1].len() as u32);
    let window = window.map(|range| range.start as usize..range.end as usize);
    let (old_width, old_height) = picture.dimensions();
    if [width, height, old_width, old_height].contains(&0) {
        return ImageBuffer::new(width, height);
    }
    let source = Source {
        channels: usize::from(P::CHANNEL_COUNT),
        size: [old_width as usize, old_height as usize],
        bytes: Cow::Borrowed(picture.as_raw()),
    };
    let full = full.map(|side| side as usize);
    let bytes = match (source.kernel(full, filter), filter) {
        (Some(kernel), _) => source.resampled(full, window, kernel),
        (None, Filter::Nearest) => source.nearest(full, window),
        (None, _) => source.cropped(window),
    };
    let resized = ImageBuffer::from_raw(width, height, bytes);
    resized.expect("each pixel of the window was computed")
}

/// The bytes of a picture.
struct Source<'a> {
    channels: usize,
    /// The width and the height.
    size: [usize; 2],
    bytes: Cow<'a, [u8]>,
}

/// The weight at a distance from the centre, and the distance from which it is 0.
type Kernel = (fn(f64) -> f64, f64);

impl Source<'_> {
    /// Returns the kernel of a filter. `None` if it needs none: nothing is weighted, or the size
    /// stays the same.
    fn kernel(&self, full: [usize; 2], filter: Filter) -> Option<Kernel> {
        let kernel: Kernel = match filter {
            Filter::Nearest => return None,
            Filter::Box => (square, 0.5),
            Filter::Bilinear => (triangle, 1.0),
            Filter::Bicubic => (cubic, 2.0),
            Filter::Lanczos => (lanczos, 3.0),
        };
        (self.size != full).then_some(kernel)
    }

    fn resampled(mut self, full: [usize; 2], window: [Range<usize>; 2], kernel: Kernel) -> Vec<u8> {
        let has_alpha = self.channels == 2 || self.channels == 4;
        if has_alpha {
            alpha::premultiply(self.bytes.to_mut(), self.channels);
        }
        let [columns, rows] = window;
        let across = taps(self.size[0], full[0], columns, kernel);
        let down = taps(self.size[1], full[1], rows, kernel);
        let mut resized = if columns_first(self.size, full) {
            self.along_columns_and_rows(&across, &down)
        } else {
            self.along_rows_and_columns(&across, &down)
        };
        if has_alpha {
            alpha::straighten(&mut resized, self.channels);
        }
        resized
    }

    /// Resamples each row and then each column.
    ///
    /// A resampled row is added at once to all rows of the result that it belongs to. A tall
    /// picture would otherwise need a wide copy of all its rows.
    fn along_rows_and_columns(&self, across: &[Taps], down: &[Taps]) -> Vec<u8> {
        let length = across.len() * self.channels;
        let mut sums = vec![HALF; length * down.len()];
        let mut row = Vec::with_capacity(length);
        let mut next = 0;
        for (y, bytes) in self.rows().enumerate().skip(down[0].first) {
            // The rows of the result depend on ranges of rows that begin and end in order.
            while down.get(next).is_some_and(|taps| taps.end() <= y) {
                next += 1;
            }
            if next == down.len() {
                break;
            }
            row.clear();
            row.extend(
                across
                    .iter()
                    .flat_map(|taps| taps.pixel(bytes, self.channels)),
            );
            let sums = sums.chunks_exact_mut(length).zip(down).skip(next);
            for (sums, taps) in sums.take_while(|(_, taps)| taps.first <= y) {
                let weight = taps.weights[y - taps.first];
                for (sum, &value) in sums.iter_mut().zip(&row) {
                    *sum += weight * i32::from(value);
                }
            }
        }
        sums.into_iter().map(byte).collect()
    }

    /// Resamples each column and then each row.
    fn along_columns_and_rows(&self, across: &[Taps], down: &[Taps]) -> Vec<u8> {
        let mut resized = Vec::with_capacity(across.len() * down.len() * self.channels);
        let mut sums = vec![0; self.size[0] * self.channels];
        let mut row = Vec::with_capacity(sums.len());
        for taps in down {
            sums.fill(HALF);
            for (bytes, &weight) in self.rows().skip(taps.first).zip(&taps.weights) {
                for (sum, &value) in sums.iter_mut().zip(bytes) {
                    *sum += weight * i32::from(value);
                }
            }
            row.clear();
            row.extend(sums.iter().copied().map(byte));
            resized.extend(
                across
                    .iter()
                    .flat_map(|taps| taps.pixel(&row, self.channels)),
            );
        }
        resized
    }

    fn nearest(&self, full: [usize; 2], window: [Range<usize>; 2]) -> Vec<u8> {
        let [columns, rows] = window;
        let columns = nearest(self.size[0], full[0], columns);
        let rows = nearest(self.size[1], full[1], rows);
        let stride = self.size[0] * self.channels;
        let row = |y: usize| {
            let row = &self.bytes[y * stride..(y + 1) * stride];
            let pixel = |&x: &usize| &row[x * self.channels..(x + 1) * self.channels];
            columns.iter().flat_map(pixel).copied()
        };
        rows.into_iter().flat_map(row).collect()
    }

    fn cropped(&self, [columns, rows]: [Range<usize>; 2]) -> Vec<u8> {
        let columns = columns.start * self.channels..columns.end * self.channels;
        let rows = self.rows().skip(rows.start).take(rows.len());
        rows.flat_map(|row| &row[columns.clone()])
            .copied()
            .collect()
    }

    fn rows(&self) -> impl Iterator<Item = &[u8]> {
        self.bytes.chunks_exact(self.size[0] * self.channels)
    }
}

/// Returns whether Pillow 13 resamples the columns of a picture before its rows: when the picture
/// loses more than twice as many rows as columns. The sizes are a width and a height.
fn columns_first(old: [usize; 2], new: [usize; 2]) -> bool {
    let [columns, rows] = [0, 1].map(|axis| old[axis] as i64 - new[axis] as i64);
    rows > 0 && rows > 2 * columns
}

/// The binary places of a weight.
const PLACES: u32 = 22;

/// One half, which rounds a sum of weighted bytes.
const HALF: i32 = 1 << (PLACES - 1);

/// Returns a sum of weighted bytes as a byte.
fn byte(sum: i32) -> u8 {
    (sum >> PLACES).clamp(0, 255) as u8
}

/// The pixels of a line that one pixel of the result is computed from.
struct Taps {
    /// The index of the first of these pixels.
    first: usize,
    /// Their weights, in units of 2⁻²². The sum of their magnitudes is below 2, so that a weighted
    /// sum of bytes fits into 32 bits.
    weights: Vec<i32>,
}

impl Taps {
    fn end(&self) -> usize {
        self.first + self.weights.len()
    }

    /// Returns the channels of the weighted sum of pixels in a row.
    fn pixel(&self, row: &[u8], channels: usize) -> impl Iterator<Item = u8> {
        let pixels = &row[self.first * channels..];
        (0..channels).map(move |channel| {
            let values = pixels[channel..].iter().step_by(channels);
            let products = self.weights.iter().zip(values);
            byte(products.fold(HALF, |sum, (weight, &value)| {
                sum + weight * i32::from(value)
            }))
        })
    }
}

/// Returns the taps of the pixels in `window`, for a line of `from` pixels that is resized to `to`
/// pixels.
fn taps(from: usize, to: usize, window: Range<usize>, (kernel, support): Kernel) -> Vec<Taps> {
    // Pillow has the length as a 32-bit number here.
    let scale = f64::from(from as f32) / to as f64;
    let wider = scale.max(1.0);
    let support = support * wider;
    let narrower = 1.0 / wider;
    let of_pixel = |pixel: usize| {
        let centre = (pixel as f64 + 0.5) * scale;
        // Both conversions drop the fraction. A negative number becomes 0. The limits have an
        // effect on lines of more than 2²⁴ pixels only.
        let first = ((centre - support + 0.5) as usize).min(from - 1);
        let end = ((centre + support + 0.5) as usize).clamp(first + 1, from);
        let at = |place: usize| kernel((place as f64 - centre + 0.5) * narrower);
        let weights: Vec<f64> = (first..end).map(at).collect();
        let sum: f64 = weights.iter().sum();
        let whole = |weight: f64| {
            let weight = if sum == 0.0 { 0.0 } else { weight / sum };
            // Rounds halves away from zero.
            (weight * f64::from(1 << PLACES) + 0.5f64.copysign(weight)) as i32
        };
        let weights = weights.into_iter().map(whole).collect();
        Taps { first, weights }
    };
    window.map(of_pixel).collect()
}

/// Returns the nearest pixels of the pixels in `window`, for a line of `from` pixels that is
/// resized to `to` pixels.
fn nearest(from: usize, to: usize, window: Range<usize>) -> Vec<usize> {
    let scale = f64::from(from as f32) / to as f64;
    let mut nearest = Vec::with_capacity(window.len());
    // Pillow adds up the positions, with the rounding errors of all pixels before.
    let mut position = scale * 0.5;
    for pixel in 0..window.end {
        if pixel >= window.start {
            nearest.push((position as usize).min(from - 1));
        }
        position += scale;
    }
    nearest
}

fn square(x: f64) -> f64 {
    f64::from(u8::from(-0.5 < x && x <= 0.5))
}

fn triangle(x: f64) -> f64 {
    (1.0 - x.abs()).max(0.0)
}

fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

fn lanczos(x: f64) -> f64 {
    if (-3.0..3.0).contains(&x) {
        sinc(x) * sinc(x / 3.0)
    } else {
        0.0
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    let x = x * PI;
    x.sin() / x
}

#[cfg(test)]
mod tests {
    use image::{GrayImage, Luma, LumaA, Rgb, RgbImage, Rgba, imageops};
    use serde_json::Value;

    use super::*;
    use crate::pixels::golden;

    #[test]
    fn every_byte_is_pillows() {
        fn compare<P: Pixel<Subpixel = u8>>(case: &Value) {
            let picture = golden::picture::<P>(&case["kind"], &case["seed"], &case["from"]);
            let [width, height] = golden::pair(&case["to"]);
            let filter = serde_json::from_value(case["filter"].clone()).expect("a filter");
            golden::check(case, &resize(&picture, width, height, filter));
        }
        for case in golden::cases("resize") {
            match golden::number(&case["channels"]) {
                1 => compare::<Luma<u8>>(&case),
                2 => compare::<LumaA<u8>>(&case),
                3 => compare::<Rgb<u8>>(&case),
                _ => compare::<Rgba<u8>>(&case),
            }
        }
    }

    const FILTERS: [Filter; 5] = [
        Filter::Nearest,
        Filter::Box,
        Filter::Bilinear,
        Filter::Bicubic,
        Filter::Lanczos,
    ];

    #[test]
    fn a_window_has_the_values_of_a_crop() {
        let picture = RgbImage::from_fn(23, 31, |x, y| {
            Rgb([golden::noise(1, x + 23 * y), x as u8 * 11, y as u8 * 8])
        });
        for filter in FILTERS {
            for full in [[23, 31], [50, 17], [9, 60], [20, 4]] {
                let whole = resize(&picture, full[0], full[1], filter);
                for [x, y, width, height] in
                    [[0, 0, 9, 4], [5, 1, 3, 3], [8, 3, 1, 1], [3, 2, 90, 90]]
                {
                    let window = resize_window(&picture, full, [x, y, width, height], filter);
                    let expected = imageops::crop_imm(&whole, x, y, width, height).to_image();
                    assert!(window == expected, "{filter:?}, {full:?}, {x}, {y}");
                }
            }
        }
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

    /// The whole of the resized picture would have 15 GB.
    #[test]
    fn narrow_pictures_cost_little() {
        let tall = RgbImage::from_fn(1, 100_000, |_, y| Rgb([(y % 256) as u8; 3]));
        let wide = imageops::rotate90(&tall);
        let (long, centre) = (22_400_000, (22_400_000 - 224) / 2);
        for filter in FILTERS {
            let window = resize_window(&tall, [224, long], [0, centre, 224, 224], filter);
            assert_eq!(window.dimensions(), (224, 224));
            let window = resize_window(&wide, [long, 224], [centre, 0, 224, 224], filter);
            assert_eq!(window.dimensions(), (224, 224));
            assert_eq!(resize(&tall, 64, 64, filter).dimensions(), (64, 64));
            assert_eq!(resize(&wide, 64, 64, filter).dimensions(), (64, 64));
        }
    }

    #[test]
    fn pictures_without_pixels_and_windows_outside() {
        let pixel = GrayImage::from_pixel(1, 1, Luma([7]));
        for filter in FILTERS {
            assert_eq!(
                resize(&GrayImage::new(0, 4), 2, 2, filter).into_raw(),
                [0; 4]
            );
            assert_eq!(resize(&pixel, 0, 3, filter).dimensions(), (0, 3));
            assert_eq!(resize(&pixel, 3, 1, filter).into_raw(), [7; 3]);
            let window = resize_window(&pixel, [4, 4], [2, 9, u32::MAX, u32::MAX], filter);
            assert_eq!(window.dimensions(), (2, 0));
        }
    }
}
