//! WebUI's schedule grammar: finds the brackets, colons and bars that belong to a construct.
//!
//! These are the grammar's rules after the ambiguities are removed. An item is a run of text, in
//! which a backslash and the character after it count as text, or one of these constructs:
//!
//! | construct | form |
//! |---|---|
//! | emphasis | `(items)`, `(items:items)` |
//! | softening | `[items]` |
//! | schedule | `[items:number]`, `[items:items:number]`, white space around the number |
//! | alternation | <code>[items&#124;items&#124;…]</code> |
//!
//! `items` may be empty. A bracket or colon that belongs to no construct is text, but only outside
//! of every construct: `[[a:b:c:d]:e:3]` has no schedule. The grammar fails at a bar that belongs
//! to no alternation, and at a backslash that is followed by a line break or by the end of the
//! text.
//!
//! The reader makes one pass with a stack. A construct is recognized when it closes. If a bracket
//! closes nothing, or what it closes is not a construct, every bracket that is still open becomes
//! text.

use super::characters::{digits, is_space, unsigned};
use super::tree::When;

/// A bracket, colon or bar.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mark {
    /// Its position in bytes.
    pub at: usize,
    pub role: Role,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Role {
    Text,
    /// Opens a construct with this many separators.
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
    /// Its index in the list of marks.
    mark: usize,
    round: bool,
    /// The colons or bars directly inside it, as indices of marks.
    separators: Vec<usize>,
    colons: usize,
    /// The position of its first bar, in bytes.
    bar: Option<usize>,
}

/// Returns the marks of a text, in order.
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
            // Skips the next byte, which is no mark. If its character has more bytes, those are no
            // marks either.
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
            b')' | b']' => close(&mut stack, &mut marks, text, at)?,
            _ => {}
        }
        at += 1;
    }
    flush(&mut stack)?;
    Ok(marks)
}

/// Closes the innermost open bracket with the bracket at byte `at`. If that makes no construct, all
/// open brackets become text.
fn close(stack: &mut Vec<Open>, marks: &mut Vec<Mark>, text: &str, at: usize) -> Result<(), usize> {
    let round = text.as_bytes()[at] == b')';
    let construct = stack
        .last()
        .and_then(|open| open.close(round, marks, text, at));
    let closed = construct.and_then(|construct| Some((construct, stack.pop()?)));
    let Some((construct, open)) = closed else {
        return flush(stack);
    };
    marks[open.mark].role = Role::Open(construct, open.separators.len());
    for separator in open.separators {
        marks[separator].role = Role::Separator;
    }
    marks.push(Mark {
        at,
        role: Role::Close,
    });
    Ok(())
}

/// Makes all open brackets text. Fails if there is a bar inside one of them.
fn flush(stack: &mut Vec<Open>) -> Result<(), usize> {
    let bar = stack.iter().filter_map(|open| open.bar).min();
    stack.clear();
    bar.map_or(Ok(()), Err)
}

impl Open {
    /// Returns the construct that a bracket at byte `at` closes, if it is one.
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

/// Reads a number with white space around it. A number with a decimal point is a fraction of the
/// steps. Any other number is a step.
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
            // An exponent without a decimal point needs digits before it, which `mantissa` checks.
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
