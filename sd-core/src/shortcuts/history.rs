//! Forecasts of the network's output from its earlier outputs.

use super::Forecast;

/// The largest number of outputs that are kept, as in the authors' code.
const MOST: usize = 100;

/// The outputs of the network for one prompt, from which further outputs are forecast.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// The position of each output in the run, from -1 at the first step towards 1 at the end.
    places: Vec<f64>,
    outputs: Vec<Vec<f32>>,
}

impl History {
    /// Adds an output, and forgets the oldest one if there are too many.
    pub fn push(&mut self, place: f64, output: &[f32]) {
        if self.places.len() == MOST {
            self.places.remove(0);
            self.outputs.remove(0);
        }
        self.places.push(place);
        self.outputs.push(output.to_vec());
    }

    /// Forgets all outputs.
    pub fn clear(&mut self) {
        self.places.clear();
        self.outputs.clear();
    }

    /// Writes the forecast for a place to `output`, and returns true. Returns false if there are
    /// too few outputs.
    pub fn forecast(&self, by: &Forecast, place: f64, output: &mut [f32]) -> bool {
        if self.places.len() < by.warm_up.min(MOST) {
            return false;
        }
        // Both forecasts are linear in the earlier outputs.
        let mut weights = fit(&self.places, place, by.degree, by.ridge);
        for (weight, local) in weights.iter_mut().zip(line(&self.places, place)) {
            *weight = by.fit * *weight + (1.0 - by.fit) * local;
        }
        output.fill(0.0);
        for (weight, earlier) in weights.iter().zip(&self.outputs) {
            for (output, earlier) in output.iter_mut().zip(earlier) {
                *output += *weight as f32 * earlier;
            }
        }
        true
    }
}

/// Returns the weight of each output in the value at `place` of the linear extrapolation of the
/// last two.
fn line(places: &[f64], place: f64) -> Vec<f64> {
    let mut weights = vec![0.0; places.len()];
    if let [.., before, last] = *places {
        let along = (place - last) / (last - before);
        weights[places.len() - 2] = -along;
        weights[places.len() - 1] = 1.0 + along;
    } else {
        weights.fill(1.0);
    }
    weights
}

/// Returns the weight of each output in the value at `place` of the polynomial that is fitted by
/// ridge regression: the vector `t(place) (TᵀT + ridge · I)⁻¹ Tᵀ`, where a row of T has the
/// Chebyshev polynomials of a place.
fn fit(places: &[f64], place: f64, degree: usize, ridge: f64) -> Vec<f64> {
    let rows: Vec<_> = places.iter().map(|&of| chebyshev(of, degree)).collect();
    let n = degree + 1;
    let mut normal = vec![vec![0.0; n]; n];
    for (i, normal) in normal.iter_mut().enumerate() {
        for (j, normal) in normal.iter_mut().enumerate() {
            let product: f64 = rows.iter().map(|row| row[i] * row[j]).sum();
            *normal = product + if i == j { ridge } else { 0.0 };
        }
    }
    let solved = solve(normal, chebyshev(place, degree));
    let weight = |row: &Vec<f64>| row.iter().zip(&solved).map(|(a, b)| a * b).sum();
    rows.iter().map(weight).collect()
}

/// Returns the Chebyshev polynomials of the first kind, T_0 to T_degree, at `x`.
fn chebyshev(x: f64, degree: usize) -> Vec<f64> {
    let mut values = vec![1.0, x];
    for m in 2..=degree {
        values.push(2.0 * x * values[m - 1] - values[m - 2]);
    }
    values.truncate(degree + 1);
    values
}

/// Solves a system with a symmetric, positive definite matrix, by Gaussian elimination, which needs
/// no pivots for such a matrix.
fn solve(mut matrix: Vec<Vec<f64>>, mut right: Vec<f64>) -> Vec<f64> {
    let n = right.len();
    for i in 0..n {
        let (above, below) = matrix.split_at_mut(i + 1);
        let pivot = &above[i];
        for (row, k) in below.iter_mut().zip(i + 1..) {
            let factor = row[i] / pivot[i];
            for (value, pivot) in row.iter_mut().zip(pivot).skip(i) {
                *value -= factor * pivot;
            }
            right[k] -= factor * right[i];
        }
    }
    for i in (0..n).rev() {
        let known: f64 = (i + 1..n).map(|j| matrix[i][j] * right[j]).sum();
        right[i] = (right[i] - known) / matrix[i][i];
    }
    right
}

#[cfg(test)]
mod tests {
    // A failed `unwrap` is a failed test.
    #![allow(clippy::unwrap_used)]

    use super::{
        super::{Course, Shortcuts, Work},
        *,
    };

    #[test]
    fn a_polynomial_is_forecast_almost_exactly() {
        let of = |x: f64| [1.0 - x + 2.0 * x * x, 0.5 * x * x * x].map(|value| value as f32);
        let mut history = History::default();
        for step in 0..6 {
            let place = f64::from(step) / 5.0 - 1.0;
            history.push(place, &of(place));
        }
        let by = Forecast {
            ridge: 1e-9,
            ..Forecast::default()
        };
        let mut forecast = [0.0; 2];
        assert!(history.forecast(&by, 0.2, &mut forecast));
        // The ridge moves the coefficients by about its size, and the rest is rounding.
        for (forecast, expected) in forecast.iter().zip(of(0.2)) {
            assert!((forecast - expected).abs() < 1e-4, "{forecast} {expected}");
        }
        let line = Forecast { fit: 0.0, ..by };
        assert!(history.forecast(&line, 0.2, &mut forecast));
        let [last, before] = [of(0.0), of(-0.2)];
        for i in 0..2 {
            let expected = 2.0 * last[i] - before[i];
            assert!((forecast[i] - expected).abs() < 1e-6);
        }
    }

    #[test]
    fn there_is_no_forecast_before_the_warm_up() {
        let mut history = History::default();
        let by = Forecast {
            warm_up: 2,
            ..Forecast::default()
        };
        let mut output = [7.0];
        history.push(-1.0, &[1.0]);
        assert!(!history.forecast(&by, -0.5, &mut output));
        assert_eq!(output, [7.0]);
        history.push(-0.9, &[1.0]);
        assert!(history.forecast(&by, -0.5, &mut output));
        history.clear();
        assert!(!history.forecast(&by, -0.5, &mut output));
    }

    /// A case of Spectrum, by its authors' code.
    #[derive(serde::Deserialize)]
    struct Case {
        options: Forecast,
        computed: Vec<usize>,
        outputs: Vec<Vec<f32>>,
    }

    #[derive(serde::Deserialize)]
    struct Golden {
        spectrum: Vec<Case>,
    }

    #[test]
    fn forecasts_are_those_of_the_authors_code() {
        let golden = include_str!("../../tests/golden/shortcuts.json");
        let golden: Golden = serde_json::from_str(golden).unwrap();
        assert_eq!(golden.spectrum.len(), 4);
        for Case {
            options,
            computed,
            outputs,
        } in golden.spectrum
        {
            let mut course = Course::new(Shortcuts::default().skip(options));
            let mut history = History::default();
            for (step, output) in outputs.iter().enumerate() {
                let place = 2.0 * step as f64 / outputs.len() as f64 - 1.0;
                let work = course.next(outputs.len() - 1 - step);
                assert_eq!(work == Work::Full, computed.contains(&step), "{options:?}");
                if work == Work::Full {
                    history.push(place, output);
                    continue;
                }
                let mut forecast = vec![0.0; output.len()];
                assert!(history.forecast(&options, place, &mut forecast));
                for (forecast, expected) in forecast.iter().zip(output) {
                    // The authors' code solves the system in float32.
                    let far = (forecast - expected).abs();
                    assert!(
                        far <= 1e-5,
                        "{options:?}, step {step}: {forecast} {expected}"
                    );
                }
            }
        }
    }
}
