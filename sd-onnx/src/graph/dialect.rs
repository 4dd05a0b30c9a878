//! The form of a graph, which depends on the provider that runs it.

use super::{Int8, proto::DataType};
use crate::{Precision, runtime::OpenVino, weights::Form};

/// The type of a graph's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Values {
    #[default]
    F32,
    /// bf16, for OpenVINO. The weights are bf16 constants, which OpenVINO reads in place.
    Bf16,
    /// f16, for CUDA. The weights are f16 constants, so that nothing is left to convert and the
    /// graphics card holds 2 bytes per weight.
    F16,
}

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
    /// f16 has 3 bits more, and the same problem.
    pub sinusoid_inputs: bool,
    /// The type of all values except sizes and indices.
    pub values: Values,
    /// Whether weights that are not f32 are written to a temporary file as f32. In an f32 graph,
    /// OpenVINO would otherwise make an f32 copy of such weights in memory and keep it beside its
    /// own copy: 10 GB for SDXL.
    pub f32_weights: bool,
    /// Whether attention is written in ONNX's own operators. OpenVINO's provider of ONNX Runtime
    /// 1.24 does not take `MultiHeadAttention`, which would split the network into many parts.
    pub plain_attention: bool,
    /// Whether squares of pixels are averaged only where they are whole. cuDNN has no such squares
    /// beyond the edge of a picture.
    pub whole_squares: bool,
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
    /// Returns the form for CUDA.
    ///
    /// `plain_attention` is off because CUDA's provider has fast kernels for `MultiHeadAttention`,
    /// and `fixed_sizes` because it takes any sizes.
    pub fn cuda(precision: Precision) -> Self {
        Self {
            sinusoid_inputs: true,
            whole_squares: true,
            values: match precision {
                Precision::F16 => Values::F16,
                _ => Values::F32,
            },
            ..Self::default()
        }
    }

    /// Returns the form for OpenVINO, or without blocked convolutions for ONNX Runtime's own
    /// kernels if `openvino` is `None`.
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
                    values: match bf16 {
                        true => Values::Bf16,
                        false => Values::F32,
                    },
                    f32_weights: !bf16,
                    plain_attention: provider == OpenVino::BuiltIn,
                    whole_squares: false,
                    channel_block: None,
                    live: false,
                    int8: Int8::Off,
                }
            }
        }
    }

    /// Returns the form for a network with few weights. Its values stay f32.
    ///
    /// OpenVINO converts them to the precision that it computes in. This is faster and more exact
    /// than bf16 values, but needs more memory for the weights. CUDA computes in f32.
    pub fn for_few_weights(self) -> Self {
        Self {
            values: Values::F32,
            f32_weights: self.values == Values::Bf16 || self.f32_weights,
            ..self
        }
    }

    /// Returns the form for an autoencoder. `fits_f16` is whether all its values are in the range
    /// of f16.
    pub fn for_autoencoder(self, fits_f16: bool) -> Self {
        match self.values {
            Values::F16 if fits_f16 => self,
            _ => self.for_few_weights(),
        }
    }

    /// Returns the type of the graph's values.
    pub fn numbers(self) -> DataType {
        match self.values {
            Values::F32 => DataType::Float,
            Values::Bf16 => DataType::BFloat16,
            Values::F16 => DataType::Float16,
        }
    }

    /// Returns the form of the weights in a temporary file, if all weights that are stored
    /// otherwise are written to one.
    pub fn weights(self) -> Option<Form> {
        match self.values {
            Values::Bf16 => Some(Form::Bf16),
            Values::F16 => Some(Form::F16),
            Values::F32 => self.f32_weights.then_some(Form::F32),
        }
    }

    /// Returns the version of ONNX's operator set.
    pub fn operator_set(self) -> i64 {
        match self.values {
            // The oldest version whose `Conv` accepts bf16.
            Values::Bf16 => 22,
            // The oldest version that has `Gelu`. Every ONNX Runtime from 1.17 on supports it.
            Values::F32 | Values::F16 => 20,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_plugin_takes_values_of_bf16() {
        let bf16 = |provider, precision| Dialect::of(provider, precision).values == Values::Bf16;
        assert!(bf16(Some(OpenVino::Plugin), Precision::Bf16));
        let vae = Dialect::of(Some(OpenVino::Plugin), Precision::Bf16).for_few_weights();
        assert!(vae.values == Values::F32 && vae.f32_weights);
        assert!(!bf16(Some(OpenVino::Plugin), Precision::F32));
        assert!(!bf16(Some(OpenVino::BuiltIn), Precision::Bf16));
        assert_eq!(Dialect::of(None, Precision::F32), Dialect::default());
    }

    #[test]
    fn cuda_takes_values_of_f16() {
        let dialect = Dialect::cuda(Precision::F16);
        assert_eq!(dialect.values, Values::F16);
        assert_eq!(dialect.weights(), Some(Form::F16));
        assert_eq!(dialect.for_autoencoder(true), dialect);
        let f32s = dialect.for_autoencoder(false);
        assert_eq!(f32s, Dialect::cuda(Precision::F32));
        assert_eq!(f32s.weights(), None);
        // On OpenVINO an autoencoder has f32 values in every precision.
        let bf16 = Dialect::of(Some(OpenVino::Plugin), Precision::Bf16);
        assert_eq!(bf16.for_autoencoder(true), bf16.for_few_weights());
    }
}
