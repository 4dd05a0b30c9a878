//! Runs the layers of an autoencoder band by band.

use std::{collections::HashMap, ops::Range, sync::Arc};

use sd_core::{Seamless, StopToken};

use super::{
    map::{Band, Map, Moments, Sums},
    sample::Sample,
    windows::windows,
};
use crate::{
    RunError,
    engine::Engine,
    models::{
        blocks::Norm,
        vae::{
            self, Layer,
            segment::{Geometry, KEYS, Piece, RESIDUAL, Segment, VALUES, X},
        },
    },
    network::{Network, NetworkCall},
    session::Input,
    weights::Weights,
};

/// The largest number of pairs of positions in a call of attention: 256 MiB in f32, if the kernel
/// keeps all scores.
const SCORES: usize = 64 << 20;

/// Runs layers over feature maps in memory.
pub(super) struct Sweeper<'a> {
    /// The name of the network in errors.
    pub name: &'static str,
    pub norm: Norm,
    pub weights: &'a Arc<Weights>,
    pub engine: &'a Engine,
    pub seamless: Seamless,
    pub stop: &'a StopToken,
    /// The moments of each group norm that has run, or that is going to run.
    pub moments: HashMap<String, Moments>,
    /// The largest number of values in any tensor of a band.
    pub band_values: usize,
    /// The sample that the maps are made of, if they are not whole.
    pub sample: Option<Sample>,
}

/// A feature map, and the sums over it.
pub(super) struct Features {
    pub map: Map,
    sums: Sums,
    /// An upsampling that is not done yet, because its output needs too much memory. The sums are
    /// those over its output.
    before: Option<Layer>,
}

impl Features {
    /// Wraps the input of a network.
    pub fn of(map: Map) -> Self {
        let band = Band {
            values: &map.values,
            first: 0,
            rows: map.height,
            width: map.width,
        };
        let mut sums = Sums::new(map.channels);
        sums.add(0..map.height, band);
        Self {
            map,
            sums,
            before: None,
        }
    }
}

/// Where the output of a sweep goes.
enum Target<'m> {
    New(&'m mut Map),
    /// Over the input. The output has the same shape.
    Over,
    /// Only the sums are kept.
    Nowhere,
    KeysAndValues(&'m mut [Vec<f32>; 2]),
}

impl Sweeper<'_> {
    /// Runs layers exactly: every group norm gets the moments of the whole map.
    pub fn run(&mut self, layers: &[Layer], mut x: Features) -> Result<Features, RunError> {
        // The largest pair of maps that no order of the sweeps can avoid.
        let least = self.least_values(layers, &x.map);
        let mut waiting = Vec::new();
        for (i, layer) in layers.iter().enumerate() {
            x = match layer {
                Layer::NormSilu { name, .. } => {
                    self.know(name, &x.sums);
                    waiting.push(Piece::Whole(layer.clone()));
                    x
                }
                Layer::Conv { .. } => {
                    let mut pieces = std::mem::take(&mut waiting);
                    pieces.push(Piece::Whole(layer.clone()));
                    self.pieces(pieces, &mut x.map)?
                }
                Layer::Resnet { name, channels } => self.resnet(name, *channels, x)?,
                Layer::Attention { name, channels } => self.attention(name, *channels, x)?,
                Layer::Upsample { .. } => {
                    let pieces = vec![Piece::Whole(layer.clone())];
                    let pixels = 4 * x.map.height * x.map.width;
                    match layers.get(i + 1) {
                        Some(Layer::Resnet { channels, .. })
                            if pixels * (channels[0] + channels[1]) > least =>
                        {
                            let segment = self.segment(pieces, &x.map);
                            x.sums =
                                self.sweep(&segment, &mut x.map, None, Target::Nowhere, &[])?;
                            x.before = Some(layer.clone());
                            x
                        }
                        _ => self.pieces(pieces, &mut x.map)?,
                    }
                }
            };
        }
        Ok(x)
    }

    /// Runs a chain of local layers in one sweep, with [moments](Self::moments) that are known.
    pub fn chain(&self, layers: &[Layer], mut x: Features) -> Result<Features, RunError> {
        let pieces = layers.iter().cloned().map(Piece::Whole).collect();
        self.pieces(pieces, &mut x.map)
    }

    /// Estimates the moments of a level's group norms from a sample of the rows.
    pub fn estimate(&mut self, level: &[Layer], map: &Map, sample: Sample) -> Result<(), RunError> {
        let joined = sample.joined(map);
        let seamless = std::mem::replace(&mut self.seamless.y, false);
        self.sample = Some(sample);
        // The input of a level is not normalised before its first convolution.
        let found = self.run(level, Features::of(joined));
        self.sample = None;
        self.seamless.y = seamless;
        found.map(drop)
    }

    /// Returns the number of values of the two largest maps of equal size that a residual block
    /// needs at once.
    fn least_values(&self, layers: &[Layer], input: &Map) -> usize {
        let (mut pixels, mut least) = (input.height * input.width, 0);
        for layer in layers {
            match layer {
                Layer::Upsample { .. } => pixels *= 4,
                layer if layer.halves() => pixels /= 4,
                Layer::Resnet { channels, .. } if channels[0] == channels[1] => {
                    least = least.max(2 * channels[0] * pixels);
                }
                _ => {}
            }
        }
        least
    }

    /// Remembers the moments of a group norm.
    fn know(&mut self, norm: &str, sums: &Sums) {
        let moments = sums.moments(self.norm.groups);
        self.moments.insert(norm.to_owned(), moments);
    }

    fn segment(&self, pieces: Vec<Piece>, x: &Map) -> Segment {
        Segment {
            channels: x.channels,
            pieces,
        }
    }

    /// Runs pieces into a new map.
    fn pieces(&self, pieces: Vec<Piece>, x: &mut Map) -> Result<Features, RunError> {
        let segment = self.segment(pieces, x);
        let Geometry { input, output, .. } = segment.geometry();
        let side = |side: usize| side * output / input;
        let mut map = Map::zeros(segment.outputs(), side(x.height), side(x.width));
        let sums = self.sweep(&segment, x, None, Target::New(&mut map), &[])?;
        Ok(Features {
            map,
            sums,
            before: None,
        })
    }

    fn resnet(
        &mut self,
        name: &str,
        channels: [usize; 2],
        mut x: Features,
    ) -> Result<Features, RunError> {
        self.know(&format!("{name}.norm1"), &x.sums);
        let name = name.to_owned();
        let mut pieces: Vec<_> = x.before.iter().cloned().map(Piece::Whole).collect();
        pieces.push(Piece::First {
            name: name.clone(),
            channels,
        });
        let mut h = self.pieces(pieces, &mut x.map)?;
        self.know(&format!("{name}.norm2"), &h.sums);
        let second = Piece::Second {
            name,
            channels,
            before: x.before,
        };
        let segment = self.segment(vec![second], &h.map);
        h.sums = self.sweep(&segment, &mut h.map, Some(&x.map), Target::Over, &[])?;
        Ok(h)
    }

    fn attention(
        &mut self,
        name: &str,
        channels: usize,
        mut x: Features,
    ) -> Result<Features, RunError> {
        self.know(&format!("{name}.group_norm"), &x.sums);
        let positions = x.map.height * x.map.width;
        let name = name.to_owned();
        let keys_and_values = Piece::KeysAndValues {
            name: name.clone(),
            channels,
        };
        let segment = self.segment(vec![keys_and_values], &x.map);
        let mut both = [(); 2].map(|()| Vec::with_capacity(channels * positions));
        let target = Target::KeysAndValues(&mut both);
        self.sweep(&segment, &mut x.map, None, target, &[])?;
        let shape = [1, positions, channels];
        let [keys, values] = &both;
        let more = [
            (KEYS, Input::F32(&shape, keys)),
            (VALUES, Input::F32(&shape, values)),
        ];
        let segment = self.segment(vec![Piece::Queries { name, channels }], &x.map);
        x.sums = self.sweep(&segment, &mut x.map, None, Target::Over, &more)?;
        Ok(x)
    }

    /// Runs a segment over all bands of a map, and returns the sums over the output.
    ///
    /// The segment is loaded for the sweep and dropped afterwards.
    fn sweep(
        &self,
        segment: &Segment,
        x: &mut Map,
        residual: Option<&Map>,
        mut target: Target<'_>,
        more: &[(&str, Input<'_>)],
    ) -> Result<Sums, RunError> {
        let geometry = segment.geometry();
        // Bands that wrap around have the rows of the opposite edge in them, so within a band only
        // the columns wrap. A convolution that halves the map has zeros below it in any case.
        let halves = geometry.output < geometry.input;
        let wraps = self.seamless.y && !halves;
        let units = x.height / geometry.input;
        let mut wanted = self.band_values / (geometry.values * x.width);
        if !more.is_empty() {
            wanted = wanted.min(SCORES / (x.height * x.width) / x.width);
        }
        let (size, windows) = windows(units, wanted, geometry.halo, wraps);
        let network = self.network(segment, wraps);
        let norms = self.norm_inputs(segment);
        let mut edges = Edges::new(x, geometry, wraps);
        let mut sums = Sums::new(segment.outputs());
        let [mut band, mut residual_band] = [Vec::new(), Vec::new()];
        for window in windows {
            let rows = window.rows(size, geometry.input);
            x.read(rows.clone(), &mut band);
            if let Target::Over = target {
                edges.restore(rows.clone(), &mut band);
            }
            let shape = [1, x.channels, rows.len(), x.width];
            let mut inputs = vec![(X, Input::F32(&shape, &band))];
            let residual_shape;
            if let Some(residual) = residual {
                let rows = window.rows(size, geometry.residual);
                residual.read(rows.clone(), &mut residual_band);
                residual_shape = [1, residual.channels, rows.len(), residual.width];
                inputs.push((RESIDUAL, Input::F32(&residual_shape, &residual_band)));
            }
            inputs.extend(norms.iter().map(|(name, shape, values)| {
                let input = Input::F32(shape, values);
                (&**name, input)
            }));
            inputs.extend_from_slice(more);
            let kept = window.kept(geometry.output);
            network.run(NetworkCall::new(&inputs), self.stop, |_, values| {
                if let Target::KeysAndValues(both) = &mut target {
                    let columns = segment.outputs() * x.width;
                    let first = window.start as usize;
                    let kept = (kept.start - first) * columns..(kept.end - first) * columns;
                    for (part, values) in both.iter_mut().zip(values.chunks(values.len() / 2)) {
                        part.extend_from_slice(&values[kept.clone()]);
                    }
                    return;
                }
                let band = Band {
                    values,
                    first: window.start * geometry.output as isize,
                    rows: size * geometry.output,
                    width: x.width * geometry.output / geometry.input,
                };
                match self.sample {
                    None => sums.add(kept.clone(), band),
                    Some(sample) => {
                        let height = units * geometry.output;
                        for rows in sample.counted(kept.clone(), height) {
                            sums.add(rows, band);
                        }
                    }
                }
                match &mut target {
                    Target::New(map) => map.write(kept.clone(), band),
                    Target::Over => {
                        edges.keep(kept.clone(), x);
                        x.write(kept.clone(), band);
                    }
                    Target::Nowhere | Target::KeysAndValues(_) => {}
                }
            })?;
        }
        Ok(sums)
    }

    fn network(&self, segment: &Segment, wraps: bool) -> Network {
        let (segment, weights) = (segment.clone(), self.weights.clone());
        let seamless = Seamless {
            y: self.seamless.y && !wraps,
            ..self.seamless
        };
        Network::new(self.name, self.engine, true, move |dialect| {
            vae::segment(&segment, &weights, seamless, dialect.for_few_weights())
        })
    }

    /// Returns the names, shapes and values of the inputs of a segment's group norms.
    fn norm_inputs(&self, segment: &Segment) -> Vec<(String, [usize; 1], Vec<f32>)> {
        let inputs = segment.norms().into_iter().flat_map(|norm| {
            let moments = self.moments.get(&norm.name);
            let moments = moments.expect("the moments of a norm are known before it runs");
            let [factors, offsets] = moments.inputs(self.norm);
            [(norm.factor(), factors), (norm.offset(), offsets)]
                .map(|(name, values)| (name, [norm.channels], values))
        });
        inputs.collect()
    }
}

/// The rows of a map that a sweep over the same map still needs after they were overwritten.
struct Edges {
    /// The number of rows on each side of a band's own rows that its output depends on.
    rows: usize,
    height: usize,
    width: usize,
    /// The last row that was overwritten, plus 1.
    done: usize,
    /// The last rows above `done`, `[channels, rows, width]`.
    above: Vec<f32>,
    /// The first rows of the map, if it wraps around.
    first: Option<Vec<f32>>,
}

impl Edges {
    fn new(map: &Map, geometry: Geometry, wraps: bool) -> Self {
        let rows = (geometry.halo * geometry.input).min(map.height);
        let first = wraps.then(|| {
            let mut first = Vec::new();
            map.read(0..rows as isize, &mut first);
            first
        });
        Self {
            rows,
            height: map.height,
            width: map.width,
            done: 0,
            above: Vec::new(),
            first,
        }
    }

    /// Copies the last of the rows that are about to be overwritten.
    fn keep(&mut self, overwritten: Range<usize>, map: &Map) {
        self.done = overwritten.end;
        let end = self.done as isize;
        map.read(end - self.rows as isize..end, &mut self.above);
    }

    /// Puts the copied rows back into a band of these rows of the map.
    fn restore(&self, rows: Range<isize>, band: &mut [f32]) {
        if self.done == 0 {
            return;
        }
        let count = rows.len();
        let mut put = |at: isize, source: &[f32]| {
            let Some(sources) = self.rows.checked_mul(self.width).filter(|&n| n > 0) else {
                return;
            };
            let targets = band.chunks_exact_mut(count * self.width);
            for (target, source) in targets.zip(source.chunks_exact(sources)) {
                let at = (at - rows.start) as usize;
                let copied = self.rows.min(count - at) * self.width;
                let at = at * self.width;
                target[at..at + copied].copy_from_slice(&source[..copied]);
            }
        };
        put(self.done as isize - self.rows as isize, &self.above);
        if let Some(first) = &self.first
            && rows.end > self.height as isize
        {
            put(self.height as isize, first);
        }
    }
}
