//! The noise levels that a run visits.

mod parts;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;

use crate::{LadderError, NoiseSchedule};

/// How a noisy sample is made of a clean one and noise, which is the scaling that x and sigma of a run are in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Path {
    /// Variance exploding: x is the clean sample plus `sigma` times unit noise, sigma from 0 to any number.
    #[default]
    Exploding,
    /// The straight path of flow matching: x is `1 - sigma` times the clean sample plus `sigma` times unit noise, sigma from 0 to 1.
    ///
    /// Divided by `1 - sigma` it is the other one, with `sigma / (1 - sigma)` for sigma.
    Flow,
}

/// The noise levels of one run, noisiest first, and the training timestep that the model is told at each.
#[derive(Clone, Debug, PartialEq)]
pub struct Rungs {
    schedule: Arc<NoiseSchedule>,
    path: Path,
    /// Those of the whole run.
    sigmas: Vec<f32>,
    timesteps: Vec<f32>,
    /// The rungs of this part of it.
    part: Range<usize>,
    initial_scale: f32,
}

/// One noise level of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rung {
    /// Its place among the rungs of the run, or of this part of it: 0 is the noisiest.
    pub index: usize,
    /// The noise level, above 0, on `path`.
    pub sigma: f32,
    /// The training timestep the model is told, whole or not.
    pub timestep: f32,
    /// The scaling of x and sigma.
    pub path: Path,
}

impl Rungs {
    /// Rungs of one's own on the path that the schedule's sigmas are given in: `sigmas` with the last, mostly 0, at the end, `timesteps` one
    /// fewer, and what unit noise is multiplied by to make the first x (see [`FirstX`](crate::FirstX)).
    ///
    /// # Errors
    /// [`LadderError`] for lengths that do not fit, sigmas that are not finite (of a flow model: above 1) or do not fall strictly to a last
    /// one of at least 0, where only the last may also be as large as the one before, timesteps that the schedule does not have, and a
    /// scale that is not above 0.
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
            Path::Exploding => f32::MAX,
            Path::Flow => 1.0,
        };
        let mut above = f32::INFINITY;
        for (index, &sigma) in sigmas.iter().enumerate() {
            // The last step may be of no length: diffusers' DEIS and SA-Solver end so.
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

    /// The same rungs of a flow model in the variance-exploding scaling, in which samplers run that know no other: `sigma / (1 - sigma)`, and
    /// the first x as much larger. Those of other models as they are.
    ///
    /// A sigma of 1, which would be infinite, counts as `1 - 1 / T`, or half-way from it to the next one's if that is higher. The model is
    /// told the timestep of 1.
    pub fn exploding(self) -> Self {
        let sigmas: Vec<f64> = self.sigmas.iter().map(|&sigma| sigma.into()).collect();
        self.explode(&sigmas)
    }

    /// [`exploding`](Self::exploding) of the sigmas of the whole run before they were rounded.
    pub(crate) fn explode(mut self, sigmas: &[f64]) -> Self {
        if self.path == Path::Flow {
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
            self.path = Path::Exploding;
        }
        self
    }

    /// The scaling of x and sigma in a run.
    pub fn path(&self) -> Path {
        self.path
    }

    /// The schedule the rungs were taken from.
    pub fn schedule(&self) -> &Arc<NoiseSchedule> {
        &self.schedule
    }

    /// The N sigmas of the rungs and the last, mostly 0, that they lead to: finite, strictly falling, but that the last may be the one
    /// before it once more.
    pub fn sigmas(&self) -> &[f32] {
        &self.sigmas[self.part.start..=self.part.end]
    }

    /// The N training timesteps the model is told, in [`NoiseSchedule::timestep_range`].
    pub fn timesteps(&self) -> &[f32] {
        &self.timesteps[self.part.clone()]
    }

    /// What unit noise is multiplied by to make the first x.
    pub fn initial_scale(&self) -> f32 {
        self.initial_scale
    }

    /// The number of rungs N: 1 or more.
    pub fn steps(&self) -> usize {
        self.part.len()
    }

    /// Rung `index`.
    ///
    /// # Panics
    /// If `index` is not below [`steps`](Self::steps).
    pub fn rung(&self, index: usize) -> Rung {
        Rung {
            index,
            sigma: self.sigmas()[index],
            timestep: self.timesteps()[index],
            path: self.path,
        }
    }

    /// The rung that the step from rung `index` leads to, be it in this part of the run or the first of the next one. None where the run ends.
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

    /// A noise level within the step that leaves rung `index`. At the sigma of that rung or of the
    /// next one it has their timestep; at another sigma it has the schedule's, not rounded.
    ///
    /// A sampler that makes more steps than there are rungs may go on counting: from
    /// [`steps`](Self::steps) on the step is the one that the sigma falls into.
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

    /// [`at`](Self::at), but with the timestep of the sigma itself also where a rung has been given another one.
    pub(crate) fn between(&self, index: usize, sigma: f32) -> Rung {
        Rung {
            index,
            sigma,
            timestep: self.schedule.invert(self.in_training(sigma)) as f32,
            path: self.path,
        }
    }

    /// [`at`](Self::at) this sigma within whichever step it falls into; beyond either end, that of the end.
    pub(crate) fn at_sigma(&self, sigma: f32) -> Rung {
        let above = self.sigmas()[..self.steps()].partition_point(|&rung| rung >= sigma);
        self.at(above.saturating_sub(1), sigma)
    }

    /// A sigma of the schedule in the scaling of the run.
    pub(crate) fn in_run(&self, trained: f32) -> f64 {
        let trained = f64::from(trained);
        if self.is_exploded() {
            trained / (1.0 - trained)
        } else {
            trained
        }
    }

    /// A sigma of the run in the scaling of the schedule.
    fn in_training(&self, sigma: f32) -> f64 {
        let sigma = f64::from(sigma);
        if self.is_exploded() {
            sigma / (1.0 + sigma)
        } else {
            sigma
        }
    }

    /// Whether it is a flow model's in the scaling of the others.
    fn is_exploded(&self) -> bool {
        self.path != self.schedule.path()
    }

    /// Every rung, noisiest first.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Rung> + '_ {
        (0..self.steps()).map(|index| self.rung(index))
    }
}
