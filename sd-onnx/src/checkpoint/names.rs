//! Maps a component's tensors to their current names.

use std::collections::{BTreeMap, btree_map::Entry};

use serde_json::{Map, Value};

use super::{Mapped, Problem, View};
use crate::weights::is_no_weight;

/// One network of a checkpoint.
#[derive(Debug, Clone)]
pub(crate) struct Component {
    /// The contents of its `config.json`.
    pub config: Map<String, Value>,
    /// Its tensors, sorted by their current names.
    pub tensors: Vec<Mapped>,
    /// Tensors with its prefix that the network does not use, by their names in the file.
    pub unused: Vec<String>,
}

/// A tensor with a component's prefix.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tensor<'a> {
    /// The name without the prefix.
    pub rest: &'a str,
    /// The name in the file.
    pub stored: &'a str,
    pub shape: &'a [usize],
}

/// How a tensor is used.
pub(super) enum Fate {
    /// The tensor holds one or several weights.
    Weights(Vec<(String, View)>),
    /// The tensor is known, but not needed.
    LeftOut,
    Unknown,
}

impl Fate {
    pub fn whole(name: impl Into<String>) -> Self {
        Self::Weights(vec![(name.into(), View::Whole)])
    }
}

/// A component's tensors under their current names, before its configuration is known.
#[derive(Debug, Clone, Default)]
pub(super) struct Renamed {
    pub tensors: BTreeMap<String, Seen>,
    unused: Vec<String>,
}

/// A stored tensor, or the part of it that a view selects.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    stored: String,
    view: View,
    pub shape: Vec<usize>,
}

impl Renamed {
    /// Renames every tensor. Fails if two tensors get the same name.
    pub fn of(
        tensors: &[Tensor<'_>],
        rename: impl Fn(&Tensor<'_>) -> Fate,
    ) -> Result<Self, Problem> {
        let mut renamed = Self::default();
        for tensor in tensors {
            renamed.add(tensor, &rename)?;
        }
        Ok(renamed)
    }

    fn add(
        &mut self,
        tensor: &Tensor<'_>,
        rename: &impl Fn(&Tensor<'_>) -> Fate,
    ) -> Result<(), Problem> {
        let stored = tensor.stored;
        if is_no_weight(tensor.rest) {
            return Ok(());
        }
        match rename(tensor) {
            Fate::Weights(weights) => {
                for (name, view) in weights {
                    let shape = view.shape(tensor.shape);
                    let stored = stored.to_owned();
                    match self.tensors.entry(name) {
                        Entry::Vacant(entry) => {
                            entry.insert(Seen {
                                stored,
                                view,
                                shape,
                            });
                        }
                        Entry::Occupied(other) => {
                            return Err(Problem::Twice(stored, other.get().stored.clone()));
                        }
                    }
                }
            }
            Fate::LeftOut => {}
            Fate::Unknown => self.unused.push(stored.to_owned()),
        }
        Ok(())
    }

    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Returns the shape of a tensor. The result is empty if there is no such tensor.
    pub fn shape(&self, name: &str) -> &[usize] {
        self.tensors.get(name).map_or(&[], |seen| &seen.shape)
    }

    /// Returns the length of one axis of a tensor, or 0 if there is no such tensor or axis.
    pub fn dim(&self, name: &str, axis: usize) -> usize {
        self.shape(name).get(axis).copied().unwrap_or(0)
    }

    /// Returns a tensor's name in the file, if the file holds it whole.
    pub fn stored(&self, name: &str) -> Option<&str> {
        let seen = self.tensors.get(name)?;
        (seen.view == View::Whole).then_some(seen.stored.as_str())
    }

    /// Returns how many of the names `name(0)`, `name(1)`, … exist, up to the first gap.
    pub fn count(&self, name: impl Fn(usize) -> String) -> usize {
        (0..).take_while(|&i| self.has(&name(i))).count()
    }

    /// Gives each weight the number of axes that the network expects, by adding or removing axes of
    /// length 1 at the end.
    ///
    /// `rank` returns the number of axes for a name, or `None` if any number is right.
    pub fn with_rank(&mut self, rank: impl Fn(&str) -> Option<usize>) {
        for (name, seen) in &mut self.tensors {
            let Some(rank) = rank(name) else { continue };
            let is_whole = seen.view == View::Whole;
            let (short, long) = (rank.min(seen.shape.len()), seen.shape.len());
            let ones = seen.shape[short..].iter().all(|&dim| dim == 1);
            if !is_whole || rank == long || long < 2 || !ones {
                continue;
            }
            seen.shape.resize(rank, 1);
            seen.view = View::Reshaped(seen.shape.clone());
        }
    }

    /// Counts tensors as unused.
    pub fn leave_over(&mut self, is_left: impl Fn(&str) -> bool) {
        let left = self.tensors.iter().filter(|(name, _)| is_left(name));
        self.unused
            .extend(left.map(|(_, seen)| seen.stored.clone()));
        self.remove(is_left);
    }

    pub fn remove(&mut self, left_out: impl Fn(&str) -> bool) {
        self.tensors.retain(|name, _| !left_out(name));
    }

    pub fn component(self, config: Map<String, Value>) -> Component {
        let tensors = self.tensors.into_iter().map(|(name, seen)| Mapped {
            name,
            stored: seen.stored,
            view: seen.view,
        });
        Component {
            config,
            tensors: tensors.collect(),
            unused: self.unused,
        }
    }
}

/// Returns the map inside a value that is known to be an object.
pub(super) fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

impl View {
    /// Returns the shape of the part of a tensor that the view selects.
    fn shape(&self, stored: &[usize]) -> Vec<usize> {
        let mut shape = stored.to_vec();
        match self {
            Self::Whole => {}
            Self::Rows { count, .. } => {
                if let Some(rows) = shape.first_mut() {
                    *rows = *count;
                }
            }
            Self::Reshaped(new) => shape.clone_from(new),
            Self::Transposed => shape.reverse(),
        }
        shape
    }
}
