//! Compares LoRAs that requests call with the same LoRAs merged by the builder.

use std::path::Path;

use ndarray::{Array2, Array3, Array4};
use sd_core::{LoraCall, LoraLibrary, LoraNetworks};
use sd_onnx::{
    Call, Denoiser, LoraWeight, Pipeline, SizeIds, StopToken,
    schedulers::{NoiseSource, noise::TorchRng},
    text::{ClipSkip, PromptEncoder},
};
use sd_text::outside::chain;

use super::common::{Model, emoji, golden, golden_json, relative_error, write_family};

/// The largest difference between a LoRA that is an input and one that is merged, in networks with
/// random weights. They amplify rounding: the same network without LoRAs differs by 1.6e-5 between
/// a graph that takes factors and one that does not. In a trained network it is 1e-5.
pub const ROUNDING: f64 = 3e-5;

/// The models of the golden adapters, by their folders in `tests/golden`.
const BASES: [&str; 4] = [
    "four",
    "families/sd2-v",
    "families/sdxl-base",
    "families/inpaint",
];

pub fn write(base: &str, folder: &Path) {
    match base.strip_prefix("families/") {
        Some(family) => write_family(family, folder),
        None => Model::of_shape(base).write(folder),
    }
}

fn noise<const N: usize>(shape: [usize; N], seed: u64) -> Vec<f32> {
    let mut values = vec![0.0; shape.iter().product()];
    TorchRng::new(seed).fill(&mut values);
    values
}

/// Returns the prompt's embedding, and the output of the UNet in one call.
pub fn outputs(prompts: &PromptEncoder, denoiser: &dyn Denoiser, step: usize) -> [Vec<f32>; 2] {
    let inputs = denoiser.inputs();
    let array = |channels: usize, seed| {
        let shape = [1, channels, 8, 8];
        Array4::from_shape_vec(shape, noise(shape, seed)).unwrap()
    };
    let (latents, beside) = (array(inputs.channels, 1), array(inputs.extra_channels, 2));
    let shape = [1, 77, inputs.context];
    let context = Array3::from_shape_vec(shape, noise(shape, 3)).unwrap();
    let pooled = inputs
        .pooled
        .map(|width| Array2::from_shape_vec((1, width), noise([width], 4)));
    let pooled = pooled.map(Result::unwrap);
    let sizes = inputs.sizes.map(SizeIds::count);
    let sizes = sizes.map(|count| Array2::from_elem((1, count), 64.0));
    let stop = StopToken::new();
    let mut call = Call::new(latents.view(), 500.0, context.view(), &stop).step(step);
    call.beside = Some(beside.view()).filter(|_| inputs.extra_channels > 0);
    call.pooled = pooled.as_ref().map(|pooled| pooled.view());
    call.sizes = sizes.as_ref().map(|sizes| sizes.view());
    let mut output = Array4::zeros(latents.dim());
    denoiser.predict(&call, output.view_mut()).unwrap();
    let encoded = prompts.encode("a fox", ClipSkip::new(1).unwrap()).unwrap();
    [
        encoded.embedding.iter().copied().collect(),
        output.into_raw_vec_and_offset().0,
    ]
}

pub fn of_pipeline(pipeline: &Pipeline) -> [Vec<f32>; 2] {
    outputs(pipeline.prompt_encoder(), &**pipeline.denoiser(), 0)
}

pub fn with(pipeline: &Pipeline, calls: &[LoraCall]) -> [Vec<f32>; 2] {
    let networks = networks(pipeline, calls);
    outputs(&networks.prompts, &*networks.denoiser, 0)
}

pub fn networks(pipeline: &Pipeline, calls: &[LoraCall]) -> LoraNetworks {
    let library: &dyn LoraLibrary = pipeline.lora_library().unwrap();
    library.networks(calls).unwrap()
}

pub fn index(pipeline: &Pipeline, name: &str) -> usize {
    let mut loras = pipeline.loras().iter();
    loras
        .position(|lora| lora.name == name)
        .unwrap_or_else(|| panic!("{name} is not there"))
}

/// Returns the largest relative difference of the prompt and of the UNet's output.
pub fn difference(found: &[Vec<f32>; 2], expected: &[Vec<f32>; 2]) -> f64 {
    let pairs = found.iter().zip(expected);
    let errors = pairs.map(|(found, expected)| relative_error(found, expected));
    errors.fold(0.0, f64::max)
}

/// Compares every adapter of the golden files, called by a request, with the same adapter merged by
/// the builder. Returns the number of the adapters that were merged, and of those that were inputs.
pub fn compare(
    builder: impl Fn() -> sd_onnx::Builder,
    is_wanted: impl Fn(&str) -> bool,
) -> [usize; 2] {
    let cases = golden_json("lora", "cases.json");
    let mut seen = [0, 0];
    let cases = cases.as_array().unwrap();
    for base in BASES {
        let of_base = cases.iter().filter(|case| case["base"] == base);
        let wanted: Vec<_> = of_base
            .filter(|case| is_wanted(case["name"].as_str().unwrap()))
            .collect();
        if wanted.is_empty() {
            continue;
        }
        let folder = tempfile::tempdir().unwrap();
        write(base, folder.path());
        let library = builder().loras(golden("lora")).load(folder.path()).unwrap();
        let plain = of_pipeline(&library);
        for case in wanted {
            let entries = case["weights"].as_array().unwrap();
            let entry = entries.last().unwrap();
            let (mut calls, mut merged) = (Vec::new(), builder());
            let mut is_live = true;
            for adapter in entry["adapters"].as_array().unwrap() {
                let file = Path::new(adapter["file"].as_str().unwrap());
                let number = |key: &str| adapter[key].as_f64().unwrap() as f32;
                let (unet, text_encoder) = (number("unet"), number("te"));
                let name = file.file_stem().unwrap().to_str().unwrap();
                let index = index(&library, name);
                is_live &= library.loras()[index].live;
                calls.push(LoraCall::new(index, text_encoder, vec![unet]));
                let weight = LoraWeight { text_encoder, unet };
                merged = merged.lora(golden("lora").join(file), weight);
            }
            let name = format!("{}, weights {}", case["name"], entry["label"]);
            let merged = merged.load(folder.path());
            let merged = merged.unwrap_or_else(|error| panic!("{name}: {}", chain(&error)));
            let (found, expected) = (with(&library, &calls), of_pipeline(&merged));
            let (error, change) = (difference(&found, &expected), difference(&plain, &expected));
            assert!(error <= ROUNDING, "{name}: {error:.1e}");
            assert!(
                change > 5.0 * ROUNDING,
                "{name} changes nothing: {change:.1e}"
            );
            seen[usize::from(is_live)] += 1;
        }
        // Afterwards, the networks without LoRAs are what they were. OpenVINO compiles a network
        // anew when it first takes factors, and may then round in another way.
        let again = with(&library, &[]);
        match is_of_openvino(&library) {
            true => assert!(difference(&again, &plain) <= ROUNDING),
            false => assert_eq!(again, plain),
        }
    }
    seen
}

fn is_of_openvino(pipeline: &Pipeline) -> bool {
    let reports = pipeline.device_report();
    reports
        .iter()
        .any(|report| report.nodes("OpenVINOExecutionProvider") > 0)
}

pub fn call(pipeline: &Pipeline, name: &str, weight: f32) -> LoraCall {
    LoraCall::new(index(pipeline, name), weight, vec![weight])
}

/// Compares the LoRAs of the trained model, called by a request, with the same LoRAs merged by the
/// builder.
pub fn compare_trained(builder: impl Fn() -> sd_onnx::Builder) {
    let folder = emoji();
    let library = builder().loras(folder.join("loras"));
    let library = library.load(&folder).unwrap();
    let plain = of_pipeline(&builder().load(&folder).unwrap());
    let error = difference(&with(&library, &[]), &plain);
    assert!(error < 1e-5, "without LoRAs: {error:.1e}");
    for (name, weight) in [("ink", 0.8), ("sepia", 1.3)] {
        let file = folder.join(format!("loras/{name}.safetensors"));
        let merged = builder().lora(file, weight).load(&folder).unwrap();
        let called = with(&library, &[call(&library, name, weight)]);
        let expected = of_pipeline(&merged);
        let error = difference(&called, &expected);
        let change = difference(&plain, &expected);
        println!("{name}: {error:.1e}, and the LoRA changes {change:.1e}");
        assert!(error < 1e-5, "{name}: {error:.1e}");
        assert!(change > 1e-2, "{name}: {change:.1e}");
    }
}
