//! Helpers for tests: tokenizer folders and golden files.
#![allow(dead_code, reason = "every test file uses a part")]

pub mod pickles;
pub mod random;

use std::fs;
use std::path::{Path, PathBuf};

use sd_text::ClipTokenizer;
use serde_json::{Value, json};
use tempfile::TempDir;

/// The path of the folder with CLIP's full vocabulary.
pub fn emoji() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models/emoji/tokenizer")
}

/// Reads a file of `tests/golden`.
pub fn golden(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// The ids and weights of a prompt's chunks, each up to the padding.
pub type Chunked = Vec<(Vec<u32>, Vec<f32>)>;

/// Reads the prompts of `chunks.json` or `inversions.json` with their chunks.
pub fn chunk_rows(golden: &Value) -> Vec<(String, Chunked)> {
    let row = |row: &Value| {
        let row = list(row);
        let text = row[0].as_str().unwrap().to_owned();
        (text, row[1..].chunks(2).map(chunk).collect())
    };
    list(&golden["prompts"]).iter().map(row).collect()
}

fn chunk(pair: &[Value]) -> (Vec<u32>, Vec<f32>) {
    let ids = list(&pair[0]).iter();
    let weights = list(&pair[1]).chunks(2).flat_map(|run| {
        let weight: f64 = run[0].as_str().unwrap().parse().unwrap();
        vec![weight as f32; run[1].as_u64().unwrap() as usize]
    });
    (
        ids.map(|id| id.as_u64().unwrap() as u32).collect(),
        weights.collect(),
    )
}

fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap()
}

/// A folder with CLIP's full vocabulary and another `tokenizer_config.json`.
pub fn full(config: &Value) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["vocab.json", "merges.txt"] {
        fs::copy(emoji().join(name), dir.path().join(name)).unwrap();
    }
    write(dir.path(), "tokenizer_config.json", &config.to_string());
    dir
}

/// A folder with a few letters, the merge of "ab", and the special tokens.
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
