//! The text inputs of the denoiser, which may change from call to call.

use std::sync::Arc;

use ndarray::{ArcArray, ArrayView2, ArrayView3, Axis, Ix2, Ix3};
use sd_text::{EncodedBranch, PromptEmbedding, PromptText, Tokens};

/// A prompt as the denoiser received it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Conditioning {
    /// The embedding of the first branch at the first call of the model, `[1, tokens, width]`. Most
    /// prompts have no other embedding. Cheap to clone.
    pub embedding: ArcArray<f32, Ix3>,
    /// The pooled output of the first branch at the first call of the model, `[1, width]`, for
    /// models that have one.
    pub pooled: Option<ArcArray<f32, Ix2>>,
    /// The tokens of the embedding. `None` if the request contained the embedding itself.
    pub tokens: Option<Tokens>,
    /// The branches between `AND`s, at least one. Each has its embeddings for all calls of the
    /// model, all of the same length.
    pub branches: Vec<EncodedBranch>,
    /// The parsed prompt, with its warnings and the extra networks that it names. `None` if the
    /// request contained the embedding itself.
    pub text: Option<PromptText>,
}

impl Conditioning {
    /// Creates the conditioning from its branches. `text` is the prompt that they were encoded
    /// from, or `None` if the request contained an embedding.
    pub(crate) fn new(text: Option<PromptText>, branches: Vec<EncodedBranch>) -> Self {
        let first = branches[0].at(0).clone();
        Self {
            embedding: first.embedding.clone(),
            pooled: first.pooled.clone(),
            tokens: text.is_some().then(|| first.tokens.clone()),
            branches,
            text,
        }
    }
}

/// The text embeddings for the denoiser: for each branch, the embeddings of all pictures of a
/// batch.
pub(crate) struct Contexts {
    branches: Vec<Context>,
    /// For each picture, whether its branches are combined with the negative prompt.
    composes: Vec<bool>,
}

/// The embeddings of one branch.
struct Context {
    /// The branch of each picture. The vectors below also have one element for each picture.
    pictures: Vec<EncodedBranch>,
    weights: Vec<f32>,
    shown: Vec<Arc<PromptEmbedding>>,
    /// The embeddings in `shown`, joined to `[batch, tokens, width]`.
    joined: ArcArray<f32, Ix3>,
    /// The pooled outputs of `shown`, `[batch, width]`, if all of them have one.
    pooled: Option<ArcArray<f32, Ix2>>,
}

impl Contexts {
    /// Creates the contexts from the branches of each picture. All pictures must have the same
    /// number of branches, and all branches the same number of tokens.
    pub fn new(pictures: &[&[EncodedBranch]]) -> Self {
        let composes = pictures
            .iter()
            .map(|branches| composes(branches.iter().map(|branch| branch.weight)));
        let branches = (0..pictures[0].len()).map(|branch| {
            let pictures = pictures.iter().map(|branches| branches[branch].clone());
            Context::new(pictures.collect())
        });
        Self {
            composes: composes.collect(),
            branches: branches.collect(),
        }
    }

    /// Creates the contexts of one picture from one embedding, which never changes.
    pub fn constant(embedding: &PromptEmbedding) -> Self {
        Self::new(&[&[EncodedBranch::from(embedding.clone())]])
    }

    /// Switches to the embeddings for this call of the model, counted from 0. Returns whether any
    /// embedding has changed.
    pub fn turn(&mut self, call: usize) -> bool {
        let branches = self.branches.iter_mut();
        branches.fold(false, |changed, branch| branch.turn(call) | changed)
    }

    /// Returns the number of branches, at least one.
    pub fn branches(&self) -> usize {
        self.branches.len()
    }

    /// Returns the current embeddings of a branch, `[batch, tokens, width]`.
    pub fn context(&self, branch: usize) -> ArrayView3<'_, f32> {
        self.branches[branch].joined.view()
    }

    /// Returns the current pooled outputs of a branch, `[batch, width]`.
    pub fn pooled(&self, branch: usize) -> Option<ArrayView2<'_, f32>> {
        let pooled = self.branches[branch].pooled.as_ref()?;
        Some(pooled.view())
    }

    /// Returns the weight of a branch for each picture.
    pub fn weights(&self, branch: usize) -> &[f32] {
        &self.branches[branch].weights
    }

    /// Returns whether the branches of any picture are combined with the negative prompt.
    pub fn any_composes(&self) -> bool {
        self.composes.contains(&true)
    }

    /// Returns whether the branches of this picture are combined with the negative prompt.
    pub fn composes(&self, picture: usize) -> bool {
        self.composes[picture]
    }
}

impl Context {
    fn new(pictures: Vec<EncodedBranch>) -> Self {
        let shown: Vec<_> = pictures.iter().map(|branch| branch.at(0).clone()).collect();
        let mut context = Self {
            weights: pictures.iter().map(|branch| branch.weight as f32).collect(),
            pictures,
            joined: shown[0].embedding.clone(),
            pooled: shown[0].pooled.clone(),
            shown,
        };
        context.join();
        context
    }

    /// Joins the embeddings in `shown` to one array.
    fn join(&mut self) {
        if let [one] = &self.shown[..] {
            self.joined = one.embedding.clone();
            self.pooled = one.pooled.clone();
            return;
        }
        let views: Vec<_> = self.shown.iter().map(|one| one.embedding.view()).collect();
        self.joined = ndarray::concatenate(Axis(0), &views)
            .expect("the pictures of a batch have the same number of tokens")
            .into_shared();
        let pooled = self
            .shown
            .iter()
            .map(|one| Some(one.pooled.as_ref()?.view()));
        let pooled: Option<Vec<_>> = pooled.collect();
        self.pooled = pooled.map(|views| {
            ndarray::concatenate(Axis(0), &views)
                .expect("the plan has checked that pooled outputs have the same width")
                .into_shared()
        });
    }

    fn turn(&mut self, call: usize) -> bool {
        let mut changed = false;
        for (branch, shown) in self.pictures.iter().zip(&mut self.shown) {
            let next = branch.at(call);
            if !Arc::ptr_eq(next, shown) {
                *shown = next.clone();
                changed = true;
            }
        }
        if changed {
            self.join();
        }
        changed
    }
}

/// Returns whether branches of these weights are more than a plain prompt: several, or one whose
/// weight is not 1.
pub(crate) fn composes(mut weights: impl Iterator<Item = f64>) -> bool {
    weights.next().is_some_and(|weight| weight != 1.0) || weights.next().is_some()
}
