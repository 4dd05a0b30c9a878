use std::ops::ControlFlow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::history::History;
use super::row::{ComfyUi, SamplerRow};
use super::steps::add;
use crate::{Ladder, Run, Rungs, Sampler, Step};

/// ER-SDE solvers: algorithms 1 to 3 of <https://arxiv.org/abs/2309.06169>. Without noise, they are
/// of first and second order, from the outputs of one and two steps. They call the model once per
/// step.
///
/// With three outputs, the method is of second order with a smaller error. The paper calls it third
/// order, but the first-order error of its d below remains. Reference implementations: the authors'
/// `er_sde_solver.py` and ComfyUI's `er_sde`.
///
/// With phi the noise scale function and r = phi(sigma') / phi(sigma), a first-order step is
/// ```text
/// x = r x + (1 - r) D + s_noise sqrt(sigma'² - r² sigma²) noise
/// ```
/// With d = dD/dsigma and e its derivative, both by differences of outputs, the higher orders add
/// ```text
/// (sigma' - sigma + phi(sigma') ∫ du / phi(u)) d
///     + ((sigma' - sigma)² / 2 + phi(sigma') ∫ (u - sigma) / phi(u) du) e
/// ```
/// where both integrals go from sigma' to sigma. A step to sigma 0 ends at D.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ErSde {
    /// The number of outputs, `1..=3`. A value outside counts as the nearer end.
    ///
    /// Default: 3.
    pub order: usize,
    /// The noise scale function phi.
    ///
    /// Default: [`ErSdeScale::Sde5`].
    pub scale: ErSdeScale,
    /// A factor for the noise. A value below 0 counts as 0.
    ///
    /// Default: 1.
    pub s_noise: f32,
    /// The number of points of the sums that stand for the two integrals, from sigma' up,
    /// `1..=10_000`. A value outside counts as the nearer end. `None` computes the exact integrals.
    ///
    /// The sums have a first-order error, which shows in long runs. ComfyUI uses 200 points.
    ///
    /// Default: `Some(100)`, as in the authors' code.
    pub points: Option<u32>,
    /// The smallest variance of the noise of a step. A step with less adds no noise.
    ///
    /// Default: 1e-6, as in the authors' code.
    pub min_variance: f32,
}

/// The noise scale function phi(s) of [`ErSde`]: section 5 of <https://arxiv.org/abs/2309.06169>.
/// The faster it grows, the more noise is added.
///
/// Default: [`ErSdeScale::Sde5`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErSdeScale {
    /// s: the probability-flow ODE, without noise.
    Ode,
    /// s²: the reverse SDE, whose first order is
    /// [`EulerAncestral`](crate::samplers::EulerAncestral).
    ReverseSde,
    /// s (e^(-1/s) + 10).
    Sde1,
    /// s^1.5.
    Sde2,
    /// s^2.5.
    Sde3,
    /// s^0.9 log10(1 + 100 s^1.5).
    Sde4,
    /// s (e^(s^0.3) + 10): the paper's choice.
    #[default]
    Sde5,
}

impl ErSdeScale {
    fn at(self, sigma: f64) -> f64 {
        match self {
            Self::Ode => sigma,
            Self::ReverseSde => sigma * sigma,
            Self::Sde1 => sigma * ((-1.0 / sigma).exp() + 10.0),
            Self::Sde2 => sigma.powf(1.5),
            Self::Sde3 => sigma.powf(2.5),
            Self::Sde4 => sigma.powf(0.9) * (1.0 + 100.0 * sigma.powf(1.5)).log10(),
            Self::Sde5 => sigma * (sigma.powf(0.3).exp() + 10.0),
        }
    }
}

impl Default for ErSde {
    fn default() -> Self {
        Self {
            order: 3,
            scale: ErSdeScale::Sde5,
            s_noise: 1.0,
            points: Some(100),
            min_variance: 1e-6,
        }
    }
}

impl ErSde {
    /// Returns the integrals of `1 / phi(u)` and of `(u - from) / phi(u)` from `to` up to `from`.
    fn integrals(&self, from: f64, to: f64) -> (f64, f64) {
        let (mut first, mut second) = (0.0, 0.0);
        let mut sum = |u: f64, width: f64| {
            let part = width / self.scale.at(u);
            first += part;
            second += part * (u - from);
        };
        match self.points {
            Some(points) => {
                let points = points.clamp(1, 10_000);
                let width = (from - to) / f64::from(points);
                for point in 0..points {
                    sum(to + f64::from(point) * width, width);
                }
            }
            None => {
                // Integrate over ln u, in which 1 / phi is smooth down to 0.
                let width = (from / to).ln() / f64::from(PANELS);
                for panel in 0..PANELS {
                    for (node, weight) in GAUSS {
                        let middle = f64::from(panel) + 0.5;
                        let u = to * (width * (middle + node / 2.0)).exp();
                        sum(u, u * width * weight / 2.0);
                    }
                }
            }
        }
        (first, second)
    }

    /// Returns the weights of the older outputs for [`History::step`], in the step that leaves rung
    /// `index`.
    fn weights(&self, sigmas: &[f32], index: usize) -> [f64; 3] {
        let order = self.order.clamp(1, 3).min(index + 1);
        if order == 1 {
            return [0.0; 3];
        }
        let sigma = |index: usize| f64::from(sigmas[index]);
        let (from, to, last) = (sigma(index), sigma(index + 1), sigma(index - 1));
        let (first, second) = self.integrals(from, to);
        let scale = self.scale.at(to);
        let slope = (to - from + scale * first) / (from - last);
        if order == 2 {
            return [-slope, 0.0, 0.0];
        }
        let before = sigma(index - 2);
        let curve = ((to - from).powi(2) + 2.0 * scale * second) / (from - before);
        // `near` weighs the difference of this output from the last output, and `far` the
        // difference of the last output from the output before it.
        let (near, far) = (slope + curve / (from - last), -curve / (last - before));
        [far - near, -far, 0.0]
    }
}

pub(super) const ROW: SamplerRow = SamplerRow::new::<ErSde>(
    "er-sde",
    "ER-SDE",
    "https://arxiv.org/abs/2309.06169",
    Ladder::karras(),
    |_| Box::new(ErSde::default()),
)
.comfyui(&[ComfyUi::new("er_sde", || {
    Arc::new(ErSde {
        points: Some(200),
        ..ErSde::default()
    })
})])
.stochastic();

impl Sampler for ErSde {
    fn adds_noise(&self) -> bool {
        self.scale != ErSdeScale::Ode && self.s_noise > 0.0
    }

    fn sample(&self, x: &mut [f32], rungs: &Rungs, run: &mut dyn Run) -> ControlFlow<()> {
        let (mut outputs, mut noise) = (History::new(3, x.len()), vec![0.0; x.len()]);
        let s_noise = f64::from(self.s_noise).max(0.0);
        for at in rungs.iter() {
            run.denoise(x, at, outputs.push())?;
            let denoised = outputs.newest();
            let next = rungs.sigmas()[at.index + 1];
            if next == 0.0 {
                x.copy_from_slice(denoised);
            } else {
                let (sigma, to) = (f64::from(at.sigma), f64::from(next));
                let ratio = self.scale.at(to) / self.scale.at(sigma);
                let weights = self.weights(rungs.sigmas(), at.index);
                outputs.step(x, denoised, ratio, weights);
                let variance = match self.scale {
                    ErSdeScale::Ode => 0.0,
                    _ => to * to - (ratio * sigma).powi(2),
                };
                let up = s_noise * variance.max(0.0).sqrt();
                if up > 0.0 && variance >= f64::from(self.min_variance) {
                    run.noise(at.sigma, next, &mut noise);
                    add(x, up, &noise);
                }
            }
            run.step(Step::new(rungs, at.index, x, outputs.newest()))?;
        }
        ControlFlow::Continue(())
    }
}

/// The number of panels of an exact integral.
const PANELS: u32 = 8;

/// The points and weights of Gauss and Legendre on -1 to 1.
const GAUSS: [(f64, f64); 5] = [
    (-0.906_179_845_938_664, 0.236_926_885_056_189_1),
    (-0.538_469_310_105_683_1, 0.478_628_670_499_366_5),
    (0.0, 0.568_888_888_888_888_9),
    (0.538_469_310_105_683_1, 0.478_628_670_499_366_5),
    (0.906_179_845_938_664, 0.236_926_885_056_189_1),
];

#[cfg(test)]
mod tests {
    use super::*;

    /// The integrals of 1 / u and of 1 / u² are known.
    #[test]
    fn the_integrals_are_exact_without_points_and_tend_to_that_with_them() {
        let (from, to) = (2.0_f64, 0.125_f64);
        let ode = ((from / to).ln(), from - to - from * (from / to).ln());
        let reverse = (
            1.0 / to - 1.0 / from,
            (from / to).ln() - from * (1.0 / to - 1.0 / from),
        );
        for (scale, expected) in [(ErSdeScale::Ode, ode), (ErSdeScale::ReverseSde, reverse)] {
            let found = |points| {
                let solver = ErSde {
                    scale,
                    points,
                    ..ErSde::default()
                };
                let (first, second) = solver.integrals(from, to);
                (first - expected.0).abs() + (second - expected.1).abs()
            };
            assert!(found(None) < 1e-11, "{scale:?}: {}", found(None));
            assert!(found(Some(10_000)) < 5e-2 && found(Some(100)) > found(Some(1000)));
        }
    }
}
