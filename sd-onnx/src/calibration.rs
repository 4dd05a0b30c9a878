//! Measures which layers of a UNet can compute in int8, and in which ranges.
//!
//! A calibration draws a few pictures in f32 with the model's own prompt encoder, sampler and
//! defaults, in two rounds:
//!
//! 1. The UNet also returns the lowest and highest values of each convolution's input and output.
//! 2. The UNet also computes each layer in int8, on the same input as in f32, and returns the
//!    squared error. Layers with a large error stay in f32.
//!
//! The result is kept in the cache folder, under a hash of the UNet's weights, of the LoRAs merged
//! into them, and of the builder's prediction.

use std::{
    collections::BTreeMap,
    fs, io,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Instant,
};

use ndarray::{ArrayViewMut4, Ix4};
use sd_core::{BoxError, Call, Denoiser, Event, Inputs, Pipeline, Request, StopToken, files};
use sd_text::outside::{self, printable};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    Error,
    denoiser::Takes,
    engine::Engine,
    graph::{Dialect, Int8, TAPS, Tap},
    hash,
    models::unet::{self, Steering, UnetConfig},
    session::Session,
    weights::{Step, Weights},
};

/// The version of the file, and of the way in which its values are measured. A change of either
/// needs another version, so that all calibrations are made anew.
const VERSION: u32 = 1;

/// The largest file that is read, in bytes. The file of SDXL has 3 MB.
const MOST_FILE: u64 = 64 << 20;

/// The prompts of the calibration. They cover people, animals, things, landscapes and drawings.
const PROMPTS: [&str; 3] = [
    "portrait photo of an old fisherman, detailed face, soft light",
    "a red fox beside a blue bicycle on a street, watercolour",
    "mountain lake at sunrise, wide landscape, sharp focus",
];

/// The steps of a picture in each round. The ranges depend on the noise level, which few steps
/// cover as well as many.
const STEPS: [usize; 2] = [6, 3];

/// The number of prompts in each round.
const PICTURES: [usize; 2] = [PROMPTS.len(), 1];

/// The share by which the measured ranges are widened on each side, because other pictures have
/// values outside of them. A value outside of the range costs more than larger steps do.
const MARGIN_IN: f32 = 0.1;
const MARGIN_OUT: f32 = 0.5;

/// The largest squared error of a layer in int8, relative to the squares of its output. A layer
/// with a larger error stays in f32.
///
/// In the small model of the examples, the median of the errors is 0.0001, and nine in ten are
/// below 0.0006. Three of its 104 layers are above the limit. All three are 1×1 shortcuts of
/// residual blocks, which take little time, and the largest error is 0.006.
const MOST_ERROR: f32 = 0.001;

/// The layers of a UNet that compute in int8.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Calibration {
    /// The ranges of the convolutions.
    convs: BTreeMap<String, ConvRanges>,
    /// The relative squared error of each layer.
    errors: BTreeMap<String, f32>,
}

/// The values that a convolution reads and returns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ConvRanges {
    /// The lowest and the highest value of the input.
    input: [f32; 2],
    /// The lowest value of each output channel.
    low: Vec<f32>,
    /// The highest value of each output channel.
    high: Vec<f32>,
}

impl Calibration {
    /// Creates the calibration of a single layer, which computes in int8.
    #[cfg(test)]
    pub fn of(layer: &str, ranges: Option<ConvRanges>) -> Self {
        let layer = layer.to_owned();
        Self {
            convs: ranges
                .map(|ranges| (layer.clone(), ranges))
                .into_iter()
                .collect(),
            errors: [(layer, 0.0)].into(),
        }
    }

    /// Returns whether a layer computes in int8.
    pub fn is_int8(&self, layer: &str) -> bool {
        self.errors
            .get(layer)
            .is_some_and(|&error| error <= MOST_ERROR)
    }

    /// Returns the ranges of a convolution.
    pub fn conv(&self, layer: &str) -> Option<&ConvRanges> {
        self.convs.get(layer)
    }

    /// Returns whether the calibration is complete and fits these weights.
    fn fits(&self, weights: &Weights) -> bool {
        let rows = |layer: &str| Some(*weights.shape(&format!("{layer}.weight"))?.first()?);
        let ranges = self.convs.iter().all(|(layer, ranges)| {
            let ConvRanges { input, low, high } = ranges;
            rows(layer) == Some(low.len())
                && low.len() == high.len()
                && input
                    .iter()
                    .chain(low)
                    .chain(high)
                    .all(|value| value.is_finite())
        });
        ranges && !self.errors.is_empty() && self.errors.keys().all(|layer| rows(layer).is_some())
    }
}

impl ConvRanges {
    /// Returns the ranges before the first call: empty ones.
    pub fn new(outputs: usize) -> Self {
        Self {
            input: [0.0; 2],
            low: vec![0.0; outputs],
            high: vec![0.0; outputs],
        }
    }

    /// Extends the ranges by the numbers of a tap.
    pub fn extend(&mut self, numbers: &[f32]) {
        let (input, outputs) = numbers.split_at(2);
        let (low, high) = outputs.split_at(self.low.len());
        self.input = [self.input[0].min(input[0]), self.input[1].max(input[1])];
        for (all, value) in self.low.iter_mut().zip(low) {
            *all = all.min(*value);
        }
        for (all, value) in self.high.iter_mut().zip(high) {
            *all = all.max(*value);
        }
    }

    /// Returns the u8 form of the input.
    pub fn input(&self) -> Step {
        let [low, high] = self.input.map(|value| value * (1.0 + MARGIN_IN));
        Step::of(low, high)
    }

    /// Returns the u8 forms of the output channels.
    pub fn outputs(&self) -> Vec<Step> {
        let channels = self.low.iter().zip(&self.high);
        let widened = channels.map(|(low, high)| {
            let more = (high - low) * MARGIN_OUT;
            Step::of(low - more, high + more)
        });
        widened.collect()
    }
}

/// A UNet in int8: its parts, and its calibration once there is one.
pub(crate) struct Int8Unet {
    pub config: UnetConfig,
    pub weights: Arc<Weights>,
    pub engine: Engine,
    pub takes: Takes,
    /// Unset until the model is calibrated. The network cannot be loaded before.
    pub calibration: OnceLock<Arc<Calibration>>,
}

impl Int8Unet {
    /// Returns the weights with the calibration, from which graphs are written. `merged` are the
    /// weights with LoRAs, if there are any.
    ///
    /// # Errors
    /// [`Error::Missing`] before the calibration.
    pub fn calibrated(&self, merged: Option<Weights>) -> Result<Weights, Error> {
        let calibration = self.calibration.get().ok_or_else(|| Error::Missing {
            path: self.weights.path().to_path_buf(),
            what: "the calibration of the UNet for int8".into(),
            hint: "load the whole model once with `Builder::load`, which measures it".into(),
        })?;
        Ok(self.weights_with(merged, calibration.clone()))
    }

    fn weights_with(&self, merged: Option<Weights>, calibration: Arc<Calibration>) -> Weights {
        let mut weights = merged.unwrap_or_else(|| self.weights.copy());
        weights.calibration = Some(calibration);
        weights
    }

    /// Reads the calibration from its file.
    ///
    /// Returns whether there is one. A file that cannot be used is reported as a warning, and
    /// counts as none.
    pub fn read(&self, file: Option<&Path>) -> bool {
        let Some(file) = file else {
            return false;
        };
        let read = || -> Result<Calibration, String> {
            let bytes = outside::read(file, MOST_FILE).map_err(|error| error.to_string())?;
            let read = serde_json::from_slice::<Calibration>(&bytes);
            let calibration = read.map_err(|error| error.to_string())?;
            match calibration.fits(&self.weights) {
                true => Ok(calibration),
                false => Err("it does not fit the weights".into()),
            }
        };
        match read() {
            Ok(calibration) => self.calibration.set(calibration.into()).is_ok(),
            Err(problem) => {
                if file.exists() {
                    let path = printable(file.display());
                    tracing::warn!(
                        "{path}: the calibration is made again: {}",
                        printable(problem)
                    );
                }
                false
            }
        }
    }

    /// Draws the pictures of the calibration, and keeps the result in `file`. `pipeline` makes a
    /// pipeline with the given denoiser.
    ///
    /// # Errors
    /// - [`Error::Onnx`] when a network cannot be loaded.
    /// - [`Error::Calibration`] when a picture cannot be drawn.
    /// - The errors of `pipeline`, and of writing a graph.
    pub fn calibrate(
        &self,
        file: Option<&Path>,
        pipeline: impl Fn(Arc<dyn Denoiser>) -> Result<Pipeline, Error>,
    ) -> Result<(), Error> {
        let started = Instant::now();
        tracing::info!("the UNet is calibrated for int8, once for these weights");
        let mut calibration = Calibration::default();
        for (layer, numbers) in self.round(0, &calibration, &pipeline)? {
            let mut calls = numbers.chunks_exact(layer.count);
            let mut ranges = ConvRanges::new((layer.count - 2) / 2);
            calls.by_ref().for_each(|call| ranges.extend(call));
            calibration.convs.insert(layer.layer, ranges);
        }
        for (layer, numbers) in self.round(1, &calibration, &pipeline)? {
            let [error, all] = [0, 1].map(|at| {
                let calls = numbers.iter().skip(at).step_by(2);
                calls.map(|&number| f64::from(number)).sum::<f64>()
            });
            // JSON has no infinity.
            let error = error / all.max(f64::MIN_POSITIVE);
            let error = if error.is_finite() {
                error as f32
            } else {
                f32::MAX
            };
            calibration.errors.insert(layer.layer, error);
        }
        let layers = calibration.errors.len();
        let int8 = calibration
            .errors
            .keys()
            .filter(|layer| calibration.is_int8(layer));
        tracing::info!(
            layers,
            int8 = int8.count(),
            took = ?started.elapsed(),
            "the UNet is calibrated"
        );
        if let Some(file) = file
            && let Err(error) = write(file, &calibration)
        {
            let path = printable(file.display());
            tracing::warn!("{path}: the calibration could not be kept: {error}");
        }
        // Another thread cannot have set it: the model is still being loaded.
        let _ = self.calibration.set(calibration.into());
        Ok(())
    }

    /// Draws the pictures of a round. Returns the numbers of each tap, one call after the other.
    fn round(
        &self,
        round: usize,
        calibration: &Calibration,
        pipeline: impl Fn(Arc<dyn Denoiser>) -> Result<Pipeline, Error>,
    ) -> Result<Vec<(Tap, Vec<f32>)>, Error> {
        let weights = self.weights_with(None, calibration.clone().into());
        let dialect = Dialect {
            int8: [Int8::Ranges, Int8::Errors][round],
            ..self.engine.dialect()
        };
        let model = unet::steered(&self.config, &weights, Steering::default(), dialect)?;
        let tapped = Arc::new(Tapped {
            takes: self.takes.clone(),
            session: Session::new("UNet", &model, &self.engine)?,
            seen: Mutex::new(
                model
                    .taps
                    .iter()
                    .map(|tap| (tap.clone(), Vec::new()))
                    .collect(),
            ),
        });
        let pipeline = pipeline(tapped.clone())?;
        for (seed, prompt) in PROMPTS.iter().take(PICTURES[round]).enumerate() {
            let steps = pipeline.defaults().steps.min(STEPS[round]);
            let request = Request::new(*prompt).seed(seed as u64).steps(steps);
            let drawn = pipeline.run(&[request], &StopToken::new(), |event| match event {
                // The picture itself is not needed, so it is not decoded.
                Event::Step(progress) if progress.step.index + 1 == progress.step.total => {
                    ControlFlow::Break(())
                }
                Event::Step(progress) => {
                    let (step, total) = (progress.step.index + 1, progress.step.total);
                    tracing::info!(round, picture = seed, step, total, "calibrating");
                    ControlFlow::Continue(())
                }
                _ => ControlFlow::Continue(()),
            });
            match drawn {
                Err(error) if !error.is_stopped() => {
                    return Err(Error::Calibration {
                        path: self.weights.path().to_path_buf(),
                        source: Box::new(error),
                    });
                }
                _ => {}
            }
        }
        let mut seen = tapped.seen.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(std::mem::take(&mut *seen))
    }
}

/// Returns the file of a calibration for weights with this hash, or `None` if the system has no
/// cache folder.
pub(crate) fn file(hash: &str) -> Option<PathBuf> {
    let folder = hash::cache()?.parent()?.join("calibration");
    let key = format!("{VERSION}\n{PROMPTS:?}\n{STEPS:?}\n{PICTURES:?}\n{hash}");
    Some(folder.join(format!("{}.json", hash::hex(&Sha256::digest(key)))))
}

fn write(file: &Path, calibration: &Calibration) -> io::Result<()> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    files::write(file, &serde_json::to_vec(calibration)?)
}

/// A UNet in f32 that collects the numbers of its taps.
struct Tapped {
    takes: Takes,
    session: Session,
    seen: Mutex<Vec<(Tap, Vec<f32>)>>,
}

impl Denoiser for Tapped {
    fn inputs(&self) -> &Inputs {
        &self.takes.inputs
    }

    fn predict(&self, call: &Call<'_>, mut output: ArrayViewMut4<'_, f32>) -> Result<(), BoxError> {
        let outputs = self.takes.with_inputs(call, &[], |inputs| {
            self.session.run_all(inputs, call.stop, &["output", TAPS])
        })??;
        let [prediction, taps] = outputs.try_into().expect("there are two outputs");
        output.assign(&prediction.into_dimensionality::<Ix4>()?);
        let mut numbers = taps.iter().copied();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        for (tap, all) in &mut *seen {
            all.extend(numbers.by_ref().take(tap.count));
        }
        Ok(())
    }
}
