//! Random prompts, and the properties that every prompt must have.

use sd_text::{PromptText, Side, Syntax, attention};

pub const SYNTAXES: [Syntax; 4] = [
    Syntax::WebUi,
    Syntax::ComfyUi,
    Syntax::Compel,
    Syntax::Plain,
];
const SIDES: [Side; 2] = [Side::Positive, Side::Negative];

/// The generator Splitmix64, Steele, Lea and Flood 2014.
pub struct Random(pub u64);

impl Random {
    /// A number below `end`, which must not be 0.
    pub fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % end as u64) as usize
    }

    /// A few words of the prompt language and characters of any kind.
    pub fn text(&mut self) -> String {
        let mut text = String::new();
        for _ in 0..self.below(24) {
            text.push_str(&self.piece());
        }
        text
    }

    /// A word of the prompt language or a character of any kind. Rarely an empty text.
    pub fn piece(&mut self) -> String {
        const WORDS: [&str; 36] = [
            "(",
            ")",
            "[",
            "]",
            ":",
            "|",
            "\\",
            "#",
            "<",
            ">",
            "\n",
            " ",
            "+",
            "-",
            "\"",
            ".",
            ",",
            "=",
            "(",
            "[",
            "AND",
            "BREAK",
            "<lora:x:1>",
            "<a:",
            ":3]",
            ":0.5]",
            ":1.2)",
            "fox",
            "a",
            " AND ",
            " BREAK ",
            "#x\n",
            "|b]",
            ".attend(",
            "1.3",
            "[a:b:",
        ];
        match self.below(4) {
            0 => char::from_u32(self.below(0x11_0000) as u32)
                .into_iter()
                .collect(),
            1 => char::from_u32(self.below(0x300) as u32)
                .into_iter()
                .collect(),
            _ => WORDS[self.below(WORDS.len())].to_owned(),
        }
    }
}

/// Calls every method of a prompt and checks the results.
pub fn exercise(text: &str, steps: usize) {
    for syntax in SYNTAXES {
        for side in SIDES {
            let prompt = PromptText::parse(text, side, syntax);
            assert_eq!(prompt.to_string(), text);
            assert_eq!(PromptText::parse(&prompt.to_string(), side, syntax), prompt);
            assert!(prompt.branches().count() >= 1);
            let mut at = 0;
            for leaf in prompt.tree().leaves() {
                assert_eq!(leaf.span().start, at, "{text:?}");
                assert!(!leaf.text().is_empty() && leaf.children().next().is_none());
                at = leaf.span().end;
            }
            assert_eq!(at, text.len(), "{text:?}");
            for branch in prompt.branches() {
                let inside = branch.node().span();
                for node in branch.node().descendants() {
                    assert!(text.get(node.span()) == Some(node.text()), "{text:?}");
                    assert!(inside.start <= node.span().start && node.span().end <= inside.end);
                    // Collects the children as debug output does.
                    assert!(
                        node.children()
                            .all(|child| child.span().end <= node.span().end)
                    );
                }
                for entry in branch.schedule(steps).entries() {
                    assert!(!attention(&entry.text, syntax).is_empty());
                }
            }
            for warning in prompt.warnings() {
                assert!(
                    matches!(text.get(warning.span.clone()), Some("|" | "\\")),
                    "{text:?}"
                );
            }
            for network in prompt.networks() {
                assert!(
                    text[network.span.clone()].starts_with('<')
                        && text[network.span.clone()].ends_with('>')
                );
            }
        }
        assert!(!attention(text, syntax).is_empty());
    }
}
