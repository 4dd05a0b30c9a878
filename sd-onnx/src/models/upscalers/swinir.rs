//! SwinIR: transformer blocks within windows of the picture, every other of which are shifted.
//!
//! Liang et al. 2021, [SwinIR: Image Restoration Using Swin
//! Transformer](https://arxiv.org/abs/2108.10257).

use super::{
    COLORS, MOST_FACTOR, Network, SLOPE, Shapes, UpscalerConfig, check_colors, conv, count,
    doubled, mapped, numbers, shuffle_of, unshuffle_of,
};
use crate::{
    Error,
    graph::{Activation, Conv, Graph, Value},
    weights::Mapped,
};

/// The colors that are subtracted from a picture: the mean of the data set DIV2K.
const MEAN: [f32; COLORS] = [0.4488, 0.4371, 0.4040];

/// The side of the windows of the networks for JPEG pictures. Only these work with colors up to 255.
const JPEG_WINDOW: usize = 7;

/// The epsilon of torch's layer norms.
const EPS: f32 = 1e-5;

/// The slope of torch's `LeakyReLU` where none is given.
const SMALL_SLOPE: f32 = 0.01;

/// The value that the mask adds where two elements do not belong together.
const OUTSIDE: f32 = -100.0;

/// The architecture of a SwinIR.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct SwinIr {
    input: usize,
    width: usize,
    /// The width of the layers between the two linear layers of a block.
    hidden: usize,
    window: usize,
    layers: Vec<Layer>,
    /// Whether the convolutions after the blocks are three, the middle one a 1 × 1.
    three_convs: bool,
    end: End,
}

/// A residual group of transformer blocks.
#[derive(Debug, Clone, PartialEq)]
struct Layer {
    blocks: usize,
    heads: usize,
}

/// The layers that make the picture.
#[derive(Debug, Clone, PartialEq)]
enum End {
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

/// Recognises a network by its first transformer block.
pub(super) fn recognise(
    shapes: &Shapes<'_>,
) -> Result<Option<(UpscalerConfig, Vec<Mapped>)>, String> {
    let block = "layers.0.residual_group.blocks.0";
    let has = |name: &str| shapes.contains_key(name);
    let index = format!("{block}.attn.relative_position_index");
    let is_swinir = has(&format!("{block}.norm1.weight"))
        && has(&format!("{block}.mlp.fc1.bias"))
        && has(&format!("{block}.attn.relative_position_bias_table"))
        && !has(&format!("{block}.attn.logit_scale"))
        && (has("conv_first.weight") || has("conv_first.1.weight"));
    if !is_swinir {
        return Ok(None);
    }
    if has("absolute_pos_embed") {
        return Err("SwinIR with an absolute position embedding is not supported".to_owned());
    }
    let tensors = mapped(shapes, |name| name.replace("conv_first.1.", "conv_first."));
    let first = if has("conv_first.weight") {
        "conv_first"
    } else {
        "conv_first.1"
    };
    let [width, input, ..] = conv(shapes, first)?;
    let unshuffle = unshuffle_of(input)?;
    let window = window(shapes, block, &index)?;
    let network = SwinIr {
        input,
        width,
        hidden: vector(shapes, &format!("{block}.mlp.fc1.bias"))?,
        window,
        layers: layers(shapes, width)?,
        three_convs: !has("conv_after_body.weight"),
        end: end(shapes, width)?,
    };
    let factor = network.factor();
    if factor % unshuffle != 0 || factor > MOST_FACTOR {
        return Err(format!(
            "the network enlarges {factor} times after it divided the picture by {unshuffle}, \
             expected a multiple of at most {MOST_FACTOR}"
        ));
    }
    let config = UpscalerConfig {
        unshuffle,
        multiple: window * unshuffle,
        range: if window == JPEG_WINDOW { 255.0 } else { 1.0 },
        mean: MEAN,
        window: Some(window),
        ..UpscalerConfig::plain(factor / unshuffle, Network::SwinIr(network))
    };
    Ok(Some((config, tensors)))
}

/// Returns whether a tensor is computed from the sizes instead of being read.
pub(super) fn is_left_out(name: &str) -> bool {
    name.ends_with(".relative_position_index") || name.ends_with(".attn_mask")
}

/// Returns the side of the windows, from the number of relative positions in them.
fn window(shapes: &Shapes<'_>, block: &str, index: &str) -> Result<usize, String> {
    let table = format!("{block}.attn.relative_position_bias_table");
    let rows = shapes[&*table].first().copied().unwrap_or(0);
    let window = (2..=64).find(|side| (2 * side - 1) * (2 * side - 1) == rows);
    let window = window.ok_or_else(|| {
        format!("tensor `{table}` has {rows} rows, expected the square of an odd number")
    })?;
    // Files without the index have the same windows.
    match shapes.get(index) {
        Some(shape) if **shape != [window * window; 2] => Err(format!(
            "tensor `{index}` has shape {shape:?}, expected {:?}",
            [window * window; 2]
        )),
        _ => Ok(window),
    }
}

fn layers(shapes: &Shapes<'_>, width: usize) -> Result<Vec<Layer>, String> {
    (0..count(shapes, "layers.")?)
        .map(|layer| {
            let blocks = format!("layers.{layer}.residual_group.blocks.");
            let table = format!("{blocks}0.attn.relative_position_bias_table");
            let heads = shapes.get(&*table).and_then(|shape| shape.get(1).copied());
            let heads = heads.filter(|&heads| heads > 0 && width % heads == 0);
            let heads = heads.ok_or_else(|| {
                format!("tensor `{table}` is missing, or its columns do not divide {width}")
            })?;
            Ok(Layer {
                blocks: count(shapes, &blocks)?,
                heads,
            })
        })
        .collect()
}

/// Returns the layers that make the picture.
fn end(shapes: &Shapes<'_>, width: usize) -> Result<End, String> {
    let has = |name: &str| shapes.contains_key(name);
    if !has("conv_before_upsample.0.weight") {
        if has("upsample.0.weight") {
            let [channels, ..] = conv(shapes, "upsample.0")?;
            return Ok(End::DirectShuffle(shuffle_of(channels, COLORS)?));
        }
        check_colors(conv(shapes, "conv_last")?[0])?;
        return Ok(End::Same);
    }
    let [channels, ..] = conv(shapes, "conv_before_upsample.0")?;
    check_colors(conv(shapes, "conv_last")?[0])?;
    if has("conv_up1.weight") {
        let count = numbers(shapes, "conv_up").max().unwrap_or(0);
        return match count {
            1..=3 => Ok(End::Doublings { channels, count }),
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
    let factors: Vec<usize> = factors.collect::<Result<_, String>>()?;
    debug_assert!(width > 0);
    Ok(End::Shuffle { channels, factors })
}

/// Returns the length of a vector.
fn vector(shapes: &Shapes<'_>, name: &str) -> Result<usize, String> {
    match shapes.get(name) {
        Some([length]) if *length > 0 => Ok(*length),
        found => Err(format!(
            "tensor `{name}` has shape {found:?}, expected a vector"
        )),
    }
}

impl SwinIr {
    /// Returns the factor between the sides of the network's input and output.
    fn factor(&self) -> usize {
        match &self.end {
            End::Shuffle { factors, .. } => factors
                .iter()
                .fold(1, |all: usize, &factor| all.saturating_mul(factor)),
            End::DirectShuffle(factor) => *factor,
            End::Doublings { count, .. } => 1 << count,
            End::Same => 1,
        }
    }

    /// Writes the network. `picture` and `regions` have sides that are multiples of the window's.
    pub fn write(&self, g: &mut Graph, picture: Value, regions: Value) -> Result<Value, Error> {
        let first = g.conv2d(picture, "conv_first", [self.input, self.width], Conv::SAME)?;
        let mask = g.window_mask(regions, self.window, OUTSIDE);
        let x = g.image_to_sequence(first);
        let x = g.layer_norm(x, "patch_embed.norm", self.width, EPS)?;
        let mut x = g.sequence_to_image(x, first);
        for (index, layer) in self.layers.iter().enumerate() {
            let before = x;
            for block in 0..layer.blocks {
                let name = format!("layers.{index}.residual_group.blocks.{block}");
                let mask = (block % 2 == 1).then_some(mask);
                x = self.block(g, x, &name, layer.heads, mask)?;
            }
            x = self.convs(g, x, &format!("layers.{index}.conv"))?;
            x = g.add(x, before);
        }
        let normed = g.image_to_sequence(x);
        let normed = g.layer_norm(normed, "norm", self.width, EPS)?;
        let x = g.sequence_to_image(normed, first);
        let x = self.convs(g, x, "conv_after_body")?;
        let x = g.add(x, first);
        self.picture(g, x, picture)
    }

    /// Writes a transformer block. `mask` is given for shifted windows.
    fn block(
        &self,
        g: &mut Graph,
        image: Value,
        name: &str,
        heads: usize,
        mask: Option<Value>,
    ) -> Result<Value, Error> {
        let width = self.width;
        let x = g.image_to_sequence(image);
        let normed = g.layer_norm(x, &format!("{name}.norm1"), width, EPS)?;
        let mut h = g.sequence_to_image(normed, image);
        let shift = (self.window / 2) as i64;
        if mask.is_some() {
            h = g.rolled(h, shift);
        }
        let (windows, sizes) = g.windows(h, [self.window, width]);
        let attended = self.attention(g, windows, &format!("{name}.attn"), heads, mask)?;
        h = g.from_windows(attended, self.window, sizes);
        if mask.is_some() {
            h = g.rolled(h, -shift);
        }
        let h = g.image_to_sequence(h);
        let x = g.add(x, h);
        let h = g.layer_norm(x, &format!("{name}.norm2"), width, EPS)?;
        let h = g.linear(h, &format!("{name}.mlp.fc1"), width, self.hidden)?;
        let h = g.activation(h, Activation::Gelu);
        let h = g.linear(h, &format!("{name}.mlp.fc2"), self.hidden, width)?;
        let x = g.add(x, h);
        Ok(g.sequence_to_image(x, image))
    }

    /// Writes attention within windows, with a bias for each relative position.
    fn attention(
        &self,
        g: &mut Graph,
        x: Value,
        name: &str,
        heads: usize,
        mask: Option<Value>,
    ) -> Result<Value, Error> {
        let width = self.width;
        let all = g.linear(x, &format!("{name}.qkv"), width, 3 * width)?;
        let table = format!("{name}.relative_position_bias_table");
        let rows = (2 * self.window - 1) * (2 * self.window - 1);
        let indices = relative_positions(self.window);
        let length = self.window * self.window;
        let bias = g.bias_of_heads(&table, [rows, heads], &indices, length)?;
        let biases: Vec<Value> = [Some(bias), mask].into_iter().flatten().collect();
        let scale = ((width / heads) as f32).sqrt().recip();
        let parts = g.parts(all);
        let attended = g.biased_attention(parts, heads, scale, &biases);
        g.linear(attended, &format!("{name}.proj"), width, width)
    }

    /// Writes the convolutions after a group of blocks.
    fn convs(&self, g: &mut Graph, x: Value, name: &str) -> Result<Value, Error> {
        let width = self.width;
        if !self.three_convs {
            return g.conv2d(x, name, [width; 2], Conv::SAME);
        }
        let narrow = width / 4;
        let x = g.conv2d(x, &format!("{name}.0"), [width, narrow], Conv::SAME)?;
        let x = g.leaky_relu(x, SLOPE);
        let x = g.conv2d(x, &format!("{name}.2"), [narrow; 2], Conv::POINT)?;
        let x = g.leaky_relu(x, SLOPE);
        g.conv2d(x, &format!("{name}.4"), [narrow, width], Conv::SAME)
    }

    /// Writes the layers that make the picture.
    fn picture(&self, g: &mut Graph, x: Value, picture: Value) -> Result<Value, Error> {
        let width = self.width;
        match &self.end {
            End::Same => {
                let x = g.conv2d(x, "conv_last", [width, COLORS], Conv::SAME)?;
                Ok(g.add(x, picture))
            }
            End::DirectShuffle(factor) => {
                let output = COLORS * factor * factor;
                let x = g.conv2d(x, "upsample.0", [width, output], Conv::SAME)?;
                Ok(g.pixel_shuffle(x, *factor))
            }
            End::Shuffle { channels, factors } => {
                let channels = *channels;
                let mut x = Self::before_upsample(g, x, [width, channels])?;
                for (index, &factor) in factors.iter().enumerate() {
                    let name = format!("upsample.{}", 2 * index);
                    let output = channels * factor * factor;
                    x = g.conv2d(x, &name, [channels, output], Conv::SAME)?;
                    x = g.pixel_shuffle(x, factor);
                }
                g.conv2d(x, "conv_last", [channels, COLORS], Conv::SAME)
            }
            End::Doublings { channels, count } => {
                let channels = *channels;
                let mut x = Self::before_upsample(g, x, [width, channels])?;
                for up in 1..=*count {
                    x = doubled(g, x, &format!("conv_up{up}"), channels)?;
                }
                x = g.conv2d(x, "conv_hr", [channels; 2], Conv::SAME)?;
                x = g.leaky_relu(x, SLOPE);
                g.conv2d(x, "conv_last", [channels, COLORS], Conv::SAME)
            }
        }
    }

    fn before_upsample(g: &mut Graph, x: Value, channels: [usize; 2]) -> Result<Value, Error> {
        let x = g.conv2d(x, "conv_before_upsample.0", channels, Conv::SAME)?;
        Ok(g.leaky_relu(x, SMALL_SLOPE))
    }
}

/// Returns the index of each pair of positions in the table of relative positions.
fn relative_positions(side: usize) -> Vec<i64> {
    let places = || (0..side).flat_map(|y| (0..side).map(move |x| [y, x]));
    let index = |[y, x]: [usize; 2], [to_y, to_x]: [usize; 2]| {
        let [down, across] = [(y, to_y), (x, to_x)].map(|(at, to)| at + side - 1 - to);
        (down * (2 * side - 1) + across) as i64
    };
    places()
        .flat_map(|from| places().map(move |to| index(from, to)))
        .collect()
}

/// Returns the region of each element of an image `[height, width]` whose windows are shifted:
/// elements that the shift brought from the opposite edge are in other regions.
pub(crate) fn regions(height: usize, width: usize, window: usize) -> Vec<f32> {
    let part = |at: usize, length: usize| match length - at {
        rest if rest > window => 0,
        rest if rest > window / 2 => 1,
        _ => 2,
    };
    let rows = (0..height).map(|y| 3 * part(y, height));
    rows.flat_map(|row| (0..width).map(move |x| (row + part(x, width)) as f32))
        .collect()
}
