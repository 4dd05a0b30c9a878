//! The interface between this crate and a text network.

use std::error::Error;

use ndarray::{Array2, Array3, ArrayView2};

use crate::{ClipSkip, NetworkReport};

/// Any error that a backend returns.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// A CLIP text model. Backends implement this trait; other programs only pass models on.
pub trait TextModel: Send + Sync {
    /// Returns the dimensions of the network.
    fn shape(&self) -> TextShape;

    /// Runs the network on `ids`, `[batch, length]`, and returns the hidden states of `layer`.
    ///
    /// # Errors
    /// Any error of the backend: ids or a length out of range, a clip skip beyond
    /// [`TextShape::layers`], or a failure of the engine.
    fn run(&self, ids: ArrayView2<'_, i64>, layer: Layer) -> Result<TextStates, BoxError>;

    /// Reports which execution providers run the nodes of the loaded network.
    ///
    /// Default: an empty report.
    fn report(&self) -> Vec<NetworkReport> {
        Vec::new()
    }
}

/// The dimensions of a text network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct TextShape {
    /// The number of transformer layers, which is also the greatest [`ClipSkip`]. 12 in Stable
    /// Diffusion 1.x.
    pub layers: usize,
    /// The number of channels of a hidden state: 768 in Stable Diffusion 1.x, 1024 in 2.x.
    pub width: usize,
    /// The most tokens that the network takes at once. 77 in every CLIP model.
    pub max_length: usize,
    /// The number of rows of the token embedding, 49408 in CLIP. Every id is below this number.
    pub vocab_size: usize,
    /// The width of the pooled output: 1280 for the second tower of SDXL.
    ///
    /// Default: `None`, the network has no pooled output.
    pub pooled: Option<usize>,
}

impl TextShape {
    /// Describes a network that takes 77 tokens and 49408 ids, as CLIP does, and has no pooled
    /// output.
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

/// The layer of a text network whose hidden states are used.
///
/// | model | layer |
/// |---|---|
/// | Stable Diffusion 1.x | the last, with the final norm ([`Layer::LAST`]) |
/// | Stable Diffusion 2.x | the same: its folders omit the last layer of OpenCLIP |
/// | SDXL, both towers | the penultimate, without the final norm ([`Layer::SDXL`]) |
///
/// Default: [`Layer::LAST`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Layer {
    /// The layer, counted from the end.
    pub skip: ClipSkip,
    /// Whether the final layer norm is applied.
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

/// The output of a text network.
#[derive(Debug, Clone, PartialEq)]
pub struct TextStates {
    /// The hidden states of the requested layer, `[batch, length, width]`.
    pub hidden: Array3<f32>,
    /// The pooled output, `[batch, pooled width]`, if the network has one: the projection of the
    /// last layer's state, after the final norm, at the first end-of-text token. It does not depend
    /// on the requested layer.
    pub pooled: Option<Array2<f32>>,
}

impl From<Array3<f32>> for TextStates {
    /// Wraps the hidden states of a network without a pooled output.
    fn from(hidden: Array3<f32>) -> Self {
        Self {
            hidden,
            pooled: None,
        }
    }
}
