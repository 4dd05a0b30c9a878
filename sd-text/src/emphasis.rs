//! How the weights of tokens act on a chunk's hidden states.

use ndarray::{ArrayView2, ArrayViewMut2, Axis, Zip};
use serde::{Deserialize, Serialize};

/// How the weights of a prompt act.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Emphasis {
    /// Each token's state is multiplied by its weight, then the whole chunk so that its mean is what it was: WebUI's
    /// "Original". The default. WebUI takes the mean over all texts of a schedule at once; here each text keeps its own,
    /// so that what a text means doesn't depend on the others.
    #[default]
    KeepMean,
    /// Each token's state is multiplied by its weight: WebUI's "No norm".
    Multiply,
    /// Each token's state is moved away from the one at its place in the empty prompt, or towards it: ComfyUI's.
    Interpolate,
    /// Weights do nothing; the brackets are read all the same: WebUI's "Ignore".
    Ignore,
}

/// Multiplies each row of `hidden`, `[tokens, width]`, by its weight, then all so that the mean is what it was. Where the
/// new mean is so close to zero that this gives no number, it stays as it is.
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

/// Moves each row of `hidden`, `[tokens, width]`, on the line from that of `empty` through it: weight 0 is `empty`, 1 leaves
/// it as it is.
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
