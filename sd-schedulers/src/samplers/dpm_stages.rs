//! The steps that DPM fast and DPM adaptive share. They go between their own sigmas, in t = -ln
//! sigma.

use std::ops::ControlFlow;

use super::steps::{add, ancestral, slid};
use crate::{Run, Rungs};

/// The position of the last stage of the third order, as a fraction of the step.
const R_2: f64 = 2.0 / 3.0;

/// A step of DPM-Solver-1, 2 or 3 from `t` to `to`: algorithms 1 and 2 of
/// <https://arxiv.org/abs/2206.00927>.
///
/// In the following, h = to - t and e(x, t) = (x - D) / sigma.
///
/// [`begin`](Self::begin) calls the model for D at t, which is enough for the
/// [`first`](Self::first) order. [`inner`](Self::inner) calls it at t + r₁ h, which the
/// [`second`](Self::second) and the [`third`](Self::third) order need. The third order calls it
/// once more.
///
/// On the straight line from x at t through D, e differs from its value at t only by the change of
/// D.
pub(super) struct DpmStages<'a> {
    rungs: &'a Rungs,
    t: f64,
    to: f64,
    r_1: f64,
    /// The denoised sample at `t`.
    pub(super) denoised: Vec<f32>,
    x_inner: Vec<f32>,
    denoised_inner: Vec<f32>,
    /// The difference of e at t + r₁ h from e at t.
    change: Vec<f32>,
    /// The difference of the last result from the result of the next lower order, without the
    /// rounding of either.
    pub(super) apart: Vec<f32>,
}

impl<'a> DpmStages<'a> {
    pub(super) fn new(rungs: &'a Rungs, len: usize) -> Self {
        let room = || vec![0.0; len];
        Self {
            rungs,
            t: 0.0,
            to: 0.0,
            r_1: 0.5,
            denoised: room(),
            x_inner: room(),
            denoised_inner: room(),
            change: room(),
            apart: room(),
        }
    }

    pub(super) fn begin(
        &mut self,
        x: &[f32],
        t: f64,
        to: f64,
        run: &mut dyn Run,
    ) -> ControlFlow<()> {
        (self.t, self.to) = (t, to);
        run.denoise(x, self.rungs.at_sigma(sigma_of(t)), &mut self.denoised)
    }

    pub(super) fn inner(&mut self, x: &[f32], r_1: f64, run: &mut dyn Run) -> ControlFlow<()> {
        self.r_1 = r_1;
        let t_1 = self.t + r_1 * (self.to - self.t);
        slid(x, &self.denoised, (self.t - t_1).exp(), &mut self.x_inner);
        let at = self.rungs.at_sigma(sigma_of(t_1));
        run.denoise(&self.x_inner, at, &mut self.denoised_inner)?;
        let factor = t_1.exp() as f32;
        let denoised = self.denoised.iter().zip(&self.denoised_inner);
        for (change, (denoised, inner)) in self.change.iter_mut().zip(denoised) {
            *change = factor * (denoised - inner);
        }
        ControlFlow::Continue(())
    }

    pub(super) fn first(&self, x: &[f32], out: &mut [f32]) {
        slid(x, &self.denoised, (self.t - self.to).exp(), out);
    }

    pub(super) fn second(&mut self, x: &[f32], out: &mut [f32]) {
        let h = self.to - self.t;
        self.first(x, out);
        let factor = (-(-self.to).exp() * h.exp_m1() / (2.0 * self.r_1)) as f32;
        for ((out, apart), change) in out.iter_mut().zip(&mut self.apart).zip(&self.change) {
            *apart = factor * change;
            *out += *apart;
        }
    }

    pub(super) fn third(
        &mut self,
        x: &[f32],
        out: &mut [f32],
        run: &mut dyn Run,
    ) -> ControlFlow<()> {
        let h = self.to - self.t;
        let t_2 = self.t + R_2 * h;
        // The distance of x at t_2 from the line, in units of the change of e.
        let bend = -(-t_2).exp() * R_2 / self.r_1 * phi(R_2 * h);
        slid(x, &self.denoised, (self.t - t_2).exp(), &mut self.x_inner);
        add(&mut self.x_inner, bend, &self.change);
        let at = self.rungs.at_sigma(sigma_of(t_2));
        run.denoise(&self.x_inner, at, &mut self.denoised_inner)?;
        self.first(x, out);
        // The difference of e at t_2 from e at t is (D - D_2 + bend) / sigma.
        let factor = (-(t_2 - self.to).exp() / R_2 * phi(h)) as f32;
        let second = (-(-self.to).exp() * h.exp_m1() / (2.0 * self.r_1)) as f32;
        let bend = bend as f32;
        let denoised = self.denoised.iter().zip(&self.denoised_inner);
        let results = out.iter_mut().zip(&mut self.apart);
        for (((out, apart), (denoised, inner)), change) in results.zip(denoised).zip(&self.change) {
            let third = factor * (denoised - inner + bend * change);
            *apart = third - second * change;
            *out += third;
        }
        ControlFlow::Continue(())
    }
}

/// Returns -ln of the first sigma and of the sigma to end at.
///
/// The end is `sigma_min` if that is above 0. Otherwise it is the last rung above 0, or the
/// smallest sigma of the training if that rung is the first one. It is never above the first sigma.
pub(super) fn ends(rungs: &Rungs, sigma_min: Option<f32>) -> (f64, f64) {
    let first = rungs.sigmas()[0];
    let sigma_min = sigma_min.filter(|&sigma| sigma > 0.0);
    let last = sigma_min.unwrap_or_else(|| {
        let mut below = rungs.sigmas()[1..].iter().copied();
        let lowest = below.rfind(|&sigma| sigma > 0.0 && sigma < first);
        lowest.unwrap_or_else(|| rungs.in_run(rungs.schedule().sigma_min()) as f32)
    });
    (t_of(first), t_of(last.min(first)))
}

/// Returns the t to which a step from `t` to `next` must go, no further than `end`, and the
/// deviation of the noise that leads back up to `next`.
pub(super) fn descent(t: f64, next: f64, end: f64, eta: f32) -> (f64, f64) {
    if eta > 0.0 {
        let sigma = (-next).exp();
        let (down, _) = ancestral((-t).exp(), sigma, eta.into());
        let to = (-down.ln()).min(end);
        let down = (-to).exp();
        (to, (sigma * sigma - down * down).max(0.0).sqrt())
    } else {
        (next, 0.0)
    }
}

/// Returns the sigma of a t.
pub(super) fn sigma_of(t: f64) -> f32 {
    (-t).exp() as f32
}

fn t_of(sigma: f32) -> f64 {
    -f64::from(sigma).ln()
}

/// Returns (exp(h) - 1) / h - 1.
fn phi(h: f64) -> f64 {
    if h == 0.0 { 0.0 } else { h.exp_m1() / h - 1.0 }
}
