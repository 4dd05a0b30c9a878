//! The defaults of a pipeline, for what a request leaves open.

use sd_schedulers::{Ladder, Scheduler, SchedulerConfig, samplers::DpmPlusPlus2M};

use crate::{Guidance, Request};

/// The steps, guidance, sampler and ladder of requests that do not set them. Models are trained for
/// different values.
///
/// [`PipelineBuilder::defaults`](crate::PipelineBuilder::defaults) sets them, and
/// [`Pipeline::with_defaults`](crate::Pipeline::with_defaults) applies them to a request.
///
/// ```
/// use sd_core::{Defaults, schedulers::{Ladder, samplers::EulerAncestral}};
///
/// let turbo = Defaults::default()
///     .steps(1)
///     .guidance(1.0)
///     .scheduler(EulerAncestral::default())
///     .ladder(Ladder::trailing());
/// assert_eq!(turbo.guidance.scale(), Some(1.0));
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Defaults {
    /// The number of steps on ladders that do not list their rungs.
    ///
    /// Default: 20.
    pub steps: usize,
    /// The guidance.
    ///
    /// Default: a scale of 7.5.
    pub guidance: Guidance,
    /// The sampler.
    ///
    /// Default: DPM++ 2M.
    pub scheduler: Scheduler,
    /// The ladder for [`scheduler`](Self::scheduler). A request that sets another sampler gets the
    /// usual ladder of that sampler.
    ///
    /// Default: `None`, the [usual ladder](Scheduler::default_ladder) of `scheduler`. For DPM++ 2M
    /// this is Karras.
    pub ladder: Option<Ladder>,
}

impl Default for Defaults {
    /// Returns the defaults for Stable Diffusion 1.x.
    fn default() -> Self {
        Self {
            steps: 20,
            guidance: Guidance::from(7.5),
            scheduler: DpmPlusPlus2M.into(),
            ladder: None,
        }
    }
}

impl Defaults {
    /// Sets [`steps`](Self::steps).
    pub fn steps(mut self, steps: usize) -> Self {
        self.steps = steps;
        self
    }

    /// Sets [`guidance`](Self::guidance).
    pub fn guidance(mut self, guidance: impl Into<Guidance>) -> Self {
        self.guidance = guidance.into();
        self
    }

    /// Sets [`scheduler`](Self::scheduler).
    pub fn scheduler(mut self, scheduler: impl Into<Scheduler>) -> Self {
        self.scheduler = scheduler.into();
        self
    }

    /// Sets [`ladder`](Self::ladder).
    pub fn ladder(mut self, ladder: Ladder) -> Self {
        self.ladder = Some(ladder);
        self
    }
}

/// The choices of a request, with the defaults filled in.
#[derive(Debug)]
pub(crate) struct Chosen {
    pub steps: usize,
    pub guidance: Guidance,
    pub scheduler: Scheduler,
    /// The ladder before it is adapted to the size of the picture.
    pub ladder: Ladder,
}

impl Defaults {
    /// Returns the request's choices, with these defaults for what it leaves open.
    pub(crate) fn chosen(&self, request: &Request, config: &SchedulerConfig) -> Chosen {
        let scheduler = request.scheduler.as_ref().unwrap_or(&self.scheduler);
        let own = self.ladder.as_ref().filter(|_| request.scheduler.is_none());
        let ladder = match request.ladder.as_ref().or(own) {
            Some(ladder) => ladder.clone(),
            None => scheduler.default_ladder(config),
        };
        let guidance = request.guidance.as_ref().unwrap_or(&self.guidance);
        Chosen {
            steps: request.steps.or(ladder.given_steps()).unwrap_or(self.steps),
            guidance: guidance.clone(),
            scheduler: scheduler.clone(),
            ladder,
        }
    }
}
