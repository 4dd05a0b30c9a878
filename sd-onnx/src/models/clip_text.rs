//! CLIP's text transformer (Radford et al. 2021, arXiv 2103.00020), as transformers'
//! `CLIPTextModel` computes it.

use ndarray::{ArrayView1, ArrayView2};
use sd_text::{ClipSkip, Layer};
use serde_json::json;

use crate::{
    Error,
    config::{Config, SIZE},
    graph::{Dialect, Dim, Graph, Model},
    models::clip_layer::ClipLayer,
    weights::Weights,
};

/// The sizes of a text encoder, from its `config.json`. Missing keys have `CLIPTextConfig`'s
/// defaults.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ClipTextConfig {
    pub vocab_size: usize,
    pub max_length: usize,
    pub width: usize,
    pub layers: usize,
    layer: ClipLayer,
    /// The id that ends a text. `None` if the configuration has the old value 2: then the largest
    /// id of a text ends it.
    pub end: Option<i64>,
    /// The width of the projected pooled state, if the graph has that output.
    pub projection: Option<usize>,
    /// The key `projection_dim`. A model without `text_projection` may have it too.
    pub projection_width: usize,
}

impl ClipTextConfig {
    /// Reads the `config.json` of a text model, or of a whole CLIP model, which also has an image
    /// network.
    pub fn new(config: Config) -> Result<Self, Error> {
        let classes = config.texts("architectures", &[])?;
        if !classes.is_empty() && !classes.iter().any(|class| CLASSES.contains(class)) {
            let expected = CLASSES.map(|class| format!("\"{class}\"")).join(" or ");
            return Err(config.wrong("architectures", format!("a list with {expected}")));
        }
        config.only("model_type", &[json!("clip_text_model"), json!("clip")])?;
        let config = config.section("text_config");
        config.only("use_attention_mask", &[json!(false)])?;
        let layer = ClipLayer::new(&config, [512, 8, 2048])?;
        Ok(Self {
            vocab_size: config.usize("vocab_size", 49408, SIZE)?,
            max_length: config.usize("max_position_embeddings", 77, SIZE)?,
            width: layer.width,
            layers: config.usize("num_hidden_layers", 12, 1..=1000)?,
            layer,
            end: match config.usize("eos_token_id", 49407, 0..=*SIZE.end())? {
                2 => None,
                id => Some(id as i64),
            },
            projection: None,
            projection_width: config.usize("projection_dim", 512, SIZE)?,
        })
    }

    /// Returns the position of the first end-of-text token, as `CLIPTextModel` finds it. Ids beyond
    /// the stored embedding belong to textual inversions and are ignored.
    pub fn end_of(&self, ids: ArrayView1<'_, i64>) -> i64 {
        let stored = |&(_, &id): &(usize, &i64)| (id as usize) < self.vocab_size;
        let ids = ids.iter().enumerate().filter(stored);
        let place = match self.end {
            Some(end) => ids.into_iter().find(|&(_, &id)| id == end),
            // `max_by_key` returns the last of equal ids, so the reversed order finds the first.
            None => ids.rev().max_by_key(|&(_, &id)| id),
        };
        place.map_or(0, |(place, _)| place as i64)
    }
}

/// The class in transformers, for messages.
pub(crate) const CLASS: &str = CLASSES[0];

/// The classes of transformers whose text model this file writes.
const CLASSES: [&str; 3] = ["CLIPTextModel", "CLIPTextModelWithProjection", "CLIPModel"];

/// Returns whether the graph leaves out a known tensor on purpose. The tensor belongs to CLIP's
/// image network, to a projection, or to a layer beyond `num_hidden_layers`. A folder can store
/// clip skip as a `num_hidden_layers` below the number of layers in the file.
pub(crate) fn is_left_out(config: &ClipTextConfig, name: &str) -> bool {
    let part = name.split('.').next().unwrap_or_default();
    let layer = name.strip_prefix("encoder.layers.");
    let layer = layer.and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
    ["vision_model", "visual_projection", PROJECTION].contains(&part)
        || layer.is_some_and(|layer| layer >= config.layers)
}

/// The name of the input with the token ids of the texts.
pub(crate) const IDS: &str = "input_ids";
/// The name of the input with the position of one token in each text.
pub(crate) const ENDS: &str = "ends";
/// The name of the output with the last layer's state at one token of each text.
pub(crate) const POOLED: &str = "pooled";
/// The name of the layer that projects a pooled state to the embedding space that texts and
/// pictures share, and of the graph's output with the projected state.
pub(crate) const PROJECTION: &str = "text_projection";

/// Returns the name of the output of a layer.
pub(crate) fn output_name(layer: Layer) -> String {
    let norm = if layer.final_norm { "" } else { "_raw" };
    format!("clip_skip_{}{norm}", layer.skip)
}

/// Writes the graph.
///
/// The inputs are [`IDS`], i64 `[batch, length]`, at most `max_length` long, and [`ENDS`], i64
/// `[batch, 1]`, the position of one token in each text.
///
/// There are two outputs `[batch, length, width]` for each clip skip `1..=layers`: the hidden state
/// of that layer, counted from the last, with and without the final layer norm. [`POOLED`]
/// `[batch, width]` is the state of the last layer at `ends`, with the norm. [`PROJECTION`] is its
/// projection, if the configuration has a width for it.
///
/// `more` `[any, width]` is appended to the stored rows of the token embedding.
pub(crate) fn graph(
    config: &ClipTextConfig,
    weights: &Weights,
    more: ArrayView2<'_, f32>,
    dialect: Dialect,
) -> Result<Model, Error> {
    let &ClipTextConfig {
        width, max_length, ..
    } = config;
    let mut g = Graph::new("text_encoder", weights, dialect);
    let ids = [Dim::Any("batch"), Dim::Any("length")];
    let rows = [config.vocab_size, width];
    let tokens = g.embedding("embeddings.token_embedding.weight", rows, more, IDS, &ids)?;
    let positions = g.weight("embeddings.position_embedding.weight", &[max_length, width])?;
    let positions = g.first_rows(positions, tokens);
    let mut x = g.add(tokens, positions);

    for layer in 0..config.layers {
        let name = format!("encoder.layers.{layer}");
        x = config.layer.write(&mut g, &name, x, true)?;
        let normed = g.layer_norm(x, "final_layer_norm", width, config.layer.eps)?;
        let dims = [Dim::Any("batch"), Dim::Any("length"), Dim::Fixed(width)];
        let skip = ClipSkip::new(config.layers - layer).expect("the layers are counted down to 1");
        for (final_norm, states) in [(true, normed), (false, x)] {
            g.output(&output_name(Layer { skip, final_norm }), states, &dims);
        }
        if layer + 1 < config.layers {
            continue;
        }
        let pooled = g.row_of_each(normed, ENDS);
        g.output(POOLED, pooled, &[Dim::Any("batch"), Dim::Fixed(width)]);
        if let Some(projected) = config.projection {
            let state = g.linear_without_bias(pooled, PROJECTION, width, projected)?;
            let dims = [Dim::Any("batch"), Dim::Fixed(projected)];
            g.output(PROJECTION, state, &dims);
        }
    }
    g.finish()
}
