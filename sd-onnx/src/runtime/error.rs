//! Why there is no ONNX Runtime, or no such device.

use std::path::PathBuf;

use sd_text::outside::{list, printable};

use crate::{Device, Precision, device::one_of};

/// Why there is no ONNX Runtime, or not the one that was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// No library at any of the places.
    #[error("{what} not found: looked at {}; {hint}", list(searched))]
    NotFound {
        /// What was looked for: ONNX Runtime, or OpenVINO's plugin for it.
        what: String,
        /// The places.
        searched: Vec<String>,
        /// What to install.
        hint: String,
    },
    /// The library is older than the oldest that works.
    #[error("{}: this is ONNX Runtime {}, which is too old; expected 1.{}.0 or newer", printable(path.display()), printable(found), ort::MINOR_VERSION)]
    TooOld {
        /// The library.
        path: PathBuf,
        /// Its version.
        found: String,
    },
    /// The file is no library, or another one.
    #[error("{}: not an ONNX Runtime library: {}", printable(path.display()), printable(problem))]
    NotOnnxRuntime {
        /// The file.
        path: PathBuf,
        /// Why it cannot be one.
        problem: String,
    },
    /// A file of a library in the cache folder is not the one that was put there: it was cut short
    /// or changed, or is gone. With the Cargo feature `fetch` it is downloaded again instead.
    #[error("{}: this file of {what} in the cache folder is damaged: {problem}; delete its folder", printable(path.display()))]
    Damaged {
        /// What the file belongs to: ONNX Runtime, or OpenVINO's plugin for it.
        what: String,
        /// The file.
        path: PathBuf,
        /// Its SHA-256 and the expected one, or why it cannot be read.
        problem: String,
    },
    /// A process has one ONNX Runtime, and it is another.
    #[error("this process runs ONNX Runtime from {}, it cannot also use {}", printable(running.display()), printable(asked.display()))]
    OtherRunning {
        /// The library that was started first.
        running: PathBuf,
        /// The library that was asked for now.
        asked: PathBuf,
    },
    /// The library was loaded but did not start.
    #[error("{}: ONNX Runtime did not start: {}", printable(path.display()), printable(problem))]
    Start {
        /// The library.
        path: PathBuf,
        /// What it said.
        problem: String,
    },
    /// The device that was asked for is not available. It is never replaced by another one.
    #[error("the device `{device}` can't be had with ONNX Runtime from {}; available: {}{}", printable(path.display()), available.join(", "), after_semicolon(hint))]
    NoDevice {
        /// The device.
        device: Device,
        /// The library.
        path: PathBuf,
        /// The devices that can be had with it.
        available: Vec<String>,
        /// What to do about it, or empty.
        hint: String,
    },
    /// The device does not compute in the precision that was asked for.
    #[error("the device `{device}` does not compute in {precision} on this machine, expected {}", one_of(device.precisions()))]
    Precision {
        /// The device. [`Device::precisions`] lists its precisions.
        device: Device,
        /// The precision that was asked for.
        precision: Precision,
    },
    /// The OpenVINO plugin was found, but ONNX Runtime did not take it.
    #[error("{}: ONNX Runtime from {} does not take this OpenVINO plugin: {}", printable(plugin.display()), printable(path.display()), printable(problem))]
    Plugin {
        /// The plugin.
        plugin: PathBuf,
        /// The ONNX Runtime library.
        path: PathBuf,
        /// What it said.
        problem: String,
    },
    /// The library could not be downloaded.
    #[error("fetching {what}: {problem}")]
    Fetch {
        /// What was fetched: ONNX Runtime, or OpenVINO's plugin for it.
        what: String,
        /// Which step failed, and how.
        problem: String,
    },
}

/// A further sentence of a message, if there is one.
fn after_semicolon(hint: &str) -> String {
    match hint {
        "" => String::new(),
        hint => format!("; {}", printable(hint)),
    }
}
