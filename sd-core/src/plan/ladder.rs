//! The noise levels of a request, and what is wrong with them.

use sd_schedulers::{
    Ladder, NoiseSchedule, Rungs, Sampler,
    ladders::{LadderError, NoisePath, StrengthRule},
    noise::{NoiseError, Seeds},
    samplers::Calls,
};

use crate::{ImageSize, Problem, Request, defaults::Chosen, infotext, parts::Parts, start::Begin};

/// Returns the part of the ladder that is run, or adds at least one problem. If `size` is `None`
/// because it has a problem, the ladder is checked without being adapted to the size.
pub(super) fn rungs(
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
    // WebUI counts their rungs from the cleanest, and there may be more rungs than steps.
    let first = match below {
        true => rungs.steps().saturating_sub(steps - first),
        false => first,
    };
    let noised_at = whole.as_ref().filter(|_| below);
    let noised_at = noised_at.and_then(|sigmas| sigmas.get(first).copied());
    let rungs = match begin {
        Begin::Noise => rungs,
        Begin::Picture => match rungs.starting_at(first + usize::from(below)) {
            Ok(rungs) => rungs,
            Err(_) => {
                problems.extend(strength_problem(request, steps, below));
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

/// The part of a ladder that is run.
pub(super) struct Part {
    pub rungs: Rungs,
    pub tree: Vec<f32>,
    pub noised_at: Option<f32>,
}

/// Returns the number of steps for which prompt schedules are resolved, as WebUI counts them: twice
/// the steps of the run for samplers that call the model twice in most steps.
///
/// Among WebUI's samplers, only DPM adaptive makes more calls than that, and their number is not
/// known in advance. For other samplers that would, such as PNDM, the last call counts as the last
/// step.
pub(super) fn schedule_steps(sampler: &dyn Sampler, rungs: &Rungs, steps: usize) -> usize {
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

/// The samplers that WebUI runs on timesteps.
const OF_TIMESTEPS: [&str; 4] = ["DDIM", "DDIM CFG++", "PLMS", "UniPC"];

pub(super) fn is_of_timesteps(sampler: &dyn Sampler, schedule: &NoiseSchedule) -> bool {
    // WebUI runs them on diffusion models only.
    let is_diffusion = schedule.path() == NoisePath::Exploding;
    is_diffusion && infotext::name_of(sampler).is_some_and(|name| OF_TIMESTEPS.contains(&name))
}

/// Returns the problem of a strength that leaves no step of `steps`. `below` is whether the first
/// of them is not made.
fn strength_problem(request: &Request, steps: usize, below: bool) -> Option<Problem> {
    let strength = request.start.as_ref()?.strength;
    // It is reported as out of range.
    if !(0.0..=1.0).contains(&strength) {
        return None;
    }
    if below && strength >= 1.0 {
        let expected = "at least 2 for image to image with this sampler of WebUI";
        return Some(Problem::new("steps", expected, steps));
    }
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
