//! The conventions by which a sampler wants its rungs made.

use serde::{Deserialize, Serialize};

use crate::ladders::NoisePath;

/// How a sampler counts and scales, where the reference implementations of different samplers
/// differ.
///
/// The default is what k-diffusion, and therefore WebUI, and diffusers' Euler do. A spacing has N
/// points, nothing is rounded, the first x is sigma times noise, the run ends at sigma 0, and any
/// ladder will do. The leading spacing, which k-diffusion lacks, scales the first x differently:
/// [`FirstX::BySpacing`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Conventions {
    /// How many points a spacing has.
    ///
    /// Default: [`PointCount::N`].
    pub counting: PointCount,
    /// Whether the timesteps of linspace are rounded to whole ones, half to even.
    ///
    /// Default: false.
    pub integer_timesteps: bool,
    /// How the model is given timesteps that do not come from a spacing. Sigmas are not changed.
    ///
    /// Default: [`TimestepRounding::Exactly`].
    pub timestep_rounding: TimestepRounding,
    /// What the first x is scaled by.
    ///
    /// Default: [`FirstX::BySpacing`].
    pub first_x: FirstX,
    /// Whether the sampler must stay on the whole training timesteps of a diffusion model, which
    /// ladders over sigma leave: see [`Ladder::on_grid`](crate::Ladder::on_grid).
    ///
    /// Default: false.
    ///
    /// On a schedule with zero terminal SNR, such a sampler begins at pure noise (sigma 2²⁰).
    /// Other samplers begin at alpha-bar 2⁻²⁴ (sigma 4096).
    pub on_grid_only: bool,
    /// Whether the sampler computes with the timesteps that it is given, so that they must be
    /// training timesteps. An EDM model is refused then, because its timesteps are `ln(sigma) / 4`.
    ///
    /// Default: false.
    pub training_timesteps: bool,
    /// The sigma at which the last step ends.
    ///
    /// Default: [`FinalSigma::Zero`].
    ///
    /// Some ladders determine the end themselves: [`Ladder::Sigmas`](crate::Ladder::Sigmas), and
    /// [`Shape::KlOptimal`](crate::ladders::Shape::KlOptimal) as in WebUI.
    pub end: FinalSigma,
    /// Whether the ladder is made with one more step and its cleanest rung is left out, as for
    /// WebUI's DPM2, DPM2 a and DPM++ 3M SDE. This does not apply to given sigmas and timesteps.
    ///
    /// Default: false.
    pub drop_next_to_last: bool,
    /// The smallest number of steps that the sampler can make.
    ///
    /// Default: 1.
    pub min_steps: usize,
    /// The scaling in which the sampler runs on a flow model.
    ///
    /// Default: [`NoisePath::Exploding`], in which the sampler need not know about flow models.
    ///
    /// [`NoisePath::Flow`] is correct only for two kinds of samplers:
    /// - samplers that add no noise and use only the slope `(x - denoised) / sigma`;
    /// - samplers with a formula for that path:
    ///   [`LcmBoundary::None`](crate::samplers::LcmBoundary::None) and
    ///   [`EulerAncestral::flow`](crate::samplers::EulerAncestral::flow).
    pub flow: NoisePath,
}

impl Default for Conventions {
    fn default() -> Self {
        Self {
            counting: PointCount::N,
            integer_timesteps: false,
            timestep_rounding: TimestepRounding::Exactly,
            first_x: FirstX::BySpacing,
            on_grid_only: false,
            training_timesteps: false,
            end: FinalSigma::Zero,
            drop_next_to_last: false,
            min_steps: 1,
            flow: NoisePath::Exploding,
        }
    }
}

/// How the model is given the timestep of a sigma between the trained sigmas.
///
/// An EDM model always gets the exact timestep.
///
/// Default: [`TimestepRounding::Exactly`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TimestepRounding {
    /// Unrounded, as in k-diffusion and in diffusers' Euler and Heun.
    #[default]
    Exactly,
    /// Rounded to a whole timestep, half to even, on a Karras ladder, and unrounded on others, as
    /// in diffusers' KDPM2.
    KarrasRounded,
    /// A whole timestep, as in diffusers' `DPMSolverMultistepScheduler`.
    ///
    /// It is truncated on the exponential and the beta (over sigma) ladder and on a flow model.
    /// With cosine betas, it is also truncated on Karras and
    /// [`Shape::Lu`](crate::ladders::Shape::Lu). On all other ladders, it is rounded half to even.
    Whole,
    /// The same as [`Whole`](Self::Whole), without the exception for cosine betas, as in diffusers'
    /// `DPMSolverSinglestepScheduler`, DEIS, SA-Solver and UniPC.
    WholeOnCosineToo,
}

/// The sigma at which the last step ends.
///
/// Default: [`FinalSigma::Zero`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FinalSigma {
    /// Sigma 0, where the result is the model's guess of the clean sample.
    #[default]
    Zero,
    /// The smallest sigma: `final_sigmas_type` `sigma_min` in diffusers.
    ///
    /// On a ladder over timesteps, it is the smallest sigma of the training. On a ladder over
    /// sigmas, and on flow and EDM models, it is the ladder's last rung once more.
    SigmaMin,
}

/// How many points a spacing has for N steps.
///
/// Default: [`PointCount::N`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PointCount {
    /// N points: Euler, Heun and DDIM.
    #[default]
    N,
    /// N + 1 points for leading and linspace, of which the cleanest is dropped: the DPM-Solver
    /// family.
    NPlusOne,
}

/// The factor that turns unit noise into the first x of a diffusion model.
///
/// On a flow model, the factor is 1 in the flow's own scaling. On an EDM model, it is
/// `sqrt(sigma² + 1)`.
///
/// Default: [`FirstX::BySpacing`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FirstX {
    /// `sqrt(sigma² + 1)` on the leading spacing and on shapes over it, and `sigma` on all others:
    /// diffusers' Euler and Heun.
    #[default]
    BySpacing,
    /// `sqrt(sigma² + 1)`, which is unit noise in the variance-preserving scaling: DDIM and DPM++.
    VariancePreserving,
}
