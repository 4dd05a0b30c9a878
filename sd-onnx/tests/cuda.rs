//! Runs the networks on an NVIDIA GPU.
//!
//! These tests need a card and NVIDIA's libraries, so they run only when they are asked for:
//!
//! ```console
//! $ cargo test --release -p sd-onnx --test cuda -- --ignored
//! ```
//!
//! They have not run yet, because no machine of this project has a card. `src/rehearsal.rs` runs
//! the same networks on the CPU.

// In tests, a panic reports the failure.
#![allow(clippy::unwrap_used)]

#[path = "common/calls.rs"]
mod calls;
mod common;
#[path = "common/controls.rs"]
mod controls;

use common::{
    Golden, Model, add_windows, emoji, family, golden_json, relative_error, replayed, write_family,
    write_tensors,
};
use ndarray::Array4;
use safetensors::Dtype;
use sd_onnx::{Builder, Device, NetworkReport, Precision, Request, StopToken};

/// The largest error of one call, as in `src/rehearsal.rs`, but with another order of sums in f32.
fn limit(precision: Precision) -> f64 {
    match precision {
        Precision::F16 => 2e-2,
        _ => 1e-4,
    }
}

const PRECISIONS: [Precision; 2] = [Precision::F32, Precision::F16];

fn builder(precision: Precision) -> Builder {
    sd_onnx::builder().device(Device::Cuda).precision(precision)
}

/// Checks that the card runs a network, except for the operators on sizes.
fn on_card(reports: &[NetworkReport]) {
    assert!(!reports.is_empty());
    for report in reports {
        println!("{report}");
        let [card, cpu] = ["CUDA", "CPU"].map(|it| report.nodes(&format!("{it}ExecutionProvider")));
        assert!(card > 2 * cpu, "{report}");
    }
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn families_are_those_of_diffusers() {
    for precision in PRECISIONS {
        for name in ["sdxl-base", "refiner", "lcm", "inpaint", "sd2-v", "bk-tiny"] {
            let folder = tempfile::tempdir().unwrap();
            write_family(name, folder.path());
            let pipeline = builder(precision).load(folder.path()).unwrap();
            let golden = Golden::of_file(&family(name).join("golden.safetensors"));
            let cases = golden_json(&format!("families/{name}"), "cases.json");
            let unet = calls::unet_errors(&pipeline, &golden, &cases);
            let text = calls::text_errors(&pipeline, &golden, &cases);
            for (case, error) in unet.into_iter().chain(text) {
                println!("{precision} {name} {case}: {error:.1e}");
                assert!(
                    error <= limit(precision),
                    "{precision} {name} {case}: {error:.1e}"
                );
            }
            on_card(&pipeline.device_report());
        }
    }
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn autoencoders_are_those_of_diffusers() {
    for precision in PRECISIONS {
        let folder = tempfile::tempdir().unwrap();
        let mut model = Model::of_shape("four");
        let vae = model.configs.get_mut("vae").unwrap();
        vae["force_upcast"] = serde_json::json!(false);
        model.write(folder.path());
        let codec = builder(precision).load_codec(folder.path()).unwrap();
        let golden = Golden::of_shape("four");
        let (dims, values) = golden.tensor("vae-encode.0.image");
        let image = Array4::from_shape_vec([dims[0], dims[1], dims[2], dims[3]], values).unwrap();
        let found = codec.encode(image.view(), &StopToken::new()).unwrap();
        let (_, expected) = golden.tensor("vae-encode.0.mean");
        let error = relative_error(&found.mean, &expected);
        println!("{precision}: {error:.1e}");
        assert!(error <= limit(precision), "{precision}: {error:.1e}");
        on_card(&codec.report());
    }
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn control_networks_act_as_in_diffusers() {
    for precision in PRECISIONS {
        for name in ["sd1", "sdxl"] {
            controls::compare_all_at_once(name, builder(precision), 2.0 * limit(precision));
        }
    }
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn upscalers_are_those_of_spandrel() {
    let [recipes, cases] = ["weights.json", "cases.json"].map(|it| golden_json("upscalers", it));
    let golden = Golden::of_shape("upscalers");
    for case in cases["networks"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("network.safetensors");
        let mut tensors = replayed(&recipes[name]);
        add_windows(name, &mut tensors);
        write_tensors(&path, &tensors, Dtype::F16);
        let network = builder(Precision::F32).load_upscaler(&path).unwrap();
        let (dims, values) = golden.tensor(&format!("{name}.picture"));
        let picture = Array4::from_shape_vec([dims[0], dims[1], dims[2], dims[3]], values).unwrap();
        let found = network.upscale(picture.view(), &StopToken::new()).unwrap();
        let (_, expected) = golden.tensor(&format!("{name}.enlarged"));
        let error = relative_error(&found, &expected);
        println!("{name}: {error:.1e}");
        assert!(error <= limit(Precision::F32), "{name}: {error:.1e}");
        on_card(&network.report());
    }
}

/// The small trained model draws the same picture twice, and nearly the same as on the CPU, which
/// this build of ONNX Runtime has, too.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn pictures_are_those_of_the_cpu() {
    let request = Request::new("a fox").seed(1).steps(10);
    let draw = |builder: Builder| {
        let pipeline = builder.load(emoji()).unwrap();
        let [one, two] = [(); 2].map(|()| {
            let mut found = pipeline.generate(&request).unwrap();
            found.pictures.remove(0).latents
        });
        assert_eq!(one, two, "the second picture has other bits");
        one.iter().copied().collect::<Vec<f32>>()
    };
    let [f32s, f16s] = PRECISIONS.map(|precision| draw(builder(precision)));
    let expected = draw(sd_onnx::builder());
    for (name, found, limit) in [("f32", f32s, 1e-3), ("f16", f16s, 5e-2)] {
        let error = relative_error(&found, &expected);
        println!("{name}: {error:.1e}");
        assert!(error <= limit, "{name}: {error:.1e}");
    }
}
