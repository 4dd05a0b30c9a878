//! Finds the layers of a CLIP text model in a graph, by its structure: the final layer norm, and
//! the sums before it in which the output of each attention and of each feed-forward network is
//! added to their input.
//!
//! A layer is two such sums, the attention's and the feed-forward network's, and its state is the
//! second one: transformers' `hidden_states`. Exporters give values and nodes other names from
//! version to version, so names are not looked at.

use sd_text::outside::printable;

use super::{
    file::{Node, OnnxFile},
    flow::Flow,
};

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
/// The most nodes of the final norm, which is copied for each layer. Exporters write up to 20.
const MOST_NORM: usize = 64;

impl<'f> Layers<'f> {
    /// Finds the layers before `output`, the last state behind the final norm.
    ///
    /// # Errors
    /// What in the graph is not as in a CLIP text model.
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

impl<'f> Flow<'f> {
    /// What the layer norm that ends in `output` is computed from. It is one node or several.
    fn norm_input(&self, output: &'f str) -> Result<&'f str, String> {
        let value = self.through(output);
        let Some(node) = self.producer(value) else {
            return Err("the last state is no node's output".into());
        };
        let not_norm = || {
            format!(
                "the last state is not a layer norm's output, but {}'s",
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
