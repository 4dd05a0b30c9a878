//! The two graphs of DeepCache (Ma et al. 2023, arXiv 2312.00858): the whole UNet, which also
//! returns its deep features, and the layers outside of a branch, which take them as an input.
//!
//! A *branch* is a skip connection. At a branch, a UNet is cut in two: the layers between both ends
//! of the skip connection are inside, and the others are outside. The deep features of the branch
//! are the values that the inside passes to the layer at the end of the skip connection.
//!
//! Branches are counted like the skip connections, from 0, the outermost one, which begins at
//! `conv_in`. Each level has one branch more than it has resnets. With two resnets per level, as in
//! Stable Diffusion 1.x, 2.x and SDXL, the number of a branch is DeepCache's `cache_branch_id`:
//! 3 · `cache_block_id` + `cache_layer_id`. The block is the level, and the layer is the number of
//! the level's resnets that stay outside on the way down. In UNets with another number of resnets,
//! the block and the layer have the same meaning, but DeepCache still multiplies by 3.

use super::{Unet, UnetConfig};
use crate::graph::{Dim, Value};

/// Which layers of a UNet a graph contains.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Part {
    /// All layers.
    #[default]
    Whole,
    /// All layers. The deep features of every branch are outputs: [`deep_name`].
    Keeping,
    /// The layers outside of this branch. Its deep features are an input: [`deep_name`].
    Outside(usize),
}

impl Part {
    /// Returns whether the graph lacks the layer at the end of a skip connection.
    pub(super) fn lacks(self, branch: usize) -> bool {
        match self {
            Self::Whole | Self::Keeping => false,
            Self::Outside(cut) => branch > cut,
        }
    }
}

/// Returns the name of the deep features of a branch, `[batch, channels, h, w]`.
pub(crate) fn deep_name(branch: usize) -> String {
    format!("deep.{branch}")
}

/// The deep features of a branch in a graph under construction: the branch, the features and their
/// channels.
pub(super) type Deep = (usize, Value, usize);

impl Unet<'_, '_> {
    /// Returns what enters the layer of the up path at the end of a skip connection. That is `x`,
    /// or at the cut the input of the graph.
    pub(super) fn deep_features(&mut self, x: Value, branch: usize, channels: usize) -> Value {
        match self.shortcuts.part {
            Part::Keeping => {
                self.deep.push((branch, x, channels));
                x
            }
            Part::Outside(cut) if cut == branch => {
                self.g.input(&deep_name(branch), &deep_dims(channels))
            }
            Part::Whole | Part::Outside(_) => x,
        }
    }

    /// Adds the outputs with the deep features.
    pub(super) fn deep_outputs(&mut self) {
        for (branch, x, channels) in std::mem::take(&mut self.deep) {
            self.g.output(&deep_name(branch), x, &deep_dims(channels));
        }
    }
}

/// The sizes depend on how often the latents are halved, so they have no names.
fn deep_dims(channels: usize) -> [Dim; 4] {
    [
        Dim::Any("batch"),
        Dim::Fixed(channels),
        Dim::Free,
        Dim::Free,
    ]
}

impl UnetConfig {
    /// Returns the number of branches: one for each skip connection.
    pub fn branches(&self) -> usize {
        self.levels.iter().map(|level| level.resnets + 1).sum()
    }

    /// Returns the channels, height and width of the deep features of a branch, for latents of this
    /// height and width. Returns `None` if there is no such branch.
    pub fn deep_shape(&self, branch: usize, size: [usize; 2]) -> Option<[usize; 3]> {
        let deeper = self.branches().checked_sub(branch + 1)?;
        let layers = self.levels.iter().rev();
        let layers = layers.flat_map(|level| vec![level.channels; level.resnets + 1]);
        // The innermost layer of the up path follows the middle block.
        let middle = self.levels.last().map(|level| level.channels);
        let channels = middle.into_iter().chain(layers).nth(deeper)?;
        let [_, height, width] = self.residual_shapes(size)[branch];
        Some([channels, height, width])
    }
}
