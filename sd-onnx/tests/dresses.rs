//! Loads one model in each form in which folders were published from 2022 to 2024, and in each
//! layout on disk. All of them must give the same bits.

// In tests, a panic reports the failure.
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
};

use common::{Model, Tensor, Tensors, load, plain_file, write_tensors};
use ndarray::Array4;
use safetensors::{Dtype, tensor::TensorView};
use sd_onnx::{Pipeline, Request, StopToken, text::ClipSkip};
use sd_text::outside::chain;

/// A small model of the form of Stable Diffusion 1.5. Its configuration has the defaults of the
/// classes wherever Stable Diffusion 1.5 has them.
const SHAPE: &str = "four";

/// Returns the bits of the picture and the latents of a short run, and of an encoded picture.
fn bits(pipeline: &Pipeline) -> Vec<u32> {
    let request = Request::new("a cute fox girl")
        .negative("blurry")
        .size(64, 72)
        .steps(3)
        .seed(5)
        .clip_skip(2);
    let picture = pipeline.generate(&request).unwrap().pictures.remove(0);
    let encoded = pipeline
        .codec()
        .encode(
            Array4::from_elem((1, 3, 64, 64), 0.25).view(),
            &StopToken::new(),
        )
        .unwrap();
    let all = picture
        .latents
        .iter()
        .chain(&picture.pixels)
        .chain(&encoded.mean)
        .chain(&encoded.log_variance);
    let bits: Vec<u32> = all.map(|value| value.to_bits()).collect();
    assert!(bits.iter().any(|&b| f32::from_bits(b) != 0.0));
    bits
}

fn reference() -> Vec<u32> {
    let folder = tempfile::tempdir().unwrap();
    Model::of_shape(SHAPE).write(folder.path());
    bits(&load(folder.path()))
}

/// Writes the model with `dress`, which receives the model and the folder, and compares the bits.
fn same_bits(dress: impl FnOnce(&mut Model, &Path)) {
    let folder = tempfile::tempdir().unwrap();
    dress(&mut Model::of_shape(SHAPE), folder.path());
    assert!(bits(&load(folder.path())) == reference(), "the bits differ");
}

fn rename(tensors: &mut Tensors, new_name: impl Fn(&str) -> String) {
    *tensors = std::mem::take(tensors)
        .into_iter()
        .map(|(name, tensor)| (new_name(&name), tensor))
        .collect();
}

#[test]
fn text_model_prefix_and_position_ids() {
    same_bits(|model, folder| {
        rename(model.weights.get_mut("text_encoder").unwrap(), |name| {
            format!("text_model.{name}")
        });
        model.write(folder);
        // transformers 4 saved the positions as integers.
        let path = folder.join("text_encoder").join(plain_file("text_encoder"));
        let bytes = fs::read(&path).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let ids: Vec<u8> = (0..77i64).flat_map(i64::to_le_bytes).collect();
        let mut tensors = file.tensors();
        let ids = TensorView::new(Dtype::I64, vec![1, 77], &ids).unwrap();
        tensors.push(("text_model.embeddings.position_ids".into(), ids));
        safetensors::serialize_to_file(tensors, None, &path).unwrap();
    });
}

#[test]
fn vae_attention_names_before_diffusers_0_18() {
    same_bits(|model, folder| {
        let names = [
            (".to_q.", ".query."),
            (".to_k.", ".key."),
            (".to_v.", ".value."),
            (".to_out.0.", ".proj_attn."),
        ];
        let old = |name: &str| {
            let renamed = names
                .iter()
                .find(|(new, _)| name.contains(new))
                .map(|(new, old)| name.replace(new, old));
            renamed.unwrap_or_else(|| name.to_owned())
        };
        rename(model.weights.get_mut("vae").unwrap(), old);
        assert!(model.weights["vae"].contains_key("decoder.mid_block.attentions.0.proj_attn.bias"));
        model.write(folder);
    });
}

#[test]
fn keys_that_did_not_exist_yet() {
    same_bits(|model, folder| {
        let keys = [
            (
                "vae",
                vec![
                    "scaling_factor",
                    "shift_factor",
                    "use_quant_conv",
                    "use_post_quant_conv",
                    "mid_block_add_attention",
                    "latents_mean",
                    "force_upcast",
                ],
            ),
            (
                "unet",
                vec![
                    "mid_block_type",
                    "use_linear_projection",
                    "transformer_layers_per_block",
                    "norm_eps",
                    "downsample_padding",
                    "flip_sin_to_cos",
                    "freq_shift",
                    "conv_in_kernel",
                    "num_attention_heads",
                    "time_embedding_type",
                ],
            ),
            (
                "text_encoder",
                vec!["layer_norm_eps", "max_position_embeddings", "hidden_act"],
            ),
        ];
        for (component, keys) in keys {
            let config = model
                .configs
                .get_mut(component)
                .unwrap()
                .as_object_mut()
                .unwrap();
            for key in keys {
                assert!(config.remove(key).is_some(), "{component} has {key}");
            }
        }
        model.configs.get_mut("text_encoder").unwrap()["eos_token_id"] = 2.into();
        model.write(folder);
    });
}

#[test]
fn folders_that_are_not_for_us() {
    same_bits(|model, folder| {
        model.write(folder);
        for name in ["safety_checker", "feature_extractor"] {
            fs::create_dir(folder.join(name)).unwrap();
            fs::write(folder.join(name).join("config.json"), "not even JSON").unwrap();
        }
    });
}

#[test]
fn half_precision_of_either_kind() {
    // The weights of the recipe are f16 numbers, so the f16 files are exact.
    same_bits(|model, folder| write_as(model, folder, Dtype::F16, ""));
    let folder = tempfile::tempdir().unwrap();
    let mut model = Model::of_shape(SHAPE);
    for tensor in model
        .weights
        .values_mut()
        .flat_map(|tensors| tensors.values_mut())
    {
        tensor
            .values
            .iter_mut()
            .for_each(|v| *v = half::bf16::from_f32(*v).to_f32());
    }
    write_as(&model, &folder.path().join("bf16"), Dtype::BF16, "");
    model.write(&folder.path().join("f32"));
    assert!(bits(&load(&folder.path().join("bf16"))) == bits(&load(&folder.path().join("f32"))));
}

fn write_as(model: &Model, folder: &Path, dtype: Dtype, variant: &str) {
    model.write_without_weights(folder);
    for (component, tensors) in &model.weights {
        let file = plain_file(component).replace(".safetensors", &format!("{variant}.safetensors"));
        write_tensors(&folder.join(component).join(file), tensors, dtype);
    }
}

#[test]
fn variants() {
    // The only variant is used.
    same_bits(|model, folder| write_as(model, folder, Dtype::F16, ".fp16"));

    // The plain file is preferred. A variant that is asked for is used, with the plain file for a
    // component that lacks it.
    let folder = tempfile::tempdir().unwrap();
    let mut model = Model::of_shape(SHAPE);
    model.write(folder.path());
    let unet = model.weights.get_mut("unet").unwrap();
    unet.get_mut("conv_out.bias").unwrap().values.fill(0.5);
    let file = folder
        .path()
        .join("unet/diffusion_pytorch_model.non_ema.safetensors");
    write_tensors(&file, &model.weights["unet"], Dtype::F16);
    let plain = bits(&load(folder.path()));
    assert!(plain == reference());
    let variant = bits(
        &sd_onnx::builder()
            .variant("non_ema")
            .load(folder.path())
            .unwrap(),
    );
    assert!(variant != plain);

    // With two variants and no plain file, the error lists the variants. So does the error for a
    // variant that does not exist.
    fs::rename(
        folder.path().join("unet").join(plain_file("unet")),
        file.with_file_name("diffusion_pytorch_model.fp16.safetensors"),
    )
    .unwrap();
    let error = chain(&sd_onnx::builder().load(folder.path()).unwrap_err());
    assert!(
        error.contains("fp16, non_ema") && error.contains("unet"),
        "{error}"
    );
    let error = chain(
        &sd_onnx::builder()
            .variant("int8")
            .load(folder.path())
            .unwrap_err(),
    );
    assert!(
        error.contains("`int8`") && error.contains("fp16, non_ema"),
        "{error}"
    );
}

/// Splits the tensors of a component over two files with an index. Returns the paths of the two
/// files.
fn write_shards(folder: &Path, component: &str, tensors: Tensors, variant: &str) -> [PathBuf; 2] {
    let stem = plain_file(component).trim_end_matches(".safetensors");
    let names = [1, 2].map(|i| format!("{stem}{variant}-0000{i}-of-00002.safetensors"));
    let mut map = serde_json::Map::new();
    let mut shards = [Tensors::new(), Tensors::new()];
    for (i, (name, tensor)) in tensors.into_iter().enumerate() {
        map.insert(name.clone(), names[i % 2].clone().into());
        shards[i % 2].insert(name, tensor);
    }
    let index = serde_json::json!({ "metadata": { "total_size": 0 }, "weight_map": map });
    fs::write(
        folder
            .join(component)
            .join(format!("{stem}.safetensors.index{variant}.json")),
        index.to_string(),
    )
    .unwrap();
    let paths = names.map(|name| folder.join(component).join(name));
    for (path, shard) in paths.iter().zip(&shards) {
        write_tensors(path, shard, Dtype::F32);
    }
    paths
}

#[test]
fn shards() {
    for variant in ["", ".fp16"] {
        same_bits(|model, folder| {
            model.write_without_weights(folder);
            for (component, tensors) in std::mem::take(&mut model.weights) {
                write_shards(folder, component, tensors, variant);
            }
        });
    }
}

#[cfg(unix)]
#[test]
fn shards_in_two_real_folders() {
    let elsewhere = tempfile::tempdir().unwrap();
    same_bits(|model, folder| {
        model.write(folder);
        fs::remove_file(folder.join("unet").join(plain_file("unet"))).unwrap();
        let tensors: Tensors = std::mem::take(model.weights.get_mut("unet").unwrap());
        let [_, second] = write_shards(folder, "unet", tensors, "");
        let real = elsewhere.path().join("deep/down/second");
        fs::create_dir_all(real.parent().unwrap()).unwrap();
        fs::copy(&second, &real).unwrap();
        fs::remove_file(&second).unwrap();
        std::os::unix::fs::symlink(&real, &second).unwrap();
    });
}

#[cfg(unix)]
#[test]
fn hub_cache_layout() {
    use std::os::unix::fs::symlink;
    let cache = tempfile::tempdir().unwrap();
    let repository = cache.path().join("models--someone--small");
    let snapshot = repository.join("snapshots/0123abcd");
    fs::create_dir_all(repository.join("blobs")).unwrap();
    let plain = tempfile::tempdir().unwrap();
    Model::of_shape(SHAPE).write(plain.path());
    let mut number = 0;
    for folder in fs::read_dir(plain.path())
        .unwrap()
        .map(|entry| entry.unwrap())
    {
        fs::create_dir_all(snapshot.join(folder.file_name())).unwrap();
        for file in fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap())
        {
            number += 1;
            let blob = format!("{number:064x}");
            fs::copy(file.path(), repository.join("blobs").join(&blob)).unwrap();
            let link = snapshot.join(folder.file_name()).join(file.file_name());
            symlink(Path::new("../../../blobs").join(blob), link).unwrap();
        }
    }
    assert!(bits(&load(&snapshot)) == reference());

    // The folder itself can be a link.
    let link = cache.path().join("link");
    symlink(&snapshot, &link).unwrap();
    assert!(bits(&load(&link)) == reference());
}

#[test]
fn paths_with_spaces_and_other_letters() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("my models").join("лиса 狐 é #1%20");
    fs::create_dir_all(&path).unwrap();
    Model::of_shape(SHAPE).write(&path);
    assert!(bits(&load(&path)) == reference());
}

#[test]
fn tensors_that_are_no_weights_are_ignored() {
    let one = || Tensor {
        shape: vec![1],
        values: vec![0.5],
    };
    same_bits(|model, folder| {
        for tensors in model.weights.values_mut() {
            for name in ["model_ema.decay", "betas", "wrapper.alphas_cumprod"] {
                tensors.insert(name.into(), one());
            }
        }
        let text = model.weights.get_mut("text_encoder").unwrap();
        for name in [
            "logit_scale",
            "text_projection.weight",
            "text_projection",
            "text_model.attn_mask",
            "visual_projection.weight",
            "vision_model.encoder.layers.0.mlp.fc1.bias",
        ] {
            text.insert(name.into(), one());
        }
        model.write(folder);
    });
}

#[test]
fn layers_behind_the_last_are_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let mut model = Model::of_shape(SHAPE);
    model.write(folder.path());
    let encode = |clip_skip| {
        let prompts = sd_onnx::builder()
            .load_prompt_encoder(folder.path())
            .unwrap();
        let clip_skip = ClipSkip::new(clip_skip).unwrap();
        prompts.encode("a fox", clip_skip).unwrap().embedding
    };
    let second = encode(2);
    let layers = &mut model.configs.get_mut("text_encoder").unwrap()["num_hidden_layers"];
    *layers = (layers.as_u64().unwrap() - 1).into();
    model.write(folder.path());
    assert_eq!(encode(1), second);
}

#[test]
fn a_vae_without_its_encoder_decodes() {
    let folder = tempfile::tempdir().unwrap();
    let mut model = Model::of_shape(SHAPE);
    let vae = model.weights.get_mut("vae").unwrap();
    vae.remove("encoder.mid_block.resnets.0.conv1.weight")
        .unwrap();
    model.write(folder.path());
    let pipeline = load(folder.path());
    let request = Request::new("a fox").size(64, 64).steps(1);
    assert!(pipeline.generate(&request).is_ok());
    let image = Array4::zeros((1, 3, 64, 64));
    let error = pipeline
        .codec()
        .encode(image.view(), &StopToken::new())
        .unwrap_err();
    let part = "tensor `encoder.mid_block.resnets.0.conv1.weight` is missing";
    assert!(chain(&*error).contains(part), "{error}");
}

/// A weight file may be replaced while the model is loaded, as the handbook says. The model keeps
/// the f32 weights of the old file.
#[cfg(unix)]
#[test]
fn a_weight_file_may_be_replaced_while_it_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let mut model = Model::of_shape(SHAPE);
    model.write(folder.path());
    let pipeline = load(folder.path());
    let before = bits(&pipeline);
    let unet = model.weights.get_mut("unet").unwrap();
    unet.get_mut("conv_out.bias").unwrap().values.fill(0.5);
    let file = folder.path().join("unet").join(plain_file("unet"));
    let other = file.with_extension("new");
    write_tensors(&other, &model.weights["unet"], Dtype::F32);
    fs::rename(other, file).unwrap();
    assert!(bits(&pipeline) == before);
    assert!(bits(&load(folder.path())) != before);
}

#[test]
fn a_configuration_with_a_byte_order_mark() {
    same_bits(|model, folder| {
        model.write(folder);
        for file in ["unet/config.json", "scheduler/scheduler_config.json"] {
            let text = fs::read_to_string(folder.join(file)).unwrap();
            fs::write(folder.join(file), format!("\u{feff}{text}")).unwrap();
        }
    });
}

#[test]
fn a_tokenizer_shorter_than_the_text_model() {
    let folder = tempfile::tempdir().unwrap();
    let model = Model::of_shape(SHAPE);
    model.write(folder.path());
    let encode = || {
        let prompts = sd_onnx::builder()
            .load_prompt_encoder(folder.path())
            .unwrap();
        prompts.encode("a fox", ClipSkip::LAST).unwrap().embedding
    };
    let whole = encode();
    let config = folder.path().join("tokenizer/tokenizer_config.json");
    let mut json: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(&config).unwrap()).unwrap();
    json["model_max_length"] = 50.into();
    fs::write(&config, json.to_string()).unwrap();
    let short = encode();
    assert_eq!(short.dim(), (1, 50, whole.dim().2));
    // Attention looks only at earlier tokens, so the first 50 do not depend on the others.
    let first = whole.slice(ndarray::s![.., ..50, ..]);
    let error = (&short - &first).mapv(|v| v * v).sum().sqrt() / first.mapv(|v| v * v).sum().sqrt();
    assert!(error <= 1e-6, "{error}");
}

#[test]
fn the_builders_clip_skip_is_that_of_requests_that_name_none() {
    let folder = tempfile::tempdir().unwrap();
    Model::of_shape(SHAPE).write(folder.path());
    let latents = |pipeline: Pipeline, request: Request| {
        let mut generation = pipeline
            .generate(&request.size(64, 64).steps(2).seed(1))
            .unwrap();
        generation.pictures.remove(0).latents
    };
    let second = || sd_onnx::builder().clip_skip(2).load(folder.path()).unwrap();
    let by_builder = latents(second(), Request::new("a fox"));
    assert_eq!(
        by_builder,
        latents(load(folder.path()), Request::new("a fox").clip_skip(2))
    );
    assert_eq!(
        latents(second(), Request::new("a fox").clip_skip(1)),
        latents(load(folder.path()), Request::new("a fox"))
    );
    assert_ne!(
        by_builder,
        latents(load(folder.path()), Request::new("a fox"))
    );
}
