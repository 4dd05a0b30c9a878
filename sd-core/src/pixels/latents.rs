//! torch's `interpolate` of latents, with `align_corners=False`.
//!
//! Sources: torch 2.15.0, `aten/src/ATen/native/UpSample.h` and `cpu/UpSampleKernel.cpp`. Positions
//! and weights are computed in single precision, as there, because their rounding errors grow with
//! the size. They contain the fused multiplications and additions that torch's build for x86
//! processors with FMA has. The sums are in double precision.

use ndarray::{Array2, Array4, ArrayView4};
use serde::{Deserialize, Serialize};

/// A filter that scales latents: a mode of torch's `interpolate`, as in WebUI's latent upscalers.
///
/// With serde it is a name in snake case, such as `"bicubic_antialiased"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LatentFilter {
    /// Mixes two latents along each axis: WebUI's "Latent".
    Bilinear,
    /// Like [`Bilinear`](Self::Bilinear), but when the size shrinks, every latent contributes:
    /// WebUI's "Latent (antialiased)".
    BilinearAntialiased,
    /// Keys' cubic convolution of four latents with a = −0.75: WebUI's "Latent (bicubic)".
    Bicubic,
    /// Keys' cubic convolution with a = −0.5. When the size shrinks, every latent contributes:
    /// WebUI's "Latent (bicubic antialiased)".
    BicubicAntialiased,
    /// The latent under the upper left corner of the new one: WebUI's "Latent (nearest)".
    Nearest,
    /// The latent under the center of the new one: WebUI's "Latent (nearest-exact)".
    NearestExact,
}

/// Scales latents `[n, c, h, w]` to another height and width.
///
/// Latents of -2 to 2 differ from torch's by less than 1e-6, because torch adds up in single
/// precision. The difference grows with the latents. The reference is torch on a CPU with one
/// thread: with several threads, torch's own bilinear values change by up to 1e-5, because it
/// rounds the positions twice.
///
/// If one of the sizes is 0, the result has only zeros.
pub(crate) fn resize_latents(
    latents: ArrayView4<'_, f32>,
    [height, width]: [usize; 2],
    filter: LatentFilter,
) -> Array4<f32> {
    let (n, c, old_height, old_width) = latents.dim();
    let mut resized = Array4::zeros((n, c, height, width));
    if latents.is_empty() || resized.is_empty() {
        return resized;
    }
    let across = taps(old_width, width, filter);
    let down = taps(old_height, height, filter);
    let planes = latents.outer_iter().flat_map(|rows| rows.into_outer_iter());
    let planes: Vec<_> = planes.collect();
    let resized_planes = resized
        .outer_iter_mut()
        .flat_map(|rows| rows.into_outer_iter_mut());
    for (plane, mut resized) in planes.into_iter().zip(resized_planes) {
        let narrow = Array2::from_shape_fn((old_height, width), |(y, x)| {
            let products = across[x].iter();
            let products = products.map(|&(from, weight)| weight * f64::from(plane[[y, from]]));
            products.sum::<f64>()
        });
        for ((y, x), value) in resized.indexed_iter_mut() {
            let products = down[y].iter();
            let products = products.map(|&(from, weight)| weight * narrow[[from, x]]);
            *value = products.sum::<f64>() as f32;
        }
    }
    resized
}

/// The indices of the latents that one latent of the result is computed from, and their weights.
type Taps = Vec<(usize, f64)>;

fn taps(from: usize, to: usize, filter: LatentFilter) -> Vec<Taps> {
    let scale = from as f32 / to as f32;
    let one = |index: f32| vec![((index as usize).min(from - 1), 1.0)];
    let of = |index: usize| {
        let start = index as f32;
        let centre = scale * (start + 0.5);
        let position = scale.mul_add(start + 0.5, -0.5);
        match filter {
            _ if from == to => vec![(index, 1.0)],
            LatentFilter::Nearest => one((start * scale).floor()),
            LatentFilter::NearestExact => one(centre.floor()),
            LatentFilter::Bilinear => linear(position.max(0.0), from),
            LatentFilter::Bicubic => cubic(position, from),
            LatentFilter::BilinearAntialiased => antialiased(centre, scale, from, triangle, 1.0),
            LatentFilter::BicubicAntialiased => antialiased(centre, scale, from, keys, 2.0),
        }
    };
    (0..to).map(of).collect()
}

fn linear(position: f32, from: usize) -> Taps {
    let first = (position as usize).min(from - 1);
    let share = (position - first as f32).clamp(0.0, 1.0);
    let second = (first + 1).min(from - 1);
    vec![(first, f64::from(1.0 - share)), (second, f64::from(share))]
}

fn cubic(position: f32, from: usize) -> Taps {
    let last = from as i64 - 1;
    let first = (position.floor() as i64).min(last);
    let share = (position - first as f32).clamp(0.0, 1.0);
    let distances = [share + 1.0, share, 1.0 - share, (1.0 - share) + 1.0];
    let tap = |(distance, index): (f32, i64)| {
        let weight = f64::from(convolution(distance, -0.75));
        (index.clamp(0, last) as usize, weight)
    };
    distances.into_iter().zip(first - 1..).map(tap).collect()
}

/// Returns the taps of a kernel that is widened when there become fewer latents.
fn antialiased(centre: f32, scale: f32, from: usize, kernel: fn(f32) -> f32, support: f32) -> Taps {
    let wider = scale.max(1.0);
    let support = support * wider;
    let narrower = 1.0 / wider;
    // Both conversions drop the fraction. A negative number becomes 0.
    let first = ((centre - support + 0.5) as usize).min(from - 1);
    let end = ((centre + support + 0.5) as usize).clamp(first + 1, from);
    let at = |index: usize| kernel((index as f32 - centre + 0.5) * narrower);
    let sum: f32 = (first..end).map(at).sum();
    let tap = |index| {
        let weight = if sum == 0.0 { 0.0 } else { at(index) / sum };
        (index, f64::from(weight))
    };
    (first..end).map(tap).collect()
}

fn triangle(x: f32) -> f32 {
    (1.0 - x.abs()).max(0.0)
}

fn keys(x: f32) -> f32 {
    convolution(x.abs(), -0.5)
}

/// Returns Keys' cubic convolution with the parameter `a` at a distance of at least 0.
fn convolution(x: f32, a: f32) -> f32 {
    if x < 1.0 {
        ((a + 2.0).mul_add(x, -(a + 3.0)) * x).mul_add(x, 1.0)
    } else if x < 2.0 {
        a.mul_add(x, -5.0 * a)
            .mul_add(x, 8.0 * a)
            .mul_add(x, -4.0 * a)
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pixels::golden::{cases, noise, number, pair};

    #[test]
    fn the_values_are_torchs() {
        for case in cases("latents") {
            let ([old_height, old_width], seed) = (pair(&case["from"]), number(&case["seed"]));
            let shape = (2, 3, old_height as usize, old_width as usize);
            let latents = Array4::from_shape_fn(shape, |(n, c, y, x)| {
                let pixel = y as u32 * old_width + x as u32;
                f32::from(noise(seed, pixel * 6 + (3 * n + c) as u32)) / 64.0 - 2.0
            });
            let filter = serde_json::from_value(case["filter"].clone()).expect("a filter");
            let size = pair(&case["to"]).map(|side| side as usize);
            let resized = resize_latents(latents.view(), size, filter);
            let found = resized.iter().step_by(number(&case["stride"]) as usize);
            let expected: Vec<f32> =
                serde_json::from_value(case["values"].clone()).expect("numbers");
            assert_eq!(found.len(), expected.len());
            let differences = found
                .zip(expected)
                .map(|(found, expected)| found - expected);
            let largest = differences.fold(0.0, |most: f32, difference| most.max(difference.abs()));
            assert!(largest < 1e-6, "{largest:e} in {case}");
        }
    }

    #[test]
    fn empty_and_long_latents() {
        for filter in ["bilinear_antialiased", "bicubic", "nearest_exact"] {
            let filter = serde_json::from_value(filter.into()).expect("a filter");
            let none = Array4::zeros((1, 4, 0, 3));
            assert_eq!(
                resize_latents(none.view(), [2, 2], filter),
                Array4::<f32>::zeros((1, 4, 2, 2))
            );
            let long = Array4::ones((1, 1, 1, 10_000));
            assert_eq!(resize_latents(long.view(), [0, 5], filter).len(), 0);
            let short = resize_latents(long.view(), [3, 2], filter);
            assert!(
                short.iter().all(|value| (value - 1.0).abs() < 1e-5),
                "{short}"
            );
        }
    }
}
