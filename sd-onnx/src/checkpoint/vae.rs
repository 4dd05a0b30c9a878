//! The autoencoders: maps latent diffusion's names of `AutoencoderKL` and TAESD's own names, and
//! infers the configurations.

mod tiny;

use serde_json::{Map, Value, json};

use super::{
    Component, Problem,
    names::{Fate, Renamed, Tensor, object},
};

/// The mean and standard deviation of each latent channel, as in Playground 2.5.
#[derive(Debug, Clone)]
pub(super) struct Latents {
    pub mean: Vec<f32>,
    pub std: Vec<f32>,
}

/// The scaling factor of a model with [`Latents`]. The value is diffusers'; Playground trains with
/// a standard deviation of 0.5.
const FACTOR_OF_LATENTS: f64 = 0.5;

/// Maps the names of an autoencoder and infers its configuration from the shapes. `factor` is the
/// scaling factor of the family or of the `.yaml` file, if either is known.
pub(super) fn read(
    tensors: &[Tensor<'_>],
    factor: Option<f64>,
    latents: Option<Latents>,
) -> Result<Component, Problem> {
    if tiny::is_tiny(tensors) {
        return tiny::read(tensors);
    }
    let ups = ups(tensors);
    let mut tensors = Renamed::of(tensors, |tensor| rename(tensor.rest, ups))?;
    tensors.with_rank(rank);
    let config = config(&tensors, factor, latents)?;
    Ok(tensors.component(config))
}

fn shape(problem: impl Into<String>) -> Problem {
    Problem::Shape {
        component: "autoencoder",
        problem: problem.into(),
    }
}

/// Returns the number of decoder levels in latent diffusion's names, which are numbered from the
/// picture's size inwards.
fn ups(tensors: &[Tensor<'_>]) -> usize {
    let number = |tensor: &Tensor<'_>| {
        let rest = tensor.rest.strip_prefix("decoder.up.")?;
        rest.split('.').next()?.parse::<usize>().ok()
    };
    let last = tensors.iter().filter_map(number).max();
    last.map_or(0, |last| last.saturating_add(1))
}

/// Maps a tensor to its current name.
fn rename(name: &str, ups: usize) -> Fate {
    let parts: Vec<&str> = name.split('.').collect();
    let Some((&leaf, module)) = parts.split_last() else {
        return Fate::Unknown;
    };
    // The discriminator that the autoencoder was trained against.
    if module.first() == Some(&"loss") {
        return Fate::LeftOut;
    }
    if !["weight", "bias"].contains(&leaf) {
        return Fate::Unknown;
    }
    let today = match module {
        ["quant_conv" | "post_quant_conv"] => Some(module.join(".")),
        ["decoder", "condition_encoder", ..] => Some(module.join(".")),
        [half @ ("encoder" | "decoder"), rest @ ..] => {
            half_module(rest, half, ups).map(|rest| format!("{half}.{rest}"))
        }
        _ => None,
    };
    match today {
        Some(today) => Fate::whole(format!("{today}.{leaf}")),
        None => Fate::Unknown,
    }
}

/// Returns the current name of a module in the encoder or the decoder, from either naming.
fn half_module(module: &[&str], half: &str, ups: usize) -> Option<String> {
    let number = |text: &str| text.parse::<usize>().ok().filter(|&n| n < 64);
    let blocks = match half {
        "encoder" => "down_blocks",
        _ => "up_blocks",
    };
    Some(match *module {
        ["conv_in" | "conv_out"] => module[0].to_owned(),
        ["norm_out" | "conv_norm_out"] => "conv_norm_out".to_owned(),
        ["down", level, "block", layer, part] if half == "encoder" => {
            let (level, layer) = (number(level)?, number(layer)?);
            format!("down_blocks.{level}.resnets.{layer}.{}", resnet(part)?)
        }
        ["down", level, "downsample", "conv"] if half == "encoder" => {
            format!("down_blocks.{}.downsamplers.0.conv", number(level)?)
        }
        ["up", level, "block", layer, part] if half == "decoder" => {
            let level = ups.checked_sub(1)?.checked_sub(number(level)?)?;
            format!(
                "up_blocks.{level}.resnets.{}.{}",
                number(layer)?,
                resnet(part)?
            )
        }
        ["up", level, "upsample", "conv"] if half == "decoder" => {
            let level = ups.checked_sub(1)?.checked_sub(number(level)?)?;
            format!("up_blocks.{level}.upsamplers.0.conv")
        }
        ["mid", "block_1", part] => format!("mid_block.resnets.0.{}", resnet(part)?),
        ["mid", "block_2", part] => format!("mid_block.resnets.1.{}", resnet(part)?),
        ["mid", "attn_1", ref part @ ..] | ["mid_block", "attentions", "0", ref part @ ..] => {
            format!("mid_block.attentions.0.{}", attention(part)?)
        }
        ["mid_block", "resnets", layer, part] => {
            format!("mid_block.resnets.{}.{}", number(layer)?, resnet(part)?)
        }
        [found, level, "resnets", layer, part] if found == blocks => {
            let (level, layer) = (number(level)?, number(layer)?);
            format!("{blocks}.{level}.resnets.{layer}.{}", resnet(part)?)
        }
        [
            found,
            level,
            sampler @ ("downsamplers" | "upsamplers"),
            "0",
            "conv",
        ] if found == blocks => {
            format!("{blocks}.{}.{sampler}.0.conv", number(level)?)
        }
        _ => return None,
    })
}

fn resnet(part: &str) -> Option<&str> {
    match part {
        "norm1" | "conv1" | "norm2" | "conv2" | "conv_shortcut" => Some(part),
        "nin_shortcut" => Some("conv_shortcut"),
        _ => None,
    }
}

/// Maps a part of the attention with latent diffusion's names, diffusers' names before 0.18, or the
/// current names.
fn attention(part: &[&str]) -> Option<&'static str> {
    Some(match part {
        ["norm" | "group_norm"] => "group_norm",
        ["q" | "query" | "to_q"] => "to_q",
        ["k" | "key" | "to_k"] => "to_k",
        ["v" | "value" | "to_v"] => "to_v",
        ["proj_out" | "proj_attn"] | ["to_out", "0"] => "to_out.0",
        _ => return None,
    })
}

/// Returns the number of axes of a weight that is stored as a linear layer in some files and as a 1
/// × 1 convolution in others.
fn rank(name: &str) -> Option<usize> {
    let module = name.strip_suffix(".weight")?;
    let is_point = module.ends_with("quant_conv") || module.ends_with(".conv_shortcut");
    let is_linear = module.contains(".attentions.0.to_");
    match (is_point, is_linear) {
        (true, _) => Some(4),
        (_, true) => Some(2),
        _ => None,
    }
}

/// The encoder's or decoder's channels at each level, from the outermost to the innermost, and its
/// residual blocks per level.
struct Half {
    channels: Vec<usize>,
    resnets: usize,
}

impl Half {
    /// Reads the encoder and the decoder. The decoder's blocks are counted as in its configuration,
    /// which has one residual block fewer per level.
    fn both(tensors: &Renamed) -> Result<[Self; 2], Problem> {
        let mut down = Self::of(tensors, "encoder.down_blocks")?;
        let mut up = Self::of(tensors, "decoder.up_blocks")?;
        // The decoder has one more residual block per level, and its first level is the innermost.
        up.resnets = up.resnets.saturating_sub(1);
        up.channels.reverse();
        match (down.channels.is_empty(), up.channels.is_empty()) {
            (true, true) => return Err(shape("it has neither an encoder nor a decoder")),
            // A half alone is still usable. The missing half is assumed to match it.
            (true, false) => (down.channels, down.resnets) = (up.channels.clone(), up.resnets),
            (false, true) => (up.channels, up.resnets) = (down.channels.clone(), down.resnets),
            (false, false) => {}
        }
        Ok([down, up])
    }

    fn of(tensors: &Renamed, blocks: &str) -> Result<Self, Problem> {
        let resnet = |i, j| format!("{blocks}.{i}.resnets.{j}.conv1.weight");
        let levels = tensors.count(|i| resnet(i, 0));
        let counts: Vec<_> = (0..levels)
            .map(|i| tensors.count(|j| resnet(i, j)))
            .collect();
        if counts.iter().any(|&count| count != counts[0]) {
            return Err(shape(format!(
                "the blocks of `{blocks}` have {counts:?} residual blocks, expected equal numbers"
            )));
        }
        let channels = (0..levels).map(|i| tensors.dim(&resnet(i, 0), 0));
        Ok(Self {
            channels: channels.collect(),
            resnets: counts.first().copied().unwrap_or(0),
        })
    }
}

fn config(
    tensors: &Renamed,
    factor: Option<f64>,
    latents: Option<Latents>,
) -> Result<Map<String, Value>, Problem> {
    let [down, up] = Half::both(tensors)?;
    let latent_channels = match tensors.dim("decoder.conv_in.weight", 1) {
        0 => tensors.dim("encoder.conv_out.weight", 0) / 2,
        channels => channels,
    };
    let halves = [("encoder", "quant_conv"), ("decoder", "post_quant_conv")];
    // A missing half is assumed to have its convolution.
    let [quant, post_quant] = halves.map(|(half, conv)| {
        tensors.has(&format!("{conv}.weight")) || !tensors.has(&format!("{half}.conv_in.weight"))
    });
    let attention = |half: &str| tensors.has(&format!("{half}.mid_block.attentions.0.to_q.weight"));
    let attention = attention("encoder") || attention("decoder");
    let asymmetric = down.channels != up.channels
        || down.resnets != up.resnets
        || tensors.has("decoder.condition_encoder.layers.0.weight");
    let blocks = |name: &str, half: &Half| vec![name.to_owned(); half.channels.len()];
    let mut config = object(json!({
        "_diffusers_version": "0.42.1",
        "act_fn": "silu",
        "down_block_types": blocks("DownEncoderBlock2D", &down),
        "in_channels": or(tensors.dim("encoder.conv_in.weight", 1), 3),
        "latent_channels": latent_channels,
        "norm_num_groups": 32,
        "out_channels": or(tensors.dim("decoder.conv_out.weight", 0), 3),
        "up_block_types": blocks("UpDecoderBlock2D", &up),
    }));
    let more = match asymmetric {
        true => json!({
            "_class_name": "AsymmetricAutoencoderKL",
            "down_block_out_channels": down.channels,
            "layers_per_down_block": down.resnets,
            "up_block_out_channels": up.channels,
            "layers_per_up_block": up.resnets,
        }),
        false => json!({
            "_class_name": "AutoencoderKL",
            "block_out_channels": down.channels,
            "layers_per_block": down.resnets,
            "mid_block_add_attention": attention,
            "use_quant_conv": quant,
            "use_post_quant_conv": post_quant,
        }),
    };
    config.extend(object(more));
    let factor = factor.or(asymmetric.then_some(0.18215));
    if let Some(latents) = latents {
        check_latents(&latents, latent_channels)?;
        config.insert("latents_mean".into(), json!(latents.mean));
        config.insert("latents_std".into(), json!(latents.std));
        config.insert("scaling_factor".into(), json!(FACTOR_OF_LATENTS));
    } else if let Some(factor) = factor {
        config.insert("scaling_factor".into(), json!(factor));
    }
    Ok(config)
}

/// Checks that there is a mean and a standard deviation for each channel of the latents.
fn check_latents(latents: &Latents, channels: usize) -> Result<(), Problem> {
    for (name, values) in [("edm_mean", &latents.mean), ("edm_std", &latents.std)] {
        if values.len() != channels {
            return Err(Problem::Value {
                tensor: name.to_owned(),
                expected: format!("{channels}, one for each channel of the latents"),
                found: format!("{} values", values.len()),
            });
        }
    }
    Ok(())
}

fn or(value: usize, default: usize) -> usize {
    if value == 0 { default } else { value }
}
