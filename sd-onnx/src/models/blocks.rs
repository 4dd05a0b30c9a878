//! What the UNet and the VAE share: the residual block and the shape of a picture.

use crate::{
    Error,
    graph::{Activation, Conv, Dim, Graph, Value},
};

/// `[batch, channels, height, width]`, for an input or an output of a graph.
pub(crate) fn image_dims(channels: usize) -> [Dim; 4] {
    [
        Dim::Any("batch"),
        Dim::Fixed(channels),
        Dim::Any("height"),
        Dim::Any("width"),
    ]
}

/// How a network normalises: the groups of its group norms and their epsilon.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Norm {
    pub groups: usize,
    pub eps: f32,
}

/// The time embedding after SiLU, and its width.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Time {
    pub embedding: Value,
    pub width: usize,
}

/// diffusers' `ResnetBlock2D`: norm, SiLU, conv, plus time, norm, SiLU, conv, plus the input, by a 1 × 1 convolution
/// where the channel counts differ.
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

/// Group norm, then SiLU.
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
