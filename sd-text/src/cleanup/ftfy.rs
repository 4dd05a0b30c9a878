//! `fix_text` of ftfy 6.3 (Apache-2.0), and the `whitespace_clean` and lower-casing of CLIP.
//!
//! Reference: `ftfy/__init__.py`, `ftfy/fixes.py` and `ftfy/chardata.py` of ftfy 6.3.1, in the same
//! order of steps. `fix_encoding`, which repairs mojibake, is left out.

use std::{collections::HashMap, sync::LazyLock};

use entities::ENTITIES;
use tokenizers::NormalizedString;

use crate::prompt::is_space;

/// The most passes over a line. Passes are repeated until nothing changes, and each pass undoes one
/// level of `&amp;amp;amp;`. ftfy has no limit, but its time grows with the square of the length of
/// such a text.
const ROUNDS: usize = 64;

pub(super) fn clean(text: &str) -> String {
    let mut fixed = String::with_capacity(text.len());
    // From the first line that may contain mark-up, HTML entities are left alone.
    let mut entities = true;
    for line in text.split_inclusive('\n') {
        entities &= !line.contains('<');
        fixed.push_str(&fix(line, entities));
    }
    let words: Vec<&str> = fixed
        .split(is_space)
        .filter(|word| !word.is_empty())
        .collect();
    words.join(" ").to_lowercase()
}

fn fix(line: &str, entities: bool) -> String {
    // Printable ASCII without an entity does not change.
    if line
        .bytes()
        .all(|byte| byte == b'\n' || (b' '..=b'~').contains(&byte))
        && !line.contains('&')
    {
        return line.to_owned();
    }
    let mut text = line.to_owned();
    for _ in 0..ROUNDS {
        let mut fixed = if entities {
            decode_entities(&text)
        } else {
            text.clone()
        };
        fixed = fixed
            .chars()
            .fold(String::with_capacity(fixed.len()), |mut fixed, c| {
                push_character(&mut fixed, c);
                fixed
            });
        fixed = fixed
            .replace("\r\n", "\n")
            .replace(['\r', '\u{2028}', '\u{2029}', '\u{85}'], "\n");
        fixed = remove_terminal_escapes(&fixed);
        fixed.retain(|c| !is_control(c));
        let mut composed = NormalizedString::from(fixed);
        composed.nfc();
        if composed.get() == text {
            break;
        }
        text = composed.get().to_owned();
    }
    text
}

/// Appends a character, after decoding C1 controls as Windows-1252, splitting ligatures, and
/// replacing full-width characters and quotes.
fn push_character(text: &mut String, c: char) {
    let c = if matches!(c, '\u{80}'..='\u{9f}') {
        windows_1252(c)
    } else {
        c
    };
    let ligature = match c {
        'Ĳ' => "IJ",
        'ĳ' => "ij",
        // ftfy's ligature table gives U+02BC here, which its step for quotes then replaces.
        'ŉ' => "'n",
        'Ǳ' => "DZ",
        'ǲ' => "Dz",
        'ǳ' => "dz",
        'Ǆ' => "DŽ",
        'ǅ' => "Dž",
        'ǆ' => "dž",
        'Ǉ' => "LJ",
        'ǈ' => "Lj",
        'ǉ' => "lj",
        'Ǌ' => "NJ",
        'ǋ' => "Nj",
        'ǌ' => "nj",
        'ﬀ' => "ff",
        'ﬁ' => "fi",
        'ﬂ' => "fl",
        'ﬃ' => "ffi",
        'ﬄ' => "ffl",
        'ﬅ' => "ſt",
        'ﬆ' => "st",
        '\u{3000}' => " ",
        '\u{2bc}' | '\u{2018}'..='\u{201b}' => "'",
        '\u{201c}'..='\u{201f}' => "\"",
        '\u{ff01}'..='\u{ffef}' => {
            let mut wide = NormalizedString::from(c.to_string());
            wide.nfkc();
            return text.push_str(wide.get());
        }
        _ => return text.push(c),
    };
    text.push_str(ligature);
}

/// Returns the character that this byte has in Windows-1252, or the control character itself if it
/// has none.
fn windows_1252(c: char) -> char {
    const TABLE: [char; 32] = [
        '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8d}', 'Ž',
        '\u{8f}', '\u{90}', '‘', '’', '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9d}',
        'ž', 'Ÿ',
    ];
    TABLE
        .get((c as usize).wrapping_sub(0x80))
        .copied()
        .unwrap_or(c)
}

fn is_control(c: char) -> bool {
    matches!(
        c,
        '\0'..='\u{8}' | '\u{b}' | '\u{e}'..='\u{1f}' | '\u{7f}' | '\u{206a}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffc}'
    )
}

/// Removes terminal escapes: `ESC [`, digits and semicolons, and a letter.
fn remove_terminal_escapes(text: &str) -> String {
    let mut left = String::with_capacity(text.len());
    let mut parts = text.split("\u{1b}[");
    left.extend(parts.next());
    for part in parts {
        let behind = part.trim_start_matches(|c: char| c == ';' || c.is_ascii_digit());
        match behind.strip_prefix(|c: char| c.is_ascii_alphabetic()) {
            Some(behind) => left.push_str(behind),
            None => {
                left.push_str("\u{1b}[");
                left.push_str(part);
            }
        }
    }
    left
}

/// Decodes `&name;` and `&#number;`. The semicolon is required.
fn decode_entities(text: &str) -> String {
    let mut decoded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        decoded.push_str(&rest[..at]);
        rest = &rest[at..];
        // The longest name has 24 characters.
        let name = rest
            .bytes()
            .skip(1)
            .take(26)
            .position(|byte| byte == b';')
            .map(|length| &rest[..length + 2]);
        match name.and_then(entity) {
            Some(character) => {
                decoded.push_str(&character);
                rest = &rest[name.map_or(1, str::len)..];
            }
            None => {
                decoded.push('&');
                rest = &rest[1..];
            }
        }
    }
    decoded.push_str(rest);
    decoded
}

/// The text that each of HTML's named entities, with its `&` and `;`, stands for.
static KNOWN: LazyLock<HashMap<&str, &str>> =
    LazyLock::new(|| ENTITIES.iter().map(|e| (e.entity, e.characters)).collect());

/// Returns the text that an entity, with its `&` and `;`, stands for.
fn entity(text: &str) -> Option<String> {
    let name = text.strip_prefix('&')?.strip_suffix(';')?;
    if let Some(number) = name.strip_prefix('#') {
        return numeric(number);
    }
    if !(1..=24).contains(&name.len()) || !name.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return None;
    }
    let known = |entity: &str| Some((*KNOWN.get(entity)?).to_owned());
    // Some lower-case names are also accepted in capitals and then mean the capital letter.
    // Excluded are names that begin with one that HTML accepts in capitals and without a semicolon.
    let capital = || {
        let legacy = ["AMP", "COPY", "ETH", "GT", "LT", "QUOT", "REG", "THORN"];
        let capitals = name == name.to_ascii_uppercase()
            && !legacy.iter().any(|legacy| name.starts_with(legacy));
        capitals
            .then(|| known(&text.to_ascii_lowercase()))
            .flatten()
            .map(|character| character.to_uppercase())
    };
    known(text).or_else(capital)
}

/// Reads a numeric entity as HTML does: C1 controls as Windows-1252, and nothing for noncharacters
/// and most other controls.
fn numeric(number: &str) -> Option<String> {
    let (digits, base) = match number.strip_prefix(['x', 'X']) {
        Some(digits) => (digits, 16),
        None => (number, 10),
    };
    // The number has at most 24 characters. A sign is not a digit.
    if digits.is_empty() || number.len() > 24 || !digits.chars().all(|c| c.is_digit(base)) {
        return None;
    }
    let Ok(code) = u32::from_str_radix(digits, base) else {
        return Some('\u{fffd}'.to_string());
    };
    Some(match (code, char::from_u32(code)) {
        (0, _) | (_, None) => '\u{fffd}'.to_string(),
        // A decoded `;` would look like the end of an entity.
        (0x3b, _) => return None,
        (0x80..=0x9f, Some(c)) => windows_1252(c).to_string(),
        (1..=8 | 0xb | 0xe..=0x1f | 0x7f | 0xfdd0..=0xfdef, _) => String::new(),
        (code, _) if code & 0xfffe == 0xfffe => String::new(),
        (_, Some(c)) => c.to_string(),
    })
}
