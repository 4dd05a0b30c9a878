//! Tokenizers, compared by the ids that prompts get from them.

use sd_text::{Cleanup, ClipTokenizer, outside::printable};

/// The words of prompts that become other ids, one sentence for each. None if the tokens themselves
/// differ.
///
/// A tokenizer's files name the token that fills texts up, and name it as a special one, which is
/// found in a prompt too. In Stable Diffusion 2 and SDXL that is `!`. The program's own tokenizer,
/// which single files are read with, fills texts up with it and reads it as the word that it is.
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
