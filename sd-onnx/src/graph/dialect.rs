//! The form in which a graph is written for the provider that runs it.

use super::proto::DataType;
use crate::{Precision, runtime::OpenVino};

/// The form of a graph that a provider runs fast and correctly.
///
/// The same network over the same weights can be written in several forms. They are chosen here
/// only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Dialect {
    /// Whether the sizes of all inputs are written into the graph. Each size then needs a session of
    /// its own. OpenVINO's fast kernels need fixed sizes: otherwise a UNet call takes twice as long.
    pub fixed_sizes: bool,
    /// Whether the sinusoids of timesteps and sizes are inputs, which are computed outside of the
    /// graph in f32. In bf16 the angles lose their last digits, and a UNet's output is wrong by 7 %.
    pub sinusoid_inputs: bool,
    /// Whether all values are bf16. The weights are bf16 constants then, which OpenVINO reads where
    /// they lie.
    pub bf16: bool,
    /// Whether weights of other types are written to a temporary file as f32. In a graph of f32,
    /// OpenVINO makes an f32 copy of such weights in memory and keeps it beside its own copy: 10 GB
    /// for SDXL.
    pub f32_weights: bool,
    /// The number of channels per block, if convolutions are written over blocks of channels.
    pub channel_block: Option<usize>,
}

impl Dialect {
    /// Returns the form for OpenVINO, or for ONNX Runtime's own kernels if `openvino` is `None`.
    pub fn of(openvino: Option<OpenVino>, precision: Precision) -> Self {
        match openvino {
            None => Self::default(),
            Some(provider) => {
                // The provider that is built into ONNX Runtime 1.24 does not take such values.
                let bf16 = precision == Precision::Bf16 && provider == OpenVino::Plugin;
                Self {
                    fixed_sizes: true,
                    sinusoid_inputs: true,
                    bf16,
                    f32_weights: !bf16,
                    channel_block: None,
                }
            }
        }
    }

    /// Returns the form for a network with few weights. Its values stay f32, which OpenVINO converts
    /// to its own precision. That is faster and more exact than values of bf16, and needs more memory
    /// for the weights.
    pub fn for_few_weights(self) -> Self {
        Self {
            bf16: false,
            f32_weights: self.bf16 || self.f32_weights,
            ..self
        }
    }

    /// Returns the type of the graph's values.
    pub fn numbers(self) -> DataType {
        match self.bf16 {
            true => DataType::BFloat16,
            false => DataType::Float,
        }
    }

    /// Returns the version of ONNX's operator set.
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
        let vae = Dialect::of(Some(OpenVino::Plugin), Precision::Bf16).for_few_weights();
        assert!(!vae.bf16 && vae.f32_weights);
        assert!(!bf16(Some(OpenVino::Plugin), Precision::F32));
        assert!(!bf16(Some(OpenVino::BuiltIn), Precision::Bf16));
        assert_eq!(Dialect::of(None, Precision::F32), Dialect::default());
    }
}
