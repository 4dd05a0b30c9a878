//! The LoRAs that prompts can call, by name and by hash.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{Arc, OnceLock},
};

use sd_schedulers::names::near;
use sd_text::outside::{list, printable};

use super::{
    LoraCall, LoraInfo, LoraLibrary, name_in_hashes,
    spec::{Spec, Wrong},
};

/// The LoRAs that prompts can call. Names are found as in `networks.py` of WebUI's extension
/// `Lora`.
pub(crate) struct Callable {
    /// `None` if the pipeline has no library.
    library: Option<Arc<dyn LoraLibrary>>,
    by_name: HashMap<String, usize>,
    /// The LoRAs by name and by alias.
    by_alias: HashMap<String, usize>,
    /// Aliases, in lower case, that do not count. Only the file of this name is found.
    forbidden: HashSet<String>,
    hashes: Vec<OnceLock<Option<String>>>,
    by_hash: OnceLock<HashMap<String, usize>>,
}

impl Callable {
    pub fn new(library: Option<Arc<dyn LoraLibrary>>) -> Self {
        let infos = library.as_ref().map_or(&[][..], |library| library.loras());
        let (mut by_name, mut by_alias) = (HashMap::new(), HashMap::new());
        // WebUI also has "Addams" here, but compares it with names in lower case, so that it has no
        // effect.
        let mut forbidden = HashSet::from(["none".to_owned()]);
        // Files that cannot be used come first, so that they hide no other file.
        let (usable, others): (Vec<_>, Vec<_>) = infos
            .iter()
            .enumerate()
            .partition(|(_, info)| info.problem.is_none());
        for (index, info) in others.into_iter().chain(usable) {
            let alias = info.alias.as_ref().unwrap_or(&info.name);
            by_name.insert(info.name.clone(), index);
            if by_alias.contains_key(alias) {
                forbidden.insert(alias.to_lowercase());
            }
            by_alias.insert(info.name.clone(), index);
            by_alias.insert(alias.clone(), index);
        }
        Self {
            hashes: infos.iter().map(|_| OnceLock::new()).collect(),
            library,
            by_name,
            by_alias,
            forbidden,
            by_hash: OnceLock::new(),
        }
    }

    pub fn library(&self) -> Option<&dyn LoraLibrary> {
        self.library.as_deref()
    }

    pub fn infos(&self) -> &[LoraInfo] {
        self.library().map_or(&[], |library| library.loras())
    }

    /// Returns the index of the LoRA that a prompt calls by this name.
    pub fn find(&self, name: &str) -> Option<usize> {
        let names = match self.forbidden.contains(&name.to_lowercase()) {
            true => &self.by_name,
            false => &self.by_alias,
        };
        names.get(name).copied()
    }

    /// Returns the first 12 digits of the hash of a LoRA, as WebUI writes them. If the file can no
    /// longer be read, this is logged, and the result is `None`: a picture can still be saved.
    pub fn hash(&self, index: usize) -> Option<&str> {
        let library = self.library()?;
        let hash = self.hashes.get(index)?.get_or_init(|| {
            let hash = library.hash(index);
            let hash = hash.inspect_err(|error| {
                let lora = &library.loras()[index].name;
                tracing::warn!(lora, %error, "no hash of a LoRA");
            });
            let hash: String = hash.ok()?.chars().take(12).collect();
            (!hash.is_empty()).then(|| hash.to_ascii_lowercase())
        });
        hash.as_deref()
    }

    /// Returns the names and hashes of LoRAs that a prompt calls by these names, each as WebUI
    /// writes it. A LoRA without a hash is left out.
    pub fn hashes(&self, calls: &[LoraCall], names: &[String]) -> Vec<String> {
        let mut hashes: Vec<(String, &str)> = Vec::new();
        for (call, name) in calls.iter().zip(names) {
            let Some(hash) = self.hash(call.index) else {
                continue;
            };
            let name = name_in_hashes(name);
            // Of names that become the same, WebUI writes one, with the last hash.
            match hashes.iter_mut().find(|(known, _)| *known == name) {
                Some((_, known)) => *known = hash,
                None => hashes.push((name, hash)),
            }
        }
        let hashes = hashes.into_iter();
        hashes
            .map(|(name, hash)| format!("{name}: {hash}"))
            .collect()
    }

    /// Returns the index of the LoRA with this hash. It may read the files of all LoRAs.
    pub fn with_hash(&self, hash: &str) -> Option<usize> {
        let by_hash = self.by_hash.get_or_init(|| {
            let hash = |index| Some((self.hash(index)?.to_owned(), index));
            let usable = |index: &usize| self.infos()[*index].problem.is_none();
            (0..self.infos().len())
                .filter(usable)
                .filter_map(hash)
                .collect()
        });
        by_hash.get(&hash.to_ascii_lowercase()).copied()
    }

    /// Returns the name by which a prompt should call a LoRA: its alias, or the name of its file if
    /// the alias is forbidden. `None` if neither of them finds the LoRA.
    pub fn name_of(&self, index: usize) -> Option<&str> {
        let info = self.infos().get(index)?;
        let mut names = info.alias.iter().chain([&info.name]);
        let name = names.find(|name| {
            self.find(name) == Some(index)
                && !name.contains([':', '<', '>', '#', '\n', '\r'])
                && name.matches('=').count() != 1
        });
        name.map(String::as_str)
    }

    /// Returns the index of the LoRA that a prompt calls.
    ///
    /// # Errors
    /// Returns an error with the nearest names if there is none.
    pub fn called(&self, spec: &Spec) -> Result<usize, Wrong> {
        if self.library.is_none() {
            let expected =
                "a pipeline with LoRAs (`Builder::loras`, `PipelineBuilder::lora_library`)";
            return Err(Wrong::new(expected, ""));
        }
        self.find(&spec.name).ok_or_else(|| {
            let infos = self.infos().iter().filter(|info| info.problem.is_none());
            let aliases = infos.clone().filter_map(|info| info.alias.as_deref());
            let names = infos.map(|info| info.name.as_str()).chain(aliases);
            let names: HashSet<_> = names.filter(|name| self.find(name).is_some()).collect();
            let mut names: Vec<_> = names.into_iter().collect();
            names.sort_unstable();
            let expected = match near(&spec.name, names) {
                names if names.is_empty() => "no LoRA, as the library has none".to_owned(),
                names => format!("the name of a LoRA, such as {}", list(names)),
            };
            Wrong::new(expected, "")
        })
    }

    /// Returns the call of the LoRA `index` in a run of `steps` steps.
    ///
    /// # Errors
    /// Returns an error if the LoRA cannot be used with the model, or not in this way.
    pub fn call(&self, spec: &Spec, index: usize, steps: usize) -> Result<LoraCall, Wrong> {
        let info = &self.infos()[index];
        if let Some(problem) = &info.problem {
            let problem = printable(problem);
            let expected = format!("a LoRA that fits the model, but {problem}");
            return Err(Wrong::new(expected, ""));
        }
        let call = spec.call(index, steps);
        if !info.live && call.unet.len() > 1 {
            let expected = "one weight for all steps, because this LoRA is merged into the weights";
            return Err(Wrong::new(expected, "weights that change by step"));
        }
        Ok(call)
    }
}

impl fmt::Debug for Callable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Callable").field(&self.infos()).finish()
    }
}
