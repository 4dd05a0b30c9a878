//! The toy model of the golden suite and of `examples/schedulers.rs`.
//! `tests/golden/reference/toy.py` is the same model.

// Not every test file uses every item.
#![allow(dead_code)]

use std::ops::ControlFlow;

use sd_schedulers::{Prediction, Run, Rung, Rungs, Step};

pub const ELEMENTS: usize = 8;

pub type State = [f32; ELEMENTS];

/// Returns the first x at a sigma.
pub fn start(sigma: f32) -> State {
    std::array::from_fn(|i| (f64::from(sigma) * (i as f64 + 1.0).sin()) as f32)
}

/// A reported step.
#[derive(Clone, Debug)]
pub struct Reached {
    pub index: usize,
    pub total: usize,
    pub sigma: f32,
    pub next: f32,
    pub x: State,
}

/// A run of the toy model that records what happens.
#[derive(Debug)]
pub struct Toy {
    prediction: Prediction,
    /// The extra term inside the cosine for the output with the prompt.
    shift: f64,
    /// The timestep of each call.
    pub timesteps: Vec<f32>,
    pub steps: Vec<Reached>,
    /// The two sigmas of each draw.
    pub draws: Vec<[f32; 2]>,
    /// The number of calls that asked for both outputs.
    pub pairs: usize,
    /// The x and the sigma of the last call.
    pub asked: (Vec<f32>, f32),
    /// The output of the last call, with the prompt.
    pub denoised: Vec<f32>,
    /// The numbers of calls and of step reports that are answered before the run is stopped.
    pub stop_after: [usize; 2],
    /// Whether the run was stopped. Nothing may be called afterwards.
    stopped: bool,
}

impl Toy {
    pub fn new(prediction: Prediction) -> Self {
        Self {
            prediction,
            shift: 0.0,
            timesteps: Vec::new(),
            steps: Vec::new(),
            draws: Vec::new(),
            pairs: 0,
            asked: (Vec::new(), 0.0),
            denoised: Vec::new(),
            stop_after: [usize::MAX; 2],
            stopped: false,
        }
    }

    /// Makes a model with guidance if `guided` is true, for samplers that need both outputs.
    pub fn guided(prediction: Prediction, guided: bool) -> Self {
        Self {
            shift: if guided { 1.0 } else { 0.0 },
            ..Self::new(prediction)
        }
    }

    pub fn calls(&self) -> usize {
        self.timesteps.len()
    }

    /// Returns the state on reaching each rung. A flow model's states are in its own scaling.
    pub fn states(&self, rungs: &Rungs) -> Vec<State> {
        let scale = |sigma: f32| flow_scale(self.prediction, rungs, sigma);
        let state = |step: &Reached| step.x.map(|x| x / scale(step.next));
        self.steps.iter().map(state).collect()
    }

    fn output(&self, x: &[f32], at: Rung, shift: f64, denoised: &mut [f32]) {
        let scale = self.prediction.input_scale(at);
        let time = f64::from(at.timestep) / 100.0;
        for (i, (denoised, x)) in denoised.iter_mut().zip(x).enumerate() {
            let m = f64::from(x * scale);
            *denoised = (0.4 * m + 0.1 * (time + i as f64 + shift).cos()) as f32;
        }
        self.prediction.denoised(denoised, x, at);
    }

    fn ask(&mut self, x: &[f32], at: Rung, denoised: &mut [f32]) -> ControlFlow<()> {
        assert!(!self.stopped, "asked after it was stopped");
        if self.calls() == self.stop_after[0] {
            self.stopped = true;
            return ControlFlow::Break(());
        }
        self.output(x, at, self.shift, denoised);
        self.timesteps.push(at.timestep);
        self.asked = (x.to_vec(), at.sigma);
        self.denoised = denoised.to_vec();
        ControlFlow::Continue(())
    }
}

/// Returns the divisor that converts a flow model's state from the run's scaling to its own.
pub fn flow_scale(prediction: Prediction, rungs: &Rungs, sigma: f32) -> f32 {
    match (prediction, rungs.path()) {
        (Prediction::Flow, sd_schedulers::ladders::NoisePath::Exploding) => 1.0 + sigma,
        _ => 1.0,
    }
}

impl Run for Toy {
    fn denoise(&mut self, x: &[f32], at: Rung, denoised: &mut [f32]) -> ControlFlow<()> {
        self.ask(x, at, denoised)
    }

    fn denoise_both(
        &mut self,
        x: &[f32],
        at: Rung,
        denoised: &mut [f32],
        unconditional: &mut [f32],
    ) -> ControlFlow<()> {
        self.ask(x, at, denoised)?;
        self.pairs += 1;
        self.output(x, at, 0.0, unconditional);
        ControlFlow::Continue(())
    }

    fn noise(&mut self, from: f32, to: f32, out: &mut [f32]) {
        assert!(!self.stopped, "noise after it was stopped");
        let draw = self.draws.len() as f64;
        for (i, out) in out.iter_mut().enumerate() {
            *out = (7.0 * draw + i as f64).cos() as f32;
        }
        self.draws.push([from, to]);
    }

    fn step(&mut self, step: Step<'_>) -> ControlFlow<()> {
        assert!(!self.stopped, "a step after it was stopped");
        if self.steps.len() == self.stop_after[1] {
            self.stopped = true;
            return ControlFlow::Break(());
        }
        self.steps.push(Reached {
            index: step.index,
            total: step.total,
            sigma: step.sigma,
            next: step.next,
            x: std::array::from_fn(|i| step.x[i]),
        });
        ControlFlow::Continue(())
    }
}

/// Returns the relative distance between two states.
pub fn distance(found: &[f32], expected: &[f32]) -> f64 {
    let square = |v: f64| v * v;
    let pairs = found.iter().zip(expected);
    let apart: f64 = pairs
        .map(|(&f, &e)| square(f64::from(f) - f64::from(e)))
        .sum();
    let length: f64 = expected.iter().map(|&e| square(e.into())).sum();
    (apart / length).sqrt()
}
