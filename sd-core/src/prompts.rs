//! The parsed prompts of a request, and their encoding.

use std::collections::HashSet;

use sd_text::{
    Branch, ClipSkip, EncodeOptions, EncodedBranch, PromptEmbedding, PromptEncoder, PromptSteps,
    PromptText, Side, TextError,
};

use crate::{
    Conditioning, GenerateError, MAX_WINDOWS, Problem, Prompt, PromptOptions, Stage, StopToken,
    conditioning::composes,
};

/// A prompt that has been parsed, or an embedding.
#[derive(Debug)]
pub(crate) enum Read {
    /// One text for all towers of the prompt encoder, or one for the first tower and one for the
    /// others.
    Text(Vec<PromptText>),
    Embedding(Box<PromptEmbedding>),
}

impl Read {
    /// Parses a prompt. If there is a text `second`, all towers but the first read it instead.
    pub fn new(prompt: &Prompt, second: Option<&str>, side: Side, options: &PromptOptions) -> Self {
        match prompt {
            Prompt::Text(text) => {
                let texts = std::iter::once(text.as_str()).chain(second);
                let read = |text| PromptText::parse(text, side, options.syntax);
                Self::Text(texts.map(read).collect())
            }
            Prompt::Embedding { embedding, pooled } => {
                let mut read = PromptEmbedding::from(embedding.clone());
                read.pooled = pooled.clone();
                Self::Embedding(Box::new(read))
            }
        }
    }

    /// Returns the texts. There are none for an embedding.
    pub fn texts(&self) -> &[PromptText] {
        match self {
            Self::Text(texts) => texts,
            Self::Embedding(_) => &[],
        }
    }

    /// Returns the first text, or `None` for an embedding.
    fn text(&self) -> Option<&PromptText> {
        match self {
            Self::Text(texts) => texts.first(),
            Self::Embedding(_) => None,
        }
    }

    /// Returns the number of branches. Each costs a call of the model per step.
    pub fn branches(&self) -> usize {
        self.text().map_or(1, |text| text.branches().count())
    }

    /// Returns the number of branches of the text for the second tower, if there is one.
    pub fn second_branches(&self) -> Option<usize> {
        match self {
            Self::Text(texts) => texts.get(1).map(|text| text.branches().count()),
            Self::Embedding(_) => None,
        }
    }

    /// Returns whether the branches are combined with the negative prompt, which is then needed
    /// whatever the guidance is.
    pub fn composes(&self) -> bool {
        let weights = |text: &PromptText| composes(text.branches().map(|branch| branch.weight()));
        self.text().is_some_and(weights)
    }

    /// Returns whether the texts for all towers are empty.
    fn is_empty(&self) -> bool {
        match self {
            Self::Text(texts) => texts.iter().all(|text| text.text().is_empty()),
            Self::Embedding(_) => false,
        }
    }
}

/// The options with which the prompts of a request are read and encoded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reading {
    pub options: PromptOptions,
    /// The layer to read, or `None` for each tower's own layer.
    pub clip_skip: Option<ClipSkip>,
    /// The number of steps for which prompt schedules are resolved.
    pub steps: PromptSteps,
    /// Whether an empty negative prompt is encoded as zeros instead of by the text model.
    pub zero_empty_negative: bool,
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

    /// Returns the problem of a prompt that could be parsed, apart from the number of its branches.
    pub fn problem(
        &self,
        encoder: &PromptEncoder,
        what: &'static str,
        read: &Read,
    ) -> Option<Problem> {
        let Read::Text(all) = read else {
            return None;
        };
        let infinite = |weight| {
            Problem::new(
                what,
                "finite weights",
                format!("a text with weight {weight}"),
            )
        };
        let mut weights = all
            .iter()
            .flat_map(|text| text.branches().map(|branch| branch.weight() as f32));
        if let Some(weight) = weights.find(|weight| !weight.is_finite()) {
            return Some(infinite(weight));
        }
        let texts = self.texts(all);
        for (tower, text) in encoder.read_by_towers(&all.iter().collect::<Vec<_>>()) {
            let mut longest = 0;
            for chunks in tower.all_chunks(text, self.steps, &self.options()) {
                let chunks = chunks.chunks;
                let mut weights = chunks.iter().flat_map(|chunk| &chunk.weights);
                if let Some(&weight) = weights.find(|weight| !weight.is_finite()) {
                    return Some(infinite(weight));
                }
                longest = longest.max(chunks.len());
                // Checked in the loop, before the remaining texts are tokenized.
                if let Some(problem) = too_long(what, texts, longest) {
                    return Some(problem);
                }
            }
        }
        None
    }

    /// Returns the largest number of embeddings that a prompt needs: one for each text that one of
    /// its branches shows. If the towers read two prompts, every text of the first may occur
    /// together with every text of the second.
    fn texts(&self, texts: &[PromptText]) -> usize {
        let of_branch = |branch: Branch<'_>| {
            let schedule = branch.schedule(self.steps);
            let texts = schedule.entries().iter().map(|entry| &entry.text);
            texts.collect::<HashSet<_>>().len()
        };
        let of_text = |text: &PromptText| text.branches().map(of_branch).sum::<usize>();
        texts.iter().map(of_text).fold(1, usize::saturating_mul)
    }

    /// Returns the problem of a prompt that becomes too long when both prompts are padded to the
    /// same length. Neither prompt has a problem by itself.
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
            Read::Text(texts) => too_long(what, self.texts(texts), tokens.div_ceil(window)),
            Read::Embedding(_) => None,
        })
    }

    /// Returns the number of tokens of each prompt.
    pub fn tokens(&self, encoder: &PromptEncoder, prompts: &[&Read]) -> Vec<usize> {
        let (options, window) = (self.options(), encoder.tokenizer().max_length());
        let own = |read: &&Read| match read {
            Read::Text(texts) => {
                let texts: Vec<_> = texts.iter().collect();
                window * encoder.longest(&texts, self.steps, &options)
            }
            Read::Embedding(embedding) => embedding.embedding.dim().1,
        };
        let own: Vec<_> = prompts.iter().map(own).collect();
        let missing =
            |read: &Read, tokens| tokens + window * self.missing(read, tokens, &own, window);
        let all = prompts.iter().zip(&own);
        all.map(|(read, &tokens)| missing(read, tokens)).collect()
    }

    /// Returns how many empty windows pad a prompt of `tokens` tokens to the length of the longest,
    /// if padding is wanted.
    fn missing(&self, read: &Read, tokens: usize, all: &[usize], window: usize) -> usize {
        let most = all.iter().max().copied().unwrap_or(tokens);
        match read {
            Read::Text(_) if self.options.same_length => (most - tokens).div_ceil(window),
            _ => 0,
        }
    }

    /// Encodes the prompts. The first one is the positive prompt.
    pub fn encode(
        &self,
        encoder: &PromptEncoder,
        prompts: &[&Read],
        stop: &StopToken,
    ) -> Result<Vec<Conditioning>, GenerateError> {
        let span = tracing::info_span!("encode", clip_skip = self.clip_skip.map(ClipSkip::number));
        let _entered = span.entered();
        let options = self.options();
        let encode = |(side, read): (Side, &&Read)| match read {
            Read::Text(texts) => {
                let go_on = || !stop.is_stopped();
                let texts: Vec<_> = texts.iter().collect();
                let branches = encoder
                    .encode_prompt_while(&texts, self.steps, &options, &go_on)
                    .map_err(|error| match error {
                        TextError::Stopped => GenerateError::Stopped(Box::default()),
                        TextError::Model { tower, source } => {
                            let stage = Stage::TextEncoder { side, tower };
                            GenerateError::Backend { stage, source }
                        }
                        error => error.into(),
                    })?;
                Ok(same_length(branches))
            }
            Read::Embedding(embedding) => Ok(vec![PromptEmbedding::clone(embedding).into()]),
        };
        let sides = [Side::Positive, Side::Negative].into_iter().zip(prompts);
        let encoded = sides
            .map(encode)
            .collect::<Result<Vec<_>, GenerateError>>()?;
        let tokens: Vec<_> = encoded.iter().map(|one| one[0].tokens()).collect();
        let window = encoder.tokenizer().max_length();
        let mut conditionings = Vec::with_capacity(encoded.len());
        for (index, ((read, mut branches), &own)) in
            prompts.iter().zip(encoded).zip(&tokens).enumerate()
        {
            let missing = self.missing(read, own, &tokens, window);
            if missing > 0 {
                // All empty windows are appended at once, because each append copies the embedding.
                let empty = encoder.encode_with("", &options.clone().min_chunks(missing))?;
                let longer = branches.into_iter().map(|branch| branch.append(&empty));
                branches = longer.collect();
            }
            if index > 0 && self.zero_empty_negative && read.is_empty() {
                branches = branches.iter().map(EncodedBranch::zeroed).collect();
            }
            conditionings.push(Conditioning::new(read.text().cloned(), branches));
        }
        Ok(conditionings)
    }
}

/// Returns the problem of this many texts of this many windows each, if they are too many.
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

/// Extends all branches to the tokens of the longest by repeating the last vector, as WebUI does.
fn same_length(branches: Vec<EncodedBranch>) -> Vec<EncodedBranch> {
    let longest = branches.iter().map(EncodedBranch::tokens).max();
    let longest = longest.unwrap_or(0);
    let branches = branches.into_iter();
    branches.map(|branch| branch.repeat_last(longest)).collect()
}
