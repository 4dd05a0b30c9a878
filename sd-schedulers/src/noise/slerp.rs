use serde::{Deserialize, Serialize};

use super::{NoiseError, check_length};

/// Above this cosine the arc is taken for a line.
const NEAR: f64 = 0.9995;

/// How one noise is turned into another: along the arc between them, so that all between is as strong as noise is (Shoemake,
/// "Animating rotation with quaternion curves", 1985, <https://doi.org/10.1145/325334.325242>).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Slerp {
    /// WebUI's (`rng.py`): an arc for each column of each channel, along the height. The default.
    ///
    /// Noises that are nearly the same, of a mean cosine above 0.9995, are mixed as WebUI mixes them: `strength` of the
    /// *first* and the rest of the second. A column that points the same or the opposite way in both, such as any of height 1, takes the
    /// line, where WebUI divides by 0.
    #[default]
    Columns,
    /// One arc between the noises as vectors of all their values: the community pipelines of diffusers. The line, for a
    /// cosine above 0.9995 or below -0.9995.
    Whole,
}

impl Slerp {
    /// Turns `noise` into `other` by `strength`: 0 leaves it (see [`Columns`](Self::Columns) for noises that are nearly the same), 1 makes it
    /// the other. Both are of `shape`, channels, height and width. Weights in float64: within 1e-5 of WebUI's float32.
    ///
    /// # Errors
    /// [`NoiseError::Strength`] outside 0 to 1, and [`NoiseError::Length`] where the values do not fill the shape.
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
        // The whole is a column of all the values.
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

/// That it is between 0 and 1.
pub(super) fn check_strength(strength: f32) -> Result<(), NoiseError> {
    if (0.0..=1.0).contains(&strength) {
        Ok(())
    } else {
        Err(NoiseError::Strength(strength))
    }
}

/// Of the angle between each column of one and the same of the other.
fn cosines(one: &[f32], other: &[f32], [height, width]: [usize; 2]) -> Vec<f64> {
    // Both squares and the product.
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

/// The weights of the two ends of an arc.
fn arc(cosine: f64, t: f64) -> [f64; 2] {
    let angle = cosine.clamp(-1.0, 1.0).acos();
    let sine = angle.sin();
    // Not for a column of zeros either, whose cosine is NaN.
    if sine > 1e-6 {
        [((1.0 - t) * angle).sin() / sine, (t * angle).sin() / sine]
    } else {
        [1.0 - t, t]
    }
}
