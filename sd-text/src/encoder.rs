//! Encodes prompts: text to token ids to hidden states.

mod cache;
mod embedding;
mod error;
mod model;
mod options;
mod tower;

use std::sync::Arc;

use crate::{Chunks, ClipSkip, ClipTokenizer, PromptSteps, PromptText};

pub use embedding::{EncodedBranch, EncodedEntry, PromptEmbedding};
pub use error::{TextError, TowerError};
pub use model::{BoxError, Layer, TextModel, TextShape, TextStates};
pub use options::EncodeOptions;
pub use tower::Tower;

/// One or several [`Tower`]s that read the same prompt: one in Stable Diffusion 1.x and 2.x, two in
/// SDXL. Cheap to clone and usable from several threads.
///
/// In an embedding, the hidden states of the towers are concatenated along the channels, so the
/// width is the sum of the towers' widths. At most one tower has a pooled output.
#[derive(Debug, Clone)]
pub struct PromptEncoder {
    /// At least one tower.
    towers: Arc<[Tower]>,
}

impl PromptEncoder {
    /// Creates an encoder with one tower that uses its last layer with the final norm, as in Stable
    /// Diffusion 1.x and 2.x.
    ///
    /// # Errors
    /// As [`Tower::new`].
    pub fn new(
        tokenizer: Arc<ClipTokenizer>,
        model: Arc<dyn TextModel>,
    ) -> Result<Self, TowerError> {
        Self::from_towers(vec![Tower::new(tokenizer, model)?])
    }

    /// Creates an encoder with several towers, in the order in which their hidden states are
    /// concatenated.
    ///
    /// # Errors
    /// - [`TowerError::TowerCount`] if there is no tower, or if more than one has a pooled output.
    /// - [`TowerError::UnequalTokens`] if their tokenizers return different numbers of tokens.
    pub fn from_towers(towers: Vec<Tower>) -> Result<Self, TowerError> {
        let pooled = towers
            .iter()
            .filter_map(|tower| tower.model().shape().pooled);
        let pooled = pooled.count();
        if towers.is_empty() || pooled > 1 {
            let towers = towers.len();
            return Err(TowerError::TowerCount { towers, pooled });
        }
        let lengths = towers.iter().map(|tower| tower.tokenizer().max_length());
        let found: Vec<_> = lengths.collect();
        if found.iter().any(|&length| length != found[0]) {
            return Err(TowerError::UnequalTokens { found });
        }
        Ok(Self {
            towers: towers.into(),
        })
    }

    /// Returns the towers, at least one.
    pub fn towers(&self) -> &[Tower] {
        &self.towers
    }

    /// Returns the tokenizer of the first tower, for example to count the tokens of a prompt
    /// without running the model.
    pub fn tokenizer(&self) -> &ClipTokenizer {
        self.towers[0].tokenizer()
    }

    /// Returns the greatest clip skip: the number of layers of the tower with the fewest.
    pub fn layers(&self) -> usize {
        let layers = self.towers.iter().map(|tower| tower.model().shape().layers);
        layers.min().unwrap_or(0)
    }

    /// Returns the width of an embedding: the sum of the towers' widths.
    pub fn width(&self) -> usize {
        let widths = self.towers.iter().map(|tower| tower.model().shape().width);
        widths.sum()
    }

    /// Returns the width of the pooled output, if a tower has one.
    pub fn pooled_width(&self) -> Option<usize> {
        let mut towers = self.towers.iter();
        towers.find_map(|tower| tower.model().shape().pooled)
    }

    /// Encodes one text with the layer that `clip_skip` selects and the default [`EncodeOptions`]
    /// otherwise.
    ///
    /// WebUI's weights and `BREAK`s are read, and a text that is too long for the model becomes
    /// several chunks. Use [`encode_prompt`](Self::encode_prompt) for prompts with `AND` or with
    /// text that changes from step to step.
    ///
    /// # Errors
    /// - [`TextError::ClipSkip`] if a tower has fewer layers.
    /// - [`TextError::Model`] if a text model fails.
    /// - [`TextError::Shape`] or [`TextError::Pooled`] if a text model returns another shape than
    ///   it declares.
    pub fn encode(&self, text: &str, clip_skip: ClipSkip) -> Result<PromptEmbedding, TextError> {
        self.encode_with(text, &EncodeOptions::default().clip_skip(clip_skip))
    }

    /// Encodes one text with these options: a text without a schedule, or one of the texts that a
    /// [`Schedule`](crate::Schedule) shows.
    ///
    /// A weight with so many digits that it is infinite produces states that are infinite or NaN. A
    /// pipeline rejects them.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_with(
        &self,
        text: &str,
        options: &EncodeOptions,
    ) -> Result<PromptEmbedding, TextError> {
        if let [tower] = &*self.towers {
            return Ok(PromptEmbedding::clone(&*tower.encode(0, text, options)?));
        }
        let mut options = options.clone();
        let lengths = self.towers.iter().map(|tower| tower.chunks(text, &options));
        let longest = lengths.map(|chunks| chunks.chunks.len()).max();
        options.min_chunks = options.min_chunks.max(longest.unwrap_or(1));
        let encode = |(index, tower): (usize, &Tower)| tower.encode(index, text, &options);
        let towers = self.towers.iter().enumerate().map(encode);
        let towers: Vec<_> = towers.collect::<Result<_, _>>()?;
        Ok(PromptEmbedding::clone(&PromptEmbedding::joined(&towers)))
    }

    /// Encodes all texts that a prompt shows over `steps` steps (see
    /// [`Branch::schedule`](crate::Branch::schedule)).
    ///
    /// Each distinct text and each distinct chunk is encoded once. All texts of a branch become as
    /// long as its longest text: empty chunks are added to the others, as in WebUI.
    /// [`EncodeOptions::syntax`] is ignored, because the prompt has been parsed already.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use ndarray::{Array3, ArrayView2};
    /// # use sd_text::{BoxError, ClipTokenizer, Layer, TextModel, TextShape, TextStates};
    /// # struct Ids;
    /// # impl TextModel for Ids {
    /// #     fn shape(&self) -> TextShape {
    /// #         TextShape::new(12, 768)
    /// #     }
    /// #     fn run(&self, ids: ArrayView2<'_, i64>, _: Layer) -> Result<TextStates, BoxError> {
    /// #         let (batch, length) = ids.dim();
    /// #         let states = Array3::from_shape_fn((batch, length, 768), |(b, l, _)| {
    /// #             ids[[b, l]] as f32
    /// #         });
    /// #         Ok(states.into())
    /// #     }
    /// # }
    /// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji/tokenizer");
    /// # let tokenizer = Arc::new(ClipTokenizer::load(folder)?);
    /// # let model = Arc::new(Ids);
    /// use sd_text::{EncodeOptions, PromptEncoder, PromptText, Side, Syntax};
    ///
    /// let encoder = PromptEncoder::new(tokenizer, model)?;
    /// let prompt = PromptText::parse("a [fox:owl:0.5]", Side::Positive, Syntax::WebUi);
    /// let branches = encoder.encode_prompt(&prompt, 20, &EncodeOptions::default())?;
    /// assert_eq!(branches.len(), 1);
    /// assert_eq!(branches[0].entries().len(), 2);
    /// assert_eq!(branches[0].at(0).embedding.dim(), (1, 77, 768));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_prompt(
        &self,
        prompt: &PromptText,
        steps: impl Into<PromptSteps>,
        options: &EncodeOptions,
    ) -> Result<Vec<EncodedBranch>, TextError> {
        self.encode_prompt_while(&[prompt], steps, options, &|| true)
    }

    /// Encodes one prompt for each tower like [`encode_prompt`](Self::encode_prompt), until `go_on`
    /// returns false.
    ///
    /// If there are fewer prompts than towers, the remaining towers read the last prompt. `go_on`
    /// is called before each run of a network, because a prompt of thousands of chunks takes
    /// minutes.
    ///
    /// # Errors
    /// As `encode_prompt`, and:
    ///
    /// - [`TextError::Stopped`] if `go_on` returned false.
    /// - [`TextError::UnequalBranches`] if the prompts have different numbers of branches, or if
    ///   there is no prompt.
    pub fn encode_prompt_while(
        &self,
        prompts: &[&PromptText],
        steps: impl Into<PromptSteps>,
        options: &EncodeOptions,
        go_on: &dyn Fn() -> bool,
    ) -> Result<Vec<EncodedBranch>, TextError> {
        let steps = steps.into();
        let read = self.read_by_towers(prompts);
        let found: Vec<_> = read
            .iter()
            .map(|(_, prompt)| prompt.branches().count())
            .collect();
        let Some(&count) = found
            .first()
            .filter(|first| found.iter().all(|n| n == *first))
        else {
            return Err(TextError::UnequalBranches { found });
        };
        let least = self.lengths(prompts, steps, options);
        let mut branches: Vec<Vec<EncodedBranch>> = vec![Vec::new(); count];
        for (index, (tower, prompt)) in read.into_iter().enumerate() {
            let encoded = tower.encode_prompt(index, prompt, steps, options, &least, go_on)?;
            for (all, branch) in branches.iter_mut().zip(encoded) {
                all.push(branch);
            }
        }
        Ok(branches.into_iter().map(EncodedBranch::joined).collect())
    }

    /// Returns the chunks of a text for the first tower. They show its tokens and their weights
    /// without running the model.
    pub fn chunks(&self, text: &str, options: &EncodeOptions) -> Chunks {
        self.towers[0].chunks(text, options)
    }

    /// Returns the number of chunks of the longest text in the prompts, at least
    /// [`EncodeOptions::min_chunks`]. `prompts` are assigned to the towers as in
    /// [`encode_prompt_while`](Self::encode_prompt_while).
    pub fn longest(
        &self,
        prompts: &[&PromptText],
        steps: impl Into<PromptSteps>,
        options: &EncodeOptions,
    ) -> usize {
        let steps = steps.into();
        let towers = self.read_by_towers(prompts).into_iter();
        let lengths = towers.flat_map(|(tower, prompt)| tower.lengths(prompt, steps, options));
        lengths.max().unwrap_or(1).max(options.min_chunks)
    }

    /// Returns each tower with the prompt that it reads (see
    /// [`encode_prompt_while`](Self::encode_prompt_while)). Empty if there is no prompt.
    pub fn read_by_towers<'a>(
        &'a self,
        prompts: &[&'a PromptText],
    ) -> Vec<(&'a Tower, &'a PromptText)> {
        let last = prompts.last().into_iter().cycle();
        let prompts = prompts.iter().chain(last).copied();
        self.towers.iter().zip(prompts).collect()
    }

    /// Returns, for each branch, the fewest chunks that give all towers equally many. Empty if
    /// there is only one tower.
    fn lengths(
        &self,
        prompts: &[&PromptText],
        steps: PromptSteps,
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
