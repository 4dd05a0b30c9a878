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

fn storages(
    source: &Source,
    object: &Run,
    names: &Run,
    names_at: usize,
) -> Result<HashMap<String, Stored>, Problem> {
    let mut known = HashMap::new();
    for storage in &object.storages {
        let size = storage.dtype.map_or(1, bytes_of);
        let found = (storage.length, size);
        if *known.entry(object.text(storage.key)).or_insert(found) != found {
            let problem = "a storage that was named before with another length or type";
            return Err(at(storage.at, problem.to_owned()));
        }
    }
    let Cell::Value(Value::List(keys)) = names.root() else {
        return Err(at(
            names_at,
            "expected the list of the storages' names".to_owned(),
        ));
    };
    let mut stored = HashMap::new();
    let mut place = names.end as u64;
    for &key in keys {
        let key = names.text(key);
        let &(length, size) = known.get(key).ok_or_else(|| {
            at(
                names_at,
                "the list of storages names one that no tensor uses".to_owned(),
            )
        })?;
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
        place = offset.checked_add(length).filter(|&end| end <= source.length).ok_or_else(|| {
            Problem::File(format!(
                "the storage at byte {offset} has {length} bytes, and the file ends at byte {}: \
                 it is cut off",
                source.length
            ))
        })?;
        let entry = Stored {
            offset,
            packed: length,
            length,
            deflated: false,
            crc: None,
        };
        if stored.insert(key.to_owned(), entry).is_some() {
            return Err(at(
                names_at,
                "the list of storages names one twice".to_owned(),
            ));
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
