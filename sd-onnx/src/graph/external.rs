//! The locations of a graph's external data.
//!
//! ONNX Runtime needs one folder, and the path of each file relative to it.

use std::{
    io::{Error as IoError, ErrorKind},
    path::{Path, PathBuf},
};

use crate::{Error, weights::not_utf8};

/// Returns the deepest folder that contains all `files`, and the path of each file relative to it.
/// The paths in `files` are canonical. The returned paths have forward slashes.
///
/// # Errors
/// [`Error::Io`] when a relative path is not valid UTF-8, or when the files have no folder in
/// common, such as files on two Windows drives.
pub(crate) fn locate<P: AsRef<Path>>(files: &[P]) -> Result<(PathBuf, Vec<String>), Error> {
    let root = common_folder(files);
    let locations = files.iter().map(|file| {
        let file = file.as_ref();
        if root.as_os_str().is_empty() {
            let problem = "the weight files of a network must be on the same drive";
            return Err(Error::io(file)(IoError::new(
                ErrorKind::InvalidInput,
                problem,
            )));
        }
        relative(file, &root).ok_or_else(|| not_utf8(file))
    });
    let locations = locations.collect::<Result<_, _>>()?;
    Ok((root, locations))
}

/// Returns the deepest folder that contains all files, or an empty path if there is none.
fn common_folder<P: AsRef<Path>>(files: &[P]) -> PathBuf {
    let mut folders = files
        .iter()
        .map(|file| file.as_ref().parent().unwrap_or(file.as_ref()));
    let first = folders.next().unwrap_or(Path::new("")).to_path_buf();
    folders.fold(first, |common, folder| {
        common
            .components()
            .zip(folder.components())
            .take_while(|(a, b)| a == b)
            .map(|(a, _)| a)
            .collect()
    })
}

/// Returns the path of `file` relative to `root`. Returns `None` if the path is not valid UTF-8 or
/// is outside `root`.
fn relative(file: &Path, root: &Path) -> Option<String> {
    let parts: Option<Vec<_>> = file
        .strip_prefix(root)
        .ok()?
        .components()
        .map(|part| part.as_os_str().to_str())
        .collect();
    Some(parts?.join("/"))
}

#[cfg(test)]
mod tests {
    use sd_text::outside::chain;

    use super::*;

    #[test]
    fn the_common_folder_is_the_deepest_one() {
        let located = |files: &[&str]| {
            let (root, locations) = locate(files).unwrap();
            (root.to_str().unwrap().to_owned(), locations.join(" "))
        };
        let expected = |root: &str, locations: &str| (root.to_owned(), locations.to_owned());
        assert_eq!(located(&["/a/b/c.x"]), expected("/a/b", "c.x"));
        assert_eq!(
            located(&["/a/b/c.x", "/a/d/e.x"]),
            expected("/a", "b/c.x d/e.x")
        );
        assert_eq!(
            located(&["/a/b/c.x", "/a/b/d/e.x", "/a/bb/e.x"]),
            expected("/a", "b/c.x b/d/e.x bb/e.x")
        );
    }

    #[test]
    fn files_on_two_drives_are_refused() {
        // Relative paths have no root in common, like paths on two Windows drives.
        let error = chain(&locate(&["c/model.x", "d/model.x"]).unwrap_err());
        assert!(error.contains("must be on the same drive"), "{error}");
    }
}
