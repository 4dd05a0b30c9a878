//! What a UNet takes from control networks: the residuals of ControlNets, the features of
//! T2I-Adapters, and the pictures of IP-Adapters.

use super::{MidBlock, Unet, UnetConfig};
use crate::{
    Error,
    graph::{Dim, Graph, Value},
    weights::Weights,
};

/// The values that the up path of a UNet concatenates, with their channel counts.
pub(crate) type Skips = Vec<(Value, usize)>;

/// The inputs that a UNet's graph has for control networks. The default is none.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Steering<'w> {
    /// Whether the outputs of ControlNets are added to the skips and to the middle block:
    /// [`residual_name`].
    pub residuals: bool,
    /// The number of features of T2I-Adapters that are added to the down blocks and, if there is
    /// one more, to the middle block: [`feature_name`].
    pub features: usize,
    /// The weights of IP-Adapters: [`prompt_names`].
    pub prompts: &'w [&'w Weights],
}

/// Returns the name of an input for the outputs of ControlNets, `[batch, channels, h, w]`. It is
/// also the name of a ControlNet's output. `None` is the middle block.
pub(crate) fn residual_name(skip: Option<usize>) -> String {
    match skip {
        Some(skip) => format!("residual.{skip}"),
        None => "residual.mid".to_owned(),
    }
}

/// Returns the name of an input for the features of T2I-Adapters, `[batch, channels, h, w]`.
pub(crate) fn feature_name(level: usize) -> String {
    format!("feature.{level}")
}

/// Returns the names of the inputs of an IP-Adapter: the tokens of the picture
/// `[batch, tokens, width]`, and the weight `[1]`.
pub(crate) fn prompt_names(adapter: usize) -> [String; 2] {
    [
        format!("picture.{adapter}"),
        format!("picture.{adapter}.weight"),
    ]
}

/// The inputs of a graph under construction.
#[derive(Default)]
pub(super) struct Steered<'w> {
    residuals: bool,
    features: usize,
    pub prompts: Vec<PicturePrompt<'w>>,
}

/// The picture of an IP-Adapter in a graph.
pub(super) struct PicturePrompt<'w> {
    /// The name of its weights in the graph.
    set: String,
    weights: &'w Weights,
    tokens: Value,
    weight: Value,
}

impl<'w> PicturePrompt<'w> {
    /// Writes the attention of the layer `name` to the picture, times the weight:
    /// `IPAdapterAttnProcessor` in diffusers' `attention_processor.py`. `q` are the queries of the
    /// layer.
    pub fn attended(
        &self,
        g: &mut Graph<'w>,
        config: &UnetConfig,
        name: &str,
        q: Value,
        [width, heads]: [usize; 2],
    ) -> Result<Value, Error> {
        let layers = config.cross_attentions();
        let index = layers.iter().position(|layer| layer == name);
        let index = index.expect("the list has every layer that attends to the prompt");
        // The published files count all attention layers, of which every second one is listed.
        let number = 2 * index + 1;
        let [k, v] = ["to_k_ip", "to_v_ip"].map(|of| format!("ip_adapter.{number}.{of}"));
        let from = config.context_width;
        let (k, v) = g.over(&self.set, self.weights, |g| -> Result<_, Error> {
            Ok((
                g.linear_without_bias(self.tokens, &k, from, width)?,
                g.linear_without_bias(self.tokens, &v, from, width)?,
            ))
        })?;
        let attended = g.attention([q, k, v], [width, heads], false);
        Ok(g.mul(attended, self.weight))
    }
}

impl<'w> Unet<'_, 'w> {
    /// Adds the inputs for control networks.
    pub fn steer(&mut self, steering: Steering<'w>) {
        self.steering.residuals = steering.residuals;
        self.steering.features = steering.features;
        let width = self.config.context_width;
        for (i, weights) in steering.prompts.iter().enumerate() {
            let [tokens, weight] = prompt_names(i);
            let dims = [Dim::Any("batch"), Dim::Free, Dim::Fixed(width)];
            let prompt = PicturePrompt {
                set: format!("picture.{i}"),
                weights,
                tokens: self.g.input(&tokens, &dims),
                weight: self.g.input(&weight, &[Dim::Fixed(1)]),
            };
            self.steering.prompts.push(prompt);
        }
    }

    /// Adds the outputs of ControlNets to the skips.
    pub fn with_residuals(&mut self, skips: Skips) -> Skips {
        if !self.steering.residuals {
            return skips;
        }
        let with = |(i, (skip, channels))| (self.with_residual(skip, Some(i), channels), channels);
        skips.into_iter().enumerate().map(with).collect()
    }

    /// Adds the last output of ControlNets to the middle block's result `x`. The last feature of
    /// T2I-Adapters is added before, if there is one for the middle block.
    pub fn with_mid_residual(&mut self, x: Value) -> Value {
        let levels = &self.config.levels;
        let channels = levels.last().map_or(0, |level| level.channels);
        let x = self.with_feature(levels.len(), x);
        match self.steering.residuals {
            true => self.with_residual(x, None, channels),
            false => x,
        }
    }

    /// Adds a feature of T2I-Adapters to `x`, if the graph takes this one.
    pub fn with_feature(&mut self, feature: usize, x: Value) -> Value {
        if feature >= self.steering.features {
            return x;
        }
        let channels = self.config.feature_channels(feature);
        let input = self.input(&feature_name(feature), channels);
        self.g.add_input(x, input)
    }

    /// Returns an input for values of a control network. Its sizes depend on how often the latents
    /// are halved, so they have no names.
    fn input(&mut self, name: &str, channels: usize) -> Value {
        let dims = [
            Dim::Any("batch"),
            Dim::Fixed(channels),
            Dim::Free,
            Dim::Free,
        ];
        self.g.input(name, &dims)
    }

    fn with_residual(&mut self, x: Value, skip: Option<usize>, channels: usize) -> Value {
        let input = self.input(&residual_name(skip), channels);
        self.g.add(x, input)
    }
}

impl UnetConfig {
    /// Returns the names of the layers that attend to the prompt, in the order of diffusers'
    /// `attn_processors`: first the down blocks, then the up blocks, then the middle block.
    pub fn cross_attentions(&self) -> Vec<String> {
        let mut blocks = Vec::new();
        for (i, level) in self.levels.iter().enumerate() {
            let layers = level.transformer_layers_down.iter().enumerate();
            let layers = layers.filter(|_| level.attention_down);
            blocks.extend(
                layers.map(|(j, &count)| (format!("down_blocks.{i}.attentions.{j}"), count)),
            );
        }
        for (i, level) in self.levels.iter().rev().enumerate() {
            let layers = level.transformer_layers_up.iter().enumerate();
            let layers = layers.filter(|_| level.attention_up);
            blocks
                .extend(layers.map(|(j, &count)| (format!("up_blocks.{i}.attentions.{j}"), count)));
        }
        if self.mid_block == MidBlock::CrossAttention {
            blocks.push((
                "mid_block.attentions.0".to_owned(),
                self.mid_transformer_layers,
            ));
        }
        let names = |(block, count): (String, usize)| {
            (0..count).map(move |i| format!("{block}.transformer_blocks.{i}.attn2"))
        };
        blocks.into_iter().flat_map(names).collect()
    }

    /// Returns the width of the prompt that the transformers attend to.
    pub fn prompt_width(&self) -> usize {
        self.context_width
    }

    /// Returns the channels, height and width of each skip and, as the last one, of the middle
    /// block, for latents of this height and width.
    pub fn residual_shapes(&self, size: [usize; 2]) -> Vec<[usize; 3]> {
        let mut shapes = Vec::new();
        let [mut height, mut width] = size;
        shapes.push([self.levels[0].channels, height, width]);
        for (i, level) in self.levels.iter().enumerate() {
            shapes.extend(vec![[level.channels, height, width]; level.resnets]);
            if i + 1 < self.levels.len() {
                // A padding of 0 means a row and a column of zeros at the end.
                let halved = |side: usize| (side + self.downsample_padding) / 2;
                [height, width] = [height, width].map(halved);
                shapes.push([level.channels, height, width]);
            }
        }
        let last = self.levels.last().map_or(0, |level| level.channels);
        shapes.push([last, height, width]);
        shapes
    }

    /// Returns the channels, height and width of each feature of T2I-Adapters, for latents of this
    /// height and width: one for each level, and one for the middle block.
    pub fn feature_shapes(&self, size: [usize; 2]) -> Vec<[usize; 3]> {
        let residuals = self.residual_shapes(size);
        let mut skip = 0;
        let mut shapes = Vec::new();
        for (i, level) in self.levels.iter().enumerate() {
            skip += level.resnets;
            let is_last = i + 1 == self.levels.len();
            // Without attention, the feature is added after the downsampling.
            let at = skip + usize::from(!level.attention_down && !is_last);
            shapes.push(residuals[at]);
            skip += usize::from(!is_last);
        }
        shapes.extend(residuals.last());
        shapes
    }

    /// Returns the channels of a feature of T2I-Adapters.
    fn feature_channels(&self, feature: usize) -> usize {
        let level = feature.min(self.levels.len() - 1);
        self.levels[level].channels
    }
}
