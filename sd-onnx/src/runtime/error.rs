//! The errors of finding and starting ONNX Runtime.

use std::path::PathBuf;

use sd_text::outside::{list, printable};

use crate::{Device, Precision, device::one_of};

/// An error of finding, downloading or starting ONNX Runtime, or of requesting a device.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// The library was not found in any of the places that were searched.
    #[error("{what} not found: looked at {}; {hint}", list(searched))]
    NotFound {
        /// The library: ONNX Runtime, or OpenVINO's plugin for it.
        what: String,
        /// The places, in the order in which they were searched.
        searched: Vec<String>,
        /// What to install and how to name it, or why the file cannot be opened.
        hint: String,
    },
    /// The library is older than the oldest supported version, 1.23.0.
    #[error("{}: this is ONNX Runtime {}, which is too old; expected 1.{}.0 or newer", printable(path.display()), printable(found), ort::MINOR_VERSION)]
    TooOld {
        /// The library.
        path: PathBuf,
        /// Its version.
        found: String,
    },
    /// The file is not an ONNX Runtime library.
    #[error("{}: not an ONNX Runtime library: {}", printable(path.display()), printable(problem))]
    NotOnnxRuntime {
        /// The file.
        path: PathBuf,
        /// The reason.
        problem: String,
    },
    /// A file of a library in the cache folder was truncated, changed or deleted. With the Cargo
    /// feature `fetch` it is downloaded again instead.
    #[error("{}: this file of {what} in the cache folder is damaged: {problem}; delete its folder", printable(path.display()))]
    Damaged {
        /// The library that the file belongs to: ONNX Runtime, or OpenVINO's plugin for it.
        what: String,
        /// The file.
        path: PathBuf,
        /// The SHA-256 of the file and the expected one, or why the file cannot be read.
        problem: String,
    },
    /// The process already runs another ONNX Runtime library. It can run only one.
    #[error("this process already runs ONNX Runtime from {} and cannot also use {}", printable(running.display()), printable(asked.display()))]
    OtherRunning {
        /// The library that was started first.
        running: PathBuf,
        /// The library that is requested now.
        asked: PathBuf,
    },
    /// The library was loaded but did not start.
    #[error("{}: ONNX Runtime did not start: {}", printable(path.display()), printable(problem))]
    Start {
        /// The library.
        path: PathBuf,
        /// ONNX Runtime's message.
        problem: String,
    },
    /// The requested device is not available. It is never replaced by another one.
    #[error("the device `{device}` can't be had with ONNX Runtime from {}; available: {}{}", printable(path.display()), available.join(", "), after_semicolon(hint))]
    NoDevice {
        /// The device.
        device: Device,
        /// The library.
        path: PathBuf,
        /// The names of the devices that are available with this library.
        available: Vec<String>,
        /// How to make the device available, or an empty string.
        hint: String,
    },
    /// The device does not support the requested precision on this machine.
    #[error("the device `{device}` does not compute in {precision} on this machine, expected {}", one_of(device.precisions()))]
    Precision {
        /// The device. [`Device::precisions`] lists the precisions that it supports.
        device: Device,
        /// The requested precision.
        precision: Precision,
    },
    /// The OpenVINO plugin was found, but ONNX Runtime did not accept it.
    #[error("{}: ONNX Runtime from {} does not take this OpenVINO plugin: {}", printable(plugin.display()), printable(path.display()), printable(problem))]
    Plugin {
        /// The plugin.
        plugin: PathBuf,
        /// The ONNX Runtime library.
        path: PathBuf,
        /// ONNX Runtime's message.
        problem: String,
    },
    /// There is no NVIDIA GPU that [`Device::Cuda`] can use: no driver, no card, or a card or a
    /// driver that is too old.
    #[error(
        "the device `cuda` has no usable NVIDIA GPU: {}; expected a card with compute capability 7.5 or higher and a driver for CUDA 13 (Linux and Windows: 580 or newer)",
        printable(problem)
    )]
    NoGpu {
        /// The message of the system or of CUDA.
        problem: String,
    },
    /// The provider for [`Device::Cuda`] or a library that it needs cannot be loaded.
    #[error("the device `cuda` of ONNX Runtime from {} cannot be loaded{}: {}; {hint}", printable(path.display()), missing_files(missing), printable(problem))]
    CudaLibraries {
        /// The ONNX Runtime library.
        path: PathBuf,
        /// The files that were not found.
        missing: Vec<String>,
        /// The message of the system or of ONNX Runtime.
        problem: String,
        /// What to install.
        hint: String,
    },
    /// The library could not be downloaded.
    #[error("fetching {what}: {problem}")]
    Fetch {
        /// The library that was being downloaded: ONNX Runtime, or OpenVINO's plugin for it.
        what: String,
        /// The step that failed and the reason.
        problem: String,
    },
}

/// Returns the names of missing files as a further part of a message, or nothing if there are none.
fn missing_files(files: &[String]) -> String {
    match files {
        [] => String::new(),
        files => format!(", because files are missing ({})", list(files)),
    }
}

/// Returns the hint as a further part of a message, or nothing if it is empty.
fn after_semicolon(hint: &str) -> String {
    match hint {
        "" => String::new(),
        hint => format!("; {}", printable(hint)),
    }
}
