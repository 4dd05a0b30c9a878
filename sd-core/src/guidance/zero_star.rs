use serde::{Deserialize, Serialize};

/// CFG-Zero*, <https://arxiv.org/abs/2503.18886>: guidance for flow models, as in diffusers'
/// `ClassifierFreeZeroStarGuidance`.
///
/// As in diffusers, it works on the network's raw outputs, whatever the network predicts. It
/// changes classifier-free guidance in two ways:
///
/// - The unconditional output is multiplied by `<c, u> / |u|²` over all values of a picture, which
///   brings it as close as possible to the conditional output (the paper's optimized scale).
/// - The first steps use an output of zeros (the paper's zero-init), whatever the scale and the
///   interval are. They do not use the negative prompt. A model that predicts noise or flow then
///   leaves x where it is. The model is still called for the prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ZeroStar {
    /// The number of first steps whose output is zeros. 0 turns zero-init off. The paper uses 4 %
    /// of the steps.
    ///
    /// Default: 1, as in diffusers.
    pub zero_steps: usize,
}

impl Default for ZeroStar {
    fn default() -> Self {
        Self { zero_steps: 1 }
    }
}

impl ZeroStar {
    /// Writes the merged raw output of one picture over `conditional`.
    pub(super) fn merge(&self, conditional: &mut [f32], unconditional: &[f32], scale: f32) {
        let (mut product, mut square) = (0.0_f64, 0.0_f64);
        for (&c, &u) in conditional.iter().zip(unconditional) {
            let (c, u) = (f64::from(c), f64::from(u));
            product += c * u;
            square += u * u;
        }
        // diffusers adds this small number, too. It avoids a division by 0 for an output of zeros.
        let factor = (product / (square + 1e-8)) as f32;
        for (c, u) in conditional.iter_mut().zip(unconditional) {
            let u = factor * u;
            *c = u + scale * (*c - u);
        }
    }
}
