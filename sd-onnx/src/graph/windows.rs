//! Windows of images, in which the attention of Swin transformers works.
//!
//! The height and width of an image are only known when the graph runs, so the graph computes the
//! shapes for `Reshape`.

use super::{Dims, Graph, Value, int};
use crate::Error;

/// How an image was cut into windows: the shape of the image, and its windows as rows and columns.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cut {
    image: Dims,
    windows: Dims,
}

/// The row of a table for each pair of a window's elements. All blocks of a network share it,
/// because it can take megabytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pairs {
    rows: Value,
    length: usize,
}

impl Graph<'_> {
    /// Cuts the image `x` `[1, channels, h, w]` into windows of `size`, height and width:
    /// `[h·w / length, length, channels]`, where `length` is the product of the size. `h` and `w`
    /// are multiples of the size. Also returns what [`joined_windows`](Self::joined_windows) needs.
    pub fn windows(&mut self, x: Value, size: [usize; 2], channels: usize) -> (Value, Cut) {
        let image = self.shape(x);
        let [high, wide] = size.map(|side| side as i64);
        let sides = self.sides(x);
        let counts = self.dims(&[high, wide]);
        let counts = self.op("Div", &[sides, Value(counts.0)], []);
        let [rows, columns] = [0, 1].map(|at| self.element(counts, at));
        let [first, one, high, wide] =
            [&[1, channels as i64][..], &[1], &[high], &[wide]].map(|it| Value(self.dims(it).0));
        let last = Value(self.dims(&[channels as i64]).0);
        let split = Dims(self.concat(&[first, rows, high, columns, wide], 0).0);
        let windows = Dims(self.concat(&[one, rows, columns, high, wide, last], 0).0);
        let x = self.reshape(x, split);
        let x = self.transpose(x, &[0, 2, 4, 3, 5, 1]);
        let length = (size[0] * size[1]) as i64;
        let flat = self.dims(&[-1, length, channels as i64]);
        (self.reshape(x, flat), Cut { image, windows })
    }

    /// Reverses [`windows`](Self::windows), for an image of as many channels.
    pub fn joined_windows(&mut self, x: Value, cut: Cut) -> Value {
        let x = self.reshape(x, cut.windows);
        let x = self.transpose(x, &[0, 5, 1, 3, 2, 4]);
        self.reshape(x, cut.image)
    }

    /// Turns `x` `[1, h·w, channels]` into the image `[1, channels, h, w]`, for the height and
    /// width of the image `like`, which may have another number of channels.
    pub fn sequence_as_image(&mut self, x: Value, like: Value, channels: usize) -> Value {
        let x = self.transpose(x, &[0, 2, 1]);
        let first = Value(self.dims(&[1, channels as i64]).0);
        let sides = self.sides(like);
        let shape = Dims(self.concat(&[first, sides], 0).0);
        self.reshape(x, shape)
    }

    /// Moves the elements of the image `x` up and to the left, by so many rows and columns.
    /// Elements that leave it come back at the opposite edge. Negative numbers move them down and
    /// to the right.
    pub fn rolled(&mut self, mut x: Value, shifts: [i64; 2]) -> Value {
        for (axis, shift) in [2, 3].into_iter().zip(shifts) {
            let [start, middle, end, axes] =
                [0, shift, i64::MAX, axis].map(|n| Value(self.dims(&[n]).0));
            let rest = self.op("Slice", &[x, middle, end, axes], []);
            let first = self.op("Slice", &[x, start, middle, axes], []);
            x = self.concat(&[rest, first], axis);
        }
        x
    }

    /// Adds rows and columns of zeros after the last ones of the image `x`, so that its sides are
    /// multiples of `multiple`.
    pub fn zeros_after(&mut self, x: Value, multiple: usize) -> Value {
        let sides = self.sides(x);
        let multiple = Value(self.dims(&[multiple as i64]).0);
        let over = self.op("Mod", &[sides, multiple], []);
        let missing = self.op("Sub", &[multiple, over], []);
        let missing = self.op("Mod", &[missing, multiple], []);
        let none = |g: &mut Self, count: usize| Value(g.dims(&vec![0; count]).0);
        let [before, channels] = [none(self, 4), none(self, 2)];
        let pads = self.concat(&[before, channels, missing], 0);
        self.op("Pad", &[x, pads], [])
    }

    /// Returns the first rows and columns of the image `x`: as many as `like` has.
    pub fn cut_to(&mut self, x: Value, like: Value) -> Value {
        let ends = self.sides(like);
        let [starts, axes] = [[0, 0], [2, 3]].map(|it| Value(self.dims(&it).0));
        self.op("Slice", &[x, starts, ends, axes], [])
    }

    /// Returns masks for attention within windows: 0 where two elements of a window have the same
    /// number in the image `regions` `[1, 1, h, w]`, and `outside` elsewhere. The numbers are
    /// whole. The masks are `[windows, 1, length, length]`.
    pub fn window_mask(&mut self, regions: Value, size: [usize; 2], outside: f32) -> Value {
        let (regions, _) = self.windows(regions, size, 1);
        let length = (size[0] * size[1]) as i64;
        let [down, across] = [[-1, 1, length, 1], [-1, 1, 1, length]].map(|dims| {
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

    /// Returns a constant with the row of a table for each pair of a window's elements. There are
    /// `length²` rows.
    pub fn pairs(&mut self, rows: &[i64]) -> Pairs {
        Pairs {
            length: rows.len().isqrt(),
            rows: Value(self.dims(rows).0),
        }
    }

    /// Returns the rows of `table` `[rows, heads]` for the pairs of a window's elements, as
    /// `[1, heads, length, length]`.
    pub fn bias_of_heads(&mut self, table: Value, heads: usize, pairs: Pairs) -> Value {
        let bias = self.op("Gather", &[table, pairs.rows], [int("axis", 0)]);
        let bias = self.transpose(bias, &[1, 0]);
        let [heads, length] = [heads, pairs.length].map(|side| side as i64);
        let dims = self.dims(&[1, heads, length, length]);
        self.reshape(bias, dims)
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
        let attended = self.weighted(scores, v);
        let attended = self.transpose(attended, &[0, 2, 1, 3]);
        let joined = self.dims(&[0, 0, -1]);
        self.reshape(attended, joined)
    }

    /// Returns attention between the channels of the images `q`, `k` and `v` `[1, channels, h, w]`,
    /// as in XCiT: softmax(q·kᵀ · temperature)·v over `heads` groups of channels, where `q` and `k`
    /// have the length 1 in each channel. The stored tensor `temperature` is `[heads, 1, 1]`.
    pub fn channel_attention(
        &mut self,
        [q, k, v]: [Value; 3],
        [channels, heads]: [usize; 2],
        temperature: &str,
    ) -> Result<Value, Error> {
        let shape = self.shape(v);
        let split = self.dims(&[0, heads as i64, (channels / heads) as i64, -1]);
        let [q, k, v] = [q, k, v].map(|x| self.reshape(x, split));
        let [q, k] = [q, k].map(|x| self.of_length_one(x));
        let k = self.transpose(k, &[0, 1, 3, 2]);
        let scores = self.op("MatMul", &[q, k], []);
        let temperature = self.weight(temperature, &[heads, 1, 1])?;
        let scores = self.mul(scores, temperature);
        let attended = self.weighted(scores, v);
        Ok(self.reshape(attended, shape))
    }

    /// Returns softmax(scores)·v.
    fn weighted(&mut self, scores: Value, v: Value) -> Value {
        let shares = self.op("Softmax", &[scores], [int("axis", -1)]);
        self.op("MatMul", &[shares, v], [])
    }

    /// Divides the vectors along the last axis by their length, as torch's `normalize` does.
    pub(super) fn of_length_one(&mut self, x: Value) -> Value {
        let axes = Value(self.dims(&[-1]).0);
        let length = self.op("ReduceL2", &[x, axes], [int("keepdims", 1)]);
        let least = self.constant(&[1e-12], &[1]);
        let length = self.op("Max", &[length, least], []);
        self.op("Div", &[x, length], [])
    }

    /// Returns the height and the width of the image `x`, as a list of sizes.
    fn sides(&mut self, x: Value) -> Value {
        self.op("Shape", &[x], [int("start", 2), int("end", 4)])
    }

    /// Returns an element of a list of sizes, as a list.
    fn element(&mut self, list: Value, at: i64) -> Value {
        let at = Value(self.dims(&[at]).0);
        self.op("Gather", &[list, at], [int("axis", 0)])
    }
}
