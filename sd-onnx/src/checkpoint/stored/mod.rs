//! Maps a model's weights to latent diffusion's names, for writing one file.
//!
//! [`read`](super::read) recognises the names and shapes that are made here, and gives the original
//! names again.

mod text;
mod unet;
mod vae;

use std::collections::BTreeMap;

use super::{Family, Predicts};

/// A tensor to write, with its name in latent diffusion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stored {
    /// The name in the file.
    pub name: String,
    pub shape: Vec<usize>,
    /// The current names of the weights in this tensor, in their order along the first axis.
    pub weights: Vec<String>,
    /// Whether this is a matrix that is stored with its axes exchanged.
    pub transposed: bool,
}

/// The shapes of a network's weights, by their current names.
pub(crate) type Shapes<'a> = BTreeMap<&'a str, &'a [usize]>;

/// Returns the tensors that a file of this family has for a component.
///
/// # Errors
/// Returns the current name of a weight that has no name in latent diffusion.
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

/// Returns the names and values of the tensors that mark a model's prediction.
///
/// `latents` holds the means and standard deviations of the latent channels, and `sigmas` the range
/// of the training. Both are for models with EDM's preconditioning.
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

/// Looks up a current name in a table of (stored name, current name), and returns the stored one.
fn reversed<'t>(table: &[(&'t str, &str)], today: &str) -> Option<&'t str> {
    let found = table.iter().find(|(_, name)| *name == today);
    found.map(|(stored, _)| *stored)
}

/// Returns a tensor that holds exactly one weight, unchanged.
fn whole(name: String, today: &str, shape: &[usize]) -> Stored {
    Stored {
        name,
        shape: shape.to_vec(),
        weights: vec![today.to_owned()],
        transposed: false,
    }
}
