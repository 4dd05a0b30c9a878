//! The ladders that have a name.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::{
    AlignYourSteps, AlignedModel, Flow, FlowLevels, Ladder, LinearQuadratic, Shape, Shift, Spacing,
    Span, Timing, Vp,
};
use crate::names::UnknownName;
use crate::printable::printable;

impl FromStr for Ladder {
    type Err = UnknownName;

    /// Parses one of the names in [`NAMED`](Ladder::NAMED), in upper or lower case. To read a
    /// ladder with options, use serde.
    ///
    /// # Errors
    /// [`UnknownName`] if there is no such name. It lists known names.
    fn from_str(name: &str) -> Result<Self, UnknownName> {
        let named = |(known, _): &&(&str, Self)| known.eq_ignore_ascii_case(name);
        match Self::NAMED.iter().find(named) {
            Some((_, ladder)) => Ok(ladder.clone()),
            None => Err(UnknownName {
                what: "ladder",
                name: printable(name),
                known: Self::NAMED.iter().map(|(known, _)| *known).collect(),
            }),
        }
    }
}

/// Writes the [name](Ladder::name), which [`FromStr`] reads. A ladder whose options differ from the
/// named ladder's is written as the JSON that serde reads.
///
/// ```
/// use sd_schedulers::{Ladder, ladders::Shape};
///
/// assert_eq!(Ladder::karras().to_string(), "karras");
/// let ladder = Ladder::shaped(Shape::Karras { rho: 5.0 });
/// assert_eq!(ladder.to_string(), r#"{"karras":{"rho":5.0}}"#);
/// ```
impl fmt::Display for Ladder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.pad(name),
            None => f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?),
        }
    }
}

impl Ladder {
    /// The ladders that have a name, for a command line and for serde.
    pub const NAMED: &'static [(&'static str, Self)] = &[
        ("leading", Self::leading()),
        ("linspace", Self::linspace()),
        ("trailing", Self::trailing()),
        ("karras", Self::karras()),
        ("exponential", Self::exponential()),
        ("polyexponential", Self::polyexponential()),
        ("beta", Self::beta()),
        ("beta-timesteps", Self::beta_timesteps()),
        ("normal", Self::normal()),
        ("sgm-uniform", Self::sgm_uniform()),
        ("simple", Self::simple()),
        ("ddim-uniform", Self::ddim_uniform()),
        ("linear-quadratic", Self::linear_quadratic()),
        ("kl-optimal", Self::kl_optimal()),
        ("align-your-steps", Self::align_your_steps()),
        ("align-your-steps-sdxl", Self::align_your_steps_sdxl()),
        ("align-your-steps-svd", Self::align_your_steps_svd()),
        ("gits", Self::gits()),
        ("laplace", Self::laplace()),
        ("vp", Self::vp()),
        ("turbo", Self::turbo()),
        ("lcm", Self::lcm()),
        ("lcm-even", Self::lcm_even()),
        ("flow", Self::flow()),
    ];

    /// Returns the ladder's name, if it is one of [`NAMED`](Self::NAMED).
    pub fn name(&self) -> Option<&'static str> {
        let named = Self::NAMED.iter().find(|(_, ladder)| ladder == self);
        named.map(|(name, _)| *name)
    }

    /// Returns [`Spacing::Leading`].
    pub const fn leading() -> Self {
        Self::Spaced(Spacing::Leading)
    }

    /// Returns [`Spacing::Linspace`].
    pub const fn linspace() -> Self {
        Self::Spaced(Spacing::Linspace)
    }

    /// Returns [`Spacing::Trailing`].
    pub const fn trailing() -> Self {
        Self::Spaced(Spacing::Trailing)
    }

    /// Returns a shape over every trained sigma.
    ///
    /// ```
    /// use sd_schedulers::{Ladder, ladders::Shape};
    ///
    /// assert_eq!(Ladder::shaped(Shape::Karras { rho: 7.0 }), Ladder::karras());
    /// ```
    pub const fn shaped(shape: Shape) -> Self {
        Self::Shaped {
            shape,
            over: Span::TRAINED,
        }
    }

    /// Returns [`Shape::Karras`] with rho 7 over every trained sigma.
    pub const fn karras() -> Self {
        Self::shaped(Shape::Karras { rho: 7.0 })
    }

    /// Returns [`Shape::Karras`] with rho 7 over the sigmas of a spacing.
    pub const fn karras_over(spacing: Spacing) -> Self {
        Self::Shaped {
            shape: Shape::Karras { rho: 7.0 },
            over: Span {
                spacing: Some(spacing),
                ..Span::TRAINED
            },
        }
    }

    /// Returns [`Shape::Exponential`] over every trained sigma.
    pub const fn exponential() -> Self {
        Self::shaped(Shape::Exponential)
    }

    /// Returns [`Shape::Polyexponential`] with rho 1 over every trained sigma.
    pub const fn polyexponential() -> Self {
        Self::shaped(Shape::Polyexponential { rho: 1.0 })
    }

    /// Returns [`Shape::Beta`] with alpha and beta 0.6 over every trained sigma.
    pub const fn beta() -> Self {
        Self::shaped(Shape::Beta {
            alpha: 0.6,
            beta: 0.6,
        })
    }

    /// Returns [`Shape::KlOptimal`] over every trained sigma, for a run that goes to 0.
    pub const fn kl_optimal() -> Self {
        Self::shaped(Shape::KlOptimal {
            ends_at_lowest: false,
        })
    }

    /// Returns [`Shape::Laplace`] with mu 0 and beta 0.5 over every trained sigma.
    pub const fn laplace() -> Self {
        Self::shaped(Shape::Laplace { mu: 0.0, beta: 0.5 })
    }

    /// Returns [`Timing::Normal`].
    pub const fn normal() -> Self {
        Self::Timed(Timing::Normal)
    }

    /// Returns [`Timing::SgmUniform`].
    pub const fn sgm_uniform() -> Self {
        Self::Timed(Timing::SgmUniform)
    }

    /// Returns [`Timing::Simple`].
    pub const fn simple() -> Self {
        Self::Timed(Timing::Simple)
    }

    /// Returns [`Timing::DdimUniform`].
    pub const fn ddim_uniform() -> Self {
        Self::Timed(Timing::DdimUniform)
    }

    /// Returns [`Timing::BetaTimesteps`] with alpha and beta 0.6.
    pub const fn beta_timesteps() -> Self {
        Self::Timed(Timing::BetaTimesteps {
            alpha: 0.6,
            beta: 0.6,
        })
    }

    /// Returns [`Timing::Turbo`].
    pub const fn turbo() -> Self {
        Self::Timed(Timing::Turbo)
    }

    /// Returns [`Timing::Lcm`] over all of 50 timesteps.
    pub const fn lcm() -> Self {
        Self::Timed(Timing::Lcm {
            original_steps: 50,
            strength: 1.0,
        })
    }

    /// Returns [`Timing::LcmEven`] over 50 timesteps.
    pub const fn lcm_even() -> Self {
        Self::Timed(Timing::LcmEven { original_steps: 50 })
    }

    /// Returns [`Vp`] with the paper's numbers.
    pub const fn vp() -> Self {
        Self::Vp(Vp::NAMED)
    }

    /// Returns [`LinearQuadratic`] with Mochi's numbers.
    pub const fn linear_quadratic() -> Self {
        Self::LinearQuadratic(LinearQuadratic::NAMED)
    }

    /// Returns [`AlignYourSteps`] for Stable Diffusion 1.5.
    pub const fn align_your_steps() -> Self {
        Self::AlignYourSteps(AlignYourSteps::new(AlignedModel::Sd15))
    }

    /// Returns [`AlignYourSteps`] for Stable Diffusion XL.
    pub const fn align_your_steps_sdxl() -> Self {
        Self::AlignYourSteps(AlignYourSteps::new(AlignedModel::Sdxl))
    }

    /// Returns [`AlignYourSteps`] for Stable Video Diffusion.
    pub const fn align_your_steps_svd() -> Self {
        Self::AlignYourSteps(AlignYourSteps::new(AlignedModel::Svd))
    }

    /// Returns [`Gits`](Self::Gits) with coefficient 1.2.
    pub const fn gits() -> Self {
        Self::Gits { coefficient: 1.2 }
    }

    /// Returns [`Flow`] without a shift.
    pub const fn flow() -> Self {
        Self::Flow(Flow::NAMED)
    }

    /// Returns [`Flow`] shifted by a factor, as diffusers' `FlowMatchEulerDiscreteScheduler` does.
    pub const fn flow_shifted(factor: f64) -> Self {
        Self::Flow(Flow {
            levels: FlowLevels::ShiftedEnd,
            shift: Shift::By(factor),
            terminal: None,
        })
    }

    /// Returns a ladder of given [`Sigmas`](Self::Sigmas).
    pub fn sigmas(sigmas: impl Into<Arc<[f32]>>) -> Self {
        Self::Sigmas(sigmas.into())
    }

    /// Returns a ladder of given [`Timesteps`](Self::Timesteps).
    pub fn timesteps(timesteps: impl Into<Arc<[f32]>>) -> Self {
        Self::Timesteps(timesteps.into())
    }
}
