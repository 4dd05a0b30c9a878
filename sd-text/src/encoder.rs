//! Prompt → token ids → hidden states.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use ndarray::{Array3, ArrayView2};

use crate::{ClipSkip, ClipTokenizer, Tokens};

/// What a backend may fail with.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// A CLIP text model. Backends implement it; a program only hands it on.
pub trait TextModel: Send + Sync {
    /// How many transformer layers it has (12 in Stable Diffusion 1.x): the greatest [`ClipSkip`] it can serve.
    fn layers(&self) -> usize;

    /// Channels of a hidden state (768 in Stable Diffusion 1.x, 1024 in 2.x).
    fn width(&self) -> usize;

    /// The most tokens it takes at once (77 in all of CLIP).
    fn max_length(&self) -> usize;

    /// Rows of its token embedding (49408 in CLIP): every id must be below.
    fn vocab_size(&self) -> usize;

    /// The hidden states of the layer that `clip_skip` names, after the final layer norm: `ids` `[batch, length]` gives
    /// `[batch, length, width]`.
    ///
    /// # Errors
    /// Whatever stops the backend: ids or a length out of range, a clip skip beyond [`layers`](Self::layers), an engine
    /// that fails.
    fn hidden_states(
        &self,
        ids: ArrayView2<'_, i64>,
        clip_skip: ClipSkip,
    ) -> Result<Array3<f32>, BoxError>;
}

/// A tokenizer and the text model it belongs to. Cheap to clone, usable from several threads.
#[derive(Clone)]
pub struct PromptEncoder {
    tokenizer: Arc<ClipTokenizer>,
    model: Arc<dyn TextModel>,
}

impl PromptEncoder {
    /// Joins the two.
    ///
    /// # Errors
    /// [`TextError::Vocabulary`] or [`TextError::Length`] if the tokenizer can give ids, or a number of them, that the
    /// model doesn't take.
    pub fn new(
        tokenizer: Arc<ClipTokenizer>,
        model: Arc<dyn TextModel>,
    ) -> Result<Self, TextError> {
        let (ids, rows) = (tokenizer.vocab_size(), model.vocab_size());
        if ids > rows {
            return Err(TextError::Vocabulary {
                tokenizer: ids,
                model: rows,
            });
        }
        let (length, most) = (tokenizer.max_length(), model.max_length());
        if length > most {
            return Err(TextError::Length {
                tokenizer: length,
                model: most,
            });
        }
        Ok(Self { tokenizer, model })
    }

    /// The tokenizer, to count the tokens of a prompt without running the model.
    pub fn tokenizer(&self) -> &ClipTokenizer {
        &self.tokenizer
    }

    /// The text model.
    pub fn model(&self) -> &dyn TextModel {
        &*self.model
    }

    /// Encodes one prompt. What doesn't fit is left out and reported in [`Tokens::cut`].
    ///
    /// # Errors
    /// [`TextError::ClipSkip`] if the model has fewer layers, [`TextError::Model`] if it fails, [`TextError::Shape`] if
    /// it answers in another shape than it said.
    pub fn encode(&self, prompt: &str, clip_skip: ClipSkip) -> Result<PromptEmbedding, TextError> {
        let layers = self.model.layers();
        if clip_skip.number() > layers {
            return Err(TextError::ClipSkip {
                got: clip_skip,
                layers,
            });
        }
        let tokens = self.tokenizer.encode(prompt);
        let ids: Vec<i64> = tokens.ids.iter().map(|&id| id.into()).collect();
        let batch = ArrayView2::from_shape((1, ids.len()), &ids).expect("one row of all ids");
        let embedding = self
            .model
            .hidden_states(batch, clip_skip)
            .map_err(TextError::Model)?;
        let expected = (1, ids.len(), self.model.width());
        if embedding.dim() != expected {
            return Err(TextError::Shape {
                expected,
                got: embedding.dim(),
            });
        }
        Ok(PromptEmbedding { embedding, tokens })
    }
}

impl fmt::Debug for PromptEncoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PromptEncoder")
            .field("tokenizer", &self.tokenizer)
            .finish_non_exhaustive()
    }
}

/// An encoded prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptEmbedding {
    /// `[1, length, width]`: the tokenizer's [`max_length`](ClipTokenizer::max_length) tokens, padding included, by the
    /// model's [`width`](TextModel::width).
    pub embedding: Array3<f32>,
    /// The ids it was made of, and what was cut off.
    pub tokens: Tokens,
}

/// Why a prompt could not be encoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// The tokenizer gives ids that the model has no embedding for.
    #[error("the tokenizer has ids up to {}, the text model's embedding only {model} rows", .tokenizer - 1)]
    Vocabulary {
        /// [`ClipTokenizer::vocab_size`].
        tokenizer: usize,
        /// [`TextModel::vocab_size`].
        model: usize,
    },
    /// The tokenizer pads to more tokens than the model takes.
    #[error("the tokenizer gives {tokenizer} tokens, the text model takes at most {model}")]
    Length {
        /// [`ClipTokenizer::max_length`].
        tokenizer: usize,
        /// [`TextModel::max_length`].
        model: usize,
    },
    /// The clip skip leaves no layer over.
    #[error("clip skip is {got}, expected 1 to {layers}: the text model has {layers} layers")]
    ClipSkip {
        /// What was asked for.
        got: ClipSkip,
        /// [`TextModel::layers`].
        layers: usize,
    },
    /// The model's answer has another shape than it declares.
    #[error("the text model returned {got:?}, expected (batch, length, width) = {expected:?}")]
    Shape {
        /// `(1, length, width)`.
        expected: (usize, usize, usize),
        /// What came.
        got: (usize, usize, usize),
    },
    /// The model failed.
    #[error("the text model failed: {0}")]
    Model(#[source] BoxError),
}
