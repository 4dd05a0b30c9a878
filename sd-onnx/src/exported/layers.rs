//! Finds the layers of a CLIP text model in a graph, by its structure: the final layer norm, and
//! the sums before it in which the output of each attention and of each feed-forward network is
//! added to their input.
//!
//! A layer is two such sums, the attention's and the feed-forward network's, and its state is the
//! second one: transformers' `hidden_states`. Exporters give values and nodes other names from
//! version to version, so names are not looked at.

use std::collections::{HashMap, HashSet};

use super::file::{Node, OnnxFile};

/// The layers of a text model.
#[derive(Debug)]
pub(super) struct Layers<'f> {
    /// The state behind each layer, the last one first.
    pub states: Vec<&'f str>,
    /// The places of the nodes that make up the final norm, in their order.
    pub norm: Vec<usize>,
}

/// The most layers that are followed; the largest CLIP has 32.
const MOST_LAYERS: usize = 200;

impl<'f> Layers<'f> {
    /// Finds the layers before `output`, the last state behind the final norm.
    ///
    /// # Errors
    /// What in the graph is not as in a CLIP text model.
    pub fn find(file: &'f OnnxFile, output: &'f str) -> Result<Self, String> {
        let flow = Flow::new(file);
        let input = flow.norm_input(output)?;
        let norm = flow.between(input, output);
        let mut states = Vec::new();
        let mut state = input;
        while let Some((before, branch)) = flow.residual(state) {
            if branch != Branch::FeedForward {
                return Err("a layer does not end with its feed-forward network".into());
            }
            let Some((first, Branch::Attention)) = flow.residual(before) else {
                return Err("a layer does not begin with an attention".into());
            };
            states.push(state);
            if states.len() > MOST_LAYERS {
                return Err(format!("more than {MOST_LAYERS} layers"));
            }
            state = first;
        }
        if states.is_empty() {
            let before = flow.producer(flow.through(state));
            let op = before.map_or("an input", |(_, node)| node.op.as_str());
            return Err(format!(
                "before the final layer norm is no sum of a layer's two parts, but {op}"
            ));
        }
        Ok(Self { states, norm })
    }
}

/// What is added to a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Branch {
    Attention,
    FeedForward,
}

/// Who computes what in a graph.
struct Flow<'f> {
    file: &'f OnnxFile,
    producers: HashMap<&'f str, usize>,
}

impl<'f> Flow<'f> {
    fn new(file: &'f OnnxFile) -> Self {
        let mut producers = HashMap::new();
        for (place, node) in file.nodes.iter().enumerate() {
            let outputs = node.outputs.iter().filter(|name| !name.is_empty());
            producers.extend(outputs.map(|name| (name.as_str(), place)));
        }
        Self { file, producers }
    }

    fn producer(&self, value: &str) -> Option<(usize, &'f Node)> {
        let &place = self.producers.get(value)?;
        Some((place, &self.file.nodes[place]))
    }

    /// The producer of a value, if it is one of ONNX's operators of this name.
    fn made_by(&self, value: &str, op: &str) -> Option<&'f Node> {
        let (_, node) = self.producer(self.through(value))?;
        (node.op == op && node.domain.is_empty()).then_some(node)
    }

    /// The value that this one is under another type or name.
    fn through<'a>(&self, value: &'a str) -> &'a str
    where
        'f: 'a,
    {
        let mut value = value;
        // A graph without circles ends this; one with them does not get past ONNX Runtime, but must
        // not hang here.
        for _ in 0..self.file.nodes.len() {
            match self.producer(value) {
                Some((_, node)) if matches!(node.op.as_str(), "Cast" | "Identity") => {
                    let Some(input) = node.inputs.first() else {
                        break;
                    };
                    value = input;
                }
                _ => break,
            }
        }
        value
    }

    /// Whether a value is the same in every call.
    fn is_constant(&self, value: &str) -> bool {
        let value = self.through(value);
        self.file.initializer(value).is_some() || self.made_by(value, "Constant").is_some()
    }

    /// What a node reads.
    fn reads(node: &'f Node) -> impl Iterator<Item = &'f str> {
        let inputs = node.inputs.iter().chain(&node.captured);
        inputs.map(String::as_str).filter(|name| !name.is_empty())
    }

    /// Whether `value` is computed from `from`.
    fn depends(&self, value: &'f str, from: &str) -> bool {
        let mut seen = HashSet::new();
        let mut open = vec![value];
        while let Some(value) = open.pop() {
            if value == from {
                return true;
            }
            if let Some((place, node)) = self.producer(value)
                && seen.insert(place)
            {
                open.extend(Self::reads(node));
            }
        }
        false
    }

    /// The places of the nodes by which `to` is computed from `from`, in their order in the file.
    fn between(&self, from: &str, to: &'f str) -> Vec<usize> {
        // All that `to` needs, without going past `from`.
        let mut needed = HashSet::new();
        let mut open = vec![to];
        while let Some(value) = open.pop() {
            if value == from {
                continue;
            }
            if let Some((place, node)) = self.producer(value)
                && needed.insert(place)
            {
                open.extend(Self::reads(node));
            }
        }
        // And of that, what `from` changes. Files list a node behind those that it reads.
        let mut reached: HashSet<&str> = HashSet::from([from]);
        let mut places = Vec::new();
        let mut needed: Vec<usize> = needed.into_iter().collect();
        needed.sort_unstable();
        for place in needed {
            let node = &self.file.nodes[place];
            if Self::reads(node).any(|name| reached.contains(name)) {
                reached.extend(node.outputs.iter().map(String::as_str));
                places.push(place);
            }
        }
        places
    }

    /// What the layer norm that ends in `output` is computed from. It is one node or several.
    fn norm_input(&self, output: &'f str) -> Result<&'f str, String> {
        let value = self.through(output);
        let Some((_, node)) = self.producer(value) else {
            return Err("the last state is no node's output".into());
        };
        let not_norm = || {
            format!(
                "the last state is not a layer norm's output, but {}'s",
                node.op
            )
        };
        match (node.domain.as_str(), node.op.as_str()) {
            ("", "LayerNormalization") => {
                let input = node.inputs.first().ok_or_else(not_norm)?;
                Ok(self.through(input))
            }
            ("", "Add") => self.decomposed_norm(node).ok_or_else(not_norm),
            (_, "SkipLayerNormalization") => Err(
                "the graph was fused by an optimiser (SkipLayerNormalization); one exported \
                 without optimisation has what is needed"
                    .into(),
            ),
            _ => Err(not_norm()),
        }
    }

    /// The input of a layer norm written as (x − mean(x)) / √(mean((x − mean(x))²) + ε) · γ + β, of
    /// which `node` is the last sum.
    fn decomposed_norm(&self, node: &'f Node) -> Option<&'f str> {
        let scaled = self.made_by(self.with_constant(node)?, "Mul")?;
        let divided = self.made_by(self.with_constant(scaled)?, "Div")?;
        let [centred, deviation] = &divided.inputs[..] else {
            return None;
        };
        let centred = self.made_by(centred, "Sub")?;
        let [x, mean] = &centred.inputs[..] else {
            return None;
        };
        let x = self.through(x);
        let is_mean = |value: &str| {
            let mean = self.made_by(value, "ReduceMean")?;
            (self.through(mean.inputs.first()?) == x).then_some(())
        };
        is_mean(mean)?;
        let root = self.made_by(deviation, "Sqrt")?;
        let sum = self.made_by(root.inputs.first()?, "Add")?;
        let variance = self.made_by(self.with_constant(sum)?, "ReduceMean")?;
        let squared = variance.inputs.first()?;
        let squared = self
            .made_by(squared, "Pow")
            .or_else(|| self.made_by(squared, "Mul"))?;
        let centred = self.made_by(squared.inputs.first()?, "Sub")?;
        let [of, mean] = &centred.inputs[..] else {
            return None;
        };
        is_mean(mean)?;
        (self.through(of) == x).then_some(x)
    }

    /// The other one of two operands, of which one is a constant.
    fn with_constant(&self, node: &'f Node) -> Option<&'f str> {
        let [a, b] = &node.inputs[..] else {
            return None;
        };
        match (self.is_constant(a), self.is_constant(b)) {
            (false, true) => Some(a),
            (true, false) => Some(b),
            _ => None,
        }
    }

    /// If `value` is a state to which a branch was added: the state before, and the branch.
    fn residual(&self, value: &'f str) -> Option<(&'f str, Branch)> {
        let [a, b] = &self.made_by(value, "Add")?.inputs[..] else {
            return None;
        };
        let (a, b) = (self.through(a.as_str()), self.through(b.as_str()));
        let (state, branch) = match (self.depends(b, a), self.depends(a, b)) {
            (true, false) => (a, b),
            (false, true) => (b, a),
            _ => return None,
        };
        let nodes = self.between(state, branch);
        let has = |ops: &[&str]| {
            let mut nodes = nodes.iter().map(|&place| &self.file.nodes[place]);
            nodes.any(|node| ops.contains(&node.op.as_str()))
        };
        // Sums of embeddings have neither, and what adds a bias has no state on its other side.
        if has(&["Softmax", "Attention", "MultiHeadAttention"]) {
            Some((state, Branch::Attention))
        } else if has(&[
            "MatMul",
            "Gemm",
            "FusedMatMul",
            "MatMulNBits",
            "MatMulInteger",
        ]) {
            Some((state, Branch::FeedForward))
        } else {
            None
        }
    }
}
