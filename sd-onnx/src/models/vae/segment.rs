//! Parts of an autoencoder that run on a band of rows, for [tiles](crate::tiles).
//!
//! A group norm needs the mean and the variance of a whole feature map. So a segment takes them as
//! inputs, and everything else in it is local: a row of the output depends on a few rows of the
//! input.

use crate::{
    Error,
    graph::{Activation, Conv, Dim, Graph, Model, Value},
    models::{
        blocks::image_dims,
        vae::kl::{Layer, upsample},
    },
};

/// The names of a segment's inputs: the feature map, the input of the resnet that a segment ends,
/// and the keys and values of attention.
pub(crate) const X: &str = "x";
pub(crate) const RESIDUAL: &str = "residual";
pub(crate) const KEYS: &str = "keys";
pub(crate) const VALUES: &str = "values";
/// The name of a segment's only output.
const OUTPUT: &str = "y";

/// A part of a network that runs on a band of rows.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Segment {
    /// The channels of the input [`X`].
    pub channels: usize,
    /// The pieces, in the order in which they run. At least one.
    pub pieces: Vec<Piece>,
}

/// A piece of a segment.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Piece {
    /// A whole layer, except attention, which is not local.
    Whole(Layer),
    /// The first half of a resnet: norm, SiLU, convolution.
    First { name: String, channels: [usize; 2] },
    /// The second half of a resnet: norm, SiLU, convolution, plus the input of the resnet. That is
    /// the input [`RESIDUAL`] after the layer `before`, which is an upsampling.
    Second {
        name: String,
        channels: [usize; 2],
        before: Option<Layer>,
    },
    /// The keys of attention, followed by its values: `[batch, 2·h·w, channels]`.
    KeysAndValues { name: String, channels: usize },
    /// Attention from the positions of the band to the inputs [`KEYS`] and [`VALUES`],
    /// `[batch, positions, channels]`.
    Queries { name: String, channels: usize },
}

/// The rows of a segment's input and output.
///
/// A *unit* is the smallest number of rows that a band can be moved by, so that it has whole rows
/// at every resolution in the segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// The rows of the input [`X`] in a unit.
    pub input: usize,
    /// The rows of the input [`RESIDUAL`] in a unit.
    pub residual: usize,
    /// The rows of the output in a unit.
    pub output: usize,
    /// The units at each end of a band whose output is wrong, because it depends on rows outside
    /// of the band.
    pub halo: usize,
    /// The largest number of values in a unit of any tensor, for an input with one column.
    pub values: usize,
}

/// The name and the channels of a group norm, whose numbers are inputs of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NormInput {
    pub name: String,
    pub channels: usize,
}

impl NormInput {
    fn new(name: String, channels: usize) -> Self {
        Self { name, channels }
    }

    /// The name of the input `[channels]` that the values are multiplied by: 1 / σ.
    pub fn factor(&self) -> String {
        format!("{}.factor", self.name)
    }

    /// The name of the input `[channels]` that is added afterwards: −µ / σ.
    pub fn offset(&self) -> String {
        format!("{}.offset", self.name)
    }
}

impl Layer {
    /// Returns the group norms of the layer.
    pub fn norms(&self) -> Vec<NormInput> {
        match self {
            Self::Conv { .. } | Self::Upsample { .. } => Vec::new(),
            Self::Resnet { name, channels } => vec![norm1(name, channels), norm2(name, channels)],
            Self::Attention { name, channels } => {
                vec![NormInput::new(format!("{name}.group_norm"), *channels)]
            }
            Self::NormSilu { name, channels } => vec![NormInput::new(name.clone(), *channels)],
        }
    }

    /// Returns the channels of the layer's output.
    pub fn outputs(&self) -> usize {
        match self {
            Self::Conv { channels, .. } | Self::Resnet { channels, .. } => channels[1],
            Self::Attention { channels, .. }
            | Self::Upsample { channels, .. }
            | Self::NormSilu { channels, .. } => *channels,
        }
    }

    /// Returns whether the layer halves the height and width.
    pub fn halves(&self) -> bool {
        matches!(self, Self::Conv { conv, .. } if conv.stride == 2)
    }
}

fn norm1(resnet: &str, [input, _]: &[usize; 2]) -> NormInput {
    NormInput::new(format!("{resnet}.norm1"), *input)
}

fn norm2(resnet: &str, [_, output]: &[usize; 2]) -> NormInput {
    NormInput::new(format!("{resnet}.norm2"), *output)
}

impl Segment {
    /// Returns the group norms whose numbers are inputs.
    pub fn norms(&self) -> Vec<NormInput> {
        let of = |piece: &Piece| match piece {
            Piece::Whole(layer) => layer.norms(),
            Piece::First { name, channels } => vec![norm1(name, channels)],
            Piece::Second { name, channels, .. } => vec![norm2(name, channels)],
            Piece::KeysAndValues { name, channels } | Piece::Queries { name, channels } => {
                let layer = Layer::Attention {
                    name: name.clone(),
                    channels: *channels,
                };
                layer.norms()
            }
        };
        self.pieces.iter().flat_map(of).collect()
    }

    /// Returns the channels of the output.
    pub fn outputs(&self) -> usize {
        match self.pieces.last().expect("a segment has pieces") {
            Piece::Whole(layer) => layer.outputs(),
            Piece::First { channels, .. } | Piece::Second { channels, .. } => channels[1],
            Piece::KeysAndValues { channels, .. } | Piece::Queries { channels, .. } => *channels,
        }
    }

    /// Returns the rows of the inputs and the output.
    pub fn geometry(&self) -> Geometry {
        // Where the rows double or halve, relative to the input.
        let mut doubled = 0_i32;
        let mut least = 0;
        for piece in &self.pieces {
            match piece {
                Piece::Whole(Layer::Upsample { .. }) => doubled += 1,
                Piece::Whole(layer) if layer.halves() => doubled -= 1,
                Piece::Second {
                    before: Some(_), ..
                } => least = least.min(doubled - 1),
                _ => {}
            }
            least = least.min(doubled);
        }
        let input = 1 << -least;
        let (mut rows, mut columns) = (input, input);
        // The rows at the top and at the bottom that depend on rows outside of the band.
        let [mut top, mut bottom] = [0_usize; 2];
        let mut residual = 0;
        let mut values = self.channels * rows * columns;
        for piece in &self.pieces {
            let channels = match piece {
                Piece::Whole(layer) => match layer {
                    Layer::Conv { channels, conv, .. } => {
                        if conv.stride == 2 {
                            // Output row i reads the rows 2i to 2i + 2.
                            top = top.div_ceil(2);
                            bottom = bottom / 2 + 1;
                            rows /= 2;
                            columns /= 2;
                        } else {
                            top += conv.padding[0];
                            bottom += conv.padding[1];
                        }
                        channels[1]
                    }
                    Layer::Resnet { channels, .. } => {
                        top += 2;
                        bottom += 2;
                        channels[0].max(channels[1])
                    }
                    Layer::Upsample { channels, .. } => {
                        top = 2 * top + 1;
                        bottom = 2 * bottom + 1;
                        rows *= 2;
                        columns *= 2;
                        *channels
                    }
                    Layer::Attention { channels, .. } | Layer::NormSilu { channels, .. } => {
                        *channels
                    }
                },
                Piece::First { channels, .. } => {
                    top += 1;
                    bottom += 1;
                    channels[0].max(channels[1])
                }
                Piece::Second {
                    channels, before, ..
                } => {
                    top += 1;
                    bottom += 1;
                    residual = if before.is_some() { rows / 2 } else { rows };
                    channels[0].max(channels[1])
                }
                Piece::KeysAndValues { channels, .. } => 2 * channels,
                Piece::Queries { channels, .. } => *channels,
            };
            values = values.max(channels * rows * columns);
        }
        Geometry {
            input,
            residual,
            output: rows,
            halo: top.max(bottom).div_ceil(rows),
            values: values / input,
        }
    }
}

/// Writes a segment. The input [`X`] is `[batch, channels, rows, width]`.
///
/// The epsilon of the norms is in their factors already.
pub(super) fn write(segment: &Segment, mut g: Graph<'_>) -> Result<Model, Error> {
    let mut x = g.input(X, &image_dims(segment.channels));
    let mut is_image = true;
    for piece in &segment.pieces {
        x = match piece {
            Piece::Whole(layer) => whole(&mut g, layer, x)?,
            Piece::First { name, channels } => {
                let h = norm_silu(&mut g, &norm1(name, channels), x)?;
                g.conv2d(h, &format!("{name}.conv1"), *channels, Conv::SAME)?
            }
            Piece::Second {
                name,
                channels,
                before,
            } => {
                let dims = image_dims(channels[0]).map(|dim| match dim {
                    // The residual may have other sizes, because it is not yet upsampled.
                    Dim::Any(_) => Dim::Free,
                    dim => dim,
                });
                let mut residual = g.input(RESIDUAL, &dims);
                if let Some(layer) = before {
                    residual = whole(&mut g, layer, residual)?;
                }
                second_half(&mut g, name, x, residual, *channels)?
            }
            Piece::KeysAndValues { name, channels } => {
                is_image = false;
                let x = sequence(&mut g, name, x, *channels)?;
                let k = g.linear(x, &format!("{name}.to_k"), *channels, *channels)?;
                let v = g.linear(x, &format!("{name}.to_v"), *channels, *channels)?;
                g.concat(&[k, v], 1)
            }
            Piece::Queries { name, channels } => {
                let channels = *channels;
                let dims = [
                    Dim::Any("batch"),
                    Dim::Any("positions"),
                    Dim::Fixed(channels),
                ];
                let [k, v] = [KEYS, VALUES].map(|input| g.input(input, &dims));
                let queries = sequence(&mut g, name, x, channels)?;
                let q = g.linear(queries, &format!("{name}.to_q"), channels, channels)?;
                let attended = g.attention([q, k, v], [channels, 1], false);
                let out = g.linear(attended, &format!("{name}.to_out.0"), channels, channels)?;
                let out = g.sequence_to_image(out, x);
                g.add(out, x)
            }
        };
    }
    let dims: &[Dim] = match is_image {
        true => &[
            Dim::Free,
            Dim::Fixed(segment.outputs()),
            Dim::Free,
            Dim::Free,
        ],
        false => &[Dim::Free, Dim::Free, Dim::Fixed(segment.outputs())],
    };
    g.output(OUTPUT, x, dims);
    g.finish()
}

fn whole(g: &mut Graph, layer: &Layer, x: Value) -> Result<Value, Error> {
    match layer {
        Layer::Conv {
            name,
            channels,
            conv,
        } => g.conv2d(x, name, *channels, *conv),
        Layer::Resnet { name, channels } => {
            let h = norm_silu(g, &norm1(name, channels), x)?;
            let h = g.conv2d(h, &format!("{name}.conv1"), *channels, Conv::SAME)?;
            second_half(g, name, h, x, *channels)
        }
        Layer::Upsample { name, channels } => upsample(g, name, x, *channels),
        Layer::NormSilu { .. } => norm_silu(g, &layer.norms()[0], x),
        Layer::Attention { name, .. } => unreachable!("attention `{name}` has its own pieces"),
    }
}

/// Writes norm, SiLU and convolution, plus the input of the resnet, which goes through a 1 × 1
/// convolution if the channel counts differ.
fn second_half(
    g: &mut Graph,
    name: &str,
    h: Value,
    residual: Value,
    [input, output]: [usize; 2],
) -> Result<Value, Error> {
    let h = norm_silu(g, &norm2(name, &[input, output]), h)?;
    let h = g.conv2d(h, &format!("{name}.conv2"), [output; 2], Conv::SAME)?;
    let residual = match input == output {
        true => residual,
        false => {
            let shortcut = format!("{name}.conv_shortcut");
            g.conv2d(residual, &shortcut, [input, output], Conv::POINT)?
        }
    };
    Ok(g.add(residual, h))
}

/// Writes the normalised positions of an image, `[batch, h·w, channels]`.
fn sequence(g: &mut Graph, name: &str, x: Value, channels: usize) -> Result<Value, Error> {
    let input = NormInput::new(format!("{name}.group_norm"), channels);
    let x = normed(g, &input, x)?;
    Ok(g.image_to_sequence(x))
}

fn norm_silu(g: &mut Graph, norm: &NormInput, x: Value) -> Result<Value, Error> {
    let x = normed(g, norm, x)?;
    Ok(g.activation(x, Activation::Silu))
}

/// Writes a group norm whose mean and variance are inputs.
fn normed(g: &mut Graph, norm: &NormInput, x: Value) -> Result<Value, Error> {
    let channels = norm.channels;
    let weight = g.weight(&format!("{}.weight", norm.name), &[channels])?;
    let bias = g.weight(&format!("{}.bias", norm.name), &[channels])?;
    let dims = [Dim::Fixed(channels)];
    let [factor, offset] = [norm.factor(), norm.offset()].map(|name| g.input(&name, &dims));
    let scale = g.mul(weight, factor);
    let shift = g.mul(weight, offset);
    let shift = g.add(shift, bias);
    let per_channel = g.dims(&[channels as i64, 1, 1]);
    let [scale, shift] = [scale, shift].map(|numbers| g.reshape(numbers, per_channel));
    let x = g.mul(x, scale);
    Ok(g.add(x, shift))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resnet() -> Layer {
        Layer::Resnet {
            name: "r".to_owned(),
            channels: [8, 4],
        }
    }

    fn up() -> Layer {
        Layer::Upsample {
            name: "u".to_owned(),
            channels: 8,
        }
    }

    fn down() -> Layer {
        Layer::Conv {
            name: "d".to_owned(),
            channels: [4, 4],
            conv: Conv {
                kernel: 3,
                stride: 2,
                padding: [0, 1],
            },
        }
    }

    fn geometry(pieces: Vec<Piece>) -> Geometry {
        let channels = 8;
        Segment { channels, pieces }.geometry()
    }

    #[test]
    fn a_unit_has_whole_rows_at_every_resolution() {
        // The upsampling and its convolution: 1 row; the resnets: 2 rows each.
        let decoder = [up(), resnet(), resnet()].map(Piece::Whole);
        let expected = Geometry {
            input: 1,
            residual: 0,
            output: 2,
            halo: 3,
            values: 8 * 4,
        };
        assert_eq!(geometry(decoder.into()), expected);
        let encoder = [resnet(), down()].map(Piece::Whole);
        let expected = Geometry {
            input: 2,
            residual: 0,
            output: 1,
            halo: 2,
            values: 8 * 2,
        };
        assert_eq!(geometry(encoder.into()), expected);
    }

    #[test]
    fn a_residual_that_is_upsampled_has_half_of_the_rows() {
        let second = Piece::Second {
            name: "r".to_owned(),
            channels: [8, 4],
            before: Some(up()),
        };
        let expected = Geometry {
            input: 2,
            residual: 1,
            output: 2,
            halo: 1,
            values: 8 * 2,
        };
        assert_eq!(geometry(vec![second]), expected);
    }
}
