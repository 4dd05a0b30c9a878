//! What Python's regular expressions, in which WebUI's grammar is written, call white space and a word.
//!
//! Left out: combining vowel signs and circled letters are letters to us and none to Python, which only matters where
//! `AND` or `BREAK` touches one; and digits other than 0 to 9 make no number here.

/// `\s`: Unicode's white space and the four separators U+001C to U+001F.
pub(crate) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// `\w`.
pub(super) fn is_word(c: char) -> bool {
    c == '_' || c.is_alphanumeric()
}

/// Where `word`, in ASCII, stands with no word character next to it: `\bword\b`.
pub(super) fn whole_words(text: &str, word: &'static str) -> impl Iterator<Item = usize> {
    // Looked for by its first letter: preparing a search for all of it takes longer than reading a short prompt.
    let first = char::from(word.as_bytes()[0]);
    text.match_indices(first)
        .map(|(at, _)| at)
        .filter(move |&at| {
            let Some(rest) = text[at..].strip_prefix(word) else {
                return false;
            };
            let (before, after) = (text[..at].chars().next_back(), rest.chars().next());
            !before.is_some_and(is_word) && !after.is_some_and(is_word)
        })
}

/// How many of the first bytes of `text` are ASCII digits.
pub(super) fn digits(text: &str) -> usize {
    text.bytes().take_while(u8::is_ascii_digit).count()
}

/// `text` without one leading `+` or `-`.
pub(super) fn unsigned(text: &str) -> &str {
    text.strip_prefix(['+', '-']).unwrap_or(text)
}
