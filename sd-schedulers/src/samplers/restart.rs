use std::ops::ControlFlow;

use super::heun::HeunStep;
use super::steps::add;
use crate::ladder::karras;
use crate::{Calls, Clip, Run, Rungs, Sampler, Step};

/// The most steps and times of a segment.
const MOST: usize = 1000;

/// Restart: Heun's method that at some sigmas goes back up with fresh noise and down again, <https://arxiv.org/abs/2306.14878>. Second
/// order in between, two model calls a step but one for a step to sigma 0; the authors' `restart_sampler` and WebUI's "Restart".
///
/// On reaching the rung next to a segment's `low`, and as often as it says: x + s_noise sqrt(high² - low²) noise, then steps of
/// Heun's method on Karras rungs (rho 7) from `high` back to that rung.
///
/// [`Step::total`] counts the steps of segments too.
#[derive(Clone, Debug, PartialEq)]
pub struct Restart {
    /// What is gone again; of two segments that begin on the same rung the later one counts. Default `None`, WebUI's plan by the number of
    /// steps N, of a [part](Rungs::starting_at) of a run that of the part: below 20 none; to 35 nine of the steps once, from 36 on N / 4 (whole
    /// division) of them twice, from 0.1 to 2, and the other steps on Karras rungs between the ladder's first and last. So there it takes only
    /// the ends from the ladder, and N steps in all.
    pub segments: Option<Vec<RestartSegment>>,
    /// Whether a segment goes up to the rung next to its `high` (the default, WebUI's) or to `high` itself (the authors').
    pub snap: bool,
    /// What the noise is multiplied by. Default 1; below 0 it is taken for 0. The authors' code has 1.003.
    pub s_noise: f32,
}

/// A part of the way that [`Restart`] goes more than once.
///
/// The authors' values for Stable Diffusion, by the guidance scale: 3: 0.1 to 3, nine steps, twice; 5 and 8: 0.1 to 2, nine steps,
/// twice. (They count points, one more than steps.)
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RestartSegment {
    /// The sigma to restart from: stands for the rung next to it, and for none if that is the first.
    pub low: f32,
    /// The sigma to go back up to. A segment without a way, or with one that is not finite, is left out.
    pub high: f32,
    /// The number of steps from there down again; 0 leaves the segment out, more than 1000 are 1000.
    pub steps: usize,
    /// How many times; more than 1000 are 1000.
    pub times: usize,
}

impl Default for Restart {
    fn default() -> Self {
        Self {
            segments: None,
            snap: true,
            s_noise: 1.0,
        }
    }
}

impl Restart {
    /// The sigmas that are visited; where they rise is a restart.
    fn path(&self, rungs: &Rungs) -> Vec<f32> {
        let (main, segments) = self.plan(rungs);
        let mut path = vec![main[0]];
        for (index, &low) in main.iter().enumerate().skip(1) {
            path.push(low);
            let here = |segment: &&RestartSegment| nearest(&main, segment.low) == index;
            let Some(segment) = segments.iter().rfind(here) else {
                continue;
            };
            let high = if self.snap {
                main[nearest(&main, segment.high)]
            } else {
                segment.high
            };
            if segment.steps == 0 || !(high > low && high.is_finite()) {
                continue;
            }
            for _ in 0..segment.times.min(MOST) {
                path.extend(karras_points(segment.steps.min(MOST) + 1, high, low));
            }
        }
        path
    }

    /// The main ladder and the segments.
    fn plan(&self, rungs: &Rungs) -> (Vec<f32>, Vec<RestartSegment>) {
        let (given, count) = (rungs.sigmas(), rungs.steps());
        if let Some(segments) = &self.segments {
            return (given.to_vec(), segments.clone());
        }
        let (steps, times) = match count {
            0..20 => return (given.to_vec(), Vec::new()),
            20..36 => (9, 1),
            _ => (count / 4, 2),
        };
        let points = karras_points(count - steps * times, given[0], given[count - 1]);
        let segment = RestartSegment {
            low: 0.1,
            high: 2.0,
            steps,
            times,
        };
        (points.chain([given[count]]).collect(), vec![segment])
    }
}

impl Sampler for Restart {
    fn calls(&self, rungs: &Rungs) -> Calls {
        let calls_of = |pair: &[f32]| {
            if pair[1] > pair[0] {
                0
            } else if pair[1] == 0.0 {
                1
            } else {
                2
            }
        };
        Calls::Exactly(self.path(rungs).windows(2).map(calls_of).sum())
    }

    fn sample(&self, x: &mut [f32], rungs: &Rungs, run: &mut dyn Run) -> ControlFlow<()> {
        let path = self.path(rungs);
        let total = path.windows(2).filter(|pair| pair[1] <= pair[0]).count();
        let (mut step, mut noise) = (HeunStep::new(Clip::None, x.len()), vec![0.0; x.len()]);
        let mut index = 0;
        for pair in path.windows(2) {
            let (sigma, next) = (pair[0], pair[1]);
            if next > sigma {
                let (low, high) = (f64::from(sigma), f64::from(next));
                let factor = f64::from(self.s_noise) * (high * high - low * low).sqrt();
                if factor > 0.0 {
                    run.noise(sigma, next, &mut noise);
                    add(x, factor, &noise);
                }
                continue;
            }
            let to = (next > 0.0).then(|| rungs.at_sigma(next));
            step.take(x, rungs.at_sigma(sigma), to, run)?;
            run.step(Step {
                index,
                total,
                sigma,
                next,
                x,
                denoised: &step.denoised,
            })?;
            index += 1;
        }
        ControlFlow::Continue(())
    }
}

/// The place of the sigma next to `sigma`, the first of two as near.
fn nearest(sigmas: &[f32], sigma: f32) -> usize {
    let distance = |&i: &usize| (f64::from(sigmas[i]) - f64::from(sigma)).abs();
    let places = 0..sigmas.len();
    let nearest = places.min_by(|a, b| distance(a).total_cmp(&distance(b)));
    nearest.unwrap_or(0)
}

/// The sigmas of a Karras ladder with rho 7, both ends included.
fn karras_points(points: usize, from: f32, to: f32) -> impl Iterator<Item = f32> {
    let intervals = points.saturating_sub(1).max(1) as f64;
    let share = move |i: usize| i as f64 / intervals;
    (0..points).map(move |i| karras(from.into(), to.into(), 7.0, share(i)) as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn karras_rungs_keep_their_ends_and_the_nearest_is_found() {
        let rungs: Vec<f32> = karras_points(10, 14.5, 0.03).collect();
        assert_eq!((rungs.len(), rungs[0], rungs[9]), (10, 14.5, 0.03));
        assert_eq!(karras_points(3, 2.0, 0.0).last(), Some(0.0));
        let sigmas = [4.0, 2.0, 1.0, 0.0];
        for (sigma, place) in [(9.0, 0), (3.0, 0), (1.6, 1), (0.5, 2), (0.1, 3)] {
            assert_eq!(nearest(&sigmas, sigma), place);
        }
    }
}
