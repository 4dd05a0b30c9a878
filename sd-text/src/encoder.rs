//! Prompt → token ids → hidden states.

mod cache;
mod embedding;
mod error;
mod model;
mod options;
mod tower;

use std::sync::Arc;

use crate::{Chunks, ClipSkip, ClipTokenizer, PromptText};

pub use embedding::{EncodedBranch, EncodedEntry, PromptEmbedding};
pub use error::TextError;
pub use model::{BoxError, Layer, TextModel, TextShape, TextStates};
pub use options::EncodeOptions;
pub use tower::Tower;

/// One or several [`Tower`]s that read the same prompt: one in Stable Diffusion 1.x and 2.x, two in
/// SDXL. Cheap to clone, usable from several threads.
///
/// The hidden states of the towers stand side by side in an embedding, so that their widths are
/// added. At most one tower has a pooled output.
#[derive(Debug, Clone)]
pub struct PromptEncoder {
    /// At least one.
    towers: Arc<[Tower]>,
}

impl PromptEncoder {
    /// Makes an encoder of one tower, which is read at its last layer, with the final norm, as in
    /// Stable Diffusion 1.x and 2.x.
    ///
    /// # Errors
    /// As [`Tower::new`].
    pub fn new(
        tokenizer: Arc<ClipTokenizer>,
        model: Arc<dyn TextModel>,
    ) -> Result<Self, TextError> {
        Self::of_towers(vec![Tower::new(tokenizer, model)?])
    }

    /// Makes an encoder of several towers, in the order in which their states stand side by side.
    ///
    /// # Errors
    /// [`TextError::Towers`] if there is no tower, or if two have a pooled output;
    /// [`TextError::Lengths`] if their tokenizers do not give equally many tokens.
    pub fn of_towers(towers: Vec<Tower>) -> Result<Self, TextError> {
        let pooled = towers
            .iter()
            .filter_map(|tower| tower.model().shape().pooled);
        let pooled = pooled.count();
        if towers.is_empty() || pooled > 1 {
            let towers = towers.len();
            return Err(TextError::Towers { towers, pooled });
        }
        let lengths = towers.iter().map(|tower| tower.tokenizer().max_length());
        let found: Vec<_> = lengths.collect();
        if found.iter().any(|&length| length != found[0]) {
            return Err(TextError::Lengths { found });
        }
        Ok(Self {
            towers: towers.into(),
        })
    }

    /// The towers, at least one.
    pub fn towers(&self) -> &[Tower] {
        &self.towers
    }

    /// The tokenizer of the first tower, to count the tokens of a prompt without running the model.
    pub fn tokenizer(&self) -> &ClipTokenizer {
        self.towers[0].tokenizer()
    }

    /// The greatest clip skip: the layers of the tower that has the fewest.
    pub fn layers(&self) -> usize {
        let layers = self.towers.iter().map(|tower| tower.model().shape().layers);
        layers.min().unwrap_or(0)
    }

    /// The width of an embedding: the sum over the towers.
    pub fn width(&self) -> usize {
        let widths = self.towers.iter().map(|tower| tower.model().shape().width);
        widths.sum()
    }

    /// The width of the pooled output, if a tower has one.
    pub fn pooled_width(&self) -> Option<usize> {
        let mut towers = self.towers.iter();
        towers.find_map(|tower| tower.model().shape().pooled)
    }

    /// Encodes one text with the default [`EncodeOptions`] but for the layer: WebUI's weights and `BREAK`s are read, and a
    /// text that is too long for the model becomes several chunks. For what changes from step to step, and `AND`, see
    /// [`encode_prompt`](Self::encode_prompt).
    ///
    /// # Errors
    /// [`TextError::ClipSkip`] if a tower has fewer layers, [`TextError::Model`] if one fails,
    /// [`TextError::Shape`] or [`TextError::Pooled`] if one answers in another shape than it
    /// declares.
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
        if let [tower] = &*self.towers {
            return Ok(PromptEmbedding::clone(&*tower.encode(text, options)?));
        }
        let mut options = options.clone();
        let lengths = self.towers.iter().map(|tower| tower.chunks(text, &options));
        let longest = lengths.map(|chunks| chunks.chunks.len()).max();
        options.min_chunks = options.min_chunks.max(longest.unwrap_or(1));
        let encode = |tower: &Tower| tower.encode(text, &options);
        let towers: Vec<_> = self.towers.iter().map(encode).collect::<Result<_, _>>()?;
        Ok(PromptEmbedding::clone(&PromptEmbedding::joined(&towers)))
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
        self.encode_prompt_while(&[prompt], steps, options, &|| true)
    }

    /// As [`encode_prompt`](Self::encode_prompt), with a prompt for each tower, and as long as
    /// `go_on` returns true. If there are fewer prompts than towers, the last prompt is also read
    /// by the remaining towers. `go_on` is called before each run of a network: a prompt of
    /// thousands of chunks takes minutes.
    ///
    /// # Errors
    /// As `encode_prompt`; [`TextError::Stopped`] when `go_on` returned false; [`TextError::Parts`]
    /// if the prompts do not have equally many branches, or if there is no prompt.
    pub fn encode_prompt_while(
        &self,
        prompts: &[&PromptText],
        steps: usize,
        options: &EncodeOptions,
        go_on: &dyn Fn() -> bool,
    ) -> Result<Vec<EncodedBranch>, TextError> {
        let read = self.read_by_towers(prompts);
        let found: Vec<_> = read
            .iter()
            .map(|(_, prompt)| prompt.branches().count())
            .collect();
        let Some(&count) = found
            .first()
            .filter(|first| found.iter().all(|n| n == *first))
        else {
            return Err(TextError::Parts { found });
        };
        let least = self.lengths(prompts, steps, options);
        let mut branches: Vec<Vec<EncodedBranch>> = vec![Vec::new(); count];
        for (tower, prompt) in read {
            let encoded = tower.encode_prompt(prompt, steps, options, &least, go_on)?;
            for (all, branch) in branches.iter_mut().zip(encoded) {
                all.push(branch);
            }
        }
        Ok(branches.into_iter().map(EncodedBranch::joined).collect())
    }

    /// Returns the chunks of a text for the first tower, to see the tokens and their weights
    /// without running the model.
    pub fn chunks(&self, text: &str, options: &EncodeOptions) -> Chunks {
        self.towers[0].chunks(text, options)
    }

    /// The number of chunks of the longest text of the prompts, at least
    /// [`EncodeOptions::min_chunks`]. The towers share `prompts` as in
    /// [`encode_prompt_while`](Self::encode_prompt_while).
    pub fn longest(&self, prompts: &[&PromptText], steps: usize, options: &EncodeOptions) -> usize {
        let towers = self.read_by_towers(prompts).into_iter();
        let lengths = towers.flat_map(|(tower, prompt)| tower.lengths(prompt, steps, options));
        lengths.max().unwrap_or(1).max(options.min_chunks)
    }

    /// Each tower with the prompt that it reads: see
    /// [`encode_prompt_while`](Self::encode_prompt_while). Empty if there is no prompt.
    pub fn read_by_towers<'a>(
        &'a self,
        prompts: &[&'a PromptText],
    ) -> Vec<(&'a Tower, &'a PromptText)> {
        let last = prompts.last().into_iter().cycle();
        let prompts = prompts.iter().chain(last).copied();
        self.towers.iter().zip(prompts).collect()
    }

    /// The least number of chunks of each branch that gives all towers equally many. Empty for one
    /// tower.
    fn lengths(
        &self,
        prompts: &[&PromptText],
        steps: usize,
        options: &EncodeOptions,
    ) -> Vec<usize> {
        let mut longest = Vec::new();
        if self.towers.len() < 2 {
            return longest;
        }
        for (tower, prompt) in self.read_by_towers(prompts) {
            let lengths = tower.lengths(prompt, steps, options);
            longest.resize(lengths.len().max(longest.len()), 1);
            for (longest, length) in longest.iter_mut().zip(lengths) {
                *longest = length.max(*longest);
            }
        }
        longest
    }
}
