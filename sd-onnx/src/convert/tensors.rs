//! Writes the tensors of the new model to files, with only one tensor in memory at a time.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
};

use serde_json::{Map, Value, json};

use super::{Steps, numbers::converted, output::Output};
use crate::{
    ConvertError, Error,
    weights::{Tensor, Type},
};

/// A tensor to write.
#[derive(Debug)]
pub(super) struct New<'a> {
    pub name: String,
    pub dtype: Type,
    pub shape: Vec<usize>,
    pub content: Content<'a>,
}

/// The content of a tensor to write.
#[derive(Debug)]
pub(super) enum Content<'a> {
    /// Weights, concatenated along the first axis.
    Weights(Vec<&'a Tensor>),
    /// A matrix to write with its axes exchanged.
    Transposed(&'a Tensor),
    Given(Vec<u8>),
}

impl New<'_> {
    /// Returns the length in bytes. It cannot overflow: weights of this shape exist in a file or in
    /// memory, and no type needs more than eight times the bytes of another.
    pub fn length(&self) -> u64 {
        let count: u64 = self.shape.iter().map(|&side| side as u64).product();
        let (numbers, bytes) = self.dtype.block();
        count / numbers as u64 * bytes as u64
    }

    /// Writes the numbers of the tensor.
    fn write(
        &self,
        file: &mut impl Write,
        failed: impl Fn(io::Error) -> Error,
        steps: &mut Steps<'_>,
    ) -> Result<(), ConvertError> {
        let mut put = |bytes: &[u8]| {
            file.write_all(bytes).map_err(&failed)?;
            steps.done(bytes.len() as u64)
        };
        match &self.content {
            Content::Weights(weights) => {
                for weight in weights {
                    put(&converted(weight, self.dtype, false)?)?;
                }
                Ok(())
            }
            Content::Transposed(weight) => put(&converted(weight, self.dtype, true)?),
            Content::Given(bytes) => put(bytes),
        }
    }
}

/// Writes a safetensors file. Tensors with the longest types come first, as in files of the
/// format's own library, so that every tensor starts at a multiple of its element size.
pub(super) fn safetensors(
    output: &Output,
    path: &Path,
    tensors: &mut [New<'_>],
    metadata: &BTreeMap<String, String>,
    steps: &mut Steps<'_>,
) -> Result<(), ConvertError> {
    let size = |tensor: &New<'_>| std::cmp::Reverse(tensor.dtype.block().1);
    tensors.sort_by(|a, b| (size(a), &a.name).cmp(&(size(b), &b.name)));
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!(metadata));
    let mut start = 0;
    for tensor in &*tensors {
        let end = start + tensor.length();
        let entry = json!({
            "dtype": tensor.dtype.to_string(),
            "shape": tensor.shape,
            "data_offsets": [start, end],
        });
        header.insert(tensor.name.clone(), entry);
        start = end;
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let failed = |error| output.failed(path)(error);
    let mut file = BufWriter::new(File::create_new(path).map_err(failed)?);
    let length = (header.len() as u64).to_le_bytes();
    file.write_all(&length).map_err(failed)?;
    file.write_all(&header).map_err(failed)?;
    for tensor in &*tensors {
        tensor.write(&mut file, failed, steps)?;
    }
    finish(file).map_err(failed)?;
    Ok(())
}

/// Flushes buffered bytes to the disk.
fn finish(file: BufWriter<File>) -> io::Result<()> {
    file.into_inner()?.sync_all()
}

/// The alignment, in bytes, of the tensors in a file of [`external_data`]. ONNX Runtime's own files
/// use the same, so that a mapped weight is aligned for any instruction.
const ALIGNMENT: u64 = 64;

/// Writes the tensors one after another as ONNX external data, and returns the offset of each.
pub(super) fn external_data(
    output: &Output,
    path: &Path,
    tensors: &[New<'_>],
    steps: &mut Steps<'_>,
) -> Result<Vec<u64>, ConvertError> {
    let failed = |error| output.failed(path)(error);
    let mut file = BufWriter::new(File::create_new(path).map_err(failed)?);
    let mut offsets = Vec::with_capacity(tensors.len());
    let mut end: u64 = 0;
    for tensor in tensors {
        let start = end.next_multiple_of(ALIGNMENT);
        let gap = (start - end) as usize;
        file.write_all(&[0; ALIGNMENT as usize][..gap])
            .map_err(failed)?;
        tensor.write(&mut file, failed, steps)?;
        offsets.push(start);
        end = start + tensor.length();
    }
    finish(file).map_err(failed)?;
    Ok(offsets)
}
