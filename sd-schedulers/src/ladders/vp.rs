use super::{LadderError, above_zero, in_range, ramp};

/// The continuous schedule of <https://arxiv.org/abs/2011.13456>, at even times from 1 to
/// [`epsilon`](Self::epsilon).
///
/// `sigma² = exp(beta_d u² / 2 + beta_min u) - 1` at the time u, whatever the model's own range
/// is. This is k-diffusion's `get_sigmas_vp`. It does not support flow models.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Vp {
    /// The increase of beta over the whole time, `0.0..=100.0`.
    ///
    /// Default: 19.9.
    pub beta_d: f64,
    /// The beta at time 0, `0.0..=100.0`.
    ///
    /// Default: 0.1.
    pub beta_min: f64,
    /// The time of the last rung, above 0 and at most 1.
    ///
    /// Default: 0.001.
    pub epsilon: f64,
}

impl Vp {
    pub(super) const NAMED: Self = Self {
        beta_d: 19.9,
        beta_min: 0.1,
        epsilon: 1e-3,
    };

    pub(super) fn sigmas(self, steps: usize) -> Result<Vec<f64>, LadderError> {
        let Self {
            beta_d,
            beta_min,
            epsilon,
        } = self;
        in_range("beta_d", beta_d, [0.0, 100.0])?;
        in_range("beta_min", beta_min, [0.0, 100.0])?;
        above_zero("epsilon", epsilon)?;
        in_range("epsilon", epsilon, [0.0, 1.0])?;
        let sigma = |i| {
            let time = 1.0 + ramp(i, steps) * (epsilon - 1.0);
            let integral = beta_d * time * time / 2.0 + beta_min * time;
            integral.exp_m1().sqrt()
        };
        Ok((0..steps).map(sigma).collect())
    }
}

impl Default for Vp {
    fn default() -> Self {
        Self::NAMED
    }
}
