//! The number types of stored weights.

use std::fmt;

use safetensors::Dtype;

/// The type of the numbers in a stored tensor.
///
/// The types from `Q4_0` on are GGUF's. They store blocks of numbers that share their scales, so
/// the length of a tensor is a whole number of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(
    non_camel_case_types,
    clippy::upper_case_acronyms,
    reason = "the file formats spell the names so"
)]
pub(crate) enum Type {
    F64,
    F32,
    F16,
    BF16,
    /// torch's `float8_e4m3fn`: no infinity, and one NaN of each sign.
    F8_E4M3,
    /// torch's `float8_e5m2`: the upper half of an f16.
    F8_E5M2,
    F8_E4M3FNUZ,
    F8_E5M2FNUZ,
    F8_E8M0,
    F6_E2M3,
    F6_E3M2,
    F4,
    C64,
    I64,
    I32,
    I16,
    I8,
    U64,
    U32,
    U16,
    U8,
    BOOL,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q8_1,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    Q8_K,
    IQ1_S,
    IQ1_M,
    IQ2_XXS,
    IQ2_XS,
    IQ2_S,
    IQ3_XXS,
    IQ3_S,
    IQ4_NL,
    IQ4_XS,
    TQ1_0,
    TQ2_0,
    MXFP4,
    NVFP4,
    Q1_0,
}

/// How a network uses numbers of a type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// ONNX Runtime maps the stored numbers and casts them to f32.
    InPlace,
    /// The numbers are decoded to f32 when the network is loaded.
    Widened,
    /// The type is not used for weights, or is not supported.
    Refused,
}

impl Type {
    /// The types of weights that networks can be loaded from, for messages.
    pub const USABLE: &str = "F64, F32, F16, BF16, F8_E4M3, F8_E5M2 or one of GGUF's Q4_0, Q4_1, \
                              Q5_0, Q5_1, Q8_0 and Q2_K to Q6_K";

    /// Returns how a network uses weights of this type.
    pub fn usage(self) -> Use {
        match self {
            Self::F64 | Self::F32 | Self::F16 | Self::BF16 => Use::InPlace,
            Self::F8_E4M3 | Self::F8_E5M2 => Use::InPlace,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => Use::Widened,
            Self::Q2_K | Self::Q3_K | Self::Q4_K | Self::Q5_K | Self::Q6_K => Use::Widened,
            _ => Use::Refused,
        }
    }

    /// Whether this is one of the two 8-bit types that ComfyUI stores with scales.
    pub fn is_f8(self) -> bool {
        matches!(self, Self::F8_E4M3 | Self::F8_E5M2)
    }

    /// Returns the numbers per block and the bytes per block.
    pub fn block(self) -> (usize, usize) {
        match self {
            Self::F64 | Self::C64 | Self::I64 | Self::U64 => (1, 8),
            Self::F32 | Self::I32 | Self::U32 => (1, 4),
            Self::F16 | Self::BF16 | Self::I16 | Self::U16 => (1, 2),
            Self::F8_E4M3 | Self::F8_E5M2 | Self::F8_E4M3FNUZ => (1, 1),
            Self::F8_E5M2FNUZ | Self::F8_E8M0 | Self::I8 | Self::U8 | Self::BOOL => (1, 1),
            Self::F6_E2M3 | Self::F6_E3M2 => (4, 3),
            Self::F4 => (2, 1),
            Self::Q4_0 | Self::IQ4_NL => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q8_1 => (32, 40),
            Self::Q2_K => (256, 84),
            Self::Q3_K | Self::IQ3_S => (256, 110),
            Self::Q4_K => (256, 144),
            Self::Q5_K => (256, 176),
            Self::Q6_K => (256, 210),
            Self::Q8_K => (256, 292),
            Self::IQ1_S => (256, 50),
            Self::IQ1_M => (256, 56),
            Self::IQ2_XXS | Self::TQ2_0 => (256, 66),
            Self::IQ2_XS => (256, 74),
            Self::IQ2_S => (256, 82),
            Self::IQ3_XXS => (256, 98),
            Self::IQ4_XS => (256, 136),
            Self::TQ1_0 => (256, 54),
            Self::MXFP4 => (32, 17),
            Self::NVFP4 => (64, 36),
            Self::Q1_0 => (128, 18),
        }
    }

    /// Returns the length in bytes of a tensor with this shape, or `None` if the length overflows
    /// or the tensor is not a whole number of blocks.
    pub fn length(self, shape: &[usize]) -> Option<usize> {
        let count = shape
            .iter()
            .try_fold(1usize, |count, &side| count.checked_mul(side))?;
        let (numbers, bytes) = self.block();
        if !count.is_multiple_of(numbers) {
            return None;
        }
        (count / numbers).checked_mul(bytes)
    }

    /// Returns the variant for a type of the safetensors library, or `None` for types added later.
    pub fn of_safetensors(dtype: Dtype) -> Option<Self> {
        Some(match dtype {
            Dtype::BOOL => Self::BOOL,
            Dtype::F4 => Self::F4,
            Dtype::F6_E2M3 => Self::F6_E2M3,
            Dtype::F6_E3M2 => Self::F6_E3M2,
            Dtype::U8 => Self::U8,
            Dtype::I8 => Self::I8,
            Dtype::F8_E5M2 => Self::F8_E5M2,
            Dtype::F8_E4M3 => Self::F8_E4M3,
            Dtype::F8_E8M0 => Self::F8_E8M0,
            Dtype::F8_E4M3FNUZ => Self::F8_E4M3FNUZ,
            Dtype::F8_E5M2FNUZ => Self::F8_E5M2FNUZ,
            Dtype::I16 => Self::I16,
            Dtype::U16 => Self::U16,
            Dtype::F16 => Self::F16,
            Dtype::BF16 => Self::BF16,
            Dtype::I32 => Self::I32,
            Dtype::U32 => Self::U32,
            Dtype::F32 => Self::F32,
            Dtype::C64 => Self::C64,
            Dtype::F64 => Self::F64,
            Dtype::I64 => Self::I64,
            Dtype::U64 => Self::U64,
            _ => return None,
        })
    }

    /// Returns the variant for GGUF's number of a type, or `None` for an unknown number.
    pub fn of_gguf(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            9 => Self::Q8_1,
            10 => Self::Q2_K,
            11 => Self::Q3_K,
            12 => Self::Q4_K,
            13 => Self::Q5_K,
            14 => Self::Q6_K,
            15 => Self::Q8_K,
            16 => Self::IQ2_XXS,
            17 => Self::IQ2_XS,
            18 => Self::IQ3_XXS,
            19 => Self::IQ1_S,
            20 => Self::IQ4_NL,
            21 => Self::IQ3_S,
            22 => Self::IQ2_S,
            23 => Self::IQ4_XS,
            24 => Self::I8,
            25 => Self::I16,
            26 => Self::I32,
            27 => Self::I64,
            28 => Self::F64,
            29 => Self::IQ1_M,
            30 => Self::BF16,
            34 => Self::TQ1_0,
            35 => Self::TQ2_0,
            39 => Self::MXFP4,
            40 => Self::NVFP4,
            41 => Self::Q1_0,
            _ => return None,
        })
    }
}

/// Prints the name that the file formats use: `F16`, `F8_E4M3`, `Q4_K`.
impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::Type;

    #[test]
    fn a_length_is_whole_blocks() {
        assert_eq!(Type::F32.length(&[2, 3]), Some(24));
        assert_eq!(Type::F32.length(&[]), Some(4));
        assert_eq!(Type::F32.length(&[0, 7]), Some(0));
        assert_eq!(Type::F4.length(&[3]), None);
        assert_eq!(Type::F6_E2M3.length(&[2, 2]), Some(3));
        assert_eq!(Type::Q4_K.length(&[2, 256]), Some(288));
        // GGUF's blocks continue across rows: 2 rows of 160 numbers are ten blocks.
        assert_eq!(Type::Q8_0.length(&[2, 160]), Some(340));
        assert_eq!(Type::Q4_K.length(&[2, 160]), None);
        assert_eq!(Type::F64.length(&[usize::MAX, 2]), None);
        assert_eq!(Type::F64.length(&[usize::MAX]), None);
    }
}
