//! Writes a folder with one ONNX graph per network, in the layout of optimum's exports.
//!
//! - `text_encoder`: input `input_ids`, i64 `[batch, length]`; outputs `last_hidden_state`,
//!   `pooler_output` and `hidden_states.0`, `hidden_states.1` ….
//! - `text_encoder_2`: input `input_ids`; outputs `text_embeds`, `last_hidden_state` and
//!   `hidden_states.0` ….
//! - `unet`: inputs `sample`, `timestep` (a scalar) and `encoder_hidden_states`; for SDXL also
//!   `text_embeds` and `time_ids`; for latent consistency models also `timestep_cond`. Output
//!   `out_sample`.
//! - `vae_decoder`: input `latent_sample`, already divided by the scaling factor; output `sample`.
//! - `vae_encoder`: input `sample`; output `latent_parameters`, or `latent_sample` for an encoder
//!   without a distribution.
//!
//! All inputs and outputs except the ids are f32, whatever type the weights have. `hidden_states.N`
//! is the state before layer N, without the final norm. Additional latent channels, such as a mask
//! and a masked picture, are a part of `sample`. Each `model.onnx` has its weights in
//! `model.onnx_data` beside it. The graphs use operators of ONNX Runtime's own domain,
//! `com.microsoft`.

use std::{collections::HashSet, path::Path, sync::Arc};

use ndarray::Array2;
use prost::Message;
use serde_json::Value;

use super::{
    Steps,
    folder::{common, pretty},
    output::Output,
    parts::{Network, Parts},
    tensors::{self, New},
};
use crate::{
    ConvertError,
    config::Config,
    graph::{Dialect, Model, proto},
    models::{
        clip_text::{self, ClipTextConfig, ENDS, IDS, POOLED, PROJECTION},
        unet::{self, UnetConfig, input},
        vae::{self, VaeConfig},
    },
    weights::{Place, Weights},
};

/// The name of a graph's file.
const GRAPH: &str = "model.onnx";
/// The name of the file with the graph's weights.
const DATA: &str = "model.onnx_data";

/// Writes the folder. Returns what the folder cannot store, one sentence each.
pub(super) fn write<'c>(
    parts: &Parts,
    output: &Output,
    mut steps: Steps<'c>,
) -> Result<(Steps<'c>, Vec<String>), ConvertError> {
    let mut lost = Vec::new();
    output.folder(output.place())?;
    let mut graphs = Vec::new();
    for network in &parts.networks {
        let mut all = network.whole(steps.conversion);
        if network.component == "vae" {
            // The graphs written here do not use these weights.
            let config = Config::of(&network.path, network.config.clone());
            let config = VaeConfig::new(&config)?;
            all.retain(|tensor| !vae::is_left_out(&config, &tensor.name));
        }
        steps.expect(&all);
        if network.component != "vae" {
            graphs.push((network, network.component, all));
            continue;
        }
        let (encoder, decoder): (Vec<_>, Vec<_>) = all
            .into_iter()
            .partition(|tensor| vae::is_of_encoder(&tensor.name));
        graphs.push((network, "vae_decoder", decoder));
        graphs.push((network, "vae_encoder", encoder));
    }
    for (network, name, tensors) in graphs {
        let folder = output.place().join(name);
        output.folder(&folder)?;
        let config = pretty(&Value::Object(network.config.clone()));
        output.write(&folder.join("config.json"), config)?;
        let data = folder.join(DATA);
        let offsets = tensors::external_data(output, &data, &tensors, &mut steps)?;
        let weights = written(&data, &tensors, &offsets);
        let graph = graph(parts, network, name, &weights)?;
        output.write(&folder.join(GRAPH), graph.encode_to_vec())?;
    }
    // This crate reads no vision model from an ONNX graph.
    common(parts, None, output, &mut lost)?;
    Ok((steps, lost))
}

/// Returns the weights with their places in the file that was just written.
fn written(data: &Path, tensors: &[New<'_>], offsets: &[u64]) -> Weights {
    let path: Arc<Path> = data.into();
    let mut weights = Weights::empty(data);
    for (tensor, &offset) in tensors.iter().zip(offsets) {
        let place = Place::File {
            path: path.clone(),
            offset,
            length: tensor.length(),
        };
        weights.place(&tensor.name, tensor.dtype, &tensor.shape, place);
    }
    weights
}

/// Builds the graph of a network, with the input and output names of optimum's exports.
fn graph(
    parts: &Parts,
    network: &Network,
    name: &str,
    weights: &Weights,
) -> Result<proto::Model, ConvertError> {
    let config = || Config::of(&network.path, network.config.clone());
    let dialect = Dialect::default();
    let mut graph = match name {
        "unet" => {
            let config = UnetConfig::new(&config(), parts.source.sizes())?;
            let mut graph = Graph::of(&unet::graph(&config, weights, dialect)?);
            graph.rename("output", "out_sample");
            graph.join(input::LATENTS, input::BESIDE);
            graph.scalar(input::TIMESTEP);
            graph
        }
        "vae_decoder" => {
            let config = VaeConfig::new(&config())?;
            let mut graph = Graph::of(&vae::decoder(&config, weights, dialect)?);
            graph.rename("latents", "latent_sample");
            graph.rename("image", "sample");
            graph
        }
        "vae_encoder" => {
            let config = VaeConfig::new(&config())?;
            let mut graph = Graph::of(&vae::encoder(&config, weights, dialect)?);
            graph.rename("image", "sample");
            let moments = match config.is_variational() {
                true => "latent_parameters",
                false => "latent_sample",
            };
            graph.rename("moments", moments);
            graph
        }
        _ => text(parts, network, weights)?,
    };
    graph.remove_unused();
    Ok(graph.model)
}

fn text(parts: &Parts, network: &Network, weights: &Weights) -> Result<Graph, ConvertError> {
    let mut config = ClipTextConfig::new(Config::of(&network.path, network.config.clone()))?;
    let towers = parts.source.towers().iter();
    let is_pooled = towers
        .filter(|tower| tower.encoder == network.component)
        .any(|tower| tower.pooled);
    config.projection = is_pooled.then_some(config.projection_width);
    let none = Array2::zeros((0, 0));
    let model = clip_text::graph(&config, weights, none.view(), Dialect::default())?;
    let mut graph = Graph::of(&model);
    graph.end_of_text(config.end);
    let mut outputs = match is_pooled {
        true => vec![(PROJECTION.to_owned(), "text_embeds".to_owned())],
        false => Vec::new(),
    };
    outputs.push(("clip_skip_1".to_owned(), "last_hidden_state".to_owned()));
    if !is_pooled {
        outputs.push((POOLED.to_owned(), "pooler_output".to_owned()));
    }
    outputs.push((graph.embeddings(), "hidden_states.0".to_owned()));
    for layer in 1..config.layers {
        let skip = config.layers + 1 - layer;
        outputs.push((
            format!("clip_skip_{skip}_raw"),
            format!("hidden_states.{layer}"),
        ));
    }
    graph.keep(&outputs);
    Ok(graph)
}

/// A graph whose inputs and outputs are renamed and reshaped.
struct Graph {
    model: proto::Model,
}

impl Graph {
    fn of(model: &Model) -> Self {
        let model = proto::Model::decode(&*model.bytes);
        Self {
            model: model.expect("the graph was just encoded"),
        }
    }

    fn graph(&mut self) -> &mut proto::Graph {
        self.model.graph.get_or_insert_default()
    }

    /// Renames an input or output.
    fn rename(&mut self, old: &str, new: &str) {
        let graph = self.graph();
        let ports = graph.input.iter_mut().chain(&mut graph.output);
        let ports = ports.map(|port| &mut port.name);
        let nodes = graph.node.iter_mut();
        let values = nodes.flat_map(|node| node.input.iter_mut().chain(&mut node.output));
        for name in ports.chain(values).filter(|name| *name == old) {
            name.clear();
            name.push_str(new);
        }
    }

    /// Merges two inputs that the graph concatenates along the channels. Without such a node the
    /// graph is unchanged.
    fn join(&mut self, first: &str, second: &str) {
        let graph = self.graph();
        let is_join =
            |node: &proto::Node| node.op_type == "Concat" && node.input == [first, second];
        let Some(place) = graph.node.iter().position(is_join) else {
            return;
        };
        let joined = graph.node.remove(place).output.remove(0);
        let port = |name: &str| graph.input.iter().position(|port| port.name == name);
        let (Some(kept), Some(removed)) = (port(first), port(second)) else {
            return;
        };
        let more = channels(&mut graph.input[removed]).map_or(0, |channels| *channels);
        if let Some(channels) = channels(&mut graph.input[kept]) {
            *channels += more;
        }
        graph.input.remove(removed);
        for node in &mut graph.node {
            for input in node.input.iter_mut().filter(|input| **input == joined) {
                *input = first.to_owned();
            }
        }
    }

    /// Turns an input of shape `[1]` into a scalar. The operators accept both.
    fn scalar(&mut self, name: &str) {
        let ports = self.graph().input.iter_mut();
        for port in ports.filter(|port| port.name == name) {
            if let Some(shape) = shape(port) {
                shape.dim.clear();
            }
        }
    }

    /// Replaces the input `ends` by nodes that compute the position at which a text ends: the
    /// position of the first id `end`, or of the largest id if `end` is `None`.
    fn end_of_text(&mut self, end: Option<i64>) {
        let place = "end_of_text";
        self.graph().input.retain(|port| port.name != ENDS);
        self.rename(ENDS, place);
        let graph = self.graph();
        let int = |name: &str, i: i64| proto::Attribute {
            name: name.to_owned(),
            r#type: proto::AttributeType::Int as i32,
            i,
            ..Default::default()
        };
        let node = |op: &str, inputs: &[&str], output: &str, attribute: Vec<proto::Attribute>| {
            proto::Node {
                input: inputs.iter().map(|&input| input.to_owned()).collect(),
                output: vec![output.to_owned()],
                name: format!("{op}_{output}"),
                op_type: op.to_owned(),
                attribute,
                ..Default::default()
            }
        };
        let mut nodes = Vec::new();
        let mut ids = IDS;
        if let Some(end) = end {
            graph.initializer.push(proto::Tensor {
                data_type: proto::DataType::Int64 as i32,
                name: "end_id".to_owned(),
                raw_data: end.to_le_bytes().to_vec(),
                ..Default::default()
            });
            nodes.push(node("Equal", &[ids, "end_id"], "is_end", vec![]));
            ids = "is_end";
        }
        // ONNX Runtime implements `ArgMax` for i32 on every device.
        let to = int("to", proto::DataType::Int32 as i64);
        nodes.push(node("Cast", &[ids], "end_score", vec![to]));
        let first = vec![int("axis", 1), int("keepdims", 1)];
        nodes.push(node("ArgMax", &["end_score"], place, first));
        graph.node.splice(0..0, nodes);
    }

    /// Returns the name of the sum of token and position embeddings: the first sum in the graph.
    fn embeddings(&mut self) -> String {
        let nodes = self.graph().node.iter();
        let sum = nodes
            .filter(|node| node.op_type == "Add")
            .find_map(|node| node.output.first());
        sum.expect("the graph adds the embeddings").clone()
    }

    /// Makes exactly these values the outputs, in this order and under the new names.
    fn keep(&mut self, outputs: &[(String, String)]) {
        let graph = self.graph();
        let ports = std::mem::take(&mut graph.output);
        // A hidden state that is no output yet has the type and shape of the other hidden states.
        let like = ports
            .iter()
            .find(|port| port.name.starts_with("clip_skip_"))
            .cloned();
        for (value, name) in outputs {
            let own = ports.iter().find(|port| port.name == *value).cloned();
            let is_port = own.is_some();
            if let Some(port) = own.or(like.clone()) {
                let name = name.clone();
                self.graph().output.push(proto::ValueInfo { name, ..port });
            }
            if is_port {
                self.rename(value, name);
                continue;
            }
            self.graph().node.push(proto::Node {
                input: vec![value.clone()],
                output: vec![name.clone()],
                name: format!("Identity_{name}"),
                op_type: "Identity".to_owned(),
                ..Default::default()
            });
        }
    }

    /// Removes nodes and initializers that no output needs. The nodes are in topological order.
    fn remove_unused(&mut self) {
        let graph = self.graph();
        let mut needed: HashSet<String> =
            graph.output.iter().map(|port| port.name.clone()).collect();
        let mut kept = Vec::with_capacity(graph.node.len());
        for node in std::mem::take(&mut graph.node).into_iter().rev() {
            if node.output.iter().any(|output| needed.contains(output)) {
                needed.extend(node.input.iter().cloned());
                kept.push(node);
            }
        }
        kept.reverse();
        graph.node = kept;
        graph
            .initializer
            .retain(|tensor| needed.contains(&tensor.name));
    }
}

/// Returns the shape of an input or output.
fn shape(port: &mut proto::ValueInfo) -> Option<&mut proto::Shape> {
    port.r#type.as_mut()?.tensor_type.as_mut()?.shape.as_mut()
}

/// Returns the number of channels of an input or output `[batch, channels, h, w]`.
fn channels(port: &mut proto::ValueInfo) -> Option<&mut i64> {
    match shape(port)?.dim.get_mut(1)?.size.as_mut()? {
        proto::DimensionSize::Value(value) => Some(value),
        proto::DimensionSize::Parameter(_) => None,
    }
}
