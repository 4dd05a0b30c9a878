//! Numbers as Python reads them, because the programs whose prompts are read are written in Python.

/// Parses a number as Python's `float` does, without infinity, NaN and digits beyond ASCII. The
/// number is finite as an `f32`.
pub(super) fn float(text: &str) -> Option<f64> {
    let number: f64 = without_underscores(text)?.parse().ok()?;
    (number as f32).is_finite().then_some(number)
}

/// Parses a whole number as Python's `int` does, without digits beyond ASCII.
pub(super) fn int(text: &str) -> Option<i64> {
    without_underscores(text)?.parse().ok()
}

/// Removes the space around a number, and the underscores between its digits. Returns `None` if an
/// underscore is elsewhere.
fn without_underscores(text: &str) -> Option<String> {
    let text = text.trim();
    let bytes = text.as_bytes();
    let is_digit = |at: Option<usize>| {
        at.and_then(|at| bytes.get(at))
            .is_some_and(u8::is_ascii_digit)
    };
    let mut underscores = text.match_indices('_').map(|(at, _)| at);
    underscores
        .all(|at| is_digit(at.checked_sub(1)) && is_digit(Some(at + 1)))
        .then(|| text.replace('_', ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_python_s() {
        for (text, expected) in [
            (" 0.5\t", Some(0.5)),
            ("1e-1", Some(0.1)),
            (".5", Some(0.5)),
            ("5.", Some(5.0)),
            ("+1_0.2_5", Some(10.25)),
            ("-0", Some(-0.0)),
            ("", None),
            (".", None),
            ("_1", None),
            ("1_", None),
            ("1__0", None),
            ("1_.5", None),
            ("0x1", None),
            ("1,5", None),
            ("inf", None),
            ("nan", None),
            ("1e39", None),
        ] {
            assert_eq!(float(text), expected, "{text}");
        }
        for (text, expected) in [
            (" +1_0 ", Some(10)),
            ("-3", Some(-3)),
            ("007", Some(7)),
            ("4.0", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(int(text), expected, "{text}");
        }
    }
}
