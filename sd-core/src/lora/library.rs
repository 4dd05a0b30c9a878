//! The LoRAs that prompts can call by name.

use std::{fmt, io, sync::Arc};

use sd_text::PromptEncoder;

use crate::{BoxError, Denoiser};

/// The LoRAs that prompts can call by name, as in `<lora:watercolour:0.8>`.
///
/// `sd-onnx` implements it for a folder of files. [`PipelineBuilder::lora_library`] gives it to a
/// pipeline, which finds the LoRAs that a prompt names in [`loras`](Self::loras), and draws with
/// the [`networks`](Self::networks) that they change.
///
/// [`PipelineBuilder::lora_library`]: crate::PipelineBuilder::lora_library
pub trait LoraLibrary: Send + Sync {
    /// Returns all LoRAs, which stay the same as long as the library exists.
    fn loras(&self) -> &[LoraInfo];

    /// Returns the hash that WebUI gives the file of the LoRA `index`, in hexadecimal digits. It
    /// may read the whole file.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read.
    fn hash(&self, index: usize) -> io::Result<String>;

    /// Returns the networks of the pipeline, changed by these LoRAs, of which each is called once.
    /// They must take and return the same shapes as the pipeline's own networks, and the tokenizers
    /// must be the same. Without calls, the result is the pipeline's own networks.
    ///
    /// # Errors
    /// Returns any error of the backend.
    fn networks(&self, calls: &[LoraCall]) -> Result<LoraNetworks, BoxError>;
}

/// A LoRA of a [`LoraLibrary`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LoraInfo {
    /// The name of the file, without its extension.
    pub name: String,
    /// The name that the LoRA had in training, `ss_output_name`, by which a prompt can call it,
    /// too.
    ///
    /// Default: `None`.
    pub alias: Option<String>,
    /// Whether the LoRA's weight can change from step to step, and whether switching to it is
    /// immediate. The factors of such a LoRA are inputs of the networks. Any other LoRA is merged
    /// into the weights, which takes as long as loading the networks again.
    ///
    /// Default: true.
    pub live: bool,
    /// The reason why the LoRA cannot be used with the model, if so.
    ///
    /// Default: `None`.
    pub problem: Option<String>,
}

impl LoraInfo {
    /// Describes a LoRA that is called by the name of its file.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            alias: None,
            live: true,
            problem: None,
        }
    }
}

/// A LoRA that a request uses.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct LoraCall {
    /// The index of the LoRA in [`LoraLibrary::loras`].
    pub index: usize,
    /// The weight for the text encoders. See [`LoraWeight`](crate::LoraWeight).
    pub text_encoder: f32,
    /// The weight for the UNet: one number for the whole run, or one number for each step.
    pub unet: Vec<f32>,
    /// The number of leading ranks that are used, WebUI's `dyn`.
    ///
    /// Default: `None`, all of them.
    pub rank: Option<usize>,
    /// The factors of the weights of each block.
    ///
    /// Default: `None`, 1 everywhere.
    pub blocks: Option<LoraBlocks>,
}

impl LoraCall {
    /// Calls a LoRA with these weights. `unet` has one number, or one for each step.
    pub fn new(index: usize, text_encoder: f32, unet: Vec<f32>) -> Self {
        Self {
            index,
            text_encoder,
            unet,
            rank: None,
            blocks: None,
        }
    }

    /// Returns the weight for the UNet at a step, counted from 0. The last number counts for all
    /// later steps.
    pub fn unet_at(&self, step: usize) -> f32 {
        let last = self.unet.last().copied().unwrap_or(0.0);
        self.unet.get(step).copied().unwrap_or(last)
    }
}

/// Factors of a LoRA's weight, for each block of the model: `BASE` (the text encoders), `IN00` to
/// `IN11`, `M00` (the middle block), `OUT00` to `OUT11`.
///
/// These are the blocks of latent diffusion's UNet, in the order of the extension
/// `sd-webui-lora-block-weight`. SDXL has no blocks above `IN08` and `OUT08`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoraBlocks(pub [f32; 26]);

/// The networks that LoRAs have changed.
#[derive(Clone)]
pub struct LoraNetworks {
    /// The prompt encoder.
    pub prompts: PromptEncoder,
    /// The denoiser.
    pub denoiser: Arc<dyn Denoiser>,
}

impl fmt::Debug for LoraNetworks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoraNetworks")
            .field("prompts", &self.prompts)
            .finish_non_exhaustive()
    }
}
