//! What a prompt becomes: embeddings, from step to step.

use std::collections::HashMap;
use std::sync::Arc;

use ndarray::{ArcArray, Array3, Axis, Ix2, Ix3};

use crate::{NamedInversion, Tokens, prompt};

/// An encoded text.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct PromptEmbedding {
    /// The states of the tokens, `[1, length, width]`. Each chunk has the tokenizer's
    /// [`max_length`](crate::ClipTokenizer::max_length) tokens, padding included. The states of
    /// several towers stand side by side: their widths are added. Cheap to clone.
    pub embedding: ArcArray<f32, Ix3>,
    /// The pooled output for the first chunk, `[1, pooled width]`, of models that have one, such as
    /// SDXL. Weights in the prompt do not change it.
    pub pooled: Option<ArcArray<f32, Ix2>>,
    /// The ids that the first tower reads, one chunk after the other, how many of them are no
    /// padding, and what was cut off if that was asked for
    /// ([`Chunks::cut`](crate::Chunks::cut)). No ids if the embedding is from elsewhere.
    pub tokens: Tokens,
    /// The weight of each of these tokens.
    pub weights: Vec<f32>,
    /// The textual inversions that the text names, each once.
    pub inversions: Vec<NamedInversion>,
}

impl PromptEmbedding {
    /// Sets [`pooled`](Self::pooled), for an embedding that no prompt encoder made.
    pub fn with_pooled(mut self, pooled: impl Into<ArcArray<f32, Ix2>>) -> Self {
        self.pooled = Some(pooled.into());
        self
    }

    /// Returns the embedding with zeros in the place of all states and of the pooled output: what
    /// SDXL is given for an empty negative prompt (`force_zeros_for_empty_prompt` of diffusers).
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

    /// The embeddings of one text by several towers, in order, as one: side by side, with the
    /// pooled output of the tower that has one. All are of one length.
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
            .expect("the towers were given equally many chunks")
            .into_shared();
        joined.pooled = towers.iter().find_map(|one| one.pooled.clone());
        for named in rest.iter().flat_map(|one| &one.inversions) {
            if !joined.inversions.contains(named) {
                joined.inversions.push(named.clone());
            }
        }
        Arc::new(joined)
    }

    /// The embedding with its last vector, with that one's token and weight, repeated up to
    /// `length` tokens: how parts of an `AND` become as long as the longest. One that is longer
    /// stays so.
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

    /// The embedding with `tail`, of the same width, behind it. One of whose tokens nothing is
    /// known stays so.
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

impl From<Array3<f32>> for PromptEmbedding {
    /// As from an [`ArcArray`].
    fn from(embedding: Array3<f32>) -> Self {
        embedding.into_shared().into()
    }
}

impl From<ArcArray<f32, Ix3>> for PromptEmbedding {
    /// An embedding from elsewhere, of whose tokens nothing is known.
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

/// A branch of an encoded prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct EncodedBranch {
    /// [`Branch::weight`](crate::Branch::weight).
    pub weight: f64,
    /// At least one.
    pub(super) entries: Vec<EncodedEntry>,
}

/// An encoded text of a schedule.
#[derive(Debug, Clone, PartialEq)]
pub struct EncodedEntry {
    /// The last step, from 1, that shows the text.
    pub end: usize,
    /// The embedding of the text. Entries of the same text share it.
    pub embedding: Arc<PromptEmbedding>,
}

impl EncodedBranch {
    /// Joins one branch as several towers encoded it. The result changes whenever the embedding of
    /// any tower does.
    pub(super) fn joined(towers: Vec<Self>) -> Self {
        if towers.len() == 1 {
            return towers.into_iter().next().expect("one");
        }
        let all = towers.iter().flat_map(|branch| &branch.entries);
        let mut ends: Vec<usize> = all.map(|entry| entry.end).collect();
        ends.sort_unstable();
        ends.dedup();
        // Entries that show the same embeddings share one.
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

    /// At least one, all of one length, as those of the [`Schedule`](crate::Schedule).
    pub fn entries(&self) -> &[EncodedEntry] {
        &self.entries
    }

    /// How many tokens each of its embeddings has.
    pub fn tokens(&self) -> usize {
        self.entries[0].embedding.embedding.dim().1
    }

    /// The branch with each of its embeddings [repeating its last
    /// vector](PromptEmbedding::repeat_last) up to `length` tokens.
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

    /// The branch with [zeros](PromptEmbedding::zeroed) in the place of each of its embeddings.
    pub fn zeroed(&self) -> Self {
        self.clone().map(PromptEmbedding::zeroed)
    }

    /// Entries of one text go on sharing one embedding.
    fn map(mut self, change: impl Fn(&PromptEmbedding) -> PromptEmbedding) -> Self {
        let mut mapped: HashMap<*const PromptEmbedding, Arc<PromptEmbedding>> = HashMap::new();
        for entry in &mut self.entries {
            let known = mapped.entry(Arc::as_ptr(&entry.embedding));
            let new = known.or_insert_with(|| Arc::new(change(&entry.embedding)));
            entry.embedding = new.clone();
        }
        self
    }

    /// The embedding in force at model call `call`, from 0: see
    /// [`Schedule::at`](crate::Schedule::at).
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
