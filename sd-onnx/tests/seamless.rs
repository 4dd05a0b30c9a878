//! Compares seamless pictures with diffusers 0.42.1 and torch's circular padding, on random-weight
//! models.
//!
//! `tests/golden/seamless.py` wrote the values. The README beside it describes them.

// In tests, a panic reports the failure.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/exports.rs"]
mod written;

use std::path::Path;

use common::{Golden, Model, emoji, golden, relative_error, write_family};
use ndarray::{Array2, Array3, Array4, Axis, concatenate};
use sd_onnx::{
    Builder, Call, Conversion, Denoiser, Error, LatentCodec, LatentDistribution, ModelForm,
    Pipeline, PromptOptions, Request, Seamless, StopToken,
    schedulers::{Ladder, by_name},
    text::Syntax,
};
use sd_text::outside::chain;
use serde_json::Value;
use written::write_export;

/// The largest error of one network call. f32 sums are computed in another order: torch's own
/// results differ by up to 7e-6 from double precision. Seen: at most 1e-5.
const ONE_CALL: f64 = 2e-5;
/// The largest error of a run. Guidance and the model itself amplify differences.
const WHOLE_RUN: f64 = 1e-4;

fn within(limit: f64, what: &str, error: f64) {
    println!("{what}: {error:.1e}");
    assert!(
        error <= limit,
        "{what}: relative L2 error {error:.2e}, expected at most {limit:.0e}"
    );
}

fn array4((dims, values): (Vec<usize>, Vec<f32>)) -> Array4<f32> {
    Array4::from_shape_vec([dims[0], dims[1], dims[2], dims[3]], values).unwrap()
}

fn builder(axes: &str) -> Builder {
    sd_onnx::builder().seamless(Seamless {
        x: axes.contains('x'),
        y: axes.contains('y'),
    })
}

fn write(model: &str, folder: &Path) {
    match model.strip_prefix("families/") {
        Some(family) => write_family(family, folder),
        None => Model::of_shape(model).write(folder),
    }
}

#[test]
fn networks_and_runs() {
    let values = Golden::of_file(&golden("seamless").join("seamless.safetensors"));
    let cases = std::fs::read_to_string(golden("seamless").join("cases.json")).unwrap();
    let cases: Vec<Value> = serde_json::from_str(&cases).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (mut unets, mut codecs) = (0, 0);
    for case in &cases {
        let text = |key: &str| case[key].as_str().unwrap();
        let folder = folder.path().join(text("model"));
        if !folder.exists() {
            write(text("model"), &folder);
        }
        let builder = builder(text("axes"));
        if case["prompt"].is_null() {
            check_codec(&*builder.load_codec(&folder).unwrap(), case, &values);
            codecs += 1;
            continue;
        }
        let pipeline = builder.load(&folder).unwrap();
        check_unet(&**pipeline.denoiser(), case, &values);
        check_codec(&**pipeline.codec(), case, &values);
        check_run(&pipeline, case, &values);
        unets += 1;
    }
    assert_eq!((unets, codecs), (6, 3));
}

fn check_unet(denoiser: &dyn Denoiser, case: &Value, values: &Golden) {
    let [name, inputs] = ["name", "inputs"].map(|key| case[key].as_str().unwrap());
    let input = |key: &str| values.find(&format!("{inputs}.{key}"));
    let sample = array4(input("sample").unwrap());
    let (dims, context) = input("context").unwrap();
    let context = Array3::from_shape_vec([dims[0], dims[1], dims[2]], context).unwrap();
    let row = |key: &str| {
        let (dims, values) = input(key)?;
        Array2::from_shape_vec([dims[0], dims[1]], values).ok()
    };
    let (pooled, sizes) = (row("pooled"), row("time_ids"));
    let stop = StopToken::new();
    let timestep = case["timestep"].as_f64().unwrap() as f32;
    let mut call = Call::new(sample.view(), timestep, context.view(), &stop);
    call.pooled = pooled.as_ref().map(|pooled| pooled.view());
    call.sizes = sizes.as_ref().map(|sizes| sizes.view());
    let mut output = Array4::zeros(sample.dim());
    denoiser.predict(&call, output.view_mut()).unwrap();
    let (_, expected) = values.tensor(&format!("{name}.output"));
    let error = relative_error(&output, &expected);
    within(ONE_CALL, &format!("{name} UNet"), error);
}

fn check_codec(codec: &dyn LatentCodec, case: &Value, values: &Golden) {
    let [name, inputs] = ["name", "inputs"].map(|key| case[key].as_str().unwrap());
    let input = |key: &str| array4(values.tensor(&format!("{inputs}.{key}")));
    let stop = StopToken::new();
    let encoded = codec.encode(input("image").view(), &stop).unwrap();
    for (part, found) in [("mean", &encoded.mean), ("logvar", &encoded.log_variance)] {
        let Some((_, expected)) = values.find(&format!("{name}.{part}")) else {
            continue;
        };
        let error = relative_error(found, &expected);
        within(ONE_CALL, &format!("{name} {part}"), error);
    }
    // The golden latents are the autoencoder's own input; the pipeline's latents are scaled.
    let latents = LatentDistribution {
        mean: input("latents"),
        ..encoded
    };
    let decoded = codec.decode(latents.mode().view(), &stop).unwrap();
    let (_, expected) = values.tensor(&format!("{name}.decoded"));
    let error = relative_error(&decoded, &expected);
    within(ONE_CALL, &format!("{name} decoded"), error);
}

fn check_run(pipeline: &Pipeline, case: &Value, values: &Golden) {
    let name = case["name"].as_str().unwrap();
    let request = request(case);
    let picture = pipeline.generate(&request).unwrap().pictures.remove(0);
    let (_, latents) = values.tensor(&format!("{name}.latents"));
    let error = relative_error(&picture.latents, &latents);
    within(WHOLE_RUN, &format!("{name} run"), error);
    let (_, pixels) = values.tensor(&format!("{name}.picture"));
    let pixels = picture.pixels.iter().zip(&pixels);
    let far = pixels.filter(|(found, expected)| (*found - *expected).abs() > 2.0 / 255.0);
    assert_eq!(far.count(), 0, "{name}: values are off by more than 2/255");
}

fn request(case: &Value) -> Request {
    let text = |key: &str| case[key].as_str().unwrap();
    let whole = |key: &str| case[key].as_u64().unwrap();
    let options = PromptOptions::default().syntax(Syntax::Plain);
    Request::new(text("prompt"))
        .negative(text("negative"))
        .size(whole("width") as u32, whole("height") as u32)
        .steps(whole("steps") as usize)
        .guidance(case["guidance"].as_f64().unwrap() as f32)
        .seed(whole("seed"))
        .scheduler(by_name("euler").unwrap())
        .ladder(Ladder::leading())
        .prompt_options(options.same_length(true).encode_empty(true))
}

/// Moves the values along an axis. The values that leave at the end return at the start.
fn rolled(x: &Array4<f32>, axis: usize, by: usize) -> Array4<f32> {
    let (first, last) = x.view().split_at(Axis(axis), x.shape()[axis] - by);
    concatenate(Axis(axis), &[last, first]).unwrap()
}

/// On a seamless axis, rolled noise makes the rolled picture. The convolutions with stride 2 keep
/// every 8th latent of the first level, so the noise is rolled by 8 latents.
#[test]
fn rolled_noise_makes_the_rolled_picture() {
    const BY: usize = 8;
    let folder = tempfile::tempdir().unwrap();
    write("four", folder.path());
    for axes in ["", "x", "y", "xy"] {
        let pipeline = builder(axes).load(folder.path()).unwrap();
        let request = Request::new("a fox").size(128, 128).steps(4).seed(7);
        let picture = pipeline.generate(&request).unwrap().pictures.remove(0);
        for (axis, name) in [(2, 'y'), (3, 'x')] {
            let noise = rolled(&picture.initial_noise, axis, BY);
            let request = request.clone().initial_noise(noise);
            let found = pipeline.generate(&request).unwrap().pictures.remove(0);
            let expected = rolled(&picture.pixels, axis, 8 * BY);
            let error = relative_error(
                &found.pixels,
                expected.as_standard_layout().as_slice().unwrap(),
            );
            println!("`{axes}` rolled along {name}: {error:.1e}");
            // The sums of the norms and of the attentions are computed in another order. Without
            // the seamless axis, the edges of the first picture are inside the second one.
            match axes.contains(name) {
                true => assert!(error <= WHOLE_RUN, "`{axes}` along {name}: {error:.1e}"),
                false => assert!(error >= 0.01, "`{axes}` along {name}: {error:.1e}"),
            }
        }
    }
}

#[test]
fn pictures_record_their_axes() {
    let request = Request::new("a fox").size(32, 32).steps(1).seed(1);
    for (axes, key, value) in [
        ("xy", "Tiling", Some("True")),
        ("x", "SD tiling", Some("x")),
        ("y", "SD tiling", Some("y")),
        ("", "Tiling", None),
    ] {
        let pipeline = builder(axes).load(emoji()).unwrap();
        let infotext = pipeline.generate(&request).unwrap().pictures[0].infotext();
        assert_eq!(infotext.get(key), value);
        assert_eq!(infotext.seamless(), pipeline.denoiser().inputs().seamless);
        assert_eq!(pipeline.reproduction(&infotext).differences, [""; 0]);
        for other in ["", "x", "xy"].into_iter().filter(|&other| other != axes) {
            let pipeline = builder(other).load(emoji()).unwrap();
            let differences = pipeline.reproduction(&infotext).differences;
            let expected = usize::from(!axes.is_empty()) + usize::from(!other.is_empty());
            assert_eq!(differences.len(), expected, "{differences:?}");
            assert!(differences.iter().all(|it| it.contains("seamless along")));
        }
    }
}

#[test]
fn exported_graphs_cannot_be_seamless() {
    let folder = tempfile::tempdir().unwrap();
    let export = write_export("optimum-sd1", folder.path());
    let builder = builder("x");
    for error in [
        builder.clone().load(&export).map(drop).unwrap_err(),
        builder.load_denoiser(&export).map(drop).unwrap_err(),
        builder.load_codec(&export).map(drop).unwrap_err(),
    ] {
        assert!(matches!(error, Error::Graph { .. }), "{error:?}");
        let expected = "the padding of an exported graph cannot be changed";
        assert!(chain(&error).contains(expected), "{}", chain(&error));
    }
}

#[test]
fn a_converted_model_cannot_be_seamless() {
    let new = tempfile::tempdir().unwrap();
    let error = builder("x").convert(
        emoji(),
        new.path().join("new"),
        &Conversion::new(ModelForm::Folder),
    );
    let error = chain(&error.unwrap_err());
    assert!(
        error.contains("seamless axes are a setting of loading"),
        "{error}"
    );
}
