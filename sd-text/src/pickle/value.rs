//! What a pickle holds: a graph of inert values.

use std::sync::Arc;

use safetensors::Dtype;

use super::storage::Gather;

/// A value's place in a [`Pickle`](super::Pickle). Values refer to each other by it, as several may
/// share one, and one may hold itself.
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
    /// `None`
    None,
    /// A truth value.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A whole number beyond 64 bits, in decimal digits or, from `0x` on, in hexadecimal ones of
    /// its two's complement.
    Long(String),
    /// A number.
    Float(f64),
    /// A text.
    Text(String),
    /// Bytes, and texts that are not UTF-8.
    Bytes(Vec<u8>),
    /// A list.
    List(Vec<Id>),
    /// A tuple, and torch's sizes.
    Tuple(Vec<Id>),
    /// A dictionary of any class, its keys with their values in the file's order.
    Dict(Vec<(Id, Id)>),
    /// A set, frozen or not.
    Set(Vec<Id>),
    /// A tensor, or a parameter with a tensor.
    Tensor(Box<PickledTensor>),
    /// Something that has no effect here: a class, a function or what calling one would make. The
    /// content is its global's name, such as `numpy.dtype`.
    Inert(Arc<str>),
}

/// A tensor of a pickle.
#[derive(Debug)]
pub struct PickledTensor {
    /// The type of its numbers.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Where its numbers are.
    pub data: Data,
}

/// Where the numbers of a tensor are.
#[derive(Debug, Clone)]
pub enum Data {
    /// In the file as they are: in row-major order, the lowest byte of each first, uncompressed.
    File {
        /// Where in the file, in bytes.
        offset: u64,
        /// How many bytes.
        length: u64,
    },
    /// In the file in another form: strided, compressed or with the highest byte first.
    /// [`Pickle::bytes`](super::Pickle::bytes) brings them into order.
    Gathered(Gather),
}

impl PickledTensor {
    /// How many bytes its numbers take in row-major order.
    pub fn length(&self) -> u64 {
        match &self.data {
            Data::File { length, .. } => *length,
            Data::Gathered(gather) => gather.length,
        }
    }
}
