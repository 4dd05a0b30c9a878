//! Lists the files in a folder that a user collects.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
};

use crate::Error;

/// The largest number of files and folders that are searched in one folder. Large collections have
/// a few thousand.
const MOST_ENTRIES: usize = 20_000;

/// Returns the sorted paths of all files in a folder and its subfolders that have one of the
/// extensions, in upper or lower case. A subfolder that cannot be read is passed to `skipped`.
///
/// # Errors
/// [`Error::Io`] if the folder cannot be read, or if there are more than 20,000 files and folders
/// in it.
pub(crate) fn files(
    top: &Path,
    extensions: &[&str],
    mut skipped: impl FnMut(Error),
) -> Result<Vec<PathBuf>, Error> {
    if top.is_file() {
        let problem = "this is a file, expected a folder";
        return Err(Error::io(top)(io::Error::other(problem)));
    }
    let mut files = Vec::new();
    let mut folders = vec![top.to_owned()];
    // Visits each folder once: a link may lead back to a folder above it.
    let mut known = HashSet::new();
    let mut entries = 0;
    while let Some(folder) = folders.pop() {
        let mut read = || -> io::Result<()> {
            if !known.insert(fs::canonicalize(&folder)?) {
                return Ok(());
            }
            for entry in fs::read_dir(&folder)? {
                entries += 1;
                if entries > MOST_ENTRIES {
                    break;
                }
                let path = entry?.path();
                let extension = path.extension().unwrap_or_default();
                if path.is_dir() {
                    folders.push(path);
                } else if extensions
                    .iter()
                    .any(|&it| extension.eq_ignore_ascii_case(it))
                {
                    files.push(path);
                }
            }
            Ok(())
        };
        match read() {
            Err(error) if folder == top => return Err(Error::io(top)(error)),
            Err(error) => skipped(Error::io(&folder)(error)),
            Ok(()) => {}
        }
        if entries > MOST_ENTRIES {
            let problem = format!(
                "the folder has more than {MOST_ENTRIES} files and folders, expected a folder of \
                 model files"
            );
            return Err(Error::io(top)(io::Error::other(problem)));
        }
    }
    files.sort();
    Ok(files)
}
