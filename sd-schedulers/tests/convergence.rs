//! Orders of accuracy, which need no reference.
//!
//! On unit-Gaussian data, the exact denoiser is D(x; sigma) = x / (1 + sigma²), and the
//! probability-flow ODE takes x to x sqrt(1 + sigma'²) / sqrt(1 + sigma²). Halving the length of
//! the steps must divide the error by at least 2 to the power of the order minus 0.15.
//!
//! The order is measured over the last doubling of 20, 40, 80, 160 steps whose finer error is above
//! 1e-5. The rungs are Karras rungs from the largest sigma of Stable Diffusion to the smallest,
//! without the step to 0.
//!
//! Multistep samplers start themselves at first order, so no more than order 2 is required of them.
//! From exact first steps, their full order is required. Where the documentation says that a
//! sampler has no higher order, the measured power must be less than 0.6 above it.

#![allow(clippy::unwrap_used)] // Clippy exempts only functions with #[test].

use std::ops::ControlFlow;
use std::sync::Arc;

use sd_schedulers::{
    Ladder, NoiseSchedule, Run, Rung, Sampler, SchedulerConfig, Step,
    ladders::FinalSigma,
    samplers::{
        Ddim, DdimTarget, Ddpm, Deis, DeisNodes, Dpm2, Dpm2Ancestral, DpmAdaptive, DpmAlgorithm,
        DpmFast, DpmForm, DpmPlusPlus2M, DpmPlusPlus2MSde, DpmPlusPlus2SAncestral,
        DpmPlusPlus3MSde, DpmPlusPlusSde, DpmSolver, DpmSolverSinglestep, ErSde, ErSdeScale, Euler,
        EulerAncestral, EulerCfgPp, GradientEstimation, Heun, Ipndm, IpndmWeights, Lms, Pndm,
        PndmMean, ResMultistep, Restart, SaOutput, SaSolver, SdeSolver, TABLE, Tcd, ThirdOrder,
        UniPc, UniPcVariant,
    },
};

const COUNTS: [usize; 4] = [20, 40, 80, 160];
/// The smallest error that is judged. The rounding error is below a hundredth of it.
const FINEST: f64 = 1e-5;
const SLACK: f64 = 0.15;
/// The excess over the order that is allowed for a sampler with no higher order.
const EXCESS: f64 = 0.6;

/// Returns the length of an exact path at a sigma.
fn length(sigma: f32) -> f64 {
    f64::from(sigma).hypot(1.0)
}

fn schedule() -> Arc<NoiseSchedule> {
    Arc::new(NoiseSchedule::new(&SchedulerConfig::default()).unwrap())
}

/// Returns the sigmas of `steps` steps, the last of which ends at the smallest sigma.
fn karras(schedule: &NoiseSchedule, steps: usize, rho: f64) -> Vec<f32> {
    let [max, min] = [schedule.sigma_max(), schedule.sigma_min()];
    let root = |sigma: f32| f64::from(sigma).powf(1.0 / rho);
    let mut sigmas: Vec<f32> = (0..=steps)
        .map(|i| {
            let part = i as f64 / steps as f64;
            (root(max) + part * (root(min) - root(max))).powf(rho) as f32
        })
        .collect();
    (sigmas[0], sigmas[steps]) = (max, min);
    sigmas
}

/// A run on the Gaussian that puts the first steps on the exact path.
struct Exact {
    start: Vec<f32>,
    from: f32,
    /// The number of exact steps.
    given: usize,
    calls: usize,
    draws: usize,
    /// The sigma that the last step reached.
    reached: f32,
}

impl Exact {
    fn new(start: &[f32], from: f32, given: usize) -> Self {
        Self {
            start: start.to_vec(),
            from,
            given,
            calls: 0,
            draws: 0,
            reached: from,
        }
    }
}

impl Run for Exact {
    fn denoise(&mut self, x: &[f32], at: Rung, denoised: &mut [f32]) -> ControlFlow<()> {
        self.calls += 1;
        let variance = 1.0 + f64::from(at.sigma).powi(2);
        for (denoised, x) in denoised.iter_mut().zip(x) {
            *denoised = (f64::from(*x) / variance) as f32;
        }
        ControlFlow::Continue(())
    }

    /// Fills `out` with a new direction for each draw, at right angles to all others, so that the
    /// square of x is its variance.
    fn noise(&mut self, _: f32, _: f32, out: &mut [f32]) {
        self.draws += 1;
        out.fill(0.0);
        out[self.draws] = 1.0;
    }

    fn step(&mut self, step: Step<'_>) -> ControlFlow<()> {
        self.reached = step.next;
        if step.index < self.given {
            let ratio = length(step.next) / length(self.from);
            for (x, start) in step.x.iter_mut().zip(&self.start) {
                *x = (f64::from(*start) * ratio) as f32;
            }
        }
        ControlFlow::Continue(())
    }
}

/// Returns the error at the end relative to the exact path, as the mean over many paths, in which
/// roundings cancel.
fn path_error(sampler: &dyn Sampler, steps: usize, rho: f64, given: usize) -> f64 {
    const PATHS: usize = 256;
    let schedule = schedule();
    let sigmas = karras(&schedule, steps, rho);
    let from = sigmas[0];
    let rungs = Ladder::sigmas(sigmas)
        .rungs(&schedule, steps, &sampler.conventions())
        .unwrap();
    let start: Vec<f32> = (0..PATHS)
        .map(|i| ((1.0 + i as f64 / PATHS as f64) * length(from)) as f32)
        .collect();
    let mut run = Exact::new(&start, from, given);
    let mut x = start.clone();
    assert!(sampler.sample(&mut x, &rungs, &mut run).is_continue());
    assert_eq!(run.draws, 0, "{sampler:?} adds noise");
    assert!((run.reached / schedule.sigma_min() - 1.0).abs() < 1e-5);
    let ratio = length(run.reached) / length(from);
    let errors = x
        .iter()
        .zip(&start)
        .map(|(&x, &start)| f64::from(x) / (f64::from(start) * ratio) - 1.0);
    (errors.sum::<f64>() / PATHS as f64).abs()
}

/// Returns the exact error of the deviation at the end, without random draws: see [`Exact::noise`].
fn deviation_error(sampler: &dyn Sampler, steps: usize) -> f64 {
    let schedule = schedule();
    let sigmas = karras(&schedule, steps, 7.0);
    let from = sigmas[0];
    let rungs = Ladder::sigmas(sigmas)
        .rungs(&schedule, steps, &sampler.conventions())
        .unwrap();
    // There are at most two draws per step.
    let mut x = vec![0.0; 2 * steps + 1];
    x[0] = length(from) as f32;
    let mut run = Exact::new(&x, from, 0);
    assert!(sampler.sample(&mut x, &rungs, &mut run).is_continue());
    assert!(run.draws > 0, "{sampler:?} adds no noise");
    let variance: f64 = x.iter().map(|&x| f64::from(x).powi(2)).sum();
    (variance.sqrt() / length(run.reached) - 1.0).abs()
}

/// Returns the order over the last doubling whose finer error can be judged.
fn order(errors: &[f64]) -> f64 {
    let mut doublings = errors.windows(2).map(|pair| (pair[0], pair[1]));
    let judged = doublings.rfind(|&(_, fine)| fine > FINEST);
    let (coarse, fine) = judged.unwrap_or_else(|| panic!("{errors:?}: all below {FINEST:e}"));
    (coarse / fine).log2()
}

/// A sampler and the order that it claims.
struct Case {
    name: &'static str,
    sampler: Box<dyn Sampler>,
    order: usize,
    /// The number of exact first steps that a multistep method needs for its order, or `None` for a
    /// single-step method.
    given: Option<usize>,
    counts: [usize; 4],
    rho: f64,
    /// Whether the sampler is documented to have no higher order.
    no_faster: bool,
}

impl Case {
    fn no_faster(self) -> Self {
        Self {
            no_faster: true,
            ..self
        }
    }

    fn on(self, counts: [usize; 4], rho: f64) -> Self {
        Self {
            counts,
            rho,
            ..self
        }
    }
}

/// Makes the case of a sampler that uses no earlier steps.
fn one(name: &'static str, sampler: impl Sampler, order: usize) -> Case {
    Case {
        name,
        sampler: Box::new(sampler),
        order,
        given: None,
        counts: COUNTS,
        rho: 7.0,
        no_faster: false,
    }
}

/// Makes the case of a sampler that starts itself at first order, and reaches `order` from `given`
/// exact steps.
fn multi(name: &'static str, sampler: impl Sampler, order: usize, given: usize) -> Case {
    Case {
        given: Some(given),
        ..one(name, sampler, order)
    }
}

/// Returns the cases without noise. The first case of a name is the table's row, or the row without
/// its noise and its lower last orders.
fn paths() -> Vec<Case> {
    let dpm_solver = |algorithm, order| DpmSolver {
        algorithm,
        order,
        lower_order_final: false,
        end: FinalSigma::SigmaMin,
        ..DpmSolver::default()
    };
    let heun = |algorithm| DpmSolver {
        form: DpmForm::Heun,
        ..dpm_solver(algorithm, 2)
    };
    let exact = |algorithm| DpmSolver {
        third_order: ThirdOrder::Exact,
        ..dpm_solver(algorithm, 3)
    };
    let singlestep = |algorithm, order| DpmSolverSinglestep {
        algorithm,
        order,
        end: FinalSigma::SigmaMin,
        ..DpmSolverSinglestep::default()
    };
    let deis = |order, nodes| Deis {
        order,
        nodes,
        lower_order_final: false,
        ..Deis::default()
    };
    let unipc = |order, variant| UniPc {
        order,
        variant,
        lower_order_final: false,
        end: FinalSigma::SigmaMin,
        ..UniPc::default()
    };
    let predictor = |order| UniPc {
        uncorrected: UniPc::NEVER_CORRECTED,
        ..unipc(order, UniPcVariant::Bh2)
    };
    let on_noise = |order| UniPc {
        predict_x0: false,
        ..unipc(order, UniPcVariant::Bh2)
    };
    let sa = |predictor_order, corrector_order| SaSolver {
        predictor_order,
        corrector_order,
        tau: 0.0,
        lower_order_final: false,
        ..SaSolver::default()
    };
    let er_sde = |order| ErSde {
        order,
        scale: ErSdeScale::Ode,
        points: None,
        ..ErSde::default()
    };
    let ipndm = |weights| Ipndm {
        weights,
        ..Ipndm::default()
    };
    let pndm = |skip_prk_steps, mean| Pndm {
        skip_prk_steps,
        mean,
        ..Pndm::default()
    };
    let two_m = |solver| DpmPlusPlus2MSde {
        eta: 0.0,
        solver,
        ..DpmPlusPlus2MSde::default()
    };
    // These counts split into groups of three rungs with none left over.
    let by_three = [18, 36, 72, 144];
    use DpmAlgorithm::{Denoised, Noise};
    use UniPcVariant::{Bh1, Bh2};
    vec![
        one("euler", Euler::default(), 1),
        one("heun", Heun::default(), 2),
        one("dpm2", Dpm2::default(), 2),
        // With rho 7, order 4 is reached slowly: 3.75 from 40 to 80, and the next error is too
        // small. With rho 3 and these counts, it is 3.87.
        multi("lms", Lms { order: 4 }, 4, 3).on([23, 46, 92, 184], 3.0),
        multi("lms", Lms { order: 1 }, 1, 0),
        multi("lms", Lms { order: 2 }, 2, 1),
        multi("lms", Lms { order: 3 }, 3, 2),
        one("ddim", Ddim::default(), 1),
        one("pndm", pndm(false, PndmMean::Epsilon), 2),
        one("plms", pndm(true, PndmMean::Epsilon), 2),
        one("plms", pndm(true, PndmMean::V), 1).no_faster(),
        multi("ipndm", ipndm(IpndmWeights::Even), 2, 3).no_faster(),
        // Its slips leave it at 1.2 to 1.8 in counts up to 480, and the order settles slowly.
        multi("ipndm-v", ipndm(IpndmWeights::VariablePublished), 1, 3).no_faster(),
        multi("ipndm-v", ipndm(IpndmWeights::Variable), 4, 3).on([23, 46, 92, 184], 3.0),
        multi("deis", deis(2, DeisNodes::LogSigma), 2, 1),
        multi("deis", deis(1, DeisNodes::LogSigma), 1, 0),
        multi("deis", deis(3, DeisNodes::LogSigma), 3, 2),
        multi("deis-tab", deis(3, DeisNodes::Time), 3, 2),
        multi("dpm-solver-1m", dpm_solver(Noise, 1), 1, 0),
        multi("dpm-solver-2m", dpm_solver(Noise, 2), 2, 1),
        multi("dpm-solver-2m", heun(Noise), 2, 1),
        // From exact steps, the order is 1.85 from 80 to 160, and 1.93 in the next doubling.
        multi("dpm-solver-3m", dpm_solver(Noise, 3), 2, 2)
            .on([40, 80, 160, 320], 7.0)
            .no_faster(),
        multi("dpm-solver-3m", exact(Noise), 3, 2),
        multi("dpmpp-2m", DpmPlusPlus2M, 2, 1),
        multi("dpmpp-2m", dpm_solver(Denoised, 2), 2, 1),
        multi("dpmpp-2m", heun(Denoised), 2, 1),
        multi("dpmpp-3m", dpm_solver(Denoised, 3), 2, 2).no_faster(),
        multi("dpmpp-3m", exact(Denoised), 3, 2),
        one("dpm-solver-2s", singlestep(Noise, 2), 2),
        one("dpm-solver-3s", singlestep(Noise, 3), 3).on(by_three, 7.0),
        one("dpmpp-2s", singlestep(Denoised, 2), 2),
        one("dpmpp-3s", singlestep(Denoised, 3), 3).on(by_three, 7.0),
        // It makes one step per three calls, and the last calls are for a step of second order: 7,
        // 14, 28, 56 steps. At other counts, the last step has another order, whose error has
        // another size.
        one("dpm-fast", DpmFast::default(), 3).on([20, 41, 83, 167], 7.0),
        multi("unipc", unipc(2, Bh2), 3, 2),
        multi("unipc", unipc(1, Bh2), 2, 1),
        multi("unipc", unipc(3, Bh2), 4, 3),
        multi("unipc", unipc(1, Bh1), 2, 1),
        multi("unipc", unipc(2, Bh1), 3, 2),
        multi("unipc", unipc(3, Bh1), 4, 3),
        multi("unipc", predictor(2), 2, 1),
        multi("unipc", predictor(3), 3, 2),
        // With order 3 on noise, the leading error nearly vanishes here. From 80 steps on, it is
        // below what can be judged.
        multi("unipc", on_noise(1), 2, 1),
        multi("unipc", on_noise(2), 3, 2),
        multi("sa-solver", sa(2, 2), 2, 2),
        multi("sa-solver", sa(1, 0), 1, 0),
        multi("sa-solver", sa(2, 0), 2, 1),
        multi("sa-solver", sa(1, 2), 2, 1),
        multi("sa-solver", sa(3, 0), 3, 2),
        multi("sa-solver", sa(3, 4), 4, 3),
        multi(
            "sa-solver",
            SaSolver {
                output: SaOutput::Noise,
                ..sa(2, 2)
            },
            2,
            2,
        ),
        multi(
            "sa-solver-pece",
            SaSolver {
                evaluate_again: true,
                ..sa(2, 2)
            },
            2,
            2,
        ),
        multi("er-sde", er_sde(1), 1, 0),
        multi("er-sde", er_sde(2), 2, 1),
        // Its slope is of first order, and its curvature does not correct that.
        multi("er-sde", er_sde(3), 2, 2).no_faster(),
        multi("res-2m", ResMultistep, 2, 1),
        multi("gradient-estimation", GradientEstimation::default(), 1, 1),
        multi(
            "gradient-estimation",
            GradientEstimation {
                gamma: 1.5,
                ..GradientEstimation::default()
            },
            2,
            1,
        ),
        one(
            "restart",
            Restart {
                segments: Some(Vec::new()),
                ..Restart::default()
            },
            2,
        ),
        one("euler-cfg-pp", EulerCfgPp::default(), 1),
        one(
            "ddim-cfg-pp",
            Ddim {
                cfg_pp: true,
                ..Ddim::default()
            },
            1,
        ),
        one("tcd", Tcd { gamma: 0.0 }, 1),
        one(
            "euler-a",
            EulerAncestral {
                eta: 0.0,
                ..EulerAncestral::default()
            },
            1,
        ),
        one(
            "dpm2-a",
            Dpm2Ancestral {
                eta: 0.0,
                ..Dpm2Ancestral::default()
            },
            2,
        ),
        one(
            "dpmpp-2s-a",
            DpmPlusPlus2SAncestral {
                eta: 0.0,
                ..DpmPlusPlus2SAncestral::default()
            },
            2,
        ),
        one(
            "dpmpp-sde",
            DpmPlusPlusSde {
                eta: 0.0,
                ..DpmPlusPlusSde::default()
            },
            2,
        ),
        multi("dpmpp-2m-sde", two_m(SdeSolver::Midpoint), 2, 1),
        multi("dpmpp-2m-sde-heun", two_m(SdeSolver::Heun), 2, 1),
        // Its third-order term is half of what would make it third order, as in DPM++ 3M.
        multi(
            "dpmpp-3m-sde",
            DpmPlusPlus3MSde {
                eta: 0.0,
                ..DpmPlusPlus3MSde::default()
            },
            2,
            2,
        )
        .no_faster(),
    ]
}

/// Returns the cases with noise, which start themselves and are judged by the order of the
/// deviation.
///
/// Every draw is independent. On a Brownian path, two draws per step of DPM++ SDE are not.
fn deviations() -> Vec<(&'static str, Box<dyn Sampler>, usize)> {
    fn case(
        name: &'static str,
        sampler: impl Sampler,
        order: usize,
    ) -> (&'static str, Box<dyn Sampler>, usize) {
        (name, Box::new(sampler), order)
    }
    let multistep = |algorithm, order| DpmSolver {
        algorithm,
        order,
        lower_order_final: false,
        end: FinalSigma::SigmaMin,
        ..DpmSolver::default()
    };
    let everywhere = SaSolver {
        interval: [0.0, 1000.0],
        lower_order_final: false,
        ..SaSolver::default()
    };
    let exact = |order| ErSde {
        order,
        points: None,
        min_variance: 0.0,
        ..ErSde::default()
    };
    use DpmAlgorithm::{SdeDenoised, SdeNoise};
    vec![
        case("euler-a", EulerAncestral::default(), 1),
        case("dpm2-a", Dpm2Ancestral::default(), 2),
        case("dpmpp-2s-a", DpmPlusPlus2SAncestral::default(), 2),
        case("dpmpp-sde", DpmPlusPlusSde::default(), 1),
        case("dpmpp-2m-sde", DpmPlusPlus2MSde::default(), 2),
        case(
            "dpmpp-2m-sde-heun",
            DpmPlusPlus2MSde {
                solver: SdeSolver::Heun,
                ..DpmPlusPlus2MSde::default()
            },
            2,
        ),
        case("dpmpp-3m-sde", DpmPlusPlus3MSde::default(), 2),
        case("dpmpp-2m", multistep(SdeDenoised, 1), 1),
        case("dpmpp-2m", multistep(SdeDenoised, 2), 2),
        // This is the published formula with diffusers' wrong sign.
        case("dpmpp-2m", multistep(SdeDenoised, 3), 1),
        case(
            "dpmpp-2m",
            DpmSolver {
                third_order: ThirdOrder::Exact,
                ..multistep(SdeDenoised, 3)
            },
            2,
        ),
        case("dpm-solver-2m", multistep(SdeNoise, 1), 1),
        case("dpm-solver-2m", multistep(SdeNoise, 2), 2),
        case("sa-solver", everywhere, 2),
        case(
            "sa-solver-pece",
            SaSolver {
                evaluate_again: true,
                ..everywhere
            },
            2,
        ),
        case("er-sde", ErSde::default(), 1),
        case("er-sde", exact(1), 1),
        case("er-sde", exact(2), 2),
        case("er-sde", exact(3), 2),
        case("ddpm", Ddpm::default(), 1),
        case(
            "ddim",
            Ddim {
                eta: 1.0,
                target: DdimTarget::NextRung,
                ..Ddim::default()
            },
            1,
        ),
        case(
            "euler-a-cfg-pp",
            EulerCfgPp {
                eta: 1.0,
                ..EulerCfgPp::default()
            },
            1,
        ),
    ]
}

#[test]
fn every_sampler_is_of_the_order_that_it_claims() {
    let mut failures = Vec::new();
    let mut judge = |what: String, errors: &[f64], least: f64, most: f64| {
        let found = order(errors);
        let errors: Vec<_> = errors.iter().map(|error| format!("{error:.1e}")).collect();
        let line = format!("{found:.2} of {least}: {what}: {}", errors.join(" "));
        println!("{line}");
        if !(least - SLACK..most + EXCESS).contains(&found) {
            failures.push(line);
        }
    };
    for case in paths() {
        let errors = |given| -> Vec<f64> {
            let error = |steps| path_error(&*case.sampler, steps, case.rho, given);
            case.counts.map(error).to_vec()
        };
        let what = format!("{} {:?}", case.name, case.sampler);
        let order = case.order as f64;
        let most = if case.no_faster { order } else { f64::INFINITY };
        match case.given {
            None => judge(what, &errors(0), order, most),
            Some(given) => {
                judge(what.clone(), &errors(0), order.min(2.0), f64::INFINITY);
                let what = format!("{what}, {given} steps given");
                judge(what, &errors(given), order, most);
            }
        }
    }
    for (name, sampler, order) in deviations() {
        // The errors of noisy samplers settle later.
        let errors = [40, 80, 160, 320].map(|steps| deviation_error(&*sampler, steps));
        judge(
            format!("{name} {sampler:?}, deviation"),
            &errors,
            order as f64,
            f64::INFINITY,
        );
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

/// The table must claim no more than these tests show, and the tests must leave out no row.
#[test]
fn every_row_has_its_order_shown() {
    let paths = paths();
    let deviations = deviations();
    for row in TABLE {
        let shown = match row.name {
            // LCM is distilled for its few steps, and has no order in other counts.
            "lcm" => continue,
            "dpm-adaptive" => 3,
            name if row.stochastic && name != "tcd" && name != "restart" => {
                let of_row = deviations.iter().find(|(shown, ..)| *shown == name);
                of_row.map_or(0, |(.., order)| *order)
            }
            name => {
                let of_row = paths.iter().find(|case| case.name == name);
                of_row.map_or(0, |case| case.order)
            }
        };
        assert!(
            row.order >= 1 && shown >= row.order,
            "{}: {} in the table, {shown} shown",
            row.name,
            row.order
        );
    }
}

/// The sampler chooses its own steps. With smaller tolerances, the error must fall by the order in
/// the number of calls.
#[test]
fn dpm_adaptive_is_of_its_order_in_the_number_of_calls() {
    let schedule = schedule();
    for (order, least) in [(2, 2.0), (3, 3.0)] {
        let run = |tighter: f32| {
            let sampler = DpmAdaptive {
                order,
                rtol: 0.05 / tighter,
                atol: 0.0078 / tighter,
                ..DpmAdaptive::default()
            };
            let sigmas = karras(&schedule, 20, 7.0);
            let from = sigmas[0];
            let rungs = Ladder::sigmas(sigmas)
                .rungs(&schedule, 20, &sampler.conventions())
                .unwrap();
            let mut x = vec![length(from) as f32; 8];
            let mut run = Exact::new(&x, from, 0);
            assert!(sampler.sample(&mut x, &rungs, &mut run).is_continue());
            let error = (f64::from(x[0]) / length(run.reached) - 1.0).abs();
            (run.calls as f64, error)
        };
        let (coarse, fine) = (run(16.0), run(1024.0));
        let found = (coarse.1 / fine.1).ln() / (fine.0 / coarse.0).ln();
        println!("order {order}: {coarse:?} {fine:?}: {found:.2}");
        assert!(found >= least - SLACK, "{order}: {found}");
    }
}
