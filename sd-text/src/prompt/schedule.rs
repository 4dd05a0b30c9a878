//! Which text is in force when.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::tree::{Node, NodeKind};

/// The texts of a branch over the steps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    /// At least one.
    entries: Vec<ScheduleEntry>,
}

/// A text and how long it stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScheduleEntry {
    /// The last step, from 1, that shows it.
    pub end: usize,
    /// The text, with brackets and weights as they were typed: [`attention()`](super::attention()) reads them.
    pub text: Arc<str>,
}

impl Schedule {
    pub(super) fn new(branch: Node<'_>, steps: usize) -> Self {
        let mut ends = BTreeSet::from([steps]);
        for node in branch.descendants() {
            match node.kind() {
                NodeKind::Schedule { when } => {
                    ends.extend(Some(when.step(steps)).filter(|&step| step >= 1));
                }
                NodeKind::Alternation if ends.len() < steps => ends.extend(1..=steps),
                _ => {}
            }
        }
        // An alternation shows the same few texts again and again.
        let mut texts: BTreeSet<Arc<str>> = BTreeSet::new();
        let entries = ends.into_iter().map(|end| {
            let text = text_at(branch, end, steps);
            let text = texts.get(text.as_str()).cloned().unwrap_or_else(|| {
                let text: Arc<str> = text.into();
                texts.insert(text.clone());
                text
            });
            ScheduleEntry { end, text }
        });
        Self {
            entries: entries.collect(),
        }
    }

    /// At least one, by ascending end; the last one's end is the number of steps. Neighbours may have the same text.
    pub fn entries(&self) -> &[ScheduleEntry] {
        &self.entries
    }

    /// The entry in force at model call `call`, from 0: the first whose end is `call` or more.
    ///
    /// That is one call more than the numbers say, `[a:b:3]` shows a in four calls and `[a|b]` a, a, b: calls count from 0
    /// and steps from 1, and WebUI compares them so. Past the end it is the first entry again, as in WebUI, whose
    /// DPM adaptive gets there: who knows of more calls than steps makes the schedule for as many.
    pub fn at(&self, call: usize) -> &ScheduleEntry {
        &self.entries[in_force(self.entries.iter().map(|entry| entry.end), call)]
    }
}

/// Which of the entries with these ends is in force at a model call: see [`Schedule::at`].
pub(crate) fn in_force(mut ends: impl Iterator<Item = usize>, call: usize) -> usize {
    ends.position(|end| end >= call).unwrap_or(0)
}

/// What the branch shows in step `step`, from 1.
fn text_at(branch: Node<'_>, step: usize, steps: usize) -> String {
    let mut text = String::new();
    // What is still to be shown, the next at the end.
    let mut nodes: Vec<_> = vec![branch.children()];
    while let Some(children) = nodes.last_mut() {
        let Some(node) = children.next() else {
            nodes.pop();
            continue;
        };
        match *node.kind() {
            NodeKind::Schedule { when } => {
                let mut parts = node
                    .children()
                    .filter(|part| *part.kind() == NodeKind::Part);
                let (first, second) = (parts.next(), parts.next());
                let (before, after) = match second {
                    Some(after) => (first, Some(after)),
                    None => (None, first),
                };
                let shown = if step <= when.step(steps) {
                    before
                } else {
                    after
                };
                nodes.extend(shown.map(Node::children));
            }
            NodeKind::Alternation => {
                let parts = || {
                    node.children()
                        .filter(|part| *part.kind() == NodeKind::Part)
                };
                let turn = step.saturating_sub(1) % parts().count().max(1);
                nodes.extend(parts().nth(turn).map(Node::children));
            }
            NodeKind::Comment => text.push('\n'),
            NodeKind::Network => {}
            _ if node.is_leaf() => text.push_str(node.text()),
            _ => nodes.push(node.children()),
        }
    }
    text
}
