//! Properties of every text: it is parsed, prints as it was written, and never overflows the stack.

#![allow(
    clippy::unwrap_used,
    reason = "Clippy allows it only inside of #[test] functions"
)]

mod common;

use std::time::{Duration, Instant};

use sd_text::prompt::{Node, NodeKind, When};
use sd_text::{PromptText, Segment, Side, Syntax, attention};

use common::random::{Random, SYNTAXES, exercise};

#[test]
fn any_text() {
    let mut random = Random(6);
    for _ in 0..10_000 {
        exercise(&random.text(), 3);
    }
}

/// Runs on a stack that a recursion of a few hundred levels would overflow.
#[test]
fn a_hundred_thousand_brackets() {
    const DEPTH: usize = 100_000;
    let shapes: [(&str, &str, &str); 13] = [
        ("(", "", ""),
        ("[", "", ""),
        ("([", "", ""),
        (")", "", ""),
        ("(", "a", ")"),
        ("[", "a", "]"),
        ("([", "a", "])"),
        ("(a:", "b", ")"),
        ("(", "a", ":1.01)"),
        ("[", "a", ":3]"),
        ("[a:", "b", ":0.5]"),
        ("[a|", "b", "]"),
        ("[a|", "b", ""),
    ];
    for (open, inner, close) in shapes {
        let text = format!("{}{inner}{}", open.repeat(DEPTH), close.repeat(DEPTH));
        let thread = std::thread::Builder::new()
            .stack_size(128 << 10)
            .spawn(move || {
                let prompt = PromptText::parse(&text, Side::Positive, Syntax::WebUi);
                assert_eq!(prompt.to_string(), text);
                assert!(format!("{prompt:?}").len() > DEPTH);
                assert_eq!(prompt.clone(), prompt);
                for branch in prompt.branches() {
                    for entry in branch.schedule(2).entries() {
                        for syntax in SYNTAXES {
                            attention(&entry.text, syntax);
                        }
                    }
                }
                for syntax in SYNTAXES {
                    attention(&text, syntax);
                }
            });
        thread.unwrap().join().unwrap();
    }
}

/// Ten times the text takes about ten times as long. The bound is loose, because the machine may be
/// busy.
#[test]
fn time_grows_with_the_length() {
    let shapes = [
        "a cute fox (girl:1.2), [red:blue:0.5] hills, ",
        "(a",
        "[a",
        "a)",
        "(a)",
        "[a|",
        "[a:",
        "a: ",
        ":1",
        "<a:",
        "<a:b>",
        "#\n",
        "a#b",
        "\\(",
        "BREAK ",
        "AND ",
        "((a) ",
        "( ",
        "\"a ",
        "x.attend(",
        "[(",
        "[a|b] ",
        "(a:1",
    ];
    let time = |text: &str| {
        let once = || {
            let start = Instant::now();
            let prompt = PromptText::parse(text, Side::Positive, Syntax::WebUi);
            for branch in prompt.branches() {
                branch.schedule(1);
            }
            for syntax in SYNTAXES {
                attention(text, syntax);
            }
            start.elapsed()
        };
        once().min(once())
    };
    for shape in shapes {
        let [short, long] =
            [20_000, 200_000].map(|length| time(&shape.repeat(length / shape.len())));
        let bound = 40 * short + Duration::from_millis(50);
        assert!(long < bound, "{shape:?}: {short:?}, then {long:?}");
    }
}

fn kinds(node: Node<'_>) -> Vec<(NodeKind, &str)> {
    node.children()
        .map(|node| (*node.kind(), node.text()))
        .collect()
}

#[test]
fn the_tree_of_a_prompt() {
    let text = "a <lora:x:1>(red:1.2) [fox:owl:0.5]# c\n\\( BREAK [a|b] :2 AND b";
    let prompt = PromptText::parse(text, Side::Positive, Syntax::WebUi);
    let outer: Vec<_> = prompt
        .tree()
        .nodes()
        .map(|node| (*node.kind(), node.text()))
        .collect();
    assert_eq!(
        outer[1..],
        [
            (NodeKind::Tail, " :2 "),
            (NodeKind::And, "AND"),
            (NodeKind::Branch { weight: 1.0 }, " b")
        ]
    );
    let branch = prompt.branches().next().unwrap();
    let when = When::Fraction(0.5);
    assert_eq!(
        kinds(branch.node()),
        [
            (NodeKind::Literal, "a "),
            (NodeKind::Network, "<lora:x:1>"),
            (NodeKind::Emphasis, "(red:1.2)"),
            (NodeKind::Literal, " "),
            (NodeKind::Schedule { when }, "[fox:owl:0.5]"),
            (NodeKind::Comment, "# c\n"),
            (NodeKind::Escape, "\\("),
            (NodeKind::Literal, " "),
            (NodeKind::Break, "BREAK"),
            (NodeKind::Literal, " "),
            (NodeKind::Alternation, "[a|b]"),
        ]
    );
    let schedule = branch.node().children().nth(4).unwrap();
    assert_eq!(
        kinds(schedule),
        [
            (NodeKind::Mark, "["),
            (NodeKind::Part, "fox"),
            (NodeKind::Mark, ":"),
            (NodeKind::Part, "owl"),
            (NodeKind::Mark, ":"),
            (NodeKind::Moment, "0.5"),
            (NodeKind::Mark, "]"),
        ]
    );
    let [Segment::Text { text, .. }, ..] =
        &attention(&branch.schedule(9).at(9).text, Syntax::WebUi)[..]
    else {
        panic!("text")
    };
    assert_eq!(text, "a ");
}

#[test]
fn warnings_name_the_byte() {
    let at = |text: &str| {
        let prompt = PromptText::parse(text, Side::Positive, Syntax::WebUi);
        prompt
            .warnings()
            .iter()
            .map(|warning| warning.span.start)
            .collect::<Vec<_>>()
    };
    assert_eq!(at("[cat:dog:0.5] | x"), [14]);
    assert_eq!(at("(a|b)"), [2]);
    assert_eq!(at("a\\"), [1]);
    assert_eq!(at("#\u{e9}\n<lora:x:1>a\\\nb"), [15]);
    assert_eq!(at("a | b AND [a|b] AND c\\"), [2, 21]);
    assert_eq!(at("[a|b:3] [c|d]"), [2]);
    assert!(at("[a|b] \\| (c) [d:e:f:g]").is_empty());
    assert!(
        PromptText::parse("a|b", Side::Positive, Syntax::Plain)
            .warnings()
            .is_empty()
    );
}
