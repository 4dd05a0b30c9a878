//! The ONNX Runtime library of the tests, for processes with another cache folder.

use std::{fs, path::PathBuf};

use crate::common::{Model, load};

/// Returns the path of the library that the other tests use.
pub fn real_library() -> PathBuf {
    let model = tempfile::tempdir().unwrap();
    Model::of_shape("four-last").write(model.path());
    load(model.path());
    match std::env::var_os("ORT_DYLIB_PATH") {
        Some(path) if !path.is_empty() => path.into(),
        _ => {
            let cache = dirs::cache_dir().unwrap().join("sd-onnx");
            let entries = fs::read_dir(cache)
                .unwrap()
                .map(|entry| entry.unwrap().path());
            let folder = entries
                .into_iter()
                .find(|path| path.is_dir() && path.to_string_lossy().contains("onnxruntime-1"))
                .unwrap();
            fs::read_dir(folder)
                .unwrap()
                .next()
                .unwrap()
                .unwrap()
                .path()
        }
    }
}
