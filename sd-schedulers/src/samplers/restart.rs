use std::ops::ControlFlow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::heun::HeunStep;
use super::row::{CallFormula, SamplerRow, WebUi};
use super::steps::add;
use crate::ladders::karras;
use crate::{Ladder, Run, Rungs, Sampler, Step, samplers::Calls, schedule::ClipSample};

/// The largest number of steps of a segment, and of its repetitions.
const MOST: usize = 1000;

/// The largest number of steps of a run with segments. Only a malicious file has more.
const MOST_STEPS: usize = 1_100_000;

/// Restart: Heun's method that goes back up with fresh noise at some sigmas and then down again,
/// <https://arxiv.org/abs/2306.14878>. In between, it is of second order and calls the model twice
/// per step, but once for a step to sigma 0.
///
/// Reference implementations: the authors' `restart_sampler` and WebUI's "Restart".
///
/// When the run reaches the rung nearest to a segment's `low`, it repeats the segment
/// [`times`](RestartSegment::times) times. Each repetition adds `s_noise * sqrt(high² - low²)`
/// times unit noise, and makes steps of Heun's method on Karras rungs (rho 7) from `high` back to
/// that rung.
///
/// [`Step::total`] counts the steps of segments too.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Restart {
    /// The segments to repeat. Of two segments that begin on the same rung, the later one counts.
    ///
    /// Default: `None`, which is WebUI's plan.
    ///
    /// A segment is left out if the run would have more than 1,100,000 steps with it.
    ///
    /// WebUI's plan depends on the number of steps N of the run, or of the
    /// [part](Rungs::starting_at) of it. Below 20 steps, nothing is repeated. From 20 to 35 steps,
    /// a segment is repeated once with nine steps. From 36 steps on, it is repeated twice with N /
    /// 4 steps each (integer division). The segment goes from sigma 2 down to 0.1, and the
    /// remaining steps are on Karras rungs between the ladder's first and last rung. From 20 steps
    /// on, the plan therefore takes only the ends from the ladder, and makes N steps in all.
    pub segments: Option<Vec<RestartSegment>>,
    /// Whether a segment goes up to the rung nearest to its `high`, as in WebUI. Otherwise it goes
    /// up to `high` itself, as in the authors' code.
    ///
    /// Default: true.
    pub snap: bool,
    /// A factor for the noise. A value below 0 counts as 0. The authors' code has 1.003.
    ///
    /// Default: 1.
    pub s_noise: f32,
}

/// A part of the way that [`Restart`] repeats.
///
/// The authors' values for Stable Diffusion depend on the guidance scale. For 3, they are 0.1 to 3,
/// nine steps, twice. For 5 and 8, they are 0.1 to 2, nine steps, twice. The authors count points,
/// of which there is one more than steps.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestartSegment {
    /// The sigma to restart from. It stands for the nearest rung. If that is the first rung, the
    /// segment is left out.
    pub low: f32,
    /// The sigma to go back up to. If it is not finite or not above the rung, the segment is left
    /// out.
    pub high: f32,
    /// The number of steps from `high` down again. With 0, the segment is left out. A value above
    /// 1000 counts as 1000.
    pub steps: usize,
    /// The number of repetitions. A value above 1000 counts as 1000.
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
    /// Returns the sigmas that the run visits. Where they rise, the run restarts.
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
            let (steps, times) = (segment.steps.min(MOST), segment.times.min(MOST));
            if path.len() + steps * times > MOST_STEPS {
                continue;
            }
            for _ in 0..times {
                path.extend(karras_points(steps + 1, high, low));
            }
        }
        path
    }

    /// Returns the main ladder and the segments.
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

pub(super) const ROW: SamplerRow = SamplerRow::new::<Restart>(
    "restart",
    "Restart",
    "https://arxiv.org/abs/2306.14878",
    Ladder::karras(),
    |_| Box::new(Restart::default()),
)
.webui(WebUi::new(&[], Ladder::karras, || {
    Arc::new(Restart::default())
}))
.order(2)
.calls(CallFormula::TwoNLess1)
.stochastic();

impl Sampler for Restart {
    fn calls_per_step(&self) -> usize {
        2
    }

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

    fn adds_noise(&self) -> bool {
        self.s_noise > 0.0
    }

    fn sample(&self, x: &mut [f32], rungs: &Rungs, run: &mut dyn Run) -> ControlFlow<()> {
        let path = self.path(rungs);
        let total = path.windows(2).filter(|pair| pair[1] <= pair[0]).count();
        let (mut step, mut noise) = (HeunStep::new(ClipSample::None, x.len()), vec![0.0; x.len()]);
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

/// Returns the index of the sigma nearest to `sigma`, or the first of two that are equally near.
fn nearest(sigmas: &[f32], sigma: f32) -> usize {
    let distance = |&i: &usize| (f64::from(sigmas[i]) - f64::from(sigma)).abs();
    let places = 0..sigmas.len();
    let nearest = places.min_by(|a, b| distance(a).total_cmp(&distance(b)));
    nearest.unwrap_or(0)
}

/// Returns the sigmas of a Karras ladder with rho 7, both ends included.
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
