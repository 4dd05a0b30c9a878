//! CLIP's text model by itself: encodes texts as embeddings.

use std::{path::Path, sync::Arc};

use ndarray::{Array2, Array3, ArrayD, ArrayView1, Axis};
use sd_text::{ClipSkip, ClipTokenizer, Layer, TextError, TextModel, Tokens};

use crate::{
    Error, builder,
    models::clip_text::{POOLED, PROJECTION, output_name},
    parts::OnnxTextModel,
};

/// An encoder of texts as CLIP embeddings, like transformers' `CLIPTextModel`.
///
/// Each text is one window of tokens, 77 in most models, and there is no prompt language.
/// [`PromptEncoder`](crate::text::PromptEncoder) reads the prompt language and longer texts.
///
/// The model runs on as many tokens as the longest text has, not on the whole window, like
/// transformers with `padding="longest"`. In CLIP, no token attends to later ones, so the states
/// are the same and only the padding is shorter.
///
/// A `TextEncoder` is cheap to clone and can be used from several threads.
///
/// ```
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji");
/// use sd_onnx::{TextEncoder, similarity};
///
/// let encoder = TextEncoder::load(folder)?;
/// // One embedding per text, to compare texts or to search by.
/// let found = encoder.encode_pooled(["a fox", "A Fox", "a pizza"])?;
/// assert_eq!(found.pooled.dim(), (3, 64)); // 768 wide in Stable Diffusion 1.x
/// let [fox, same, pizza] = [0, 1, 2].map(|text| found.pooled.row(text));
/// assert!(similarity(fox, same) > 0.999 && similarity(fox, pizza) < 0.999);
///
/// // One embedding per token too.
/// let found = encoder.encode(["a fox", "a red fox"])?;
/// assert_eq!(found.hidden.dim(), (2, 5, 64)); // "a red fox" between the first and the last token
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct TextEncoder {
    tokenizer: Arc<ClipTokenizer>,
    model: Arc<OnnxTextModel>,
    clip_skip: ClipSkip,
    normalised: bool,
    truncated: bool,
    batch: usize,
}

/// Embeddings of texts and of their tokens, in the order of the texts. Returned by
/// [`TextEncoder::encode`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TextEmbeddings {
    /// The hidden states `[texts, length, width]` of the selected layer after the final layer norm,
    /// one for each token.
    ///
    /// `length` is the number of tokens of the longest text, [`Tokens::used`]. In the row of a
    /// shorter text, the states of its padding follow. These are the first states of the whole
    /// window. [`PromptEncoder`](crate::text::PromptEncoder) returns all 77, as generating a
    /// picture needs them.
    pub hidden: Array3<f32>,
    /// The same as [`PooledEmbeddings::pooled`], always from the last layer.
    pub pooled: Array2<f32>,
    /// The same as [`PooledEmbeddings::projected`].
    pub projected: Option<Array2<f32>>,
    /// The same as [`PooledEmbeddings::tokens`].
    pub tokens: Vec<Tokens>,
}

/// One embedding per text, in the order of the texts. Returned by [`TextEncoder::encode_pooled`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct PooledEmbeddings {
    /// The last layer's state at the first end-of-text token, `[texts, width]`: transformers'
    /// `pooler_output`. This is the real end-of-text token, even if the model's configuration has
    /// the old value `"eos_token_id": 2`.
    pub pooled: Array2<f32>,
    /// The text projection of [`pooled`](Self::pooled), `[texts, projected width]`: transformers'
    /// `text_embeds`, which CLIP compares with image embeddings. `None` if the model has no
    /// projection layer, like Stable Diffusion 1.x. CLIP's own folders have one.
    ///
    /// To compare texts with pictures, use this. To compare texts with each other, use it too if it
    /// is there, because CLIP was trained on it.
    pub projected: Option<Array2<f32>>,
    /// The tokens of each text, padded to the whole window, and the part of the text that was cut
    /// off.
    pub tokens: Vec<Tokens>,
}

impl TextEncoder {
    /// Loads the tokenizer and the text model of a Stable Diffusion or CLIP model, a file or a
    /// folder.
    ///
    /// Use [`Builder::load_text_encoder`](crate::Builder::load_text_encoder) to set the number of
    /// threads, a variant of the weights, or textual inversions.
    ///
    /// # Errors
    /// The same as for [`Builder::load`](crate::Builder::load).
    pub fn load(folder: impl AsRef<Path>) -> Result<Self, Error> {
        builder().load_text_encoder(folder)
    }

    pub(crate) fn new(tokenizer: Arc<ClipTokenizer>, model: Arc<OnnxTextModel>) -> Self {
        Self {
            tokenizer,
            model,
            clip_skip: ClipSkip::LAST,
            normalised: false,
            truncated: false,
            batch: 16,
        }
    }

    /// Sets the layer that [`TextEmbeddings::hidden`] is taken from. Pooled embeddings are always
    /// from the last layer.
    ///
    /// Default: [`ClipSkip::LAST`], for SDXL too.
    pub fn clip_skip(mut self, clip_skip: ClipSkip) -> Self {
        self.clip_skip = clip_skip;
        self
    }

    /// Sets whether [`pooled`](PooledEmbeddings::pooled) and
    /// [`projected`](PooledEmbeddings::projected) are scaled to length 1.
    ///
    /// Default: false.
    ///
    /// ```
    /// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji");
    /// use sd_onnx::TextEncoder;
    ///
    /// let encoder = TextEncoder::load(folder)?.normalised(true);
    /// let fox = encoder.encode_pooled(["a fox"])?.pooled;
    /// assert!((fox.dot(&fox.t())[[0, 0]] - 1.0).abs() < 1e-5);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn normalised(mut self, normalised: bool) -> Self {
        self.normalised = normalised;
        self
    }

    /// Sets whether the end of a text that is too long is cut off and reported in [`Tokens::cut`].
    ///
    /// Default: false, which makes such a text an error.
    ///
    /// ```
    /// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji");
    /// use sd_onnx::TextEncoder;
    ///
    /// let encoder = TextEncoder::load(folder)?;
    /// let long = "fox ".repeat(100);
    /// assert!(encoder.encode_pooled([&long]).is_err());
    /// let found = encoder.truncated(true).encode_pooled([&long])?;
    /// assert!(found.tokens[0].cut.is_some());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn truncated(mut self, truncated: bool) -> Self {
        self.truncated = truncated;
        self
    }

    /// Sets how many texts go through the model in one call. The other texts in a call change an
    /// embedding only by rounding.
    ///
    /// Default: 16. The value 0 counts as 1.
    pub fn batch(mut self, texts: usize) -> Self {
        self.batch = texts.max(1);
        self
    }

    /// Returns the tokenizer, which can count the tokens of a text.
    pub fn tokenizer(&self) -> &ClipTokenizer {
        &self.tokenizer
    }

    /// Returns the number of layers, which is the largest clip skip.
    pub fn layers(&self) -> usize {
        self.model.shape().layers
    }

    /// Encodes any number of texts and returns an embedding of each token.
    ///
    /// The hidden states take 4 bytes for each channel of each token: 30 kB for a text of ten
    /// tokens in Stable Diffusion 1.x. All texts are padded to the length of the longest, so calls
    /// with texts of similar lengths take the least time and memory. If only pooled embeddings are
    /// needed, [`encode_pooled`](Self::encode_pooled) is faster and stores no hidden states.
    ///
    /// # Errors
    /// The same as for [`encode_pooled`](Self::encode_pooled), and [`TextError::ClipSkip`] if the
    /// model has fewer layers than the clip skip.
    pub fn encode<T: AsRef<str>>(
        &self,
        texts: impl IntoIterator<Item = T>,
    ) -> Result<TextEmbeddings, TextError> {
        let layers = self.model.shape().layers;
        if self.clip_skip.number() > layers {
            return Err(TextError::ClipSkip {
                got: self.clip_skip,
                layers,
            });
        }
        let tokens = self.tokens(texts)?;
        let longest = tokens.iter().map(|tokens| tokens.used).max();
        let shape = (tokens.len(), longest.unwrap_or(0), self.model.shape().width);
        let mut hidden = Array3::zeros(shape);
        let PooledEmbeddings {
            pooled,
            projected,
            tokens,
        } = self.run(tokens, Some(&mut hidden))?;
        Ok(TextEmbeddings {
            hidden,
            pooled,
            projected,
            tokens,
        })
    }

    /// Encodes any number of texts and returns one embedding of each text.
    ///
    /// Texts of similar lengths go through the model together. [`clip_skip`](Self::clip_skip) has
    /// no effect.
    ///
    /// # Errors
    /// - [`TextError::TooLong`] if a text has too many tokens and [`truncated`](Self::truncated) is
    ///   false. It contains the index of the text.
    /// - [`TextError::Model`] if ONNX Runtime fails.
    pub fn encode_pooled<T: AsRef<str>>(
        &self,
        texts: impl IntoIterator<Item = T>,
    ) -> Result<PooledEmbeddings, TextError> {
        self.run(self.tokens(texts)?, None)
    }

    fn tokens<T: AsRef<str>>(
        &self,
        texts: impl IntoIterator<Item = T>,
    ) -> Result<Vec<Tokens>, TextError> {
        let tokens = texts.into_iter().enumerate().map(|(index, text)| {
            let mut tokens = self.tokenizer.encode(text.as_ref());
            match tokens.cut.take_if(|_| !self.truncated) {
                Some(cut) => Err(TextError::TooLong { index, cut }),
                None => Ok(tokens),
            }
        });
        tokens.collect()
    }

    /// Runs the model. If `hidden` `[texts, length, width]` is given, it is filled, and every batch
    /// is padded to its length.
    fn run(
        &self,
        tokens: Vec<Tokens>,
        mut hidden: Option<&mut Array3<f32>>,
    ) -> Result<PooledEmbeddings, TextError> {
        let count = tokens.len();
        let mut pooled = Array2::zeros((count, self.model.shape().width));
        let projection = self.model.shape().pooled;
        let mut projected = projection.map(|width| Array2::zeros((count, width)));

        let mut outputs = vec![POOLED];
        outputs.extend(projected.as_ref().map(|_| PROJECTION));
        let layer = output_name(Layer {
            skip: self.clip_skip,
            final_norm: true,
        });
        outputs.extend(hidden.as_ref().map(|_| layer.as_str()));

        let mut order: Vec<usize> = (0..count).collect();
        if hidden.is_none() {
            // Sorted, because a batch is as long as its longest text.
            order.sort_by_key(|&text| tokens[text].used);
        }
        for batch in order.chunks(self.batch) {
            let longest = batch.iter().map(|&text| tokens[text].used).max();
            let length = hidden
                .as_ref()
                .map_or(longest.unwrap_or(0), |hidden| hidden.dim().1);
            let texts: Vec<_> = batch.iter().map(|&text| &tokens[text]).collect();
            let mut states = self.run_batch(&texts, length, &outputs)?.into_iter();
            let wanted = [Some(&mut pooled), projected.as_mut()];
            for (all, states) in wanted.into_iter().flatten().zip(&mut states) {
                for (&text, state) in batch.iter().zip(states.outer_iter()) {
                    all.row_mut(text).assign(&state);
                }
            }
            if let (Some(hidden), Some(states)) = (&mut hidden, states.next()) {
                for (&text, states) in batch.iter().zip(states.outer_iter()) {
                    hidden.index_axis_mut(Axis(0), text).assign(&states);
                }
            }
        }
        if self.normalised {
            normalise(&mut pooled);
            projected.iter_mut().for_each(normalise);
        }
        Ok(PooledEmbeddings {
            pooled,
            projected,
            tokens,
        })
    }

    /// Runs the model once, on texts of which each gets `length` tokens.
    fn run_batch(
        &self,
        texts: &[&Tokens],
        length: usize,
        outputs: &[&str],
    ) -> Result<Vec<ArrayD<f32>>, TextError> {
        let ids = Array2::from_shape_fn((texts.len(), length), |(row, token)| {
            i64::from(texts[row].ids[token])
        });
        let ends = texts.iter().map(|text| self.end_of_text(&text.ids));
        let ends: Vec<i64> = ends.collect();
        self.model
            .outputs(ids.view(), &ends, outputs)
            .map_err(|source| TextError::Model { tower: 0, source })
    }

    /// Returns the position of the first end-of-text token. transformers searches for the id in the
    /// configuration. If that is the old value 2, it searches for the largest id in the text
    /// instead, which is the same token unless tokens were added.
    fn end_of_text(&self, ids: &[u32]) -> i64 {
        let end = self.tokenizer.eos();
        let place = ids.iter().position(|&id| id == end);
        place.expect("the tokenizer ends every text with one") as i64
    }
}

/// Returns the cosine of the angle between two embeddings, such as
/// [`pooled`](PooledEmbeddings::pooled) ones.
///
/// The result is 1 for the same direction, 0 for a right angle and −1 for opposite directions. It
/// is NaN if the lengths differ or if one embedding is all zeros.
///
/// ```
/// use sd_onnx::{ndarray::arr1, similarity};
///
/// assert_eq!(similarity(arr1(&[3.0, 0.0]).view(), arr1(&[0.0, 2.0]).view()), 0.0);
/// ```
pub fn similarity(a: ArrayView1<'_, f32>, b: ArrayView1<'_, f32>) -> f32 {
    if a.len() != b.len() {
        return f32::NAN;
    }
    let dot = |a: ArrayView1<'_, f32>, b: ArrayView1<'_, f32>| {
        let products = a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b));
        products.sum::<f64>()
    };
    (dot(a, b) / (dot(a, a).sqrt() * dot(b, b).sqrt())) as f32
}

/// Scales each row to length 1. A row of zeros is left unchanged.
pub(crate) fn normalise(rows: &mut Array2<f32>) {
    for mut row in rows.axis_iter_mut(Axis(0)) {
        let squares = row.iter().map(|&value| f64::from(value).powi(2));
        let length = squares.sum::<f64>().sqrt();
        if length > 0.0 {
            row.mapv_inplace(|value| (f64::from(value) / length) as f32);
        }
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{arr1, arr2};

    use super::*;

    #[test]
    fn similarity_is_the_cosine() {
        let of = |a: [f32; 2], b: [f32; 2]| similarity(arr1(&a).view(), arr1(&b).view());
        assert_eq!(of([3.0, 0.0], [0.5, 0.0]), 1.0);
        assert_eq!(of([3.0, 0.0], [0.0, 2.0]), 0.0);
        assert_eq!(of([3.0, 0.0], [-1.0, 0.0]), -1.0);
        assert!((of([1.0, 0.0], [1.0, 1.0]) - 0.5_f32.sqrt()).abs() < 1e-7);
        // Neither overflows nor underflows.
        assert_eq!(of([1e30, 1e30], [1e-30, 1e-30]), 1.0);
        assert!(of([0.0, 0.0], [1.0, 1.0]).is_nan());
        assert!(similarity(arr1(&[1.0]).view(), arr1(&[1.0, 2.0]).view()).is_nan());
    }

    #[test]
    fn rows_of_length_one() {
        let mut rows = arr2(&[[3.0, 4.0], [0.0, 0.0], [-2.0, 0.0]]);
        normalise(&mut rows);
        assert_eq!(rows, arr2(&[[0.6, 0.8], [0.0, 0.0], [-1.0, 0.0]]));
    }
}
