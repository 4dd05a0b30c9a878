//! The denoising loop, from noise to finished pictures.

use std::{
    collections::HashMap,
    ops::ControlFlow,
    sync::Arc,
    time::{Duration, Instant},
};

use ndarray::{ArcArray, Array2, Array3, Array4, ArrayView3, Axis, Ix4};
use sd_schedulers::{
    NoiseSource, Run, Rung, Rungs, Step,
    ladders::NoisePath,
    noise::{NoiseError, Seeds},
    samplers::Calls,
};

use crate::{
    Conditioning, Denoiser, Event, GenerateError, Guided, LoraNetworks, Picture, Posterior,
    Progress, Stage, StepInfo, StopToken, Stopped, Timings, Unfinished,
    conditioning::Contexts,
    guided::Half,
    parts::Parts,
    picture::{Made, to_rgb},
    plan::{Encoded, Planned},
    start::{self, Begin, Clean, EncodedStart, StartBeside},
};

/// Pictures that go through the denoising loop together, usually one.
pub(crate) struct Batch<'a> {
    parts: &'a Parts,
    /// The networks for the LoRAs of these pictures.
    networks: &'a LoraNetworks,
    planned: &'a [Arc<Planned>],
    /// The request and the index of each picture.
    pictures: Vec<(usize, usize)>,
    /// The prompts of each picture, and how long it took to encode them.
    conditionings: Vec<(Encoded, Duration)>,
    stop: &'a StopToken,
}

/// The encoded prompts of requests that have more pictures to draw.
pub(crate) type Prompts = HashMap<usize, Encoded>;

/// The source of the noise that a sampler adds to one picture.
type BoxNoise = Box<dyn NoiseSource + Send>;

impl<'a> Batch<'a> {
    /// Encodes the prompts of the pictures.
    pub fn new(
        parts: &'a Parts,
        networks: &'a LoraNetworks,
        planned: &'a [Arc<Planned>],
        pictures: Vec<(usize, usize)>,
        encoded: &mut Prompts,
        stop: &'a StopToken,
    ) -> Result<Self, GenerateError> {
        let mut conditionings = Vec::with_capacity(pictures.len());
        for &(request, index) in &pictures {
            if stop.is_stopped() {
                return Err(GenerateError::Stopped(Box::default()));
            }
            let started = Instant::now();
            let plan = &planned[request];
            let found = match encoded.remove(&request) {
                Some(known) => known,
                None => {
                    let refiner = parts.refiner.as_ref();
                    plan.encode(&networks.prompts, refiner, &*parts.codec, stop)?
                }
            };
            if index + 1 < plan.request.count {
                encoded.insert(request, found.clone());
            }
            conditionings.push((found, started.elapsed()));
        }
        Ok(Self {
            parts,
            networks,
            planned,
            pictures,
            conditionings,
            stop,
        })
    }

    /// Draws the pictures.
    pub fn run(
        self,
        observer: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<(), GenerateError> {
        let pictures = self.pictures.iter();
        let seeds: Vec<_> = pictures
            .map(|&(request, index)| self.planned[request].seeds.image(index as u64))
            .collect();
        let mut begun = self.begin(&seeds)?;
        let mut latents = std::mem::take(&mut begun.latents);
        let (steps, denoised) = self.sample(&seeds, &mut begun, &mut latents, observer)?;
        let sampled = Sampled {
            seeds,
            initial_noise: begun.initial_noise,
            latents,
            denoised,
            steps,
        };
        self.finish(&sampled, observer)
    }

    /// Returns the plan of the first picture. For everything that the loop uses, the plan of any
    /// picture will do, because they agree.
    fn plan(&self) -> &'a Planned {
        &self.planned[self.pictures[0].0]
    }

    /// Returns the shape of the latents, `[batch, channels, h, w]`.
    fn shape(&self) -> [usize; 4] {
        let [height, width] = self.plan().latents;
        let channels = self.parts.denoiser.inputs().channels;
        [self.pictures.len(), channels, height, width]
    }

    /// Draws the noise of the pictures, and returns the first latents.
    fn begin(&self, seeds: &[Seeds]) -> Result<Begun, GenerateError> {
        let shape = self.shape();
        let plan = self.plan();
        let [_, channels, height, width] = shape;
        let mut begun = Begun {
            initial_noise: Array4::zeros(shape),
            latents: Array4::zeros(shape),
            clean: Array4::zeros(shape),
            noise: Vec::with_capacity(seeds.len()),
            beside: Vec::new(),
        };
        for (i, &seeds) in seeds.iter().enumerate() {
            let (request, index) = self.pictures[i];
            let start = self.conditionings[i].0.start.as_deref();
            let mut drawn = Drawn::new(start, [1, channels, height, width]);
            let mut noise = begun.initial_noise.index_axis_mut(Axis(0), i);
            let values = noise.as_slice_mut();
            let values = values.expect("a row of a new array is contiguous");
            let source = drawn.source(plan, seeds, values).map_err(|error| {
                let stage = Stage::Noise { seed: seeds.seed };
                GenerateError::backend(stage)(error.into())
            })?;
            begun.noise.push(source);
            let request = &self.planned[request].request;
            if let Some(given) = &request.initial_noise {
                noise.assign(&given.index_axis(Axis(0), index));
            }
            let mut latents = begun.latents.index_axis_mut(Axis(0), i);
            latents.assign(&noise);
            latents *= plan.rungs.initial_scale();
            if let Some(start) = start {
                begun.beside.extend(drawn.beside(start));
                let Some(clean) = drawn.clean(start, index) else {
                    continue;
                };
                begun.clean.index_axis_mut(Axis(0), i).assign(&clean);
                if plan.begin == Begin::Picture {
                    let multiplier = request.start.as_ref().map_or(1.0, |it| it.noise_multiplier);
                    let share = clean_share(&plan.rungs, plan.rungs.initial_scale());
                    latents *= multiplier;
                    latents.scaled_add(share, &clean);
                }
            }
        }
        Ok(begun)
    }

    /// Lets the sampler turn the noisy latents into clean ones. Returns the time of each step, and
    /// the last denoised samples.
    fn sample(
        &self,
        seeds: &[Seeds],
        begun: &mut Begun,
        latents: &mut Array4<f32>,
        observer: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<(Vec<Duration>, Vec<f32>), GenerateError> {
        let (parts, plan) = (self.parts, self.plan());
        let span = tracing::info_span!(
            "denoise",
            seed = seeds[0].seed,
            steps = plan.rungs.steps(),
            width = plan.size.width(),
            height = plan.size.height(),
            scheduler = ?plan.sampler,
            ladder = ?plan.chosen.ladder,
            batch = self.pictures.len(),
        );
        let _entered = span.entered();
        let now = Instant::now();
        let refiner = parts.refiner.as_ref().zip(plan.refiner_from);
        let noise = std::mem::take(&mut begun.noise);
        let begun = &*begun;
        let mut run = BatchRun {
            batch: self,
            guided: self.guided(&*self.networks.denoiser, false, begun),
            refiner: refiner
                .map(|(refiner, from)| (from, self.guided(&*refiner.denoiser, true, begun))),
            blend: self.blend(begun),
            seeds,
            noise,
            observer,
            finished: latents.iter().copied().collect(),
            denoised: vec![0.0; latents.len()],
            started: now,
            step_started: now,
            refined: false,
            steps: Vec::with_capacity(most_steps(plan)),
            total: plan.rungs.steps(),
            error: None,
            broke: false,
        };
        let latents = latents
            .as_slice_mut()
            .expect("the product of a contiguous array is contiguous");
        let outcome = plan.sampler.sample(latents, &plan.rungs, &mut run);
        run.end(outcome)
    }

    /// Returns the guided denoiser of the model or of its refiner.
    fn guided<'d>(&self, denoiser: &'d dyn Denoiser, refiner: bool, begun: &Begun) -> Guided<'d> {
        let encoded = self
            .conditionings
            .iter()
            .filter_map(|(encoded, _)| match refiner {
                false => Some(&encoded.model),
                true => encoded.refiner.as_ref(),
            });
        let (prompts, negatives): (Vec<_>, Vec<_>) = encoded
            .map(|(prompt, negative)| (prompt, negative.as_ref()))
            .unzip();
        let negatives: Option<Vec<_>> = negatives.into_iter().collect();
        let inputs = denoiser.inputs();
        let beside = self.beside(begun).filter(|_| inputs.extra_channels > 0);
        let half = |prompts: &[&Conditioning], row: usize| {
            let branches = prompts.iter().map(|prompt| &prompt.branches[..]);
            Half {
                contexts: Contexts::new(&branches.collect::<Vec<_>>()),
                sizes: self.sizes(row, refiner),
                beside: beside.clone(),
            }
        };
        let plans = || {
            let pictures = self.pictures.iter();
            pictures.map(|&(request, _)| &*self.planned[request])
        };
        let guided = Guided::new(
            denoiser,
            self.parts.scheduler.prediction,
            self.shape(),
            half(&prompts, 0),
            negatives.as_ref().map(|negatives| half(negatives, 1)),
            plans().map(|plan| plan.chosen.guidance.clone()).collect(),
            self.stop.clone(),
        );
        let guided = match (negatives, &beside) {
            // As many extra channels as latent channels: an instruct-pix2pix model, which takes the
            // latents of a picture.
            (Some(negatives), Some(picture)) if inputs.extra_channels == inputs.channels => {
                let mut blank = half(&negatives, 1);
                blank.beside = Some(ArcArray::zeros(picture.dim()));
                guided.guided_by_picture(
                    blank,
                    plans().map(|plan| plan.request.image_guidance).collect(),
                )
            }
            _ => guided,
        };
        guided.rungs(&self.plan().rungs)
    }

    /// Returns the sizes that the network takes for each picture, `[batch, ids]`. Row 0 is for the
    /// prompt, row 1 for the negative prompt.
    fn sizes(&self, row: usize, refiner: bool) -> Option<Array2<f32>> {
        let of = |&(request, _): &(usize, usize)| {
            let plan = &self.planned[request];
            let sizes = match refiner {
                false => plan.sizes.as_ref()?,
                true => plan.refiner_sizes.as_ref()?,
            };
            Some(sizes.index_axis(Axis(0), row))
        };
        let rows: Vec<_> = self.pictures.iter().map(of).collect::<Option<_>>()?;
        Some(ndarray::stack(Axis(0), &rows).expect("each picture has the same number of sizes"))
    }

    /// Returns the extra channels beside the latents of each picture, `[batch, channels, h, w]`.
    fn beside(&self, begun: &Begun) -> Option<ArcArray<f32, Ix4>> {
        if !begun.beside.is_empty() {
            let made: Vec<_> = begun.beside.iter().map(|one| one.view()).collect();
            let made = ndarray::concatenate(Axis(0), &made);
            return Some(made.expect("all pictures have the same size").into_shared());
        }
        let of = |&(request, index): &(usize, usize)| {
            let beside = self.planned[request].request.beside.as_ref()?;
            let index = index.min(beside.dim().0 - 1);
            Some(beside.index_axis(Axis(0), index))
        };
        let all: Vec<_> = self.pictures.iter().map(of).collect::<Option<_>>()?;
        let all = ndarray::stack(Axis(0), &all).expect("the plan has checked the shapes");
        Some(all.into_shared())
    }

    /// Returns what replaces the latents outside the masks after each step, if the pictures have
    /// masks.
    fn blend<'b>(&self, begun: &'b Begun) -> Option<Blend<'b>> {
        let of = |(encoded, _): &(Encoded, Duration)| {
            let start = encoded.start.as_deref().filter(|start| start.blends)?;
            start.latent_mask.clone()
        };
        Some(Blend {
            masks: self.conditionings.iter().map(of).collect::<Option<_>>()?,
            begun,
        })
    }

    /// Decodes the pictures and hands them to the observer.
    fn finish(
        &self,
        sampled: &Sampled,
        observer: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<(), GenerateError> {
        let stopped = |from| {
            let latents = sampled.latents.as_slice();
            let latents = latents.expect("the latents are contiguous");
            let (steps, denoised) = (sampled.steps.len(), Some(&sampled.denoised[..]));
            self.stopped(steps, from, &sampled.seeds, latents, denoised)
        };
        let is_finite = |values: &Array4<f32>| values.iter().all(|value| value.is_finite());
        let mut failed = None;
        for (i, &(request, index)) in self.pictures.iter().enumerate() {
            let not_finite = GenerateError::NotFinite {
                request,
                picture: index,
                seed: sampled.seeds[i].seed,
            };
            let latents = picture_of(&sampled.latents, i);
            if !is_finite(&latents) {
                failed = failed.or(Some(not_finite));
                continue;
            }
            if self.stop.is_stopped() {
                return Err(stopped(i));
            }
            let started = Instant::now();
            let decoded = self.parts.pixels(latents.view(), self.stop);
            let pixels = decoded.map_err(|error| {
                if self.stop.is_stopped() {
                    stopped(i)
                } else {
                    error
                }
            })?;
            if !is_finite(&pixels) {
                failed = failed.or(Some(not_finite));
                continue;
            }
            let mut pixels = pixels;
            self.restore(i, &mut pixels);
            let picture = self.picture(i, sampled, latents, pixels, started);
            if observer(Event::Picture(Box::new(picture))).is_break() {
                return Err(stopped(i + 1));
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Replaces the pixels of picture `i` outside its mask by the original's.
    fn restore(&self, i: usize, pixels: &mut Array4<f32>) {
        let start = self.conditionings[i].0.start.as_deref();
        if let Some((original, mask)) = start.and_then(|start| start.kept.as_ref()) {
            start::restore(pixels, original, mask);
        }
    }

    /// Returns picture `i` of the batch, whose decoding began at `started`.
    fn picture(
        &self,
        i: usize,
        sampled: &Sampled,
        latents: Array4<f32>,
        mut pixels: Array4<f32>,
        started: Instant,
    ) -> Picture {
        let (request, index) = self.pictures[i];
        let (encoded, took) = &self.conditionings[i];
        let plan = &self.planned[request];
        let seeds = sampled.seeds[i];
        pixels.mapv_inplace(|value| value.clamp(-1.0, 1.0));
        Picture {
            request,
            index,
            seed: seeds.seed,
            image: to_rgb(pixels.index_axis(Axis(0), 0)),
            pixels,
            latents,
            initial_noise: picture_of(&sampled.initial_noise, i),
            prompt: encoded.model.0.clone(),
            negative: encoded.model.1.clone(),
            timings: Timings {
                encode: *took,
                steps: sampled.steps.clone(),
                decode: started.elapsed(),
            },
            made: Made {
                planned: plan.clone(),
                seeds,
                batch_size: self.pictures.len(),
                batch_position: i,
                model: self.parts.model.clone(),
                loras: self.parts.loras.clone(),
                called: self.parts.callable.hashes(&plan.loras, &plan.lora_names),
                refiner: self.parts.refiner.as_ref().map(|it| it.name.clone()),
                seamless: self.parts.denoiser.inputs().seamless,
            },
        }
    }

    /// Returns [`GenerateError::Stopped`], with the pictures from index `from` on as the unfinished
    /// ones.
    fn stopped(
        &self,
        steps: usize,
        from: usize,
        seeds: &[Seeds],
        latents: &[f32],
        denoised: Option<&[f32]>,
    ) -> GenerateError {
        let [_, channels, height, width] = self.shape();
        let shape = (1, channels, height, width);
        let length = latents.len() / self.pictures.len();
        let one = |i: usize, all: &[f32]| {
            let values = all[i * length..(i + 1) * length].to_vec();
            Array4::from_shape_vec(shape, values).expect("a picture has this many values")
        };
        let unfinished = |i: usize| Unfinished {
            request: self.pictures[i].0,
            picture: self.pictures[i].1,
            seed: seeds[i].seed,
            latents: one(i, latents),
            denoised: denoised.map(|denoised| one(i, denoised)),
        };
        GenerateError::Stopped(Box::new(Stopped {
            steps,
            pictures: (from..self.pictures.len()).map(unfinished).collect(),
        }))
    }
}

/// The pictures of a batch after the last step, before they are decoded.
struct Sampled {
    seeds: Vec<Seeds>,
    initial_noise: Array4<f32>,
    latents: Array4<f32>,
    /// The denoised samples of the last step.
    denoised: Vec<f32>,
    /// The time of each step.
    steps: Vec<Duration>,
}

/// Returns a copy of picture `i` of a batch, as a batch of one.
fn picture_of(all: &Array4<f32>, i: usize) -> Array4<f32> {
    all.index_axis(Axis(0), i).insert_axis(Axis(0)).to_owned()
}

/// The pictures of a batch before the first step.
struct Begun {
    /// The unit noise.
    initial_noise: Array4<f32>,
    /// The first latents.
    latents: Array4<f32>,
    /// The latents of the pictures that the run starts from, or zeros.
    clean: Array4<f32>,
    /// The source of the noise that the sampler adds to each picture.
    noise: Vec<BoxNoise>,
    /// The extra channels beside the latents of each picture, if they are made from its start.
    beside: Vec<Array4<f32>>,
}

/// The noise that is drawn for a picture beside the initial noise, to sample latents.
#[derive(Default)]
struct Drawn {
    /// Drawn before the initial noise. Empty if the run does not need it.
    clean: Array4<f32>,
    /// Drawn after the initial noise.
    beside: Array4<f32>,
}

impl Drawn {
    fn new(start: Option<&EncodedStart>, shape: [usize; 4]) -> Self {
        let Some(start) = start.filter(|start| start.posterior == Posterior::Sample) else {
            return Self::default();
        };
        let zeros = |drawn: bool| {
            if drawn {
                Array4::zeros(shape)
            } else {
                Array4::default([0; 4])
            }
        };
        Self {
            clean: zeros(matches!(start.clean, Some(Clean::Encoded(_)))),
            // diffusers' inpainting pipelines also draw it if the network does not take it. The
            // picture of an instruct-pix2pix model is not sampled.
            beside: zeros(start.latent_mask.is_some()),
        }
    }

    /// Draws the noise, with the initial unit noise in `first`, and returns the source of the noise
    /// that the sampler adds between steps.
    fn source(
        &mut self,
        plan: &Planned,
        seeds: Seeds,
        first: &mut [f32],
    ) -> Result<BoxNoise, NoiseError> {
        let [height, width] = plan.latents;
        let channels = first.len() / (height * width);
        let contiguous = "a new array is contiguous";
        let before = self.clean.as_slice_mut().expect(contiguous);
        let mut going_on = seeds.first_after(before, [channels, height, width], first)?;
        if !self.beside.is_empty() {
            going_on.fill(self.beside.as_slice_mut().expect(contiguous));
        }
        if plan.sampler.needs().brownian {
            seeds.tree(plan.rungs.sigmas(), first.len())
        } else {
            Ok(going_on)
        }
    }

    /// Returns the latents of the picture that the run starts from, `[channels, h, w]`. `index` is
    /// the index of the picture in its request.
    fn clean(&self, start: &EncodedStart, index: usize) -> Option<Array3<f32>> {
        let latents = match start.clean.as_ref()? {
            Clean::Latents(latents) => {
                let index = index.min(latents.dim().0 - 1);
                return Some(latents.index_axis(Axis(0), index).to_owned());
            }
            Clean::Encoded(encoded) if self.clean.is_empty() => encoded.mode(),
            Clean::Encoded(encoded) => encoded.sample(self.clean.view()),
        };
        Some(latents.index_axis_move(Axis(0), 0))
    }

    /// Returns the extra channels beside the latents, `[1, channels, h, w]`.
    fn beside(&self, start: &EncodedStart) -> Option<Array4<f32>> {
        let (kind, encoded) = start.beside.as_ref()?;
        let (StartBeside::Masked, Some(mask)) = (kind, &start.latent_mask) else {
            // An instruct-pix2pix model takes the latents in the autoencoder's own scaling.
            return Some(encoded.mean.clone());
        };
        let latents = match self.beside.is_empty() {
            true => encoded.mode(),
            false => encoded.sample(self.beside.view()),
        };
        let mask = mask.view().insert_axis(Axis(0)).insert_axis(Axis(0));
        let joined = ndarray::concatenate(Axis(1), &[mask, latents.view()]);
        Some(joined.expect("the mask has the size of the latents"))
    }
}

/// Returns the share of the clean latents in noisy ones at a noise level.
fn clean_share(rungs: &Rungs, sigma: f32) -> f32 {
    match rungs.path() {
        NoisePath::Flow => 1.0 - sigma,
        NoisePath::Exploding => 1.0,
    }
}

/// Keeps latents outside of masks.
struct Blend<'a> {
    /// The mask of each picture, `[h, w]`: 1 where it is redrawn.
    masks: Vec<Array2<f32>>,
    begun: &'a Begun,
}

impl Blend<'_> {
    /// Replaces the latents `x` at the noise level `sigma` outside the masks by the original's with
    /// noise of that level.
    fn apply(&self, rungs: &Rungs, sigma: f32, x: &mut [f32]) {
        let share = clean_share(rungs, sigma);
        let Begun {
            clean,
            initial_noise,
            ..
        } = self.begun;
        let originals = clean.iter().zip(initial_noise);
        let channels = clean.dim().1;
        let masks = self.masks.iter();
        let masks = masks.flat_map(|mask| std::iter::repeat_n(mask, channels).flatten());
        for ((x, (clean, noise)), mask) in x.iter_mut().zip(originals).zip(masks) {
            *x = mask * *x + (1.0 - mask) * (share * clean + sigma * noise);
        }
    }
}

/// Returns the capacity to reserve for the steps. Nearly every sampler makes at most one step per
/// call of the model.
fn most_steps(plan: &Planned) -> usize {
    let (Calls::Exactly(calls) | Calls::AtMost(calls)) = plan.sampler.calls(&plan.rungs);
    calls.max(plan.rungs.steps()).min(1 << 14)
}

/// The run of a batch, which a sampler drives.
struct BatchRun<'a> {
    batch: &'a Batch<'a>,
    guided: Guided<'a>,
    /// Replaces the latents outside of masks.
    blend: Option<Blend<'a>>,
    /// The refiner, and the step at which it takes over.
    refiner: Option<(usize, Guided<'a>)>,
    seeds: &'a [Seeds],
    /// The noise source of each picture.
    noise: Vec<BoxNoise>,
    observer: &'a mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    /// The latents after the last finished step, which the error holds if the run stops within a
    /// step.
    finished: Vec<f32>,
    denoised: Vec<f32>,
    started: Instant,
    step_started: Instant,
    /// Whether the refiner has taken over.
    refined: bool,
    /// The time of each finished step.
    steps: Vec<Duration>,
    /// The number of steps that the picture takes, as far as it is known.
    total: usize,
    error: Option<GenerateError>,
    /// Whether the observer ended the run.
    broke: bool,
}

impl BatchRun<'_> {
    /// Checks a length that the sampler passes in, because a custom sampler may pass anything.
    fn check(&mut self, what: &str, found: usize) -> ControlFlow<()> {
        let expected = self.finished.len();
        if found == expected {
            return ControlFlow::Continue(());
        }
        let problem = format!("{what} has {found} values, expected {expected}");
        self.error = Some(GenerateError::backend(Stage::Sampler)(problem.into()));
        ControlFlow::Break(())
    }

    fn call(
        &mut self,
        x: &[f32],
        at: Rung,
        denoised: &mut [f32],
        both: Option<&mut [f32]>,
    ) -> ControlFlow<()> {
        if self.batch.stop.is_stopped() || self.broke || self.error.is_some() {
            return ControlFlow::Break(());
        }
        if self
            .refiner
            .as_ref()
            .is_some_and(|(from, _)| at.index >= *from)
            && let Some((_, mut refiner)) = self.refiner.take()
        {
            tracing::debug!(timestep = at.timestep, "the refiner takes over");
            refiner.take_over(&mut self.guided);
            self.guided = refiner;
            self.refined = true;
        }
        match self.guided.try_denoise(x, at, denoised, both) {
            Ok(()) => ControlFlow::Continue(()),
            Err(source) => {
                // An error that the interruption caused is not a failure.
                if !self.batch.stop.is_stopped() {
                    let stage = Stage::Denoiser {
                        refiner: self.refined,
                        step: Some(self.steps.len() + 1),
                        steps: Some(self.total),
                        timestep: at.timestep,
                    };
                    self.error = Some(GenerateError::Backend { stage, source });
                }
                ControlFlow::Break(())
            }
        }
    }

    /// Ends the run after the sampler has returned `outcome`. Returns the time of each step and the
    /// last denoised samples, or the error that ended the run early.
    fn end(mut self, outcome: ControlFlow<()>) -> Result<(Vec<Duration>, Vec<f32>), GenerateError> {
        // A custom sampler may have continued after a failure.
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        if self.broke || self.batch.stop.is_stopped() {
            return Err(self.stopped());
        }
        if outcome.is_break() {
            let problem = "the run ended although nothing had stopped it";
            return Err(GenerateError::backend(Stage::Sampler)(problem.into()));
        }
        Ok((self.steps, self.denoised))
    }

    fn stopped(&self) -> GenerateError {
        let denoised = (!self.steps.is_empty()).then_some(&self.denoised[..]);
        let Self {
            batch,
            steps,
            seeds,
            finished,
            ..
        } = self;
        batch.stopped(steps.len(), 0, seeds, finished, denoised)
    }
}

impl Run for BatchRun<'_> {
    fn denoise(&mut self, x: &[f32], at: Rung, denoised: &mut [f32]) -> ControlFlow<()> {
        self.call(x, at, denoised, None)
    }

    fn denoise_both(
        &mut self,
        x: &[f32],
        at: Rung,
        denoised: &mut [f32],
        unconditional: &mut [f32],
    ) -> ControlFlow<()> {
        self.call(x, at, denoised, Some(unconditional))
    }

    fn noise(&mut self, from: f32, to: f32, out: &mut [f32]) {
        if self.check("out", out.len()).is_break() {
            return out.fill(0.0);
        }
        // Each picture draws its own noise, as it would alone.
        let one = out.len() / self.noise.len();
        for (noise, out) in self.noise.iter_mut().zip(out.chunks_exact_mut(one)) {
            noise.between(from, to, out);
        }
    }

    fn step(&mut self, step: Step<'_>) -> ControlFlow<()> {
        let now = Instant::now();
        let took = now - self.step_started;
        self.check("x", step.x.len())?;
        self.check("denoised", step.denoised.len())?;
        self.steps.push(took);
        self.total = step.total;
        if let Some(blend) = &self.blend {
            blend.apply(&self.batch.plan().rungs, step.next, step.x);
        }
        self.finished.copy_from_slice(step.x);
        self.denoised.copy_from_slice(step.denoised);
        tracing::debug!(step = step.index, sigma = step.sigma, ?took, "step");
        let shape = self.guided.shape();
        for (i, &(request, picture)) in self.batch.pictures.iter().enumerate() {
            let progress = Progress {
                step: StepInfo {
                    request,
                    picture,
                    seed: self.seeds[i].seed,
                    index: step.index,
                    total: step.total,
                    sigma: step.sigma,
                    next: step.next,
                    took,
                    elapsed: now - self.started,
                },
                latents: share(step.x, i, shape),
                denoised: share(step.denoised, i, shape),
                parts: self.batch.parts,
                stop: self.batch.stop,
            };
            if (self.observer)(Event::Step(progress)).is_break() {
                self.broke = true;
                return ControlFlow::Break(());
            }
        }
        self.step_started = Instant::now();
        ControlFlow::Continue(())
    }
}

/// Returns picture `i` of a batch `[batch, channels, h, w]`.
fn share(all: &[f32], i: usize, [_, channels, height, width]: [usize; 4]) -> ArrayView3<'_, f32> {
    let length = channels * height * width;
    let one = &all[i * length..(i + 1) * length];
    ArrayView3::from_shape((channels, height, width), one).expect("a picture has this many values")
}
