use std::ops::ControlFlow;

use multiversion::multiversion;

use serde::{Deserialize, Serialize};

use super::dpm_algorithm::DpmStep;
use super::dpm_solver::conventions;
use super::row::SamplerRow;
use super::steps::{add, noise_in, slide};
use crate::{
    Ladder, Run, Rungs, Sampler, SchedulerConfig, Step,
    ladders::{Conventions, FinalSigma},
    samplers::{DpmAlgorithm, DpmForm, Needs, ThirdOrder},
    schedule::ClipSample,
};

/// DPM-Solver singlestep: DPM-Solver-2 and -3, algorithms 1 and 2 of
/// <https://arxiv.org/abs/2206.00927>, and DPM-Solver++(2S), algorithm 1 of
/// <https://arxiv.org/abs/2211.01095>. It is of order [`order`](Self::order) and calls the model
/// once per rung.
///
/// The points between the ends of a step are rungs of the ladder. Reference implementation:
/// diffusers' `DPMSolverSinglestepScheduler`.
///
/// Rungs come in groups of `order`. The steps of a group have the orders 1, 2, … `order`. All of
/// them start at the first rung of the group, and each uses the values of the rungs from there on.
/// They are integrated as in [`DpmSolver`](crate::samplers::DpmSolver). A step to sigma 0 is of
/// order 1.
///
/// If the `step` of a [`Run`] changes x within a group, the change counts only through the model's
/// output for it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DpmSolverSinglestep {
    /// The quantity that is integrated.
    ///
    /// Default: [`DpmAlgorithm::Denoised`].
    pub algorithm: DpmAlgorithm,
    /// The number of rungs of a group, `1..=3`: `solver_order` in diffusers. A value outside counts
    /// as the nearer end.
    ///
    /// Default: 2.
    pub order: usize,
    /// How the steps are integrated: `solver_type` in diffusers.
    ///
    /// Default: [`DpmForm::Midpoint`].
    ///
    /// Order 2 is integrated as in [`DpmSolver`](crate::samplers::DpmSolver). In order 3,
    /// `Midpoint` draws a straight line through the first and the newest value, and `Heun` draws a
    /// parabola through all three.
    pub form: DpmForm,
    /// Whether the last step is of order 1 even if the groups come out even.
    ///
    /// Default: false.
    ///
    /// A last group that is not full has steps of the orders that it has rungs for.
    pub lower_order_final: bool,
    /// How order 3 is integrated. [`ThirdOrder::Published`] has diffusers' wrong sign in order 3 of
    /// [`DpmAlgorithm::SdeDenoised`], and is otherwise equal.
    ///
    /// Default: [`ThirdOrder::Published`].
    pub third_order: ThirdOrder,
    /// The sigma at which a run ends: `final_sigmas_type` in diffusers.
    ///
    /// Default: [`FinalSigma::Zero`], which diffusers refuses for [`DpmAlgorithm::Noise`].
    pub end: FinalSigma,
    /// The clipping of the denoised sample, for models of pixels.
    ///
    /// Default: [`ClipSample::None`].
    pub clip: ClipSample,
}

impl Default for DpmSolverSinglestep {
    fn default() -> Self {
        Self {
            algorithm: DpmAlgorithm::Denoised,
            order: 2,
            form: DpmForm::Midpoint,
            lower_order_final: false,
            third_order: ThirdOrder::Published,
            end: FinalSigma::Zero,
            clip: ClipSample::None,
        }
    }
}

impl DpmSolverSinglestep {
    /// Returns the order of the step from rung `index` of a whole run.
    fn order_at(&self, index: usize, steps: usize, ends_at_zero: bool) -> usize {
        let order = self.order.clamp(1, 3);
        let lowered = ends_at_zero || (self.lower_order_final && steps.is_multiple_of(order));
        if index + 1 == steps && lowered {
            1
        } else {
            index % order + 1
        }
    }

    /// Returns the weights of the newest value and of the one before it, each as a difference from
    /// the value on the group's first rung.
    ///
    /// `newest` and `before` are the distances of the two values from the first rung in lambda.
    fn weights(&self, order: usize, step: &DpmStep, newest: f64, before: f64) -> [f64; 2] {
        let [constant, line, mut square] = step.integrals;
        match (order, self.form) {
            (1, _) => [0.0, 0.0],
            (2, DpmForm::Midpoint) => [constant * step.h / 2.0 / newest, 0.0],
            (2, DpmForm::Heun) | (_, DpmForm::Midpoint) => [line / newest, 0.0],
            (_, DpmForm::Heun) => {
                let wrong_sign = self.algorithm == DpmAlgorithm::SdeDenoised
                    && self.third_order == ThirdOrder::Published;
                if wrong_sign {
                    square -= 2.0 * step.h * step.h;
                }
                let apart = newest - before;
                [
                    (square - line * before) / apart / newest,
                    (line * newest - square) / apart / before,
                ]
            }
        }
    }
}

impl DpmSolverSinglestep {
    fn from_config(config: &SchedulerConfig, algorithm: DpmAlgorithm, order: usize) -> Self {
        Self {
            algorithm,
            order,
            end: algorithm.end(),
            clip: config.thresholding(),
            ..Self::default()
        }
    }
}

pub(super) const NOISE_2: SamplerRow = SamplerRow::new::<DpmSolverSinglestep>(
    "dpm-solver-2s",
    "DPM-Solver 2S",
    "https://arxiv.org/abs/2206.00927",
    Ladder::karras(),
    |config| {
        Box::new(DpmSolverSinglestep::from_config(
            config,
            DpmAlgorithm::Noise,
            2,
        ))
    },
)
.diffusers("DPMSolverSinglestepScheduler, algorithm_type dpmsolver")
.order(2)
.ends("sigma_min");

pub(super) const NOISE_3: SamplerRow = SamplerRow::new::<DpmSolverSinglestep>(
    "dpm-solver-3s",
    "DPM-Solver 3S",
    "https://arxiv.org/abs/2206.00927",
    Ladder::karras(),
    |config| {
        Box::new(DpmSolverSinglestep::from_config(
            config,
            DpmAlgorithm::Noise,
            3,
        ))
    },
)
.diffusers("DPMSolverSinglestepScheduler, algorithm_type dpmsolver, solver_order 3")
.order(3)
.ends("sigma_min");

pub(super) const DENOISED_2: SamplerRow = SamplerRow::new::<DpmSolverSinglestep>(
    "dpmpp-2s",
    "DPM++ 2S",
    "https://arxiv.org/abs/2211.01095",
    Ladder::karras(),
    |config| {
        Box::new(DpmSolverSinglestep::from_config(
            config,
            DpmAlgorithm::Denoised,
            2,
        ))
    },
)
.diffusers("DPMSolverSinglestepScheduler")
.order(2);

pub(super) const DENOISED_3: SamplerRow = SamplerRow::new::<DpmSolverSinglestep>(
    "dpmpp-3s",
    "DPM++ 3S",
    "https://arxiv.org/abs/2211.01095",
    Ladder::karras(),
    |config| {
        Box::new(DpmSolverSinglestep::from_config(
            config,
            DpmAlgorithm::Denoised,
            3,
        ))
    },
)
.diffusers("DPMSolverSinglestepScheduler, solver_order 3")
.order(3);

impl Sampler for DpmSolverSinglestep {
    fn conventions(&self) -> Conventions {
        conventions(self.end)
    }

    fn needs(&self) -> Needs {
        self.clip.needs()
    }

    fn adds_noise(&self) -> bool {
        self.algorithm.is_stochastic()
    }

    fn sample(&self, x: &mut [f32], rungs: &Rungs, run: &mut dyn Run) -> ControlFlow<()> {
        let len = x.len();
        let room = || vec![0.0_f32; len];
        let mut denoised = room();
        // x and the denoised sample on the group's first rung.
        let (mut start, mut first) = (room(), room());
        // The differences of the newest value and of the one before from the value on the first
        // rung, and the distance of x from the straight line that starts there.
        let (mut newest, mut before, mut bend) = (room(), room(), room());
        let mut noise = self.algorithm.noise_buffer(len);
        let mut scratch = self.clip.scratch(len);
        let (sigmas, steps) = (rungs.sigmas(), rungs.steps_of_whole());
        // The first order of this algorithm also leads off the line.
        let leads_off = self.algorithm == DpmAlgorithm::SdeNoise;
        for at in rungs.iter() {
            run.denoise(x, at, &mut denoised)?;
            self.clip.apply(&mut denoised, &mut scratch);
            let (index, next) = (at.index, sigmas[at.index + 1]);
            let order = self.order_at(rungs.index_in_whole(index), steps, next == 0.0);
            // A part of a run may begin within a group.
            let order = order.min(index + 1);
            if order == 1 {
                start.copy_from_slice(x);
                first.copy_from_slice(&denoised);
                if leads_off {
                    bend.fill(0.0);
                }
            } else {
                std::mem::swap(&mut newest, &mut before);
                if self.algorithm.is_on_noise() {
                    // The difference of two noises would have few correct digits.
                    noise_in(&first, &denoised, at.sigma, &mut newest);
                    if order > 2 || leads_off {
                        add(&mut newest, 1.0 / f64::from(at.sigma), &bend);
                    }
                } else {
                    noise_in(&denoised, &first, 1.0, &mut newest);
                }
            }
            let from = sigmas[index + 1 - order];
            if next == 0.0 {
                x.copy_from_slice(&denoised);
            } else if next < from {
                let step = self.algorithm.step(from.into(), next.into());
                let way = |index: usize| (f64::from(from) / f64::from(sigmas[index])).ln();
                let weights = self.weights(order, &step, way(index), way(index.saturating_sub(1)));
                if order == 1 {
                    slide(x, &first, step.ratio);
                } else {
                    let line = (&start[..], &first[..], step.ratio as f32);
                    let weights = weights.map(|weight| weight as f32);
                    from_start(x, &mut bend, line, weights, [&newest, &before]);
                }
                if step.up > 0.0 {
                    run.noise(from, next, &mut noise);
                    add(x, step.up, &noise);
                }
                if leads_off {
                    add(&mut bend, step.up, &noise);
                    let off = (step.ratio - f64::from(next) / f64::from(from)) as f32;
                    for ((bend, start), first) in bend.iter_mut().zip(&start).zip(&first) {
                        *bend += off * (start - first);
                    }
                }
            }
            run.step(Step::new(rungs, index, x, &denoised))?;
        }
        ControlFlow::Continue(())
    }
}

/// Writes the point to which the step leads, and its distance from the line from `start` through
/// `first`. As in steps.rs, the loop is compiled for wide registers too.
#[multiversion(targets("x86_64+avx2"))]
fn from_start(
    x: &mut [f32],
    bend: &mut [f32],
    (start, first, ratio): (&[f32], &[f32], f32),
    [a, b]: [f32; 2],
    [newest, before]: [&[f32]; 2],
) {
    let line = start.iter().zip(first);
    let values = newest.iter().zip(before);
    for (((x, bend), (start, first)), (newest, before)) in
        x.iter_mut().zip(bend).zip(line).zip(values)
    {
        *bend = a * newest + b * before;
        *x = first + ratio * (start - first) + *bend;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The expected lists come from diffusers' `get_order_list`.
    #[test]
    fn orders_come_in_groups() {
        let orders = |order, steps: usize, lower_order_final, ends_at_zero: bool| -> Vec<usize> {
            let sampler = DpmSolverSinglestep {
                order,
                lower_order_final,
                ..DpmSolverSinglestep::default()
            };
            let last = |index: usize| ends_at_zero && index + 1 == steps;
            let order = |index| sampler.order_at(index, steps, last(index));
            (0..steps).map(order).collect()
        };
        assert_eq!(orders(3, 6, false, false), [1, 2, 3, 1, 2, 3]);
        assert_eq!(orders(3, 6, true, false), [1, 2, 3, 1, 2, 1]);
        assert_eq!(orders(3, 5, true, false), [1, 2, 3, 1, 2]);
        assert_eq!(orders(3, 5, false, true), [1, 2, 3, 1, 1]);
        assert_eq!(orders(3, 4, true, true), [1, 2, 3, 1]);
        assert_eq!(orders(2, 4, true, false), [1, 2, 1, 1]);
        assert_eq!(orders(2, 3, false, true), [1, 2, 1]);
    }
}
