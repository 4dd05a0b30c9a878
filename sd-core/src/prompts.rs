//! What a request's prompts ask for, and what the denoiser is given for them from call to call.

use std::collections::HashSet;
use std::sync::Arc;

use ndarray::{ArcArray, ArrayView3, Axis, Ix3};
use sd_text::{
    Branch, ClipSkip, EncodeOptions, EncodedBranch, PromptEmbedding, PromptEncoder, PromptText,
    Side, TextError,
};

use crate::{Conditioning, Error, MAX_WINDOWS, Problem, Prompt, PromptOptions, StopToken};

/// A prompt that has been read.
#[derive(Debug)]
pub(crate) enum Read {
    Text(PromptText),
    Embedding(ArcArray<f32, Ix3>),
}

impl Read {
    pub fn new(prompt: &Prompt, side: Side, options: &PromptOptions) -> Self {
        match prompt {
            Prompt::Text(text) => Self::Text(PromptText::parse(text, side, options.syntax)),
            Prompt::Embedding(embedding) => Self::Embedding(embedding.clone()),
        }
    }

    /// How many branches it has, each of which costs an evaluation.
    pub fn branches(&self) -> usize {
        match self {
            Self::Text(text) => text.branches().count(),
            Self::Embedding(_) => 1,
        }
    }

    /// Whether its branches are weighed against the negative prompt, which is then needed whatever the guidance says.
    pub fn composes(&self) -> bool {
        match self {
            Self::Text(text) => composes(text.branches().map(|branch| branch.weight())),
            Self::Embedding(_) => false,
        }
    }
}

/// Whether branches of these weights are anything but a plain prompt.
fn composes(mut weights: impl Iterator<Item = f64>) -> bool {
    weights.next().is_some_and(|weight| weight != 1.0) || weights.next().is_some()
}

/// How the prompts of a request are read and encoded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reading {
    pub options: PromptOptions,
    pub clip_skip: ClipSkip,
    /// The number of steps that schedules are made for.
    pub steps: usize,
}

impl Reading {
    fn options(&self) -> EncodeOptions {
        EncodeOptions::default()
            .clip_skip(self.clip_skip)
            .syntax(self.options.syntax)
            .emphasis(self.options.emphasis)
            .chunking(self.options.chunking)
            .cleanup(self.options.cleanup)
    }

    /// What is wrong with a prompt that can be read, but for the number of its branches.
    pub fn problem(
        &self,
        encoder: &PromptEncoder,
        what: &'static str,
        read: &Read,
    ) -> Option<Problem> {
        let Read::Text(text) = read else {
            return None;
        };
        let infinite = |weight| {
            Problem::new(
                what,
                "finite weights",
                format!("a text with weight {weight}"),
            )
        };
        let mut weights = text.branches().map(|branch| branch.weight() as f32);
        if let Some(weight) = weights.find(|weight| !weight.is_finite()) {
            return Some(infinite(weight));
        }
        let texts = self.texts(text);
        let mut longest = 0;
        for chunks in encoder.all_chunks(text, self.steps, &self.options()) {
            let chunks = chunks.chunks;
            let mut weights = chunks.iter().flat_map(|chunk| &chunk.weights);
            if let Some(&weight) = weights.find(|weight| !weight.is_finite()) {
                return Some(infinite(weight));
            }
            longest = longest.max(chunks.len());
            // Before all the others are tokenized.
            if let Some(problem) = too_long(what, texts, longest) {
                return Some(problem);
            }
        }
        None
    }

    /// How many texts are kept of a prompt: those that each of its branches shows, of which none differ in length.
    fn texts(&self, text: &PromptText) -> usize {
        let of_branch = |branch: Branch<'_>| {
            let schedule = branch.schedule(self.steps);
            let texts = schedule.entries().iter().map(|entry| &entry.text);
            texts.collect::<HashSet<_>>().len()
        };
        text.branches().map(of_branch).sum()
    }

    /// Which of the prompts, none of which has a problem by itself, is too long once they are made as long as each other.
    pub fn problem_together(
        &self,
        encoder: &PromptEncoder,
        prompts: [(&'static str, &Read); 2],
    ) -> Option<Problem> {
        if !self.options.same_length {
            return None;
        }
        let window = encoder.tokenizer().max_length();
        let tokens = self.tokens(encoder, &prompts.map(|(_, read)| read));
        let mut all = prompts.into_iter().zip(tokens);
        all.find_map(|((what, read), tokens)| match read {
            Read::Text(text) => too_long(what, self.texts(text), tokens.div_ceil(window)),
            Read::Embedding(_) => None,
        })
    }

    /// How many tokens each of the prompts comes to.
    pub fn tokens(&self, encoder: &PromptEncoder, prompts: &[&Read]) -> Vec<usize> {
        let (options, window) = (self.options(), encoder.tokenizer().max_length());
        let own = |read: &&Read| match read {
            Read::Text(text) => window * encoder.longest(text, self.steps, &options),
            Read::Embedding(embedding) => embedding.dim().1,
        };
        let own: Vec<_> = prompts.iter().map(own).collect();
        let missing =
            |read: &Read, tokens| tokens + window * self.missing(read, tokens, &own, window);
        let all = prompts.iter().zip(&own);
        all.map(|(read, &tokens)| missing(read, tokens)).collect()
    }

    /// How many empty windows a prompt of so many tokens needs to be as long as the longest, if that is wanted.
    fn missing(&self, read: &Read, tokens: usize, all: &[usize], window: usize) -> usize {
        let most = all.iter().max().copied().unwrap_or(tokens);
        match read {
            Read::Text(_) if self.options.same_length => (most - tokens).div_ceil(window),
            _ => 0,
        }
    }

    /// Encodes each of the prompts, the first of which is the positive one.
    pub fn encode(
        &self,
        encoder: &PromptEncoder,
        prompts: &[&Read],
        stop: &StopToken,
    ) -> Result<Vec<Conditioning>, Error> {
        let span = tracing::info_span!("encode", clip_skip = self.clip_skip.number());
        let _entered = span.entered();
        let options = self.options();
        let encode = |(what, read): (&str, &&Read)| match read {
            Read::Text(text) => {
                let go_on = || !stop.is_stopped();
                let branches = encoder
                    .encode_prompt_while(text, self.steps, &options, &go_on)
                    .map_err(|error| match error {
                        TextError::Stopped => Error::Stopped(Box::default()),
                        TextError::Model(source) => {
                            Error::backend(format!("text encoder, {what}"))(source)
                        }
                        error => error.into(),
                    })?;
                Ok(same_length(branches))
            }
            Read::Embedding(embedding) => {
                let embedding = PromptEmbedding::from(embedding.clone());
                Ok(vec![embedding.into()])
            }
        };
        let named = ["prompt", "negative prompt"].into_iter().zip(prompts);
        let encoded = named.map(encode).collect::<Result<Vec<_>, Error>>()?;
        let tokens: Vec<_> = encoded.iter().map(|one| one[0].tokens()).collect();
        let window = encoder.tokenizer().max_length();
        let mut conditionings = Vec::with_capacity(encoded.len());
        for ((read, mut branches), &own) in prompts.iter().zip(encoded).zip(&tokens) {
            let missing = self.missing(read, own, &tokens, window);
            if missing > 0 {
                // All in one piece: to put one after the other would copy those before again and again.
                let empty = encoder.encode_with("", &options.clone().min_chunks(missing))?;
                let longer = branches.into_iter().map(|branch| branch.append(&empty));
                branches = longer.collect();
            }
            conditionings.push(match read {
                Read::Text(text) => Conditioning::of_text(text.clone(), branches),
                Read::Embedding(_) => Conditioning::of_embedding(branches),
            });
        }
        Ok(conditionings)
    }
}

/// What is wrong with so many texts of so many windows each.
fn too_long(what: &'static str, texts: usize, windows: usize) -> Option<Problem> {
    (texts * windows > MAX_WINDOWS).then(|| {
        let expected = format!("at most {MAX_WINDOWS}");
        let texts = match texts {
            1 => String::new(),
            _ => format!(" in each of {texts} texts"),
        };
        let found = format!("{windows} or more windows of tokens{texts}");
        Problem::new(what, expected, found)
    })
}

/// Branches of as many tokens as the longest: the others repeat their last vector, as in WebUI.
fn same_length(branches: Vec<EncodedBranch>) -> Vec<EncodedBranch> {
    let longest = branches.iter().map(EncodedBranch::tokens).max();
    let longest = longest.unwrap_or(0);
    let branches = branches.into_iter();
    branches.map(|branch| branch.repeat_last(longest)).collect()
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
}

impl Contexts {
    /// Of the branches of each picture: as many for all of them, of as many tokens each.
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

    /// Of one embedding that stays, `[1, tokens, width]`.
    pub fn constant(embedding: ArrayView3<'_, f32>) -> Self {
        let embedding = PromptEmbedding::from(embedding.to_owned().into_shared());
        Self::new(&[&[EncodedBranch::from(embedding)]])
    }

    /// Takes up what is in force at this model call, from 0.
    pub fn turn(&mut self, call: usize) {
        for branch in &mut self.branches {
            branch.turn(call);
        }
    }

    /// How many there are: at least one.
    pub fn branches(&self) -> usize {
        self.branches.len()
    }

    /// `[batch, tokens, width]` of a branch, as taken up last.
    pub fn context(&self, branch: usize) -> ArrayView3<'_, f32> {
        self.branches[branch].joined.view()
    }

    /// The weight of a branch for each picture.
    pub fn weights(&self, branch: usize) -> &[f32] {
        &self.branches[branch].weights
    }

    /// Whether the branches of any picture are weighed against the negative prompt.
    pub fn any_composes(&self) -> bool {
        self.composes.contains(&true)
    }

    /// Whether those of this picture are.
    pub fn composes(&self, picture: usize) -> bool {
        self.composes[picture]
    }
}

impl Context {
    fn new(pictures: Vec<EncodedBranch>) -> Self {
        let shown: Vec<_> = pictures.iter().map(|branch| branch.at(0).clone()).collect();
        let joined = match &shown[..] {
            [one] => one.embedding.clone(),
            all => {
                let views: Vec<_> = all.iter().map(|one| one.embedding.view()).collect();
                ndarray::concatenate(Axis(0), &views)
                    .expect("pictures of a batch have as many tokens each")
                    .into_shared()
            }
        };
        Self {
            weights: pictures.iter().map(|branch| branch.weight as f32).collect(),
            pictures,
            shown,
            joined,
        }
    }

    fn turn(&mut self, call: usize) {
        let alone = self.pictures.len() == 1;
        for (i, (branch, shown)) in self.pictures.iter().zip(&mut self.shown).enumerate() {
            let next = branch.at(call);
            if Arc::ptr_eq(next, shown) {
                continue;
            }
            *shown = next.clone();
            if alone {
                self.joined = next.embedding.clone();
            } else {
                let mut row = self.joined.index_axis_mut(Axis(0), i);
                row.assign(&next.embedding.index_axis(Axis(0), 0));
            }
        }
    }
}
