//! Reads the numbers of stored tensors: small tensors that the program inspects, and weights that
//! ONNX Runtime cannot use as they are stored.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    num::NonZero,
    ops::Range,
    path::Path,
    sync::Arc,
    thread,
};

use sd_text::outside::{self, printable};

use super::{Place, Scale, decode::decode, types::Type};
use crate::Error;

/// The largest number of values or bytes of a small tensor. The longest are rows of scales.
const MOST: usize = 1 << 20;

/// The numbers decoded per step: 128 kB of f32, which fit in a core's cache.
pub(super) const STEP: usize = 1 << 15;

/// A tensor whose numbers are read, and its names for errors.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source<'a> {
    pub place: &'a Place,
    pub dtype: Type,
    pub shape: &'a [usize],
    /// The path of the file as the user knows it, with links not resolved.
    pub file: &'a Path,
    /// The tensor's name in that file.
    pub name: &'a str,
}

impl Source<'_> {
    /// Returns the numbers of a small tensor as f32.
    ///
    /// # Errors
    /// - [`Error::TensorValues`] when it has more than 2²⁰ numbers, or a type that cannot be
    ///   decoded.
    /// - [`Error::Io`] when the file cannot be read.
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

    /// Returns the bytes of a small tensor.
    ///
    /// # Errors
    /// - [`Error::TensorValues`] when it has more than 2²⁰ bytes.
    /// - [`Error::Io`] when the file cannot be read.
    pub fn small_bytes(&self) -> Result<Vec<u8>, Error> {
        let length = self.place.length();
        if length > MOST as u64 {
            let problem = format!("has {length} bytes, expected at most {MOST}");
            return Err(self.wrong(problem));
        }
        Ok(self.place.bytes(self.file)?.to_vec())
    }

    /// Returns the numbers of a weight as f32, in little-endian bytes. The work is split over all
    /// threads of the machine.
    ///
    /// # Errors
    /// - [`Error::TensorValues`] when the type cannot be decoded.
    /// - [`Error::Io`] when the file cannot be read.
    pub fn widened(&self) -> Result<Arc<[u8]>, Error> {
        const SIZE: usize = size_of::<f32>();
        let count = self.count()?;
        let (numbers, _) = self.dtype.block();
        let threads = thread::available_parallelism().map_or(1, NonZero::get);
        // Each thread gets whole steps, which are whole blocks of every type.
        let part = count.div_ceil(threads).next_multiple_of(STEP).max(STEP);
        debug_assert!(STEP.is_multiple_of(numbers));
        let Some(length) = count.checked_mul(SIZE) else {
            return Err(self.wrong(format!("has {count} numbers, which is too many")));
        };
        let mut out = zeros(length);
        let all = Arc::get_mut(&mut out).expect("the bytes are not shared yet");
        thread::scope(|scope| {
            let parts = all.chunks_mut(part * SIZE).enumerate();
            let parts =
                parts.map(|(index, out)| scope.spawn(move || self.widened_part(index * part, out)));
            // Collecting spawns all threads before the first one is joined.
            let parts: Vec<_> = parts.collect();
            parts.into_iter().try_for_each(|part| {
                let panicked = "decoding does not panic";
                part.join().expect(panicked)
            })
        })?;
        Ok(out)
    }

    /// Decodes the numbers from index `first`, which is a multiple of the block size, into `out`.
    fn widened_part(&self, first: usize, out: &mut [u8]) -> Result<(), Error> {
        let count = out.len() / size_of::<f32>();
        let (mut out, _) = out.as_chunks_mut();
        self.read(first..first + count, STEP, |values| {
            let (now, rest) = std::mem::take(&mut out).split_at_mut(values.len());
            for (out, value) in now.iter_mut().zip(values) {
                *out = value.to_le_bytes();
            }
            out = rest;
            Ok(())
        })
    }

    /// Decodes all numbers, times their scale, and passes them to `write` in order, `size` at a
    /// time. Only the last piece may be shorter. `size` is a multiple of the type's block size.
    ///
    /// # Errors
    /// The errors of `write` and of [`widened`](Self::widened).
    pub fn pieces(
        &self,
        scale: Option<&Scale>,
        size: usize,
        mut write: impl FnMut(&[f32]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut first = 0;
        self.read(0..self.count()?, size, |values| {
            if let Some(scale) = scale {
                self.multiply(values, first, scale);
            }
            first += values.len();
            write(values)
        })
    }

    /// Decodes the numbers of a range, `size` at a time. Its start and `size` are multiples of the
    /// type's block size.
    fn read(
        &self,
        range: Range<usize>,
        size: usize,
        mut with: impl FnMut(&mut [f32]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut reader = Reader::new(self.place, self.file)?;
        let (numbers, bytes) = self.dtype.block();
        reader.skip(range.start / numbers * bytes, self.file)?;
        let mut values = vec![0.0; size.min(range.len())];
        for first in range.clone().step_by(size) {
            let values = &mut values[..size.min(range.end - first)];
            reader.numbers(values, self)?;
            with(values)?;
        }
        Ok(())
    }

    /// Multiplies numbers of the tensor, starting at index `first`, by their scale.
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

    /// Returns the number of values in the shape, whose length must fit the place.
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
    /// Returns the length in bytes.
    pub fn length(&self) -> u64 {
        match self {
            Self::File { length, .. } => *length,
            Self::Memory(bytes) => bytes.len() as u64,
        }
    }

    /// Reads all bytes as they are stored. `file` is the path that errors name.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be read.
    pub fn bytes(&self, file: &Path) -> Result<Arc<[u8]>, Error> {
        if let Self::Memory(bytes) = self {
            return Ok(bytes.clone());
        }
        let mut bytes = zeros(self.length() as usize);
        let all = Arc::get_mut(&mut bytes).expect("the bytes are not shared yet");
        Reader::new(self, file)?.bytes(all, file)?;
        Ok(bytes)
    }
}

/// The source of a tensor's next bytes.
enum Reader<'a> {
    Memory(&'a [u8]),
    /// The open file, and a buffer for the bytes that were read last.
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
        decoded.map_err(|dtype| of.wrong(format!("has type {dtype}, which is not supported")))
    }
}

/// Returns zeros in shared memory, to be overwritten before they are shared.
fn zeros(length: usize) -> Arc<[u8]> {
    std::iter::repeat_n(0, length).collect()
}
