//! CLIP's vocabulary, out of its merges.
//!
//! Its 49,408 tokens are, in this order, the 256 bytes, the same at the end of a word, what each of 48,894 merges joins,
//! and two special ones (`SimpleTokenizer` of OpenAI's CLIP). So a merge can be told by the ids of its two parts, and
//! `vocabulary/merges.bin` is these, four bytes a merge, little-endian. `tests/vocabulary.rs` makes it from `merges.txt`.

use tokenizers::AddedToken;

use super::files::{BOS, CLIP_LENGTH, EOS, Files, Merges, Vocab};
use super::letters;

/// MIT, OpenAI: see `vocabulary/LICENSE`.
static MERGES: &[u8] = include_bytes!("vocabulary/merges.bin");
const WORD_END: &str = "</w>";

impl Files {
    /// What a folder with CLIP's vocabulary and nothing else says.
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
