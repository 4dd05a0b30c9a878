use serde::{Deserialize, Serialize};

use super::GuidanceStep;

/// Adaptive projected guidance (APG): algorithm 1 of <https://arxiv.org/abs/2410.02416>, diffusers'
/// `AdaptiveProjectedGuidance`. It prevents burnt colours and hard contrasts at large guidance
/// scales, so that the scale can be larger.
///
/// The update is the conditional sample minus the unconditional sample, plus `momentum` times the
/// previous update. An update longer than `norm_threshold` is shortened to that length. The
/// component of the update that is parallel to the conditional sample burns the colours, and is
/// multiplied by `eta`. Lengths and directions are taken over all values of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Apg {
    /// The factor for the component parallel to the conditional sample. 0 removes the component,
    /// and 1 keeps it all, as in classifier-free guidance.
    ///
    /// Default: 0, as in the paper.
    pub eta: f32,
    /// The largest length of an update, 0 or more. 0 means no limit. The length grows with the
    /// square root of the number of values; the default suits latents of about 4 × 128 × 128.
    ///
    /// Default: 15, as diffusers' `adaptive_projected_guidance_rescale`.
    pub norm_threshold: f32,
    /// The factor by which the previous update is added to the current one. The previous update
    /// includes its own momentum. A negative factor pushes away from the direction of the last
    /// updates.
    ///
    /// Default: -0.5. diffusers' default is 0, no momentum.
    pub momentum: f32,
    /// The kind of sample that is compared.
    ///
    /// Default: [`ApgForm::Denoised`].
    pub form: ApgForm,
}

/// The samples that [`Apg`] compares.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ApgForm {
    /// The denoised samples, as in the paper. The guided sample is
    /// `conditional + (scale - 1) · update`. The result does not depend on what the model
    /// predicts.
    #[default]
    Denoised,
    /// The network's raw outputs, as in diffusers. The guided output is
    /// `unconditional + scale · update`.
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

    /// Writes the merged raw output of one picture over `conditional`. `last` is the previous
    /// update.
    pub(super) fn merge(
        &self,
        conditional: &mut [f32],
        unconditional: &[f32],
        scale: f32,
        at: &GuidanceStep<'_>,
        last: &mut Vec<f32>,
    ) {
        // The sample is `skip · x + out · output`.
        let [skip, out] = match self.form {
            ApgForm::Denoised => at.coefficients(),
            ApgForm::Raw => [0.0, 1.0],
        };
        if out == 0.0 {
            // At sigma 0 the sample is x, whatever the model predicts.
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
        // The coefficient of the conditional sample in the update, times the share that is removed.
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
