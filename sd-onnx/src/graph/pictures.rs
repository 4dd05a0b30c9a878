//! Operators on pictures, as PyTorch computes them.

use super::{Graph, Value, int, ints, proto};

impl Graph<'_> {
    /// Folds squares of `factor` × `factor` pixels of `x` `[batch, channels, h, w]` into channels,
    /// like `PixelUnshuffle`. The result is `[batch, channels·factor², h / factor, w / factor]`.
    /// The height and width must be multiples of `factor`.
    pub fn pixel_unshuffle(&mut self, x: Value, channels: usize, factor: usize) -> Value {
        let folded = self.op("SpaceToDepth", &[x], [int("blocksize", factor as i64)]);
        if channels == 1 {
            return folded;
        }
        // ONNX puts all channels of a pixel next to each other, PyTorch all pixels of a channel.
        let pixels = factor * factor;
        let order = (0..channels).flat_map(|c| (0..pixels).map(move |pixel| pixel * channels + c));
        let order: Vec<i64> = order.map(|index| index as i64).collect();
        let order = Value(self.dims(&order).0);
        self.op("Gather", &[folded, order], [int("axis", 1)])
    }

    /// Halves the height and width of `x` by averaging squares of 2 × 2, like `AvgPool2d` with
    /// `ceil_mode`. With an odd side, the squares at the end have fewer numbers.
    pub fn average_pairs(&mut self, x: Value) -> Value {
        let attributes: [proto::Attribute; 4] = [
            ints("kernel_shape", &[2, 2]),
            ints("strides", &[2, 2]),
            int("ceil_mode", 1),
            int("count_include_pad", 0),
        ];
        self.op("AveragePool", &[x], attributes)
    }
}
