//! A temporary file for weights that a provider needs in another type than their file has.
//!
//! In memory, these bytes would stay allocated beside the provider's own copy of the weights. The
//! provider maps the file instead, so the system can drop pages that are no longer read.

use std::{
    fs::{self, File},
    io::{Result as IoResult, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::Place;
use crate::{Error, hash};

/// The prefix and the suffix of the names of these files.
const PREFIX: &str = ".tmp";
const SUFFIX: &str = ".weights";

/// The alignment of the tensors, in bytes. It suits any instruction.
const ALIGNMENT: u64 = 64;

/// A temporary weight file, deleted when this value is dropped. A provider that has mapped the file
/// keeps access to its bytes.
#[derive(Debug)]
pub(crate) struct Spill {
    /// Canonical, like every path of a weight file.
    path: Arc<Path>,
    /// Locked, to show other processes that the file is in use.
    file: File,
    length: u64,
}

impl Spill {
    /// Creates the file in the cache folder, or in the system's temporary folder if there is no
    /// cache folder. Deletes files that terminated processes have left there.
    pub fn create() -> Result<Self, Error> {
        let cache = hash::cache().and_then(|file| file.parent().map(Path::to_path_buf));
        let folder = cache.unwrap_or_else(std::env::temp_dir);
        let create = || -> IoResult<Self> {
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
                    return Ok(Self {
                        path: path.into(),
                        file,
                        length: 0,
                    });
                }
            }
        };
        create().map_err(Error::io(&folder))
    }

    /// Appends the bytes of a tensor and returns their place.
    pub fn add(&mut self, bytes: &[u8]) -> Result<Place, Error> {
        let offset = self.length.next_multiple_of(ALIGNMENT);
        let gap = (offset - self.length) as usize;
        let written = self
            .file
            .write_all(&[0; ALIGNMENT as usize][..gap])
            .and_then(|()| self.file.write_all(bytes));
        written.map_err(Error::io(&*self.path))?;
        let length = bytes.len() as u64;
        self.length = offset + length;
        Ok(Place::File {
            path: self.path.clone(),
            offset,
            length,
        })
    }
}

impl Drop for Spill {
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
