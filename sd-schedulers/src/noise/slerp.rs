use serde::{Deserialize, Serialize};

use super::{NoiseError, check_length};

/// Above this cosine, the arc is replaced by a straight line.
const NEAR: f64 = 0.9995;

/// How one noise is turned into another: along the arc between them, so that every point on the way
/// has the strength of noise.
///
/// The method is from Shoemake, "Animating rotation with quaternion curves", 1985,
/// <https://doi.org/10.1145/325334.325242>.
///
/// Default: [`Slerp::Columns`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Slerp {
    /// An arc for each column of each channel, along the height, as in WebUI (`rng.py`).
    ///
    /// Noises that are nearly the same, with a mean cosine above 0.9995, are mixed as WebUI mixes
    /// them: `strength` times the *first* plus the rest of the second. A column that points in the
    /// same or the opposite direction in both noises, such as any column of height 1, takes the
    /// straight line. WebUI divides by 0 there.
    #[default]
    Columns,
    /// One arc between the noises as vectors of all their values, as in the community pipelines of
    /// diffusers. If the cosine is above 0.9995 or below -0.9995, it is a straight line.
    Whole,
}

impl Slerp {
    /// Turns `noise` into `other` by `strength`: 0 leaves `noise` as it is, and 1 makes it equal to
    /// `other`.
    ///
    /// Noises that are nearly the same are an exception: see [`Columns`](Self::Columns). Both have
    /// the shape `shape`: channels, height and width. The weights are computed in float64, so the
    /// result is within 1e-5 of WebUI's float32.
    ///
    /// # Errors
    /// - [`NoiseError::Strength`] if `strength` is not in `0.0..=1.0`.
    /// - [`NoiseError::Length`] if the values do not fill the shape.
    pub fn mix(
        self,
        noise: &mut [f32],
        other: &[f32],
        shape: [usize; 3],
        strength: f32,
    ) -> Result<(), NoiseError> {
        check_strength(strength)?;
        check_length(shape, noise.len())?;
        check_length(shape, other.len())?;
        if noise.is_empty() {
            return Ok(());
        }
        // `Whole` is one column of all the values.
        let [height, width] = match self {
            Self::Columns => [shape[1], shape[2]],
            Self::Whole => [noise.len(), 1],
        };
        let cosines = cosines(noise, other, [height, width]);
        let mean = cosines.iter().sum::<f64>() / cosines.len() as f64;
        let strength = f64::from(strength);
        let weights = cosines.iter().map(|&cosine| match self {
            Self::Columns if mean > NEAR => [strength, 1.0 - strength],
            Self::Whole if cosine.abs() > NEAR => [1.0 - strength, strength],
            _ => arc(cosine, strength),
        });
        let weights: Vec<[f64; 2]> = weights.collect();
        let channels = noise.chunks_exact_mut(height * width);
        let channels = channels.zip(other.chunks_exact(height * width));
        for ((noise, other), weights) in channels.zip(weights.chunks_exact(width)) {
            let rows = noise.chunks_exact_mut(width).zip(other.chunks_exact(width));
            for (noise, other) in rows {
                for ((noise, other), [keep, gain]) in noise.iter_mut().zip(other).zip(weights) {
                    *noise = (keep * f64::from(*noise) + gain * f64::from(*other)) as f32;
                }
            }
        }
        Ok(())
    }
}

/// Checks that the strength is in `0.0..=1.0`.
pub(super) fn check_strength(strength: f32) -> Result<(), NoiseError> {
    if (0.0..=1.0).contains(&strength) {
        Ok(())
    } else {
        Err(NoiseError::Strength(strength))
    }
}

/// Returns the cosine of the angle between each column of one noise and the same column of the
/// other.
fn cosines(one: &[f32], other: &[f32], [height, width]: [usize; 2]) -> Vec<f64> {
    // The sums of both squares and of the product.
    let mut sums = vec![[0.0_f64; 3]; one.len() / height];
    let channels = one.chunks_exact(height * width);
    let channels = channels.zip(other.chunks_exact(height * width));
    for ((one, other), sums) in channels.zip(sums.chunks_exact_mut(width)) {
        for (one, other) in one.chunks_exact(width).zip(other.chunks_exact(width)) {
            for ((&a, &b), sums) in one.iter().zip(other).zip(sums.iter_mut()) {
                let (a, b) = (f64::from(a), f64::from(b));
                sums[0] += a * a;
                sums[1] += b * b;
                sums[2] += a * b;
            }
        }
    }
    let cosine = |[one, other, product]: &[f64; 3]| product / (one * other).sqrt();
    sums.iter().map(cosine).collect()
}

/// Returns the weights of the two ends of an arc.
fn arc(cosine: f64, t: f64) -> [f64; 2] {
    let angle = cosine.clamp(-1.0, 1.0).acos();
    let sine = angle.sin();
    // The cosine of a column of zeros is NaN, and must not pass this test either.
    if sine > 1e-6 {
        [((1.0 - t) * angle).sin() / sine, (t * angle).sin() / sine]
    } else {
        [1.0 - t, t]
    }
}
