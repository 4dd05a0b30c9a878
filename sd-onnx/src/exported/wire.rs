//! Reads Protocol Buffers field by field, from files of up to the largest size. Unneeded fields are
//! skipped without being read.

use std::io::{Error, ErrorKind, Read, Result, Seek};

/// A reader of messages that keeps track of the offset.
#[derive(Debug)]
pub(super) struct Wire<R> {
    from: R,
    at: u64,
}

/// A field: its number and its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Field {
    pub number: u64,
    pub value: Value,
}

/// The value of a small field, or the length of a longer one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Value {
    Varint(u64),
    /// Eight or four bytes, already read. No message here needs their meaning.
    Fixed64(u64),
    Fixed32(u32),
    /// The length in bytes of a string, bytes, a message or packed numbers, which begin at the
    /// current offset. They have not been read.
    Bytes(u64),
}

impl<R: Read + Seek> Wire<R> {
    /// Creates a reader for `from`, which is at byte `at` of the file.
    pub fn new(from: R, at: u64) -> Self {
        Self { from, at }
    }

    /// Returns the offset of the next byte.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// Reads the next field of a message that ends at byte `end`. Returns `None` at the end. The
    /// caller must read or skip the bytes of the field before the next call.
    pub fn field(&mut self, end: u64) -> Result<Option<Field>> {
        if self.at >= end {
            return Ok(None);
        }
        let key = self.varint(end)?;
        let value = match key & 7 {
            0 => Value::Varint(self.varint(end)?),
            1 => Value::Fixed64(u64::from_le_bytes(self.array(end)?)),
            2 => {
                let length = self.varint(end)?;
                if length > end - self.at {
                    let left = end - self.at;
                    return Err(self.wrong(format!(
                        "a field of {length} bytes, expected at most {left}, the rest of its \
                         message"
                    )));
                }
                Value::Bytes(length)
            }
            5 => Value::Fixed32(u32::from_le_bytes(self.array(end)?)),
            other => return Err(self.wrong(format!("a field of wire type {other}"))),
        };
        Ok(Some(Field {
            number: key >> 3,
            value,
        }))
    }

    /// Skips bytes.
    pub fn skip(&mut self, length: u64) -> Result<()> {
        let by = i64::try_from(length).map_err(|_| self.wrong("too long a field"))?;
        self.from.seek_relative(by)?;
        self.at += length;
        Ok(())
    }

    /// Seeks to a byte.
    pub fn go_to(&mut self, at: u64) -> Result<()> {
        self.from
            .seek_relative(at as i64 - self.at as i64)
            .inspect(|()| self.at = at)
    }

    /// Reads the bytes of a field. Their number must have been checked against the message.
    pub fn bytes(&mut self, length: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length as usize];
        self.from.read_exact(&mut bytes)?;
        self.at += length;
        Ok(bytes)
    }

    /// Reads a string.
    pub fn text(&mut self, length: u64) -> Result<String> {
        let at = self.at;
        String::from_utf8(self.bytes(length)?).map_err(|error| {
            let at = at + error.utf8_error().valid_up_to() as u64;
            invalid(format!("byte {at}: a name that is not UTF-8"))
        })
    }

    /// Reads a variable-length number.
    pub fn varint(&mut self, end: u64) -> Result<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let [byte] = self.array(end)?;
            number |= u64::from(byte & 127) << shift;
            if byte < 128 {
                return Ok(number);
            }
        }
        Err(self.wrong("a number of more than ten bytes"))
    }

    /// Returns an error about the bytes that were read last.
    pub fn wrong(&self, problem: impl std::fmt::Display) -> Error {
        invalid(format!("byte {}: {problem}", self.at))
    }

    fn array<const N: usize>(&mut self, end: u64) -> Result<[u8; N]> {
        if end - self.at < N as u64 {
            return Err(self.wrong("the message ends within a number"));
        }
        let mut bytes = [0; N];
        self.from.read_exact(&mut bytes)?;
        self.at += N as u64;
        Ok(bytes)
    }
}

/// Appends a length-delimited field to a message.
pub(super) fn put(to: &mut Vec<u8>, number: u64, bytes: &[u8]) {
    prost::encoding::encode_varint(number << 3 | 2, to);
    prost::encoding::encode_varint(bytes.len() as u64, to);
    to.extend_from_slice(bytes);
}

/// Appends a field to a message. `value` has been read from `wire`, but not the bytes after it.
pub(super) fn keep<R: Read + Seek>(
    wire: &mut Wire<R>,
    number: u64,
    value: Value,
    to: &mut Vec<u8>,
) -> Result<()> {
    match value {
        Value::Varint(value) => {
            prost::encoding::encode_varint(number << 3, to);
            prost::encoding::encode_varint(value, to);
        }
        Value::Fixed64(value) => {
            prost::encoding::encode_varint(number << 3 | 1, to);
            to.extend_from_slice(&value.to_le_bytes());
        }
        Value::Fixed32(value) => {
            prost::encoding::encode_varint(number << 3 | 5, to);
            to.extend_from_slice(&value.to_le_bytes());
        }
        Value::Bytes(length) => put(to, number, &wire.bytes(length)?),
    }
    Ok(())
}

fn invalid(problem: String) -> Error {
    Error::new(ErrorKind::InvalidData, problem)
}

#[cfg(test)]
// A failed `unwrap` fails the test.
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn fields(bytes: &[u8]) -> Result<Vec<(u64, Value)>> {
        let end = bytes.len() as u64;
        let mut wire = Wire::new(Cursor::new(bytes), 0);
        let mut found = Vec::new();
        while let Some(field) = wire.field(end)? {
            if let Value::Bytes(length) = field.value {
                wire.skip(length)?;
            }
            found.push((field.number, field.value));
        }
        Ok(found)
    }

    #[test]
    fn fields_of_every_kind() {
        let bytes = [
            &[0x08, 0x96, 0x01][..],
            &[0x12, 2, 7, 7],
            &[0x1d, 1, 0, 0, 0],
            &[0x21, 2, 0, 0, 0, 0, 0, 0, 0],
        ];
        let expected = [
            (1, Value::Varint(150)),
            (2, Value::Bytes(2)),
            (3, Value::Fixed32(1)),
            (4, Value::Fixed64(2)),
        ];
        assert_eq!(fields(&bytes.concat()).unwrap(), expected);
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for (bytes, problem) in [
            (&[0x08][..], "byte 1: the message ends within a number"),
            (
                &[0x12, 3, 0, 0],
                "byte 2: a field of 3 bytes, expected at most 2",
            ),
            (&[0x0b], "byte 1: a field of wire type 3"),
            (
                &[0x08, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1],
                "more than ten bytes",
            ),
            (&[0x1d, 0], "the message ends within a number"),
        ] {
            let error = fields(bytes).unwrap_err().to_string();
            assert!(error.contains(problem), "{bytes:?}: {error}");
        }
    }
}
