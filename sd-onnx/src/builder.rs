//! Loads a model into a pipeline.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use ndarray::Array2;
use sd_core::{Denoiser, LatentCodec, MAX_PIXELS, Pipeline, SchedulerConfig};
use sd_schedulers::Prediction;
use sd_text::{
    ClipTokenizer, PromptEncoder, TextError, TextualInversion, Tower,
    outside::{list, printable},
};

use crate::{
    Device, Error, Precision, TextEncoder,
    checkpoint::Predicts,
    config::Config,
    defaults,
    engine::{Engine, Settings},
    exported::{self, Codec, TextFile},
    hash,
    inversions::{self, Inversions, Rows},
    models::{
        clip_text::{ClipTextConfig, PROJECTION},
        unet::UnetConfig,
        vae::VaeConfig,
    },
    parts::{OnnxCodec, OnnxDenoiser, OnnxTextModel},
    source::{Elsewhere, Source, TowerParts},
    weights::Weights,
};

/// The pixels of a latent on each side, and the tokens of a prompt's window, where only a UNet is
/// loaded.
const SD_FACTOR: usize = 8;
const WINDOW: usize = 77;

/// The longest side of a default size, in pixels, whatever a model's files say. Published ones have
/// at most 1024.
const MOST_SIDE: usize = 2048;

/// Settings for loading a model. Create one with [`builder`]; [`load`](Self::load) consumes it.
///
/// # What runs at once and what waits
/// Any number of threads may draw with a pipeline and its clones. Its networks (text encoder, UNet,
/// decoder, encoder) each run one call at a time, on all threads of the [setting](Self::threads).
/// Other callers wait until the current network call ends, not until its picture is finished. The
/// order in which they continue is unspecified. So two threads each get half the speed, while the
/// UNet of one and the decoder of the other run at once and share the cores.
///
/// A [stop](crate::StopToken) ends only calls for its own request: a running call within one
/// operator on the CPU (see [`Device`]), a waiting one at once. The next call finds the network as
/// it was. The text encoder, which takes a moment, runs to its end, and so does
/// [`Pipeline::encode_image`](crate::Pipeline::encode_image).
///
/// # What sharing costs
/// A clone of a pipeline costs nothing. Loading a model again costs all of its memory again, which
/// in f32 is four bytes a weight, and its own threads: share clones, and a [`codec`](Self::codec)
/// between models. Every network keeps the working memory of the largest call it has run, for the
/// next one. Dropping the last clone frees it all, so far as the allocator returns memory to the
/// system. Of ONNX Runtime a process has one, which stays.
#[derive(Clone)]
pub struct Builder {
    device: Device,
    precision: Precision,
    threads: u16,
    kept_sizes: usize,
    low_memory: bool,
    size: Option<[u32; 2]>,
    runtime: Option<PathBuf>,
    variant: Option<String>,
    clip_skip: usize,
    max_pixels: u64,
    batch: usize,
    codec: Option<Arc<dyn LatentCodec>>,
    inversions: Vec<Inversions>,
    refiner: Option<PathBuf>,
    elsewhere: Elsewhere,
    prediction: Option<Prediction>,
    zero_terminal_snr: Option<bool>,
}

/// A builder at its defaults: the CPU with a thread for each physical core, and the model's own
/// clip skip.
pub fn builder() -> Builder {
    Builder {
        device: Device::Cpu,
        precision: Precision::F32,
        threads: 0,
        kept_sizes: 1,
        low_memory: false,
        size: None,
        runtime: None,
        variant: None,
        clip_skip: 0,
        max_pixels: MAX_PIXELS,
        batch: 1,
        codec: None,
        inversions: Vec::new(),
        refiner: None,
        elsewhere: Elsewhere::default(),
        prediction: None,
        zero_terminal_snr: None,
    }
}

impl Builder {
    /// Sets the device that the networks run on. Default: [`Device::Cpu`].
    ///
    /// ```no_run
    /// use sd_onnx::{Device, Precision};
    ///
    /// let pipeline = sd_onnx::builder()
    ///     .device(Device::OpenVino)
    ///     .precision(Precision::Bf16)
    ///     .load("stable-diffusion-v1-5")?;
    /// for network in pipeline.device_report() {
    ///     println!("{network}");
    /// }
    /// # Ok::<(), sd_onnx::Error>(())
    /// ```
    pub fn device(mut self, device: Device) -> Self {
        self.device = device;
        self
    }

    /// Sets the floating-point format that all networks are computed in, whatever format their
    /// weights are stored in. Loading fails if the device does not have it. Default:
    /// [`Precision::F32`].
    pub fn precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self
    }

    /// Sets the number of sizes that OpenVINO keeps each of the UNet and the VAE ready for. 0 counts
    /// as 1. Default: 1. On [`Device::Cpu`] a network takes all sizes, and the setting changes
    /// nothing.
    ///
    /// OpenVINO compiles a network for one size of pictures, one batch and one length of prompts.
    /// Another size compiles it again, which takes as long as loading it, and drops the size that
    /// was used longest ago. Each size that is kept costs a copy of the weights: 1.7 GB in bf16 for
    /// Stable Diffusion 1.5, 5.1 GB for SDXL.
    pub fn kept_sizes(mut self, sizes: usize) -> Self {
        self.kept_sizes = sizes;
        self
    }

    /// Sets whether only one network is in memory at a time. Default: false.
    ///
    /// Each network is then loaded when it is needed and the others are unloaded: the text encoder
    /// once for each new prompt, the UNet before the first step, the VAE when a picture is decoded.
    /// A picture takes longer by the time that loading takes. Pictures are the same.
    pub fn low_memory(mut self, low_memory: bool) -> Self {
        self.low_memory = low_memory;
        self
    }

    /// Sets the size of pictures whose request names none, in pixels. OpenVINO compiles the
    /// networks for this size when the model is loaded. Default: the UNet's `sample_size`, at most
    /// 2048 pixels a side.
    pub fn size(mut self, width: u32, height: u32) -> Self {
        self.size = Some([width, height]);
        self
    }

    /// Sets the threads within an operator, for each network by itself. Default: 0, which is one
    /// for each physical core.
    ///
    /// A number above the threads that the machine runs at once for this process
    /// ([`available_parallelism`](std::thread::available_parallelism)) is lowered to that, with a
    /// warning through `tracing`. The threads spin while they wait for each other: on two cores, 64
    /// of them take forty times as long as two.
    pub fn threads(mut self, threads: u16) -> Self {
        let most = available_threads();
        if threads > most {
            tracing::warn!(asked = threads, used = most, "more threads than cores");
        }
        self.threads = threads.min(most);
        self
    }

    /// Sets the path of the ONNX Runtime library. Default: `ORT_DYLIB_PATH`, else the cache folder.
    pub fn runtime(mut self, library: impl Into<PathBuf>) -> Self {
        self.runtime = Some(library.into());
        self
    }

    /// Selects a variant of the weights in a folder, such as `fp16` for
    /// `diffusion_pytorch_model.fp16.safetensors`. A component that does not have it uses its plain
    /// file. A checkpoint file has no variants: the setting causes a warning. Default: the plain
    /// file, else the only variant there.
    pub fn variant(mut self, variant: impl Into<String>) -> Self {
        self.variant = Some(variant.into());
        self
    }

    /// Sets the clip skip of requests that name none, in WebUI's numbering: 1 is CLIP's last layer,
    /// 0 the model's own layer. Default: 0.
    ///
    /// Only [`load`](Self::load) uses this setting. With
    /// [`load_prompt_encoder`](Self::load_prompt_encoder) the layer is chosen by
    /// [`EncodeOptions`](crate::text::EncodeOptions), with
    /// [`load_text_encoder`](Self::load_text_encoder) by [`TextEncoder::clip_skip`].
    pub fn clip_skip(mut self, layer: usize) -> Self {
        self.clip_skip = layer;
        self
    }

    /// Sets the largest picture that a request may ask for, in pixels, at most 2³⁰. Default:
    /// [`MAX_PIXELS`], 4096 × 4096. Memory and time grow with the pixels, those of attention with
    /// their square.
    pub fn max_pixels(mut self, pixels: u64) -> Self {
        self.max_pixels = pixels;
        self
    }

    /// Sets the largest batch, 1 to 1024: how many pictures go through the UNet together. Only
    /// pictures of requests with the same size, steps, sampler, ladder, refiner and length of
    /// prompts share a batch, and only if all or none of them have a negative prompt. Except for
    /// rounding, a picture from a batch is the picture that its request makes alone. Default: 1,
    /// because on the CPU a batch of two takes longer than two calls.
    pub fn batch(mut self, pictures: usize) -> Self {
        self.batch = pictures;
        self
    }

    /// Sets an autoencoder that is used in place of the model's own, which is not read: another
    /// pipeline's [`codec`](Pipeline::codec), so that two models share one, or one from
    /// [`load_codec`](Self::load_codec). Pipelines that share an autoencoder take turns: one
    /// picture is decoded at a time. Default: the model's own.
    pub fn codec(mut self, codec: Arc<dyn LatentCodec>) -> Self {
        self.codec = Some(codec);
        self
    }

    /// Adds a textual inversion file, or a folder with such files in it and in the folders within:
    /// vectors that a prompt calls by a name, usually the name of the file.
    /// [`TextualInversion::load`] describes the files, and
    /// [`ClipTokenizer::add_inversion`](crate::text::ClipTokenizer::add_inversion) where the name
    /// is found in a prompt. Can be called several times. Default: none.
    ///
    /// A file that is given by itself must be usable. In a folder, every `.safetensors`, `.pt` and
    /// `.bin` file is tried, at most 20,000 files and folders in all. A file that cannot be used
    /// (made for another model's width, not a textual inversion, its name taken, a pickle that asks
    /// for anything but tensors) is left out with a warning of the `tracing` crate that says why.
    /// After 16 warnings a last one counts the others.
    pub fn embeddings(mut self, path: impl Into<PathBuf>) -> Self {
        self.inversions.push(Inversions::At(path.into()));
        self
    }

    /// Adds a textual inversion that was read or made before; otherwise as
    /// [`embeddings`](Self::embeddings).
    pub fn embedding(mut self, inversion: TextualInversion) -> Self {
        self.inversions.push(Inversions::Given(inversion));
        self
    }

    /// Sets a model, a file or a folder, that makes the last steps of each picture, such as SDXL's
    /// refiner.
    ///
    /// Only its UNet and its text encoder are used. If known, its prediction and the scaling factor
    /// of its autoencoder must equal the model's. Its tokenizer is its own:
    /// [`tokenizer`](Self::tokenizer) does not apply to it.
    /// [`Request::refiner`](crate::Request::refiner) sets when it takes over. Default: none.
    pub fn refiner(mut self, path: impl Into<PathBuf>) -> Self {
        self.refiner = Some(path.into());
        self
    }

    /// Takes the UNet from another file or folder in place of the model's own: a file with a UNet
    /// alone, a checkpoint, a model folder, or the folder of a UNet with its `config.json`.
    ///
    /// The prediction, the noise schedule and the default sampler come from that file, too, except
    /// from the folder of a UNet, which has none. The default size is always the UNet's. Default:
    /// the model's own.
    ///
    /// ```no_run
    /// let pipeline = sd_onnx::builder().unet("sdxl-unet.safetensors").load("sdxl-base-1.0")?;
    /// # Ok::<(), sd_onnx::Error>(())
    /// ```
    pub fn unet(mut self, path: impl Into<PathBuf>) -> Self {
        self.elsewhere.unet = Some(path.into());
        self
    }

    /// Takes the autoencoder (VAE) from another file or folder in place of the model's own: a VAE
    /// file, a checkpoint, a model folder, or the folder of a VAE with its `config.json`. ONNX
    /// graphs are not accepted. Default: the model's own.
    ///
    /// It must fit the model's latents: an SD 1.x VAE on SDXL draws nonsense without an error. A
    /// folder or a checkpoint with another scaling factor than the model's causes a warning; a VAE
    /// file has none and is used with the model's.
    ///
    /// ```no_run
    /// let pipeline = sd_onnx::builder().vae("sdxl_vae.safetensors").load("sdxl.safetensors")?;
    /// # Ok::<(), sd_onnx::Error>(())
    /// ```
    pub fn vae(mut self, path: impl Into<PathBuf>) -> Self {
        self.elsewhere.vae = Some(path.into());
        self
    }

    /// Takes the text encoder (for SDXL, the first) from another file or folder in place of the
    /// model's own: a file with a text encoder alone, a checkpoint, a model folder, or the folder
    /// of a text encoder with its `config.json`. Default: the model's own.
    ///
    /// ```no_run
    /// let pipeline = sd_onnx::builder()
    ///     .vae("sdxl_vae.safetensors")
    ///     .text_encoder("clip_l.safetensors")
    ///     .text_encoder_2("clip_g.safetensors")
    ///     .load("sdxl-unet.gguf")?;
    /// # Ok::<(), sd_onnx::Error>(())
    /// ```
    pub fn text_encoder(mut self, path: impl Into<PathBuf>) -> Self {
        self.elsewhere.text_encoder = Some(path.into());
        self
    }

    /// Takes SDXL's second text encoder, which is the refiner's only one, from another file or
    /// folder in place of the model's own. The path may be what
    /// [`text_encoder`](Self::text_encoder) takes. A model without a second text encoder refuses
    /// it. Default: the model's own.
    pub fn text_encoder_2(mut self, path: impl Into<PathBuf>) -> Self {
        self.elsewhere.text_encoder_2 = Some(path.into());
        self
    }

    /// Sets the folder to read the tokenizer from: either the files themselves, or a folder with
    /// `tokenizer` and `tokenizer_2` in it.
    ///
    /// Default: the tokenizer in the model folder that the text encoder is from, else the one in
    /// the model folder; for a checkpoint file, the CLIP tokenizer built into this crate.
    pub fn tokenizer(mut self, folder: impl Into<PathBuf>) -> Self {
        self.elsewhere.tokenizer = Some(folder.into());
        self
    }

    /// Overrides what the UNet predicts. Use it when a v-prediction model without markers draws
    /// noise. Default: as the model's files say. [`handbook::files`](crate::handbook::files)
    /// describes how it is recognised in a checkpoint.
    ///
    /// ```no_run
    /// use sd_onnx::schedulers::Prediction;
    ///
    /// let pipeline = sd_onnx::builder()
    ///     .prediction(Prediction::V)
    ///     .zero_terminal_snr(true) // many of these models need it, too
    ///     .load("v-prediction.safetensors")?;
    /// # Ok::<(), sd_onnx::Error>(())
    /// ```
    pub fn prediction(mut self, prediction: Prediction) -> Self {
        self.prediction = Some(prediction);
        self
    }

    /// Overrides whether the noise schedule is rescaled to end in pure noise (zero terminal SNR,
    /// Lin et al. 2023, arXiv 2305.08891). With `true` the model's own ladder also begins at that
    /// step (trailing timesteps). Default: as the model's files say.
    pub fn zero_terminal_snr(mut self, rescaled: bool) -> Self {
        self.zero_terminal_snr = Some(rescaled);
        self
    }

    /// Loads a model: a checkpoint file, a diffusers folder or a folder of ONNX graphs.
    ///
    /// The family (Stable Diffusion 1.x, 2.x, SDXL or one of their relatives) is recognised from
    /// the files: see [`handbook::files`](crate::handbook::files). Outdated values of the scheduler
    /// and the UNet in a diffusers folder are corrected as diffusers' pipelines do it, each with a
    /// warning. A request without a size is drawn at the UNet's `sample_size`, at most 2048 pixels
    /// a side.
    ///
    /// # Defaults
    /// What a request leaves open is chosen by the model, and reported through `tracing` at the
    /// level `info`:
    ///
    /// | model | steps | guidance | sampler and ladder |
    /// |---|---|---|---|
    /// | Stable Diffusion 1.x | 20 | 7.5 | DPM++ 2M on Karras |
    /// | Stable Diffusion 2.x, inpainting, instruct-pix2pix | 20 | 7.5 | as `scheduler_config.json` says |
    /// | SDXL | 20 | 5, for inpainting 7.5 | as the file says |
    /// | LCM, by the UNet's guidance input, the pipeline class or the scheduler | 4 | 8.5, without the input 1 | as the file says |
    /// | Turbo, by a word of the name, or by Euler a on trailing timesteps | 1 | 1 | as the file says |
    /// | Lightning, Hyper, DMD2, SDXS, by a word of the name | 4, 8, 4, 1 | 1 | as the file says |
    /// | Playground, by a word of the name | 20 | 3 | as the file says |
    ///
    /// The name is the folder's or the file's. The header of a checkpoint file may also name Turbo,
    /// Lightning, DMD2 or SDXS, and Playground is also recognised by its tensors. "The file" is
    /// `scheduler_config.json`; for a checkpoint file, the scheduler of the family. Steps in a
    /// name, such as `sdxl_lightning_4step`, count for distilled models. The guidance of SD and
    /// SDXL is the default of diffusers' pipelines; the guidance of the others is in their model
    /// cards. 20 steps is WebUI's default for every model.
    ///
    /// The weight files must not be changed in place while the model is loaded: a file that is
    /// shortened ends the process, because ONNX Runtime maps it. Replacing a file by renaming
    /// another is safe.
    ///
    /// # Errors
    /// [`Error`] names the file and what in it is missing or wrong. [`Error::Runtime`] if there is
    /// no usable ONNX Runtime or the device is not available.
    pub fn load(self, path: impl AsRef<Path>) -> Result<Pipeline, Error> {
        let path = path.as_ref();
        let _span = tracing::info_span!("load", model = %path.display()).entered();
        let mut components = vec!["unet"];
        if self.codec.is_none() {
            components.push("vae");
        }
        let model = self.open(path, &components)?;
        let (scheduler, text) = self.scheduler_config(&model)?;
        let engine = self.engine()?;
        let prompts = self.prompts(&model, &engine)?;
        let (denoiser, unet) = denoiser(&model, &engine)?;
        let mut sample_size = denoiser.sample_size();
        if let Some(unet) = &unet
            && let Some(change) = model.corrections().sample_size(unet, &mut sample_size)?
        {
            tracing::warn!("unet/config.json: {change}");
        }
        let own_codec = match &self.codec {
            Some(_) => None,
            None => Some(Arc::new(codec_of(&model, &engine)?)),
        };
        let codec: Arc<dyn LatentCodec> = match (&self.codec, &own_codec) {
            (Some(codec), _) => codec.clone(),
            (None, Some(own)) => own.clone(),
            (None, None) => unreachable!("one of the two is there"),
        };
        let side = |side: usize| (side * codec.factor()).next_multiple_of(8).min(MOST_SIDE) as u32;
        let [height, width] = sample_size.map(side);
        let [width, height] = self.size.unwrap_or([width, height]);
        let files = model.weight_files("unet")?;
        let defaults = defaults::of(&model, denoiser.inputs(), &text, &scheduler);
        let prediction = scheduler.prediction;
        let denoiser = Arc::new(denoiser);
        let mut denoisers = vec![(denoiser.clone(), length_of(&prompts))];
        let factor = codec.factor();
        let mut pipeline = Pipeline::builder(prompts, denoiser.clone(), codec, scheduler)
            .size(width, height)
            .defaults(defaults)
            .clip_skip(self.clip_skip)
            .zero_empty_negative(model.zero_empty_negative())
            .max_pixels(self.max_pixels)
            .batch(self.batch)
            .model(model.name(), move || {
                hash::remembered(&files, hash::cache().as_deref())
            });
        if let Some(path) = &self.refiner {
            let refiner = Source::open(
                path,
                self.variant.as_deref(),
                &Elsewhere::default(),
                None,
                &["unet"],
            )?;
            check_text_encoder(&refiner)?;
            check_prediction(&refiner, prediction)?;
            if self.codec.is_none() {
                check_latents(&refiner, &model)?;
            }
            let prompts = self.prompts(&refiner, &engine)?;
            let denoiser = Arc::new(self::denoiser(&refiner, &engine)?.0);
            denoisers.push((denoiser.clone(), length_of(&prompts)));
            pipeline = pipeline.refiner(refiner.name(), prompts, denoiser);
        }
        let pipeline = pipeline.build().map_err(|source| Error::Pipeline {
            path: path.to_path_buf(),
            source,
        })?;
        // Last, because it takes longest.
        let size = pipeline.default_size();
        let latents = [size.height(), size.width()].map(|side| side as usize / factor);
        for (denoiser, length) in denoisers {
            denoiser.prepare(latents, length)?;
        }
        if let Some(codec) = own_codec {
            codec.prepare(latents)?;
        }
        Ok(pipeline)
    }

    /// Loads only the tokenizers and the text encoders of a model, a file or a folder, to encode
    /// prompts with.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_prompt_encoder(&self, path: impl AsRef<Path>) -> Result<PromptEncoder, Error> {
        self.prompts(&self.open(path.as_ref(), &[])?, &self.engine()?)
    }

    /// Loads only the tokenizer and the text encoder of a model, as a [`TextEncoder`] of plain
    /// texts. The path is the file or folder of a Stable Diffusion model, a file with a text
    /// encoder alone, or a folder with the files of a CLIP model in it: `config.json`,
    /// `model.safetensors` and the tokenizer's files. For SDXL, the first text encoder is loaded.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_text_encoder(&self, path: impl AsRef<Path>) -> Result<TextEncoder, Error> {
        let variant = self.variant.as_deref();
        let folder = Source::open_text(path.as_ref(), variant, &self.elsewhere)?;
        let mut files = TextFiles::read(&folder, TowerParts::ONLY)?;
        files.project();
        let more = inversions::add(&self.inversions, &mut [files.rows()])?.remove(0);
        let (tokenizer, model) = files.model(&more, &self.engine()?)?;
        // It sees whether they fit each other.
        Tower::new(tokenizer.clone(), model.clone()).map_err(|error| unfit(&folder, error))?;
        Ok(TextEncoder::new(tokenizer, model))
    }

    /// Loads only the UNet of a model, a file or a folder, for a pipeline of custom parts.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_denoiser(&self, path: impl AsRef<Path>) -> Result<Arc<dyn Denoiser>, Error> {
        let folder = self.open(path.as_ref(), &["unet"])?;
        let (denoiser, _) = denoiser(&folder, &self.engine()?)?;
        let latents = match self.size {
            Some([width, height]) => [height, width].map(|side| side as usize / SD_FACTOR),
            None => denoiser.sample_size(),
        };
        denoiser.prepare(latents, WINDOW)?;
        Ok(Arc::new(denoiser))
    }

    /// Loads only the autoencoder of a model, a file or a folder, for a pipeline of custom parts. A
    /// file with an `AutoencoderKL` alone is refused, because it does not say how its latents are
    /// scaled: give it to [`vae`](Self::vae) and load the model.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_codec(&self, path: impl AsRef<Path>) -> Result<Arc<dyn LatentCodec>, Error> {
        let model = self.open(path.as_ref(), &["vae"])?;
        let codec = codec_of(&model, &self.engine()?)?;
        let [width, height] = self.size.unwrap_or([512; 2]);
        let factor = codec.factor();
        codec.prepare([height, width].map(|side| (side as usize / factor).max(1)))?;
        Ok(Arc::new(codec))
    }

    pub(crate) fn open(&self, path: &Path, components: &[&str]) -> Result<Source, Error> {
        let predicts = self.prediction.and_then(Predicts::of);
        Source::open(
            path,
            self.variant.as_deref(),
            &self.elsewhere,
            predicts,
            components,
        )
    }

    /// Why what the builder is set to cannot be a part of a converted model.
    pub(crate) fn not_convertible(&self) -> Option<&'static str> {
        match self {
            Self { codec: Some(_), .. } => Some(
                "an autoencoder that is a value of the program cannot be written: give its file to \
                 `Builder::vae` instead of `Builder::codec`",
            ),
            Self {
                refiner: Some(_), ..
            } => Some("a model and its refiner are converted one by one"),
            Self { inversions, .. } if !inversions.is_empty() => {
                Some("textual inversions stay files of their own and cannot be a part of a model")
            }
            _ => None,
        }
    }

    /// The text of a scheduler's configuration with the user's values in it.
    fn overridden(&self, path: &Path, text: &str) -> Result<String, Error> {
        let mut file = Config::parse(path, text)?;
        if let Some(prediction) = self.prediction {
            let name = match prediction {
                Prediction::Epsilon => "epsilon",
                Prediction::V => "v_prediction",
                Prediction::Sample => "sample",
                Prediction::Edm { v, .. } if file.text("_class_name", "")?.starts_with("EDM") => {
                    if v {
                        "v_prediction"
                    } else {
                        "epsilon"
                    }
                }
                other => {
                    return Err(Error::Config {
                        path: path.to_path_buf(),
                        key: "prediction_type".into(),
                        expected:
                            "Epsilon, V or Sample from the builder, or Edm for a model of EDM"
                                .into(),
                        found: format!("{other:?}"),
                    });
                }
            };
            file.set("prediction_type", name.into());
        }
        if let Some(rescaled) = self.zero_terminal_snr {
            file.set("rescale_betas_zero_snr", rescaled.into());
            if rescaled {
                // Of diffusers' spacings the one that begins at the last timestep, pure noise.
                file.set("timestep_spacing", "trailing".into());
            }
        }
        Ok(file.to_json())
    }

    /// The model's facts in its scheduler's configuration, as the user overrides them and as its
    /// pipeline class corrects them, and the text of the configuration.
    pub(crate) fn scheduler_config(
        &self,
        model: &Source,
    ) -> Result<(SchedulerConfig, String), Error> {
        let (path, mut text) = model.scheduler()?;
        let at = printable(path.display());
        if self.prediction.is_some() || self.zero_terminal_snr.is_some() {
            text = self.overridden(&path, &text)?;
        }
        let file = Config::parse(&path, &text)?;
        let mut config = SchedulerConfig::from_json(&text)
            .map_err(|source| Error::Scheduler { path, source })?;
        for change in model.corrections().scheduler(&file, &mut config)? {
            tracing::warn!("{at}: {change}");
        }
        if !config.ignored.is_empty() {
            let keys = list(&config.ignored);
            tracing::warn!("{at}: keys that are ignored: {keys}");
        }
        Ok((config, text))
    }

    fn engine(&self) -> Result<Engine, Error> {
        Engine::new(Settings {
            device: self.device,
            precision: self.precision,
            threads: self.threads,
            library: self.runtime.as_deref(),
            kept_sizes: self.kept_sizes,
            low_memory: self.low_memory,
        })
    }

    fn prompts(&self, folder: &Source, engine: &Engine) -> Result<PromptEncoder, Error> {
        let read = |&tower| TextFiles::read(folder, tower);
        let mut files: Vec<_> = folder.towers().iter().map(read).collect::<Result<_, _>>()?;
        let mut rows: Vec<_> = files.iter_mut().map(TextFiles::rows).collect();
        let more = inversions::add(&self.inversions, &mut rows)?;
        let mut towers = Vec::with_capacity(files.len());
        for ((files, more), tower) in files.into_iter().zip(&more).zip(folder.towers()) {
            let (tokenizer, model) = files.model(more, engine)?;
            let made = Tower::new(tokenizer, model).map_err(|error| unfit(folder, error))?;
            towers.push(made.layer(tower.layer));
        }
        PromptEncoder::of_towers(towers).map_err(|error| unfit(folder, error))
    }
}

/// The files of a text encoder, read.
struct TextFiles {
    tokenizer: ClipTokenizer,
    network: TextNetwork,
}

/// The network of a text encoder.
enum TextNetwork {
    Weights(Box<ClipTextConfig>, Weights),
    Exported(Box<TextFile>),
}

impl TextFiles {
    fn read(folder: &Source, tower: TowerParts) -> Result<Self, Error> {
        let tokenizer = folder.tokenizer(tower)?;
        let network = match folder.graph(tower.encoder)? {
            Some(graph) => TextNetwork::Exported(exported::text(&graph, tower.pooled)?.into()),
            None => {
                let mut config = ClipTextConfig::new(folder.config(tower.encoder)?)?;
                config.projection = tower.pooled.then_some(config.projection_width);
                TextNetwork::Weights(config.into(), folder.weights(tower.encoder)?)
            }
        };
        let files = Self { tokenizer, network };
        // Before there are inversions, whose files would be blamed.
        let (ids, rows) = (files.tokenizer.vocab_size(), files.config().vocab_size);
        if ids > rows {
            let (tokenizer, model) = (ids, rows);
            return Err(unfit(folder, TextError::Vocabulary { tokenizer, model }));
        }
        if ids < rows {
            let path = printable(folder.path().display());
            tracing::warn!(
                "{path}: the tokenizer has {ids} ids and the text encoder {rows}: it may be another \
                 model's"
            );
        }
        Ok(files)
    }

    fn config(&self) -> &ClipTextConfig {
        match &self.network {
            TextNetwork::Weights(config, _) => config,
            TextNetwork::Exported(file) => file.config(),
        }
    }

    /// Makes the text model give its projected state, if it has one.
    fn project(&mut self) {
        if let TextNetwork::Weights(config, weights) = &mut self.network {
            let shape = weights.shape(&format!("{PROJECTION}.weight"));
            config.projection = shape.and_then(|shape| shape.first().copied());
        }
    }

    /// Where textual inversions are added.
    fn rows(&mut self) -> Rows<'_> {
        let (first, width) = (self.config().vocab_size, self.config().width);
        Rows {
            tokenizer: &mut self.tokenizer,
            first,
            width,
        }
    }

    /// The text model, with `more` rows of the token embedding.
    fn model(
        self,
        more: &Array2<f32>,
        engine: &Engine,
    ) -> Result<(Arc<ClipTokenizer>, Arc<OnnxTextModel>), Error> {
        let model = match self.network {
            TextNetwork::Weights(config, weights) => {
                OnnxTextModel::new(*config, weights, more.view(), engine)?
            }
            TextNetwork::Exported(file) => OnnxTextModel::exported(&file, more.view(), engine)?,
        };
        Ok((Arc::new(self.tokenizer), Arc::new(model)))
    }
}

/// The tokens of a window of prompts.
fn length_of(prompts: &PromptEncoder) -> usize {
    prompts.towers()[0].model().shape().max_length
}

/// The UNet, and its `config.json`, which an exported one may lack.
fn denoiser(folder: &Source, engine: &Engine) -> Result<(OnnxDenoiser, Option<Config>), Error> {
    if let Some(graph) = folder.graph("unet")? {
        let (graph, config) = exported::unet(&graph, folder.sizes())?;
        return Ok((OnnxDenoiser::exported(graph, engine)?, config));
    }
    let config = folder.config("unet")?;
    let unet = UnetConfig::new(&config, folder.sizes())?;
    let denoiser = OnnxDenoiser::new(unet, folder.weights("unet")?, engine)?;
    Ok((denoiser, Some(config)))
}

fn codec_of(folder: &Source, engine: &Engine) -> Result<OnnxCodec, Error> {
    if let Some(path) = folder.exported_codec()? {
        let is_xl = folder.towers().iter().any(|tower| tower.pooled);
        return OnnxCodec::exported(Codec::open(path, is_xl)?, engine);
    }
    let config = folder.config("vae")?;
    if folder.is_bare_vae() {
        let expected = "a checkpoint or a folder: a VAE file does not say how its latents are \
                        scaled. `Builder::vae` takes the file together with a model, which does";
        return Err(config.wrong("scaling_factor", expected));
    }
    folder.warn_of_scaling(&config)?;
    OnnxCodec::new(VaeConfig::new(&config)?, folder.weights("vae")?, engine)
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            device,
            precision,
            threads,
            kept_sizes,
            low_memory,
            size,
            runtime,
            variant,
            clip_skip,
            max_pixels,
            batch,
            codec,
            inversions,
            refiner,
            elsewhere,
            prediction,
            zero_terminal_snr,
        } = self;
        f.debug_struct("Builder")
            .field("device", device)
            .field("precision", precision)
            .field("threads", threads)
            .field("kept_sizes", kept_sizes)
            .field("low_memory", low_memory)
            .field("size", size)
            .field("runtime", runtime)
            .field("variant", variant)
            .field("clip_skip", clip_skip)
            .field("max_pixels", max_pixels)
            .field("batch", batch)
            .field("codec", &codec.as_ref().map(|_| "given"))
            .field("inversions", inversions)
            .field("refiner", refiner)
            .field("elsewhere", elsewhere)
            .field("prediction", prediction)
            .field("zero_terminal_snr", zero_terminal_snr)
            .finish()
    }
}

/// How many threads the machine runs at once; any number where that is unknown.
fn available_threads() -> u16 {
    let count = std::thread::available_parallelism().map_or(usize::MAX, usize::from);
    count.try_into().unwrap_or(u16::MAX)
}

fn unfit(folder: &Source, error: TextError) -> Error {
    Error::Pipeline {
        path: folder.path().to_path_buf(),
        source: error.into(),
    }
}

/// Checks that a refiner has its text encoder. Only a model's parts can come from elsewhere.
fn check_text_encoder(refiner: &Source) -> Result<(), Error> {
    match refiner
        .towers()
        .iter()
        .find(|tower| !refiner.has(tower.encoder))
    {
        None => Ok(()),
        Some(tower) => Err(Error::Missing {
            path: refiner.path().to_path_buf(),
            what: format!("the refiner's own `{}`", tower.encoder),
            hint: "expected a whole refiner, with its text encoder".into(),
        }),
    }
}

/// Checks that a refiner predicts what the model predicts, as far as its folder says: the model's
/// scheduler makes the whole run.
fn check_prediction(refiner: &Source, model: Prediction) -> Result<(), Error> {
    let Ok((path, text)) = refiner.scheduler() else {
        return Ok(());
    };
    let found = match SchedulerConfig::from_json(&text) {
        Ok(config) => config.prediction,
        Err(source) => return Err(Error::Scheduler { path, source }),
    };
    if found == model {
        return Ok(());
    }
    Err(Error::Config {
        path,
        key: "prediction_type".into(),
        expected: format!("{model:?}, what the model predicts that this one refines"),
        found: format!("{found:?}"),
    })
}

/// Checks that a refiner works on the latents of the model, as far as its folder says: that the
/// autoencoders scale them alike. `AutoencoderTiny`, which stands in for others, does not scale.
fn check_latents(refiner: &Source, model: &Source) -> Result<(), Error> {
    if !refiner.has("vae") || !model.has("vae") {
        return Ok(());
    }
    let config = refiner.config("vae")?;
    let found = VaeConfig::new(&config)?;
    let model = VaeConfig::new(&model.config("vae")?)?;
    let same = (&found.scale, &found.shift) == (&model.scale, &model.shift);
    if same || !found.is_variational() || !model.is_variational() {
        return Ok(());
    }
    let of = |config: &VaeConfig| format!("{:?} with the shift {:?}", config.scale, config.shift);
    Err(Error::Config {
        path: config.path().to_path_buf(),
        key: "scaling_factor".into(),
        expected: format!("{}, as in the model that this one refines", of(&model)),
        found: of(&found),
    })
}
