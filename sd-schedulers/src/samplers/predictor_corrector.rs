//! What UniPC and SA-Solver share: x is predicted on the next rung and, once the model has seen it there, corrected.

use multiversion::multiversion;

use super::history::History;
use super::steps::{add, noise_in, slide};

/// What is remembered between the steps, which integrate a polynomial through the values of the last rungs: denoised samples, or noises.
///
/// A step leads along the straight line from x through the denoised sample, and off it by a `bend`. So the noise on the rung that it leads
/// to is, without the difference of two noises, the last one plus (last - denoised + bend) / sigma.
pub(super) struct PredictorCorrector {
    /// Whether the values are noises.
    on_noise: bool,
    values: History,
    /// The denoised sample on the last rung.
    pub(super) last: Vec<f32>,
    /// Where the last step has led.
    predicted: Vec<f32>,
    /// How far that is off the line; on a rung, what the corrector adds to x.
    pub(super) bend: Vec<f32>,
}

impl PredictorCorrector {
    /// For steps that are made of up to `values` values.
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

    /// Makes the correction of x, which is nothing where x is not as predicted. `weights`: of how the value here differs from the last one,
    /// and of how the older ones differ from the last one.
    ///
    /// Of denoised samples it is added to x. For noises x has to stay, as their value here is that of the predicted x: it is
    /// added by the step, or by [`settle`](Self::settle).
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

    /// Predicts x: along the line to `ratio` of its sigma, with the correction and with `weights` of how the older values differ from that
    /// here.
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

// As the loops of steps.rs.

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
