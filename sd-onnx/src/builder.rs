//! From a model folder to a pipeline.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use sd_core::{Pipeline, SchedulerConfig};
use sd_text::{ClipTokenizer, PromptEncoder};

use crate::{
    Device, Error,
    folder::ModelFolder,
    models::{clip_text::ClipTextConfig, unet::UnetConfig, vae::VaeConfig},
    parts::{OnnxCodec, OnnxDenoiser, OnnxTextModel},
    runtime::Runtime,
};

/// How a model is loaded. [`builder`] makes one, [`load`](Self::load) ends it.
#[derive(Debug, Clone)]
pub struct Builder {
    device: Device,
    threads: usize,
    runtime: Option<PathBuf>,
    variant: Option<String>,
    clip_skip: usize,
}

/// A builder at its defaults: the CPU with a thread for each physical core, clip skip 1.
pub fn builder() -> Builder {
    Builder { device: Device::Cpu, threads: 0, runtime: None, variant: None, clip_skip: 1 }
}

impl Builder {
    /// What the model runs on. Default: the CPU.
    pub fn device(mut self, device: Device) -> Self {
        self.device = device;
        self
    }

    /// Threads within an operator. Default 0: one for each physical core.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// The ONNX Runtime library. Default: `ORT_DYLIB_PATH`, else the cache folder.
    pub fn runtime(mut self, library: impl Into<PathBuf>) -> Self {
        self.runtime = Some(library.into());
        self
    }

    /// Which variant of the weights, such as `fp16` for `diffusion_pytorch_model.fp16.safetensors`. A component that
    /// does not have it uses its plain file. Default: the plain file, else the only variant there.
    pub fn variant(mut self, variant: impl Into<String>) -> Self {
        self.variant = Some(variant.into());
        self
    }

    /// The clip skip of requests that name none, in WebUI's numbering. Default 1, CLIP's last layer.
    pub fn clip_skip(mut self, layer: usize) -> Self {
        self.clip_skip = layer;
        self
    }

    /// Reads a Stable Diffusion 1.x folder in the diffusers layout and gets it ready to draw.
    ///
    /// # Errors
    /// [`Error`] names the file and what in it is missing or wrong; [`Error::Runtime`] when there is no usable ONNX
    /// Runtime or the device can't be had.
    pub fn load(self, folder: impl AsRef<Path>) -> Result<Pipeline, Error> {
        let path = folder.as_ref();
        let _span = tracing::info_span!("load", model = %path.display()).entered();
        let folder = ModelFolder::open(path, self.variant.as_deref())?;
        let scheduler = scheduler_config(&folder.component("scheduler")?)?;
        let tokenizer = ClipTokenizer::load(folder.component("tokenizer")?)?;
        let text_config = ClipTextConfig::new(&folder.config("text_encoder")?)?;
        let unet_config = UnetConfig::new(&folder.config("unet")?)?;
        let vae_config = VaeConfig::new(&folder.config("vae")?)?;

        let runtime = Runtime::start(self.runtime.as_deref())?;
        self.device.check(&runtime)?;
        let threads = self.threads;
        let side = |side: usize| (side * vae_config.factor()).next_multiple_of(8).min(4096) as u32;
        let [height, width] = unet_config.sample_size.map(side);

        let text_model = OnnxTextModel::new(text_config, &folder.weights("text_encoder")?, &runtime, threads)?;
        let denoiser = OnnxDenoiser::new(unet_config, &folder.weights("unet")?, &runtime, threads)?;
        let codec = OnnxCodec::new(vae_config, folder.weights("vae")?, &runtime, threads)?;

        let unfit = |source| Error::Pipeline { path: path.to_path_buf(), source };
        let prompts =
            PromptEncoder::new(Arc::new(tokenizer), Arc::new(text_model)).map_err(|error| unfit(error.into()))?;
        Pipeline::builder(prompts, Arc::new(denoiser), Arc::new(codec), scheduler)
            .size(width, height)
            .clip_skip(self.clip_skip)
            .build()
            .map_err(unfit)
    }
}

fn scheduler_config(folder: &Path) -> Result<SchedulerConfig, Error> {
    let path = folder.join("scheduler_config.json");
    let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
    SchedulerConfig::from_json(&text).map_err(|source| Error::Scheduler { path, source })
}
