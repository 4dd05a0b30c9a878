//! Maps TAESD's names.
//!
//! Its author writes one file per half, with the layers numbered from 0. diffusers has both halves
//! in one file, and does not count the decoder's first layer, which bounds the latents and has no
//! weights.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::shape;
use crate::checkpoint::{
    Component, Problem,
    names::{Fate, Renamed, Tensor, object},
};

pub(super) fn is_tiny(tensors: &[Tensor<'_>]) -> bool {
    let tiny = |tensor: &Tensor<'_>| {
        let rest = tensor.rest;
        let starts = ["taesd_", "encoder.layers.", "decoder.layers."];
        starts.iter().any(|start| rest.starts_with(start))
            || rest.as_bytes().first().is_some_and(u8::is_ascii_digit)
    };
    tensors.iter().any(tiny)
}

pub(super) fn read(tensors: &[Tensor<'_>]) -> Result<Component, Problem> {
    // A file with one half has no prefix. Only the encoder has a weight in its first layer.
    let alone = match tensors.iter().any(|tensor| tensor.rest == "0.weight") {
        true => "taesd_encoder",
        false => "taesd_decoder",
    };
    let renamed = Renamed::of(tensors, |tensor| rename(tensor.rest, alone))?;
    let config = config(&renamed)?;
    Ok(renamed.component(config))
}

fn rename(name: &str, alone: &str) -> Fate {
    // ComfyUI writes these. They are 1 and 0, because TAESD's latents need no scaling.
    if ["vae_scale", "vae_shift"].contains(&name) {
        return Fate::LeftOut;
    }
    let (half, rest) = match name.split_once('.') {
        Some((half @ ("taesd_encoder" | "taesd_decoder"), rest)) => (half, rest),
        Some((half @ ("encoder" | "decoder"), rest)) => match rest.strip_prefix("layers.") {
            Some(rest) => return known(half, rest, 0),
            None => return Fate::Unknown,
        },
        _ => (alone, name),
    };
    match half {
        "taesd_encoder" => known("encoder", rest, 0),
        _ => known("decoder", rest, 1),
    }
}

/// Maps a tensor of a layer. `rest` is the layer's number and the tensor's place in the layer,
/// which is a convolution or a block of three. `uncounted` is subtracted from the number.
fn known(half: &str, rest: &str, uncounted: usize) -> Fate {
    let parts: Vec<&str> = rest.split('.').collect();
    let layer = parts.first().and_then(|layer| layer.parse::<usize>().ok());
    let Some(layer) = layer.and_then(|layer| layer.checked_sub(uncounted)) else {
        return Fate::Unknown;
    };
    match parts[1..] {
        ["weight" | "bias"] => {}
        ["conv", "0" | "2" | "4", "weight" | "bias"] => {}
        _ => return Fate::Unknown,
    }
    Fate::whole(format!("{half}.layers.{layer}.{}", parts[1..].join(".")))
}

/// The channels of a half, the number of blocks per level, and the latent channels.
struct Half {
    channels: usize,
    blocks: Vec<usize>,
    latents: usize,
}

impl Half {
    /// Infers a half from its layers. A convolution precedes each level and follows the last.
    fn of(renamed: &Renamed, half: &str) -> Result<Option<Self>, Problem> {
        let start = format!("{half}.layers.");
        let mut layers = BTreeMap::new();
        for (name, seen) in &renamed.tensors {
            let Some((layer, what)) = name.strip_prefix(&start).and_then(|r| r.split_once('.'))
            else {
                continue;
            };
            let layer: usize = layer.parse().unwrap_or(usize::MAX);
            match what {
                "weight" => _ = layers.insert(layer, Some(&seen.shape[..])),
                "conv.0.weight" => _ = layers.insert(layer, None),
                _ => {}
            }
        }
        let mut convs: Vec<&[usize]> = Vec::new();
        let mut blocks: Vec<usize> = Vec::new();
        for layer in layers.values() {
            match layer {
                Some(shape) => {
                    convs.push(shape);
                    blocks.push(0);
                }
                None => match blocks.last_mut() {
                    Some(count) => *count += 1,
                    None => return Err(shape(format!("the {half} begins with a block"))),
                },
            }
        }
        let (Some(&[_, input, ..]), Some(&[output, ..])) = (convs.first(), convs.last()) else {
            return match layers.is_empty() {
                true => Ok(None),
                false => Err(shape(format!("the {half} has no convolution"))),
            };
        };
        if blocks.pop() != Some(0) || blocks.is_empty() {
            return Err(shape(format!("the {half} does not end with a convolution")));
        }
        Ok(Some(Self {
            channels: convs[0][0],
            blocks,
            latents: if half == "encoder" { *output } else { *input },
        }))
    }
}

fn config(renamed: &Renamed) -> Result<Map<String, Value>, Problem> {
    let [encoder, decoder] = ["encoder", "decoder"].map(|half| Half::of(renamed, half));
    // A missing half is taken to mirror the other, so that the configuration is complete.
    let mirrored = |half: &Half| Half {
        channels: half.channels,
        blocks: half.blocks.iter().rev().copied().collect(),
        latents: half.latents,
    };
    let (encoder, decoder) = match (encoder?, decoder?) {
        (Some(encoder), Some(decoder)) => (encoder, decoder),
        (Some(encoder), None) => {
            let decoder = mirrored(&encoder);
            (encoder, decoder)
        }
        (None, Some(decoder)) => (mirrored(&decoder), decoder),
        (None, None) => return Err(shape("it has neither an encoder nor a decoder")),
    };
    if encoder.latents != decoder.latents {
        return Err(shape(format!(
            "the encoder makes {} channels of latents and the decoder takes {}",
            encoder.latents, decoder.latents
        )));
    }
    let config = json!({
        "_class_name": "AutoencoderTiny",
        "_diffusers_version": "0.42.1",
        "act_fn": "relu",
        "decoder_block_out_channels": vec![decoder.channels; decoder.blocks.len()],
        "encoder_block_out_channels": vec![encoder.channels; encoder.blocks.len()],
        "in_channels": 3,
        "latent_channels": encoder.latents,
        "num_decoder_blocks": decoder.blocks,
        "num_encoder_blocks": encoder.blocks,
        "out_channels": 3,
        "scaling_factor": 1.0,
        "shift_factor": 0.0,
        "upsample_fn": "nearest",
        "upsampling_scaling_factor": 2,
    });
    Ok(object(config))
}
