//! Weight files: memory-mapped safetensors, one or sharded, as named places in files.
//!
//! No weight is copied here. A tensor is a (file, offset, length) that goes into the ONNX graph as *external data*, so
//! that ONNX Runtime maps the user's own file.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    path::{Path, PathBuf},
};

use memmap2::Mmap;
use safetensors::{
    Dtype, SafeTensorError,
    tensor::{Metadata, TensorInfo},
};

use crate::Error;

/// The tensors of one model component, by name.
#[derive(Debug)]
pub(crate) struct Weights {
    /// What an error names: the file as the user has it, or the index of a sharded model.
    path: PathBuf,
    tensors: HashMap<String, Entry>,
    /// The deepest folder that holds all the real files, after links are resolved.
    root: PathBuf,
}

/// Where one tensor lies.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// The file as the user has it.
    pub path: PathBuf,
    /// The real file, relative to [`Weights::root`].
    pub location: String,
    /// Bytes from the start of the file.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
}

impl Weights {
    /// Opens one safetensors file, or all shards that a `*.index.json` names.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let files = files(path)?;
        // ONNX Runtime refuses files that are links out of its folder: give it the real ones.
        let real = files
            .iter()
            .map(|file| std::fs::canonicalize(file).map_err(Error::io(file)))
            .collect::<Result<Vec<_>, _>>()?;
        let root = common_folder(&real);

        let mut tensors = HashMap::new();
        for (file, real) in files.iter().zip(&real) {
            let (data_start, metadata) = read_header(file)?;
            let location = relative(real, &root).ok_or_else(|| not_utf8(real))?;
            for (name, info) in metadata.tensors() {
                let (start, end) = info.data_offsets;
                let entry = Entry {
                    path: file.clone(),
                    location: location.clone(),
                    offset: (data_start + start) as u64,
                    length: (end - start) as u64,
                    dtype: info.dtype,
                    shape: info.shape.clone(),
                };
                tensors.insert(name, entry);
            }
        }
        Ok(Self {
            path: path.to_path_buf(),
            tensors,
            root,
        })
    }

    /// The folder that every [`Entry::location`] is relative to.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whether a tensor of that name is there.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The shape of the tensor of that name.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|entry| entry.shape.as_slice())
    }

    /// The floating-point tensor of that name, whose shape must be `expected`.
    pub fn tensor(&self, name: &str, expected: &[usize]) -> Result<&Entry, Error> {
        let entry = self.tensors.get(name).ok_or_else(|| Error::MissingTensor {
            path: self.path.clone(),
            tensor: name.to_owned(),
            expected: expected.to_vec(),
        })?;
        if entry.shape != expected {
            return Err(Error::TensorShape {
                path: entry.path.clone(),
                tensor: name.to_owned(),
                expected: expected.to_vec(),
                found: entry.shape.clone(),
            });
        }
        match entry.dtype {
            Dtype::F32 | Dtype::F16 | Dtype::BF16 => Ok(entry),
            other => Err(Error::TensorType {
                path: entry.path.clone(),
                tensor: name.to_owned(),
                found: format!("{other:?}"),
            }),
        }
    }
}

/// ONNX wants paths in UTF-8.
pub(crate) fn not_utf8(path: &Path) -> Error {
    let reason = "the real path is not valid UTF-8, which ONNX needs";
    Error::io(path)(std::io::Error::new(
        std::io::ErrorKind::InvalidInput,
        reason,
    ))
}

/// The safetensors file itself, or all shards that a `*.index.json` names, in their order.
pub(crate) fn files(path: &Path) -> Result<Vec<PathBuf>, Error> {
    if path.extension().is_some_and(|e| e == "json") {
        shards(path)
    } else {
        Ok(vec![path.to_path_buf()])
    }
}

/// The files that an index names, each once, in the index's folder.
fn shards(index: &Path) -> Result<Vec<PathBuf>, Error> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let text = std::fs::read_to_string(index).map_err(Error::io(index))?;
    let Index { weight_map } = serde_json::from_str(&text).map_err(|source| Error::Json {
        path: index.to_path_buf(),
        source,
    })?;
    let mut names: Vec<_> = weight_map.into_values().collect();
    names.sort();
    names.dedup();
    let folder = index.parent().unwrap_or(Path::new(""));
    names
        .into_iter()
        .map(
            |name| match Path::new(&name).components().collect::<Vec<_>>()[..] {
                [std::path::Component::Normal(file)] => Ok(folder.join(file)),
                _ => Err(Error::Config {
                    path: index.to_path_buf(),
                    key: "weight_map".into(),
                    expected: "file names in the index's own folder".into(),
                    found: format!("{name:?}"),
                }),
            },
        )
        .collect()
}

/// The longest header that the safetensors crate reads.
const MOST_HEADER: usize = 100_000_000;

/// The checked header of a safetensors file, and the byte where its data begins.
fn read_header(path: &Path) -> Result<(usize, Metadata), Error> {
    let file = File::open(path).map_err(Error::io(path))?;
    let length = file.metadata().map_err(Error::io(path))?.len();
    let wrong = |problem: String| Error::Safetensors {
        path: path.to_path_buf(),
        problem,
    };
    if length < 8 {
        return Err(wrong(format!(
            "{length} bytes, expected at least the 8 of the header's length"
        )));
    }
    // Safety: the map is read once, below, while this function runs. A file that another process shortens meanwhile
    // would end this one, as it would for every program that maps files; model files are not written to in use.
    #[allow(unsafe_code)]
    let map = unsafe { Mmap::map(&file) }.map_err(Error::io(path))?;
    let header = u64::from_le_bytes(map[..8].try_into().expect("8 bytes, checked above"));
    // The crate's sum (0.8.0) would overflow, which panics in a debug build.
    let far = |(_, info): &(String, TensorInfo)| {
        info.data_offsets.1.checked_add(8 + MOST_HEADER).is_none()
    };
    if let Some((name, info)) = tensors(&map, header).find(far) {
        let end = info.data_offsets.1;
        return Err(wrong(format!(
            "the data of tensor `{name}` ends {end} bytes behind the header, but the file has {length} in all"
        )));
    }
    let (header_length, metadata) = safetensors::SafeTensors::read_metadata(&map).map_err(|error| {
        use SafeTensorError as E;
        wrong(match error {
            E::HeaderTooLarge | E::InvalidHeaderLength => format!(
                "bytes 0 to 7 say that the header has {header} bytes, but the file has {length} in all and headers at most {MOST_HEADER}"
            ),
            E::InvalidHeader(e) => format!("the header, bytes 8 to {}, is not UTF-8: {e}", header + 7),
            E::InvalidHeaderDeserialization(e) => format!("the header, bytes 8 to {}, is not valid JSON: {e}", header + 7),
            E::InvalidOffset(name) => {
                format!("the data of tensor `{name}` overlaps another's, leaves a gap, or ends before it begins")
            }
            E::TensorInvalidInfo | E::ValidationOverflow | E::MisalignedSlice => misfit(&map, header),
            E::MetadataIncompleteBuffer => {
                let end = tensors(&map, header).map(|(_, info)| info.data_offsets.1).max().unwrap_or(0);
                let expected = header + 8 + end as u64;
                format!("by its header it ends at byte {expected}, but the file has {length}: truncated, or with bytes to spare")
            }
            other => other.to_string(),
        })
    })?;
    Ok((8 + header_length, metadata))
}

/// What a header of that length says of its tensors, as far as it can be read: to say which one is at fault.
fn tensors(map: &[u8], header: u64) -> impl Iterator<Item = (String, TensorInfo)> {
    let length = usize::try_from(header).ok();
    let length = length.filter(|&length| length <= MOST_HEADER);
    let text = length.and_then(|length| map[8..].get(..length));
    let text = text.unwrap_or_default();
    let entries: BTreeMap<String, serde_json::Value> =
        serde_json::from_slice(text).unwrap_or_default();
    let info = |(name, value)| Some((name, serde_json::from_value(value).ok()?));
    entries.into_iter().filter_map(info)
}

/// Names the tensor whose data is not as long as its shape and type make it.
fn misfit(map: &[u8], header: u64) -> String {
    let at_fault = tensors(map, header).find_map(|(name, info)| {
        let elements = info.shape.iter().try_fold(1usize, |n, &side| n.checked_mul(side));
        let bits = elements.and_then(|n| n.checked_mul(info.dtype.bitsize()));
        let (start, end) = info.data_offsets;
        let found = end.checked_sub(start)?;
        (bits != found.checked_mul(8)).then(|| {
            format!(
                "tensor `{name}` has {found} bytes of data, which does not fit its shape {:?} of {:?}",
                info.shape, info.dtype
            )
        })
    });
    at_fault.unwrap_or_else(|| "a tensor's data length does not fit its shape and type".into())
}

/// The deepest folder that holds every one of `files`, which are absolute.
fn common_folder(files: &[PathBuf]) -> PathBuf {
    let mut folders = files.iter().map(|file| file.parent().unwrap_or(file));
    let first = folders.next().unwrap_or(Path::new("")).to_path_buf();
    folders.fold(first, |common, folder| {
        common
            .components()
            .zip(folder.components())
            .take_while(|(a, b)| a == b)
            .map(|(a, _)| a)
            .collect()
    })
}

/// `file` relative to `root`, with forward slashes.
fn relative(file: &Path, root: &Path) -> Option<String> {
    let parts: Option<Vec<_>> = file
        .strip_prefix(root)
        .ok()?
        .components()
        .map(|part| part.as_os_str().to_str())
        .collect();
    Some(parts?.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_common_folder_is_the_deepest_one() {
        let paths = |list: &[&str]| list.iter().map(PathBuf::from).collect::<Vec<_>>();
        assert_eq!(common_folder(&paths(&["/a/b/c.x"])), Path::new("/a/b"));
        assert_eq!(
            common_folder(&paths(&["/a/b/c.x", "/a/d/e.x"])),
            Path::new("/a")
        );
        assert_eq!(
            common_folder(&paths(&["/a/b/c.x", "/a/b/d/e.x", "/a/bb/e.x"])),
            Path::new("/a")
        );
        assert_eq!(
            relative(Path::new("/a/b/c.x"), Path::new("/a")).as_deref(),
            Some("b/c.x")
        );
    }
}
