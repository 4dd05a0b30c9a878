//! `AND`: the parts of a prompt and their weights.

use std::ops::Range;

use super::characters::{digits, is_space, unsigned, whole_words};

/// A part: its text, without the white space and the `:weight` at its end.
pub(super) struct Part {
    pub text: Range<usize>,
    /// Where the weight and the white space behind the text end: at an `AND`, or at the prompt's end.
    pub end: usize,
    pub weight: f64,
}

pub(super) const AND: &str = "AND";

/// A part for every stretch between the words `AND`.
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

/// The whole as a single part.
pub(super) fn whole(text: &str) -> Part {
    Part {
        text: 0..text.len(),
        end: text.len(),
        weight: 1.0,
    }
}

/// How long the text is without its tail, and the weight in that. Also without an `AND` a prompt may end in a weight.
fn weighted(text: &str) -> (usize, f64) {
    let trimmed = text.trim_end_matches(is_space);
    let weight = trimmed.rsplit_once(':').and_then(|(before, number)| {
        let number = number.trim_start_matches(is_space);
        let weight = is_number(number).then(|| number.parse().ok())??;
        Some((before.trim_end_matches(is_space).len(), weight))
    });
    weight.unwrap_or((trimmed.len(), 1.0))
}

/// `1`, `1.`, `.5` or `1.5` with a sign or without, and no exponent.
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
