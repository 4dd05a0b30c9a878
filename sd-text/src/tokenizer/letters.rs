//! The characters that represent bytes in a byte-level vocabulary.

/// Returns each byte with its character, in the order of CLIP's vocabulary. First come the
/// printable bytes, which stand for themselves in Latin-1. The other bytes follow, with characters
/// from U+0100 on.
pub(super) fn alphabet() -> impl Iterator<Item = (u8, char)> {
    let seen = |&byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let (seen, others): (Vec<u8>, Vec<u8>) = (0..=u8::MAX).partition(seen);
    let seen = seen.into_iter().map(|byte| (byte, char::from(byte)));
    seen.chain(others.into_iter().zip('\u{100}'..))
}

/// Returns the text of a token, or `None` if the token contains other characters. Bytes that are
/// not valid UTF-8 become `�`.
pub(super) fn decode(token: &str) -> Option<String> {
    let letters: Vec<(u8, char)> = alphabet().collect();
    let byte = |letter| letters.iter().find(|&&(_, other)| other == letter);
    let bytes: Option<Vec<u8>> = token
        .chars()
        .map(|letter| byte(letter).map(|&(byte, _)| byte))
        .collect();
    Some(String::from_utf8_lossy(&bytes?).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_its_letter() {
        let letters: Vec<(u8, char)> = alphabet().collect();
        assert_eq!(letters.len(), 256);
        assert_eq!(letters[..2], [(b'!', '!'), (b'"', '"')]);
        assert_eq!(
            letters[93..96],
            [(b'~', '~'), (0xa1, '\u{a1}'), (0xa2, '\u{a2}')]
        );
        assert_eq!(
            letters[187..190],
            [(0xff, '\u{ff}'), (0, '\u{100}'), (1, '\u{101}')]
        );
        assert_eq!(letters[255], (0xad, '\u{143}'));
        assert!(letters.contains(&(b' ', '\u{120}')));
    }

    #[test]
    fn tokens_read_as_text() {
        assert_eq!(decode("fox</w>").as_deref(), Some("fox</w>"));
        assert_eq!(decode("\u{c3}\u{a9}").as_deref(), Some("é"));
        assert_eq!(decode("\u{c3}").as_deref(), Some("\u{fffd}"));
        assert_eq!(decode("\u{72d0}"), None);
    }
}
