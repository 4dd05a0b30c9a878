//! An ONNX file as it lies on the disk: its graph, without the values of its weights.
//!
//! Everything that ONNX Runtime would read is looked at here first. The weights stay where they
//! are, in the file itself or beside it.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{BufReader, Cursor, Read, Result as IoResult, Seek},
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use prost::Message;
use sd_text::outside::{self, list, printable};

use super::wire::{Value, Wire};
use crate::{
    Error,
    graph::proto::{self, DataType},
};

/// The most bytes that a protobuf message may have.
const MOST_BYTES: u64 = i32::MAX as u64;
/// The oldest operator set that the nodes written here work under.
const OLDEST_OPSET: i64 = 13;
/// Weights from this length on stay in the file. ONNX Runtime wants shorter ones, such as shapes,
/// in the graph.
const LEAST_EXTERNAL: u64 = 1024;
/// The domains of operators that ONNX Runtime has.
const DOMAINS: [&str; 6] = [
    "",
    "ai.onnx",
    "ai.onnx.ml",
    "ai.onnx.preview.training",
    "com.microsoft",
    "com.microsoft.nchwc",
];
/// Subgraphs within subgraphs beyond this depth are refused.
const MOST_DEPTH: usize = 16;
/// The most nodes and initializers together, the names that all nodes read and write among them.
/// SDXL's UNet has some ten thousand nodes.
const MOST_ENTRIES: usize = 1 << 22;
/// The most names that one node reads and writes, with its subgraphs.
const MOST_NAMES: usize = 1 << 16;
/// The most inputs, outputs, operator sets or functions.
const MOST_PORTS: usize = 1 << 12;
/// The longest description of an input, an output or of where a tensor's values are, in bytes.
const MOST_DESCRIPTION: u64 = 1 << 16;
/// The most dimensions of a tensor.
const MOST_DIMENSIONS: usize = 64;

/// A graph in a file.
#[derive(Debug)]
pub(super) struct OnnxFile {
    /// The file's path, as it was found.
    pub path: PathBuf,
    /// The fields of the model but its graph, as they are in the file.
    pub model: Vec<u8>,
    /// The fields of the graph that are not listed below, as they are in the file.
    pub graph: Vec<u8>,
    pub nodes: Vec<Node>,
    pub initializers: Vec<Initializer>,
    /// What a call gives, by its name. Initializers are not among them.
    pub inputs: Vec<Port>,
    pub outputs: Vec<Port>,
    /// The place of each initializer in the list.
    initializer_of: HashMap<String, usize>,
}

/// An operator.
#[derive(Debug)]
pub(super) struct Node {
    /// Its message as it is in the file.
    pub bytes: Vec<u8>,
    pub op: String,
    pub domain: String,
    pub inputs: Vec<String>,
    pub outputs: Vec<String>,
    /// What its subgraphs read, which may be values of the graph around them.
    pub captured: Vec<String>,
}

/// A tensor with a value.
#[derive(Debug)]
pub(super) struct Initializer {
    pub name: String,
    pub dims: Vec<i64>,
    pub data_type: i32,
    pub data: Data,
}

/// Where the values of an initializer are.
#[derive(Debug)]
pub(super) enum Data {
    /// In its message, which is as it is in the file.
    Inline(Vec<u8>),
    At {
        file: Arc<Path>,
        offset: u64,
        /// None: as many bytes as the tensor has.
        length: Option<u64>,
    },
}

/// An input or an output of a graph.
#[derive(Debug, Clone)]
pub(super) struct Port {
    pub name: String,
    pub data_type: i32,
    /// None where the file does not say how many there are.
    pub dims: Option<Vec<Side>>,
}

/// A size of an input or an output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Side {
    Fixed(usize),
    /// Any size. Sizes of one name are equal, except that an empty name is none.
    Any(String),
}

impl OnnxFile {
    /// Reads the graph of a file and checks what it can.
    ///
    /// # Errors
    /// [`Error::Graph`] names what is wrong, [`Error::Io`] what could not be read.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let wrong = |problem: String| Error::graph(path, problem);
        let file = outside::open_binary(path).map_err(Error::io(path))?;
        let length = file.metadata().map_err(Error::io(path))?.len();
        if length > MOST_BYTES {
            return Err(wrong(format!(
                "{length} bytes long, but an ONNX file has at most {MOST_BYTES}: the \
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
            // What an inner reading found is not lost.
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

    /// An initializer by its name.
    pub fn initializer(&self, name: &str) -> Option<&Initializer> {
        self.initializer_of
            .get(name)
            .map(|&index| &self.initializers[index])
    }

    /// An output by its name.
    pub fn output(&self, name: &str) -> Option<&Port> {
        self.outputs.iter().find(|port| port.name == name)
    }

    /// An input by its name.
    pub fn input(&self, name: &str) -> Option<&Port> {
        self.inputs.iter().find(|port| port.name == name)
    }

    /// An error about this file.
    pub fn wrong(&self, problem: impl Into<String>) -> Error {
        Error::graph(&self.path, problem.into())
    }

    /// The file and those that its weights lie in.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut files = vec![self.path.clone()];
        for initializer in &self.initializers {
            if let Data::At { file, .. } = &initializer.data
                && !files.iter().any(|known| **known == **file)
                && fs::canonicalize(&self.path).is_ok_and(|model| *model != **file)
            {
                files.push(file.to_path_buf());
            }
        }
        files
    }
}

impl Node {
    /// How many names it has.
    fn names(&self) -> usize {
        self.inputs.len() + self.outputs.len() + self.captured.len()
    }
}

impl Port {
    /// The size at a place, if the file fixes it.
    pub fn fixed(&self, place: usize) -> Option<usize> {
        match self.dims.as_ref()?.get(place)? {
            Side::Fixed(size) => Some(*size),
            Side::Any(_) => None,
        }
    }

    /// How many sizes it has, if the file says so.
    pub fn rank(&self) -> Option<usize> {
        self.dims.as_ref().map(Vec::len)
    }

    /// Its type and sizes for a message, such as `float16 [batch, 4, 64, 64]`.
    pub fn shown(&self) -> String {
        let sides = match &self.dims {
            None => "of any shape".to_owned(),
            Some(dims) => {
                let sides = dims.iter().map(|side| match side {
                    Side::Fixed(size) => size.to_string(),
                    Side::Any(name) if name.is_empty() => "?".to_owned(),
                    Side::Any(name) => printable(name),
                });
                format!("[{}]", sides.collect::<Vec<_>>().join(", "))
            }
        };
        format!("{} {sides}", type_name(self.data_type))
    }
}

/// What a type of elements is called.
pub(super) fn type_name(data_type: i32) -> String {
    const NAMES: [&str; 17] = [
        "undefined",
        "float",
        "uint8",
        "int8",
        "uint16",
        "int16",
        "int32",
        "int64",
        "string",
        "bool",
        "float16",
        "double",
        "uint32",
        "uint64",
        "complex64",
        "complex128",
        "bfloat16",
    ];
    let name = usize::try_from(data_type).ok().and_then(|n| NAMES.get(n));
    name.map_or_else(|| format!("type {data_type}"), |name| (*name).to_owned())
}

/// The bytes of an element, where they are whole.
fn type_size(data_type: i32) -> Option<u64> {
    Some(match data_type {
        2 | 3 | 9 | 17..=20 => 1,
        4 | 5 | 10 | 16 => 2,
        1 | 6 | 12 => 4,
        7 | 11 | 13 | 14 => 8,
        15 => 16,
        _ => return None,
    })
}

/// What ended a reading.
enum Problem {
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

/// What has been read of a file.
struct Reader<'a> {
    path: &'a Path,
    real: Arc<Path>,
    /// The files that weights lie in, with their lengths, by what the graph calls them.
    data_files: HashMap<String, (Arc<Path>, u64)>,
    model: Vec<u8>,
    opsets: Vec<proto::OperatorSet>,
    /// Domain and name of each function that the model brings along.
    functions: Vec<(String, String)>,
    graph: Option<RawGraph>,
    /// How many of `MOST_ENTRIES` there are so far.
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
                    // Initializers were once listed among the inputs.
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

    fn initializer(
        &mut self,
        wire: &mut Wire<BufReader<File>>,
        length: u64,
    ) -> Result<Initializer, Problem> {
        let start = wire.at();
        let head = tensor(wire, start + length)?;
        let wrong = |problem: &str| {
            let name = printable(&head.name);
            Error::graph(self.path, format!("initializer `{name}`: {problem}"))
        };
        if head.dims.iter().any(|&side| side < 0) {
            return Err(wrong("a negative size").into());
        }
        let mut sides = head.dims.iter().map(|&side| side as u64);
        let bytes = match type_size(head.data_type) {
            Some(size) => {
                let bytes = sides.try_fold(size, |all, side: u64| all.checked_mul(side));
                Some(bytes.ok_or_else(|| wrong("more elements than memory can have"))?)
            }
            None => None,
        };
        let data = if head.is_external {
            self.external(&head, bytes)?
        } else {
            match head.raw {
                Some((_, length)) if bytes.is_some_and(|bytes| bytes != length) => {
                    let problem = format!(
                        "{length} bytes of data, expected {} for {:?}",
                        bytes.unwrap_or_default(),
                        head.dims
                    );
                    return Err(wrong(&problem).into());
                }
                Some((offset, length)) if length >= LEAST_EXTERNAL => Data::At {
                    file: self.real.clone(),
                    offset,
                    length: Some(length),
                },
                _ => {
                    wire.go_to(start)?;
                    Data::Inline(wire.bytes(length)?)
                }
            }
        };
        Ok(Initializer {
            name: head.name,
            dims: head.dims,
            data_type: head.data_type,
            data,
        })
    }

    /// Finds the file beside the graph that a tensor lies in.
    fn external(&mut self, head: &Head, bytes: Option<u64>) -> Result<Data, Error> {
        let name = printable(&head.name);
        let wrong =
            |problem: String| Error::graph(self.path, format!("initializer `{name}`: {problem}"));
        let entry = |key: &str| {
            let pair = head.external.iter().find(|pair| pair.key == key);
            pair.map(|pair| pair.value.as_str())
        };
        let number = |key: &str| match entry(key) {
            None => Ok(None),
            Some(text) => text.parse::<u64>().map(Some).map_err(|_| {
                wrong(format!(
                    "the {key} of its data is {:?}, expected a number",
                    printable(text)
                ))
            }),
        };
        let location = entry("location").unwrap_or_default();
        let (offset, length) = (number("offset")?.unwrap_or(0), number("length")?);
        let (file, all) = match self.data_files.get(location) {
            Some(known) => known.clone(),
            None => {
                let shown = printable(location);
                let leads_out =
                    |part: Component<'_>| !matches!(part, Component::Normal(_) | Component::CurDir);
                if location.is_empty()
                    || location.contains("_ORT_MEM_ADDR_")
                    || Path::new(location).components().any(leads_out)
                {
                    return Err(wrong(format!(
                        "its data lies at `{shown}`, expected a file in the folder of the graph"
                    )));
                }
                let folder = self.path.parent().unwrap_or(Path::new(""));
                let path = folder.join(location);
                let opened = outside::open_binary(&path).and_then(|file| {
                    let length = file.metadata()?.len();
                    Ok((fs::canonicalize(&path)?.into(), length))
                });
                let found: (Arc<Path>, u64) = opened.map_err(|error| {
                    wrong(format!(
                        "its data lies in `{shown}`, which cannot be read: {error}"
                    ))
                })?;
                self.data_files.insert(location.to_owned(), found.clone());
                found
            }
        };
        let needed = match (length, bytes) {
            (Some(length), Some(bytes)) if length != bytes => {
                return Err(wrong(format!(
                    "{length} bytes of data, expected {bytes} for {:?}",
                    head.dims
                )));
            }
            (length, bytes) => length.or(bytes).unwrap_or(0),
        };
        if offset.checked_add(needed).is_none_or(|end| end > all) {
            return Err(wrong(format!(
                "its data is {needed} bytes from byte {offset} of `{}`, which has {all}",
                printable(location)
            )));
        }
        Ok(Data::At {
            file,
            offset,
            length: length.or(bytes),
        })
    }

    fn finish(self) -> Result<OnnxFile, Error> {
        let wrong = |problem: String| Error::graph(self.path, problem);
        let graph = self
            .graph
            .ok_or_else(|| wrong("not an ONNX file: it has no graph".to_owned()))?;
        let unknown = |node: &&Node| {
            let own =
                |(domain, name): &(String, String)| *domain == node.domain && *name == node.op;
            !DOMAINS.contains(&node.domain.as_str()) && !self.functions.iter().any(own)
        };
        let unknown: Vec<_> = graph.nodes.iter().filter(unknown).collect();
        if !unknown.is_empty() {
            let mut names: Vec<_> = unknown
                .iter()
                .map(|node| format!("{}::{}", node.domain, node.op))
                .collect();
            names.sort();
            names.dedup();
            return Err(wrong(format!(
                "operators that ONNX Runtime does not have, of a domain of another library: {}",
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
        // Exporters once listed initializers here too.
        inputs.retain(|input| !initializer_of.contains_key(&input.name));
        Ok(OnnxFile {
            path: self.path.to_path_buf(),
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

/// Appends a field of bytes to a message.
pub(super) fn put(to: &mut Vec<u8>, number: u64, bytes: &[u8]) {
    prost::encoding::encode_varint(number << 3 | 2, to);
    prost::encoding::encode_varint(bytes.len() as u64, to);
    to.extend_from_slice(bytes);
}

/// Appends a field that was begun to be read to another message.
pub(super) fn keep<R: Read + Seek>(
    wire: &mut Wire<R>,
    number: u64,
    value: Value,
    to: &mut Vec<u8>,
) -> IoResult<()> {
    match value {
        Value::Varint(value) => {
            prost::encoding::encode_varint(number << 3, to);
            prost::encoding::encode_varint(value, to);
        }
        Value::Fixed64(value) => {
            prost::encoding::encode_varint(number << 3 | 1, to);
            to.extend_from_slice(&value.to_le_bytes());
        }
        Value::Fixed32(value) => {
            prost::encoding::encode_varint(number << 3 | 5, to);
            to.extend_from_slice(&value.to_le_bytes());
        }
        Value::Bytes(length) => put(to, number, &wire.bytes(length)?),
    }
    Ok(())
}

/// What a tensor's message says about its values.
#[derive(Debug, Default)]
struct Head {
    name: String,
    dims: Vec<i64>,
    data_type: i32,
    is_external: bool,
    external: Vec<proto::StringPair>,
    /// Byte and length of its raw data.
    raw: Option<(u64, u64)>,
}

/// Reads a tensor's message, which ends at `end`, without its values.
fn tensor<R: Read + Seek>(wire: &mut Wire<R>, end: u64) -> Result<Head, Problem> {
    let mut head = Head::default();
    while let Some(field) = wire.field(end)? {
        match (field.number, field.value) {
            (1, Value::Varint(side)) => head.dims.push(side as i64),
            (1, Value::Bytes(length)) => {
                let end = wire.at() + length;
                while wire.at() < end && head.dims.len() <= MOST_DIMENSIONS {
                    head.dims.push(wire.varint(end)? as i64);
                }
            }
            (2, Value::Varint(data_type)) => head.data_type = data_type as i32,
            (8, Value::Bytes(length)) => head.name = wire.text(length)?,
            (9, Value::Bytes(length)) => {
                head.raw = Some((wire.at(), length));
                wire.skip(length)?;
            }
            (13, Value::Bytes(length)) => {
                let pair = proto::StringPair::decode(&described(wire, length)?[..])?;
                head.external.push(pair);
            }
            (14, Value::Varint(location)) => {
                head.is_external = location == proto::DataLocation::External as u64;
            }
            (_, Value::Bytes(length)) => wire.skip(length)?,
            _ => {}
        }
        if head.dims.len() > MOST_DIMENSIONS || head.external.len() > MOST_DIMENSIONS {
            return Err(wire
                .wrong("more dimensions or places of data than any tensor has")
                .into());
        }
    }
    Ok(head)
}

/// Reads a node, and of its subgraphs what they read.
fn node(bytes: Vec<u8>, depth: usize) -> Result<Node, Problem> {
    let end = bytes.len() as u64;
    let mut wire = Wire::new(Cursor::new(&bytes[..]), 0);
    let (mut op, mut domain) = (String::new(), String::new());
    let (mut inputs, mut outputs, mut captured) = (Vec::new(), Vec::new(), Vec::new());
    while let Some(field) = wire.field(end)? {
        match (field.number, field.value) {
            (1, Value::Bytes(length)) => inputs.push(wire.text(length)?),
            (2, Value::Bytes(length)) => outputs.push(wire.text(length)?),
            (4, Value::Bytes(length)) => op = wire.text(length)?,
            (7, Value::Bytes(length)) => domain = wire.text(length)?,
            (5, Value::Bytes(length)) => attribute(&wire.bytes(length)?, depth, &mut captured)?,
            (_, Value::Bytes(length)) => wire.skip(length)?,
            _ => {}
        }
        if inputs.len() + outputs.len() + captured.len() > MOST_NAMES {
            return Err(wire
                .wrong("more names in a node than any operator has")
                .into());
        }
    }
    if domain == "ai.onnx" {
        domain.clear();
    }
    Ok(Node {
        bytes,
        op,
        domain,
        inputs,
        outputs,
        captured,
    })
}

/// Reads an attribute: its tensors must have their values in them, and its graphs are looked into.
fn attribute(bytes: &[u8], depth: usize, captured: &mut Vec<String>) -> Result<(), Problem> {
    let end = bytes.len() as u64;
    let mut wire = Wire::new(Cursor::new(bytes), 0);
    while let Some(field) = wire.field(end)? {
        match (field.number, field.value) {
            (5 | 10, Value::Bytes(length)) => {
                let end = wire.at() + length;
                inline(tensor(&mut wire, end)?)?;
            }
            (6 | 11, Value::Bytes(length)) => {
                subgraph(&wire.bytes(length)?, depth + 1, captured)?;
            }
            (22 | 23, _) => return Err(wire.wrong("a sparse tensor in an attribute").into()),
            (_, Value::Bytes(length)) => wire.skip(length)?,
            _ => {}
        }
    }
    Ok(())
}

/// Looks through the graph of an attribute.
fn subgraph(bytes: &[u8], depth: usize, captured: &mut Vec<String>) -> Result<(), Problem> {
    let end = bytes.len() as u64;
    let mut wire = Wire::new(Cursor::new(bytes), 0);
    if depth > MOST_DEPTH {
        return Err(wire.wrong("graphs within graphs are too deep").into());
    }
    while let Some(field) = wire.field(end)? {
        match (field.number, field.value) {
            (1, Value::Bytes(length)) => {
                let inner = node(wire.bytes(length)?, depth)?;
                captured.extend(inner.inputs);
                captured.extend(inner.captured);
                if captured.len() > MOST_NAMES {
                    return Err(wire
                        .wrong("more names in an inner graph than any has")
                        .into());
                }
            }
            (5, Value::Bytes(length)) => {
                let end = wire.at() + length;
                inline(tensor(&mut wire, end)?)?;
            }
            (15, _) => return Err(wire.wrong("a sparse tensor in an inner graph").into()),
            (_, Value::Bytes(length)) => wire.skip(length)?,
            _ => {}
        }
    }
    Ok(())
}

/// Refuses a tensor whose values are in another file, where such are not followed.
fn inline(head: Head) -> Result<(), Problem> {
    if head.is_external {
        let name = printable(head.name);
        let problem = format!("tensor `{name}` of an attribute has its data in another file");
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, problem).into());
    }
    Ok(())
}

/// The domain and the name of a function of the model. Its nodes are checked as those of graphs.
fn function(bytes: &[u8]) -> Result<(String, String), Problem> {
    let end = bytes.len() as u64;
    let mut wire = Wire::new(Cursor::new(bytes), 0);
    let (mut name, mut domain) = (String::new(), String::new());
    while let Some(field) = wire.field(end)? {
        match (field.number, field.value) {
            (1, Value::Bytes(length)) => name = wire.text(length)?,
            (7, Value::Bytes(length)) => drop(node(wire.bytes(length)?, 1)?),
            (10, Value::Bytes(length)) => domain = wire.text(length)?,
            (_, Value::Bytes(length)) => wire.skip(length)?,
            _ => {}
        }
    }
    Ok((domain, name))
}

/// Reads a message that is short in every file.
fn described<R: Read + Seek>(wire: &mut Wire<R>, length: u64) -> Result<Vec<u8>, Problem> {
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
