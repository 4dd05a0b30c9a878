//! CLIP's text transformer (Radford et al. 2021, arXiv 2103.00020), as transformers' `CLIPTextModel` computes it.

use ndarray::ArrayView2;

use crate::{
    Error,
    config::{Config, SIZE},
    graph::{Activation, Dim, Graph, Model, Value},
    weights::Weights,
};

/// The sizes of a text encoder, from its `config.json`. Missing keys are at `CLIPTextConfig`'s defaults.
#[derive(Debug, Clone)]
pub(crate) struct ClipTextConfig {
    pub vocab_size: usize,
    pub max_length: usize,
    pub width: usize,
    pub layers: usize,
    heads: usize,
    inner_width: usize,
    eps: f32,
    activation: Activation,
    /// The width of what `text_projection` makes of a state, where that is wanted and there.
    pub projection: Option<usize>,
}

impl ClipTextConfig {
    pub fn new(config: &Config) -> Result<Self, Error> {
        config.only("use_attention_mask", &[serde_json::json!(false)])?;
        let width = config.usize("hidden_size", 512, SIZE)?;
        let heads = config.usize("num_attention_heads", 8, SIZE)?;
        if width % heads != 0 {
            return Err(config.wrong(
                "num_attention_heads",
                format!("a divisor of hidden_size, {width}"),
            ));
        }
        Ok(Self {
            vocab_size: config.usize("vocab_size", 49408, SIZE)?,
            max_length: config.usize("max_position_embeddings", 77, SIZE)?,
            width,
            layers: config.usize("num_hidden_layers", 12, 1..=1000)?,
            heads,
            inner_width: config.usize("intermediate_size", 2048, SIZE)?,
            eps: config.positive("layer_norm_eps")?.unwrap_or(1e-5),
            activation: match config.text("hidden_act", "quick_gelu")? {
                "quick_gelu" => Activation::QuickGelu,
                "gelu" => Activation::Gelu,
                _ => return Err(config.wrong("hidden_act", "\"quick_gelu\" or \"gelu\"")),
            },
            projection: None,
        })
    }
}

/// The output of the last layer's state at one token of each text.
pub(crate) const POOLED: &str = "pooled";
/// The layer that makes one embedding of texts and pictures out of a pooled state, and the output
/// of it.
pub(crate) const PROJECTION: &str = "text_projection";

/// The name of the output for a clip skip.
pub(crate) fn output_name(clip_skip: usize) -> String {
    format!("clip_skip_{clip_skip}")
}

/// The inputs are `input_ids` i64 `[batch, length]`, at most `max_length` long, and `ends` i64
/// `[batch, 1]`, the place of a token in each text. There is an output per clip skip 1..=layers:
/// that hidden state, counted from the last, through the final layer norm, `[batch, length,
/// width]`. [`POOLED`] is the last of them at `ends`, `[batch, width]`, and [`PROJECTION`] its
/// projection, if the configuration has a width for it. `more` `[any, width]` are rows of the token
/// embedding behind the stored ones.
pub(crate) fn graph(
    config: &ClipTextConfig,
    weights: &Weights,
    more: ArrayView2<'_, f32>,
) -> Result<Model, Error> {
    let &ClipTextConfig {
        width,
        max_length,
        eps,
        ..
    } = config;
    let mut g = Graph::new("text_encoder", weights);
    // transformers 5 dropped the prefix; everything older has it.
    let prefix = if g.has("text_model.final_layer_norm.weight") {
        "text_model."
    } else {
        ""
    };

    let ids = [Dim::Any("batch"), Dim::Any("length")];
    let table = format!("{prefix}embeddings.token_embedding.weight");
    let rows = [config.vocab_size, width];
    let tokens = g.embedding(&table, rows, more, "input_ids", &ids)?;
    let positions = g.weight(
        &format!("{prefix}embeddings.position_embedding.weight"),
        &[max_length, width],
    )?;
    let positions = g.first_rows(positions, tokens);
    let mut x = g.add(tokens, positions);

    for layer in 0..config.layers {
        x = encoder_layer(
            &mut g,
            config,
            &format!("{prefix}encoder.layers.{layer}"),
            x,
        )?;
        let normed = g.layer_norm(x, &format!("{prefix}final_layer_norm"), width, eps)?;
        let dims = [Dim::Any("batch"), Dim::Any("length"), Dim::Fixed(width)];
        g.output(&output_name(config.layers - layer), normed, &dims);
        if layer + 1 < config.layers {
            continue;
        }
        let pooled = g.row_of_each(normed, "ends");
        g.output(POOLED, pooled, &[Dim::Any("batch"), Dim::Fixed(width)]);
        if let Some(projected) = config.projection {
            let state = g.linear_without_bias(pooled, PROJECTION, width, projected)?;
            let dims = [Dim::Any("batch"), Dim::Fixed(projected)];
            g.output(PROJECTION, state, &dims);
        }
    }
    Ok(g.finish())
}

fn encoder_layer(
    g: &mut Graph,
    config: &ClipTextConfig,
    name: &str,
    x: Value,
) -> Result<Value, Error> {
    let &ClipTextConfig {
        width,
        heads,
        inner_width,
        eps,
        activation,
        ..
    } = config;
    let normed = g.layer_norm(x, &format!("{name}.layer_norm1"), width, eps)?;
    let q = g.linear(normed, &format!("{name}.self_attn.q_proj"), width, width)?;
    let k = g.linear(normed, &format!("{name}.self_attn.k_proj"), width, width)?;
    let v = g.linear(normed, &format!("{name}.self_attn.v_proj"), width, width)?;
    let attended = g.attention(q, k, v, heads, true);
    let attended = g.linear(
        attended,
        &format!("{name}.self_attn.out_proj"),
        width,
        width,
    )?;
    let x = g.add(x, attended);

    let normed = g.layer_norm(x, &format!("{name}.layer_norm2"), width, eps)?;
    let inner = g.linear(normed, &format!("{name}.mlp.fc1"), width, inner_width)?;
    let inner = g.activation(inner, activation);
    let out = g.linear(inner, &format!("{name}.mlp.fc2"), inner_width, width)?;
    Ok(g.add(x, out))
}
