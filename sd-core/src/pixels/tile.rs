//! Control pictures without details: made smaller and larger again, as OpenCV's `cv2.resize`.
//!
//! Sources: sd-webui-controlnet, `tile_resample` in `scripts/preprocessor/legacy/processor.py` and
//! `high_quality_resize` in `scripts/controlnet.py`; OpenCV 5.0.0,
//! `modules/imgproc/src/resize.cpp`.

use std::collections::HashSet;

use image::RgbImage;

/// Removes the details of a picture: sd-webui-controlnet's "tile_resample", and then the scaling to
/// the size of the control picture, which is the size of `picture` here.
///
/// `factor` is the "Down Sampling Rate", `1.0..=8.0` in sd-webui-controlnet, whose default is 1.
/// Below 1.1, and if it is NaN, the picture stays as it is. Otherwise its width and its height are
/// divided by the factor and rounded down, to at least 1. Each new pixel is the mean of the pixels
/// that it covers (`INTER_AREA`). Then the picture is scaled to its size again with a cubic filter
/// (`INTER_CUBIC`), or by the nearest pixel if it has 3 to 199 colors.
///
/// The smaller picture equals OpenCV's in every byte. Bytes of the result may differ by 1, because
/// OpenCV rounds its cubic filter by the instructions of the processor.
pub fn tile(picture: &RgbImage, factor: f32) -> RgbImage {
    let (width, height) = picture.dimensions();
    if factor.is_nan() || factor < 1.1 || picture.is_empty() {
        return picture.clone();
    }
    let smaller = |side: u32| ((f64::from(side) / f64::from(factor)) as usize).max(1);
    let small = Pixels::new(picture).area([smaller(width), smaller(height)]);
    let full = [width as usize, height as usize];
    let result = if (3..200).contains(&small.colors(200)) {
        small.nearest(full)
    } else {
        small.cubic(full)
    };
    RgbImage::from_raw(width, height, result.bytes).expect("each pixel was computed")
}

/// A picture of three channels: the width, the height and the bytes.
struct Pixels {
    size: [usize; 2],
    bytes: Vec<u8>,
}

/// The places and weights that a new place is the sum of, for each new place of an axis.
type Weights = Vec<Vec<(usize, f32)>>;

impl Pixels {
    fn new(picture: &RgbImage) -> Self {
        Self {
            size: [picture.width() as usize, picture.height() as usize],
            bytes: picture.as_raw().clone(),
        }
    }

    /// Returns the number of different colors, up to a limit.
    fn colors(&self, limit: usize) -> usize {
        let mut colors = HashSet::new();
        for color in self.bytes.chunks_exact(3) {
            colors.insert(color);
            if colors.len() == limit {
                break;
            }
        }
        colors.len()
    }

    /// Returns a picture that is not larger on any axis, with OpenCV's `INTER_AREA`.
    fn area(&self, new: [usize; 2]) -> Self {
        let whole = [0, 1].map(|axis| {
            let factor = self.size[axis] / new[axis];
            (factor * new[axis] == self.size[axis]).then_some(factor)
        });
        if let [Some(x), Some(y)] = whole {
            return self.means(new, [x, y]);
        }
        let [columns, rows] = [0, 1].map(|axis| area_weights(self.size[axis], new[axis]));
        self.weighted(&columns, &rows)
    }

    /// Returns the means of blocks of whole pixels.
    fn means(&self, [width, height]: [usize; 2], [across, down]: [usize; 2]) -> Self {
        let count = across * down;
        let mut bytes = Vec::with_capacity(width * height * 3);
        for y in 0..height {
            for x in 0..width {
                for channel in 0..3 {
                    let rows = (y * down..(y + 1) * down).map(|row| row * self.size[0]);
                    let places =
                        rows.flat_map(|row| (x * across..(x + 1) * across).map(move |x| row + x));
                    let sum: u64 = places
                        .map(|place| u64::from(self.bytes[place * 3 + channel]))
                        .sum();
                    // OpenCV rounds blocks of four pixels up.
                    bytes.push(if [across, down] == [2, 2] {
                        ((sum + 2) / 4) as u8
                    } else {
                        (sum as f32 * (1.0 / count as f32)).round_ties_even() as u8
                    });
                }
            }
        }
        Self {
            size: [width, height],
            bytes,
        }
    }

    /// Returns a picture with OpenCV's `INTER_CUBIC`, Keys' filter with a = −0.75.
    fn cubic(&self, new: [usize; 2]) -> Self {
        let [columns, rows] = [0, 1].map(|axis| cubic_weights(self.size[axis], new[axis]));
        self.weighted(&columns, &rows)
    }

    /// Returns a picture with OpenCV's `INTER_NEAREST`.
    fn nearest(&self, new: [usize; 2]) -> Self {
        let [columns, rows] = [0, 1].map(|axis| nearest_places(self.size[axis], new[axis]));
        let mut bytes = Vec::with_capacity(columns.len() * rows.len() * 3);
        for row in rows {
            for &column in &columns {
                let place = (row * self.size[0] + column) * 3;
                bytes.extend_from_slice(&self.bytes[place..place + 3]);
            }
        }
        Self { size: new, bytes }
    }

    /// Returns the weighted sums of pixels, first along x and then along y.
    fn weighted(&self, columns: &Weights, rows: &Weights) -> Self {
        let stride = columns.len() * 3;
        let across = self.bytes.chunks_exact(self.size[0] * 3).flat_map(|row| {
            let sums = columns.iter().map(move |weights| {
                weights.iter().fold([0.0; 3], |sum, &(place, weight)| {
                    let pixel = [0, 1, 2].map(|channel| f32::from(row[place * 3 + channel]));
                    std::array::from_fn(|channel| sum[channel] + pixel[channel] * weight)
                })
            });
            sums.flatten()
        });
        let across: Vec<f32> = across.collect();
        let mut bytes = Vec::with_capacity(rows.len() * stride);
        let mut sums = vec![0.0_f32; stride];
        for weights in rows {
            sums.fill(0.0);
            for &(place, weight) in weights {
                let row = &across[place * stride..(place + 1) * stride];
                for (sum, value) in sums.iter_mut().zip(row) {
                    *sum += value * weight;
                }
            }
            bytes.extend(sums.iter().map(|sum| sum.round_ties_even() as u8));
        }
        Self {
            size: [columns.len(), rows.len()],
            bytes,
        }
    }
}

/// Returns the pixels that each new pixel covers, and how much of each.
fn area_weights(old: usize, new: usize) -> Weights {
    let scale = old as f64 / new as f64;
    let of = |place: usize| {
        let start = place as f64 * scale;
        let end = start + scale;
        let width = scale.min(old as f64 - start);
        let last = (end.floor() as usize).min(old - 1);
        let first = (start.ceil() as usize).min(last);
        let mut weights = Vec::with_capacity(last - first + 2);
        // OpenCV leaves out less than a thousandth of a pixel.
        let before = first as f64 - start;
        if before > 1e-3 {
            weights.push((first - 1, (before / width) as f32));
        }
        weights.extend((first..last).map(|place| (place, (1.0 / width) as f32)));
        let after = end - last as f64;
        if after > 1e-3 {
            weights.push((last, (after.min(1.0).min(width) / width) as f32));
        }
        weights
    };
    (0..new).map(of).collect()
}

/// Returns the four nearest pixels of each new pixel, and their weights. The outermost pixel
/// continues beyond the border.
fn cubic_weights(old: usize, new: usize) -> Weights {
    const A: f32 = -0.75;
    let near = |x: f32| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    let far = |x: f32| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
    let scale = old as f64 / new as f64;
    let of = |place: usize| {
        let center = (place as f64 + 0.5) * scale - 0.5;
        let x = (center - center.floor()) as f32;
        let first = far(x + 1.0);
        let (second, third) = (near(x), near(1.0 - x));
        let weights = [first, second, third, 1.0 - first - second - third];
        let places = (-1..3).map(|offset| (center.floor() as i64 + offset).max(0) as usize);
        places
            .map(|place| place.min(old - 1))
            .zip(weights)
            .collect()
    };
    (0..new).map(of).collect()
}

/// Returns the pixel that each new pixel shows.
fn nearest_places(old: usize, new: usize) -> Vec<usize> {
    let scale = 1.0 / (new as f64 / old as f64);
    let places = (0..new).map(|place| (place as f64 * scale) as usize);
    places.map(|place| place.min(old - 1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pixels::golden;

    #[test]
    fn every_byte_of_the_smaller_picture_is_opencvs() {
        for case in golden::preprocessors("area") {
            let new = golden::pair(&case["to"]);
            let small = Pixels::new(&golden::control(&case)).area(new.map(|side| side as usize));
            let small = RgbImage::from_raw(new[0], new[1], small.bytes).expect("all pixels");
            golden::check(&case, &small);
        }
    }

    /// OpenCV's sums near a half are rounded otherwise.
    #[test]
    fn bytes_are_the_extensions_up_to_one() {
        let (mut differences, mut count) = (0, 0);
        for case in golden::preprocessors("tile") {
            let tiled = tile(&golden::control(&case), golden::float(&case["factor"]));
            let expected = case["bytes"].as_str().expect("bytes");
            assert_eq!(expected.len(), 2 * tiled.as_raw().len(), "{case}");
            for (place, &byte) in tiled.as_raw().iter().enumerate() {
                let expected = u8::from_str_radix(&expected[2 * place..2 * place + 2], 16);
                let difference = byte.abs_diff(expected.expect("two digits"));
                assert!(difference <= 1, "byte {place} of {case}");
                differences += usize::from(difference);
            }
            count += tiled.as_raw().len();
        }
        assert!(differences * 200 < count, "{differences} of {count}");
    }

    #[test]
    fn odd_factors_and_sizes() {
        let picture = RgbImage::from_fn(5, 7, |x, y| image::Rgb([(x * y) as u8; 3]));
        for factor in [f32::NAN, f32::NEG_INFINITY, -1.0, 0.0, 1.0, 1.09] {
            assert_eq!(tile(&picture, factor), picture);
        }
        for factor in [5.0, 1e9, f32::INFINITY] {
            let size = tile(&picture, factor).dimensions();
            assert_eq!(size, (5, 7));
        }
        assert_eq!(tile(&RgbImage::new(0, 4), 2.0).dimensions(), (0, 4));
    }
}
