//! A file or a folder that appears under its name when it is whole, or not at all.

use std::{
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use crate::Error;

/// A file or a folder under construction, in a hidden folder beside its place.
#[derive(Debug)]
pub(super) struct Output {
    path: PathBuf,
    /// Removed with all that is in it when it is dropped.
    _temporary: TempDir,
    place: PathBuf,
}

impl Output {
    /// Reserves room beside `path`, where nothing may be yet.
    ///
    /// # Errors
    /// [`Error::Io`] when something of that name is there, or the folder around it is not there or
    /// cannot be written to.
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
        // With all links resolved: the graphs of ONNX have paths relative to their folder.
        let parent = fs::canonicalize(parent).map_err(Error::io(parent))?;
        let temporary = tempfile::Builder::new()
            .prefix(".converting-")
            .tempdir_in(&parent)
            // The error itself would name the temporary folder.
            .map_err(|error| Error::io(&parent)(error.kind().into()))?;
        Ok(Self {
            // Without a slash at the end.
            path: path.with_file_name(name),
            place: temporary.path().join(name),
            _temporary: temporary,
        })
    }

    /// Where the file or the folder is written meanwhile.
    pub fn place(&self) -> &Path {
        &self.place
    }

    /// The path of something written in [`place`](Self::place), as it will be.
    pub fn shown(&self, written: &Path) -> PathBuf {
        match written.strip_prefix(&self.place) {
            Ok(rest) if rest.as_os_str().is_empty() => self.path.clone(),
            Ok(rest) => self.path.join(rest),
            Err(_) => self.path.clone(),
        }
    }

    /// An error about something that is written in [`place`](Self::place).
    pub fn failed(&self, written: &Path) -> impl FnOnce(io::Error) -> Error {
        Error::io(self.shown(written))
    }

    /// Makes a folder.
    pub fn folder(&self, path: &Path) -> Result<(), Error> {
        fs::create_dir(path).map_err(self.failed(path))
    }

    /// Writes a small file.
    pub fn write(&self, path: &Path, bytes: impl AsRef<[u8]>) -> Result<(), Error> {
        fs::write(path, bytes).map_err(self.failed(path))
    }

    /// Puts the result in its place.
    pub fn finish(self) -> Result<(), Error> {
        check_free(&self.path)?;
        if self.place.is_file() {
            // Unlike a renaming, a second name for the file replaces nothing. Some file systems
            // have no second names.
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
            "a file or a folder of this name is there already, and nothing is overwritten",
        ))),
    }
}

#[cfg(test)]
mod tests {
    // In a test it is the failure.
    #![allow(clippy::unwrap_used)]

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
        // Both what is there before and what comes meanwhile.
        let output = Output::new(&path).unwrap();
        output.write(output.place(), "new").unwrap();
        fs::write(&path, "old").unwrap();
        for error in [
            output.finish().unwrap_err(),
            Output::new(&path).unwrap_err(),
        ] {
            assert!(
                error.to_string().contains("nothing is overwritten"),
                "{error}"
            );
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
