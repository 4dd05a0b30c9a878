//! Graphs with many more nodes than any model has. Reading them must take linear time.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use ndarray::Array2;
use prost::Message;
use sd_core::SizeIds;
use serde_json::json;

use super::{graph, model, node, port, tensor};
use crate::{
    config::Config,
    exported::{TextFile, file::OnnxFile, layers::Layers, unet, vae, wire::put},
    graph::proto::{self, DataType},
    models::vae::VaeConfig,
};

/// With quadratic work, a test would take minutes.
const NODES: usize = 200_000;
/// Far longer than the tests take, even on a slow and busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// Runs a function and checks that it did not hang.
fn in_time<T>(what: &str, run: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = run();
    let time = start.elapsed();
    println!("{what}: {time:?}");
    assert!(time < LIMIT, "{what}: {time:?}");
    result
}

/// Returns a chain of `count` nodes that change nothing.
fn chain(from: &str, to: &str, count: usize) -> Vec<proto::Node> {
    let name = |index: usize| match index {
        0 => from.to_owned(),
        index if index == count => to.to_owned(),
        index => format!("{from}>{index}"),
    };
    let nodes = 0..count;
    nodes
        .map(|index| node("Identity", &[&name(index)], &name(index + 1)))
        .collect()
}

/// Inserts a chain between `value` and the nodes that read it.
fn delayed(nodes: &mut Vec<proto::Node>, value: &str, count: usize) {
    let reads = |node: &proto::Node| node.input.iter().any(|name| name == value);
    let place = nodes.iter().position(reads).unwrap();
    let late = format!("late {value}");
    for node in &mut nodes[place..] {
        for name in node.input.iter_mut().filter(|name| *name == value) {
            name.clone_from(&late);
        }
    }
    nodes.splice(place..place, chain(value, &late, count));
}

/// Returns a text model whose feed-forward networks have `inner` additional nodes each.
fn text_nodes(layers: usize, inner: usize) -> Vec<proto::Node> {
    let mut nodes = vec![node("Gather", &["w", "input_ids"], "x0")];
    for layer in 0..layers {
        let name = |kind: &str| format!("{kind}{layer}");
        let (x, y, next) = (name("x"), name("y"), format!("x{}", layer + 1));
        nodes.push(node("Softmax", &[&x], &name("s")));
        nodes.push(node("Add", &[&x, &name("s")], &y));
        nodes.push(node("MatMul", &[&y, "w"], &name("m")));
        let relu = |mut node: proto::Node| {
            node.op_type = "Relu".into();
            node
        };
        nodes.extend(chain(&name("m"), &name("f"), inner).into_iter().map(relu));
        nodes.push(node("Add", &[&y, &name("f")], &next));
    }
    let last = format!("x{layers}");
    nodes.push(node("LayerNormalization", &[&last, "g", "b"], "normed"));
    nodes.push(node("Identity", &["normed"], "last_hidden_state"));
    nodes
}

fn write(folder: &Path, model: &proto::Model) -> PathBuf {
    let path = folder.join("model.onnx");
    fs::write(&path, model.encode_to_vec()).unwrap();
    path
}

fn text_model(folder: &Path, nodes: Vec<proto::Node>) -> PathBuf {
    let float = DataType::Float;
    let mut model = model();
    let graph = graph(&mut model);
    graph.node = nodes;
    graph.input = vec![port("input_ids", DataType::Int64, &[0, 77])];
    graph.output = vec![port("last_hidden_state", float, &[0, 77, 4])];
    graph.initializer = vec![
        tensor("w", &[8, 4], 128),
        tensor("g", &[4], 16),
        tensor("b", &[4], 16),
    ];
    write(folder, &model)
}

/// Reads a text model, with one more row for its token embedding, and checks that clip skip 2 is
/// available. Returns the reason if it is not.
fn read_text(nodes: Vec<proto::Node>) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    let path = text_model(folder.path(), nodes);
    let file = TextFile::open(&path, None, false).unwrap();
    let graph = file.graph(Array2::zeros((1, 4)).view()).unwrap();
    graph.check("clip_skip_1").unwrap();
    graph
        .check("clip_skip_2")
        .map_err(|error| error.to_string())
}

#[test]
fn a_text_model_with_long_chains() {
    let mut nodes = text_nodes(2, 1);
    delayed(&mut nodes, "input_ids", NODES);
    for value in ["x0", "y0", "m0", "x1"] {
        delayed(&mut nodes, value, NODES / 4);
    }
    in_time("chains", || read_text(nodes)).unwrap();
    // The norm is copied for each layer, so a long one is refused.
    for value in ["x2", "normed"] {
        let mut nodes = text_nodes(2, 1);
        delayed(&mut nodes, value, NODES / 2);
        let error = in_time(value, || read_text(nodes)).unwrap_err();
        let part = "the final layer norm has 100002 nodes, expected at most 64";
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn many_layers_of_many_nodes() {
    let folder = tempfile::tempdir().unwrap();
    let path = text_model(folder.path(), text_nodes(200, NODES / 200));
    in_time("layers", || {
        let file = OnnxFile::open(&path).unwrap();
        let layers = Layers::find(&file, "last_hidden_state").unwrap();
        assert_eq!(layers.states.len(), 200);
        assert_eq!(layers.states[..2], ["x200", "x199"]);
    });
}

#[test]
fn a_unet_and_functions_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let mut model = model();
    let mut nodes = chain("sample", "out_sample", NODES);
    for node in &mut nodes {
        node.domain = "own".into();
    }
    graph(&mut model).node = nodes;
    let mut bytes = model.encode_to_vec();
    for index in 0..4000 {
        let mut function = Vec::new();
        let name = match index {
            3999 => "Identity".to_owned(),
            index => format!("Identity{index}"),
        };
        put(&mut function, 1, name.as_bytes());
        put(&mut function, 10, b"own");
        put(&mut bytes, 25, &function);
    }
    let path = folder.path().join("model.onnx");
    fs::write(&path, bytes).unwrap();
    in_time("functions", || {
        unet::graph(&path, None, SizeIds::Target).unwrap()
    });
}

#[test]
fn an_encoder_that_draws_late() {
    let folder = tempfile::tempdir().unwrap();
    let float = DataType::Float;
    let mut model = model();
    let graph = graph(&mut model);
    graph.node = vec![
        node("Relu", &["image"], "mean"),
        node("Exp", &["image"], "deviation"),
        node("RandomNormalLike", &["mean"], "noise"),
        node("Mul", &["deviation", "noise"], "product"),
        node("Add", &["mean", "product"], "sum"),
        node("Identity", &["sum"], "latents"),
    ];
    for value in ["noise", "product", "sum"] {
        delayed(&mut graph.node, value, NODES / 3);
    }
    graph.input = vec![port("image", float, &[0, 3, 0, 0])];
    graph.output = vec![port("latents", float, &[0, 4, 0, 0])];
    let path = write(folder.path(), &model);
    let config = Config::parse(&path, &json!({}).to_string()).unwrap();
    let config = VaeConfig::new(&config).unwrap();
    let half = in_time("encoder", || vae::encoder(&path, &config).unwrap());
    // The rewritten graph returns the mean and the log-variance.
    let model = proto::Model::decode(&half.model.bytes[..]).unwrap();
    let nodes = model.graph.unwrap().node;
    let made: HashMap<_, _> = nodes.iter().map(|node| (&*node.output[0], node)).collect();
    let before = |node: &proto::Node, index: usize| made[&*node.input[index]].clone();
    let moments = before(&before(made["moments"], 0), 0);
    assert_eq!(moments.op_type, "Concat");
    assert_eq!(before(&moments, 0).input, ["mean"]);
    let logarithm = before(&before(&moments, 1), 0);
    assert_eq!(before(&logarithm, 0).input, ["deviation"]);
}
