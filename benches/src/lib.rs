//! What the benches share.

use std::path::{Path, PathBuf};

/// Where the model that ships with the project is.
pub fn shipped_model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models/emoji")
}
