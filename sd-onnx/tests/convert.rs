//! Converts small models of each family, converts them back, and draws with them.

// In tests, a panic reports the failure.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/single.rs"]
mod single;

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use common::{family, load, relative_error, write_family};
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors, serialize_to_file, tensor::TensorView};
use sd_onnx::schedulers::{Ladder, Prediction, samplers::Euler};
use sd_onnx::text::ClipTokenizer;
use sd_onnx::{
    Builder, Conversion, ConversionReport, ConvertError, Error, ModelForm, Pipeline, Request,
    StopToken, WeightType,
};
use sd_text::outside::chain;
use serde_json::Value;
use single::{Options, write_single_file, write_single_folder};

/// The type, the shape and the bytes of each tensor of a file.
type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn tensors(path: &Path) -> Tensors {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file.iter().map(|(name, tensor)| {
        let parts = (
            tensor.dtype(),
            tensor.shape().to_vec(),
            tensor.data().to_vec(),
        );
        (name.to_owned(), parts)
    });
    tensors.collect()
}

fn json(path: &Path) -> Value {
    let text = fs::read_to_string(path).unwrap();
    // Python writes infinities, which are not valid JSON.
    serde_json::from_str(&text.replace("-Infinity", "null")).unwrap()
}

/// Lists the components of a model folder that have weights, with the names of their weight files.
fn networks(folder: &Path) -> Vec<(&'static str, &'static str)> {
    let all = ["text_encoder", "text_encoder_2", "unet", "vae"];
    let there = all.into_iter().filter(|name| folder.join(name).is_dir());
    there.map(|name| (name, common::plain_file(name))).collect()
}

fn convert(from: &Path, to: &Path, form: ModelForm) -> ConversionReport {
    let converted = sd_onnx::builder().convert(from, to, &Conversion::new(form));
    converted.unwrap_or_else(|error| panic!("{}: {}", from.display(), chain(&error)))
}

/// Draws a picture and returns its latents. The sampler and the ladder are fixed, so the sampler
/// settings of a folder have no effect.
fn latents(pipeline: &Pipeline) -> Vec<f32> {
    let mut request = Request::new("a fox")
        .negative("blurry")
        .size(64, 32)
        .steps(2)
        .guidance(3.0)
        .seed(3)
        .scheduler(Euler::default())
        .ladder(Ladder::karras());
    let beside = pipeline.denoiser().inputs().extra_channels;
    if beside > 0 {
        let [height, width] = [32, 64].map(|side| side / pipeline.codec().factor());
        let values = (0..beside * height * width)
            .map(|i| (i as f32).sin())
            .collect();
        let beside = ndarray::Array4::from_shape_vec((1, beside, height, width), values);
        request = request.beside(beside.unwrap());
    }
    let picture = pipeline.generate(&request).unwrap().pictures.remove(0);
    picture.latents.iter().copied().collect()
}

/// Lists the families that have every network.
fn families() -> Vec<String> {
    let folders = fs::read_dir(family("")).unwrap();
    let names = folders.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let whole = |name: &String| family(name).join("model_index.json").is_file();
    let mut names: Vec<_> = names.filter(whole).collect();
    names.sort();
    assert!(names.len() >= 22, "{names:?}");
    names
}

#[test]
fn a_folder_of_each_family_stays_the_same() {
    for name in families() {
        let folder = tempfile::tempdir().unwrap();
        let [old, new] = ["old", "new"].map(|name| folder.path().join(name));
        write_family(&name, &old);
        let converted = convert(&old, &new, ModelForm::Folder);
        assert_eq!(converted.lost, [""; 0], "{name}");
        let mut count = 0;
        for (network, file) in networks(&old) {
            let [mut old_tensors, new_tensors] =
                [&old, &new].map(|root| tensors(&root.join(network).join(file)));
            old_tensors.retain(|name, _| !name.ends_with("position_ids"));
            if network == "text_encoder" {
                // Every version of transformers reads names with this prefix.
                let named = |(name, tensor): (String, _)| match name.starts_with("text_model.") {
                    true => (name, tensor),
                    false => (format!("text_model.{name}"), tensor),
                };
                old_tensors = old_tensors.into_iter().map(named).collect();
            }
            let names = |tensors: &Tensors| tensors.keys().cloned().collect::<Vec<_>>();
            assert_eq!(names(&old_tensors), names(&new_tensors), "{name} {network}");
            assert!(old_tensors == new_tensors, "{name} {network}");
            count += new_tensors.len();
            let [old_config, new_config] =
                [&old, &new].map(|root| json(&root.join(network).join("config.json")));
            assert_eq!(old_config, new_config, "{name} {network}");
        }
        assert_eq!(converted.tensors, count, "{name}");
        for file in ["scheduler/scheduler_config.json", "model_index.json"] {
            assert_eq!(
                json(&old.join(file)),
                json(&new.join(file)),
                "{name} {file}"
            );
        }
    }
}

#[test]
fn it_draws_the_same_bits() {
    for name in ["inpaint", "sd2-v", "sdxl-base", "sdxs"] {
        let folder = tempfile::tempdir().unwrap();
        let [old, new] = ["old", "new"].map(|name| folder.path().join(name));
        write_family(name, &old);
        convert(&old, &new, ModelForm::Folder);
        assert_eq!(latents(&load(&old)), latents(&load(&new)), "{name}");
    }
}

#[test]
fn every_number_is_rounded_to_the_nearest() {
    let folder = tempfile::tempdir().unwrap();
    let old = folder.path().join("old");
    write_family("sdxl-base", &old);
    let file = "unet/diffusion_pytorch_model.safetensors";
    // The recipe's weights are f16 numbers already, so they must be changed for a rounding to show.
    let stirred = |value: f32| value * 1.000_123;
    let mut stored = tensors(&old.join(file));
    for (_, _, bytes) in stored.values_mut() {
        for number in bytes.as_chunks_mut::<4>().0 {
            *number = stirred(f32::from_le_bytes(*number)).to_le_bytes();
        }
    }
    write(&old.join(file), &stored);
    for (dtype, expected) in [
        (WeightType::F16, Dtype::F16),
        (WeightType::Bf16, Dtype::BF16),
    ] {
        let new = folder.path().join(format!("{dtype:?}"));
        let conversion = Conversion::new(ModelForm::Folder).weight_type(dtype);
        sd_onnx::builder().convert(&old, &new, &conversion).unwrap();
        let found = tensors(&new.join(file));
        assert_eq!(found.len(), stored.len());
        let mut inexact = 0;
        for (name, (_, shape, bytes)) in &stored {
            let (dtype, found_shape, found) = &found[name];
            assert_eq!((dtype, found_shape), (&expected, shape), "{name}");
            let numbers = bytes
                .as_chunks::<4>()
                .0
                .iter()
                .map(|&b| f32::from_le_bytes(b));
            for (number, &bytes) in numbers.zip(found.as_chunks::<2>().0) {
                let nearest = match expected {
                    Dtype::F16 => f16::from_f32(number).to_le_bytes(),
                    _ => bf16::from_f32(number).to_le_bytes(),
                };
                assert_eq!(bytes, nearest, "{name}: {number}");
                inexact += usize::from(f16::from_f32(number).to_f32() != number);
            }
        }
        assert!(inexact > 1000, "{inexact}");
        load(&new);
    }
}

fn write(path: &Path, tensors: &Tensors) {
    let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
        (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    serialize_to_file(views, None, path).unwrap();
}

/// Runs a conversion that must fail, checks that it leaves no file, and returns the error.
fn refused(from: &Path, conversion: &Conversion) -> ConvertError {
    refused_by(&sd_onnx::builder(), from, conversion)
}

fn refused_by(builder: &Builder, from: &Path, conversion: &Conversion) -> ConvertError {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let converted = builder.convert(from, &out, conversion);
    let left = fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(left, 0, "{converted:?}");
    converted.unwrap_err()
}

#[test]
fn a_number_beyond_the_range_names_its_tensor() {
    let folder = tempfile::tempdir().unwrap();
    write_family("lcm", folder.path());
    let path = folder
        .path()
        .join("vae/diffusion_pytorch_model.safetensors");
    let mut stored = tensors(&path);
    let (_, _, bytes) = stored.get_mut("decoder.conv_in.bias").unwrap();
    bytes[4..8].copy_from_slice(&70_000_f32.to_le_bytes());
    write(&path, &stored);
    let half = Conversion::new(ModelForm::Folder).weight_type(WeightType::F16);
    let error = refused(folder.path(), &half).to_string();
    for part in ["vae/", "`decoder.conv_in.bias`", "70000 in place 1", "F16"] {
        assert!(error.contains(part), "{error}");
    }
    // Infinity is not an error, because it was no number within a range before the conversion
    // either.
    let (_, _, bytes) = stored.get_mut("decoder.conv_in.bias").unwrap();
    bytes[4..8].copy_from_slice(&f32::INFINITY.to_le_bytes());
    write(&path, &stored);
    let out = folder.path().join("out");
    sd_onnx::builder()
        .convert(folder.path(), out, &half)
        .unwrap();
}

#[test]
fn a_missing_or_left_over_tensor_is_an_error() {
    for (name, expected) in [("conv_out.bias", "conv_out.bias"), ("", "conv_more.bias")] {
        let folder = tempfile::tempdir().unwrap();
        write_family("lcm", folder.path());
        let path = folder
            .path()
            .join("unet/diffusion_pytorch_model.safetensors");
        let mut stored = tensors(&path);
        match name {
            "" => _ = stored.insert("conv_more.bias".into(), stored["conv_out.bias"].clone()),
            name => _ = stored.remove(name),
        }
        write(&path, &stored);
        for form in [ModelForm::Folder, ModelForm::File, ModelForm::Onnx] {
            let error = refused(folder.path(), &Conversion::new(form)).to_string();
            assert!(error.contains(expected), "{form:?}: {error}");
        }
    }
}

#[test]
fn a_model_that_a_file_cannot_describe_is_refused() {
    for (name, part) in [
        ("sdxl-base", "which heads of 64 do not divide"),
        ("inpaint", "do not divide"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        write_family(name, folder.path());
        let error = refused(folder.path(), &Conversion::new(ModelForm::File));
        assert!(
            matches!(error, ConvertError::Form { .. }),
            "{name}: {error}"
        );
        assert!(chain(&error).contains(part), "{name}: {error}");
    }
}

#[test]
fn progress_goes_up_to_all_bytes_and_a_stop_ends_it() {
    let folder = tempfile::tempdir().unwrap();
    let old = folder.path().join("old");
    write_family("lcm", &old);
    let last = Arc::new(AtomicU64::new(0));
    let seen = last.clone();
    let conversion = Conversion::new(ModelForm::Folder).progress(move |progress| {
        let before = seen.swap(progress.done, Ordering::Relaxed);
        assert!(before < progress.done && progress.done <= progress.total);
    });
    let out = folder.path().join("out");
    let converted = sd_onnx::builder().convert(&old, &out, &conversion).unwrap();
    assert_eq!(last.load(Ordering::Relaxed), converted.bytes);

    let stop = StopToken::new();
    let stopping = stop.clone();
    let conversion = Conversion::new(ModelForm::Folder)
        .stop(stop)
        .progress(move |_| stopping.stop());
    assert!(matches!(refused(&old, &conversion), ConvertError::Stopped));
}

#[test]
fn graphs_of_onnx_draw_the_same() {
    for name in [
        "lcm",
        "inpaint",
        "sd2-v",
        "sdxl-base",
        "refiner",
        "lcm-xl",
        "sdxs",
    ] {
        let folder = tempfile::tempdir().unwrap();
        let [old, new] = ["old", "new"].map(|name| folder.path().join(name));
        write_family(name, &old);
        let converted = convert(&old, &new, ModelForm::Onnx);
        assert_eq!(converted.lost, [""; 0], "{name}");
        if name == "refiner" {
            continue;
        }
        let expected = latents(&load(&old));
        let error = relative_error(&latents(&load(&new)), &expected);
        println!("{name}: {error:.1e}");
        // The weights are the same. In the graph of the folder, convolutions over blocks of
        // channels add more of the other tensors than in the one that ONNX Runtime rewrites.
        assert!(error < 1e-5, "{name}: {error:.1e}");
    }
}

/// Checks what a conversion to a single file reports as lost for a small model.
fn check_lost(name: &str, lost: &[String]) {
    let known = [
        "tokenizer",
        "latents of",
        "in the scheduler",
        "pipeline class",
        "an empty negative prompt",
    ];
    for lost in lost {
        assert!(
            known.iter().any(|part| lost.contains(part)),
            "{name}: {lost}"
        );
    }
    // The small vocabulary is only a part of CLIP's, so the tokenizer is always lost.
    assert!(
        lost.iter().any(|lost| lost.contains("tokenizer")),
        "{name}: {lost:?}"
    );
}

#[test]
fn one_file_of_each_family_is_the_same_model() {
    for name in families() {
        // Kolors has a text encoder of another kind.
        if name == "kolors" {
            continue;
        }
        let folder = tempfile::tempdir().unwrap();
        let [old, new] = ["old", "new"].map(|name| folder.path().join(name));
        let file = folder.path().join("model.safetensors");
        write_single_folder(&name, &old);
        check_lost(&name, &convert(&old, &file, ModelForm::File).lost);

        // The expected tensors come from the tables of `single_files.py`, which are checked against
        // the conversions of diffusers.
        let like = folder.path().join("like.safetensors");
        let plain = Options {
            extra: false,
            ..Options::default()
        };
        write_single_file(&name, &like, &plain);
        let [mut found, mut expected] = [&file, &like].map(|path| tensors(path));
        for tensors in [&mut found, &mut expected] {
            let marks = ["edm_", "v_pred", "ztsnr"];
            tensors.retain(|name, _| !marks.iter().any(|mark| name.starts_with(mark)));
            if name == "sdxs" {
                // The autoencoder is TAESD, which such files usually do not contain.
                let vae = ["first_stage_model.", "vae."];
                tensors.retain(|name, _| !vae.iter().any(|start| name.starts_with(start)));
            }
        }
        let names = |tensors: &Tensors| tensors.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&found), names(&expected), "{name}");
        assert!(found == expected, "{name}");

        // Convert the file back to a folder.
        let there = sd_onnx::builder().tokenizer(&old);
        let converted = there.convert(&file, &new, &Conversion::new(ModelForm::Folder));
        let converted = converted.unwrap_or_else(|error| panic!("{name}: {}", chain(&error)));
        assert_eq!(converted.lost, [""; 0], "{name}");
        for (network, file) in networks(&old) {
            let [old, new] = [&old, &new].map(|root| tensors(&root.join(network).join(file)));
            let today = |(name, tensor): (String, _)| {
                let name = name.strip_prefix("text_model.").unwrap_or(&name).to_owned();
                (name, tensor)
            };
            let [old, new] = [old, new].map(|it| it.into_iter().map(today).collect::<Tensors>());
            assert_eq!(
                old.keys().collect::<Vec<_>>(),
                new.keys().collect::<Vec<_>>()
            );
            assert!(old == new, "{name} {network}");
        }
        // Equal networks draw equal pictures. Drawing with a few families shows that the rest is
        // equal, too.
        if !["cosxl", "inpaint", "lcm", "sd2-v", "sdxl-base"].contains(&name.as_str()) {
            continue;
        }
        let expected = latents(&load(&old));
        assert!(expected.iter().all(|value| value.is_finite()), "{name}");
        let of_file = sd_onnx::builder().tokenizer(&old).load(&file);
        assert_eq!(latents(&of_file.unwrap()), expected, "{name}");
        assert_eq!(latents(&load(&new)), expected, "{name}");
    }
}

#[test]
fn marks_tell_what_a_file_predicts() {
    for (name, changes, marks, prediction) in [
        ("sdxl-base", "{}", &[][..], "epsilon"),
        (
            "sdxl-base",
            r#"{"prediction_type": "v_prediction"}"#,
            &["v_pred"],
            "v",
        ),
        (
            "sd2-v",
            r#"{"rescale_betas_zero_snr": true, "timestep_spacing": "trailing"}"#,
            &["v_pred", "ztsnr"],
            "v",
        ),
        ("playground", "{}", &["edm_mean", "edm_std"], "epsilon"),
        (
            "cosxl",
            "{}",
            &["edm_vpred.sigma_max", "edm_vpred.sigma_min"],
            "v",
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let [old, new] = ["old", "new"].map(|name| folder.path().join(name));
        let file = folder.path().join("model.safetensors");
        write_single_folder(name, &old);
        let path = old.join("scheduler/scheduler_config.json");
        let mut config = json(&path);
        let changes: Value = serde_json::from_str(changes).unwrap();
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        fs::write(&path, config.to_string()).unwrap();
        check_lost(name, &convert(&old, &file, ModelForm::File).lost);
        let bytes = fs::read(&file).unwrap();
        let stored = SafeTensors::deserialize(&bytes).unwrap();
        let of_marks = |name: &&str| {
            ["edm", "v_pred", "ztsnr"]
                .iter()
                .any(|it| name.starts_with(it))
        };
        let mut found: Vec<_> = stored.names().into_iter().filter(of_marks).collect();
        found.sort();
        assert_eq!(found, marks, "{name}");
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let header = header.metadata().clone().unwrap();
        assert_eq!(header["modelspec.prediction_type"], prediction, "{name}");
        assert_eq!(header["format"], "pt");
        // A conversion back to a folder restores the schedule from the marker tensors.
        let builder = sd_onnx::builder().tokenizer(&old);
        let to_folder = Conversion::new(ModelForm::Folder);
        builder.convert(&file, &new, &to_folder).unwrap();
        let new = json(&new.join("scheduler/scheduler_config.json"));
        let keys = [
            "prediction_type",
            "rescale_betas_zero_snr",
            "sigma_max",
            "sigma_min",
        ];
        for key in keys.into_iter().filter(|key| !new[key].is_null()) {
            assert_eq!(new[key], config[key], "{name} {key}");
        }
    }
}

#[test]
fn an_asymmetric_autoencoder_keeps_what_only_others_use() {
    let folder = tempfile::tempdir().unwrap();
    let [old, vae] = ["old", "vae"].map(|name| folder.path().join(name));
    write_single_folder("lcm", &old);
    write_single_folder("asymmetric", &vae);
    let builder = sd_onnx::builder().vae(vae.join("vae"));
    let file = "vae/diffusion_pytorch_model.safetensors";
    let expected = tensors(&vae.join(file));
    let left_out = |name: &str| name.starts_with("decoder.condition_encoder.");
    assert!(expected.keys().any(|name| left_out(name)));
    for (out, form) in [
        ("folder", ModelForm::Folder),
        ("model.safetensors", ModelForm::File),
        ("onnx", ModelForm::Onnx),
    ] {
        let out = folder.path().join(out);
        let converted = builder.convert(&old, &out, &Conversion::new(form)).unwrap();
        let back = folder.path().join("back");
        match form {
            ModelForm::Folder => assert!(tensors(&out.join(file)) == expected),
            ModelForm::File => {
                let builder = sd_onnx::builder().tokenizer(&old);
                let to_folder = Conversion::new(ModelForm::Folder);
                builder.convert(&out, &back, &to_folder).unwrap();
                assert!(tensors(&back.join(file)) == expected);
            }
            _ => {
                let networks = ["unet", "text_encoder"].map(|network| {
                    tensors(&old.join(network).join(common::plain_file(network))).len()
                });
                let vae = expected.keys().filter(|name| !left_out(name)).count();
                assert_eq!(converted.tensors, networks.iter().sum::<usize>() + vae);
            }
        }
    }
}

#[test]
fn what_a_file_has_no_mark_for_is_refused_or_said() {
    let folder = tempfile::tempdir().unwrap();
    let old = folder.path().join("old");
    write_single_folder("lcm", &old);
    let path = old.join("scheduler/scheduler_config.json");
    let before = json(&path);
    let changed = |file: &Path, key: &str, value: Value| {
        let mut config = json(file);
        config[key] = value;
        fs::write(file, config.to_string()).unwrap();
    };
    changed(&path, "prediction_type", "sample".into());
    let to_file = Conversion::new(ModelForm::File);
    let error = refused(&old, &to_file).to_string();
    assert!(error.contains("predicts Sample"), "{error}");
    fs::write(&path, before.to_string()).unwrap();

    changed(&path, "beta_end", 0.02.into());
    let out = folder.path().join("a.safetensors");
    let lost = convert(&old, &out, ModelForm::File).lost;
    let said = |lost: &[String], part: &str| lost.iter().any(|lost| lost.contains(part));
    assert!(
        said(&lost, "`beta_end` is 0.02, and is read as 0.012"),
        "{lost:?}"
    );
    fs::write(&path, before.to_string()).unwrap();

    let vae = old.join("vae/config.json");
    let factor = json(&vae)["scaling_factor"].clone();
    changed(&vae, "scaling_factor", 0.5.into());
    let error = refused(&old, &to_file).to_string();
    assert!(error.contains("`scaling_factor` is 0.5"), "{error}");
    changed(&vae, "scaling_factor", factor);

    changed(&old.join("unet/config.json"), "norm_num_groups", 16.into());
    let error = refused(&old, &to_file).to_string();
    assert!(
        error.contains("`unet`") && error.contains("`norm_num_groups` is 16"),
        "{error}"
    );
}

#[test]
fn what_the_builder_says_about_the_noise_goes_into_the_new_model() {
    let folder = tempfile::tempdir().unwrap();
    let new = folder.path().join("new");
    // The scheduler of this model has an infinity, which Python writes although it is not valid
    // JSON.
    let old = common::emoji();
    let builder = sd_onnx::builder()
        .prediction(Prediction::Epsilon)
        .zero_terminal_snr(true);
    builder
        .convert(&old, &new, &Conversion::new(ModelForm::Folder))
        .unwrap();
    let file = "scheduler/scheduler_config.json";
    let text = fs::read_to_string(new.join(file)).unwrap();
    assert!(text.contains("\"lambda_min_clipped\": -Infinity"), "{text}");
    let [mut old, new] = [&old, &new].map(|root| json(&root.join(file)));
    old["prediction_type"] = "epsilon".into();
    old["rescale_betas_zero_snr"] = true.into();
    // With a zero terminal SNR, the steps begin at pure noise.
    old["timestep_spacing"] = "trailing".into();
    assert_eq!(old, new);
}

#[test]
fn parts_from_elsewhere_go_into_the_new_model() {
    let folder = tempfile::tempdir().unwrap();
    let [old, other, new] = ["old", "other", "new"].map(|name| folder.path().join(name));
    write_family("sdxl-base", &old);
    write_family("sdxl-base", &other);
    let file = "vae/diffusion_pytorch_model.safetensors";
    let mut stored = tensors(&other.join(file));
    let (_, _, bytes) = stored.get_mut("decoder.conv_in.bias").unwrap();
    bytes.fill(0);
    write(&other.join(file), &stored);
    let builder = sd_onnx::builder().vae(other.join("vae"));
    builder
        .convert(&old, &new, &Conversion::new(ModelForm::Folder))
        .unwrap();
    assert!(tensors(&new.join(file)) == stored);
    // An autoencoder that is not a file cannot be written.
    let codec = load(&old).codec().clone();
    let out = folder.path().join("none");
    let builder = sd_onnx::builder().codec(codec);
    let error = builder
        .convert(&old, &out, &Conversion::new(ModelForm::Folder))
        .unwrap_err();
    assert!(chain(&error).contains("`Builder::vae`"), "{error}");
}

#[test]
fn parts_that_do_not_fit_are_refused_as_when_they_are_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for name in [
        "lcm",
        "lcm-xl",
        "koala",
        "sd2-base",
        "sdxl-base",
        "taesd-16",
    ] {
        write_family(name, &at(name));
    }
    fs::create_dir(at("tokenizer")).unwrap();
    for (name, text) in ClipTokenizer::clip_files("<|endoftext|>") {
        fs::write(at("tokenizer").join(name), text).unwrap();
    }
    let builder = sd_onnx::builder;
    for (base, builder, part) in [
        (
            "sd2-base",
            builder().unet(at("lcm/unet")),
            "embeddings 32 wide",
        ),
        ("sd2-base", builder().unet(at("lcm")), "are 56 wide"),
        (
            "sdxl-base",
            builder().text_encoder(at("koala")),
            "are 48 wide",
        ),
        (
            "sdxl-base",
            builder().text_encoder_2(at("lcm-xl")),
            "the prompt encoder's is 24 wide",
        ),
        ("lcm", builder().vae(at("taesd-16/vae")), "the codec 16"),
        (
            "lcm",
            builder().tokenizer(at("tokenizer")),
            "ids up to 49407",
        ),
    ] {
        let expected = chain(&builder.clone().load(at(base)).unwrap_err());
        assert!(expected.contains(part), "{expected}");
        for form in [ModelForm::Folder, ModelForm::File, ModelForm::Onnx] {
            let error = refused_by(&builder, &at(base), &Conversion::new(form));
            assert_eq!(chain(&error), expected, "{form:?}");
        }
    }
}

/// Stable Diffusion 2 pads texts with `!`. In a folder, the files of the tokenizer therefore make
/// `!` a special token. In a single file, `!` is an ordinary word.
#[test]
fn words_that_become_other_tokens_are_said() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    write_single_folder("sd2-base", &at("small"));
    convert(&at("small"), &at("small.safetensors"), ModelForm::File);
    // Enlarge the embedding to the size of CLIP's vocabulary.
    let mut stored = tensors(&at("small.safetensors"));
    let name = "cond_stage_model.model.token_embedding.weight";
    let (dtype, shape, bytes) = stored.get_mut(name).unwrap();
    let row = bytes.len() / shape[0];
    assert_eq!(*dtype, Dtype::F32);
    shape[0] = 49408;
    *bytes = bytes.iter().copied().cycle().take(49408 * row).collect();
    write(&at("old.safetensors"), &stored);

    let said = |new: u32, old: u32| {
        [format!(
            "`!` in a prompt is read otherwise by `tokenizer`: as the token {new} instead of {old}"
        )]
    };
    for form in [ModelForm::Folder, ModelForm::Onnx] {
        let new = at(&format!("{form:?}"));
        let lost = convert(&at("old.safetensors"), &new, form).lost;
        assert_eq!(lost, said(0, 256));
        let tokenizer = ClipTokenizer::load(new.join("tokenizer")).unwrap();
        assert_eq!(tokenizer.encode("!").ids[1], 0);
    }
    let lost = convert(&at("Folder"), &at("new.safetensors"), ModelForm::File).lost;
    let words: Vec<_> = lost.iter().filter(|lost| lost.contains("`!`")).collect();
    assert_eq!(words, said(256, 0).each_ref(), "{lost:?}");
}

#[test]
fn a_place_within_the_model_is_a_place_like_any_other() {
    let folder = tempfile::tempdir().unwrap();
    let old = folder.path().join("old");
    write_family("lcm", &old);
    let expected = latents(&load(&old));
    for place in ["new", "unet/new/"] {
        convert(&old, &old.join(place), ModelForm::Folder);
        assert_eq!(latents(&load(&old.join(place))), expected, "{place}");
        assert_eq!(latents(&load(&old)), expected, "{place}");
    }
    let to_file = Conversion::new(ModelForm::File);
    // A file cannot be the parent of the new model, and existing files are not changed.
    let file = old.join("model_index.json");
    let before = fs::read(&file).unwrap();
    for place in ["model_index.json", "model_index.json/new", "none/new"] {
        let error = sd_onnx::builder()
            .convert(&old, old.join(place), &to_file)
            .unwrap_err();
        assert!(
            matches!(error, ConvertError::Model(Error::Io { .. })),
            "{place}: {error}"
        );
    }
    assert_eq!(fs::read(&file).unwrap(), before);
}

/// Kills this process, as the system does when there is no memory left.
#[cfg(unix)]
fn die() -> ! {
    let id = std::process::id().to_string();
    std::process::Command::new("kill")
        .args(["-9", &id])
        .status()
        .unwrap();
    unreachable!("killed by {id}")
}

#[cfg(unix)]
#[test]
fn a_killed_conversion_leaves_only_a_hidden_folder() {
    const OF_CHILD: &str = "SD_ONNX_TEST_CONVERT_AND_DIE";
    const FORMS: [ModelForm; 3] = [ModelForm::Folder, ModelForm::File, ModelForm::Onnx];
    // This test runs itself as another process, which is killed after the second tensor.
    if let Some(out) = std::env::var_os(OF_CHILD) {
        let out = Path::new(&out);
        let is_form = |form: &ModelForm| *format!("{form:?}") == *out.file_name().unwrap();
        let form = FORMS.into_iter().find(is_form).unwrap();
        let tensors = AtomicU64::new(0);
        let conversion = Conversion::new(form).progress(move |_| {
            if tensors.fetch_add(1, Ordering::Relaxed) == 1 {
                die();
            }
        });
        let old = out.with_file_name("old");
        let converted = sd_onnx::builder().convert(old, out, &conversion);
        panic!("{converted:?}");
    }
    for form in FORMS {
        let folder = tempfile::tempdir().unwrap();
        let [old, out] = ["old".into(), format!("{form:?}")].map(|name| folder.path().join(name));
        write_single_folder("lcm", &old);
        let test = std::thread::current().name().unwrap().to_owned();
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &test])
            .env(OF_CHILD, &out)
            .output()
            .unwrap();
        let signal = std::os::unix::process::ExitStatusExt::signal(&child.status);
        assert_eq!(signal, Some(9), "{child:?}");
        let left = fs::read_dir(folder.path()).unwrap();
        let left = left.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let left: Vec<_> = left.filter(|name| name != "old").collect();
        assert!(
            left.len() == 1 && left[0].starts_with(".converting-"),
            "{left:?}"
        );
        // The hidden folder does not prevent another conversion to the same place.
        convert(&old, &out, form);
    }
}
