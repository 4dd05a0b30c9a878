//! CLIP's vision transformer (Radford et al. 2021, arXiv 2103.00020), as transformers'
//! `CLIPVisionModelWithProjection` computes it.

use serde_json::json;

use crate::{
    Error,
    config::{Config, SIZE},
    graph::{Conv, Dialect, Dim, Graph, Model},
    models::clip_layer::ClipLayer,
    weights::Weights,
};

/// The sizes of a vision model, from its `config.json`. Missing keys have `CLIPVisionConfig`'s
/// defaults.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ClipVisionConfig {
    /// The height and width of the pictures, in pixels.
    pub side: usize,
    /// The height and width of a patch, in pixels.
    patch: usize,
    pub width: usize,
    layers: usize,
    layer: ClipLayer,
    /// The width of the projected state.
    pub projection: usize,
}

impl ClipVisionConfig {
    /// Reads the `config.json` of a vision model, or of a whole CLIP model, which also has a text
    /// model.
    pub fn new(config: Config) -> Result<Self, Error> {
        let classes = config.texts("architectures", &[])?;
        if !classes.is_empty() && !classes.iter().any(|class| CLASSES.contains(class)) {
            let expected = CLASSES.map(|class| format!("\"{class}\"")).join(" or ");
            return Err(config.wrong("architectures", format!("a list with {expected}")));
        }
        config.only("model_type", &[json!("clip_vision_model"), json!("clip")])?;
        // A whole model projects to its own width, whatever its sections contain.
        let of_whole = match config.object("vision_config") {
            Some(_) => Some(config.usize("projection_dim", 512, SIZE)?),
            None => None,
        };
        let config = config.section("vision_config");
        config.only("num_channels", &[json!(3)])?;
        let layer = ClipLayer::new(&config, [768, 12, 3072])?;
        let side = config.usize("image_size", 224, MOST_SIDE)?;
        let patch = config.usize("patch_size", 32, MOST_SIDE)?;
        if patch > side {
            let expected = format!("at most image_size, which is {side}");
            return Err(config.wrong("patch_size", expected));
        }
        Ok(Self {
            side,
            patch,
            width: layer.width,
            layers: config.usize("num_hidden_layers", 12, 1..=1000)?,
            layer,
            projection: match of_whole {
                Some(width) => width,
                None => config.usize("projection_dim", 512, SIZE)?,
            },
        })
    }

    /// Returns the number of hidden states of a picture: one for each patch, after the one of the
    /// class token.
    pub fn length(&self) -> usize {
        // A strip at the edges that is narrower than a patch is left out.
        1 + (self.side / self.patch).pow(2)
    }
}

/// The class in transformers, for messages.
pub(crate) const CLASS: &str = CLASSES[0];

/// The classes of transformers whose vision model this file writes.
const CLASSES: [&str; 2] = ["CLIPVisionModelWithProjection", "CLIPModel"];

/// The accepted sides of pictures and patches, in pixels. Published models have at most 448.
const MOST_SIDE: std::ops::RangeInclusive<usize> = 1..=4096;

/// Returns whether the graph leaves out a known tensor on purpose, because it belongs to the text
/// model of a whole CLIP model. The names of its tensors are given without `text_model`.
pub(crate) fn is_left_out(name: &str) -> bool {
    let part = name.split('.').next().unwrap_or_default();
    [
        "embeddings",
        "encoder",
        "final_layer_norm",
        "text_projection",
    ]
    .contains(&part)
}

/// The name of the tensor that only a vision model has.
pub(crate) const CLASS_TOKEN: &str = "vision_model.embeddings.class_embedding";

/// The name of the input with the preprocessed pictures.
pub(crate) const PIXELS: &str = "pixel_values";
/// The name of the output with the projected state of the class token.
pub(crate) const EMBEDDINGS: &str = "image_embeds";
/// The name of the output with the normalised state of the class token.
pub(crate) const POOLED: &str = "pooled";
/// The name of the output with the hidden states of the last layer.
pub(crate) const LAST: &str = "last_hidden_state";
/// The name of the output with the hidden states of the layer before the last one.
pub(crate) const PENULTIMATE: &str = "penultimate";

/// Writes the graph.
///
/// The input is [`PIXELS`], f32 `[batch, 3, side, side]`.
///
/// The outputs are [`LAST`] and [`PENULTIMATE`] `[batch, length, width]`, both without a norm,
/// [`POOLED`] `[batch, width]`, and [`EMBEDDINGS`] `[batch, projection]`. With one layer,
/// [`PENULTIMATE`] is the input of that layer.
pub(crate) fn graph(
    config: &ClipVisionConfig,
    weights: &Weights,
    dialect: Dialect,
) -> Result<Model, Error> {
    let &ClipVisionConfig {
        side, patch, width, ..
    } = config;
    let eps = config.layer.eps;
    let (batch, length) = (Dim::Any("batch"), config.length());
    let mut g = Graph::new("image_encoder", weights, dialect);
    let sides = [Dim::Fixed(side); 2];
    let pixels = g.input(PIXELS, &[batch, Dim::Fixed(3), sides[0], sides[1]]);

    let patches = Conv {
        kernel: patch,
        stride: patch,
        padding: [0; 2],
    };
    let name = "vision_model.embeddings.patch_embedding";
    let patches = g.conv2d_without_bias(pixels, name, [3, width], patches)?;
    let patches = g.image_to_sequence(patches);
    let class = g.weight(CLASS_TOKEN, &[width])?;
    let class = g.row_for_each(class, patches);
    let x = g.concat(&[class, patches], 1);
    let name = "vision_model.embeddings.position_embedding.weight";
    let positions = g.weight(name, &[length, width])?;
    let x = g.add(x, positions);
    // The misspelling is in the name that published models have.
    let mut x = g.layer_norm(x, "vision_model.pre_layrnorm", width, eps)?;

    let dims = [batch, Dim::Fixed(length), Dim::Fixed(width)];
    for layer in 0..config.layers {
        if layer + 1 == config.layers {
            g.output(PENULTIMATE, x, &dims);
        }
        let name = format!("vision_model.encoder.layers.{layer}");
        x = config.layer.write(&mut g, &name, x, false)?;
    }
    g.output(LAST, x, &dims);

    let class = g.first_row_of_each(x);
    let pooled = g.layer_norm(class, "vision_model.post_layernorm", width, eps)?;
    g.output(POOLED, pooled, &[batch, Dim::Fixed(width)]);
    let projection = config.projection;
    let embeddings = g.linear_without_bias(pooled, "visual_projection", width, projection)?;
    g.output(EMBEDDINGS, embeddings, &[batch, Dim::Fixed(projection)]);
    g.finish()
}

/// Checks that the weights are those of a vision model, and that it uses all of them.
pub(crate) fn check(config: &ClipVisionConfig, weights: &Weights) -> Result<(), Error> {
    let write = |weights: &Weights| graph(config, weights, Dialect::default()).map(drop);
    weights.check(CLASS, is_left_out, write)
}
