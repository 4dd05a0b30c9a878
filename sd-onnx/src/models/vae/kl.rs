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

    /// Returns the settings of the group norms.
    pub fn norm(&self) -> Norm {
        self.norm
    }
}

/// A layer of an encoder or a decoder. Its weights have the names of diffusers.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Layer {
    /// A convolution. `channels` are its inputs and outputs.
    Conv {
        name: String,
        channels: [usize; 2],
        conv: Conv,
    },
    /// A residual block. `channels` are its inputs and outputs.
    Resnet { name: String, channels: [usize; 2] },
    /// Self-attention over all positions.
    Attention { name: String, channels: usize },
    /// Doubles the height and width, and applies a 3 × 3 convolution.
    Upsample { name: String, channels: usize },
    /// A group norm followed by SiLU.
    NormSilu { name: String, channels: usize },
}

impl Layer {
    fn conv(name: impl Into<String>, channels: [usize; 2], conv: Conv) -> Self {
        Self::Conv {
            name: name.into(),
            channels,
            conv,
        }
    }
}

impl KlConfig {
    /// Returns the layers of the decoder, from the latents to the picture.
    pub fn decoder_layers(&self) -> Vec<Layer> {
        let (latent, half) = (self.latent_channels, &self.decoder);
        let mut layers = Vec::new();
        if self.post_quant_conv {
            layers.push(Layer::conv("post_quant_conv", [latent; 2], Conv::POINT));
        }
        let mut channels = *half
            .channels
            .last()
            .expect("the configuration has at least one level");
        layers.push(Layer::conv(
            "decoder.conv_in",
            [latent, channels],
            Conv::SAME,
        ));
        self.mid_block(&mut layers, "decoder.mid_block", channels);
        for (i, &output) in half.channels.iter().rev().enumerate() {
            for layer in 0..=half.resnets {
                let name = format!("decoder.up_blocks.{i}.resnets.{layer}");
                layers.push(Layer::Resnet {
                    name,
                    channels: [channels, output],
                });
                channels = output;
            }
            if i + 1 < half.channels.len() {
                let name = format!("decoder.up_blocks.{i}.upsamplers.0.conv");
                layers.push(Layer::Upsample { name, channels });
            }
        }
        layers.push(Layer::NormSilu {
            name: "decoder.conv_norm_out".to_owned(),
            channels,
        });
        layers.push(Layer::conv("decoder.conv_out", [channels, 3], Conv::SAME));
        layers
    }

    /// Returns the layers of the encoder, from the picture to the mean and the log-variance.
    pub fn encoder_layers(&self) -> Vec<Layer> {
        let half = &self.encoder;
        let mut channels = half.channels[0];
        let mut layers = vec![Layer::conv("encoder.conv_in", [3, channels], Conv::SAME)];
        for (i, &output) in half.channels.iter().enumerate() {
            for layer in 0..half.resnets {
                let name = format!("encoder.down_blocks.{i}.resnets.{layer}");
                layers.push(Layer::Resnet {
                    name,
                    channels: [channels, output],
                });
                channels = output;
            }
            if i + 1 < half.channels.len() {
                let conv = Conv {
                    kernel: 3,
                    stride: 2,
                    padding: [0, 1],
                };
                let name = format!("encoder.down_blocks.{i}.downsamplers.0.conv");
                layers.push(Layer::conv(name, [channels; 2], conv));
            }
        }
        self.mid_block(&mut layers, "encoder.mid_block", channels);
        layers.push(Layer::NormSilu {
            name: "encoder.conv_norm_out".to_owned(),
            channels,
        });
        let moments = 2 * self.latent_channels;
        layers.push(Layer::conv(
            "encoder.conv_out",
            [channels, moments],
            Conv::SAME,
        ));
        if self.quant_conv {
            layers.push(Layer::conv("quant_conv", [moments; 2], Conv::POINT));
        }
        layers
    }

    /// Adds a resnet, self-attention over all positions if the model has it, and a resnet.
    fn mid_block(&self, layers: &mut Vec<Layer>, name: &str, channels: usize) {
        let resnet = |i: usize| Layer::Resnet {
            name: format!("{name}.resnets.{i}"),
            channels: [channels; 2],
        };
        layers.push(resnet(0));
        if self.mid_block_attention {
            layers.push(Layer::Attention {
                name: format!("{name}.attentions.0"),
                channels,
            });
        }
        layers.push(resnet(1));
    }
}

/// Writes the decoder. The input is `latents` `[batch, latent_channels, h, w]`, already divided by
/// the scaling factor. The output is `image` `[batch, 3, h·factor, w·factor]`, about −1 to 1.
pub(crate) fn decoder(config: &KlConfig, mut g: Graph<'_>) -> Result<Model, Error> {
    let mut x = g.input("latents", &image_dims(config.latent_channels));
    for layer in &config.decoder_layers() {
        x = write(&mut g, config.norm, layer, x)?;
    }
    g.output("image", x, &image_dims(3));
    g.finish()
}

/// Writes the encoder. The input is `image` `[batch, 3, H, W]`, −1 to 1. The output is `moments`
/// `[batch, 2·latent_channels, H/factor, W/factor]`: the mean of the latents, then their
/// log-variance, neither scaled nor clamped.
pub(crate) fn encoder(config: &KlConfig, mut g: Graph<'_>) -> Result<Model, Error> {
    let mut x = g.input("image", &image_dims(3));
    for layer in &config.encoder_layers() {
        x = write(&mut g, config.norm, layer, x)?;
    }
    g.output("moments", x, &image_dims(2 * config.latent_channels));
    g.finish()
}

fn write(g: &mut Graph, norm: Norm, layer: &Layer, x: Value) -> Result<Value, Error> {
    match layer {
        Layer::Conv {
            name,
            channels,
            conv,
        } => g.conv2d(x, name, *channels, *conv),
        Layer::Resnet { name, channels } => resnet(g, name, x, *channels, norm, None),
        Layer::Attention { name, channels } => attention(g, norm, name, x, *channels),
        Layer::Upsample { name, channels } => upsample(g, name, x, *channels),
        Layer::NormSilu { name, channels } => norm_silu(g, name, x, *channels, norm),
    }
}

/// Writes a layer that doubles the height and width.
pub(super) fn upsample(
    g: &mut Graph,
    name: &str,
    x: Value,
    channels: usize,
) -> Result<Value, Error> {
    let x = g.upsample(x);
    g.conv2d(x, name, [channels; 2], Conv::SAME)
}

/// Writes self-attention with one head that is as wide as the channels.
fn attention(
    g: &mut Graph,
    norm: Norm,
    name: &str,
    image: Value,
    channels: usize,
) -> Result<Value, Error> {
    let normed = g.group_norm(
        image,
        &format!("{name}.group_norm"),
        channels,
        norm.groups,
        norm.eps,
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
