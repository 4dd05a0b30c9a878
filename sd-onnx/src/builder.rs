//! From a model folder to a pipeline.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use ndarray::{Array2, Axis};
use sd_core::{Denoiser, LatentCodec, MAX_PIXELS, Pipeline, SchedulerConfig};
use sd_text::{ClipTokenizer, PromptEncoder, TextError, TextualInversion};

use crate::{
    Device, Error, TextEncoder,
    config::{self, Config, MOST_CONFIG},
    corrections::Corrections,
    folder::ModelFolder,
    hash,
    inversions::{self, Inversions},
    models::{
        clip_text::{ClipTextConfig, PROJECTION},
        unet::UnetConfig,
        vae::VaeConfig,
    },
    parts::{OnnxCodec, OnnxDenoiser, OnnxTextModel},
    runtime::Runtime,
};

/// The longest side of a default size, in pixels, whatever a model's files say. Published ones have at most 1024.
const MOST_SIDE: usize = 2048;

/// How a model is loaded. [`builder`] makes one, [`load`](Self::load) ends it.
///
/// # What runs at once and what waits
/// Any number of threads may draw with a pipeline and its clones. Its networks (text encoder, UNet, decoder, encoder) each
/// run one call at a time, on all threads of the [setting](Self::threads); who comes meanwhile waits, for as long as one call
/// takes, not one picture. Who is next is not decided by who came first. So two threads each get half the speed, while the
/// UNet of one and the decoder of the other run at once and share the cores. A
/// [stop](crate::StopToken) ends the call that runs for its own request only, within one operator on the CPU (see
/// [`Device`]), and the waiting of its own request at once; the next call finds the network as it was. The text encoder,
/// which takes a moment, and the VAE's encoder run to their ends.
///
/// # What sharing costs
/// A clone of a pipeline costs nothing. Loading a model again costs all of its memory again, which in f32 is four bytes a
/// weight, and its own threads: share clones, and a [`codec`](Self::codec) between models. Every network keeps the working
/// memory of the largest call it has run, for the next one. Dropping the last clone frees it all, so far as the allocator
/// returns memory to the system. Of ONNX Runtime a process has one, which stays.
#[derive(Clone)]
pub struct Builder {
    device: Device,
    threads: u16,
    runtime: Option<PathBuf>,
    variant: Option<String>,
    clip_skip: usize,
    max_pixels: u64,
    batch: usize,
    codec: Option<Arc<dyn LatentCodec>>,
    inversions: Vec<Inversions>,
}

/// A builder at its defaults: the CPU with a thread for each physical core, clip skip 1.
pub fn builder() -> Builder {
    Builder {
        device: Device::Cpu,
        threads: 0,
        runtime: None,
        variant: None,
        clip_skip: 1,
        max_pixels: MAX_PIXELS,
        batch: 1,
        codec: None,
        inversions: Vec::new(),
    }
}

impl Builder {
    /// What the model runs on. Default: the CPU.
    pub fn device(mut self, device: Device) -> Self {
        self.device = device;
        self
    }

    /// Threads within an operator, of each network by itself. Default 0: one for each physical core.
    pub fn threads(mut self, threads: u16) -> Self {
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

    /// The clip skip of requests that name none, in WebUI's numbering. Default 1, CLIP's last layer. Only a pipeline has it: of what
    /// [`load_prompt_encoder`](Self::load_prompt_encoder) and [`load_text_encoder`](Self::load_text_encoder) give,
    /// [`EncodeOptions`](crate::text::EncodeOptions) and [`TextEncoder::clip_skip`] say the layer.
    pub fn clip_skip(mut self, layer: usize) -> Self {
        self.clip_skip = layer;
        self
    }

    /// The largest picture that a request may ask for, in pixels. At most 2³⁰, default [`MAX_PIXELS`], 4096 × 4096. Memory and time grow
    /// with it, those of attention with its square.
    pub fn max_pixels(mut self, pixels: u64) -> Self {
        self.max_pixels = pixels;
        self
    }

    /// How many pictures, 1 to 1024, the UNet is given at once, of a call whose requests allow it (same size, steps,
    /// sampler, ladder and length of prompts, and all or none with a negative one). Default 1: on the CPU a batch of two takes longer than two calls. A picture from a batch is what
    /// it would be alone but for rounding.
    pub fn batch(mut self, pictures: usize) -> Self {
        self.batch = pictures;
        self
    }

    /// An autoencoder in place of the folder's, which is then not looked at: another pipeline's
    /// [`codec`](Pipeline::codec), so that two models share one, or one of [`load_codec`](Self::load_codec). Pipelines that
    /// share one also share its turns: one picture is decoded at a time. Default: the folder's.
    pub fn codec(mut self, codec: Arc<dyn LatentCodec>) -> Self {
        self.codec = Some(codec);
        self
    }

    /// A textual inversion file, or a folder of which every `.safetensors` file is one (those in folders within it are not
    /// looked at): vectors that a prompt calls by a name, which is mostly the file's. [`TextualInversion::load`] says which
    /// files there are, [`ClipTokenizer::add_inversion`](crate::text::ClipTokenizer::add_inversion) where the name is found
    /// in a prompt. Can be asked for several times. Default: none.
    pub fn embeddings(mut self, path: impl Into<PathBuf>) -> Self {
        self.inversions.push(Inversions::At(path.into()));
        self
    }

    /// A textual inversion that was read or made before, under another name perhaps; otherwise as
    /// [`embeddings`](Self::embeddings).
    pub fn embedding(mut self, inversion: TextualInversion) -> Self {
        self.inversions.push(Inversions::Given(inversion));
        self
    }

    /// Reads a Stable Diffusion 1.x folder in the diffusers layout and gets it ready to draw.
    ///
    /// Outdated values of the scheduler and the UNet are corrected as diffusers' pipelines do it, each with a warning: see
    /// [`handbook::files`](crate::handbook::files). A request without a size is drawn at the UNet's `sample_size`, at most
    /// 2048 pixels a side.
    ///
    /// The weight files must not be changed in place while the model is loaded: a file that is shortened ends the process,
    /// as ONNX Runtime maps it. Replacing a file by renaming another is safe.
    ///
    /// # Errors
    /// [`Error`] names the file and what in it is missing or wrong; [`Error::Runtime`] when there is no usable ONNX
    /// Runtime or the device can't be had.
    pub fn load(self, folder: impl AsRef<Path>) -> Result<Pipeline, Error> {
        let path = folder.as_ref();
        let _span = tracing::info_span!("load", model = %path.display()).entered();
        let mut components = vec!["unet", "text_encoder", "tokenizer", "scheduler"];
        if self.codec.is_none() {
            components.push("vae");
        }
        let folder = self.open(path, &components)?;
        let corrections = folder.corrections()?;
        let scheduler = scheduler_config(&folder.component("scheduler")?, corrections)?;
        let prompts = self.prompts(&folder)?;
        let unet = folder.config("unet")?;
        let denoiser = self.denoiser(&folder, &unet)?;
        let mut sample_size = denoiser.sample_size();
        if let Some(change) = corrections.sample_size(&unet, &mut sample_size)? {
            tracing::warn!("unet/config.json: {change}");
        }
        let codec = match &self.codec {
            Some(codec) => codec.clone(),
            None => Arc::new(self.vae(&folder)?),
        };
        let side = |side: usize| (side * codec.factor()).next_multiple_of(8).min(MOST_SIDE) as u32;
        let [height, width] = sample_size.map(side);
        let files = folder.weight_files("unet")?;
        Pipeline::builder(prompts, Arc::new(denoiser), codec, scheduler)
            .size(width, height)
            .clip_skip(self.clip_skip)
            .max_pixels(self.max_pixels)
            .batch(self.batch)
            .model(folder.name(), move || {
                hash::remembered(&files, hash::cache().as_deref())
            })
            .build()
            .map_err(|source| Error::Pipeline {
                path: path.to_path_buf(),
                source,
            })
    }

    /// Only the tokenizer and the text model of a folder, to encode prompts with.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_prompt_encoder(&self, folder: impl AsRef<Path>) -> Result<PromptEncoder, Error> {
        self.prompts(&self.open(folder.as_ref(), &["text_encoder", "tokenizer"])?)
    }

    /// Only the tokenizer and the text model, as a [`TextEncoder`] of plain texts. Besides a Stable Diffusion model's folder it
    /// may be one with the files of a CLIP model in it: `config.json`, `model.safetensors` and the tokenizer's.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_text_encoder(&self, folder: impl AsRef<Path>) -> Result<TextEncoder, Error> {
        let folder = ModelFolder::open_text(folder.as_ref(), self.variant.as_deref())?;
        let (tokenizer, model) = self.text(&folder, true)?;
        // It sees whether they fit each other.
        prompt_encoder(&folder, &tokenizer, &model)?;
        Ok(TextEncoder::new(tokenizer, model))
    }

    /// Only the UNet of a folder, for a pipeline of one's own parts.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_denoiser(&self, folder: impl AsRef<Path>) -> Result<Arc<dyn Denoiser>, Error> {
        let folder = self.open(folder.as_ref(), &["unet"])?;
        Ok(Arc::new(self.denoiser(&folder, &folder.config("unet")?)?))
    }

    /// Only the autoencoder of a folder, for a pipeline of one's own parts.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_codec(&self, folder: impl AsRef<Path>) -> Result<Arc<dyn LatentCodec>, Error> {
        Ok(Arc::new(self.vae(&self.open(folder.as_ref(), &["vae"])?)?))
    }

    fn open(&self, folder: &Path, components: &[&str]) -> Result<ModelFolder, Error> {
        ModelFolder::open(folder, self.variant.as_deref(), components)
    }

    fn prompts(&self, folder: &ModelFolder) -> Result<PromptEncoder, Error> {
        let (tokenizer, model) = self.text(folder, false)?;
        prompt_encoder(folder, &tokenizer, &model)
    }

    /// The tokenizer and the text model, with what `text_projection` makes of its states if that is wanted and there.
    fn text(
        &self,
        folder: &ModelFolder,
        projected: bool,
    ) -> Result<(Arc<ClipTokenizer>, Arc<OnnxTextModel>), Error> {
        let mut tokenizer = ClipTokenizer::load(folder.component("tokenizer")?)?;
        let mut config = ClipTextConfig::new(folder.config("text_encoder")?)?;
        let weights = folder.weights("text_encoder")?;
        if projected {
            let shape = weights.shape(&format!("{PROJECTION}.weight"));
            config.projection = shape.and_then(|shape| shape.first().copied());
        }
        // Before there are inversions, whose files would be blamed.
        let (ids, rows) = (tokenizer.vocab_size(), config.vocab_size);
        if ids > rows {
            let (tokenizer, model) = (ids, rows);
            return Err(unfit(folder, TextError::Vocabulary { tokenizer, model }));
        }
        let mut more = Array2::<f32>::zeros((0, config.width));
        for inversion in inversions::read(&self.inversions)? {
            let vectors = inversion.vectors(config.width)?;
            let first = config.vocab_size + more.nrows();
            tokenizer.add_inversion(&inversion, first as u32)?;
            more.append(Axis(0), vectors)
                .expect("the vectors are as wide as the model, asked for so");
        }
        let runtime = self.start_runtime()?;
        let model = OnnxTextModel::new(config, &weights, more.view(), &runtime, self.threads)?;
        Ok((Arc::new(tokenizer), Arc::new(model)))
    }

    fn denoiser(&self, folder: &ModelFolder, config: &Config) -> Result<OnnxDenoiser, Error> {
        OnnxDenoiser::new(
            UnetConfig::new(config)?,
            &folder.weights("unet")?,
            &self.start_runtime()?,
            self.threads,
        )
    }

    fn vae(&self, folder: &ModelFolder) -> Result<OnnxCodec, Error> {
        let config = VaeConfig::new(&folder.config("vae")?)?;
        OnnxCodec::new(
            config,
            folder.weights("vae")?,
            &self.start_runtime()?,
            self.threads,
        )
    }

    /// The process's ONNX Runtime, with the device.
    fn start_runtime(&self) -> Result<Arc<Runtime>, Error> {
        let runtime = Runtime::start(self.runtime.as_deref())?;
        self.device.check(&runtime)?;
        Ok(runtime)
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            device,
            threads,
            runtime,
            variant,
            clip_skip,
            max_pixels,
            batch,
            codec,
            inversions,
        } = self;
        f.debug_struct("Builder")
            .field("device", device)
            .field("threads", threads)
            .field("runtime", runtime)
            .field("variant", variant)
            .field("clip_skip", clip_skip)
            .field("max_pixels", max_pixels)
            .field("batch", batch)
            .field("codec", &codec.as_ref().map(|_| "given"))
            .field("inversions", inversions)
            .finish()
    }
}

fn prompt_encoder(
    folder: &ModelFolder,
    tokenizer: &Arc<ClipTokenizer>,
    model: &Arc<OnnxTextModel>,
) -> Result<PromptEncoder, Error> {
    PromptEncoder::new(tokenizer.clone(), model.clone()).map_err(|error| unfit(folder, error))
}

fn unfit(folder: &ModelFolder, error: TextError) -> Error {
    Error::Pipeline {
        path: folder.path().to_path_buf(),
        source: error.into(),
    }
}

/// The model's facts in its scheduler's file, corrected as its pipeline class does it.
fn scheduler_config(folder: &Path, corrections: Corrections) -> Result<SchedulerConfig, Error> {
    let path = folder.join("scheduler_config.json");
    let text = config::read_text(&path, MOST_CONFIG)?;
    let file = Config::parse(&path, &text)?;
    let mut config =
        SchedulerConfig::from_json(&text).map_err(|source| Error::Scheduler { path, source })?;
    for change in corrections.scheduler(&file, &mut config)? {
        tracing::warn!("scheduler/scheduler_config.json: {change}");
    }
    Ok(config)
}
