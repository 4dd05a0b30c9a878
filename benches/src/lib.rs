//! What the benches share.

pub mod memory;

use std::path::{Path, PathBuf};

/// Where the model that ships with the project is.
pub fn shipped_model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models/emoji")
}

/// A prompt of at least `bytes` bytes: `part` over and over, with commas between.
pub fn written(part: &str, bytes: usize) -> String {
    let part = format!("{part}, ");
    part.repeat(bytes.div_ceil(part.len()))
}
