//! The noise levels that a run visits.

use std::sync::Arc;

use crate::{LadderError, NoiseSchedule};

/// The noise levels of one run, noisiest first, and the training timestep that the model is told at each.
#[derive(Clone, Debug, PartialEq)]
pub struct Rungs {
    schedule: Arc<NoiseSchedule>,
    sigmas: Vec<f32>,
    timesteps: Vec<f32>,
    initial_scale: f32,
}

/// One noise level of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rung {
    /// Its place on the ladder: 0 is the noisiest.
    pub index: usize,
    /// The standard deviation of the noise, above 0, in the variance-exploding scaling.
    pub sigma: f32,
    /// The training timestep the model is told: 0 to T - 1, whole or not.
    pub timestep: f32,
}

impl Rungs {
    /// Rungs of one's own: `sigmas` with the 0 at the end, `timesteps` one fewer, and what unit noise is multiplied by
    /// to make the first x (see [`FirstX`](crate::FirstX)).
    ///
    /// # Errors
    /// [`LadderError`] for lengths that do not fit, sigmas that are not finite or do not fall strictly to a last one of
    /// 0, timesteps outside 0 to T - 1, and a scale that is not above 0.
    pub fn new(
        schedule: &Arc<NoiseSchedule>,
        sigmas: Vec<f32>,
        timesteps: Vec<f32>,
        initial_scale: f32,
    ) -> Result<Self, LadderError> {
        if timesteps.is_empty() || sigmas.len() != timesteps.len() + 1 {
            return Err(LadderError::Lengths {
                sigmas: sigmas.len(),
                timesteps: timesteps.len(),
            });
        }
        let mut above = f32::INFINITY;
        for (index, &sigma) in sigmas.iter().enumerate() {
            let falls = if index == timesteps.len() {
                sigma == 0.0
            } else {
                sigma > 0.0
            };
            if !(falls && sigma < above) {
                return Err(LadderError::Sigma { index, sigma });
            }
            above = sigma;
        }
        let max = schedule.num_train_timesteps() - 1;
        for (index, &timestep) in timesteps.iter().enumerate() {
            if !(timestep >= 0.0 && timestep <= max as f32) {
                return Err(LadderError::Timestep {
                    index,
                    timestep,
                    max,
                });
            }
        }
        if !(initial_scale > 0.0 && initial_scale.is_finite()) {
            return Err(LadderError::InitialScale(initial_scale));
        }
        Ok(Self {
            schedule: Arc::clone(schedule),
            sigmas,
            timesteps,
            initial_scale,
        })
    }

    /// The schedule the rungs were taken from.
    pub fn schedule(&self) -> &Arc<NoiseSchedule> {
        &self.schedule
    }

    /// The N sigmas of the rungs and the 0 they lead to: finite, strictly falling.
    pub fn sigmas(&self) -> &[f32] {
        &self.sigmas
    }

    /// The N training timesteps the model is told, 0 to T - 1.
    pub fn timesteps(&self) -> &[f32] {
        &self.timesteps
    }

    /// What unit noise is multiplied by to make the first x.
    pub fn initial_scale(&self) -> f32 {
        self.initial_scale
    }

    /// The number of rungs N: 1 or more.
    pub fn steps(&self) -> usize {
        self.timesteps.len()
    }

    /// Rung `index`.
    ///
    /// # Panics
    /// If `index` is not below [`steps`](Self::steps).
    pub fn rung(&self, index: usize) -> Rung {
        Rung {
            index,
            sigma: self.sigmas[index],
            timestep: self.timesteps[index],
        }
    }

    /// Every rung, noisiest first.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Rung> + '_ {
        (0..self.steps()).map(|index| self.rung(index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SchedulerConfig;

    #[test]
    fn rungs_of_ones_own_are_checked() {
        let schedule = Arc::new(NoiseSchedule::new(&SchedulerConfig::default()).unwrap());
        let new = |sigmas: &[f32], timesteps: &[f32], scale| {
            Rungs::new(&schedule, sigmas.to_vec(), timesteps.to_vec(), scale)
                .map(|rungs| rungs.steps())
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
        assert_eq!(
            new(&[1.0, 0.5], &[5.0], 1.0),
            Err(LadderError::Sigma {
                index: 1,
                sigma: 0.5
            })
        );
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
                max: 999,
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
}
