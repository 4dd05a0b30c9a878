//! A file of weights as it is: its tensors under its own names, whatever its format.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use ::safetensors::Dtype;

use super::{Place, safetensors};
use crate::Error;

/// The tensors of one file, or of all shards of a model, and what the file says about itself.
#[derive(Debug)]
pub(crate) struct WeightFile {
    /// What an error names: the file as the user has it, or the index of a sharded model.
    pub path: PathBuf,
    pub tensors: Vec<Stored>,
    /// The `__metadata__` of a safetensors file.
    pub metadata: BTreeMap<String, String>,
}

/// A tensor under its name in the file.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub place: Place,
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
            let header = safetensors::read_header(&file)?;
            all.metadata.extend(header.metadata);
            let (file, real): (Arc<Path>, Arc<Path>) = (file.into(), real.into());
            all.tensors.reserve(header.tensors.len());
            for (name, info) in header.tensors {
                let (start, end) = info.data_offsets;
                all.tensors.push(Stored {
                    name,
                    dtype: info.dtype,
                    shape: info.shape,
                    place: Place::File {
                        path: real.clone(),
                        offset: header.data_start + start as u64,
                        length: (end - start) as u64,
                    },
                    file: file.clone(),
                });
            }
        }
        Ok(all)
    }
}
