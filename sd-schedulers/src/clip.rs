use serde::{Deserialize, Serialize};

use crate::Needs;

/// What is done to a denoised sample before a sampler uses it: for models of pixels, which are -1 to 1. Latents have no such bounds.
///
/// With serde null is none, `{"range": 1.0}` and `{"dynamic": {"ratio": 0.995, "max": 1.0}}` are the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "Option<Written>", into = "Option<Written>")]
pub enum Clip {
    /// Nothing. The default.
    #[default]
    None,
    /// Each value is held between minus and plus this, above 0; else nothing is done. `clip_sample` of diffusers, whose
    /// `clip_sample_range` is 1.
    Range(f32),
    /// Dynamic thresholding, section 2.3 of <https://arxiv.org/abs/2205.11487>: each value is held between minus and plus a threshold and
    /// divided by it. The threshold is that magnitude below which `ratio` of all values lie, but at least 1 and at most `max`.
    /// `thresholding` of diffusers.
    Dynamic {
        /// 0 to 1; outside of that the nearer end. 0.995 in the paper and in diffusers (`dynamic_thresholding_ratio`).
        ratio: f32,
        /// Above 0; else nothing is done. With 1, diffusers' default (`sample_max_value`), it is a range of 1 and no more; below 1 it wins
        /// over the least threshold.
        max: f32,
    },
}

impl Clip {
    /// Room for [`apply`](Self::apply) on a sample of `len` values.
    pub fn scratch(&self, len: usize) -> Vec<f32> {
        Vec::with_capacity(if self.looks_at_all() { len } else { 0 })
    }

    /// Clips the denoised sample of one picture, in place. [`Dynamic`](Self::Dynamic) needs room for a copy of it: with that of
    /// [`scratch`](Self::scratch), whatever is in it, nothing is allocated.
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

    /// What a sampler needs that does this to its denoised samples.
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

/// The value below which `ratio` of all lie, interpolated linearly between two of them; 0 of none. Changes their order.
fn quantile(values: &mut [f32], ratio: f32) -> f32 {
    let Some(last) = values.len().checked_sub(1) else {
        return 0.0;
    };
    let rank = f64::from(ratio).clamp(0.0, 1.0) * last as f64;
    let (_, &mut below, above) = values.select_nth_unstable_by(rank as usize, f32::total_cmp);
    let next = above.iter().copied().reduce(f32::min).unwrap_or(below);
    below + rank.fract() as f32 * (next - below)
}

/// A clip as serde has it, if it is one.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
enum Written {
    Range(f32),
    Dynamic { ratio: f32, max: f32 },
}

impl From<Option<Written>> for Clip {
    fn from(written: Option<Written>) -> Self {
        match written {
            None => Self::None,
            Some(Written::Range(range)) => Self::Range(range),
            Some(Written::Dynamic { ratio, max }) => Self::Dynamic { ratio, max },
        }
    }
}

impl From<Clip> for Option<Written> {
    fn from(clip: Clip) -> Self {
        match clip {
            Clip::None => None,
            Clip::Range(range) => Some(Written::Range(range)),
            Clip::Dynamic { ratio, max } => Some(Written::Dynamic { ratio, max }),
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
        let clipped = |clip: Clip| {
            let mut values = [-4.0, 1.0, 3.0, -2.0];
            let mut scratch = clip.scratch(values.len());
            let room = scratch.capacity();
            // What is left from another sample does not count.
            scratch.extend([9.0_f32; 2].iter().take(room));
            clip.apply(&mut values, &mut scratch);
            assert_eq!(scratch.capacity(), room);
            values
        };
        assert_eq!(clipped(Clip::None), [-4.0, 1.0, 3.0, -2.0]);
        assert_eq!(clipped(Clip::Range(2.0)), [-2.0, 1.0, 2.0, -2.0]);
        assert_eq!(clipped(Clip::Range(-2.0)), [-4.0, 1.0, 3.0, -2.0]);
        assert_eq!(clipped(Clip::Range(f32::NAN)), [-4.0, 1.0, 3.0, -2.0]);
        let dynamic = |ratio, max| clipped(Clip::Dynamic { ratio, max });
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
            (Clip::None, "null"),
            (Clip::Range(1.5), r#"{"range":1.5}"#),
            (
                Clip::Dynamic { ratio, max },
                r#"{"dynamic":{"ratio":0.5,"max":2.0}}"#,
            ),
        ] {
            assert_eq!(serde_json::to_string(&clip).unwrap(), json);
            assert_eq!(serde_json::from_str::<Clip>(json).unwrap(), clip);
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
            let error = serde_json::from_str::<Clip>(wrong).unwrap_err().to_string();
            assert!(error.contains(expected), "{wrong}: {error}");
        }
    }
}
