//! Compares the networks as CUDA runs them with diffusers 0.42.1, on the CPU.
//!
//! No machine of this project has an NVIDIA GPU. These tests show that the graphs of
//! [`Device::Cuda`](crate::Device::Cuda) are right in f32 and f16, and that calls rightly keep
//! their inputs. They do not show that CUDA's kernels are. `tests/cuda.rs` does so on a machine
//! with a GPU.

// A failed `unwrap` fails the test.
#![allow(clippy::unwrap_used)]

#[path = "../tests/common/calls.rs"]
mod calls;
#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../tests/common/controls.rs"]
mod controls;
#[path = "../tests/common/lora_calls.rs"]
mod lora_calls;

use std::sync::Arc;

use calls::{text_errors, unet_errors};
use common::{
    Golden, Model, SHAPES, emoji, family, golden, golden_json, load, relative_error, write_family,
};
use lora_calls::{call, compare, difference, with};
use ndarray::{Array3, Array4, Axis, concatenate};
use sd_core::{Call, Denoiser, LatentDistribution, Pipeline, StopToken};
use sd_schedulers::{NoiseSource, noise::TorchRng};
use sd_text::ClipSkip;
use serde_json::json;

use crate::{
    Precision,
    engine::{Engine, Settings, rehearse_cuda},
    graph::{Dialect, Dim, Graph},
    session::{Input, Session},
    weights::Weights,
};

/// The largest error of one network call in f32. Sums are computed in another order.
const F32: f64 = 1e-5;
/// The largest error of one network call in f16.
///
/// f16 has 11 bits, so each operator rounds by up to 5e-4 of its output, and the errors of the
/// operators add up. In torch, which `tests/golden/half.py` runs in f16 on the CPU, they reach
/// 1.6e-2. ONNX Runtime computes an operator in f32 if the CPU has no kernel for f16, and removes
/// its own conversions between two such operators. So these tests round less often than a graphics
/// card.
const F16: f64 = 1e-2;

fn limit(precision: Precision) -> f64 {
    match precision {
        Precision::F16 => F16,
        _ => F32,
    }
}

fn array4((dims, values): (Vec<usize>, Vec<f32>)) -> Array4<f32> {
    Array4::from_shape_vec([dims[0], dims[1], dims[2], dims[3]], values).unwrap()
}

/// Prints errors and checks that each is at most the limit. In f16, at least one is above the limit
/// of f32, which shows that the graphs are in f16.
fn check(precision: Precision, what: &str, errors: Vec<(String, f64)>) {
    assert!(!errors.is_empty(), "{what}");
    if precision == Precision::F16 {
        assert!(errors.iter().any(|(_, error)| *error > F32), "{what}");
    }
    for (name, error) in errors {
        println!("{precision} {what} {name}: {error:.1e}");
        assert!(
            error <= limit(precision),
            "{precision} {what} {name}: {error:.2e}"
        );
    }
}

/// Loads each shape of `tests/golden` and checks its text encoder, UNet and autoencoder. In f16,
/// their errors must not exceed torch's.
fn shapes(precision: Precision) {
    for shape in SHAPES {
        let folder = tempfile::tempdir().unwrap();
        let mut model = Model::of_shape(shape);
        // Otherwise the autoencoder computes in f32.
        let vae = model.configs.get_mut("vae").unwrap();
        vae["force_upcast"] = json!(false);
        model.write(folder.path());
        let pipeline = rehearse_cuda(precision, || load(folder.path()));
        let (golden, cases) = (Golden::of_shape(shape), golden_json(shape, "cases.json"));
        let cases = |key: &str| cases[key].as_array().unwrap().clone();
        let mut errors = Vec::new();
        for case in cases("text") {
            let name = case["name"].as_str().unwrap();
            let clip_skip = ClipSkip::new(case["clip_skip"].as_u64().unwrap() as usize).unwrap();
            let prompt = case["text"].as_str().unwrap();
            let encoded = pipeline.prompt_encoder().encode(prompt, clip_skip).unwrap();
            let (_, expected) = golden.tensor(name);
            errors.push((
                name.to_owned(),
                relative_error(&encoded.embedding, &expected),
            ));
        }
        let (dims, values) = golden.tensor("unet.context");
        let context = Array3::from_shape_vec([dims[0], dims[1], dims[2]], values).unwrap();
        for case in cases("unet") {
            let name = case["name"].as_str().unwrap();
            let timestep = case["timestep"].as_f64().unwrap() as f32;
            let sample = array4(golden.tensor(&format!("{name}.sample")));
            let output = predicted(&**pipeline.denoiser(), &sample, timestep, &context);
            let (_, expected) = golden.tensor(&format!("{name}.output"));
            errors.push((name.to_owned(), relative_error(&output, &expected)));
        }
        let (stop, codec) = (StopToken::new(), pipeline.codec());
        for case in cases("vae_decode") {
            let name = case["name"].as_str().unwrap();
            // The golden latents are the autoencoder's own input; the pipeline's latents are
            // scaled.
            let scaling = codec
                .encode(Array4::zeros((1, 3, 64, 64)).view(), &stop)
                .unwrap();
            let latents = LatentDistribution {
                mean: array4(golden.tensor(&format!("{name}.latents"))),
                ..scaling
            };
            let image = codec.decode(latents.mode().view(), &stop).unwrap();
            let (_, expected) = golden.tensor(&format!("{name}.image"));
            errors.push((name.to_owned(), relative_error(&image, &expected)));
        }
        for case in cases("vae_encode") {
            let name = case["name"].as_str().unwrap();
            let image = array4(golden.tensor(&format!("{name}.image")));
            let found = codec.encode(image.view(), &stop).unwrap();
            let (_, expected) = golden.tensor(&format!("{name}.mean"));
            errors.push((
                format!("{name} mean"),
                relative_error(&found.mean, &expected),
            ));
        }
        if precision == Precision::F16 {
            // torch rounds after more operators than ONNX Runtime, which has one operator for a
            // GELU or an attention.
            let torch = golden_json("", "half.json");
            for (name, error) in &errors {
                let of_torch = torch[shape][name].as_f64().unwrap();
                assert!(
                    *error <= 1.2 * of_torch,
                    "{name}: {error:.1e}, torch {of_torch:.1e}"
                );
            }
            assert_eq!(errors.len(), torch[shape].as_object().unwrap().len());
        }
        check(precision, shape, errors);
    }
}

#[test]
fn networks_in_f32_are_those_of_diffusers() {
    shapes(Precision::F32);
}

#[test]
fn networks_in_f16_are_those_of_diffusers() {
    shapes(Precision::F16);
}

/// Models with other inputs: pooled embeddings and sizes, a guidance scale, latents beside the
/// latents.
#[test]
fn families_are_those_of_diffusers() {
    for precision in [Precision::F32, Precision::F16] {
        for name in ["sdxl-base", "refiner", "lcm", "inpaint", "sd2-v", "bk-tiny"] {
            let folder = tempfile::tempdir().unwrap();
            write_family(name, folder.path());
            let pipeline = rehearse_cuda(precision, || load(folder.path()));
            let golden = Golden::of_file(&family(name).join("golden.safetensors"));
            let cases = golden_json(&format!("families/{name}"), "cases.json");
            let mut errors = unet_errors(&pipeline, &golden, &cases);
            errors.extend(text_errors(&pipeline, &golden, &cases));
            check(precision, name, errors);
        }
    }
}

#[test]
fn control_networks_act_as_in_diffusers() {
    for precision in [Precision::F32, Precision::F16] {
        for name in ["sd1", "sdxl"] {
            // The rounding errors of four networks add up.
            let limit = 2.0 * limit(precision);
            rehearse_cuda(precision, || {
                controls::compare_all_at_once(name, crate::builder(), limit);
            });
        }
    }
}

#[test]
fn loras_as_inputs_equal_merged_ones() {
    let [merged, live] = rehearse_cuda(Precision::F32, || {
        compare(crate::builder, |name| {
            name.contains("lora") || name.contains("locon")
        })
    });
    assert!(live >= 4, "{merged} merged, {live} live");
    rehearse_cuda(Precision::F32, || {
        lora_calls::compare_trained(crate::builder)
    });
    // In f16 the factors are rounded, so the outputs are compared with those in f32.
    let folder = tempfile::tempdir().unwrap();
    lora_calls::write("four", folder.path());
    let library = |precision| {
        rehearse_cuda(precision, || {
            let builder = crate::builder().loras(golden("lora"));
            builder.load(folder.path()).unwrap()
        })
    };
    let [exact, half] = [Precision::F32, Precision::F16].map(library);
    let used = |library: &Pipeline| with(library, &[call(library, "sd1-locon", 1.0)]);
    let (expected, plain) = (used(&exact), with(&exact, &[]));
    let error = difference(&used(&half), &expected);
    println!("a LoRA in f16: {error:.1e}");
    assert!(error > F32 && error <= F16, "{error:.1e}");
    let change = difference(&plain, &expected);
    assert!(change > 5.0 * F16, "{change:.1e}");
}

fn noise(shape: [usize; 4], seed: u64) -> Array4<f32> {
    let mut values = vec![0.0; shape.iter().product()];
    TorchRng::new(seed).fill(&mut values);
    Array4::from_shape_vec(shape, values).unwrap()
}

fn predicted(
    denoiser: &dyn Denoiser,
    latents: &Array4<f32>,
    timestep: f32,
    context: &Array3<f32>,
) -> Array4<f32> {
    let stop = StopToken::new();
    let call = Call::new(latents.view(), timestep, context.view(), &stop);
    let mut output = Array4::zeros(latents.dim());
    denoiser.predict(&call, output.view_mut()).unwrap();
    output
}

/// Both halves of guidance run as a batch on CUDA.
#[test]
fn a_batch_of_two_is_two_calls() {
    for precision in [Precision::F32, Precision::F16] {
        let pipeline = rehearse_cuda(precision, || load(&emoji()));
        let denoiser = pipeline.denoiser();
        assert!(denoiser.inputs().batches_guidance);
        let encode = |text: &str| {
            let encoded = pipeline
                .prompt_encoder()
                .encode(text, ClipSkip::LAST)
                .unwrap();
            encoded.embedding.into_owned()
        };
        let contexts = [encode("a fox"), encode("")];
        let latents = noise([1, 4, 12, 12], 1);
        let alone: Vec<_> = contexts
            .iter()
            .map(|context| predicted(&**denoiser, &latents, 700.0, context))
            .collect();
        let both = concatenate![Axis(0), latents, latents];
        let texts = concatenate![Axis(0), contexts[0], contexts[1]];
        let both = predicted(&**denoiser, &both, 700.0, &texts);
        for (alone, both) in alone.iter().zip(both.axis_chunks_iter(Axis(0), 1)) {
            let error = relative_error(both, alone.as_slice().unwrap());
            println!("{precision} in a batch: {error:.1e}");
            assert!(error <= limit(precision), "{precision}: {error:.1e}");
        }
    }
    assert!(!load(&emoji()).denoiser().inputs().batches_guidance);
}

/// Calls with inputs on the device give the bits of calls that bring all inputs.
#[test]
fn inputs_on_the_device_change_no_bit() {
    let kept = rehearse_cuda(Precision::F32, Engine::of_tests);
    let mut brought = kept.clone();
    brought.as_cuda = false;
    let weights = Weights::empty("weights".as_ref());
    let mut g = Graph::new("sum", &weights, Dialect::default());
    let any = [Dim::Any("n")];
    let names = ["latents", "context", "factors"];
    let [x, y, z] = names.map(|name| g.input(name, &any));
    let product = g.mul(x, y);
    let sum = g.add(product, z);
    g.output("sum", sum, &any);
    let model = g.finish().unwrap();
    let [kept, brought] = [&kept, &brought].map(|it| Session::new("sum", &model, it).unwrap());
    let stop = StopToken::new();
    let run = |session: &Session, x: &[f32], y: &[f32], z: &Arc<[f32]>| {
        let shape = [x.len()];
        let inputs = [
            ("latents", Input::F32(&shape, x)),
            ("context", Input::F32(&shape, y)),
            ("factors", Input::Shared(&shape, z)),
        ];
        let bits = |_: &[i64], values: &[f32]| -> Vec<u32> {
            values.iter().map(|value| value.to_bits()).collect()
        };
        session.run(&inputs, &stop, bits).unwrap()
    };
    let mut copies = 0;
    let mut same = |x: &[f32], y: &[f32], z: &Arc<[f32]>, copied: usize| {
        assert_eq!(run(&kept, x, y, z), run(&brought, x, y, z));
        copies += copied;
        assert_eq!(kept.copies(), Some(copies));
    };
    let factors: Arc<[f32]> = [0.5, -0.5].into();
    let mut context = vec![2.0, 3.0];
    same(&[1.0, 1.0], &context, &factors, 3);
    same(&[1.0, 1.0], &context, &factors, 0);
    same(&[5.0, 1.0], &context, &factors, 1);
    // Other values at the same address.
    context[1] = 4.0;
    same(&[5.0, 1.0], &context, &factors, 1);
    // The same values at another address.
    same(&[5.0, 1.0], &context.clone(), &factors, 0);
    // A zero of the other sign, which is equal to the first.
    same(&[0.0, 1.0], &context, &[-0.0, 0.0].into(), 2);
    same(&[-0.0, 1.0], &context, &[-0.0, 0.0].into(), 2);
    // Another size, and the first one again.
    same(&[1.0; 3], &[2.0; 3], &[3.0; 3].into(), 3);
    same(&[1.0, 1.0], &[2.0, 3.0], &factors, 3);
    // NaN is not equal to itself.
    same(&[f32::NAN, 1.0], &[2.0, 3.0], &factors, 1);
    same(&[f32::NAN, 1.0], &[2.0, 3.0], &factors, 0);
    assert_eq!(brought.copies(), None);

    // A call with an input of a wrong size fails, and leaves the session usable.
    let wrong = [
        ("latents", Input::F32(&[1, 1], &[1.0])),
        ("context", Input::F32(&[1], &[1.0])),
        ("factors", Input::Shared(&[2], &factors)),
    ];
    assert!(kept.run(&wrong, &stop, |_, _| ()).is_err());
    assert_eq!(
        run(&kept, &[1.0, 1.0], &[2.0, 3.0], &factors),
        run(&brought, &[1.0, 1.0], &[2.0, 3.0], &factors)
    );
    let stopped = StopToken::new();
    stopped.stop();
    let inputs = [("latents", Input::F32(&[1], &[1.0]))];
    let error = kept.run(&inputs, &stopped, |_, _| ()).unwrap_err();
    assert!(matches!(error, crate::RunError::Stopped), "{error}");
}

/// Averages over squares that reach beyond the picture are those of whole squares on CUDA.
#[test]
fn averages_of_odd_pictures_are_the_same() {
    let engine = Engine::of_tests();
    let weights = Weights::empty("weights".as_ref());
    let picture = noise([1, 2, 5, 8], 3);
    let averaged = |dialect| {
        let mut g = Graph::new("averages", &weights, dialect);
        let sides = [1, 2, 5, 8].map(Dim::Fixed);
        let x = g.input("x", &sides);
        let averages = g.average_pairs(x);
        g.output("y", averages, &[Dim::Free; 4]);
        let session = Session::new("averages", &g.finish().unwrap(), &engine).unwrap();
        let inputs = [("x", Input::F32(&[1, 2, 5, 8], picture.as_slice().unwrap()))];
        session.run_for(&inputs, &["y"]).unwrap().remove(0)
    };
    let expected = averaged(Dialect::default());
    let found = averaged(Dialect::cuda(Precision::F32));
    assert_eq!(expected.shape(), [1, 2, 3, 4]);
    assert_eq!(found.shape(), expected.shape());
    let error = relative_error(&found, expected.as_slice().unwrap());
    assert!(error <= 1e-6, "{error:.1e}");
}

impl Engine {
    fn of_tests() -> Self {
        Self::new(Settings::default()).unwrap()
    }
}

/// A stop ends a call with inputs on the device while it runs.
#[test]
fn a_stop_ends_a_call() {
    let pipeline = rehearse_cuda(Precision::F32, || load(&emoji()));
    let denoiser = pipeline.denoiser();
    let (latents, context) = (noise([1, 4, 96, 96], 1), Array3::zeros((1, 77, 64)));
    let run = |stop: &StopToken| {
        let call = Call::new(latents.view(), 500.0, context.view(), stop);
        let mut output = Array4::zeros(latents.dim());
        let start = std::time::Instant::now();
        let result = denoiser.predict(&call, output.view_mut());
        (result, start.elapsed())
    };
    // The second call is measured. The first one makes ONNX Runtime's plan of the memory.
    run(&StopToken::new()).0.unwrap();
    let (whole, time) = run(&StopToken::new());
    whole.unwrap();
    let stop = StopToken::new();
    let result = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(time / 4);
            stop.stop();
        });
        run(&stop).0
    });
    let error = result.unwrap_err();
    let error = error.downcast_ref::<crate::RunError>();
    assert!(matches!(error, Some(crate::RunError::Stopped)), "{error:?}");
    run(&StopToken::new()).0.unwrap();
}
