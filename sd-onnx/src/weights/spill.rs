//! A temporary file for weights that a provider needs in a different form than their own file has.
//!
//! If these bytes were in memory, they would stay allocated next to the provider's own copy of the
//! weights. The provider maps the file instead, so the system can drop pages that are no longer
//! read.

use std::{
    fs::{self, File},
    io::Result as IoResult,
    num::NonZero,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use half::{bf16, f16};

use super::{Int8Kind, Int8Layer, Place, Tensor, values::STEP};
use crate::{Error, hash};

/// The prefix and the suffix of the temporary files' names.
const PREFIX: &str = "sd-onnx-";
const SUFFIX: &str = ".weights";

/// The alignment of the tensors in the file, in bytes. It is enough for any instruction.
const ALIGNMENT: u64 = 64;

/// The form in which a weight is written. Every form contains the values multiplied by the weight's
/// scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// bf16, rounded to the nearest value, with ties to even.
    Bf16,
    /// f16, rounded to the nearest value, with ties to even. A number beyond ±65,504 becomes
    /// infinite, as in torch's `half`.
    F16,
    /// f32.
    F32,
    /// The filters of a convolution as f32, reordered from `[output, input, h, w]` to blocks of
    /// channels: `[output / block, input / inputs, h, w, input in block, output in block]`. Both
    /// numbers of channels are multiples of their block.
    Filters {
        /// The number of output channels per block.
        block: usize,
        /// The number of input channels per block: `block`, or 1 for an input in plain form.
        inputs: usize,
    },
}

/// Weights that will be written to a temporary file.
#[derive(Debug)]
pub(crate) struct Spill<'w> {
    file: SpillFile,
    /// The length of the file so far, in bytes.
    length: u64,
    jobs: Vec<Job<'w>>,
}

/// A weight to write, its form, and its offset in the file in bytes.
#[derive(Debug)]
struct Job<'w> {
    tensor: &'w Tensor,
    task: Task<'w>,
    offset: u64,
}

/// How a weight is written.
#[derive(Debug)]
enum Task<'w> {
    Form(Form),
    /// As integers, with the scales and the bias at these offsets.
    Int8 {
        layer: Int8Layer<'w>,
        scales: u64,
        bias: u64,
    },
}

/// The places of a layer in int8. The bias has no bytes if the layer is linear.
#[derive(Debug)]
pub(crate) struct Int8Places {
    /// i8.
    pub weight: Place,
    /// f32, one per output.
    pub scales: Place,
    /// i32, one per output.
    pub bias: Place,
}

/// A temporary weight file. Dropping this value deletes the file, but a provider that has mapped it
/// keeps access to its bytes.
#[derive(Debug)]
pub(crate) struct SpillFile {
    /// The canonical path, as for every weight file.
    path: Arc<Path>,
    /// The open file. It is locked, which shows other processes that it is in use.
    file: File,
}

impl<'w> Spill<'w> {
    /// Creates the file in the cache folder, or in the system's temporary folder if there is no
    /// cache folder. Also deletes the files that terminated processes have left in that folder.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be created.
    pub fn create() -> Result<Self, Error> {
        let cache = hash::cache().and_then(|file| file.parent().map(Path::to_path_buf));
        let folder = cache.unwrap_or_else(std::env::temp_dir);
        let create = || -> IoResult<SpillFile> {
            fs::create_dir_all(&folder)?;
            remove_leftovers(&folder);
            let folder = fs::canonicalize(&folder)?;
            loop {
                let mut named = tempfile::Builder::new();
                let named = named.prefix(PREFIX).suffix(SUFFIX);
                let created = named.tempfile_in(&folder)?;
                created.as_file().lock()?;
                let (file, path) = created.keep()?;
                // Before the lock was taken, another process may have deleted the file as a
                // leftover.
                if path.exists() {
                    let path = path.into();
                    return Ok(SpillFile { path, file });
                }
            }
        };
        Ok(Self {
            file: create().map_err(Error::io(&folder))?,
            length: 0,
            jobs: Vec::new(),
        })
    }

    /// Reserves space in the file for a weight and returns its place. [`fill`](Self::fill) writes
    /// the weight there.
    pub fn add(&mut self, tensor: &'w Tensor, form: Form) -> Place {
        let size = match form {
            Form::Bf16 | Form::F16 => size_of::<f16>(),
            Form::F32 | Form::Filters { .. } => size_of::<f32>(),
        };
        let length = (tensor.shape.iter().product::<usize>() * size) as u64;
        let (place, offset) = self.reserve(length);
        let task = Task::Form(form);
        self.jobs.push(Job {
            tensor,
            task,
            offset,
        });
        place
    }

    /// Reserves space in the file for a layer in int8 and returns its places.
    pub fn add_int8(&mut self, layer: Int8Layer<'w>) -> Int8Places {
        let tensor = layer.weight;
        let rows = tensor.shape[0] as u64;
        let (weight, offset) = self.reserve(tensor.shape.iter().product::<usize>() as u64);
        let (scales, scales_at) = self.reserve(rows * size_of::<f32>() as u64);
        let biases = match layer.kind {
            Int8Kind::Linear => 0,
            Int8Kind::Conv { .. } => rows,
        };
        let (bias, bias_at) = self.reserve(biases * size_of::<i32>() as u64);
        let task = Task::Int8 {
            layer,
            scales: scales_at,
            bias: bias_at,
        };
        self.jobs.push(Job {
            tensor,
            task,
            offset,
        });
        Int8Places {
            weight,
            scales,
            bias,
        }
    }

    /// Reserves so many bytes in the file, and returns their place and their offset.
    fn reserve(&mut self, length: u64) -> (Place, u64) {
        let offset = self.length.next_multiple_of(ALIGNMENT);
        self.length = offset + length;
        let place = Place::File {
            path: self.file.path.clone(),
            offset,
            length,
        };
        (place, offset)
    }

    /// Writes all weights to the file. The work is split over all threads of the machine.
    ///
    /// # Errors
    /// - [`Error::Io`] when a weight cannot be read or written.
    /// - [`Error::TensorValues`] when a weight cannot be decoded.
    pub fn fill(self) -> Result<SpillFile, Error> {
        let Self { file, mut jobs, .. } = self;
        // The largest weights come first, so that at the end no thread is still writing a large one
        // while the others are idle.
        jobs.sort_by_key(|job| std::cmp::Reverse(job.tensor.shape.iter().product::<usize>()));
        let next = AtomicUsize::new(0);
        let work = || -> Result<(), Error> {
            while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                job.write(&file)?;
            }
            Ok(())
        };
        let threads = thread::available_parallelism().map_or(1, NonZero::get);
        thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            let own = work();
            let others = others.into_iter().map(|other| {
                let panicked = "writing does not panic";
                other.join().expect(panicked)
            });
            std::iter::once(own)
                .chain(others)
                .collect::<Result<(), _>>()
        })?;
        Ok(file)
    }
}

impl Job<'_> {
    /// Decodes the weight in pieces, and writes each piece in the form of this job.
    fn write(&self, to: &SpillFile) -> Result<(), Error> {
        let (source, scale) = (self.tensor.source(), self.tensor.scale.as_ref());
        let mut offset = self.offset;
        let mut bytes = Vec::new();
        let form = match &self.task {
            Task::Form(form) => *form,
            Task::Int8 {
                layer,
                scales,
                bias,
            } => {
                let quantised = layer.quantised()?;
                let weight = quantised.weight.iter().map(|&value| value as u8);
                to.write(&weight.collect::<Vec<_>>(), &mut offset)?;
                to.write(&le_bytes(&quantised.scales, f32::to_le_bytes), &mut {
                    *scales
                })?;
                return to.write(&le_bytes(&quantised.bias, i32::to_le_bytes), &mut { *bias });
            }
        };
        match form {
            Form::Bf16 => source.pieces(scale, STEP, |values| {
                bytes.clear();
                let values = values.iter().map(|&value| bf16::from_f32(value));
                bytes.extend(values.flat_map(bf16::to_le_bytes));
                to.write(&bytes, &mut offset)
            }),
            Form::F16 => source.pieces(scale, STEP, |values| {
                bytes.clear();
                let values = values.iter().map(|&value| f16::from_f32(value));
                bytes.extend(values.flat_map(f16::to_le_bytes));
                to.write(&bytes, &mut offset)
            }),
            Form::F32 => source.pieces(scale, STEP, |values| {
                bytes.clear();
                bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
                to.write(&bytes, &mut offset)
            }),
            Form::Filters { block, inputs } => {
                let &[_, input, height, width] = self.tensor.shape.as_slice() else {
                    unreachable!("the filters of a convolution have four dimensions")
                };
                let kernel = height * width;
                source.pieces(scale, block * input * kernel, |filters| {
                    bytes.resize(size_of_val(filters), 0);
                    let (out, _) = bytes.as_chunks_mut();
                    in_blocks(filters, [block, inputs, kernel], out);
                    to.write(&bytes, &mut offset)
                })
            }
        }
    }
}

fn le_bytes<T: Copy>(values: &[T], bytes: impl Fn(T) -> [u8; 4]) -> Vec<u8> {
    values.iter().flat_map(|&value| bytes(value)).collect()
}

/// Reorders the filters of one block of output channels: `[block, input, kernel]` becomes
/// `[input / inputs, kernel, input in block, block]`. `kernel` is the height times the width.
fn in_blocks(filters: &[f32], [block, inputs, kernel]: [usize; 3], out: &mut [[u8; 4]]) {
    let filter = filters.len() / block;
    for (at, input) in (0..filter).step_by(kernel).enumerate() {
        let [outer, inner] = [at / inputs, at % inputs];
        for k in 0..kernel {
            let row = ((outer * kernel + k) * inputs + inner) * block;
            for (o, out) in out[row..row + block].iter_mut().enumerate() {
                *out = filters[o * filter + input + k].to_le_bytes();
            }
        }
    }
}

impl SpillFile {
    /// Writes bytes at an offset, and advances the offset past them.
    fn write(&self, bytes: &[u8], offset: &mut u64) -> Result<(), Error> {
        write_all_at(&self.file, bytes, *offset).map_err(Error::io(&*self.path))?;
        *offset += bytes.len() as u64;
        Ok(())
    }
}

#[cfg(unix)]
fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> IoResult<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

#[cfg(windows)]
fn write_all_at(file: &File, mut bytes: &[u8], mut offset: u64) -> IoResult<()> {
    use std::os::windows::fs::FileExt;
    while !bytes.is_empty() {
        let written = file.seek_write(bytes, offset)?;
        if written == 0 {
            return Err(std::io::ErrorKind::WriteZero.into());
        }
        bytes = &bytes[written..];
        offset += written as u64;
    }
    Ok(())
}

impl Drop for SpillFile {
    fn drop(&mut self) {
        // A file that cannot be deleted takes up space until the next temporary file is created.
        let _ = fs::remove_file(&self.path);
    }
}

/// Deletes the temporary files of processes that have ended. Their locks ended with them.
fn remove_leftovers(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with(PREFIX) || !name.ends_with(SUFFIX) {
            continue;
        }
        if !entry.file_type().is_ok_and(|kind| kind.is_file()) {
            continue;
        }
        let path: PathBuf = entry.path();
        // The lock is held until the file is gone, so that its owner notices.
        if let Ok(file) = File::open(&path)
            && file.try_lock().is_ok()
        {
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_in_blocks_of_channels() {
        // 2 outputs, 4 inputs and a kernel of 3. Each value encodes its output, its input and its
        // position in the kernel.
        let filters = [0, 1].map(|o| [0, 1, 2, 3].map(|i| [0, 1, 2].map(|k| (o, i, k))));
        let flat = filters.as_flattened().as_flattened();
        let numbers: Vec<f32> = flat
            .iter()
            .map(|&(o, i, k)| (100 * o + 10 * i + k) as f32)
            .collect();
        let mut out = vec![[0; 4]; numbers.len()];
        in_blocks(&numbers, [2, 2, 3], &mut out);
        let flat: Vec<u32> = out.iter().map(|&b| f32::from_le_bytes(b) as u32).collect();
        assert_eq!(
            flat[..12],
            [0, 100, 10, 110, 1, 101, 11, 111, 2, 102, 12, 112]
        );
        assert_eq!(
            flat[12..],
            [20, 120, 30, 130, 21, 121, 31, 131, 22, 122, 32, 132]
        );
        in_blocks(&numbers, [2, 1, 3], &mut out);
        let flat: Vec<u32> = out.iter().map(|&b| f32::from_le_bytes(b) as u32).collect();
        assert_eq!(flat[..8], [0, 100, 1, 101, 2, 102, 10, 110]);
    }
}
