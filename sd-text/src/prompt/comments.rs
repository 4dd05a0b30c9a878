//! Comments: from `#` to the end of the line. A `#` cannot be escaped.
//!
//! If a line is nothing but a comment, its line break is removed with it. Otherwise the line break
//! stays. WebUI does this in two passes, which shows where comment lines follow each other: the
//! second of two is treated like a comment at the end of a line.

use std::ops::Range;

use super::source::{Removed, Source};

pub(super) fn strip(source: &mut Source<'_>) {
    if source.text.contains('#') {
        let lines = whole_lines(&source.text);
        source.remove(&lines, Removed::Comment);
        let ends = ends(&source.text);
        source.remove(&ends, Removed::Comment);
    }
}

/// Returns the lines that begin with `#`, each with the line breaks on both sides, except for a
/// break that the line before has already taken.
fn whole_lines(text: &str) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    let mut from = 0;
    while let Some(found) = text[from..].find('#') {
        let hash = from + found;
        if hash == 0 || (hash > from && text.as_bytes()[hash - 1] == b'\n') {
            ranges.push(hash.saturating_sub(1)..line_end(text, hash));
            from = line_end(text, hash);
        } else {
            from = hash + 1;
        }
    }
    ranges
}

fn ends(text: &str) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    let mut from = 0;
    while let Some(found) = text[from..].find('#') {
        let hash = from + found;
        from = line_end(text, hash);
        ranges.push(hash..from);
    }
    ranges
}

/// Returns the position after the next line break.
fn line_end(text: &str, at: usize) -> usize {
    text[at..]
        .find('\n')
        .map_or(text.len(), |found| at + found + 1)
}
