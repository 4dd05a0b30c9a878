//! Parts of a run.

use super::Rungs;
use crate::LadderError;
use crate::ladder::decimal;
use crate::schedule::Kind;

impl Rungs {
    /// The part of the run that begins at rung `first`, for image to image: its first x is the clean sample plus
    /// [`initial_scale`](Self::initial_scale) times unit noise, which is now the sigma of that rung. (On
    /// [`Path::Flow`](crate::Path::Flow) the clean sample is multiplied by `1 - sigma`.) [`StrengthRule`](crate::StrengthRule) says which rung.
    ///
    /// # Errors
    /// [`LadderError::Part`] if there is no such rung.
    pub fn starting_at(mut self, first: usize) -> Result<Self, LadderError> {
        self.check_part(first, self.steps())?;
        self.part.start += first;
        self.initial_scale = self.sigmas[self.part.start];
        Ok(self)
    }

    /// The part of the run that ends at the sigma of rung `end`, for another model to go on from there with
    /// [`starting_at`](Self::starting_at) the same.
    ///
    /// # Errors
    /// [`LadderError::Part`] if `end` is 0 or more than the number of rungs; that number leaves the run as it is.
    pub fn ending_at(mut self, end: usize) -> Result<Self, LadderError> {
        self.check_part(0, end)?;
        self.part.end = self.part.start + end;
        Ok(self)
    }

    /// [`starting_at`](Self::starting_at) the first rung whose timestep is below `T - fraction · T`, rounded half to even: `denoising_start` of
    /// diffusers' SDXL pipelines, whose x is that of a run with the same [`denoising_end`](Self::denoising_end), without fresh noise.
    ///
    /// # Errors
    /// [`LadderError::Part`] if there is no such rung, [`LadderError::Model`] for an EDM model, whose timesteps are no part of T.
    pub fn denoising_start(self, fraction: f32) -> Result<Self, LadderError> {
        let first = self.rungs_before(fraction)?;
        self.starting_at(first)
    }

    /// [`ending_at`](Self::ending_at) the first rung whose timestep is below `T - fraction · T`, rounded half to even: `denoising_end` of
    /// diffusers' SDXL pipelines. If there is no such rung, the run is as it is.
    ///
    /// # Errors
    /// [`LadderError::Part`] if no rung is left, [`LadderError::Model`] for an EDM model, whose timesteps are no part of T.
    pub fn denoising_end(self, fraction: f32) -> Result<Self, LadderError> {
        let end = self.rungs_before(fraction)?;
        self.ending_at(end)
    }

    /// How many rungs have a timestep of at least `T - fraction · T`.
    fn rungs_before(&self, fraction: f32) -> Result<usize, LadderError> {
        if self.schedule.kind() == Kind::Edm {
            return Err(LadderError::Model {
                ladder: "a part by timesteps",
                model: "an EDM",
            });
        }
        let trained = self.schedule.num_train_timesteps() as f64;
        let cut = (trained - decimal(fraction) * trained).round_ties_even();
        let before = |&timestep: &f32| f64::from(timestep) >= cut;
        Ok(self.timesteps().partition_point(before))
    }

    fn check_part(&self, first: usize, end: usize) -> Result<(), LadderError> {
        let steps = self.steps();
        if first < end && end <= steps {
            return Ok(());
        }
        Err(LadderError::Part { first, end, steps })
    }

    /// The number of rungs that the whole run has of which this is a part ([`starting_at`](Self::starting_at),
    /// [`ending_at`](Self::ending_at)); [`steps`](Self::steps) if it is whole. It is what samplers mean whose formulas speak of N, so that
    /// the parts of a run are what the whole is. But for two, which make rungs of their own between the ends of the part and take its number of
    /// steps: [`DpmFast`](crate::DpmFast), and [`Restart`](crate::Restart) without segments of one's own.
    pub fn steps_of_whole(&self) -> usize {
        self.timesteps.len()
    }

    /// The place of rung `index` among those of the whole run.
    pub fn index_in_whole(&self, index: usize) -> usize {
        self.part.start.saturating_add(index)
    }

    /// The number of steps that are left of the whole run at rung `index`, the one from there included: 1 at its last rung.
    pub fn steps_left(&self, index: usize) -> usize {
        self.steps_of_whole()
            .saturating_sub(self.index_in_whole(index))
    }
}
