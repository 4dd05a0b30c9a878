//! Downloading the library: `pip` fetches the pinned wheel, the one library in it goes to the cache folder.
//!
//! A lock keeps several processes from fetching at once. The library appears under its name by a rename, after its
//! checksum was right. One that was damaged later is replaced.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    process::Command,
};

use super::{
    RuntimeError,
    release::{Release, VERSION},
};
use sd_text::outside::printable;

use crate::hash;

/// What the names of temporary folders begin with.
const PREFIX: &str = ".tmp";

/// The library's path in `cache`, fetched if it is not there or damaged.
pub(super) fn fetch(release: &Release, cache: &Path) -> Result<PathBuf, RuntimeError> {
    let failed = |what: String| {
        move |error: io::Error| RuntimeError::Fetch {
            problem: format!("{what}: {error}"),
        }
    };
    let at = |verb: &str, path: &Path| failed(format!("{verb} {}", printable(path.display())));

    fs::create_dir_all(cache).map_err(at("creating", cache))?;
    let lock_path = cache.join("fetch.lock");
    let lock = File::create(&lock_path).map_err(at("creating", &lock_path))?;
    // Released when the file is closed, also by a process that dies.
    lock.lock().map_err(at("locking", &lock_path))?;

    remove_leftovers(cache);

    let folder = cache.join(release.folder());
    let library = folder.join(release.file());
    let mut damage = None;
    if library.exists() {
        // Again, under the lock: another process may have fetched it meanwhile.
        match super::check(&library, release) {
            Ok(()) => return Ok(library),
            Err(problem) => {
                damage = Some(format!("{} is damaged: {problem}", library.display()));
            }
        }
    }
    // Long work is announced; nobody listening is no reason not to do it.
    let announce = |line: &str| {
        let _ = writeln!(io::stderr(), "{}", printable(line));
    };
    if let Some(damage) = &damage {
        announce(damage);
    }
    announce(&format!(
        "Fetching ONNX Runtime {VERSION} with pip, once, into {} …",
        folder.display()
    ));
    let work = tempfile::Builder::new().prefix(PREFIX).tempdir_in(cache);
    let work = work.map_err(at("creating a folder in", cache))?;
    let wheel = download(release, work.path()).map_err(|error| match (error, damage) {
        (RuntimeError::Fetch { problem }, Some(damage)) => RuntimeError::Fetch {
            problem: format!("{}; {problem}", printable(damage)),
        },
        (error, _) => error,
    })?;
    check(&wheel, release.wheel_sha256)?;

    let unpacked = work.path().join(release.file());
    unpack(&wheel, release.member, &unpacked).map_err(|error| RuntimeError::Fetch {
        problem: format!("unpacking {}: {error}", printable(wheel.display())),
    })?;
    check(&unpacked, release.library_sha256)?;
    fs::create_dir_all(&folder).map_err(at("creating", &folder))?;
    fs::rename(&unpacked, &library).map_err(at("renaming to", &library))?;
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
fn download(release: &Release, folder: &Path) -> Result<PathBuf, RuntimeError> {
    // The wheel is named by its own tags, so the host's Python can be any that has pip.
    let requirement = format!("onnxruntime=={VERSION}");
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
                    .ok_or_else(|| RuntimeError::Fetch {
                        problem: format!("`{python} -m pip download` left no wheel"),
                    });
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
    problems.push(
        "Python 3 with pip is needed, or ORT_DYLIB_PATH with the path of an ONNX Runtime library"
            .into(),
    );
    Err(RuntimeError::Fetch {
        problem: problems.join("; "),
    })
}

fn unpack(wheel: &Path, member: &str, target: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let mut archive = zip::ZipArchive::new(File::open(wheel)?)?;
    let mut file = File::create(target)?;
    io::copy(&mut archive.by_name(member)?, &mut file)?;
    // On the disk before the rename, so that a power cut leaves no short file under the right name.
    file.sync_all()?;
    Ok(())
}

fn check(path: &Path, expected: &str) -> Result<(), RuntimeError> {
    let found = hash::sha256(&[path.to_path_buf()]).map_err(|error| RuntimeError::Fetch {
        problem: format!("reading {error}"),
    })?;
    if found == expected {
        return Ok(());
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    Err(RuntimeError::Fetch {
        problem: format!(
            "{} has SHA-256 {found}, expected {expected}",
            printable(name)
        ),
    })
}
