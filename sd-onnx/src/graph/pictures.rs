//! Operators on pictures, as PyTorch computes them.

use super::{Conv, Graph, Value, int, ints, proto};

impl Graph<'_> {
    /// Folds squares of `factor` × `factor` pixels of `x` `[batch, channels, h, w]` into channels,
    /// like `PixelUnshuffle`. The result is `[batch, channels·factor², h / factor, w / factor]`.
    /// The height and width must be multiples of `factor`.
    ///
    /// It is written as a convolution that picks one pixel for each output channel, because
    /// OpenVINO's provider of ONNX Runtime 1.24 computes `SpaceToDepth` and a `Gather` of its
    /// channels wrongly.
    pub fn pixel_unshuffle(&mut self, x: Value, channels: usize, factor: usize) -> Value {
        let pixels = factor * factor;
        let outputs = channels * pixels;
        let mut picks = vec![0.0; outputs * outputs];
        for (output, pick) in picks.chunks_exact_mut(outputs).enumerate() {
            // The filter of an output channel has a place for each channel and pixel of a square,
            // in the order of PyTorch's output channels.
            pick[output] = 1.0;
        }
        let filters = self.constant(&picks, &[outputs, channels, factor, factor]);
        let conv = Conv {
            kernel: factor,
            stride: factor,
            padding: [0; 2],
        };
        self.conv(x, filters, None, conv)
    }

    /// Halves the height and width of `x` by averaging squares of 2 × 2, like `AvgPool2d` with
    /// `ceil_mode`. With an odd side, the squares at the end have fewer numbers.
    pub fn average_pairs(&mut self, mut x: Value) -> Value {
        if self.dialect().whole_squares {
            // With its last row and column repeated, a picture has whole squares with the same
            // averages. Where a side is even, they are in no square.
            for axis in [2, 3] {
                let last = self.cut(x, axis, [-1, i64::MAX]);
                x = self.concat(&[x, last], axis);
            }
            let attributes = [ints("kernel_shape", &[2, 2]), ints("strides", &[2, 2])];
            return self.op("AveragePool", &[x], attributes);
        }
        let attributes: [proto::Attribute; 4] = [
            ints("kernel_shape", &[2, 2]),
            ints("strides", &[2, 2]),
            int("ceil_mode", 1),
            int("count_include_pad", 0),
        ];
        self.op("AveragePool", &[x], attributes)
    }
}
