//! A module of an adapter file.

use super::{
    formats::{Format, Part, Parts, Shaped},
    keys,
};
use crate::weights::Stored;

/// The tensors of an adapter file that change one layer.
#[derive(Debug)]
pub(crate) struct Module {
    /// The name in the file, without the roles of the tensors.
    pub name: String,
    /// The networks that the layer may belong to.
    pub networks: &'static [&'static str],
    /// The name of the layer in the network, with underscores instead of dots.
    pub rest: String,
    pub parts: Parts<Stored>,
}

impl Module {
    pub fn new(name: &str) -> Self {
        let (networks, rest) = keys::locate(name);
        Self {
            name: name.to_owned(),
            networks,
            rest,
            parts: Parts::default(),
        }
    }

    /// Whether the tensors make up a module of an adapter. A layer's own weight and bias do not.
    pub fn is_adapter(&self) -> bool {
        let bias = [Part::DiffB, Part::BNorm];
        Format::of(&self.parts).is_some() || bias.iter().any(|&part| self.parts.get(part).is_some())
    }

    /// Returns the names of the tensors in the file.
    pub fn tensors(&self) -> impl Iterator<Item = String> {
        self.parts.iter().map(|(_, stored)| stored.name.clone())
    }

    /// Returns the rank of the factors, if they have one.
    pub fn rank(&self) -> Option<usize> {
        let first = [
            Part::Down,
            Part::HadaW1B,
            Part::LokrW2B,
            Part::LokrW1B,
            Part::GloraA2,
        ];
        let tensor = first.iter().find_map(|&part| self.parts.get(part))?;
        tensor.shape().first().copied()
    }
}
