//! A CLIP text model that another tool exported, with the inputs and outputs of
//! [`clip_text`](crate::models::clip_text).

use std::{collections::HashSet, path::Path};

use ndarray::ArrayView2;
use sd_text::{ClipSkip, Layer, outside::list};
use serde_json::json;

use super::{
    adapter::{Adapter, At, Limits, check_type, dims, int},
    file::{Node, OnnxFile, Port},
    layers::Layers,
};
use crate::{
    Error,
    config::Config,
    graph::{Model, proto::DataType},
    models::clip_text::{ClipTextConfig, ENDS, IDS, POOLED, PROJECTION, output_name},
};

/// The output of the last state, after the final norm.
const LAST: &str = "last_hidden_state";
/// transformers' name of the projection's output.
const PROJECTED: &str = "text_embeds";
/// The prefix of the outputs of inner states. The number of the layer follows, which is 0 for the
/// embeddings.
const STATE: &str = "hidden_states.";

const INTEGERS: [DataType; 2] = [DataType::Int64, DataType::Int32];
pub(super) const FLOATS: [DataType; 3] = [DataType::Float, DataType::Float16, DataType::Double];

/// A text model in a file, and its sizes as far as they are known.
#[derive(Debug)]
pub(crate) struct TextFile {
    file: OnnxFile,
    config: ClipTextConfig,
    /// Whether there is a `config.json`.
    is_configured: bool,
}

/// The graph to run, and the reason for missing outputs.
#[derive(Debug)]
pub(crate) struct TextGraph {
    pub model: Model,
    pub limits: Limits,
    /// The outputs that the graph has.
    outputs: Vec<String>,
    /// The reason why other outputs are missing.
    missing: String,
    file: std::path::PathBuf,
}

impl TextGraph {
    /// Checks that the graph has an output.
    pub fn check(&self, output: &str) -> Result<(), Error> {
        if self.outputs.iter().any(|known| known == output) {
            return Ok(());
        }
        let what = match output.strip_prefix("clip_skip_") {
            Some(skip) => match skip.strip_suffix("_raw") {
                Some(skip) => format!("clip skip {skip} without the final norm"),
                None => format!("clip skip {skip}"),
            },
            None => format!("the output `{output}`"),
        };
        Err(Error::graph(
            &self.file,
            format!(
                "{what} cannot be had from this graph, neither as an output nor from within: {}",
                self.missing
            ),
        ))
    }
}

impl TextFile {
    /// Reads a text model's file. `config` is the `config.json` beside it, if there is one.
    /// `pooled` says whether the projected output is needed.
    pub fn open(path: &Path, config: Option<Config>, pooled: bool) -> Result<Self, Error> {
        let file = OnnxFile::open(path)?;
        let projected = pooled.then(|| projected(&file)).transpose()?;
        let is_configured = config.is_some();
        let mut config = match config {
            Some(config) => ClipTextConfig::new(config)?,
            None => ClipTextConfig::new(guessed(&file)?)?,
        };
        if let Some(port) = projected {
            config.projection = Some(port.fixed(1).unwrap_or(config.projection_width));
        }
        let found = file.output(LAST).and_then(|port| port.fixed(2));
        if let Some(found) = found.filter(|&found| found != config.width) {
            return Err(file.wrong(format!(
                "`{LAST}` is {found} wide, expected {}, the `hidden_size` of config.json",
                config.width
            )));
        }
        Ok(Self {
            file,
            config,
            is_configured,
        })
    }

    pub fn config(&self) -> &ClipTextConfig {
        &self.config
    }

    /// Builds the graph. `more`, with shape `[any, width]`, holds rows to append to the token
    /// embedding.
    pub fn graph(&self, more: ArrayView2<'_, f32>) -> Result<TextGraph, Error> {
        let file = &self.file;
        let mut graph = Adapter::new(file);
        let mut limits = Limits::new(file);
        self.inputs(&mut graph, &mut limits, more)?;
        let ends = graph.input(ENDS, DataType::Int64, &[None, Some(1)]);
        let mut outputs = Vec::new();
        let mut add = |graph: &mut Adapter<'_>, name: String, value: &str| {
            graph.output(&name, value);
            outputs.push(name);
        };
        let layers = self.layers();
        let of = |skip: usize, final_norm| {
            let skip = ClipSkip::new(skip).expect("layers are counted from 1");
            output_name(Layer { skip, final_norm })
        };
        let last = file.output(LAST);
        if let Some(port) = last {
            check_type(file, port, &FLOATS)?;
            add(&mut graph, of(1, true), &port.name);
            let inputs = [&*port.name, &*ends];
            let state = graph.node(At::End, "GatherND", &inputs, &[int("batch_dims", 1)]);
            add(&mut graph, POOLED.into(), &state);
        }
        if self.config.projection.is_some() {
            add(&mut graph, PROJECTION.into(), &projected(file)?.name);
        }
        let mut missing = match &layers {
            Ok(_) => String::new(),
            Err(problem) => problem.clone(),
        };
        for skip in 1..=self.config.layers {
            let Some(state) = self.state(layers.as_ref().ok(), skip) else {
                continue;
            };
            add(&mut graph, of(skip, false), &state);
            if let (Ok(layers), Some(last)) = (&layers, last)
                && skip > 1
            {
                let normed = graph.copy(&layers.norm, layers.states[0], &state, &last.name);
                add(&mut graph, of(skip, true), &normed);
            }
        }
        if missing.is_empty() {
            missing = format!("it has {} layers", self.config.layers);
        }
        Ok(TextGraph {
            model: graph.finish()?,
            limits,
            outputs,
            missing,
            file: file.path.clone(),
        })
    }

    /// Returns the name of the value that holds the states at this clip skip, without the final
    /// norm. If the layers were not found in the graph, it is one of the graph's outputs.
    fn state(&self, layers: Option<&Layers<'_>>, skip: usize) -> Option<String> {
        match layers {
            Some(layers) => layers.states.get(skip - 1).map(|&state| state.to_owned()),
            // Some versions of transformers apply the final norm to the last of these outputs.
            None if skip == 1 => None,
            None => {
                let name = format!("{STATE}{}", self.config.layers + 1 - skip);
                self.file.output(&name).map(|_| name)
            }
        }
    }

    /// Finds the layers, whose number must agree with the configuration.
    fn layers(&self) -> Result<Layers<'_>, String> {
        let Some(last) = self.file.output(LAST) else {
            return Err(format!("it has no output `{LAST}`"));
        };
        let layers = Layers::find(&self.file, &last.name)?;
        let found = layers.states.len();
        if self.is_configured && found != self.config.layers {
            let expected = self.config.layers;
            return Err(format!(
                "it has {found} layers, expected {expected}, the `num_hidden_layers` of config.json"
            ));
        }
        Ok(layers)
    }

    fn inputs(
        &self,
        graph: &mut Adapter<'_>,
        limits: &mut Limits,
        more: ArrayView2<'_, f32>,
    ) -> Result<(), Error> {
        let file = &self.file;
        let port = file
            .input("input_ids")
            .ok_or_else(|| file.wrong("the graph has no input `input_ids`"))?;
        check_type(file, port, &INTEGERS)?;
        let sides = dims(file, port, 2)?;
        limits.add(IDS, &sides);
        let ids = graph.input(IDS, DataType::Int64, &sides);
        if more.is_empty() {
            graph.feed(port, &ids);
        } else {
            self.add_rows(graph, port, &ids, more)?;
        }
        // CLIP's attention is causal, so padding needs no mask: every position counts.
        if let Some(mask) = file.input("attention_mask") {
            let ones = graph.node(At::Start, "Equal", &[&ids, &ids], &[]);
            graph.feed(mask, &ones);
        }
        Ok(())
    }

    /// Appends rows to the token embedding. The graph looks up both tables and selects one row.
    fn add_rows(
        &self,
        graph: &mut Adapter<'_>,
        port: &Port,
        ids: &str,
        more: ArrayView2<'_, f32>,
    ) -> Result<(), Error> {
        let file = &self.file;
        let wrong = |problem: &str| {
            file.wrong(format!(
                "textual inversions cannot be added to this graph: {problem}"
            ))
        };
        let (place, node, rows) =
            token_embedding(file).ok_or_else(|| wrong("its token embedding is not found"))?;
        if rows[0] != self.config.vocab_size || rows[1] != more.ncols() {
            return Err(wrong(&format!(
                "its token embedding is {rows:?}, expected {:?}",
                [self.config.vocab_size, more.ncols()]
            )));
        }
        let end = graph.sizes(&[rows[0] as i64], &[]);
        let zero = graph.sizes(&[0], &[]);
        let is_stored = graph.node(At::Start, "Less", &[ids, &end], &[]);
        // Ids beyond the stored table become 0. A graph finds the end of a text as the first
        // position of a certain id or of the largest id, and 0 is neither.
        let stored = graph.node(At::Start, "Where", &[&is_stored, ids, &zero], &[]);
        graph.feed(port, &stored);
        let beyond = graph.node(At::Start, "Sub", &[ids, &end], &[]);
        let beyond = graph.node(At::Start, "Max", &[&beyond, &zero], &[]);
        let values: Vec<f32> = more.iter().copied().collect();
        let table = graph.numbers(&values, &[more.nrows(), more.ncols()]);
        let picked = graph.node(At::Start, "Gather", &[&table, &beyond], &[int("axis", 0)]);
        let last = graph.sizes(&[-1], &[1]);
        let is_stored = graph.node(At::Start, "Unsqueeze", &[&is_stored, &last], &[]);
        let data_type = file.initializer(&node.inputs[0]).map(|it| it.data_type);
        let to = [int(
            "to",
            i64::from(data_type.unwrap_or(DataType::Float as i32)),
        )];
        let picked = graph.node(At::Start, "Cast", &[&picked], &to);
        let tokens = &node.outputs[0];
        let both = [&*is_stored, tokens, &picked];
        let either = graph.node(At::Behind(place), "Where", &both, &[]);
        graph.rename(tokens, &either);
        Ok(())
    }
}

/// Returns the node that looks up the token embedding, with its index and the shape of the table.
fn token_embedding(file: &OnnxFile) -> Option<(usize, &Node, [usize; 2])> {
    // The ids, also after casts and reshapes.
    let mut ids = HashSet::from(["input_ids"]);
    let mut found = None;
    for (place, node) in file.nodes.iter().enumerate() {
        let reads = |index: usize| {
            let input = node.inputs.get(index);
            input.is_some_and(|name| ids.contains(name.as_str()))
        };
        match node.op.as_str() {
            "Cast" | "Reshape" | "Identity" if reads(0) => {
                ids.extend(node.outputs.first().map(String::as_str));
            }
            "Gather" if reads(1) => {
                let table = file.initializer(&node.inputs[0])?;
                let &[rows, width] = &table.dims[..] else {
                    return None;
                };
                // With a second lookup, the graph is not what it seems.
                if found.is_some() || node.outputs.len() != 1 {
                    return None;
                }
                found = Some((place, node, [rows as usize, width as usize]));
            }
            _ => {}
        }
    }
    found
}

fn projected(file: &OnnxFile) -> Result<&Port, Error> {
    let port = file.output(PROJECTED).ok_or_else(|| {
        let names = list(file.outputs.iter().map(|port| &port.name));
        file.wrong(format!(
            "the graph has no output `{PROJECTED}`, the pooled text that SDXL needs, only {names}"
        ))
    })?;
    check_type(file, port, &FLOATS)?;
    Ok(port)
}

/// Infers the configuration of a text model from its graph, for exports without a `config.json`,
/// such as the names that diffusers used in 2022.
fn guessed(file: &OnnxFile) -> Result<Config, Error> {
    let embedding = token_embedding(file).map(|(_, _, rows)| rows);
    let port = file.output(LAST);
    let width = port
        .and_then(|port| port.fixed(2))
        .or(embedding.map(|rows| rows[1]))
        .ok_or_else(|| {
            let problem =
                format!("the width of `{LAST}` is not fixed, and there is no config.json");
            file.wrong(problem)
        })?;
    let layers = port.and_then(|port| Layers::find(file, &port.name).ok());
    let length = file.input("input_ids").and_then(|port| port.fixed(1));
    let json = json!({
        "vocab_size": embedding.map_or(49408, |rows| rows[0]),
        "hidden_size": width,
        "num_attention_heads": 1,
        "num_hidden_layers": layers.map_or(12, |layers| layers.states.len()),
        "max_position_embeddings": length.unwrap_or(77),
        "projection_dim": width,
        "eos_token_id": 2,
    });
    Config::parse(&file.path, &json.to_string())
}
