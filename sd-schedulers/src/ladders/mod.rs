//! Ladders: the rules that pick the noise levels of a run.
//!
//! A [`Ladder`] picks the noise levels of a run from the noise levels that a model was trained on.
//! [`Ladder::rungs`] returns them as [`Rungs`], noisiest first. The documentation of [`Ladder`] has
//! a table of all ladders.
//!
//! A sampler counts and scales as its [`Conventions`] say. [`StrengthRule`] and [`Rungs`] split a
//! run, for image to image or for two models in turn.

mod beta;
mod conventions;
mod conversion;
mod error;
mod flow;
mod gits;
mod levels;
mod linear_quadratic;
mod named;
mod numbers;
mod rungs;
mod shape;
mod spacing;
mod strength;
mod table;
#[cfg(test)]
mod tests;
mod timing;
mod vp;
mod written;

use std::sync::Arc;

pub use conventions::{Conventions, FinalSigma, FirstX, PointCount, TimestepRounding};
pub use error::LadderError;
pub(crate) use flow::shifted;
pub use flow::{Flow, FlowLevels, ResolutionShift, Shift};
pub use linear_quadratic::LinearQuadratic;
pub use rungs::{NoisePath, Rung, Rungs};
pub(crate) use shape::karras;
pub use shape::{Shape, Span};
pub use spacing::Spacing;
pub use strength::StrengthRule;
pub(crate) use strength::decimal;
pub use table::{AlignYourSteps, AlignedModel};
pub use timing::Timing;
pub use vp::Vp;

use levels::Levels;
use numbers::{above_zero, in_range, ramp};

/// A rule that picks the noise levels of a run from the noise levels that the model was trained on.
///
/// | name | rungs at | in diffusers | in WebUI | in ComfyUI |
/// |---|---|---|---|---|
/// | `leading`, `linspace`, `trailing` | [even timesteps] | `timestep_spacing` | | |
/// | `karras` | [even seventh roots] | `use_karras_sigmas` | Karras | `karras` |
/// | `exponential` | [even logarithms] | `use_exponential_sigmas` | Exponential | `exponential` |
/// | `polyexponential` | [bent logarithms] | | Polyexponential | PolyexponentialScheduler |
/// | `beta` | [quantiles over sigma] | `use_beta_sigmas` | Beta | |
/// | `beta-timesteps` | [quantiles over timesteps] | | | `beta` |
/// | `normal` | [even timesteps, both ends] | | Uniform, Normal | `normal` |
/// | `sgm-uniform` | [even timesteps, noisy end] | | SGM Uniform | `sgm_uniform` |
/// | `simple` | [even trained sigmas] | | Simple | `simple` |
/// | `ddim-uniform` | [multiples from timestep 1] | | DDIM | `ddim_uniform` |
/// | `linear-quadratic` | [a line and a parabola] | | | `linear_quadratic` |
/// | `kl-optimal` | [even arctangents] | | KL Optimal | `kl_optimal` |
/// | `align-your-steps` | [a table] | `AysSchedules` | Align Your Steps | AlignYourStepsScheduler |
/// | `gits` | [another table] | | | GITSScheduler |
/// | `laplace` | [Laplace quantiles] | | | LaplaceScheduler |
/// | `vp` | [a continuous schedule] | | | VPScheduler |
/// | `turbo` | [ten timesteps] | | | SDTurboScheduler |
/// | `lcm` | [some of fifty timesteps] | `LCMScheduler`, `TCDScheduler` | | |
/// | `lcm-even` | [even distances over those fifty] | | LCM | |
/// | `flow` | [even shifted sigmas] | `FlowMatch…`, `use_flow_sigmas` | | |
///
/// `align-your-steps-sdxl` and `align-your-steps-svd` are the tables for Stable Diffusion XL and
/// Stable Video Diffusion.
///
/// In serde, a ladder is its [name](Self::NAMED), such as `"karras"`, or an object with the name
/// and options, such as `{"karras": {"rho": 5.0, "over": "leading"}}`. Missing options have the
/// values of the named ladder. `{"sigmas": [14.6, 2.0, 0.0]}` and `{"timesteps": [999.0, 500.0]}`
/// are ladders with given levels, and `{"lu": {}}` is [`Shape::Lu`].
///
/// [even timesteps]: Spacing
/// [even seventh roots]: Shape::Karras
/// [even logarithms]: Shape::Exponential
/// [bent logarithms]: Shape::Polyexponential
/// [quantiles over sigma]: Shape::Beta
/// [quantiles over timesteps]: Timing::BetaTimesteps
/// [even timesteps, both ends]: Timing::Normal
/// [even timesteps, noisy end]: Timing::SgmUniform
/// [even trained sigmas]: Timing::Simple
/// [multiples from timestep 1]: Timing::DdimUniform
/// [a line and a parabola]: LinearQuadratic
/// [even arctangents]: Shape::KlOptimal
/// [a table]: AlignYourSteps
/// [another table]: Ladder::Gits
/// [Laplace quantiles]: Shape::Laplace
/// [a continuous schedule]: Vp
/// [ten timesteps]: Timing::Turbo
/// [some of fifty timesteps]: Timing::Lcm
/// [even distances over those fifty]: Timing::LcmEven
/// [even shifted sigmas]: Flow
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Ladder {
    /// Training timesteps at even distances.
    Spaced(Spacing),
    /// Training timesteps by another rule.
    Timed(Timing),
    /// Sigmas on a curve.
    Shaped {
        /// The curve.
        shape: Shape,
        /// The range of sigmas that the curve covers.
        over: Span,
    },
    /// Sigmas of a continuous schedule.
    Vp(Vp),
    /// Sigmas on a line and a parabola.
    LinearQuadratic(LinearQuadratic),
    /// A table of sigmas.
    AlignYourSteps(AlignYourSteps),
    /// GITS: a table for Stable Diffusion 1.5 that was found by dynamic programming,
    /// <https://arxiv.org/abs/2405.11326>. This is ComfyUI's GITSScheduler.
    ///
    /// Beyond 20 steps, the longest row of the table is read at even distances.
    Gits {
        /// One of 0.80, 0.85, … 1.50. A larger value puts fewer rungs near the noisy end. The
        /// named ladder has 1.20.
        coefficient: f64,
    },
    /// Even sigmas of a flow model, shifted.
    Flow(Flow),
    /// Given sigmas: N for the rungs, followed by the sigma at which the run ends, usually 0. They
    /// are in the scaling of the schedule's sigmas. A run on this ladder has N steps.
    Sigmas(Arc<[f32]>),
    /// N given timesteps. Sigma is interpolated linearly between whole timesteps. A run on this
    /// ladder has N steps.
    Timesteps(Arc<[f32]>),
}

impl Ladder {
    /// Returns the name of the ladder without regard to its options: `karras` for any rho.
    ///
    /// It is one of the names in [`NAMED`](Self::NAMED), or `lu`, `sigmas` or `timesteps`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Spaced(spacing) => spacing.name(),
            Self::Timed(timing) => timing.name(),
            Self::Shaped { shape, .. } => shape.name(),
            Self::Vp(_) => "vp",
            Self::LinearQuadratic(_) => "linear-quadratic",
            Self::AlignYourSteps(table) => table.name(),
            Self::Gits { .. } => "gits",
            Self::Flow(_) => "flow",
            Self::Sigmas(_) => "sigmas",
            Self::Timesteps(_) => "timesteps",
        }
    }

    /// Returns the number of steps of a run on given levels, which are [`Sigmas`](Self::Sigmas) or
    /// [`Timesteps`](Self::Timesteps). Returns `None` for other ladders, which can have any number
    /// of steps.
    ///
    /// ```
    /// # use sd_schedulers::Ladder;
    /// assert_eq!(Ladder::sigmas([14.6, 2.0, 0.0]).given_steps(), Some(2));
    /// assert_eq!(Ladder::karras().given_steps(), None);
    /// ```
    pub fn given_steps(&self) -> Option<usize> {
        match self {
            Self::Sigmas(sigmas) => Some(sigmas.len().saturating_sub(1)),
            Self::Timesteps(timesteps) => Some(timesteps.len()),
            Self::Flow(Flow {
                levels: FlowLevels::Ladder(ladder),
                ..
            }) => ladder.given_steps(),
            _ => None,
        }
    }

    /// Returns the ladder for a picture of this size, in pixels.
    ///
    /// It sets the tokens of a [`ResolutionShift`], and leaves all other ladders unchanged.
    ///
    /// ```
    /// use sd_schedulers::{Ladder, ladders::{Flow, ResolutionShift, Shift}};
    ///
    /// let by_size = |tokens| {
    ///     let shift = Shift::Resolution(ResolutionShift { tokens, ..Default::default() });
    ///     Ladder::Flow(Flow { shift, ..Default::default() })
    /// };
    /// assert_eq!(by_size(4096).for_size(1024, 512), by_size(2048));
    /// ```
    pub fn for_size(mut self, width: usize, height: usize) -> Self {
        if let Self::Flow(Flow {
            shift: Shift::Resolution(shift),
            ..
        }) = &mut self
        {
            shift.tokens = ResolutionShift::tokens_of(width, height);
        }
        self
    }

    /// Returns whether all rungs are whole training timesteps, as samplers with
    /// [`Conventions::on_grid_only`] need.
    ///
    /// They are for every [`Spacing`] and [`Timing`], rounded where necessary.
    pub fn on_grid(&self) -> bool {
        match self {
            Self::Spaced(_) | Self::Timed(_) => true,
            Self::Timesteps(timesteps) => timesteps.iter().all(|timestep| timestep.fract() == 0.0),
            _ => false,
        }
    }
}
