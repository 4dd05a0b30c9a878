use std::ops::ControlFlow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::dpm_stages::{DpmStages, descent, ends, sigma_of};
use super::row::{ComfyUi, SamplerRow, WebUi};
use super::steps::add;
use crate::{Ladder, Run, Rungs, Sampler, Step, samplers::EndPoint};

/// DPM fast: DPM-Solver-fast of <https://arxiv.org/abs/2206.00927>. It makes as many model calls as
/// the ladder, or the [part](Rungs::starting_at) of it that is run, has steps N.
///
/// The calls go into steps of third order. The remaining calls go into one or two steps of second
/// and first order. The method is of third order if the remainder is one step of second order (N =
/// 2, 5, 8, …), and otherwise of second order. Reference implementation: k-diffusion's
/// `sample_dpm_fast`.
///
/// Only the two ends come from the ladder. Between them, the sampler visits its own sigmas, even in
/// log sigma, and it stops at the lower end with that much noise left. [`Step::total`] is the
/// number of the steps that it chooses, N / 3 + 1 (integer division).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DpmFast {
    /// The sigma to end at, above 0. Another value counts as `None`, and one above the first rung
    /// counts as the first rung. WebUI's txt2img ends at the smallest sigma of the training on any
    /// ladder.
    ///
    /// Default: `None`, which is the last rung above 0, or the smallest sigma of the training if
    /// there is only one rung.
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

impl Default for DpmFast {
    fn default() -> Self {
        Self {
            sigma_min: None,
            eta: 0.0,
            s_noise: 1.0,
        }
    }
}

pub(super) const ROW: SamplerRow = SamplerRow::new::<DpmFast>(
    "dpm-fast",
    "DPM fast",
    "https://arxiv.org/abs/2206.00927",
    Ladder::karras(),
    |_| Box::new(DpmFast::default()),
)
// WebUI goes from the largest sigma of the training to the smallest, which are the ends of this
// ladder.
.webui(
    WebUi::new(&["k_dpm_fast"], Ladder::normal, || {
        Arc::new(DpmFast {
            eta: 1.0,
            ..DpmFast::default()
        })
    })
    .on_its_own_ladder()
    .ensd(),
)
.comfyui(&[ComfyUi::new("dpm_fast", || Arc::new(DpmFast::default()))])
.order(3)
.ends("sigma_min");

impl Sampler for DpmFast {
    fn ends(&self) -> EndPoint {
        EndPoint::Formula
    }

    fn adds_noise(&self) -> bool {
        self.eta > 0.0 && self.s_noise != 0.0
    }

    fn sample(&self, x: &mut [f32], rungs: &Rungs, run: &mut dyn Run) -> ControlFlow<()> {
        let (calls, total) = (rungs.steps(), rungs.steps() / 3 + 1);
        let (start, end) = ends(rungs, self.sigma_min);
        let mut stages = DpmStages::new(rungs, x.len());
        let (mut out, mut noise) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        let mut t = start;
        for index in 0..total {
            let share = (index + 1) as f64 / total as f64;
            let next = match index + 1 == total {
                true => end,
                false => start + share * (end - start),
            };
            let (to, up) = descent(t, next, end, self.eta);
            stages.begin(x, t, to, run)?;
            match order(calls, total - index) {
                1 => stages.first(x, &mut out),
                2 => {
                    stages.inner(x, 1.0 / 2.0, run)?;
                    stages.second(x, &mut out);
                }
                _ => {
                    stages.inner(x, 1.0 / 3.0, run)?;
                    stages.third(x, &mut out, run)?;
                }
            }
            x.copy_from_slice(&out);
            let factor = up * f64::from(self.s_noise);
            if factor > 0.0 {
                run.noise(sigma_of(t), sigma_of(next), &mut noise);
                add(x, factor, &noise);
            }
            run.step(Step {
                index,
                total,
                sigma: sigma_of(t),
                next: sigma_of(next),
                x,
                denoised: &stages.denoised,
            })?;
            t = next;
        }
        ControlFlow::Continue(())
    }
}

/// Returns the order of the step with which `left` steps are left, including itself. The order is
/// also the number of its calls.
fn order(calls: usize, left: usize) -> usize {
    match (calls % 3, left) {
        (0, 1) => 1,
        (0, 2) => 2,
        (rest, 1) => rest,
        _ => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_add_up_to_the_calls() {
        let orders = |calls: usize| -> Vec<usize> {
            let lefts = (1..=calls / 3 + 1).rev();
            lefts.map(|left| order(calls, left)).collect()
        };
        assert_eq!(orders(1), [1]);
        assert_eq!(orders(3), [2, 1]);
        assert_eq!(orders(9), [3, 3, 2, 1]);
        assert_eq!(orders(11), [3, 3, 3, 2]);
        for calls in 1..100 {
            assert_eq!(orders(calls).iter().sum::<usize>(), calls);
        }
    }
}
