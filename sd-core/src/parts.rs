//! The parts of a pipeline.

use std::sync::Arc;

use ndarray::{Array4, ArrayView4};
use sd_schedulers::{NoiseSchedule, SchedulerConfig, names::near};
use sd_text::{
    PromptEncoder,
    outside::{list, printable},
};

use crate::{
    Defaults, Denoiser, GenerateError, ImageSize, LatentCodec, LatentRgb, LoraCall, LoraNetworks,
    MaskRule, PictureUpscaler, Problem, Request, Stage, StopToken, Upscaler,
    lora::{Callable, Lora},
    model_id::ModelId,
    upscale::MOST_SCALE,
};

/// The parts of a [`Pipeline`](crate::Pipeline), checked against each other, and its defaults.
pub(crate) struct Parts {
    pub prompts: PromptEncoder,
    pub denoiser: Arc<dyn Denoiser>,
    pub codec: Arc<dyn LatentCodec>,
    pub scheduler: SchedulerConfig,
    pub schedule: Arc<NoiseSchedule>,
    pub size: ImageSize,
    pub defaults: Defaults,
    /// The scheduler configuration and the defaults of requests that redraw a part of a picture, if
    /// these differ from the others.
    pub redrawing: Option<(SchedulerConfig, Defaults)>,
    pub clip_skip: usize,
    pub zero_empty_negative: bool,
    pub max_pixels: u64,
    pub max_batch: usize,
    pub model: Option<Arc<ModelId>>,
    pub loras: Arc<[Arc<Lora>]>,
    pub callable: Arc<Callable>,
    pub refiner: Option<Refiner>,
    pub upscalers: Vec<NamedUpscaler>,
    pub latent_rgb: LatentRgb,
    /// The codec that decodes previews. `None` for previews by `latent_rgb`.
    pub preview_codec: Option<Arc<dyn LatentCodec>>,
}

/// A second model, which makes the last steps.
#[derive(Clone)]
pub(crate) struct Refiner {
    pub name: Arc<str>,
    pub prompts: PromptEncoder,
    pub denoiser: Arc<dyn Denoiser>,
}

/// A network that enlarges pictures, which requests call by its name.
#[derive(Clone)]
pub(crate) struct NamedUpscaler {
    pub name: Arc<str>,
    pub network: Arc<dyn PictureUpscaler>,
}

/// Returns what is wrong with the names and scales of upscalers.
pub(crate) fn names_problem(upscalers: &[NamedUpscaler]) -> Option<String> {
    upscalers.iter().enumerate().find_map(|(i, upscaler)| {
        let name = printable(&upscaler.name);
        let is_taken = upscalers[..i].iter().any(|it| it.name == upscaler.name);
        let scale = upscaler.network.scale();
        if is_taken || Upscaler::from_webui(&upscaler.name).is_some() {
            Some(format!("the name `{name}` stands for two upscalers"))
        } else if !(1..=MOST_SCALE).contains(&scale) {
            Some(format!(
                "the upscaler `{name}` has the scale {scale}, expected 1 to {MOST_SCALE}"
            ))
        } else {
            None
        }
    })
}

impl Parts {
    /// Returns the network that enlarges pictures with this name.
    pub fn upscaler(&self, name: &str) -> Option<&Arc<dyn PictureUpscaler>> {
        let found = self.upscalers.iter().find(|it| *it.name == *name);
        found.map(|it| &it.network)
    }

    /// Returns the network that a request calls by this name.
    ///
    /// # Errors
    /// Returns a problem of the value `field` with the nearest names if there is none.
    pub fn called_upscaler(
        &self,
        name: &str,
        field: &'static str,
    ) -> Result<&Arc<dyn PictureUpscaler>, Problem> {
        self.upscaler(name).ok_or_else(|| {
            let names = self.upscalers.iter().map(|it| &*it.name);
            let expected = match near(name, names) {
                names if names.is_empty() => {
                    "a pipeline with upscalers (`Builder::upscaler`, `PipelineBuilder::upscaler`)"
                        .to_owned()
                }
                names => format!("the name of an upscaler, such as {}", list(names)),
            };
            Problem::new(field, expected, format_args!("`{name}`"))
        })
    }

    /// Returns the scheduler configuration and the defaults for a request.
    pub fn scheduling(&self, request: &Request) -> (&SchedulerConfig, &Defaults) {
        match &self.redrawing {
            Some((scheduler, defaults)) if redraws_a_part(request) => (scheduler, defaults),
            _ => (&self.scheduler, &self.defaults),
        }
    }

    /// Returns the networks, changed by LoRAs that prompts call.
    pub fn networks(
        &self,
        calls: &[LoraCall],
        stop: &StopToken,
    ) -> Result<LoraNetworks, GenerateError> {
        let Some(library) = self.callable.library() else {
            return Ok(LoraNetworks {
                prompts: self.prompts.clone(),
                denoiser: self.denoiser.clone(),
            });
        };
        if stop.is_stopped() {
            return Err(GenerateError::Stopped(Box::default()));
        }
        let _span = tracing::info_span!("loras", calls = calls.len()).entered();
        let failed = |source| GenerateError::Backend {
            stage: Stage::Loras,
            source,
        };
        let networks = library.networks(calls).map_err(failed)?;
        let (own, found) = (self.denoiser.inputs(), networks.denoiser.inputs());
        if own != found {
            let problem = format!("a denoiser has {found:?}, expected {own:?}");
            return Err(failed(problem.into()));
        }
        let shapes = |prompts: &PromptEncoder| {
            let shapes = prompts.towers().iter().map(|tower| tower.model().shape());
            shapes.collect::<Vec<_>>()
        };
        let (own, found) = (shapes(&self.prompts), shapes(&networks.prompts));
        if own != found {
            let problem = format!("text encoders have {found:?}, expected {own:?}");
            return Err(failed(problem.into()));
        }
        Ok(networks)
    }

    /// Decodes latents, and checks the shape of the result.
    pub fn pixels(
        &self,
        latents: ArrayView4<'_, f32>,
        stop: &StopToken,
    ) -> Result<Array4<f32>, GenerateError> {
        Self::pixels_of(&*self.codec, latents, stop)
    }

    /// Decodes latents with this codec, and checks the shape of the result.
    pub fn pixels_of(
        codec: &dyn LatentCodec,
        latents: ArrayView4<'_, f32>,
        stop: &StopToken,
    ) -> Result<Array4<f32>, GenerateError> {
        let _span = tracing::info_span!("decode").entered();
        let (_, _, height, width) = latents.dim();
        let expected = (1, 3, height * codec.factor(), width * codec.factor());
        let pixels = codec
            .decode(latents, stop)
            .map_err(GenerateError::backend(Stage::Decoder))?;
        if pixels.dim() != expected {
            let problem = format!(
                "the codec returned {:?}, expected {expected:?}",
                pixels.dim()
            );
            return Err(GenerateError::backend(Stage::Decoder)(problem.into()));
        }
        Ok(pixels)
    }
}

/// Returns whether diffusers draws a request with its inpainting pipelines.
fn redraws_a_part(request: &Request) -> bool {
    let mask = request.start.as_ref().and_then(|start| start.mask.as_ref());
    let is_inpainting = mask.is_some_and(|mask| mask.rule == MaskRule::Diffusers);
    is_inpainting || request.beside.is_some()
}
