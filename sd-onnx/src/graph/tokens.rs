//! Merging similar tokens, and spreading the results again: `bipartite_soft_matching_random2d` in
//! `merge.py` of tomesd.
//!
//! Tokens are the rows of tensors `[batch, tokens, width]`. They are destinations or sources, and
//! each source has one most similar destination. Sources are merged into their destinations in the
//! order of this similarity. A merged sequence consists of the destinations and, after them, the
//! sources that are left.

use super::{Dim, Dims, Graph, Value, int, proto};

/// The inputs that say where the destinations and the sources are, and how many are merged.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Places {
    order: Value,
    places: Value,
    destinations: Value,
    merged: Value,
}

impl Places {
    /// The name of the input with the indices of the tokens, i64 `[tokens]`: first the
    /// destinations, then the sources.
    pub const ORDER: &str = "merging.order";
    /// The name of the input with the place of each token in that order, i64 `[tokens]`.
    pub const PLACES: &str = "merging.places";
    /// The name of the input with the number of destinations, i64 `[1]`.
    pub const DESTINATIONS: &str = "merging.destinations";
    /// The name of the input with the number of merged sources, i64 `[1]`.
    pub const MERGED: &str = "merging.merged";
}

/// Which tokens of a tensor are merged.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Matches {
    places: Places,
    /// The merged sources, i64 `[batch, merged, 1]`, and the sources that are left.
    merged: Value,
    left: Value,
    /// The destination of each merged source, i64 `[batch, merged, 1]`.
    targets: Value,
    /// The number of tokens in each destination, `[batch, destinations, 1]`.
    counts: Value,
    /// The place of each token in the merged sequence, i64 `[batch, tokens, 1]`.
    slots: Value,
}

impl Graph<'_> {
    /// Adds the inputs for merging tokens.
    pub fn merging_places(&mut self) -> Places {
        let mut input = |name, dim| self.typed_input(name, proto::DataType::Int64, &[dim]);
        Places {
            order: input(Places::ORDER, Dim::Any("tokens")),
            places: input(Places::PLACES, Dim::Any("tokens")),
            destinations: input(Places::DESTINATIONS, Dim::Fixed(1)),
            merged: input(Places::MERGED, Dim::Fixed(1)),
        }
    }

    /// Finds the tokens that are merged, by the cosines between the rows of `x`.
    pub fn matches(&mut self, x: Value, places: Places) -> Matches {
        let [destinations, sources] = self.in_order(x, places);
        let [destinations, sources] = [destinations, sources].map(|x| self.of_length_one(x));
        let cosines = self.matmul_transposed(sources, destinations);
        let last = Value(self.dims(&[-1]).0);
        let best = self.op("ReduceMax", &[cosines, last], [int("keepdims", 0)]);
        let attributes = [int("axis", -1), int("keepdims", 0)];
        let nearest = self.op("ArgMax", &[cosines], attributes);
        let ranking = self.sorted(best, true);
        // The indices that sort a permutation are its inverse.
        let ranks = self.sorted(ranking, false);
        let [merged, left] = self.divided(ranking, places.merged);
        let targets = self.op("GatherElements", &[nearest, merged], [int("axis", 1)]);
        let [merged, left, targets] = [merged, left, targets].map(|x| self.unsqueezed(x));
        let counts = self.counts(targets, destinations);

        // The first source that is left comes after the last destination.
        let first = self.op("Sub", &[places.destinations, places.merged], []);
        let slots = self.op("Add", &[ranks, first], []);
        let is_merged = self.op("Less", &[ranks, places.merged], []);
        let of_sources = self.op("Where", &[is_merged, nearest, slots], []);
        let sources = self.op("Sub", &[places.places, places.destinations], []);
        let zero = Value(self.dims(&[0]).0);
        let sources = self.op("Max", &[sources, zero], []);
        let of_tokens = self.op("Gather", &[of_sources, sources], [int("axis", 1)]);
        let inputs = [places.places, places.destinations];
        let is_destination = self.op("Less", &inputs, []);
        let inputs = [is_destination, places.places, of_tokens];
        let slots = self.op("Where", &inputs, []);
        Matches {
            places,
            merged,
            left,
            targets,
            counts,
            slots: self.unsqueezed(slots),
        }
    }

    /// Merges the tokens of `x`. A destination becomes the mean of all tokens in it.
    pub fn merged(&mut self, x: Value, matches: &Matches) -> Value {
        let [destinations, sources] = self.in_order(x, matches.places);
        let merged = self.rows(sources, matches.merged);
        let left = self.rows(sources, matches.left);
        let sums = self.added_to(destinations, matches.targets, merged);
        let means = self.op("Div", &[sums, matches.counts], []);
        self.concat(&[means, left], 1)
    }

    /// Returns a row for each token from the rows `x` of the merged sequence. Merged tokens have
    /// the same row.
    pub fn unmerged(&mut self, x: Value, matches: &Matches) -> Value {
        self.rows(x, matches.slots)
    }

    /// Returns the number of tokens in each destination: itself, and the merged sources.
    fn counts(&mut self, targets: Value, destinations: Value) -> Value {
        let one = self.constant(&[1.0], &[1, 1, 1]);
        let shape = self.op("Shape", &[destinations], [int("start", 0), int("end", 2)]);
        let width = Value(self.dims(&[1]).0);
        let shape = self.concat(&[shape, width], 0);
        let own = self.op("Expand", &[one, shape], []);
        let shape = self.shape(targets);
        let others = self.op("Expand", &[one, Value(shape.0)], []);
        self.added_to(own, targets, others)
    }

    /// Returns `x` `[batch, rows, width]` plus the rows `added`, each added to the row that
    /// `targets` `[batch, added, 1]` names.
    fn added_to(&mut self, x: Value, targets: Value, added: Value) -> Value {
        let Dims(shape) = self.shape(added);
        let targets = self.op("Expand", &[targets, Value(shape)], []);
        let attributes = [int("axis", 1), super::text("reduction", "add")];
        self.op("ScatterElements", &[x, targets, added], attributes)
    }

    /// Returns the destinations and the sources among the rows of `x`.
    fn in_order(&mut self, x: Value, places: Places) -> [Value; 2] {
        let x = self.op("Gather", &[x, places.order], [int("axis", 1)]);
        self.divided(x, places.destinations)
    }

    /// Divides `x` along its second axis: the first `count` elements, and the others.
    fn divided(&mut self, x: Value, count: Value) -> [Value; 2] {
        let [start, end, axis] = [0, i64::MAX, 1].map(|n| Value(self.dims(&[n]).0));
        let first = self.op("Slice", &[x, start, count, axis], []);
        [first, self.op("Slice", &[x, count, end, axis], [])]
    }

    /// Returns the rows of each batch item of `x` `[batch, rows, width]` that `indices`
    /// `[batch, any, 1]` name.
    fn rows(&mut self, x: Value, indices: Value) -> Value {
        self.op("GatherND", &[x, indices], [int("batch_dims", 1)])
    }

    /// Returns the indices that sort the last axis of `x` `[batch, length]`, i64.
    fn sorted(&mut self, x: Value, largest_first: bool) -> Value {
        let length = self.op("Shape", &[x], [int("start", 1), int("end", 2)]);
        let outputs = [self.fresh(), self.fresh()];
        let names = outputs.map(|value| self.name(value)).to_vec();
        let attributes = vec![int("largest", largest_first.into())];
        let node = self.node("TopK", "", &[Some(x.0), Some(length.0)], names, attributes);
        self.graph.node.push(node);
        Value(outputs[1])
    }

    fn unsqueezed(&mut self, x: Value) -> Value {
        let axis = Value(self.dims(&[-1]).0);
        self.op("Unsqueeze", &[x, axis], [])
    }
}
