//! Tests of the UNet in int8 and of its calibration.

// In tests, a panic reports the failure.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/exports.rs"]
mod exports;
#[path = "common/library.rs"]
mod library;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use common::{emoji, relative_error, write_family};
use exports::write_export;
use library::real_library;
use sd_onnx::{Device, Error, Pipeline, Precision, Request};
use sd_text::outside::chain;

/// Returns whether this machine can compute in int8. Elsewhere the precision is refused.
fn is_offered() -> bool {
    Device::Cpu.precisions().contains(&Precision::Int8)
}

fn load(precision: Precision) -> Pipeline {
    sd_onnx::builder()
        .precision(precision)
        .load(emoji())
        .unwrap()
}

/// Returns the pixels of a picture of 20 steps.
fn draw(pipeline: &Pipeline, prompt: &str, seed: u64) -> Vec<u8> {
    let request = Request::new(prompt).seed(seed).steps(20);
    pipeline.generate(&request).unwrap().pictures[0]
        .image
        .to_vec()
}

/// Returns the peak signal-to-noise ratio of two pictures, in dB.
fn psnr(a: &[u8], b: &[u8]) -> f64 {
    let squares = a
        .iter()
        .zip(b)
        .map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2));
    let mean = squares.sum::<f64>() / a.len() as f64;
    10.0 * (255.0 * 255.0 / mean).log10()
}

#[test]
fn pictures_are_close_to_f32() {
    if !is_offered() {
        return;
    }
    let [f32, int8] = [Precision::F32, Precision::Int8].map(load);
    for (prompt, seed) in [
        ("a fox", 1),
        ("a rocket on a blue background", 2),
        ("strawberry on white", 2),
        ("a banana on black", 2),
    ] {
        let [exact, close] = [&f32, &int8].map(|pipeline| draw(pipeline, prompt, seed));
        let psnr = psnr(&exact, &close);
        println!("{prompt}: {psnr:.1} dB");
        assert!(exact != close, "{prompt}: nothing was computed in int8");
        assert!(psnr >= 25.0, "{prompt}: {psnr:.1} dB, expected at least 25");
        assert_eq!(draw(&int8, prompt, seed), close, "the same seed");
    }
}

#[test]
fn loras_work_in_int8() {
    if !is_offered() {
        return;
    }
    let loras = emoji().join("loras");
    let [exact, close] = [Precision::F32, Precision::Int8].map(|precision| {
        let builder = sd_onnx::builder().precision(precision).loras(&loras);
        let pipeline = builder.load(emoji()).unwrap();
        ["a fox <lora:ink:1>", "a fox"].map(|prompt| draw(&pipeline, prompt, 1))
    });
    for (exact, close) in exact.iter().zip(&close) {
        let psnr = psnr(exact, close);
        println!("{psnr:.1} dB");
        assert!(psnr >= 25.0, "{psnr:.1} dB, expected at least 25");
    }
    assert!(
        psnr(&close[0], &close[1]) < 25.0,
        "the LoRA changes the picture"
    );
}

/// The limit is 25 dB as a relative error, in a picture whose values are spread evenly: 25 dB is an
/// error of 10^(-25/20) = 0.056 of the full range, and the standard deviation of such values is
/// 0.29 of it.
#[test]
fn other_families_compute_in_int8() {
    if !is_offered() {
        return;
    }
    let case = Case::new();
    for shape in ["sdxl-base", "lcm"] {
        let folder = tempfile::tempdir().unwrap();
        write_family(shape, folder.path());
        let found = result(case.start("compare", folder.path(), None));
        println!("{shape}: {found}");
        let error: f64 = found.parse().unwrap();
        assert!(error > 0.0, "{shape}: nothing was computed in int8");
        assert!(error < 0.19, "{shape}: {error}");
    }
}

#[test]
fn inputs_that_are_not_calibrated_are_refused() {
    if !is_offered() {
        return;
    }
    let builder = sd_onnx::builder().precision(Precision::Int8);
    let edges = emoji().join("controlnets/edges");
    let named = builder.clone().named_control("lines", &edges);
    for builder in [builder.clone().control(&edges), named] {
        let expected = "control networks change the values within the UNet, and the calibration \
                        for int8 measures the UNet without them; load the model in f32, or without \
                        control networks";
        let errors = [
            builder.clone().load(emoji()).unwrap_err(),
            builder.load_denoiser(emoji()).err().unwrap(),
        ];
        for error in errors {
            assert!(matches!(error, Error::Int8 { .. }), "{error:?}");
            assert!(error.to_string().ends_with(expected), "{error}");
        }
        builder.precision(Precision::F32).load(emoji()).unwrap();
    }
    for (shape, channels) in [("inpaint", 5), ("pix2pix", 4)] {
        let folder = tempfile::tempdir().unwrap();
        write_family(shape, folder.path());
        let expected = format!(
            "the UNet reads {channels} channels of a picture or a mask beside the latents, and the \
             calibration for int8 draws from prompts alone; load the model in f32"
        );
        let errors = [
            builder.clone().load(folder.path()).unwrap_err(),
            builder.load_denoiser(folder.path()).err().unwrap(),
        ];
        for error in errors {
            assert!(matches!(error, Error::Int8 { .. }), "{error:?}");
            assert!(error.to_string().ends_with(&expected), "{error}");
        }
    }
}

#[test]
fn what_cannot_be_calibrated_is_refused() {
    if !is_offered() {
        return;
    }
    let case = Case::new();
    let found = result(case.start("denoiser", &emoji(), None));
    let expected = "the calibration of the UNet for int8 not found; load the whole model once with \
                    `Builder::load`, which measures it";
    assert!(found.ends_with(expected), "{found}");
    case.draw(&emoji());
    assert_eq!(result(case.start("denoiser", &emoji(), None)), "loaded");

    let folder = tempfile::tempdir().unwrap();
    let exported = write_export("optimum-sd1", folder.path());
    let builder = sd_onnx::builder().precision(Precision::Int8);
    let error = chain(&builder.load(exported).unwrap_err());
    assert!(
        error.contains("the layers of an exported UNet cannot be written in int8"),
        "{error}"
    );
}

/// Does what `SD_TEST_TASK` says with the model `SD_TEST_MODEL` in int8, with the LoRA
/// `SD_TEST_LORA` if it is set, and prints the result.
#[test]
#[ignore = "runs in a separate process, which the other tests start"]
fn child() {
    let builder = sd_onnx::builder().precision(Precision::Int8);
    let builder = match std::env::var_os("SD_TEST_LORA") {
        Some(lora) => builder.lora(PathBuf::from(lora), 1.0),
        None => builder,
    };
    let model = PathBuf::from(std::env::var_os("SD_TEST_MODEL").unwrap());
    let result = match &*std::env::var("SD_TEST_TASK").unwrap() {
        "draw" => builder.load(&model).map(|pipeline| {
            let request = Request::new("a fox").seed(1).steps(2);
            let pixels = &pipeline.generate(&request).unwrap().pictures[0].image;
            let sum = pixels.iter().fold(0_u64, |sum, &byte| {
                (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
            });
            sum.to_string()
        }),
        "denoiser" => builder.load_denoiser(&model).map(|_| "loaded".to_owned()),
        "compare" => builder.load(&model).map(|int8| {
            let f32 = sd_onnx::builder().load(&model).unwrap();
            let [close, exact] = [int8, f32].map(|pipeline| predicted(&pipeline));
            relative_error(&close, &exact).to_string()
        }),
        other => panic!("{other}"),
    };
    println!("RESULT {}", result.unwrap_or_else(|error| chain(&error)));
}

/// Returns the latents of a picture of three steps.
fn predicted(pipeline: &Pipeline) -> Vec<f32> {
    let request = Request::new("an old bridge").seed(5).steps(3);
    let generated = pipeline.generate(&request).unwrap();
    generated.pictures[0].latents.iter().copied().collect()
}

/// A cache folder of its own, and the processes that use it.
struct Case {
    cache: tempfile::TempDir,
    library: PathBuf,
}

impl Case {
    fn new() -> Self {
        Self {
            cache: tempfile::tempdir().unwrap(),
            library: real_library(),
        }
    }

    /// Starts a process with a task of [`child`].
    fn start(&self, task: &str, model: &Path, lora: Option<&Path>) -> Child {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--ignored", "--exact", "child", "--nocapture"])
            .env("SD_TEST_TASK", task)
            .env("SD_TEST_MODEL", model)
            .env("ORT_DYLIB_PATH", &self.library)
            .env("XDG_CACHE_HOME", self.cache.path())
            .stdout(Stdio::piped());
        if let Some(lora) = lora {
            command.env("SD_TEST_LORA", lora);
        }
        command.spawn().unwrap()
    }

    fn draw(&self, model: &Path) -> String {
        result(self.start("draw", model, None))
    }

    /// Returns the names and the contents of the calibrations in the cache folder.
    fn calibrations(&self) -> Vec<(PathBuf, String)> {
        let folder = self.cache.path().join("sd-onnx/calibration");
        let paths = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let mut all: Vec<_> = paths
            .map(|path| (path.clone(), fs::read_to_string(path).unwrap()))
            .collect();
        all.sort();
        all
    }
}

/// Waits for a process and returns its result.
fn result(child: Child) -> String {
    let output = child.wait_with_output().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{stdout}");
    let result = stdout.lines().find_map(|line| line.split_once("RESULT "));
    result.unwrap().1.to_owned()
}

#[test]
fn a_calibration_is_made_once() {
    if !is_offered() {
        return;
    }
    let case = Case::new();
    let first = case.draw(&emoji());
    let [(path, made)] = &case.calibrations()[..] else {
        panic!("{:?}", case.calibrations())
    };
    let time = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();
    let written = time(path);
    assert_eq!(case.draw(&emoji()), first);
    assert_eq!(
        time(path),
        written,
        "the calibration is read, not made again"
    );

    // It is read: another range changes the picture.
    let (before, after) = made.split_once("\"input\":[").unwrap();
    let (range, after) = after.split_once(']').unwrap();
    let changed = format!("{before}\"input\":[-30.0,30.0]{after}");
    assert_ne!(range, "-30.0,30.0");
    fs::write(path, &changed).unwrap();
    assert_ne!(case.draw(&emoji()), first);
    assert_eq!(fs::read_to_string(path).unwrap(), changed);

    // A file that cannot be used is replaced.
    for spoiled in [
        String::new(),
        made[..made.len() / 2].to_owned(),
        made.replacen("\"low\":[", "\"low\":[0.5,", 1),
        made.replacen(".weight", "", 1)
            .replacen("down_blocks", "no_blocks", 1),
    ] {
        fs::write(path, spoiled).unwrap();
        assert_eq!(case.draw(&emoji()), first);
        assert_eq!(fs::read_to_string(path).unwrap(), *made);
    }
}

#[test]
fn two_processes_calibrate_at_once() {
    if !is_offered() {
        return;
    }
    let case = Case::new();
    let both = [(); 2].map(|()| case.start("draw", &emoji(), None));
    let [first, second] = both.map(result);
    assert_eq!(first, second);
    assert_eq!(case.calibrations().len(), 1);
    assert_eq!(case.draw(&emoji()), first);
}

#[test]
fn other_weights_have_their_own_calibration() {
    if !is_offered() {
        return;
    }
    let case = Case::new();
    let plain = case.draw(&emoji());
    let lora = emoji().join("loras/ink.safetensors");
    let changed = result(case.start("draw", &emoji(), Some(&lora)));
    assert_ne!(plain, changed);
    let [(_, first), (_, second)] = &case.calibrations()[..] else {
        panic!("{:?}", case.calibrations())
    };
    assert_ne!(first, second);
    assert_eq!(case.draw(&emoji()), plain);
    assert_eq!(case.calibrations().len(), 2);
}
