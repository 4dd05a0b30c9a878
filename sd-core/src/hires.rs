//! The second pass in a larger size, WebUI's "Hires. fix".

use sd_schedulers::{Ladder, Scheduler, ladders::StrengthRule};
use serde::{Deserialize, Serialize};

use crate::{
    Guidance, Problem, Prompt, Request, Start,
    pixels::{Filter, LatentFilter},
};

/// The largest factor by which a second pass enlarges a picture.
const MAX_SCALE: f32 = 16.0;

/// A second pass in a larger size: WebUI's "Hires. fix".
///
/// Models repeat themselves in pictures that are much larger than the pictures they were trained
/// with. The first pass therefore draws the picture in the size of the request. The result is
/// enlarged, and the second pass redraws it by image to image, with the noise that the seed gives
/// for the new size.
///
/// Fields that are `None` are taken from the request. Schedules in prompts keep counting: after a
/// first pass of 20 steps, step 21 is the first step of the second pass. `[fox:owl:25]` changes
/// after five of its steps, and `[fox:owl:1.25]` after a quarter of them. A refiner takes over in
/// the second pass only.
///
/// ```
/// use sd_core::{Hires, Request};
///
/// // Draws 512×512 pixels, and redraws them in 1024×1024.
/// let request = Request::new("a fox").size(512, 512).hires(Hires::scale(2.0).strength(0.5));
/// ```
///
/// With serde it is an object with a key for each field. Only `size` is required.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Hires {
    /// The size of the finished picture.
    pub size: HiresSize,
    /// How the result of the first pass is enlarged.
    ///
    /// Default: [`Upscaler::Latent`] with [`LatentFilter::Bilinear`], WebUI's "Latent".
    #[serde(default)]
    pub upscaler: Upscaler,
    /// How much is redrawn, `0.0 < strength <= 1.0`. The latent upscalers need about 0.5 or more,
    /// because enlarged latents are blurred. Above about 0.7 the composition changes.
    ///
    /// Default: 0.7, as in WebUI.
    #[serde(default = "default_strength")]
    pub strength: f32,
    /// How the strength determines the first step.
    ///
    /// Default: [`StrengthRule::WebUiExact`], as in WebUI: all [`steps`](Self::steps) are made. The
    /// samplers "DDIM", "DDIM CFG++", "PLMS" and "UniPC" of
    /// [`from_webui`](sd_schedulers::from_webui) make one step less, as in WebUI. UniPC has other
    /// noise levels than in WebUI.
    #[serde(default = "default_rule")]
    pub rule: StrengthRule,
    /// The number of steps. With another [`rule`](Self::rule) than the default, the strength
    /// decides how many of them are made.
    ///
    /// Default: `None`, as many as the [`ladder`](Self::ladder) lists, if it does, and otherwise as
    /// many as in the first pass.
    #[serde(default)]
    pub steps: Option<usize>,
    /// The sampler.
    ///
    /// Default: `None`, the sampler of the first pass.
    #[serde(default)]
    pub scheduler: Option<Scheduler>,
    /// The ladder.
    ///
    /// Default: `None`, the ladder of the first pass. If [`scheduler`](Self::scheduler) is set, the
    /// usual ladder of that sampler.
    #[serde(default)]
    pub ladder: Option<Ladder>,
    /// The guidance.
    ///
    /// Default: `None`, the guidance of the first pass.
    #[serde(default)]
    pub guidance: Option<Guidance>,
    /// The prompt, for all text encoders of the model. Its LoRAs replace the LoRAs of the first
    /// pass. If LoRAs have to be merged into the weights, the networks of both passes are in memory
    /// together.
    ///
    /// Default: `None`, the prompt of the first pass.
    #[serde(default)]
    pub prompt: Option<Prompt>,
    /// The negative prompt, for all text encoders of the model.
    ///
    /// Default: `None`, the negative prompt of the first pass.
    #[serde(default)]
    pub negative: Option<Prompt>,
}

/// The size of the finished picture of a [second pass](Hires).
///
/// With serde it is `{"scale": 2.0}` or `{"pixels": [1024, 1024]}`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum HiresSize {
    /// The factor of both sides, `1.0..=16.0`. Sides are rounded down to multiples of 8 and of the
    /// model's factor. WebUI calls it "Upscale by".
    Scale(f32),
    /// Width and height in pixels, at least the size of the first pass, and multiples of 8 and of
    /// the model's factor. If the shape differs, the picture is enlarged to cover the size, and
    /// the excess is cut off on both sides. Before it is cut, the picture must have no more
    /// than the pipeline's [pixels](crate::PipelineBuilder::max_pixels). WebUI calls it "Resize
    /// width to" and "Resize height to".
    Pixels([u32; 2]),
}

/// How the result of the first pass is enlarged for a [second pass](Hires).
///
/// With serde it is `{"latent": …}` or `{"pixels": …}` with the name of the filter, or
/// `{"network": …}` with the name of the network.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Upscaler {
    /// The latents are scaled: WebUI's "Latent" and its relatives. No network runs.
    Latent(LatentFilter),
    /// The picture is decoded, scaled as Pillow does it, and encoded again, like WebUI's "Lanczos"
    /// and "Nearest". The mode of the encoder's distribution is used; WebUI draws a sample from it.
    Pixels(Filter),
    /// The picture is decoded, enlarged by the pipeline's network of this name, and encoded again,
    /// like WebUI's upscalers ESRGAN, SwinIR and others.
    /// [`PipelineBuilder::upscaler`](crate::PipelineBuilder::upscaler) adds networks, and
    /// [`Enlarger`](crate::upscale::Enlarger) describes how they run.
    ///
    /// The network does not run if the size of the second pass is the size of the first one, such
    /// as with a scale that rounds to it. No event comes while the network runs. A stop token ends
    /// its work too.
    Network(String),
}

impl Default for Upscaler {
    fn default() -> Self {
        Self::Latent(LatentFilter::Bilinear)
    }
}

/// WebUI's names of upscalers.
const NAMES: [(&str, Upscaler); 9] = [
    ("Latent", Upscaler::Latent(LatentFilter::Bilinear)),
    (
        "Latent (antialiased)",
        Upscaler::Latent(LatentFilter::BilinearAntialiased),
    ),
    ("Latent (bicubic)", Upscaler::Latent(LatentFilter::Bicubic)),
    (
        "Latent (bicubic antialiased)",
        Upscaler::Latent(LatentFilter::BicubicAntialiased),
    ),
    ("Latent (nearest)", Upscaler::Latent(LatentFilter::Nearest)),
    (
        "Latent (nearest-exact)",
        Upscaler::Latent(LatentFilter::NearestExact),
    ),
    ("Lanczos", Upscaler::Pixels(Filter::Lanczos)),
    ("Nearest", Upscaler::Pixels(Filter::Nearest)),
    // WebUI resizes with Lanczos where no upscaler is chosen.
    ("None", Upscaler::Pixels(Filter::Lanczos)),
];

impl Upscaler {
    /// Returns the upscaler that WebUI has under this name in every installation, such as
    /// `Latent (bicubic)`. `None` for any other name, which may be a [network](Self::Network).
    pub fn from_webui(name: &str) -> Option<Self> {
        let mut names = NAMES.iter();
        let (_, found) = names.find(|(known, _)| *known == name)?;
        Some(found.clone())
    }

    /// Returns WebUI's names of all upscalers that [`from_webui`](Self::from_webui) knows.
    pub fn webui_names() -> impl Iterator<Item = &'static str> {
        NAMES.iter().map(|(name, _)| *name)
    }

    /// Returns the upscaler's name in WebUI, which is a network's own name. `None` if WebUI does
    /// not have it.
    pub fn webui(&self) -> Option<&str> {
        if let Self::Network(name) = self {
            return Some(name);
        }
        let mut names = NAMES.iter();
        let (name, _) = names.find(|(_, known)| known == self)?;
        Some(name)
    }
}

fn default_strength() -> f32 {
    0.7
}

fn default_rule() -> StrengthRule {
    StrengthRule::WebUiExact
}

impl Hires {
    /// Creates a second pass that enlarges both sides by `factor`, `1.0..=16.0`.
    pub fn scale(factor: f32) -> Self {
        Self::new(HiresSize::Scale(factor))
    }

    /// Creates a second pass that enlarges to a size in pixels: width, then height. See
    /// [`HiresSize::Pixels`].
    pub fn pixels(width: u32, height: u32) -> Self {
        Self::new(HiresSize::Pixels([width, height]))
    }

    fn new(size: HiresSize) -> Self {
        Self {
            size,
            upscaler: Upscaler::default(),
            strength: default_strength(),
            rule: default_rule(),
            steps: None,
            scheduler: None,
            ladder: None,
            guidance: None,
            prompt: None,
            negative: None,
        }
    }

    /// Sets [`upscaler`](Self::upscaler).
    ///
    /// ```
    /// use sd_core::{Hires, Upscaler, pixels::{Filter, LatentFilter}};
    ///
    /// let sharper = Hires::scale(1.5).upscaler(Upscaler::Latent(LatentFilter::NearestExact));
    /// let of_pixels = Hires::scale(1.5).upscaler(Upscaler::Pixels(Filter::Lanczos));
    /// let of_network = Hires::scale(1.5).upscaler(Upscaler::Network("4x-sharp".to_owned()));
    /// ```
    pub fn upscaler(mut self, upscaler: Upscaler) -> Self {
        self.upscaler = upscaler;
        self
    }

    /// Sets [`strength`](Self::strength).
    pub fn strength(mut self, strength: f32) -> Self {
        self.strength = strength;
        self
    }

    /// Sets [`rule`](Self::rule).
    pub fn rule(mut self, rule: StrengthRule) -> Self {
        self.rule = rule;
        self
    }

    /// Sets [`steps`](Self::steps).
    pub fn steps(mut self, steps: usize) -> Self {
        self.steps = Some(steps);
        self
    }

    /// Sets [`scheduler`](Self::scheduler).
    pub fn scheduler(mut self, scheduler: impl Into<Scheduler>) -> Self {
        self.scheduler = Some(scheduler.into());
        self
    }

    /// Sets [`ladder`](Self::ladder).
    pub fn ladder(mut self, ladder: Ladder) -> Self {
        self.ladder = Some(ladder);
        self
    }

    /// Sets [`guidance`](Self::guidance).
    pub fn guidance(mut self, guidance: impl Into<Guidance>) -> Self {
        self.guidance = Some(guidance.into());
        self
    }

    /// Sets [`prompt`](Self::prompt).
    pub fn prompt(mut self, prompt: impl Into<Prompt>) -> Self {
        self.prompt = Some(prompt.into());
        self
    }

    /// Sets [`negative`](Self::negative).
    pub fn negative(mut self, prompt: impl Into<Prompt>) -> Self {
        self.negative = Some(prompt.into());
        self
    }

    /// Returns the sizes of the second pass, or the problem with them. `first` is the size of the
    /// first pass in pixels, and latents have `unit` pixels on each side.
    pub(crate) fn enlarged(&self, first: [u32; 2], unit: u32) -> Result<Enlarged, Problem> {
        let [width, height] = first;
        match self.size {
            HiresSize::Scale(scale) => {
                if !(1.0..=MAX_SCALE).contains(&scale) {
                    let expected = format!("1 to {MAX_SCALE}");
                    return Err(Problem::new("hires.size.scale", expected, scale));
                }
                // Python multiplies in double precision.
                let scale: f64 = scale.to_string().parse().unwrap_or(f64::from(scale));
                let side = |side: u32| (f64::from(side) * scale) as u32 / unit * unit;
                let size = [side(width), side(height)];
                Ok(Enlarged {
                    size,
                    covering: size,
                })
            }
            HiresSize::Pixels(size) => {
                let [to_width, to_height] = size;
                if to_width < width || to_height < height {
                    let expected = format!("at least {width}×{height}, the size of the first pass");
                    let found = format!("{to_width}×{to_height}");
                    return Err(Problem::new("hires.size.pixels", expected, found));
                }
                let scaled = |to: u32, side: u32, own: u32| {
                    let side = u64::from(to) * u64::from(side) / u64::from(own);
                    side.try_into().unwrap_or(u32::MAX)
                };
                // Whether the first pass is narrower, in proportion, than the new size.
                let narrower = u64::from(width) * u64::from(to_height)
                    < u64::from(to_width) * u64::from(height);
                let covering = if narrower {
                    [to_width, scaled(to_width, height, width)]
                } else {
                    [scaled(to_height, width, height), to_height]
                };
                Ok(Enlarged { size, covering })
            }
        }
    }

    /// Returns whether the second pass has its own value of a field of [`Request`], given the path
    /// of a value in that field.
    pub(crate) fn sets(&self, path: &str) -> bool {
        match path.split(['.', '[']).next() {
            Some("steps") => self.steps.is_some(),
            Some("scheduler") => self.scheduler.is_some(),
            Some("ladder") => self.ladder.is_some() || self.scheduler.is_some(),
            Some("guidance") => self.guidance.is_some(),
            Some("prompt") => self.prompt.is_some(),
            Some("negative") => self.negative.is_some(),
            _ => false,
        }
    }

    /// Returns the request of the second pass, which starts from `start`.
    ///
    /// `steps` is the number of steps of the first pass.
    pub(crate) fn request(
        &self,
        first: &Request,
        sizes: Enlarged,
        start: Start,
        steps: Option<usize>,
    ) -> Request {
        let mut request = first.clone();
        request.hires = None;
        // Given noise has the size of the first pass.
        request.initial_noise = None;
        request.size = Some(sizes.size);
        let start = start.strength(self.strength).rule(self.rule);
        request.start = Some(start);
        let given = self.ladder.as_ref().and_then(Ladder::given_steps);
        request.steps = self.steps.or(given).or(steps).or(request.steps);
        if let Some(scheduler) = &self.scheduler {
            request.scheduler = Some(scheduler.clone());
            request.ladder = None;
        }
        if let Some(ladder) = &self.ladder {
            request.ladder = Some(ladder.clone());
        }
        if let Some(guidance) = &self.guidance {
            request.guidance = Some(guidance.clone());
        }
        if let Some(prompt) = &self.prompt {
            request.prompt = prompt.clone();
            request.prompt_2 = None;
        }
        if let Some(negative) = &self.negative {
            request.negative = negative.clone();
            request.negative_2 = None;
        }
        request
    }
}

/// The sizes of a second pass, width and height in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Enlarged {
    /// The size of the finished picture.
    pub size: [u32; 2],
    /// The size to which the first picture is enlarged, before it is cut.
    pub covering: [u32; 2],
}
