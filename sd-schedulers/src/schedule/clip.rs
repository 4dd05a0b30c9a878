use serde::{Deserialize, Serialize};

use crate::samplers::Needs;

/// What is done to a denoised sample before a sampler uses it.
///
/// Clipping is for models of pixels, whose values lie in `-1.0..=1.0`. Latents have no such bounds.
///
/// In serde, `null` is [`ClipSample::None`]. The other variants are `{"range": 1.0}` and
/// `{"dynamic": {"ratio": 0.995, "max": 1.0}}`.
///
/// Default: [`ClipSample::None`].
///
/// ```
/// use sd_schedulers::schedule::ClipSample;
///
/// let clip = ClipSample::Range(1.0);
/// let mut denoised = [-4.0, 0.5];
/// clip.apply(&mut denoised, &mut clip.scratch(2));
/// assert_eq!(denoised, [-1.0, 0.5]);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "Option<Written>", into = "Option<Written>")]
pub enum ClipSample {
    /// Leaves the sample as it is.
    #[default]
    None,
    /// Clamps each value to `-range..=range`. A range that is not above 0 changes nothing.
    ///
    /// This is `clip_sample` in diffusers, where `clip_sample_range` defaults to 1.
    Range(f32),
    /// Applies dynamic thresholding: section 2.3 of <https://arxiv.org/abs/2205.11487>.
    ///
    /// Each value is clamped to plus or minus a threshold and then divided by it. The threshold is
    /// the magnitude below which the share `ratio` of all values lies, but at least 1 and at most
    /// `max`. This is `thresholding` in diffusers.
    Dynamic {
        /// The share of values, `0.0..=1.0`. A value outside counts as the nearer end. The paper
        /// and diffusers (`dynamic_thresholding_ratio`) use 0.995.
        ratio: f32,
        /// The largest threshold. A value that is not above 0 changes nothing.
        ///
        /// diffusers' default (`sample_max_value`) is 1, with which the variant does the same as a
        /// range of 1. Below 1, `max` takes precedence over the smallest threshold.
        max: f32,
    },
}

impl ClipSample {
    /// Returns a buffer that [`apply`](Self::apply) can use for a sample of `len` values.
    pub fn scratch(&self, len: usize) -> Vec<f32> {
        Vec::with_capacity(if self.looks_at_all() { len } else { 0 })
    }

    /// Clips the denoised sample of one picture, in place.
    ///
    /// [`Dynamic`](Self::Dynamic) copies the sample to `scratch`. It does not allocate if `scratch`
    /// comes from [`scratch`](Self::scratch). Earlier contents of `scratch` do not matter.
    pub fn apply(&self, denoised: &mut [f32], scratch: &mut Vec<f32>) {
        match *self {
            Self::Range(range) if range > 0.0 => {
                denoised
                    .iter_mut()
                    .for_each(|value| *value = value.clamp(-range, range));
            }
            Self::Dynamic { ratio, max } if max > 0.0 => {
                scratch.clear();
                scratch.extend(denoised.iter().map(|value| value.abs()));
                let threshold = quantile(scratch, ratio).max(1.0).min(max);
                for value in denoised {
                    *value = value.clamp(-threshold, threshold) / threshold;
                }
            }
            Self::None | Self::Range(_) | Self::Dynamic { .. } => {}
        }
    }

    /// Returns the needs of a sampler that clips its denoised samples like this.
    pub fn needs(&self) -> Needs {
        Needs {
            one_picture: self.looks_at_all(),
            ..Needs::default()
        }
    }

    fn looks_at_all(&self) -> bool {
        matches!(self, Self::Dynamic { .. })
    }
}

/// Returns the value below which the share `ratio` of all values lies, interpolated linearly
/// between two values, or 0 if there are none. Reorders the values.
fn quantile(values: &mut [f32], ratio: f32) -> f32 {
    let Some(last) = values.len().checked_sub(1) else {
        return 0.0;
    };
    let rank = f64::from(ratio).clamp(0.0, 1.0) * last as f64;
    let (_, &mut below, above) = values.select_nth_unstable_by(rank as usize, f32::total_cmp);
    let next = above.iter().copied().reduce(f32::min).unwrap_or(below);
    below + rank.fract() as f32 * (next - below)
}

/// The serde form of a clip other than [`ClipSample::None`].
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
enum Written {
    Range(f32),
    Dynamic { ratio: f32, max: f32 },
}

impl From<Option<Written>> for ClipSample {
    fn from(written: Option<Written>) -> Self {
        match written {
            None => Self::None,
            Some(Written::Range(range)) => Self::Range(range),
            Some(Written::Dynamic { ratio, max }) => Self::Dynamic { ratio, max },
        }
    }
}

impl From<ClipSample> for Option<Written> {
    fn from(clip: ClipSample) -> Self {
        match clip {
            ClipSample::None => None,
            ClipSample::Range(range) => Some(Written::Range(range)),
            ClipSample::Dynamic { ratio, max } => Some(Written::Dynamic { ratio, max }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_numpy() {
        for (ratio, expected) in [(0.5, 2.5), (0.75, 3.25), (1.0, 4.0), (7.0, 4.0)] {
            assert_eq!(
                quantile(&mut [4.0, 1.0, 3.0, 2.0], ratio),
                expected,
                "{ratio}"
            );
        }
        assert_eq!(quantile(&mut [], 0.5), 0.0);
    }

    #[test]
    fn values_are_held_and_scaled() {
        let clipped = |clip: ClipSample| {
            let mut values = [-4.0, 1.0, 3.0, -2.0];
            let mut scratch = clip.scratch(values.len());
            let room = scratch.capacity();
            // Values left over from another sample must not matter.
            scratch.extend([9.0_f32; 2].iter().take(room));
            clip.apply(&mut values, &mut scratch);
            assert_eq!(scratch.capacity(), room);
            values
        };
        assert_eq!(clipped(ClipSample::None), [-4.0, 1.0, 3.0, -2.0]);
        assert_eq!(clipped(ClipSample::Range(2.0)), [-2.0, 1.0, 2.0, -2.0]);
        assert_eq!(clipped(ClipSample::Range(-2.0)), [-4.0, 1.0, 3.0, -2.0]);
        assert_eq!(clipped(ClipSample::Range(f32::NAN)), [-4.0, 1.0, 3.0, -2.0]);
        let dynamic = |ratio, max| clipped(ClipSample::Dynamic { ratio, max });
        assert_eq!(dynamic(0.5, 9.0), [-1.0, 0.4, 1.0, -0.8]);
        assert_eq!(dynamic(0.5, 2.0), [-1.0, 0.5, 1.0, -1.0]);
        assert_eq!(dynamic(f32::NAN, 1.0), [-1.0, 1.0, 1.0, -1.0]);
        assert_eq!(dynamic(0.5, -1.0), [-4.0, 1.0, 3.0, -2.0]);
        assert_eq!(dynamic(0.5, f32::NAN), [-4.0, 1.0, 3.0, -2.0]);
    }

    #[test]
    fn serde_takes_the_kind() {
        let (ratio, max) = (0.5, 2.0);
        for (clip, json) in [
            (ClipSample::None, "null"),
            (ClipSample::Range(1.5), r#"{"range":1.5}"#),
            (
                ClipSample::Dynamic { ratio, max },
                r#"{"dynamic":{"ratio":0.5,"max":2.0}}"#,
            ),
        ] {
            assert_eq!(serde_json::to_string(&clip).unwrap(), json);
            assert_eq!(serde_json::from_str::<ClipSample>(json).unwrap(), clip);
        }
        for (wrong, expected) in [
            (r#"{"clamp": 1}"#, "unknown variant `clamp`"),
            (r#"{"dynamic": {"ratio": 0.5}}"#, "missing field `max`"),
            (
                r#"{"dynamic": {"ratio": 0.5, "max": 1, "min": 0}}"#,
                "unknown field `min`",
            ),
            (r#""range""#, "newtype variant"),
        ] {
            let error = serde_json::from_str::<ClipSample>(wrong)
                .unwrap_err()
                .to_string();
            assert!(error.contains(expected), "{wrong}: {error}");
        }
    }
}
