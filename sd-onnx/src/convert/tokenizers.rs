//! Compares tokenizers by the ids that they give for prompts.

use sd_text::{Cleanup, ClipTokenizer, outside::printable};

/// Returns one sentence for each word that the two tokenizers read differently in prompts. Returns
/// `None` if their vocabularies differ.
///
/// A tokenizer's files name the padding token, and list it among the special tokens, which are also
/// found in prompts. In Stable Diffusion 2 and SDXL the padding token is `!`. This crate's own
/// tokenizer, with which single files are read, pads with `!` too but reads a `!` in a prompt as an
/// ordinary word.
pub(super) fn differences(name: &str, [old, new]: [&ClipTokenizer; 2]) -> Option<Vec<String>> {
    if !old.has_same_tokens(new) {
        return None;
    }
    let words = old.special_differences(new).into_iter();
    let sentences = words.map(|word| {
        let ids = |tokenizer: &ClipTokenizer| {
            let ids = tokenizer.tokenize(&word, Cleanup::Transformers);
            let ids: Vec<_> = ids.into_iter().map(|id| id.to_string()).collect();
            ids.join(", ")
        };
        let (old, new) = (ids(old), ids(new));
        format!(
            "`{}` in a prompt is read otherwise by `{name}`: as the token {new} instead of {old}",
            printable(&word)
        )
    });
    Some(sentences.collect())
}
