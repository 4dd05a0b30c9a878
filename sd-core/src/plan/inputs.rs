//! What is wrong with the inputs of the networks.

use sd_schedulers::Sampler;

use crate::{
    Guidance, ImageSize, Inputs, Problem, Request, SizeIds, Sizes, Start, StartFrom,
    defaults::Chosen,
    parts::Parts,
    start::StartBeside,
    tiled::{Windows, multiple},
};

/// Adds the problems of values that the network does not take, and of inputs that it needs.
pub(super) fn check_inputs(
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

/// Returns the problem of initial noise of the wrong shape, or with NaN or infinity.
pub(super) fn noise_problem(
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
pub(super) fn start_problems(
    parts: &Parts,
    request: &Request,
    size: ImageSize,
    [height, width]: [usize; 2],
) -> Vec<Problem> {
    let inputs = parts.denoiser.inputs();
    let shape = [request.count, inputs.channels, height, width];
    let is_edit = inputs.extra_channels == inputs.channels;
    let start = request.start.as_ref();
    start.map_or_else(Vec::new, |start| {
        start.problems(shape, size, is_edit, parts.max_pixels)
    })
}

/// Returns the problem of extra channels that the model does not take, or of the wrong shape, or
/// with NaN or infinity.
pub(super) fn beside_problem(
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
pub(super) fn patch_problem(
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

/// Returns the windows of a large picture, or `None` if one window is enough.
pub(super) fn windows(
    parts: &Parts,
    request: &Request,
    latents: [usize; 2],
) -> Result<Option<Windows>, Problem> {
    let Some(tiles) = &request.tiles else {
        return Ok(None);
    };
    let inputs = parts.denoiser.inputs();
    let refiner = parts.refiner.as_ref().map(|it| it.denoiser.inputs());
    let models: Vec<_> = [Some(inputs), refiner].into_iter().flatten().collect();
    let networks = request.controls.iter().map(|control| &*control.network);
    let factor = parts.codec.factor();
    let multiple = multiple(factor, &models, &networks.collect::<Vec<_>>());
    tiles.windows(latents, factor, multiple, inputs)
}
