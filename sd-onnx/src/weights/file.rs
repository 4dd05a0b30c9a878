//! A weight file as it is: its tensors under the file's own names, in any supported format.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
};

use sd_text::{
    outside::{self, printable},
    pickle::is_pickle,
};

use super::{
    Place, gguf, pickle, safetensors,
    scales::{self, Scale},
    types::Type,
    values::Source,
};
use crate::Error;

/// The tensors and metadata of one file, or of all shards of a model.
#[derive(Debug)]
pub(crate) struct WeightFile {
    /// The path that errors name: the file as the user knows it, or the index of a sharded model.
    pub path: PathBuf,
    pub tensors: Vec<Stored>,
    /// The `__metadata__` of a safetensors file, or the key-value pairs of a GGUF file.
    pub metadata: BTreeMap<String, String>,
    pub format: Format,
    /// Warnings about contents that are not used, for the user.
    pub warnings: Vec<String>,
}

/// The format of a weight file, recognised by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Safetensors {
        /// The offset of the data in the file, in bytes.
        data_start: u64,
    },
    Pickle,
    Gguf,
}

/// The number, sizes and types of some tensors.
#[derive(Debug, Default)]
pub(crate) struct Sizes {
    pub tensors: usize,
    /// The total number of values in the tensors.
    pub parameters: u64,
    pub bytes: u64,
    /// The number of tensors of each type.
    pub types: BTreeMap<String, usize>,
}

/// A tensor under its name in the file.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub name: String,
    pub dtype: Type,
    pub shape: Vec<usize>,
    pub place: Place,
    /// The factor of the stored values, or `None` where they are used unchanged.
    pub scale: Option<Scale>,
    /// The path of the file as the user knows it, with links not resolved.
    pub file: Arc<Path>,
}

impl WeightFile {
    /// Reads the headers of a file, or of all shards that a `*.index.json` lists.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let mut all = Self {
            path: path.to_path_buf(),
            tensors: Vec::new(),
            metadata: BTreeMap::new(),
            format: Format::Gguf,
            warnings: Vec::new(),
        };
        for file in safetensors::files(path)? {
            let real = std::fs::canonicalize(&file).map_err(Error::io(&file))?;
            let start = start(&file)?;
            let (file, real): (Arc<Path>, Arc<Path>) = (file.into(), real.into());
            if start.starts_with(gguf::MAGIC) {
                all.add_gguf(&file, &real)?;
            } else if is_pickle(&start) {
                let contents = pickle::read(&file, &real)?;
                all.tensors.extend(contents.tensors);
                all.warnings.extend(contents.warning);
                all.format = Format::Pickle;
            } else {
                all.add_safetensors(&file, &real)?;
            }
        }
        all.refuse_duplicates()?;
        scales::attach(&mut all)?;
        Ok(all)
    }

    /// Refuses two tensors with the same name, in one file or in two shards.
    fn refuse_duplicates(&self) -> Result<(), Error> {
        let mut known = HashSet::with_capacity(self.tensors.len());
        let mut tensors = self.tensors.iter();
        match tensors.find(|stored| !known.insert(stored.name.as_str())) {
            None => Ok(()),
            Some(stored) => Err(Error::Checkpoint {
                path: stored.file.to_path_buf(),
                problem: format!("tensor `{}` is there twice", printable(&stored.name)),
            }),
        }
    }

    /// Reads the values of a small tensor. The result is empty if there is no such tensor.
    pub fn values(&self, name: &str) -> Result<Vec<f32>, Error> {
        let found = self.tensors.iter().find(|stored| stored.name == name);
        found.map_or(Ok(Vec::new()), |stored| stored.source().values())
    }

    /// Returns the number, sizes and types of all tensors.
    pub fn sizes(&self) -> Sizes {
        let tensors = self.tensors.iter();
        Sizes::of(tensors.map(|stored| (stored.dtype, stored.shape.as_slice(), &stored.place)))
    }

    fn add_safetensors(&mut self, file: &Arc<Path>, real: &Arc<Path>) -> Result<(), Error> {
        let header = safetensors::read_header(file)?;
        self.metadata.extend(header.metadata);
        self.format = Format::Safetensors {
            data_start: header.data_start,
        };
        let tensors = header.tensors.into_iter().map(|entry| {
            let (start, end) = entry.data_offsets;
            Stored {
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
            }
        });
        self.tensors.extend(tensors);
        Ok(())
    }

    /// Adds the tensors and metadata of a GGUF file.
    fn add_gguf(&mut self, file: &Arc<Path>, real: &Arc<Path>) -> Result<(), Error> {
        let header = gguf::read_header(file)?;
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
    /// Returns a reader of the tensor's numbers, which does not apply the scale.
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

impl Sizes {
    pub fn of<'a>(tensors: impl Iterator<Item = (Type, &'a [usize], &'a Place)>) -> Self {
        let mut sizes = Self::default();
        for (dtype, shape, place) in tensors {
            sizes.tensors += 1;
            sizes.parameters += shape.iter().map(|&side| side as u64).product::<u64>();
            sizes.bytes += place.length();
            *sizes.types.entry(dtype.to_string()).or_default() += 1;
        }
        sizes
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Safetensors { .. } => "safetensors",
            Self::Pickle => "pickle",
            Self::Gguf => "GGUF",
        })
    }
}

/// Reads as many bytes from the start of a file as are needed to recognise its format.
fn start(file: &Path) -> Result<Vec<u8>, Error> {
    const LENGTH: u64 = 262;
    let mut start = Vec::new();
    let opened = outside::open(file).map_err(Error::io(file))?;
    opened
        .take(LENGTH)
        .read_to_end(&mut start)
        .map_err(Error::io(file))?;
    Ok(start)
}

#[cfg(test)]
// A failed `unwrap` fails the test.
#[allow(clippy::unwrap_used)]
mod tests {
    use super::WeightFile;

    #[test]
    fn a_name_that_is_there_twice_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let tensor = |from: usize| {
            format!(
                r#""a.bias":{{"dtype":"F16","shape":[1],"data_offsets":[{from},{}]}}"#,
                from + 2
            )
        };
        let header = format!("{{{},{}}}", tensor(0), tensor(2));
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.bytes());
        bytes.extend([0; 4]);
        std::fs::write(&path, bytes).unwrap();
        let error = WeightFile::open(&path).unwrap_err().to_string();
        assert!(
            error.contains("model.safetensors: tensor `a.bias` is there twice"),
            "{error}"
        );
    }
}
