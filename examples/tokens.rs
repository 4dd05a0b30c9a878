//! Shows how a prompt is read: its parts, their texts at each step, and the tokens with their
//! weights.
//!
//! ```sh
//! cargo run --release --example tokens -- "a (cute:1.2) [fox:owl:0.5], <lora:x:1> AND snow :0.5"
//! ```
//!
//! It needs no model, because `sd-text` contains CLIP's vocabulary.

use std::{
    fmt::{self, Write as _},
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anstyle::{AnsiColor, Style};
use clap::{Parser, builder::TypedValueParser};
use sd_examples::{Failure, options::is_lora, print_json};
use sd_text::outside::escaped;
use sd_text::{
    Branch, Chunk, Chunking, Cleanup, ClipTokenizer, PromptText, Schedule, Side, Syntax, Warning,
    attention,
    prompt::{Node, NodeKind, ScheduleEntry},
};
use serde::Serialize;

/// Shows how a prompt is read.
///
/// The page begins with the prompt, with its syntax in colours. Then, for each part between ANDs,
/// it shows the text that is used at the model call that --step selects, and the chunks of 77
/// tokens of this text, without start, end and padding tokens.
///
/// A token that does not end a word is marked with +. The id of the token follows, and a weight
/// other than 1. If the model has two text encoders, as SDXL does, the chunks of the second one
/// follow if its tokens differ.
#[derive(Parser)]
#[command(name = "tokens", version, verbatim_doc_comment)]
struct Arguments {
    /// Prompt to read
    prompt: String,
    /// Read the prompt as a negative prompt, in which AND is an ordinary word
    #[arg(long)]
    negative: bool,
    /// Model call whose texts are shown, counted from 0
    #[arg(long, value_name = "S", default_value = "0")]
    step: usize,
    /// Number of steps; for samplers that call the model twice per step, give twice the number
    #[arg(long, value_name = "N", default_value = "20", value_parser = steps())]
    steps: usize,
    /// Model folder whose tokenizers are used; a checkpoint file is not accepted [default: CLIP's]
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Print JSON:
    /// {"branches":[{"weight","text","chunks":[{"ids","weights"}]}],"warnings":[{"span","text"}]};
    /// ids and weights include the padding; a branch also has chunks_2 if the ids of a second
    /// tokenizer differ
    #[arg(long)]
    json: bool,
}

/// Parses the number of steps, `1..=10_000`. It is limited because a schedule may have a text for
/// every step.
fn steps() -> impl TypedValueParser<Value = usize> {
    let range = clap::value_parser!(u16).range(1..=10_000);
    range.map(usize::from)
}

/// The object that `--json` prints.
#[derive(Serialize)]
struct Report {
    branches: Vec<Part>,
    warnings: Vec<Remark>,
}

impl Report {
    /// Returns whether all weights are finite, so that JSON can represent them.
    fn is_finite(&self) -> bool {
        let mut parts = self.branches.iter();
        parts.all(|part| {
            let mut weights = part.chunks.iter().flat_map(|chunk| &chunk.weights);
            part.weight.is_finite() && weights.all(|weight| weight.is_finite())
        })
    }
}

#[derive(Serialize)]
struct Part {
    weight: f64,
    text: String,
    chunks: Vec<Tokens>,
    /// The chunks of the second text encoder, if they differ.
    #[serde(skip_serializing_if = "Option::is_none")]
    chunks_2: Option<Vec<Tokens>>,
}

/// The tokens of a chunk, padding included.
#[derive(PartialEq, Serialize)]
struct Tokens {
    ids: Vec<u32>,
    weights: Vec<f32>,
}

#[derive(Serialize)]
struct Remark {
    /// The begin and the end of the span, in bytes of the prompt.
    span: [usize; 2],
    text: String,
}

fn main() -> ExitCode {
    sd_examples::main(run)
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    let tokenizers = match &arguments.model {
        Some(folder) => load(folder)?,
        None => vec![ClipTokenizer::clip()],
    };
    let side = match arguments.negative {
        true => Side::Negative,
        false => Side::Positive,
    };
    let prompt = PromptText::parse(&arguments.prompt, side, Syntax::WebUi);
    if arguments.json {
        let report = report(&prompt, &tokenizers, arguments);
        if !report.is_finite() {
            let message = "the prompt has an infinite weight, which JSON cannot represent";
            return Err(Failure::Work(message.to_owned()));
        }
        return print_json(&report);
    }
    let mut page = String::new();
    write_page(&mut page, &prompt, &tokenizers, arguments).expect("a string takes any text");
    anstream::stdout()
        .write_all(page.as_bytes())
        .map_err(Failure::at(Path::new("standard output")))
}

/// Loads the tokenizers of a model. There is at least one.
///
/// SDXL has two tokenizers, and its refiner has only the second. `folder` may also be the folder of
/// a tokenizer.
fn load(folder: &Path) -> Result<Vec<ClipTokenizer>, Failure> {
    let within = ["tokenizer", "tokenizer_2"].map(|name| folder.join(name));
    let mut folders: Vec<_> = within.iter().filter(|within| within.is_dir()).collect();
    let alone = folder.to_path_buf();
    if folders.is_empty() {
        folders.push(&alone);
    }
    let load = |folder: &PathBuf| ClipTokenizer::load(folder).map_err(Failure::work);
    folders.into_iter().map(load).collect()
}

fn chunks(tokenizer: &ClipTokenizer, text: &str) -> Vec<Chunk> {
    let segments = attention(text, Syntax::WebUi);
    let parted = tokenizer.chunks(&segments, &Chunking::default(), Cleanup::default());
    parted.chunks
}

fn report(prompt: &PromptText, tokenizers: &[ClipTokenizer], arguments: &Arguments) -> Report {
    let part = |branch: Branch<'_>| {
        let schedule = branch.schedule(arguments.steps);
        let text = &schedule.at(arguments.step).text;
        let tokens = |Chunk { ids, weights, .. }| Tokens { ids, weights };
        let read = |tokenizer| {
            let chunks = chunks(tokenizer, text).into_iter();
            chunks.map(tokens).collect::<Vec<_>>()
        };
        let first = read(&tokenizers[0]);
        let second = tokenizers.get(1).map(read);
        Part {
            weight: branch.weight(),
            text: text.to_string(),
            chunks_2: second.filter(|second| *second != first),
            chunks: first,
        }
    };
    let remark = |warning: &Warning| Remark {
        span: [warning.span.start, warning.span.end],
        text: warning.text.clone(),
    };
    Report {
        branches: prompt.branches().map(part).collect(),
        warnings: prompt.warnings().iter().map(remark).collect(),
    }
}

const PLAIN: Style = Style::new();
const DIM: Style = Style::new().dimmed();
const HEADING: Style = Style::new().bold();
const MARK: Style = AnsiColor::Cyan.on_default();
const NUMBER: Style = AnsiColor::Yellow.on_default();
const WORD: Style = AnsiColor::Magenta.on_default().bold();
const NETWORK: Style = AnsiColor::Magenta.on_default();
const STRONGER: Style = AnsiColor::Yellow.on_default().bold();
const WEAKER: Style = AnsiColor::Blue.on_default().bold();
const WARNING: Style = AnsiColor::Red.on_default().bold();

fn write_page(
    page: &mut String,
    prompt: &PromptText,
    tokenizers: &[ClipTokenizer],
    arguments: &Arguments,
) -> fmt::Result {
    write_prompt(page, prompt)?;
    for warning in prompt.warnings() {
        let (at, text) = (warning.span.start, shown(&warning.text));
        writeln!(page, "{WARNING}warning{WARNING:#} at byte {at}: {text}")?;
    }
    for network in prompt.networks() {
        let (name, arguments) = (&network.name, network.arguments.join(":"));
        let (name, arguments) = (shown(name), shown(&arguments));
        let applied = match is_lora(network) {
            true => "applied if the pipeline has this LoRA",
            false => "not applied",
        };
        writeln!(page, "{NETWORK}{name}{NETWORK:#} {arguments}: {applied}")?;
    }
    if arguments.step > arguments.steps {
        let (call, steps) = (arguments.step, arguments.steps);
        writeln!(
            page,
            "{DIM}call {call} is past the end of {steps} steps, where the first text of a schedule is used again, as in WebUI{DIM:#}"
        )?;
    }
    let count = prompt.branches().count();
    for (index, branch) in prompt.branches().enumerate() {
        writeln!(page)?;
        if count > 1 || branch.weight() != 1.0 {
            let (number, weight) = (index + 1, branch.weight());
            writeln!(
                page,
                "{HEADING}part {number} of {count}{HEADING:#}, weight {weight}"
            )?;
        }
        let schedule = branch.schedule(arguments.steps);
        write_schedule(page, &schedule, arguments)?;
        let text = &schedule.at(arguments.step).text;
        let first = chunks(&tokenizers[0], text);
        write_chunks(page, &first, &tokenizers[0])?;
        if let Some(tokenizer) = tokenizers.get(1) {
            let second = chunks(tokenizer, text);
            // Padding is not shown. It differs in every SDXL model, so it does not count here.
            let shown = |chunk: &Chunk| chunk.ids[1..chunk.used - 1].to_vec();
            if !first.iter().map(shown).eq(second.iter().map(shown)) {
                writeln!(page, "{HEADING}second text encoder{HEADING:#}")?;
                write_chunks(page, &second, tokenizer)?;
            }
        }
    }
    Ok(())
}

fn write_chunks(page: &mut String, chunks: &[Chunk], tokenizer: &ClipTokenizer) -> fmt::Result {
    for (index, chunk) in chunks.iter().enumerate() {
        let (number, of, room) = (index + 1, chunks.len(), chunk.ids.len() - 2);
        writeln!(
            page,
            "chunk {number} of {of}: {} of {room} tokens",
            chunk.used - 2
        )?;
        write_tokens(page, chunk, tokenizer)?;
    }
    Ok(())
}

/// Writes the prompt as it was typed, with its syntax in colours.
fn write_prompt(page: &mut String, prompt: &PromptText) -> fmt::Result {
    for outer in prompt.tree().nodes() {
        let all = match outer.kind() {
            NodeKind::And => Some(WORD),
            NodeKind::Tail => Some(NUMBER),
            _ => None,
        };
        if outer.is_leaf() {
            write_leaf(page, prompt, outer, style(outer.kind()))?;
        }
        // The end of the last weight or moment so far. A node comes before its descendants, so a
        // leaf up to here is inside of one.
        let mut number = 0;
        for node in outer.descendants() {
            if matches!(node.kind(), NodeKind::Weight | NodeKind::Moment) {
                number = number.max(node.span().end);
            }
            if node.is_leaf() {
                let inside = (node.span().end <= number).then_some(NUMBER);
                let style = all.or(inside).unwrap_or(style(node.kind()));
                write_leaf(page, prompt, node, style)?;
            }
        }
    }
    writeln!(page)
}

fn style(kind: &NodeKind) -> Style {
    match kind {
        NodeKind::Mark => MARK,
        NodeKind::Escape | NodeKind::Comment => DIM,
        NodeKind::Break => WORD,
        NodeKind::Network => NETWORK,
        _ => PLAIN,
    }
}

/// Writes a leaf in a style. Bytes that a warning is about stand out in red.
fn write_leaf(page: &mut String, prompt: &PromptText, leaf: Node<'_>, style: Style) -> fmt::Result {
    let (text, span) = (prompt.text(), leaf.span());
    let mut at = span.start;
    for Warning { span: odd, .. } in prompt.warnings() {
        if at <= odd.start && odd.end <= span.end {
            let (before, odd_text) = (shown(&text[at..odd.start]), shown(&text[odd.clone()]));
            write!(
                page,
                "{style}{before}{style:#}{WARNING}{odd_text}{WARNING:#}"
            )?;
            at = odd.end;
        }
    }
    write!(page, "{style}{}{style:#}", shown(&text[at..span.end]))
}

/// Writes the texts of a schedule with the model calls that use them, and marks the current text.
fn write_schedule(page: &mut String, schedule: &Schedule, arguments: &Arguments) -> fmt::Result {
    let in_force = schedule.at(arguments.step);
    let entries = schedule.entries();
    if entries.len() == 1 {
        return writeln!(page, "{}", shown(in_force.text.trim()));
    }
    let mut from = 0;
    for entry in entries.chunk_by(|a, b| a.text == b.text) {
        let [.., ScheduleEntry { end, text }] = entry else {
            continue;
        };
        // The last call has the number of steps minus 1.
        let to = (*end).min(arguments.steps.saturating_sub(1));
        let calls = match to.saturating_sub(from) {
            0 => format!("call {to}"),
            _ => format!("calls {from} to {to}"),
        };
        if from <= to {
            let now = entry.iter().any(|entry| std::ptr::eq(entry, in_force));
            let (mark, style) = if now { (">", HEADING) } else { (" ", DIM) };
            let text = shown(text.trim());
            writeln!(page, "{mark} {calls:14} {style}{text}{style:#}")?;
        }
        from = end + 1;
    }
    Ok(())
}

fn write_tokens(page: &mut String, chunk: &Chunk, tokenizer: &ClipTokenizer) -> fmt::Result {
    let inner = 1..chunk.used - 1;
    for (id, weight) in chunk.ids[inner.clone()].iter().zip(&chunk.weights[inner]) {
        let token = tokenizer.token(*id).unwrap_or_default();
        let (text, more) = match token.strip_suffix("</w>") {
            Some(text) => (text, ""),
            None => (token.as_str(), "+"),
        };
        let text = shown(text);
        let style = match *weight {
            1.0 => PLAIN,
            ..1.0 => WEAKER,
            _ => STRONGER,
        };
        write!(page, "  {style}{text}{more}{style:#} {DIM}{id}{DIM:#}")?;
        if *weight != 1.0 {
            write!(page, " {style}×{weight}{style:#}")?;
        }
    }
    writeln!(page)
}

/// Escapes the characters that a terminal acts on, except line breaks.
fn shown(text: &str) -> String {
    let lines: Vec<_> = text.split('\n').map(escaped).collect();
    lines.join("\n")
}
