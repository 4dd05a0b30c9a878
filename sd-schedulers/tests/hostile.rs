//! Samplers whose options come from a file: any JSON is refused or runs, whatever its numbers.

#![allow(clippy::unwrap_used)] // Clippy exempts only functions with #[test].

use std::{ops::ControlFlow, sync::Arc};

use sd_schedulers::{
    Ladder, NoiseSchedule, Run, Rung, Scheduler, SchedulerConfig, samplers::TABLE,
};
use serde_json::{Map, Value, json};

/// A run that ends after many calls, as a user would stop a sampler that never ends.
struct Patient(usize);

impl Run for Patient {
    fn denoise(&mut self, x: &[f32], _: Rung, denoised: &mut [f32]) -> ControlFlow<()> {
        denoised.iter_mut().zip(x).for_each(|(d, x)| *d = 0.5 * x);
        match self.0.checked_sub(1) {
            None => ControlFlow::Break(()),
            Some(left) => {
                self.0 = left;
                ControlFlow::Continue(())
            }
        }
    }

    fn noise(&mut self, _: f32, _: f32, out: &mut [f32]) {
        out.fill(0.25);
    }
}

/// Returns the options of a sampler as an object.
fn options(row: &sd_schedulers::samplers::SamplerRow) -> Map<String, Value> {
    // The keys are in the error for an unknown one.
    let wrong = json!({ row.name: { "?": 0 } });
    let error = serde_json::from_value::<Scheduler>(wrong)
        .unwrap_err()
        .to_string();
    let keys = error.split('`').skip(1).step_by(2).skip(1);
    keys.map(|key| (key.to_owned(), Value::Null)).collect()
}

fn values() -> Vec<Value> {
    let mut values = vec![
        json!(null),
        json!(true),
        json!(false),
        json!("zero"),
        json!("inf"),
    ];
    values.extend([
        json!("nan"),
        json!([]),
        json!([0, 3, 127]),
        json!([0.0, 1000.0]),
    ]);
    values.extend([
        json!([1e30, -1e30]),
        json!({"s_churn": 1e30, "s_tmax": "nan"}),
    ]);
    let segment =
        |low: f64, high: f64, n: u64| json!([{"low": low, "high": high, "steps": n, "times": n}]);
    values.extend([
        segment(0.1, 2.0, 3),
        segment(-1.0, 1e30, 0),
        segment(0.5, 1.0, u64::MAX),
    ]);
    for number in [0_u64, 1, 2, 3, 4, 5, 64, 1 << 33, u64::MAX] {
        values.push(json!(number));
    }
    for number in [-1.0, 0.5, 1e-38, 3e38, -3e38] {
        values.push(json!(number));
    }
    values
}

#[test]
fn options_from_a_file_never_panic() {
    let config = SchedulerConfig::default();
    let schedule = Arc::new(NoiseSchedule::new(&config).unwrap());
    let (mut refused, mut made) = (0, 0);
    let mut check = |written: Value| {
        let Ok(scheduler) = serde_json::from_value::<Scheduler>(written) else {
            refused += 1;
            return;
        };
        let sampler = scheduler.sampler(&config);
        for ladder in [Ladder::karras(), Ladder::leading(), Ladder::ddim_uniform()] {
            for steps in [1, 2, 7] {
                let rungs = ladder.rungs(&schedule, steps, &sampler.conventions());
                let Ok(rungs) = rungs else { continue };
                let _ = sampler.calls(&rungs);
                let mut x = [3.0, -2.0];
                let _ = sampler.sample(&mut x, &rungs, &mut Patient(200));
                made += 1;
            }
        }
    };
    for row in TABLE {
        for key in options(row).keys() {
            for value in values() {
                check(json!({ row.name: { key: value } }));
            }
        }
        for (key, value) in [
            ("counting", json!("n-plus-1")),
            ("integer_timesteps", json!(true)),
            ("timestep_rounding", json!("whole")),
            ("first_x", json!("variance-preserving")),
            ("on_grid_only", json!(true)),
            ("on_grid_only", json!(false)),
            ("training_timesteps", json!(false)),
            ("end", json!("sigma-min")),
            ("end", json!("zero")),
            ("drop_next_to_last", json!(true)),
            ("min_steps", json!(0)),
            ("min_steps", json!(u64::MAX)),
            ("flow", json!("flow")),
        ] {
            check(json!({ row.name: {}, "conventions": { key: value } }));
        }
    }
    println!("{refused} refused, {made} runs");
    assert!(
        refused > 1000 && made > 10_000,
        "{refused} refused, {made} runs"
    );
}
