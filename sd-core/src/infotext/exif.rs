//! EXIF data: the few fields that hold texts about how a picture was made.
//!
//! The data is a TIFF file (TIFF 6.0, section 2): the byte order, and directories of entries of 12
//! bytes: tag, type, count, and the value or its place. The entry `ExifIFD` of the first directory
//! is the place of the second (EXIF 2.32, section 4.6).
//!
//! This is written out here because the available crates build a list of all entries, which a file
//! of 64 KiB can make several gigabytes large by many directories that overlap.

use std::cmp::Ordering;

use super::{InfotextError, file::decoded};

/// The start of EXIF data in a JPEG file. Some programs write it in other files, too.
pub(super) const HEADER: &[u8] = b"Exif\0\0";

/// The tag of the EXIF directory's place.
const EXIF_DIRECTORY: u16 = 0x8769;
const USER_COMMENT: u16 = 0x9286;
/// The tags `Model`, `Make` and `ImageDescription`, in the order in which ComfyUI fills them.
const TEXTS: [u16; 3] = [0x0110, 0x010f, 0x010e];

/// The type of bytes without a meaning, `UNDEFINED`.
const UNDEFINED: u16 = 7;

/// The order of the bytes of a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Big,
    Little,
}

/// EXIF data.
#[derive(Debug, Clone, Copy)]
pub(super) struct Exif<'a> {
    tiff: &'a [u8],
    order: Order,
}

impl<'a> Exif<'a> {
    /// Returns `None` if the bytes are not EXIF data.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let tiff = bytes.strip_prefix(HEADER).unwrap_or(bytes);
        let order = match tiff.get(..4)? {
            b"MM\0*" => Order::Big,
            b"II*\0" => Order::Little,
            _ => return None,
        };
        Some(Self { tiff, order })
    }

    /// Returns the byte order of the data.
    pub fn order(self) -> Order {
        self.order
    }

    /// Returns the bytes of the `UserComment`, which [`comment`] decodes.
    pub fn user_comment(self) -> Option<&'a [u8]> {
        let directory = self.entry(self.u32(4)?, EXIF_DIRECTORY)?;
        self.bytes(self.entry(self.u32(directory + 8)?, USER_COMMENT)?)
    }

    /// Returns the bytes of the fields `Model`, `Make` and `ImageDescription`.
    pub fn texts(self) -> [Option<&'a [u8]>; 3] {
        let field = |tag| {
            let bytes = self.bytes(self.entry(self.u32(4)?, tag)?)?;
            // A text ends with a NUL.
            bytes.split(|&byte| byte == 0).next()
        };
        TEXTS.map(field)
    }

    /// Returns the place of the entry with a tag in the directory at `place`.
    fn entry(self, place: usize, tag: u16) -> Option<usize> {
        let count = self.u16(place)?;
        let mut entries = (0..usize::from(count)).map(|i| place + 2 + 12 * i);
        // The entries should be sorted, but some programs do not sort them.
        entries.find(|&entry| self.u16(entry) == Some(tag))
    }

    /// Returns the bytes of an entry whose type is one of bytes.
    fn bytes(self, entry: usize) -> Option<&'a [u8]> {
        // BYTE, ASCII and UNDEFINED.
        if !matches!(self.u16(entry + 2)?, 1 | 2 | UNDEFINED) {
            return None;
        }
        let count = self.u32(entry + 4)?;
        let place = if count <= 4 {
            entry + 8
        } else {
            self.u32(entry + 8)?
        };
        self.tiff.get(place..)?.get(..count)
    }

    fn u16(self, place: usize) -> Option<u16> {
        let bytes = *self.tiff.get(place..)?.first_chunk()?;
        Some(match self.order {
            Order::Big => u16::from_be_bytes(bytes),
            Order::Little => u16::from_le_bytes(bytes),
        })
    }

    /// Returns a number, which is a place or a length.
    fn u32(self, place: usize) -> Option<usize> {
        let bytes = *self.tiff.get(place..)?.first_chunk()?;
        let number = match self.order {
            Order::Big => u32::from_be_bytes(bytes),
            Order::Little => u32::from_le_bytes(bytes),
        };
        // Larger numbers are beyond the end of any data, and a sum must not overflow.
        usize::try_from(number).ok().filter(|&it| it < 1 << 30)
    }
}

/// Returns EXIF data that consists of a `UserComment`, as `piexif` writes it for WebUI: big-endian,
/// and the text as `UNICODE\0` and UTF-16.
pub(super) fn with_comment(text: &str) -> Vec<u8> {
    let comment: Vec<u8> = b"UNICODE\0"
        .iter()
        .copied()
        .chain(text.encode_utf16().flat_map(u16::to_be_bytes))
        .collect();
    /// The length of a directory of one entry: its count, the entry, and the next directory.
    const DIRECTORY: u32 = 2 + 12 + 4;
    let (first, second) = (8, 8 + DIRECTORY);
    // The type 4 is a number of four bytes.
    let entries = [
        (EXIF_DIRECTORY, 4, 1, second),
        (
            USER_COMMENT,
            UNDEFINED,
            comment.len() as u32,
            second + DIRECTORY,
        ),
    ];
    let mut tiff = b"MM\0*".to_vec();
    tiff.extend(u32::to_be_bytes(first));
    for (tag, kind, count, value) in entries {
        tiff.extend([0, 1]);
        tiff.extend([tag, kind].map(u16::to_be_bytes).concat());
        tiff.extend([count, value, 0].map(u32::to_be_bytes).concat());
    }
    tiff.extend(comment);
    tiff
}

/// Decodes a `UserComment`. `order` is the byte order of the EXIF data.
///
/// It begins with eight bytes that name its character code (EXIF 2.32, section 4.6.5). `UNICODE\0`
/// is UTF-16, but the standard does not say in which byte order, and programs differ. A byte order
/// mark counts, and otherwise the order in which the text has `Steps:`. If it has none, the order
/// in which more of the text is ASCII counts. If both are equal, it is `order`.
pub(super) fn comment(bytes: &[u8], order: Order) -> Result<String, InfotextError> {
    let (code, text) = bytes.split_at_checked(8).unwrap_or((&[], bytes));
    let text = match code {
        b"UNICODE\0" if is_utf8(text) => decoded(text),
        b"UNICODE\0" => utf16(text, order),
        b"JIS\0\0\0\0\0" => return Err(InfotextError::Jis),
        b"ASCII\0\0\0" | b"\0\0\0\0\0\0\0\0" if is_utf8(text) => decoded(text),
        b"\0\0\0\0\0\0\0\0" => utf16(text, order),
        b"ASCII\0\0\0" => decoded(text),
        // Some programs write no code.
        _ => decoded(bytes),
    };
    // Some programs fill the field with spaces or NULs.
    Ok(text.trim_end_matches(['\0', ' ']).to_owned())
}

/// Returns whether bytes are UTF-8 and not UTF-16, whose ASCII characters have a NUL each.
fn is_utf8(bytes: &[u8]) -> bool {
    let end = bytes
        .iter()
        .rposition(|&byte| byte != 0)
        .map_or(0, |at| at + 1);
    !bytes[..end].contains(&0) && std::str::from_utf8(bytes).is_ok()
}

fn utf16(bytes: &[u8], order: Order) -> String {
    let (order, bytes) = match bytes {
        [0xfe, 0xff, bytes @ ..] => (Order::Big, bytes),
        [0xff, 0xfe, bytes @ ..] => (Order::Little, bytes),
        _ => {
            let pairs = bytes.chunks_exact(2);
            let ascii = |high: usize, low: usize| {
                let is = |pair: &&[u8]| pair[high] == 0 && matches!(pair[low], 9..=126);
                pairs.clone().filter(is).count()
            };
            let by_ascii = match ascii(0, 1).cmp(&ascii(1, 0)) {
                Ordering::Greater => Order::Big,
                Ordering::Less => Order::Little,
                Ordering::Equal => order,
            };
            let has_steps = |order: fn(u16) -> [u8; 2]| {
                let steps: Vec<u8> = "Steps:".encode_utf16().flat_map(order).collect();
                let mut places = bytes.windows(steps.len()).step_by(2);
                places.any(|found| found == steps)
            };
            let order = match has_steps(u16::to_be_bytes).cmp(&has_steps(u16::to_le_bytes)) {
                Ordering::Greater => Order::Big,
                Ordering::Less => Order::Little,
                Ordering::Equal => by_ascii,
            };
            (order, bytes)
        }
    };
    let units = bytes.chunks_exact(2).map(|pair| match order {
        Order::Big => u16::from_be_bytes([pair[0], pair[1]]),
        Order::Little => u16::from_le_bytes([pair[0], pair[1]]),
    });
    let characters = char::decode_utf16(units);
    characters
        .map(|character| character.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect()
}

#[cfg(test)]
// A failed `unwrap` is a failed test.
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const TEXT: &str = "狐 🦊\nSteps: 5, Sampler: Euler, Seed: 1";

    fn units(text: &str, order: Order) -> Vec<u8> {
        let bytes = |unit: u16| match order {
            Order::Big => unit.to_be_bytes(),
            Order::Little => unit.to_le_bytes(),
        };
        text.encode_utf16().flat_map(bytes).collect()
    }

    #[test]
    fn a_comment_is_decoded_by_its_code_and_its_content() {
        let orders = [Order::Big, Order::Little];
        for (written, of_exif) in orders.into_iter().flat_map(|a| orders.map(|b| (a, b))) {
            let plain = [b"UNICODE\0", &units(TEXT, written)[..]].concat();
            assert_eq!(comment(&plain, of_exif).unwrap(), TEXT, "{written:?}");
            let marked = format!("\u{feff}{}", "狐");
            let marked = [b"UNICODE\0", &units(&marked, written)[..]].concat();
            assert_eq!(comment(&marked, of_exif).unwrap(), "狐");
            // Only the order of the EXIF data says what this is.
            let bare = [b"UNICODE\0", &units("狐狸", written)[..]].concat();
            let read = comment(&bare, of_exif).unwrap();
            assert_eq!(read == "狐狸", written == of_exif, "{read}");
        }
        for code in [&b"ASCII\0\0\0"[..], b"\0\0\0\0\0\0\0\0", b"UNICODE\0", b""] {
            let text = [code, TEXT.as_bytes(), b"  \0"].concat();
            assert_eq!(comment(&text, Order::Big).unwrap(), TEXT, "{code:?}");
        }
        let latin1 = comment(b"ASCII\0\0\0renard rus\xe9", Order::Big).unwrap();
        assert_eq!(latin1, "renard rusé");
        let jis = comment(b"JIS\0\0\0\0\0\x1b$B", Order::Big);
        assert_eq!(jis, Err(InfotextError::Jis));
        for length in 0..8 {
            comment(&b"UNICODE\0"[..length], Order::Big).unwrap();
        }
    }

    #[test]
    fn damaged_data_is_not_read_beyond_its_end() {
        let good = with_comment(TEXT);
        let read = |tiff: &[u8]| {
            let exif = Exif::parse(tiff)?;
            exif.texts();
            comment(exif.user_comment()?, exif.order()).ok()
        };
        assert_eq!(read(&good).as_deref(), Some(TEXT));
        for length in 0..good.len() {
            assert_eq!(read(&good[..length]), None, "{length}");
        }
        for (at, bit) in (0..44).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
            let mut bad = good.clone();
            bad[at] ^= 1 << bit;
            read(&bad);
        }
        // A directory that points to itself, and one of as many entries as possible.
        let mut own = good.clone();
        own[18..22].copy_from_slice(&8_u32.to_be_bytes());
        assert_eq!(read(&own), None);
        own[8..10].copy_from_slice(&[0xff, 0xff]);
        assert_eq!(read(&own), None);
    }
}
