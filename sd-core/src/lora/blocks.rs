//! Weights of blocks, in the syntax of the extension `sd-webui-lora-block-weight`.

use super::{LoraBlocks, number::float};

/// The presets of the extension, which are lists of 17 numbers.
pub(super) const PRESETS: [(&str, [f32; 17]); 10] = [
    ("NONE", [0.0; 17]),
    ("ALL", [1.0; 17]),
    ("INS", spread("11110000000000000")),
    ("IND", spread("10001110000000000")),
    ("INALL", spread("11111110000000000")),
    ("MIDD", spread("10001111111100000")),
    ("OUTD", spread("10000000111100000")),
    ("OUTS", spread("10000000000011111")),
    ("OUTALL", spread("10000000111111111")),
    ("ALL0.5", [0.5; 17]),
];

/// The blocks that a list of 12 numbers names, as indices of [`LoraBlocks`]: SDXL's blocks with
/// attention.
const OF_12: [usize; 12] = [0, 5, 6, 8, 9, 13, 14, 15, 16, 17, 18, 19];

/// The blocks that a list of 17 numbers names: Stable Diffusion's blocks with attention.
const OF_17: [usize; 17] = [0, 2, 3, 5, 6, 8, 9, 13, 17, 18, 19, 20, 21, 22, 23, 24, 25];

/// The blocks that a list of 20 numbers names: all blocks of SDXL.
const OF_20: [usize; 20] = [
    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22,
];

/// Returns a factor for each digit, 0 or 1.
const fn spread(digits: &str) -> [f32; 17] {
    let mut factors = [0.0; 17];
    let mut i = 0;
    while i < 17 {
        if digits.as_bytes()[i] == b'1' {
            factors[i] = 1.0;
        }
        i += 1;
    }
    factors
}

/// Returns whether a text without a key is meant as weights of blocks: if it is the name of a
/// preset, or has as many values as there are blocks.
pub(super) fn is_blocks(text: &str) -> bool {
    let is_preset = PRESETS.iter().any(|(name, _)| *name == text);
    let has_steps = text.contains(['@', '~']);
    is_preset || !has_steps && matches!(text.split(',').count(), 12 | 17 | 20 | 26)
}

/// Parses the name of a preset, or a list of 12, 17, 20 or 26 numbers. Blocks that a shorter list
/// does not name have the factor 0. Returns `None` for any other text.
pub(super) fn parse(text: &str) -> Option<LoraBlocks> {
    let text = text.trim();
    if let Some((_, factors)) = PRESETS.iter().find(|(name, _)| *name == text) {
        return placed(factors, &OF_17);
    }
    let numbers = text
        .split(',')
        .map(|number| float(number).map(|it| it as f32));
    let numbers: Vec<f32> = numbers.collect::<Option<_>>()?;
    match numbers.len() {
        12 => placed(&numbers, &OF_12),
        17 => placed(&numbers, &OF_17),
        20 => placed(&numbers, &OF_20),
        _ => Some(LoraBlocks(numbers.try_into().ok()?)),
    }
}

fn placed(factors: &[f32], blocks: &[usize]) -> Option<LoraBlocks> {
    let mut all = [0.0; 26];
    for (&block, &factor) in blocks.iter().zip(factors) {
        all[block] = factor;
    }
    Some(LoraBlocks(all))
}
