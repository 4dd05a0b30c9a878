//! `PromptEncoder` over models that are not there.

#![allow(
    clippy::unwrap_used,
    reason = "Clippy allows it only inside of #[test] functions"
)]

mod common;

use std::sync::{Arc, Mutex};

use ndarray::{Array2, Array3, ArrayView2};
use sd_text::{BoxError, ClipSkip, ClipTokenizer, PromptEncoder, TextError, TextModel};

use common::{emoji, load, tiny};

#[derive(Debug)]
struct Fake {
    vocab_size: usize,
    max_length: usize,
    answer: (usize, usize, usize),
    asked: Mutex<Option<(Array2<i64>, ClipSkip)>>,
}

impl Default for Fake {
    fn default() -> Self {
        Self {
            vocab_size: 49408,
            max_length: 77,
            answer: (1, 77, 3),
            asked: Mutex::default(),
        }
    }
}

impl TextModel for Fake {
    fn layers(&self) -> usize {
        12
    }
    fn width(&self) -> usize {
        3
    }
    fn max_length(&self) -> usize {
        self.max_length
    }
    fn vocab_size(&self) -> usize {
        self.vocab_size
    }
    fn hidden_states(
        &self,
        ids: ArrayView2<'_, i64>,
        clip_skip: ClipSkip,
    ) -> Result<Array3<f32>, BoxError> {
        *self.asked.lock().unwrap() = Some((ids.to_owned(), clip_skip));
        if ids[[0, 1]] == ids[[0, 2]] && ids[[0, 1]] != 49407 {
            return Err("the same word twice".into());
        }
        Ok(Array3::from_elem(self.answer, 0.5))
    }
}

fn encoder(model: Fake) -> Result<(PromptEncoder, Arc<Fake>), TextError> {
    let model = Arc::new(model);
    let tokenizer = Arc::new(ClipTokenizer::load(emoji()).unwrap());
    Ok((PromptEncoder::new(tokenizer, model.clone())?, model))
}

#[test]
fn hands_on_ids_and_clip_skip() {
    let (encoder, model) = encoder(Fake::default()).unwrap();
    for skip in [1, 2, 12] {
        let skip = ClipSkip::new(skip).unwrap();
        let embedding = encoder.encode("a cat", skip).unwrap();
        let (ids, asked) = model.asked.lock().unwrap().take().unwrap();
        assert_eq!(asked, skip);
        assert_eq!(ids.dim(), (1, 77));
        assert!(
            ids.iter()
                .zip(&embedding.tokens.ids)
                .all(|(&a, &b)| a == i64::from(b))
        );
        assert_eq!(embedding.tokens.used, 4);
        assert_eq!(embedding.embedding, Array3::from_elem((1, 77, 3), 0.5));
    }
    assert_eq!(encoder.model().width(), 3);
    assert_eq!(encoder.tokenizer().max_length(), 77);
}

#[test]
fn clip_skip_beyond_the_model() {
    let (encoder, model) = encoder(Fake::default()).unwrap();
    let error = encoder
        .encode("a cat", ClipSkip::new(13).unwrap())
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "clip skip is 13, expected 1 to 12: the text model has 12 layers"
    );
    assert!(model.asked.lock().unwrap().is_none());
}

#[test]
fn cut_prompts_say_so() {
    let (encoder, _) = encoder(Fake::default()).unwrap();
    let cut = encoder
        .encode(&"cat dog ".repeat(40), ClipSkip::LAST)
        .unwrap()
        .tokens
        .cut
        .unwrap();
    assert_eq!((cut.tokens, cut.offset), (5, 300));
}

#[test]
fn parts_that_do_not_fit() {
    let error = encoder(Fake {
        vocab_size: 49407,
        ..Fake::default()
    })
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        "the tokenizer has ids up to 49407, the text model's embedding only 49407 rows"
    );
    let error = encoder(Fake {
        max_length: 76,
        ..Fake::default()
    })
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        "the tokenizer gives 77 tokens, the text model takes at most 76"
    );
    // A smaller tokenizer has no id that the model lacks.
    PromptEncoder::new(Arc::new(load(&tiny())), Arc::new(Fake::default())).unwrap();
}

#[test]
fn models_that_fail() {
    let (encoder, _) = encoder(Fake {
        answer: (1, 76, 3),
        ..Fake::default()
    })
    .unwrap();
    assert!(matches!(
        encoder.encode("a cat", ClipSkip::LAST),
        Err(TextError::Shape {
            expected: (1, 77, 3),
            got: (1, 76, 3)
        })
    ));
    let error = encoder.encode("cat cat", ClipSkip::LAST).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the text model failed: the same word twice"
    );
}

#[test]
fn usable_from_threads() {
    fn check<T: Send + Sync + Clone + std::fmt::Debug>() {}
    check::<PromptEncoder>();
}
