//! torch's pickles, read without running them.
//!
//! A pickle is a program that makes an object, and it may call any function of Python on the way.
//! This reader follows the program and builds the few things that a file of weights consists of:
//! numbers, texts, containers and tensors. Some harmless classes and functions are known by name
//! (`globals.rs` has the table); nothing is called, and what a call would have made is an inert
//! value. Any other name is an error.
//!
//! Memory and time are bounded by the file's length, whatever the file says: values are shared as
//! the pickle shares them, containers that hold themselves are no loops, and each limit is at the
//! top of the file that it is for.
//!
//! Crates that read pickles were no help: `serde-pickle` has no persistent ids, by which torch
//! names its storages; `repugnant-pickle`, a first version of 2023, accepts any global, expands
//! what a pickle shares, and finds no tensor below the outermost dictionary.
//!
//! The crates of this workspace share this module. It is public for them and no part of the API.

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

/// The longest pickle, without the tensors' numbers. SDXL's pickles have half a megabyte.
const MOST_PICKLE: u64 = 32 << 20;
/// The key under which training programs keep the model's tensors, beside the state of the
/// training.
const WRAPPER: &str = "state_dict";

/// A file of `torch.save`.
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
    /// A ZIP file, since torch 1.6.
    Zip,
    /// Pickles and numbers one behind the other.
    Legacy,
}

/// Whether a file with this start (262 bytes are enough) is meant for this reader: a ZIP file, a
/// pickle with torch's magic number, or torch's format of 2016, which [`open`] refuses by name.
pub fn is_pickle(start: &[u8]) -> bool {
    let is_zip = start.starts_with(b"PK\x03\x04") || start.starts_with(b"PK\x05\x06");
    is_zip || is_legacy(start) || is_tar(start)
}

/// Opens a file of `torch.save` and reads all of it but the tensors' numbers.
///
/// # Errors
/// A [`PickleError`] with the file's path: what is damaged, not supported or not harmless, and at
/// which byte.
pub fn open(path: impl AsRef<Path>) -> Result<Pickle, PickleError> {
    let path = path.as_ref();
    let read = || Pickle::read(path, Source::new(outside::open_binary(path)?)?);
    read().map_err(|problem| PickleError {
        path: path.into(),
        problem,
    })
}

/// Reads the bytes of such a file. `path` stands for the file's path.
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
    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Which format it has.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The whole object.
    pub fn root(&self) -> Id {
        self.root
    }

    /// A value.
    pub fn value(&self, id: Id) -> &Value {
        &self.values[id.index()]
    }

    /// The value under a text in a dictionary; none if `id` is no dictionary or has no such key.
    pub fn entry(&self, id: Id, key: &str) -> Option<Id> {
        entry(&self.values, id, key)
    }

    /// The tensors in the file's order. A tensor's name is made of the keys of the dictionaries and
    /// the places in the lists that it is in, with dots between. Where the object is a dictionary
    /// with a dictionary `state_dict` in it, these are the tensors in that one, without its name.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = (&str, &PickledTensor)> {
        self.named(&self.tensors)
    }

    /// Whether the tensors were found in a dictionary `state_dict` in the object.
    pub fn is_unwrapped(&self) -> bool {
        self.unwrapped
    }

    /// The tensors that are not in `state_dict`, where there is one: the state of a training.
    pub fn beside(&self) -> impl ExactSizeIterator<Item = (&str, &PickledTensor)> {
        self.named(&self.beside)
    }

    /// Reads the numbers of one of its tensors in row-major order, the lowest byte first.
    ///
    /// # Errors
    /// [`Problem::Read`] if the file can't be read any more, and [`Problem::File`] if compressed
    /// numbers are damaged.
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
            let problem = "torch's format of before 2017 (a tar file) is not supported; load it \
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

/// The value under a text in a dictionary. Of several, which Python does not write, the last.
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
        // From protocol 4 on with the length of a frame.
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
