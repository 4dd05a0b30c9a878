//! Every sampler against the class of diffusers 0.42.1 that does the same: one data file a sampler, written by
//! tests/golden/make.py, so a new sampler is one row of `TABLE` and one file here.

#![allow(clippy::unwrap_used)] // Clippy takes only functions with #[test] for tests.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use sd_schedulers::{
    Ddim, Ladder, NoiseSchedule, NoiseSource, Prediction, Row, Run, Rung, Rungs, Sampler,
    SchedulerConfig, Spacing, Step, TABLE, TorchRng,
};
use serde_json::Value;

/// Sigmas, timesteps and the scale of the first x.
///
/// All sigmas and spaced timesteps are the reference's float64 operations rounded to float32 once, but `pow` is the
/// platform's and MKL's square roots are not all rounded correctly: 2 units in the last place (2.4e-7). A Karras timestep
/// goes through two of numpy's float32 logs, which are off by up to 2.6e-7 where neighbouring ones are 3.1e-3 apart at the
/// closest: 2e-4 of a timestep, and none where it is rounded.
#[test]
fn ladders_equal_diffusers() {
    for row in &TABLE {
        let golden = golden(row);
        for case in golden["ladders"].as_array().unwrap() {
            let (sampler, rungs) = prepare(row, case);
            let what = format!(
                "{} {} {} {}",
                row.name, case["spacing"], case["karras"], case["steps"]
            );
            for (found, expected) in rungs.sigmas().iter().zip(floats(&case["sigmas"])) {
                assert!(
                    (found - expected).abs() <= 2.4e-7 * expected,
                    "{what}: sigma {found} != {expected}"
                );
            }
            let loose =
                !case["karras"].is_null() && !sampler.conventions().rounded_karras_timesteps;
            let tolerance = if loose { 2e-4 } else { 0.0 };
            assert_eq!(
                rungs.timesteps().len(),
                case["timesteps"].as_array().unwrap().len()
            );
            for (found, expected) in rungs.timesteps().iter().zip(floats(&case["timesteps"])) {
                assert!(
                    (found - expected).abs() <= tolerance,
                    "{what}: timestep {found} != {expected}"
                );
            }
            let expected = float(&case["initial_scale"]);
            let found = rungs.initial_scale();
            assert!(
                (found - expected).abs() <= 2.4e-7 * expected,
                "{what}: initial scale {found} != {expected}"
            );
        }
    }
}

/// x after every step. Both sides compute in float32 in another order (and in another scaling for DDIM and DPM++), with
/// a relative error of 6e-8 for each of some ten operations a step; up to 20 steps of a model whose slope is about 1
/// leave it well below 1e-5 (the worst is 1.4e-6, of Heun). From a zero-SNR first sigma of 4096 the first step of the
/// Euler samplers takes away all but a thousandth of x; its three roundings of values as large as x (6e-8 each, on
/// either side) stay: hence the second term.
#[test]
fn trajectories_equal_diffusers() {
    let mut worst: f64 = 0.0;
    for row in &TABLE {
        let golden = golden(row);
        let vp = golden["scaling"] == "vp";
        for case in golden["trajectories"].as_array().unwrap() {
            let (sampler, rungs) = prepare(row, case);
            let config = SchedulerConfig::from_json(&case["config"].to_string()).unwrap();
            let mut noise = TorchRng::new(case["seed"].as_u64().unwrap());
            let mut x = vec![0.0; golden["size"].as_u64().unwrap() as usize];
            noise.fill(&mut x);
            x.iter_mut().for_each(|x| *x *= rungs.initial_scale());
            let mut model = Model {
                prediction: config.prediction,
                noise,
                calls: 0,
                states: Vec::new(),
            };
            assert!(sampler.sample(&mut x, &rungs, &mut model).is_continue());
            assert_eq!(model.calls, sampler.calls(rungs.steps()));
            assert_eq!(model.states.len(), case["states"].as_array().unwrap().len());
            for (i, (mut found, expected)) in model
                .states
                .into_iter()
                .zip(case["states"].as_array().unwrap())
                .enumerate()
            {
                if vp {
                    found
                        .iter_mut()
                        .for_each(|x| *x *= Prediction::input_scale(rungs.sigmas()[i + 1]));
                }
                let error = relative(&found, &floats(expected));
                let what = format!("{} {} {} step {i}", row.name, case["config"], case["eta"]);
                let first_step = f64::from(rungs.sigmas()[0] / rungs.sigmas()[1] * 3.6e-7);
                let tolerance = if vp { 1e-5 } else { first_step.max(1e-5) };
                assert!(
                    error <= tolerance,
                    "{what}: relative error {error:e} of {tolerance:e}"
                );
                worst = worst.max(error / tolerance);
            }
        }
    }
    println!("worst error, as a part of its tolerance: {worst}");
}

/// The same stand-in for the UNet as `model` in tests/golden/make.py.
fn model(x: f32, timestep: f32) -> f32 {
    x * (0.5 + 0.4 * (timestep / 1000.0)) + 0.2 * (3.0 * x + timestep / 100.0).sin()
}

struct Model {
    prediction: Prediction,
    noise: TorchRng,
    calls: usize,
    states: Vec<Vec<f32>>,
}

impl Run for Model {
    fn denoise(&mut self, x: &[f32], at: Rung, denoised: &mut [f32]) -> ControlFlow<()> {
        self.calls += 1;
        for (denoised, x) in denoised.iter_mut().zip(x) {
            *denoised = model(x * Prediction::input_scale(at.sigma), at.timestep);
        }
        self.prediction.denoised(denoised, x, at.sigma);
        ControlFlow::Continue(())
    }

    fn noise(&mut self, out: &mut [f32]) {
        self.noise.fill(out);
    }

    fn step(&mut self, step: Step<'_>) -> ControlFlow<()> {
        assert_eq!(step.index, self.states.len());
        self.states.push(step.x.to_vec());
        ControlFlow::Continue(())
    }
}

fn golden(row: &Row) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(format!("{}.json", row.name));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// The sampler and the rungs of a case, made from its diffusers configuration.
fn prepare(row: &Row, case: &Value) -> (Box<dyn Sampler>, Rungs) {
    assert_eq!(case["config"]["_class_name"], row.diffusers);
    let config = SchedulerConfig::from_json(&case["config"].to_string()).unwrap();
    let sampler = match case.get("eta").and_then(Value::as_f64) {
        Some(eta) => Box::new(Ddim {
            eta: eta as f32,
            ..Ddim::from_config(&config)
        }),
        None => (row.build)(&config),
    };
    let spacing = match case["spacing"].as_str().unwrap() {
        "leading" => Spacing::Leading,
        "linspace" => Spacing::Linspace,
        "trailing" => Spacing::Trailing,
        other => panic!("{other}"),
    };
    let ladder = match case["karras"].as_str() {
        None => Ladder::Spaced(spacing),
        Some("over") => Ladder::karras_over(spacing),
        Some("full") => Ladder::karras(),
        Some(other) => panic!("{other}"),
    };
    let schedule = Arc::new(NoiseSchedule::new(&config).unwrap());
    let steps = case["steps"].as_u64().unwrap() as usize;
    let rungs = ladder
        .rungs(&schedule, steps, &sampler.conventions())
        .unwrap();
    (sampler, rungs)
}

fn relative(found: &[f32], expected: &[f32]) -> f64 {
    let square = |v: f32| f64::from(v) * f64::from(v);
    let difference: f64 = found.iter().zip(expected).map(|(f, e)| square(f - e)).sum();
    (difference / expected.iter().map(|e| square(*e)).sum::<f64>()).sqrt()
}

fn float(bits: &Value) -> f32 {
    f32::from_bits(u32::try_from(bits.as_u64().unwrap()).unwrap())
}

fn floats(bits: &Value) -> Vec<f32> {
    bits.as_array().unwrap().iter().map(float).collect()
}
