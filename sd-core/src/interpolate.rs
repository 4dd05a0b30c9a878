//! Interpolation between two noises or two embeddings.

use ndarray::{Array, ArrayView, Dimension, Zip};

use crate::{Problem, Problems};

/// Interpolates spherically between two arrays, seen as vectors of all their values: from `from` at
/// `t` = 0 along the arc to `to` at `t` = 1. A `t` outside `0.0..=1.0` continues along the arc. The
/// formula is from Shoemake 1985, "Animating rotation with quaternion curves".
///
/// Every point between two noises has the standard deviation of noise. On the straight line, the
/// middle of two independent noises has only 0.71 of it, and models draw flat pictures from such
/// noise. For embeddings either path is suitable.
///
/// The arc is undefined if the two vectors point in the same or in opposite directions, or if one
/// of them is 0. The result then lies on the straight line.
///
/// # Errors
/// [`Problems`] if the shapes differ.
///
/// ```
/// use ndarray::Array4;
/// use sd_core::{schedulers::{
///     NoiseSource, noise::TorchRng,
/// }, slerp};
///
/// let noise = |seed| {
///     let mut noise = Array4::zeros((1, 4, 64, 64));
///     TorchRng::new(seed).fill(noise.as_slice_mut().unwrap());
///     noise
/// };
/// let middle = slerp(noise(1).view(), noise(2).view(), 0.5)?;
/// assert!((middle.std(0.0) - 1.0).abs() < 0.02);
/// # Ok::<(), sd_core::Problems>(())
/// ```
pub fn slerp<D: Dimension>(
    from: ArrayView<'_, f32, D>,
    to: ArrayView<'_, f32, D>,
    t: f32,
) -> Result<Array<f32, D>, Problems> {
    if from.shape() != to.shape() {
        let (expected, found) = (format!("{:?}", from.shape()), format!("{:?}", to.shape()));
        return Err(Problems(vec![Problem::new(
            "to",
            format!("one of shape {expected}"),
            format!("an array of shape {found}"),
        )]));
    }
    let (mut dot, mut from_square, mut to_square) = (0.0, 0.0, 0.0);
    Zip::from(&from).and(&to).for_each(|&a, &b| {
        let (a, b) = (f64::from(a), f64::from(b));
        dot += a * b;
        from_square += a * a;
        to_square += b * b;
    });
    let cosine = dot / (from_square * to_square).sqrt();
    let angle = cosine.clamp(-1.0, 1.0).acos();
    let t = f64::from(t);
    let sine = angle.sin();
    // For vectors in nearly the same direction, the arc and the line differ by less than the
    // precision of `f32`. The sine is NaN for a zero vector, which takes the line, too.
    let (keep, gain) = if sine > 1e-4 {
        (((1.0 - t) * angle).sin() / sine, (t * angle).sin() / sine)
    } else {
        (1.0 - t, t)
    };
    let between = |&a: &f32, &b: &f32| (keep * f64::from(a) + gain * f64::from(b)) as f32;
    Ok(Zip::from(&from).and(&to).map_collect(between))
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn goes_along_the_arc() {
        let (x, y) = (array![1.0_f32, 0.0], array![0.0_f32, 2.0]);
        assert_eq!(slerp(x.view(), y.view(), 0.0).unwrap(), x);
        let end = slerp(x.view(), y.view(), 1.0).unwrap();
        assert!((&end - &y).iter().all(|d| d.abs() < 1e-6), "{end}");
        // A third of the right angle.
        let third = slerp(x.view(), y.view(), 1.0 / 3.0).unwrap();
        let expected = array![0.75_f32.sqrt(), 1.0];
        assert!(
            (&third - &expected).iter().all(|d| d.abs() < 1e-6),
            "{third}"
        );
    }

    #[test]
    fn parallel_opposite_and_zero_vectors_take_the_line() {
        let x = array![1.0_f32, -2.0];
        for (to, middle) in [
            (array![3.0, -6.0], array![2.0, -4.0]),
            (array![-1.0, 2.0], array![0.0, 0.0]),
            (array![0.0, 0.0], array![0.5, -1.0]),
        ] {
            assert_eq!(slerp(x.view(), to.view(), 0.5).unwrap(), middle);
        }
        let error = slerp(x.view(), array![1.0_f32].view(), 0.5).unwrap_err();
        assert_eq!(
            error.to_string(),
            "to is an array of shape [1], expected one of shape [2]"
        );
    }
}
