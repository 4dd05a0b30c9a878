//! CLIP's vocabulary, out of its merges.
//!
//! Its 49,408 tokens are, in this order, the 256 bytes, the same at the end of a word, what each of 48,894 merges joins,
//! and two special ones (`SimpleTokenizer` of OpenAI's CLIP). So a merge can be told by the ids of its two parts, and
//! `vocabulary/merges.bin` is these, four bytes a merge, little-endian. `tests/vocabulary.rs` makes it from `merges.txt`.

use super::files::{BOS, EOS, Merges, Vocab};
use super::letters;

/// MIT, OpenAI: see `vocabulary/LICENSE`.
static MERGES: &[u8] = include_bytes!("vocabulary/merges.bin");
const WORD_END: &str = "</w>";

pub(super) fn read() -> (Vocab, Merges) {
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
