//! LoHa, the low-rank Hadamard product (Hyeon-Woo et al. 2021, arXiv 2108.06098):
//! `(w1_a · w1_b) ⊙ (w2_a · w2_b)`. A half with a core `t` is a Tucker decomposition instead, with
//! its first factor transposed.

use super::{
    Dims, Factor, Misfit, Part, Parts, Shaped,
    lora::{check_tucker, tucker},
};

/// The two halves: the factors of outputs and inputs, and the core.
const HALVES: [[Part; 3]; 2] = [
    [Part::HadaW1A, Part::HadaW1B, Part::HadaT1],
    [Part::HadaW2A, Part::HadaW2B, Part::HadaT2],
];

/// Checks the factors and returns the rank of the first half, by which alpha is divided.
pub(super) fn check<T: Shaped>(parts: &Parts<T>, weight: Dims<'_>) -> Result<usize, Misfit> {
    for [a, b, core] in HALVES {
        if parts.get(core).is_some() {
            let ranks = [parts.sides(a)?[0], parts.sides(b)?[0]];
            parts.expect(a, [ranks[0], weight.outputs()])?;
            check_tucker(parts, [core, b], ranks, weight)?;
        } else {
            let rank = parts.sides(b)?[0];
            parts.expect(a, [weight.outputs(), rank])?;
            parts.expect(b, [rank, weight.columns()])?;
            weight.check_kernel(b, parts.need(b)?.shape(), rank)?;
        }
    }
    Ok(parts.sides(Part::HadaW1B)?[0])
}

/// Returns the difference of the weight, before alpha.
pub(super) fn delta(parts: &Parts<Factor>, weight: Dims<'_>) -> Result<Vec<f32>, Misfit> {
    let mut halves = Vec::with_capacity(2);
    for [a, b, core] in HALVES {
        let (first, second) = (parts.sides(a)?, parts.sides(b)?);
        let (first, second) = (parts.need(a)?.matrix(first), parts.need(b)?.matrix(second));
        halves.push(match parts.get(core) {
            Some(core) => tucker(core, first.t(), second, weight),
            None => first.dot(&second).into_raw_vec_and_offset().0,
        });
    }
    let second = halves.pop().unwrap_or_default();
    let mut first = halves.pop().unwrap_or_default();
    for (first, second) in first.iter_mut().zip(second) {
        *first *= second;
    }
    Ok(first)
}
