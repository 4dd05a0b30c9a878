//! Tokenizer folders for tests.
#![allow(dead_code, reason = "every test file uses a part")]

use std::fs;
use std::path::{Path, PathBuf};

use sd_text::ClipTokenizer;
use serde_json::{Value, json};
use tempfile::TempDir;

/// The folder with CLIP's full vocabulary.
pub fn emoji() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models/emoji/tokenizer")
}

/// CLIP's full vocabulary with another `tokenizer_config.json`.
pub fn full(config: &Value) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["vocab.json", "merges.txt"] {
        fs::copy(emoji().join(name), dir.path().join(name)).unwrap();
    }
    write(dir.path(), "tokenizer_config.json", &config.to_string());
    dir
}

/// A few letters, the merge of "ab", and the special tokens.
pub fn tiny() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let vocab = json!({"a": 0, "b": 1, "a</w>": 2, "b</w>": 3, "ab</w>": 4, "<|startoftext|>": 5, "<|endoftext|>": 6});
    write(dir.path(), "vocab.json", &vocab.to_string());
    write(dir.path(), "merges.txt", "#version: 0.2\na b</w>\n");
    dir
}

pub fn write(dir: &Path, name: &str, content: &str) {
    fs::write(dir.join(name), content).unwrap();
}

pub fn load(dir: &TempDir) -> ClipTokenizer {
    ClipTokenizer::load(dir.path()).unwrap()
}
