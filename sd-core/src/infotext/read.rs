//! Parsing a text into its prompts and entries.

use std::{borrow::Cow, sync::LazyLock};

use regex::Regex;
use serde::de::IgnoredAny;

use super::{Infotext, NEGATIVE, keys};

/// The largest infotext in bytes, 2 MiB. Two prompts of 64 KiB, as they are and once more as JSON
/// with every character escaped, take 0.9 MiB.
pub(super) const MAX_BYTES: usize = 2 << 20;

/// The smallest number of entries on the last line. WebUI takes fewer for a part of the prompt.
const LEAST_ENTRIES: usize = 3;

pub(super) const COMFYUI: &str = "ComfyUI's workflow";
pub(super) const INVOKEAI: &str = "InvokeAI's metadata";
pub(super) const NOVELAI: &str = "NovelAI's metadata";
pub(super) const UNKNOWN: &str = "the JSON of another program";

/// The reason why a text cannot be read as an infotext.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InfotextError {
    /// The text is the metadata of another program, in a format that is not an infotext.
    #[error("the text is {0}, which cannot be read, expected an infotext in the format of WebUI")]
    OtherFormat(&'static str),
    /// The prompt and the entries are on one line, and it is not clear where the prompt ends.
    #[error(
        "the infotext is a single line, and it is not clear where its prompt ends: expected \
         `Steps:` once, and `Negative prompt:` at most once"
    )]
    PromptNotFound,
    /// The EXIF data is encoded in JIS X 0208, a Japanese character set of 1990.
    #[error("the text is in JIS X 0208, which cannot be read, expected ASCII or Unicode")]
    Jis,
    /// The text is longer than 2 MiB.
    #[error("the infotext is longer than {MAX_BYTES} bytes")]
    TooLong,
}

/// Implements [`Infotext::parse`].
pub(super) fn infotext(text: &str) -> Result<Infotext, InfotextError> {
    if text.len() > MAX_BYTES {
        return Err(InfotextError::TooLong);
    }
    let text = strip(text);
    if let Some(format) = other_format(text) {
        return Err(InfotextError::OtherFormat(format));
    }
    let (text, templates) = templates(text);
    let (above, last) = text.rsplit_once('\n').unwrap_or(("", text));
    let found = entries(last);
    let (prompts, found) = if found.len() < LEAST_ENTRIES {
        (Cow::Borrowed(text), Vec::new())
    } else if text.contains('\n') || are_entries(&found) {
        (above.into(), found)
    } else {
        one_line(text).ok_or(InfotextError::PromptNotFound)?
    };

    let mut infotext = Infotext::default();
    let mut negative = false;
    for line in prompts.split('\n') {
        let mut line = strip(line);
        if let Some(rest) = line.strip_prefix(NEGATIVE) {
            (negative, line) = (true, strip(rest));
        }
        let text = if negative {
            &mut infotext.negative
        } else {
            &mut infotext.prompt
        };
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(line);
    }
    infotext.entries = found
        .into_iter()
        // WebUI fails on an empty value and continues with the next.
        .filter(|entry| !entry.value.is_empty())
        .map(|entry| (entry.key.to_owned(), unquoted(entry.value)))
        .chain(templates)
        .collect();
    Ok(infotext)
}

/// Returns the format of a text that is a JSON object.
fn other_format(text: &str) -> Option<&'static str> {
    let inside = text.strip_prefix('{')?.strip_suffix('}')?;
    let last = text.rsplit('\n').next()?;
    // The text is not parsed, because Python writes `NaN` into JSON. A prompt may begin like JSON,
    // and entries may end like it.
    if !inside.trim_start().starts_with('"') || last.starts_with("Steps:") {
        return None;
    }
    let formats = [
        ("\"sui_image_params\"", "SwarmUI's JSON"),
        ("\"class_type\"", COMFYUI),
        ("\"last_node_id\"", COMFYUI),
        ("\"adm_guidance\"", "Fooocus's JSON"),
        ("\"Fooocus", "Fooocus's JSON"),
        ("\"model_weights\"", INVOKEAI),
        ("\"generation_mode\"", INVOKEAI),
        ("\"app_version\"", INVOKEAI),
        ("\"uc\"", NOVELAI),
        ("\"NovelAI", NOVELAI),
    ];
    let known = formats.into_iter().find(|(key, _)| inside.contains(key));
    Some(known.map_or(UNKNOWN, |(_, format)| format))
}

/// Splits off the lines that the extension Dynamic Prompts writes below the entries, and returns
/// them as entries.
fn templates(text: &str) -> (&str, Vec<(String, String)>) {
    let key_of = |line: &str| {
        let mut keys = ["Template", "Negative Template"].into_iter();
        keys.find(|key| {
            line.strip_prefix(key)
                .is_some_and(|rest| rest.starts_with(':'))
        })
    };
    // Finds the last line of entries that is directly followed by a template.
    let (mut start, mut at, mut below) = (None, 0, "");
    for line in text.split('\n') {
        if below.starts_with("Steps:") && key_of(line).is_some() {
            start = Some((at, below));
        }
        (at, below) = (at + line.len() + 1, line);
    }
    let Some((start, above)) = start else {
        return (text, Vec::new());
    };
    let is_last = |line: &str| entries(line).len() >= LEAST_ENTRIES;
    if !is_last(above) || below.starts_with("Steps:") && is_last(below) {
        return (text, Vec::new());
    }
    let mut found: Vec<(String, String)> = Vec::new();
    for line in text[start..].split('\n') {
        match (key_of(line), found.last_mut()) {
            (Some(key), _) => found.push((key.into(), strip(&line[key.len() + 1..]).into())),
            (None, Some((_, template))) => {
                template.push('\n');
                template.push_str(line);
            }
            (None, None) => {}
        }
    }
    (strip(&text[..start]), found)
}

/// A key and a value, as they are written.
struct Entry<'a> {
    key: &'a str,
    value: &'a str,
    start: usize,
    end: usize,
}

/// Returns the entries of a line by WebUI's rules, except that a JSON object or array is one value.
fn entries(line: &str) -> Vec<Entry<'_>> {
    // The attempts are limited, because each may read an invalid text to its end.
    let mut attempts = 8;
    let (mut found, mut at) = (Vec::new(), 0);
    while let Some(captures) = ENTRY.captures_at(line, at) {
        let (Some(whole), Some(key), Some(value)) =
            (captures.get(0), captures.get(1), captures.get(2))
        else {
            break;
        };
        let mut entry = Entry {
            key: key.as_str(),
            value: value.as_str(),
            start: whole.start(),
            end: whole.end(),
        };
        if entry.value.starts_with(['{', '[']) && attempts > 0 {
            let rest = &line[value.start()..];
            match json(rest) {
                Some((json, length)) => {
                    (entry.value, entry.end) = (json, value.start() + length);
                }
                None => attempts -= 1,
            }
        }
        at = entry.end;
        found.push(entry);
    }
    found
}

/// Returns the JSON value at the start of a text, and its length including the comma after it.
fn json(text: &str) -> Option<(&str, usize)> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<IgnoredAny>();
    values.next()?.ok()?;
    let (json, rest) = text.split_at(values.byte_offset());
    let behind = rest.trim_start_matches(is_space);
    let length = text.len() - behind.len();
    if behind.is_empty() {
        Some((json, length))
    } else {
        behind.starts_with(',').then_some((json, length + 1))
    }
}

/// Returns whether a line begins with entries and one of them is `Steps`, or the factor by which
/// the picture was enlarged. A picture that was only enlarged has no `Steps`.
fn are_entries(found: &[Entry<'_>]) -> bool {
    let mut at = 0;
    for entry in found {
        if entry.start != at {
            return false;
        }
        if ["Steps", keys::POSTPROCESS_UPSCALE_BY].contains(&entry.key) {
            return true;
        }
        at = entry.end;
    }
    false
}

/// Splits a text of one line into its prompts and entries, if each mark occurs only once.
fn one_line(line: &str) -> Option<(Cow<'_, str>, Vec<Entry<'_>>)> {
    let mut marks = STEPS.find_iter(line);
    let mark = marks.next()?;
    if marks.next().is_some() {
        return None;
    }
    let (prompts, last) = line.split_at(mark.start());
    let found = entries(last);
    if found.len() < LEAST_ENTRIES || prompts.matches(NEGATIVE).count() > 1 {
        return None;
    }
    let prompts = prompts.replace(NEGATIVE, &format!("\n{NEGATIVE}"));
    Some((prompts.into(), found))
}

/// WebUI's own expression. Python's `\w` is narrower than the `\w` of the `regex` crate, and
/// Python's `\s` is wider.
static ENTRY: LazyLock<Regex> = LazyLock::new(|| {
    let (word, space) = (r"\p{L}\p{N}_", r"[\s\x1C-\x1F]*");
    let expression =
        format!(r#"{space}([{word}][{word} \-/]+):{space}("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)"#);
    Regex::new(&expression).expect("the expression is constant")
});

/// The start of every program's entries.
static STEPS: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"(?:^|\s)Steps: ?[0-9]+,").expect("the expression is constant"));

/// Returns whether a character is whitespace for Python's `str.strip`.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1C'..='\x1F').contains(&c)
}

pub(super) fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

fn unquoted(value: &str) -> String {
    if value.starts_with('"') && value.ends_with('"') {
        serde_json::from_str(value).unwrap_or_else(|_| value.to_owned())
    } else {
        value.to_owned()
    }
}
