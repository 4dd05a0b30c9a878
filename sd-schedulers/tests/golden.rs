//! Every sampler against its formula in float64, and every scheduler class against diffusers
//! 0.42.1, on the toy model, over whole trajectories.
//!
//! `tests/golden/make.py` writes the files. `samplers` has transcriptions of the papers, which are
//! within 1e-8 of k-diffusion 0.1.1.post1 where that has the sampler. `classes` has what diffusers
//! computes.
//!
//! A new sampler needs a row of `TABLE`, a transcription in `tests/golden/reference` and a line in
//! `tests/golden/suite.py`. A new option needs a line there and one in `tests/golden/options.json`.

#![allow(clippy::unwrap_used)] // Clippy exempts only functions with #[test].

mod toy;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use safetensors::SafeTensors;
use sd_schedulers::{
    Ladder, NoiseSchedule, Prediction, Rungs, Sampler, Scheduler, SchedulerConfig,
    config::Configured,
    from_config,
    ladders::NoisePath,
    samplers::{Calls, Ddim, TABLE, Tcd},
};
use serde_json::Value;
use toy::{ELEMENTS, State, Toy, distance, flow_scale, start};

/// The relative error, the worst over a trajectory, must be at most 1e-5. Coefficients are in
/// float64 and states in float32. Each of about ten operations per step has a relative error of
/// 6e-8, and the model's slope is about 1.
#[test]
fn trajectories_equal_their_formulas() {
    let golden = json("samplers.json");
    let expected = tensor("samplers.safetensors", "states");
    let mut expected = expected.chunks_exact(ELEMENTS);
    let mut report = Report::default();
    for case in golden["cases"].as_array().unwrap() {
        let name = case["sampler"].as_str().unwrap();
        let (sampler, ladder, schedule, prediction) = prepare(case);
        let [steps, calls, draws, states] =
            ["steps", "calls", "draws", "states"].map(|key| numbers(&case[key]));
        for run in 0..steps.len() {
            let what = format!(
                "{name} {} {} {}",
                case["ladder"], case["prediction"], steps[run]
            );
            let expected: Vec<_> = expected.by_ref().take(states[run]).collect();
            let rungs = match ladder.rungs(&schedule, steps[run], &sampler.conventions()) {
                Ok(rungs) => rungs,
                Err(error) => {
                    report.fail(format!("{what}: {error}"));
                    continue;
                }
            };
            let toy = go(&*sampler, &rungs, prediction);
            let counts = [toy.calls(), toy.draws.len(), toy.steps.len()];
            let golden = [calls[run], draws[run], states[run]];
            if counts != golden {
                report.fail(format!(
                    "{what}: {counts:?} calls, draws and states, expected {golden:?}"
                ));
                continue;
            }
            match sampler.calls(&rungs) {
                Calls::Exactly(calls) => assert_eq!(calls, toy.calls(), "{what}"),
                Calls::AtMost(calls) => assert!(toy.calls() <= calls, "{what}"),
            }
            if steps[run] == 5 {
                // It chooses its own timesteps, from differences of nearly equal outputs.
                let told = if name.starts_with("dpm-adaptive") {
                    0.03
                } else {
                    2e-3
                };
                let timesteps = case["timesteps_at_5"].as_array().unwrap();
                assert_eq!(toy.timesteps.len(), timesteps.len(), "{what}");
                for (found, expected) in toy.timesteps.iter().zip(timesteps) {
                    let apart = f64::from(*found) - expected.as_f64().unwrap();
                    if apart.abs() > told {
                        report.fail(format!("{what}: timestep {found}, expected {expected}"));
                    }
                }
            }
            let error = worst(&toy.states(&rungs), &expected);
            report.add(name, &what, error, tolerance(name, prediction, &rungs));
        }
    }
    assert!(expected.next().is_none());
    report.finish();
}

/// Returns 1e-5, except for two kinds of runs that lose digits in float32.
fn tolerance(name: &str, prediction: Prediction, rungs: &Rungs) -> f64 {
    if ["dpm2-a", "restart"].contains(&name) && prediction == Prediction::Flow && rungs.steps() <= 5
    {
        // A slope taken at a sigma of 0.001 takes x down from a sigma of 999, and amplifies every
        // rounding.
        return 3e-4;
    }
    if name == "heun" && rungs.path() == NoisePath::Flow {
        // The slope at the far end is (x - D) / sigma. Two steps end at a sigma of 0.001, where the
        // rounding of D counts a thousand times.
        return 3e-5;
    }
    1e-5
}

/// Each row of the table must be there, with each prediction type that it supports.
#[test]
fn every_sampler_has_golden_values() {
    let golden = json("samplers.json");
    let cases = golden["cases"].as_array().unwrap();
    for row in TABLE {
        for (written, prediction) in PREDICTIONS {
            let config = config(prediction);
            let on_grid_only = (row.build)(&config).conventions().on_grid_only;
            let of_row =
                |case: &&Value| case["sampler"] == row.name && case["prediction"] == written;
            let found = cases.iter().filter(of_row).count();
            let refused = prediction == Prediction::Flow && on_grid_only;
            assert_eq!(found == 0, refused, "{} {written}: {found} cases", row.name);
        }
    }
}

/// Whatever the golden file lists as refused must be refused here too.
#[test]
fn too_few_steps_are_refused() {
    let golden = json("samplers.json");
    let refused = golden["refused"].as_array().unwrap();
    assert!(!refused.is_empty());
    for case in refused {
        let (sampler, ladder, schedule, _) = prepare(case);
        let steps = case["steps"].as_u64().unwrap() as usize;
        let error = ladder
            .rungs(&schedule, steps, &sampler.conventions())
            .unwrap_err();
        assert!(error.to_string().contains("expected at least"), "{case}");
    }
}

/// Compares the rungs, timesteps, first x and whole trajectory of each class, made from its
/// configuration.
///
/// diffusers computes in float32, usually in the variance-preserving scaling, so states are
/// compared to 1e-4.
///
/// All sigmas and spaced timesteps are the reference's float64 operations, rounded to float32 once.
/// However, `pow` is the platform's, and MKL does not round all square roots correctly. The
/// tolerance is 2 units in the last place, 2.4e-7. EDM's sigmas have a ramp in float32, so theirs
/// is larger.
///
/// The timestep of a sigma goes through two of numpy's float32 logarithms. They are off by up to
/// 2.6e-7, and neighbouring ones are at least 3.1e-3 apart. The timesteps half way also go through
/// float32 sigmas.
#[test]
fn classes_equal_diffusers() {
    let golden = json("classes.json");
    let [states, sigmas, timesteps, scales] = ["states", "sigmas", "timesteps", "initial_scales"]
        .map(|key| tensor("classes.safetensors", key));
    let mut states = states.chunks_exact(ELEMENTS);
    let (mut sigmas, mut timesteps) = (sigmas.into_iter(), timesteps.into_iter());
    let mut scales = scales.into_iter();
    let mut report = Report::default();
    for case in golden["cases"].as_array().unwrap() {
        let class = case["config"]["_class_name"].as_str().unwrap();
        let what = format!("{} eta {}", case["config"], case["eta"]);
        let configured = from_config(&case["config"].to_string());
        let calls = numbers(&case["calls"]);
        for (steps, calls) in numbers(&case["steps"]).into_iter().zip(calls) {
            let what = format!("{what}, {steps} steps");
            let states: Vec<_> = states.by_ref().take(steps).collect();
            let sigmas: Vec<_> = sigmas.by_ref().take(steps + 1).collect();
            let timesteps: Vec<_> = timesteps.by_ref().take(calls).collect();
            let scale = scales.next().unwrap();
            let made = configured.as_ref().map_err(ToString::to_string);
            let made = made.and_then(|configured| Made::new(configured, case, steps));
            let Made {
                sampler,
                prediction,
                rungs,
            } = match made {
                Ok(made) => made,
                Err(error) => {
                    report.fail(format!("{what}: {error}"));
                    continue;
                }
            };
            let own = |sigma: f32| sigma / flow_scale(prediction, &rungs, sigma);
            let close = |found: f32, expected: f32, tolerance: f32| {
                (found - expected).abs() <= tolerance * expected.abs()
            };
            let of_edm = class.starts_with("EDM");
            // The rescaling takes differences of float32 roots.
            let zero_snr = rungs.schedule().has_zero_terminal_snr();
            assert_eq!(rungs.sigmas().len(), sigmas.len(), "{what}");
            for (&found, &expected) in rungs.sigmas().iter().zip(&sigmas) {
                let (found, tolerance) =
                    (own(found), if of_edm || zero_snr { 2e-6 } else { 2.4e-7 });
                if !close(found, expected, tolerance) {
                    report.fail(format!("{what}: sigma {found}, expected {expected}"));
                }
            }
            let found = rungs.initial_scale() / flow_scale(prediction, &rungs, rungs.sigmas()[0]);
            if !close(found, scale, 4e-7) {
                report.fail(format!("{what}: first x times {found}, expected {scale}"));
            }
            let toy = go(&*sampler, &rungs, prediction);
            if toy.calls() != calls || toy.steps.len() != steps {
                report.fail(format!(
                    "{what}: {} calls and {} states, expected {calls} and {steps}",
                    toy.calls(),
                    toy.steps.len()
                ));
                continue;
            }
            for (found, expected) in toy.timesteps.iter().zip(&timesteps) {
                if (found - expected).abs() > 2e-3 {
                    report.fail(format!("{what}: timestep {found}, expected {expected}"));
                }
            }
            let error = worst(&toy.states(&rungs), &states);
            // From a zero-SNR first sigma of 4096, the first step removes all but a thousandth of
            // x. Its three roundings of values as large as x (6e-8 each, on both sides) remain.
            let tolerance = if prediction != Prediction::Flow && rungs.sigmas()[0] > 1000.0 {
                let first_step = f64::from(rungs.sigmas()[0] / rungs.sigmas()[1]) * 3.6e-7;
                assert!(first_step <= 1e-3, "{what}: {first_step:e}");
                first_step.max(1e-4)
            } else {
                tolerance(class, prediction, &rungs).max(1e-4)
            };
            report.add(class, &what, error, tolerance);
        }
    }
    assert!(states.next().is_none() && sigmas.next().is_none() && timesteps.next().is_none());
    report.finish();
}

/// A configuration that is ready to run.
struct Made {
    sampler: Arc<dyn Sampler>,
    prediction: Prediction,
    rungs: Rungs,
}

impl Made {
    fn new(configured: &Configured, case: &Value, steps: usize) -> Result<Self, String> {
        let config = &configured.config;
        // diffusers takes eta as an argument of `step`.
        let sampler: Arc<dyn Sampler> = match (configured.class, case["eta"].as_f64()) {
            (_, None) => Arc::clone(&configured.sampler),
            ("TCDScheduler", Some(eta)) => Arc::new(Tcd { gamma: eta as f32 }),
            (_, Some(eta)) => Arc::new(Ddim {
                eta: eta as f32,
                ..Ddim::from_config(config)
            }),
        };
        let schedule = NoiseSchedule::new(config).map_err(|error| error.to_string())?;
        let rungs = configured
            .ladder
            .rungs(&Arc::new(schedule), steps, &sampler.conventions())
            .map_err(|error| error.to_string())?;
        Ok(Self {
            sampler,
            prediction: config.prediction,
            rungs,
        })
    }
}

/// What this crate does with a configuration that a diffusers class refuses, or for which it
/// computes NaN.
enum Ours {
    /// It refuses the configuration too, with an error that contains this text.
    Refuses(&'static str),
    /// It runs the configuration.
    Runs,
}

/// Returns what this crate does for the name of a refusal in `tests/golden/classes.py`.
fn ours(name: &str) -> Option<Ours> {
    use Ours::{Refuses, Runs};
    Some(match name {
        "EulerAncestralDiscrete sample"
        | "KDPM2Discrete sample"
        | "KDPM2AncestralDiscrete sample"
        | "DPMSolverSDE sample"
        | "PNDM sample"
        | "EDMEuler sample"
        | "EulerDiscrete flow_prediction"
        | "EulerAncestralDiscrete flow_prediction"
        | "HeunDiscrete flow_prediction"
        | "LMSDiscrete flow_prediction"
        | "KDPM2Discrete flow_prediction"
        | "KDPM2AncestralDiscrete flow_prediction"
        | "DPMSolverSDE flow_prediction"
        | "DDIM flow_prediction"
        | "DDPM flow_prediction"
        | "PNDM flow_prediction"
        | "LCM flow_prediction"
        | "TCD flow_prediction"
        | "EDMEuler flow_prediction" => Refuses("prediction_type"),
        "DPMSolverMultistep flow dpmsolver" | "DPMSolverSinglestep flow dpmsolver" => {
            Refuses("algorithm_type")
        }
        "DPMSolverMultistep dpmsolver zero" | "DPMSolverSinglestep dpmsolver zero" => {
            Refuses("final_sigmas_type")
        }
        "UniPC flow noise" | "UniPC predict_x0 zero" => Refuses("predict_x0"),
        "UniPC solver_type zero" => Refuses("solver_type"),
        "UniPC lower_order_final zero" => Refuses("lower_order_final"),
        "UniPC terminal without flow" => Refuses("shift_terminal"),
        "PNDM 1 steps" | "PNDM 2 steps" | "PNDM 3 steps" => Refuses("expected at least 4"),
        "FlowMatch terminal 1 step" => Refuses("expected at least 2"),
        "LCM 51 steps" | "TCD 51 steps" => Refuses("expected 1 to 50"),
        // Both divide 0 by 0 in diffusers.
        "DPMSolverMultistep solver_type last step of no length"
        | "DPMSolverMultistep solver_order last step of no length" => Runs,
        "DPMSolverMultistep sde-dpmsolver 3" => Refuses("solver_order"),
        "DDPM fixed_large_log" | "DDPM learned" | "DDPM learned_range" => Refuses("variance_type"),
        "two shapes" => Refuses("use_beta_sigmas"),
        "SASolver corrector 0" => Refuses("corrector_order"),
        "DDIM zero SNR epsilon" | "LCM zero SNR epsilon" | "TCD zero SNR epsilon" => {
            Refuses("rescale_betas_zero_snr")
        }
        _ => return None,
    })
}

#[test]
fn what_diffusers_refuses_is_known() {
    let golden = json("classes.json");
    let refused = golden["refused"].as_array().unwrap();
    assert!(refused.len() > 40, "{}", refused.len());
    for case in refused {
        let name = case["name"].as_str().unwrap();
        let steps = case["steps"].as_u64().unwrap() as usize;
        let what = format!("{name}, to which diffusers says {}", case["diffusers"]);
        let made = from_config(&case["config"].to_string()).map_err(|error| error.to_string());
        let made = made.and_then(|configured| Made::new(&configured, case, steps));
        match (ours(name), made) {
            (Some(Ours::Refuses(part)), Err(error)) => {
                assert!(
                    error.contains(part),
                    "{what}: {error} does not say {part:?}"
                );
            }
            (Some(Ours::Runs), Ok(made)) => {
                let toy = go(&*made.sampler, &made.rungs, made.prediction);
                let states = toy.states(&made.rungs);
                assert!(states.iter().flatten().all(|x| x.is_finite()), "{what}");
            }
            (None, _) => panic!("{what}: not in the list"),
            (Some(Ours::Refuses(_)), Ok(_)) => panic!("{what}: runs"),
            (Some(Ours::Runs), Err(error)) => panic!("{what}: {error}"),
        }
    }
}

/// Runs a sampler on the toy model, with guidance if it needs both outputs.
fn go(sampler: &dyn Sampler, rungs: &Rungs, prediction: Prediction) -> Toy {
    let mut toy = Toy::guided(prediction, sampler.needs().unconditional);
    let mut x = start(rungs.sigmas()[0]);
    assert!(sampler.sample(&mut x, rungs, &mut toy).is_continue());
    toy
}

/// Returns the sampler, the ladder, the schedule and the prediction type of a case.
fn prepare(case: &Value) -> (Arc<dyn Sampler>, Ladder, Arc<NoiseSchedule>, Prediction) {
    let written = case["prediction"].as_str().unwrap();
    let known = PREDICTIONS.iter().find(|(name, _)| *name == written);
    let prediction = known.unwrap().1;
    let config = config(prediction);
    let name = case["sampler"].as_str().unwrap();
    let row = TABLE.iter().find(|row| row.name == name);
    let sampler = row.map_or_else(|| option(name), |row| (row.build)(&config).into());
    let ladder = serde_json::from_value(case["ladder"].clone()).unwrap();
    let schedule = Arc::new(NoiseSchedule::new(&config).unwrap());
    (sampler, ladder, schedule, prediction)
}

const PREDICTIONS: [(&str, Prediction); 4] = [
    ("epsilon", Prediction::Epsilon),
    ("v", Prediction::V),
    ("sample", Prediction::Sample),
    ("flow", Prediction::Flow),
];

fn config(prediction: Prediction) -> SchedulerConfig {
    SchedulerConfig {
        prediction,
        ..SchedulerConfig::default()
    }
}

/// Returns the sampler with options that `tests/golden/options.json` has under its name in
/// `tests/golden/suite.py`.
fn option(name: &str) -> Arc<dyn Sampler> {
    let options = json("options.json");
    let sampler = options.get(name);
    let sampler = sampler.unwrap_or_else(|| panic!("options.json has no sampler {name:?}"));
    let scheduler: Scheduler = serde_json::from_value(sampler.clone()).unwrap();
    scheduler.sampler(&SchedulerConfig::default())
}

/// The worst errors, and all failures.
#[derive(Default)]
struct Report {
    /// The worst error of each sampler or class, as a fraction of the tolerance.
    worst: BTreeMap<String, (f64, f64, String)>,
    failures: Vec<String>,
}

impl Report {
    fn add(&mut self, name: &str, what: &str, error: f64, tolerance: f64) {
        // This also treats NaN as too large.
        if error <= tolerance {
            let part = error / tolerance;
            let worst = self.worst.entry(name.to_owned()).or_default();
            if part >= worst.0 {
                *worst = (part, error, what.to_owned());
            }
        } else {
            self.fail(format!(
                "{what}: relative error {error:.1e} of {tolerance:.1e}"
            ));
        }
    }

    fn fail(&mut self, failure: String) {
        self.failures.push(failure);
    }

    fn finish(self) {
        for (part, error, what) in self.worst.values() {
            println!("{error:.1e}, {part:.2} of what is allowed: {what}");
        }
        let first: BTreeSet<_> = self.failures.iter().take(100).collect();
        assert!(
            self.failures.is_empty(),
            "{} failures, such as\n{first:#?}",
            self.failures.len()
        );
    }
}

fn worst(found: &[State], expected: &[&[f32]]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let errors = found.iter().zip(expected).map(|(f, e)| distance(f, e));
    errors.fold(0.0, |worst, error| {
        if error > worst || error.is_nan() {
            error
        } else {
            worst
        }
    })
}

fn read(name: &str) -> Vec<u8> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    std::fs::read(folder.join(name)).unwrap_or_else(|error| {
        panic!("tests/golden/{name}: {error}; tests/golden/make.py writes it")
    })
}

fn json(name: &str) -> Value {
    serde_json::from_slice(&read(name)).unwrap()
}

fn tensor(file: &str, name: &str) -> Vec<f32> {
    let bytes = read(file);
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = tensors.tensor(name).unwrap();
    let values = tensor.data().chunks_exact(4);
    values
        .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
        .collect()
}

fn numbers(list: &Value) -> Vec<usize> {
    let numbers = list.as_array().unwrap().iter();
    numbers
        .map(|number| number.as_u64().unwrap() as usize)
        .collect()
}
