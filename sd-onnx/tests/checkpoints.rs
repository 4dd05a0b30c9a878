//! Tests models in single files. Each network computes the same bits as from a folder with the same
//! weights, whatever names the file has for its tensors, and the pictures are the same.

// In tests, a panic reports the failure.
#![allow(clippy::unwrap_used)]

mod common;
#[allow(dead_code, reason = "each test file uses only a part of it")]
#[path = "../../sd-text/tests/common/pickles.rs"]
mod pickles;
#[path = "common/single.rs"]
mod single;

use std::{
    fs,
    path::{Path, PathBuf},
};

use ndarray::{Array2, Array3, Array4};
use safetensors::{Dtype, SafeTensors};
use sd_onnx::{
    Builder, Call, ImageSize, Request, Sizes, StopToken,
    schedulers::{Ladder, Prediction, samplers::Euler},
    text::ClipSkip,
};
use sd_text::outside::chain;
use single::{Options, families, write_single_file, write_single_folder};

/// The model of a family, written both as a folder and as a file.
struct Pair {
    folder: tempfile::TempDir,
}

impl Pair {
    fn of(family: &str, options: &Options) -> Self {
        let pair = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        write_single_folder(family, &pair.folder());
        write_single_file(family, &pair.file(), options);
        pair
    }

    fn folder(&self) -> PathBuf {
        self.folder.path().join("folder")
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("model.safetensors")
    }

    /// Returns a builder with the folder's tokenizer. The small models have a small vocabulary, so
    /// the built-in tokenizer does not fit.
    fn builder(&self) -> Builder {
        sd_onnx::builder().threads(1).tokenizer(self.folder())
    }
}

/// Runs each network of a model once and returns the outputs: text encoders with the pooled state,
/// UNet, decoder and encoder.
fn networks(builder: &Builder, path: &Path) -> Vec<Vec<f32>> {
    let prompts = builder.load_prompt_encoder(path).unwrap();
    let skip = ClipSkip::new(1).unwrap();
    let prompt = prompts.encode("a small fox, a blue sky", skip).unwrap();
    let mut all: Vec<Vec<f32>> = vec![prompt.embedding.iter().copied().collect()];
    all.extend(prompt.pooled.map(|pooled| pooled.iter().copied().collect()));

    let unet = builder.load_denoiser(path).unwrap();
    let inputs = unet.inputs();
    let wave = |i: usize| (i as f32 * 0.37).sin();
    let latents = Array4::from_shape_fn((1, inputs.channels, 8, 8), |(_, c, y, x)| {
        wave(c * 64 + y * 8 + x)
    });
    let context = Array3::from_shape_fn((1, 77, inputs.context), |(_, i, j)| wave(i * 7 + j));
    let pooled = inputs.pooled;
    let pooled = pooled.map(|width| Array2::from_shape_fn((1, width), |(_, i)| wave(i)));
    let size = ImageSize::new(64, 64).unwrap();
    let sizes = inputs.sizes.map(|ids| {
        let values = ids.values(&Sizes::default(), size, 6.0);
        Array2::from_shape_vec((1, values.len()), values).unwrap()
    });
    let beside = Array4::from_shape_fn((1, inputs.extra_channels, 8, 8), |(_, c, y, x)| {
        wave(c + y * 3 + x * 5)
    });
    let stop = StopToken::new();
    let mut call = Call::new(latents.view(), 500.0, context.view(), &stop);
    call.pooled = pooled.as_ref().map(|pooled| pooled.view());
    call.sizes = sizes.as_ref().map(|sizes| sizes.view());
    call.beside = (inputs.extra_channels > 0).then(|| beside.view());
    let guidance = ndarray::arr1(&[7.5]);
    call.guidance = inputs.guidance.then(|| guidance.view());
    let mut output = Array4::zeros(latents.dim());
    unet.predict(&call, output.view_mut()).unwrap();
    all.push(output.into_iter().collect());

    let codec = builder.load_codec(path).unwrap();
    let image = codec.decode(latents.view(), &stop).unwrap();
    let found = codec.encode(image.view(), &stop).unwrap();
    all.extend([image, found.mean, found.log_variance].map(|x| x.into_iter().collect()));
    for values in &all {
        assert!(values.iter().any(|&value| value != 0.0));
    }
    all
}

#[test]
fn every_family_computes_the_same_bits_as_its_folder() {
    for family in families() {
        println!("{family}");
        let pair = Pair::of(family, &Options::default());
        let expected = networks(&pair.builder(), &pair.folder());
        assert!(
            networks(&pair.builder(), &pair.file()) == expected,
            "{family}"
        );
    }
}

#[test]
fn other_types_and_other_names_are_the_same_model() {
    let prefixed = |name: &str| Some(name.replace("model.diffusion_model.", "diffusion_model."));
    let without_text_model =
        |name: &str| Some(name.replace("transformer.text_model.", "transformer."));
    let comfy = |name: &str| {
        Some(name.replace(
            "conditioner.embedders.0.transformer.",
            "text_encoders.clip_l.transformer.",
        ))
    };
    for (family, rename) in [
        ("bk-small", without_text_model as fn(&str) -> Option<String>),
        ("sd2-v", prefixed),
        ("sdxl-base", comfy),
        ("refiner", prefixed),
    ] {
        // The weights of the recipes are rounded to f16, so all of these files hold the same
        // numbers.
        for options in [
            Options {
                dtype: Dtype::F16,
                ..Options::default()
            },
            Options {
                rename,
                ..Options::default()
            },
            Options {
                todays_names: true,
                ..Options::default()
            },
        ] {
            let pair = Pair::of(family, &options);
            let expected = networks(&pair.builder(), &pair.folder());
            let found = networks(&pair.builder(), &pair.file());
            let [what, names] = [
                format!("{:?}", options.dtype),
                format!("{}", options.todays_names),
            ];
            assert!(found == expected, "{family} {what} today's names: {names}");
        }
    }
}

/// Networks from several files make the same model as the folder.
#[test]
fn parts_from_elsewhere() {
    let pair = Pair::of("bk-small", &Options::default());
    let expected = networks(&pair.builder(), &pair.folder());
    let all = ["unet", "vae", "text_encoder"];
    let [unet, vae, text] = all.map(|name| part(&pair, "bk-small", &[name]));

    // When a file contains only a UNet, the error for each missing network names the method that
    // supplies it.
    let mut builder = pair.builder();
    for (what, method) in [
        ("an autoencoder (VAE) not found", "`Builder::vae`"),
        ("a text encoder not found", "`Builder::text_encoder`"),
    ] {
        let error = builder.clone().load(&unet).map(drop).unwrap_err();
        let error = chain(&error);
        assert!(error.contains(what) && error.contains(method), "{error}");
        builder = match method {
            "`Builder::vae`" => builder.vae(&vae),
            _ => builder.text_encoder(&text),
        };
    }
    assert!(networks(&builder, &unet) == expected);
    // The parts can also come from the folder of a network or of a model.
    let builder = pair
        .builder()
        .vae(pair.folder().join("vae"))
        .text_encoder(pair.folder());
    assert!(networks(&builder, &unet) == expected);
    // The parts can also be files, used with a folder.
    let builder = pair.builder().unet(&unet).vae(&vae).text_encoder(&text);
    assert!(networks(&builder, &pair.folder()) == expected);
    // The folder keeps its own tokenizer, whatever files its networks come from.
    let builder = sd_onnx::builder().threads(1);
    let builder = builder.unet(&unet).vae(&vae).text_encoder(&text);
    assert!(networks(&builder, &pair.folder()) == expected);
    // A part that the model has no place for is refused.
    let second = pair.builder().text_encoder_2(&text);
    let error = chain(&second.load(pair.file()).map(drop).unwrap_err());
    assert!(error.contains("`text_encoder_2`"), "{error}");
    assert!(error.contains("does not have"), "{error}");
    // The autoencoder in this folder has another class and scales its latents in another way. A VAE
    // file that replaces it must not use its scaling.
    let tiny = pair.folder.path().join("tiny");
    write_single_folder("taesd", &tiny);
    fs::remove_dir_all(pair.folder().join("vae")).unwrap();
    fs::rename(tiny.join("vae"), pair.folder().join("vae")).unwrap();
    assert!(networks(&pair.builder(), &pair.folder()) != expected);
    assert!(networks(&pair.builder().vae(&vae), &pair.folder()) == expected);
    // A VAE file alone does not say how its latents are scaled.
    let error = pair.builder().load_codec(&vae).map(drop).unwrap_err();
    assert!(chain(&error).contains("`Builder::vae`"), "{error}");
}

/// The same for a model with two text encoders. The latents of an SDXL model keep their scaling
/// with a VAE file.
#[test]
fn parts_of_sdxl() {
    let pair = Pair::of("sdxl-base", &Options::default());
    let expected = networks(&pair.builder(), &pair.folder());
    let base = part(&pair, "sdxl-base", &["unet", "text_encoder_2"]);
    let [vae, first] = ["vae", "text_encoder"].map(|name| part(&pair, "sdxl-base", &[name]));
    let builder = pair.builder().vae(&vae).text_encoder(&first);
    assert!(networks(&builder, &base) == expected);
    // The file's own networks are used where no replacement is given.
    let second = part(&pair, "sdxl-base", &["text_encoder_2"]);
    let builder = pair.builder().text_encoder_2(&second).vae(&vae);
    assert!(networks(&builder, &pair.file()) == expected);
}

/// Writes some components of a family to a separate file and returns its path.
fn part(pair: &Pair, family: &str, components: &[&str]) -> PathBuf {
    let all = ["unet", "vae", "text_encoder", "text_encoder_2"];
    let without = all.into_iter().filter(|part| !components.contains(part));
    let name = format!("{}.safetensors", components.join("-"));
    let path = pair.folder.path().join(name);
    let options = Options {
        without: without.collect(),
        ..Options::default()
    };
    write_single_file(family, &path, &options);
    path
}

/// With the same sampler, ladder and prediction, a file draws the same bits as a folder. The file
/// determines the prediction.
#[test]
fn pictures() {
    for family in ["bk-small", "sd2-v", "sdxl-base"] {
        let options = Options {
            metadata: match family {
                "sd2-v" => vec![("modelspec.prediction_type", "v")],
                _ => Vec::new(),
            },
            ..Options::default()
        };
        let pair = Pair::of(family, &options);
        let draw = |builder: Builder, path: &Path| {
            let pipeline = builder.load(path).unwrap();
            let request = Request::new("a fox").negative("snow").size(64, 64).steps(3);
            let request = request.scheduler(Euler::default()).ladder(Ladder::karras());
            pipeline.generate(&request.seed(5)).unwrap().pictures[0].clone()
        };
        let file = draw(pair.builder(), &pair.file());
        let folder = draw(pair.builder(), &pair.folder());
        assert!(file.image == folder.image, "{family}");
        // The test must be able to fail: another prediction draws another picture.
        let other = match family {
            "sd2-v" => Prediction::Epsilon,
            _ => Prediction::V,
        };
        let other = draw(pair.builder().prediction(other), &pair.file());
        assert!(other.image != folder.image, "{family}");
    }
}

/// The same numbers in a file of torch, as a whole checkpoint and within a folder, give the same
/// bits.
#[test]
fn pickles_draw_as_safetensors() {
    let options = Options {
        dtype: Dtype::F16,
        ..Options::default()
    };
    let pair = Pair::of("bk-small", &options);
    let expected = networks(&pair.builder(), &pair.folder());
    let pickled = pair.folder.path().join("model.ckpt");
    fs::write(&pickled, pickle(&fs::read(pair.file()).unwrap())).unwrap();
    assert!(networks(&pair.builder(), &pickled) == expected);

    for component in ["unet", "vae", "text_encoder"] {
        let [from, to] = match component {
            "text_encoder" => ["model.safetensors", "pytorch_model.bin"],
            _ => [
                "diffusion_pytorch_model.safetensors",
                "diffusion_pytorch_model.bin",
            ],
        };
        let folder = pair.folder().join(component);
        let bytes = fs::read(folder.join(from)).unwrap();
        fs::write(folder.join(to), pickle(&bytes)).unwrap();
        fs::remove_file(folder.join(from)).unwrap();
    }
    assert!(networks(&pair.builder(), &pair.folder()) == expected);
}

/// Converts a safetensors file to a file of torch. It has the tensors in a `state_dict`, and a
/// `global_step` beside it.
fn pickle(file: &[u8]) -> Vec<u8> {
    let file = SafeTensors::deserialize(file).unwrap();
    let mut program = "(dVglobal_step\nI7\nsVstate_dict\n(d".to_owned();
    let mut entries = Vec::new();
    for (number, (name, view)) in file.tensors().into_iter().enumerate() {
        let kind = match view.dtype() {
            Dtype::F32 => "FloatStorage",
            Dtype::F16 => "HalfStorage",
            other => panic!("no test writes {other:?}"),
        };
        let shape = view.shape();
        let text = |sizes: &[usize]| {
            let texts: Vec<_> = sizes.iter().map(usize::to_string).collect();
            texts.join(" ")
        };
        let strides: Vec<usize> = (0..shape.len())
            .map(|axis| shape[axis + 1..].iter().product())
            .collect();
        let count = shape.iter().product::<usize>();
        let storage = pickles::storage(kind, &count.to_string());
        let storage = storage.replace("V0\n", &format!("V{number}\n"));
        let tensor = pickles::tensor_of(&storage, "0", &text(shape), &text(&strides), "");
        program += &format!("V{name}\n{tensor}s");
        entries.push((format!("archive/data/{number}"), view.data().to_vec()));
    }
    program += "s.";
    let mut all = vec![(pickles::PICKLE, program.as_bytes())];
    all.extend(
        entries
            .iter()
            .map(|(name, data)| (name.as_str(), data.as_slice())),
    );
    pickles::zip(&all)
}

/// A tensor whose name places it in a network that has no such tensor is an error that names the
/// tensor.
#[test]
fn unknown_tensors_of_a_network_are_errors() {
    let pair = Pair::of(
        "bk-small",
        &Options {
            rename: |name| match name {
                "model.diffusion_model.out.2.bias" => {
                    Some("model.diffusion_model.middle_block.7.bias".to_owned())
                }
                name => Some(name.to_owned()),
            },
            ..Options::default()
        },
    );
    let error = pair.builder().load(pair.file()).map(drop).unwrap_err();
    let error = chain(&error);
    assert!(
        error.contains("model.diffusion_model.middle_block.7.bias"),
        "{error}"
    );
    assert!(error.contains("model.safetensors"), "{error}");
}
