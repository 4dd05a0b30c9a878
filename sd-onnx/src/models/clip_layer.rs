//! The transformer layer that CLIP's text model and its vision model share, transformers'
//! `CLIPEncoderLayer`.

use crate::{
    Error,
    config::{Config, SIZE},
    graph::{Activation, Graph, Value},
};

/// The sizes of a model's layers, which are all equal.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ClipLayer {
    pub width: usize,
    heads: usize,
    inner_width: usize,
    /// The epsilon of the layer norms, also of the norms outside of the layers.
    pub eps: f32,
    activation: Activation,
}

impl ClipLayer {
    /// Reads the sizes from the section of a `config.json` for one model. The defaults are for
    /// `hidden_size`, `num_attention_heads` and `intermediate_size`.
    pub fn new(config: &Config, [width, heads, inner_width]: [usize; 3]) -> Result<Self, Error> {
        let width = config.usize("hidden_size", width, SIZE)?;
        let heads = config.usize("num_attention_heads", heads, SIZE)?;
        if width % heads != 0 {
            return Err(config.wrong(
                "num_attention_heads",
                format!("a divisor of hidden_size, which is {width}"),
            ));
        }
        Ok(Self {
            width,
            heads,
            inner_width: config.usize("intermediate_size", inner_width, SIZE)?,
            eps: config.positive("layer_norm_eps")?.unwrap_or(1e-5),
            activation: match config.text("hidden_act", "quick_gelu")? {
                "quick_gelu" => Activation::QuickGelu,
                "gelu" => Activation::Gelu,
                _ => return Err(config.wrong("hidden_act", "\"quick_gelu\" or \"gelu\"")),
            },
        })
    }

    /// Applies the layer `name` to `x` `[batch, length, width]`. If `causal`, a position does not
    /// attend to later ones.
    pub fn write(&self, g: &mut Graph, name: &str, x: Value, causal: bool) -> Result<Value, Error> {
        let &Self {
            width,
            heads,
            inner_width,
            eps,
            activation,
        } = self;
        let normed = g.layer_norm(x, &format!("{name}.layer_norm1"), width, eps)?;
        let q = g.linear(normed, &format!("{name}.self_attn.q_proj"), width, width)?;
        let k = g.linear(normed, &format!("{name}.self_attn.k_proj"), width, width)?;
        let v = g.linear(normed, &format!("{name}.self_attn.v_proj"), width, width)?;
        let attended = g.attention([q, k, v], [width, heads], causal);
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
}
