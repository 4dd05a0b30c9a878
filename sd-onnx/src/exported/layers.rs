//! Finds the layers of a CLIP text model in a graph by its structure: the final layer norm, and the
//! residual sums before it.
//!
//! A layer consists of two residual sums, in which the output of the attention and of the
//! feed-forward network is added to its input. The state of the layer is the second sum, which
//! transformers lists in `hidden_states`. Exporters rename values and nodes from version to
//! version, so names are ignored.

use sd_text::outside::printable;

use super::{
    file::{Node, OnnxFile},
    flow::Flow,
};

/// The layers of a text model.
#[derive(Debug)]
pub(super) struct Layers<'f> {
    /// The state after each layer, the last layer first.
    pub states: Vec<&'f str>,
    /// The indices of the nodes that form the final norm, in their order.
    pub norm: Vec<usize>,
}

/// The largest number of layers that are followed. The largest CLIP has 32.
const MOST_LAYERS: usize = 200;
/// The largest number of nodes in the final norm, which is copied for each layer. Exporters write
/// up to 20.
const MOST_NORM: usize = 64;

impl<'f> Layers<'f> {
    /// Finds the layers before `output`, which is the last state after the final norm.
    ///
    /// # Errors
    /// Returns a description of the first difference from the structure of a CLIP text model.
    pub fn find(file: &'f OnnxFile, output: &'f str) -> Result<Self, String> {
        let flow = Flow::new(file);
        let input = flow.norm_input(output)?;
        let norm = flow.between(input, output);
        if norm.len() > MOST_NORM {
            return Err(format!(
                "the final layer norm has {} nodes, expected at most {MOST_NORM}",
                norm.len()
            ));
        }
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
            let op = before.map_or_else(|| "an input".to_owned(), |node| printable(&node.op));
            return Err(format!(
                "the final layer norm does not follow a layer's residual sum, but {op}"
            ));
        }
        Ok(Self { states, norm })
    }
}

/// The part of a layer whose output is added to a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Branch {
    Attention,
    FeedForward,
}

impl<'f> Flow<'f> {
    /// Returns the input of the layer norm that computes `output`. The norm is one node or several.
    fn norm_input(&self, output: &'f str) -> Result<&'f str, String> {
        let value = self.through(output);
        let Some(node) = self.producer(value) else {
            return Err("no node computes the last state".into());
        };
        let not_norm = || {
            format!(
                "the last state is not the output of a layer norm, but of {}",
                printable(&node.op)
            )
        };
        match (node.domain.as_str(), node.op.as_str()) {
            ("", "LayerNormalization") => {
                let input = node.inputs.first().ok_or_else(not_norm)?;
                Ok(self.through(input))
            }
            ("", "Add") => self.decomposed_norm(node).ok_or_else(not_norm),
            (_, "SkipLayerNormalization") => Err(
                "the graph was fused by an optimiser (SkipLayerNormalization): export the model \
                 without optimisation"
                    .into(),
            ),
            _ => Err(not_norm()),
        }
    }

    /// Returns the input of a layer norm that is written as several nodes, the last of which is
    /// `node`: (x − mean(x)) / √(mean((x − mean(x))²) + ε) · γ + β.
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
        let is_mean = |value: &'f str| {
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

    /// Returns the other operand of a node with two operands, one of which is a constant.
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

    /// If `value` is the sum of a state and a branch's output, returns the state and the branch.
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
        // The sum of the embeddings contains neither. A bias is not added to a state.
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
