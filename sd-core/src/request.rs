//! What to draw, and how.

use ndarray::{ArcArray, Array, Ix3, Ix4};
use sd_schedulers::{DpmPlusPlus2M, Ladder, Scheduler};
use sd_text::PromptEmbedding;
use serde::{Deserialize, Serialize};

use crate::Guidance;

/// The longest prompt that is read, in bytes: 64 KiB, some two hundred times what CLIP takes.
pub const MAX_PROMPT_BYTES: usize = 1 << 16;

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
///     .scheduler(Euler)
///     .ladder(Ladder::leading());
/// ```
/// With serde a request is an object of its fields, all but the prompt optional:
/// ```
/// # use sd_core::Request;
/// let request: Request = serde_json::from_str(
///     r#"{"prompt": "a fox", "steps": 30, "scheduler": "euler-a", "ladder": "karras", "size": [512, 768]}"#,
/// )?;
/// assert_eq!((request.steps, request.size, request.seed), (30, Some([512, 768]), None));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Request {
    /// What to draw, at most [`MAX_PROMPT_BYTES`].
    pub prompt: Prompt,
    /// What the picture is pushed away from, by guidance. Default: the empty prompt.
    #[serde(default)]
    pub negative: Prompt,
    /// Width and height in pixels, multiples of 8 and of the model's factor. Default: the size the model was made for.
    #[serde(default)]
    pub size: Option<[u32; 2]>,
    /// Steps from noise to picture, 1 to the model's `num_train_timesteps`. Default 20. Few leave the picture rough; past
    /// 30 or so most samplers only spend time.
    #[serde(default = "default_steps")]
    pub steps: usize,
    /// The classifier-free guidance ("CFG") scale. Default 7.5. At 1 and below the negative prompt is not looked at and
    /// each step costs half.
    #[serde(default = "default_guidance")]
    pub guidance: Guidance,
    /// What decides the noise, together with the size. Default: a random one below 2³², told in the result. torch's CPU
    /// generator, and so this, takes its low 32 bits.
    #[serde(default)]
    pub seed: Option<u64>,
    /// How many pictures, 1, the default, to [`MAX_COUNT`]. Picture `i` has the seed + `i`, wrapping at 2⁶⁴, and is what it
    /// would be alone.
    #[serde(default = "default_count")]
    pub count: usize,
    /// Which layer of CLIP is read, from the last: 1 is the last, 2 the one before. Default: the pipeline's.
    #[serde(default)]
    pub clip_skip: Option<usize>,
    /// The sampler. Default DPM++ 2M.
    #[serde(default = "default_scheduler")]
    pub scheduler: Scheduler,
    /// The noise levels it steps through. Default: those the sampler is mostly run on, Karras over the model's full range
    /// for DPM++ 2M.
    #[serde(default)]
    pub ladder: Option<Ladder>,
    /// Unit normal noise to begin as, `[count, channels, height / factor, width / factor]`, instead of the seed's. What a
    /// sampler draws on the way is still the seed's, as if it had drawn the first noise too: a picture's own noise and seed
    /// draw it again. (diffusers does not skip the first, so that an ancestral sampler adds the noise it began as.)
    #[serde(default)]
    pub initial_noise: Option<ArcArray<f32, Ix4>>,
}

fn default_steps() -> usize {
    20
}

fn default_guidance() -> Guidance {
    Guidance::Scale(7.5)
}

fn default_count() -> usize {
    1
}

fn default_scheduler() -> Scheduler {
    DpmPlusPlus2M.into()
}

impl Request {
    /// A picture of `prompt` (text, or an embedding), everything else at its default.
    pub fn new(prompt: impl Into<Prompt>) -> Self {
        Self {
            prompt: prompt.into(),
            negative: Prompt::default(),
            size: None,
            steps: default_steps(),
            guidance: default_guidance(),
            seed: None,
            count: default_count(),
            clip_skip: None,
            scheduler: default_scheduler(),
            ladder: None,
            initial_noise: None,
        }
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

    /// Sets [`size`](Self::size), in pixels.
    pub fn size(mut self, width: u32, height: u32) -> Self {
        self.size = Some([width, height]);
        self
    }

    /// Sets [`steps`](Self::steps).
    pub fn steps(mut self, steps: usize) -> Self {
        self.steps = steps;
        self
    }

    /// Sets [`guidance`](Self::guidance): a scale, or a [`Guide`](crate::Guide) of one's own.
    pub fn guidance(mut self, guidance: impl Into<Guidance>) -> Self {
        self.guidance = guidance.into();
        self
    }

    /// Sets [`seed`](Self::seed).
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
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

    /// Sets [`scheduler`](Self::scheduler): a sampler with its options, or a named one
    /// (`"euler-a".parse::<Scheduler>()`), which takes its options from the model.
    pub fn scheduler(mut self, scheduler: impl Into<Scheduler>) -> Self {
        self.scheduler = scheduler.into();
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
}

/// A prompt: text, or what a text model made of one. With serde it is a string, or ndarray's form of an array.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "expected a prompt: a string, or an array of shape [1, tokens, width] in ndarray's form"
)]
pub enum Prompt {
    /// Encoded by the pipeline.
    Text(String),
    /// `[1, tokens, width]`, used as it is; the clip skip does not apply. Cheap to clone.
    Embedding(ArcArray<f32, Ix3>),
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
        Self::Embedding(prompt.embedding.into_shared())
    }
}

impl From<Array<f32, Ix3>> for Prompt {
    fn from(embedding: Array<f32, Ix3>) -> Self {
        Self::Embedding(embedding.into_shared())
    }
}
