//! Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598).

use std::{fmt::Debug, sync::Arc};

use sd_schedulers::Rung;
use serde::{Deserialize, Deserializer, Serialize, Serializer, ser};

/// Merges the two predictions: `unconditional + scale · (conditional − unconditional)`, written over `conditional`.
///
/// Scale 1 is the conditional prediction itself, 0 the unconditional one; more follows the prompt harder, and past
/// about 15 Stable Diffusion's colours burn out. Both slices have the same length.
pub fn guide(conditional: &mut [f32], unconditional: &[f32], scale: f32) {
    for (c, &u) in conditional.iter_mut().zip(unconditional) {
        *c = u + scale * (*c - u);
    }
}

/// A guidance of one's own: how the prediction for the prompt and the one for the negative prompt become one.
///
/// ```
/// use sd_core::{Guide, Request, guide, schedulers::Rung};
///
/// /// Guidance in the middle of the run only (Kynkäänniemi et al. 2024, arXiv 2404.07724).
/// #[derive(Debug)]
/// struct Interval { scale: f32, sigmas: std::ops::Range<f32> }
///
/// impl Guide for Interval {
///     fn needs_unconditional(&self, at: Rung) -> bool {
///         self.sigmas.contains(&at.sigma)
///     }
///     fn merge(&self, conditional: &mut [f32], unconditional: &[f32], _: Rung) {
///         guide(conditional, unconditional, self.scale);
///     }
/// }
///
/// let request = Request::new("a fox").guidance(Interval { scale: 7.5, sigmas: 0.3..5.0 });
/// ```
pub trait Guide: Debug + Send + Sync {
    /// Whether the prediction for the negative prompt is wanted at this rung; without it the step costs half and `merge`
    /// is not called. Default: always.
    fn needs_unconditional(&self, at: Rung) -> bool {
        let _ = at;
        true
    }

    /// Writes the merged prediction over `conditional`. Both are what the network put out (noise, v or sample, as it was
    /// trained) for one picture, `channels · h · w` values.
    fn merge(&self, conditional: &mut [f32], unconditional: &[f32], at: Rung);
}

/// How strongly the prompt is followed: the CFG scale, or a [`Guide`] of one's own. With serde it is the scale; one's own
/// can't be written.
#[derive(Debug, Clone)]
pub enum Guidance {
    /// [`guide`] with this scale. At 1 and below the negative prompt is not looked at and each step costs half, as in
    /// diffusers.
    Scale(f32),
    /// One's own.
    Own(Arc<dyn Guide>),
}

impl Guidance {
    /// Whether a run on this guidance ever looks at the negative prompt.
    pub(crate) fn uses_negative(&self) -> bool {
        match self {
            Self::Scale(scale) => *scale > 1.0,
            Self::Own(_) => true,
        }
    }

    pub(crate) fn needs_unconditional(&self, at: Rung) -> bool {
        match self {
            Self::Scale(scale) => *scale > 1.0,
            Self::Own(guide) => guide.needs_unconditional(at),
        }
    }

    pub(crate) fn merge(&self, conditional: &mut [f32], unconditional: &[f32], at: Rung) {
        match self {
            Self::Scale(scale) => guide(conditional, unconditional, *scale),
            Self::Own(guide) => guide.merge(conditional, unconditional, at),
        }
    }
}

impl From<f32> for Guidance {
    fn from(scale: f32) -> Self {
        Self::Scale(scale)
    }
}

impl<G: Guide + 'static> From<G> for Guidance {
    fn from(guide: G) -> Self {
        Self::Own(Arc::new(guide))
    }
}

impl Serialize for Guidance {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Scale(scale) => serializer.serialize_f32(*scale),
            Self::Own(guide) => Err(ser::Error::custom(format!(
                "the guidance {guide:?} is no number"
            ))),
        }
    }
}

impl<'de> Deserialize<'de> for Guidance {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        f32::deserialize(deserializer).map(Self::Scale)
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn scale_interpolates_and_extrapolates() {
        for (scale, expected) in [(0.0, 1.0), (1.0, 3.0), (7.5, 16.0)] {
            let mut conditional = [3.0];
            super::guide(&mut conditional, &[1.0], scale);
            assert_eq!(conditional, [expected]);
        }
    }
}
