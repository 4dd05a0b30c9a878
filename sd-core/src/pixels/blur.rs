//! The Gaussian blurs of OpenCV and of Pillow, with the same result in every byte.
//!
//! Sources: OpenCV 5.0.0 (4.14.0 has the same bytes), `modules/imgproc/src/smooth.dispatch.cpp`;
//! Pillow 13.0.0, `src/libImaging/BoxBlur.c`.

use image::{GrayImage, ImageBuffer, Luma, Pixel, RgbImage};

/// Blurs a picture as OpenCV's `cv2.GaussianBlur(picture, (0, 0), sigma)`, with the same bytes:
/// sd-webui-controlnet's "blur_gaussian", whose sigma is 9 by default.
///
/// `sigma` is the standard deviation in pixels, up to 1000. Larger numbers count as 1000, and
/// numbers below 0 and NaN as 0, which changes nothing. The kernel has about `6 · sigma + 1`
/// pixels, so that a sigma below 0.084 changes nothing either. At the border the picture is
/// mirrored, without repeating the outermost pixel.
///
/// ```
/// use sd_core::{image::{Rgb, RgbImage}, pixels::gaussian_blur};
///
/// let dot = RgbImage::from_fn(3, 1, |x, _| Rgb([if x == 1 { 255 } else { 0 }; 3]));
/// let blurred = gaussian_blur(&dot, 0.5);
/// assert_eq!([0, 1, 2].map(|x| blurred.get_pixel(x, 0).0[0]), [54, 201, 54]);
/// ```
pub fn gaussian_blur(picture: &RgbImage, sigma: f32) -> RgbImage {
    let sigma = f64::from(if sigma > 0.0 { sigma.min(1000.0) } else { 0.0 });
    let length = (sigma * 6.0 + 1.0).round_ties_even() as usize | 1;
    if length == 1 || picture.is_empty() {
        return picture.clone();
    }
    let kernel = kernel(sigma, length / 2);
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    // Both passes together are exact. Only their result is rounded.
    let columns = mirrored(width, length / 2);
    let mut across = Vec::with_capacity(picture.len());
    let mut padded = Vec::with_capacity(columns.len() * 3);
    let mut sums = vec![0; width * 3];
    for row in picture.as_raw().chunks_exact(width * 3) {
        padded.clear();
        padded.extend(columns.iter().flat_map(|x| &row[x * 3..x * 3 + 3]).copied());
        sums.fill(0);
        for (values, &weight) in padded[..].windows(width * 3).step_by(3).zip(&kernel) {
            add(&mut sums, values, weight);
        }
        // At most 255 · 256.
        across.extend(sums.iter().map(|&sum| sum as u16));
    }
    let rows = mirrored(height, length / 2);
    let mut bytes = Vec::with_capacity(picture.len());
    for rows in rows.windows(length) {
        sums.fill(0);
        for (y, &weight) in rows.iter().zip(&kernel) {
            add(
                &mut sums,
                &across[y * width * 3..(y + 1) * width * 3],
                weight,
            );
        }
        bytes.extend(sums.iter().map(|sum| ((sum + (1 << 15)) >> 16) as u8));
    }
    let blurred = RgbImage::from_raw(picture.width(), picture.height(), bytes);
    blurred.expect("each pixel was computed")
}

/// Adds values with a weight to sums.
fn add<T: Copy + Into<u32>>(sums: &mut [u32], values: &[T], weight: u32) {
    for (sum, &value) in sums.iter_mut().zip(values) {
        *sum += value.into() * weight;
    }
}

/// Blurs a mask as WebUI does: `cv2.GaussianBlur` along x and then along y, each time rounded to
/// bytes (`modules/processing.py`, `StableDiffusionProcessingImg2Img.init`).
///
/// `sigma` is the standard deviation in pixels, at least 0. WebUI's "Mask blur" is a whole number.
/// The kernel has `2 · int(2.5 · sigma + 0.5) + 1` pixels, so that a sigma below 0.2 changes
/// nothing. At the border the picture is mirrored, without repeating the outermost pixel.
pub(crate) fn gaussian(mask: &GrayImage, sigma: f32) -> GrayImage {
    debug_assert!(sigma >= 0.0 && sigma.is_finite(), "a sigma of {sigma}");
    let sigma = f64::from(sigma);
    let kernel = kernel(sigma, (2.5 * sigma + 0.5) as usize);
    let (width, height) = mask.dimensions();
    if kernel.len() < 2 || width == 0 || height == 0 {
        return mask.clone();
    }
    let across = transposed::<Luma<u8>>(mask, |line| convolved(line, &kernel));
    transposed(&across, |line| convolved(line, &kernel))
}

/// Blurs a picture as Pillow's `ImageFilter.GaussianBlur(radius)`: three extended box blurs along
/// x, and then three along y, each rounded to bytes (Gwosdek and others, 2011).
///
/// `radius` is the standard deviation in pixels, `0.0..=1e6`. Alpha is a channel like the others.
pub(crate) fn pillow_gaussian<P>(
    picture: &ImageBuffer<P, Vec<u8>>,
    radius: f32,
) -> ImageBuffer<P, Vec<u8>>
where
    P: Pixel<Subpixel = u8>,
{
    debug_assert!((0.0..=1e6).contains(&radius), "a radius of {radius}");
    let radius = box_radius(radius);
    let (width, height) = picture.dimensions();
    if radius.is_nan() || radius <= 0.0 || width == 0 || height == 0 {
        return picture.clone();
    }
    let three = |line: &[u8]| (1..PASSES).fold(boxed(line, radius), |line, _| boxed(&line, radius));
    let across = transposed(picture, three);
    transposed(&across, three)
}

/// Applies a filter to each channel of each row, and returns the result with x and y exchanged.
fn transposed<P>(
    picture: &ImageBuffer<P, Vec<u8>>,
    filter: impl Fn(&[u8]) -> Vec<u8>,
) -> ImageBuffer<P, Vec<u8>>
where
    P: Pixel<Subpixel = u8>,
{
    let (width, height) = picture.dimensions();
    let channels = usize::from(P::CHANNEL_COUNT);
    let mut result = ImageBuffer::<P, _>::new(height, width);
    let stride = width as usize * channels;
    let new_stride = height as usize * channels;
    let mut line = Vec::with_capacity(width as usize);
    for (y, row) in picture.as_raw().chunks_exact(stride).enumerate() {
        for channel in 0..channels {
            line.clear();
            line.extend(row[channel..].iter().step_by(channels));
            let values = &mut result.as_mut()[y * channels + channel..];
            for (to, from) in values.iter_mut().step_by(new_stride).zip(filter(&line)) {
                *to = from;
            }
        }
    }
    result
}

/// The weights of OpenCV's kernel of `2 · half + 1` pixels, in units of 1/256. Their sum is 256.
///
/// OpenCV carries the rounding error of each weight to the next one, and gives the rest to the
/// weight in the middle.
fn kernel(sigma: f64, half: usize) -> Vec<u32> {
    let scale = -0.125 / (sigma * sigma);
    let at = |index: usize| {
        let x = 2.0 * (half - index) as f64;
        (x * x * scale).exp()
    };
    let values: Vec<f64> = (0..half).map(at).collect();
    let unit = 1.0 / (2.0 * values.iter().sum::<f64>() + 1.0);
    let mut error = 0.0;
    let mut weights = Vec::with_capacity(2 * half + 1);
    for value in values {
        let exact = value * unit * 256.0 + error;
        let rounded = exact.round_ties_even();
        error = exact - rounded;
        weights.push(rounded as u32);
    }
    weights.push(256 - 2 * weights.iter().sum::<u32>());
    weights.extend_from_within(..half);
    weights[half + 1..].reverse();
    weights
}

/// Returns the places of a line with `half` more on each side, with OpenCV's border:
/// `… 2 1 [0 1 2 …`.
fn mirrored(length: usize, half: usize) -> Vec<usize> {
    let last = length - 1;
    let period = (2 * last).max(1);
    // The place is counted from `half` pixels before the line.
    let places = (0..length + 2 * half).map(|place| {
        let inside = (place + half.next_multiple_of(period) - half) % period;
        inside.min(period - inside).min(last)
    });
    places.collect()
}

/// Returns the weighted sums of a line.
fn convolved(line: &[u8], kernel: &[u32]) -> Vec<u8> {
    let places = mirrored(line.len(), kernel.len() / 2);
    let padded: Vec<u8> = places.into_iter().map(|place| line[place]).collect();
    let sum = |window: &[u8]| {
        let products = window.iter().zip(kernel);
        products
            .map(|(&value, weight)| u32::from(value) * weight)
            .sum::<u32>()
    };
    let sums = padded.windows(kernel.len()).map(sum);
    sums.map(|sum| ((sum + 128) >> 8) as u8).collect()
}

/// The number of box blurs that make a Gaussian blur.
const PASSES: usize = 3;

/// Returns the radius of each box blur. It has a fraction.
fn box_radius(sigma: f32) -> f32 {
    let variance = sigma * sigma / PASSES as f32;
    // The double precision is Pillow's.
    let length = (12.0 * f64::from(variance) + 1.0).sqrt() as f32;
    let whole = ((f64::from(length) - 1.0) / 2.0).floor() as f32;
    let fraction = (2.0 * whole + 1.0) * (whole * (whole + 1.0) - 3.0 * variance);
    whole + fraction / (6.0 * (variance - (whole + 1.0) * (whole + 1.0)))
}

/// Returns the means of a line over `2 · radius + 1` pixels. The outermost pixel continues beyond
/// the border. The pixels at both ends of the box count in part.
///
/// The sums wrap, as Pillow's 32-bit numbers do with a weight that was rounded up.
fn boxed(line: &[u8], radius: f32) -> Vec<u8> {
    const ONE: u32 = 1 << 24;
    let whole = radius as usize;
    let length = 2 * whole as u32 + 1;
    let weight = (ONE as f32 / (radius * 2.0 + 1.0)) as u32;
    let end_weight = ONE.wrapping_sub(length.wrapping_mul(weight)) / 2;
    let last = line.len() - 1;
    let at = |place: usize| u32::from(line[place.min(last)]);
    // The sum of the box around the pixel before the line.
    let inside = whole.min(line.len());
    let beyond = (whole - inside) as u32;
    let mut sum: u32 = (0..inside).map(at).sum();
    sum = sum.wrapping_add(at(0).wrapping_mul(whole as u32 + 1));
    sum = sum.wrapping_add(at(last).wrapping_mul(beyond));
    let mean = |x: usize| {
        let before = at(x.saturating_sub(whole + 1));
        sum = sum.wrapping_add(at(x + whole)).wrapping_sub(before);
        let ends = (before + at(x + whole + 1)).wrapping_mul(end_weight);
        let mean = sum.wrapping_mul(weight).wrapping_add(ends);
        (mean.wrapping_add(ONE / 2) >> 24) as u8
    };
    (0..line.len()).map(mean).collect()
}

#[cfg(test)]
mod tests {
    use image::{LumaA, Rgb, Rgba};
    use serde_json::Value;

    use super::*;
    use crate::pixels::golden::{self, float};

    #[test]
    fn every_byte_is_opencvs() {
        for case in golden::cases("gaussian") {
            let mask = if case["kind"] == "disc" {
                golden::disc(9 + golden::number(&case["seed"]), &case["size"])
            } else {
                golden::picture(&case["kind"], &case["seed"], &case["size"])
            };
            golden::check(&case, &gaussian(&mask, float(&case["sigma"])));
        }
    }

    #[test]
    fn every_byte_of_a_picture_is_opencvs() {
        for case in golden::preprocessors("blur") {
            let blurred = gaussian_blur(&golden::control(&case), float(&case["sigma"]));
            golden::check(&case, &blurred);
        }
    }

    #[test]
    fn odd_sigmas_and_pictures_without_pixels() {
        let picture = golden::picture(&"noise".into(), &1.into(), &serde_json::json!([9, 4]));
        for sigma in [f32::NAN, f32::NEG_INFINITY, -1.0, 0.0, 0.08] {
            assert_eq!(gaussian_blur(&picture, sigma), picture);
        }
        let most = gaussian_blur(&picture, 1000.0);
        assert_eq!(gaussian_blur(&picture, f32::INFINITY), most);
        assert_eq!(
            gaussian_blur(&RgbImage::new(0, 2), 9.0).dimensions(),
            (0, 2)
        );
    }

    #[test]
    fn every_byte_is_pillows() {
        fn compare<P: Pixel<Subpixel = u8>>(case: &Value) {
            let picture = golden::picture::<P>(&case["kind"], &case["seed"], &case["size"]);
            golden::check(case, &pillow_gaussian(&picture, float(&case["radius"])));
        }
        for case in golden::cases("pillow_gaussian") {
            match golden::number(&case["channels"]) {
                1 => compare::<Luma<u8>>(&case),
                2 => compare::<LumaA<u8>>(&case),
                3 => compare::<Rgb<u8>>(&case),
                _ => compare::<Rgba<u8>>(&case),
            }
        }
    }

    #[test]
    fn long_lines_and_pictures_without_pixels() {
        for (width, height) in [(0, 3), (3, 0), (1, 10_000), (10_000, 1)] {
            let mask = GrayImage::from_pixel(width, height, Luma([9]));
            assert_eq!(gaussian(&mask, 256.0), mask);
            assert_eq!(pillow_gaussian(&mask, 256.0), mask);
        }
    }
}
