//! Finds which nodes of a graph compute a value, and which nodes read it.
//!
//! All lookups are built in a few passes over the nodes, so their cost is linear in the number of
//! nodes. ONNX requires that a node in the file comes after the nodes whose outputs it reads. If a
//! node reads a value from further on, that value is not followed.

use std::collections::{HashMap, HashSet};

use super::file::{Node, OnnxFile};

/// The values of a graph, by name.
#[derive(Debug)]
pub(super) struct Flow<'f> {
    pub file: &'f OnnxFile,
    /// The index of the node that computes each value.
    producers: HashMap<&'f str, usize>,
    /// The index of the node that reads each value, or `None` if several nodes read it.
    readers: HashMap<&'f str, Option<usize>>,
    /// The original value of each output of a `Cast` or `Identity`, through chains of them.
    origins: HashMap<&'f str, &'f str>,
}

impl<'f> Flow<'f> {
    pub fn new(file: &'f OnnxFile) -> Self {
        let mut flow = Self {
            file,
            producers: HashMap::new(),
            readers: HashMap::new(),
            origins: HashMap::new(),
        };
        for (place, node) in file.nodes.iter().enumerate() {
            for name in reads(node) {
                let reader = flow.readers.entry(name).or_insert(Some(place));
                *reader = reader.filter(|&known| known == place);
            }
            for name in node.outputs.iter().filter(|name| !name.is_empty()) {
                flow.producers.insert(name, place);
            }
            if let ([input, ..], [output]) = (&node.inputs[..], &node.outputs[..])
                && is_renaming(node)
            {
                let origin = flow.through(input);
                flow.origins.insert(output, origin);
            }
        }
        flow
    }

    /// Returns the node that computes a value.
    pub fn producer(&self, value: &str) -> Option<&'f Node> {
        let &place = self.producers.get(value)?;
        Some(&self.file.nodes[place])
    }

    /// Returns the node that reads a value, if it is the only one.
    pub fn only_reader(&self, value: &str) -> Option<&'f Node> {
        let place = (*self.readers.get(value)?)?;
        Some(&self.file.nodes[place])
    }

    /// Returns the node that computes a value, seen through casts, if it is ONNX's operator `op`.
    pub fn made_by(&self, value: &'f str, op: &str) -> Option<&'f Node> {
        let node = self.producer(self.through(value))?;
        (node.op == op && node.domain.is_empty()).then_some(node)
    }

    /// Returns the original value, seen through casts and renamings.
    pub fn through(&self, value: &'f str) -> &'f str {
        self.origins.get(value).copied().unwrap_or(value)
    }

    /// Whether a value is the same in every call.
    pub fn is_constant(&self, value: &'f str) -> bool {
        let value = self.through(value);
        self.file.initializer(value).is_some() || self.made_by(value, "Constant").is_some()
    }

    /// Whether `to` is computed from `from`, or is the same value.
    pub fn depends(&self, to: &'f str, from: &str) -> bool {
        self.back(from, to).1
    }

    /// Returns the indices of the nodes that compute `to` from `from`, in their order in the file.
    pub fn between(&self, from: &str, to: &'f str) -> Vec<usize> {
        let (mut needed, _) = self.back(from, to);
        needed.sort_unstable();
        let mut reached: HashSet<&str> = HashSet::from([from]);
        needed.retain(|&place| {
            let node = &self.file.nodes[place];
            let is_reached = reads(node).any(|name| reached.contains(name));
            if is_reached {
                reached.extend(node.outputs.iter().map(String::as_str));
            }
            is_reached
        });
        needed
    }

    /// Goes back from `to`, but not beyond `from`. Returns the indices of the nodes that `to` needs
    /// and that come after `from` in the file, and whether `from` was reached.
    ///
    /// The cost is bounded by the nodes between the two, not by the whole graph.
    fn back(&self, from: &str, to: &'f str) -> (Vec<usize>, bool) {
        let after = self.producers.get(from).map_or(0, |&place| place + 1);
        let mut seen = HashSet::new();
        let mut is_met = false;
        // Values to visit, each with the index of the node that reads it.
        let mut open = vec![(to, self.file.nodes.len())];
        while let Some((value, reader)) = open.pop() {
            if value == from {
                is_met = true;
                continue;
            }
            let place = self.producers.get(value).copied();
            if let Some(place) = place.filter(|place| (after..reader).contains(place))
                && seen.insert(place)
            {
                let inputs = reads(&self.file.nodes[place]);
                open.extend(inputs.map(|name| (name, place)));
            }
        }
        (seen.into_iter().collect(), is_met)
    }
}

/// Whether a node changes only the type or the name of a value.
pub(super) fn is_renaming(node: &Node) -> bool {
    matches!(node.op.as_str(), "Cast" | "Identity") && node.domain.is_empty()
}

/// Iterates over the values that a node reads, including its subgraphs.
fn reads(node: &Node) -> impl Iterator<Item = &str> {
    let inputs = node.inputs.iter().chain(&node.captured);
    inputs.map(String::as_str).filter(|name| !name.is_empty())
}
