//! Autoencoders in tiles: pictures that are too large to be decoded or encoded in one call.
//!
//! A group norm needs the mean and the variance of a whole feature map, so a network cannot simply
//! run on parts of its input. Here the network is cut into [segments](segment) that take these
//! moments as inputs. Feature maps stay in memory between segments, and a segment runs on one band
//! of rows after another.
//!
//! - *Exact* tiles cut the network at every group norm. The moments are those of the whole map, so
//!   the result differs from an untiled call only by rounding.
//! - *Fast* tiles take the moments of the levels with the largest maps from a shrunken picture, and
//!   cut the network only between these levels.
//!
//! [segment]: crate::models::vae::segment

mod map;
mod shrink;
mod sweep;
#[cfg(test)]
mod tests;
mod tiling;
mod windows;

use std::{collections::HashMap, sync::Arc};

use ndarray::{Array4, ArrayView3, ArrayView4, Axis};
use sd_core::{Seamless, StopToken};

pub(crate) use self::tiling::untiled_bytes;
pub use self::tiling::{ParseVaeTilingError, VaeTiling};
use self::{
    map::Map,
    sweep::{Features, Sweeper},
};
use crate::{
    RunError,
    engine::Engine,
    models::{blocks::Norm, vae::Layer},
    weights::Weights,
};

/// The largest number of values in any tensor of a band: 64 MiB in f32. A call holds up to about
/// five such tensors.
pub(crate) const BAND_VALUES: usize = 16 << 20;

/// The number of levels of a decoder that fast tiles run with the moments of a shrunken picture.
const FAST_LEVELS: usize = 2;

/// A half of an autoencoder that runs in tiles.
#[derive(Clone, Copy)]
pub(crate) struct Tiled<'a> {
    /// The name of the network in errors.
    pub name: &'static str,
    pub layers: &'a [Layer],
    pub norm: Norm,
    pub weights: &'a Arc<Weights>,
    pub engine: &'a Engine,
    pub seamless: Seamless,
    /// Whether the tiles are fast ones.
    pub fast: bool,
    /// The largest number of values in any tensor of a band, usually [`BAND_VALUES`].
    pub band_values: usize,
    pub stop: &'a StopToken,
}

impl Tiled<'_> {
    /// Runs the network on `[batch, channels, h, w]`, one batch item after another.
    ///
    /// An encoder halves the height and width several times. They must be even each time.
    pub fn run(&self, input: ArrayView4<'_, f32>) -> Result<Array4<f32>, RunError> {
        let items = input.axis_iter(Axis(0)).map(|item| self.item(item));
        let items = items.collect::<Result<Vec<_>, _>>()?;
        let (channels, height, width) = match items.first() {
            Some(map) => (map.channels, map.height, map.width),
            None => (0, 0, 0),
        };
        let shape = (items.len(), channels, height, width);
        let mut items = items.into_iter().map(|map| map.values);
        let mut values = items.next().unwrap_or_default();
        values.extend(items.flatten());
        Ok(Array4::from_shape_vec(shape, values).expect("all items have the same shape"))
    }

    fn item(&self, item: ArrayView3<'_, f32>) -> Result<Map, RunError> {
        let (channels, height, width) = item.dim();
        let input = Map {
            channels,
            height,
            width,
            values: item.iter().copied().collect(),
        };
        let mut sweeper = Sweeper {
            name: self.name,
            norm: self.norm,
            weights: self.weights,
            engine: self.engine,
            seamless: self.seamless,
            stop: self.stop,
            moments: HashMap::new(),
            band_values: self.band_values,
        };
        let small = match self.fast {
            true => shrink::shrunken(&input, self.layers),
            false => None,
        };
        let input = Features::of(input);
        match small {
            Some(small) => {
                // Every group norm of this run leaves its moments behind.
                sweeper.run(self.layers, Features::of(small))?;
                self.fast(sweeper, input)
            }
            None => Ok(sweeper.run(self.layers, input)?.map),
        }
    }

    /// Runs the levels with the largest maps in one sweep each, and the other layers exactly.
    fn fast(&self, mut sweeper: Sweeper<'_>, mut x: Features) -> Result<Map, RunError> {
        let layers = self.layers;
        if let Some(last) = layers.iter().rposition(Layer::halves) {
            let (mut levels, exact) = layers.split_at(last + 1);
            while !levels.is_empty() {
                let end = levels.iter().position(Layer::halves);
                let (level, rest) = levels.split_at(end.map_or(levels.len(), |at| at + 1));
                levels = rest;
                // Rows that wrap around and rows of zeros cannot be in one segment.
                let (level, halving) = match self.seamless.y {
                    true => level.split_at(level.len() - 1),
                    false => (level, &level[..0]),
                };
                for chain in [level, halving] {
                    if !chain.is_empty() {
                        x = sweeper.chain(chain, x)?;
                    }
                }
            }
            return Ok(sweeper.run(exact, x)?.map);
        }
        let is_upsampling = |layer: &Layer| matches!(layer, Layer::Upsample { .. });
        let upsamplings: Vec<_> = (0..layers.len())
            .filter(|&i| is_upsampling(&layers[i]))
            .collect();
        // The last two levels have nearly all of the work, and the largest maps.
        let first = upsamplings.len().saturating_sub(FAST_LEVELS);
        let mut cuts = upsamplings[first..].to_vec();
        cuts.push(layers.len());
        x = sweeper.run(&layers[..cuts[0]], x)?;
        for level in cuts.windows(2) {
            x = sweeper.chain(&layers[level[0]..level[1]], x)?;
        }
        Ok(x.map)
    }
}
