//! Where noise comes from.

mod rand;
mod torch;

pub use self::rand::RandNormal;
pub use torch::TorchRng;

/// A source of unit normal noise.
pub trait NoiseSource {
    /// Fills `out` with independent values of mean 0 and variance 1, and moves on.
    fn fill(&mut self, out: &mut [f32]);
}

impl<N: NoiseSource + ?Sized> NoiseSource for Box<N> {
    fn fill(&mut self, out: &mut [f32]) {
        (**self).fill(out);
    }
}
