//! The building blocks of the samplers' steps, with coefficients in float64 and states in float32.
//!
//! A step from a large sigma to a small one removes nearly all of x. No step is therefore computed
//! as `x + (to - sigma) * slope`, which would keep the rounding error of the whole x. The straight
//! part of a step is a [`slide`], and the rest consists of differences of denoised samples.

use multiversion::multiversion;

use crate::{Rung, Rungs, samplers::Calls};

/// Moves `x` along the slope `(x - denoised) / sigma`, from a sigma to `ratio` times it:
/// `denoised + ratio * (x - denoised)`. With ratio 0, the result is `denoised` to the last bit.
pub(super) fn slide(x: &mut [f32], denoised: &[f32], ratio: f64) {
    slide_f32(x, denoised, ratio as f32);
}

/// Writes the point to which [`slide`] would move `x` to `out`.
pub(super) fn slid(x: &[f32], denoised: &[f32], ratio: f64, out: &mut [f32]) {
    slid_f32(x, denoised, ratio as f32, out);
}

/// Does a [`slide`], plus `bend * (denoised - other)` for a slope from another point of the same
/// line.
///
/// `other` is the denoised sample at that point. The slope there is
/// `(x - denoised) / sigma + (denoised - other) / sigma_of_other`.
pub(super) fn slide_bent(x: &mut [f32], denoised: &[f32], ratio: f64, other: &[f32], bend: f64) {
    slide_bent_f32(x, denoised, ratio as f32, other, bend as f32);
}

/// Puts the noise in `x` on top of another sample: `gain * denoised + factor * (x - clean)`.
/// `clean` is the sample that the noise is on top of now.
pub(super) fn renoise(x: &mut [f32], clean: &[f32], factor: f64, denoised: &[f32], gain: f64) {
    renoise_f32(x, clean, factor as f32, denoised, gain as f32);
}

/// Computes `x + factor * y`.
pub(super) fn add(x: &mut [f32], factor: f64, y: &[f32]) {
    add_f32(x, factor as f32, y);
}

/// Writes the noise in `x`, `(x - denoised) / sigma`, to `noise`.
pub(super) fn noise_in(x: &[f32], denoised: &[f32], sigma: f32, noise: &mut [f32]) {
    slope_f32(x, denoised, (1.0 / f64::from(sigma)) as f32, noise);
}

// The loops are compiled for wide registers too. The results do not depend on that.

#[multiversion(targets("x86_64+avx2"))]
fn slide_f32(x: &mut [f32], denoised: &[f32], ratio: f32) {
    for (x, denoised) in x.iter_mut().zip(denoised) {
        *x = denoised + ratio * (*x - denoised);
    }
}

#[multiversion(targets("x86_64+avx2"))]
fn slid_f32(x: &[f32], denoised: &[f32], ratio: f32, out: &mut [f32]) {
    for ((out, x), denoised) in out.iter_mut().zip(x).zip(denoised) {
        *out = denoised + ratio * (x - denoised);
    }
}

#[multiversion(targets("x86_64+avx2"))]
fn slide_bent_f32(x: &mut [f32], denoised: &[f32], ratio: f32, other: &[f32], bend: f32) {
    for ((x, denoised), other) in x.iter_mut().zip(denoised).zip(other) {
        *x = denoised + ratio * (*x - denoised) + bend * (denoised - other);
    }
}

#[multiversion(targets("x86_64+avx2"))]
fn renoise_f32(x: &mut [f32], clean: &[f32], factor: f32, denoised: &[f32], gain: f32) {
    for ((x, clean), denoised) in x.iter_mut().zip(clean).zip(denoised) {
        *x = gain * denoised + factor * (*x - clean);
    }
}

#[multiversion(targets("x86_64+avx2"))]
fn add_f32(x: &mut [f32], factor: f32, y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += factor * y;
    }
}

#[multiversion(targets("x86_64+avx2"))]
fn slope_f32(x: &[f32], denoised: &[f32], factor: f32, slope: &mut [f32]) {
    for ((slope, x), denoised) in slope.iter_mut().zip(x).zip(denoised) {
        *slope = factor * (x - denoised);
    }
}

/// Returns the sigma to go down to, and the deviation of the noise that leads back up to `to`.
///
/// The step starts at sigma `from` and adds `eta` times as much noise as DDPM: equation 16 of
/// <https://arxiv.org/abs/2010.02502> in the variance-exploding scaling. It is capped for an `eta`
/// above 1.
pub(super) fn ancestral(from: f64, to: f64, eta: f64) -> (f64, f64) {
    let ratio = (to / from).min(1.0);
    let part = eta * ((1.0 - ratio) * (1.0 + ratio)).sqrt();
    // This is 1 - part², without a difference of nearly equal numbers.
    let rest = (1.0 - eta) * (1.0 + eta) + (eta * ratio).powi(2);
    (to * rest.max(0.0).sqrt(), to * part.min(1.0))
}

/// Returns [`ancestral`] for the step that leaves a rung. An `eta` below 0 counts as 0.
pub(super) fn ancestral_from(rungs: &Rungs, at: Rung, eta: f32) -> (f64, f64) {
    let next = rungs.sigmas()[at.index + 1];
    ancestral(at.sigma.into(), next.into(), f64::from(eta).max(0.0))
}

/// Returns two model calls per step, except one for a step to sigma 0.
pub(super) fn two_calls_a_step(rungs: &Rungs) -> Calls {
    let ends_at_zero = rungs.sigmas().last() == Some(&0.0);
    Calls::Exactly(2 * rungs.steps() - usize::from(ends_at_zero))
}

pub(super) fn scale(x: &mut [f32], factor: f64) {
    let factor = factor as f32;
    if factor != 1.0 {
        x.iter_mut().for_each(|x| *x *= factor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_an_ancestral_step_make_up_the_next_sigma() {
        for (from, to) in [(1.0, 0.9), (0.5, 0.03), (0.03, 0.0), (0.5, 0.5)] {
            for eta in [0.0, 0.3, 1.0, 9.0] {
                let (down, up) = ancestral(from, to, eta);
                assert!((down.hypot(up) - to).abs() <= 1e-12, "{from} {to} {eta}");
            }
        }
        assert_eq!(ancestral(2.0, 1.0, 0.0), (1.0, 0.0));
        assert!(ancestral(2.0, 1.0, 1.0).1 > ancestral(2.0, 1.0, 0.5).1);
        // This is to² / from.
        let (down, _) = ancestral(1024.0, 1.0 / 1024.0, 1.0);
        assert_eq!(down, 2_f64.powi(-30));
    }

    /// The line goes from a state of 1000 to a state of 1. The second slope lies on it too.
    #[test]
    fn bends_are_slopes_from_elsewhere() {
        let (sigma, mid, to) = (1000.0, 10.0, 1.0);
        let (x, denoised, other) = (1000.0_f64, 0.5, 0.25);
        let x_mid = denoised + mid / sigma * (x - denoised);
        let expected = x + (to - sigma) * (x_mid - other) / mid;
        let mut found = [x as f32];
        slide_bent(
            &mut found,
            &[denoised as f32],
            to / sigma,
            &[other as f32],
            (to - sigma) / mid,
        );
        assert!((f64::from(found[0]) / expected - 1.0).abs() < 3e-7);
    }
}
