//! The UNet's names. Blocks are numbered across levels, and a downsampling counts as a block.

use std::collections::HashMap;

use super::{Shapes, Stored, reversed, whole};
use crate::checkpoint::unet::{RESNET, SINGLE};

pub(super) fn stored(prefix: &str, shapes: &Shapes<'_>) -> Result<Vec<Stored>, String> {
    let blocks = Blocks::of(shapes);
    let tensors = shapes.iter().map(|(&today, shape)| {
        let name = blocks.name(today).ok_or_else(|| today.to_owned())?;
        Ok(whole(format!("{prefix}{name}"), today, shape))
    });
    tensors.collect()
}

/// Latent diffusion's name for each block with a current name: `down_blocks.1.attentions.0` is
/// `input_blocks.4.1`.
#[derive(Debug, Default)]
struct Blocks(HashMap<String, String>);

impl Blocks {
    fn of(shapes: &Shapes<'_>) -> Self {
        let has = |start: &str| {
            let start = format!("{start}.");
            let from = shapes.range(start.as_str()..).next();
            from.is_some_and(|(name, _)| name.starts_with(&start))
        };
        let mut blocks = Self::default();
        blocks.add_down(&has);
        blocks.add_up(&has);
        let parts = ["resnets.0", "attentions.0", "resnets.1"];
        let parts = parts.map(|part| format!("mid_block.{part}"));
        for (number, part) in parts.into_iter().filter(|part| has(part)).enumerate() {
            blocks.0.insert(part, format!("middle_block.{number}"));
        }
        blocks
    }

    /// Adds the down blocks. `has` returns whether the file has tensors of a block.
    fn add_down(&mut self, has: &dyn Fn(&str) -> bool) {
        // Block 0 is the first convolution.
        let mut number = 1;
        for level in (0..).take_while(|level| has(&format!("down_blocks.{level}"))) {
            let block = format!("down_blocks.{level}");
            for layer in (0..).take_while(|layer| has(&format!("{block}.resnets.{layer}"))) {
                self.add_layer(&block, layer, &format!("input_blocks.{number}"));
                number += 1;
            }
            let sampler = format!("{block}.downsamplers.0");
            if has(&sampler) {
                self.0.insert(sampler, format!("input_blocks.{number}.0"));
                number += 1;
            }
        }
    }

    /// Adds the up blocks. `has` returns whether the file has tensors of a block.
    fn add_up(&mut self, has: &dyn Fn(&str) -> bool) {
        let mut number = 0;
        for level in (0..).take_while(|level| has(&format!("up_blocks.{level}"))) {
            let block = format!("up_blocks.{level}");
            let mut last = 0;
            for layer in (0..).take_while(|layer| has(&format!("{block}.resnets.{layer}"))) {
                self.add_layer(&block, layer, &format!("output_blocks.{number}"));
                last = usize::from(has(&format!("{block}.attentions.{layer}")));
                number += 1;
            }
            // The upsampling comes after the parts of the level's last block.
            let sampler = format!("output_blocks.{}.{}", number.max(1) - 1, last + 1);
            self.0.insert(format!("{block}.upsamplers.0"), sampler);
        }
    }

    /// Adds the resnet of a layer, and the attention that may follow it.
    fn add_layer(&mut self, block: &str, layer: usize, name: &str) {
        for (part, kind) in ["resnets", "attentions"].into_iter().enumerate() {
            let today = format!("{block}.{kind}.{layer}");
            self.0.insert(today, format!("{name}.{part}"));
        }
    }

    /// Returns the name of a tensor in latent diffusion.
    fn name(&self, today: &str) -> Option<String> {
        let (module, leaf) = today.rsplit_once('.')?;
        if let Some(single) = reversed(&SINGLE, module) {
            return Some(format!("{single}.{leaf}"));
        }
        // For example `down_blocks.1.attentions.0`, but `mid_block.attentions.0`.
        let parts = if today.starts_with("mid_block.") {
            3
        } else {
            4
        };
        let (end, _) = today.match_indices('.').nth(parts - 1)?;
        let (block, inside) = (&today[..end], &today[end + 1..]);
        let name = self.0.get(block)?;
        if block.contains(".attentions.") {
            // Names within a transformer are the same.
            return Some(format!("{name}.{inside}"));
        }
        let (module, leaf) = inside.rsplit_once('.')?;
        let module = match block {
            _ if block.contains(".resnets.") => reversed(&RESNET, module)?,
            _ if module != "conv" => return None,
            _ if block.contains(".downsamplers.") => "op",
            _ => "conv",
        };
        Some(format!("{name}.{module}.{leaf}"))
    }
}
