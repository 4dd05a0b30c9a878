//! The legacy format of `torch.save`, used before torch 1.6 and on request today.
//!
//! Five pickles follow one another: a magic number, the format's version, a description of the
//! machine, the object, and the names of its storages. The bytes of the storages follow in the
//! order of their names.

use std::collections::HashMap;

use super::MOST_PICKLE;
use super::archive::Stored;
use super::contents::{self, Contents, Form};
use super::error::Problem;
use super::machine::{Cell, Machine, Run};
use super::source::Source;
use super::tensor::bytes_of;
use super::value::Value;

/// torch's magic number at the start of a pickle of protocol 2 or later, after the protocol.
pub(super) const MAGIC_BYTES: &[u8] = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";
/// torch's magic number in a pickle of protocol 0 or 1.
pub(super) const MAGIC_LINE: &[u8] = b"L119547037146038801333356L\n";
/// The two forms in which the magic number is read.
const MAGIC: [&str; 2] = ["0x1950a86a20f9469cfc6c", "119547037146038801333356"];
const VERSION: i64 = 1001;
/// The name of the pickles in errors.
const PICKLE: &str = "the file";

/// Runs the pickles and locates the storages by their names.
pub(super) fn read(source: &Source) -> Result<Contents, Problem> {
    let bytes = source.read(0, source.length.min(MOST_PICKLE))?;
    let run = |start| {
        let run = Machine::new(&bytes, start).run();
        run.map_err(|fault| fault.into_problem(PICKLE))
    };
    let wrong = |byte, problem: &str| at(byte, problem.to_owned());

    let magic = run(0)?;
    let is_magic = match magic.root() {
        Cell::Value(Value::Long(number)) => MAGIC.contains(&number.as_str()),
        _ => false,
    };
    if !is_magic {
        let problem =
            "a pickle, but not from `torch.save`: it does not begin with torch's magic number";
        return Err(wrong(0, problem));
    }
    let version = run(magic.end)?;
    if !matches!(version.root(), Cell::Value(Value::Int(VERSION))) {
        return Err(wrong(
            magic.end,
            "a version of torch's format other than 1001",
        ));
    }
    let machine = run(version.end)?;
    if !machine.is_little_endian() {
        let problem = "expected a file from a little-endian machine (`little_endian`)";
        return Err(wrong(version.end, problem));
    }
    let object = run(machine.end)?;
    let names = run(object.end)?;
    let stored = storages(source, &object, &names, object.end)?;
    let find = |key: &str| stored.get(key);
    contents::of(
        object,
        find,
        Form {
            big_endian: false,
            length: source.length,
            pickle: PICKLE,
        },
    )
}

/// Locates the storages in the order of the list `names`, by the lengths and types that they have
/// in `object`. `names_at` is the byte at which the list begins.
fn storages(
    source: &Source,
    object: &Run,
    names: &Run,
    names_at: usize,
) -> Result<HashMap<String, Stored>, Problem> {
    let wrong = |problem: &str| at(names_at, problem.to_owned());
    let known = lengths(object)?;
    let Cell::Value(Value::List(keys)) = names.root() else {
        return Err(wrong("expected the list of the storages' names"));
    };
    let mut stored = HashMap::new();
    let mut place = names.end as u64;
    for &key in keys {
        let key = names.text(key);
        let &(length, size) = known
            .get(key)
            .ok_or_else(|| wrong("the list of storages names one that no tensor uses"))?;
        let entry = storage(source, place, length, size)?;
        place = entry.offset + length;
        if stored.insert(key.to_owned(), entry).is_some() {
            return Err(wrong("the list of storages names one twice"));
        }
    }
    if place != source.length {
        let problem = format!(
            "{} bytes after the last storage: several objects in one file are not supported",
            source.length - place
        );
        return Err(Problem::File(problem));
    }
    Ok(stored)
}

/// Returns the length of each storage and the size of its numbers by its name, both in bytes.
fn lengths(object: &Run) -> Result<HashMap<&str, (u64, u64)>, Problem> {
    let mut known = HashMap::new();
    for storage in &object.storages {
        let size = storage.dtype.map_or(1, bytes_of);
        let found = (storage.length, size);
        if *known.entry(object.text(storage.key)).or_insert(found) != found {
            let problem = "a storage that was named before with another length or type";
            return Err(at(storage.at, problem.to_owned()));
        }
    }
    Ok(known)
}

/// Locates the storage at byte `place`, which begins with the count of its numbers. `length` is its
/// length and `size` is the size of a number, both in bytes.
fn storage(source: &Source, place: u64, length: u64, size: u64) -> Result<Stored, Problem> {
    let count = source.read(place, 8)?.try_into().map(u64::from_le_bytes);
    let count = count.expect("8 bytes were read");
    if count.checked_mul(size) != Some(length) {
        let expected = length / size;
        let problem = format!(
            "the storage at byte {place} has {count} numbers, expected {expected} as in its tensors"
        );
        return Err(Problem::File(problem));
    }
    let offset = place + 8;
    let end = offset.checked_add(length);
    if end.is_none_or(|end| end > source.length) {
        let problem = format!(
            "the storage at byte {offset} has {length} bytes, and the file ends at byte {}: it is \
             cut off",
            source.length
        );
        return Err(Problem::File(problem));
    }
    Ok(Stored {
        offset,
        packed: length,
        length,
        deflated: false,
        crc: None,
    })
}

impl Run {
    fn root(&self) -> &Cell {
        &self.cells[self.root.index()]
    }

    /// Whether this describes a little-endian machine.
    fn is_little_endian(&self) -> bool {
        let Cell::Value(Value::Dict(entries)) = self.root() else {
            return false;
        };
        entries.iter().any(|&(key, value)| {
            let value = &self.cells[value.index()];
            self.text(key) == "little_endian" && matches!(value, Cell::Value(Value::Bool(true)))
        })
    }
}

fn at(byte: usize, problem: String) -> Problem {
    Problem::Pickle {
        pickle: PICKLE.to_owned(),
        byte: byte as u64,
        problem,
    }
}
