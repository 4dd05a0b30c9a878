//! The noise levels that a run visits.

mod parts;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{NoiseSchedule, ladders::LadderError};

/// How a clean sample and noise make a noisy one. It is the scaling of x and sigma in a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NoisePath {
    /// Variance exploding: x is the clean sample plus `sigma` times unit noise. Sigma is 0 or
    /// above.
    #[default]
    Exploding,
    /// The straight path of flow matching: x is `1 - sigma` times the clean sample plus `sigma`
    /// times unit noise. Sigma lies in `0.0..=1.0`.
    ///
    /// Divided by `1 - sigma`, x is in the scaling of [`Exploding`](Self::Exploding), with the
    /// sigma `sigma / (1 - sigma)`.
    Flow,
}

/// The noise levels of one run, noisiest first, with the training timestep that the model is given
/// at each.
#[derive(Clone, Debug, PartialEq)]
pub struct Rungs {
    schedule: Arc<NoiseSchedule>,
    path: NoisePath,
    /// The sigmas of the whole run.
    sigmas: Vec<f32>,
    timesteps: Vec<f32>,
    /// The rungs of the whole run that this part visits.
    part: Range<usize>,
    initial_scale: f32,
}

/// One noise level of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rung {
    /// The index among the rungs of the run, or of this part of it. 0 is the noisiest.
    pub index: usize,
    /// The noise level, above 0, in the scaling of `path`.
    pub sigma: f32,
    /// The training timestep that the model is given. It need not be whole.
    pub timestep: f32,
    /// The scaling of x and sigma.
    pub path: NoisePath,
}

impl Rungs {
    /// Makes rungs from given sigmas and timesteps, in the scaling of the schedule's sigmas.
    ///
    /// `sigmas` ends with the sigma that the run leads to, usually 0. `timesteps` has one element
    /// less. `initial_scale` multiplies unit noise to make the first x (see
    /// [`FirstX`](crate::ladders::FirstX)).
    ///
    /// # Errors
    /// - [`LadderError::Lengths`] if there is no timestep, or if `sigmas` does not have exactly one
    ///   element more than `timesteps`.
    /// - [`LadderError::Sigma`] for a sigma that is not finite, not above 0 or not below the sigma
    ///   before it. Only the last sigma may be 0, or equal to the sigma before it. On a flow model,
    ///   a sigma above 1 is an error too.
    /// - [`LadderError::Timestep`] for a timestep outside [`NoiseSchedule::timestep_range`].
    /// - [`LadderError::InitialScale`] for a scale that is not finite or not above 0.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use sd_schedulers::{NoiseSchedule, Rungs, SchedulerConfig};
    ///
    /// let schedule = Arc::new(NoiseSchedule::new(&SchedulerConfig::default())?);
    /// let rungs = Rungs::new(&schedule, vec![14.6, 2.0, 0.0], vec![999.0, 500.0], 14.6)?;
    /// assert_eq!(rungs.steps(), 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
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
        let highest = match schedule.path() {
            NoisePath::Exploding => f32::MAX,
            NoisePath::Flow => 1.0,
        };
        let mut above = f32::INFINITY;
        for (index, &sigma) in sigmas.iter().enumerate() {
            // The last step may have no length: diffusers' DEIS and SA-Solver end like this.
            let last = index == timesteps.len();
            let in_range = sigma <= highest && (sigma > 0.0 || (sigma == 0.0 && last));
            if !(in_range && (sigma < above || (last && sigma == above))) {
                return Err(LadderError::Sigma { index, sigma });
            }
            above = sigma;
        }
        let [min, max] = schedule.timestep_range();
        for (index, &timestep) in timesteps.iter().enumerate() {
            if !(timestep >= min && timestep <= max) {
                return Err(LadderError::Timestep {
                    index,
                    timestep,
                    min,
                    max,
                });
            }
        }
        if !(initial_scale > 0.0 && initial_scale.is_finite()) {
            return Err(LadderError::InitialScale(initial_scale));
        }
        Ok(Self {
            schedule: Arc::clone(schedule),
            path: schedule.path(),
            part: 0..timesteps.len(),
            sigmas,
            timesteps,
            initial_scale,
        })
    }

    /// Converts the rungs of a flow model to the variance-exploding scaling, for samplers that know
    /// no other.
    ///
    /// Each sigma becomes `sigma / (1 - sigma)`, and the scale of the first x grows with it. The
    /// rungs of other models are returned unchanged.
    ///
    /// A sigma of 1 would become infinite. It counts as `1 - 1 / T`, or as the midpoint between 1
    /// and the next sigma if that is higher. The model is still given the timestep of sigma 1.
    pub fn exploding(self) -> Self {
        let sigmas: Vec<f64> = self.sigmas.iter().map(|&sigma| sigma.into()).collect();
        self.explode(&sigmas)
    }

    /// Does the same as [`exploding`](Self::exploding), with the sigmas of the whole run before
    /// they were rounded.
    pub(crate) fn explode(mut self, sigmas: &[f64]) -> Self {
        if self.path == NoisePath::Flow {
            let trained = self.schedule.num_train_timesteps() as f64;
            let mut highest = 1.0 - 1.0 / trained;
            if (sigmas[1] as f32) < 1.0 {
                highest = highest.max((1.0 + sigmas[1]) / 2.0);
            }
            for (exploded, &sigma) in self.sigmas.iter_mut().zip(sigmas) {
                let pure_noise = sigma as f32 >= 1.0;
                let sigma = if pure_noise { highest } else { sigma };
                *exploded = (sigma / (1.0 - sigma)) as f32;
            }
            self.initial_scale *= 1.0 + self.sigmas[self.part.start];
            self.path = NoisePath::Exploding;
        }
        self
    }

    /// Returns the scaling of x and sigma in the run.
    pub fn path(&self) -> NoisePath {
        self.path
    }

    /// Returns the schedule that the rungs were taken from.
    pub fn schedule(&self) -> &Arc<NoiseSchedule> {
        &self.schedule
    }

    /// Returns the N sigmas of the rungs, followed by the sigma that the run leads to, usually 0.
    ///
    /// The sigmas are finite and strictly decreasing, except that the last may repeat the one
    /// before it.
    pub fn sigmas(&self) -> &[f32] {
        &self.sigmas[self.part.start..=self.part.end]
    }

    /// Returns the N training timesteps that the model is given, all in
    /// [`NoiseSchedule::timestep_range`].
    pub fn timesteps(&self) -> &[f32] {
        &self.timesteps[self.part.clone()]
    }

    /// Returns the factor that turns unit noise into the first x.
    pub fn initial_scale(&self) -> f32 {
        self.initial_scale
    }

    /// Returns the number of rungs N, at least 1.
    pub fn steps(&self) -> usize {
        self.part.len()
    }

    /// Returns rung `index`.
    ///
    /// # Panics
    /// Panics if `index` is not below [`steps`](Self::steps).
    pub fn rung(&self, index: usize) -> Rung {
        Rung {
            index,
            sigma: self.sigmas()[index],
            timestep: self.timesteps()[index],
            path: self.path,
        }
    }

    /// Returns the rung that the step from rung `index` leads to, or `None` where the run ends.
    ///
    /// At the end of a part of a run, it is the first rung of the next part.
    pub fn after(&self, index: usize) -> Option<Rung> {
        let place = self.index_in_whole(index).saturating_add(1);
        let timestep = *self.timesteps.get(place)?;
        Some(Rung {
            index: index + 1,
            sigma: self.sigmas[place],
            timestep,
            path: self.path,
        })
    }

    /// Returns a noise level within the step that leaves rung `index`.
    ///
    /// At the sigma of that rung or of the next one, it has that rung's timestep. At another sigma,
    /// it has the schedule's timestep, not rounded.
    ///
    /// A sampler that makes more steps than there are rungs may keep counting. From index
    /// [`steps`](Self::steps) on, the rung is taken from the step that the sigma falls into.
    pub fn at(&self, index: usize, sigma: f32) -> Rung {
        if index >= self.steps() {
            return Rung {
                index,
                ..self.at_sigma(sigma)
            };
        }
        let known = [Some(self.rung(index)), self.after(index)];
        let mut known = known.into_iter().flatten();
        match known.find(|rung| rung.sigma == sigma) {
            Some(rung) => Rung { index, ..rung },
            None => self.between(index, sigma),
        }
    }

    /// Does the same as [`at`](Self::at), but always with the schedule's timestep of the sigma,
    /// even where a rung has another one.
    pub(crate) fn between(&self, index: usize, sigma: f32) -> Rung {
        Rung {
            index,
            sigma,
            timestep: self.schedule.invert(self.in_training(sigma)) as f32,
            path: self.path,
        }
    }

    /// Returns the noise level [at](Self::at) this sigma within whichever step it falls into.
    /// Beyond either end, the step is the nearest one.
    pub(crate) fn at_sigma(&self, sigma: f32) -> Rung {
        let above = self.sigmas()[..self.steps()].partition_point(|&rung| rung >= sigma);
        self.at(above.saturating_sub(1), sigma)
    }

    /// Converts a sigma of the schedule to the scaling of the run.
    pub(crate) fn in_run(&self, trained: f32) -> f64 {
        let trained = f64::from(trained);
        if self.is_exploded() {
            trained / (1.0 - trained)
        } else {
            trained
        }
    }

    /// Converts a sigma of the run to the scaling of the schedule.
    fn in_training(&self, sigma: f32) -> f64 {
        let sigma = f64::from(sigma);
        if self.is_exploded() {
            sigma / (1.0 + sigma)
        } else {
            sigma
        }
    }

    /// Whether the rungs are a flow model's, in the variance-exploding scaling.
    fn is_exploded(&self) -> bool {
        self.path != self.schedule.path()
    }

    /// Returns an iterator over the rungs, noisiest first.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Rung> + '_ {
        (0..self.steps()).map(|index| self.rung(index))
    }
}
