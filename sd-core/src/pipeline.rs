//! From prompt to picture.

use std::{ops::ControlFlow, sync::Arc};

use ndarray::{Array4, ArrayView3, ArrayView4, ArrayViewMut4};
use sd_schedulers::{
    NoiseSchedule, NoiseSource, Prediction, Run, Rung, Rungs, Sampler, SchedulerConfig, Step,
    TorchRng,
};
use sd_text::{ClipSkip, PromptEmbedding, PromptEncoder};

use crate::{
    Denoiser, Error, Generation, ImageSize, LatentCodec, Observer, Picture, Progress, Request,
    guide,
};

/// A model ready to draw. Cheap to clone: clones share the model.
///
/// Made by `sd_onnx::builder()` from a model folder, or by [`Pipeline::builder`] from one's own parts.
#[derive(Clone)]
pub struct Pipeline {
    parts: Arc<Parts>,
}

struct Parts {
    prompts: PromptEncoder,
    denoiser: Arc<dyn Denoiser>,
    codec: Arc<dyn LatentCodec>,
    scheduler: SchedulerConfig,
    schedule: Arc<NoiseSchedule>,
    size: ImageSize,
    clip_skip: usize,
}

/// Puts a [`Pipeline`] together from its parts.
pub struct PipelineBuilder {
    prompts: PromptEncoder,
    denoiser: Arc<dyn Denoiser>,
    codec: Arc<dyn LatentCodec>,
    scheduler: SchedulerConfig,
    size: [u32; 2],
    clip_skip: usize,
}

impl PipelineBuilder {
    /// The size of a picture whose request names none, in pixels. Default 512 × 512.
    pub fn size(mut self, width: u32, height: u32) -> Self {
        self.size = [width, height];
        self
    }

    /// The clip skip of a request that names none, in WebUI's numbering: 1, the default, is CLIP's last layer.
    pub fn clip_skip(mut self, layer: usize) -> Self {
        self.clip_skip = layer;
        self
    }

    /// The pipeline.
    ///
    /// # Errors
    /// [`Error::Parts`] when denoiser, codec and prompt encoder do not agree on channels or width; [`Error::Scheduler`]
    /// when the noise schedule is not usable; [`Error::Request`] when the default size or clip skip is not.
    pub fn build(self) -> Result<Pipeline, Error> {
        let Self {
            prompts,
            denoiser,
            codec,
            scheduler,
            size,
            clip_skip,
        } = self;
        let (latents, decoded) = (denoiser.latent_channels(), codec.latent_channels());
        if latents != decoded {
            return Err(Error::Parts(format!(
                "the denoiser has {latents} latent channels, the codec {decoded}"
            )));
        }
        let (wanted, given) = (denoiser.context_width(), prompts.model().width());
        if wanted != given {
            return Err(Error::Parts(format!(
                "the denoiser attends to embeddings {wanted} wide, the text model's are {given} wide"
            )));
        }
        let size = ImageSize::new(size[0], size[1])?;
        size.latents(codec.factor())?;
        checked_clip_skip(clip_skip, prompts.model().layers())?;
        let schedule = Arc::new(NoiseSchedule::new(&scheduler)?);
        let parts = Parts {
            prompts,
            denoiser,
            codec,
            scheduler,
            schedule,
            size,
            clip_skip,
        };
        Ok(Pipeline {
            parts: Arc::new(parts),
        })
    }
}

impl Pipeline {
    /// A pipeline of one's own parts.
    pub fn builder(
        prompts: PromptEncoder,
        denoiser: Arc<dyn Denoiser>,
        codec: Arc<dyn LatentCodec>,
        scheduler: SchedulerConfig,
    ) -> PipelineBuilder {
        PipelineBuilder {
            prompts,
            denoiser,
            codec,
            scheduler,
            size: [512, 512],
            clip_skip: 1,
        }
    }

    /// What the model's scheduler configuration says: for building a sampler the way the model wants it.
    pub fn scheduler_config(&self) -> &SchedulerConfig {
        &self.parts.scheduler
    }

    /// The size of a picture whose request names none.
    pub fn default_size(&self) -> ImageSize {
        self.parts.size
    }

    /// The part that reads prompts.
    pub fn prompt_encoder(&self) -> &PromptEncoder {
        &self.parts.prompts
    }

    /// The part that predicts.
    pub fn denoiser(&self) -> &Arc<dyn Denoiser> {
        &self.parts.denoiser
    }

    /// The part between latents and pictures.
    pub fn codec(&self) -> &Arc<dyn LatentCodec> {
        &self.parts.codec
    }

    /// Makes the pictures of a request, one after the other.
    ///
    /// # Errors
    /// [`Error::Request`] and [`Error::Ladder`] before any network runs; [`Error::Prompt`] and [`Error::Backend`] when
    /// one fails; [`Error::NotFinite`] when what comes out is no picture.
    pub fn generate(&self, request: &Request) -> Result<Generation, Error> {
        self.generate_watched(request, &mut |_: Progress<'_>| ControlFlow::Continue(()))
    }

    /// [`generate`](Self::generate), telling `observer` of every step.
    ///
    /// # Errors
    /// As `generate`, and [`Error::Stopped`] when the observer breaks.
    pub fn generate_watched(
        &self,
        request: &Request,
        observer: &mut dyn Observer,
    ) -> Result<Generation, Error> {
        let parts = &*self.parts;
        let size = match request.size {
            Some([width, height]) => ImageSize::new(width, height)?,
            None => parts.size,
        };
        let [height, width] = size.latents(parts.codec.factor())?;
        if !request.guidance.is_finite() {
            return Err(Error::request(
                "guidance",
                "a finite number",
                request.guidance,
            ));
        }
        if request.count == 0 {
            return Err(Error::request("count", "at least 1", 0));
        }
        let clip_skip = checked_clip_skip(
            request.clip_skip.unwrap_or(parts.clip_skip),
            parts.prompts.model().layers(),
        )?;
        let conventions = request.scheduler.conventions();
        let rungs = request
            .ladder
            .rungs(&parts.schedule, request.steps, &conventions)?;

        let prompt = self.encode(&request.prompt, clip_skip)?;
        // At 1 the unconditional half has no weight, and below it diffusers leaves it out too.
        let negative = if request.guidance > 1.0 {
            Some(self.encode(&request.negative, clip_skip)?)
        } else {
            None
        };

        let shape = [1, parts.denoiser.latent_channels(), height, width];
        let first_seed = request
            .seed
            .unwrap_or_else(|| u64::from(rand::random::<u32>()));
        let mut pictures = Vec::with_capacity(request.count.min(1024));
        for picture in 0..request.count {
            let seed = first_seed.wrapping_add(picture as u64);
            let mut noise = TorchRng::new(seed);
            let mut initial_noise = Array4::zeros(shape);
            noise.fill(
                initial_noise
                    .as_slice_mut()
                    .expect("fresh arrays are contiguous"),
            );
            let mut latents = &initial_noise * rungs.initial_scale();
            let mut run = GuidedRun {
                denoiser: &*parts.denoiser,
                prediction: parts.scheduler.prediction,
                shape,
                prompt: prompt.embedding.view(),
                negative: negative.as_ref().map(|negative| negative.embedding.view()),
                guidance: request.guidance,
                noise,
                input: vec![0.0; initial_noise.len()],
                unconditional: vec![
                    0.0;
                    if negative.is_some() {
                        initial_noise.len()
                    } else {
                        0
                    }
                ],
                observer,
                picture,
                pictures: request.count,
                step: 0,
                error: None,
            };
            run.sample(
                &*request.scheduler,
                &rungs,
                latents
                    .as_slice_mut()
                    .expect("contiguous like its operands"),
            )?;
            if !latents.iter().all(|value| value.is_finite()) {
                return Err(Error::NotFinite { seed });
            }
            let pixels = {
                let _span = tracing::info_span!("decode").entered();
                parts
                    .codec
                    .decode(latents.view())
                    .map_err(Error::backend("decoding the latents"))?
            };
            pictures.push(Picture::new(seed, pixels, latents, initial_noise));
        }
        Ok(Generation {
            pictures,
            prompt,
            negative,
        })
    }

    fn encode(&self, prompt: &str, clip_skip: ClipSkip) -> Result<PromptEmbedding, Error> {
        let _span = tracing::info_span!("encode").entered();
        Ok(self.parts.prompts.encode(prompt, clip_skip)?)
    }
}

fn checked_clip_skip(layer: usize, layers: usize) -> Result<ClipSkip, Error> {
    match ClipSkip::new(layer) {
        Ok(clip_skip) if layer <= layers => Ok(clip_skip),
        _ => Err(Error::request(
            "clip skip",
            format!("1 to {layers}, the model's text layers"),
            layer,
        )),
    }
}

/// One picture's run: what the sampler asks of the model, guided.
struct GuidedRun<'a> {
    denoiser: &'a dyn Denoiser,
    prediction: Prediction,
    shape: [usize; 4],
    prompt: ArrayView3<'a, f32>,
    negative: Option<ArrayView3<'a, f32>>,
    guidance: f32,
    noise: TorchRng,
    /// The noisy latents as the network wants them scaled.
    input: Vec<f32>,
    /// The prediction for the negative prompt; empty without one.
    unconditional: Vec<f32>,
    observer: &'a mut dyn Observer,
    picture: usize,
    pictures: usize,
    /// Finished steps.
    step: usize,
    error: Option<Error>,
}

impl GuidedRun<'_> {
    fn sample(
        &mut self,
        sampler: &dyn Sampler,
        rungs: &Rungs,
        latents: &mut [f32],
    ) -> Result<(), Error> {
        let _span = tracing::info_span!("denoise", picture = self.picture).entered();
        match sampler.sample(latents, rungs, self) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(self
                .error
                .take()
                .unwrap_or(Error::Stopped { steps: self.step })),
        }
    }

    fn predict(&mut self, timestep: f32, output: &mut [f32]) -> Result<(), crate::BoxError> {
        let latents = ArrayView4::from_shape(self.shape, &self.input)?;
        self.denoiser.predict(
            latents,
            timestep,
            self.prompt,
            ArrayViewMut4::from_shape(self.shape, output)?,
        )?;
        if let Some(negative) = self.negative {
            let unconditional = ArrayViewMut4::from_shape(self.shape, &mut self.unconditional)?;
            self.denoiser
                .predict(latents, timestep, negative, unconditional)?;
            guide(output, &self.unconditional, self.guidance);
        }
        Ok(())
    }
}

impl Run for GuidedRun<'_> {
    fn denoise(&mut self, x: &[f32], at: Rung, denoised: &mut [f32]) -> ControlFlow<()> {
        let scale = Prediction::input_scale(at.sigma);
        for (input, x) in self.input.iter_mut().zip(x) {
            *input = x * scale;
        }
        if let Err(source) = self.predict(at.timestep, denoised) {
            let stage = format!(
                "the denoiser at step {}, timestep {}",
                self.step + 1,
                at.timestep
            );
            self.error = Some(Error::Backend { stage, source });
            return ControlFlow::Break(());
        }
        self.prediction.denoised(denoised, x, at.sigma);
        ControlFlow::Continue(())
    }

    fn noise(&mut self, out: &mut [f32]) {
        self.noise.fill(out);
    }

    fn step(&mut self, step: Step<'_>) -> ControlFlow<()> {
        self.step = step.index + 1;
        self.observer.step(Progress {
            picture: self.picture,
            pictures: self.pictures,
            step: step.index,
            steps: step.total,
            sigma: step.sigma,
            latents: step.x,
            denoised: step.denoised,
        })
    }
}

impl std::fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Parts {
            scheduler,
            size,
            clip_skip,
            ..
        } = &*self.parts;
        let mut s = f.debug_struct("Pipeline");
        s.field("scheduler", scheduler)
            .field("size", size)
            .field("clip_skip", clip_skip)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for PipelineBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut s = f.debug_struct("PipelineBuilder");
        s.field("size", &self.size)
            .field("clip_skip", &self.clip_skip)
            .finish_non_exhaustive()
    }
}
