//! Assigns the tensors of a file to components, by the prefixes of their names.

use std::collections::BTreeMap;

use super::{File, names::Tensor, prediction, text::Tower, unet::Unet};
use crate::weights::is_no_weight;

/// The network that a tensor belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Slot {
    Unet,
    Vae,
    /// The text encoder of Stable Diffusion 1.x and 2.x, or the first one of SDXL.
    First,
    /// The second text encoder of SDXL.
    Second,
    /// SGM's first embedder with OpenCLIP's names. It is the only text encoder of SDXL's refiner or
    /// of Stable Diffusion 2.
    FirstOrSecond,
    /// Copies of the UNet's weights, averaged over the training. They are ignored, as in diffusers.
    Averages,
}

/// The prefixes of the components: latent diffusion's, SGM's, the folders of diffusers, and
/// ComfyUI's.
const PREFIXES: [(&str, Slot); 24] = [
    ("model.diffusion_model.", Slot::Unet),
    ("diffusion_model.", Slot::Unet),
    ("unet.", Slot::Unet),
    ("model_ema.", Slot::Averages),
    ("first_stage_model.", Slot::Vae),
    ("vae.", Slot::Vae),
    ("cond_stage_model.transformer.", Slot::First),
    ("cond_stage_model.model.", Slot::First),
    ("cond_stage_model.", Slot::First),
    ("conditioner.embedders.0.transformer.", Slot::First),
    ("conditioner.embedders.0.model.", Slot::FirstOrSecond),
    ("conditioner.embedders.1.transformer.", Slot::Second),
    ("conditioner.embedders.1.model.", Slot::Second),
    ("text_encoder.", Slot::First),
    ("text_encoder_2.", Slot::Second),
    ("text_encoders.clip_l.transformer.", Slot::First),
    ("text_encoders.clip_g.transformer.", Slot::Second),
    ("text_encoders.clip_h.transformer.", Slot::First),
    ("text_encoders.clip_l.", Slot::First),
    ("text_encoders.clip_g.", Slot::Second),
    ("text_encoders.clip_h.", Slot::First),
    ("clip_l.transformer.", Slot::First),
    ("clip_g.transformer.", Slot::Second),
    ("clip_h.transformer.", Slot::First),
];

/// Returns the network of a name that begins with a component's prefix, by its folder's name in
/// diffusers, and the rest of the name. The autoencoder and averaged weights are `vae`.
pub(crate) fn network_of(name: &str) -> Option<(&'static str, &str)> {
    let found = PREFIXES
        .iter()
        .find_map(|&(prefix, slot)| Some((slot, name.strip_prefix(prefix)?)));
    found.map(|(slot, rest)| match slot {
        Slot::Unet => ("unet", rest),
        Slot::First | Slot::FirstOrSecond => ("text_encoder", rest),
        Slot::Second => ("text_encoder_2", rest),
        Slot::Vae | Slot::Averages => ("vae", rest),
    })
}

/// The prefixes of TAESD's pair in one file. The names keep these prefixes.
const TINY: [&str; 2] = ["taesd_encoder.", "taesd_decoder."];

/// The first parts of names in files that hold a single network, without a prefix.
const BARE_UNET: [&str; 14] = [
    "input_blocks",
    "middle_block",
    "output_blocks",
    "out",
    "time_embed",
    "label_emb",
    "conv_in",
    "conv_out",
    "conv_norm_out",
    "time_embedding",
    "add_embedding",
    "down_blocks",
    "mid_block",
    "up_blocks",
];
const BARE_UNET_MORE: [&str; 2] = ["encoder_hid_proj", "class_embedding"];
const BARE_VAE: [&str; 5] = [
    "encoder",
    "decoder",
    "quant_conv",
    "post_quant_conv",
    "loss",
];
const BARE_TEXT: [&str; 13] = [
    "text_model",
    "embeddings",
    "encoder",
    "final_layer_norm",
    "text_projection",
    "vision_model",
    "visual_projection",
    "transformer",
    "token_embedding",
    "positional_embedding",
    "ln_final",
    "visual",
    "logit_scale",
];

/// The tensors of a file, by the network that they belong to.
pub(super) struct Split<'a> {
    slots: BTreeMap<Slot, Vec<Tensor<'a>>>,
    /// Tensors that belong to no known network and are not marks of a prediction.
    pub left_out: Vec<&'a str>,
}

impl<'a> Split<'a> {
    pub fn of(file: &File<'a>) -> Self {
        let bare = Bare::of(file);
        let mut split = Self {
            slots: BTreeMap::new(),
            left_out: Vec::new(),
        };
        for (&stored, &shape) in &file.shapes {
            let prefixed = PREFIXES
                .iter()
                .find_map(|&(prefix, slot)| Some((slot, stored.strip_prefix(prefix)?)));
            let tiny = TINY.iter().any(|prefix| stored.starts_with(prefix));
            let found = match prefixed {
                _ if tiny => Some((Slot::Vae, stored)),
                Some(found) => Some(found),
                None => bare.slot(stored).map(|slot| (slot, stored)),
            };
            match found {
                Some((slot, rest)) => split.slots.entry(slot).or_default().push(Tensor {
                    rest,
                    stored,
                    shape,
                }),
                None if is_no_weight(stored) || prediction::is_mark(stored) => {}
                None => split.left_out.push(stored),
            }
        }
        // A file without a text encoder may still hold its `position_ids`.
        split
            .slots
            .retain(|_, tensors| tensors.iter().any(|tensor| !is_no_weight(tensor.rest)));
        split
    }

    pub fn of_slot(&self, slot: Slot) -> &[Tensor<'a>] {
        self.slots.get(&slot).map_or(&[], Vec::as_slice)
    }

    /// Returns the text encoders. SGM's first embedder with OpenCLIP's names is the refiner's if
    /// the UNet takes sizes. Without a UNet, its width decides.
    pub fn towers(&self, unet: Option<&Unet>) -> Vec<Tower<'_>> {
        let of = |slot| Tower::of(self.of_slot(slot));
        let either = of(Slot::FirstOrSecond).map(|tower| {
            let is_refiners = match unet {
                Some(unet) => unet.takes_sizes(),
                None => tower.width() > 1024,
            };
            match is_refiners {
                true => tower.named("text_encoder_2"),
                false => tower.named("text_encoder"),
            }
        });
        let first = of(Slot::First).map(|tower| tower.named("text_encoder"));
        let second = of(Slot::Second).map(|tower| tower.named("text_encoder_2"));
        [first, either, second].into_iter().flatten().collect()
    }
}

/// The kind of network in a file whose names have no prefix.
#[derive(Clone, Copy)]
enum Bare {
    Unet,
    Vae,
    /// TAESD's encoder or decoder with its author's names: `0.weight`, `1.conv.0.weight`.
    Tiny,
    Text,
    None,
}

impl Bare {
    fn of(file: &File<'_>) -> Self {
        let has = |name| file.shapes.contains_key(name);
        let vae = [
            "encoder.conv_in.weight",
            "decoder.conv_in.weight",
            "encoder.layers.0.weight",
            "decoder.layers.0.weight",
        ];
        let text = [
            "text_model.embeddings.token_embedding.weight",
            "embeddings.token_embedding.weight",
            "token_embedding.weight",
        ];
        if has("input_blocks.0.0.weight") || has("down_blocks.0.resnets.0.conv1.weight") {
            Self::Unet
        } else if vae.into_iter().any(has) {
            Self::Vae
        } else if text.into_iter().any(has) {
            Self::Text
        } else if has("1.weight") && has("3.conv.0.weight")
            || has("0.weight") && has("1.conv.0.weight")
        {
            Self::Tiny
        } else {
            Self::None
        }
    }

    fn slot(self, name: &str) -> Option<Slot> {
        let part = name.split('.').next().unwrap_or_default();
        let is_number = part.bytes().all(|byte| byte.is_ascii_digit());
        match self {
            Self::Unet if BARE_UNET.contains(&part) || BARE_UNET_MORE.contains(&part) => {
                Some(Slot::Unet)
            }
            Self::Vae if BARE_VAE.contains(&part) => Some(Slot::Vae),
            Self::Tiny if is_number => Some(Slot::Vae),
            Self::Text if BARE_TEXT.contains(&part) => Some(Slot::First),
            _ => None,
        }
    }
}
