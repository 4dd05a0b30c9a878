//! Where noise comes from.

mod brownian;
mod cards;
mod kind;
mod numpy;
mod philox;
mod rand;
mod seed_sequence;
mod seeds;
mod slerp;
mod torch;

pub use self::rand::RandNormal;
pub use brownian::BrownianTree;
pub use cards::{CARDS, cuda_threads};
pub use kind::NoiseKind;
pub use numpy::NumpyRng;
pub use philox::Philox;
pub use seeds::{Seeds, Variation};
pub use slerp::Slerp;
pub use torch::TorchRng;

use thiserror::Error;

/// A source of unit normal noise.
pub trait NoiseSource {
    /// Fills `out` with independent values of mean 0 and variance 1, and moves on.
    fn fill(&mut self, out: &mut [f32]);

    /// As [`fill`](Self::fill), for the way from sigma `from` to `to`, in either direction. Default: [`fill`](Self::fill).
    fn between(&mut self, from: f32, to: f32, out: &mut [f32]) {
        let _ = (from, to);
        self.fill(out);
    }
}

impl<N: NoiseSource + ?Sized> NoiseSource for Box<N> {
    fn fill(&mut self, out: &mut [f32]) {
        (**self).fill(out);
    }

    fn between(&mut self, from: f32, to: f32, out: &mut [f32]) {
        (**self).between(from, to, out);
    }
}

/// Noise that can't be made.
#[derive(Clone, Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum NoiseError {
    /// numpy refuses the seed: of the picture, of its variation, or the one that the sampler's noise has.
    #[error("seed: numpy's generator takes 0 to 4294967295, found {0}")]
    NumpySeed(u64),
    /// The strength of a variation is not between 0 and 1.
    #[error("strength of the variation: expected 0 to 1, found {0}")]
    Strength(f32),
    /// The size to resize from is 0, or so large that its noise is not worth the memory.
    #[error("size to resize from: expected 1 to {max} latents each way, found {height} × {width}")]
    ResizeFrom {
        /// Height in latents.
        height: usize,
        /// Width in latents.
        width: usize,
        /// The greatest height and width.
        max: usize,
    },
    /// The values do not fill the shape.
    #[error("noise: expected values of shape {shape:?}, found {found} values")]
    Length {
        /// Channels, height and width.
        shape: [usize; 3],
        /// The number of values.
        found: usize,
    },
    /// A Brownian path needs a finite range of sigmas.
    #[error("sigmas of a Brownian tree: expected from 0 up to {limit}, found {min} to {max}")]
    Range {
        /// The least sigma.
        min: f32,
        /// The greatest sigma.
        max: f32,
        /// What the greatest may be.
        limit: f32,
    },
}

/// The number of values of a shape, if there can be so many.
fn volume(shape: [usize; 3]) -> Option<usize> {
    shape.iter().try_fold(1, |n: usize, &d| n.checked_mul(d))
}

/// That `found` values fill the shape.
fn check_length(shape: [usize; 3], found: usize) -> Result<(), NoiseError> {
    match volume(shape) {
        Some(expected) if expected == found => Ok(()),
        _ => Err(NoiseError::Length { shape, found }),
    }
}
