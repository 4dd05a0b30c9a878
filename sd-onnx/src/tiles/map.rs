//! Feature maps in memory, and the sums over them.

use std::ops::Range;

use crate::models::blocks::Norm;

/// A feature map `[channels, height, width]` of one picture.
#[derive(Debug, Clone)]
pub(super) struct Map {
    pub channels: usize,
    pub height: usize,
    pub width: usize,
    pub values: Vec<f32>,
}

impl Map {
    /// Creates a map of zeros.
    pub fn zeros(channels: usize, height: usize, width: usize) -> Self {
        Self {
            channels,
            height,
            width,
            // The system gives the pages of a large array when they are first written.
            values: vec![0.0; channels * height * width],
        }
    }

    /// Copies rows of all channels into `band` `[channels, rows.len(), width]`. A row below the
    /// last one, or above row 0, is the row at the same distance from the opposite edge.
    pub fn read(&self, rows: Range<isize>, band: &mut Vec<f32>) {
        let height = self.height as isize;
        band.clear();
        band.reserve(self.channels * rows.len() * self.width);
        for channel in self.values.chunks_exact(self.height * self.width) {
            if rows.start >= 0 && rows.end <= height {
                let [start, end] = [rows.start, rows.end].map(|row| row as usize * self.width);
                band.extend_from_slice(&channel[start..end]);
                continue;
            }
            for row in rows.clone() {
                let start = row.rem_euclid(height) as usize * self.width;
                band.extend_from_slice(&channel[start..start + self.width]);
            }
        }
    }

    /// Writes the rows `rows` of all channels from a band that begins at the row `first`, and has
    /// `height` rows.
    pub fn write(&mut self, rows: Range<usize>, band: Band<'_>) {
        let width = self.width;
        let whole = self.height * width;
        for (channel, source) in self.values.chunks_exact_mut(whole).zip(band.channels()) {
            let target = &mut channel[rows.start * width..rows.end * width];
            target.copy_from_slice(band.rows_of(source, rows.clone()));
        }
    }
}

/// Rows of a feature map, `[channels, rows, width]`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Band<'a> {
    pub values: &'a [f32],
    /// The map's row that the band begins with. It may lie above the map.
    pub first: isize,
    pub rows: usize,
    pub width: usize,
}

impl<'a> Band<'a> {
    /// Returns the channels, each `[rows, width]`.
    pub fn channels(&self) -> std::slice::ChunksExact<'a, f32> {
        self.values.chunks_exact(self.rows * self.width)
    }

    /// Returns these rows of the map from a channel of the band.
    pub fn rows_of<'c>(&self, channel: &'c [f32], rows: Range<usize>) -> &'c [f32] {
        let at = |row: usize| (row as isize - self.first) as usize * self.width;
        &channel[at(rows.start)..at(rows.end)]
    }
}

/// The sums over each channel of a feature map, for group norms.
#[derive(Debug, Clone)]
pub(super) struct Sums {
    /// The sum of the values and the sum of their squares.
    channels: Vec<[f64; 2]>,
    /// The number of values in a channel.
    count: usize,
}

/// The mean and the variance of each channel's group.
#[derive(Debug, Clone)]
pub(crate) struct Moments(Vec<[f64; 2]>);

impl Sums {
    pub fn new(channels: usize) -> Self {
        Self {
            channels: vec![[0.0; 2]; channels],
            count: 0,
        }
    }

    /// Adds rows of a band.
    pub fn add(&mut self, rows: Range<usize>, band: Band<'_>) {
        self.count += rows.len() * band.width;
        for (sums, channel) in self.channels.iter_mut().zip(band.channels()) {
            let added = sums_of(band.rows_of(channel, rows.clone()));
            sums[0] += added[0];
            sums[1] += added[1];
        }
    }

    /// Returns the mean and the variance of each group of channels.
    pub fn moments(&self, groups: usize) -> Moments {
        let in_group = self.channels.len() / groups;
        let count = (in_group * self.count) as f64;
        let of_group = |channels: &[[f64; 2]]| {
            let [sum, squares] = [0, 1].map(|i| channels.iter().map(|sums| sums[i]).sum::<f64>());
            let mean = sum / count;
            // Rounding can make the variance of equal values negative.
            let moments = [mean, (squares / count - mean * mean).max(0.0)];
            std::iter::repeat_n(moments, in_group)
        };
        Moments(
            self.channels
                .chunks_exact(in_group)
                .flat_map(of_group)
                .collect(),
        )
    }
}

impl Moments {
    /// Returns the values of a norm's inputs: 1 / σ and −µ / σ.
    pub fn inputs(&self, norm: Norm) -> [Vec<f32>; 2] {
        let factor = |variance: f64| (variance + f64::from(norm.eps)).sqrt().recip();
        let factors = self.0.iter().map(|&[_, variance]| factor(variance) as f32);
        let offsets = self
            .0
            .iter()
            .map(|&[mean, variance]| (-mean * factor(variance)) as f32);
        [factors.collect(), offsets.collect()]
    }
}

/// Returns the sum of the values and the sum of their squares, in double precision.
fn sums_of(values: &[f32]) -> [f64; 2] {
    // Independent sums let the processor add several values at once.
    const LANES: usize = 16;
    let [mut sums, mut squares] = [[0.0_f64; LANES]; 2];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            let value = f64::from(chunk[lane]);
            sums[lane] += value;
            squares[lane] += value * value;
        }
    }
    for &value in rest {
        sums[0] += f64::from(value);
        squares[0] += f64::from(value) * f64::from(value);
    }
    [sums.iter().sum(), squares.iter().sum()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_beyond_an_edge_come_from_the_other_one() {
        let map = Map {
            channels: 2,
            height: 3,
            width: 1,
            values: vec![0.0, 1.0, 2.0, 10.0, 11.0, 12.0],
        };
        let mut band = Vec::new();
        map.read(1..3, &mut band);
        assert_eq!(band, [1.0, 2.0, 11.0, 12.0]);
        map.read(-1..4, &mut band);
        assert_eq!(band[..5], [2.0, 0.0, 1.0, 2.0, 0.0]);
        assert_eq!(band[5..], [12.0, 10.0, 11.0, 12.0, 10.0]);
    }

    #[test]
    fn moments_are_those_of_a_group() {
        let values: Vec<f32> = (0..80).map(|i| (i % 7) as f32).collect();
        let band = Band {
            values: &values,
            first: 0,
            rows: 5,
            width: 4,
        };
        let mut sums = Sums::new(4);
        sums.add(0..2, band);
        sums.add(2..5, band);
        let Moments(found) = sums.moments(2);
        for (group, values) in values.chunks_exact(40).enumerate() {
            let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / 40.0;
            let variance = values.iter().map(|&v| (f64::from(v) - mean).powi(2));
            let variance = variance.sum::<f64>() / 40.0;
            for channel in [2 * group, 2 * group + 1] {
                assert!((found[channel][0] - mean).abs() < 1e-12);
                assert!((found[channel][1] - variance).abs() < 1e-12);
            }
        }
    }
}
