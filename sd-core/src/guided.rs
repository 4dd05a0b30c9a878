//! The guided denoiser, which a sampler calls.

use std::sync::Arc;

use ndarray::{
    ArcArray, Array, Array1, Array2, Array3, Array4, ArrayView, ArrayView4, ArrayViewMut4, Axis,
    Dimension, Ix4, RemoveAxis,
};
use sd_schedulers::{Prediction, Rung, Rungs};

use crate::{
    BoxError, Call, ControlCall, DeepCall, DeepFeatures, Denoiser, GenerateError, Guidance,
    NetworkCalls, Stage, StopToken,
    conditioning::Contexts,
    control::EncodedControl,
    guidance::{GuidanceStep, Memory},
    guide,
    shortcuts::{Course, Criterion, History, Shortcuts, Skip, Work},
    tiled::Tiled,
};

/// The denoiser D(x; sigma) under prompts and guidance, for one picture or a batch. Samplers call
/// it. [`Pipeline::guided`](crate::Pipeline::guided) creates one.
///
/// A value is for one run, because guidance may keep state from one call to the next, such as the
/// momentum of [`Apg`](crate::guidance::Apg).
pub struct Guided<'a> {
    network: Network<'a>,
    prediction: Prediction,
    prompt: Half,
    negative: Option<Half>,
    /// For an instruct-pix2pix model: the negative prompt without the picture beside the latents,
    /// and the scale of guidance by that picture for each picture of the batch.
    blank: Option<(Half, Vec<f32>)>,
    course: Course,
    lines: Lines,
    /// Decides on the calls that are skipped in stable parts of the run.
    criterion: Option<Criterion>,
    /// The latents that a skipped call uses. Empty if none was skipped.
    guess: Vec<f32>,
    /// Whether each picture needs the negative prompt no more, because its predictions have become
    /// similar.
    similar: Vec<bool>,
    /// The number of calls so far.
    calls: usize,
    /// The steps before which the network itself changes.
    changes: Vec<usize>,
    /// The step of the last call.
    last_step: Option<usize>,
    /// The guidance of each picture. There is also one memory for each picture.
    guidance: Vec<Guidance>,
    memories: Vec<Memory>,
    /// The number of steps of the whole run, if it is known.
    steps: Option<usize>,
    /// The place of the first rung in the whole run.
    first: usize,
    /// The prediction for the negative prompt. Empty if there is none.
    unconditional: Vec<f32>,
    /// The prediction for a further branch. Empty if there is only one branch.
    branch: Vec<f32>,
    /// The prediction without the picture beside the latents. Empty for other models.
    blank_prediction: Vec<f32>,
}

/// The conditioning of the network, either for the prompt or for the negative prompt.
pub(crate) struct Half {
    pub contexts: Contexts,
    /// The sizes, `[batch, ids]`, if the network takes them.
    pub sizes: Option<Array2<f32>>,
    /// The extra channels beside the latents, `[batch, channels, h, w]`, if the network takes them.
    pub beside: Option<ArcArray<f32, Ix4>>,
    /// The pictures that steer the network.
    pub controls: Arc<[EncodedControl]>,
    /// Whether this is the negative prompt.
    pub negative: bool,
}

/// What is kept of earlier calls, for each conditioning of the network.
struct Lines {
    /// A line for each branch of the prompt.
    prompt: Vec<Line>,
    negative: Line,
    /// The negative prompt without the picture beside the latents.
    blank: Line,
    /// The prompt and the negative prompt in one call. Only its deep features are used.
    both: Line,
}

/// What is kept of the earlier calls of the network for one conditioning.
#[derive(Default)]
struct Line {
    history: History,
    features: DeepFeatures,
    /// Whether there are features that a call can reuse.
    kept: bool,
}

impl Lines {
    fn all(&mut self) -> impl Iterator<Item = &mut Line> {
        let others = [&mut self.negative, &mut self.blank, &mut self.both];
        self.prompt.iter_mut().chain(others)
    }

    /// Forgets everything.
    fn forget(&mut self) {
        self.all().for_each(|line| line.history.clear());
        self.forget_features();
    }

    /// Forgets the deep features, so that the next call of each line computes everything.
    fn forget_features(&mut self) {
        self.all().for_each(|line| line.kept = false);
    }
}

/// A call of the sampler.
#[derive(Clone, Copy)]
struct Turn {
    at: Rung,
    work: Work,
    /// The position in the run, from -1 at the first call towards 1 at the end.
    place: f64,
}

/// The network, and its inputs that are the same for prompt and negative prompt.
struct Network<'a> {
    denoiser: &'a dyn Denoiser,
    shortcuts: Shortcuts,
    /// The calls of the network so far.
    made: NetworkCalls,
    /// The shape of the latents, `[batch, channels, h, w]`.
    shape: [usize; 4],
    /// The noisy latents in the scaling that the network expects.
    latents: Vec<f32>,
    /// The guidance scale of each picture, if the network takes it as an input.
    scales: Option<Array1<f32>>,
    /// The number of steps of this run, of which controls act in a part. 1 if it is unknown.
    run_steps: usize,
    /// The windows of a large picture. `None` if the network sees the whole picture.
    tiled: Option<Tiled>,
    stop: StopToken,
}

impl Network<'_> {
    /// Writes the network's raw output for one branch of a prompt, or a forecast of it.
    fn predict(
        &mut self,
        half: &Half,
        branch: usize,
        turn: Turn,
        line: &mut Line,
        output: &mut [f32],
    ) -> Result<(), BoxError> {
        if self.forecast(turn, line, output) {
            return Ok(());
        }
        let latents = ArrayView4::from_shape(self.shape, &self.latents)?;
        let context = half.contexts.context(branch);
        let mut call = Call::new(latents, turn.at.timestep, context, &self.stop);
        call.pooled = half.contexts.pooled(branch).filter(|_| self.takes_pooled());
        call.sizes = half.sizes.as_ref().map(|sizes| sizes.view());
        call.guidance = self.scales.as_ref().map(|scales| scales.view());
        call.beside = half.beside.as_ref().map(|beside| beside.view());
        let controls: Vec<_> = self.controls(half, turn.at).collect();
        call.controls = &controls;
        let array = ArrayViewMut4::from_shape(self.shape, &mut *output)?;
        let shallow = self.call(call, turn, line, array)?;
        self.made.count(shallow);
        self.keep(turn, line, output);
        Ok(())
    }

    /// Writes the network's raw outputs for the first branch of the prompt and for the negative
    /// prompt, from one call with both in a batch, and returns true. Returns false if they are
    /// better computed apart.
    fn predict_both(
        &mut self,
        halves: [&Half; 2],
        turn: Turn,
        lines: &mut Lines,
        outputs: [&mut [f32]; 2],
    ) -> Result<bool, BoxError> {
        let inputs = self.denoiser.inputs();
        if !inputs.batches_guidance || inputs.guidance || turn.work == Work::Forecast {
            return Ok(false);
        }
        let controls = halves.map(|half| self.controls(half, turn.at).collect::<Vec<_>>());
        let latents = ArrayView4::from_shape(self.shape, &self.latents)?;
        let Some(inputs) = Together::new(halves, latents, &controls, self.takes_pooled()) else {
            return Ok(false);
        };
        let mut call = inputs.call(turn.at.timestep, &self.stop);
        call.controls = &controls[0];
        let [batch, channels, height, width] = self.shape;
        let mut both = Array4::zeros((2 * batch, channels, height, width));
        let shallow = self.call(call, turn, &mut lines.both, both.view_mut())?;
        let both = both.as_slice().expect("a new array is contiguous");
        let lines = [&mut lines.prompt[0], &mut lines.negative];
        let both = both.chunks_exact(self.latents.len());
        for ((output, line), values) in outputs.into_iter().zip(lines).zip(both) {
            output.copy_from_slice(values);
            self.made.count(shallow);
            self.keep(turn, line, values);
        }
        Ok(true)
    }

    /// Writes a forecast of the network's output, and returns true. Returns false if the output
    /// must be computed.
    fn forecast(&mut self, turn: Turn, line: &Line, output: &mut [f32]) -> bool {
        let (Work::Forecast, Some(Skip::Forecast(by))) = (turn.work, &self.shortcuts.skip) else {
            return false;
        };
        let done = line.history.forecast(by, turn.place, output);
        self.made.forecast += usize::from(done);
        done
    }

    /// Keeps an output for later forecasts.
    fn keep(&self, turn: Turn, line: &mut Line, output: &[f32]) {
        if let Some(Skip::Forecast(_)) = self.shortcuts.skip {
            line.history.push(turn.place, output);
        }
    }

    /// Makes a call whose inputs are complete, except for shortcuts and the step. Returns whether
    /// only the outer layers were computed.
    fn call<'c>(
        &'c self,
        mut call: Call<'c>,
        turn: Turn,
        line: &'c mut Line,
        output: ArrayViewMut4<'_, f32>,
    ) -> Result<bool, BoxError> {
        let at = turn.at;
        let span = tracing::debug_span!("unet", timestep = at.timestep, sigma = at.sigma);
        let _entered = span.entered();
        call.step = at.index;
        call.merge_tokens = self.shortcuts.merge_tokens;
        let mut shallow = false;
        if let Work::Keep(branch) | Work::Reuse(branch) = turn.work {
            shallow = turn.work == Work::Reuse(branch) && line.kept;
            call.deep = Some(DeepCall {
                features: &line.features,
                reuse: shallow,
                branch,
            });
        }
        match &self.tiled {
            None => self.denoiser.predict(&call, output)?,
            Some((windows, most)) => windows.predict(self.denoiser, &call, *most, output)?,
        }
        line.kept |= call.deep.is_some();
        Ok(shallow)
    }

    fn takes_pooled(&self) -> bool {
        self.denoiser.inputs().pooled.is_some()
    }

    /// Returns the control networks that act for a prompt.
    fn controls<'h>(&self, half: &'h Half, at: Rung) -> impl Iterator<Item = ControlCall<'h>> {
        let (negative, index, steps) = (half.negative, at.index, self.run_steps);
        let controls = half.controls.iter();
        controls.filter_map(move |it| it.call(negative, index, steps))
    }
}

/// The inputs of a call with the prompt and the negative prompt in one batch.
struct Together {
    latents: Array4<f32>,
    context: Array3<f32>,
    pooled: Option<Array2<f32>>,
    sizes: Option<Array2<f32>>,
    beside: Option<Array4<f32>>,
}

impl Together {
    /// Joins the inputs of both prompts. `None` if their shapes or their controls differ.
    fn new(
        halves: [&Half; 2],
        latents: ArrayView4<'_, f32>,
        controls: &[Vec<ControlCall<'_>>; 2],
        pooled: bool,
    ) -> Option<Self> {
        let [prompt, negative] = controls;
        if prompt.len() != negative.len() || !prompt.iter().zip(negative).all(same_control) {
            return None;
        }
        let contexts = halves.map(|half| &half.contexts);
        let pooled = match pooled {
            true => Some(joined(contexts.map(|it| it.pooled(0)))?),
            false => None,
        };
        let sizes = halves.map(|half| half.sizes.as_ref().map(|sizes| sizes.view()));
        let beside = halves.map(|half| half.beside.as_ref().map(|beside| beside.view()));
        Some(Self {
            latents: ndarray::concatenate![Axis(0), latents, latents],
            context: joined(contexts.map(|it| Some(it.context(0))))?,
            pooled,
            sizes: joined_if_any(sizes)?,
            beside: joined_if_any(beside)?,
        })
    }

    fn call<'c>(&'c self, timestep: f32, stop: &'c StopToken) -> Call<'c> {
        let mut call = Call::new(self.latents.view(), timestep, self.context.view(), stop);
        call.pooled = self.pooled.as_ref().map(|pooled| pooled.view());
        call.sizes = self.sizes.as_ref().map(|sizes| sizes.view());
        call.beside = self.beside.as_ref().map(|beside| beside.view());
        call
    }
}

/// Returns whether a control network does the same for both prompts.
fn same_control((a, b): (&ControlCall<'_>, &ControlCall<'_>)) -> bool {
    std::ptr::eq(a.hint, b.hint)
        && (a.network, a.weight, a.layers) == (b.network, b.weight, b.layers)
}

/// Joins two arrays along the first axis. `None` if one is missing, or if their shapes differ.
fn joined<D: Dimension + RemoveAxis>(
    both: [Option<ArrayView<'_, f32, D>>; 2],
) -> Option<Array<f32, D>> {
    let [Some(a), Some(b)] = both else {
        return None;
    };
    ndarray::concatenate(Axis(0), &[a, b]).ok()
}

/// Joins two optional arrays along the first axis. Returns `Some(None)` if both are missing, and
/// `None` if they cannot be joined.
#[allow(
    clippy::option_option,
    reason = "the outer one says whether there is a joint call"
)]
fn joined_if_any<D: Dimension + RemoveAxis>(
    both: [Option<ArrayView<'_, f32, D>>; 2],
) -> Option<Option<Array<f32, D>>> {
    match both {
        [None, None] => Some(None),
        both => joined(both).map(Some),
    }
}

impl<'a> Guided<'a> {
    /// Creates the denoiser. `prompt`, `negative` and `guidance` are for as many pictures as
    /// `shape` has.
    pub(crate) fn new(
        denoiser: &'a dyn Denoiser,
        prediction: Prediction,
        shape: [usize; 4],
        prompt: Half,
        negative: Option<Half>,
        guidance: Vec<Guidance>,
        stop: StopToken,
    ) -> Self {
        let length = shape.iter().product();
        let further = prompt.contexts.branches() > 1;
        let scales = denoiser.inputs().guidance.then(|| {
            let scale = |guidance: &Guidance| guidance.scale().unwrap_or(1.0);
            guidance.iter().map(scale).collect()
        });
        Self {
            network: Network {
                denoiser,
                shortcuts: Shortcuts::NONE,
                made: NetworkCalls::default(),
                shape,
                latents: vec![0.0; length],
                scales,
                run_steps: 1,
                tiled: None,
                stop,
            },
            prediction,
            lines: Lines {
                prompt: (0..prompt.contexts.branches())
                    .map(|_| Line::default())
                    .collect(),
                negative: Line::default(),
                blank: Line::default(),
                both: Line::default(),
            },
            course: Course::new(Shortcuts::NONE),
            criterion: None,
            guess: Vec::new(),
            similar: vec![false; guidance.len()],
            prompt,
            calls: 0,
            changes: Vec::new(),
            last_step: None,
            memories: vec![Memory::default(); guidance.len()],
            guidance,
            steps: None,
            first: 0,
            unconditional: vec![0.0; if negative.is_some() { length } else { 0 }],
            branch: vec![0.0; if further { length } else { 0 }],
            negative,
            blank: None,
            blank_prediction: Vec::new(),
        }
    }

    /// Adds guidance by the picture beside the latents, section 3.2 of
    /// <https://arxiv.org/abs/2211.09800>, if there is a negative prompt. `half` is the negative
    /// prompt without the picture, and `scales` has a scale for each picture of the batch.
    pub(crate) fn guided_by_picture(mut self, half: Half, scales: Vec<f32>) -> Self {
        if self.negative.is_some() {
            self.blank_prediction = vec![0.0; self.network.latents.len()];
            self.blank = Some((half, scales));
        }
        self
    }

    /// Shows the network windows of the latents instead of all latents.
    pub(crate) fn tiled(mut self, tiled: Option<Tiled>) -> Self {
        self.network.tiled = tiled;
        self
    }

    /// Sets the shortcuts. `changes` has the steps, counted from 0, before which the network itself
    /// changes, so that its earlier outputs are of no use.
    pub(crate) fn shortcuts(
        mut self,
        shortcuts: Shortcuts,
        rungs: &Rungs,
        changes: Vec<usize>,
    ) -> Self {
        self.network.shortcuts = shortcuts;
        self.course = Course::new(shortcuts);
        self.changes = changes;
        if let Some(Skip::Stability(stability)) = shortcuts.skip {
            let (schedule, steps) = (rungs.schedule(), rungs.steps());
            self.criterion = Some(Criterion::new(stability, self.prediction, schedule, steps));
        }
        self
    }

    /// Returns the network's calls so far.
    pub(crate) fn made(&self) -> NetworkCalls {
        self.network.made
    }

    /// Sets where in the whole run these rungs lie, so that a guidance
    /// [interval](crate::ClassifierFree::interval) can be placed.
    ///
    /// Default: unknown. Guidance is then on in all steps, and the first rung is the first of the
    /// run.
    pub fn rungs(mut self, rungs: &Rungs) -> Self {
        self.steps = Some(rungs.steps_of_whole());
        self.first = rungs.index_in_whole(0);
        self.network.run_steps = rungs.steps();
        self
    }

    /// Sets the token that interrupts the network. An interrupted call returns an error.
    ///
    /// Default: a token that is never stopped.
    pub fn stopped_by(mut self, stop: StopToken) -> Self {
        self.network.stop = stop;
        self
    }

    /// Returns the shape of the latents, `[batch, channels, h, w]`.
    pub fn shape(&self) -> [usize; 4] {
        self.network.shape
    }

    /// Continues where another model stopped: takes over the number of calls, on which prompts with
    /// schedules depend, and the state of the guidance.
    pub(crate) fn take_over(&mut self, other: &mut Self) {
        self.calls = other.calls;
        self.network.made = other.network.made;
        if let Some(criterion) = &mut self.criterion {
            criterion.begin_at(other.calls);
        }
        self.similar = std::mem::take(&mut other.similar);
        std::mem::swap(&mut self.memories, &mut other.memories);
    }

    /// Writes D(x; sigma), the model's estimate of the clean latents in the noisy `x`, to
    /// `denoised`.
    ///
    /// Both slices have as many values as [`shape`](Self::shape). `x` is in the scaling of the rung
    /// `at`.
    ///
    /// # Errors
    /// [`GenerateError::Backend`] if the network fails or a slice has the wrong length.
    pub fn denoise(
        &mut self,
        x: &[f32],
        at: Rung,
        denoised: &mut [f32],
    ) -> Result<(), GenerateError> {
        self.try_denoise(x, at, denoised, None)
            .map_err(|source| failed(at, source))
    }

    /// Does the same as [`denoise`](Self::denoise), and also writes the estimate for the negative
    /// prompt alone to `unconditional`. The CFG++ samplers call this method. Without a negative
    /// prompt both results are the same.
    ///
    /// # Errors
    /// [`GenerateError::Backend`] if the network fails or a slice has the wrong length.
    pub fn denoise_both(
        &mut self,
        x: &[f32],
        at: Rung,
        denoised: &mut [f32],
        unconditional: &mut [f32],
    ) -> Result<(), GenerateError> {
        self.try_denoise(x, at, denoised, Some(unconditional))
            .map_err(|source| failed(at, source))
    }

    pub(crate) fn try_denoise(
        &mut self,
        x: &[f32],
        at: Rung,
        denoised: &mut [f32],
        both: Option<&mut [f32]>,
    ) -> Result<(), BoxError> {
        let length = self.network.latents.len();
        let other = both.as_ref().map_or(length, |both| both.len());
        if [x.len(), denoised.len(), other] != [length; 3] {
            let (x, denoised) = (x.len(), denoised.len());
            return Err(format!(
                "x has {x} values, denoised has {denoised} and unconditional has {other}, expected {length} each"
            )
            .into());
        }
        let scale = self.prediction.input_scale(at);
        for (input, x) in self.network.latents.iter_mut().zip(x) {
            *input = x * scale;
        }
        let turn = self.turn(at);
        let mut pictures = 0..self.guidance.len();
        let needed = self.negative.is_some()
            && pictures.any(|picture| self.needs_negative(picture, x, at, both.is_some()));
        if let Some(criterion) = &mut self.criterion
            && criterion.skips(x, at)
        {
            let mut guess = std::mem::take(&mut self.guess);
            criterion.skipped(at, &mut guess, denoised);
            criterion.end(x, at, None);
            self.count_skipped(needed);
            if !needed {
                self.count_left_out(x, at);
            }
            self.convert(&guess, at, denoised, both);
            self.guess = guess;
            return Ok(());
        }
        self.predict(turn, needed, denoised)?;
        match needed {
            true => self.guide(x, turn, denoised, both.is_some())?,
            false => self.count_left_out(x, at),
        }
        if let Some(criterion) = &mut self.criterion {
            criterion.end(x, at, Some(denoised));
        }
        self.convert(x, at, denoised, both);
        Ok(())
    }

    /// Counts the outputs of the network that a skipped call does without.
    fn count_skipped(&mut self, negative: bool) {
        let contexts = &self.prompt.contexts;
        self.network.made.forecast += match negative {
            false => 1,
            true => {
                let branches = if contexts.any_composes() {
                    contexts.branches()
                } else {
                    1
                };
                branches + 1 + usize::from(self.blank.is_some())
            }
        };
    }

    /// Writes the network's raw output for the first branch of the prompt to `output`, and for the
    /// negative prompt, if that is needed, to `self.unconditional`.
    fn predict(&mut self, turn: Turn, negative: bool, output: &mut [f32]) -> Result<(), BoxError> {
        let (network, lines) = (&mut self.network, &mut self.lines);
        let negative = self.negative.as_ref().filter(|_| negative);
        if let Some(negative) = negative {
            let outputs = [&mut *output, &mut self.unconditional];
            if network.predict_both([&self.prompt, negative], turn, lines, outputs)? {
                return Ok(());
            }
        }
        network.predict(&self.prompt, 0, turn, &mut lines.prompt[0], output)?;
        if let Some(negative) = negative {
            let (line, output) = (&mut lines.negative, &mut self.unconditional);
            network.predict(negative, 0, turn, line, output)?;
        }
        Ok(())
    }

    /// Begins a call: switches the prompts to their texts for it, and decides what the network
    /// does.
    fn turn(&mut self, at: Rung) -> Turn {
        let call = self.calls;
        self.calls += 1;
        let negative = self.negative.iter_mut();
        let blank = self.blank.iter_mut().map(|(blank, _)| blank);
        let halves = std::iter::once(&mut self.prompt)
            .chain(negative)
            .chain(blank);
        // All of them turn, even if the first one has changed.
        let changed = halves.fold(false, |changed, half| half.contexts.turn(call) | changed);
        let before = self.last_step.replace(at.index);
        if changed || before.is_some_and(|before| self.network_changes(before, at.index)) {
            self.course.restart();
            self.lines.forget();
            if let Some(criterion) = &mut self.criterion {
                criterion.restart();
            }
        }
        let steps = self.network.run_steps.max(1);
        // The plan allows shortcuts only if there is a call for each step.
        let work = self.course.next(steps.saturating_sub(call + 1));
        if let Work::Keep(_) = work {
            // A prompt without a call in this step must not reuse older features later.
            self.lines.forget_features();
        }
        Turn {
            at,
            work,
            place: 2.0 * call as f64 / steps as f64 - 1.0,
        }
    }

    /// Returns whether the network, or the set of controls that act, changes between two steps.
    fn network_changes(&self, before: usize, now: usize) -> bool {
        let steps = self.network.run_steps;
        // A control acts for the negative prompt in the same steps as for the prompt, or in none.
        let acts = |control: &EncodedControl, step| control.call(false, step, steps).is_some();
        let mut changes = self.changes.iter();
        let mut controls = self.prompt.controls.iter();
        changes.any(|&step| before < step && step <= now)
            || controls.any(|control| acts(control, before) != acts(control, now))
    }

    /// Returns the call as the guide of a picture sees it. `both` is true if the sampler also asks
    /// for the unconditional sample.
    fn step<'x>(&self, x: &'x [f32], at: Rung, both: bool) -> GuidanceStep<'x> {
        let index = self.first.saturating_add(at.index);
        GuidanceStep {
            x,
            rung: Rung { index, ..at },
            steps: self.steps,
            prediction: self.prediction,
            both,
        }
    }

    /// Returns whether this picture of the batch needs the negative prompt at this call.
    fn needs_negative(&self, picture: usize, x: &[f32], at: Rung, both: bool) -> bool {
        let one = self.one();
        let step = self.step(&x[picture * one..(picture + 1) * one], at, both);
        let guide = self.guidance[picture].guide();
        both || self.prompt.contexts.composes(picture)
            || (guide.needs_unconditional(&step) && !self.similar[picture])
    }

    /// Counts the calls for the negative prompt that adaptive guidance leaves out of this call.
    fn count_left_out(&mut self, x: &[f32], at: Rung) {
        let one = self.one();
        let mut pictures = self.guidance.iter().zip(x.chunks_exact(one));
        if pictures.any(|(guidance, x)| {
            let step = self.step(x, at, false);
            guidance.guide().needs_unconditional(&step)
        }) {
            let halves = usize::from(self.negative.is_some()) + usize::from(self.blank.is_some());
            self.network.made.left_out += halves;
        }
    }

    /// Returns the number of values of one picture.
    fn one(&self) -> usize {
        self.network.latents.len() / self.network.shape[0]
    }

    /// Merges the predictions for the negative prompt and for further branches into the prediction
    /// for the prompt, for each picture that needs them.
    fn guide(
        &mut self,
        x: &[f32],
        turn: Turn,
        denoised: &mut [f32],
        both: bool,
    ) -> Result<(), BoxError> {
        let (at, one) = (turn.at, self.one());
        if self.prompt.contexts.any_composes() {
            self.compose(turn, denoised)?;
        }
        for (picture, (conditional, x)) in denoised
            .chunks_exact_mut(one)
            .zip(x.chunks_exact(one))
            .enumerate()
        {
            let (guide, step) = (self.guidance[picture].guide(), self.step(x, at, both));
            if guide.needs_unconditional(&step) && !self.similar[picture] {
                let unconditional = &self.unconditional[picture * one..(picture + 1) * one];
                if let Some(similarity) = self.network.shortcuts.guidance {
                    self.similar[picture] = cosine(conditional, unconditional) >= similarity;
                }
                guide.merge(
                    conditional,
                    unconditional,
                    &step,
                    &mut self.memories[picture],
                );
            }
        }
        if let Some((blank, scales)) = &self.blank {
            let line = &mut self.lines.blank;
            self.network
                .predict(blank, 0, turn, line, &mut self.blank_prediction)?;
            let pictures = denoised
                .chunks_exact_mut(one)
                .zip(self.unconditional.chunks_exact(one))
                .zip(self.blank_prediction.chunks_exact(one));
            for (picture, (((merged, with), without), scale)) in pictures.zip(scales).enumerate() {
                // Drawn alone, this picture would not need the call.
                if !self.needs_negative(picture, x, at, both) {
                    continue;
                }
                for ((merged, with), without) in merged.iter_mut().zip(with).zip(without) {
                    *merged += (scale - 1.0) * (with - without);
                }
            }
        }
        Ok(())
    }

    /// Converts the merged prediction to the denoised sample, and also the prediction for the
    /// negative prompt if the sampler asks for it.
    fn convert(&mut self, x: &[f32], at: Rung, denoised: &mut [f32], both: Option<&mut [f32]>) {
        let one = self.one();
        self.prediction.denoised(denoised, x, at);
        for (picture, (denoised, x)) in denoised
            .chunks_exact_mut(one)
            .zip(x.chunks_exact(one))
            .enumerate()
        {
            let (guide, step) = (
                self.guidance[picture].guide(),
                self.step(x, at, both.is_some()),
            );
            guide.finish(denoised, &step, &mut self.memories[picture]);
        }
        if let Some(both) = both {
            if self.negative.is_some() {
                both.copy_from_slice(&self.unconditional);
                self.prediction.denoised(both, x, at);
            } else {
                both.copy_from_slice(denoised);
            }
        }
    }

    /// Merges the branches by composable diffusion, <https://arxiv.org/abs/2206.01714>. `denoised`
    /// holds the prediction of the first branch, and is replaced by
    /// `unconditional + sum of weight · (branch − unconditional)`.
    fn compose(&mut self, turn: Turn, denoised: &mut [f32]) -> Result<(), BoxError> {
        let one = self.one();
        let contexts = &self.prompt.contexts;
        for branch in 0..contexts.branches() {
            if branch > 0 {
                let line = &mut self.lines.prompt[branch];
                self.network
                    .predict(&self.prompt, branch, turn, line, &mut self.branch)?;
            }
            for (picture, &weight) in contexts.weights(branch).iter().enumerate() {
                if !contexts.composes(picture) {
                    continue;
                }
                let own = picture * one..(picture + 1) * one;
                let all = &mut denoised[own.clone()];
                let unconditional = &self.unconditional[own.clone()];
                if branch == 0 {
                    guide(all, unconditional, weight);
                    continue;
                }
                let branch = self.branch[own].iter().zip(unconditional);
                for (all, (branch, unconditional)) in all.iter_mut().zip(branch) {
                    *all += weight * (branch - unconditional);
                }
            }
        }
        Ok(())
    }
}

/// Returns the cosine similarity of two vectors.
fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let product = |a: &[f32], b: &[f32]| -> f64 {
        let both = a.iter().zip(b);
        both.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    (product(a, b) / (product(a, a) * product(b, b)).sqrt()) as f32
}

fn failed(at: Rung, source: BoxError) -> GenerateError {
    let stage = Stage::Denoiser {
        refiner: false,
        step: None,
        steps: None,
        timestep: at.timestep,
    };
    GenerateError::Backend { stage, source }
}

impl std::fmt::Debug for Guided<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guided")
            .field("shape", &self.network.shape)
            .field("prediction", &self.prediction)
            .field("guidance", &self.guidance)
            .finish_non_exhaustive()
    }
}
