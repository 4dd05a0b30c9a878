use serde::{Deserialize, Serialize};

use crate::ladders::FinalSigma;

/// The quantity that [`DpmSolver`](crate::samplers::DpmSolver) and
/// [`DpmSolverSinglestep`](crate::samplers::DpmSolverSinglestep) integrate: `algorithm_type` of
/// diffusers.
///
/// Default: [`DpmAlgorithm::Denoised`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DpmAlgorithm {
    /// The denoised sample: DPM-Solver++, `dpmsolver++`.
    #[default]
    Denoised,
    /// The noise (x - D) / sigma: DPM-Solver, `dpmsolver`.
    ///
    /// A step is x = x - ∫ sigma(u) noise(lambda + u) du.
    Noise,
    /// The denoised sample, with the noise of the reverse SDE: SDE-DPM-Solver++, `sde-dpmsolver++`.
    ///
    /// A step is x = e^-2h x + 2 ∫ e^(2u-2h) D(lambda + u) du + sigma' sqrt(1 - e^-2h) noise.
    SdeDenoised,
    /// The noise, with the noise of the reverse SDE: SDE-DPM-Solver, `sde-dpmsolver`.
    ///
    /// A step is x = x - 2 ∫ sigma(u) noise(lambda + u) du + sqrt(sigma² - sigma'²) noise.
    /// diffusers has it for multistep only, and fails at order 3.
    SdeNoise,
}

/// The coefficients of a step.
pub(super) struct DpmStep {
    /// The length of the step in lambda.
    pub(super) h: f64,
    /// The factor of x - D in the first-order step.
    pub(super) ratio: f64,
    /// The integrals with 1, u and u² in place of the value, for u from 0 to h.
    pub(super) integrals: [f64; 3],
    /// The deviation of the noise.
    pub(super) up: f64,
}

impl DpmAlgorithm {
    /// Whether the noise is integrated rather than the denoised sample.
    pub(super) fn is_on_noise(self) -> bool {
        matches!(self, Self::Noise | Self::SdeNoise)
    }

    /// Returns the only end of a run that diffusers accepts for this algorithm.
    pub(super) fn end(self) -> FinalSigma {
        if self.is_on_noise() {
            FinalSigma::SigmaMin
        } else {
            FinalSigma::Zero
        }
    }

    pub(super) fn is_stochastic(self) -> bool {
        matches!(self, Self::SdeDenoised | Self::SdeNoise)
    }

    /// Allocates room for noise, if the algorithm adds any.
    pub(super) fn noise_buffer(self, len: usize) -> Vec<f32> {
        vec![0.0; if self.is_stochastic() { len } else { 0 }]
    }

    /// Returns the step between two sigmas. The second must be below the first. It may be 0 for
    /// [`Noise`](Self::Noise).
    pub(super) fn step(self, from: f64, to: f64) -> DpmStep {
        let h = (from / to).ln();
        // It is 2 for the reverse SDE, which goes down twice as fast and up again by its noise.
        let kappa = if self.is_stochastic() { 2.0 } else { 1.0 };
        match self {
            Self::Denoised | Self::SdeDenoised => {
                let constant = -(-kappa * h).exp_m1();
                let line = h - constant / kappa;
                DpmStep {
                    h,
                    ratio: (-kappa * h).exp(),
                    integrals: [constant, line, h * h - 2.0 * line / kappa],
                    up: match self {
                        Self::SdeDenoised => to * constant.sqrt(),
                        _ => 0.0,
                    },
                }
            }
            Self::Noise | Self::SdeNoise => {
                // At sigma 0, h is infinite, but sigma times any power of h is 0.
                let finite = if to > 0.0 { h } else { 0.0 };
                let constant = from - to;
                let line = constant - to * finite;
                let square = 2.0 * line - to * finite * finite;
                DpmStep {
                    h,
                    ratio: 1.0 - kappa * (1.0 - to / from),
                    integrals: [constant, line, square].map(|integral| -kappa * integral),
                    up: match self {
                        Self::SdeNoise => (from * from - to * to).sqrt(),
                        _ => 0.0,
                    },
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The expected values are the integrals of e^(u-1) u^n over u from 0 to 1, and of e^-u u^n.
    #[test]
    fn the_integrals_of_a_step_by_e() {
        let e = 1.0_f64.exp();
        let denoised = DpmAlgorithm::Denoised.step(e, 1.0).integrals;
        let noise = DpmAlgorithm::Noise.step(e, 1.0).integrals;
        let expected = [1.0 - 1.0 / e, 1.0 / e, 1.0 - 2.0 / e];
        let others = [e - 1.0, e - 2.0, 2.0 * e - 5.0];
        for n in 0..3 {
            assert!((denoised[n] - expected[n]).abs() < 1e-15, "{n}");
            assert!((noise[n] + others[n]).abs() < 1e-14, "{n}");
        }
    }

    /// The remaining share of x - D must equal the share that the integral of a constant leaves.
    #[test]
    fn the_first_order_is_the_integral_of_a_constant() {
        use DpmAlgorithm::{Denoised, Noise, SdeDenoised, SdeNoise};
        let (from, to) = (7.0, 3.0);
        for (algorithm, unit) in [
            (Denoised, -1.0),
            (SdeDenoised, -1.0),
            (Noise, 1.0 / from),
            (SdeNoise, 1.0 / from),
        ] {
            let step = algorithm.step(from, to);
            let expected = 1.0 + unit * step.integrals[0];
            assert!((step.ratio - expected).abs() < 1e-15, "{algorithm:?}");
        }
    }
}
