//! `AND`: splits a prompt into parts with weights.

use std::ops::Range;

use super::characters::{digits, is_space, unsigned, whole_words};

/// A part of a prompt. `text` excludes the white space and the `:weight` at its end.
pub(super) struct Part {
    pub text: Range<usize>,
    /// Where the weight and the white space after the text end: at an `AND` or at the end of the
    /// prompt.
    pub end: usize,
    pub weight: f64,
}

pub(super) const AND: &str = "AND";

/// Splits the text at the word `AND`.
pub(super) fn split(text: &str) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut start = 0;
    for and in whole_words(text, AND).chain([text.len()]) {
        let (length, weight) = weighted(&text[start..and]);
        parts.push(Part {
            text: start..start + length,
            end: and,
            weight,
        });
        start = and + AND.len();
    }
    parts
}

/// Returns the whole text as a single part.
pub(super) fn whole(text: &str) -> Part {
    Part {
        text: 0..text.len(),
        end: text.len(),
        weight: 1.0,
    }
}

/// Returns the length of the text without the weight and white space at its end, and the weight. A
/// prompt without `AND` may end in a weight too.
fn weighted(text: &str) -> (usize, f64) {
    let trimmed = text.trim_end_matches(is_space);
    let weight = trimmed.rsplit_once(':').and_then(|(before, number)| {
        let number = number.trim_start_matches(is_space);
        let weight = is_number(number).then(|| number.parse().ok())??;
        Some((before.trim_end_matches(is_space).len(), weight))
    });
    weight.unwrap_or((trimmed.len(), 1.0))
}

/// Whether the text is `1`, `1.`, `.5` or `1.5`, with or without a sign. An exponent is not
/// allowed.
fn is_number(text: &str) -> bool {
    let text = unsigned(text);
    let whole = digits(text);
    match text[whole..].strip_prefix('.') {
        None => whole > 0 && text.len() == whole,
        Some(fraction) => {
            let places = digits(fraction);
            places == fraction.len() && whole + places > 0
        }
    }
}
