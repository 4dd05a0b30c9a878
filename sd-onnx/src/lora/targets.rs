//! The modules of a model, by the names that adapter files have for them.
//!
//! The table is made from the model's own tensors. Every module is listed under its current name
//! and all of its other names, with underscores instead of dots. A name in a file therefore matches
//! exactly one module or none, and is never taken apart at its underscores.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::keys::{TEXT, TEXT_2, UNET};
use crate::{
    checkpoint::{Family, Shapes, stored},
    weights::{Weights, is_no_weight},
};

/// The modules of a model's networks.
#[derive(Debug)]
pub(crate) struct Targets<'w> {
    /// The model's family, or `None` without a UNet.
    pub family: Option<Family>,
    networks: BTreeMap<&'static str, Network<'w>>,
}

#[derive(Debug)]
struct Network<'w> {
    weights: &'w Weights,
    /// The modules, by all of their names.
    modules: HashMap<String, Target>,
}

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// The current name of the module. For OpenCLIP's fused attention, these are the three
    /// projections, whose rows follow one another in the adapter's tensors.
    pub modules: Vec<String>,
    /// Whether the name is latent diffusion's.
    pub is_ldm: bool,
}

impl<'w> Targets<'w> {
    /// Lists the modules of networks: `unet`, `text_encoder` and `text_encoder_2`.
    pub fn new(networks: &[(&'static str, &'w Weights)]) -> Self {
        let unet = networks.iter().find(|(name, _)| *name == UNET);
        let family = unet.map(|(_, weights)| family(weights));
        let networks = networks.iter().map(|&(name, weights)| {
            let modules = modules(name, weights);
            (name, Network { weights, modules })
        });
        Self {
            family,
            networks: networks.collect(),
        }
    }

    /// Finds a module in each of the networks, by any of its names.
    pub fn find<'t>(
        &'t self,
        networks: &'t [&'static str],
        name: &'t str,
    ) -> impl Iterator<Item = (&'static str, &'t Target)> {
        networks.iter().filter_map(move |&network| {
            let found = self.networks.get(network)?.modules.get(name)?;
            Some((network, found))
        })
    }

    /// Returns the shape of a tensor of a network.
    pub fn shape(&self, network: &str, tensor: &str) -> Option<&'w [usize]> {
        self.networks.get(network)?.weights.shape(tensor)
    }
}

/// Recognises the family by the UNet: SDXL adds sizes to the time embedding, and Stable Diffusion 2
/// was the first version with linear projections. The refiner's prompt is as wide as the pooled
/// text.
fn family(unet: &Weights) -> Family {
    let side =
        |name: &str, axis: usize| unet.shape(name).and_then(|shape| shape.get(axis).copied());
    let mut names = unet.names();
    let linear = |name: &str| {
        name.ends_with(".proj_in.weight") && unet.shape(name).is_some_and(|shape| shape.len() == 2)
    };
    match side("add_embedding.linear_1.weight", 1) {
        None if names.any(linear) => Family::Sd2,
        None => Family::Sd1,
        Some(added) => {
            let context = names.find(|name| name.ends_with("attn2.to_k.weight"));
            let context = context.and_then(|name| side(name, 1));
            let is_refiner = context.is_some_and(|context| Family::is_refiner(added, context));
            if is_refiner {
                Family::Refiner
            } else {
                Family::Xl
            }
        }
    }
}

/// Lists the modules of a network under all of their names.
fn modules(network: &str, weights: &Weights) -> HashMap<String, Target> {
    let mut table = Table::default();
    let known = |name: &&str| {
        let is_image = name.starts_with("vision_model.") || name.starts_with("visual_projection.");
        !is_no_weight(name)
            && !is_image
            && weights.shape(name).is_some_and(|shape| !shape.contains(&0))
    };
    let mut shapes: Shapes<'_> = weights
        .names()
        .filter(known)
        .filter_map(|name| Some((name, weights.shape(name)?)))
        .collect();
    for name in shapes.keys() {
        let Some(module) = name.strip_suffix(".weight") else {
            continue;
        };
        let module = [module.to_owned()];
        table.add(&module[0], &module, false);
        if network == TEXT || network == TEXT_2 {
            table.add(&format!("text_model.{}", module[0]), &module, false);
        }
    }
    // The older names. A tensor without an older name is left out, and the others are named again.
    let family = if network == TEXT {
        Family::Sd2
    } else {
        Family::Xl
    };
    let older = loop {
        match stored(family, network, &shapes) {
            Ok(older) => break older,
            Err(without) => {
                if shapes.remove(without.as_str()).is_none() {
                    break Vec::new();
                }
            }
        }
    };
    for tensor in older.iter().filter(|tensor| !tensor.transposed) {
        let (_, name) = crate::checkpoint::network_of(&tensor.name).unwrap_or(("", &tensor.name));
        let module = name
            .strip_suffix(".weight")
            .or_else(|| name.strip_suffix("_weight"));
        let of = |weight: &String| weight.strip_suffix(".weight").map(str::to_owned);
        let weights: Option<Vec<String>> = tensor.weights.iter().map(of).collect();
        if let (Some(module), Some(weights)) = (module, weights) {
            table.add(module, &weights, true);
        }
    }
    table.finish()
}

/// A table that is being filled.
#[derive(Debug, Default)]
struct Table {
    modules: HashMap<String, Target>,
    /// Names that would stand for two modules.
    ambiguous: HashSet<String>,
}

/// Ends of names with underscores, and the ends that older versions of diffusers had instead.
const OLDER: [(&str, &str); 5] = [
    ("_to_out_0", "_to_out"),
    ("_self_attn_q_proj", "_self_attn_to_q"),
    ("_self_attn_k_proj", "_self_attn_to_k"),
    ("_self_attn_v_proj", "_self_attn_to_v"),
    ("_self_attn_out_proj", "_self_attn_to_out"),
];

impl Table {
    fn add(&mut self, name: &str, modules: &[String], is_ldm: bool) {
        let name = name.replace('.', "_");
        for (end, older) in OLDER {
            if let Some(rest) = name.strip_suffix(end) {
                self.insert(format!("{rest}{older}"), modules, is_ldm);
            }
        }
        self.insert(name, modules, is_ldm);
    }

    fn insert(&mut self, name: String, modules: &[String], is_ldm: bool) {
        match self.modules.get(&name) {
            Some(other) if other.modules == modules => {}
            Some(_) => {
                self.ambiguous.insert(name);
            }
            None => {
                let modules = modules.to_vec();
                self.modules.insert(name, Target { modules, is_ldm });
            }
        }
    }

    fn finish(mut self) -> HashMap<String, Target> {
        self.modules
            .retain(|name, _| !self.ambiguous.contains(name));
        self.modules
    }
}
