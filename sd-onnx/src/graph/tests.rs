//! Tests of graphs over weights in several places, which run on ONNX Runtime.

// A failed `unwrap` fails the test.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    sync::Arc,
};

use half::bf16;
use ndarray::{Array2, Array4};
use prost::Message;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use sd_core::{LatentCodec, StopToken};
use sd_schedulers::{NoiseSource, noise::TorchRng};

use super::{BLOCKED, Conv, Dialect, Dim, Graph, Model, Values, proto};
use crate::{
    Error,
    config::{Config, MOST_CONFIG},
    engine::{Engine, Settings},
    models::{
        clip_text::{self, ClipTextConfig},
        vae::VaeConfig,
    },
    parts::OnnxCodec,
    session::{Input, Session},
    tiles::VaeTiling,
    weights::{Place, Type, Weights},
};

/// Returns the configuration and the weight file of a component of the small trained model that
/// ships with the examples.
fn emoji(component: &str, file: &str) -> (Config, PathBuf) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = root.join("../examples/models/emoji").join(component);
    let config = Config::open(&folder.join("config.json"), MOST_CONFIG).unwrap();
    (config, folder.join(file))
}

fn engine() -> Engine {
    let settings = Settings {
        threads: 1,
        ..Settings::default()
    };
    Engine::new(settings).unwrap()
}

/// Returns the names of the initializers that are stored tensors. All others have generated names.
fn stored(model: &Model) -> Vec<String> {
    let graph = proto::Model::decode(&model.bytes[..]).unwrap().graph;
    let names = graph.unwrap().initializer.into_iter().map(|it| it.name);
    let is_value = |name: &str| name[1..].parse::<usize>().is_ok();
    names.filter(|name| !is_value(name)).collect()
}

#[test]
fn a_tensor_in_memory_takes_the_place_of_one_in_a_file() {
    const NAME: &str = "decoder.conv_in.weight";
    let (config, path) = emoji("vae", "diffusion_pytorch_model.safetensors");
    let config = VaeConfig::new(&config).unwrap();
    let engine = engine();
    let latents = Array4::from_shape_fn((1, config.latent_channels, 2, 3), |(_, c, y, x)| {
        c as f32 - y as f32 * 0.5 + x as f32
    });
    let decoded = |change: Option<fn(&mut [u8])>| {
        let mut weights = Weights::open(&path).unwrap();
        if let Some(change) = change {
            let shape = weights.shape(NAME).unwrap().to_vec();
            let tensor = weights.tensor(NAME, &shape).unwrap();
            let Place::File {
                path,
                offset,
                length,
            } = &tensor.place
            else {
                panic!("the tensor is in a file")
            };
            let mut bytes = vec![0; *length as usize];
            let mut file = File::open(path).unwrap();
            file.seek(SeekFrom::Start(*offset)).unwrap();
            file.read_exact(&mut bytes).unwrap();
            change(&mut bytes);
            let dtype = tensor.dtype;
            weights.put(NAME, dtype, &shape, bytes.into()).unwrap();
        }
        let codec = OnnxCodec::new(config.clone(), weights, VaeTiling::Never, &engine).unwrap();
        codec.decode(latents.view(), &StopToken::new()).unwrap()
    };
    let from_file = decoded(None);
    assert_eq!(decoded(Some(|_| {})), from_file);
    assert_ne!(decoded(Some(|bytes| bytes.fill(0))), from_file);
}

#[test]
fn a_tensor_in_memory_has_the_length_of_its_shape() {
    let (_, path) = emoji("vae", "diffusion_pytorch_model.safetensors");
    let mut weights = Weights::open(&path).unwrap();
    let error = weights.put("conv", Type::F32, &[2, 3], vec![0; 23].into());
    let error = error.unwrap_err();
    assert!(matches!(error, Error::Checkpoint { .. }));
    let error = error.to_string();
    assert!(
        error.contains("`conv` has 23 bytes of data, which does not fit its shape [2, 3] of F32"),
        "{error}"
    );
}

/// The name, the shape and the bytes of a tensor.
type Stored = (&'static str, Vec<usize>, Arc<[u8]>);

/// Returns `layer.weight` `[2, 2]` and `layer.bias` `[2]`.
fn layer(values: [f32; 6]) -> [Stored; 2] {
    let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let (weight, bias) = values.split_at(4);
    [
        ("layer.weight", vec![2, 2], bytes(weight)),
        ("layer.bias", vec![2], bytes(bias)),
    ]
}

#[test]
fn a_graph_over_weights_in_two_folders_and_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    let layers = [
        [1.0, 2.0, 3.0, 4.0, 0.5, -0.5],
        [0.0, 1.0, 1.0, 0.0, 10.0, 20.0],
    ];
    let [mut first, mut second] = [(0, "a/first"), (1, "b/c/second")].map(|(i, file)| {
        let path = folder.path().join(format!("{file}.safetensors"));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let layer = layer(layers[i]);
        let views = layer.iter().map(|(name, shape, bytes)| {
            (
                name,
                TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap(),
            )
        });
        safetensors::serialize_to_file(views, None, &path).unwrap();
        Weights::open(&path).unwrap()
    });
    let engine = engine();
    let check = |first: &Weights, second: &Weights, root: &Path| {
        let mut g = Graph::new("two", first, Dialect::default());
        let x = g.input("x", &[Dim::Fixed(1), Dim::Fixed(2)]);
        let x = g.linear(x, "layer", 2, 2).unwrap();
        let x = g
            .over("other", second, |g| g.linear(x, "layer", 2, 2))
            .unwrap();
        // Uses the first weights again.
        let x = g.linear(x, "layer", 2, 2).unwrap();
        g.output("y", x, &[Dim::Fixed(1), Dim::Fixed(2)]);
        let model = g.finish().unwrap();
        let expected = [
            "layer.weight",
            "layer.bias",
            "other/layer.weight",
            "other/layer.bias",
        ];
        assert_eq!(stored(&model), expected);
        assert_eq!(model.weights_root, root);
        let session = Session::new("two", &model, &engine).unwrap();
        let inputs = [("x", Input::F32(&[1, 2], &[1.0, 1.0]))];
        let y = session.run(&inputs, &StopToken::new(), |_, y| y.to_vec());
        assert_eq!(y.unwrap(), [64.0, 143.0]);
    };
    let root = folder.path().canonicalize().unwrap();
    check(&first, &second, &root);
    let put = |weights: &mut Weights, values| {
        for (name, shape, bytes) in layer(values) {
            weights.put(name, Type::F32, &shape, bytes).unwrap();
        }
    };
    put(&mut second, layers[1]);
    check(&first, &second, &root.join("a"));
    put(&mut first, layers[0]);
    check(&first, &second, Path::new(""));
}

#[test]
fn much_memory_lies_beside_the_graph() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("first.safetensors");
    let stored = layer([1.0, 2.0, 3.0, 4.0, 0.5, -0.5]);
    let views = stored.iter().map(|(name, shape, bytes)| {
        (
            name,
            TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap(),
        )
    });
    safetensors::serialize_to_file(views, None, &path).unwrap();
    let mut weights = Weights::open(&path).unwrap();
    let [(name, shape, _), _] = stored;
    let bytes = layer([0.0, 1.0, 1.0, 0.0, 0.0, 0.0])[0].2.clone();
    weights.put(name, Type::F32, &shape, bytes).unwrap();
    let engine = engine();
    for (most, beside) in [(15, 2), (16, 0)] {
        let mut g = Graph::new("one", &weights, Dialect::default());
        let x = g.input("x", &[Dim::Fixed(1), Dim::Fixed(2)]);
        let x = g.linear(x, "layer", 2, 2).unwrap();
        g.output("y", x, &[Dim::Fixed(1), Dim::Fixed(2)]);
        let model = g.finish_with(most).unwrap();
        // The tensor in the file is read into memory as well.
        assert_eq!(model.memory.len(), beside);
        let session = Session::new("one", &model, &engine).unwrap();
        // The session has a copy of the model.
        drop(model);
        let inputs = [("x", Input::F32(&[1, 2], &[1.0, 3.0]))];
        let y = session.run(&inputs, &StopToken::new(), |_, y| y.to_vec());
        assert_eq!(y.unwrap(), [3.5, 0.5]);
    }
}

/// Checks every code of the 8-bit types against torch's values, without a scale and with one.
#[test]
fn types_of_8_bits_have_the_values_of_torch() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let golden = fs::read(golden.join("number_types.safetensors")).unwrap();
    let golden = SafeTensors::deserialize(&golden).unwrap();
    let codes: Vec<u8> = (0..=255).collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let engine = engine();
    for (dtype, name) in [(Dtype::F8_E4M3, "f8_e4m3fn"), (Dtype::F8_E5M2, "f8_e5m2")] {
        for (scale, expected) in [
            (None, name.to_owned()),
            (Some("scale"), format!("{name}.scaled")),
            (Some("rows"), format!("{name}.rows")),
        ] {
            let mut views = vec![(
                "a.weight",
                TensorView::new(dtype, vec![16, 16], &codes).unwrap(),
            )];
            if let Some(scale) = scale {
                views.push(("a.weight_scale", golden.tensor(scale).unwrap()));
            }
            safetensors::serialize_to_file(views, None, &path).unwrap();
            let weights = Weights::open(&path).unwrap();
            let sides = [Dim::Fixed(16), Dim::Fixed(16)];
            let mut g = Graph::new("values", &weights, Dialect::default());
            let x = g.input("x", &sides);
            let weight = g.weight("a.weight", &[16, 16]).unwrap();
            let y = g.mul(x, weight);
            g.output("y", y, &sides);
            let model = g.finish().unwrap();
            assert_eq!(model.has_scales, scale.is_some());
            let session = Session::new("values", &model, &engine).unwrap();
            let inputs = [("x", Input::F32(&[16, 16], &[1.0; 256]))];
            let found = session.run(&inputs, &StopToken::new(), |_, y| y.to_vec());
            let expected = golden.tensor(&expected).unwrap();
            let (expected, _) = expected.data().as_chunks::<4>();
            for (code, (&expected, found)) in expected.iter().zip(found.unwrap()).enumerate() {
                let expected = f32::from_le_bytes(expected);
                let is_equal = found.to_bits() == expected.to_bits();
                assert!(
                    is_equal || (found.is_nan() && expected.is_nan()),
                    "{dtype:?} {scale:?} {code:#x}: {found}, expected {expected}"
                );
            }
        }
    }
}

#[test]
fn initializers_have_the_names_of_their_tensors() {
    let (config, path) = emoji("text_encoder", "model.safetensors");
    let config = ClipTextConfig::new(config).unwrap();
    let weights = Weights::open(&path).unwrap();
    let model = clip_text::graph(
        &config,
        &weights,
        Array2::zeros((0, 0)).view(),
        Dialect::default(),
    )
    .unwrap();
    let names = stored(&model);
    let unique: BTreeSet<&str> = names.iter().map(String::as_str).collect();
    // The graph uses the final norm after each layer.
    assert!(config.layers > 1);
    assert_eq!(unique.len(), names.len());
    let file = fs::read(&path).unwrap();
    let file = SafeTensors::deserialize(&file).unwrap();
    let mut expected: BTreeSet<&str> = file.names().into_iter().collect();
    expected.retain(|name| !name.ends_with("position_ids"));
    let expected = expected
        .into_iter()
        .map(|name| name.trim_start_matches("text_model."));
    assert_eq!(unique, expected.collect());
}

/// Checks that for a bf16 graph, weights of other types are rounded into a file, which exists until
/// the model is dropped.
#[test]
fn weights_become_bf16_in_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let halves: Vec<u8> = [1.0, -0.333_251_95, 65504.0, 6e-8]
        .iter()
        .flat_map(|&value| half::f16::from_f32(value).to_le_bytes())
        .collect();
    // The values 1, 2, -2 and 448 in f8_e4m3fn.
    let eighths = [0x38, 0x40, 0xc0, 0x7e];
    let scales: Vec<u8> = [0.5_f32, 3.0]
        .iter()
        .flat_map(|s| s.to_le_bytes())
        .collect();
    let brains: Vec<u8> = [7.0, -0.1, 1e30, 0.0]
        .iter()
        .flat_map(|&value| bf16::from_f32(value).to_le_bytes())
        .collect();
    let view = |dtype, shape: &[usize], bytes| TensorView::new(dtype, shape.into(), bytes).unwrap();
    let tensors = [
        ("a.weight", view(Dtype::F16, &[2, 2], &halves)),
        ("b.weight", view(Dtype::F8_E4M3, &[2, 2], &eighths)),
        ("b.weight_scale", view(Dtype::F32, &[2, 1], &scales)),
        ("c.weight", view(Dtype::BF16, &[2, 2], &brains)),
    ];
    safetensors::serialize_to_file(tensors, None, &path).unwrap();
    let weights = Weights::open(&path).unwrap();
    let dialect = Dialect {
        values: Values::Bf16,
        ..Dialect::default()
    };
    let mut g = Graph::new("brains", &weights, dialect);
    let mut x = g.input("x", &[Dim::Fixed(2), Dim::Fixed(2)]);
    for name in ["a.weight", "b.weight", "c.weight"] {
        let weight = g.weight(name, &[2, 2]).unwrap();
        x = g.add(x, weight);
    }
    g.output("y", x, &[Dim::Fixed(2), Dim::Fixed(2)]);
    let model = g.finish().unwrap();
    assert!(!model.has_scales);
    let graph = proto::Model::decode(&*model.bytes).unwrap().graph.unwrap();
    let mut files = BTreeSet::new();
    let mut found = Vec::new();
    for initializer in &graph.initializer {
        assert_eq!(initializer.data_type, proto::DataType::BFloat16 as i32);
        let value = |key: &str| {
            let pairs = &initializer.external_data;
            let pair = pairs.iter().find(|pair| pair.key == key).unwrap();
            pair.value.clone()
        };
        let file = model.weights_root.join(value("location"));
        let bytes = fs::read(&file).unwrap();
        let (offset, length): (usize, usize) = (
            value("offset").parse().unwrap(),
            value("length").parse().unwrap(),
        );
        let (numbers, _) = bytes[offset..offset + length].as_chunks();
        found.extend(numbers.iter().map(|&b| bf16::from_le_bytes(b).to_f32()));
        files.insert(file);
    }
    let expected = [
        1.0,
        -0.333_984_38,
        65536.0,
        5.960_464_5e-8,
        0.5,
        1.0,
        -6.0,
        1344.0,
        7.0,
        -0.100_097_656,
        bf16::from_f32(1e30).to_f32(),
        0.0,
    ];
    assert_eq!(found, expected);
    // The user's file, which still holds `c.weight`, and the temporary file.
    assert_eq!(files.len(), 2);
    drop(model);
    assert_eq!(files.iter().filter(|file| file.exists()).count(), 1);
    assert!(path.exists());
}

/// Writes two convolutions of 16 channels, the sum of the second and the input, and a third
/// convolution of that sum.
fn convolutions(weights: &Weights, dialect: Dialect) -> Graph<'_> {
    let mut g = Graph::new("convolutions", weights, dialect);
    let dims = ["batch", "height", "width"].map(Dim::Any);
    let dims = [dims[0], Dim::Fixed(16), dims[1], dims[2]];
    let x = g.input("x", &dims);
    let sides = Conv {
        stride: 2,
        ..Conv::SAME
    };
    let first = g.conv2d(x, "c", [16, 16], Conv::SAME).unwrap();
    let second = g.conv2d(first, "d", [16, 16], Conv::SAME).unwrap();
    // The input exists in blocked form, because a convolution has read it.
    let sum = g.add(x, second);
    let third = g.conv2d_without_bias(sum, "e", [16, 16], sides).unwrap();
    g.output("sum", sum, &dims);
    g.output("third", third, &dims);
    g
}

#[test]
fn convolutions_over_blocks_equal_plain_ones() {
    let engine = engine();
    let Some(block) = engine.dialect().channel_block else {
        eprintln!("SKIPPED: this processor has no convolutions over blocks");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let mut noise = TorchRng::new(3);
    let mut normal = |count: usize| {
        let mut values = vec![0.0; count];
        noise.fill(&mut values);
        values
    };
    let filters = normal(16 * 16 * 9);
    let halves: Vec<u8> = filters
        .iter()
        .flat_map(|&v| half::f16::from_f32(v).to_le_bytes())
        .collect();
    let floats =
        |values: &[f32]| -> Vec<u8> { values.iter().flat_map(|v| v.to_le_bytes()).collect() };
    // 8-bit values: any bit pattern except NaN.
    let eighths: Vec<u8> = (0..16 * 16 * 9).map(|n| (n % 126) as u8).collect();
    let (plain, bias, scales) = (floats(&filters), floats(&normal(16)), floats(&normal(16)));
    let view = |dtype, shape: &[usize], bytes| TensorView::new(dtype, shape.into(), bytes).unwrap();
    let shape = [16, 16, 3, 3];
    let tensors = [
        ("c.weight", view(Dtype::F16, &shape, &halves)),
        ("c.bias", view(Dtype::F32, &[16], &bias)),
        ("d.weight", view(Dtype::F8_E4M3, &shape, &eighths)),
        ("d.weight_scale", view(Dtype::F32, &[16, 1, 1, 1], &scales)),
        ("d.bias", view(Dtype::F32, &[16], &bias)),
        ("e.weight", view(Dtype::F32, &shape, &plain)),
    ];
    safetensors::serialize_to_file(tensors, None, &path).unwrap();
    let mut weights = Weights::open(&path).unwrap();
    let bias = normal(16);
    let bytes = floats(&bias).into();
    weights.put("c.bias", Type::F32, &[16], bytes).unwrap();
    let x = normal(2 * 16 * 5 * 7);
    let run = |dialect, most_within| {
        let model = convolutions(&weights, dialect);
        let model = model.finish_with(most_within).unwrap();
        let session = Session::new("convolutions", &model, &engine).unwrap();
        let inputs = [("x", Input::F32(&[2, 16, 5, 7], &x))];
        let outputs = session.run_for(&inputs, &["sum", "third"]).unwrap();
        (model, outputs)
    };
    let (plain, expected) = run(Dialect::default(), 1 << 20);
    let (blocked, found) = run(engine.dialect(), 1 << 20);
    // With a weight in memory that is too large for the graph, all weights are read into memory.
    let (_, beside) = run(engine.dialect(), 0);
    let pairs = expected.iter().zip(&found);
    for (expected, found) in pairs.chain(expected.iter().zip(&beside)) {
        let largest = expected.iter().fold(0.0_f32, |most, v| most.max(v.abs()));
        let error = (expected - found).fold(0.0_f32, |most, v| most.max(v.abs()));
        assert!(error <= 1e-5 * largest, "{error} of {largest}");
    }
    // All three convolutions are blocked, and the second one contains the sum.
    let nodes = |model: &Model| {
        let graph = proto::Model::decode(&*model.bytes).unwrap().graph.unwrap();
        let nodes = graph.node.into_iter();
        let nodes = nodes.filter(|node| node.domain == BLOCKED || node.op_type == "Add");
        nodes.map(|node| node.op_type).collect::<Vec<_>>()
    };
    assert!(nodes(&plain).is_empty() || nodes(&plain) == ["Add"]);
    let written = [
        "ReorderInput",
        "Conv",
        "Conv",
        "Conv",
        "ReorderOutput",
        "ReorderOutput",
    ];
    assert_eq!(nodes(&blocked), written);
    // This test can fail: with the other processor's number of channels, 8 or 16, the output is
    // wrong.
    let other = Dialect {
        channel_block: Some(24 - block),
        ..Dialect::default()
    };
    let (_, wrong) = run(other, 1 << 20);
    assert!((&wrong[1] - &expected[1]).iter().any(|v| v.abs() > 1.0));
}
