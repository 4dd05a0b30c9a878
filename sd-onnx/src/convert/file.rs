//! Writes one file with latent-diffusion tensor names.
//!
//! A file holds no configurations. Its reader recognises the model's family and takes the shapes
//! from the tensors. Therefore the names, shapes, marks and metadata of the new file are recognised
//! before it is written, just as for any other file. If a network would be read differently from
//! the original, the conversion is refused.

use std::collections::BTreeMap;

use sd_core::schedulers::Prediction;
use sd_text::{
    ClipTokenizer,
    outside::{self, printable},
};

use super::{
    Steps, facts,
    numbers::target,
    output::Output,
    parts::{Network, Parts},
    tensors::{self, Content, New},
    tokenizers,
};
use crate::{
    ConvertError, Error,
    checkpoint::{self, Checkpoint, Family, Predicts, Stored},
    config::Config,
    models::{unet::UnetConfig, vae::VaeConfig},
    source::{IMAGE_ENCODER, MOST_YAML},
    weights::{Mapped, Type, View},
};

/// Writes the file. Returns what the file cannot store, one sentence each.
pub(super) fn write<'c>(
    parts: &Parts,
    output: &Output,
    mut steps: Steps<'c>,
) -> Result<(Steps<'c>, Vec<String>), ConvertError> {
    let family = parts.family();
    let mut stored = Vec::new();
    for network in &parts.networks {
        stored.push((network, of_network(parts, family, network)?));
    }
    let marks = marks(parts)?;
    let metadata = metadata(parts, family)?;
    let file = Reread {
        parts,
        stored: &stored,
        marks: &marks,
        metadata: &metadata,
    };
    let lost = file.check(output)?;

    let mut tensors = Vec::new();
    for (network, all) in &stored {
        tensors.extend(all.iter().map(|stored| new(network, stored, &steps)));
    }
    for (name, values) in &marks {
        tensors.push(New {
            name: (*name).to_owned(),
            dtype: Type::F32,
            shape: vec![values.len()],
            content: Content::Given(values.iter().flat_map(|v| v.to_le_bytes()).collect()),
        });
    }
    steps.expect(&tensors);
    let path = output.place();
    tensors::safetensors(output, path, &mut tensors, &metadata, &mut steps)?;
    Ok((steps, lost))
}

fn of_network(
    parts: &Parts,
    family: Family,
    network: &Network,
) -> Result<Vec<Stored>, ConvertError> {
    let shapes = network
        .tensors()
        .map(|(name, tensor)| (name, tensor.shape()));
    let stored = checkpoint::stored(family, network.component, &shapes.collect());
    stored.map_err(|name| {
        parts.failed(format!(
            "tensor `{}` of `{}` has no name in a single file",
            printable(name),
            network.component
        ))
    })
}

fn new<'n>(network: &'n Network, stored: &Stored, steps: &Steps<'_>) -> New<'n> {
    let weights = stored.weights.iter();
    let weights: Vec<_> = weights
        .filter_map(|name| network.weights.get(name))
        .collect();
    let types = weights
        .iter()
        .map(|weight| target(weight, steps.conversion.weight_type));
    let mut types = types.collect::<Vec<_>>();
    types.dedup();
    New {
        name: stored.name.clone(),
        dtype: match types[..] {
            [same] => same,
            // One tensor has one type. f32 holds the numbers of most other types exactly.
            _ => Type::F32,
        },
        shape: stored.shape.clone(),
        content: match weights[..] {
            [weight] if stored.transposed => Content::Transposed(weight),
            _ => Content::Weights(weights),
        },
    }
}

/// Returns the tensors that mark the kind of prediction, zero terminal SNR, latent statistics and
/// sigma range of the model.
fn marks(parts: &Parts) -> Result<Vec<(&'static str, Vec<f32>)>, ConvertError> {
    let config = &parts.corrected;
    let predicts = Predicts::of(config.prediction).ok_or_else(|| {
        let prediction = config.prediction;
        parts.failed(format!(
            "the UNet predicts {prediction:?}, which a file cannot record"
        ))
    })?;
    let vae = parts.network("vae").map(|vae| {
        let config = Config::of(&vae.path, vae.config.clone());
        let channels = VaeConfig::new(&config)?.latent_channels;
        let mean = config.numbers("latents_mean", channels)?;
        let std = config.numbers("latents_std", channels)?;
        Ok::<_, ConvertError>(mean.zip(std).map(|(mean, std)| [mean, std]))
    });
    let latents = vae.transpose()?.flatten();
    let zero_snr = config.rescale_betas_zero_snr;
    Ok(checkpoint::marks(
        predicts,
        zero_snr,
        latents,
        config.sigma_range,
    ))
}

/// Returns the metadata of the file's header, with the keys of
/// <https://github.com/Stability-AI/ModelSpec>.
fn metadata(parts: &Parts, family: Family) -> Result<BTreeMap<String, String>, ConvertError> {
    let mut metadata = BTreeMap::new();
    let mut say = |key: &str, value: String| metadata.insert(key.to_owned(), value);
    say("format", "pt".into());
    say("modelspec.title", parts.source.name());
    let architecture = match family {
        Family::Sd1 => "stable-diffusion-v1",
        Family::Sd2 => "stable-diffusion-v2",
        Family::Xl => "stable-diffusion-xl-v1-base",
        Family::Refiner => "stable-diffusion-xl-v1-refiner",
    };
    say("modelspec.architecture", architecture.into());
    let is_v = matches!(
        parts.corrected.prediction,
        Prediction::V | Prediction::Edm { v: true, .. }
    );
    let prediction = if is_v { "v" } else { "epsilon" };
    say("modelspec.prediction_type", prediction.into());
    let [height, width] = parts.sample_size()?.map(|side| side * 8);
    say("modelspec.resolution", format!("{width}x{height}"));
    Ok(metadata)
}

/// The new file as its readers will see it.
struct Reread<'a> {
    parts: &'a Parts,
    stored: &'a [(&'a Network, Vec<Stored>)],
    marks: &'a [(&'static str, Vec<f32>)],
    metadata: &'a BTreeMap<String, String>,
}

impl Reread<'_> {
    /// Recognises the file before it is written and compares the result with the model. Returns the
    /// differences outside the networks, one sentence each.
    fn check(&self, output: &Output) -> Result<Vec<String>, ConvertError> {
        let path = output.shown(output.place());
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let stored = self.stored.iter().flat_map(|(_, stored)| stored);
        let mut shapes: BTreeMap<&str, &[usize]> = stored
            .map(|stored| (stored.name.as_str(), stored.shape.as_slice()))
            .collect();
        let counts: Vec<_> = self
            .marks
            .iter()
            .map(|(_, values)| [values.len()])
            .collect();
        let marks = self.marks.iter().zip(&counts);
        shapes.extend(marks.map(|((name, _), count)| (*name, &count[..])));
        let yaml = outside::read_to_string(path.with_extension("yaml"), MOST_YAML).ok();
        let file = checkpoint::File {
            name: &name,
            shapes,
            metadata: self.metadata,
            yaml: yaml.as_deref(),
            predicts: None,
            values: &|name| self.values(name),
        };
        let read = checkpoint::read(&file).map_err(|problem| {
            self.parts.failed(format!(
                "the model would not be recognised in one file: {problem}"
            ))
        })?;
        for (network, stored) in self.stored {
            self.check_network(&read, network, stored)?;
        }
        self.lost(&read)
    }

    /// Returns the values of a small tensor, for the recogniser. The result is empty for an unknown
    /// tensor.
    fn values(&self, name: &str) -> Result<Vec<f32>, Error> {
        if let Some((_, values)) = self.marks.iter().find(|(mark, _)| *mark == name) {
            return Ok(values.clone());
        }
        let found = self.stored.iter().find_map(|(network, stored)| {
            let stored = stored.iter().find(|stored| stored.name == name)?;
            network.weights.get(stored.weights.first()?)
        });
        match found {
            Some(tensor) => tensor.source().values(),
            None => Ok(Vec::new()),
        }
    }

    /// Checks that a network would be read as the same network, made of the same tensors.
    fn check_network(
        &self,
        read: &Checkpoint,
        network: &Network,
        stored: &[Stored],
    ) -> Result<(), ConvertError> {
        let component = network.component;
        let fail = |problem: String| {
            self.parts.failed(format!(
                "in one file, `{component}` would be read as another network: {problem}"
            ))
        };
        let Some(found) = read.components.get(component) else {
            return Err(fail("none is recognised".into()));
        };
        let by_name: BTreeMap<&str, &Stored> = stored
            .iter()
            .map(|stored| (stored.name.as_str(), stored))
            .collect();
        let is_right = |mapped: &Mapped| {
            let Some(stored) = by_name.get(mapped.stored.as_str()) else {
                return false;
            };
            let part = match &mapped.view {
                View::Whole | View::Reshaped(_) if !stored.transposed => 0,
                View::Transposed if stored.transposed => 0,
                View::Rows { from, count } if *count > 0 && from % count == 0 => from / count,
                _ => return false,
            };
            stored.weights.get(part) == Some(&mapped.name)
        };
        let names: Vec<_> = network.tensors().map(|(name, _)| name).collect();
        let read_names: Vec<_> = found
            .tensors
            .iter()
            .map(|mapped| mapped.name.as_str())
            .collect();
        if let Some(name) = names.iter().find(|name| !read_names.contains(name)) {
            return Err(fail(format!("`{}` is not recognised", printable(name))));
        }
        let wrong = found.tensors.iter().find(|mapped| !is_right(mapped));
        if let Some(wrong) = wrong {
            return Err(fail(format!(
                "`{}` would be read as another tensor",
                printable(&wrong.stored)
            )));
        }
        let configs = [&network.config, &found.config];
        let [old, new] = configs.map(|map| Config::of(&network.path, map.clone()));
        let sizes = self.parts.source.sizes();
        let differences = facts::network(component, [&old, &new], sizes)?;
        match differences.is_empty() {
            true => Ok(()),
            false => Err(fail(outside::list(differences))),
        }
    }

    /// Returns what the file does not store or stores differently, one sentence each.
    fn lost(&self, read: &Checkpoint) -> Result<Vec<String>, ConvertError> {
        let parts = self.parts;
        let mut lost = read.warnings.clone();
        let scheduler = parts.scheduler_values()?;
        let of_read = Config::of(parts.source.path(), read.scheduler.clone());
        let read_config = parts.meaning(&of_read)?;
        if read_config.prediction != parts.corrected.prediction {
            return Err(parts.failed(format!(
                "in one file, the model would be read as predicting {:?}, but it predicts {:?}",
                read_config.prediction, parts.corrected.prediction
            )));
        }
        for difference in facts::scheduler(&scheduler, &read.scheduler) {
            lost.push(format!("in the scheduler {difference}"));
        }
        let old = parts.sample_size()?;
        if let Some(unet) = read.components.get("unet") {
            let unet = Config::of(parts.source.path(), unet.config.clone());
            let new = UnetConfig::new(&unet, parts.source.sizes())?.sample_size;
            if old != new {
                lost.push(format!(
                    "the model is for latents of {} × {}, and is read as one for {} × {}",
                    old[1], old[0], new[1], new[0]
                ));
            }
        }
        let class = parts.source.class();
        if class != read.class {
            lost.push(format!(
                "the pipeline class is {}, and is read as {}",
                printable(if class.is_empty() {
                    "a custom class"
                } else {
                    class
                }),
                read.class
            ));
        }
        let zeros = read
            .zeros_for_empty
            .unwrap_or(parts.source.towers().len() == 2);
        if zeros != parts.source.zero_empty_negative() {
            let [yes, no] = ["stands for zeros", "is encoded like any other prompt"];
            let [old, new] = if zeros { [no, yes] } else { [yes, no] };
            lost.push(format!(
                "an empty negative prompt {old}, and is read as one that {new}"
            ));
        }
        if parts.vision.is_some() {
            lost.push(format!(
                "`{IMAGE_ENCODER}` is not converted and is left out"
            ));
        }
        self.add_lost_tokenizers(read, &mut lost)?;
        Ok(lost)
    }

    /// Adds a sentence for each tokenizer that is read as another one.
    fn add_lost_tokenizers(
        &self,
        read: &Checkpoint,
        lost: &mut Vec<String>,
    ) -> Result<(), ConvertError> {
        let source = &self.parts.source;
        for tower in source.towers() {
            let tokenizer = source.tokenizer(*tower)?;
            let mut clip = ClipTokenizer::clip();
            if let Some(pad) = read.pads.get(tower.tokenizer) {
                clip = clip.padded_with(pad).map_err(Error::from)?;
            }
            match tokenizers::differences(tower.tokenizer, [&tokenizer, &clip]) {
                Some(words) => lost.extend(words),
                None => lost.push(format!(
                    "`{}` differs from CLIP's tokenizer, with which single files are read: keep its \
                     folder, and give it to `Builder::tokenizer`",
                    tower.tokenizer
                )),
            }
        }
        Ok(())
    }
}
