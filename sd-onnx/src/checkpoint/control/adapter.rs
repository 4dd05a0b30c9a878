//! A T2I-Adapter: maps its authors' names, and infers the configuration from the shapes.

use serde_json::json;

use crate::checkpoint::{
    Component, Family, Problem,
    names::{Fate, Renamed, Tensor, object},
};

/// The number of sizes at which a full adapter changes the UNet.
const LEVELS: usize = 4;

/// The number of pixels, along one side, that an adapter folds into channels, by family.
const FACTORS: [(usize, Family); 2] = [(8, Family::Sd1), (16, Family::Xl)];

/// Returns the adapter.
pub(super) fn read(tensors: &[Tensor<'_>]) -> Result<Component, Problem> {
    let blocks = Blocks::of(tensors);
    let tensors = Renamed::of(tensors, |tensor| blocks.rename(tensor.rest))?;
    let body = |level| format!("adapter.body.{level}");
    let is_light = tensors.has(&format!("{}.out_conv.weight", body(0)));
    let (first, output) = match is_light {
        true => (format!("{}.in_conv.weight", body(0)), "out_conv"),
        false => ("adapter.conv_in.weight".to_owned(), "resnets.0.block1"),
    };
    let output = |level| format!("{}.{output}.weight", body(level));
    let resnet = |i| format!("{}.resnets.{i}.block1.weight", body(0));
    let levels = tensors.count(output);
    let mut channels: Vec<_> = (0..levels)
        .map(|level| tensors.dim(&output(level), 0))
        .collect();
    if is_light {
        // The class counts the last level, which has as many channels as the level before, apart.
        channels.pop();
    }
    if channels.is_empty() {
        return Err(shape("there are too few blocks"));
    }
    let input = tensors.dim(&first, 1);
    let folded = FACTORS.iter().find_map(|&(factor, family)| {
        let pixels = factor * factor;
        [1, 3]
            .into_iter()
            .find(|channels| channels * pixels == input)
            .map(|channels| (channels, factor, family))
    });
    let Some((in_channels, factor, family)) = folded else {
        return Err(shape(format!(
            "`{first}` takes {input} channels, expected 64 or 192, or for SDXL 256 or 768"
        )));
    };
    let kind = match family {
        _ if is_light => "light_adapter",
        Family::Xl => "full_adapter_xl",
        _ => "full_adapter",
    };
    let config = json!({
        "_class_name": "T2IAdapter",
        "_diffusers_version": "0.42.1",
        "adapter_type": kind,
        "channels": channels,
        "downscale_factor": factor,
        "in_channels": in_channels,
        "num_res_blocks": tensors.count(resnet),
    });
    Ok(tensors.component(object(config)))
}

fn shape(problem: impl Into<String>) -> Problem {
    Problem::Shape {
        component: "T2I-Adapter",
        problem: problem.into(),
    }
}

/// The names that a file uses.
#[derive(Debug, Clone, Copy)]
enum Blocks {
    Today,
    /// Residual blocks that are numbered across all levels, so many a level.
    Full(usize),
    Light,
}

impl Blocks {
    fn of(tensors: &[Tensor<'_>]) -> Self {
        let has = |name: &str| tensors.iter().any(|tensor| tensor.rest == name);
        if tensors
            .iter()
            .any(|tensor| tensor.rest.starts_with("adapter."))
        {
            return Self::Today;
        }
        if has("body.0.out_conv.weight") {
            return Self::Light;
        }
        let blocks = (0..).take_while(|i| has(&format!("body.{i}.block1.weight")));
        Self::Full((blocks.count() / LEVELS).max(1))
    }

    /// Maps a tensor to its current name.
    fn rename(self, name: &str) -> Fate {
        let today = match self {
            Self::Today => Some(name.to_owned()),
            Self::Full(per_level) => full(name, per_level),
            Self::Light => light(name),
        };
        match today.filter(|name| is_known(name)) {
            Some(name) => Fate::whole(name),
            None => Fate::Unknown,
        }
    }
}

fn full(name: &str, per_level: usize) -> Option<String> {
    let Some(rest) = name.strip_prefix("body.") else {
        return Some(format!("adapter.{name}"));
    };
    let (block, rest) = rest.split_once('.')?;
    let block: usize = block.parse().ok()?;
    let (level, resnet) = (block / per_level, block % per_level);
    match rest.split_once('.')? {
        ("in_conv", leaf) if resnet == 0 => Some(format!("adapter.body.{level}.in_conv.{leaf}")),
        ("block1" | "block2", _) => Some(format!("adapter.body.{level}.resnets.{resnet}.{rest}")),
        _ => None,
    }
}

fn light(name: &str) -> Option<String> {
    let (level, rest) = name.strip_prefix("body.")?.split_once('.')?;
    Some(match rest.strip_prefix("body.") {
        Some(rest) => format!("adapter.body.{level}.resnets.{rest}"),
        None => format!("adapter.body.{level}.{rest}"),
    })
}

/// Whether an adapter can have a tensor with this current name.
fn is_known(name: &str) -> bool {
    let parts: Vec<_> = name.split('.').collect();
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match parts[..] {
        ["adapter", "conv_in", "weight" | "bias"] => true,
        [
            "adapter",
            "body",
            level,
            "in_conv" | "out_conv",
            "weight" | "bias",
        ] => is_number(level),
        [
            "adapter",
            "body",
            level,
            "resnets",
            number,
            "block1" | "block2",
            "weight" | "bias",
        ] => is_number(level) && is_number(number),
        _ => false,
    }
}
