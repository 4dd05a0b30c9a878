//! Windows of images, in which the attention of Swin transformers works.
//!
//! The height and width of an image are only known when the graph runs, and `Reshape` accepts one
//! unknown size. So the windows are cut by `SpaceToDepth`, which keeps both axes.

use super::{Dims, Graph, Value, int, text};

impl Graph<'_> {
    /// Cuts the image `x` `[1, channels, h, w]` into square windows of `side` elements:
    /// `[h·w / side², side², channels]`. `h` and `w` are multiples of `side`. Also returns the sizes
    /// that [`from_windows`](Self::from_windows) needs.
    pub fn windows(&mut self, x: Value, [side, channels]: [usize; 2]) -> (Value, Dims) {
        let cut = self.op("SpaceToDepth", &[x], [int("blocksize", side as i64)]);
        let sizes = self.shape(cut);
        let flat = self.dims(&[(side * side) as i64, channels as i64, -1]);
        let x = self.reshape(cut, flat);
        (self.transpose(x, &[2, 0, 1]), sizes)
    }

    /// Reverses [`windows`](Self::windows), whose sizes are `sizes`.
    pub fn from_windows(&mut self, x: Value, side: usize, sizes: Dims) -> Value {
        let x = self.transpose(x, &[1, 2, 0]);
        let x = self.reshape(x, sizes);
        let attributes = [int("blocksize", side as i64), text("mode", "DCR")];
        self.op("DepthToSpace", &[x], attributes)
    }

    /// Moves the elements of the image `x` by `shift` rows up and columns to the left. Elements that
    /// leave it come back at the opposite edge. A negative `shift` moves them down and to the right.
    pub fn rolled(&mut self, mut x: Value, shift: i64) -> Value {
        for axis in [2, 3] {
            let [start, middle, end, axes] =
                [0, shift, i64::MAX, axis].map(|n| Value(self.dims(&[n]).0));
            let rest = self.op("Slice", &[x, middle, end, axes], []);
            let first = self.op("Slice", &[x, start, middle, axes], []);
            x = self.concat(&[rest, first], axis);
        }
        x
    }

    /// Returns a mask for attention within windows: 0 where two elements of a window have the same
    /// number in the image `regions` `[1, 1, h, w]`, and `outside` elsewhere. The numbers are whole.
    /// The mask is `[h·w / side², 1, side², side²]`.
    pub fn window_mask(&mut self, regions: Value, side: usize, outside: f32) -> Value {
        let (regions, _) = self.windows(regions, [side, 1]);
        let count = (side * side) as i64;
        let [down, across] = [[-1, 1, count, 1], [-1, 1, 1, count]].map(|dims| {
            let dims = self.dims(&dims);
            self.reshape(regions, dims)
        });
        let apart = self.op("Sub", &[down, across], []);
        let apart = self.op("Abs", &[apart], []);
        let one = self.constant(&[1.0], &[1]);
        let apart = self.op("Min", &[apart, one], []);
        let outside = self.constant(&[outside], &[1]);
        self.mul(apart, outside)
    }

    /// Returns the rows of the stored table `name` `[rows, heads]` that `indices` selects, as
    /// `[1, heads, side, side]`. There are `side²` indices.
    pub fn bias_of_heads(
        &mut self,
        name: &str,
        [rows, heads]: [usize; 2],
        indices: &[i64],
        side: usize,
    ) -> Result<Value, crate::Error> {
        let table = self.weight(name, &[rows, heads])?;
        let indices = Value(self.dims(indices).0);
        let bias = self.op("Gather", &[table, indices], [int("axis", 0)]);
        let bias = self.transpose(bias, &[1, 0]);
        let dims = self.dims(&[1, heads as i64, side as i64, side as i64]);
        Ok(self.reshape(bias, dims))
    }

    /// Returns softmax(q·kᵀ · scale + biases)·v over `heads` heads, for `q`, `k` and `v`
    /// `[batch, length, width]`. Each bias is broadcast to `[batch, heads, length, length]`.
    pub fn biased_attention(
        &mut self,
        [q, k, v]: [Value; 3],
        heads: usize,
        scale: f32,
        biases: &[Value],
    ) -> Value {
        let split = self.dims(&[0, 0, heads as i64, -1]);
        let mut in_heads = |x, order: &[i64]| {
            let x = self.reshape(x, split);
            self.transpose(x, order)
        };
        let q = in_heads(q, &[0, 2, 1, 3]);
        let k = in_heads(k, &[0, 2, 3, 1]);
        let v = in_heads(v, &[0, 2, 1, 3]);
        let scale = self.constant(&[scale], &[1]);
        let q = self.mul(q, scale);
        let mut scores = self.op("MatMul", &[q, k], []);
        for &bias in biases {
            scores = self.add(scores, bias);
        }
        let shares = self.op("Softmax", &[scores], [int("axis", -1)]);
        let attended = self.op("MatMul", &[shares, v], []);
        let attended = self.transpose(attended, &[0, 2, 1, 3]);
        let joined = self.dims(&[0, 0, -1]);
        self.reshape(attended, joined)
    }
}
