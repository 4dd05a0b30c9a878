//! LoRAs that are merged into a pipeline's networks, and LoRAs that prompts call.

mod blocks;
mod callable;
mod called;
mod library;
mod number;
mod spec;
mod weight;

use std::sync::Arc;

pub(crate) use callable::Callable;
pub(crate) use called::{Called, called};
pub use library::{LoraBlocks, LoraCall, LoraInfo, LoraLibrary, LoraNetworks};
pub(crate) use spec::{Spec, Wrong, is_lora};

use crate::model_id::ModelId;

/// How strongly a LoRA changes each part of a model.
///
/// At 0 the LoRA changes nothing, and at 1 it makes the change that was trained. Every finite
/// number is allowed, also below 0 and above 1. Many LoRAs are best between 0.5 and 1.
///
/// ```
/// use sd_core::LoraWeight;
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
    /// Returns the same weight for all parts.
    fn from(weight: f32) -> Self {
        Self {
            text_encoder: weight,
            unet: weight,
        }
    }
}

/// A LoRA that is merged into the networks.
#[derive(Debug)]
pub(crate) struct Lora {
    pub id: ModelId,
    pub weight: LoraWeight,
}

/// Returns the names and hashes of LoRAs, each as WebUI writes it: `name: hash`.
pub(crate) fn hashes(loras: &[Arc<Lora>]) -> Vec<String> {
    let hash = |lora: &Arc<Lora>| -> String {
        let hash = lora.id.hash().unwrap_or_default();
        let hash: String = hash.chars().take(12).collect();
        format!("{}: {hash}", name_in_hashes(&lora.id.name))
    };
    loras.iter().map(hash).collect()
}

/// Returns the name of a LoRA as WebUI writes it before a hash.
pub(crate) fn name_in_hashes(name: &str) -> String {
    name.replace([':', ','], "")
}

/// Returns the names and weights of LoRAs, in the order in which they are merged, as JSON.
pub(crate) fn weights(loras: &[Arc<Lora>]) -> String {
    let weight = |lora: &Arc<Lora>| {
        let LoraWeight { text_encoder, unet } = lora.weight;
        // A `Value` would have the digits of an `f64`.
        (lora.id.name.clone(), text_encoder, unet)
    };
    let weights: Vec<_> = loras.iter().map(weight).collect();
    serde_json::to_string(&weights).expect("names and numbers are JSON")
}
