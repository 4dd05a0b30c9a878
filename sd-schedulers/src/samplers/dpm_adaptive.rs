use std::ops::ControlFlow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::dpm_stages::{DpmStages, descent, ends, sigma_of};
use super::row::{CallFormula, ComfyUi, SamplerRow, WebUi};
use super::steps::add;
use crate::{
    Ladder, Run, Rungs, Sampler, Step,
    samplers::{Calls, EndPoint, Needs},
};

/// DPM adaptive: DPM-Solver-12 or 23 from the appendix of <https://arxiv.org/abs/2206.00927>, which
/// choose their own steps. Its order is the higher order of the two solvers, and it makes as many
/// model calls per attempt.
///
/// The step size comes from the PID controller of k-diffusion's `sample_dpm_adaptive`.
///
/// Only the two ends come from the ladder, not the number of steps. The sampler stops at the lower
/// end with that much noise left. It makes each attempt with both orders, and repeats it with a
/// shorter step if the results differ too much. 20 to 50 calls are usual.
///
/// All of `x` shares the steps, so `x` [must be](Needs::one_picture) one picture.
///
/// The number of remaining steps is not known. [`Step::total`] is set so that `(index + 1) / total`
/// is the fraction of the way in log sigma. In the last step, it is `index + 1`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DpmAdaptive {
    /// The order of the result that is kept, `2..=3`. A value outside counts as the nearer end.
    ///
    /// Default: 3.
    pub order: usize,
    /// The largest difference of the two results, relative to x. A smaller value makes more calls.
    ///
    /// Default: 0.05.
    pub rtol: f32,
    /// The largest difference of the two results where x is small, above 0.
    ///
    /// Default: 0.0078.
    pub atol: f32,
    /// The length of the first attempt in log sigma, above 0. Any other value counts as 0.05.
    ///
    /// Default: 0.05.
    pub h_init: f32,
    /// The controller's response to the change from one error to the next.
    ///
    /// Default: 0.
    ///
    /// The length of an attempt is the length of the previous one times f. f is the product of the
    /// inverses of the last three errors, raised to the powers (p + i + d) / k, -(p + 2 d) / k and
    /// d / k, where k is the order, or 1.5 with noise. It is then passed through 1 + atan(f - 1),
    /// so it is never above 2.6.
    pub pcoeff: f32,
    /// The controller's response to the last error.
    ///
    /// Default: 1.
    pub icoeff: f32,
    /// The controller's response to the change of that change.
    ///
    /// Default: 0.
    pub dcoeff: f32,
    /// The smallest f with which an attempt is kept.
    ///
    /// Default: 0.81.
    pub accept_safety: f32,
    /// The largest number of model calls. k-diffusion has no such limit.
    ///
    /// Default: 3000.
    ///
    /// If there is a way to go, at least one attempt is made. The last attempt goes straight to the
    /// end and is kept.
    pub max_calls: usize,
    /// The sigma to end at: see [`DpmFast::sigma_min`](crate::samplers::DpmFast::sigma_min).
    ///
    /// Default: `None`.
    pub sigma_min: Option<f32>,
    /// The share of the ancestral noise that is added, from 0 (none, the default of k-diffusion and
    /// ComfyUI) to 1 (WebUI's default). A value below 0 counts as 0.
    ///
    /// Default: 0.
    pub eta: f32,
    /// A factor for the noise. A value below 0 counts as 0.
    ///
    /// Default: 1.
    pub s_noise: f32,
}

impl Default for DpmAdaptive {
    fn default() -> Self {
        Self {
            order: 3,
            rtol: 0.05,
            atol: 0.0078,
            h_init: 0.05,
            pcoeff: 0.0,
            icoeff: 1.0,
            dcoeff: 0.0,
            accept_safety: 0.81,
            max_calls: 3000,
            sigma_min: None,
            eta: 0.0,
            s_noise: 1.0,
        }
    }
}

impl DpmAdaptive {
    fn order(&self) -> usize {
        self.order.clamp(2, 3)
    }

    fn attempts(&self) -> usize {
        (self.max_calls / self.order()).max(1)
    }

    /// Returns how far two results differ, where 1 is as much as the tolerances allow.
    fn error(&self, low: &[f32], apart: &[f32], low_last: &[f32]) -> f64 {
        let (rtol, atol) = (f64::from(self.rtol), f64::from(self.atol));
        let squares = low.iter().zip(apart).zip(low_last);
        let squares = squares.map(|((&low, &apart), &last)| {
            let allowed = atol.max(rtol * f64::from(low.abs().max(last.abs())));
            (f64::from(apart) / allowed).powi(2)
        });
        (squares.sum::<f64>() / low.len().max(1) as f64).sqrt()
    }

    /// Returns the factor f of [`pcoeff`](Self::pcoeff) for the inverses of the last three errors,
    /// newest first.
    fn factor(&self, [inverse, before, earlier]: [f64; 3]) -> f64 {
        let accuracy = match self.eta > 0.0 {
            true => 1.5,
            false => self.order() as f64,
        };
        let [p, i, d] = [self.pcoeff, self.icoeff, self.dcoeff].map(|c| f64::from(c) / accuracy);
        let factor = inverse.powf(p + i + d) * before.powf(-p - 2.0 * d) * earlier.powf(d);
        1.0 + (factor - 1.0).atan()
    }
}

pub(super) const ROW: SamplerRow = SamplerRow::new::<DpmAdaptive>(
    "dpm-adaptive",
    "DPM adaptive",
    "https://arxiv.org/abs/2206.00927",
    Ladder::karras(),
    |_| Box::new(DpmAdaptive::default()),
)
// WebUI goes from the largest sigma of the training to the smallest, which are the ends of this
// ladder.
.webui(
    WebUi::new(&["k_dpm_ad"], Ladder::normal, || {
        Arc::new(DpmAdaptive {
            eta: 1.0,
            ..DpmAdaptive::default()
        })
    })
    .on_its_own_ladder()
    .ensd(),
)
.comfyui(&[ComfyUi::new("dpm_adaptive", || {
    Arc::new(DpmAdaptive::default())
})])
.order(3)
.calls(CallFormula::AtMost(3000))
.ends("sigma_min");

impl Sampler for DpmAdaptive {
    fn calls(&self, _: &Rungs) -> Calls {
        Calls::AtMost(self.order() * self.attempts())
    }

    fn ends(&self) -> EndPoint {
        EndPoint::Formula
    }

    fn needs(&self) -> Needs {
        Needs {
            one_picture: true,
            ..Needs::default()
        }
    }

    fn adds_noise(&self) -> bool {
        self.eta > 0.0 && self.s_noise != 0.0
    }

    fn sample(&self, x: &mut [f32], rungs: &Rungs, run: &mut dyn Run) -> ControlFlow<()> {
        let (start, end) = ends(rungs, self.sigma_min);
        let mut stages = DpmStages::new(rungs, x.len());
        let (mut low, mut high) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        let (mut low_last, mut noise) = (x.to_vec(), vec![0.0; x.len()]);
        let h_init = if self.h_init > 0.0 { self.h_init } else { 0.05 };
        let (mut t, mut h, mut index) = (start, f64::from(h_init), 0);
        // The inverse errors of the last attempts that were kept, newest first.
        let mut errors: Option<[f64; 2]> = None;
        for left in (0..self.attempts()).rev() {
            if t >= end - 1e-5 {
                break;
            }
            let next = if left == 0 { end } else { (t + h).min(end) };
            let (to, up) = descent(t, next, end, self.eta);
            stages.begin(x, t, to, run)?;
            if self.order() == 2 {
                stages.first(x, &mut low);
                stages.inner(x, 1.0 / 2.0, run)?;
                stages.second(x, &mut high);
            } else {
                stages.inner(x, 1.0 / 3.0, run)?;
                stages.second(x, &mut low);
                stages.third(x, &mut high, run)?;
            }

            let inverse = 1.0 / (self.error(&low, &stages.apart, &low_last) + 1e-8);
            let [before, earlier] = errors.unwrap_or([inverse; 2]);
            let factor = self.factor([inverse, before, earlier]);
            h *= factor;
            // If the factor is NaN, another length would not help.
            let enough = factor >= f64::from(self.accept_safety);
            if !enough && !factor.is_nan() && left > 0 {
                errors = Some([before, earlier]);
                continue;
            }
            errors = Some([inverse, before]);

            x.copy_from_slice(&high);
            std::mem::swap(&mut low, &mut low_last);
            let factor = up * f64::from(self.s_noise);
            if factor > 0.0 {
                run.noise(sigma_of(t), sigma_of(next), &mut noise);
                add(x, factor, &noise);
            }
            let share = (next - start) / (end - start);
            let total = ((index + 1) as f64 / share).round() as usize;
            run.step(Step {
                index,
                total: total.max(index + 1),
                sigma: sigma_of(t),
                next: sigma_of(next),
                x,
                denoised: &stages.denoised,
            })?;
            (t, index) = (next, index + 1);
        }
        ControlFlow::Continue(())
    }
}
