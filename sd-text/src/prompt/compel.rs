//! compel's weights, after its `doc/syntax.md` and the behaviour of version 2.5.1.
//!
//! An operator directly after a word, a text in brackets or a text in quotes changes its weight.
//! Each `+` multiplies by 1.1 and each `-` by 0.9. A number is an operator only after brackets and
//! quotes: `(red fox)1.3`. Nested weights multiply. A backslash makes a bracket or a quote literal.
//! The text inside brackets must be well-formed; otherwise the bracket is text.
//!
//! `.attend(1.3)` is an operator too. compel's other operators (`.and()`, `.blend()`, `.swap()`,
//! `withLora()`) are text here.

use std::collections::HashSet;

use super::characters::digits;
use super::segment::Segment;

/// The deepest nesting. Brackets that nest deeper are text.
const DEEPEST: usize = 64;
/// How many bytes after `.attend(` are searched for the closing bracket.
const LONGEST_ARGUMENT: usize = 64;
const SYNTAX: &str = "()\",.+-=";

pub(super) fn attention(text: &str) -> Vec<Segment> {
    let text = space_behind_commas(text);
    let mut reader = Reader {
        text: &text,
        failed: HashSet::new(),
        fragments: Vec::new(),
    };
    let mut at = 0;
    while let Some(c) = text[at..].chars().next() {
        at = if c.is_whitespace() {
            at + c.len_utf8()
        } else if let Some(end) = reader.item(at, 1.0, 0, Place::Top) {
            end
        } else {
            // No item starts here, so everything up to the next white space is text.
            let rest = &text[at..];
            let end = at + rest.find(char::is_whitespace).unwrap_or(rest.len());
            reader.push(&text[at..end], 1.0);
            end
        };
    }
    reader.segments()
}

fn space_behind_commas(text: &str) -> String {
    let mut spaced = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        spaced.push(c);
        if c == ',' && characters.peek().is_some_and(|next| !next.is_whitespace()) {
            spaced.push(' ');
            // compel's pattern consumes this character too, so a comma after a comma stays as it
            // is.
            spaced.extend(characters.next());
        }
    }
    spaced
}

#[derive(Clone, Copy, PartialEq)]
enum Place {
    Top,
    Brackets,
}

struct Reader<'t> {
    text: &'t str,
    /// The positions of brackets that are not well-formed, so that none is read twice.
    failed: HashSet<usize>,
    fragments: Vec<(String, f64)>,
}

impl Reader<'_> {
    fn push(&mut self, text: &str, weight: f64) {
        let unescaped = |text: &str| {
            text.replace("\\(", "(")
                .replace("\\)", ")")
                .replace("\\\"", "\"")
        };
        // compel unescapes twice.
        self.fragments.push((unescaped(&unescaped(text)), weight));
    }

    /// Reads a word with its operator, or brackets or quotes with or without an operator. Inside
    /// brackets a word needs no operator either. Returns where the item ends.
    fn item(&mut self, at: usize, weight: f64, depth: usize, place: Place) -> Option<usize> {
        let (target, end) = match self.text.as_bytes().get(at)? {
            b'(' => (Target::Brackets, self.brackets(at, depth)?),
            b'"' => (Target::Quotes, self.quotes(at, depth)?),
            _ => (Target::Word, self.word(at)?),
        };
        let operator = operator(&self.text[end..], target);
        let (factor, length) = match (operator, target) {
            (Some(operator), _) => operator,
            // At the top level, a bare word belongs to the text up to the next white space.
            (None, Target::Word) if place == Place::Top => return None,
            (None, _) => (1.0, 0),
        };
        match target {
            Target::Word => self.push(&self.text[at..end], weight * factor),
            Target::Brackets | Target::Quotes => {
                self.inside(at + 1, end - 1, weight * factor, depth + 1);
            }
        }
        Some(end + length)
    }

    /// Reads the inside of well-formed brackets or quotes.
    fn inside(&mut self, start: usize, end: usize, weight: f64, depth: usize) {
        let mut at = start;
        let first = self.fragments.len();
        while at < end {
            let rest = &self.text[at..end];
            let Some(c) = rest.chars().next() else { break };
            at = match c {
                c if c.is_whitespace() => at + c.len_utf8(),
                ',' | '.' => {
                    self.push(&rest[..1], weight);
                    at + 1
                }
                c => self
                    .item(at, weight, depth, Place::Brackets)
                    .unwrap_or(at + c.len_utf8()),
            };
        }
        if first == self.fragments.len() && self.text.as_bytes()[end] == b'"' {
            self.push("", weight);
        }
    }

    /// Returns the position after the bracket that closes the one at `at`, if everything between is
    /// well-formed.
    fn brackets(&mut self, at: usize, depth: usize) -> Option<usize> {
        let mut open = vec![at];
        let mut next = at + 1;
        while !self.failed.contains(&at) && depth + open.len() <= DEEPEST {
            let Some(c) = self.text[next..].chars().next() else {
                break;
            };
            let end = match c {
                '(' => {
                    open.push(next);
                    next + 1
                }
                ')' => {
                    open.pop();
                    if open.is_empty() {
                        return Some(next + 1);
                    }
                    next + 1
                        + operator(&self.text[next + 1..], Target::Brackets)
                            .map_or(0, |(_, length)| length)
                }
                '"' => match self.quotes(next, depth + open.len()) {
                    Some(end) => {
                        end + operator(&self.text[end..], Target::Quotes)
                            .map_or(0, |(_, length)| length)
                    }
                    None => break,
                },
                ',' | '.' => next + 1,
                c if c.is_whitespace() => next + c.len_utf8(),
                _ => match self.word(next) {
                    Some(end) => {
                        end + operator(&self.text[end..], Target::Word)
                            .map_or(0, |(_, length)| length)
                    }
                    None => break,
                },
            };
            next = end;
        }
        self.failed.extend(open);
        None
    }

    /// Returns the position after the quote that closes the one at `at`, on the same line. compel
    /// allows well-formed brackets inside quotes. For simplicity, this reader allows none.
    fn quotes(&mut self, at: usize, depth: usize) -> Option<usize> {
        let rest = &self.text[at + 1..];
        let length = rest.find(['"', '\n', '(', ')', '=', '\\'])?;
        let inner = &rest[..length];
        (depth < DEEPEST && rest[length..].starts_with('"') && well_formed(inner))
            .then_some(at + length + 2)
    }

    /// Returns the position after the word at `at`, if there is one.
    fn word(&self, at: usize) -> Option<usize> {
        let length = word(&self.text[at..]);
        (length > 0).then_some(at + length)
    }

    /// Returns the segments, with neighbours of equal weight joined.
    fn segments(self) -> Vec<Segment> {
        let mut joined: Vec<(String, f64)> = Vec::new();
        for (text, weight) in self.fragments {
            match joined.last_mut() {
                Some((last, of)) if *of == weight => {
                    last.push(' ');
                    last.push_str(&text);
                }
                _ => joined.push((text, weight)),
            }
        }
        if joined.is_empty() {
            joined.push((String::new(), 1.0));
        }
        joined
            .into_iter()
            .map(|(text, weight)| Segment::Text { text, weight })
            .collect()
    }
}

/// Whether the text consists only of words with or without operators, commas, full stops and white
/// space.
fn well_formed(text: &str) -> bool {
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        rest = match c {
            ',' | '.' => &rest[1..],
            c if c.is_whitespace() => &rest[c.len_utf8()..],
            _ => match word(rest) {
                0 => return false,
                length => {
                    let behind = &rest[length..];
                    &behind[operator(behind, Target::Word).map_or(0, |(_, length)| length)..]
                }
            },
        };
    }
    true
}

/// Returns the length of the word at the start of the text. A sign belongs to the word if something
/// other than syntax or white space follows it.
fn word(text: &str) -> usize {
    let mut at = 0;
    while let Some(c) = text[at..].chars().next() {
        let behind = &text[at + c.len_utf8()..];
        let next = behind.chars().next();
        at += match c {
            '\\' if next.is_some_and(|next| SYNTAX.contains(next)) => 2,
            '+' | '-'
                if next.is_some_and(|next| !next.is_whitespace() && !SYNTAX.contains(next)) =>
            {
                1
            }
            c if c.is_whitespace() || SYNTAX.contains(c) => break,
            c => c.len_utf8(),
        };
    }
    at
}

#[derive(Clone, Copy, PartialEq)]
enum Target {
    Word,
    Brackets,
    Quotes,
}

/// Returns the factor and the length of the operator at the start of the text.
fn operator(text: &str, target: Target) -> Option<(f64, usize)> {
    if let Some(argument) = text.strip_prefix(".attend(") {
        let length = argument
            .bytes()
            .take(LONGEST_ARGUMENT)
            .position(|byte| byte == b')')?;
        let factor = match signs(&argument[..length]) {
            Some((factor, all)) if all == length => factor,
            _ => {
                number(&argument[..length])
                    .filter(|&(_, all)| all == length)?
                    .0
            }
        };
        return Some((factor, ".attend()".len() + length));
    }
    signs(text).or_else(|| number(text).filter(|_| target != Target::Word))
}

fn signs(text: &str) -> Option<(f64, usize)> {
    let (sign, base) = match text.bytes().next()? {
        b'+' => (b'+', 1.1_f64),
        b'-' => (b'-', 0.9),
        _ => return None,
    };
    let count = text.bytes().take_while(|&byte| byte == sign).count();
    Some((base.powf(count as f64), count))
}

/// Reads `1.3`, `1.`, `.5` or `2`. A sign would be a separate operator.
fn number(text: &str) -> Option<(f64, usize)> {
    let whole = digits(text);
    let length = match text[whole..].strip_prefix('.') {
        Some(fraction) if whole + digits(fraction) > 0 => whole + 1 + digits(fraction),
        _ => whole,
    };
    Some((text[..length].parse().ok()?, length))
}
