//! Weights as signed 8-bit integers, with a scale for each output channel.
//!
//! A weight w of output channel o becomes round(w / s), where the scale s is the largest magnitude
//! in the channel divided by 127. Ties are rounded to even. A channel of zeros has the scale 1.

use super::{Tensor, values::STEP};
use crate::Error;

/// A layer whose weights are written as signed 8-bit integers.
#[derive(Debug, Clone)]
pub(crate) struct Int8Layer<'w> {
    /// The weights `[output, …]`. A row, which is the weights of one output, consists of whole
    /// blocks of the stored type.
    pub weight: &'w Tensor,
    pub kind: Int8Kind<'w>,
}

/// What is written beside the weights of a layer.
#[derive(Debug, Clone)]
pub(crate) enum Int8Kind<'w> {
    /// A linear layer. The weights are written as `[input, output]`, and the scales `[output]`.
    Linear,
    /// A convolution with whole numbers as its input and its output. The weights keep their shape.
    ///
    /// The scales `[output]` are divided by the output's steps, so that the convolution returns
    /// whole numbers of steps. The bias `[output]` is i32, in units of the input's step times the
    /// weights' scale, and contains the output's zero points.
    Conv {
        bias: Option<&'w Tensor>,
        input_step: f32,
        outputs: Vec<Step>,
    },
}

/// The u8 form of a channel: the value is `step · (number − zero)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Step {
    pub step: f32,
    pub zero: u8,
}

/// The bytes of a layer, as they are written.
#[derive(Debug, PartialEq)]
pub(crate) struct Int8Bytes {
    pub weight: Vec<i8>,
    pub scales: Vec<f32>,
    /// Empty for a linear layer.
    pub bias: Vec<i32>,
}

impl Step {
    /// Returns the form for values between `low` and `high`, which are not NaN. The range is
    /// extended to contain 0, which then has an exact form.
    pub fn of(low: f32, high: f32) -> Self {
        let (low, high) = (low.min(0.0), high.max(0.0));
        let step = (high - low) / 255.0;
        if step < f32::MIN_POSITIVE {
            return Self { step: 1.0, zero: 0 };
        }
        // The cast saturates, so it cannot leave the range of u8.
        let zero = (-low / step).round_ties_even() as u8;
        Self { step, zero }
    }
}

/// The largest magnitude of a weight.
const MOST: f32 = 127.0;

/// The largest magnitude of a bias as an integer. The other half of the range of i32 is left for
/// the products, of which there are fewer than 2¹⁵ per output in any known network.
const MOST_BIAS: f32 = (1 << 30) as f32;

impl Int8Layer<'_> {
    /// Reads the layer and returns it as integers.
    ///
    /// # Errors
    /// - [`Error::Io`] when a tensor cannot be read.
    /// - [`Error::TensorValues`] when a tensor cannot be decoded.
    pub fn quantised(&self) -> Result<Int8Bytes, Error> {
        let shape = self.weight.shape();
        let (rows, row) = (shape[0], shape[1..].iter().product::<usize>());
        let bias = match &self.kind {
            Int8Kind::Linear => None,
            Int8Kind::Conv { bias, outputs, .. } => Some(with_zeros(*bias, outputs)?),
        };
        let mut scales = Vec::with_capacity(rows);
        let mut weight = Vec::with_capacity(rows * row);
        let piece = row * (STEP / row).max(1);
        let source = self.weight.source();
        source.pieces(self.weight.scale.as_ref(), piece, |values| {
            for values in values.chunks_exact(row) {
                let mut scale = scale(values);
                if let (Some(bias), Int8Kind::Conv { input_step, .. }) = (&bias, &self.kind) {
                    scale = scale.max(bias[scales.len()].abs() / (input_step * MOST_BIAS));
                }
                weight.extend(values.iter().map(|value| whole(value / scale)));
                scales.push(scale);
            }
            Ok(())
        })?;
        Ok(match (&self.kind, bias) {
            (
                Int8Kind::Conv {
                    input_step,
                    outputs,
                    ..
                },
                Some(bias),
            ) => {
                let units = bias.iter().zip(&scales);
                let bias = units.map(|(bias, scale)| {
                    (f64::from(*bias) / (f64::from(*input_step) * f64::from(*scale)))
                        .round_ties_even() as i32
                });
                let bias = bias.collect();
                let steps = scales.iter().zip(outputs);
                let scales = steps.map(|(scale, output)| scale / output.step).collect();
                Int8Bytes {
                    weight,
                    scales,
                    bias,
                }
            }
            _ => Int8Bytes {
                weight: transposed(&weight, rows, row),
                scales,
                bias: Vec::new(),
            },
        })
    }
}

/// Returns the bias of a convolution plus the zero points of its output, as numbers in the unit of
/// the output.
fn with_zeros(bias: Option<&Tensor>, outputs: &[Step]) -> Result<Vec<f32>, Error> {
    let zeros = outputs
        .iter()
        .map(|output| output.step * f32::from(output.zero));
    let mut zeros: Vec<f32> = zeros.collect();
    if let Some(bias) = bias {
        let mut next = zeros.iter_mut();
        bias.source().pieces(bias.scale.as_ref(), STEP, |values| {
            for (zero, value) in next.by_ref().zip(values) {
                *zero += value;
            }
            Ok(())
        })?;
    }
    Ok(zeros)
}

/// Returns the scale of a row of weights.
fn scale(row: &[f32]) -> f32 {
    let most = row
        .iter()
        .fold(0.0_f32, |most, value| most.max(value.abs()));
    match most / MOST {
        0.0 => 1.0,
        scale => scale,
    }
}

/// Rounds to the nearest integer in the range of the weights.
fn whole(value: f32) -> i8 {
    // Numbers between 2²³ and 2²⁴ have no fractional digits, so the sum is rounded, and its last
    // byte is the integer. Without SSE 4.1, `round_ties_even` is a function call, which makes
    // loading a large model take seconds longer.
    const ALIGN: f32 = 1.5 * (1 << 23) as f32;
    (value.clamp(-MOST, MOST) + ALIGN).to_bits() as i8
}

/// Turns a matrix of `rows` rows of length `row` into its transpose.
fn transposed(matrix: &[i8], rows: usize, row: usize) -> Vec<i8> {
    // A tile of both matrices fits in the first-level cache.
    const TILE: usize = 64;
    let mut out = vec![0; matrix.len()];
    for first in (0..rows).step_by(TILE) {
        for start in (0..row).step_by(TILE) {
            for r in first..rows.min(first + TILE) {
                for c in start..row.min(start + TILE) {
                    out[c * rows + r] = matrix[r * row + c];
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    // A failed `unwrap` fails the test.
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::weights::{Type, Weights};

    fn weights(tensors: &[(&str, &[usize], &[f32])]) -> Weights {
        let mut weights = Weights::empty("weights".as_ref());
        for (name, shape, values) in tensors {
            let bytes = values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect();
            weights.put(name, Type::F32, shape, bytes).unwrap();
        }
        weights
    }

    #[test]
    fn a_step_has_an_exact_zero() {
        let step = |low, high| {
            let Step { step, zero } = Step::of(low, high);
            (step, zero)
        };
        assert_eq!(step(-1.0, 1.55), (0.01, 100));
        assert_eq!(step(1.0, 2.55), (0.01, 0));
        assert_eq!(step(-2.55, -1.0), (0.01, 255));
        assert_eq!(step(0.0, 0.0), (1.0, 0));
        assert_eq!(step(-1e-42, 0.0), (1.0, 0));
    }

    #[test]
    fn numbers_are_rounded_to_the_nearest_and_ties_to_even() {
        let cases = [
            0.5, 1.5, -0.5, -2.5, 126.6, -126.4, 200.0, -200.0, 0.49999997,
        ];
        assert_eq!(cases.map(whole), [0, 2, 0, -2, 127, -126, 127, -127, 0]);
    }

    #[test]
    fn a_linear_layer_is_transposed() {
        let values = [12.7, -1.0, 0.16, -2.0, 254.0, 3.0, 0.0, 0.0, 0.0];
        let weights = weights(&[("w", &[3, 3], &values)]);
        let layer = Int8Layer {
            weight: weights.get("w").unwrap(),
            kind: Int8Kind::Linear,
        };
        let Int8Bytes {
            weight,
            scales,
            bias,
        } = layer.quantised().unwrap();
        assert_eq!(weight, [127, -1, 0, -10, 127, 0, 2, 2, 0]);
        assert_eq!(scales, [12.7 / 127.0, 2.0, 1.0]);
        assert!(bias.is_empty());
    }

    #[test]
    fn the_bias_of_a_convolution_contains_the_zero_points() {
        let weights = weights(&[
            ("w", &[2, 1, 1, 2], &[1.27, -0.5, 0.0, 0.0]),
            ("b", &[2], &[3.0, 1.0]),
        ]);
        let output = Step {
            step: 0.5,
            zero: 10,
        };
        let layer = Int8Layer {
            weight: weights.get("w").unwrap(),
            kind: Int8Kind::Conv {
                bias: weights.get("b"),
                input_step: 0.25,
                outputs: vec![output; 2],
            },
        };
        let Int8Bytes {
            weight,
            scales,
            bias,
        } = layer.quantised().unwrap();
        assert_eq!(weight, [127, -50, 0, 0]);
        // 0.01 and 1.0, in steps of the output.
        assert_eq!(scales, [1.27 / 127.0 / 0.5, 2.0]);
        // 3 + 10 · 0.5 in units of 0.25 · 0.01, and 1 + 5 in units of 0.25.
        assert_eq!(bias, [3200, 24]);
    }

    #[test]
    fn a_large_bias_does_not_overflow() {
        let weights = weights(&[("w", &[1, 1, 1, 1], &[1e-30]), ("b", &[1], &[1e6])]);
        let layer = Int8Layer {
            weight: weights.get("w").unwrap(),
            kind: Int8Kind::Conv {
                bias: weights.get("b"),
                input_step: 1.0,
                outputs: vec![Step { step: 1.0, zero: 0 }],
            },
        };
        let Int8Bytes { scales, bias, .. } = layer.quantised().unwrap();
        let value = f64::from(scales[0]) * f64::from(bias[0]);
        assert!((value - 1e6).abs() < 1.0, "{value}");
    }

    #[test]
    fn a_transpose_of_several_tiles() {
        let (rows, row) = (70, 130);
        let matrix: Vec<i8> = (0..rows * row).map(|n| n as i8).collect();
        let turned = transposed(&matrix, rows, row);
        for r in 0..rows {
            for c in 0..row {
                assert_eq!(turned[c * rows + r], matrix[r * row + c]);
            }
        }
    }
}
