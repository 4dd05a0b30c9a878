//! The meaning of a model's output, and its conversion to the denoised sample. No other file
//! depends on the kind of output.

use crate::{Rung, ladders::NoisePath};

/// What a model was trained to predict.
///
/// The names in backticks are the values of `prediction_type` in diffusers.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Prediction {
    /// `epsilon`: the noise, from <https://arxiv.org/abs/2006.11239>. Stable Diffusion 1.x and SDXL
    /// predict it.
    #[default]
    Epsilon,
    /// `v_prediction`: the velocity, section 2.4 of <https://arxiv.org/abs/2210.02303>. Stable
    /// Diffusion 2.x at 768 pixels predicts it.
    V,
    /// `sample`: the denoised sample itself.
    Sample,
    /// `flow_prediction`: the velocity of the straight path, noise minus clean sample, from
    /// <https://arxiv.org/abs/2209.03003>. SD 3 and FLUX predict it.
    Flow,
    /// The output of a network preconditioned as in table 1 of <https://arxiv.org/abs/2206.00364>.
    /// Playground 2.5 is such a model, and the `EDM…` classes of diffusers are for it.
    Edm {
        /// The standard deviation of the data, above 0. The paper uses 0.5.
        sigma_data: f32,
        /// Whether the output has the sign of v (`v_prediction`) instead of the paper's sign
        /// (`epsilon`).
        v: bool,
    },
}

impl Prediction {
    /// Converts a model's output to the denoised sample D(x; sigma), in place.
    ///
    /// `output` is the model's output for `x` times [`input_scale`](Self::input_scale). `x` is in
    /// the scaling of `at.path` and as long as `output`. If the lengths differ, only the elements
    /// up to the shorter length are converted.
    pub fn denoised(self, output: &mut [f32], x: &[f32], at: Rung) {
        let sigma = at.sigma;
        let variance = sigma * sigma + 1.0;
        let (skip, out) = match (self, at.path) {
            (Self::Epsilon, _) => (1.0, -sigma),
            (Self::V, _) => (1.0 / variance, -sigma / variance.sqrt()),
            (Self::Sample, _) => return,
            (Self::Flow, NoisePath::Flow) => (1.0, -sigma),
            (Self::Flow, NoisePath::Exploding) => (1.0 / (1.0 + sigma), -sigma / (1.0 + sigma)),
            (Self::Edm { sigma_data, v }, _) => {
                let (data, variance) = (
                    sigma_data * sigma_data,
                    sigma * sigma + sigma_data * sigma_data,
                );
                let out = sigma * sigma_data / variance.sqrt();
                (data / variance, if v { -out } else { out })
            }
        };
        for (output, x) in output.iter_mut().zip(x) {
            *output = skip * x + out * *output;
        }
    }

    /// Returns the factor that scales `x` for the model's input.
    ///
    /// The factor converts `x` to the scaling that the model was trained in. It is
    /// `1 / sqrt(sigma² + 1)` for a variance-preserving model and 1 on the straight path.
    pub fn input_scale(self, at: Rung) -> f32 {
        let sigma = at.sigma;
        match (self, at.path) {
            (Self::Epsilon | Self::V | Self::Sample, _) => 1.0 / (sigma * sigma + 1.0).sqrt(),
            (Self::Flow, NoisePath::Flow) => 1.0,
            (Self::Flow, NoisePath::Exploding) => 1.0 / (1.0 + sigma),
            (Self::Edm { sigma_data, .. }, _) => {
                1.0 / (sigma * sigma + sigma_data * sigma_data).sqrt()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A model that knows the answer: x = clean + sigma * noise, alpha = 1 / sqrt(1 + sigma²) and
    /// v = alpha * noise - alpha * sigma * clean. The conversion is exact in real numbers, so the
    /// tolerance covers a few roundings of values of the size of x (up to 15).
    #[test]
    fn every_prediction_of_a_perfect_model_gives_the_clean_sample() {
        let (clean, noise) = ([0.5_f32, -1.25, 0.0], [0.3_f32, 1.0, -0.7]);
        let of_both = |of: &dyn Fn(f32, f32) -> f32| -> Vec<f32> {
            let both = clean.iter().zip(&noise);
            both.map(|(&clean, &noise)| of(clean, noise)).collect()
        };
        for sigma in [0.03_f32, 1.0, 14.6] {
            let at = Rung {
                index: 0,
                sigma,
                timestep: 0.0,
                path: NoisePath::Exploding,
            };
            let alpha = Prediction::Epsilon.input_scale(at);
            // c_skip x + c_out F = clean for the F of EDM's table 1.
            let (data, variance) = (0.25, sigma * sigma + 0.25);
            let edm = of_both(&|c, n| {
                (c - data / variance * (c + sigma * n)) * variance.sqrt() / (0.5 * sigma)
            });
            let x = of_both(&|c, n| c + sigma * n);
            let v = of_both(&|c, n| alpha * n - alpha * sigma * c);
            for (prediction, output) in [
                (Prediction::Epsilon, noise.to_vec()),
                (Prediction::V, v),
                (Prediction::Sample, clean.to_vec()),
                (Prediction::Flow, of_both(&|c, n| n - c)),
                (
                    Prediction::Edm {
                        sigma_data: 0.5,
                        v: true,
                    },
                    edm.iter().map(|f| -f).collect(),
                ),
                (
                    Prediction::Edm {
                        sigma_data: 0.5,
                        v: false,
                    },
                    edm,
                ),
            ] {
                let mut denoised = output;
                prediction.denoised(&mut denoised, &x, at);
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
