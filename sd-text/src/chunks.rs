//! Splits a prompt of any length into chunks of 77 tokens.

use std::num::NonZeroUsize;

use serde::{Deserialize, Serialize};

use crate::tokenizer::{Piece, count};
use crate::{Cleanup, ClipTokenizer, Cut, Segment};

/// How a long prompt is split into chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Chunking {
    /// How far back from the end of a full chunk a comma is looked for, in tokens. If there is a
    /// comma among the last `comma_reach` tokens, the tokens after it move to the next chunk. 0
    /// splits anywhere.
    ///
    /// Default: 20, as in WebUI.
    pub comma_reach: usize,
    /// The most chunks. Text that does not fit is cut off and reported in [`Chunks::cut`].
    ///
    /// Default: `None`, nothing is cut off.
    pub max_chunks: Option<NonZeroUsize>,
}

impl Default for Chunking {
    fn default() -> Self {
        Self {
            comma_reach: 20,
            max_chunks: None,
        }
    }
}

impl Chunking {
    /// Sets [`comma_reach`](Self::comma_reach).
    pub fn comma_reach(mut self, tokens: usize) -> Self {
        self.comma_reach = tokens;
        self
    }

    /// Sets [`max_chunks`](Self::max_chunks), which truncates long prompts.
    pub fn max_chunks(mut self, chunks: NonZeroUsize) -> Self {
        self.max_chunks = Some(chunks);
        self
    }
}

/// The tokens that the text model takes at once.
#[derive(Debug, Clone, PartialEq)]
pub struct Chunk {
    /// The token ids: BOS, text, EOS, padding. There are [`ClipTokenizer::max_length`] of them.
    pub ids: Vec<u32>,
    /// The weight of each token. BOS, EOS and padding have weight 1.
    pub weights: Vec<f32>,
    /// The number of tokens before the padding, including BOS and EOS. At least 2.
    pub used: usize,
}

/// A prompt split into chunks.
#[derive(Debug, Clone, PartialEq)]
pub struct Chunks {
    /// The chunks, at least one.
    pub chunks: Vec<Chunk>,
    /// The text that was cut off, if [`Chunking::max_chunks`] was set and the prompt was too long.
    ///
    /// Its text and offset refer to the text between brackets: all such text is joined, and with
    /// [`Cleanup::Ftfy`] cleaned up. This is the prompt itself if the prompt has no brackets and no
    /// escapes.
    pub cut: Option<Cut>,
}

impl ClipTokenizer {
    /// Splits a text, already read by [`attention`](crate::attention), into chunks.
    ///
    /// This follows WebUI (`tokenize_line` of `modules/sd_hijack_clip.py`): each segment is
    /// tokenized separately, a full chunk ends at a comma if one is near, and a [`Segment::Break`]
    /// always ends a chunk.
    ///
    /// The vectors of a textual inversion stay together. If a chunk has no room for all of them,
    /// they begin the next chunk. If the text after a comma moves to the next chunk, the vectors in
    /// it move too. WebUI leaves them behind, at a position that is padding by then.
    ///
    /// A tokenizer whose [`max_length`](Self::max_length) is 2 has room for no token, so all text
    /// is cut off.
    ///
    /// ```
    /// use std::num::NonZeroUsize;
    ///
    /// use sd_text::{Chunking, Cleanup, ClipTokenizer, Syntax, attention};
    ///
    /// let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji/tokenizer");
    /// let tokenizer = ClipTokenizer::load(folder)?;
    /// let segments = attention("a fox BREAK snow", Syntax::WebUi);
    ///
    /// let chunks = tokenizer.chunks(&segments, &Chunking::default(), Cleanup::default());
    /// assert_eq!(chunks.chunks.len(), 2);
    ///
    /// let one = Chunking::default().max_chunks(NonZeroUsize::MIN);
    /// let chunks = tokenizer.chunks(&segments, &one, Cleanup::default());
    /// assert_eq!(chunks.chunks.len(), 1);
    /// assert_eq!(chunks.cut.expect("the second chunk was cut off").text, "snow");
    /// # Ok::<(), sd_text::TokenizerError>(())
    /// ```
    pub fn chunks(&self, segments: &[Segment], chunking: &Chunking, cleanup: Cleanup) -> Chunks {
        let room = self.max_length() - 2;
        let at_most = match room {
            0 => 1,
            _ => chunking.max_chunks.map_or(usize::MAX, NonZeroUsize::get),
        };
        let mut chunks = Vec::new();
        let mut chunk = Filling::default();
        // The bytes of all segments before this one.
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

    /// Returns the chunk of the empty prompt.
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

    /// Describes the text that is cut off. It starts inside segment `index` if `within` gives the
    /// segment's text and the pieces that do not fit, and at segment `index` otherwise. `bytes` is
    /// the length of all segments before `index`.
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
    /// The position of its last comma.
    comma: Option<usize>,
}
