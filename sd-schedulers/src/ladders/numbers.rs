//! Helpers that several ladders share: even points and the ranges of options.

use super::LadderError;

/// Returns point `i` of numpy's `linspace(0, 1, points)`. If there is only one point, it is 0.
pub(super) fn ramp(i: usize, points: usize) -> f64 {
    match i {
        0 => 0.0,
        _ => i as f64 / (points - 1) as f64,
    }
}

pub(super) fn above_zero(option: &'static str, found: f64) -> Result<(), LadderError> {
    if found > 0.0 && found.is_finite() {
        return Ok(());
    }
    Err(LadderError::Value {
        option,
        expected: "a finite number above 0".to_owned(),
        found,
    })
}

pub(super) fn in_range(
    option: &'static str,
    found: f64,
    [min, max]: [f64; 2],
) -> Result<(), LadderError> {
    if (min..=max).contains(&found) {
        return Ok(());
    }
    Err(LadderError::Value {
        option,
        expected: format!("{min} to {max}"),
        found,
    })
}
