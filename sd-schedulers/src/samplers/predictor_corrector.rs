//! The predictor and the corrector of UniPC and SA-Solver: x is predicted on the next rung and,
//! once the model has seen it there, corrected.

use multiversion::multiversion;

use super::history::History;
use super::steps::{add, noise_in, slide};

/// The state between steps that integrate a polynomial through the values of the last rungs. The
/// values are denoised samples or noises.
///
/// A step leads along the straight line from x through the denoised sample, and off it by a `bend`.
/// The noise on the next rung is therefore the last noise plus (last - denoised + bend) / sigma,
/// which avoids a difference of two noises.
pub(super) struct PredictorCorrector {
    /// Whether the values are noises.
    on_noise: bool,
    values: History,
    /// The denoised sample on the last rung.
    pub(super) last: Vec<f32>,
    /// The point to which the last step led.
    predicted: Vec<f32>,
    /// The distance of that point from the line. On a rung, it is what the corrector adds to x.
    pub(super) bend: Vec<f32>,
}

impl PredictorCorrector {
    /// Allocates the state for steps that use up to `values` values.
    pub(super) fn new(on_noise: bool, values: usize, len: usize) -> Self {
        let room = || vec![0.0; len];
        Self {
            on_noise,
            values: History::new(values, len),
            last: room(),
            predicted: room(),
            bend: room(),
        }
    }

    /// Computes the correction of x, which is 0 where x is not as predicted.
    ///
    /// `weights` are the weights of the differences from the last value: first of the value here,
    /// then of the older values.
    ///
    /// With denoised samples, the correction is added to x. With noises, x must stay, because the
    /// value here is the noise of the predicted x. The step or [`settle`](Self::settle) adds the
    /// correction then.
    pub(super) fn correct(
        &mut self,
        x: &mut [f32],
        denoised: &[f32],
        sigma: f32,
        weights: Option<[f64; 4]>,
    ) {
        let Some([newest, second, third, fourth]) = weights else {
            return self.bend.fill(0.0);
        };
        let of_last = newest / if self.on_noise { sigma.into() } else { -1.0 };
        let of_bend = if self.on_noise { of_last } else { 0.0 };
        let changes = [of_last as f32, of_bend as f32];
        change(&mut self.bend, changes, &self.last, denoised);
        self.values.bend(&mut self.bend, [second, third, fourth]);
        keep_where_equal(&mut self.bend, x, &self.predicted);
        if !self.on_noise {
            self.settle(x);
        }
    }

    /// Adds the correction to x.
    pub(super) fn settle(&mut self, x: &mut [f32]) {
        add(x, 1.0, &self.bend);
        self.bend.fill(0.0);
    }

    /// Predicts x on the next rung: along the line to `ratio` times its sigma, with the correction.
    ///
    /// `weights` are the weights of the differences of the older values from the value here.
    pub(super) fn predict(
        &mut self,
        x: &mut [f32],
        denoised: &[f32],
        sigma: f32,
        ratio: f64,
        weights: [f64; 3],
    ) {
        if self.on_noise {
            noise_in(x, denoised, sigma, self.values.push());
        } else {
            self.values.push().copy_from_slice(denoised);
        }
        self.values.bend(&mut self.bend, weights);
        slide(x, denoised, ratio);
        add(x, 1.0, &self.bend);
        self.predicted.copy_from_slice(x);
    }
}

// As in steps.rs, these loops are compiled for wide registers too.

#[multiversion(targets("x86_64+avx2"))]
fn change(bend: &mut [f32], [of_last, of_bend]: [f32; 2], last: &[f32], denoised: &[f32]) {
    for ((bend, last), denoised) in bend.iter_mut().zip(last).zip(denoised) {
        *bend = of_last * (last - denoised) + of_bend * *bend;
    }
}

/// Sets `bend` to 0 where x is not as predicted.
#[multiversion(targets("x86_64+avx2"))]
fn keep_where_equal(bend: &mut [f32], x: &[f32], predicted: &[f32]) {
    for ((bend, x), predicted) in bend.iter_mut().zip(x).zip(predicted) {
        *bend = if x == predicted { *bend } else { 0.0 };
    }
}
