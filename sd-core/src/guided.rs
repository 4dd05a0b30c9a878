//! The denoiser as a sampler calls it: guided, in its scaling.

use ndarray::{ArrayView3, ArrayView4, ArrayViewMut4};
use sd_schedulers::{Prediction, Rung, Rungs};

use crate::{
    BoxError, Denoiser, Error, Guidance, StopToken,
    guidance::{Memory, Moment},
};

/// D(x; sigma) under prompts and guidance, of one picture or a batch of them: what a sampler calls, as a plain function.
/// [`Pipeline::guided`](crate::Pipeline::guided) makes one.
///
/// It is for one run: guidance may keep something from one call to the next (the momentum of
/// [`Apg`](crate::guidance::Apg)).
pub struct Guided<'a> {
    denoiser: &'a dyn Denoiser,
    prediction: Prediction,
    /// `[batch, channels, h, w]`.
    shape: [usize; 4],
    prompt: ArrayView3<'a, f32>,
    negative: Option<ArrayView3<'a, f32>>,
    /// One for each picture, as are the memories.
    guidance: Vec<Guidance>,
    memories: Vec<Memory>,
    /// Of the whole run.
    steps: Option<usize>,
    /// The place of the first rung in the whole run.
    first: usize,
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
            memories: vec![Memory::default(); guidance.len()],
            guidance,
            steps: None,
            first: 0,
            stop,
            input: vec![0.0; length],
            unconditional: vec![0.0; if negative.is_some() { length } else { 0 }],
        }
    }

    /// Says which steps of how many these rungs are, also where they are a part of a run: what the
    /// [interval](crate::ClassifierFree::interval) of guidance is measured by. Default: that is not known; guidance is on in all of them,
    /// and the first one is the first of the run.
    pub fn rungs(mut self, rungs: &Rungs) -> Self {
        self.steps = Some(rungs.steps_of_whole());
        self.first = rungs.index_in_whole(0);
        self
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
    /// values as [`shape`](Self::shape), `x` in the scaling that the rung says.
    ///
    /// # Errors
    /// [`Error::Backend`] when the network fails or a length does not fit.
    pub fn denoise(&mut self, x: &[f32], at: Rung, denoised: &mut [f32]) -> Result<(), Error> {
        self.try_denoise(x, at, denoised, None)
            .map_err(|source| failed(at, source))
    }

    /// As [`denoise`](Self::denoise), and what it would be for the negative prompt alone to `unconditional`: what the samplers of
    /// CFG++ ask for. The two are the same where there is no negative prompt.
    ///
    /// # Errors
    /// As [`denoise`](Self::denoise).
    pub fn denoise_both(
        &mut self,
        x: &[f32],
        at: Rung,
        denoised: &mut [f32],
        unconditional: &mut [f32],
    ) -> Result<(), Error> {
        self.try_denoise(x, at, denoised, Some(unconditional))
            .map_err(|source| failed(at, source))
    }

    pub(crate) fn try_denoise(
        &mut self,
        x: &[f32],
        at: Rung,
        denoised: &mut [f32],
        both: Option<&mut [f32]>,
    ) -> Result<(), BoxError> {
        let length = self.input.len();
        let other = both.as_ref().map_or(length, |both| both.len());
        if [x.len(), denoised.len(), other] != [length; 3] {
            let (x, denoised) = (x.len(), denoised.len());
            return Err(format!(
                "x has {x} values, denoised {denoised} and unconditional {other}, expected {length}"
            )
            .into());
        }
        let scale = self.prediction.input_scale(at);
        for (input, x) in self.input.iter_mut().zip(x) {
            *input = x * scale;
        }
        self.predict(self.prompt, at, denoised)?;

        let (prediction, steps) = (self.prediction, self.steps);
        let asked = both.is_some();
        let index = self.first + at.index;
        let moment = |x| Moment {
            x,
            rung: Rung { index, ..at },
            steps,
            prediction,
            both: asked,
        };
        let one = length / self.shape[0];
        let wanted = |(guidance, x): (&Guidance, _)| {
            let guide = guidance.guide();
            guide.needs_unconditional(&moment(x))
        };
        if let Some(negative) = self.negative
            && (asked || self.guidance.iter().zip(x.chunks_exact(one)).any(wanted))
        {
            let mut unconditional = std::mem::take(&mut self.unconditional);
            let predicted = self.predict(negative, at, &mut unconditional);
            self.unconditional = unconditional;
            predicted?;
            let pictures = denoised
                .chunks_exact_mut(one)
                .zip(self.unconditional.chunks_exact(one))
                .zip(x.chunks_exact(one));
            let guidance = self.guidance.iter().zip(&mut self.memories);
            for (((conditional, unconditional), x), (guidance, memory)) in pictures.zip(guidance) {
                let (guide, moment) = (guidance.guide(), moment(x));
                if guide.needs_unconditional(&moment) {
                    guide.merge(conditional, unconditional, &moment, memory);
                }
            }
        }

        prediction.denoised(denoised, x, at);
        let pictures = denoised
            .chunks_exact_mut(one)
            .zip(x.chunks_exact(one))
            .zip(self.guidance.iter().zip(&mut self.memories));
        for ((denoised, x), (guidance, memory)) in pictures {
            guidance.guide().finish(denoised, &moment(x), memory);
        }
        if let Some(both) = both {
            if self.negative.is_some() {
                both.copy_from_slice(&self.unconditional);
                prediction.denoised(both, x, at);
            } else {
                both.copy_from_slice(denoised);
            }
        }
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

fn failed(at: Rung, source: BoxError) -> Error {
    let stage = format!("the denoiser at timestep {}", at.timestep);
    Error::Backend { stage, source }
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
