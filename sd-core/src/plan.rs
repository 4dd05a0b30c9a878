//! Checked requests, which a run can draw without further checks.

use std::sync::Arc;

use ndarray::{Array2, Array4, Axis};
use sd_schedulers::{
    Ladder, Rungs, Sampler,
    ladders::{LadderError, StrengthRule},
    noise::{NoiseError, NoiseKind, Seeds},
    samplers::{Calls, SamplerRow},
};
use sd_text::{ClipSkip, PromptEmbedding, PromptEncoder, PromptSteps, Side};

use crate::{
    Conditioning, GenerateError, Guidance, Hires, ImageSize, Inputs, LatentCodec, LoraCall,
    MAX_BRANCHES, MAX_COUNT, MAX_PROMPT_BYTES, Problem, Problems, Prompt, RefinerShare,
    RefinerSwitch, Request, SizeIds, Sizes, Start, StartFrom, StopToken, Upscaler,
    defaults::Chosen,
    hires::Enlarged,
    infotext,
    lora::{self, Called},
    parts::{Parts, Refiner},
    prompts::{Read, Reading},
    start::{Begin, EncodedStart, StartBeside},
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
    /// The second pass in a larger size.
    pub second: Option<Box<Second>>,
}

/// The second pass of a request.
#[derive(Debug)]
pub(crate) struct Second {
    pub upscaler: Upscaler,
    /// The sizes in pixels.
    pub sizes: Enlarged,
    pub planned: Planned,
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
    /// for the refiner. Encodes the picture that the run starts from, too.
    pub fn encode(
        &self,
        prompts: &PromptEncoder,
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
            model: encode(prompts, &self.reading)?,
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
        self.sampler.needs().one_picture
    }

    /// Returns whether pictures of both requests can share a batch, provided that their prompts
    /// have the same number of tokens. Everything that the loop uses must be the same, and so must
    /// the number of branches.
    fn fits(&self, other: &Self) -> bool {
        let blends = |plan: &Self| {
            let start = plan.request.start.as_ref();
            start.map(|start| start.mask.as_ref().map(|mask| mask.rule))
        };
        let seconds_fit = match (&self.second, &other.second) {
            (None, None) => true,
            (Some(own), Some(other)) => {
                (own.upscaler, own.sizes) == (other.upscaler, other.sizes)
                    && own.planned.fits(&other.planned)
            }
            _ => false,
        };
        self.latents == other.latents
            && (self.begin, self.beside) == (other.begin, other.beside)
            && blends(self) == blends(other)
            && seconds_fit
            && self.rungs == other.rungs
            && self.refiner_from == other.refiner_from
            && self.loras == other.loras
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

/// Returns the plan of a second pass, or adds at least one problem unless the first pass has one.
fn check_second(
    parts: &Parts,
    request: &Request,
    hires: &Hires,
    first: Option<&Planned>,
    problems: &mut Vec<Problem>,
) -> Option<Second> {
    let inputs = parts.denoiser.inputs();
    if request.start.is_some() {
        let expected = "nothing beside a start, which a second pass cannot follow";
        problems.push(Problem::new("hires", expected, "given"));
        return None;
    }
    if inputs.extra_channels > 0 {
        let expected = "nothing, as this model takes channels beside the latents in one size";
        problems.push(Problem::new("hires", expected, "given"));
        return None;
    }
    let (size, _) = size(parts, request).ok()?;
    let factor = parts.codec.factor();
    // The smallest multiple of 8 and of the pixels of a patch.
    let patch = factor * inputs.patch;
    let unit = (1..=patch).map(|n| 8 * n).find(|unit| unit % patch == 0);
    let unit = unit.unwrap_or(8) as u32;
    let sizes = hires.enlarged([size.width(), size.height()], unit);
    let sizes = sizes.map_err(|problem| problems.push(problem)).ok()?;
    // The true latents are known when the first pass is over.
    let [width, height] = sizes.size.map(|side| side as usize / factor);
    let most = parts.max_pixels as usize / (factor * factor).max(1);
    let stand_in = match width.saturating_mul(height) <= most {
        true => Array4::zeros((1, inputs.channels, height, width)),
        false => Array4::zeros((1, inputs.channels, 0, 0)),
    };
    let mut second = hires.request(request, sizes, Start::latents(stand_in));
    let conditioned = &mut second.sizes;
    if inputs.sizes.is_some() && conditioned.original.or(conditioned.target).is_none() {
        // WebUI describes the picture before what hangs over is cut off.
        let [width, height] = sizes.covering;
        *conditioned = conditioned.original(width, height).target(width, height);
    }
    let before = first.map(|first| first.reading.steps.steps);
    let mut found = Vec::new();
    let planned = check_pass(parts, &second, before, &mut found);
    let known = problems.len();
    for problem in found {
        let field = problem
            .field
            .strip_prefix("start.")
            .unwrap_or(&problem.field);
        let is_known = problems[..known].iter().any(|it| it.field == *field);
        // The stand-in has the right shape, unless the size is at fault.
        if is_known || problem.field == "start.from" {
            continue;
        }
        let field = format!("hires.{field}");
        problems.push(Problem {
            field: field.into(),
            ..problem
        });
    }
    Some(Second {
        upscaler: hires.upscaler,
        sizes,
        planned: planned?,
    })
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
    let of_timesteps = is_of_timesteps(row, &*sampler);
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
    problems.extend(start_problems(inputs, request, size, latents));
    problems.extend(beside_problem(inputs, request, latents));
    problems.extend(patch_problem(inputs, refiner, latents));
    let (
        Part {
            rungs,
            tree,
            noised_at,
        },
        clip_skip,
    ) = (rungs?, clip_skip.ok()?);
    let (prompt, negative) = (prompt.ok()?, negative.ok()?);
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
        request: request.clone(),
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
        second: None,
    })
}

/// Returns the size of the pictures, with the height and width of their latents.
fn size(parts: &Parts, request: &Request) -> Result<(ImageSize, [usize; 2]), Problems> {
    let of_start = || {
        let start = request.start.as_ref()?;
        start.default_size(parts.codec.factor() * parts.denoiser.inputs().patch)
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

/// Returns the seeds of the first picture.
fn seeds(parts: &Parts, request: &Request) -> Seeds {
    let random = || {
        let random: u32 = rand::random();
        // numpy refuses seeds of more than 32 bits, and the seeds of further pictures count up from
        // this one.
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

/// Returns the problems with the seeds of any of `count` pictures.
fn seeds_problems(seeds: Seeds, count: usize) -> Vec<Problem> {
    type Part = fn(Seeds) -> Seeds;
    let parts: [(&'static str, Part); 4] = [
        ("seed", |seeds| Seeds {
            seed: seeds.seed,
            kind: seeds.kind,
            ..Seeds::default()
        }),
        ("ensd", |seeds| match seeds.sampler_offset {
            // This is the seed itself, which is checked above.
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
    // If the first and the last picture have usable seeds, so have the pictures between them.
    let last = seeds.image(count.saturating_sub(1) as u64);
    let mut problems = Vec::new();
    for (what, part) in parts {
        let checked = [seeds, last].map(part).map(|part| part.check());
        let ([Err(error), _] | [_, Err(error)]) = checked else {
            continue;
        };
        problems.push(seed_problem(what, seeds, error));
    }
    problems
}

/// Returns the problem with the option `what` of these seeds.
fn seed_problem(what: &'static str, seeds: Seeds, error: NoiseError) -> Problem {
    match error {
        NoiseError::NumpySeed(_) if what == "ensd" => Problem::new(
            what,
            "a number with which seed + ensd is at most 4294967295, numpy's last seed",
            seeds.sampler_offset,
        ),
        NoiseError::NumpySeed(seed) => {
            let expected = "0 to 4294967295 for every picture, numpy's seeds";
            Problem::new(what, expected, seed)
        }
        NoiseError::Strength(strength) => Problem::new("variation.strength", "0 to 1", strength),
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
    }
}

/// The samplers that WebUI runs on timesteps.
const OF_TIMESTEPS: [&str; 4] = ["DDIM", "DDIM CFG++", "PLMS", "UniPC"];

fn is_of_timesteps(row: Option<&SamplerRow>, sampler: &dyn Sampler) -> bool {
    let name = match row {
        Some(row) => row.webui,
        None => infotext::name_of(sampler),
    };
    name.is_some_and(|name| OF_TIMESTEPS.contains(&name))
}

/// The part of a ladder that is run.
struct Part {
    rungs: Rungs,
    tree: Vec<f32>,
    noised_at: Option<f32>,
}

/// Returns the part of the ladder that is run, or adds at least one problem. If `size` is `None` because it has a problem,
/// the ladder is checked without being adapted to the size.
fn rungs(
    parts: &Parts,
    request: &Request,
    chosen: &Chosen,
    size: Option<ImageSize>,
    sampler: &dyn Sampler,
    of_timesteps: bool,
    problems: &mut Vec<Problem>,
) -> Option<Part> {
    let ladder = chosen.ladder.clone();
    let ladder = match size {
        Some(size) => ladder.for_size(size.width() as usize, size.height() as usize),
        None => ladder,
    };
    let problem = |error| ladder_problem(error, parts, request, chosen, &ladder);
    let conventions = sampler.conventions();
    let begin = Begin::of(parts.denoiser.inputs(), request);
    let (steps, first) = match (&request.start, begin) {
        (Some(start), Begin::Picture) => start.rule.part(chosen.steps, start.strength),
        _ => (chosen.steps, 0),
    };
    let of = |steps| ladder.rungs(&parts.schedule, steps, &conventions);
    let rungs = match of(steps) {
        Ok(rungs) => rungs,
        Err(_) if steps != chosen.steps && of(chosen.steps).is_ok() => {
            let expected = format!(
                "a strength with which {} steps are the last of a ladder that can be made",
                chosen.steps
            );
            let found = request.start.as_ref().map_or(0.0, |start| start.strength);
            let found = format!("{found}, which needs a ladder of {steps} steps");
            problems.push(Problem::new("start.strength", expected, found));
            return None;
        }
        Err(error) => {
            // With a wrong number of steps the ladder was not checked. It is checked with a right
            // number.
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
    // WebUI's tree spans the whole ladder, also if only a part of it is run.
    let rule = request.start.as_ref().map(|start| start.rule);
    let is_webui = matches!(rule, Some(StrengthRule::WebUi | StrengthRule::WebUiExact));
    let whole = is_webui.then(|| rungs.sigmas().to_vec());
    // WebUI's samplers on timesteps begin one rung below the noise level of their latents.
    let below = is_webui && of_timesteps && begin == Begin::Picture;
    let noised_at = whole.as_ref().filter(|_| below);
    let noised_at = noised_at.and_then(|sigmas| sigmas.get(first).copied());
    let rungs = match begin {
        Begin::Noise => rungs,
        Begin::Picture => match rungs.starting_at(first + usize::from(below)) {
            Ok(rungs) => rungs,
            Err(_) => {
                problems.extend(strength_problem(request, steps));
                return None;
            }
        },
    };
    let tree = whole.unwrap_or_else(|| rungs.sigmas().to_vec());
    if sampler.needs().brownian
        && let Some(problem) = brownian_problem(&tree, &ladder)
    {
        problems.push(problem);
        return None;
    }
    Some(Part {
        rungs,
        tree,
        noised_at,
    })
}

/// Returns the problem of a strength that leaves no step of `steps`.
fn strength_problem(request: &Request, steps: usize) -> Option<Problem> {
    let strength = request.start.as_ref()?.strength;
    let expected = format!("a strength that leaves at least one of {steps} steps");
    Some(Problem::new("start.strength", expected, strength))
}

fn is_of_steps(error: &LadderError) -> bool {
    matches!(
        error,
        LadderError::Steps { .. } | LadderError::TooFew { .. } | LadderError::Given { .. }
    )
}

/// Returns the problem of sigmas for which the noise of SDE samplers cannot be drawn.
fn brownian_problem(sigmas: &[f32], ladder: &Ladder) -> Option<Problem> {
    // A tree over no values suffices to check the sigmas.
    let error = Seeds::default().tree(sigmas, 0).err()?;
    Some(match error {
        NoiseError::Range { min, max, limit } => Problem::new(
            "ladder",
            format!("sigmas from above 0 to {limit}, for the noise of this scheduler"),
            format!("{} with sigmas {min} to {max}", ladder.kind()),
        ),
        other => Problem::new(
            "ladder",
            "another ladder",
            format!("{} ({other})", ladder.kind()),
        ),
    })
}

/// Returns the problem of a request whose ladder could not be made.
fn ladder_problem(
    error: LadderError,
    parts: &Parts,
    request: &Request,
    chosen: &Chosen,
    ladder: &Ladder,
) -> Problem {
    let kind = ladder.kind();
    let scheduler = |expected: &str| Problem::new("scheduler", expected, &chosen.scheduler);
    match error {
        // The request did not set a number of steps, so the ladder is at fault.
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

/// Returns the name of a number in a ladder, and a description of what was found there.
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

/// Checks a clip skip. 0 becomes `None`, the model's own layer.
pub(crate) fn checked_clip_skip(layer: usize, layers: usize) -> Result<Option<ClipSkip>, Problem> {
    if layer > layers {
        let expected = format!("1 to {layers}, the model's text layers, or 0 for the model's own");
        return Err(Problem::new("clip_skip", expected, layer));
    }
    Ok(ClipSkip::new(layer).ok())
}

/// Adds the problems of values that the network does not take, and of inputs that it needs.
fn check_inputs(
    inputs: &Inputs,
    refiner: Option<&Inputs>,
    request: &Request,
    chosen: &Chosen,
    sampler: &dyn Sampler,
    problems: &mut Vec<Problem>,
) {
    let mut refuse = |what, expected: &str, found: &dyn std::fmt::Display| {
        problems.push(Problem::new(what, expected, found));
    };
    if inputs.sizes.is_none() {
        let none = "nothing, as this model does not take sizes";
        if request.sizes != Sizes::default() {
            refuse("sizes", none, &"given");
        }
        if request.negative_sizes.is_some() {
            refuse("negative_sizes", none, &"given");
        }
    }
    let plain = Request::new("");
    let takes_score = |inputs: &Inputs| inputs.sizes == Some(SizeIds::Score);
    let takes_score = takes_score(inputs) || refiner.is_some_and(takes_score);
    for (what, found, default, taken) in [
        (
            "aesthetic_score",
            request.aesthetic_score,
            plain.aesthetic_score,
            takes_score,
        ),
        (
            "negative_aesthetic_score",
            request.negative_aesthetic_score,
            plain.negative_aesthetic_score,
            takes_score,
        ),
        (
            "image_guidance",
            request.image_guidance,
            plain.image_guidance,
            inputs.extra_channels == inputs.channels,
        ),
    ] {
        if !found.is_finite() {
            refuse(what, "a finite number", &found);
        } else if found != default && !taken {
            let expected = format!("{default}, the default, as this model does not take it");
            refuse(what, &expected, &found);
        }
    }
    if request.beside.is_none() && inputs.extra_channels > 0 {
        let is_picture = |start: &Start| matches!(start.from, StartFrom::Pixels(_));
        let start = request.start.as_ref().filter(|start| is_picture(start));
        match start {
            Some(_) if StartBeside::of(inputs, request).is_some() => {}
            Some(_) if inputs.extra_channels == inputs.channels + 1 => {
                refuse("start.mask", "a mask, which this model takes", &"none");
            }
            _ => {
                let expected = format!(
                    "{} channels beside the latents, or a picture as the start",
                    inputs.extra_channels
                );
                refuse("beside", &expected, &"none");
            }
        }
    }
    if inputs.guidance {
        check_guidance_input(chosen, sampler, problems);
    }
}

/// Adds the problems with a model that takes the guidance scale as an input, and therefore makes no
/// prediction for the negative prompt.
fn check_guidance_input(chosen: &Chosen, sampler: &dyn Sampler, problems: &mut Vec<Problem>) {
    let is_plain = match &chosen.guidance {
        Guidance::ClassifierFree(guidance) => guidance.is_plain(),
        Guidance::Custom(_) => false,
    };
    if !is_plain {
        let expected = "a scale and nothing else, which this model takes as an input";
        problems.push(Problem::new("guidance", expected, "more than a scale"));
    }
    if sampler.needs().unconditional {
        let expected = "one without an unconditional prediction, which this model does not make";
        problems.push(Problem::new("scheduler", expected, "one of CFG++"));
    }
}

/// Parses the prompt or the negative prompt. A prompt that is too long is not parsed.
fn read(parts: &Parts, request: &Request, side: Side) -> Result<Read, Problem> {
    let (what, what_2, prompt, second) = match side {
        Side::Positive => ("prompt", "prompt_2", &request.prompt, &request.prompt_2),
        Side::Negative => (
            "negative",
            "negative_2",
            &request.negative,
            &request.negative_2,
        ),
    };
    let second = second.as_deref();
    let second_problem = second
        .and_then(|second| second_problem(what_2, prompt, second, parts.prompts.towers().len()));
    if let Some(problem) = prompt_problem(what, prompt, parts.denoiser.inputs()).or(second_problem)
    {
        return Err(problem);
    }
    let read = Read::new(prompt, second, side, &request.prompt_options);
    let expected = read.branches();
    match read.second_branches() {
        Some(found) if found != expected => {
            let expected = format!("as many parts between ANDs as `{what}`, {expected}");
            Err(Problem::new(what_2, expected, found))
        }
        _ => Ok(read),
    }
}

/// Returns the problem of a text that is too long, or of an embedding that does not fit the model.
fn prompt_problem(what: &'static str, prompt: &Prompt, inputs: &Inputs) -> Option<Problem> {
    match prompt {
        Prompt::Text(text) => length_problem(what, text),
        Prompt::Embedding { embedding, pooled } => {
            let mut given = PromptEmbedding::from(embedding.clone());
            given.pooled = pooled.clone();
            embedding_problem(what, &given, inputs)
        }
    }
}

pub(crate) fn embedding_problem(
    what: &'static str,
    given: &PromptEmbedding,
    inputs: &Inputs,
) -> Option<Problem> {
    let width = inputs.context;
    let (batch, tokens, found) = given.embedding.dim();
    if batch != 1 || tokens == 0 || found != width {
        let expected = format!("one of shape (1, tokens, {width})");
        let found = format!("an embedding of shape {:?}", given.embedding.dim());
        return Some(Problem::new(what, expected, found));
    }
    let found = given.pooled.as_ref().map(|pooled| pooled.dim());
    // An additional pooled output that the model does not take is ignored.
    if let Some(width) = inputs.pooled
        && found != Some((1, width))
    {
        let expected = format!("an embedding with a pooled output of shape (1, {width})");
        let found = match found {
            Some(shape) => format!("an embedding with a pooled output of shape {shape:?}"),
            None => "an embedding without a pooled output".into(),
        };
        return Some(Problem::new(what, expected, found));
    }
    let pooled = given.pooled.iter().flatten();
    let value = given.embedding.iter().chain(pooled);
    let value = value.into_iter().find(|value| !value.is_finite())?;
    Some(Problem::new(what, "an embedding of finite numbers", value))
}

/// Returns the calls of LoRAs in a run of `steps` steps. Adds the problems of LoRAs that cannot be
/// used in this way.
fn lora_calls(
    parts: &Parts,
    called: &[Called],
    steps: usize,
    problems: &mut Vec<Problem>,
) -> Vec<LoraCall> {
    let calls = called.iter().map(|it| it.call(&parts.callable, steps));
    let calls: Vec<_> = calls
        .filter_map(|call| call.map_err(|problem| problems.push(problem)).ok())
        .collect();
    // One LoRA that must be merged makes the backend merge all of them.
    let is_live = |call: &LoraCall| parts.callable.infos()[call.index].live;
    if let Some(merged) = calls.iter().find(|call| !is_live(call)) {
        let merged = &parts.callable.infos()[merged.index].name;
        problems.extend(
            called
                .iter()
                .zip(&calls)
                .filter_map(|(of, call)| of.mixed(call, merged)),
        );
    }
    calls
}

/// Returns the problem with a text for the second tower.
fn second_problem(
    what: &'static str,
    prompt: &Prompt,
    second: &str,
    towers: usize,
) -> Option<Problem> {
    if towers < 2 {
        let expected = "nothing, as this model has one text encoder";
        return Some(Problem::new(what, expected, "given"));
    }
    match prompt {
        Prompt::Embedding { .. } => {
            let expected = "nothing beside an embedding";
            Some(Problem::new(what, expected, "given"))
        }
        Prompt::Text(_) => length_problem(what, second),
    }
}

fn length_problem(what: &'static str, text: &str) -> Option<Problem> {
    (text.len() > MAX_PROMPT_BYTES).then(|| {
        let expected = format!("at most {MAX_PROMPT_BYTES} bytes");
        Problem::new(what, expected, format!("{} bytes long", text.len()))
    })
}

/// Returns the problem of a prompt with too many parts between `AND`s.
fn branches_problem(prompt: &Read) -> Option<Problem> {
    let branches = prompt.branches();
    (branches > MAX_BRANCHES).then(|| {
        let expected = format!("at most {MAX_BRANCHES}");
        let found = format!("{branches} parts between ANDs");
        Problem::new("prompt", expected, found)
    })
}

/// Returns the problem of initial noise of the wrong shape, or with NaN or infinity.
fn noise_problem(
    inputs: &Inputs,
    request: &Request,
    [height, width]: [usize; 2],
) -> Option<Problem> {
    let noise = request.initial_noise.as_ref()?;
    let expected = (request.count, inputs.channels, height, width);
    if noise.dim() != expected {
        let expected = format!("one of shape {expected:?}");
        let found = format!("an array of shape {:?}", noise.dim());
        return Some(Problem::new("initial_noise", expected, found));
    }
    let value = noise.iter().find(|value| !value.is_finite())?;
    Some(Problem::new("initial_noise", "finite numbers", value))
}

/// Returns the problems of a start.
fn start_problems(
    inputs: &Inputs,
    request: &Request,
    size: ImageSize,
    [height, width]: [usize; 2],
) -> Vec<Problem> {
    let shape = [request.count, inputs.channels, height, width];
    let is_edit = inputs.extra_channels == inputs.channels;
    let start = request.start.as_ref();
    start.map_or_else(Vec::new, |start| start.problems(shape, size, is_edit))
}

/// Returns the problem of extra channels that the model does not take, or of the wrong shape, or
/// with NaN or infinity.
fn beside_problem(
    inputs: &Inputs,
    request: &Request,
    [height, width]: [usize; 2],
) -> Option<Problem> {
    let beside = request.beside.as_ref()?;
    if inputs.extra_channels == 0 {
        let expected = "nothing, as this model takes no channels beside the latents";
        return Some(Problem::new("beside", expected, "given"));
    }
    let expected = (request.count, inputs.extra_channels, height, width);
    let found = beside.dim();
    if found != expected && found != (1, inputs.extra_channels, height, width) {
        let expected = format!("one of shape {expected:?}, or 1 as the first dimension");
        return Some(Problem::new(
            "beside",
            expected,
            format!("an array of shape {found:?}"),
        ));
    }
    let value = beside.iter().find(|value| !value.is_finite())?;
    Some(Problem::new("beside", "finite numbers", value))
}

/// Returns the problem of latents that cannot be divided into the patches of the model or of the
/// refiner. The refiner counts even if it does not take over, so that a pipeline accepts the same
/// sizes for every request.
fn patch_problem(
    inputs: &Inputs,
    refiner: Option<&Inputs>,
    latents: [usize; 2],
) -> Option<Problem> {
    let patches = [Some(inputs), refiner].into_iter().flatten();
    patches.map(|inputs| inputs.patch).find_map(|patch| {
        let side = latents.into_iter().find(|side| side % patch != 0)?;
        let expected = format!("latents of sides that are multiples of {patch}");
        Some(Problem::new("size", expected, side))
    })
}

/// Returns the number of steps for which prompt schedules are resolved, as WebUI counts them: twice
/// the steps of the run for samplers that call the model twice in most steps.
///
/// Among WebUI's samplers, only DPM adaptive makes more calls than that, and their number is not
/// known in advance. For other samplers that would, such as PNDM, the last call counts as the last
/// step.
fn schedule_steps(sampler: &dyn Sampler, rungs: &Rungs, steps: usize) -> usize {
    let counted = match sampler.calls_per_step() {
        0 | 1 => steps,
        _ => 2 * steps,
    };
    match sampler.calls(rungs) {
        Calls::Exactly(calls) => counted.max(calls.min(MOST_CALLS).saturating_sub(1)),
        Calls::AtMost(_) => counted,
    }
}

/// The largest number of calls that is taken from a sampler, because a schedule of alternating
/// texts has an entry for each call. It is somewhat more than twice the largest number of training
/// timesteps.
const MOST_CALLS: usize = 1 << 18;

/// Adds the problems of prompts that could be parsed, unless the prompt has too many branches.
fn check_reading(
    parts: &Parts,
    reading: &Reading,
    prompt: &Read,
    negative: &Read,
    problems: &mut Vec<Problem>,
) {
    if prompt.branches() > MAX_BRANCHES {
        return;
    }
    let prompts = [("prompt", prompt), ("negative", negative)];
    let alone = prompts.map(|(what, read)| reading.problem(&parts.prompts, what, read));
    match alone {
        [None, None] => problems.extend(reading.problem_together(&parts.prompts, prompts)),
        alone => problems.extend(alone.into_iter().flatten()),
    }
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
    let of_pass = |plan: &Planned| {
        let of = |encoder| plan.reading.tokens(encoder, &plan.prompts());
        let refiner = plan.refiner_from.and(parts.refiner.as_ref());
        (
            of(&parts.prompts),
            refiner.map(|refiner| of(&refiner.prompts)),
        )
    };
    let tokens = |plan: &Arc<Planned>| {
        let second = plan.second.as_ref();
        (of_pass(plan), second.map(|second| of_pass(&second.planned)))
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
