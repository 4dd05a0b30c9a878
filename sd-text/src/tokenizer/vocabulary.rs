//! CLIP's vocabulary, built from its merges.
//!
//! The 49,408 tokens are, in this order: the 256 bytes, the same bytes at the end of a word, the
//! results of the 48,894 merges, and two special tokens (`SimpleTokenizer` of OpenAI's CLIP). So
//! the ids of its two parts describe a merge. `vocabulary/merges.bin` stores these ids, four bytes
//! for each merge, little-endian. `tests/vocabulary.rs` shows how it is made from `merges.txt`.

use serde_json::{Value, json};
use tokenizers::AddedToken;

use super::files::{BOS, CLIP_LENGTH, EOS, Files, Merges, Vocab};
use super::{ClipTokenizer, letters};

/// The merges. MIT, OpenAI: see `vocabulary/LICENSE`.
static MERGES: &[u8] = include_bytes!("vocabulary/merges.bin");
const WORD_END: &str = "</w>";

impl Files {
    /// Returns what a folder with CLIP's vocabulary and no settings would contain.
    pub fn clip() -> Self {
        let (vocab, merges) = read();
        Self {
            vocab_file: "CLIP's vocabulary".into(),
            vocab,
            merges,
            unk: EOS.to_owned(),
            bos: BOS.to_owned(),
            eos: EOS.to_owned(),
            pad: EOS.to_owned(),
            declared: Vec::new(),
            special: [BOS, EOS].map(|token| AddedToken::from(token, true)).into(),
            split_special: false,
            max_length: CLIP_LENGTH,
        }
    }
}

impl ClipTokenizer {
    /// Returns the files of a folder with CLIP's own vocabulary, each with its name.
    ///
    /// They are the files that transformers' slow `CLIPTokenizer` writes: `vocab.json`,
    /// `merges.txt`, `tokenizer_config.json` and `special_tokens_map.json`. `pad` is the padding
    /// token: `<|endoftext|>` in Stable Diffusion 1.x, `!` in Stable Diffusion 2 and in the second
    /// text encoder of SDXL.
    ///
    /// Loading such a folder with [`load`](Self::load) gives the same tokenizer as
    /// [`clip`](Self::clip) and [`padded_with`](Self::padded_with), with one difference: in a
    /// folder, the padding token is a special token, which is found anywhere in a prompt.
    pub fn clip_files(pad: &str) -> [(&'static str, String); 4] {
        files(pad)
    }
}

fn files(pad: &str) -> [(&'static str, String); 4] {
    let (vocab, merges) = read();
    let mut tokens: Vec<_> = vocab.into_iter().collect();
    tokens.sort_unstable_by_key(|(_, id)| *id);
    // In the order of the ids, which a JSON map would lose.
    let entries = tokens.into_iter().map(|(token, id)| {
        let token = Value::String(token);
        format!("{token}: {id}")
    });
    let vocab = format!("{{{}}}\n", entries.collect::<Vec<_>>().join(", "));
    let mut lines = vec!["#version: 0.2".to_owned()];
    lines.extend(
        merges
            .into_iter()
            .map(|(left, right)| format!("{left} {right}")),
    );
    let special = json!({
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": pad,
        "unk_token": EOS,
    });
    let mut config = special.clone();
    config["add_prefix_space"] = json!(false);
    config["do_lower_case"] = json!(true);
    config["errors"] = json!("replace");
    config["model_max_length"] = json!(CLIP_LENGTH);
    config["tokenizer_class"] = json!("CLIPTokenizer");
    [
        ("vocab.json", vocab),
        ("merges.txt", lines.join("\n") + "\n"),
        ("tokenizer_config.json", format!("{config:#}\n")),
        ("special_tokens_map.json", format!("{special:#}\n")),
    ]
}

fn read() -> (Vocab, Merges) {
    let (pairs, _) = MERGES.as_chunks::<4>();
    let bytes = || letters::alphabet().map(|(_, letter)| letter.to_string());
    let mut tokens: Vec<String> = bytes()
        .chain(bytes().map(|letter| letter + WORD_END))
        .collect();
    let mut merges = Vec::with_capacity(pairs.len());
    for &[a, b, c, d] in pairs {
        let part = |id| tokens[usize::from(u16::from_le_bytes(id))].clone();
        let (left, right) = (part([a, b]), part([c, d]));
        tokens.push(format!("{left}{right}"));
        merges.push((left, right));
    }
    tokens.extend([BOS, EOS].map(str::to_owned));
    (tokens.into_iter().zip(0..).collect(), merges)
}

#[cfg(test)]
mod tests {
    // A panic is how a test fails.
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_files_are_read_as_the_vocabulary_they_are_from() {
        for pad in [EOS, "!"] {
            let folder = tempfile::tempdir().unwrap();
            for (name, text) in files(pad) {
                std::fs::write(folder.path().join(name), text).unwrap();
            }
            let read = ClipTokenizer::load(folder.path()).unwrap();
            let expected = ClipTokenizer::clip().padded_with(pad).unwrap();
            assert!(read.has_same_tokens(&expected), "{pad}");
            // In files, the padding token is a special token.
            let special: &[&str] = if pad == EOS { &[] } else { &["!"] };
            assert_eq!(read.special_differences(&expected), special, "{pad}");
            assert_eq!(expected.special_differences(&read), special, "{pad}");
            assert_eq!(read.is_same(&expected), special.is_empty(), "{pad}");
            let text = "A fox, watercolour (naïve) 狐 🦊 supercalifragilistic";
            assert_eq!(read.encode(text), expected.encode(text));
            let other = if pad == EOS { "!" } else { EOS };
            assert!(!read.is_same(&ClipTokenizer::clip().padded_with(other).unwrap()));
        }
    }
}
