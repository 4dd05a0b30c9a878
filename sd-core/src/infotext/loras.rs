//! The LoRAs that the prompts of an infotext call.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
};

use sd_text::{Network, PromptText, Side, Syntax, outside::printable};

use crate::lora::{Callable, Spec, Wrong, is_lora, name_in_hashes};

/// Follows the calls of LoRAs in the prompts of an infotext, as `infotext_pasted` of WebUI's
/// extension `Lora` does.
pub(super) struct Calls<'a> {
    /// The LoRAs of a pipeline, or `None` if no pipeline is known.
    pub callable: Option<&'a Callable>,
    /// The hash of each LoRA that the prompts call, by its name without `:` and `,`.
    pub hashes: HashMap<&'a str, &'a str>,
    /// The number of steps of the run, at most [`MOST_STEPS`].
    pub steps: usize,
    /// The names that were called, as they are written in `hashes`.
    pub named: HashSet<String>,
    /// The LoRAs that were called.
    pub seen: HashSet<usize>,
}

/// The largest number of steps for which weights that change over the steps are checked. An
/// infotext may have any number.
pub(super) const MOST_STEPS: usize = 1000;

/// What becomes of a call in a prompt.
enum Outcome {
    Kept,
    Removed,
    /// The LoRA has this name in the pipeline.
    Renamed(String),
}

impl Calls<'_> {
    /// Returns the prompt with the names that the pipeline has, without the LoRAs that it does not
    /// have. Passes each difference to `note`.
    pub fn follow(&mut self, text: &str, syntax: Syntax, mut note: impl FnMut(String)) -> String {
        let read = PromptText::parse(text, Side::Positive, syntax);
        let mut followed = String::with_capacity(text.len());
        let mut done = 0;
        for network in read.networks().iter().filter(|it| is_lora(it)) {
            let Range { start, end } = network.span;
            let outcome = match self.outcome(network, &text[start..end]) {
                (outcome, None) => outcome,
                (outcome, Some(difference)) => {
                    note(difference);
                    outcome
                }
            };
            followed += &text[done..start];
            match outcome {
                Outcome::Kept => followed += &text[start..end],
                Outcome::Removed => {}
                Outcome::Renamed(name) => followed += &renamed(network, &name),
            }
            done = end;
        }
        followed + &text[done..]
    }

    /// Returns what becomes of a call, and the difference that it makes.
    fn outcome(&mut self, network: &Network, text: &str) -> (Outcome, Option<String>) {
        let text = printable(text);
        let left_out = |why: String| {
            let difference = format!("{why}, so `{text}` is left out");
            (Outcome::Removed, Some(difference))
        };
        // Also a call that cannot be read names its LoRA.
        if let Some(name) = network.arguments.first() {
            self.named.insert(name_in_hashes(name).trim().to_owned());
        }
        let spec = match Spec::parse(&network.arguments) {
            Ok(spec) => spec,
            Err(_) if self.callable.is_none() => return needed(&text, ""),
            Err(wrong) => return left_out(reason(&wrong)),
        };
        let short = name_in_hashes(&spec.name).trim().to_owned();
        let hash = self.hashes.get(&*short).copied();
        self.named.insert(short);
        let Some(callable) = self.callable else {
            let hash = hash.map(|hash| format!(" with the hash `{}`", printable(hash)));
            return needed(&text, &hash.unwrap_or_default());
        };
        let (index, outcome, difference) = match found(callable, &spec.name, hash) {
            Ok(found) => found,
            Err(why) => return left_out(why),
        };
        if let Err(wrong) = callable.call(&spec, index, self.steps) {
            return left_out(reason(&wrong));
        }
        if !self.seen.insert(index) {
            return left_out("each LoRA can be called once".to_owned());
        }
        (outcome, difference)
    }

    /// Returns the names and hashes of LoRAs that the prompts do not call.
    pub fn others(&self) -> Vec<String> {
        let others = self.hashes.iter();
        let others = others.filter(|(name, _)| !self.named.contains(**name));
        let mut others: Vec<_> = others
            .map(|(name, hash)| format!("{name}: {hash}"))
            .collect();
        others.sort_unstable();
        others
    }
}

/// Returns the outcome of a call if no pipeline is known.
fn needed(text: &str, with_hash: &str) -> (Outcome, Option<String>) {
    let difference = format!("`{text}` calls a LoRA{with_hash}, which the pipeline must have");
    (Outcome::Kept, Some(difference))
}

/// Returns the LoRA with this name and hash, its name in a prompt, and the difference if it has
/// another hash. If there is none, returns the reason.
fn found(
    callable: &Callable,
    name: &str,
    hash: Option<&str>,
) -> Result<(usize, Outcome, Option<String>), String> {
    let named = callable.find(name);
    let Some(hash) = hash else {
        let missing = || format!("the pipeline has no LoRA `{}`", printable(name));
        return named
            .map(|index| (index, Outcome::Kept, None))
            .ok_or_else(missing);
    };
    let own = named.and_then(|index| callable.hash(index));
    if let Some(index) = named
        && own.is_some_and(|own| own.eq_ignore_ascii_case(hash))
    {
        return Ok((index, Outcome::Kept, None));
    }
    let with_hash = callable.with_hash(hash);
    if let Some((index, name)) = with_hash.and_then(|it| Some((it, callable.name_of(it)?))) {
        return Ok((index, Outcome::Renamed(name.to_owned()), None));
    }
    let (name, hash) = (printable(name), printable(hash));
    let Some(index) = named else {
        return Err(format!(
            "the pipeline has no LoRA `{name}` with the hash `{hash}`"
        ));
    };
    let own = own.unwrap_or("unknown");
    let difference =
        format!("the LoRA `{name}` had the hash `{hash}`, but here its hash is `{own}`");
    Ok((index, Outcome::Kept, Some(difference)))
}

/// Returns the call with another name.
fn renamed(network: &Network, name: &str) -> String {
    let mut arguments = network.arguments.clone();
    let is_named = |argument: &String| argument.splitn(3, '=').count() == 2;
    if let Some(first) = arguments.iter_mut().find(|argument| !is_named(argument)) {
        name.clone_into(first);
    }
    format!("<{}:{}>", network.name, arguments.join(":"))
}

fn reason(wrong: &Wrong) -> String {
    let Wrong { expected, found } = wrong;
    match &**found {
        "" => format!("this pipeline needs {expected}"),
        found => format!("{found} cannot be used (expected {expected})"),
    }
}

/// Returns the names and hashes in a value of `Lora hashes`, in order.
pub(crate) fn hashes(value: &str) -> impl Iterator<Item = (&str, &str)> {
    let pairs = value.split(',').filter_map(|pair| pair.split_once(':'));
    pairs.map(|(name, hash)| (name.trim(), hash.trim()))
}

/// Returns how many LoRAs a value of `SD loras` has, which come first in `Lora hashes`.
pub(crate) fn merged(weights: &str) -> usize {
    let weights = serde_json::from_str::<Vec<serde::de::IgnoredAny>>(weights);
    weights.map_or(0, |weights| weights.len())
}
