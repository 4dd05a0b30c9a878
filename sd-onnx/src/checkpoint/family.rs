//! The families of models, and the facts that only the family determines.

use super::{text::Tower, unet::Unet};

/// A family of models with the same text encoders and the same size conditioning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    /// Stable Diffusion 1.x: CLIP ViT-L.
    Sd1,
    /// Stable Diffusion 2.x: OpenCLIP ViT-H.
    Sd2,
    /// SDXL: CLIP ViT-L and OpenCLIP ViT-bigG.
    Xl,
    /// SDXL's refiner: OpenCLIP ViT-bigG.
    Refiner,
}

/// The kind of input that a model takes beside the prompt, recognised by the channels of its UNet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Task {
    /// Only noisy latents.
    Draw,
    /// Also a mask, and the latents of the picture around it.
    Inpaint,
    /// Also the latents of a picture to edit, as in instruct-pix2pix.
    Edit,
}

/// The padding token of CLIP ViT-L, which is CLIP's end of text.
const PAD_CLIP: &str = "<|endoftext|>";
/// OpenCLIP's padding token, which is token 0.
const PAD_OPEN_CLIP: &str = "!";

/// The width of the sinusoidal embedding of each size in SDXL: `addition_time_embed_dim`.
pub(super) const SIZE_WIDTH: usize = 256;

impl Family {
    /// Recognises the family by the UNet and the text encoders beside it.
    pub(super) fn of(unet: &Unet, towers: &[Tower<'_>]) -> Self {
        let context = unet.prompt_width();
        let Some(added) = unet.added_width() else {
            return match context {
                768 => Self::Sd1,
                1024 => Self::Sd2,
                _ if towers.iter().any(Tower::is_open_clip) => Self::Sd2,
                // Stable Diffusion 2 was the first version with linear projections.
                _ if unet.projects_linearly() => Self::Sd2,
                _ => Self::Sd1,
            };
        };
        // The refiner's prompt comes from the second text encoder alone. If the file lacks that
        // encoder, the width of the additional embedding decides.
        let second = towers
            .iter()
            .find(|tower| tower.component == "text_encoder_2");
        let is_refiner = match second {
            Some(tower) => tower.width() == context,
            None => Self::is_refiner(added, context),
        };
        if is_refiner { Self::Refiner } else { Self::Xl }
    }

    /// Whether a UNet that takes sizes is the refiner's, judged by the width of its additional
    /// embedding. In the refiner it holds five sizes and a pooled embedding as wide as the prompt.
    pub fn is_refiner(added: usize, context: usize) -> bool {
        added.checked_sub(5 * SIZE_WIDTH) == Some(context)
    }

    /// Returns the name for a message.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sd1 => "Stable Diffusion 1.x",
            Self::Sd2 => "Stable Diffusion 2.x",
            Self::Xl => "SDXL",
            Self::Refiner => "SDXL refiner",
        }
    }

    /// Lists the networks of a complete model, by their folders' names in diffusers.
    pub fn components(self) -> &'static [&'static str] {
        match self {
            Self::Sd1 | Self::Sd2 => &["unet", "vae", "text_encoder"],
            Self::Xl => &["unet", "vae", "text_encoder", "text_encoder_2"],
            Self::Refiner => &["unet", "vae", "text_encoder_2"],
        }
    }

    /// Returns the factor that scales the autoencoder's latents to a standard deviation of about 1.
    pub fn scaling_factor(self) -> f64 {
        match self {
            Self::Sd1 | Self::Sd2 => 0.18215,
            Self::Xl | Self::Refiner => 0.13025,
        }
    }

    /// Returns the padding tokens, by the tokenizers' folders.
    pub fn pads(self) -> std::collections::BTreeMap<&'static str, &'static str> {
        let pads: &[_] = match self {
            Self::Sd1 => &[("tokenizer", PAD_CLIP)],
            Self::Sd2 => &[("tokenizer", PAD_OPEN_CLIP)],
            Self::Xl => &[("tokenizer", PAD_CLIP), ("tokenizer_2", PAD_OPEN_CLIP)],
            Self::Refiner => &[("tokenizer_2", PAD_OPEN_CLIP)],
        };
        pads.iter().copied().collect()
    }

    /// Returns the padding token of a text encoder without a model.
    pub(super) fn pad(is_open_clip: bool) -> &'static str {
        match is_open_clip {
            true => PAD_OPEN_CLIP,
            false => PAD_CLIP,
        }
    }

    /// Whether an empty negative prompt is replaced by zeros, or `None` if the pipeline class has
    /// no such setting.
    pub fn zeros_for_empty(self) -> Option<bool> {
        match self {
            Self::Sd1 | Self::Sd2 => None,
            Self::Xl => Some(true),
            Self::Refiner => Some(false),
        }
    }

    /// Returns the pipeline class in diffusers.
    pub fn class(self, task: Task, is_lcm: bool) -> &'static str {
        match (self, task) {
            (Self::Sd1 | Self::Sd2, Task::Draw) if is_lcm => "LatentConsistencyModelPipeline",
            (Self::Sd1 | Self::Sd2, Task::Draw) => "StableDiffusionPipeline",
            (Self::Sd1 | Self::Sd2, Task::Inpaint) => "StableDiffusionInpaintPipeline",
            (Self::Sd1 | Self::Sd2, Task::Edit) => "StableDiffusionInstructPix2PixPipeline",
            (Self::Xl, Task::Draw) => "StableDiffusionXLPipeline",
            (Self::Refiner, Task::Draw) => "StableDiffusionXLImg2ImgPipeline",
            (Self::Xl | Self::Refiner, Task::Inpaint) => "StableDiffusionXLInpaintPipeline",
            (Self::Xl | Self::Refiner, Task::Edit) => "StableDiffusionXLInstructPix2PixPipeline",
        }
    }

    /// Returns the number of attention heads of a UNet level: 8 heads in Stable Diffusion 1.x,
    /// heads of 64 channels in the other families. Returns `None` if the channels do not divide
    /// evenly.
    pub(super) fn heads(self, channels: usize) -> Option<usize> {
        match self {
            Self::Sd1 => channels.is_multiple_of(8).then_some(8),
            _ => channels.is_multiple_of(64).then_some(channels / 64),
        }
    }
}
