//! Convolutions over blocks of channels, the fastest f32 convolutions of ONNX Runtime.
//!
//! They take and return tensors in the layout `[batch, channels / block, h, w, block]`. ONNX
//! Runtime rewrites every `Conv` to this form when it loads a graph. To do so, it reorders the
//! filters one by one on one thread, and keeps them in memory as a copy. For the UNet of Stable
//! Diffusion 1.x the copy has 2.3 GB.
//!
//! A graph that is written in this form needs no rewriting. Its filters are reordered on all
//! threads into a temporary file, which ONNX Runtime maps.

use std::collections::{HashMap, HashSet};

use super::{Conv, Graph, Value, ints, proto};
use crate::{Error, weights::Form};

/// The domain of ONNX Runtime's operators on blocked tensors.
pub(crate) const BLOCKED: &str = "com.microsoft.nchwc";

/// The tensors that exist in the blocked layout.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    /// The blocked form of a tensor.
    twins: HashMap<Value, Value>,
    /// The tensors that exist only in blocked form, with their number of channels.
    waiting: HashMap<Value, usize>,
    /// The blocked outputs of convolutions that no operator has read yet.
    unread: HashSet<Value>,
}

impl Graph<'_> {
    /// Returns the filters `{name}.weight` of a convolution as a blocked initializer. Returns
    /// `None` if the dialect has no blocks, if a number of channels is not a multiple of the block,
    /// or if the stored tensor cannot be reordered.
    pub(super) fn blocked_filters(
        &mut self,
        name: &str,
        [input, output]: [usize; 2],
        Conv { kernel, .. }: Conv,
    ) -> Result<Option<Value>, Error> {
        let Some(block) = self.dialect.channel_block else {
            return Ok(None);
        };
        // An input with fewer channels than a block is read in plain form.
        let inputs = if input < block { 1 } else { block };
        if !input.is_multiple_of(inputs) || !output.is_multiple_of(block) {
            return Ok(None);
        }
        let name = format!("{name}.weight");
        let shape = [output, input, kernel, kernel];
        let weights = self.weights;
        let tensor = weights.tensor(&name, &shape)?;
        // The filters are read one block of output channels at a time. Each of these reads must
        // consist of whole blocks of the stored type.
        let (numbers, _) = tensor.dtype.block();
        if tensor.transposed || !(block * input * kernel * kernel).is_multiple_of(numbers) {
            return Ok(None);
        }
        // A plain initializer of this tensor may exist too.
        let key = (std::ptr::from_ref(weights), format!("{name} in blocks"));
        if let Some(&(known, _)) = self.stored.get(&key) {
            return Ok(Some(known));
        }
        let place = self.spill()?.add(tensor, Form::Filters { block, inputs });
        let value = Value(self.named(format!("{}{name}", self.prefix)));
        self.stored_at(value, &shape, proto::DataType::Float, place, &tensor.file);
        self.stored.insert(key, (value, proto::DataType::Float));
        Ok(Some(value))
    }

    /// Writes a convolution with blocked filters for so many input and output channels. An input
    /// with fewer channels than a block is read in plain form.
    pub(super) fn blocked_conv(
        &mut self,
        x: Value,
        filters: Value,
        bias: Option<Value>,
        conv: Conv,
        [input, output]: [usize; 2],
    ) -> Value {
        let (x, pads) = match self.dialect.channel_block {
            Some(block) if input >= block => {
                let x = self.in_blocks(x);
                self.continued_blocks(x, conv, [input, block])
            }
            _ => self.continued(x, conv),
        };
        let inputs = [x, filters].into_iter().chain(bias);
        let inputs: Vec<_> = inputs.map(|value| Some(value.0)).collect();
        let blocked = self.push("Conv", BLOCKED, &inputs, conv.attributes(pads));
        self.blocks.unread.insert(blocked);
        self.of_blocks(blocked, output)
    }

    /// Writes the sum of two tensors in blocked form. Returns `None` if one of them is not blocked,
    /// or if both also exist in plain form.
    ///
    /// If one of them is the output of a convolution that no other operator reads, that convolution
    /// adds the other tensor itself.
    pub(super) fn blocked_add(&mut self, a: Value, b: Value) -> Option<Value> {
        let Blocks {
            twins,
            waiting,
            unread,
        } = &mut self.blocks;
        let channels = *waiting.get(&a).or_else(|| waiting.get(&b))?;
        let pair = [(a, *twins.get(&a)?), (b, *twins.get(&b)?)];
        let [is_unread, other_is] = pair.map(|(_, blocked)| unread.remove(&blocked));
        let [(plain, conv), (_, other)] = match (is_unread, other_is) {
            _ if a == b => [pair[0]; 2],
            (true, _) => pair,
            (false, _) => [pair[1], pair[0]],
        };
        if a == b || !(is_unread || other_is) {
            let blocked = self.op("Add", &[conv, other], []);
            return Some(self.of_blocks(blocked, channels));
        }
        // Its output is now the sum, so nothing can read the convolution by itself.
        twins.remove(&plain);
        waiting.remove(&plain);
        let (conv_name, other_name) = (self.name(conv.0), self.name(other.0));
        let nodes = &mut self.graph.node;
        let written = nodes.iter().rposition(|node| node.output[0] == conv_name);
        // The convolution moves to the end, because the other tensor may have been written after
        // it.
        let mut node = nodes.remove(written.expect("the convolution is written"));
        node.input.resize(3, String::new());
        node.input.push(other_name);
        nodes.push(node);
        Some(self.of_blocks(conv, channels))
    }

    /// Returns `x` plus an input of the graph. If `x` exists in blocked form, the sum does too, so
    /// that what follows is written as it is without the input and rounds in the same way.
    pub fn add_input(&mut self, x: Value, input: Value) -> Value {
        let is_blocked = self.blocks.twins.contains_key(&x);
        let sum = self.add(x, input);
        if is_blocked {
            self.in_blocks(sum);
        }
        sum
    }

    /// Returns `x` in blocked form, and writes the operator that reorders it if necessary.
    fn in_blocks(&mut self, x: Value) -> Value {
        if let Some(&twin) = self.blocks.twins.get(&x) {
            self.blocks.unread.remove(&twin);
            return twin;
        }
        let twin = self.push("ReorderInput", BLOCKED, &[Some(x.0)], Vec::new());
        self.blocks.twins.insert(x, twin);
        twin
    }

    /// Returns a plain tensor for `blocked`. It is not written until another operator needs it.
    fn of_blocks(&mut self, blocked: Value, channels: usize) -> Value {
        let value = Value(self.fresh());
        self.blocks.twins.insert(value, blocked);
        self.blocks.waiting.insert(value, channels);
        value
    }

    /// Writes `value` in plain form if it exists only in blocked form.
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
    /// Returns the padding with zeros of a convolution that is not seamless: top, left, bottom,
    /// right.
    pub(super) fn zeros(self) -> [i64; 4] {
        let [before, after] = self.padding.map(|n| n as i64);
        [before, before, after, after]
    }

    /// Returns the attributes of ONNX's `Conv`, with this padding.
    pub(super) fn attributes(self, pads: [i64; 4]) -> Vec<proto::Attribute> {
        let [kernel, stride] = [self.kernel, self.stride].map(|n| n as i64);
        vec![
            ints("kernel_shape", &[kernel; 2]),
            ints("strides", &[stride; 2]),
            ints("pads", &pads),
        ]
    }
}
