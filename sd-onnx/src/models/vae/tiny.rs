//! TAESD, the tiny autoencoder of Ollin Boer Bohan (<https://github.com/madebyollin/taesd>), as
//! diffusers' `AutoencoderTiny` computes it.
//!
//! It has no latent distribution and no normalisation, and takes a fiftieth of the time of the
//! usual autoencoder.

use serde_json::json;

use crate::{
    Error,
    config::Config,
    graph::{Conv, Graph, Model, Value},
    models::blocks::image_dims,
};

/// The architecture of a tiny autoencoder, from its `config.json`. Missing keys have the defaults
/// of the class.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TinyConfig {
    latent_channels: usize,
    encoder: Half,
    decoder: Half,
}

/// The shape of the encoder or the decoder.
#[derive(Debug, Clone, PartialEq)]
struct Half {
    channels: usize,
    /// The number of blocks in each level, in the order in which they run.
    blocks: Vec<usize>,
}

impl TinyConfig {
    pub fn new(config: &Config, latent_channels: usize) -> Result<Self, Error> {
        config.only("act_fn", &[json!("relu")])?;
        config.only("upsample_fn", &[json!("nearest")])?;
        config.only("upsampling_scaling_factor", &[json!(2)])?;
        let half = |channels_key: &str, blocks_key: &str, default: &[usize]| {
            let channels = config.sizes(channels_key, &[64; 4])?;
            let blocks = config.sizes(blocks_key, default)?;
            if channels.iter().any(|&c| c != channels[0]) {
                // The class itself runs with nothing else, neither encoder nor decoder.
                return Err(config.wrong(channels_key, "the same number for each level"));
            }
            if !(1..=10).contains(&blocks.len()) || blocks.iter().any(|&count| count > 64) {
                return Err(config.wrong(blocks_key, "1 to 10 levels of at most 64 blocks"));
            }
            if channels.len() != blocks.len() {
                let expected = format!("{} levels, as many as {blocks_key}", blocks.len());
                return Err(config.wrong(channels_key, expected));
            }
            Ok(Half {
                channels: channels[0],
                blocks,
            })
        };
        let encoder = half(
            "encoder_block_out_channels",
            "num_encoder_blocks",
            &[1, 3, 3, 3],
        )?;
        let decoder = half(
            "decoder_block_out_channels",
            "num_decoder_blocks",
            &[3, 3, 3, 1],
        )?;
        if encoder.blocks.len() != decoder.blocks.len() {
            let expected = format!("{} levels, as many as the encoder", encoder.blocks.len());
            return Err(config.wrong("num_decoder_blocks", expected));
        }
        Ok(Self {
            latent_channels,
            encoder,
            decoder,
        })
    }

    /// Returns the number of pixels per latent on each side.
    pub fn factor(&self) -> usize {
        1 << (self.encoder.blocks.len() - 1)
    }
}

/// Writes the decoder, with the inputs and outputs of [`decoder`](super::decoder).
pub(crate) fn decoder(config: &TinyConfig, mut g: Graph<'_>) -> Result<Model, Error> {
    let Half { channels, blocks } = &config.decoder;
    let channels = *channels;
    let mut x = g.input("latents", &image_dims(config.latent_channels));
    // Limits the latents smoothly to −3 to 3.
    let [third, three] = [1.0 / 3.0, 3.0].map(|factor| g.constant(&[factor], &[1]));
    x = g.mul(x, third);
    x = g.tanh(x);
    x = g.mul(x, three);
    x = g.conv2d(
        x,
        "decoder.layers.0",
        [config.latent_channels, channels],
        Conv::SAME,
    )?;
    x = g.relu(x);
    // The numbers in the layer names also count the activation before the blocks and the
    // upsamplings.
    let mut layer = 2;
    for (level, &count) in blocks.iter().enumerate() {
        for _ in 0..count {
            x = block(&mut g, &format!("decoder.layers.{layer}"), x, channels)?;
            layer += 1;
        }
        if level + 1 == blocks.len() {
            let name = format!("decoder.layers.{layer}");
            x = g.conv2d(x, &name, [channels, 3], Conv::SAME)?;
        } else {
            x = g.upsample(x);
            let name = format!("decoder.layers.{}", layer + 1);
            x = g.conv2d_without_bias(x, &name, [channels; 2], Conv::SAME)?;
            layer += 2;
        }
    }
    // Maps 0 to 1 onto −1 to 1.
    let [two, minus_one] = [2.0, -1.0].map(|value| g.constant(&[value], &[1]));
    x = g.mul(x, two);
    x = g.add(x, minus_one);
    g.output("image", x, &image_dims(3));
    g.finish()
}

/// Writes the encoder, with the inputs and outputs of [`encoder`](super::encoder).
pub(crate) fn encoder(config: &TinyConfig, mut g: Graph<'_>) -> Result<Model, Error> {
    let Half { channels, blocks } = &config.encoder;
    let channels = *channels;
    let mut x = g.input("image", &image_dims(3));
    // Maps −1 to 1 onto 0 to 1.
    let [one, half] = [1.0, 0.5].map(|value| g.constant(&[value], &[1]));
    x = g.add(x, one);
    x = g.mul(x, half);
    let mut layer = 0;
    for (level, &count) in blocks.iter().enumerate() {
        let name = format!("encoder.layers.{layer}");
        x = if level == 0 {
            g.conv2d(x, &name, [3, channels], Conv::SAME)?
        } else {
            let conv = Conv {
                stride: 2,
                ..Conv::SAME
            };
            g.conv2d_without_bias(x, &name, [channels; 2], conv)?
        };
        layer += 1;
        for _ in 0..count {
            x = block(&mut g, &format!("encoder.layers.{layer}"), x, channels)?;
            layer += 1;
        }
    }
    let name = format!("encoder.layers.{layer}");
    x = g.conv2d(x, &name, [channels, config.latent_channels], Conv::SAME)?;
    g.output("moments", x, &image_dims(config.latent_channels));
    g.finish()
}

/// Writes diffusers' `AutoencoderTinyBlock`: three convolutions with ReLU between them, plus the
/// input, then ReLU.
fn block(g: &mut Graph, name: &str, x: Value, channels: usize) -> Result<Value, Error> {
    let mut h = x;
    for layer in [0, 2, 4] {
        if layer > 0 {
            h = g.relu(h);
        }
        h = g.conv2d(
            h,
            &format!("{name}.conv.{layer}"),
            [channels; 2],
            Conv::SAME,
        )?;
    }
    let sum = g.add(h, x);
    Ok(g.relu(sum))
}
