//! Downloading a release: `pip` fetches the pinned wheel, the libraries in it go to the cache
//! folder.
//!
//! A lock keeps several processes from fetching at once. The release's folder appears under its
//! name by a rename, after all checksums were right. If a file in it is damaged later, the folder
//! is replaced.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    process::Command,
};

use sd_text::outside::printable;

use super::{
    RuntimeError,
    locate::Damage,
    release::{Product, Release},
};
use crate::hash;

/// What the names of temporary folders begin with.
const PREFIX: &str = ".tmp";

/// The path of the release's library in `cache`, fetched if it is not there or damaged.
pub(super) fn fetch(release: &Release, cache: &Path) -> Result<PathBuf, RuntimeError> {
    fetch_into(release, cache).map_err(|problem| RuntimeError::Fetch {
        what: release.product.title().into(),
        problem,
    })
}

/// As [`fetch`]; an error says which step failed, and how.
fn fetch_into(release: &Release, cache: &Path) -> Result<PathBuf, String> {
    let at = |verb: &'static str, path: &Path| {
        let path = printable(path.display());
        move |error: io::Error| format!("{verb} {path}: {error}")
    };

    fs::create_dir_all(cache).map_err(at("creating", cache))?;
    let lock_path = cache.join("fetch.lock");
    let lock = File::create(&lock_path).map_err(at("creating", &lock_path))?;
    // Released when the file is closed, also by a process that dies.
    lock.lock().map_err(at("locking", &lock_path))?;

    remove_leftovers(cache);

    let folder = cache.join(release.folder());
    let library = folder.join(release.library());
    let mut damage = None;
    if library.exists() {
        // Again, under the lock: another process may have fetched it meanwhile.
        match release.check(&folder) {
            Ok(()) => return Ok(library),
            Err(Damage { path, problem }) => {
                let path = printable(path.display());
                damage = Some(format!("{path} is damaged: {problem}"));
            }
        }
    }
    // Long work is announced; nobody listening is no reason not to do it.
    let announce = |line: &str| {
        let _ = writeln!(io::stderr(), "{line}");
    };
    if let Some(damage) = &damage {
        announce(damage);
    }
    announce(&format!(
        "Fetching {} {} with pip, once, into {} …",
        release.product.title(),
        release.product.version(),
        printable(folder.display())
    ));
    let work = tempfile::Builder::new().prefix(PREFIX).tempdir_in(cache);
    let work = work.map_err(at("creating a folder in", cache))?;
    let wheel = download(release, work.path()).map_err(|problem| match damage {
        Some(damage) => format!("{damage}; {problem}"),
        None => problem,
    })?;
    check(&wheel, release.wheel_sha256)?;

    let unpacked = work.path().join("unpacked");
    fs::create_dir(&unpacked).map_err(at("creating", &unpacked))?;
    unpack(&wheel, release, &unpacked)
        .map_err(|error| format!("unpacking {}: {error}", printable(wheel.display())))?;
    for member in release.members() {
        check(&unpacked.join(member.file), member.sha256)?;
    }
    if folder.exists() {
        // A folder that has files cannot be replaced by a rename. It is deleted with `work`.
        let replaced = work.path().join("replaced");
        fs::rename(&folder, &replaced).map_err(at("moving away", &folder))?;
    }
    fs::rename(&unpacked, &folder).map_err(at("renaming to", &folder))?;
    Ok(library)
}

/// Removes the temporary folders of processes that were killed while they fetched. The caller holds
/// the lock, so nobody uses these folders. Temporary files are left alone: another process may be
/// writing its hashes.
fn remove_leftovers(cache: &Path) {
    for entry in fs::read_dir(cache).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let temporary = name.as_encoded_bytes().starts_with(PREFIX.as_bytes());
        if temporary && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            // A folder that stays only takes up space.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// The path of the wheel in `folder`.
fn download(release: &Release, folder: &Path) -> Result<PathBuf, String> {
    // The wheel is named by its own tags, so the host's Python can be any that has pip.
    let (package, version) = (release.product.package(), release.product.version());
    let requirement = format!("{package}=={version}");
    let arguments = [
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-input",
        "--no-deps",
        "--only-binary=:all:",
        "--implementation=cp",
        "--python-version=3.11",
        "--abi=cp311",
        "--platform",
        release.tag,
        &requirement,
        "--dest",
    ];
    let mut problems = Vec::new();
    for python in ["python3", "python"] {
        match Command::new(python).args(arguments).arg(folder).output() {
            Ok(output) if output.status.success() => {
                let wheels = fs::read_dir(folder)
                    .into_iter()
                    .flatten()
                    .flatten()
                    .map(|entry| entry.path());
                return wheels
                    .into_iter()
                    .find(|path| path.extension().is_some_and(|e| e == "whl"))
                    .ok_or_else(|| format!("`{python} -m pip download` left no wheel"));
            }
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr);
                let last = said
                    .lines()
                    .rev()
                    .find(|line| !line.trim().is_empty())
                    .unwrap_or("it said nothing")
                    .trim();
                problems.push(format!(
                    "`{python} -m pip download {requirement}` failed ({}): {}",
                    output.status,
                    printable(last)
                ));
            }
            Err(error) => problems.push(format!("`{python}`: {error}")),
        }
    }
    problems.push(format!(
        "Python 3 with pip is needed, or {} with the path of {}",
        release.product.variable(),
        match release.product {
            Product::OnnxRuntime => "an ONNX Runtime library",
            Product::OpenVinoBuild => "an ONNX Runtime library that has OpenVINO's provider",
            Product::OpenVinoPlugin => "its library",
        }
    ));
    Err(problems.join("; "))
}

/// Writes the release's files into `folder`.
fn unpack(
    wheel: &Path,
    release: &Release,
    folder: &Path,
) -> Result<(), Box<dyn std::error::Error>> {
    let mut archive = zip::ZipArchive::new(File::open(wheel)?)?;
    for member in release.members() {
        let name = format!("{}/{}", release.product.source(), member.file);
        let mut file = File::create(folder.join(member.file))?;
        io::copy(&mut archive.by_name(&name)?, &mut file)?;
        // On the disk before the rename, so that a power cut leaves no short file under the right
        // name.
        file.sync_all()?;
    }
    Ok(())
}

fn check(path: &Path, expected: &str) -> Result<(), String> {
    let found = hash::sha256(&[path.to_path_buf()]).map_err(|error| format!("reading {error}"))?;
    if found == expected {
        return Ok(());
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    Err(format!(
        "{} has SHA-256 {found}, expected {expected}",
        printable(name)
    ))
}
