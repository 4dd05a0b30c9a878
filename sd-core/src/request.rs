//! A request: what to draw, and how.

use ndarray::{ArcArray, Array, Ix2, Ix3, Ix4};
use sd_schedulers::{
    Ladder, Scheduler, SchedulerConfig,
    noise::{NoiseKind, Variation},
};
use sd_text::{Chunking, Cleanup, Emphasis, PromptEmbedding, Side, Syntax};
use serde::{Deserialize, Serialize};

use crate::{
    Control, Defaults, Guidance, Hires, Problems, Shortcuts, Sizes, Start, Tiles, json,
    prompts::Read,
};

/// The largest prompt in bytes, 64 KiB.
pub const MAX_PROMPT_BYTES: usize = 1 << 16;

/// The largest number of embedded windows of 75 tokens that a prompt may need, 4096.
///
/// The number is the windows of the prompt's longest text times the number of different texts that
/// its branches show over a run. With [`same_length`](PromptOptions::same_length) the longer of
/// prompt and negative prompt counts for both. In Stable Diffusion 1.x, 4096 windows take 1 GB of
/// memory.
pub const MAX_WINDOWS: usize = 4096;

/// The largest number of branches that `AND` may divide a prompt into, 64.
///
/// Each branch costs a call of the denoiser in every step.
pub const MAX_BRANCHES: usize = 64;

/// The largest number of pictures of one request, 65,536.
pub const MAX_COUNT: usize = 1 << 16;

/// A request: what to draw, and how.
///
/// Only the prompt is required. The values are not checked when they are set: a pipeline checks the
/// whole request before it draws, and reports every value that cannot be used.
///
/// ```
/// use sd_core::{Request, schedulers::{Ladder, samplers::Euler}};
///
/// let request = Request::new("a cute fox girl, watercolour")
///     .negative("blurry")
///     .size(512, 512)
///     .steps(20)
///     .guidance(7.5)
///     .seed(42)
///     .scheduler(Euler::default())
///     .ladder(Ladder::leading());
/// ```
///
/// With serde, a request is an object with a key for each field. All keys except `prompt` are
/// optional. [`from_json`](Self::from_json) reads a request from text and reports everything that
/// is wrong. A custom [`Guide`](crate::Guide) or your own sampler type cannot be
/// serialized.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Request {
    /// The text to draw, in WebUI's [prompt language](sd_text::prompt), or its embedding.
    /// [`PromptOptions::syntax`] selects another language.
    ///
    /// A text has at most [`MAX_PROMPT_BYTES`] bytes and [`MAX_BRANCHES`] branches between `AND`s.
    /// [`MAX_WINDOWS`] limits the windows of 75 tokens that its different texts need together.
    ///
    /// A text calls LoRAs of the pipeline's [library](crate::PipelineBuilder::lora_library), as in
    /// `<lora:watercolour:0.8>`. [`LoraLibrary`](crate::LoraLibrary) describes the syntax. A LoRA
    /// that the pipeline does not have is refused. Other extra networks, such as
    /// `<hypernet:name>`, are removed from the text and not applied.
    ///
    /// [`PromptText::networks`](sd_text::PromptText::networks) lists the networks of a text, and
    /// [`PromptText::warnings`](sd_text::PromptText::warnings) lists what looks like a mistake.
    pub prompt: Prompt,
    /// The negative prompt: what guidance moves the picture away from. In it, `AND` and extra
    /// networks are ordinary text.
    ///
    /// Default: the empty prompt.
    #[serde(default)]
    pub negative: Prompt,
    /// The text that SDXL's second text encoder reads instead of [`prompt`](Self::prompt). It must
    /// have the same number of branches between `AND`s. It is refused if `prompt` is an embedding
    /// or the model has one text encoder. The LoRAs that either text calls change all networks.
    ///
    /// Default: `None`. Both text encoders read `prompt`.
    #[serde(default)]
    pub prompt_2: Option<String>,
    /// The text that SDXL's second text encoder reads instead of [`negative`](Self::negative). It
    /// is refused if `negative` is an embedding or the model has one text encoder.
    ///
    /// Default: `None`. Both text encoders read `negative`.
    #[serde(default)]
    pub negative_2: Option<String>,
    /// How the prompts are read and encoded.
    #[serde(default)]
    pub prompt_options: PromptOptions,
    /// Width and height in pixels, multiples of 8 and of the model's factor
    /// ([`LatentCodec::factor`](crate::LatentCodec::factor)). Width times height is at most the
    /// pipeline's [limit](crate::PipelineBuilder::max_pixels).
    ///
    /// Default: the size of the [start](Self::start). Without a start, or if
    /// [only a region](crate::Mask::only_masked) of it is drawn, the
    /// [size of the pipeline](crate::Pipeline::default_size), usually the size that the model was
    /// trained with.
    #[serde(default)]
    pub size: Option<[u32; 2]>,
    /// The number of denoising steps, 1 to the model's `num_train_timesteps`. With few steps the
    /// picture stays rough. Most samplers gain little beyond about 30 steps. With a
    /// [start](Self::start), its strength decides how many of these steps are made. With a ladder
    /// of given noise levels, another number of steps than the ladder has rungs is refused.
    ///
    /// Default: the number of steps of a ladder with given noise levels ([`Ladder::sigmas`],
    /// [`Ladder::timesteps`]). For any other ladder, the pipeline's [default](Defaults::steps),
    /// which is 20 for most models. [`step_count`](Self::step_count) returns the number.
    #[serde(default)]
    pub steps: Option<usize>,
    /// The classifier-free guidance (CFG) scale, a [`ClassifierFree`](crate::ClassifierFree) with
    /// more options, or a custom [`Guide`](crate::Guide). A scale is any finite number. For Stable
    /// Diffusion 1.x, 4 to 10 is useful.
    ///
    /// At a scale of 1 or less the negative prompt is ignored and each step takes half the time,
    /// unless the prompt has several branches (`AND`) or a weighted branch. The CFG++ samplers are
    /// made for a scale of `0.0..=1.0` and always use the negative prompt.
    ///
    /// Default: the pipeline's [default](Defaults::guidance), 7.5 for Stable Diffusion 1.x.
    #[serde(default)]
    pub guidance: Option<Guidance>,
    /// The seed, which together with the size determines the noise. With torch's CPU generator, the
    /// default for [`noise`](Self::noise), only the low 32 bits count.
    ///
    /// Default: a random seed below 2³² (below 2³¹ for numpy), which
    /// [`Picture::seed`](crate::Picture::seed) reports.
    #[serde(default)]
    pub seed: Option<u64>,
    /// The random number generator that turns the seed into noise.
    ///
    /// Default: [`NoiseKind::Torch`], torch's CPU generator.
    #[serde(default)]
    pub noise: NoiseKind,
    /// A second seed, whose noise is mixed into the noise of [`seed`](Self::seed). At a small
    /// [`strength`](Variation::strength), the pictures resemble the picture of `seed`.
    ///
    /// Default: `None`.
    #[serde(default)]
    pub variation: Option<Variation>,
    /// Width and height, in pixels, of another picture of the same seed, whose composition should
    /// be kept. The noise of that picture replaces the middle of this picture's noise, as far as
    /// both reach. WebUI calls this "Resize seed from".
    ///
    /// Default: `None`.
    #[serde(default)]
    pub seed_resize: Option<[u32; 2]>,
    /// The number added to the seed, wrapping at 2⁶⁴, for the noise that a sampler adds between
    /// steps. WebUI calls it ENSD ("eta noise seed delta"); NovelAI uses 31337. Samplers with a
    /// [Brownian tree](sd_schedulers::noise::BrownianTree) ignore it.
    ///
    /// Default: 0. The sampler continues with the generator that made the initial noise. Any other
    /// number starts a new generator.
    #[serde(default)]
    pub ensd: u64,
    /// The number of pictures, 1 to [`MAX_COUNT`].
    ///
    /// Picture `i` uses the seed plus `i`, wrapping at 2⁶⁴. With a
    /// [`variation`](Self::variation) whose strength is not 0, the seed stays the same and the
    /// variation's seed is increased instead. Each picture is the same as if it were drawn alone
    /// with its seed.
    ///
    /// Default: 1.
    #[serde(default = "default_count")]
    pub count: usize,
    /// The layer of CLIP whose output is used, counted from the end: 1 is the last layer, 2 the one
    /// before it. 0 is the model's usual layer, which is 1 for Stable Diffusion 1.x and 2 for SDXL.
    ///
    /// Default: the pipeline's [clip skip](crate::PipelineBuilder::clip_skip), which is 0 unless it
    /// was set.
    #[serde(default)]
    pub clip_skip: Option<usize>,
    /// The size conditioning of an SDXL model. Other models refuse any value but the default.
    ///
    /// Default: [`Sizes::default`], which describes a picture that was neither scaled nor cropped.
    #[serde(default)]
    pub sizes: Sizes,
    /// The size conditioning for the negative prompt. As in diffusers, it is used only if both
    /// [`original`](Sizes::original) and [`target`](Sizes::target) are set. Models other than SDXL
    /// refuse a value.
    ///
    /// Default: `None`. The negative prompt uses [`sizes`](Self::sizes).
    #[serde(default)]
    pub negative_sizes: Option<Sizes>,
    /// The aesthetic score that SDXL's refiner aims at, about 1 to 10. Without a model that takes
    /// scores, any value but the default is refused.
    ///
    /// Default: 6.
    #[serde(default = "default_score")]
    pub aesthetic_score: f32,
    /// The aesthetic score that SDXL's refiner moves away from. Without a model that takes scores,
    /// any value but the default is refused.
    ///
    /// Default: 2.5.
    #[serde(default = "default_negative_score")]
    pub negative_aesthetic_score: f32,
    /// When the pipeline's refiner takes over from the model. A pipeline without a refiner refuses
    /// a value. At a share of 1 the refiner is not used.
    ///
    /// Default: `None`. A refiner takes over at [`RefinerSwitch::default`], after 0.8 of the
    /// training timesteps.
    #[serde(default)]
    pub refiner: Option<RefinerSwitch>,
    /// Extra input channels beside the latents, `[1 or count, channels, h, w]`, with the height and
    /// width of the latents. Models that take extra channels require them.
    ///
    /// An inpainting model takes the mask, then the masked latents. An instruct-pix2pix model takes
    /// the latents of a picture, without the `scaling_factor`. Other models refuse a value. If the
    /// request has a picture in [`start`](Self::start), the pipeline makes these channels itself.
    ///
    /// Default: `None`.
    #[serde(default)]
    pub beside: Option<ArcArray<f32, Ix4>>,
    /// How closely an instruct-pix2pix model keeps to the picture in [`start`](Self::start) or in
    /// [`beside`](Self::beside), about 1 to 2. It acts in the steps in which guidance acts, and
    /// costs a third call of the denoiser in each of them. Other models refuse any value but the
    /// default.
    ///
    /// Default: 1.5.
    #[serde(default = "default_image_guidance")]
    pub image_guidance: f32,
    /// The sampler, with its options or by name.
    ///
    /// Default: the pipeline's [default](Defaults::scheduler), DPM++ 2M for Stable Diffusion 1.x.
    #[serde(default)]
    pub scheduler: Option<Scheduler>,
    /// The noise levels (sigmas) that the sampler steps through. A ladder that depends on the
    /// picture's size ([`Ladder::for_size`]) uses the size of this picture.
    ///
    /// Default: the usual ladder of the [scheduler](Self::scheduler), such as Karras for DPM++ 2M.
    /// If the request does not set a scheduler either, the pipeline's [default](Defaults::ladder).
    #[serde(default)]
    pub ladder: Option<Ladder>,
    /// The picture or the latents that the run starts from (image to image, inpainting).
    ///
    /// If [`size`](Self::size) is not set, the picture is drawn in the size of the start, rounded
    /// down to multiples of 8. If [only a region](crate::Mask::only_masked) of it is drawn, the
    /// region is drawn in the size of the pipeline.
    ///
    /// Default: `None`. The run starts from noise.
    #[serde(default)]
    pub start: Option<Start>,
    /// A second pass in a larger size (WebUI's "Hires. fix"). The first pass draws in the
    /// [`size`](Self::size) of the request. A second pass is refused if the request has a
    /// [`start`](Self::start), or if the model takes channels beside the latents, as inpainting and
    /// instruct-pix2pix models do.
    ///
    /// Default: `None`. There is one pass.
    #[serde(default)]
    pub hires: Option<Hires>,
    /// Pictures that steer the run through control networks of the pipeline, at most
    /// [`MAX_CONTROLS`](crate::MAX_CONTROLS).
    ///
    /// Default: none.
    #[serde(default)]
    pub controls: Vec<Control>,
    /// The windows in which a large picture is drawn (MultiDiffusion, tiled diffusion). With a
    /// [second pass](Self::hires), they count for both passes. Size conditioning describes the
    /// whole picture.
    ///
    /// Default: `None`. The denoiser sees the whole picture.
    #[serde(default)]
    pub tiles: Option<Tiles>,
    /// The work that the run leaves out to be faster, which changes the picture a little. With a
    /// [second pass](Self::hires), shortcuts act in both passes, and start anew in the second one.
    ///
    /// Shortcuts that the model or the sampler cannot take are refused.
    /// [`Timings::calls`](crate::Timings::calls) and the infotext report the calls that were saved.
    ///
    /// Default: [`Shortcuts::NONE`].
    #[serde(default)]
    pub shortcuts: Shortcuts,
    /// Unit Gaussian noise to start from, `[count, channels, height / factor, width / factor]`. It
    /// replaces the noise of the seed, the variation and [`seed_resize`](Self::seed_resize).
    ///
    /// The noise that a sampler adds between steps still comes from the seed, as if the generator
    /// had also made the initial noise. A picture's
    /// [`initial_noise`](crate::Picture::initial_noise) and seed therefore reproduce the picture.
    /// This differs from diffusers, where the generator does not skip the initial noise: an
    /// ancestral sampler there adds the very noise that it started from.
    ///
    /// Default: `None`.
    #[serde(default)]
    pub initial_noise: Option<ArcArray<f32, Ix4>>,
}

fn default_image_guidance() -> f32 {
    1.5
}

fn default_score() -> f32 {
    6.0
}

fn default_negative_score() -> f32 {
    2.5
}

fn default_count() -> usize {
    1
}

impl Request {
    /// Creates a request for a picture of `prompt`, a text or an embedding. Everything else has its
    /// default.
    pub fn new(prompt: impl Into<Prompt>) -> Self {
        Self {
            prompt: prompt.into(),
            negative: Prompt::default(),
            prompt_2: None,
            negative_2: None,
            prompt_options: PromptOptions::default(),
            size: None,
            steps: None,
            guidance: None,
            seed: None,
            noise: NoiseKind::default(),
            variation: None,
            seed_resize: None,
            ensd: 0,
            count: default_count(),
            clip_skip: None,
            sizes: Sizes::default(),
            negative_sizes: None,
            aesthetic_score: default_score(),
            negative_aesthetic_score: default_negative_score(),
            refiner: None,
            beside: None,
            image_guidance: default_image_guidance(),
            scheduler: None,
            ladder: None,
            start: None,
            hires: None,
            controls: Vec::new(),
            tiles: None,
            shortcuts: Shortcuts::NONE,
            initial_noise: None,
        }
    }

    /// Reads a request from the text of a JSON object.
    ///
    /// ```
    /// use sd_core::Request;
    ///
    /// let request = Request::from_json(
    ///     r#"{
    ///         "prompt": "a fox", "steps": 30, "size": [512, 768],
    ///         "scheduler": "euler-a", "ladder": "karras"
    ///     }"#,
    /// )?;
    /// assert_eq!((request.steps, request.size, request.seed), (Some(30), Some([512, 768]), None));
    ///
    /// let wrong = Request::from_json(
    ///     r#"{"prompt": "a fox", "steps": "many", "ladder": {"karras": {"rho": "x"}}}"#,
    /// );
    /// let problems = wrong.unwrap_err();
    /// let fields: Vec<_> = problems.iter().map(|problem| &*problem.field).collect();
    /// assert_eq!(fields, ["ladder.karras.rho", "steps"]);
    /// # Ok::<(), sd_core::Problems>(())
    /// ```
    ///
    /// # Errors
    /// [`Problems`] if the text is not a JSON object, and otherwise with the first wrong value of
    /// every field, with its path, and all unknown fields. Values that are out of range are
    /// reported when the request is drawn.
    pub fn from_json(text: &str) -> Result<Self, Problems> {
        serde_json::from_str(text).map_err(|error| json::problems(text, &error))
    }

    /// Returns the number of steps: [`steps`](Self::steps) if it is set, else the number of steps
    /// of a ladder with given noise levels, else 20.
    ///
    /// A pipeline may have another [default](Defaults::steps) than 20.
    /// [`Pipeline::with_defaults`](crate::Pipeline::with_defaults) fills that default into a
    /// request.
    ///
    /// ```
    /// use sd_core::{Request, schedulers::Ladder};
    ///
    /// let request = Request::new("a fox");
    /// assert_eq!(request.step_count(), 20);
    /// assert_eq!(request.ladder(Ladder::sigmas([14.0, 1.0, 0.0])).step_count(), 2);
    /// ```
    pub fn step_count(&self) -> usize {
        let given = || self.ladder.as_ref().and_then(Ladder::given_steps);
        self.steps
            .or_else(given)
            .unwrap_or_else(|| Defaults::default().steps)
    }

    /// Sets [`prompt`](Self::prompt).
    pub fn prompt(mut self, prompt: impl Into<Prompt>) -> Self {
        self.prompt = prompt.into();
        self
    }

    /// Sets [`negative`](Self::negative).
    pub fn negative(mut self, prompt: impl Into<Prompt>) -> Self {
        self.negative = prompt.into();
        self
    }

    /// Sets [`prompt_2`](Self::prompt_2).
    ///
    /// ```
    /// use sd_core::Request;
    ///
    /// let request = Request::new("a fox in the snow").prompt_2("watercolour, soft light");
    /// ```
    pub fn prompt_2(mut self, text: impl Into<String>) -> Self {
        self.prompt_2 = Some(text.into());
        self
    }

    /// Sets [`negative_2`](Self::negative_2).
    pub fn negative_2(mut self, text: impl Into<String>) -> Self {
        self.negative_2 = Some(text.into());
        self
    }

    /// Sets [`prompt_options`](Self::prompt_options).
    ///
    /// ```
    /// use sd_core::{PromptOptions, Request, text::Syntax};
    ///
    /// let options = PromptOptions::default().syntax(Syntax::Plain);
    /// let request = Request::new("a (very) old fox").prompt_options(options);
    /// ```
    pub fn prompt_options(mut self, options: PromptOptions) -> Self {
        self.prompt_options = options;
        self
    }

    /// Sets [`size`](Self::size), in pixels: width, then height.
    ///
    /// ```
    /// use sd_core::Request;
    ///
    /// let portrait = Request::new("a fox").size(512, 768);
    /// assert_eq!(portrait.size, Some([512, 768]));
    /// ```
    pub fn size(mut self, width: u32, height: u32) -> Self {
        self.size = Some([width, height]);
        self
    }

    /// Sets [`steps`](Self::steps).
    pub fn steps(mut self, steps: usize) -> Self {
        self.steps = Some(steps);
        self
    }

    /// Sets [`guidance`](Self::guidance): a scale, [`ClassifierFree`](crate::ClassifierFree)
    /// guidance with more options, or a custom [`Guide`](crate::Guide).
    ///
    /// ```
    /// use sd_core::{ClassifierFree, Request};
    ///
    /// let plain = Request::new("a fox").guidance(7.5);
    /// assert_eq!(plain.guidance.and_then(|guidance| guidance.scale()), Some(7.5));
    ///
    /// let rescaled = ClassifierFree { rescale: 0.7, ..ClassifierFree::from(7.5) };
    /// let request = Request::new("a fox").guidance(rescaled);
    /// ```
    pub fn guidance(mut self, guidance: impl Into<Guidance>) -> Self {
        self.guidance = Some(guidance.into());
        self
    }

    /// Sets [`seed`](Self::seed).
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Sets [`noise`](Self::noise).
    ///
    /// ```
    /// use sd_core::{Request, schedulers::noise::NoiseKind};
    ///
    /// // The noise of WebUI's setting "CPU" is the default. This is the noise of its setting "NV".
    /// let request = Request::new("a fox").seed(42).noise(NoiseKind::Philox);
    /// ```
    pub fn noise(mut self, kind: NoiseKind) -> Self {
        self.noise = kind;
        self
    }

    /// Sets [`variation`](Self::variation).
    ///
    /// ```
    /// use sd_core::{Request, schedulers::noise::Variation};
    ///
    /// // Three pictures that resemble the picture of seed 42.
    /// let variation = Variation { seed: 1, strength: 0.2, ..Variation::default() };
    /// let request = Request::new("a fox").seed(42).variation(variation).count(3);
    /// ```
    pub fn variation(mut self, variation: Variation) -> Self {
        self.variation = Some(variation);
        self
    }

    /// Sets [`seed_resize`](Self::seed_resize), in pixels: width, then height.
    ///
    /// ```
    /// use sd_core::Request;
    ///
    /// // Resembles the picture that seed 42 draws at 512×512.
    /// let request = Request::new("a fox").seed(42).size(768, 512).seed_resize(512, 512);
    /// ```
    pub fn seed_resize(mut self, width: u32, height: u32) -> Self {
        self.seed_resize = Some([width, height]);
        self
    }

    /// Sets [`ensd`](Self::ensd).
    pub fn ensd(mut self, offset: u64) -> Self {
        self.ensd = offset;
        self
    }

    /// Sets [`count`](Self::count).
    pub fn count(mut self, count: usize) -> Self {
        self.count = count;
        self
    }

    /// Sets [`clip_skip`](Self::clip_skip), in WebUI's numbering.
    ///
    /// ```
    /// use sd_core::Request;
    ///
    /// // WebUI's "Clip skip: 2", which is `clip_skip=1` in diffusers.
    /// let request = Request::new("a fox").clip_skip(2);
    /// ```
    pub fn clip_skip(mut self, layer: usize) -> Self {
        self.clip_skip = Some(layer);
        self
    }

    /// Sets [`sizes`](Self::sizes).
    ///
    /// ```
    /// use sd_core::{Request, Sizes};
    ///
    /// // SDXL draws as if the training picture had been cut off at the top and on the left.
    /// let request = Request::new("a fox").sizes(Sizes::default().crop(64, 64));
    /// ```
    pub fn sizes(mut self, sizes: Sizes) -> Self {
        self.sizes = sizes;
        self
    }

    /// Sets [`negative_sizes`](Self::negative_sizes).
    pub fn negative_sizes(mut self, sizes: Sizes) -> Self {
        self.negative_sizes = Some(sizes);
        self
    }

    /// Sets [`aesthetic_score`](Self::aesthetic_score) and
    /// [`negative_aesthetic_score`](Self::negative_aesthetic_score).
    pub fn aesthetic_scores(mut self, score: f32, negative: f32) -> Self {
        (self.aesthetic_score, self.negative_aesthetic_score) = (score, negative);
        self
    }

    /// Sets [`refiner`](Self::refiner): the share of the run that the model itself makes,
    /// `0.0..=1.0`, or a [`RefinerSwitch`].
    ///
    /// ```
    /// use sd_core::{RefinerShare, RefinerSwitch, Request};
    ///
    /// let by_timesteps = Request::new("a fox").refiner(0.8);
    /// assert_eq!(by_timesteps.refiner, Some(RefinerSwitch::default()));
    ///
    /// let by_steps = RefinerSwitch { at: 0.5, by: RefinerShare::Steps };
    /// let request = Request::new("a fox").refiner(by_steps);
    /// ```
    pub fn refiner(mut self, switch: impl Into<RefinerSwitch>) -> Self {
        self.refiner = Some(switch.into());
        self
    }

    /// Sets [`beside`](Self::beside).
    pub fn beside(mut self, picture: Array<f32, Ix4>) -> Self {
        self.beside = Some(picture.into_shared());
        self
    }

    /// Sets [`image_guidance`](Self::image_guidance).
    pub fn image_guidance(mut self, scale: f32) -> Self {
        self.image_guidance = scale;
        self
    }

    /// Sets [`scheduler`](Self::scheduler): a sampler with its options, or a named sampler, whose
    /// options come from the model's scheduler configuration. Parse a name to a
    /// [`Scheduler`](sd_schedulers::Scheduler) first. For names of WebUI, such as
    /// `DPM++ 2M Karras`, use [`from_webui`](sd_schedulers::from_webui).
    ///
    /// ```
    /// use sd_core::{Request, schedulers::{Scheduler, samplers::Euler}};
    ///
    /// let with_options = Request::new("a fox").scheduler(Euler::default());
    /// let named = Request::new("a fox").scheduler("euler-a".parse::<Scheduler>()?);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn scheduler(mut self, scheduler: impl Into<Scheduler>) -> Self {
        self.scheduler = Some(scheduler.into());
        self
    }

    /// Sets [`ladder`](Self::ladder).
    ///
    /// ```
    /// use sd_core::{Request, schedulers::Ladder};
    ///
    /// let named = Request::new("a fox").ladder(Ladder::karras());
    /// let parsed = Request::new("a fox").ladder("sgm-uniform".parse()?);
    /// let given = Request::new("a fox").ladder(Ladder::sigmas([14.6, 5.0, 1.5, 0.4, 0.0]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn ladder(mut self, ladder: Ladder) -> Self {
        self.ladder = Some(ladder);
        self
    }

    /// Sets [`start`](Self::start), whose documentation has examples.
    pub fn start(mut self, start: Start) -> Self {
        self.start = Some(start);
        self
    }

    /// Adds a picture to [`controls`](Self::controls). [`Control`] has an example.
    pub fn control(mut self, control: Control) -> Self {
        self.controls.push(control);
        self
    }

    /// Sets [`hires`](Self::hires). [`Hires`] has an example.
    pub fn hires(mut self, hires: Hires) -> Self {
        self.hires = Some(hires);
        self
    }

    /// Sets [`tiles`](Self::tiles).
    ///
    /// ```
    /// use sd_core::{Request, Tiles};
    ///
    /// let panorama = Request::new("mountains under snow").size(2048, 512);
    /// let request = panorama.tiles(Tiles::new(512, 512));
    /// # assert!(request.tiles.is_some());
    /// ```
    pub fn tiles(mut self, tiles: Tiles) -> Self {
        self.tiles = Some(tiles);
        self
    }

    /// Sets [`shortcuts`](Self::shortcuts).
    ///
    /// ```
    /// use sd_core::{Request, Shortcuts};
    ///
    /// let request = Request::new("a fox").steps(50).shortcuts(Shortcuts::FAST);
    /// ```
    pub fn shortcuts(mut self, shortcuts: Shortcuts) -> Self {
        self.shortcuts = shortcuts;
        self
    }

    /// Sets [`initial_noise`](Self::initial_noise).
    ///
    /// ```
    /// use sd_core::{Request, ndarray::Array4, schedulers::{NoiseSource, noise::TorchRng}};
    ///
    /// let mut noise = Array4::zeros((1, 4, 64, 64));
    /// let values = noise.as_slice_mut().expect("a new array is contiguous");
    /// TorchRng::new(42).fill(values);
    /// let request = Request::new("a fox").size(512, 512).initial_noise(noise);
    /// ```
    pub fn initial_noise(mut self, noise: Array<f32, Ix4>) -> Self {
        self.initial_noise = Some(noise.into_shared());
        self
    }

    /// Returns whether the negative prompt is used: if guidance needs it in any step, if the
    /// sampler is one of CFG++, or if the prompt is composed of several branches (`AND`) or has a
    /// weighted branch. A custom [`Guide`](crate::Guide) counts as needing it.
    ///
    /// Where the request leaves a choice open, [`Defaults::default`] applies. The result is an
    /// estimate if guidance is limited to an [interval](crate::ClassifierFree::interval) and the
    /// ladder has another number of rungs than [`steps`](Self::steps).
    pub fn uses_negative(&self) -> bool {
        let defaults = Defaults::default();
        let scheduler = self.scheduler.as_ref().unwrap_or(&defaults.scheduler);
        let guidance = self.guidance.as_ref().unwrap_or(&defaults.guidance);
        let sampler = scheduler.sampler(&SchedulerConfig::default());
        guidance.uses_negative(self.step_count(), &*sampler, || {
            Read::new(&self.prompt, None, Side::Positive, &self.prompt_options).composes()
        })
    }
}

/// When a refiner takes over from the model. The switch happens between two steps; the sampler
/// keeps its state.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RefinerSwitch {
    /// The share of the run that the model itself makes, `0.0..=1.0`. At 1 the refiner is not used.
    ///
    /// Default: 0.8.
    pub at: f32,
    /// The unit of [`at`](Self::at).
    ///
    /// Default: [`RefinerShare::Timesteps`].
    pub by: RefinerShare,
}

/// The unit in which the share of a [`RefinerSwitch`] is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefinerShare {
    /// Training timesteps, as in diffusers' `denoising_end` and in WebUI. With 1000 training
    /// timesteps and a share of 0.8, the refiner makes every step below timestep 200.
    #[default]
    Timesteps,
    /// Steps of the run. WebUI calls this "Switch to refiner by sampling steps".
    Steps,
}

impl Default for RefinerSwitch {
    fn default() -> Self {
        0.8.into()
    }
}

impl From<f32> for RefinerSwitch {
    fn from(at: f32) -> Self {
        Self {
            at,
            by: RefinerShare::default(),
        }
    }
}

/// How the prompts of a request are read and encoded.
///
/// ```
/// use sd_core::{PromptOptions, Request, text::{Emphasis, Syntax}};
///
/// let options = PromptOptions::default().syntax(Syntax::ComfyUi).emphasis(Emphasis::Interpolate);
/// let request = Request::new("a (blue:1.3) fox").prompt_options(options);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct PromptOptions {
    /// The prompt language, for the prompt and the negative prompt alike.
    ///
    /// Default: [`Syntax::WebUi`], WebUI's language.
    pub syntax: Syntax,
    /// How the weights of a prompt act on its embeddings. [`syntax`](Self::syntax) does not change
    /// this: to weight as ComfyUI does, set both.
    ///
    /// Default: [`Emphasis::KeepMean`], as in WebUI. Each token's state is multiplied by its
    /// weight, and each window of tokens keeps its mean.
    pub emphasis: Emphasis,
    /// How a text of more than 75 tokens is divided into windows.
    ///
    /// Default: at commas where possible, as in WebUI. Text is cut off only if
    /// [`Chunking::max_chunks`] is set.
    pub chunking: Chunking,
    /// How a text is cleaned up before it is tokenized. WebUI's clean-up is [`Cleanup::Ftfy`].
    ///
    /// Default: [`Cleanup::Transformers`].
    pub cleanup: Cleanup,
    /// Whether the shorter of prompt and negative prompt is padded with empty windows to the length
    /// of the longer one. WebUI calls this "Pad prompt/negative prompt to be same length".
    ///
    /// Default: false.
    pub same_length: bool,
    /// Whether an empty negative prompt is encoded like any other text, even by a model that
    /// replaces its embedding with zeros, as SDXL does (`force_zeros_for_empty_prompt`).
    ///
    /// Default: false.
    pub encode_empty: bool,
}

impl PromptOptions {
    /// Sets [`syntax`](Self::syntax).
    ///
    /// ```
    /// use sd_core::{PromptOptions, text::{Emphasis, Syntax}};
    ///
    /// // Reads prompts as ComfyUI does.
    /// let options = PromptOptions::default()
    ///     .syntax(Syntax::ComfyUi)
    ///     .emphasis(Emphasis::Interpolate);
    /// ```
    pub fn syntax(mut self, syntax: Syntax) -> Self {
        self.syntax = syntax;
        self
    }

    /// Sets [`emphasis`](Self::emphasis).
    pub fn emphasis(mut self, emphasis: Emphasis) -> Self {
        self.emphasis = emphasis;
        self
    }

    /// Sets [`chunking`](Self::chunking).
    ///
    /// ```
    /// use sd_core::{PromptOptions, text::Chunking};
    ///
    /// // Cuts prompts off after the first window, as diffusers does.
    /// let one = std::num::NonZeroUsize::MIN;
    /// let options = PromptOptions::default().chunking(Chunking::default().max_chunks(one));
    /// ```
    pub fn chunking(mut self, chunking: Chunking) -> Self {
        self.chunking = chunking;
        self
    }

    /// Sets [`cleanup`](Self::cleanup).
    pub fn cleanup(mut self, cleanup: Cleanup) -> Self {
        self.cleanup = cleanup;
        self
    }

    /// Sets [`same_length`](Self::same_length).
    pub fn same_length(mut self, same: bool) -> Self {
        self.same_length = same;
        self
    }

    /// Sets [`encode_empty`](Self::encode_empty).
    pub fn encode_empty(mut self, encode: bool) -> Self {
        self.encode_empty = encode;
        self
    }
}

/// A prompt: a text, or its embedding.
///
/// With serde, a text is a string. An embedding is an object whose arrays are in ndarray's form.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "expected a prompt: a string, or an object with `embedding`, an array of shape [1, tokens, width] in ndarray's form"
)]
pub enum Prompt {
    /// A text, which the pipeline encodes.
    Text(String),
    /// An embedding, which is used as it is. Clip skip does not apply. Cheap to clone.
    Embedding {
        /// The states of the tokens, `[1, tokens, width]`.
        embedding: ArcArray<f32, Ix3>,
        /// The pooled output, `[1, width]`, for models that take it.
        #[serde(default)]
        pooled: Option<ArcArray<f32, Ix2>>,
    },
}

impl Prompt {
    /// Returns the text, or `None` for an embedding.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Embedding { .. } => None,
        }
    }
}

impl Default for Prompt {
    fn default() -> Self {
        Self::Text(String::new())
    }
}

impl From<String> for Prompt {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&String> for Prompt {
    fn from(text: &String) -> Self {
        Self::Text(text.clone())
    }
}

impl From<&str> for Prompt {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<PromptEmbedding> for Prompt {
    fn from(prompt: PromptEmbedding) -> Self {
        Self::Embedding {
            embedding: prompt.embedding,
            pooled: prompt.pooled,
        }
    }
}

impl From<Array<f32, Ix3>> for Prompt {
    fn from(embedding: Array<f32, Ix3>) -> Self {
        Self::Embedding {
            embedding: embedding.into_shared(),
            pooled: None,
        }
    }
}
