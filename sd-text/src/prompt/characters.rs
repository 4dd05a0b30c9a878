//! White space and words as Python's regular expressions define them. WebUI's grammar is written in
//! those.
//!
//! Two differences remain. Combining vowel signs and circled letters count as letters here but not
//! in Python, which matters only where `AND` or `BREAK` touches one. Digits other than 0 to 9 do
//! not form a number here.

/// Whether `\s` matches: Unicode's white space and the four separators U+001C to U+001F.
pub(crate) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// Whether `\w` matches.
pub(super) fn is_word(c: char) -> bool {
    c == '_' || c.is_alphanumeric()
}

/// Returns the positions where `word`, which must be ASCII, has no word character on either side:
/// `\bword\b`.
pub(super) fn whole_words(text: &str, word: &'static str) -> impl Iterator<Item = usize> {
    // Searches for the first letter only: preparing a search for the whole word takes longer than
    // reading a short prompt.
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

/// Returns how many bytes at the start of `text` are ASCII digits.
pub(super) fn digits(text: &str) -> usize {
    text.bytes().take_while(u8::is_ascii_digit).count()
}

/// Returns `text` without one leading `+` or `-`.
pub(super) fn unsigned(text: &str) -> &str {
    text.strip_prefix(['+', '-']).unwrap_or(text)
}
