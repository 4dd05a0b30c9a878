//! The autoencoder between pictures and latents (Rombach et al. 2021, arXiv 2112.10752), as diffusers'
//! `AutoencoderKL` computes it.

use serde_json::json;

use super::blocks::{Norm, norm_silu, resnet};
use crate::{
    Error,
    config::{Config, SIZE},
    graph::{Conv, Dim, Graph, Model, Value},
    weights::Weights,
};

/// The class in diffusers.
pub(crate) const CLASS: &str = "AutoencoderKL";

/// The shape of an autoencoder, from its `config.json`. Missing keys are at `AutoencoderKL`'s defaults.
#[derive(Debug, Clone)]
pub(crate) struct VaeConfig {
    pub latent_channels: usize,
    pub scaling_factor: f32,
    pub shift_factor: f32,
    image_channels: [usize; 2],
    channels: Vec<usize>,
    resnets: usize,
    norm: Norm,
    mid_block_attention: bool,
    quant_conv: bool,
    post_quant_conv: bool,
}

impl VaeConfig {
    pub fn new(config: &Config) -> Result<Self, Error> {
        config.only("_class_name", &[json!(CLASS)])?;
        config.only("act_fn", &[json!("silu"), json!("swish")])?;
        let channels = config.sizes("block_out_channels", &[64])?;
        if !(1..=10).contains(&channels.len()) {
            return Err(config.wrong("block_out_channels", "1 to 10 levels"));
        }
        for (key, block) in [
            ("down_block_types", "DownEncoderBlock2D"),
            ("up_block_types", "UpDecoderBlock2D"),
        ] {
            let blocks = config.texts(key, &[block])?;
            if blocks.len() != channels.len() || blocks.iter().any(|&b| b != block) {
                return Err(config.wrong(
                    key,
                    format!(
                        "{} × \"{block}\", as many as block_out_channels",
                        channels.len()
                    ),
                ));
            }
        }
        let groups = config.usize("norm_num_groups", 32, SIZE)?;
        if channels.iter().any(|c| c % groups != 0) {
            return Err(config.wrong(
                "norm_num_groups",
                format!("a divisor of block_out_channels, {channels:?}"),
            ));
        }
        Ok(Self {
            latent_channels: config.usize("latent_channels", 4, SIZE)?,
            scaling_factor: config.positive("scaling_factor")?.unwrap_or(0.18215),
            shift_factor: config.finite("shift_factor")?.unwrap_or(0.0),
            image_channels: {
                // Three each, or there is no picture.
                config.only("in_channels", &[json!(3)])?;
                config.only("out_channels", &[json!(3)])?;
                [3, 3]
            },
            channels,
            resnets: config.usize("layers_per_block", 1, 1..=64)?,
            norm: Norm { groups, eps: 1e-6 },
            mid_block_attention: config.bool("mid_block_add_attention", true)?,
            quant_conv: config.bool("use_quant_conv", true)?,
            post_quant_conv: config.bool("use_post_quant_conv", true)?,
        })
    }

    /// Pixels per latent, on each side.
    pub fn factor(&self) -> usize {
        1 << (self.channels.len() - 1)
    }
}

/// `latents` `[batch, latent_channels, h, w]`, already divided by the scaling factor → `image` `[batch, 3, h·factor,
/// w·factor]`, about −1 to 1.
pub(crate) fn decoder(config: &VaeConfig, weights: &Weights) -> Result<Model, Error> {
    let mut g = Graph::new("vae_decoder", weights);
    let latent = config.latent_channels;
    let mut x = g.input("latents", &image_dims(latent));
    if config.post_quant_conv {
        x = g.conv2d(x, "post_quant_conv", [latent, latent], Conv::POINT)?;
    }
    let mut channels = *config
        .channels
        .last()
        .expect("at least one level, checked when read");
    x = g.conv2d(x, "decoder.conv_in", [latent, channels], Conv::SAME)?;
    x = mid_block(&mut g, config, "decoder.mid_block", x, channels)?;
    for (i, &output) in config.channels.iter().rev().enumerate() {
        for layer in 0..=config.resnets {
            let name = format!("decoder.up_blocks.{i}.resnets.{layer}");
            x = resnet(&mut g, &name, x, [channels, output], config.norm, None)?;
            channels = output;
        }
        if i + 1 < config.channels.len() {
            x = g.upsample(x);
            let name = format!("decoder.up_blocks.{i}.upsamplers.0.conv");
            x = g.conv2d(x, &name, [channels, channels], Conv::SAME)?;
        }
    }
    x = norm_silu(&mut g, "decoder.conv_norm_out", x, channels, config.norm)?;
    x = g.conv2d(
        x,
        "decoder.conv_out",
        [channels, config.image_channels[1]],
        Conv::SAME,
    )?;
    g.output("image", x, &image_dims(config.image_channels[1]));
    Ok(g.finish())
}

/// `image` `[batch, 3, H, W]`, −1 to 1 → `moments` `[batch, 2·latent_channels, H/factor, W/factor]`: the mean of the
/// latents, then their log-variance, neither scaled nor clamped.
pub(crate) fn encoder(config: &VaeConfig, weights: &Weights) -> Result<Model, Error> {
    let mut g = Graph::new("vae_encoder", weights);
    let mut channels = config.channels[0];
    let mut x = g.input("image", &image_dims(config.image_channels[0]));
    x = g.conv2d(
        x,
        "encoder.conv_in",
        [config.image_channels[0], channels],
        Conv::SAME,
    )?;
    for (i, &output) in config.channels.iter().enumerate() {
        for layer in 0..config.resnets {
            let name = format!("encoder.down_blocks.{i}.resnets.{layer}");
            x = resnet(&mut g, &name, x, [channels, output], config.norm, None)?;
            channels = output;
        }
        if i + 1 < config.channels.len() {
            let conv = Conv {
                kernel: 3,
                stride: 2,
                padding: 0,
            };
            let name = format!("encoder.down_blocks.{i}.downsamplers.0.conv");
            x = g.pad_bottom_right(x);
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
    Ok(g.finish())
}

/// Whether a tensor is the encoder's.
pub(crate) fn is_of_encoder(name: &str) -> bool {
    name.starts_with("encoder.") || name.starts_with("quant_conv.")
}

fn image_dims(channels: usize) -> [Dim; 4] {
    [
        Dim::Any("batch"),
        Dim::Fixed(channels),
        Dim::Any("height"),
        Dim::Any("width"),
    ]
}

/// A resnet, attention of every place to every place where the model has it, and a resnet.
fn mid_block(
    g: &mut Graph,
    config: &VaeConfig,
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

/// One head as wide as the channels.
fn attention(
    g: &mut Graph,
    config: &VaeConfig,
    name: &str,
    image: Value,
    channels: usize,
) -> Result<Value, Error> {
    // The names before diffusers 0.18, which most published folders have.
    let old = g.has(&format!("{name}.query.weight"));
    let [to_q, to_k, to_v, to_out] = if old {
        ["query", "key", "value", "proj_attn"]
    } else {
        ["to_q", "to_k", "to_v", "to_out.0"]
    };
    let normed = g.group_norm(
        image,
        &format!("{name}.group_norm"),
        channels,
        config.norm.groups,
        config.norm.eps,
    )?;
    let x = g.image_to_sequence(normed);
    let q = g.linear(x, &format!("{name}.{to_q}"), channels, channels)?;
    let k = g.linear(x, &format!("{name}.{to_k}"), channels, channels)?;
    let v = g.linear(x, &format!("{name}.{to_v}"), channels, channels)?;
    let attended = g.attention(q, k, v, 1, false);
    let out = g.linear(attended, &format!("{name}.{to_out}"), channels, channels)?;
    let out = g.sequence_to_image(out, image);
    Ok(g.add(out, image))
}
