//! Finds the files that hold a model's weights, and reads headers of safetensors files.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    fmt,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use safetensors::tensor::TensorInfo;
use sd_text::outside::{self, printable};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::Value;

use super::types::Type;
use crate::{Error, config::Config};

/// Returns the weight file itself, or all shards that a `*.index.json` lists, in order.
pub(crate) fn files(path: &Path) -> Result<Vec<PathBuf>, Error> {
    if path.extension().is_some_and(|e| e == "json") {
        shards(path)
    } else {
        Ok(vec![path.to_path_buf()])
    }
}

/// The longest index that is read, in bytes. It is enough for some 100,000 tensors; published
/// indices have a few thousand.
const MOST_INDEX: u64 = 16 << 20;
/// The largest number of shards. Published models have at most ten.
const MOST_SHARDS: usize = 1000;

/// Lists the files that an index names, each once. All are in the index's folder.
fn shards(index: &Path) -> Result<Vec<PathBuf>, Error> {
    let config = Config::open(index, MOST_INDEX)?;
    let key = "weight_map";
    let names: Option<BTreeSet<&str>> = config
        .object(key)
        .and_then(|map| map.values().map(|name| name.as_str()).collect());
    let Some(names) = names else {
        return Err(config.wrong(key, "an object that gives each tensor the name of its file"));
    };
    if !(1..=MOST_SHARDS).contains(&names.len()) {
        let expected = format!("the names of 1 to {MOST_SHARDS} files");
        return Err(config.wrong(key, expected));
    }
    let folder = index.parent().unwrap_or(Path::new(""));
    names
        .into_iter()
        .map(
            |name| match Path::new(name).components().collect::<Vec<_>>()[..] {
                [std::path::Component::Normal(file)] => Ok(folder.join(file)),
                _ => Err(Error::Config {
                    path: index.to_path_buf(),
                    key: key.into(),
                    expected: "file names in the index's own folder".into(),
                    found: printable(format_args!("{name:?}")),
                }),
            },
        )
        .collect()
}

/// The longest header that is read, in bytes. The safetensors library has the same limit. A model's
/// header has about 100 bytes per tensor.
const MOST_HEADER: u64 = 100_000_000;

/// The header of a safetensors file.
pub(super) struct Header {
    /// The offset of the data in the file, in bytes.
    pub data_start: u64,
    /// The tensors, sorted by their places and checked.
    pub tensors: Vec<Entry>,
    pub metadata: BTreeMap<String, String>,
}

/// A tensor in a header.
pub(super) struct Entry {
    pub name: String,
    pub dtype: Type,
    pub shape: Vec<usize>,
    /// The start and the exclusive end of the data, in bytes from the start of the data section.
    pub data_offsets: (usize, usize),
}

/// Reads and checks the header of a safetensors file.
///
/// # Errors
/// - [`Error::Io`] when the file cannot be read.
/// - [`Error::Checkpoint`] when the first bytes cannot be the length of a header, as in other
///   formats.
/// - [`Error::Safetensors`] when the header is malformed or does not fit the file.
pub(super) fn read_header(path: &Path) -> Result<Header, Error> {
    let wrong = |problem: String| Error::Safetensors {
        path: path.to_path_buf(),
        problem,
    };
    let mut file = outside::open_binary(path).map_err(Error::io(path))?;
    let length = file.metadata().map_err(Error::io(path))?.len();
    let header = header_length(path, &mut file, length)?;
    let mut text = vec![0; header as usize];
    file.read_exact(&mut text).map_err(Error::io(path))?;
    let Entries {
        mut tensors,
        metadata,
    } = serde_json::from_slice(&text).map_err(|error| {
        wrong(format!(
            "the header, bytes 8 to {}, is not a JSON object of tensors: {}",
            header + 7,
            printable(error)
        ))
    })?;
    drop(text);
    tensors.sort_unstable_by_key(|entry| entry.data_offsets);
    let end = check_places(&tensors).map_err(wrong)?;
    let expected = 8 + u128::from(header) + end as u128;
    match u128::from(length).cmp(&expected) {
        Ordering::Equal => {}
        Ordering::Less => {
            return Err(wrong(format!(
                "the file is truncated: {length} of {expected} bytes"
            )));
        }
        Ordering::Greater => {
            return Err(wrong(format!(
                "the file has {length} bytes, but its last tensor ends at byte {expected}"
            )));
        }
    }
    Ok(Header {
        data_start: 8 + header,
        tensors,
        metadata,
    })
}

/// Reads the length of the header from the first 8 bytes of a file of `length` bytes.
fn header_length(path: &Path, file: &mut File, length: u64) -> Result<u64, Error> {
    let wrong = |problem: String| Error::Safetensors {
        path: path.to_path_buf(),
        problem,
    };
    if length < 8 {
        return Err(wrong(format!(
            "the file has {length} bytes, expected at least 8 for the header's length"
        )));
    }
    let mut bytes = [0; 8];
    file.read_exact(&mut bytes).map_err(Error::io(path))?;
    let header = u64::from_le_bytes(bytes);
    if header > MOST_HEADER {
        // The caller has already recognised the other formats.
        return Err(Error::Checkpoint {
            path: path.to_path_buf(),
            problem: format!(
                "not a model file: neither safetensors, pickle nor GGUF (not a usable safetensors \
                 file: bytes 0 to 7 say that the header has {header} bytes, expected at most \
                 {MOST_HEADER})"
            ),
        });
    }
    if header > length - 8 {
        return Err(wrong(format!(
            "the file is truncated: bytes 0 to 7 say that the header has {header} bytes, but the file \
             has only {length} in all"
        )));
    }
    Ok(header)
}

/// Checks that the data of the tensors, which are sorted by their places, is contiguous, and that
/// each tensor's length fits its shape and type. Returns the offset at which the last tensor ends.
fn check_places(tensors: &[Entry]) -> Result<usize, String> {
    let mut last = 0;
    for entry in tensors {
        let (start, end) = entry.data_offsets;
        if start != last || end < start {
            return Err(format!(
                "the data of tensor `{}` overlaps another tensor's, leaves a gap, or ends before it begins",
                printable(&entry.name)
            ));
        }
        last = end;
        check_length(&entry.name, entry.dtype, &entry.shape, end - start)?;
    }
    Ok(last)
}

/// Checks that a tensor's length, in bytes, fits its shape and type.
pub(super) fn check_length(
    name: &str,
    dtype: Type,
    shape: &[usize],
    length: usize,
) -> Result<(), String> {
    if dtype.length(shape) != Some(length) {
        return Err(format!(
            "tensor `{}` has {length} bytes of data, which does not fit its shape {} of {dtype}",
            printable(name),
            printable(format_args!("{shape:?}")),
        ));
    }
    Ok(())
}

/// The entries of a header, in their order.
struct Entries {
    tensors: Vec<Entry>,
    metadata: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EntriesVisitor)
    }
}

struct EntriesVisitor;

impl<'de> Visitor<'de> for EntriesVisitor {
    type Value = Entries;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
        let mut entries = Entries {
            tensors: Vec::new(),
            metadata: BTreeMap::new(),
        };
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                // The format allows only texts here. Other values, which some tools write, are
                // ignored.
                if let Value::Object(values) = map.next_value()? {
                    let texts = values.into_iter().filter_map(|(key, value)| match value {
                        Value::String(text) => Some((key, text)),
                        _ => None,
                    });
                    entries.metadata.extend(texts);
                }
                continue;
            }
            let wrong = |problem: &dyn fmt::Display| {
                A::Error::custom(format_args!("tensor `{}`: {problem}", printable(&name)))
            };
            let info: TensorInfo = map.next_value().map_err(|error| wrong(&error))?;
            let dtype = Type::of_safetensors(info.dtype)
                .ok_or_else(|| wrong(&format_args!("type {:?}", info.dtype)))?;
            entries.tensors.push(Entry {
                name,
                dtype,
                shape: info.shape,
                data_offsets: info.data_offsets,
            });
        }
        Ok(entries)
    }
}
