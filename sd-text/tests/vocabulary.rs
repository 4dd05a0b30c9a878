//! Compares the crate's built-in CLIP vocabulary with the files that it was made from, in the
//! folder of the examples' model.

#![cfg(feature = "vocabulary")]
#![allow(
    clippy::unwrap_used,
    reason = "Clippy allows it only inside of #[test] functions"
)]

mod common;

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use sd_text::ClipTokenizer;

use common::{emoji, full, load};

fn tokens() -> HashMap<String, u32> {
    serde_json::from_str(&fs::read_to_string(emoji().join("vocab.json")).unwrap()).unwrap()
}

/// The same computation made the file.
#[test]
fn the_merges_are_those_of_the_file() {
    let ids = tokens();
    let text = fs::read_to_string(emoji().join("merges.txt")).unwrap();
    let parts = text.lines().skip(1).flat_map(|line| line.split(' '));
    let bytes: Vec<u8> = parts
        .flat_map(|part| u16::try_from(ids[part]).unwrap().to_le_bytes())
        .collect();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/tokenizer/vocabulary/merges.bin");
    assert!(fs::read(file).unwrap() == bytes);
    assert_eq!(bytes.len(), 4 * 48_894);
}

#[test]
fn the_tokenizer_is_that_of_the_files() {
    let clip = ClipTokenizer::clip();
    let config = serde_json::json!({});
    let files = load(&full(&config));
    assert_eq!(clip.vocab_size(), 49_408);
    assert_eq!(
        (
            clip.bos(),
            clip.eos(),
            clip.pad(),
            clip.comma(),
            clip.max_length()
        ),
        (
            files.bos(),
            files.eos(),
            files.pad(),
            files.comma(),
            files.max_length()
        )
    );
    for id in 0..49_409 {
        assert_eq!(clip.token(id), files.token(id), "{id}");
    }
    for (text, tokens) in [
        ("", 2),
        ("a photo of a cat", 7),
        ("A <|endoftext|> b!", 6),
        ("caf\u{e9} \u{1f98a} \u{72d0} it's 42", 0),
    ] {
        let found = clip.encode(text);
        assert_eq!(found, files.encode(text), "{text:?}");
        assert!(tokens == 0 || found.used == tokens, "{text:?}: {found:?}");
    }
}

/// Every string of `golden/tokens.json` has the ids that transformers gives with the same two
/// files.
#[test]
fn the_ids_are_those_of_transformers() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tokens.json");
    let golden: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let folders = golden["folders"].as_array().unwrap();
    let bare = folders.iter().find(|folder| folder["name"] == "no config");
    let differs = &bare.unwrap()["differs"];
    let clip = ClipTokenizer::clip();
    for (index, case) in golden["cases"].as_array().unwrap().iter().enumerate() {
        let times = case["times"].as_u64().unwrap() as usize;
        let text = case["text"].as_str().unwrap().repeat(times);
        let expected = differs.get(index.to_string()).unwrap_or(&case["ids"]);
        let found = clip.encode(&text);
        assert_eq!(
            serde_json::json!(found.ids[..found.used]),
            *expected,
            "{text:?}"
        );
    }
}

#[test]
fn tokens_by_their_ids() {
    let clip = ClipTokenizer::clip();
    for (id, token) in [
        (0, "!"),
        (267, ",</w>"),
        (2368, "cat</w>"),
        (49_406, "<|startoftext|>"),
        (49_407, "<|endoftext|>"),
    ] {
        assert_eq!(clip.token(id).as_deref(), Some(token), "{id}");
    }
    assert_eq!(clip.token(49_408), None);
    let [face] = clip.tokenize("\u{1f602}", sd_text::Cleanup::Transformers)[..] else {
        panic!("one token")
    };
    assert_eq!(clip.token(face).as_deref(), Some("\u{1f602}</w>"));
}
