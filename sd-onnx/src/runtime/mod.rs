//! Finding ONNX Runtime and starting it, once for the process.
//!
//! The library is looked for at the path given to [`Builder::runtime`](crate::Builder::runtime), then at the one in the
//! environment variable `ORT_DYLIB_PATH`, then in the cache folder. With the Cargo feature `fetch` it is downloaded
//! into that folder when it is nowhere; without, that is [`RuntimeError::NotFound`].
//!
//! A library in the cache folder is loaded only if it has the SHA-256 of its release, because
//! loading one that was cut short ends the process. The hash is remembered by the file's path,
//! length and time of change, as models' hashes are.

#[cfg(feature = "fetch")]
mod fetch;
mod openvino;
mod release;

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use ort::{LoadDynamicError, environment::Environment};

use sd_text::outside::{self, list, printable};

use crate::{Device, Precision, device::one_of, hash};
pub(crate) use openvino::OpenVino;
use release::Release;

/// Why there is no ONNX Runtime, or not the one that was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// No library at any of the places.
    #[error("ONNX Runtime not found: looked at {}; {hint}", list(searched))]
    NotFound {
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
    /// The library in the cache folder is not the one that was put there: it was cut short or
    /// changed. With the Cargo feature `fetch` it is downloaded again instead.
    #[error("{}: the ONNX Runtime library in the cache folder is damaged: {problem}; delete the file", printable(path.display()))]
    Damaged {
        /// The library.
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
    #[error("the device `{device}` does not compute in {precision}, expected {}", one_of(device.precisions()))]
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
    /// The OpenVINO plugin that is registered.
    plugin: Mutex<Option<PathBuf>>,
}

/// The first start wins for the life of the process; ONNX Runtime allows no second environment.
static RUNNING: Mutex<Option<Arc<Runtime>>> = Mutex::new(None);

impl Runtime {
    /// The running one, or the one at `explicit` or at the first place that has it, started. Which
    /// library is looked for depends on `device`; whether it has that device is not checked.
    pub fn start(explicit: Option<&Path>, _device: Device) -> Result<Arc<Self>, RuntimeError> {
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

/// An absolute path, so that `ort` does not search for it.
fn locate(explicit: Option<&Path>) -> Result<PathBuf, RuntimeError> {
    let variable = std::env::var_os("ORT_DYLIB_PATH")
        .filter(|value| !value.is_empty())
        .map(PathBuf::from);
    if let Some((path, origin)) = explicit
        .map(|path| (path.to_path_buf(), ""))
        .or(variable.map(|path| (path, " (from ORT_DYLIB_PATH)")))
    {
        return named(path, origin);
    }
    let cache = dirs::cache_dir().map(|cache| cache.join("sd-onnx"));
    let release = release::for_this_platform();
    let cached = cache
        .as_ref()
        .zip(release)
        .map(|(cache, release)| cache.join(release.folder()).join(release.file()));
    if let Some((cached, release)) = cached.as_ref().zip(release)
        && cached.exists()
    {
        match check(cached, release) {
            Ok(()) => return Ok(cached.clone()),
            Err(_) if cfg!(feature = "fetch") => {}
            Err(problem) => {
                let path = cached.clone();
                return Err(RuntimeError::Damaged { path, problem });
            }
        }
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

/// A library that was named, so that no other is taken in its place.
fn named(path: PathBuf, origin: &str) -> Result<PathBuf, RuntimeError> {
    let absolute = std::path::absolute(&path).and_then(|path| outside::open(&path).map(|_| path));
    absolute.map_err(|error| match error.kind() {
        // Loading a pipe would wait forever.
        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => RuntimeError::NotOnnxRuntime {
            path,
            problem: error.to_string(),
        },
        _ => RuntimeError::NotFound {
            searched: vec![format!("{}{origin}", path.display())],
            hint: error.to_string(),
        },
    })
}

/// Checks that the file is the library of the release, byte for byte.
fn check(library: &Path, release: &Release) -> Result<(), String> {
    outside::open(library).map_err(|error| error.to_string())?;
    let files = [library.to_path_buf()];
    let expected = release.library_sha256;
    let remembered = hash::remembered(&files, hash::cache().as_deref());
    if remembered.is_ok_and(|found| found == expected) {
        return Ok(());
    }
    // Only a right hash is believed from memory: a mended file may have the length and the time of
    // the damaged one.
    let found = hash::sha256(&files).map_err(|error| error.to_string())?;
    if found == expected {
        return Ok(());
    }
    Err(format!("it has SHA-256 {found}, expected {expected}"))
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

/// A further sentence of a message, if there is one.
fn after_semicolon(hint: &str) -> String {
    match hint {
        "" => String::new(),
        hint => format!("; {}", printable(hint)),
    }
}

fn same_file(a: &Path, b: &Path) -> bool {
    match (std::fs::canonicalize(a), std::fs::canonicalize(b)) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    }
}
