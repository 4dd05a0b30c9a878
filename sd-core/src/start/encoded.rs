//! The encoded picture of a run that starts from one.

use image::GrayImage;
use ndarray::{ArcArray, Array2, Array4, Ix4};

use super::{Start, StartFrom, blurred, latent_mask, outside};
use crate::{
    GenerateError, Inputs, LatentCodec, LatentDistribution, Posterior, Request, Stage, StopToken,
    picture::from_rgb, plan::Planned,
};

/// What the first latents of a run are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Begin {
    Noise,
    /// The latents of a picture, with noise.
    Picture,
}

impl Begin {
    /// Returns how the run of a request begins.
    ///
    /// An instruct-pix2pix model takes the picture beside the latents, and begins with noise. So
    /// does inpainting at the full strength by diffusers' rules. Image to image begins with the
    /// picture at any strength.
    pub fn of(inputs: &Inputs, request: &Request) -> Self {
        match &request.start {
            None => Self::Noise,
            Some(_) if inputs.extra_channels == inputs.channels => Self::Noise,
            Some(start) if start.is_noise() => Self::Noise,
            Some(_) => Self::Picture,
        }
    }
}

/// The extra channels beside the latents, if the pipeline makes them from the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StartBeside {
    /// The latents of the picture, for an instruct-pix2pix model.
    Picture,
    /// The mask, and the latents of the picture outside of it, for an inpainting model.
    Masked,
}

impl StartBeside {
    /// Returns the extra channels that the pipeline makes for a request. `None` if the network
    /// takes none, if the request has them, or if they cannot be made from its start.
    pub fn of(inputs: &Inputs, request: &Request) -> Option<Self> {
        let start = request.start.as_ref()?;
        if request.beside.is_some() || !matches!(start.from, StartFrom::Pixels(_)) {
            return None;
        }
        match inputs.extra_channels {
            0 => None,
            extra if extra == inputs.channels => Some(Self::Picture),
            extra if extra == inputs.channels + 1 => start.mask.is_some().then_some(Self::Masked),
            _ => None,
        }
    }
}

/// The picture that a run starts from, encoded.
#[derive(Debug)]
pub(crate) struct EncodedStart {
    pub posterior: Posterior,
    /// The latents of the picture. `None` if the run does not need them.
    pub clean: Option<Clean>,
    /// The latents that the network takes beside the noisy ones.
    pub beside: Option<(StartBeside, LatentDistribution)>,
    /// Whether the latents outside the mask are replaced after each step.
    pub blends: bool,
    /// The mask in the size of the latents, `[h, w]`, 0 or 1.
    pub latent_mask: Option<Array2<f32>>,
    /// The picture `[1, 3, H, W]` and its blurred mask, in the size of the request. `None` if no
    /// pixels of the picture are kept.
    pub kept: Option<(Array4<f32>, GrayImage)>,
}

/// The latents of a picture.
#[derive(Debug)]
pub(crate) enum Clean {
    Encoded(LatentDistribution),
    Latents(ArcArray<f32, Ix4>),
}

impl EncodedStart {
    /// Encodes the picture that a run starts from, as far as the run needs it.
    ///
    /// # Errors
    /// [`GenerateError::Backend`] if the codec fails.
    pub fn new(
        start: &Start,
        plan: &Planned,
        codec: &dyn LatentCodec,
        stop: &StopToken,
    ) -> Result<Self, GenerateError> {
        let pixels = start.pixels(plan.size).map(|picture| from_rgb(&picture));
        let mask = start.mask.as_ref();
        let mask = mask.map(|mask| mask.pixels(start.resize, plan.size));
        let encode = |pixels: &Array4<f32>| encode(codec, pixels, plan.latents, stop);
        // An inpainting model sees the picture beside the latents, and needs no blending.
        let blends = mask.is_some() && plan.beside.is_none();
        let needed = plan.begin == Begin::Picture || blends;
        let clean = match (&start.from, &pixels) {
            (StartFrom::Latents(latents), _) => Some(Clean::Latents(latents.clone())),
            (StartFrom::Pixels(_), Some(pixels)) if needed => Some(Clean::Encoded(encode(pixels)?)),
            (StartFrom::Pixels(_), _) => None,
        };
        let beside = match (plan.beside, &pixels, &mask) {
            (Some(StartBeside::Masked), Some(pixels), Some(mask)) => {
                Some((StartBeside::Masked, encode(&outside(pixels, mask))?))
            }
            (Some(StartBeside::Picture), Some(pixels), _) => {
                Some((StartBeside::Picture, encode(pixels)?))
            }
            _ => None,
        };
        let latent_mask = mask.as_ref().map(|mask| latent_mask(mask, plan.latents));
        let keeps = start.mask.as_ref().filter(|mask| mask.keep_original);
        let kept = keeps.and_then(|of| Some((pixels?, blurred(mask?, of.blur))));
        Ok(Self {
            posterior: start.posterior,
            clean,
            beside,
            blends,
            latent_mask,
            kept,
        })
    }
}

/// Encodes pixels, and checks the shape of the result.
fn encode(
    codec: &dyn LatentCodec,
    pixels: &Array4<f32>,
    [height, width]: [usize; 2],
    stop: &StopToken,
) -> Result<LatentDistribution, GenerateError> {
    let _span = tracing::info_span!("encode picture").entered();
    let failed = GenerateError::backend(Stage::Encoder);
    let encoded = codec.encode(pixels.view(), stop);
    let encoded = encoded.map_err(|error| match stop.is_stopped() {
        true => GenerateError::Stopped(Box::default()),
        false => GenerateError::backend(Stage::Encoder)(error),
    })?;
    let expected = (1, codec.latent_channels(), height, width);
    let found = [encoded.mean.dim(), encoded.log_variance.dim()];
    if found != [expected; 2] {
        let problem = format!("the codec returned {found:?}, expected {expected:?} twice");
        return Err(failed(problem.into()));
    }
    let channels = codec.latent_channels();
    let (scales, shifts) = (encoded.scale.len(), encoded.shift.len());
    if (scales, shifts) != (channels, channels) {
        let problem = format!(
            "the codec returned {scales} scales and {shifts} shifts, expected {channels} of each"
        );
        return Err(failed(problem.into()));
    }
    Ok(encoded)
}
