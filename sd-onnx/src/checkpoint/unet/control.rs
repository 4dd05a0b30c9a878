//! A ControlNet: the down and middle blocks of a UNet, the convolutions that embed the picture, and
//! the convolutions that its outputs go through.

use serde_json::{Map, Value, json};

use super::{
    Unet,
    config::same,
    names::{Layout, is_number},
};
use crate::checkpoint::{
    Component, Family, Problem,
    names::{Fate, Renamed, Tensor, object},
};

/// The modules of a ControlNet beside its UNet blocks: the current names, in which `#` is a number.
const OWN: [&str; 5] = [
    "controlnet_cond_embedding.conv_in",
    "controlnet_cond_embedding.blocks.#",
    "controlnet_cond_embedding.conv_out",
    "controlnet_down_blocks.#",
    "controlnet_mid_block",
];

/// A ControlNet's tensors under their current names, and its structure.
#[derive(Debug)]
pub(in crate::checkpoint) struct ControlNet(Unet);

impl ControlNet {
    /// Maps the names and reads the shapes.
    pub fn read(tensors: &[Tensor<'_>]) -> Result<Self, Problem> {
        let layout = Layout::of(tensors);
        let last = last_hint(tensors);
        let renamed = Renamed::of(tensors, |tensor| rename(tensor.rest, &layout, last))?;
        Unet::of_down(renamed).map(Self).map_err(as_controlnet)
    }

    /// Returns the family of the models that it guides.
    pub fn family(&self) -> Family {
        Family::of(&self.0, &[])
    }

    /// Returns the number of channels of the pictures that it takes.
    fn picture_channels(&self) -> usize {
        let tensors = &self.0.tensors;
        tensors.dim("controlnet_cond_embedding.conv_in.weight", 1)
    }

    /// Returns the component. `pools` says whether its outputs are averaged over the picture.
    pub fn component(self, pools: bool) -> Result<Component, Problem> {
        let config = self.config(pools).map_err(as_controlnet)?;
        Ok(self.0.tensors.component(config))
    }

    fn config(&self, pools: bool) -> Result<Map<String, Value>, Problem> {
        let unet = &self.0;
        let family = self.family();
        let [down, _] = unet.block_types();
        let [depths, _] = unet.depths()?;
        let added = unet.added(family, None)?;
        let channels: Vec<_> = unet.levels.iter().map(|level| level.channels).collect();
        let only_cross: Vec<_> = unet.levels.iter().map(|level| level.only_cross).collect();
        // Without a transformer, nothing shows the width of the prompts that the UNet gets.
        let context = match (unet.context_width(), family) {
            (0, Family::Xl) => 2048,
            (0, _) => 768,
            (width, _) => width,
        };
        Ok(object(json!({
            "_class_name": "ControlNetModel",
            "_diffusers_version": "0.42.1",
            "act_fn": "silu",
            "addition_embed_type": added.map(|_| "text_time"),
            "addition_time_embed_dim": added.map(|(size, _)| size),
            "attention_head_dim": unet.heads(family)?,
            "block_out_channels": channels,
            "conditioning_channels": self.picture_channels(),
            "conditioning_embedding_out_channels": self.embedding(),
            "controlnet_conditioning_channel_order": "rgb",
            "cross_attention_dim": context,
            "down_block_types": down,
            "downsample_padding": 1,
            "flip_sin_to_cos": true,
            "freq_shift": 0,
            "global_pool_conditions": pools,
            "in_channels": unet.tensors.dim("conv_in.weight", 1),
            "layers_per_block": same(unet.levels.iter().map(|level| level.resnets)),
            "mid_block_scale_factor": 1,
            "mid_block_type": match unet.mid {
                Some(_) => "UNetMidBlock2DCrossAttn",
                None => "UNetMidBlock2D",
            },
            "norm_eps": 1e-5,
            "norm_num_groups": 32,
            "only_cross_attention": match only_cross.contains(&true) {
                true => json!(only_cross),
                false => json!(false),
            },
            "projection_class_embeddings_input_dim": added.map(|(_, width)| width),
            "transformer_layers_per_block": depths,
            "use_linear_projection": unet.projects_linearly(),
        })))
    }

    /// Returns the channels of the convolutions that embed the picture, one number for each size.
    fn embedding(&self) -> Vec<usize> {
        let tensors = &self.0.tensors;
        let name = |i| format!("controlnet_cond_embedding.blocks.{i}.weight");
        let first = tensors.dim("controlnet_cond_embedding.conv_in.weight", 0);
        // Every second convolution halves the size and changes the channels.
        let halving = (0..tensors.count(name)).skip(1).step_by(2);
        let others = halving.map(|i| tensors.dim(&name(i), 0));
        [first].into_iter().chain(others).collect()
    }
}

/// Names the ControlNet in an error of the UNet's reader.
fn as_controlnet(problem: Problem) -> Problem {
    match problem {
        Problem::Shape { problem, .. } => Problem::Shape {
            component: "ControlNet",
            problem,
        },
        other => other,
    }
}

/// Returns the number of the last convolution that embeds the picture, in latent diffusion's names.
fn last_hint(tensors: &[Tensor<'_>]) -> usize {
    let numbers = tensors.iter().filter_map(|tensor| {
        let rest = tensor.rest.strip_prefix("input_hint_block.")?;
        rest.split('.').next()?.parse().ok()
    });
    numbers.max().unwrap_or(0)
}

/// Maps a tensor to its current name.
fn rename(name: &str, layout: &Layout, last: usize) -> Fate {
    let own = own_name(name, last).unwrap_or_else(|| name.to_owned());
    if is_own(&own) {
        return Fate::whole(own);
    }
    let is_of_decoder = |name: &str| {
        let decoder = ["up_blocks.", "conv_norm_out.", "conv_out."];
        decoder.iter().any(|start| name.starts_with(start))
    };
    match layout.rename(name) {
        Fate::Weights(weights) if weights.iter().any(|(name, _)| is_of_decoder(name)) => {
            Fate::Unknown
        }
        fate => fate,
    }
}

/// Maps latent diffusion's name of a tensor that a UNet does not have.
fn own_name(name: &str, last: usize) -> Option<String> {
    let (module, leaf) = name.rsplit_once('.')?;
    if module == "middle_block_out.0" {
        return Some(format!("controlnet_mid_block.{leaf}"));
    }
    if let Some(rest) = module.strip_prefix("zero_convs.") {
        let number = rest.strip_suffix(".0")?;
        return Some(format!("controlnet_down_blocks.{number}.{leaf}"));
    }
    // Between two convolutions is an activation, which has a number too.
    let number: usize = module.strip_prefix("input_hint_block.")?.parse().ok()?;
    let part = match number {
        0 => "conv_in".to_owned(),
        number if number == last => "conv_out".to_owned(),
        number if number % 2 == 0 => format!("blocks.{}", number / 2 - 1),
        _ => return None,
    };
    Some(format!("controlnet_cond_embedding.{part}.{leaf}"))
}

/// Whether only a ControlNet can have a tensor with this current name.
fn is_own(name: &str) -> bool {
    let Some((module, "weight" | "bias")) = name.rsplit_once('.') else {
        return false;
    };
    OWN.iter().any(|own| match own.strip_suffix('#') {
        Some(start) => module.strip_prefix(start).is_some_and(is_number),
        None => module == *own,
    })
}
