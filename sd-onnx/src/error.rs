//! Errors of loading and converting models.

use std::path::{Path, PathBuf};

use sd_text::outside::{list, printable};

use crate::{runtime::RuntimeError, weights::Type};

/// Errors of loading and converting models.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder could not be read.
    #[error("{}: {source}", shown(path))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// A part of the model is missing.
    #[error("{}: {what} not found; {hint}", shown(path))]
    Missing {
        /// The folder that was searched, or the file itself.
        path: PathBuf,
        /// The missing file, folder or network.
        what: String,
        /// What was expected there, or what to do.
        hint: String,
    },
    /// Several variants of the weights are there, and no plain file.
    #[error(
        "{}: no {plain}, but several variants: {}; choose one by its name",
        shown(path),
        list(found)
    )]
    Variants {
        /// The folder.
        path: PathBuf,
        /// The name of the plain file, without a variant.
        plain: String,
        /// The variants.
        found: Vec<String>,
    },
    /// A JSON file is malformed.
    #[error("{}: not valid JSON: {}", shown(path), printable(source))]
    Json {
        /// The file.
        path: PathBuf,
        /// The line and the column, and what is wrong there.
        source: serde_json::Error,
    },
    /// A key of a configuration has a value that cannot be used.
    #[error("{}: `{key}` is {found}, expected {expected}", shown(path))]
    Config {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// The values that can be used.
        expected: String,
        /// The value in the file.
        found: String,
    },
    /// A weight file is not a well-formed safetensors file.
    #[error("{}: not a usable safetensors file: {problem}", shown(path))]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the tensor or byte if it is known.
        problem: String,
    },
    /// A file begins like a GGUF file and is not a well-formed one.
    #[error("{}: not a usable GGUF file: {problem}", shown(path))]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong, and at which byte.
        problem: String,
    },
    /// A file of weights is not a model that can be used.
    #[error("{}: {problem}", shown(path))]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// The kind of file, or what in it cannot be used.
        problem: String,
    },
    /// A tensor that the model needs is not in its files.
    #[error(
        "{}: tensor `{tensor}` is missing, expected with shape {expected:?}",
        shown(path)
    )]
    MissingTensor {
        /// The file, or the index of a sharded model.
        path: PathBuf,
        /// The tensor's current name in diffusers or transformers.
        tensor: String,
        /// The shape it must have.
        expected: Vec<usize>,
    },
    /// A tensor has another shape than the model needs.
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
    /// A tensor has a data type that weights cannot have.
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
    /// The numbers of a tensor cannot be used: their type, their values, their scale,
    /// or their count.
    #[error("{}: tensor `{}` {problem}", shown(path), printable(tensor))]
    TensorValues {
        /// The file.
        path: PathBuf,
        /// The tensor's name in the file.
        tensor: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A network has tensors that it has no place for. Without them the model would draw different
    /// pictures from its author's.
    #[error("{}: the {class} has no place for {} of its tensors: {}", shown(path), tensors.len(), list(tensors))]
    UnusedTensors {
        /// The file, or the index of a sharded model.
        path: PathBuf,
        /// The class of the network in diffusers or transformers.
        class: &'static str,
        /// The names of the tensors, sorted.
        tensors: Vec<String>,
    },
    /// An ONNX file that another tool exported cannot be used, or not for this call.
    #[error("{}: {problem}", shown(path))]
    Graph {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the input, operator or tensor if it is known.
        problem: String,
    },
    /// ONNX Runtime could not be found, downloaded or started, or lacks the device.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// ONNX Runtime refused a graph or failed while it ran.
    #[error("ONNX Runtime, {stage}: {message}")]
    Onnx {
        /// The operation, such as loading, and the network.
        stage: String,
        /// The message of ONNX Runtime.
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
        /// What the new form cannot store, or what cannot be written.
        problem: String,
    },
    /// The tokenizer's files cannot be used.
    #[error(transparent)]
    Tokenizer(#[from] sd_text::TokenizerError),
    /// A pickle cannot be read, or asks for a function that is not allowed.
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
    /// The parts of the model do not fit each other.
    #[error("{}: {source}", shown(path))]
    Pipeline {
        /// The model's file or folder.
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
