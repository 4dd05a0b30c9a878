//! The adapters that a builder merges into a model when it loads the model.

use std::path::PathBuf;

use sd_text::{
    TextualInversion,
    outside::{list, printable},
};

use super::{Fitted, Lora, Targets, Use, keys::UNET, merge};
use crate::{Error, source::Source, weights::Weights};

/// How strongly a LoRA changes each part of a model.
///
/// At 0 it changes nothing, and at 1 it makes the change that was trained. Negative weights and
/// weights above 1 are allowed. Many LoRAs are best between 0.5 and 1.
///
/// ```
/// use sd_onnx::LoraWeight;
///
/// assert_eq!(LoraWeight::from(0.8), LoraWeight { text_encoder: 0.8, unet: 0.8 });
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoraWeight {
    /// The weight for the text encoders: WebUI's first number in `<lora:name:1:0.5>`.
    pub text_encoder: f32,
    /// The weight for the UNet: WebUI's second number, or the first if there is no second.
    pub unet: f32,
}

impl From<f32> for LoraWeight {
    fn from(weight: f32) -> Self {
        Self {
            text_encoder: weight,
            unet: weight,
        }
    }
}

/// The adapters of a builder, compared with a model.
#[derive(Default)]
pub(crate) struct Adapters {
    adapters: Vec<(Lora, Fitted, LoraWeight)>,
}

impl Adapters {
    /// Opens the files and finds the tensors that they change in the UNet and the text encoders.
    ///
    /// # Errors
    /// - [`Error::Adapter`] if a weight is not finite, if a network is an exported graph, or if an
    ///   adapter does not fit the model.
    /// - The errors of reading a weight file.
    pub fn new(files: &[(PathBuf, LoraWeight)], model: &Source) -> Result<Self, Error> {
        let mut adapters = Vec::with_capacity(files.len());
        if files.is_empty() {
            return Ok(Self::default());
        }
        let mut weights = Vec::new();
        let towers = model.towers().iter().map(|tower| tower.encoder);
        let unet = Some(UNET).filter(|unet| model.has(unet));
        for network in towers.chain(unet) {
            if let Some(graph) = model.graph(network)? {
                let graph = printable(graph.display());
                let problem = format!(
                    "the model's {network} is an exported graph, {graph}, which cannot be changed"
                );
                return Err(Error::adapter(&files[0].0, problem));
            }
            weights.push((network, model.weights(network)?));
        }
        let borrowed: Vec<_> = weights.iter().map(|(name, it)| (*name, it)).collect();
        let targets = Targets::new(&borrowed);
        for (path, weight) in files {
            for (name, value) in [("text_encoder", weight.text_encoder), ("unet", weight.unet)] {
                if !value.is_finite() {
                    let problem =
                        format!("the weight `{name}` is {value}, expected a finite number");
                    return Err(Error::adapter(path, problem));
                }
            }
            let adapter = Lora::open(path)?;
            let fitted = adapter.fit(&targets)?;
            report(&adapter, &fitted, unet.is_some());
            adapters.push((adapter, fitted, *weight));
        }
        Ok(Self { adapters })
    }

    /// Merges the adapters into the weights of a network, in the order of the builder.
    pub fn merge(&self, network: &str, weights: &mut Weights) -> Result<(), Error> {
        if self.adapters.is_empty() {
            return Ok(());
        }
        let multipliers = self.adapters.iter().map(|(_, _, weight)| {
            let weight = match network {
                UNET => weight.unet,
                _ => weight.text_encoder,
            };
            move |_: &str| weight
        });
        let multipliers: Vec<_> = multipliers.collect();
        let adapters = self.adapters.iter().zip(&multipliers);
        let uses: Vec<_> = adapters
            .map(|((_, fitted, _), multiplier)| Use {
                adapter: fitted,
                multiplier,
                rank: None,
            })
            .collect();
        let merged = merge(network, weights, &uses)?;
        tracing::debug!(
            network,
            tensors = merged.tensors,
            bytes = merged.bytes,
            "LoRAs were merged"
        );
        Ok(())
    }

    /// Reads the textual inversions in the adapters' files.
    pub fn inversions(&self) -> Result<Vec<TextualInversion>, Error> {
        let mut all = Vec::new();
        for (adapter, ..) in &self.adapters {
            all.extend(adapter.inversions()?);
        }
        Ok(all)
    }
}

/// Logs the tensors that fit nothing, once per file.
fn report(adapter: &Lora, fitted: &Fitted, has_unet: bool) {
    // A text encoder alone has no place for most tensors of any adapter.
    if fitted.unfit.is_empty() || !has_unet {
        return;
    }
    tracing::warn!(
        "{}: {} of the tensors fit nothing in the model: {}",
        printable(adapter.path.display()),
        fitted.unfit.len(),
        list(fitted.unfit.iter().take(8))
    );
}
