//! TAESD beside a model's own autoencoder.

use std::{path::Path, sync::Arc};

use ndarray::{Array4, ArrayView4};
use sd_core::{
    BoxError, LatentCodec, LatentDistribution, LatentRgb, NetworkReport, Seamless, StopToken,
};

use crate::{
    Error,
    engine::Engine,
    models::vae::VaeConfig,
    parts::OnnxCodec,
    source::{Elsewhere, Source},
    tiles::VaeTiling,
};

/// What a TAESD decodes. See [`Builder::taesd`](crate::Builder::taesd).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TaesdUse {
    /// Previews. Finished pictures are decoded by the model's own autoencoder.
    Previews,
    /// Previews and finished pictures. The model's own autoencoder only encodes.
    PreviewsAndPictures,
}

/// Opens a TAESD, a file or a folder, in place of the autoencoder of the model at `model`.
pub(crate) fn open(
    path: &Path,
    model: &Path,
    variant: Option<&str>,
    seamless: Seamless,
    engine: &Engine,
) -> Result<Arc<OnnxCodec>, Error> {
    let elsewhere = Elsewhere {
        vae: Some(path.to_path_buf()),
        ..Elsewhere::default()
    };
    let source = Source::open(model, variant, &elsewhere, None, &["vae"])?;
    let config = source.config("vae")?;
    let mut vae = VaeConfig::new(&config)?;
    if vae.layers().is_some() {
        return Err(config.wrong("_class_name", "AutoencoderTiny"));
    }
    vae.seamless = seamless;
    let codec = OnnxCodec::new(vae, source.weights("vae")?, VaeTiling::Never, engine)?;
    Ok(Arc::new(codec))
}

/// An autoencoder whose pictures are decoded by a TAESD.
pub(crate) struct DecodedByTaesd {
    taesd: Arc<OnnxCodec>,
    own: Arc<dyn LatentCodec>,
}

impl DecodedByTaesd {
    /// Combines a TAESD and a model's own autoencoder. Returns `None` if their latents have
    /// different sizes.
    pub fn new(taesd: Arc<OnnxCodec>, own: Arc<dyn LatentCodec>) -> Option<Self> {
        let same = taesd.factor() == own.factor();
        same.then_some(Self { taesd, own })
    }
}

impl LatentCodec for DecodedByTaesd {
    fn latent_channels(&self) -> usize {
        self.own.latent_channels()
    }

    fn factor(&self) -> usize {
        self.own.factor()
    }

    fn decode(
        &self,
        latents: ArrayView4<'_, f32>,
        stop: &StopToken,
    ) -> Result<Array4<f32>, BoxError> {
        self.taesd.decode(latents, stop)
    }

    fn encode(
        &self,
        image: ArrayView4<'_, f32>,
        stop: &StopToken,
    ) -> Result<LatentDistribution, BoxError> {
        self.own.encode(image, stop)
    }

    fn approximation(&self, _: [usize; 2]) -> Option<&'static str> {
        Some("TAESD")
    }

    fn latent_rgb(&self) -> Option<LatentRgb> {
        self.own.latent_rgb()
    }

    fn report(&self) -> Vec<NetworkReport> {
        // The pipeline reports the TAESD as the codec of its previews.
        self.own.report()
    }
}
