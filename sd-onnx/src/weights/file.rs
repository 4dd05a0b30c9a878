//! A file of weights as it is: its tensors under its own names, whatever its format.

use std::{
    collections::BTreeMap,
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
};

use sd_text::outside;

use super::{
    Place, gguf, safetensors,
    scales::{self, Scale},
    types::Type,
    values::Source,
};
use crate::Error;

/// The tensors of one file, or of all shards of a model, and what the file says about itself.
#[derive(Debug)]
pub(crate) struct WeightFile {
    /// What an error names: the file as the user has it, or the index of a sharded model.
    pub path: PathBuf,
    pub tensors: Vec<Stored>,
    /// The `__metadata__` of a safetensors file, the key-value pairs of a GGUF file.
    pub metadata: BTreeMap<String, String>,
}

/// A tensor under its name in the file.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub name: String,
    pub dtype: Type,
    pub shape: Vec<usize>,
    pub place: Place,
    /// What the stored values are multiplied with; none for the values as they are.
    pub scale: Option<Scale>,
    /// The file as the user has it.
    pub file: Arc<Path>,
}

impl WeightFile {
    /// Reads the headers of a file, or of all shards that a `*.index.json` names.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let mut all = Self {
            path: path.to_path_buf(),
            tensors: Vec::new(),
            metadata: BTreeMap::new(),
        };
        for file in safetensors::files(path)? {
            let real = std::fs::canonicalize(&file).map_err(Error::io(&file))?;
            if is_gguf(&file)? {
                all.add_gguf(&file, &real)?;
                continue;
            }
            let header = safetensors::read_header(&file)?;
            all.metadata.extend(header.metadata);
            let (file, real): (Arc<Path>, Arc<Path>) = (file.into(), real.into());
            all.tensors.reserve(header.tensors.len());
            for entry in header.tensors {
                let (start, end) = entry.data_offsets;
                all.tensors.push(Stored {
                    name: entry.name,
                    dtype: entry.dtype,
                    scale: None,
                    shape: entry.shape,
                    place: Place::File {
                        path: real.clone(),
                        offset: header.data_start + start as u64,
                        length: (end - start) as u64,
                    },
                    file: file.clone(),
                });
            }
        }
        scales::attach(&mut all)?;
        Ok(all)
    }

    /// Adds what the header of a GGUF file lists.
    fn add_gguf(&mut self, file: &Path, real: &Path) -> Result<(), Error> {
        let header = gguf::read_header(file)?;
        let (file, real): (Arc<Path>, Arc<Path>) = (file.into(), real.into());
        self.metadata.extend(header.metadata);
        let tensors = header.tensors.into_iter().map(|entry| Stored {
            name: entry.name,
            dtype: entry.dtype,
            shape: entry.shape,
            place: Place::File {
                path: real.clone(),
                offset: entry.offset,
                length: entry.length,
            },
            scale: None,
            file: file.clone(),
        });
        self.tensors.extend(tensors);
        Ok(())
    }
}

impl Stored {
    /// Reads its numbers, without the scale.
    pub fn source(&self) -> Source<'_> {
        Source {
            place: &self.place,
            dtype: self.dtype,
            shape: &self.shape,
            file: &self.file,
            name: &self.name,
        }
    }
}

/// Whether a file begins as GGUF files do, whatever its name.
fn is_gguf(file: &Path) -> Result<bool, Error> {
    let mut start = Vec::new();
    let opened = outside::open(file).map_err(Error::io(file))?;
    opened
        .take(gguf::MAGIC.len() as u64)
        .read_to_end(&mut start)
        .map_err(Error::io(file))?;
    Ok(start == gguf::MAGIC)
}
