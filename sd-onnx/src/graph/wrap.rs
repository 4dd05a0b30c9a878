//! Convolutions that continue at the opposite edge, for seamless pictures.
//!
//! They are torch's convolutions with `padding_mode="circular"`. ONNX's `Conv` pads with zeros
//! only, and OpenVINO does not know the mode `wrap` of ONNX's `Pad`. So the rows and columns of the
//! opposite edge are cut out and concatenated. This works in plain form and in blocked form, whose
//! tensors are reshaped to separate the channels of a block. A call of the UNet of Stable Diffusion
//! 1.5 takes 2 % longer, and decoding takes no longer.

use sd_core::Seamless;

use super::{Conv, Graph, Value};

/// The axes of height and width, in plain and in blocked form.
const HEIGHT: i64 = 2;
const WIDTH: i64 = 3;

impl Graph<'_> {
    /// Makes all convolutions that are written from now on seamless along these axes.
    pub fn seamless(mut self, axes: Seamless) -> Self {
        self.seamless = axes;
        self
    }

    /// Returns the input of a convolution, continued along the seamless axes, and the padding with
    /// zeros that is left: top, left, bottom, right.
    pub(super) fn continued(&mut self, mut x: Value, conv: Conv) -> (Value, [i64; 4]) {
        let mut pads = conv.zeros();
        if self.wraps(conv) {
            for (axis, is_seamless) in [(HEIGHT, self.seamless.y), (WIDTH, self.seamless.x)] {
                if is_seamless {
                    let side = (axis - HEIGHT) as usize;
                    x = self.wrapped(x, axis, pads[side]);
                    (pads[side], pads[side + 2]) = (0, 0);
                }
            }
        }
        (x, pads)
    }

    /// Like [`continued`](Self::continued), for an input in blocked form.
    pub(super) fn continued_blocks(
        &mut self,
        x: Value,
        conv: Conv,
        [channels, block]: [usize; 2],
    ) -> (Value, [i64; 4]) {
        if !self.wraps(conv) {
            return (x, conv.zeros());
        }
        // ONNX Runtime gives blocked tensors the shape of plain ones. Neither `Reshape` copies.
        let blocks = self.dims(&[0, (channels / block) as i64, 0, 0, block as i64]);
        let x = self.reshape(x, blocks);
        let (x, pads) = self.continued(x, conv);
        let joined = self.dims(&[0, channels as i64, 0, 0]);
        (self.reshape(x, joined), pads)
    }

    /// Returns whether the padding of a convolution wraps around. An uneven padding does not: in
    /// diffusers it is not the convolution's own, but zeros that are added before it.
    fn wraps(&self, conv: Conv) -> bool {
        let [before, after] = conv.padding;
        self.seamless != Seamless::NONE && before == after && before > 0
    }

    /// Returns `x` with its last `padding` rows repeated before the first row, and its first
    /// `padding` rows after the last row.
    fn wrapped(&mut self, x: Value, axis: i64, padding: i64) -> Value {
        let before = self.cut(x, axis, [-padding, i64::MAX]);
        let after = self.cut(x, axis, [0, padding]);
        self.concat(&[before, x, after], axis)
    }

    /// Returns the elements `start..end` of an axis. A negative number counts from the end.
    pub(super) fn cut(&mut self, x: Value, axis: i64, [start, end]: [i64; 2]) -> Value {
        let [start, end, axis] = [start, end, axis].map(|n| Value(self.dims(&[n]).0));
        self.op("Slice", &[x, start, end, axis], [])
    }
}
