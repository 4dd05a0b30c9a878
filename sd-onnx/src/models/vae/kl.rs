//! The autoencoder between pictures and latents (Rombach et al. 2021, arXiv 2112.10752), as
//! diffusers' `AutoencoderKL` computes it.
//!
//! Also `AsymmetricAutoencoderKL` without a mask (Zhu et al. 2023, arXiv 2306.04632), whose decoder
//! is wider and deeper than its encoder.

use serde_json::json;

use crate::{
    Error,
    config::{Config, SIZE},
    graph::{Conv, Graph, Model, Value},
    models::blocks::{Norm, image_dims, norm_silu, resnet},
};

/// The architecture of an autoencoder, from its `config.json`. Missing keys have the defaults of
/// the class.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct KlConfig {
    latent_channels: usize,
    encoder: Half,
    decoder: Half,
    norm: Norm,
    mid_block_attention: bool,
    quant_conv: bool,
    post_quant_conv: bool,
}

/// The shape of the encoder or the decoder.
#[derive(Debug, Clone, PartialEq)]
struct Half {
    /// The channels of each level. The first level has the size of the picture.
    channels: Vec<usize>,
    /// The number of resnets in a level of the encoder. The decoder has one more.
    resnets: usize,
}

impl KlConfig {
    /// Reads the configuration of an autoencoder. `asymmetric` means that the two halves have
    /// separate keys for their shapes.
    pub fn new(config: &Config, asymmetric: bool, latent_channels: usize) -> Result<Self, Error> {
        config.only("act_fn", &[json!("silu"), json!("swish")])?;
        let groups = config.usize("norm_num_groups", 32, SIZE)?;
        let both = ["block_out_channels", "layers_per_block"];
        let [down, up] = match asymmetric {
            true => [
                ["down_block_out_channels", "layers_per_down_block"],
                ["up_block_out_channels", "layers_per_up_block"],
            ],
            false => [both, both],
        };
        let half = |[channels_key, layers_key]: [&str; 2], blocks_key: &str, block: &str| {
            let channels = config.sizes(channels_key, &[64])?;
            if !(1..=10).contains(&channels.len()) {
                return Err(config.wrong(channels_key, "1 to 10 levels"));
            }
            let blocks = config.texts(blocks_key, &[block])?;
            if blocks.len() != channels.len() || blocks.iter().any(|&b| b != block) {
                let count = channels.len();
                let expected =
                    format!("{count} times \"{block}\", once for each level of {channels_key}");
                return Err(config.wrong(blocks_key, expected));
            }
            if channels.iter().any(|c| c % groups != 0) {
                let expected = format!("a divisor of every number in {channels_key}, {channels:?}");
                return Err(config.wrong("norm_num_groups", expected));
            }
            Ok(Half {
                channels,
                resnets: config.usize(layers_key, 1, 1..=64)?,
            })
        };
        let encoder = half(down, "down_block_types", "DownEncoderBlock2D")?;
        let decoder = half(up, "up_block_types", "UpDecoderBlock2D")?;
        if encoder.channels.len() != decoder.channels.len() {
            let expected = format!("{} levels, as many as {}", encoder.channels.len(), down[0]);
            return Err(config.wrong(up[0], expected));
        }
        Ok(Self {
            latent_channels,
            encoder,
            decoder,
            norm: Norm { groups, eps: 1e-6 },
            mid_block_attention: config.bool("mid_block_add_attention", true)?,
            quant_conv: config.bool("use_quant_conv", true)?,
            post_quant_conv: config.bool("use_post_quant_conv", true)?,
        })
    }

    /// Returns the number of pixels per latent on each side.
    pub fn factor(&self) -> usize {
        1 << (self.encoder.channels.len() - 1)
    }
}

/// Writes the decoder. The input is `latents` `[batch, latent_channels, h, w]`, already divided by
/// the scaling factor. The output is `image` `[batch, 3, h·factor, w·factor]`, about −1 to 1.
pub(crate) fn decoder(config: &KlConfig, mut g: Graph<'_>) -> Result<Model, Error> {
    let (latent, half) = (config.latent_channels, &config.decoder);
    let mut x = g.input("latents", &image_dims(latent));
    if config.post_quant_conv {
        x = g.conv2d(x, "post_quant_conv", [latent, latent], Conv::POINT)?;
    }
    let mut channels = *half
        .channels
        .last()
        .expect("the configuration has at least one level");
    x = g.conv2d(x, "decoder.conv_in", [latent, channels], Conv::SAME)?;
    x = mid_block(&mut g, config, "decoder.mid_block", x, channels)?;
    for (i, &output) in half.channels.iter().rev().enumerate() {
        for layer in 0..=half.resnets {
            let name = format!("decoder.up_blocks.{i}.resnets.{layer}");
            x = resnet(&mut g, &name, x, [channels, output], config.norm, None)?;
            channels = output;
        }
        if i + 1 < half.channels.len() {
            x = g.upsample(x);
            let name = format!("decoder.up_blocks.{i}.upsamplers.0.conv");
            x = g.conv2d(x, &name, [channels, channels], Conv::SAME)?;
        }
    }
    x = norm_silu(&mut g, "decoder.conv_norm_out", x, channels, config.norm)?;
    x = g.conv2d(x, "decoder.conv_out", [channels, 3], Conv::SAME)?;
    g.output("image", x, &image_dims(3));
    g.finish()
}

/// Writes the encoder. The input is `image` `[batch, 3, H, W]`, −1 to 1. The output is `moments`
/// `[batch, 2·latent_channels, H/factor, W/factor]`: the mean of the latents, then their
/// log-variance, neither scaled nor clamped.
pub(crate) fn encoder(config: &KlConfig, mut g: Graph<'_>) -> Result<Model, Error> {
    let half = &config.encoder;
    let mut channels = half.channels[0];
    let mut x = g.input("image", &image_dims(3));
    x = g.conv2d(x, "encoder.conv_in", [3, channels], Conv::SAME)?;
    for (i, &output) in half.channels.iter().enumerate() {
        for layer in 0..half.resnets {
            let name = format!("encoder.down_blocks.{i}.resnets.{layer}");
            x = resnet(&mut g, &name, x, [channels, output], config.norm, None)?;
            channels = output;
        }
        if i + 1 < half.channels.len() {
            let conv = Conv {
                kernel: 3,
                stride: 2,
                padding: [0, 1],
            };
            let name = format!("encoder.down_blocks.{i}.downsamplers.0.conv");
            x = g.conv2d(x, &name, [channels, channels], conv)?;
        }
    }
    x = mid_block(&mut g, config, "encoder.mid_block", x, channels)?;
    x = norm_silu(&mut g, "encoder.conv_norm_out", x, channels, config.norm)?;
    let moments = 2 * config.latent_channels;
    x = g.conv2d(x, "encoder.conv_out", [channels, moments], Conv::SAME)?;
    if config.quant_conv {
        x = g.conv2d(x, "quant_conv", [moments, moments], Conv::POINT)?;
    }
    g.output("moments", x, &image_dims(moments));
    g.finish()
}

/// Writes a resnet, self-attention over all positions if the model has it, and a resnet.
fn mid_block(
    g: &mut Graph,
    config: &KlConfig,
    name: &str,
    x: Value,
    channels: usize,
) -> Result<Value, Error> {
    let mut x = resnet(
        g,
        &format!("{name}.resnets.0"),
        x,
        [channels; 2],
        config.norm,
        None,
    )?;
    if config.mid_block_attention {
        x = attention(g, config, &format!("{name}.attentions.0"), x, channels)?;
    }
    resnet(
        g,
        &format!("{name}.resnets.1"),
        x,
        [channels; 2],
        config.norm,
        None,
    )
}

/// Writes self-attention with one head that is as wide as the channels.
fn attention(
    g: &mut Graph,
    config: &KlConfig,
    name: &str,
    image: Value,
    channels: usize,
) -> Result<Value, Error> {
    let normed = g.group_norm(
        image,
        &format!("{name}.group_norm"),
        channels,
        config.norm.groups,
        config.norm.eps,
    )?;
    let x = g.image_to_sequence(normed);
    let q = g.linear(x, &format!("{name}.to_q"), channels, channels)?;
    let k = g.linear(x, &format!("{name}.to_k"), channels, channels)?;
    let v = g.linear(x, &format!("{name}.to_v"), channels, channels)?;
    let attended = g.attention([q, k, v], [channels, 1], false);
    let out = g.linear(attended, &format!("{name}.to_out.0"), channels, channels)?;
    let out = g.sequence_to_image(out, image);
    Ok(g.add(out, image))
}
