//! Embeddings of a text and of a prompt that changes from step to step.

use std::collections::HashMap;
use std::sync::Arc;

use ndarray::{ArcArray, Array3, Axis, Ix2, Ix3};

use crate::{NamedInversion, Tokens, prompt};

/// An encoded text.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct PromptEmbedding {
    /// The hidden states of the tokens, `[1, length, width]`. Each chunk has the tokenizer's
    /// [`max_length`](crate::ClipTokenizer::max_length) tokens, padding included. The states of
    /// several towers are concatenated along the channels, so their widths add up. Cheap to clone.
    pub embedding: ArcArray<f32, Ix3>,
    /// The pooled output for the first chunk, `[1, pooled width]`, if the model has one, as SDXL
    /// does. Weights in the prompt do not change it.
    pub pooled: Option<ArcArray<f32, Ix2>>,
    /// The token ids that the first tower reads, chunk after chunk, with the number of tokens that
    /// are not padding and any text that was cut off ([`Chunks::cut`](crate::Chunks::cut)). There
    /// are no ids if the embedding was not made by a prompt encoder.
    pub tokens: Tokens,
    /// The weight of each token in `tokens`.
    pub weights: Vec<f32>,
    /// The textual inversions that the text names, each listed once.
    pub inversions: Vec<NamedInversion>,
}

impl PromptEmbedding {
    /// Sets [`pooled`](Self::pooled), for an embedding that was not made by a prompt encoder.
    pub fn with_pooled(mut self, pooled: impl Into<ArcArray<f32, Ix2>>) -> Self {
        self.pooled = Some(pooled.into());
        self
    }

    /// Returns the embedding with all hidden states and the pooled output set to zero. SDXL uses
    /// this for an empty negative prompt (`force_zeros_for_empty_prompt` of diffusers).
    pub fn zeroed(&self) -> Self {
        Self {
            embedding: ArcArray::zeros(self.embedding.dim()),
            pooled: self
                .pooled
                .as_ref()
                .map(|pooled| ArcArray::zeros(pooled.dim())),
            ..self.clone()
        }
    }

    /// Concatenates the embeddings of one text by several towers, in order, along the channels,
    /// with the pooled output of the tower that has one. All must have the same length.
    pub(super) fn joined(towers: &[Arc<Self>]) -> Arc<Self> {
        let [first, rest @ ..] = towers else {
            unreachable!("an encoder has a tower")
        };
        if rest.is_empty() {
            return first.clone();
        }
        let views: Vec<_> = towers.iter().map(|one| one.embedding.view()).collect();
        let mut joined = Self::clone(first);
        joined.embedding = ndarray::concatenate(Axis(2), &views)
            .expect("all towers have equally many chunks")
            .into_shared();
        joined.pooled = towers.iter().find_map(|one| one.pooled.clone());
        for named in rest.iter().flat_map(|one| &one.inversions) {
            if !joined.inversions.contains(named) {
                joined.inversions.push(named.clone());
            }
        }
        Arc::new(joined)
    }

    /// Returns the embedding with its last vector, token and weight repeated up to `length` tokens.
    /// This makes the parts of an `AND` as long as the longest part. A longer embedding is returned
    /// unchanged.
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

    /// Returns the embedding with `tail`, which must have the same width, appended. If nothing is
    /// known about the embedding's tokens, none are appended.
    fn with_tail(&self, tail: &Self) -> Self {
        let mut longer = self.clone();
        let views = [self.embedding.view(), tail.embedding.view()];
        let joined = ndarray::concatenate(Axis(1), &views);
        longer.embedding = joined.expect("both have the same width").into_shared();
        if !self.tokens.ids.is_empty() {
            longer.tokens.ids.extend(&tail.tokens.ids);
            longer.tokens.used += tail.tokens.used;
            longer.weights.extend(&tail.weights);
        }
        longer
    }
}

impl From<Array3<f32>> for PromptEmbedding {
    /// Wraps an embedding that was not made by a prompt encoder, like the conversion from an
    /// [`ArcArray`].
    fn from(embedding: Array3<f32>) -> Self {
        embedding.into_shared().into()
    }
}

impl From<ArcArray<f32, Ix3>> for PromptEmbedding {
    /// Wraps an embedding that was not made by a prompt encoder, so that nothing is known about its
    /// tokens.
    fn from(embedding: ArcArray<f32, Ix3>) -> Self {
        Self {
            embedding,
            pooled: None,
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

/// An encoded branch of a prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct EncodedBranch {
    /// The factor that multiplies the branch's guidance: [`Branch::weight`](crate::Branch::weight).
    pub weight: f64,
    /// At least one entry.
    pub(super) entries: Vec<EncodedEntry>,
}

/// An encoded text of a schedule.
#[derive(Debug, Clone, PartialEq)]
pub struct EncodedEntry {
    /// The last step that shows the text, counted from 1.
    pub end: usize,
    /// The embedding of the text. Entries with the same text share it.
    pub embedding: Arc<PromptEmbedding>,
}

impl EncodedBranch {
    /// Joins the encodings of one branch by several towers. The result has a new entry wherever the
    /// embedding of any tower changes.
    pub(super) fn joined(towers: Vec<Self>) -> Self {
        if towers.len() == 1 {
            return towers.into_iter().next().expect("there is one tower");
        }
        let all = towers.iter().flat_map(|branch| &branch.entries);
        let mut ends: Vec<usize> = all.map(|entry| entry.end).collect();
        ends.sort_unstable();
        ends.dedup();
        // Entries that show the same embeddings share the joined one.
        let mut known: HashMap<Vec<*const PromptEmbedding>, Arc<PromptEmbedding>> = HashMap::new();
        let entry = |end| {
            let shown = |branch: &Self| {
                let entry = branch.entries.iter().find(|entry| entry.end >= end);
                entry
                    .or(branch.entries.last())
                    .map(|entry| entry.embedding.clone())
            };
            let shown: Vec<_> = towers.iter().filter_map(shown).collect();
            let key = shown.iter().map(Arc::as_ptr).collect();
            let joined = known
                .entry(key)
                .or_insert_with(|| PromptEmbedding::joined(&shown));
            EncodedEntry {
                end,
                embedding: joined.clone(),
            }
        };
        Self {
            weight: towers[0].weight,
            entries: ends.into_iter().map(entry).collect(),
        }
    }

    /// Returns the entries, at least one. All embeddings have the same length, and the ends are
    /// as in a [`Schedule`](crate::Schedule).
    pub fn entries(&self) -> &[EncodedEntry] {
        &self.entries
    }

    /// Returns the number of tokens of each embedding.
    pub fn tokens(&self) -> usize {
        self.entries[0].embedding.embedding.dim().1
    }

    /// Returns the branch with the [last vector of each embedding
    /// repeated](PromptEmbedding::repeat_last) up to `length` tokens.
    pub fn repeat_last(self, length: usize) -> Self {
        if self.tokens() >= length {
            return self;
        }
        self.map(|embedding| embedding.repeat_last(length))
    }

    /// Returns the branch with `tail` appended to each of its embeddings.
    ///
    /// # Panics
    /// If the width of `tail` differs.
    pub fn append(self, tail: &PromptEmbedding) -> Self {
        self.map(|embedding| embedding.with_tail(tail))
    }

    /// Returns the branch with each of its embeddings [set to zero](PromptEmbedding::zeroed).
    pub fn zeroed(&self) -> Self {
        self.clone().map(PromptEmbedding::zeroed)
    }

    /// Applies `change` once to each distinct embedding, so that entries with the same text keep
    /// sharing one.
    fn map(mut self, change: impl Fn(&PromptEmbedding) -> PromptEmbedding) -> Self {
        let mut mapped: HashMap<*const PromptEmbedding, Arc<PromptEmbedding>> = HashMap::new();
        for entry in &mut self.entries {
            let known = mapped.entry(Arc::as_ptr(&entry.embedding));
            let new = known.or_insert_with(|| Arc::new(change(&entry.embedding)));
            entry.embedding = new.clone();
        }
        self
    }

    /// Returns the embedding in force at model call `call`, counted from 0. See
    /// [`Schedule::at`](crate::Schedule::at).
    pub fn at(&self, call: usize) -> &Arc<PromptEmbedding> {
        &self.entries[prompt::in_force(self.entries.iter().map(|entry| entry.end), call)].embedding
    }
}

impl From<PromptEmbedding> for EncodedBranch {
    /// Creates a branch of weight 1 whose embedding never changes.
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
