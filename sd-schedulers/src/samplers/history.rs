use multiversion::multiversion;

use super::steps::slide;

/// The outputs of the model in the last steps, for the multistep samplers. They may be denoised
/// samples, noises or any other values as long as x.
pub(super) struct History(Vec<Vec<f32>>);

impl History {
    /// Allocates the values of `steps` steps, clamped to `1..=4`, each `len` long.
    pub(super) fn new(steps: usize, len: usize) -> Self {
        Self(vec![vec![0.0; len]; steps.clamp(1, 4)])
    }

    /// Returns the buffer for a new value, which replaces the oldest one.
    pub(super) fn push(&mut self) -> &mut [f32] {
        self.0.rotate_right(1);
        &mut self.0[0]
    }

    /// Returns the value that was written last.
    pub(super) fn newest(&self) -> &[f32] {
        &self.0[0]
    }

    /// Moves `x` along the slope to `ratio` times its sigma as [`slide`] does, and
    /// [`bend`](Self::bend)s it.
    pub(super) fn step(&self, x: &mut [f32], denoised: &[f32], ratio: f64, weights: [f64; 3]) {
        let (ratio, weights) = (ratio as f32, weights.map(|weight| weight as f32));
        match (weights, self.values()) {
            ([0.0, 0.0, 0.0], _) => slide(x, denoised, ratio.into()),
            ([a, 0.0, 0.0], [newest, first, ..]) => {
                step_2(x, denoised, ratio, a, [newest, first]);
            }
            (_, values) => step_4(x, denoised, ratio, weights, values),
        }
    }

    /// Adds the differences of the older values from the newest to `x`, each times its weight.
    ///
    /// The first weight belongs to the value before the newest. The weights of values that do not
    /// exist must be 0.
    pub(super) fn bend(&self, x: &mut [f32], weights: [f64; 3]) {
        let weights = weights.map(|weight| weight as f32);
        match (weights, self.values()) {
            ([0.0, 0.0, 0.0], _) => {}
            ([a, 0.0, 0.0], [newest, first, ..]) => bend_2(x, a, [newest, first]),
            (_, values) => bend_4(x, weights, values),
        }
    }

    /// Returns the newest value and three older ones. The newest stands in for values that do not
    /// exist.
    fn values(&self) -> [&[f32]; 4] {
        [0, 1, 2, 3].map(|back| &self.0.get(back).unwrap_or(&self.0[0])[..])
    }
}

// As in steps.rs, these loops are compiled for wide registers too.

#[multiversion(targets("x86_64+avx2"))]
fn step_2(x: &mut [f32], denoised: &[f32], ratio: f32, weight: f32, values: [&[f32]; 2]) {
    let [newest, first] = values;
    let values = newest.iter().zip(first);
    for ((x, denoised), (newest, first)) in x.iter_mut().zip(denoised).zip(values) {
        *x = denoised + ratio * (*x - denoised) + weight * (first - newest);
    }
}

#[multiversion(targets("x86_64+avx2"))]
fn step_4(x: &mut [f32], denoised: &[f32], ratio: f32, weights: [f32; 3], values: [&[f32]; 4]) {
    let ([a, b, c], [newest, first, second, third]) = (weights, values);
    let values = newest.iter().zip(first).zip(second).zip(third);
    for ((x, denoised), (((newest, first), second), third)) in
        x.iter_mut().zip(denoised).zip(values)
    {
        let bend = a * (first - newest) + b * (second - newest) + c * (third - newest);
        *x = denoised + ratio * (*x - denoised) + bend;
    }
}

#[multiversion(targets("x86_64+avx2"))]
fn bend_2(x: &mut [f32], weight: f32, values: [&[f32]; 2]) {
    let [newest, first] = values;
    for ((x, newest), first) in x.iter_mut().zip(newest).zip(first) {
        *x += weight * (first - newest);
    }
}

#[multiversion(targets("x86_64+avx2"))]
fn bend_4(x: &mut [f32], weights: [f32; 3], values: [&[f32]; 4]) {
    let ([a, b, c], [newest, first, second, third]) = (weights, values);
    let values = newest.iter().zip(first).zip(second).zip(third);
    for (x, (((newest, first), second), third)) in x.iter_mut().zip(values) {
        *x += a * (first - newest) + b * (second - newest) + c * (third - newest);
    }
}

/// Returns the lengths in log sigma of the two steps that led to rung `index`, the last one first.
/// It is 1 for a step that does not exist.
pub(super) fn last_steps(sigmas: &[f32], index: usize) -> [f64; 2] {
    [1, 2].map(|back| match index.checked_sub(back) {
        Some(from) => (f64::from(sigmas[from]) / f64::from(sigmas[from + 1])).ln(),
        None => 1.0,
    })
}

/// Returns the weights for [`History::bend`] with which 1 to 3 values integrate the polynomial
/// through them, relative to the integral of the newest value alone.
///
/// `integrals` are the integrals of u and u², where u is the distance from the newest value.
/// `last` are the steps between the values.
pub(super) fn newton(order: usize, integrals: [f64; 2], last: [f64; 2]) -> [f64; 3] {
    let ([line, square], [h_0, h_1]) = (integrals, last);
    match order {
        0 | 1 => [0.0; 3],
        2 => [-line / h_0, 0.0, 0.0],
        _ => {
            let curve = (line * h_0 + square) / (h_0 + h_1);
            let slope = (line + curve) / h_0;
            [-slope - curve / h_1, curve / h_1, 0.0]
        }
    }
}

/// Evaluates the polynomial that is 1 at node `k` and 0 at the other nodes.
pub(super) fn lagrange(nodes: &[f64], k: usize, at: f64) -> f64 {
    let others = nodes.iter().enumerate().filter(|&(j, _)| j != k);
    others
        .map(|(_, node)| (at - node) / (nodes[k] - node))
        .product()
}

/// The weights of Adams and Bashforth: the weights of the newest 1 to 4 slopes, newest first, in
/// the mean slope over a step. All steps have the same length.
pub(super) const ADAMS_BASHFORTH: [[f64; 4]; 4] = [
    [1.0, 0.0, 0.0, 0.0],
    [3.0 / 2.0, -1.0 / 2.0, 0.0, 0.0],
    [23.0 / 12.0, -16.0 / 12.0, 5.0 / 12.0, 0.0],
    [55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0],
];

/// Returns [`ADAMS_BASHFORTH`] for steps of any length, from the first of the 1 to 4 `nodes` to
/// `to`.
///
/// The weights are the means of the Lagrange polynomials. Their degree is 3 at most, so Gauss' rule
/// of two points is exact.
pub(super) fn adams_bashforth(nodes: &[f64], to: f64) -> [f64; 4] {
    let (centre, offset) = ((nodes[0] + to) / 2.0, (to - nodes[0]) / 12.0_f64.sqrt());
    let mut weights = [0.0; 4];
    for k in 0..nodes.len() {
        let ends = lagrange(nodes, k, centre - offset) + lagrange(nodes, k, centre + offset);
        weights[k] = ends / 2.0;
    }
    weights
}

/// Returns the sigmas of rung `index` and of the rungs before it, `count` in all, newest first. The
/// rest is 0.
pub(super) fn last_sigmas(sigmas: &[f32], index: usize, count: usize) -> [f64; 4] {
    let mut last = [0.0; 4];
    for (back, sigma) in last.iter_mut().enumerate().take(count) {
        *sigma = f64::from(sigmas[index - back]);
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn even_steps_give_the_weights_of_adams_bashforth() {
        for (order, expected) in (1..=3).zip(ADAMS_BASHFORTH) {
            let found = newton(order, [1.0 / 2.0, 1.0 / 3.0], [1.0, 1.0]);
            for (found, expected) in found.iter().zip(&expected[1..]) {
                assert!((found - expected).abs() < 1e-15, "{order}");
            }
        }
        let nodes = [1.0, 2.0, 3.0, 4.0];
        for (order, expected) in (1..).zip(ADAMS_BASHFORTH) {
            let found = adams_bashforth(&nodes[..order], 0.0);
            for (found, expected) in found.iter().zip(expected) {
                assert!((found - expected).abs() < 1e-14, "{order}");
            }
        }
    }

    #[test]
    fn values_move_up() {
        let mut history = History::new(2, 1);
        history.push()[0] = 5.0;
        history.push()[0] = 7.0;
        assert_eq!(history.newest(), [7.0]);
        let mut x = [100.0];
        history.bend(&mut x, [3.0, 1.0, 1.0]);
        assert_eq!(x, [94.0]);
        history.step(&mut x, &[90.0], 0.5, [3.0, 0.0, 0.0]);
        assert_eq!(x, [86.0]);
    }

    #[test]
    fn sigmas_go_back() {
        let sigmas = [8.0, 4.0, 2.0, 1.0];
        assert_eq!(last_sigmas(&sigmas, 2, 2), [2.0, 4.0, 0.0, 0.0]);
        let steps = last_steps(&sigmas, 1);
        assert_eq!(steps, [2.0_f64.ln(), 1.0]);
    }
}
