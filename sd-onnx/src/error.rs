//! Errors of loading, converting and running models.

use std::path::{Path, PathBuf};

use sd_text::outside::{list, printable};

use crate::{runtime::RuntimeError, weights::Type};

/// An error of loading a model.
///
/// The messages name the file, the key or the tensor, and what was expected and found. `Display`
/// prints the error without its cause, which [`source`](std::error::Error::source) returns.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder cannot be read or written.
    #[error("{}: cannot be read or written", shown(path))]
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
    #[error("{}: not valid JSON: {}", shown(path), printable(problem))]
    Json {
        /// The file.
        path: PathBuf,
        /// The problem, with its line and column.
        problem: String,
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
    /// A LoRA or a file of a related format cannot be used, or is for another family of models, or
    /// the model cannot be changed because another tool exported it to ONNX.
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
    /// ONNX Runtime refused a graph.
    #[error("ONNX Runtime, {stage}: {message}")]
    Onnx {
        /// The operation and the network, such as "loading the UNet".
        stage: String,
        /// ONNX Runtime's message, on one line.
        message: String,
    },
    /// The tokenizer's files cannot be used.
    #[error(transparent)]
    Tokenizer(#[from] sd_text::TokenizerError),
    /// A pickle cannot be read, or calls a function that is not allowed.
    #[error(transparent)]
    Pickle(#[from] sd_text::pickle::PickleError),
    /// A textual inversion cannot be used, or does not fit this model. It may be a part of the file
    /// of a LoRA.
    #[error(transparent)]
    Inversion(#[from] sd_text::InversionError),
    /// The scheduler's configuration cannot be used.
    #[error("{}: the scheduler's configuration cannot be used", shown(path))]
    Scheduler {
        /// The file.
        path: PathBuf,
        /// The key, what was expected and what was found.
        source: sd_schedulers::config::ConfigError,
    },
    /// A tokenizer and its text encoder, or several text encoders, do not fit each other.
    #[error("{}: the text encoders and tokenizers do not fit", shown(path))]
    TextEncoders {
        /// The model's file or folder.
        path: PathBuf,
        /// The sizes that differ.
        source: sd_text::TowerError,
    },
    /// The parts of the model do not fit each other, or a setting of the pipeline is out of range.
    #[error("{}: no pipeline can be built", shown(path))]
    Pipeline {
        /// The model's file or folder.
        path: PathBuf,
        /// The parts or the setting, and the reason.
        source: sd_core::BuildError,
    },
    /// The UNet gets inputs that the calibration for
    /// [`Precision::Int8`](crate::Precision::Int8) does not measure, so its pictures in int8 could
    /// be wrong.
    #[error("{}: {problem}", shown(path))]
    Int8 {
        /// The model's file or folder.
        path: PathBuf,
        /// The inputs, and what to do instead.
        problem: String,
    },
    /// A picture of the calibration for [`Precision::Int8`](crate::Precision::Int8) cannot be
    /// drawn.
    #[error("{}: the UNet cannot be calibrated for int8", shown(path))]
    Calibration {
        /// The file of the UNet.
        path: PathBuf,
        /// Why the picture cannot be drawn.
        source: Box<sd_core::GenerateError>,
    },
}

/// An error of [converting](crate::Builder::convert) a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// The model cannot be read, or the new model cannot be written.
    #[error(transparent)]
    Model(#[from] Error),
    /// The model cannot be converted to the requested form.
    #[error("{}: {problem}", shown(path))]
    Form {
        /// The model.
        path: PathBuf,
        /// What the new form cannot store, or what cannot be written.
        problem: String,
    },
    /// The token of [`Conversion::stop`](crate::Conversion::stop) was stopped.
    #[error("stopped")]
    Stopped,
}

/// An error of running a network of a loaded model.
///
/// It is the [`source`](std::error::Error::source) of
/// [`GenerateError::Backend`](crate::GenerateError::Backend) and of
/// [`TextError::Model`](crate::text::TextError::Model), as a `Box<dyn Error>` that can be
/// downcast.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The network had to be loaded for this call and could not be, or it does not accept the
    /// inputs of the call.
    ///
    /// [`Builder::low_memory`](crate::Builder::low_memory) and a new size of pictures on OpenVINO
    /// load networks during a run.
    #[error(transparent)]
    Model(#[from] Error),
    /// ONNX Runtime failed while it ran the network.
    #[error("ONNX Runtime, running the {network}: {message}")]
    Onnx {
        /// The network, such as "UNet".
        network: &'static str,
        /// ONNX Runtime's message, on one line.
        message: String,
    },
    /// The call was stopped by its stop token, before or while it ran.
    #[error("stopped")]
    Stopped,
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
        move |error| Self::Json {
            path,
            problem: error.to_string(),
        }
    }

    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    pub(crate) fn onnx(stage: impl Into<String>) -> impl FnOnce(ort::Error) -> Self {
        let stage = stage.into();
        move |error| Self::Onnx {
            stage,
            message: on_one_line(&error),
        }
    }
}

impl ConvertError {
    pub(crate) fn form(path: &Path, problem: impl Into<String>) -> Self {
        Self::Form {
            path: path.to_path_buf(),
            problem: problem.into(),
        }
    }
}

impl RunError {
    pub(crate) fn onnx(network: &'static str) -> impl FnOnce(ort::Error) -> Self {
        move |error| Self::Onnx {
            network,
            message: on_one_line(&error),
        }
    }
}

/// Returns ONNX Runtime's message. It may contain line breaks and names from files, but users and
/// logs read one line.
fn on_one_line(error: &ort::Error) -> String {
    let words: Vec<_> = error.message().split_whitespace().collect();
    printable(words.join(" "))
}
