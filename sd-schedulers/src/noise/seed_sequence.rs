/// numpy's `SeedSequence` with a pool of 24 words, as far as a Brownian tree needs it: the first
/// word that it generates for a child.
///
/// It follows O'Neill's `seed_seq_fe`,
/// <https://www.pcg-random.org/posts/developing-a-seed_seq-alternative.html>.
#[derive(Clone, Debug)]
pub(super) struct SeedSequence {
    /// The first word of the pool, from which the first generated word is made.
    first: u32,
    hash: Hash,
}

const POOL: usize = 24;

impl SeedSequence {
    /// Makes `SeedSequence(seed, pool_size=24)`.
    pub fn new(seed: u64) -> Self {
        let mut hash = Hash(0x43B0_D7E5);
        let mut pool = [0; POOL];
        [pool[0], pool[1]] = [seed as u32, (seed >> 32) as u32];
        for word in &mut pool {
            *word = hash.of(*word);
        }
        for source in 0..POOL {
            for target in 0..POOL {
                if source != target {
                    pool[target] = mixed(pool[target], hash.of(pool[source]));
                }
            }
        }
        let first = pool[0];
        Self { first, hash }
    }

    /// Returns the word of the child with this spawn key, or the sequence's own word if the key is
    /// empty.
    pub fn word(&self, spawn_key: &[u64]) -> u32 {
        let (mut first, mut hash) = (self.first, self.hash.clone());
        for &number in spawn_key {
            let words = [number as u32, (number >> 32) as u32];
            let count = if words[1] == 0 { 1 } else { 2 };
            for &word in &words[..count] {
                first = mixed(first, hash.of(word));
                // The other words of the pool have no further effect, but mixing them advances the
                // hash.
                for _ in 1..POOL {
                    hash.advance();
                }
            }
        }
        let word = first ^ 0x8B51_F9DD;
        let word = word.wrapping_mul(0x8B51_F9DD).wrapping_mul(0x58F3_8DED);
        word ^ (word >> 16)
    }
}

/// A hash that changes with each use.
#[derive(Clone, Debug)]
struct Hash(u32);

impl Hash {
    fn advance(&mut self) {
        self.0 = self.0.wrapping_mul(0x931E_8875);
    }

    fn of(&mut self, word: u32) -> u32 {
        let word = word ^ self.0;
        self.advance();
        let word = word.wrapping_mul(self.0);
        word ^ (word >> 16)
    }
}

fn mixed(x: u32, y: u32) -> u32 {
    let word = 0xCA01_F9DD_u32
        .wrapping_mul(x)
        .wrapping_sub(0x4973_F715_u32.wrapping_mul(y));
    word ^ (word >> 16)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn equals_numpy() {
        let golden = include_str!("../../tests/golden/noise.json");
        let golden: Value = serde_json::from_str(golden).unwrap();
        for row in golden["seed_sequence"].as_array().unwrap() {
            let key = row["spawn_key"].as_array().unwrap();
            let key: Vec<u64> = key.iter().map(|n| n.as_u64().unwrap()).collect();
            let word = SeedSequence::new(row["entropy"].as_u64().unwrap()).word(&key);
            assert_eq!(u64::from(word), row["word"].as_u64().unwrap(), "{row}");
        }
    }
}
