//! How a graph is written for the provider that runs it.

use super::proto::DataType;
use crate::{Device, Precision};

/// The forms of a graph that a provider runs fast and right.
///
/// The same weights and the same network can be written in several ways. This is the one place that
/// chooses between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Dialect {
    /// Whether all sizes of inputs are written into the graph. Each size then needs a session.
    /// OpenVINO's fast kernels need it: with free sizes a UNet call takes twice as long.
    pub fixed_sizes: bool,
    /// Whether the sinusoids of timesteps and sizes are inputs, computed outside of the graph in
    /// f32. In bf16 the angles lose their last digits: a UNet's output is then wrong by 7 %.
    pub sinusoid_inputs: bool,
    /// Whether all values are bf16. The weights are bf16 constants then, which OpenVINO reads where
    /// they lie. In a graph of f32 it would make an f32 copy of weights of any other type and keep it
    /// beside its own copy: 10 GB for SDXL.
    pub bf16: bool,
}

impl Dialect {
    pub fn of(device: Device, precision: Precision) -> Self {
        match device {
            Device::Cpu | Device::Cuda => Self::default(),
            Device::OpenVino | Device::OpenVinoGpu | Device::OpenVinoNpu => Self {
                fixed_sizes: true,
                sinusoid_inputs: precision != Precision::F32,
                bf16: precision == Precision::Bf16,
            },
        }
    }

    /// The form for a network with few weights: values stay f32, which the provider computes in
    /// its own precision. That is faster and more exact; only the copy of the weights speaks against
    /// it.
    pub fn for_few_weights(self) -> Self {
        Self {
            bf16: false,
            ..self
        }
    }

    /// The type of the graph's values.
    pub fn numbers(self) -> DataType {
        match self.bf16 {
            true => DataType::BFloat16,
            false => DataType::Float,
        }
    }

    /// ONNX's operator set.
    pub fn operator_set(self) -> i64 {
        match self.bf16 {
            // The oldest whose `Conv` takes bf16.
            true => 22,
            // The oldest that has `Gelu`; every ONNX Runtime from 1.17 on runs it.
            false => 20,
        }
    }
}
