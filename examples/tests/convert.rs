//! Runs `convert` as a user does, on the small model.

// In a test, a panic is the failure.
#![allow(clippy::unwrap_used)]

mod common;

use std::{fs, path::Path};
#[cfg(unix)]
use std::{
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use common::{Example, files, picture};
use safetensors::{Dtype, SafeTensors};
use sd_examples::shipped_model;
use serde_json::Value;

const CONVERT: Example = Example("convert");
const TXT2IMG: Example = Example("txt2img");

/// Returns the path of the small model.
fn model() -> String {
    shipped_model().to_str().unwrap().to_owned()
}

#[test]
fn a_folder_draws_the_same_and_says_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let (stdout, stderr) = CONVERT.succeed(folder.path(), &[&model(), "new", "--to", "folder"]);
    assert_eq!(stdout, "new\n");
    assert!(
        stderr.contains(" tensors, ") && !stderr.contains("warning"),
        "{stderr}"
    );
    assert_eq!(files(folder.path()), ["new"]);
    let expected = [
        "model_index.json",
        "scheduler",
        "text_encoder",
        "tokenizer",
        "unet",
        "vae",
    ];
    assert_eq!(files(&folder.path().join("new")), expected);
    let draw = |model: &str, name: &str| {
        let arguments = [
            "a fox", "--model", model, "--steps", "3", "--seed", "1", "--output", name,
        ];
        TXT2IMG.succeed(folder.path(), &arguments);
        picture(folder.path(), name)
    };
    assert!(draw("new", "new.png") == draw(&model(), "old.png"));
}

#[test]
fn every_type() {
    let folder = tempfile::tempdir().unwrap();
    for (name, dtype) in [
        ("f32", Dtype::F32),
        ("f16", Dtype::F16),
        ("bf16", Dtype::BF16),
    ] {
        let arguments = [&model(), name, "--to", "folder", "--dtype", name];
        CONVERT.succeed(folder.path(), &arguments);
        let path = folder
            .path()
            .join(name)
            .join("unet/diffusion_pytorch_model.safetensors");
        let bytes = fs::read(path).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        assert!(
            tensors.iter().all(|(_, tensor)| tensor.dtype() == dtype),
            "{name}"
        );
        let arguments = [
            "a fox", "--model", name, "--steps", "1", "--output", "f.png",
        ];
        TXT2IMG.succeed(folder.path(), &arguments);
    }
}

#[test]
fn what_cannot_be_is_refused_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("old")).unwrap();
    let model = model();
    let cases: [(&[&str], i32, &str); 7] = [
        (
            &[&model, "old", "--to", "folder"],
            1,
            "nothing is overwritten",
        ),
        (&[&model, "no/new", "--to", "folder"], 1, "no: "),
        (&["none", "new", "--to", "folder"], 1, "none: "),
        (
            &[&model, "new.ckpt", "--to", "file"],
            2,
            "the output is new.ckpt",
        ),
        // Its text encoder has heads of 16 values, but readers of one file expect 64, as in Stable
        // Diffusion 1.x.
        (
            &[&model, "new.safetensors", "--to", "file"],
            1,
            "`num_attention_heads` is 4, and is read as 1",
        ),
        (&[&model, "new", "--to", "zip"], 2, "zip"),
        (
            &[&model, "new", "--to", "folder", "--vae", "none"],
            1,
            "none: ",
        ),
    ];
    for (arguments, code, part) in cases {
        CONVERT.fail(folder.path(), arguments, code, part);
        assert_eq!(files(folder.path()), ["old"], "{arguments:?}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let example = std::env::current_exe().unwrap();
    let example = example.ancestors().nth(2).unwrap().join("examples/convert");
    // Limits files to 64 blocks of 512 bytes or 1 KiB, depending on the shell.
    let limited = "trap '' XFSZ; ulimit -f 64; exec \"$0\" \"$@\"";
    let output = std::process::Command::new("sh")
        .current_dir(folder.path())
        .args(["-c", limited])
        .arg(example)
        .args([&model(), "new", "--to", "folder"])
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("new/") && stderr.contains("File too large"),
        "{stderr}"
    );
    assert!(
        files(folder.path()).is_empty(),
        "{:?}",
        files(folder.path())
    );
}

#[test]
fn what_comes_from_elsewhere_goes_into_the_new_model() {
    let folder = tempfile::tempdir().unwrap();
    let options = [
        "--prediction",
        "epsilon",
        "--zero-terminal-snr",
        "false",
        "--vae",
        "vae",
    ];
    // A copy of the autoencoder with another scaling factor.
    let vae = folder.path().join("vae");
    fs::create_dir(&vae).unwrap();
    for entry in fs::read_dir(shipped_model().join("vae")).unwrap() {
        let from = entry.unwrap().path();
        fs::copy(&from, vae.join(from.file_name().unwrap())).unwrap();
    }
    let json = |path: &Path| -> Value {
        let text = fs::read_to_string(path).unwrap();
        // Python writes infinities that are not valid JSON.
        serde_json::from_str(&text.replace("-Infinity", "null")).unwrap()
    };
    let mut config = json(&vae.join("config.json"));
    config["scaling_factor"] = 0.5.into();
    fs::write(vae.join("config.json"), config.to_string()).unwrap();

    let model = model();
    let arguments = [&[&*model, "new", "--to", "folder"], &options[..]].concat();
    CONVERT.succeed(folder.path(), &arguments);
    let new = folder.path().join("new");
    let scheduler = "scheduler/scheduler_config.json";
    let mut expected = json(&shipped_model().join(scheduler));
    expected["prediction_type"] = "epsilon".into();
    expected["rescale_betas_zero_snr"] = false.into();
    assert_eq!(json(&new.join(scheduler)), expected);
    assert_eq!(json(&new.join("vae/config.json")), config);
}

#[cfg(unix)]
#[test]
fn ctrl_c_leaves_nothing() {
    // A conversion may finish before the signal arrives. The test repeats until one is stopped in
    // the middle.
    for _ in 0..20 {
        let folder = tempfile::tempdir().unwrap();
        let mut command = CONVERT.command(folder.path());
        command
            .args([&model(), "new", "--to", "folder"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        // The conversion has begun as soon as its hidden folder exists.
        while files(folder.path()).is_empty() {
            thread::sleep(Duration::from_millis(1));
        }
        let id = child.id().to_string();
        Command::new("kill").args(["-INT", &id]).status().unwrap();
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        if output.status.success() {
            assert_eq!(files(folder.path()), ["new"]);
            continue;
        }
        assert_eq!(output.status.code(), Some(130), "{stderr}");
        assert!(
            stderr.contains("nothing of the new model is left"),
            "{stderr}"
        );
        assert_eq!(files(folder.path()), [""; 0]);
        // Only a stop before the last tensor counts.
        let amounts = stderr.split("stopped after ").nth(1).unwrap();
        let (done, rest) = amounts.split_once(" of ").unwrap();
        if !rest.starts_with(done) {
            return;
        }
    }
    panic!("no conversion was stopped in time");
}
