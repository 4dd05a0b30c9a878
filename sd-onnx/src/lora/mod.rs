//! LoRA and its relatives: reads adapter files, and merges them into the weights of a model or
//! makes their factors inputs of the networks.
//!
//! [`Lora::open`] reads the header of a file and sorts its tensors into modules. [`Lora::fit`]
//! compares the modules with the tensors of a model, checks every shape, and returns the changes.
//! [`merge()`] computes the changed weights and puts them into the model's
//! [`Weights`](crate::weights::Weights), in memory.
//!
//! # Names
//! An *adapter* is a LoRA or a file of a related format. A *module* is the group of tensors in the
//! file that change one layer. A tensor's name consists of a network, a module of the network, and
//! the role of the tensor in the module. [`keys`] knows the names of kohya's scripts, LyCORIS,
//! OneTrainer, SimpleTuner, ComfyUI, peft, and all versions of diffusers. [`targets`] lists all
//! names that the modules of the model have had.
//!
//! # Whose arithmetic holds
//! The tools that read these formats disagree in places. This crate does what WebUI 1.10.1 does
//! wherever WebUI reads the format correctly, because most adapters are tried and compared there.
//! In the table, W is the weight, and Δ is the product of a module's factors.
//!
//! | Format | New weight at multiplier 1 | Whose arithmetic |
//! |---|---|---|
//! | LoRA, LoCon | W + scale · Δ | WebUI |
//! | LoHa, LoKr | W + scale · Δ | WebUI; LyCORIS 4.1.3 merges with scale² |
//! | IA³ | W + W · Δ | WebUI; LyCORIS for outputs of convolutions |
//! | full, norms | W + Δ | WebUI |
//! | GLoRA | W + scale · (W · A + B) | LyCORIS 4.1.3; WebUI forgets alpha |
//! | OFT | Rᵀ · W | WebUI |
//! | BOFT | R · W in each stage | WebUI |
//! | DoRA over inputs | (W + scale · Δ) · magnitude / norm | WebUI |
//! | DoRA over outputs | (W + scale · Δ) · magnitude / norm | LyCORIS 4.1.3 and peft |
//!
//! At a multiplier m other than 1, every format gives `W + m · (W₁ − W)`, where W₁ is the weight
//! at 1. So does WebUI. At 0 the weight is therefore W, and a negative m does the opposite.
//! LyCORIS instead interpolates each stage of BOFT and the magnitudes of DoRA, and peft multiplies
//! Δ before it applies DoRA.
//!
//! - The scale is the tensor `scale`, or else alpha divided by the rank, or else 1. With peft's
//!   `use_rslora`, alpha is divided by the square root of the rank. LyCORIS replaces an alpha of 0
//!   by the rank. WebUI and this crate do not. OFT and BOFT have no scale: their alpha limits the
//!   rotation. IA³, full differences and norms have a scale only with `scale`.
//! - The alphas of diffusers and peft are in the metadata, or in `adapter_config.json` beside the
//!   file. WebUI does not read them, and takes a scale of 1.
//! - The rank of LoKr is the rank of its second matrix, or else of its first. Two whole matrices
//!   have no rank, and the scale is 1.
//! - The magnitudes of DoRA belong to the outputs or the inputs, whichever their shape fits. For a
//!   square weight, `[n, 1]` belongs to the outputs and `[1, n]` to the inputs, and a vector `[n]`
//!   belongs to the outputs. peft's `lora_magnitude_vector` always belongs to the outputs. WebUI
//!   divides by the norms of the inputs in all cases.
//! - `diff_b` changes the bias of a layer beside any format. WebUI reads it only beside `diff`.
//! - Each part of a fused attention is changed by itself. WebUI ignores the attention of OpenCLIP
//!   if an adapter lacks one of its four parts.
//! - Several adapters are merged one after another. Formats that depend on the weight, such as DoRA
//!   or OFT, use the weight that the adapters before them have made.
//! - An adapter of an ordinary model changes the first four input channels of an inpainting model's
//!   first convolution.
//!
//! Products are computed in f32, as in the references. The inverse matrices of OFT and the norms of
//! DoRA are computed in f64, and then rounded.

mod blocks;
mod facts;
mod family;
mod fit;
mod formats;
mod keys;
mod library;
mod live;
mod merge;
mod merging;
mod module;
mod set;
mod targets;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use sd_text::{
    TextualInversion,
    outside::{self, list, printable},
};

pub(crate) use self::{
    facts::Facts,
    fit::Fitted,
    keys::UNET,
    library::{Library, LoraFiles, TextTower},
    live::{Live, Sites},
    merge::{Use, merge},
    merging::Adapters,
    set::{Active, LoraFile, Set},
    targets::Targets,
};
use self::{facts::PeftAlphas, formats::Format, keys::split, module::Module};
use crate::{
    Error,
    checkpoint::{self, Family, Kind},
    hash, source,
    weights::{Format as FileFormat, Stored, WeightFile},
};

/// An adapter file, of which the header has been read.
#[derive(Debug)]
pub(crate) struct Lora {
    pub path: PathBuf,
    pub facts: Facts,
    /// The family that the adapter was trained for, as its shapes show it. `None` if they do not.
    pub family: Option<Family>,
    /// The modules, in the order of the file.
    modules: Vec<Module>,
    /// The alphas in the metadata, for files without tensors `alpha`.
    alphas: PeftAlphas,
    /// The tensors of textual inversions, by the inversion's name.
    bundles: Vec<(String, Vec<(String, Stored)>)>,
    /// Tensors with names that no adapter format has.
    unknown: Vec<String>,
    format: FileFormat,
    /// The file's length and time of change when its header was read.
    stamp: Stamp,
}

/// The length of a file in bytes, and the time of its last change.
type Stamp = (u64, Option<SystemTime>);

fn stamp(path: &Path) -> Result<Stamp, Error> {
    let facts = fs::metadata(path).map_err(Error::io(path))?;
    Ok((facts.len(), facts.modified().ok()))
}

/// The beginning of the names of textual inversions in an adapter file.
const BUNDLE: &str = "bundle_emb.";

/// The names of files with an adapter in a folder of peft or diffusers.
const FILES: [&str; 4] = [
    "adapter_model.safetensors",
    "pytorch_lora_weights.safetensors",
    "adapter_model.bin",
    "pytorch_lora_weights.bin",
];

/// The longest `adapter_config.json` that is read, in bytes. Published files have 1 kB.
const MOST_CONFIG: u64 = 1 << 20;

impl Lora {
    /// Reads the header of a safetensors file, or a pickle. No factor is read. In a folder of peft
    /// or diffusers, the file with the adapter is opened.
    ///
    /// # Errors
    /// - [`Error::Adapter`] if the file is not an adapter, or is an adapter for an unsupported
    ///   model.
    /// - The errors of reading a weight file.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let inside = FILES.iter().map(|name| path.join(name));
        let inside = inside.filter(|_| path.is_dir()).find(|path| path.is_file());
        let path = inside.as_deref().unwrap_or(path);
        let stamp = stamp(path)?;
        let file = WeightFile::open(path)?;
        let mut modules: Vec<Module> = Vec::new();
        let mut places: HashMap<String, usize> = HashMap::new();
        let mut bundles: Vec<(String, Vec<(String, Stored)>)> = Vec::new();
        let mut unknown = Vec::new();
        for stored in &file.tensors {
            if let Some(rest) = stored.name.strip_prefix(BUNDLE) {
                let (name, tensor) = rest.split_once('.').unwrap_or((rest, "emb_params"));
                let tensor = (tensor.to_owned(), stored.clone());
                match bundles.iter_mut().find(|(other, _)| other == name) {
                    Some((_, tensors)) => tensors.push(tensor),
                    None => bundles.push((name.to_owned(), vec![tensor])),
                }
                continue;
            }
            let Some((name, part)) = split(&stored.name) else {
                unknown.push(stored.name.clone());
                continue;
            };
            let index = *places.entry(name.to_owned()).or_insert_with(|| {
                modules.push(Module::new(name));
                modules.len() - 1
            });
            if let Some(other) = modules[index].parts.insert(part, stored.clone()) {
                let (this, other) = (printable(&stored.name), printable(&other.name));
                let problem = format!("tensor `{this}` is there twice, also as `{other}`");
                return Err(Error::adapter(path, problem));
            }
        }
        let is_adapter = modules.iter().any(Module::is_adapter);
        if let Some(model) = family::other(modules.iter().map(|module| module.name.as_str()))
            && is_adapter
        {
            let problem = format!("the file is an adapter for {model}, which is not supported");
            return Err(Error::adapter(path, problem));
        }
        if !is_adapter {
            let kind = source::recognise(&file, None, |facts| Ok(checkpoint::kind(facts)))?;
            let what = match kind {
                // Some names look like a LoRA's, but no module is complete.
                Kind::Lora | Kind::Unknown => "no adapter that is known".to_owned(),
                kind => kind.to_string(),
            };
            let names = file.tensors.iter().map(|stored| &stored.name);
            let tensors = match file.tensors.is_empty() {
                true => "it has no tensors".to_owned(),
                false => format!("its tensors: {}", list(names.take(4))),
            };
            let problem =
                format!("the file is {what}, expected a LoRA or a related adapter; {tensors}");
            return Err(Error::adapter(path, problem));
        }
        let mut alphas = PeftAlphas::of_metadata(&file.metadata);
        if alphas == PeftAlphas::default()
            && modules
                .iter()
                .any(|module| module.name.starts_with("base_model."))
        {
            alphas = peft_config(path)?;
        }
        Ok(Self {
            path: path.to_path_buf(),
            facts: Facts::of(&file.metadata),
            family: family::of(&modules),
            modules,
            alphas,
            bundles,
            unknown,
            format: file.format,
            stamp,
        })
    }

    /// Checks that the file has not changed since its header was read. The factors would otherwise
    /// be read from the wrong places, or belong to another LoRA.
    ///
    /// # Errors
    /// - [`Error::Adapter`] if it has changed.
    /// - [`Error::Io`] if it is not there.
    pub fn check_unchanged(&self) -> Result<(), Error> {
        if stamp(&self.path)? == self.stamp {
            return Ok(());
        }
        let problem = "the file has changed since the model was loaded, so load the model again";
        Err(Error::adapter(&self.path, problem))
    }

    /// Returns the hash that WebUI writes into infotexts, in hexadecimal digits, of which it shows
    /// the first 12. It is the hash in the metadata, or else the SHA-256 of the bytes behind the
    /// header, or of a whole file that is a pickle. The file is then read.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read.
    pub fn hash(&self) -> Result<String, Error> {
        if let Some(hash) = &self.facts.hash {
            return Ok(hash.clone());
        }
        let start = match self.format {
            FileFormat::Safetensors { data_start } => data_start,
            FileFormat::Pickle | FileFormat::Gguf => 0,
        };
        let failed = |error| Error::io(&self.path)(error);
        let file = outside::open_binary(&self.path).map_err(failed)?;
        hash::sha256_of(&file, start, u64::MAX).map_err(failed)
    }

    /// Returns the most frequent rank of the modules, or `None` if no module has one.
    pub fn rank(&self) -> Option<usize> {
        let mut counts: HashMap<usize, usize> = HashMap::new();
        for rank in self.modules.iter().filter_map(Module::rank) {
            *counts.entry(rank).or_default() += 1;
        }
        // Of equally frequent ranks, the largest.
        counts
            .into_iter()
            .max_by_key(|&(rank, count)| (count, rank))
            .map(|(rank, _)| rank)
    }

    /// Returns the names of the formats of the modules, such as `LoRA`.
    pub fn formats(&self) -> Vec<&'static str> {
        let formats = self
            .modules
            .iter()
            .filter_map(|module| Format::of(&module.parts));
        let formats: BTreeSet<Format> = formats.collect();
        formats.into_iter().map(Format::name).collect()
    }

    /// Returns how many layers of each network the adapter changes.
    pub fn layers(&self) -> BTreeMap<String, usize> {
        let mut layers = BTreeMap::new();
        for module in self.modules.iter().filter(|module| module.is_adapter()) {
            if let Some(network) = module.networks.first() {
                *layers.entry((*network).to_owned()).or_default() += 1;
            }
        }
        layers
    }

    /// Returns the names of the textual inversions in the file.
    pub fn inversion_names(&self) -> impl Iterator<Item = &str> {
        self.bundles.iter().map(|(name, _)| name.as_str())
    }

    /// Returns the names of the modules, in the order of the file.
    pub fn modules(&self) -> impl Iterator<Item = &str> {
        self.modules.iter().map(|module| module.name.as_str())
    }

    /// Reads the textual inversions in the file.
    ///
    /// # Errors
    /// - [`Error::Inversion`] if the tensors are not a textual inversion.
    /// - [`Error::TensorValues`] or [`Error::Io`] if the tensors cannot be read.
    pub fn inversions(&self) -> Result<Vec<TextualInversion>, Error> {
        self.bundles
            .iter()
            .map(|(name, tensors)| inversion(name, tensors))
            .collect()
    }
}

/// Reads the `adapter_config.json` beside a file that peft wrote. Without it, alpha is the rank.
fn peft_config(path: &Path) -> Result<PeftAlphas, Error> {
    let path = path.with_file_name("adapter_config.json");
    match outside::read(&path, MOST_CONFIG) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(PeftAlphas::default()),
        Err(error) => Err(Error::io(path)(error)),
        Ok(bytes) => {
            let config = serde_json::from_slice(&bytes).map_err(Error::json(&path))?;
            Ok(PeftAlphas::of_config(&config))
        }
    }
}

fn inversion(name: &str, tensors: &[(String, Stored)]) -> Result<TextualInversion, Error> {
    let mut read = Vec::with_capacity(tensors.len());
    for (name, stored) in tensors {
        let values = stored.source().values()?;
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        read.push((name, &stored.shape, bytes));
    }
    let mut views = Vec::with_capacity(read.len());
    for ((name, shape, bytes), (_, stored)) in read.iter().zip(tensors) {
        let view =
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.to_vec(), bytes);
        let view = view.map_err(|error| Error::TensorValues {
            path: stored.file.to_path_buf(),
            tensor: stored.name.clone(),
            problem: printable(error),
        })?;
        views.push((name.as_str(), view));
    }
    let bytes = safetensors::serialize(views, None).map_err(|error| {
        let path = tensors.first().map(|(_, stored)| stored.file.to_path_buf());
        Error::Safetensors {
            path: path.unwrap_or_default(),
            problem: printable(error),
        }
    })?;
    Ok(TextualInversion::from_bytes(name, &bytes)?)
}
