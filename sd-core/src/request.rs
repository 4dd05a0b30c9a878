//! What to draw, and how.

use ndarray::{ArcArray, Array, Ix2, Ix3, Ix4};
use sd_schedulers::{Ladder, NoiseKind, Scheduler, SchedulerConfig, Variation};
use sd_text::{Chunking, Cleanup, Emphasis, PromptEmbedding, Side, Syntax};
use serde::{Deserialize, Serialize};

use crate::{Defaults, Guidance, Problems, Sizes, json, prompts::Read};

/// The longest prompt that is read, in bytes: 64 KiB.
pub const MAX_PROMPT_BYTES: usize = 1 << 16;

/// The most windows of 75 tokens that a prompt may come to: those of its longest text, or of the other prompt's where both are to be of the
/// [same length](PromptOptions::same_length), times the number of texts that its branches show over a run. 4096 take 1 GB in Stable
/// Diffusion 1.x.
pub const MAX_WINDOWS: usize = 4096;

/// The most parts that `AND` may part a prompt into, each of which costs a call of the denoiser in every step.
pub const MAX_BRANCHES: usize = 64;

/// The most pictures of one request.
pub const MAX_COUNT: usize = 1 << 16;

/// What to draw, and how. Checked when it is drawn, all of it together.
///
/// ```
/// use sd_core::{Request, schedulers::{Euler, Ladder}};
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
/// With serde a request is an object of its fields, all but the prompt optional.
/// [`from_json`](Self::from_json) reads it from text and names everything that is wrong.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Request {
    /// What to draw, in WebUI's [prompt language](sd_text::prompt): at most [`MAX_PROMPT_BYTES`], [`MAX_WINDOWS`] windows of 75 tokens and
    /// [`MAX_BRANCHES`] parts between ANDs.
    pub prompt: Prompt,
    /// What the picture is pushed away from, by guidance. Default: the empty prompt.
    #[serde(default)]
    pub negative: Prompt,
    /// The text that the second tower of SDXL reads in the place of [`prompt`](Self::prompt), with
    /// equally many parts between ANDs. Default: `None`, both towers read the same.
    #[serde(default)]
    pub prompt_2: Option<String>,
    /// The same for [`negative`](Self::negative).
    #[serde(default)]
    pub negative_2: Option<String>,
    /// How the prompts are read.
    #[serde(default)]
    pub prompt_options: PromptOptions,
    /// Width and height in pixels, multiples of 8 and of the model's factor. Default: the size the model was made for.
    #[serde(default)]
    pub size: Option<[u32; 2]>,
    /// Steps from noise to picture, 1 to the model's `num_train_timesteps`. Few steps leave the
    /// picture rough; beyond about 30 most samplers only spend time.
    ///
    /// Default: the rungs of a ladder that lists them ([`Ladder::sigmas`], [`Ladder::timesteps`]),
    /// and on any other ladder the pipeline's [default](Defaults::steps), 20 for most models.
    /// [`step_count`](Self::step_count) returns the number.
    #[serde(default)]
    pub steps: Option<usize>,
    /// The classifier-free guidance ("CFG") scale, or more than that:
    /// [`ClassifierFree`](crate::ClassifierFree), or a [`Guide`](crate::Guide) of one's own. At 1
    /// and below the negative prompt is not looked at and each step costs half. The samplers of
    /// CFG++ want a scale of 0 to 1.
    ///
    /// Default: the pipeline's [default](Defaults::guidance), 7.5 for Stable Diffusion 1.x.
    #[serde(default)]
    pub guidance: Option<Guidance>,
    /// What decides the noise, together with the size. Default: a random one below 2³² (numpy: 2³¹), told in the result. Of
    /// [`noise`](Self::noise) that is torch's CPU generator, the default, the low 32 bits count.
    #[serde(default)]
    pub seed: Option<u64>,
    /// Whose noise a seed stands for. Default [`NoiseKind::Torch`], torch's CPU generator.
    #[serde(default)]
    pub noise: NoiseKind,
    /// Another seed whose noise is mixed into that of the seed, for pictures that are like the seed's. Default none.
    #[serde(default)]
    pub variation: Option<Variation>,
    /// Width and height in pixels of another picture, whose composition the seed's picture is to keep at this one's size: the middle of
    /// its noise is that of the seed at that size. WebUI's "resize seed from". Default none.
    #[serde(default)]
    pub seed_resize: Option<[u32; 2]>,
    /// What is added to the seed, wrapping at 2⁶⁴, for the noise that a sampler draws on the way: WebUI's ENSD ("eta noise seed delta"),
    /// 31337 for NovelAI. Default 0: the seed's generator goes on. Samplers with a [Brownian tree](sd_schedulers::BrownianTree) don't ask.
    #[serde(default)]
    pub ensd: u64,
    /// How many pictures, 1, the default, to [`MAX_COUNT`]. Picture `i` has the seed + `i`, wrapping at 2⁶⁴, or, with a variation
    /// of a strength that is not 0, the same seed and the variation's + `i`. Each is what it would be alone.
    #[serde(default = "default_count")]
    pub count: usize,
    /// Which layer of CLIP is read, from the last: 1 is the last, 2 the one before, 0 the model's
    /// own, which is 1 for Stable Diffusion 1.x and 2 for SDXL. Default: the pipeline's, which is 0
    /// where nothing else is set.
    #[serde(default)]
    pub clip_skip: Option<usize>,
    /// What an SDXL model is told of the picture's size. Default: that it is neither scaled nor
    /// cropped.
    #[serde(default)]
    pub sizes: Sizes,
    /// What it is told for the negative prompt. Counts only if both [`original`](Sizes::original)
    /// and [`target`](Sizes::target) are set, as in diffusers. Default: `None`, the same as for the
    /// prompt.
    #[serde(default)]
    pub negative_sizes: Option<Sizes>,
    /// The aesthetic score that SDXL's refiner aims at, about 1 to 10. Default: 6.
    #[serde(default = "default_score")]
    pub aesthetic_score: f32,
    /// The aesthetic score that it moves away from. Default: 2.5.
    #[serde(default = "default_negative_score")]
    pub negative_aesthetic_score: f32,
    /// When the pipeline's refiner takes over. Default: `None`, at 0.8 of the training timesteps if
    /// the pipeline has one.
    #[serde(default)]
    pub refiner: Option<RefinerSwitch>,
    /// The picture that stands beside the latents of models such as inpainting ones,
    /// `[1 or count, channels, h, w]` in the sides of the latents: mask, then masked latents for
    /// inpainting; latents, not scaled, for instruct-pix2pix. Models that take one need it.
    /// Default: `None`.
    #[serde(default)]
    pub beside: Option<ArcArray<f32, Ix4>>,
    /// How closely an instruct-pix2pix model keeps to the picture [beside](Self::beside) the
    /// latents, about 1 to 2. Default: 1.5. It acts where guidance does, and costs a third call in
    /// each step.
    #[serde(default = "default_image_guidance")]
    pub image_guidance: f32,
    /// The sampler. Default: the pipeline's [default](Defaults::scheduler), DPM++ 2M for Stable
    /// Diffusion 1.x.
    #[serde(default)]
    pub scheduler: Option<Scheduler>,
    /// The noise levels that the sampler steps through. A shift by the picture's size
    /// ([`Ladder::for_size`]) uses the size of this picture.
    ///
    /// Default: the ladder that the [scheduler](Self::scheduler) is usually run on, Karras over the
    /// model's full range for DPM++ 2M. Where the request names no scheduler either, it is the
    /// pipeline's [default](Defaults::ladder).
    #[serde(default)]
    pub ladder: Option<Ladder>,
    /// Unit normal noise to begin as, `[count, channels, height / factor, width / factor]`, instead of the seed's with all that is mixed in.
    /// What a sampler draws on the way is still the seed's, as if it had drawn the first noise too: a picture's own noise and seed
    /// draw it again. (diffusers does not skip the first, so that an ancestral sampler adds the noise it began as.)
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
    /// A picture of `prompt` (text, or an embedding), everything else at its default.
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
            initial_noise: None,
        }
    }

    /// Reads a request from the text of a JSON object.
    ///
    /// ```
    /// use sd_core::Request;
    ///
    /// let request = Request::from_json(
    ///     r#"{"prompt": "a fox", "steps": 30, "scheduler": "euler-a", "ladder": "karras", "size": [512, 768]}"#,
    /// )?;
    /// assert_eq!((request.steps, request.size, request.seed), (Some(30), Some([512, 768]), None));
    ///
    /// let wrong = Request::from_json(r#"{"prompt": "a fox", "steps": "many", "ladder": {"karras": {"rho": "x"}}}"#);
    /// let problems = wrong.unwrap_err();
    /// let what: Vec<_> = problems.iter().map(|problem| &*problem.what).collect();
    /// assert_eq!(what, ["ladder.karras.rho", "steps"]);
    /// # Ok::<(), sd_core::Problems>(())
    /// ```
    ///
    /// # Errors
    /// [`Problems`]: the first wrong value of every field, with its path, and all unknown fields.
    /// Values that are out of range are found when the request is drawn.
    pub fn from_json(text: &str) -> Result<Self, Problems> {
        serde_json::from_str(text).map_err(|error| json::problems(text, &error))
    }

    /// Returns the number of steps: [`steps`](Self::steps), the rungs of a ladder that lists them,
    /// or 20.
    ///
    /// A pipeline may have another [default](Defaults::steps) than 20:
    /// [`Pipeline::with_defaults`](crate::Pipeline::with_defaults) sets it in a request.
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
    pub fn prompt_options(mut self, options: PromptOptions) -> Self {
        self.prompt_options = options;
        self
    }

    /// Sets [`size`](Self::size), in pixels.
    pub fn size(mut self, width: u32, height: u32) -> Self {
        self.size = Some([width, height]);
        self
    }

    /// Sets [`steps`](Self::steps).
    pub fn steps(mut self, steps: usize) -> Self {
        self.steps = Some(steps);
        self
    }

    /// Sets [`guidance`](Self::guidance): a scale, [`ClassifierFree`](crate::ClassifierFree) guidance with more than that, or a
    /// [`Guide`](crate::Guide) of one's own.
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
    pub fn noise(mut self, kind: NoiseKind) -> Self {
        self.noise = kind;
        self
    }

    /// Sets [`variation`](Self::variation).
    pub fn variation(mut self, variation: Variation) -> Self {
        self.variation = Some(variation);
        self
    }

    /// Sets [`seed_resize`](Self::seed_resize), in pixels.
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
    pub fn clip_skip(mut self, layer: usize) -> Self {
        self.clip_skip = Some(layer);
        self
    }

    /// Sets [`sizes`](Self::sizes).
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

    /// Sets [`refiner`](Self::refiner): the share of the run, 0 to 1, that the model itself makes,
    /// or a [`RefinerSwitch`].
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

    /// Sets [`scheduler`](Self::scheduler): a sampler with its options, or a named one
    /// (`"euler-a".parse::<Scheduler>()`), which takes its options from the model.
    pub fn scheduler(mut self, scheduler: impl Into<Scheduler>) -> Self {
        self.scheduler = Some(scheduler.into());
        self
    }

    /// Sets [`ladder`](Self::ladder).
    pub fn ladder(mut self, ladder: Ladder) -> Self {
        self.ladder = Some(ladder);
        self
    }

    /// Sets [`initial_noise`](Self::initial_noise).
    pub fn initial_noise(mut self, noise: Array<f32, Ix4>) -> Self {
        self.initial_noise = Some(noise.into_shared());
        self
    }

    /// Returns whether the negative prompt is looked at: with a guidance that ever asks for it,
    /// with the samplers of CFG++, and where the prompt has several parts (`AND`).
    ///
    /// What the request leaves open counts as in [`Defaults::default`]. The result is an estimate
    /// where guidance is on in an interval and the ladder has another number of rungs than
    /// [`steps`](Self::steps).
    pub fn uses_negative(&self) -> bool {
        let defaults = Defaults::default();
        let scheduler = self.scheduler.as_ref().unwrap_or(&defaults.scheduler);
        let guidance = self.guidance.as_ref().unwrap_or(&defaults.guidance);
        let sampler = scheduler.sampler(&SchedulerConfig::default());
        sampler.needs().unconditional
            || guidance.uses_negative(self.step_count())
            || Read::new(&self.prompt, None, Side::Positive, &self.prompt_options).composes()
    }
}

/// When a refiner takes over from the model: between two steps, with the sampler going on as if
/// nothing had happened.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RefinerSwitch {
    /// The share of the run that the model itself makes, 0 to 1. At 1 the refiner does nothing.
    /// Default: 0.8.
    pub at: f32,
    /// What it is a share of. Default: the training timesteps.
    pub by: RefinerShare,
}

/// What the share of a [`RefinerSwitch`] is measured in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefinerShare {
    /// Training timesteps: with 1000 of them, 0.8 is every step below timestep 200. As diffusers'
    /// `denoising_end` and WebUI.
    #[default]
    Timesteps,
    /// Steps of the run: WebUI's option "Switch to refiner by sampling steps".
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

/// How the texts of a request are read and encoded.
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
    /// Whose language they are in. Default: WebUI's.
    pub syntax: Syntax,
    /// How weights act. Default: multiplied, each window of tokens keeping its mean, as in WebUI.
    pub emphasis: Emphasis,
    /// How a text of more than 75 tokens is parted. Default: at commas. Nothing is cut off but where this says so.
    pub chunking: Chunking,
    /// What is done to a text first. Default: what transformers does; WebUI has [`Cleanup::Ftfy`].
    pub cleanup: Cleanup,
    /// Whether the shorter of prompt and negative prompt is made as long as the other by empty windows, WebUI's "Pad prompt/negative
    /// prompt to be same length". Default false: each keeps its own length.
    pub same_length: bool,
    /// Whether an empty negative prompt is encoded like any other also by a model that wants zeros
    /// in its place, as SDXL does (`force_zeros_for_empty_prompt`). Default: false.
    pub encode_empty: bool,
}

impl PromptOptions {
    /// Sets [`syntax`](Self::syntax).
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

/// A prompt: text, or what a text model made of one. With serde it is a string, or an object of
/// arrays in ndarray's form.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "expected a prompt: a string, or an object with `embedding`, an array of shape [1, tokens, width] in ndarray's form"
)]
pub enum Prompt {
    /// Encoded by the pipeline.
    Text(String),
    /// Used as it is; the clip skip does not apply. Cheap to clone.
    Embedding {
        /// The states of the tokens, `[1, tokens, width]`.
        embedding: ArcArray<f32, Ix3>,
        /// The pooled output `[1, width]`, for models that take one.
        #[serde(default)]
        pooled: Option<ArcArray<f32, Ix2>>,
    },
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
