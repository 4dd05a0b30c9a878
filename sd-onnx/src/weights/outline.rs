//! Weights without their numbers, and weights that were just written.

use std::{
    collections::HashMap,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use super::{Place, Tensor, Type, Weights};
use crate::Error;

impl Weights {
    /// No tensors yet, in a file that tensors are written to.
    pub fn empty(path: &Path) -> Self {
        Self {
            path: path.to_path_buf(),
            tensors: HashMap::new(),
        }
    }

    /// Puts a tensor in a place.
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
        };
        self.tensors.insert(name.to_owned(), tensor);
    }

    /// Tensors of the same names and shapes, without numbers. A graph that is written over them
    /// shows which tensors a network has, and reads none.
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
            };
            outline.tensors.insert(name.clone(), of);
        }
        outline
    }

    /// Finds what loading would refuse, without reading a weight: `write` writes the graphs of a
    /// network of this class, and `left_out` says which other tensors the class knows.
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

    /// The names and the shapes of the tensors that graphs have asked for.
    pub fn used(&self) -> impl Iterator<Item = (&str, &[usize])> {
        let used = self
            .tensors
            .iter()
            .filter(|(_, tensor)| tensor.used.load(Ordering::Relaxed));
        used.map(|(name, tensor)| (name.as_str(), tensor.shape.as_slice()))
    }

    /// The names of all tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The tensor of that name, which does not count as used.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }
}

impl Tensor {
    /// The shape as the networks ask for it.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }
}
