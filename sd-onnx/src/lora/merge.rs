//! Computes the weights that adapters change.
//!
//! The changed weights are stored as f32, also where the model has a shorter type. An adapter often
//! changes a weight by less than the precision of f16, and rounding would lose such changes. The
//! CPU computes in f32 and widens shorter weights when it loads them, so f32 costs no memory once
//! the model is loaded. Only changed tensors are in memory, all others stay in their file.

use std::{
    collections::{BTreeMap, HashMap},
    num::NonZero,
    ops::Range,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use super::{
    Fitted,
    fit::Change,
    formats::{Dims, Factor, Misfit, Part, Parts, Strength},
    keys::name,
};
use crate::{
    Error,
    weights::{Source, Stored, Tensor, Type, Weights},
};

/// An adapter, and how strongly it is merged into a network.
#[derive(Clone, Copy)]
pub(crate) struct Use<'a> {
    pub adapter: &'a Fitted,
    /// Returns the multiplier of a tensor, by the tensor's current name. 0 changes nothing, 1 makes
    /// the change that was trained. Negative numbers and numbers above 1 are allowed.
    pub multiplier: &'a (dyn Fn(&str) -> f32 + Sync),
    /// The number of leading ranks that a LoRA uses, WebUI's `dyn`. `None` uses all. The scale is
    /// alpha divided by the full rank in any case.
    pub rank: Option<usize>,
}

/// What merging did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Merged {
    /// The number of tensors that were changed.
    pub tensors: usize,
    /// The memory of the changed tensors, in bytes.
    pub bytes: u64,
}

/// A changed tensor, f32 and little-endian.
#[derive(Debug, Clone)]
pub(crate) struct Changed {
    /// The current name.
    pub name: String,
    pub shape: Vec<usize>,
    pub bytes: Arc<[u8]>,
}

/// Merges adapters into a network's weights, one after another.
///
/// # Errors
/// - [`Error::TensorValues`] if a factor contains NaN or infinity, or has a type that cannot be
///   decoded.
/// - [`Error::TensorShape`] if these are not the weights that the adapters were fitted to.
/// - [`Error::Io`] if a file cannot be read.
pub(crate) fn merge(
    network: &str,
    weights: &mut Weights,
    adapters: &[Use<'_>],
) -> Result<Merged, Error> {
    let changed = changed(network, weights, adapters)?;
    let mut merged = Merged::default();
    for Changed { name, shape, bytes } in changed {
        merged.tensors += 1;
        merged.bytes += bytes.len() as u64;
        weights.put(&name, Type::F32, &shape, bytes)?;
    }
    Ok(merged)
}

/// Computes the tensors of a network that adapters change, without storing them.
///
/// # Errors
/// As [`merge()`].
pub(crate) fn changed(
    network: &str,
    weights: &Weights,
    adapters: &[Use<'_>],
) -> Result<Vec<Changed>, Error> {
    let jobs = jobs(network, weights, adapters);
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let work = || -> Result<Vec<Changed>, Error> {
        let mut done = Vec::new();
        // The weights of a job. All jobs of a thread use the same memory, because the system takes
        // about as long to provide new pages as the thread takes to compute them.
        let mut buffer = Vec::new();
        while !failed.load(Ordering::Relaxed)
            && let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed))
        {
            let changed = job.run(weights, adapters, &mut buffer);
            failed.fetch_or(changed.is_err(), Ordering::Relaxed);
            done.extend(changed?);
        }
        Ok(done)
    };
    let mut all = thread::scope(|scope| {
        let workers = threads.min(jobs.len());
        // Collecting spawns all threads before the first one is joined.
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        let mut all = Vec::with_capacity(jobs.len());
        for worker in workers {
            all.extend(worker.join().expect("merging does not panic")?);
        }
        Ok::<_, Error>(all)
    })?;
    all.sort_by(|a: &Changed, b: &Changed| a.name.cmp(&b.name));
    Ok(all)
}

/// The changes of a tensor, or of several tensors that some adapter changes together.
#[derive(Debug)]
struct Job<'a> {
    /// The current names of the tensors.
    tensors: Vec<&'a str>,
    /// The number of the tensors' numbers, for the order of the jobs.
    size: usize,
    steps: Vec<Step<'a>>,
}

/// A change by one adapter.
#[derive(Debug)]
struct Step<'a> {
    /// The index of the adapter.
    adapter: usize,
    change: &'a Change,
}

/// Collects the changes of each tensor, in the order of the adapters. The largest tensors come
/// first, so that the threads finish at about the same time.
fn jobs<'a>(network: &str, weights: &Weights, adapters: &[Use<'a>]) -> Vec<Job<'a>> {
    let of_network = |index: usize, adapter: &Use<'a>| {
        let changes = adapter.adapter.changes.iter();
        let changes = changes.filter(|change| change.network == network);
        changes.map(move |change| Step {
            adapter: index,
            change,
        })
    };
    let steps: Vec<Step<'a>> = adapters
        .iter()
        .enumerate()
        .flat_map(|(index, adapter)| of_network(index, adapter))
        .collect();
    // Tensors that are changed together belong to the job of the first of them.
    let mut first: HashMap<&str, &str> = HashMap::new();
    let together = steps.iter().filter(|step| step.change.tensors.len() > 1);
    let mut groups: HashMap<&str, Vec<&str>> = HashMap::new();
    for step in together {
        let tensors = step.change.tensors.iter().map(String::as_str);
        let tensors: Vec<&str> = tensors.collect();
        first.extend(tensors.iter().map(|&tensor| (tensor, tensors[0])));
        groups.insert(tensors[0], tensors);
    }
    let mut jobs: BTreeMap<&str, Job<'a>> = BTreeMap::new();
    for step in steps {
        let tensor = step.change.tensors[0].as_str();
        let key = first.get(tensor).copied().unwrap_or(tensor);
        let job = jobs.entry(key).or_insert_with(|| {
            let tensors = groups.get(key).cloned().unwrap_or_else(|| vec![key]);
            let count =
                |tensor: &&str| weights.shape(tensor).map_or(0, |shape| Dims(shape).count());
            Job {
                size: tensors.iter().map(count).sum(),
                tensors,
                steps: Vec::new(),
            }
        });
        job.steps.push(step);
    }
    let mut jobs: Vec<_> = jobs.into_values().collect();
    jobs.sort_by_key(|job| std::cmp::Reverse(job.size));
    jobs
}

impl Job<'_> {
    fn run(
        &self,
        weights: &Weights,
        adapters: &[Use<'_>],
        all: &mut Vec<f32>,
    ) -> Result<Vec<Changed>, Error> {
        all.clear();
        all.reserve(self.size);
        // The place of each tensor in `all`.
        let mut places: Vec<(&str, &[usize], Range<usize>)> = Vec::new();
        for &name in &self.tensors {
            let Some(tensor) = weights.get(name) else {
                continue;
            };
            let start = all.len();
            read(tensor, all)?;
            places.push((name, tensor.shape(), start..all.len()));
        }
        let mut changed = vec![false; places.len()];
        for Step { adapter, change } in &self.steps {
            let of = &adapters[*adapter];
            let is_in = |name: &str| change.tensors.iter().any(|tensor| tensor == name);
            let inside = places.iter().filter(|(name, ..)| is_in(name));
            let ranges: Vec<&Range<usize>> = inside.map(|(_, _, range)| range).collect();
            let (Some(from), Some(to)) = (ranges.first(), ranges.last()) else {
                continue;
            };
            let strength = Strength {
                scale: change.scale,
                multiplier: (of.multiplier)(&change.tensors[0]),
                rank: of.rank,
            };
            if strength.multiplier == 0.0 || ranges.len() != change.tensors.len() {
                continue;
            }
            let weight = &mut all[from.start..to.end];
            if !change.fits(weight.len()) {
                let (name, found, _) = &places[0];
                return Err(Error::TensorShape {
                    path: weights
                        .get(name)
                        .map_or_else(PathBuf::new, |it| it.file.to_path_buf()),
                    tensor: change.tensors[0].clone(),
                    expected: change.shape.clone(),
                    found: found.to_vec(),
                });
            }
            let factors = change.load()?;
            change.apply(&factors, weight, strength)?;
            for ((name, ..), changed) in places.iter().zip(&mut changed) {
                *changed |= is_in(name);
            }
        }
        let mut done = Vec::with_capacity(places.len());
        for ((name, shape, range), changed) in places.into_iter().zip(changed) {
            if changed {
                done.push(Changed {
                    name: name.to_owned(),
                    shape: shape.to_vec(),
                    bytes: bytes(&all[range]),
                });
            }
        }
        Ok(done)
    }
}

impl Change {
    /// Reads and decodes the factors.
    pub(super) fn load(&self) -> Result<Parts<Factor>, Error> {
        let mut factors = Parts::default();
        for (part, stored) in self
            .parts
            .iter()
            .filter(|&(part, _)| self.format.uses(part))
        {
            // The scale is known already. Only OFT reads alpha as a factor.
            if part == Part::Scale {
                continue;
            }
            factors.insert(part, load(stored)?);
        }
        Ok(factors)
    }

    /// Whether a weight with as many numbers has the shape of the change, or is a convolution with
    /// the same outputs and more inputs.
    fn fits(&self, count: usize) -> bool {
        let dims = Dims(&self.shape);
        let wider = count
            .checked_div(dims.outputs())
            .is_some_and(|row| row > dims.columns());
        dims.count() == count || self.narrow && wider
    }

    /// Changes the tensors, one below another.
    fn apply(
        &self,
        factors: &Parts<Factor>,
        weight: &mut [f32],
        strength: Strength,
    ) -> Result<(), Error> {
        let dims = Dims(&self.shape);
        let failed = |misfit| self.failed(misfit);
        if dims.count() == weight.len() {
            let changed = self.format.apply(factors, weight, dims, strength);
            return changed.map_err(failed);
        }
        // The factors are for the first channels of a convolution that takes more.
        let (columns, rows) = (dims.columns(), dims.outputs());
        let all = weight.len() / rows.max(1);
        let narrow = weight.chunks_exact(all).flat_map(|row| &row[..columns]);
        let mut narrow: Vec<f32> = narrow.copied().collect();
        let changed = self.format.apply(factors, &mut narrow, dims, strength);
        changed.map_err(failed)?;
        for (row, changed) in weight
            .chunks_exact_mut(all)
            .zip(narrow.chunks_exact(columns))
        {
            row[..columns].copy_from_slice(changed);
        }
        Ok(())
    }

    /// Reports a problem that only the values of the factors show.
    pub(super) fn failed(&self, misfit: Misfit) -> Error {
        let stored = self.parts.get(misfit.part);
        let stored = stored.or_else(|| self.parts.iter().next().map(|(_, stored)| stored));
        Error::TensorValues {
            path: stored.map_or_else(PathBuf::new, |stored| stored.file.to_path_buf()),
            tensor: stored.map_or_else(String::new, |stored| stored.name.clone()),
            problem: misfit
                .problem
                .unwrap_or_else(|| format!("lacks `{}`", name(misfit.part))),
        }
    }
}

/// The number of values that are decoded at once.
const STEP: usize = 1 << 15;

/// Decodes a factor, which must be finite.
fn load(stored: &Stored) -> Result<Factor, Error> {
    let mut values = Vec::new();
    let mut is_finite = true;
    stored
        .source()
        .pieces(stored.scale.as_ref(), STEP, |piece| {
            is_finite &= piece.iter().all(|value| value.is_finite());
            values.extend_from_slice(piece);
            Ok(())
        })?;
    if !is_finite {
        return Err(Error::TensorValues {
            path: stored.file.to_path_buf(),
            tensor: stored.name.clone(),
            problem: "contains NaN or infinity".to_owned(),
        });
    }
    Ok(Factor {
        shape: stored.shape.clone(),
        values,
    })
}

/// Appends the numbers of a weight, in the order of its shape.
fn read(tensor: &Tensor, to: &mut Vec<f32>) -> Result<(), Error> {
    let append = |to: &mut Vec<f32>, source: Source<'_>| {
        source.pieces(tensor.scale.as_ref(), STEP, |piece| {
            to.extend_from_slice(piece);
            Ok(())
        })
    };
    let source = tensor.source();
    let &[rows, columns] = source.shape else {
        return append(to, source);
    };
    if !tensor.transposed {
        return append(to, source);
    }
    let mut stored = Vec::with_capacity(rows * columns);
    let shape = [columns, rows];
    append(
        &mut stored,
        Source {
            shape: &shape,
            ..source
        },
    )?;
    to.extend((0..rows).flat_map(|row| {
        let stored = &stored;
        (0..columns).map(move |column| stored[column * rows + row])
    }));
    Ok(())
}

/// Returns numbers as little-endian bytes.
fn bytes(values: &[f32]) -> Arc<[u8]> {
    const SIZE: usize = size_of::<f32>();
    let mut bytes: Arc<[u8]> = std::iter::repeat_n(0, values.len() * SIZE).collect();
    let all = Arc::get_mut(&mut bytes).expect("the bytes are not shared yet");
    for (to, value) in all.as_chunks_mut::<SIZE>().0.iter_mut().zip(values) {
        *to = value.to_le_bytes();
    }
    bytes
}
