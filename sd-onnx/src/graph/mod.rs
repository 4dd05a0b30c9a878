//! A small writer of ONNX graphs whose weights stay in the user's own files, or in memory.
//!
//! One method per operator here, one per layer in [`layers`]. A [`Value`] is a handle to an f32 tensor in the graph, a
//! [`Dims`] one to a vector of sizes, so the two cannot be mixed up.

mod blocks;
mod dialect;
pub(crate) mod external;
mod layers;
pub(crate) mod proto;
pub(crate) mod sizes;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
};

pub(crate) use blocks::BLOCKED;
use blocks::Blocks;
pub(crate) use dialect::Dialect;
use half::bf16;
pub(crate) use layers::{Activation, Conv};
use ndarray::ArrayView2;
use prost::Message;

use crate::{
    Error,
    network::Named,
    weights::{Form, Place, Scale, Spill, SpillFile, Type, Use, Weights},
};

/// ONNX Runtime's own operators: `FusedMatMul`, `MultiHeadAttention`, `QuickGelu`.
const MICROSOFT: &str = "com.microsoft";

/// A tensor of numbers in a graph under construction: f32 or what else the dialect computes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Value(usize);

/// A 1-D tensor of i64 in a graph under construction: sizes for `Reshape` and `Resize`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dims(usize);

/// A size of a graph's input or output.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Dim {
    Fixed(usize),
    /// Any size; equal names do not have to be equal sizes.
    Any(&'static str),
}

/// An ONNX model as bytes, and where its weights are.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    pub bytes: Vec<u8>,
    /// The folder that the model's external data is relative to.
    pub weights_root: PathBuf,
    /// External data that is in memory, by its location in the model: none of it or all of it.
    /// ONNX Runtime copies it when it makes a session.
    pub memory: Vec<InMemory>,
    /// Whether weights have scales, which ONNX Runtime must multiply them with as it loads.
    pub has_scales: bool,
    /// A file that external data lies in, which must be there until ONNX Runtime has mapped it.
    #[expect(dead_code, reason = "dropping it removes the file")]
    pub spill: Option<Arc<SpillFile>>,
    /// The number of its operators.
    pub nodes: usize,
}

impl Model {
    /// The model with the sizes of all `inputs` written into it.
    pub fn fixed(mut self, name: &str, inputs: &[Named<'_>]) -> Result<Self, Error> {
        let shapes: Vec<_> = inputs
            .iter()
            .map(|(name, input)| (*name, input.shape()))
            .collect();
        self.bytes = sizes::fixed(&self.bytes, &shapes).map_err(|error| {
            let stage = format!("writing sizes into the {name}");
            Error::onnx(stage)(ort::Error::new(error.to_string()))
        })?;
        Ok(self)
    }
}

/// A location in a model, and the bytes that are there.
pub(crate) type InMemory = (String, Arc<[u8]>);

/// A graph under construction over one or several components' weights.
pub(crate) struct Graph<'w> {
    /// What names of tensors are looked up in at present.
    weights: &'w Weights,
    /// What the initializers of these weights are called before their tensors' names.
    prefix: String,
    dialect: Dialect,
    graph: proto::Graph,
    /// The name of each value.
    names: Vec<String>,
    /// The tensors that have been asked for, by their set of weights and their name, with the type
    /// that they are stored in.
    stored: HashMap<(*const Weights, String), (Value, proto::DataType)>,
    /// What they are cast to.
    casts: HashMap<Value, Value>,
    /// The initializers that are stored tensors.
    external: Vec<External>,
    has_scales: bool,
    /// Weights that the provider needs in another form.
    spill: Option<Spill<'w>>,
    blocks: Blocks,
}

/// The most bytes of weights from memory that are written into the graph itself. ONNX limits a
/// graph to 2 GiB, and ONNX Runtime copies it twice.
const MOST_WITHIN: usize = 256 << 20;

/// An initializer that is a stored tensor.
struct External {
    /// Which one.
    initializer: usize,
    place: Place,
    /// The file as the user has it, for errors.
    file: Arc<Path>,
}

impl<'w> Graph<'w> {
    /// An empty graph over `weights`, in the form that a provider wants. The initializers bear the
    /// names of their tensors.
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
        }
    }

    /// The form that the graph is written in.
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// Writes a part of the graph over another component's weights: within `write`, names of
    /// tensors are looked up in `weights`. Their initializers are called `set/name`; each component
    /// needs a `set` that no other one has.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "for a ControlNet beside a UNet")
    )]
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

    /// The finished model.
    ///
    /// # Errors
    /// - [`Error::Io`] when the path of a weight file cannot be written into a graph.
    /// - [`Error::Io`] or [`Error::TensorValues`] when weights in another form cannot be read or
    ///   written.
    pub fn finish(self) -> Result<Model, Error> {
        self.finish_with(MOST_WITHIN)
    }

    /// The finished model, with at most so many bytes of weights from memory within the graph.
    fn finish_with(mut self, most_within: usize) -> Result<Model, Error> {
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
            spill: self.spill.map(Spill::fill).transpose()?.map(Arc::new),
            nodes,
        })
    }

    /// Writes where the tensors of files are, and the bytes of the others. Returns the folder that
    /// the files are relative to.
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

    /// Writes names for the bytes of all tensors, and reads those of files: ONNX Runtime takes
    /// external data from files or from memory, not from both. Returns the bytes by their names.
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

    /// An f32 input.
    pub fn input(&mut self, name: &str, dims: &[Dim]) -> Value {
        let input = self.typed_input(name, proto::DataType::Float, dims);
        self.converted(input, proto::DataType::Float)
    }

    fn typed_input(&mut self, name: &str, data_type: proto::DataType, dims: &[Dim]) -> Value {
        self.graph.input.push(value_info(name, data_type, dims));
        Value(self.named(name.to_owned()))
    }

    /// Rows of the table `name` `[rows, width]`, picked by a new i64 input called `input` of shape
    /// `dims`. The table stays as it is in the file, unless its type has 8 bits; only the rows
    /// picked become f32. The rows of `more` `[any, width]` follow those of the table.
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
        // Joined to one table they would be a copy of it: a row is picked from both, and one of the two is kept.
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

    /// One row of each text of `x` `[batch, length, width]`: `[batch, width]`. A new i64 input
    /// called `input`, `[batch, 1]`, says which.
    pub fn row_of_each(&mut self, x: Value, input: &str) -> Value {
        let dims = [Dim::Any("batch"), Dim::Fixed(1)];
        let rows = self.typed_input(input, proto::DataType::Int64, &dims);
        self.op("GatherND", &[x, rows], [int("batch_dims", 1)])
    }

    /// Rows of the stored table `name`, as f32.
    fn picked(&mut self, name: &str, shape: [usize; 2], ids: Value) -> Result<Value, Error> {
        if self.weights.tensor(name, &shape)?.dtype.is_f8() {
            // ONNX's `Gather` takes no types of 8 bits.
            let table = self.weight(name, &shape)?;
            return Ok(self.op("Gather", &[table, ids], [int("axis", 0)]));
        }
        let (table, data_type) = self.stored(name, &shape)?;
        let picked = self.op("Gather", &[table, ids], [int("axis", 0)]);
        Ok(self.converted(picked, data_type))
    }

    /// Makes `value` an output called `name`, an f32.
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

    /// The weight `name`, which must have this shape, in the dialect's numbers. Other types are
    /// cast; the provider folds the cast.
    pub fn weight(&mut self, name: &str, shape: &[usize]) -> Result<Value, Error> {
        let (value, data_type) = self.stored(name, shape)?;
        if let Some(&cast) = self.casts.get(&value) {
            return Ok(cast);
        }
        let cast = self.converted(value, data_type);
        self.casts.insert(value, cast);
        Ok(cast)
    }

    /// `value`, which is a `from`, in the dialect's numbers.
    fn converted(&mut self, value: Value, from: proto::DataType) -> Value {
        match self.dialect.numbers() {
            numbers if numbers == from => value,
            numbers => self.op("Cast", &[value], [int("to", numbers as i64)]),
        }
    }

    /// A constant in the dialect's numbers.
    pub fn constant(&mut self, values: &[f32], shape: &[usize]) -> Value {
        let numbers = self.dialect.numbers();
        let raw = match numbers {
            proto::DataType::BFloat16 => {
                let values = values.iter().map(|&value| bf16::from_f32(value));
                values.flat_map(bf16::to_le_bytes).collect()
            }
            _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        };
        Value(self.initializer(numbers, shape, raw))
    }

    /// A constant of f32, whatever the dialect's numbers are.
    fn f32s(&mut self, values: &[f32], shape: &[usize]) -> Value {
        let raw = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Value(self.initializer(proto::DataType::Float, shape, raw))
    }

    /// A constant list of sizes, in `Reshape`'s meaning: 0 keeps that dimension, −1 is what remains.
    pub fn dims(&mut self, sizes: &[i64]) -> Dims {
        let raw = sizes.iter().flat_map(|v| v.to_le_bytes()).collect();
        Dims(self.initializer(proto::DataType::Int64, &[sizes.len()], raw))
    }

    /// The shape of `x`.
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

    pub fn relu(&mut self, x: Value) -> Value {
        self.op("Relu", &[x], [])
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

    /// The two halves of the last axis.
    pub fn halves(&mut self, x: Value) -> [Value; 2] {
        let halves = [self.fresh(), self.fresh()];
        let outputs = halves.iter().map(|&v| self.name(v)).collect();
        let node = self.node(
            "Split",
            "",
            &[Some(x.0)],
            outputs,
            vec![int("axis", -1), int("num_outputs", 2)],
        );
        self.graph.node.push(node);
        halves.map(Value)
    }

    pub fn transpose(&mut self, x: Value, order: &[i64]) -> Value {
        self.op("Transpose", &[x], [ints("perm", order)])
    }

    pub fn reshape(&mut self, x: Value, dims: Dims) -> Value {
        self.op("Reshape", &[x, Value(dims.0)], [])
    }

    /// As many of the first rows of the table `x` as `like` `[batch, length, width]` is long.
    pub fn first_rows(&mut self, x: Value, like: Value) -> Value {
        let start = self.dims(&[0]);
        let length = self.op("Shape", &[like], [int("start", 1), int("end", 2)]);
        self.op("Slice", &[x, Value(start.0), length], [])
    }

    /// `x` with zeros after its last row and column.
    pub fn pad_bottom_right(&mut self, x: Value) -> Value {
        let pads = self.dims(&[0, 0, 0, 0, 0, 0, 1, 1]);
        self.op("Pad", &[x, Value(pads.0)], [])
    }

    /// Nearest-neighbour scaling of the last two axes by two.
    pub fn upsample(&mut self, x: Value) -> Value {
        let scales = self.f32s(&[1.0, 1.0, 2.0, 2.0], &[4]);
        self.resize([Some(x.0), None, Some(scales.0), None])
    }

    /// Nearest-neighbour scaling of `x` to the height and width of `like`, as `torch.nn.functional.interpolate` does.
    pub fn upsample_to(&mut self, x: Value, like: Value) -> Value {
        let shape_part = |graph: &mut Self, of: Value, start: i64, end: i64| {
            graph.op("Shape", &[of], [int("start", start), int("end", end)])
        };
        let kept = shape_part(self, x, 0, 2);
        let sides = shape_part(self, like, 2, 4);
        let sizes = self.concat(&[kept, sides], 0);
        self.resize([Some(x.0), None, None, Some(sizes.0)])
    }

    pub fn instance_norm(&mut self, x: Value, channels: usize, eps: f32) -> Value {
        let scale = self.constant(&vec![1.0; channels], &[channels]);
        let bias = self.constant(&vec![0.0; channels], &[channels]);
        self.op(
            "InstanceNormalization",
            &[x, scale, bias],
            [float("epsilon", eps)],
        )
    }

    /// x·sigmoid(αx): SiLU with α = 1, CLIP's "quick" GELU with α = 1.702.
    pub fn sigmoid_gate(&mut self, x: Value, alpha: f32) -> Value {
        if !self.dialect.bf16 {
            return self.microsoft("QuickGelu", &[Some(x.0)], [float("alpha", alpha)]);
        }
        // OpenVINO reads `QuickGelu` of f32 only, and fuses these into one operator of its own.
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

    /// The exact GELU, by the error function.
    pub fn gelu(&mut self, x: Value) -> Value {
        self.op("Gelu", &[x], [])
    }

    /// `x · weightᵀ` for a weight `[out, in]` as PyTorch stores it.
    pub fn matmul_transposed(&mut self, x: Value, weight: Value) -> Value {
        if self.dialect.bf16 {
            // OpenVINO transposes within the product. With `FusedMatMul` it would do so beforehand,
            // and keep the result as a copy.
            let weight = self.transpose(weight, &[1, 0]);
            return self.op("MatMul", &[x, weight], []);
        }
        let inputs = [Some(x.0), Some(weight.0)];
        self.microsoft("FusedMatMul", &inputs, [int("transB", 1)])
    }

    /// Softmax(q·kᵀ / √(width / heads))·v over `heads` heads: `[batch, length, width]`; `causal` hides what comes later.
    pub fn attention(&mut self, q: Value, k: Value, v: Value, heads: usize, causal: bool) -> Value {
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

    fn conv(&mut self, x: Value, weight: Value, bias: Option<Value>, conv: Conv) -> Value {
        let inputs = [x, weight].into_iter().chain(bias);
        let inputs: Vec<_> = inputs.map(|value| Some(value.0)).collect();
        self.push("Conv", "", &inputs, conv.attributes())
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

    /// The stored tensor `name`, which must have this shape, as an initializer, and its type in the
    /// graph. One that lies in a file stays there, unless the dialect wants another type.
    fn stored(&mut self, name: &str, shape: &[usize]) -> Result<(Value, proto::DataType), Error> {
        let weights = self.weights;
        let tensor = weights.tensor(name, shape)?;
        let key = (std::ptr::from_ref(self.weights), name.to_owned());
        if let Some(&known) = self.stored.get(&key) {
            return Ok(known);
        }
        // A spilled weight is written times its scale.
        let (form, read) = match self.dialect {
            Dialect { bf16: true, .. } => (Some(Form::Bf16), Type::BF16),
            Dialect {
                f32_weights: true, ..
            } => (Some(Form::F32), Type::F32),
            _ => (None, tensor.dtype),
        };
        let form = form.filter(|_| tensor.dtype != read || tensor.scale.is_some());
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
            // ONNX Runtime folds it, at a cost that only large matrices show.
            value = self.transpose(value, &[1, 0]);
        }
        let stored = (value, data_type);
        self.stored.insert(key, stored);
        Ok(stored)
    }

    /// Makes `value` an initializer that lies at `place`. `file` is the file that errors name.
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

    /// The file for weights in another form, created when it is first needed.
    fn spill(&mut self) -> Result<&mut Spill<'w>, Error> {
        match &mut self.spill {
            Some(spill) => Ok(spill),
            none => Ok(none.insert(Spill::create()?)),
        }
    }

    /// The values of `x`, of 8 bits, as f32 times their scale. In one operator: with a `Cast` and a
    /// `Mul` ONNX Runtime would keep both results until all weights are folded.
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

    /// A value of this name: an input or a stored tensor.
    fn named(&mut self, name: String) -> usize {
        self.names.push(name);
        self.names.len() - 1
    }

    /// Any other value.
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

/// Says that the data of an initializer lies elsewhere.
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
        size: Some(match *dim {
            Dim::Fixed(size) => proto::DimensionSize::Value(size as i64),
            Dim::Any(name) => proto::DimensionSize::Parameter(name.to_owned()),
        }),
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

/// ONNX's name of a type that ONNX Runtime reads in place.
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
