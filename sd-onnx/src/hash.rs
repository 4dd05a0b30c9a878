//! Computes the SHA-256 of model files and caches it on disk.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use sd_text::outside::{self, printable};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Returns the path of the hash cache, `sd-onnx/hashes.json` in the user's cache folder, or `None`
/// if the system has no cache folder.
pub(crate) fn cache() -> Option<PathBuf> {
    dirs::cache_dir().map(|folder| folder.join("sd-onnx").join("hashes.json"))
}

/// Returns the SHA-256 of the concatenated bytes of `files`, in hexadecimal digits.
///
/// If `cache` has an entry for files of these paths, lengths and modification times, its hash is
/// returned. Otherwise the files are read. A hash that cannot be stored is computed again the next
/// time.
///
/// # Errors
/// Returns an error that names the file if a file cannot be read.
pub(crate) fn remembered(files: &[PathBuf], cache: Option<&Path>) -> io::Result<String> {
    let now = stamps(files)?;
    let known = cache.map(read_cache).unwrap_or_default();
    if let Some(known) = known.into_iter().find(|known| known.files == now) {
        return Ok(known.sha256);
    }
    let sha256 = sha256(files)?;
    // A file may have changed while it was read. Its hash is then not stored.
    if let Some(cache) = cache
        && stamps(files)? == now
        && let Err(error) = remember(cache, now, &sha256)
    {
        tracing::debug!(path = %cache.display(), %error, "the hash could not be cached");
    }
    Ok(sha256)
}

/// Returns the SHA-256 of the concatenated bytes of `files`, in hexadecimal digits.
///
/// # Errors
/// Returns an error that names the file if a file cannot be read.
pub(crate) fn sha256(files: &[PathBuf]) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    for path in files {
        let mut file = outside::open(path).map_err(|error| at(path, error))?;
        loop {
            match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => hasher.update(&buffer[..read]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(at(path, error)),
            }
        }
    }
    Ok(hex(&hasher.finalize()))
}

/// Returns the SHA-256 of at most `length` bytes of a file from byte `from` on, in hexadecimal
/// digits.
pub(crate) fn sha256_of(mut file: &File, from: u64, length: u64) -> io::Result<String> {
    file.seek(SeekFrom::Start(from))?;
    let mut hasher = Sha256::new();
    let mut file = file.take(length);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => hasher.update(&buffer[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(hex(&hasher.finalize()))
}

/// Formats each byte as two hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An entry of the hash cache.
#[derive(Debug, Serialize, Deserialize)]
struct Known {
    files: Vec<Stamp>,
    sha256: String,
}

/// The properties by which an unchanged file is recognised.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    /// The path with links resolved.
    path: String,
    bytes: u64,
    /// The modification time, in nanoseconds since 1970.
    modified: u64,
}

fn stamps(files: &[PathBuf]) -> io::Result<Vec<Stamp>> {
    let stamp = |path: &PathBuf| {
        let real = fs::canonicalize(path)?;
        let metadata = fs::metadata(&real)?;
        let since = metadata.modified()?.duration_since(UNIX_EPOCH);
        Ok(Stamp {
            path: real.to_string_lossy().into_owned(),
            bytes: metadata.len(),
            modified: since.unwrap_or_default().as_nanos() as u64,
        })
    };
    files
        .iter()
        .map(|path| stamp(path).map_err(|error| at(path, error)))
        .collect()
}

/// The largest cache file that is read, in bytes. It holds the hashes of some 10,000 models. A
/// larger one is replaced.
const MOST_CACHE: u64 = 4 << 20;

/// Returns the entries of the cache, or none if the file is missing or unreadable.
fn read_cache(path: &Path) -> Vec<Known> {
    let bytes = outside::read(path, MOST_CACHE).unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or_default()
}

fn remember(path: &Path, files: Vec<Stamp>, sha256: &str) -> io::Result<()> {
    // `files::write` would write into a pipe, which can block forever.
    if fs::metadata(path).is_ok_and(|there| !there.is_file()) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // Reads the cache again, because another process may have added to it in the meantime.
    let mut known = read_cache(path);
    let of_these = |known: &Known| {
        let (there, here) = (known.files.iter(), files.iter());
        there.map(|file| &file.path).eq(here.map(|file| &file.path))
    };
    known.retain(|known| !of_these(known));
    known.push(Known {
        files,
        sha256: sha256.to_owned(),
    });
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    sd_core::files::write(path, &serde_json::to_vec_pretty(&known)?)
}

fn at(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(
        error.kind(),
        format!("{}: {error}", printable(path.display())),
    )
}

#[cfg(test)]
// A failing `unwrap` fails the test.
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    /// The SHA-256 of "abc", from FIPS 180-2, appendix B.1.
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    struct Case {
        _folder: tempfile::TempDir,
        files: Vec<PathBuf>,
        cache: PathBuf,
    }

    impl Case {
        /// The text "abc", split over two files.
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let files = vec![folder.path().join("2"), folder.path().join("1")];
            fs::write(&files[0], "a").unwrap();
            fs::write(&files[1], "bc").unwrap();
            Self {
                cache: folder.path().join("cache/sd-onnx/hashes.json"),
                files,
                _folder: folder,
            }
        }

        fn hash(&self) -> String {
            remembered(&self.files, Some(&self.cache)).unwrap()
        }

        /// Replaces the second file. Its modification time is the old one plus `later`.
        fn change(&self, bytes: &str, later: Duration) {
            let time = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();
            let before: SystemTime = time(&self.files[1]);
            fs::write(&self.files[1], bytes).unwrap();
            let file = File::options().write(true).open(&self.files[1]).unwrap();
            file.set_modified(before + later).unwrap();
        }
    }

    #[test]
    fn a_file_is_read_again_only_when_it_was_changed() {
        let case = Case::new();
        assert_eq!(case.hash(), ABC);
        case.change("xy", Duration::ZERO);
        assert_eq!(case.hash(), ABC, "same path, length and time: not read");
        case.change("xy", Duration::from_secs(1));
        let changed = case.hash();
        assert_ne!(changed, ABC);
        case.change("bc", Duration::ZERO);
        assert_eq!(case.hash(), changed, "the old entry was replaced");
        case.change("bcd", Duration::ZERO);
        assert_ne!(case.hash(), changed, "another length");
        assert_eq!(read_cache(&case.cache).len(), 1);
        // The order of the files determines the hash and the cache entry.
        let turned: Vec<_> = case.files.iter().rev().cloned().collect();
        let turned = remembered(&turned, Some(&case.cache)).unwrap();
        assert_ne!(turned, case.hash());
        assert_eq!(read_cache(&case.cache).len(), 2);
    }

    #[test]
    fn a_cache_that_cannot_be_used_does_no_harm() {
        let case = Case::new();
        assert_eq!(remembered(&case.files, None).unwrap(), ABC);
        for spoiled in ["", "{", "[{\"files\": 1}]", "\0\0\0"] {
            fs::create_dir_all(case.cache.parent().unwrap()).unwrap();
            fs::write(&case.cache, spoiled).unwrap();
            assert_eq!(case.hash(), ABC);
            assert_eq!(read_cache(&case.cache).len(), 1, "replaced");
        }
        // Reading from this pipe or writing into it would block forever.
        #[cfg(target_os = "linux")]
        {
            fs::remove_file(&case.cache).unwrap();
            let made = std::process::Command::new("mkfifo")
                .arg(&case.cache)
                .status();
            assert!(made.unwrap().success());
            assert_eq!(case.hash(), ABC);
            fs::remove_file(&case.cache).unwrap();
        }
        fs::write(&case.cache, vec![b' '; MOST_CACHE as usize + 1]).unwrap();
        assert_eq!(case.hash(), ABC);
        assert_eq!(read_cache(&case.cache).len(), 1, "replaced by a new cache");
        // A file in place of the cache folder: not even root can write there.
        fs::remove_dir_all(case.cache.parent().unwrap()).unwrap();
        fs::write(case.cache.parent().unwrap(), "").unwrap();
        assert_eq!(case.hash(), ABC);
        assert_eq!(case.hash(), ABC);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn devices_are_not_hashed() {
        assert!(sha256(&["/dev/zero".into()]).is_err());
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let error = remembered(&["/no/such/file".into()], None).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().starts_with("/no/such/file: "), "{error}");
    }
}
