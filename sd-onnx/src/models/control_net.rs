//! A ControlNet (Zhang et al. 2023, arXiv 2302.05543), as diffusers' `ControlNetModel` computes it:
//! the first half of a UNet, which also sees a picture, and whose values go to the skips of the
//! model's own UNet.

use sd_core::SizeIds;
use serde_json::json;

use super::{
    blocks::image_dims,
    unet::{Unet, UnetConfig, residual_name},
};
use crate::{
    Error,
    config::{Config, SIZE},
    graph::{Activation, Conv, Dialect, Dim, Graph, Model, Value},
    weights::Weights,
};

/// The class in diffusers.
pub(crate) const CLASS: &str = "ControlNetModel";

/// The input of the [embedding](embedding): the picture `[1, channels, H, W]`.
pub(crate) const PICTURE: &str = "picture";

/// The embedded picture, `[1, channels, h, w]`: the output of the [embedding](embedding), and an
/// input of the [network](graph).
pub(crate) const EMBEDDED: &str = "embedded";

/// The architecture of a ControlNet, from its `config.json`. Missing keys have the defaults of
/// `ControlNetModel`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ControlNetConfig {
    /// The first half of the UNet.
    pub unet: UnetConfig,
    /// The number of channels of the picture.
    pub picture_channels: usize,
    /// Whether the network expects blue, green, red.
    pub is_bgr: bool,
    /// Whether the outputs are averaged over the picture.
    pub is_pooled: bool,
    /// The channels of the embedding's levels. All but the first halve the picture.
    embedding: Vec<usize>,
}

impl ControlNetConfig {
    /// Reads the configuration.
    pub fn new(config: &Config) -> Result<Self, Error> {
        let order = config.text("controlnet_conditioning_channel_order", "rgb")?;
        let is_bgr = match order {
            "rgb" => false,
            "bgr" => true,
            _ => {
                let expected = "\"rgb\" or \"bgr\"";
                return Err(config.wrong("controlnet_conditioning_channel_order", expected));
            }
        };
        let key = "conditioning_embedding_out_channels";
        let embedding = config.sizes(key, &[16, 32, 96, 256])?;
        if !(1..=8).contains(&embedding.len()) {
            return Err(config.wrong(key, "1 to 8 numbers, 4 for latents of 8 pixels"));
        }
        config.only("class_embed_type", &[json!(null)])?;
        Ok(Self {
            unet: UnetConfig::of_control_net(config, SizeIds::Target)?,
            picture_channels: config.usize("conditioning_channels", 3, SIZE)?,
            is_bgr,
            is_pooled: config.bool("global_pool_conditions", false)?,
            embedding,
        })
    }
}

impl ControlNetConfig {
    /// Returns the number of pixels per latent on each side.
    pub fn factor(&self) -> usize {
        1 << (self.embedding.len() - 1)
    }
}

/// Writes the graph that embeds a picture: diffusers' `ControlNetConditioningEmbedding`.
pub(crate) fn embedding(
    config: &ControlNetConfig,
    weights: &Weights,
    dialect: Dialect,
) -> Result<Model, Error> {
    let seamless = config.unet.inputs.seamless;
    let mut g = Graph::new("control-embedding", weights, dialect).seamless(seamless);
    let picture = g.input(PICTURE, &image_dims(config.picture_channels));
    let levels = &config.embedding;
    let name = |layer: &str| format!("controlnet_cond_embedding.{layer}");
    let first = [config.picture_channels, levels[0]];
    let mut x = silu_conv(&mut g, picture, &name("conv_in"), first, Conv::SAME)?;
    for (i, pair) in levels.windows(2).enumerate() {
        let [from, to] = [pair[0], pair[1]];
        let halving = Conv {
            stride: 2,
            ..Conv::SAME
        };
        let names = [2 * i, 2 * i + 1].map(|block| name(&format!("blocks.{block}")));
        x = silu_conv(&mut g, x, &names[0], [from, from], Conv::SAME)?;
        x = silu_conv(&mut g, x, &names[1], [from, to], halving)?;
    }
    let to = config.unet.first_channels();
    let from = levels[levels.len() - 1];
    let x = g.conv2d(x, &name("conv_out"), [from, to], Conv::SAME)?;
    g.output(EMBEDDED, x, &image_dims(to));
    g.finish()
}

fn silu_conv(
    g: &mut Graph,
    x: Value,
    name: &str,
    channels: [usize; 2],
    conv: Conv,
) -> Result<Value, Error> {
    let x = g.conv2d(x, name, channels, conv)?;
    Ok(g.activation(x, Activation::Silu))
}

/// Writes the graph of the network. It has the inputs of its UNet and [`EMBEDDED`]. The outputs are
/// called [`residual_name`] and have the [shapes](UnetConfig::residual_shapes) of the UNet's skips.
pub(crate) fn graph(
    config: &ControlNetConfig,
    weights: &Weights,
    dialect: Dialect,
) -> Result<Model, Error> {
    let mut unet = Unet::new("control-net", &config.unet, weights, dialect)?;
    let x = unet.conv_in()?;
    let channels = config.unet.first_channels();
    // Its batch is 1, whatever the batch of the latents is.
    let dims = [
        Dim::Fixed(1),
        Dim::Fixed(channels),
        Dim::Any("height"),
        Dim::Any("width"),
    ];
    let embedded = unet.g.input(EMBEDDED, &dims);
    let x = unet.g.add(x, embedded);
    let (x, skips) = unet.down_path(x)?;
    let x = unet.mid_block(x)?;
    let last = skips.last().map_or(channels, |&(_, channels)| channels);
    for (i, (skip, channels)) in skips.into_iter().enumerate() {
        let name = format!("controlnet_down_blocks.{i}");
        residual(&mut unet.g, skip, &name, channels, Some(i))?;
    }
    residual(&mut unet.g, x, "controlnet_mid_block", last, None)?;
    unet.g.finish()
}

/// Checks that a ControlNet has all its weights, and uses all of them.
pub(crate) fn check(config: &ControlNetConfig, weights: &Weights) -> Result<(), Error> {
    weights.check(
        CLASS,
        |_| false,
        |outline| {
            embedding(config, outline, Dialect::default())?;
            graph(config, outline, Dialect::default()).map(drop)
        },
    )
}

/// Writes an output: a convolution that was zero when the training began.
fn residual(
    g: &mut Graph,
    x: Value,
    name: &str,
    channels: usize,
    skip: Option<usize>,
) -> Result<(), Error> {
    let x = g.conv2d(x, name, [channels, channels], Conv::POINT)?;
    let dims = [
        Dim::Any("batch"),
        Dim::Fixed(channels),
        Dim::Free,
        Dim::Free,
    ];
    g.output(&residual_name(skip), x, &dims);
    Ok(())
}
