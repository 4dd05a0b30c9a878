//! Prompt parsing, CLIP tokenization and prompt encoding for Stable Diffusion.
//!
//! This crate turns a prompt into the text embeddings that condition a denoiser. It knows nothing
//! of ONNX: a backend supplies the text model through a trait.
//!
//! - [`PromptText`] parses the prompt language: weights, `BREAK`, `AND`, and text that changes from
//!   step to step. The module [`prompt`] describes the language.
//! - [`ClipTokenizer`] turns text into the same CLIP token ids as `CLIPTokenizer` of transformers
//!   5.23. It reports the text that did not fit as a [`Cut`].
//! - [`TextModel`] is the trait that a backend implements: it takes token ids and returns hidden
//!   states. A [`Tower`] is a text model together with its tokenizer.
//! - [`ClipSkip`] selects the layer of the text model whose output is used. The module
//!   [`clip_skip`] compares the three numbering conventions in use.
//! - [`PromptEncoder`] combines these parts, for one tower or several. It turns a prompt of any
//!   length into embeddings, splits it into [`Chunk`]s and applies the weights (see [`Emphasis`]).
//! - [`TextualInversion`] reads learned vectors that a prompt refers to by name.
//!
//! With the Cargo feature `vocabulary`, the crate contains CLIP's vocabulary (196 kB, MIT, OpenAI),
//! and `ClipTokenizer::clip` needs no files.
//!
//! ```
//! use std::sync::Arc;
//!
//! use ndarray::{Array3, ArrayView2};
//! use sd_text::{
//!     BoxError, ClipSkip, ClipTokenizer, Layer, PromptEncoder, TextModel, TextShape, TextStates,
//! };
//!
//! /// A stand-in for a network: every channel of a token holds the token's id.
//! struct Ids;
//!
//! impl TextModel for Ids {
//!     fn shape(&self) -> TextShape {
//!         TextShape::new(4, 64)
//!     }
//!
//!     fn run(&self, ids: ArrayView2<'_, i64>, _: Layer) -> Result<TextStates, BoxError> {
//!         let (batch, length) = ids.dim();
//!         let states = Array3::from_shape_fn((batch, length, 64), |(b, l, _)| ids[[b, l]] as f32);
//!         Ok(states.into())
//!     }
//! }
//!
//! let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji/tokenizer");
//! let tokenizer = Arc::new(ClipTokenizer::load(folder)?);
//! let encoder = PromptEncoder::new(tokenizer, Arc::new(Ids))?;
//!
//! let prompt = encoder.encode("a cute fox girl, watercolour", ClipSkip::new(2)?)?;
//! assert_eq!(prompt.embedding.dim(), (1, 77, 64));
//! assert_eq!(prompt.embedding[[0, 0, 0]], 49406.0); // <|startoftext|>
//! assert_eq!(prompt.tokens.used, 8); // of 77, including <|startoftext|> and <|endoftext|>
//! assert!(prompt.tokens.cut.is_none());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod chunks;
mod cleanup;
pub mod clip_skip;
pub mod emphasis;
mod encoder;
mod inversion;
#[doc(hidden)]
pub mod outside;
#[doc(hidden)]
pub mod pickle;
pub mod prompt;
mod report;
mod tokenizer;

pub use chunks::{Chunk, Chunking, Chunks};
pub use cleanup::Cleanup;
pub use clip_skip::{ClipSkip, ClipSkipError};
pub use emphasis::Emphasis;
pub use encoder::{
    BoxError, EncodeOptions, EncodedBranch, EncodedEntry, Layer, PromptEmbedding, PromptEncoder,
    TextError, TextModel, TextShape, TextStates, Tower, TowerError,
};
pub use inversion::{InversionError, NamedInversion, TextualInversion};
pub use prompt::{
    Branch, Network, PromptSteps, PromptText, Schedule, Segment, Side, Syntax, Warning, attention,
};
pub use report::NetworkReport;
pub use tokenizer::{ClipTokenizer, Cut, TokenizerError, Tokens};

// Compiles the example in the README with the other documentation tests.
#[cfg(all(doctest, feature = "vocabulary"))]
#[doc = include_str!("../README.md")]
pub struct ReadmeExample;
