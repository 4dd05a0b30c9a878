//! Tests model folders that cannot be used. Each is refused with an error that names the file and
//! the problem, and never with a panic.

// In tests, a panic reports the failure.
#![allow(clippy::unwrap_used)]

mod common;
#[allow(dead_code, reason = "each test file uses only a part of it")]
#[path = "../../sd-text/tests/common/pickles.rs"]
mod pickles;

use std::{fs, path::Path};

use common::{Model, plain_file, write_tensors};
use safetensors::Dtype;
use sd_text::outside::chain;
use serde_json::json;

const SHAPE: &str = "four-last";

/// Damages a good folder with `spoil`, loads it, and checks that the error contains each of
/// `parts`.
fn refused(parts: &[&str], spoil: impl FnOnce(&mut Model, &Path)) {
    let folder = tempfile::tempdir().unwrap();
    let mut model = Model::of_shape(SHAPE);
    model.write(folder.path());
    spoil(&mut model, folder.path());
    let error = match sd_onnx::builder().load(folder.path()) {
        Ok(_) => panic!("loaded, expected an error with {parts:?}"),
        Err(error) => chain(&error),
    };
    println!("{error}");
    for part in parts {
        assert!(error.contains(part), "{error:?} does not contain {part:?}");
    }
    assert!(!error.contains('\n'), "{error:?} has more than one line");
}

/// Changes a key of a component's `config.json` and checks that the folder is refused.
fn refused_config(component: &'static str, key: &str, value: serde_json::Value) {
    // An error shows only the beginning of a long value.
    let found: String = value.to_string().chars().take(60).collect();
    refused(
        &["config.json", &format!("`{key}`"), &found],
        |model, folder| {
            model.configs.get_mut(component).unwrap()[key] = value;
            model.write_without_weights(folder);
        },
    );
}

fn weight_file(folder: &Path, component: &str) -> std::path::PathBuf {
    folder.join(component).join(plain_file(component))
}

#[test]
fn missing_parts() {
    for part in ["unet", "vae", "text_encoder", "tokenizer", "scheduler"] {
        refused(&[&format!("the folder `{part}` not found")], |_, folder| {
            fs::remove_dir_all(folder.join(part)).unwrap()
        });
    }
    for file in [
        "unet/config.json",
        "tokenizer/vocab.json",
        "scheduler/scheduler_config.json",
    ] {
        refused(&[file.split('/').next_back().unwrap()], |_, folder| {
            fs::remove_file(folder.join(file)).unwrap()
        });
    }
    refused(
        &[
            "vae",
            "diffusion_pytorch_model.safetensors not found",
            "no weights",
        ],
        |_, folder| {
            fs::remove_file(weight_file(folder, "vae")).unwrap();
        },
    );
    let error = chain(&sd_onnx::builder().load("no/such/folder").unwrap_err());
    assert!(
        error.contains("no/such/folder") && error.contains("not found"),
        "{error}"
    );
}

/// Pickles are read, but a pickle that asks to run a program is refused.
#[test]
fn pickles() {
    refused(
        &[
            "unet",
            "diffusion_pytorch_model.bin",
            "byte 45",
            "posix.system",
        ],
        |_, folder| {
            let file = weight_file(folder, "unet");
            fs::remove_file(&file).unwrap();
            let program = pickles::legacy(b"cposix\nsystem\n(Vls\ntR.", "0", 0, b"");
            fs::write(file.with_extension("bin"), program).unwrap();
        },
    );
}

#[test]
fn other_models() {
    for later in ["transformer", "text_encoder_3"] {
        refused(
            &["model_index.json", "Stable Diffusion 3 or Flux"],
            |_, folder| fs::create_dir(folder.join(later)).unwrap(),
        );
    }
    for (class, name) in [
        ("StableDiffusionDepth2ImgPipeline", "a depth-to-image model"),
        ("StableDiffusionUpscalePipeline", "the x4 upscaler"),
        ("StableUnCLIPPipeline", "Stable unCLIP"),
    ] {
        refused(
            &["model_index.json", name, "not supported"],
            |model, folder| {
                model.write_without_weights(folder);
                let index = json!({ "_class_name": class }).to_string();
                fs::write(folder.join("model_index.json"), index).unwrap();
            },
        );
    }
    // The kind of model is recognised by a key of the UNet alone.
    for (key, value, name) in [
        ("in_channels", json!(5), "a depth-to-image model"),
        ("in_channels", json!(7), "the x4 upscaler"),
        ("class_embed_type", json!("projection"), "Stable unCLIP"),
    ] {
        let found = value.to_string();
        let parts = [&format!("`{key}` is {found}"), name, "not supported"];
        refused(&parts, |model, folder| {
            model.configs.get_mut("unet").unwrap()[key] = value;
            model.write_without_weights(folder);
        });
    }
    // Numbers of channels that no supported model has: extra input channels of another number, and
    // learned variances in the output.
    for (input, output) in [(4, 8), (6, 4), (3, 4)] {
        let expected = format!("`in_channels` is {input}, expected {output}");
        refused(&["config.json", &expected], |model, folder| {
            let unet = model.configs.get_mut("unet").unwrap();
            (unet["in_channels"], unet["out_channels"]) = (input.into(), output.into());
            model.write_without_weights(folder);
        });
    }
}

#[test]
fn wrong_tensors() {
    for (component, name) in [
        (
            "unet",
            "down_blocks.2.attentions.0.transformer_blocks.0.attn2.to_k.weight",
        ),
        ("vae", "decoder.conv_norm_out.bias"),
        ("text_encoder", "encoder.layers.1.mlp.fc2.bias"),
    ] {
        refused(
            &[
                plain_file(component),
                &format!("tensor `{name}` is missing"),
                "shape [",
            ],
            |model, folder| {
                model
                    .weights
                    .get_mut(component)
                    .unwrap()
                    .remove(name)
                    .unwrap();
                write_tensors(
                    &weight_file(folder, component),
                    &model.weights[component],
                    Dtype::F32,
                );
            },
        );
        refused(
            &[
                plain_file(component),
                &format!("tensor `{name}` has shape [3], expected ["),
            ],
            |model, folder| {
                let tensor = model
                    .weights
                    .get_mut(component)
                    .unwrap()
                    .get_mut(name)
                    .unwrap();
                (tensor.shape, tensor.values) = (vec![3], vec![0.0; 3]);
                write_tensors(
                    &weight_file(folder, component),
                    &model.weights[component],
                    Dtype::F32,
                );
            },
        );
    }
    refused(
        &["`conv_in.bias` has type I32, expected F64, F32, F16, BF16, F8_E4M3"],
        |_, folder| {
            edit_header(&weight_file(folder, "unet"), |header| {
                header["conv_in.bias"]["dtype"] = "I32".into()
            });
        },
    );
}

/// Rewrites the header of a safetensors file, whose length may change, and keeps the data.
fn edit_header(path: &Path, edit: impl FnOnce(&mut serde_json::Value)) {
    let bytes = fs::read(path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    edit(&mut header);
    let header = header.to_string();
    let edited = [
        &(header.len() as u64).to_le_bytes(),
        header.as_bytes(),
        &bytes[8 + length..],
    ]
    .concat();
    fs::write(path, edited).unwrap();
}

#[test]
fn broken_safetensors() {
    type Spoil = fn(Vec<u8>) -> Vec<u8>;
    let cases: [(&[&str], Spoil); 7] = [
        (&["5 bytes"], |bytes| bytes[..5].to_vec()),
        (&["the file is truncated: ", " of ", " bytes"], |bytes| {
            bytes[..bytes.len() - 100].to_vec()
        }),
        (&["its last tensor ends at byte"], |bytes| {
            [bytes, vec![0; 4]].concat()
        }),
        (&["truncated", "header", "200 in all"], |bytes| {
            bytes[..200].to_vec()
        }),
        (&["not a model file", "1152921504606846976"], |bytes| {
            [&(1u64 << 60).to_le_bytes(), &bytes[8..]].concat()
        }),
        (&["bytes 0 to 7", "18446744073709551615"], |bytes| {
            [&[255; 8], &bytes[8..]].concat()
        }),
        (&["header", "JSON"], |mut bytes| {
            bytes[8] = b'x';
            bytes
        }),
    ];
    for (parts, spoil) in cases {
        for component in ["unet", "vae", "text_encoder"] {
            let parts = [
                &[plain_file(component), "not a usable safetensors file"],
                parts,
            ]
            .concat();
            refused(&parts, |_, folder| {
                let path = weight_file(folder, component);
                fs::write(&path, spoil(fs::read(&path).unwrap())).unwrap();
            });
        }
    }
    refused(&[plain_file("unet"), "the file is empty"], |_, folder| {
        fs::write(weight_file(folder, "unet"), "").unwrap()
    });
    // Garbage of several sizes, from a linear congruential generator.
    let mut state = 1u32;
    for size in [9, 100, 10_000] {
        let garbage = (0..size).map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        });
        let garbage: Vec<u8> = garbage.collect();
        refused(&["not a usable safetensors file"], |_, folder| {
            fs::write(weight_file(folder, "unet"), garbage).unwrap()
        });
    }
}

#[test]
fn lying_headers() {
    let edited = |parts: &[&str], edit: fn(&mut serde_json::Value)| {
        let parts = [
            &[plain_file("unet"), "not a usable safetensors file"],
            parts,
        ]
        .concat();
        refused(&parts, |_, folder| {
            edit_header(&weight_file(folder, "unet"), edit)
        });
    };
    edited(&["tensor", "overlaps"], |header| {
        let other = header["conv_out.bias"]["data_offsets"].clone();
        header["conv_in.bias"]["data_offsets"] = other;
    });
    edited(&["tensor", "ends before it begins"], |header| {
        header["conv_in.bias"]["data_offsets"] = json!([96, 0])
    });
    edited(
        &[
            "tensor `conv_in.bias` has 96 bytes",
            "[1099511627776] of F32",
        ],
        |header| header["conv_in.bias"]["shape"] = json!([1u64 << 40]),
    );
    edited(
        &[
            "tensor `conv_in.bias` has 96 bytes",
            "[18446744073709551615, 18446744073709551615]",
        ],
        |header| header["conv_in.bias"]["shape"] = json!([u64::MAX, u64::MAX]),
    );
    // Each tensor is possible, but all of them together end close to the largest 64-bit number.
    edited(&["truncated", "of 184467440737095"], |header| {
        let size = (1u64 << 61) - 1;
        let tensor = |i| {
            let offsets = [i * size, (i + 1) * size];
            let info = json!({"dtype": "U8", "shape": [size], "data_offsets": offsets});
            (format!("t{i}"), info)
        };
        *header = (0..8).map(tensor).collect();
    });
    edited(&["JSON"], |header| {
        header["conv_in.bias"]["dtype"] = "F99".into()
    });
    edited(&["JSON"], |header| {
        header["conv_in.bias"]["data_offsets"] = json!([-4, 0])
    });
}

#[test]
fn broken_indices() {
    let cases: [(&[&str], &str); 7] = [
        (&["`weight_map` is [\"a\"]"], r#"{"weight_map": ["a"]}"#),
        (
            &["`weight_map`", "1 to 1000 files"],
            r#"{"weight_map": {}}"#,
        ),
        (
            &["`weight_map` is {\"conv_in.bias\":7}"],
            r#"{"weight_map": {"conv_in.bias": 7}}"#,
        ),
        (&["`weight_map` is missing", "an object"], "{}"),
        (&["not valid JSON", "line 1"], "{\"weight_map\": {"),
        (
            &["`weight_map`", "../vae/diffusion_pytorch_model.safetensors"],
            r#"{"weight_map": {"conv_in.bias": "../vae/diffusion_pytorch_model.safetensors"}}"#,
        ),
        (
            &["shard-7.safetensors"],
            r#"{"weight_map": {"conv_in.bias": "shard-7.safetensors"}}"#,
        ),
    ];
    for (parts, index) in cases {
        refused(parts, |_, folder| {
            fs::remove_file(weight_file(folder, "unet")).unwrap();
            fs::write(
                folder.join("unet/diffusion_pytorch_model.safetensors.index.json"),
                index,
            )
            .unwrap();
        });
    }
}

#[test]
fn configs_that_are_not_json() {
    for component in ["unet", "vae", "text_encoder"] {
        for (text, part) in [
            ("", "the file is empty"),
            ("{\"a\": ", "line 1"),
            ("[1, 2]", "a JSON object"),
        ] {
            refused(&[component, "config.json", part], |_, folder| {
                fs::write(folder.join(component).join("config.json"), text).unwrap();
            });
        }
        refused(&[component, "config.json"], |_, folder| {
            fs::write(
                folder.join(component).join("config.json"),
                [0xff, 0xfe, 0x00],
            )
            .unwrap();
        });
    }
    refused(&["scheduler_config.json"], |_, folder| {
        fs::write(folder.join("scheduler/scheduler_config.json"), "{").unwrap();
    });
}

#[test]
fn unknown_kinds() {
    let up = json!([
        "UpBlock2D",
        "UpBlock2D",
        "UpBlock2D",
        "ResnetUpsampleBlock2D"
    ]);
    refused_config("unet", "up_block_types", up);
    refused_config(
        "unet",
        "down_block_types",
        json!(["KDownBlock2D", "DownBlock2D", "DownBlock2D", "DownBlock2D"]),
    );
    refused_config("unet", "down_block_types", json!(["DownBlock2D"]));
    refused_config(
        "unet",
        "mid_block_type",
        json!("UNetMidBlock2DSimpleCrossAttn"),
    );
    refused_config("unet", "act_fn", json!("mish"));
    refused_config("unet", "_class_name", json!("UNet2DModel"));
    refused_config("vae", "_class_name", json!("AutoencoderDC"));
    refused_config("text_encoder", "architectures", json!(["T5EncoderModel"]));
    refused_config("text_encoder", "model_type", json!("t5"));
    refused_config("unet", "addition_embed_type", json!("image"));
    refused_config("unet", "class_embed_type", json!("timestep"));
    refused_config("unet", "resnet_time_scale_shift", json!("scale_shift"));
    refused_config("unet", "only_cross_attention", json!([true]));
    refused_config(
        "vae",
        "down_block_types",
        json!(["AttnDownEncoderBlock2D", "DownEncoderBlock2D"]),
    );
    refused_config("text_encoder", "use_attention_mask", json!(true));
    refused_config("vae", "act_fn", json!("relu"));
    refused_config("text_encoder", "hidden_act", json!("relu"));
}

#[test]
fn absurd_sizes() {
    let huge = json!(1u64 << 60);
    for key in [
        "in_channels",
        "out_channels",
        "norm_num_groups",
        "cross_attention_dim",
        "layers_per_block",
        "attention_head_dim",
        "transformer_layers_per_block",
        "sample_size",
        "time_embedding_dim",
    ] {
        for value in [
            huge.clone(),
            json!(0),
            json!(-1),
            json!("4"),
            json!(1.5),
            json!({}),
        ] {
            refused_config("unet", key, value);
        }
    }
    for value in [
        json!([]),
        json!([24, 40, 40, 1u64 << 60]),
        json!([0, 40, 40, 56]),
        json!(24),
        json!([24, 40, 40, -56]),
        json!([23, 40, 40, 56]),
    ] {
        // The error may name another key that must fit this one.
        refused(&["unet", "config.json"], |model, folder| {
            model.configs.get_mut("unet").unwrap()["block_out_channels"] = value;
            model.write_without_weights(folder);
        });
    }
    for key in ["norm_eps", "freq_shift"] {
        refused_config("unet", key, json!("tiny"));
    }
    refused_config("unet", "norm_eps", json!(-1e-5));
    refused_config("unet", "norm_num_groups", json!(7));
    refused_config("unet", "attention_head_dim", json!([3, 5, 5]));
    refused_config("unet", "sample_size", json!(257));
    refused_config("unet", "sample_size", json!([64, 1 << 20]));
    refused_config("unet", "block_out_channels", json!(vec![8; 65]));
    refused_config("unet", "down_block_types", json!(vec!["DownBlock2D"; 65]));
    refused_config("unet", "attention_head_dim", json!([3, 5, 5, 100]));
    refused_config("unet", "layers_per_block", json!(1000));
    for (key, value) in [
        ("latent_channels", huge.clone()),
        ("layers_per_block", huge.clone()),
        ("norm_num_groups", json!(0)),
        ("scaling_factor", json!(0)),
        ("scaling_factor", json!("x")),
        ("in_channels", json!(4)),
        ("shift_factor", json!([])),
    ] {
        refused_config("vae", key, value);
    }
    for (key, value) in [
        ("hidden_size", huge.clone()),
        ("num_attention_heads", json!(0)),
        ("num_attention_heads", json!(7)),
        ("num_hidden_layers", huge.clone()),
        ("vocab_size", huge.clone()),
        ("max_position_embeddings", huge.clone()),
        ("layer_norm_eps", json!(0)),
    ] {
        refused_config("text_encoder", key, value);
    }
    // The configuration is valid, but the sizes differ from the file's.
    refused(
        &["tensor `conv_in.weight` has shape [24, 4, 3, 3], expected [24, 1048576, 3, 3]"],
        |model, folder| {
            let unet = model.configs.get_mut("unet").unwrap();
            (unet["in_channels"], unet["out_channels"]) = ((1 << 20).into(), (1 << 20).into());
            model.write_without_weights(folder);
        },
    );
}

#[test]
fn tensors_that_no_graph_has_a_place_for() {
    for (component, class, name) in [
        (
            "unet",
            "UNet2DConditionModel",
            "add_embedding.linear_1.bias",
        ),
        (
            "vae",
            "AutoencoderKL",
            "decoder.condition_encoder.layers.0.bias",
        ),
        ("vae", "AutoencoderKL", "encoder.extra.weight"),
        (
            "text_encoder",
            "CLIPTextModel",
            "encoder.layers.0.self_attn.extra.bias",
        ),
        // These tensors are known, but belong to other classes.
        ("unet", "UNet2DConditionModel", "text_projection.weight"),
        ("vae", "AutoencoderKL", "quant_conv.weight"),
    ] {
        let parts = [
            plain_file(component),
            class,
            "no place for 1 of its tensors",
            name,
        ];
        refused(&parts, |model, folder| {
            let one = common::Tensor {
                shape: vec![1],
                values: vec![0.5],
            };
            let tensors = model.weights.get_mut(component).unwrap();
            assert!(tensors.insert(name.into(), one).is_none());
            let file = weight_file(folder, component);
            write_tensors(&file, &model.weights[component], Dtype::F32);
        });
    }
}

#[test]
fn a_tensor_in_two_shards() {
    refused(
        &["second.safetensors", "`conv_in.bias` is there twice"],
        |model, folder| {
            let unet = folder.join("unet");
            fs::rename(weight_file(folder, "unet"), unet.join("first.safetensors")).unwrap();
            let second = unet.join("second.safetensors");
            let tensors = model.weights.get_mut("unet").unwrap();
            tensors.retain(|name, _| name == "conv_in.bias");
            write_tensors(&second, tensors, Dtype::F32);
            let index =
                json!({"weight_map": {"a": "first.safetensors", "b": "second.safetensors"}});
            let name = "diffusion_pytorch_model.safetensors.index.json";
            fs::write(unet.join(name), index.to_string()).unwrap();
        },
    );
}

/// Every file that is read, except the tokenizer's.
const FILES: [&str; 8] = [
    "model_index.json",
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "scheduler/scheduler_config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
];

#[test]
fn files_in_the_place_of_others() {
    let pointer = format!(
        "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 4\n",
        "0".repeat(64)
    );
    for file in FILES {
        let name = file.split('/').next_back().unwrap();
        for (text, what) in [
            (&*pointer, "git lfs pull"),
            ("<!DOCTYPE html>\n<html>404</html>", "web page"),
            (
                "{\n<<<<<<< HEAD\n\"a\": 1\n=======\n>>>>>>> b\n}",
                "merge conflict",
            ),
        ] {
            refused(&[name, what], |_, folder| {
                fs::write(folder.join(file), text).unwrap();
            });
        }
        refused(&[name, "this is a folder"], |_, folder| {
            let _ = fs::remove_file(folder.join(file));
            fs::create_dir(folder.join(file)).unwrap();
        });
    }
    refused(&["index.json", "git lfs pull"], |_, folder| {
        let file = weight_file(folder, "unet");
        fs::write(file.with_extension("safetensors.index.json"), pointer).unwrap();
        fs::remove_file(file).unwrap();
    });
}

#[cfg(target_os = "linux")]
#[test]
fn devices_pipes_and_files_without_a_length() {
    for file in FILES {
        let name = file.split('/').next_back().unwrap();
        for target in ["/dev/zero", "/dev/full", "/proc/self/environ", "pipe"] {
            refused(&[name], |_, folder| {
                let _ = fs::remove_file(folder.join(file));
                if target == "pipe" {
                    let made = std::process::Command::new("mkfifo")
                        .arg(folder.join(file))
                        .status();
                    assert!(made.unwrap().success());
                } else {
                    std::os::unix::fs::symlink(target, folder.join(file)).unwrap();
                }
            });
        }
    }
}

#[test]
fn configurations_have_a_longest_length() {
    for file in [
        "model_index.json",
        "unet/config.json",
        "scheduler/scheduler_config.json",
    ] {
        refused(
            &[file.split('/').next_back().unwrap(), "at most 4194304"],
            |_, folder| {
                fs::write(folder.join(file), " ".repeat((4 << 20) + 1)).unwrap();
            },
        );
    }
}

/// Names and values from files may contain characters that control a terminal. Errors must escape
/// them, wherever a name or a value is shown.
#[test]
fn names_from_files_are_printed_in_safe_characters() {
    let evil = format!("\u{1b}]0;x\u{7}\u{9b}2J\u{202e}\n{}", "x".repeat(1 << 20));
    let safe = |spoil: &dyn Fn(&mut Model, &Path)| {
        let folder = tempfile::tempdir().unwrap();
        let mut model = Model::of_shape(SHAPE);
        model.write(folder.path());
        spoil(&mut model, folder.path());
        let error = chain(&sd_onnx::builder().load(folder.path()).unwrap_err());
        println!("{error}");
        let is_bad = |c: char| c.is_control() || c == '\u{202e}';
        assert!(!error.contains(is_bad), "{error:?}");
        assert!(
            error.contains("\\u{") && error.len() < 6000,
            "{} bytes",
            error.len()
        );
    };
    for (component, key) in [
        ("unet", "_class_name"),
        ("unet", "act_fn"),
        ("unet", "norm_num_groups"),
        ("vae", "scaling_factor"),
        ("text_encoder", "model_type"),
    ] {
        safe(&|model, folder| {
            model.configs.get_mut(component).unwrap()[key] = (&*evil).into();
            model.write_without_weights(folder);
        });
    }
    let header = |edit: &dyn Fn(&mut serde_json::Value)| {
        safe(&|_, folder| edit_header(&weight_file(folder, "unet"), edit));
    };
    // Names of tensors: a tensor too many, a tensor without its data, a tensor without a shape. The
    // last case is an unknown type.
    header(&|header| {
        header[&evil] = json!({"dtype": "F32", "shape": [0], "data_offsets": [0, 0]});
    });
    header(&|header| {
        header[&evil] = json!({"dtype": "F32", "shape": [9], "data_offsets": [0, 0]});
    });
    header(&|header| header[&evil] = json!({"dtype": "F32"}));
    header(&|header| header["conv_in.bias"]["dtype"] = (&*evil).into());
    let index = |index: serde_json::Value| {
        safe(&|_, folder| {
            let file = weight_file(folder, "unet");
            fs::remove_file(&file).unwrap();
            let path = file.with_extension("safetensors.index.json");
            fs::write(path, index.to_string()).unwrap();
        });
    };
    index(json!({"weight_map": {"a": evil}}));
    index(json!({"weight_map": {"a": format!("../{evil}")}}));
    index(json!({"weight_map": {"a": "\u{1b}[2J\u{202e}.safetensors"}}));
    #[cfg(unix)]
    safe(&|_, folder| {
        let file = weight_file(folder, "unet");
        for i in 0..20 {
            let name = format!("diffusion_pytorch_model.\u{1b}[2J\u{202e}{i}.safetensors");
            fs::copy(&file, file.with_file_name(name)).unwrap();
        }
        fs::remove_file(file).unwrap();
    });
}
