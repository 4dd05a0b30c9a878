//! Weights without numbers, for checking a model, and weights that were just written.

use std::{
    collections::HashMap,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use super::{Place, Tensor, Type, Weights};
use crate::Error;

impl Weights {
    /// Returns an empty set of weights, for tensors that are being written to the file `path`.
    pub fn empty(path: &Path) -> Self {
        Self {
            path: path.to_path_buf(),
            tensors: HashMap::new(),
            calibration: None,
        }
    }

    /// Adds a tensor at a place, or replaces the one with the same name.
    pub fn place(&mut self, name: &str, dtype: Type, shape: &[usize], place: Place) {
        let tensor = Tensor {
            place,
            dtype,
            scale: None,
            shape: shape.to_vec(),
            transposed: false,
            file: self.path.as_path().into(),
            stored_name: name.to_owned(),
            used: AtomicBool::new(false),
            live: false,
        };
        self.tensors.insert(name.to_owned(), tensor);
    }

    /// Returns tensors with the same names and shapes, without numbers. Building a graph over them
    /// records which tensors the network needs, and reads none.
    pub fn outline(&self) -> Self {
        let mut outline = Self::empty(&self.path);
        for (name, tensor) in &self.tensors {
            let of = Tensor {
                place: Place::Memory([].into()),
                dtype: Type::F32,
                scale: None,
                shape: tensor.shape.clone(),
                transposed: false,
                file: tensor.file.clone(),
                stored_name: tensor.stored_name.clone(),
                used: AtomicBool::new(false),
                live: tensor.live,
            };
            outline.tensors.insert(name.clone(), of);
        }
        outline
    }

    /// Reports the errors that loading would report, without reading a weight.
    ///
    /// `write` builds the graphs of a network of this class. `left_out` returns whether the class
    /// knows a tensor that the graphs do not use.
    pub fn check(
        &self,
        class: &'static str,
        left_out: impl Fn(&str) -> bool,
        write: impl FnOnce(&Self) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let outline = self.outline();
        write(&outline)?;
        for (name, shape) in outline.used() {
            self.tensor(name, shape)?;
        }
        self.check_all_used(class, left_out)
    }

    /// Iterates over the names and shapes of the tensors that graphs have requested.
    pub fn used(&self) -> impl Iterator<Item = (&str, &[usize])> {
        let used = self
            .tensors
            .iter()
            .filter(|(_, tensor)| tensor.used.load(Ordering::Relaxed));
        used.map(|(name, tensor)| (name.as_str(), tensor.shape.as_slice()))
    }

    /// Iterates over the names of all tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Makes graphs take the factors of LoRAs that change these tensors as inputs. Tensors that are
    /// not there are ignored.
    pub fn make_live<'n>(&mut self, names: impl IntoIterator<Item = &'n str>) {
        for name in names {
            if let Some(tensor) = self.tensors.get_mut(name) {
                tensor.live = true;
            }
        }
    }

    /// Returns whether graphs take the factors of LoRAs that change a tensor.
    pub fn is_live(&self, name: &str) -> bool {
        self.tensors.get(name).is_some_and(|tensor| tensor.live)
    }

    /// Returns a tensor without marking it as used.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }
}

impl Tensor {
    /// Returns the shape that the networks expect.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }
}
