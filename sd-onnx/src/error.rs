//! Errors of loading and converting models.

use std::path::{Path, PathBuf};

use sd_text::outside::{list, printable};

use crate::{runtime::RuntimeError, weights::Type};

/// An error of loading or converting a model, or of running one of its networks.
///
/// The messages name the file, the key or the tensor, and what was expected and found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder cannot be read or written.
    #[error("{}: {source}", shown(path))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// A file, a folder or a network of the model is missing.
    #[error("{}: {what} not found; {hint}", shown(path))]
    Missing {
        /// The folder that was searched, or the file itself.
        path: PathBuf,
        /// The missing file, folder or network.
        what: String,
        /// What was expected there, or how to supply it.
        hint: String,
    },
    /// A folder has several variants of the weights and no plain file.
    #[error(
        "{}: no {plain}, but several variants: {}; choose one with `Builder::variant`",
        shown(path),
        list(found)
    )]
    Variants {
        /// The folder that was searched.
        path: PathBuf,
        /// The file name without a variant.
        plain: String,
        /// The names of the variants.
        found: Vec<String>,
    },
    /// A JSON file is malformed.
    #[error("{}: not valid JSON: {}", shown(path), printable(source))]
    Json {
        /// The file.
        path: PathBuf,
        /// The line, the column and the problem.
        source: serde_json::Error,
    },
    /// A configuration key has a value that cannot be used.
    #[error("{}: `{key}` is {found}, expected {expected}", shown(path))]
    Config {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// The values that are accepted.
        expected: String,
        /// The value in the file.
        found: String,
    },
    /// A weight file is not a valid safetensors file.
    #[error("{}: not a usable safetensors file: {problem}", shown(path))]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// The problem, with the tensor or byte if it is known.
        problem: String,
    },
    /// A weight file starts like a GGUF file but is not a valid one.
    #[error("{}: not a usable GGUF file: {problem}", shown(path))]
    Gguf {
        /// The file.
        path: PathBuf,
        /// The problem and its byte offset.
        problem: String,
    },
    /// A weight file is not a supported model.
    #[error("{}: {problem}", shown(path))]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// The kind of file, or the part of it that is not supported.
        problem: String,
    },
    /// A LoRA or a file of a related format cannot be used, or is for another family of models.
    #[error("{}: {problem}", shown(path))]
    Adapter {
        /// The file.
        path: PathBuf,
        /// The problem, with the tensor and what was expected and found.
        problem: String,
    },
    /// A tensor that a network needs is missing from its files.
    #[error(
        "{}: tensor `{tensor}` is missing, expected with shape {expected:?}",
        shown(path)
    )]
    MissingTensor {
        /// The file, or the index of a sharded model.
        path: PathBuf,
        /// The tensor's current name in diffusers or transformers.
        tensor: String,
        /// The required shape.
        expected: Vec<usize>,
    },
    /// A tensor has the wrong shape.
    #[error("{}: tensor `{tensor}` has shape {}, expected {expected:?}", shown(path), printable(format_args!("{found:?}")))]
    TensorShape {
        /// The file.
        path: PathBuf,
        /// The tensor's name in the file.
        tensor: String,
        /// The required shape.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// A tensor has a data type that is not supported for weights.
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
    /// The numbers of a tensor cannot be used: their type, values, scale or count is wrong.
    #[error("{}: tensor `{}` {problem}", shown(path), printable(tensor))]
    TensorValues {
        /// The file.
        path: PathBuf,
        /// The tensor's name in the file.
        tensor: String,
        /// The problem.
        problem: String,
    },
    /// A network's files have tensors that the network does not use. Without them the model would
    /// make different pictures than its author intended.
    #[error("{}: the {class} has no place for {} of its tensors: {}", shown(path), tensors.len(), list(tensors))]
    UnusedTensors {
        /// The file, or the index of a sharded model.
        path: PathBuf,
        /// The class of the network in diffusers or transformers.
        class: &'static str,
        /// The names of the unused tensors, sorted.
        tensors: Vec<String>,
    },
    /// An ONNX file that another tool exported cannot be used, or does not accept the inputs of a
    /// call.
    #[error("{}: {problem}", shown(path))]
    Graph {
        /// The file.
        path: PathBuf,
        /// The problem, with the input, operator or tensor if it is known.
        problem: String,
    },
    /// ONNX Runtime cannot be found, downloaded or started, or does not have the requested device
    /// or precision.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// ONNX Runtime refused a graph, or failed while running it.
    #[error("ONNX Runtime, {stage}: {message}")]
    Onnx {
        /// The operation and the network, such as "loading the UNet".
        stage: String,
        /// ONNX Runtime's message, on one line.
        message: String,
    },
    /// The call was stopped by its stop token, before or while it ran.
    #[error("stopped")]
    Stopped,
    /// A model cannot be [converted](crate::Builder::convert) to the requested form.
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
    /// A pickle cannot be read, or calls a function that is not allowed.
    #[error(transparent)]
    Pickle(#[from] sd_text::pickle::PickleError),
    /// A textual inversion cannot be used, or does not fit this model.
    #[error(transparent)]
    Inversion(#[from] sd_text::InversionError),
    /// The scheduler's configuration cannot be used.
    #[error("{}: {source}", shown(path))]
    Scheduler {
        /// The file.
        path: PathBuf,
        /// The key, what was expected and what was found.
        source: sd_schedulers::config::ConfigError,
    },
    /// The parts of the model do not fit each other, or a setting of the pipeline is out of range.
    #[error("{}: {source}", shown(path))]
    Pipeline {
        /// The model's file or folder.
        path: PathBuf,
        /// The parts or the setting, and the reason.
        source: sd_core::Error,
    },
}

/// Returns the path in a form that is safe to print.
fn shown(path: &Path) -> String {
    printable(path.display())
}

impl Error {
    pub(crate) fn adapter(path: &Path, problem: impl Into<String>) -> Self {
        Self::Adapter {
            path: path.to_path_buf(),
            problem: problem.into(),
        }
    }

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
        // The message may contain line breaks and names from files, but users and logs read one
        // line.
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
