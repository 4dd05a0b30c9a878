//! The number format that networks compute in.

use std::{fmt, str::FromStr};

use sd_text::outside::printable;
use serde::{Deserialize, Serialize};

use crate::device::one_of;

/// The number format that networks compute in, whatever format their weights are stored in.
///
/// [`Device::precisions`](crate::Device::precisions) lists what a device supports. Pictures in
/// another precision than f32 are close to those in f32, but not identical.
///
/// A precision is written and parsed as a short name, with serde as a string:
///
/// ```
/// use sd_onnx::Precision;
///
/// assert_eq!("bf16".parse(), Ok(Precision::Bf16));
/// assert_eq!(Precision::Bf16.to_string(), "bf16");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Precision {
    /// `f32`: 32-bit floats. This is the default.
    #[default]
    F32,
    /// `bf16`: 16-bit floats with the exponent range of f32 and 8 bits of precision. It is fast on
    /// processors with AMX or AVX-512 BF16. On others it is no faster than f32.
    Bf16,
    /// `f16`: 16-bit floats with 11 bits of precision and values up to 65,504. For GPUs and NPUs.
    F16,
    /// `int8`: 8-bit integers in most layers of the UNet, and f32 in everything else: attention,
    /// norms, the text encoders, the autoencoder and a refiner. For processors
    /// with AVX-512 VNNI, AVX-VNNI or AMX.
    ///
    /// The first time that a model is loaded in int8, it is *calibrated*: a few pictures are drawn
    /// in f32, which show the ranges of the values and the error of each layer. This takes about as
    /// long as one and a half pictures of 20 steps. The calibration is kept in
    /// `sd-onnx/calibration` in the user's own cache folder.
    /// [`Builder::load_denoiser`](crate::Builder::load_denoiser) needs a calibration that
    /// [`Builder::load`](crate::Builder::load) has made. Exported UNets, models that read a picture
    /// or a mask beside the latents, and control networks are refused. The handbook's page about
    /// [devices](crate::handbook::devices) has the figures.
    Int8,
}

impl Precision {
    /// All precisions, in the order in which messages list them.
    const ALL: [Self; 4] = [Self::F32, Self::Bf16, Self::F16, Self::Int8];

    /// Returns the short name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::Int8 => "int8",
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Precision {
    type Err = ParsePrecisionError;

    /// Parses the name that [`Display`](fmt::Display) writes.
    fn from_str(text: &str) -> Result<Self, ParsePrecisionError> {
        Self::ALL
            .into_iter()
            .find(|precision| precision.to_string() == text)
            .ok_or_else(|| ParsePrecisionError { text: text.into() })
    }
}

/// The error of parsing a text that is not the name of a [`Precision`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{}\" is not a precision, expected {}", printable(text), one_of(&Precision::ALL))]
pub struct ParsePrecisionError {
    text: String,
}

#[cfg(test)]
// In a test it is the failure.
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parsed_back() {
        for precision in Precision::ALL {
            assert_eq!(precision.to_string().parse(), Ok(precision));
            let json = serde_json::to_string(&precision).unwrap();
            assert_eq!(json, format!("\"{precision}\""));
        }
        assert_eq!(
            "fp16".parse::<Precision>().unwrap_err().to_string(),
            "\"fp16\" is not a precision, expected f32, bf16, f16 or int8"
        );
    }
}
