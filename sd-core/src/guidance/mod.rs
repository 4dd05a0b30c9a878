//! Guidance: how the prediction for the prompt and the one for the negative prompt become one.
//!
//! Everyday guidance is a number, the scale. [`ClassifierFree`] has all that there is to set beside it; a [`Guide`] is one's own.
//!
//! | what | where | paper |
//! |---|---|---|
//! | the scale | [`guide`], [`ClassifierFree::scale`] | <https://arxiv.org/abs/2207.12598> |
//! | rescaled to the strength of the conditional prediction | [`ClassifierFree::rescale`] | <https://arxiv.org/abs/2305.08891> |
//! | in some steps only | [`ClassifierFree::interval`] | <https://arxiv.org/abs/2404.07724> |
//! | adaptive projected guidance | [`Apg`] | <https://arxiv.org/abs/2410.02416> |
//! | CFG-Zero* | [`ZeroStar`] | <https://arxiv.org/abs/2503.18886> |
//! | dynamic thresholding | [`ClassifierFree::threshold`] | <https://arxiv.org/abs/2205.11487> |
//! | CFG++ | the samplers that [need](sd_schedulers::Needs) the unconditional output | <https://arxiv.org/abs/2406.08070> |
//!
//! Formulas are held to diffusers 0.42.1 by tests/golden; [`Apg`] as the paper has it, from which diffusers differs, to the paper's.

mod apg;
mod classifier_free;
mod rescale;
mod zero_star;

use std::{
    any::Any,
    fmt::{self, Debug},
    sync::Arc,
};

use sd_schedulers::{Prediction, Rung};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, MapAccess, Visitor},
    ser,
};

pub use apg::{Apg, ApgForm};
pub use classifier_free::{ClassifierFree, Method, guide};
pub use zero_star::ZeroStar;

use crate::Problem;

/// A guidance of one's own: how the prediction for the prompt and the one for the negative prompt become one.
///
/// A value holds options only and serves any number of pictures at once; what is to be known at the next call goes into the
/// picture's [`Memory`].
///
/// ```
/// use sd_core::{Guide, Request, guidance::{Memory, Moment}, guide};
///
/// /// Guidance at middling noise levels only (Kynkäänniemi et al. 2024, arXiv 2404.07724), wherever the ladder has them.
/// #[derive(Debug)]
/// struct Middling { scale: f32, sigmas: std::ops::Range<f32> }
///
/// impl Guide for Middling {
///     fn needs_unconditional(&self, at: &Moment<'_>) -> bool {
///         self.sigmas.contains(&at.rung.sigma)
///     }
///     fn merge(&self, conditional: &mut [f32], unconditional: &[f32], _: &Moment<'_>, _: &mut Memory) {
///         guide(conditional, unconditional, self.scale);
///     }
/// }
///
/// let request = Request::new("a fox").guidance(Middling { scale: 7.5, sigmas: 0.3..5.0 });
/// ```
pub trait Guide: Any + Debug + Send + Sync {
    /// Whether the prediction for the negative prompt is wanted at this call; without it `merge` is not called, and the call
    /// costs half unless [the sampler](Moment::both) or another picture of the batch wants it. Default: always.
    fn needs_unconditional(&self, at: &Moment<'_>) -> bool {
        let _ = at;
        true
    }

    /// Writes the merged prediction over `conditional`. Both are what the network put out (noise, v or sample, as it was
    /// trained) for one picture, `channels · h · w` values.
    fn merge(
        &self,
        conditional: &mut [f32],
        unconditional: &[f32],
        at: &Moment<'_>,
        memory: &mut Memory,
    );

    /// Changes the denoised sample that was made of the prediction, merged or not: the last thing at every call. Default:
    /// leaves it.
    fn finish(&self, denoised: &mut [f32], at: &Moment<'_>, memory: &mut Memory) {
        let _ = (denoised, at, memory);
    }
}

/// A call of the model, as a [`Guide`] sees it: for one picture.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Moment<'a> {
    /// The noisy latents, in the scaling that the rung says.
    pub x: &'a [f32],
    /// Their noise level, and which step of the whole run the call belongs to.
    pub rung: Rung,
    /// How many steps the whole run has, if that is known ([`Guided::rungs`](crate::Guided::rungs)).
    pub steps: Option<usize>,
    /// What the network puts out.
    pub prediction: Prediction,
    /// Whether the sampler asks for the unconditional sample too, as those of CFG++ do.
    pub both: bool,
}

impl<'a> Moment<'a> {
    /// A call of which the number of steps is not known, by a sampler that asks for the guided sample only.
    pub fn new(x: &'a [f32], rung: Rung, prediction: Prediction) -> Self {
        Self {
            x,
            rung,
            steps: None,
            prediction,
            both: false,
        }
    }

    /// `[skip, out]`, with which the denoised sample is `skip · x + out · output`.
    pub fn coefficients(&self) -> [f32; 2] {
        [(0.0, 1.0), (1.0, 0.0)].map(|(output, x)| {
            let mut denoised = [output];
            self.prediction.denoised(&mut denoised, &[x], self.rung);
            denoised[0]
        })
    }
}

/// What a [`Guide`] keeps of a picture from one call to the next: two buffers, empty at the first call of a run, which keep
/// their room.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    /// For what is remembered.
    pub kept: Vec<f32>,
    /// For what is needed during a call.
    pub scratch: Vec<f32>,
}

/// How the prompt is followed: [`ClassifierFree`] guidance, mostly no more than its scale, or a [`Guide`] of one's own.
///
/// With serde it is the scale, where nothing else is set, or the object of [`ClassifierFree`]; one's own can't be written.
///
/// ```
/// use sd_core::{ClassifierFree, Guidance};
///
/// let everyday = Guidance::from(7.5);
/// assert_eq!(serde_json::to_string(&everyday)?, "7.5");
/// let tamed: Guidance = serde_json::from_str(r#"{"scale": 12.0, "rescale": 0.7, "interval": [0.0, 0.8]}"#)?;
/// assert_eq!(tamed.scale(), Some(12.0));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone)]
pub enum Guidance {
    /// The scale and what is set beside it.
    ClassifierFree(ClassifierFree),
    /// One's own.
    Own(Arc<dyn Guide>),
}

impl Guidance {
    /// The scale of classifier-free guidance; none of one's own.
    pub fn scale(&self) -> Option<f32> {
        match self {
            Self::ClassifierFree(guidance) => Some(guidance.scale),
            Self::Own(_) => None,
        }
    }

    pub(crate) fn guide(&self) -> &dyn Guide {
        match self {
            Self::ClassifierFree(guidance) => guidance,
            Self::Own(guide) => &**guide,
        }
    }

    /// Whether a run of so many steps on this guidance ever looks at the negative prompt.
    pub(crate) fn uses_negative(&self, steps: usize) -> bool {
        match self {
            Self::ClassifierFree(guidance) => guidance.uses_negative(steps),
            Self::Own(_) => true,
        }
    }

    /// What is wrong with it.
    pub(crate) fn problems(&self) -> Vec<Problem> {
        match self {
            Self::ClassifierFree(guidance) => guidance.problems(),
            Self::Own(_) => Vec::new(),
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
            None => Self::Own(Arc::new(guide)),
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
            Self::Own(guide) => Err(ser::Error::custom(format!(
                "the guidance {guide:?} is one's own, which can't be written"
            ))),
        }
    }
}

impl<'de> Deserialize<'de> for Guidance {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Written)
    }
}

/// A guidance as serde has it.
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
    use sd_schedulers::Clip;

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
            threshold: Clip::Dynamic {
                ratio: 0.5,
                max: 3.0,
            },
        };
        let all = [
            whole,
            ClassifierFree {
                method: Method::ZeroStar(ZeroStar { zero_steps: 2 }),
                threshold: Clip::Range(2.0),
                ..whole
            },
        ];
        for guidance in all {
            // As one's own it is known again.
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
        assert_eq!(short.threshold, Clip::Range(1.0));
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
