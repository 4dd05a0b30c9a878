//! An autoencoder that another tool exported, with the inputs and outputs of
//! [`vae`](crate::models::vae).

use std::path::Path;

use prost::Message;
use sd_text::outside::printable;
use serde_json::json;

use super::{
    adapter::{Adapter, At, Limits, check_type, dims, int},
    file::{Node, OnnxFile, Port},
    flow::{Flow, is_renaming},
    text::FLOATS,
};
use crate::{
    Error,
    config::{Config, SIZE},
    graph::{
        Model,
        proto::{self, DataType},
    },
    models::vae::VaeConfig,
};

/// The smallest log-variance in diffusers' `DiagonalGaussianDistribution`. It stands for no
/// variance.
const NO_VARIANCE: f32 = -30.0;
/// Operators that draw noise.
const RANDOM: [&str; 2] = ["RandomNormalLike", "RandomNormal"];

/// The encoder or decoder of an autoencoder.
#[derive(Debug)]
pub(crate) struct VaeGraph {
    pub model: Model,
    pub limits: Limits,
}

/// Returns the configuration of an autoencoder, from its `config.json`. If there is none, it is
/// inferred from the decoder's graph at `path` and from the family.
pub(crate) fn config(path: &Path, config: Option<Config>, is_xl: bool) -> Result<VaeConfig, Error> {
    if let Some(config) = config {
        return VaeConfig::new(&config);
    }
    let file = OnnxFile::open(path)?;
    let (latents, _) = ends(&file)?;
    let scale = if is_xl { 0.13025 } else { 0.18215 };
    // A decoder has one upsampling node for each doubling of the picture.
    let doubles = |node: &&Node| matches!(node.op.as_str(), "Resize" | "Upsample");
    let levels = match file.nodes.iter().filter(doubles).count() {
        count @ 1..=5 => count,
        _ => 3,
    };
    tracing::info!(
        file = %printable(path.display()),
        "no config.json gives the scaling of the latents: assuming a factor of {scale}, and {} \
         pixels per latent",
        1 << levels
    );
    let json = json!({
        "latent_channels": latents.fixed(1).filter(|it| SIZE.contains(it)).unwrap_or(4),
        "scaling_factor": scale,
        "block_out_channels": vec![32; levels + 1],
        "down_block_types": vec!["DownEncoderBlock2D"; levels + 1],
        "up_block_types": vec!["UpDecoderBlock2D"; levels + 1],
    });
    VaeConfig::new(&Config::parse(path, &json.to_string())?)
}

/// Reads the file of a decoder.
pub(crate) fn decoder(path: &Path, config: &VaeConfig) -> Result<VaeGraph, Error> {
    let file = OnnxFile::open(path)?;
    let (latents, image) = ends(&file)?;
    check_channels(&file, latents, config.latent_channels)?;
    check_channels(&file, image, 3)?;
    let mut half = Half::new(&file);
    half.feed(latents, "latents")?;
    half.graph.output("image", &image.name);
    half.finish()
}

/// Reads the file of an encoder. An encoder that draws its latents is changed to return their mean
/// and log-variance, because the caller provides the noise.
pub(crate) fn encoder(path: &Path, config: &VaeConfig) -> Result<VaeGraph, Error> {
    let file = OnnxFile::open(path)?;
    let (image, latents) = ends(&file)?;
    check_channels(&file, image, 3)?;
    let mut half = Half::new(&file);
    half.feed(image, "image")?;
    let channels = config.latent_channels;
    let is_sample = match latents.fixed(1) {
        Some(found) if found == channels => true,
        Some(found) if found == 2 * channels && config.is_variational() => false,
        Some(_) => {
            let expected = match config.is_variational() {
                true => format!(
                    "{channels} channels, or {} with their variance",
                    2 * channels
                ),
                false => format!("{channels} channels"),
            };
            let problem = format!(
                "`{}` is {}, expected {expected}",
                printable(&latents.name),
                latents.shown()
            );
            return Err(file.wrong(problem));
        }
        None => latents.name != "latent_parameters",
    };
    let moments = match (is_sample && config.is_variational(), &random(&file)[..]) {
        (false, []) => latents.name.clone(),
        (true, []) => half.without_variance(&latents.name),
        (true, &[place]) => half.drawn(latents, place)?,
        (_, random) => {
            let problem = format!(
                "the graph draws noise in {} places, expected one, which draws the latents",
                random.len()
            );
            return Err(file.wrong(problem));
        }
    };
    half.graph.output("moments", &moments);
    half.finish()
}

struct Half<'f> {
    graph: Adapter<'f>,
    limits: Limits,
}

impl<'f> Half<'f> {
    fn new(file: &'f OnnxFile) -> Self {
        Self {
            graph: Adapter::new(file),
            limits: Limits::new(file),
        }
    }

    fn feed(&mut self, port: &Port, name: &'static str) -> Result<(), Error> {
        let file = self.graph.file;
        let sides = dims(file, port, 4)?;
        self.limits.add(name, &sides);
        let value = self.graph.input(name, DataType::Float, &sides);
        self.graph.feed(port, &value);
        self.graph.feed_return_dict()
    }

    fn finish(self) -> Result<VaeGraph, Error> {
        Ok(VaeGraph {
            model: self.graph.finish()?,
            limits: self.limits,
        })
    }

    /// Returns moments of latents that are not drawn, with no variance.
    fn without_variance(&mut self, latents: &str) -> String {
        let graph = &mut self.graph;
        let mean = as_f32(graph, latents);
        let zeros = graph.node(At::End, "Sub", &[&mean, &mean], &[]);
        let least = graph.numbers(&[NO_VARIANCE], &[]);
        let variance = graph.node(At::End, "Add", &[&zeros, &least], &[]);
        concat(graph, &mean, &variance)
    }

    /// Returns moments of latents that the graph draws as mean + deviation · noise.
    fn drawn(&mut self, latents: &'f Port, noise: usize) -> Result<String, Error> {
        let file = self.graph.file;
        let unknown = || {
            file.wrong(format!(
                "the graph draws the latents itself, with `{}`, but their mean and deviation are \
                 not found",
                file.nodes[noise].op
            ))
        };
        if !is_standard(&file.nodes[noise]) {
            return Err(unknown());
        }
        let noise = file.nodes[noise].outputs.first().ok_or_else(unknown)?;
        let flow = Flow::new(file);
        let (deviation, product) = operand(&flow, noise, "Mul").ok_or_else(unknown)?;
        let (mean, sum) = operand(&flow, product, "Add").ok_or_else(unknown)?;
        if flow.through(&latents.name) != sum {
            return Err(unknown());
        }
        let graph = &mut self.graph;
        let mean = as_f32(graph, mean);
        let deviation = as_f32(graph, deviation);
        let logarithm = graph.node(At::End, "Log", &[&deviation], &[]);
        let two = graph.numbers(&[2.0], &[]);
        let variance = graph.node(At::End, "Mul", &[&logarithm, &two], &[]);
        Ok(concat(graph, &mean, &variance))
    }
}

fn as_f32(graph: &mut Adapter<'_>, value: &str) -> String {
    graph.node(
        At::End,
        "Cast",
        &[value],
        &[int("to", DataType::Float as i64)],
    )
}

fn concat(graph: &mut Adapter<'_>, mean: &str, variance: &str) -> String {
    graph.node(At::End, "Concat", &[mean, variance], &[int("axis", 1)])
}

/// Returns the input and the output of the encoder or decoder.
fn ends(file: &OnnxFile) -> Result<(&Port, &Port), Error> {
    let mut inputs = file.inputs.iter().filter(|port| port.name != "return_dict");
    let (Some(input), None, [output]) = (inputs.next(), inputs.next(), &file.outputs[..]) else {
        return Err(file.wrong(format!(
            "the graph has {} inputs and {} outputs, expected one of each",
            file.inputs.len(),
            file.outputs.len()
        )));
    };
    check_type(file, input, &FLOATS)?;
    check_type(file, output, &FLOATS)?;
    Ok((input, output))
}

fn check_channels(file: &OnnxFile, port: &Port, expected: usize) -> Result<(), Error> {
    match port.fixed(1) {
        Some(found) if found != expected => Err(file.wrong(format!(
            "`{}` is {}, expected {expected} channels",
            printable(&port.name),
            port.shown()
        ))),
        _ => Ok(()),
    }
}

/// Returns the indices of the nodes that draw noise.
fn random(file: &OnnxFile) -> Vec<usize> {
    let draws = |(_, node): &(usize, &Node)| RANDOM.contains(&node.op.as_str());
    let nodes = file.nodes.iter().enumerate().filter(draws);
    nodes.map(|(place, _)| place).collect()
}

/// Whether a node draws noise with mean 0 and standard deviation 1.
fn is_standard(node: &Node) -> bool {
    proto::Node::decode(&node.bytes[..]).is_ok_and(|node| {
        node.attribute.iter().all(|it| match it.name.as_str() {
            "mean" => it.f == 0.0,
            "scale" => it.f == 1.0,
            _ => true,
        })
    })
}

/// Returns the other operand and the output of the only node that reads `value`, seen through
/// casts, if that node is an `op` with two operands.
fn operand<'f>(flow: &Flow<'f>, value: &'f str, op: &str) -> Option<(&'f str, &'f str)> {
    let mut value = value;
    // A chain with more steps than there are nodes is a cycle.
    for _ in 0..flow.file.nodes.len() {
        let node = flow.only_reader(value)?;
        let [output] = &node.outputs[..] else {
            return None;
        };
        match &node.inputs[..] {
            _ if is_renaming(node) => value = output,
            [a, b] if node.op == op && node.domain.is_empty() && a != b => {
                return Some((if a == value { b } else { a }, output));
            }
            _ => return None,
        }
    }
    None
}
