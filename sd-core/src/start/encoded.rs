//! The encoded picture of a run that starts from one.

use ndarray::{ArcArray, Array2, Array4, Ix4};

use super::{
    Finish, MaskRule, MaskedContent, Prepared, Resize, Start, StartFrom,
    prepared::{latent_mask, nearest, outside},
};
use crate::{
    GenerateError, Inputs, LatentCodec, LatentDistribution, Posterior, Request, Stage, StopToken,
    picture::from_rgb,
    pixels::{LatentFilter, latents::resize_latents},
    plan::Planned,
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
    pub mask: Option<EncodedMask>,
    /// What happens to the finished picture.
    pub finish: Finish,
}

/// The mask of a run in the size of the latents.
#[derive(Debug)]
pub(crate) struct EncodedMask {
    /// The share that is redrawn, `[h, w]`.
    pub shares: Array2<f32>,
    /// The mask beside the latents, `[h, w]`, 0 or 1.
    pub beside: Array2<f32>,
    pub rule: MaskRule,
    pub content: MaskedContent,
    /// Whether the run keeps the latents outside of the mask.
    pub blends: bool,
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
        let stopped = || match stop.is_stopped() {
            true => Err(GenerateError::Stopped(Box::default())),
            false => Ok(()),
        };
        stopped()?;
        let prepared = Prepared::new(start, plan.size);
        // Blurs of large masks take long.
        stopped()?;
        let pixels = prepared.as_ref().map(|it| from_rgb(&it.picture));
        let masked = prepared.as_ref().and_then(|it| it.mask.as_ref());
        let mask = start.mask.as_ref().zip(masked).map(|(of, mask)| {
            EncodedMask {
                shares: latent_mask(mask, of.rule, plan.latents),
                beside: nearest(mask, plan.latents),
                rule: of.rule,
                content: of.content,
                // By diffusers' rules, an inpainting model sees the picture beside the latents, and
                // needs no blending. A refiner does not see the picture.
                blends: plan.beside.is_none()
                    || of.rule != MaskRule::Diffusers
                    || plan.refiner_from.is_some(),
            }
        });
        let encode = |pixels: &Array4<f32>| encode(codec, pixels, stop);
        let blends = mask.as_ref().is_some_and(|mask| mask.blends);
        let needed = plan.begin == Begin::Picture || blends;
        let clean = match (&start.from, &pixels) {
            (StartFrom::Latents(latents), _) => Some(Clean::Latents(latents.clone())),
            (StartFrom::Pixels(_), Some(pixels)) if needed => {
                let encoded = encode(pixels)?;
                Some(match start.resize {
                    Resize::Latent => {
                        let mode = encoded.mode();
                        let filter = LatentFilter::Bilinear;
                        let scaled = resize_latents(mode.view(), plan.latents, filter);
                        Clean::Latents(scaled.into_shared())
                    }
                    _ => Clean::Encoded(encoded),
                })
            }
            (StartFrom::Pixels(_), _) => None,
        };
        let beside = match (plan.beside, &pixels, masked) {
            (Some(StartBeside::Masked), Some(pixels), Some(mask)) => {
                Some((StartBeside::Masked, encode(&outside(pixels, mask))?))
            }
            (Some(StartBeside::Picture), Some(pixels), _) => {
                Some((StartBeside::Picture, encode(pixels)?))
            }
            _ => None,
        };
        Ok(Self {
            posterior: start.posterior,
            clean,
            beside,
            mask,
            finish: prepared.map(|it| it.finish).unwrap_or_default(),
        })
    }

    /// Creates the start of a second pass from latents `[1, channels, h, w]`.
    pub fn second_pass(latents: Array4<f32>) -> Self {
        Self {
            posterior: Posterior::Mode,
            clean: Some(Clean::Latents(latents.into_shared())),
            beside: None,
            mask: None,
            finish: Finish::default(),
        }
    }
}

/// Encodes pixels `[1, 3, h, w]`, and checks the shape of the result.
pub(crate) fn encode(
    codec: &dyn LatentCodec,
    pixels: &Array4<f32>,
    stop: &StopToken,
) -> Result<LatentDistribution, GenerateError> {
    let _span = tracing::info_span!("encode picture").entered();
    let failed = GenerateError::backend(Stage::Encoder);
    let encoded = codec.encode(pixels.view(), stop);
    let encoded = encoded.map_err(|error| match stop.is_stopped() {
        true => GenerateError::Stopped(Box::default()),
        false => GenerateError::backend(Stage::Encoder)(error),
    })?;
    let (.., height, width) = pixels.dim();
    let factor = codec.factor();
    let expected = (1, codec.latent_channels(), height / factor, width / factor);
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
