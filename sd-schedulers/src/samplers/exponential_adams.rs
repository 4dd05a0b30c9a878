//! The integrals of an exponential Adams method: integrals of polynomials through earlier outputs,
//! under an exponential.

/// The largest number of outputs.
pub(super) const MOST: usize = 4;

/// Returns `z` times the integral over t from 0 to 1 of `exp(-z t)` times each Lagrange polynomial
/// on `places`. There are at most [`MOST`] of them.
///
/// With t in steps before the target and z = kappa h, it is the integral in SA-Solver's
/// algorithm 1.
pub(super) fn integrals(z: f64, places: &[f64]) -> [f64; MOST] {
    let moments = moments(z);
    let mut weights = [0.0; MOST];
    for (i, (weight, place)) in weights.iter_mut().zip(places).enumerate() {
        // The coefficients of the polynomial, t⁰ first.
        let mut polynomial = [1.0_f64, 0.0, 0.0, 0.0];
        for (j, other) in places.iter().enumerate() {
            if j != i {
                for power in (0..MOST).rev() {
                    let lower = power.checked_sub(1).map_or(0.0, |lower| polynomial[lower]);
                    polynomial[power] = (lower - other * polynomial[power]) / (place - other);
                }
            }
        }
        *weight = polynomial.iter().zip(moments).map(|(c, m)| c * m).sum();
    }
    weights
}

/// Returns `z` times the integral over t from 0 to 1 of `exp(-z t) t^m`, for m from 0.
fn moments(z: f64) -> [f64; MOST] {
    if z.abs() < 1.0 {
        // The recurrence below would lose digits by cancellation.
        std::array::from_fn(|m| {
            let (mut sum, mut term) = (0.0, z);
            for k in 1..20 {
                sum += term / (m + k) as f64;
                term *= -z / k as f64;
            }
            sum
        })
    } else {
        let mut moments = [-(-z).exp_m1(); MOST];
        for m in 1..MOST {
            moments[m] = m as f64 / z * moments[m - 1] - (-z).exp();
        }
        moments
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_moments_agree_where_series_and_recurrence_meet() {
        let e = (-1.0_f64).exp();
        let known = [1.0 - e, 1.0 - 2.0 * e, 2.0 - 5.0 * e, 6.0 - 16.0 * e];
        for z in [1.0 - 1e-15, 1.0] {
            for (found, known) in moments(z).into_iter().zip(known) {
                assert!((found - known).abs() < 1e-14, "{z}: {found} != {known}");
            }
        }
    }

    /// A constant is interpolated exactly from any positions, so the weights sum to its integral.
    #[test]
    fn the_weights_sum_to_that_of_a_constant() {
        let places = [0.0, 1.0, 1.8, 4.0];
        for z in [1e-9_f64, 0.03, 0.7, 5.0, -0.02, -3.0] {
            for places in [&places[1..2], &places[..2], &places[1..], &places[..]] {
                let sum: f64 = integrals(z, places).into_iter().sum();
                let constant = -(-z).exp_m1();
                assert!(
                    (sum - constant).abs() <= 1e-12 * constant.abs(),
                    "{z} {places:?}"
                );
            }
        }
    }
}
