//! Samplers and ladders by the names of other programs.
//!
//! Each program counts, rounds and scales in its own way. [`from_webui`] and [`from_comfyui`]
//! return a sampler and a ladder with that program's options and conventions.

mod comfyui;
mod webui;

use std::sync::Arc;

use thiserror::Error;

pub use comfyui::from_comfyui;
pub use webui::from_webui;
#[doc(hidden)]
pub use webui::{schedule_type_of, split_webui};

use crate::printable::printable;
use crate::{Ladder, Sampler, samplers::SamplerRow};

/// The sampler and the ladder that a name of another program stands for. See [`from_webui`] and
/// [`from_comfyui`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Preset {
    /// The row of the sampler. Its [`build`](SamplerRow::build) has diffusers' options, while
    /// `sampler` has the other program's.
    pub row: &'static SamplerRow,
    /// The sampler with the program's options and [conventions](crate::ladders::Conventions). Its
    /// [`needs`](Sampler::needs) report whether its noise should come from a Brownian tree.
    pub sampler: Arc<dyn Sampler>,
    /// The ladder.
    pub ladder: Ladder,
    /// Whether WebUI adds its "eta noise seed delta" to the seed of the noise that the sampler adds
    /// ([`Seeds::sampler_offset`](crate::noise::Seeds::sampler_offset)).
    pub ensd: bool,
}

/// A name that is unknown. The message lists known names.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("\"{name}\" is no {what}, expected {}", known.join(", "))]
pub struct UnknownName {
    pub(crate) what: &'static str,
    pub(crate) name: String,
    pub(crate) known: Vec<&'static str>,
}

impl UnknownName {
    /// Returns the known names whose spelling is nearest, at most five.
    pub fn suggestions(&self) -> &[&'static str] {
        &self.known
    }
}

/// The largest number of characters of a name that are compared. All known names are shorter.
const MOST_CHARACTERS: usize = 64;

/// Returns the error for a name, with the known names whose spelling is nearest.
pub(crate) fn unknown(
    what: &'static str,
    name: &str,
    known: impl IntoIterator<Item = &'static str>,
) -> UnknownName {
    UnknownName {
        what,
        name: printable(name),
        known: near(name, known),
    }
}

/// Returns the few names whose spelling is nearest to `name`, at most five.
#[doc(hidden)]
pub fn near<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let name = name.to_lowercase();
    let name: Vec<char> = name.chars().take(MOST_CHARACTERS).collect();
    let mut known: Vec<(usize, &'a str)> = known
        .into_iter()
        .map(|known| (distance(&name, &known.to_lowercase()), known))
        .collect();
    known.sort_by_key(|&(distance, _)| distance);
    known.truncate(5);
    known.into_iter().map(|(_, known)| known).collect()
}

/// Returns how many characters must be inserted, removed or replaced to turn one name into another.
fn distance(from: &[char], to: &str) -> usize {
    // The distances from each prefix of `from`.
    let mut row: Vec<usize> = (0..=from.len()).collect();
    for (i, to) in to.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &from) in from.iter().enumerate() {
            let replaced = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[from.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_spelled_alike_are_near() {
        let distance = |from: &str, to| distance(&from.chars().collect::<Vec<_>>(), to);
        assert_eq!(distance("euler", "euler"), 0);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("abc", ""), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
        let known = ["Euler", "Euler a", "Heun", "LMS", "DDIM", "PLMS"];
        assert_eq!(near("EULERA", known)[..2], ["Euler", "Euler a"]);
        assert_eq!(near("", known).len(), 5);
        near(&"x".repeat(100_000), known);
    }

    #[test]
    fn an_unknown_name_is_told_shortly_and_escaped() {
        let name = format!("\u{1b}[2J\u{202e}\n{}", "x".repeat(100_000));
        let error = unknown("sampler of WebUI", &name, ["Euler"]).to_string();
        assert!(error.starts_with("\"\\u{1b}[2J\\u{202e}\\nxxx"), "{error}");
        assert!(
            error.contains("x… (") && error.ends_with("\" is no sampler of WebUI, expected Euler")
        );
        assert!(error.chars().count() < 200);
    }
}
