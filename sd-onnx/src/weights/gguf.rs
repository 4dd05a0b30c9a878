//! Reads headers of GGUF files: the metadata and the places of the tensors.
//!
//! The format is llama.cpp's, version 2 or 3, little-endian. A header consists of counts, key-value
//! pairs and one entry per tensor. The data follows at the next multiple of the alignment.
//!
//! Files of diffusion models come from ComfyUI-GGUF's tools and from stable-diffusion.cpp.
//! ComfyUI-GGUF changes the shape of a tensor whose rows are not whole blocks, and stores the
//! original shape under the key `comfy.gguf.orig_shape.<tensor>`.

use std::{
    collections::{BTreeMap, HashSet},
    fs::File,
    io::{BufReader, Read},
    path::Path,
};

use sd_text::outside::{self, printable};

use super::{WeightFile, types::Type};
use crate::Error;

/// The first four bytes of a GGUF file.
pub(super) const MAGIC: &[u8; 4] = b"GGUF";

/// The longest header that is read, in bytes. A UNet's header has about 200 kB. Language models
/// have the longest headers, because these include the vocabulary.
const MOST_HEADER: u64 = 100_000_000;
/// The largest number of tensors. SDXL's UNet has 1680.
const MOST_TENSORS: u64 = 100_000;
/// The largest number of key-value pairs. A UNet has some hundred, one for each reshaped tensor.
const MOST_PAIRS: u64 = 100_000;
/// The largest number of dimensions of a tensor.
const MOST_DIMS: u32 = 8;
/// The largest alignment, in bytes. All known files have 32.
const MOST_ALIGNMENT: u64 = 1 << 20;
/// The longest array whose items are listed in the metadata.
const MOST_SHOWN: u64 = 16;
/// The prefix of the key that stores a tensor's original shape. The tensor's name follows.
const SHAPE_KEY: &str = "comfy.gguf.orig_shape.";

/// The contents of a GGUF header.
#[derive(Debug)]
pub(super) struct Header {
    /// The tensors, sorted by their places.
    pub tensors: Vec<Entry>,
    /// The key-value pairs as text. Long arrays appear only as their number of items.
    pub metadata: BTreeMap<String, String>,
}

/// A tensor and its place in the file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub name: String,
    pub dtype: Type,
    /// In torch's order, which is the reverse of GGUF's.
    pub shape: Vec<usize>,
    /// Bytes from the start of the file.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
}

/// Reads and checks the header of a GGUF file.
///
/// # Errors
/// - [`Error::Io`] when the file cannot be read.
/// - [`Error::Gguf`] when the header is malformed or the file is truncated.
pub(super) fn read_header(path: &Path) -> Result<Header, Error> {
    let file = outside::open_binary(path).map_err(Error::io(path))?;
    let length = file.metadata().map_err(Error::io(path))?.len();
    let mut reader = Reader {
        file: BufReader::new(file),
        at: 0,
        end: length.min(MOST_HEADER),
    };
    reader
        .header(length)
        .map_err(|Wrong { at, problem }| match problem {
            Problem::Io(source) => Error::io(path)(source),
            Problem::Text(problem) => Error::Gguf {
                path: path.to_path_buf(),
                problem: format!("byte {at}: {problem}"),
            },
        })
}

/// The architectures whose networks are known. `pig` and `cow` come from a tool that does not say
/// which network it wrote. stable-diffusion.cpp writes no architecture at all.
const ARCHITECTURES: [&str; 4] = ["sd1", "sdxl", "pig", "cow"];

/// Refuses the weights of other networks, judged by the architecture that the file names.
pub(super) fn check_architecture(file: &WeightFile) -> Result<(), Error> {
    match file.metadata.get("general.architecture") {
        Some(found) if !ARCHITECTURES.contains(&found.as_str()) => Err(Error::Gguf {
            path: file.path.clone(),
            problem: format!(
                "its architecture is `{}`, expected `sd1` or `sdxl`",
                printable(found)
            ),
        }),
        _ => Ok(()),
    }
}

/// A problem, and the byte offset at which it was found.
struct Wrong {
    at: u64,
    problem: Problem,
}

enum Problem {
    Io(std::io::Error),
    Text(String),
}

struct Reader {
    file: BufReader<File>,
    /// The offset of the next byte.
    at: u64,
    /// The offset at which the header must have ended.
    end: u64,
}

/// The value of a key.
enum Item {
    Text(String),
    Number(String),
    Numbers(Vec<String>),
    /// An array that is too long or has items other than numbers. Only the number of items is kept.
    Long(u64),
}

impl Reader {
    fn header(&mut self, length: u64) -> Result<Header, Wrong> {
        if &self.bytes::<4>()? != MAGIC {
            return Err(self.wrong("expected `GGUF`"));
        }
        let version = self.u32()?;
        if !matches!(version, 2 | 3) {
            let swapped = version.swap_bytes();
            return Err(self.wrong(match swapped {
                2 | 3 => "the file is big-endian, which is not supported".to_owned(),
                _ => format!("version {version}, expected 2 or 3"),
            }));
        }
        let tensors = self.count("tensors", MOST_TENSORS)?;
        let pairs = self.count("key-value pairs", MOST_PAIRS)?;
        let mut metadata = BTreeMap::new();
        let mut shapes = BTreeMap::new();
        let mut alignment = 32;
        for _ in 0..pairs {
            let key = self.text()?;
            let kind = self.u32()?;
            let item = self.item(kind)?;
            if let Some(tensor) = key.strip_prefix(SHAPE_KEY) {
                let shape = self.shape_of(item)?;
                if shapes.insert(tensor.to_owned(), shape).is_some() {
                    return Err(self.twice(&key));
                }
                continue;
            }
            if key == "general.alignment" {
                alignment = self.alignment(&item)?;
            }
            if metadata.contains_key(&key) {
                return Err(self.twice(&key));
            }
            metadata.insert(key, item.text());
        }
        let mut entries = Vec::new();
        let mut names = HashSet::new();
        for _ in 0..tensors {
            let entry = self.entry(&mut shapes)?;
            if !names.insert(entry.name.clone()) {
                let name = printable(&entry.name);
                return Err(self.wrong(format!("tensor `{name}` is there twice")));
            }
            entries.push(entry);
        }
        if let Some(tensor) = shapes.keys().next() {
            let key = printable(format_args!("{SHAPE_KEY}{tensor}"));
            return Err(self.wrong(format!("the key `{key}` belongs to no tensor of the file")));
        }
        self.place(&mut entries, alignment, length)?;
        Ok(Header {
            tensors: entries,
            metadata,
        })
    }

    /// Reads the entry of a tensor. Its offset is still relative to the start of the data.
    fn entry(&mut self, shapes: &mut BTreeMap<String, Vec<usize>>) -> Result<Entry, Wrong> {
        let name = self.text()?;
        let named = |problem: String| format!("tensor `{}`: {problem}", printable(&name));
        let dims = self.u32()?;
        if dims > MOST_DIMS {
            return Err(self.wrong(named(format!(
                "{dims} dimensions, expected at most {MOST_DIMS}"
            ))));
        }
        let mut stored = Vec::new();
        for _ in 0..dims {
            let side = self.u64()?;
            let Ok(side) = usize::try_from(side) else {
                return Err(self.wrong(named(format!("a side of {side}"))));
            };
            stored.push(side);
        }
        stored.reverse();
        let number = self.u32()?;
        let Some(dtype) = Type::of_gguf(number) else {
            return Err(self.wrong(named(format!("unknown type {number}"))));
        };
        let length = dtype.length(&stored);
        let shape = shapes.remove(&name).unwrap_or_else(|| stored.clone());
        // Both shapes must hold the same numbers.
        let Some(length) = length.filter(|_| dtype.length(&shape) == length) else {
            let [stored, shape] = [stored, shape].map(|shape| printable(format_args!("{shape:?}")));
            return Err(self.wrong(named(format!(
                "its stored shape {stored} and its original shape {shape} are not the same whole \
                 number of blocks of {dtype}"
            ))));
        };
        let offset = self.u64()?;
        Ok(Entry {
            name,
            dtype,
            shape,
            offset,
            length: length as u64,
        })
    }

    /// Turns offsets in the data into offsets in the file and sorts the tensors by them. Checks
    /// that the tensors lie in the file, are aligned and do not overlap.
    fn place(&self, entries: &mut [Entry], alignment: u64, length: u64) -> Result<(), Wrong> {
        let start = self.at.next_multiple_of(alignment);
        entries.sort_by_key(|entry| (entry.offset, entry.length));
        let mut last = start;
        for entry in entries {
            let name = printable(&entry.name);
            let offset = start.checked_add(entry.offset);
            let end = offset.and_then(|offset| offset.checked_add(entry.length));
            let (Some(offset), Some(end)) = (offset, end.filter(|&end| end <= length)) else {
                return Err(self.wrong(format!(
                    "the data of tensor `{name}`, {} bytes from byte {} of the data on, extends past \
                     the end of the file, which has {length} bytes: the file is truncated",
                    entry.length, entry.offset
                )));
            };
            if offset < last {
                return Err(self.wrong(format!(
                    "the data of tensor `{name}` overlaps another tensor's"
                )));
            }
            if !entry.offset.is_multiple_of(alignment) {
                return Err(self.wrong(format!(
                    "the data of tensor `{name}` begins at byte {} of the data, which is not a \
                     multiple of the alignment {alignment}",
                    entry.offset
                )));
            }
            entry.offset = offset;
            last = end;
        }
        Ok(())
    }

    /// Reads the value of a key.
    fn item(&mut self, kind: u32) -> Result<Item, Wrong> {
        match kind {
            8 => Ok(Item::Text(self.text()?)),
            9 => self.array(),
            _ => Ok(Item::Number(self.number(kind)?)),
        }
    }

    fn array(&mut self) -> Result<Item, Wrong> {
        let kind = self.u32()?;
        let count = self.u64()?;
        let width = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            8 => {
                // Each text takes at least the 8 bytes of its length, so the header's limit bounds
                // the loop.
                for _ in 0..count {
                    let length = self.u64()?;
                    self.skip(length)?;
                }
                return Ok(Item::Long(count));
            }
            _ => return Err(self.wrong(format!("an array of kind {kind}, which is not supported"))),
        };
        if count <= MOST_SHOWN {
            let numbers = (0..count).map(|_| self.number(kind));
            return Ok(Item::Numbers(numbers.collect::<Result<_, _>>()?));
        }
        self.skip(count.saturating_mul(width))?;
        Ok(Item::Long(count))
    }

    /// Reads a number or boolean and returns it as text.
    fn number(&mut self, kind: u32) -> Result<String, Wrong> {
        Ok(match kind {
            0 => u8::from_le_bytes(self.bytes()?).to_string(),
            1 => i8::from_le_bytes(self.bytes()?).to_string(),
            2 => u16::from_le_bytes(self.bytes()?).to_string(),
            3 => i16::from_le_bytes(self.bytes()?).to_string(),
            4 => self.u32()?.to_string(),
            5 => i32::from_le_bytes(self.bytes()?).to_string(),
            6 => f32::from_le_bytes(self.bytes()?).to_string(),
            7 => (self.bytes()? != [0u8]).to_string(),
            10 => self.u64()?.to_string(),
            11 => i64::from_le_bytes(self.bytes()?).to_string(),
            12 => f64::from_le_bytes(self.bytes()?).to_string(),
            _ => return Err(self.wrong(format!("a value of kind {kind}, expected 0 to 12"))),
        })
    }

    /// Returns the shape that a tensor had before it was stored in another shape.
    fn shape_of(&self, item: Item) -> Result<Vec<usize>, Wrong> {
        let shape = match &item {
            Item::Numbers(sides) => sides.iter().map(|side| side.parse().ok()).collect(),
            _ => None,
        };
        shape.ok_or_else(|| {
            let found = printable(item.text());
            self.wrong(format!(
                "the original shape of a tensor is {found}, expected a list of sizes"
            ))
        })
    }

    fn alignment(&self, item: &Item) -> Result<u64, Wrong> {
        let alignment = match item {
            Item::Number(number) => number.parse().ok(),
            _ => None,
        };
        alignment
            .filter(|&n: &u64| n.is_power_of_two() && n <= MOST_ALIGNMENT)
            .ok_or_else(|| self.wrong("the alignment is not a power of two up to 2²⁰"))
    }

    fn count(&mut self, what: &str, most: u64) -> Result<u64, Wrong> {
        let count = self.u64()?;
        match count <= most {
            true => Ok(count),
            false => Err(self.wrong(format!("{count} {what}, expected at most {most}"))),
        }
    }

    fn text(&mut self) -> Result<String, Wrong> {
        let length = self.u64()?;
        let mut bytes = Vec::new();
        self.reserve(length)?;
        // The buffer grows with the bytes that are read, not with the length that the file claims.
        let read = self.file.by_ref().take(length).read_to_end(&mut bytes);
        read.map_err(|error| self.io(error))?;
        if (bytes.len() as u64) < length {
            return Err(self.io(std::io::ErrorKind::UnexpectedEof.into()));
        }
        self.at += length;
        String::from_utf8(bytes).map_err(|_| self.wrong("a text that is not UTF-8"))
    }

    fn skip(&mut self, length: u64) -> Result<(), Wrong> {
        self.reserve(length)?;
        self.file
            .seek_relative(length as i64)
            .map_err(|error| self.io(error))?;
        self.at += length;
        Ok(())
    }

    fn u32(&mut self) -> Result<u32, Wrong> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Wrong> {
        self.bytes().map(u64::from_le_bytes)
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], Wrong> {
        self.reserve(N as u64)?;
        let mut bytes = [0; N];
        self.file
            .read_exact(&mut bytes)
            .map_err(|error| self.io(error))?;
        self.at += N as u64;
        Ok(bytes)
    }

    /// Checks that the header can have this many more bytes.
    fn reserve(&self, length: u64) -> Result<(), Wrong> {
        match self.at.checked_add(length).is_some_and(|at| at <= self.end) {
            true => Ok(()),
            false => Err(self.wrong(format!(
                "the header claims {length} more bytes, but must end by byte {}",
                self.end
            ))),
        }
    }

    fn twice(&self, key: &str) -> Wrong {
        self.wrong(format!("the key `{}` is there twice", printable(key)))
    }

    fn wrong(&self, problem: impl Into<String>) -> Wrong {
        Wrong {
            at: self.at,
            problem: Problem::Text(problem.into()),
        }
    }

    fn io(&self, error: std::io::Error) -> Wrong {
        Wrong {
            at: self.at,
            problem: Problem::Io(error),
        }
    }
}

impl Item {
    fn text(&self) -> String {
        match self {
            Self::Text(text) | Self::Number(text) => text.clone(),
            Self::Numbers(numbers) => format!("[{}]", numbers.join(", ")),
            Self::Long(count) => format!("[{count} items]"),
        }
    }
}

#[cfg(test)]
// A failed `unwrap` fails the test.
#[allow(clippy::unwrap_used)]
mod tests {
    use std::{fs, path::PathBuf};

    use safetensors::SafeTensors;

    use super::*;
    use crate::weights::Weights;

    fn golden(file: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/golden")
            .join(file)
    }

    /// Returns the error for a file with these bytes.
    fn error_of(bytes: &[u8]) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        fs::write(&path, bytes).unwrap();
        read_header(&path).unwrap_err().to_string()
    }

    /// Returns the golden file, with the only occurrence of the bytes `from` replaced by `to`.
    fn changed(from: &[u8], to: &[u8]) -> Vec<u8> {
        let mut bytes = fs::read(golden("number_types.gguf")).unwrap();
        let at = |bytes: &[u8]| bytes.windows(from.len()).position(|window| window == from);
        let first = at(&bytes).expect("the bytes are there");
        assert!(
            at(&bytes[first + 1..]).is_none(),
            "the bytes are there once"
        );
        bytes.splice(first..first + from.len(), to.iter().copied());
        bytes
    }

    /// Encodes a text as the file stores it, with its length first.
    fn text(text: &str) -> Vec<u8> {
        let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
        bytes.extend(text.as_bytes());
        bytes
    }

    #[test]
    fn a_file_of_gguf_py_is_read() {
        let file = WeightFile::open(&golden("number_types.gguf")).unwrap();
        let metadata = |key: &str| file.metadata[key].as_str();
        assert_eq!(metadata("general.architecture"), "sd1");
        assert_eq!(metadata("general.file_type"), "1");
        let expected = fs::read(golden("number_types.safetensors")).unwrap();
        let expected = SafeTensors::deserialize(&expected).unwrap();
        let types = ["F32", "Q4_K", "F16", "Q8_0", "BF16"];
        assert_eq!(file.tensors.len(), types.len());
        for (stored, dtype) in file.tensors.iter().zip(types) {
            let expected = expected.tensor(&format!("gguf.{}", stored.name)).unwrap();
            assert_eq!(stored.dtype.to_string(), dtype);
            assert_eq!(stored.shape, expected.shape(), "{}", stored.name);
            let source = stored.source();
            assert_eq!(*source.widened().unwrap(), *expected.data());
            let values = source.values().unwrap();
            let values: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            assert_eq!(values, expected.data());
        }
    }

    #[test]
    fn weights_of_another_network_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        fs::write(&path, changed(&text("sd1"), &text("flu"))).unwrap();
        let file = WeightFile::open(&path).unwrap();
        assert_eq!(file.metadata["general.architecture"], "flu");
        let error = Weights::open(&path).unwrap_err().to_string();
        assert!(error.contains("its architecture is `flu`"), "{error}");
    }

    #[test]
    fn lies_of_a_header_are_errors() {
        let weight = text("out.2.weight");
        let entry = |dims: &[u64], kind: u32, offset: u64| {
            let mut bytes = weight.clone();
            bytes.extend((dims.len() as u32).to_le_bytes());
            bytes.extend(dims.iter().flat_map(|dim| dim.to_le_bytes()));
            bytes.extend(kind.to_le_bytes());
            bytes.extend(offset.to_le_bytes());
            bytes
        };
        // The entry in the file. Its data follows 20 numbers in F32, padded to 96 bytes, 2880 bytes
        // of Q4_K and 64 bytes of F16.
        let honest = entry(&[64, 3], 8, 96 + 2880 + 64);
        let shape_key = "comfy.gguf.orig_shape.input_blocks.0.0.weight";
        let sides = |sides: [i32; 2]| {
            let mut bytes = text(shape_key);
            bytes.extend([9u32, 5].iter().flat_map(|n| n.to_le_bytes()));
            bytes.extend(2u64.to_le_bytes());
            bytes.extend(sides.iter().flat_map(|n| n.to_le_bytes()));
            bytes
        };
        let number = |key: &str, value: u32| {
            let mut bytes = text(key);
            bytes.extend([4, value].iter().flat_map(|n: &u32| n.to_le_bytes()));
            bytes
        };
        let counts = |tensors: u64, pairs: u64| {
            let mut bytes = 3u32.to_le_bytes().to_vec();
            bytes.extend(tensors.to_le_bytes());
            bytes.extend(pairs.to_le_bytes());
            bytes
        };
        for (from, to, expected) in [
            (&honest, &entry(&[64, 3], 99, 3040), "unknown type 99"),
            (
                &honest,
                &entry(&[63, 3], 8, 3040),
                "number of blocks of Q8_0",
            ),
            (
                &honest,
                &entry(&[u64::MAX, 3], 8, 3040),
                "number of blocks of Q8_0",
            ),
            (&honest, &entry(&[64, 1 << 20], 8, 3040), "past the end"),
            (&honest, &entry(&[64, 3], 8, u64::MAX - 31), "past the end"),
            (
                &honest,
                &entry(&[64, 3], 8, 3041),
                "multiple of the alignment",
            ),
            (&honest, &entry(&[64, 3], 8, 32), "overlaps"),
            (&honest, &entry(&[1; 9], 8, 3040), "9 dimensions"),
            (
                &sides([32, 160]),
                &sides([32, 161]),
                "original shape [32, 161]",
            ),
            (
                &sides([32, 160]),
                &sides([-32, -160]),
                "expected a list of sizes",
            ),
            (
                &text(shape_key),
                &text(&shape_key.replace(".0.0.", ".0.1.")),
                "belongs to no tensor",
            ),
            (
                &number("general.file_type", 1),
                &number("general.alignment", 3),
                "not a power of two",
            ),
            (
                &text("general.file_type"),
                &text("general.architecture"),
                "there twice",
            ),
            (
                &weight,
                &text("time_embed.0.weight"),
                "tensor `time_embed.0.weight` is there twice",
            ),
            (
                &counts(5, 4),
                &counts(u64::MAX, 4),
                "18446744073709551615 tensors",
            ),
            (
                &counts(5, 4),
                &counts(5, 1 << 40),
                "1099511627776 key-value pairs",
            ),
            (&counts(5, 4), &counts(6, 4), "byte"),
        ] {
            let bytes = changed(from, to);
            let error = error_of(&bytes);
            assert!(error.contains(expected), "{error}, expected {expected}");
            assert!(
                error.contains("model.gguf: not a usable GGUF file: byte"),
                "{error}"
            );
        }
        let version = |version: [u8; 4]| {
            changed(
                &[b"GGUF".as_slice(), &[3, 0, 0, 0]].concat(),
                &[b"GGUF".as_slice(), &version].concat(),
            )
        };
        assert!(error_of(&version([1, 0, 0, 0])).contains("version 1"));
        assert!(error_of(&version([0, 0, 0, 3])).contains("big-endian"));
    }

    #[test]
    fn no_change_of_a_header_is_a_panic() {
        let good = fs::read(golden("number_types.gguf")).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        let header = 600;
        // The last tensor is followed by 26 bytes of padding.
        for at in (0..header).chain([good.len() - 27]) {
            fs::write(&path, &good[..at]).unwrap();
            assert!(read_header(&path).is_err(), "cut at {at}");
        }
        let mut refused = 0;
        for at in 4..header {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut bytes = good.clone();
                bytes[at] = value;
                fs::write(&path, &bytes).unwrap();
                refused += usize::from(read_header(&path).is_err());
            }
        }
        assert!(refused > header, "{refused}");
    }
}
