//! The denoising loop, from noise to finished pictures.

mod begun;
mod blend;
mod driven;
mod second;

use std::{
    collections::HashMap,
    ops::ControlFlow,
    sync::Arc,
    time::{Duration, Instant},
};

use ndarray::{ArcArray, Array2, Array4, Axis, Ix4};
use sd_schedulers::noise::Seeds;

use self::{
    begun::Begun,
    driven::{BatchRun, most_steps},
};
use crate::{
    Conditioning, Denoiser, Event, GenerateError, Guided, LoraNetworks, NetworkCalls, Picture,
    StopToken, Stopped, Timings, Unfinished,
    conditioning::Contexts,
    guided::Half,
    parts::Parts,
    picture::{Made, to_rgb},
    plan::{Encoded, Halves, Planned},
};

/// Pictures that go through the denoising loop together, usually one.
pub(crate) struct Batch<'a> {
    parts: &'a Parts,
    /// The networks for the LoRAs of these pictures.
    networks: &'a LoraNetworks,
    planned: &'a [Arc<Planned>],
    /// Which pass of the requests this is.
    pass: Pass,
    /// The request and the index of each picture.
    pictures: Vec<(usize, usize)>,
    /// The prompts of each picture, and how long it took to encode them.
    conditionings: Vec<(Encoded, Duration)>,
    /// When the first step of an earlier pass began, and how many steps that pass made.
    earlier: Option<(Instant, usize)>,
    stop: &'a StopToken,
}

/// A pass of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Pass {
    First,
    /// The second pass in a larger size.
    Second,
}

/// The encoded prompts of requests that have more pictures to draw, for each pass.
pub(crate) type Prompts = HashMap<(usize, Pass), Encoded>;

impl<'a> Batch<'a> {
    /// Encodes the prompts of the pictures.
    pub fn new(
        parts: &'a Parts,
        networks: &'a LoraNetworks,
        planned: &'a [Arc<Planned>],
        pass: Pass,
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
            let plan = of_pass(&planned[request], pass);
            let found = match encoded.remove(&(request, pass)) {
                Some(known) => known,
                None => {
                    let refiner = parts.refiner.as_ref();
                    plan.encode(networks, refiner, &*parts.codec, stop)?
                }
            };
            if index + 1 < plan.request.count {
                encoded.insert((request, pass), found.clone());
            }
            conditionings.push((found, started.elapsed()));
        }
        Ok(Self {
            parts,
            networks,
            planned,
            pass,
            pictures,
            conditionings,
            earlier: None,
            stop,
        })
    }

    /// Draws the pictures.
    pub fn run(
        self,
        encoded: &mut Prompts,
        observer: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<(), GenerateError> {
        let pictures = self.pictures.iter();
        let seeds: Vec<_> = pictures
            .map(|&(request, index)| self.planned[request].seeds.image(index as u64))
            .collect();
        let mut sampled = self.sampled(seeds, observer)?;
        if let Some(second) = &self.plan().second {
            sampled = self.second_pass(second, sampled, encoded, observer)?;
        }
        self.finish(&sampled, observer)
    }

    /// Goes from the noise to the finished latents.
    fn sampled(
        &self,
        seeds: Vec<Seeds>,
        observer: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Sampled, GenerateError> {
        let mut begun = self.begin(&seeds)?;
        let mut latents = std::mem::take(&mut begun.latents);
        let started = Instant::now();
        let (steps, calls, denoised) = self.sample(&seeds, &mut begun, &mut latents, observer)?;
        if let Some(blend) = self.blend(&begun) {
            let contiguous = "the product of a contiguous array is contiguous";
            blend.last(latents.as_slice_mut().expect(contiguous));
        }
        Ok(Sampled {
            seeds,
            initial_noise: begun.initial_noise,
            latents,
            denoised,
            steps,
            calls,
            started,
            between: Duration::ZERO,
            second_prompts: Vec::new(),
        })
    }

    /// Returns the plan of the first picture. For everything that the loop uses, the plan of any
    /// picture will do, because they agree.
    fn plan(&self) -> &'a Planned {
        self.planned(self.pictures[0].0)
    }

    /// Returns the plan of a request for this pass.
    fn planned(&self, request: usize) -> &'a Planned {
        of_pass(&self.planned[request], self.pass)
    }

    /// Returns the shape of the latents, `[batch, channels, h, w]`.
    fn shape(&self) -> [usize; 4] {
        let [height, width] = self.plan().latents;
        let channels = self.parts.denoiser.inputs().channels;
        [self.pictures.len(), channels, height, width]
    }

    /// Lets the sampler turn the noisy latents into clean ones. Returns the time of each step, the
    /// network's calls, and the last denoised samples.
    fn sample(
        &self,
        seeds: &[Seeds],
        begun: &mut Begun,
        latents: &mut Array4<f32>,
        observer: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<(Vec<Duration>, NetworkCalls, Vec<f32>), GenerateError> {
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
            started: self.earlier.map_or(now, |(started, _)| started),
            step_started: now,
            refined: false,
            steps: Vec::with_capacity(most_steps(plan)),
            calls: NetworkCalls::default(),
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
        // Controls act on the model only. The plans of a batch agree about them.
        let controls: Arc<[_]> = match refiner {
            false => self.conditionings[0].0.controls.clone(),
            true => [].into(),
        };
        let half = |prompts: &[&Conditioning], row: usize| {
            let branches = prompts.iter().map(|prompt| &prompt.branches[..]);
            Half {
                contexts: Contexts::new(&branches.collect::<Vec<_>>()),
                sizes: self.sizes(row, refiner),
                beside: beside.clone(),
                controls: controls.clone(),
                negative: row == 1,
            }
        };
        let plans = || {
            let pictures = self.pictures.iter();
            pictures.map(|&(request, _)| self.planned(request))
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
        let windows = self.plan().windows.clone();
        let tiled = windows.map(|windows| (windows, self.parts.max_batch));
        let guided = guided.rungs(&self.plan().rungs).tiled(tiled);
        let plan = self.plan();
        guided.shortcuts(plan.request.shortcuts, &plan.rungs, plan.lora_changes())
    }

    /// Returns the sizes that the network takes for each picture, `[batch, ids]`. Row 0 is for the
    /// prompt, row 1 for the negative prompt.
    fn sizes(&self, row: usize, refiner: bool) -> Option<Array2<f32>> {
        let of = |&(request, _): &(usize, usize)| {
            let plan = self.planned(request);
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
            let beside = self.planned(request).request.beside.as_ref()?;
            let index = index.min(beside.dim().0 - 1);
            Some(beside.index_axis(Axis(0), index))
        };
        let all: Vec<_> = self.pictures.iter().map(of).collect::<Option<_>>()?;
        let all = ndarray::stack(Axis(0), &all).expect("the plan has checked the shapes");
        Some(all.into_shared())
    }

    /// Decodes the pictures and hands them to the observer.
    fn finish(
        &self,
        sampled: &Sampled,
        observer: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<(), GenerateError> {
        let stopped = |from| self.stopped_after(sampled, from);
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
            let start = self.conditionings[i].0.start.as_deref();
            let pixels = match start {
                Some(start) => start.finish.apply(pixels),
                None => pixels,
            };
            let picture = self.picture(i, sampled, latents, pixels, started);
            if observer(Event::Picture(Box::new(picture))).is_break() {
                return Err(stopped(i + 1));
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Returns the names and hashes of the LoRAs that any pass of a request calls.
    fn called(&self, plan: &Planned) -> Vec<String> {
        let of = |plan: &Planned| {
            let callable = &self.parts.callable;
            callable.hashes(&plan.loras, &plan.lora_names)
        };
        let mut called = of(plan);
        for other in plan.second.iter().flat_map(|second| of(&second.planned)) {
            if !called.contains(&other) {
                called.push(other);
            }
        }
        called
    }

    /// Returns [`GenerateError::Stopped`] for a run that was stopped after the last step, with the
    /// pictures from index `from` on as the unfinished ones.
    fn stopped_after(&self, sampled: &Sampled, from: usize) -> GenerateError {
        let latents = sampled.latents.as_slice();
        let latents = latents.expect("the latents are contiguous");
        let (.., channels, height, width) = sampled.latents.dim();
        let shape = (1, channels, height, width);
        let (steps, denoised) = (sampled.steps.len(), Some(&sampled.denoised[..]));
        self.stopped(steps, from, &sampled.seeds, latents, denoised, shape)
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
        let (_, _, height, width) = latents.dim();
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
                calls: sampled.calls,
                between: sampled.between,
                decode: started.elapsed(),
            },
            made: Made {
                planned: plan.clone(),
                second_prompts: sampled.second_prompts.get(i).cloned(),
                seeds,
                batch_size: self.pictures.len(),
                batch_position: i,
                model: self.parts.model.clone(),
                loras: self.parts.loras.clone(),
                called: self.called(plan),
                refiner: self.parts.refiner.as_ref().map(|it| it.name.clone()),
                seamless: self.parts.denoiser.inputs().seamless,
                decoder: self.parts.codec.approximation([height, width]),
                precision: self.parts.denoiser.precision(),
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
        shape: (usize, usize, usize, usize),
    ) -> GenerateError {
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

/// Returns the plan of a request for a pass. A batch has second passes only if all its requests
/// have them.
fn of_pass(planned: &Planned, pass: Pass) -> &Planned {
    match pass {
        Pass::First => planned,
        Pass::Second => {
            let second = planned.second.as_ref();
            &second.expect("requests of a batch agree about it").planned
        }
    }
}

/// The pictures of a batch after the last step, before they are decoded.
struct Sampled {
    seeds: Vec<Seeds>,
    initial_noise: Array4<f32>,
    latents: Array4<f32>,
    /// The denoised samples of the last step.
    denoised: Vec<f32>,
    /// The time of each step, of both passes.
    steps: Vec<Duration>,
    /// The network's calls, in both passes.
    calls: NetworkCalls,
    /// When the first step began.
    started: Instant,
    /// The time between two passes.
    between: Duration,
    /// The prompts of each picture in the second pass.
    second_prompts: Vec<Halves>,
}

/// Returns a copy of picture `i` of a batch, as a batch of one.
fn picture_of(all: &Array4<f32>, i: usize) -> Array4<f32> {
    all.index_axis(Axis(0), i).insert_axis(Axis(0)).to_owned()
}
