//! Options for encoding a text.

use crate::{Chunking, Cleanup, ClipSkip, Emphasis, Syntax};

/// How a text is encoded.
///
/// ```
/// use sd_text::{ClipSkip, Emphasis, EncodeOptions};
///
/// let options = EncodeOptions::default()
///     .clip_skip(ClipSkip::PENULTIMATE)
///     .emphasis(Emphasis::Multiply);
/// assert_eq!(options.clip_skip, Some(ClipSkip::PENULTIMATE));
/// assert_eq!(options.min_chunks, 0);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub struct EncodeOptions {
    /// The layer that is used in every tower.
    ///
    /// Default: `None`, each tower uses its [default layer](crate::Tower::default_layer).
    pub clip_skip: Option<ClipSkip>,
    /// The program whose prompt language is read.
    ///
    /// Default: WebUI's, with `BREAK`.
    pub syntax: Syntax,
    /// How weights act on hidden states.
    ///
    /// Default: [`Emphasis::KeepMean`], which multiplies and keeps the mean of each chunk, as WebUI
    /// does.
    pub emphasis: Emphasis,
    /// How a long text is split into chunks, and whether it is truncated.
    ///
    /// Default: it is split at commas and not truncated.
    pub chunking: Chunking,
    /// How the text is cleaned up before tokenization.
    ///
    /// Default: as in transformers.
    pub cleanup: Cleanup,
    /// The fewest chunks. Empty chunks are added to a shorter text, so that two prompts can have
    /// the same length.
    ///
    /// Default: 0, no chunks are added.
    pub min_chunks: usize,
}

impl EncodeOptions {
    /// Sets [`clip_skip`](Self::clip_skip).
    pub fn clip_skip(mut self, clip_skip: impl Into<Option<ClipSkip>>) -> Self {
        self.clip_skip = clip_skip.into();
        self
    }

    /// Sets [`syntax`](Self::syntax).
    pub fn syntax(mut self, syntax: Syntax) -> Self {
        self.syntax = syntax;
        self
    }

    /// Sets [`emphasis`](Self::emphasis).
    pub fn emphasis(mut self, emphasis: Emphasis) -> Self {
        self.emphasis = emphasis;
        self
    }

    /// Sets [`chunking`](Self::chunking).
    pub fn chunking(mut self, chunking: Chunking) -> Self {
        self.chunking = chunking;
        self
    }

    /// Sets [`cleanup`](Self::cleanup).
    pub fn cleanup(mut self, cleanup: Cleanup) -> Self {
        self.cleanup = cleanup;
        self
    }

    /// Sets [`min_chunks`](Self::min_chunks).
    pub fn min_chunks(mut self, chunks: usize) -> Self {
        self.min_chunks = chunks;
        self
    }
}
