//! Sources of noise.
//!
//! A [`NoiseSource`] fills a slice with unit normal noise. [`NoiseKind`] has the generators of
//! torch (on a CPU and on CUDA), WebUI, numpy and `rand`. [`Seeds`] adds variations and other
//! sizes. [`BrownianTree`] keeps one path of noise for any number of steps.

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
    /// Fills `out` with independent values of mean 0 and variance 1. The next call continues the
    /// sequence.
    fn fill(&mut self, out: &mut [f32]);

    /// Fills `out` with noise for the step from sigma `from` to sigma `to`, in either direction.
    ///
    /// Default: the same as [`fill`](Self::fill).
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

/// Noise that cannot be made.
#[derive(Clone, Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum NoiseError {
    /// numpy refuses the seed of the picture, of its variation or of the sampler's noise.
    #[error("seed for numpy's generator: expected 0 to 4294967295, found {0}")]
    NumpySeed(u64),
    /// The strength of a variation is not in `0.0..=1.0`.
    #[error("strength of the variation: expected 0 to 1, found {0}")]
    Strength(f32),
    /// The size to resize from is 0, or so large that its noise would need too much memory.
    #[error("size to resize from: expected 1 to {max} latents per side, found {height} × {width}")]
    ResizeFrom {
        /// The height in latents.
        height: usize,
        /// The width in latents.
        width: usize,
        /// The largest height and width.
        max: usize,
    },
    /// The number of values does not fit the shape.
    #[error("noise: expected values of shape {shape:?}, found {found} values")]
    Length {
        /// The channels, height and width.
        shape: [usize; 3],
        /// The number of values.
        found: usize,
    },
    /// The range of sigmas of a Brownian path is empty, below 0 or too large.
    #[error("sigmas of a Brownian tree: expected a range from 0 to {limit}, found {min} to {max}")]
    Range {
        /// The smallest sigma.
        min: f32,
        /// The largest sigma.
        max: f32,
        /// The largest sigma that is possible.
        limit: f32,
    },
}

/// Returns the number of values of a shape, or `None` if it overflows.
fn volume(shape: [usize; 3]) -> Option<usize> {
    shape.iter().try_fold(1, |n: usize, &d| n.checked_mul(d))
}

/// Checks that `found` values fill the shape.
fn check_length(shape: [usize; 3], found: usize) -> Result<(), NoiseError> {
    match volume(shape) {
        Some(expected) if expected == found => Ok(()),
        _ => Err(NoiseError::Length { shape, found }),
    }
}
