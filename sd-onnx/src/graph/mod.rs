//! Writes ONNX graphs whose weights stay in the user's files or in memory.
//!
//! This module has one method per operator, and [`layers`] has one per layer. A [`Value`] is a
//! handle to a tensor of numbers, and a [`Dims`] is a handle to a vector of sizes. They are two
//! types so that they cannot be mixed up.

mod blocks;
mod dialect;
pub(crate) mod external;
mod int8;
mod layers;
pub(crate) mod live;
mod pictures;
pub(crate) mod proto;
pub(crate) mod sizes;
#[cfg(test)]
mod tests;
mod tokens;
mod windows;
mod wrap;

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
};

pub(crate) use blocks::BLOCKED;
use blocks::Blocks;
pub(crate) use dialect::{Dialect, Values};
use half::{bf16, f16};
pub(crate) use int8::{Int8, TAPS, Tap};
pub(crate) use layers::{Activation, Conv};
use ndarray::ArrayView2;
use prost::Message;
use sd_core::Seamless;
pub(crate) use tokens::Places;
pub(crate) use windows::Pairs;

use crate::{
    Error,
    network::Named,
    weights::{Form, Place, Scale, Spill, SpillFile, Type, Use, Weights},
};

/// The domain of ONNX Runtime's own operators, such as `FusedMatMul`, `MultiHeadAttention` and
/// `QuickGelu`.
const MICROSOFT: &str = "com.microsoft";

/// A tensor of numbers in a graph under construction. Its type is usually the dialect's type of
/// [numbers](Dialect::numbers).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Value(usize);

/// A 1-D i64 tensor in a graph under construction: the sizes for `Reshape` and `Resize`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dims(usize);

/// One dimension of a graph's input or output.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Dim {
    Fixed(usize),
    /// Any size. Dimensions of the same name have the same size, or ONNX Runtime may refuse a call.
    Any(&'static str),
    /// Any size, which is independent of all other dimensions.
    Free,
}

/// An ONNX model as bytes, with the location of its weights.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    pub bytes: Vec<u8>,
    /// The folder that contains the model's external data. Locations in the model are relative to
    /// it.
    pub weights_root: PathBuf,
    /// The external data in memory, by its location in the model. It is either empty or contains
    /// all external data. ONNX Runtime copies it when a session is created.
    pub memory: Vec<InMemory>,
    /// Whether some weights have scales, which ONNX Runtime must multiply them by when it loads the
    /// model.
    pub has_scales: bool,
    /// Whether another tool wrote the graph.
    pub exported: bool,
    /// A temporary file with external data. It must exist until ONNX Runtime has mapped it.
    #[expect(dead_code, reason = "dropping this field deletes the file")]
    pub spill: Option<Arc<SpillFile>>,
    /// The number of operators.
    pub nodes: usize,
    /// What the output [`TAPS`] consists of. Empty if there is no such output.
    pub taps: Vec<Tap>,
}

impl Model {
    /// Returns the model with the sizes of all `inputs` written into it. Errors call the model
    /// `name`.
    ///
    /// # Errors
    /// [`Error::Onnx`] when the bytes are not a valid ONNX model.
    pub fn fixed(mut self, name: &str, inputs: &[Named<'_>]) -> Result<Self, Error> {
        let shapes: Vec<_> = inputs
            .iter()
            .map(|(name, input)| (*name, input.shape()))
            .collect();
        self.bytes = sizes::fixed(&self.bytes, &shapes).map_err(|error| {
            let stage = format!("writing the input sizes into the {name}");
            Error::onnx(stage)(ort::Error::new(error.to_string()))
        })?;
        Ok(self)
    }
}

/// A location in a model, with the bytes at that location.
pub(crate) type InMemory = (String, Arc<[u8]>);

/// A graph under construction, over the weights of one or several components.
pub(crate) struct Graph<'w> {
    /// The weights that tensor names currently refer to.
    weights: &'w Weights,
    /// The prefix of the initializers' names for these weights.
    prefix: String,
    dialect: Dialect,
    graph: proto::Graph,
    /// The name of each value.
    names: Vec<String>,
    /// The tensors that are already in the graph, by their weights and their name, with their type
    /// in the graph.
    stored: HashMap<(*const Weights, String), (Value, proto::DataType)>,
    /// For each stored tensor that [`weight`](Self::weight) has returned, its value in the
    /// dialect's numbers.
    casts: HashMap<Value, Value>,
    /// The initializers whose data is a stored tensor.
    external: Vec<External>,
    has_scales: bool,
    /// The temporary file for weights that the provider needs in another form.
    spill: Option<Spill<'w>>,
    blocks: Blocks,
    taps: int8::Taps,
    /// The axes along which convolutions continue at the opposite edge.
    seamless: Seamless,
}

/// The largest total size of in-memory weights that are written into the graph itself: 256 MiB.
/// ONNX limits a graph to 2 GiB, and ONNX Runtime copies the graph twice.
const MOST_WITHIN: usize = 256 << 20;

/// An initializer whose data is a stored tensor.
struct External {
    /// The index in the graph's list of initializers.
    initializer: usize,
    place: Place,
    /// The file's path as the user knows it, for errors.
    file: Arc<Path>,
}

impl<'w> Graph<'w> {
    /// Creates an empty graph over `weights`, in the form that a provider needs. Initializers have
    /// the names of their tensors.
    pub fn new(name: &str, weights: &'w Weights, dialect: Dialect) -> Self {
        let graph = proto::Graph {
            name: name.to_owned(),
            ..Default::default()
        };
        Self {
            weights,
            prefix: String::new(),
            dialect,
            graph,
            names: Vec::new(),
            stored: HashMap::new(),
            casts: HashMap::new(),
            external: Vec::new(),
            has_scales: false,
            spill: None,
            blocks: Blocks::default(),
            taps: Vec::new(),
            seamless: Seamless::NONE,
        }
    }

    /// Returns the form in which the graph is written.
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// Writes a part of the graph over the weights of another component. Within `write`, tensor
    /// names refer to `weights`. Their initializers are called `set/name`, so each component needs
    /// a different `set`.
    pub fn over<T>(
        &mut self,
        set: &str,
        weights: &'w Weights,
        write: impl FnOnce(&mut Self) -> T,
    ) -> T {
        let outer = std::mem::replace(&mut self.weights, weights);
        let prefix = std::mem::replace(&mut self.prefix, format!("{set}/"));
        let written = write(self);
        (self.weights, self.prefix) = (outer, prefix);
        written
    }

    /// Removes the operators that no output needs, and the inputs that no operator reads.
    /// OpenVINO's provider of ONNX Runtime 1.24 returns NaN for a graph with an unread input.
    pub fn prune(&mut self) {
        let outputs = self.graph.output.iter().map(|output| output.name.clone());
        let mut needed: HashSet<String> = outputs.collect();
        // An operator comes after those whose results it reads.
        let mut nodes = std::mem::take(&mut self.graph.node);
        nodes.reverse();
        nodes.retain(|node| {
            let is_needed = node.output.iter().any(|output| needed.contains(output));
            if is_needed {
                needed.extend(node.input.iter().cloned());
            }
            is_needed
        });
        nodes.reverse();
        self.graph.node = nodes;
        let inputs = &mut self.graph.input;
        inputs.retain(|input| needed.contains(&input.name));
    }

    /// Returns the finished model.
    ///
    /// # Errors
    /// - [`Error::Io`] when the path of a weight file cannot be written into a graph: it is not
    ///   valid UTF-8, or the files are on different drives.
    /// - [`Error::Io`] or [`Error::TensorValues`] when weights cannot be read, or cannot be written
    ///   in another form.
    pub fn finish(self) -> Result<Model, Error> {
        self.finish_with(MOST_WITHIN)
    }

    /// Returns the finished model. Weights in memory are written into the graph if they have at
    /// most `most_within` bytes in total.
    fn finish_with(mut self, most_within: usize) -> Result<Model, Error> {
        let taps = self.write_taps();
        // Before the rest, because bytes of this file may be read below.
        let spill = self.spill.take().map(Spill::fill).transpose()?;
        let stored = std::mem::take(&mut self.external);
        let in_memory = stored.iter().filter_map(|of| match &of.place {
            Place::Memory(bytes) => Some(bytes.len()),
            Place::File { .. } => None,
        });
        let (weights_root, memory) = match in_memory.sum::<usize>() <= most_within {
            true => (self.write_external(stored)?, Vec::new()),
            false => (PathBuf::new(), self.write_beside(stored)?),
        };
        let opset = |domain: &str, version| proto::OperatorSet {
            domain: domain.to_owned(),
            version,
        };
        let nodes = self.graph.node.len();
        let mut opset_import = vec![opset("", self.dialect.operator_set()), opset(MICROSOFT, 1)];
        opset_import.extend(self.dialect.channel_block.map(|_| opset(BLOCKED, 1)));
        let model = proto::Model {
            ir_version: 9,
            producer_name: "sd-onnx".to_owned(),
            graph: Some(self.graph),
            opset_import,
        };
        Ok(Model {
            bytes: model.encode_to_vec(),
            weights_root,
            memory,
            has_scales: self.has_scales,
            exported: false,
            spill: spill.map(Arc::new),
            nodes,
            taps,
        })
    }

    /// Writes the locations of the tensors in files, and the bytes of the others, into the graph.
    /// Returns the folder that the locations are relative to.
    fn write_external(&mut self, stored: Vec<External>) -> Result<PathBuf, Error> {
        let mut files = Vec::new();
        let mut locations = Vec::new();
        for of in stored {
            let index = of.initializer;
            match of.place {
                Place::Memory(bytes) => self.graph.initializer[index].raw_data = bytes.to_vec(),
                Place::File {
                    path,
                    offset,
                    length,
                } => {
                    locations.push((index, offset, length));
                    files.push(path);
                }
            }
        }
        let (root, names) = external::locate(&files)?;
        for ((index, offset, length), name) in locations.into_iter().zip(names) {
            set_external(&mut self.graph.initializer[index], name, offset, length);
        }
        Ok(root)
    }

    /// Gives the bytes of every tensor a name, and returns them by name. Tensors in files are read
    /// into memory, because ONNX Runtime takes external data from files or from memory, but not
    /// from both.
    fn write_beside(&mut self, stored: Vec<External>) -> Result<Vec<InMemory>, Error> {
        let mut memory = Vec::with_capacity(stored.len());
        for of in stored {
            let bytes = of.place.bytes(&of.file)?;
            let name = format!("memory-{}", of.initializer);
            let initializer = &mut self.graph.initializer[of.initializer];
            set_external(initializer, name.clone(), 0, bytes.len() as u64);
            memory.push((name, bytes));
        }
        Ok(memory)
    }

    /// Adds an f32 input, and returns it in the dialect's numbers.
    pub fn input(&mut self, name: &str, dims: &[Dim]) -> Value {
        let input = self.typed_input(name, proto::DataType::Float, dims);
        self.converted(input, proto::DataType::Float)
    }

    fn typed_input(&mut self, name: &str, data_type: proto::DataType, dims: &[Dim]) -> Value {
        self.graph.input.push(value_info(name, data_type, dims));
        Value(self.named(name.to_owned()))
    }

    /// Returns the rows of a table that a new i64 input called `input`, of shape `dims`, selects by
    /// index. The table is the stored tensor `name` `[rows, width]`, followed by the rows of `more`
    /// `[any, width]`, if there are any.
    ///
    /// The stored tensor is placed like any other weight. Only the selected rows are converted to
    /// the dialect's numbers, except that an 8-bit tensor is converted as a whole.
    pub fn embedding(
        &mut self,
        name: &str,
        [rows, width]: [usize; 2],
        more: ArrayView2<'_, f32>,
        input: &str,
        dims: &[Dim],
    ) -> Result<Value, Error> {
        let ids = self.typed_input(input, proto::DataType::Int64, dims);
        if more.is_empty() {
            return self.picked(name, [rows, width], ids);
        }
        // Joining both tables would copy the stored one. Instead, each index selects a row from
        // both tables, and `Where` keeps one of the two.
        let [zero, last, end] = [0, rows as i64 - 1, rows as i64].map(|n| Value(self.dims(&[n]).0));
        let within = self.op("Min", &[ids, last], []);
        let stored = self.picked(name, [rows, width], within)?;
        let beyond = self.op("Sub", &[ids, end], []);
        let beyond = self.op("Max", &[beyond, zero], []);
        let values: Vec<f32> = more.iter().copied().collect();
        let table = self.constant(&values, &[more.nrows(), width]);
        let own = self.op("Gather", &[table, beyond], [int("axis", 0)]);
        let is_stored = self.op("Less", &[ids, end], []);
        let axis = Value(self.dims(&[-1]).0);
        let is_stored = self.op("Unsqueeze", &[is_stored, axis], []);
        Ok(self.op("Where", &[is_stored, stored, own], []))
    }

    /// Returns one row of each text of `x` `[batch, length, width]`, as `[batch, width]`. A new i64
    /// input called `input`, of shape `[batch, 1]`, has the indices of the rows.
    pub fn row_of_each(&mut self, x: Value, input: &str) -> Value {
        let dims = [Dim::Any("batch"), Dim::Fixed(1)];
        let rows = self.typed_input(input, proto::DataType::Int64, &dims);
        self.op("GatherND", &[x, rows], [int("batch_dims", 1)])
    }

    /// Returns the first row of each batch item of `x` `[batch, length, width]`, as
    /// `[batch, width]`.
    pub fn first_row_of_each(&mut self, x: Value) -> Value {
        let first = 0_i64.to_le_bytes().to_vec();
        let first = Value(self.initializer(proto::DataType::Int64, &[], first));
        self.op("Gather", &[x, first], [int("axis", 1)])
    }

    /// Repeats the vector `x` `[width]` as `[batch, 1, width]`, or the rows `x` `[1, rows, width]`
    /// as `[batch, rows, width]`, for the batch size of `like`.
    pub fn row_for_each(&mut self, x: Value, like: Value) -> Value {
        let batch = self.op("Shape", &[like], [int("start", 0), int("end", 1)]);
        let ones = Value(self.dims(&[1, 1]).0);
        let shape = self.concat(&[batch, ones], 0);
        self.op("Expand", &[x, shape], [])
    }

    /// Returns rows of the stored table `name`, in the dialect's numbers.
    fn picked(&mut self, name: &str, shape: [usize; 2], ids: Value) -> Result<Value, Error> {
        if self.weights.tensor(name, &shape)?.dtype.is_f8() {
            // ONNX's `Gather` does not accept 8-bit types.
            let table = self.weight(name, &shape)?;
            return Ok(self.op("Gather", &[table, ids], [int("axis", 0)]));
        }
        let (table, data_type) = self.stored(name, &shape)?;
        let picked = self.op("Gather", &[table, ids], [int("axis", 0)]);
        Ok(self.converted(picked, data_type))
    }

    /// Makes `value` an f32 output called `name`.
    pub fn output(&mut self, name: &str, value: Value, dims: &[Dim]) {
        let (op, attributes) = match self.dialect.numbers() {
            proto::DataType::Float => ("Identity", vec![]),
            _ => ("Cast", vec![int("to", proto::DataType::Float as i64)]),
        };
        let outputs = vec![name.to_owned()];
        let node = self.node(op, "", &[Some(value.0)], outputs, attributes);
        self.graph.node.push(node);
        self.graph
            .output
            .push(value_info(name, proto::DataType::Float, dims));
    }

    /// Returns the weight `name` in the dialect's numbers. A weight of another type gets a `Cast`,
    /// which the provider folds.
    ///
    /// # Errors
    /// - [`Error::MissingTensor`] when there is no such weight.
    /// - [`Error::TensorShape`] when its shape is not `shape`.
    /// - [`Error::TensorType`] when its type cannot be used for weights.
    /// - [`Error::Io`] or [`Error::TensorValues`] when it must be decoded and cannot be, or when
    ///   the temporary file for weights cannot be created.
    pub fn weight(&mut self, name: &str, shape: &[usize]) -> Result<Value, Error> {
        let (value, data_type) = self.stored(name, shape)?;
        if let Some(&cast) = self.casts.get(&value) {
            return Ok(cast);
        }
        let cast = self.converted(value, data_type);
        self.casts.insert(value, cast);
        Ok(cast)
    }

    /// Returns `value`, which has the type `from`, in the dialect's numbers.
    fn converted(&mut self, value: Value, from: proto::DataType) -> Value {
        match self.dialect.numbers() {
            numbers if numbers == from => value,
            numbers => self.op("Cast", &[value], [int("to", numbers as i64)]),
        }
    }

    /// Returns a constant in the dialect's numbers.
    pub fn constant(&mut self, values: &[f32], shape: &[usize]) -> Value {
        let numbers = self.dialect.numbers();
        let raw = match numbers {
            proto::DataType::BFloat16 => {
                let values = values.iter().map(|&value| bf16::from_f32(value));
                values.flat_map(bf16::to_le_bytes).collect()
            }
            proto::DataType::Float16 => {
                let values = values.iter().map(|&value| f16::from_f32(value));
                values.flat_map(f16::to_le_bytes).collect()
            }
            _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        };
        Value(self.initializer(numbers, shape, raw))
    }

    /// Returns an f32 constant, whatever the dialect's numbers are.
    fn f32s(&mut self, values: &[f32], shape: &[usize]) -> Value {
        let raw = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Value(self.initializer(proto::DataType::Float, shape, raw))
    }

    /// Returns a constant list of sizes. For `Reshape`, 0 keeps a dimension and -1 stands for the
    /// remaining size.
    pub fn dims(&mut self, sizes: &[i64]) -> Dims {
        let raw = sizes.iter().flat_map(|v| v.to_le_bytes()).collect();
        Dims(self.initializer(proto::DataType::Int64, &[sizes.len()], raw))
    }

    /// Returns the shape of `x`.
    pub fn shape(&mut self, x: Value) -> Dims {
        Dims(self.op("Shape", &[x], []).0)
    }

    pub fn add(&mut self, a: Value, b: Value) -> Value {
        if let Some(sum) = self.blocked_add(a, b) {
            return sum;
        }
        self.op("Add", &[a, b], [])
    }

    pub fn mul(&mut self, a: Value, b: Value) -> Value {
        self.op("Mul", &[a, b], [])
    }

    /// Returns the logistic function of `x`.
    pub fn sigmoid(&mut self, x: Value) -> Value {
        self.op("Sigmoid", &[x], [])
    }

    /// Returns the mean of each channel of the image `x`, as an image of one pixel.
    pub fn mean_of_channels(&mut self, x: Value) -> Value {
        self.op("GlobalAveragePool", &[x], [])
    }

    pub fn relu(&mut self, x: Value) -> Value {
        self.op("Relu", &[x], [])
    }

    /// Returns x where it is positive, and `slope · x` elsewhere.
    pub fn leaky_relu(&mut self, x: Value, slope: f32) -> Value {
        self.op("LeakyRelu", &[x], [float("alpha", slope)])
    }

    /// Returns x where it is positive, and x times `slopes` elsewhere.
    pub fn prelu(&mut self, x: Value, slopes: Value) -> Value {
        self.op("PRelu", &[x, slopes], [])
    }

    pub fn tanh(&mut self, x: Value) -> Value {
        self.op("Tanh", &[x], [])
    }

    pub fn sin(&mut self, x: Value) -> Value {
        self.op("Sin", &[x], [])
    }

    pub fn cos(&mut self, x: Value) -> Value {
        self.op("Cos", &[x], [])
    }

    pub fn concat(&mut self, values: &[Value], axis: i64) -> Value {
        self.op("Concat", values, [int("axis", axis)])
    }

    /// Returns the two halves of `x` along the last axis.
    pub fn halves(&mut self, x: Value) -> [Value; 2] {
        self.parts(x, -1)
    }

    /// Returns `N` parts of equal size of `x` along an axis.
    pub fn parts<const N: usize>(&mut self, x: Value, axis: i64) -> [Value; N] {
        let parts = [(); N].map(|()| self.fresh());
        let outputs = parts.iter().map(|&v| self.name(v)).collect();
        let node = self.node(
            "Split",
            "",
            &[Some(x.0)],
            outputs,
            vec![int("axis", axis), int("num_outputs", N as i64)],
        );
        self.graph.node.push(node);
        parts.map(Value)
    }

    pub fn transpose(&mut self, x: Value, order: &[i64]) -> Value {
        self.op("Transpose", &[x], [ints("perm", order)])
    }

    pub fn reshape(&mut self, x: Value, dims: Dims) -> Value {
        self.op("Reshape", &[x, Value(dims.0)], [])
    }

    /// Returns the first rows of the table `x`: as many as `like` `[batch, length, width]` is long.
    pub fn first_rows(&mut self, x: Value, like: Value) -> Value {
        let start = self.dims(&[0]);
        let length = self.op("Shape", &[like], [int("start", 1), int("end", 2)]);
        self.op("Slice", &[x, Value(start.0), length], [])
    }

    /// Doubles the last two axes of `x` by nearest-neighbour scaling.
    pub fn upsample(&mut self, x: Value) -> Value {
        self.upsample_by(x, 2)
    }

    /// Repeats each element of the last two axes of `x` `factor` times along both.
    pub fn upsample_by(&mut self, x: Value, factor: usize) -> Value {
        let factor = factor as f32;
        let scales = self.f32s(&[1.0, 1.0, factor, factor], &[4]);
        self.resize([Some(x.0), None, Some(scales.0), None])
    }

    /// Turns `[batch, c·factor², h, w]` into `[batch, c, h·factor, w·factor]`, as torch's
    /// `pixel_shuffle` does.
    pub fn pixel_shuffle(&mut self, x: Value, factor: usize) -> Value {
        let attributes = [int("blocksize", factor as i64), text("mode", "CRD")];
        self.op("DepthToSpace", &[x], attributes)
    }

    /// Scales `x` to the height and width of `like` by nearest neighbour, as
    /// `torch.nn.functional.interpolate` does.
    pub fn upsample_to(&mut self, x: Value, like: Value) -> Value {
        let shape_part = |graph: &mut Self, of: Value, start: i64, end: i64| {
            graph.op("Shape", &[of], [int("start", start), int("end", end)])
        };
        let kept = shape_part(self, x, 0, 2);
        let sides = shape_part(self, like, 2, 4);
        let sizes = self.concat(&[kept, sides], 0);
        self.resize([Some(x.0), None, None, Some(sizes.0)])
    }

    /// Normalises each channel of each batch item of `x` `[batch, channels, …]` to mean 0 and
    /// variance 1. `eps` is added to the variance.
    pub fn instance_norm(&mut self, x: Value, channels: usize, eps: f32) -> Value {
        let scale = self.constant(&vec![1.0; channels], &[channels]);
        let bias = self.constant(&vec![0.0; channels], &[channels]);
        self.op(
            "InstanceNormalization",
            &[x, scale, bias],
            [float("epsilon", eps)],
        )
    }

    /// Returns `x·sigmoid(alpha·x)`. This is SiLU for `alpha` = 1 and CLIP's "quick" GELU for
    /// `alpha` = 1.702.
    pub fn sigmoid_gate(&mut self, x: Value, alpha: f32) -> Value {
        if self.dialect.values != Values::Bf16 {
            return self.microsoft("QuickGelu", &[Some(x.0)], [float("alpha", alpha)]);
        }
        // OpenVINO accepts `QuickGelu` in f32 only. It fuses the operators below into one.
        let scaled = match alpha {
            1.0 => x,
            alpha => {
                let alpha = self.constant(&[alpha], &[1]);
                self.mul(x, alpha)
            }
        };
        let gate = self.op("Sigmoid", &[scaled], []);
        self.mul(x, gate)
    }

    /// Returns the exact GELU, which uses the error function.
    pub fn gelu(&mut self, x: Value) -> Value {
        self.op("Gelu", &[x], [])
    }

    /// Returns `x · weightᵀ`. `weight` is `[out, in]`, as PyTorch stores it.
    pub fn matmul_transposed(&mut self, x: Value, weight: Value) -> Value {
        if self.dialect.values == Values::Bf16 {
            // OpenVINO fuses this transposition into the product. It would transpose the weight of
            // a `FusedMatMul` beforehand, and keep the result as a copy.
            let weight = self.transpose(weight, &[1, 0]);
            return self.op("MatMul", &[x, weight], []);
        }
        let inputs = [Some(x.0), Some(weight.0)];
        self.microsoft("FusedMatMul", &inputs, [int("transB", 1)])
    }

    /// Returns softmax(q·kᵀ / √(width / heads))·v, the attention over `heads` heads.
    ///
    /// The result is `[batch, length, width]`. If `causal`, a position does not attend to later
    /// ones.
    pub fn attention(
        &mut self,
        [q, k, v]: [Value; 3],
        [width, heads]: [usize; 2],
        causal: bool,
    ) -> Value {
        if self.dialect.plain_attention && !causal {
            return self.plain_attention([q, k, v], [width, heads]);
        }
        let attributes = [
            int("num_heads", heads as i64),
            int("unidirectional", causal as i64),
        ];
        self.microsoft(
            "MultiHeadAttention",
            &[Some(q.0), Some(k.0), Some(v.0)],
            attributes,
        )
    }

    /// Writes attention in ONNX's own operators.
    fn plain_attention(&mut self, [q, k, v]: [Value; 3], [width, heads]: [usize; 2]) -> Value {
        let split = self.dims(&[0, 0, heads as i64, -1]);
        let mut in_heads = |x, order: &[i64]| {
            let x = self.reshape(x, split);
            self.transpose(x, order)
        };
        let q = in_heads(q, &[0, 2, 1, 3]);
        let k = in_heads(k, &[0, 2, 3, 1]);
        let v = in_heads(v, &[0, 2, 1, 3]);
        let scale = self.constant(&[((width / heads) as f32).sqrt().recip()], &[1]);
        let scores = self.op("MatMul", &[q, k], []);
        let scores = self.mul(scores, scale);
        let shares = self.op("Softmax", &[scores], [int("axis", -1)]);
        let attended = self.op("MatMul", &[shares, v], []);
        let attended = self.transpose(attended, &[0, 2, 1, 3]);
        let joined = self.dims(&[0, 0, -1]);
        self.reshape(attended, joined)
    }

    fn conv(&mut self, x: Value, weight: Value, bias: Option<Value>, conv: Conv) -> Value {
        let (x, pads) = self.continued(x, conv);
        let inputs = [x, weight].into_iter().chain(bias);
        let inputs: Vec<_> = inputs.map(|value| Some(value.0)).collect();
        self.push("Conv", "", &inputs, conv.attributes(pads))
    }

    fn layer_norm_op(&mut self, x: Value, scale: Value, bias: Value, eps: f32) -> Value {
        self.op(
            "LayerNormalization",
            &[x, scale, bias],
            [int("axis", -1), float("epsilon", eps)],
        )
    }

    fn resize(&mut self, inputs: [Option<usize>; 4]) -> Value {
        let output = self.fresh();
        let attributes = vec![
            text("mode", "nearest"),
            text("coordinate_transformation_mode", "asymmetric"),
            text("nearest_mode", "floor"),
        ];
        let node = self.node("Resize", "", &inputs, vec![self.name(output)], attributes);
        self.graph.node.push(node);
        Value(output)
    }

    /// Returns the stored tensor `name`, which must have this shape, as an initializer, and its
    /// type in the graph. A tensor in a file stays there, unless the dialect wants another type or
    /// ONNX Runtime cannot read the stored type.
    fn stored(&mut self, name: &str, shape: &[usize]) -> Result<(Value, proto::DataType), Error> {
        let weights = self.weights;
        let tensor = weights.tensor(name, shape)?;
        let key = (std::ptr::from_ref(self.weights), name.to_owned());
        if let Some(&known) = self.stored.get(&key) {
            return Ok(known);
        }
        // Weights with LoRAs merged into them are in memory.
        let in_memory = matches!(tensor.place, Place::Memory(_));
        // A spilled weight is multiplied by its scale when it is written.
        let form = match self.dialect.channel_block {
            // The filters are spilled too. ONNX Runtime takes weights from files or from memory,
            // not from both.
            Some(_) if tensor.dtype.usage() == Use::Widened || in_memory => Some(Form::F32),
            _ => self.dialect.weights(),
        };
        let read = match form {
            Some(Form::Bf16) => Type::BF16,
            Some(Form::F16) => Type::F16,
            Some(Form::F32 | Form::Filters { .. }) => Type::F32,
            None => tensor.dtype,
        };
        let is_other = tensor.dtype != read || tensor.scale.is_some();
        let form = form.filter(|_| is_other || in_memory);
        let scale = tensor.scale.as_ref().filter(|_| form.is_none());
        let (place, dtype) = match (form, tensor.dtype.usage()) {
            (Some(form), _) => (self.spill()?.add(tensor, form), read),
            (None, Use::Widened) => (Place::Memory(tensor.source().widened()?), Type::F32),
            (None, _) => (tensor.place.clone(), tensor.dtype),
        };
        let value = self.named(format!("{}{name}", self.prefix));
        let mut dims = shape.to_vec();
        if tensor.transposed {
            dims.reverse();
        }
        let mut data_type = data_type(dtype);
        let mut value = Value(value);
        self.stored_at(value, &dims, data_type, place, &tensor.file);
        if let Some(scale) = scale {
            value = self.scaled(value, scale);
            data_type = proto::DataType::Float;
        }
        if tensor.transposed {
            // ONNX Runtime folds the `Transpose`. The cost shows only for large matrices.
            value = self.transpose(value, &[1, 0]);
        }
        let stored = (value, data_type);
        self.stored.insert(key, stored);
        Ok(stored)
    }

    /// Adds an initializer for `value`, whose data is at `place`. Errors name `file`.
    fn stored_at(
        &mut self,
        value: Value,
        shape: &[usize],
        data_type: proto::DataType,
        place: Place,
        file: &Arc<Path>,
    ) {
        let initializer = proto::Tensor {
            dims: shape.iter().map(|&d| d as i64).collect(),
            data_type: data_type as i32,
            name: self.name(value.0),
            ..Default::default()
        };
        self.external.push(External {
            initializer: self.graph.initializer.len(),
            place,
            file: file.clone(),
        });
        self.graph.initializer.push(initializer);
    }

    /// Returns the temporary file for weights in another form, and creates it when it is first
    /// needed.
    fn spill(&mut self) -> Result<&mut Spill<'w>, Error> {
        match &mut self.spill {
            Some(spill) => Ok(spill),
            none => Ok(none.insert(Spill::create()?)),
        }
    }

    /// Returns the 8-bit tensor `x` times its scale, as f32. This is one operator, because with a
    /// `Cast` and a `Mul` ONNX Runtime would keep both results until all weights are folded.
    fn scaled(&mut self, x: Value, scale: &Scale) -> Value {
        self.has_scales = true;
        let scale = match scale {
            Scale::All(scale) => self.f32s(&[*scale], &[]),
            Scale::Rows(scales) => self.f32s(scales, &[scales.len()]),
        };
        self.op("DequantizeLinear", &[x, scale], [int("axis", 0)])
    }

    fn initializer(
        &mut self,
        data_type: proto::DataType,
        shape: &[usize],
        raw_data: Vec<u8>,
    ) -> usize {
        let value = self.fresh();
        self.graph.initializer.push(proto::Tensor {
            dims: shape.iter().map(|&d| d as i64).collect(),
            data_type: data_type as i32,
            name: self.name(value),
            raw_data,
            ..Default::default()
        });
        value
    }

    fn op<const N: usize>(
        &mut self,
        op: &str,
        inputs: &[Value],
        attributes: [proto::Attribute; N],
    ) -> Value {
        let inputs: Vec<_> = inputs.iter().map(|v| Some(v.0)).collect();
        self.push(op, "", &inputs, attributes.into())
    }

    fn microsoft<const N: usize>(
        &mut self,
        op: &str,
        inputs: &[Option<usize>],
        attributes: [proto::Attribute; N],
    ) -> Value {
        self.push(op, MICROSOFT, inputs, attributes.into())
    }

    fn push(
        &mut self,
        op: &str,
        domain: &str,
        inputs: &[Option<usize>],
        attributes: Vec<proto::Attribute>,
    ) -> Value {
        let output = self.fresh();
        let node = self.node(op, domain, inputs, vec![self.name(output)], attributes);
        self.graph.node.push(node);
        Value(output)
    }

    /// Returns a node. Inputs that exist only in blocked form are written before it.
    fn node(
        &mut self,
        op: &str,
        domain: &str,
        inputs: &[Option<usize>],
        output: Vec<String>,
        attribute: Vec<proto::Attribute>,
    ) -> proto::Node {
        for &input in inputs.iter().flatten() {
            self.settle(Value(input));
        }
        let name = |input: &Option<usize>| input.map_or_else(String::new, |value| self.name(value));
        proto::Node {
            input: inputs.iter().map(name).collect(),
            output,
            name: format!("{op}_{}", self.graph.node.len()),
            op_type: op.to_owned(),
            attribute,
            domain: domain.to_owned(),
        }
    }

    /// Adds a value with this name: an input or a stored tensor.
    fn named(&mut self, name: String) -> usize {
        self.names.push(name);
        self.names.len() - 1
    }

    /// Adds a value with a generated name.
    fn fresh(&mut self) -> usize {
        self.named(format!("v{}", self.names.len()))
    }

    fn name(&self, value: usize) -> String {
        self.names[value].clone()
    }
}

fn pair(key: &str, value: String) -> proto::StringPair {
    proto::StringPair {
        key: key.to_owned(),
        value,
    }
}

/// Sets the location of an initializer's data outside of the graph. `offset` and `length` are in
/// bytes.
fn set_external(initializer: &mut proto::Tensor, location: String, offset: u64, length: u64) {
    initializer.data_location = proto::DataLocation::External as i32;
    initializer.external_data = vec![
        pair("location", location),
        pair("offset", offset.to_string()),
        pair("length", length.to_string()),
    ];
}

fn value_info(name: &str, data_type: proto::DataType, dims: &[Dim]) -> proto::ValueInfo {
    let dimension = |dim: &Dim| proto::Dimension {
        size: match *dim {
            Dim::Fixed(size) => Some(proto::DimensionSize::Value(size as i64)),
            Dim::Any(name) => Some(proto::DimensionSize::Parameter(name.to_owned())),
            Dim::Free => None,
        },
    };
    let shape = proto::Shape {
        dim: dims.iter().map(dimension).collect(),
    };
    let tensor = proto::TensorType {
        elem_type: data_type as i32,
        shape: Some(shape),
    };
    proto::ValueInfo {
        name: name.to_owned(),
        r#type: Some(proto::Type {
            tensor_type: Some(tensor),
        }),
    }
}

/// Returns the ONNX type of a tensor type that ONNX Runtime reads in place.
fn data_type(dtype: Type) -> proto::DataType {
    match dtype {
        Type::F64 => proto::DataType::Double,
        Type::F16 => proto::DataType::Float16,
        Type::BF16 => proto::DataType::BFloat16,
        Type::F8_E4M3 => proto::DataType::Float8E4M3Fn,
        Type::F8_E5M2 => proto::DataType::Float8E5M2,
        _ => proto::DataType::Float,
    }
}

fn attribute(name: &str, kind: proto::AttributeType) -> proto::Attribute {
    proto::Attribute {
        name: name.to_owned(),
        r#type: kind as i32,
        ..Default::default()
    }
}

fn int(name: &str, i: i64) -> proto::Attribute {
    proto::Attribute {
        i,
        ..attribute(name, proto::AttributeType::Int)
    }
}

fn ints(name: &str, values: &[i64]) -> proto::Attribute {
    proto::Attribute {
        ints: values.to_vec(),
        ..attribute(name, proto::AttributeType::Ints)
    }
}

fn float(name: &str, f: f32) -> proto::Attribute {
    proto::Attribute {
        f,
        ..attribute(name, proto::AttributeType::Float)
    }
}

fn text(name: &str, s: &str) -> proto::Attribute {
    proto::Attribute {
        s: s.as_bytes().to_vec(),
        ..attribute(name, proto::AttributeType::String)
    }
}
