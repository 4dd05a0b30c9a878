//! Weights that change from step to step, in the syntax of the extension `sd-webui-loractl`.

use super::number::float;

/// A weight of a LoRA over the steps of a run.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Weight {
    /// The same weight in every step.
    Constant(f64),
    /// Positions in the run and the weights there, in the order of the positions. There is at least
    /// one. Weights are interpolated between two positions.
    Keys(Vec<(f64, f64)>),
}

impl Weight {
    /// Parses `0.8`, or weights at positions such as `0@0,1@0.5`, as `sorted_positions` of the
    /// extension does. Returns `None` where it fails, and where it ignores a part of the text.
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(weight) = float(text) {
            return Some(Self::Constant(weight));
        }
        let mut keys = Vec::new();
        for (i, key) in text.split([',', ';']).enumerate() {
            let (weight, position) = match key.split_once(['@', '~']) {
                Some((weight, position)) => (float(weight)?, float(position)?),
                // The extension takes the first number without a position as the whole text.
                None if i == 0 => return None,
                None => (float(key)?, 1.0),
            };
            keys.push((position, weight));
        }
        keys.sort_by(|a, b| a.0.total_cmp(&b.0));
        Some(Self::Keys(keys))
    }

    /// Returns the weight in a step, counted from 0, of a run of `steps` steps, as
    /// `calculate_weight` of the extension does.
    pub fn at(&self, step: usize, steps: usize) -> f32 {
        match self {
            Self::Constant(weight) => *weight as f32,
            Self::Keys(keys) => interpolated(keys, position(keys, step, steps)) as f32,
        }
    }
}

/// Returns the position of a step. If no key is beyond position 1, positions are shares of the run.
fn position(keys: &[(f64, f64)], step: usize, steps: usize) -> f64 {
    // WebUI counts a step when the network has returned, so that the first two steps of a run are
    // at position 0, and each later step is one behind.
    let counted = step.saturating_sub(1) as f64;
    let is_share = keys.last().is_some_and(|(last, _)| *last <= 1.0);
    match steps {
        _ if !is_share => counted,
        // The extension divides by zero.
        ..=2 => step.min(1) as f64,
        _ => counted / (steps - 2) as f64,
    }
}

/// Returns the weight at a position, as numpy's `interp` does.
fn interpolated(keys: &[(f64, f64)], at: f64) -> f64 {
    let after = keys.partition_point(|(position, _)| *position <= at);
    let weight = |key: usize| keys[key].1;
    if after == 0 || after == keys.len() {
        return weight(after.saturating_sub(1));
    }
    let [(from, first), (to, second)] = [keys[after - 1], keys[after]];
    let between = first + (second - first) / (to - from) * (at - from);
    if between.is_nan() {
        return first;
    }
    // Positions that nearly coincide must not make the weight infinite.
    between.clamp(first.min(second), first.max(second))
}
