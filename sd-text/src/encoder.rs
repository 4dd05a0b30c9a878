//! Prompt → token ids → hidden states.

mod cache;
mod options;

use std::collections::{HashMap, HashSet};
use std::error::Error;
use std::fmt;
use std::sync::Arc;

use ndarray::{ArcArray, Array2, Array3, ArrayView2, Axis, Ix3};

use crate::{
    Chunks, ClipSkip, ClipTokenizer, Cut, Emphasis, NamedInversion, PromptText, Tokens, attention,
    emphasis,
    prompt::{self, ScheduleEntry},
};

use cache::Cache;
pub use options::EncodeOptions;

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
///
/// It keeps up to 64 MiB of the embeddings that it was asked for last, which its clones share: a text that comes again, with the same
/// options, costs nothing.
#[derive(Clone)]
pub struct PromptEncoder {
    tokenizer: Arc<ClipTokenizer>,
    model: Arc<dyn TextModel>,
    cache: Arc<Cache>,
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
        Ok(Self {
            tokenizer,
            model,
            cache: Arc::default(),
        })
    }

    /// The tokenizer, to count the tokens of a prompt without running the model.
    pub fn tokenizer(&self) -> &ClipTokenizer {
        &self.tokenizer
    }

    /// The text model.
    pub fn model(&self) -> &dyn TextModel {
        &*self.model
    }

    /// Encodes one text with the default [`EncodeOptions`] but for the layer: WebUI's weights and `BREAK`s are read, and a
    /// text that is too long for the model becomes several chunks. For what changes from step to step, and `AND`, see
    /// [`encode_prompt`](Self::encode_prompt).
    ///
    /// # Errors
    /// [`TextError::ClipSkip`] if the model has fewer layers, [`TextError::Model`] if it fails, [`TextError::Shape`] if
    /// it answers in another shape than it said.
    pub fn encode(&self, text: &str, clip_skip: ClipSkip) -> Result<PromptEmbedding, TextError> {
        self.encode_with(text, &EncodeOptions::default().clip_skip(clip_skip))
    }

    /// Encodes one text, one that a schedule shows or one without a schedule. A weight of so many digits
    /// that it is infinite makes states that are infinite or NaN; a pipeline refuses it.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_with(
        &self,
        text: &str,
        options: &EncodeOptions,
    ) -> Result<PromptEmbedding, TextError> {
        let mut states = States::new(self, options.clip_skip, &|| true)?;
        // 0 and 1 are the same, and share an entry of the cache with `encode_prompt`.
        let options = options.clone().min_chunks(options.min_chunks.max(1));
        let key = (Arc::from(text), options);
        let embedding = self.cached(key, None, &mut states)?;
        Ok(PromptEmbedding::clone(&embedding))
    }

    /// Encodes all texts that a prompt shows over `steps` steps (see [`Branch::schedule`](crate::Branch::schedule)), each
    /// distinct one once, and each distinct chunk of theirs. The texts of a branch are as long as its longest: to the
    /// others empty chunks are added, as in WebUI. [`EncodeOptions::syntax`] is not looked at, the prompt has its own.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_prompt(
        &self,
        prompt: &PromptText,
        steps: usize,
        options: &EncodeOptions,
    ) -> Result<Vec<EncodedBranch>, TextError> {
        self.encode_prompt_while(prompt, steps, options, &|| true)
    }

    /// As [`encode_prompt`](Self::encode_prompt), as long as `go_on` says so, which is asked before each run of the model: a prompt of
    /// thousands of chunks takes minutes.
    ///
    /// # Errors
    /// As `encode_prompt`, and [`TextError::Stopped`].
    pub fn encode_prompt_while(
        &self,
        prompt: &PromptText,
        steps: usize,
        options: &EncodeOptions,
        go_on: &dyn Fn() -> bool,
    ) -> Result<Vec<EncodedBranch>, TextError> {
        let mut states = States::new(self, options.clip_skip, go_on)?;
        let mut embeddings: HashMap<(Arc<str>, usize), Arc<PromptEmbedding>> = HashMap::new();
        let options = options.clone().syntax(prompt.syntax());
        let mut branches = Vec::new();
        for branch in prompt.branches() {
            let schedule = branch.schedule(steps);
            let mut parted: HashMap<&str, Chunks> = HashMap::new();
            for ScheduleEntry { text, .. } in schedule.entries() {
                parted
                    .entry(text)
                    .or_insert_with(|| self.chunks(text, &options));
            }
            let lengths = parted.values().map(|chunks| chunks.chunks.len());
            let longest = lengths.max().unwrap_or(1);
            let options = options.clone().min_chunks(options.min_chunks.max(longest));

            let mut entries = Vec::with_capacity(schedule.entries().len());
            for ScheduleEntry { end, text } in schedule.entries() {
                // Texts that another branch shows too are shared with it if they are of one length.
                let key = (text.clone(), longest);
                if let Some(chunks) = parted.remove(&**text)
                    && !embeddings.contains_key(&key)
                {
                    let cached = (text.clone(), options.clone());
                    let embedding = self.cached(cached, Some(chunks), &mut states)?;
                    embeddings.insert(key.clone(), embedding);
                }
                let embedding = embeddings[&key].clone();
                entries.push(EncodedEntry {
                    end: *end,
                    embedding,
                });
            }
            branches.push(EncodedBranch {
                weight: branch.weight(),
                entries,
            });
        }
        Ok(branches)
    }

    /// The chunks of a text, to see its tokens and their weights without running the model.
    pub fn chunks(&self, text: &str, options: &EncodeOptions) -> Chunks {
        let segments = attention(text, options.syntax);
        self.tokenizer
            .chunks(&segments, &options.chunking, options.cleanup)
    }

    /// The chunks of each distinct text that [`encode_prompt`](Self::encode_prompt) encodes, in that order, made as they are asked for.
    pub fn all_chunks(
        &self,
        prompt: &PromptText,
        steps: usize,
        options: &EncodeOptions,
    ) -> impl Iterator<Item = Chunks> {
        let options = options.clone().syntax(prompt.syntax());
        let (mut known, mut texts) = (HashSet::new(), Vec::new());
        for branch in prompt.branches() {
            let schedule = branch.schedule(steps);
            let all = schedule.entries().iter().map(|entry| &entry.text);
            texts.extend(all.filter(|text| known.insert(Arc::clone(text))).cloned());
        }
        texts
            .into_iter()
            .map(move |text| self.chunks(&text, &options))
    }

    /// How many chunks the longest of those texts has, at least [`EncodeOptions::min_chunks`].
    pub fn longest(&self, prompt: &PromptText, steps: usize, options: &EncodeOptions) -> usize {
        let all = self.all_chunks(prompt, steps, options);
        let chunks = all.map(|text| text.chunks.len());
        chunks.max().unwrap_or(1).max(options.min_chunks)
    }

    /// The embedding of a text, whose `chunks` may be known.
    fn cached(
        &self,
        key: (Arc<str>, EncodeOptions),
        chunks: Option<Chunks>,
        states: &mut States<'_>,
    ) -> Result<Arc<PromptEmbedding>, TextError> {
        if let Some(known) = self.cache.get(&key) {
            return Ok(known);
        }
        let (text, options) = &key;
        let chunks = chunks.unwrap_or_else(|| self.chunks(text, options));
        let embedding = Arc::new(self.embed(chunks, options, states)?);
        self.cache.put(key, embedding.clone());
        Ok(embedding)
    }

    fn embed(
        &self,
        chunks: Chunks,
        options: &EncodeOptions,
        states: &mut States<'_>,
    ) -> Result<PromptEmbedding, TextError> {
        let Chunks { mut chunks, cut } = chunks;
        if chunks.len() < options.min_chunks {
            chunks.resize(options.min_chunks, self.tokenizer.empty_chunk());
        }
        let (length, width) = (self.tokenizer.max_length(), self.model.width());
        let mut embedding = Array3::zeros((1, chunks.len() * length, width));
        for (chunk, mut slot) in chunks
            .iter()
            .zip(embedding.axis_chunks_iter_mut(Axis(1), length))
        {
            let mut hidden = slot.index_axis_mut(Axis(0), 0);
            hidden.assign(&states.of(&chunk.ids)?);
            if emphasis::neutral(&chunk.weights) {
                continue;
            }
            match options.emphasis {
                Emphasis::KeepMean => emphasis::keep_mean(hidden, &chunk.weights),
                Emphasis::Multiply => emphasis::multiply(hidden, &chunk.weights),
                Emphasis::Interpolate => {
                    let empty = states.of(&self.tokenizer.empty_chunk().ids)?;
                    emphasis::interpolate(hidden, &chunk.weights, empty.view());
                }
                Emphasis::Ignore => {}
            }
        }
        let used = chunks.iter().map(|chunk| chunk.used).sum();
        let mut inversions: Vec<NamedInversion> = Vec::new();
        for &id in chunks.iter().flat_map(|chunk| &chunk.ids) {
            let named = self.tokenizer.inversion(id);
            inversions.extend(named.filter(|named| !inversions.contains(named)).cloned());
        }
        let (mut ids, mut weights) = (Vec::new(), Vec::new());
        for chunk in chunks {
            ids.extend(chunk.ids);
            weights.extend(chunk.weights);
        }
        Ok(PromptEmbedding {
            embedding: embedding.into_shared(),
            tokens: Tokens { ids, used, cut },
            weights,
            inversions,
        })
    }
}

/// The hidden states of chunks, each asked for once.
struct States<'a> {
    model: &'a dyn TextModel,
    clip_skip: ClipSkip,
    go_on: &'a dyn Fn() -> bool,
    known: HashMap<Vec<u32>, Arc<Array2<f32>>>,
}

impl<'a> States<'a> {
    fn new(
        encoder: &'a PromptEncoder,
        clip_skip: ClipSkip,
        go_on: &'a dyn Fn() -> bool,
    ) -> Result<Self, TextError> {
        let layers = encoder.model.layers();
        if clip_skip.number() > layers {
            return Err(TextError::ClipSkip {
                got: clip_skip,
                layers,
            });
        }
        Ok(Self {
            model: &*encoder.model,
            clip_skip,
            go_on,
            known: HashMap::new(),
        })
    }

    /// Chunks are encoded one at a time, so that what one becomes doesn't depend on the others.
    fn of(&mut self, ids: &[u32]) -> Result<Arc<Array2<f32>>, TextError> {
        if let Some(hidden) = self.known.get(ids) {
            return Ok(hidden.clone());
        }
        if !(self.go_on)() {
            return Err(TextError::Stopped);
        }
        let batch = Array2::from_shape_fn((1, ids.len()), |(_, index)| i64::from(ids[index]));
        let hidden = self
            .model
            .hidden_states(batch.view(), self.clip_skip)
            .map_err(TextError::Model)?;
        let expected = (1, ids.len(), self.model.width());
        if hidden.dim() != expected {
            return Err(TextError::Shape {
                expected,
                got: hidden.dim(),
            });
        }
        let hidden = Arc::new(hidden.index_axis_move(Axis(0), 0));
        self.known.insert(ids.to_vec(), hidden.clone());
        Ok(hidden)
    }
}

impl fmt::Debug for PromptEncoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PromptEncoder")
            .field("tokenizer", &self.tokenizer)
            .finish_non_exhaustive()
    }
}

/// An encoded text.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct PromptEmbedding {
    /// `[1, length, width]`: the tokenizer's [`max_length`](ClipTokenizer::max_length) tokens for each chunk, padding
    /// included, by the model's [`width`](TextModel::width). Cheap to clone.
    pub embedding: ArcArray<f32, Ix3>,
    /// The ids of all chunks, one after the other, how many of them are no padding, and what was cut off if that was asked
    /// for ([`Chunks::cut`]).
    pub tokens: Tokens,
    /// The weight of each token.
    pub weights: Vec<f32>,
    /// The textual inversions that the text names, each once.
    pub inversions: Vec<NamedInversion>,
}

impl PromptEmbedding {
    /// The embedding with its last vector, with that one's token and weight, repeated up to `length` tokens: how parts of an
    /// `AND` become as long as the longest. One that is longer stays so.
    pub fn repeat_last(&self, length: usize) -> Self {
        let mut longer = self.clone();
        let (batch, tokens, width) = self.embedding.dim();
        if tokens == 0 || tokens >= length {
            return longer;
        }
        let row = |index: usize| index.min(tokens - 1);
        let repeated = Array3::from_shape_fn((batch, length, width), |(b, index, w)| {
            self.embedding[[b, row(index), w]]
        });
        longer.embedding = repeated.into_shared();
        if let (Some(&id), Some(&weight)) = (self.tokens.ids.last(), self.weights.last()) {
            longer.tokens.ids.resize(length, id);
            longer.weights.resize(length, weight);
        }
        longer
    }

    /// The embedding with `tail`, of the same width, behind it. One of whose tokens nothing is known stays so.
    fn with_tail(&self, tail: &Self) -> Self {
        let mut longer = self.clone();
        let views = [self.embedding.view(), tail.embedding.view()];
        let joined = ndarray::concatenate(Axis(1), &views);
        longer.embedding = joined.expect("one width").into_shared();
        if !self.tokens.ids.is_empty() {
            longer.tokens.ids.extend(&tail.tokens.ids);
            longer.tokens.used += tail.tokens.used;
            longer.weights.extend(&tail.weights);
        }
        longer
    }
}

impl From<ArcArray<f32, Ix3>> for PromptEmbedding {
    /// An embedding from elsewhere, of whose tokens nothing is known.
    fn from(embedding: ArcArray<f32, Ix3>) -> Self {
        Self {
            embedding,
            tokens: Tokens {
                ids: Vec::new(),
                used: 0,
                cut: None,
            },
            weights: Vec::new(),
            inversions: Vec::new(),
        }
    }
}

/// A branch of an encoded prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct EncodedBranch {
    /// [`Branch::weight`](crate::Branch::weight).
    pub weight: f64,
    /// At least one.
    entries: Vec<EncodedEntry>,
}

/// An encoded text of a schedule.
#[derive(Debug, Clone, PartialEq)]
pub struct EncodedEntry {
    /// The last step, from 1, that shows it.
    pub end: usize,
    /// It. Entries of the same text share it.
    pub embedding: Arc<PromptEmbedding>,
}

impl EncodedBranch {
    /// At least one, all of one length, as those of the [`Schedule`](crate::Schedule).
    pub fn entries(&self) -> &[EncodedEntry] {
        &self.entries
    }

    /// How many tokens each of its embeddings has.
    pub fn tokens(&self) -> usize {
        self.entries[0].embedding.embedding.dim().1
    }

    /// The branch with each of its embeddings [repeating its last vector](PromptEmbedding::repeat_last) up to `length` tokens.
    pub fn repeat_last(self, length: usize) -> Self {
        if self.tokens() >= length {
            return self;
        }
        self.map(|embedding| embedding.repeat_last(length))
    }

    /// The branch with `tail` behind each of its embeddings.
    ///
    /// # Panics
    /// If its width is another.
    pub fn append(self, tail: &PromptEmbedding) -> Self {
        self.map(|embedding| embedding.with_tail(tail))
    }

    /// Entries of one text go on sharing one embedding.
    fn map(mut self, longer: impl Fn(&PromptEmbedding) -> PromptEmbedding) -> Self {
        let mut mapped: HashMap<*const PromptEmbedding, Arc<PromptEmbedding>> = HashMap::new();
        for entry in &mut self.entries {
            let known = mapped.entry(Arc::as_ptr(&entry.embedding));
            let new = known.or_insert_with(|| Arc::new(longer(&entry.embedding)));
            entry.embedding = new.clone();
        }
        self
    }

    /// The embedding in force at model call `call`, from 0: see [`Schedule::at`](crate::Schedule::at).
    pub fn at(&self, call: usize) -> &Arc<PromptEmbedding> {
        &self.entries[prompt::in_force(self.entries.iter().map(|entry| entry.end), call)].embedding
    }
}

impl From<PromptEmbedding> for EncodedBranch {
    /// One that never changes, of weight 1.
    fn from(embedding: PromptEmbedding) -> Self {
        Self {
            weight: 1.0,
            entries: vec![EncodedEntry {
                end: usize::MAX,
                embedding: Arc::new(embedding),
            }],
        }
    }
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
    /// A text that must fit the model as a whole is too long for it.
    #[error("text {index} is too long: {} tokens from byte {} on do not fit the text model", .cut.tokens, .cut.offset)]
    TooLong {
        /// Which of the texts, from 0.
        index: usize,
        /// What does not fit.
        cut: Cut,
    },
    /// [`PromptEncoder::encode_prompt_while`] was not to go on. No failure.
    #[error("stopped")]
    Stopped,
    /// The model failed.
    #[error("the text model failed: {}", crate::outside::printable(.0))]
    Model(#[source] BoxError),
}
