//! From prompt to picture.

use std::{io, ops::ControlFlow, sync::Arc};

use image::RgbImage;
use ndarray::{ArrayView4, Axis, s};
use sd_schedulers::{NoiseSchedule, SchedulerConfig};
use sd_text::{PromptEmbedding, PromptEncoder, outside::printable};

use crate::{
    Defaults, Denoiser, Error, Event, Events, Generation, Guidance, Guided, ImageSize, Infotext,
    Inputs, LatentCodec, LatentDistribution, LatentRgb, NetworkReport, Problem, Problems,
    Reproduction, Request, StopToken,
    conditioning::Contexts,
    guided::Half,
    model_id::ModelId,
    parts::{Parts, Refiner},
    picture::{from_rgb, to_rgb},
    plan::{checked_clip_skip, checked_size, embedding_problem, groups, plan, size_values},
    run::{Batch, Prompts},
};

/// The most that [`PipelineBuilder::max_pixels`] may be: a picture of it takes 12 GiB as floats.
const MOST_PIXELS: u64 = 1 << 30;

/// The most pictures of a batch.
const MAX_BATCH: usize = 1024;

/// The width of the text embeddings of Stable Diffusion 1.x.
const SD1_WIDTH: usize = 768;

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
    pub(crate) parts: Arc<Parts>,
}

/// Puts a [`Pipeline`] together from its parts.
pub struct PipelineBuilder {
    prompts: PromptEncoder,
    denoiser: Arc<dyn Denoiser>,
    codec: Arc<dyn LatentCodec>,
    scheduler: SchedulerConfig,
    size: [u32; 2],
    defaults: Defaults,
    clip_skip: usize,
    zero_empty_negative: bool,
    max_pixels: u64,
    batch: usize,
    model: Option<Arc<ModelId>>,
    refiner: Option<Refiner>,
}

impl PipelineBuilder {
    /// The size of a picture whose request names none, in pixels. Default 512 × 512.
    pub fn size(mut self, width: u32, height: u32) -> Self {
        self.size = [width, height];
        self
    }

    /// Sets the steps, guidance, sampler and ladder of a request that names none. Default:
    /// [`Defaults::default`], which is right for Stable Diffusion 1.x.
    pub fn defaults(mut self, defaults: Defaults) -> Self {
        self.defaults = defaults;
        self
    }

    /// Sets the clip skip of a request that names none, in WebUI's numbering: 1 is CLIP's last
    /// layer, 0 the model's own. Default: 0.
    pub fn clip_skip(mut self, layer: usize) -> Self {
        self.clip_skip = layer;
        self
    }

    /// Sets whether an empty negative prompt is zeros instead of what the text model makes of it:
    /// `force_zeros_for_empty_prompt` of diffusers, true for SDXL. Default: false.
    pub fn zero_empty_negative(mut self, zeros: bool) -> Self {
        self.zero_empty_negative = zeros;
        self
    }

    /// The largest picture that a request may ask for, in pixels, at most 2³⁰. Default [`MAX_PIXELS`].
    pub fn max_pixels(mut self, pixels: u64) -> Self {
        self.max_pixels = pixels;
        self
    }

    /// How many pictures of a call, 1 to 1024, the denoiser is given at once where their requests allow it: those of one
    /// size, scheduler, ladder and number of steps, whose prompts have as many parts and tokens. Default 1: on a CPU more is slower. A picture from a batch is what it
    /// would be alone but for rounding in the network; those of a scheduler whose steps look at all that it
    /// is given ([`Needs::one_picture`](sd_schedulers::Needs::one_picture)) are made alone.
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

    /// Sets a model that makes the last steps of each picture, such as SDXL's refiner: its name,
    /// for the infotext, and its parts. [`Request::refiner`] says when it takes over. Default:
    /// none.
    pub fn refiner(
        mut self,
        name: impl Into<String>,
        prompts: PromptEncoder,
        denoiser: Arc<dyn Denoiser>,
    ) -> Self {
        self.refiner = Some(Refiner {
            name: name.into().into(),
            prompts,
            denoiser,
        });
        self
    }

    /// The pipeline. If the codec has no [`latent_rgb`](LatentCodec::latent_rgb) of its own, it is [fitted](LatentRgb::fit)
    /// now, at the price of eight decodes of 8 × 8 latents.
    ///
    /// # Errors
    /// [`Error::Backend`] when the codec fails in those; [`Error::Parts`] when denoiser, codec and prompt encoder do not agree on channels or width; [`Error::Scheduler`]
    /// when the noise schedule is not usable; [`Error::Request`] when the default size, clip skip or batch is not.
    pub fn build(self) -> Result<Pipeline, Error> {
        let Self {
            prompts,
            denoiser,
            codec,
            scheduler,
            size,
            defaults,
            clip_skip,
            zero_empty_negative,
            max_pixels,
            batch,
            model,
            refiner,
        } = self;
        let inputs = denoiser.inputs();
        let (latents, decoded) = (inputs.channels, codec.latent_channels());
        if latents == 0 || codec.factor() == 0 {
            return Err(Error::Parts(format!(
                "the denoiser has {latents} latent channels and the codec {} pixels to a latent, expected at least 1",
                codec.factor()
            )));
        }
        if latents != decoded {
            return Err(Error::Parts(format!(
                "the denoiser has {latents} latent channels, the codec {decoded}"
            )));
        }
        if inputs.patch == 0 {
            let problem = "the denoiser has patches of 0 latents, expected at least 1";
            return Err(Error::Parts(problem.into()));
        }
        check_prompts("denoiser", inputs, &prompts)?;
        if let Some(Refiner {
            prompts, denoiser, ..
        }) = &refiner
        {
            let refines = denoiser.inputs();
            check_prompts("refiner", refines, prompts)?;
            if refines.patch == 0 {
                let problem = "the refiner has patches of 0 latents, expected at least 1";
                return Err(Error::Parts(problem.into()));
            }
            if (refines.channels, refines.beside) != (latents, 0) {
                return Err(Error::Parts(format!(
                    "the refiner takes latents of {} channels with {} beside them, the denoiser has {latents} latent channels",
                    refines.channels, refines.beside
                )));
            }
            if refines.guidance != inputs.guidance {
                let problem = "only one of denoiser and refiner takes the guidance scale";
                return Err(Error::Parts(problem.into()));
            }
        }
        if max_pixels > MOST_PIXELS {
            let expected = format!("at most {MOST_PIXELS}");
            return Err(Problem::new("max_pixels", expected, max_pixels).into());
        }
        let size = ImageSize::new(size[0], size[1])?;
        checked_size(size, max_pixels, codec.factor())?;
        checked_clip_skip(clip_skip, prompts.layers())?;
        if !(1..=MAX_BATCH).contains(&batch) {
            return Err(Problem::new("batch", format!("1 to {MAX_BATCH}"), batch).into());
        }
        let schedule = Arc::new(NoiseSchedule::new(&scheduler)?);
        let latent_rgb = match codec.latent_rgb() {
            Some(known) => known,
            None => LatentRgb::fit(&*codec).map_err(Error::backend("fitting the preview"))?,
        };
        let parts = Parts {
            prompts,
            denoiser,
            codec,
            scheduler,
            schedule,
            size,
            defaults,
            clip_skip,
            zero_empty_negative,
            max_pixels,
            batch,
            model,
            refiner,
            latent_rgb,
        };
        Ok(Pipeline {
            parts: Arc::new(parts),
        })
    }
}

/// Checks that a network takes what its prompt encoder gives.
fn check_prompts(what: &str, inputs: &Inputs, prompts: &PromptEncoder) -> Result<(), Error> {
    let (wanted, given) = (inputs.pooled, prompts.pooled_width());
    if wanted.is_some() && wanted != given {
        let width = |width: Option<usize>| width.map_or("none".into(), |w| format!("{w} wide"));
        let (wanted, given) = (width(wanted), width(given));
        return Err(Error::Parts(format!(
            "the {what} takes a pooled text embedding {wanted}, the prompt encoder's is {given}"
        )));
    }
    let (wanted, given) = (inputs.context, prompts.width());
    if wanted != given {
        return Err(Error::Parts(format!(
            "the {what} attends to embeddings {wanted} wide, the text model's are {given} wide"
        )));
    }
    Ok(())
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
            defaults: Defaults::default(),
            clip_skip: 0,
            zero_empty_negative: false,
            max_pixels: MAX_PIXELS,
            batch: 1,
            model: None,
            refiner: None,
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
        let mut encoded = Prompts::new();
        for group in groups(parts, &planned) {
            let pictures = |&request: &usize| {
                let count = planned[request].request.count;
                (0..count).map(move |index| (request, index))
            };
            let most = if planned[group[0]].stays_alone() {
                1
            } else {
                parts.batch
            };
            let mut pictures = group.iter().flat_map(pictures).peekable();
            while pictures.peek().is_some() {
                let batch: Vec<_> = pictures.by_ref().take(most).collect();
                let batch = Batch::new(parts, &planned, batch, &mut encoded, stop)?;
                batch.run(&mut observer)?;
            }
        }
        Ok(())
    }

    /// [`run`](Self::run) on a thread of its own, as an iterator over its events;
    /// [`Events::into_stream`] makes a `Stream` of it, for any async executor. The run ends early
    /// when `stop` is stopped, or when either is dropped.
    ///
    /// ```
    /// # fn example(pipeline: &sd_core::Pipeline) -> Result<(), sd_core::Error> {
    /// use sd_core::{Request, StopToken, Update};
    ///
    /// let stop = StopToken::new();
    /// for event in pipeline.events(vec![Request::new("a fox")], &stop) {
    ///     match event? {
    ///         Update::Step { step, preview } => println!("{}: {:?}", step.index, preview.dimensions()),
    ///         Update::Picture(picture) => println!("seed {}", picture.seed),
    ///         _ => {}
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn events(&self, requests: Vec<Request>, stop: &StopToken) -> Events {
        Events::start(self.clone(), requests, stop)
    }

    /// Returns D(x; sigma) of this model, guided, for a sampler of one's own, for latents of a
    /// picture of `size`. A model that takes sizes is told that the picture is neither scaled nor
    /// cropped. Guidance on an [interval](crate::ClassifierFree::interval) needs the
    /// [rungs](Guided::rungs).
    ///
    /// # Errors
    /// [`Error::Request`] when the size, an embedding's shape or the guidance cannot be used, or
    /// the model takes a picture beside the latents.
    pub fn guided<'a>(
        &'a self,
        size: ImageSize,
        prompt: &PromptEmbedding,
        negative: Option<&PromptEmbedding>,
        guidance: impl Into<Guidance>,
    ) -> Result<Guided<'a>, Error> {
        let parts = &*self.parts;
        let (_, [height, width]) = checked_size(size, parts.max_pixels, parts.codec.factor())?;
        let guidance = guidance.into();
        let inputs = parts.denoiser.inputs();
        let mut problems = guidance.problems();
        problems.extend(embedding_problem("prompt", prompt, inputs));
        problems.extend(negative.and_then(|it| embedding_problem("negative", it, inputs)));
        if inputs.beside > 0 {
            let expected = "a model that takes latents only";
            problems.push(Problem::new("beside", expected, inputs.beside));
        }
        Problems::check(problems)?;
        let request = Request::new("");
        let sizes = size_values(inputs, &request, size);
        let half = |embedding, row: usize| Half {
            contexts: Contexts::constant(embedding),
            sizes: sizes
                .as_ref()
                .map(|sizes| sizes.slice(s![row..row + 1, ..]).to_owned()),
            beside: None,
        };
        Ok(Guided::new(
            &*parts.denoiser,
            parts.scheduler.prediction,
            [1, inputs.channels, height, width],
            half(prompt, 0),
            negative
                .filter(|_| !inputs.guidance)
                .map(|negative| half(negative, 1)),
            vec![guidance],
            StopToken::new(),
        ))
    }

    /// The picture that latents `[1, channels, h, w]` are, in the scaling of [`Picture::latents`](crate::Picture::latents). NaN becomes black.
    ///
    /// Runs to its end; [`LatentCodec::decode`] of [`codec`](Self::codec) takes a token.
    ///
    /// # Errors
    /// [`Error::Request`] when they have another shape or would be too large a picture; [`Error::Backend`] when the codec
    /// fails.
    pub fn decode(&self, latents: ArrayView4<'_, f32>) -> Result<RgbImage, Error> {
        let channels = self.parts.codec.latent_channels();
        let (batch, found, height, width) = latents.dim();
        if batch != 1 || found != channels || height == 0 || width == 0 {
            let expected = format!("one of shape (1, {channels}, h, w)");
            let found = format!("an array of shape {:?}", latents.dim());
            return Err(Problem::new("latents", expected, found).into());
        }
        let factor = self.parts.codec.factor();
        let pixels = [height, width, factor, factor]
            .iter()
            .fold(1, |product: u64, &side| product.saturating_mul(side as u64));
        if pixels > self.parts.max_pixels {
            let expected = format!("at most {}", self.parts.max_pixels);
            let found = format!("{pixels} pixels");
            return Err(Problem::new("latents", expected, found).into());
        }
        let pixels = self.parts.pixels(latents, &StopToken::new())?;
        Ok(to_rgb(pixels.index_axis(Axis(0), 0)))
    }

    /// What the latents of a picture may be; [`LatentDistribution::mode`] is the most likely. Runs to its end.
    ///
    /// # Errors
    /// [`Error::Request`] when a side of the picture is no multiple of the codec's factor, or there are too many pixels;
    /// [`Error::Backend`] when the codec fails.
    pub fn encode_image(&self, image: &RgbImage) -> Result<LatentDistribution, Error> {
        let parts = &*self.parts;
        let size = ImageSize::new(image.width(), image.height())?;
        let (_, latents) = checked_size(size, parts.max_pixels, parts.codec.factor())?;
        let failed = |source| Error::backend("encoding the image")(source);
        let pixels = from_rgb(image);
        let encoded = parts.codec.encode(pixels.view(), &StopToken::new());
        let encoded = encoded.map_err(failed)?;
        let [height, width] = latents;
        let expected = (1, parts.codec.latent_channels(), height, width);
        let found = [encoded.mean.dim(), encoded.log_variance.dim()];
        if found != [expected; 2] {
            let problem = format!("the codec returned {found:?}, expected {expected:?} twice");
            return Err(failed(problem.into()));
        }
        Ok(encoded)
    }

    /// The coefficients of previews.
    pub fn latent_rgb(&self) -> &LatentRgb {
        &self.parts.latent_rgb
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

    /// The steps, guidance, sampler and ladder of a request that names none.
    pub fn defaults(&self) -> &Defaults {
        &self.parts.defaults
    }

    /// Returns a request with this pipeline's choices for what it leaves open: size, steps,
    /// guidance, sampler, ladder and clip skip. It draws what the request itself draws.
    ///
    /// ```
    /// # fn example(pipeline: &sd_core::Pipeline) {
    /// use sd_core::Request;
    ///
    /// let request = pipeline.with_defaults(Request::new("a fox"));
    /// println!("{} steps, guidance {:?}", request.step_count(), request.guidance);
    /// # }
    /// ```
    pub fn with_defaults(&self, request: Request) -> Request {
        let parts = &*self.parts;
        let chosen = parts.defaults.chosen(&request, &parts.scheduler);
        let size = [parts.size.width(), parts.size.height()];
        Request {
            size: request.size.or(Some(size)),
            steps: Some(chosen.steps),
            guidance: Some(chosen.guidance),
            scheduler: Some(chosen.scheduler),
            ladder: Some(chosen.ladder),
            clip_skip: request.clip_skip.or(Some(parts.clip_skip)),
            ..request
        }
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

    /// Returns where the nodes of every loaded network run: which provider of ONNX Runtime runs how
    /// many of them. A network that is not loaded at the moment is not listed.
    ///
    /// ```
    /// # fn example(pipeline: &sd_core::Pipeline) {
    /// for network in pipeline.device_report() {
    ///     println!("{network}");
    /// }
    /// # }
    /// ```
    pub fn device_report(&self) -> Vec<NetworkReport> {
        let parts = &*self.parts;
        let mut report = Vec::new();
        let refiner = parts.refiner.as_ref();
        let prompts = [
            Some(&parts.prompts),
            refiner.map(|refiner| &refiner.prompts),
        ];
        for tower in prompts
            .into_iter()
            .flatten()
            .flat_map(PromptEncoder::towers)
        {
            report.extend(tower.model().report());
        }
        report.extend(parts.denoiser.report());
        report.extend(refiner.into_iter().flat_map(|it| it.denoiser.report()));
        report.extend(parts.codec.report());
        report
    }

    /// The name of the model and the SHA-256 of its file, as infotexts have them, where they are known. The first call may
    /// read the file through.
    pub fn model(&self) -> Option<(&str, Option<&str>)> {
        let model = self.parts.model.as_ref()?;
        Some((&model.name, model.hash()))
    }

    /// Returns the request that makes a picture again with this model: that of
    /// [`Infotext::request`], without what this model cannot do, each with a difference. A clip
    /// skip of WebUI's is left out for models on which WebUI does not apply it, SDXL and Stable
    /// Diffusion 2, and a refiner where this pipeline has none.
    pub fn reproduction(&self, infotext: &Infotext) -> Reproduction {
        let mut again = infotext.request();
        let layer = again.request.clip_skip.unwrap_or(0);
        // WebUI applies it to the text model of Stable Diffusion 1.x, which is 768 wide.
        if infotext.is_foreign() && layer > 0 && self.parts.prompts.width() > SD1_WIDTH {
            again.request.clip_skip = Some(0);
            let note =
                format!("`Clip skip: {layer}` is not applied: WebUI ignores it for such models");
            again.differences.push(note);
        }
        if again.request.refiner.is_some() && self.parts.refiner.is_none() {
            again.request.refiner = None;
            let name = infotext.get("Refiner").unwrap_or("of unknown name");
            again.differences.push(format!(
                "the refiner {} made the last steps, and this pipeline has none",
                printable(name)
            ));
        }
        again
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
        let mut f = f.debug_struct("Pipeline");
        f.field("scheduler", scheduler)
            .field("size", size)
            .field("clip_skip", clip_skip)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for PipelineBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut f = f.debug_struct("PipelineBuilder");
        f.field("size", &self.size)
            .field("clip_skip", &self.clip_skip)
            .finish_non_exhaustive()
    }
}
