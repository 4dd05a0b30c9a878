//! What a model's output is, and how it becomes the denoised sample. The only file that knows.

/// What a model was trained to predict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Prediction {
    /// The noise: `epsilon`, <https://arxiv.org/abs/2006.11239>. Stable Diffusion 1.x, SDXL.
    #[default]
    Epsilon,
    /// The velocity: `v_prediction`, section 2.4 of <https://arxiv.org/abs/2210.02303>. Stable Diffusion 2.x at 768.
    V,
    /// The denoised sample itself: `sample`.
    Sample,
}

impl Prediction {
    /// Turns a model's output into the denoised sample D(x; sigma), in place.
    ///
    /// `output` is what the model made of `x` times [`input_scale`](Self::input_scale). `x` is in the
    /// variance-exploding scaling (a clean sample plus `sigma` times unit noise) and as long as `output`: of two
    /// different lengths, only the first elements up to the shorter one are converted.
    pub fn denoised(self, output: &mut [f32], x: &[f32], sigma: f32) {
        let variance = sigma * sigma + 1.0;
        let (skip, out) = match self {
            Self::Epsilon => (1.0, -sigma),
            Self::V => (1.0 / variance, -sigma / variance.sqrt()),
            Self::Sample => return,
        };
        for (output, x) in output.iter_mut().zip(x) {
            *output = skip * x + out * *output;
        }
    }

    /// What `x` is multiplied by before the model sees it: `1 / sqrt(sigma² + 1)`, back to the variance-preserving
    /// scaling the model was trained in.
    pub fn input_scale(sigma: f32) -> f32 {
        1.0 / (sigma * sigma + 1.0).sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A model that knows the answer: x = clean + sigma * noise, alpha = 1 / sqrt(1 + sigma²), v = alpha * noise -
    /// alpha * sigma * clean. Exact in the reals, so a few roundings of values of size x (up to 15) are left.
    #[test]
    fn every_prediction_of_a_perfect_model_gives_the_clean_sample() {
        let (clean, noise) = ([0.5_f32, -1.25, 0.0], [0.3_f32, 1.0, -0.7]);
        for sigma in [0.03_f32, 1.0, 14.6] {
            let alpha = Prediction::input_scale(sigma);
            let x: Vec<f32> = clean
                .iter()
                .zip(&noise)
                .map(|(c, n)| c + sigma * n)
                .collect();
            let v: Vec<f32> = clean
                .iter()
                .zip(&noise)
                .map(|(c, n)| alpha * n - alpha * sigma * c)
                .collect();
            for (prediction, output) in [
                (Prediction::Epsilon, noise.to_vec()),
                (Prediction::V, v),
                (Prediction::Sample, clean.to_vec()),
            ] {
                let mut denoised = output;
                prediction.denoised(&mut denoised, &x, sigma);
                for (d, c) in denoised.iter().zip(&clean) {
                    assert!(
                        (d - c).abs() < 5e-6,
                        "{prediction:?} at {sigma}: {d} != {c}"
                    );
                }
            }
        }
    }
}
