//! Checked requests, which a run can draw without further checks.

mod controls;
mod inputs;
mod ladder;
mod prompts;
mod second;
mod seeds;

use std::sync::Arc;

use ndarray::{Array2, Axis};
use sd_schedulers::{Rungs, Sampler, noise::Seeds, samplers::SamplerRow};
use sd_text::{ClipSkip, PromptSteps, Side};

use self::{
    controls::control_problems,
    inputs::{beside_problem, check_inputs, noise_problem, patch_problem, start_problems, windows},
    ladder::{Part, is_of_timesteps, rungs, schedule_steps},
    prompts::{branches_problem, check_reading, lora_calls, read},
    second::check_second,
    seeds::{seeds, seeds_problems},
};
pub(crate) use self::{prompts::embedding_problem, second::Second};
use crate::{
    Conditioning, ControlPicture, GenerateError, ImageSize, Inputs, LatentCodec, LoraCall,
    LoraNetworks, MAX_COUNT, Problem, Problems, RefinerShare, RefinerSwitch, Request, StopToken,
    control::EncodedControl,
    defaults::Chosen,
    lora,
    parts::{Parts, Refiner},
    prompts::{Read, Reading},
    start::{Begin, EncodedStart, StartBeside},
    tiled::Windows,
};

/// A request that has been checked.
#[derive(Debug)]
pub(crate) struct Planned {
    pub request: Request,
    pub chosen: Chosen,
    /// Whether the sampler is the pipeline's default.
    pub default_sampler: bool,
    pub size: ImageSize,
    /// The height and width of the latents.
    pub latents: [usize; 2],
    pub sampler: Arc<dyn Sampler>,
    pub row: Option<&'static SamplerRow>,
    pub rungs: Rungs,
    /// The sigmas that the Brownian tree of an SDE sampler spans.
    pub tree: Vec<f32>,
    /// The noise level of the latents that the run starts from, if it is not the first rung's.
    pub noised_at: Option<f32>,
    /// Whether the sampler is one that WebUI runs on timesteps.
    pub of_timesteps: bool,
    pub prompt: Read,
    /// The negative prompt, even if it is not used: see [`Self::negative`].
    negative: Read,
    pub reading: Reading,
    /// The LoRAs that the prompts call, and the name of each.
    pub loras: Vec<LoraCall>,
    pub lora_names: Vec<String>,
    /// The seeds of the first picture.
    pub seeds: Seeds,
    /// The size conditioning of the network, `[2, ids]`: for the prompt and for the negative
    /// prompt.
    pub sizes: Option<Array2<f32>>,
    /// The size conditioning of the refiner.
    pub refiner_sizes: Option<Array2<f32>>,
    /// The step, from 0, at which the refiner takes over. `None` if it does not.
    pub refiner_from: Option<usize>,
    /// The layer at which the model's first tower is read if the request does not set one.
    pub own_clip_skip: ClipSkip,
    /// Whether the guidance scale is an input of the network.
    guidance_input: bool,
    /// What the first latents are.
    pub begin: Begin,
    /// Whether the pipeline makes the extra channels beside the latents from the start.
    pub beside: Option<StartBeside>,
    /// The windows that the denoiser sees. `None` if it sees the whole picture.
    pub windows: Option<Arc<Windows>>,
    /// The second pass in a larger size.
    pub second: Option<Box<Second>>,
}

impl Planned {
    /// Returns the negative prompt if it is used.
    fn negative(&self) -> Option<&Read> {
        if self.guidance_input {
            return None;
        }
        let (guidance, steps) = (&self.chosen.guidance, self.rungs.steps_of_whole());
        let used = guidance.uses_negative(steps, &*self.sampler, || self.prompt.composes());
        used.then_some(&self.negative)
    }

    /// Returns the prompts that are used.
    fn prompts(&self) -> Vec<&Read> {
        std::iter::once(&self.prompt)
            .chain(self.negative())
            .collect()
    }

    /// Encodes the prompts that are used, for the model and, if the refiner takes over in this run,
    /// for the refiner. Encodes the picture that the run starts from, too, and lets the control
    /// networks read their pictures.
    pub fn encode(
        &self,
        networks: &LoraNetworks,
        refiner: Option<&Refiner>,
        codec: &dyn LatentCodec,
        stop: &StopToken,
    ) -> Result<Encoded, GenerateError> {
        let encode = |encoder, reading: &Reading| {
            let mut encoded = reading.encode(encoder, &self.prompts(), stop)?.into_iter();
            let prompt = encoded.next().expect("the prompt is always used");
            Ok::<_, GenerateError>((prompt, encoded.next()))
        };
        let refiner = self.refiner_from.and(refiner);
        Ok(Encoded {
            model: encode(&networks.prompts, &self.reading)?,
            controls: EncodedControl::all(
                &self.request.controls,
                self.request.start.as_ref(),
                self.size,
                &*networks.denoiser,
                stop,
            )?
            .into(),
            start: match &self.request.start {
                Some(start) => {
                    let started = EncodedStart::new(start, self, codec, stop)?;
                    Some(Arc::new(started))
                }
                None => None,
            },
            refiner: match refiner {
                Some(refiner) => {
                    let zero_empty_negative = false;
                    let reading = Reading {
                        zero_empty_negative,
                        ..self.reading
                    };
                    Some(encode(&refiner.prompts, &reading)?)
                }
                None => None,
            },
        })
    }

    /// Returns whether pictures must be drawn one by one, because the sampler would let them
    /// influence each other in a batch.
    pub fn stays_alone(&self) -> bool {
        let second = self.second.as_ref();
        self.sampler.needs().one_picture || second.is_some_and(|it| it.planned.stays_alone())
    }

    /// Returns the steps before which a LoRA's weight changes.
    pub fn lora_changes(&self) -> Vec<usize> {
        let changes = |step: &usize| {
            let mut loras = self.loras.iter();
            loras.any(|lora| lora.unet_at(step - 1) != lora.unet_at(*step))
        };
        (1..self.rungs.steps()).filter(changes).collect()
    }

    /// Returns whether the control networks read the same for both requests.
    fn controls_fit(&self, other: &Self) -> bool {
        let controls = &self.request.controls;
        // These see the start and its mask.
        let sees_start = controls.iter().any(|control| {
            let start = self.request.start.as_ref();
            let is_cut = start.is_some_and(|start| start.only_masked().is_some());
            control.picture == ControlPicture::Start || is_cut
        });
        *controls == other.request.controls
            && (!sees_start || self.request.start == other.request.start)
    }

    /// Returns whether pictures of both requests can share a batch, provided that their prompts
    /// have the same number of tokens. Everything that the loop uses must be the same, and so must
    /// the number of branches.
    fn fits(&self, other: &Self) -> bool {
        let mask_rule = |plan: &Self| {
            let start = plan.request.start.as_ref();
            start.map(|start| start.mask.as_ref().map(|mask| mask.rule))
        };
        let seconds_fit = match (&self.second, &other.second) {
            (None, None) => true,
            (Some(own), Some(other)) => {
                (&own.upscaler, own.sizes) == (&other.upscaler, other.sizes)
                    && own.planned.fits(&other.planned)
            }
            _ => false,
        };
        self.latents == other.latents
            && (self.begin, self.beside) == (other.begin, other.beside)
            && mask_rule(self) == mask_rule(other)
            && seconds_fit
            && self.rungs == other.rungs
            && (&self.tree, self.noised_at) == (&other.tree, other.noised_at)
            && self.of_timesteps == other.of_timesteps
            && self.refiner_from == other.refiner_from
            && self.loras == other.loras
            && self.controls_fit(other)
            && self.windows == other.windows
            && self.request.shortcuts == other.request.shortcuts
            && *self.sampler == *other.sampler
            && self.prompt.branches() == other.prompt.branches()
    }
}

/// Prompt and negative prompt as a network receives them. The negative prompt is `None` if it is
/// not used.
pub(crate) type Halves = (Conditioning, Option<Conditioning>);

/// The encoded inputs of a request.
#[derive(Debug, Clone)]
pub(crate) struct Encoded {
    pub model: Halves,
    /// The prompts for the refiner. `None` if no refiner takes over.
    pub refiner: Option<Halves>,
    /// What the run starts from.
    pub start: Option<Arc<EncodedStart>>,
    /// The pictures that steer the run.
    pub controls: Arc<[EncodedControl]>,
}

/// Checks all requests. The error lists every problem of every request.
pub(crate) fn plan(parts: &Parts, requests: &[Request]) -> Result<Vec<Arc<Planned>>, Problems> {
    let mut problems = Vec::new();
    if requests.is_empty() {
        problems.push(Problem::new("requests", "at least 1", 0));
    }
    let mut planned = Vec::with_capacity(requests.len());
    for (i, request) in requests.iter().enumerate() {
        let mut found = Vec::new();
        planned.extend(check(parts, request, &mut found).map(Arc::new));
        problems.extend(found.into_iter().map(|problem| Problem {
            request: (requests.len() > 1).then_some(i),
            ..problem
        }));
    }
    Problems::check(problems)?;
    Ok(planned)
}

/// Returns the plan of a request, or adds at least one problem.
fn check(parts: &Parts, request: &Request, problems: &mut Vec<Problem>) -> Option<Planned> {
    let Some(hires) = &request.hires else {
        return check_pass(parts, request, None, problems);
    };
    let mut first = check_pass(parts, request, None, problems);
    let second = check_second(parts, request, hires, first.as_ref(), problems);
    let planned = first.as_mut()?;
    // As in WebUI, the refiner makes the last steps of the second pass only.
    planned.refiner_from = None;
    planned.second = Some(Box::new(second?));
    first
}

/// Returns the plan of one pass, or adds at least one problem. `before` is the number of steps of
/// the pass before it.
fn check_pass(
    parts: &Parts,
    request: &Request,
    before: Option<usize>,
    problems: &mut Vec<Problem>,
) -> Option<Planned> {
    let (scheduler, defaults) = parts.scheduling(request);
    let chosen = defaults.chosen(request, scheduler);
    let size = size(parts, request).map_err(|found| problems.extend(found.0));
    problems.extend(chosen.guidance.problems());
    problems.extend(count_problem(request.count));
    problems.extend(refiner_problem(parts, request));
    let seeds = seeds(parts, request);
    problems.extend(seeds_problems(seeds, request.count));
    let sampler = chosen.scheduler.sampler(scheduler);
    let sized = size.as_ref().ok().map(|&(size, _)| size);
    let row = chosen.scheduler.row(scheduler);
    let of_timesteps = is_of_timesteps(&*sampler, &parts.schedule);
    let rungs = rungs(
        parts,
        request,
        &chosen,
        sized,
        &*sampler,
        of_timesteps,
        problems,
    );
    let clip_skip = request.clip_skip.unwrap_or(parts.clip_skip);
    let clip_skip = checked_clip_skip(clip_skip, parts.prompts.layers())
        .map_err(|problem| problems.push(problem));
    let inputs = parts.denoiser.inputs();
    let refiner = parts.refiner.as_ref().map(|it| it.denoiser.inputs());
    check_inputs(inputs, refiner, request, &chosen, &*sampler, problems);
    let [prompt, negative] = [Side::Positive, Side::Negative]
        .map(|side| read(parts, request, side).map_err(|problem| problems.push(problem)));
    problems.extend(prompt.as_ref().ok().and_then(branches_problem));
    let called = prompt.as_ref().ok().map_or_else(Vec::new, |prompt| {
        lora::called(&parts.callable, prompt.texts(), problems)
    });

    // The checks below need the size. The last ones need everything.
    let (size, latents) = size.ok()?;
    problems.extend(noise_problem(inputs, request, latents));
    problems.extend(start_problems(parts, request, size, latents));
    problems.extend(beside_problem(inputs, request, latents));
    problems.extend(patch_problem(inputs, refiner, latents));
    problems.extend(control_problems(inputs, request, size, parts.max_pixels));
    let windows = windows(parts, request, latents).map_err(|problem| problems.push(problem));
    problems.extend(request.shortcuts.problems(
        inputs,
        refiner,
        &*sampler,
        rungs.as_ref().map(|part| &part.rungs),
        windows.as_ref().is_ok_and(Option::is_some),
    ));
    let (
        Part {
            rungs,
            tree,
            noised_at,
        },
        clip_skip,
    ) = (rungs?, clip_skip.ok()?);
    let (prompt, negative) = (prompt.ok()?, negative.ok()?);
    let windows = windows.ok()?;
    let reading = Reading {
        options: request.prompt_options,
        clip_skip,
        steps: PromptSteps {
            first_pass: before,
            steps: schedule_steps(&*sampler, &rungs, chosen.steps),
        },
        zero_empty_negative: parts.zero_empty_negative && !request.prompt_options.encode_empty,
    };
    check_reading(parts, &reading, &prompt, &negative, problems);
    let loras = lora_calls(parts, &called, rungs.steps(), problems);
    let default = defaults.scheduler.sampler(scheduler);
    problems.is_empty().then(|| Planned {
        request: Request {
            tiles: request
                .tiles
                .map(|tiles| tiles.resolved(parts.codec.factor())),
            ..request.clone()
        },
        sizes: size_values(inputs, request, size),
        refiner_sizes: refiner.and_then(|inputs| size_values(inputs, request, size)),
        refiner_from: refiner.and_then(|_| refiner_from(request, &rungs)),
        own_clip_skip: parts.prompts.towers()[0].default_layer().skip,
        guidance_input: inputs.guidance,
        begin: Begin::of(inputs, request),
        beside: StartBeside::of(inputs, request),
        size,
        latents,
        reading,
        loras,
        lora_names: called.iter().map(|it| it.name().to_owned()).collect(),
        row,
        default_sampler: *sampler == *default,
        sampler,
        chosen,
        rungs,
        tree,
        noised_at,
        of_timesteps,
        prompt,
        negative,
        seeds,
        windows: windows.map(Arc::new),
        second: None,
    })
}

/// Returns the size of the pictures, with the height and width of their latents.
fn size(parts: &Parts, request: &Request) -> Result<(ImageSize, [usize; 2]), Problems> {
    let of_start = || {
        let start = request.start.as_ref()?;
        start.default_size(parts.codec.factor(), parts.denoiser.inputs().patch)
    };
    let size = match request.size.or_else(of_start) {
        Some([width, height]) => ImageSize::new(width, height)?,
        None => parts.size,
    };
    checked_size(size, parts.max_pixels, parts.codec.factor())
}

/// Checks the number of pixels, and returns the size with the height and width of its latents.
pub(crate) fn checked_size(
    size: ImageSize,
    max_pixels: u64,
    factor: usize,
) -> Result<(ImageSize, [usize; 2]), Problems> {
    if size.pixels() > max_pixels {
        let expected = format!("at most {max_pixels} pixels");
        return Err(Problems(vec![Problem::new("size", expected, size)]));
    }
    Ok((size, size.latents(factor)?))
}

/// Returns the problem of a number of pictures that is out of range.
fn count_problem(count: usize) -> Option<Problem> {
    (!(1..=MAX_COUNT).contains(&count))
        .then(|| Problem::new("count", format!("1 to {MAX_COUNT}"), count))
}

/// Returns the problem of a switch to a refiner that does not exist, or at a share out of range.
fn refiner_problem(parts: &Parts, request: &Request) -> Option<Problem> {
    let at = request.refiner?.at;
    if parts.refiner.is_none() {
        let expected = "nothing, as this pipeline has no refiner";
        return Some(Problem::new("refiner", expected, "given"));
    }
    (!(0.0..=1.0).contains(&at)).then(|| Problem::new("refiner", "a share of 0 to 1", at))
}

/// Checks a clip skip. 0 becomes `None`, the model's own layer.
pub(crate) fn checked_clip_skip(layer: usize, layers: usize) -> Result<Option<ClipSkip>, Problem> {
    if layer > layers {
        let expected = format!("1 to {layers}, the model's text layers, or 0 for the model's own");
        return Err(Problem::new("clip_skip", expected, layer));
    }
    Ok(ClipSkip::new(layer).ok())
}

/// Returns the size conditioning of the network, `[2, ids]`: for the prompt and for the negative
/// prompt.
pub(crate) fn size_values(
    inputs: &Inputs,
    request: &Request,
    size: ImageSize,
) -> Option<Array2<f32>> {
    let ids = inputs.sizes?;
    // As in diffusers, negative sizes count only if both of these are set.
    let negative = request
        .negative_sizes
        .filter(|sizes| sizes.original.is_some() && sizes.target.is_some());
    let rows = [
        (request.sizes, request.aesthetic_score),
        (
            negative.unwrap_or(request.sizes),
            request.negative_aesthetic_score,
        ),
    ];
    let mut values = Array2::zeros((2, ids.count()));
    for (mut row, (sizes, score)) in values.axis_iter_mut(Axis(0)).zip(rows) {
        for (value, known) in row.iter_mut().zip(ids.values(&sizes, size, score)) {
            *value = known;
        }
    }
    Some(values)
}

/// Returns the step at which the refiner takes over, or `None` if that is after the last step.
fn refiner_from(request: &Request, rungs: &Rungs) -> Option<usize> {
    let RefinerSwitch { at, by } = request.refiner.unwrap_or_default();
    let steps = rungs.steps();
    (0..steps).find(|&step| match by {
        // The cutoff of diffusers and WebUI: the remaining training timesteps.
        RefinerShare::Timesteps => {
            let trained = rungs.schedule().num_train_timesteps() as f32;
            rungs.rung(step).timestep < (trained - at * trained).round()
        }
        RefinerShare::Steps => step as f32 >= at * steps as f32,
    })
}

/// Groups the requests whose pictures may share batches, in the order of their first requests. If
/// the batch size is 1, each request is a group.
pub(crate) fn groups(parts: &Parts, planned: &[Arc<Planned>]) -> Vec<Vec<usize>> {
    if parts.max_batch == 1 {
        return (0..planned.len()).map(|request| vec![request]).collect();
    }
    // The refiner's text encoder may read other texts, so that its number of tokens may differ.
    let of_plan = |plan: &Planned| {
        let of = |encoder| plan.reading.tokens(encoder, &plan.prompts());
        let refiner = plan.refiner_from.and(parts.refiner.as_ref());
        (
            of(&parts.prompts),
            refiner.map(|refiner| of(&refiner.prompts)),
        )
    };
    let tokens = |plan: &Arc<Planned>| {
        let second = plan.second.as_ref();
        (of_plan(plan), second.map(|second| of_plan(&second.planned)))
    };
    let tokens: Vec<_> = planned.iter().map(tokens).collect();
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for (request, plan) in planned.iter().enumerate() {
        let group = groups.iter_mut().find(|group| {
            let first = group[0];
            tokens[first] == tokens[request] && planned[first].fits(plan)
        });
        match group {
            Some(group) => group.push(request),
            None => groups.push(vec![request]),
        }
    }
    groups
}
