//! Rewrites another tool's graph to have the inputs and outputs of this crate's graphs.
//!
//! The operators stay as they are. A few operators around them convert types and shapes, and the
//! weights become places in their files.

use std::{
    collections::{HashMap, HashSet},
    io::Cursor,
    path::Path,
    sync::Arc,
};

use prost::Message;
use sd_text::outside::printable;

use super::{
    file::{Data, Initializer, OnnxFile, Port, Side, type_name},
    wire::{Value, Wire, keep, put},
};
use crate::{
    Error,
    graph::{
        Model,
        external::locate,
        proto::{self, AttributeType, DataType},
    },
};

/// The prefix of the names of values that this crate adds, which keeps the names unique.
const OWN: &str = "sd-onnx:";

/// A graph, and the additions to it.
#[derive(Debug)]
pub(super) struct Adapter<'f> {
    pub file: &'f OnnxFile,
    /// Nodes before the file's nodes.
    before: Vec<proto::Node>,
    /// Nodes that follow a node of the file, by the index of that node.
    within: HashMap<usize, Vec<proto::Node>>,
    /// Encoded nodes after the file's nodes.
    after: Vec<Vec<u8>>,
    initializers: Vec<proto::Tensor>,
    inputs: Vec<proto::ValueInfo>,
    outputs: Vec<proto::ValueInfo>,
    /// New names of the file's values, used where its nodes read them.
    renamed: HashMap<String, String>,
    /// The inputs of the file that have a value.
    fed: HashSet<String>,
    values: usize,
}

/// The position of a new node.
#[derive(Debug, Clone, Copy)]
pub(super) enum At {
    Start,
    /// After the node of the file with this index.
    Behind(usize),
    End,
}

impl<'f> Adapter<'f> {
    pub fn new(file: &'f OnnxFile) -> Self {
        Self {
            file,
            before: Vec::new(),
            within: HashMap::new(),
            after: Vec::new(),
            initializers: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            renamed: HashMap::new(),
            fed: HashSet::new(),
            values: 0,
        }
    }

    /// Adds an input to the graph, and returns its name.
    pub fn input(&mut self, name: &str, data_type: DataType, dims: &[Option<usize>]) -> String {
        let sides = dims.iter().map(|side| proto::Dimension {
            size: side.map(|side| proto::DimensionSize::Value(side as i64)),
        });
        let shape = proto::Shape {
            dim: sides.collect(),
        };
        self.inputs
            .push(value_info(name, data_type as i32, Some(shape)));
        name.to_owned()
    }

    /// Connects an input of the file to a value of any type, with a cast.
    pub fn feed(&mut self, port: &Port, value: &str) {
        let to = [int("to", i64::from(port.data_type))];
        let cast = self.node(At::Start, "Cast", &[value], &to);
        self.rename(&port.name, &cast);
        self.fed.insert(port.name.clone());
    }

    /// Sets the input `return_dict`, which some exporters leave in, to false. It selects between
    /// two forms of the output, and graphs have only one.
    pub fn feed_return_dict(&mut self) -> Result<(), Error> {
        if let Some(port) = self.file.input("return_dict") {
            check_type(self.file, port, &[DataType::Bool])?;
            let shape: &[usize] = if port.rank() == Some(0) { &[] } else { &[1] };
            let no = self.sizes(&[0], shape);
            self.feed(port, &no);
        }
        Ok(())
    }

    /// Makes the file's nodes read `value` instead of their own value `name`.
    pub fn rename(&mut self, name: &str, value: &str) {
        self.renamed.insert(name.to_owned(), value.to_owned());
    }

    /// Adds a node with one output, and returns the output's name.
    pub fn node(
        &mut self,
        at: At,
        op: &str,
        inputs: &[&str],
        attributes: &[proto::Attribute],
    ) -> String {
        let output = self.fresh();
        let node = proto::Node {
            input: inputs.iter().map(|&name| name.to_owned()).collect(),
            output: vec![output.clone()],
            name: output.clone(),
            op_type: op.to_owned(),
            attribute: attributes.to_vec(),
            domain: String::new(),
        };
        match at {
            At::Start => self.before.push(node),
            At::Behind(place) => self.within.entry(place).or_default().push(node),
            At::End => self.after.push(node.encode_to_vec()),
        }
        output
    }

    /// Copies nodes of the file, given in their order. The copies read `value` where the originals
    /// read `from`. Returns the name of the copy of `result`.
    pub fn copy(&mut self, nodes: &[usize], from: &str, value: &str, result: &str) -> String {
        let mut names = self.renamed.clone();
        names.insert(from.to_owned(), value.to_owned());
        for &place in nodes {
            let node = &self.file.nodes[place];
            let outputs = node.outputs.iter().filter(|name| !name.is_empty());
            let own: HashMap<_, _> = outputs.map(|name| (name.clone(), self.fresh())).collect();
            self.after.push(renamed_node(&node.bytes, &names, &own));
            names.extend(own);
        }
        names.get(result).map_or(result, String::as_str).to_owned()
    }

    /// Adds an i64 constant, and returns its name.
    pub fn sizes(&mut self, values: &[i64], shape: &[usize]) -> String {
        let raw = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.constant(DataType::Int64, shape, raw)
    }

    /// Adds an f32 constant, and returns its name.
    pub fn numbers(&mut self, values: &[f32], shape: &[usize]) -> String {
        let raw = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.constant(DataType::Float, shape, raw)
    }

    /// Makes a value an output of the graph, cast to f32.
    pub fn output(&mut self, name: &str, value: &str) {
        let value = self.node(
            At::End,
            "Cast",
            &[value],
            &[int("to", DataType::Float as i64)],
        );
        let node = proto::Node {
            input: vec![value],
            output: vec![name.to_owned()],
            name: format!("{OWN}{name}"),
            op_type: "Identity".to_owned(),
            ..Default::default()
        };
        self.after.push(node.encode_to_vec());
        self.outputs
            .push(value_info(name, DataType::Float as i32, None));
    }

    /// Returns the rewritten model.
    ///
    /// # Errors
    /// [`Error::Graph`] when an input of the file has no value.
    pub fn finish(self) -> Result<Model, Error> {
        let file = self.file;
        if let Some(port) = file
            .inputs
            .iter()
            .find(|port| !self.fed.contains(&port.name))
        {
            return Err(file.wrong(format!(
                "the graph has an input `{}`, {}, for which there is no value",
                printable(&port.name),
                port.shown()
            )));
        }
        let mut graph = file.graph.clone();
        let mut nodes: Vec<Vec<u8>> = self.before.iter().map(Message::encode_to_vec).collect();
        let none = HashMap::new();
        for (place, node) in file.nodes.iter().enumerate() {
            nodes.push(renamed_node(&node.bytes, &self.renamed, &none));
            let behind = self.within.get(&place).into_iter().flatten();
            nodes.extend(behind.map(Message::encode_to_vec));
        }
        nodes.extend(self.after);
        for node in &nodes {
            put(&mut graph, 1, node);
        }
        let nodes = nodes.len();
        let (initializers, weights_root) = located(file)?;
        for initializer in initializers {
            put(&mut graph, 5, &initializer);
        }
        for initializer in &self.initializers {
            put(&mut graph, 5, &initializer.encode_to_vec());
        }
        for (number, ports) in [(11, &self.inputs), (12, &self.outputs)] {
            for port in ports {
                put(&mut graph, number, &port.encode_to_vec());
            }
        }
        let mut bytes = file.model.clone();
        put(&mut bytes, 7, &graph);
        Ok(Model {
            bytes,
            weights_root,
            memory: Vec::new(),
            exported: true,
            has_scales: false,
            spill: None,
            nodes,
            taps: Vec::new(),
        })
    }

    fn constant(&mut self, data_type: DataType, shape: &[usize], raw_data: Vec<u8>) -> String {
        let name = self.fresh();
        self.initializers.push(proto::Tensor {
            dims: shape.iter().map(|&side| side as i64).collect(),
            data_type: data_type as i32,
            name: name.clone(),
            raw_data,
            ..Default::default()
        });
        name
    }

    fn fresh(&mut self) -> String {
        self.values += 1;
        format!("{OWN}{}", self.values)
    }
}

/// The sizes that a graph was exported for, against which calls are checked.
#[derive(Debug, Clone, Default)]
pub(crate) struct Limits {
    path: std::path::PathBuf,
    inputs: Vec<(&'static str, Vec<Option<usize>>)>,
}

impl Limits {
    pub(super) fn new(file: &OnnxFile) -> Self {
        Self {
            path: file.path.clone(),
            inputs: Vec::new(),
        }
    }

    /// Returns an error about the graph.
    pub fn wrong(&self, problem: impl Into<String>) -> Error {
        Error::graph(&self.path, problem)
    }

    /// Adds an input of the rewritten graph.
    pub fn add(&mut self, name: &'static str, dims: &[Option<usize>]) {
        self.inputs.push((name, dims.to_vec()));
    }

    /// Checks the shape of an input in a call.
    pub fn check(&self, name: &str, shape: &[usize]) -> Result<(), Error> {
        let Some((_, dims)) = self.inputs.iter().find(|(known, _)| *known == name) else {
            return Ok(());
        };
        let fits = |(side, dim): (&usize, &Option<usize>)| dim.is_none_or(|dim| dim == *side);
        if shape.len() == dims.len() && shape.iter().zip(dims).all(fits) {
            return Ok(());
        }
        let dims = dims.iter().map(|dim| match dim {
            Some(side) => side.to_string(),
            None => "any".to_owned(),
        });
        let dims = dims.collect::<Vec<_>>().join(", ");
        Err(Error::graph(
            &self.path,
            format!(
                "the graph was exported for `{name}` of [{dims}], but this call needs \
                 {shape:?}; only a graph exported with dynamic axes takes other sizes"
            ),
        ))
    }
}

/// Returns the sizes of an input of the file, which must have `count` dimensions.
pub(super) fn dims(
    file: &OnnxFile,
    port: &Port,
    count: usize,
) -> Result<Vec<Option<usize>>, Error> {
    match port.rank() {
        None => Ok(vec![None; count]),
        Some(rank) if rank == count => Ok((0..count).map(|place| port.fixed(place)).collect()),
        Some(_) => Err(file.wrong(format!(
            "the input `{}` is {}, expected {count} dimensions",
            printable(&port.name),
            port.shown()
        ))),
    }
}

/// Refuses an input or output whose type is not among `allowed`.
pub(super) fn check_type(file: &OnnxFile, port: &Port, allowed: &[DataType]) -> Result<(), Error> {
    if allowed.iter().any(|&it| it as i32 == port.data_type) {
        return Ok(());
    }
    let allowed: Vec<_> = allowed.iter().map(|&it| type_name(it as i32)).collect();
    Err(file.wrong(format!(
        "`{}` is {}, expected {}",
        printable(&port.name),
        port.shown(),
        allowed.join(", ")
    )))
}

/// Whether two sizes are the same, by their name.
pub(super) fn same_side(a: Option<&Side>, b: Option<&Side>) -> bool {
    matches!((a, b), (Some(Side::Any(a)), Some(Side::Any(b))) if a == b && !a.is_empty())
}

pub(super) fn int(name: &str, value: i64) -> proto::Attribute {
    proto::Attribute {
        name: name.to_owned(),
        r#type: AttributeType::Int as i32,
        i: value,
        ..Default::default()
    }
}

fn value_info(name: &str, elem_type: i32, shape: Option<proto::Shape>) -> proto::ValueInfo {
    proto::ValueInfo {
        name: name.to_owned(),
        r#type: Some(proto::Type {
            tensor_type: Some(proto::TensorType { elem_type, shape }),
        }),
    }
}

/// Encodes the initializers, and returns the folder that the paths of their files are relative to.
fn located(file: &OnnxFile) -> Result<(Vec<Vec<u8>>, std::path::PathBuf), Error> {
    let mut files: Vec<Arc<Path>> = Vec::new();
    let mut place_of: HashMap<&Path, usize> = HashMap::new();
    for initializer in &file.initializers {
        if let Data::At { file, .. } = &initializer.data {
            place_of.entry(file).or_insert_with(|| {
                files.push(file.clone());
                files.len() - 1
            });
        }
    }
    let (root, locations) = match files.is_empty() {
        // No path is written, so any folder will do.
        true => {
            let folder = file.path.parent().unwrap_or(Path::new(""));
            (folder.to_path_buf(), Vec::new())
        }
        false => locate(&files)?,
    };
    let message = |initializer: &Initializer| match &initializer.data {
        Data::Inline(bytes) => bytes.clone(),
        Data::At {
            file,
            offset,
            length,
        } => {
            let pair = |key: &str, value: String| proto::StringPair {
                key: key.to_owned(),
                value,
            };
            let mut external_data = vec![
                pair("location", locations[place_of[&**file]].clone()),
                pair("offset", offset.to_string()),
            ];
            external_data.extend(length.map(|length| pair("length", length.to_string())));
            let tensor = proto::Tensor {
                dims: initializer.dims.clone(),
                data_type: initializer.data_type,
                name: initializer.name.clone(),
                external_data,
                data_location: proto::DataLocation::External as i32,
                ..Default::default()
            };
            tensor.encode_to_vec()
        }
    };
    Ok((file.initializers.iter().map(message).collect(), root))
}

/// Encodes a node with other names for its inputs, also in its subgraphs, and for its outputs.
fn renamed_node(
    bytes: &[u8],
    inputs: &HashMap<String, String>,
    outputs: &HashMap<String, String>,
) -> Vec<u8> {
    if inputs.is_empty() && outputs.is_empty() {
        return bytes.to_vec();
    }
    changed(bytes, |number, inner| {
        let names = match number {
            1 => inputs,
            2 => outputs,
            // A copied node must not have the original's name.
            3 if !outputs.is_empty() => return Some(Vec::new()),
            5 => {
                return Some(changed(inner, |number, inner| {
                    // Rename within the attribute's graphs, in their nodes.
                    matches!(number, 6 | 11).then(|| {
                        changed(inner, |number, inner| {
                            (number == 1).then(|| renamed_node(inner, inputs, &HashMap::new()))
                        })
                    })
                }));
            }
            _ => return None,
        };
        let name = std::str::from_utf8(inner).ok()?;
        names.get(name).map(|name| name.as_bytes().to_vec())
    })
}

/// Copies a message, replacing the length-delimited fields for which `change` returns a value.
fn changed(bytes: &[u8], change: impl Fn(u64, &[u8]) -> Option<Vec<u8>>) -> Vec<u8> {
    let mut changed_message = Vec::with_capacity(bytes.len() + 64);
    let end = bytes.len() as u64;
    let mut wire = Wire::new(Cursor::new(bytes), 0);
    let mut rewrite = || -> std::io::Result<()> {
        while let Some(field) = wire.field(end)? {
            match field.value {
                Value::Bytes(length) => {
                    let inner = wire.bytes(length)?;
                    let inner = change(field.number, &inner).unwrap_or(inner);
                    put(&mut changed_message, field.number, &inner);
                }
                value => keep(&mut wire, field.number, value, &mut changed_message)?,
            }
        }
        Ok(())
    };
    rewrite().expect("the message was checked when the file was opened");
    changed_message
}
