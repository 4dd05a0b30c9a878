//! CUDA's provider: loads NVIDIA's libraries, and checks that a graphics card runs.

use std::{
    env,
    path::{Path, PathBuf},
};

use ort::{ep::ExecutionProvider, session::Session, util::preload_dylib, value::TensorRef};

use super::{Runtime, RuntimeError};
use crate::{
    Precision,
    graph::{Dialect, Dim, Graph},
    provider::cuda,
    weights::Weights,
};

/// The environment variable with the folders of NVIDIA's libraries, separated as in `PATH`.
const VARIABLE: &str = "ORT_CUDA_PATH";

/// The folders of the libraries in NVIDIA's Python packages, from the folder `nvidia` on.
#[cfg(not(windows))]
const FOLDERS: [&str; 3] = ["", "cu13/lib", "cudnn/lib"];
#[cfg(windows)]
const FOLDERS: [&str; 3] = ["", "cu13/bin/x86_64", "cudnn/bin"];

/// The library that comes with the driver.
#[cfg(not(windows))]
const DRIVER: &str = "libcuda.so.1";
#[cfg(windows)]
const DRIVER: &str = "nvcuda.dll";

/// The libraries that the provider of the pinned release needs, each after the ones that it needs
/// itself, and the Python packages that have them.
///
/// The provider names most of them in its header. It loads cuDNN when a convolution runs first, and
/// cuDNN loads NVRTC.
#[cfg(not(windows))]
const LIBRARIES: [(&str, &str); 6] = [
    ("libcudart.so.13", "nvidia-cuda-runtime~=13.0"),
    ("libnvrtc.so.13", "nvidia-cuda-nvrtc~=13.0"),
    ("libcublasLt.so.13", "nvidia-cublas~=13.0"),
    ("libcublas.so.13", "nvidia-cublas~=13.0"),
    ("libcurand.so.10", "nvidia-curand~=10.0"),
    ("libcudnn.so.9", "nvidia-cudnn-cu13~=9.0"),
];
#[cfg(windows)]
const LIBRARIES: [(&str, &str); 5] = [
    ("cudart64_13.dll", "nvidia-cuda-runtime~=13.0"),
    ("nvrtc64_130_0.dll", "nvidia-cuda-nvrtc~=13.0"),
    ("cublasLt64_13.dll", "nvidia-cublas~=13.0"),
    ("cublas64_13.dll", "nvidia-cublas~=13.0"),
    ("cudnn64_9.dll", "nvidia-cudnn-cu13~=9.0"),
];

impl Runtime {
    /// Checks that networks can run on an NVIDIA GPU. This loads NVIDIA's libraries, and runs a
    /// small network.
    ///
    /// # Errors
    /// - [`RuntimeError::NoDevice`] when the library is built without CUDA.
    /// - [`RuntimeError::NoGpu`] when there is no driver, or CUDA finds no card or cannot use it.
    /// - [`RuntimeError::CudaLibraries`] when the provider or a library that it needs cannot be
    ///   loaded.
    pub fn check_cuda(&self) -> Result<(), RuntimeError> {
        if self.has_cuda.get().is_some() {
            return Ok(());
        }
        let has_provider = ort::ep::CUDA::is_available().map_err(|error| RuntimeError::Start {
            path: self.path.clone(),
            problem: error.message().to_owned(),
        })?;
        if !has_provider {
            return Err(self.no_device(crate::Device::Cuda));
        }
        // Every loaded library stays loaded, so that the provider finds it under its name.
        if let Err(error) = preload_dylib(DRIVER) {
            return Err(RuntimeError::NoGpu {
                problem: format!("NVIDIA's driver cannot be loaded: {}", reason(&error)),
            });
        }
        let folders = env::var_os(VARIABLE).unwrap_or_default();
        // An empty path would be the current folder.
        let folders = env::split_paths(&folders).filter(|folder| !folder.as_os_str().is_empty());
        self.load_from(&folders.collect::<Vec<_>>())?;
        let missing: Vec<_> = LIBRARIES
            .into_iter()
            .filter(|(file, _)| preload_dylib(*file).is_err())
            .collect();
        match self.compute_once() {
            Err(error) if is_of_gpu(error.message()) => Err(RuntimeError::NoGpu {
                problem: one_line(error.message()),
            }),
            Err(error) => Err(self.no_libraries(&missing, one_line(error.message()))),
            // The small network does not need cuDNN.
            Ok(()) if missing.iter().any(|(file, _)| file.contains("cudnn")) => {
                Err(self.no_libraries(&missing, "convolutions need cuDNN".into()))
            }
            Ok(()) => {
                self.has_cuda.get_or_init(|| ());
                Ok(())
            }
        }
    }

    /// Loads the libraries that lie in `folders` or in the folders of NVIDIA's packages below them.
    fn load_from(&self, folders: &[PathBuf]) -> Result<(), RuntimeError> {
        for (file, _) in LIBRARIES {
            let mut places = folders
                .iter()
                .flat_map(|folder| FOLDERS.map(|sub| folder.join(sub).join(file)));
            let Some(path) = places.find(|path| path.is_file()) else {
                continue;
            };
            preload_dylib(path.as_path()).map_err(|error| {
                let (path, reason) = (path.display(), reason(&error));
                self.no_libraries(&[], format!("{path} (from {VARIABLE}): {reason}"))
            })?;
        }
        Ok(())
    }

    /// Adds two numbers on the card. A card that this build has no code for fails here, and not in
    /// the middle of the first picture.
    fn compute_once(&self) -> ort::Result<()> {
        let weights = Weights::empty(Path::new("none"));
        let mut g = Graph::new("sum", &weights, Dialect::cuda(Precision::F32));
        let x = g.input("x", &[Dim::Fixed(1)]);
        let sum = g.add(x, x);
        g.output("sum", sum, &[Dim::Fixed(1)]);
        let model = g
            .finish()
            .map_err(|error| ort::Error::new(error.to_string()))?;
        let mut session = Session::builder(&self.environment)?
            .with_execution_providers([cuda().build().error_on_failure()])?
            .commit_from_memory(&model.bytes)?;
        let input = TensorRef::from_array_view(([1_usize], &[1.0_f32][..]))?;
        session.run(ort::inputs![input])?;
        Ok(())
    }

    fn no_libraries(&self, missing: &[(&str, &str)], problem: String) -> RuntimeError {
        let mut packages: Vec<_> = missing.iter().map(|(_, package)| *package).collect();
        packages.dedup();
        RuntimeError::CudaLibraries {
            path: self.path.clone(),
            missing: missing.iter().map(|(file, _)| (*file).to_owned()).collect(),
            problem,
            hint: format!(
                "install CUDA 13 and cuDNN 9, or `pip install {}` and set {VARIABLE} to the folder \
                 `nvidia` in Python's `site-packages`",
                match packages.is_empty() {
                    true => "\"onnxruntime-gpu[cuda,cudnn]\"".to_owned(),
                    false => packages.join(" "),
                },
            ),
        }
    }
}

/// Returns whether ONNX Runtime's message is about the card, and not about a library that cannot be
/// loaded.
fn is_of_gpu(message: &str) -> bool {
    message.contains("CUDA failure") || message.contains("CUDA error")
}

/// Returns the part of ONNX Runtime's message that a user can act on, on one line. C++ signatures
/// come before it, and the host's name and the place in the source after it.
fn one_line(message: &str) -> String {
    let starts = ["CUDA failure", "CUDA error", "Failed to load library"];
    let start = starts.into_iter().find_map(|start| message.find(start));
    let (message, _) = message[start.unwrap_or(0)..]
        .split_once(" ; GPU=")
        .unwrap_or((&message[start.unwrap_or(0)..], ""));
    let words: Vec<_> = message.split_whitespace().collect();
    words.join(" ")
}

/// Returns the system's message, which names a missing file.
fn reason(error: &dyn std::error::Error) -> String {
    let source = error.source();
    source.map_or_else(|| error.to_string(), ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_told_apart() {
        // Both were seen with ONNX Runtime 1.31.1, shortened in the middle.
        let card = "/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_call.cc:146 \
            std::conditional_t<THRW, void, onnxruntime::common::Status> onnxruntime::CudaCall(…) \
            CUDA failure 100: no CUDA-capable device is detected ; GPU=0 ; hostname=vm ; \
            expr=cudaSetDevice(info_.device_id);\n\n";
        let library = "Failed to load library libonnxruntime_providers_cuda.so with error: \
            libcublasLt.so.13: cannot open shared object file: No such file or directory";
        assert!(is_of_gpu(card) && !is_of_gpu(library));
        let line = one_line(card);
        assert_eq!(line, "CUDA failure 100: no CUDA-capable device is detected");
        let named =
            format!("provider_bridge_ort.cc:2043 [ONNXRuntimeError] : 1 : FAIL : {library}");
        assert_eq!(one_line(&named), library);
    }

    #[test]
    fn each_library_is_named_once() {
        let files: std::collections::BTreeSet<_> = LIBRARIES.iter().map(|(file, _)| file).collect();
        assert_eq!(files.len(), LIBRARIES.len());
    }
}
