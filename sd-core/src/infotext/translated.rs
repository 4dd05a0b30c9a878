//! Prompts of other programs, written in WebUI's syntax.

use std::sync::LazyLock;

use regex::Regex;
use sd_text::{PromptText, Segment, Side, Syntax, prompt::attention};

use crate::lora::is_lora;

/// Splits the calls of LoRAs, such as `<lora:name:0.8>`, from a prompt.
pub(super) fn without_loras(text: &str) -> (String, Vec<String>) {
    let read = PromptText::parse(text, Side::Positive, Syntax::WebUi);
    let (mut rest, mut calls, mut done) = (String::with_capacity(text.len()), Vec::new(), 0);
    for network in read.networks().iter().filter(|it| is_lora(it)) {
        rest += &text[done..network.span.start];
        calls.push(text[network.span.clone()].to_owned());
        done = network.span.end;
    }
    (rest + &text[done..], calls)
}

/// Writes a prompt without LoRAs in WebUI's syntax, with the same weights. Returns `None` if a part
/// of it would mean something else there.
pub(super) fn to_webui(text: &str, syntax: Syntax) -> Option<String> {
    // These cannot be escaped: words that divide a prompt, comments, and networks.
    if text.contains("AND") || text.contains("BREAK") || text.contains(['#', '<']) {
        return None;
    }
    let mut written = String::new();
    for segment in attention(text, syntax) {
        let Segment::Text { text, weight } = segment else {
            return None;
        };
        written += &match weight {
            1.0 => escaped(&text),
            weight => format!("({}:{weight})", escaped(&text)),
        };
    }
    Some(written)
}

/// Writes a prompt of NovelAI in WebUI's syntax: `{x}` multiplies the weight by 1.05, and `[x]`
/// divides it by 1.05. Brackets without a partner, and round ones, are text.
pub(super) fn from_novelai(text: &str) -> String {
    let mut open: Vec<(usize, char)> = Vec::new();
    let mut partners = Vec::new();
    for (at, character) in text.char_indices() {
        match character {
            '{' | '[' => open.push((at, character)),
            '}' | ']' => {
                let opening = if character == '}' { '{' } else { '[' };
                if let Some((start, _)) = open.pop_if(|(_, last)| *last == opening) {
                    partners.extend([start, at]);
                }
            }
            _ => {}
        }
    }
    partners.sort_unstable();
    let mut partners = partners.into_iter().peekable();
    let mut written = String::with_capacity(text.len());
    for (at, character) in text.char_indices() {
        if partners.next_if_eq(&at).is_some() {
            written += match character {
                '{' | '[' => "(",
                '}' => ":1.05)",
                _ => ":0.952381)",
            };
        } else {
            written += &escaped(character.encode_utf8(&mut [0; 4]));
        }
    }
    written
}

/// Returns whether a prompt has words or characters that are operators of WebUI and cannot be
/// escaped.
pub(super) fn has_operators(text: &str) -> bool {
    let mut words =
        text.split(|character: char| !(character.is_alphanumeric() || character == '_'));
    words.any(|word| matches!(word, "AND" | "BREAK")) || text.contains(['#', '<', '|'])
}

/// Returns a weight of NovelAI's newer syntax, such as `1.5::`, if a prompt has one.
pub(super) fn has_weights_of_novelai(text: &str) -> Option<&str> {
    static WEIGHT: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"-?[0-9.]+::").expect("the expression is constant"));
    Some(WEIGHT.find(text)?.as_str())
}

fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if matches!(character, '(' | ')' | '[' | ']' | '\\') {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_stay_the_same() {
        for (text, syntax) in [
            ("a (red:1.3) fox", Syntax::ComfyUi),
            ("((a) [b] \\(c\\):0.5), {d, e}", Syntax::ComfyUi),
            ("(a (b:1.2) c:1.5)", Syntax::ComfyUi),
            ("a red+ (blue fox)1.3 ball--", Syntax::Compel),
            ("back\\\\slash [a:b:0.5]", Syntax::ComfyUi),
        ] {
            let written = to_webui(text, syntax).expect("there are no words of WebUI");
            let same = attention(&written, Syntax::WebUi);
            assert_eq!(same, attention(text, syntax), "{written}");
            let read = PromptText::parse(&written, Side::Positive, Syntax::WebUi);
            assert!(
                read.warnings().is_empty(),
                "{written}: {:?}",
                read.warnings()
            );
        }
        assert_eq!(to_webui("a AND b", Syntax::ComfyUi), None);
    }

    #[test]
    fn loras_are_split_off() {
        let (rest, calls) = without_loras("a <lora:x:1>fox<lora:y:0.5:1>");
        assert_eq!(rest, "a fox");
        assert_eq!(calls, ["<lora:x:1>", "<lora:y:0.5:1>"]);
    }

    #[test]
    fn brackets_of_novelai_are_weights() {
        let written = from_novelai("{{a}} [b] (c) }d{ {[e}");
        assert_eq!(written, "((a:1.05):1.05) (b:0.952381) \\(c\\) }d{ {\\[e}");
        assert_eq!(has_weights_of_novelai("a, 1.5::b::"), Some("1.5::"));
        assert_eq!(has_weights_of_novelai("a::b"), None);
    }
}
