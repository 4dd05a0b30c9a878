//! Textual inversions that a builder was given.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
};

use sd_text::TextualInversion;

use crate::Error;

/// One, or where some are.
#[derive(Debug, Clone)]
pub(crate) enum Inversions {
    /// A file, or a folder of files.
    At(PathBuf),
    Given(TextualInversion),
}

/// All of them, those of a folder by their names.
pub(crate) fn read(sources: &[Inversions]) -> Result<Vec<TextualInversion>, Error> {
    let mut inversions = Vec::new();
    for source in sources {
        match source {
            Inversions::Given(inversion) => inversions.push(inversion.clone()),
            Inversions::At(path) if path.is_dir() => {
                for file in files(path)? {
                    inversions.push(TextualInversion::load(file)?);
                }
            }
            Inversions::At(path) => inversions.push(TextualInversion::load(path)?),
        }
    }
    Ok(inversions)
}

fn files(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        let is = |extension: &OsStr| {
            path.extension()
                .is_some_and(|other| other.eq_ignore_ascii_case(extension))
        };
        if path.is_dir() {
            continue;
        }
        if is(OsStr::new("safetensors")) {
            files.push(path);
        } else if is(OsStr::new("pt")) || is(OsStr::new("bin")) {
            tracing::warn!(
                file = %path.display(),
                "left out: a pickle, which can run code when it is read; save it again as safetensors"
            );
        }
    }
    files.sort();
    Ok(files)
}
