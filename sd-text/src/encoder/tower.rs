//! A tower: a tokenizer and its text network.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::iter;
use std::sync::Arc;

use ndarray::{Array1, Array2, Array3, Axis};

use super::{
    EncodedBranch, EncodedEntry, Layer, PromptEmbedding, TextError, TextModel, TowerError,
    cache::Cache,
};
use crate::{
    Chunks, ClipTokenizer, Emphasis, EncodeOptions, NamedInversion, PromptSteps, PromptText,
    Tokens, attention, emphasis, prompt::ScheduleEntry,
};

/// A tokenizer, its text network, and the layer of the network whose hidden states are used. Cheap
/// to clone.
///
/// A tower caches up to 64 MiB of the most recently requested embeddings and shares the cache with
/// its clones. Encoding a cached text again with the same options costs nothing.
#[derive(Clone)]
pub struct Tower {
    tokenizer: Arc<ClipTokenizer>,
    model: Arc<dyn TextModel>,
    layer: Layer,
    cache: Arc<Cache>,
}

impl Tower {
    /// Creates a tower that uses its last layer with the final norm.
    ///
    /// # Errors
    /// - [`TowerError::TooManyIds`] if the tokenizer has ids for which the model has no embedding.
    /// - [`TowerError::TooManyTokens`] if the tokenizer returns more tokens than the model takes.
    pub fn new(
        tokenizer: Arc<ClipTokenizer>,
        model: Arc<dyn TextModel>,
    ) -> Result<Self, TowerError> {
        let shape = model.shape();
        let (ids, rows) = (tokenizer.vocab_size(), shape.vocab_size);
        if ids > rows {
            return Err(TowerError::TooManyIds {
                tokenizer: ids,
                model: rows,
            });
        }
        let (length, most) = (tokenizer.max_length(), shape.max_length);
        if length > most {
            return Err(TowerError::TooManyTokens {
                tokenizer: length,
                model: most,
            });
        }
        Ok(Self {
            tokenizer,
            model,
            layer: Layer::LAST,
            cache: Arc::default(),
        })
    }

    /// Sets the layer whose hidden states are used. The tower no longer shares its cache with its
    /// clones.
    ///
    /// [`EncodeOptions::clip_skip`] can select another layer for one call. Whether the final norm
    /// is applied is always decided here.
    ///
    /// Default: [`Layer::LAST`].
    pub fn layer(mut self, layer: Layer) -> Self {
        self.layer = layer;
        // The cached embeddings come from another layer.
        self.cache = Arc::default();
        self
    }

    /// Returns the tokenizer.
    pub fn tokenizer(&self) -> &ClipTokenizer {
        &self.tokenizer
    }

    /// Returns the text network.
    pub fn model(&self) -> &dyn TextModel {
        &*self.model
    }

    /// Returns the layer that is used unless the options select another one.
    pub fn default_layer(&self) -> Layer {
        self.layer
    }

    /// Returns the layer that these options select.
    fn chosen(&self, options: &EncodeOptions) -> Result<Layer, TextError> {
        let layer = Layer {
            skip: options.clip_skip.unwrap_or(self.layer.skip),
            ..self.layer
        };
        let layers = self.model.shape().layers;
        if layer.skip.number() > layers {
            return Err(TextError::ClipSkip {
                got: layer.skip,
                layers,
            });
        }
        Ok(layer)
    }

    /// Encodes one text. `index` is the tower's place in its encoder.
    pub(super) fn encode(
        &self,
        index: usize,
        text: &str,
        options: &EncodeOptions,
    ) -> Result<Arc<PromptEmbedding>, TextError> {
        let mut states = States::new(self, index, options, &|| true)?;
        // 0 and 1 mean the same. Using 1 shares the cache entry with `encode_prompt`.
        let options = options.clone().min_chunks(options.min_chunks.max(1));
        self.cached((Arc::from(text), options), None, &mut states)
    }

    /// Encodes the branches of a prompt. Branch `i` gets at least `least[i]` chunks, or 1 if
    /// `least` is too short. `index` is the tower's place in its encoder.
    pub(super) fn encode_prompt(
        &self,
        index: usize,
        prompt: &PromptText,
        steps: PromptSteps,
        options: &EncodeOptions,
        least: &[usize],
        go_on: &dyn Fn() -> bool,
    ) -> Result<Vec<EncodedBranch>, TextError> {
        let mut states = States::new(self, index, options, go_on)?;
        let mut embeddings: HashMap<(Arc<str>, usize), Arc<PromptEmbedding>> = HashMap::new();
        let options = options.clone().syntax(prompt.syntax());
        let mut branches = Vec::new();
        for (branch, least) in prompt.branches().zip(least.iter().chain(iter::repeat(&1))) {
            let schedule = branch.schedule(steps);
            let mut parted: HashMap<&str, Chunks> = HashMap::new();
            for ScheduleEntry { text, .. } in schedule.entries() {
                parted
                    .entry(text)
                    .or_insert_with(|| self.chunks(text, &options));
            }
            let lengths = parted.values().map(|chunks| chunks.chunks.len());
            let longest = lengths.max().unwrap_or(1).max(*least);
            let options = options.clone().min_chunks(options.min_chunks.max(longest));

            let mut entries = Vec::with_capacity(schedule.entries().len());
            for ScheduleEntry { end, text } in schedule.entries() {
                // Branches that show the same text share its embedding if they have the same
                // length.
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

    /// Returns the number of chunks of the longest text of each branch.
    pub(super) fn lengths(
        &self,
        prompt: &PromptText,
        steps: PromptSteps,
        options: &EncodeOptions,
    ) -> Vec<usize> {
        let options = options.clone().syntax(prompt.syntax());
        let of_branch = |branch: crate::Branch<'_>| {
            let schedule = branch.schedule(steps);
            let texts: HashSet<&str> = schedule
                .entries()
                .iter()
                .map(|entry| &*entry.text)
                .collect();
            let lengths = texts
                .into_iter()
                .map(|text| self.chunks(text, &options).chunks.len());
            lengths.max().unwrap_or(1)
        };
        prompt.branches().map(of_branch).collect()
    }

    /// Returns the chunks of a text. They show its tokens and their weights without running the
    /// model.
    pub fn chunks(&self, text: &str, options: &EncodeOptions) -> Chunks {
        let segments = attention(text, options.syntax);
        self.tokenizer
            .chunks(&segments, &options.chunking, options.cleanup)
    }

    /// Iterates over the chunks of each distinct text that
    /// [`PromptEncoder::encode_prompt`](crate::PromptEncoder::encode_prompt) encodes, in that
    /// order. The iterator is lazy: it tokenizes a text when it reaches it.
    pub fn all_chunks(
        &self,
        prompt: &PromptText,
        steps: impl Into<PromptSteps>,
        options: &EncodeOptions,
    ) -> impl Iterator<Item = Chunks> {
        let steps = steps.into();
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

    /// Returns the embedding of a text from the cache, or computes and caches it. `chunks` are the
    /// chunks of the text, if they are known already.
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
        let (length, width) = (self.tokenizer.max_length(), self.model.shape().width);
        let mut embedding = Array3::zeros((1, chunks.len() * length, width));
        // Only the first chunk's pooled output is used, as in WebUI.
        let mut pooled = None;
        for (chunk, mut slot) in chunks
            .iter()
            .zip(embedding.axis_chunks_iter_mut(Axis(1), length))
        {
            let mut hidden = slot.index_axis_mut(Axis(0), 0);
            let found = states.of(&chunk.ids)?;
            hidden.assign(&found.hidden);
            pooled = pooled.or_else(|| found.pooled.clone());
            if emphasis::neutral(&chunk.weights) {
                continue;
            }
            match options.emphasis {
                Emphasis::KeepMean => emphasis::keep_mean(hidden, &chunk.weights),
                Emphasis::Multiply => emphasis::multiply(hidden, &chunk.weights),
                Emphasis::Interpolate => {
                    let empty = states.of(&self.tokenizer.empty_chunk().ids)?;
                    emphasis::interpolate(hidden, &chunk.weights, empty.hidden.view());
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
            pooled: pooled.map(|pooled| pooled.insert_axis(Axis(0)).into_shared()),
            tokens: Tokens { ids, used, cut },
            weights,
            inversions,
        })
    }
}

/// The hidden states of chunks. Each distinct chunk is encoded once.
struct States<'a> {
    model: &'a dyn TextModel,
    /// The index of the tower in its encoder.
    tower: usize,
    layer: Layer,
    go_on: &'a dyn Fn() -> bool,
    known: HashMap<Vec<u32>, Arc<Chunk>>,
}

/// The hidden states of one chunk.
struct Chunk {
    /// `[length, width]`
    hidden: Array2<f32>,
    pooled: Option<Array1<f32>>,
}

impl<'a> States<'a> {
    fn new(
        tower: &'a Tower,
        index: usize,
        options: &EncodeOptions,
        go_on: &'a dyn Fn() -> bool,
    ) -> Result<Self, TextError> {
        Ok(Self {
            model: &*tower.model,
            tower: index,
            layer: tower.chosen(options)?,
            go_on,
            known: HashMap::new(),
        })
    }

    /// Returns the states of a chunk. Chunks are encoded one at a time, so that the result for a
    /// chunk does not depend on the others.
    fn of(&mut self, ids: &[u32]) -> Result<Arc<Chunk>, TextError> {
        if let Some(chunk) = self.known.get(ids) {
            return Ok(chunk.clone());
        }
        if !(self.go_on)() {
            return Err(TextError::Stopped);
        }
        let batch = Array2::from_shape_fn((1, ids.len()), |(_, index)| i64::from(ids[index]));
        let found = self
            .model
            .run(batch.view(), self.layer)
            .map_err(TextError::model(self.tower))?;
        let shape = self.model.shape();
        let expected = (1, ids.len(), shape.width);
        if found.hidden.dim() != expected {
            return Err(TextError::Shape {
                expected,
                got: found.hidden.dim(),
            });
        }
        let expected = shape.pooled.map(|width| (1, width));
        let got = found.pooled.as_ref().map(|pooled| pooled.dim());
        if got != expected {
            return Err(TextError::Pooled { expected, got });
        }
        let chunk = Arc::new(Chunk {
            hidden: found.hidden.index_axis_move(Axis(0), 0),
            pooled: found
                .pooled
                .map(|pooled| pooled.index_axis_move(Axis(0), 0)),
        });
        self.known.insert(ids.to_vec(), chunk.clone());
        Ok(chunk)
    }
}

impl fmt::Debug for Tower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tower")
            .field("tokenizer", &self.tokenizer)
            .field("shape", &self.model.shape())
            .field("layer", &self.layer)
            .finish_non_exhaustive()
    }
}
