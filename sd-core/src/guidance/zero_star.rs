use serde::{Deserialize, Serialize};

/// CFG-Zero*: <https://arxiv.org/abs/2503.18886>, for flow models; diffusers' `ClassifierFreeZeroStarGuidance`. On the network's raw
/// outputs, as there, whatever it predicts.
///
/// The unconditional output is multiplied by what brings it nearest to the conditional one, `<c, u> / |u|²` over all values of a picture
/// (the paper's optimised scale); and the first steps are made with an output of zeros (zero-init), without a look at the negative
/// prompt, whatever the scale and the interval say. Then a model that predicts noise or flow leaves x where it is. (The model is called for the
/// prompt all the same.)
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ZeroStar {
    /// How many of the first steps have an output of zeros. Default 1, as in diffusers; the paper: 4 % of the steps. 0 for none.
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
        // The small number, diffusers' own, is for an output of zeros.
        let factor = (product / (square + 1e-8)) as f32;
        for (c, u) in conditional.iter_mut().zip(unconditional) {
            let u = factor * u;
            *c = u + scale * (*c - u);
        }
    }
}
