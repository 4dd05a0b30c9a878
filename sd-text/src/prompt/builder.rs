//! Builds a [`Tree`] from left to right, out of the marks that the grammar found.

use std::ops::Range;

use super::characters::whole_words;
use super::conjunction::AND;
use super::grammar::{self, Construct, Role};
use super::source::{Removed, Source};
use super::tree::{Entry, NodeKind, Tree};

/// Returns the tree of a text without a prompt language: one branch with one literal.
pub(super) fn plain(source: Source<'_>) -> Tree {
    let mut builder = Builder::new(source);
    builder.open(NodeKind::Branch { weight: 1.0 });
    builder.leaf(NodeKind::Literal, builder.source.text.len());
    builder.close();
    builder.finish()
}

/// Builds a tree from left to right. Positions are bytes of the source's text. Spans are bytes of
/// the original prompt.
pub(super) struct Builder<'t> {
    source: Source<'t>,
    nodes: Vec<Entry>,
    /// The nodes that are not closed yet, as indices.
    open: Vec<usize>,
    /// How far the leaves reach: `at` in the text, `done` in the original. `piece` is the index of
    /// the piece at that position.
    at: usize,
    done: usize,
    piece: usize,
}

impl<'t> Builder<'t> {
    pub fn new(source: Source<'t>) -> Self {
        Self {
            source,
            nodes: Vec::new(),
            open: Vec::new(),
            at: 0,
            done: 0,
            piece: 0,
        }
    }

    /// Adds the `AND` in front of a branch that begins at `start`, if there is one.
    pub fn conjunction(&mut self, start: usize) {
        debug_assert!(start == self.at || start == self.at + AND.len());
        if start > self.at {
            self.open(NodeKind::And);
            self.leaf(NodeKind::Literal, start);
            self.close();
        }
    }

    /// Adds a branch.
    ///
    /// # Errors
    /// The byte of the text at which the grammar failed. The branch is then one literal.
    pub fn branch(&mut self, range: Range<usize>, weight: f64) -> Result<(), usize> {
        self.open(NodeKind::Branch { weight });
        let marks = grammar::read(&self.source.text[range.clone()]);
        let mut constructs: Vec<(Construct, usize)> = Vec::new();
        for mark in marks.iter().flatten() {
            let at = range.start + mark.at;
            if !matches!(mark.role, Role::Text) {
                self.text(at);
            }
            match mark.role {
                Role::Text => {}
                Role::Open(construct, separators) => {
                    constructs.push((construct, separators));
                    self.open(match construct {
                        Construct::Emphasis => NodeKind::Emphasis,
                        Construct::Softening => NodeKind::Softening,
                        Construct::Schedule(when) => NodeKind::Schedule { when },
                        Construct::Alternation => NodeKind::Alternation,
                    });
                    self.leaf(NodeKind::Mark, at + 1);
                    self.open(NodeKind::Part);
                }
                Role::Separator => {
                    self.close();
                    self.leaf(NodeKind::Mark, at + 1);
                    let kind = match constructs.last_mut() {
                        Some((construct, left)) => {
                            *left = left.saturating_sub(1);
                            match construct {
                                Construct::Emphasis => NodeKind::Weight,
                                Construct::Schedule(_) if *left == 0 => NodeKind::Moment,
                                _ => NodeKind::Part,
                            }
                        }
                        None => NodeKind::Part,
                    };
                    self.open(kind);
                }
                Role::Close => {
                    self.close();
                    self.leaf(NodeKind::Mark, at + 1);
                    self.close();
                    constructs.pop();
                }
            }
        }
        self.text(range.end);
        self.close();
        marks.map(|_| ()).map_err(|at| range.start + at)
    }

    /// Adds what follows a branch, up to `end`.
    pub fn tail(&mut self, end: usize) {
        if end > self.at {
            self.open(NodeKind::Tail);
            self.leaf(NodeKind::Literal, end);
            self.close();
        }
    }

    pub fn finish(mut self) -> Tree {
        self.networks();
        debug_assert!(self.open.is_empty() && self.done == self.source.original.len());
        let Source {
            original,
            text,
            pieces,
        } = self.source;
        Tree {
            // If nothing was removed, the two texts are equal, and this one needs no copy.
            text: match pieces.iter().all(|piece| piece.removed.is_none()) {
                true => text,
                false => original.to_owned(),
            },
            nodes: self.nodes,
        }
    }

    /// Returns the byte of the text at `at`.
    pub fn byte(&self, at: usize) -> u8 {
        self.source.text.as_bytes()[at]
    }

    /// Returns the position in the original prompt of the byte at `at`.
    pub fn original(&self, at: usize) -> Range<usize> {
        self.source.original(at..at + 1)
    }

    fn open(&mut self, kind: NodeKind) {
        self.networks();
        self.open.push(self.nodes.len());
        self.push(kind, self.done);
    }

    fn close(&mut self) {
        if let Some(index) = self.open.pop() {
            let end = self.nodes.len();
            self.nodes[index].span.end = self.done;
            self.nodes[index].end = end;
        }
    }

    /// Adds the text up to `end`, with escapes and `BREAK`s as separate leaves.
    fn text(&mut self, end: usize) {
        let start = self.at;
        // `leaf` reads only the pieces, so the text can be moved out while it is searched.
        let whole = std::mem::take(&mut self.source.text);
        {
            let text = &whole[start..end];
            let mut breaks = whole_words(text, "BREAK").peekable();
            let mut at = 0;
            while at < text.len() {
                let next_break = breaks.peek().copied().unwrap_or(text.len());
                let escape = text[at..next_break].find('\\');
                let special = escape.map_or(next_break, |found| at + found);
                self.leaf(NodeKind::Literal, start + special);
                at = if escape.is_some() {
                    let behind = text.as_bytes().get(special + 1);
                    let escaped = behind.is_some_and(|byte| b"()[]:|\\".contains(byte));
                    let end = special + 1 + usize::from(escaped);
                    self.leaf(NodeKind::Escape, start + end);
                    end
                } else if breaks.next().is_some() {
                    let end = special + "BREAK".len();
                    self.leaf(NodeKind::Break, start + end);
                    end
                } else {
                    text.len()
                };
            }
        }
        self.source.text = whole;
    }

    /// Adds a leaf up to `end`, and leaves for the comments and networks inside it.
    fn leaf(&mut self, kind: NodeKind, end: usize) {
        while self.at < end {
            self.networks();
            let piece = &self.source.pieces[self.piece];
            let (stop, done) = match piece.removed {
                None => {
                    let stop = end.min(piece.at + piece.length);
                    (stop, piece.span.start + (stop - piece.at))
                }
                Some(_) => (piece.at + piece.length, piece.span.end),
            };
            let kind = if piece.removed.is_some() {
                NodeKind::Comment
            } else {
                kind
            };
            if stop == piece.at + piece.length {
                self.piece += 1;
            }
            self.push(kind, done);
            (self.at, self.done) = (stop, done);
        }
    }

    /// Adds the networks at this position.
    fn networks(&mut self) {
        while let Some(piece) = self.source.pieces.get(self.piece) {
            if piece.length > 0 {
                break;
            }
            debug_assert!(piece.removed != Some(Removed::Comment));
            let end = piece.span.end;
            self.piece += 1;
            // An empty prompt is one empty piece and has no leaf.
            if end > self.done {
                self.push(NodeKind::Network, end);
                self.done = end;
            }
        }
    }

    fn push(&mut self, kind: NodeKind, end: usize) {
        self.nodes.push(Entry {
            kind,
            span: self.done..end,
            end: self.nodes.len() + 1,
        });
    }
}
