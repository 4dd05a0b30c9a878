//! Graphs that are refused, each with an error that says why.

// A failed `unwrap` fails the test.
#![allow(clippy::unwrap_used)]

mod long;

use std::{
    fs::{self, File},
    path::Path,
};

use prost::Message;
use sd_core::SizeIds;
use sd_text::outside;

use super::{file::OnnxFile, graph_in, layers::Layers, outline, unet};
use crate::graph::proto::{self, DataType};

fn port(name: &str, data_type: DataType, sides: &[i64]) -> proto::ValueInfo {
    let dim = sides.iter().map(|&side| proto::Dimension {
        size: (side > 0).then_some(proto::DimensionSize::Value(side)),
    });
    proto::ValueInfo {
        name: name.into(),
        r#type: Some(proto::Type {
            tensor_type: Some(proto::TensorType {
                elem_type: data_type as i32,
                shape: Some(proto::Shape { dim: dim.collect() }),
            }),
        }),
    }
}

fn node(op: &str, inputs: &[&str], output: &str) -> proto::Node {
    proto::Node {
        op_type: op.into(),
        input: inputs.iter().map(|&name| name.into()).collect(),
        output: vec![output.into()],
        ..Default::default()
    }
}

fn tensor(name: &str, dims: &[i64], bytes: usize) -> proto::Tensor {
    proto::Tensor {
        name: name.into(),
        dims: dims.to_vec(),
        data_type: DataType::Float as i32,
        raw_data: vec![0; bytes],
        ..Default::default()
    }
}

fn external(name: &str, dims: &[i64], pairs: &[(&str, &str)]) -> proto::Tensor {
    let pair = |&(key, value): &(&str, &str)| proto::StringPair {
        key: key.into(),
        value: value.into(),
    };
    proto::Tensor {
        external_data: pairs.iter().map(pair).collect(),
        data_location: proto::DataLocation::External as i32,
        ..tensor(name, dims, 0)
    }
}

/// Returns a model with only the inputs and outputs of a UNet.
fn model() -> proto::Model {
    let float = DataType::Float;
    proto::Model {
        ir_version: 8,
        graph: Some(proto::Graph {
            node: vec![node("Identity", &["sample"], "out_sample")],
            input: vec![
                port("sample", float, &[0, 4, 0, 0]),
                port("timestep", DataType::Int64, &[]),
                port("encoder_hidden_states", float, &[0, 77, 32]),
            ],
            output: vec![port("out_sample", float, &[0, 4, 0, 0])],
            ..Default::default()
        }),
        opset_import: vec![proto::OperatorSet {
            domain: String::new(),
            version: 14,
        }],
        ..Default::default()
    }
}

/// Changes the model, opens it, and returns the error.
fn refused(change: impl FnOnce(&mut proto::Model, &Path)) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    let mut model = model();
    change(&mut model, folder.path());
    fs::write(&path, model.encode_to_vec()).unwrap();
    let error = unet::graph(&path, None, SizeIds::Target).unwrap_err();
    let error = error.to_string();
    assert!(error.contains("model.onnx"), "{error}");
    error
}

fn graph(model: &mut proto::Model) -> &mut proto::Graph {
    model.graph.as_mut().unwrap()
}

#[test]
fn the_model_that_is_changed_below_is_a_good_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    fs::write(&path, model().encode_to_vec()).unwrap();
    let unet = unet::graph(&path, None, SizeIds::Target).unwrap();
    assert_eq!(unet.inputs, sd_core::Inputs::new(4, 32));
    assert_eq!(unet.sample_size, [64, 64]);
}

#[test]
fn what_cannot_be_given_or_run_is_named() {
    let float = DataType::Float;
    let error = refused(|model, _| {
        let input = port("down_block_additional_residuals", float, &[0, 320, 0, 0]);
        graph(model).input.push(input);
    });
    let part = "an input `down_block_additional_residuals`, float [?, 320, ?, ?]";
    assert!(error.contains(part), "{error}");

    let error = refused(|model, _| {
        let mut own = node("FancyNorm", &["sample"], "y");
        own.domain = "com.example".into();
        graph(model).node.push(own);
    });
    assert!(error.contains("com.example::FancyNorm"), "{error}");

    let error = refused(|model, _| model.opset_import[0].version = 9);
    assert!(error.contains("operator set 9, expected 13"), "{error}");

    let error = refused(|model, _| graph(model).input[1] = port("timestep", float, &[1, 1]));
    assert!(error.contains("`timestep` is float [1, 1]"), "{error}");

    let error = refused(|model, _| {
        graph(model).input[0] = port("sample", DataType::BFloat16, &[0, 4, 0, 0]);
    });
    assert!(
        error.contains("`sample` is bfloat16 [?, 4, ?, ?], expected float"),
        "{error}"
    );

    let error = refused(|model, _| {
        graph(model).input[2] = port("encoder_hidden_states", float, &[0, 77, 0]);
    });
    assert!(error.contains("no `cross_attention_dim`"), "{error}");

    let error = refused(|model, _| graph(model).input[0] = port("sample", float, &[0, 7, 0, 0]));
    assert!(
        error.contains("`sample` has 7 channels, expected 4"),
        "{error}"
    );

    let error = refused(|model, _| drop(graph(model).input.remove(1)));
    assert!(error.contains("no input `timestep`"), "{error}");

    let error = refused(|model, _| {
        graph(model).output = ["a", "b"].map(|name| port(name, float, &[])).into();
    });
    assert!(
        error.contains("no output is `out_sample`") && error.contains("a, b"),
        "{error}"
    );
}

#[test]
fn what_would_take_much_memory_is_refused() {
    let error = refused(|model, _| {
        let names = vec![""; 70_000];
        graph(model).node.push(node("Concat", &names, "y"));
    });
    assert!(error.contains("more names in a node"), "{error}");
    let error = refused(|model, _| {
        let more = (0..4097).map(|index| port(&format!("y{index}"), DataType::Float, &[]));
        graph(model).output.extend(more);
    });
    assert!(
        error.contains("4098 outputs, expected at most 4096"),
        "{error}"
    );
    let error = refused(|model, _| graph(model).initializer.push(tensor("w", &[1; 65], 4)));
    assert!(error.contains("more dimensions"), "{error}");
    let error = refused(|model, _| {
        let long = "x".repeat(70_000);
        graph(model).input.push(port(&long, DataType::Float, &[]));
    });
    assert!(error.contains("a description of 7"), "{error}");
}

#[test]
fn weights_must_be_where_the_graph_says() {
    let with = |tensor: proto::Tensor| {
        refused(move |model, folder| {
            fs::write(folder.join("weights.pb"), vec![0; 4096]).unwrap();
            graph(model).initializer.push(tensor);
        })
    };
    for (pairs, part) in [
        (
            &[("location", "gone.bin")][..],
            "`gone.bin`, which cannot be read",
        ),
        (
            &[("location", "../weights.pb")],
            "at `../weights.pb`, expected a file in the folder",
        ),
        (
            &[("location", "/etc/passwd")],
            "at `/etc/passwd`, expected a file in the folder",
        ),
        (
            &[("location", "*/_ORT_MEM_ADDR_/*")],
            "expected a file in the folder",
        ),
        (&[], "at ``, expected a file in the folder"),
        (
            &[("location", "weights.pb"), ("offset", "x")],
            "the offset of its data is \"x\"",
        ),
        (
            &[("location", "weights.pb"), ("offset", "1")],
            "4096 bytes from byte 1 of `weights.pb`, which has 4096",
        ),
        (
            &[("location", "weights.pb"), ("length", "4")],
            "4 bytes of data, expected 4096 for [32, 32]",
        ),
    ] {
        let error = with(external("w", &[32, 32], pairs));
        assert!(
            error.contains("initializer `w`") && error.contains(part),
            "{error}"
        );
    }
    let error = with(tensor("w", &[32, 32], 4095));
    assert!(
        error.contains("4095 bytes of data, expected 4096"),
        "{error}"
    );
    let error = with(tensor("w", &[1 << 40, 1 << 40], 0));
    assert!(
        error.contains("more elements than memory can have"),
        "{error}"
    );
    let error = with(tensor("w", &[-1], 4));
    assert!(error.contains("a negative size"), "{error}");
}

#[test]
fn the_weights_of_a_graph_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    let weights = File::create(folder.path().join("weights.pb")).unwrap();
    weights.set_len(1 << 20).unwrap();
    let at =
        |name: &str, data_type: DataType, dims: &[i64], pairs: &[(&str, &str)]| proto::Tensor {
            data_type: data_type as i32,
            ..external(name, dims, pairs)
        };
    let place = ("location", "weights.pb");
    let mut model = model();
    graph(&mut model).initializer = vec![
        // In the graph, in the file, and beside it with and without a length.
        tensor("short", &[3], 12),
        tensor("long", &[32, 33], 4224),
        at(
            "half",
            DataType::Float16,
            &[512, 8],
            &[place, ("length", "8192")],
        ),
        at(
            "other",
            DataType::Float16,
            &[8, 8],
            &[place, ("offset", "8192")],
        ),
        at("scalar", DataType::Int64, &[], &[place]),
    ];
    fs::write(&path, model.encode_to_vec()).unwrap();
    let found = outline(&path).unwrap();
    assert_eq!(found.tensors, 5);
    assert_eq!(found.parameters, 3 + 1056 + 4096 + 64 + 1);
    assert_eq!(found.bytes, 12 + 4224 + 8192 + 128 + 8);
    let types = [("F16", 2), ("F32", 2), ("I64", 1)].map(|(name, count)| (name.to_owned(), count));
    assert_eq!(found.types, types.into());

    // A graph without weights, and sizes that do not fit in any memory.
    graph(&mut model).initializer.clear();
    fs::write(&path, model.encode_to_vec()).unwrap();
    assert_eq!(outline(&path).unwrap().tensors, 0);
    graph(&mut model).initializer = (0..3)
        .map(|_| proto::Tensor {
            // The type of strings, which have no size.
            data_type: 8,
            ..tensor("w", &[i64::MAX, i64::MAX], 4)
        })
        .collect();
    fs::write(&path, model.encode_to_vec()).unwrap();
    assert_eq!(outline(&path).unwrap().parameters, u64::MAX);
}

#[test]
fn files_that_are_no_graphs() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    let open = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        outside::chain(&OnnxFile::open(&path).unwrap_err())
    };
    let whole = model().encode_to_vec();
    let error = open(&whole[..whole.len() / 2]);
    assert!(error.contains("not an ONNX file: byte"), "{error}");
    // Any truncated or changed file gives an error or a graph, but never a panic.
    for length in 1..whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        let _ = unet::graph(&path, None, SizeIds::Target);
        let mut changed = whole.clone();
        changed[length] ^= 0xff;
        fs::write(&path, changed).unwrap();
        let _ = unet::graph(&path, None, SizeIds::Target);
    }
    let error = open(&[&whole[..], &whole].concat());
    assert!(error.contains("a second graph"), "{error}");
    let error = open(b"\x08\x08");
    assert!(error.contains("it has no graph"), "{error}");
    let error = open(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n");
    assert!(error.contains("Git LFS"), "{error}");
    // A sparse file, which takes no space on the disk.
    File::create(&path).unwrap().set_len((1 << 31) + 1).unwrap();
    let error = outside::chain(&OnnxFile::open(&path).unwrap_err());
    assert!(
        error.contains("2147483649 bytes long, but an ONNX file has at most 2147483647"),
        "{error}"
    );
}

#[test]
fn the_graph_of_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let touch = |name: &str| fs::write(folder.join(name), "x").unwrap();
    assert_eq!(graph_in(folder).unwrap(), None);
    touch("one.onnx");
    assert_eq!(graph_in(folder).unwrap().unwrap(), folder.join("one.onnx"));
    touch("two.onnx");
    let error = graph_in(folder).unwrap_err().to_string();
    assert!(error.contains("one.onnx, two.onnx"), "{error}");
    touch("model.onnx");
    assert_eq!(
        graph_in(folder).unwrap().unwrap(),
        folder.join("model.onnx")
    );
    // Weights take precedence over graphs.
    touch("diffusion_pytorch_model.safetensors");
    assert_eq!(graph_in(folder).unwrap(), None);
}

/// Returns the layers found in a graph with these nodes, or the reason why there are none.
fn layers(nodes: Vec<proto::Node>) -> Result<Vec<String>, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    let mut model = model();
    let graph = graph(&mut model);
    graph.node = nodes;
    graph.initializer = ["w", "g", "b"].map(|name| tensor(name, &[1], 4)).into();
    fs::write(&path, model.encode_to_vec()).unwrap();
    let file = OnnxFile::open(&path).unwrap();
    let found = Layers::find(&file, "last")?;
    Ok(found.states.iter().map(|&state| state.to_owned()).collect())
}

/// Returns two layers of a minimal text model, and the final norm.
fn text_model() -> Vec<proto::Node> {
    vec![
        node("Gather", &["w", "ids"], "tokens"),
        node("Gather", &["w", "places"], "positions"),
        node("Add", &["tokens", "positions"], "x0"),
        node("LayerNormalization", &["x0", "g", "b"], "n0"),
        node("Softmax", &["n0"], "s0"),
        node("MatMul", &["s0", "w"], "a0"),
        node("Add", &["x0", "a0"], "y0"),
        node("MatMul", &["y0", "w"], "m0"),
        node("Add", &["b", "m0"], "f0"),
        node("Add", &["y0", "f0"], "x1"),
        node("Softmax", &["x1"], "s1"),
        node("MatMul", &["s1", "w"], "a1"),
        // The branch can be the first operand.
        node("Add", &["a1", "x1"], "y1"),
        node("MatMul", &["y1", "w"], "f1"),
        node("Add", &["f1", "y1"], "x2"),
        node("LayerNormalization", &["x2", "g", "b"], "last"),
    ]
}

#[test]
fn layers_are_found_by_their_structure_or_not_at_all() {
    assert_eq!(layers(text_model()).unwrap(), ["x2", "x1"]);

    let mut fused = text_model();
    fused[15] = node("SkipLayerNormalization", &["f1", "y1", "g", "b"], "last");
    fused[15].domain = "com.microsoft".into();
    assert!(layers(fused).unwrap_err().contains("fused by an optimiser"));

    // A graph that does not end with a norm.
    let mut other = text_model();
    other[15] = node("Relu", &["x2"], "last");
    assert!(layers(other).unwrap_err().contains("but of Relu"));

    // Two attentions in a row.
    let mut odd = text_model();
    odd[13] = node("Softmax", &["y1"], "f1");
    assert!(layers(odd).unwrap_err().contains("feed-forward"));

    // A norm in the residual stream: post-norm layers are another network.
    let mut post = text_model();
    post[15].input[0] = "normed".into();
    post.insert(15, node("LayerNormalization", &["x2", "g", "b"], "normed"));
    assert!(
        layers(post)
            .unwrap_err()
            .contains("not follow a layer's residual sum, but LayerNormalization")
    );

    // A cycle must not cause an endless loop.
    let circle = vec![node("Cast", &["last"], "a"), node("Cast", &["a"], "last")];
    assert!(layers(circle).is_err());
}
