//! SRVGGNetCompact, the small networks of Real-ESRGAN, which have all their layers before the
//! picture is enlarged.
//!
//! Source: Real-ESRGAN, `realesrgan/archs/srvgg_arch.py`.

use super::{
    COLORS, MOST_FACTOR, Network, Shapes, UpscalerConfig, conv, count, mapped, shuffle_of,
};
use crate::{
    Error,
    graph::{Conv, Graph, Value},
    weights::Mapped,
};

/// The architecture of an SRVGGNetCompact.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Compact {
    channels: usize,
    /// The number of convolutions between the first and the last.
    layers: usize,
    scale: usize,
}

/// Recognises a network by its first layers, a convolution and a parametric ReLU.
pub(super) fn recognise(
    shapes: &Shapes<'_>,
) -> Result<Option<(UpscalerConfig, Vec<Mapped>)>, String> {
    if !(shapes.contains_key("body.0.weight") && shapes.contains_key("body.1.weight")) {
        return Ok(None);
    }
    let [channels, input, ..] = conv(shapes, "body.0")?;
    if input != COLORS {
        return Err(format!(
            "the network takes {input} channels, expected {COLORS}: pictures in color"
        ));
    }
    let last = count(shapes, "body.")? - 1;
    if last < 2 || !last.is_multiple_of(2) {
        return Err(format!(
            "the last layer is `body.{last}`, expected an even number of at least 2"
        ));
    }
    let scale = shuffle_of(conv(shapes, &format!("body.{last}"))?[0], COLORS)?;
    debug_assert!(scale <= MOST_FACTOR);
    let network = Compact {
        channels,
        layers: (last - 2) / 2,
        scale,
    };
    let config = UpscalerConfig::plain(scale, Network::Compact(network));
    Ok(Some((config, mapped(shapes, str::to_owned))))
}

impl Compact {
    /// Writes the network.
    pub fn write(&self, g: &mut Graph, picture: Value) -> Result<Value, Error> {
        let channels = self.channels;
        let mut x = picture;
        for layer in 0..=self.layers {
            let input = if layer == 0 { COLORS } else { channels };
            x = g.conv2d(
                x,
                &format!("body.{}", 2 * layer),
                [input, channels],
                Conv::SAME,
            )?;
            let slopes = g.weight(&format!("body.{}.weight", 2 * layer + 1), &[channels])?;
            let per_channel = g.dims(&[channels as i64, 1, 1]);
            let slopes = g.reshape(slopes, per_channel);
            x = g.prelu(x, slopes);
        }
        let output = COLORS * self.scale * self.scale;
        let last = format!("body.{}", 2 * self.layers + 2);
        x = g.conv2d(x, &last, [channels, output], Conv::SAME)?;
        x = g.pixel_shuffle(x, self.scale);
        let large = g.upsample_by(picture, self.scale);
        Ok(g.add(x, large))
    }
}
