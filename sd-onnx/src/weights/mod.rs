//! The weights of a model component. Each weight is a range of bytes in a file, or bytes in memory.
//!
//! No weight is read from a file here. A tensor in a file is a (file, offset, length) that goes
//! into the ONNX graph as *external data*, so that ONNX Runtime maps the user's own file. Only the
//! headers are read, with ordinary reads. If a file shrinks in the meantime, such a read fails with
//! an error, whereas access to a mapped file would end the process.
//!
//! [`WeightFile`] holds the contents of a file under the file's own names. [`Weights`] holds the
//! tensors of one component under the current names in diffusers and transformers ([`names`]).

mod decode;
mod file;
mod gguf;
mod int8;
mod names;
mod outline;
mod pickle;
mod safetensors;
mod scales;
mod spill;
mod types;
mod values;

use std::{
    collections::{HashMap, hash_map::Entry},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use sd_text::outside::printable;

pub(crate) use self::{
    file::{Format, Sizes, Stored, WeightFile},
    int8::{Int8Kind, Int8Layer, Step},
    safetensors::files,
    scales::Scale,
    spill::{Form, Int8Places, Spill, SpillFile},
    types::{Type, Use},
    values::Source,
};
use crate::{Error, calibration::Calibration};

/// The tensors of one model component, by their current names.
#[derive(Debug)]
pub(crate) struct Weights {
    /// The path that errors name: the file as the user knows it, or the index of a sharded model.
    path: PathBuf,
    tensors: HashMap<String, Tensor>,
    /// The layers that graphs over these weights compute in int8, if they compute any.
    pub calibration: Option<Arc<Calibration>>,
}

/// A tensor of a component.
#[derive(Debug)]
pub(crate) struct Tensor {
    pub place: Place,
    pub dtype: Type,
    /// The factor of the stored values.
    pub scale: Option<Scale>,
    /// The shape that the networks expect.
    shape: Vec<usize>,
    /// Whether the bytes hold the matrix with its two axes exchanged.
    pub transposed: bool,
    /// The path of the file as the user knows it, with links not resolved.
    pub file: Arc<Path>,
    /// The tensor's name in that file.
    stored_name: String,
    /// Whether a graph has requested this tensor.
    used: AtomicBool,
    /// Whether a graph over this tensor takes the factors of LoRAs that change it, as inputs.
    live: bool,
}

/// Maps the current name of a component's tensor to the tensor of the file that contains it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mapped {
    pub name: String,
    /// The tensor's name in the file.
    pub stored: String,
    pub view: View,
}

/// Which part of a stored tensor a weight is, and the layout of its numbers there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum View {
    Whole,
    /// Rows of the first axis. OpenCLIP's `in_proj_weight`, for example, is three matrices in one.
    Rows {
        from: usize,
        count: usize,
    },
    /// The same numbers in the same order, in another shape: a linear layer that is stored as a
    /// 1 × 1 convolution, or the reverse.
    Reshaped(Vec<usize>),
    /// A matrix that is stored as `[in, out]`, such as OpenCLIP's `text_projection`.
    Transposed,
}

/// Where the bytes of a tensor are. They are little-endian and in row-major order.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    File {
        /// The file's canonical path: ONNX Runtime refuses links that lead out of its folder.
        path: Arc<Path>,
        /// Bytes from the start of the file.
        offset: u64,
        /// Length in bytes.
        length: u64,
    },
    Memory(Arc<[u8]>),
}

impl Weights {
    /// Opens one file, or all shards that a `*.index.json` lists.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let file = WeightFile::open(path)?;
        gguf::check_architecture(&file)?;
        let mut weights = Self::new(path, file.tensors.len());
        for stored in file.tensors {
            weights.insert(names::today(&stored.name), stored, false)?;
        }
        Ok(weights)
    }

    /// Returns the weights of one component of a file that uses other names, as described by
    /// [`Mapped`].
    pub fn mapped(file: &WeightFile, tensors: &[Mapped]) -> Result<Self, Error> {
        gguf::check_architecture(file)?;
        let by_name: HashMap<&str, &Stored> = file
            .tensors
            .iter()
            .map(|stored| (stored.name.as_str(), stored))
            .collect();
        let mut weights = Self::new(&file.path, tensors.len());
        for Mapped { name, stored, view } in tensors {
            let stored = by_name.get(stored.as_str());
            let stored = *stored.expect("the names come from the file");
            let (stored, transposed) = viewed(stored, view)?;
            weights.insert(name.clone(), stored, transposed)?;
        }
        Ok(weights)
    }

    /// Returns the path that errors name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn new(path: &Path, count: usize) -> Self {
        Self {
            path: path.to_path_buf(),
            tensors: HashMap::with_capacity(count),
            calibration: None,
        }
    }

    fn insert(&mut self, name: String, stored: Stored, transposed: bool) -> Result<(), Error> {
        match self.tensors.entry(name) {
            Entry::Vacant(entry) => {
                entry.insert(Tensor {
                    place: stored.place,
                    dtype: stored.dtype,
                    scale: stored.scale,
                    shape: stored.shape,
                    transposed,
                    file: stored.file,
                    stored_name: stored.name,
                    used: AtomicBool::new(false),
                    live: false,
                });
                Ok(())
            }
            Entry::Occupied(other) => {
                let other: &Tensor = other.get();
                let mut problem = format!("tensor `{}` is there twice", printable(&stored.name));
                if other.stored_name != stored.name {
                    let older = printable(&other.stored_name);
                    problem = format!("{problem}, also as `{older}`");
                }
                let path = stored.file.to_path_buf();
                Err(Error::Checkpoint { path, problem })
            }
        }
    }

    /// Returns a copy that shares the tensors' bytes.
    pub fn copy(&self) -> Self {
        let copy = |tensor: &Tensor| Tensor {
            place: tensor.place.clone(),
            dtype: tensor.dtype,
            scale: tensor.scale.clone(),
            shape: tensor.shape.clone(),
            transposed: tensor.transposed,
            file: tensor.file.clone(),
            stored_name: tensor.stored_name.clone(),
            used: AtomicBool::new(false),
            live: tensor.live,
        };
        let tensors = self.tensors.iter();
        Self {
            path: self.path.clone(),
            tensors: tensors
                .map(|(name, tensor)| (name.clone(), copy(tensor)))
                .collect(),
            calibration: self.calibration.clone(),
        }
    }

    /// Adds a tensor from memory, or replaces the tensor called `name`. This is how weights that a
    /// LoRA was merged into are stored.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] when the number of bytes does not fit the shape and type.
    pub fn put(
        &mut self,
        name: &str,
        dtype: Type,
        shape: &[usize],
        bytes: Arc<[u8]>,
    ) -> Result<(), Error> {
        safetensors::check_length(name, dtype, shape, bytes.len()).map_err(|problem| {
            let path = self.path.clone();
            Error::Checkpoint { path, problem }
        })?;
        self.place(name, dtype, shape, Place::Memory(bytes));
        Ok(())
    }

    /// Returns the number, sizes and types of the tensors.
    pub fn sizes(&self) -> Sizes {
        self.sizes_without(|_| false)
    }

    /// Returns the number, sizes and types of the tensors whose current name is not `left_out`.
    pub fn sizes_without(&self, left_out: impl Fn(&str) -> bool) -> Sizes {
        let tensors = self.tensors.iter().filter(|(name, _)| !left_out(name));
        Sizes::of(tensors.map(|(_, it)| (it.dtype, it.shape.as_slice(), &it.place)))
    }

    /// Returns the shape of a tensor.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|tensor| tensor.shape.as_slice())
    }

    /// Returns the tensor called `name`, and marks it as used.
    ///
    /// # Errors
    /// - [`Error::MissingTensor`] when there is no such tensor.
    /// - [`Error::TensorShape`] when its shape is not `expected`.
    /// - [`Error::TensorType`] when its type cannot be used for weights.
    pub fn tensor(&self, name: &str, expected: &[usize]) -> Result<&Tensor, Error> {
        let tensor = self.tensors.get(name).ok_or_else(|| Error::MissingTensor {
            path: self.path.clone(),
            tensor: name.to_owned(),
            expected: expected.to_vec(),
        })?;
        if tensor.shape != expected {
            return Err(Error::TensorShape {
                path: tensor.file.to_path_buf(),
                tensor: tensor.stored_name.clone(),
                expected: expected.to_vec(),
                found: tensor.shape.clone(),
            });
        }
        if tensor.dtype.usage() == Use::Refused {
            return Err(Error::TensorType {
                path: tensor.file.to_path_buf(),
                tensor: tensor.stored_name.clone(),
                found: tensor.dtype.to_string(),
            });
        }
        tensor.used.store(true, Ordering::Relaxed);
        Ok(tensor)
    }

    /// Refuses tensors that no graph has requested.
    ///
    /// All graphs of the component must have been built before. `class` is the component's class.
    /// `skipped` returns whether a tensor, by its current name, is one that the class knows but
    /// this crate does not use.
    ///
    /// # Errors
    /// [`Error::UnusedTensors`] with the names of the tensors.
    pub fn check_all_used(
        &self,
        class: &'static str,
        skipped: impl Fn(&str) -> bool,
    ) -> Result<(), Error> {
        let unused = self.tensors.iter().filter(|(name, tensor)| {
            !tensor.used.load(Ordering::Relaxed) && !is_no_weight(name) && !skipped(name)
        });
        let mut tensors: Vec<String> = unused
            .map(|(_, tensor)| tensor.stored_name.clone())
            .collect();
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

/// Returns the part of a stored tensor that `view` describes, and whether its axes are exchanged.
fn viewed(stored: &Stored, view: &View) -> Result<(Stored, bool), Error> {
    let mut seen = stored.clone();
    let wrong = |expected: String| Error::Checkpoint {
        path: stored.file.to_path_buf(),
        problem: format!(
            "tensor `{}` has shape {}, expected {expected}",
            printable(&stored.name),
            printable(format_args!("{:?}", stored.shape))
        ),
    };
    let count = |shape: &[usize]| shape.iter().product::<usize>();
    match view {
        View::Whole => {}
        View::Rows { from, count } => {
            let rows = stored.shape.first().copied().unwrap_or(0);
            let end = from.checked_add(*count).filter(|&end| end <= rows);
            let Some(end) = end.filter(|_| rows > 0) else {
                return Err(wrong(format!("at least {from} + {count} rows")));
            };
            seen.shape[0] = 1;
            if stored.dtype.length(&seen.shape).is_none() {
                return Err(wrong(format!("rows of whole blocks of {}", stored.dtype)));
            }
            seen.shape[0] = *count;
            seen.place = stored.place.part(*from, end, rows);
            if let Some(Scale::Rows(scales)) = &stored.scale {
                seen.scale = Some(Scale::Rows(scales[*from..end].into()));
            }
        }
        View::Reshaped(shape) => {
            if count(shape) != count(&stored.shape) {
                return Err(wrong(format!("as many numbers as {shape:?}")));
            }
            if matches!(stored.scale, Some(Scale::Rows(_))) && shape.first() != stored.shape.first()
            {
                return Err(wrong("as many rows as scales".to_owned()));
            }
            seen.shape = shape.clone();
        }
        View::Transposed => {
            let [rows, columns] = stored.shape[..] else {
                return Err(wrong("a matrix".to_owned()));
            };
            seen.shape = vec![columns, rows];
        }
    }
    Ok((seen, *view == View::Transposed))
}

impl Tensor {
    /// Returns a reader of the tensor's numbers, which does not apply the scale.
    pub fn source(&self) -> Source<'_> {
        Source {
            place: &self.place,
            dtype: self.dtype,
            shape: &self.shape,
            file: &self.file,
            name: &self.stored_name,
        }
    }
}

impl Place {
    /// Returns the place of rows `from..to`, out of `rows` rows of equal length.
    fn part(&self, from: usize, to: usize, rows: usize) -> Self {
        match self {
            Self::File {
                path,
                offset,
                length,
            } => {
                let row = length / rows as u64;
                Self::File {
                    path: path.clone(),
                    offset: offset + row * from as u64,
                    length: row * (to - from) as u64,
                }
            }
            Self::Memory(bytes) => {
                let row = bytes.len() / rows;
                Self::Memory(bytes[row * from..row * to].into())
            }
        }
    }
}

/// The last parts of the names of tensors that training or older libraries left in files and that
/// no network uses: transformers' position ids, CLIP's temperature, OpenCLIP's mask, the state of
/// weight averaging, and the noise schedules of latent diffusion's and k-diffusion's wrappers.
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

pub(crate) fn is_no_weight(name: &str) -> bool {
    NO_WEIGHTS.iter().any(|end| {
        let rest = name.strip_suffix(*end);
        rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    })
}

/// Returns the error for a path that is not UTF-8: ONNX stores paths in UTF-8.
pub(crate) fn not_utf8(path: &Path) -> Error {
    let reason = "the real path is not valid UTF-8, which ONNX needs";
    Error::io(path)(std::io::Error::new(
        std::io::ErrorKind::InvalidInput,
        reason,
    ))
}

#[cfg(test)]
mod tests {
    // A failed `unwrap` fails the test.
    #![allow(clippy::unwrap_used)]

    use ::safetensors::{Dtype, serialize_to_file, tensor::TensorView};

    use super::*;

    #[test]
    fn a_tensor_under_its_older_name_and_todays_is_there_twice() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let views = ["query", "to_q"].map(|name| {
            let name = format!("decoder.mid_block.attentions.0.{name}.bias");
            (name, TensorView::new(Dtype::F32, vec![1], &[0; 4]).unwrap())
        });
        serialize_to_file(views, None, &path).unwrap();
        let error = Weights::open(&path).unwrap_err().to_string();
        for part in [".0.query.bias`", ".0.to_q.bias`", "is there twice, also as"] {
            assert!(error.contains(part), "{error}");
        }
    }
}
