//! The builder's adapters. Some are merged when the model is loaded, and requests call the others
//! by name.

use std::{collections::BTreeSet, io, path::PathBuf, sync::Arc};

use sd_core::PipelineBuilder;
use sd_text::outside::printable;

use super::{Fitted, Lora, LoraFiles, Targets, Use, keys::UNET, library::name_of, merge};
use crate::{Error, LoraWeight, inversions::Inversions, source::Source, weights::Weights};

/// The adapters of a builder, compared with a model.
#[derive(Default)]
pub(crate) struct Adapters {
    adapters: Vec<(Arc<Lora>, Fitted, LoraWeight)>,
    /// The adapters that requests can call. `None` if the builder has no folder of them.
    pub library: Option<LoraFiles>,
}

impl Adapters {
    /// Opens the files and finds the tensors that they change in the UNet and the text encoders.
    ///
    /// # Errors
    /// - [`Error::Adapter`] if a weight is not finite, if a network is an exported graph, or if an
    ///   adapter does not fit the model.
    /// - The errors of reading a weight file.
    pub fn new(
        files: &[(PathBuf, LoraWeight)],
        folders: &[PathBuf],
        model: &Source,
    ) -> Result<Self, Error> {
        let mut adapters = Vec::with_capacity(files.len());
        let Some(first) = files.first().map(|(path, _)| path).or(folders.first()) else {
            return Ok(Self::default());
        };
        let mut weights = Vec::new();
        let towers = model.towers().iter().map(|tower| tower.encoder);
        let unet = Some(UNET).filter(|unet| model.has(unet));
        for network in towers.chain(unet) {
            if let Some(graph) = model.graph(network)? {
                let graph = printable(graph.display());
                let problem = format!(
                    "the model's {network} is an exported graph, {graph}, which cannot be changed"
                );
                return Err(Error::adapter(first, problem));
            }
            weights.push((network, model.weights(network)?));
        }
        let borrowed: Vec<_> = weights.iter().map(|(name, it)| (*name, it)).collect();
        let targets = Targets::new(&borrowed);
        for (path, weight) in files {
            for (name, value) in [("text_encoder", weight.text_encoder), ("unet", weight.unet)] {
                if !value.is_finite() {
                    let problem =
                        format!("the LoRA weight `{name}` is {value}, expected a finite number");
                    return Err(Error::adapter(path, problem));
                }
            }
            let adapter = Lora::open(path)?;
            let fitted = adapter.fit(&targets)?;
            // A text encoder alone has no place for most tensors of any adapter.
            if let (Some(_), Some(warning)) = (unet, fitted.warning()) {
                tracing::warn!("{}: {warning}", printable(path.display()));
            }
            adapters.push((Arc::new(adapter), fitted, *weight));
        }
        let mut library = (!folders.is_empty()).then(LoraFiles::default);
        if let Some(library) = &mut library {
            for folder in folders {
                library.add(folder, &targets)?;
            }
        }
        Ok(Self { adapters, library })
    }

    /// Returns the names of the weights of a network whose adapters can be inputs.
    pub fn live(&self, network: &str) -> BTreeSet<String> {
        let library = self.library.as_ref();
        library.map_or_else(BTreeSet::new, |library| library.live(network))
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

    /// Adds the adapters to a pipeline, for the infotexts of its pictures.
    pub fn record(&self, mut pipeline: PipelineBuilder) -> PipelineBuilder {
        for (adapter, _, weight) in &self.adapters {
            let name = name_of(&adapter.path);
            let adapter = Arc::clone(adapter);
            let hash = move || adapter.hash().map_err(io::Error::other);
            pipeline = pipeline.lora(name, *weight, hash);
        }
        pipeline
    }

    /// Returns the hashes of the adapters and their weights for a UNet. Texts of the same adapters
    /// are equal.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be read.
    pub fn of_unet(&self) -> Result<Vec<String>, Error> {
        let adapters = self.adapters.iter();
        adapters
            .map(|(adapter, _, weight)| Ok(format!("{} {}", adapter.hash()?, weight.unet)))
            .collect()
    }

    /// Reads the textual inversions in the adapters' files.
    pub fn inversions(&self) -> Result<Vec<Inversions>, Error> {
        let mut all = Vec::new();
        for (adapter, ..) in &self.adapters {
            all.extend(adapter.inversions()?.into_iter().map(Inversions::Given));
        }
        if let Some(library) = &self.library {
            all.extend(library.inversions().map(Inversions::Found));
        }
        Ok(all)
    }
}
