//! Why a picture could not be made.

use crate::BoxError;

/// Why a pipeline could not be built or a picture not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A value of the request cannot be used.
    #[error("{what} is {found}, expected {expected}")]
    Request {
        /// Which value.
        what: &'static str,
        /// What can be used.
        expected: String,
        /// What was asked for.
        found: String,
    },
    /// Two parts of a pipeline do not fit each other.
    #[error("the parts do not fit: {0}")]
    Parts(String),
    /// The noise schedule of the model cannot be used.
    #[error("the scheduler's configuration: {0}")]
    Scheduler(#[from] sd_schedulers::ConfigError),
    /// The ladder cannot be made with that many steps.
    #[error(transparent)]
    Ladder(#[from] sd_schedulers::LadderError),
    /// The prompt could not be encoded.
    #[error("the prompt: {0}")]
    Prompt(#[from] sd_text::TextError),
    /// A network failed.
    #[error("{stage}: {source}")]
    Backend {
        /// Which network, and at which step.
        stage: String,
        /// What it said.
        source: BoxError,
    },
    /// The latents came out infinite or as no numbers.
    #[error(
        "the latents of seed {seed} are not finite numbers: a guidance that is far too large, or weights that overflow"
    )]
    NotFinite {
        /// The seed of the picture.
        seed: u64,
    },
    /// An observer asked to stop. No failure.
    #[error("stopped by the observer after {steps} steps")]
    Stopped {
        /// Finished steps of the picture that was being made.
        steps: usize,
    },
}

impl Error {
    pub(crate) fn request(
        what: &'static str,
        expected: impl ToString,
        found: impl ToString,
    ) -> Self {
        Self::Request {
            what,
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }

    pub(crate) fn backend(stage: impl Into<String>) -> impl FnOnce(BoxError) -> Self {
        let stage = stage.into();
        move |source| Self::Backend { stage, source }
    }

    /// Whether the run was stopped by an observer.
    pub fn is_stopped(&self) -> bool {
        matches!(self, Self::Stopped { .. })
    }
}
