//! LoRAs whose factors are inputs of the networks.
//!
//! A graph that [takes factors](crate::graph::live) has two inputs for each weight that some LoRA
//! changes. The weights stay as they are, so that each call can have other LoRAs.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::{
    Active, Fitted, Set,
    fit::Change,
    formats::{Dims, Format, Part, low_rank},
};
use crate::{Error, graph::live::input_names, network::Named, session::Input, weights::Weights};

/// The ranks that a network of fixed sizes is compiled for, and multiples of the largest. Every
/// rank is rounded up to one of them.
const RANKS: [usize; 3] = [4, 16, 64];

impl Fitted {
    /// Returns whether all changes are products of small matrices, so that their factors can be
    /// inputs of the networks.
    pub fn is_live(&self) -> bool {
        self.changes.iter().all(Change::is_live)
    }

    /// Returns the names of the weights of a network that the adapter changes.
    pub fn weights_of(&self, network: &str) -> impl Iterator<Item = &str> {
        let changes = self.changes.iter();
        let changes = changes.filter(move |change| change.network == network);
        changes.flat_map(|change| change.tensors.iter().map(String::as_str))
    }

    /// Reads the factors for a network.
    ///
    /// # Errors
    /// As [`merge()`](super::merge()).
    pub fn factors(&self, network: &str) -> Result<Factors, Error> {
        let mut factors = BTreeMap::new();
        let changes = self.changes.iter();
        for change in changes.filter(|change| change.network == network) {
            change.add_factors(&mut factors)?;
        }
        Ok(Factors(factors))
    }
}

impl Change {
    fn is_live(&self) -> bool {
        let merged_only = [Part::Bias, Part::DoraScale, Part::Magnitude];
        self.format == Format::Lora
            && !self.narrow
            && !merged_only
                .iter()
                .any(|&part| self.parts.get(part).is_some())
            && self.shape.len() > 1
            // A table of embeddings is no layer to which a product can be added.
            && self
                .tensors
                .iter()
                .all(|tensor| tensor.ends_with(".weight") && !tensor.contains("embeddings."))
    }

    /// Adds the factors for each of the tensors.
    fn add_factors(&self, to: &mut BTreeMap<String, LowRank>) -> Result<(), Error> {
        let dims = Dims(&self.shape);
        let parts = self.load()?;
        let (down, mut up) = low_rank(&parts, dims).map_err(|misfit| self.failed(misfit))?;
        up.iter_mut().for_each(|value| *value *= self.scale);
        let rank = down.len() / dims.columns();
        // Where several tensors are one for the LoRA, each has its own rows of `up`.
        let rows = up.len() / self.tensors.len();
        for (tensor, up) in self.tensors.iter().zip(up.chunks_exact(rows)) {
            let factors = LowRank {
                rank,
                can_be_cut: self.parts.get(Part::Mid).is_none(),
                down: down.clone(),
                up: up.to_vec(),
            };
            to.insert(tensor.clone(), factors);
        }
        Ok(())
    }
}

/// The factors of a LoRA for the weights of a network, by the weights' names.
#[derive(Debug)]
pub(crate) struct Factors(BTreeMap<String, LowRank>);

/// The factors for a weight, f32.
#[derive(Debug)]
struct LowRank {
    rank: usize,
    /// Whether a part of the ranks can be used alone. The core of a Tucker decomposition mixes
    /// them.
    can_be_cut: bool,
    /// `[rank, columns]`
    down: Vec<f32>,
    /// `[outputs, rank]`, multiplied by the scale of the module.
    up: Vec<f32>,
}

/// The weights of a network whose factors are inputs, in the order of the inputs.
#[derive(Debug, Default)]
pub(crate) struct Sites {
    sites: Vec<Site>,
    /// The rank of all inputs, if the network needs the same rank in all of them: one of [`RANKS`],
    /// or 0 as long as no call has had a LoRA.
    rank: Option<AtomicUsize>,
    /// The inputs of a call without LoRAs, and their rank.
    none: Mutex<(usize, Arc<Inputs>)>,
}

#[derive(Debug)]
struct Site {
    weight: String,
    shape: Vec<usize>,
    names: [String; 2],
}

/// The values of the inputs with factors, in the order of the sites: `down` and `up`, each with its
/// shape.
#[derive(Debug, Default)]
pub(crate) struct Inputs(Vec<[Factor; 2]>);

/// The shape and the values of a factor.
type Factor = (Vec<usize>, Arc<[f32]>);

impl Sites {
    /// Makes the graphs over `weights` take the factors for these tensors, as far as the network
    /// uses them. The weights must have been [checked](Weights::check).
    ///
    /// If `one_rank`, all factors have the same rank, one of [`RANKS`] or a multiple of the
    /// largest.
    pub fn new(weights: &mut Weights, tensors: &BTreeSet<String>, one_rank: bool) -> Self {
        let used = weights.used();
        let site = |(tensor, shape): (&str, &[usize])| Site {
            weight: tensor.to_owned(),
            shape: shape.to_vec(),
            names: input_names(tensor),
        };
        let used = used.filter(|(tensor, _)| tensors.contains(*tensor));
        let mut sites: Vec<_> = used.map(site).collect();
        sites.sort_by(|a, b| a.weight.cmp(&b.weight));
        weights.make_live(sites.iter().map(|site| site.weight.as_str()));
        let none = Inputs(sites.iter().map(|site| site.joined(&[], None)).collect());
        Self {
            sites,
            rank: one_rank.then(AtomicUsize::default),
            none: Mutex::new((0, none.into())),
        }
    }

    /// Returns the inputs of a call at a step of a run. Returns `None` if the graph of the call
    /// takes no factors.
    pub fn of_call(&self, active: &Active, step: usize) -> Option<Arc<Inputs>> {
        match active {
            Active::Merged(_) => None,
            Active::Live(live) => Some(live.inputs(step)),
            Active::None if self.sites.is_empty() => None,
            Active::None if self.rank.is_some() && self.rank_now() == 0 => None,
            Active::None => {
                // After a panic, the value is still a complete one.
                let mut none = self.none.lock().unwrap_or_else(PoisonError::into_inner);
                let rank = self.rank_now();
                if none.0 != rank {
                    *none = (rank, self.inputs(&[]).into());
                }
                Some(none.1.clone())
            }
        }
    }

    /// Returns the rank of all inputs, or 0 if each input has its own.
    fn rank_now(&self) -> usize {
        let rank = self.rank.as_ref();
        rank.map_or(0, |rank| rank.load(Ordering::Relaxed))
    }

    /// Returns the inputs with their names.
    pub fn named<'a>(&'a self, inputs: &'a Inputs) -> impl Iterator<Item = Named<'a>> {
        let sites = self.sites.iter().zip(&inputs.0);
        sites.flat_map(|(site, values)| {
            let pairs = site.names.iter().zip(values);
            pairs.map(|(name, (shape, values))| (name.as_str(), Input::Shared(shape, values)))
        })
    }

    /// Returns the values of the inputs for LoRAs, each with its factors, the number of leading
    /// ranks that are used, and the multiplier of each weight.
    fn inputs(&self, loras: &[Use<'_>]) -> Inputs {
        let of = |site: &Site| -> Vec<_> {
            let factors = loras.iter().filter_map(|of| {
                let factors = of.factors.0.get(&site.weight)?;
                let multiplier = (of.multiplier)(&site.weight);
                let used = match of.rank.filter(|_| factors.can_be_cut) {
                    Some(rank) => rank.min(factors.rank),
                    None => factors.rank,
                };
                (multiplier != 0.0).then_some((factors, used, multiplier))
            });
            factors.collect()
        };
        let all: Vec<_> = self.sites.iter().map(of).collect();
        let rank = self.rank.as_ref().map(|rank| {
            let of = |factors: &Vec<(&LowRank, usize, f32)>| {
                factors.iter().map(|(_, used, _)| used).sum::<usize>()
            };
            let needed = all.iter().map(of).max().unwrap_or(0);
            let rounded = RANKS.into_iter().find(|&rank| rank >= needed);
            let rounded = rounded.unwrap_or_else(|| needed.next_multiple_of(RANKS[2]));
            // A network that was compiled for a larger rank is used for smaller ones, too.
            rounded.max(rank.fetch_max(rounded, Ordering::Relaxed))
        });
        let sites = self.sites.iter().zip(&all);
        Inputs(sites.map(|(site, of)| site.joined(of, rank)).collect())
    }
}

impl Site {
    /// Concatenates the factors of several LoRAs, and pads them with zeros to `rank`.
    fn joined(
        &self,
        factors: &[(&LowRank, usize, f32)],
        rank: Option<usize>,
    ) -> [(Vec<usize>, Arc<[f32]>); 2] {
        let dims = Dims(&self.shape);
        let used: usize = factors.iter().map(|(_, used, _)| used).sum();
        let rank = rank.unwrap_or(used);
        let mut down = Vec::with_capacity(rank * dims.columns());
        for (factors, used, _) in factors {
            down.extend_from_slice(&factors.down[..used * dims.columns()]);
        }
        down.resize(rank * dims.columns(), 0.0);
        let mut up = Vec::with_capacity(dims.outputs() * rank);
        for output in 0..dims.outputs() {
            for (factors, used, multiplier) in factors {
                let row = &factors.up[output * factors.rank..][..*used];
                up.extend(row.iter().map(|value| value * multiplier));
            }
            up.resize((output + 1) * rank, 0.0);
        }
        let mut down_shape = self.shape.clone();
        down_shape[0] = rank;
        let mut up_shape = vec![1; self.shape.len()];
        up_shape[..2].copy_from_slice(&[dims.outputs(), rank]);
        [(down_shape, down.into()), (up_shape, up.into())]
    }
}

/// The factors of a LoRA, and how strongly they are used.
struct Use<'a> {
    factors: &'a Factors,
    rank: Option<usize>,
    multiplier: &'a dyn Fn(&str) -> f32,
}

/// LoRAs whose factors are inputs of a network.
#[derive(Debug)]
pub(crate) struct Live {
    network: &'static str,
    sites: Arc<Sites>,
    set: Arc<Set>,
    /// The factors of each LoRA of the set.
    factors: Vec<Factors>,
    last: Mutex<Option<LastInputs>>,
}

/// The inputs of the last call, and what they were made for.
#[derive(Debug)]
struct LastInputs {
    /// The weight of each LoRA.
    weights: Vec<f32>,
    /// The rank of all inputs, or 0 if each has its own.
    rank: usize,
    inputs: Arc<Inputs>,
}

impl Live {
    /// Reads the factors.
    ///
    /// # Errors
    /// As [`merge()`](super::merge()).
    pub fn new(network: &'static str, sites: &Arc<Sites>, set: &Arc<Set>) -> Result<Self, Error> {
        let factors = set.fitted().map(|fitted| fitted.factors(network));
        Ok(Self {
            network,
            sites: sites.clone(),
            set: set.clone(),
            factors: factors.collect::<Result<_, _>>()?,
            last: Mutex::new(None),
        })
    }

    /// Returns the inputs at a step. They are computed anew only if a weight has changed.
    fn inputs(&self, step: usize) -> Arc<Inputs> {
        let weights = self.set.weights(self.network, step);
        // After a panic, the value is still a complete one.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = &*last
            && known.weights == weights
            && known.rank == self.sites.rank_now()
        {
            return known.inputs.clone();
        }
        let multipliers = self.set.multipliers(self.network, step);
        let loras = self.factors.iter().zip(self.set.ranks()).zip(&multipliers);
        let loras: Vec<_> = loras
            .map(|((factors, rank), multiplier)| Use {
                factors,
                rank,
                multiplier,
            })
            .collect();
        let inputs = Arc::new(self.sites.inputs(&loras));
        *last = Some(LastInputs {
            weights,
            rank: self.sites.rank_now(),
            inputs: inputs.clone(),
        });
        inputs
    }
}
