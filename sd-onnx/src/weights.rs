//! Weight files: safetensors, one or sharded, as named places in files.
//!
//! No weight is read here. A tensor is a (file, offset, length) that goes into the ONNX graph as *external data*, so that
//! ONNX Runtime maps the user's own file. Only the headers are read, by ordinary reads: a file that shrinks meanwhile is
//! an error, where one that is mapped would end the process.

use std::{
    collections::{BTreeSet, HashMap, hash_map::Entry as MapEntry},
    fmt,
    io::Read,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use safetensors::{Dtype, tensor::TensorInfo};
use sd_text::outside::{self, printable};
use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use crate::{Error, config::Config};

/// The tensors of one model component, by name.
#[derive(Debug)]
pub(crate) struct Weights {
    /// What an error names: the file as the user has it, or the index of a sharded model.
    path: PathBuf,
    files: Vec<WeightFile>,
    tensors: HashMap<String, Tensor>,
    /// The deepest folder that holds all the real files, after links are resolved.
    root: PathBuf,
}

#[derive(Debug)]
struct WeightFile {
    /// As the user has it.
    path: PathBuf,
    /// The real file, relative to [`Weights::root`].
    location: String,
}

#[derive(Debug)]
struct Tensor {
    /// Which of [`Weights::files`].
    file: usize,
    /// Bytes from the start of the file.
    offset: u64,
    /// Length in bytes.
    length: u64,
    dtype: Dtype,
    shape: Vec<usize>,
    /// Whether a graph has asked for it.
    used: AtomicBool,
}

/// Where one tensor lies.
#[derive(Debug)]
pub(crate) struct Entry<'w> {
    /// The real file, relative to [`Weights::root`].
    pub location: &'w str,
    /// Bytes from the start of the file.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
    pub dtype: Dtype,
}

impl Weights {
    /// Opens one safetensors file, or all shards that a `*.index.json` names.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let paths = files(path)?;
        // ONNX Runtime refuses files that are links out of its folder: give it the real ones.
        let real = paths
            .iter()
            .map(|file| std::fs::canonicalize(file).map_err(Error::io(file)))
            .collect::<Result<Vec<_>, _>>()?;
        let root = common_folder(&real);

        let (mut files, mut tensors) = (Vec::new(), HashMap::new());
        for (path, real) in paths.into_iter().zip(&real) {
            let (data_start, header) = read_header(&path)?;
            let location = relative(real, &root).ok_or_else(|| not_utf8(real))?;
            tensors.reserve(header.len());
            for (name, info) in header {
                let (start, end) = info.data_offsets;
                let tensor = Tensor {
                    file: files.len(),
                    offset: data_start + start as u64,
                    length: (end - start) as u64,
                    dtype: info.dtype,
                    shape: info.shape,
                    used: AtomicBool::new(false),
                };
                match tensors.entry(name) {
                    MapEntry::Vacant(place) => place.insert(tensor),
                    MapEntry::Occupied(other) => {
                        let name = printable(other.key());
                        let problem = format!("tensor `{name}` is there twice");
                        return Err(Error::Safetensors { path, problem });
                    }
                };
            }
            files.push(WeightFile { path, location });
        }
        Ok(Self {
            path: path.to_path_buf(),
            files,
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
        self.tensors.get(name).map(|tensor| tensor.shape.as_slice())
    }

    /// The floating-point tensor of that name, whose shape must be `expected`. From now on it counts as used.
    pub fn tensor(&self, name: &str, expected: &[usize]) -> Result<Entry<'_>, Error> {
        let tensor = self.tensors.get(name).ok_or_else(|| Error::MissingTensor {
            path: self.path.clone(),
            tensor: name.to_owned(),
            expected: expected.to_vec(),
        })?;
        let file = &self.files[tensor.file];
        if tensor.shape != expected {
            return Err(Error::TensorShape {
                path: file.path.clone(),
                tensor: name.to_owned(),
                expected: expected.to_vec(),
                found: tensor.shape.clone(),
            });
        }
        match tensor.dtype {
            Dtype::F32 | Dtype::F16 | Dtype::BF16 => {}
            other => {
                return Err(Error::TensorType {
                    path: file.path.clone(),
                    tensor: name.to_owned(),
                    found: format!("{other:?}"),
                });
            }
        }
        tensor.used.store(true, Ordering::Relaxed);
        Ok(Entry {
            location: &file.location,
            offset: tensor.offset,
            length: tensor.length,
            dtype: tensor.dtype,
        })
    }

    /// Refuses tensors that no graph has asked for. The graphs of the component, whose class is `class`, must all have
    /// been written before. `skipped` says which other tensors the class knows and leaves out here.
    pub fn check_all_used(
        &self,
        class: &'static str,
        skipped: impl Fn(&str) -> bool,
    ) -> Result<(), Error> {
        let unused = self.tensors.iter().filter(|(name, tensor)| {
            !tensor.used.load(Ordering::Relaxed) && !is_no_weight(name) && !skipped(name)
        });
        let mut tensors: Vec<String> = unused.map(|(name, _)| name.clone()).collect();
        if tensors.is_empty() {
            return Ok(());
        }
        tensors.sort();
        Err(Error::UnusedTensors {
            path: self.path.clone(),
            class,
            tensors,
        })
    }
}

/// Tensors that training or an older library left in files and that no network computes with, by the end of their names:
/// transformers' numbers of positions, CLIP's temperature, OpenCLIP's mask, the averaging's state, the noise schedule of
/// latent diffusion's and k-diffusion's wrappers.
const NO_WEIGHTS: [&str; 20] = [
    "position_ids",
    "logit_scale",
    "attn_mask",
    "model_ema.decay",
    "model_ema.num_updates",
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "logvar",
    "denoiser.sigmas",
    "denoiser.log_sigmas",
];

fn is_no_weight(name: &str) -> bool {
    NO_WEIGHTS.iter().any(|end| {
        let rest = name.strip_suffix(*end);
        rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    })
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

/// The longest index that is read, in bytes: some 100,000 tensors. Published ones have a few thousand.
const MOST_INDEX: u64 = 16 << 20;
/// The most shards. Published models have ten at most.
const MOST_SHARDS: usize = 1000;

/// The files that an index names, each once, in the index's folder.
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

/// The longest header, in bytes: what the safetensors library reads at most. A model's has some 100 bytes a tensor.
const MOST_HEADER: u64 = 100_000_000;

/// The checked header of a safetensors file, and the byte where its data begins.
fn read_header(path: &Path) -> Result<(u64, Vec<(String, TensorInfo)>), Error> {
    let wrong = |problem: String| Error::Safetensors {
        path: path.to_path_buf(),
        problem,
    };
    let mut file = outside::open_binary(path).map_err(Error::io(path))?;
    let length = file.metadata().map_err(Error::io(path))?.len();
    if length < 8 {
        return Err(wrong(format!(
            "{length} bytes, expected at least the 8 of the header's length"
        )));
    }
    let mut bytes = [0; 8];
    file.read_exact(&mut bytes).map_err(Error::io(path))?;
    let header = u64::from_le_bytes(bytes);
    if header > MOST_HEADER || header > length - 8 {
        return Err(wrong(format!(
            "bytes 0 to 7 say that the header has {header} bytes, but the file has {length} in all and headers at most \
             {MOST_HEADER}"
        )));
    }
    let mut text = vec![0; header as usize];
    file.read_exact(&mut text).map_err(Error::io(path))?;
    let Header(mut tensors) = serde_json::from_slice(&text).map_err(|error| {
        wrong(format!(
            "the header, bytes 8 to {}, is not a JSON object of tensors: {}",
            header + 7,
            printable(error)
        ))
    })?;
    drop(text);
    tensors.sort_unstable_by_key(|(_, info)| info.data_offsets);
    let end = check_places(&tensors).map_err(wrong)?;
    let expected = 8 + u128::from(header) + end as u128;
    if expected != u128::from(length) {
        return Err(wrong(format!(
            "by its header it ends at byte {expected}, but the file has {length}: truncated, or with bytes to spare"
        )));
    }
    Ok((8 + header, tensors))
}

/// Checks that the data of the tensors, sorted by their places, lies end to end, each as long as its shape and type make
/// it; returns where the last one ends.
fn check_places(tensors: &[(String, TensorInfo)]) -> Result<usize, String> {
    let mut last = 0;
    for (name, info) in tensors {
        let (start, end) = info.data_offsets;
        if start != last || end < start {
            return Err(format!(
                "the data of tensor `{}` overlaps another's, leaves a gap, or ends before it begins",
                printable(name)
            ));
        }
        last = end;
        let elements = info
            .shape
            .iter()
            .try_fold(1usize, |n, &side| n.checked_mul(side));
        let bits = elements.and_then(|n| n.checked_mul(info.dtype.bitsize()));
        if bits.is_none_or(|bits| Some(bits) != (end - start).checked_mul(8)) {
            return Err(format!(
                "tensor `{}` has {} bytes of data, which does not fit its shape {} of {:?}",
                printable(name),
                end - start,
                printable(format_args!("{:?}", info.shape)),
                info.dtype
            ));
        }
    }
    Ok(last)
}

/// The tensors that a header lists, in its order.
struct Header(Vec<(String, TensorInfo)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Tensors)
    }
}

struct Tensors;

impl<'de> Visitor<'de> for Tensors {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let mut tensors = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            let info = map.next_value().map_err(|error| {
                A::Error::custom(format_args!("tensor `{}`: {error}", printable(&name)))
            })?;
            tensors.push((name, info));
        }
        Ok(Header(tensors))
    }
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
