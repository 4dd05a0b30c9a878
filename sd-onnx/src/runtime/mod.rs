//! Finds and starts ONNX Runtime, once per process, and OpenVINO's provider for it.
//!
//! # Where the library comes from
//! A process that runs ONNX Runtime keeps its library. Otherwise the library is searched for in
//! these places:
//!
//! 1. the path given to [`Builder::runtime`](crate::Builder::runtime);
//! 2. the path in the environment variable `ORT_DYLIB_PATH`;
//! 3. the cache folder;
//! 4. with the Cargo feature `fetch`, a wheel that `pip` downloads into that folder. Without the
//!    feature, the error is [`RuntimeError::NotFound`].
//!
//! Places 3 and 4 have ONNX Runtime 1.32.0, with two exceptions:
//!
//! - for [`Device::Cuda`], version 1.31.1 with CUDA's provider;
//! - for [`Device::OpenVino`] on a processor that is not from Intel, version 1.24.1 with OpenVINO
//!   built in, because OpenVINO's plugin does not list such processors.
//!
//! # Where CUDA comes from
//! CUDA's provider is a library beside ONNX Runtime. It loads NVIDIA's libraries, which are never
//! downloaded here. The system's loader searches for them, after the folders in the environment
//! variable `ORT_CUDA_PATH`.
//!
//! # Where OpenVINO comes from
//! If the library has OpenVINO's provider built in, that provider is used. Otherwise the provider
//! is a plugin, which is registered once per process. It is searched for at the path in the
//! environment variable `ORT_OPENVINO_PLUGIN`, and then in places 3 and 4. The path must name the
//! plugin's library, `libonnxruntime_providers_openvino_plugin.so` (on Windows
//! `onnxruntime_providers_openvino_plugin.dll`). OpenVINO's libraries must be in the same folder.
//!
//! # Which files are loaded
//! A file in the cache folder is loaded only if it has the SHA-256 of its release, because loading
//! a truncated library ends the process. The hash is remembered by the file's path, length and
//! modification time, like the hashes of models. A release appears in the cache folder as a whole,
//! by one rename. If one of its files is damaged, the whole release is replaced.

mod channel_block;
mod cuda;
mod error;
#[cfg(feature = "fetch")]
mod fetch;
mod locate;
mod openvino;
pub(crate) mod processor;
mod release;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use ort::{LoadDynamicError, environment::Environment};

use crate::Device;
pub use error::RuntimeError;
use locate::locate;
pub(crate) use openvino::OpenVino;
use release::Product;

/// The ONNX Runtime library of this process.
#[derive(Debug)]
pub(crate) struct Runtime {
    pub path: PathBuf,
    pub environment: Environment,
    /// The path of the registered OpenVINO plugin. Locked while the list of devices changes or is
    /// read.
    plugin: Mutex<Option<PathBuf>>,
    /// What [`channel_block`](Self::channel_block) found.
    channel_block: OnceLock<Option<usize>>,
    /// Set after [`check_cuda`](Self::check_cuda) has found a graphics card.
    has_cuda: OnceLock<()>,
}

/// The library that started first. It stays for the life of the process, because ONNX Runtime
/// allows no second environment.
static RUNNING: Mutex<Option<Arc<Runtime>>> = Mutex::new(None);

impl Runtime {
    /// Returns the running library, or starts the one at `explicit` or at the first place that has
    /// one. `device` determines which release is searched for. [`Device::check`] checks whether the
    /// library has that device.
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
        // ONNX Runtime also prints the problems that it returns as errors. Only the errors are
        // wanted.
        environment.set_log_level(ort::logging::LogLevel::Fatal);
        tracing::info!(path = %path.display(), "started ONNX Runtime");
        Ok(running
            .insert(Arc::new(Self {
                path,
                environment,
                plugin: Mutex::new(None),
                channel_block: OnceLock::new(),
                has_cuda: OnceLock::new(),
            }))
            .clone())
    }
}

/// Sets the environment variable `ORT_DISABLE_TELEMETRY` to 1 if it is not set.
///
/// Microsoft's builds of ONNX Runtime for Linux and macOS send events about the sessions to a
/// Microsoft server. Version 1.32 reads this variable when the environment is created. It then
/// writes no device ID and no event database, and contacts no server.
/// `EnvironmentBuilder::with_telemetry` is too late for all of that, because it applies to an
/// existing environment. On Windows only that call has an effect. Its events stay on the machine
/// unless a trace session collects them.
fn turn_telemetry_off() {
    const VARIABLE: &str = "ORT_DISABLE_TELEMETRY";
    if std::env::var_os(VARIABLE).is_some() {
        return;
    }
    // Safety: outside of Windows, no other thread may read or write the environment during this
    // call, except through `std::env`, which takes a lock. Rust code uses `std::env`. C code that
    // calls `getenv` in another thread at the same time is a data race, which this function cannot
    // rule out. It keeps the risk small: it writes once in the life of the process, before the
    // library is loaded, and not at all if the program has set the variable, as the crate's
    // documentation recommends.
    #[allow(unsafe_code)]
    unsafe {
        std::env::set_var(VARIABLE, "1");
    }
}

/// Returns the release of ONNX Runtime to search for if no library is named. `intel` is whether the
/// processor is from Intel.
fn release_for(device: Device, intel: bool) -> Product {
    // Intel's GPUs and NPUs are listed with any processor.
    match device {
        Device::OpenVino if !intel => Product::OpenVinoBuild,
        Device::Cuda => Product::CudaBuild,
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
            problem: "its version cannot be read".into(),
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
    fn devices_want_their_builds() {
        let of = |device| [true, false].map(|intel| release_for(device, intel));
        let plain = [Product::OnnxRuntime; 2];
        assert_eq!(of(Device::Cpu), plain);
        assert_eq!(of(Device::OpenVinoGpu), plain);
        assert_eq!(of(Device::OpenVinoNpu), plain);
        assert_eq!(of(Device::Cuda), [Product::CudaBuild; 2]);
        assert_eq!(
            of(Device::OpenVino),
            [Product::OnnxRuntime, Product::OpenVinoBuild]
        );
    }
}
