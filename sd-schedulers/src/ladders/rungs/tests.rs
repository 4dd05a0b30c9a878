use super::*;
use crate::{Prediction, SchedulerConfig, Step};

#[test]
fn rungs_of_ones_own_are_checked() {
    let schedule = Arc::new(NoiseSchedule::new(&SchedulerConfig::default()).unwrap());
    let new = |sigmas: &[f32], timesteps: &[f32], scale| {
        Rungs::new(&schedule, sigmas.to_vec(), timesteps.to_vec(), scale).map(|rungs| rungs.steps())
    };
    assert_eq!(new(&[2.0, 1.0, 0.0], &[500.0, 250.5], 2.0), Ok(2));
    assert_eq!(
        new(&[0.0], &[], 1.0),
        Err(LadderError::Lengths {
            sigmas: 1,
            timesteps: 0
        })
    );
    assert_eq!(
        new(&[1.0, 0.0], &[5.0, 4.0], 1.0),
        Err(LadderError::Lengths {
            sigmas: 2,
            timesteps: 2
        })
    );
    assert_eq!(
        new(&[1.0, 1.0, 0.0], &[5.0, 4.0], 1.0),
        Err(LadderError::Sigma {
            index: 1,
            sigma: 1.0
        })
    );
    assert_eq!(new(&[1.0, 0.5], &[5.0], 1.0), Ok(1));
    assert_eq!(
        new(&[-1.0, 0.0], &[5.0], 1.0),
        Err(LadderError::Sigma {
            index: 0,
            sigma: -1.0
        })
    );
    assert!(matches!(
        new(&[f32::INFINITY, 0.0], &[5.0], 1.0),
        Err(LadderError::Sigma { index: 0, .. })
    ));
    assert!(matches!(
        new(&[f32::NAN, 0.0], &[5.0], 1.0),
        Err(LadderError::Sigma { index: 0, .. })
    ));
    assert!(matches!(
        new(&[1.0, 0.0], &[1000.0], 1.0),
        Err(LadderError::Timestep {
            index: 0,
            max: 999.0,
            ..
        })
    ));
    assert!(matches!(
        new(&[1.0, 0.0], &[f32::NAN], 1.0),
        Err(LadderError::Timestep { .. })
    ));
    assert_eq!(
        new(&[1.0, 0.0], &[5.0], 0.0),
        Err(LadderError::InitialScale(0.0))
    );
}

fn flow(sigmas: &[f32], scale: f32) -> Result<Rungs, LadderError> {
    let config = SchedulerConfig {
        prediction: Prediction::Flow,
        ..Default::default()
    };
    let schedule = Arc::new(NoiseSchedule::new(&config).unwrap());
    let timesteps = sigmas[..sigmas.len() - 1]
        .iter()
        .map(|&sigma| schedule.timestep_at(sigma))
        .collect();
    Rungs::new(&schedule, sigmas.to_vec(), timesteps, scale)
}

#[test]
fn flow_rungs_explode() {
    let exploded = flow(&[0.75, 0.5, 0.0], 1.0).unwrap().exploding();
    assert_eq!(exploded.path(), NoisePath::Exploding);
    assert_eq!(exploded.sigmas(), [3.0, 1.0, 0.0]);
    assert_eq!(exploded.timesteps(), [750.0, 500.0]);
    assert_eq!(exploded.initial_scale(), 4.0);
    assert_eq!(exploded.at(0, 1.0 / 3.0).timestep, 250.0);
    assert_eq!(exploded.clone().exploding(), exploded);

    let close = |found: f32, expected: f32| (found / expected - 1.0).abs() < 1e-6;
    let pure_noise = flow(&[1.0, 0.0], 1.0).unwrap().exploding();
    assert!(close(pure_noise.sigmas()[0], 999.0));
    assert!(close(pure_noise.initial_scale(), 1000.0));
    assert_eq!(pure_noise.timesteps(), [1000.0]);
    // The next sigma is above 1 - 1 / T.
    let near = flow(&[1.0, 1.0 - 1.0 / 4096.0, 0.0], 1.0)
        .unwrap()
        .exploding();
    assert!(close(near.sigmas()[0], 8191.0) && close(near.sigmas()[1], 4095.0));
    // A last step without length.
    let same = flow(&[1.0, 1.0], 1.0).unwrap().exploding();
    assert_eq!(same.sigmas()[0], same.sigmas()[1]);

    let above = flow(&[1.5, 0.5, 0.0], 1.0);
    let sigma = 1.5;
    assert_eq!(above, Err(LadderError::Sigma { index: 0, sigma }));
}

#[test]
fn steps_past_the_rungs_are_told_by_sigma() {
    let schedule = Arc::new(NoiseSchedule::new(&SchedulerConfig::default()).unwrap());
    let sigmas = vec![8.0, 4.0, 2.0, 1.0, 0.0];
    // No timestep here is the schedule's timestep of its sigma.
    let timesteps = vec![900.0, 800.0, 700.0, 600.0];
    let whole = Rungs::new(&schedule, sigmas, timesteps, 8.0).unwrap();
    let part = whole.clone().starting_at(1).unwrap().ending_at(2).unwrap();
    for rungs in [whole, part] {
        for index in [rungs.steps(), rungs.steps() + 1, usize::MAX] {
            for (place, rung) in rungs.iter().enumerate() {
                let found = rungs.at(index, rung.sigma);
                assert_eq!(found, Rung { index, ..rung }, "{place}");
            }
            let between = rungs.at(index, 3.0);
            assert_eq!((between.index, between.sigma), (index, 3.0));
            assert_eq!(between.timestep, schedule.timestep_at(3.0));
            for sigma in [0.0, -1.0, 1e9, f32::INFINITY, f32::NAN] {
                assert!(rungs.at(index, sigma).timestep.is_finite(), "{sigma}");
                assert!(rungs.at(0, sigma).timestep.is_finite(), "{sigma}");
            }
        }
        assert_eq!(rungs.after(usize::MAX), None);
        assert_eq!(rungs.steps_left(usize::MAX), 0);
        let end = rungs.sigmas()[rungs.steps()];
        let step = Step::new(&rungs, 6, &mut [], &[]);
        assert_eq!((step.index, step.total), (6, 7));
        assert_eq!((step.sigma, step.next), (end, end));
    }
}

#[test]
fn parts_of_a_run() {
    let schedule = Arc::new(NoiseSchedule::new(&SchedulerConfig::default()).unwrap());
    let sigmas = vec![8.0, 4.0, 2.0, 1.0, 0.0];
    let timesteps = vec![800.0, 700.0, 500.0, 300.0];
    let rungs = Rungs::new(&schedule, sigmas, timesteps, 9.0).unwrap();
    let part = |rungs: Result<Rungs, LadderError>| {
        let rungs = rungs.unwrap();
        let count = rungs.steps();
        (rungs.sigmas().to_vec(), count, rungs.initial_scale())
    };
    let whole = || rungs.clone();
    assert_eq!(part(whole().starting_at(2)), (vec![2.0, 1.0, 0.0], 2, 2.0));
    assert_eq!(part(whole().starting_at(0)).2, 8.0);
    let end = whole().starting_at(2).unwrap();
    let ends = (
        end.steps_of_whole(),
        end.index_in_whole(1),
        end.steps_left(1),
    );
    assert_eq!(ends, (4, 3, 1));
    let start = whole().ending_at(2).unwrap();
    assert_eq!((start.steps_of_whole(), start.steps_left(1)), (4, 3));
    let after = start.after(1).unwrap();
    assert_eq!((after.index, after.sigma, after.timestep), (2, 2.0, 500.0));
    assert_eq!(start.at(1, 2.0).timestep, 500.0);
    assert_eq!(end.after(1), None);
    assert_eq!(part(whole().ending_at(2)), (vec![8.0, 4.0, 2.0], 2, 9.0));
    assert_eq!(whole().ending_at(4).as_ref(), Ok(&rungs));
    let none = |first, end| {
        let steps = 4;
        Err(LadderError::Part { first, end, steps })
    };
    assert_eq!(whole().starting_at(4), none(4, 4));
    assert_eq!(whole().ending_at(0), none(0, 0));
    assert_eq!(whole().ending_at(5), none(0, 5));

    // The two parts of a split meet: timesteps of at least 500 before it, the others after it.
    assert_eq!(
        part(whole().denoising_end(0.5)),
        (vec![8.0, 4.0, 2.0, 1.0], 3, 9.0)
    );
    assert_eq!(part(whole().denoising_start(0.5)).0, [1.0, 0.0]);
    assert_eq!(part(whole().denoising_end(0.3)).0, [8.0, 4.0, 2.0]);
    assert_eq!(whole().denoising_end(1.0).as_ref(), Ok(&rungs));
    assert_eq!(
        whole().denoising_start(0.1).as_ref().map(Rungs::steps),
        Ok(4)
    );
    assert!(whole().denoising_end(0.1).is_err() && whole().denoising_start(0.9).is_err());
}
