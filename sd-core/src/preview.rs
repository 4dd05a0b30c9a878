//! Cheap previews of latents.

use image::RgbImage;
use ndarray::{Array4, ArrayView3, s};
use sd_schedulers::{NoiseSource, noise::TorchRng};
use serde::{Deserialize, Serialize};

use crate::{BoxError, LatentCodec, StopToken};

/// A linear map from latents to colours, for previews. It gives one pixel for each latent, in about
/// 40 µs for 64 × 64 latents. The picture is blurred and lacks detail, but shows what a run is
/// drawing.
///
/// With serde it is an object with a key for each field.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LatentRgb {
    /// For each latent channel, its contribution to red, green and blue. A colour of −1 is dark,
    /// and 1 is full.
    pub weights: Vec<[f32; 3]>,
    /// The red, green and blue of latents that are all 0.
    pub bias: [f32; 3],
}

impl LatentRgb {
    /// Returns the picture of latents `[channels, h, w]` in the pipeline's scaling, `w` × `h`
    /// pixels. NaN becomes black.
    pub fn picture(&self, latents: ArrayView3<'_, f32>) -> RgbImage {
        let (_, height, width) = latents.dim();
        let mut pixels = vec![self.bias; height * width];
        for (weights, channel) in self.weights.iter().zip(latents.outer_iter()) {
            for (pixel, value) in pixels.iter_mut().zip(&channel) {
                for (colour, weight) in pixel.iter_mut().zip(weights) {
                    *colour += value * weight;
                }
            }
        }
        let bytes = pixels.into_iter().flatten().map(to_byte).collect();
        RgbImage::from_raw(width as u32, height as u32, bytes).expect("each pixel has three bytes")
    }

    /// Fits the coefficients to a codec, by least squares over what it decodes from eight random
    /// latents of 8 × 8.
    ///
    /// # Errors
    /// Returns the codec's error, or an error if the codec returns another shape than expected.
    pub fn fit(codec: &dyn LatentCodec) -> Result<Self, BoxError> {
        const SIDE: usize = 8;
        const PICTURES: u64 = 8;
        let (channels, factor) = (codec.latent_channels(), codec.factor());
        let columns = channels + 1;
        // The normal equations, with the right-hand sides for red, green and blue in the last
        // columns.
        let mut equations = vec![vec![0.0_f64; columns + 3]; columns];
        for seed in 0..PICTURES {
            let latents = patchy_latents(seed, channels, SIDE);
            let image = codec.decode(latents.view(), &StopToken::new())?;
            let expected = (1, 3, SIDE * factor, SIDE * factor);
            if image.dim() != expected {
                return Err(format!(
                    "the codec decoded to {:?}, expected {expected:?}",
                    image.dim()
                )
                .into());
            }
            for y in 0..SIDE {
                for x in 0..SIDE {
                    let latent = latents.slice(s![0, .., y, x]);
                    let block = |at: usize| at * factor..(at + 1) * factor;
                    let pixels = image.slice(s![0, .., block(y), block(x)]);
                    let mut row: Vec<f64> = latent.iter().map(|&v| v.into()).collect();
                    row.push(1.0);
                    for colour in pixels.outer_iter() {
                        let sum: f64 = colour.iter().map(|&v| f64::from(v.clamp(-1.0, 1.0))).sum();
                        row.push(sum / (factor * factor) as f64);
                    }
                    for i in 0..columns {
                        for j in 0..columns + 3 {
                            equations[i][j] += row[i] * row[j];
                        }
                    }
                }
            }
        }
        let solved = solve(equations);
        let colours = |i: usize| [0, 1, 2].map(|colour| solved[i][columns + colour] as f32);
        Ok(Self {
            weights: (0..channels).map(colours).collect(),
            bias: colours(channels),
        })
    }
}

/// Returns latents that vary like the latents of pictures, which have one colour over several
/// places: squares of 4 × 4 with a random level in each channel. If every place differed, each
/// decoded block would depend mostly on its neighbours.
fn patchy_latents(seed: u64, channels: usize, side: usize) -> Array4<f32> {
    const SQUARE: usize = 4;
    let squares = side.div_ceil(SQUARE);
    let mut levels = vec![0.0; channels * squares * squares];
    TorchRng::new(seed).fill(&mut levels);
    Array4::from_shape_fn((1, channels, side, side), |(_, channel, y, x)| {
        levels[(channel * squares + y / SQUARE) * squares + x / SQUARE]
    })
}

/// Solves linear equations by Gauss–Jordan elimination with row pivoting. The rows end with their
/// right-hand sides. Undetermined unknowns become 0.
fn solve(mut rows: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
    for i in 0..rows.len() {
        let pivot = (i..rows.len())
            .max_by(|&a, &b| rows[a][i].abs().total_cmp(&rows[b][i].abs()))
            .expect("row i exists");
        rows.swap(i, pivot);
        let head = rows[i][i];
        if head.abs() < 1e-9 {
            rows[i].fill(0.0);
            continue;
        }
        rows[i].iter_mut().for_each(|v| *v /= head);
        let row = rows[i].clone();
        for (j, other) in rows.iter_mut().enumerate() {
            let factor = other[i];
            if j != i && factor != 0.0 {
                other
                    .iter_mut()
                    .zip(&row)
                    .for_each(|(v, r)| *v -= factor * r);
            }
        }
    }
    rows
}

/// Converts `-1.0..=1.0` to 0 to 255, rounding half to even as numpy does. NaN becomes 0.
pub(crate) fn to_byte(value: f32) -> u8 {
    ((value / 2.0 + 0.5) * 255.0).round_ties_even() as u8
}
