//! The autoencoders between pictures and latents.

mod kl;
pub(crate) mod segment;
mod tiny;

use sd_core::Seamless;
use serde_json::json;

pub(crate) use self::kl::Layer;
use self::{kl::KlConfig, segment::Segment, tiny::TinyConfig};
use crate::{
    Error,
    config::{Config, SIZE},
    graph::{Dialect, Graph, Model},
    models::blocks::Norm,
    weights::Weights,
};

/// The supported classes of diffusers.
pub(crate) const KL: &str = "AutoencoderKL";
const ASYMMETRIC: &str = "AsymmetricAutoencoderKL";
const TINY: &str = "AutoencoderTiny";
const CLASSES: [&str; 3] = [KL, ASYMMETRIC, TINY];

/// The architecture of an autoencoder, from its `config.json`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct VaeConfig {
    class: &'static str,
    pub latent_channels: usize,
    /// The factor of each channel that turns the encoder's latents into the pipeline's latents. It
    /// is applied after `shift` is subtracted.
    pub scale: Vec<f32>,
    pub shift: Vec<f32>,
    /// Whether all values within the networks are in the range of f16.
    ///
    /// The key `force_upcast` says so, which is true for SDXL's autoencoder. Without the key, the
    /// autoencoders of Stable Diffusion 1.x and 2.x, known by their `scaling_factor`, and the tiny
    /// ones are taken to fit.
    pub fits_f16: bool,
    /// The axes along which the networks are seamless. [`new`](Self::new) sets none.
    pub seamless: Seamless,
    network: Network,
}

#[derive(Debug, Clone, PartialEq)]
enum Network {
    Kl(KlConfig),
    Tiny(TinyConfig),
}

impl VaeConfig {
    pub fn new(config: &Config) -> Result<Self, Error> {
        config.only("_class_name", &CLASSES.map(|class| json!(class)))?;
        // A picture has three channels.
        config.only("in_channels", &[json!(3)])?;
        config.only("out_channels", &[json!(3)])?;
        let latent_channels = config.usize("latent_channels", 4, SIZE)?;
        let class = config.text("_class_name", KL)?;
        let class = CLASSES
            .into_iter()
            .find(|&known| known == class)
            .unwrap_or(KL);
        let is_tiny = class == TINY;
        let factor = config.positive("scaling_factor")?;
        let factor = factor.unwrap_or(if is_tiny { 1.0 } else { 0.18215 });
        // diffusers computes latents · std / factor + mean, if both keys are set.
        let mean = config.numbers("latents_mean", latent_channels)?;
        let std = config.numbers("latents_std", latent_channels)?;
        let (scale, shift) = match (mean, std) {
            (Some(mean), Some(std)) => {
                if std.iter().any(|&std| std <= 0.0) {
                    return Err(config.wrong("latents_std", "positive numbers"));
                }
                (std.iter().map(|std| factor / std).collect(), mean)
            }
            _ => {
                let shift = config.finite("shift_factor")?.unwrap_or(0.0);
                (vec![factor; latent_channels], vec![shift; latent_channels])
            }
        };
        let usually_fits = is_tiny || scale.iter().all(|&scale| scale == 0.18215);
        Ok(Self {
            class,
            latent_channels,
            scale,
            shift,
            fits_f16: !config.bool("force_upcast", !usually_fits)?,
            seamless: Seamless::NONE,
            network: match is_tiny {
                true => Network::Tiny(TinyConfig::new(config, latent_channels)?),
                false => Network::Kl(KlConfig::new(config, class == ASYMMETRIC, latent_channels)?),
            },
        })
    }

    /// Returns the class in diffusers.
    pub fn class(&self) -> &'static str {
        self.class
    }

    /// Returns the number of pixels per latent on each side.
    pub fn factor(&self) -> usize {
        match &self.network {
            Network::Kl(config) => config.factor(),
            Network::Tiny(config) => config.factor(),
        }
    }

    /// Returns the layers of both halves and the settings of their group norms, for
    /// [tiles](crate::tiles). Returns `None` for TAESD, whose layers are others.
    pub fn layers(&self) -> Option<Layers> {
        match &self.network {
            Network::Kl(config) => Some(Layers {
                decoder: config.decoder_layers(),
                encoder: config.encoder_layers(),
                norm: config.norm(),
            }),
            Network::Tiny(_) => None,
        }
    }

    /// Returns whether the encoder's output is the mean and the log-variance of the latents.
    /// Otherwise it is the latents.
    pub fn is_variational(&self) -> bool {
        matches!(self.network, Network::Kl(_))
    }
}

/// The layers of an autoencoder, in the order in which they run.
#[derive(Debug, Clone)]
pub(crate) struct Layers {
    pub decoder: Vec<Layer>,
    pub encoder: Vec<Layer>,
    pub norm: Norm,
}

/// Writes a part of either half, seamless along these axes.
pub(crate) fn segment(
    segment: &Segment,
    weights: &Weights,
    seamless: Seamless,
    dialect: Dialect,
) -> Result<Model, Error> {
    segment::write(
        segment,
        Graph::new("vae_segment", weights, dialect).seamless(seamless),
    )
}

/// Writes the decoder. The input is `latents` `[batch, latent_channels, h, w]` in the network's own
/// scaling. The output is `image` `[batch, 3, h·factor, w·factor]`, about −1 to 1.
pub(crate) fn decoder(
    config: &VaeConfig,
    weights: &Weights,
    dialect: Dialect,
) -> Result<Model, Error> {
    let graph = Graph::new("vae_decoder", weights, dialect).seamless(config.seamless);
    match &config.network {
        Network::Kl(config) => kl::decoder(config, graph),
        Network::Tiny(config) => tiny::decoder(config, graph),
    }
}

/// Writes the encoder. The input is `image` `[batch, 3, H, W]`, −1 to 1.
///
/// The output `moments` is `[batch, 2·latent_channels, H/factor, W/factor]`: the mean of the
/// latents, then their log-variance, neither scaled nor clamped. A network that is not
/// [variational](VaeConfig::is_variational) outputs only the latents.
pub(crate) fn encoder(
    config: &VaeConfig,
    weights: &Weights,
    dialect: Dialect,
) -> Result<Model, Error> {
    let graph = Graph::new("vae_encoder", weights, dialect).seamless(config.seamless);
    match &config.network {
        Network::Kl(config) => kl::encoder(config, graph),
        Network::Tiny(config) => tiny::encoder(config, graph),
    }
}

/// Returns whether a tensor belongs to the encoder.
pub(crate) fn is_of_encoder(name: &str) -> bool {
    name.starts_with("encoder.") || name.starts_with("quant_conv.")
}

/// Returns whether the graph leaves out a known tensor on purpose: it belongs to the branch of an
/// asymmetric autoencoder that reads a mask and the picture around it.
pub(crate) fn is_left_out(config: &VaeConfig, name: &str) -> bool {
    config.class == ASYMMETRIC && name.starts_with("decoder.condition_encoder.")
}
