//! The errors of building a pipeline and of drawing pictures.

use std::{borrow::Cow, fmt};

use ndarray::Array4;
use sd_text::{Side, outside::printable};
use serde::Serialize;

use crate::BoxError;

/// The reason why a pipeline could not be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// Two parts of the pipeline do not fit each other.
    #[error("the parts do not fit: {0}")]
    Parts(String),
    /// A setting of the pipeline, such as its default size, cannot be used.
    #[error(transparent)]
    Settings(#[from] Problems),
    /// The noise schedule of the model cannot be used.
    #[error("the scheduler's configuration cannot be used")]
    Scheduler(#[from] sd_schedulers::config::ConfigError),
    /// The codec failed while the coefficients of previews were fitted to it.
    #[error("fitting the preview failed")]
    Preview(#[source] BoxError),
}

impl From<Problem> for BuildError {
    fn from(problem: Problem) -> Self {
        Self::Settings(Problems(vec![problem]))
    }
}

/// The reason why a picture could not be drawn, decoded or encoded.
///
/// `Display` prints the error without its cause, which
/// [`source`](std::error::Error::source) returns.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// Values that cannot be used: every wrong value in the requests of a call, or a wrong
    /// argument.
    #[error(transparent)]
    Request(#[from] Problems),
    /// A prompt could not be encoded.
    #[error("the prompt cannot be encoded")]
    Prompt(#[from] sd_text::TextError),
    /// A part of the pipeline failed, usually a network.
    #[error("{stage} failed")]
    Backend {
        /// The part that failed, and when.
        stage: Stage,
        /// The error that the part returned.
        source: BoxError,
    },
    /// The latents or the pixels of a picture contain NaN or infinity. The other pictures of its
    /// batch were finished.
    #[error(
        "picture {picture} of request {request}, seed {seed}, contains NaN or infinity: the guidance may be far too large, or the networks may overflow, in f16 beyond 65,504"
    )]
    NotFinite {
        /// The index of the request in the call, from 0.
        request: usize,
        /// The index of the picture in its request, from 0.
        picture: usize,
        /// The seed of the picture.
        seed: u64,
    },
    /// An observer or a [`StopToken`](crate::StopToken) ended the run. This is not a failure.
    #[error("stopped after {} steps", .0.steps)]
    Stopped(Box<Stopped>),
}

impl GenerateError {
    /// Returns a function that turns the error of a part into [`GenerateError::Backend`].
    pub(crate) fn backend(stage: Stage) -> impl FnOnce(BoxError) -> Self {
        move |source| Self::Backend { stage, source }
    }

    /// Returns whether the run was stopped by an observer or a token, and did not fail.
    pub fn is_stopped(&self) -> bool {
        matches!(self, Self::Stopped(_))
    }
}

impl From<Problem> for GenerateError {
    fn from(problem: Problem) -> Self {
        Self::Request(Problems(vec![problem]))
    }
}

/// The part of a pipeline that failed, and when, as [`GenerateError::Backend`] reports it.
///
/// `Display` prints a subject for "failed", such as "the denoiser at step 3, timestep 801" or
/// "decoding the latents". With serde it is the name of the variant in snake case, as a string or
/// as the key of an object with the fields.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Stage {
    /// The LoRA library, while it changed the networks for the LoRAs that prompts call.
    Loras,
    /// A text encoder, while it encoded a prompt.
    TextEncoder {
        /// Whether it was the prompt or the negative prompt.
        side: Side,
        /// The index of the text encoder, from 0. SDXL has two.
        tower: usize,
    },
    /// The source of noise.
    Noise {
        /// The seed of the picture.
        seed: u64,
    },
    /// The denoiser, or the refiner if it had taken over.
    Denoiser {
        /// Whether it was the refiner.
        refiner: bool,
        /// The number of the step, from 1. `None` for a call of a [`Guided`](crate::Guided)
        /// denoiser outside of a run.
        step: Option<usize>,
        /// The number of steps that the picture takes, like [`StepInfo::total`]. `None` if `step`
        /// is `None`.
        ///
        /// [`StepInfo::total`]: crate::StepInfo::total
        steps: Option<usize>,
        /// The training timestep of the call.
        timestep: f32,
    },
    /// The sampler, which broke a rule of [`Sampler`](sd_schedulers::Sampler).
    Sampler,
    /// The codec, while it decoded latents.
    Decoder,
    /// The codec, while it encoded a picture.
    Encoder,
    /// A network that enlarges pictures.
    Upscaler,
    /// A control network, while it read the picture of a [`Control`](crate::Control).
    Control {
        /// The name of the network.
        network: String,
    },
    /// The start of the thread of [`Pipeline::events`](crate::Pipeline::events).
    Thread,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loras => f.write_str("applying the LoRAs"),
            Self::TextEncoder { side, tower } => {
                let prompt = match side {
                    Side::Positive => "prompt",
                    Side::Negative => "negative prompt",
                };
                match tower {
                    0 => write!(f, "encoding the {prompt}"),
                    _ => write!(f, "encoding the {prompt} with text encoder {}", tower + 1),
                }
            }
            Self::Noise { seed } => write!(f, "the noise of seed {seed}"),
            Self::Denoiser {
                refiner,
                step,
                timestep,
                ..
            } => {
                let network = if *refiner { "refiner" } else { "denoiser" };
                match step {
                    Some(step) => write!(f, "the {network} at step {step}, timestep {timestep}"),
                    None => write!(f, "the {network} at timestep {timestep}"),
                }
            }
            Self::Sampler => f.write_str("the sampler"),
            Self::Decoder => f.write_str("decoding the latents"),
            Self::Encoder => f.write_str("encoding the image"),
            Self::Upscaler => f.write_str("enlarging the picture"),
            Self::Control { network } => {
                write!(f, "reading the picture for {}", printable(network))
            }
            Self::Thread => f.write_str("starting a thread"),
        }
    }
}

/// The unfinished work of a run that was stopped.
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct Stopped {
    /// The number of steps that the unfinished pictures have completed, counted over both passes if
    /// there is a [second](crate::Hires) one. The latents of the pictures belong to the pass that
    /// was running.
    pub steps: usize,
    /// The unfinished pictures: one, or the unfinished ones of a batch. Empty if the run was
    /// stopped before the first step began.
    pub pictures: Vec<Unfinished>,
}

/// A picture that was not finished.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Unfinished {
    /// The index of the request in the call, from 0.
    pub request: usize,
    /// The index of the picture in its request, from 0.
    pub picture: usize,
    /// The seed of the picture.
    pub seed: u64,
    /// The noisy latents after the last finished step, `[1, channels, h, w]`.
    pub latents: Array4<f32>,
    /// The model's estimate of the finished latents at that step, `[1, channels, h, w]`.
    /// [`Pipeline::decode`](crate::Pipeline::decode) turns it into a picture. `None` if no step was
    /// finished.
    pub denoised: Option<Array4<f32>>,
}

/// Everything that is wrong with the requests of a call. There is at least one problem.
///
/// `Display` prints the first eight problems and the number of the others. With serde it is an
/// array.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Problems(pub(crate) Vec<Problem>);

impl Problems {
    /// Returns an error if there are any problems.
    pub(crate) fn check(problems: Vec<Problem>) -> Result<(), Self> {
        if problems.is_empty() {
            Ok(())
        } else {
            Err(Self(problems))
        }
    }

    /// Returns an iterator over the problems, in the order of the requests.
    pub fn iter(&self) -> std::slice::Iter<'_, Problem> {
        self.0.iter()
    }
}

impl<'a> IntoIterator for &'a Problems {
    type Item = &'a Problem;
    type IntoIter = std::slice::Iter<'a, Problem>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MOST: usize = 8;
        for (i, problem) in self.0.iter().take(MOST).enumerate() {
            if i > 0 {
                f.write_str("; ")?;
            }
            problem.fmt(f)?;
        }
        match self.0.len().saturating_sub(MOST) {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}

impl std::error::Error for Problems {}

/// A value that cannot be used.
///
/// With serde it is an object with a key for each field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Problem {
    /// The index of the request, from 0. `None` if there is only one request.
    pub request: Option<usize>,
    /// The name of the value: a field of [`Request`](crate::Request), the path of a value within a
    /// field, such as `ladder.karras.rho`, or a part of a field that has a name, such as `width`.
    pub field: Cow<'static, str>,
    /// A description of the values that can be used.
    pub expected: String,
    /// The value that was given, shortened and safe to print, because it may come from a file.
    pub found: String,
}

impl Problem {
    pub(crate) fn new(
        field: impl Into<Cow<'static, str>>,
        expected: impl ToString,
        found: impl fmt::Display,
    ) -> Self {
        Self {
            request: None,
            field: field.into(),
            expected: expected.to_string(),
            found: printable(found),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(request) = self.request {
            write!(f, "request {request}: ")?;
        }
        let Self {
            field,
            expected,
            found,
            ..
        } = self;
        write!(f, "{field} is {found}, expected {expected}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_are_short_and_safe_to_print() {
        let problem = Problem::new(
            "steps",
            "1 to 1000",
            format!("\u{1b}[2J{}", "x".repeat(99_000)),
        );
        assert!(problem.to_string().starts_with("steps is \\u{1b}[2Jxxx"));
        assert!(problem.to_string().len() < 600);
        let many = Problems(vec![problem; 1000]);
        assert!(many.to_string().ends_with("; and 992 more"));
        assert!(many.to_string().len() < 6000);
    }

    #[test]
    fn problems_are_json() {
        let mut problem = Problem::new("steps", "1 to 1000", 0);
        let json = r#"{"request":null,"field":"steps","expected":"1 to 1000","found":"0"}"#;
        assert_eq!(serde_json::to_string(&problem).unwrap(), json);
        problem.request = Some(2);
        let json = format!("[{}]", json.replace("null", "2"));
        assert_eq!(
            serde_json::to_string(&Problems(vec![problem])).unwrap(),
            json
        );
    }
}
