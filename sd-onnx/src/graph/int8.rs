//! Layers that compute in int8, for processors with instructions for products of 8-bit integers.
//!
//! - A linear layer is ONNX Runtime's `DynamicQuantizeMatMul`: it quantises its input by the range
//!   that the input has in this call, and its output is f32. It needs no calibration.
//! - A convolution is `QLinearConv` between `QuantizeLinear` and `DequantizeLinear`. The range of
//!   its input and the ranges of its output channels are constants, which a
//!   [calibration](crate::calibration) measures.
//!
//! Activations are u8 and weights i8, which is the pair that ONNX Runtime's kernels are made for.
//! Everything between the layers stays f32: norms, activation functions, attention, sums, and the
//! product with the factors of live LoRAs.
//!
//! `QLinearConv` has one scale for all output channels. To give each channel its own step, the
//! scales of the weights are divided by the channel's step, the output's scale is 1, and
//! `DequantizeLinear` multiplies each channel by its step. The zero points are part of the bias.

use std::{path::Path, sync::Arc};

use super::{Conv, Dim, Graph, Value, int, proto::DataType};
use crate::{
    Error,
    weights::{Int8Kind, Int8Layer, Int8Places, Place},
};

/// What a graph does with the layers that can compute in int8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Int8 {
    /// Computes them in f32.
    #[default]
    Off,
    /// Computes them in f32, and also returns the ranges of the inputs and outputs of convolutions.
    Ranges,
    /// Computes them in f32, and also returns how far the results in int8 are off.
    Errors,
    /// Computes the layers in int8 that the calibration of the weights names.
    On,
}

/// The output with the numbers of all [`Tap`]s, one after the other.
pub(crate) const TAPS: &str = "taps";

/// The numbers that a graph returns about a layer.
///
/// For [`Int8::Ranges`], these are the lowest and the highest value of the input, the lowest value
/// of each output channel, and the highest value of each output channel. For [`Int8::Errors`], they
/// are the sum of the squared differences between int8 and f32, and the sum of the squares in f32.
#[derive(Debug, Clone)]
pub(crate) struct Tap {
    pub layer: String,
    /// How many numbers there are.
    pub count: usize,
}

/// The taps of a graph under construction, with their values.
pub(super) type Taps = Vec<(Tap, Vec<Value>)>;

/// The smallest number of channels of a convolution in int8. The first and the last convolution of
/// a UNet have fewer on one side. They take little time, and errors in them are not averaged out.
const LEAST_CHANNELS: usize = 16;

/// Parts of the names of linear layers that always compute in f32. They are applied to one row per
/// picture, or to the prompt, which takes little time.
const FEW_ROWS: [&str; 6] = [
    "time_embedding.",
    "add_embedding.",
    "time_emb_proj",
    "encoder_hid_proj",
    "attn2.to_k",
    "attn2.to_v",
];

impl<'w> Graph<'w> {
    /// Writes the linear layer `name` in int8, with its bias if it has one. Returns `None` if it
    /// computes in f32.
    pub(super) fn int8_linear(
        &mut self,
        x: Value,
        name: &str,
        widths: [usize; 2],
        has_bias: bool,
    ) -> Result<Option<Value>, Error> {
        match self.dialect.int8 {
            Int8::On if self.is_chosen(name) => self.quantised_linear(x, name, widths, has_bias),
            _ => Ok(None),
        }
    }

    /// Writes the convolution `name` in int8. Returns `None` if it computes in f32.
    pub(super) fn int8_conv(
        &mut self,
        x: Value,
        name: &str,
        channels: [usize; 2],
        conv: Conv,
        has_bias: bool,
    ) -> Result<Option<Value>, Error> {
        match self.dialect.int8 {
            Int8::On if self.is_chosen(name) => {
                self.quantised_conv(x, name, channels, conv, has_bias)
            }
            _ => Ok(None),
        }
    }

    /// Adds the tap of a linear layer with this result in f32, without its bias, if the dialect
    /// wants it.
    pub(super) fn tap_linear(
        &mut self,
        x: Value,
        product: Value,
        name: &str,
        widths: [usize; 2],
    ) -> Result<(), Error> {
        if self.dialect.int8 == Int8::Errors
            && let Some(other) = self.quantised_linear(x, name, widths, false)?
        {
            self.tap_error(name, other, product);
        }
        Ok(())
    }

    /// Adds the tap of a convolution with this result in f32, if the dialect wants it.
    pub(super) fn tap_conv(
        &mut self,
        x: Value,
        convolved: Value,
        name: &str,
        channels: [usize; 2],
        conv: Conv,
        has_bias: bool,
    ) -> Result<(), Error> {
        match self.dialect.int8 {
            Int8::Ranges if self.row_of_conv(name, channels, conv)?.is_some() => {
                let all = self.dims(&[-1]);
                let axes = Value(self.dims(&[0, 2, 3]).0);
                let mut values = Vec::new();
                for op in ["ReduceMin", "ReduceMax"] {
                    let whole = self.op(op, &[x], [int("keepdims", 0)]);
                    values.push(self.reshape(whole, all));
                }
                for op in ["ReduceMin", "ReduceMax"] {
                    values.push(self.op(op, &[convolved, axes], [int("keepdims", 0)]));
                }
                self.tap(name, 2 + 2 * channels[1], values);
            }
            Int8::Errors => {
                if let Some(other) = self.quantised_conv(x, name, channels, conv, has_bias)? {
                    self.tap_error(name, other, convolved);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Writes the output with the numbers of all taps, if the dialect has any.
    pub(super) fn write_taps(&mut self) -> Vec<Tap> {
        let (taps, values): (Vec<_>, Vec<_>) = std::mem::take(&mut self.taps).into_iter().unzip();
        if !taps.is_empty() {
            let all = self.concat(&values.concat(), 0);
            self.output(TAPS, all, &[Dim::Free]);
        }
        taps
    }

    fn is_chosen(&self, name: &str) -> bool {
        let calibration = self.weights.calibration.as_ref();
        calibration.is_some_and(|calibration| calibration.is_int8(name))
    }

    fn tap(&mut self, layer: &str, count: usize, values: Vec<Value>) {
        let layer = layer.to_owned();
        self.taps.push((Tap { layer, count }, values));
    }

    fn tap_error(&mut self, layer: &str, int8: Value, f32: Value) {
        let all = self.dims(&[-1]);
        let error = self.op("Sub", &[int8, f32], []);
        let squares = [error, f32].map(|of| {
            let squares = self.op("ReduceSumSquare", &[of], [int("keepdims", 0)]);
            self.reshape(squares, all)
        });
        self.tap(layer, 2, squares.into());
    }

    /// Returns the number of weights per output of a convolution that can compute in int8.
    fn row_of_conv(
        &self,
        name: &str,
        [input, output]: [usize; 2],
        Conv { kernel, .. }: Conv,
    ) -> Result<Option<usize>, Error> {
        if input.min(output) < LEAST_CHANNELS {
            return Ok(None);
        }
        self.row(name, &[output, input, kernel, kernel])
    }

    /// Returns the number of weights per output of a layer whose weights can be quantised row by
    /// row.
    fn row(&self, name: &str, shape: &[usize]) -> Result<Option<usize>, Error> {
        let tensor = self.weights.tensor(&format!("{name}.weight"), shape)?;
        let row = shape[1..].iter().product::<usize>();
        let (numbers, _) = tensor.dtype.block();
        Ok((!tensor.transposed && row.is_multiple_of(numbers)).then_some(row))
    }

    fn quantised_linear(
        &mut self,
        x: Value,
        name: &str,
        [input, output]: [usize; 2],
        has_bias: bool,
    ) -> Result<Option<Value>, Error> {
        let is_small = FEW_ROWS.iter().any(|part| name.contains(part));
        if is_small || self.row(name, &[output, input])?.is_none() {
            return Ok(None);
        }
        let places = self.int8_places(name, &[output, input], Int8Kind::Linear)?;
        let weight = self.placed(
            name,
            "int8",
            &[input, output],
            DataType::Int8,
            places.weight,
        );
        let scales = self.placed(name, "scales", &[output], DataType::Float, places.scales);
        let mut inputs = vec![Some(x.0), Some(weight.0), Some(scales.0)];
        if has_bias {
            let bias = self.weight(&format!("{name}.bias"), &[output])?;
            inputs.extend([None, Some(bias.0)]);
        }
        Ok(Some(self.microsoft("DynamicQuantizeMatMul", &inputs, [])))
    }

    fn quantised_conv(
        &mut self,
        x: Value,
        name: &str,
        [input, output]: [usize; 2],
        conv: Conv,
        has_bias: bool,
    ) -> Result<Option<Value>, Error> {
        let calibration = self.weights.calibration.clone();
        let ranges = calibration.as_ref().and_then(|it| it.conv(name));
        let (Some(ranges), Some(_)) = (ranges, self.row_of_conv(name, [input, output], conv)?)
        else {
            return Ok(None);
        };
        let (from, outputs) = (ranges.input(), ranges.outputs());
        let [steps, zeros]: [Vec<u8>; 2] = [
            outputs
                .iter()
                .flat_map(|it| it.step.to_le_bytes())
                .collect(),
            outputs.iter().map(|it| it.zero).collect(),
        ];
        let weights = self.weights;
        let bias = match has_bias {
            true => Some(weights.tensor(&format!("{name}.bias"), &[output])?),
            false => None,
        };
        let shape = [output, input, conv.kernel, conv.kernel];
        let kind = Int8Kind::Conv {
            bias,
            input_step: from.step,
            outputs,
        };
        let places = self.int8_places(name, &shape, kind)?;
        let weight = self.placed(name, "int8", &shape, DataType::Int8, places.weight);
        let scales = self.placed(name, "scales", &[output], DataType::Float, places.scales);
        let bias = self.placed(
            name,
            "bias in int8",
            &[output],
            DataType::Int32,
            places.bias,
        );
        let (x, pads) = self.continued(x, conv);
        let step = self.f32s(&[from.step], &[]);
        let one = self.f32s(&[1.0], &[]);
        let mut bytes =
            |data_type, shape: &[usize], raw| Value(self.initializer(data_type, shape, raw));
        let zero = bytes(DataType::Uint8, &[], vec![from.zero]);
        let none = bytes(DataType::Uint8, &[], vec![0]);
        let no_offset = bytes(DataType::Int8, &[], vec![0]);
        let steps = bytes(DataType::Float, &[output], steps);
        let zeros = bytes(DataType::Uint8, &[output], zeros);
        let numbers = self.op("QuantizeLinear", &[x, step, zero], []);
        let inputs = [
            numbers, step, zero, weight, scales, no_offset, one, none, bias,
        ];
        let inputs = inputs.map(|value| Some(value.0));
        let convolved = self.push("QLinearConv", "", &inputs, conv.attributes(pads));
        Ok(Some(self.op(
            "DequantizeLinear",
            &[convolved, steps, zeros],
            [int("axis", 1)],
        )))
    }

    /// Reserves the places of a layer in the temporary file.
    fn int8_places(
        &mut self,
        name: &str,
        shape: &[usize],
        kind: Int8Kind<'w>,
    ) -> Result<Int8Places, Error> {
        let weights = self.weights;
        let weight = weights.tensor(&format!("{name}.weight"), shape)?;
        Ok(self.spill()?.add_int8(Int8Layer { weight, kind }))
    }

    /// Adds a part of the layer `name` in int8 as an initializer.
    fn placed(
        &mut self,
        name: &str,
        part: &str,
        shape: &[usize],
        data_type: DataType,
        place: Place,
    ) -> Value {
        let file = Arc::<Path>::from(self.weights.path());
        let value = Value(self.named(format!("{}{name} ({part})", self.prefix)));
        self.stored_at(value, shape, data_type, place, &file);
        value
    }
}

#[cfg(test)]
mod tests {
    // A failed `unwrap` fails the test.
    #![allow(clippy::unwrap_used)]

    use sd_core::StopToken;
    use sd_schedulers::{NoiseSource, noise::TorchRng};

    use super::*;
    use crate::{
        calibration::{Calibration, ConvRanges},
        engine::{Engine, Settings},
        graph::{Dialect, Model},
        runtime::processor,
        session::{Input, Session},
        weights::{Step, Type, Weights},
    };

    const NAME: &str = "layer";

    fn random(seed: u64, shape: &[usize]) -> Vec<f32> {
        let mut values = vec![0.0; shape.iter().product()];
        TorchRng::new(seed).fill(&mut values);
        values
    }

    /// Returns weights of this shape and a bias, and a calibration of the layer.
    fn weights(shape: &[usize], ranges: Option<ConvRanges>) -> Weights {
        let mut weights = Weights::empty("weights".as_ref());
        for (name, shape) in [("layer.weight", shape), ("layer.bias", &shape[..1])] {
            let values = random(shape.len() as u64, shape);
            let bytes = values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect();
            weights.put(name, Type::F32, shape, bytes).unwrap();
        }
        weights.calibration = Some(Calibration::of(NAME, ranges).into());
        weights
    }

    fn run(model: &Model, shape: &[usize], x: &[f32]) -> Vec<f32> {
        let engine = Engine::new(Settings::default()).unwrap();
        let session = Session::new("layer", model, &engine).unwrap();
        let inputs = [("x", Input::F32(shape, x))];
        let stop = StopToken::new();
        session.run(&inputs, &stop, |_, y| y.to_vec()).unwrap()
    }

    fn dialect(int8: Int8) -> Dialect {
        Dialect {
            int8,
            ..Dialect::default()
        }
    }

    fn u8_of(value: f32, Step { step, zero }: Step) -> i32 {
        (value / step).round_ties_even().clamp(-300.0, 300.0) as i32 + i32::from(zero)
    }

    fn product(x: impl Iterator<Item = (i32, i8)>) -> i32 {
        x.map(|(x, w)| x * i32::from(w)).sum()
    }

    #[test]
    fn a_linear_layer_computes_with_integers() {
        if !processor::has_int8() {
            return;
        }
        let (rows, input, output) = (5, 48, 33);
        let weights = weights(&[output, input], None);
        let mut g = Graph::new("linear", &weights, dialect(Int8::On));
        let x = g.input("x", &[Dim::Free, Dim::Fixed(input)]);
        let y = g.linear(x, NAME, input, output).unwrap();
        g.output("y", y, &[Dim::Free, Dim::Fixed(output)]);
        let model = g.finish().unwrap();
        let x = random(7, &[rows, input]);
        let found = run(&model, &[rows, input], &x);

        // `DynamicQuantizeLinear` has the range of the whole input, as ONNX defines it.
        let low = x.iter().copied().fold(0.0, f32::min);
        let high = x.iter().copied().fold(0.0, f32::max);
        let form = Step::of(low, high);
        let kind = Int8Kind::Linear;
        let layer = Int8Layer {
            weight: weights.get("layer.weight").unwrap(),
            kind,
        };
        let bytes = layer.quantised().unwrap();
        let bias = random(1, &[output]);
        for row in 0..rows {
            for out in 0..output {
                let of_row = x[row * input..].iter().take(input).enumerate();
                let sum = product(of_row.map(|(i, &x)| {
                    let x = u8_of(x, form).clamp(0, 255) - i32::from(form.zero);
                    (x, bytes.weight[i * output + out])
                }));
                let expected = sum as f32 * (form.step * bytes.scales[out]) + bias[out];
                let found = found[row * output + out];
                // Only the last multiplication and the sum are rounded.
                let error = (found - expected).abs();
                assert!(
                    error <= 1e-5 * expected.abs().max(1.0),
                    "{found} {expected}"
                );
            }
        }
    }

    #[test]
    fn a_convolution_computes_with_integers() {
        if !processor::has_int8() {
            return;
        }
        let (input, output, [height, width]) = (16, 24, [5, 6]);
        let shape = [output, input, 3, 3];
        let x = random(7, &[input, height, width]);
        let mut ranges = ConvRanges::new(output);
        let mut seen = vec![-2.0, 2.5];
        seen.extend((0..output).map(|out| -4.0 - out as f32));
        seen.extend((0..output).map(|out| 20.0 - 0.5 * out as f32));
        ranges.extend(&seen);
        let (from, to) = (ranges.input(), ranges.outputs());
        let weights = weights(&shape, Some(ranges));
        let mut g = Graph::new("conv", &weights, dialect(Int8::On));
        let dims = [Dim::Fixed(1), Dim::Fixed(input), Dim::Free, Dim::Free];
        let value = g.input("x", &dims);
        let y = g.conv2d(value, NAME, [input, output], Conv::SAME).unwrap();
        g.output("y", y, &[Dim::Free, Dim::Free, Dim::Free, Dim::Free]);
        let model = g.finish().unwrap();
        let found = run(&model, &[1, input, height, width], &x);

        let layer = Int8Layer {
            weight: weights.get("layer.weight").unwrap(),
            kind: Int8Kind::Conv {
                bias: weights.get("layer.bias"),
                input_step: from.step,
                outputs: to.clone(),
            },
        };
        let bytes = layer.quantised().unwrap();
        let mut clipped = 0;
        let mut other = 0;
        for (index, &found) in found.iter().enumerate() {
            let (out, at) = (index / (height * width), index % (height * width));
            let [y, x_] = [at / width, at % width];
            let mut sum = bytes.bias[out];
            for (i, k) in (0..input).flat_map(|i| (0..9).map(move |k| (i, k))) {
                let (row, column) = (y + k / 3, x_ + k % 3);
                if (1..=height).contains(&row) && (1..=width).contains(&column) {
                    let value = x[(i * height + row - 1) * width + column - 1];
                    let value = u8_of(value, from).clamp(0, 255) - i32::from(from.zero);
                    sum += value * i32::from(bytes.weight[(out * input + i) * 9 + k]);
                }
            }
            let exact = sum as f32 * (from.step * bytes.scales[out]);
            let whole = exact.round_ties_even().clamp(0.0, 255.0);
            clipped += usize::from(whole != exact.round_ties_even());
            let Step { step, zero } = to[out];
            let expected = step * (whole - f32::from(zero));
            let steps = ((found - expected) / step).abs();
            // A sum between two steps may be rounded to either.
            assert!(steps < 1.01, "{found} {expected}");
            other += usize::from(steps > 0.01);
        }
        assert_eq!(found.len(), output * height * width);
        assert!(clipped > 0 && clipped < found.len() / 2, "{clipped}");
        assert!(other <= 2, "{other} of {} differ by a step", found.len());
    }

    #[test]
    fn taps_are_the_ranges_and_the_errors() {
        let (channels, side) = (16, 3);
        let shape = [channels, channels, 1, 1];
        let x = random(7, &[channels, side, side]);
        let dims = [Dim::Fixed(1), Dim::Fixed(channels), Dim::Free, Dim::Free];
        let write = |int8, ranges| {
            let weights = weights(&shape, ranges);
            let mut g = Graph::new("conv", &weights, dialect(int8));
            let value = g.input("x", &dims);
            let y = g.conv2d(value, NAME, [channels; 2], Conv::POINT).unwrap();
            g.output("y", y, &dims);
            let model = g.finish().unwrap();
            let engine = Engine::new(Settings::default()).unwrap();
            let session = Session::new("layer", &model, &engine).unwrap();
            let inputs = [("x", Input::F32(&[1, channels, side, side], &x))];
            let outputs = session
                .run_all(&inputs, &StopToken::new(), &["y", TAPS])
                .unwrap();
            let [y, taps] = outputs.try_into().unwrap();
            let total: usize = model.taps.iter().map(|tap| tap.count).sum();
            assert_eq!((total, &*model.taps[0].layer), (taps.len(), NAME));
            let [y, taps] = [y, taps].map(|array| array.into_raw_vec_and_offset().0);
            (y, taps)
        };
        let (y, taps) = write(Int8::Ranges, None);
        let low = |values: &[f32]| values.iter().copied().fold(f32::INFINITY, f32::min);
        let high = |values: &[f32]| values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        assert_eq!(taps[..2], [low(&x), high(&x)]);
        let outputs = y.chunks(side * side);
        let expected: Vec<_> = outputs.clone().map(low).chain(outputs.map(high)).collect();
        assert_eq!(taps[2..], expected);

        let mut ranges = ConvRanges::new(channels);
        ranges.extend(&taps);
        let (exact, errors) = write(Int8::Errors, Some(ranges));
        assert_eq!(exact, y, "the output stays in f32");
        let squares: f32 = y.iter().map(|value| value * value).sum();
        assert!(
            (errors[1] / squares - 1.0).abs() < 1e-4,
            "{errors:?} {squares}"
        );
        let relative = errors[0] / errors[1];
        assert!(relative > 1e-6 && relative < 1e-3, "{relative}");
    }

    #[test]
    fn layers_outside_of_the_calibration_stay_in_f32() {
        let mut weights = weights(&[16, 16], None);
        weights.calibration = Some(Calibration::of("other", None).into());
        let nodes = |int8| {
            let mut g = Graph::new("linear", &weights, dialect(int8));
            let x = g.input("x", &[Dim::Free, Dim::Fixed(16)]);
            let y = g.linear(x, NAME, 16, 16).unwrap();
            g.output("y", y, &[Dim::Free, Dim::Fixed(16)]);
            g.finish().unwrap().nodes
        };
        assert_eq!(nodes(Int8::On), nodes(Int8::Off));
    }
}
