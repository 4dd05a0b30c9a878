//! Autoencoders in tiles: pictures that are too large to be decoded or encoded in one call.
//!
//! A group norm needs the mean and the variance of a whole feature map, so a network cannot simply
//! run on parts of its input. Here the network is cut into [segments](segment) that take these
//! moments as inputs. Feature maps stay in memory between segments, and a segment runs on one band
//! of rows after another.
//!
//! - *Exact* tiles cut the network at every group norm. The moments are computed over the whole
//!   map, so the result differs from an untiled call only by rounding.
//! - *Fast* tiles do the same, except at the level with the largest maps, which is the last level of
//!   a decoder and the first level of an encoder. That level runs in one sweep, with moments that
//!   are estimated from a sample of the rows.
//!
//! [segment]: crate::models::vae::segment

mod map;
mod sample;
mod sweep;
#[cfg(test)]
mod tests;
mod tiling;
mod turn;
mod windows;

use std::{collections::HashMap, sync::Arc};

use ndarray::{Array4, ArrayView3, ArrayView4, Axis};
use sd_core::{Seamless, StopToken};

pub use self::tiling::{ParseVaeTilingError, VaeTiling};
use self::{
    map::Map,
    sample::Sample,
    sweep::{Features, Sweeper},
};
pub(crate) use self::{tiling::untiled_bytes, turn::Turn};
use crate::{
    RunError,
    engine::Engine,
    models::{blocks::Norm, vae::Layer},
    weights::Weights,
};

/// The largest number of values in any tensor of a band: 64 MiB in f32. A call holds up to about
/// five such tensors.
pub(crate) const BAND_VALUES: usize = 16 << 20;

/// Returns whether fast tiles of latents of this height are not exact ones, because they estimate
/// moments from a sample.
pub(crate) fn is_sampled(decoder: &[Layer], height: usize) -> bool {
    let last = decoder.iter().rposition(is_upsampling).unwrap_or(0);
    let (exact, level) = decoder.split_at(last);
    let doublings = exact.iter().filter(|layer| is_upsampling(layer)).count();
    Sample::of(level, height << doublings).is_some()
}

fn is_upsampling(layer: &Layer) -> bool {
    matches!(layer, Layer::Upsample { .. })
}

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
            sample: None,
        };
        let x = Features::of(input);
        let x = match self.fast {
            true => self.fast(&mut sweeper, x),
            false => sweeper.run(self.layers, x),
        };
        Ok(x?.map)
    }

    /// Runs the level with the largest maps in one sweep, with moments that are estimated from a
    /// sample, and the other layers exactly.
    fn fast(&self, sweeper: &mut Sweeper<'_>, x: Features) -> Result<Features, RunError> {
        if let Some(last) = self.layers.iter().rposition(is_upsampling) {
            let (exact, level) = self.layers.split_at(last);
            let x = sweeper.run(exact, x)?;
            return self.level(sweeper, level, x);
        }
        if let Some(first) = self.layers.iter().position(Layer::halves) {
            // Rows that wrap around and the row of zeros that is below a halved map cannot be in
            // one segment.
            let end = first + usize::from(!self.seamless.y);
            let (level, exact) = self.layers.split_at(end);
            let x = self.level(sweeper, level, x)?;
            return sweeper.run(exact, x);
        }
        // There is only one level.
        self.level(sweeper, self.layers, x)
    }

    /// Runs the level with the largest maps.
    fn level(
        &self,
        sweeper: &mut Sweeper<'_>,
        level: &[Layer],
        x: Features,
    ) -> Result<Features, RunError> {
        let Some(sample) = Sample::of(level, x.map.height) else {
            return sweeper.run(level, x);
        };
        sweeper.estimate(level, &x.map, sample)?;
        sweeper.chain(level, x)
    }
}
