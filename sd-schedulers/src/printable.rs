//! Makes text from files and callers safe to print.

/// The largest number of characters of a text that a message shows.
const MOST_CHARACTERS: usize = 100;

/// Returns the text in a form that is short and safe to show in a one-line message.
///
/// Control characters and invisible characters become Rust escapes. A text of more than
/// [`MOST_CHARACTERS`] characters is cut, and the number of missing characters follows.
///
/// `sd_text::outside::printable` does the same for the other crates. This crate does not depend on
/// `sd-text`.
pub(crate) fn printable(text: impl AsRef<str>) -> String {
    let mut out = String::new();
    let mut characters = text.as_ref().chars();
    for character in characters.by_ref().take(MOST_CHARACTERS) {
        match character {
            '"' | '\'' | '\\' => out.push(character),
            _ => out.extend(character.escape_debug()),
        }
    }
    match characters.count() {
        0 => out,
        more => format!("{out}… ({more} more characters)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped_and_cut() {
        assert_eq!(printable(r#"naïve 狐 "a\b""#), r#"naïve 狐 "a\b""#);
        assert_eq!(
            printable("\u{1b}[2J\n\u{9d}0;x\u{7}\u{202e}"),
            "\\u{1b}[2J\\n\\u{9d}0;x\\u{7}\\u{202e}"
        );
        assert_eq!(printable("x".repeat(100)), "x".repeat(100));
        let long = printable("x".repeat(1 << 20));
        assert!(long.ends_with("x… (1048476 more characters)"), "{long}");
        // The worst case: every character becomes an escape.
        assert!(printable("\u{10fffe}".repeat(1000)).len() < 1100);
    }
}
