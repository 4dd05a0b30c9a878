//! The inputs that the denoiser is given for prompts, from call to call.

use std::sync::Arc;

use ndarray::{ArcArray, ArrayView2, ArrayView3, Axis, Ix2, Ix3};
use sd_text::{EncodedBranch, PromptEmbedding, PromptText, Tokens};

/// A prompt as the denoiser was given it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Conditioning {
    /// The embedding of the first branch at the first model call, `[1, tokens, width]`. Most
    /// prompts have no other. Cheap to clone.
    pub embedding: ArcArray<f32, Ix3>,
    /// The pooled output of the first branch at the first model call, `[1, width]`, for models that
    /// have one.
    pub pooled: Option<ArcArray<f32, Ix2>>,
    /// The tokens it was made of; none where the request brought the embedding.
    pub tokens: Option<Tokens>,
    /// The branches (parts of an `AND`), each with its embeddings from call to call, all of one
    /// length: at least one.
    pub branches: Vec<EncodedBranch>,
    /// The prompt as it was read, with what it warns of and the extra networks it names; none where
    /// the request brought the embedding.
    pub text: Option<PromptText>,
}

impl Conditioning {
    /// `text` is what the branches were made of, none where the request brought an embedding.
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

/// What the denoiser is conditioned on, for each branch and each picture of a batch.
pub(crate) struct Contexts {
    branches: Vec<Context>,
    /// Of each picture, whether its branches are weighed against the negative prompt.
    composes: Vec<bool>,
}

/// A branch.
struct Context {
    /// One for each picture, as are the others.
    pictures: Vec<EncodedBranch>,
    weights: Vec<f32>,
    shown: Vec<Arc<PromptEmbedding>>,
    /// `[batch, tokens, width]` of what is shown.
    joined: ArcArray<f32, Ix3>,
    /// `[batch, width]`, where all that is shown has a pooled output.
    pooled: Option<ArcArray<f32, Ix2>>,
}

impl Contexts {
    /// Takes the branches of each picture: equally many for all pictures, of equally many tokens.
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

    /// Makes the contexts of one picture from one embedding that never changes.
    pub fn constant(embedding: &PromptEmbedding) -> Self {
        Self::new(&[&[EncodedBranch::from(embedding.clone())]])
    }

    /// Switches to the embeddings in force at this model call, counted from 0.
    pub fn turn(&mut self, call: usize) {
        for branch in &mut self.branches {
            branch.turn(call);
        }
    }

    /// The number of branches, at least one.
    pub fn branches(&self) -> usize {
        self.branches.len()
    }

    /// The embeddings `[batch, tokens, width]` of a branch now in force.
    pub fn context(&self, branch: usize) -> ArrayView3<'_, f32> {
        self.branches[branch].joined.view()
    }

    /// The pooled outputs `[batch, width]` of a branch now in force.
    pub fn pooled(&self, branch: usize) -> Option<ArrayView2<'_, f32>> {
        let pooled = self.branches[branch].pooled.as_ref()?;
        Some(pooled.view())
    }

    /// The weight of a branch for each picture.
    pub fn weights(&self, branch: usize) -> &[f32] {
        &self.branches[branch].weights
    }

    /// Whether the branches of any picture are weighed against the negative prompt.
    pub fn any_composes(&self) -> bool {
        self.composes.contains(&true)
    }

    /// Whether the branches of this picture are weighed against the negative prompt.
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

    /// Joins what is shown.
    fn join(&mut self) {
        if let [one] = &self.shown[..] {
            self.joined = one.embedding.clone();
            self.pooled = one.pooled.clone();
            return;
        }
        let views: Vec<_> = self.shown.iter().map(|one| one.embedding.view()).collect();
        self.joined = ndarray::concatenate(Axis(0), &views)
            .expect("pictures of a batch have as many tokens each")
            .into_shared();
        let pooled = self
            .shown
            .iter()
            .map(|one| Some(one.pooled.as_ref()?.view()));
        let pooled: Option<Vec<_>> = pooled.collect();
        self.pooled = pooled.map(|views| {
            ndarray::concatenate(Axis(0), &views)
                .expect("pooled outputs of one width, checked in the plan")
                .into_shared()
        });
    }

    fn turn(&mut self, call: usize) {
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
    }
}

/// Whether branches of these weights are anything but a plain prompt.
pub(crate) fn composes(mut weights: impl Iterator<Item = f64>) -> bool {
    weights.next().is_some_and(|weight| weight != 1.0) || weights.next().is_some()
}
