use std::f64::consts::PI;

use rand_mt::Mt;

use super::NoiseSource;

/// The noise of `torch.randn` on the CPU, bit for bit, so that a seed means the same as in Python
/// programs.
///
/// It uses a Mersenne Twister (MT19937) and Box–Muller as torch 2.15 does on x86-64 processors
/// with AVX2:
/// - From 16 values on, blocks of 16 values in float32, with the Cephes polynomials of
///   `avx_mathfun`.
/// - Below 16 values, pairs in float64. The second value of a pair is kept for the next draw.
///
/// One call of [`fill`](NoiseSource::fill) corresponds to one call of `randn`: two halves do not
/// equal the whole. torch on a CUDA device draws other numbers, with
/// [`Philox`](crate::noise::Philox).
#[derive(Clone, Debug)]
pub struct TorchRng {
    twister: Mt,
    waiting: Option<f64>,
}

impl TorchRng {
    /// Returns the generator of `torch.Generator().manual_seed(seed)`. Only the low 32 bits of the
    /// seed count.
    pub fn new(seed: u64) -> Self {
        Self {
            twister: Mt::new(seed as u32),
            waiting: None,
        }
    }

    /// Draws a uniform value in [0, 1), in steps of 2⁻²⁴.
    fn uniform(&mut self) -> f32 {
        (self.twister.next_u32() & 0xFF_FFFF) as f32 / (1u32 << 24) as f32
    }

    /// Draws a uniform value in [0, 1), in steps of 2⁻⁵³. The first 32-bit draw is the high
    /// half.
    fn uniform_f64(&mut self) -> f64 {
        let high = u64::from(self.twister.next_u32());
        let low = u64::from(self.twister.next_u32());
        (((high << 32) | low) & ((1 << 53) - 1)) as f64 / (1u64 << 53) as f64
    }

    fn normal_f64(&mut self) -> f64 {
        self.waiting.take().unwrap_or_else(|| {
            let (u1, u2) = (self.uniform_f64(), self.uniform_f64());
            let (radius, theta) = ((-2.0 * (-u2).ln_1p()).sqrt(), 2.0 * PI * u1);
            self.waiting = Some(radius * theta.sin());
            radius * theta.cos()
        })
    }
}

impl NoiseSource for TorchRng {
    fn fill(&mut self, out: &mut [f32]) {
        if out.len() < 16 {
            return out.fill_with(|| self.normal_f64() as f32);
        }
        out.fill_with(|| self.uniform());
        out.as_chunks_mut().0.iter_mut().for_each(box_muller);
        // torch does not draw for the remaining values alone. It draws the last 16 afresh, although
        // some are done already.
        if !out.len().is_multiple_of(16)
            && let Some(tail) = out.last_chunk_mut()
        {
            tail.fill_with(|| self.uniform());
            box_muller(tail);
        }
    }
}

/// Turns 16 uniform values into 16 normal ones: the cosines of all pairs, then the sines.
fn box_muller(block: &mut [f32; 16]) {
    const TWO_PI: f32 = (2.0 * PI) as f32;
    for j in 0..8 {
        let (u1, u2) = (1.0 - block[j], block[j + 8]);
        let radius = (-2.0 * ln(u1)).sqrt();
        let (sin, cos) = sin_cos(TWO_PI * u2);
        block[j] = radius * cos;
        block[j + 8] = radius * sin;
    }
}

/// Cephes' `logf` for 2⁻²⁴ <= x <= 1, with fused multiply-adds where torch's compiler fuses.
fn ln(x: f32) -> f32 {
    const COEFFICIENTS: [f32; 9] = [
        7.037_683_6e-2,
        -1.151_461e-1,
        1.167_699_87e-1,
        -1.242_014_1e-1,
        1.424_932_3e-1,
        -1.666_805_8e-1,
        2.000_071_4e-1,
        -2.499_999_4e-1,
        3.333_333e-1,
    ];
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;

    let mut exponent = ((x.to_bits() >> 23) as i32 - 126) as f32;
    // Bring the mantissa from [0.5, 1) to [sqrt(0.5), sqrt(2)).
    let mantissa = f32::from_bits(x.to_bits() & 0x007F_FFFF | 0x3F00_0000);
    let mut x = mantissa - 1.0;
    if mantissa < std::f32::consts::FRAC_1_SQRT_2 {
        exponent -= 1.0;
        x += mantissa;
    }
    let z = x * x;
    let y = COEFFICIENTS[1..]
        .iter()
        .fold(COEFFICIENTS[0], |y, c| y.mul_add(x, *c))
        * x;
    let y = y.mul_add(z, exponent * LN2_LOW);
    let y = (-0.5_f32).mul_add(z, y);
    exponent.mul_add(LN2_HIGH, x + y)
}

/// Cephes' `sincosf` for x >= 0, with fused multiply-adds where torch's compiler fuses.
fn sin_cos(x: f32) -> (f32, f32) {
    const FOUR_OVER_PI: f32 = 1.273_239_5;
    const PI_OVER_4: [f32; 3] = [0.785_156_25, 2.418_756_5e-4, 3.774_895e-8];
    const COS: [f32; 3] = [2.443_315_7e-5, -1.388_731_6e-3, 4.166_664_6e-2];
    const SIN: [f32; 3] = [-1.951_529_6e-4, 8.332_161e-3, -1.666_665_5e-1];

    let octant = ((x * FOUR_OVER_PI) as i32 + 1) & !1;
    let x = PI_OVER_4
        .iter()
        .fold(x, |x, part| (-(octant as f32)).mul_add(*part, x));
    let z = x * x;
    let cos = COS[0].mul_add(z, COS[1]).mul_add(z, COS[2]) * z;
    let cos = cos.mul_add(z, -0.5 * z) + 1.0;
    let sin = SIN[0].mul_add(z, SIN[1]).mul_add(z, SIN[2]) * z;
    let sin = sin.mul_add(x, x);

    let (sin, cos) = if octant & 2 == 0 {
        (sin, cos)
    } else {
        (cos, sin)
    };
    let negate_sin = octant & 4 != 0;
    let negate_cos = (octant - 2) & 4 == 0;
    (
        if negate_sin { -sin } else { sin },
        if negate_cos { -cos } else { cos },
    )
}

#[cfg(test)]
mod tests {
    use safetensors::SafeTensors;

    use super::*;

    /// Each tensor is named `seed_n_n…` and holds draws of those lengths, one after the other.
    #[test]
    fn equals_torch_bit_for_bit() {
        let golden = include_bytes!("../../tests/golden/randn.safetensors");
        let golden = SafeTensors::deserialize(golden).unwrap();
        assert!(golden.len() > 80);
        for (name, tensor) in golden.tensors() {
            let mut numbers = name.split('_').map(|n| n.parse::<u64>().unwrap());
            let mut rng = TorchRng::new(numbers.next().unwrap());
            let mut found = Vec::new();
            for count in numbers {
                let mut out = vec![0.0; count as usize];
                rng.fill(&mut out);
                found.extend(out.iter().map(|v| v.to_bits()));
            }
            let expected: Vec<u32> = tensor
                .data()
                .chunks_exact(4)
                .map(|b| u32::from_le_bytes(b.try_into().unwrap()))
                .collect();
            let differing = found.iter().zip(&expected).filter(|(f, e)| f != e).count();
            assert_eq!((found.len(), differing), (expected.len(), 0), "{name}");
        }
    }

    #[test]
    fn no_values_are_no_problem() {
        TorchRng::new(0).fill(&mut []);
    }
}
