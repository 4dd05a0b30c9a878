//! Who computes what in a graph, and who reads it.
//!
//! All of it is found out in a few passes over the nodes, so that a file of many nodes takes no
//! more time than their number. A node in the file comes after those that it reads, as ONNX
//! demands. If one does not, what it reads from further on is not followed.

use std::collections::{HashMap, HashSet};

use super::file::{Node, OnnxFile};

/// The values of a graph, by name.
#[derive(Debug)]
pub(super) struct Flow<'f> {
    pub file: &'f OnnxFile,
    /// The place of the node that computes each value.
    producers: HashMap<&'f str, usize>,
    /// The place of the node that reads each value; none if several do.
    readers: HashMap<&'f str, Option<usize>>,
    /// For the output of a `Cast` or an `Identity`: the value that it is, under its first name.
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

    /// The node that computes a value.
    pub fn producer(&self, value: &str) -> Option<&'f Node> {
        let &place = self.producers.get(value)?;
        Some(&self.file.nodes[place])
    }

    /// The node that reads a value, if it is the only one.
    pub fn only_reader(&self, value: &str) -> Option<&'f Node> {
        let place = (*self.readers.get(value)?)?;
        Some(&self.file.nodes[place])
    }

    /// The node that computes a value, under whatever type, if it is one of ONNX's operators of
    /// this name.
    pub fn made_by(&self, value: &'f str, op: &str) -> Option<&'f Node> {
        let node = self.producer(self.through(value))?;
        (node.op == op && node.domain.is_empty()).then_some(node)
    }

    /// The value that this one is under another type or name.
    pub fn through(&self, value: &'f str) -> &'f str {
        self.origins.get(value).copied().unwrap_or(value)
    }

    /// Whether a value is the same in every call.
    pub fn is_constant(&self, value: &'f str) -> bool {
        let value = self.through(value);
        self.file.initializer(value).is_some() || self.made_by(value, "Constant").is_some()
    }

    /// Whether `to` is computed from `from`, or is it.
    pub fn depends(&self, to: &'f str, from: &str) -> bool {
        self.back(from, to).1
    }

    /// The places of the nodes by which `to` is computed from `from`, in their order in the file.
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

    /// Goes back from `to`, no further than `from`: returns the places of the nodes that are needed
    /// for `to` and come after `from` in the file, and whether `from` was met.
    ///
    /// The time that this takes is bounded by what lies between the two, and not by the graph.
    fn back(&self, from: &str, to: &'f str) -> (Vec<usize>, bool) {
        let after = self.producers.get(from).map_or(0, |&place| place + 1);
        let mut seen = HashSet::new();
        let mut is_met = false;
        // Each value with the place of the node that reads it.
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

/// Whether a node changes no more than the type and the name of a value.
pub(super) fn is_renaming(node: &Node) -> bool {
    matches!(node.op.as_str(), "Cast" | "Identity") && node.domain.is_empty()
}

/// What a node reads, its subgraphs included.
fn reads(node: &Node) -> impl Iterator<Item = &str> {
    let inputs = node.inputs.iter().chain(&node.captured);
    inputs.map(String::as_str).filter(|name| !name.is_empty())
}
