//! Reads the model of an ONNX file, field by field.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fs::{self, File},
    io::{BufReader, Read, Seek},
    path::Path,
    sync::Arc,
};

use prost::Message;
use sd_text::outside::{self, list};

use super::{
    Initializer, Node, OnnxFile, Port, Side,
    nodes::{function, node},
};
use crate::{
    Error,
    exported::wire::{Value, Wire, keep, put},
    graph::proto::{self, DataType},
};

/// The largest size of a protobuf message, in bytes.
const MOST_BYTES: u64 = i32::MAX as u64;
/// The oldest operator set that has the operators which this crate adds.
const OLDEST_OPSET: i64 = 13;
/// The domains of ONNX Runtime's own operators.
const DOMAINS: [&str; 6] = [
    "",
    "ai.onnx",
    "ai.onnx.ml",
    "ai.onnx.preview.training",
    "com.microsoft",
    "com.microsoft.nchwc",
];
/// The largest number of entries: nodes, the names that they read and write, initializers, inputs
/// and outputs. SDXL's UNet has some ten thousand nodes.
const MOST_ENTRIES: usize = 1 << 22;
/// The largest number of inputs, outputs, operator sets or functions.
const MOST_PORTS: usize = 1 << 12;
/// The longest description of an input, an output or the place of a tensor's values, in bytes.
const MOST_DESCRIPTION: u64 = 1 << 16;

impl OnnxFile {
    /// Reads the graph of a file and checks it.
    ///
    /// # Errors
    /// - [`Error::Graph`] when the file is not a valid ONNX file, or has parts that are not
    ///   supported.
    /// - [`Error::Io`] when the file cannot be read.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let wrong = |problem: String| Error::graph(path, problem);
        let file = outside::open_binary(path).map_err(Error::io(path))?;
        let length = file.metadata().map_err(Error::io(path))?.len();
        if length > MOST_BYTES {
            return Err(wrong(format!(
                "the file is {length} bytes long, but an ONNX file has at most {MOST_BYTES}: the \
                 weights of a larger model lie in a second file"
            )));
        }
        let real: Arc<Path> = fs::canonicalize(path).map_err(Error::io(path))?.into();
        let mut reader = Reader {
            path,
            real,
            data_files: HashMap::new(),
            model: Vec::new(),
            opsets: Vec::new(),
            functions: Vec::new(),
            graph: None,
            entries: 0,
        };
        let mut wire = Wire::new(BufReader::new(file), 0);
        reader.model(&mut wire, length).map_err(|error| {
            // Errors that already name a problem in the file are passed on unchanged.
            match error {
                Problem::Error(error) => *error,
                Problem::Io(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                    wrong(format!("not an ONNX file: {error}"))
                }
                Problem::Io(source) => Error::io(path)(source),
            }
        })?;
        reader.finish()
    }
}

/// The reason why reading stopped.
pub(super) enum Problem {
    Error(Box<Error>),
    Io(std::io::Error),
}

impl From<std::io::Error> for Problem {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Self::Error(Box::new(error))
    }
}

impl From<prost::DecodeError> for Problem {
    fn from(error: prost::DecodeError) -> Self {
        Self::Io(std::io::Error::new(std::io::ErrorKind::InvalidData, error))
    }
}

/// The parts of a file that have been read.
pub(super) struct Reader<'a> {
    pub path: &'a Path,
    /// The canonical path, without links.
    pub real: Arc<Path>,
    /// The files that hold weights, by their names in the graph: canonical paths and lengths.
    pub data_files: HashMap<String, (Arc<Path>, u64)>,
    model: Vec<u8>,
    opsets: Vec<proto::OperatorSet>,
    /// The domain and the name of each function that the model defines.
    functions: Vec<(String, String)>,
    graph: Option<RawGraph>,
    /// The number of entries so far, at most `MOST_ENTRIES`.
    entries: usize,
}

#[derive(Default)]
struct RawGraph {
    rest: Vec<u8>,
    nodes: Vec<Node>,
    initializers: Vec<Initializer>,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
}

impl Reader<'_> {
    fn model(&mut self, wire: &mut Wire<BufReader<File>>, end: u64) -> Result<(), Problem> {
        while let Some(field) = wire.field(end)? {
            match (field.number, field.value) {
                (7, Value::Bytes(length)) if self.graph.is_none() => {
                    let end = wire.at() + length;
                    let graph = self.graph(wire, end)?;
                    self.graph = Some(graph);
                }
                (7, _) => return Err(wire.wrong("a second graph").into()),
                (8 | 25, _) if self.opsets.len() + self.functions.len() >= MOST_PORTS => {
                    return Err(wire.wrong("too many operator sets or functions").into());
                }
                (8, Value::Bytes(length)) => {
                    let bytes = described(wire, length)?;
                    self.opsets.push(proto::OperatorSet::decode(&bytes[..])?);
                    put(&mut self.model, field.number, &bytes);
                }
                (25, Value::Bytes(length)) => {
                    let bytes = wire.bytes(length)?;
                    self.functions.push(function(&bytes)?);
                    put(&mut self.model, field.number, &bytes);
                }
                _ => keep(wire, field.number, field.value, &mut self.model)?,
            }
        }
        Ok(())
    }

    fn graph(&mut self, wire: &mut Wire<BufReader<File>>, end: u64) -> Result<RawGraph, Problem> {
        let mut graph = RawGraph::default();
        while let Some(field) = wire.field(end)? {
            match (field.number, field.value) {
                (1, Value::Bytes(length)) => {
                    let node = node(wire.bytes(length)?, 0)?;
                    self.entries += 1 + node.names();
                    graph.nodes.push(node);
                }
                (5, Value::Bytes(length)) => {
                    self.entries += 1;
                    let initializer = self.initializer(wire, length)?;
                    graph.initializers.push(initializer);
                }
                (11 | 12, Value::Bytes(length)) => {
                    let port = port(&described(wire, length)?)?;
                    let ports = match field.number {
                        11 => &mut graph.inputs,
                        _ => &mut graph.outputs,
                    };
                    // Old exporters also list initializers among the inputs.
                    self.entries += 1;
                    ports.push(port);
                }
                (15, _) => {
                    let problem = "sparse initializers are not supported".to_owned();
                    return Err(Error::graph(self.path, problem).into());
                }
                _ => keep(wire, field.number, field.value, &mut graph.rest)?,
            }
            if self.entries > MOST_ENTRIES {
                return Err(wire
                    .wrong("more nodes and tensors than any model has")
                    .into());
            }
        }
        Ok(graph)
    }

    fn finish(self) -> Result<OnnxFile, Error> {
        let wrong = |problem: String| Error::graph(self.path, problem);
        let graph = self
            .graph
            .ok_or_else(|| wrong("not an ONNX file: it has no graph".to_owned()))?;
        let functions = self.functions.iter();
        let functions: HashSet<_> = functions
            .map(|(domain, name)| (&**domain, &**name))
            .collect();
        let operators = graph.nodes.iter().map(|node| (&*node.domain, &*node.op));
        let unknown: BTreeSet<_> = operators
            .filter(|it| !DOMAINS.contains(&it.0) && !functions.contains(it))
            .collect();
        if !unknown.is_empty() {
            let names = unknown.iter().map(|(domain, op)| format!("{domain}::{op}"));
            return Err(wrong(format!(
                "operators of another library, which ONNX Runtime does not have: {}",
                list(names)
            )));
        }
        let opset = self
            .opsets
            .iter()
            .find(|it| DOMAINS[..2].contains(&it.domain.as_str()));
        let version = opset.map_or(1, |opset| opset.version);
        if version < OLDEST_OPSET {
            return Err(wrong(format!(
                "operator set {version}, expected {OLDEST_OPSET} or newer: export the model again"
            )));
        }
        let initializer_of: HashMap<_, _> = graph
            .initializers
            .iter()
            .enumerate()
            .map(|(index, initializer)| (initializer.name.clone(), index))
            .collect();
        let mut inputs = graph.inputs;
        // Old exporters also list initializers among the inputs.
        inputs.retain(|input| !initializer_of.contains_key(&input.name));
        for (what, ports) in [("inputs", &inputs), ("outputs", &graph.outputs)] {
            if ports.len() > MOST_PORTS {
                let count = ports.len();
                return Err(wrong(format!(
                    "the graph has {count} {what}, expected at most {MOST_PORTS}"
                )));
            }
        }
        Ok(OnnxFile {
            path: self.path.to_path_buf(),
            real: self.real,
            model: self.model,
            graph: graph.rest,
            nodes: graph.nodes,
            initializers: graph.initializers,
            inputs,
            outputs: graph.outputs,
            initializer_of,
        })
    }
}

/// Reads a message that is short in every valid file.
pub(super) fn described<R: Read + Seek>(
    wire: &mut Wire<R>,
    length: u64,
) -> Result<Vec<u8>, Problem> {
    if length > MOST_DESCRIPTION {
        let problem =
            format!("a description of {length} bytes, expected at most {MOST_DESCRIPTION}");
        return Err(wire.wrong(problem).into());
    }
    Ok(wire.bytes(length)?)
}

fn port(bytes: &[u8]) -> Result<Port, Problem> {
    let info = proto::ValueInfo::decode(bytes)?;
    let tensor = info.r#type.and_then(|it| it.tensor_type);
    let side = |dim: proto::Dimension| match dim.size {
        Some(proto::DimensionSize::Value(size)) if size >= 0 => Side::Fixed(size as usize),
        Some(proto::DimensionSize::Parameter(name)) => Side::Any(name),
        _ => Side::Any(String::new()),
    };
    Ok(Port {
        name: info.name,
        data_type: tensor
            .as_ref()
            .map_or(DataType::Undefined as i32, |it| it.elem_type),
        dims: tensor
            .and_then(|it| it.shape)
            .map(|shape| shape.dim.into_iter().map(side).collect()),
    })
}
