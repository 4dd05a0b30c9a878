//! The prompt language: what a prompt asks for at which step, in parts of which weight.
//!
//! [`PromptText::parse`] reads a prompt as AUTOMATIC1111's WebUI 1.10 does, in its order:
//!
//! 1. comments: from `#` to the end of the line;
//! 2. extra networks of a positive prompt: `<lora:name:0.8>`, taken out of the text and told in [`PromptText::networks`];
//! 3. `AND` between the parts of a positive prompt, each with a weight at its end (`a fox AND snow :0.5`): a [`Branch`]
//!    each, of which every one costs an evaluation of the denoiser. In a negative prompt it is a word;
//! 4. what changes with the step: `[from:to:when]`, `[to:when]`, `[from::when]` and `[a|b|c]`;
//! 5. attention and `BREAK`, on each text that a schedule shows: [`attention()`].
//!
//! The first four make a [`Tree`], which holds the prompt to the last byte; a [`Branch`] gives its texts by step.
//!
//! Any text means something. Where the grammar of step 4 fails on a branch, WebUI takes the branch literally, and so do
//! we, with a [`Warning`] at the byte that caused it: a `|` that is in no alternation (`[cat:dog:0.5] | x`, `(a|b)`), or a
//! backslash with nothing behind it.
//!
//! ```
//! use sd_text::{PromptText, Side, Syntax};
//!
//! let prompt = PromptText::parse("a [fox:owl:0.5] AND (snow:1.2) :0.8", Side::Positive, Syntax::WebUi);
//! let branches: Vec<_> = prompt.branches().collect();
//! assert_eq!((branches[0].weight(), branches[1].weight()), (1.0, 0.8));
//!
//! let schedule = branches[0].schedule(20);
//! assert_eq!(schedule.at(10).text.as_ref(), "a fox");
//! assert_eq!(schedule.at(11).text.as_ref(), "a owl");
//! assert_eq!(branches[1].schedule(20).at(0).text.as_ref(), " (snow:1.2)");
//! ```
//!
//! # Where WebUI has no single answer
//! Brackets that belong to no construct may stand next to ones that do: `[a:b:3]]`. WebUI's grammar is ambiguous there,
//! and its parser picks a reading by the hashes of strings, which differ from one start of the program to the next. We
//! always take the reading in which every construct that can be one is one.

mod attention;
mod builder;
mod characters;
mod comfy;
mod comments;
mod compel;
mod conjunction;
mod grammar;
mod networks;
mod schedule;
mod segment;
mod source;
mod tree;

use std::ops::Range;

use builder::Builder;
use serde::{Deserialize, Serialize};
use source::Source;

pub use attention::attention;
pub(crate) use characters::is_space;
pub use networks::Network;
pub(crate) use schedule::in_force;
pub use schedule::{Schedule, ScheduleEntry};
pub use segment::Segment;
pub use tree::{Node, NodeKind, Tree, When};

/// The most warnings of a prompt, but for one that counts the others: a long prompt could have
/// thousands.
const MOST_WARNINGS: usize = 16;

/// Which of a request's two prompts a text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Side {
    /// What to draw: `AND` parts it into branches.
    #[default]
    Positive,
    /// What to keep away from: `AND` and extra networks are text, all of it a single branch of weight 1.
    Negative,
}

/// Whose prompt language is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Syntax {
    /// AUTOMATIC1111's WebUI 1.10, all of it. The default.
    #[default]
    WebUi,
    /// ComfyUI's weights: `(x)` is 1.1 times its surroundings, `(x:1.3)` is 1.3 whatever surrounds it, `\(` and `\)` are
    /// brackets in the text. All else is text: there are no schedules, no `AND`, no `BREAK`, no comments, and `[` is a
    /// bracket.
    ComfyUi,
    /// The weights of the library compel: `x+`, `x--`, `(x y)1.3`, `(x y)++`. All else is text.
    Compel,
    /// No language: every character is text.
    Plain,
}

/// A prompt that has been read.
///
/// `Display` prints the prompt back as it was typed.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptText {
    tree: Tree,
    networks: Vec<Network>,
    warnings: Vec<Warning>,
    syntax: Syntax,
}

/// Something in a prompt that is probably not what was meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// The bytes of the prompt that caused it.
    pub span: Range<usize>,
    /// What happens to them.
    pub text: String,
}

/// A part of a prompt between two `AND`s: a conditional branch of its own.
#[derive(Debug, Clone, Copy)]
pub struct Branch<'a> {
    node: Node<'a>,
    weight: f64,
}

impl PromptText {
    /// Reads a prompt of any content and length, in time linear in its length.
    pub fn parse(text: &str, side: Side, syntax: Syntax) -> Self {
        let mut source = Source::new(text);
        if syntax != Syntax::WebUi {
            return Self {
                tree: builder::plain(source),
                networks: Vec::new(),
                warnings: Vec::new(),
                syntax,
            };
        }
        comments::strip(&mut source);
        let mut networks = Vec::new();
        let parts = match side {
            Side::Positive => {
                networks = networks::take(&mut source);
                conjunction::split(&source.text)
            }
            Side::Negative => vec![conjunction::whole(&source.text)],
        };

        let mut warnings: Vec<Warning> = Vec::new();
        let mut more: Option<(usize, Range<usize>)> = None;
        let mut builder = Builder::new(source);
        for part in parts {
            builder.conjunction(part.text.start);
            if let Err(at) = builder.branch(part.text, part.weight) {
                let warning = literal(&builder, at);
                if warnings.len() < MOST_WARNINGS {
                    warnings.push(warning);
                } else {
                    let (count, span) = more.get_or_insert((0, warning.span.clone()));
                    *count += 1;
                    span.end = warning.span.end;
                }
            }
            builder.tail(part.end);
        }
        warnings.extend(more.map(|(count, span)| Warning {
            span,
            text: format!("{count} more parts are taken literally, for the same reasons"),
        }));
        Self {
            tree: builder.finish(),
            networks,
            warnings,
            syntax,
        }
    }

    /// The prompt as it was typed.
    pub fn text(&self) -> &str {
        self.tree.text()
    }

    /// What it is made of, to the last byte.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// The parts between `AND`s, at least one.
    pub fn branches(&self) -> impl Iterator<Item = Branch<'_>> {
        self.tree.nodes().filter_map(|node| match *node.kind() {
            NodeKind::Branch { weight } => Some(Branch { node, weight }),
            _ => None,
        })
    }

    /// The extra networks it names, in their order. Nothing acts on them here.
    pub fn networks(&self) -> &[Network] {
        &self.networks
    }

    /// What is probably not meant as it stands, in the order of the text. After 16 warnings a last
    /// one counts the others; its span is from the first to the last of them.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// The language it was read in: what [`attention()`] is to be asked for.
    pub fn syntax(&self) -> Syntax {
        self.syntax
    }
}

impl std::fmt::Display for PromptText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.tree.fmt(f)
    }
}

impl<'a> Branch<'a> {
    /// By how much the branch's guidance is multiplied, 1 if the prompt doesn't say. May be negative.
    pub fn weight(&self) -> f64 {
        self.weight
    }

    /// Its node in the prompt's [`Tree`].
    pub fn node(&self) -> Node<'a> {
        self.node
    }

    /// Its texts over `steps` steps. For samplers that WebUI calls second-order (Heun, DPM2, DPM2 a, DPM++ SDE,
    /// DPM++ 2S a, Restart), which call the model about twice a step, `steps` is twice the steps.
    ///
    /// An alternation takes an entry for every step.
    pub fn schedule(&self, steps: usize) -> Schedule {
        Schedule::new(self.node, steps)
    }
}

fn literal(builder: &Builder<'_>, at: usize) -> Warning {
    let span = builder.original(at);
    let text = match builder.byte(at) {
        b'|' => {
            "`|` outside of an alternation `[a|b]`: the whole part is taken literally, nothing in it is scheduled"
        }
        _ => {
            "a backslash with nothing to escape: the whole part is taken literally, nothing in it is scheduled"
        }
    };
    Warning {
        span,
        text: text.to_owned(),
    }
}
