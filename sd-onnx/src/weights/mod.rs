//! A model component's weights: each is a place in a safetensors file, or bytes in memory.
//!
//! No weight is read from a file here. A tensor in a file is a (file, offset, length) that goes
//! into the ONNX graph as *external data*, so that ONNX Runtime maps the user's own file. Only the
//! headers are read, by ordinary reads: a file that shrinks meanwhile is an error, where one that
//! is mapped would end the process.
//!
//! Tensors go by the names that diffusers and transformers give them today ([`names`]).

mod names;
mod safetensors;

use std::{
    collections::{HashMap, hash_map::Entry},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use ::safetensors::Dtype;
use sd_text::outside::printable;

pub(crate) use self::safetensors::files;
use crate::Error;

/// The tensors of one model component, by today's names.
#[derive(Debug)]
pub(crate) struct Weights {
    /// What an error names: the file as the user has it, or the index of a sharded model.
    path: PathBuf,
    tensors: HashMap<String, Tensor>,
}

/// One tensor.
#[derive(Debug)]
pub(crate) struct Tensor {
    pub place: Place,
    pub dtype: Dtype,
    shape: Vec<usize>,
    /// The file as the user has it.
    file: Arc<Path>,
    /// The name in that file.
    stored_name: String,
    /// Whether a graph has asked for it.
    used: AtomicBool,
}

/// Where the bytes of a tensor are, little-endian and in row-major order.
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
    /// Opens one safetensors file, or all shards that a `*.index.json` names.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let mut tensors = HashMap::new();
        for file in files(path)? {
            let real = std::fs::canonicalize(&file).map_err(Error::io(&file))?;
            let (data_start, header) = safetensors::read_header(&file)?;
            let (file, real): (Arc<Path>, Arc<Path>) = (file.into(), real.into());
            tensors.reserve(header.len());
            for (stored_name, info) in header {
                let (start, end) = info.data_offsets;
                match tensors.entry(names::today(&stored_name)) {
                    Entry::Vacant(entry) => entry.insert(Tensor {
                        place: Place::File {
                            path: real.clone(),
                            offset: data_start + start as u64,
                            length: (end - start) as u64,
                        },
                        dtype: info.dtype,
                        shape: info.shape,
                        file: file.clone(),
                        stored_name,
                        used: AtomicBool::new(false),
                    }),
                    Entry::Occupied(other) => {
                        let other: &Tensor = other.get();
                        let mut problem =
                            format!("tensor `{}` is there twice", printable(&stored_name));
                        if other.stored_name != stored_name {
                            let older = printable(&other.stored_name);
                            problem = format!("{problem}, also as `{older}`");
                        }
                        let path = file.to_path_buf();
                        return Err(Error::Safetensors { path, problem });
                    }
                };
            }
        }
        Ok(Self {
            path: path.to_path_buf(),
            tensors,
        })
    }

    /// Puts a tensor from memory in the place of the one called `name`, or beside the others where
    /// there is none: weights that a LoRA is merged into, or wider values of a type that ONNX
    /// Runtime does not compute with. The graph holds a copy of the bytes, and ONNX limits a graph
    /// to 2 GiB.
    ///
    /// # Errors
    /// [`Error::Safetensors`] when `bytes` are more or fewer than the shape has in that type.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "for merged LoRAs and wider types")
    )]
    pub fn put(
        &mut self,
        name: &str,
        dtype: Dtype,
        shape: &[usize],
        bytes: Arc<[u8]>,
    ) -> Result<(), Error> {
        safetensors::check_length(name, dtype, shape, bytes.len()).map_err(|problem| {
            let path = self.path.clone();
            Error::Safetensors { path, problem }
        })?;
        let tensor = Tensor {
            place: Place::Memory(bytes),
            dtype,
            shape: shape.to_vec(),
            file: self.path.as_path().into(),
            stored_name: name.to_owned(),
            used: AtomicBool::new(false),
        };
        self.tensors.insert(name.to_owned(), tensor);
        Ok(())
    }

    /// The shape of the tensor of that name.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|tensor| tensor.shape.as_slice())
    }

    /// The floating-point tensor of that name, whose shape must be `expected`. From now on it
    /// counts as used.
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
        if !matches!(tensor.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            return Err(Error::TensorType {
                path: tensor.file.to_path_buf(),
                tensor: tensor.stored_name.clone(),
                found: format!("{:?}", tensor.dtype),
            });
        }
        tensor.used.store(true, Ordering::Relaxed);
        Ok(tensor)
    }

    /// Refuses tensors that no graph has asked for. The graphs of the component, whose class is
    /// `class`, must all have been written before. `skipped` says which other tensors the class
    /// knows and leaves out here, by today's names.
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

/// Tensors that training or an older library left in files and that no network computes with, by
/// the end of their names: transformers' numbers of positions, CLIP's temperature, OpenCLIP's mask,
/// the averaging's state, the noise schedule of latent diffusion's and k-diffusion's wrappers.
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

/// ONNX wants paths in UTF-8.
pub(crate) fn not_utf8(path: &Path) -> Error {
    let reason = "the real path is not valid UTF-8, which ONNX needs";
    Error::io(path)(std::io::Error::new(
        std::io::ErrorKind::InvalidInput,
        reason,
    ))
}

#[cfg(test)]
mod tests {
    // In a test it is the failure.
    #![allow(clippy::unwrap_used)]

    use ::safetensors::{serialize_to_file, tensor::TensorView};

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
