//! OFT, orthogonal fine-tuning (Qiu et al. 2023, arXiv 2306.07280), and BOFT, its butterfly form
//! (Liu et al. 2023, arXiv 2311.06243).
//!
//! The outputs are multiplied by rotations `R = (I + Q) (I − Q)⁻¹`, where Q is the antisymmetric
//! part of a stored matrix. In OFT there is one rotation for each block of outputs, applied as
//! `Rᵀ · W`. In BOFT there are several stages, applied as `R · W`, and stage i mixes outputs that
//! are `2^i` half blocks apart.

use std::borrow::Cow;

use ndarray::{Array2, ArrayView2};

use super::{Dims, Factor, Misfit, Part, Parts, Shaped};

/// The layout of the stored matrices.
#[derive(Debug, Clone, Copy)]
struct Layout {
    part: Part,
    /// The number of stages of BOFT, or `None` for OFT.
    stages: Option<usize>,
    blocks: usize,
    /// The side of a block.
    side: usize,
}

pub(super) fn check<T: Shaped>(parts: &Parts<T>, weight: Dims<'_>) -> Result<(), Misfit> {
    layout(parts, weight)?;
    if let Some(rescale) = parts.get(Part::Rescale) {
        let [first, rest] = parts.sides(Part::Rescale)?;
        if first.checked_mul(rest) != Some(weight.outputs()) {
            let expected = format_args!("one number for each of {} outputs", weight.outputs());
            return Err(Misfit::shape(Part::Rescale, rescale.shape(), expected));
        }
    }
    Ok(())
}

fn layout<T: Shaped>(parts: &Parts<T>, weight: Dims<'_>) -> Result<Layout, Misfit> {
    let part = match parts.get(Part::OftBlocks) {
        Some(_) => Part::OftBlocks,
        None => Part::OftDiag,
    };
    let outputs = weight.outputs();
    let shape = parts.need(part)?.shape();
    let (stages, blocks, side) = match *shape {
        [blocks, side, other] if side == other => (None, blocks, side),
        [stages, blocks, side, other] if side == other && part == Part::OftBlocks => {
            (Some(stages), blocks, side)
        }
        _ => return Err(Misfit::shape(part, shape, "square blocks")),
    };
    if blocks.checked_mul(side) != Some(outputs) || outputs == 0 {
        let expected = format_args!("blocks whose sides add up to {outputs} outputs");
        return Err(Misfit::shape(part, shape, expected));
    }
    if let Some(stages) = stages {
        // The last stage exchanges two halves of groups that have to divide the outputs.
        let group = u32::try_from(stages.saturating_sub(1)).ok();
        let group = group.and_then(|last| side.checked_shl(last).filter(|it| it >> last == side));
        let divides = group.is_some_and(|group| outputs.is_multiple_of(group));
        if stages == 0 || side % 2 != 0 || !divides {
            let expected = "an even side, and stages that divide the outputs";
            return Err(Misfit::shape(part, shape, expected));
        }
    }
    Ok(Layout {
        part,
        stages,
        blocks,
        side,
    })
}

/// Returns the difference of the weight.
pub(super) fn delta(
    parts: &Parts<Factor>,
    weight: &[f32],
    dims: Dims<'_>,
) -> Result<Vec<f32>, Misfit> {
    let layout = layout(parts, dims)?;
    let Layout { side, blocks, .. } = layout;
    let rotations = rotations(parts, layout, dims.outputs())?;
    let columns = dims.columns();
    let rotation = |index: usize| {
        let size = side * side;
        ArrayView2::from_shape((side, side), &rotations[index * size..][..size])
            .expect("the rotations are square")
    };
    let mut rotated = match layout.stages {
        None => {
            let mut rotated = Vec::with_capacity(weight.len());
            for (index, block) in weight.chunks_exact(side * columns).enumerate() {
                let block = ArrayView2::from_shape((side, columns), block).expect("a block");
                rotated.extend(&rotation(index).t().dot(&block));
            }
            rotated
        }
        Some(stages) => {
            let mut now = weight.to_vec();
            let mut next = vec![0.0; weight.len()];
            for stage in 0..stages {
                let order = butterfly(dims.outputs(), side << stage);
                for (block, rows) in order.chunks_exact(side).enumerate() {
                    let gathered = rows
                        .iter()
                        .flat_map(|&row| &now[row * columns..][..columns]);
                    let gathered: Vec<f32> = gathered.copied().collect();
                    let gathered = Array2::from_shape_vec((side, columns), gathered)
                        .expect("the rows of a block");
                    let product = rotation(stage * blocks + block).dot(&gathered);
                    for (&row, numbers) in rows.iter().zip(product.outer_iter()) {
                        for (to, from) in next[row * columns..][..columns].iter_mut().zip(numbers) {
                            *to = *from;
                        }
                    }
                }
                std::mem::swap(&mut now, &mut next);
            }
            now
        }
    };
    if let Some(rescale) = parts.get(Part::Rescale) {
        for (row, rescale) in rotated.chunks_exact_mut(columns).zip(&rescale.values) {
            row.iter_mut().for_each(|number| *number *= rescale);
        }
    }
    for (rotated, weight) in rotated.iter_mut().zip(weight) {
        *rotated -= weight;
    }
    Ok(rotated)
}

/// Returns the order of the outputs in which a stage's blocks are contiguous. In each group of
/// `group` outputs, an output is followed by the one half a group further.
fn butterfly(outputs: usize, group: usize) -> Vec<usize> {
    let half = group / 2;
    let groups = (0..outputs).step_by(group);
    let pairs = groups.flat_map(|start| (0..half).map(move |index| start + index));
    pairs.flat_map(|row| [row, row + half]).collect()
}

/// Returns the rotations, one after another.
fn rotations(
    parts: &Parts<Factor>,
    layout: Layout,
    outputs: usize,
) -> Result<Cow<'_, [f32]>, Misfit> {
    let stored = &parts.need(layout.part)?.values;
    if layout.part == Part::OftDiag {
        return Ok(Cow::Borrowed(stored));
    }
    let side = layout.side;
    let mut all: Vec<f64> = Vec::with_capacity(stored.len());
    for block in stored.chunks_exact(side * side) {
        for row in 0..side {
            all.extend(
                (0..side).map(|column| {
                    f64::from(block[row * side + column] - block[column * side + row])
                }),
            );
        }
    }
    // In OFT, alpha is the largest norm that Q may have, for each output.
    let alpha = parts
        .get(Part::Alpha)
        .and_then(|alpha| alpha.values.first());
    let most = alpha.map_or(0.0, |&alpha| f64::from(alpha) * outputs as f64);
    if most < 0.0 {
        let problem = format!(
            "has the value {}, expected 0 or more",
            most / outputs as f64
        );
        return Err(Misfit::other(Part::Alpha, problem));
    }
    if most > 0.0 {
        let norm = all.iter().map(|number| number * number).sum::<f64>().sqrt();
        let factor = (norm.min(most) + 1e-8) / (norm + 1e-8);
        all.iter_mut().for_each(|number| *number *= factor);
    }
    let rotations = all.chunks_exact(side * side).flat_map(|q| cayley(q, side));
    Ok(Cow::Owned(rotations.collect()))
}

/// Returns `(I + Q) (I − Q)⁻¹` for an antisymmetric matrix Q.
///
/// The two factors commute, so the result is also the solution X of `(I − Q) X = I + Q`, found by
/// Gaussian elimination. `I − Q` cannot be singular, because the eigenvalues of Q are imaginary.
fn cayley(q: &[f64], side: usize) -> Vec<f32> {
    let mut left: Vec<f64> = q.iter().map(|number| -number).collect();
    let mut right = q.to_vec();
    for index in 0..side {
        left[index * side + index] += 1.0;
        right[index * side + index] += 1.0;
    }
    for pivot in 0..side {
        let size = |row: usize| left[row * side + pivot].abs();
        let best = (pivot..side).max_by(|&a, &b| size(a).total_cmp(&size(b)));
        let best = best.unwrap_or(pivot);
        if best != pivot {
            for column in 0..side {
                left.swap(pivot * side + column, best * side + column);
                right.swap(pivot * side + column, best * side + column);
            }
        }
        let divisor = left[pivot * side + pivot];
        for matrix in [&mut left, &mut right] {
            let row = &mut matrix[pivot * side..][..side];
            row.iter_mut().for_each(|number| *number /= divisor);
        }
        for row in (0..side).filter(|&row| row != pivot) {
            let factor = left[row * side + pivot];
            if factor == 0.0 {
                continue;
            }
            for matrix in [&mut left, &mut right] {
                for column in 0..side {
                    matrix[row * side + column] -= factor * matrix[pivot * side + column];
                }
            }
        }
    }
    right.into_iter().map(|number| number as f32).collect()
}
