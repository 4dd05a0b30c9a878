//! What can be chosen about encoding a text.

use crate::{Chunking, Cleanup, ClipSkip, Emphasis, Syntax};

/// How a text is encoded. Built by value: `EncodeOptions::default().clip_skip(skip)`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub struct EncodeOptions {
    /// The layer that every tower is read at. Default: `None`, each tower's
    /// [own layer](crate::Tower::own_layer).
    pub clip_skip: Option<ClipSkip>,
    /// Whose weights are read. Default: WebUI's, with `BREAK`.
    pub syntax: Syntax,
    /// How weights act. Default: multiplied, each chunk keeping its mean, as in WebUI.
    pub emphasis: Emphasis,
    /// How a long text is parted, and whether it is cut. Default: at commas, and not.
    pub chunking: Chunking,
    /// What is done to the text first. Default: what transformers does.
    pub cleanup: Cleanup,
    /// To how many chunks empty ones are added, so that two prompts may be of one length. Default 0, none.
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
