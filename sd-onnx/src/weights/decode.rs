//! Decodes the numbers of stored tensors to f32.
//!
//! GGUF blocks are decoded in the same way as in llama.cpp's `ggml-quants.c` and PyPI's `gguf`,
//! with the same products and sums in the same order. The values are therefore equal bit for bit.

use half::{bf16, f16, slice::HalfFloatSliceExt};

use super::types::Type;

/// Decodes `bytes`, which are whole blocks of the type, into `out`, which has room for exactly the
/// numbers in these blocks. Integers become the nearest f32.
///
/// # Errors
/// Returns the type if this function cannot decode it.
pub(super) fn decode(dtype: Type, bytes: &[u8], out: &mut [f32]) -> Result<(), Type> {
    match dtype {
        Type::F64 => each(bytes, out, |b| f64::from_le_bytes(b) as f32),
        Type::F32 => each(bytes, out, f32::from_le_bytes),
        Type::F16 => halves(bytes, out),
        Type::BF16 => each(bytes, out, |b| bf16::from_le_bytes(b).to_f32()),
        Type::F8_E4M3 => each(bytes, out, |[b]| f8_e4m3(b)),
        Type::F8_E5M2 => each(bytes, out, |[b]| f8_e5m2(b)),
        Type::I64 => each(bytes, out, |b| i64::from_le_bytes(b) as f32),
        Type::I32 => each(bytes, out, |b| i32::from_le_bytes(b) as f32),
        Type::I16 => each(bytes, out, |b| i16::from_le_bytes(b).into()),
        Type::I8 => each(bytes, out, |b| i8::from_le_bytes(b).into()),
        Type::U64 => each(bytes, out, |b| u64::from_le_bytes(b) as f32),
        Type::U32 => each(bytes, out, |b| u32::from_le_bytes(b) as f32),
        Type::U16 => each(bytes, out, |b| u16::from_le_bytes(b).into()),
        Type::U8 | Type::BOOL => each(bytes, out, |[b]| b.into()),
        Type::Q4_0 => blocks(bytes, out, q4_0),
        Type::Q4_1 => blocks(bytes, out, q4_1),
        Type::Q5_0 => blocks(bytes, out, q5_0),
        Type::Q5_1 => blocks(bytes, out, q5_1),
        Type::Q8_0 => blocks(bytes, out, q8_0),
        Type::Q2_K => blocks(bytes, out, q2_k),
        Type::Q3_K => blocks(bytes, out, q3_k),
        Type::Q4_K => blocks(bytes, out, q4_k),
        Type::Q5_K => blocks(bytes, out, q5_k),
        Type::Q6_K => blocks(bytes, out, q6_k),
        other => return Err(other),
    }
    Ok(())
}

fn each<const N: usize>(bytes: &[u8], out: &mut [f32], value: impl Fn([u8; N]) -> f32) {
    let (numbers, _) = bytes.as_chunks::<N>();
    for (out, &number) in out.iter_mut().zip(numbers) {
        *out = value(number);
    }
}

/// Decodes f16. Numbers are converted in groups, because each conversion first checks which
/// instructions the processor has.
fn halves(bytes: &[u8], out: &mut [f32]) {
    const GROUP: usize = 256;
    let mut group = [f16::ZERO; GROUP];
    let (numbers, _) = bytes.as_chunks();
    for (out, numbers) in out.chunks_mut(GROUP).zip(numbers.chunks(GROUP)) {
        let group = &mut group[..out.len().min(numbers.len())];
        for (half, &number) in group.iter_mut().zip(numbers) {
            *half = f16::from_le_bytes(number);
        }
        let count = group.len();
        group.convert_to_f32_slice(&mut out[..count]);
    }
}

fn blocks<const BYTES: usize, const NUMBERS: usize>(
    bytes: &[u8],
    out: &mut [f32],
    block: impl Fn(&[u8; BYTES], &mut [f32; NUMBERS]),
) {
    let (bytes, _) = bytes.as_chunks::<BYTES>();
    let (out, _) = out.as_chunks_mut::<NUMBERS>();
    for (bytes, out) in bytes.iter().zip(out) {
        block(bytes, out);
    }
}

/// Decodes torch's `float8_e4m3fn`: 4 bits of exponent and 3 of mantissa. `fn` means finite: there
/// is no infinity, and only the codes with all exponent and mantissa bits set are NaN.
fn f8_e4m3(code: u8) -> f32 {
    let sign = u32::from(code & 0x80) << 24;
    let (exponent, mantissa) = (u32::from(code >> 3 & 15), u32::from(code & 7));
    let bits = match (exponent, mantissa) {
        (15, 7) => 0x7ff0_0000,
        // Subnormal numbers are multiples of 2⁻⁹.
        (0, _) => (mantissa as f32 / 512.0).to_bits(),
        // The exponent's bias is 7 here, and 127 in f32.
        _ => (exponent + 120) << 23 | mantissa << 20,
    };
    f32::from_bits(sign | bits)
}

/// Decodes torch's `float8_e5m2`, which has the same exponent as f16.
fn f8_e5m2(code: u8) -> f32 {
    f16::from_bits(u16::from(code) << 8).to_f32()
}

/// Reads the f16 at a byte offset of a block.
fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Returns a 4-bit number: numbers 0 to 15 are the low halves of the 16 bytes, and 16 to 31 the
/// high halves.
fn nibbles(bytes: &[u8], index: usize) -> u8 {
    match index {
        0..16 => bytes[index] & 15,
        _ => bytes[index - 16] >> 4,
    }
}

/// Returns the fifth bit of a number in a `Q5_0` or `Q5_1` block, shifted to its place (value 16).
fn fifth_bit(bytes: &[u8], index: usize) -> u8 {
    (bytes[index / 8] >> (index % 8) & 1) << 4
}

fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let scale = half_at(block, 0);
    for (index, out) in out.iter_mut().enumerate() {
        *out = scale * f32::from(nibbles(&block[2..], index) as i8 - 8);
    }
}

fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (scale, least) = (half_at(block, 0), half_at(block, 2));
    for (index, out) in out.iter_mut().enumerate() {
        *out = scale * f32::from(nibbles(&block[4..], index)) + least;
    }
}

fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let scale = half_at(block, 0);
    for (index, out) in out.iter_mut().enumerate() {
        let code = nibbles(&block[6..], index) | fifth_bit(&block[2..6], index);
        *out = scale * f32::from(code as i8 - 16);
    }
}

fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (scale, least) = (half_at(block, 0), half_at(block, 2));
    for (index, out) in out.iter_mut().enumerate() {
        let code = nibbles(&block[8..], index) | fifth_bit(&block[4..8], index);
        *out = scale * f32::from(code) + least;
    }
}

fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let scale = half_at(block, 0);
    for (out, &code) in out.iter_mut().zip(&block[2..]) {
        *out = scale * f32::from(code as i8);
    }
}

/// Decodes sixteen groups of 16 numbers of 2 bits. Each group has a scale and a minimum of 4 bits.
fn q2_k(block: &[u8; 84], out: &mut [f32; 256]) {
    let (scales, codes) = (&block[..16], &block[16..80]);
    let (scale, least) = (half_at(block, 80), half_at(block, 82));
    for (index, out) in out.iter_mut().enumerate() {
        let group = scales[index / 16];
        let code = codes[index / 128 * 32 + index % 32] >> (index / 32 % 4 * 2) & 3;
        let (scale, least) = (scale * f32::from(group & 15), least * f32::from(group >> 4));
        *out = scale * f32::from(code) - least;
    }
}

/// Decodes sixteen groups of 16 numbers of 3 bits. Each group has a scale of 6 bits.
fn q3_k(block: &[u8; 110], out: &mut [f32; 256]) {
    let (high, codes, scales) = (&block[..32], &block[32..96], &block[96..108]);
    let scale = half_at(block, 108);
    let group_scale = |group: usize| {
        let low = scales[group % 8] >> (group / 8 * 4) & 15;
        let high = scales[8 + group % 4] >> (group / 4 * 2) & 3;
        scale * f32::from((low | high << 4) as i8 - 32)
    };
    for (index, out) in out.iter_mut().enumerate() {
        let low = codes[index / 128 * 32 + index % 32] >> (index / 32 % 4 * 2) & 3;
        let is_high = high[index % 32] >> (index / 32) & 1;
        let code = low as i8 - if is_high == 1 { 0 } else { 4 };
        *out = group_scale(index / 16) * f32::from(code);
    }
}

/// Returns the scale and the minimum, of 6 bits each, of a group in `Q4_K` or `Q5_K`.
fn scale_and_least(scales: &[u8], group: usize) -> (f32, f32) {
    let (scale, least) = match group {
        0..4 => (scales[group] & 63, scales[group + 4] & 63),
        _ => {
            let both = scales[group + 4];
            (
                both & 15 | scales[group - 4] >> 6 << 4,
                both >> 4 | scales[group] >> 6 << 4,
            )
        }
    };
    (scale.into(), least.into())
}

/// Decodes eight groups of 32 numbers of 4 bits. Each group has a scale and a minimum of 6 bits.
fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (scale, least) = (half_at(block, 0), half_at(block, 2));
    let (scales, codes) = (&block[4..16], &block[16..]);
    for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (group_scale, group_least) = scale_and_least(scales, group);
        let (scale, least) = (scale * group_scale, least * group_least);
        let codes = &codes[group / 2 * 32..];
        for (out, &code) in out.iter_mut().zip(codes) {
            *out = scale * f32::from(code >> (group % 2 * 4) & 15) - least;
        }
    }
}

/// Decodes eight groups of 32 numbers of 5 bits. Each group has a scale and a minimum of 6 bits.
fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (scale, least) = (half_at(block, 0), half_at(block, 2));
    let (scales, high, codes) = (&block[4..16], &block[16..48], &block[48..]);
    for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (group_scale, group_least) = scale_and_least(scales, group);
        let (scale, least) = (scale * group_scale, least * group_least);
        let codes = codes[group / 2 * 32..].iter().zip(high);
        for (out, (&code, &high)) in out.iter_mut().zip(codes) {
            let code = code >> (group % 2 * 4) & 15 | (high >> group & 1) << 4;
            *out = scale * f32::from(code) - least;
        }
    }
}

/// Decodes sixteen groups of 16 numbers of 6 bits. Each group has a scale of 8 bits.
fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let scale = half_at(block, 208);
    for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        // Each half of 128 numbers has 64 bytes of low bits and 32 bytes of high bits.
        let (half, quarter) = (group / 4, group % 4);
        let low = &low[half * 64 + quarter % 2 * 32..];
        let high = &high[half * 32..];
        for (index, out) in out.iter_mut().enumerate() {
            let low = low[index] >> (quarter / 2 * 4) & 15;
            let high = high[index] >> (quarter * 2) & 3;
            let scale = scale * f32::from(scales[group * 2 + index / 16] as i8);
            *out = scale * f32::from((low | high << 4) as i8 - 32);
        }
    }
}

#[cfg(test)]
// A failed `unwrap` fails the test.
#[allow(clippy::unwrap_used)]
mod tests {
    use std::{fs, path::Path};

    use safetensors::SafeTensors;

    use super::*;

    /// All values that `tests/golden/number_types.py` wrote are equal bit for bit.
    #[test]
    fn values_are_those_of_torch_and_gguf() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        let file = fs::read(folder.join("number_types.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&file).unwrap();
        let codes: Vec<u8> = (0..=255).collect();
        let mut cases = vec![
            (Type::F8_E4M3, "f8_e4m3fn".to_owned(), codes.clone()),
            (Type::F8_E5M2, "f8_e5m2".to_owned(), codes),
        ];
        for number in [2, 3, 6, 7, 8, 10, 11, 12, 13, 14] {
            let dtype = Type::of_gguf(number).unwrap();
            let blocks = file.tensor(&format!("{dtype}.blocks")).unwrap();
            cases.push((dtype, format!("{dtype}.values"), blocks.data().to_vec()));
        }
        for (dtype, name, bytes) in cases {
            let expected = file.tensor(&name).unwrap();
            let (expected, _) = expected.data().as_chunks::<4>();
            let mut found = vec![0.0; expected.len()];
            assert_eq!(dtype.length(&[found.len()]), Some(bytes.len()));
            decode(dtype, &bytes, &mut found).unwrap();
            for (index, (&expected, found)) in expected.iter().zip(&found).enumerate() {
                assert_eq!(
                    found.to_bits(),
                    u32::from_le_bytes(expected),
                    "{dtype} {index}"
                );
            }
        }
    }

    #[test]
    fn all_f16_numbers() {
        let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let mut found = vec![0.0; 1 << 16];
        decode(Type::F16, &bytes, &mut found).unwrap();
        for (bits, found) in (0..=u16::MAX).zip(found) {
            let expected = f16::from_bits(bits).to_f32();
            assert_eq!(found.to_bits(), expected.to_bits(), "{bits:#x}");
        }
    }

    #[test]
    fn plain_numbers() {
        let decoded = |dtype, bytes: &[u8]| {
            let mut value = [0.0];
            decode(dtype, bytes, &mut value).map(|()| value[0])
        };
        assert_eq!(decoded(Type::F64, &1.0e-3f64.to_le_bytes()), Ok(1.0e-3));
        assert_eq!(
            decoded(Type::F64, &1.0e300f64.to_le_bytes()),
            Ok(f32::INFINITY)
        );
        assert_eq!(decoded(Type::F32, &2.5f32.to_le_bytes()), Ok(2.5));
        assert_eq!(decoded(Type::F16, &[0, 0x3c]), Ok(1.0));
        assert_eq!(decoded(Type::BF16, &[0x80, 0x3f]), Ok(1.0));
        assert_eq!(decoded(Type::I64, &(-3i64).to_le_bytes()), Ok(-3.0));
        assert_eq!(decoded(Type::U16, &[0xff, 0xff]), Ok(65535.0));
        assert_eq!(decoded(Type::BOOL, &[1]), Ok(1.0));
        assert_eq!(decoded(Type::IQ4_NL, &[0; 18]), Err(Type::IQ4_NL));
    }
}
