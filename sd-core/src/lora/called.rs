//! The LoRAs that the prompts of a request call.

use std::collections::HashMap;

use sd_text::{Network, PromptText, outside::printable};

use super::{
    LoraCall,
    callable::Callable,
    spec::{Spec, Wrong, is_lora},
};
use crate::Problem;

/// The largest number of LoRAs of a request whose problems are reported, because a prompt may call
/// thousands, and finding the nearest names takes time.
const MOST_PROBLEMS: usize = 8;

/// A LoRA that a prompt calls.
#[derive(Debug)]
pub(crate) struct Called {
    /// The index in the library.
    index: usize,
    spec: Spec,
    /// The name of the prompt, and the text of the call.
    place: Place,
}

/// Where a prompt calls a LoRA.
#[derive(Debug)]
struct Place {
    prompt: &'static str,
    text: String,
}

impl Place {
    fn problem(&self, wrong: Wrong) -> Problem {
        let Wrong { expected, found } = wrong;
        let text = &self.text;
        let found = match &*found {
            "" => format!("a text with `{text}`"),
            found => format!("a text with {found} in `{text}`"),
        };
        Problem::new(self.prompt, expected, found)
    }
}

/// Returns the LoRAs that the prompt and the prompt for the second text encoder call, in the order
/// in which WebUI applies them: grouped by kind, in the order of the first LoRA of each kind. Adds
/// the problems of LoRAs that cannot be used.
pub(crate) fn called(
    callable: &Callable,
    prompts: &[PromptText],
    problems: &mut Vec<Problem>,
) -> Vec<Called> {
    let texts = prompts.iter().zip(["prompt", "prompt_2"]);
    let networks = texts.flat_map(|(text, prompt)| {
        let networks = text.networks().iter();
        networks.map(move |network| (prompt, text.text(), network))
    });
    let mut networks: Vec<_> = networks.filter(|(_, _, it)| is_lora(it)).collect();
    if let Some(first) = networks.first().map(|(_, _, network)| &network.name) {
        networks.sort_by_key(|(_, _, network)| network.name != *first);
    }
    let mut first_calls: HashMap<usize, String> = HashMap::new();
    let (mut all, mut found) = (Vec::new(), Vec::new());
    for (prompt, text, network) in networks {
        let text = printable(&text[network.span.clone()]);
        let place = Place { prompt, text };
        let resolved = resolve(callable, network).and_then(|(index, spec)| {
            match first_calls.get(&index) {
                Some(before) => {
                    let before = format!("each LoRA once, but `{before}` is the same LoRA");
                    return Err(Wrong::new(before, ""));
                }
                None => first_calls.insert(index, place.text.clone()),
            };
            Ok((index, spec))
        });
        match resolved {
            Ok((index, spec)) => all.push(Called { index, spec, place }),
            Err(wrong) => found.push(place.problem(wrong)),
        }
        if found.len() == MOST_PROBLEMS {
            break;
        }
    }
    problems.append(&mut found);
    all
}

fn resolve(callable: &Callable, network: &Network) -> Result<(usize, Spec), Wrong> {
    let spec = Spec::parse(&network.arguments)?;
    Ok((callable.called(&spec)?, spec))
}

impl Called {
    /// Returns the name by which the prompt calls the LoRA.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// Returns the problem of a weight that changes over the steps, if the request also calls the
    /// LoRA `merged`, which must be merged.
    pub fn mixed(&self, call: &LoraCall, merged: &str) -> Option<Problem> {
        let expected = format!(
            "one weight for all steps, because `{}` beside it is merged into the weights",
            printable(merged)
        );
        let wrong = || Wrong::new(expected, "weights that change by step");
        (call.unet.len() > 1).then(|| self.place.problem(wrong()))
    }

    /// Returns the call for a run of `steps` steps.
    pub fn call(&self, callable: &Callable, steps: usize) -> Result<LoraCall, Problem> {
        let call = callable.call(&self.spec, self.index, steps);
        call.map_err(|wrong| self.place.problem(wrong))
    }
}
