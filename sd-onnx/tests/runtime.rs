//! Tests how ONNX Runtime is found, refused and fetched. A process can start it only once, so each
//! case runs in a separate process.

// In tests, a panic reports the failure.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/library.rs"]
mod library;

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use common::Model;
use library::real_library;
use sd_onnx::Device;
use sd_text::outside::chain;

/// Loads a model with each library of `SD_TEST_RUNTIMES` in turn, on the device `SD_TEST_DEVICE`,
/// and prints the results. An empty name stands for no library. The process then sleeps for
/// `SD_TEST_SECONDS`.
#[test]
#[ignore = "runs in a separate process, which the other tests start"]
fn child() {
    let model = PathBuf::from(std::env::var_os("SD_TEST_MODEL").unwrap());
    let device = std::env::var("SD_TEST_DEVICE").unwrap().parse().unwrap();
    for library in std::env::var("SD_TEST_RUNTIMES").unwrap().split(';') {
        let builder = sd_onnx::builder().device(device);
        let builder = if library.is_empty() {
            builder
        } else {
            builder.runtime(library)
        };
        match builder.load(&model) {
            Ok(_) => println!("RESULT loaded"),
            Err(error) => println!("RESULT {}", chain(&error)),
        }
    }
    let seconds = std::env::var("SD_TEST_SECONDS").map_or(0, |seconds| seconds.parse().unwrap());
    std::thread::sleep(Duration::from_secs(seconds));
}

struct Case {
    model: tempfile::TempDir,
}

impl Case {
    fn new() -> Self {
        let model = tempfile::tempdir().unwrap();
        Model::of_shape("four-last").write(model.path());
        Self { model }
    }

    fn command(&self, runtimes: &[&Path]) -> Command {
        let runtimes: Vec<_> = runtimes.iter().map(|path| path.to_str().unwrap()).collect();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args([
                "--ignored",
                "--exact",
                "child",
                "--nocapture",
                "--test-threads=1",
            ])
            .env("SD_TEST_MODEL", self.model.path())
            .env("SD_TEST_RUNTIMES", runtimes.join(";"))
            .env("SD_TEST_DEVICE", "cpu")
            .env_remove("ORT_DYLIB_PATH")
            .env_remove("ORT_OPENVINO_PLUGIN")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn results(&self, runtimes: &[&Path]) -> Vec<String> {
        results(self.command(runtimes).output().unwrap())
    }
}

fn results(output: Output) -> Vec<String> {
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        output.status.success(),
        "{}: {stdout}{stderr}",
        output.status
    );
    // The test harness prints the name of the test in front of the first result.
    stdout
        .lines()
        .filter_map(|line| line.split_once("RESULT "))
        .map(|(_, result)| result.to_owned())
        .collect()
}

/// Compiles a dynamic library from `source` into `folder`.
fn library(folder: &Path, name: &str, source: &str) -> PathBuf {
    let (file, library) = (
        folder.join(format!("{name}.rs")),
        folder.join(format!("lib{name}.so")),
    );
    std::fs::write(&file, source).unwrap();
    let status = Command::new("rustc")
        .args(["--edition=2024", "--crate-type=cdylib", "-o"])
        .arg(&library)
        .arg(&file)
        .status();
    assert!(status.unwrap().success());
    library
}

/// Compiles a library that claims to be this version of ONNX Runtime.
fn pretender(folder: &Path, version: &str) -> PathBuf {
    let source = r#"
        #[repr(C)]
        pub struct ApiBase { api: extern "C" fn(u32) -> *const (), version: extern "C" fn() -> *const u8 }
        extern "C" fn api(_: u32) -> *const () { std::ptr::null() }
        extern "C" fn version() -> *const u8 { c"VERSION".as_ptr().cast() }
        static BASE: ApiBase = ApiBase { api, version };
        #[unsafe(no_mangle)]
        pub extern "C" fn OrtGetApiBase() -> *const ApiBase { &BASE }
    "#;
    library(folder, "pretender", &source.replace("VERSION", version))
}

#[test]
fn libraries_that_cannot_be_used() {
    let case = Case::new();
    let folder = tempfile::tempdir().unwrap();
    let absent = folder.path().join("libonnxruntime.so");
    let text = folder.path().join("text.so");
    std::fs::write(&text, "no library").unwrap();
    let other = library(
        folder.path(),
        "other",
        "#[unsafe(no_mangle)] pub extern \"C\" fn f() {}",
    );
    let old = pretender(folder.path(), "1.14.1");
    let real = real_library();

    // None of the failures prevents a later start with the right library.
    let results = case.results(&[
        &absent,
        &text,
        &other,
        &old,
        &real,
        &real,
        &other,
        Path::new(""),
    ]);
    let [
        absent_said,
        text_said,
        other_said,
        old_said,
        real_said,
        again,
        second,
        unnamed,
    ] = &results[..]
    else {
        panic!("{results:?}")
    };
    assert!(
        absent_said.contains("not found") && absent_said.contains(absent.to_str().unwrap()),
        "{absent_said}"
    );
    assert!(
        text_said.contains("not an ONNX Runtime library") && text_said.contains("text.so"),
        "{text_said}"
    );
    assert!(
        other_said.contains("no function `OrtGetApiBase`") && other_said.contains("libother.so"),
        "{other_said}"
    );
    assert!(
        old_said.contains("1.14.1, which is too old")
            && old_said.contains("expected 1.23.0 or newer"),
        "{old_said}"
    );
    for said in [real_said, again, unnamed] {
        assert_eq!(said, "loaded");
    }
    // A process has one ONNX Runtime. The error for another one names both.
    assert!(
        second.contains(real.to_str().unwrap()) && second.contains("libother.so"),
        "{second}"
    );
}

#[test]
fn the_environment_variable_is_taken_at_its_word() {
    let case = Case::new();
    let real = real_library();
    let [said] = &results(
        case.command(&[Path::new("")])
            .env("ORT_DYLIB_PATH", &real)
            .output()
            .unwrap(),
    )[..] else {
        panic!()
    };
    assert_eq!(said, "loaded");
    let [said] = &results(
        case.command(&[Path::new("")])
            .env("ORT_DYLIB_PATH", "/no/such.so")
            .output()
            .unwrap(),
    )[..] else {
        panic!()
    };
    assert!(said.contains("/no/such.so (from ORT_DYLIB_PATH)"), "{said}");
}

/// Prints a line to standard error, so that it appears even if the test passes and the harness
/// captures its output.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Lists all files and folders below a folder.
fn below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            found.extend(below(&entry.path()));
        }
        found.push(entry.path());
    }
    found
}

/// Environment variables that disable ONNX Runtime 1.32's telemetry when they are set.
const SILENCERS: [&str; 15] = [
    "CI",
    "TF_BUILD",
    "GITHUB_ACTIONS",
    "GITLAB_CI",
    "CIRCLECI",
    "TRAVIS",
    "JENKINS_URL",
    "CODEBUILD_BUILD_ID",
    "BUILDKITE",
    "TEAMCITY_VERSION",
    "APPVEYOR",
    "BITBUCKET_BUILD_NUMBER",
    "SYSTEM_TEAMFOUNDATIONCOLLECTIONURI",
    "ORT_RUNNING_UNIT_TESTS",
    "ORT_DISABLE_TELEMETRY",
];

/// Prepares a command without any variable that disables telemetry. Everything that it may write to
/// is in `home`.
#[cfg(unix)]
fn unsilenced(mut command: Command, home: &Path) -> Command {
    for variable in SILENCERS {
        command.env_remove(variable);
    }
    command
        .env("ORT_DYLIB_PATH", real_library())
        .env("HOME", home)
        .env("XDG_CACHE_HOME", home)
        .env("TMPDIR", home)
        .current_dir(home);
    command
}

/// ONNX Runtime's telemetry writes a device ID and a database of events to the cache folder when it
/// starts.
#[cfg(unix)]
#[test]
fn nothing_is_written_for_telemetry() {
    let case = Case::new();
    let written = |value: Option<&str>| {
        let home = tempfile::tempdir().unwrap();
        let mut command = unsilenced(case.command(&[Path::new("")]), home.path());
        command.envs(value.map(|value| ("ORT_DISABLE_TELEMETRY", value)));
        assert_eq!(results(command.output().unwrap()), ["loaded"]);
        below(home.path())
    };
    // The folder of the temporary weight file, which is deleted.
    let folder: Vec<PathBuf> = written(None);
    assert!(
        folder.iter().all(|path| path.ends_with("sd-onnx")),
        "{folder:?}"
    );
    // A value that is already set is kept. This run also shows that telemetry would otherwise leave
    // files.
    let on = written(Some("0"));
    if on.len() == folder.len() {
        say(
            "SKIPPED: this ONNX Runtime has no telemetry, so nothing_is_written_for_telemetry proves nothing",
        );
    } else {
        let names: Vec<_> = on.iter().filter_map(|path| path.file_name()).collect();
        assert!(names.contains(&"deviceid".as_ref()), "{on:?}");
    }
}

/// The uploader of the telemetry looks up the server 9 seconds after the start.
#[cfg(target_os = "linux")]
#[test]
fn nobody_is_called_for_telemetry() {
    let works = Command::new("strace").args(["-f", "true"]).output();
    if !works.is_ok_and(|output| output.status.success()) {
        say(
            "SKIPPED: nobody_is_called_for_telemetry needs `strace`, which is missing or not permitted to trace",
        );
        return;
    }
    let case = Case::new();
    let home = tempfile::tempdir().unwrap();
    let trace = tempfile::NamedTempFile::new().unwrap();
    let inner = case.command(&[Path::new("")]);
    let mut command = Command::new("strace");
    command
        .args(["-f", "-qq", "-e", "trace=network", "-o"])
        .arg(trace.path())
        .arg(inner.get_program())
        .args(inner.get_args())
        .envs(
            inner
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        );
    let mut command = unsilenced(command, home.path());
    command.env("SD_TEST_SECONDS", "15");
    assert_eq!(results(command.output().unwrap()), ["loaded"]);
    let trace = std::fs::read_to_string(trace.path()).unwrap();
    assert!(!trace.contains("socket("), "{trace}");
}

/// Copies the library of the pinned release to a separate cache folder.
fn cached(cache: &Path) -> PathBuf {
    let real = real_library();
    let folder = real.parent().unwrap().file_name().unwrap();
    let folder = cache.join("sd-onnx").join(folder);
    std::fs::create_dir_all(&folder).unwrap();
    let copy = folder.join(real.file_name().unwrap());
    std::fs::copy(&real, &copy).unwrap();
    copy
}

/// Loading a truncated library would end the process. Its length may still be right, because the
/// end of the file may never have reached the disk.
#[cfg(target_os = "linux")]
#[test]
fn a_damaged_library_in_the_cache_is_not_loaded() {
    if std::env::var_os("ORT_DYLIB_PATH").is_some_and(|path| !path.is_empty()) {
        say(
            "SKIPPED: a_damaged_library_in_the_cache_is_not_loaded needs the pinned release: unset ORT_DYLIB_PATH",
        );
        return;
    }
    let case = Case::new();
    let cache = tempfile::tempdir().unwrap();
    let library = cached(cache.path());
    let said = || {
        let mut command = case.command(&[Path::new("")]);
        // Without Python the library cannot be fetched again.
        command
            .env("XDG_CACHE_HOME", cache.path())
            .env("PATH", "/nowhere");
        let [said] = &results(command.output().unwrap())[..] else {
            panic!()
        };
        said.clone()
    };
    assert_eq!(said(), "loaded");
    let whole = std::fs::read(&library).unwrap();
    let mut zeros = whole.clone();
    zeros[whole.len() / 2..].fill(0);
    for (damaged, problem) in [
        (&whole[..whole.len() / 2], "it has SHA-256"),
        (&zeros, "it has SHA-256"),
        (b"", "the file is empty"),
    ] {
        std::fs::write(&library, damaged).unwrap();
        let said = said();
        let path = library.to_str().unwrap();
        assert!(
            said.contains(path) && said.contains(&format!("is damaged: {problem}")),
            "{said}"
        );
        // Without the feature `fetch`, the user must delete the folder.
        assert_eq!(
            said.ends_with("delete its folder"),
            cfg!(not(feature = "fetch")),
            "{said}"
        );
    }
    std::fs::write(&library, &whole).unwrap();
    assert_eq!(
        said(),
        "loaded",
        "the result for the damaged file is not reused"
    );
}

/// Opening a pipe would wait for a writer.
#[cfg(unix)]
#[test]
fn a_library_that_is_no_regular_file_is_refused() {
    let case = Case::new();
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe.so");
    assert!(
        Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    let results = case.results(&[&pipe, folder.path()]);
    let [pipe_said, folder_said] = &results[..] else {
        panic!("{results:?}")
    };
    assert!(
        pipe_said.contains("pipe.so: not an ONNX Runtime library: this is a pipe"),
        "{pipe_said}"
    );
    assert!(
        folder_said.contains("this is a folder, expected a file"),
        "{folder_said}"
    );
}

#[test]
fn a_device_that_cannot_be_had_is_an_error() {
    let model = tempfile::tempdir().unwrap();
    Model::of_shape("four-last").write(model.path());
    // The process then has the library without CUDA, and does not search for another one.
    sd_onnx::builder().load(model.path()).unwrap();
    let error = chain(
        &sd_onnx::builder()
            .device(Device::Cuda)
            .load(model.path())
            .unwrap_err(),
    );
    assert!(
        error.contains("`cuda` can't be had") && error.contains("available: cpu"),
        "{error}"
    );
}

/// Tests of OpenVINO's libraries.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod openvino {
    use super::*;

    /// Returns the result of loading a model on `openvino`.
    fn said(mut command: Command) -> String {
        command.env("SD_TEST_DEVICE", "openvino");
        let [said] = &results(command.output().unwrap())[..] else {
            panic!()
        };
        said.clone()
    }

    #[test]
    fn a_plugin_that_cannot_be_used_is_named() {
        let case = Case::new();
        let folder = tempfile::tempdir().unwrap();
        let absent = folder.path().join("absent.so");
        let text = folder.path().join("text.so");
        std::fs::write(&text, "no library").unwrap();
        let other = library(
            folder.path(),
            "other",
            "#[unsafe(no_mangle)] pub extern \"C\" fn f() {}",
        );
        // This build of ONNX Runtime has no OpenVINO, so it needs the plugin on every processor.
        let real = real_library();
        let with = |plugin: &Path| {
            let mut command = case.command(&[&real]);
            command.env("ORT_OPENVINO_PLUGIN", plugin);
            said(command)
        };
        let absent_said = with(&absent);
        assert!(
            absent_said.contains("OpenVINO's plugin not found")
                && absent_said.contains("absent.so (from ORT_OPENVINO_PLUGIN)"),
            "{absent_said}"
        );
        for (plugin, problem) in [
            (&text, "Failed to load library"),
            (&other, "CreateEpFactories"),
            (&folder.path().to_path_buf(), "this is a folder"),
        ] {
            let said = with(plugin);
            assert!(
                said.contains(plugin.to_str().unwrap())
                    && said.contains("does not take this OpenVINO plugin")
                    && said.contains(problem),
                "{said}"
            );
        }
    }

    /// Returns the folder of the plugin in the cache, and fetches it if the feature `fetch` is on.
    /// Returns `None` if the plugin is not there.
    fn plugin() -> Option<PathBuf> {
        const FOLDER: &str = "sd-onnx/onnxruntime-ep-openvino-1.8.1-linux-x86_64";
        let folder = dirs::cache_dir().unwrap().join(FOLDER);
        if cfg!(feature = "fetch") {
            let case = Case::new();
            let real = real_library();
            let mut command = case.command(&[&real]);
            command.env("SD_TEST_DEVICE", "openvino");
            results(command.output().unwrap());
            assert!(folder.is_dir());
        }
        folder.is_dir().then_some(folder)
    }

    /// A single damaged file is enough, even if it is only loaded when a session is made.
    #[test]
    fn a_damaged_plugin_in_the_cache_is_not_loaded() {
        let Some(plugin) = plugin() else {
            say(
                "SKIPPED: a_damaged_plugin_in_the_cache_is_not_loaded needs the plugin in the cache \
                 folder, or the feature `fetch`",
            );
            return;
        };
        let case = Case::new();
        let real = real_library();
        let cache = tempfile::tempdir().unwrap();
        let folder = cache
            .path()
            .join("sd-onnx")
            .join(plugin.file_name().unwrap());
        std::fs::create_dir_all(&folder).unwrap();
        for file in below(&plugin) {
            std::fs::copy(&file, folder.join(file.file_name().unwrap())).unwrap();
        }
        let said = || {
            // Without Python the plugin cannot be fetched again.
            let mut command = case.command(&[&real]);
            command
                .env("XDG_CACHE_HOME", cache.path())
                .env("PATH", "/nowhere");
            said(command)
        };
        // The plugin is taken from the cache. The device is available only on Intel's processors.
        let whole = said();
        assert!(
            whole == "loaded" || whole.contains("the device `openvino` can't be had"),
            "{whole}"
        );

        let file = folder.join("libopenvino_intel_cpu_plugin.so");
        let bytes = std::fs::read(&file).unwrap();
        let refused = |problem: &str| {
            let said = said();
            assert!(
                said.contains(file.to_str().unwrap())
                    && said.contains(&format!("is damaged: {problem}")),
                "{said}"
            );
            assert_eq!(
                said.ends_with("delete its folder"),
                cfg!(not(feature = "fetch")),
                "{said}"
            );
        };
        std::fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
        refused("it has SHA-256");
        std::fs::remove_file(&file).unwrap();
        refused("No such file");
        std::fs::write(&file, &bytes).unwrap();
        assert_eq!(said(), whole);
    }
}

/// Tests that fetch libraries. They need the package registry, as the first run on any machine
/// does.
#[cfg(all(feature = "fetch", target_os = "linux"))]
mod fetch {
    use std::process::Child;

    use super::*;

    /// There is neither a cache nor Python.
    #[test]
    fn without_python_it_says_what_to_install() {
        let case = Case::new();
        let cache = tempfile::tempdir().unwrap();
        let mut command = case.command(&[Path::new("")]);
        let [said] = &results(
            command
                .env("XDG_CACHE_HOME", cache.path())
                .env("PATH", "/nowhere")
                .output()
                .unwrap(),
        )[..] else {
            panic!()
        };
        assert!(
            said.contains("`python3`") && said.contains("ORT_DYLIB_PATH"),
            "{said}"
        );
    }

    /// Creates a folder with a `python3` that leaves a truncated wheel and then runs `more`.
    fn short_wheel(more: &str) -> tempfile::TempDir {
        let bin = tempfile::tempdir().unwrap();
        let script = format!(
            "#!/bin/sh\nfor folder in \"$@\"; do :; done\necho short > \"$folder/onnxruntime-1.32.0.whl\"\n{more}\n"
        );
        let python = bin.path().join("python3");
        std::fs::write(&python, script).unwrap();
        std::fs::set_permissions(&python, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
        bin
    }

    #[test]
    fn a_wheel_with_another_checksum_is_refused_and_leaves_nothing() {
        let case = Case::new();
        let cache = tempfile::tempdir().unwrap();
        // A process that is killed while it fetches leaves its folder behind. The next process
        // removes it.
        let folder = cache.path().join("sd-onnx");
        let bin = short_wheel("exec /bin/sleep 10");
        let mut child = case
            .command(&[Path::new("")])
            .env("XDG_CACHE_HOME", cache.path())
            .env("PATH", bin.path())
            .spawn()
            .unwrap();
        while !folder.is_dir()
            || below(&folder)
                .iter()
                .all(|path| path.extension() != Some("whl".as_ref()))
        {
            assert_eq!(child.try_wait().unwrap(), None);
            std::thread::sleep(Duration::from_millis(10));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let left = below(&folder);
        assert!(
            left.iter()
                .any(|path| path.extension() == Some("whl".as_ref())),
            "{left:?}"
        );

        let bin = short_wheel("");
        let mut command = case.command(&[Path::new("")]);
        let [said] = &results(
            command
                .env("XDG_CACHE_HOME", cache.path())
                .env("PATH", bin.path())
                .output()
                .unwrap(),
        )[..] else {
            panic!()
        };
        assert!(
            said.contains("onnxruntime-1.32.0.whl has SHA-256"),
            "{said}"
        );
        let left: Vec<_> = std::fs::read_dir(cache.path().join("sd-onnx"))
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(left, ["fetch.lock"]);
    }

    /// Four processes start at once with an empty cache. One fetches, and all load. After that it
    /// works without Python, and so without network.
    #[test]
    fn several_processes_fetch_once_and_then_never_again() {
        let case = Case::new();
        let cache = tempfile::tempdir().unwrap();
        let start = |_| -> Child {
            case.command(&[Path::new("")])
                .env("XDG_CACHE_HOME", cache.path())
                .spawn()
                .unwrap()
        };
        let children: Vec<Child> = (0..4).map(start).collect();
        let mut fetches = 0;
        for child in children {
            let output = child.wait_with_output().unwrap();
            fetches += String::from_utf8_lossy(&output.stderr)
                .matches("Fetching ONNX Runtime")
                .count();
            assert_eq!(results(output), ["loaded"]);
        }
        assert_eq!(fetches, 1);
        let mut offline = case.command(&[Path::new("")]);
        offline
            .env("XDG_CACHE_HOME", cache.path())
            .env("PATH", "/nowhere");
        assert_eq!(results(offline.output().unwrap()), ["loaded"]);

        // A library that was damaged afterwards is fetched again.
        let libraries = below(&cache.path().join("sd-onnx"));
        let is_library = |path: &&PathBuf| path.to_string_lossy().contains("libonnxruntime.so");
        let library = libraries.iter().find(is_library).unwrap();
        std::fs::write(library, "short").unwrap();
        let mut again = case.command(&[Path::new("")]);
        let output = again.env("XDG_CACHE_HOME", cache.path()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            said.contains("libonnxruntime.so.1.32.0 is damaged: it has SHA-256"),
            "{said}"
        );
        assert_eq!(results(output), ["loaded"]);
    }

    /// On a processor that is not Intel's, the OpenVINO build is fetched. On others, ONNX Runtime
    /// and the plugin are fetched. Both releases with OpenVINO are folders of many files.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn openvino_is_fetched_whole_and_replaced_whole() {
        let case = Case::new();
        let cache = tempfile::tempdir().unwrap();
        let command = || {
            let mut command = case.command(&[Path::new("")]);
            command
                .env("SD_TEST_DEVICE", "openvino")
                .env("XDG_CACHE_HOME", cache.path());
            command
        };
        let children: Vec<Child> = (0..2).map(|_| command().spawn().unwrap()).collect();
        let fetched: String = children
            .into_iter()
            .map(|child| child.wait_with_output().unwrap())
            .map(|output| {
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                assert_eq!(results(output), ["loaded"]);
                said
            })
            .collect();
        let files = below(cache.path());
        let provider = |path: &&PathBuf| {
            let name = path.file_name().unwrap().to_string_lossy();
            name.starts_with("libonnxruntime_providers_openvino")
        };
        let folder = files.iter().find(provider).unwrap().parent().unwrap();
        let releases = if folder.ends_with("onnxruntime-openvino-1.24.1-linux-x86_64") {
            1
        } else {
            2
        };
        assert_eq!(fetched.matches("Fetching").count(), releases, "{fetched}");
        let mut offline = command();
        offline.env("PATH", "/nowhere");
        assert_eq!(results(offline.output().unwrap()), ["loaded"]);

        // With a damaged and a missing file, the whole folder is fetched again.
        std::fs::write(folder.join("libopenvino_intel_cpu_plugin.so"), "short").unwrap();
        std::fs::remove_file(folder.join("libtbb.so.12")).unwrap();
        let output = command().output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            said.contains("libopenvino_intel_cpu_plugin.so is damaged: it has SHA-256"),
            "{said}"
        );
        assert_eq!(results(output), ["loaded"]);
        assert_eq!(below(cache.path()).len(), files.len());
    }
}
