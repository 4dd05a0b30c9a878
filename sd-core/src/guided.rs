//! The denoiser as a sampler calls it: guided, in its scaling.

use ndarray::{ArrayView3, ArrayView4, ArrayViewMut4};
use sd_schedulers::{Prediction, Rung};

use crate::{BoxError, Denoiser, Error, Guidance, StopToken};

/// D(x; sigma) under prompts and guidance, of one picture or a batch of them: what a sampler calls, as a plain function.
/// [`Pipeline::guided`](crate::Pipeline::guided) makes one.
pub struct Guided<'a> {
    denoiser: &'a dyn Denoiser,
    prediction: Prediction,
    /// `[batch, channels, h, w]`.
    shape: [usize; 4],
    prompt: ArrayView3<'a, f32>,
    negative: Option<ArrayView3<'a, f32>>,
    /// One for each picture.
    guidance: Vec<Guidance>,
    stop: StopToken,
    /// The noisy latents as the network wants them scaled.
    input: Vec<f32>,
    /// The prediction for the negative prompt; empty without one.
    unconditional: Vec<f32>,
}

impl<'a> Guided<'a> {
    /// `prompt` and `negative` are `[batch, tokens, width]`, `guidance` has one value for each picture.
    pub(crate) fn new(
        denoiser: &'a dyn Denoiser,
        prediction: Prediction,
        shape: [usize; 4],
        prompt: ArrayView3<'a, f32>,
        negative: Option<ArrayView3<'a, f32>>,
        guidance: Vec<Guidance>,
        stop: StopToken,
    ) -> Self {
        let length = shape.iter().product();
        Self {
            denoiser,
            prediction,
            shape,
            prompt,
            negative,
            guidance,
            stop,
            input: vec![0.0; length],
            unconditional: vec![0.0; if negative.is_some() { length } else { 0 }],
        }
    }

    /// Lets a token interrupt the network, which then fails.
    pub fn stopped_by(mut self, stop: StopToken) -> Self {
        self.stop = stop;
        self
    }

    /// `[batch, channels, h, w]` of the latents.
    pub fn shape(&self) -> [usize; 4] {
        self.shape
    }

    /// Writes D(x; sigma), the model's guess of the clean latents in the noisy `x`, to `denoised`. Both have as many
    /// values as [`shape`](Self::shape), `x` in the variance-exploding scaling.
    ///
    /// # Errors
    /// [`Error::Backend`] when the network fails or a length does not fit.
    pub fn denoise(&mut self, x: &[f32], at: Rung, denoised: &mut [f32]) -> Result<(), Error> {
        self.try_denoise(x, at, denoised).map_err(|source| {
            let stage = format!("the denoiser at timestep {}", at.timestep);
            Error::Backend { stage, source }
        })
    }

    pub(crate) fn try_denoise(
        &mut self,
        x: &[f32],
        at: Rung,
        denoised: &mut [f32],
    ) -> Result<(), BoxError> {
        let length = self.input.len();
        if (x.len(), denoised.len()) != (length, length) {
            let (x, denoised) = (x.len(), denoised.len());
            return Err(
                format!("x has {x} values and denoised {denoised}, expected {length}").into(),
            );
        }
        let scale = Prediction::input_scale(at.sigma);
        for (input, x) in self.input.iter_mut().zip(x) {
            *input = x * scale;
        }
        self.predict(self.prompt, at, denoised)?;
        if let Some(negative) = self.negative
            && self
                .guidance
                .iter()
                .any(|guidance| guidance.needs_unconditional(at))
        {
            let mut unconditional = std::mem::take(&mut self.unconditional);
            let predicted = self.predict(negative, at, &mut unconditional);
            self.unconditional = unconditional;
            predicted?;
            let one = length / self.shape[0];
            let pictures = denoised
                .chunks_exact_mut(one)
                .zip(self.unconditional.chunks_exact(one));
            for ((conditional, unconditional), guidance) in pictures.zip(&self.guidance) {
                if guidance.needs_unconditional(at) {
                    guidance.merge(conditional, unconditional, at);
                }
            }
        }
        self.prediction.denoised(denoised, x, at.sigma);
        Ok(())
    }

    fn predict(
        &self,
        context: ArrayView3<'_, f32>,
        at: Rung,
        output: &mut [f32],
    ) -> Result<(), BoxError> {
        let span = tracing::debug_span!("unet", timestep = at.timestep, sigma = at.sigma);
        let _entered = span.entered();
        self.denoiser.predict(
            ArrayView4::from_shape(self.shape, &self.input)?,
            at.timestep,
            context,
            ArrayViewMut4::from_shape(self.shape, output)?,
            &self.stop,
        )
    }
}

impl std::fmt::Debug for Guided<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guided")
            .field("shape", &self.shape)
            .field("prediction", &self.prediction)
            .field("guidance", &self.guidance)
            .finish_non_exhaustive()
    }
}
