//! Makes a [`Tree`] of a text from left to right, out of the marks that the grammar has found.

use std::ops::Range;

use super::characters::whole_words;
use super::conjunction::AND;
use super::grammar::{self, Construct, Role};
use super::source::{Removed, Source};
use super::tree::{Entry, NodeKind, Tree};

/// A text that has no language: one branch of one literal.
pub(super) fn plain(source: Source<'_>) -> Tree {
    let mut builder = Builder::new(source);
    builder.open(NodeKind::Branch { weight: 1.0 });
    builder.leaf(NodeKind::Literal, builder.source.text.len());
    builder.close();
    builder.finish()
}

/// Makes a tree from left to right. Places are bytes of the source's text, spans those of the original.
pub(super) struct Builder<'t> {
    source: Source<'t>,
    nodes: Vec<Entry>,
    /// The nodes that are not closed yet.
    open: Vec<usize>,
    /// Up to where there are leaves: in the text, in the original, and the piece there.
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

    /// The `AND` in front of a branch that begins at `start`, if there is one.
    pub fn conjunction(&mut self, start: usize) {
        debug_assert!(start == self.at || start == self.at + AND.len());
        if start > self.at {
            self.open(NodeKind::And);
            self.leaf(NodeKind::Literal, start);
            self.close();
        }
    }

    /// A branch.
    ///
    /// # Errors
    /// The byte of the text at which the grammar failed. The branch is a literal then.
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

    /// What follows a branch up to `end`.
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
            // The same, where nothing was taken out.
            text: match pieces.iter().all(|piece| piece.removed.is_none()) {
                true => text,
                false => original.to_owned(),
            },
            nodes: self.nodes,
        }
    }

    /// The byte at a place.
    pub fn byte(&self, at: usize) -> u8 {
        self.source.text.as_bytes()[at]
    }

    /// Where that byte is in the original.
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

    /// Text up to `end`, its escapes and `BREAK`s apart.
    fn text(&mut self, end: usize) {
        let start = self.at;
        // Leaves need only the pieces.
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

    /// A leaf up to `end`, and those of comments and networks in it.
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

    /// The networks that stood here.
    fn networks(&mut self) {
        while let Some(piece) = self.source.pieces.get(self.piece) {
            if piece.length > 0 {
                break;
            }
            debug_assert!(piece.removed != Some(Removed::Comment));
            let end = piece.span.end;
            self.piece += 1;
            // An empty prompt is an empty piece, and no leaf.
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
