//! Tests `PromptEncoder` with fake models.

#![allow(
    clippy::unwrap_used,
    reason = "Clippy allows it only inside of #[test] functions"
)]

mod common;

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};

use ndarray::{Array2, Array3, ArrayView2};
use sd_text::outside::chain;
use sd_text::{
    BoxError, Chunking, Cleanup, ClipSkip, ClipTokenizer, Emphasis, EncodeOptions, EncodedBranch,
    Layer, PromptEmbedding, PromptEncoder, PromptText, Side, Syntax, TextError, TextModel,
    TextShape, TextStates, TextualInversion, TowerError,
};

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
    fn shape(&self) -> TextShape {
        let shape = TextShape::new(12, 3).max_length(self.max_length);
        shape.vocab_size(self.vocab_size)
    }
    fn run(&self, ids: ArrayView2<'_, i64>, layer: Layer) -> Result<TextStates, BoxError> {
        assert!(layer.final_norm);
        *self.asked.lock().unwrap() = Some((ids.to_owned(), layer.skip));
        if ids[[0, 1]] == ids[[0, 2]] && ids[[0, 1]] != 49407 {
            return Err("the same word twice".into());
        }
        Ok(Array3::from_elem(self.answer, 0.5).into())
    }
}

fn encoder(model: Fake) -> Result<(PromptEncoder, Arc<Fake>), TowerError> {
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
    assert_eq!(encoder.width(), 3);
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
fn no_prompts_are_an_error() {
    let (encoder, _) = encoder(Fake::default()).unwrap();
    let options = EncodeOptions::default();
    let encoded = encoder.encode_prompt_while(&[], 4, &options, &|| true);
    assert!(matches!(encoded, Err(TextError::UnequalBranches { found }) if found.is_empty()));
    assert_eq!(encoder.longest(&[], 4, &options), 1);
}

#[test]
fn long_prompts_are_not_cut() {
    let (encoder, _) = encoder(Fake::default()).unwrap();
    let prompt = encoder
        .encode(&"cat dog ".repeat(40), ClipSkip::LAST)
        .unwrap();
    assert_eq!(prompt.embedding.dim(), (1, 154, 3));
    assert_eq!((prompt.tokens.ids.len(), prompt.weights.len()), (154, 154));
    assert_eq!((prompt.tokens.used, prompt.tokens.cut), (84, None));
}

#[test]
fn cut_prompts_say_so() {
    let (encoder, _) = encoder(Fake::default()).unwrap();
    let options =
        EncodeOptions::default().chunking(Chunking::default().max_chunks(NonZeroUsize::MIN));
    let prompt = encoder
        .encode_with(&"cat dog ".repeat(40), &options)
        .unwrap();
    assert_eq!(prompt.embedding.dim(), (1, 77, 3));
    let cut = prompt.tokens.cut.unwrap();
    assert_eq!((cut.tokens, cut.offset), (5, 300));
}

/// A model whose states are the ids and their positions. It records what it is asked for.
#[derive(Debug, Default)]
struct Echo {
    asked: Mutex<Vec<(Vec<i64>, ClipSkip)>>,
}

impl TextModel for Echo {
    fn shape(&self) -> TextShape {
        TextShape::new(12, 2)
    }
    fn run(&self, ids: ArrayView2<'_, i64>, layer: Layer) -> Result<TextStates, BoxError> {
        let clip_skip = layer.skip;
        assert_eq!(ids.dim(), (1, 77));
        self.asked
            .lock()
            .unwrap()
            .push((ids.iter().copied().collect(), clip_skip));
        let states = Array3::from_shape_fn((1, 77, 2), |(_, token, channel)| match channel {
            0 => ids[[0, token]] as f32 / 100.0,
            _ => token as f32 + clip_skip.number() as f32,
        });
        Ok(states.into())
    }
}

fn echo() -> (PromptEncoder, Arc<Echo>) {
    let model = Arc::new(Echo::default());
    let tokenizer = Arc::new(ClipTokenizer::load(emoji()).unwrap());
    (PromptEncoder::new(tokenizer, model.clone()).unwrap(), model)
}

#[test]
fn weights_act_on_their_tokens() {
    let (encoder, _) = echo();
    let plain = encoder.encode("a fox", ClipSkip::LAST).unwrap();
    let options = EncodeOptions::default().emphasis(Emphasis::Multiply);
    let weighted = encoder.encode_with("a (fox:1.5)", &options).unwrap();
    assert_eq!(weighted.tokens, plain.tokens);
    assert_eq!(weighted.weights[..4], [1.0, 1.0, 1.5, 1.0]);
    for token in 0..77 {
        let factor = if token == 2 { 1.5 } else { 1.0 };
        for channel in 0..2 {
            assert_eq!(
                weighted.embedding[[0, token, channel]],
                plain.embedding[[0, token, channel]] * factor
            );
        }
    }

    let mean = |prompt: &sd_text::PromptEmbedding| prompt.embedding.mean().unwrap();
    let kept = encoder.encode("a (fox:1.5)", ClipSkip::LAST).unwrap();
    assert!((mean(&kept) / mean(&plain) - 1.0).abs() < 1e-5 && mean(&weighted) > mean(&kept));
    assert_ne!(kept.embedding, plain.embedding);
    let ignored = encoder
        .encode_with("a (fox:1.5)", &options.clone().emphasis(Emphasis::Ignore))
        .unwrap();
    assert_eq!(ignored.embedding, plain.embedding);

    let empty = encoder.encode("", ClipSkip::LAST).unwrap();
    let lerped = encoder
        .encode_with("a (fox:1.5)", &options.emphasis(Emphasis::Interpolate))
        .unwrap();
    let [plain, empty] = [plain, empty].map(|prompt| prompt.embedding[[0, 2, 0]]);
    assert_eq!(lerped.embedding[[0, 2, 0]], (plain - empty) * 1.5 + empty);
}

#[test]
fn each_chunk_keeps_its_own_mean() {
    let (encoder, _) = echo();
    let both = encoder
        .encode("a (fox:1.5) BREAK owl", ClipSkip::LAST)
        .unwrap()
        .embedding;
    let first = encoder
        .encode("a (fox:1.5)", ClipSkip::LAST)
        .unwrap()
        .embedding;
    let second = encoder.encode("owl", ClipSkip::LAST).unwrap().embedding;
    assert_eq!(both, ndarray::concatenate![ndarray::Axis(1), first, second]);
}

#[test]
fn every_option_counts() {
    let (encoder, _) = echo();
    let text = format!("a (it\u{2019}s:1.5), {}", "fox ".repeat(73));
    let encode = |options: &EncodeOptions| encoder.encode_with(&text, options).unwrap();
    let default = EncodeOptions::default();
    let usual = encode(&default);
    assert_eq!(usual.embedding.dim().1, 154);
    for other in [
        default.clone().clip_skip(ClipSkip::new(2).unwrap()),
        default.clone().syntax(Syntax::Plain),
        default.clone().emphasis(Emphasis::Multiply),
        default
            .clone()
            .chunking(Chunking::default().max_chunks(NonZeroUsize::MIN)),
        default
            .clone()
            .chunking(Chunking::default().comma_reach(75)),
        default.clone().cleanup(Cleanup::Ftfy),
        default.clone().min_chunks(3),
    ] {
        assert_ne!(encode(&other).embedding, usual.embedding, "{other:?}");
    }
    let padded = encode(&default.min_chunks(3));
    let empty = encoder.encode("", ClipSkip::LAST).unwrap();
    assert_eq!(
        padded.embedding,
        ndarray::concatenate![ndarray::Axis(1), usual.embedding, empty.embedding]
    );
}

#[test]
fn prompts_that_change() {
    let (encoder, model) = echo();
    let prompt = PromptText::parse(
        " a [fox|owl] AND a [snow:hill BREAK:2] :0.5 AND a fox",
        Side::Positive,
        Syntax::WebUi,
    );
    let branches = encoder
        .encode_prompt(&prompt, 6, &EncodeOptions::default())
        .unwrap();
    assert_eq!(
        branches
            .iter()
            .map(|branch| branch.weight)
            .collect::<Vec<_>>(),
        [1.0, 0.5, 1.0]
    );
    let single = |text: &str| encoder.encode(text, ClipSkip::LAST).unwrap().embedding;

    // The texts "a fox", "a owl", "a snow" and "a hill". Nothing follows the BREAK.
    assert_eq!(model.asked.lock().unwrap().len(), 4);

    let alternating = &branches[0];
    assert_eq!(alternating.entries().len(), 6);
    for call in 0..6 {
        // The first text lasts one call longer, because calls count from 0.
        let text = if call <= 1 || call % 2 == 1 {
            " a fox"
        } else {
            " a owl"
        };
        assert_eq!(alternating.at(call).embedding, single(text), "{call}");
    }
    assert!(Arc::ptr_eq(alternating.at(0), alternating.at(3)));
    assert!(Arc::ptr_eq(alternating.at(0), branches[2].at(0)));

    let turning = &branches[1];
    assert_eq!(
        turning
            .entries()
            .iter()
            .map(|entry| entry.end)
            .collect::<Vec<_>>(),
        [2, 6]
    );
    assert_eq!(turning.at(2).embedding.dim(), turning.at(3).embedding.dim());
    assert_eq!(turning.at(3).embedding, single(" a hill BREAK"));
}

#[test]
fn a_prompt_is_left_when_it_is_not_to_go_on() {
    let (encoder, model) = echo();
    let asked = || model.asked.lock().unwrap().len();
    let prompt = PromptText::parse("a BREAK b BREAK c BREAK a", Side::Positive, Syntax::WebUi);
    let encode = |most: usize| {
        let go_on = || asked() < most;
        encoder.encode_prompt_while(&[&prompt], 6, &EncodeOptions::default(), &go_on)
    };
    assert!(matches!(encode(2), Err(TextError::Stopped)));
    assert_eq!(asked(), 2);
    // The stopped run left nothing in the cache.
    assert!(matches!(encode(4), Err(TextError::Stopped)));
    let branches = encode(7).unwrap();
    assert_eq!(asked(), 7);
    let whole = encoder.encode(prompt.text(), ClipSkip::LAST).unwrap();
    assert_eq!(**branches[0].at(0), whole);
}

#[test]
fn inversions_are_named_once() {
    let mut tokenizer = ClipTokenizer::load(emoji()).unwrap();
    let wumpus = TextualInversion::new("Wumpus", Array2::ones((2, 2))).unwrap();
    let other = TextualInversion::new("zqvx", Array2::zeros((1, 2))).unwrap();
    for inversion in [&other, &wumpus] {
        let first = tokenizer.vocab_size() as u32;
        tokenizer.add_inversion(inversion, first).unwrap();
    }
    let model = Arc::new(Fake {
        vocab_size: 49_411,
        ..Fake::default()
    });
    let encoder = PromptEncoder::new(Arc::new(tokenizer), model).unwrap();
    let named = |text: &str| encoder.encode(text, ClipSkip::LAST).unwrap().inversions;
    assert_eq!(named("a fox"), []);
    let found = named("(wumpus:1.2), zqvx BREAK a WUMPUS");
    let names: Vec<_> = found
        .iter()
        .map(|named| (&*named.name, &*named.sha256))
        .collect();
    assert_eq!(
        names,
        [("Wumpus", wumpus.sha256()), ("zqvx", other.sha256())]
    );
    // The SHA-256 of the vectors' bytes:
    // `printf '\0\0\200\077\0\0\200\077\0\0\200\077\0\0\200\077' | sha256sum`, and of eight zero
    // bytes.
    assert_eq!(
        names[0].1,
        "f6bb1294da2f78cd935b01c7656280df5eaa0439e9d97bc03775825a41a508e4"
    );
    assert_eq!(
        names[1].1,
        "af5570f5a1810b7af78caf4bc70a660f0df51e42baf91d4de5b2328de0e83dfc"
    );
}

#[test]
fn lengths_within_a_branch_are_the_longest() {
    let (encoder, _) = echo();
    let prompt = PromptText::parse("[fox:owl BREAK hill:1]", Side::Positive, Syntax::WebUi);
    let [branch] = &encoder
        .encode_prompt(&prompt, 4, &EncodeOptions::default())
        .unwrap()[..]
    else {
        panic!("one branch")
    };
    let [fox, empty] = ["fox", ""].map(|text| encoder.encode(text, ClipSkip::LAST).unwrap());
    assert_eq!(
        branch.at(0).embedding,
        ndarray::concatenate![ndarray::Axis(1), fox.embedding, empty.embedding]
    );

    let long = fox.repeat_last(154);
    assert_eq!(long.embedding.dim(), (1, 154, 2));
    assert_eq!(
        long.embedding.slice(ndarray::s![.., ..77, ..]),
        fox.embedding
    );
    assert!((77..154).all(|token| long.embedding[[0, token, 1]] == fox.embedding[[0, 76, 1]]));
    assert_eq!(long.tokens.ids[..77], fox.tokens.ids);
    assert_eq!(long.tokens.ids[77..], [fox.tokens.ids[76]; 77]);
    assert_eq!((long.tokens.used, long.weights.len()), (3, 154));
    assert_eq!(fox.repeat_last(1), fox);

    // The appended embedding brings its tokens and weights, unless nothing is known about the
    // tokens of the first.
    let weighed = encoder.encode("(owl:1.5)", ClipSkip::LAST).unwrap();
    let both = EncodedBranch::from(fox.clone())
        .append(&weighed)
        .at(0)
        .clone();
    let expected = ndarray::concatenate![ndarray::Axis(1), fox.embedding, weighed.embedding];
    assert_eq!(both.embedding, expected);
    assert_eq!(
        both.tokens.ids,
        [&fox.tokens.ids[..], &weighed.tokens.ids].concat()
    );
    assert_eq!(both.weights, [&fox.weights[..], &weighed.weights].concat());
    assert_eq!(both.tokens.used, 6);
    let unknown = PromptEmbedding::from(fox.embedding.clone());
    let unknown = EncodedBranch::from(unknown).append(&weighed).at(0).clone();
    assert_eq!(
        (&unknown.embedding, unknown.weights.len()),
        (&expected.into_shared(), 0)
    );
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
        "the tokenizer returns 77 tokens, the text model takes at most 76"
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
    assert!(matches!(error, TextError::Model { tower: 0, .. }));
    assert_eq!(chain(&error), "the text model failed: the same word twice");
}

#[test]
fn usable_from_threads() {
    fn check<T: Send + Sync + Clone + std::fmt::Debug>() {}
    check::<PromptEncoder>();
}
