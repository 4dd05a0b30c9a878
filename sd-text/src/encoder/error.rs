//! What can go wrong.

use super::BoxError;
use crate::{ClipSkip, Cut};

/// Why a prompt could not be encoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// The tokenizer gives ids that the model has no embedding for.
    #[error("the tokenizer has ids up to {}, the text model's embedding only {model} rows", .tokenizer - 1)]
    Vocabulary {
        /// [`ClipTokenizer::vocab_size`](crate::ClipTokenizer::vocab_size).
        tokenizer: usize,
        /// [`TextShape::vocab_size`](crate::TextShape::vocab_size).
        model: usize,
    },
    /// The tokenizer pads to more tokens than the model takes.
    #[error("the tokenizer gives {tokenizer} tokens, the text model takes at most {model}")]
    Length {
        /// [`ClipTokenizer::max_length`](crate::ClipTokenizer::max_length).
        tokenizer: usize,
        /// [`TextShape::max_length`](crate::TextShape::max_length).
        model: usize,
    },
    /// The clip skip leaves no layer over.
    #[error("clip skip is {got}, expected 1 to {layers}: the text model has {layers} layers")]
    ClipSkip {
        /// What was asked for.
        got: ClipSkip,
        /// [`TextShape::layers`](crate::TextShape::layers).
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
    /// The model's pooled output has another shape than it declares.
    #[error("the text model returned a pooled output of shape {got:?}, expected {expected:?}")]
    Pooled {
        /// `(1, width)`, or none.
        expected: Option<(usize, usize)>,
        /// What came.
        got: Option<(usize, usize)>,
    },
    /// The tokenizers of the towers do not give equally many tokens.
    #[error("the tokenizers of the towers give {found:?} tokens, expected equally many")]
    Lengths {
        /// [`ClipTokenizer::max_length`](crate::ClipTokenizer::max_length) of each.
        found: Vec<usize>,
    },
    /// The prompts for the towers do not have equally many parts between ANDs.
    #[error("the prompts for the towers have {found:?} parts between ANDs, expected equally many")]
    Parts {
        /// The number of parts of each prompt.
        found: Vec<usize>,
    },
    /// An encoder needs a tower, and at most one with a pooled output.
    #[error(
        "{towers} towers of which {pooled} have a pooled output, expected at least 1 and at most 1"
    )]
    Towers {
        /// How many towers there are.
        towers: usize,
        /// How many of them have a pooled output.
        pooled: usize,
    },
    /// A text that must fit the model as a whole is too long for it.
    #[error("text {index} is too long: {} tokens from byte {} on do not fit the text model", .cut.tokens, .cut.offset)]
    TooLong {
        /// Which of the texts, from 0.
        index: usize,
        /// What does not fit.
        cut: Cut,
    },
    /// The caller of
    /// [`PromptEncoder::encode_prompt_while`](crate::PromptEncoder::encode_prompt_while) ended it.
    /// This is not a failure.
    #[error("stopped")]
    Stopped,
    /// The model failed.
    #[error("the text model failed: {}", crate::outside::printable(.0))]
    Model(#[source] BoxError),
}
