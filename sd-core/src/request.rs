//! What to draw, and how.

use std::sync::Arc;

use sd_schedulers::{DpmPlusPlus2M, Ladder, Sampler};

/// What to draw, and how. Checked when it is generated.
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
#[derive(Debug, Clone)]
pub struct Request {
    pub(crate) prompt: String,
    pub(crate) negative: String,
    pub(crate) size: Option<[u32; 2]>,
    pub(crate) steps: usize,
    pub(crate) guidance: f32,
    pub(crate) seed: Option<u64>,
    pub(crate) count: usize,
    pub(crate) clip_skip: Option<usize>,
    pub(crate) scheduler: Arc<dyn Sampler>,
    pub(crate) ladder: Ladder,
}

impl Request {
    /// A picture of `prompt`, everything else at its default.
    pub fn new(prompt: impl Into<String>) -> Self {
        Self {
            prompt: prompt.into(),
            negative: String::new(),
            size: None,
            steps: 20,
            guidance: 7.5,
            seed: None,
            count: 1,
            clip_skip: None,
            scheduler: Arc::new(DpmPlusPlus2M),
            ladder: Ladder::karras(),
        }
    }

    /// What the picture is pushed away from, by guidance. Default: the empty prompt.
    pub fn negative(mut self, prompt: impl Into<String>) -> Self {
        self.negative = prompt.into();
        self
    }

    /// Width and height in pixels, multiples of 8 and of the model's factor. Default: the size the model was made for.
    pub fn size(mut self, width: u32, height: u32) -> Self {
        self.size = Some([width, height]);
        self
    }

    /// Steps from noise to picture, 1 to the model's `num_train_timesteps`. Default 20. Few leave the picture rough; past
    /// 30 or so most samplers only spend time.
    pub fn steps(mut self, steps: usize) -> Self {
        self.steps = steps;
        self
    }

    /// The classifier-free guidance ("CFG") scale. Default 7.5. At 1 and below the negative prompt is not looked at and
    /// each step costs half.
    pub fn guidance(mut self, scale: f32) -> Self {
        self.guidance = scale;
        self
    }

    /// What decides the noise, together with the size. Default: a random one below 2³², told in the result. torch's CPU
    /// generator, and so this, takes its low 32 bits.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// How many pictures. Default 1. Picture `i` has the seed + `i`, wrapping at 2⁶⁴, and is what it would be alone.
    pub fn count(mut self, count: usize) -> Self {
        self.count = count;
        self
    }

    /// Which layer of CLIP is read, from the last: 1 is the last, 2 the one before. Default: the pipeline's.
    pub fn clip_skip(mut self, layer: usize) -> Self {
        self.clip_skip = Some(layer);
        self
    }

    /// The sampler. Default DPM++ 2M.
    pub fn scheduler(self, sampler: impl Sampler + 'static) -> Self {
        self.shared_scheduler(Arc::new(sampler))
    }

    /// The sampler, where it is a value chosen at run time.
    pub fn shared_scheduler(mut self, sampler: Arc<dyn Sampler>) -> Self {
        self.scheduler = sampler;
        self
    }

    /// The noise levels it steps through. Default Karras over the model's full range.
    pub fn ladder(mut self, ladder: Ladder) -> Self {
        self.ladder = ladder;
        self
    }
}
