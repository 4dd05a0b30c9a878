//! DAT: transformer blocks that attend by turns to places in windows and to channels.
//!
//! Chen et al. 2023, [Dual Aggregation Transformer for Image
//! Super-Resolution](https://arxiv.org/abs/2308.03364).

use super::{
    COLORS, MOST_FACTOR, Network, Shapes, UpscalerConfig, conv, count, length, mapped,
    tail::{EPS, Layer, MEAN, MOST_WINDOW, OUTSIDE, Tail, convs, normed, relative_positions},
};
use crate::{
    Error,
    graph::{Activation, Conv, Graph, Pairs, Value},
    weights::Mapped,
};

/// The tensor with the relative positions in the first windows.
const POSITIONS: &str = "layers.0.blocks.0.attn.attns.0.rpe_biases";

/// The architecture of a DAT.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Dat {
    width: usize,
    /// The width of the layers between the two linear layers of a block.
    hidden: usize,
    /// The height and width of the windows for one half of the channels. The other half has windows
    /// of that width and height. The width is a multiple of the height, so that both fit in
    /// pictures whose sides are multiples of the width.
    window: [usize; 2],
    /// The width of the network that makes the biases of relative positions.
    positions: usize,
    layers: Vec<Layer>,
    qkv_bias: bool,
    /// Whether the convolutions after the blocks are three, the middle one a 1 × 1.
    three_convs: bool,
    tail: Tail,
}

/// Recognises a network by its first transformer block.
pub(super) fn recognise(
    shapes: &Shapes<'_>,
) -> Result<Option<(UpscalerConfig, Vec<Mapped>)>, String> {
    let has = |name: &str| shapes.contains_key(name);
    let block = "layers.0.blocks.0";
    let is_dat = has("conv_first.weight")
        && has("before_RG.1.weight")
        && has(&format!("{block}.ffn.sg.conv.weight"))
        && has(&format!("{block}.attn.channel_interaction.1.weight"))
        && has(POSITIONS);
    if !is_dat {
        return Ok(None);
    }
    let [width, input, ..] = conv(shapes, "conv_first")?;
    if input != COLORS {
        return Err(format!(
            "the network takes {input} channels, expected {COLORS}"
        ));
    }
    if width < 16 {
        return Err(format!("the network is {width} wide, expected at least 16"));
    }
    let projection = format!("{block}.attn.attns.0.pos.pos_proj.bias");
    let network = Dat {
        width,
        hidden: length(shapes, &format!("{block}.ffn.fc1.bias"))?,
        window: window(shapes)?,
        positions: length(shapes, &projection)?,
        layers: layers(shapes, width)?,
        qkv_bias: has(&format!("{block}.attn.qkv.bias")),
        three_convs: !has("conv_after_body.weight"),
        tail: Tail::recognise(shapes)?,
    };
    let factor = network.tail.factor();
    if factor > MOST_FACTOR || network.tail == Tail::Same || !network.hidden.is_multiple_of(2) {
        return Err(format!(
            "the network enlarges {factor} times and has layers of {}, expected a pixel shuffle by \
             at most {MOST_FACTOR} and an even number",
            network.hidden
        ));
    }
    let [high, wide] = network.window;
    let config = UpscalerConfig {
        mean: MEAN,
        windows: vec![[high, wide], [wide, high]],
        ..UpscalerConfig::plain(factor, Network::Dat(network))
    };
    Ok(Some((config, mapped(shapes, str::to_owned))))
}

/// Returns whether a tensor is computed from the sizes instead of being read, or was only used in
/// training.
pub(super) fn is_left_out(name: &str) -> bool {
    let ends = [
        ".relative_position_index",
        ".rpe_biases",
        ".attn_mask_0",
        ".attn_mask_1",
        ".num_batches_tracked",
    ];
    ends.iter().any(|end| name.ends_with(end))
}

/// Returns the height and width of the first windows. The file has the number of their elements and
/// the number of relative positions in them. In all published files they are at least as wide as
/// high, which [`Dat::assumed`] lets the caller check.
fn window(shapes: &Shapes<'_>) -> Result<[usize; 2], String> {
    let index = POSITIONS.replace("rpe_biases", "relative_position_index");
    let first = |name: &str| shapes.get(name).and_then(|shape| shape.first().copied());
    let [rows, length] = [first(POSITIONS), first(&index)];
    let found = rows.zip(length).and_then(|(rows, length)| {
        let sides = (1..=MOST_WINDOW).map(|high| [high, length / high]);
        let usable = |[high, wide]: &[usize; 2]| (2.max(*high)..=MOST_WINDOW).contains(wide);
        let fits = |[high, wide]: &[usize; 2]| {
            high * wide == length && (2 * high - 1) * (2 * wide - 1) == rows
        };
        sides.filter(usable).find(fits)
    });
    let [high, wide] = found.ok_or_else(|| {
        let [rows, length] = [rows, length].map(Option::unwrap_or_default);
        format!(
            "tensors `{POSITIONS}` and `{index}` have {rows} and {length} rows, expected those of \
             windows of up to {MOST_WINDOW} × {MOST_WINDOW}"
        )
    })?;
    match wide.is_multiple_of(high) {
        true => Ok([high, wide]),
        false => Err(format!(
            "the windows have the sides {high} and {wide}, expected one to be a multiple of the \
             other"
        )),
    }
}

fn layers(shapes: &Shapes<'_>, width: usize) -> Result<Vec<Layer>, String> {
    (0..count(shapes, "layers.")?)
        .map(|layer| {
            let blocks = format!("layers.{layer}.blocks.");
            let heads = match shapes.get(format!("{blocks}1.attn.temperature").as_str()) {
                Some(shape) => shape.first().copied(),
                // A group of one block has no attention to channels.
                None => {
                    let last = format!("{blocks}0.attn.attns.0.pos.pos3.2.bias");
                    length(shapes, &last)?.checked_mul(2)
                }
            };
            let fits = |heads: &usize| {
                *heads > 0 && heads.is_multiple_of(2) && width.is_multiple_of(*heads)
            };
            let heads = heads.filter(fits).ok_or_else(|| {
                let heads = heads.unwrap_or(0);
                format!("`layers.{layer}` has {heads} heads, expected an even divisor of {width}")
            })?;
            Ok(Layer {
                blocks: count(shapes, &blocks)?,
                heads,
            })
        })
        .collect()
}

impl Dat {
    /// Returns the tensor with the relative positions in a window, and its values.
    pub fn assumed(&self) -> (String, Vec<f32>) {
        (POSITIONS.to_owned(), positions(self.window))
    }

    /// Writes the network. `regions` has two channels, for the windows of both halves.
    pub fn write(&self, g: &mut Graph, picture: Value, regions: Value) -> Result<Value, Error> {
        let width = self.width;
        let first = g.conv2d(picture, "conv_first", [COLORS, width], Conv::SAME)?;
        let regions: [Value; 2] = g.parts(regions, 1);
        let masks = [0, 1].map(|half| g.window_mask(regions[half], self.window_of(half), OUTSIDE));
        let pairs = [0, 1].map(|half| g.pairs(&relative_positions(self.window_of(half))));
        let mut x = normed(g, first, "before_RG.1", width)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let before = x;
            for block in 0..layer.blocks {
                let name = format!("layers.{index}.blocks.{block}");
                let is_shifted = match index % 2 {
                    0 => block > 0 && block % 4 == 2,
                    _ => block % 4 == 0,
                };
                let h = normed(g, x, &format!("{name}.norm1"), width)?;
                let name_of = format!("{name}.attn");
                let h = match block % 2 {
                    0 => {
                        let masks = is_shifted.then_some(masks);
                        self.spatial(g, h, &name_of, layer.heads, pairs, masks)?
                    }
                    _ => self.channels(g, h, &name_of, layer.heads)?,
                };
                x = g.add(x, h);
                let h = self.feed_forward(g, x, &name)?;
                x = g.add(x, h);
            }
            let name = format!("layers.{index}.conv");
            x = convs(g, x, &name, width, self.three_convs)?;
            x = g.add(x, before);
        }
        let x = normed(g, x, "norm", width)?;
        let x = convs(g, x, "conv_after_body", width, self.three_convs)?;
        let x = g.add(x, first);
        self.tail.write(g, x, picture, width)
    }

    /// Returns the height and width of the windows of a half of the channels.
    fn window_of(&self, half: usize) -> [usize; 2] {
        let [high, wide] = self.window;
        if half == 0 {
            [high, wide]
        } else {
            [wide, high]
        }
    }

    /// Writes attention between the places in a window. `masks` are given for shifted windows.
    fn spatial(
        &self,
        g: &mut Graph,
        image: Value,
        name: &str,
        heads: usize,
        pairs: [Pairs; 2],
        masks: Option<[Value; 2]>,
    ) -> Result<Value, Error> {
        let all = self.qkv(g, image, name)?;
        let [_, _, values]: [Value; 3] = g.parts(all, 1);
        let padded = g.zeros_after(all, self.window[0].max(self.window[1]));
        let [q, q2, k, k2, v, v2]: [Value; 6] = g.parts(padded, 1);
        let mut halves = Vec::with_capacity(2);
        for (half, parts) in [[q, k, v], [q2, k2, v2]].into_iter().enumerate() {
            let mask = masks.map(|masks| masks[half]);
            let window = self.window_of(half);
            let name = format!("{name}.attns.{half}");
            let bias = self.position_bias(g, window, &name, heads / 2, pairs[half])?;
            let attended = self.in_windows(g, parts, window, heads / 2, bias, mask);
            halves.push(g.cut_to(attended, image));
        }
        let attended = g.concat(&halves, 1);
        let local = self.local(g, values, name)?;
        let channel_map = self.channel_map(g, local, name)?;
        let spatial_map = self.spatial_map(g, attended, name)?;
        let attended = g.mul(attended, channel_map);
        let local = g.mul(local, spatial_map);
        self.joined(g, attended, local, name)
    }

    /// Writes attention within the windows of a half of the channels. `bias` is added for each pair
    /// of places.
    fn in_windows(
        &self,
        g: &mut Graph,
        parts: [Value; 3],
        window: [usize; 2],
        heads: usize,
        bias: Value,
        mask: Option<Value>,
    ) -> Value {
        let width = self.width / 2;
        let shifts = window.map(|side| (side / 2) as i64);
        let mut cut = None;
        let parts = parts.map(|x| {
            let x = match mask {
                Some(_) => g.rolled(x, shifts),
                None => x,
            };
            let (x, of_part) = g.windows(x, window, width);
            cut = Some(of_part);
            x
        });
        let biases: Vec<Value> = [Some(bias), mask].into_iter().flatten().collect();
        let scale = ((width / heads) as f32).sqrt().recip();
        let attended = g.biased_attention(parts, heads, scale, &biases);
        let attended = g.joined_windows(attended, cut.expect("three parts were cut"));
        match mask {
            Some(_) => g.rolled(attended, shifts.map(|shift| -shift)),
            None => attended,
        }
    }

    /// Writes the small network that makes the bias of each relative position.
    fn position_bias(
        &self,
        g: &mut Graph,
        window: [usize; 2],
        name: &str,
        heads: usize,
        pairs: Pairs,
    ) -> Result<Value, Error> {
        let width = self.positions;
        let places = positions(window);
        let places = g.constant(&places, &[places.len() / 2, 2]);
        let mut x = g.linear(places, &format!("{name}.pos.pos_proj"), 2, width)?;
        for (layer, output) in [("pos1", width), ("pos2", width), ("pos3", heads)] {
            x = g.layer_norm(x, &format!("{name}.pos.{layer}.0"), width, EPS)?;
            x = g.relu(x);
            x = g.linear(x, &format!("{name}.pos.{layer}.2"), width, output)?;
        }
        Ok(g.bias_of_heads(x, heads, pairs))
    }

    /// Writes attention between channels.
    fn channels(
        &self,
        g: &mut Graph,
        image: Value,
        name: &str,
        heads: usize,
    ) -> Result<Value, Error> {
        let all = self.qkv(g, image, name)?;
        let [q, k, v]: [Value; 3] = g.parts(all, 1);
        let temperature = format!("{name}.temperature");
        let attended = g.channel_attention([q, k, v], [self.width, heads], &temperature)?;
        let local = self.local(g, v, name)?;
        let channel_map = self.channel_map(g, attended, name)?;
        let spatial_map = self.spatial_map(g, local, name)?;
        let attended = g.mul(attended, spatial_map);
        let local = g.mul(local, channel_map);
        self.joined(g, attended, local, name)
    }

    /// Writes the linear layer that makes queries, keys and values, as an image of all three.
    fn qkv(&self, g: &mut Graph, image: Value, name: &str) -> Result<Value, Error> {
        let width = self.width;
        let x = g.image_to_sequence(image);
        let name = format!("{name}.qkv");
        let x = match self.qkv_bias {
            true => g.linear(x, &name, width, 3 * width)?,
            false => g.linear_without_bias(x, &name, width, 3 * width)?,
        };
        Ok(g.sequence_as_image(x, image, 3 * width))
    }

    /// Writes the depthwise convolution beside the attention.
    fn local(&self, g: &mut Graph, image: Value, name: &str) -> Result<Value, Error> {
        let x = g.depthwise(image, &format!("{name}.dwconv.0"), self.width)?;
        let x = g.batch_norm(x, &format!("{name}.dwconv.1"), self.width, EPS)?;
        Ok(g.activation(x, Activation::Gelu))
    }

    /// Writes a factor for each channel, from the means of the channels.
    fn channel_map(&self, g: &mut Graph, image: Value, name: &str) -> Result<Value, Error> {
        let narrow = self.width / 8;
        let x = g.mean_of_channels(image);
        let x = self.map(
            g,
            x,
            &format!("{name}.channel_interaction"),
            1,
            [narrow, self.width],
        )?;
        Ok(g.sigmoid(x))
    }

    /// Writes a factor for each place.
    fn spatial_map(&self, g: &mut Graph, image: Value, name: &str) -> Result<Value, Error> {
        let narrow = self.width / 16;
        let x = self.map(
            g,
            image,
            &format!("{name}.spatial_interaction"),
            0,
            [narrow, 1],
        )?;
        Ok(g.sigmoid(x))
    }

    /// Writes two 1 × 1 convolutions, of which the first is layer `first` of a list.
    fn map(
        &self,
        g: &mut Graph,
        x: Value,
        name: &str,
        first: usize,
        [narrow, output]: [usize; 2],
    ) -> Result<Value, Error> {
        let layer = |index: usize| format!("{name}.{}", first + index);
        let x = g.conv2d(x, &layer(0), [self.width, narrow], Conv::POINT)?;
        let x = g.batch_norm(x, &layer(1), narrow, EPS)?;
        let x = g.activation(x, Activation::Gelu);
        g.conv2d(x, &layer(3), [narrow, output], Conv::POINT)
    }

    /// Writes the sum of both ways and the last linear layer.
    fn joined(
        &self,
        g: &mut Graph,
        attended: Value,
        local: Value,
        name: &str,
    ) -> Result<Value, Error> {
        let image = g.add(attended, local);
        let x = g.image_to_sequence(image);
        let x = g.linear(x, &format!("{name}.proj"), self.width, self.width)?;
        Ok(g.sequence_to_image(x, image))
    }

    /// Writes two linear layers with a gate between them, which sees the neighbors of each place.
    fn feed_forward(&self, g: &mut Graph, image: Value, name: &str) -> Result<Value, Error> {
        let (width, half) = (self.width, self.hidden / 2);
        let x = g.image_to_sequence(image);
        let x = g.layer_norm(x, &format!("{name}.norm2"), width, EPS)?;
        let x = g.linear(x, &format!("{name}.ffn.fc1"), width, self.hidden)?;
        let x = g.activation(x, Activation::Gelu);
        let [x, gate] = g.halves(x);
        let gate = g.layer_norm(gate, &format!("{name}.ffn.sg.norm"), half, EPS)?;
        let gate = g.sequence_as_image(gate, image, half);
        let gate = g.depthwise(gate, &format!("{name}.ffn.sg.conv"), half)?;
        let gate = g.image_to_sequence(gate);
        let x = g.mul(x, gate);
        let x = g.linear(x, &format!("{name}.ffn.fc2"), half, width)?;
        Ok(g.sequence_to_image(x, image))
    }
}

/// Returns the relative positions in a window, rows and columns, in the order of the table of
/// biases.
fn positions([high, wide]: [usize; 2]) -> Vec<f32> {
    let from = |side: usize| (1 - side as i64..side as i64).map(|at| at as f32);
    from(high)
        .flat_map(|y| from(wide).flat_map(move |x| [y, x]))
        .collect()
}
