//! The prompt language: the texts that a prompt shows at each step, and their weights.
//!
//! [`PromptText::parse`] reads a prompt as AUTOMATIC1111's WebUI 1.10 does, in this order:
//!
//! 1. Comments are removed. A comment runs from `#` to the end of the line.
//! 2. Extra networks such as `<lora:name:0.8>` are removed from a positive prompt and listed in
//!    [`PromptText::networks`].
//! 3. `AND` splits a positive prompt into [`Branch`]es. Each branch may end in a weight
//!    (`a fox AND snow :0.5`) and costs one evaluation of the denoiser. In a negative prompt, `AND`
//!    is an ordinary word.
//! 4. Schedules and alternations choose text by step: `[from:to:when]`, `[to:when]`, `[from::when]`
//!    and `[a|b|c]`.
//! 5. [`attention()`] reads emphasis and `BREAK` in each text that a schedule produces.
//!
//! The first four steps build a [`Tree`], which covers every byte of the prompt.
//! [`Branch::schedule`] returns the texts of a branch by step.
//!
//! Every text is a valid prompt. If the grammar of step 4 fails on a branch, the whole branch is
//! taken literally, as in WebUI, and a [`Warning`] points to the byte that caused it. The cause is
//! a `|` outside any alternation (`[cat:dog:0.5] | x`, `(a|b)`) or a backslash at the end of a line
//! or of the branch.
//!
//! ```
//! use sd_text::{PromptText, Side, Syntax};
//!
//! let text = "a [fox:owl:0.5] AND (snow:1.2) :0.8";
//! let prompt = PromptText::parse(text, Side::Positive, Syntax::WebUi);
//! let branches: Vec<_> = prompt.branches().collect();
//! assert_eq!((branches[0].weight(), branches[1].weight()), (1.0, 0.8));
//!
//! let schedule = branches[0].schedule(20);
//! assert_eq!(schedule.at(10).text.as_ref(), "a fox");
//! assert_eq!(schedule.at(11).text.as_ref(), "a owl");
//! assert_eq!(branches[1].schedule(20).at(0).text.as_ref(), " (snow:1.2)");
//! ```
//!
//! # Prompts that WebUI reads in more than one way
//!
//! Brackets that belong to no construct may stand next to brackets that do, as in `[a:b:3]]`.
//! WebUI's grammar is ambiguous there, and its parser chooses a reading by string hashes, which
//! differ from one start of the program to the next. This crate always chooses the reading in which
//! everything that can be a construct is one.

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
pub use schedule::{PromptSteps, Schedule, ScheduleEntry};
pub use segment::Segment;
pub use tree::{Node, NodeKind, Tree, When};

/// The most warnings that a prompt lists one by one. One more warning counts the rest, because a
/// long prompt could have thousands.
const MOST_WARNINGS: usize = 16;

/// Whether a text is the positive or the negative prompt of a request.
///
/// With serde it is `"positive"` or `"negative"`.
///
/// Default: [`Positive`](Self::Positive).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// What to draw. `AND` splits the prompt into branches.
    #[default]
    Positive,
    /// What to avoid. `AND` and extra networks are ordinary text, and the whole prompt is a single
    /// branch of weight 1.
    Negative,
}

/// The program whose prompt language is used.
///
/// Default: [`WebUi`](Self::WebUi).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Syntax {
    /// AUTOMATIC1111's WebUI 1.10, the whole language.
    #[default]
    WebUi,
    /// ComfyUI's weights. `(x)` multiplies the surrounding weight by 1.1, `(x:1.3)` sets the weight
    /// to 1.3 whatever surrounds it, and `\(` and `\)` are literal brackets. Everything else is
    /// text: there are no schedules, no `AND`, no `BREAK` and no comments, and `[` is an ordinary
    /// character.
    ComfyUi,
    /// The weights of the compel library: `x+`, `x--`, `(x y)1.3`, `(x y)++`. Everything else is
    /// text.
    Compel,
    /// No prompt language. Every character is text.
    Plain,
}

/// A parsed prompt.
///
/// Its `Display` implementation prints the prompt exactly as it was written.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptText {
    tree: Tree,
    networks: Vec<Network>,
    warnings: Vec<Warning>,
    syntax: Syntax,
}

/// A part of a prompt that probably does not mean what its author intended.
///
/// With serde it is an object with a key for each field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Warning {
    /// The bytes of the prompt that caused the warning.
    pub span: Range<usize>,
    /// What is wrong, and how the text is read instead.
    pub text: String,
}

/// A part of a prompt between two `AND`s. The denoiser is conditioned on each branch separately.
#[derive(Debug, Clone, Copy)]
pub struct Branch<'a> {
    node: Node<'a>,
    weight: f64,
}

impl PromptText {
    /// Parses a prompt of any content and length, in time linear in its length.
    ///
    /// ```
    /// use sd_text::{PromptText, Side, Syntax};
    ///
    /// let text = "a fox <lora:watercolour:0.8>";
    /// let prompt = PromptText::parse(text, Side::Positive, Syntax::WebUi);
    /// assert_eq!(prompt.networks()[0].arguments, ["watercolour", "0.8"]);
    /// assert!(prompt.warnings().is_empty());
    ///
    /// // A bar outside an alternation is taken literally.
    /// let prompt = PromptText::parse("a fox | an owl", Side::Positive, Syntax::WebUi);
    /// assert_eq!(prompt.warnings()[0].span, 6..7);
    /// ```
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

    /// Returns the prompt as it was written.
    pub fn text(&self) -> &str {
        self.tree.text()
    }

    /// Returns the syntax tree, which covers every byte of the prompt.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Returns the parts between `AND`s, in order. There is at least one.
    pub fn branches(&self) -> impl Iterator<Item = Branch<'_>> {
        self.tree.nodes().filter_map(|node| match *node.kind() {
            NodeKind::Branch { weight } => Some(Branch { node, weight }),
            _ => None,
        })
    }

    /// Returns the extra networks that the prompt names, in order. This crate only lists them. The
    /// pipelines of `sd-core` apply LoRAs.
    pub fn networks(&self) -> &[Network] {
        &self.networks
    }

    /// Returns the warnings, in the order of the text.
    ///
    /// After 16 warnings, one last warning counts the rest. Its span reaches from the first to the
    /// last of the bytes that caused them.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// Returns the prompt language that was used. Pass it to [`attention()`] for the texts of this
    /// prompt.
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
    /// Returns the factor that multiplies the branch's guidance. It may be negative.
    ///
    /// Default: 1, if the prompt gives no weight.
    pub fn weight(&self) -> f64 {
        self.weight
    }

    /// Returns the branch's node in the prompt's [`Tree`].
    pub fn node(&self) -> Node<'a> {
        self.node
    }

    /// Returns the branch's texts over `steps` steps.
    ///
    /// Samplers that WebUI calls second-order (Heun, DPM2, DPM2 a, DPM++ SDE, DPM++ 2S a, Restart)
    /// call the model about twice a step. For them, pass twice the number of steps.
    ///
    /// A branch with an alternation has one entry for every step.
    pub fn schedule(&self, steps: impl Into<PromptSteps>) -> Schedule {
        Schedule::new(self.node, steps.into())
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
