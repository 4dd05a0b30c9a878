use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use super::history::{History, last_steps, newton};
use super::row::SamplerRow;
use super::steps::{add, noise_in};
use crate::{
    Ladder, Run, Rungs, Sampler, SchedulerConfig, Step,
    ladders::{Conventions, FinalSigma, FirstX, PointCount, TimestepRounding},
    samplers::{DpmAlgorithm, Needs},
    schedule::ClipSample,
};

/// DPM-Solver multistep: DPM-Solver++(2M), algorithm 2 of <https://arxiv.org/abs/2211.01095>, and
/// its variants. It calls the model once per step.
///
/// The variants have other orders, add noise (section 5 of that paper), or use the noise in place
/// of the denoised sample (<https://arxiv.org/abs/2206.00927>). Reference implementation:
/// diffusers' `DPMSolverMultistepScheduler`.
///
/// With lambda = -ln sigma, h the step in lambda, and D(lambda + u) the polynomial through the last
/// denoised samples, a step is x = e^-h x + ∫ e^(u-h) D(lambda + u) du for u from 0 to h. The
/// order rises from 1. A step to sigma 0 is of first order, so it ends at D.
///
/// Order 1 is DDIM. Order 2 without noise is [`DpmPlusPlus2M`](crate::samplers::DpmPlusPlus2M).
/// Order 3 as published converges no faster than order 2: see [`ThirdOrder`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DpmSolver {
    /// The quantity that is integrated.
    ///
    /// Default: [`DpmAlgorithm::Denoised`].
    pub algorithm: DpmAlgorithm,
    /// The number of values that the polynomial goes through, `1..=3`: `solver_order` in diffusers.
    /// A value outside counts as the nearer end.
    ///
    /// Default: 2.
    pub order: usize,
    /// How order 2 is integrated: `solver_type` in diffusers.
    ///
    /// Default: [`DpmForm::Midpoint`].
    pub form: DpmForm,
    /// Whether the last two steps of a run with fewer than 15 steps are at most of orders 2 and 1.
    ///
    /// Default: true.
    pub lower_order_final: bool,
    /// Whether the last step is of order 1.
    ///
    /// Default: false.
    pub euler_at_final: bool,
    /// How order 3 is integrated.
    ///
    /// Default: [`ThirdOrder::Published`].
    pub third_order: ThirdOrder,
    /// The sigma at which a run ends: `final_sigmas_type` in diffusers.
    ///
    /// Default: [`FinalSigma::Zero`], which diffusers refuses for the algorithms on noise.
    pub end: FinalSigma,
    /// The clipping of the denoised sample, for models of pixels.
    ///
    /// Default: [`ClipSample::None`].
    pub clip: ClipSample,
}

/// How a step of order 2 weighs the change of the value over the step.
///
/// Default: [`DpmForm::Midpoint`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DpmForm {
    /// As if the whole change happened half way: `midpoint` in diffusers.
    #[default]
    Midpoint,
    /// By the exact integral of the straight line: `heun` in diffusers.
    Heun,
}

/// How a step of order 3 weighs the curvature of the value over the step.
///
/// Default: [`ThirdOrder::Published`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ThirdOrder {
    /// Half of the curvature, as in the authors' code and in diffusers, which leaves the multistep
    /// method of order 2.
    ///
    /// diffusers' `sde-dpmsolver++` also has the wrong sign in it, which is h² too little.
    #[default]
    Published,
    /// The exact integral of the polynomial, which makes the method of order 3.
    Exact,
}

impl Default for DpmSolver {
    fn default() -> Self {
        Self {
            algorithm: DpmAlgorithm::Denoised,
            order: 2,
            form: DpmForm::Midpoint,
            lower_order_final: true,
            euler_at_final: false,
            third_order: ThirdOrder::Published,
            end: FinalSigma::Zero,
            clip: ClipSample::None,
        }
    }
}

impl DpmSolver {
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

pub(super) const NOISE_1: SamplerRow = SamplerRow::new::<DpmSolver>(
    "dpm-solver-1m",
    "DPM-Solver 1M",
    "https://arxiv.org/abs/2206.00927",
    Ladder::karras(),
    |config| Box::new(DpmSolver::from_config(config, DpmAlgorithm::Noise, 1)),
)
.diffusers("DPMSolverMultistepScheduler, algorithm_type dpmsolver, solver_order 1")
.ends("sigma_min");

pub(super) const NOISE_2: SamplerRow = SamplerRow::new::<DpmSolver>(
    "dpm-solver-2m",
    "DPM-Solver 2M",
    "https://arxiv.org/abs/2206.00927",
    Ladder::karras(),
    |config| Box::new(DpmSolver::from_config(config, DpmAlgorithm::Noise, 2)),
)
.diffusers("DPMSolverMultistepScheduler, algorithm_type dpmsolver")
.order(2)
.ends("sigma_min");

pub(super) const NOISE_3: SamplerRow = SamplerRow::new::<DpmSolver>(
    "dpm-solver-3m",
    "DPM-Solver 3M",
    "https://arxiv.org/abs/2206.00927",
    Ladder::karras(),
    |config| Box::new(DpmSolver::from_config(config, DpmAlgorithm::Noise, 3)),
)
.diffusers("DPMSolverMultistepScheduler, algorithm_type dpmsolver, solver_order 3")
.order(2)
.ends("sigma_min");

pub(super) const DENOISED_3: SamplerRow = SamplerRow::new::<DpmSolver>(
    "dpmpp-3m",
    "DPM++ 3M",
    "https://arxiv.org/abs/2211.01095",
    Ladder::karras(),
    |config| Box::new(DpmSolver::from_config(config, DpmAlgorithm::Denoised, 3)),
)
.diffusers("DPMSolverMultistepScheduler, solver_order 3")
.order(2);

impl Sampler for DpmSolver {
    fn conventions(&self) -> Conventions {
        Conventions {
            timestep_rounding: TimestepRounding::Whole,
            ..conventions(self.end)
        }
    }

    fn needs(&self) -> Needs {
        self.clip.needs()
    }

    fn adds_noise(&self) -> bool {
        self.algorithm.is_stochastic()
    }

    fn sample(&self, x: &mut [f32], rungs: &Rungs, run: &mut dyn Run) -> ControlFlow<()> {
        let most = self.order.clamp(1, 3);
        let (mut denoised, mut values) = (vec![0.0; x.len()], History::new(most, x.len()));
        let mut noise = self.algorithm.noise_buffer(x.len());
        let mut scratch = self.clip.scratch(x.len());
        for at in rungs.iter() {
            run.denoise(x, at, &mut denoised)?;
            self.clip.apply(&mut denoised, &mut scratch);
            if self.algorithm.is_on_noise() {
                noise_in(x, &denoised, at.sigma, values.push());
            } else {
                values.push().copy_from_slice(&denoised);
            }
            let (index, next) = (at.index, rungs.sigmas()[at.index + 1]);
            if next == 0.0 {
                x.copy_from_slice(&denoised);
            } else if next < at.sigma {
                let order = if self.euler_at_final && rungs.steps_left(index) == 1 {
                    1
                } else {
                    order_at(most, rungs, index, self.lower_order_final)
                };
                let step = self.algorithm.step(at.sigma.into(), next.into());
                let [constant, mut line, mut square] = step.integrals;
                match (order, self.form, self.third_order, self.algorithm) {
                    (2, DpmForm::Midpoint, ..) => line = constant * step.h / 2.0,
                    (3, _, ThirdOrder::Published, DpmAlgorithm::SdeDenoised) => {
                        square = square / 2.0 - step.h * step.h;
                    }
                    (3, _, ThirdOrder::Published, _) => square /= 2.0,
                    _ => {}
                }
                let last = last_steps(rungs.sigmas(), index);
                values.step(
                    x,
                    &denoised,
                    step.ratio,
                    newton(order, [line, square], last),
                );
                if step.up > 0.0 {
                    run.noise(at.sigma, next, &mut noise);
                    add(x, step.up, &noise);
                }
            }
            run.step(Step::new(rungs, index, x, &denoised))?;
        }
        ControlFlow::Continue(())
    }
}

/// Returns the conventions of diffusers' DPM-Solver family.
pub(super) fn conventions(end: FinalSigma) -> Conventions {
    Conventions {
        counting: PointCount::NPlusOne,
        integer_timesteps: true,
        timestep_rounding: TimestepRounding::WholeOnCosineToo,
        first_x: FirstX::VariancePreserving,
        end,
        ..Conventions::default()
    }
}

/// Returns the order of the step from rung `index` of a multistep method. It rises at the start and
/// falls at the end of a short run.
pub(super) fn order_at(most: usize, rungs: &Rungs, index: usize, lower_order_final: bool) -> usize {
    let order = most.min(index + 1);
    if lower_order_final && rungs.steps_of_whole() < 15 {
        order.min(rungs.steps_left(index))
    } else {
        order
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{Ladder, NoiseSchedule, SchedulerConfig};

    #[test]
    fn orders_rise_and_fall() {
        let schedule = Arc::new(NoiseSchedule::new(&SchedulerConfig::default()).unwrap());
        let whole = |steps| {
            let rungs = Ladder::karras().rungs(&schedule, steps, &Conventions::default());
            rungs.unwrap()
        };
        let orders = |most, rungs: &Rungs, lower| -> Vec<usize> {
            let order = |index| order_at(most, rungs, index, lower);
            (0..rungs.steps()).map(order).collect()
        };
        assert_eq!(orders(3, &whole(5), true), [1, 2, 3, 2, 1]);
        assert_eq!(orders(3, &whole(2), true), [1, 1]);
        assert_eq!(orders(2, &whole(3), false), [1, 2, 2]);
        assert_eq!(orders(3, &whole(15), true)[13..], [3, 3]);
        // Only the last part falls, and only if the whole run is short.
        let part = |steps, first, end| {
            let part = whole(steps).ending_at(end).unwrap();
            part.starting_at(first).unwrap()
        };
        assert_eq!(orders(3, &part(8, 0, 5), true), [1, 2, 3, 3, 3]);
        assert_eq!(orders(3, &part(8, 3, 8), true), [1, 2, 3, 2, 1]);
        assert_eq!(orders(3, &part(20, 16, 20), true), [1, 2, 3, 3]);
    }
}
