//! What a backend implements. The third part, `TextModel`, is in [`sd_text`].

use ndarray::{Array4, ArrayView3, ArrayView4, ArrayViewMut4};

use crate::{LatentRgb, StopToken};

/// Any error, as a backend returns it.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The network that predicts the noise (or v, or the sample) in noisy latents.
pub trait Denoiser: Send + Sync {
    /// Channels of the latents, 4 for Stable Diffusion 1.x.
    fn latent_channels(&self) -> usize;

    /// Width of the text embeddings it attends to, 768 for Stable Diffusion 1.x.
    fn context_width(&self) -> usize;

    /// The network's raw output for `latents` `[batch, channels, h, w]`, in the scaling it was trained on (variance-preserving; that
    /// of the straight path for a flow model), at `timestep` (0 to `num_train_timesteps` − 1, on a flow model 1 more; fractional on some
    /// ladders), under `context` `[batch, tokens, width]`. Every element of `output`, which has the shape of `latents`, is written.
    ///
    /// When `stop` is stopped the call may return early, with any error; one that is short need not look at it.
    fn predict(
        &self,
        latents: ArrayView4<'_, f32>,
        timestep: f32,
        context: ArrayView3<'_, f32>,
        output: ArrayViewMut4<'_, f32>,
        stop: &StopToken,
    ) -> Result<(), BoxError>;
}

/// The autoencoder between latents and pictures.
pub trait LatentCodec: Send + Sync {
    /// Channels of the latents, 4 for Stable Diffusion 1.x.
    fn latent_channels(&self) -> usize;

    /// Pixels per latent on each side, 8 for Stable Diffusion 1.x.
    fn factor(&self) -> usize;

    /// `[batch, channels, h, w]` in the pipeline's scaling → `[batch, 3, h·factor, w·factor]`, about −1 to 1, not
    /// clamped. Undoing the scaling is the codec's. `stop` is as for [`Denoiser::predict`].
    fn decode(
        &self,
        latents: ArrayView4<'_, f32>,
        stop: &StopToken,
    ) -> Result<Array4<f32>, BoxError>;

    /// `[batch, 3, H, W]`, −1 to 1, → what the latents of that picture may be.
    fn encode(&self, image: ArrayView4<'_, f32>) -> Result<LatentDistribution, BoxError>;

    /// The coefficients of a cheap look at latents, where they are known. Default: they are
    /// [fitted](LatentRgb::fit) when the first one is asked for.
    fn latent_rgb(&self) -> Option<LatentRgb> {
        None
    }
}

/// A Gaussian over latents, as a variational autoencoder gives it.
#[derive(Debug, Clone)]
pub struct LatentDistribution {
    /// `[batch, channels, h, w]`, in the autoencoder's own scaling.
    pub mean: Array4<f32>,
    /// Logarithm of the variance, clamped to −30 to 20, of the same shape.
    pub log_variance: Array4<f32>,
    /// What the pipeline's latents are multiplied by (`scaling_factor`), after `shift` is subtracted.
    pub scale: f32,
    /// What is subtracted (`shift_factor`; 0 for most).
    pub shift: f32,
}

impl LatentDistribution {
    /// The most likely latents, in the pipeline's scaling.
    pub fn mode(&self) -> Array4<f32> {
        (&self.mean - self.shift) * self.scale
    }
}
