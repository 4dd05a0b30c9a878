//! A prompt of any length as chunks of 77 tokens.

use std::num::NonZeroUsize;

use serde::{Deserialize, Serialize};

use crate::tokenizer::{Piece, count};
use crate::{Cleanup, ClipTokenizer, Cut, Segment};

/// How a long prompt is parted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Chunking {
    /// When a chunk is full and a comma is among its last so many tokens, what follows the comma moves to the next chunk.
    /// Default 20, as in WebUI; 0 parts anywhere.
    pub comma_reach: usize,
    /// The most chunks; what doesn't fit in them is cut off and told. Default: none, nothing is cut.
    pub at_most: Option<NonZeroUsize>,
}

impl Default for Chunking {
    fn default() -> Self {
        Self {
            comma_reach: 20,
            at_most: None,
        }
    }
}

impl Chunking {
    /// Sets [`comma_reach`](Self::comma_reach).
    pub fn comma_reach(mut self, tokens: usize) -> Self {
        self.comma_reach = tokens;
        self
    }

    /// Sets [`at_most`](Self::at_most): truncation.
    pub fn at_most(mut self, chunks: NonZeroUsize) -> Self {
        self.at_most = Some(chunks);
        self
    }
}

/// As many tokens as the text model takes at once.
#[derive(Debug, Clone, PartialEq)]
pub struct Chunk {
    /// [`ClipTokenizer::max_length`] ids: BOS, text, EOS, padding.
    pub ids: Vec<u32>,
    /// The weight of each of them; that of BOS, EOS and padding is 1.
    pub weights: Vec<f32>,
    /// How many of them come before the padding, BOS and EOS included; at least 2.
    pub used: usize,
}

/// A prompt in chunks.
#[derive(Debug, Clone, PartialEq)]
pub struct Chunks {
    /// At least one.
    pub chunks: Vec<Chunk>,
    /// What was cut off, if that was asked for and it was too much. The text is that between brackets, the offset a byte
    /// of all such text joined (with [`Cleanup::Ftfy`], cleaned up): the prompt itself where it has no brackets and escapes.
    pub cut: Option<Cut>,
}

impl ClipTokenizer {
    /// Parts a text, read by [`attention`](crate::attention), into chunks, as WebUI does (`tokenize_line` of
    /// `modules/sd_hijack_clip.py`): each stretch is tokenized alone; a full chunk ends at a comma if one is near; a
    /// [`Segment::Break`] ends it in any case. The vectors of a textual inversion stay together: where a chunk has no room
    /// for all of them, they begin the next. When what follows a comma moves, theirs move along (in WebUI they stay behind,
    /// in a place that is padding by then).
    ///
    /// A tokenizer whose [`max_length`](Self::max_length) is 2 has room for no token, and all text is cut off.
    pub fn chunks(&self, segments: &[Segment], chunking: &Chunking, cleanup: Cleanup) -> Chunks {
        let room = self.max_length() - 2;
        let at_most = match room {
            0 => 1,
            _ => chunking.at_most.map_or(usize::MAX, NonZeroUsize::get),
        };
        let mut chunks = Vec::new();
        let mut chunk = Filling::default();
        // Bytes of the stretches before this one.
        let mut bytes = 0;
        for (index, segment) in segments.iter().enumerate() {
            let last = chunks.len() + 1 >= at_most;
            let Segment::Text { text, weight } = segment else {
                if last {
                    let cut = self.cut(segments, index + 1, None, bytes, cleanup);
                    chunks.push(self.chunk(chunk));
                    return Chunks { chunks, cut };
                }
                chunks.push(self.chunk(std::mem::take(&mut chunk)));
                continue;
            };
            let text = cleanup.apply(text);
            let pieces = self.pieces(&text);
            for (position, piece) in pieces.iter().enumerate() {
                let last = chunks.len() + 1 >= at_most;
                if Some(piece.ids.start) == self.comma() {
                    chunk.comma = Some(chunk.ids.len());
                } else if chunk.ids.len() == room && !last {
                    let near = chunk
                        .comma
                        .filter(|comma| room - comma <= chunking.comma_reach);
                    if let Some(comma) = near {
                        let moved = Filling {
                            ids: chunk.ids.split_off(comma + 1),
                            weights: chunk.weights.split_off(comma + 1),
                            comma: None,
                        };
                        chunks.push(self.chunk(std::mem::replace(&mut chunk, moved)));
                    }
                }
                if chunk.ids.len() + piece.ids.len() > room {
                    if chunks.len() + 1 >= at_most {
                        let within = Some((&*text, &pieces[position..]));
                        let cut = self.cut(segments, index, within, bytes, cleanup);
                        chunks.push(self.chunk(chunk));
                        return Chunks { chunks, cut };
                    }
                    chunks.push(self.chunk(std::mem::take(&mut chunk)));
                }
                chunk.ids.extend(piece.ids.clone());
                chunk.weights.resize(chunk.ids.len(), *weight as f32);
            }
            bytes += text.len();
        }
        if !chunk.ids.is_empty() || chunks.is_empty() {
            chunks.push(self.chunk(chunk));
        }
        Chunks { chunks, cut: None }
    }

    /// The chunk of the empty prompt.
    pub fn empty_chunk(&self) -> Chunk {
        self.chunk(Filling::default())
    }

    fn chunk(
        &self,
        Filling {
            ids: text,
            mut weights,
            ..
        }: Filling,
    ) -> Chunk {
        let mut ids = Vec::with_capacity(self.max_length());
        ids.push(self.bos());
        ids.extend(text);
        ids.push(self.eos());
        let used = ids.len();
        ids.resize(self.max_length(), self.pad());
        weights.insert(0, 1.0);
        weights.resize(self.max_length(), 1.0);
        Chunk { ids, weights, used }
    }

    /// What is cut off: from a place in a stretch on (its text, and the pieces from there), and all stretches from `index` on
    /// behind it. `bytes` come before that stretch.
    fn cut(
        &self,
        segments: &[Segment],
        index: usize,
        within: Option<(&str, &[Piece])>,
        bytes: usize,
        cleanup: Cleanup,
    ) -> Option<Cut> {
        let (mut text, mut tokens, offset) = match within {
            Some((text, pieces)) => {
                let start = pieces.first().map_or(text.len(), |piece| piece.start);
                let start = text.floor_char_boundary(start);
                (text[start..].to_owned(), count(pieces), bytes + start)
            }
            None => (String::new(), 0, bytes),
        };
        for segment in &segments[index + usize::from(within.is_some())..] {
            if let Segment::Text { text: rest, .. } = segment {
                let rest = cleanup.apply(rest);
                tokens += count(&self.pieces(&rest));
                text.push_str(&rest);
            }
        }
        (tokens > 0).then_some(Cut {
            tokens,
            text,
            offset,
        })
    }
}

#[derive(Default)]
struct Filling {
    ids: Vec<u32>,
    weights: Vec<f32>,
    /// Where its last comma is.
    comma: Option<usize>,
}
