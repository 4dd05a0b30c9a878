//! LoRA (Hu et al. 2021, arXiv 2106.09685) and LoCon, which extends it to convolutions:
//! `up · down`, or with a kernel between the two, the Tucker decomposition of `lora_mid`.

use ndarray::{Array2, ArrayView2, ArrayViewMut2, linalg::general_mat_mul, s};

use super::{Dims, Factor, Misfit, Part, Parts, Shaped, Strength};

/// Checks the factors and returns their rank.
pub(super) fn check<T: Shaped>(parts: &Parts<T>, weight: Dims<'_>) -> Result<usize, Misfit> {
    let [outputs, rank] = parts.sides(Part::Up)?;
    if parts.get(Part::Mid).is_some() {
        let down = parts.sides(Part::Down)?[0];
        parts.expect(Part::Up, [weight.outputs(), rank])?;
        check_tucker(parts, [Part::Mid, Part::Down], [rank, down], weight)?;
        return Ok(down);
    }
    if outputs != weight.outputs() {
        parts.expect(Part::Up, [weight.outputs(), rank])?;
    }
    parts.expect(Part::Down, [rank, weight.columns()])?;
    weight.check_kernel(Part::Down, parts.need(Part::Down)?.shape(), rank)?;
    Ok(rank)
}

/// Checks the core `[up, down, height, width]` of a Tucker decomposition, and its factor
/// `[down, in]`.
pub(super) fn check_tucker<T: Shaped>(
    parts: &Parts<T>,
    [core, factor]: [Part; 2],
    [up, down]: [usize; 2],
    weight: Dims<'_>,
) -> Result<(), Misfit> {
    let kernel = weight.0.get(2..).unwrap_or_default();
    let expected: Vec<usize> = [up, down].iter().chain(kernel).copied().collect();
    let found = parts.need(core)?.shape();
    if found != expected {
        return Err(Misfit::shape(core, found, format_args!("{expected:?}")));
    }
    parts.expect(factor, [down, weight.inputs()])
}

/// Adds the product to the weight. It is the same change as with [`delta`], without the memory for
/// a second matrix as large as the weight.
pub(super) fn add(
    parts: &Parts<Factor>,
    weight: &mut [f32],
    dims: Dims<'_>,
    strength: Strength,
) -> Result<(), Misfit> {
    let (up, down) = (parts.need(Part::Up)?, parts.need(Part::Down)?);
    let (up, down) = (
        up.matrix(parts.sides(Part::Up)?),
        down.matrix(parts.sides(Part::Down)?),
    );
    let used = strength.rank.unwrap_or(usize::MAX).min(down.nrows());
    let mut weight = ArrayViewMut2::from_shape((dims.outputs(), dims.columns()), weight)
        .expect("the weight was checked");
    general_mat_mul(
        strength.scale * strength.multiplier,
        &up.slice(s![.., ..used]),
        &down.slice(s![..used, ..]),
        1.0,
        &mut weight,
    );
    Ok(())
}

/// Returns the difference of the weight, before alpha.
pub(super) fn delta(
    parts: &Parts<Factor>,
    weight: Dims<'_>,
    used: Option<usize>,
) -> Result<Vec<f32>, Misfit> {
    let (up, down) = (parts.need(Part::Up)?, parts.need(Part::Down)?);
    let (up, down) = (
        up.matrix(parts.sides(Part::Up)?),
        down.matrix(parts.sides(Part::Down)?),
    );
    if let Some(mid) = parts.get(Part::Mid) {
        return Ok(tucker(mid, up, down, weight));
    }
    let used = used.unwrap_or(usize::MAX).min(down.nrows());
    let delta = up.slice(s![.., ..used]).dot(&down.slice(s![..used, ..]));
    Ok(delta.into_raw_vec_and_offset().0)
}

/// Returns the factors `down` `[rank, columns]` and `up` `[outputs, rank]`, whose product is the
/// difference of the weight before alpha. The core of a Tucker decomposition is multiplied into
/// `down`.
pub(crate) fn low_rank(
    parts: &Parts<Factor>,
    weight: Dims<'_>,
) -> Result<(Vec<f32>, Vec<f32>), Misfit> {
    check(parts, weight)?;
    let (up, down) = (parts.need(Part::Up)?, parts.need(Part::Down)?);
    let Some(mid) = parts.get(Part::Mid) else {
        return Ok((down.values.clone(), up.values.clone()));
    };
    let down = down.matrix(parts.sides(Part::Down)?);
    let inner = inner(mid, parts.sides(Part::Up)?[1], down, weight);
    Ok((inner.into_raw_vec_and_offset().0, up.values.clone()))
}

/// Returns `sum over n and m of up[o, n] · core[n, m, position] · down[m, i]`, which has the shape
/// of the weight.
pub(super) fn tucker(
    core: &Factor,
    up: ArrayView2<'_, f32>,
    down: ArrayView2<'_, f32>,
    weight: Dims<'_>,
) -> Vec<f32> {
    let inner = inner(core, up.ncols(), down, weight);
    // The product of a row-major matrix with one column is in either order, and both are the same.
    up.dot(&inner).iter().copied().collect()
}

/// Returns `sum over m of core[n, m, position] · down[m, i]`, `[n, i · position]`.
fn inner(core: &Factor, ranks: usize, down: ArrayView2<'_, f32>, weight: Dims<'_>) -> Array2<f32> {
    let (positions, columns) = (weight.positions(), weight.columns());
    let rank = down.nrows();
    let core = core.matrix([ranks * rank, positions]);
    // Rows of `[in, position]`, one for each rank of `up`.
    let mut inner = Array2::zeros((ranks, columns));
    for (n, mut row) in inner.outer_iter_mut().enumerate() {
        let product = down.t().dot(&core.slice(s![n * rank..(n + 1) * rank, ..]));
        for (to, from) in row.iter_mut().zip(&product) {
            *to = *from;
        }
    }
    inner
}
