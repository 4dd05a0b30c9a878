//! Which noise levels a run visits.

mod beta;
mod conventions;
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

pub use conventions::{Conventions, Counting, End, FirstX, Told};
pub use error::LadderError;
pub(crate) use flow::shifted;
pub use flow::{Flow, FlowLevels, ResolutionShift, Shift};
pub use linear_quadratic::LinearQuadratic;
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

/// A rule that picks the noise levels of a run from those the model was trained on.
///
/// | name | rungs at | in diffusers | in WebUI | in ComfyUI |
/// |---|---|---|---|---|
/// | `leading`, `linspace`, `trailing` | [even timesteps](Spacing) | `timestep_spacing` | | |
/// | `karras` | [even seventh roots](Shape::Karras) | `use_karras_sigmas` | Karras | `karras` |
/// | `exponential` | [even logarithms](Shape::Exponential) | `use_exponential_sigmas` | Exponential | `exponential` |
/// | `polyexponential` | [bent logarithms](Shape::Polyexponential) | | Polyexponential | PolyexponentialScheduler |
/// | `beta` | [quantiles over sigma](Shape::Beta) | `use_beta_sigmas` | Beta | |
/// | `beta-timesteps` | [quantiles over timesteps](Timing::BetaTimesteps) | | | `beta` |
/// | `normal` | [even timesteps, both ends](Timing::Normal) | | Uniform, Normal | `normal` |
/// | `sgm-uniform` | [even timesteps, noisy end](Timing::SgmUniform) | | SGM Uniform | `sgm_uniform` |
/// | `simple` | [even trained sigmas](Timing::Simple) | | Simple | `simple` |
/// | `ddim-uniform` | [multiples from timestep 1](Timing::DdimUniform) | | DDIM | `ddim_uniform` |
/// | `linear-quadratic` | [a line and a parabola](LinearQuadratic) | | | `linear_quadratic` |
/// | `kl-optimal` | [even arctangents](Shape::KlOptimal) | | KL Optimal | `kl_optimal` |
/// | `align-your-steps` (`-sdxl`, `-svd`) | [a table](AlignYourSteps) | `AysSchedules` | Align Your Steps | AlignYourStepsScheduler |
/// | `gits` | [a table](Ladder::Gits) | | | GITSScheduler |
/// | `laplace` | [Laplace quantiles](Shape::Laplace) | | | LaplaceScheduler |
/// | `vp` | [a continuous schedule](Vp) | | | VPScheduler |
/// | `turbo` | [ten timesteps](Timing::Turbo) | | | SDTurboScheduler |
/// | `lcm` | [some of fifty timesteps](Timing::Lcm) | `LCMScheduler`, `TCDScheduler` | | |
/// | `lcm-even` | [even distances over those fifty](Timing::LcmEven) | | LCM | |
/// | `flow` | [even shifted sigmas](Flow) | `FlowMatch…`, `use_flow_sigmas` | | |
///
/// With serde it is its [name](Self::NAMED), such as `"karras"`, or that with options: `{"karras": {"rho": 5.0, "over": "leading"}}`;
/// `{"sigmas": [14.6, 2.0, 0.0]}` and `{"timesteps": [999.0, 500.0]}` are one's own, and `{"lu": {}}` is [`Shape::Lu`].
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
        /// From where to where.
        over: Span,
    },
    /// Sigmas of a continuous schedule.
    Vp(Vp),
    /// Sigmas on a line and a parabola.
    LinearQuadratic(LinearQuadratic),
    /// A table of sigmas.
    AlignYourSteps(AlignYourSteps),
    /// A table found by dynamic programming for Stable Diffusion 1.5: GITS, <https://arxiv.org/abs/2405.11326>. Beyond 20 steps its longest row,
    /// read at even distances. ComfyUI's GITSScheduler.
    Gits {
        /// The larger, the fewer rungs near the noisy end: 0.80, 0.85, … 1.50. 1.20.
        coefficient: f64,
    },
    /// Even sigmas of a flow model, shifted.
    Flow(Flow),
    /// One's own sigmas: N of the rungs and the sigma at which the run ends, usually 0, in the
    /// scaling of the schedule's. A run on it has N steps.
    Sigmas(Arc<[f32]>),
    /// One's own N timesteps. Sigma is read linearly between whole timesteps. A run on it has N
    /// steps.
    Timesteps(Arc<[f32]>),
}

impl Ladder {
    /// The name that it has or would have with the options of the named one: `karras` for any rho. `lu`, `sigmas` and `timesteps` are not
    /// among the named ones.
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

    /// The number of steps of a run on a ladder of one's own, [`Sigmas`](Self::Sigmas) or
    /// [`Timesteps`](Self::Timesteps). `None` for other ladders, which can have any number.
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
                levels: FlowLevels::Of(ladder),
                ..
            }) => ladder.given_steps(),
            _ => None,
        }
    }

    /// The ladder for a picture of this size, in pixels: sets the tokens of a [`ResolutionShift`], and leaves all others as they are.
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

    /// Whether its rungs are whole training timesteps, which samplers with [`Conventions::on_grid_only`] need: those of every [`Spacing`] and
    /// [`Timing`] are, rounded where they are not.
    pub fn on_grid(&self) -> bool {
        match self {
            Self::Spaced(_) | Self::Timed(_) => true,
            Self::Timesteps(timesteps) => timesteps.iter().all(|timestep| timestep.fract() == 0.0),
            _ => false,
        }
    }
}
