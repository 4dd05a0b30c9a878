//! A model, or a part of one, in a single file.

use std::{collections::BTreeMap, path::Path};

use sd_text::outside::{self, list};
use serde_json::{Map, Value};

use super::TowerParts;
use crate::{
    Error,
    checkpoint::{self, Checkpoint, Component, Family, Predicts},
    config::Config,
    models::{clip_text, unet},
    weights::{Format, Stored, WeightFile, Weights},
};

/// The largest `.yaml` file that is read, in bytes. Published ones have about 2,000.
pub(crate) const MOST_YAML: u64 = 1 << 20;

/// A checkpoint file whose contents were recognised.
#[derive(Debug)]
pub(crate) struct ModelFile {
    file: WeightFile,
    checkpoint: Checkpoint,
}

impl ModelFile {
    /// Opens and recognises a file. `predicts` is the kind of prediction that the user has set for
    /// the UNet.
    pub fn open(path: &Path, predicts: Option<Predicts>) -> Result<Self, Error> {
        let file = open_with_pair(path)?;
        let mut checkpoint = recognise(&file, predicts, checkpoint::read)?;
        checkpoint.warnings.extend(file.warnings.iter().cloned());
        for warning in &checkpoint.warnings {
            tracing::warn!("{}: {warning}", outside::printable(path.display()));
        }
        if checkpoint.family.is_some() {
            tracing::info!(
                model = checkpoint.title(),
                "the UNet predicts {}, {}",
                checkpoint.predicts.name(),
                checkpoint.predicts_because
            );
        }
        Ok(Self { file, checkpoint })
    }

    pub fn path(&self) -> &Path {
        &self.file.path
    }

    /// Returns the model's name: the file's name without its extension.
    pub fn name(&self) -> String {
        stem(&self.file.path)
    }

    pub fn format(&self) -> Format {
        self.file.format
    }

    /// Returns a short description of the model.
    pub fn title(&self) -> String {
        self.checkpoint.title()
    }

    /// Returns the keyword of a distilled model, or `playground` for Playground, which its tensors
    /// identify.
    pub fn word(&self) -> Option<&'static str> {
        match self.checkpoint.predicts {
            Predicts::Edm if self.checkpoint.family.is_some() => Some("playground"),
            _ => self.checkpoint.distilled,
        }
    }

    /// Returns the reason for the kind of prediction that was recognised.
    pub fn because(&self) -> &str {
        &self.checkpoint.predicts_because
    }

    /// Returns the file's metadata.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.file.metadata
    }

    /// Returns the warnings about the file, for the user.
    pub fn warnings(&self) -> &[String] {
        &self.checkpoint.warnings
    }

    /// Returns the pipeline class in diffusers.
    pub fn class(&self) -> &str {
        self.checkpoint.class
    }

    /// Whether the model needs `text_encoder` and `text_encoder_2`, by its family, whether or not
    /// the file contains them. For a file without a UNet: whether it contains them.
    pub fn text_encoders(&self) -> [bool; 2] {
        let needed = match self.checkpoint.family {
            Some(family) => family.components().to_vec(),
            None => self.checkpoint.components.keys().copied().collect(),
        };
        ["text_encoder", "text_encoder_2"].map(|name| needed.contains(&name))
    }

    /// Whether the UNet takes an aesthetic score, if the file determines it.
    pub fn takes_score(&self) -> Option<bool> {
        self.checkpoint.aesthetics_score
    }

    /// Returns the scaling factor of the UNet's latents, or `None` without a UNet.
    pub fn scaling_factor(&self) -> Option<f64> {
        self.checkpoint.family.map(Family::scaling_factor)
    }

    /// Whether an empty negative prompt is replaced by zeros, if the file determines it.
    pub fn zeros_for_empty(&self) -> Option<bool> {
        self.checkpoint.zeros_for_empty
    }

    /// Returns the entries of a `model_index.json` that are not classes.
    pub fn index(&self) -> Map<String, Value> {
        let checkpoint = &self.checkpoint;
        let flags = [
            ("force_zeros_for_empty_prompt", checkpoint.zeros_for_empty),
            ("is_cosxl_edit", checkpoint.cosxl_edit),
            ("requires_aesthetics_score", checkpoint.aesthetics_score),
        ];
        let said = flags
            .into_iter()
            .filter_map(|(key, flag)| Some((key.to_owned(), flag?.into())));
        said.collect()
    }

    pub fn has(&self, component: &str) -> bool {
        self.checkpoint.components.contains_key(component)
    }

    /// Checks that a component is in the file and that all its tensors were recognised.
    pub fn require(&self, component: &str) -> Result<(), Error> {
        self.found(component).map(drop)
    }

    /// Returns the contents of a component's `config.json`, inferred from the file.
    pub fn config(&self, component: &str) -> Result<Config, Error> {
        let found = self.found(component)?;
        Ok(Config::of(&self.file.path, found.config.clone()))
    }

    /// Returns a component's weights under their current names.
    pub fn weights(&self, component: &str) -> Result<Weights, Error> {
        Weights::mapped(&self.file, &self.found(component)?.tensors)
    }

    /// Returns the text of a `scheduler_config.json`, inferred from the file.
    pub fn scheduler(&self) -> String {
        Config::of(&self.file.path, self.checkpoint.scheduler.clone()).to_json()
    }

    /// Returns the padding token of a text encoder's tokenizer.
    pub fn pad(&self, tower: TowerParts) -> Option<&'static str> {
        let pads = &self.checkpoint.pads;
        pads.get(tower.tokenizer).copied()
    }

    /// Finds a component by its name in diffusers. In a file without a UNet, a text encoder can
    /// serve as either of the two.
    fn component(&self, name: &str) -> Option<&Component> {
        let components = &self.checkpoint.components;
        let other = match (self.checkpoint.family, name) {
            (None, "text_encoder") => "text_encoder_2",
            (None, "text_encoder_2") => "text_encoder",
            _ => name,
        };
        components.get(name).or_else(|| components.get(other))
    }

    fn found(&self, name: &str) -> Result<&Component, Error> {
        let Some(component) = self.component(name) else {
            return Err(self.missing(name));
        };
        if component.unused.is_empty() {
            return Ok(component);
        }
        let mut tensors = component.unused.clone();
        tensors.sort();
        Err(Error::UnusedTensors {
            path: self.file.path.clone(),
            class: match name {
                "unet" => unet::CLASS,
                "vae" => "autoencoder",
                _ => clip_text::CLASS,
            },
            tensors,
        })
    }

    /// Returns the error for a component that the file lacks. It lists what the file has, and where
    /// the component can come from.
    fn missing(&self, name: &str) -> Error {
        let (what, setter) = match name {
            "unet" => ("a UNet", "unet"),
            "vae" => ("an autoencoder (VAE)", "vae"),
            "text_encoder_2" => ("a second text encoder", "text_encoder_2"),
            _ => ("a text encoder", "text_encoder"),
        };
        let serves = match (name, self.checkpoint.family) {
            ("unet", _) => "a checkpoint, or a file with a UNet alone",
            ("vae", Some(Family::Xl | Family::Refiner)) => {
                "an SDXL checkpoint, or a VAE file such as `sdxl_vae.safetensors`"
            }
            ("vae", _) => {
                "a checkpoint of the same family, or a VAE file such as \
                 `vae-ft-mse-840000-ema-pruned.safetensors`"
            }
            ("text_encoder_2", _) => {
                "an SDXL checkpoint, or a file with OpenCLIP ViT-bigG such as `clip_g.safetensors`"
            }
            (_, Some(Family::Sd2)) => {
                "a Stable Diffusion 2 checkpoint, or a file with OpenCLIP ViT-H"
            }
            _ => {
                "a checkpoint of the same family, or a file with CLIP ViT-L such as \
                 `clip_l.safetensors`"
            }
        };
        let needs = match self.checkpoint.family {
            Some(family) => format!(
                ", and {} needs {}",
                family.name(),
                list(family.components())
            ),
            None => String::new(),
        };
        Error::Missing {
            path: self.file.path.clone(),
            what: what.to_owned(),
            hint: format!(
                "the file has {}{needs}; `Builder::{setter}` takes one from elsewhere: {serves}",
                list(self.checkpoint.components.keys())
            ),
        }
    }
}

/// Collects the facts about a file that the recogniser needs, and runs `read` on them.
pub(crate) fn recognise<T>(
    file: &WeightFile,
    predicts: Option<Predicts>,
    read: impl FnOnce(&checkpoint::File<'_>) -> Result<T, checkpoint::Problem>,
) -> Result<T, Error> {
    let shapes: BTreeMap<&str, &[usize]> = file
        .tensors
        .iter()
        .map(|stored| (stored.name.as_str(), stored.shape.as_slice()))
        .collect();
    let yaml = match outside::read_to_string(file.path.with_extension("yaml"), MOST_YAML) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(Error::io(file.path.with_extension("yaml"))(error)),
    };
    let facts = checkpoint::File {
        name: &stem(&file.path),
        shapes,
        metadata: &file.metadata,
        yaml: yaml.as_deref(),
        predicts,
        values: &|name| file.values(name),
    };
    read(&facts).map_err(|problem| match problem {
        checkpoint::Problem::Values(error) => error,
        problem => Error::Checkpoint {
            path: file.path.clone(),
            problem: problem.to_string(),
        },
    })
}

/// Opens a weight file. TAESD's encoder and decoder are two files, so the missing half is looked
/// for beside the given one: `taesd_encoder.safetensors` beside `taesd_decoder.safetensors`.
fn open_with_pair(path: &Path) -> Result<WeightFile, Error> {
    let mut file = WeightFile::open(path)?;
    let has = |name: &str| file.tensors.iter().any(|stored| stored.name == name);
    let (own, other) = if has("1.weight") && has("3.conv.0.weight") {
        ("decoder", "encoder")
    } else if has("0.weight") && has("1.conv.0.weight") {
        ("encoder", "decoder")
    } else {
        return Ok(file);
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = match name.rfind(own) {
        Some(at) => format!("{}{other}{}", &name[..at], &name[at + own.len()..]),
        None => return Ok(file),
    };
    let beside = path.with_file_name(beside);
    let half = |tensors: Vec<Stored>, which| {
        let named = tensors.into_iter().map(move |stored| Stored {
            name: format!("taesd_{which}.{}", stored.name),
            ..stored
        });
        named.collect::<Vec<_>>()
    };
    file.tensors = half(std::mem::take(&mut file.tensors), own);
    if beside != path && beside.is_file() {
        file.tensors
            .extend(half(WeightFile::open(&beside)?.tensors, other));
    }
    Ok(file)
}

fn stem(path: &Path) -> String {
    let name = path.file_stem().unwrap_or_default();
    name.to_string_lossy().into_owned()
}
