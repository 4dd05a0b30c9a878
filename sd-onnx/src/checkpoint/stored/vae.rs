//! The autoencoder's names. The decoder's levels are numbered from the largest size on, and the
//! attention consists of 1 × 1 convolutions.

use super::{Shapes, Stored, whole};

pub(super) fn stored(prefix: &str, shapes: &Shapes<'_>) -> Result<Vec<Stored>, String> {
    let level = |name: &&str| {
        let rest = name.strip_prefix("decoder.up_blocks.")?;
        rest.split('.').next()?.parse::<usize>().ok()
    };
    let ups = shapes
        .keys()
        .filter_map(level)
        .max()
        .map_or(0, |last| last + 1);
    let tensors = shapes.iter().map(|(&today, &shape)| {
        let name = name(today, ups).ok_or_else(|| today.to_owned())?;
        let mut stored = whole(format!("{prefix}{name}"), today, shape);
        if name.contains(".attn_1.") && shape.len() == 2 {
            stored.shape.extend([1, 1]);
        }
        Ok(stored)
    });
    tensors.collect()
}

fn name(today: &str, ups: usize) -> Option<String> {
    let (module, leaf) = today.rsplit_once('.')?;
    let parts: Vec<&str> = module.split('.').collect();
    let name = match parts[..] {
        ["quant_conv" | "post_quant_conv"] | ["decoder", "condition_encoder", ..] => {
            module.to_owned()
        }
        // TAESD's author also counts the decoder's first layer, which has no weights.
        ["encoder", "layers", layer, ref rest @ ..] => tiny("taesd_encoder", layer, rest, 0)?,
        ["decoder", "layers", layer, ref rest @ ..] => tiny("taesd_decoder", layer, rest, 1)?,
        [half @ ("encoder" | "decoder"), ref rest @ ..] => {
            format!("{half}.{}", half_module(rest, ups)?)
        }
        _ => return None,
    };
    Some(format!("{name}.{leaf}"))
}

fn tiny(half: &str, layer: &str, rest: &[&str], uncounted: usize) -> Option<String> {
    let layer = layer.parse::<usize>().ok()? + uncounted;
    let parts: Vec<String> = [half.to_owned(), layer.to_string()]
        .into_iter()
        .chain(rest.iter().map(|&part| part.to_owned()))
        .collect();
    Some(parts.join("."))
}

/// Returns the name of a module in the encoder or the decoder.
fn half_module(module: &[&str], ups: usize) -> Option<String> {
    Some(match *module {
        ["conv_in" | "conv_out"] => module[0].to_owned(),
        ["conv_norm_out"] => "norm_out".to_owned(),
        ["down_blocks", level, "resnets", layer, part] => {
            format!("down.{level}.block.{layer}.{}", resnet(part))
        }
        ["down_blocks", level, "downsamplers", "0", "conv"] => {
            format!("down.{level}.downsample.conv")
        }
        ["up_blocks", level, "resnets", layer, part] => {
            format!("up.{}.block.{layer}.{}", up(level, ups)?, resnet(part))
        }
        ["up_blocks", level, "upsamplers", "0", "conv"] => {
            format!("up.{}.upsample.conv", up(level, ups)?)
        }
        ["mid_block", "resnets", layer, part] => {
            let layer = layer.parse::<usize>().ok()? + 1;
            format!("mid.block_{layer}.{}", resnet(part))
        }
        ["mid_block", "attentions", "0", ref part @ ..] => {
            let part = match part {
                ["group_norm"] => "norm",
                ["to_q"] => "q",
                ["to_k"] => "k",
                ["to_v"] => "v",
                ["to_out", "0"] => "proj_out",
                _ => return None,
            };
            format!("mid.attn_1.{part}")
        }
        _ => return None,
    })
}

/// Returns the number of a level when levels are counted from the other end.
fn up(level: &str, ups: usize) -> Option<usize> {
    ups.checked_sub(1)?.checked_sub(level.parse().ok()?)
}

fn resnet(part: &str) -> &str {
    match part {
        "conv_shortcut" => "nin_shortcut",
        part => part,
    }
}
