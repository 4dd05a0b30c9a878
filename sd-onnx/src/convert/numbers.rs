//! Converts the numbers of weights to another type.

use std::{ops::Deref, sync::Arc};

use half::{bf16, f16};
use serde::{Deserialize, Serialize};

use crate::{
    Error,
    weights::{Scale, Tensor, Type},
};

/// The type to convert weights to.
///
/// With serde it is the name of the type in lower case, such as `"bf16"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum WeightType {
    /// 32 bits. Networks compute in this type on a CPU.
    F32,
    /// 16 bits, with numbers up to 65504. Most published files have this type.
    F16,
    /// 16 bits, with the range of f32 and three bits less precision than f16.
    Bf16,
}

impl WeightType {
    pub(super) fn stored(self) -> Type {
        match self {
            Self::F32 => Type::F32,
            Self::F16 => Type::F16,
            Self::Bf16 => Type::BF16,
        }
    }
}

/// Returns the type in which a weight is written. If no type is requested, the weight keeps its
/// type, except that values with a scale and GGUF blocks become f32.
pub(super) fn target(tensor: &Tensor, asked: Option<WeightType>) -> Type {
    match (asked, tensor.dtype) {
        (Some(asked), _) => asked.stored(),
        (None, kept) if tensor.scale.is_none() && KEPT.contains(&kept) => kept,
        (None, _) => Type::F32,
    }
}

/// The types that safetensors can store and the networks can use.
const KEPT: [Type; 6] = [
    Type::F64,
    Type::F32,
    Type::F16,
    Type::BF16,
    Type::F8_E4M3,
    Type::F8_E5M2,
];

/// The numbers of a tensor, little-endian: the bytes of the source, or converted ones.
#[derive(Debug)]
pub(super) enum Bytes {
    Read(Arc<[u8]>),
    Made(Vec<u8>),
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Read(bytes) => bytes,
            Self::Made(bytes) => bytes,
        }
    }
}

/// Returns the numbers of a weight in type `to`, little-endian and in row-major order. With
/// `transpose`, the two axes of the matrix are exchanged.
///
/// # Errors
/// - [`Error::TensorValues`] when a number is beyond the range of `to`.
/// - [`Error::Io`] when the file cannot be read.
pub(super) fn converted(tensor: &Tensor, to: Type, transpose: bool) -> Result<Bytes, Error> {
    let source = tensor.source();
    let beyond = |Beyond { place, value }| Error::TensorValues {
        path: source.file.to_path_buf(),
        tensor: source.name.to_owned(),
        problem: format!(
            "has the number {value} in place {place}, which is beyond the range of {to}"
        ),
    };
    let bytes = match &tensor.scale {
        None if tensor.dtype == to => Bytes::Read(tensor.place.bytes(source.file)?),
        None if tensor.dtype == Type::F64 => {
            let bytes = tensor.place.bytes(source.file)?;
            Bytes::Made(cast_f64(bytes.as_chunks().0, to).map_err(beyond)?)
        }
        None => cast_f32(source.widened()?, to).map_err(beyond)?,
        Some(scale) => {
            let mut bytes = source.widened()?;
            // The bytes were just made and are not shared, so this copies nothing.
            multiply(Arc::make_mut(&mut bytes).as_chunks_mut().0, scale);
            cast_f32(bytes, to).map_err(beyond)?
        }
    };
    match (tensor.transposed != transpose, source.shape) {
        (true, &[first, second]) => {
            // Rows and columns in the order in which the bytes are stored.
            let (rows, columns) = match tensor.transposed {
                true => (second, first),
                false => (first, second),
            };
            Ok(Bytes::Made(transposed(&bytes, rows, columns)))
        }
        _ => Ok(bytes),
    }
}

/// Multiplies the numbers of a tensor by their scale, in f32.
fn multiply(numbers: &mut [[u8; 4]], scale: &Scale) {
    let times = |number: &mut [u8; 4], scale: f32| {
        *number = (f32::from_le_bytes(*number) * scale).to_le_bytes();
    };
    match scale {
        Scale::All(scale) => numbers.iter_mut().for_each(|number| times(number, *scale)),
        Scale::Rows(scales) => {
            let row = (numbers.len() / scales.len().max(1)).max(1);
            for (numbers, &scale) in numbers.chunks_mut(row).zip(&**scales) {
                numbers.iter_mut().for_each(|number| times(number, scale));
            }
        }
    }
}

/// A number beyond the range of the new type, and its index in the tensor.
#[derive(Debug, PartialEq)]
struct Beyond {
    place: usize,
    value: f64,
}

/// Casts f32 numbers to `to`, rounding to nearest, ties to even.
fn cast_f32(numbers: Arc<[u8]>, to: Type) -> Result<Bytes, Beyond> {
    let values = numbers.as_chunks().0.iter();
    let values = values.map(|&bytes| f32::from_le_bytes(bytes));
    match to {
        Type::F16 => checked(values, half_bytes).map(Bytes::Made),
        Type::BF16 => checked(values, brain_bytes).map(Bytes::Made),
        _ => Ok(Bytes::Read(numbers)),
    }
}

/// Casts f64 numbers to `to`, rounding once to nearest, ties to even.
fn cast_f64(numbers: &[[u8; 8]], to: Type) -> Result<Vec<u8>, Beyond> {
    let values = numbers.iter().map(|&bytes| f64::from_le_bytes(bytes));
    match to {
        Type::F16 => checked(values, |value| half_bytes(to_odd(value))),
        Type::BF16 => checked(values, |value| brain_bytes(to_odd(value))),
        _ => checked(values, |value| {
            let value = value as f32;
            (value.to_le_bytes(), value.is_infinite())
        }),
    }
}

/// Returns the bytes of a number as f16, and whether it became infinite.
fn half_bytes(value: f32) -> ([u8; 2], bool) {
    let value = f16::from_f32(value);
    (value.to_le_bytes(), value.is_infinite())
}

/// Returns the bytes of a number as bf16, and whether it became infinite.
fn brain_bytes(value: f32) -> ([u8; 2], bool) {
    let value = bf16::from_f32(value);
    (value.to_le_bytes(), value.is_infinite())
}

/// Casts every number. A finite number that becomes infinite is an error.
fn checked<V: Copy + Into<f64>, const N: usize>(
    values: impl ExactSizeIterator<Item = V>,
    cast: impl Fn(V) -> ([u8; N], bool),
) -> Result<Vec<u8>, Beyond> {
    let mut bytes = Vec::with_capacity(values.len() * N);
    for (place, value) in values.enumerate() {
        let (number, is_infinite) = cast(value);
        let value: f64 = value.into();
        if is_infinite && !value.is_infinite() {
            return Err(Beyond { place, value });
        }
        bytes.extend_from_slice(&number);
    }
    Ok(bytes)
}

/// Rounds to odd.
///
/// Returns the number itself if f32 represents it exactly, else the one of the two neighbouring f32
/// whose last bit is set. Rounding the result to a type with at least two bits less gives the same
/// number as rounding `value` directly (Boldo and Melquiond 2008, "Emulation of FMA and correctly
/// rounded sums").
fn to_odd(value: f64) -> f32 {
    let near = value as f32;
    if f64::from(near) == value || !near.is_finite() {
        return near;
    }
    let bits = near.to_bits();
    // The sign is the first bit, so subtracting 1 from the bits moves towards zero for either sign.
    let towards_zero = match f64::from(near).abs() > value.abs() {
        true => bits - 1,
        false => bits,
    };
    f32::from_bits(towards_zero | 1)
}

/// Returns the matrix `[rows, columns]` with its axes exchanged.
fn transposed(bytes: &[u8], rows: usize, columns: usize) -> Vec<u8> {
    let size = bytes.len() / (rows * columns).max(1);
    let mut out = Vec::with_capacity(bytes.len());
    for column in 0..columns {
        for row in 0..rows {
            let at = (row * columns + column) * size;
            out.extend_from_slice(&bytes[at..at + size]);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    // A failed `unwrap` fails the test.
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::weights::{Place, Weights};

    fn halves(values: &[f64]) -> Vec<f16> {
        let numbers: Vec<_> = values.iter().map(|value| value.to_le_bytes()).collect();
        let bytes = cast_f64(&numbers, Type::F16).unwrap();
        let (bytes, _) = bytes.as_chunks::<2>();
        bytes
            .iter()
            .map(|&bytes| f16::from_le_bytes(bytes))
            .collect()
    }

    /// Every pair of neighbouring finite f16 from zero up.
    fn all() -> impl Iterator<Item = (f16, f16)> {
        (0..0x7bff_u16).map(|bits| (f16::from_bits(bits), f16::from_bits(bits + 1)))
    }

    #[test]
    fn ties_go_to_even_and_nothing_is_rounded_twice() {
        for (low, high) in all() {
            let middle = (low.to_f64() + high.to_f64()) / 2.0;
            let even = if low.to_bits() % 2 == 0 { low } else { high };
            // The midpoint is exact in f32. The values just beside it are not, and f32 rounds them
            // to it.
            let a_little = middle * 1e-12;
            let found = halves(&[
                middle,
                middle - a_little,
                middle + a_little,
                -middle,
                low.to_f64(),
            ]);
            assert_eq!(found, [even, low, high, -even, low], "{low}");
            let number = (middle as f32).to_le_bytes();
            let cast = cast_f32(number.into(), Type::F16).unwrap();
            assert_eq!(*cast, even.to_le_bytes(), "{low}");
        }
    }

    #[test]
    fn brain_floats_are_rounded_once_too() {
        for bits in [0x0001_u16, 0x3f80, 0x3f81, 0x7f7e, 0x0080] {
            let [low, high] = [bits, bits + 1].map(bf16::from_bits);
            let middle = (low.to_f64() + high.to_f64()) / 2.0;
            let even = if bits % 2 == 0 { low } else { high };
            for (value, expected) in [
                (middle, even),
                (middle * (1.0 - 1e-12), low),
                (middle * (1.0 + 1e-12), high),
            ] {
                let found = cast_f64(&[value.to_le_bytes()], Type::BF16).unwrap();
                assert_eq!(found, expected.to_le_bytes(), "{value:e}");
            }
        }
    }

    #[test]
    fn only_what_was_infinite_stays_so() {
        let cast = |value: f32, to| {
            let numbers = [1.0_f32, value].map(f32::to_le_bytes);
            cast_f32(numbers.as_flattened().into(), to).map(|bytes| bytes.to_vec())
        };
        let wide = |value: f64, to| cast_f64(&[1.0_f64, value].map(f64::to_le_bytes), to);
        let beyond = |value: f64| Err(Beyond { place: 1, value });
        // 65504 is the largest f16, and 65520 the first number that rounds beyond it.
        assert!(cast(65504.0, Type::F16).is_ok() && cast(65519.99, Type::F16).is_ok());
        assert_eq!(cast(65520.0, Type::F16), beyond(65520.0));
        assert_eq!(cast(-1e5, Type::F16), beyond(-1e5));
        assert!(cast(1e5, Type::BF16).is_ok());
        assert_eq!(cast(f32::MAX, Type::BF16), beyond(f32::MAX.into()));
        assert_eq!(wide(1e39, Type::F32), beyond(1e39));
        assert_eq!(wide(1e39, Type::F16), beyond(1e39));
        for to in [Type::F16, Type::BF16, Type::F32] {
            assert!(cast(f32::INFINITY, to).is_ok() && wide(f64::NEG_INFINITY, to).is_ok());
            assert!(cast(f32::NAN, to).is_ok() && wide(f64::NAN, to).is_ok());
        }
        let nan = cast(f32::NAN, Type::F16).unwrap();
        assert!(f16::from_le_bytes([nan[2], nan[3]]).is_nan());
    }

    #[test]
    fn scales_are_of_all_numbers_or_of_rows() {
        let numbers = [1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0];
        let scaled = |scale: &Scale| {
            let mut bytes = numbers.map(f32::to_le_bytes);
            multiply(&mut bytes, scale);
            bytes.map(f32::from_le_bytes)
        };
        assert_eq!(scaled(&Scale::All(0.5)), numbers.map(|it| it * 0.5));
        let rows = Scale::Rows([2.0, 0.1].into());
        // In f32, as the graphs compute it.
        let expected = [2.0, 4.0, 6.0, 4.0_f32 * 0.1, 5.0 * 0.1, 6.0_f32 * 0.1];
        assert_eq!(scaled(&rows), expected);
    }

    #[test]
    fn every_kind_of_tensor_is_read() {
        let path = std::path::Path::new("model.safetensors");
        let mut weights = Weights::empty(path);
        let mut put = |name: &str, dtype, shape: &[usize], bytes: &[u8]| {
            weights.place(name, dtype, shape, Place::Memory(bytes.into()));
        };
        let halves = [1.5_f32, -2.0].map(|it| f16::from_f32(it).to_le_bytes());
        put("f16", Type::F16, &[2], halves.as_flattened());
        // The bytes of 1 and of −448, which has the largest magnitude of the type.
        put("fp8", Type::F8_E4M3, &[2], &[0x38, 0xfe]);
        put("f64", Type::F64, &[1], &1e-3_f64.to_le_bytes());
        put(
            "large",
            Type::F32,
            &[2],
            [1.0_f32, 1e5].map(f32::to_le_bytes).as_flattened(),
        );
        let get = |name: &str| weights.get(name).unwrap();
        let floats = |name: &str| {
            let bytes = converted(get(name), Type::F32, false).unwrap();
            let numbers = bytes.as_chunks().0.iter();
            numbers
                .map(|&bytes| f32::from_le_bytes(bytes))
                .collect::<Vec<_>>()
        };
        assert_eq!(floats("f16"), [1.5, -2.0]);
        assert_eq!(floats("fp8"), [1.0, -448.0]);
        assert_eq!(floats("f64"), [1e-3]);
        // Without a requested type, tensors keep their type and bytes.
        for (name, kept) in [
            ("f16", Type::F16),
            ("fp8", Type::F8_E4M3),
            ("f64", Type::F64),
        ] {
            assert_eq!(target(get(name), None), kept);
            assert_eq!(target(get(name), Some(WeightType::Bf16)), Type::BF16);
            let bytes = converted(get(name), kept, false).unwrap();
            assert_eq!(*bytes, *get(name).place.bytes(path).unwrap());
        }
        let error = converted(get("large"), Type::F16, false)
            .unwrap_err()
            .to_string();
        for part in ["model.safetensors", "`large`", "100000 in place 1", "F16"] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_matrix_is_turned() {
        let bytes = [1, 0, 2, 0, 3, 0, 4, 0, 5, 0, 6, 0];
        let turned = [1, 0, 4, 0, 2, 0, 5, 0, 3, 0, 6, 0];
        assert_eq!(transposed(&bytes, 2, 3), turned);
        assert_eq!(transposed(&turned, 3, 2), bytes);
        assert!(transposed(&[], 0, 3).is_empty());
    }
}
