//! Parts of a run.

use super::Rungs;
use crate::ladders::LadderError;
use crate::ladders::decimal;
use crate::schedule::Kind;

impl Rungs {
    /// Returns the part of the run that begins at rung `first`, for image to image.
    ///
    /// The first x of the part is the clean sample plus [`initial_scale`](Self::initial_scale)
    /// times unit noise. The scale is now the sigma of rung `first`. On
    /// [`NoisePath::Flow`](crate::ladders::NoisePath::Flow), the clean sample is multiplied by
    /// `1 - sigma`. [`StrengthRule`](crate::ladders::StrengthRule) computes `first` from a
    /// strength.
    ///
    /// # Errors
    /// [`LadderError::Part`] if there is no rung `first`.
    pub fn starting_at(mut self, first: usize) -> Result<Self, LadderError> {
        self.check_part(first, self.steps())?;
        self.part.start += first;
        self.initial_scale = self.sigmas[self.part.start];
        Ok(self)
    }

    /// Returns the part of the run that ends at the sigma of rung `end`.
    ///
    /// Another model can continue from there, with [`starting_at`](Self::starting_at) the same
    /// rung.
    ///
    /// # Errors
    /// [`LadderError::Part`] if `end` is 0 or more than the number of rungs. An `end` equal to the
    /// number of rungs leaves the run unchanged.
    pub fn ending_at(mut self, end: usize) -> Result<Self, LadderError> {
        self.check_part(0, end)?;
        self.part.end = self.part.start + end;
        Ok(self)
    }

    /// Returns the part of the run from the first rung whose timestep is below `T - fraction · T`,
    /// rounded half to even.
    ///
    /// This is `denoising_start` of diffusers' SDXL pipelines. Its x comes from a run with the same
    /// fraction in [`denoising_end`](Self::denoising_end), without fresh noise.
    ///
    /// # Errors
    /// - [`LadderError::Part`] if there is no such rung.
    /// - [`LadderError::Model`] for an EDM model, whose timesteps are not fractions of T.
    pub fn denoising_start(self, fraction: f32) -> Result<Self, LadderError> {
        let first = self.rungs_before(fraction)?;
        self.starting_at(first)
    }

    /// Returns the part of the run up to the first rung whose timestep is below
    /// `T - fraction · T`, rounded half to even.
    ///
    /// This is `denoising_end` of diffusers' SDXL pipelines. If there is no such rung, the run is
    /// unchanged.
    ///
    /// # Errors
    /// - [`LadderError::Part`] if no rung is left.
    /// - [`LadderError::Model`] for an EDM model, whose timesteps are not fractions of T.
    pub fn denoising_end(self, fraction: f32) -> Result<Self, LadderError> {
        let end = self.rungs_before(fraction)?;
        self.ending_at(end)
    }

    /// The number of rungs whose timestep is at least `T - fraction · T`.
    fn rungs_before(&self, fraction: f32) -> Result<usize, LadderError> {
        if self.schedule.kind() == Kind::Edm {
            return Err(LadderError::Model {
                ladder: "a part of a run by timesteps",
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

    /// Returns the number of rungs of the whole run, of which this may be a part.
    ///
    /// [`starting_at`](Self::starting_at) and [`ending_at`](Self::ending_at) make parts. For a
    /// whole run, it is equal to [`steps`](Self::steps).
    ///
    /// Samplers whose formulas contain N use this number, so that the parts of a run add up to the
    /// whole. There are two exceptions, which make their own rungs between the ends of the part and
    /// use its number of steps: [`DpmFast`](crate::samplers::DpmFast), and
    /// [`Restart`](crate::samplers::Restart) without given segments.
    pub fn steps_of_whole(&self) -> usize {
        self.timesteps.len()
    }

    /// Returns the index of rung `index` among the rungs of the whole run.
    pub fn index_in_whole(&self, index: usize) -> usize {
        self.part.start.saturating_add(index)
    }

    /// Returns the number of steps that are left of the whole run at rung `index`, including the
    /// step from there. It is 1 at the last rung of the whole run.
    pub fn steps_left(&self, index: usize) -> usize {
        self.steps_of_whole()
            .saturating_sub(self.index_in_whole(index))
    }
}
