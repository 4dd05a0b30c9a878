//! Reads the weights and `BREAK`s of a text that a schedule shows.

use super::characters::{is_space, unsigned, whole_words};
use super::segment::Segment;
use super::{Syntax, comfy, compel};

/// Splits a text into segments by weight, in order. There is at least one.
///
/// In WebUI's syntax, the default:
///
/// - `(x)` multiplies the surrounding weight by 1.1, `[x]` divides it by 1.1, and `(x:1.3)`
///   multiplies it by 1.3. Nested weights multiply.
/// - The two kinds of brackets are independent and may overlap: `(a [b) c]`. A bracket that is
///   never closed extends to the end of the text.
/// - A backslash makes a following bracket or backslash literal. Any other backslash is dropped.
/// - `BREAK` as a separate word, with the white space around it, becomes a [`Segment::Break`].
/// - Neighbouring texts of equal weight are joined.
///
/// Two edge cases:
///
/// - A malformed weight, as in `(x:1.2.3)`, is text. WebUI stops with an error there.
/// - Brackets also multiply the weight of a `BREAK` inside them. Unless the factor is 1, this turns
///   it into the text "BREAK", as in WebUI: `(BREAK)`, `(a BREAK b:1.2)`.
///
/// ```
/// use sd_text::{Segment, Syntax, attention};
///
/// assert_eq!(
///     attention("a (red:1.5) fox BREAK snow", Syntax::WebUi),
///     [
///         Segment::plain("a "),
///         Segment::weighted("red", 1.5),
///         Segment::plain(" fox"),
///         Segment::Break,
///         Segment::plain("snow"),
///     ]
/// );
/// ```
pub fn attention(text: &str, syntax: Syntax) -> Vec<Segment> {
    match syntax {
        Syntax::WebUi => webui(text),
        Syntax::ComfyUi => comfy::attention(text),
        Syntax::Compel => compel::attention(text),
        Syntax::Plain => vec![Segment::plain(text)],
    }
}

const ROUND: f64 = 1.1;
const SQUARE: f64 = 1.0 / 1.1;
/// The text and the weight that WebUI gives to a `BREAK`. WebUI recognizes a `BREAK` by this pair.
const BREAK: (&str, f64) = ("BREAK", -1.0);
/// The deepest nesting for which the factors are multiplied in WebUI's order. The order decides the
/// last bits of the weight, and so whether neighbours are joined. For deeper nesting, the time
/// would grow with the square of the length.
const EXACT_DEPTH: usize = 64;

fn webui(text: &str) -> Vec<Segment> {
    let mut reader = Reader::default();
    let mut at = 0;
    while let Some(c) = text[at..].chars().next() {
        let rest = &text[at..];
        at += match c {
            '\\' => {
                let escaped = rest[1..].starts_with(['(', ')', '[', ']', '\\']);
                reader.piece(&rest[1..1 + usize::from(escaped)], 1.0);
                1 + usize::from(escaped)
            }
            '(' => reader.open(Kind::Round),
            '[' => reader.open(Kind::Square),
            ')' if reader.close(Kind::Round, ROUND) => 1,
            ']' if reader.close(Kind::Square, SQUARE) => 1,
            ')' | ']' => reader.piece(&rest[..1], 1.0),
            ':' => match weight(rest) {
                Some((length, factor)) => {
                    if !reader.close(Kind::Round, factor) {
                        reader.piece(&rest[..length], 1.0);
                    }
                    length
                }
                None => reader.piece(":", 1.0),
            },
            _ => {
                let marks = ['\\', '(', ')', '[', ']', ':'];
                let run = &rest[..rest.find(marks).unwrap_or(rest.len())];
                let mut from = 0;
                for found in whole_words(run, BREAK.0) {
                    reader.piece(run[from..found].trim_end_matches(is_space), 1.0);
                    reader.piece(BREAK.0, BREAK.1);
                    let behind = run[found + BREAK.0.len()..].trim_start_matches(is_space);
                    from = run.len() - behind.len();
                }
                reader.piece(&run[from..], 1.0);
                run.len()
            }
        };
    }
    reader.segments()
}

/// Reads `:1.3)`, with white space allowed around the number. Returns its length and the number.
fn weight(text: &str) -> Option<(usize, f64)> {
    let number = text[1..].trim_start_matches(is_space);
    let digits = unsigned(number);
    let rest = digits.trim_start_matches(|c: char| c == '.' || c.is_ascii_digit());
    let number = &number[..number.len() - rest.len()];
    let close = rest.trim_start_matches(is_space).strip_prefix(')')?;
    Some((text.len() - close.len(), number.parse().ok()?))
}

#[derive(Clone, Copy)]
enum Kind {
    Round,
    Square,
}

#[derive(Default)]
struct Reader<'t> {
    pieces: Vec<Piece<'t>>,
    brackets: Vec<Bracket>,
    /// The innermost open bracket of each kind.
    innermost: [Option<usize>; 2],
    closed: usize,
}

struct Piece<'t> {
    text: &'t str,
    weight: f64,
    brackets: [Option<usize>; 2],
}

struct Bracket {
    /// The next bracket around it of the same kind.
    outer: Option<usize>,
    depth: usize,
    factor: f64,
    /// Its position in the order of closing.
    closed: Option<usize>,
    /// The product of its factor and the factors of the brackets around it.
    product: f64,
}

impl<'t> Reader<'t> {
    fn piece(&mut self, text: &'t str, weight: f64) -> usize {
        self.pieces.push(Piece {
            text,
            weight,
            brackets: self.innermost,
        });
        text.len()
    }

    fn open(&mut self, kind: Kind) -> usize {
        let outer = self.innermost[kind as usize];
        let depth = outer.map_or(0, |outer| self.brackets[outer].depth) + 1;
        self.innermost[kind as usize] = Some(self.brackets.len());
        self.brackets.push(Bracket {
            outer,
            depth,
            factor: match kind {
                Kind::Round => ROUND,
                Kind::Square => SQUARE,
            },
            closed: None,
            product: 1.0,
        });
        1
    }

    /// Closes the innermost bracket of this kind. Returns whether there was one.
    fn close(&mut self, kind: Kind, factor: f64) -> bool {
        let Some(index) = self.innermost[kind as usize] else {
            return false;
        };
        let bracket = &mut self.brackets[index];
        bracket.factor = factor;
        bracket.closed = Some(self.closed);
        self.closed += 1;
        self.innermost[kind as usize] = bracket.outer;
        true
    }

    fn segments(mut self) -> Vec<Segment> {
        // Brackets that are never closed close at the end: first the round ones, and of each kind
        // the outermost first.
        for kind in self.innermost {
            let mut open: Vec<usize> = Vec::new();
            let mut next = kind;
            while let Some(index) = next {
                open.push(index);
                next = self.brackets[index].outer;
            }
            for index in open.into_iter().rev() {
                self.brackets[index].closed = Some(self.closed);
                self.closed += 1;
            }
        }
        for index in 0..self.brackets.len() {
            let outer = self.brackets[index].outer;
            let around = outer.map_or(1.0, |outer| self.brackets[outer].product);
            self.brackets[index].product = around * self.brackets[index].factor;
        }

        let mut joined: Vec<(String, f64)> = Vec::new();
        for piece in &self.pieces {
            let weight = self.weight(piece);
            match joined.last_mut() {
                Some((text, last)) if *last == weight => text.push_str(piece.text),
                _ => joined.push((piece.text.to_owned(), weight)),
            }
        }
        if joined.is_empty() {
            joined.push((String::new(), 1.0));
        }
        let segment = |(text, weight): (String, f64)| match (text.as_str(), weight) == BREAK {
            true => Segment::Break,
            false => Segment::Text { text, weight },
        };
        joined.into_iter().map(segment).collect()
    }

    fn weight(&self, piece: &Piece<'_>) -> f64 {
        let around = || {
            piece
                .brackets
                .iter()
                .flatten()
                .map(|&index| &self.brackets[index])
        };
        if around().map(|bracket| bracket.depth).sum::<usize>() > EXACT_DEPTH {
            return around().fold(piece.weight, |weight, bracket| weight * bracket.product);
        }
        let mut factors: Vec<(Option<usize>, f64)> = Vec::new();
        for mut bracket in around() {
            factors.push((bracket.closed, bracket.factor));
            while let Some(outer) = bracket.outer {
                bracket = &self.brackets[outer];
                factors.push((bracket.closed, bracket.factor));
            }
        }
        factors.sort_by_key(|&(closed, _)| closed);
        factors
            .iter()
            .fold(piece.weight, |weight, &(_, factor)| weight * factor)
    }
}
