use std::f64::consts::SQRT_2;

use super::steps::add;
use crate::{Path, Run, Rung, Rungs};

/// New noise before each step, which the step then takes off again: lines 4 to 6 of algorithm 2 of <https://arxiv.org/abs/2206.00364>, as
/// in k-diffusion. Default: none.
///
/// A step that leaves a sigma within the window, both ends included, begins at sigma^ = (1 + gamma) sigma and
/// x + s_noise sqrt(sigma^² - sigma²) noise, where gamma = min(s_churn / N, sqrt(2) - 1), N that of the whole
/// run (k-diffusion takes that of the part that an image-to-image run makes). The model is asked there, at the first rung maybe above every
/// sigma it was trained on.
///
/// Noise is drawn only where it is used. k-diffusion, and so WebUI, also draws and drops it in steps outside the window, after
/// which the same seed gives other draws. diffusers' classes that take these options add the noise after they have asked the model,
/// or not at all.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Churn {
    /// How much noise, all steps together; 0 (none, the default) or more, of effect up to (sqrt(2) - 1) N. Anything else is taken for 0.
    /// WebUI: 0 to 100.
    pub s_churn: f32,
    /// The least sigma at which noise is added. Default 0. WebUI: 0 to 10.
    pub s_tmin: f32,
    /// The greatest sigma at which noise is added. Default infinity. WebUI: 0 to 999, where 0 stands for infinity; here it does not.
    pub s_tmax: f32,
    /// The noise's standard deviation; default 1, above it makes up for detail that a model loses. Below 0 it is taken for 0.
    /// WebUI: 0 to 1.1.
    pub s_noise: f32,
}

impl Default for Churn {
    fn default() -> Self {
        Self {
            s_churn: 0.0,
            s_tmin: 0.0,
            s_tmax: f32::INFINITY,
            s_noise: 1.0,
        }
    }
}

impl Churn {
    fn is_on(&self) -> bool {
        self.s_churn > 0.0
    }

    /// The scaling for a flow model: added noise would leave the straight path.
    pub(super) fn path(&self) -> Path {
        if self.is_on() {
            Path::Exploding
        } else {
            Path::Flow
        }
    }

    /// Room for the noise of `len` values, none where there will be no noise.
    pub(super) fn buffer(&self, len: usize) -> Vec<f32> {
        let len = if self.is_on() { len } else { 0 };
        vec![0.0; len]
    }

    /// Takes `x` from rung `at` up to where the step begins, and says where that is. `noise` is of [`buffer`](Self::buffer).
    pub(super) fn raise(
        &self,
        x: &mut [f32],
        at: Rung,
        rungs: &Rungs,
        noise: &mut [f32],
        run: &mut dyn Run,
    ) -> Rung {
        if !self.is_on() || !(self.s_tmin..=self.s_tmax).contains(&at.sigma) {
            return at;
        }
        let gamma = (f64::from(self.s_churn) / rungs.steps_of_whole() as f64).min(SQRT_2 - 1.0);
        let sigma = f64::from(at.sigma);
        let raised = rungs.at(at.index, (sigma * (1.0 + gamma)) as f32);
        // sigma^² - sigma², without the difference.
        let factor = f64::from(self.s_noise) * sigma * (gamma * (2.0 + gamma)).sqrt();
        if factor > 0.0 {
            run.noise(at.sigma, raised.sigma, noise);
            add(x, factor, noise);
        }
        raised
    }
}
