//! The denoising UNet of latent diffusion (Rombach et al. 2021, arXiv 2112.10752), as diffusers'
//! `UNet2DConditionModel` computes it for Stable Diffusion 1.x, 2.x, SDXL and their relatives.

use std::ops::RangeInclusive;

use sd_core::{Inputs, SizeIds};
use serde_json::json;

use super::blocks::{Norm, Time, image_dims, norm_silu, resnet};
use crate::{
    Error,
    config::{Config, PerLevel, SIZE},
    graph::{Activation, Conv, Dialect, Dim, Graph, Model, Value},
    weights::Weights,
};

/// The class in diffusers.
pub(crate) const CLASS: &str = "UNet2DConditionModel";

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
    context_width: usize,
    /// Whether a linear layer first projects the prompt to that width, as in Kolors.
    projects_context: bool,
    levels: Vec<Level>,
    mid_block: MidBlock,
    /// The number of transformer layers in the middle block.
    mid_transformer_layers: usize,
    /// Whether these layers attend to the prompt twice and never to the image itself.
    mid_only_cross_attention: bool,
    /// The pooled text and the sizes that SDXL adds to the time embedding.
    added: Option<Added>,
    /// The width of the guidance scale's sinusoids in latent consistency models.
    pub guidance_width: Option<usize>,
    use_linear_projection: bool,
    norm: Norm,
    conv_in_kernel: usize,
    conv_out_kernel: usize,
    downsample_padding: usize,
    time_width: usize,
    flip_sin_to_cos: bool,
    freq_shift: f32,
}

/// The blocks at one resolution.
#[derive(Debug, Clone, PartialEq)]
struct Level {
    channels: usize,
    resnets: usize,
    /// The number of transformer layers after each resnet of the down block.
    transformer_layers_down: Vec<usize>,
    /// The number of transformer layers after each resnet of the up block, which has one resnet
    /// more.
    transformer_layers_up: Vec<usize>,
    heads: usize,
    attention_down: bool,
    /// Whether the up block at this resolution has attention.
    attention_up: bool,
    /// Whether the transformers attend to the prompt twice and never to the image itself.
    only_cross_attention: bool,
}

/// The widths of SDXL's additions to the time embedding, `addition_embed_type: "text_time"`.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Added {
    /// The width of each size's sinusoids.
    size_width: usize,
    /// The width of the pooled text and all sinusoids together:
    /// `projection_class_embeddings_input_dim`.
    width: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MidBlock {
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
        refuse_what_is_not_written(config)?;
        let channels = channels(config)?;
        let count = channels.len();
        let [down, up] = attention(config, count)?;
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
        };
        let levels: Vec<_> = (0..count).map(level).collect();
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

/// Returns which levels have attention on the way down, and which on the way up.
fn attention(config: &Config, count: usize) -> Result<[Vec<bool>; 2], Error> {
    let (down, up) = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D");
    let defaults = [down, down, down, "DownBlock2D"];
    let down = attention_blocks(config, "down_block_types", &defaults, count)?;
    let defaults = ["UpBlock2D", up, up, up];
    let mut up = attention_blocks(config, "up_block_types", &defaults, count)?;
    up.reverse();
    Ok([down, up])
}

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

/// The names of the graph's inputs.
pub(crate) mod input {
    /// The latents `[batch, channels, h, w]`.
    pub const LATENTS: &str = "sample";
    /// A mask or picture beside the latents, `[batch, channels, h, w]`, in networks that take one.
    pub const BESIDE: &str = "beside";
    /// The timestep `[1]`, or its sinusoids `[1, width]` in a [dialect](crate::graph::Dialect) with
    /// sinusoids as inputs.
    pub const TIMESTEP: &str = "timestep";
    /// The prompt embedding `[batch, length, width]`.
    pub const CONTEXT: &str = "encoder_hidden_states";
    /// SDXL's pooled text embedding `[batch, width]`.
    pub const POOLED: &str = "text_embeds";
    /// SDXL's sizes `[batch, ids]`, or their sinusoids `[batch, ids · width]`, like the timestep.
    pub const SIZES: &str = "time_ids";
    /// The [`guidance_sinusoids`](super::guidance_sinusoids) of latent consistency models,
    /// `[batch, width]`.
    pub const GUIDANCE: &str = "timestep_cond";
}

/// Writes the graph. It has the [inputs](input) of the configuration, and the output is `output`
/// `[batch, channels, h, w]`.
pub(crate) fn graph(
    config: &UnetConfig,
    weights: &Weights,
    dialect: Dialect,
) -> Result<Model, Error> {
    let takes = &config.inputs;
    let mut g = Graph::new("unet", weights, dialect).seamless(takes.seamless);
    let vector = |width| [Dim::Any("batch"), Dim::Fixed(width)];
    let mut sample = g.input(input::LATENTS, &image_dims(takes.channels));
    let mut time = time_embedding(&mut g, config)?;
    let context = [
        Dim::Any("batch"),
        Dim::Any("length"),
        Dim::Fixed(takes.context),
    ];
    let mut context = g.input(input::CONTEXT, &context);
    if config.projects_context {
        let widths = [takes.context, config.context_width];
        context = g.linear(context, "encoder_hid_proj", widths[0], widths[1])?;
    }
    if takes.extra_channels > 0 {
        let beside = g.input(input::BESIDE, &image_dims(takes.extra_channels));
        sample = g.concat(&[sample, beside], 1);
    }
    if let (Some(added), Some(pooled), Some(sizes)) = (config.added, takes.pooled, takes.sizes) {
        let pooled = g.input(input::POOLED, &vector(pooled));
        let added = added_embedding(&mut g, config, added, pooled, sizes.count())?;
        time = g.add(time, added);
    }
    let time = Time {
        // Every resnet starts with this activation, so it is computed once.
        embedding: g.activation(time, Activation::Silu),
        width: config.time_width,
    };
    let mut unet = Unet {
        g,
        config,
        time,
        context,
    };
    let output = unet.forward(sample)?;
    unet.g.output("output", output, &image_dims(takes.channels));
    unet.g.finish()
}

/// Writes the time embedding: the sinusoids of the timestep, and two linear layers with SiLU
/// between them.
fn time_embedding(g: &mut Graph, config: &UnetConfig) -> Result<Value, Error> {
    let channels = config.levels[0].channels;
    let mut x = match g.dialect().sinusoid_inputs {
        true => g.input(input::TIMESTEP, &[Dim::Fixed(1), Dim::Fixed(channels)]),
        false => {
            let timestep = g.input(input::TIMESTEP, &[Dim::Fixed(1)]);
            sinusoids(g, &config.timestep_sinusoids(), timestep)
        }
    };
    if let Some(width) = config.guidance_width {
        let guidance = g.input(input::GUIDANCE, &[Dim::Any("batch"), Dim::Fixed(width)]);
        let projected =
            g.linear_without_bias(guidance, "time_embedding.cond_proj", width, channels)?;
        x = g.add(x, projected);
    }
    two_layers(g, "time_embedding", x, [channels, config.time_width])
}

/// Writes SDXL's addition to the time embedding: the pooled text and the sinusoids of each size,
/// concatenated, through two linear layers.
fn added_embedding(
    g: &mut Graph,
    config: &UnetConfig,
    added: Added,
    pooled: Value,
    sizes: usize,
) -> Result<Value, Error> {
    let width = |width| [Dim::Any("batch"), Dim::Fixed(width)];
    let x = match g.dialect().sinusoid_inputs {
        true => g.input(input::SIZES, &width(sizes * added.size_width)),
        false => {
            let sizes = g.input(input::SIZES, &width(sizes));
            // The shapes are `[batch, ids]`, `[batch, ids, 1]`, `[batch, ids, width]` and
            // `[batch, ids · width]`.
            let each = g.dims(&[0, -1, 1]);
            let each = g.reshape(sizes, each);
            let x = sinusoids(g, &config.sinusoids(added.size_width), each);
            let flat = g.dims(&[0, -1]);
            g.reshape(x, flat)
        }
    };
    let x = g.concat(&[pooled, x], -1);
    two_layers(g, "add_embedding", x, [added.width, config.time_width])
}

/// The sinusoids that a UNet computes from a number: `get_timestep_embedding` in diffusers'
/// `models/embeddings.py`.
#[derive(Debug, Clone)]
pub(crate) struct Sinusoids {
    /// One frequency for each pair of a sine and a cosine.
    frequencies: Vec<f32>,
    cosines_first: bool,
}

impl Sinusoids {
    /// Returns the sinusoids of each number, concatenated.
    pub fn of(&self, numbers: impl IntoIterator<Item = f32>) -> Vec<f32> {
        let mut all = Vec::new();
        for number in numbers {
            let angles = self.frequencies.iter().map(|frequency| number * frequency);
            // Computed in f64, because the sine of f32 differs between platforms.
            let sines = angles.clone().map(|angle| f64::from(angle).sin() as f32);
            let cosines = angles.map(|angle| f64::from(angle).cos() as f32);
            match self.cosines_first {
                true => all.extend(cosines.chain(sines)),
                false => all.extend(sines.chain(cosines)),
            }
        }
        all
    }
}

impl UnetConfig {
    /// Returns the number of residual blocks in the first level.
    pub fn resnets(&self) -> usize {
        self.levels[0].resnets
    }

    /// Returns the sinusoids of the timestep.
    pub fn timestep_sinusoids(&self) -> Sinusoids {
        self.sinusoids(self.levels[0].channels)
    }

    /// Returns the sinusoids of SDXL's sizes, if the network takes sizes.
    pub fn size_sinusoids(&self) -> Option<Sinusoids> {
        self.added.map(|added| self.sinusoids(added.size_width))
    }

    fn sinusoids(&self, width: usize) -> Sinusoids {
        let half = width / 2;
        // Rounded to f32 at each step, as in diffusers. The largest angle is near 1000, so the last
        // bit of a frequency matters.
        let frequency = |i: usize| {
            let exponent = -(10_000f64.ln()) as f32 * i as f32 / (half as f32 - self.freq_shift);
            f64::from(exponent).exp() as f32
        };
        Sinusoids {
            frequencies: (0..half).map(frequency).collect(),
            cosines_first: self.flip_sin_to_cos,
        }
    }
}

/// Writes the sinusoids of the last axis of `x`, which has length 1.
fn sinusoids(g: &mut Graph, of: &Sinusoids, x: Value) -> Value {
    let frequencies = g.constant(&of.frequencies, &[1, of.frequencies.len()]);
    let angles = g.mul(x, frequencies);
    let (sin, cos) = (g.sin(angles), g.cos(angles));
    let order = match of.cosines_first {
        true => [cos, sin],
        false => [sin, cos],
    };
    g.concat(&order, -1)
}

/// Writes diffusers' `TimestepEmbedding`: linear, SiLU, linear.
fn two_layers(
    g: &mut Graph,
    name: &str,
    x: Value,
    [input, output]: [usize; 2],
) -> Result<Value, Error> {
    let x = g.linear(x, &format!("{name}.linear_1"), input, output)?;
    let x = g.activation(x, Activation::Silu);
    g.linear(x, &format!("{name}.linear_2"), output, output)
}

/// Returns the sinusoids of a guidance scale, an input of latent consistency models:
/// `get_guidance_scale_embedding` in diffusers' `pipeline_latent_consistency_text2img.py`, called
/// with `scale − 1`. The sines come first. The exponents of the frequencies are divided by half
/// the width minus one.
pub(crate) fn guidance_sinusoids(scale: f32, width: usize) -> Vec<f32> {
    let half = width / 2;
    // Rounded to f32 at each step, as in diffusers. The angles reach the thousands.
    let step = 10_000f64.ln() as f32 / (half as f32 - 1.0);
    let angle = |i: usize| {
        let frequency = f64::from(i as f32 * -step).exp() as f32;
        f64::from((scale - 1.0) * 1000.0 * frequency)
    };
    let sines = (0..half).map(|i| angle(i).sin() as f32);
    sines
        .chain((0..half).map(|i| angle(i).cos() as f32))
        .collect()
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
        let latents = config.inputs.channels;
        let first = config.levels[0].channels;
        let x = self.g.conv2d(
            sample,
            "conv_in",
            [latents + config.inputs.extra_channels, first],
            Conv::same(config.conv_in_kernel),
        )?;
        let skips = self.down_path(x)?;
        let (x, _) = *skips.last().expect("the first skip is the input");
        let x = self.mid_block(x)?;
        let x = self.up_path(x, skips)?;
        let x = norm_silu(&mut self.g, "conv_norm_out", x, first, config.norm)?;
        self.g.conv2d(
            x,
            "conv_out",
            [first, latents],
            Conv::same(config.conv_out_kernel),
        )
    }

    /// Writes the down blocks. Returns the values that the up path concatenates, with their channel
    /// counts. The last of them is the output.
    fn down_path(&mut self, mut x: Value) -> Result<Vec<(Value, usize)>, Error> {
        let config = self.config;
        let levels = &config.levels;
        let mut channels = levels[0].channels;
        let mut skips = vec![(x, channels)];
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
                    let layers = level.transformer_layers_down[layer];
                    x =
                        self.transformer(&format!("{name}.attentions.{layer}"), x, level, layers)?;
                }
                skips.push((x, channels));
            }
            if i + 1 < levels.len() {
                let conv = Conv {
                    kernel: 3,
                    stride: 2,
                    // If the convolution has no padding, diffusers adds a row and a column at the
                    // end.
                    padding: [config.downsample_padding, 1],
                };
                x = self.g.conv2d(
                    x,
                    &format!("{name}.downsamplers.0.conv"),
                    [channels, channels],
                    conv,
                )?;
                skips.push((x, channels));
            }
        }
        Ok(skips)
    }

    /// Writes the up blocks. `skips` are the results of the [down path](Self::down_path).
    fn up_path(&mut self, mut x: Value, mut skips: Vec<(Value, usize)>) -> Result<Value, Error> {
        let levels = &self.config.levels;
        let (_, mut channels) = *skips.last().expect("the first skip is the input");
        for (i, level) in levels.iter().rev().enumerate() {
            let name = format!("up_blocks.{i}");
            for layer in 0..=level.resnets {
                let (skip, skip_channels) = skips
                    .pop()
                    .expect("the down path pushed one for each resnet of the up path");
                x = self.g.concat(&[x, skip], 1);
                let input = channels + skip_channels;
                x = self.resnet(
                    &format!("{name}.resnets.{layer}"),
                    x,
                    [input, level.channels],
                )?;
                channels = level.channels;
                if level.attention_up {
                    let layers = level.transformer_layers_up[layer];
                    x =
                        self.transformer(&format!("{name}.attentions.{layer}"), x, level, layers)?;
                }
            }
            if i + 1 < levels.len() {
                // A side that was odd on the way down must get the size of the skip, not twice its
                // half.
                let (skip, _) = *skips.last().expect("the next block's skip is left");
                x = self.g.upsample_to(x, skip);
                x = self.g.conv2d(
                    x,
                    &format!("{name}.upsamplers.0.conv"),
                    [channels, channels],
                    Conv::SAME,
                )?;
            }
        }
        Ok(x)
    }

    fn mid_block(&mut self, x: Value) -> Result<Value, Error> {
        let level = self
            .config
            .levels
            .last()
            .expect("the configuration has at least one level");
        let channels = [level.channels; 2];
        if self.config.mid_block == MidBlock::None {
            return Ok(x);
        }
        let x = self.resnet("mid_block.resnets.0", x, channels)?;
        if self.config.mid_block == MidBlock::Plain {
            return Ok(x);
        }
        let level = &Level {
            only_cross_attention: self.config.mid_only_cross_attention,
            ..level.clone()
        };
        let layers = self.config.mid_transformer_layers;
        let x = self.transformer("mid_block.attentions.0", x, level, layers)?;
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

    /// Writes diffusers' `Transformer2DModel`.
    fn transformer(
        &mut self,
        name: &str,
        image: Value,
        level: &Level,
        layers: usize,
    ) -> Result<Value, Error> {
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
        for layer in 0..layers {
            x = self.transformer_block(
                &format!("{name}.transformer_blocks.{layer}"),
                x,
                width,
                level,
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

    /// Writes diffusers' `BasicTransformerBlock`: self-attention, attention to the prompt, and a
    /// gated MLP.
    fn transformer_block(
        &mut self,
        name: &str,
        x: Value,
        width: usize,
        level: &Level,
    ) -> Result<Value, Error> {
        const EPS: f32 = 1e-5;
        let heads = level.heads;
        let to_prompt = [width, self.config.context_width];
        let normed = self.g.layer_norm(x, &format!("{name}.norm1"), width, EPS)?;
        let (context, widths) = match level.only_cross_attention {
            true => (self.context, to_prompt),
            false => (normed, [width, width]),
        };
        let attended = self.attention(&format!("{name}.attn1"), normed, context, widths, heads)?;
        let x = self.g.add(attended, x);

        let normed = self.g.layer_norm(x, &format!("{name}.norm2"), width, EPS)?;
        let attended = self.attention(
            &format!("{name}.attn2"),
            normed,
            self.context,
            to_prompt,
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
        let attended = g.attention([q, k, v], [width, heads], false);
        g.linear(attended, &format!("{name}.to_out.0"), width, width)
    }
}
