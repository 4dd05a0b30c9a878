use rand::Rng;
use rand_distr::{Distribution, StandardNormal};

use super::NoiseSource;

/// Noise from any generator of the `rand` crate, by the ziggurat method of `rand_distr`.
///
/// The same seed gives the same picture for as long as the generator and `rand_distr` keep their
/// values. `rand` documents which generators promise that; `StdRng` does not. For the seeds of
/// Python programs, see [`TorchRng`](crate::noise::TorchRng).
#[derive(Clone, Debug)]
pub struct RandNormal<R>(R);

impl<R: Rng> RandNormal<R> {
    /// Wraps `rng`. Pass a seeded generator for a picture that can be made again.
    pub fn new(rng: R) -> Self {
        Self(rng)
    }
}

impl<R: Rng> NoiseSource for RandNormal<R> {
    fn fill(&mut self, out: &mut [f32]) {
        out.fill_with(|| StandardNormal.sample(&mut self.0));
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    fn draw(seed: u64) -> Vec<f32> {
        let mut out = vec![0.0; 100_000];
        RandNormal::new(StdRng::seed_from_u64(seed)).fill(&mut out);
        out
    }

    /// For 100,000 values, the mean has a standard deviation of 0.0032 and the variance one of
    /// 0.0045. The bounds are five standard deviations.
    #[test]
    fn is_unit_normal_and_seeded() {
        let values = draw(1);
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / 1e5;
        let variance = values
            .iter()
            .map(|&v| (f64::from(v) - mean).powi(2))
            .sum::<f64>()
            / 1e5;
        assert!(
            mean.abs() < 0.016 && (variance - 1.0).abs() < 0.023,
            "{mean} {variance}"
        );
        assert_eq!(values, draw(1));
        assert_ne!(values, draw(2));
    }
}
