//! The text that a branch shows at each step.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::tree::{Node, NodeKind};

/// The steps over which the schedules of a prompt are resolved. A number converts to it.
///
/// ```
/// use sd_text::{PromptSteps, PromptText, Side, Syntax};
///
/// let prompt = PromptText::parse("[fox:owl:1.5]", Side::Positive, Syntax::WebUi);
/// let branch = prompt.branches().next().expect("a prompt has a branch");
/// // In the first pass, the fox stays.
/// assert_eq!(branch.schedule(20).entries().len(), 1);
/// // The owl comes in the middle of the second pass.
/// let second = branch.schedule(PromptSteps::second_pass(20, 10));
/// assert_eq!((second.entries()[0].end, &*second.entries()[1].text), (5, "owl"));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PromptSteps {
    /// The number of steps of an earlier pass that this pass follows, as in WebUI's "Hires. fix".
    /// Schedules keep counting: after a first pass of 20 steps, step 21 is the first step of the
    /// second pass, and the fractions from 1.0 to 2.0 lie in the second pass.
    ///
    /// Default: `None`, this is the first or only pass.
    pub first_pass: Option<usize>,
    /// The number of steps of this pass.
    pub steps: usize,
}

impl PromptSteps {
    /// Returns the steps of a second pass of `steps` steps, which follows a pass of `first_pass`
    /// steps.
    pub fn second_pass(first_pass: usize, steps: usize) -> Self {
        let first_pass = Some(first_pass);
        Self { first_pass, steps }
    }
}

impl From<usize> for PromptSteps {
    fn from(steps: usize) -> Self {
        let first_pass = None;
        Self { first_pass, steps }
    }
}

/// The texts of a branch over the steps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    /// At least one entry.
    entries: Vec<ScheduleEntry>,
}

/// A text and the last step that shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScheduleEntry {
    /// The last step that shows the text, counted from 1.
    pub end: usize,
    /// The text as it was written, with brackets and weights. [`attention()`](super::attention())
    /// reads them.
    pub text: Arc<str>,
}

impl Schedule {
    pub(super) fn new(branch: Node<'_>, over: PromptSteps) -> Self {
        let steps = over.steps;
        let mut ends = BTreeSet::from([steps]);
        for node in branch.descendants() {
            match node.kind() {
                NodeKind::Schedule { when } => {
                    ends.extend(Some(when.step(over)).filter(|&step| step >= 1));
                }
                NodeKind::Alternation if ends.len() < steps => ends.extend(1..=steps),
                _ => {}
            }
        }
        // An alternation shows the same few texts again and again, so they are shared.
        let mut texts: BTreeSet<Arc<str>> = BTreeSet::new();
        let entries = ends.into_iter().map(|end| {
            let text = text_at(branch, end, over);
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

    /// Returns the entries by ascending end. There is at least one, and the end of the last entry
    /// is the number of steps. Neighbouring entries may have the same text.
    pub fn entries(&self) -> &[ScheduleEntry] {
        &self.entries
    }

    /// Returns the entry in force at model call `call`, counted from 0: the first entry whose end
    /// is at least `call`.
    ///
    /// Calls count from 0 and ends from 1, and WebUI compares the two directly. So the first text
    /// lasts one call longer than its number says: `[a:b:3]` shows `a` in four calls, and `[a|b]`
    /// shows `a`, `a`, `b`. After the last end, the first entry is in force again. WebUI does the
    /// same, and its DPM adaptive gets that far. A caller that makes more calls than steps should
    /// build a longer schedule.
    ///
    /// ```
    /// use sd_text::{PromptText, Side, Syntax};
    ///
    /// let prompt = PromptText::parse("[fox:owl:3]", Side::Positive, Syntax::WebUi);
    /// let branch = prompt.branches().next().expect("a prompt has a branch");
    /// let schedule = branch.schedule(20);
    /// assert_eq!(&*schedule.at(3).text, "fox");
    /// assert_eq!(&*schedule.at(4).text, "owl");
    /// ```
    pub fn at(&self, call: usize) -> &ScheduleEntry {
        &self.entries[in_force(self.entries.iter().map(|entry| entry.end), call)]
    }
}

/// Returns the index of the entry in force at a model call, given the ends of the entries. See
/// [`Schedule::at`].
pub(crate) fn in_force(mut ends: impl Iterator<Item = usize>, call: usize) -> usize {
    ends.position(|end| end >= call).unwrap_or(0)
}

/// Returns the text that the branch shows at step `step`, counted from 1.
fn text_at(branch: Node<'_>, step: usize, steps: PromptSteps) -> String {
    let mut text = String::new();
    // The nodes still to be shown. The next one is at the end.
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
