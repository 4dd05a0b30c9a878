//! Compares ControlNets, T2I-Adapters and IP-Adapters with diffusers 0.42.1, and ControlNet's modes
//! with sd-webui-controlnet, on random-weight models.
//!
//! `tests/golden/control.py` wrote the values. The README beside it describes them.

// In tests, a panic reports the failure.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/controls.rs"]
mod controls;
#[path = "common/single.rs"]
mod single;

use std::{collections::BTreeMap, fs, path::Path};

use common::{golden, relative_error, write_tensors};
use controls::{Controls, compare_all_at_once};
use ndarray::{Array2, Array3, Array4};
use safetensors::Dtype;
use sd_onnx::{
    Builder, Call, Control, ControlCall, ControlInput, Error, GenerateError, Hires, Picture,
    Pipeline, Request, Seamless, StopToken, image::RgbImage,
};
use serde_json::{Value, json};

/// The largest error of a run. Guidance and the model itself amplify differences.
const WHOLE_RUN: f64 = 1e-4;

/// Returns why a run is not compared. diffusers does something there that this crate does not.
fn left_out(run: &Value) -> Option<&'static str> {
    match run["name"].as_str().unwrap() {
        "ip-blocks" => Some("weights per block are not supported"),
        "union" | "union-two" => Some("union ControlNets are not supported"),
        "controlnet-heun" => Some("diffusers counts the calls of the network as steps"),
        _ => None,
    }
}

fn runs_of(name: &str, expected: usize) {
    let folder = tempfile::tempdir().unwrap();
    let controls = Controls::write(name, folder.path());
    // Most runs use a few of its networks, so this also shows that the others do nothing.
    let all = controls.load_all(sd_onnx::builder());
    let (mut seen, mut wrong) = (0, Vec::new());
    for run in controls.cases["runs"].as_array().unwrap() {
        let name = run["name"].as_str().unwrap();
        if let Some(reason) = left_out(run) {
            println!("{name} is not compared: {reason}");
            continue;
        }
        let is_plain = |part: &Value| part["changes"].as_object().unwrap().is_empty();
        let pipeline = match run["controls"].as_array().unwrap().iter().all(is_plain) {
            true => controls.scheduled(&all, run),
            false => controls.scheduled(&controls.load(sd_onnx::builder(), run), run),
        };
        let request = controls.request(run);
        let found = match pipeline.generate(&request) {
            Ok(found) => found,
            Err(error) => {
                wrong.push(format!("{name}: {error}"));
                continue;
            }
        };
        let (_, expected) = controls.values.tensor(&format!("run.{name}.latents"));
        let error = relative_error(&found.pictures[0].latents, &expected);
        println!("{name}: {error:.1e}");
        if error > WHOLE_RUN {
            wrong.push(format!(
                "{name}: {error:.2e}, expected at most {WHOLE_RUN:.0e}"
            ));
        }
        seen += 1;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(seen, expected);
}

#[test]
fn runs_of_sd1_are_those_of_diffusers() {
    runs_of("sd1", 34);
}

#[test]
fn runs_of_sdxl_are_those_of_diffusers() {
    runs_of("sdxl", 23);
}

#[test]
fn runs_of_ssd_are_those_of_diffusers() {
    runs_of("ssd", 3);
}

/// The largest error of a call of a network.
const CALL: f64 = 1e-5;

#[test]
fn all_kinds_act_on_one_call() {
    // The rounding errors of four networks add up.
    compare_all_at_once("sd1", sd_onnx::builder(), 2.0 * CALL);
    compare_all_at_once("sdxl", sd_onnx::builder(), 2.0 * CALL);
}

/// Features of T2I-Adapters, and tokens of IP-Adapters.
#[test]
fn pictures_are_read_as_in_diffusers() {
    for (name, expected) in [("sd1", 10), ("sdxl", 7)] {
        let folder = tempfile::tempdir().unwrap();
        let controls = Controls::write(name, folder.path());
        let calls = controls.cases["calls"].as_array().unwrap();
        let mut seen = 0;
        for call in calls {
            let (kind, what) = (&call["kind"], call["name"].as_str().unwrap());
            let picture = match kind.as_str().unwrap() {
                "adapter" => call["pictures"][0].as_str().unwrap(),
                "image" => call["picture"].as_str().unwrap(),
                _ => continue,
            };
            let path = controls.part(call["part"].as_str().unwrap(), &Value::Null);
            let builder = sd_onnx::builder().control(path);
            let denoiser = builder.load_denoiser(controls.model()).unwrap();
            let picture = controls.picture(picture);
            let values = values_of(&picture);
            let (input, outputs) = match kind == "image" {
                true => (ControlInput::Pixels(&picture), vec!["tokens".to_owned()]),
                false => {
                    let features = (0..4).map(|i| format!("feature.{i}"));
                    (ControlInput::Values(values.view()), features.collect())
                }
            };
            let hint = denoiser.read_control(0, input, &StopToken::new()).unwrap();
            for (i, output) in outputs.iter().enumerate() {
                let (_, expected) = controls.values.tensor(&format!("{what}.{output}"));
                // The golden tokens of the negative prompt come first.
                let negative = hint.negative.iter().flat_map(|arrays| &arrays[i]);
                let found = negative.chain(&hint.prompt[i]);
                let error = relative_error(found, &expected);
                println!("{what}.{output}: {error:.1e}");
                assert!(error <= CALL, "{what}.{output}: {error:.2e}");
            }
            seen += 1;
        }
        assert_eq!(seen, expected, "{name}");
    }
}

fn values_of(picture: &RgbImage) -> Array4<f32> {
    let (width, height) = picture.dimensions();
    let shape = (1, 3, height as usize, width as usize);
    Array4::from_shape_fn(shape, |(_, c, y, x)| {
        f32::from(picture.get_pixel(x as u32, y as u32).0[c]) / 255.0
    })
}

/// A ControlNet, a T2I-Adapter and an IP-Adapter.
const PARTS: [&str; 3] = ["controlnet", "adapter", "ip"];

/// Returns the model with some of its control networks.
fn with(controls: &Controls, builder: Builder, parts: &[&str]) -> Pipeline {
    let builder = parts.iter().fold(builder, |builder, part| {
        builder.control(controls.part(part, &Value::Null))
    });
    builder.load(controls.model()).unwrap()
}

fn with_all(controls: &Controls, builder: Builder) -> Pipeline {
    with(controls, builder, &PARTS)
}

/// Returns a request that uses control networks.
fn controlled(controls: &Controls, parts: &[&str], weight: f32) -> Request {
    parts.iter().fold(plain(), |request, part| {
        let picture = controls.picture("hint.0.101x83");
        request.control(Control::new(*part, picture).weight(weight))
    })
}

fn all(controls: &Controls, weight: f32) -> Request {
    controlled(controls, &PARTS, weight)
}

fn plain() -> Request {
    Request::new("a cute fox girl")
        .negative("blurry")
        .size(64, 64)
        .steps(3)
        .seed(3)
        .guidance(3.0)
}

fn drawn(pipeline: &Pipeline, request: &Request) -> Picture {
    pipeline.generate(request).unwrap().pictures.remove(0)
}

#[test]
fn a_weight_of_nothing_changes_no_bit() {
    let folder = tempfile::tempdir().unwrap();
    let controls = Controls::write("sd1", folder.path());
    let without = sd_onnx::builder().load(controls.model()).unwrap();
    let expected = drawn(&without, &plain());
    let mut wrong = Vec::new();
    for parts in [&["controlnet"][..], &["adapter"], &["ip"], &PARTS] {
        let pipeline = with(&controls, sd_onnx::builder(), parts);
        for request in [plain(), controlled(&controls, parts, 0.0)] {
            let found = drawn(&pipeline, &request);
            if found.latents != expected.latents || found.image != expected.image {
                let error = relative_error(&found.latents, expected.latents.as_slice().unwrap());
                wrong.push(format!("{parts:?}: {error:.1e}"));
            }
        }
        let changed = drawn(&pipeline, &controlled(&controls, parts, 1.0));
        let error = relative_error(&changed.latents, expected.latents.as_slice().unwrap());
        assert!(error > 1e-2, "{parts:?}: {error:.2e}");
    }
    assert_eq!(wrong, [""; 0]);
}

/// A LoRA for the model, which changes the UNet's attention.
const LORA: &str = "sd1-lora";

#[test]
fn loras_and_control_networks_change_one_graph() {
    let folder = tempfile::tempdir().unwrap();
    let controls = Controls::write("sd1", folder.path());
    let file = golden("lora").join(format!("{}.safetensors", LORA));
    let merged = with_all(&controls, sd_onnx::builder().lora(file, 0.7));
    let live = with_all(&controls, sd_onnx::builder().loras(golden("lora")));
    let request = all(&controls, 0.8);
    let expected = drawn(&merged, &request);
    let called = format!("a cute fox girl<lora:{}:0.7>", LORA);
    let found = drawn(&live, &request.clone().prompt(called));
    let error = relative_error(&found.latents, expected.latents.as_slice().unwrap());
    assert!(error <= WHOLE_RUN, "{error:.2e}");
    // Neither is lost beside the other.
    for other in [drawn(&merged, &plain()), drawn(&live, &request)] {
        let error = relative_error(&other.latents, expected.latents.as_slice().unwrap());
        assert!(error > 1e-3, "{error:.2e}");
    }
}

#[test]
fn settings_of_the_builder_act_on_control_networks() {
    let folder = tempfile::tempdir().unwrap();
    let controls = Controls::write("sd1", folder.path());
    let request = all(&controls, 1.0);
    let expected = drawn(&with_all(&controls, sd_onnx::builder()), &request);
    let low_memory = with_all(&controls, sd_onnx::builder().low_memory(true));
    assert_eq!(drawn(&low_memory, &request).latents, expected.latents);
    // The UNet and the ControlNet stay together, so that steps do not load them again.
    let loaded: Vec<_> = low_memory.device_report();
    let loaded: Vec<_> = loaded.iter().map(|report| &*report.network).collect();
    assert_eq!(loaded, ["VAE decoder"], "after the picture was decoded");
    let batch = with_all(&controls, sd_onnx::builder().max_batch(2));
    let both = batch.generate(&request.clone().count(2)).unwrap().pictures;
    let error = relative_error(&both[0].latents, expected.latents.as_slice().unwrap());
    assert!(error <= WHOLE_RUN, "{error:.2e}");
    let seamless = with_all(&controls, sd_onnx::builder().seamless(Seamless::BOTH));
    assert_ne!(drawn(&seamless, &request).latents, expected.latents);
    // A second pass reads the pictures in its size.
    let larger = drawn(&batch, &request.hires(Hires::scale(1.5)));
    assert_eq!(larger.image.dimensions(), (96, 96));
}

#[test]
fn a_stop_ends_a_run_with_controls() {
    let folder = tempfile::tempdir().unwrap();
    let controls = Controls::write("sd1", folder.path());
    let pipeline = with_all(&controls, sd_onnx::builder());
    let stop = StopToken::new();
    stop.stop();
    let request = all(&controls, 1.0);
    let error = pipeline.run(&[request], &stop, |_| std::ops::ControlFlow::Continue(()));
    assert!(matches!(error, Err(GenerateError::Stopped(_))));
}

fn refused(builder: Builder, model: &Path) -> String {
    let error: Error = builder.load(model).map(drop).unwrap_err();
    sd_text::outside::chain(&error)
}

#[test]
fn networks_for_other_models_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let sd1 = Controls::write("sd1", &folder.path().join("sd1"));
    let sdxl = Controls::write("sdxl", &folder.path().join("sdxl"));
    for (part, expected) in [
        (
            "controlnet",
            "a ControlNet for another model: it has prompts of width",
        ),
        ("adapter", "a T2I-Adapter for another model: it has"),
        ("ip", "an IP-Adapter for another model: it has a width of"),
    ] {
        let builder = || sd_onnx::builder().control(sdxl.part(part, &Value::Null));
        let error = refused(builder(), &sd1.model());
        assert!(error.contains(expected), "{error}");
        assert!(error.contains(part), "the path is named: {error}");
    }
    let part = || sd1.part("controlnet", &Value::Null);
    let twice = sd_onnx::builder().control(part()).control(part());
    let error = refused(twice, &sd1.model());
    assert!(
        error.contains("another control network is called `controlnet`"),
        "{error}"
    );
    let named = sd_onnx::builder()
        .control(part())
        .named_control("again", part());
    let pipeline = named.load(sd1.model()).unwrap();
    let names: Vec<_> = pipeline
        .denoiser()
        .inputs()
        .controls
        .iter()
        .map(|it| &*it.name)
        .collect();
    assert_eq!(names, ["controlnet", "again"]);
    // The vision model is searched beside the file.
    let ip = sd1.part("ip", &Value::Null);
    std::fs::rename(
        sd1.folder().join("image_encoder"),
        folder.path().join("moved"),
    )
    .unwrap();
    let error = refused(sd_onnx::builder().control(&ip), &sd1.model());
    assert!(
        error.contains("the vision model of the IP-Adapter"),
        "{error}"
    );
    let builder = sd_onnx::builder()
        .control(&ip)
        .image_encoder(folder.path().join("moved"));
    assert!(builder.load(sd1.model()).is_ok());
    let builder = sd_onnx::builder().control(part()).image_encoder("clip");
    let error = refused(builder, &sd1.model());
    assert!(
        error.contains("given for IP-Adapters, but there are none"),
        "{error}"
    );
    let wrong = sd1.part(
        "controlnet",
        &json!({"controlnet_conditioning_channel_order": "grb"}),
    );
    let error = refused(sd_onnx::builder().control(wrong), &sd1.model());
    assert!(error.contains("\"rgb\" or \"bgr\""), "{error}");
}

/// Returns the output of a UNet with a ControlNet of a weight.
fn steered(model: &Path, net: &Path, weight: f32) -> Array4<f32> {
    let denoiser = sd_onnx::builder()
        .control(net)
        .load_denoiser(model)
        .unwrap();
    let inputs = denoiser.inputs();
    let wave = |i: usize| (i as f32 * 0.7).sin();
    let latents = Array4::from_shape_fn((1, 4, 8, 8), |(_, c, y, x)| wave(64 * c + 8 * y + x));
    let width = inputs.context;
    let context = Array3::from_shape_fn((1, 77, width), |(_, token, i)| wave(token * width + i));
    let picture = Array4::from_shape_fn((1, 3, 64, 64), |(_, c, y, x)| {
        0.5 + 0.5 * wave(c + 3 * y + 5 * x)
    });
    let stop = StopToken::new();
    let input = ControlInput::Values(picture.view());
    let hint = denoiser.read_control(0, input, &stop).unwrap();
    let acting = [ControlCall::new(0, &hint.prompt, weight)];
    let pooled = inputs
        .pooled
        .map(|width| Array2::from_elem((1, width), 0.5));
    let sizes = inputs
        .sizes
        .map(|ids| Array2::from_elem((1, ids.count()), 64.0));
    let mut call = Call::new(latents.view(), 500.0, context.view(), &stop).controls(&acting);
    call.pooled = pooled.as_ref().map(|pooled| pooled.view());
    call.sizes = sizes.as_ref().map(|sizes| sizes.view());
    let mut output = Array4::zeros((1, 4, 8, 8));
    denoiser.predict(&call, output.view_mut()).unwrap();
    output
}

#[test]
fn single_files_of_control_nets_equal_folders() {
    let folder = tempfile::tempdir().unwrap();
    for family in ["sd2-v", "sd2-base", "sdxl-base"] {
        let at = |name: &str| folder.path().join(format!("{family}-{name}"));
        let model = at("model");
        single::write_single_folder(family, &model);
        let (config, tensors) = single::control_net(family);
        let net = at("net");
        fs::create_dir_all(&net).unwrap();
        fs::write(net.join("config.json"), config.to_string()).unwrap();
        let named = |name: fn(&single::ControlTensor) -> String| -> BTreeMap<_, _> {
            let tensors = tensors.iter();
            tensors
                .map(|tensor| (name(tensor), tensor.2.clone()))
                .collect()
        };
        let today = named(|(today, ..)| today.clone());
        let stored = named(|(_, stored, _)| stored.clone());
        let bare = named(|(_, stored, _)| stored.replace("control_model.", ""));
        let weights = net.join("diffusion_pytorch_model.safetensors");
        write_tensors(&weights, &today, Dtype::F32);
        let expected = steered(&model, &net, 1.0);
        for (name, tensors) in [("today", &today), ("stored", &stored), ("bare", &bare)] {
            let file = at(&format!("{name}.safetensors"));
            write_tensors(&file, tensors, Dtype::F32);
            assert_eq!(steered(&model, &file, 1.0), expected, "{family}: {name}");
        }
        let error = relative_error(&steered(&model, &net, 0.5), expected.as_slice().unwrap());
        assert!(error > 1e-2, "{family}: {error:.1e}");
    }
}
