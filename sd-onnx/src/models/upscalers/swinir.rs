//! SwinIR: transformer blocks within windows of the picture, every other of which are shifted.
//!
//! Liang et al. 2021, [SwinIR: Image Restoration Using Swin
//! Transformer](https://arxiv.org/abs/2108.10257).

use super::{
    MOST_FACTOR, Network, Shapes, UpscalerConfig, conv, count, length, mapped,
    tail::{EPS, Layer, MEAN, MOST_WINDOW, OUTSIDE, Tail, convs, normed, relative_positions},
    unshuffle_of,
};
use crate::{
    Error,
    graph::{Activation, Conv, Graph, Pairs, Value},
    weights::Mapped,
};

/// The side of the windows of the networks for JPEG pictures. Only these work with colors up to
/// 255.
const JPEG_WINDOW: usize = 7;

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
    tail: Tail,
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
        hidden: length(shapes, &format!("{block}.mlp.fc1.bias"))?,
        window,
        layers: layers(shapes, width)?,
        three_convs: !has("conv_after_body.weight"),
        tail: Tail::recognise(shapes)?,
    };
    let factor = network.tail.factor();
    if !factor.is_multiple_of(unshuffle) || factor > MOST_FACTOR {
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
        windows: vec![[window; 2]],
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
    let window = (2..=MOST_WINDOW).find(|side| (2 * side - 1) * (2 * side - 1) == rows);
    let window = window.ok_or_else(|| {
        let most = 2 * MOST_WINDOW - 1;
        format!(
            "tensor `{table}` has {rows} rows, expected the square of an odd number up to {most}"
        )
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
            let heads = heads.filter(|&heads| heads > 0 && width.is_multiple_of(heads));
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

impl SwinIr {
    /// Writes the network. `picture` and `regions` have sides that are multiples of the window's.
    pub fn write(&self, g: &mut Graph, picture: Value, regions: Value) -> Result<Value, Error> {
        let first = g.conv2d(picture, "conv_first", [self.input, self.width], Conv::SAME)?;
        let mask = g.window_mask(regions, [self.window; 2], OUTSIDE);
        let pairs = g.pairs(&relative_positions([self.window; 2]));
        let mut x = normed(g, first, "patch_embed.norm", self.width)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let before = x;
            for block in 0..layer.blocks {
                let name = format!("layers.{index}.residual_group.blocks.{block}");
                let mask = (block % 2 == 1).then_some(mask);
                x = self.block(g, x, &name, layer.heads, (pairs, mask))?;
            }
            let name = format!("layers.{index}.conv");
            x = convs(g, x, &name, self.width, self.three_convs)?;
            x = g.add(x, before);
        }
        let x = normed(g, x, "norm", self.width)?;
        let x = convs(g, x, "conv_after_body", self.width, self.three_convs)?;
        let x = g.add(x, first);
        self.tail.write(g, x, picture, self.width)
    }

    /// Writes a transformer block. `mask` is given for shifted windows.
    fn block(
        &self,
        g: &mut Graph,
        image: Value,
        name: &str,
        heads: usize,
        (pairs, mask): (Pairs, Option<Value>),
    ) -> Result<Value, Error> {
        let width = self.width;
        let x = g.image_to_sequence(image);
        let normed = g.layer_norm(x, &format!("{name}.norm1"), width, EPS)?;
        let mut h = g.sequence_to_image(normed, image);
        let shift = (self.window / 2) as i64;
        if mask.is_some() {
            h = g.rolled(h, [shift; 2]);
        }
        let (windows, cut) = g.windows(h, [self.window; 2], width);
        let attended = self.attention(g, windows, &format!("{name}.attn"), heads, (pairs, mask))?;
        h = g.joined_windows(attended, cut);
        if mask.is_some() {
            h = g.rolled(h, [-shift; 2]);
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
        (pairs, mask): (Pairs, Option<Value>),
    ) -> Result<Value, Error> {
        let width = self.width;
        let all = g.linear(x, &format!("{name}.qkv"), width, 3 * width)?;
        let table = format!("{name}.relative_position_bias_table");
        let rows = (2 * self.window - 1) * (2 * self.window - 1);
        let table = g.weight(&table, &[rows, heads])?;
        let bias = g.bias_of_heads(table, heads, pairs);
        let biases: Vec<Value> = [Some(bias), mask].into_iter().flatten().collect();
        let scale = ((width / heads) as f32).sqrt().recip();
        let parts = g.parts(all, -1);
        let attended = g.biased_attention(parts, heads, scale, &biases);
        g.linear(attended, &format!("{name}.proj"), width, width)
    }
}
