//! Runs `encode` as a user does, on the small model.

// In a test, a panic is the failure.
#![allow(clippy::unwrap_used)]

mod common;

use std::{fs, io::Write, path::Path, process::Stdio};

use common::{Example, files};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use sd_examples::shipped_model;
use sd_onnx::TextEncoder;

const ENCODE: Example = Example("encode");

/// Returns the shape and the values of an f32 tensor.
fn tensor(file: &[u8], name: &str) -> (Vec<usize>, Vec<f32>) {
    let file = SafeTensors::deserialize(file).unwrap();
    let tensor = file.tensor(name).unwrap();
    assert_eq!(tensor.dtype(), Dtype::F32);
    let (words, _) = tensor.data().as_chunks::<4>();
    let values = words.iter().map(|&word| f32::from_le_bytes(word)).collect();
    (tensor.shape().to_vec(), values)
}

fn encode(folder: &Path, arguments: &[&str]) -> Vec<u8> {
    let output = ["--output", "f.safetensors"];
    let (stdout, _) = ENCODE.succeed(folder, &[arguments, &output].concat());
    assert_eq!(stdout, "f.safetensors\n");
    fs::read(folder.join("f.safetensors")).unwrap()
}

#[test]
fn strings_in_safetensors_out() {
    let folder = tempfile::tempdir().unwrap();
    let texts = ["a fox", "an owl, \"red\""];
    let file = encode(folder.path(), &texts);
    let found = TextEncoder::load(shipped_model())
        .unwrap()
        .encode(texts)
        .unwrap();
    let hidden = found.hidden.iter().copied().collect::<Vec<f32>>();
    assert_eq!(
        tensor(&file, "hidden"),
        (found.hidden.shape().to_vec(), hidden)
    );
    let pooled = found.pooled.iter().copied().collect::<Vec<f32>>();
    assert_eq!(
        tensor(&file, "pooled"),
        (found.pooled.shape().to_vec(), pooled)
    );
    let ids = SafeTensors::deserialize(&file).unwrap();
    let ids = ids.tensor("ids").unwrap();
    assert_eq!((ids.dtype(), ids.shape()), (Dtype::I64, &[2, 8][..]));
    let (ids, _) = ids.data().as_chunks::<8>();
    let ids = ids.iter().map(|&id| i64::from_le_bytes(id));
    let expected = found.tokens.iter().flat_map(|tokens| &tokens.ids[..8]);
    assert!(ids.eq(expected.map(|&id| i64::from(id))));

    let (_, metadata) = SafeTensors::read_metadata(&file).unwrap();
    let written = &metadata.metadata().as_ref().unwrap()["texts"];
    assert_eq!(serde_json::from_str::<Vec<String>>(written).unwrap(), texts);
}

#[test]
fn every_option_counts() {
    let folder = tempfile::tempdir().unwrap();
    let run = |more: &[&str]| encode(folder.path(), &[&["a fox"][..], more].concat());
    let plain = run(&[]);
    let layer = run(&["--clip-skip", "2"]);
    assert_ne!(tensor(&layer, "hidden"), tensor(&plain, "hidden"));
    assert_eq!(tensor(&layer, "pooled"), tensor(&plain, "pooled"));
    let (_, pooled) = tensor(&run(&["--normalise"]), "pooled");
    let square: f32 = pooled.iter().map(|value| value * value).sum();
    assert!((square - 1.0).abs() < 1e-4, "{square}");
    let only = run(&["--pooled"]);
    let names = SafeTensors::deserialize(&only).unwrap();
    assert!(names.tensor("hidden").is_err());
    assert_eq!(tensor(&only, "pooled").0, tensor(&plain, "pooled").0);
    let long = "fox ".repeat(80);
    ENCODE.fail(
        folder.path(),
        &[long.as_str()],
        1,
        "text 0 is too long: 5 tokens",
    );
    run(&[long.as_str(), "--truncate"]);

    let width = tensor(&plain, "pooled").0[1];
    let data = vec![0x3c_u8; 2 * width];
    let view = TensorView::new(Dtype::F16, vec![1, width], &data).unwrap();
    let path = folder.path().join("a thing.safetensors");
    safetensors::serialize_to_file([("emb_params", view)], None, &path).unwrap();
    let other = ["a A Thing", "--embeddings", "a thing.safetensors"];
    let (without, with) = (
        encode(folder.path(), &other[..1]),
        encode(folder.path(), &other),
    );
    assert_ne!(tensor(&with, "hidden"), tensor(&without, "hidden"));
}

#[test]
fn lines_of_standard_input() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = ENCODE.command(folder.path());
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"a fox\nan owl\n\n").unwrap();
    drop(stdin);
    assert!(child.wait_with_output().unwrap().status.success());
    let file = fs::read(folder.path().join("texts.safetensors")).unwrap();
    assert_eq!(tensor(&file, "hidden").0[..2], [3, 4]);
}

#[test]
fn standard_input_without_an_end_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = ENCODE.command(folder.path());
    let mut child = command
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // The write fails as soon as the program has stopped reading.
    while stdin.write_all(&vec![b'\n'; 1 << 20]).is_ok() {}
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "error: standard input: longer than 16777216 bytes\n"
    );
}

#[cfg(target_os = "linux")]
#[test]
fn on_a_terminal_it_says_what_it_waits_for() {
    let folder = tempfile::tempdir().unwrap();
    if let Some(shown) = ENCODE.on_a_terminal(folder.path(), &[]) {
        let expected = "Reading texts, one per line, until Ctrl-D:";
        assert!(shown.contains(expected), "{shown:?}");
    }
}

#[test]
fn bad_arguments() {
    let folder = tempfile::tempdir().unwrap();
    let cases: [(&[&str], i32, &str); 5] = [
        (
            &["fox", "--output", "f.npy"],
            2,
            "--output is f.npy, expected a name that ends in .safetensors or .st",
        ),
        (&["fox", "--clip-skip", "0"], 2, "expected at least 1"),
        (&["fox", "--clip-skip", "99"], 2, "clip skip is 99"),
        (&["fox", "--model", "no-such-model"], 1, "no-such-model"),
        (
            &["fox", "--embeddings", "none.safetensors"],
            1,
            "none.safetensors",
        ),
    ];
    for (arguments, code, part) in cases {
        ENCODE.fail(folder.path(), arguments, code, part);
    }
    assert!(files(folder.path()).is_empty());
}
