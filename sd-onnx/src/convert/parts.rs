//! The model that is converted: its networks with their configurations and weights, read and
//! checked.

use std::path::{Path, PathBuf};

use ndarray::Array2;
use sd_core::SchedulerConfig;
use serde_json::{Map, Value};

use super::numbers::target;
use super::tensors::{Content, New};
use super::{Conversion, facts, fit};
use crate::{
    Builder, Error,
    checkpoint::Family,
    config::Config,
    graph::Dialect,
    models::{
        clip_text::{self, ClipTextConfig},
        unet::{self, UnetConfig},
        vae::{self, VaeConfig},
    },
    source::{Source, TowerParts},
    weights::{Tensor, Weights},
};

/// A model, ready to be written.
#[derive(Debug)]
pub(super) struct Parts {
    pub source: Source,
    pub networks: Vec<Network>,
    /// The text of `scheduler_config.json`, with the caller's values in it.
    pub scheduler: String,
    /// What it means, corrected as the model's pipeline class does it.
    pub corrected: SchedulerConfig,
}

/// One network.
#[derive(Debug)]
pub(super) struct Network {
    /// The folder's name in diffusers.
    pub component: &'static str,
    pub config: Map<String, Value>,
    /// Where the configuration is from.
    pub path: PathBuf,
    pub weights: Weights,
    /// Today's names of the weights that it has, sorted.
    names: Vec<String>,
}

/// Why a graph that another tool exported cannot be converted.
const EXPORTED: &str = "a part of the model is a graph of ONNX, which has no names for its weights: \
                        convert the model that it was exported from";

impl Builder {
    /// Reads a model to convert it.
    pub(super) fn parts(&self, path: &Path) -> Result<Parts, Error> {
        if let Some(problem) = self.not_convertible() {
            return Err(Error::conversion(path, problem));
        }
        let source = self.open(path, &["unet", "vae"])?;
        for component in ["unet", "text_encoder", "text_encoder_2"] {
            if source.has(component) && source.graph(component)?.is_some() {
                return Err(Error::conversion(path, EXPORTED));
            }
        }
        if source.exported_codec()?.is_some() {
            return Err(Error::conversion(path, EXPORTED));
        }
        let (corrected, scheduler) = self.scheduler_config(&source)?;
        let mut networks = Vec::new();
        for &tower in source.towers() {
            networks.push(Network::text(&source, tower)?);
        }
        networks.push(Network::unet(&source)?);
        networks.push(Network::vae(&source)?);
        check_fit(&source, corrected.clone())?;
        Ok(Parts {
            source,
            networks,
            scheduler,
            corrected,
        })
    }
}

/// Checks that the parts, which may come from several models, fit each other.
fn check_fit(source: &Source, scheduler: SchedulerConfig) -> Result<(), Error> {
    let mut towers = Vec::new();
    for &tower in source.towers() {
        let mut config = ClipTextConfig::new(source.config(tower.encoder)?)?;
        config.projection = tower.pooled.then_some(config.projection_width);
        towers.push((source.tokenizer(tower)?, config));
    }
    let unet = UnetConfig::new(&source.config("unet")?, source.sizes())?;
    let vae = VaeConfig::new(&source.config("vae")?)?;
    fit::check(towers, unet, &vae, scheduler).map_err(|error| Error::Pipeline {
        path: source.path().to_path_buf(),
        source: error,
    })
}

impl Parts {
    /// A network that the model has.
    pub fn network(&self, component: &str) -> Option<&Network> {
        let mut networks = self.networks.iter();
        networks.find(|network| network.component == component)
    }

    /// The family, by the text encoders and their activation.
    pub fn family(&self) -> Family {
        match self.source.towers() {
            [_, _] => Family::Xl,
            [tower] if tower.pooled => Family::Refiner,
            [tower, ..] => {
                let network = self.network(tower.encoder);
                let activation = network.and_then(|it| it.config.get("hidden_act"));
                // That of OpenCLIP.
                match activation.and_then(Value::as_str) {
                    Some("gelu") => Family::Sd2,
                    _ => Family::Sd1,
                }
            }
            [] => Family::Sd1,
        }
    }

    /// The values of `scheduler_config.json`. The infinities that Python writes are null.
    pub fn scheduler_values(&self) -> Result<Map<String, Value>, Error> {
        let path = self.source.path();
        Ok(Config::parse(path, &self.scheduler)?.into_map())
    }

    /// What a scheduler's configuration that needs no correction means.
    pub fn meaning(&self, config: &Config) -> Result<SchedulerConfig, Error> {
        SchedulerConfig::from_json(&config.to_json()).map_err(|source| Error::Scheduler {
            path: config.path().to_path_buf(),
            source,
        })
    }

    /// Height and width of the latents that the model is for, corrected.
    pub fn sample_size(&self) -> Result<[usize; 2], Error> {
        let config = self.source.config("unet")?;
        let mut size = UnetConfig::new(&config, self.source.sizes())?.sample_size;
        self.source.corrections().sample_size(&config, &mut size)?;
        Ok(size)
    }

    /// An error about the form that the model is converted to.
    pub fn failed(&self, problem: impl Into<String>) -> Error {
        Error::conversion(self.source.path(), problem)
    }
}

impl Network {
    fn text(source: &Source, tower: TowerParts) -> Result<Self, Error> {
        let mut shape = ClipTextConfig::new(source.config(tower.encoder)?)?;
        shape.projection = tower.pooled.then_some(shape.projection_width);
        let weights = source.weights(tower.encoder)?;
        let outline = weights.outline();
        clip_text::graph(
            &shape,
            &outline,
            Array2::zeros((0, 0)).view(),
            Dialect::default(),
        )?;
        let left_out = |name: &str| clip_text::is_left_out(&shape, name);
        let config = facts::text_config(source.config(tower.encoder)?, tower.pooled);
        Self::new(
            tower.encoder,
            config,
            weights,
            &outline,
            clip_text::CLASS,
            left_out,
        )
    }

    fn unet(source: &Source) -> Result<Self, Error> {
        let config = source.config("unet")?;
        let shape = UnetConfig::new(&config, source.sizes())?;
        let weights = source.weights("unet")?;
        let outline = weights.outline();
        unet::graph(&shape, &outline, Dialect::default())?;
        Self::new("unet", config, weights, &outline, unet::CLASS, |_| false)
    }

    fn vae(source: &Source) -> Result<Self, Error> {
        let config = source.config("vae")?;
        let shape = VaeConfig::new(&config)?;
        let weights = source.weights("vae")?;
        let outline = weights.outline();
        vae::decoder(&shape, &outline, Dialect::default())?;
        vae::encoder(&shape, &outline, Dialect::default())?;
        // The networks here do without these, but they are the model's.
        let mut network = Self::new("vae", config, weights, &outline, shape.class(), |name| {
            vae::is_left_out(&shape, name)
        })?;
        let more = network
            .weights
            .names()
            .filter(|name| vae::is_left_out(&shape, name));
        let more: Vec<_> = more.map(str::to_owned).collect();
        network.names.extend(more);
        network.names.sort();
        Ok(network)
    }

    /// `outline` has the shapes of the weights, and its graphs are written.
    fn new(
        component: &'static str,
        config: Config,
        weights: Weights,
        outline: &Weights,
        class: &'static str,
        left_out: impl Fn(&str) -> bool,
    ) -> Result<Self, Error> {
        let mut names = Vec::new();
        for (name, shape) in outline.used() {
            weights.tensor(name, shape)?;
            names.push(name.to_owned());
        }
        names.sort();
        weights.check_all_used(class, left_out)?;
        Ok(Self {
            component,
            path: config.path().to_path_buf(),
            config: config.into_map(),
            weights,
            names,
        })
    }

    /// The weights by today's names.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        let names = self.names.iter();
        names.filter_map(|name| Some((name.as_str(), self.weights.get(name)?)))
    }

    /// The weights of a text encoder under the names that all versions of transformers load. Its
    /// version 5 dropped the beginning from the names of `CLIPTextModel`, and still reads it.
    pub fn whole_text(&self, conversion: &Conversion) -> Vec<New<'_>> {
        let mut tensors = self.whole(conversion);
        for tensor in &mut tensors {
            if !tensor.name.starts_with(clip_text::PROJECTION) {
                tensor.name.insert_str(0, "text_model.");
            }
        }
        tensors
    }

    /// The weights as they are, called by today's names.
    pub fn whole(&self, conversion: &Conversion) -> Vec<New<'_>> {
        let tensors = self.tensors().map(|(name, tensor)| New {
            name: name.to_owned(),
            dtype: target(tensor, conversion.dtype),
            shape: tensor.shape().to_vec(),
            content: Content::Weights(vec![tensor]),
        });
        tensors.collect()
    }
}
