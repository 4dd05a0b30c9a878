//! Merges randomly changed golden adapters, for one second. For longer runs:
//!
//! ```sh
//! SD_FUZZ_SECONDS=600 SD_FUZZ_SEED=2 cargo test -p sd-onnx --lib lora::tests::fuzz -- --nocapture
//! ```

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{
    super::{Lora, Targets, Use, merge::changed},
    golden::{Networks, base, golden},
};
use crate::Error;

#[test]
fn spoiled_adapters_are_merged_or_refused() {
    let setting = |name: &str| env::var(name).map_or(1, |value| value.parse::<u64>().unwrap());
    let (seconds, seed) = (setting("SD_FUZZ_SECONDS"), setting("SD_FUZZ_SEED"));
    let mut random = Random(seed.max(1));
    let folder = tempfile::tempdir().unwrap();
    let networks = base("four", folder.path());
    let files = adapters();
    let (mut merged, mut refused) = (0, 0);
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(seconds) {
        let (path, bytes) = &files[random.below(files.len())];
        let mut bytes = bytes.clone();
        for _ in 0..1 + random.below(3) {
            change(&mut bytes, &mut random);
        }
        let spoiled = folder.path().join(path.file_name().unwrap());
        fs::write(&spoiled, &bytes).unwrap();
        match merge(&spoiled, &networks) {
            Ok(()) => merged += 1,
            Err(error) => {
                assert!(error.to_string().len() < 4000, "{error}");
                refused += 1;
            }
        }
    }
    println!("{merged} merged, {refused} refused, seed {seed}");
    assert!(merged + refused > 0);
}

/// The golden adapters for the base model `four`.
fn adapters() -> Vec<(PathBuf, Vec<u8>)> {
    let files = fs::read_dir(golden().join("lora")).unwrap();
    let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    let is_adapter = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap();
        name.starts_with("sd1") && path.is_file()
    };
    files.retain(is_adapter);
    files.sort();
    let read = |path: PathBuf| {
        let bytes = fs::read(&path).unwrap();
        (path, bytes)
    };
    files.into_iter().map(read).collect()
}

/// Merges an adapter twice, and reads its factors.
fn merge(path: &Path, networks: &Networks) -> Result<(), Error> {
    let lora = Lora::open(path)?;
    // Spoiled inversions do not keep an adapter from being merged.
    let _ = lora.inversions();
    let of_model: Vec<_> = networks.iter().map(|(&name, it)| (name, it)).collect();
    let adapter = lora.fit(&Targets::new(&of_model))?;
    let used = Use {
        adapter: &adapter,
        multiplier: &|_| 0.7,
        rank: Some(2),
    };
    for (network, weights) in networks {
        changed(network, weights, &[used, used])?;
        if adapter.is_live() {
            adapter.factors(network)?;
        }
    }
    Ok(())
}

/// Makes one change.
fn change(bytes: &mut [u8], random: &mut Random) {
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    let header = usize::try_from(header).map_or(bytes.len(), |length| {
        bytes.len().min(length.saturating_add(8)).max(9)
    });
    match random.below(6) {
        // A digit of a shape, an offset or a name.
        0 | 1 => {
            let digits = (8..header).filter(|&place| bytes[place].is_ascii_digit());
            let digits: Vec<usize> = digits.collect();
            if let Some(&place) = digits.get(random.below(digits.len())) {
                bytes[place] = b'0' + random.below(10) as u8;
            }
        }
        // A letter of a name.
        2 => {
            let place = 8 + random.below(header - 8);
            if bytes[place].is_ascii_alphabetic() {
                bytes[place] = b'a' + random.below(26) as u8;
            }
        }
        3 => {
            let place = random.below(bytes.len());
            bytes[place] = random.below(256) as u8;
        }
        // The largest finite number, or parts of two numbers.
        4 => {
            let place = header + random.below(bytes.len() - header);
            if let Some(numbers) = bytes.get_mut(place..place + 4) {
                numbers.copy_from_slice(&f32::MAX.to_le_bytes());
            }
        }
        // Two parts of the header exchanged.
        _ => {
            let [a, b] = [0; 2].map(|_| 8 + random.below(header - 8));
            let length = random.below(12);
            if a.max(b) + length < header && a.abs_diff(b) > length {
                (0..length).for_each(|offset| bytes.swap(a + offset, b + offset));
            }
        }
    }
}

/// Marsaglia's xorshift (2003), for numbers that are the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end.max(1) as u64) as usize
    }
}
