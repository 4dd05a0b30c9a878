use thiserror::Error;

use super::Ladder;

/// A ladder that can't be made.
#[derive(Clone, Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum LadderError {
    /// No steps, or more than the ladder can have, which is usually the number of training
    /// timesteps.
    #[error("steps: expected 1 to {max}, found {steps}")]
    Steps {
        /// The number asked for.
        steps: usize,
        /// The most there can be.
        max: usize,
    },
    /// Fewer steps than the sampler ([`Conventions::min_steps`](crate::Conventions::min_steps)) or the ladder needs.
    #[error("steps: expected at least {min}, found {steps}")]
    TooFew {
        /// The number asked for.
        steps: usize,
        /// The least there have to be.
        min: usize,
    },
    /// A ladder of one's own has another number of rungs.
    #[error("steps: expected {given}, as many as the ladder has rungs, found {steps}")]
    Given {
        /// The number asked for.
        steps: usize,
        /// The rungs of the ladder.
        given: usize,
    },
    /// The sampler needs whole training timesteps, and the ladder leaves them or the model has
    /// none.
    #[error(
        "the sampler needs whole training timesteps: expected a diffusion model and one of the ladders {}",
        on_grid()
    )]
    OffGrid,
    /// The ladder's numbers, or timesteps at all, mean nothing to this kind of model: those too that the sampler computes with
    /// ([`Conventions::training_timesteps`](crate::Conventions::training_timesteps)).
    #[error("{ladder} is not for {model} model")]
    Model {
        /// The ladder's [kind](crate::Ladder::kind), or what else was asked for.
        ladder: &'static str,
        /// What the model is, with its article.
        model: &'static str,
    },
    /// An option of the ladder is out of its range.
    #[error("{option}: expected {expected}, found {found}")]
    Value {
        /// The option.
        option: &'static str,
        /// What it has to be.
        expected: String,
        /// What it is.
        found: f64,
    },
    /// The sigmas that a shape goes between are not finite, not above 0 or not in order.
    #[error(
        "the range of sigmas: expected finite sigmas above 0, the smallest first, found {min} to {max}"
    )]
    Span {
        /// The smallest.
        min: f64,
        /// The largest.
        max: f64,
    },
    /// A run needs one sigma for each timestep and one more, at which it ends.
    #[error(
        "rungs: expected at least one timestep, and one sigma more than timesteps, found {sigmas} sigmas and {timesteps} timesteps"
    )]
    Lengths {
        /// The number of sigmas.
        sigmas: usize,
        /// The number of timesteps.
        timesteps: usize,
    },
    /// A sigma is not finite or not below the sigma before it, or the last sigma is below 0.
    #[error(
        "sigma {index}: expected finite sigmas, each below the one before it and the last at least 0 (of a flow model at most 1), found {sigma}"
    )]
    Sigma {
        /// Its place.
        index: usize,
        /// The value found.
        sigma: f32,
    },
    /// A timestep that the schedule does not have.
    #[error("timestep {index}: expected {min} to {max}, found {timestep}")]
    Timestep {
        /// Its place.
        index: usize,
        /// The value found.
        timestep: f32,
        /// The least.
        min: f32,
        /// The greatest: T - 1 for a diffusion model.
        max: f32,
    },
    /// The scale of the first x is not a finite number above 0.
    #[error("initial scale: expected a finite number above 0, found {0}")]
    InitialScale(f32),
    /// A part of a run without rungs.
    #[error(
        "a part of the run: expected at least one of its {steps} rungs, found {first} to {end}"
    )]
    Part {
        /// The first rung of the part.
        first: usize,
        /// The rung at which it ends.
        end: usize,
        /// The rungs there are.
        steps: usize,
    },
}

/// The names of the ladders that stay on the training timesteps.
fn on_grid() -> String {
    let named = Ladder::NAMED.iter();
    let on_grid = named.filter(|(_, ladder)| ladder.on_grid());
    on_grid
        .map(|(name, _)| *name)
        .collect::<Vec<_>>()
        .join(", ")
}
