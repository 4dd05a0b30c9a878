//! Guidance, which merges the prediction for the prompt with the prediction for the negative
//! prompt.
//!
//! Most requests need only the guidance scale, a number. [`ClassifierFree`] has all the options of
//! classifier-free guidance, and a type that implements [`Guide`] is a custom guidance.
//!
//! - The guidance scale: [`guide`] and [`ClassifierFree::scale`],
//!   <https://arxiv.org/abs/2207.12598>.
//! - Rescaling to the standard deviation of the conditional prediction:
//!   [`ClassifierFree::rescale`], <https://arxiv.org/abs/2305.08891>.
//! - Guidance in a part of the steps: [`ClassifierFree::interval`],
//!   <https://arxiv.org/abs/2404.07724>.
//! - Adaptive projected guidance: [`Apg`], <https://arxiv.org/abs/2410.02416>.
//! - CFG-Zero*: [`ZeroStar`], <https://arxiv.org/abs/2503.18886>.
//! - Dynamic thresholding: [`ClassifierFree::threshold`], <https://arxiv.org/abs/2205.11487>.
//! - CFG++: the samplers that [need](sd_schedulers::samplers::Needs) the unconditional output,
//!   <https://arxiv.org/abs/2406.08070>.
//!
//! The tests compare the formulas with diffusers 0.42.1. diffusers implements [`Apg`] differently
//! from its paper; both forms are available, and the paper's form is compared with the paper's
//! algorithm.

mod apg;
mod classifier_free;
mod rescale;
mod zero_star;

use std::{
    any::Any,
    fmt::{self, Debug},
    sync::Arc,
};

use sd_schedulers::{Prediction, Rung, Sampler};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, MapAccess, Visitor},
    ser,
};

pub use apg::{Apg, ApgForm};
pub use classifier_free::{ClassifierFree, Method, guide};
pub use zero_star::ZeroStar;

use crate::Problem;

/// A custom guidance, which merges the prediction for the prompt with the prediction for the
/// negative prompt.
///
/// A value holds only options, and serves any number of pictures at once. State that must last from
/// one call to the next belongs in the [`Memory`] of the picture.
///
/// ```
/// use sd_core::{Guide, Request, guidance::{Memory, GuidanceStep}, guide};
///
/// /// Guidance at middle noise levels only: Kynkäänniemi et al. 2024, arXiv 2404.07724.
/// #[derive(Debug)]
/// struct Middling { scale: f32, sigmas: std::ops::Range<f32> }
///
/// impl Guide for Middling {
///     fn needs_unconditional(&self, at: &GuidanceStep<'_>) -> bool {
///         self.sigmas.contains(&at.rung.sigma)
///     }
///     fn merge(
///         &self,
///         conditional: &mut [f32],
///         unconditional: &[f32],
///         _: &GuidanceStep<'_>,
///         _: &mut Memory,
///     ) {
///         guide(conditional, unconditional, self.scale);
///     }
/// }
///
/// let request = Request::new("a fox").guidance(Middling { scale: 7.5, sigmas: 0.3..5.0 });
/// ```
pub trait Guide: Any + Debug + Send + Sync {
    /// Returns whether this call needs the prediction for the negative prompt.
    ///
    /// If not, [`merge`](Self::merge) is not called, and the call takes half the time unless [the
    /// sampler](GuidanceStep::both) or another picture of the batch needs the prediction.
    ///
    /// Default: always true.
    fn needs_unconditional(&self, at: &GuidanceStep<'_>) -> bool {
        let _ = at;
        true
    }

    /// Writes the merged prediction over `conditional`.
    ///
    /// Both slices are the network's raw output (noise, v or sample, as the network was trained)
    /// for one picture, `channels · h · w` values.
    fn merge(
        &self,
        conditional: &mut [f32],
        unconditional: &[f32],
        at: &GuidanceStep<'_>,
        memory: &mut Memory,
    );

    /// Changes the denoised sample, which was computed from the merged or the conditional
    /// prediction. This is the last step of every call.
    ///
    /// Default: leaves the sample unchanged.
    fn finish(&self, denoised: &mut [f32], at: &GuidanceStep<'_>, memory: &mut Memory) {
        let _ = (denoised, at, memory);
    }
}

/// A call of the model for one picture, as a [`Guide`] sees it.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct GuidanceStep<'a> {
    /// The noisy latents, in the scaling of the [`rung`](Self::rung).
    pub x: &'a [f32],
    /// The noise level of the latents. Its index counts the steps of the whole run.
    pub rung: Rung,
    /// The number of steps of the whole run, if it is known
    /// ([`Guided::rungs`](crate::Guided::rungs)).
    pub steps: Option<usize>,
    /// What the network predicts.
    pub prediction: Prediction,
    /// Whether the sampler also asks for the unconditional sample, as the CFG++ samplers do.
    pub both: bool,
}

impl<'a> GuidanceStep<'a> {
    /// Creates a call with an unknown number of steps, for a sampler that asks only for the guided
    /// sample.
    pub fn new(x: &'a [f32], rung: Rung, prediction: Prediction) -> Self {
        Self {
            x,
            rung,
            steps: None,
            prediction,
            both: false,
        }
    }

    /// Returns `[skip, out]`, with which the denoised sample is `skip · x + out · output`.
    pub fn coefficients(&self) -> [f32; 2] {
        [(0.0, 1.0), (1.0, 0.0)].map(|(output, x)| {
            let mut denoised = [output];
            self.prediction.denoised(&mut denoised, &[x], self.rung);
            denoised[0]
        })
    }
}

/// The state of a [`Guide`] for one picture: two buffers, which are empty at the first call of a
/// run and keep their capacity from call to call.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Memory {
    /// Values to keep from one call to the next.
    pub kept: Vec<f32>,
    /// Values needed during one call.
    pub scratch: Vec<f32>,
}

/// How closely a picture follows its prompt: [`ClassifierFree`] guidance, usually with just a
/// scale, or a custom [`Guide`].
///
/// With serde it is the scale if nothing else is set, and otherwise the object of
/// [`ClassifierFree`]. A custom guidance cannot be serialized.
///
/// ```
/// use sd_core::{ClassifierFree, Guidance};
///
/// let everyday = Guidance::from(7.5);
/// assert_eq!(serde_json::to_string(&everyday)?, "7.5");
/// let rescaled: Guidance = serde_json::from_str(r#"{"scale": 12.0, "rescale": 0.7}"#)?;
/// assert_eq!(rescaled.scale(), Some(12.0));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone)]
pub enum Guidance {
    /// Classifier-free guidance, with its scale and other options.
    ClassifierFree(ClassifierFree),
    /// A custom guidance.
    Custom(Arc<dyn Guide>),
}

impl Guidance {
    /// Returns the scale of classifier-free guidance, and `None` for a custom guidance.
    pub fn scale(&self) -> Option<f32> {
        match self {
            Self::ClassifierFree(guidance) => Some(guidance.scale),
            Self::Custom(_) => None,
        }
    }

    pub(crate) fn guide(&self) -> &dyn Guide {
        match self {
            Self::ClassifierFree(guidance) => guidance,
            Self::Custom(guide) => &**guide,
        }
    }

    /// Returns whether a run of `steps` steps ever uses the negative prompt: because of this
    /// guidance, because the sampler is one of CFG++, or because the prompt
    /// [composes](crate::prompts::Read::composes) branches.
    pub(crate) fn uses_negative(
        &self,
        steps: usize,
        sampler: &dyn Sampler,
        composes: impl FnOnce() -> bool,
    ) -> bool {
        let merges = || match self {
            Self::ClassifierFree(guidance) => guidance.uses_negative(steps),
            Self::Custom(_) => true,
        };
        sampler.needs().unconditional || merges() || composes()
    }

    /// Returns the options that cannot be used.
    pub(crate) fn problems(&self) -> Vec<Problem> {
        match self {
            Self::ClassifierFree(guidance) => guidance.problems(),
            Self::Custom(_) => Vec::new(),
        }
    }
}

impl From<f32> for Guidance {
    fn from(scale: f32) -> Self {
        Self::ClassifierFree(scale.into())
    }
}

impl<G: Guide> From<G> for Guidance {
    fn from(guide: G) -> Self {
        match (&guide as &dyn Any).downcast_ref::<ClassifierFree>() {
            Some(guidance) => Self::ClassifierFree(*guidance),
            None => Self::Custom(Arc::new(guide)),
        }
    }
}

impl Serialize for Guidance {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::ClassifierFree(guidance) if guidance.is_plain() => {
                serializer.serialize_f32(guidance.scale)
            }
            Self::ClassifierFree(guidance) => guidance.serialize(serializer),
            Self::Custom(guide) => Err(ser::Error::custom(format!(
                "the custom guidance {guide:?} cannot be serialized"
            ))),
        }
    }
}

impl<'de> Deserialize<'de> for Guidance {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Written)
    }
}

/// Reads a guidance from any form that serde accepts.
struct Written;

impl<'de> Visitor<'de> for Written {
    type Value = Guidance;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a guidance: its scale, such as 7.5, or an object, such as {\"scale\": 7.5}")
    }

    fn visit_f64<E: de::Error>(self, scale: f64) -> Result<Guidance, E> {
        Ok(Guidance::from(scale as f32))
    }

    fn visit_u64<E: de::Error>(self, scale: u64) -> Result<Guidance, E> {
        Ok(Guidance::from(scale as f32))
    }

    fn visit_i64<E: de::Error>(self, scale: i64) -> Result<Guidance, E> {
        Ok(Guidance::from(scale as f32))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Guidance, A::Error> {
        let object = de::value::MapAccessDeserializer::new(map);
        ClassifierFree::deserialize(object).map(Guidance::ClassifierFree)
    }
}

#[cfg(test)]
mod tests {
    use sd_schedulers::schedule::ClipSample;

    use super::*;

    #[test]
    fn a_number_or_an_object() {
        let read = |json: &str| serde_json::from_str::<Guidance>(json).map_err(|e| e.to_string());
        for (json, scale) in [("7.5", 7.5), ("3", 3.0), ("-2", -2.0), ("{}", 7.5)] {
            let Ok(Guidance::ClassifierFree(guidance)) = read(json) else {
                panic!("{json}")
            };
            assert_eq!(guidance, ClassifierFree::from(scale), "{json}");
        }
        let whole = ClassifierFree {
            scale: 9.0,
            rescale: 0.5,
            interval: [0.1, 0.7],
            method: Method::Apg(Apg::default()),
            threshold: ClipSample::Dynamic {
                ratio: 0.5,
                max: 3.0,
            },
        };
        let all = [
            whole,
            ClassifierFree {
                method: Method::ZeroStar(ZeroStar { zero_steps: 2 }),
                threshold: ClipSample::Range(2.0),
                ..whole
            },
        ];
        for guidance in all {
            // The conversion recognizes a `ClassifierFree` that is passed as a `Guide`.
            let json = serde_json::to_string(&Guidance::from(guidance)).unwrap();
            assert!(
                matches!(read(&json), Ok(Guidance::ClassifierFree(read)) if read == guidance),
                "{json}"
            );
        }
        let short = r#"{"scale": 4, "method": {"apg": {"eta": 1, "form": "raw"}}, "threshold": {"range": 1}}"#;
        let Ok(Guidance::ClassifierFree(short)) = read(short) else {
            panic!("it can be read")
        };
        let apg = Apg {
            eta: 1.0,
            form: ApgForm::Raw,
            ..Apg::default()
        };
        assert_eq!(short.method, Method::Apg(apg));
        assert_eq!(short.threshold, ClipSample::Range(1.0));
        for (wrong, expected) in [
            ("\"7\"", "a guidance: its scale"),
            (r#"{"scal": 7}"#, "unknown field `scal`"),
            (r#"{"method": "cfg"}"#, "unknown variant `cfg`"),
            (r#"{"method": {"apg": {"mu": 1}}}"#, "unknown field `mu`"),
        ] {
            let error = read(wrong).unwrap_err();
            assert!(error.contains(expected), "{wrong}: {error}");
        }
    }
}
