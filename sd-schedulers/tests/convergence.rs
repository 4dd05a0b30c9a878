//! Checks that need no reference implementation.
//!
//! On unit-Gaussian data the exact denoiser is D(x; sigma) = x / (1 + sigma²), and the probability-flow ODE takes x to
//! x sqrt(1 + sigma'²) / sqrt(1 + sigma²): halving the steps' length has to divide the error by 2 for a first-order
//! sampler and by 4 for a second-order one.

#![allow(clippy::unwrap_used)] // Clippy takes only functions with #[test] for tests.

use std::ops::ControlFlow;
use std::sync::Arc;

use sd_schedulers::{
    Ddim, DpmPlusPlus2M, Euler, EulerAncestral, Heun, Ladder, NoiseSchedule, NoiseSource, Run,
    Rung, Rungs, Sampler, SchedulerConfig, Spacing, Step, TABLE, TorchRng, sample,
};

fn schedule() -> Arc<NoiseSchedule> {
    Arc::new(NoiseSchedule::new(&SchedulerConfig::default()).unwrap())
}

fn gaussian(x: &[f32], at: Rung, denoised: &mut [f32]) {
    for (denoised, x) in denoised.iter_mut().zip(x) {
        *denoised = x / (1.0 + at.sigma * at.sigma);
    }
}

/// Runs on the Gaussian and stops on the last rung: the step from there to sigma 0 is as long in any run.
struct ToLastRung(f64);

impl Run for ToLastRung {
    fn denoise(&mut self, x: &[f32], at: Rung, denoised: &mut [f32]) -> ControlFlow<()> {
        gaussian(x, at, denoised);
        ControlFlow::Continue(())
    }

    fn noise(&mut self, _: &mut [f32]) {
        unreachable!("these samplers are deterministic");
    }

    fn step(&mut self, step: Step<'_>) -> ControlFlow<()> {
        self.0 = step.x[0].into();
        if step.index + 2 == step.total {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }
}

/// The error on the last rung of a Karras ladder of `intervals` intervals, relative to the exact path.
fn error(sampler: &dyn Sampler, intervals: usize) -> f64 {
    let schedule = schedule();
    let rungs = Ladder::karras()
        .rungs(&schedule, intervals + 1, &Default::default())
        .unwrap();
    let exact = |sigma: f32| f64::from(sigma).hypot(1.0);
    let mut x = [exact(schedule.sigma_max()) as f32];
    let mut run = ToLastRung(0.0);
    assert!(sampler.sample(&mut x, &rungs, &mut run).is_break());
    let exact = exact(rungs.sigmas()[intervals]);
    (run.0 - exact).abs() / exact
}

/// The bands: the next order's term is still 5 to 10 % of the error at these steps; rounding, some 1e-6, is not seen.
#[test]
fn halving_the_steps_divides_the_error_by_two_to_the_order() {
    let samplers: [(&str, &dyn Sampler, std::ops::Range<f64>); 5] = [
        ("euler", &Euler, 1.8..2.2),
        ("euler-a", &EulerAncestral { eta: 0.0 }, 1.8..2.2),
        ("ddim", &Ddim::default(), 1.8..2.2),
        ("heun", &Heun::default(), 3.5..4.5),
        ("dpmpp-2m", &DpmPlusPlus2M, 3.5..4.5),
    ];
    for (row, (name, sampler, band)) in TABLE.iter().map(|row| {
        let found = samplers.iter().find(|(name, ..)| *name == row.name);
        (
            row,
            found.unwrap_or_else(|| panic!("{} has no convergence check", row.name)),
        )
    }) {
        assert!(band.contains(&2f64.powi(row.order as i32)), "{name}");
        for intervals in [40, 80] {
            let (coarse, fine) = (error(*sampler, intervals), error(*sampler, 2 * intervals));
            println!(
                "{name} {intervals}: {coarse:e} / {fine:e} = {}",
                coarse / fine
            );
            assert!(
                fine > 2e-6,
                "{name}: {fine:e} is too near to rounding to say anything"
            );
            assert!(
                band.contains(&(coarse / fine)),
                "{name}: {coarse:e} / {fine:e} = {}",
                coarse / fine
            );
        }
    }
}

/// Ancestral noise and DDIM's keep the distribution: unit-Gaussian data come out with variance 1, up to the first-order
/// error of 200 steps (a percent) and three standard deviations of the variance of 40,000 values (2.1 %).
#[test]
fn noise_keeps_the_variance() {
    let schedule = schedule();
    let samplers: [&dyn Sampler; 3] = [
        &EulerAncestral::default(),
        &EulerAncestral { eta: 0.5 },
        &Ddim {
            eta: 1.0,
            ..Default::default()
        },
    ];
    for sampler in samplers {
        let rungs = Ladder::leading()
            .rungs(&schedule, 200, &sampler.conventions())
            .unwrap();
        let mut noise = TorchRng::new(1);
        let mut x = vec![0.0; 40_000];
        noise.fill(&mut x);
        x.iter_mut().for_each(|x| *x *= rungs.initial_scale());
        sample(sampler, &mut x, &rungs, &mut noise, gaussian);
        let variance = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>() / x.len() as f64;
        println!("{sampler:?}: variance {variance}");
        assert!(
            (variance - 1.0).abs() < 0.031,
            "{sampler:?}: variance {variance}"
        );
    }
}

/// Every number of steps, on every ladder, for every sampler: a ladder that falls, and finite results.
#[test]
fn every_number_of_steps_works() {
    let spacings = [Spacing::Leading, Spacing::Linspace, Spacing::Trailing];
    let mut ladders: Vec<Ladder> = spacings.map(Ladder::Spaced).to_vec();
    ladders.extend(spacings.map(Ladder::karras_over));
    ladders.push(Ladder::karras());
    for trained in [2, 3, 10, 99, 1000] {
        for zero_snr in [false, true] {
            let config = SchedulerConfig {
                num_train_timesteps: trained,
                rescale_betas_zero_snr: zero_snr,
                ..Default::default()
            };
            let schedule = Arc::new(NoiseSchedule::new(&config).unwrap());
            for row in &TABLE {
                let sampler = (row.build)(&config);
                let ladders = ladders.iter().filter(|ladder| row.fits(ladder));
                for (ladder, steps) in
                    ladders.flat_map(|ladder| (1..=trained).map(move |steps| (ladder, steps)))
                {
                    let what = format!("{} {ladder:?} {steps} of {trained}", row.name);
                    let rungs = ladder.rungs(&schedule, steps, &sampler.conventions());
                    let rungs = rungs.unwrap_or_else(|error| panic!("{what}: {error}"));
                    assert_eq!(
                        (rungs.steps(), rungs.sigmas()[steps]),
                        (steps, 0.0),
                        "{what}"
                    );
                    assert!(rungs.sigmas().is_sorted_by(|a, b| a > b), "{what}");
                    assert!(rungs.timesteps().is_sorted_by(|a, b| a >= b), "{what}");
                    // Each run is as long as its steps, so not every one is run: the shortest and the longest are the odd ones.
                    if steps < 30 || steps % 97 == 0 || steps + 3 > trained {
                        finite(sampler.as_ref(), &rungs, &what);
                    }
                }
            }
        }
    }
}

fn finite(sampler: &dyn Sampler, rungs: &Rungs, what: &str) {
    let mut noise = TorchRng::new(0);
    let mut x = [1.0, -0.5].map(|x| x * rungs.initial_scale());
    sample(sampler, &mut x, rungs, &mut noise, gaussian);
    assert!(x.iter().all(|x| x.is_finite()), "{what}: {x:?}");
}

/// The options that the golden files do not set.
#[test]
fn eta_and_clip_change_the_outcome() {
    let run = |sampler: &dyn Sampler| {
        let rungs = Ladder::leading()
            .rungs(&schedule(), 6, &sampler.conventions())
            .unwrap();
        let mut x = [20.0, -7.0];
        sample(sampler, &mut x, &rungs, &mut TorchRng::new(0), gaussian);
        x
    };
    assert_ne!(
        run(&EulerAncestral { eta: 0.5 }),
        run(&EulerAncestral::default())
    );
    assert_ne!(run(&Heun { clip: Some(0.1) }), run(&Heun::default()));
    // A limit that makes no sense makes no panic either.
    run(&Heun { clip: Some(-1.0) });
    run(&Ddim {
        clip: Some(f32::NAN),
        eta: f32::NAN,
        ..Default::default()
    });
    run(&EulerAncestral { eta: f32::INFINITY });
}

/// Progress comes once per rung, and a break stops the run there and then.
#[test]
fn a_break_stops_the_run() {
    struct Watch {
        left: usize,
        steps: Vec<(usize, usize, f32)>,
    }
    impl Run for Watch {
        fn denoise(&mut self, x: &[f32], at: Rung, denoised: &mut [f32]) -> ControlFlow<()> {
            gaussian(x, at, denoised);
            self.left = self.left.checked_sub(1).map_or(usize::MAX, |left| left);
            if self.left == usize::MAX {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        }
        fn noise(&mut self, out: &mut [f32]) {
            out.fill(0.0);
        }
        fn step(&mut self, step: Step<'_>) -> ControlFlow<()> {
            self.steps.push((step.index, step.total, step.sigma));
            ControlFlow::Continue(())
        }
    }
    for row in &TABLE {
        let sampler = (row.build)(&SchedulerConfig::default());
        let rungs = Ladder::leading()
            .rungs(&schedule(), 5, &sampler.conventions())
            .unwrap();
        let all: Vec<_> = rungs.iter().map(|at| (at.index, 5, at.sigma)).collect();
        for allowed in 0..=sampler.calls(5) {
            let mut watch = Watch {
                left: allowed,
                steps: Vec::new(),
            };
            let end = sampler.sample(&mut [1.0; 4], &rungs, &mut watch);
            assert_eq!(
                end.is_continue(),
                allowed == sampler.calls(5),
                "{} {allowed}",
                row.name
            );
            let done = if end.is_continue() {
                5
            } else {
                allowed * 5 / sampler.calls(5)
            };
            assert_eq!(watch.steps, all[..done], "{} {allowed}", row.name);
        }
    }
}
