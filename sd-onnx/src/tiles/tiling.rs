//! The choice between an untiled call, exact tiles and fast tiles.

use std::{fmt, str::FromStr};

use sd_text::outside::printable;
use serde::{Deserialize, Serialize};

use crate::models::vae::Layer;

/// How an autoencoder decodes and encodes large pictures.
///
/// An untiled call holds about four of the network's largest feature maps at once. The autoencoder
/// of Stable Diffusion 1.x, 2.x or SDXL has 256 channels at the picture's size, so the call needs
/// 4 KiB for each pixel: 1 GiB for 512 × 512 pixels, and 16 GiB for 2048 × 2048. In tiles, the
/// network runs on one band of rows after another:
///
/// - *Exact* tiles compute each group norm over the whole picture, so they keep whole feature maps
///   between group norms. The picture is the same, except for rounding. The autoencoders above need
///   about 1 KiB for each pixel: 4 GiB for 2048 × 2048.
/// - *Fast* tiles are like exact ones, except that the level with the largest feature maps runs in
///   one sweep, with group norms that are estimated from a sample of the rows. They need
///   about half of the memory of exact tiles, and no less time. The picture is slightly different.
///   There are no seams, because bands overlap by as many rows as the network reads around a pixel.
///   Infotexts record `SD decoder: fast tiles`. A picture with too few rows for a sample is decoded
///   in exact tiles.
///
/// The network is loaded in parts, each for one sweep over the picture. Meanwhile, the
/// autoencoder's networks for untiled calls are unloaded, so that their memory is free. The UNet
/// and the text encoders stay loaded, except with
/// [`Builder::low_memory`](crate::Builder::low_memory). The pictures of a batch are tiled one after
/// another. [`handbook::devices`](crate::handbook::devices#large-pictures) has figures.
///
/// With serde and as text, a value is `never`, `exact`, `fast`, `auto`, or `auto:BYTES` with
/// another bound.
///
/// ```
/// use sd_onnx::VaeTiling;
///
/// assert_eq!("auto".parse(), Ok(VaeTiling::default()));
/// assert_eq!(VaeTiling::Auto { most_bytes: 1 << 30 }.to_string(), "auto:1073741824");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
#[non_exhaustive]
pub enum VaeTiling {
    /// `auto`: exact tiles if the untiled call would need more than a number of bytes, and an
    /// untiled call otherwise. Fast tiles are never chosen, even if exact tiles also need more than
    /// this number. TAESDs and exported graphs are never tiled.
    Auto {
        /// The largest memory of an untiled call beside the network's weights, in bytes. It is
        /// estimated as 16 bytes for each value of the network's largest feature map.
        ///
        /// [`VaeTiling::default`] has 6 GiB. With the autoencoder of Stable Diffusion or SDXL,
        /// this is the memory for 1.5 million pixels, such as 1536 × 1024.
        most_bytes: u64,
    },
    /// `never`: always an untiled call.
    Never,
    /// `exact`: always exact tiles.
    Exact,
    /// `fast`: always fast tiles.
    Fast,
}

/// The default bound of an untiled call.
const MOST_BYTES: u64 = 6 << 30;

impl Default for VaeTiling {
    fn default() -> Self {
        Self::Auto {
            most_bytes: MOST_BYTES,
        }
    }
}

impl fmt::Display for VaeTiling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto {
                most_bytes: MOST_BYTES,
            } => f.write_str("auto"),
            Self::Auto { most_bytes } => write!(f, "auto:{most_bytes}"),
            Self::Never => f.write_str("never"),
            Self::Exact => f.write_str("exact"),
            Self::Fast => f.write_str("fast"),
        }
    }
}

impl FromStr for VaeTiling {
    type Err = ParseVaeTilingError;

    /// Parses the text that [`Display`](fmt::Display) writes.
    fn from_str(text: &str) -> Result<Self, ParseVaeTilingError> {
        let error = || ParseVaeTilingError { text: text.into() };
        Ok(match text {
            "auto" => Self::default(),
            "never" => Self::Never,
            "exact" => Self::Exact,
            "fast" => Self::Fast,
            _ => {
                let bytes = text.strip_prefix("auto:").ok_or_else(error)?;
                let most_bytes = bytes.parse().map_err(|_| error())?;
                Self::Auto { most_bytes }
            }
        })
    }
}

impl From<VaeTiling> for String {
    fn from(tiling: VaeTiling) -> Self {
        tiling.to_string()
    }
}

impl TryFrom<String> for VaeTiling {
    type Error = ParseVaeTilingError;

    fn try_from(text: String) -> Result<Self, ParseVaeTilingError> {
        text.parse()
    }
}

/// The error of parsing a text that is not a [`VaeTiling`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{}\" is not a way to tile an autoencoder, expected auto, auto:BYTES, never, exact or fast",
    printable(text)
)]
pub struct ParseVaeTilingError {
    text: String,
}

/// Returns about how many bytes an untiled call needs beside the weights, for an input of
/// `[batch, _, height, width]`. On the CPU it is within a tenth of the measured peak.
pub(crate) fn untiled_bytes(layers: &[Layer], batch: usize, [height, width]: [usize; 2]) -> u64 {
    let mut pixels = (batch * height * width) as u64;
    let mut largest = 0;
    for layer in layers {
        match layer {
            Layer::Upsample { .. } => pixels *= 4,
            layer if layer.halves() => pixels /= 4,
            _ => {}
        }
        largest = largest.max(pixels * layer.outputs() as u64);
    }
    MAPS * 4 * largest
}

/// The number of largest feature maps that an untiled call holds at once.
const MAPS: u64 = 4;

#[cfg(test)]
// In tests, a panic reports the failure.
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parsed_back() {
        for tiling in [
            VaeTiling::default(),
            VaeTiling::Auto { most_bytes: 0 },
            VaeTiling::Never,
            VaeTiling::Exact,
            VaeTiling::Fast,
        ] {
            assert_eq!(tiling.to_string().parse(), Ok(tiling));
            let json = serde_json::to_string(&tiling).unwrap();
            assert_eq!(serde_json::from_str::<VaeTiling>(&json).unwrap(), tiling);
        }
        for wrong in ["", "Exact", "auto:", "auto:-1", "auto: 5"] {
            assert!(wrong.parse::<VaeTiling>().is_err(), "{wrong}");
        }
    }
}
