//! The UNet: maps latent diffusion's names, and infers the configuration from the shapes.

mod config;
mod control;
mod names;

use self::names::Layout;
pub(super) use self::{
    control::ControlNet,
    names::{RESNET, SINGLE},
};
use super::{
    Problem, Task,
    names::{Renamed, Tensor},
};

/// The largest number of levels, and of layers in a level, that is looked for.
const MOST: usize = 64;

/// A UNet's tensors under their current names, and its structure.
#[derive(Debug)]
pub(crate) struct Unet {
    tensors: Renamed,
    levels: Vec<Level>,
    /// The number of transformer layers in the middle block, or `None` without a transformer.
    mid: Option<usize>,
    has_mid: bool,
}

/// The blocks at one resolution.
#[derive(Debug)]
struct Level {
    channels: usize,
    resnets: usize,
    /// The number of transformer layers after each resnet of the down block, or 0 without a
    /// transformer.
    down: Vec<usize>,
    /// The same for the up block.
    up: Vec<usize>,
    /// Whether both attentions of the transformers are cross-attention to the prompt.
    only_cross: bool,
}

impl Level {
    fn has_attention(&self) -> [bool; 2] {
        [&self.down, &self.up].map(|layers| layers.iter().any(|&count| count > 0))
    }
}

fn shape(problem: impl Into<String>) -> Problem {
    Problem::Shape {
        component: "UNet",
        problem: problem.into(),
    }
}

impl Unet {
    /// Maps the names and reads the shapes.
    pub(super) fn read(tensors: &[Tensor<'_>]) -> Result<Self, Problem> {
        let layout = Layout::of(tensors);
        let tensors = Renamed::of(tensors, |tensor| layout.rename(tensor.rest))?;
        let mut unet = Self::of_down(tensors)?;
        unet.read_ups()?;
        Ok(unet)
    }

    /// Reads the shapes of the down blocks and of the middle block.
    fn of_down(mut tensors: Renamed) -> Result<Self, Problem> {
        let linear = tensors.shape(&first_projection(&tensors)).len() == 2;
        tensors.with_rank(|name| names::rank(name, linear));
        let channels = tensors.dim("conv_in.weight", 0);
        if channels == 0 {
            return Err(shape("the first convolution, `conv_in`, is missing"));
        }
        let levels = (0..MOST)
            .map(|i| level(&tensors, i))
            .take_while(Option::is_some)
            .flatten()
            .collect();
        let mut unet = Self {
            mid: None,
            has_mid: tensors.has("mid_block.resnets.0.conv1.weight"),
            levels,
            tensors,
        };
        if unet.levels.is_empty() {
            return Err(shape("there are no blocks"));
        }
        let mid = unet.layers("mid_block.attentions.0");
        unet.mid = (mid > 0).then_some(mid);
        for (i, level) in unet.levels.iter().enumerate() {
            all_or_none(i, &level.down, "down")?;
        }
        Ok(unet)
    }

    /// Reads the transformer layers of the up blocks, whose order is the reverse of the levels.
    fn read_ups(&mut self) -> Result<(), Problem> {
        let count = self.levels.len();
        for i in 0..count {
            let block = format!("up_blocks.{}", count - 1 - i);
            let resnet = |j| format!("{block}.resnets.{j}.conv1.weight");
            let (found, expected) = (self.tensors.count(resnet), self.levels[i].resnets + 1);
            if found != expected {
                return Err(shape(format!(
                    "`{block}` has {found} residual blocks, expected {expected}, one more than the \
                     down block of that size"
                )));
            }
            let layers = |j| self.layers(&format!("{block}.attentions.{j}"));
            self.levels[i].up = (0..found).map(layers).collect();
            let name = format!("{block}.attentions.0");
            self.levels[i].only_cross |= only_cross(&self.tensors, &name).unwrap_or(false);
            all_or_none(i, &self.levels[i].up, "up")?;
        }
        Ok(())
    }

    /// Returns the number of layers in a transformer, or 0 if there is none.
    fn layers(&self, name: &str) -> usize {
        layers(&self.tensors, name)
    }

    /// Returns the width of the context that the transformers attend to.
    pub fn context_width(&self) -> usize {
        let named = |name: &&String| name.ends_with("attn2.to_k.weight");
        let first = self.tensors.tensors.keys().find(named);
        first.map_or(0, |name| self.tensors.dim(name, 1))
    }

    /// Returns the width of the prompt's states that the UNet takes. A layer may project them to
    /// [`context_width`](Self::context_width).
    pub fn prompt_width(&self) -> usize {
        match self.tensors.dim("encoder_hid_proj.weight", 1) {
            0 => self.context_width(),
            width => width,
        }
    }

    /// Whether the transformers project with linear layers rather than convolutions.
    pub fn projects_linearly(&self) -> bool {
        self.tensors.shape(&first_projection(&self.tensors)).len() == 2
    }

    /// Whether a pooled text and sizes are added to the time embedding, as in SDXL.
    pub fn takes_sizes(&self) -> bool {
        self.added_width().is_some()
    }

    /// Returns the width of the pooled text and the sizes together.
    pub fn added_width(&self) -> Option<usize> {
        let width = self.tensors.dim("add_embedding.linear_1.weight", 1);
        (width > 0).then_some(width)
    }

    /// Returns the width of a latent consistency model's embedding of the guidance scale.
    pub fn guidance_width(&self) -> Option<usize> {
        let width = self.tensors.dim("time_embedding.cond_proj.weight", 1);
        (width > 0).then_some(width)
    }

    /// Returns the numbers of input and output channels.
    pub fn channels(&self) -> [usize; 2] {
        let tensors = &self.tensors;
        [
            tensors.dim("conv_in.weight", 1),
            tensors.dim("conv_out.weight", 0),
        ]
    }

    /// Returns the task, judged by the channels.
    pub fn task(&self) -> Result<Task, Problem> {
        let [input, output] = self.channels();
        match input.checked_sub(output) {
            Some(0) => Ok(Task::Draw),
            Some(beside) if beside == output => Ok(Task::Edit),
            Some(beside) if beside.checked_sub(output) == Some(1) => Ok(Task::Inpaint),
            _ => Err(shape(format!(
                "it takes {input} channels and returns {output}, which no known model does"
            ))),
        }
    }

    /// Returns the name in the file of the tensor whose standard deviation identifies v-prediction
    /// in Stable Diffusion 2: ComfyUI's `output_blocks.11.1.transformer_blocks.0.norm1.bias`.
    pub fn statistic(&self) -> Option<&str> {
        let name = "up_blocks.3.attentions.2.transformer_blocks.0.norm1.bias";
        self.tensors.stored(name)
    }

    /// Whether the middle block is missing or lacks its attention, in a UNet of unknown structure
    /// that is as wide as all published UNets.
    pub fn lacks_middle(&self) -> bool {
        const WIDTH: usize = 320;
        let is_published = self
            .levels
            .first()
            .is_some_and(|level| level.channels == WIDTH);
        is_published && (!self.has_mid || self.mid.is_none()) && self.variant().is_none()
    }

    /// Returns a more specific name of a distilled UNet, judged by its layers.
    pub fn variant(&self) -> Option<&'static str> {
        let down: Vec<&[usize]> = self.levels.iter().map(|level| &*level.down).collect();
        let plain = self.has_mid && self.mid.is_none();
        Some(match (&down[..], self.takes_sizes()) {
            ([[0, 0], [2, 2], [4, 4]], true) if plain => "SSD-1B",
            ([[0, 0], [1, 1], [2, 2]], true) if plain => "Segmind Vega",
            ([[0], [2], [5]], true) if !self.has_mid => "KOALA-700M",
            ([[0], [2], [6]], true) => "KOALA-1B",
            ([[1], [1], [1], [0]], false) if !self.has_mid => "BK-SDM Small",
            ([[1], [1], [1], [0]], false) => "BK-SDM Base",
            ([[1], [1], [1]], false) if !self.has_mid => "BK-SDM Tiny",
            _ if self.guidance_width().is_some() => "a latent consistency model",
            _ => return None,
        })
    }
}

/// Returns the level with index `i`, or `None` after the last level.
fn level(tensors: &Renamed, i: usize) -> Option<Level> {
    let resnets = tensors.count(|j| format!("down_blocks.{i}.resnets.{j}.conv1.weight"));
    if !(1..=MOST).contains(&resnets) {
        return None;
    }
    let layers = |j| layers(tensors, &format!("down_blocks.{i}.attentions.{j}"));
    let name = format!("down_blocks.{i}.attentions.0");
    Some(Level {
        channels: tensors.dim(&format!("down_blocks.{i}.resnets.0.conv1.weight"), 0),
        resnets,
        down: (0..resnets).map(layers).collect(),
        up: Vec::new(),
        only_cross: only_cross(tensors, &name).unwrap_or(false),
    })
}

/// Refuses a level in which only some residual blocks are followed by a transformer.
fn all_or_none(level: usize, layers: &[usize], way: &str) -> Result<(), Problem> {
    let with = layers.iter().filter(|&&count| count > 0).count();
    if with == 0 || with == layers.len() {
        return Ok(());
    }
    Err(shape(format!(
        "only {with} of the {} residual blocks of level {level} in the {way} path are followed by \
         a transformer, expected all or none",
        layers.len()
    )))
}

fn layers(tensors: &Renamed, name: &str) -> usize {
    tensors.count(|layer| format!("{name}.transformer_blocks.{layer}.norm1.weight"))
}

/// Whether a transformer's first attention is cross-attention, that is, has keys made from the
/// prompt.
///
/// The result is `None` without a transformer. If the prompt is as wide as the picture's state, the
/// shapes are ambiguous, and self-attention is assumed.
fn only_cross(tensors: &Renamed, name: &str) -> Option<bool> {
    let keys = |attention| {
        tensors.shape(&format!(
            "{name}.transformer_blocks.0.{attention}.to_k.weight"
        ))
    };
    let ([width, itself], [_, prompt]) = (keys("attn1"), keys("attn2")) else {
        return None;
    };
    Some(itself != width && itself == prompt)
}

/// Returns the name of the first projection into a transformer.
fn first_projection(tensors: &Renamed) -> String {
    let named = |name: &&String| name.ends_with(".proj_in.weight");
    tensors
        .tensors
        .keys()
        .find(named)
        .cloned()
        .unwrap_or_default()
}
