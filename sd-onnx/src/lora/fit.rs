//! Compares an adapter with a model.

use std::{
    collections::{HashMap, hash_map::Entry},
    path::Path,
};

use sd_text::outside::{list, printable};

use super::{
    Lora, Targets,
    formats::{Dims, Format, Misfit, Part, Parts},
    keys::name,
    module::Module,
    targets::Target,
};
use crate::{Error, weights::Stored};

/// An adapter's changes of a model.
///
/// The factors are still in the adapter's file, and are read whenever they are merged.
#[derive(Debug)]
pub(crate) struct Fitted {
    /// The changes, in the order of the file.
    pub(super) changes: Vec<Change>,
    /// The names of the tensors in the file that fit nothing in the model.
    pub unfit: Vec<String>,
}

/// The change of one tensor, or of several that are one in OpenCLIP.
#[derive(Debug)]
pub(super) struct Change {
    /// The network, by its folder in diffusers.
    pub network: &'static str,
    /// The current names of the tensors.
    pub tensors: Vec<String>,
    /// The shape that the factors are for: the shape of the tensors, one below another.
    pub shape: Vec<usize>,
    pub format: Format,
    pub parts: Parts<Stored>,
    /// The scale in the file, or alpha divided by the rank.
    pub scale: f32,
    /// Whether the factors are for the first inputs of a convolution that has more.
    pub narrow: bool,
}

/// The first convolution of a UNet, and the latent channels of an ordinary model. Inpainting models
/// have more channels.
pub(super) const FIRST: &str = "conv_in.weight";
const LATENTS: usize = 4;

impl Lora {
    /// Finds the tensors of a model that the adapter changes, and checks all shapes.
    ///
    /// # Errors
    /// [`Error::Adapter`] if the adapter is for another family, if none of its modules is in the
    /// model, or if a factor is missing or does not fit.
    pub fn fit(&self, targets: &Targets<'_>) -> Result<Fitted, Error> {
        if let (Some(own), Some(model)) = (self.family, targets.family)
            && own != model
        {
            let (own, model) = (own.name(), model.name());
            let problem = format!("the adapter is for {own}, but the model is {model}");
            return Err(Error::adapter(&self.path, problem));
        }
        let mut plan = Plan {
            unfit: self.unknown.clone(),
            ..Plan::default()
        };
        for module in &self.modules {
            match self.found(module, targets)? {
                Some(found) => plan.add(found, &self.path)?,
                None => plan.unfit.extend(module.tensors()),
            }
        }
        if plan.changes.is_empty() {
            let problem = format!(
                "none of the adapter's {} modules is in the model: {}",
                self.modules.len(),
                list(self.modules().take(4))
            );
            return Err(Error::adapter(&self.path, problem));
        }
        Ok(plan.fitted())
    }

    /// Finds a module in the model. Returns `None` if the model does not have it, or if its tensors
    /// do not make up an adapter.
    fn found<'m>(
        &self,
        module: &'m Module,
        targets: &Targets<'_>,
    ) -> Result<Option<Found<'m>>, Error> {
        if !module.is_adapter() {
            return Ok(None);
        }
        // Without a prefix, both text encoders have the module. The shapes then decide.
        let mut first = None;
        for (network, target) in targets.find(module.networks, &module.rest) {
            match self.changes(module, network, target, targets) {
                Ok(found) => return Ok(Some(found)),
                Err(error) => first = first.or(Some(error)),
            }
        }
        first.map_or(Ok(None), Err)
    }

    /// Returns the changes of a module: of its weight, of its bias, or of both.
    fn changes<'m>(
        &self,
        module: &'m Module,
        network: &'static str,
        target: &Target,
        targets: &Targets<'_>,
    ) -> Result<Found<'m>, Error> {
        let mut changes = Vec::with_capacity(1);
        let mut unfit = Vec::new();
        let format = Format::of(&module.parts);
        for (part, stored) in module.parts.iter() {
            let is_bias = part == Part::DiffB || part == Part::BNorm;
            if !is_bias && !format.is_some_and(|format| format.uses(part)) {
                unfit.push(stored.name.clone());
            }
        }
        if let Some(format) = format {
            let (tensors, mut shape) = self.place(module, network, target, "weight", targets)?;
            let misfit = |misfit| self.misfit(&module.parts, module, &tensors, misfit);
            let mut rank = format.check(&module.parts, Dims(&shape));
            let mut is_narrow = false;
            if tensors[0] == FIRST && shape.get(1).is_some_and(|&inputs| inputs > LATENTS) {
                let mut narrow = shape.clone();
                narrow[1] = LATENTS;
                if let (Err(_), Ok(found)) = (&rank, format.check(&module.parts, Dims(&narrow))) {
                    (shape, rank, is_narrow) = (narrow, Ok(found), true);
                }
            }
            let rank = rank.map_err(misfit)?;
            changes.push(Change {
                scale: self.scale(module, network, target, format, rank)?,
                network,
                tensors,
                shape,
                format,
                parts: module.parts.clone(),
                narrow: is_narrow,
            });
        }
        let biases = [Part::DiffB, Part::BNorm];
        let bias = biases.into_iter().find_map(|part| module.parts.get(part));
        let bare = |name: &String| targets.shape(network, &format!("{name}.bias")).is_none();
        match bias {
            Some(bias) if target.modules.iter().any(bare) => unfit.push(bias.name.clone()),
            Some(bias) => changes.push(self.bias(module, bias, network, target, targets)?),
            None => {}
        }
        Ok(Found {
            module,
            is_ldm: target.is_ldm,
            changes,
            unfit,
        })
    }

    /// Returns the change of a bias.
    fn bias(
        &self,
        module: &Module,
        bias: &Stored,
        network: &'static str,
        target: &Target,
        targets: &Targets<'_>,
    ) -> Result<Change, Error> {
        let (tensors, shape) = self.place(module, network, target, "bias", targets)?;
        let mut parts = Parts::default();
        parts.insert(Part::Diff, bias.clone());
        let check = Format::Full.check(&parts, Dims(&shape));
        check.map_err(|misfit| self.misfit(&parts, module, &tensors, misfit))?;
        Ok(Change {
            network,
            tensors,
            shape,
            format: Format::Full,
            parts,
            scale: 1.0,
            narrow: false,
        })
    }

    /// Returns the tensors of a target and their common shape, one below another.
    fn place(
        &self,
        module: &Module,
        network: &str,
        target: &Target,
        leaf: &str,
        targets: &Targets<'_>,
    ) -> Result<(Vec<String>, Vec<usize>), Error> {
        let tensors: Vec<String> = target
            .modules
            .iter()
            .map(|name| format!("{name}.{leaf}"))
            .collect();
        let shapes: Option<Vec<&[usize]>> = tensors
            .iter()
            .map(|tensor| targets.shape(network, tensor))
            .collect();
        let shape = shapes.as_deref().and_then(|shapes| {
            let first = *shapes.first()?;
            shapes.iter().all(|shape| *shape == first).then_some(first)
        });
        let Some(shape) = shape else {
            let problem = format!(
                "module `{}` changes {}, which the model does not have in one shape",
                printable(&module.name),
                list(&tensors)
            );
            return Err(Error::adapter(&self.path, problem));
        };
        let mut shape = shape.to_vec();
        if let Some(rows) = shape.first_mut() {
            *rows *= tensors.len();
        }
        Ok((tensors, shape))
    }

    /// Returns the scale of a module's difference.
    fn scale(
        &self,
        module: &Module,
        network: &str,
        target: &Target,
        format: Format,
        rank: Option<usize>,
    ) -> Result<f32, Error> {
        let number = |part| match module.parts.get(part) {
            Some(stored) => number(stored).map(Some),
            None => Ok(None),
        };
        let (scale, alpha) = (number(Part::Scale)?, number(Part::Alpha)?);
        let scale = match (scale, alpha, rank) {
            // Here alpha limits the rotation.
            _ if format == Format::Oft => 1.0,
            (Some(scale), ..) => scale,
            (None, Some(alpha), Some(rank)) => alpha / rank as f64,
            (None, None, Some(rank)) => {
                let name = target.modules.first().map_or("", String::as_str);
                self.alphas.scale(network, name, rank).unwrap_or(1.0)
            }
            (None, _, None) => 1.0,
        };
        match scale as f32 {
            finite if finite.is_finite() => Ok(finite),
            _ => {
                let module = printable(&module.name);
                let problem =
                    format!("module `{module}` has the scale {scale:e}, which is too large");
                Err(Error::adapter(&self.path, problem))
            }
        }
    }

    /// Reports that a module does not fit the tensors that it changes.
    fn misfit(
        &self,
        parts: &Parts<Stored>,
        module: &Module,
        tensors: &[String],
        misfit: Misfit,
    ) -> Error {
        let changed = list(tensors);
        let problem = match (parts.get(misfit.part), misfit.problem) {
            (Some(stored), Some(problem)) => {
                let tensor = printable(&stored.name);
                format!("tensor `{tensor}` {problem}, to change `{changed}`")
            }
            _ => {
                let (module, part) = (printable(&module.name), name(misfit.part));
                format!("module `{module}` lacks the tensor `{part}`, to change `{changed}`")
            }
        };
        Error::adapter(&self.path, problem)
    }
}

/// The changes that a module makes.
struct Found<'m> {
    module: &'m Module,
    /// Whether the module's name is latent diffusion's.
    is_ldm: bool,
    changes: Vec<Change>,
    /// The names of tensors that have no use.
    unfit: Vec<String>,
}

/// The changes of the modules so far.
#[derive(Default)]
struct Plan<'m> {
    /// Each change with its module, and whether the module's name is latent diffusion's.
    changes: Vec<(Change, &'m Module, bool)>,
    /// The index of the change of each tensor, by the network and the tensor's name. Tensors that
    /// are changed together have the first one's name.
    places: HashMap<(&'static str, String), usize>,
    unfit: Vec<String>,
}

impl<'m> Plan<'m> {
    /// Adds the changes of a module, which no other module may make.
    ///
    /// Some files have every module twice, also under latent diffusion's names. Like diffusers,
    /// this ignores the modules with those names.
    fn add(&mut self, found: Found<'m>, path: &Path) -> Result<(), Error> {
        let Found { module, is_ldm, .. } = found;
        self.unfit.extend(found.unfit);
        for change in found.changes {
            let new = (change, module, is_ldm);
            match self.places.entry((new.0.network, new.0.tensors[0].clone())) {
                Entry::Vacant(entry) => {
                    entry.insert(self.changes.len());
                    self.changes.push(new);
                }
                Entry::Occupied(entry) => {
                    let other = &mut self.changes[*entry.get()];
                    match (other.2, is_ldm) {
                        (false, true) => self.unfit.extend(module.tensors()),
                        (true, false) => {
                            self.unfit.extend(other.1.tensors());
                            *other = new;
                        }
                        _ => {
                            let (this, other) = (printable(&module.name), printable(&other.1.name));
                            let problem =
                                format!("module `{this}` is there twice, also as `{other}`");
                            return Err(Error::adapter(path, problem));
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn fitted(mut self) -> Fitted {
        self.unfit.sort();
        self.unfit.dedup();
        Fitted {
            changes: self
                .changes
                .into_iter()
                .map(|(change, ..)| change)
                .collect(),
            unfit: self.unfit,
        }
    }
}

impl Fitted {
    /// Returns a warning about tensors that fit nothing, for the user.
    pub fn warning(&self) -> Option<String> {
        (!self.unfit.is_empty()).then(|| {
            format!(
                "{} of the adapter's tensors fit nothing in the model, and are ignored: {}",
                self.unfit.len(),
                list(&self.unfit)
            )
        })
    }
}

/// Reads a tensor that is a single number.
fn number(stored: &Stored) -> Result<f64, Error> {
    let wrong = |problem: String| Error::TensorValues {
        path: stored.file.to_path_buf(),
        tensor: stored.name.clone(),
        problem,
    };
    match stored.source().values()?[..] {
        [number] if number.is_finite() => Ok(number.into()),
        [number] => Err(wrong(format!(
            "has the value {number}, expected a finite number"
        ))),
        ref other => Err(wrong(format!("has {} numbers, expected one", other.len()))),
    }
}
