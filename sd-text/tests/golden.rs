//! Compares the ids of every string in `golden/tokens.json`, with every folder, with the ids of
//! transformers, exactly (see `golden/make.py`).

#![allow(
    clippy::unwrap_used,
    reason = "Clippy allows it only inside of #[test] functions"
)]

mod common;

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use sd_text::ClipTokenizer;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use common::{emoji, full, load, write};

#[derive(Deserialize)]
struct Golden {
    small: Vocabulary,
    cases: Vec<Case>,
    folders: Vec<Folder>,
}

#[derive(Deserialize)]
struct Vocabulary {
    vocab: Value,
    merges: Vec<(String, String)>,
}

/// A string, which is `text` repeated, and its ids in the first folder up to the padding.
#[derive(Deserialize)]
struct Case {
    text: String,
    times: usize,
    ids: Vec<u32>,
    /// For strings that are cut: the number of ids without the cut, and their FNV-1a hash.
    whole: Option<usize>,
    checksum: Option<String>,
}

#[derive(Deserialize)]
struct Folder {
    name: String,
    /// The contents of `vocab.json` and `merges.txt`, if the folder has them.
    vocabulary: Option<String>,
    /// The contents of `tokenizer.json`, if the folder has it.
    inside: Option<String>,
    files: Map<String, Value>,
    /// Whether only the cases in `differs` are recorded. Otherwise all other cases are as in the
    /// first folder.
    sampled: bool,
    differs: HashMap<usize, Vec<u32>>,
    bos: u32,
    eos: u32,
    pad: u32,
    tokens: usize,
}

impl Golden {
    fn read() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tokens.json");
        serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
    }

    fn vocabulary(&self, name: &str) -> Vocabulary {
        match name {
            "small" => Vocabulary {
                vocab: self.small.vocab.clone(),
                merges: self.small.merges.clone(),
            },
            "full" => {
                let read = |name| fs::read_to_string(emoji().join(name)).unwrap();
                let pair = |line: &str| {
                    line.split_once(' ')
                        .map(|(a, b)| (a.to_owned(), b.to_owned()))
                        .unwrap()
                };
                let merges = read("merges.txt").lines().skip(1).map(pair).collect();
                Vocabulary {
                    vocab: serde_json::from_str(&read("vocab.json")).unwrap(),
                    merges,
                }
            }
            _ => panic!("no vocabulary {name}"),
        }
    }

    fn load(&self, folder: &Folder) -> ClipTokenizer {
        let dir = tempfile::tempdir().unwrap();
        if let Some(name) = &folder.vocabulary {
            let Vocabulary { vocab, merges } = self.vocabulary(name);
            let lines: String = merges.iter().map(|(a, b)| format!("{a} {b}\n")).collect();
            write(dir.path(), "vocab.json", &vocab.to_string());
            write(dir.path(), "merges.txt", &format!("#version: 0.2\n{lines}"));
        }
        for (name, content) in &folder.files {
            let mut content = content.clone();
            if let Some(inside) = folder.inside.as_ref().filter(|_| name == "tokenizer.json") {
                let Vocabulary { vocab, merges } = self.vocabulary(inside);
                content["model"]["vocab"] = vocab;
                content["model"]["merges"] = json!(merges);
            }
            write(dir.path(), name, &content.to_string());
        }
        load(&dir)
    }
}

#[test]
fn ids_of_transformers_from_every_folder() {
    let golden = Golden::read();
    assert!(golden.cases.len() >= 750 && golden.folders.len() >= 15);
    for folder in &golden.folders {
        let tokenizer = golden.load(folder);
        let special = (
            tokenizer.bos(),
            tokenizer.eos(),
            tokenizer.pad(),
            tokenizer.vocab_size(),
            tokenizer.max_length(),
        );
        assert_eq!(
            special,
            (folder.bos, folder.eos, folder.pad, folder.tokens, 77),
            "{}",
            folder.name
        );
        for (index, case) in golden.cases.iter().enumerate() {
            let expected = match folder.differs.get(&index) {
                Some(ids) => ids,
                None if folder.sampled => continue,
                None => &case.ids,
            };
            let tokens = tokenizer.encode(&case.text.repeat(case.times));
            let place = format!("{}, {:?} times {}", folder.name, case.text, case.times);
            assert_eq!(&tokens.ids[..tokens.used], expected, "{place}");
            assert_eq!(tokens.ids.len(), 77, "{place}");
            assert!(
                tokens.ids[tokens.used..].iter().all(|&id| id == folder.pad),
                "{place}"
            );
        }
    }
}

#[test]
fn uncut_ids_of_transformers() {
    let golden = Golden::read();
    let tokenizer = load(&full(&json!({"model_max_length": 30_000})));
    let long: Vec<&Case> = golden
        .cases
        .iter()
        .filter(|case| case.whole.is_some())
        .collect();
    assert!(long.len() >= 30);
    for case in long {
        let tokens = tokenizer.encode(&case.text.repeat(case.times));
        let place = format!("{:?} times {}", case.text, case.times);
        assert_eq!(Some(tokens.used), case.whole, "{place}");
        assert_eq!(
            Some(fnv(&tokens.ids[..tokens.used])),
            case.checksum,
            "{place}"
        );
    }
}

/// The text that is cut off begins at a character, is the end of the text, and its tokens are
/// counted.
#[test]
fn cuts_are_ends_of_the_text() {
    let golden = Golden::read();
    let tokenizer = ClipTokenizer::load(emoji()).unwrap();
    for case in &golden.cases {
        let text = case.text.repeat(case.times);
        match (tokenizer.encode(&text).cut, case.whole) {
            (None, None) => {}
            (Some(cut), Some(whole)) => {
                assert_eq!(cut.tokens, whole - 77, "{:?}", case.text);
                assert_eq!(&text[cut.offset..], cut.text, "{:?}", case.text);
                assert!(!cut.text.is_empty() && cut.offset > 0, "{:?}", case.text);
            }
            (cut, whole) => panic!("{:?}: {cut:?}, expected {whole:?} tokens in all", case.text),
        }
    }
}

/// The 64-bit FNV-1a hash of the ids, each as little-endian bytes.
fn fnv(ids: &[u32]) -> String {
    let bytes = ids.iter().flat_map(|id| id.to_le_bytes());
    let hash = bytes.fold(0xCBF2_9CE4_8422_2325_u64, |state, byte| {
        (state ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3)
    });
    format!("{hash:016x}")
}
