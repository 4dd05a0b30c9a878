//! Recognises a model in one file, with the tensor names of latent diffusion, diffusers or
//! transformers.
//!
//! [`read`] takes the names and shapes of a file's tensors and infers the contents of a diffusers
//! folder for the same model: the configurations of the networks and the scheduler, the pipeline
//! class, and the current name of every tensor with the part of a stored tensor that holds it.
//! Shapes come from the tensors. The [family](Family) supplies only facts that no tensor shows. No
//! weight is read, except a few small values.

mod control;
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
    control::{ControlFile, ControlKind},
    family::{Family, Task},
    kind::Kind,
    names::Component,
    prediction::Predicts,
    split::network_of,
    stored::{Shapes, Stored, marks, stored},
};
use self::{
    names::Tensor,
    prediction::Evidence,
    split::{Slot, Split},
    text::Tower,
    unet::Unet,
};
use crate::{
    Error,
    weights::{Mapped, View},
};

/// The facts about a file that are known before any weight is read.
pub(crate) struct File<'a> {
    /// The file's name without its extension. Words in it identify distilled models.
    pub name: &'a str,
    /// The shape of each tensor, by the tensor's name.
    pub shapes: BTreeMap<&'a str, &'a [usize]>,
    /// The `__metadata__` of a safetensors file.
    pub metadata: &'a BTreeMap<String, String>,
    /// The text of the `.yaml` file beside it, if there is one.
    pub yaml: Option<&'a str>,
    /// The kind of prediction that the user has set.
    pub predicts: Option<Predicts>,
    /// Reads the values of a small tensor.
    pub values: &'a dyn Fn(&str) -> Result<Vec<f32>, Error>,
}

/// The contents of one file.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    /// The family, or `None` without a UNet.
    pub family: Option<Family>,
    /// A more specific name, such as `SSD-1B`, if the shapes identify one.
    pub variant: Option<&'static str>,
    /// The task, or `None` without a UNet.
    pub task: Option<Task>,
    /// The kind of distillation, such as `Turbo`, if the file's name or header names one.
    pub distilled: Option<&'static str>,
    /// The networks, by their folders' names in diffusers: `unet`, `vae`, `text_encoder`,
    /// `text_encoder_2`.
    pub components: BTreeMap<&'static str, Component>,
    /// The components that the family needs but the file lacks.
    pub missing: Vec<&'static str>,
    /// The `_class_name` for `model_index.json`. It is empty without a UNet.
    pub class: &'static str,
    /// The `force_zeros_for_empty_prompt` for `model_index.json`.
    pub zeros_for_empty: Option<bool>,
    /// The `requires_aesthetics_score` for `model_index.json`.
    pub aesthetics_score: Option<bool>,
    /// The `is_cosxl_edit` for `model_index.json`.
    pub cosxl_edit: Option<bool>,
    /// The padding tokens, by the tokenizers' folders: `tokenizer`, `tokenizer_2`.
    pub pads: BTreeMap<&'static str, &'static str>,
    /// The contents of `scheduler_config.json`. It is empty without a UNet.
    pub scheduler: Map<String, Value>,
    /// The kind of prediction of the UNet, and the reason for it.
    pub predicts: Predicts,
    pub predicts_because: String,
    /// Warnings for the user.
    pub warnings: Vec<String>,
}

/// The reason why a file is not a usable model.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Problem {
    /// The file is something else.
    #[error("the file is {0}")]
    Other(Kind),
    /// The file is something else than a ControlNet or an adapter.
    #[error("the file is {0}; expected a ControlNet, a T2I-Adapter or an IP-Adapter")]
    NoControl(Kind),
    /// The file has no network that is known.
    #[error("none of the {count} tensors belongs to a Stable Diffusion model: {first}")]
    Nothing { count: usize, first: String },
    /// A network has a shape that is not supported.
    #[error("the {component}: {problem}")]
    Shape {
        component: &'static str,
        problem: String,
    },
    /// Two tensors are the same weight under two names.
    #[error("tensor `{}` is there twice, also as `{}`", printable(.0), printable(.1))]
    Twice(String, String),
    /// A small tensor has other values than its name implies.
    #[error("tensor `{}` has {found}, expected {expected}", printable(.tensor))]
    Value {
        tensor: String,
        expected: String,
        found: String,
    },
    #[error(transparent)]
    Values(#[from] Error),
}

/// Returns what kind of file this is, also for a file that is not a model.
pub(crate) fn kind(file: &File<'_>) -> Kind {
    kind::of(file)
}

/// Recognises a ControlNet, a T2I-Adapter or an IP-Adapter.
pub(crate) fn read_control(file: &File<'_>) -> Result<ControlFile, Problem> {
    control::read(file)
}

/// Recognises a model, or a part of one.
///
/// A pair of TAESD files is read as one file. The caller prefixes the names of the encoder's
/// tensors with `taesd_encoder.` and those in the decoder with `taesd_decoder.`.
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

    let mut components = text_encoders(&towers, family, &mut warnings)?;
    let vae = split.of_slot(Slot::Vae);
    if !vae.is_empty() {
        let vae = autoencoder(vae, file, family, &evidence, &mut warnings)?;
        components.insert("vae", vae);
    }
    warnings.extend(
        unet.as_ref()
            .and_then(|unet| middle_warning(unet, &evidence)),
    );
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
        warnings,
        components,
    };
    if let (Some(family), Some(task), Some(unet)) = (family, checkpoint.task, unet) {
        checkpoint.add_unet(unet, family, task, &evidence)?;
    } else if checkpoint.components.is_empty() {
        return Err(Problem::Nothing {
            count: file.shapes.len(),
            first: list(file.shapes.keys().take(4)),
        });
    }
    if !split.left_out.is_empty() {
        checkpoint.warnings.push(format!(
            "{} tensors of the file belong to no network that is used, and are ignored: {}",
            split.left_out.len(),
            list(&split.left_out)
        ));
    }
    Ok(checkpoint)
}

/// Reads the text encoders, by their folders' names in diffusers.
fn text_encoders(
    towers: &[Tower<'_>],
    family: Option<Family>,
    warnings: &mut Vec<String>,
) -> Result<BTreeMap<&'static str, Component>, Problem> {
    let mut components = BTreeMap::new();
    for tower in towers {
        let component = text::read(tower, family)?;
        warnings.extend(text::unusual(&component));
        if components.insert(tower.component, component).is_some() {
            return Err(Problem::Shape {
                component: "text encoder",
                problem: format!("the file has two candidates for `{}`", tower.component),
            });
        }
    }
    Ok(components)
}

/// Reads the autoencoder.
fn autoencoder(
    tensors: &[Tensor<'_>],
    file: &File<'_>,
    family: Option<Family>,
    evidence: &Evidence,
    warnings: &mut Vec<String>,
) -> Result<Component, Problem> {
    let latents = evidence.latents(file)?;
    let factor = evidence.scale_factor.or(family.map(Family::scaling_factor));
    let vae = vae::read(tensors, factor, latents)?;
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
    Ok(vae)
}

/// Returns the warning for a UNet that lacks a part of its middle block although no distilled model
/// explains it.
fn middle_warning(unet: &Unet, evidence: &Evidence) -> Option<String> {
    (unet.lacks_middle() && evidence.distilled_name().is_none()).then(|| {
        "the UNet's middle block is incomplete, and no distilled model of this shape is known"
            .to_owned()
    })
}

impl Checkpoint {
    /// Adds the UNet, and the facts of the pipeline and its scheduler, which depend on the UNet.
    fn add_unet(
        &mut self,
        unet: Unet,
        family: Family,
        task: Task,
        evidence: &Evidence,
    ) -> Result<(), Problem> {
        let is_lcm = unet.guidance_width().is_some();
        let is_cosxl = matches!(evidence.predicts, Predicts::EdmV);
        self.class = family.class(task, is_lcm);
        self.zeros_for_empty = family.zeros_for_empty();
        self.aesthetics_score = (family == Family::Refiner).then_some(true);
        if is_cosxl && task == Task::Edit {
            self.cosxl_edit = Some(true);
            self.warnings.push(
                "CosXL's editing model expects scaled latents of the picture, which is not supported \
                 yet: its pictures differ from diffusers' pictures"
                    .to_owned(),
            );
        }
        self.scheduler = evidence.scheduler(family, task, is_lcm);
        self.pads = family.pads();
        let sample_size = evidence.sample_size(family);
        let second = self.components.get("text_encoder_2");
        let pooled = second.and_then(|second| second.config["projection_dim"].as_u64());
        let unet = unet.component(family, pooled.map(|width| width as usize), sample_size)?;
        self.components.insert("unet", unet);
        let needed = family.components().iter().copied();
        self.missing = needed
            .filter(|name| !self.components.contains_key(name))
            .collect();
        Ok(())
    }

    /// Returns a short description of the model.
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
