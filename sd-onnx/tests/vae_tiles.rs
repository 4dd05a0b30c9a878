//! Compares exactly tiled autoencoders with diffusers 0.42.1, and checks the options of tiles and
//! of TAESD.
//!
//! The values are those of `tests/golden.rs`. The tests of bands are in the crate, because the
//! pictures here are too small to be divided.

// In tests, a panic reports the failure.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/exports.rs"]
mod written;

use std::{ops::ControlFlow, path::Path};

use common::{Golden, Model, SHAPES, emoji, golden_json, relative_error, write_family};
use ndarray::Array4;
use sd_onnx::{
    Builder, Conversion, Error, Event, LatentDistribution, ModelForm, Request, StopToken, TaesdUse,
    VaeTiling,
};
use sd_text::outside::chain;
use written::write_export;

/// The largest error of one network call, as in `tests/golden.rs`.
const ONE_CALL: f64 = 1e-5;

fn array4((shape, values): (Vec<usize>, Vec<f32>)) -> Array4<f32> {
    Array4::from_shape_vec([shape[0], shape[1], shape[2], shape[3]], values).unwrap()
}

fn tiled(tiling: VaeTiling) -> Builder {
    sd_onnx::builder().vae_tiling(tiling)
}

#[test]
fn exact_tiles_decode_and_encode_as_diffusers_does_untiled() {
    for shape in SHAPES {
        let folder = tempfile::tempdir().unwrap();
        Model::of_shape(shape).write(folder.path());
        let codec = tiled(VaeTiling::Exact).load_codec(folder.path()).unwrap();
        let (golden, cases) = (Golden::of_shape(shape), golden_json(shape, "cases.json"));
        let stop = StopToken::new();
        let within = |what: &str, found: &Array4<f32>, expected: Vec<f32>| {
            let error = relative_error(found, &expected);
            println!("{shape} {what}: {error:.1e}");
            assert!(error <= ONE_CALL, "{shape} {what}: {error:.2e}");
        };
        let mut scaling = None;
        for case in cases["vae_encode"].as_array().unwrap() {
            let name = case["name"].as_str().unwrap();
            let image = array4(golden.tensor(&format!("{name}.image")));
            let found = codec.encode(image.view(), &stop).unwrap();
            within(name, &found.mean, golden.tensor(&format!("{name}.mean")).1);
            let (_, expected) = golden.tensor(&format!("{name}.logvar"));
            within(name, &found.log_variance, expected);
            scaling = Some(found);
        }
        for case in cases["vae_decode"].as_array().unwrap() {
            let name = case["name"].as_str().unwrap();
            // The golden latents are the autoencoder's own input; the pipeline's latents are
            // scaled.
            let scaled = LatentDistribution {
                mean: array4(golden.tensor(&format!("{name}.latents"))),
                ..scaling.clone().unwrap()
            };
            let image = codec.decode(scaled.mode().view(), &stop).unwrap();
            within(name, &image, golden.tensor(&format!("{name}.image")).1);
        }
    }
}

/// The bound decides between an untiled call, which stays the same in every bit, and exact tiles.
#[test]
fn a_picture_is_tiled_above_the_bound() {
    let decoded = |tiling| {
        let codec = tiled(tiling).load_codec(emoji()).unwrap();
        let latents = Array4::from_shape_fn((1, 4, 12, 12), |(_, c, y, x)| {
            ((c * 31 + y * 7 + x) as f32).sin()
        });
        codec.decode(latents.view(), &StopToken::new()).unwrap()
    };
    let [untiled, exact] = [VaeTiling::Never, VaeTiling::Exact].map(decoded);
    assert_ne!(untiled, exact);
    assert_eq!(decoded(VaeTiling::default()), untiled);
    // The largest map has 32 channels.
    let bytes = 4 * 4 * 32 * 96 * 96;
    let auto = |most_bytes| decoded(VaeTiling::Auto { most_bytes });
    assert_eq!(auto(bytes), untiled);
    assert_eq!(auto(bytes - 1), exact);
}

#[test]
fn sides_that_do_not_halve_are_refused_in_tiles() {
    let codec = tiled(VaeTiling::Exact).load_codec(emoji()).unwrap();
    let picture = Array4::zeros((1, 3, 36, 40));
    let error = codec.encode(picture.view(), &StopToken::new()).unwrap_err();
    let expected = "a picture of 40×36 pixels cannot be encoded in tiles, expected multiples of 8";
    assert_eq!(error.to_string(), expected);
    // Untiled, the network itself leaves out what is over.
    let codec = tiled(VaeTiling::default()).load_codec(emoji()).unwrap();
    let found = codec.encode(picture.view(), &StopToken::new()).unwrap();
    assert_eq!(found.mean.dim(), (1, 4, 4, 5));
}

#[test]
fn an_exported_graph_and_a_taesd_cannot_be_tiled() {
    let folder = tempfile::tempdir().unwrap();
    let export = write_export("optimum-sd1", folder.path());
    for tiling in [VaeTiling::Exact, VaeTiling::Fast] {
        let error = tiled(tiling).load_codec(&export).map(drop).unwrap_err();
        assert!(matches!(error, Error::Graph { .. }), "{error:?}");
        let expected = "an exported graph cannot be cut into tiles";
        assert!(chain(&error).contains(expected), "{}", chain(&error));
        let builder = tiled(tiling).vae(taesd("taesd", folder.path()));
        let error = builder.load_codec(emoji()).map(drop).unwrap_err();
        assert!(matches!(error, Error::Config { .. }), "{error:?}");
        let expected = format!("`Builder::vae_tiling`, which is `{tiling}`");
        assert!(chain(&error).contains(&expected), "{}", chain(&error));
    }
    tiled(VaeTiling::default()).load_codec(&export).unwrap();
}

#[test]
fn an_infotext_says_when_tiles_were_fast() {
    let request = Request::new("a fox").steps(1).seed(1);
    let large = request.clone().size(32, 1024);
    let fast = tiled(VaeTiling::Fast).load(emoji()).unwrap();
    let exact = tiled(VaeTiling::Exact).load(emoji()).unwrap();
    let infotext = |request| fast.generate(request).unwrap().pictures[0].infotext();
    assert_eq!(infotext(&request).get("SD decoder"), None, "exact tiles");
    let infotext = infotext(&large);
    assert_eq!(infotext.get("SD decoder"), Some("fast tiles"));
    assert_eq!(fast.reproduction(&infotext).differences, [""; 0]);
    let differences = exact.reproduction(&infotext).differences;
    let expected = "the picture was decoded with fast tiles, which a pipeline does only if its \
                    codec is set so";
    assert_eq!(differences, [expected]);
}

/// Writes the autoencoder of a family as a folder, and returns its path.
fn taesd(family: &str, folder: &Path) -> std::path::PathBuf {
    let folder = folder.join(family);
    write_family(family, &folder);
    folder.join("vae")
}

#[test]
fn a_taesd_decodes_previews_and_pictures() {
    let folder = tempfile::tempdir().unwrap();
    let path = taesd("taesd", folder.path());
    let load = |used_for| {
        let builder = sd_onnx::builder().taesd(&path, used_for);
        builder.load(emoji()).unwrap()
    };
    let request = Request::new("a fox").steps(2).seed(1);
    let plain = sd_onnx::builder().load(emoji()).unwrap();
    let plain = plain.generate(&request).unwrap();
    let whole = sd_onnx::builder().vae(&path).load(emoji()).unwrap();
    let whole = whole.generate(&request).unwrap();
    for (used_for, expected) in [
        (TaesdUse::Previews, &plain),
        (TaesdUse::PreviewsAndPictures, &whole),
    ] {
        let pipeline = load(used_for);
        let (mut preview, mut pictures) = (None, Vec::new());
        let requests = [request.clone()];
        let run = pipeline.run(&requests, &StopToken::new(), |event| {
            match event {
                Event::Step(progress) => preview = Some(progress.preview()),
                Event::Picture(picture) => pictures.push(picture),
                _ => {}
            }
            ControlFlow::Continue(())
        });
        run.unwrap();
        assert_eq!(pictures[0].image, *expected.image());
        // The last estimate is the finished latents.
        assert_eq!(preview.unwrap(), *whole.image());
        let decoder = pictures[0].infotext().get("SD decoder").map(str::to_owned);
        let is_decoded = used_for == TaesdUse::PreviewsAndPictures;
        assert_eq!(decoder.as_deref(), is_decoded.then_some("TAESD"));
        // Pictures are encoded by the model's own autoencoder.
        let encoded = pipeline.encode_image(expected.image()).unwrap();
        assert!(encoded.log_variance.iter().all(|v| v.is_finite()));
    }
}

#[test]
fn a_taesd_that_does_not_fit_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let of_16 = taesd("taesd-16", folder.path());
    let load = |path: &Path, used_for| {
        let builder = sd_onnx::builder().taesd(path, used_for);
        chain(&builder.load(emoji()).map(drop).unwrap_err())
    };
    let error = load(&of_16, TaesdUse::Previews);
    assert!(error.contains("the codec of previews has 16"), "{error}");
    let error = load(&of_16, TaesdUse::PreviewsAndPictures);
    assert!(error.contains("levels for 8 pixels per latent"), "{error}");
    let error = load(&emoji().join("vae"), TaesdUse::Previews);
    assert!(error.contains("expected AutoencoderTiny"), "{error}");
    let error = sd_onnx::builder()
        .taesd(&of_16, TaesdUse::Previews)
        .convert(
            emoji(),
            folder.path().join("new"),
            &Conversion::new(ModelForm::Folder),
        );
    let error = chain(&error.unwrap_err());
    assert!(error.contains("a TAESD beside the autoencoder"), "{error}");
}
