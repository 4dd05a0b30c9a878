use thiserror::Error;

use super::Ladder;

/// A ladder that cannot be made.
#[derive(Clone, Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum LadderError {
    /// The number of steps is 0, or more than the ladder can have. The maximum is usually the
    /// number of training timesteps.
    #[error("steps: expected 1 to {max}, found {steps}")]
    Steps {
        /// The requested number of steps.
        steps: usize,
        /// The largest number of steps.
        max: usize,
    },
    /// The sampler ([`Conventions::min_steps`](crate::ladders::Conventions::min_steps)) or the
    /// ladder needs more steps.
    #[error("steps: expected at least {min}, found {steps}")]
    TooFew {
        /// The requested number of steps.
        steps: usize,
        /// The smallest number of steps.
        min: usize,
    },
    /// A ladder of given levels has another number of rungs.
    #[error("steps: expected {given}, as many as the ladder has rungs, found {steps}")]
    Given {
        /// The requested number of steps.
        steps: usize,
        /// The number of rungs of the ladder.
        given: usize,
    },
    /// The sampler needs whole training timesteps, but the ladder leaves them or the model has
    /// none.
    #[error(
        "the sampler needs whole training timesteps: expected a diffusion model and one of the ladders {}",
        on_grid()
    )]
    OffGrid,
    /// The ladder has no meaning for this kind of model.
    ///
    /// The same error reports a sampler that computes with training timesteps
    /// ([`Conventions::training_timesteps`](crate::ladders::Conventions::training_timesteps)) and a
    /// part of a run by timesteps, where the model has no training timesteps.
    #[error("{ladder} does not support {model} model")]
    Model {
        /// The ladder's [kind](crate::Ladder::kind), or the other thing that was asked for.
        ladder: &'static str,
        /// The kind of model, with its article.
        model: &'static str,
    },
    /// An option of the ladder is out of range.
    #[error("{option}: expected {expected}, found {found}")]
    Value {
        /// The name of the option.
        option: &'static str,
        /// The expected value.
        expected: String,
        /// The value of the option.
        found: f64,
    },
    /// The range of sigmas of a shape is not finite, not above 0 or not in order.
    #[error(
        "range of sigmas: expected two finite sigmas above 0, the smaller first, found {min} and {max}"
    )]
    Span {
        /// The smallest sigma.
        min: f64,
        /// The largest sigma.
        max: f64,
    },
    /// The numbers of sigmas and timesteps do not match. A run needs one sigma for each timestep,
    /// and one more at which it ends.
    #[error(
        "rungs: expected at least one timestep, and one sigma more than timesteps, found {sigmas} sigmas and {timesteps} timesteps"
    )]
    Lengths {
        /// The number of sigmas.
        sigmas: usize,
        /// The number of timesteps.
        timesteps: usize,
    },
    /// A sigma is not finite, not above 0 or not below the sigma before it. Only the last sigma may
    /// be 0 or equal to the one before it. On a flow model, no sigma may be above 1.
    #[error(
        "sigma {index}: expected finite sigmas, each below the one before it and the last at least 0 (at most 1 on a flow model), found {sigma}"
    )]
    Sigma {
        /// The index of the sigma.
        index: usize,
        /// The sigma.
        sigma: f32,
    },
    /// A timestep is outside the range of the schedule.
    #[error("timestep {index}: expected {min} to {max}, found {timestep}")]
    Timestep {
        /// The index of the timestep.
        index: usize,
        /// The timestep.
        timestep: f32,
        /// The smallest possible timestep.
        min: f32,
        /// The largest possible timestep: T - 1 for a diffusion model.
        max: f32,
    },
    /// The scale of the first x is not finite or not above 0.
    #[error("initial scale: expected a finite number above 0, found {0}")]
    InitialScale(f32),
    /// A part of a run has no rungs, or ends after the run.
    #[error(
        "part of the run: expected at least one of its {steps} rungs and no others, found the rungs {first}..{end}"
    )]
    Part {
        /// The first rung of the part.
        first: usize,
        /// The rung at which the part ends.
        end: usize,
        /// The number of rungs of the run.
        steps: usize,
    },
}

/// Returns the names of the ladders that stay on the training timesteps.
fn on_grid() -> String {
    let named = Ladder::NAMED.iter();
    let on_grid = named.filter(|(_, ladder)| ladder.on_grid());
    on_grid
        .map(|(name, _)| *name)
        .collect::<Vec<_>>()
        .join(", ")
}
