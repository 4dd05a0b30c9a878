//! Which brackets, colons and bars of a text are part of a construct: WebUI's schedule grammar.
//!
//! Its rules, in the form that comes out when they are made unambiguous. An item is a run of text (a backslash and the
//! character behind it count as text) or one of
//!
//! | construct | form |
//! |---|---|
//! | emphasis | `(items)`, `(items:items)` |
//! | softening | `[items]` |
//! | schedule | `[items:number]`, `[items:items:number]`, white space around the number |
//! | alternation | <code>[items&#124;items&#124;…]</code> |
//!
//! where `items` may be empty. A bracket or colon that belongs to none of them is text, but only where it is not inside of
//! one: `[[a:b:c:d]:e:3]` has no schedule. A bar, or a backslash with nothing but a line break or the end behind it, fails.
//!
//! One pass with a stack: a construct is known when it closes, and one that can't be, or a bracket that closes nothing,
//! makes every bracket still open text.

use super::characters::{digits, is_space, unsigned};
use super::tree::When;

/// A bracket, colon or bar.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mark {
    /// Its byte.
    pub at: usize,
    pub role: Role,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Role {
    Text,
    /// Opens a construct that has so many separators.
    Open(Construct, usize),
    Separator,
    Close,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Construct {
    Emphasis,
    Softening,
    Schedule(When),
    Alternation,
}

/// A bracket that is still open.
struct Open {
    /// Its index among the marks.
    mark: usize,
    round: bool,
    /// The colons or bars directly in it, as indices of marks.
    separators: Vec<usize>,
    colons: usize,
    /// The byte of its first bar.
    bar: Option<usize>,
}

/// The marks of a text in their order.
///
/// # Errors
/// The byte at which the grammar fails.
pub(super) fn read(text: &str) -> Result<Vec<Mark>, usize> {
    let bytes = text.as_bytes();
    let mut marks = Vec::new();
    let mut stack: Vec<Open> = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let byte = bytes[at];
        match byte {
            b'\\' if matches!(bytes.get(at + 1), None | Some(b'\n')) => {
                flush(&mut stack)?;
                return Err(at);
            }
            // The byte behind is no mark; more of its character would not be one either.
            b'\\' => at += 1,
            b'(' | b'[' => {
                stack.push(Open {
                    mark: marks.len(),
                    round: byte == b'(',
                    separators: Vec::new(),
                    colons: 0,
                    bar: None,
                });
                marks.push(Mark {
                    at,
                    role: Role::Text,
                });
            }
            b':' | b'|' => match stack.last_mut() {
                Some(open) => {
                    open.separators.push(marks.len());
                    match byte {
                        b':' => open.colons += 1,
                        _ => open.bar = open.bar.or(Some(at)),
                    }
                    marks.push(Mark {
                        at,
                        role: Role::Text,
                    });
                }
                None if byte == b'|' => return Err(at),
                None => {}
            },
            b')' | b']' => {
                let construct = stack
                    .last()
                    .and_then(|open| open.close(byte == b')', &marks, text, at));
                match construct.and_then(|construct| Some((construct, stack.pop()?))) {
                    Some((construct, open)) => {
                        marks[open.mark].role = Role::Open(construct, open.separators.len());
                        for separator in open.separators {
                            marks[separator].role = Role::Separator;
                        }
                        marks.push(Mark {
                            at,
                            role: Role::Close,
                        });
                    }
                    None => flush(&mut stack)?,
                }
            }
            _ => {}
        }
        at += 1;
    }
    flush(&mut stack)?;
    Ok(marks)
}

/// All that is open is text, unless there is a bar in it.
fn flush(stack: &mut Vec<Open>) -> Result<(), usize> {
    let bar = stack.iter().filter_map(|open| open.bar).min();
    stack.clear();
    bar.map_or(Ok(()), Err)
}

impl Open {
    /// What it is when a bracket closes it at byte `at`, if anything.
    fn close(&self, round: bool, marks: &[Mark], text: &str, at: usize) -> Option<Construct> {
        if self.round != round {
            return None;
        }
        match (round, self.colons, self.bar) {
            (true, 0 | 1, None) => Some(Construct::Emphasis),
            (false, 0, None) => Some(Construct::Softening),
            (false, 0, Some(_)) => Some(Construct::Alternation),
            (false, 1 | 2, None) => {
                let colon = marks[*self.separators.last()?].at;
                when(&text[colon + 1..at]).map(Construct::Schedule)
            }
            _ => None,
        }
    }
}

/// A number with white space around it. With a point it is a fraction of the steps, else a step.
fn when(text: &str) -> Option<When> {
    let text = text.trim_matches(is_space);
    let number = unsigned(text);
    let whole = digits(number);
    let (rest, fraction) = match number[whole..].strip_prefix('.') {
        Some(rest) => (&rest[digits(rest)..], Some(digits(rest))),
        None => (&number[whole..], None),
    };
    let mantissa = whole + fraction.unwrap_or(0) > 0;
    let exponent = match rest.strip_prefix(['e', 'E']) {
        Some(exponent) => {
            let exponent = unsigned(exponent);
            // An exponent without a point needs digits in front of it, which `mantissa` says too.
            !exponent.is_empty() && digits(exponent) == exponent.len()
        }
        None => rest.is_empty(),
    };
    if !(mantissa && exponent) {
        return None;
    }
    let number = text.parse().ok()?;
    Some(match fraction {
        Some(_) => When::Fraction(number),
        None => When::Step(number),
    })
}
