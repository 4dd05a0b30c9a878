//! T2I-Adapter (Mou et al. 2023, arXiv 2302.08453), as diffusers' `T2IAdapter` computes it: a small
//! network whose features of a picture are added to the features of the UNet's down blocks.

use super::unet::feature_name;
use crate::{
    Error,
    config::Config,
    graph::{Conv, Dialect, Dim, Graph, Model, Value},
    weights::Weights,
};

/// The class in diffusers.
pub(crate) const CLASS: &str = "T2IAdapter";

/// The architecture of an adapter, from its `config.json`. Missing keys have the defaults of the
/// class.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct T2iAdapterConfig {
    /// The number of channels of a picture: 3, or 1 for grey ones.
    pub picture_channels: usize,
    /// The number of pixels along one side that are folded into channels. A picture's height and
    /// width must be multiples of it.
    pub factor: usize,
    kind: Kind,
    levels: Vec<Level>,
    resnets: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Full,
    Light,
}

/// The block at one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Level {
    input: usize,
    output: usize,
    /// Whether it halves the size first.
    halves: bool,
}

/// The largest number of channels after pixels were folded into channels.
const MOST_FOLDED: usize = 1024;

impl T2iAdapterConfig {
    /// Reads a `config.json`.
    pub fn new(config: &Config) -> Result<Self, Error> {
        const DEFAULT: &str = "full_adapter";
        const KINDS: [&str; 3] = [DEFAULT, "full_adapter_xl", "light_adapter"];
        const FACTOR: std::ops::RangeInclusive<usize> = 1..=64;
        let kind = config.text("adapter_type", DEFAULT)?;
        if !KINDS.contains(&kind) {
            let expected = KINDS.map(|kind| format!("\"{kind}\"")).join(" or ");
            return Err(config.wrong("adapter_type", expected));
        }
        let channels = config.sizes("channels", &[320, 640, 1280, 1280])?;
        let picture_channels = config.usize("in_channels", 3, 1..=64)?;
        let factor = config.usize("downscale_factor", 8, FACTOR)?;
        // The filters that fold pixels grow with the square of this number. Published adapters
        // have at most 768.
        if picture_channels * factor * factor > MOST_FOLDED {
            let expected = format!(
                "a number whose square times in_channels, {picture_channels}, is at most \
                 {MOST_FOLDED}"
            );
            return Err(config.wrong("downscale_factor", expected));
        }
        let levels = match kind {
            "light_adapter" => {
                let folded = picture_channels * factor * factor;
                light_levels(folded, &channels)
            }
            "full_adapter_xl" => {
                let more = channels.iter().skip(2);
                if more.clone().zip(more.skip(1)).any(|(a, b)| a != b) {
                    return Err(config.wrong("channels", "the same number from the third on"));
                }
                full_levels(&channels, |level| level == 2)
            }
            _ => full_levels(&channels, |level| level > 0),
        };
        if channels.is_empty() || kind == "light_adapter" && channels.iter().any(|c| c % 4 != 0) {
            return Err(config.wrong("channels", "a list of multiples of 4"));
        }
        Ok(Self {
            picture_channels,
            factor,
            kind: match kind {
                "light_adapter" => Kind::Light,
                _ => Kind::Full,
            },
            levels,
            resnets: config.usize("num_res_blocks", 2, 0..=64)?,
        })
    }

    /// Returns for each output its number of channels, and how often it was halved.
    pub fn outputs(&self) -> impl Iterator<Item = (usize, u32)> {
        let mut halvings = 0;
        self.levels.iter().map(move |level| {
            halvings += u32::from(level.halves);
            (level.output, halvings)
        })
    }

    /// Returns the number of channels after pixels were folded into channels.
    fn folded(&self) -> usize {
        self.picture_channels * self.factor * self.factor
    }
}

/// Returns the levels of a full adapter. The first block keeps the channels of the convolution
/// before it.
fn full_levels(channels: &[usize], halves: impl Fn(usize) -> bool) -> Vec<Level> {
    let levels = channels.iter().enumerate().map(|(i, &output)| Level {
        input: channels[i.saturating_sub(1)],
        output,
        halves: halves(i),
    });
    levels.collect()
}

/// Returns the levels of a light adapter, which has one more than channels are listed.
fn light_levels(folded: usize, channels: &[usize]) -> Vec<Level> {
    let inputs = [folded].into_iter().chain(channels.iter().copied());
    let outputs = channels.iter().chain(channels.last()).copied();
    let levels = inputs.zip(outputs).enumerate();
    let level = |(i, (input, output))| Level {
        input,
        output,
        halves: i > 0,
    };
    levels.map(level).collect()
}

/// The name of the input with the picture.
pub(crate) const PICTURE: &str = "picture";

/// Writes the graph.
///
/// The input is [`PICTURE`], f32 `[batch, channels, height, width]` in `0.0..=1.0`. The outputs are
/// called [`feature_name`], in the order of the class's list.
pub(crate) fn graph(
    config: &T2iAdapterConfig,
    weights: &Weights,
    dialect: Dialect,
) -> Result<Model, Error> {
    let mut g = Graph::new("t2i_adapter", weights, dialect);
    let picture = g.input(PICTURE, &dims(config.picture_channels));
    let mut x = g.pixel_unshuffle(picture, config.picture_channels, config.factor);
    if config.kind == Kind::Full {
        let channels = [config.folded(), config.levels[0].input];
        x = g.conv2d(x, "adapter.conv_in", channels, Conv::SAME)?;
    }
    for (i, level) in config.levels.iter().enumerate() {
        x = block(&mut g, config, &format!("adapter.body.{i}"), x, *level)?;
        g.output(&feature_name(i), x, &dims(level.output));
    }
    g.finish()
}

/// Checks that an adapter has all its weights, and uses all of them.
pub(crate) fn check(config: &T2iAdapterConfig, weights: &Weights) -> Result<(), Error> {
    let write = |weights: &Weights| graph(config, weights, Dialect::default()).map(drop);
    weights.check(CLASS, |_| false, write)
}

/// Returns the dimensions of the picture or of an output. Each has another size.
fn dims(channels: usize) -> [Dim; 4] {
    [
        Dim::Any("batch"),
        Dim::Fixed(channels),
        Dim::Free,
        Dim::Free,
    ]
}

/// Writes the block at one size: halve it, change the channels, and go through the residual blocks.
fn block(
    g: &mut Graph,
    config: &T2iAdapterConfig,
    name: &str,
    mut x: Value,
    Level {
        input,
        output,
        halves,
    }: Level,
) -> Result<Value, Error> {
    if halves {
        x = g.average_pairs(x);
    }
    let (inner, second) = match config.kind {
        Kind::Full => (output, Conv::POINT),
        Kind::Light => (output / 4, Conv::SAME),
    };
    if input != inner || config.kind == Kind::Light {
        x = g.conv2d(x, &format!("{name}.in_conv"), [input, inner], Conv::POINT)?;
    }
    for i in 0..config.resnets {
        let name = format!("{name}.resnets.{i}");
        let h = g.conv2d(x, &format!("{name}.block1"), [inner; 2], Conv::SAME)?;
        let h = g.relu(h);
        let h = g.conv2d(h, &format!("{name}.block2"), [inner; 2], second)?;
        x = g.add(h, x);
    }
    if config.kind == Kind::Light {
        x = g.conv2d(x, &format!("{name}.out_conv"), [inner, output], Conv::POINT)?;
    }
    Ok(x)
}
