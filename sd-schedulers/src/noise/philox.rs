use super::NoiseSource;

/// 2π / 2³² as a float32, 1.4629180922209239e-9. WebUI and curand multiply a word by it.
const STEP: f32 = f32::from_bits(0x30C9_0FDB);

/// 2⁻³².
const UNIT: f64 = 1.0 / (1u64 << 32) as f64;

/// Noise from the counter-based generator Philox 4x32-10, which graphics cards use.
///
/// The generator is from Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2,
/// 3", SC 2011, <https://doi.org/10.1145/2063384.2063405>.
///
/// All 64 bits of a seed count. One call of [`fill`](NoiseSource::fill) corresponds to one call of
/// `randn`: two halves do not equal the whole.
#[derive(Clone, Debug)]
pub struct Philox {
    key: [u32; 2],
    calls: u64,
    /// The number of threads of the card, or `None` for one thread per element.
    threads: Option<u32>,
}

impl Philox {
    /// Returns a generator for WebUI's source "NV" (`rng_philox.py`). Each value comes from its own
    /// thread, in float64, rounded to float32.
    ///
    /// The values are equal bit for bit if the platform's `ln` and `sin` are correct to 1 unit in
    /// the last place of a float64. An error of that size changes about one value in 2²⁸. The
    /// twelve values in the header of `rng_philox.py` belong to another constant, and differ by up
    /// to 2.1e-7 from what its code draws.
    pub fn webui(seed: u64) -> Self {
        Self {
            key: halves(seed),
            calls: 0,
            threads: None,
        }
    }

    /// Returns a generator for `torch.randn` of float32 on a CUDA device.
    ///
    /// `threads` is the number of multiprocessors of the device times the number of threads that
    /// each holds. [`cuda_threads`](crate::noise::cuda_threads) knows common cards, and torch has
    /// both numbers in `get_device_properties`. Values below 256 count as 256.
    ///
    /// The values are within 1e-5 of torch's, not equal bit for bit. The sine and cosine of a card
    /// are approximations with errors up to 2⁻²⁰, and are multiplied by up to 6.7. The first
    /// `threads` values of a call equal the ones of [`webui`](Self::webui), within the same bound.
    /// Further values depend on the card. This was compared with what torch's kernel computes,
    /// written down in Python, and not with a card, because this project has none. The program
    /// `benches/compare/cuda.py` compares both on a machine with a card.
    pub fn cuda(seed: u64, threads: u32) -> Self {
        Self {
            threads: Some(threads),
            ..Self::webui(seed)
        }
    }

    /// Returns the words that a thread draws in its next call.
    fn words(&self, thread: usize) -> [u32; 4] {
        let [low, high] = halves(self.calls);
        block([low, high, thread as u32, 0], self.key)
    }

    /// The grid-stride loop over `curand_normal4`. The four values that a thread draws in a call
    /// lie `launched` apart.
    fn fill_by_threads(&mut self, threads: u32, out: &mut [f32]) {
        if out.is_empty() {
            return;
        }
        let launched = 256 * (threads as usize / 256).clamp(1, out.len().div_ceil(256));
        for round in out.chunks_mut(4 * launched) {
            for thread in 0..launched.min(round.len()) {
                let [x, y, z, w] = self.words(thread);
                let mut places = (thread..round.len()).step_by(launched);
                for (x, y) in [(x, y), (z, w)] {
                    let Some(place) = places.next() else { break };
                    let (sine, cosine) = pair(x, y);
                    round[place] = sine;
                    if let Some(place) = places.next() {
                        round[place] = cosine;
                    }
                }
            }
            self.calls = self.calls.wrapping_add(1);
        }
    }
}

impl NoiseSource for Philox {
    fn fill(&mut self, out: &mut [f32]) {
        if let Some(threads) = self.threads {
            return self.fill_by_threads(threads, out);
        }
        for (thread, out) in out.iter_mut().enumerate() {
            let [x, y, ..] = self.words(thread);
            *out = single(x, y, STEP.into());
        }
        self.calls = self.calls.wrapping_add(1);
    }
}

fn halves(number: u64) -> [u32; 2] {
    [number as u32, (number >> 32) as u32]
}

/// Runs the ten rounds of Philox.
fn block(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let ([mut c0, mut c1, mut c2, mut c3], [mut k0, mut k1]) = (counter, key);
    for _ in 0..10 {
        let p = 0xD251_1F53 * u64::from(c0);
        let q = 0xCD9E_8D57 * u64::from(c2);
        let (p_high, q_high) = ((p >> 32) as u32, (q >> 32) as u32);
        (c0, c1, c2, c3) = (q_high ^ c1 ^ k0, q as u32, p_high ^ c3 ^ k1, p as u32);
        k0 = k0.wrapping_add(0x9E37_79B9);
        k1 = k1.wrapping_add(0xBB67_AE85);
    }
    [c0, c1, c2, c3]
}

/// Applies Box–Muller in float64 and keeps only the sine.
fn single(x: u32, y: u32, step: f64) -> f32 {
    let u = f64::from(x) * UNIT + UNIT / 2.0;
    let v = f64::from(y) * step + step / 2.0;
    ((-2.0 * u.ln()).sqrt() * v.sin()) as f32
}

/// Applies Box–Muller in float32 and returns the sine and the cosine.
fn pair(x: u32, y: u32) -> (f32, f32) {
    // The card rounds u to float32. Near 1, where the logarithm is steep, float64 would give
    // another value.
    let u = x as f32 * UNIT as f32 + (UNIT / 2.0) as f32;
    // The card fuses this, and the product is exact in float64.
    let step = f64::from(STEP);
    let v = (f64::from(y as f32) * step + step / 2.0) as f32;
    let radius = (-2.0 * u.ln()).sqrt();
    let (sine, cosine) = v.sin_cos();
    (radius * sine, radius * cosine)
}

#[cfg(test)]
mod tests {
    use std::f64::consts::PI;

    use serde_json::Value;

    use super::*;

    /// The known answers of Random123, the reference implementation.
    #[test]
    fn block_is_philox() {
        let zeros = [0x6627_E8D5, 0xE169_C58D, 0xBC57_AC4C, 0x9B00_DBD8];
        assert_eq!(block([0; 4], [0; 2]), zeros);
        let ones = [0x408F_276D, 0x41C8_3B0E, 0xA20B_C7C6, 0x6D54_51FD];
        assert_eq!(block([u32::MAX; 4], [u32::MAX; 2]), ones);
    }

    /// The values in the header of `rng_philox.py` belong to the constant before it is rounded to
    /// float32. The bound is half of their last decimal plus half a unit in the last place of a
    /// float32.
    #[test]
    fn the_published_values_are_of_the_exact_constant() {
        let golden = include_str!("../../tests/golden/noise.json");
        let golden: Value = serde_json::from_str(golden).unwrap();
        let golden = &golden["philox_published"];
        let source = Philox::webui(golden["seed"].as_u64().unwrap());
        for thread in 0..12 {
            let [x, y, ..] = source.words(thread);
            let value = single(x, y, 2.0 * PI * UNIT);
            let exact = golden["exact_constant"][thread].as_u64().unwrap();
            assert_eq!(u64::from(value.to_bits()), exact, "{value}");
            let published = golden["decimal"][thread].as_f64().unwrap();
            let bound = 5.1e-9 + 6e-8 * published.abs();
            let off = (f64::from(value) - published).abs();
            assert!(off < bound, "{value} != {published}");
        }
    }
}
