//! The options that the examples share.

use std::{collections::HashSet, path::PathBuf};

use clap::{
    Args,
    builder::{PossibleValuesParser, TypedValueParser},
};
use sd_onnx::{
    GenerateError, ImageSize, Pipeline, Prompt, Request,
    schedulers::{self, Ladder, Row, Scheduler, SchedulerConfig},
    text::{PromptText, Side, Warning},
};

use crate::{Failure, shipped_model, tell};

/// What to load and how to draw.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Model folder in the diffusers layout [default: the small model that ships with the examples]
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// Variant of the weights, such as fp16 [default: the plain file, else the only one there]
    #[arg(long, value_name = "NAME")]
    pub variant: Option<String>,
    /// Textual inversions: a safetensors file, or a folder of such files; can be given several times. A prompt calls one by the file's name, or the token that the file names
    #[arg(long, value_name = "PATH")]
    pub embeddings: Vec<PathBuf>,
    /// What to push away from
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub negative: Option<String>,
    /// Pixels, a multiple of 8 [default: the model's own]
    #[arg(long, value_name = "N")]
    pub width: Option<u32>,
    /// Pixels, a multiple of 8 [default: the model's own]
    #[arg(long, value_name = "N")]
    pub height: Option<u32>,
    /// Steps from noise to picture, 1 to what the model was trained with (mostly 1000) [default: 20]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub steps: Option<usize>,
    /// Classifier-free guidance (CFG) scale; at 1 and below the negative prompt is left out and steps cost half
    /// [default: 7.5]
    #[arg(long, value_name = "F", value_parser = finite, allow_negative_numbers = true)]
    pub guidance: Option<f32>,
    /// What decides the noise [default: random below 2^32]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// The sampler [default: dpmpp-2m]
    #[arg(long, value_name = "NAME", value_parser = scheduler_names())]
    pub scheduler: Option<&'static Row>,
    /// The noise levels it steps through [default: the sampler's usual ones, mostly karras]
    #[arg(long, value_name = "NAME", value_parser = ladder_names())]
    pub ladder: Option<Ladder>,
    /// Layer of CLIP that is read, counted from the last as WebUI does [default: 1]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub clip_skip: Option<usize>,
    /// Threads, 1 to 1024 [default: one for each physical core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
}

/// A whole number of at least 1.
pub fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("expected at least 1".to_owned()),
        Ok(number) => Ok(number),
        Err(error) => Err(error.to_string()),
    }
}

/// A finite number.
pub fn finite(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(number) if number.is_finite() => Ok(number),
        Ok(_) => Err("expected a finite number".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn scheduler_names() -> impl TypedValueParser<Value = &'static Row> {
    PossibleValuesParser::new(schedulers::TABLE.iter().map(|row| row.name))
        .map(|name| schedulers::by_name(&name).expect("clap lets only names of the table through"))
}

fn ladder_names() -> impl TypedValueParser<Value = Ladder> {
    PossibleValuesParser::new(Ladder::NAMED.iter().map(|(name, _)| *name))
        .map(|name| name.parse().expect("clap lets only named ladders through"))
}

impl Options {
    /// `base` with what these options say in its place; a seed is chosen if neither has one. One side of two is joined by
    /// the model's own in [`sized`](Self::sized).
    ///
    /// # Errors
    /// [`Failure::Arguments`] for what can be known to be wrong before a model is loaded.
    pub fn request(&self, base: Request) -> Result<Request, Failure> {
        // 8 stands for a side that is not known yet.
        let [width, height] = base.size.unwrap_or([8, 8]);
        let size = ImageSize::new(self.width.unwrap_or(width), self.height.unwrap_or(height));
        size.map_err(|problem| Failure::Arguments(problem.to_string()))?;
        let mut request = base;
        if let Some(negative) = &self.negative {
            request = request.negative(negative);
        }
        if let Some(steps) = self.steps {
            request = request.steps(steps);
        }
        if let Some(guidance) = self.guidance {
            request = request.guidance(guidance);
        }
        if let Some(row) = self.scheduler {
            request = request.scheduler(row);
        }
        if let Some(ladder) = &self.ladder {
            request = request.ladder(ladder.clone());
        }
        if let Some(layer) = self.clip_skip {
            request = request.clip_skip(layer);
        }
        let seed = self.seed.or(request.seed);
        request = request.seed(seed.unwrap_or_else(|| rand::random::<u32>().into()));
        check_ladder(&request)?;
        Ok(request)
    }

    /// The request at the size that it, these options and, for a side that neither has, the model say.
    pub fn sized(&self, request: Request, pipeline: &Pipeline) -> Request {
        let default = pipeline.default_size();
        let [width, height] = request.size.unwrap_or([default.width(), default.height()]);
        request.size(self.width.unwrap_or(width), self.height.unwrap_or(height))
    }

    /// The model, given up to `batch` pictures at once.
    ///
    /// # Errors
    /// [`Failure::Work`] when it cannot be loaded.
    pub fn load(&self, batch: usize) -> Result<Pipeline, Failure> {
        let mut builder = sd_onnx::builder()
            .threads(self.threads.unwrap_or(0))
            .batch(batch);
        if let Some(variant) = &self.variant {
            builder = builder.variant(variant);
        }
        for path in &self.embeddings {
            builder = builder.embeddings(path);
        }
        let model = self.model.clone().unwrap_or_else(shipped_model);
        builder
            .load(model)
            .map_err(|error| Failure::Work(error.to_string()))
    }
}

impl From<GenerateError> for Failure {
    fn from(error: GenerateError) -> Self {
        match error {
            GenerateError::Request(_) => Self::Arguments(error.to_string()),
            GenerateError::Stopped(_) => Self::Stopped,
            _ => Self::Work(error.to_string()),
        }
    }
}

/// Says, once for each prompt, what of it is probably not meant as it stands.
pub fn tell_of_prompts<'a>(requests: impl IntoIterator<Item = &'a Request>) {
    let mut told = HashSet::new();
    for request in requests {
        let negative = request.uses_negative().then_some(&request.negative);
        let prompts = [
            ("prompt", Side::Positive, Some(&request.prompt)),
            ("negative prompt", Side::Negative, negative),
        ];
        for (what, side, prompt) in prompts {
            let Some(Prompt::Text(text)) = prompt else {
                continue;
            };
            if !told.insert((what, text)) {
                continue;
            }
            let read = PromptText::parse(text, side, request.prompt_options.syntax);
            for Warning { span, text } in read.warnings() {
                tell(format_args!(
                    "warning: the {what}, at byte {}: {text}",
                    span.start
                ));
            }
            for network in read.networks() {
                let named = &text[network.span.clone()];
                tell(format_args!("warning: {named} is not applied"));
            }
        }
    }
}

/// That the scheduler of a request can run on its ladder.
///
/// # Errors
/// [`Failure::Arguments`] names both.
pub fn check_ladder(request: &Request) -> Result<(), Failure> {
    if let (Scheduler::Named(row), Some(ladder)) = (&request.scheduler, &request.ladder)
        && !row.fits(ladder)
    {
        return Err(Failure::Arguments(format!(
            "the ladder {} does not fit the scheduler {}, which needs whole timesteps, as leading, linspace and trailing have",
            ladder_name(ladder),
            row.name
        )));
    }
    Ok(())
}

/// How a request is drawn, in a line: everything but its prompt and what is in `varies`, by the names of [`Options`].
pub fn summary(request: &Request, config: &SchedulerConfig, varies: &[&str]) -> String {
    let same = |name: &str| !varies.contains(&name);
    let scheduler = request.scheduler.row(config).map_or("own", |row| row.title);
    let ladder = match (same("scheduler"), &request.ladder) {
        (_, Some(ladder)) => ladder_name(ladder),
        (true, None) => ladder_name(&request.scheduler.default_ladder(config)),
        (false, None) => "its usual ladder".to_owned(),
    };
    let mut parts = Vec::new();
    match (same("scheduler"), same("ladder")) {
        (true, true) => parts.push(format!("{scheduler} on {ladder}")),
        (true, false) => parts.push(scheduler.to_owned()),
        (false, true) => parts.push(format!("on {ladder}")),
        (false, false) => {}
    }
    if same("steps") {
        let s = if request.step_count() == 1 { "" } else { "s" };
        parts.push(format!("{} step{s}", request.step_count()));
    }
    if let Some(scale) = request.guidance.scale()
        && same("guidance")
    {
        parts.push(format!("guidance {scale}"));
    }
    if let Some(layer) = request.clip_skip
        && same("clip-skip")
    {
        parts.push(format!("clip skip {layer}"));
    }
    if let Some([width, height]) = request.size
        && same("size")
    {
        parts.push(format!("{width}×{height}"));
    }
    if let Some(seed) = request.seed
        && same("seed")
    {
        parts.push(format!("seed {seed}"));
    }
    if let Prompt::Text(text) = &request.negative
        && !text.trim().is_empty()
        && same("negative")
    {
        parts.push(format!("negative {:?}", text.trim()));
    }
    parts.join(", ")
}

/// The name of a ladder.
pub fn ladder_name(ladder: &Ladder) -> String {
    ladder
        .name()
        .map_or_else(|| format!("{ladder:?}"), str::to_owned)
}
