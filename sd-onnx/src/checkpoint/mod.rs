//! A model in one file, in the names of latent diffusion, of diffusers or of transformers.
//!
//! [`read`] gets the names and the shapes of a file's tensors and returns what a diffusers folder
//! of the same model would say: the networks' configurations, the scheduler's, the pipeline class,
//! and for each tensor its name of today and which part of a stored tensor it is. Shapes are read
//! from the tensors. The [family](Family) only tells what no tensor does. No weight is read, except
//! a few small values.

mod family;
mod kind;
mod names;
mod prediction;
mod split;
mod stored;
mod text;
mod unet;
mod vae;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use sd_text::outside::{list, printable};
use serde_json::{Map, Value};

pub(crate) use self::{
    family::{Family, Task},
    kind::Kind,
    names::Component,
    prediction::Predicts,
    stored::{Stored, marks, stored},
};
use self::{
    prediction::Evidence,
    split::{Slot, Split},
    unet::Unet,
};
use crate::{
    Error,
    weights::{Mapped, View},
};

/// What is known of a file before any weight is read.
pub(crate) struct File<'a> {
    /// The file's name without its extension: words in it name distilled models.
    pub name: &'a str,
    /// The shape of each tensor.
    pub shapes: BTreeMap<&'a str, &'a [usize]>,
    /// The `__metadata__` of a safetensors file.
    pub metadata: &'a BTreeMap<String, String>,
    /// The text of the `.yaml` file beside it.
    pub yaml: Option<&'a str>,
    /// What the user says that the model predicts.
    pub predicts: Option<Predicts>,
    /// Reads the values of a small tensor.
    pub values: &'a dyn Fn(&str) -> Result<Vec<f32>, Error>,
}

/// What one file holds.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    /// None without a UNet.
    pub family: Option<Family>,
    /// A closer name, where the shapes tell one: `SSD-1B`.
    pub variant: Option<&'static str>,
    /// None without a UNet.
    pub task: Option<Task>,
    /// The kind of distillation that the file's name or its header says: `Turbo`.
    pub distilled: Option<&'static str>,
    /// By the folders' names in diffusers: `unet`, `vae`, `text_encoder`, `text_encoder_2`.
    pub components: BTreeMap<&'static str, Component>,
    /// The components that the family needs and the file lacks.
    pub missing: Vec<&'static str>,
    /// `_class_name` of `model_index.json`, empty without a UNet.
    pub class: &'static str,
    /// `force_zeros_for_empty_prompt` of `model_index.json`.
    pub zeros_for_empty: Option<bool>,
    /// `requires_aesthetics_score` of `model_index.json`.
    pub aesthetics_score: Option<bool>,
    /// `is_cosxl_edit` of `model_index.json`.
    pub cosxl_edit: Option<bool>,
    /// The token that fills a text up, by the tokenizers' folders: `tokenizer`, `tokenizer_2`.
    pub pads: BTreeMap<&'static str, &'static str>,
    /// What `scheduler_config.json` would say; empty without a UNet.
    pub scheduler: Map<String, Value>,
    /// What the network predicts, and why that is believed.
    pub predicts: Predicts,
    pub predicts_because: String,
    /// Things to tell the user.
    pub warnings: Vec<String>,
}

/// Why a file is not a model that can be drawn with.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Problem {
    /// The file is something else.
    #[error("the file is {0}")]
    Other(Kind),
    /// There is no network that is known.
    #[error("none of the {count} tensors is of a Stable Diffusion model: {first}")]
    Nothing { count: usize, first: String },
    /// A network has a shape that cannot be computed here.
    #[error("the {component}: {problem}")]
    Shape {
        component: &'static str,
        problem: String,
    },
    /// Two tensors are the same weight under two names.
    #[error("tensor `{}` is there twice, also as `{}`", printable(.0), printable(.1))]
    Twice(String, String),
    /// A small tensor has other values than its name promises.
    #[error("tensor `{}` has {found}, expected {expected}", printable(.tensor))]
    Value {
        tensor: String,
        expected: String,
        found: String,
    },
    #[error(transparent)]
    Values(#[from] Error),
}

/// Returns what a file is, also where it is not a model.
pub(crate) fn kind(file: &File<'_>) -> Kind {
    kind::of(file)
}

/// Recognises a model, or a part of one.
///
/// A pair of TAESD's files is read as one file, in which the names of the encoder's tensors begin
/// with `taesd_encoder.` and the decoder's with `taesd_decoder.`.
pub(crate) fn read(file: &File<'_>) -> Result<Checkpoint, Problem> {
    let kind = kind::of(file);
    if !kind.is_read() {
        return Err(Problem::Other(kind));
    }
    let split = Split::of(file);
    let unet = match split.of_slot(Slot::Unet) {
        [] => None,
        tensors => Some(Unet::read(tensors)?),
    };
    let towers = split.towers(unet.as_ref());
    let family = unet.as_ref().map(|unet| Family::of(unet, &towers));
    let mut warnings = Vec::new();
    let evidence = Evidence::of(file, unet.as_ref(), family, &mut warnings)?;

    let mut components = BTreeMap::new();
    let mut pooled = None;
    for tower in &towers {
        let component = text::read(tower, family)?;
        warnings.extend(text::unusual(&component));
        if tower.component == "text_encoder_2" {
            pooled = component.config["projection_dim"].as_u64();
        }
        if components.insert(tower.component, component).is_some() {
            return Err(Problem::Shape {
                component: "text encoder",
                problem: format!("there are two for the place of `{}`", tower.component),
            });
        }
    }
    let vae = split.of_slot(Slot::Vae);
    if !vae.is_empty() {
        let latents = evidence.latents(file)?;
        let factor = evidence.scale_factor.or(family.map(Family::scaling_factor));
        let vae = vae::read(vae, factor, latents)?;
        for (key, layer) in [
            ("use_quant_conv", "quant_conv"),
            ("use_post_quant_conv", "post_quant_conv"),
        ] {
            if family.is_some() && vae.config.get(key).is_some_and(|has| has == false) {
                warnings.push(format!(
                    "the autoencoder has no `{layer}`, which other autoencoders of the family have"
                ));
            }
        }
        components.insert("vae", vae);
    }
    if let Some(unet) = &unet
        && unet.lacks_middle()
        && evidence.distilled_name().is_none()
    {
        warnings.push(
            "the UNet's middle block is not whole, and no distilled model of this shape is known"
                .to_owned(),
        );
    }
    let mut checkpoint = Checkpoint {
        family,
        variant: unet.as_ref().and_then(Unet::variant),
        task: unet.as_ref().map(Unet::task).transpose()?,
        distilled: evidence.distilled_name(),
        missing: Vec::new(),
        class: "",
        zeros_for_empty: None,
        aesthetics_score: None,
        cosxl_edit: None,
        pads: towers.iter().map(|tower| tower.pad(family)).collect(),
        scheduler: Map::new(),
        predicts: evidence.predicts,
        predicts_because: evidence.because.clone(),
        warnings: Vec::new(),
        components,
    };
    if let (Some(family), Some(task), Some(unet)) = (family, checkpoint.task, unet) {
        let is_lcm = unet.guidance_width().is_some();
        let is_cosxl = matches!(evidence.predicts, Predicts::EdmV);
        checkpoint.class = family.class(task, is_lcm);
        checkpoint.zeros_for_empty = family.zeros_for_empty();
        checkpoint.aesthetics_score = (family == Family::Refiner).then_some(true);
        if is_cosxl && task == Task::Edit {
            checkpoint.cosxl_edit = Some(true);
            warnings.push(
                "CosXL's editing model takes the latents of the picture scaled, which is not \
                 supported yet: its pictures differ from diffusers'"
                    .to_owned(),
            );
        }
        checkpoint.scheduler = evidence.scheduler(family, task, is_lcm);
        checkpoint.pads = family.pads();
        let sample_size = evidence.sample_size(family);
        let unet = unet.component(family, pooled.map(|width| width as usize), sample_size)?;
        checkpoint.components.insert("unet", unet);
        let needed = family.components().iter().copied();
        checkpoint.missing = needed
            .filter(|name| !checkpoint.components.contains_key(name))
            .collect();
    } else if checkpoint.components.is_empty() {
        return Err(Problem::Nothing {
            count: file.shapes.len(),
            first: list(file.shapes.keys().take(4)),
        });
    }
    if !split.left_out.is_empty() {
        warnings.push(format!(
            "{} tensors of the file are of no network that is used and are left out: {}",
            split.left_out.len(),
            list(&split.left_out)
        ));
    }
    checkpoint.warnings = warnings;
    Ok(checkpoint)
}

impl Checkpoint {
    /// What the model is, in words.
    pub fn title(&self) -> String {
        let Some(family) = self.family else {
            return "a part of a model".to_owned();
        };
        let task = match self.task {
            Some(Task::Inpaint) => Some("inpainting"),
            Some(Task::Edit) => Some("instruct-pix2pix"),
            _ => None,
        };
        let predicts = match self.predicts {
            Predicts::Epsilon => None,
            Predicts::V => Some("v-prediction"),
            Predicts::Edm => Some("Playground 2.5"),
            Predicts::EdmV => Some("CosXL"),
        };
        let more = [self.variant, self.distilled, predicts, task];
        let parts = [Some(family.name())].into_iter().chain(more).flatten();
        parts.collect::<Vec<_>>().join(", ")
    }
}
