//! ComfyUI's weights, from its documentation and what it does with prompts (`clip_text_encode`).
//!
//! `(x)` is 1.1 times what is around it. `(x:1.3)` is 1.3, whatever is around it: a weight that is written replaces, and
//! only 1.1s multiply. The weight is what stands behind the last colon in the brackets, if that is a number. `\(` and `\)`
//! are brackets in the text. Brackets that don't match are text, but a text that begins with an open one and ends with a
//! closed one counts as bracketed.

use super::segment::Segment;

/// Brackets that nest deeper are text: ComfyUI fails at some depth, and reading every level takes time.
const DEEPEST: usize = 64;

pub(super) fn attention(text: &str) -> Vec<Segment> {
    let mut segments = Vec::new();
    // What is still to be read, the next at the end.
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
                // Deep enough to be taken as it is.
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

/// The outermost pairs of brackets, and what is between them.
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
