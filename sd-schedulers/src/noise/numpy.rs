use rand_mt::Mt;

use super::NoiseSource;

/// The noise of `numpy.random.RandomState(seed).randn`, rounded to float32, with which diffusers'
/// old ONNX pipelines begin.
///
/// It uses a Mersenne Twister (MT19937), uniform values of 53 bits and the polar method, in
/// float64. The method is from Marsaglia and Bray, "A convenient method for generating normal
/// variables", 1964, <https://doi.org/10.1137/1006063>.
///
/// The values are equal bit for bit if the platform's `ln` is correct to 1 unit in the last place
/// of a float64. Two halves of a draw equal the whole.
///
/// Those pipelines pass no generator to the scheduler. The noise that their samplers add is
/// therefore torch's, without a seed.
#[derive(Clone, Debug)]
pub struct NumpyRng {
    twister: Mt,
    waiting: Option<f64>,
}

impl NumpyRng {
    /// Returns the generator of `numpy.random.RandomState(seed)`.
    pub fn new(seed: u32) -> Self {
        Self {
            twister: Mt::new(seed),
            waiting: None,
        }
    }

    /// Draws a uniform value in [0, 1), in steps of 2⁻⁵³. The first 32-bit draw is the high
    /// part.
    fn uniform(&mut self) -> f64 {
        let high = f64::from(self.twister.next_u32() >> 5);
        let low = f64::from(self.twister.next_u32() >> 6);
        (high * f64::from(1u32 << 26) + low) / (1u64 << 53) as f64
    }

    fn normal(&mut self) -> f64 {
        if let Some(value) = self.waiting.take() {
            return value;
        }
        loop {
            let x = 2.0 * self.uniform() - 1.0;
            let y = 2.0 * self.uniform() - 1.0;
            let square = x * x + y * y;
            if square > 0.0 && square < 1.0 {
                let scale = (-2.0 * square.ln() / square).sqrt();
                self.waiting = Some(scale * x);
                return scale * y;
            }
        }
    }
}

impl NoiseSource for NumpyRng {
    fn fill(&mut self, out: &mut [f32]) {
        out.fill_with(|| self.normal() as f32);
    }
}
