//! The architecture of a UNet, read from its `config.json`.

use std::ops::RangeInclusive;

use sd_core::{Inputs, SizeIds};
use serde_json::json;

use super::{CLASS, merging::mark_level};
use crate::{
    Error,
    config::{Config, PerLevel, SIZE},
    models::{blocks::Norm, control_net},
};

/// The accepted sides of the latents that a model was made for. 256 latents are 2048 pixels.
/// Published models have at most 128.
const SAMPLE_SIZE: RangeInclusive<usize> = 1..=256;

/// The architecture of a UNet, from its `config.json`. Missing keys have the defaults of
/// `UNet2DConditionModel`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct UnetConfig {
    /// The inputs of the network.
    pub inputs: Inputs,
    /// The height and width of the latents that the model was made for.
    pub sample_size: [usize; 2],
    /// The width of the prompt embedding that the transformers attend to.
    pub(super) context_width: usize,
    /// Whether a linear layer first projects the prompt to that width, as in Kolors.
    pub(super) projects_context: bool,
    pub(super) levels: Vec<Level>,
    pub(super) mid_block: MidBlock,
    /// The number of transformer layers in the middle block.
    pub(super) mid_transformer_layers: usize,
    /// Whether these layers attend to the prompt twice and never to the image itself.
    pub(super) mid_only_cross_attention: bool,
    /// The pooled text and the sizes that SDXL adds to the time embedding.
    pub(super) added: Option<Added>,
    /// The width of the guidance scale's sinusoids in latent consistency models.
    pub guidance_width: Option<usize>,
    pub(super) use_linear_projection: bool,
    pub(super) norm: Norm,
    pub(super) conv_in_kernel: usize,
    pub(super) conv_out_kernel: usize,
    pub(super) downsample_padding: usize,
    pub(super) time_width: usize,
    pub(super) flip_sin_to_cos: bool,
    pub(super) freq_shift: f32,
}

/// The blocks at one resolution.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Level {
    pub(super) channels: usize,
    pub(super) resnets: usize,
    /// The number of transformer layers after each resnet of the down block.
    pub(super) transformer_layers_down: Vec<usize>,
    /// The number of transformer layers after each resnet of the up block, which has one resnet
    /// more.
    pub(super) transformer_layers_up: Vec<usize>,
    pub(super) heads: usize,
    pub(super) attention_down: bool,
    /// Whether the up block at this resolution has attention.
    pub(super) attention_up: bool,
    /// Whether the transformers attend to the prompt twice and never to the image itself.
    pub(super) only_cross_attention: bool,
    /// Whether the self-attentions are the largest of the UNet, before which tokens can be merged.
    pub(super) merges_tokens: bool,
}

/// The widths of SDXL's additions to the time embedding, `addition_embed_type: "text_time"`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Added {
    /// The width of each size's sinusoids.
    pub(super) size_width: usize,
    /// The width of the pooled text and all sinusoids together:
    /// `projection_class_embeddings_input_dim`.
    pub(super) width: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MidBlock {
    CrossAttention,
    /// A single resnet.
    Plain,
    None,
}

impl UnetConfig {
    /// Reads a UNet's configuration. `sizes` are the size ids that the network takes if its
    /// `addition_embed_type` is `text_time`. The configuration contains only the sum of their width
    /// and the pooled text's width.
    pub fn new(config: &Config, sizes: SizeIds) -> Result<Self, Error> {
        config.only("_class_name", &[json!(CLASS)])?;
        let up = ("up_block_types", ["UpBlock2D", UP, UP, UP]);
        Self::read(config, sizes, |count| {
            let mut up = attention_blocks(config, up.0, &up.1, count)?;
            up.reverse();
            Ok(Some(up))
        })
    }

    /// Reads the configuration of a ControlNet, which is the first half of a UNet.
    pub fn of_control_net(config: &Config, sizes: SizeIds) -> Result<Self, Error> {
        config.only("_class_name", &[json!(control_net::CLASS)])?;
        let unet = Self::read(config, sizes, |_| Ok(None))?;
        if unet.inputs.extra_channels > 0 {
            return Err(config.wrong("in_channels", unet.inputs.channels.to_string()));
        }
        Ok(unet)
    }

    /// Reads a configuration. `up` returns which up blocks have attention, for a number of levels,
    /// or `None` if there are no up blocks.
    fn read(
        config: &Config,
        sizes: SizeIds,
        up: impl FnOnce(usize) -> Result<Option<Vec<bool>>, Error>,
    ) -> Result<Self, Error> {
        refuse_what_is_not_written(config)?;
        let channels = channels(config)?;
        let count = channels.len();
        let defaults = [DOWN, DOWN, DOWN, "DownBlock2D"];
        let down = attention_blocks(config, "down_block_types", &defaults, count)?;
        let up = up(count)?.unwrap_or_else(|| vec![false; count]);
        let resnets = config.per_level("layers_per_block", 2, count)?;
        let transformer_layers = transformer_layers(config, &resnets, [&down, &up])?;
        // The key that diffusers calls `attention_head_dim` is the number of heads (diffusers issue
        // 2011).
        let heads = config.per_level("attention_head_dim", 8, count)?;
        let (context_width, prompt_width) = context_widths(config, count)?;
        // diffusers gives the flags to the up blocks in reverse order, so each flag belongs to a
        // level.
        let only_cross_attention = config.flag_per_level("only_cross_attention", count)?;
        let mid_only_cross_attention = config.bool(
            "mid_block_only_cross_attention",
            config.value("only_cross_attention") == Some(&json!(true)),
        )?;
        let groups = config.usize("norm_num_groups", 32, SIZE)?;
        let level = |i: usize| Level {
            channels: channels[i],
            resnets: resnets[i],
            transformer_layers_down: transformer_layers.down[i].clone(),
            transformer_layers_up: transformer_layers.up[i].clone(),
            heads: heads[i],
            attention_down: down[i],
            attention_up: up[i],
            only_cross_attention: only_cross_attention[i],
            merges_tokens: false,
        };
        let mut levels: Vec<_> = (0..count).map(level).collect();
        mark_level(&mut levels);
        check_levels(config, &levels, groups)?;
        let sample_size = sample_size(config)?;
        let (inputs, added) = inputs(config, prompt_width.unwrap_or(context_width), sizes)?;
        let guidance_width = guidance_width(config)?;
        Ok(Self {
            inputs: inputs.guidance(guidance_width.is_some()),
            context_width,
            projects_context: prompt_width.is_some(),
            added,
            guidance_width,
            mid_transformer_layers: transformer_layers.mid,
            mid_only_cross_attention,
            sample_size,
            levels,
            mid_block: mid_block(config)?,
            use_linear_projection: config.bool("use_linear_projection", false)?,
            norm: Norm {
                groups,
                eps: config.positive("norm_eps")?.unwrap_or(1e-5),
            },
            conv_in_kernel: odd_kernel(config, "conv_in_kernel")?,
            conv_out_kernel: odd_kernel(config, "conv_out_kernel")?,
            downsample_padding: config.usize("downsample_padding", 1, 0..=1)?,
            time_width: config.usize("time_embedding_dim", 4 * channels[0], SIZE)?,
            flip_sin_to_cos: config.bool("flip_sin_to_cos", true)?,
            freq_shift: config.finite("freq_shift")?.unwrap_or(0.0),
        })
    }
}

/// Refuses options of the class that this file does not write. No supported Stable Diffusion model
/// sets them.
fn refuse_what_is_not_written(config: &Config) -> Result<(), Error> {
    let class = config.value("class_embed_type");
    if class.is_some_and(|found| found == "projection") {
        return Err(other_model(config, "class_embed_type", "Stable unCLIP"));
    }
    let off = [json!(false)];
    let one = [json!(1), json!(1.0)];
    for key in [
        "num_attention_heads",
        "class_embed_type",
        "num_class_embeds",
        "time_embedding_act_fn",
        "timestep_post_act",
        "cross_attention_norm",
    ] {
        config.only(key, &[])?;
    }
    config.only("addition_embed_type", &[json!("text_time")])?;
    config.only("encoder_hid_dim_type", &[json!("text_proj")])?;
    for key in [
        "center_input_sample",
        "dual_cross_attention",
        "resnet_skip_time_act",
        "class_embeddings_concat",
    ] {
        config.only(key, &off)?;
    }
    config.only("mid_block_scale_factor", &one)?;
    config.only("resnet_out_scale_factor", &one)?;
    config.only("act_fn", &[json!("silu"), json!("swish")])?;
    config.only("resnet_time_scale_shift", &[json!("default")])?;
    config.only("time_embedding_type", &[json!("positional")])?;
    config.only("attention_type", &[json!("default")])
}

/// Creates the error for a key that identifies the UNet of an unsupported model. Naming the model
/// helps more than the expected value of the key.
fn other_model(config: &Config, key: &str, what: &str) -> Error {
    let expected = format!("another value: this is the UNet of {what}, which is not supported");
    config.wrong(key, expected)
}

/// Reads the channels of each level.
fn channels(config: &Config) -> Result<Vec<usize>, Error> {
    let channels = config.sizes("block_out_channels", &[320, 640, 1280, 1280])?;
    match channels.len() {
        1..=16 => Ok(channels),
        _ => Err(config.wrong("block_out_channels", "1 to 16 levels")),
    }
}

/// The blocks with attention.
const DOWN: &str = "CrossAttnDownBlock2D";
const UP: &str = "CrossAttnUpBlock2D";

/// Returns which blocks of `down_block_types` or `up_block_types` have attention.
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
            format!("{count} blocks, one for each level of block_out_channels"),
        ));
    }
    let (attention, plain) = match key {
        "down_block_types" => (DOWN, "DownBlock2D"),
        _ => (UP, "UpBlock2D"),
    };
    let has = |block: &&str| match *block {
        block if block == attention => Ok(true),
        block if block == plain => Ok(false),
        _ => Err(config.wrong(key, format!("only \"{attention}\" and \"{plain}\""))),
    };
    blocks.iter().map(has).collect()
}

/// The number of transformer layers after each resnet of each level. The list of a level without
/// attention may be empty.
struct TransformerLayers {
    down: Vec<Vec<usize>>,
    up: Vec<Vec<usize>>,
    mid: usize,
}

/// Reads the number of transformer layers of each block.
///
/// `transformer_layers_per_block` is one number, or has for each down block one number or a list
/// with one number per resnet. `reverse_transformer_layers_per_block` has the same form for the up
/// blocks, in their order. Without that key, the up blocks have the numbers of the down blocks in
/// reverse order.
fn transformer_layers(
    config: &Config,
    resnets: &[usize],
    [down_attention, up_attention]: [&[bool]; 2],
) -> Result<TransformerLayers, Error> {
    const DOWN: &str = "transformer_layers_per_block";
    const UP: &str = "reverse_transformer_layers_per_block";
    let count = resnets.len();
    let down = config.per_level_or_layer(DOWN, count)?;
    let up = match config.is_set(UP) {
        true => {
            let mut up = config.per_level_or_layer(UP, count)?;
            up.reverse();
            up
        }
        false => down.clone(),
    };
    let of_level = |key: &str, layers: &PerLevel, attention: bool, blocks: usize| match layers {
        _ if !attention => Ok(Vec::new()),
        PerLevel::Same(0) => Err(config.wrong(key, "1 or more at a level with attention")),
        PerLevel::Same(layers) => Ok(vec![*layers; blocks]),
        PerLevel::Each(layers) if layers.len() == blocks => Ok(layers.clone()),
        PerLevel::Each(_) => Err(config.wrong(
            key,
            format!("{blocks} numbers, one for each resnet of the block"),
        )),
    };
    let key_up = if config.is_set(UP) { UP } else { DOWN };
    let levels = 0..count;
    Ok(TransformerLayers {
        mid: match &down[count - 1] {
            PerLevel::Same(layers) => *layers,
            PerLevel::Each(layers) => layers[0],
        },
        down: levels
            .clone()
            .map(|i| of_level(DOWN, &down[i], down_attention[i], resnets[i]))
            .collect::<Result<_, _>>()?,
        up: levels
            .map(|i| of_level(key_up, &up[i], up_attention[i], resnets[i] + 1))
            .collect::<Result<_, _>>()?,
    })
}

/// Returns the width of the embedding that the transformers attend to, and the width of the prompt
/// if a linear layer projects it.
fn context_widths(config: &Config, count: usize) -> Result<(usize, Option<usize>), Error> {
    let widths = config.per_level("cross_attention_dim", 1280, count)?;
    if widths.iter().any(|&width| width != widths[0]) {
        return Err(config.wrong("cross_attention_dim", "the same width at every level"));
    }
    let prompt_width = match config.usize("encoder_hid_dim", 0, SIZE)? {
        0 if config.is_set("encoder_hid_dim_type") => {
            let expected = "the width of the prompt, because encoder_hid_dim_type is set";
            return Err(config.wrong("encoder_hid_dim", expected));
        }
        0 => None,
        width => Some(width),
    };
    Ok((widths[0], prompt_width))
}

/// The largest number of layers in a block.
const MOST_LAYERS: usize = 64;

/// Checks that the channels of each level can be divided as the blocks divide them, and that no
/// block has too many layers.
fn check_levels(config: &Config, levels: &[Level], groups: usize) -> Result<(), Error> {
    for level in levels {
        let c = level.channels;
        if c % groups != 0 {
            let channels: Vec<_> = levels.iter().map(|level| level.channels).collect();
            return Err(config.wrong(
                "norm_num_groups",
                format!("a divisor of every number in block_out_channels, {channels:?}"),
            ));
        }
        if level.heads > c {
            return Err(config.wrong(
                "attention_head_dim",
                format!("at most {c}, the channels of the level"),
            ));
        }
        if level.resnets > MOST_LAYERS {
            return Err(config.wrong("layers_per_block", format!("at most {MOST_LAYERS}")));
        }
    }
    if !levels[0].channels.is_multiple_of(2) {
        return Err(config.wrong(
            "block_out_channels",
            "an even first number, because the time embedding halves it",
        ));
    }
    Ok(())
}

/// Reads the height and width of the latents that the model was made for.
fn sample_size(config: &Config) -> Result<[usize; 2], Error> {
    let sides = config.per_level("sample_size", 64, 2)?;
    if sides.iter().any(|side| !SAMPLE_SIZE.contains(side)) {
        let most = SAMPLE_SIZE.end();
        return Err(config.wrong("sample_size", format!("at most {most} latents per side")));
    }
    Ok([sides[0], sides[1]])
}

/// Returns the inputs of the network except the guidance scale, and the widths of SDXL's additions.
fn inputs(
    config: &Config,
    context: usize,
    sizes: SizeIds,
) -> Result<(Inputs, Option<Added>), Error> {
    let channels = config.usize("out_channels", 4, SIZE)?;
    let all = config.usize("in_channels", 4, SIZE)?;
    // Inpainting has a mask and masked latents beside the latents. Instruct-pix2pix has the latents
    // of a picture.
    let beside = match all.checked_sub(channels) {
        Some(beside) if beside == 0 || beside == channels || beside == channels + 1 => beside,
        Some(1) => {
            return Err(other_model(
                config,
                "in_channels",
                "a depth-to-image model, with a depth map",
            ));
        }
        Some(3) => {
            return Err(other_model(
                config,
                "in_channels",
                "the x4 upscaler, with a small picture",
            ));
        }
        _ => {
            let (double, more) = (2 * channels, 2 * channels + 1);
            let expected = format!(
                "{channels}, as out_channels, {double} for instruct-pix2pix or {more} for inpainting"
            );
            return Err(config.wrong("in_channels", expected));
        }
    };
    let inputs = Inputs::new(channels, context).extra_channels(beside);
    if config.text("addition_embed_type", "none")? != "text_time" {
        return Ok((inputs, None));
    }
    let size_width = config.usize("addition_time_embed_dim", 256, 2..=1 << 16)?;
    if size_width % 2 != 0 {
        return Err(config.wrong("addition_time_embed_dim", "an even number"));
    }
    let width = config.usize("projection_class_embeddings_input_dim", 2816, SIZE)?;
    let ids = size_width * sizes.count();
    let Some(pooled) = width.checked_sub(ids).filter(|&pooled| pooled > 0) else {
        return Err(config.wrong(
            "projection_class_embeddings_input_dim",
            format!(
                "more than {ids}, for {} sizes of {size_width} each",
                sizes.count()
            ),
        ));
    };
    Ok((
        inputs.pooled(pooled).sizes(sizes),
        Some(Added { size_width, width }),
    ))
}

/// Reads the width of the guidance scale's sinusoids.
fn guidance_width(config: &Config) -> Result<Option<usize>, Error> {
    match config.usize("time_cond_proj_dim", 0, SIZE)? {
        0 => Ok(None),
        width if width % 2 == 0 && width > 2 => Ok(Some(width)),
        _ => Err(config.wrong("time_cond_proj_dim", "an even number, 4 or more")),
    }
}

/// Reads the kind of the middle block.
fn mid_block(config: &Config) -> Result<MidBlock, Error> {
    match config.text("mid_block_type", "UNetMidBlock2DCrossAttn")? {
        _ if config.is_null("mid_block_type") => Ok(MidBlock::None),
        "UNetMidBlock2DCrossAttn" => Ok(MidBlock::CrossAttention),
        "UNetMidBlock2D" => Ok(MidBlock::Plain),
        _ => {
            let expected = "\"UNetMidBlock2DCrossAttn\", \"UNetMidBlock2D\" or null";
            Err(config.wrong("mid_block_type", expected))
        }
    }
}

/// Reads the side of a convolution's kernel. An odd kernel has a middle, and keeps the size of the
/// latents.
fn odd_kernel(config: &Config, key: &str) -> Result<usize, Error> {
    match config.usize(key, 3, 1..=31)? {
        kernel if kernel % 2 == 1 => Ok(kernel),
        _ => Err(config.wrong(key, "an odd number")),
    }
}
