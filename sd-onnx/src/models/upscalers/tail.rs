//! What SwinIR and DAT have in common: the groups of blocks, the convolutions after them, the
//! layers that make the picture, and the windows.

use super::{COLORS, SLOPE, Shapes, check_colors, conv, count, doubled, numbers, shuffle_of};
use crate::{
    Error,
    graph::{Conv, Graph, Value},
};

/// The colors that are subtracted from a picture: the mean of the data set DIV2K.
pub(super) const MEAN: [f32; COLORS] = [0.4488, 0.4371, 0.4040];

/// The epsilon of torch's norms.
pub(super) const EPS: f32 = 1e-5;

/// The value that a mask adds where two elements do not belong together.
pub(super) const OUTSIDE: f32 = -100.0;

/// The slope of torch's `LeakyReLU` where none is given.
const SMALL_SLOPE: f32 = 0.01;

/// The largest side of a window. The pairs of its elements take 8 MiB.
pub(super) const MOST_WINDOW: usize = 32;

/// A residual group of transformer blocks.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Layer {
    pub blocks: usize,
    pub heads: usize,
}

/// The layers that make the picture.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Tail {
    /// Pixel shuffles by these factors, for classical super-resolution.
    Shuffle {
        channels: usize,
        factors: Vec<usize>,
    },
    /// One pixel shuffle, for lightweight networks.
    DirectShuffle(usize),
    /// Doublings by nearest neighbour, for pictures of the real world.
    Doublings { channels: usize, count: usize },
    /// None: the network restores the picture.
    Same,
}

impl Tail {
    /// Recognises the layers.
    pub fn recognise(shapes: &Shapes<'_>) -> Result<Self, String> {
        let has = |name: &str| shapes.contains_key(name);
        if !has("conv_before_upsample.0.weight") {
            if has("upsample.0.weight") {
                let [channels, ..] = conv(shapes, "upsample.0")?;
                return Ok(Self::DirectShuffle(shuffle_of(channels, COLORS)?));
            }
            check_colors(conv(shapes, "conv_last")?[0])?;
            return Ok(Self::Same);
        }
        let [channels, ..] = conv(shapes, "conv_before_upsample.0")?;
        check_colors(conv(shapes, "conv_last")?[0])?;
        if has("conv_up1.weight") {
            let count = numbers(shapes, "conv_up").max().unwrap_or(0);
            return match count {
                1..=3 => Ok(Self::Doublings { channels, count }),
                _ => Err(format!(
                    "a tensor begins with `conv_up{count}`, expected at most 3"
                )),
            };
        }
        // The shuffles between the convolutions have numbers too, but no tensors.
        let factors = (0..count(shapes, "upsample.")?).step_by(2).map(|layer| {
            let [output, ..] = conv(shapes, &format!("upsample.{layer}"))?;
            shuffle_of(output, channels)
        });
        let factors = factors.collect::<Result<_, String>>()?;
        Ok(Self::Shuffle { channels, factors })
    }

    /// Returns the factor between the sides of the input and of the picture.
    pub fn factor(&self) -> usize {
        match self {
            Self::Shuffle { factors, .. } => factors
                .iter()
                .fold(1, |all: usize, &factor| all.saturating_mul(factor)),
            Self::DirectShuffle(factor) => *factor,
            Self::Doublings { count, .. } => 1 << count,
            Self::Same => 1,
        }
    }

    /// Writes the layers after `x`, which has `width` channels. `picture` is the network's input.
    pub fn write(
        &self,
        g: &mut Graph,
        x: Value,
        picture: Value,
        width: usize,
    ) -> Result<Value, Error> {
        match self {
            Self::Same => {
                let x = g.conv2d(x, "conv_last", [width, COLORS], Conv::SAME)?;
                Ok(g.add(x, picture))
            }
            Self::DirectShuffle(factor) => {
                let output = COLORS * factor * factor;
                let x = g.conv2d(x, "upsample.0", [width, output], Conv::SAME)?;
                Ok(g.pixel_shuffle(x, *factor))
            }
            Self::Shuffle { channels, factors } => {
                let channels = *channels;
                let mut x = before_upsample(g, x, [width, channels])?;
                for (index, &factor) in factors.iter().enumerate() {
                    let name = format!("upsample.{}", 2 * index);
                    let output = channels * factor * factor;
                    x = g.conv2d(x, &name, [channels, output], Conv::SAME)?;
                    x = g.pixel_shuffle(x, factor);
                }
                g.conv2d(x, "conv_last", [channels, COLORS], Conv::SAME)
            }
            Self::Doublings { channels, count } => {
                let channels = *channels;
                let mut x = before_upsample(g, x, [width, channels])?;
                for up in 1..=*count {
                    x = doubled(g, x, &format!("conv_up{up}"), channels)?;
                }
                x = g.conv2d(x, "conv_hr", [channels; 2], Conv::SAME)?;
                x = g.leaky_relu(x, SLOPE);
                g.conv2d(x, "conv_last", [channels, COLORS], Conv::SAME)
            }
        }
    }
}

fn before_upsample(g: &mut Graph, x: Value, channels: [usize; 2]) -> Result<Value, Error> {
    let x = g.conv2d(x, "conv_before_upsample.0", channels, Conv::SAME)?;
    Ok(g.leaky_relu(x, SMALL_SLOPE))
}

/// Writes the convolution after a group of blocks, or the three that replace it.
pub(super) fn convs(
    g: &mut Graph,
    x: Value,
    name: &str,
    width: usize,
    are_three: bool,
) -> Result<Value, Error> {
    if !are_three {
        return g.conv2d(x, name, [width; 2], Conv::SAME);
    }
    let narrow = width / 4;
    let x = g.conv2d(x, &format!("{name}.0"), [width, narrow], Conv::SAME)?;
    let x = g.leaky_relu(x, SLOPE);
    let x = g.conv2d(x, &format!("{name}.2"), [narrow; 2], Conv::POINT)?;
    let x = g.leaky_relu(x, SLOPE);
    g.conv2d(x, &format!("{name}.4"), [narrow, width], Conv::SAME)
}

/// Writes the layer norm `name` over the channels of an image.
pub(super) fn normed(
    g: &mut Graph,
    image: Value,
    name: &str,
    width: usize,
) -> Result<Value, Error> {
    let x = g.image_to_sequence(image);
    let x = g.layer_norm(x, name, width, EPS)?;
    Ok(g.sequence_to_image(x, image))
}

/// Returns the index of each pair of positions of a window, height and width, in the table of
/// relative positions.
pub(super) fn relative_positions([high, wide]: [usize; 2]) -> Vec<i64> {
    let places = || (0..high).flat_map(move |y| (0..wide).map(move |x| [y, x]));
    let index = |[y, x]: [usize; 2], [to_y, to_x]: [usize; 2]| {
        ((y + high - 1 - to_y) * (2 * wide - 1) + x + wide - 1 - to_x) as i64
    };
    places()
        .flat_map(|from| places().map(move |to| index(from, to)))
        .collect()
}

/// Returns the region of each element of an image `[height, width]` whose windows are shifted by
/// half their size: elements that the shift brought from the opposite edge are in other regions.
pub(crate) fn regions([height, width]: [usize; 2], [high, wide]: [usize; 2]) -> Vec<f32> {
    let part = |at: usize, length: usize, window: usize| match length - at {
        rest if rest > window => 0,
        rest if rest > window / 2 => 1,
        _ => 2,
    };
    let rows = (0..height).map(|y| 3 * part(y, height, high));
    rows.flat_map(|row| (0..width).map(move |x| (row + part(x, width, wide)) as f32))
        .collect()
}
