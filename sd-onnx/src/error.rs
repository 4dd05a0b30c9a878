//! Everything that can go wrong between a folder and a running session.

use std::path::{Path, PathBuf};

use sd_text::outside::{list, printable};

use crate::{runtime::RuntimeError, weights::Type};

/// What went wrong while a model was read, its graphs were written or its sessions were made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder could not be read.
    #[error("{}: {source}", shown(path))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A part of the model folder is not there.
    #[error("{}: {what} not found; {hint}", shown(path))]
    Missing {
        /// The folder that was searched, or the file itself.
        path: PathBuf,
        /// What was looked for.
        what: String,
        /// What a Stable Diffusion folder has there, or what to do.
        hint: String,
    },
    /// Several weight files fit and none is the plain one.
    #[error(
        "{}: no {plain}, but several variants: {}; choose one by its name",
        shown(path),
        list(found)
    )]
    Variants {
        /// The folder.
        path: PathBuf,
        /// The name of the file without a variant.
        plain: String,
        /// The variants that are there.
        found: Vec<String>,
    },
    /// A JSON file that is no JSON.
    #[error("{}: not valid JSON: {}", shown(path), printable(source))]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why it stopped being JSON.
        source: serde_json::Error,
    },
    /// A key of a configuration has a value that cannot be used.
    #[error("{}: `{key}` is {found}, expected {expected}", shown(path))]
    Config {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What would have been usable.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A weight file is not a well-formed safetensors file.
    #[error("{}: not a usable safetensors file: {problem}", shown(path))]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the tensor or byte where it is known.
        problem: String,
    },
    /// A file that begins as GGUF files do is not a well-formed one.
    #[error("{}: not a usable GGUF file: {problem}", shown(path))]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the byte where it was seen.
        problem: String,
    },
    /// A file of weights is not a model that can be used.
    #[error("{}: {problem}", shown(path))]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What the file is, or what in it cannot be used.
        problem: String,
    },
    /// A tensor that the model's configuration calls for is not in its files.
    #[error(
        "{}: tensor `{tensor}` is missing, expected with shape {expected:?}",
        shown(path)
    )]
    MissingTensor {
        /// The file, or the index of a sharded model.
        path: PathBuf,
        /// Its name as diffusers writes it today.
        tensor: String,
        /// The shape it must have.
        expected: Vec<usize>,
    },
    /// A tensor has another shape than the model's configuration calls for.
    #[error("{}: tensor `{tensor}` has shape {}, expected {expected:?}", shown(path), printable(format_args!("{found:?}")))]
    TensorShape {
        /// The file.
        path: PathBuf,
        /// The tensor's name in the file.
        tensor: String,
        /// The shape it must have.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// A tensor has a data type that is no weight.
    #[error(
        "{}: tensor `{tensor}` has type {found}, expected {}",
        shown(path),
        Type::USABLE
    )]
    TensorType {
        /// The file.
        path: PathBuf,
        /// The tensor's name in the file.
        tensor: String,
        /// The type in the file.
        found: String,
    },
    /// The numbers of a tensor cannot be used: their type, their scale, or how many there are.
    #[error("{}: tensor `{}` {problem}", shown(path), printable(tensor))]
    TensorValues {
        /// The file.
        path: PathBuf,
        /// The tensor's name in the file.
        tensor: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A weight file has tensors that its network has no place for, so that it
    /// would draw something else than the model's author did.
    #[error("{}: the {class} has no place for {} of its tensors: {}", shown(path), tensors.len(), list(tensors))]
    UnusedTensors {
        /// The file, or the index of a sharded model.
        path: PathBuf,
        /// The class of the network in diffusers or transformers.
        class: &'static str,
        /// The names of the tensors, sorted.
        tensors: Vec<String>,
    },
    /// An ONNX file, exported by another tool, cannot be used, or not for this call.
    #[error("{}: {problem}", shown(path))]
    Graph {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the input, operator or tensor where it is known.
        problem: String,
    },
    /// ONNX Runtime could not be found, fetched or started, or lacks the device.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// ONNX Runtime refused a graph or failed while it ran.
    #[error("ONNX Runtime, {stage}: {message}")]
    Onnx {
        /// What was being done, with the model's part.
        stage: String,
        /// What ONNX Runtime said.
        message: String,
    },
    /// The call was stopped by its token, before or while ONNX Runtime ran.
    #[error("stopped")]
    Stopped,
    /// A model cannot be [converted](crate::Builder::convert) to the form that was asked for.
    #[error("{}: {problem}", shown(path))]
    Conversion {
        /// The model.
        path: PathBuf,
        /// What the form has no way to say, or what cannot be written.
        problem: String,
    },
    /// The tokenizer's files cannot be used.
    #[error(transparent)]
    Tokenizer(#[from] sd_text::TokenizerError),
    /// A pickle cannot be read, or asks for something that is not harmless.
    #[error(transparent)]
    Pickle(#[from] sd_text::pickle::PickleError),
    /// A textual inversion cannot be used, at all or with this model.
    #[error(transparent)]
    Inversion(#[from] sd_text::InversionError),
    /// The scheduler's configuration cannot be used.
    #[error("{}: {source}", shown(path))]
    Scheduler {
        /// The file.
        path: PathBuf,
        /// The key, what was expected and what was found.
        source: sd_schedulers::ConfigError,
    },
    /// The parts of the folder do not fit each other.
    #[error("{}: {source}", shown(path))]
    Pipeline {
        /// The model folder.
        path: PathBuf,
        /// Which parts, and why.
        source: sd_core::Error,
    },
}

/// The path in a form that is safe to print.
fn shown(path: &Path) -> String {
    printable(path.display())
}

impl Error {
    pub(crate) fn graph(path: &Path, problem: impl Into<String>) -> Self {
        Self::Graph {
            path: path.to_path_buf(),
            problem: problem.into(),
        }
    }

    pub(crate) fn json(path: &Path) -> impl FnOnce(serde_json::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Json { path, source }
    }

    pub(crate) fn conversion(path: &Path, problem: impl Into<String>) -> Self {
        Self::Conversion {
            path: path.to_path_buf(),
            problem: problem.into(),
        }
    }

    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    pub(crate) fn onnx(stage: impl Into<String>) -> impl FnOnce(ort::Error) -> Self {
        let stage = stage.into();
        // The message may hold a graph's whole path in several lines, and names of files; a user
        // reads one line.
        move |error| Self::Onnx {
            stage,
            message: printable(
                error
                    .message()
                    .split_whitespace()
                    .collect::<Vec<_>>()
                    .join(" "),
            ),
        }
    }
}
