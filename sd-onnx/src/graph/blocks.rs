//! Convolutions over blocks of channels, ONNX Runtime's fastest in f32.
//!
//! They take and return tensors in the layout `[batch, channels / block, h, w, block]`. ONNX Runtime
//! rewrites every `Conv` to this form when it loads a graph. To do so it reorders the filters, one
//! by one on one thread, and keeps them in memory as a copy: 2.3 GB for the UNet of Stable Diffusion
//! 1.x. Written like this from the start, a graph needs no rewriting. The filters are reordered on
//! all threads into a temporary file, which ONNX Runtime maps.

use std::collections::{HashMap, HashSet};

use super::{Conv, Graph, Value, ints, proto};
use crate::{Error, weights::Form};

/// The domain of the operators on blocked tensors.
pub(crate) const BLOCKED: &str = "com.microsoft.nchwc";

/// Which tensors are there in the blocked layout.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    /// The same tensor in blocks.
    twins: HashMap<Value, Value>,
    /// Tensors that are there in blocks only, with their number of channels.
    waiting: HashMap<Value, usize>,
    /// Outputs of convolutions, in blocks, that no operator has read yet.
    unread: HashSet<Value>,
}

impl Graph<'_> {
    /// Returns the filters `{name}.weight` of a convolution as a blocked initializer, or `None` if
    /// the dialect has no blocks or the channels are not whole blocks.
    pub(super) fn blocked_filters(
        &mut self,
        name: &str,
        [input, output]: [usize; 2],
        Conv { kernel, .. }: Conv,
    ) -> Result<Option<Value>, Error> {
        let Some(block) = self.dialect.channel_block else {
            return Ok(None);
        };
        if !input.is_multiple_of(block) || !output.is_multiple_of(block) {
            return Ok(None);
        }
        let name = format!("{name}.weight");
        let shape = [output, input, kernel, kernel];
        let weights = self.weights;
        let tensor = weights.tensor(&name, &shape)?;
        // Blocks of output channels are read one by one.
        let (numbers, _) = tensor.dtype.block();
        if tensor.transposed || !(block * input * kernel * kernel).is_multiple_of(numbers) {
            return Ok(None);
        }
        let place = self.spill()?.add(tensor, Form::Filters { block });
        let value = Value(self.named(format!("{}{name}", self.prefix)));
        self.stored_at(value, &shape, proto::DataType::Float, place, &tensor.file);
        Ok(Some(value))
    }

    /// Writes a convolution with blocked filters for so many `channels` of output.
    pub(super) fn blocked_conv(
        &mut self,
        x: Value,
        filters: Value,
        bias: Option<Value>,
        conv: Conv,
        channels: usize,
    ) -> Value {
        let x = self.in_blocks(x);
        let inputs: Vec<_> = [x, filters].into_iter().chain(bias).collect();
        let inputs: Vec<_> = inputs.into_iter().map(|value| Some(value.0)).collect();
        let blocked = self.push("Conv", BLOCKED, &inputs, conv.attributes());
        self.blocks.unread.insert(blocked);
        self.of_blocks(blocked, channels)
    }

    /// Writes the sum of two tensors in blocks, if both are there in blocks and one of them only
    /// so. A convolution that nothing else reads adds the other tensor itself.
    pub(super) fn blocked_add(&mut self, a: Value, b: Value) -> Option<Value> {
        let Blocks { twins, waiting, .. } = &self.blocks;
        let channels = *waiting.get(&a).or_else(|| waiting.get(&b))?;
        let [a, b] = [*twins.get(&a)?, *twins.get(&b)?];
        let unread = [(a, b), (b, a)]
            .into_iter()
            .find(|(conv, other)| conv != other && self.blocks.unread.contains(conv));
        let Some((conv, other)) = unread else {
            let blocked = self.op("Add", &[a, b], []);
            return Some(self.of_blocks(blocked, channels));
        };
        self.blocks.unread = &self.blocks.unread - &HashSet::from([a, b]);
        let (conv_name, other_name) = (self.name(conv.0), self.name(other.0));
        let nodes = &mut self.graph.node;
        let written = nodes.iter().rposition(|node| node.output[0] == conv_name);
        // The other tensor may have been written after it.
        let mut node = nodes.remove(written.expect("the convolution is written"));
        node.input.resize(3, String::new());
        node.input.push(other_name);
        nodes.push(node);
        Some(self.of_blocks(conv, channels))
    }

    /// Returns `x` in blocks.
    fn in_blocks(&mut self, x: Value) -> Value {
        if let Some(&twin) = self.blocks.twins.get(&x) {
            self.blocks.unread.remove(&twin);
            return twin;
        }
        let twin = self.push("ReorderInput", BLOCKED, &[Some(x.0)], Vec::new());
        self.blocks.twins.insert(x, twin);
        twin
    }

    /// Returns the tensor that `blocked` is in blocks. It is written when another operator needs it.
    fn of_blocks(&mut self, blocked: Value, channels: usize) -> Value {
        let value = Value(self.fresh());
        self.blocks.twins.insert(value, blocked);
        self.blocks.waiting.insert(value, channels);
        value
    }

    /// Writes a tensor that so far is there in blocks only.
    pub(super) fn settle(&mut self, value: Value) {
        let Some(channels) = self.blocks.waiting.remove(&value) else {
            return;
        };
        let blocked = self.blocks.twins[&value];
        self.blocks.unread.remove(&blocked);
        let outputs = vec![self.name(value.0)];
        let channels = vec![super::int("channels", channels as i64)];
        let node = self.node(
            "ReorderOutput",
            BLOCKED,
            &[Some(blocked.0)],
            outputs,
            channels,
        );
        self.graph.node.push(node);
    }
}

impl Conv {
    /// The attributes of ONNX's `Conv`.
    pub(super) fn attributes(self) -> Vec<proto::Attribute> {
        let [kernel, stride, padding] = [self.kernel, self.stride, self.padding].map(|n| n as i64);
        vec![
            ints("kernel_shape", &[kernel; 2]),
            ints("strides", &[stride; 2]),
            ints("pads", &[padding; 4]),
        ]
    }
}
