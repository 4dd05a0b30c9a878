//! The layers of CLIP, the UNet and the VAE. Their weights have the names that PyTorch gives them.

use super::{Graph, Value};
use crate::Error;

/// A pointwise activation function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activation {
    /// SiLU: x·sigmoid(x).
    Silu,
    /// OpenAI CLIP's approximation of GELU: x·sigmoid(1.702x).
    QuickGelu,
    /// The exact GELU, x·Φ(x), as in OpenCLIP.
    Gelu,
}

/// A square convolution. Kernel size, stride and padding are the same on both axes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Conv {
    pub kernel: usize,
    pub stride: usize,
    /// The rows and columns of zeros before the first and after the last ones. Where a graph is
    /// [seamless](Graph::seamless), equal numbers of both come from the opposite edge instead.
    pub padding: [usize; 2],
}

impl Conv {
    /// A 1 × 1 convolution with stride 1 and no padding.
    pub const POINT: Self = Self {
        kernel: 1,
        stride: 1,
        padding: [0; 2],
    };
    /// A 3 × 3 convolution that keeps the height and width.
    pub const SAME: Self = Self::same(3);

    /// Returns a convolution that keeps the height and width. `kernel` is odd.
    pub const fn same(kernel: usize) -> Self {
        Self {
            kernel,
            stride: 1,
            padding: [(kernel - 1) / 2; 2],
        }
    }
}

impl Graph<'_> {
    /// Applies an activation function to each element of `x`.
    pub fn activation(&mut self, x: Value, activation: Activation) -> Value {
        match activation {
            Activation::Silu => self.sigmoid_gate(x, 1.0),
            Activation::QuickGelu => self.sigmoid_gate(x, 1.702),
            Activation::Gelu => self.gelu(x),
        }
    }

    /// Applies the linear layer `name`, `x·weightᵀ + bias`, to the last axis of `x`. That axis
    /// changes from `input` to `output` elements.
    pub fn linear(
        &mut self,
        x: Value,
        name: &str,
        input: usize,
        output: usize,
    ) -> Result<Value, Error> {
        if let Some(product) = self.int8_linear(x, name, [input, output], true)? {
            return Ok(self.with_live_linear(x, product, name, [input, output]));
        }
        let product = self.linear_without_bias(x, name, input, output)?;
        let bias = self.weight(&format!("{name}.bias"), &[output])?;
        Ok(self.add(product, bias))
    }

    /// Applies the linear layer `name` without bias, `x·weightᵀ`, to the last axis of `x`. That
    /// axis changes from `input` to `output` elements.
    pub fn linear_without_bias(
        &mut self,
        x: Value,
        name: &str,
        input: usize,
        output: usize,
    ) -> Result<Value, Error> {
        let product = match self.int8_linear(x, name, [input, output], false)? {
            Some(product) => product,
            None => {
                let weight = self.weight(&format!("{name}.weight"), &[output, input])?;
                let product = self.matmul_transposed(x, weight);
                self.tap_linear(x, product, name, [input, output])?;
                product
            }
        };
        Ok(self.with_live_linear(x, product, name, [input, output]))
    }

    /// Applies the convolution `name` with a bias, which turns `[batch, input, h, w]` into
    /// `[batch, output, h', w']`. `channels` is `[input, output]`.
    pub fn conv2d(
        &mut self,
        x: Value,
        name: &str,
        channels: [usize; 2],
        conv: Conv,
    ) -> Result<Value, Error> {
        self.any_conv2d(x, name, channels, conv, true)
    }

    /// Applies the convolution `name` without a bias, like [`conv2d`](Self::conv2d).
    pub fn conv2d_without_bias(
        &mut self,
        x: Value,
        name: &str,
        channels: [usize; 2],
        conv: Conv,
    ) -> Result<Value, Error> {
        self.any_conv2d(x, name, channels, conv, false)
    }

    fn any_conv2d(
        &mut self,
        x: Value,
        name: &str,
        [input, output]: [usize; 2],
        conv: Conv,
        has_bias: bool,
    ) -> Result<Value, Error> {
        let channels = [input, output];
        if let Some(convolved) = self.int8_conv(x, name, channels, conv, has_bias)? {
            return Ok(self.with_live_conv(x, convolved, name, channels, conv));
        }
        let filters = self.blocked_filters(name, [input, output], conv)?;
        let bias = match has_bias {
            true => Some(self.weight(&format!("{name}.bias"), &[output])?),
            false => None,
        };
        let convolved = match filters {
            Some(filters) => self.blocked_conv(x, filters, bias, conv, [input, output]),
            None => {
                let shape = [output, input, conv.kernel, conv.kernel];
                let weight = self.weight(&format!("{name}.weight"), &shape)?;
                self.conv(x, weight, bias, conv)
            }
        };
        self.tap_conv(x, convolved, name, channels, conv, has_bias)?;
        Ok(self.with_live_conv(x, convolved, name, [input, output], conv))
    }

    /// Applies the 3 × 3 convolution `name` to each channel of `x` by itself.
    pub fn depthwise(&mut self, x: Value, name: &str, channels: usize) -> Result<Value, Error> {
        let weight = self.weight(&format!("{name}.weight"), &[channels, 1, 3, 3])?;
        let bias = self.weight(&format!("{name}.bias"), &[channels])?;
        let mut attributes = Conv::SAME.attributes(Conv::SAME.zeros());
        attributes.push(super::int("group", channels as i64));
        let inputs = [x, weight, bias].map(|value| Some(value.0));
        Ok(self.push("Conv", "", &inputs, attributes))
    }

    /// Applies the batch norm `name` with the means and variances of the training.
    pub fn batch_norm(
        &mut self,
        x: Value,
        name: &str,
        channels: usize,
        eps: f32,
    ) -> Result<Value, Error> {
        let mut inputs = vec![x];
        for part in ["weight", "bias", "running_mean", "running_var"] {
            inputs.push(self.weight(&format!("{name}.{part}"), &[channels])?);
        }
        let epsilon = super::float("epsilon", eps);
        Ok(self.op("BatchNormalization", &inputs, [epsilon]))
    }

    /// Applies the layer norm `name` over the last axis, which has `width` elements.
    pub fn layer_norm(
        &mut self,
        x: Value,
        name: &str,
        width: usize,
        eps: f32,
    ) -> Result<Value, Error> {
        let scale = self.weight(&format!("{name}.weight"), &[width])?;
        let bias = self.weight(&format!("{name}.bias"), &[width])?;
        Ok(self.layer_norm_op(x, scale, bias, eps))
    }

    /// Applies the group norm `name` to `x` `[batch, channels, h, w]`, whose channels form `groups`
    /// groups.
    pub fn group_norm(
        &mut self,
        x: Value,
        name: &str,
        channels: usize,
        groups: usize,
        eps: f32,
    ) -> Result<Value, Error> {
        let scale = self.weight(&format!("{name}.weight"), &[channels])?;
        let bias = self.weight(&format!("{name}.bias"), &[channels])?;
        let shape = self.shape(x);
        let grouped = self.dims(&[0, groups as i64, -1]);
        let x = self.reshape(x, grouped);
        let x = self.instance_norm(x, groups, eps);
        let x = self.reshape(x, shape);
        let per_channel = self.dims(&[channels as i64, 1, 1]);
        let scale = self.reshape(scale, per_channel);
        let bias = self.reshape(bias, per_channel);
        let x = self.mul(x, scale);
        Ok(self.add(x, bias))
    }

    /// Turns `[batch, channels, h, w]` into `[batch, h·w, channels]`.
    pub fn image_to_sequence(&mut self, x: Value) -> Value {
        let flat = self.dims(&[0, 0, -1]);
        let x = self.reshape(x, flat);
        self.transpose(x, &[0, 2, 1])
    }

    /// Reverses [`image_to_sequence`](Self::image_to_sequence). The result has the shape of `like`.
    pub fn sequence_to_image(&mut self, x: Value, like: Value) -> Value {
        let x = self.transpose(x, &[0, 2, 1]);
        let shape = self.shape(like);
        self.reshape(x, shape)
    }
}
