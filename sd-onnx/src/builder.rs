//! Loads a model into a pipeline.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use ndarray::Array2;
use sd_core::{
    Denoiser, LatentCodec, MAX_PIXELS, PictureUpscaler, Pipeline, SchedulerConfig, Seamless,
    upscale::Tiling,
};
use sd_schedulers::Prediction;
use sd_text::{
    ClipTokenizer, PromptEncoder, TextualInversion, Tower, TowerError,
    outside::{list, printable},
};

use crate::{
    Device, Error, ImageEncoder, LoraWeight, Precision, TextEncoder, calibration,
    checkpoint::Predicts,
    config::Config,
    control::{ControlPath, ControlSettings, Controls},
    corrections::{Corrections, Task},
    defaults,
    denoiser::OnnxDenoiser,
    engine::{Engine, Settings},
    exported::{self, Codec, TextFile},
    hash,
    inversions::{self, Inversions, Rows},
    lora::{Adapters, Library, TextTower},
    models::{
        clip_text::{ClipTextConfig, PROJECTION},
        unet::UnetConfig,
        vae::VaeConfig,
    },
    parts::{OnnxCodec, OnnxTextModel, TextWeights},
    source::{Elsewhere, Source, TowerParts, VisionFiles},
    taesd::{self, DecodedByTaesd, TaesdUse},
    tiles::VaeTiling,
    upscaler::OnnxUpscaler,
};

/// Pixels per latent on each side, and tokens per prompt window. Used where only a UNet is loaded,
/// which does not determine them.
const SD_FACTOR: usize = 8;
const WINDOW: usize = 77;

/// The longest side of a default size, in pixels, whatever the model's files contain. Published
/// models have at most 1024.
const MOST_SIDE: usize = 2048;

/// Settings for loading a model.
///
/// Create a builder with [`builder`], set options, and call [`load`](Self::load).
///
/// Methods such as [`load_denoiser`](Self::load_denoiser) load one part for a pipeline of custom
/// parts. They ignore [`clip_skip`](Self::clip_skip), [`max_pixels`](Self::max_pixels),
/// [`max_batch`](Self::max_batch), [`codec`](Self::codec), [`loras`](Self::loras),
/// [`refiner`](Self::refiner) and [`zero_terminal_snr`](Self::zero_terminal_snr). Give these values
/// to [`Pipeline::builder`](crate::Pipeline::builder) and its methods instead.
///
/// # Concurrency
/// Any number of threads may generate pictures with a pipeline and its clones. Each of its networks
/// (text encoder, UNet, decoder, encoder) runs one call at a time, on as many threads as
/// [`threads`](Self::threads) sets. Other callers wait until the current network call ends, not
/// until its picture is finished. The order in which they continue is unspecified. Two threads
/// therefore get half the speed each, except that the UNet of one and the decoder of the other may
/// run at the same time and share the cores.
///
/// A [`StopToken`](crate::StopToken) ends only calls for its own request. It ends a running call
/// within one operator on the CPU (see [`Device`]) and a waiting call at once. The next call finds
/// the network unchanged. The text encoder, which takes only a moment, always runs to its end, and
/// so does [`Pipeline::encode_image`](crate::Pipeline::encode_image).
///
/// # Memory
/// Cloning a pipeline costs nothing. Loading a model a second time costs its full memory again,
/// which in f32 is four bytes per weight, and starts more threads. So share clones, and share a
/// [`codec`](Self::codec) between models. Each network keeps the working memory of its largest call
/// for the next one. Dropping the last clone frees everything, as far as the allocator returns
/// memory to the system. ONNX Runtime itself stays loaded until the process ends.
#[derive(Clone)]
pub struct Builder {
    device: Device,
    precision: Precision,
    threads: u16,
    kept_sizes: usize,
    low_memory: bool,
    seamless: Seamless,
    size: Option<[u32; 2]>,
    runtime: Option<PathBuf>,
    variant: Option<String>,
    clip_skip: usize,
    max_pixels: u64,
    max_batch: usize,
    codec: Option<Arc<dyn LatentCodec>>,
    inversions: Vec<Inversions>,
    loras: Vec<(PathBuf, LoraWeight)>,
    lora_folders: Vec<PathBuf>,
    refiner: Option<PathBuf>,
    controls: Vec<ControlPath>,
    image_encoder: Option<PathBuf>,
    elsewhere: Elsewhere,
    prediction: Option<Prediction>,
    zero_terminal_snr: Option<bool>,
    upscalers: Vec<PathBuf>,
    upscaler_tiling: Tiling,
    vae_tiling: VaeTiling,
    taesd: Option<(PathBuf, TaesdUse)>,
}

/// Returns a builder with default settings: the CPU in f32, one thread per physical core, and the
/// model's own clip skip.
///
/// ```
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji");
/// let pipeline = sd_onnx::builder().load(folder)?;
/// assert_eq!(pipeline.default_size().width(), 96);
/// # Ok::<(), sd_onnx::Error>(())
/// ```
pub fn builder() -> Builder {
    Builder {
        device: Device::Cpu,
        precision: Precision::F32,
        threads: 0,
        kept_sizes: 1,
        low_memory: false,
        seamless: Seamless::NONE,
        size: None,
        runtime: None,
        variant: None,
        clip_skip: 0,
        max_pixels: MAX_PIXELS,
        max_batch: 1,
        codec: None,
        inversions: Vec::new(),
        loras: Vec::new(),
        lora_folders: Vec::new(),
        refiner: None,
        controls: Vec::new(),
        image_encoder: None,
        elsewhere: Elsewhere::default(),
        prediction: None,
        zero_terminal_snr: None,
        upscalers: Vec::new(),
        upscaler_tiling: Tiling::default(),
        vae_tiling: VaeTiling::default(),
        taesd: None,
    }
}

impl Builder {
    /// Sets the device that the networks run on.
    ///
    /// Default: [`Device::Cpu`].
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

    /// Sets the number format that the networks compute in, whatever format their weights are
    /// stored in.
    ///
    /// In [`Precision::Int8`], only the UNet computes in 8-bit integers, and the first load of a
    /// model takes longer. In [`Precision::F16`] on [`Device::Cuda`], some networks compute in f32.
    /// [`handbook::devices`](crate::handbook::devices) has the details.
    ///
    /// Loading fails with [`RuntimeError::Precision`](crate::RuntimeError::Precision) if the device
    /// does not support the format. [`Device::precisions`] lists the supported ones. The example of
    /// [`device`](Self::device) sets both.
    ///
    /// Default: [`Precision::F32`].
    pub fn precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self
    }

    /// Sets for how many picture sizes OpenVINO keeps the UNet and the VAE compiled.
    ///
    /// OpenVINO compiles a network for one size of pictures, one batch and one length of prompts. A
    /// picture of another size compiles the network again, which takes as long as loading it, and
    /// drops the least recently used size. Each size that is kept costs a copy of the weights:
    /// 1.7 GB in bf16 for Stable Diffusion 1.5, 5.1 GB for SDXL.
    ///
    /// On [`Device::Cpu`] a network accepts all sizes. There, the setting is the number of sets of
    /// [LoRAs](Self::loras), merged into the weights, that are kept.
    ///
    /// Default: 1. The value 0 counts as 1.
    ///
    /// ```no_run
    /// use sd_onnx::{Device, Request};
    ///
    /// let pipeline = sd_onnx::builder()
    ///     .device(Device::OpenVino)
    ///     .kept_sizes(2)
    ///     .load("stable-diffusion-v1-5")?;
    /// for _ in 0..10 {
    ///     // Without the setting, every picture would compile the networks again.
    ///     pipeline.generate(&Request::new("a fox").size(512, 768))?;
    ///     pipeline.generate(&Request::new("a fox").size(768, 512))?;
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn kept_sizes(mut self, sizes: usize) -> Self {
        self.kept_sizes = sizes;
        self
    }

    /// Sets whether only one network is in memory at a time.
    ///
    /// Each network is then loaded when it is needed, and the others are unloaded: the text encoder
    /// once per new prompt, the UNet before the first step, and the VAE when a picture is decoded.
    /// The UNet, its [ControlNets](Self::control) and the network for reused
    /// [deep features](crate::DeepCall) stay loaded together. Each picture takes longer by the time
    /// that loading takes. The pictures are the same. The files must stay unchanged while the
    /// pipeline exists (see [`load`](Self::load)).
    ///
    /// Draw with one thread at a time. Two threads that draw at once unload each other's networks,
    /// and a running network stays in memory until its call ends. A [`codec`](Self::codec) that was
    /// loaded separately is not unloaded.
    ///
    /// Default: false.
    ///
    /// ```no_run
    /// let pipeline = sd_onnx::builder().low_memory(true).load("stable-diffusion-xl-base-1.0")?;
    /// # Ok::<(), sd_onnx::Error>(())
    /// ```
    pub fn low_memory(mut self, low_memory: bool) -> Self {
        self.low_memory = low_memory;
        self
    }

    /// Sets the axes along which all pictures are seamless, so that their copies side by side show
    /// no edge. WebUI calls this "Tiling".
    ///
    /// The UNet, the autoencoder and the [refiner](Self::refiner) are then written with
    /// convolutions that continue at the opposite edge. They are torch's convolutions with
    /// `padding_mode="circular"`; on an axis that is not seamless, they read zeros as usual. The
    /// padding is a fixed part of a network, so this is a setting of the loaded model and not of a
    /// request. It is not stored in model files. Infotexts record both axes as `Tiling`, and a
    /// single axis as `SD tiling`.
    ///
    /// A [`codec`](Self::codec) that was loaded separately must be seamless along the same axes, or
    /// the edges of the pictures will show.
    ///
    /// Default: [`Seamless::NONE`]. Loading fails with [`Error::Graph`] for other values if the
    /// UNet or the autoencoder is an exported ONNX graph, whose padding cannot be changed.
    ///
    /// ```
    /// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji");
    /// use sd_onnx::{Request, Seamless};
    ///
    /// let pipeline = sd_onnx::builder().seamless(Seamless::BOTH).load(folder)?;
    /// let texture = pipeline.generate(&Request::new("a fox").steps(2))?;
    /// assert_eq!(texture.pictures[0].infotext().get("Tiling"), Some("True"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn seamless(mut self, axes: Seamless) -> Self {
        self.seamless = axes;
        self
    }

    /// Sets the size, in pixels, of pictures whose request sets none.
    ///
    /// OpenVINO compiles the networks for this size when the model is loaded.
    ///
    /// Both sides must be positive multiples of 8 and of the autoencoder's
    /// [`factor`](crate::LatentCodec::factor). Width times height must be at most
    /// [`max_pixels`](Self::max_pixels). Otherwise loading fails.
    ///
    /// Default: the UNet's `sample_size`, at most 2048 pixels per side.
    ///
    /// ```
    /// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji");
    /// let pipeline = sd_onnx::builder().size(64, 48).load(folder)?;
    /// let size = pipeline.default_size();
    /// assert_eq!((size.width(), size.height()), (64, 48));
    /// # Ok::<(), sd_onnx::Error>(())
    /// ```
    pub fn size(mut self, width: u32, height: u32) -> Self {
        self.size = Some([width, height]);
        self
    }

    /// Sets the number of threads that one operator runs on, for each network.
    ///
    /// The value 0 means one thread per physical core. A value above
    /// [`available_parallelism`](std::thread::available_parallelism) is lowered to it, with a
    /// `tracing` warning, because the threads spin while they wait for each other: on two cores, 64
    /// threads take forty times as long as two.
    ///
    /// Each network has its own threads: two networks that run at the same time, for two pictures,
    /// use twice as many.
    ///
    /// Default: 0.
    ///
    /// ```no_run
    /// // Leaves the other cores to the rest of the program.
    /// let pipeline = sd_onnx::builder().threads(2).load("stable-diffusion-v1-5")?;
    /// # Ok::<(), sd_onnx::Error>(())
    /// ```
    pub fn threads(mut self, threads: u16) -> Self {
        let most = available_threads();
        if threads > most {
            tracing::warn!(
                asked = threads,
                used = most,
                "more threads were asked for than the machine runs at once"
            );
        }
        self.threads = threads.min(most);
        self
    }

    /// Sets the path of the ONNX Runtime library.
    ///
    /// A process can run only one such library. If another one already runs, loading fails with
    /// [`RuntimeError::OtherRunning`](crate::RuntimeError::OtherRunning). Without this setting, the
    /// library that runs is used.
    ///
    /// Default: the path in `ORT_DYLIB_PATH`, or else the library in the
    /// [cache folder](crate#onnx-runtime).
    ///
    /// ```no_run
    /// let pipeline = sd_onnx::builder()
    ///     .runtime("/opt/onnxruntime/lib/libonnxruntime.so")
    ///     .load("stable-diffusion-v1-5")?;
    /// # Ok::<(), sd_onnx::Error>(())
    /// ```
    pub fn runtime(mut self, library: impl Into<PathBuf>) -> Self {
        self.runtime = Some(library.into());
        self
    }

    /// Selects a variant of the weights in a folder, such as `fp16` for
    /// `diffusion_pytorch_model.fp16.safetensors`.
    ///
    /// A component that does not have the variant uses its plain file. A checkpoint file has no
    /// variants, so the setting causes a warning there.
    ///
    /// Default: the plain file, or the only variant if there is no plain file. Several variants
    /// without a plain file are [`Error::Variants`].
    ///
    /// ```no_run
    /// let pipeline = sd_onnx::builder().variant("fp16").load("stable-diffusion-v1-5")?;
    /// # Ok::<(), sd_onnx::Error>(())
    /// ```
    pub fn variant(mut self, variant: impl Into<String>) -> Self {
        self.variant = Some(variant.into());
        self
    }

    /// Sets the clip skip of requests that set none, in WebUI's numbering: 1 is CLIP's last layer,
    /// 2 is the layer before it, and 0 is the model's own layer. Loading fails if the text encoder
    /// has fewer layers.
    ///
    /// Only [`load`](Self::load) uses this setting. With
    /// [`load_prompt_encoder`](Self::load_prompt_encoder),
    /// [`EncodeOptions`](crate::text::EncodeOptions) sets the layer. With
    /// [`load_text_encoder`](Self::load_text_encoder), [`TextEncoder::clip_skip`] does.
    ///
    /// Default: 0.
    ///
    /// ```no_run
    /// // For models that were trained with CLIP's second-to-last layer.
    /// let pipeline = sd_onnx::builder().clip_skip(2).load("model.safetensors")?;
    /// # Ok::<(), sd_onnx::Error>(())
    /// ```
    pub fn clip_skip(mut self, layer: usize) -> Self {
        self.clip_skip = layer;
        self
    }

    /// Sets the largest picture that a request may ask for, in pixels: width times height, at most
    /// 2³⁰.
    ///
    /// Loading fails if the value is larger, or smaller than the default [`size`](Self::size).
    ///
    /// Memory and time grow with the number of pixels. In attention layers, both grow with the
    /// square of that number.
    ///
    /// Default: [`MAX_PIXELS`], 4096 × 4096.
    ///
    /// ```
    /// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji");
    /// use sd_onnx::Request;
    ///
    /// let pipeline = sd_onnx::builder().max_pixels(128 * 128).load(folder)?;
    /// assert!(pipeline.generate(&Request::new("a fox").size(256, 128)).is_err());
    /// # Ok::<(), sd_onnx::Error>(())
    /// ```
    pub fn max_pixels(mut self, pixels: u64) -> Self {
        self.max_pixels = pixels;
        self
    }

    /// Sets the largest batch, 1 to 1024: how many pictures go through the UNet in one call.
    ///
    /// Pictures share a batch only if their requests have the same size, steps, sampler, ladder,
    /// refiner switch, prompt length and number of prompts joined by `AND`, and if either all of
    /// them or none of them use the negative prompt. [Controls](crate::Request::controls) and
    /// [windows](crate::Request::tiles) must be equal, too. The windows of a large picture share
    /// calls up to this number, unless a ControlNet acts. The adaptive sampler always runs alone.
    /// Except for rounding, a picture is the same in a batch as alone. Loading fails if the value
    /// is outside the range.
    ///
    /// Default: 1, because on the CPU a batch of two takes longer than two calls.
    ///
    /// ```
    /// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji");
    /// use sd_onnx::Request;
    ///
    /// // Runs 4 pictures together, then 2.
    /// let pipeline = sd_onnx::builder().max_batch(4).load(folder)?;
    /// let found = pipeline.generate(&Request::new("a fox").steps(2).count(6))?;
    /// assert_eq!(found.pictures.len(), 6);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn max_batch(mut self, pictures: usize) -> Self {
        self.max_batch = pictures;
        self
    }

    /// Sets the autoencoder to use instead of the model's own, which is then not read.
    ///
    /// It can be the [`codec`](Pipeline::codec) of another pipeline, so that two models share one,
    /// or a codec from [`load_codec`](Self::load_codec). Pipelines that share an autoencoder decode
    /// one picture at a time. If [`vae`](Self::vae) is set too, its file is opened but not used.
    ///
    /// Default: the model's own autoencoder.
    ///
    /// ```
    /// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji");
    /// use std::sync::Arc;
    ///
    /// let first = sd_onnx::builder().load(folder)?;
    /// let second = sd_onnx::builder().codec(first.codec().clone()).load(folder)?;
    /// assert!(Arc::ptr_eq(first.codec(), second.codec()));
    /// # Ok::<(), sd_onnx::Error>(())
    /// ```
    pub fn codec(mut self, codec: Arc<dyn LatentCodec>) -> Self {
        self.codec = Some(codec);
        self
    }

    /// Adds a textual inversion file, or all textual inversion files in a folder and its
    /// subfolders.
    ///
    /// A textual inversion is a set of vectors that a prompt calls by a name, usually the name of
    /// the file. [`TextualInversion::load`] describes the files, and
    /// [`ClipTokenizer::add_inversion`](crate::text::ClipTokenizer::add_inversion) describes how a
    /// prompt calls the name. The method can be called several times.
    ///
    /// A single file must be usable, or loading fails. In a folder, every `.safetensors`, `.pt` and
    /// `.bin` file is tried. An unusable file is skipped with a `tracing` warning that names the
    /// reason: it was made for a model of another width, it is not a textual inversion, its name is
    /// taken, or it is a pickle that asks for more than tensors. After 16 warnings, a last one
    /// reports how many more there are. A folder with more than 20,000 files and folders in it is
    /// an error.
    ///
    /// Default: none.
    ///
    /// ```no_run
    /// use sd_onnx::Request;
    ///
    /// let pipeline = sd_onnx::builder()
    ///     .embeddings("embeddings/cat-toy.safetensors")
    ///     .load("stable-diffusion-v1-5")?;
    /// pipeline.generate(&Request::new("a photo of cat-toy"))?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn embeddings(mut self, path: impl Into<PathBuf>) -> Self {
        self.inversions.push(Inversions::At(path.into()));
        self
    }

    /// Adds a textual inversion that the program has read or made. Otherwise this is the same as
    /// [`embeddings`](Self::embeddings) with a single file.
    ///
    /// Default: none.
    ///
    /// ```no_run
    /// use sd_onnx::text::TextualInversion;
    ///
    /// let cat = TextualInversion::load("cat-toy.safetensors")?.named("my cat");
    /// let pipeline = sd_onnx::builder().embedding(cat).load("stable-diffusion-v1-5")?;
    /// # Ok::<(), sd_onnx::Error>(())
    /// ```
    pub fn embedding(mut self, inversion: TextualInversion) -> Self {
        self.inversions.push(Inversions::Given(inversion));
        self
    }

    /// Merges a LoRA, or a related adapter, into the model. The method can be called several times.
    ///
    /// `path` is a safetensors file, a pickle (`.pt`, `.bin`), or a folder that peft or diffusers
    /// saved. LoRA, LoCon, LoHa, LoKr, DoRA, IA³, OFT, BOFT, GLoRA and full differences are read.
    /// [`handbook::files`](crate::handbook::files#loras) describes the formats, and whose names and
    /// arithmetic they have. Textual inversions in the file are loaded too.
    ///
    /// `weight` is a finite number for the whole model, or a [`LoraWeight`]: 0 changes nothing, and
    /// 1 makes the change that was trained.
    ///
    /// All pictures of the pipeline are drawn with the LoRAs. Several LoRAs are merged in the order
    /// of the calls. A refiner and the autoencoder stay as they are. The changed weights are in
    /// memory, as f32. Tensors that fit nothing in the model are reported in one `tracing` warning
    /// per file.
    ///
    /// Loading fails with [`Error::Adapter`] if the file is no adapter or is for another family of
    /// models, if a factor does not fit, or if the model is a folder of ONNX graphs.
    ///
    /// Default: none.
    ///
    /// ```no_run
    /// use sd_onnx::LoraWeight;
    ///
    /// let pipeline = sd_onnx::builder()
    ///     .lora("loras/watercolour.safetensors", 0.8)
    ///     .lora("loras/fox.safetensors", LoraWeight { text_encoder: 0.5, unet: 1.0 })
    ///     .load("stable-diffusion-v1-5")?;
    /// # Ok::<(), sd_onnx::Error>(())
    /// ```
    pub fn lora(mut self, path: impl Into<PathBuf>, weight: impl Into<LoraWeight>) -> Self {
        self.loras.push((path.into(), weight.into()));
        self
    }

    /// Adds a folder of LoRAs, which the prompts of requests can call by name, as in
    /// `<lora:watercolour:0.8>`. The method can be called several times.
    ///
    /// Every `.safetensors`, `.pt`, `.ckpt` and `.bin` file in the folder and its subfolders is
    /// tried. A prompt calls a file by its name without the extension, or by the name that the LoRA
    /// had in training. The name of a LoRA in a folder that peft or diffusers saved is the name of
    /// that folder. [`LoraLibrary`](crate::LoraLibrary#calls-in-prompts) describes the syntax, and
    /// [`Pipeline::loras`] lists the LoRAs. A request that calls a file which cannot be used with
    /// the model is refused. Textual inversions in the files are loaded too, and prompts can call
    /// them with and without the LoRA.
    ///
    /// The factors of a LoRA or LoCon are inputs of the networks ([`LoraInfo::live`]). Switching to
    /// it takes a moment, and its weight can change from step to step. Files in other formats, such
    /// as LoHa, DoRA or OFT, are merged into the weights. Switching to such a LoRA, or to several
    /// LoRAs that include one, loads the networks again, unless
    /// [`kept_sizes`](Self::kept_sizes) keeps them. If threads draw with different LoRAs of this
    /// kind at the same time, they load the networks again in every step, so draw with one thread.
    ///
    /// Only [`load`](Self::load) uses this setting. It fails with [`Error::Io`] if the folder
    /// cannot be read, and with [`Error::Adapter`] if the model is a folder of ONNX graphs.
    ///
    /// Default: none.
    ///
    /// ```
    /// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji");
    /// # let loras = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji/loras");
    /// use sd_onnx::Request;
    ///
    /// let pipeline = sd_onnx::builder().loras(loras).load(folder)?;
    /// let draw = |prompt| pipeline.generate(&Request::new(prompt).steps(2).seed(1));
    /// let (plain, ink) = (draw("a fox")?, draw("a fox <lora:ink:0.8>")?);
    /// assert_ne!(plain.image(), ink.image());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// [`LoraInfo::live`]: crate::LoraInfo::live
    pub fn loras(mut self, folder: impl Into<PathBuf>) -> Self {
        self.lora_folders.push(folder.into());
        self
    }

    /// Sets a second model, a file or a folder, that runs the last steps of each picture, such as
    /// SDXL's refiner.
    ///
    /// Only its UNet, text encoder and tokenizer are used; [`tokenizer`](Self::tokenizer) does not
    /// apply to it. Its prediction and the scaling factor of its autoencoder must equal the first
    /// model's, if its files contain them. [`Request::refiner`](crate::Request::refiner) sets when
    /// it takes over.
    ///
    /// Default: none.
    ///
    /// ```no_run
    /// let pipeline = sd_onnx::builder()
    ///     .refiner("stable-diffusion-xl-refiner-1.0")
    ///     .load("stable-diffusion-xl-base-1.0")?;
    /// # Ok::<(), sd_onnx::Error>(())
    /// ```
    pub fn refiner(mut self, path: impl Into<PathBuf>) -> Self {
        self.refiner = Some(path.into());
        self
    }

    /// Adds a control network: a ControlNet, a T2I-Adapter or an IP-Adapter. Requests use it by
    /// its name, with a picture each ([`Request::control`](crate::Request::control)).
    ///
    /// The path is a diffusers folder or a single file, whose tensors have diffusers' names or the
    /// original authors'. [`control_name`](crate::control_name) describes the network's name. The
    /// kind is recognised from the tensors. [`handbook::control`](crate::handbook::control) lists
    /// what is supported.
    ///
    /// The network must be for a model of the same family, such as SDXL. The UNet's weights are in
    /// memory once, with or without control networks. A ControlNet takes about half as much memory
    /// as the UNet.
    ///
    /// Default: none.
    ///
    /// # Errors
    /// [`load`](Self::load) opens the files. Beside the errors of any file, it returns:
    ///
    /// - [`Error::Checkpoint`] if a network is for another family of models or is not supported, or
    ///   if two networks have the same name.
    /// - [`Error::Config`] if the class of a folder is not supported.
    /// - [`Error::Missing`] if an IP-Adapter has no vision model.
    /// - [`Error::Graph`] if the model's UNet is an ONNX file that another tool exported.
    /// - [`Error::Int8`] if the precision is [`Precision::Int8`].
    ///
    /// ```no_run
    /// use sd_onnx::{Control, Request, files};
    ///
    /// let pipeline = sd_onnx::builder()
    ///     .control("control_v11p_sd15_canny.safetensors")
    ///     .load("stable-diffusion-v1-5")?;
    /// let edges = files::read_picture("edges.png")?.rgb;
    /// let control = Control::new("control_v11p_sd15_canny", edges).weight(0.8);
    /// let found = pipeline.generate(&Request::new("a fox").control(control))?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn control(mut self, path: impl Into<PathBuf>) -> Self {
        let (name, path) = (None, path.into());
        self.controls.push(ControlPath { name, path });
        self
    }

    /// Adds a control network like [`control`](Self::control), under another name than its file's.
    ///
    /// ```no_run
    /// let pipeline = sd_onnx::builder()
    ///     .named_control("canny", "control_v11p_sd15_canny.safetensors")
    ///     .load("stable-diffusion-v1-5")?;
    /// assert_eq!(pipeline.denoiser().inputs().controls[0].name, "canny");
    /// # Ok::<(), sd_onnx::Error>(())
    /// ```
    pub fn named_control(mut self, name: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        let (name, path) = (Some(name.into()), path.into());
        self.controls.push(ControlPath { name, path });
        self
    }

    /// Sets the CLIP vision model of the [IP-Adapters](Self::control), anything that
    /// [`load_image_encoder`](Self::load_image_encoder) accepts. Most IP-Adapters need OpenCLIP's
    /// ViT-H/14, and the plain one for SDXL needs ViT-bigG/14.
    ///
    /// Default: a folder `image_encoder`, as in the published repository. It is searched beside the
    /// IP-Adapter's file, in the folder above, and there in `models` and `sdxl_models`. The first
    /// one whose width fits the IP-Adapter is used.
    ///
    /// # Errors
    /// [`load`](Self::load) returns [`Error::Checkpoint`] if the vision model has another width
    /// than an IP-Adapter needs, or if there is no IP-Adapter.
    ///
    /// ```no_run
    /// let pipeline = sd_onnx::builder()
    ///     .control("ip-adapter-plus_sd15.safetensors")
    ///     .image_encoder("clip-vit-h-14")
    ///     .load("stable-diffusion-v1-5")?;
    /// # Ok::<(), sd_onnx::Error>(())
    /// ```
    pub fn image_encoder(mut self, path: impl Into<PathBuf>) -> Self {
        self.image_encoder = Some(path.into());
        self
    }

    /// Adds an upscaler, a network that enlarges pictures: a `.safetensors` or `.pth` file. The
    /// method can be called several times.
    ///
    /// Its name is the name of the file without the extension, as in WebUI. Requests call it by
    /// [`Upscaler::Network`](crate::Upscaler::Network). WebUI's built-in entries have other names
    /// than their files, such as `R-ESRGAN 4x+` for `RealESRGAN_x4plus.pth`, so an infotext with
    /// such a name does not find the file.
    ///
    /// ESRGAN, Real-ESRGAN, BSRGAN, ESRGAN+, SRVGGNetCompact, SwinIR and DAT are supported, with
    /// the tensor names of all their versions. The network is recognised by the names and shapes of
    /// its tensors, and loaded when it is first used.
    ///
    /// Default: none.
    ///
    /// # Errors
    /// Loading the pipeline fails as [`load_upscaler`](Self::load_upscaler) does. It also fails
    /// with [`Error::Pipeline`] if two files have the same name, or if a file has the name of an
    /// upscaler that WebUI always has, such as `Lanczos`.
    ///
    /// ```no_run
    /// use sd_onnx::{Hires, Request, Upscaler};
    ///
    /// let pipeline = sd_onnx::builder()
    ///     .upscaler("RealESRGAN_x4plus.pth")
    ///     .load("stable-diffusion-v1-5")?;
    /// let upscaler = Upscaler::Network("RealESRGAN_x4plus".to_owned());
    /// let hires = Hires::scale(2.0).upscaler(upscaler).strength(0.4);
    /// pipeline.generate(&Request::new("a fox").hires(hires))?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn upscaler(mut self, path: impl Into<PathBuf>) -> Self {
        self.upscalers.push(path.into());
        self
    }

    /// Sets the tiles in which pictures go through the [upscalers](Self::upscaler).
    ///
    /// Default: [`Tiling::default`], tiles of 192 pixels that overlap by 8, as in WebUI.
    ///
    /// ```no_run
    /// use sd_onnx::upscale::Tiling;
    ///
    /// let larger = Tiling { tile: 512, overlap: 32 };
    /// let upscaler = sd_onnx::builder().upscaler_tiling(larger).load_upscaler("4x-sharp.pth")?;
    /// # Ok::<(), sd_onnx::Error>(())
    /// ```
    pub fn upscaler_tiling(mut self, tiling: Tiling) -> Self {
        self.upscaler_tiling = tiling;
        self
    }

    /// Sets how the autoencoder decodes and encodes large pictures: untiled, or in exact or fast
    /// tiles, which need less memory.
    ///
    /// A separately loaded [`codec`](Self::codec) has its own setting.
    /// [`handbook::devices`](crate::handbook::devices#large-pictures) has figures.
    ///
    /// Default: [`VaeTiling::default`], exact tiles for pictures that need more than 6 GiB untiled.
    ///
    /// ```
    /// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji");
    /// use sd_onnx::{Request, VaeTiling};
    ///
    /// let pipeline = sd_onnx::builder().vae_tiling(VaeTiling::Exact).load(folder)?;
    /// pipeline.generate(&Request::new("a fox").steps(2))?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// Exported ONNX graphs and TAESDs run only untiled. For them, loading fails if this is
    /// [`VaeTiling::Exact`] or [`VaeTiling::Fast`]: with [`Error::Graph`] for an exported graph,
    /// and with [`Error::Config`] for a TAESD.
    pub fn vae_tiling(mut self, tiling: VaeTiling) -> Self {
        self.vae_tiling = tiling;
        self
    }

    /// Adds a TAESD, a tiny autoencoder, beside the model's own autoencoder.
    ///
    /// It decodes previews ([`Progress::preview`](crate::Progress::preview)), which then have full
    /// size. With [`TaesdUse::PreviewsAndPictures`], it also decodes finished pictures. The path
    /// may be anything that [`vae`](Self::vae) accepts. Use a TAESD for Stable Diffusion 1.x and
    /// 2.x, and a TAESDXL for SDXL.
    ///
    /// A TAESD takes about a fiftieth of the time of the usual autoencoder, so a preview in each
    /// step costs little compared with the step. The pictures that it decodes are similar to the
    /// usual ones, with less detail, and their infotext has `SD decoder: TAESD`. Pictures to start
    /// from are encoded by the model's own autoencoder.
    ///
    /// With [`low_memory`](Self::low_memory), a TAESD stays loaded together with the UNet. Only
    /// [`load`](Self::load) reads this setting.
    ///
    /// Default: none. Previews have one pixel for each latent.
    ///
    /// ```no_run
    /// use std::ops::ControlFlow;
    ///
    /// use sd_onnx::{Event, Request, StopToken, TaesdUse};
    ///
    /// let pipeline = sd_onnx::builder()
    ///     .taesd("taesd", TaesdUse::Previews)
    ///     .load("stable-diffusion-v1-5")?;
    /// pipeline.run(&[Request::new("a fox")], &StopToken::new(), |event| {
    ///     if let Event::Step(progress) = event {
    ///         assert_eq!(progress.preview().dimensions(), (512, 512));
    ///     }
    ///     ControlFlow::Continue(())
    /// })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`load`](Self::load) opens the files. Beside the errors of any file, it returns:
    ///
    /// - [`Error::Config`] if the autoencoder is not a TAESD, or if it decodes pictures and has
    ///   another number of pixels per latent than the model's own autoencoder.
    /// - [`Error::Pipeline`] if it has another number of latent channels than the UNet.
    pub fn taesd(mut self, path: impl Into<PathBuf>, used_for: TaesdUse) -> Self {
        self.taesd = Some((path.into(), used_for));
        self
    }

    /// Sets the file or folder that the UNet is read from, instead of the model's own.
    ///
    /// The path may be a file with only a UNet, a checkpoint, a model folder, or the folder of a
    /// UNet with its `config.json`. The prediction, the noise schedule and the default sampler also
    /// come from this path, unless it is the folder of a UNet, which has none of them. If
    /// [`size`](Self::size) is not set, the default size is always the UNet's.
    ///
    /// Default: the model's own UNet.
    ///
    /// ```no_run
    /// let pipeline = sd_onnx::builder().unet("sdxl-unet.safetensors").load("sdxl-base-1.0")?;
    /// # Ok::<(), sd_onnx::Error>(())
    /// ```
    pub fn unet(mut self, path: impl Into<PathBuf>) -> Self {
        self.elsewhere.unet = Some(path.into());
        self
    }

    /// Sets the file or folder that the autoencoder (VAE) is read from, instead of the model's own.
    ///
    /// The path may be a VAE file, a checkpoint, a model folder, or the folder of a VAE with its
    /// `config.json`. ONNX graphs are not accepted.
    ///
    /// The autoencoder must fit the model's latents: an SD 1.x VAE makes meaningless pictures with
    /// SDXL, without an error. A folder or a checkpoint whose scaling factor differs from the
    /// model's causes a warning. A VAE file contains no scaling factor, so the model's is used.
    ///
    /// Default: the model's own autoencoder.
    ///
    /// ```no_run
    /// let pipeline = sd_onnx::builder().vae("sdxl_vae.safetensors").load("sdxl.safetensors")?;
    /// # Ok::<(), sd_onnx::Error>(())
    /// ```
    pub fn vae(mut self, path: impl Into<PathBuf>) -> Self {
        self.elsewhere.vae = Some(path.into());
        self
    }

    /// Sets the file or folder that the text encoder is read from, instead of the model's own. For
    /// SDXL, this is the first text encoder.
    ///
    /// The path may be a file with only a text encoder, a checkpoint, a model folder, or the folder
    /// of a text encoder with its `config.json`.
    ///
    /// Default: the model's own text encoder.
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

    /// Sets the file or folder that SDXL's second text encoder is read from, instead of the model's
    /// own. The second text encoder is also the refiner's only one.
    ///
    /// The path may be anything that [`text_encoder`](Self::text_encoder) accepts, whose example
    /// sets both. Loading fails if the model has no second text encoder.
    ///
    /// Default: the model's own second text encoder.
    pub fn text_encoder_2(mut self, path: impl Into<PathBuf>) -> Self {
        self.elsewhere.text_encoder_2 = Some(path.into());
        self
    }

    /// Sets the folder that the tokenizer is read from. It holds either the tokenizer's files, or
    /// the folders `tokenizer` and `tokenizer_2`.
    ///
    /// Default: the tokenizer in the model folder that the text encoder comes from, or else the
    /// tokenizer in the model folder. For a checkpoint file, the CLIP tokenizer built into this
    /// crate.
    ///
    /// ```no_run
    /// let pipeline = sd_onnx::builder().tokenizer("my-tokenizer").load("model.safetensors")?;
    /// # Ok::<(), sd_onnx::Error>(())
    /// ```
    pub fn tokenizer(mut self, folder: impl Into<PathBuf>) -> Self {
        self.elsewhere.tokenizer = Some(folder.into());
        self
    }

    /// Overrides what the UNet predicts.
    ///
    /// Use it if a v-prediction model makes only noise because its file does not name the
    /// prediction. [`handbook::files`](crate::handbook::files) describes how the prediction of a
    /// checkpoint is recognised.
    ///
    /// The value is `Epsilon`, `V` or `Sample`, or `Edm` for a model with EDM's preconditioning.
    /// Loading fails with [`Error::Config`] for others.
    ///
    /// Default: the prediction that is recognised from the model's files.
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
    /// Lin et al. 2023, arXiv 2305.08891).
    ///
    /// With `true`, the model's own ladder also begins at the last training timestep (trailing
    /// spacing).
    ///
    /// Default: the value in the model's files.
    ///
    /// ```no_run
    /// use sd_onnx::schedulers::Prediction;
    ///
    /// // The file does not record that the model predicts v with zero terminal SNR.
    /// let pipeline = sd_onnx::builder()
    ///     .prediction(Prediction::V)
    ///     .zero_terminal_snr(true)
    ///     .load("model.safetensors")?;
    /// # Ok::<(), sd_onnx::Error>(())
    /// ```
    pub fn zero_terminal_snr(mut self, rescaled: bool) -> Self {
        self.zero_terminal_snr = Some(rescaled);
        self
    }

    /// Loads a model: a checkpoint file, a diffusers folder or a folder of ONNX graphs.
    ///
    /// The family (Stable Diffusion 1.x, 2.x, SDXL or one of their relatives) is recognised from
    /// the files: see [`handbook::files`](crate::handbook::files). Outdated values of the scheduler
    /// and the UNet in a diffusers folder are corrected as in diffusers' pipelines, each with a
    /// warning. Requests with a mask of diffusers' rule follow diffusers' class for inpainting, and
    /// so do all requests to an inpainting model. A request without a size gets the builder's
    /// [`size`](Self::size).
    ///
    /// A pickle, such as a `.ckpt` file, is read without running the code in it. One that asks for
    /// more than tensors and plain values is refused with [`Error::Pickle`].
    ///
    /// # Defaults
    /// The model determines what a request leaves open. The choice is logged through `tracing` at
    /// the level `info`:
    ///
    /// | model | steps | guidance scale | sampler and ladder |
    /// |---|---|---|---|
    /// | Stable Diffusion 1.x | 20 | 7.5 | DPM++ 2M on Karras |
    /// | Stable Diffusion 2.x, inpainting, instruct-pix2pix | 20 | 7.5 | configured |
    /// | SDXL | 20 | 5 | configured |
    /// | SDXL inpainting | 20 | 7.5 | configured |
    /// | LCM | 4 | 8.5, or 1 without a guidance input | configured |
    /// | Turbo, SDXS | 1 | 1 | configured |
    /// | Lightning, DMD2 | 4 | 1 | configured |
    /// | Hyper | 8 | 1 | configured |
    /// | Playground | 20 | 3 | configured |
    ///
    /// A configured sampler and ladder come from `scheduler_config.json`. A checkpoint file has the
    /// configuration of its family.
    ///
    /// - Turbo, Lightning, Hyper, DMD2, SDXS and Playground are recognised by that word in the name
    ///   of the folder or the file. The header of a checkpoint file may also name Turbo, Lightning,
    ///   DMD2 or SDXS.
    /// - Turbo is also recognised by its scheduler, Euler ancestral on trailing timesteps, and
    ///   Playground by its tensors.
    /// - LCM is recognised by the UNet's guidance input, the pipeline class or the scheduler.
    ///
    /// For LCM and for a model recognised by a word, a number of steps in the name replaces the
    /// table's number, such as 4 in `sdxl_lightning_4step`. The guidance scales of Stable
    /// Diffusion, SDXL and LCM are the defaults of diffusers' pipelines. The others are from the
    /// model cards. 20 steps is WebUI's default for every model.
    ///
    /// # Changing the files
    /// Do not change the weight files in place while the model is loaded. ONNX Runtime maps them
    /// into memory, so shortening a file ends the process. Renaming another file over it is safe
    /// for the networks that are already loaded.
    ///
    /// Some networks are loaded later, from the same paths: the autoencoder's encoder at its first
    /// use, networks for a new size on OpenVINO, and all networks with
    /// [`low_memory`](Self::low_memory). So keep the files where they are, with the same contents,
    /// until the pipeline is dropped.
    ///
    /// # Errors
    /// An error about a file names the file and what in it is missing or wrong:
    ///
    /// - [`Error::Io`], [`Error::Missing`] or [`Error::Variants`] if a file or a network cannot be
    ///   read, is missing, or has several variants to choose from.
    /// - [`Error::Json`], [`Error::Config`], [`Error::Scheduler`] or [`Error::Tokenizer`] if a
    ///   configuration or a tokenizer cannot be used.
    /// - [`Error::Safetensors`], [`Error::Gguf`], [`Error::Pickle`], [`Error::Checkpoint`] or
    ///   [`Error::Graph`] if a weight file is malformed or is not a supported model.
    /// - [`Error::MissingTensor`], [`Error::TensorShape`], [`Error::TensorType`],
    ///   [`Error::TensorValues`] or [`Error::UnusedTensors`] if the tensors do not match the
    ///   network.
    /// - [`Error::Adapter`] if a [LoRA](Self::lora) cannot be used or does not fit the model.
    /// - [`Error::Inversion`] if a textual inversion cannot be used.
    /// - [`Error::TextEncoders`] if the tokenizers and the text encoders do not fit each other.
    /// - [`Error::Pipeline`] if other parts of the model do not fit each other, or if a setting is
    ///   out of range.
    /// - [`Error::Runtime`] if there is no usable ONNX Runtime, or the device or the precision is
    ///   not available.
    /// - [`Error::Onnx`] if ONNX Runtime refuses a network, for instance for lack of memory.
    pub fn load(self, path: impl AsRef<Path>) -> Result<Pipeline, Error> {
        let path = path.as_ref();
        let _span = tracing::info_span!("load", model = %path.display()).entered();
        let mut components = vec!["unet"];
        if self.codec.is_none() {
            components.push("vae");
        }
        let model = self.open(path, &components)?;
        let read = self.read_scheduler(&model)?;
        let [drawing, redrawing] =
            [Task::Draw, Task::Redraw].map(|task| model.corrections_for(task));
        let corrected = [read.corrected(drawing)?, read.corrected(redrawing)?];
        let engine = self.engine()?;
        let mut adapters = Adapters::new(&self.loras, &self.lora_folders, &model)?;
        let (prompts, towers) = self.prompts(&model, &adapters, &engine)?;
        let of_unet = engine.for_unet();
        let LoadedUnet {
            denoiser,
            config: unet,
            resnets,
        } = denoiser(&model, &self.control_settings(), &adapters, &of_unet)?;
        let sample_size = sample_size(&model, &denoiser, unet.as_ref())?;
        let (mut codec, mut own_codec) = self.codec_for(&model, &engine)?;
        let taesd = match &self.taesd {
            Some((file, used_for)) => {
                // Previews are decoded between the steps of the UNet.
                let engine = of_unet.together();
                let taesd =
                    taesd::open(file, path, self.variant.as_deref(), self.seamless, &engine)?;
                if *used_for == TaesdUse::PreviewsAndPictures {
                    let (found, expected) = (taesd.factor(), codec.factor());
                    let both = DecodedByTaesd::new(taesd.clone(), codec);
                    codec = Arc::new(both.ok_or_else(|| Error::Config {
                        path: file.clone(),
                        key: "decoder_block_out_channels".into(),
                        expected: format!(
                            "levels for {expected} pixels per latent, as the model's autoencoder has"
                        ),
                        found: format!("levels for {found}"),
                    })?);
                    // Only encodes, so its decoder is not loaded.
                    own_codec = None;
                }
                Some(taesd)
            }
            None => None,
        };
        let side = |side: usize| (side * codec.factor()).next_multiple_of(8).min(MOST_SIDE) as u32;
        let [height, width] = sample_size.map(side);
        // The calibration must not depend on the sizes that a program draws.
        let calibrated_size = [width, height];
        let calibrated_pixels = u64::from(width) * u64::from(height);
        let [width, height] = self.size.unwrap_or([width, height]);
        let files = model.weight_files("unet")?;
        let inputs = denoiser.inputs();
        let [scheduler, masked] = corrected;
        // With an inpainting model, every request redraws a part.
        let (scheduler, corrections) = match inputs.extra_channels == inputs.channels + 1 {
            true => (masked.clone(), redrawing),
            false => (scheduler, drawing),
        };
        let scheduler = read.warned(scheduler);
        let skips = corrections.skip_prk_steps;
        let defaults = defaults::of(&model, inputs, &read.text, &scheduler, skips);
        let prediction = scheduler.prediction;
        let calibration = self.calibration_file(&denoiser, &files, &adapters)?;
        let calibrating = {
            let (prompts, codec) = (prompts.clone(), codec.clone());
            let (scheduler, defaults) = (scheduler.clone(), defaults.clone());
            let (clip_skip, max_pixels) = (self.clip_skip, self.max_pixels);
            let zero_empty_negative = model.zero_empty_negative();
            move |denoiser: Arc<dyn Denoiser>| {
                Pipeline::builder(prompts.clone(), denoiser, codec.clone(), scheduler.clone())
                    .size(calibrated_size[0], calibrated_size[1])
                    .defaults(defaults.clone())
                    .clip_skip(clip_skip)
                    .zero_empty_negative(zero_empty_negative)
                    .max_pixels(max_pixels.max(calibrated_pixels))
                    .build()
                    .map_err(|source| Error::Pipeline {
                        path: path.to_path_buf(),
                        source,
                    })
            }
        };
        let denoiser = Arc::new(denoiser);
        let mut denoisers = vec![(denoiser.clone(), length_of(&prompts))];
        let factor = codec.factor();
        let library = adapters.library.take().map(|files| Library {
            files,
            prompts: prompts.clone(),
            towers,
            denoiser: denoiser.clone(),
            resnets,
            last: Mutex::default(),
        });
        let mut pipeline = Pipeline::builder(prompts, denoiser.clone(), codec, scheduler);
        if corrections != redrawing {
            let skips = redrawing.skip_prk_steps;
            pipeline =
                pipeline.redrawing(masked.0, defaults::without_first_steps(&defaults, skips));
        }
        pipeline = pipeline
            .size(width, height)
            .defaults(defaults)
            .clip_skip(self.clip_skip)
            .zero_empty_negative(model.zero_empty_negative())
            .max_pixels(self.max_pixels)
            .max_batch(self.max_batch)
            .model(model.name(), move || {
                hash::remembered(&files, hash::cache().as_deref())
            });
        pipeline = adapters.record(pipeline);
        if let Some(library) = library {
            pipeline = pipeline.lora_library(Arc::new(library));
        }
        for path in &self.upscalers {
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            let network = OnnxUpscaler::open(path, self.upscaler_tiling, &engine)?;
            pipeline = pipeline.upscaler(name, Arc::new(network));
        }
        if let Some(taesd) = &taesd {
            pipeline = pipeline.preview_codec(taesd.clone());
        }
        if let Some(path) = &self.refiner {
            let refiner = self.open_refiner(path, &model, prediction)?;
            // The LoRAs are for the model, and do not fit its refiner.
            let adapters = Adapters::default();
            let (prompts, _) = self.prompts(&refiner, &adapters, &engine)?;
            // Control networks act on the model only.
            let settings = ControlSettings {
                paths: &[],
                image_encoder: None,
                ..self.control_settings()
            };
            let engine = engine.without_int8();
            let refines = self::denoiser(&refiner, &settings, &adapters, &engine.for_unet())?;
            let denoiser = Arc::new(refines.denoiser);
            denoisers.push((denoiser.clone(), length_of(&prompts)));
            pipeline = pipeline.refiner(refiner.name(), prompts, denoiser);
        }
        let pipeline = pipeline.build().map_err(|source| Error::Pipeline {
            path: path.to_path_buf(),
            source,
        })?;
        // Last, because it takes longest: any error above is then reported without this wait.
        let size = pipeline.default_size();
        let latents = [size.height(), size.width()].map(|side| side as usize / factor);
        if let Some(int8) = denoiser.int8()
            && !int8.read(calibration.as_deref())
        {
            int8.calibrate(calibration.as_deref(), calibrating)?;
        }
        for (denoiser, length) in denoisers {
            denoiser.prepare(latents, length)?;
        }
        for codec in own_codec.into_iter().chain(taesd) {
            codec.prepare(latents)?;
        }
        Ok(pipeline)
    }

    /// Loads only the tokenizers and the text encoders of a model, a file or a folder, for encoding
    /// prompts.
    ///
    /// ```
    /// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji");
    /// let encoder = sd_onnx::builder().load_prompt_encoder(folder)?;
    /// assert_eq!(encoder.tokenizer().max_length(), 77);
    /// # Ok::<(), sd_onnx::Error>(())
    /// ```
    ///
    /// # Errors
    /// The same as for [`load`](Self::load).
    pub fn load_prompt_encoder(&self, path: impl AsRef<Path>) -> Result<PromptEncoder, Error> {
        let model = self.open(path.as_ref(), &[])?;
        let adapters = Adapters::new(&self.loras, &[], &model)?;
        let (prompts, _) = self.prompts(&model, &adapters, &self.engine()?)?;
        Ok(prompts)
    }

    /// Loads only the tokenizer and the text encoder of a model, as a [`TextEncoder`] for plain
    /// texts.
    ///
    /// The path may be the file or folder of a Stable Diffusion model, a file with only a text
    /// encoder, or a folder with the files of a CLIP model: `config.json`, `model.safetensors` and
    /// the tokenizer's files. For SDXL, the first text encoder is loaded.
    ///
    /// ```
    /// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji");
    /// let encoder = sd_onnx::builder().threads(1).load_text_encoder(folder)?;
    /// assert_eq!(encoder.encode_pooled(["a fox", "a pizza"])?.pooled.dim(), (2, 64));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// The same as for [`load`](Self::load).
    pub fn load_text_encoder(&self, path: impl AsRef<Path>) -> Result<TextEncoder, Error> {
        let variant = self.variant.as_deref();
        let folder = Source::open_text(path.as_ref(), variant, &self.elsewhere)?;
        let adapters = Adapters::new(&self.loras, &[], &folder)?;
        let mut files = TextFiles::read(&folder, TowerParts::ONLY, &adapters)?;
        files.project();
        let inversions = self.inversions(&adapters)?;
        let more = inversions::add(&inversions, &mut [files.rows()])?.remove(0);
        let (tokenizer, model) = files.model(&more, &self.engine()?)?;
        // Reports a tokenizer and a text encoder that do not fit each other.
        Tower::new(tokenizer.clone(), model.clone()).map_err(|error| unfit(&folder, error))?;
        Ok(TextEncoder::new(tokenizer, model))
    }

    /// Loads only the vision model of a CLIP model, as an [`ImageEncoder`].
    ///
    /// The path may be one of:
    ///
    /// - the folder of a CLIP model, or of its vision model alone, with `config.json` and
    ///   `model.safetensors`;
    /// - a model folder in the diffusers layout that contains such a folder, `image_encoder`;
    /// - a weight file with the tensor names of transformers. Its `config.json` is in the same
    ///   folder, or the file has OpenAI's ViT-L/14 or OpenCLIP's ViT-H/14 or ViT-bigG/14, which are
    ///   recognised by their shapes. OpenCLIP's own tensor names are not supported.
    ///
    /// A `preprocessor_config.json` in the same folder, or in `feature_extractor` beside
    /// `image_encoder`, describes how pictures are resized and normalised. Without one, CLIP's
    /// values apply.
    ///
    /// Of the builder's settings, only the device, the precision, the runtime, the threads,
    /// [`low_memory`](Self::low_memory) and the [`variant`](Self::variant) have an effect.
    ///
    /// ```no_run
    /// let encoder = sd_onnx::builder().threads(1).load_image_encoder("clip-vit-large-patch14")?;
    /// assert_eq!(encoder.side(), 224);
    /// # Ok::<(), sd_onnx::Error>(())
    /// ```
    ///
    /// # Errors
    /// The same as for [`load`](Self::load). A folder with a text model alone is
    /// [`Error::Config`], and a file without a vision model is [`Error::Missing`].
    pub fn load_image_encoder(&self, path: impl AsRef<Path>) -> Result<ImageEncoder, Error> {
        let files = VisionFiles::open(path.as_ref(), self.variant.as_deref())?;
        ImageEncoder::new(files, &self.engine()?)
    }

    /// Loads only the UNet of a model, a file or a folder, for a pipeline of custom parts.
    ///
    /// ```
    /// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji");
    /// let denoiser = sd_onnx::builder().load_denoiser(folder)?;
    /// assert_eq!(denoiser.inputs().channels, 4);
    /// # Ok::<(), sd_onnx::Error>(())
    /// ```
    ///
    /// # Errors
    /// The same as for [`load`](Self::load).
    pub fn load_denoiser(&self, path: impl AsRef<Path>) -> Result<Arc<dyn Denoiser>, Error> {
        let folder = self.open(path.as_ref(), &["unet"])?;
        let adapters = Adapters::new(&self.loras, &[], &folder)?;
        let engine = self.engine()?;
        let settings = self.control_settings();
        let LoadedUnet { denoiser, .. } =
            denoiser(&folder, &settings, &adapters, &engine.for_unet())?;
        let latents = match self.size {
            Some([width, height]) => [height, width].map(|side| side as usize / SD_FACTOR),
            None => denoiser.sample_size(),
        };
        let files = folder.weight_files("unet")?;
        let file = self.calibration_file(&denoiser, &files, &adapters)?;
        if let Some(int8) = denoiser.int8() {
            // Without a calibration, `prepare` fails with a message that tells what to do.
            int8.read(file.as_deref());
        }
        denoiser.prepare(latents, WINDOW)?;
        Ok(Arc::new(denoiser))
    }

    /// Loads only the autoencoder of a model, a file or a folder, for a pipeline of custom parts.
    ///
    /// ```
    /// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji");
    /// let codec = sd_onnx::builder().load_codec(folder)?;
    /// assert_eq!(codec.factor(), 8);
    /// # Ok::<(), sd_onnx::Error>(())
    /// ```
    ///
    /// [LoRAs](Self::lora) do not change autoencoders and are not read here.
    ///
    /// A file that contains only an `AutoencoderKL` is refused, because it does not contain the
    /// scaling factor of its latents. Pass such a file to [`vae`](Self::vae) and load a model with
    /// it.
    ///
    /// # Errors
    /// The same as for [`load`](Self::load). A file with only an `AutoencoderKL` is
    /// [`Error::Config`].
    pub fn load_codec(&self, path: impl AsRef<Path>) -> Result<Arc<dyn LatentCodec>, Error> {
        let model = self.open(path.as_ref(), &["vae"])?;
        let codec = self.codec_of(&model, &self.engine()?)?;
        let [width, height] = self.size.unwrap_or([512; 2]);
        let factor = codec.factor();
        codec.prepare([height, width].map(|side| (side as usize / factor).max(1)))?;
        Ok(Arc::new(codec))
    }

    /// Loads a network that enlarges pictures, without a model. [`upscaler`](Self::upscaler)
    /// describes the files, and [`Enlarger`](crate::upscale::Enlarger) enlarges pictures with it.
    ///
    /// Of the builder's settings, only the device, the precision, the runtime, the threads,
    /// [`low_memory`](Self::low_memory), [`kept_sizes`](Self::kept_sizes) and
    /// [`upscaler_tiling`](Self::upscaler_tiling) have an effect.
    ///
    /// ```no_run
    /// use sd_onnx::{StopToken, image::RgbImage, upscale::Enlarger};
    ///
    /// let network = sd_onnx::builder().load_upscaler("RealESRGAN_x4plus.pth")?;
    /// let picture = RgbImage::new(640, 480);
    /// let stop = StopToken::new();
    /// let large = Enlarger::new(&*network).enlarge(&picture, 4.0, &stop, |_| {})?;
    /// assert_eq!(large.dimensions(), (2560, 1920));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// - [`Error::Io`], [`Error::Safetensors`] or [`Error::Pickle`] if the file cannot be read.
    /// - [`Error::Checkpoint`] if it has no network that enlarges pictures, or one that is not
    ///   supported.
    /// - [`Error::MissingTensor`], [`Error::TensorShape`], [`Error::TensorType`] or
    ///   [`Error::UnusedTensors`] if its tensors are not those of the network. A missing tensor of
    ///   ESRGAN or BSRGAN has its name in Real-ESRGAN.
    /// - [`Error::Runtime`] if there is no usable ONNX Runtime, or the device or the precision is
    ///   not available.
    pub fn load_upscaler(&self, path: impl AsRef<Path>) -> Result<Arc<dyn PictureUpscaler>, Error> {
        let engine = self.engine()?;
        let network = OnnxUpscaler::open(path.as_ref(), self.upscaler_tiling, &engine)?;
        Ok(Arc::new(network))
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

    /// Opens the vision model in a model folder, if the folder has one.
    pub(crate) fn vision_files_in(&self, path: &Path) -> Option<Result<VisionFiles, Error>> {
        let open = || VisionFiles::open(path, self.variant.as_deref());
        VisionFiles::is_in(path).then(open)
    }

    /// Returns the reason why a setting of the builder cannot be part of a converted model.
    pub(crate) fn not_convertible(&self) -> Option<&'static str> {
        match self {
            Self { codec: Some(_), .. } => Some(
                "an autoencoder given as a value cannot be written: pass its file to \
                 `Builder::vae` instead of `Builder::codec`",
            ),
            Self {
                refiner: Some(_), ..
            } => Some("a model and its refiner must be converted separately"),
            Self { loras, .. } if !loras.is_empty() => {
                Some("a model with LoRAs merged into it cannot be written yet")
            }
            Self { lora_folders, .. } if !lora_folders.is_empty() => {
                Some("LoRAs that prompts call are separate files and cannot be part of a model")
            }
            Self { seamless, .. } if *seamless != Seamless::NONE => {
                Some("seamless axes are a setting of loading, which no model file contains")
            }
            Self { upscalers, .. } if !upscalers.is_empty() => {
                Some("upscalers are separate files and cannot be part of a model")
            }
            Self { controls, .. } if !controls.is_empty() => {
                Some("control networks are separate files and cannot be part of a model")
            }
            Self { taesd: Some(_), .. } => Some(
                "a TAESD beside the autoencoder is a separate file and cannot be part of a model",
            ),
            Self { inversions, .. } if !inversions.is_empty() => {
                Some("textual inversions are separate files and cannot be part of a model")
            }
            _ => None,
        }
    }

    /// Returns the file in the cache folder with the calibration of a UNet for int8. Returns `None`
    /// in another precision, or if there is no cache folder.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be hashed.
    fn calibration_file(
        &self,
        denoiser: &OnnxDenoiser,
        files: &[PathBuf],
        adapters: &Adapters,
    ) -> Result<Option<PathBuf>, Error> {
        let (Some(_), Some(first)) = (denoiser.int8(), files.first()) else {
            return Ok(None);
        };
        let hash = hash::remembered(files, hash::cache().as_deref()).map_err(Error::io(first))?;
        let adapters = adapters.of_unet()?.join(", ");
        // With another prediction, the model draws other pictures, which may be nothing but noise.
        let (prediction, snr) = (self.prediction, self.zero_terminal_snr);
        Ok(calibration::file(&format!(
            "{hash} {adapters} {prediction:?} {snr:?}"
        )))
    }

    /// Returns a scheduler configuration with the user's overrides in it.
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
                            "Epsilon, V or Sample, or Edm for a model with EDM's preconditioning"
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
                // The one spacing of diffusers that begins at the last timestep, which is pure
                // noise.
                file.set("timestep_spacing", "trailing".into());
            }
        }
        Ok(file.to_json())
    }

    /// Returns the model's values in its scheduler configuration and the text of the configuration.
    /// User overrides and the corrections of the pipeline class are applied to the values.
    pub(crate) fn scheduler_config(
        &self,
        model: &Source,
    ) -> Result<(SchedulerConfig, String), Error> {
        let read = self.read_scheduler(model)?;
        let corrected = read.corrected(model.corrections())?;
        Ok((read.warned(corrected), read.text))
    }

    /// Reads the model's scheduler configuration, with user overrides.
    fn read_scheduler(&self, model: &Source) -> Result<ReadScheduler, Error> {
        let (path, mut text) = model.scheduler()?;
        let at = printable(path.display());
        if self.prediction.is_some() || self.zero_terminal_snr.is_some() {
            text = self.overridden(&path, &text)?;
        }
        let file = Config::parse(&path, &text)?;
        let config = SchedulerConfig::from_json(&text)
            .map_err(|source| Error::Scheduler { path, source })?;
        if !config.ignored.is_empty() {
            let keys = list(&config.ignored);
            tracing::warn!("{at}: ignored keys: {keys}");
        }
        Ok(ReadScheduler {
            at,
            text,
            file,
            config,
        })
    }

    /// Returns the settings of the control networks.
    fn control_settings(&self) -> ControlSettings<'_> {
        ControlSettings {
            paths: &self.controls,
            image_encoder: self.image_encoder.as_deref(),
            variant: self.variant.as_deref(),
            seamless: self.seamless,
        }
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

    /// Returns the builder's textual inversions, and the ones in the files of the LoRAs.
    fn inversions(&self, adapters: &Adapters) -> Result<Vec<Inversions>, Error> {
        let own = self.inversions.iter().cloned();
        Ok(own.chain(adapters.inversions()?).collect())
    }

    /// Returns the codec that was set, or else the model's own.
    fn codec_for(&self, model: &Source, engine: &Engine) -> Result<CodecAndOwn, Error> {
        if let Some(codec) = &self.codec {
            return Ok((codec.clone(), None));
        }
        let own = Arc::new(self.codec_of(model, engine)?);
        Ok((own.clone(), Some(own)))
    }

    fn codec_of(&self, folder: &Source, engine: &Engine) -> Result<OnnxCodec, Error> {
        let tiling = self.vae_tiling;
        let must_tile = matches!(tiling, VaeTiling::Exact | VaeTiling::Fast);
        if let Some(path) = folder.exported_codec()? {
            check_not_seamless(path, self.seamless)?;
            if must_tile {
                let problem = format!(
                    "an exported graph cannot be cut into tiles (`Builder::vae_tiling` is \
                     `{tiling}`); expected a checkpoint or a diffusers folder"
                );
                return Err(Error::graph(path, problem));
            }
            let is_xl = folder.towers().iter().any(|tower| tower.pooled);
            return OnnxCodec::exported(Codec::open(path, is_xl)?, engine);
        }
        let config = folder.config("vae")?;
        if folder.is_bare_vae() {
            let expected = "a checkpoint or a folder, because a VAE file does not contain the \
                            scaling factor; pass the file to `Builder::vae` and load a model with \
                            it";
            return Err(config.wrong("scaling_factor", expected));
        }
        folder.warn_of_scaling(&config)?;
        let mut vae = VaeConfig::new(&config)?;
        if must_tile && vae.layers().is_none() {
            let expected = format!(
                "another class for `Builder::vae_tiling`, which is `{tiling}`: this class runs \
                 only untiled, with a fraction of the memory"
            );
            return Err(config.wrong("_class_name", expected));
        }
        vae.seamless = self.seamless;
        OnnxCodec::new(vae, folder.weights("vae")?, tiling, engine)
    }

    /// Opens the refiner, and checks that it can continue what the model begins.
    fn open_refiner(
        &self,
        path: &Path,
        model: &Source,
        prediction: Prediction,
    ) -> Result<Source, Error> {
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
            check_latents(&refiner, model)?;
        }
        Ok(refiner)
    }

    fn prompts(
        &self,
        folder: &Source,
        adapters: &Adapters,
        engine: &Engine,
    ) -> Result<(PromptEncoder, Vec<TextTower>), Error> {
        let read = |&tower| TextFiles::read(folder, tower, adapters);
        let mut files: Vec<_> = folder.towers().iter().map(read).collect::<Result<_, _>>()?;
        let mut rows: Vec<_> = files.iter_mut().map(TextFiles::rows).collect();
        let more = inversions::add(&self.inversions(adapters)?, &mut rows)?;
        let mut towers = Vec::with_capacity(files.len());
        let mut parts = Vec::with_capacity(files.len());
        for ((files, more), tower) in files.into_iter().zip(&more).zip(folder.towers()) {
            let (tokenizer, model) = files.model(more, engine)?;
            parts.push(TextTower {
                network: tower.encoder,
                tokenizer: tokenizer.clone(),
                model: model.clone(),
                layer: tower.layer,
            });
            let made = Tower::new(tokenizer, model).map_err(|error| unfit(folder, error))?;
            towers.push(made.layer(tower.layer));
        }
        let prompts = PromptEncoder::from_towers(towers).map_err(|error| unfit(folder, error))?;
        Ok((prompts, parts))
    }
}

/// A codec, and once more in its own type if it is the model's own codec.
type CodecAndOwn = (Arc<dyn LatentCodec>, Option<Arc<OnnxCodec>>);

/// A scheduler configuration, before corrections.
struct ReadScheduler {
    /// The printable path of its file.
    at: String,
    text: String,
    file: Config,
    config: SchedulerConfig,
}

impl ReadScheduler {
    /// Returns the corrected values, and a description of each change.
    fn corrected(&self, corrections: Corrections) -> Result<(SchedulerConfig, Vec<String>), Error> {
        let mut config = self.config.clone();
        let changes = corrections.scheduler(&self.file, &mut config)?;
        Ok((config, changes))
    }

    /// Warns of the changes, and returns the values.
    fn warned(&self, (config, changes): (SchedulerConfig, Vec<String>)) -> SchedulerConfig {
        for change in changes {
            tracing::warn!("{}: {change}", self.at);
        }
        config
    }
}

/// The tokenizer and the network of a text encoder, as read from the files.
struct TextFiles {
    tokenizer: ClipTokenizer,
    network: TextNetwork,
}

/// The network of a text encoder.
enum TextNetwork {
    Weights(Box<TextWeights>),
    Exported(Box<TextFile>),
}

impl TextFiles {
    fn read(folder: &Source, tower: TowerParts, adapters: &Adapters) -> Result<Self, Error> {
        let tokenizer = folder.tokenizer(tower)?;
        let network = match folder.graph(tower.encoder)? {
            Some(graph) => TextNetwork::Exported(exported::text(&graph, tower.pooled)?.into()),
            None => {
                let mut config = ClipTextConfig::new(folder.config(tower.encoder)?)?;
                config.projection = tower.pooled.then_some(config.projection_width);
                let mut weights = folder.weights(tower.encoder)?;
                adapters.merge(tower.encoder, &mut weights)?;
                let read = TextWeights {
                    network: tower.encoder,
                    config,
                    weights,
                    live: adapters.live(tower.encoder),
                };
                TextNetwork::Weights(read.into())
            }
        };
        let files = Self { tokenizer, network };
        // Checked before inversions are added: afterwards the error would blame their files.
        let (ids, rows) = (files.tokenizer.vocab_size(), files.config().vocab_size);
        if ids > rows {
            let (tokenizer, model) = (ids, rows);
            return Err(unfit(folder, TowerError::TooManyIds { tokenizer, model }));
        }
        if ids < rows {
            let path = printable(folder.path().display());
            tracing::warn!(
                "{path}: the tokenizer has {ids} ids and the text encoder has {rows}: the tokenizer \
                 may belong to another model"
            );
        }
        Ok(files)
    }

    fn config(&self) -> &ClipTextConfig {
        match &self.network {
            TextNetwork::Weights(of) => &of.config,
            TextNetwork::Exported(file) => file.config(),
        }
    }

    /// Makes the text model return its projected state, if it has one.
    fn project(&mut self) {
        if let TextNetwork::Weights(of) = &mut self.network {
            let shape = of.weights.shape(&format!("{PROJECTION}.weight"));
            of.config.projection = shape.and_then(|shape| shape.first().copied());
        }
    }

    /// Returns the place where textual inversions are added.
    fn rows(&mut self) -> Rows<'_> {
        let (first, width) = (self.config().vocab_size, self.config().width);
        Rows {
            tokenizer: &mut self.tokenizer,
            first,
            width,
        }
    }

    /// Returns the tokenizer and the text model, with `more` appended to the token embedding.
    fn model(
        self,
        more: &Array2<f32>,
        engine: &Engine,
    ) -> Result<(Arc<ClipTokenizer>, Arc<OnnxTextModel>), Error> {
        let model = match self.network {
            TextNetwork::Weights(of) => OnnxTextModel::new(*of, more.view(), engine)?,
            TextNetwork::Exported(file) => OnnxTextModel::exported(&file, more.view(), engine)?,
        };
        Ok((Arc::new(self.tokenizer), Arc::new(model)))
    }
}

/// Returns the number of tokens in a window of prompts.
fn length_of(prompts: &PromptEncoder) -> usize {
    prompts.towers()[0].model().shape().max_length
}

/// Returns the height and width of the latents that the model was made for, corrected where its
/// files are known to be wrong.
fn sample_size(
    model: &Source,
    denoiser: &OnnxDenoiser,
    unet: Option<&Config>,
) -> Result<[usize; 2], Error> {
    let mut sample_size = denoiser.sample_size();
    if let Some(unet) = unet
        && let Some(change) = model.corrections().sample_size(unet, &mut sample_size)?
    {
        tracing::warn!("unet/config.json: {change}");
    }
    Ok(sample_size)
}

/// A UNet, before its network is loaded.
struct LoadedUnet {
    denoiser: OnnxDenoiser,
    /// Its `config.json`, which an exported UNet may lack.
    config: Option<Config>,
    /// The number of residual blocks in a level.
    resnets: usize,
}

fn denoiser(
    folder: &Source,
    settings: &ControlSettings<'_>,
    adapters: &Adapters,
    engine: &Engine,
) -> Result<LoadedUnet, Error> {
    let seamless = settings.seamless;
    if let Some(graph) = folder.graph("unet")? {
        check_not_seamless(&graph, seamless)?;
        if !settings.paths.is_empty() {
            let problem = "an exported graph has no inputs for control networks; expected a \
                           checkpoint or a diffusers folder";
            return Err(Error::graph(&graph, problem));
        }
        let (graph, config) = exported::unet(&graph, folder.sizes())?;
        return Ok(LoadedUnet {
            denoiser: OnnxDenoiser::exported(graph, engine)?,
            config,
            resnets: 0,
        });
    }
    let config = folder.config("unet")?;
    let mut unet = UnetConfig::new(&config, folder.sizes())?;
    unet.inputs = unet.inputs.seamless(seamless);
    if engine.precision == Precision::Int8 {
        check_calibrated(folder, settings, unet.inputs.extra_channels)?;
    }
    let controls = Controls::open(settings, &unet, engine)?;
    let mut weights = folder.weights("unet")?;
    adapters.merge("unet", &mut weights)?;
    let resnets = unet.resnets();
    Ok(LoadedUnet {
        denoiser: OnnxDenoiser::new(unet, weights, &adapters.live("unet"), controls, engine)?,
        config: Some(config),
        resnets,
    })
}

/// Refuses inputs of a UNet in int8 that the calibration does not measure. Values outside of the
/// measured ranges are clipped, and the pictures would be wrong.
///
/// # Errors
/// [`Error::Int8`].
fn check_calibrated(
    model: &Source,
    settings: &ControlSettings<'_>,
    extra_channels: usize,
) -> Result<(), Error> {
    let problem = if !settings.paths.is_empty() {
        "control networks change the values within the UNet, and the calibration for int8 measures \
         the UNet without them; load the model in f32, or without control networks"
            .to_owned()
    } else if extra_channels > 0 {
        format!(
            "the UNet reads {extra_channels} channels of a picture or a mask beside the latents, \
             and the calibration for int8 draws from prompts alone; load the model in f32"
        )
    } else {
        return Ok(());
    };
    Err(Error::Int8 {
        path: model.path().to_path_buf(),
        problem,
    })
}

/// Refuses seamless axes for a graph that another tool exported.
fn check_not_seamless(graph: &Path, seamless: Seamless) -> Result<(), Error> {
    if seamless == Seamless::NONE {
        return Ok(());
    }
    Err(Error::graph(
        graph,
        "the padding of an exported graph cannot be changed, so it cannot make seamless pictures; \
         expected a checkpoint or a diffusers folder",
    ))
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            device,
            precision,
            threads,
            kept_sizes,
            low_memory,
            seamless,
            size,
            runtime,
            variant,
            clip_skip,
            max_pixels,
            max_batch,
            codec,
            inversions,
            loras,
            lora_folders,
            refiner,
            controls,
            image_encoder,
            elsewhere,
            prediction,
            zero_terminal_snr,
            upscalers,
            upscaler_tiling,
            vae_tiling,
            taesd,
        } = self;
        f.debug_struct("Builder")
            .field("device", device)
            .field("precision", precision)
            .field("threads", threads)
            .field("kept_sizes", kept_sizes)
            .field("low_memory", low_memory)
            .field("seamless", seamless)
            .field("size", size)
            .field("runtime", runtime)
            .field("variant", variant)
            .field("clip_skip", clip_skip)
            .field("max_pixels", max_pixels)
            .field("max_batch", max_batch)
            .field("codec", &codec.as_ref().map(|_| "given"))
            .field("inversions", inversions)
            .field("loras", loras)
            .field("lora_folders", lora_folders)
            .field("refiner", refiner)
            .field("controls", controls)
            .field("image_encoder", image_encoder)
            .field("elsewhere", elsewhere)
            .field("prediction", prediction)
            .field("zero_terminal_snr", zero_terminal_snr)
            .field("upscalers", upscalers)
            .field("upscaler_tiling", upscaler_tiling)
            .field("vae_tiling", vae_tiling)
            .field("taesd", taesd)
            .finish()
    }
}

/// Returns how many threads the machine runs at once, or `u16::MAX` if that is unknown.
fn available_threads() -> u16 {
    let count = std::thread::available_parallelism().map_or(usize::MAX, usize::from);
    count.try_into().unwrap_or(u16::MAX)
}

fn unfit(folder: &Source, source: TowerError) -> Error {
    Error::TextEncoders {
        path: folder.path().to_path_buf(),
        source,
    }
}

/// Checks that a refiner has its text encoder. A refiner cannot take it from another file.
fn check_text_encoder(refiner: &Source) -> Result<(), Error> {
    match refiner
        .towers()
        .iter()
        .find(|tower| !refiner.has(tower.encoder))
    {
        None => Ok(()),
        Some(tower) => Err(Error::Missing {
            path: refiner.path().to_path_buf(),
            what: format!("the refiner's `{}`", tower.encoder),
            hint: "expected a complete refiner with its text encoder".into(),
        }),
    }
}

/// Checks that a refiner predicts the same quantity as the model, as far as its files show, because
/// the model's scheduler runs all steps.
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
        expected: format!("{model:?}, the prediction of the model that it refines"),
        found: format!("{found:?}"),
    })
}

/// Checks that a refiner works on the same latents as the model, as far as its files show: the
/// autoencoders must scale them alike. `AutoencoderTiny` replaces other autoencoders and does not
/// scale, so it is not compared.
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
    let of = |config: &VaeConfig| format!("{:?} with shift {:?}", config.scale, config.shift);
    Err(Error::Config {
        path: config.path().to_path_buf(),
        key: "scaling_factor".into(),
        expected: format!("{}, as in the model that it refines", of(&model)),
        found: of(&found),
    })
}
