//! Reads torch's pickles without running them.
//!
//! A pickle is a program that builds an object, and it may call any Python function on the way.
//! This reader follows the program but builds only what a file of weights consists of: numbers,
//! strings, containers and tensors. It knows some harmless classes and functions by name
//! (`globals.rs` has the table). It calls none of them, and an inert value replaces whatever a call
//! would have made. Any other name is an error.
//!
//! The length of the file bounds memory and time, whatever the file says. Values that the pickle
//! shares are shared here too, a container that contains itself causes no loop, and every limit is
//! a constant at the top of the file that enforces it.
//!
//! Existing crates for pickles do not fit: `serde-pickle` has no persistent ids, by which torch
//! names its storages. `repugnant-pickle`, a first version of 2023, accepts any global, copies what
//! a pickle shares, and finds no tensor below the outermost dictionary.
//!
//! The crates of this workspace share this module. It is public only for them and is not part of
//! the API.

mod archive;
mod call;
mod contents;
mod error;
mod globals;
mod legacy;
mod machine;
mod names;
mod reader;
mod source;
mod stack;
mod storage;
mod tensor;
mod value;
mod zip;

use std::io::Cursor;
use std::path::{Path, PathBuf};

pub use error::{PickleError, Problem};
pub use storage::Gather;
pub use value::{Data, Id, PickledTensor, Value};

use source::Source;

use crate::outside;

/// The longest pickle in bytes, without the tensors' values. SDXL's pickles have half a megabyte.
const MOST_PICKLE: u64 = 32 << 20;
/// The key under which training programs store the model's tensors, next to the training state.
const WRAPPER: &str = "state_dict";

/// A file written by `torch.save`.
#[derive(Debug)]
pub struct Pickle {
    path: PathBuf,
    source: Source,
    format: Format,
    values: Vec<Value>,
    root: Id,
    tensors: Vec<(String, Id)>,
    beside: Vec<(String, Id)>,
    unwrapped: bool,
}

/// The two formats of `torch.save`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A ZIP file, the format since torch 1.6.
    Zip,
    /// Pickles followed by the tensors' values, one after another.
    Legacy,
}

/// Returns whether this reader handles files that begin with `start`. The first 262 bytes of a file
/// are enough.
///
/// These are ZIP files, pickles with torch's magic number, and torch's format of 2016, which
/// [`open`] rejects with a specific error.
pub fn is_pickle(start: &[u8]) -> bool {
    let is_zip = start.starts_with(b"PK\x03\x04") || start.starts_with(b"PK\x05\x06");
    is_zip || is_legacy(start) || is_tar(start)
}

/// Opens a `torch.save` file and reads everything except the tensors' values.
///
/// # Errors
/// A [`PickleError`] with the path, naming what is damaged, not supported or not harmless, and at
/// which byte.
pub fn open(path: impl AsRef<Path>) -> Result<Pickle, PickleError> {
    let path = path.as_ref();
    let read = || Pickle::read(path, Source::new(outside::open_binary(path)?)?);
    read().map_err(|problem| PickleError {
        path: path.into(),
        problem,
    })
}

/// Reads the bytes of a `torch.save` file. `path` is used as its path in errors.
///
/// # Errors
/// As [`open`].
pub fn from_bytes(path: impl AsRef<Path>, bytes: Vec<u8>) -> Result<Pickle, PickleError> {
    let path = path.as_ref();
    let read = || Pickle::read(path, Source::new(Cursor::new(bytes))?);
    read().map_err(|problem| PickleError {
        path: path.into(),
        problem,
    })
}

impl Pickle {
    /// Returns the path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the format of the file.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Returns the object that the file contains.
    pub fn root(&self) -> Id {
        self.root
    }

    /// Returns a value.
    pub fn value(&self, id: Id) -> &Value {
        &self.values[id.index()]
    }

    /// Returns the value for a string key in a dictionary, or `None` if `id` is not a dictionary or
    /// has no such key.
    pub fn entry(&self, id: Id, key: &str) -> Option<Id> {
        entry(&self.values, id, key)
    }

    /// Returns the tensors in the order of the file.
    ///
    /// The name of a tensor consists of the dictionary keys and list indices that lead to it,
    /// separated by dots. If the object is a dictionary that contains a dictionary `state_dict`,
    /// only the tensors in that dictionary are returned, and `state_dict` is not part of their
    /// names.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = (&str, &PickledTensor)> {
        self.named(&self.tensors)
    }

    /// Returns whether the tensors come from a dictionary `state_dict` inside the object.
    pub fn is_unwrapped(&self) -> bool {
        self.unwrapped
    }

    /// Returns the tensors outside `state_dict`, if there is one. They belong to the training
    /// state.
    pub fn beside(&self) -> impl ExactSizeIterator<Item = (&str, &PickledTensor)> {
        self.named(&self.beside)
    }

    /// Reads the values of one of its tensors, in row-major order and little-endian.
    ///
    /// # Errors
    /// [`Problem::Read`] if the file can no longer be read; [`Problem::File`] if compressed data is
    /// damaged.
    pub fn bytes(&self, tensor: &PickledTensor) -> Result<Vec<u8>, PickleError> {
        let read = || match &tensor.data {
            Data::File { offset, length } => Ok(self.source.read(*offset, *length)?),
            Data::Gathered(gather) => gather.bytes(&self.source),
        };
        read().map_err(|problem| PickleError {
            path: self.path.clone(),
            problem,
        })
    }

    fn named<'a>(
        &'a self,
        names: &'a [(String, Id)],
    ) -> impl ExactSizeIterator<Item = (&'a str, &'a PickledTensor)> {
        names.iter().map(|(name, id)| match self.value(*id) {
            Value::Tensor(tensor) => (name.as_str(), &**tensor),
            _ => unreachable!("only tensors are listed"),
        })
    }

    fn read(path: &Path, source: Source) -> Result<Self, Problem> {
        let start = source.read(0, source.length.min(262))?;
        if let Some(what) = outside::stand_in(&start) {
            return Err(Problem::File(what.to_owned()));
        }
        if is_tar(&start) {
            let problem = "torch's format from before 2017 (a tar file) is not supported; load it \
                           with torch and save it again";
            return Err(Problem::File(problem.to_owned()));
        }
        let (format, contents) = match start.starts_with(b"PK") {
            true => (Format::Zip, zip::read(&source)?),
            false => (Format::Legacy, legacy::read(&source)?),
        };
        let wrapped = entry(&contents.values, contents.root, WRAPPER);
        let wrapped = wrapped.filter(|id| matches!(contents.values[id.index()], Value::Dict(_)));
        let named = |root, except| {
            let found = names::tensors(&contents.values, root, except);
            found.map_err(Problem::File)
        };
        let (tensors, beside) = match wrapped {
            None => (named(contents.root, None)?, Vec::new()),
            Some(inner) => (named(inner, None)?, named(contents.root, Some(inner))?),
        };
        Ok(Self {
            path: path.into(),
            source,
            format,
            values: contents.values,
            root: contents.root,
            tensors,
            beside,
            unwrapped: wrapped.is_some(),
        })
    }
}

/// Returns the value for a string key in a dictionary. If the key occurs more than once, which
/// Python does not write, the last value is returned.
fn entry(values: &[Value], id: Id, key: &str) -> Option<Id> {
    let Value::Dict(entries) = &values[id.index()] else {
        return None;
    };
    let is_key = |id: Id| matches!(&values[id.index()], Value::Text(text) if text == key);
    let found = entries.iter().rev().find(|(key, _)| is_key(*key));
    found.map(|&(_, value)| value)
}

fn is_legacy(start: &[u8]) -> bool {
    let behind_protocol = match start {
        // From protocol 4 on, the length of a frame comes first.
        [0x80, 4..=5, 0x95, rest @ ..] => rest.get(8..),
        [0x80, 2..=5, rest @ ..] => Some(rest),
        _ => None,
    };
    behind_protocol.is_some_and(|rest| rest.starts_with(legacy::MAGIC_BYTES))
        || start.starts_with(legacy::MAGIC_LINE)
}

fn is_tar(start: &[u8]) -> bool {
    start.get(257..262) == Some(b"ustar")
}
