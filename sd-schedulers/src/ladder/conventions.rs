//! What a sampler says of the rungs that it wants.

use crate::Path;

/// How a sampler counts and scales, where reference implementations of different samplers differ.
///
/// The default is k-diffusion's, so WebUI's, and that of diffusers' Euler: N points, nothing rounded, a first x of sigma times noise (but on
/// the leading spacing, which k-diffusion lacks: [`FirstX::BySpacing`]), an end at sigma 0, any ladder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conventions {
    /// How many points a spacing has.
    pub counting: Counting,
    /// Whether linspace's timesteps are rounded (half to even) to whole ones. Default false.
    pub integer_timesteps: bool,
    /// How timesteps that no spacing made are told to the model. Sigmas are not touched.
    pub told: Told,
    /// What the first x is scaled by.
    pub first_x: FirstX,
    /// Whether the sampler can't leave the whole training timesteps of a diffusion model, as ladders over sigma do: see
    /// [`Ladder::on_grid`](crate::Ladder::on_grid). Such a sampler also begins a schedule of zero terminal SNR at pure noise (sigma 2²⁰),
    /// where others take alpha-bar 2⁻²⁴ (sigma 4096). Default false.
    pub on_grid_only: bool,
    /// Whether the sampler computes with the timesteps that it is told, which then have to be those of a training: an EDM model, whose are
    /// ln(sigma) / 4, is refused. Default false.
    pub training_timesteps: bool,
    /// Which sigma the last step ends at. A ladder that says so itself ([`Ladder::Sigmas`](crate::Ladder::Sigmas), WebUI's
    /// [`Shape::KlOptimal`](crate::Shape::KlOptimal)) ends there.
    pub end: End,
    /// Whether a ladder of one step more is made and its cleanest rung left out: WebUI's DPM2, DPM2 a, DPM++ 3M SDE. Not of sigmas and
    /// timesteps of one's own. Default false.
    pub drop_next_to_last: bool,
    /// The least number of steps that the sampler can make. Default 1.
    pub min_steps: usize,
    /// The scaling in which the sampler runs on a flow model. Default [`Path::Exploding`]: the sampler need not know of flow models. On
    /// [`Path::Flow`] only a sampler is right that adds no noise and uses nothing but the slope `(x - denoised) / sigma`, or that has a
    /// formula of that path ([`LcmBoundary::None`](crate::LcmBoundary::None), [`EulerAncestral::flow`](crate::EulerAncestral::flow)).
    pub flow: Path,
}

impl Default for Conventions {
    fn default() -> Self {
        Self {
            counting: Counting::N,
            integer_timesteps: false,
            told: Told::Exactly,
            first_x: FirstX::BySpacing,
            on_grid_only: false,
            training_timesteps: false,
            end: End::Zero,
            drop_next_to_last: false,
            min_steps: 1,
            flow: Path::Exploding,
        }
    }
}

/// How the timestep of a sigma between those of the training is told to the model. An EDM model is always told it exactly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Told {
    /// As it is: k-diffusion, diffusers' Euler and Heun.
    #[default]
    Exactly,
    /// On a Karras ladder rounded to a whole one, half to even; on others as it is: diffusers' KDPM2.
    KarrasRounded,
    /// Whole: cut off after the point on the exponential and the (sigma) beta ladder and on a flow model, on a cosine schedule also on
    /// Karras and [`Shape::Lu`](crate::Shape::Lu); rounded half to even on all others. diffusers' `DPMSolverMultistepScheduler`, which has
    /// just these ladders.
    Whole,
    /// [`Whole`](Self::Whole), a cosine schedule being no exception: diffusers' `DPMSolverSinglestepScheduler`, DEIS, SA-Solver and UniPC.
    WholeOnCosineToo,
}

/// Which sigma the last step ends at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum End {
    /// 0: at the model's guess of the clean sample.
    #[default]
    Zero,
    /// On a ladder over timesteps the smallest sigma of the training, on one over sigmas and on flow and EDM models its last rung once more:
    /// `final_sigmas_type` `sigma_min`.
    SigmaMin,
}

/// How many points a spacing has for N steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Counting {
    /// N: Euler, Heun, DDIM.
    #[default]
    N,
    /// N + 1 with the cleanest dropped, for leading and linspace: the DPM-Solver family.
    NPlusOne,
}

/// What unit noise is multiplied by to make the first x of a diffusion model. On a flow model it is 1 in the flow's own scaling, on an EDM
/// model `sqrt(sigma² + 1)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FirstX {
    /// `sqrt(sigma² + 1)` on the leading spacing and shapes over it, `sigma` on all others: diffusers' Euler and Heun.
    #[default]
    BySpacing,
    /// `sqrt(sigma² + 1)`, which is unit noise in the variance-preserving scaling: DDIM and DPM++.
    VariancePreserving,
}
