//! Extra networks: `<lora:name:weight>`, `<hypernet:name>`.

use std::ops::Range;

use serde::Serialize;

use super::characters::is_word;
use super::source::{Removed, Source};

/// An extra network that a prompt names, such as `<lora:name:0.8>`.
///
/// With serde it is an object with a key for each field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Network {
    /// The kind of network, such as `lora`.
    pub name: String,
    /// The text after the first colon, split at colons: the name of the network, its weight and so
    /// on. There is at least one argument, which may be empty.
    pub arguments: Vec<String>,
    /// The bytes of the prompt, angle brackets included.
    pub span: Range<usize>,
}

/// Removes all networks from the text: `<`, a word, a colon, at least one character other than `>`,
/// and `>`.
pub(super) fn take(source: &mut Source<'_>) -> Vec<Network> {
    let mut networks = Vec::new();
    let mut ranges: Vec<Range<usize>> = Vec::new();
    let text = source.text.as_str();
    let mut from = 0;
    while let Some(found) = text[from..].find('<') {
        let open = from + found;
        let name = text[open + 1..].trim_start_matches(is_word).len();
        let name = &text[open + 1..text.len() - name];
        let colon = open + 1 + name.len();
        from = open + 1;
        if name.is_empty() || text.as_bytes().get(colon) != Some(&b':') {
            continue;
        }
        let Some(length) = text[colon + 1..].find('>') else {
            // No later `<` is closed either.
            break;
        };
        if length == 0 {
            continue;
        }
        let close = colon + 1 + length;
        networks.push(Network {
            name: name.to_owned(),
            arguments: text[colon + 1..close]
                .split(':')
                .map(str::to_owned)
                .collect(),
            span: source.original(open..close + 1),
        });
        ranges.push(open..close + 1);
        from = close + 1;
    }
    source.remove(&ranges, Removed::Network);
    networks
}
