//! Finding, refusing and fetching ONNX Runtime. A process can start it once, so each case runs in one of its own.

// In a test it is the failure.
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use common::Model;
use sd_onnx::Device;

/// Loads a model with each library named in `SD_TEST_RUNTIMES` in turn (empty: none named), and prints what came of it.
#[test]
#[ignore = "a process of its own, started by the other tests"]
fn child() {
    let model = PathBuf::from(std::env::var_os("SD_TEST_MODEL").unwrap());
    for library in std::env::var("SD_TEST_RUNTIMES").unwrap().split(';') {
        let builder = sd_onnx::builder();
        let builder = if library.is_empty() {
            builder
        } else {
            builder.runtime(library)
        };
        match builder.load(&model) {
            Ok(_) => println!("RESULT loaded"),
            Err(error) => println!("RESULT {error}"),
        }
    }
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
            .env_remove("ORT_DYLIB_PATH")
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
    // The test harness prints the test's name before the first.
    stdout
        .lines()
        .filter_map(|line| line.split_once("RESULT "))
        .map(|(_, result)| result.to_owned())
        .collect()
}

/// A dynamic library of this source, in `folder`.
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

/// A library that says it is ONNX Runtime of that version.
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

/// The library that the other tests run on.
fn real_library() -> PathBuf {
    let model = tempfile::tempdir().unwrap();
    Model::of_shape("four-last").write(model.path());
    common::load(model.path());
    match std::env::var_os("ORT_DYLIB_PATH") {
        Some(path) if !path.is_empty() => path.into(),
        _ => {
            let cache = dirs::cache_dir().unwrap().join("sd-onnx");
            let entries = std::fs::read_dir(cache)
                .unwrap()
                .map(|entry| entry.unwrap().path());
            let folder = entries
                .into_iter()
                .find(|path| path.is_dir() && path.to_string_lossy().contains("onnxruntime-"))
                .unwrap();
            std::fs::read_dir(folder)
                .unwrap()
                .next()
                .unwrap()
                .unwrap()
                .path()
        }
    }
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

    // None of the failures keeps the process from starting the right one.
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
    // A process has one: asking for another names both.
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

#[test]
fn a_device_that_cannot_be_had_is_an_error() {
    let model = tempfile::tempdir().unwrap();
    Model::of_shape("four-last").write(model.path());
    for device in [Device::Cuda, Device::OpenVino] {
        let error = sd_onnx::builder()
            .device(device)
            .load(model.path())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(&format!("`{device}` can't be had")) && error.contains("available: cpu"),
            "{error}"
        );
    }
    assert_eq!("cpu".parse(), Ok(Device::Cpu));
    assert!("tpu".parse::<Device>().is_err());
}

/// Needs the package registry, as the first run on any machine does.
#[cfg(all(feature = "fetch", target_os = "linux"))]
mod fetch {
    use std::process::Child;

    use super::*;

    /// Without a cache and without Python.
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

    /// pip that leaves a wheel which is cut short, or another one.
    #[test]
    fn a_wheel_with_another_checksum_is_refused_and_leaves_nothing() {
        let case = Case::new();
        let (cache, bin) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let script = "#!/bin/sh\nfor folder in \"$@\"; do :; done\necho short > \"$folder/onnxruntime-1.32.0.whl\"\n";
        let python = bin.path().join("python3");
        std::fs::write(&python, script).unwrap();
        std::fs::set_permissions(&python, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
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

    /// Four at once with an empty cache: one fetches, all load; then it works with no Python, so with no network.
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
    }
}
