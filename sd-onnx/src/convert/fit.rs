//! Checks whether the parts of a model fit each other, by building a pipeline of stand-ins.
//!
//! The stand-ins report the sizes in the parts' configurations. They have no sessions, because
//! nothing runs.

use std::{path::Path, sync::Arc};

use ndarray::{Array4, ArrayView2, ArrayView4, ArrayViewMut4};
use sd_core::{
    BoxError, Call, Denoiser, Inputs, LatentCodec, LatentDistribution, LatentRgb, Pipeline,
    SchedulerConfig, StopToken,
};
use sd_text::{
    ClipTokenizer, Layer, PromptEncoder, TextModel, TextShape, TextStates, Tower, TowerError,
};

use crate::{
    Error,
    models::{clip_text::ClipTextConfig, unet::UnetConfig, vae::VaeConfig},
};

/// Returns the error that [`load`](crate::Builder::load) would return for parts that do not fit.
///
/// Examples are a tokenizer with more ids than the embedding has rows, text encoders of another
/// width than the UNet's cross-attention, and a UNet and an autoencoder with different latents.
pub(super) fn check(
    path: &Path,
    towers: Vec<(ClipTokenizer, ClipTextConfig)>,
    unet: UnetConfig,
    vae: &VaeConfig,
    scheduler: SchedulerConfig,
) -> Result<(), Error> {
    let unfit = |source: TowerError| Error::TextEncoders {
        path: path.to_path_buf(),
        source,
    };
    let tower = |(tokenizer, config): (ClipTokenizer, ClipTextConfig)| {
        let mut shape = TextShape::new(config.layers, config.width)
            .max_length(config.max_length)
            .vocab_size(config.vocab_size);
        shape.pooled = config.projection;
        Tower::new(Arc::new(tokenizer), Arc::new(Text(shape)))
    };
    let towers = towers.into_iter().map(tower).collect::<Result<_, _>>();
    let prompts = towers.and_then(PromptEncoder::from_towers).map_err(unfit)?;
    let codec = Codec {
        channels: vae.latent_channels,
        factor: vae.factor(),
    };
    let unet = Arc::new(Unet(unet.inputs));
    let pipeline = Pipeline::builder(prompts, unet, Arc::new(codec), scheduler);
    pipeline
        .build()
        .map(drop)
        .map_err(|source| Error::Pipeline {
            path: path.to_path_buf(),
            source,
        })
}

/// The error of every stand-in that is asked to compute something.
fn not_loaded<T>() -> Result<T, BoxError> {
    Err("the part is only described, not loaded".into())
}

struct Text(TextShape);

impl TextModel for Text {
    fn shape(&self) -> TextShape {
        self.0
    }

    fn run(&self, _ids: ArrayView2<'_, i64>, _layer: Layer) -> Result<TextStates, BoxError> {
        not_loaded()
    }
}

struct Unet(Inputs);

impl Denoiser for Unet {
    fn inputs(&self) -> &Inputs {
        &self.0
    }

    fn predict(&self, _: &Call<'_>, _output: ArrayViewMut4<'_, f32>) -> Result<(), BoxError> {
        not_loaded()
    }
}

struct Codec {
    channels: usize,
    factor: usize,
}

impl LatentCodec for Codec {
    fn latent_channels(&self) -> usize {
        self.channels
    }

    fn factor(&self) -> usize {
        self.factor
    }

    fn decode(&self, _: ArrayView4<'_, f32>, _: &StopToken) -> Result<Array4<f32>, BoxError> {
        not_loaded()
    }

    fn encode(
        &self,
        _image: ArrayView4<'_, f32>,
        _stop: &StopToken,
    ) -> Result<LatentDistribution, BoxError> {
        not_loaded()
    }

    /// A pipeline without this estimate would decode latents to find it.
    fn latent_rgb(&self) -> Option<LatentRgb> {
        Some(LatentRgb {
            weights: Vec::new(),
            bias: [0.0; 3],
        })
    }
}
