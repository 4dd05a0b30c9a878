//! How a graph is written for the provider that runs it.

use super::proto::DataType;
use crate::{Precision, runtime::OpenVino};

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
    /// The number of channels per block, if convolutions are written over blocks of channels.
    pub channel_block: Option<usize>,
}

impl Dialect {
    /// The form for a provider, which is OpenVINO's or else ONNX Runtime's own kernels.
    pub fn of(openvino: Option<OpenVino>, precision: Precision) -> Self {
        match openvino {
            None => Self::default(),
            Some(provider) => Self {
                fixed_sizes: true,
                sinusoid_inputs: true,
                // The provider that is built into ONNX Runtime 1.24 does not take such values.
                bf16: precision == Precision::Bf16 && provider == OpenVino::Plugin,
                channel_block: None,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_plugin_takes_values_of_bf16() {
        let bf16 = |provider, precision| Dialect::of(provider, precision).bf16;
        assert!(bf16(Some(OpenVino::Plugin), Precision::Bf16));
        assert!(!bf16(Some(OpenVino::Plugin), Precision::F32));
        assert!(!bf16(Some(OpenVino::BuiltIn), Precision::Bf16));
        assert_eq!(Dialect::of(None, Precision::F32), Dialect::default());
    }
}
