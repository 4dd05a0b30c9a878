//! The syntax tree of a prompt. It is a flat list of nodes, so that no operation recurses, however
//! deeply a prompt nests.

use std::fmt;
use std::iter::FusedIterator;
use std::ops::Range;

use super::PromptSteps;

/// The syntax tree of a prompt.
///
/// Every byte of the prompt is in exactly one leaf, so that the tree prints as the prompt.
#[derive(Clone, PartialEq)]
pub struct Tree {
    pub(super) text: String,
    /// All nodes. A node stands before its descendants.
    pub(super) nodes: Vec<Entry>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    pub kind: NodeKind,
    pub span: Range<usize>,
    /// The index after its last descendant.
    pub end: usize,
}

/// The kind of a [`Node`].
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum NodeKind {
    /// A part between two `AND`s, containing text and constructs.
    Branch {
        /// The weight of the branch.
        weight: f64,
    },
    /// The end of a branch that is not part of its text: white space and `:weight`.
    Tail,
    /// The word `AND` between two branches.
    And,
    /// `(x)` or `(x:1.3)`: a [`Mark`](Self::Mark), a [`Part`](Self::Part), optionally another mark
    /// and a [`Weight`](Self::Weight), and a closing mark.
    Emphasis,
    /// `[x]`: a part between two marks.
    Softening,
    /// `[from:to:when]` or `[to:when]`: one or two parts and a [`Moment`](Self::Moment), separated
    /// by marks. `[from::when]` has two parts, of which the second is empty.
    Schedule {
        /// When the text changes.
        when: When,
    },
    /// `[a|b|c]`: parts separated by marks.
    Alternation,
    /// The content between two marks, containing text and constructs.
    Part,
    /// The second part of an emphasis. It may contain anything, even a schedule.
    Weight,
    /// The number of a schedule.
    Moment,
    /// Leaf: text.
    Literal,
    /// Leaf: a bracket, colon or bar that belongs to a construct.
    Mark,
    /// Leaf: a backslash with the bracket, colon, bar or backslash after it, or a backslash alone.
    Escape,
    /// Leaf: the word `BREAK`.
    Break,
    /// Leaf: a comment, with the line breaks that are removed with it. It reads as one line break.
    Comment,
    /// Leaf: an extra network. It reads as an empty text.
    Network,
}

/// When a schedule changes from its first text to its second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum When {
    /// After this step: `[a:b:3]` shows `a` in steps 1 to 3. A value below 1 means before the first
    /// step.
    Step(f64),
    /// After this fraction of the steps, rounded down. It is written with a decimal point. From 1.0
    /// on, the second text is never shown in a first or only pass.
    Fraction(f64),
}

impl When {
    /// Returns the last of the steps that shows the first text, or 0 if none does.
    pub fn step(self, steps: impl Into<PromptSteps>) -> usize {
        let PromptSteps { first_pass, steps } = steps.into();
        let step = match (self, first_pass) {
            (Self::Step(step), None) => step,
            (Self::Step(step), Some(before)) => step - before as f64,
            (Self::Fraction(fraction), None) => fraction * steps as f64,
            (Self::Fraction(fraction), Some(_)) => (fraction - 1.0) * steps as f64,
        };
        // The cast rounds towards zero, saturates, and turns NaN into 0.
        (step as usize).min(steps)
    }
}

/// A node of a [`Tree`]. Cheap to copy.
#[derive(Clone, Copy)]
pub struct Node<'a> {
    tree: &'a Tree,
    index: usize,
}

impl Tree {
    /// Returns the prompt as it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Returns the outermost nodes in order: branches, tails, `AND`s, and the networks between
    /// them.
    pub fn nodes(&self) -> impl FusedIterator<Item = Node<'_>> + Clone {
        Children {
            tree: self,
            next: 0,
            end: self.nodes.len(),
        }
    }

    /// Returns all leaves, in the order of the text.
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

/// Prints one line for each node, indented, with its span.
impl fmt::Debug for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ends: Vec<usize> = Vec::new();
        for (index, entry) in self.nodes.iter().enumerate() {
            while ends.pop_if(|end| *end <= index).is_some() {}
            // The indentation is limited: for deep trees, spaces would be most of the output.
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
    /// Returns whether nodes of this kind are leaves: they contain text and no nodes.
    pub fn is_leaf(&self) -> bool {
        matches!(
            self,
            Self::Literal | Self::Mark | Self::Escape | Self::Break | Self::Comment | Self::Network
        )
    }
}

impl<'a> Node<'a> {
    /// Returns the kind of the node.
    pub fn kind(&self) -> &'a NodeKind {
        &self.entry().kind
    }

    /// Returns the bytes of the prompt that the node covers.
    pub fn span(&self) -> Range<usize> {
        self.entry().span.clone()
    }

    /// Returns the text of the node as it was written.
    pub fn text(&self) -> &'a str {
        &self.tree.text[self.span()]
    }

    /// Returns whether the node is a leaf.
    pub fn is_leaf(&self) -> bool {
        self.kind().is_leaf()
    }

    /// Returns the direct children, in the order of the text.
    pub fn children(self) -> impl FusedIterator<Item = Node<'a>> + Clone {
        Children {
            tree: self.tree,
            next: self.index + 1,
            end: self.entry().end,
        }
    }

    /// Returns all descendants. A node comes before its own descendants.
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
