//! Shortcuts, which make a run faster and its pictures a little different.
//!
//! - [`Forecast`]: outputs of the network are forecast from earlier ones (Spectrum),
//!   <https://arxiv.org/abs/2603.01623>.
//! - [`Stability`]: a step is skipped where the run is stable (SADA),
//!   <https://arxiv.org/abs/2507.17135>.
//! - [`Deep`]: the deep layers of a UNet run only in every few steps (DeepCache),
//!   <https://arxiv.org/abs/2312.00858>.
//! - [`Shortcuts::guidance`]: the negative prompt is left out once it changes little (adaptive
//!   guidance), <https://arxiv.org/abs/2312.12487>.
//! - [`Shortcuts::merge_tokens`]: similar tokens share a self-attention (token merging),
//!   <https://arxiv.org/abs/2303.17604>.

mod course;
mod deep;
mod forecast;
mod history;
mod stability;

use sd_schedulers::{Rungs, Sampler, samplers::Calls};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

pub use deep::Deep;
pub use forecast::Forecast;
pub use stability::Stability;

pub(crate) use course::{Course, Work};
pub(crate) use history::History;
pub(crate) use stability::Criterion;

use crate::{Inputs, Problem};

/// The work that a run leaves out to be faster. Shortcuts change the picture a little.
///
/// Most requests need only a preset: [`Shortcuts::FAST`] or [`Shortcuts::FASTER`]. The chapter
/// `shortcuts` of the handbook of `sd-onnx` compares the methods, and lists what each of them
/// refuses.
///
/// ```
/// use sd_core::{Request, shortcuts::{Forecast, Shortcuts}};
///
/// let request = Request::new("a fox").shortcuts(Shortcuts::FAST);
/// let own = Shortcuts::default().skip(Forecast { last: 2, ..Forecast::default() });
/// let request = Request::new("a fox").shortcuts(own);
/// ```
///
/// With serde, shortcuts are the name of a preset (`"none"`, `"fast"` or `"faster"`), or an object
/// with a key for each field. All keys are optional.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub struct Shortcuts {
    /// The method by which some steps avoid a full call of the network.
    ///
    /// Default: `None`. Every step calls the network.
    pub skip: Option<Skip>,
    /// The threshold of adaptive guidance, a cosine similarity, `-1.0..=1.0`.
    ///
    /// Once the predictions for the prompt and for the negative prompt are at least this similar,
    /// the rest of the run leaves the negative prompt out, as at a guidance scale of 1. At the
    /// usual scales this changes the picture strongly.
    ///
    /// Default: `None`. The negative prompt is used in all steps in which guidance is on.
    pub guidance: Option<f32>,
    /// The share of the tokens that are merged before the largest self-attention, `0.0..=0.75`. It
    /// saves time only for large pictures.
    ///
    /// Default: 0. No tokens are merged.
    pub merge_tokens: f32,
}

/// A method by which some steps avoid a full call of the network.
///
/// With serde, a method is an object with its name as the only key, such as
/// `{"forecast": {"last": 2}}`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Skip {
    /// The network's output is forecast from its earlier outputs.
    Forecast(Forecast),
    /// The network's last output is used again while the run is stable.
    Stability(Stability),
    /// The deep layers of the network run only in every few steps.
    Deep(Deep),
}

impl From<Forecast> for Skip {
    fn from(forecast: Forecast) -> Self {
        Self::Forecast(forecast)
    }
}

impl From<Stability> for Skip {
    fn from(stability: Stability) -> Self {
        Self::Stability(stability)
    }
}

impl From<Deep> for Skip {
    fn from(deep: Deep) -> Self {
        Self::Deep(deep)
    }
}

impl Shortcuts {
    /// No shortcuts. This is the default.
    pub const NONE: Self = Self {
        skip: None,
        guidance: None,
        merge_tokens: 0.0,
    };

    /// Shortcuts that mostly keep the picture: [`Skip::Forecast`] for every second step after the
    /// first four.
    ///
    /// It makes 0.60 of the network's calls at 20 steps and 0.54 at 50. With DPM++ 2M Karras, the
    /// small model of the examples then differs from a run without shortcuts by a PSNR of 27 dB on
    /// average at 20 steps and of 31 dB at 50, and shows the right thing as often. The handbook has
    /// more figures.
    pub const FAST: Self = Self {
        skip: Some(Skip::Forecast(Forecast::FAST)),
        ..Self::NONE
    };

    /// Shortcuts that save more, and change the picture more: [`Skip::Forecast`] for two of three
    /// steps after the first four.
    ///
    /// It makes 0.50 of the network's calls at 20 steps and 0.40 at 50. The PSNR of the small model
    /// is 20 dB at 20 steps and 27 dB at 50, so this preset is for many steps.
    pub const FASTER: Self = Self {
        skip: Some(Skip::Forecast(Forecast::FASTER)),
        ..Self::NONE
    };

    /// The presets, with their names.
    pub const PRESETS: [(&str, Self); 3] = [
        ("none", Self::NONE),
        ("fast", Self::FAST),
        ("faster", Self::FASTER),
    ];

    /// Sets [`skip`](Self::skip).
    pub fn skip(mut self, method: impl Into<Skip>) -> Self {
        self.skip = Some(method.into());
        self
    }

    /// Sets [`guidance`](Self::guidance).
    pub fn guidance(mut self, similarity: f32) -> Self {
        self.guidance = Some(similarity);
        self
    }

    /// Sets [`merge_tokens`](Self::merge_tokens).
    pub fn merge_tokens(mut self, share: f32) -> Self {
        self.merge_tokens = share;
        self
    }

    /// Returns whether pictures must be drawn one by one, because the shortcuts look at all values
    /// of a batch together.
    pub(crate) fn one_picture(&self) -> bool {
        matches!(self.skip, Some(Skip::Stability(_)))
    }

    /// Returns the problems of shortcuts that this run cannot take. `refiner` describes the
    /// refiner, if it takes over in the run.
    pub(crate) fn problems(
        &self,
        inputs: &Inputs,
        refiner: Option<&Inputs>,
        sampler: &dyn Sampler,
        rungs: Option<&Rungs>,
        windows: bool,
    ) -> Vec<Problem> {
        let mut problems = Vec::new();
        let models = || std::iter::once(inputs).chain(refiner);
        match &self.skip {
            None => {}
            Some(Skip::Forecast(forecast)) => problems.extend(forecast.problems()),
            Some(Skip::Stability(stability)) => {
                problems.extend(stability.problems());
                let of_diffusion = |rungs: &Rungs| {
                    let schedule = rungs.schedule();
                    let last = schedule.num_train_timesteps() as f32 - 1.0;
                    schedule.timestep_range() == [0.0, last]
                };
                let field = "shortcuts.skip.stability";
                if !rungs.is_none_or(of_diffusion) {
                    let expected = "another method, as this model has no betas";
                    problems.push(Problem::new(field, expected, "given"));
                }
                if sampler.needs().unconditional {
                    let expected = "another method, as this sampler needs the prediction for the \
                                    negative prompt alone";
                    problems.push(Problem::new(field, expected, "given"));
                }
            }
            Some(Skip::Deep(deep)) => {
                let branches = models().map(|inputs| inputs.deep_branches).min();
                problems.extend(deep.problems(branches.unwrap_or_default(), windows));
            }
        }
        let mut refuse = |field: &'static str, expected: &str, found: &dyn std::fmt::Display| {
            problems.push(Problem::new(field, expected, found));
        };
        if self.skip.is_some() {
            let field = "shortcuts.skip";
            if sampler.adds_noise() {
                let expected = "nothing, as this sampler adds noise between steps, \
                                after which earlier outputs say little";
                refuse(field, expected, &"given");
            }
            let once = |rungs: &Rungs| sampler.calls(rungs) == Calls::Exactly(rungs.steps());
            if rungs.is_some_and(|rungs| !once(rungs)) {
                let expected = "nothing, as this sampler does not call the model once per step";
                refuse(field, expected, &"given");
            }
        }
        if let Some(similarity) = self.guidance {
            let field = "shortcuts.guidance";
            if !(-1.0..=1.0).contains(&similarity) {
                refuse(field, "-1 to 1", &similarity);
            }
            if sampler.needs().unconditional {
                let expected = "nothing, as this sampler needs the negative prompt in every step";
                refuse(field, expected, &"given");
            }
        }
        let field = "shortcuts.merge_tokens";
        if !(0.0..=0.75).contains(&self.merge_tokens) {
            refuse(field, "0 to 0.75", &self.merge_tokens);
        } else if self.merge_tokens > 0.0 && models().any(|inputs| !inputs.token_merging) {
            refuse(
                field,
                "0, as this network cannot merge tokens",
                &self.merge_tokens,
            );
        }
        problems
    }
}

/// The fields of [`Shortcuts`], as serde reads and writes them.
#[derive(Serialize, Deserialize, Default)]
#[serde(default, deny_unknown_fields, rename = "Shortcuts")]
struct Fields {
    #[serde(skip_serializing_if = "Option::is_none")]
    skip: Option<Skip>,
    #[serde(skip_serializing_if = "Option::is_none")]
    guidance: Option<f32>,
    #[serde(skip_serializing_if = "is_zero")]
    merge_tokens: f32,
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_zero(share: &f32) -> bool {
    *share == 0.0
}

impl Serialize for Shortcuts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if *self == Self::NONE {
            return serializer.serialize_str("none");
        }
        let Self {
            skip,
            guidance,
            merge_tokens,
        } = *self;
        let fields = Fields {
            skip,
            guidance,
            merge_tokens,
        };
        fields.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Shortcuts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Written)
    }
}

/// Reads shortcuts from a name or an object.
struct Written;

impl<'de> de::Visitor<'de> for Written {
    type Value = Shortcuts;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("shortcuts: \"none\", \"fast\", \"faster\" or an object")
    }

    fn visit_str<E: de::Error>(self, name: &str) -> Result<Shortcuts, E> {
        let mut presets = Shortcuts::PRESETS.into_iter();
        let found = presets.find(|(known, _)| *known == name);
        let found = found.map(|(_, shortcuts)| shortcuts);
        found.ok_or_else(|| E::invalid_value(de::Unexpected::Str(name), &self))
    }

    fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Shortcuts, A::Error> {
        let object = de::value::MapAccessDeserializer::new(map);
        let Fields {
            skip,
            guidance,
            merge_tokens,
        } = Fields::deserialize(object)?;
        Ok(Shortcuts {
            skip,
            guidance,
            merge_tokens,
        })
    }
}
