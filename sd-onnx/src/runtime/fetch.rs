//! Downloads a release: `pip` fetches the pinned wheel, and its libraries go to the cache folder.
//!
//! A lock keeps several processes from downloading at once. The folder of the release gets its name
//! by a rename, after all checksums have been verified. If a file in it is damaged later, the
//! folder is replaced.

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

/// The prefix of temporary folders.
const PREFIX: &str = ".tmp";

/// Returns the path of the release's library in `cache`. Downloads the release if it is missing or
/// damaged.
pub(super) fn fetch(release: &Release, cache: &Path) -> Result<PathBuf, RuntimeError> {
    fetch_into(release, cache).map_err(|problem| RuntimeError::Fetch {
        what: release.product.title().into(),
        problem,
    })
}

/// Does the work of [`fetch`]. The error names the step that failed and the reason.
fn fetch_into(release: &Release, cache: &Path) -> Result<PathBuf, String> {
    let at = |verb: &'static str, path: &Path| {
        let path = printable(path.display());
        move |error: io::Error| format!("{verb} {path}: {error}")
    };

    fs::create_dir_all(cache).map_err(at("creating", cache))?;
    let lock_path = cache.join("fetch.lock");
    let lock = File::create(&lock_path).map_err(at("creating", &lock_path))?;
    // The lock is released when the file is closed, even if the process is killed.
    lock.lock().map_err(at("locking", &lock_path))?;

    remove_leftovers(cache);

    let folder = cache.join(release.folder());
    let library = folder.join(release.library());
    let mut damage = None;
    if library.exists() {
        // Checked again under the lock, because another process may have downloaded it in the
        // meantime.
        match release.check(&folder) {
            Ok(()) => return Ok(library),
            Err(Damage { path, problem }) => {
                let path = printable(path.display());
                damage = Some(format!("{path} is damaged: {problem}"));
            }
        }
    }
    announce(release, &folder, damage.as_deref());
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
        // A rename cannot replace a folder that has files. The old folder is deleted with `work`.
        let replaced = work.path().join("replaced");
        fs::rename(&folder, &replaced).map_err(at("moving away", &folder))?;
    }
    fs::rename(&unpacked, &folder).map_err(at("renaming to", &folder))?;
    Ok(library)
}

/// Removes the temporary folders of processes that were killed during a download. The caller holds
/// the lock, so nobody uses these folders. Temporary files are left alone, because another process
/// may be writing its hash cache.
fn remove_leftovers(cache: &Path) {
    for entry in fs::read_dir(cache).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let temporary = name.as_encoded_bytes().starts_with(PREFIX.as_bytes());
        if temporary && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            // A folder that cannot be removed only takes up space.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Announces a long download, and why it is repeated. If stderr cannot be written, the download
/// goes on.
fn announce(release: &Release, folder: &Path, damage: Option<&str>) {
    let mut stderr = io::stderr();
    if let Some(damage) = damage {
        let _ = writeln!(stderr, "{damage}");
    }
    let _ = writeln!(
        stderr,
        "Fetching {} {} with pip, once, into {} …",
        release.product.title(),
        release.product.version(),
        printable(folder.display())
    );
}

/// Downloads the wheel and returns its path in `folder`.
fn download(release: &Release, folder: &Path) -> Result<PathBuf, String> {
    // The arguments name the wheel's own tags, so any Python with pip can download it.
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
                return wheel_in(folder)
                    .ok_or_else(|| format!("`{python} -m pip download` downloaded no wheel"));
            }
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr);
                let last = said
                    .lines()
                    .rev()
                    .find(|line| !line.trim().is_empty())
                    .unwrap_or("it printed no message")
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
        "install Python 3 with pip, or set {} to the path of {}",
        release.product.variable(),
        match release.product {
            Product::OnnxRuntime => "an ONNX Runtime library",
            Product::CudaBuild => "an ONNX Runtime library that has CUDA's provider",
            Product::OpenVinoBuild => "an ONNX Runtime library that has OpenVINO's provider",
            Product::OpenVinoPlugin => "the plugin's library",
        }
    ));
    Err(problems.join("; "))
}

/// Returns the path of the wheel in a folder.
fn wheel_in(folder: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|e| e == "whl"))
}

/// Writes the release's files from the wheel into `folder`.
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
        // Written to disk before the rename, so that a power failure leaves no truncated file under
        // the final name.
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
