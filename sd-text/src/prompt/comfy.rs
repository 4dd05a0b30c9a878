//! ComfyUI's weights, after its documentation and the behaviour of `clip_text_encode`.
//!
//! `(x)` multiplies the surrounding weight by 1.1. `(x:1.3)` sets the weight to 1.3, whatever
//! surrounds it: an explicit weight replaces, and only the factors of 1.1 multiply. The weight is
//! the text after the last colon in the brackets, if that is a number. `\(` and `\)` are literal
//! brackets. Brackets that do not match are text, except that a text that begins with an opening
//! bracket and ends with a closing one counts as bracketed.

use super::segment::Segment;

/// The deepest nesting. Brackets that nest deeper are text, because each level takes time to read.
/// ComfyUI itself fails at some depth.
const DEEPEST: usize = 64;

pub(super) fn attention(text: &str) -> Vec<Segment> {
    let mut segments = Vec::new();
    // The items still to be read. The next one is at the end.
    let mut rest = vec![(text, 1.0, 0)];
    while let Some((text, weight, depth)) = rest.pop() {
        if depth == DEEPEST {
            segments.push(plain(text, weight));
            continue;
        }
        let mut found = Vec::new();
        for item in items(text) {
            found.push(match bracketed(item) {
                Some(inner) => {
                    let (inner, written) = split_weight(inner);
                    (inner, written.unwrap_or(weight * 1.1), depth + 1)
                }
                // An item without brackets is marked as deepest, so it is not read again.
                None => (item, weight, DEEPEST),
            });
        }
        rest.extend(found.into_iter().rev());
    }
    if segments.is_empty() {
        segments.push(Segment::plain(""));
    }
    segments
}

fn plain(text: &str, weight: f64) -> Segment {
    Segment::weighted(text.replace("\\)", ")").replace("\\(", "("), weight)
}

/// Splits the text into the outermost pairs of brackets and the texts between them.
fn items(text: &str) -> Vec<&str> {
    let mut items = Vec::new();
    let (mut start, mut depth) = (0, 0_isize);
    let bytes = text.as_bytes();
    let escaped = |at: usize| at > 0 && bytes[at - 1] == b'\\';
    for (at, &byte) in bytes.iter().enumerate() {
        match byte {
            b'(' if !escaped(at) => {
                if depth == 0 && start < at {
                    items.push(&text[start..at]);
                    start = at;
                }
                depth += 1;
            }
            b')' if !escaped(at) => {
                depth -= 1;
                if depth == 0 {
                    items.push(&text[start..=at]);
                    start = at + 1;
                }
            }
            _ => {}
        }
    }
    if start < text.len() {
        items.push(&text[start..]);
    }
    items
}

fn bracketed(item: &str) -> Option<&str> {
    let inner = item.strip_prefix('(')?.strip_suffix(')')?;
    (!inner.ends_with('\\')).then_some(inner)
}

fn split_weight(text: &str) -> (&str, Option<f64>) {
    let number = |text: &str| {
        text.trim()
            .parse()
            .ok()
            .filter(|weight: &f64| weight.is_finite())
    };
    match text.rsplit_once(':').filter(|(inner, _)| !inner.is_empty()) {
        Some((inner, weight)) if number(weight).is_some() => (inner, number(weight)),
        _ => (text, None),
    }
}
