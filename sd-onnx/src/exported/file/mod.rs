//! An ONNX file: its graph, without the values of its weights.
//!
//! Everything that ONNX Runtime would read is checked here first. The weights stay where they are,
//! in the file itself or beside it.

mod nodes;
mod reader;
mod tensors;

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use sd_text::outside::printable;

use crate::Error;

/// A graph in a file.
#[derive(Debug)]
pub(super) struct OnnxFile {
    /// The path at which the file was found, with links not resolved.
    pub path: PathBuf,
    /// The canonical path, without links.
    real: Arc<Path>,
    /// The encoded fields of the model except its graph, unchanged.
    pub model: Vec<u8>,
    /// The encoded fields of the graph that are not listed below, unchanged.
    pub graph: Vec<u8>,
    pub nodes: Vec<Node>,
    pub initializers: Vec<Initializer>,
    /// The inputs that a call must provide. Initializers are not among them.
    pub inputs: Vec<Port>,
    pub outputs: Vec<Port>,
    /// The index of each initializer in `initializers`, by its name.
    initializer_of: HashMap<String, usize>,
}

/// An operator.
#[derive(Debug)]
pub(super) struct Node {
    /// The encoded node, unchanged.
    pub bytes: Vec<u8>,
    pub op: String,
    pub domain: String,
    pub inputs: Vec<String>,
    pub outputs: Vec<String>,
    /// The names that its subgraphs read, which can be values of the graph around them.
    pub captured: Vec<String>,
}

/// A tensor with a constant value.
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
    /// In this encoded initializer, which is unchanged.
    Inline(Vec<u8>),
    At {
        file: Arc<Path>,
        offset: u64,
        /// Length in bytes, or `None` for the length that the tensor's shape and type require.
        length: Option<u64>,
    },
}

/// An input or an output of a graph.
#[derive(Debug, Clone)]
pub(super) struct Port {
    pub name: String,
    pub data_type: i32,
    /// The sizes, or `None` if the file does not give their number.
    pub dims: Option<Vec<Side>>,
}

/// A size of an input or output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Side {
    Fixed(usize),
    /// Any size. Sizes with the same name are equal, except if the name is empty.
    Any(String),
}

impl OnnxFile {
    /// Finds an initializer by its name.
    pub fn initializer(&self, name: &str) -> Option<&Initializer> {
        self.initializer_of
            .get(name)
            .map(|&index| &self.initializers[index])
    }

    /// Finds an output by its name.
    pub fn output(&self, name: &str) -> Option<&Port> {
        self.outputs.iter().find(|port| port.name == name)
    }

    /// Finds an input by its name.
    pub fn input(&self, name: &str) -> Option<&Port> {
        self.inputs.iter().find(|port| port.name == name)
    }

    /// Returns an error about this file.
    pub fn wrong(&self, problem: impl Into<String>) -> Error {
        Error::graph(&self.path, problem.into())
    }

    /// Lists the file itself and the files that hold its weights.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut files = vec![self.path.clone()];
        let mut known = HashSet::from([&self.real]);
        for initializer in &self.initializers {
            if let Data::At { file, .. } = &initializer.data
                && known.insert(file)
            {
                files.push(file.to_path_buf());
            }
        }
        files
    }
}

impl Port {
    /// Returns the size at an index, if the file fixes it.
    pub fn fixed(&self, place: usize) -> Option<usize> {
        match self.dims.as_ref()?.get(place)? {
            Side::Fixed(size) => Some(*size),
            Side::Any(_) => None,
        }
    }

    /// Returns the number of dimensions, if the file gives it.
    pub fn rank(&self) -> Option<usize> {
        self.dims.as_ref().map(Vec::len)
    }

    /// Formats its type and sizes for a message, such as `float16 [batch, 4, 64, 64]`.
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

/// Returns ONNX's name of an element type.
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
