//! From prompt to picture.

use std::{
    io,
    ops::ControlFlow,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use image::RgbImage;
use ndarray::{ArcArray, Array4, ArrayView3, ArrayView4, Axis, Ix3};
use sd_schedulers::{NoiseSchedule, NoiseSource, Run, Rung, SchedulerConfig, Step, TorchRng};
use sd_text::PromptEncoder;

use crate::{
    Conditioning, Denoiser, Error, Event, Events, Generation, Guidance, Guided, ImageSize,
    LatentCodec, LatentDistribution, LatentRgb, Picture, Problem, Progress, Request, StepInfo,
    StopToken, Stopped, Timings, Unfinished,
    model_id::ModelId,
    picture::{Made, from_rgb, to_rgb},
    plan::{Planned, Texts, checked_clip_skip, checked_size, groups, plan},
};

/// The largest picture where nothing else is said, in pixels: 4096 × 4096. Attention over all places of a larger one needs
/// more memory than most machines have.
pub const MAX_PIXELS: u64 = 4096 * 4096;

/// A model ready to draw. Cheap to clone: clones share the model. Any number of threads may draw with it at once.
///
/// Made by `sd_onnx::builder()` from a model folder, or by [`Pipeline::builder`] from one's own parts. Its parts may be in
/// other pipelines too; the last one dropped frees them.
///
/// Each call makes its pictures one after the other (or [batch](PipelineBuilder::batch) after batch) on the caller's
/// thread. What of several calls runs at once is up to the parts: those of `sd-onnx` run one network call at a time each
/// and let the others wait, as every call already uses all cores.
#[derive(Clone)]
pub struct Pipeline {
    parts: Arc<Parts>,
}

pub(crate) struct Parts {
    pub prompts: PromptEncoder,
    pub denoiser: Arc<dyn Denoiser>,
    pub codec: Arc<dyn LatentCodec>,
    pub scheduler: SchedulerConfig,
    pub schedule: Arc<NoiseSchedule>,
    pub size: ImageSize,
    pub clip_skip: usize,
    pub max_pixels: u64,
    batch: usize,
    model: Option<Arc<ModelId>>,
    latent_rgb: OnceLock<LatentRgb>,
}

/// Puts a [`Pipeline`] together from its parts.
pub struct PipelineBuilder {
    prompts: PromptEncoder,
    denoiser: Arc<dyn Denoiser>,
    codec: Arc<dyn LatentCodec>,
    scheduler: SchedulerConfig,
    size: [u32; 2],
    clip_skip: usize,
    max_pixels: u64,
    batch: usize,
    model: Option<Arc<ModelId>>,
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

    /// The largest picture that a request may ask for, in pixels. Default [`MAX_PIXELS`].
    pub fn max_pixels(mut self, pixels: u64) -> Self {
        self.max_pixels = pixels;
        self
    }

    /// How many pictures of a call, at least 1, the denoiser is given at once where their requests allow it. Default 1: on
    /// a CPU more is slower. A picture from a batch is what it would be alone but for rounding in the network.
    pub fn batch(mut self, pictures: usize) -> Self {
        self.batch = pictures;
        self
    }

    /// What the infotext of pictures says of the model: its name, and the SHA-256 of its file in hexadecimal digits, for
    /// which `hash` is called when the first infotext is made. Default: nothing.
    pub fn model(
        mut self,
        name: impl Into<String>,
        hash: impl Fn() -> io::Result<String> + Send + Sync + 'static,
    ) -> Self {
        self.model = Some(Arc::new(ModelId::new(name.into(), hash)));
        self
    }

    /// The pipeline.
    ///
    /// # Errors
    /// [`Error::Parts`] when denoiser, codec and prompt encoder do not agree on channels or width; [`Error::Scheduler`]
    /// when the noise schedule is not usable; [`Error::Request`] when the default size, clip skip or batch is not.
    pub fn build(self) -> Result<Pipeline, Error> {
        let Self {
            prompts,
            denoiser,
            codec,
            scheduler,
            size,
            clip_skip,
            max_pixels,
            batch,
            model,
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
        checked_size(size, max_pixels, codec.factor())?;
        checked_clip_skip(clip_skip, prompts.model().layers())?;
        if batch == 0 {
            return Err(Problem::new("batch", "at least 1", 0).into());
        }
        let schedule = Arc::new(NoiseSchedule::new(&scheduler)?);
        let parts = Parts {
            prompts,
            denoiser,
            codec,
            scheduler,
            schedule,
            size,
            clip_skip,
            max_pixels,
            batch,
            model,
            latent_rgb: OnceLock::new(),
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
            max_pixels: MAX_PIXELS,
            batch: 1,
            model: None,
        }
    }

    /// Makes the pictures of a request.
    ///
    /// # Errors
    /// [`Error::Request`], before any network runs, with all that is wrong with it; [`Error::Prompt`] and
    /// [`Error::Backend`] when a network fails; [`Error::NotFinite`] when what comes out is no picture.
    pub fn generate(&self, request: &Request) -> Result<Generation, Error> {
        self.generate_all(std::slice::from_ref(request))
    }

    /// Makes the pictures of several requests, of which each may have its own everything. What they share is done once: a
    /// text is encoded once.
    ///
    /// # Errors
    /// As [`generate`](Self::generate); pictures that were finished before are lost then, which with [`run`](Self::run)
    /// they are not.
    pub fn generate_all(&self, requests: &[Request]) -> Result<Generation, Error> {
        let mut pictures = Vec::new();
        self.run(requests, &StopToken::new(), |event| {
            if let Event::Picture(picture) = event {
                pictures.push(*picture);
            }
            ControlFlow::Continue(())
        })?;
        // Batches may have changed the order.
        pictures.sort_by_key(|picture| (picture.request, picture.index));
        Ok(Generation { pictures })
    }

    /// Makes the pictures of several requests and tells `observer` of each step and each picture as it comes. The one road
    /// that all others take.
    ///
    /// The observer ends the run by [`ControlFlow::Break`], `stop` ends it from any thread: between two network calls, and
    /// within one where the backend can. The latents so far are in the error; nothing is decoded any more, and the pipeline
    /// is as good as before. A panic of the observer passes through and does no harm either.
    ///
    /// ```
    /// # fn example(pipeline: &sd_core::Pipeline) -> Result<(), sd_core::Error> {
    /// use std::ops::ControlFlow;
    /// use sd_core::{Event, Request, StopToken};
    ///
    /// let requests = [Request::new("a fox").count(2), Request::new("a cat").steps(30)];
    /// let stop = StopToken::new();
    /// pipeline.run(&requests, &stop, |event| {
    ///     match event {
    ///         Event::Step(progress) => println!("step {} of {}", progress.step.index + 1, progress.step.total),
    ///         Event::Picture(picture) => println!("seed {} took {:?}", picture.seed, picture.timings.total()),
    ///         _ => {}
    ///     }
    ///     ControlFlow::Continue(())
    /// })?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`generate`](Self::generate), and [`Error::Stopped`].
    pub fn run(
        &self,
        requests: &[Request],
        stop: &StopToken,
        mut observer: impl FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let parts = &*self.parts;
        let planned = plan(parts, requests)?;
        let mut texts = Texts::new(&planned);
        let max_length = parts.prompts.tokenizer().max_length();
        for group in groups(&planned, parts.batch, max_length) {
            let pictures = |&request: &usize| {
                let count = planned[request].request.count;
                (0..count).map(move |index| (request, index))
            };
            let mut pictures = group.iter().flat_map(pictures).peekable();
            while pictures.peek().is_some() {
                let batch: Vec<_> = pictures.by_ref().take(parts.batch).collect();
                Batch::new(self, &planned, batch, &mut texts, stop)?.run(&mut observer)?;
            }
        }
        Ok(())
    }

    /// [`run`](Self::run) on a thread of its own, as an iterator over its events; [`Events::into_stream`] makes a `Stream`
    /// of it, for any async executor. Dropping either stops the run.
    ///
    /// ```
    /// # fn example(pipeline: &sd_core::Pipeline) -> Result<(), sd_core::Error> {
    /// use sd_core::{Request, Update};
    ///
    /// for event in pipeline.events(vec![Request::new("a fox")]) {
    ///     match event? {
    ///         Update::Step { step, preview } => println!("{}: {:?}", step.index, preview.dimensions()),
    ///         Update::Picture(picture) => println!("seed {}", picture.seed),
    ///         _ => {}
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn events(&self, requests: Vec<Request>) -> Events {
        Events::start(self.clone(), requests)
    }

    /// D(x; sigma) of this model, guided, for a sampler of one's own: latents of a picture of `size` under prompts of shape
    /// `[1, tokens, width]`.
    ///
    /// # Errors
    /// [`Error::Request`] when the size, an embedding's shape or the guidance cannot be used.
    pub fn guided<'a>(
        &'a self,
        size: ImageSize,
        prompt: ArrayView3<'a, f32>,
        negative: Option<ArrayView3<'a, f32>>,
        guidance: impl Into<Guidance>,
    ) -> Result<Guided<'a>, Error> {
        let parts = &*self.parts;
        let (_, [height, width]) = checked_size(size, parts.max_pixels, parts.codec.factor())?;
        let wide = parts.denoiser.context_width();
        for (what, prompt) in [("prompt", Some(prompt)), ("negative", negative)] {
            if let Some((batch, tokens, found)) = prompt.map(|prompt| prompt.dim())
                && (batch != 1 || tokens == 0 || found != wide)
            {
                let found = format!("an embedding of shape {:?}", (batch, tokens, found));
                return Err(Problem::new(what, format!("(1, tokens, {wide})"), found).into());
            }
        }
        Ok(Guided::new(
            &*parts.denoiser,
            parts.scheduler.prediction,
            [1, parts.denoiser.latent_channels(), height, width],
            prompt,
            negative,
            vec![guidance.into()],
            StopToken::new(),
        ))
    }

    /// The picture that latents `[1, channels, h, w]` are, in the scaling of [`Picture::latents`].
    ///
    /// # Errors
    /// [`Error::Request`] when they have another shape; [`Error::Backend`] when the codec fails.
    pub fn decode(&self, latents: ArrayView4<'_, f32>) -> Result<RgbImage, Error> {
        let channels = self.parts.codec.latent_channels();
        let (batch, found, height, width) = latents.dim();
        if batch != 1 || found != channels || height == 0 || width == 0 {
            let found = format!("of shape {:?}", latents.dim());
            return Err(Problem::new("latents", format!("(1, {channels}, h, w)"), found).into());
        }
        let pixels = self.decoded(latents, &StopToken::new())?;
        Ok(to_rgb(pixels.index_axis(Axis(0), 0)))
    }

    /// What the latents of a picture may be; [`LatentDistribution::mode`] is the most likely.
    ///
    /// # Errors
    /// [`Error::Request`] when a side of the picture is no multiple of the codec's factor, or there are too many pixels;
    /// [`Error::Backend`] when the codec fails.
    pub fn encode_image(&self, image: &RgbImage) -> Result<LatentDistribution, Error> {
        let parts = &*self.parts;
        let size = ImageSize::new(image.width(), image.height())?;
        checked_size(size, parts.max_pixels, parts.codec.factor())?;
        let encoded = parts.codec.encode(from_rgb(image).view());
        encoded.map_err(Error::backend("encoding the image"))
    }

    /// The coefficients of previews: the codec's, else fitted now.
    ///
    /// # Errors
    /// [`Error::Backend`] when the codec fails while they are fitted.
    pub fn latent_rgb(&self) -> Result<&LatentRgb, Error> {
        let parts = &*self.parts;
        if let Some(known) = parts.latent_rgb.get() {
            return Ok(known);
        }
        let found = match parts.codec.latent_rgb() {
            Some(known) => known,
            None => LatentRgb::fit(&*parts.codec).map_err(Error::backend("fitting the preview"))?,
        };
        // Two threads may both have fitted, to the same.
        Ok(parts.latent_rgb.get_or_init(|| found))
    }

    /// What the model's scheduler configuration says.
    pub fn scheduler_config(&self) -> &SchedulerConfig {
        &self.parts.scheduler
    }

    /// The noise schedule that the model was trained on: what a ladder is made from.
    pub fn schedule(&self) -> &Arc<NoiseSchedule> {
        &self.parts.schedule
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

    /// The name of the model and the SHA-256 of its file, as infotexts have them, where they are known. The first call may
    /// read the file through.
    pub fn model(&self) -> Option<(&str, Option<&str>)> {
        let model = self.parts.model.as_ref()?;
        Some((&model.name, model.hash()))
    }

    fn decoded(
        &self,
        latents: ArrayView4<'_, f32>,
        stop: &StopToken,
    ) -> Result<Array4<f32>, Error> {
        let _span = tracing::info_span!("decode").entered();
        let codec = &self.parts.codec;
        let (_, _, height, width) = latents.dim();
        let expected = (1, 3, height * codec.factor(), width * codec.factor());
        let pixels = codec
            .decode(latents, stop)
            .map_err(Error::backend("decoding the latents"))?;
        if pixels.dim() != expected {
            let problem = format!(
                "the codec returned {:?}, expected {expected:?}",
                pixels.dim()
            );
            return Err(Error::backend("decoding the latents")(problem.into()));
        }
        Ok(pixels)
    }
}

/// Pictures that go through the loop together; mostly one.
struct Batch<'a> {
    pipeline: &'a Pipeline,
    planned: &'a [Planned],
    /// Request and index of each.
    pictures: Vec<(usize, usize)>,
    conditionings: Vec<(Conditioning, Option<Conditioning>)>,
    encode: Duration,
    stop: &'a StopToken,
}

impl<'a> Batch<'a> {
    fn new(
        pipeline: &'a Pipeline,
        planned: &'a [Planned],
        pictures: Vec<(usize, usize)>,
        texts: &mut Texts,
        stop: &'a StopToken,
    ) -> Result<Self, Error> {
        let started = Instant::now();
        let mut conditionings = Vec::with_capacity(pictures.len());
        for &(request, index) in &pictures {
            if stop.is_stopped() {
                return Err(Error::Stopped(Box::default()));
            }
            let plan = &planned[request];
            let mut encoded = plan
                .prompts()
                .map(|prompt| texts.encode(&pipeline.parts, prompt, plan.clip_skip));
            let prompt = encoded.next().expect("a request has a prompt")?;
            conditionings.push((prompt, encoded.next().transpose()?));
            drop(encoded);
            if index + 1 == plan.request.count {
                texts.release(plan);
            }
        }
        Ok(Self {
            pipeline,
            planned,
            pictures,
            conditionings,
            encode: started.elapsed(),
            stop,
        })
    }

    fn run(self, observer: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>) -> Result<(), Error> {
        let parts = &*self.pipeline.parts;
        // All that the loop is made of is the same for all of them.
        let plan = &self.planned[self.pictures[0].0];
        let [height, width] = plan.latents;
        let shape = [
            self.pictures.len(),
            parts.denoiser.latent_channels(),
            height,
            width,
        ];
        let seeds: Vec<_> = self
            .pictures
            .iter()
            .map(|&(request, index)| self.planned[request].seed.wrapping_add(index as u64))
            .collect();
        let mut noise: Vec<_> = seeds.iter().map(|&seed| TorchRng::new(seed)).collect();
        let mut initial_noise = Array4::zeros(shape);
        for (i, mut picture) in initial_noise.outer_iter_mut().enumerate() {
            let (request, index) = self.pictures[i];
            match &self.planned[request].request.initial_noise {
                Some(given) => picture.assign(&given.index_axis(Axis(0), index)),
                None => noise[i].fill(picture.as_slice_mut().expect("a row of a fresh array")),
            }
        }
        let mut latents = &initial_noise * plan.rungs.initial_scale();

        let prompt = joined(self.conditionings.iter().map(|(prompt, _)| prompt));
        let negative = self.conditionings[0].1.is_some().then(|| {
            joined(
                self.conditionings
                    .iter()
                    .filter_map(|(_, negative)| negative.as_ref()),
            )
        });
        let guidance = self
            .pictures
            .iter()
            .map(|&(request, _)| self.planned[request].request.guidance.clone())
            .collect();
        let span = tracing::info_span!(
            "denoise",
            seed = seeds[0],
            steps = plan.rungs.steps(),
            width = plan.size.width(),
            height = plan.size.height(),
            scheduler = ?plan.sampler,
            ladder = ?plan.ladder,
            batch = self.pictures.len(),
        );
        let entered = span.entered();
        let now = Instant::now();
        let mut run = BatchRun {
            batch: &self,
            guided: Guided::new(
                &*parts.denoiser,
                parts.scheduler.prediction,
                shape,
                prompt.view(),
                negative.as_ref().map(|negative| negative.view()),
                guidance,
                self.stop.clone(),
            ),
            seeds: &seeds,
            noise,
            observer,
            finished: latents.iter().copied().collect(),
            denoised: vec![0.0; latents.len()],
            started: now,
            step_started: now,
            steps: Vec::with_capacity(plan.rungs.steps()),
            error: None,
        };
        let slice = latents
            .as_slice_mut()
            .expect("contiguous like its operands");
        if plan.sampler.sample(slice, &plan.rungs, &mut run).is_break() {
            return Err(run.error.take().unwrap_or_else(|| run.stopped()));
        }
        drop(entered);
        self.finish(
            &seeds,
            &latents,
            &initial_noise,
            run.steps,
            run.denoised,
            observer,
        )
    }

    /// Decodes the pictures and hands them over.
    fn finish(
        &self,
        seeds: &[u64],
        latents: &Array4<f32>,
        initial_noise: &Array4<f32>,
        steps: Vec<Duration>,
        denoised: Vec<f32>,
        observer: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let stopped = |from| {
            let latents = latents.as_slice().expect("contiguous");
            self.stopped(steps.len(), from, seeds, latents, Some(&denoised))
        };
        for (i, (prompt, negative)) in self.conditionings.iter().enumerate() {
            let (request, index) = self.pictures[i];
            let plan = &self.planned[request];
            let one =
                |all: &Array4<f32>| all.index_axis(Axis(0), i).insert_axis(Axis(0)).to_owned();
            let latents = one(latents);
            if !latents.iter().all(|value| value.is_finite()) {
                return Err(Error::NotFinite { seed: seeds[i] });
            }
            if self.stop.is_stopped() {
                return Err(stopped(i));
            }
            let started = Instant::now();
            let mut pixels = self
                .pipeline
                .decoded(latents.view(), self.stop)
                .map_err(|error| {
                    if self.stop.is_stopped() {
                        stopped(i)
                    } else {
                        error
                    }
                })?;
            pixels.mapv_inplace(|value| value.clamp(-1.0, 1.0));
            let picture = Picture {
                request,
                index,
                seed: seeds[i],
                image: to_rgb(pixels.index_axis(Axis(0), 0)),
                pixels,
                latents,
                initial_noise: one(initial_noise),
                prompt: prompt.clone(),
                negative: negative.clone(),
                timings: Timings {
                    encode: self.encode,
                    steps: steps.clone(),
                    decode: started.elapsed(),
                },
                made: Made {
                    request: plan.request.clone(),
                    sampler: plan.sampler.clone(),
                    row: plan.row,
                    ladder: plan.ladder,
                    size: plan.size,
                    clip_skip: plan.clip_skip.number(),
                    variance_preserving: plan.rungs.initial_scale() > plan.rungs.sigmas()[0],
                    batch_size: self.pictures.len(),
                    batch_position: i,
                    model: self.pipeline.parts.model.clone(),
                },
            };
            if observer(Event::Picture(Box::new(picture))).is_break() {
                return Err(stopped(i + 1));
            }
        }
        Ok(())
    }

    /// The error that says so, with the pictures from `from` on that are not finished.
    fn stopped(
        &self,
        steps: usize,
        from: usize,
        seeds: &[u64],
        latents: &[f32],
        denoised: Option<&[f32]>,
    ) -> Error {
        let plan = &self.planned[self.pictures[0].0];
        let channels = self.pipeline.parts.denoiser.latent_channels();
        let shape = (1, channels, plan.latents[0], plan.latents[1]);
        let length = latents.len() / self.pictures.len();
        let one = |i: usize, all: &[f32]| {
            let values = all[i * length..(i + 1) * length].to_vec();
            Array4::from_shape_vec(shape, values).expect("a picture's share")
        };
        let unfinished = |i: usize| Unfinished {
            request: self.pictures[i].0,
            picture: self.pictures[i].1,
            seed: seeds[i],
            latents: one(i, latents),
            denoised: denoised.map(|denoised| one(i, denoised)),
        };
        Error::Stopped(Box::new(Stopped {
            steps,
            pictures: (from..self.pictures.len()).map(unfinished).collect(),
        }))
    }
}

/// The embeddings one under the other; a single one as it is.
fn joined<'a>(all: impl Iterator<Item = &'a Conditioning>) -> ArcArray<f32, Ix3> {
    let all: Vec<_> = all
        .map(|conditioning| conditioning.embedding.view())
        .collect();
    match &all[..] {
        [one] => one.to_shared(),
        _ => ndarray::concatenate(Axis(0), &all)
            .expect("pictures of a batch have as many tokens each")
            .into_shared(),
    }
}

/// What a sampler drives.
struct BatchRun<'a> {
    batch: &'a Batch<'a>,
    guided: Guided<'a>,
    seeds: &'a [u64],
    noise: Vec<TorchRng>,
    observer: &'a mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    /// The latents after the last finished step: what a run that stops within one leaves.
    finished: Vec<f32>,
    denoised: Vec<f32>,
    started: Instant,
    step_started: Instant,
    /// What each finished step took.
    steps: Vec<Duration>,
    error: Option<Error>,
}

impl BatchRun<'_> {
    fn stopped(&self) -> Error {
        let denoised = (!self.steps.is_empty()).then_some(&self.denoised[..]);
        let Self {
            batch,
            steps,
            seeds,
            finished,
            ..
        } = self;
        batch.stopped(steps.len(), 0, seeds, finished, denoised)
    }
}

impl Run for BatchRun<'_> {
    fn denoise(&mut self, x: &[f32], at: Rung, denoised: &mut [f32]) -> ControlFlow<()> {
        if self.batch.stop.is_stopped() {
            return ControlFlow::Break(());
        }
        match self.guided.try_denoise(x, at, denoised) {
            Ok(()) => ControlFlow::Continue(()),
            Err(source) => {
                // What comes of being interrupted is no failure.
                if !self.batch.stop.is_stopped() {
                    let step = self.steps.len() + 1;
                    let stage = format!("the denoiser at step {step}, timestep {}", at.timestep);
                    self.error = Some(Error::Backend { stage, source });
                }
                ControlFlow::Break(())
            }
        }
    }

    fn noise(&mut self, out: &mut [f32]) {
        // Each picture draws its own, as it would alone.
        let one = out.len() / self.noise.len();
        for (noise, out) in self.noise.iter_mut().zip(out.chunks_exact_mut(one)) {
            noise.fill(out);
        }
    }

    fn step(&mut self, step: Step<'_>) -> ControlFlow<()> {
        let now = Instant::now();
        let took = now - self.step_started;
        self.step_started = now;
        self.steps.push(took);
        self.finished.copy_from_slice(step.x);
        self.denoised.copy_from_slice(step.denoised);
        tracing::debug!(step = step.index, sigma = step.sigma, ?took, "step");
        let [_, channels, height, width] = self.guided.shape();
        let length = channels * height * width;
        for (i, &(request, picture)) in self.batch.pictures.iter().enumerate() {
            let view = |all| {
                let one: &[f32] = &<[f32]>::as_ref(all)[i * length..(i + 1) * length];
                ArrayView3::from_shape((channels, height, width), one).expect("a picture's share")
            };
            let progress = Progress {
                step: StepInfo {
                    request,
                    picture,
                    seed: self.seeds[i],
                    index: step.index,
                    total: step.total,
                    sigma: step.sigma,
                    took,
                    elapsed: now - self.started,
                },
                latents: view(step.x),
                denoised: view(step.denoised),
                pipeline: self.batch.pipeline,
            };
            (self.observer)(Event::Step(progress))?;
        }
        ControlFlow::Continue(())
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
