//! The denoising UNet of latent diffusion (Rombach et al. 2021, arXiv 2112.10752), as diffusers'
//! `UNet2DConditionModel` computes it for Stable Diffusion 1.x, 2.x, SDXL and their relatives.

mod config;
mod deep;
mod merging;
mod steering;
mod time;

pub(crate) use self::{
    config::UnetConfig,
    deep::{Part, deep_name},
    merging::TokenOrder,
    steering::{Steering, feature_name, prompt_names, residual_name},
    time::{Sinusoids, guidance_sinusoids},
};
use self::{
    config::{Level, MidBlock},
    deep::Deep,
    steering::{PicturePrompt, Skips, Steered},
    time::{added_embedding, time_embedding},
};
use super::blocks::{Time, image_dims, norm_silu, resnet};
use crate::{
    Error,
    graph::{Activation, Conv, Dialect, Dim, Graph, Model, Places, Value},
    weights::Weights,
};

/// The class in diffusers.
pub(crate) const CLASS: &str = "UNet2DConditionModel";

/// The name of the graph's first output, `[batch, channels, h, w]`.
pub(crate) const OUTPUT: &str = "output";

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

/// Writes the graph. It has the [inputs](input) of the configuration. The output is [`OUTPUT`].
pub(crate) fn graph(
    config: &UnetConfig,
    weights: &Weights,
    dialect: Dialect,
) -> Result<Model, Error> {
    steered(config, weights, Steering::default(), dialect)
}

/// Like [`graph`], with the inputs of `steering` for control networks.
pub(crate) fn steered<'w>(
    config: &UnetConfig,
    weights: &'w Weights,
    steering: Steering<'w>,
    dialect: Dialect,
) -> Result<Model, Error> {
    let unet = Unet::new("unet", config, weights, dialect)?;
    unet.finished(steering)
}

/// Like [`steered`], with shortcuts.
pub(crate) fn shortened<'w>(
    config: &UnetConfig,
    weights: &'w Weights,
    steering: Steering<'w>,
    shortcuts: Shortcuts,
    dialect: Dialect,
) -> Result<Model, Error> {
    let mut unet = Unet::new("unet", config, weights, dialect)?;
    unet.shorten(shortcuts);
    unet.finished(steering)
}

/// What a UNet's graph does not compute. The default computes everything.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Shortcuts {
    pub part: Part,
    /// Whether tokens are merged before the largest self-attentions. The graph then has the inputs
    /// of [`TokenOrder`].
    pub merges_tokens: bool,
}

/// A UNet, or its first half, under construction.
pub(crate) struct Unet<'a, 'w> {
    pub g: Graph<'w>,
    config: &'a UnetConfig,
    /// The latents, with the channels beside them.
    sample: Value,
    time: Time,
    context: Value,
    steering: Steered<'w>,
    shortcuts: Shortcuts,
    /// The tokens that are merged, if the graph merges tokens.
    merging: Option<Places>,
    /// The deep features that become outputs.
    deep: Vec<Deep>,
}

impl<'a, 'w> Unet<'a, 'w> {
    /// Begins a graph, with its inputs.
    pub fn new(
        name: &str,
        config: &'a UnetConfig,
        weights: &'w Weights,
        dialect: Dialect,
    ) -> Result<Self, Error> {
        let takes = &config.inputs;
        let mut g = Graph::new(name, weights, dialect).seamless(takes.seamless);
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
        if let (Some(added), Some(pooled), Some(sizes)) = (config.added, takes.pooled, takes.sizes)
        {
            let pooled = g.input(input::POOLED, &vector(pooled));
            let added = added_embedding(&mut g, config, added, pooled, sizes.count())?;
            time = g.add(time, added);
        }
        let time = Time {
            // Every resnet starts with this activation, so it is computed once.
            embedding: g.activation(time, Activation::Silu),
            width: config.time_width,
        };
        Ok(Self {
            g,
            config,
            sample,
            time,
            context,
            steering: Steered::default(),
            shortcuts: Shortcuts::default(),
            merging: None,
            deep: Vec::new(),
        })
    }

    /// Leaves out what `shortcuts` says.
    fn shorten(&mut self, shortcuts: Shortcuts) {
        self.shortcuts = shortcuts;
        self.merging = match shortcuts.merges_tokens {
            true => Some(self.g.merging_places()),
            false => None,
        };
    }

    /// Writes the network and its outputs.
    fn finished(mut self, steering: Steering<'w>) -> Result<Model, Error> {
        self.steer(steering);
        let output = self.forward()?;
        let channels = self.config.inputs.channels;
        self.g.output(OUTPUT, output, &image_dims(channels));
        self.deep_outputs();
        if let Part::Outside(_) = self.shortcuts.part {
            // The outer layers may not attend to the prompt.
            self.g.prune();
        }
        self.g.finish()
    }

    /// Writes the first convolution.
    pub fn conv_in(&mut self) -> Result<Value, Error> {
        let config = self.config;
        let channels = config.inputs.channels + config.inputs.extra_channels;
        let conv = Conv::same(config.conv_in_kernel);
        let channels = [channels, config.levels[0].channels];
        self.g.conv2d(self.sample, "conv_in", channels, conv)
    }

    fn forward(&mut self) -> Result<Value, Error> {
        let config = self.config;
        let first = config.levels[0].channels;
        let x = self.conv_in()?;
        let (x, skips) = self.down_path(x)?;
        let (x, skips) = match self.shortcuts.part {
            Part::Whole | Part::Keeping => {
                let x = self.mid_block(x)?;
                (self.with_mid_residual(x), self.with_residuals(skips))
            }
            // The deep features will take the place of `x`.
            Part::Outside(_) => (x, self.with_residuals(skips)),
        };
        let x = self.up_path(x, skips)?;
        let x = norm_silu(&mut self.g, "conv_norm_out", x, first, config.norm)?;
        let conv = Conv::same(config.conv_out_kernel);
        let channels = [first, config.inputs.channels];
        self.g.conv2d(x, "conv_out", channels, conv)
    }

    /// Writes the down blocks, as far as the graph has their skip connections. Returns the output,
    /// and the values that the up path concatenates, with their channel counts.
    pub fn down_path(&mut self, mut x: Value) -> Result<(Value, Skips), Error> {
        let config = self.config;
        let levels = &config.levels;
        let mut channels = levels[0].channels;
        let mut skips = vec![(x, channels)];
        for (i, level) in levels.iter().enumerate() {
            let name = format!("down_blocks.{i}");
            for layer in 0..level.resnets {
                if self.shortcuts.part.lacks(skips.len()) {
                    return Ok((x, skips));
                }
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
                if level.attention_down && layer + 1 == level.resnets {
                    x = self.with_feature(i, x);
                }
                skips.push((x, channels));
            }
            if i + 1 < levels.len() {
                if self.shortcuts.part.lacks(skips.len()) {
                    return Ok((x, skips));
                }
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
            if !level.attention_down {
                x = self.with_feature(i, x);
                // diffusers adds it in place.
                *skips.last_mut().expect("the first one is the input") = (x, channels);
            }
        }
        Ok((x, skips))
    }

    /// Writes the up blocks, as far as the graph has their skip connections. `skips` are the
    /// results of the [down path](Self::down_path).
    fn up_path(&mut self, mut x: Value, mut skips: Skips) -> Result<Value, Error> {
        let levels = &self.config.levels;
        let mut channels = levels.last().map_or(0, |level| level.channels);
        let mut branch = self.config.branches();
        for (i, level) in levels.iter().rev().enumerate() {
            let name = format!("up_blocks.{i}");
            for layer in 0..=level.resnets {
                branch -= 1;
                if self.shortcuts.part.lacks(branch) {
                    channels = level.channels;
                    continue;
                }
                x = self.deep_features(x, branch, channels);
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
            if i + 1 < levels.len() && !self.shortcuts.part.lacks(branch) {
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

    pub fn mid_block(&mut self, x: Value) -> Result<Value, Error> {
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
        let attn1 = format!("{name}.attn1");
        let attended = match self.merging {
            Some(places) if level.merges_tokens && !level.only_cross_attention => {
                let matches = self.g.matches(x, places);
                let few = self.g.merged(normed, &matches);
                let attended = self.attention(&attn1, few, few, widths, heads, &[])?;
                self.g.unmerged(attended, &matches)
            }
            _ => self.attention(&attn1, normed, context, widths, heads, &[])?,
        };
        let x = self.g.add(attended, x);

        let normed = self.g.layer_norm(x, &format!("{name}.norm2"), width, EPS)?;
        let attn2 = format!("{name}.attn2");
        let prompts = std::mem::take(&mut self.steering.prompts);
        let context = self.context;
        let attended = self.attention(&attn2, normed, context, to_prompt, heads, &prompts)?;
        self.steering.prompts = prompts;
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

    /// Writes diffusers' `Attention`, with the pictures of `prompts` beside the context.
    fn attention(
        &mut self,
        name: &str,
        x: Value,
        context: Value,
        [width, context_width]: [usize; 2],
        heads: usize,
        prompts: &[PicturePrompt<'w>],
    ) -> Result<Value, Error> {
        let g = &mut self.g;
        let q = g.linear_without_bias(x, &format!("{name}.to_q"), width, width)?;
        let k = g.linear_without_bias(context, &format!("{name}.to_k"), context_width, width)?;
        let v = g.linear_without_bias(context, &format!("{name}.to_v"), context_width, width)?;
        let mut attended = g.attention([q, k, v], [width, heads], false);
        for prompt in prompts {
            let of_picture = prompt.attended(g, self.config, name, q, [width, heads])?;
            attended = g.add(attended, of_picture);
        }
        g.linear(attended, &format!("{name}.to_out.0"), width, width)
    }
}
