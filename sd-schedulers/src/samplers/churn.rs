use std::f64::consts::SQRT_2;

use serde::{Deserialize, Serialize};

use super::steps::add;
use crate::{Run, Rung, Rungs, ladders::NoisePath};

/// Fresh noise before each step, which the step then removes: lines 4 to 6 of algorithm 2 of
/// <https://arxiv.org/abs/2206.00364>, as in k-diffusion.
///
/// A step from a sigma within the window, both ends included, begins at sigma^ = (1 + gamma) sigma
/// and x + s_noise sqrt(sigma^² - sigma²) noise. Here gamma = min(s_churn / N, sqrt(2) - 1), and
/// N is the number of steps of the whole run. (k-diffusion uses the number of steps of the part
/// that an image-to-image run makes.) The model is called at sigma^, which at the first rung may be
/// above every sigma that it was trained on.
///
/// Noise is drawn only where it is used. k-diffusion, and therefore WebUI, also draws noise in
/// steps outside the window and drops it, so the same seed gives other noise afterwards. The
/// diffusers classes with these options add the noise after they have called the model, or not at
/// all.
///
/// Default: no noise.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Churn {
    /// The amount of noise over all steps, 0 or more. Values up to (sqrt(2) - 1) N have an effect.
    /// A negative value or NaN counts as 0. WebUI: `0.0..=100.0`.
    ///
    /// Default: 0.
    pub s_churn: f32,
    /// The smallest sigma at which noise is added. WebUI: `0.0..=10.0`.
    ///
    /// Default: 0.
    pub s_tmin: f32,
    /// The largest sigma at which noise is added. WebUI: `0.0..=999.0`, where 0 stands for
    /// infinity; here it does not.
    ///
    /// Default: infinity, which is `"inf"` in serde.
    #[serde(with = "number")]
    pub s_tmax: f32,
    /// The standard deviation of the noise. A value above 1 makes up for detail that a model loses.
    /// A value below 0 counts as 0. WebUI: `0.0..=1.1`.
    ///
    /// Default: 1.
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

    /// Returns whether noise is added at any sigma.
    pub(super) fn adds_noise(&self) -> bool {
        self.is_on() && self.s_noise > 0.0
    }

    /// Returns the scaling for a flow model. Added noise would leave the straight path.
    pub(super) fn path(&self) -> NoisePath {
        if self.is_on() {
            NoisePath::Exploding
        } else {
            NoisePath::Flow
        }
    }

    /// Allocates room for `len` values of noise, or none if there will be no noise.
    pub(super) fn buffer(&self, len: usize) -> Vec<f32> {
        let len = if self.is_on() { len } else { 0 };
        vec![0.0; len]
    }

    /// Moves `x` from rung `at` up to the sigma where the step begins, and returns that noise
    /// level. `noise` comes from [`buffer`](Self::buffer).
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
        // This is sigma^² - sigma², without the difference.
        let factor = f64::from(self.s_noise) * sigma * (gamma * (2.0 + gamma)).sqrt();
        if factor > 0.0 {
            run.noise(at.sigma, raised.sigma, noise);
            add(x, factor, noise);
        }
        raised
    }
}

/// The serde form of a number that may be infinite, which JSON has no number for.
mod number {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Written {
        Number(f32),
        Name(String),
    }

    pub fn serialize<S: Serializer>(value: &f32, serializer: S) -> Result<S::Ok, S::Error> {
        if value.is_finite() {
            value.serialize(serializer)
        } else {
            value.to_string().serialize(serializer)
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f32, D::Error> {
        match Written::deserialize(deserializer)? {
            Written::Number(value) => Ok(value),
            Written::Name(name) => name.parse().map_err(D::Error::custom),
        }
    }
}
