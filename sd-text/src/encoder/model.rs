//! What a text network is to the rest of the crate.

use std::error::Error;

use ndarray::{Array2, Array3, ArrayView2};

use crate::{ClipSkip, NetworkReport};

/// What a backend may fail with.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// A CLIP text model. Backends implement it; a program only hands it on.
pub trait TextModel: Send + Sync {
    /// The sizes of the network.
    fn shape(&self) -> TextShape;

    /// Runs the network on `ids` `[batch, length]`, and returns the hidden states of `layer`.
    ///
    /// # Errors
    /// Whatever stops the backend: ids or a length out of range, a clip skip beyond
    /// [`TextShape::layers`], an engine that fails.
    fn run(&self, ids: ArrayView2<'_, i64>, layer: Layer) -> Result<TextStates, BoxError>;

    /// Returns where the nodes of the loaded network run. Default: nothing.
    fn report(&self) -> Vec<NetworkReport> {
        Vec::new()
    }
}

/// The sizes of a text network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct TextShape {
    /// The number of transformer layers (12 in Stable Diffusion 1.x): the greatest [`ClipSkip`].
    pub layers: usize,
    /// The channels of a hidden state: 768 in Stable Diffusion 1.x, 1024 in 2.x.
    pub width: usize,
    /// The most tokens that the network takes at once: 77 in all of CLIP.
    pub max_length: usize,
    /// The rows of the token embedding, 49408 in CLIP. Every id is below this number.
    pub vocab_size: usize,
    /// The width of the pooled output, 1280 for the second tower of SDXL. Default: `None`, the
    /// network has no such output.
    pub pooled: Option<usize>,
}

impl TextShape {
    /// Describes a network of 77 tokens and 49408 ids, as CLIP has them, without a pooled output.
    pub fn new(layers: usize, width: usize) -> Self {
        Self {
            layers,
            width,
            max_length: 77,
            vocab_size: 49408,
            pooled: None,
        }
    }

    /// Sets [`max_length`](Self::max_length).
    pub fn max_length(mut self, tokens: usize) -> Self {
        self.max_length = tokens;
        self
    }

    /// Sets [`vocab_size`](Self::vocab_size).
    pub fn vocab_size(mut self, ids: usize) -> Self {
        self.vocab_size = ids;
        self
    }

    /// Sets [`pooled`](Self::pooled).
    pub fn pooled(mut self, width: usize) -> Self {
        self.pooled = Some(width);
        self
    }
}

/// Which hidden states of a text network are read.
///
/// | model | layer |
/// |---|---|
/// | Stable Diffusion 1.x | the last, with the final norm ([`Layer::LAST`], the default) |
/// | Stable Diffusion 2.x | the same: its folders leave the last layer of OpenCLIP out |
/// | SDXL, both towers | the penultimate, without the final norm ([`Layer::SDXL`]) |
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Layer {
    /// The layer, counted from the last.
    pub skip: ClipSkip,
    /// Whether the final layer norm follows.
    pub final_norm: bool,
}

impl Layer {
    /// The last layer, with the final norm.
    pub const LAST: Self = Self {
        skip: ClipSkip::LAST,
        final_norm: true,
    };
    /// The penultimate layer, without the final norm.
    pub const SDXL: Self = Self {
        skip: ClipSkip::PENULTIMATE,
        final_norm: false,
    };
}

impl Default for Layer {
    fn default() -> Self {
        Self::LAST
    }
}

/// What a text network returns.
#[derive(Debug, Clone, PartialEq)]
pub struct TextStates {
    /// The hidden states of the layer asked for, `[batch, length, width]`.
    pub hidden: Array3<f32>,
    /// The pooled output `[batch, pooled width]`, if the network has one: the projection of the
    /// last layer's state, after the final norm, at the first end-of-text token. It does not depend
    /// on the layer asked for.
    pub pooled: Option<Array2<f32>>,
}

impl From<Array3<f32>> for TextStates {
    /// Hidden states of a network without a pooled output.
    fn from(hidden: Array3<f32>) -> Self {
        Self {
            hidden,
            pooled: None,
        }
    }
}
