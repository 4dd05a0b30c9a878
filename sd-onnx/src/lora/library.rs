//! The LoRAs of a folder, which requests call by name.

use std::{
    collections::BTreeSet,
    io,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use sd_core::{BoxError, LoraCall, LoraInfo, LoraLibrary, LoraNetworks};
use sd_text::{ClipTokenizer, Layer, PromptEncoder, TextualInversion, Tower, outside::chain};

use super::{Active, FILES, Live, Lora, LoraFile, Set, Sites, Targets, keys::UNET};
use crate::{
    Error, folder,
    parts::{OnnxDenoiser, OnnxTextModel},
    weights::Weights,
};

/// The extensions of the files in a folder that are tried. WebUI does not try `.bin`, which is the
/// extension of older files of peft and diffusers.
const EXTENSIONS: [&str; 4] = ["safetensors", "pt", "ckpt", "bin"];

/// The LoRAs of the builder's folders, compared with a model.
#[derive(Debug, Default)]
pub(crate) struct LoraFiles {
    infos: Vec<LoraInfo>,
    /// Each file, or `None` if it cannot be used with the model.
    files: Vec<Option<Arc<LoraFile>>>,
}

impl LoraFiles {
    /// Reads the headers of all files in a folder, and compares them with a model. A file that
    /// cannot be used is kept with its problem, which a request that calls it gets.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be read.
    pub fn add(&mut self, path: &Path, targets: &Targets<'_>) -> Result<(), Error> {
        let skipped = |error| tracing::warn!("LoRAs left out: {}", chain(&error));
        for path in folder::files(path, &EXTENSIONS, skipped)? {
            let mut info = LoraInfo::new(name_of(&path));
            let file = Lora::open(&path).and_then(|lora| {
                info.alias = lora.facts.output_name.clone();
                let fitted = lora.fit(targets)?;
                Ok(LoraFile::new(lora, fitted))
            });
            match &file {
                Ok(file) => info.live = file.fitted.is_live(),
                Err(error) => info.problem = Some(chain(error).to_string()),
            }
            self.infos.push(info);
            self.files.push(file.ok().map(Arc::new));
        }
        Ok(())
    }

    fn usable(&self) -> impl Iterator<Item = &Arc<LoraFile>> {
        self.files.iter().flatten()
    }

    /// Makes the graphs over the weights of a network take the factors of all LoRAs that can be
    /// inputs. `one_rank` is whether the network needs the same rank for all weights.
    pub fn sites(&self, network: &str, weights: &mut Weights, one_rank: bool) -> Arc<Sites> {
        let live = self.usable().filter(|file| file.fitted.is_live());
        let tensors: BTreeSet<&str> = live
            .flat_map(|file| file.fitted.weights_of(network))
            .collect();
        Arc::new(Sites::new(weights, &tensors, one_rank))
    }

    /// Reads the textual inversions in the files. The ones that cannot be read are reported.
    pub fn inversions(&self) -> impl Iterator<Item = TextualInversion> {
        self.usable().flat_map(|file| {
            let read = file.lora.inversions();
            read.unwrap_or_else(|error| {
                tracing::warn!("textual inversions left out: {}", chain(&error));
                Vec::new()
            })
        })
    }
}

/// Returns the name of a file without its extension. A file that diffusers or peft saved in a
/// folder has the name of the folder.
pub(super) fn name_of(path: &Path) -> String {
    let folder = path.parent().and_then(Path::file_name);
    let of_folder = FILES
        .iter()
        .any(|&file| path.file_name() == Some(file.as_ref()));
    let name = folder.filter(|_| of_folder).or(path.file_stem());
    name.unwrap_or_default().to_string_lossy().into_owned()
}

/// A text encoder of a pipeline.
pub(crate) struct TextTower {
    /// The network's folder in diffusers.
    pub network: &'static str,
    pub tokenizer: Arc<ClipTokenizer>,
    pub model: Arc<OnnxTextModel>,
    pub layer: Layer,
    pub sites: Arc<Sites>,
}

/// The LoRAs that requests of a pipeline call by name.
pub(crate) struct Library {
    pub files: LoraFiles,
    pub prompts: PromptEncoder,
    pub towers: Vec<TextTower>,
    pub denoiser: Arc<OnnxDenoiser>,
    pub unet_sites: Arc<Sites>,
    /// The number of residual blocks in a level of the UNet.
    pub resnets: usize,
    /// The LoRAs of the last request, and the networks with them.
    pub last: Mutex<Option<(Arc<Set>, LoraNetworks)>>,
}

impl LoraLibrary for Library {
    fn loras(&self) -> &[LoraInfo] {
        &self.files.infos
    }

    fn hash(&self, index: usize) -> io::Result<String> {
        match self.files.files.get(index) {
            Some(Some(file)) => file.lora.hash().map_err(io::Error::other),
            _ => Err(io::Error::other("the LoRA cannot be used with the model")),
        }
    }

    fn networks(&self, calls: &[LoraCall]) -> Result<LoraNetworks, BoxError> {
        if calls.is_empty() {
            return Ok(LoraNetworks {
                prompts: self.prompts.clone(),
                denoiser: self.denoiser.clone(),
            });
        }
        // After a panic, the value is still a complete one.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((set, networks)) = &*last
            && set.is_of(calls)
        {
            return Ok(networks.clone());
        }
        // Dropped first, so that the factors of two sets are never in memory at once.
        *last = None;
        let set = Arc::new(self.set(calls)?);
        let networks = self.changed(&set)?;
        *last = Some((set, networks.clone()));
        Ok(networks)
    }
}

impl Library {
    fn set(&self, calls: &[LoraCall]) -> Result<Set, BoxError> {
        let mut uses = Vec::with_capacity(calls.len());
        for call in calls {
            let Some(Some(file)) = self.files.files.get(call.index) else {
                let index = call.index;
                return Err(format!("LoRA {index} does not exist, or cannot be used").into());
            };
            file.report();
            uses.push((file.clone(), call.clone()));
        }
        Ok(Set::new(uses, self.resnets))
    }

    /// Returns the networks with a set of LoRAs. If one of them cannot be an input, all are merged
    /// into the weights, because the formats that depend on a weight need the one that the LoRAs
    /// before them have changed.
    fn changed(&self, set: &Arc<Set>) -> Result<LoraNetworks, BoxError> {
        let is_live = set.fitted().all(|fitted| fitted.is_live());
        tracing::info!(
            "LoRAs are {}",
            if is_live {
                "inputs of the networks"
            } else {
                "merged into the weights"
            }
        );
        let active = |network, sites: &Arc<Sites>| -> Result<Active, Error> {
            Ok(match is_live {
                true => Active::Live(Arc::new(Live::new(network, sites, set)?)),
                false => Active::Merged(set.clone()),
            })
        };
        let mut towers = Vec::with_capacity(self.towers.len());
        for tower in &self.towers {
            let loras = active(tower.network, &tower.sites)?;
            let model = Arc::new(tower.model.with_loras(loras));
            towers.push(Tower::new(tower.tokenizer.clone(), model)?.layer(tower.layer));
        }
        let loras = active(UNET, &self.unet_sites)?;
        Ok(LoraNetworks {
            prompts: PromptEncoder::from_towers(towers)?,
            denoiser: Arc::new(self.denoiser.with_loras(loras)),
        })
    }
}
