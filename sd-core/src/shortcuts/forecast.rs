use serde::{Deserialize, Serialize};

use crate::Problem;

/// The largest [`Forecast::degree`].
const MAX_DEGREE: usize = 16;

/// The smallest [`Forecast::ridge`]. With fewer outputs than coefficients, only the ridge makes the
/// system solvable. A smaller one would be lost in the rounding of f64.
const LEAST_RIDGE: f64 = 1e-6;

/// Spectrum (Han et al. 2026, <https://arxiv.org/abs/2603.01623>): some steps use a forecast of the
/// network's output in place of a call.
///
/// Each value of the output is fitted with Chebyshev polynomials of the step's position in the run,
/// by ridge regression over the outputs computed so far. The fit is mixed with a linear
/// extrapolation of the last two outputs. The paper forecasts the features before the last layers
/// of the network. Here, the output itself is forecast, separately for the prompt and for the
/// negative prompt, so that no other graph is needed.
///
/// The first steps are computed. After that, the distance from one computed step to the next starts
/// at [`window`](Self::window), and grows by [`growth`](Self::growth) with each computed step. The
/// method starts again with computed steps when the prompt changes in the run, when the weight of a
/// LoRA changes, and when a control starts or stops acting.
///
/// The presets have other values than [`Forecast::default`]: see
/// [`Shortcuts::FAST`](super::Shortcuts::FAST).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Forecast {
    /// The number of computed steps at the start, at least 1.
    ///
    /// Default: 5, as in the authors' code.
    pub warm_up: usize,
    /// The distance from one computed step to the next after the warm-up, at least 1. It is rounded
    /// down. At 1, all steps are computed.
    ///
    /// Default: 2, as in the authors' code.
    pub window: f32,
    /// The number by which the distance grows with each computed step, 0 or more.
    ///
    /// Default: 0.75, as in the authors' code.
    pub growth: f32,
    /// The number of computed steps at the end, which add the finest details.
    ///
    /// Default: 1. The authors' code has 0.
    pub last: usize,
    /// The degree of the polynomials, 0 to 16.
    ///
    /// Default: 4, as in the authors' code.
    pub degree: usize,
    /// The weight of the squares of the coefficients in the fit, 0.000001 or more.
    ///
    /// Default: 0.1, as in the authors' code.
    pub ridge: f64,
    /// The share of the fit in the forecast, `0.0..=1.0`. The rest is the linear extrapolation.
    ///
    /// Default: 1, as in the authors' code for Flux. Their code for SDXL has 0.5.
    pub fit: f64,
}

impl Default for Forecast {
    fn default() -> Self {
        Self {
            warm_up: 5,
            window: 2.0,
            growth: 0.75,
            last: 1,
            degree: 4,
            ridge: 0.1,
            fit: 1.0,
        }
    }
}

impl Forecast {
    /// The forecasts of [`Shortcuts::FAST`](super::Shortcuts::FAST).
    pub(super) const FAST: Self = Self {
        warm_up: 4,
        window: 2.0,
        growth: 0.0,
        last: 1,
        degree: 4,
        ridge: 1.0,
        fit: 1.0,
    };

    /// The forecasts of [`Shortcuts::FASTER`](super::Shortcuts::FASTER).
    pub(super) const FASTER: Self = Self {
        window: 3.0,
        ..Self::FAST
    };

    /// Returns the options that cannot be used.
    pub(super) fn problems(self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut check = |ok: bool, field: &'static str, expected: &str, found: f64| {
            if !ok {
                problems.push(Problem::new(field, expected, found));
            }
        };
        let Self {
            warm_up,
            window,
            growth,
            last: _,
            degree,
            ridge,
            fit,
        } = self;
        let finite = |value: f32| (value.is_finite(), f64::from(value));
        let field = "shortcuts.skip.forecast.warm_up";
        check(warm_up >= 1, field, "1 or more", warm_up as f64);
        let (is_finite, found) = finite(window);
        let field = "shortcuts.skip.forecast.window";
        check(is_finite && window >= 1.0, field, "1 or more", found);
        let (is_finite, found) = finite(growth);
        let field = "shortcuts.skip.forecast.growth";
        check(is_finite && growth >= 0.0, field, "0 or more", found);
        let expected = format!("0 to {MAX_DEGREE}");
        let field = "shortcuts.skip.forecast.degree";
        check(degree <= MAX_DEGREE, field, &expected, degree as f64);
        let field = "shortcuts.skip.forecast.ridge";
        let expected = format!("{LEAST_RIDGE} or more");
        let is_enough = ridge.is_finite() && ridge >= LEAST_RIDGE;
        check(is_enough, field, &expected, ridge);
        let field = "shortcuts.skip.forecast.fit";
        check((0.0..=1.0).contains(&fit), field, "0 to 1", fit);
        problems
    }
}
