use safetensors::SafeTensors;
use serde_json::Value;

use super::*;

fn floats(bits: &Value) -> Vec<f32> {
    bits.as_array()
        .unwrap()
        .iter()
        .map(|b| f32::from_bits(b.as_u64().unwrap() as u32))
        .collect()
}

/// The tolerances and their reasons:
/// - Alpha-bars are equal bit for bit, except those that went through MKL's square root, which is
///   1.2e-7 off where it rounds wrongly. Zero SNR subtracts such roots, which leaves an error of
///   1e-5 near the noisy end.
/// - Sigmas of zero-SNR schedules near the clean end contain 1 - alpha-bar of 0.001, where two
///   units in the last place of alpha-bar are 1e-4.
/// - Other interpolated sigmas take the same float64 operations on square roots, so 1.2e-7.
/// - Timesteps from sigmas go through two of numpy's float32 logarithms. They are off by up to
///   2.6e-7, and neighbouring ones are at least 3.1e-3 apart, so 2e-4.
#[test]
fn equals_diffusers() {
    let golden: Value =
        serde_json::from_str(include_str!("../../tests/golden/schedules.json")).unwrap();
    let tensors = include_bytes!("../../tests/golden/schedules.safetensors");
    let tensors = SafeTensors::deserialize(tensors).unwrap();
    let cases = golden["schedules"].as_array().unwrap();
    assert_eq!(cases.len(), tensors.len());
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let config = SchedulerConfig::from_json(&case["config"].to_string()).unwrap();
        let schedule = NoiseSchedule::new(&config).unwrap();
        let expected = tensors.tensor(name).unwrap();
        let expected: Vec<f32> = expected
            .data()
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect();
        assert_eq!(schedule.alpha_bars().len(), expected.len(), "{name}");
        let tolerance = if config.rescale_betas_zero_snr {
            1e-5
        } else {
            0.0
        };
        for (t, (found, expected)) in schedule.alpha_bars().iter().zip(&expected).enumerate() {
            let error = (found - expected).abs() / expected;
            assert!(
                error <= tolerance,
                "{name}: alpha-bar {t}: {found} is off by {error:e}"
            );
        }

        let (timesteps, sigmas) = (floats(&case["timesteps"]), floats(&case["sigmas"]));
        for (t, s) in timesteps.iter().zip(&sigmas) {
            let found = schedule.sigma_at(*t);
            let tolerance = if config.rescale_betas_zero_snr {
                1e-4
            } else {
                1.2e-7
            };
            assert!(
                (found - s).abs() <= tolerance * s,
                "{name}: sigma at {t}: {found} != {s}"
            );
        }
        for (s, t) in sigmas.iter().zip(floats(&case["back"])) {
            let found = schedule.timestep_at(*s);
            assert!(
                (found - t).abs() < 2e-4,
                "{name}: timestep at {s}: {found} != {t}"
            );
        }
    }
}

#[test]
fn betas_without_a_usable_schedule_are_an_error() {
    let flat = SchedulerConfig {
        beta_start: 1e-12,
        beta_end: 1e-12,
        ..Default::default()
    };
    assert_eq!(
        NoiseSchedule::new(&flat),
        Err(ConfigError::Sigmas {
            timestep: 0,
            sigma: 0.0
        })
    );
    let steep = SchedulerConfig {
        beta_start: 0.9,
        beta_end: 0.9,
        ..Default::default()
    };
    assert!(matches!(
        NoiseSchedule::new(&steep),
        Err(ConfigError::Sigmas { .. })
    ));
    let wrong = SchedulerConfig {
        num_train_timesteps: 0,
        ..Default::default()
    };
    assert!(matches!(
        NoiseSchedule::new(&wrong),
        Err(ConfigError::Value {
            key: "num_train_timesteps",
            ..
        })
    ));
}

#[test]
fn lookups_survive_what_is_no_number() {
    let schedule = NoiseSchedule::new(&SchedulerConfig::default()).unwrap();
    for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -1.0, 0.0, 1e30] {
        schedule.sigma_at(odd);
        schedule.timestep_at(odd);
        schedule.log_linear_sigma_at(odd);
    }
}

fn of(prediction: Prediction) -> NoiseSchedule {
    let config = SchedulerConfig {
        prediction,
        rescale_betas_zero_snr: true,
        ..Default::default()
    };
    NoiseSchedule::new(&config).unwrap()
}

#[test]
fn a_flow_schedule_is_a_straight_line() {
    let schedule = of(Prediction::Flow);
    assert_eq!(schedule.path(), NoisePath::Flow);
    assert_eq!((schedule.sigma_min(), schedule.sigma_max()), (0.001, 1.0));
    assert_eq!(schedule.timestep_range(), [0.0, 1000.0]);
    assert!(!schedule.has_zero_terminal_snr());
    for (timestep, sigma) in [(1.0, 0.001), (250.0, 0.25), (500.0, 0.5), (1000.0, 1.0)] {
        assert_eq!(schedule.sigma_at(timestep), sigma);
        assert_eq!(schedule.log_linear_sigma_at(timestep), sigma);
        assert_eq!(schedule.timestep_at(sigma), timestep);
    }
    assert_eq!(
        (schedule.sigma_at(0.0), schedule.sigma_at(2000.0)),
        (0.001, 1.0)
    );
    assert_eq!(schedule.timestep_at(1.5), 1000.0);
    // Half sample, half noise.
    assert_eq!(schedule.alpha_bars()[499], 0.5);
    assert_eq!(schedule.alpha_bars()[999], 0.0);
}

#[test]
fn an_edm_schedule_is_told_a_quarter_of_log_sigma() {
    let schedule = of(Prediction::Edm {
        sigma_data: 0.5,
        v: false,
    });
    assert_eq!(schedule.path(), NoisePath::Exploding);
    let range = [schedule.sigma_min(), schedule.sigma_max()];
    assert!((range[0] - 0.002).abs() < 1e-9 && (range[1] - 80.0).abs() < 1e-4);
    assert!(!schedule.has_zero_terminal_snr());
    for sigma in [0.002_f32, 0.5, 1.0, 79.0] {
        let timestep = schedule.timestep_at(sigma);
        assert!((timestep - sigma.ln() / 4.0).abs() < 1e-6);
        assert!((schedule.sigma_at(timestep) / sigma - 1.0).abs() < 1e-6);
    }
    assert_eq!(schedule.sigma_at(100.0), range[1]);
    let reversed = SchedulerConfig {
        prediction: Prediction::Edm {
            sigma_data: 0.5,
            v: false,
        },
        sigma_range: [80.0, 0.002],
        ..Default::default()
    };
    assert!(NoiseSchedule::new(&reversed).is_err());
}

#[test]
fn the_two_readings_meet_at_whole_timesteps() {
    let schedule = NoiseSchedule::new(&SchedulerConfig::default()).unwrap();
    for timestep in [0.0, 1.0, 500.0, 999.0] {
        let sigma = schedule.sigmas()[timestep as usize];
        assert_eq!(schedule.sigma_at(timestep), sigma);
        assert_eq!(schedule.log_linear_sigma_at(timestep), sigma);
    }
    let (low, high) = (schedule.sigmas()[1], schedule.sigmas()[2]);
    let between = schedule.log_linear_sigma_at(1.5);
    assert!((between - (low * high).sqrt()).abs() < 1e-8);
    assert!(between < schedule.sigma_at(1.5));
}
