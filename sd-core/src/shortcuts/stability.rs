use sd_schedulers::{NoiseSchedule, Prediction, Rung, ladders::NoisePath};
use serde::{Deserialize, Serialize};

use crate::Problem;

/// SADA's step criterion (Jiang et al. 2025, <https://arxiv.org/abs/2507.17135>): calls of the
/// network are skipped while the run is stable.
///
/// After each step, an Adams-Moulton formula of third order guesses the latents from the last three
/// gradients of the ODE. If the error of this guess points against the second difference of the
/// gradients, the next call is skipped: the last guided output of the network is used again, on the
/// guessed latents.
///
/// The authors' code also has a Lagrange interpolation and prunes tokens. This crate does neither.
///
/// The criterion looks at all values of a picture together, so pictures with this method do not
/// share batches. The pictures of a request may skip different steps. Flow models and EDM models
/// are refused.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Stability {
    /// The share of the run before which no step is skipped, `0.0..=1.0`. At least the first four
    /// steps are computed.
    ///
    /// Default: 0.2, as in the authors' code.
    pub start: f64,
    /// The share of the run after which no step is skipped, `0.0..=1.0`.
    ///
    /// Default: 0.94, as in the authors' code.
    pub end: f64,
    /// The largest number of steps that are skipped in a row, at least 1.
    ///
    /// Default: 4, as in the authors' code.
    pub most: usize,
}

impl Default for Stability {
    fn default() -> Self {
        Self {
            start: 0.2,
            end: 0.94,
            most: 4,
        }
    }
}

impl Stability {
    /// Returns the options that cannot be used.
    pub(super) fn problems(self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let shares = [("start", self.start), ("end", self.end)];
        for (name, share) in shares {
            if !(0.0..=1.0).contains(&share) {
                let field = format!("shortcuts.skip.stability.{name}");
                problems.push(Problem::new(field, "0 to 1", share));
            }
        }
        if self.most == 0 {
            let field = "shortcuts.skip.stability.most";
            problems.push(Problem::new(field, "1 or more", 0));
        }
        problems
    }
}

/// The state of the criterion in a run. Latents are in the variance-preserving scaling here.
#[derive(Debug)]
pub(crate) struct Criterion {
    options: Stability,
    prediction: Prediction,
    /// The beta of each training timestep.
    betas: Vec<f64>,
    /// The number of steps of the run.
    steps: usize,
    /// The number of calls so far.
    calls: usize,
    /// The number of calls skipped in a row.
    skipped: usize,
    /// The gradients of the last calls, the newest first, at most three.
    gradients: Vec<Vec<f32>>,
    /// The guess of the latents after the last call. Empty while there are too few gradients.
    guess: Vec<f32>,
    /// The last guided output of the network.
    output: Vec<f32>,
}

impl Criterion {
    pub fn new(
        options: Stability,
        prediction: Prediction,
        schedule: &NoiseSchedule,
        steps: usize,
    ) -> Self {
        let bars = schedule.alpha_bars().iter().map(|&bar| f64::from(bar));
        let betas = bars.scan(1.0, |before, bar| {
            let beta = 1.0 - bar / *before;
            *before = bar;
            Some(beta)
        });
        Self {
            options,
            prediction,
            betas: betas.collect(),
            steps,
            calls: 0,
            skipped: 0,
            gradients: Vec::new(),
            guess: Vec::new(),
            output: Vec::new(),
        }
    }

    /// Sets the number of calls that another model has made before.
    pub fn begin_at(&mut self, calls: usize) {
        self.calls = calls;
    }

    /// Forgets the earlier calls, whose outputs say nothing about the next one.
    pub fn restart(&mut self) {
        self.skipped = 0;
        self.gradients.clear();
        self.guess.clear();
    }

    /// Returns whether the call for the latents `x` is skipped.
    pub fn skips(&mut self, x: &[f32], at: Rung) -> bool {
        let Self { options, steps, .. } = *self;
        let stable = !self.guess.is_empty() && self.error_against_curvature(x, at) <= 0.0;
        let [start, end] =
            [options.start, options.end].map(|share| (share * steps as f64) as usize);
        // The decision belongs to the step before this call.
        let during = self.calls > start.max(3) && self.calls <= end;
        let skips = self.skipped < options.most && stable && during;
        self.skipped = if skips { self.skipped + 1 } else { 0 };
        skips
    }

    /// Returns the mean of the error of the guess times the second difference of the gradients.
    fn error_against_curvature(&self, x: &[f32], at: Rung) -> f64 {
        let scale = preserving(at);
        let [first, second, third] = &self.gradients[..] else {
            return f64::INFINITY;
        };
        let gradients = first.iter().zip(second).zip(third);
        let terms = x.iter().zip(&self.guess).zip(gradients);
        let sum: f64 = terms
            .map(|((x, guess), ((first, second), third))| {
                let error = f64::from(x * scale - guess);
                error * f64::from((first - second) - (second - third))
            })
            .sum();
        sum / x.len().max(1) as f64
    }

    /// Writes what a skipped call uses: the network's last guided output to `output`, and the
    /// guessed latents, in the scaling of `at`, to `x`.
    pub fn skipped(&self, at: Rung, x: &mut Vec<f32>, output: &mut [f32]) {
        output.copy_from_slice(&self.output);
        let scale = preserving(at);
        x.clear();
        x.extend(self.guess.iter().map(|guess| guess / scale));
    }

    /// Ends a call for the latents `x`. `output` is the guided output of the network, or `None` if
    /// the call was skipped.
    pub fn end(&mut self, x: &[f32], at: Rung, output: Option<&[f32]>) {
        if let Some(output) = output {
            self.output.clear();
            self.output.extend_from_slice(output);
        }
        self.calls += 1;
        let mut gradient = match self.gradients.len() {
            3 => self.gradients.pop().unwrap_or_default(),
            _ => Vec::new(),
        };
        gradient.clear();
        gradient.extend_from_slice(&self.output);
        self.prediction.denoised(&mut gradient, x, at);
        let scale = preserving(at);
        let last = self.betas.len().saturating_sub(1);
        let beta = self.betas[(at.timestep.round().max(0.0) as usize).min(last)];
        let half = (0.5 * beta * self.steps as f64) as f32;
        for (gradient, x) in gradient.iter_mut().zip(x) {
            let noise = (x - *gradient) / at.sigma;
            *gradient = half * (noise / (at.sigma * scale) - x * scale);
        }
        self.gradients.insert(0, gradient);
        self.guess.clear();
        if let [first, second, third] = &self.gradients[..] {
            let step = 1.0 / self.steps as f32;
            let gradients = first.iter().zip(second).zip(third);
            let guesses = x.iter().zip(gradients);
            let guesses = guesses.map(|(x, ((first, second), third))| {
                x * scale - step * (0.625 * first + 0.75 * second - 0.375 * third)
            });
            self.guess.extend(guesses);
        }
    }
}

/// Returns the factor that takes latents to the variance-preserving scaling.
fn preserving(at: Rung) -> f32 {
    debug_assert_eq!(
        at.path,
        NoisePath::Exploding,
        "the plan refuses flow models"
    );
    1.0 / at.sigma.hypot(1.0)
}

#[cfg(test)]
mod tests {
    // A failed `unwrap` is a failed test.
    #![allow(clippy::unwrap_used)]

    use sd_schedulers::SchedulerConfig;

    use super::*;

    #[derive(serde::Deserialize)]
    struct Golden {
        sada: Vec<Case>,
    }

    /// A run of SADA, by its authors' code.
    #[derive(serde::Deserialize)]
    struct Case {
        prediction: String,
        most: usize,
        steps: Vec<Call>,
    }

    #[derive(serde::Deserialize)]
    struct Call {
        timestep: f32,
        sigma: f32,
        /// The latents in the variance-preserving scaling.
        x: Vec<f32>,
        output: Vec<f32>,
        skipped: bool,
        denoised: Option<Vec<f32>>,
    }

    #[test]
    fn skipped_calls_are_those_of_the_authors_code() {
        let golden = include_str!("../../tests/golden/shortcuts.json");
        let golden: Golden = serde_json::from_str(golden).unwrap();
        assert_eq!(golden.sada.len(), 3);
        let schedule = NoiseSchedule::new(&SchedulerConfig::default()).unwrap();
        for case in golden.sada {
            let prediction = match &*case.prediction {
                "epsilon" => Prediction::Epsilon,
                _ => Prediction::V,
            };
            let options = Stability {
                most: case.most,
                ..Stability::default()
            };
            let mut criterion = Criterion::new(options, prediction, &schedule, case.steps.len());
            for (index, call) in case.steps.iter().enumerate() {
                let at = Rung {
                    index,
                    sigma: call.sigma,
                    timestep: call.timestep,
                    path: NoisePath::Exploding,
                };
                let x: Vec<_> = call.x.iter().map(|x| x / preserving(at)).collect();
                let name = format!("{}, most {}, step {index}", case.prediction, case.most);
                assert_eq!(criterion.skips(&x, at), call.skipped, "{name}");
                if !call.skipped {
                    criterion.end(&x, at, Some(&call.output));
                    continue;
                }
                let (mut guess, mut output) = (Vec::new(), vec![0.0; x.len()]);
                criterion.skipped(at, &mut guess, &mut output);
                criterion.end(&x, at, None);
                prediction.denoised(&mut output, &guess, at);
                for (found, expected) in output.iter().zip(call.denoised.as_ref().unwrap()) {
                    let far = (found - expected).abs();
                    assert!(far <= 1e-5, "{name}: {found} {expected}");
                }
            }
        }
    }
}
