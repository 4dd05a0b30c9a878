//! Reads and checks the model to convert: its networks, with their configurations and weights.

use std::path::{Path, PathBuf};

use ndarray::Array2;
use sd_core::SchedulerConfig;
use sd_text::outside::{chain, printable};
use serde_json::{Map, Value};

use super::numbers::target;
use super::tensors::{Content, New};
use super::{Conversion, facts, fit};
use crate::{
    Builder, ConvertError, Error,
    checkpoint::Family,
    config::Config,
    graph::Dialect,
    models::{
        clip_text::{self, ClipTextConfig},
        clip_vision::{self, ClipVisionConfig},
        unet::{self, UnetConfig},
        vae::{self, VaeConfig},
    },
    source::{IMAGE_ENCODER, Source, TowerParts},
    weights::{Tensor, Weights},
};

/// A model that is ready to be written in another form.
#[derive(Debug)]
pub(super) struct Parts {
    pub source: Source,
    pub networks: Vec<Network>,
    /// CLIP's vision model, if the folder has one that this crate loads.
    pub vision: Option<Vision>,
    /// The text of `scheduler_config.json`, including the caller's settings.
    pub scheduler: String,
    /// The meaning of `scheduler`, with the corrections of the model's pipeline class.
    pub corrected: SchedulerConfig,
}

/// CLIP's vision model beside the networks of a pipeline.
#[derive(Debug)]
pub(super) struct Vision {
    pub network: Network,
    /// The values of the `preprocessor_config.json`, if there is one.
    pub preprocessor: Option<Map<String, Value>>,
}

impl Vision {
    /// Opens the vision model in a model folder. Returns `None` if there is none, or if this crate
    /// cannot load it. A pipeline does not need it.
    fn open(builder: &Builder, path: &Path) -> Option<Self> {
        let opened = builder.vision_files_in(path)?.and_then(|files| {
            let shape = ClipVisionConfig::new(files.config.clone())?;
            let outline = files.weights.outline();
            clip_vision::graph(&shape, &outline, Dialect::default())?;
            let network = Network::new(
                IMAGE_ENCODER,
                files.config,
                files.weights,
                &outline,
                clip_vision::CLASS,
                clip_vision::is_left_out,
            )?;
            Ok(Self {
                network,
                preprocessor: files.preprocessor.map(Config::into_map),
            })
        });
        if let Err(error) = &opened {
            let path = printable(path.join(IMAGE_ENCODER).display());
            tracing::warn!("{path}: not converted: {}", chain(error));
        }
        opened.ok()
    }
}

/// One network of the model.
#[derive(Debug)]
pub(super) struct Network {
    /// The name of its folder in the diffusers layout.
    pub component: &'static str,
    pub config: Map<String, Value>,
    /// The file that the configuration comes from.
    pub path: PathBuf,
    pub weights: Weights,
    /// The current names of the network's weights, sorted.
    names: Vec<String>,
}

/// The reason why a graph that another tool exported cannot be converted.
const EXPORTED: &str = "a part of the model is an exported ONNX graph, which lacks the names of its \
                        weights: convert the model that it was exported from";

impl Builder {
    /// Opens a model and checks that it can be converted.
    pub(super) fn parts(&self, path: &Path) -> Result<Parts, ConvertError> {
        if let Some(problem) = self.not_convertible() {
            return Err(ConvertError::form(path, problem));
        }
        let source = self.open(path, &["unet", "vae"])?;
        for component in ["unet", "text_encoder", "text_encoder_2"] {
            if source.has(component) && source.graph(component)?.is_some() {
                return Err(ConvertError::form(path, EXPORTED));
            }
        }
        if source.exported_codec()?.is_some() {
            return Err(ConvertError::form(path, EXPORTED));
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
            vision: Vision::open(self, path),
            source,
            networks,
            scheduler,
            corrected,
        })
    }
}

/// Checks that the parts, which can come from several models, fit each other.
fn check_fit(source: &Source, scheduler: SchedulerConfig) -> Result<(), Error> {
    let mut towers = Vec::new();
    for &tower in source.towers() {
        let mut config = ClipTextConfig::new(source.config(tower.encoder)?)?;
        config.projection = tower.pooled.then_some(config.projection_width);
        towers.push((source.tokenizer(tower)?, config));
    }
    let unet = UnetConfig::new(&source.config("unet")?, source.sizes())?;
    let vae = VaeConfig::new(&source.config("vae")?)?;
    fit::check(source.path(), towers, unet, &vae, scheduler)
}

impl Parts {
    /// Returns a network by its component name, if the model has it.
    pub fn network(&self, component: &str) -> Option<&Network> {
        let mut networks = self.networks.iter();
        networks.find(|network| network.component == component)
    }

    /// Returns the family, judged by the text encoders and their activation function.
    pub fn family(&self) -> Family {
        match self.source.towers() {
            [_, _] => Family::Xl,
            [tower] if tower.pooled => Family::Refiner,
            [tower, ..] => {
                let network = self.network(tower.encoder);
                let activation = network.and_then(|it| it.config.get("hidden_act"));
                // OpenCLIP's activation function.
                match activation.and_then(Value::as_str) {
                    Some("gelu") => Family::Sd2,
                    _ => Family::Sd1,
                }
            }
            [] => Family::Sd1,
        }
    }

    /// Returns the values of `scheduler_config.json`. Python's infinities become null.
    pub fn scheduler_values(&self) -> Result<Map<String, Value>, Error> {
        let path = self.source.path();
        Ok(Config::parse(path, &self.scheduler)?.into_map())
    }

    /// Parses a scheduler configuration that needs no correction.
    pub fn meaning(&self, config: &Config) -> Result<SchedulerConfig, Error> {
        SchedulerConfig::from_json(&config.to_json()).map_err(|source| Error::Scheduler {
            path: config.path().to_path_buf(),
            source,
        })
    }

    /// Returns the height and width, in latents, for which the model is made, with the corrections
    /// of its pipeline class.
    pub fn sample_size(&self) -> Result<[usize; 2], Error> {
        let config = self.source.config("unet")?;
        let mut size = UnetConfig::new(&config, self.source.sizes())?.sample_size;
        self.source.corrections().sample_size(&config, &mut size)?;
        Ok(size)
    }

    /// Returns an error about the form that the model is converted to.
    pub fn failed(&self, problem: impl Into<String>) -> ConvertError {
        ConvertError::form(self.source.path(), problem)
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
        // This crate's graphs do not use these weights, but the converted model must keep them.
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

    /// Collects the names of the weights and checks that none is missing or unused.
    ///
    /// `outline` holds the shapes of the weights. It must have been used to build the network's
    /// graphs, which records the names that they need.
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

    /// Iterates over the weights with their current names.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        let names = self.names.iter();
        names.filter_map(|name| Some((name.as_str(), self.weights.get(name)?)))
    }

    /// Returns the weights of a text encoder, under names that every version of transformers loads.
    /// transformers 5 dropped the prefix `text_model.` from the names of `CLIPTextModel`, but still
    /// reads it.
    pub fn whole_text(&self, conversion: &Conversion) -> Vec<New<'_>> {
        let mut tensors = self.whole(conversion);
        for tensor in &mut tensors {
            if !tensor.name.starts_with(clip_text::PROJECTION) {
                tensor.name.insert_str(0, "text_model.");
            }
        }
        tensors
    }

    /// Returns a tensor to write for each weight, under its current name.
    pub fn whole(&self, conversion: &Conversion) -> Vec<New<'_>> {
        let tensors = self.tensors().map(|(name, tensor)| New {
            name: name.to_owned(),
            dtype: target(tensor, conversion.weight_type),
            shape: tensor.shape().to_vec(),
            content: Content::Weights(vec![tensor]),
        });
        tensors.collect()
    }
}
