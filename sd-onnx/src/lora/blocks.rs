//! The blocks of a UNet that a LoRA can have different weights for.

use sd_core::LoraBlocks;

use super::keys::UNET;

/// The number of blocks on each of the two paths of latent diffusion's UNet.
const BLOCKS: usize = 12;
/// The index of the first block of each part in [`LoraBlocks`].
const DOWN: usize = 1;
const MIDDLE: usize = DOWN + BLOCKS;
const UP: usize = MIDDLE + 1;

/// Returns the factor of a tensor, by its current name. `resnets` is the number of residual blocks
/// in a level of the UNet.
///
/// The time embeddings and the last convolution belong to no block, and have the factor 1.
pub(super) fn factor(blocks: &LoraBlocks, network: &str, tensor: &str, resnets: usize) -> f32 {
    if network != UNET {
        return blocks.0[0];
    }
    block_of(tensor, resnets).map_or(1.0, |block| blocks.0[block])
}

/// Returns the index of a tensor's block in [`LoraBlocks`].
///
/// Latent diffusion numbers its blocks across all levels. On the way down, the first block is the
/// first convolution, and a downsampling is a block. On the way up, there is one residual block
/// more, and an upsampling is a part of it.
fn block_of(tensor: &str, resnets: usize) -> Option<usize> {
    if tensor.starts_with("conv_in.") {
        return Some(DOWN);
    }
    if tensor.starts_with("mid_block.") {
        return Some(MIDDLE);
    }
    let mut parts = tensor.split('.');
    let way = parts.next()?;
    let level: usize = parts.next()?.parse().ok()?;
    let (kind, index) = (parts.next()?, parts.next()?);
    let last = matches!(kind, "downsamplers" | "upsamplers");
    let layer = match last {
        true => resnets,
        false => index.parse().ok()?,
    };
    let block = level.checked_mul(resnets + 1)?.checked_add(layer)?;
    match way {
        "down_blocks" if block < BLOCKS - 1 => Some(DOWN + 1 + block),
        "up_blocks" if block < BLOCKS => Some(UP + block),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_numbered_as_in_latent_diffusion() {
        // `OUT05` is the 20th of the 26 names.
        let names = [
            ("conv_in.weight", Some(1)),
            ("down_blocks.0.attentions.0.proj_in.weight", Some(2)),
            ("down_blocks.0.downsamplers.0.conv.weight", Some(4)),
            ("down_blocks.3.resnets.1.conv1.weight", Some(12)),
            ("mid_block.attentions.0.proj_in.weight", Some(13)),
            ("up_blocks.0.resnets.0.conv1.weight", Some(14)),
            ("up_blocks.1.attentions.2.proj_in.weight", Some(19)),
            ("up_blocks.1.upsamplers.0.conv.weight", Some(19)),
            ("up_blocks.3.resnets.2.conv1.weight", Some(25)),
            ("time_embedding.linear_1.weight", None),
            ("conv_out.weight", None),
            ("up_blocks.99999999999999999999.resnets.0.x", None),
        ];
        for (name, block) in names {
            assert_eq!(block_of(name, 2), block, "{name}");
        }
    }
}
