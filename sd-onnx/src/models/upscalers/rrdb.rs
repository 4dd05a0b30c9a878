//! RRDBNet, the network of ESRGAN, BSRGAN, Real-ESRGAN and ESRGAN+.
//!
//! Wang et al. 2018, [ESRGAN: Enhanced Super-Resolution Generative Adversarial
//! Networks](https://arxiv.org/abs/1809.00219). Rakotonirina and Rasoanaivo 2020,
//! [ESRGAN+](https://arxiv.org/abs/2001.08073), whose noise is used in training only.

use super::{
    MOST_FACTOR, Network, SLOPE, Shapes, UpscalerConfig, check_colors, conv, count, doubled,
    mapped, numbers, unshuffle_of,
};
use crate::{
    Error,
    graph::{Conv, Graph, Value},
    weights::Mapped,
};

/// The factor of each block's output before it is added to its input.
const RESIDUAL: f32 = 0.2;

/// The architecture of an RRDBNet.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Rrdb {
    input: usize,
    channels: usize,
    /// The channels that each convolution of a dense block adds.
    growth: usize,
    blocks: usize,
    /// How often the picture is doubled.
    doublings: usize,
    /// Whether the dense blocks have the additional paths of ESRGAN+.
    plus: bool,
}

/// Recognises a network by its first tensors, in one of three namings.
pub(super) fn recognise(
    shapes: &Shapes<'_>,
) -> Result<Option<(UpscalerConfig, Vec<Mapped>)>, String> {
    let has = |name: &str| shapes.contains_key(name);
    let today: Box<dyn Fn(&str) -> String> = if has("model.0.weight") && is_old(shapes) {
        let layers = OldLayers::of(shapes)?;
        Box::new(move |name| layers.today(name))
    } else if has("conv_first.weight") && has("RRDB_trunk.0.RDB1.conv1.weight") {
        Box::new(of_bsrgan)
    } else if has("conv_first.weight") && has("body.0.rdb1.conv1.weight") {
        Box::new(str::to_owned)
    } else {
        return Ok(None);
    };
    let tensors = mapped(shapes, today);
    let named: Vec<(&str, &[usize])> = tensors
        .iter()
        .map(|it| (it.name.as_str(), shapes[it.stored.as_str()]))
        .collect();
    let named: Shapes<'_> = named.into_iter().collect();
    let is_renamed = tensors.iter().any(|it| it.name != it.stored);
    let config = configured(&named).map_err(|problem| match is_renamed {
        true => format!("{problem} (under Real-ESRGAN's names)"),
        false => problem,
    })?;
    Ok(Some((config, tensors)))
}

/// Returns the configuration of a network with the names of Real-ESRGAN.
fn configured(shapes: &Shapes<'_>) -> Result<UpscalerConfig, String> {
    let [channels, input, ..] = conv(shapes, "conv_first")?;
    let [growth, ..] = conv(shapes, "body.0.rdb1.conv1")?;
    check_colors(conv(shapes, "conv_last")?[0])?;
    let unshuffle = unshuffle_of(input)?;
    let doublings = numbers(shapes, "conv_up").max().unwrap_or(0);
    let factor = 1_usize.checked_shl(doublings as u32).unwrap_or(0);
    if !(1..=MOST_FACTOR).contains(&factor) || factor < unshuffle || doublings > 5 {
        return Err(format!(
            "the network doubles pictures {doublings} times after it divided them by {unshuffle}, \
             expected 0 to 5 times, and no smaller pictures"
        ));
    }
    let network = Rrdb {
        input,
        channels,
        growth,
        blocks: count(shapes, "body.")?,
        doublings,
        plus: shapes.contains_key("body.0.rdb1.conv1x1.weight"),
    };
    Ok(UpscalerConfig {
        unshuffle,
        multiple: unshuffle,
        ..UpscalerConfig::plain(factor / unshuffle, Network::Rrdb(network))
    })
}

fn is_old(shapes: &Shapes<'_>) -> bool {
    ["conv1.0.weight", "conv1x1.weight"]
        .iter()
        .any(|end| shapes.contains_key(format!("model.1.sub.0.RDB1.{end}").as_str()))
}

/// The numbers of the layers in the first version of ESRGAN, which numbers all layers in order.
struct OldLayers {
    /// The number of the convolution after the blocks.
    body: usize,
    /// The number of the last layer.
    last: usize,
}

impl OldLayers {
    fn of(shapes: &Shapes<'_>) -> Result<Self, String> {
        let last = count(shapes, "model.")? - 1;
        if last < 4 || !(last - 4).is_multiple_of(3) {
            return Err(format!(
                "the last layer is `model.{last}`, expected a number of 4, 7, 10 and so on"
            ));
        }
        let body = count(shapes, "model.1.sub.")? - 1;
        Ok(Self { body, last })
    }

    /// Returns the name in Real-ESRGAN of a tensor.
    fn today(&self, name: &str) -> String {
        let renamed = || {
            let (layer, rest) = name.strip_prefix("model.")?.split_once('.')?;
            let layer: usize = layer.parse().ok()?;
            Some(match layer {
                0 => format!("conv_first.{rest}"),
                1 => self.of_block(rest.strip_prefix("sub.")?)?,
                layer if layer == self.last - 2 => format!("conv_hr.{rest}"),
                layer if layer == self.last => format!("conv_last.{rest}"),
                layer if layer.is_multiple_of(3) => format!("conv_up{}.{rest}", layer / 3),
                _ => return None,
            })
        };
        renamed().unwrap_or_else(|| name.to_owned())
    }

    /// Returns the name of a tensor in the list of blocks.
    fn of_block(&self, name: &str) -> Option<String> {
        let (block, rest) = name.split_once('.')?;
        if block.parse() == Ok(self.body) {
            return Some(format!("conv_body.{rest}"));
        }
        // `RDB1.conv1.0.weight` is today's `rdb1.conv1.weight`.
        let rest = rest.replacen("RDB", "rdb", 1).replacen(".0.", ".", 1);
        Some(format!("body.{block}.{rest}"))
    }
}

/// Returns the name in Real-ESRGAN of a tensor of BSRGAN.
fn of_bsrgan(name: &str) -> String {
    if let Some(block) = name.strip_prefix("RRDB_trunk.") {
        return format!("body.{}", block.replacen("RDB", "rdb", 1));
    }
    for (theirs, today) in [
        ("trunk_conv.", "conv_body."),
        ("upconv", "conv_up"),
        ("HRconv.", "conv_hr."),
    ] {
        if let Some(rest) = name.strip_prefix(theirs) {
            return format!("{today}{rest}");
        }
    }
    name.to_owned()
}

impl Rrdb {
    /// Writes the network.
    pub fn write(&self, g: &mut Graph, x: Value) -> Result<Value, Error> {
        let channels = self.channels;
        let first = g.conv2d(x, "conv_first", [self.input, channels], Conv::SAME)?;
        let residual = g.constant(&[RESIDUAL], &[1]);
        let mut x = first;
        for block in 0..self.blocks {
            let before = x;
            for dense in 1..=3 {
                x = self.dense_block(g, x, &format!("body.{block}.rdb{dense}"), residual)?;
            }
            let scaled = g.mul(x, residual);
            x = g.add(scaled, before);
        }
        let body = g.conv2d(x, "conv_body", [channels; 2], Conv::SAME)?;
        x = g.add(first, body);
        for up in 1..=self.doublings {
            x = doubled(g, x, &format!("conv_up{up}"), channels)?;
        }
        x = g.conv2d(x, "conv_hr", [channels; 2], Conv::SAME)?;
        x = g.leaky_relu(x, SLOPE);
        g.conv2d(x, "conv_last", [channels, super::COLORS], Conv::SAME)
    }

    /// Writes five convolutions, each of which reads the results of all before it.
    fn dense_block(
        &self,
        g: &mut Graph,
        x: Value,
        name: &str,
        residual: Value,
    ) -> Result<Value, Error> {
        let (channels, growth) = (self.channels, self.growth);
        let mut all = vec![x];
        for layer in 1..=4 {
            let input = channels + (layer - 1) * growth;
            let joined = if layer == 1 { x } else { g.concat(&all, 1) };
            let name = |conv: &str| format!("{name}.{conv}");
            let conv = name(&format!("conv{layer}"));
            let mut h = g.conv2d(joined, &conv, [input, growth], Conv::SAME)?;
            h = g.leaky_relu(h, SLOPE);
            if self.plus && layer == 2 {
                let path = name("conv1x1");
                let path = g.conv2d_without_bias(x, &path, [channels, growth], Conv::POINT)?;
                h = g.add(h, path);
            }
            if self.plus && layer == 4 {
                h = g.add(h, all[2]);
            }
            all.push(h);
        }
        let joined = g.concat(&all, 1);
        let input = channels + 4 * growth;
        let h = g.conv2d(
            joined,
            &format!("{name}.conv5"),
            [input, channels],
            Conv::SAME,
        )?;
        let h = g.mul(h, residual);
        Ok(g.add(h, x))
    }
}
