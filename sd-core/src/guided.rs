//! The denoiser as a sampler calls it: guided, in its scaling.

use ndarray::{ArrayView3, ArrayView4, ArrayViewMut4};
use sd_schedulers::{Prediction, Rung, Rungs};

use crate::{
    BoxError, Denoiser, Error, Guidance, StopToken,
    guidance::{Memory, Moment},
    guide,
    prompts::Contexts,
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
    prompt: Contexts,
    negative: Option<Contexts>,
    /// How often it has been called.
    calls: usize,
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
    /// The prediction for a further branch; empty where there is only one.
    branch: Vec<f32>,
}

impl<'a> Guided<'a> {
    /// `prompt`, `negative` and `guidance` are of as many pictures as the shape.
    pub(crate) fn new(
        denoiser: &'a dyn Denoiser,
        prediction: Prediction,
        shape: [usize; 4],
        prompt: Contexts,
        negative: Option<Contexts>,
        guidance: Vec<Guidance>,
        stop: StopToken,
    ) -> Self {
        let length = shape.iter().product();
        let further = prompt.branches() > 1;
        Self {
            denoiser,
            prediction,
            shape,
            prompt,
            calls: 0,
            memories: vec![Memory::default(); guidance.len()],
            guidance,
            steps: None,
            first: 0,
            stop,
            input: vec![0.0; length],
            unconditional: vec![0.0; if negative.is_some() { length } else { 0 }],
            branch: vec![0.0; if further { length } else { 0 }],
            negative,
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
        let call = self.calls;
        self.calls += 1;
        self.prompt.turn(call);
        if let Some(negative) = &mut self.negative {
            negative.turn(call);
        }
        self.predict(self.prompt.context(0), at, denoised)?;

        let (prediction, steps) = (self.prediction, self.steps);
        let asked = both.is_some();
        let index = self.first.saturating_add(at.index);
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
        let needed = asked
            || self.prompt.any_composes()
            || self.guidance.iter().zip(x.chunks_exact(one)).any(wanted);
        if let Some(negative) = self.negative.as_ref().filter(|_| needed) {
            let mut unconditional = std::mem::take(&mut self.unconditional);
            let predicted = self.predict(negative.context(0), at, &mut unconditional);
            self.unconditional = unconditional;
            predicted?;
            if self.prompt.any_composes() {
                self.compose(at, denoised)?;
            }
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

    /// Composable diffusion, <https://arxiv.org/abs/2206.01714>: makes the prediction of the first branch, in `denoised`, that of all of them,
    /// `unconditional + sum of weight · (branch − unconditional)`.
    fn compose(&mut self, at: Rung, denoised: &mut [f32]) -> Result<(), BoxError> {
        let one = denoised.len() / self.shape[0];
        for branch in 0..self.prompt.branches() {
            if branch > 0 {
                let mut predicted = std::mem::take(&mut self.branch);
                let result = self.predict(self.prompt.context(branch), at, &mut predicted);
                self.branch = predicted;
                result?;
            }
            for (picture, &weight) in self.prompt.weights(branch).iter().enumerate() {
                if !self.prompt.composes(picture) {
                    continue;
                }
                let own = picture * one..(picture + 1) * one;
                let all = &mut denoised[own.clone()];
                let unconditional = &self.unconditional[own.clone()];
                if branch == 0 {
                    guide(all, unconditional, weight);
                    continue;
                }
                let branch = self.branch[own].iter().zip(unconditional);
                for (all, (branch, unconditional)) in all.iter_mut().zip(branch) {
                    *all += weight * (branch - unconditional);
                }
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
