//! The contents of a pickle: a graph of inert values.

use std::sync::Arc;

use safetensors::Dtype;

use super::storage::Gather;

/// The index of a value in a [`Pickle`](super::Pickle). Values refer to each other by index,
/// because values may be shared and may contain themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Id(pub(super) u32);

impl Id {
    pub(super) fn index(self) -> usize {
        self.0 as usize
    }
}

/// A value of a pickle.
#[derive(Debug)]
pub enum Value {
    /// Python's `None`.
    None,
    /// A truth value.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A whole number that does not fit 64 bits: in decimal digits, or with `0x` in front in
    /// hexadecimal digits of its two's complement.
    Long(String),
    /// A floating-point number.
    Float(f64),
    /// A text.
    Text(String),
    /// Bytes, or a text that is not UTF-8.
    Bytes(Vec<u8>),
    /// A list.
    List(Vec<Id>),
    /// A tuple, or a tensor size of torch.
    Tuple(Vec<Id>),
    /// A dictionary of any class: keys and values in the order of the file.
    Dict(Vec<(Id, Id)>),
    /// A set or frozen set.
    Set(Vec<Id>),
    /// A tensor, or a parameter that wraps a tensor.
    Tensor(Box<PickledTensor>),
    /// Something that has no effect here: a class, a function, or what calling one would make.
    /// Holds the name of the global, such as `numpy.dtype`.
    Inert(Arc<str>),
}

/// A tensor of a pickle.
#[derive(Debug)]
pub struct PickledTensor {
    /// The type of the values.
    pub dtype: Dtype,
    /// The shape.
    pub shape: Vec<usize>,
    /// Where the values are.
    pub data: Data,
}

/// Where the values of a tensor are.
#[derive(Debug, Clone)]
pub enum Data {
    /// The values are in the file as needed: in row-major order, little-endian and uncompressed.
    File {
        /// The position in the file in bytes.
        offset: u64,
        /// The number of bytes.
        length: u64,
    },
    /// The values are in the file in another form: strided, compressed or big-endian.
    /// [`Pickle::bytes`](super::Pickle::bytes) brings them into order.
    Gathered(Gather),
}

impl PickledTensor {
    /// Returns how many bytes the values take in row-major order.
    pub fn length(&self) -> u64 {
        match &self.data {
            Data::File { length, .. } => *length,
            Data::Gathered(gather) => gather.length,
        }
    }
}
