//! The syntax tree: a flat list of nodes, so that nothing about it recurses, however deep a prompt nests.

use std::fmt;
use std::iter::FusedIterator;
use std::ops::Range;

/// What a prompt is made of. Every byte is in exactly one leaf, so that the tree prints as the prompt.
#[derive(Clone, PartialEq)]
pub struct Tree {
    pub(super) text: String,
    /// Every node before what is in it.
    pub(super) nodes: Vec<Entry>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    pub kind: NodeKind,
    pub span: Range<usize>,
    /// The index behind the last node that is in it.
    pub end: usize,
}

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum NodeKind {
    /// A part between two `AND`s: text and constructs.
    Branch {
        /// Its weight.
        weight: f64,
    },
    /// What ends a branch and is not in its text: white space, `:weight`.
    Tail,
    /// The word between two branches.
    And,
    /// `(x)` or `(x:1.3)`: a [`Mark`](Self::Mark), a [`Part`](Self::Part), and, after another mark, a
    /// [`Weight`](Self::Weight).
    Emphasis,
    /// `[x]`: a part between marks.
    Softening,
    /// `[from:to:when]`, `[to:when]`: one or two parts and a [`Moment`](Self::Moment) between marks. `[from::when]` is one
    /// of two parts, the second empty.
    Schedule {
        /// When it turns.
        when: When,
    },
    /// `[a|b|c]`: parts between marks.
    Alternation,
    /// What stands between two marks: text and constructs.
    Part,
    /// The second part of an emphasis. It may be anything, a schedule among it.
    Weight,
    /// The number of a schedule.
    Moment,
    /// Leaf: text.
    Literal,
    /// Leaf: a bracket, colon or bar of a construct.
    Mark,
    /// Leaf: a backslash and the bracket, colon, bar or backslash behind it, or else the backslash alone.
    Escape,
    /// Leaf: the word `BREAK`.
    Break,
    /// Leaf: a comment, with the line breaks that go with it. It reads as one line break.
    Comment,
    /// Leaf: an extra network. It reads as nothing.
    Network,
}

/// When a schedule turns from one text to the other.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum When {
    /// After that step: `[a:b:3]` shows a in the steps 1 to 3. Below 1: before the first.
    Step(f64),
    /// After that part of the steps, rounded down: written with a point. 1.0 is never.
    Fraction(f64),
}

impl When {
    /// The last of `steps` steps with the first text, 0 if there is none.
    pub fn step(self, steps: usize) -> usize {
        let step = match self {
            Self::Step(step) => step,
            Self::Fraction(fraction) => fraction * steps as f64,
        };
        // Towards zero, and what is too large, or no number at all, to the end of the range.
        (step as usize).min(steps)
    }
}

/// A place in a [`Tree`]. Cheap to copy.
#[derive(Clone, Copy)]
pub struct Node<'a> {
    tree: &'a Tree,
    index: usize,
}

impl Tree {
    /// The prompt.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The outermost nodes in their order: branches, tails, `AND`s, and networks between them.
    pub fn nodes(&self) -> impl FusedIterator<Item = Node<'_>> + Clone {
        Children {
            tree: self,
            next: 0,
            end: self.nodes.len(),
        }
    }

    /// All leaves, in the order of the text.
    pub fn leaves(&self) -> impl Iterator<Item = Node<'_>> {
        (0..self.nodes.len())
            .map(|index| Node { tree: self, index })
            .filter(|node| node.is_leaf())
    }
}

impl fmt::Display for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.leaves().try_for_each(|leaf| f.write_str(leaf.text()))
    }
}

/// A line for each node, indented, with its span.
impl fmt::Debug for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ends: Vec<usize> = Vec::new();
        for (index, entry) in self.nodes.iter().enumerate() {
            while ends.pop_if(|end| *end <= index).is_some() {}
            // Deeper than anyone reads, spaces would be most of the output.
            let depth = 2 * ends.len().min(100);
            write!(f, "{:depth$}{:?} {:?}", "", entry.kind, entry.span)?;
            match entry.kind.is_leaf() {
                true => writeln!(f, " {:?}", &self.text[entry.span.clone()])?,
                false => writeln!(f)?,
            }
            ends.push(entry.end);
        }
        Ok(())
    }
}

impl NodeKind {
    /// Whether nothing is in such nodes, and all text is.
    pub fn is_leaf(&self) -> bool {
        matches!(
            self,
            Self::Literal | Self::Mark | Self::Escape | Self::Break | Self::Comment | Self::Network
        )
    }
}

impl<'a> Node<'a> {
    /// What it is.
    pub fn kind(&self) -> &'a NodeKind {
        &self.entry().kind
    }

    /// Its bytes in the prompt.
    pub fn span(&self) -> Range<usize> {
        self.entry().span.clone()
    }

    /// Its text as it was typed.
    pub fn text(&self) -> &'a str {
        &self.tree.text[self.span()]
    }

    /// Whether it is a leaf.
    pub fn is_leaf(&self) -> bool {
        self.kind().is_leaf()
    }

    /// The nodes directly in it, in the order of the text.
    pub fn children(self) -> impl FusedIterator<Item = Node<'a>> + Clone {
        Children {
            tree: self.tree,
            next: self.index + 1,
            end: self.entry().end,
        }
    }

    /// All nodes in it, each before what is in that.
    pub fn descendants(self) -> impl Iterator<Item = Node<'a>> {
        (self.index + 1..self.entry().end).map(move |index| Node {
            tree: self.tree,
            index,
        })
    }

    fn entry(&self) -> &'a Entry {
        &self.tree.nodes[self.index]
    }
}

impl fmt::Debug for Node<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?} {:?}", self.kind(), self.span(), self.text())
    }
}

#[derive(Clone)]
struct Children<'a> {
    tree: &'a Tree,
    next: usize,
    end: usize,
}

impl<'a> Iterator for Children<'a> {
    type Item = Node<'a>;

    fn next(&mut self) -> Option<Node<'a>> {
        (self.next < self.end).then(|| {
            let node = Node {
                tree: self.tree,
                index: self.next,
            };
            self.next = node.entry().end;
            node
        })
    }
}

impl FusedIterator for Children<'_> {}
