//! Reads the tensors of an ONNX file: their names, their sizes and the places of their values.

use std::{
    fs::{self, File},
    io::{BufReader, Error as IoError, ErrorKind, Read, Seek},
    path::{Component, Path},
    sync::Arc,
};

use prost::Message;
use sd_text::outside::{self, printable};

use super::{
    Data, Initializer, OnnxFile,
    reader::{Problem, Reader, described},
    type_name,
};
use crate::{
    Error,
    exported::wire::{Value, Wire},
    graph::proto,
    weights::{Sizes, Type},
};

/// The length, in bytes, from which on weights stay in the file. ONNX Runtime expects shorter
/// tensors, such as shapes, in the graph.
const LEAST_EXTERNAL: u64 = 1024;
/// The largest number of dimensions of a tensor.
const MOST_DIMENSIONS: usize = 64;

impl OnnxFile {
    /// Returns the number, sizes and types of the initializers.
    pub fn sizes(&self) -> Sizes {
        let mut sizes = Sizes::default();
        for initializer in &self.initializers {
            let sides = initializer.dims.iter().map(|&side| side as u64);
            let numbers = sides.fold(1, u64::saturating_mul);
            let stored = match &initializer.data {
                Data::Inline(message) => message.len() as u64,
                Data::At { length, .. } => length.unwrap_or_default(),
            };
            // The encoded numbers can be longer than the numbers in memory, so the type's size is
            // preferred.
            let bytes = type_size(initializer.data_type).map(|size| numbers.saturating_mul(size));
            sizes.tensors += 1;
            sizes.parameters = sizes.parameters.saturating_add(numbers);
            sizes.bytes = sizes.bytes.saturating_add(bytes.unwrap_or(stored));
            let name = short_name(initializer.data_type);
            *sizes.types.entry(name).or_default() += 1;
        }
        sizes
    }
}

impl Reader<'_> {
    /// Reads an initializer of `length` bytes.
    pub fn initializer(
        &mut self,
        wire: &mut Wire<BufReader<File>>,
        length: u64,
    ) -> Result<Initializer, Problem> {
        let start = wire.at();
        let head = tensor(wire, start + length)?;
        let wrong = |problem: &str| {
            let name = printable(&head.name);
            Error::graph(self.path, format!("initializer `{name}`: {problem}"))
        };
        if head.dims.iter().any(|&side| side < 0) {
            return Err(wrong("a negative size").into());
        }
        let mut sides = head.dims.iter().map(|&side| side as u64);
        let bytes = match type_size(head.data_type) {
            Some(size) => {
                let bytes = sides.try_fold(size, |all, side: u64| all.checked_mul(side));
                Some(bytes.ok_or_else(|| wrong("more elements than memory can have"))?)
            }
            None => None,
        };
        let data = if head.is_external {
            self.external(&head, bytes)?
        } else {
            match head.raw {
                Some((_, length)) if bytes.is_some_and(|bytes| bytes != length) => {
                    let problem = format!(
                        "{length} bytes of data, expected {} for {:?}",
                        bytes.unwrap_or_default(),
                        head.dims
                    );
                    return Err(wrong(&problem).into());
                }
                Some((offset, length)) if length >= LEAST_EXTERNAL => Data::At {
                    file: self.real.clone(),
                    offset,
                    length: Some(length),
                },
                _ => {
                    wire.go_to(start)?;
                    Data::Inline(wire.bytes(length)?)
                }
            }
        };
        Ok(Initializer {
            name: head.name,
            dims: head.dims,
            data_type: head.data_type,
            data,
        })
    }

    /// Finds the file beside the graph that holds a tensor.
    fn external(&mut self, head: &Head, bytes: Option<u64>) -> Result<Data, Error> {
        let name = printable(&head.name);
        let wrong =
            |problem: String| Error::graph(self.path, format!("initializer `{name}`: {problem}"));
        let entry = |key: &str| {
            let pair = head.external.iter().find(|pair| pair.key == key);
            pair.map(|pair| pair.value.as_str())
        };
        let number = |key: &str| match entry(key) {
            None => Ok(None),
            Some(text) => text.parse::<u64>().map(Some).map_err(|_| {
                wrong(format!(
                    "the {key} of its data is {:?}, expected a number",
                    printable(text)
                ))
            }),
        };
        let location = entry("location").unwrap_or_default();
        let (offset, length) = (number("offset")?.unwrap_or(0), number("length")?);
        let (file, all) = match self.data_files.get(location) {
            Some(known) => known.clone(),
            None => {
                let found = data_file(self.path, location).map_err(wrong)?;
                self.data_files.insert(location.to_owned(), found.clone());
                found
            }
        };
        let needed = match (length, bytes) {
            (Some(length), Some(bytes)) if length != bytes => {
                return Err(wrong(format!(
                    "{length} bytes of data, expected {bytes} for {:?}",
                    head.dims
                )));
            }
            (length, bytes) => length.or(bytes).unwrap_or(0),
        };
        if offset.checked_add(needed).is_none_or(|end| end > all) {
            return Err(wrong(format!(
                "its data is {needed} bytes from byte {offset} of `{}`, which has {all}",
                printable(location)
            )));
        }
        Ok(Data::At {
            file,
            offset,
            length: length.or(bytes),
        })
    }
}

/// Returns the path and the length of a file that holds data of the graph at `graph`. The error
/// says what is wrong with the location.
fn data_file(graph: &Path, location: &str) -> Result<(Arc<Path>, u64), String> {
    let shown = printable(location);
    let leads_out = |part: Component<'_>| !matches!(part, Component::Normal(_) | Component::CurDir);
    if location.is_empty()
        || location.contains("_ORT_MEM_ADDR_")
        || Path::new(location).components().any(leads_out)
    {
        return Err(format!(
            "its data lies at `{shown}`, expected a file in the folder of the graph"
        ));
    }
    let folder = graph.parent().unwrap_or(Path::new(""));
    let path = folder.join(location);
    let opened = outside::open_binary(&path).and_then(|file| {
        let length = file.metadata()?.len();
        Ok((fs::canonicalize(&path)?.into(), length))
    });
    opened.map_err(|error| format!("its data lies in `{shown}`, which cannot be read: {error}"))
}

/// A tensor without its values.
#[derive(Debug, Default)]
pub(super) struct Head {
    name: String,
    dims: Vec<i64>,
    data_type: i32,
    is_external: bool,
    external: Vec<proto::StringPair>,
    /// Offset and length of its raw data, in bytes.
    raw: Option<(u64, u64)>,
}

/// Reads a tensor, which ends at byte `end`, without its values.
pub(super) fn tensor<R: Read + Seek>(wire: &mut Wire<R>, end: u64) -> Result<Head, Problem> {
    let mut head = Head::default();
    while let Some(field) = wire.field(end)? {
        match (field.number, field.value) {
            (1, Value::Varint(side)) => head.dims.push(side as i64),
            (1, Value::Bytes(length)) => {
                let end = wire.at() + length;
                while wire.at() < end && head.dims.len() <= MOST_DIMENSIONS {
                    head.dims.push(wire.varint(end)? as i64);
                }
            }
            (2, Value::Varint(data_type)) => head.data_type = data_type as i32,
            (8, Value::Bytes(length)) => head.name = wire.text(length)?,
            (9, Value::Bytes(length)) => {
                head.raw = Some((wire.at(), length));
                wire.skip(length)?;
            }
            (13, Value::Bytes(length)) => {
                let pair = proto::StringPair::decode(&described(wire, length)?[..])?;
                head.external.push(pair);
            }
            (14, Value::Varint(location)) => {
                head.is_external = location == proto::DataLocation::External as u64;
            }
            (_, Value::Bytes(length)) => wire.skip(length)?,
            _ => {}
        }
        if head.dims.len() > MOST_DIMENSIONS || head.external.len() > MOST_DIMENSIONS {
            return Err(wire
                .wrong("more dimensions or data entries than any tensor has")
                .into());
        }
    }
    Ok(head)
}

/// Refuses a tensor with values in another file, in places where that is not supported.
pub(super) fn inline(head: Head) -> Result<(), Problem> {
    if head.is_external {
        let name = printable(head.name);
        let problem = format!("tensor `{name}` of an attribute has its data in another file");
        return Err(IoError::new(ErrorKind::InvalidData, problem).into());
    }
    Ok(())
}

/// Returns the size of an element in bytes, or `None` for strings, for numbers of less than a byte,
/// and for unknown types.
pub(super) fn type_size(data_type: i32) -> Option<u64> {
    Some(match data_type {
        2 | 3 | 9 | 17..=20 | 24 => 1,
        4 | 5 | 10 | 16 => 2,
        1 | 6 | 12 => 4,
        7 | 11 | 13 | 14 => 8,
        15 => 16,
        _ => return None,
    })
}

/// Returns the name of an element type in weight files, such as `F32`.
fn short_name(data_type: i32) -> String {
    let known = match data_type {
        1 => Type::F32,
        2 => Type::U8,
        3 => Type::I8,
        4 => Type::U16,
        5 => Type::I16,
        6 => Type::I32,
        7 => Type::I64,
        9 => Type::BOOL,
        10 => Type::F16,
        11 => Type::F64,
        12 => Type::U32,
        13 => Type::U64,
        14 => Type::C64,
        16 => Type::BF16,
        17 => Type::F8_E4M3,
        18 => Type::F8_E4M3FNUZ,
        19 => Type::F8_E5M2,
        20 => Type::F8_E5M2FNUZ,
        24 => Type::F8_E8M0,
        _ => return type_name(data_type),
    };
    known.to_string()
}
