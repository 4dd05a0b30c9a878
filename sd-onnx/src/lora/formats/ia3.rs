//! IA³ (Liu et al. 2022, arXiv 2205.05638): one factor for each input or each output. The stored
//! numbers are the factors minus 1, so that a module of zeros changes nothing.

use super::{Dims, Factor, Misfit, Part, Parts, Shaped};

pub(super) fn check<T: Shaped>(parts: &Parts<T>, weight: Dims<'_>) -> Result<(), Misfit> {
    let [first, rest] = parts.sides(Part::Ia3)?;
    let found = first.checked_mul(rest);
    // Which of the two it has to be follows from the flag `on_input`, a value.
    match found == Some(weight.inputs()) || found == Some(weight.outputs()) {
        true => Ok(()),
        false => {
            let (inputs, outputs) = (weight.inputs(), weight.outputs());
            let expected =
                format_args!("one number for each of {inputs} inputs or {outputs} outputs");
            Err(Misfit::shape(
                Part::Ia3,
                parts.need(Part::Ia3)?.shape(),
                expected,
            ))
        }
    }
}

/// Returns the difference of the weight.
pub(super) fn delta(
    parts: &Parts<Factor>,
    weight: &[f32],
    dims: Dims<'_>,
) -> Result<Vec<f32>, Misfit> {
    let factor = parts.need(Part::Ia3)?;
    let flag = parts.need(Part::OnInput)?;
    let on_input = flag.values.first().is_some_and(|&flag| flag != 0.0);
    let (expected, what) = match on_input {
        true => (dims.inputs(), "inputs"),
        false => (dims.outputs(), "outputs"),
    };
    if factor.values.len() != expected {
        let expected = format_args!("one number for each of {expected} {what}");
        return Err(Misfit::shape(Part::Ia3, &factor.shape, expected));
    }
    let (columns, positions) = (dims.columns(), dims.positions());
    let mut delta = weight.to_vec();
    for (output, row) in delta.chunks_exact_mut(columns).enumerate() {
        for (input, numbers) in row.chunks_exact_mut(positions).enumerate() {
            let factor = factor.values[if on_input { input } else { output }];
            numbers.iter_mut().for_each(|number| *number *= factor);
        }
    }
    Ok(delta)
}
