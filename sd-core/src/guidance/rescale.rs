//! Guidance rescale: section 3.4 of <https://arxiv.org/abs/2305.08891>, diffusers'
//! `rescale_noise_cfg`.

/// Scales the merged prediction of one picture so that its standard deviation moves by the share
/// `rescale` towards `before`, the standard deviation of the conditional prediction. A prediction
/// of one value everywhere stays unchanged.
pub(super) fn rescale(merged: &mut [f32], before: f64, rescale: f32) {
    let after = deviation(merged);
    if after > 0.0 {
        let share = f64::from(rescale);
        let factor = (share * before / after + (1.0 - share)) as f32;
        merged.iter_mut().for_each(|value| *value *= factor);
    }
}

/// Returns the standard deviation of all values.
pub(super) fn deviation(values: &[f32]) -> f64 {
    let count = values.len().max(1) as f64;
    let mean = values.iter().map(|&value| f64::from(value)).sum::<f64>() / count;
    let squares = values
        .iter()
        .map(|&value| (f64::from(value) - mean).powi(2));
    (squares.sum::<f64>() / count).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deviations_are_matched() {
        for (share, expected) in [(0.0, 4.0), (0.5, 3.0), (1.0, 2.0)] {
            let mut merged = [1.0, 9.0, 9.0, 1.0];
            rescale(&mut merged, 2.0, share);
            assert_eq!(deviation(&merged), expected);
        }
        let mut flat = [3.0; 4];
        rescale(&mut flat, 2.0, 1.0);
        assert_eq!(flat, [3.0; 4]);
    }
}
