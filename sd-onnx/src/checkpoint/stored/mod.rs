//! The reverse way: the names of latent diffusion for the weights of a model, as one file has them.
//!
//! [`read`](super::read) of the names and shapes that are made here gives today's names again.

mod text;
mod unet;
mod vae;

use std::collections::BTreeMap;

use super::{Family, Predicts};

/// A tensor of a file in latent diffusion's names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stored {
    /// The name in the file.
    pub name: String,
    pub shape: Vec<usize>,
    /// Today's names of the weights that it is made of, one below the other along the first axis.
    pub weights: Vec<String>,
    /// Whether it is a matrix whose axes are exchanged.
    pub transposed: bool,
}

/// The shapes of a network's weights, by today's names.
pub(crate) type Shapes<'a> = BTreeMap<&'a str, &'a [usize]>;

/// The tensors that a file of this family has for a component.
///
/// # Errors
/// Today's name of a weight that has no name in latent diffusion.
pub(crate) fn stored(
    family: Family,
    component: &str,
    shapes: &Shapes<'_>,
) -> Result<Vec<Stored>, String> {
    match (component, family) {
        ("unet", _) => unet::stored("model.diffusion_model.", shapes),
        ("vae", _) => vae::stored("first_stage_model.", shapes),
        (_, Family::Sd1) => text::transformers("cond_stage_model.transformer.", shapes),
        (_, Family::Sd2) => text::open_clip("cond_stage_model.model.", shapes),
        (_, Family::Refiner) => text::open_clip("conditioner.embedders.0.model.", shapes),
        ("text_encoder_2", Family::Xl) => text::open_clip("conditioner.embedders.1.model.", shapes),
        (_, Family::Xl) => text::transformers("conditioner.embedders.0.transformer.", shapes),
    }
}

/// The marks of what a model predicts, as the names and the numbers of tensors. `latents` are the
/// means and the deviations of the latents' channels, and `sigmas` the range of the training; EDM's
/// models have them.
pub(crate) fn marks(
    predicts: Predicts,
    zero_snr: bool,
    latents: Option<[Vec<f32>; 2]>,
    sigmas: [f64; 2],
) -> Vec<(&'static str, Vec<f32>)> {
    let [min, max] = sigmas.map(|sigma| vec![sigma as f32]);
    let mut marks = match (predicts, latents) {
        (Predicts::Epsilon, _) | (Predicts::Edm, None) => Vec::new(),
        (Predicts::V, _) => vec![("v_pred", Vec::new())],
        (Predicts::Edm, Some([mean, std])) => vec![("edm_mean", mean), ("edm_std", std)],
        (Predicts::EdmV, _) => vec![("edm_vpred.sigma_max", max), ("edm_vpred.sigma_min", min)],
    };
    if zero_snr && predicts == Predicts::V {
        marks.push(("ztsnr", Vec::new()));
    }
    marks
}

/// The name of `module` in one column of a table for its name in the other one.
fn reversed<'t>(table: &[(&'t str, &str)], today: &str) -> Option<&'t str> {
    let found = table.iter().find(|(_, name)| *name == today);
    found.map(|(stored, _)| *stored)
}

/// A weight that is whole and alone in its tensor.
fn whole(name: String, today: &str, shape: &[usize]) -> Stored {
    Stored {
        name,
        shape: shape.to_vec(),
        weights: vec![today.to_owned()],
        transposed: false,
    }
}
