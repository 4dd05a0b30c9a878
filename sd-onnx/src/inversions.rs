//! Loads the builder's textual inversions and adds them to the text encoders.

use std::{error, path::PathBuf};

use ndarray::{Array2, Axis};
use sd_text::{
    Cleanup, ClipTokenizer, InversionError, TextualInversion,
    outside::{chain, printable},
};

use crate::{Error, folder};

/// The extensions of the files of textual inversions.
const EXTENSIONS: [&str; 3] = ["safetensors", "pt", "bin"];
/// The largest number of warnings that are logged separately.
const MOST_REPORTED: usize = 16;

/// One textual inversion, or a path to several.
#[derive(Debug, Clone)]
pub(crate) enum Inversions {
    /// A file, or a folder of files.
    At(PathBuf),
    Given(TextualInversion),
    /// An inversion in a file of a LoRA folder. If it does not fit, it is skipped with a warning.
    Found(TextualInversion),
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
            Inversions::Found(inversion) => {
                let added = add(inversion, &mut report);
                added.unwrap_or_else(|error| report.left_out(error));
            }
            Inversions::At(path) if path.is_dir() => {
                let skipped = |error| report.left_out(error);
                for file in folder::files(path, &EXTENSIONS, skipped)? {
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
