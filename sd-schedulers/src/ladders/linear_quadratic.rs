use super::{LadderError, above_zero, in_range};

/// Mochi's ladder: even steps first, then steps on a parabola.
///
/// The even steps cover a small part of the way. The parabola continues in the same direction and
/// ends at 0. On a flow model, the sigmas start at 1. On other models they are multiplied by the
/// largest sigma, as in ComfyUI (`linear_quadratic`), which leaves half of the steps near that
/// sigma.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinearQuadratic {
    /// The part of the way that the even steps cover, above 0 and at most 1.
    ///
    /// Default: 0.025.
    pub threshold: f64,
    /// The number of even steps, clamped to `1..=N - 1`.
    ///
    /// Default: half of N, rounded down.
    pub linear_steps: Option<usize>,
}

impl LinearQuadratic {
    pub(super) const NAMED: Self = Self {
        threshold: 0.025,
        linear_steps: None,
    };

    pub(super) fn sigmas(self, steps: usize) -> Result<Vec<f64>, LadderError> {
        above_zero("threshold", self.threshold)?;
        in_range("threshold", self.threshold, [0.0, 1.0])?;
        if steps == 1 {
            return Ok(vec![1.0]);
        }
        let linear = self.linear_steps.unwrap_or(steps / 2).clamp(1, steps - 1);
        let (count, rest) = (steps as f64, (steps - linear) as f64);
        let slope = self.threshold / linear as f64;
        let sigma = |i: usize| {
            let bent = i.saturating_sub(linear) as f64 / rest;
            1.0 - (i as f64 * slope + (1.0 - count * slope) * bent * bent)
        };
        Ok((0..steps).map(sigma).collect())
    }
}

impl Default for LinearQuadratic {
    fn default() -> Self {
        Self::NAMED
    }
}
