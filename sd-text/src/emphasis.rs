//! Applies the weights of tokens to a chunk's hidden states.

use ndarray::{ArrayView2, ArrayViewMut2, Axis, Zip};
use serde::{Deserialize, Serialize};

/// How the weights of a prompt act on hidden states.
///
/// Default: [`KeepMean`](Self::KeepMean).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Emphasis {
    /// Multiplies each token's state by its weight, then rescales the whole chunk to its original
    /// mean. WebUI calls this "Original".
    ///
    /// WebUI takes the mean over all texts of a schedule together. Here each text keeps its own
    /// mean, so that its embedding does not depend on the others.
    #[default]
    KeepMean,
    /// Multiplies each token's state by its weight. WebUI calls this "No norm".
    Multiply,
    /// Moves each token's state away from, or towards, the state at the same position in the empty
    /// prompt, as ComfyUI does.
    Interpolate,
    /// Ignores the weights. Brackets are still read and removed from the text. WebUI calls this
    /// "Ignore".
    Ignore,
}

/// Multiplies each row of `hidden`, `[tokens, width]`, by its weight, then rescales all rows to the
/// original mean.
///
/// If the new mean is so close to zero that the ratio of the means is not finite, the rows are not
/// rescaled.
pub fn keep_mean(mut hidden: ArrayViewMut2<'_, f32>, weights: &[f32]) {
    if neutral(weights) {
        return;
    }
    let before = sum(hidden.view());
    multiply(hidden.view_mut(), weights);
    let ratio = (before / sum(hidden.view())) as f32;
    if ratio.is_finite() {
        hidden *= ratio;
    }
}

/// Multiplies each row of `hidden`, `[tokens, width]`, by its weight.
pub fn multiply(mut hidden: ArrayViewMut2<'_, f32>, weights: &[f32]) {
    for (mut state, &weight) in hidden.axis_iter_mut(Axis(0)).zip(weights) {
        state *= weight;
    }
}

/// Moves each row of `hidden`, `[tokens, width]`, along the line through the same row of `empty`.
/// Weight 0 gives the row of `empty`, and weight 1 leaves the row unchanged.
pub fn interpolate(
    mut hidden: ArrayViewMut2<'_, f32>,
    weights: &[f32],
    empty: ArrayView2<'_, f32>,
) {
    let rows = hidden.axis_iter_mut(Axis(0)).zip(empty.axis_iter(Axis(0)));
    for ((state, empty), &weight) in rows.zip(weights) {
        if weight != 1.0 && state.dim() == empty.dim() {
            Zip::from(state)
                .and(empty)
                .for_each(|state, &empty| *state = (*state - empty) * weight + empty);
        }
    }
}

/// Whether the weights change nothing.
pub(crate) fn neutral(weights: &[f32]) -> bool {
    weights.iter().all(|&weight| weight == 1.0)
}

fn sum(hidden: ArrayView2<'_, f32>) -> f64 {
    hidden.iter().map(|&value| f64::from(value)).sum()
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, arr2};

    use super::*;

    fn hidden() -> Array2<f32> {
        arr2(&[
            [1.0, 2.0, 3.0],
            [4.0, -1.0, 0.5],
            [2.0, 2.0, 2.0],
            [-3.0, 5.0, 7.0],
        ])
    }

    const WEIGHTS: [f32; 4] = [1.0, 1.5, 0.5, 1.0];

    /// These values were produced with WebUI's `modules/sd_emphasis.py` and torch 2.
    #[test]
    fn as_webui() {
        let mut states = hidden();
        keep_mean(states.view_mut(), &WEIGHTS);
        let expected = [
            1.0537635, 2.107527, 3.1612906, 6.3225813, -1.5806453, 0.7903227, 1.0537635, 1.0537635,
            1.0537635, -3.1612906, 5.2688174, 7.3763447,
        ];
        for (state, expected) in states.iter().zip(expected) {
            assert!(
                (state - expected).abs() <= 1e-6 * expected.abs(),
                "{state}, expected {expected}"
            );
        }

        let mut states = hidden();
        multiply(states.view_mut(), &WEIGHTS);
        assert_eq!(
            states,
            arr2(&[
                [1.0, 2.0, 3.0],
                [6.0, -1.5, 0.75],
                [1.0, 1.0, 1.0],
                [-3.0, 5.0, 7.0]
            ])
        );
    }

    #[test]
    fn interpolates_from_the_empty_prompt() {
        let empty = Array2::from_elem((4, 3), 2.0);
        let mut states = hidden();
        interpolate(states.view_mut(), &[1.0, 2.0, 0.0, 0.5], empty.view());
        assert_eq!(
            states,
            arr2(&[
                [1.0, 2.0, 3.0],
                [6.0, -4.0, -1.0],
                [2.0, 2.0, 2.0],
                [-0.5, 3.5, 4.5]
            ])
        );
    }

    #[test]
    fn weights_of_one_change_no_bit() {
        let mut states = hidden() * 0.1;
        keep_mean(states.view_mut(), &[1.0; 4]);
        assert_eq!(states, hidden() * 0.1);
    }

    #[test]
    fn a_mean_of_zero_stays() {
        let mut states = arr2(&[[1.0, 0.0], [1.0, 0.0]]);
        keep_mean(states.view_mut(), &[1.0, -1.0]);
        assert_eq!(states, arr2(&[[1.0, 0.0], [-1.0, 0.0]]));
    }
}
