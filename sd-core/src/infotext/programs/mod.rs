//! What other programs write instead of an infotext, as far as it maps to one.
//!
//! Each reader writes WebUI's keys, `Version` with the program's name, and a `Not read` entry with
//! a sentence for everything that it cannot express.

pub(super) mod comfyui;
pub(super) mod invokeai;
pub(super) mod novelai;
pub(super) mod stealth;

use std::fmt::Display;

use sd_text::outside::printable;
use serde_json::Value;

use super::{COMFYUI, INVOKEAI, Infotext, InfotextError, NOT_READ, NOVELAI, keys};

/// Reads a text of any of the programs.
pub(super) fn any(text: &str) -> Result<Infotext, InfotextError> {
    match Infotext::parse(text) {
        Err(InfotextError::OtherFormat(COMFYUI)) => comfyui::infotext(text),
        Err(InfotextError::OtherFormat(INVOKEAI)) => {
            invokeai::metadata(text).or_else(|_| invokeai::sd_metadata(text))
        }
        Err(InfotextError::OtherFormat(NOVELAI)) => novelai::json(text),
        read => read,
    }
}

/// The largest number of entries that a reader adds for what it does not read.
const MOST_UNREAD: usize = 100;

/// An infotext under construction.
#[derive(Debug, Default)]
struct Building {
    prompt: String,
    negative: String,
    entries: Vec<(String, String)>,
    unread: Vec<String>,
}

impl Building {
    /// Adds an entry if there is a value.
    fn entry(&mut self, key: &str, value: Option<impl ToString>) {
        if let Some(value) = value
            .map(|value| value.to_string())
            .filter(|it| !it.is_empty())
        {
            self.entries.push((key.to_owned(), value));
        }
    }

    /// Adds the size of the picture, if both sides are known.
    fn size(&mut self, width: Option<impl Display>, height: Option<impl Display>) {
        let size = width.zip(height);
        let size = size.map(|(width, height)| format!("{width}x{height}"));
        self.entry(keys::SIZE, size);
    }

    /// Returns whether no more sentences are kept.
    fn is_full(&self) -> bool {
        self.unread.len() == MOST_UNREAD
    }

    /// Adds a sentence about something that the infotext does not express. The values in it must be
    /// `printable`.
    fn unread(&mut self, sentence: impl Into<String>) {
        let sentence = sentence.into();
        if !self.is_full() && !self.unread.contains(&sentence) {
            self.unread.push(sentence);
        }
    }

    /// Returns the infotext, which the program `version` wrote.
    fn done(self, version: &str) -> Infotext {
        let mut entries = self.entries;
        let unread = self.unread.into_iter();
        entries.extend(unread.map(|sentence| (NOT_READ.to_owned(), sentence)));
        entries.push((keys::VERSION.to_owned(), version.to_owned()));
        Infotext {
            prompt: self.prompt,
            negative: self.negative,
            entries,
        }
    }
}

/// Parses the JSON of a program. Python also writes `NaN` and `Infinity`, which become null.
fn parsed(text: &str) -> Option<Value> {
    serde_json::from_str(text)
        .or_else(|_| serde_json::from_str(&without_nan(text)))
        .ok()
}

/// Replaces `NaN`, `Infinity` and `-Infinity` outside strings by `null`.
fn without_nan(text: &str) -> String {
    let mut changed = String::with_capacity(text.len());
    let (mut rest, mut in_string) = (text, false);
    while let Some(character) = rest.chars().next() {
        let names = ["NaN", "-Infinity", "Infinity"];
        let name = names
            .into_iter()
            .find(|name| !in_string && rest.starts_with(name));
        let length = match (character, name) {
            (_, Some(name)) => {
                changed.push_str("null");
                rest = &rest[name.len()..];
                continue;
            }
            // The next character is escaped.
            ('\\', _) if in_string => {
                let next = rest[1..].chars().next();
                1 + next.map_or(0, char::len_utf8)
            }
            ('"', _) => {
                in_string = !in_string;
                1
            }
            _ => character.len_utf8(),
        };
        changed.push_str(&rest[..length]);
        rest = &rest[length..];
    }
    changed
}

/// Returns a number, a text or a truth value as it is written. Other values are `None`.
fn written(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(if *truth { "True" } else { "False" }.to_owned()),
        _ => None,
    }
}

/// Returns a value in a form that is safe and short enough for a sentence.
fn shown(value: &Value) -> String {
    printable(written(value).unwrap_or_else(|| value.to_string()))
}

/// Returns whether a value is null, false, zero, or empty, so that an option is off.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(values) => values.is_empty(),
        Value::Object(values) => values.is_empty(),
        Value::Bool(true) => false,
    }
}

/// Returns the name of a model's file without its folder and extension.
fn stem(file: &str) -> &str {
    let name = file.rsplit(['/', '\\']).next().unwrap_or(file);
    match name.rsplit_once('.') {
        Some((stem, "safetensors" | "ckpt" | "pt" | "pth" | "bin" | "gguf")) => stem,
        _ => name,
    }
}

/// Returns the call of a LoRA in a prompt: WebUI's weight for the text encoders comes first.
fn lora(name: &str, text_encoder: f64, unet: f64) -> String {
    // A name with these characters would end the call.
    let name = name.replace(['<', '>', ':'], "_");
    if text_encoder == unet {
        format!("<lora:{name}:{unet}>")
    } else {
        format!("<lora:{name}:{text_encoder}:{unet}>")
    }
}

#[cfg(test)]
// A failed `unwrap` is a failed test.
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn json_of_python_is_read() {
        let text = r#"{"a": [NaN, -Infinity, Infinity], "b": "NaN \" Infinity é\\", "c": 1}"#;
        let expected = r#"{"a": [null, null, null], "b": "NaN \" Infinity é\\", "c": 1}"#;
        assert_eq!(without_nan(text), expected);
        assert_eq!(parsed(text), serde_json::from_str(expected).ok());
        assert_eq!(parsed(&"[".repeat(100_000)), None);
        assert_eq!(without_nan("\"\\"), "\"\\");
    }
}
