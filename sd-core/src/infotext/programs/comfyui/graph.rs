//! ComfyUI's graph: nodes with inputs, which are values or links to outputs of other nodes.

use std::collections::HashMap;

use sd_text::outside::printable;
use serde_json::{Map, Value};

use crate::infotext::programs::{parsed, shown, written};

/// The nodes of a graph, sorted by their number.
#[derive(Debug)]
pub(super) struct Graph {
    nodes: Vec<Node>,
    by_id: HashMap<String, usize>,
    /// Where each node of class `Reroute` leads to. `None` for a cycle, and for other nodes.
    rerouted: Vec<Option<Link>>,
}

#[derive(Debug)]
pub(super) struct Node {
    id: String,
    pub class: String,
    inputs: Map<String, Value>,
}

/// An output of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Link {
    /// The index of the node.
    pub node: usize,
    /// Which of its outputs, from 0.
    pub output: u64,
}

impl Graph {
    /// Parses the JSON of ComfyUI's `prompt`, or an object that has it as `prompt`.
    pub fn parse(text: &str) -> Option<Self> {
        let Value::Object(mut all) = parsed(text)? else {
            return None;
        };
        let is_node = |value: &Value| value.get("class_type").is_some_and(Value::is_string);
        if !all.values().any(is_node) {
            all = match all.remove("prompt")? {
                Value::Object(inside) => inside,
                Value::String(inside) => return Self::of_nodes(parsed(&inside)?),
                _ => return None,
            };
        }
        Self::of_nodes(Value::Object(all))
    }

    fn of_nodes(all: Value) -> Option<Self> {
        let Value::Object(all) = all else {
            return None;
        };
        let mut nodes: Vec<Node> = all
            .into_iter()
            .filter_map(|(id, mut value)| {
                let inputs = value.get_mut("inputs").map(Value::take);
                Some(Node {
                    id,
                    class: value.get("class_type")?.as_str()?.to_owned(),
                    inputs: match inputs {
                        Some(Value::Object(inputs)) => inputs,
                        _ => Map::new(),
                    },
                })
            })
            .collect();
        if nodes.is_empty() {
            return None;
        }
        nodes.sort_by_cached_key(|node| (node.id.parse().unwrap_or(u64::MAX), node.id.clone()));
        let by_id = nodes
            .iter()
            .enumerate()
            .map(|(i, node)| (node.id.clone(), i));
        let mut graph = Self {
            by_id: by_id.collect(),
            rerouted: vec![None; nodes.len()],
            nodes,
        };
        graph.reroute();
        Some(graph)
    }

    /// Follows all chains of `Reroute` nodes, each once.
    fn reroute(&mut self) {
        let mut is_done = vec![false; self.len()];
        for start in 0..self.len() {
            let (mut chain, mut at) = (Vec::new(), start);
            let end = loop {
                if self.nodes[at].class != "Reroute" {
                    break None;
                }
                // A node that is done but has no target is on a cycle, or leads to one.
                if std::mem::replace(&mut is_done[at], true) {
                    break self.rerouted[at];
                }
                chain.push(at);
                match self.links(at).next() {
                    Some((_, link)) if self.nodes[link.node].class == "Reroute" => at = link.node,
                    Some((_, link)) => break Some(link),
                    None => break None,
                }
            };
            for node in chain {
                self.rerouted[node] = end;
            }
        }
    }

    pub fn node(&self, index: usize) -> &Node {
        &self.nodes[index]
    }

    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Returns the value of an input, unless it is a link.
    pub fn value(&self, node: usize, key: &str) -> Option<&Value> {
        let value = self.nodes[node].inputs.get(key)?;
        self.as_link(value).is_none().then_some(value)
    }

    /// Returns the output that an input is linked to.
    pub fn link(&self, node: usize, key: &str) -> Option<Link> {
        self.as_link(self.nodes[node].inputs.get(key)?)
    }

    /// Returns the output that an input is linked to, through `Reroute` nodes.
    pub fn source(&self, node: usize, key: &str) -> Option<Link> {
        let link = self.link(node, key)?;
        match &*self.nodes[link.node].class {
            "Reroute" => self.rerouted[link.node],
            _ => Some(link),
        }
    }

    /// Returns all linked inputs of a node.
    pub fn links(&self, node: usize) -> impl Iterator<Item = (&str, Link)> {
        let inputs = self.nodes[node].inputs.iter();
        inputs.filter_map(|(key, value)| Some((key.as_str(), self.as_link(value)?)))
    }

    fn as_link(&self, value: &Value) -> Option<Link> {
        let [id, output] = value.as_array()?.as_slice() else {
            return None;
        };
        Some(Link {
            node: *self.by_id.get(&written(id)?)?,
            output: output.as_u64()?,
        })
    }

    /// Returns which nodes `from` depend on, including themselves.
    pub fn reached(&self, from: impl IntoIterator<Item = usize>) -> Vec<bool> {
        let mut reached = vec![false; self.len()];
        let mut todo: Vec<_> = from.into_iter().collect();
        while let Some(node) = todo.pop() {
            if !std::mem::replace(&mut reached[node], true) {
                todo.extend(self.links(node).map(|(_, link)| link.node));
            }
        }
        reached
    }

    /// Returns, for each node, whether it depends on a node for which `is` is true. Inputs named in
    /// `not` do not count.
    pub fn depend_on(&self, not: &[&str], is: impl Fn(usize) -> bool) -> Vec<bool> {
        let mut users: Vec<Vec<usize>> = vec![Vec::new(); self.len()];
        for node in 0..self.len() {
            for (_, link) in self.links(node).filter(|(key, _)| !not.contains(key)) {
                users[link.node].push(node);
            }
        }
        let mut depends = vec![false; self.len()];
        let mut todo: Vec<_> = (0..self.len()).filter(|&node| is(node)).collect();
        while let Some(node) = todo.pop() {
            for &user in &users[node] {
                if !std::mem::replace(&mut depends[user], true) {
                    todo.push(user);
                }
            }
        }
        depends
    }

    /// Returns the nodes whose outputs ComfyUI computes: those that save or show pictures, or all
    /// on which no other depends.
    pub fn outputs(&self) -> Vec<usize> {
        let mut is_used = vec![false; self.len()];
        for node in 0..self.len() {
            for (_, link) in self.links(node) {
                is_used[link.node] = true;
            }
        }
        let ends: Vec<_> = (0..self.len()).filter(|&node| !is_used[node]).collect();
        let saving: Vec<_> = ends
            .iter()
            .copied()
            .filter(|&node| saves(&self.nodes[node].class))
            .collect();
        if saving.is_empty() { ends } else { saving }
    }

    /// Returns a node in words: `12 (LoraLoader: lora_name a.safetensors, strength_model 0.8)`.
    pub fn named(&self, node: usize) -> String {
        let node = &self.nodes[node];
        let is_value = |value: &&Value| self.as_link(value).is_none();
        let values = node.inputs.iter().filter(|(_, value)| is_value(value));
        let values = values.map(|(key, value)| format!("{key} {}", shown(value)));
        let values: Vec<_> = values.take(8).collect();
        let values = if values.is_empty() {
            String::new()
        } else {
            format!(": {}", values.join(", "))
        };
        printable(format_args!("{} ({}{values})", node.id, node.class))
    }
}

/// Returns whether nodes of a class save or show pictures.
pub(super) fn saves(class: &str) -> bool {
    let class = class.to_lowercase();
    class.contains("save") || class.contains("preview")
}
