//! The embeddings of the timestep, of SDXL's sizes and of a guidance scale.

use super::{UnetConfig, config::Added, input};
use crate::{
    Error,
    graph::{Activation, Dim, Graph, Value},
};

/// Writes the time embedding: the sinusoids of the timestep, and two linear layers with SiLU
/// between them.
pub(super) fn time_embedding(g: &mut Graph, config: &UnetConfig) -> Result<Value, Error> {
    let channels = config.levels[0].channels;
    let mut x = match g.dialect().sinusoid_inputs {
        true => g.input(input::TIMESTEP, &[Dim::Fixed(1), Dim::Fixed(channels)]),
        false => {
            let timestep = g.input(input::TIMESTEP, &[Dim::Fixed(1)]);
            sinusoids(g, &config.timestep_sinusoids(), timestep)
        }
    };
    if let Some(width) = config.guidance_width {
        let guidance = g.input(input::GUIDANCE, &[Dim::Any("batch"), Dim::Fixed(width)]);
        let projected =
            g.linear_without_bias(guidance, "time_embedding.cond_proj", width, channels)?;
        x = g.add(x, projected);
    }
    two_layers(g, "time_embedding", x, [channels, config.time_width])
}

/// Writes SDXL's addition to the time embedding: the pooled text and the sinusoids of each size,
/// concatenated, through two linear layers.
pub(super) fn added_embedding(
    g: &mut Graph,
    config: &UnetConfig,
    added: Added,
    pooled: Value,
    sizes: usize,
) -> Result<Value, Error> {
    let width = |width| [Dim::Any("batch"), Dim::Fixed(width)];
    let x = match g.dialect().sinusoid_inputs {
        true => g.input(input::SIZES, &width(sizes * added.size_width)),
        false => {
            let sizes = g.input(input::SIZES, &width(sizes));
            // The shapes are `[batch, ids]`, `[batch, ids, 1]`, `[batch, ids, width]` and
            // `[batch, ids · width]`.
            let each = g.dims(&[0, -1, 1]);
            let each = g.reshape(sizes, each);
            let x = sinusoids(g, &config.sinusoids(added.size_width), each);
            let flat = g.dims(&[0, -1]);
            g.reshape(x, flat)
        }
    };
    let x = g.concat(&[pooled, x], -1);
    two_layers(g, "add_embedding", x, [added.width, config.time_width])
}

/// The sinusoids that a UNet computes from a number: `get_timestep_embedding` in diffusers'
/// `models/embeddings.py`.
#[derive(Debug, Clone)]
pub(crate) struct Sinusoids {
    /// One frequency for each pair of a sine and a cosine.
    frequencies: Vec<f32>,
    cosines_first: bool,
}

impl Sinusoids {
    /// Returns the sinusoids of each number, concatenated.
    pub fn of(&self, numbers: impl IntoIterator<Item = f32>) -> Vec<f32> {
        let mut all = Vec::new();
        for number in numbers {
            let angles = self.frequencies.iter().map(|frequency| number * frequency);
            // Computed in f64, because the sine of f32 differs between platforms.
            let sines = angles.clone().map(|angle| f64::from(angle).sin() as f32);
            let cosines = angles.map(|angle| f64::from(angle).cos() as f32);
            match self.cosines_first {
                true => all.extend(cosines.chain(sines)),
                false => all.extend(sines.chain(cosines)),
            }
        }
        all
    }
}

impl UnetConfig {
    /// Returns the number of channels of the first level.
    pub fn first_channels(&self) -> usize {
        self.levels[0].channels
    }

    /// Returns the number of residual blocks in the first level.
    pub fn resnets(&self) -> usize {
        self.levels[0].resnets
    }

    /// Returns the sinusoids of the timestep.
    pub fn timestep_sinusoids(&self) -> Sinusoids {
        self.sinusoids(self.levels[0].channels)
    }

    /// Returns the sinusoids of SDXL's sizes, if the network takes sizes.
    pub fn size_sinusoids(&self) -> Option<Sinusoids> {
        self.added.map(|added| self.sinusoids(added.size_width))
    }

    fn sinusoids(&self, width: usize) -> Sinusoids {
        let half = width / 2;
        // Rounded to f32 at each step, as in diffusers. The largest angle is near 1000, so the last
        // bit of a frequency matters.
        let frequency = |i: usize| {
            let exponent = -(10_000f64.ln()) as f32 * i as f32 / (half as f32 - self.freq_shift);
            f64::from(exponent).exp() as f32
        };
        Sinusoids {
            frequencies: (0..half).map(frequency).collect(),
            cosines_first: self.flip_sin_to_cos,
        }
    }
}

/// Writes the sinusoids of the last axis of `x`, which has length 1.
fn sinusoids(g: &mut Graph, of: &Sinusoids, x: Value) -> Value {
    let frequencies = g.constant(&of.frequencies, &[1, of.frequencies.len()]);
    let angles = g.mul(x, frequencies);
    let (sin, cos) = (g.sin(angles), g.cos(angles));
    let order = match of.cosines_first {
        true => [cos, sin],
        false => [sin, cos],
    };
    g.concat(&order, -1)
}

/// Writes diffusers' `TimestepEmbedding`: linear, SiLU, linear.
fn two_layers(
    g: &mut Graph,
    name: &str,
    x: Value,
    [input, output]: [usize; 2],
) -> Result<Value, Error> {
    let x = g.linear(x, &format!("{name}.linear_1"), input, output)?;
    let x = g.activation(x, Activation::Silu);
    g.linear(x, &format!("{name}.linear_2"), output, output)
}

/// Returns the sinusoids of a guidance scale, an input of latent consistency models:
/// `get_guidance_scale_embedding` in diffusers' `pipeline_latent_consistency_text2img.py`, called
/// with `scale − 1`. The sines come first. The exponents of the frequencies are divided by half
/// the width minus one.
pub(crate) fn guidance_sinusoids(scale: f32, width: usize) -> Vec<f32> {
    let half = width / 2;
    // Rounded to f32 at each step, as in diffusers. The angles reach the thousands.
    let step = 10_000f64.ln() as f32 / (half as f32 - 1.0);
    let angle = |i: usize| {
        let frequency = f64::from(i as f32 * -step).exp() as f32;
        f64::from((scale - 1.0) * 1000.0 * frequency)
    };
    let sines = (0..half).map(|i| angle(i).sin() as f32);
    sines
        .chain((0..half).map(|i| angle(i).cos() as f32))
        .collect()
}
