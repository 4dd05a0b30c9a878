//! The pipeline, which turns requests into pictures.

use std::{io, ops::ControlFlow, sync::Arc};

use image::RgbImage;
use ndarray::{ArrayView4, Axis, s};
use sd_schedulers::{NoiseSchedule, SchedulerConfig};
use sd_text::{PromptEmbedding, PromptEncoder, outside::printable};

use crate::{
    BuildError, Defaults, Denoiser, Event, Events, GenerateError, Generation, Guidance, Guided,
    ImageSize, Infotext, Inputs, LatentCodec, LatentDistribution, LatentRgb, LoraInfo, LoraLibrary,
    NetworkReport, PictureUpscaler, Problem, Problems, Reproduction, Request, StopToken, Upscaler,
    conditioning::Contexts,
    guided::Half,
    infotext::{self, keys},
    lora::{self, Callable, Lora, LoraWeight},
    model_id::ModelId,
    parts::{NamedUpscaler, Parts, Refiner, names_problem},
    picture::{from_rgb, to_rgb},
    pixels::Filter,
    plan::{checked_clip_skip, checked_size, embedding_problem, groups, plan, size_values},
    run::{Batch, Pass, Prompts},
    start,
};

/// The largest value of [`PipelineBuilder::max_pixels`]. A picture of this size takes 12 GiB as
/// `f32`.
const MOST_PIXELS: u64 = 1 << 30;

/// The largest value of [`PipelineBuilder::max_batch`].
const MAX_BATCH: usize = 1024;

/// The width of the text embeddings of Stable Diffusion 1.x.
const SD1_WIDTH: usize = 768;

/// The default of [`PipelineBuilder::max_pixels`], 4096 × 4096.
///
/// Attention over a larger picture needs more memory than most machines have.
pub const MAX_PIXELS: u64 = 4096 * 4096;

/// A loaded model, ready to draw.
///
/// `sd_onnx::builder()` makes a pipeline from a model folder, and [`Pipeline::builder`] makes one
/// from custom parts.
///
/// A pipeline is cheap to clone: clones share the model. Pipelines may also share single parts. A
/// part is freed when the last pipeline that uses it is dropped.
///
/// Any number of threads may draw with the same pipeline. Each call draws its pictures one after
/// the other, or [batch](PipelineBuilder::max_batch) by batch, on the caller's thread. The parts
/// decide how much of several calls runs at the same time. Each network of `sd-onnx` runs one call
/// at a time, because a single call already uses all cores; other callers wait.
#[derive(Clone)]
pub struct Pipeline {
    pub(crate) parts: Arc<Parts>,
}

/// Builds a [`Pipeline`] from its parts.
#[derive(Clone)]
pub struct PipelineBuilder {
    prompts: PromptEncoder,
    denoiser: Arc<dyn Denoiser>,
    codec: Arc<dyn LatentCodec>,
    scheduler: SchedulerConfig,
    size: [u32; 2],
    defaults: Defaults,
    redrawing: Option<(SchedulerConfig, Defaults)>,
    clip_skip: usize,
    zero_empty_negative: bool,
    max_pixels: u64,
    max_batch: usize,
    model: Option<Arc<ModelId>>,
    loras: Vec<Arc<Lora>>,
    lora_library: Option<Arc<dyn LoraLibrary>>,
    refiner: Option<Refiner>,
    upscalers: Vec<NamedUpscaler>,
    preview_codec: Option<Arc<dyn LatentCodec>>,
}

impl PipelineBuilder {
    /// Sets the size, in pixels, of a picture whose request does not set one.
    ///
    /// Default: 512 × 512.
    pub fn size(mut self, width: u32, height: u32) -> Self {
        self.size = [width, height];
        self
    }

    /// Sets the steps, guidance, sampler and ladder of a request that does not set them.
    ///
    /// Default: [`Defaults::default`], the values for Stable Diffusion 1.x.
    ///
    /// ```
    /// # fn example(builder: sd_core::PipelineBuilder) -> Result<(), Box<dyn std::error::Error>> {
    /// use sd_core::{Defaults, schedulers::Ladder};
    ///
    /// // A distilled model wants few steps and no guidance.
    /// let defaults = Defaults::default().steps(4).guidance(1.0).ladder(Ladder::lcm());
    /// let pipeline = builder.defaults(defaults).build()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn defaults(mut self, defaults: Defaults) -> Self {
        self.defaults = defaults;
        self
    }

    /// Sets another scheduler configuration, and other defaults, for requests that have a
    /// [`Mask`](crate::Mask) of diffusers' rule, or channels [beside](Request::beside) the latents.
    ///
    /// diffusers' inpainting classes correct a model's scheduler configuration differently from its
    /// other classes. Only the options of samplers may differ, because all requests share the noise
    /// schedule of the pipeline: [`build`](Self::build) returns [`BuildError::Parts`] for another
    /// noise schedule or prediction.
    ///
    /// Default: the same configuration and defaults as for all other requests.
    pub fn redrawing(mut self, scheduler: SchedulerConfig, defaults: Defaults) -> Self {
        self.redrawing = Some((scheduler, defaults));
        self
    }

    /// Sets the clip skip of a request that does not set one, in WebUI's numbering: 1 is CLIP's
    /// last layer, and 0 is the model's usual layer.
    ///
    /// Default: 0.
    pub fn clip_skip(mut self, layer: usize) -> Self {
        self.clip_skip = layer;
        self
    }

    /// Sets whether an empty negative prompt is replaced by an embedding of zeros instead of being
    /// encoded. diffusers calls this `force_zeros_for_empty_prompt`; it is true for SDXL.
    ///
    /// Default: false.
    pub fn zero_empty_negative(mut self, zeros: bool) -> Self {
        self.zero_empty_negative = zeros;
        self
    }

    /// Sets the largest picture that a request may ask for, in pixels, at most 2³⁰.
    ///
    /// Default: [`MAX_PIXELS`].
    pub fn max_pixels(mut self, pixels: u64) -> Self {
        self.max_pixels = pixels;
        self
    }

    /// Sets the largest batch: how many pictures of a call the denoiser processes together, 1 to
    /// 1024.
    ///
    /// Pictures share a batch if they agree in all of these:
    ///
    /// - size, scheduler, ladder, number of steps, and the LoRAs that their prompts call;
    /// - the step at which a refiner takes over;
    /// - the number of branches and of tokens of their prompts;
    /// - the noise level at which a start begins, and the rule of its mask;
    /// - the [controls](crate::Request::controls), with the start if they see it, the
    ///   [windows](crate::Request::tiles), and the [shortcuts](crate::Request::shortcuts);
    /// - for a second pass, all of the above again, and the upscaler.
    ///
    /// A picture from a batch differs from the same picture drawn alone only by rounding in the
    /// network. A scheduler that looks at all its values together
    /// ([`Needs::one_picture`](sd_schedulers::samplers::Needs::one_picture)) always draws pictures
    /// alone, and so does [`Stability`](crate::shortcuts::Stability).
    ///
    /// Default: 1, because batches are slower on a CPU.
    ///
    /// ```
    /// # fn example(builder: sd_core::PipelineBuilder) -> Result<(), Box<dyn std::error::Error>> {
    /// use sd_core::Request;
    ///
    /// let pipeline = builder.max_batch(4).build()?;
    /// // Two batches of four pictures.
    /// let generation = pipeline.generate(&Request::new("a fox").count(8))?;
    /// assert_eq!(generation.pictures.len(), 8);
    /// # Ok(())
    /// # }
    /// ```
    pub fn max_batch(mut self, pictures: usize) -> Self {
        self.max_batch = pictures;
        self
    }

    /// Sets the model's name and hash, which the infotext of pictures reports.
    ///
    /// `hash` returns the SHA-256 of the model file in hexadecimal digits. It is called once, when
    /// the hash is first needed.
    ///
    /// Default: the infotext does not name the model.
    pub fn model(
        mut self,
        name: impl Into<String>,
        hash: impl Fn() -> io::Result<String> + Send + Sync + 'static,
    ) -> Self {
        self.model = Some(Arc::new(ModelId::new(name.into(), hash)));
        self
    }

    /// Records a LoRA that the caller has merged into the networks. The infotext of pictures
    /// reports it. The method changes no network. It can be called several times, in the order in
    /// which the LoRAs were merged.
    ///
    /// `hash` returns the hash that WebUI gives the file, in hexadecimal digits, of which the first
    /// 12 are reported. It is called once, when the hash is first needed.
    ///
    /// Default: none.
    pub fn lora(
        mut self,
        name: impl Into<String>,
        weight: impl Into<LoraWeight>,
        hash: impl Fn() -> io::Result<String> + Send + Sync + 'static,
    ) -> Self {
        let (id, weight) = (ModelId::new(name.into(), hash), weight.into());
        self.loras.push(Arc::new(Lora { id, weight }));
        self
    }

    /// Sets the LoRAs that prompts can call, as in `<lora:watercolour:0.8>`. [`LoraLibrary`]
    /// describes the syntax.
    ///
    /// The LoRAs of a prompt are applied on top of the LoRAs that are
    /// [merged](PipelineBuilder::lora) into the networks. They do not change a
    /// [refiner](PipelineBuilder::refiner).
    ///
    /// Default: no library. A prompt that calls a LoRA is then refused.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # fn example(
    /// #     builder: sd_core::PipelineBuilder,
    /// #     library: Arc<dyn sd_core::LoraLibrary>,
    /// # ) -> Result<(), Box<dyn std::error::Error>> {
    /// use sd_core::Request;
    ///
    /// let pipeline = builder.lora_library(library).build()?;
    /// let plain = pipeline.generate(&Request::new("a fox"))?;
    /// let painted = pipeline.generate(&Request::new("a fox <lora:watercolour:0.8>"))?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn lora_library(mut self, library: Arc<dyn LoraLibrary>) -> Self {
        self.lora_library = Some(library);
        self
    }

    /// Sets a model that makes the last steps of each picture, such as SDXL's refiner. Infotexts
    /// report `name`. [`Request::refiner`] sets when the refiner takes over.
    ///
    /// Default: no refiner.
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

    /// Adds an upscaler, a network that enlarges pictures. Requests call it by this name:
    /// [`Upscaler::Network`](crate::Upscaler::Network). The method can be called several times,
    /// each time with another name. WebUI's name of such a network is the name of its file without
    /// the extension.
    ///
    /// Default: none. A request that calls one is then refused.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # fn example(
    /// #     builder: sd_core::PipelineBuilder,
    /// #     network: Arc<dyn sd_core::PictureUpscaler>,
    /// # ) -> Result<(), Box<dyn std::error::Error>> {
    /// use sd_core::{Hires, Request, Upscaler};
    ///
    /// let pipeline = builder.upscaler("4x-sharp", network).build()?;
    /// let upscaler = Upscaler::Network("4x-sharp".to_owned());
    /// let hires = Hires::scale(2.0).upscaler(upscaler).strength(0.4);
    /// pipeline.generate(&Request::new("a fox").hires(hires))?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn upscaler(mut self, name: impl Into<String>, network: Arc<dyn PictureUpscaler>) -> Self {
        let name = name.into().into();
        self.upscalers.push(NamedUpscaler { name, network });
        self
    }

    /// Sets a codec that decodes previews ([`Progress::preview`](crate::Progress::preview)), such
    /// as TAESD. Previews then have full size and all details, and each one costs a call of this
    /// codec.
    ///
    /// Default: none. Previews are a linear map of the latents.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # fn example(
    /// #     builder: sd_core::PipelineBuilder,
    /// #     taesd: Arc<dyn sd_core::LatentCodec>,
    /// # ) -> Result<(), Box<dyn std::error::Error>> {
    /// use std::ops::ControlFlow;
    ///
    /// use sd_core::{Event, Request, StopToken};
    ///
    /// let pipeline = builder.preview_codec(taesd).build()?;
    /// let request = Request::new("a fox").size(512, 512);
    /// pipeline.run(&[request], &StopToken::new(), |event| {
    ///     if let Event::Step(progress) = event {
    ///         assert_eq!(progress.preview().dimensions(), (512, 512));
    ///     }
    ///     ControlFlow::Continue(())
    /// })?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn preview_codec(mut self, codec: Arc<dyn LatentCodec>) -> Self {
        self.preview_codec = Some(codec);
        self
    }

    /// Checks the parts and builds the pipeline.
    ///
    /// If the codec has no [`latent_rgb`](LatentCodec::latent_rgb), the coefficients of previews
    /// are [fitted](LatentRgb::fit) now. This costs eight decodes of 8 × 8 latents.
    ///
    /// # Errors
    /// - [`BuildError::Parts`] if the denoiser, the codecs, the prompt encoder and the refiner do
    ///   not agree on channels, widths or inputs, or if the configuration for
    ///   [redrawing](Self::redrawing) has another noise schedule or prediction, or if two
    ///   [upscalers](Self::upscaler) have the same name, or one has a name of WebUI's own.
    /// - [`BuildError::Scheduler`] if the noise schedule cannot be used.
    /// - [`BuildError::Settings`] if the default size, the default clip skip, `max_pixels` or
    ///   `max_batch` is out of range.
    /// - [`BuildError::Preview`] if the codec fails while the previews are fitted.
    pub fn build(self) -> Result<Pipeline, BuildError> {
        self.check_parts()?;
        let size = self.check_settings()?;
        let Self {
            prompts,
            denoiser,
            codec,
            scheduler,
            size: _,
            defaults,
            redrawing,
            clip_skip,
            zero_empty_negative,
            max_pixels,
            max_batch,
            model,
            loras,
            lora_library,
            refiner,
            upscalers,
            preview_codec,
        } = self;
        let schedule = Arc::new(NoiseSchedule::new(&scheduler)?);
        if let Some((other, _)) = &redrawing
            && (NoiseSchedule::new(other)? != *schedule || other.prediction != scheduler.prediction)
        {
            let problem = "the scheduler configuration for redrawing a part of a picture has \
                           another noise schedule or prediction than the pipeline's";
            return Err(BuildError::Parts(problem.into()));
        }
        let latent_rgb = match codec.latent_rgb() {
            Some(known) => known,
            None => LatentRgb::fit(&*codec).map_err(BuildError::Preview)?,
        };
        let parts = Parts {
            prompts,
            denoiser,
            codec,
            scheduler,
            schedule,
            size,
            defaults,
            redrawing,
            clip_skip,
            zero_empty_negative,
            max_pixels,
            max_batch,
            model,
            loras: loras.into(),
            callable: Arc::new(Callable::new(lora_library)),
            refiner,
            upscalers,
            latent_rgb,
            preview_codec,
        };
        Ok(Pipeline {
            parts: Arc::new(parts),
        })
    }

    /// Checks that the denoiser, the codec, the prompt encoder and the refiner fit each other.
    fn check_parts(&self) -> Result<(), BuildError> {
        let inputs = self.denoiser.inputs();
        let (latents, decoded) = (inputs.channels, self.codec.latent_channels());
        if latents == 0 || self.codec.factor() == 0 {
            return Err(BuildError::Parts(format!(
                "the denoiser has {latents} latent channels and the codec has {} pixels per latent, \
                 expected at least 1 of each",
                self.codec.factor()
            )));
        }
        if latents != decoded {
            return Err(BuildError::Parts(format!(
                "the denoiser has {latents} latent channels, the codec {decoded}"
            )));
        }
        if let Some(codec) = &self.preview_codec
            && (codec.latent_channels() != latents || codec.factor() == 0)
        {
            return Err(BuildError::Parts(format!(
                "the denoiser has {latents} latent channels, the codec of previews has {} and {} \
                 pixels per latent, expected as many channels and at least 1 pixel",
                codec.latent_channels(),
                codec.factor()
            )));
        }
        if inputs.patch == 0 {
            let problem = "the denoiser has patches of 0 latents, expected at least 1";
            return Err(BuildError::Parts(problem.into()));
        }
        check_prompts("denoiser", inputs, &self.prompts)?;
        check_controls(inputs)?;
        if let Some(problem) = names_problem(&self.upscalers) {
            return Err(BuildError::Parts(problem));
        }
        match &self.refiner {
            Some(refiner) => check_refiner(inputs, refiner),
            None => Ok(()),
        }
    }

    /// Checks the settings, and returns the default size.
    fn check_settings(&self) -> Result<ImageSize, BuildError> {
        if self.max_pixels > MOST_PIXELS {
            let expected = format!("at most {MOST_PIXELS}");
            return Err(Problem::new("max_pixels", expected, self.max_pixels).into());
        }
        let size = ImageSize::new(self.size[0], self.size[1])?;
        checked_size(size, self.max_pixels, self.codec.factor())?;
        checked_clip_skip(self.clip_skip, self.prompts.layers())?;
        if !(1..=MAX_BATCH).contains(&self.max_batch) {
            let expected = format!("1 to {MAX_BATCH}");
            return Err(Problem::new("max_batch", expected, self.max_batch).into());
        }
        Ok(size)
    }
}

/// Checks that the control networks have different names, and that their numbers make sense.
fn check_controls(inputs: &Inputs) -> Result<(), BuildError> {
    for (i, of) in inputs.controls.iter().enumerate() {
        let name = printable(&of.name);
        if inputs.controls[..i]
            .iter()
            .any(|other| other.name == of.name)
        {
            let problem = format!("two control networks of the denoiser are called `{name}`");
            return Err(BuildError::Parts(problem));
        }
        if of.channels == 0 || of.multiple == 0 {
            return Err(BuildError::Parts(format!(
                "the control network `{name}` has {} channels and sides in multiples of {}, \
                 expected at least 1 of each",
                of.channels, of.multiple
            )));
        }
    }
    Ok(())
}

/// Checks that a refiner continues what a denoiser with these inputs begins.
fn check_refiner(inputs: &Inputs, refiner: &Refiner) -> Result<(), BuildError> {
    let refines = refiner.denoiser.inputs();
    check_prompts("refiner", refines, &refiner.prompts)?;
    if refines.patch == 0 {
        let problem = "the refiner has patches of 0 latents, expected at least 1";
        return Err(BuildError::Parts(problem.into()));
    }
    let latents = inputs.channels;
    if (refines.channels, refines.extra_channels) != (latents, 0) {
        return Err(BuildError::Parts(format!(
            "the refiner takes {} latent channels with {} beside them, expected {latents} as in \
             the denoiser with 0 beside them",
            refines.channels, refines.extra_channels
        )));
    }
    if refines.seamless != inputs.seamless {
        return Err(BuildError::Parts(format!(
            "the refiner has {:?}, expected {:?} as in the denoiser",
            refines.seamless, inputs.seamless
        )));
    }
    if refines.guidance != inputs.guidance {
        let problem = "only one of denoiser and refiner takes the guidance scale as an input";
        return Err(BuildError::Parts(problem.into()));
    }
    Ok(())
}

/// Checks that a network takes the embeddings that its prompt encoder returns.
fn check_prompts(what: &str, inputs: &Inputs, prompts: &PromptEncoder) -> Result<(), BuildError> {
    let (wanted, given) = (inputs.pooled, prompts.pooled_width());
    if wanted.is_some() && wanted != given {
        let width = |width: Option<usize>| width.map_or("none".into(), |w| format!("{w} wide"));
        let (wanted, given) = (width(wanted), width(given));
        return Err(BuildError::Parts(format!(
            "the {what} takes a pooled text embedding {wanted}, but the prompt encoder's is {given}"
        )));
    }
    let (wanted, given) = (inputs.context, prompts.width());
    if wanted != given {
        return Err(BuildError::Parts(format!(
            "the {what} attends to embeddings {wanted} wide, but the text model's are {given} wide"
        )));
    }
    Ok(())
}

impl Pipeline {
    /// Starts building a pipeline from custom parts.
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
            redrawing: None,
            clip_skip: 0,
            zero_empty_negative: false,
            max_pixels: MAX_PIXELS,
            max_batch: 1,
            model: None,
            loras: Vec::new(),
            lora_library: None,
            refiner: None,
            upscalers: Vec::new(),
            preview_codec: None,
        }
    }

    /// Generates the pictures of a request.
    ///
    /// # Errors
    /// - [`GenerateError::Request`] with everything that is wrong with the request, before any
    ///   network runs.
    /// - [`GenerateError::Prompt`] if a prompt cannot be encoded.
    /// - [`GenerateError::Backend`] if a network or the LoRA library fails.
    /// - [`GenerateError::NotFinite`] if a result contains NaN or infinity.
    pub fn generate(&self, request: &Request) -> Result<Generation, GenerateError> {
        self.generate_all(std::slice::from_ref(request))
    }

    /// Generates pictures for several requests, which may differ in every field. The pictures are
    /// in the order of the requests. A text that several requests share is encoded once.
    ///
    /// # Errors
    /// Returns the same errors as [`generate`](Self::generate). An error discards the pictures that
    /// were finished before it; use [`run`](Self::run) to keep them.
    pub fn generate_all(&self, requests: &[Request]) -> Result<Generation, GenerateError> {
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

    /// Generates pictures for several requests, and reports each step and each finished picture to
    /// `observer`. All other drawing methods call this one.
    ///
    /// The observer ends the run by returning [`ControlFlow::Break`], and `stop` ends it from any
    /// thread. A run ends between two network calls, or within one if the backend supports it. The
    /// error holds the latents so far, and nothing more is decoded. The pipeline remains usable,
    /// also after a panic of the observer, which is passed on to the caller.
    ///
    /// ```
    /// # fn example(pipeline: &sd_core::Pipeline) -> Result<(), sd_core::GenerateError> {
    /// use std::ops::ControlFlow;
    /// use sd_core::{Event, Request, StopToken};
    ///
    /// let requests = [Request::new("a fox").count(2), Request::new("a cat").steps(30)];
    /// let stop = StopToken::new();
    /// pipeline.run(&requests, &stop, |event| {
    ///     match event {
    ///         Event::Step(progress) => {
    ///             let step = progress.step;
    ///             println!("step {} of {}", step.index + 1, step.total);
    ///         }
    ///         Event::Picture(picture) => {
    ///             println!("seed {} took {:?}", picture.seed, picture.timings.total());
    ///         }
    ///         _ => {}
    ///     }
    ///     ControlFlow::Continue(())
    /// })?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Returns the same errors as [`generate`](Self::generate), and [`GenerateError::Stopped`] if
    /// the run was ended early.
    pub fn run(
        &self,
        requests: &[Request],
        stop: &StopToken,
        mut observer: impl FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<(), GenerateError> {
        let parts = &*self.parts;
        let planned = plan(parts, requests)?;
        let mut encoded = Prompts::new();
        let mut changed = None;
        for group in groups(parts, &planned) {
            let loras = &planned[group[0]].loras;
            // Other networks are dropped first, as there may be no memory for both.
            let kept = changed.take().filter(|(last, _)| *last == loras);
            let networks = match kept {
                Some((_, networks)) => networks,
                None => parts.networks(loras, stop)?,
            };
            let (_, networks) = changed.insert((loras, networks));
            let pictures = |&request: &usize| {
                let count = planned[request].request.count;
                (0..count).map(move |index| (request, index))
            };
            let most = if planned[group[0]].stays_alone() {
                1
            } else {
                parts.max_batch
            };
            let mut pictures = group.iter().flat_map(pictures).peekable();
            while pictures.peek().is_some() {
                let batch: Vec<_> = pictures.by_ref().take(most).collect();
                let pass = Pass::First;
                let batch = Batch::new(parts, networks, &planned, pass, batch, &mut encoded, stop)?;
                batch.run(&mut encoded, &mut observer)?;
            }
        }
        Ok(())
    }

    /// Calls [`run`](Self::run) on a new thread, and returns an iterator over its events.
    /// [`Events::into_stream`] turns the iterator into a `Stream` for any async executor.
    ///
    /// The run ends early when `stop` is stopped, and when the iterator or the stream is dropped.
    ///
    /// ```
    /// # fn example(pipeline: &sd_core::Pipeline) -> Result<(), sd_core::GenerateError> {
    /// use sd_core::{Request, StopToken, Update};
    ///
    /// let stop = StopToken::new();
    /// for event in pipeline.events(vec![Request::new("a fox")], &stop) {
    ///     match event? {
    ///         Update::Step { step, preview } => {
    ///             println!("step {}, preview {:?}", step.index, preview.dimensions());
    ///         }
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

    /// Returns the guided denoiser D(x; sigma) of this model, for latents of a picture of `size`.
    /// Custom samplers call it. LoRAs that prompts call do not change it.
    ///
    /// A model that takes sizes is conditioned on a picture that was neither scaled nor cropped. If
    /// guidance is limited to an [interval](crate::ClassifierFree::interval), also set the
    /// [rungs](Guided::rungs).
    ///
    /// # Errors
    /// [`GenerateError::Request`] if the size, the shape of an embedding or the guidance cannot be
    /// used, or if the model takes extra channels beside the latents.
    pub fn guided<'a>(
        &'a self,
        size: ImageSize,
        prompt: &PromptEmbedding,
        negative: Option<&PromptEmbedding>,
        guidance: impl Into<Guidance>,
    ) -> Result<Guided<'a>, GenerateError> {
        let parts = &*self.parts;
        let (_, [height, width]) = checked_size(size, parts.max_pixels, parts.codec.factor())?;
        let guidance = guidance.into();
        let inputs = parts.denoiser.inputs();
        let mut problems = guidance.problems();
        problems.extend(embedding_problem("prompt", prompt, inputs));
        problems.extend(negative.and_then(|it| embedding_problem("negative", it, inputs)));
        if inputs.extra_channels > 0 {
            let expected = "a model that takes latents only";
            problems.push(Problem::new("beside", expected, inputs.extra_channels));
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
            controls: [].into(),
            negative: row == 1,
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

    /// Decodes latents `[1, channels, h, w]` to a picture. The latents are in the scaling of
    /// [`Picture::latents`](crate::Picture::latents). NaN becomes black.
    ///
    /// This method cannot be stopped. Call [`LatentCodec::decode`] of the [`codec`](Self::codec) to
    /// pass a [`StopToken`].
    ///
    /// # Errors
    /// - [`GenerateError::Request`] if the latents have another shape, or the picture would have
    ///   too many pixels.
    /// - [`GenerateError::Backend`] if the codec fails.
    pub fn decode(&self, latents: ArrayView4<'_, f32>) -> Result<RgbImage, GenerateError> {
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

    /// Encodes a picture to the distribution of its latents. [`LatentDistribution::mode`] returns
    /// the most likely latents. This method cannot be stopped.
    ///
    /// # Errors
    /// - [`GenerateError::Request`] if a side of the picture is not a multiple of 8 and of the
    ///   codec's factor, or the picture has too many pixels.
    /// - [`GenerateError::Backend`] if the codec fails.
    pub fn encode_image(&self, image: &RgbImage) -> Result<LatentDistribution, GenerateError> {
        let parts = &*self.parts;
        let size = ImageSize::new(image.width(), image.height())?;
        checked_size(size, parts.max_pixels, parts.codec.factor())?;
        start::encode(&*parts.codec, &from_rgb(image), &StopToken::new())
    }

    /// Returns the coefficients of previews.
    pub fn latent_rgb(&self) -> &LatentRgb {
        &self.parts.latent_rgb
    }

    /// Returns the model's scheduler configuration.
    pub fn scheduler_config(&self) -> &SchedulerConfig {
        &self.parts.scheduler
    }

    /// Returns the noise schedule that the model was trained on. Ladders are made from it.
    pub fn schedule(&self) -> &Arc<NoiseSchedule> {
        &self.parts.schedule
    }

    /// Returns the size of a picture whose request does not set one.
    pub fn default_size(&self) -> ImageSize {
        self.parts.size
    }

    /// Returns the steps, guidance, sampler and ladder of a request that does not set them.
    pub fn defaults(&self) -> &Defaults {
        &self.parts.defaults
    }

    /// Returns the request with this pipeline's defaults filled in where it leaves a choice open:
    /// size, steps, guidance, sampler, ladder and clip skip. The result draws the same pictures as
    /// the request.
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
        let (scheduler, defaults) = parts.scheduling(&request);
        let chosen = defaults.chosen(&request, scheduler);
        let of_start = request.start.as_ref();
        let of_start = of_start.and_then(|start| {
            start.default_size(parts.codec.factor(), parts.denoiser.inputs().patch)
        });
        let size = of_start.unwrap_or([parts.size.width(), parts.size.height()]);
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

    /// Returns the prompt encoder.
    pub fn prompt_encoder(&self) -> &PromptEncoder {
        &self.parts.prompts
    }

    /// Returns the denoiser.
    pub fn denoiser(&self) -> &Arc<dyn Denoiser> {
        &self.parts.denoiser
    }

    /// Returns the codec between latents and pictures.
    pub fn codec(&self) -> &Arc<dyn LatentCodec> {
        &self.parts.codec
    }

    /// Returns which execution provider of ONNX Runtime runs how many nodes, for each loaded
    /// network. A network that is not loaded at the moment is not listed.
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
        report.extend(parts.preview_codec.iter().flat_map(|it| it.report()));
        report.extend(parts.upscalers.iter().flat_map(|it| it.network.report()));
        report
    }

    /// Returns the name of the model and the SHA-256 of its file, as infotexts report them.
    ///
    /// The result is `None` if the pipeline has no [model name](PipelineBuilder::model), and the
    /// hash is `None` if the file cannot be read. The first call may read the whole model file.
    pub fn model(&self) -> Option<(&str, Option<&str>)> {
        let model = self.parts.model.as_ref()?;
        Some((&model.name, model.hash()))
    }

    /// Returns the LoRAs that prompts can call, in the order of the
    /// [library](PipelineBuilder::lora_library). Empty if the pipeline has no library.
    ///
    /// ```
    /// # fn example(pipeline: &sd_core::Pipeline) {
    /// for lora in pipeline.loras().iter().filter(|lora| lora.problem.is_none()) {
    ///     println!("<lora:{}:1>", lora.name);
    /// }
    /// # }
    /// ```
    pub fn loras(&self) -> &[LoraInfo] {
        self.parts.callable.infos()
    }

    /// Returns the [library](PipelineBuilder::lora_library) of LoRAs that prompts can call. A
    /// program that has its own denoising loop gets the networks with LoRAs from it.
    pub fn lora_library(&self) -> Option<&dyn LoraLibrary> {
        self.parts.callable.library()
    }

    /// Returns the [network that enlarges pictures](PipelineBuilder::upscaler) with this name.
    pub fn upscaler(&self, name: &str) -> Option<&Arc<dyn PictureUpscaler>> {
        self.parts.upscaler(name)
    }

    /// Iterates over the [networks that enlarge pictures](PipelineBuilder::upscaler) and their
    /// names, in the order in which they were added.
    pub fn upscalers(&self) -> impl Iterator<Item = (&str, &Arc<dyn PictureUpscaler>)> {
        let upscalers = self.parts.upscalers.iter();
        upscalers.map(|NamedUpscaler { name, network }| (&**name, network))
    }

    /// Returns the request that draws a picture again with this model.
    ///
    /// It is the request of [`Infotext::request`] without the parts that this model does not
    /// support, each of which is listed as a difference. WebUI's clip skip is dropped for models on
    /// which WebUI does not apply it, SDXL and Stable Diffusion 2. A refiner is dropped if this
    /// pipeline has none. Merged LoRAs are a difference unless this pipeline has the same LoRAs,
    /// with the same weights and in the same order. Seamless axes are a difference unless this
    /// pipeline has the [same axes](Infotext::seamless). An
    /// [approximation](LatentCodec::approximation) of the decoder is a difference unless this
    /// pipeline's codec makes the same, and so is a [precision](Denoiser::precision) other than
    /// f32. A network that enlarged the picture for a
    /// second pass is found by its [name](PipelineBuilder::upscaler); if this pipeline has none of
    /// that name, Lanczos replaces it, which is a difference.
    ///
    /// LoRAs that the prompts call are compared with the [library](PipelineBuilder::lora_library):
    ///
    /// - A LoRA that the library has under this name, with the hash of the infotext if it has one,
    ///   is no difference.
    /// - If a LoRA of another name has the hash, the prompt is changed to that name, as in WebUI.
    ///   This is no difference either. To find it, all files of the library may be read once.
    /// - If the library has the name with another hash only, the difference names both hashes.
    /// - A LoRA that the library does not have, or that cannot be used as the prompt says, is
    ///   removed from the prompt, and listed as a difference.
    pub fn reproduction(&self, infotext: &Infotext) -> Reproduction {
        // WebUI applies a clip skip only to the text model of Stable Diffusion 1.x.
        let is_wide = self.parts.prompts.width() > SD1_WIDTH;
        let mut again = infotext::reproduction(infotext, Some(&self.parts.callable), is_wide);
        self.compare_merged(infotext, &mut again);
        let inputs = self.parts.denoiser.inputs();
        let plain = Request::new("").image_guidance;
        if again.request.image_guidance != plain && inputs.extra_channels != inputs.channels {
            let scale = std::mem::replace(&mut again.request.image_guidance, plain);
            again.differences.push(format!(
                "`{}: {scale}` is not applied: this model takes no picture",
                keys::IMAGE_CFG_SCALE
            ));
        }
        if inputs.seamless == infotext.seamless() {
            let note = infotext::tiling::note(inputs.seamless);
            again
                .differences
                .retain(|difference| note.as_ref() != Some(difference));
        } else {
            let note = infotext::tiling::note_of_pipeline(inputs.seamless);
            again.differences.extend(note);
        }
        self.compare_arithmetic(infotext, &mut again);
        self.compare_upscaler(infotext, &mut again);
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

    /// Compares the decoder and the precision of the picture with the pipeline's own.
    fn compare_arithmetic(&self, infotext: &Infotext, again: &mut Reproduction) {
        let of_file = |key| infotext.get(key).filter(|_| !infotext.is_foreign());
        let own_decoder = self.parts.codec.approximation(self.final_latents(again));
        let own_precision = self.parts.denoiser.precision();
        let decoder = of_file(keys::SD_DECODER);
        let precision = of_file(keys::SD_PRECISION);
        let found = &mut again.differences;
        for (own, theirs, note) in [
            (own_decoder, decoder, decoder.map(infotext::decoder_note)),
            (
                own_precision,
                precision,
                precision.map(infotext::precision_note),
            ),
        ] {
            if own == theirs {
                found.retain(|difference| Some(difference) != note.as_ref());
            }
        }
        if let (Some(own), None) = (own_decoder, decoder) {
            found.push(format!(
                "this pipeline decodes with {own}, unlike this picture"
            ));
        }
        if let (Some(own), None) = (own_precision, precision)
            && !infotext.is_foreign()
        {
            found.push(format!(
                "this pipeline computes in {own}, unlike this picture"
            ));
        }
    }

    /// Returns the height and width of the latents of the finished picture.
    fn final_latents(&self, again: &Reproduction) -> [usize; 2] {
        let factor = self.parts.codec.factor();
        let [width, height] = [self.parts.size.width(), self.parts.size.height()];
        let first = again.request.size.unwrap_or([width, height]);
        let patch = self.parts.denoiser.inputs().patch;
        let unit = crate::size::unit(factor * patch) as u32;
        let hires = again.request.hires.as_ref();
        let last = hires.and_then(|hires| hires.enlarged(first, unit).ok());
        let [width, height] = last.map_or(first, |sizes| sizes.size);
        [height, width].map(|side| side as usize / factor)
    }

    /// Follows the network that enlarged the picture for a second pass, if this pipeline has it.
    fn compare_upscaler(&self, infotext: &Infotext, again: &mut Reproduction) {
        let Some(hires) = &mut again.request.hires else {
            return;
        };
        let Upscaler::Network(name) = hires.upscaler.clone() else {
            return;
        };
        let note = infotext::network_note(&name);
        let shown = printable(&name);
        let here = if self.upscaler(&name).is_none() {
            hires.upscaler = Upscaler::Pixels(Filter::Lanczos);
            Some(format!(
                "the picture was enlarged by `{shown}`, which this pipeline does not have, so \
                 Lanczos is used"
            ))
        } else if infotext.is_foreign() {
            Some(format!(
                "WebUI gives `{shown}` blue, green and red instead of red, green and blue, so \
                 details differ"
            ))
        } else {
            None
        };
        let place = again.differences.iter().position(|known| *known == note);
        match (place, here) {
            (Some(place), Some(here)) => again.differences[place] = here,
            (Some(place), None) => drop(again.differences.remove(place)),
            (None, here) => again.differences.extend(here),
        }
    }

    /// Compares the LoRAs that were merged into the networks with this pipeline's own.
    fn compare_merged(&self, infotext: &Infotext, again: &mut Reproduction) {
        let loras = &self.parts.loras;
        let weights = lora::weights(loras);
        let theirs = infotext.get(keys::SD_LORAS);
        let theirs = theirs.filter(|_| !infotext.is_foreign());
        let same = |theirs: &&str| {
            let hashes = infotext.get(keys::LORA_HASHES).unwrap_or_default();
            let own = lora::hashes(loras).join(", ");
            let [own, theirs_too] = [&own, hashes].map(infotext::loras::hashes);
            *theirs == weights && own.eq(theirs_too.take(loras.len()))
        };
        if let Some(theirs) = theirs.filter(same) {
            let note = infotext::loras_note(theirs);
            again.differences.retain(|difference| *difference != note);
        } else if !loras.is_empty() {
            again.differences.push(format!(
                "this pipeline has the LoRAs `{}`, with which the picture was not made",
                printable(&weights)
            ));
        }
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
