//! Shared code of the benchmarks.

pub mod memory;
pub mod unet;

use std::path::{Path, PathBuf};

/// Returns the folder of the small model that ships with the project.
pub fn shipped_model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models/emoji")
}

/// Returns a prompt of at least `bytes` bytes, which repeats `part` with commas between.
pub fn written(part: &str, bytes: usize) -> String {
    let part = format!("{part}, ");
    part.repeat(bytes.div_ceil(part.len()))
}
