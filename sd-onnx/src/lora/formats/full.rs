//! Differences as large as the tensor that they change: `diff`, `diff_b`, `w_norm`, `b_norm`.

use super::{Dims, Misfit, Part, Shaped};

/// Checks that a difference has as many numbers as the tensor, and as many rows. Axes of length 1
/// at the end do not matter.
pub(super) fn check(part: Part, diff: &impl Shaped, of: Dims<'_>) -> Result<(), Misfit> {
    let trimmed = |shape: &[usize]| {
        let ones = shape.iter().rev().take_while(|&&side| side == 1).count();
        shape[..shape.len() - ones].to_vec()
    };
    let (found, expected) = (trimmed(diff.shape()), trimmed(of.0));
    // WebUI reshapes a flat difference to the convolution's shape.
    let flat = found.first() == expected.first()
        && found.len() == 2
        && found.get(1) == Some(&of.columns());
    match found == expected || flat {
        true => Ok(()),
        false => Err(Misfit::shape(
            part,
            diff.shape(),
            format_args!("{:?}", of.0),
        )),
    }
}
