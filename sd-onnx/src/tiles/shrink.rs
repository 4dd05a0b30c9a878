//! The shrunken picture that fast tiles take their moments from.

use super::map::Map;
use crate::models::vae::Layer;

/// The longest side of a shrunken picture, in latents.
const SIDE: usize = 64;

/// Shrinks the input of a network, so that its longest side is that of 64 latents. Returns `None`
/// if it is not longer.
///
/// As in WebUI's extension "Tiled VAE", each place takes the nearest value, the mean and the
/// standard deviation of each channel stay the same, and the values stay between the smallest and
/// the largest one of the input.
pub(super) fn shrunken(input: &Map, layers: &[Layer]) -> Option<Map> {
    // The rows per latent: an encoder's input is a picture.
    let unit = 1 << layers.iter().filter(|layer| layer.halves()).count();
    let [height, width] = [input.height, input.width].map(|side| side / unit);
    let longest = height.max(width);
    if longest <= SIDE {
        return None;
    }
    let side = |side: usize| (side * SIDE).div_ceil(longest) * unit;
    let (height, width) = (side(height), side(width));
    let mut small = Map::zeros(input.channels, height, width);
    let sources = input.values.chunks_exact(input.height * input.width);
    for (target, source) in small.values.chunks_exact_mut(height * width).zip(sources) {
        for (y, row) in target.chunks_exact_mut(width).enumerate() {
            let from = nearest(y, height, input.height) * input.width;
            for (x, value) in row.iter_mut().enumerate() {
                *value = source[from + nearest(x, width, input.width)];
            }
        }
        match_moments(target, source);
    }
    Some(small)
}

/// Returns the place whose centre is nearest to the centre of place `i` of a shrunken side.
fn nearest(i: usize, small: usize, large: usize) -> usize {
    (2 * i + 1) * large / (2 * small)
}

/// Gives `values` the mean and the standard deviation of `source`, within the range of `source`.
fn match_moments(values: &mut [f32], source: &[f32]) {
    let moments = |values: &[f32]| {
        let count = values.len() as f64;
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / count;
        let squares = values.iter().map(|&v| (f64::from(v) - mean).powi(2));
        (mean, (squares.sum::<f64>() / count).sqrt())
    };
    let ((mean, deviation), (wanted_mean, wanted)) = (moments(values), moments(source));
    // Equal values have no deviation to scale.
    let scale = if deviation > 0.0 {
        wanted / deviation
    } else {
        1.0
    };
    let least = source.iter().copied().fold(f32::INFINITY, f32::min);
    let most = source.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for value in values {
        let matched = (f64::from(*value) - mean) * scale + wanted_mean;
        *value = (matched as f32).max(least).min(most);
    }
}
