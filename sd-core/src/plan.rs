//! Requests, checked: what a run can no longer trip over.

use std::sync::Arc;

use ndarray::ArrayView3;
use sd_schedulers::{
    Calls, Ladder, LadderError, NoiseError, NoiseKind, Row, Rungs, Sampler, Seeds, same,
};
use sd_text::{ClipSkip, PromptEncoder, Side};

use crate::{
    Conditioning, Error, ImageSize, MAX_BRANCHES, MAX_COUNT, MAX_PROMPT_BYTES, Problem, Problems,
    Prompt, Request, StopToken,
    pipeline::Parts,
    prompts::{Read, Reading},
};

/// A request that can be drawn.
#[derive(Debug)]
pub(crate) struct Planned {
    pub request: Request,
    pub size: ImageSize,
    /// Height and width of the latents.
    pub latents: [usize; 2],
    pub sampler: Arc<dyn Sampler>,
    pub row: Option<&'static Row>,
    /// As it was asked for, whatever the size makes of it.
    pub ladder: Ladder,
    pub rungs: Rungs,
    pub prompt: Read,
    /// It may not be looked at: see [`Self::negative`].
    negative: Read,
    pub reading: Reading,
    /// Of the first picture.
    pub seeds: Seeds,
}

impl Planned {
    /// The negative prompt, if it is looked at.
    fn negative(&self) -> Option<&Read> {
        let used = self.sampler.needs().unconditional
            || self.request.guidance.uses_negative(self.rungs.steps())
            || self.prompt.composes();
        used.then_some(&self.negative)
    }

    /// The prompts that are looked at.
    fn prompts(&self) -> Vec<&Read> {
        std::iter::once(&self.prompt)
            .chain(self.negative())
            .collect()
    }

    /// Encodes the prompts that are looked at.
    pub fn encode(
        &self,
        encoder: &PromptEncoder,
        stop: &StopToken,
    ) -> Result<(Conditioning, Option<Conditioning>), Error> {
        let encoded = self.reading.encode(encoder, &self.prompts(), stop)?;
        let mut encoded = encoded.into_iter();
        let prompt = encoded.next().expect("the prompt is always looked at");
        Ok((prompt, encoded.next()))
    }

    /// Whether pictures that its sampler is given at once would change one another.
    pub fn stays_alone(&self) -> bool {
        self.sampler.needs().one_picture
    }

    /// Whether pictures of the two can be made in one batch, given that their prompts have as many tokens: everything the loop is made of
    /// is the same, and they have as many branches.
    fn fits(&self, other: &Self) -> bool {
        self.latents == other.latents
            && self.rungs == other.rungs
            && same(&*self.sampler, &*other.sampler)
            && self.prompt.branches() == other.prompt.branches()
    }
}

/// Checks all requests. The error has every problem of every request.
pub(crate) fn plan(parts: &Parts, requests: &[Request]) -> Result<Vec<Arc<Planned>>, Error> {
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

/// The plan of a request, or at least one problem.
fn check(parts: &Parts, request: &Request, problems: &mut Vec<Problem>) -> Option<Planned> {
    let size = match request.size {
        Some([width, height]) => ImageSize::new(width, height),
        None => Ok(parts.size),
    };
    let size = size.and_then(|size| checked_size(size, parts.max_pixels, parts.codec.factor()));
    let size = size.map_err(|found| problems.extend(found.0)).ok();

    problems.extend(request.guidance.problems());
    if !(1..=MAX_COUNT).contains(&request.count) {
        problems.push(Problem::new(
            "count",
            format!("1 to {MAX_COUNT}"),
            request.count,
        ));
    }
    let seeds = seeds(parts, request);
    problems.extend(seeds_problems(seeds, request.count));

    let sampler = request.scheduler.sampler(&parts.scheduler);
    let ladder = match &request.ladder {
        Some(ladder) => ladder.clone(),
        None => request.scheduler.default_ladder(&parts.scheduler),
    };
    let sized = match size {
        Some((size, _)) => {
            let [width, height] = [size.width(), size.height()].map(|side| side as usize);
            ladder.clone().for_size(width, height)
        }
        None => ladder.clone(),
    };
    let steps = request.step_count();
    let rungs = rungs(parts, request, &sized, &*sampler, problems);

    let clip_skip = request.clip_skip.unwrap_or(parts.clip_skip);
    let clip_skip = checked_clip_skip(clip_skip, parts.prompts.model().layers())
        .map_err(|problem| problems.push(problem))
        .ok();
    let width = parts.denoiser.context_width();
    // One that is too long is not read.
    let mut read = |what, prompt, side| match prompt_problem(what, prompt, width) {
        Some(problem) => {
            problems.push(problem);
            None
        }
        None => Some(Read::new(prompt, side, &request.prompt_options)),
    };
    let prompt = read("prompt", &request.prompt, Side::Positive);
    let negative = read("negative", &request.negative, Side::Negative);
    let branches = prompt.as_ref().map_or(1, Read::branches);
    if branches > MAX_BRANCHES {
        let expected = format!("at most {MAX_BRANCHES}");
        let found = format!("{branches} parts between ANDs");
        problems.push(Problem::new("prompt", expected, found));
    }

    let (size, latents) = size?;
    if let Some(noise) = &request.initial_noise {
        let channels = parts.denoiser.latent_channels();
        let expected = (request.count, channels, latents[0], latents[1]);
        if noise.dim() != expected {
            let expected = format!("one of shape {expected:?}");
            let found = format!("an array of shape {:?}", noise.dim());
            problems.push(Problem::new("initial_noise", expected, found));
        } else if let Some(value) = noise.iter().find(|value| !value.is_finite()) {
            problems.push(Problem::new("initial_noise", "finite numbers", value));
        }
    }
    let (rungs, clip_skip) = (rungs?, clip_skip?);
    let (prompt, negative) = (prompt?, negative?);
    let row = request.scheduler.row(&parts.scheduler);
    let reading = Reading {
        options: request.prompt_options,
        clip_skip,
        steps: schedule_steps(parts, &*sampler, &rungs, steps),
    };
    if branches <= MAX_BRANCHES {
        let prompts = [("prompt", &prompt), ("negative", &negative)];
        let alone = prompts.map(|(what, read)| reading.problem(&parts.prompts, what, read));
        match alone {
            [None, None] => problems.extend(reading.problem_together(&parts.prompts, prompts)),
            alone => problems.extend(alone.into_iter().flatten()),
        }
    }
    problems.is_empty().then(|| Planned {
        request: request.clone(),
        size,
        latents,
        reading,
        row,
        sampler,
        ladder,
        rungs,
        prompt,
        negative,
        seeds,
    })
}

/// The steps that schedules of prompts are made for, as WebUI counts them: twice those of the run for samplers that call the model twice
/// in most steps. None of its samplers goes on past that end but DPM adaptive, whose calls nobody knows before; for
/// others that would, such as PNDM, the end is their last call.
fn schedule_steps(parts: &Parts, sampler: &dyn Sampler, rungs: &Rungs, steps: usize) -> usize {
    let calls = |rungs: &Rungs| match sampler.calls(rungs) {
        Calls::Exactly(calls) => Some(calls.min(MOST_CALLS)),
        Calls::AtMost(_) => None,
    };
    // Short runs mislead: some samplers make extra calls in the first steps.
    let ladder = match sampler.conventions().on_grid_only {
        true => Ladder::leading(),
        false => Ladder::karras(),
    };
    let many = ladder.rungs(&parts.schedule, MANY, &sampler.conventions());
    let many = many.ok().and_then(|rungs| calls(&rungs));
    let twice = many.is_some_and(|calls| calls + 1 >= 2 * MANY);
    let steps = if twice { 2 * steps } else { steps };
    calls(rungs).map_or(steps, |calls| steps.max(calls.saturating_sub(1)))
}

/// Steps of a run that shows how often a sampler calls the model in most steps.
const MANY: usize = 50;

/// The most calls that a sampler is believed to make, because a schedule of alternating texts has an entry for each. It is twice
/// the most training timesteps, and somewhat more.
const MOST_CALLS: usize = 1 << 18;

/// What decides the noise of the first picture.
fn seeds(parts: &Parts, request: &Request) -> Seeds {
    let random = || {
        let random: u32 = rand::random();
        // numpy refuses what is counted on past 32 bits.
        let room = u32::from(request.noise == NoiseKind::Numpy);
        u64::from(random >> room)
    };
    let factor = parts.codec.factor();
    Seeds {
        seed: request.seed.unwrap_or_else(random),
        kind: request.noise,
        variation: request.variation,
        resize_from: request
            .seed_resize
            .map(|[width, height]| [height as usize / factor, width as usize / factor]),
        sampler_offset: request.ensd,
    }
}

/// What is wrong with the seeds of any of `count` pictures.
fn seeds_problems(seeds: Seeds, count: usize) -> Vec<Problem> {
    type Part = fn(Seeds) -> Seeds;
    let parts: [(&'static str, Part); 4] = [
        ("seed", |seeds| Seeds {
            seed: seeds.seed,
            kind: seeds.kind,
            ..Seeds::default()
        }),
        ("ensd", |seeds| match seeds.sampler_offset {
            // The seed itself, of which has been told.
            0 => Seeds::default(),
            offset => Seeds {
                seed: seeds.seed.wrapping_add(offset),
                kind: seeds.kind,
                ..Seeds::default()
            },
        }),
        ("variation", |seeds| Seeds {
            kind: seeds.kind,
            variation: seeds.variation,
            ..Seeds::default()
        }),
        ("seed_resize", |seeds| Seeds {
            resize_from: seeds.resize_from,
            ..Seeds::default()
        }),
    ];
    // Those between the first and the last can be had if these can.
    let last = seeds.image(count.saturating_sub(1) as u64);
    let mut problems = Vec::new();
    for (what, part) in parts {
        let checked = [seeds, last].map(part).map(|part| part.check());
        let ([Err(error), _] | [_, Err(error)]) = checked else {
            continue;
        };
        problems.push(match error {
            NoiseError::NumpySeed(_) if what == "ensd" => Problem::new(
                what,
                "a number with which seed + ensd is at most 4294967295, numpy's last seed",
                seeds.sampler_offset,
            ),
            NoiseError::NumpySeed(seed) => Problem::new(
                what,
                "0 to 4294967295 for every picture, numpy's seeds",
                seed,
            ),
            NoiseError::Strength(strength) => {
                Problem::new("variation.strength", "0 to 1", strength)
            }
            NoiseError::ResizeFrom { height, width, max } => Problem::new(
                what,
                format!("1 to {max} latents each way"),
                format!("{width}×{height} latents"),
            ),
            other => Problem::new(
                what,
                "a value that can be drawn",
                format!("refused ({other})"),
            ),
        });
    }
    problems
}

/// The rungs, or at least one problem.
fn rungs(
    parts: &Parts,
    request: &Request,
    ladder: &Ladder,
    sampler: &dyn Sampler,
    problems: &mut Vec<Problem>,
) -> Option<Rungs> {
    let problem = |error| ladder_problem(error, parts, request, ladder);
    let conventions = sampler.conventions();
    let of = |steps| ladder.rungs(&parts.schedule, steps, &conventions);
    let rungs = match of(request.step_count()) {
        Ok(rungs) => rungs,
        Err(error) => {
            // A wrong number of steps says nothing of the ladder: that is seen with a right one.
            let right = match error {
                LadderError::Steps { .. } | LadderError::TooFew { .. } => {
                    Some(conventions.min_steps.max(1))
                }
                LadderError::Given { given, .. } => Some(given),
                _ => None,
            };
            let other = right.and_then(|steps| of(steps).err());
            let other = other.filter(|other| !is_of_steps(other));
            problems.extend(other.map(problem));
            problems.push(problem(error));
            return None;
        }
    };
    // A tree of no values says whether there can be one.
    if sampler.needs().brownian
        && let Err(error) = Seeds::default().tree(rungs.sigmas(), 0)
    {
        problems.push(match error {
            NoiseError::Range { min, max, limit } => Problem::new(
                "ladder",
                format!("sigmas from above 0 to {limit}, for the noise of this scheduler"),
                format!("{} with sigmas {min} to {max}", ladder.kind()),
            ),
            other => Problem::new("ladder", "another", format!("{} ({other})", ladder.kind())),
        });
        return None;
    }
    Some(rungs)
}

fn is_of_steps(error: &LadderError) -> bool {
    matches!(
        error,
        LadderError::Steps { .. } | LadderError::TooFew { .. } | LadderError::Given { .. }
    )
}

/// The size and that of its latents.
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

pub(crate) fn checked_clip_skip(layer: usize, layers: usize) -> Result<ClipSkip, Problem> {
    match ClipSkip::new(layer) {
        Ok(clip_skip) if layer <= layers => Ok(clip_skip),
        _ => Err(Problem::new(
            "clip_skip",
            format!("1 to {layers}, the model's text layers"),
            layer,
        )),
    }
}

fn prompt_problem(what: &'static str, prompt: &Prompt, width: usize) -> Option<Problem> {
    match prompt {
        Prompt::Text(text) if text.len() > MAX_PROMPT_BYTES => {
            let expected = format!("at most {MAX_PROMPT_BYTES} bytes");
            Some(Problem::new(
                what,
                expected,
                format!("{} bytes long", text.len()),
            ))
        }
        Prompt::Text(_) => None,
        Prompt::Embedding(embedding) => embedding_problem(what, embedding.view(), width),
    }
}

pub(crate) fn embedding_problem(
    what: &'static str,
    embedding: ArrayView3<'_, f32>,
    width: usize,
) -> Option<Problem> {
    let (batch, tokens, found) = embedding.dim();
    if batch != 1 || tokens == 0 || found != width {
        let expected = format!("(1, tokens, {width})");
        let found = format!("an embedding of shape {:?}", embedding.dim());
        return Some(Problem::new(what, expected, found));
    }
    let value = embedding.iter().find(|value| !value.is_finite())?;
    Some(Problem::new(what, "an embedding of finite numbers", value))
}

fn ladder_problem(
    error: LadderError,
    parts: &Parts,
    request: &Request,
    ladder: &Ladder,
) -> Problem {
    let kind = ladder.kind();
    let scheduler = |expected: &str| Problem::new("scheduler", expected, &request.scheduler);
    match error {
        // Nobody asked for a number of steps.
        LadderError::Steps { steps, max }
            if request.steps.is_none() && ladder.given_steps().is_some() =>
        {
            let found = format!("{kind} with {steps} rungs");
            Problem::new("ladder", format!("1 to {max} rungs"), found)
        }
        LadderError::Steps { steps, max } => {
            let why = if max == parts.schedule.num_train_timesteps() {
                "the model's training timesteps"
            } else {
                "the most with this scheduler and ladder"
            };
            Problem::new("steps", format!("1 to {max}, {why}"), steps)
        }
        LadderError::TooFew { steps, min } => {
            let expected = format!("at least {min} with this scheduler and ladder");
            Problem::new("steps", expected, steps)
        }
        LadderError::Given { steps, given } => {
            let expected = format!("{given}, as many as the ladder has rungs");
            Problem::new("steps", expected, steps)
        }
        LadderError::OffGrid if ladder.on_grid() => {
            scheduler("a scheduler that does not need the training timesteps of a diffusion model")
        }
        LadderError::OffGrid => {
            let named = Ladder::NAMED.iter();
            let on_grid = named.filter(|(_, ladder)| ladder.on_grid());
            let names: Vec<_> = on_grid.map(|(name, _)| *name).collect();
            let names = names.join(", ");
            let expected = format!("{names}: this scheduler needs whole training timesteps");
            Problem::new("ladder", expected, kind)
        }
        LadderError::Model { ladder, model } if ladder == kind => {
            Problem::new("ladder", format!("a ladder for {model} model"), kind)
        }
        LadderError::Model { model, .. } => scheduler(&format!("a scheduler for {model} model")),
        LadderError::Value {
            option,
            expected,
            found,
        } => Problem::new(format!("ladder.{kind}.{option}"), expected, found),
        LadderError::Span { min, max } => Problem::new(
            format!("ladder.{kind}"),
            "finite sigmas above 0, the smallest first",
            format!("from sigma {min} to {max}"),
        ),
        LadderError::Sigma { index, sigma } => {
            let expected = "finite sigmas, each below the one before it and the last at least 0";
            let (what, found) = place(ladder, "sigma", index, sigma);
            Problem::new(what, expected, found)
        }
        LadderError::Timestep {
            index,
            timestep,
            min,
            max,
        } => {
            let (what, found) = place(ladder, "timestep", index, timestep);
            Problem::new(what, format!("timesteps from {min} to {max}"), found)
        }
        other => Problem::new(
            "ladder",
            "a ladder that can be made",
            format!("{kind} ({other})"),
        ),
    }
}

/// What to call a number of a ladder, and what was found there.
fn place(ladder: &Ladder, what: &str, index: usize, found: f32) -> (String, String) {
    match ladder {
        Ladder::Sigmas(_) | Ladder::Timesteps(_) => {
            let kind = ladder.kind();
            (format!("ladder.{kind}[{index}]"), found.to_string())
        }
        _ => {
            let found = format!("{} with {what} {found} at rung {index}", ladder.kind());
            ("ladder".to_owned(), found)
        }
    }
}

/// The requests whose pictures share batches, in the order of the first of each; each alone where a batch is of one.
pub(crate) fn groups(
    planned: &[Arc<Planned>],
    batch: usize,
    encoder: &PromptEncoder,
) -> Vec<Vec<usize>> {
    if batch == 1 {
        return (0..planned.len()).map(|request| vec![request]).collect();
    }
    let tokens = |plan: &Arc<Planned>| plan.reading.tokens(encoder, &plan.prompts());
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
