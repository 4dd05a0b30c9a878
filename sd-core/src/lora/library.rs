//! The LoRAs that prompts can call by name.

use std::{fmt, io, sync::Arc};

use sd_text::PromptEncoder;

use crate::{BoxError, Denoiser};

/// The LoRAs that prompts can call by name, as in `<lora:watercolour:0.8>`.
///
/// `sd-onnx` implements this trait for a folder of files. [`PipelineBuilder::lora_library`] gives a
/// library to a pipeline. The pipeline finds the LoRAs that a prompt names in
/// [`loras`](Self::loras), and draws with the [`networks`](Self::networks) that they change.
///
/// # Calls in prompts
/// A prompt calls a LoRA with its name and its weight between angle brackets:
///
/// ```text
/// a fox in the snow <lora:watercolour:0.8> <lora:ink:0.5:0.7>
/// ```
///
/// The place of a call in the prompt has no meaning: the call is removed before emphasis, schedules
/// and `AND` are read. A prompt may call several LoRAs, but each of them once. `<lyco:…>` means the
/// same as `<lora:…>`. Calls are read in [`Request::prompt`] and [`Request::prompt_2`], if the
/// language of the prompts is [`Syntax::WebUi`]. In negative prompts and in other languages they
/// are ordinary text. LoRAs do not change a refiner.
///
/// The name is the name of the LoRA's file without its extension, or its
/// [alias](LoraInfo::alias). Upper and lower case differ. The rules are WebUI's: of files with the
/// same name, the last in [`loras`](Self::loras) counts. If the alias of a file is `none`, or the
/// name or alias of a file before it, no alias of this spelling counts, and only a file of this
/// name is found.
///
/// Values follow the name, separated by colons. These are WebUI's:
///
/// | value | place | with a key | range | default |
/// |---|---|---|---|---|
/// | weight for the text encoders | first | `te=0.8` | a finite number | 1 |
/// | weight for the UNet | second | `unet=0.8` | a finite number | the first weight |
/// | number of leading ranks that are used, in a LoRA or LoCon | third | `dyn=8` | 1 or more | all |
///
/// A value with a key counts if both are given. `<lora:ink:unet=0.5>` leaves the text encoders at
/// 1.
///
/// ## Weights that change over the steps
/// A weight may be a list of weights at positions, as in the extension `sd-webui-loractl`. Between
/// two positions the weight is interpolated, and outside it stays as it is:
///
/// ```text
/// <lora:ink:0@0,1@0.5>           from 0 to 1 in the first half of the run, and then 1
/// <lora:ink:te=1:unet=0@5,1@6>   0 up to position 5 for the UNet, and 1 from position 6
/// ```
///
/// Positions up to 1 are shares of the run. If the last position is above 1, all positions are
/// numbers of steps. A weight without a position, which cannot be the first, is at position 1.
/// Items are separated by `,` or `;`, and `~` means the same as `@`.
///
/// As in WebUI, the first two steps are both at position 0, and each later step is one behind: in a
/// run of 20 steps the third step is at 1 of 18, and the last at 18 of 18. All calls of the network
/// in a step have the weight of the step. The text encoders run once, before the first step, and
/// use the weight at position 0.
///
/// ## Blocks and steps
/// These keys are of the extension `sd-webui-lora-block-weight`:
///
/// | key | meaning |
/// |---|---|
/// | `lbw=OUTD` | factors of the weights, for each block of the model |
/// | `start=5` | the LoRA's weight for the UNet is 0 before this step |
/// | `stop=15` | the LoRA's weight for the UNet is 0 from this step on |
/// | `step=5-15` | `start` and `stop` together |
///
/// `lbw` is one of the presets `NONE`, `ALL`, `INS`, `IND`, `INALL`, `MIDD`, `OUTD`, `OUTS`,
/// `OUTALL` and `ALL0.5`, or a list of finite numbers. A list has a number for each block that it
/// names, in the order of [`LoraBlocks`], and all other blocks have the factor 0:
///
/// | numbers | blocks |
/// |---|---|
/// | 12 | `BASE`, `IN04`, `IN05`, `IN07`, `IN08`, `M00`, `OUT00` to `OUT05` (SDXL) |
/// | 17 | `BASE`, `IN01`, `IN02`, `IN04`, `IN05`, `IN07`, `IN08`, `M00`, `OUT03` to `OUT11` |
/// | 20 | `BASE`, `IN00` to `IN08`, `M00`, `OUT00` to `OUT08` (SDXL) |
/// | 26 | all |
///
/// Presets are lists of 17 numbers. `w=` means the same as `lbw=`, and the old form
/// `<lora:ink:1:OUTD>` is read too.
///
/// `start` and `stop` are whole numbers and count as the extension does: the first step is 0, but 1
/// means 0 as well. A `stop` before the `start` has no effect. The text encoders always have their
/// full weight.
///
/// # Calls that are refused
/// A request is refused with a [`Problem`](crate::Problem) if a value cannot be read, a key is
/// unknown, no LoRA has the name, the LoRA has a [`problem`](LoraInfo::problem), or weights change
/// over the steps although one of the LoRAs is not [`live`](LoraInfo::live). WebUI draws without
/// the LoRA in most of these cases, and ignores unknown keys. Random weights (`R`, `U`), inherited
/// weights (`X`, `x=`), weights of single layers (`lbwe=`) and weights of a high-resolution pass
/// (`hr=`, `hrte=`, `hrunet=`) are not supported. WebUI also accepts a LoRA that is called twice,
/// but then applies the last weight twice.
///
/// [`PipelineBuilder::lora_library`]: crate::PipelineBuilder::lora_library
/// [`Request::prompt`]: crate::Request::prompt
/// [`Request::prompt_2`]: crate::Request::prompt_2
/// [`Syntax::WebUi`]: sd_text::Syntax::WebUi
pub trait LoraLibrary: Send + Sync {
    /// Returns all LoRAs, which stay the same as long as the library exists.
    fn loras(&self) -> &[LoraInfo];

    /// Returns the hash that WebUI gives the file of the LoRA `index`, in hexadecimal digits. The
    /// method may read the whole file. A pipeline calls it at most once for each LoRA: when the
    /// first picture with the LoRA is finished, for its infotext, or when an infotext has a hash to
    /// compare.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read.
    fn hash(&self, index: usize) -> io::Result<String>;

    /// Returns the pipeline's networks with these LoRAs applied. No two calls have the same index.
    /// The networks must take and return the same shapes as the pipeline's own networks, and the
    /// tokenizers must be the same. Without calls, the result is the pipeline's own networks.
    ///
    /// A pipeline calls this method before each batch whose LoRAs differ from the LoRAs of the
    /// batch before it, also if there are no LoRAs. It first drops the networks of the batch before
    /// it.
    ///
    /// # Errors
    /// Returns any error of the backend.
    fn networks(&self, calls: &[LoraCall]) -> Result<LoraNetworks, BoxError>;
}

/// A LoRA of a [`LoraLibrary`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LoraInfo {
    /// The name of the file, without its extension. Of files with the same name, a prompt calls the
    /// last.
    pub name: String,
    /// The name that the LoRA had in training, `ss_output_name`. A prompt can also call the LoRA by
    /// this name.
    ///
    /// Default: `None`.
    pub alias: Option<String>,
    /// Whether the LoRA's factors are inputs of the networks. If so, switching takes a moment and
    /// the weight may change from step to step. Otherwise the LoRA is merged into the weights,
    /// together with all other LoRAs of the request. This takes as long as loading the networks
    /// again, and the weights are the same in all steps.
    ///
    /// Default: true.
    pub live: bool,
    /// The reason why the LoRA cannot be used with the model, such as "it is for SDXL". A prompt
    /// that calls the LoRA is refused with this text.
    ///
    /// Default: `None`. The LoRA can be used.
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
    /// The number of leading ranks that are used, at least 1: WebUI's `dyn`.
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

/// The networks that LoRAs have changed, as [`LoraLibrary::networks`] returns them.
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
