//! The LoRAs of a folder, which requests call by name.

use std::{
    collections::BTreeSet,
    io,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use sd_core::{BoxError, LoraCall, LoraInfo, LoraLibrary, LoraNetworks};
use sd_text::{ClipTokenizer, Layer, PromptEncoder, TextualInversion, Tower, outside::chain};

use super::{Active, Live, Lora, LoraFile, Set, Sites, Targets, keys::UNET};
use crate::{
    Error, folder,
    parts::{OnnxDenoiser, OnnxTextModel},
    weights::Weights,
};

/// The extensions of the files in a folder that are tried. WebUI tries the same ones.
const EXTENSIONS: [&str; 3] = ["safetensors", "pt", "ckpt"];

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
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            let mut info = LoraInfo::new(name);
            let file = Lora::open(&path).and_then(|lora| {
                info.alias = lora.facts.output_name.clone();
                let fitted = lora.fit(targets)?;
                Ok(LoraFile { lora, fitted })
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
        let tensors: BTreeSet<&str> = live.flat_map(|file| file.fitted.weights_of(network)).collect();
        Arc::new(Sites::new(weights, &tensors, one_rank))
    }

    /// Reads the textual inversions in the files.
    pub fn inversions(&self) -> Result<Vec<TextualInversion>, Error> {
        let mut all = Vec::new();
        for file in self.usable() {
            all.extend(file.lora.inversions()?);
        }
        Ok(all)
    }
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
            if is_live { "inputs of the networks" } else { "merged into the weights" }
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

#[cfg(test)]
mod measure {
    #![allow(clippy::unwrap_used)]
    use std::time::Instant;

    use ndarray::{Array3, Array4};
    use sd_core::{Call, Denoiser, StopToken};

    use super::*;
    use crate::{engine::{Engine, Settings}, models::unet::UnetConfig, source::{Elsewhere, Source}};

    #[test]
    #[ignore = "temporary"]
    fn live() {
        let folder = std::env::var("FULL").unwrap();
        let source = Source::open(folder.as_ref(), None, &Elsewhere::default(), None, &["unet"]).unwrap();
        let engine = Engine::new(Settings::default()).unwrap();
        let kind = std::env::var("KIND").unwrap_or_default();
        let rank: usize = std::env::var("RANK").unwrap_or("0".into()).parse().unwrap();
        let config = source.config("unet").unwrap();
        let config = UnetConfig::new(&config, source.sizes()).unwrap();
        let mut weights = source.weights("unet").unwrap();
        let names: Vec<String> = weights.names().map(str::to_owned).collect();
        let is_attention = |n: &str| n.contains(".attn") && n.ends_with(".weight");
        let is_linear = |n: &str| n.contains("attentions") && n.ends_with(".weight") && !n.contains("norm");
        let is_any = |n: &str| n.ends_with(".weight") && !n.contains("norm");
        let wanted: BTreeSet<&str> = names.iter().map(String::as_str).filter(|n| match kind.as_str() {
            "attention" => is_attention(n),
            "linear" => is_linear(n),
            "all" => is_any(n),
            _ => false,
        }).collect();
        let sites = Arc::new(Sites::new(&mut weights, &wanted, false));
        let shapes: Vec<(String, Vec<usize>)> = wanted.iter().map(|n| ((*n).to_owned(), weights.shape(n).unwrap().to_vec())).collect();
        println!("sites {}", shapes.len());
        let started = Instant::now();
        let plain = OnnxDenoiser::new(config.clone(), (source.weights("unet").unwrap(), Arc::default()), &engine).unwrap();
        plain.prepare([64, 64], 77).unwrap();
        println!("plain load {:?}", started.elapsed());
        let started = Instant::now();
        let unet = OnnxDenoiser::new(config, (weights, sites.clone()), &engine).unwrap();
        unet.prepare([64, 64], 77).unwrap();
        println!("load {:?}", started.elapsed());
        let active = super::super::live::test_active(&sites, &shapes, rank);
        let with = unet.with_loras(active);
        let latents = Array4::from_elem((1, 4, 64, 64), 0.5f32);
        let context = Array3::from_elem((1, 77, 768), 0.5f32);
        let stop = StopToken::new();
        let call = Call::new(latents.view(), 500.0, context.view(), &stop);
        let mut out = Array4::zeros(latents.dim());
        let n: usize = std::env::var("N").unwrap_or("4".into()).parse().unwrap();
        let mut times = [Vec::new(), Vec::new(), Vec::new()];
        for i in 0..n + 1 {
            for (j, unet) in [&plain, &unet, &with].into_iter().enumerate() {
                let started = Instant::now();
                unet.predict(&call, out.view_mut()).unwrap();
                if i > 0 { times[j].push(started.elapsed().as_secs_f64()); }
            }
        }
        times[0].sort_by(f64::total_cmp);
        let base = [times[0][0], times[0][n / 2]];
        for t in &mut times { t.sort_by(f64::total_cmp); println!("{kind} {rank} ratio {:.3} {:.3} least {:.3} median {:.3}", t[0] / base[0], t[t.len() / 2] / base[1], t[0], t[t.len() / 2]); }
    }
}
