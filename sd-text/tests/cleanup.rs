//! Compares `Cleanup::Ftfy` with ftfy. The expected texts are in `golden/cleanup.json` (see
//! `golden/cleanup.py`).

#![allow(
    clippy::unwrap_used,
    reason = "Clippy allows it only inside of #[test] functions"
)]

mod common;

use std::fs;
use std::path::Path;

use sd_text::{Cleanup, ClipTokenizer};

use common::emoji;

/// Tokenizing with the clean-up gives the same ids as tokenizing the text that ftfy cleaned up.
#[test]
fn as_ftfy() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/cleanup.json");
    let rows: Vec<Vec<String>> = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    assert_eq!(rows.len(), 800);
    let tokenizer = ClipTokenizer::load(emoji()).unwrap();
    let mut wrong = Vec::new();
    for row in &rows {
        let ids = tokenizer.tokenize(&row[0], Cleanup::Ftfy);
        if ids != tokenizer.tokenize(&row[1], Cleanup::Transformers) {
            wrong.push(format!("{:?}: expected {:?}", row[0], row[1]));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} wrong: {}",
        wrong.len(),
        wrong.join("\n")
    );
}

#[test]
fn changes_ids() {
    let tokenizer = ClipTokenizer::load(emoji()).unwrap();
    for (typed, plain) in [
        ("it\u{2019}s", "it's"),
        ("&amp;", "&"),
        ("\u{fb01}ne", "fine"),
        ("\u{ff21}", "a"),
    ] {
        assert_eq!(
            tokenizer.tokenize(typed, Cleanup::Ftfy),
            tokenizer.tokenize(plain, Cleanup::Transformers)
        );
        assert_ne!(
            tokenizer.tokenize(typed, Cleanup::Transformers),
            tokenizer.tokenize(plain, Cleanup::Transformers)
        );
    }
}
