//! DoRA, the weight-decomposed adaptation (Liu et al. 2024, arXiv 2402.09353): the changed weight
//! keeps its direction, and its magnitude is replaced.
//!
//! The magnitudes belong to the outputs or to the inputs. LyCORIS has stored both, and the shape
//! shows which: `[out, 1, …]` or `[1, in, …]`. A vector with one axis belongs to the outputs if it
//! has as many numbers, also where the weight is square, because peft stores such vectors. peft's
//! own magnitudes always belong to the outputs.

use super::{Dims, Factor, Misfit, Part, Parts, Shaped};

/// What one magnitude belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lines {
    Outputs,
    Inputs,
}

pub(super) fn check<T: Shaped>(parts: &Parts<T>, weight: Dims<'_>) -> Result<(), Misfit> {
    lines(parts, weight).map(drop)
}

fn lines<T: Shaped>(parts: &Parts<T>, weight: Dims<'_>) -> Result<Option<(Part, Lines)>, Misfit> {
    let (outputs, inputs) = (weight.outputs(), weight.inputs());
    let misfit = |part, shape| {
        let expected = format_args!("one number for each of {outputs} outputs or {inputs} inputs");
        Err(Misfit::shape(part, shape, expected))
    };
    let count = |shape: &[usize]| {
        let mut sides = shape.iter();
        sides.try_fold(1usize, |count, &side| count.checked_mul(side))
    };
    if let Some(magnitude) = parts.get(Part::Magnitude) {
        let shape = magnitude.shape();
        return match count(shape) == Some(outputs) {
            true => Ok(Some((Part::Magnitude, Lines::Outputs))),
            false => misfit(Part::Magnitude, shape),
        };
    }
    let Some(scale) = parts.get(Part::DoraScale) else {
        return Ok(None);
    };
    let shape = scale.shape();
    let count = count(shape);
    let is_row = shape.len() > 1 && shape[0] == 1;
    let is_column = shape.len() > 1 && Some(shape[0]) == count;
    let (outputs, inputs) = (count == Some(outputs), count == Some(inputs));
    let lines = match (outputs, inputs) {
        (true, true) if is_row && !is_column => Lines::Inputs,
        (true, _) => Lines::Outputs,
        (false, true) => Lines::Inputs,
        (false, false) => return misfit(Part::DoraScale, shape),
    };
    Ok(Some((Part::DoraScale, lines)))
}

/// Replaces a difference by the difference that DoRA makes of it, if the module has magnitudes.
pub(super) fn apply(
    parts: &Parts<Factor>,
    delta: &mut [f32],
    weight: &[f32],
    dims: Dims<'_>,
) -> Result<(), Misfit> {
    let Some((part, lines)) = lines(parts, dims)? else {
        return Ok(());
    };
    let scale = &parts.need(part)?.values;
    let (columns, positions) = (dims.columns(), dims.positions());
    // The line of each number.
    let line = |place: usize| match lines {
        Lines::Outputs => place / columns,
        Lines::Inputs => place % columns / positions,
    };
    let mut norms = vec![0.0f64; scale.len()];
    for (place, (delta, weight)) in delta.iter_mut().zip(weight).enumerate() {
        *delta += weight;
        norms[line(place)] += f64::from(*delta) * f64::from(*delta);
    }
    // LyCORIS adds this to the norms of outputs, and neither WebUI nor peft adds it.
    let more = match (part, lines) {
        (Part::DoraScale, Lines::Outputs) => f32::EPSILON,
        _ => 0.0,
    };
    let factors: Vec<f32> = norms
        .iter()
        .zip(scale)
        .map(|(norm, scale)| match norm.sqrt() as f32 + more {
            // All numbers of the line are 0, and have no direction.
            0.0 => 0.0,
            norm => scale / norm,
        })
        .collect();
    for (place, (delta, weight)) in delta.iter_mut().zip(weight).enumerate() {
        *delta = *delta * factors[line(place)] - weight;
    }
    Ok(())
}
