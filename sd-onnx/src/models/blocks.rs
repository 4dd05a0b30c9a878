//! The parts that the UNet and the VAE share: the residual block and the shape of images.

use crate::{
    Error,
    graph::{Activation, Conv, Dim, Graph, Value},
};

/// Returns the dimensions `[batch, channels, height, width]` of an image input or output.
pub(crate) fn image_dims(channels: usize) -> [Dim; 4] {
    [
        Dim::Any("batch"),
        Dim::Fixed(channels),
        Dim::Any("height"),
        Dim::Any("width"),
    ]
}

/// The settings of a network's normalisation: the number of groups of its group norms, and their
/// epsilon.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Norm {
    pub groups: usize,
    pub eps: f32,
}

/// The time embedding after SiLU, and its width. Only the UNet has one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Time {
    pub embedding: Value,
    pub width: usize,
}

/// Writes diffusers' `ResnetBlock2D`: norm, SiLU, convolution, plus the time embedding, norm, SiLU,
/// convolution, plus the input. If the channel counts differ, the input goes through a 1 × 1
/// convolution.
pub(crate) fn resnet(
    g: &mut Graph,
    name: &str,
    x: Value,
    [input, output]: [usize; 2],
    norm: Norm,
    time: Option<Time>,
) -> Result<Value, Error> {
    let h = norm_silu(g, &format!("{name}.norm1"), x, input, norm)?;
    let mut h = g.conv2d(h, &format!("{name}.conv1"), [input, output], Conv::SAME)?;
    if let Some(time) = time {
        let shift = g.linear(
            time.embedding,
            &format!("{name}.time_emb_proj"),
            time.width,
            output,
        )?;
        let per_channel = g.dims(&[-1, output as i64, 1, 1]);
        let shift = g.reshape(shift, per_channel);
        h = g.add(h, shift);
    }
    let h = norm_silu(g, &format!("{name}.norm2"), h, output, norm)?;
    let h = g.conv2d(h, &format!("{name}.conv2"), [output, output], Conv::SAME)?;
    let x = if input == output {
        x
    } else {
        g.conv2d(
            x,
            &format!("{name}.conv_shortcut"),
            [input, output],
            Conv::POINT,
        )?
    };
    Ok(g.add(x, h))
}

/// Writes a group norm followed by SiLU.
pub(crate) fn norm_silu(
    g: &mut Graph,
    name: &str,
    x: Value,
    channels: usize,
    norm: Norm,
) -> Result<Value, Error> {
    let x = g.group_norm(x, name, channels, norm.groups, norm.eps)?;
    Ok(g.activation(x, Activation::Silu))
}
