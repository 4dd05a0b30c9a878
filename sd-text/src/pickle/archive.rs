//! Reads the ZIP files that `torch.save` writes, strictly.
//!
//! ZIP readers treat damaged or crafted files differently: they search for the directory in
//! different places, choose one of two entries with the same name, or trust either of the two
//! headers that each entry has. Here, whatever is not the same for all of them is an error: both
//! headers of an entry must agree, its name must be unique, and it must not share a byte with
//! another entry.
//!
//! The `zip` crate can check the same. It is not used because it also accepts a directory that is
//! not at the declared place, reads directories of any length, and needs several more crates. torch
//! writes only the simplest ZIP files.

use std::collections::HashMap;
use std::io::Read;

use flate2::{Crc, read::DeflateDecoder};

use super::error::Problem;
use super::source::Source;
use crate::outside::printable;

/// The most entries. Large checkpoints with their training state have about ten thousand.
const MOST_ENTRIES: u64 = 1 << 17;
const MOST_DIRECTORY: u64 = 32 << 20;
const END: &[u8; 4] = b"PK\x05\x06";
const END_LENGTH: u64 = 22;
const LOCATOR_LENGTH: u64 = 20;
/// The value of a number that does not fit 32 bits and is stored in the extra field instead.
const ELSEWHERE: u64 = 0xffff_ffff;
/// The flags of entries that cannot be read: encrypted, patched, strongly encrypted, hidden header.
const UNREADABLE: u16 = 1 | 1 << 5 | 1 << 6 | 1 << 13;
/// The flag of entries whose sizes follow the data and may be missing before it.
const SIZES_BEHIND: u16 = 1 << 3;

pub(super) struct Archive {
    entries: HashMap<String, Stored>,
}

/// The bytes of an entry, or of a storage in the legacy format.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    /// Where the bytes begin in the file.
    pub offset: u64,
    /// How many bytes they take in the file.
    pub packed: u64,
    /// How many bytes they are when unpacked.
    pub length: u64,
    pub deflated: bool,
    /// The checksum, if one is written.
    pub crc: Option<u32>,
}

impl Archive {
    pub fn open(source: &Source) -> Result<Self, Problem> {
        let directory = Directory::find(source)?;
        let bytes = source.read(directory.offset, directory.length)?;
        let mut fields = Fields {
            bytes: &bytes,
            at: 0,
        };
        let mut headers = Vec::new();
        for _ in 0..directory.entries {
            let at = fields.at;
            let header = Header::read(&mut fields);
            headers.push(header.ok_or_else(|| {
                let at = directory.offset + at as u64;
                wrong(format!("the ZIP file's directory is damaged at byte {at}"))
            })?);
        }
        if fields.at != bytes.len() {
            let problem = format!(
                "the ZIP file's directory has {} bytes after its {} entries",
                bytes.len() - fields.at,
                directory.entries
            );
            return Err(wrong(problem));
        }

        headers.sort_by_key(|header| header.local);
        let mut entries = HashMap::new();
        let mut free = 0;
        for header in headers {
            let name = printable(&header.name);
            if header.local < free {
                let (at, problem) = (header.local, "begins inside another entry");
                return Err(wrong(format!("entry `{name}` {problem}, at byte {at}")));
            }
            let stored = header.stored(source)?;
            let end = stored.offset.checked_add(stored.packed);
            free = end.filter(|&end| end <= directory.offset).ok_or_else(|| {
                let (at, packed) = (stored.offset, stored.packed);
                let problem =
                    format!("has {packed} bytes from byte {at} on, more than there is room for");
                wrong(format!("entry `{name}` {problem}"))
            })?;
            if entries.insert(header.name, stored).is_some() {
                return Err(wrong(format!(
                    "the ZIP file has two entries named `{name}`"
                )));
            }
        }
        Ok(Self { entries })
    }

    pub fn get(&self, name: &str) -> Option<&Stored> {
        self.entries.get(name)
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }
}

impl Stored {
    /// Reads and unpacks all bytes, and checks them.
    pub fn content(&self, source: &Source) -> Result<Vec<u8>, Problem> {
        let packed = source.read(self.offset, self.packed)?;
        let bytes = match self.deflated {
            false => packed,
            true => {
                let mut bytes = Vec::new();
                // One byte more than expected is enough to detect that there are more.
                let mut data = DeflateDecoder::new(&packed[..]).take(self.length.saturating_add(1));
                let read = data.read_to_end(&mut bytes);
                let at = self.offset;
                read.map_err(|error| {
                    wrong(format!(
                        "the compressed data at byte {at} is damaged: {error}"
                    ))
                })?;
                if bytes.len() as u64 != self.length {
                    let problem = format!(
                        "the compressed data at byte {at} does not have the {} bytes that its \
                         header gives",
                        self.length
                    );
                    return Err(wrong(problem));
                }
                bytes
            }
        };
        if let Some(expected) = self.crc {
            let mut crc = Crc::new();
            crc.update(&bytes);
            let found = crc.sum();
            if found != expected {
                let problem = format!(
                    "the checksum of the data at byte {} is {found:08x}, expected {expected:08x}: \
                     the file is damaged",
                    self.offset
                );
                return Err(wrong(problem));
            }
        }
        Ok(bytes)
    }
}

/// The position of the list of entries.
struct Directory {
    offset: u64,
    length: u64,
    entries: u64,
}

impl Directory {
    /// Finds the directory with the record at the very end of the file.
    fn find(source: &Source) -> Result<Self, Problem> {
        let comment = u64::from(u16::MAX);
        let start = source.length.saturating_sub(END_LENGTH + comment);
        let tail = source.read(start, source.length - start)?;
        let last = last_record(&tail).ok_or_else(|| {
            let problem = "the ZIP file has no directory at its end: it is cut off or damaged";
            wrong(problem.to_owned())
        })?;
        let mut fields = Fields {
            bytes: &tail,
            at: last + 4,
        };
        let directory = Self::read(&mut fields, false).ok_or_else(damaged)?;
        let end = start + last as u64;
        let (directory, end) = match Self::find_large(source, end)? {
            None => (directory, end),
            Some((large, at)) if directory.agrees(&large) => (large, at),
            Some(_) => {
                let problem = "the two last records of the ZIP file contradict each other";
                return Err(wrong(problem.to_owned()));
            }
        };
        directory.check(end)?;
        Ok(directory)
    }

    /// Finds the record for larger files, if there is one before the last record, which is at byte
    /// `end`. Returns its numbers and its position.
    fn find_large(source: &Source, end: u64) -> Result<Option<(Self, u64)>, Problem> {
        // A locator with the position of the record follows it.
        let Some(at) = end.checked_sub(LOCATOR_LENGTH) else {
            return Ok(None);
        };
        let locator = source.read(at, LOCATOR_LENGTH)?;
        let mut fields = Fields {
            bytes: &locator,
            at: 0,
        };
        if fields.tag(b"PK\x06\x07").is_none() {
            return Ok(None);
        }
        // The number of the disk and the position of the record.
        let large = fields
            .number(4)
            .and_then(|_| fields.number(8))
            .ok_or_else(damaged)?;
        let length = at
            .checked_sub(large)
            .filter(|length| (56..4096).contains(length));
        let record = source.read(large, length.ok_or_else(damaged)?)?;
        let found = Self::read_large(&record).ok_or_else(damaged)?;
        Ok(Some((found, large)))
    }

    /// Checks that the directory is not too large, and that it ends at byte `end`, where the last
    /// records begin.
    fn check(&self, end: u64) -> Result<(), Problem> {
        let &Self {
            offset,
            length,
            entries,
        } = self;
        if offset.checked_add(length) != Some(end) {
            let problem = format!(
                "the ZIP file's directory has {length} bytes from byte {offset} on, expected them \
                 to end at byte {end}"
            );
            return Err(wrong(problem));
        }
        if length > MOST_DIRECTORY || entries > MOST_ENTRIES {
            let problem = format!(
                "the ZIP file's directory has {entries} entries in {length} bytes, expected at \
                 most {MOST_ENTRIES} in {MOST_DIRECTORY}"
            );
            return Err(wrong(problem));
        }
        Ok(())
    }

    /// Reads the numbers of either record, starting with the disk numbers.
    fn read(fields: &mut Fields<'_>, large: bool) -> Option<Self> {
        let (disk, count, place) = if large { (4, 8, 8) } else { (2, 2, 4) };
        let disks = [fields.number(disk)?, fields.number(disk)?];
        let (here, entries) = (fields.number(count)?, fields.number(count)?);
        let (length, offset) = (fields.number(place)?, fields.number(place)?);
        // torch writes no archives on several disks.
        let is_whole = disks == [0, 0] && here == entries;
        is_whole.then_some(Self {
            offset,
            length,
            entries,
        })
    }

    fn read_large(record: &[u8]) -> Option<Self> {
        let mut fields = Fields {
            bytes: record,
            at: 0,
        };
        fields.tag(b"PK\x06\x06")?;
        // The length of the rest, then the versions that wrote it and that can read it.
        (fields.number(8)? == record.len() as u64 - 12).then_some(())?;
        fields.number(4)?;
        Self::read(&mut fields, true)
    }

    /// Whether each number equals the number in the large record, or is declared to be stored
    /// there.
    fn agrees(&self, large: &Self) -> bool {
        let same = |short: u64, large: u64, elsewhere: u64| short == large || short == elsewhere;
        same(self.offset, large.offset, ELSEWHERE)
            && same(self.length, large.length, ELSEWHERE)
            && same(self.entries, large.entries, 0xffff)
    }
}

/// Returns the position of the last record whose comment ends at the end of the file, in the bytes
/// `tail` at the end of the file.
fn last_record(tail: &[u8]) -> Option<usize> {
    (0..=tail.len().saturating_sub(END_LENGTH as usize))
        .rev()
        .find(|&at| {
            let is_end = tail[at..].starts_with(END);
            let comment = tail
                .get(at + 20..at + 22)
                .map(|b| u16::from_le_bytes([b[0], b[1]]));
            is_end && comment.is_some_and(|length| at + 22 + usize::from(length) == tail.len())
        })
}

fn damaged() -> Problem {
    wrong("the ZIP file's last record is damaged".to_owned())
}

/// An entry of the directory.
struct Header {
    name: String,
    flags: u16,
    method: u16,
    crc: u32,
    packed: u64,
    length: u64,
    /// The position of the entry, which begins with its own header.
    local: u64,
}

impl Header {
    fn read(fields: &mut Fields<'_>) -> Option<Self> {
        fields.tag(b"PK\x01\x02")?;
        fields.number(4)?;
        let (flags, method) = (fields.number(2)? as u16, fields.number(2)? as u16);
        fields.number(4)?;
        let crc = fields.number(4)? as u32;
        let (packed, length) = (fields.number(4)?, fields.number(4)?);
        let (name, extra) = (fields.number(2)?, fields.number(2)?);
        let (comment, disk) = (fields.number(2)?, fields.number(2)?);
        fields.number(6)?;
        let local = fields.number(4)?;
        let name = fields.take(name)?;
        let mut large = Large::find(fields.take(extra)?);
        fields.take(comment)?;
        let (length, packed) = (large.number(length)?, large.number(packed)?);
        let local = large.number(local)?;
        let name = String::from_utf8(name.to_vec()).ok()?;
        (disk == 0 || disk == 0xffff).then_some(())?;
        Some(Self {
            name,
            flags,
            method,
            crc,
            packed,
            length,
            local,
        })
    }

    /// Returns the position of the entry's data, after checking that the header before the data
    /// agrees.
    fn stored(&self, source: &Source) -> Result<Stored, Problem> {
        let name = printable(&self.name);
        if self.flags & UNREADABLE != 0 {
            return Err(wrong(format!(
                "entry `{name}` is encrypted, which is not supported"
            )));
        }
        let deflated = match self.method {
            0 => false,
            8 => true,
            other => {
                let problem = format!("entry `{name}` is compressed by method {other}");
                return Err(wrong(format!(
                    "{problem}, expected 0 (stored) or 8 (deflate)"
                )));
            }
        };
        if !deflated && self.packed != self.length {
            let (packed, length) = (self.packed, self.length);
            let problem = format!("entry `{name}` is stored in {packed} bytes, but has {length}");
            return Err(wrong(problem));
        }
        let (before, differs) = (30 + self.name.len() as u64, || {
            let at = self.local;
            wrong(format!(
                "entry `{name}` has a different header before its data, at byte {at}"
            ))
        });
        let header = source.read(self.local, before).map_err(|_| differs())?;
        let extra = u64::from(u16::from_le_bytes([header[28], header[29]]));
        let extra = source
            .read(self.local + before, extra)
            .map_err(|_| differs())?;
        self.check_local(&header, &extra).ok_or_else(differs)?;
        Ok(Stored {
            offset: self.local + before + extra.len() as u64,
            packed: self.packed,
            length: self.length,
            deflated,
            // torch writes 0 if checksums are switched off.
            crc: (self.crc != 0).then_some(self.crc),
        })
    }

    fn check_local(&self, header: &[u8], extra: &[u8]) -> Option<()> {
        let mut fields = Fields {
            bytes: header,
            at: 0,
        };
        fields.tag(b"PK\x03\x04")?;
        fields.number(2)?;
        let (flags, method) = (fields.number(2)? as u16, fields.number(2)? as u16);
        fields.number(4)?;
        let crc = fields.number(4)?;
        let (packed, length) = (fields.number(4)?, fields.number(4)?);
        let (name_length, _) = (fields.number(2)?, fields.number(2)?);
        let is_name = name_length == self.name.len() as u64;
        let same_kind = method == self.method && (flags ^ self.flags) & UNREADABLE == 0;
        (is_name && same_kind && fields.take(name_length)? == self.name.as_bytes()).then_some(())?;
        let mut large = Large::find(extra);
        let sizes = (large.number(length)?, large.number(packed)?);
        let are_behind = flags & SIZES_BEHIND != 0 && crc == 0 && sizes == (0, 0);
        let are_same = sizes == (self.length, self.packed) && crc == u64::from(self.crc);
        (are_behind || are_same).then_some(())
    }
}

/// The part of an extra field that contains 64-bit numbers.
struct Large<'b>(Fields<'b>);

impl<'b> Large<'b> {
    fn find(extra: &'b [u8]) -> Self {
        let mut fields = Fields {
            bytes: extra,
            at: 0,
        };
        let mut next = || {
            let (id, length) = (fields.number(2)?, fields.number(2)?);
            Some((id, fields.take(length)?))
        };
        while let Some((id, bytes)) = next() {
            if id == 1 {
                return Self(Fields { bytes, at: 0 });
            }
        }
        Self(Fields { bytes: &[], at: 0 })
    }

    /// Returns the number from the header, or the next number here if the header refers to this
    /// field.
    fn number(&mut self, short: u64) -> Option<u64> {
        match short {
            ELSEWHERE => self.0.number(8),
            here => Some(here),
        }
    }
}

struct Fields<'b> {
    bytes: &'b [u8],
    at: usize,
}

impl<'b> Fields<'b> {
    fn take(&mut self, length: u64) -> Option<&'b [u8]> {
        let bytes = self
            .bytes
            .get(self.at..)?
            .get(..usize::try_from(length).ok()?)?;
        self.at += bytes.len();
        Some(bytes)
    }

    fn tag(&mut self, tag: &[u8; 4]) -> Option<()> {
        (self.take(4)? == tag).then_some(())
    }

    /// Reads a little-endian number of at most 8 bytes.
    fn number(&mut self, length: u64) -> Option<u64> {
        let bytes = self.take(length)?;
        Some(
            bytes
                .iter()
                .rev()
                .fold(0, |number, &byte| number << 8 | u64::from(byte)),
        )
    }
}

fn wrong(problem: String) -> Problem {
    Problem::File(problem)
}
