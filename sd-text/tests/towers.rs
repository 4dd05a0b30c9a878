//! Tests `PromptEncoder` with several towers.

#![allow(
    clippy::unwrap_used,
    reason = "Clippy allows it only inside of #[test] functions"
)]

mod common;

use std::sync::Arc;

use ndarray::{Array2, Array3, ArrayView2, Axis, concatenate};
use sd_text::{
    BoxError, ClipSkip, EncodeOptions, Layer, PromptEmbedding, PromptEncoder, PromptText, Side,
    Syntax, TextError, TextModel, TextShape, TextStates, Tower,
};
use serde_json::json;

use common::{emoji, full, load, tiny};

/// A model whose states are the ids times a factor, and whose pooled output is the sum of the ids.
struct Fake {
    factor: f32,
    pooled: bool,
    layers: usize,
    max_length: usize,
}

const FIRST: Fake = Fake {
    factor: 1.0,
    pooled: false,
    layers: 12,
    max_length: 77,
};
const SECOND: Fake = Fake {
    factor: -2.0,
    pooled: true,
    layers: 32,
    max_length: 77,
};

impl TextModel for Fake {
    fn shape(&self) -> TextShape {
        let shape = TextShape::new(self.layers, 2).max_length(self.max_length);
        if self.pooled { shape.pooled(1) } else { shape }
    }
    fn run(&self, ids: ArrayView2<'_, i64>, layer: Layer) -> Result<TextStates, BoxError> {
        let factor = self.factor * layer.skip.number() as f32;
        let hidden = Array3::from_shape_fn((1, ids.dim().1, 2), |(_, token, i)| {
            ids[[0, token]] as f32 * factor + i as f32
        });
        let mut states = TextStates::from(hidden);
        states.pooled = self
            .pooled
            .then(|| Array2::from_elem((1, 1), ids.sum() as f32));
        Ok(states)
    }
}

/// A tower with CLIP's vocabulary.
fn tower(fake: Fake) -> Tower {
    let tokenizer = sd_text::ClipTokenizer::load(emoji()).unwrap();
    Tower::new(Arc::new(tokenizer), Arc::new(fake)).unwrap()
}

/// A tower with a vocabulary of a few letters, each of which is a token.
fn letters(fake: Fake) -> Tower {
    Tower::new(Arc::new(load(&tiny())), Arc::new(fake)).unwrap()
}

fn of(towers: Vec<Tower>) -> PromptEncoder {
    PromptEncoder::from_towers(towers).unwrap()
}

/// The embedding of a text by one tower alone.
fn alone(tower: &Tower, text: &str, windows: usize) -> PromptEmbedding {
    let options = EncodeOptions::default().clip_skip(None).min_chunks(windows);
    let encoder = of(vec![tower.clone()]);
    encoder.encode_with(text, &options).unwrap()
}

/// The states of two texts by two towers, concatenated along the channels.
fn joined(towers: [&Tower; 2], texts: [&str; 2], windows: usize) -> Array3<f32> {
    let [first, second] = [0, 1].map(|i| alone(towers[i], texts[i], windows).embedding);
    concatenate![Axis(2), first, second]
}

fn read(text: &str) -> PromptText {
    PromptText::parse(text, Side::Positive, Syntax::WebUi)
}

#[test]
fn widths_are_added_and_the_pooled_output_is_the_one_there_is() {
    let (first, second) = (tower(FIRST).layer(Layer::SDXL), tower(SECOND));
    let encoder = of(vec![first.clone(), second.clone()]);
    assert_eq!((encoder.width(), encoder.pooled_width()), (4, Some(1)));
    assert_eq!(encoder.layers(), 12, "those of the tower with the fewest");
    assert_eq!(encoder.towers().len(), 2);
    let options = EncodeOptions::default().clip_skip(None);
    let found = encoder.encode_with("a fox", &options).unwrap();
    let expected = joined([&first, &second], ["a fox"; 2], 1);
    assert_eq!(found.embedding, expected);
    assert_eq!(found.pooled, alone(&second, "a fox", 1).pooled);
    assert_eq!(found.tokens, alone(&first, "a fox", 1).tokens);

    // Each tower uses its own layer, unless a layer is requested.
    let skipped = encoder.encode("a fox", ClipSkip::new(3).unwrap()).unwrap();
    let [own, same] = [2, 3].map(|skip| Layer {
        skip: ClipSkip::new(skip).unwrap(),
        final_norm: true,
    });
    let third = |tower: &Tower| tower.clone().layer(same);
    let expected = joined([&third(&first), &third(&second)], ["a fox"; 2], 1);
    assert_eq!(skipped.embedding, expected);
    assert_eq!(own.skip, Layer::SDXL.skip);
}

#[test]
fn towers_have_equally_many_windows() {
    // The text has 8 tokens of CLIP and 80 of the letters.
    let text = "abababababb ".repeat(8);
    let (first, second) = (tower(FIRST), letters(SECOND));
    let [few, many] = [&first, &second].map(|tower| alone(tower, &text, 1).embedding.dim().1);
    assert!(few < many, "{few} {many}");
    let windows = many / 77;
    for (towers, order) in [
        (vec![first.clone(), second.clone()], [&first, &second]),
        (vec![second.clone(), first.clone()], [&second, &first]),
    ] {
        let encoder = of(towers);
        let expected = joined(order, [&text; 2], windows);
        let options = EncodeOptions::default().clip_skip(None);
        let found = encoder.encode_with(&text, &options).unwrap();
        assert_eq!(found.embedding, expected);
        let branches = encoder.encode_prompt(&read(&text), 5, &options).unwrap();
        assert_eq!(branches[0].at(0).embedding, expected);
        let longest = encoder.longest(&[&read(&text)], 5, &options);
        assert_eq!(longest, windows);
    }
}

#[test]
fn a_prompt_for_each_tower() {
    let (first, second) = (tower(FIRST), tower(SECOND));
    let encoder = of(vec![first.clone(), second.clone()]);
    let options = EncodeOptions::default().clip_skip(None);
    let encode = |texts: [&str; 2], steps| {
        let prompts = texts.map(read);
        let prompts: Vec<_> = prompts.iter().collect();
        encoder.encode_prompt_while(&prompts, steps, &options, &|| true)
    };
    let long = "owl ".repeat(80);
    let branches = encode(["a fox", &long], 1).unwrap();
    let expected = joined([&first, &second], ["a fox", &long], 2);
    assert_eq!(branches[0].at(0).embedding, expected);
    // The pooled output belongs to the first window of the second prompt.
    let pooled = alone(&second, &"owl ".repeat(75), 1).pooled;
    assert_eq!(branches[0].at(0).pooled, pooled);

    // The two schedules are merged: each tower changes at its own calls.
    let branches = encode(["[a:b:2] AND e", "[c:d:5] AND f"], 8).unwrap();
    assert_eq!(branches.len(), 2);
    let ends = |index: usize| {
        let branch: &sd_text::EncodedBranch = &branches[index];
        let entries = branch.entries().iter();
        entries.map(|entry| entry.end).collect::<Vec<_>>()
    };
    assert_eq!((ends(0), ends(1)), (vec![2, 5, 8], vec![8]));
    for call in 0..8 {
        let each = ["[a:b:2]", "[c:d:5]"].map(|text| {
            let prompt = read(text);
            let schedule = prompt.branches().next().unwrap().schedule(8);
            schedule.at(call).text.to_string()
        });
        let texts = [&*each[0], &*each[1]];
        let expected = joined([&first, &second], texts, 1);
        assert_eq!(branches[0].at(call).embedding, expected, "{texts:?}");
    }
    assert_eq!(
        branches[1].at(0).embedding,
        joined([&first, &second], ["e", "f"], 1)
    );

    let error = encode(["a AND b", "c"], 1).unwrap_err();
    assert!(matches!(&error, TextError::UnequalBranches { found } if *found == [2, 1]));
    assert_eq!(
        error.to_string(),
        "the prompts for the towers have [2, 1] parts between ANDs, expected equally many"
    );
}

#[test]
fn towers_that_do_not_fit() {
    let refused = |towers| PromptEncoder::from_towers(towers).unwrap_err().to_string();
    assert_eq!(
        refused(Vec::new()),
        "found 0 towers and 0 pooled outputs, expected at least 1 tower and at most 1 pooled output"
    );
    assert_eq!(
        refused(vec![tower(SECOND), tower(FIRST), tower(SECOND)]),
        "found 3 towers and 2 pooled outputs, expected at least 1 tower and at most 1 pooled output"
    );
    let short = full(&json!({"model_max_length": 40}));
    let short = Tower::new(Arc::new(load(&short)), Arc::new(SECOND)).unwrap();
    assert_eq!(
        refused(vec![tower(FIRST), short]),
        "the tokenizers of the towers return [77, 40] tokens, expected equal numbers"
    );
    let encoder = of(vec![tower(FIRST), tower(SECOND)]);
    let error = encoder.encode("a", ClipSkip::new(13).unwrap()).unwrap_err();
    assert!(matches!(error, TextError::ClipSkip { layers: 12, .. }));
}
