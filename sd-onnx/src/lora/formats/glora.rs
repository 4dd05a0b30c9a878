//! GLoRA, the generalised LoRA (Chavan et al. 2023, arXiv 2306.07967, as in LyCORIS):
//! `W · A + B`, where both A and B are low-rank products.
//!
//! LyCORIS has exchanged the names of the two factors of each product once. Which of the two
//! layouts a module has follows from the shapes.

use ndarray::{Array2, ArrayView2};

use super::{
    Dims, Factor, Misfit, Part, Parts, Shaped,
    lora::{check_tucker, tucker},
};

/// The two layouts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// `W · a2 · a1 + b2 · b1`, the only layout that WebUI reads.
    Old,
    /// `W · a1 · a2 + b1 · b2`.
    New,
}

/// Checks the factors and returns the rank by which alpha is divided, which is the rank of A.
pub(super) fn check<T: Shaped>(parts: &Parts<T>, weight: Dims<'_>) -> Result<usize, Misfit> {
    let [first, rest] = match layout(parts, weight)? {
        Layout::Old => parts.sides(Part::GloraA1)?,
        Layout::New => parts.sides(Part::GloraA2)?,
    };
    debug_assert_eq!(rest, weight.inputs());
    Ok(first)
}

fn layout<T: Shaped>(parts: &Parts<T>, weight: Dims<'_>) -> Result<Layout, Misfit> {
    let (outputs, inputs, columns) = (weight.outputs(), weight.inputs(), weight.columns());
    let old = || -> Result<(), Misfit> {
        let [a, b] = [
            parts.sides(Part::GloraA1)?[0],
            parts.sides(Part::GloraB1)?[0],
        ];
        parts.expect(Part::GloraA1, [a, inputs])?;
        parts.expect(Part::GloraA2, [inputs, a])?;
        parts.expect(Part::GloraB1, [b, columns])?;
        parts.expect(Part::GloraB2, [outputs, b])
    };
    // Both layouts fit only where the rank equals both sides of a square weight.
    if parts.get(Part::GloraBm).is_none() && old().is_ok() {
        return Ok(Layout::Old);
    }
    let [a, b] = [
        parts.sides(Part::GloraA1)?[1],
        parts.sides(Part::GloraB1)?[1],
    ];
    parts.expect(Part::GloraA1, [inputs, a])?;
    parts.expect(Part::GloraA2, [a, inputs])?;
    parts.expect(Part::GloraB1, [outputs, b])?;
    match parts.get(Part::GloraBm) {
        Some(_) => check_tucker(parts, [Part::GloraBm, Part::GloraB2], [b, b], weight)?,
        None => parts.expect(Part::GloraB2, [b, columns])?,
    }
    Ok(Layout::New)
}

/// Returns the difference of the weight, before alpha.
pub(super) fn delta(
    parts: &Parts<Factor>,
    weight: &[f32],
    dims: Dims<'_>,
) -> Result<Vec<f32>, Misfit> {
    let matrix = |part| -> Result<_, Misfit> { Ok(parts.need(part)?.matrix(parts.sides(part)?)) };
    let (a1, a2) = (matrix(Part::GloraA1)?, matrix(Part::GloraA2)?);
    let (b1, b2) = (matrix(Part::GloraB1)?, matrix(Part::GloraB2)?);
    let (of_weight, mut delta) = match layout(parts, dims)? {
        Layout::Old => ([a2, a1], b2.dot(&b1).into_raw_vec_and_offset().0),
        Layout::New => {
            let b = match parts.get(Part::GloraBm) {
                Some(core) => tucker(core, b1, b2, dims),
                None => b1.dot(&b2).into_raw_vec_and_offset().0,
            };
            ([a1, a2], b)
        }
    };
    let (inputs, positions) = (dims.inputs(), dims.positions());
    if positions == 1 {
        let weight = ArrayView2::from_shape((dims.outputs(), inputs), weight)
            .expect("the weight was checked");
        let product = weight.dot(&of_weight[0]).dot(&of_weight[1]);
        for (delta, product) in delta.iter_mut().zip(&product) {
            *delta += product;
        }
        return Ok(delta);
    }
    // In a convolution, the inputs of each position are multiplied.
    let rows = delta.chunks_exact_mut(dims.columns());
    for (delta, row) in rows.zip(weight.chunks_exact(dims.columns())) {
        let row = ArrayView2::from_shape((inputs, positions), row).expect("a row of the weight");
        let product: Array2<f32> = row.t().dot(&of_weight[0]).dot(&of_weight[1]);
        for (delta, product) in delta.iter_mut().zip(product.t()) {
            *delta += product;
        }
    }
    Ok(delta)
}
