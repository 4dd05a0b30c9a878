//! The denoising UNet of latent diffusion (Rombach et al. 2021, arXiv 2112.10752), as diffusers'
//! `UNet2DConditionModel` computes it for Stable Diffusion 1.x and its relatives.

use std::ops::RangeInclusive;

use serde_json::json;

use super::blocks::{Norm, Time, norm_silu, resnet};
use crate::{
    Error,
    config::{Config, SIZE},
    graph::{Activation, Conv, Dim, Graph, Model, Value},
    weights::Weights,
};

/// The class in diffusers.
pub(crate) const CLASS: &str = "UNet2DConditionModel";

/// The latent sides that a model may have been made for. 256 are 2048 pixels; published ones have at most 128.
const SAMPLE_SIZE: RangeInclusive<usize> = 1..=256;

/// The shape of a UNet, from its `config.json`. Missing keys are at `UNet2DConditionModel`'s defaults.
#[derive(Debug, Clone)]
pub(crate) struct UnetConfig {
    /// Of its input and of its output.
    pub latent_channels: usize,
    pub cross_attention_dim: usize,
    /// Latent side the model was made for.
    pub sample_size: [usize; 2],
    levels: Vec<Level>,
    mid_block: MidBlock,
    use_linear_projection: bool,
    norm: Norm,
    conv_in_kernel: usize,
    conv_out_kernel: usize,
    downsample_padding: usize,
    time_width: usize,
    flip_sin_to_cos: bool,
    freq_shift: f32,
}

/// One resolution.
#[derive(Debug, Clone)]
struct Level {
    channels: usize,
    resnets: usize,
    /// Transformer layers after each resnet.
    transformer_layers: usize,
    heads: usize,
    attention_down: bool,
    /// Of the up block at this resolution.
    attention_up: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MidBlock {
    CrossAttention,
    /// One resnet.
    Plain,
    None,
}

impl UnetConfig {
    pub fn new(config: &Config) -> Result<Self, Error> {
        config.only("_class_name", &[json!(CLASS)])?;
        refuse_other_models(config)?;
        refuse_what_is_not_written(config)?;
        let channels = config.sizes("block_out_channels", &[320, 640, 1280, 1280])?;
        let count = channels.len();
        if !(1..=16).contains(&count) {
            return Err(config.wrong("block_out_channels", "1 to 16 levels"));
        }
        let (down, up) = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D");
        let down = attention_blocks(
            config,
            "down_block_types",
            &[down, down, down, "DownBlock2D"],
            count,
        )?;
        let mut up = attention_blocks(config, "up_block_types", &["UpBlock2D", up, up, up], count)?;
        up.reverse();
        let resnets = config.per_level("layers_per_block", 2, count)?;
        let transformer_layers = config.per_level("transformer_layers_per_block", 1, count)?;
        // What diffusers calls `attention_head_dim` is the number of heads (its issue 2011).
        let heads = config.per_level("attention_head_dim", 8, count)?;
        let widths = config.per_level("cross_attention_dim", 1280, count)?;
        if widths.iter().any(|&width| width != widths[0]) {
            return Err(config.wrong("cross_attention_dim", "the same width at every level"));
        }
        let groups = config.usize("norm_num_groups", 32, SIZE)?;
        for (level, &c) in channels.iter().enumerate() {
            if c % groups != 0 {
                return Err(config.wrong(
                    "norm_num_groups",
                    format!("a divisor of block_out_channels, {channels:?}"),
                ));
            }
            if heads[level] > c {
                return Err(config.wrong(
                    "attention_head_dim",
                    format!("at most the level's channels, {c}"),
                ));
            }
            if resnets[level] > 64 || transformer_layers[level] > 64 {
                let key = if resnets[level] > 64 {
                    "layers_per_block"
                } else {
                    "transformer_layers_per_block"
                };
                return Err(config.wrong(key, "at most 64"));
            }
        }
        if channels[0] % 2 != 0 {
            return Err(config.wrong(
                "block_out_channels",
                "an even first level, which the time embedding halves",
            ));
        }
        let odd = |key| match config.usize(key, 3, 1..=31)? {
            kernel if kernel % 2 == 1 => Ok(kernel),
            _ => Err(config.wrong(key, "an odd number")),
        };
        let level = |i: usize| Level {
            channels: channels[i],
            resnets: resnets[i],
            transformer_layers: transformer_layers[i],
            heads: heads[i],
            attention_down: down[i],
            attention_up: up[i],
        };
        let sample_size = config.per_level("sample_size", 64, 2)?;
        if sample_size.iter().any(|side| !SAMPLE_SIZE.contains(side)) {
            let most = SAMPLE_SIZE.end();
            return Err(config.wrong("sample_size", format!("at most {most} latents a side")));
        }
        Ok(Self {
            latent_channels: config.usize("in_channels", 4, SIZE)?,
            cross_attention_dim: widths[0],
            sample_size: [sample_size[0], sample_size[1]],
            levels: (0..count).map(level).collect(),
            mid_block: match config.text("mid_block_type", "UNetMidBlock2DCrossAttn")? {
                _ if config.is_null("mid_block_type") => MidBlock::None,
                "UNetMidBlock2DCrossAttn" => MidBlock::CrossAttention,
                "UNetMidBlock2D" => MidBlock::Plain,
                _ => {
                    let expected = "\"UNetMidBlock2DCrossAttn\", \"UNetMidBlock2D\" or null";
                    return Err(config.wrong("mid_block_type", expected));
                }
            },
            use_linear_projection: config.bool("use_linear_projection", false)?,
            norm: Norm {
                groups,
                eps: config.positive("norm_eps")?.unwrap_or(1e-5),
            },
            conv_in_kernel: odd("conv_in_kernel")?,
            conv_out_kernel: odd("conv_out_kernel")?,
            downsample_padding: config.usize("downsample_padding", 1, 0..=1)?,
            time_width: config.usize("time_embedding_dim", 4 * channels[0], SIZE)?,
            flip_sin_to_cos: config.bool("flip_sin_to_cos", true)?,
            freq_shift: config.finite("freq_shift")?.unwrap_or(0.0),
        })
    }
}

/// Refuses the UNets of other models by the models' names, which say more than a key.
fn refuse_other_models(config: &Config) -> Result<(), Error> {
    let refuse = |key, expected: &str, what: &str| {
        let problem =
            format!("{expected}: this is the UNet of {what}; such models are not supported yet");
        Err(config.wrong(key, problem))
    };
    let is = |key, value: &str| config.value(key).is_some_and(|found| found == value);
    if is("addition_embed_type", "text_time") {
        return refuse("addition_embed_type", "null", "SDXL");
    }
    if is("class_embed_type", "projection") {
        return refuse("class_embed_type", "null", "Stable unCLIP");
    }
    if config.value("time_cond_proj_dim").is_some() {
        let what = "a latent consistency model (LCM)";
        return refuse("time_cond_proj_dim", "null", what);
    }
    let [input, output] = ["in_channels", "out_channels"].map(|key| config.usize(key, 4, SIZE));
    let (input, output) = (input?, output?);
    // What it takes besides the latents.
    let what = match input.saturating_sub(output) {
        _ if output != 4 => None,
        1 => Some("a depth-to-image model, which also takes a depth map"),
        3 => Some("the x4 upscaler, which also takes a small picture"),
        4 => Some("an instruct-pix2pix model, which also takes a picture's latents"),
        5 => Some("an inpainting model, which also takes a mask and a picture's latents"),
        _ => None,
    };
    match what {
        Some(what) => refuse("in_channels", "4", what),
        None if input != output => {
            let expected = format!("{input}, as in_channels, the latents' channels");
            Err(config.wrong("out_channels", expected))
        }
        None => Ok(()),
    }
}

/// Options of the class that Stable Diffusion 1.x leaves at these values.
fn refuse_what_is_not_written(config: &Config) -> Result<(), Error> {
    let off = [json!(false)];
    let one = [json!(1), json!(1.0)];
    for key in [
        "num_attention_heads",
        "encoder_hid_dim",
        "encoder_hid_dim_type",
        "class_embed_type",
        "addition_embed_type",
        "num_class_embeds",
        "time_embedding_act_fn",
        "timestep_post_act",
        "time_cond_proj_dim",
        "cross_attention_norm",
        "reverse_transformer_layers_per_block",
    ] {
        config.only(key, &[])?;
    }
    for key in [
        "center_input_sample",
        "mid_block_only_cross_attention",
        "dual_cross_attention",
        "resnet_skip_time_act",
        "class_embeddings_concat",
    ] {
        config.only(key, &off)?;
    }
    // One for all levels, or one each.
    let count = config
        .sizes("block_out_channels", &[320, 640, 1280, 1280])?
        .len();
    config.only(
        "only_cross_attention",
        &[json!(false), json!(vec![false; count])],
    )?;
    config.only("mid_block_scale_factor", &one)?;
    config.only("resnet_out_scale_factor", &one)?;
    config.only("act_fn", &[json!("silu"), json!("swish")])?;
    config.only("resnet_time_scale_shift", &[json!("default")])?;
    config.only("time_embedding_type", &[json!("positional")])?;
    config.only("attention_type", &[json!("default")])
}

/// Which blocks of `down_block_types` or `up_block_types` have attention.
fn attention_blocks(
    config: &Config,
    key: &str,
    default: &[&str; 4],
    count: usize,
) -> Result<Vec<bool>, Error> {
    let blocks = config.texts(key, default)?;
    if blocks.len() != count {
        return Err(config.wrong(
            key,
            format!("{count} blocks, as many as block_out_channels"),
        ));
    }
    let (attention, plain) = match key {
        "down_block_types" => ("CrossAttnDownBlock2D", "DownBlock2D"),
        _ => ("CrossAttnUpBlock2D", "UpBlock2D"),
    };
    let has = |block: &&str| match *block {
        block if block == attention => Ok(true),
        block if block == plain => Ok(false),
        _ => Err(config.wrong(key, format!("only \"{attention}\" and \"{plain}\""))),
    };
    blocks.iter().map(has).collect()
}

/// `sample` `[batch, latent_channels, h, w]`, `timestep` `[1]`, `encoder_hidden_states` `[batch, length,
/// cross_attention_dim]` → `output` `[batch, latent_channels, h, w]`.
pub(crate) fn graph(config: &UnetConfig, weights: &Weights) -> Result<Model, Error> {
    let mut g = Graph::new("unet", weights);
    let image = |channels| {
        [
            Dim::Any("batch"),
            Dim::Fixed(channels),
            Dim::Any("height"),
            Dim::Any("width"),
        ]
    };
    let sample = g.input("sample", &image(config.latent_channels));
    let timestep = g.input("timestep", &[Dim::Fixed(1)]);
    let context = [
        Dim::Any("batch"),
        Dim::Any("length"),
        Dim::Fixed(config.cross_attention_dim),
    ];
    let context = g.input("encoder_hidden_states", &context);

    let time = time_embedding(&mut g, config, timestep)?;
    let mut unet = Unet {
        g,
        config,
        time,
        context,
    };
    let output = unet.forward(sample)?;
    unet.g
        .output("output", output, &image(config.latent_channels));
    Ok(unet.g.finish())
}

/// Sinusoids of the timestep, two linear layers with SiLU between, and the SiLU that every resnet begins with.
fn time_embedding(g: &mut Graph, config: &UnetConfig, timestep: Value) -> Result<Time, Error> {
    let channels = config.levels[0].channels;
    let half = channels / 2;
    // In f32, step by step, as `get_timestep_embedding` has it: the largest angle is near 1000, so that the last bit of a
    // frequency counts.
    let frequency = |i: usize| {
        let exponent = -(10_000f64.ln()) as f32 * i as f32 / (half as f32 - config.freq_shift);
        f64::from(exponent).exp() as f32
    };
    let frequencies: Vec<f32> = (0..half).map(frequency).collect();
    let frequencies = g.constant(&frequencies, &[1, half]);
    let angles = g.mul(timestep, frequencies);
    let (sin, cos) = (g.sin(angles), g.cos(angles));
    let order = if config.flip_sin_to_cos {
        [cos, sin]
    } else {
        [sin, cos]
    };
    let x = g.concat(&order, -1);
    let x = g.linear(x, "time_embedding.linear_1", channels, config.time_width)?;
    let x = g.activation(x, Activation::Silu);
    let x = g.linear(
        x,
        "time_embedding.linear_2",
        config.time_width,
        config.time_width,
    )?;
    Ok(Time {
        embedding: g.activation(x, Activation::Silu),
        width: config.time_width,
    })
}

struct Unet<'a, 'w> {
    g: Graph<'w>,
    config: &'a UnetConfig,
    time: Time,
    context: Value,
}

impl Unet<'_, '_> {
    fn forward(&mut self, sample: Value) -> Result<Value, Error> {
        let config = self.config;
        let levels = &config.levels;
        let first = levels[0].channels;
        let mut x = self.g.conv2d(
            sample,
            "conv_in",
            [config.latent_channels, first],
            Conv::same(config.conv_in_kernel),
        )?;

        // What the up path concatenates, with its channel count.
        let mut skips = vec![(x, first)];
        let mut channels = first;
        for (i, level) in levels.iter().enumerate() {
            let name = format!("down_blocks.{i}");
            for layer in 0..level.resnets {
                x = self.resnet(
                    &format!("{name}.resnets.{layer}"),
                    x,
                    [channels, level.channels],
                )?;
                channels = level.channels;
                if level.attention_down {
                    x = self.transformer(&format!("{name}.attentions.{layer}"), x, level)?;
                }
                skips.push((x, channels));
            }
            if i + 1 < levels.len() {
                let conv = Conv {
                    kernel: 3,
                    stride: 2,
                    padding: config.downsample_padding,
                };
                // Without padding of its own diffusers adds a row and a column at the end.
                let padded = if config.downsample_padding == 0 {
                    self.g.pad_bottom_right(x)
                } else {
                    x
                };
                x = self.g.conv2d(
                    padded,
                    &format!("{name}.downsamplers.0.conv"),
                    [channels, channels],
                    conv,
                )?;
                skips.push((x, channels));
            }
        }

        x = self.mid_block(x)?;

        for (i, level) in levels.iter().rev().enumerate() {
            let name = format!("up_blocks.{i}");
            for layer in 0..=level.resnets {
                let (skip, skip_channels) = skips.pop().expect("as many as the down path pushed");
                x = self.g.concat(&[x, skip], 1);
                let input = channels + skip_channels;
                x = self.resnet(
                    &format!("{name}.resnets.{layer}"),
                    x,
                    [input, level.channels],
                )?;
                channels = level.channels;
                if level.attention_up {
                    x = self.transformer(&format!("{name}.attentions.{layer}"), x, level)?;
                }
            }
            if i + 1 < levels.len() {
                // Sides that were odd on the way down come back to the size of the skip, not to twice their half.
                let (skip, _) = *skips.last().expect("the next block's");
                x = self.g.upsample_to(x, skip);
                x = self.g.conv2d(
                    x,
                    &format!("{name}.upsamplers.0.conv"),
                    [channels, channels],
                    Conv::SAME,
                )?;
            }
        }

        let x = norm_silu(&mut self.g, "conv_norm_out", x, channels, config.norm)?;
        self.g.conv2d(
            x,
            "conv_out",
            [channels, config.latent_channels],
            Conv::same(config.conv_out_kernel),
        )
    }

    fn mid_block(&mut self, x: Value) -> Result<Value, Error> {
        let level = self
            .config
            .levels
            .last()
            .expect("at least one level, checked when read");
        let channels = [level.channels; 2];
        if self.config.mid_block == MidBlock::None {
            return Ok(x);
        }
        let x = self.resnet("mid_block.resnets.0", x, channels)?;
        if self.config.mid_block == MidBlock::Plain {
            return Ok(x);
        }
        let x = self.transformer("mid_block.attentions.0", x, level)?;
        self.resnet("mid_block.resnets.1", x, channels)
    }

    fn resnet(&mut self, name: &str, x: Value, channels: [usize; 2]) -> Result<Value, Error> {
        resnet(
            &mut self.g,
            name,
            x,
            channels,
            self.config.norm,
            Some(self.time),
        )
    }

    /// diffusers' `Transformer2DModel`.
    fn transformer(&mut self, name: &str, image: Value, level: &Level) -> Result<Value, Error> {
        let channels = level.channels;
        let width = channels / level.heads * level.heads;
        let g = &mut self.g;
        let (proj_in, proj_out) = (format!("{name}.proj_in"), format!("{name}.proj_out"));
        let normed = g.group_norm(
            image,
            &format!("{name}.norm"),
            channels,
            self.config.norm.groups,
            1e-6,
        )?;
        let (projected, mut x) = if self.config.use_linear_projection {
            let x = g.image_to_sequence(normed);
            (image, g.linear(x, &proj_in, channels, width)?)
        } else {
            let projected = g.conv2d(normed, &proj_in, [channels, width], Conv::POINT)?;
            (projected, g.image_to_sequence(projected))
        };
        for layer in 0..level.transformer_layers {
            x = self.transformer_block(
                &format!("{name}.transformer_blocks.{layer}"),
                x,
                width,
                level.heads,
            )?;
        }
        let g = &mut self.g;
        let out = if self.config.use_linear_projection {
            let x = g.linear(x, &proj_out, width, channels)?;
            g.sequence_to_image(x, projected)
        } else {
            let x = g.sequence_to_image(x, projected);
            g.conv2d(x, &proj_out, [width, channels], Conv::POINT)?
        };
        Ok(g.add(out, image))
    }

    /// diffusers' `BasicTransformerBlock`: attention to itself, attention to the prompt, and a gated MLP.
    fn transformer_block(
        &mut self,
        name: &str,
        x: Value,
        width: usize,
        heads: usize,
    ) -> Result<Value, Error> {
        const EPS: f32 = 1e-5;
        let normed = self.g.layer_norm(x, &format!("{name}.norm1"), width, EPS)?;
        let attended = self.attention(
            &format!("{name}.attn1"),
            normed,
            normed,
            [width, width],
            heads,
        )?;
        let x = self.g.add(attended, x);

        let normed = self.g.layer_norm(x, &format!("{name}.norm2"), width, EPS)?;
        let widths = [width, self.config.cross_attention_dim];
        let attended = self.attention(
            &format!("{name}.attn2"),
            normed,
            self.context,
            widths,
            heads,
        )?;
        let g = &mut self.g;
        let x = g.add(attended, x);

        let normed = g.layer_norm(x, &format!("{name}.norm3"), width, EPS)?;
        let both = g.linear(normed, &format!("{name}.ff.net.0.proj"), width, 8 * width)?;
        let [inner, gate] = g.halves(both);
        let gate = g.gelu(gate);
        let inner = g.mul(inner, gate);
        let out = g.linear(inner, &format!("{name}.ff.net.2"), 4 * width, width)?;
        Ok(g.add(out, x))
    }

    fn attention(
        &mut self,
        name: &str,
        x: Value,
        context: Value,
        [width, context_width]: [usize; 2],
        heads: usize,
    ) -> Result<Value, Error> {
        let g = &mut self.g;
        let q = g.linear_without_bias(x, &format!("{name}.to_q"), width, width)?;
        let k = g.linear_without_bias(context, &format!("{name}.to_k"), context_width, width)?;
        let v = g.linear_without_bias(context, &format!("{name}.to_v"), context_width, width)?;
        let attended = g.attention(q, k, v, heads, false);
        g.linear(attended, &format!("{name}.to_out.0"), width, width)
    }
}
