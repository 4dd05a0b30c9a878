//! The LoRAs that a request uses.

use std::sync::{Arc, Once};

use sd_core::LoraCall;
use sd_text::outside::printable;

use super::{Fitted, Live, Lora, Use, blocks, keys::UNET, merge::changed};
use crate::{
    Error,
    weights::{Type, Weights},
};

/// A LoRA file, compared with a model.
#[derive(Debug)]
pub(crate) struct LoraFile {
    pub lora: Lora,
    pub fitted: Fitted,
    /// Whether tensors that fit nothing were reported.
    reported: Once,
}

impl LoraFile {
    pub fn new(lora: Lora, fitted: Fitted) -> Self {
        Self {
            lora,
            fitted,
            reported: Once::new(),
        }
    }

    /// Logs a warning about tensors that fit nothing, once.
    pub fn report(&self) {
        self.reported.call_once(|| {
            if let Some(warning) = self.fitted.warning() {
                tracing::warn!("{}: {warning}", printable(self.lora.path.display()));
            }
        });
    }
}

/// LoRAs that are used together, in the order in which they are merged.
#[derive(Debug)]
pub(crate) struct Set {
    uses: Vec<(Arc<LoraFile>, LoraCall)>,
    /// The number of residual blocks in a level of the UNet.
    resnets: usize,
}

/// The LoRAs that a call of a network runs with.
#[derive(Debug, Clone, Default)]
pub(crate) enum Active {
    #[default]
    None,
    /// Their factors are inputs.
    Live(Arc<Live>),
    /// They are merged into the weights.
    Merged(Arc<Set>),
}

impl Set {
    /// Creates a set. `resnets` is the number of residual blocks in a level of the UNet.
    pub fn new(uses: Vec<(Arc<LoraFile>, LoraCall)>, resnets: usize) -> Self {
        Self { uses, resnets }
    }

    /// Returns whether the set was made from these calls.
    pub fn is_of(&self, calls: &[LoraCall]) -> bool {
        self.uses.iter().map(|(_, call)| call).eq(calls)
    }

    /// Returns whether another set of the same library has the same calls.
    pub fn is_same(&self, other: &Self) -> bool {
        let calls = |set: &'_ Self| {
            set.uses
                .iter()
                .map(|(_, call)| call.clone())
                .collect::<Vec<_>>()
        };
        self.is_of(&calls(other))
    }

    /// Returns the changes of each LoRA.
    pub fn fitted(&self) -> impl Iterator<Item = &Fitted> {
        self.uses.iter().map(|(file, _)| &file.fitted)
    }

    /// Returns the number of leading ranks of each LoRA that are used.
    pub fn ranks(&self) -> impl Iterator<Item = Option<usize>> {
        self.uses.iter().map(|(_, call)| call.rank)
    }

    /// Returns the weight of each LoRA for a network at a step.
    pub fn weights(&self, network: &str, step: usize) -> Vec<f32> {
        let weight = |(_, call): &(_, LoraCall)| match network {
            UNET => call.unet_at(step),
            _ => call.text_encoder,
        };
        self.uses.iter().map(weight).collect()
    }

    /// Returns, for each LoRA, the function that returns the multiplier of a tensor of a network at
    /// a step.
    pub fn multipliers<'a>(
        &'a self,
        network: &'a str,
        step: usize,
    ) -> Vec<impl Fn(&str) -> f32 + Sync + 'a> {
        let weights = self.weights(network, step);
        let uses = self.uses.iter().zip(weights);
        uses.map(|((_, call), weight)| {
            move |tensor: &str| match &call.blocks {
                Some(blocks) => weight * blocks::factor(blocks, network, tensor, self.resnets),
                None => weight,
            }
        })
        .collect()
    }

    /// Returns the weights of a network with the LoRAs merged into them.
    ///
    /// # Errors
    /// As [`merge()`](super::merge()).
    pub fn merged(&self, network: &str, weights: &Weights) -> Result<Weights, Error> {
        let multipliers = self.multipliers(network, 0);
        let uses = self.uses.iter().zip(&multipliers);
        let uses: Vec<_> = uses
            .map(|((file, call), multiplier)| Use {
                adapter: &file.fitted,
                multiplier,
                rank: call.rank,
            })
            .collect();
        let mut merged = weights.copy();
        for tensor in changed(network, weights, &uses)? {
            merged.put(&tensor.name, Type::F32, &tensor.shape, tensor.bytes)?;
        }
        Ok(merged)
    }
}
