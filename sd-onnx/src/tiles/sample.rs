//! The rows from which fast tiles estimate the moments of group norms.

use std::ops::Range;

use super::map::Map;
use crate::models::vae::{
    Layer,
    segment::{Geometry, Piece, Segment},
};

/// The number of bands in a sample.
const BANDS: usize = 16;

/// The units of a band that count.
const COUNTED: usize = 8;

/// Bands of rows that are spread evenly over a feature map.
///
/// The bands are joined to one low map, through which the layers of a level run. Near the joints
/// the results are wrong, so these rows do not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sample {
    /// The rows of the map in a band.
    band: usize,
    /// The rows at each end of a band that do not count.
    halo: usize,
    /// The rows of the joined map.
    height: usize,
}

impl Sample {
    /// Returns the sample for a level whose input has this height. Returns `None` if the sample
    /// would have more than half of the rows, so that an exact run takes hardly longer, and if the
    /// level has attention, which needs all rows.
    pub fn of(level: &[Layer], height: usize) -> Option<Self> {
        let is_attention = |layer: &Layer| matches!(layer, Layer::Attention { .. });
        if level.iter().any(is_attention) {
            return None;
        }
        let segment = Segment {
            // The rows do not depend on it.
            channels: 1,
            pieces: level.iter().cloned().map(Piece::Whole).collect(),
        };
        let rows = height;
        let Geometry { input, halo, .. } = segment.geometry();
        let halo = halo * input;
        let band = COUNTED * input + 2 * halo;
        let height = BANDS * band;
        (2 * height <= rows).then_some(Self { band, halo, height })
    }

    /// Returns the joined bands of a map.
    pub fn joined(self, map: &Map) -> Map {
        let mut joined = Map::zeros(map.channels, self.height, map.width);
        let rows = map.width;
        let sources = map.values.chunks_exact(map.height * rows);
        let targets = joined.values.chunks_exact_mut(self.height * rows);
        for (target, source) in targets.zip(sources) {
            for (i, band) in target.chunks_exact_mut(self.band * rows).enumerate() {
                // A unit has at most two rows.
                let first = ((map.height - self.band) * i / (BANDS - 1)) & !1;
                band.copy_from_slice(&source[first * rows..(first + self.band) * rows]);
            }
        }
        joined
    }

    /// Returns the parts that count of these rows, of a map of `height` rows that the joined map
    /// was turned into.
    pub fn counted(self, rows: Range<usize>, height: usize) -> impl Iterator<Item = Range<usize>> {
        let scaled = move |rows: usize| rows * height / self.height;
        (0..BANDS).filter_map(move |i| {
            let start = scaled(i * self.band + self.halo).max(rows.start);
            let end = scaled((i + 1) * self.band - self.halo).min(rows.end);
            (start < end).then_some(start..end)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bands_are_spread_from_the_first_row_to_the_last() {
        let sample = Sample {
            band: 6,
            halo: 2,
            height: 6 * BANDS,
        };
        let map = Map {
            channels: 1,
            height: 200,
            width: 1,
            values: (0..200).map(|row| row as f32).collect(),
        };
        let joined = sample.joined(&map).values;
        assert_eq!(joined[..7], [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 12.0]);
        assert_eq!(joined.last(), Some(&199.0));
    }

    #[test]
    fn rows_at_joints_do_not_count() {
        let sample = Sample {
            band: 6,
            halo: 2,
            height: 6 * BANDS,
        };
        let counted: Vec<_> = sample.counted(3..9, 6 * BANDS).collect();
        assert_eq!(counted, [3..4, 8..9]);
        // After an upsampling.
        let mut counted = sample.counted(0..13, 12 * BANDS);
        assert_eq!(counted.next(), Some(4..8));
        assert_eq!(counted.next(), None);
    }
}
