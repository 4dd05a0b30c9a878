//! Writes a file or folder that appears under its name only when it is complete.

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Write},
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use crate::Error;

/// A file or folder under construction, in a hidden folder beside its final place.
///
/// Each file is flushed to disk before the next one is started. The final name therefore stands for
/// complete files even after a power failure, and a write that fails late, such as on a full disk,
/// is reported.
#[derive(Debug)]
pub(super) struct Output {
    path: PathBuf,
    /// Deletes the hidden folder and its contents when dropped.
    _temporary: TempDir,
    place: PathBuf,
}

impl Output {
    /// Creates the hidden folder beside `path`.
    ///
    /// # Errors
    /// [`Error::Io`] when `path` exists or has no file name, or when its parent folder does not
    /// exist or cannot be written to.
    pub fn new(path: &Path) -> Result<Self, Error> {
        let Some(name) = path.file_name() else {
            let problem = "expected a path that ends in a name";
            return Err(Error::io(path)(io::Error::new(
                ErrorKind::InvalidInput,
                problem,
            )));
        };
        check_free(path)?;
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        // Links are resolved because ONNX graphs have paths relative to their real folder.
        let parent = fs::canonicalize(parent).map_err(Error::io(parent))?;
        let temporary = tempfile::Builder::new()
            .prefix(".converting-")
            .tempdir_in(&parent)
            // The error's own text would name the temporary folder.
            .map_err(|error| Error::io(&parent)(error.kind().into()))?;
        Ok(Self {
            // Without a trailing slash.
            path: path.with_file_name(name),
            place: temporary.path().join(name),
            _temporary: temporary,
        })
    }

    /// Returns the path at which the file or folder is written.
    pub fn place(&self) -> &Path {
        &self.place
    }

    /// Returns the final path of something that was written in [`place`](Self::place).
    pub fn shown(&self, written: &Path) -> PathBuf {
        match written.strip_prefix(&self.place) {
            Ok(rest) if rest.as_os_str().is_empty() => self.path.clone(),
            Ok(rest) => self.path.join(rest),
            Err(_) => self.path.clone(),
        }
    }

    /// Wraps an I/O error about something in [`place`](Self::place), naming its final path.
    pub fn failed(&self, written: &Path) -> impl FnOnce(io::Error) -> Error {
        Error::io(self.shown(written))
    }

    /// Creates a folder.
    pub fn folder(&self, path: &Path) -> Result<(), Error> {
        fs::create_dir(path).map_err(self.failed(path))
    }

    /// Writes a small file and flushes it to disk.
    pub fn write(&self, path: &Path, bytes: impl AsRef<[u8]>) -> Result<(), Error> {
        let write = || {
            let mut file = File::create(path)?;
            file.write_all(bytes.as_ref())?;
            file.sync_all()
        };
        write().map_err(self.failed(path))
    }

    /// Moves the result to its final path.
    ///
    /// # Errors
    /// [`Error::Io`] when the path exists by now or cannot be written.
    pub fn finish(self) -> Result<(), Error> {
        check_free(&self.path)?;
        if self.place.is_file() {
            // Unlike a rename, a hard link never replaces a file. Some file systems have no hard
            // links, so other errors than "exists" fall through to the rename.
            match fs::hard_link(&self.place, &self.path) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => {}
                linked => return linked.map_err(Error::io(&self.path)),
            }
        }
        fs::rename(&self.place, &self.path).map_err(Error::io(&self.path))
    }
}

fn check_free(path: &Path) -> Result<(), Error> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::io(path)(error)),
        Ok(_) => Err(Error::io(path)(io::Error::new(
            ErrorKind::AlreadyExists,
            "a file or folder with this name already exists, and nothing is overwritten",
        ))),
    }
}

#[cfg(test)]
mod tests {
    // A failed `unwrap` fails the test.
    #![allow(clippy::unwrap_used)]

    use sd_text::outside::chain;

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn what_is_not_finished_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model");
        let output = Output::new(&path).unwrap();
        output.folder(output.place()).unwrap();
        output.write(&output.place().join("a"), "b").unwrap();
        assert_eq!(output.shown(&output.place().join("a")), path.join("a"));
        drop(output);
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn a_folder_and_a_file_appear_whole() {
        let folder = tempfile::tempdir().unwrap();
        let output = Output::new(&folder.path().join("folder")).unwrap();
        output.folder(output.place()).unwrap();
        output.write(&output.place().join("a"), "b").unwrap();
        output.finish().unwrap();
        let output = Output::new(&folder.path().join("file")).unwrap();
        output.write(output.place(), "c").unwrap();
        output.finish().unwrap();
        assert_eq!(names(folder.path()), ["file", "folder"]);
        assert_eq!(fs::read(folder.path().join("folder/a")).unwrap(), b"b");
        assert_eq!(fs::read(folder.path().join("file")).unwrap(), b"c");
    }

    #[test]
    fn nothing_is_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model");
        // Neither a file from before the conversion nor one created during it is replaced.
        let output = Output::new(&path).unwrap();
        output.write(output.place(), "new").unwrap();
        fs::write(&path, "old").unwrap();
        for error in [
            output.finish().unwrap_err(),
            Output::new(&path).unwrap_err(),
        ] {
            assert!(chain(&error).contains("nothing is overwritten"), "{error}");
        }
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["model"]);
        for wrong in ["no/such/model", "/", ".."] {
            assert!(Output::new(Path::new(wrong)).is_err(), "{wrong}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn what_is_written_is_as_readable_as_other_files() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("plain"), "").unwrap();
        fs::create_dir(folder.path().join("folder")).unwrap();
        let file = Output::new(&folder.path().join("file")).unwrap();
        file.write(file.place(), "c").unwrap();
        file.finish().unwrap();
        let model = Output::new(&folder.path().join("model")).unwrap();
        model.folder(model.place()).unwrap();
        model.finish().unwrap();
        let mode = |name| {
            let path = folder.path().join(name);
            fs::metadata(path).unwrap().permissions().mode()
        };
        assert_eq!(mode("file"), mode("plain"));
        assert_eq!(mode("model"), mode("folder"));
    }
}
