//! The form of a graph, which depends on the provider that runs it.

use super::{Int8, proto::DataType};
use crate::{Precision, runtime::OpenVino};

/// The form of a graph that a provider runs fast and correctly.
///
/// The same network over the same weights can be written in several forms. Only this module chooses
/// between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Dialect {
    /// Whether the sizes of all inputs are written into the graph. Each size then needs a separate
    /// session. OpenVINO's fast kernels need fixed sizes: with other sizes, a UNet call takes twice
    /// as long.
    pub fixed_sizes: bool,
    /// Whether the sinusoids of timesteps and sizes are inputs of the graph, computed outside of it
    /// in f32. In bf16 the angles lose their last digits, which makes a UNet's output wrong by 7 %.
    pub sinusoid_inputs: bool,
    /// Whether all values are bf16. The weights are then bf16 constants, which OpenVINO reads in
    /// place.
    pub bf16: bool,
    /// Whether weights that are not f32 are written to a temporary file as f32. In an f32 graph,
    /// OpenVINO would otherwise make an f32 copy of such weights in memory and keep it beside its
    /// own copy: 10 GB for SDXL.
    pub f32_weights: bool,
    /// Whether attention is written in ONNX's own operators. OpenVINO's provider of ONNX Runtime
    /// 1.24 does not take `MultiHeadAttention`, which would split the network into many parts.
    pub plain_attention: bool,
    /// The number of channels per block, if convolutions are written over blocks of channels.
    /// `None` for plain convolutions.
    pub channel_block: Option<usize>,
    /// Whether the factors of LoRAs are inputs, for the weights that are marked as
    /// [live](crate::weights::Weights::make_live).
    pub live: bool,
    /// What the graph does with the layers that can compute in int8.
    pub int8: Int8,
}

impl Dialect {
    /// Returns the form for OpenVINO, or for ONNX Runtime's own kernels if `openvino` is `None`.
    pub fn of(openvino: Option<OpenVino>, precision: Precision) -> Self {
        match openvino {
            None => Self {
                int8: match precision {
                    Precision::Int8 => Int8::On,
                    _ => Int8::Off,
                },
                ..Self::default()
            },
            Some(provider) => {
                // The provider that is built into ONNX Runtime 1.24 does not accept bf16 values.
                let bf16 = precision == Precision::Bf16 && provider == OpenVino::Plugin;
                Self {
                    fixed_sizes: true,
                    sinusoid_inputs: true,
                    bf16,
                    f32_weights: !bf16,
                    plain_attention: provider == OpenVino::BuiltIn,
                    channel_block: None,
                    live: false,
                    int8: Int8::Off,
                }
            }
        }
    }

    /// Returns the form for a network with few weights. Its values stay f32, and OpenVINO converts
    /// them to the precision that it computes in. This is faster and more exact than bf16 values,
    /// but needs more memory for the weights.
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
            // The oldest version whose `Conv` accepts bf16.
            true => 22,
            // The oldest version that has `Gelu`. Every ONNX Runtime from 1.17 on supports it.
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
