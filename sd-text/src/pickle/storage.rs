//! Locates the values of a tensor in the file and brings them into order.

use std::ops::Range;

use safetensors::Dtype;

use super::archive::Stored;
use super::error::Problem;
use super::source::Source;
use super::tensor::bytes_of;
use super::value::{Data, Id};

/// A storage as a pickle names it.
pub(super) struct StorageRef {
    /// The text that names it in the file.
    pub key: Id,
    pub dtype: Option<Dtype>,
    /// Its length in bytes, according to the pickle.
    pub length: u64,
    /// The bytes of it that are used. Only old files use less than all of them.
    pub part: Range<u64>,
    /// The byte of the opcode that names it.
    pub at: usize,
}

/// A tensor as a pickle describes it.
pub(super) struct Raw {
    /// The index in the list of storages.
    pub storage: usize,
    pub dtype: Dtype,
    /// The first value, counted in values from the start of the storage.
    pub offset: u64,
    pub shape: Vec<usize>,
    /// The strides, counted in values.
    pub strides: Vec<usize>,
    /// The byte of the opcode that makes it.
    pub at: usize,
}

/// Values that are in the file, but not in order.
#[derive(Debug, Clone)]
pub struct Gather {
    stored: Stored,
    /// The bytes of the storage from the tensor's first value to its last.
    span: Range<u64>,
    shape: Vec<usize>,
    /// The strides in bytes.
    strides: Vec<usize>,
    size: usize,
    /// The number of bytes that are reversed together, or 1 if the byte order is right.
    swap: usize,
    pub(super) length: u64,
}

impl Raw {
    /// Locates the tensor's values in its storage.
    pub fn place(
        &self,
        storage: &StorageRef,
        stored: &Stored,
        big_endian: bool,
    ) -> Result<Data, String> {
        // A dimension of 0 makes the tensor empty, even if the product of the others overflows.
        if self.shape.contains(&0) {
            return Ok(Data::File {
                offset: stored.offset,
                length: 0,
            });
        }
        let too_large = || format!("a tensor of shape {:?}", self.shape);
        let length = self.length().ok_or_else(too_large)?;
        let part = &storage.part;
        let span = self.span(part).ok_or_else(|| {
            format!(
                "a tensor of shape {:?} and type {} with strides {:?} from number {} on, in a \
                 storage of {} bytes",
                self.shape,
                self.dtype,
                self.strides,
                self.offset,
                part.end - part.start
            )
        })?;
        let size = bytes_of(self.dtype);
        let swap = match (big_endian, self.dtype) {
            (false, _) => 1,
            (true, Dtype::C64) => 4,
            (true, _) => size as usize,
        };
        if is_contiguous(&self.shape, &self.strides, 1) && !stored.deflated && swap == 1 {
            let offset = stored.offset + span.start;
            return Ok(Data::File { offset, length });
        }
        let strides = self.shape.iter().zip(&self.strides);
        Ok(Data::Gathered(Gather {
            stored: stored.clone(),
            span,
            // The stride of a dimension of length 1 is never used and may be any number.
            strides: strides
                .map(|(&n, &s)| if n > 1 { s * size as usize } else { 0 })
                .collect(),
            shape: self.shape.clone(),
            size: size as usize,
            swap,
            length,
        }))
    }

    /// Returns the length of the values in bytes, or `None` if it overflows.
    fn length(&self) -> Option<u64> {
        self.shape
            .iter()
            .try_fold(bytes_of(self.dtype), |product, &length| {
                product.checked_mul(length as u64)
            })
    }

    /// Returns the bytes of the storage from the first value to the last, or `None` if they are not
    /// within `part`. No dimension may be 0.
    fn span(&self, part: &Range<u64>) -> Option<Range<u64>> {
        let size = bytes_of(self.dtype);
        let last = self
            .shape
            .iter()
            .zip(&self.strides)
            .try_fold(self.offset, |sum, (n, stride)| {
                sum.checked_add((*n as u64 - 1).checked_mul(*stride as u64)?)
            })?;
        let start = part.start.checked_add(self.offset.checked_mul(size)?)?;
        let end = part
            .start
            .checked_add(last.checked_add(1)?.checked_mul(size)?)?;
        (end <= part.end).then_some(start..end)
    }
}

impl Gather {
    /// Returns the number of bytes that are read, unpacked or produced, whichever is largest.
    pub(super) fn cost(&self) -> u64 {
        let read = if self.stored.deflated {
            self.stored.length
        } else {
            self.span.end - self.span.start
        };
        read.max(self.length)
    }

    /// Reads the values in row-major order, little-endian.
    pub(super) fn bytes(&self, source: &Source) -> Result<Vec<u8>, Problem> {
        let span = if self.stored.deflated {
            let mut all = self.stored.content(source)?;
            all.truncate(self.span.end as usize);
            all.drain(..self.span.start as usize);
            all
        } else {
            let start = self.stored.offset + self.span.start;
            source.read(start, self.span.end - self.span.start)?
        };
        let mut bytes = match is_contiguous(&self.shape, &self.strides, self.size) {
            true => span,
            false => self.in_order(&span),
        };
        if self.swap > 1 {
            bytes.chunks_exact_mut(self.swap).for_each(<[u8]>::reverse);
        }
        Ok(bytes)
    }

    fn in_order(&self, span: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.length as usize);
        // A tensor without dimensions is contiguous, so there is a last dimension.
        let Some(last) = self.shape.len().checked_sub(1) else {
            return span.to_vec();
        };
        let mut index = vec![0; last];
        let mut row = 0;
        loop {
            for column in 0..self.shape[last] {
                out.extend_from_slice(&span[row + column * self.strides[last]..][..self.size]);
            }
            // The next row: increments the last index that has not reached its end.
            let Some(axis) = (0..last)
                .rev()
                .find(|&axis| index[axis] + 1 < self.shape[axis])
            else {
                return out;
            };
            index[axis] += 1;
            index[axis + 1..].fill(0);
            row = index
                .iter()
                .zip(&self.strides)
                .map(|(index, stride)| index * stride)
                .sum();
        }
    }
}

/// Whether the values are in row-major order without gaps. `unit` is the stride between neighbours.
fn is_contiguous(shape: &[usize], strides: &[usize], unit: usize) -> bool {
    let mut expected = unit;
    let mut axes = shape.iter().zip(strides).rev();
    axes.all(|(&length, &stride)| {
        let fits = length == 1 || stride == expected;
        expected = expected.saturating_mul(length);
        fits
    })
}
