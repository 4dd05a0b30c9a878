use serde::{Deserialize, Serialize};

use super::Moment;

/// Adaptive projected guidance, APG: algorithm 1 of <https://arxiv.org/abs/2410.02416>, diffusers' `AdaptiveProjectedGuidance`.
/// Against burnt colours and hard contrasts at large scales, which then can be larger still.
///
/// The update is what the conditional sample has over the unconditional one, plus `momentum` times the update before; if it is longer than
/// `norm_threshold`, it is made that long. Of its part along the conditional sample, which makes colours burn, the share `eta` is
/// kept. Lengths and directions are those of all values of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Apg {
    /// How much of the part along the conditional sample is kept: 0, the default and the paper's, is nothing, 1 all of it, as in
    /// classifier-free guidance.
    pub eta: f32,
    /// The greatest length of an update; 0 for any. Default 15, diffusers' `adaptive_projected_guidance_rescale`. The length grows with the
    /// square root of the number of values: this is for latents of about 4 × 128 × 128.
    pub norm_threshold: f32,
    /// How much of the update before is added, that one with what was added to it. Below 0 it pushes away from where the last ones went. Default
    /// -0.5; 0 is diffusers' default, none.
    pub momentum: f32,
    /// Of what the two samples are. Default [`ApgForm::Denoised`].
    pub form: ApgForm,
}

/// What [`Apg`] calls a sample.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ApgForm {
    /// The denoised one, and the guided sample is `conditional + (scale − 1) · update`: the paper's. The same for a model whatever it
    /// predicts.
    #[default]
    Denoised,
    /// The network's raw output, and the guided one is `unconditional + scale · update`: diffusers'.
    Raw,
}

impl Default for Apg {
    fn default() -> Self {
        Self {
            eta: 0.0,
            norm_threshold: 15.0,
            momentum: -0.5,
            form: ApgForm::Denoised,
        }
    }
}

impl Apg {
    pub(super) fn is_usable(&self) -> bool {
        let finite = [self.eta, self.momentum, self.norm_threshold].map(f32::is_finite);
        finite == [true; 3] && self.norm_threshold >= 0.0
    }

    /// Writes the merged raw output of one picture over `conditional`. `last` is the update before.
    pub(super) fn merge(
        &self,
        conditional: &mut [f32],
        unconditional: &[f32],
        scale: f32,
        at: &Moment<'_>,
        last: &mut Vec<f32>,
    ) {
        // The sample of a raw output.
        let [skip, out] = match self.form {
            ApgForm::Denoised => at.coefficients(),
            ApgForm::Raw => [0.0, 1.0],
        };
        if out == 0.0 {
            // At sigma 0 the sample is x, whatever the model says.
            return;
        }
        last.resize(conditional.len(), 0.0);
        let (mut length, mut along, mut square) = (0.0_f64, 0.0_f64, 0.0_f64);
        let pairs = conditional.iter().zip(unconditional);
        for (((c, u), x), last) in pairs.zip(at.x).zip(last.iter_mut()) {
            *last = out * (c - u) + self.momentum * *last;
            let (sample, update) = (f64::from(skip * x + out * c), f64::from(*last));
            length += update * update;
            along += update * sample;
            square += sample * sample;
        }
        let length = length.sqrt();
        let threshold = f64::from(self.norm_threshold);
        let shorter = if threshold > 0.0 && length > threshold {
            threshold / length
        } else {
            1.0
        };
        // How much of the conditional sample is in the update, less what of it is kept.
        let less = if square > 0.0 {
            (1.0 - f64::from(self.eta)) * along / square
        } else {
            0.0
        };
        let (shorter, less) = (shorter as f32, less as f32);
        let pairs = conditional.iter_mut().zip(unconditional);
        for (((c, u), x), update) in pairs.zip(at.x).zip(&*last) {
            let update = shorter * (update - less * (skip * x + out * *c));
            *c = match self.form {
                ApgForm::Denoised => *c + (scale - 1.0) * update / out,
                ApgForm::Raw => u + scale * update,
            };
        }
    }
}
