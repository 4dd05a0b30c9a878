//! Compares models that other tools exported to ONNX with the same weights in this library's own
//! graphs. `tests/golden/exports.py` made the exports.

// In tests, a panic reports the failure.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/exports.rs"]
mod written;

use std::{fs, path::Path};

use common::{load, relative_error, write_family};
use ndarray::{Array1, Array2, Array3, Array4, Axis};
use safetensors::{Dtype, tensor::TensorView};
use sd_onnx::{
    Call, Inputs, Pipeline, Request, StopToken,
    schedulers::{Ladder, NoiseSource, noise::TorchRng},
    text::{EncodeOptions, PromptText, Side, Syntax, TextualInversion},
};
use sd_text::outside::chain;
use written::{family_of, write_export};

/// The largest error of one network call. f32 sums are computed in another order.
const ONE_CALL: f64 = 1e-5;
const WHOLE_RUN: f64 = 1e-4;
/// The largest error of a network whose layers exchange f16 values, which have 11 bits of
/// precision.
const HALF: f64 = 2e-2;

const EXPORTS: [&str; 6] = [
    "optimum-sd1",
    "optimum-sd2",
    "optimum-inpaint",
    "optimum-lcm",
    "optimum-xl",
    "diffusers-2022",
];
const PROMPT: &str = "a cute fox girl, watercolour";

/// Prints a relative L2 error and checks that it is at most `limit`.
fn within(limit: f64, what: &str, error: f64) {
    println!("{what}: {error:.1e}");
    assert!(
        error <= limit,
        "{what}: relative L2 error {error:.2e}, expected at most {limit:.0e}"
    );
}

/// Loads an export, and the model that it was made from.
fn pair(name: &str, folder: &Path) -> [Pipeline; 2] {
    let export = write_export(name, folder);
    let own = folder.join("own");
    write_family(&family_of(name), &own);
    [load(&export), load(&own)]
}

fn noise<const N: usize>(shape: [usize; N], seed: u64) -> Vec<f32> {
    let mut values = vec![0.0; shape.iter().product()];
    TorchRng::new(seed).fill(&mut values);
    values
}

fn array4(shape: [usize; 4], seed: u64) -> Array4<f32> {
    Array4::from_shape_vec(shape, noise(shape, seed)).unwrap()
}

/// Encodes a prompt with a clip skip. 0 is the model's own layer.
fn encode(
    pipeline: &Pipeline,
    prompt: &str,
    clip_skip: usize,
) -> (Array3<f32>, Option<Array2<f32>>) {
    let options = EncodeOptions::default();
    let options = match clip_skip {
        0 => options,
        number => options.clip_skip(Some(number.try_into().unwrap())),
    };
    let text = PromptText::parse(prompt, Side::Positive, Syntax::Plain);
    let found = pipeline
        .prompt_encoder()
        .encode_prompt_while(&[&text], 1, &options, &|| true)
        .unwrap();
    let found = found[0].at(0);
    let pooled = found.pooled.as_ref().map(|pooled| pooled.to_owned());
    (found.embedding.to_owned(), pooled)
}

/// Calls a UNet once. The inputs are the same for all UNets of the same shape.
fn predict(pipeline: &Pipeline, rows: usize, sides: [usize; 2], timestep: f32) -> Array4<f32> {
    let inputs = pipeline.denoiser().inputs();
    let latents = array4([rows, inputs.channels, sides[0], sides[1]], 1);
    let text = [rows, 77, inputs.context];
    let context = Array3::from_shape_vec(text, noise(text, 2)).unwrap();
    let stop = StopToken::new();
    let mut call = Call::new(latents.view(), timestep, context.view(), &stop);
    let matrix = |width: usize, seed: u64| {
        Array2::from_shape_vec((rows, width), noise([rows, width], seed)).unwrap()
    };
    let pooled = inputs.pooled.map(|width| matrix(width, 3));
    call.pooled = pooled.as_ref().map(|pooled| pooled.view());
    let sizes = inputs
        .sizes
        .map(|ids| matrix(ids.count(), 4).mapv(|v| 512.0 + 64.0 * v));
    call.sizes = sizes.as_ref().map(|sizes| sizes.view());
    let scales = inputs.guidance.then(|| Array1::from_elem(rows, 8.5));
    call.guidance = scales.as_ref().map(|scales| scales.view());
    let beside = array4([rows, inputs.extra_channels.max(1), sides[0], sides[1]], 5);
    call.beside = (inputs.extra_channels > 0).then(|| beside.view());
    let mut output = Array4::zeros(latents.dim());
    pipeline
        .denoiser()
        .predict(&call, output.view_mut())
        .unwrap();
    output
}

/// Draws a picture and returns its final latents and its pixels.
fn draw(pipeline: &Pipeline, clip_skip: usize, sides: [u32; 2]) -> (Array4<f32>, Vec<f32>) {
    let inputs = pipeline.denoiser().inputs();
    let mut request = Request::new(PROMPT)
        .negative("blurry")
        .size(sides[0], sides[1])
        .steps(4)
        .guidance(if inputs.guidance { 8.5 } else { 5.0 })
        .seed(42)
        // Every export takes integer timesteps.
        .ladder(Ladder::leading());
    if clip_skip > 0 {
        request = request.clip_skip(clip_skip);
    }
    if inputs.extra_channels > 0 {
        let factor = pipeline.codec().factor();
        let [width, height] = sides.map(|side| side as usize / factor);
        request = request.beside(array4([1, inputs.extra_channels, height, width], 5));
    }
    let picture = pipeline.generate(&request).unwrap().pictures.remove(0);
    let pixels = picture.pixels.iter().copied().collect();
    (picture.latents.to_owned(), pixels)
}

#[test]
fn what_an_export_takes_is_read_from_its_graphs() {
    for name in EXPORTS {
        let folder = tempfile::tempdir().unwrap();
        let [export, own] = pair(name, folder.path());
        // The export doubles the sides on the way up, so the sides must halve evenly on the way
        // down.
        let doublings = match name {
            "optimum-sd1" | "diffusers-2022" => 3,
            _ => 2,
        };
        let inputs = whole(own.denoiser().inputs()).patch(1 << doublings);
        assert_eq!(export.denoiser().inputs(), &inputs, "{name}");
        let request = Request::new(PROMPT).size(72, 64).steps(1);
        let error = chain(&export.generate(&request).unwrap_err());
        assert!(
            error.contains("sides that are multiples of"),
            "{name}: {error}"
        );
        assert_eq!(export.codec().factor(), own.codec().factor(), "{name}");
        assert_eq!(
            export.codec().latent_channels(),
            own.codec().latent_channels()
        );
    }
}

#[test]
fn text_embeddings_at_every_layer() {
    for name in EXPORTS {
        let folder = tempfile::tempdir().unwrap();
        let [export, own] = pair(name, folder.path());
        let mut before: Option<Array3<f32>> = None;
        for clip_skip in 0..=3 {
            let (found, pooled) = encode(&export, PROMPT, clip_skip);
            let (expected, expected_pooled) = encode(&own, PROMPT, clip_skip);
            assert_eq!(found.dim(), expected.dim());
            let what = format!("{name} clip skip {clip_skip}");
            let expected = expected.iter().copied().collect::<Vec<_>>();
            within(ONE_CALL, &what, relative_error(&found, &expected));
            assert_eq!(pooled.is_some(), expected_pooled.is_some(), "{what}");
            if let (Some(pooled), Some(expected)) = (pooled, expected_pooled) {
                let expected: Vec<f32> = expected.iter().copied().collect();
                within(
                    ONE_CALL,
                    &format!("{what}, pooled"),
                    relative_error(&pooled, &expected),
                );
            }
            // The layers must differ, or a wrong one would not show. Clip skip 0 is left out,
            // because it is one of the others.
            if let Some(before) = before.filter(|_| clip_skip > 1) {
                let before: Vec<f32> = before.iter().copied().collect();
                assert!(relative_error(&found, &before) > 1e-2, "{what}");
            }
            before = Some(found);
        }
    }
}

#[test]
fn calls_of_the_unet() {
    for name in EXPORTS {
        let folder = tempfile::tempdir().unwrap();
        let [export, own] = pair(name, folder.path());
        for (rows, sides, timestep) in [(1, [8, 8], 999.0), (2, [16, 8], 501.0), (1, [8, 24], 1.0)]
        {
            let found = predict(&export, rows, sides, timestep);
            let expected: Vec<f32> = predict(&own, rows, sides, timestep).into_iter().collect();
            let what = format!("{name} {rows} of {sides:?} at {timestep}");
            within(ONE_CALL, &what, relative_error(&found, &expected));
        }
        // A graph with integer timesteps receives the nearest one.
        let expected = match name {
            "diffusers-2022" => 418.0,
            _ => 417.75,
        };
        let found = predict(&export, 1, [8, 8], 417.75);
        let expected: Vec<f32> = predict(&own, 1, [8, 8], expected).into_iter().collect();
        within(
            ONE_CALL,
            &format!("{name} between timesteps"),
            relative_error(&found, &expected),
        );
    }
}

#[test]
fn both_ways_through_the_autoencoder() {
    for name in EXPORTS {
        let folder = tempfile::tempdir().unwrap();
        let [export, own] = pair(name, folder.path());
        let stop = StopToken::new();
        let factor = own.codec().factor();
        let latents = array4([1, own.codec().latent_channels(), 6, 4], 6);
        let found = export.codec().decode(latents.view(), &stop).unwrap();
        let expected = own.codec().decode(latents.view(), &stop).unwrap();
        let expected: Vec<f32> = expected.into_iter().collect();
        within(
            ONE_CALL,
            &format!("{name} decoded"),
            relative_error(&found, &expected),
        );
        let image = array4([1, 3, 6 * factor, 4 * factor], 7).mapv(|v| v.clamp(-1.0, 1.0));
        let found = export.codec().encode(image.view(), &stop).unwrap();
        let again = export.codec().encode(image.view(), &stop).unwrap();
        assert_eq!(found.mean, again.mean, "{name}: noise within the graph");
        let expected = own.codec().encode(image.view(), &stop).unwrap();
        assert_eq!(
            (&found.scale, &found.shift),
            (&expected.scale, &expected.shift)
        );
        for (part, found, expected) in [
            ("mean", found.mean, expected.mean),
            ("log-variance", found.log_variance, expected.log_variance),
        ] {
            let expected: Vec<f32> = expected.into_iter().collect();
            let error = relative_error(&found, &expected);
            within(ONE_CALL, &format!("{name} encoded, {part}"), error);
        }
    }
}

#[test]
fn whole_pictures() {
    for name in EXPORTS {
        let folder = tempfile::tempdir().unwrap();
        let [export, own] = pair(name, folder.path());
        for clip_skip in [0, 2] {
            let (latents, pixels) = draw(&export, clip_skip, [64, 128]);
            let (expected, expected_pixels) = draw(&own, clip_skip, [64, 128]);
            let expected: Vec<f32> = expected.into_iter().collect();
            let what = format!("{name} clip skip {clip_skip}");
            within(
                WHOLE_RUN,
                &format!("{what}, latents"),
                relative_error(&latents, &expected),
            );
            within(
                WHOLE_RUN,
                &format!("{what}, pixels"),
                relative_error(&pixels, &expected_pixels),
            );
        }
        let [first, second] = [0, 2].map(|clip_skip| draw(&own, clip_skip, [64, 128]).0);
        let second: Vec<f32> = second.into_iter().collect();
        // Clip skip 2 is SDXL's own layer, so it changes nothing there.
        if name != "optimum-xl" {
            assert!(
                relative_error(&first, &second) > 100.0 * WHOLE_RUN,
                "{name}"
            );
        }
    }
}

/// Returns the inputs of the same network without shortcuts, which need graphs that this crate
/// writes.
fn whole(inputs: &Inputs) -> Inputs {
    inputs.clone().deep_branches(0).token_merging(false)
}

#[test]
fn graphs_of_16_bits_and_fixed_sizes() {
    let folder = tempfile::tempdir().unwrap();
    let [export, own] = pair("half", folder.path());
    let inputs = whole(own.denoiser().inputs()).patch(4);
    assert_eq!(export.denoiser().inputs(), &inputs);
    let compare = |what: &str, found: Array4<f32>, expected: Array4<f32>| {
        let expected: Vec<f32> = expected.into_iter().collect();
        within(HALF, what, relative_error(&found, &expected));
    };
    for clip_skip in 0..=3 {
        let [found, expected] = [&export, &own].map(|it| encode(it, PROMPT, clip_skip).0);
        let [found, expected] = [found, expected].map(|it| it.insert_axis(Axis(0)));
        compare(&format!("clip skip {clip_skip}"), found, expected);
    }
    let [found, expected] = [&export, &own].map(|it| predict(it, 1, [8, 8], 501.0));
    compare("UNet", found, expected);
    let stop = StopToken::new();
    let latents = array4([1, 4, 8, 8], 6);
    let [found, expected] = [&export, &own].map(|it| it.codec().decode(latents.view(), &stop));
    compare("decoder", found.unwrap(), expected.unwrap());
    let image = array4([1, 3, 16, 16], 7).mapv(|v| v.clamp(-1.0, 1.0));
    let [found, expected] = [&export, &own].map(|it| it.codec().encode(image.view(), &stop));
    let (found, expected) = (found.unwrap(), expected.unwrap());
    compare("encoder", found.mean, expected.mean);
    // The graph returns the mode only.
    assert!(found.log_variance.iter().all(|&v| v == -30.0));

    let size = |width: u32, height: u32| {
        let request = Request::new(PROMPT).size(width, height).steps(1);
        export.generate(&request).map(drop)
    };
    size(16, 16).unwrap();
    let error = size(32, 16).unwrap_err();
    let error = chain(&error);
    for part in [
        "unet",
        "model.onnx",
        "`sample` of [1, 4, 8, 8]",
        "[1, 4, 8, 16]",
    ] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn a_model_may_be_exported_in_part() {
    let folder = tempfile::tempdir().unwrap();
    let [export, own] = pair("optimum-sd1", folder.path());
    let mixed = folder.path().join("own");
    fs::remove_dir_all(mixed.join("unet")).unwrap();
    let unet = folder.path().join("optimum-sd1/unet");
    fs::rename(unet, mixed.join("unet")).unwrap();
    let (latents, _) = draw(&load(&mixed), 2, [64, 128]);
    for other in [export, own] {
        let expected: Vec<f32> = draw(&other, 2, [64, 128]).0.into_iter().collect();
        within(WHOLE_RUN, "mixed", relative_error(&latents, &expected));
    }
}

/// Creates a textual inversion of two random vectors for each width. Each width has the name of its
/// tensor.
fn inversion(widths: &[(&str, usize)]) -> TextualInversion {
    let stored: Vec<(&str, Vec<usize>, Vec<u8>)> = widths
        .iter()
        .map(|&(name, width)| {
            let values = noise([2, width], 9);
            let bytes = values.iter().flat_map(|v| (0.5 * v).to_le_bytes());
            (name, vec![2, width], bytes.collect())
        })
        .collect();
    let views = stored.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap();
        (*name, view)
    });
    let bytes = safetensors::serialize(views, None).unwrap();
    TextualInversion::from_bytes("wumpus", &bytes).unwrap()
}

#[test]
fn textual_inversions_are_rows_behind_the_token_embedding() {
    for (name, widths) in [
        ("optimum-sd1", &[("emb_params", 48)][..]),
        ("optimum-sd2", &[("emb_params", 40)]),
        ("diffusers-2022", &[("emb_params", 56)]),
        // In this model, the end of a text is found as the largest id. The ids of inversions are
        // larger still.
        ("optimum-xl", &[("clip_l", 24), ("clip_g", 32)]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let export = write_export(name, folder.path());
        let own = folder.path().join("own");
        write_family(&family_of(name), &own);
        let [export, own] = [export, own].map(|path| {
            let builder = sd_onnx::builder().embedding(inversion(widths));
            builder.load(path).unwrap()
        });
        for prompt in ["a wumpus, watercolour", PROMPT] {
            let (found, pooled) = encode(&export, prompt, 0);
            let (expected, expected_pooled) = encode(&own, prompt, 0);
            let expected: Vec<f32> = expected.into_iter().collect();
            within(
                ONE_CALL,
                &format!("{name} {prompt}"),
                relative_error(&found, &expected),
            );
            if let (Some(pooled), Some(expected)) = (pooled, expected_pooled) {
                let expected: Vec<f32> = expected.into_iter().collect();
                let what = format!("{name} {prompt}, pooled");
                within(ONE_CALL, &what, relative_error(&pooled, &expected));
            }
        }
        let [with, without] = ["a wumpus", "a "].map(|prompt| encode(&export, prompt, 0).0);
        assert_ne!(with, without);
    }
}

#[test]
fn embeddings_of_texts() {
    for name in ["optimum-sd1", "diffusers-2022"] {
        let folder = tempfile::tempdir().unwrap();
        let export = write_export(name, folder.path());
        let own = folder.path().join("own");
        write_family(&family_of(name), &own);
        let [found, expected] = [export, own].map(|path| {
            let encoder = sd_onnx::TextEncoder::load(path).unwrap();
            encoder.encode(["a fox", "a red fox"]).unwrap()
        });
        let expected_pooled: Vec<f32> = expected.pooled.into_iter().collect();
        within(
            ONE_CALL,
            name,
            relative_error(&found.pooled, &expected_pooled),
        );
        let expected: Vec<f32> = expected.hidden.into_iter().collect();
        within(ONE_CALL, name, relative_error(&found.hidden, &expected));
    }
}

#[test]
fn a_layer_that_is_not_found_is_an_error_when_it_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let export = write_export("optimum-sd1", folder.path());
    let path = export.join("text_encoder/config.json");
    let config = fs::read_to_string(&path).unwrap();
    assert!(config.contains("\"num_hidden_layers\": 3"));
    let config = config.replace("\"num_hidden_layers\": 3", "\"num_hidden_layers\": 4");
    fs::write(&path, config).unwrap();
    let pipeline = load(&export);
    let request = Request::new(PROMPT).size(64, 64).steps(1);
    pipeline.generate(&request).unwrap();
    let error = pipeline.generate(&request.clip_skip(2)).unwrap_err();
    let error = chain(&error);
    for part in [
        "text_encoder",
        "model.onnx",
        "clip skip 2 cannot be had",
        "3 layers, expected 4",
    ] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn parts_that_are_missing() {
    let folder = tempfile::tempdir().unwrap();
    let export = write_export("diffusers-2022", folder.path());
    let error = || {
        let loaded = sd_onnx::builder().load(&export).map(drop);
        chain(&loaded.unwrap_err())
    };

    // Drawing from noise does not need the encoder.
    fs::remove_dir_all(export.join("vae_encoder")).unwrap();
    let pipeline = load(&export);
    draw(&pipeline, 0, [64, 64]);
    let image = Array4::zeros((1, 3, 64, 64));
    let codec = pipeline.codec().encode(image.view(), &StopToken::new());
    let problem = chain(&*codec.unwrap_err());
    assert!(
        problem.contains("vae_encoder") && problem.contains("no encoder"),
        "{problem}"
    );
    drop(pipeline);

    let weights = export.join("unet/weights.pb");
    let whole = fs::read(&weights).unwrap();
    fs::write(&weights, &whole[..whole.len() - 1]).unwrap();
    let problem = error();
    assert!(problem.contains("of `weights.pb`, which has"), "{problem}");
    fs::remove_file(&weights).unwrap();
    let problem = error();
    assert!(
        problem.contains("lies in `weights.pb`, which cannot be read"),
        "{problem}"
    );
    fs::write(&weights, &whole).unwrap();
    load(&export);

    fs::write(export.join("unet/model.onnx"), "<html>").unwrap();
    let problem = error();
    assert!(problem.contains("model.onnx"), "{problem}");
    fs::remove_dir_all(export.join("vae_decoder")).unwrap();
    let problem = error();
    assert!(problem.contains("`vae` not found"), "{problem}");
}

#[cfg(unix)]
#[test]
fn a_snapshot_of_links_is_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let export = write_export("diffusers-2022", folder.path());
    let blobs = folder.path().join("blobs");
    fs::create_dir_all(&blobs).unwrap();
    for (index, file) in ["model.onnx", "weights.pb"].into_iter().enumerate() {
        let path = export.join("unet").join(file);
        let blob = blobs.join(index.to_string());
        fs::rename(&path, &blob).unwrap();
        std::os::unix::fs::symlink(Path::new("../../blobs").join(index.to_string()), &path)
            .unwrap();
    }
    let own = folder.path().join("own");
    write_family(&family_of("diffusers-2022"), &own);
    let found = predict(&load(&export), 1, [8, 8], 501.0);
    let expected: Vec<f32> = predict(&load(&own), 1, [8, 8], 501.0).into_iter().collect();
    within(ONE_CALL, "links", relative_error(&found, &expected));
}
