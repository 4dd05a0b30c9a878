//! Conversions of small models of each family: there and back, and drawn with.

// In a test it is the failure.
#![allow(clippy::unwrap_used)]

mod common;

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
use sd_onnx::{Conversion, Converted, Error, ModelForm, Pipeline, Request, StopToken, WeightType};
use serde_json::Value;

/// The type, the shape and the bytes of each tensor of a file.
type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn tensors(path: &Path) -> Tensors {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file.iter().map(|(name, tensor)| {
        let parts = (tensor.dtype(), tensor.shape().to_vec(), tensor.data().to_vec());
        (name.to_owned(), parts)
    });
    tensors.collect()
}

fn json(path: &Path) -> Value {
    let text = fs::read_to_string(path).unwrap();
    // As Python writes it.
    serde_json::from_str(&text.replace("-Infinity", "null")).unwrap()
}

/// The components of a model folder that have weights, with the names of their files.
fn networks(folder: &Path) -> Vec<(&'static str, &'static str)> {
    let all = ["text_encoder", "text_encoder_2", "unet", "vae"];
    let there = all.into_iter().filter(|name| folder.join(name).is_dir());
    there.map(|name| (name, common::plain_file(name))).collect()
}

fn convert(from: &Path, to: &Path, form: ModelForm) -> Converted {
    let converted = sd_onnx::builder().convert(from, to, &Conversion::new(form));
    converted.unwrap_or_else(|error| panic!("{}: {error}", from.display()))
}

/// One picture's latents.
fn latents(pipeline: &Pipeline) -> Vec<f32> {
    let mut request = Request::new("a fox").negative("blurry").size(56, 32).steps(2).seed(3);
    let beside = pipeline.denoiser().inputs().beside;
    if beside > 0 {
        let values = (0..beside * 4 * 7).map(|i| (i as f32).sin()).collect();
        let beside = ndarray::Array4::from_shape_vec((1, beside, 4, 7), values);
        request = request.beside(beside.unwrap());
    }
    let picture = pipeline.generate(&request).unwrap().pictures.remove(0);
    picture.latents.iter().copied().collect()
}

/// The families that have every network.
fn families() -> Vec<String> {
    let folders = fs::read_dir(family("")).unwrap();
    let names = folders.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names
        .filter(|name| family(name).join("model_index.json").is_file())
        // A refiner draws from another model's latents.
        .collect();
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
                // All versions of transformers read these.
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
            assert_eq!(json(&old.join(file)), json(&new.join(file)), "{name} {file}");
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
    // What the recipe rounds to f16 already.
    let stirred = |value: f32| value * 1.000_123;
    let mut stored = tensors(&old.join(file));
    for (_, _, bytes) in stored.values_mut() {
        for number in bytes.as_chunks_mut::<4>().0 {
            *number = stirred(f32::from_le_bytes(*number)).to_le_bytes();
        }
    }
    write(&old.join(file), &stored);
    for (dtype, expected) in [(WeightType::F16, Dtype::F16), (WeightType::Bf16, Dtype::BF16)] {
        let new = folder.path().join(format!("{dtype:?}"));
        let conversion = Conversion::new(ModelForm::Folder).dtype(dtype);
        sd_onnx::builder().convert(&old, &new, &conversion).unwrap();
        let found = tensors(&new.join(file));
        assert_eq!(found.len(), stored.len());
        let mut inexact = 0;
        for (name, (_, shape, bytes)) in &stored {
            let (dtype, found_shape, found) = &found[name];
            assert_eq!((dtype, found_shape), (&expected, shape), "{name}");
            let numbers = bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b));
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

/// A conversion that must fail, and leaves nothing.
fn refused(from: &Path, conversion: &Conversion) -> Error {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let converted = sd_onnx::builder().convert(from, &out, conversion);
    let left = fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(left, 0, "{converted:?}");
    converted.unwrap_err()
}

#[test]
fn a_number_beyond_the_range_names_its_tensor() {
    let folder = tempfile::tempdir().unwrap();
    write_family("lcm", folder.path());
    let path = folder.path().join("vae/diffusion_pytorch_model.safetensors");
    let mut stored = tensors(&path);
    let (_, _, bytes) = stored.get_mut("decoder.conv_in.bias").unwrap();
    bytes[4..8].copy_from_slice(&70_000_f32.to_le_bytes());
    write(&path, &stored);
    let half = Conversion::new(ModelForm::Folder).dtype(WeightType::F16);
    let error = refused(folder.path(), &half).to_string();
    for part in ["vae/", "`decoder.conv_in.bias`", "70000 in place 1", "F16"] {
        assert!(error.contains(part), "{error}");
    }
    // Infinity was no number of any range before.
    let (_, _, bytes) = stored.get_mut("decoder.conv_in.bias").unwrap();
    bytes[4..8].copy_from_slice(&f32::INFINITY.to_le_bytes());
    write(&path, &stored);
    let out = folder.path().join("out");
    sd_onnx::builder().convert(folder.path(), out, &half).unwrap();
}

#[test]
fn a_missing_or_left_over_tensor_is_an_error() {
    for (name, expected) in [("conv_out.bias", "conv_out.bias"), ("", "conv_more.bias")] {
        let folder = tempfile::tempdir().unwrap();
        write_family("lcm", folder.path());
        let path = folder.path().join("unet/diffusion_pytorch_model.safetensors");
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
        ("kolors", "Kolors"),
        ("inpaint", "do not divide"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        write_family(name, folder.path());
        let error = refused(folder.path(), &Conversion::new(ModelForm::File));
        assert!(matches!(error, Error::Conversion { .. }), "{name}: {error}");
        assert!(error.to_string().contains(part), "{name}: {error}");
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
    assert!(matches!(refused(&old, &conversion), Error::Stopped));
}

#[test]
fn graphs_of_onnx_draw_the_same() {
    for name in ["lcm", "inpaint", "sd2-v", "sdxl-base", "refiner", "lcm-xl", "sdxs"] {
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
        // The same operators over the same weights; only their order differs.
        assert!(error < 1e-6, "{name}: {error:.1e}");
    }
}
