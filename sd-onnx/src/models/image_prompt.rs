//! IP-Adapter's projection of a picture (Ye et al. 2023, arXiv 2308.06721): it turns what CLIP says
//! about a picture into tokens that the UNet attends to beside the prompt.
//!
//! The networks are the ones of the authors (<https://github.com/tencent-ailab/IP-Adapter>), with
//! their names of tensors. "Plus" uses the perceiver resampler of Flamingo (Alayrac et al. 2022,
//! arXiv 2204.14198).

use std::path::Path;

use crate::{
    Error,
    config::SIZE,
    graph::{Activation, Dialect, Dim, Graph, Model, Value},
    weights::Weights,
};

/// The name of the network, for messages.
pub(crate) const CLASS: &str = "IP-Adapter";

/// The name of the input with CLIP's projected embeddings.
pub(crate) const EMBEDS: &str = "embeds";
/// The name of the input with CLIP's hidden states of the layer before the last one.
pub(crate) const HIDDEN: &str = "hidden";
/// The name of the output.
pub(crate) const TOKENS: &str = "tokens";

/// The epsilon of PyTorch's layer norms.
const EPS: f32 = 1e-5;
/// The width of an attention head.
const HEAD: usize = 64;
/// The most layers of a resampler. Published ones have 4.
const MOST_LAYERS: usize = 64;

/// The architecture of a projection, from the shapes of its tensors.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ImagePromptConfig {
    /// The width of the embeddings or of the hidden states that it takes.
    pub input: usize,
    /// The width of the tokens: as wide as the UNet's prompt.
    pub context: usize,
    projection: Projection,
}

#[derive(Debug, Clone, PartialEq)]
enum Projection {
    /// A linear layer from the embedding to so many tokens.
    Plain { tokens: usize },
    /// A perceiver resampler of the hidden states: "plus".
    Resampler(Resampler),
    /// Two linear layers for each hidden state, with a wider or narrower state between them:
    /// "full face".
    Each { inner: usize },
}

#[derive(Debug, Clone, PartialEq)]
struct Resampler {
    tokens: usize,
    width: usize,
    layers: usize,
    /// The width of all attention heads together.
    heads: usize,
    /// The width inside the feed-forward networks.
    inner: usize,
}

impl ImagePromptConfig {
    /// Reads the shapes. Errors name `path`.
    pub fn new(path: &Path, weights: &Weights) -> Result<Self, Error> {
        let dim = |name: &str, axis: usize| {
            let shape = weights.shape(&format!("image_proj.{name}"));
            let size = shape.and_then(|shape| shape.get(axis)).copied();
            size.filter(|size| SIZE.contains(size))
        };
        let found = plain(dim).or_else(|| each(dim)).or_else(|| resampler(dim));
        let found = found.ok_or_else(|| Error::Missing {
            path: path.to_path_buf(),
            what: "the projection of an IP-Adapter".into(),
            hint: "expected `image_proj.proj.weight`, `image_proj.proj.3.weight` or \
                   `image_proj.latents`, with the tensors that belong to it"
                .into(),
        })?;
        let wrong = |problem: String| Err(Error::adapter(path, problem));
        match &found.projection {
            Projection::Plain { tokens: 0 } => {
                wrong("`image_proj.proj.weight` has too few rows for one token".into())
            }
            Projection::Resampler(it) if it.heads == 0 || it.heads % HEAD != 0 => wrong(format!(
                "`image_proj.layers.0.0.to_q.weight` has {} rows, expected a multiple of {HEAD}",
                it.heads
            )),
            _ => Ok(found),
        }
    }

    /// Returns the number of tokens of each picture, or `None` if there is one for each hidden
    /// state.
    pub fn tokens(&self) -> Option<usize> {
        match &self.projection {
            Projection::Plain { tokens } => Some(*tokens),
            Projection::Resampler(resampler) => Some(resampler.tokens),
            Projection::Each { .. } => None,
        }
    }

    /// Returns whether the input is [`HIDDEN`] and not [`EMBEDS`].
    pub fn takes_hidden(&self) -> bool {
        !matches!(self.projection, Projection::Plain { .. })
    }

    /// Returns the name of this kind of IP-Adapter.
    pub fn name(&self) -> &'static str {
        match self.projection {
            Projection::Plain { .. } => "an IP-Adapter",
            Projection::Resampler(_) => "an IP-Adapter Plus",
            Projection::Each { .. } => "an IP-Adapter Full Face",
        }
    }
}

fn plain(dim: impl Fn(&str, usize) -> Option<usize>) -> Option<ImagePromptConfig> {
    let context = dim("norm.weight", 0)?;
    let tokens = dim("proj.weight", 0)? / context;
    Some(ImagePromptConfig {
        input: dim("proj.weight", 1)?,
        context,
        projection: Projection::Plain { tokens },
    })
}

fn each(dim: impl Fn(&str, usize) -> Option<usize>) -> Option<ImagePromptConfig> {
    Some(ImagePromptConfig {
        context: dim("proj.3.weight", 0)?,
        input: dim("proj.0.weight", 1)?,
        projection: Projection::Each {
            inner: dim("proj.0.weight", 0)?,
        },
    })
}

fn resampler(dim: impl Fn(&str, usize) -> Option<usize>) -> Option<ImagePromptConfig> {
    let queries = |layer| dim(&format!("layers.{layer}.0.to_q.weight"), 0);
    let layers = (0..MOST_LAYERS).take_while(|&layer| queries(layer).is_some());
    let resampler = Resampler {
        tokens: dim("latents", 1)?,
        width: dim("latents", 2)?,
        layers: layers.count(),
        heads: queries(0)?,
        inner: dim("layers.0.1.1.weight", 0)?,
    };
    Some(ImagePromptConfig {
        input: dim("proj_in.weight", 1)?,
        context: dim("proj_out.weight", 0)?,
        projection: Projection::Resampler(resampler),
    })
}

/// Writes the graph.
///
/// The input is f32 [`EMBEDS`] `[batch, width]` or [`HIDDEN`] `[batch, length, width]`, the output
/// [`TOKENS`] `[batch, tokens, context width]`.
pub(crate) fn graph(
    config: &ImagePromptConfig,
    weights: &Weights,
    dialect: Dialect,
) -> Result<Model, Error> {
    let &ImagePromptConfig { input, context, .. } = config;
    let mut g = Graph::new("image_prompt", weights, dialect);
    let batch = Dim::Any("batch");
    let x = match config.takes_hidden() {
        true => g.input(HIDDEN, &[batch, Dim::Any("length"), Dim::Fixed(input)]),
        false => g.input(EMBEDS, &[batch, Dim::Fixed(input)]),
    };
    let tokens = match &config.projection {
        Projection::Plain { tokens } => {
            let x = g.linear(x, "image_proj.proj", input, tokens * context)?;
            let split = g.dims(&[-1, *tokens as i64, context as i64]);
            let x = g.reshape(x, split);
            g.layer_norm(x, "image_proj.norm", context, EPS)?
        }
        Projection::Each { inner } => {
            let x = g.linear(x, "image_proj.proj.0", input, *inner)?;
            let x = g.activation(x, Activation::Gelu);
            let x = g.linear(x, "image_proj.proj.2", *inner, context)?;
            g.layer_norm(x, "image_proj.proj.3", context, EPS)?
        }
        Projection::Resampler(resampler) => resampled(&mut g, resampler, x, [input, context])?,
    };
    let count = config.tokens().map_or(Dim::Any("length"), Dim::Fixed);
    g.output(TOKENS, tokens, &[batch, count, Dim::Fixed(context)]);
    g.finish()
}

/// Returns whether the graph leaves out a known tensor, because the UNet uses it.
pub(crate) fn is_left_out(name: &str) -> bool {
    name.starts_with("ip_adapter.")
}

/// Checks that a projection has all its weights, and uses all of them. The keys and
/// values for the UNet are not checked.
pub(crate) fn check(config: &ImagePromptConfig, weights: &Weights) -> Result<(), Error> {
    let write = |weights: &Weights| graph(config, weights, Dialect::default()).map(drop);
    weights.check(CLASS, is_left_out, write)
}

/// Writes the resampler: learned queries attend to the hidden states and to themselves.
fn resampled(
    g: &mut Graph,
    resampler: &Resampler,
    x: Value,
    [input, context]: [usize; 2],
) -> Result<Value, Error> {
    let &Resampler { tokens, width, .. } = resampler;
    let x = g.linear(x, "image_proj.proj_in", input, width)?;
    let latents = g.weight("image_proj.latents", &[1, tokens, width])?;
    let mut latents = g.row_for_each(latents, x);
    for layer in 0..resampler.layers {
        let name = format!("image_proj.layers.{layer}");
        latents = attended(g, resampler, &format!("{name}.0"), [x, latents])?;
        latents = fed_forward(g, resampler, &format!("{name}.1"), latents)?;
    }
    let tokens = g.linear(latents, "image_proj.proj_out", width, context)?;
    g.layer_norm(tokens, "image_proj.norm_out", context, EPS)
}

/// Writes the attention of a layer, with the sum after it.
fn attended(
    g: &mut Graph,
    &Resampler { width, heads, .. }: &Resampler,
    name: &str,
    [x, latents]: [Value; 2],
) -> Result<Value, Error> {
    let x = g.layer_norm(x, &format!("{name}.norm1"), width, EPS)?;
    let queries = g.layer_norm(latents, &format!("{name}.norm2"), width, EPS)?;
    let states = g.concat(&[x, queries], 1);
    let q = g.linear_without_bias(queries, &format!("{name}.to_q"), width, heads)?;
    // Keys and values are one layer.
    let both = g.linear_without_bias(states, &format!("{name}.to_kv"), width, 2 * heads)?;
    let [k, v] = g.halves(both);
    let h = g.attention([q, k, v], [heads, heads / HEAD], false);
    let h = g.linear_without_bias(h, &format!("{name}.to_out"), heads, width)?;
    Ok(g.add(h, latents))
}

/// Writes the feed-forward network of a layer, with the sum after it.
fn fed_forward(
    g: &mut Graph,
    &Resampler { width, inner, .. }: &Resampler,
    name: &str,
    latents: Value,
) -> Result<Value, Error> {
    let h = g.layer_norm(latents, &format!("{name}.0"), width, EPS)?;
    let h = g.linear_without_bias(h, &format!("{name}.1"), width, inner)?;
    let h = g.activation(h, Activation::Gelu);
    let h = g.linear_without_bias(h, &format!("{name}.3"), inner, width)?;
    Ok(g.add(h, latents))
}
