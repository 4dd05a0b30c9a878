//! The errors of building a prompt encoder and of encoding prompts.

use super::BoxError;
use crate::{ClipSkip, Cut};

/// The reason why a [`Tower`](crate::Tower) or a [`PromptEncoder`](crate::PromptEncoder) could not
/// be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TowerError {
    /// The tokenizer has ids for which the text model has no embedding.
    #[error("the tokenizer has ids up to {}, the text model's embedding only {model} rows", .tokenizer - 1)]
    TooManyIds {
        /// The number of ids: [`ClipTokenizer::vocab_size`](crate::ClipTokenizer::vocab_size).
        tokenizer: usize,
        /// The number of rows: [`TextShape::vocab_size`](crate::TextShape::vocab_size).
        model: usize,
    },
    /// The tokenizer pads to more tokens than the text model takes.
    #[error("the tokenizer returns {tokenizer} tokens, the text model takes at most {model}")]
    TooManyTokens {
        /// The tokens per chunk: [`ClipTokenizer::max_length`](crate::ClipTokenizer::max_length).
        tokenizer: usize,
        /// The most tokens: [`TextShape::max_length`](crate::TextShape::max_length).
        model: usize,
    },
    /// The tokenizers of the towers return different numbers of tokens.
    #[error("the tokenizers of the towers return {found:?} tokens, expected equal numbers")]
    UnequalTokens {
        /// The [`ClipTokenizer::max_length`](crate::ClipTokenizer::max_length) of each tower.
        found: Vec<usize>,
    },
    /// An encoder must have at least one tower, and at most one with a pooled output.
    #[error(
        "found {towers} towers and {pooled} pooled outputs, expected at least 1 tower and at most 1 pooled output"
    )]
    TowerCount {
        /// The number of towers.
        towers: usize,
        /// The number of towers with a pooled output.
        pooled: usize,
    },
}

/// The reason why a prompt could not be encoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// The clip skip is larger than the number of layers.
    #[error("clip skip is {got}, expected 1 to {layers}: the text model has {layers} layers")]
    ClipSkip {
        /// The clip skip that was requested.
        got: ClipSkip,
        /// The number of layers: [`TextShape::layers`](crate::TextShape::layers).
        layers: usize,
    },
    /// The text model returned hidden states of another shape than it declares.
    #[error(
        "the text model returned hidden states of shape {got:?}, expected (batch, length, width) = {expected:?}"
    )]
    Shape {
        /// The declared shape: `(1, length, width)`.
        expected: (usize, usize, usize),
        /// The shape that it returned.
        got: (usize, usize, usize),
    },
    /// The text model returned a pooled output of another shape than it declares.
    #[error("the text model returned a pooled output of shape {got:?}, expected {expected:?}")]
    Pooled {
        /// The declared shape, `(1, width)`, or `None` if no pooled output is declared.
        expected: Option<(usize, usize)>,
        /// The shape that it returned, or `None` if it returned no pooled output.
        got: Option<(usize, usize)>,
    },
    /// The prompts for the towers have different numbers of parts between `AND`s, or there is no
    /// prompt.
    #[error("the prompts for the towers have {found:?} parts between ANDs, expected equally many")]
    UnequalBranches {
        /// The number of parts that each tower reads.
        found: Vec<usize>,
    },
    /// A text that must fit the text model as a whole is too long.
    #[error("text {index} is too long: {} tokens from byte {} on do not fit the text model", .cut.tokens, .cut.offset)]
    TooLong {
        /// The index of the text, counted from 0.
        index: usize,
        /// The part that does not fit.
        cut: Cut,
    },
    /// The caller of
    /// [`PromptEncoder::encode_prompt_while`](crate::PromptEncoder::encode_prompt_while) stopped
    /// the encoding. This is not a failure.
    #[error("stopped")]
    Stopped,
    /// A text model failed.
    #[error("the text model failed")]
    Model {
        /// The index of the tower with this model, counted from 0.
        tower: usize,
        /// The error that the model returned.
        source: BoxError,
    },
}

impl TextError {
    /// Returns a function that turns the error of a model into [`TextError::Model`].
    pub(super) fn model(tower: usize) -> impl FnOnce(BoxError) -> Self {
        move |source| Self::Model { tower, source }
    }
}
