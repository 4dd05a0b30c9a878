//! Finds a library: at a given path, in the cache folder, or by downloading it.

use std::{
    io,
    path::{Path, PathBuf},
};

use sd_text::outside;

use super::{
    RuntimeError,
    release::{Product, Release},
};
use crate::hash;

/// Returns the absolute path of the library. `ort` would search for a relative one.
pub(super) fn locate(explicit: Option<&Path>, product: Product) -> Result<PathBuf, RuntimeError> {
    let variable = std::env::var_os(product.variable()).filter(|value| !value.is_empty());
    match (explicit, variable) {
        (Some(path), _) => named(path, "", product),
        (None, Some(path)) => {
            let origin = format!(" (from {})", product.variable());
            named(Path::new(&path), &origin, product)
        }
        (None, None) => cached(product),
    }
}

/// Returns the path of a named library. If it cannot be opened, no other library replaces it.
fn named(path: &Path, origin: &str, product: Product) -> Result<PathBuf, RuntimeError> {
    let opened = std::path::absolute(path).and_then(|path| outside::open(&path).map(|_| path));
    opened.map_err(|error| match error.kind() {
        // Loading a pipe would block forever.
        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => RuntimeError::NotOnnxRuntime {
            path: path.to_path_buf(),
            problem: error.to_string(),
        },
        _ => RuntimeError::NotFound {
            what: product.title().into(),
            searched: vec![format!("{}{origin}", path.display())],
            hint: error.to_string(),
        },
    })
}

/// Returns the library in the cache folder, downloading it if necessary and possible.
fn cached(product: Product) -> Result<PathBuf, RuntimeError> {
    let cache = dirs::cache_dir().map(|cache| cache.join("sd-onnx"));
    let place = match (&cache, product.here()) {
        (Some(cache), Some(release)) => {
            let folder = cache.join(release.folder());
            let library = folder.join(release.library());
            if library.exists() {
                match release.check(&folder) {
                    Ok(()) => return Ok(library),
                    Err(_) if cfg!(feature = "fetch") => {}
                    Err(Damage { path, problem }) => {
                        return Err(RuntimeError::Damaged {
                            what: product.title().into(),
                            path,
                            problem,
                        });
                    }
                }
            }
            #[cfg(feature = "fetch")]
            return super::fetch::fetch(release, cache);
            #[cfg(not(feature = "fetch"))]
            library.display().to_string()
        }
        (None, Some(_)) => "the cache folder (this system has none)".into(),
        (_, None) => {
            let (os, architecture) = (std::env::consts::OS, std::env::consts::ARCH);
            format!("the cache folder (there is no pinned release for {os} on {architecture})")
        }
    };
    let (title, package, version) = (product.title(), product.package(), product.version());
    let (source, variable) = (product.source(), product.variable());
    let fetch = match cfg!(feature = "fetch") {
        true => "",
        false => ", or turn on the Cargo feature `fetch` of sd-onnx, which downloads it",
    };
    Err(RuntimeError::NotFound {
        what: title.into(),
        searched: vec![format!("{variable} (not set)"), place],
        hint: format!(
            "install {title} {version} (`pip install {package}=={version}` puts the library into \
             {source}) and set {variable} to the path of the library{fetch}"
        ),
    })
}

/// A file that differs from its release.
#[derive(Debug)]
pub(super) struct Damage {
    pub path: PathBuf,
    pub problem: String,
}

impl Release {
    /// Checks that the files in `folder` match the release byte for byte.
    pub fn check(&self, folder: &Path) -> Result<(), Damage> {
        self.members().try_for_each(|member| {
            let path = folder.join(member.file);
            check(&path, member.sha256).map_err(|problem| Damage { path, problem })
        })
    }
}

fn check(path: &Path, expected: &str) -> Result<(), String> {
    outside::open(path).map_err(|error| error.to_string())?;
    let files = [path.to_path_buf()];
    let remembered = hash::remembered(&files, hash::cache().as_deref());
    if remembered.is_ok_and(|found| found == expected) {
        return Ok(());
    }
    // A remembered hash is trusted only if it is right. A repaired file may have the length and the
    // modification time of the damaged one.
    let found = hash::sha256(&files).map_err(|error| error.to_string())?;
    if found == expected {
        return Ok(());
    }
    Err(format!("it has SHA-256 {found}, expected {expected}"))
}
