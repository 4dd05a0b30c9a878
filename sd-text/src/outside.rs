//! Handles text and files from outside the program: makes text safe to print and opens files
//! safely.
//!
//! The crates of this workspace share this module. It is public only for them and is not part of
//! the API.

use std::{
    error::Error,
    fmt::Display,
    fs::{self, File},
    io::{self, Read, Seek},
    path::Path,
};

/// The most characters of a text that [`printable`] keeps.
const MOST_CHARACTERS: usize = 400;
/// The most items that [`list`] names.
const MOST_ITEMS: usize = 8;

/// Returns `text` in a form that is safe and short enough for a one-line message.
///
/// Names and values from a file may contain anything. Characters that a terminal acts on or does
/// not show (escapes, newlines, other controls, bidirectional marks) become Rust escapes such as
/// `\u{1b}`. If a text has more than 400 characters, its middle is replaced by the number of
/// characters left out.
pub fn printable(text: impl Display) -> String {
    let text = text.to_string();
    let count = text.chars().count();
    if count <= MOST_CHARACTERS {
        return escape(text.chars());
    }
    let (kept, rest) = (MOST_CHARACTERS / 2, count - MOST_CHARACTERS / 2);
    let start = escape(text.chars().take(kept));
    let end = escape(text.chars().skip(rest));
    format!("{start}… ({} characters) …{end}", rest - kept)
}

/// Escapes like [`printable`], but does not shorten the text.
pub fn escaped(text: impl Display) -> String {
    escape(text.to_string().chars())
}

/// Returns the items as a list for a message. Each item is made [`printable`], and items are
/// separated by commas. After eight items, the list ends with the number of items left out.
pub fn list<T: Display>(items: impl IntoIterator<Item = T>) -> String {
    let mut items = items.into_iter();
    let mut shown: Vec<String> = items.by_ref().take(MOST_ITEMS).map(printable).collect();
    let more = items.count();
    if more > 0 {
        shown.push(format!("and {more} more"));
    }
    shown.join(", ")
}

/// Returns the message of an error and the messages of its causes, joined by ": " and
/// [`escaped`].
///
/// The errors of these crates do not repeat the message of their
/// [`source`](std::error::Error::source), so a message for a person needs the whole chain.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = escaped(error);
    let mut cause = error.source();
    while let Some(error) = cause {
        text += ": ";
        text += &escaped(error);
        cause = error.source();
    }
    text
}

fn escape(text: impl Iterator<Item = char>) -> String {
    let mut out = String::new();
    let mut buffer = [0; 5];
    for character in text {
        if matches!(character, '"' | '\'' | '\\') {
            out.push(character);
            continue;
        }
        // A letter comes first, so that a combining mark is not escaped merely for its position.
        buffer[0] = b'a';
        let length = 1 + character.encode_utf8(&mut buffer[1..]).len();
        let pair = std::str::from_utf8(&buffer[..length]).expect("two whole characters");
        out.extend(pair.escape_debug().skip(1));
    }
    out
}

/// Opens a regular, non-empty file for reading.
///
/// Other files are refused: opening a pipe or a device could wait forever, and so could reading a
/// file of `/proc`, whose length is 0.
///
/// # Errors
/// - [`InvalidInput`](io::ErrorKind::InvalidInput) if the path is a folder, a pipe, a device or a
///   socket.
/// - [`InvalidData`](io::ErrorKind::InvalidData) if the file is empty.
/// - Any error of the operating system.
pub fn open(path: impl AsRef<Path>) -> io::Result<File> {
    let path = path.as_ref();
    // Checked before opening and again afterwards, because the file may be replaced in between.
    check_regular(&fs::metadata(path)?)?;
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    check_regular(&metadata)?;
    match metadata.len() {
        0 => Err(invalid("the file is empty")),
        _ => Ok(file),
    }
}

/// Opens a binary file like [`open`], but refuses a file whose first kilobyte shows that it is a
/// stand-in for the real file (see [`stand_in`]).
///
/// # Errors
/// As [`open`]; also [`InvalidData`](io::ErrorKind::InvalidData), naming what the file is, if it is
/// a stand-in.
pub fn open_binary(path: impl AsRef<Path>) -> io::Result<File> {
    let mut file = open(path)?;
    let mut start = Vec::new();
    file.by_ref().take(1024).read_to_end(&mut start)?;
    if let Some(what) = stand_in(&start) {
        return Err(invalid(what));
    }
    file.rewind()?;
    Ok(file)
}

/// Reads a whole regular file of at most `most` bytes.
///
/// # Errors
/// As [`open`]; also [`InvalidData`](io::ErrorKind::InvalidData) if the file is longer than `most`
/// bytes or is a stand-in for the real file (see [`stand_in`]).
pub fn read(path: impl AsRef<Path>, most: u64) -> io::Result<Vec<u8>> {
    let file = open(path)?;
    let length = file.metadata()?.len();
    if length > most {
        return Err(invalid(format!(
            "the file is {length} bytes long, expected at most {most}"
        )));
    }
    let mut bytes = Vec::with_capacity(length as usize);
    file.take(length).read_to_end(&mut bytes)?;
    match stand_in(&bytes) {
        Some(what) => Err(invalid(what)),
        None => Ok(bytes),
    }
}

/// Reads a UTF-8 text file like [`read`]. A byte order mark is removed.
///
/// # Errors
/// As [`read`]; also [`InvalidData`](io::ErrorKind::InvalidData), naming the first byte that is not
/// UTF-8.
pub fn read_to_string(path: impl AsRef<Path>, most: u64) -> io::Result<String> {
    let text = String::from_utf8(read(path, most)?).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        invalid(format!("not UTF-8 text: byte {at} is invalid"))
    })?;
    Ok(match text.strip_prefix('\u{feff}') {
        Some(rest) => rest.to_owned(),
        None => text,
    })
}

/// Returns a description if the bytes are a stand-in for the real file: a Git LFS pointer, a web
/// page, or a text with merge conflict markers.
///
/// The first kilobyte of a file is enough to detect the first two.
pub fn stand_in(bytes: &[u8]) -> Option<&'static str> {
    let start = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    if start.starts_with(b"version https://git-lfs.github.com/spec/") {
        return Some(
            "this is a Git LFS pointer, not the file itself; get the file with `git lfs pull`",
        );
    }
    let page = start.trim_ascii_start();
    let is_page = ["<!doctype html", "<html", "<head", "<?xml"]
        .iter()
        .any(|tag| {
            page.get(..tag.len())
                .is_some_and(|start| start.eq_ignore_ascii_case(tag.as_bytes()))
        });
    if is_page {
        return Some("this is a web page, not the file itself; download the file again");
    }
    let ours = marked_line(bytes, b"<<<<<<< ");
    if ours.is_some_and(|at| marked_line(&bytes[at..], b">>>>>>> ").is_some()) {
        return Some("the file contains merge conflict markers (`<<<<<<<`)");
    }
    None
}

/// Returns the position of the first line that starts with `mark`, which is seven equal bytes and a
/// space.
fn marked_line(bytes: &[u8], mark: &[u8; 8]) -> Option<usize> {
    let starts_line = |&at: &usize| {
        let is_first = bytes[..at].last().is_none_or(|&byte| byte == b'\n');
        is_first && bytes[at..].starts_with(mark)
    };
    // A mark has seven equal bytes, so looking at every seventh byte is enough. Looking at every
    // byte would take a few percent of a tokenizer's loading time.
    (6..bytes.len())
        .step_by(7)
        .filter(|&at| bytes[at] == mark[0])
        .find_map(|at| (at - 6..=at).find(starts_line))
}

fn check_regular(metadata: &fs::Metadata) -> io::Result<()> {
    if metadata.is_file() {
        return Ok(());
    }
    let problem = if metadata.is_dir() {
        "this is a folder, expected a file"
    } else {
        "this is a pipe, a device or a socket, expected a regular file"
    };
    Err(io::Error::new(io::ErrorKind::InvalidInput, problem))
}

fn invalid(problem: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_acts_on_is_escaped() {
        assert_eq!(
            printable("a fox, \"naïve\" c:\\x"),
            "a fox, \"naïve\" c:\\x"
        );
        assert_eq!(printable("狐 हिन्दी e\u{301}"), "狐 हिन्दी e\u{301}");
        assert_eq!(
            printable("\u{1b}[2J\r\n\u{9d}0;x\u{7}\u{202e}"),
            "\\u{1b}[2J\\r\\n\\u{9d}0;x\\u{7}\\u{202e}"
        );
    }

    #[test]
    fn long_text_keeps_its_ends() {
        let text = format!("start{}end", "x".repeat(100_000));
        let short = printable(&text);
        assert!(short.starts_with("startxxx") && short.ends_with("xxxend"));
        assert!(short.contains("(99608 characters)"), "{short}");
        assert!(short.len() < 500);
        // The worst case: every character becomes an escape.
        assert!(printable("\u{10fffe}".repeat(1000)).len() < 5000);
        assert_eq!(printable("x".repeat(400)), "x".repeat(400));
        assert_eq!(escaped("\n".repeat(401)), "\\n".repeat(401));
    }

    #[test]
    fn long_lists_are_counted() {
        assert_eq!(list(["a", "b\n"]), "a, b\\n");
        assert_eq!(list(0..10), "0, 1, 2, 3, 4, 5, 6, 7, and 2 more");
        assert_eq!(list(Vec::<String>::new()), "");
    }

    #[test]
    fn only_regular_files_within_the_bound_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let problem = |most| read_to_string(&path, most).unwrap_err().to_string();
        fs::write(&path, "\u{feff}{}").unwrap();
        assert_eq!(read_to_string(&path, 5).unwrap(), "{}");
        assert_eq!(problem(4), "the file is 5 bytes long, expected at most 4");
        fs::write(&path, b"ab\xff").unwrap();
        assert_eq!(problem(9), "not UTF-8 text: byte 2 is invalid");
        fs::write(&path, "").unwrap();
        assert_eq!(problem(9), "the file is empty");
        let error = read(folder.path(), 9).unwrap_err();
        assert_eq!(error.to_string(), "this is a folder, expected a file");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn devices_and_files_without_a_length_are_refused() {
        for path in [
            "/dev/zero",
            "/dev/stdin",
            "/proc/kmsg",
            "/proc/self/environ",
        ] {
            assert!(read(path, 1 << 20).is_err(), "{path}");
            // Reading `/proc/kmsg` would wait for the kernel's next message.
            assert!(open(path).is_err(), "{path}");
            assert!(open_binary(path).is_err(), "{path}");
        }
    }

    #[test]
    fn binary_files_are_opened_at_their_start() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, vec![7; 3000]).unwrap();
        let mut bytes = Vec::new();
        open_binary(&path).unwrap().read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, vec![7; 3000]);
        fs::write(&path, "<html>").unwrap();
        assert!(open_binary(&path).is_err());
    }

    #[test]
    fn files_in_the_place_of_others_are_named() {
        let lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n";
        for (bytes, what) in [
            (&lfs[..], Some("Git LFS")),
            (b"\n <!DOCTYPE html><html>", Some("web page")),
            (b"<HTML>", Some("web page")),
            (
                b"{\n<<<<<<< HEAD\n\"a\": 1\n=======\n\"a\": 2\n>>>>>>> other\n}",
                Some("merge conflict"),
            ),
            (b"{\"a\": \"<<<<<<< \"}", None),
            (b"<<<<<<< \n", None),
            (b"", None),
        ] {
            let found = stand_in(bytes);
            assert_eq!(found.is_some(), what.is_some(), "{found:?}");
            assert!(found.unwrap_or("").contains(what.unwrap_or("")));
        }
        for before in 0..20 {
            let text = format!("{}\n<<<<<<< a\n>>>>>>> b", "x".repeat(before));
            assert!(stand_in(text.as_bytes()).is_some(), "{before}");
        }
    }
}
