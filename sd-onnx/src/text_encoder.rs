//! CLIP's text model by itself: texts in, embeddings out.

use std::{path::Path, sync::Arc};

use ndarray::{Array2, Array3, ArrayView1, Axis, s};
use sd_text::{ClipSkip, ClipTokenizer, TextError, TextModel, Tokens};

use crate::{
    Error, builder,
    models::clip_text::{PROJECTION, output_name},
    parts::OnnxTextModel,
};

/// CLIP's embeddings of texts, as transformers' `CLIPTextModel` gives them: each text is one window of (mostly) 77 tokens,
/// with no prompt language. For that, and longer texts, there is [`PromptEncoder`](crate::text::PromptEncoder).
///
/// Cheap to clone, usable from several threads.
///
/// ```
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/emoji");
/// use sd_onnx::{TextEncoder, similarity};
///
/// let encoder = TextEncoder::load(folder)?;
/// let found = encoder.encode(["a fox", "A Fox", "a pizza"])?;
/// assert_eq!(found.hidden.dim(), (3, 77, 64)); // 768 wide in Stable Diffusion 1.x
///
/// let [fox, same, pizza] = [0, 1, 2].map(|text| found.pooled.row(text));
/// assert!(similarity(fox, same) > 0.999 && similarity(fox, pizza) < 0.999);
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

/// Embeddings of texts, in their order.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TextEmbeddings {
    /// Hidden states of the layer asked for, `[texts, length, width]`: one for each token, padding included, after the final
    /// layer norm.
    pub hidden: Array3<f32>,
    /// The last layer's state of the first end-of-text token, `[texts, width]`: transformers' `pooler_output`. That is the
    /// token itself, not what older configurations call it (`"eos_token_id": 2`).
    pub pooled: Array2<f32>,
    /// What the model's text projection makes of [`pooled`](Self::pooled), `[texts, width of that]`: transformers' `text_embeds`, what CLIP
    /// compares pictures with. Stable Diffusion 1.x leaves it out; CLIP's own folders have it.
    pub projected: Option<Array2<f32>>,
    /// The tokens of each text, and what of it was cut off.
    pub tokens: Vec<Tokens>,
}

impl TextEncoder {
    /// Reads the tokenizer and the text model out of a folder: that of a Stable Diffusion model in the diffusers layout, or one
    /// with the files of a CLIP model in it. For threads, a variant of the weights, textual inversions and so on see
    /// [`Builder::load_text_encoder`](crate::Builder::load_text_encoder).
    ///
    /// # Errors
    /// As [`Builder::load`](crate::Builder::load).
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

    /// Which layer [`TextEmbeddings::hidden`] is from. Default: the last. What is pooled is always the last.
    pub fn clip_skip(mut self, clip_skip: ClipSkip) -> Self {
        self.clip_skip = clip_skip;
        self
    }

    /// Whether [`pooled`](TextEmbeddings::pooled) and [`projected`](TextEmbeddings::projected) are scaled to length 1.
    /// Default: not.
    pub fn normalised(mut self, normalised: bool) -> Self {
        self.normalised = normalised;
        self
    }

    /// Whether the end of a text that is too long is cut off, and told in [`Tokens::cut`]. Default: it is an error.
    pub fn truncated(mut self, truncated: bool) -> Self {
        self.truncated = truncated;
        self
    }

    /// How many texts go through the model at once; 0 counts as 1. Default 16. What a text becomes depends on the others
    /// of its batch by rounding only.
    pub fn batch(mut self, texts: usize) -> Self {
        self.batch = texts.max(1);
        self
    }

    /// The tokenizer, to count the tokens of a text.
    pub fn tokenizer(&self) -> &ClipTokenizer {
        &self.tokenizer
    }

    /// How many layers there are: the largest clip skip.
    pub fn layers(&self) -> usize {
        self.model.layers()
    }

    /// Encodes any number of texts.
    ///
    /// # Errors
    /// [`TextError::TooLong`] names a text that has too many tokens; [`TextError::ClipSkip`] if the model has fewer layers;
    /// [`TextError::Model`] if ONNX Runtime fails.
    pub fn encode<T: AsRef<str>>(
        &self,
        texts: impl IntoIterator<Item = T>,
    ) -> Result<TextEmbeddings, TextError> {
        let layers = self.model.layers();
        if self.clip_skip.number() > layers {
            return Err(TextError::ClipSkip {
                got: self.clip_skip,
                layers,
            });
        }
        let mut tokens = Vec::new();
        for (index, text) in texts.into_iter().enumerate() {
            let mut found = self.tokenizer.encode(text.as_ref());
            if let Some(cut) = found.cut.take_if(|_| !self.truncated) {
                return Err(TextError::TooLong { index, cut });
            }
            tokens.push(found);
        }

        let (count, length) = (tokens.len(), self.tokenizer.max_length());
        let width = self.model.width();
        let mut hidden = Array3::<f32>::zeros((count, length, width));
        let mut pooled = Array2::<f32>::zeros((count, width));
        let projection = self.model.projection();
        let mut projected = projection.map(|width| Array2::<f32>::zeros((count, width)));
        for (index, batch) in tokens.chunks(self.batch).enumerate() {
            let rows = index * self.batch..index * self.batch + batch.len();
            let ids = Array2::from_shape_fn((batch.len(), length), |(text, token)| {
                i64::from(batch[text].ids[token])
            });
            let (layer, last) = (self.clip_skip.number(), ClipSkip::LAST.number());
            let mut outputs = vec![output_name(layer)];
            // An output is asked for once.
            outputs.extend((layer != last).then(|| output_name(last)));
            let last = outputs.len() - 1;
            outputs.extend(projection.map(|_| PROJECTION.to_owned()));
            let outputs: Vec<&str> = outputs.iter().map(String::as_str).collect();
            let states = self
                .model
                .run(ids.view(), &outputs)
                .map_err(TextError::Model)?;
            hidden
                .slice_mut(s![rows.clone(), .., ..])
                .assign(&states[0]);
            for (text, tokens) in batch.iter().enumerate() {
                let end = self.end_of_text(&tokens.ids);
                let row = |states: &Array3<f32>| states.slice(s![text, end, ..]).to_owned();
                pooled
                    .row_mut(rows.start + text)
                    .assign(&row(&states[last]));
                if let Some(projected) = &mut projected {
                    projected
                        .row_mut(rows.start + text)
                        .assign(&row(&states[last + 1]));
                }
            }
        }
        if self.normalised {
            normalise(&mut pooled);
            projected.iter_mut().for_each(normalise);
        }
        Ok(TextEmbeddings {
            hidden,
            pooled,
            projected,
            tokens,
        })
    }

    /// Where the first end-of-text token is. transformers finds it as the first of the id that the configuration names, or,
    /// where that says 2 as it did for long, of the largest there is, which it is too without tokens that were added.
    fn end_of_text(&self, ids: &[u32]) -> usize {
        let end = self.tokenizer.eos();
        ids.iter()
            .position(|&id| id == end)
            .expect("the tokenizer puts one behind every text")
    }
}

/// The cosine of the angle between two embeddings, such as [`pooled`](TextEmbeddings::pooled) ones: 1 if they point the same
/// way, 0 at a right angle, −1 if they are opposite. NaN if they are of different lengths or one is all zeros.
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

/// Scales each row to length 1; one of zeros stays.
fn normalise(rows: &mut Array2<f32>) {
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
