//! Loads the builder's textual inversions and adds them to the text encoders.

use std::{
    collections::HashSet,
    error, fs, io,
    path::{Path, PathBuf},
};

use ndarray::{Array2, Axis};
use sd_text::{
    Cleanup, ClipTokenizer, InversionError, TextualInversion,
    outside::{chain, printable},
};

use crate::Error;

/// The largest number of files and folders that are searched in one folder. Large collections have
/// a few thousand.
const MOST_ENTRIES: usize = 20_000;
/// The largest number of warnings that are logged separately.
const MOST_REPORTED: usize = 16;

/// One textual inversion, or a path to several.
#[derive(Debug, Clone)]
pub(crate) enum Inversions {
    /// A file, or a folder of files.
    At(PathBuf),
    Given(TextualInversion),
}

/// A tokenizer to which inversions are added, and the rows that they get in the text model's token
/// embedding.
pub(crate) struct Rows<'a> {
    pub tokenizer: &'a mut ClipTokenizer,
    /// The index of the first row after the stored ones.
    pub first: usize,
    /// The width of a row.
    pub width: usize,
}

/// Adds all inversions to each tokenizer. The inversions of a folder are added in the order of
/// their paths.
///
/// Returns, for each tokenizer, the vectors `[any, width]` that are its rows of the token embedding
/// from `first` on.
///
/// An inversion must have vectors for every text model. In a folder, an unusable file is reported
/// and skipped.
pub(crate) fn add(
    sources: &[Inversions],
    towers: &mut [Rows<'_>],
) -> Result<Vec<Array2<f32>>, Error> {
    let empty = |tower: &Rows<'_>| Array2::zeros((0, tower.width));
    let mut all: Vec<_> = towers.iter().map(empty).collect();
    let mut report = Report::default();
    let mut add = |inversion: &TextualInversion, report: &mut Report| {
        for tower in towers.iter() {
            inversion.vectors(tower.width)?;
        }
        for (index, (tower, rows)) in towers.iter_mut().zip(&mut all).enumerate() {
            let first = (tower.first + rows.nrows()) as u32;
            let ids = tower.tokenizer.add_inversion(inversion, first)?;
            rows.append(Axis(0), inversion.vectors(tower.width)?)
                .expect("the vectors were requested with the width of the model");
            let unheard = |name: &&String| {
                let found = tower.tokenizer.tokenize(name, Cleanup::Transformers);
                !found.into_iter().eq(ids.clone())
            };
            if index == 0
                && let Some(name) = inversion.names().iter().find(unheard)
            {
                let path = printable(inversion.path().display());
                let name = printable(name);
                report.warn(format!(
                    "{path}: a prompt cannot call it by \"{name}\", only by its other name"
                ));
            }
        }
        Ok::<_, InversionError>(())
    };
    for source in sources {
        match source {
            Inversions::Given(inversion) => add(inversion, &mut report)?,
            Inversions::At(path) if path.is_dir() => {
                for file in files(path, &mut report)? {
                    let added = TextualInversion::load(file)
                        .and_then(|inversion| add(&inversion, &mut report));
                    added.unwrap_or_else(|error| report.left_out(error));
                }
            }
            Inversions::At(path) => add(&TextualInversion::load(path)?, &mut report)?,
        }
    }
    report.finish();
    Ok(all)
}

/// Returns the sorted paths of all files in a folder and its subfolders that have the extension of
/// a textual inversion.
fn files(top: &Path, report: &mut Report) -> Result<Vec<PathBuf>, Error> {
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
                let is = |extension: &str| {
                    path.extension()
                        .is_some_and(|other| other.eq_ignore_ascii_case(extension))
                };
                if path.is_dir() {
                    folders.push(path);
                } else if is("safetensors") || is("pt") || is("bin") {
                    files.push(path);
                }
            }
            Ok(())
        };
        match read() {
            Err(error) if folder == top => return Err(Error::io(top)(error)),
            Err(error) => report.left_out(Error::io(&folder)(error)),
            Ok(()) => {}
        }
        if entries > MOST_ENTRIES {
            let problem = format!(
                "more than {MOST_ENTRIES} files and folders in it, expected a folder of textual inversions"
            );
            return Err(Error::io(top)(io::Error::other(problem)));
        }
    }
    files.sort();
    Ok(files)
}

/// Logs the first few warnings, and then the number of the others.
#[derive(Default)]
struct Report {
    count: usize,
}

impl Report {
    fn left_out(&mut self, error: impl error::Error + 'static) {
        self.warn(format!("textual inversion left out: {}", chain(&error)));
    }

    fn warn(&mut self, problem: String) {
        self.count += 1;
        if self.count <= MOST_REPORTED {
            tracing::warn!("{problem}");
        }
    }

    fn finish(self) {
        let more = self.count.saturating_sub(MOST_REPORTED);
        if more > 0 {
            tracing::warn!("{more} more warnings about textual inversions");
        }
    }
}
