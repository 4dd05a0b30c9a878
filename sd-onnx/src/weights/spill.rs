//! A temporary file for weights that a provider needs in another form than their file has.
//!
//! In memory, these bytes would stay allocated beside the provider's own copy of the weights. The
//! provider maps the file instead, so the system can drop pages that are no longer read.

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

use half::bf16;

use super::{Place, Tensor, values::STEP};
use crate::{Error, hash};

/// The prefix and the suffix of the names of these files.
const PREFIX: &str = ".tmp";
const SUFFIX: &str = ".weights";

/// The alignment of the tensors, in bytes. It suits any instruction.
const ALIGNMENT: u64 = 64;

/// The form in which a weight is written, times its scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// bf16, rounded to nearest, ties to even.
    Bf16,
    F32,
    /// The filters `[output, input, h, w]` of a convolution as f32, in square blocks of so many
    /// channels: `[output / block, input / block, h, w, input in block, output in block]`. Both
    /// numbers of channels are multiples of the block.
    Filters {
        block: usize,
    },
}

/// Weights that will be written to a temporary file.
#[derive(Debug)]
pub(crate) struct Spill<'w> {
    file: SpillFile,
    length: u64,
    jobs: Vec<Job<'w>>,
}

/// A weight and its offset in the file.
#[derive(Debug, Clone, Copy)]
struct Job<'w> {
    tensor: &'w Tensor,
    form: Form,
    offset: u64,
}

/// A temporary weight file, deleted when this value is dropped. A provider that has mapped the file
/// keeps access to its bytes.
#[derive(Debug)]
pub(crate) struct SpillFile {
    /// Canonical, like every path of a weight file.
    path: Arc<Path>,
    /// Locked, to show other processes that the file is in use.
    file: File,
}

impl<'w> Spill<'w> {
    /// Creates the file in the cache folder, or in the system's temporary folder if there is no
    /// cache folder. Deletes files that terminated processes have left there.
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
                let (file, path) = named.tempfile_in(&folder)?.keep()?;
                file.lock()?;
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

    /// Reserves the place of a weight, which [`fill`](Self::fill) writes.
    pub fn add(&mut self, tensor: &'w Tensor, form: Form) -> Place {
        let size = match form {
            Form::Bf16 => size_of::<bf16>(),
            Form::F32 | Form::Filters { .. } => size_of::<f32>(),
        };
        let offset = self.length.next_multiple_of(ALIGNMENT);
        let length = (tensor.shape.iter().product::<usize>() * size) as u64;
        self.length = offset + length;
        self.jobs.push(Job {
            tensor,
            form,
            offset,
        });
        Place::File {
            path: self.file.path.clone(),
            offset,
            length,
        }
    }

    /// Writes all weights, on all threads of the machine.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::TensorValues`] when a weight cannot be read or written.
    pub fn fill(self) -> Result<SpillFile, Error> {
        let Self { file, mut jobs, .. } = self;
        // The largest first, so that no thread ends with a large one alone.
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
    fn write(&self, to: &SpillFile) -> Result<(), Error> {
        let (source, scale) = (self.tensor.source(), self.tensor.scale.as_ref());
        let mut offset = self.offset;
        let mut bytes = Vec::new();
        match self.form {
            Form::Bf16 => source.pieces(scale, STEP, |values| {
                bytes.clear();
                let values = values.iter().map(|&value| bf16::from_f32(value));
                bytes.extend(values.flat_map(bf16::to_le_bytes));
                to.write(&bytes, &mut offset)
            }),
            Form::F32 => source.pieces(scale, STEP, |values| {
                bytes.clear();
                bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
                to.write(&bytes, &mut offset)
            }),
            Form::Filters { block } => {
                let &[_, input, height, width] = self.tensor.shape.as_slice() else {
                    unreachable!("the filters of a convolution have four dimensions")
                };
                let kernel = height * width;
                source.pieces(scale, block * input * kernel, |filters| {
                    bytes.resize(size_of_val(filters), 0);
                    let (out, _) = bytes.as_chunks_mut();
                    in_blocks(filters, [block, kernel], out);
                    to.write(&bytes, &mut offset)
                })
            }
        }
    }
}

/// Reorders the filters of one block of output channels, `[block, input, kernel]`, to
/// `[input / block, kernel, input in block, block]`.
fn in_blocks(filters: &[f32], [block, kernel]: [usize; 2], out: &mut [[u8; 4]]) {
    let filter = filters.len() / block;
    for (at, input) in (0..filter).step_by(kernel).enumerate() {
        let [outer, inner] = [at / block, at % block];
        for k in 0..kernel {
            let row = ((outer * kernel + k) * block + inner) * block;
            for (o, out) in out[row..row + block].iter_mut().enumerate() {
                *out = filters[o * filter + input + k].to_le_bytes();
            }
        }
    }
}

impl SpillFile {
    /// Writes bytes at an offset, and moves the offset behind them.
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
        // A file that cannot be deleted only takes up space until the next one is created.
        let _ = fs::remove_file(&self.path);
    }
}

/// Deletes files whose processes have ended, so that nobody holds their locks.
fn remove_leftovers(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with(PREFIX) || !name.ends_with(SUFFIX) {
            continue;
        }
        let path: PathBuf = entry.path();
        let in_use = File::open(&path).is_ok_and(|file| file.try_lock().is_err());
        if !in_use {
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_in_blocks_of_channels() {
        // 2 outputs, 4 inputs, a kernel of 3: the value says its output, input and place.
        let filters = [0, 1].map(|o| [0, 1, 2, 3].map(|i| [0, 1, 2].map(|k| (o, i, k))));
        let flat = filters.as_flattened().as_flattened();
        let numbers: Vec<f32> = flat
            .iter()
            .map(|&(o, i, k)| (100 * o + 10 * i + k) as f32)
            .collect();
        let mut out = vec![[0; 4]; numbers.len()];
        in_blocks(&numbers, [2, 3], &mut out);
        let out: Vec<u32> = out.iter().map(|&b| f32::from_le_bytes(b) as u32).collect();
        assert_eq!(
            out[..12],
            [0, 100, 10, 110, 1, 101, 11, 111, 2, 102, 12, 112]
        );
        assert_eq!(
            out[12..],
            [20, 120, 30, 130, 21, 121, 31, 131, 22, 122, 32, 132]
        );
    }
}
