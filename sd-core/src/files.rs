//! Writing files atomically, and encoding PNG files.

use std::{
    fs,
    io::{self, Write},
    path::Path,
};

pub use crate::infotext::png::png;

/// Writes a file atomically: the file appears under its name only when it is complete.
///
/// An existing file is replaced, and the new file takes over its permissions. A link to a file is
/// followed. Anything that is not a regular file, such as a device or a pipe, is written to
/// directly.
///
/// # Errors
/// Returns an error if the folder cannot be written to or the disk is full. No incomplete file is
/// left behind.
pub fn write(path: impl AsRef<Path>, bytes: &[u8]) -> io::Result<()> {
    let path = path.as_ref();
    match fs::metadata(path) {
        Ok(there) if !there.is_file() => fs::write(path, bytes),
        Ok(there) => {
            let real = fs::canonicalize(path)?;
            let file = temporary(&real, bytes)?;
            // The new file must not be readable for more users than the old one.
            file.as_file().set_permissions(there.permissions())?;
            file.persist(&real)?;
            Ok(())
        }
        Err(_) => {
            temporary(path, bytes)?.persist(path)?;
            Ok(())
        }
    }
}

/// Writes a file as [`write()`] does, unless it already exists.
///
/// # Errors
/// Returns the errors of `write`, and one of kind [`AlreadyExists`](io::ErrorKind::AlreadyExists)
/// if the file exists.
pub fn write_new(path: impl AsRef<Path>, bytes: &[u8]) -> io::Result<()> {
    let path = path.as_ref();
    temporary(path, bytes)?.persist_noclobber(path)?;
    Ok(())
}

fn temporary(path: &Path, bytes: &[u8]) -> io::Result<tempfile::NamedTempFile> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    // By default only the owner can read a temporary file. This one gets the permissions that the
    // umask gives to any new file.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    // The error itself would name the temporary file, which the caller does not know.
    let file = builder.tempfile_in(folder);
    let mut file = file.map_err(|error| io::Error::from(error.kind()))?;
    // `as_file_mut` bypasses the wrapper, whose errors would name the temporary file, too.
    file.as_file_mut().write_all(bytes)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_whole_or_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        write_new(&path, b"one").unwrap();
        assert_eq!(
            write_new(&path, b"two").unwrap_err().kind(),
            io::ErrorKind::AlreadyExists
        );
        assert_eq!(fs::read(&path).unwrap(), b"one");
        write(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        let error = write(folder.path().join("no/such"), b"").unwrap_err();
        assert!(!error.to_string().contains("tmp"), "{error}");
        assert_eq!(
            fs::read_dir(folder.path()).unwrap().count(),
            1,
            "no temporary file is left"
        );
    }

    #[cfg(unix)]
    #[test]
    fn a_private_file_stays_private() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        write(&path, b"one").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        write(&path, b"two").unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(fs::read(&path).unwrap(), b"two");
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_and_devices_stay() {
        let folder = tempfile::tempdir().unwrap();
        let (target, link) = (folder.path().join("target"), folder.path().join("link"));
        write(&target, b"one").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        write(&link, b"two").unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read(&target).unwrap(), b"two");
        write("/dev/null", b"gone").unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
    }
}
