//! The quantile function of the Beta distribution.

/// Returns the x below which Beta(a, b) has the mass `p`. `a` and `b` are above 0. The result is
/// exactly 0, ½ or 1 where symmetry makes it so.
///
/// This is `scipy.stats.beta.ppf` without a gamma function. The masses are not normalised; the
/// total is the mass below ½ plus the mass above it, which is the mirrored distribution's mass
/// below ½. Within one half, the mass is nearly linear in x to the power of a, so the bisection
/// runs over that power.
pub(super) fn quantile(p: f64, a: f64, b: f64) -> f64 {
    if p <= 0.0 || p >= 1.0 {
        return if p >= 1.0 { 1.0 } else { 0.0 };
    }
    let (below, above) = (mass(0.5_f64.powf(a), a, b), mass(0.5_f64.powf(b), b, a));
    let wanted = p * (below + above);
    if wanted == below {
        // This must be exact, because half of an odd T - 1 is a tie when it is rounded to a
        // timestep.
        0.5
    } else if wanted < below {
        within_half(wanted, a, b)
    } else {
        1.0 - within_half((1.0 - p) * (below + above), b, a)
    }
}

/// Returns the x up to ½ with this mass below it.
fn within_half(wanted: f64, a: f64, b: f64) -> f64 {
    let (mut low, mut high) = (0.0, 0.5_f64.powf(a));
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        if mass(middle, a, b) < wanted {
            low = middle;
        } else {
            high = middle;
        }
    }
    ((low + high) / 2.0).powf(1.0 / a)
}

/// Returns the integral of t^(a-1) (1-t)^(b-1) from 0 to x, where x is at most ½ and `power` is
/// x^a.
///
/// It uses equation 8.17.8 of <https://dlmf.nist.gov/8.17>, a series of positive terms. Each term
/// is soon at most half of the one before.
fn mass(power: f64, a: f64, b: f64) -> f64 {
    let x = power.powf(1.0 / a);
    let (mut sum, mut term) = (1.0, 1.0);
    for n in 0..500 {
        let n = f64::from(n);
        term *= x * (a + b + n) / (a + 1.0 + n);
        sum += term;
        if term < 1e-17 * sum {
            break;
        }
    }
    power * (1.0 - x).powf(b) / a * sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distributions_with_a_known_quantile() {
        for p in [0.0_f64, 1e-6, 0.1, 0.25, 0.5, 0.7, 0.999, 1.0] {
            let known = [
                (1.0, 1.0, p),
                (2.0, 1.0, p.sqrt()),
                (1.0, 3.0, 1.0 - (1.0 - p).cbrt()),
                (0.5, 0.5, (p * std::f64::consts::FRAC_PI_2).sin().powi(2)),
                (5.0, 1.0, p.powf(0.2)),
            ];
            for (a, b, expected) in known {
                let found = quantile(p, a, b);
                assert!(
                    (found - expected).abs() < 1e-12,
                    "{p} of Beta({a}, {b}): {found} != {expected}"
                );
            }
        }
        for a in [0.01, 0.6, 1.7, 50.0] {
            assert_eq!(quantile(0.5, a, a), 0.5);
        }
    }
}
