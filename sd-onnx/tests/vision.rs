//! Compares CLIP's vision model with transformers 5.23, and the preprocessing with Pillow 13. The
//! values are in `golden/vision`, made by `golden/vision.py`.

// In tests, a panic reports the failure.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/single.rs"]
mod single;

use std::{fs, path::Path};

use common::{
    Golden, Model, Tensors, emoji, golden, golden_json, relative_error, replayed, write_tensors,
};
use ndarray::{Array4, Axis, concatenate};
use safetensors::Dtype;
use sd_onnx::{
    Conversion, Error, ImageEncoder, ImageEncoderError, ImageLayer, ModelForm, TextEncoder,
    image::{Rgb, RgbImage},
    similarity,
};
use sd_text::outside::chain;
use serde_json::{Value, json};
use single::write_single_folder;
use tempfile::TempDir;

const MODELS: [&str; 2] = ["vision/quick-gelu", "vision/gelu"];
const PICTURES: [&str; 4] = ["square", "wide", "tall", "tiny"];
/// The largest error of the network. f32 sums are computed in another order.
const LIMIT: f64 = 1e-5;
/// The largest error of preprocessed pixels, whose bytes are equal. Only the last bits differ.
const PIXEL_LIMIT: f64 = 1e-6;

/// Returns the weights of a model.
fn weights(model: &str) -> Tensors {
    replayed(&golden_json(model, "weights.json")["image_encoder"])
}

/// Writes a model as a folder of its vision model alone. `change` changes its configuration and
/// weights.
fn folder(model: &str, dtype: Dtype, change: impl FnOnce(&mut Value, &mut Tensors)) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    write(model, folder.path(), dtype, change);
    folder
}

fn write(model: &str, folder: &Path, dtype: Dtype, change: impl FnOnce(&mut Value, &mut Tensors)) {
    fs::create_dir_all(folder).unwrap();
    let mut config = golden_json(model, "image_encoder.json");
    let mut tensors = weights(model);
    change(&mut config, &mut tensors);
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    write_tensors(&folder.join("model.safetensors"), &tensors, dtype);
    let preprocessor = "preprocessor_config.json";
    fs::copy(golden(model).join(preprocessor), folder.join(preprocessor)).unwrap();
}

fn plain(model: &str) -> TempDir {
    folder(model, Dtype::F32, |_, _| {})
}

fn load(folder: &TempDir) -> ImageEncoder {
    ImageEncoder::load(folder.path()).unwrap_or_else(|error| panic!("{}", chain(&error)))
}

fn expected(model: &str) -> Golden {
    Golden::of_shape(model)
}

fn picture(golden: &Golden, name: &str) -> RgbImage {
    let (shape, values) = golden.tensor(&format!("{name}.picture"));
    let bytes = values.into_iter().map(|byte| byte as u8).collect();
    RgbImage::from_raw(shape[1] as u32, shape[0] as u32, bytes).unwrap()
}

fn pixels(golden: &Golden, name: &str) -> Array4<f32> {
    let (shape, values) = golden.tensor(&format!("{name}.pixel_values"));
    let shape: [usize; 4] = shape.try_into().unwrap();
    Array4::from_shape_vec(shape, values).unwrap()
}

fn close<'a>(found: impl IntoIterator<Item = &'a f32>, golden: &Golden, name: &str, limit: f64) {
    let error = relative_error(found, &golden.tensor(name).1);
    println!("{name}: {error:.1e}");
    assert!(
        error <= limit,
        "{name}: {error:.2e}, expected at most {limit:.0e}"
    );
}

#[test]
fn the_network_as_transformers() {
    for model in MODELS {
        let folder = plain(model);
        let encoder = load(&folder);
        let golden = expected(model);
        for name in PICTURES {
            let pixels = pixels(&golden, name);
            let found = encoder.encode_pixel_values(pixels.view()).unwrap();
            close(&found.pooled, &golden, &format!("{name}.pooled"), LIMIT);
            close(
                &found.projected,
                &golden,
                &format!("{name}.image_embeds"),
                LIMIT,
            );
            for (layer, output) in [
                (ImageLayer::Last, "last_hidden_state"),
                (ImageLayer::Penultimate, "penultimate"),
            ] {
                let found = encoder.hidden_states(pixels.view(), layer).unwrap();
                close(&found, &golden, &format!("{name}.{output}"), LIMIT);
            }
        }
        // IP-Adapter's negative prompt.
        let zeros = Array4::zeros((1, 3, encoder.side(), encoder.side()));
        let found = encoder.encode_pixel_values(zeros.view()).unwrap();
        close(&found.projected, &golden, "zeros.image_embeds", LIMIT);
        let states = encoder.hidden_states(zeros.view(), ImageLayer::Penultimate);
        close(&states.unwrap(), &golden, "zeros.penultimate", LIMIT);
    }
}

/// The batch does not matter, and the pictures keep their order.
#[test]
fn pictures_of_any_size_as_transformers() {
    for model in MODELS {
        let folder = plain(model);
        let golden = expected(model);
        let pictures = PICTURES.map(|name| picture(&golden, name));
        for batch in [0, 1, 3, 16] {
            let encoder = load(&folder).batch(batch);
            let found = encoder.encode(&pictures).unwrap();
            let pixels = encoder.pixel_values(&pictures).unwrap();
            let states = encoder
                .hidden_states(pixels.view(), ImageLayer::Last)
                .unwrap();
            assert_eq!(states.dim().0, 4);
            assert_eq!(encoder.encode_pixel_values(pixels.view()).unwrap(), found);
            for (index, name) in PICTURES.into_iter().enumerate() {
                let pixels = pixels.index_axis(Axis(0), index);
                close(
                    pixels,
                    &golden,
                    &format!("{name}.pixel_values"),
                    PIXEL_LIMIT,
                );
                let pooled = found.pooled.row(index);
                close(pooled, &golden, &format!("{name}.pooled"), LIMIT);
                let projected = found.projected.row(index);
                close(projected, &golden, &format!("{name}.image_embeds"), LIMIT);
                let states = states.index_axis(Axis(0), index);
                close(states, &golden, &format!("{name}.last_hidden_state"), LIMIT);
            }
        }
        let encoder = load(&folder);
        let none = encoder.encode(&[]).unwrap();
        assert_eq!((none.pooled.nrows(), none.projected.nrows()), (0, 0));
    }
}

/// The golden weights are multiples of f16, so f16 files give the same values.
#[test]
fn weights_of_half_size() {
    let golden = expected(MODELS[0]);
    let folder = folder(MODELS[0], Dtype::F16, |_, _| {});
    let found = load(&folder).encode([&picture(&golden, "wide")]).unwrap();
    close(&found.projected, &golden, "wide.image_embeds", LIMIT);
}

#[test]
fn embeddings_of_length_one() {
    let golden = expected(MODELS[0]);
    let pictures = PICTURES.map(|name| picture(&golden, name));
    let folder = plain(MODELS[0]);
    let found = load(&folder).encode(&pictures).unwrap();
    let normal = load(&folder).normalised(true).encode(&pictures).unwrap();
    for (rows, before) in [
        (&normal.pooled, &found.pooled),
        (&normal.projected, &found.projected),
    ] {
        for (row, before) in rows.rows().into_iter().zip(before.rows()) {
            assert!((row.dot(&row) - 1.0).abs() < 1e-5);
            assert!((before.dot(&before) - 1.0).abs() > 0.1);
            assert!((similarity(row, before) - 1.0).abs() < 1e-5);
        }
    }
}

/// Writes a folder with both models, as OpenAI publishes CLIP. The text model is the small trained
/// one of the examples, with a projection to the width of the vision model.
fn write_whole(model: &str, folder: &Path) {
    let text = safetensors_of(&emoji().join("text_encoder/model.safetensors"));
    write(model, folder, Dtype::F32, |config, tensors| {
        let mut text_config: Value = serde_json::from_str(
            &fs::read_to_string(emoji().join("text_encoder/config.json")).unwrap(),
        )
        .unwrap();
        text_config["architectures"].take();
        let mut vision = config.take();
        vision["projection_dim"] = json!(512);
        *config = json!({
            "architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": 32,
            "text_config": text_config, "vision_config": vision,
        });
        for (name, tensor) in text {
            let name = name.trim_start_matches("text_model.");
            tensors.insert(format!("text_model.{name}"), tensor);
        }
        let eye = (0..32 * 64).map(|i| f32::from(u8::from(i % 64 == i / 64)));
        let projection = common::Tensor {
            shape: vec![32, 64],
            values: eye.collect(),
        };
        tensors.insert("text_projection.weight".into(), projection);
        let scale = common::Tensor {
            shape: vec![],
            values: vec![4.6],
        };
        tensors.insert("logit_scale".into(), scale);
    });
}

#[test]
fn texts_and_pictures_of_a_whole_clip_model() {
    let model = MODELS[0];
    let whole = tempfile::tempdir().unwrap();
    write_whole(model, whole.path());
    for file in fs::read_dir(emoji().join("tokenizer")).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), whole.path().join(file.file_name())).unwrap();
    }
    let golden = expected(model);
    let encoder = load(&whole);
    let found = encoder.encode([&picture(&golden, "tall")]).unwrap();
    close(&found.projected, &golden, "tall.image_embeds", LIMIT);
    let texts = TextEncoder::load(whole.path()).unwrap();
    let texts = texts.encode_pooled(["a fox", "a pizza"]).unwrap();
    let texts = texts.projected.unwrap();
    let [fox, pizza] = [0, 1].map(|row| similarity(texts.row(row), found.projected.row(0)));
    assert!(
        fox.abs() <= 1.0 && pizza.abs() <= 1.0 && fox != pizza,
        "{fox} {pizza}"
    );
}

fn safetensors_of(path: &Path) -> Tensors {
    let golden = Golden::of_file(path);
    let bytes = fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let names = file.names().into_iter();
    let floats = names.filter(|name| !name.ends_with("position_ids"));
    floats
        .map(|name| {
            let (shape, values) = golden.tensor(name);
            (name.to_owned(), common::Tensor { shape, values })
        })
        .collect()
}

/// The other layouts: diffusers' folder, and a weight file beside its configuration.
#[test]
fn other_places() {
    let model = MODELS[1];
    let golden = expected(model);
    let wide = picture(&golden, "wide");
    let whole = tempfile::tempdir().unwrap();
    let inner = whole.path().join("image_encoder");
    write(model, &inner, Dtype::F32, |_, _| {});
    let beside = whole.path().join("feature_extractor");
    fs::create_dir(&beside).unwrap();
    let preprocessor = "preprocessor_config.json";
    fs::rename(inner.join(preprocessor), beside.join(preprocessor)).unwrap();
    for path in [
        whole.path().to_owned(),
        inner.join("model.safetensors"),
        inner.clone(),
    ] {
        let found = ImageEncoder::load(&path).unwrap().encode([&wide]).unwrap();
        close(&found.projected, &golden, "wide.image_embeds", LIMIT);
    }
    // The folder beside is used: a larger shortest side makes the centre larger.
    let mut config = golden_json(model, preprocessor);
    config["size"] = json!({"shortest_edge": 64});
    fs::write(beside.join(preprocessor), config.to_string()).unwrap();
    let larger = ImageEncoder::load(whole.path()).unwrap();
    let found = larger.encode([&wide]).unwrap();
    let error = relative_error(&found.projected, &golden.tensor("wide.image_embeds").1);
    assert!(error > 0.01, "{error}");

    fs::rename(
        inner.join("model.safetensors"),
        inner.join("model.fp16.safetensors"),
    )
    .unwrap();
    let builder = sd_onnx::builder().variant("fp16");
    assert!(builder.load_image_encoder(whole.path()).is_ok());
    let builder = sd_onnx::builder().variant("bf16");
    assert!(builder.load_image_encoder(whole.path()).is_err());
}

/// Returns the error of loading a model with a changed configuration or changed weights.
fn refused(change: impl FnOnce(&mut Value, &mut Tensors)) -> String {
    let folder = folder(MODELS[0], Dtype::F32, change);
    chain(&ImageEncoder::load(folder.path()).unwrap_err())
}

#[test]
fn broken_models() {
    let patches = "vision_model.embeddings.patch_embedding.weight";
    let missing = refused(|_, tensors| drop(tensors.remove("visual_projection.weight")));
    assert!(
        missing.contains("visual_projection.weight") && missing.contains("[32, 48]"),
        "{missing}"
    );
    let shape = refused(|_, tensors| tensors.get_mut(patches).unwrap().shape = vec![48, 147]);
    assert!(
        shape.contains(patches) && shape.contains("[48, 147], expected [48, 3, 7, 7]"),
        "{shape}"
    );
    let unused = refused(|_, tensors| {
        let tensor = tensors.remove("vision_model.post_layernorm.bias").unwrap();
        tensors.insert(
            "vision_model.head.bias".into(),
            common::Tensor {
                shape: tensor.shape.clone(),
                values: tensor.values.clone(),
            },
        );
        tensors.insert("vision_model.post_layernorm.bias".into(), tensor);
    });
    assert!(
        unused.contains("CLIPVisionModelWithProjection")
            && unused.contains("vision_model.head.bias"),
        "{unused}"
    );
    for (key, value, expected) in [
        (
            "model_type",
            json!("siglip_vision_model"),
            "\"clip_vision_model\" or \"clip\"",
        ),
        (
            "architectures",
            json!(["CLIPVisionModel"]),
            "\"CLIPVisionModelWithProjection\"",
        ),
        ("hidden_act", json!("relu"), "\"quick_gelu\" or \"gelu\""),
        ("num_channels", json!(4), "expected 3"),
        (
            "num_attention_heads",
            json!(5),
            "a divisor of hidden_size, which is 48",
        ),
        ("patch_size", json!(29), "at most image_size, which is 28"),
        ("image_size", json!(0), "a whole number from 1"),
        ("num_hidden_layers", json!(0), "a whole number from 1"),
        ("layer_norm_eps", json!(-1), "a positive number"),
        ("image_size", json!(35), "the model's image_size"),
    ] {
        let error = refused(|config, _| config[key] = value);
        assert!(error.contains(expected), "{key}: {error}");
    }
}

#[test]
fn other_files() {
    let load = |path: &Path| ImageEncoder::load(path).unwrap_err();
    let text = load(&emoji().join("text_encoder"));
    assert!(matches!(text, Error::Config { .. }), "{text}");
    assert!(
        text.to_string().contains("CLIPVisionModelWithProjection"),
        "{text}"
    );
    for path in [
        emoji(),
        emoji().join("text_encoder"),
        emoji().join("unet/diffusion_pytorch_model.safetensors"),
        Path::new("no/such/folder").to_owned(),
    ] {
        println!("{}", load(&path));
    }
    for path in [emoji(), "no/such/folder".into()] {
        let error = load(&path);
        assert!(matches!(error, Error::Missing { .. }), "{error}");
        assert!(
            error.to_string().contains("CLIP's vision model not found"),
            "{error}"
        );
    }
    let other = tempfile::tempdir().unwrap();
    let file = other.path().join("model.safetensors");
    write_tensors(
        &file,
        &safetensors_of(&emoji().join("text_encoder/model.safetensors")),
        Dtype::F32,
    );
    let error = load(&file);
    assert!(matches!(error, Error::Missing { .. }), "{error}");
    // Not one of the published models.
    write_tensors(&file, &weights(MODELS[0]), Dtype::F32);
    let error = load(&file).to_string();
    assert!(
        error.contains("4 layers of width 48") && error.contains("config.json"),
        "{error}"
    );
    fs::write(&file, "not one").unwrap();
    load(&file);

    let folder = plain(MODELS[0]);
    let path = folder.path().join("preprocessor_config.json");
    for (text, expected) in [
        (r#"{"resample": 2}"#, "`resample` is 2"),
        (
            r#"{"crop_size": 224}"#,
            "`crop_size` is 224, expected a height and a width of 28",
        ),
        ("[]", "a JSON object"),
        ("{", "not valid JSON"),
    ] {
        fs::write(&path, text).unwrap();
        let error = load(folder.path()).to_string();
        assert!(
            error.contains("preprocessor_config.json") && error.contains(expected),
            "{error}"
        );
    }
}

#[test]
fn pictures_that_cannot_be_encoded() {
    let folder = plain(MODELS[0]);
    let encoder = load(&folder);
    let grey = RgbImage::from_pixel(1, 1, Rgb([128; 3]));
    for (width, height) in [(0, 0), (0, 7), (7, 0)] {
        let empty = RgbImage::new(width, height);
        let error = encoder.encode([&grey, &empty]).unwrap_err();
        assert!(
            matches!(error, ImageEncoderError::Empty { index: 1, .. }),
            "{error}"
        );
        assert_eq!(
            error.to_string(),
            format!("picture 1 has {width} × {height} pixels, expected at least 1 × 1")
        );
        assert!(encoder.pixel_values([&empty]).is_err());
    }
    // A single pixel, and a line that would be enlarged to 28 × 1,400,000 pixels.
    let line = RgbImage::from_pixel(50_000, 1, Rgb([128; 3]));
    let found = encoder.encode([&grey, &line]).unwrap();
    let [one, other] = [0, 1].map(|row| found.projected.row(row));
    assert!(similarity(one, other) > 0.9999);

    for shape in [(1, 3, 28, 27), (1, 3, 27, 28), (1, 4, 28, 28), (0, 3, 1, 1)] {
        let pixels = Array4::zeros(shape);
        let error = encoder.encode_pixel_values(pixels.view()).unwrap_err();
        assert!(
            error.to_string().contains("expected [any, 3, 28, 28]"),
            "{error}"
        );
        assert!(
            encoder
                .hidden_states(pixels.view(), ImageLayer::Last)
                .is_err()
        );
    }
    // Arrays in another order of memory are accepted.
    let golden = expected(MODELS[0]);
    let both = concatenate![Axis(0), pixels(&golden, "wide"), pixels(&golden, "tall")];
    let mut turned = both.clone();
    turned.swap_axes(2, 3);
    let turned = turned.as_standard_layout().into_owned();
    let mut turned = turned.view();
    turned.swap_axes(2, 3);
    assert!(!turned.is_standard_layout());
    assert_eq!(
        encoder.encode_pixel_values(turned).unwrap(),
        encoder.encode_pixel_values(both.view()).unwrap()
    );
}

/// A diffusers folder may have a vision model beside its pipeline, for IP-Adapters.
#[test]
fn a_folder_keeps_its_vision_model_when_it_is_converted() {
    let folder = tempfile::tempdir().unwrap();
    let [old, new] = ["old", "new"].map(|name| folder.path().join(name));
    Model::of_shape("four").write(&old);
    let model = MODELS[0];
    write(model, &old.join("image_encoder"), Dtype::F16, |_, _| {});
    let index = json!({
        "_class_name": "StableDiffusionPipeline",
        "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
    });
    fs::write(old.join("model_index.json"), index.to_string()).unwrap();
    let count = |path: &Path| {
        let found = sd_onnx::inspect(path).unwrap();
        assert_eq!(found.warnings, [""; 0]);
        let mut parts = found.parts.into_iter();
        parts
            .find(|part| part.name == "image_encoder")
            .map(|part| part.tensors)
    };
    assert_eq!(count(&old), Some(weights(model).len()));

    let conversion = Conversion::new(ModelForm::Folder);
    let report = sd_onnx::builder().convert(&old, &new, &conversion).unwrap();
    assert_eq!(report.lost, [""; 0]);
    assert_eq!(count(&new), count(&old));
    let index = fs::read_to_string(new.join("model_index.json")).unwrap();
    let index: Value = serde_json::from_str(&index).unwrap();
    assert_eq!(index["image_encoder"][1], "CLIPVisionModelWithProjection");
    assert_eq!(index["feature_extractor"][1], "CLIPImageProcessor");
    let picture = RgbImage::from_fn(40, 30, |x, y| Rgb([x as u8 * 6, y as u8 * 8, 90]));
    let [before, after] = [&old, &new].map(|path| {
        let encoder = ImageEncoder::load(path).unwrap();
        encoder.encode([&picture]).unwrap()
    });
    assert_eq!(before, after);

    // A folder of ONNX graphs and a single file have none.
    let small = folder.path().join("small");
    write_single_folder("bk-small", &small);
    write(model, &small.join("image_encoder"), Dtype::F16, |_, _| {});
    for (form, from, name) in [
        (ModelForm::Onnx, &old, "onnx"),
        (ModelForm::File, &small, "model.safetensors"),
    ] {
        let to = folder.path().join(name);
        let report = sd_onnx::builder().convert(from, &to, &Conversion::new(form));
        let lost = report.unwrap().lost;
        let expected = "`image_encoder` is not converted and is left out";
        let count = lost.iter().filter(|lost| *lost == expected).count();
        assert_eq!(count, 1, "{name}: {lost:?}");
    }

    // Only the vision model of a whole CLIP model counts, and is converted.
    write_whole(model, &old.join("image_encoder"));
    // `logit_scale` is of both models.
    let tensors = weights(model).len();
    assert_eq!(count(&old), Some(tensors + 1));
    let new = folder.path().join("new-2");
    let conversion = Conversion::new(ModelForm::Folder);
    let report = sd_onnx::builder().convert(&old, &new, &conversion).unwrap();
    assert_eq!(report.lost, [""; 0]);
    assert_eq!(count(&new), Some(tensors));
    assert!(ImageEncoder::load(&new).is_ok());
}

/// Many folders have a `config.json`.
#[test]
fn folders_of_other_networks_are_no_vision_models() {
    for name in ["text_encoder", "unet", "vae"] {
        let error = sd_onnx::inspect(emoji().join(name)).unwrap_err();
        let is_first = chain(&error).contains("expected a folder that contains `unet`");
        assert!(is_first, "{name}: {}", chain(&error));
    }
}

#[test]
fn vision_models_are_inspected() {
    let model = MODELS[1];
    let folder = plain(model);
    let tensors = weights(model);
    let parameters = tensors.values().map(|tensor| tensor.values.len() as u64);
    let parameters = parameters.sum();
    for (path, format) in [
        (folder.path().to_path_buf(), "transformers folder"),
        (folder.path().join("model.safetensors"), "safetensors"),
    ] {
        let found = sd_onnx::inspect(&path).unwrap();
        assert_eq!(
            (found.kind.as_str(), found.format.as_str()),
            ("CLIP's vision model", format)
        );
        assert_eq!(found.problems, [""; 0]);
        let [part] = &found.parts[..] else {
            panic!("{:?}", found.parts)
        };
        assert_eq!(
            (part.name.as_str(), part.parameters),
            ("image_encoder", parameters)
        );
        let error = sd_onnx::builder().load(&path).map(drop).unwrap_err();
        let error = chain(&error);
        println!("{error}");
        let expected = match path.is_dir() {
            true => "the folder `unet` not found",
            false => "`Builder::load_image_encoder`",
        };
        assert!(error.contains(expected), "{error}");
    }
    // A part of the model is missing.
    let name = "vision_model.post_layernorm.bias";
    let broken = self::folder(model, Dtype::F32, |_, tensors| {
        tensors.remove(name);
    });
    let found = sd_onnx::inspect(broken.path()).unwrap();
    assert!(found.problems[0].contains(name), "{:?}", found.problems);
}
