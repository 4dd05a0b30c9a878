//! Maps latent diffusion's names of the UNet's tensors.
//!
//! Its blocks are numbered across all levels, and a downsampling counts as a block. The level of a
//! block follows from the positions of the downsamplings and upsamplings.

use std::collections::{BTreeMap, HashMap};

use crate::checkpoint::names::{Fate, Tensor};

/// The current name of each block of latent diffusion: `input_blocks.4.1` is
/// `down_blocks.1.attentions.0`. It is empty for a UNet with diffusers' names.
#[derive(Debug, Default)]
pub(super) struct Layout(HashMap<String, String>);

/// The modules outside the blocks: latent diffusion's name and the current one.
pub(in crate::checkpoint) const SINGLE: [(&str, &str); 9] = [
    ("time_embed.0", "time_embedding.linear_1"),
    ("time_embed.2", "time_embedding.linear_2"),
    ("time_embed.cond_proj", "time_embedding.cond_proj"),
    ("label_emb.0.0", "add_embedding.linear_1"),
    ("label_emb.0.2", "add_embedding.linear_2"),
    ("input_blocks.0.0", "conv_in"),
    ("out.0", "conv_norm_out"),
    ("out.2", "conv_out"),
    ("encoder_hid_proj", "encoder_hid_proj"),
];

/// The modules of a residual block: latent diffusion's name and the current one.
pub(in crate::checkpoint) const RESNET: [(&str, &str); 6] = [
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
    ("skip_connection", "conv_shortcut"),
];

/// The kind of a part of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Resnet,
    Transformer,
    Downsampling,
    Upsampling,
}

impl Part {
    fn of(module: &str) -> Option<Self> {
        let first = module.split('.').next().unwrap_or_default();
        match first {
            "in_layers" => Some(Self::Resnet),
            "transformer_blocks" | "proj_in" => Some(Self::Transformer),
            "op" => Some(Self::Downsampling),
            "conv" => Some(Self::Upsampling),
            _ => None,
        }
    }
}

impl Layout {
    /// Finds the levels and names the blocks.
    pub fn of(tensors: &[Tensor<'_>]) -> Self {
        // The parts of each block, by the numbers of the block and the part.
        let mut found: [BTreeMap<(usize, usize), Part>; 3] = Default::default();
        for tensor in tensors {
            let mut split = tensor.rest.splitn(3, '.');
            let block = split.next().unwrap_or_default();
            let ways = ["input_blocks", "middle_block", "output_blocks"];
            let Some(way) = ways.iter().position(|&name| name == block) else {
                continue;
            };
            let Some(first) = split.next().and_then(|part| part.parse().ok()) else {
                continue;
            };
            let rest = split.next().unwrap_or_default();
            // The parts of the middle block are not nested in numbered blocks.
            let key = match way {
                1 => Some(((0, first), rest)),
                _ => rest.split_once('.').and_then(|(part, rest)| {
                    let part = part.parse().ok()?;
                    Some(((first, part), rest))
                }),
            };
            if let Some((key, part)) = key.and_then(|(key, rest)| Some((key, Part::of(rest)?))) {
                found[way].insert(key, part);
            }
        }
        let [down, mid, up] = found;
        let mut layout = Self::default();
        layout.down(&down);
        layout.up(&up);
        let (mut resnets, mut transformers) = (0, 0);
        for ((_, part), kind) in mid {
            let (kind, number) = match kind {
                Part::Resnet => ("resnets", &mut resnets),
                Part::Transformer => ("attentions", &mut transformers),
                _ => continue,
            };
            let today = format!("mid_block.{kind}.{number}");
            *number += 1;
            layout.0.insert(format!("middle_block.{part}"), today);
        }
        layout
    }

    fn down(&mut self, parts: &BTreeMap<(usize, usize), Part>) {
        let (mut level, mut layer) = (0, 0);
        for (&(block, part), kind) in parts {
            let today = match kind {
                Part::Resnet => {
                    layer += 1;
                    format!("down_blocks.{level}.resnets.{}", layer - 1)
                }
                // A transformer follows the residual block with the same number.
                Part::Transformer if layer > 0 => {
                    format!("down_blocks.{level}.attentions.{}", layer - 1)
                }
                Part::Downsampling => {
                    (level, layer) = (level + 1, 0);
                    format!("down_blocks.{}.downsamplers.0", level - 1)
                }
                _ => continue,
            };
            self.0.insert(format!("input_blocks.{block}.{part}"), today);
        }
    }

    fn up(&mut self, parts: &BTreeMap<(usize, usize), Part>) {
        let (mut level, mut layer) = (0, 0);
        for (&(block, part), kind) in parts {
            let today = match kind {
                Part::Resnet => {
                    layer += 1;
                    format!("up_blocks.{level}.resnets.{}", layer - 1)
                }
                Part::Transformer if layer > 0 => {
                    format!("up_blocks.{level}.attentions.{}", layer - 1)
                }
                Part::Upsampling => {
                    (level, layer) = (level + 1, 0);
                    format!("up_blocks.{}.upsamplers.0", level - 1)
                }
                _ => continue,
            };
            let block = format!("output_blocks.{block}.{part}");
            self.0.insert(block, today);
        }
    }

    /// Maps a tensor to its current name.
    pub fn rename(&self, name: &str) -> Fate {
        let today = self.today(name).unwrap_or_else(|| name.to_owned());
        match is_known(&today) {
            true => Fate::whole(today),
            false => Fate::Unknown,
        }
    }

    fn today(&self, name: &str) -> Option<String> {
        let (module, leaf) = name.rsplit_once('.')?;
        if let Some((_, today)) = SINGLE.iter().find(|(ldm, _)| *ldm == module) {
            return Some(format!("{today}.{leaf}"));
        }
        // The block is `input_blocks.4.1` in `input_blocks.4.1.proj_in.weight`. In the middle block
        // it has only two parts.
        let parts = if name.starts_with("middle_block.") {
            2
        } else {
            3
        };
        let (end, _) = name.match_indices('.').nth(parts - 1)?;
        let (block, inside) = (self.0.get(&name[..end])?, name[end + 1..].to_owned());
        if block.contains(".attentions.") {
            // Names within a transformer are the same.
            return Some(format!("{block}.{inside}"));
        }
        let (module, leaf) = inside.rsplit_once('.')?;
        let sampler = [("op", "conv"), ("conv", "conv")];
        let table: &[_] = match block.contains(".resnets.") {
            true => &RESNET,
            false => &sampler,
        };
        let (_, today) = table.iter().find(|(ldm, _)| *ldm == module)?;
        Some(format!("{block}.{today}.{leaf}"))
    }
}

/// Whether a UNet can have a tensor with this current name.
fn is_known(name: &str) -> bool {
    let Some((module, leaf)) = name.rsplit_once('.') else {
        return false;
    };
    if !["weight", "bias"].contains(&leaf) {
        return false;
    }
    if SINGLE.iter().any(|(_, today)| *today == module) {
        return true;
    }
    let parts: Vec<&str> = module.split('.').collect();
    let (block, inside) = match parts[..] {
        ["down_blocks" | "up_blocks", level, ref rest @ ..] if is_number(level) => (parts[0], rest),
        ["mid_block", ref rest @ ..] => (parts[0], rest),
        _ => return false,
    };
    match inside {
        ["resnets", number, part] if is_number(number) => {
            RESNET.iter().any(|(_, today)| today == part)
        }
        ["downsamplers", "0", "conv"] => block == "down_blocks",
        ["upsamplers", "0", "conv"] => block == "up_blocks",
        ["attentions", number, rest @ ..] if is_number(number) => match rest {
            ["norm" | "proj_in" | "proj_out"] => true,
            ["transformer_blocks", layer, rest @ ..] if is_number(layer) => {
                is_in_transformer(rest, leaf)
            }
            _ => false,
        },
        _ => false,
    }
}

fn is_in_transformer(module: &[&str], leaf: &str) -> bool {
    match module {
        ["norm1" | "norm2" | "norm3"] | ["ff", "net", "2"] | ["ff", "net", "0", "proj"] => true,
        ["attn1" | "attn2", "to_q" | "to_k" | "to_v"] => leaf == "weight",
        ["attn1" | "attn2", "to_out", "0"] => true,
        _ => false,
    }
}

pub(super) fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Returns the number of axes of a weight that is stored as a linear layer in some files and as a 1
/// × 1 convolution in others.
pub(super) fn rank(name: &str, linear: bool) -> Option<usize> {
    let module = name.strip_suffix(".weight")?;
    if module.ends_with(".conv_shortcut") {
        return Some(4);
    }
    if module.ends_with(".proj_in") || module.ends_with(".proj_out") {
        return Some(if linear { 2 } else { 4 });
    }
    let is_linear = module.contains(".transformer_blocks.") && !module.contains(".norm")
        || module.ends_with(".time_emb_proj");
    is_linear.then_some(2)
}
