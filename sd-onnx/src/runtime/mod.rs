//! Finding ONNX Runtime and starting it, once for the process.
//!
//! The library is looked for at the path given to [`Builder::runtime`](crate::Builder::runtime), then at the one in the
//! environment variable `ORT_DYLIB_PATH`, then in the cache folder. With the Cargo feature `fetch` it is downloaded
//! into that folder when it is nowhere; without, that is [`RuntimeError::NotFound`].

#[cfg(feature = "fetch")]
mod fetch;
mod release;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use ort::{LoadDynamicError, environment::Environment};

use crate::Device;

/// Why there is no ONNX Runtime, or not the one that was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// No library at any of the places.
    #[error("ONNX Runtime not found: looked at {}; {hint}", searched.join(", "))]
    NotFound {
        /// The places.
        searched: Vec<String>,
        /// What to install.
        hint: String,
    },
    /// The library is older than the oldest that works.
    #[error("{}: this is ONNX Runtime {found}, which is too old; expected 1.{}.0 or newer", path.display(), ort::MINOR_VERSION)]
    TooOld {
        /// The library.
        path: PathBuf,
        /// Its version.
        found: String,
    },
    /// The file is no library, or another one.
    #[error("{}: not an ONNX Runtime library: {problem}", path.display())]
    NotOnnxRuntime {
        /// The file.
        path: PathBuf,
        /// Why it cannot be one.
        problem: String,
    },
    /// A process has one ONNX Runtime, and it is another.
    #[error("this process runs ONNX Runtime from {}, it cannot also use {}", running.display(), asked.display())]
    OtherRunning {
        /// The library that was started first.
        running: PathBuf,
        /// The library that was asked for now.
        asked: PathBuf,
    },
    /// The library was loaded but did not start.
    #[error("{}: ONNX Runtime did not start: {problem}", path.display())]
    Start {
        /// The library.
        path: PathBuf,
        /// What it said.
        problem: String,
    },
    /// The device that was asked for can't be had. It is never replaced by another.
    #[error("the device `{device}` can't be had with ONNX Runtime from {}; available: {}", path.display(), available.join(", "))]
    NoDevice {
        /// The device.
        device: Device,
        /// The library.
        path: PathBuf,
        /// The devices that can be had with it.
        available: Vec<String>,
    },
    /// The library could not be downloaded.
    #[error("fetching ONNX Runtime: {problem}")]
    Fetch {
        /// Which step failed, and how.
        problem: String,
    },
}

/// The process's ONNX Runtime.
#[derive(Debug)]
pub(crate) struct Runtime {
    pub path: PathBuf,
    pub environment: Environment,
}

/// The first start wins for the life of the process; ONNX Runtime allows no second environment.
static RUNNING: Mutex<Option<Arc<Runtime>>> = Mutex::new(None);

impl Runtime {
    /// The running one, or the one at `explicit` or at the first place that has it, started.
    pub fn start(explicit: Option<&Path>) -> Result<Arc<Self>, RuntimeError> {
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
        let path = locate(explicit)?;
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
        Ok(running.insert(Arc::new(Self { path, environment })).clone())
    }
}

/// An absolute path, so that `ort` does not search for it.
fn locate(explicit: Option<&Path>) -> Result<PathBuf, RuntimeError> {
    let variable = std::env::var_os("ORT_DYLIB_PATH")
        .filter(|value| !value.is_empty())
        .map(PathBuf::from);
    if let Some((path, origin)) = explicit
        .map(|path| (path.to_path_buf(), ""))
        .or(variable.map(|path| (path, " (from ORT_DYLIB_PATH)")))
    {
        return match std::path::absolute(&path) {
            Ok(absolute) if absolute.exists() => Ok(absolute),
            // It was named, so no other is taken in its place.
            _ => Err(RuntimeError::NotFound {
                searched: vec![format!("{}{origin}", path.display())],
                hint: "there is no such file".into(),
            }),
        };
    }
    let cache = dirs::cache_dir().map(|cache| cache.join("sd-onnx"));
    let release = release::for_this_platform();
    let cached = cache
        .as_ref()
        .zip(release)
        .map(|(cache, release)| cache.join(release.folder()).join(release.file()));
    if let Some(cached) = &cached
        && cached.exists()
    {
        return Ok(cached.clone());
    }
    #[cfg(feature = "fetch")]
    if let Some((cache, release)) = cache.zip(release) {
        return fetch::fetch(release, &cache);
    }
    let cached = match (cached, release) {
        (Some(path), _) => path.display().to_string(),
        (None, Some(_)) => "the cache folder (this system has none)".into(),
        (None, None) => {
            let (os, architecture) = (std::env::consts::OS, std::env::consts::ARCH);
            format!("the cache folder (there is no pinned release for {os} on {architecture})")
        }
    };
    Err(RuntimeError::NotFound {
        searched: vec!["ORT_DYLIB_PATH (not set)".into(), cached],
        hint: format!(
            "install ONNX Runtime {} (`pip install onnxruntime=={0}` has the library in onnxruntime/capi) and name the library in ORT_DYLIB_PATH",
            release::VERSION
        ),
    })
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
