//! The second pass of a request.

use ndarray::Array4;

use super::{Planned, check_pass, size};
use crate::{
    Hires, ImageSize, Problem, Request, Start, Upscaler,
    hires::Enlarged,
    parts::Parts,
    size::unit,
    upscale::{Enlarger, factor_to},
};

/// The second pass of a request.
#[derive(Debug)]
pub(crate) struct Second {
    pub upscaler: Upscaler,
    /// The sizes in pixels.
    pub sizes: Enlarged,
    pub planned: Planned,
}

/// Returns the plan of a second pass, or adds at least one problem unless the first pass has one.
pub(super) fn check_second(
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
    let unit = unit(factor * inputs.patch) as u32;
    let sizes = hires.enlarged([size.width(), size.height()], unit);
    let sizes = sizes.map_err(|problem| problems.push(problem)).ok()?;
    let [wide, high] = sizes.covering;
    if u64::from(wide) * u64::from(high) > parts.max_pixels {
        let expected = format!(
            "at most {} pixels, before what hangs over is cut",
            parts.max_pixels
        );
        let found = format!("{wide}×{high}");
        problems.push(Problem::new("hires.size", expected, found));
        return None;
    }
    if let Some(problem) = upscaler_problem(parts, &hires.upscaler, size, sizes) {
        problems.push(problem);
    }
    // The true latents are known when the first pass is over.
    let [width, height] = sizes.size.map(|side| side as usize / factor);
    let stand_in = Array4::zeros((1, inputs.channels, height, width));
    let steps = first.map(|first| first.chosen.steps);
    let mut second = hires.request(request, sizes, Start::latents(stand_in), steps);
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
        if (is_known && !hires.sets(field)) || problem.field == "start.from" {
            continue;
        }
        let field = match field {
            "width" | "height" | "size" => "hires.size".to_owned(),
            field => format!("hires.{field}"),
        };
        problems.push(Problem {
            field: field.into(),
            ..problem
        });
    }
    Some(Second {
        upscaler: hires.upscaler.clone(),
        sizes,
        planned: planned?,
    })
}

/// Returns the problem with the network that enlarges a picture of `size`, if one is to do so.
fn upscaler_problem(
    parts: &Parts,
    upscaler: &Upscaler,
    size: ImageSize,
    sizes: Enlarged,
) -> Option<Problem> {
    let Upscaler::Network(name) = upscaler else {
        return None;
    };
    let field = "hires.upscaler";
    let network = match parts.called_upscaler(name, field) {
        Ok(network) => network,
        Err(problem) => return Some(problem),
    };
    let size = [size.width(), size.height()];
    let factor = factor_to(size, sizes.covering)?;
    let problem = Enlarger::new(&**network).plan(size, factor).err()?;
    Some(Problem {
        field: field.into(),
        ..problem
    })
}
