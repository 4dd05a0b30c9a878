//! A prompt with comments and networks removed, and a map from each remaining byte to the original.

use std::ops::Range;

pub(super) struct Source<'t> {
    pub original: &'t str,
    /// The text that is left.
    pub text: String,
    /// The pieces in order. They cover both texts without gaps.
    pub pieces: Vec<Piece>,
}

#[derive(Clone)]
pub(super) struct Piece {
    /// Where the piece begins in the remaining text, and its length there in bytes.
    pub at: usize,
    pub length: usize,
    pub span: Range<usize>,
    pub removed: Option<Removed>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Removed {
    /// A comment. A line break replaces it.
    Comment,
    /// A network. Nothing replaces it.
    Network,
}

impl<'t> Source<'t> {
    pub fn new(original: &'t str) -> Self {
        let whole = Piece {
            at: 0,
            length: original.len(),
            span: 0..original.len(),
            removed: None,
        };
        Self {
            original,
            text: original.to_owned(),
            pieces: vec![whole],
        }
    }

    /// Removes `ranges` of the text. They must be in ascending order, must not touch or overlap,
    /// and must not be empty.
    pub fn remove(&mut self, ranges: &[Range<usize>], removed: Removed) {
        if ranges.is_empty() {
            return;
        }
        let left = match removed {
            Removed::Comment => "\n",
            Removed::Network => "",
        };
        let mut text = String::with_capacity(self.text.len());
        let mut pieces: Vec<Piece> = Vec::new();
        let (mut next, mut open) = (0, None);
        for piece in &self.pieces {
            let (mut at, end) = (piece.at, piece.at + piece.length);
            while at < end {
                while ranges.get(next).is_some_and(|range| range.end <= at) {
                    next += 1;
                }
                let (stop, inside) = match ranges.get(next) {
                    Some(range) if range.start <= at => (range.end.min(end), true),
                    Some(range) => (range.start.min(end), false),
                    None => (end, false),
                };
                let span = match piece.removed {
                    None => {
                        piece.span.start + (at - piece.at)..piece.span.start + (stop - piece.at)
                    }
                    Some(_) => piece.span.clone(),
                };
                match pieces.last_mut() {
                    // This is the rest of a range that began in an earlier piece.
                    Some(last) if inside && open == Some(next) => last.span.end = span.end,
                    _ => {
                        let kept = if inside { left } else { &self.text[at..stop] };
                        pieces.push(Piece {
                            at: text.len(),
                            length: kept.len(),
                            span,
                            removed: if inside { Some(removed) } else { piece.removed },
                        });
                        text.push_str(kept);
                        open = inside.then_some(next);
                    }
                }
                at = stop;
            }
        }
        self.text = text;
        self.pieces = pieces;
    }

    /// Returns the bytes of the original that a non-empty range of the text came from.
    pub fn original(&self, range: Range<usize>) -> Range<usize> {
        let piece = |at: usize| {
            let index = self
                .pieces
                .partition_point(|piece| piece.at + piece.length <= at);
            &self.pieces[index.min(self.pieces.len() - 1)]
        };
        let (first, last) = (piece(range.start), piece(range.end - 1));
        let start = match first.removed {
            None => first.span.start + (range.start - first.at),
            Some(_) => first.span.start,
        };
        let end = match last.removed {
            None => last.span.start + (range.end - last.at),
            Some(_) => last.span.end,
        };
        start..end
    }
}
