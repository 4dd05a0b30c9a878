//! LoKr, the Kronecker product `w1 ⊗ w2` (Edalati et al. 2022, arXiv 2212.10650, as in LyCORIS).
//!
//! Each of the two matrices is stored whole or as a low-rank product. The second one may also be a
//! convolution, or a Tucker decomposition of a convolution.

use std::borrow::Cow;

use super::{
    Dims, Factor, Misfit, Part, Parts, Shaped,
    lora::{check_tucker, tucker},
};

/// The sides of the two matrices.
#[derive(Debug, Clone, Copy)]
struct Sides {
    first: [usize; 2],
    second: [usize; 2],
}

/// Checks the factors. Returns the rank by which alpha is divided: the rank of the second matrix,
/// or the rank of the first if the second is whole, or `None` if both are.
pub(super) fn check<T: Shaped>(
    parts: &Parts<T>,
    weight: Dims<'_>,
) -> Result<Option<usize>, Misfit> {
    sides(parts, weight)?;
    let rank = |whole, factor| match parts.get(whole) {
        Some(_) => Ok(None),
        None => parts.sides(factor).map(|[rank, _]| Some(rank)),
    };
    let second = rank(Part::LokrW2, Part::LokrW2B)?;
    Ok(second.or(rank(Part::LokrW1, Part::LokrW1B)?))
}

fn sides<T: Shaped>(parts: &Parts<T>, weight: Dims<'_>) -> Result<Sides, Misfit> {
    let (outputs, columns) = (weight.outputs(), weight.columns());
    let (named, first) = match parts.get(Part::LokrW1) {
        Some(_) => (Part::LokrW1, parts.sides(Part::LokrW1)?),
        None => {
            let [rank, columns] = parts.sides(Part::LokrW1B)?;
            let rows = parts.sides(Part::LokrW1A)?[0];
            parts.expect(Part::LokrW1A, [rows, rank])?;
            (Part::LokrW1A, [rows, columns])
        }
    };
    if !outputs.is_multiple_of(first[0]) || !weight.inputs().is_multiple_of(first[1]) {
        let inputs = weight.inputs();
        let expected = format_args!("divisors of {outputs} outputs and {inputs} inputs");
        return Err(Misfit::shape(named, parts.need(named)?.shape(), expected));
    }
    let second = [outputs / first[0], columns / first[1]];
    // The second matrix as a convolution: its inputs are a part of the weight's inputs.
    let mut shape = weight.0.to_vec();
    for (side, of) in shape.iter_mut().zip(first) {
        *side /= of;
    }
    let kernel = Dims(&shape);
    if let Some(whole) = parts.get(Part::LokrW2) {
        parts.expect(Part::LokrW2, second)?;
        kernel.check_kernel(Part::LokrW2, whole.shape(), second[0])?;
    } else if parts.get(Part::LokrT2).is_some() {
        let ranks = [Part::LokrW2A, Part::LokrW2B].map(|part| parts.sides(part));
        let [up, down] = ranks;
        let ranks = [up?[0], down?[0]];
        parts.expect(Part::LokrW2A, [ranks[0], second[0]])?;
        check_tucker(parts, [Part::LokrT2, Part::LokrW2B], ranks, kernel)?;
    } else {
        let rank = parts.sides(Part::LokrW2B)?[0];
        parts.expect(Part::LokrW2A, [second[0], rank])?;
        parts.expect(Part::LokrW2B, [rank, second[1]])?;
        let factor = parts.need(Part::LokrW2B)?.shape();
        kernel.check_kernel(Part::LokrW2B, factor, rank)?;
    }
    Ok(Sides { first, second })
}

/// Returns the difference of the weight, before alpha.
pub(super) fn delta(parts: &Parts<Factor>, weight: Dims<'_>) -> Result<Vec<f32>, Misfit> {
    let Sides { first, second } = sides(parts, weight)?;
    let product = |a, b| -> Result<Vec<f32>, Misfit> {
        let (a, b) = (
            parts.need(a)?.matrix(parts.sides(a)?),
            parts.need(b)?.matrix(parts.sides(b)?),
        );
        Ok(a.dot(&b).into_raw_vec_and_offset().0)
    };
    let w1 = match parts.get(Part::LokrW1) {
        Some(whole) => Cow::Borrowed(&whole.values),
        None => Cow::Owned(product(Part::LokrW1A, Part::LokrW1B)?),
    };
    let w2 = match (parts.get(Part::LokrW2), parts.get(Part::LokrT2)) {
        (Some(whole), _) => Cow::Borrowed(&whole.values),
        (None, Some(core)) => {
            let (a, b) = (Part::LokrW2A, Part::LokrW2B);
            let up = parts.need(a)?.matrix(parts.sides(a)?);
            let down = parts.need(b)?.matrix(parts.sides(b)?);
            let mut shape = weight.0.to_vec();
            for (side, of) in shape.iter_mut().zip(first) {
                *side /= of;
            }
            Cow::Owned(tucker(core, up.t(), down, Dims(&shape)))
        }
        (None, None) => Cow::Owned(product(Part::LokrW2A, Part::LokrW2B)?),
    };
    let mut delta = Vec::with_capacity(weight.count());
    for of_first in w1.chunks_exact(first[1]) {
        for of_second in w2.chunks_exact(second[1]) {
            for &left in of_first {
                delta.extend(of_second.iter().map(|right| left * right));
            }
        }
    }
    Ok(delta)
}
