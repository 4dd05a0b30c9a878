//! Finding ONNX Runtime and starting it, once for the process; and OpenVINO's provider for it.
//!
//! # Where the library comes from
//! A process that runs ONNX Runtime keeps it. Otherwise the library is looked for
//! 1. at the path given to [`Builder::runtime`](crate::Builder::runtime),
//! 2. at the path in the environment variable `ORT_DYLIB_PATH`,
//! 3. in the cache folder,
//! 4. with the Cargo feature `fetch`, in a wheel that `pip` downloads into that folder; without it,
//!    that is [`RuntimeError::NotFound`].
//!
//! In 3 and 4 it is ONNX Runtime 1.32.0, except for [`Device::OpenVino`] on a processor that is not
//! Intel's: OpenVINO's plugin does not list those, so it is 1.24.1 with OpenVINO built in.
//!
//! # Where OpenVINO comes from
//! If the library has OpenVINO's provider built in, it is used. Otherwise the provider is a plugin,
//! which is registered once for the process. It is looked for at the path in the environment
//! variable `ORT_OPENVINO_PLUGIN`, and then as in 3 and 4. A path names the plugin's library
//! `libonnxruntime_providers_openvino_plugin.so` (on Windows
//! `onnxruntime_providers_openvino_plugin.dll`), which finds OpenVINO's libraries beside it.
//!
//! # What is loaded
//! Files in the cache folder are loaded only if they have the SHA-256 of their release, because
//! loading a library that was cut short ends the process. The hash is remembered by the file's
//! path, length and time of change, as models' hashes are. A release appears in the cache folder
//! whole, by one rename, and is replaced as a whole if a file of it is damaged.

mod error;
#[cfg(feature = "fetch")]
mod fetch;
mod locate;
mod openvino;
pub(crate) mod processor;
mod release;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use ort::{LoadDynamicError, environment::Environment};

use crate::Device;
pub use error::RuntimeError;
use locate::locate;
pub(crate) use openvino::OpenVino;
use release::Product;

/// The process's ONNX Runtime.
#[derive(Debug)]
pub(crate) struct Runtime {
    pub path: PathBuf,
    pub environment: Environment,
    /// The OpenVINO plugin that is registered. Locked while the list of devices changes or is read.
    plugin: Mutex<Option<PathBuf>>,
}

/// The first start wins for the life of the process; ONNX Runtime allows no second environment.
static RUNNING: Mutex<Option<Arc<Runtime>>> = Mutex::new(None);

impl Runtime {
    /// The running one, or the one at `explicit` or at the first place that has it, started. Which
    /// release is looked for depends on `device`. Whether the library has that device is for
    /// [`Device::check`].
    pub fn start(explicit: Option<&Path>, device: Device) -> Result<Arc<Self>, RuntimeError> {
        let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = &*running {
            return match explicit {
                Some(asked) if !same_file(asked, &running.path) => {
                    Err(RuntimeError::OtherRunning {
                        running: running.path.clone(),
                        asked: asked.to_path_buf(),
                    })
                }
                _ => Ok(running.clone()),
            };
        }
        let path = locate(explicit, release_for(device, processor::is_intel()))?;
        turn_telemetry_off();
        let builder = ort::init_from(&path).map_err(|error| load_error(error, &path))?;
        let start = |error: ort::Error| RuntimeError::Start {
            path: path.clone(),
            problem: error.message().to_owned(),
        };
        let environment = builder
            .with_name("sd-onnx")
            .with_telemetry(false)
            .build()
            .map_err(start)?;
        // What goes wrong comes back as an error; ONNX Runtime would print it too.
        environment.set_log_level(ort::logging::LogLevel::Fatal);
        tracing::info!(path = %path.display(), "started ONNX Runtime");
        Ok(running
            .insert(Arc::new(Self {
                path,
                environment,
                plugin: Mutex::new(None),
            }))
            .clone())
    }
}

/// Sets the environment variable `ORT_DISABLE_TELEMETRY` to 1 if it is not set.
///
/// Microsoft's builds of ONNX Runtime for Linux and macOS send events about the sessions to a
/// server of Microsoft. 1.32 reads this variable when the environment is made, and then writes no
/// device ID, no database of events, and looks for no server. `EnvironmentBuilder::with_telemetry`
/// comes too late for all of that: it takes an environment that has been made. On Windows the
/// library knows only that call; its events stay on the machine unless a trace session collects
/// them.
fn turn_telemetry_off() {
    const VARIABLE: &str = "ORT_DISABLE_TELEMETRY";
    if std::env::var_os(VARIABLE).is_some() {
        return;
    }
    // Safety: outside of Windows, no other thread may read or write the environment meanwhile
    // except through `std::env`, which takes a lock. Rust code does so. C code that calls `getenv`
    // in another thread at this moment is a data race, which this function cannot rule out. It is
    // as short as possible: one write in the life of the process, before the library is loaded, and
    // none if the program has set the variable, as the crate's documentation recommends.
    #[allow(unsafe_code)]
    unsafe {
        std::env::set_var(VARIABLE, "1");
    }
}

/// The release of ONNX Runtime that is looked for where no library is named, on a processor that is
/// `intel`'s or not.
fn release_for(device: Device, intel: bool) -> Product {
    // Intel's GPUs and NPUs are listed beside any processor.
    match device {
        Device::OpenVino if !intel => Product::OpenVinoBuild,
        _ => Product::OnnxRuntime,
    }
}

fn load_error(error: LoadDynamicError, path: &Path) -> RuntimeError {
    let path = path.to_path_buf();
    match error {
        LoadDynamicError::BadVersion { version_str, .. } => RuntimeError::TooOld {
            path,
            found: version_str,
        },
        LoadDynamicError::Dlopen { error, .. } => {
            let problem = std::error::Error::source(&error)
                .map_or_else(|| error.to_string(), ToString::to_string);
            RuntimeError::NotOnnxRuntime { path, problem }
        }
        LoadDynamicError::MissingApi { .. } => RuntimeError::NotOnnxRuntime {
            path,
            problem: "it has no function `OrtGetApiBase`".into(),
        },
        LoadDynamicError::InvalidVersionString => RuntimeError::NotOnnxRuntime {
            path,
            problem: "its version is not readable".into(),
        },
    }
}

fn same_file(a: &Path, b: &Path) -> bool {
    match (std::fs::canonicalize(a), std::fs::canonicalize(b)) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_another_makers_processor_wants_the_openvino_build() {
        let of = |device| [true, false].map(|intel| release_for(device, intel));
        let plain = [Product::OnnxRuntime; 2];
        assert_eq!(of(Device::Cpu), plain);
        assert_eq!(of(Device::OpenVinoGpu), plain);
        assert_eq!(of(Device::OpenVinoNpu), plain);
        assert_eq!(
            of(Device::OpenVino),
            [Product::OnnxRuntime, Product::OpenVinoBuild]
        );
    }
}
