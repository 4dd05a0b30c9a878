//! The LoRAs of a folder, which requests call by name.

use std::{
    collections::BTreeSet,
    io,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use sd_core::{BoxError, LoraCall, LoraInfo, LoraLibrary, LoraNetworks};
use sd_text::{ClipTokenizer, Layer, PromptEncoder, TextualInversion, Tower, outside::chain};

use super::{Active, FILES, Fitted, Live, Lora, LoraFile, Set, Sites, Targets, keys::UNET};
use crate::{Error, denoiser::OnnxDenoiser, folder, parts::OnnxTextModel};

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
    /// cannot be used is listed with its problem, and a request that calls it is refused.
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

    /// Returns the names of the weights of a network that LoRAs change whose factors can be inputs.
    pub fn live(&self, network: &str) -> BTreeSet<String> {
        let live = self.usable().filter(|file| file.fitted.is_live());
        let names = live.flat_map(|file| file.fitted.weights_of(network));
        names.map(str::to_owned).collect()
    }

    /// Reads the textual inversions in the files. An inversion that cannot be read is skipped with
    /// a warning.
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
}

/// The LoRAs that requests of a pipeline call by name.
pub(crate) struct Library {
    pub files: LoraFiles,
    pub prompts: PromptEncoder,
    pub towers: Vec<TextTower>,
    pub denoiser: Arc<OnnxDenoiser>,
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
            Some(Some(file)) => {
                let hash = file.lora.check_unchanged().and_then(|()| file.lora.hash());
                hash.map_err(io::Error::other)
            }
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
    fn is_live(&self, call: &LoraCall) -> bool {
        let info = self.files.infos.get(call.index);
        info.is_some_and(|info| info.live)
    }

    fn set(&self, calls: &[LoraCall]) -> Result<Set, BoxError> {
        let changes = calls.iter().any(|call| call.unet.len() > 1);
        if changes && !calls.iter().all(|call| self.is_live(call)) {
            let problem = "a weight that changes over the steps needs LoRAs that are not merged";
            return Err(problem.into());
        }
        let mut uses = Vec::with_capacity(calls.len());
        for call in calls {
            let Some(Some(file)) = self.files.files.get(call.index) else {
                let index = call.index;
                return Err(format!("LoRA {index} does not exist, or cannot be used").into());
            };
            file.lora.check_unchanged()?;
            file.report();
            uses.push((file.clone(), call.clone()));
        }
        Ok(Set::new(uses, self.resnets))
    }

    /// Returns the networks with a set of LoRAs.
    ///
    /// Formats such as DoRA depend on the weight that earlier LoRAs have changed. One LoRA that
    /// must be merged therefore makes the whole set merged.
    fn changed(&self, set: &Arc<Set>) -> Result<LoraNetworks, BoxError> {
        let is_live = set.fitted().all(Fitted::is_live);
        let way = match is_live {
            true => "inputs of the networks",
            false => "merged into the weights",
        };
        tracing::info!("the request's LoRAs are {way}");
        let active = |network, sites: &Arc<Sites>| -> Result<Active, Error> {
            let mut weights = set.fitted().flat_map(|fitted| fitted.weights_of(network));
            Ok(match (weights.next(), is_live) {
                (None, _) => Active::None,
                (Some(_), true) => Active::Live(Arc::new(Live::new(network, sites, set)?)),
                (Some(_), false) => Active::Merged(set.clone()),
            })
        };
        let mut towers = Vec::with_capacity(self.towers.len());
        for tower in &self.towers {
            let loras = active(tower.network, tower.model.sites())?;
            let model = Arc::new(tower.model.with_loras(loras));
            towers.push(Tower::new(tower.tokenizer.clone(), model)?.layer(tower.layer));
        }
        let loras = active(UNET, self.denoiser.sites())?;
        Ok(LoraNetworks {
            prompts: PromptEncoder::from_towers(towers)?,
            denoiser: Arc::new(self.denoiser.with_loras(loras)),
        })
    }
}
