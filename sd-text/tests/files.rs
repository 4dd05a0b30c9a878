//! Tests settings that change what a tokenizer folder gives, and broken folders, whose error names
//! the file and the problem.

#![allow(
    clippy::unwrap_used,
    reason = "Clippy allows it only inside of #[test] functions"
)]

mod common;

use std::fs;
use std::time::Instant;

use sd_text::outside::chain;
use sd_text::{ClipTokenizer, TokenizerError};
use serde_json::{Value, json};
use tempfile::TempDir;

use common::{load, tiny, write};

const CONFIG: &str = "tokenizer_config.json";

#[track_caller]
fn refused(dir: &TempDir, says: &[&str]) -> TokenizerError {
    let error = ClipTokenizer::load(dir.path()).unwrap_err();
    let text = chain(&error);
    for part in says {
        assert!(text.contains(part), "{text:?} should name {part:?}");
    }
    assert!(
        text.contains(dir.path().to_str().unwrap()),
        "{text:?} should name the path"
    );
    error
}

/// The tiny folder with one file added or replaced.
fn with(name: &str, content: &str) -> TempDir {
    let dir = tiny();
    write(dir.path(), name, content);
    dir
}

fn config(config: Value) -> TempDir {
    with(CONFIG, &config.to_string())
}

#[test]
fn tiny_folder() {
    let tokenizer = load(&tiny());
    assert_eq!(
        (tokenizer.bos(), tokenizer.eos(), tokenizer.pad()),
        (5, 6, 6)
    );
    assert_eq!((tokenizer.vocab_size(), tokenizer.max_length()), (7, 77));
    // "c" is unknown, and CLIP writes unknown text as the end token.
    assert_eq!(tokenizer.encode("ab ba c").ids[..7], [5, 4, 1, 2, 6, 6, 6]);
}

#[test]
fn config_names_the_special_tokens() {
    let tokenizer = load(&config(
        json!({"bos_token": "b", "eos_token": {"content": "a"}, "pad_token": "ab</w>", "model_max_length": 5}),
    ));
    assert_eq!(
        (tokenizer.bos(), tokenizer.eos(), tokenizer.pad()),
        (1, 0, 4)
    );
    assert_eq!(tokenizer.encode("").ids, [1, 0, 4, 4, 4]);
}

#[test]
fn missing_files() {
    for (removed, says) in [("vocab.json", "vocab.json"), ("merges.txt", "merges.txt")] {
        let dir = tiny();
        fs::remove_file(dir.path().join(removed)).unwrap();
        let error = refused(&dir, &["no tokenizer in", says]);
        assert!(matches!(error, TokenizerError::Missing { missing, .. } if missing == says));
    }
    assert!(matches!(
        ClipTokenizer::load("/no/such/folder"),
        Err(TokenizerError::Missing { .. })
    ));
}

#[test]
fn files_that_are_no_text() {
    for name in ["vocab.json", "merges.txt", "tokenizer.json", CONFIG] {
        let dir = tiny();
        fs::write(dir.path().join(name), b"\xff\xfe\x00").unwrap();
        assert!(matches!(
            refused(&dir, &[name]),
            TokenizerError::Read { .. }
        ));
    }
    let dir = tiny();
    fs::create_dir(dir.path().join(CONFIG)).unwrap();
    assert!(matches!(
        refused(&dir, &[CONFIG]),
        TokenizerError::Read { .. }
    ));
}

#[test]
fn files_in_the_place_of_others() {
    let lfs = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n";
    let conflict = "{\n<<<<<<< HEAD\n=======\n>>>>>>> other\n}";
    for name in [
        "vocab.json",
        "merges.txt",
        "tokenizer.json",
        CONFIG,
        "special_tokens_map.json",
        "added_tokens.json",
    ] {
        for (content, says) in [
            ("", "empty"),
            (lfs, "Git LFS"),
            ("<!DOCTYPE html><html>", "web page"),
            (conflict, "merge conflict"),
        ] {
            refused(&with(name, content), &[name, says]);
        }
        let dir = tiny();
        let file = fs::File::create(dir.path().join(name)).unwrap();
        // The file is never read: its length is enough for the error.
        file.set_len(1 << 40).unwrap();
        refused(&dir, &[name, "1099511627776 bytes long, expected at most"]);
        #[cfg(unix)]
        {
            fs::remove_file(dir.path().join(name)).unwrap();
            std::os::unix::fs::symlink("/dev/zero", dir.path().join(name)).unwrap();
            refused(&dir, &[name, "expected a regular file"]);
        }
    }
}

#[test]
fn names_and_values_are_printable_and_short() {
    let name = format!("\u{1b}[2J\u{202e}\n{}", "x".repeat(100_000));
    let line = name.replace('\n', "");
    let one = json!({ name.clone(): u32::MAX }).to_string();
    for dir in [
        with("vocab.json", &one),
        with("merges.txt", &line),
        with("merges.txt", &format!("a {line}")),
        config(json!({ "pad_token": name })),
        config(json!({ "added_tokens_decoder": name })),
        config(json!({ "model_max_length": name })),
        config(json!({ "padding_side": name })),
        config(json!({ format!("{name}_token"): "fine", "split_special_tokens": name })),
        with("tokenizer.json", &json!({ "model": name }).to_string()),
    ] {
        let text = chain(&ClipTokenizer::load(dir.path()).unwrap_err());
        assert!(text.len() < 1500, "{} bytes", text.len());
        assert!(!text.contains(['\u{1b}', '\n', '\u{202e}']), "{text:?}");
        assert!(
            text.contains("1b") && text.contains("characters) …"),
            "{text}"
        );
    }
}

/// A hundred thousand tokens of every kind take time linear in their number.
#[test]
fn many_special_tokens() {
    let names: Vec<String> = (0..100_000).map(|n| format!("<{n:05}>")).collect();
    let keys = names
        .iter()
        .map(|name| (format!("{name}_token"), name.clone().into()));
    let ids = names
        .iter()
        .zip(7..)
        .map(|(name, id)| (name.clone(), id.into()));
    let named: serde_json::Map<String, Value> = keys.collect();
    let listed: serde_json::Map<String, Value> = ids.collect();
    for (file, content, tokens) in [
        (CONFIG, json!({ "extra_special_tokens": names }), 100_007),
        (CONFIG, named.into(), 100_007),
        ("added_tokens.json", listed.into(), 100_007),
    ] {
        let dir = with(file, &content.to_string());
        if file != CONFIG {
            let config = json!({ "extra_special_tokens": names });
            write(dir.path(), CONFIG, &config.to_string());
        }
        let start = Instant::now();
        let tokenizer = load(&dir);
        println!("{file}: {:.2?}", start.elapsed());
        assert_eq!(tokenizer.vocab_size(), tokens);
        assert_eq!(tokenizer.encode("<99999>").ids[1], 100_006);
        assert!(start.elapsed().as_secs() < 6, "{:?}", start.elapsed());
    }
}

#[test]
fn files_that_are_not_json() {
    for name in [
        "vocab.json",
        "tokenizer.json",
        CONFIG,
        "special_tokens_map.json",
        "added_tokens.json",
    ] {
        for content in ["{", "[1]", "{\"a\": }", "null and void", "\"text\""] {
            assert!(
                matches!(
                    refused(&with(name, content), &[name]),
                    TokenizerError::Json { .. }
                ),
                "{name} {content}"
            );
        }
    }
}

#[test]
fn tokenizer_json_of_another_kind() {
    refused(&with("tokenizer.json", "{}"), &["tokenizer.json", "model"]);
    refused(
        &with(
            "tokenizer.json",
            r#"{"model": {"type": "BPE", "vocab": {}}}"#,
        ),
        &["tokenizer.json", "merges"],
    );
    refused(
        &with(
            "tokenizer.json",
            r#"{"model": {"vocab": [["a", 0.5]], "merges": []}}"#,
        ),
        &["tokenizer.json", "expected a map"],
    );
    refused(
        &with(
            "tokenizer.json",
            r#"{"model": {"vocab": {}, "merges": [1]}}"#,
        ),
        &["tokenizer.json", "a merge"],
    );
    refused(
        &with(
            "tokenizer.json",
            r#"{"model": {"vocab": {}, "merges": []}}"#,
        ),
        &["tokenizer.json", "unk_token", "<|endoftext|>"],
    );
    refused(
        &with(
            "tokenizer.json",
            r#"{"model": {"vocab": {"a": 0}, "merges": [["a", "b"]]}}"#,
        ),
        &["tokenizer.json", "merge 1", "\"b\""],
    );
}

#[test]
fn tokenizer_json_with_merges_in_either_spelling() {
    let vocab: Value =
        serde_json::from_str(&fs::read_to_string(tiny().path().join("vocab.json")).unwrap())
            .unwrap();
    for merge in [json!("a b</w>"), json!(["a", "b</w>"])] {
        let dir = tempfile::tempdir().unwrap();
        write(
            dir.path(),
            "tokenizer.json",
            &json!({"model": {"vocab": vocab, "merges": [merge]}}).to_string(),
        );
        assert_eq!(load(&dir).encode("ab").ids[..3], [5, 4, 6]);
    }
}

#[test]
fn vocabulary_without_the_special_tokens() {
    let vocab = |tokens: &[&str]| {
        let dir = with(
            "vocab.json",
            &json!(
                tokens
                    .iter()
                    .enumerate()
                    .map(|(id, token)| (*token, id))
                    .collect::<std::collections::HashMap<_, _>>()
            )
            .to_string(),
        );
        write(dir.path(), "merges.txt", "#version: 0.2\n");
        dir
    };
    refused(
        &vocab(&["a", "<|startoftext|>"]),
        &["vocab.json", "unk_token", "<|endoftext|>"],
    );
    refused(
        &vocab(&["a", "<|endoftext|>"]),
        &["vocab.json", "bos_token", "<|startoftext|>"],
    );
    let dir = vocab(&["a", "<|startoftext|>", "<|endoftext|>"]);
    load(&dir);
    write(dir.path(), CONFIG, r#"{"pad_token": "!"}"#);
    refused(&dir, &["vocab.json", "pad_token", "\"!\""]);
    write(dir.path(), CONFIG, r#"{"eos_token": {"content": "</s>"}}"#);
    refused(&dir, &["vocab.json", "eos_token", "\"</s>\""]);
}

#[test]
fn ids_out_of_range() {
    for id in ["-1", "4294967296", "1e30", "0.5", "\"1\"", "null"] {
        let error = refused(
            &with("vocab.json", &format!(r#"{{"a": {id}}}"#)),
            &["vocab.json"],
        );
        assert!(matches!(error, TokenizerError::Json { .. }), "{id}");
    }
    let error = refused(
        &with("vocab.json", r#"{"a": 4294967295}"#),
        &["vocab.json", "\"a\"", "4294967295"],
    );
    assert!(matches!(error, TokenizerError::Id { .. }));
}

#[test]
fn merges_that_do_not_fit() {
    for (line, says) in [("a z", "\"z\""), ("z a", "\"z\""), ("b a", "\"ba\"")] {
        let error = refused(
            &with("merges.txt", &format!("#version: 0.2\na b</w>\n{line}\n")),
            &["merges.txt", "merge 2", says],
        );
        assert!(
            matches!(error, TokenizerError::MergeToken { number: 2, .. }),
            "{line}"
        );
    }
    for line in ["ab", "a b c", "a  b", "x"] {
        let error = refused(
            &with("merges.txt", &format!("{line}\n")),
            &["merges.txt", "merge 1", line],
        );
        assert!(
            matches!(error, TokenizerError::Merge { number: 1, .. }),
            "{line}"
        );
    }
    // A blank line in the middle is an invalid merge.
    assert!(matches!(
        refused(&with("merges.txt", "a b</w>\n\na b</w>\n"), &["merge 2"]),
        TokenizerError::Merge { .. }
    ));
}

#[test]
fn lengths() {
    let length = |text: &str| with(CONFIG, &format!(r#"{{"model_max_length": {text}}}"#));
    for (text, expected) in [
        ("64", 64),
        ("2", 2),
        ("65536", 65536),
        ("null", 77),
        ("1000000000000000019884624838656", 77),
        ("1e30", 77),
    ] {
        let tokenizer = load(&length(text));
        assert_eq!(tokenizer.max_length(), expected, "{text}");
        assert_eq!(tokenizer.encode("ab").ids.len(), expected, "{text}");
    }
    assert_eq!(load(&config(json!({"max_len": 10}))).max_length(), 10);
    for text in [
        "0",
        "1",
        "-77",
        "77.5",
        "65537",
        "18446744073709551615",
        "99999999999999999999",
        "\"77\"",
        "[]",
        "-1e30",
    ] {
        let error = refused(&length(text), &[CONFIG, "model_max_length"]);
        assert!(matches!(error, TokenizerError::Setting { .. }), "{text}");
    }
}

#[test]
fn special_tokens_of_a_wrong_form() {
    for value in [
        json!(1),
        json!(true),
        json!(["a"]),
        json!({}),
        json!({"content": 1}),
        json!({"content": "a", "lstrip": "yes"}),
    ] {
        let error = refused(
            &config(json!({ "pad_token": value })),
            &[CONFIG, "`pad_token`"],
        );
        assert!(
            matches!(error, TokenizerError::Json { key: Some(_), .. }),
            "{value}"
        );
    }
    refused(
        &config(json!({"added_tokens_decoder": {"one": {"content": "a"}}})),
        &[CONFIG, "`added_tokens_decoder`"],
    );
    refused(
        &config(json!({"added_tokens_decoder": [1]})),
        &[CONFIG, "`added_tokens_decoder`"],
    );
    refused(
        &config(json!({"split_special_tokens": "no"})),
        &[CONFIG, "`split_special_tokens`"],
    );
    refused(
        &config(json!({"additional_special_tokens": [1]})),
        &[CONFIG, "`additional_special_tokens`"],
    );
}

#[test]
fn sides_other_than_the_right() {
    refused(
        &config(json!({"padding_side": "left"})),
        &[CONFIG, "padding_side", "left"],
    );
    refused(
        &config(json!({"truncation_side": "left"})),
        &[CONFIG, "truncation_side", "left"],
    );
    load(&config(
        json!({"padding_side": "right", "truncation_side": "right"}),
    ));
}

#[test]
fn special_tokens_of_the_map_are_blamed_on_it() {
    refused(
        &with("special_tokens_map.json", r#"{"pad_token": 1}"#),
        &["special_tokens_map.json", "`pad_token`"],
    );
}

#[test]
fn added_ids_count_for_the_size() {
    let tokenizer = load(&config(
        json!({"additional_special_tokens": ["<x>", "<y>"]}),
    ));
    assert_eq!(tokenizer.vocab_size(), 9);
    assert_eq!(tokenizer.encode("a<y><x>").ids[..5], [5, 2, 8, 7, 6]);
}
