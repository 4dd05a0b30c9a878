//! The quantile function of the Beta distribution.

/// The x below which Beta(a, b) has the mass `p`; exactly 0, ½ or 1 where it is that by symmetry. `a` and `b` above 0.
///
/// `scipy.stats.beta.ppf` without a gamma function: the mass is not normalised, and all of it is that of the half below ½ and that of the
/// other half, which is the mirrored distribution's. Within a half the mass is nearly straight over x to the power of a, so that is bisected.
pub(super) fn quantile(p: f64, a: f64, b: f64) -> f64 {
    if p <= 0.0 || p >= 1.0 {
        return if p >= 1.0 { 1.0 } else { 0.0 };
    }
    let (below, above) = (mass(0.5_f64.powf(a), a, b), mass(0.5_f64.powf(b), b, a));
    let wanted = p * (below + above);
    if wanted == below {
        // Exactly, as half of an odd T - 1 is a tie when it is rounded to a timestep.
        0.5
    } else if wanted < below {
        within_half(wanted, a, b)
    } else {
        1.0 - within_half((1.0 - p) * (below + above), b, a)
    }
}

/// The x up to ½ with this mass below it.
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

/// The integral of t^(a-1) (1-t)^(b-1) from 0 to an x of at most ½, given `power`, which is x^a: equation 8.17.8 of
/// <https://dlmf.nist.gov/8.17>, a series of positive terms of which each is soon at most half of the one before.
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
