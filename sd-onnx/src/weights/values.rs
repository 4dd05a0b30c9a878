//! Reads the numbers of stored tensors: of small ones that a program looks at, and of weights that
//! ONNX Runtime does not read as they are.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    num::NonZero,
    path::Path,
    sync::Arc,
    thread,
};

use half::bf16;
use sd_text::outside::{self, printable};

use super::{Place, Scale, decode::decode, types::Type};
use crate::Error;

/// The most numbers or bytes of a tensor that are read for a look. The largest such tensor is a
/// row of scales.
const MOST: usize = 1 << 20;

/// The numbers that one step decodes: 128 kB of f32, which stay in a core's cache.
const STEP: usize = 1 << 15;

/// A tensor whose numbers are read, and how errors call it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source<'a> {
    pub place: &'a Place,
    pub dtype: Type,
    pub shape: &'a [usize],
    /// The file as the user has it.
    pub file: &'a Path,
    /// The name in that file.
    pub name: &'a str,
}

impl Source<'_> {
    /// The numbers of a tensor of at most 2²⁰ of them, as f32.
    ///
    /// # Errors
    /// [`Error::TensorValues`] when it has more, or a type that is not decoded; [`Error::Io`] when
    /// the file can't be read.
    pub fn values(&self) -> Result<Vec<f32>, Error> {
        let count = self.count()?;
        if count > MOST {
            let problem = format!("has {count} numbers, expected at most {MOST}");
            return Err(self.wrong(problem));
        }
        let mut values = vec![0.0; count];
        Reader::new(self.place, self.file)?.numbers(&mut values, self)?;
        Ok(values)
    }

    /// The bytes of a tensor of at most 2²⁰ of them.
    ///
    /// # Errors
    /// As [`values`](Self::values).
    pub fn small_bytes(&self) -> Result<Vec<u8>, Error> {
        let length = self.place.length();
        if length > MOST as u64 {
            let problem = format!("has {length} bytes, expected at most {MOST}");
            return Err(self.wrong(problem));
        }
        Ok(self.place.bytes(self.file)?.to_vec())
    }

    /// The numbers of a weight as f32, in little-endian bytes. Every thread of the machine reads
    /// and decodes a part of them.
    ///
    /// # Errors
    /// [`Error::TensorValues`] when the type is not decoded, [`Error::Io`] when the file can't be
    /// read.
    pub fn widened(&self) -> Result<Arc<[u8]>, Error> {
        self.written(None, f32::to_le_bytes)
    }

    /// The numbers of a weight times their scale as bf16, rounded to nearest, ties to even; else as
    /// [`widened`](Self::widened).
    pub fn as_bf16(&self, scale: Option<&Scale>) -> Result<Arc<[u8]>, Error> {
        self.written(scale, |value| bf16::from_f32(value).to_le_bytes())
    }

    /// The numbers times their scale as `write` writes each.
    fn written<const N: usize>(
        &self,
        scale: Option<&Scale>,
        write: impl Fn(f32) -> [u8; N] + Copy + Send,
    ) -> Result<Arc<[u8]>, Error> {
        let count = self.count()?;
        let (numbers, _) = self.dtype.block();
        let threads = thread::available_parallelism().map_or(1, NonZero::get);
        // Whole steps, which are whole blocks of every type.
        let part = count.div_ceil(threads).next_multiple_of(STEP).max(STEP);
        debug_assert!(STEP.is_multiple_of(numbers));
        let Some(length) = count.checked_mul(N) else {
            return Err(self.wrong(format!("has {count} numbers, which is too many")));
        };
        let mut out = zeros(length);
        let all = Arc::get_mut(&mut out).expect("nobody else has it yet");
        thread::scope(|scope| {
            let parts = all.chunks_mut(part * N).enumerate();
            let parts = parts.map(|(index, out)| {
                scope.spawn(move || self.part(index * part, scale, out, write))
            });
            // All are spawned before the first is waited for.
            let parts: Vec<_> = parts.collect();
            parts.into_iter().try_for_each(|part| {
                let panicked = "decoding does not panic";
                part.join().expect(panicked)
            })
        })?;
        Ok(out)
    }

    /// The numbers from `first` on, a whole number of blocks, into `out`.
    fn part<const N: usize>(
        &self,
        first: usize,
        scale: Option<&Scale>,
        out: &mut [u8],
        write: impl Fn(f32) -> [u8; N],
    ) -> Result<(), Error> {
        let mut reader = Reader::new(self.place, self.file)?;
        let (numbers, bytes) = self.dtype.block();
        reader.skip(first / numbers * bytes, self.file)?;
        let mut values = vec![0.0; STEP.min(out.len() / N)];
        for (step, out) in out.chunks_mut(STEP * N).enumerate() {
            let values = &mut values[..out.len() / N];
            reader.numbers(values, self)?;
            if let Some(scale) = scale {
                self.multiply(values, first + step * STEP, scale);
            }
            let (out, _) = out.as_chunks_mut();
            for (out, &value) in out.iter_mut().zip(&*values) {
                *out = write(value);
            }
        }
        Ok(())
    }

    /// Multiplies numbers of the tensor, of which the first is in place `first`, with the scale.
    fn multiply(&self, values: &mut [f32], first: usize, scale: &Scale) {
        match scale {
            Scale::All(scale) => values.iter_mut().for_each(|value| *value *= scale),
            Scale::Rows(scales) => {
                let row = self.shape.iter().skip(1).product::<usize>().max(1);
                for (place, value) in (first..).zip(values) {
                    *value *= scales[place / row];
                }
            }
        }
    }

    /// The numbers that the shape has, whose bytes are as many as the place has.
    fn count(&self) -> Result<usize, Error> {
        let length = self.dtype.length(self.shape);
        if length.map(|length| length as u64) != Some(self.place.length()) {
            return Err(self.wrong(format!(
                "has {} bytes of data, which does not fit its shape {} of {}",
                self.place.length(),
                printable(format_args!("{:?}", self.shape)),
                self.dtype
            )));
        }
        Ok(self.shape.iter().product())
    }

    fn wrong(&self, problem: impl Into<String>) -> Error {
        Error::TensorValues {
            path: self.file.to_path_buf(),
            tensor: self.name.to_owned(),
            problem: problem.into(),
        }
    }
}

impl Place {
    /// The length in bytes.
    pub fn length(&self) -> u64 {
        match self {
            Self::File { length, .. } => *length,
            Self::Memory(bytes) => bytes.len() as u64,
        }
    }

    /// All bytes, as they are stored in `file`, the user's name of the file.
    ///
    /// # Errors
    /// [`Error::Io`] when the file can't be read.
    pub fn bytes(&self, file: &Path) -> Result<Arc<[u8]>, Error> {
        if let Self::Memory(bytes) = self {
            return Ok(bytes.clone());
        }
        let mut bytes = zeros(self.length() as usize);
        let all = Arc::get_mut(&mut bytes).expect("nobody else has it yet");
        Reader::new(self, file)?.bytes(all, file)?;
        Ok(bytes)
    }
}

/// Where the next bytes of a tensor come from.
enum Reader<'a> {
    Memory(&'a [u8]),
    /// The file, and what was read last.
    File(File, Vec<u8>),
}

impl<'a> Reader<'a> {
    fn new(place: &'a Place, file: &Path) -> Result<Self, Error> {
        Ok(match place {
            Place::Memory(bytes) => Self::Memory(bytes),
            Place::File { path, offset, .. } => {
                let mut opened = outside::open(path).map_err(Error::io(file))?;
                opened
                    .seek(SeekFrom::Start(*offset))
                    .map_err(Error::io(file))?;
                Self::File(opened, Vec::new())
            }
        })
    }

    fn skip(&mut self, count: usize, file: &Path) -> Result<(), Error> {
        match self {
            Self::Memory(bytes) => *bytes = &bytes[count..],
            Self::File(opened, _) => {
                opened
                    .seek_relative(count as i64)
                    .map_err(Error::io(file))?;
            }
        }
        Ok(())
    }

    fn bytes(&mut self, out: &mut [u8], file: &Path) -> Result<(), Error> {
        match self {
            Self::Memory(bytes) => {
                let (next, rest) = bytes.split_at(out.len());
                out.copy_from_slice(next);
                *bytes = rest;
                Ok(())
            }
            Self::File(opened, _) => opened.read_exact(out).map_err(Error::io(file)),
        }
    }

    fn numbers(&mut self, out: &mut [f32], of: &Source<'_>) -> Result<(), Error> {
        let (numbers, size) = of.dtype.block();
        let length = out.len() / numbers * size;
        let decoded = match self {
            Self::Memory(bytes) => {
                let (next, rest) = bytes.split_at(length);
                *bytes = rest;
                decode(of.dtype, next, out)
            }
            Self::File(opened, buffer) => {
                buffer.resize(length, 0);
                opened.read_exact(buffer).map_err(Error::io(of.file))?;
                decode(of.dtype, buffer, out)
            }
        };
        decoded.map_err(|dtype| of.wrong(format!("is of {dtype}, which is not supported")))
    }
}

/// Zeros that can be shared once they are written over.
fn zeros(length: usize) -> Arc<[u8]> {
    std::iter::repeat_n(0, length).collect()
}
